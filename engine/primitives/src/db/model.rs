//! What passes between the primitives and the drivers of replicated servers.

use std::collections::BTreeMap;
use std::time::Duration;

use runbook_core::{Error, Record, Value};

/// Which tables, and how many at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TableOptions {
    /// Only these tables; all when empty.
    pub tables: Vec<String>,
    /// How many streams or sessions at once; the driver chooses when not given.
    pub jobs: Option<usize>,
}

/// How a dump is made or loaded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DumpOptions {
    /// How many at once; the driver chooses when not given.
    pub jobs: Option<usize>,
    /// Whether what is in the way there may be removed.
    pub replace: bool,
}

/// What a dump wrote, or a load loaded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dumped {
    /// How many tables.
    pub tables: u64,
    /// Rows of all tables; `None` when the server's tools do not tell.
    pub rows: Option<u64>,
    /// Bytes of the rows, uncompressed.
    pub bytes: u64,
    /// The position of its moment.
    pub position: String,
    /// The dump's id.
    pub id: String,
    /// Whether anything was done.
    pub changed: bool,
    /// Why there was nothing to do.
    pub note: String,
}

/// How replication is set up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Replicate {
    /// The kind of replication, in the driver's own words; the driver's usual one when not given.
    pub mode: Option<String>,
    /// How many streams at once load the first copy; the driver chooses when not given.
    pub jobs: Option<usize>,
    /// Whether what is in the way there may be removed.
    pub replace: bool,
    /// Whether the primary is to follow once this database has taken over; asked of kinds and modes that have no other way back.
    pub way_back: bool,
}

/// What setting up replication did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Replicated {
    /// Whether anything was done.
    pub changed: bool,
    /// Rows that were copied first; 0 when nothing had to be copied.
    pub rows: u64,
    /// Bytes that were copied first.
    pub bytes: u64,
    /// The position from which it replicates.
    pub position: String,
    /// A remark for people, such as why there was nothing to do.
    pub note: String,
}

/// Why replication has stopped, in the server's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicationError {
    /// The server's code.
    pub code: String,
    /// The server's text.
    pub text: String,
}

/// How replication stands.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Status {
    /// `primary` (others replicate from it), `replica`, or `alone`.
    pub role: String,
    /// From where it replicates, as the server has it.
    pub source: Option<String>,
    /// Whether everything that replication needs runs.
    pub running: bool,
    /// How old the newest change is that it has not applied; zero when it has all that it knows of.
    pub lag: Option<Duration>,
    /// How much it has not applied, in `behind_unit`.
    pub behind: Option<u64>,
    /// `bytes` or `transactions`.
    pub behind_unit: &'static str,
    /// Whether the server refuses writes of ordinary users.
    pub read_only: bool,
    /// Where it stands, in the server's own form.
    pub position: String,
    /// Why replication has stopped.
    pub error: Option<ReplicationError>,
    /// Further facts, in the server's own words.
    pub detail: BTreeMap<String, Value>,
}

impl Status {
    /// The record that scripts hold.
    #[must_use]
    pub fn record(&self) -> Record {
        let error = self.error.as_ref().map(|e| {
            Value::Map(BTreeMap::from([
                ("code".to_string(), Value::from(e.code.as_str())),
                ("text".to_string(), Value::from(e.text.as_str())),
            ]))
        });
        Record::new(
            "ReplicationStatus",
            [
                ("role", self.role.as_str().into()),
                ("source", self.source.clone().into()),
                ("running", self.running.into()),
                ("lag", self.lag.into()),
                ("behind", self.behind.map(|n| i64::try_from(n).unwrap_or(i64::MAX)).into()),
                ("behind_unit", self.behind_unit.into()),
                ("read_only", self.read_only.into()),
                ("position", self.position.as_str().into()),
                ("error", error.into()),
                ("detail", self.detail.clone().into()),
            ],
        )
    }
}

/// A login of a database server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Account {
    /// Its name in the server's own form, such as `'shop'@'%'` or `shop`.
    pub name: String,
    /// Whether it can log in.
    pub login: bool,
    /// Whether it may do everything (a super-user).
    pub superuser: bool,
    /// Its grants as statements, without passwords or hashes.
    pub grants: Vec<String>,
}

/// What copying accounts did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AccountsCopied {
    /// Accounts that were made.
    pub created: Vec<String>,
    /// Accounts that were there and differed.
    pub changed: Vec<String>,
    /// Accounts that were equal already.
    pub equal: Vec<String>,
}

/// A table as `compare` asks for its chunks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keyed {
    /// Its name, as in [`super::driver::Content::tables`].
    pub name: String,
    /// The columns of its primary key, or of another unique key without NULLs; empty when it has none: then it is one chunk.
    pub key: Vec<String>,
    /// All columns that are compared, in their order.
    pub columns: Vec<String>,
    /// About how many rows it has.
    pub rows: u64,
    /// About how many bytes it has.
    pub bytes: u64,
    /// What the driver must know of its columns besides, such as their types.
    pub extra: BTreeMap<String, String>,
}

/// The rows of a table whose keys are greater than `after` and not greater than `upto`; open where there is none.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Span {
    /// Keys greater than this.
    pub after: Option<Vec<Value>>,
    /// Keys up to this one, itself included.
    pub upto: Option<Vec<Value>>,
}

/// Number and checksum of the rows of a span.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chunk {
    /// How many rows.
    pub rows: u64,
    /// Checksum of the rows, whatever their order.
    pub sum: String,
}

impl ReplicationError {
    /// The error that stops a wait: replication on `db` has ended on this.
    #[must_use]
    pub fn stopped(&self, db: &super::driver::Db) -> Error {
        Error::new(runbook_core::Code::DB_REPLICATION, format!("replication into \"{}\" has stopped: {}", db.name, self.text))
            .hint("mend what the server says, or replicate anew; nothing was switched")
            .host(&db.host)
            .detail("code", &self.code)
            .detail("text", &self.text)
    }
}

/// The first change that `roll_forward` does not apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Before {
    /// The first one of this moment or later.
    Time(jiff::Timestamp),
    /// The one at this position, in the server's own form.
    Position(String),
}

/// Where `roll_forward` or `recover_to` has stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rolled {
    /// Whether anything was applied.
    pub changed: bool,
    /// Where the replica stands, in the server's own form.
    pub position: String,
    /// When the last transaction was made that is applied, where that is known.
    pub last: Option<jiff::Timestamp>,
    /// The first change that was not applied; `None` when everything was.
    pub left_out: Option<LeftOut>,
}

/// The first change that was not applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Where it is, in the server's own form.
    pub position: String,
    /// When it was made.
    pub time: jiff::Timestamp,
    /// What it does, as far as the server tells.
    pub statement: String,
}
