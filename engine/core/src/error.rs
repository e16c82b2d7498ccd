//! The one error type of the engine: a stable code, what happened to what, what to do next, and whether a retry may help.
//!
//! Every crate makes these; the command line maps [`Kind`] to an exit status and shows the rest. Codes are declared in
//! `codes.rs` and each has a page in `docs/errors/`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use crate::codes::Code;

/// The result of anything in the engine that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an error means for the run; decides the exit status (design, section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An action or a step failed. The run can be resumed or rolled back.
    #[default]
    Failed,
    /// The command line or a file that the operator wrote is wrong.
    Usage,
    /// The runbook or the inventory has errors; nothing was touched.
    Check,
    /// A host or service could not be reached.
    Unreachable,
    /// A gate waits, a sleep is not over, or the operator stopped.
    Paused,
    /// Another run holds the environment.
    Locked,
    /// An audit log does not verify.
    Audit,
    /// An action in doubt needs an answer.
    InDoubt,
    /// Ctrl-C or SIGTERM.
    Interrupted,
    /// The runbook no longer matches what was recorded. A script cannot catch it.
    Mismatch,
    /// The store refuses or cannot hold the record (disk full, damaged, fenced off). A script cannot catch it.
    Store,
    /// The run is to be rolled back, or the end of what was recorded is reached while it is. A script cannot catch it.
    RollBack,
    /// A defect of this program.
    Internal,
}

impl Kind {
    /// Tells whether a script's `try`/`catch` may see an error of this kind. Stops of the run itself cannot be caught.
    #[must_use]
    pub fn catchable(self) -> bool {
        matches!(self, Kind::Failed | Kind::Unreachable | Kind::Usage | Kind::Check)
    }
}

/// A place in a source file; lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// The file, relative to the project.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1; 0 when only the line is known.
    pub column: usize,
}

/// What happened, to what, and what to do next.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Error {
    /// The stable code, such as `RB0301`.
    pub code: Code,
    /// What it means for the run.
    #[serde(default)]
    pub kind: Kind,
    /// What happened, to what: one sentence in lower case, without a full stop.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The inventory name of the host (or service) concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Whether the same action may succeed when tried again without any change.
    #[serde(default)]
    pub retryable: bool,
    /// Further facts by name, such as `status` and `stderr` of a command.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
    /// Where in the operator's files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
    /// The innermost paths of the run at which it arose.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub at: Vec<String>,
    /// Of branches: each that failed, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<Failure>,
    /// Of branches: those that did not begin, since too many had failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_begun: Vec<String>,
}

/// The failure of one branch.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Failure {
    /// The branch's name: that of its host.
    pub name: String,
    /// What went wrong there.
    pub error: Error,
}

impl Error {
    /// Makes an error with the code's own kind and no hint.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Error {
            code,
            kind: code.kind(),
            message: message.into(),
            hint: None,
            host: None,
            retryable: false,
            details: BTreeMap::new(),
            location: None,
            at: vec![],
            failures: vec![],
            not_begun: vec![],
        }
    }

    /// Says what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Names the host or service concerned.
    #[must_use]
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.host = Some(host.into());
        self
    }

    /// Marks that trying again without any change may help.
    #[must_use]
    pub fn retryable(mut self, yes: bool) -> Self {
        self.retryable = yes;
        self
    }

    /// Marks that the action had reached a host before this happened, so that it may have written something.
    #[must_use]
    pub fn reached_before(self) -> Self {
        if self.never_reached() { self.detail("reached", "before") } else { self }
    }

    /// Whether no connection to a host was made at all, so that the action cannot have written anything.
    #[must_use]
    pub fn never_reached(&self) -> bool {
        let codes =
            [Code::SSH_CONNECT, Code::SSH_AUTH, Code::SSH_HOST_KEY_UNKNOWN, Code::SSH_HOST_KEY_CHANGED, Code::SSH_HOST_KEY_FINGERPRINT];
        codes.contains(&self.code) && !self.details.contains_key("reached")
    }

    /// Overrides the kind that the code implies.
    #[must_use]
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Adds a named fact.
    #[must_use]
    pub fn detail(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.details.insert(name.into(), value.to_string());
        self
    }

    /// Sets where in the operator's files, unless an inner place is known already.
    #[must_use]
    pub fn at(mut self, location: Location) -> Self {
        self.location.get_or_insert(location);
        self
    }

    /// A defect of this program: something that cannot happen did.
    pub fn internal(message: impl Into<String>) -> Self {
        Error::new(Code::INTERNAL, message).hint("this is a defect of runbook: please report it with the run's log")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        if let Some(host) = &self.host {
            write!(f, " (host {host})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
