//! The registry of error codes. To add one: a line here and a page `docs/errors/RBnnnn.md`.
//!
//! Numbers are for ever: a code that is no longer raised keeps its line and its page.
//! 00xx engine and journal, 01xx project and inventory, 02xx scripts, 03xx SSH and commands, 04xx files,
//! 05xx databases, 06xx DNS, 07xx backup, 08xx HTTP, TCP and proxies, 09xx the embedded lab, 10xx Docker.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Kind;

/// A stable error code; shows as `RB0301`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(u16);

macro_rules! codes {
    ($($name:ident = $number:literal, $kind:ident, $title:literal;)*) => {
        impl Code {
            $(#[doc = $title] pub const $name: Code = Code($number);)*

            /// Every code with its kind and title, in order of number.
            pub const ALL: &'static [(Code, Kind, &'static str)] = &[$((Code($number), Kind::$kind, $title)),*];
        }
    };
}

codes! {
    INTERNAL = 1, Internal, "A defect of runbook";
    STORE = 2, Store, "The run's record cannot be written or read";
    STORE_FULL = 3, Store, "The disk under the run's record is full";
    STORE_DAMAGED = 4, Store, "The run's record is damaged";
    FENCED_OFF = 5, Store, "Another controller has taken this run over";
    LOCKED = 6, Locked, "Another run holds the environment";
    LOCK_STALE = 7, Locked, "The environment is held by a run whose controller is gone";
    NO_RUN = 8, Usage, "There is no such run";
    RUN_STATE = 9, Usage, "The run is not in a state that allows this";
    INTERRUPTED = 10, Interrupted, "The run was interrupted";
    PAUSED = 11, Paused, "The run is paused";
    GATE_REFUSED = 12, Paused, "A gate was answered with no";
    IN_DOUBT = 13, InDoubt, "An action is in doubt and needs an answer";
    PAST_NO_RETURN = 14, Usage, "The run is past its point of no return";
    WINDOW_OVERRUN = 15, Failed, "The downtime window ran over its budget";
    MISMATCH = 16, Mismatch, "This run no longer matches its runbook";
    AUDIT_INVALID = 17, Audit, "The audit log does not verify";
    TIMEOUT = 18, Failed, "A step or an action took too long";
    STEP_DUPLICATE = 19, Check, "Two steps of one parent have the same name";
    WAIT_TIMEOUT = 20, Failed, "A condition did not come true in time";
    ABORTED = 21, Interrupted, "The run was stopped in mid-action";
    PARALLEL_FAILED = 22, Failed, "Branches failed";
    UNDO_FAILED = 23, Failed, "An undo block failed";
    JOURNAL_FORMAT = 24, Store, "The run's record was written by a newer version";
    ROLL_BACK = 25, RollBack, "The run is to be rolled back";

    USAGE = 100, Usage, "Wrong usage";
    NO_PROJECT = 101, Usage, "There is no project here";
    INVENTORY_SYNTAX = 102, Check, "runbook.toml cannot be parsed";
    INVENTORY_KEY = 103, Check, "runbook.toml has an unknown key";
    INVENTORY_TYPE = 104, Check, "runbook.toml has a value of the wrong type";
    UNKNOWN_ENVIRONMENT = 105, Check, "There is no such environment";
    UNKNOWN_NAME = 106, Check, "The inventory has no such name";
    MISSING_PARAM = 107, Check, "A parameter has no value";
    BAD_PARAM = 108, Check, "A parameter has a wrong value";
    MISSING_SECRET = 109, Check, "A secret cannot be had";
    OUTSIDE_PROJECT = 110, Check, "A path leaves the project folder";
    MISSING_FILE = 111, Check, "A file of the project is missing";
    NOT_CONFIRMED = 112, Usage, "The environment's name was not confirmed";
    FILE_EXISTS = 113, Usage, "A file is in the way";
    INVENTORY_MISSING = 114, Check, "runbook.toml lacks a value that is needed";

    SYNTAX = 200, Check, "The runbook cannot be parsed";
    UNDEFINED_VARIABLE = 201, Check, "A variable is not defined";
    UNKNOWN_FUNCTION = 202, Check, "There is no function or method with this name and number of arguments";
    BAD_DURATION = 203, Check, "Not a duration";
    BAD_SIZE = 204, Check, "Not a size";
    WRONG_TYPE = 205, Check, "An argument has the wrong type";
    UNKNOWN_OPTION = 206, Check, "There is no such option";
    LIMIT = 207, Failed, "The script went over a limit";
    SCRIPT = 208, Failed, "The script raised an error";
    BAD_IMPORT = 209, Check, "A module cannot be imported";
    STEP_ESCAPE = 210, Check, "A block would leave its step";
    BAD_WORD = 211, Check, "A word of the runbook language is used wrongly";
    UNKNOWN_PROPERTY = 212, Check, "There is no such property";
    NOT_A_RUNBOOK_VALUE = 213, Check, "A value cannot be recorded";

    SSH_CONNECT = 300, Unreachable, "A host cannot be reached";
    SSH_AUTH = 301, Unreachable, "A host refuses the login";
    SSH_HOST_KEY_UNKNOWN = 302, Unreachable, "A host's key is not known";
    SSH_HOST_KEY_CHANGED = 303, Unreachable, "A host's key has changed";
    SSH_CONFIG = 304, Check, "The SSH configuration cannot be used";
    SSH_LOST = 305, Unreachable, "The connection to a host was lost";
    SSH_HOST_KEY_FINGERPRINT = 306, Unreachable, "A host's key does not have the fingerprint that was given";
    SSH_SOCKET = 307, Unreachable, "A socket on a host cannot be reached";
    COMMAND_FAILED = 310, Failed, "A command failed";
    COMMAND_DOUBT = 311, InDoubt, "It cannot be known what became of a command";
    COMMAND_TIMEOUT = 312, Failed, "A command took too long";
    COMMAND_BAD = 313, Check, "A command is not well formed";
    SUDO = 314, Failed, "Privileges cannot be raised";
    SUPERVISOR = 315, Failed, "The command supervisor cannot work on a host";
    NOT_RUN = 316, Unreachable, "A login cannot run commands";
    RAISE_PASSWORD = 317, Failed, "The password for raised privileges is wrong";
    RAISE_DENIED = 318, Failed, "A login may not raise its privileges";
    RAISE_TTY = 319, Failed, "Privileges are raised on a terminal only";
    SERVICE_FAILED = 320, Failed, "A service is not in the state that was asked for";
    NOT_READY = 321, Unreachable, "A host did not become ready in time";
    HOST_TOOL_MISSING = 322, Failed, "A host lacks a tool that is needed";
    RAISE_EXPIRED = 323, Failed, "The account or password of a login has expired";

    FILE_MISSING = 400, Failed, "A file is missing on a host";
    FILE_WRITE = 401, Failed, "A file cannot be written";
    FILE_READ = 402, Failed, "A file cannot be read";
    FILE_CHECKSUM = 403, Failed, "A file does not have the checksum that it should have";
    TEMPLATE = 404, Check, "A template cannot be rendered";
    FILE_TOO_LARGE = 405, Failed, "A file is too large to be held as a value";
    COPY_DELETES = 406, Failed, "A copy would delete more than it may";
    DISK_SPACE = 407, Failed, "A host has no room for what is to be written";

    DB_CONNECT = 500, Unreachable, "A database cannot be opened";
    DB_QUERY = 501, Failed, "A query failed";
    DB_FENCE = 502, Failed, "A database could not be fenced";
    DB_NOT_FENCED = 503, Failed, "The fence does not hold";
    DB_DIFFERS = 504, Failed, "Two databases differ";
    DB_COPY = 505, Failed, "A database copy failed";
    DB_BEHIND = 506, Failed, "A database does not have everything yet";
    DB_HELPER = 507, Failed, "The database helper cannot work on a host";
    DB_CANNOT = 508, Failed, "A kind of database cannot do that";
    DB_REPLICATION = 509, Failed, "Replication has stopped";
    DB_LOGIN = 510, Unreachable, "A database server refuses the login";
    DB_SETTINGS = 511, Failed, "A database server is not set up for this";
    DB_POSITION = 512, Failed, "A database cannot be brought to that moment or position";
    DB_CLUSTER = 513, Failed, "A cluster of database servers is not in a state for this";

    DNS_QUERY = 600, Unreachable, "A name server does not answer";
    DNS_REFUSED = 601, Failed, "A name server refused an update";
    DNS_TSIG = 602, Failed, "A signed DNS message was refused";
    DNS_TTL = 603, Failed, "The old TTL has not yet run out";
    DNS_RECORD = 604, Failed, "A record is not as expected";
    DNS_WAIT = 605, Failed, "Name servers do not answer the new value in time";
    DNS_API = 606, Failed, "A DNS provider refuses a request";
    DNS_LIMIT = 607, Failed, "A change of a zone goes beyond what is safe";
    DNS_CANNOT = 608, Failed, "A kind of zone cannot do that";

    BACKUP_SNAPSHOT = 700, Failed, "A snapshot failed";
    BACKUP_MISSING = 701, Failed, "There is no such snapshot";
    BACKUP_DAMAGED = 702, Failed, "A snapshot is damaged";
    BACKUP_RESTORE = 703, Failed, "A restore test failed";
    BACKUP_REPOSITORY = 704, Failed, "A backup repository cannot be used";
    BACKUP_STALE = 705, Failed, "There is no fresh snapshot";
    BACKUP_DETACHED = 706, Failed, "The disk of a backup repository is not attached";
    BACKUP_SCHEDULE = 707, Failed, "A schedule of backups cannot be set up";
    BACKUP_DRIFT = 708, Failed, "A schedule of backups was changed by somebody else";

    HTTP = 800, Failed, "An HTTP check failed";
    TCP = 801, Failed, "A TCP check failed";
    PROXY = 802, Failed, "A proxy is not in the state that was asked for";
    TLS = 803, Failed, "A server's TLS is not accepted";

    LAB = 900, Failed, "The embedded lab failed";
    LAB_DOWN = 901, Usage, "The embedded lab is not up";
    ORDERS_LOST = 902, Failed, "The demo lost orders";

    DOCKER = 1000, Failed, "A Docker Engine refused or failed";
    DOCKER_CONNECT = 1001, Unreachable, "A Docker Engine cannot be reached";
    DOCKER_MISSING = 1002, Failed, "A Docker Engine has no such thing";
    DOCKER_CONFLICT = 1003, Failed, "Something on a Docker Engine is in the way";
    DOCKER_HEALTH = 1004, Failed, "A container is not well";
    DOCKER_COPY = 1005, Failed, "A copy between Docker Engines failed";
    DOCKER_COMPOSE = 1006, Failed, "Compose failed";
    SWARM_STATE = 1007, Failed, "A Docker Engine is not in the state of a swarm that this needs";
    SWARM_JOIN = 1008, Failed, "A Docker Engine could not join a swarm";
    SWARM_QUORUM = 1009, Failed, "A swarm has lost its quorum of managers, or would lose it";
    SERVICE_UPDATE = 1010, Failed, "The update of a service failed";
    SERVICE_CONVERGE = 1011, Failed, "A service, a node or a task did not come to the state that was waited for";
    SERVICE_CHANGED = 1012, Failed, "A service was changed by somebody else at the same time";
    SWARM_STACK = 1013, Failed, "docker stack failed";
    DOCKER_BUILD = 1014, Failed, "An image cannot be built";
}

impl Code {
    /// The code's number, as in `RB0301` for 301.
    #[must_use]
    pub fn number(self) -> u16 {
        self.0
    }

    /// What an error with this code means for the run unless it says otherwise.
    #[must_use]
    pub fn kind(self) -> Kind {
        Self::ALL.iter().find(|(c, ..)| *c == self).map_or(Kind::Failed, |(_, k, _)| *k)
    }

    /// The code's title, as at the head of its page.
    #[must_use]
    pub fn title(self) -> &'static str {
        Self::ALL.iter().find(|(c, ..)| *c == self).map_or("", |(.., t)| *t)
    }

    /// Reads `RB0301`, `rb301` or `301`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Code> {
        let t = text.trim();
        let digits = t.strip_prefix("RB").or_else(|| t.strip_prefix("rb")).unwrap_or(t);
        digits.parse().ok().map(Code)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RB{:04}", self.0)
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Code::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("{text} is not an error code")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_sorted() {
        assert!(Code::ALL.windows(2).all(|w| w[0].0 < w[1].0));
    }

    #[test]
    fn every_code_has_a_page() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors");
        let missing: Vec<_> = Code::ALL
            .iter()
            .filter(|(c, ..)| !std::path::Path::new(&format!("{dir}/{c}.md")).exists())
            .map(|(c, ..)| c.to_string())
            .collect();
        assert!(missing.is_empty(), "docs/errors lacks {missing:?}");
    }
}
