//! The journal: an append-only, hash-chained record of a run, behind a trait so that it may live in SQLite or elsewhere.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::error::Result;
use crate::value::Value;

pub mod canonical;
#[cfg(test)]
mod conformance;
pub mod entry;
#[cfg(test)]
mod kinds;
#[doc(hidden)]
pub mod memory;
pub mod sqlite;
pub mod verify;

pub use canonical::line;
pub use entry::{Body, Entry, Operator, Purpose, State, Status, UndoKind, Via};
pub use sqlite::SqliteStore;
pub use verify::{Verified, audit, verify, verify_lines, verify_run};

/// The format of journals that this version writes.
pub const FORMAT: u32 = 1;

/// The `prev` of the first entry.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// A run as the store lists it.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct RunInfo {
    /// Its id.
    pub id: String,
    /// The environment's name.
    pub environment: String,
    /// The runbook's path in the project.
    pub runbook: String,
    /// When it began, RFC 3339.
    pub created: String,
    /// Its state as last recorded.
    pub state: State,
    /// How many entries it has.
    pub entries: u64,
    /// The hash of its newest entry.
    pub head: String,
}

/// What a new run keeps for ever: the exact sources, the resolved inventory without secrets, and so on, by path.
#[derive(Debug, Clone, Default)]
pub struct NewRun {
    /// Its id.
    pub id: String,
    /// The environment's name.
    pub environment: String,
    /// The runbook's path in the project.
    pub runbook: String,
    /// Kept files by path; names that begin with `@` are the engine's own (`@environment.json`).
    pub sources: BTreeMap<String, Vec<u8>>,
}

/// Who holds an environment.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Holder {
    /// The run.
    pub run: String,
    /// Who and where.
    pub operator: Operator,
    /// The fencing number: greater with every acquisition.
    pub fence: i64,
    /// Until when the lease stands unless renewed.
    pub until: Timestamp,
}

/// Who holds it, for messages: `run x by ann on ops1 (pid 17)`.
impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "run {} by {} on {} (pid {})", self.run, self.operator.user, self.operator.host, self.operator.pid)
    }
}

/// The answer to an attempt to take an environment's lock.
#[derive(Debug, Clone, PartialEq)]
pub enum Acquired {
    /// It is ours, with this fencing number.
    Yes(i64),
    /// Somebody holds it; whether that is alive is for the caller to judge.
    Held(Holder),
}

/// A message from another process to the controller of a run: an answer to a gate, to a doubt, a request to stop.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `gate`, `doubt`, `overrun`, `stop`.
    pub kind: String,
    /// The path that it is about.
    pub path: String,
    /// The answer.
    pub answer: String,
    /// Who.
    pub by: String,
    /// What they added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

/// Entries to be appended together, with what changes in the same commit.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The bodies, each with its time.
    pub bodies: Vec<(Timestamp, Body)>,
    /// Facts of the environment to be set; `()` removes one.
    pub facts: BTreeMap<String, Value>,
    /// The run's new state.
    pub state: Option<State>,
}

impl Batch {
    /// A batch of one entry.
    #[must_use]
    pub fn one(time: Timestamp, body: Body) -> Self {
        Batch { bodies: vec![(time, body)], ..Batch::default() }
    }
}

/// Where journals, locks, messages and facts live. All methods may block; all are safe to call from several threads.
pub trait Store: Send + Sync {
    /// Records a new run and its sources. The run has no entries yet.
    ///
    /// # Errors
    /// `RB0002`, `RB0003` when the store cannot hold it.
    fn create(&self, run: &NewRun) -> Result<()>;

    /// Every run, newest first.
    ///
    /// # Errors
    /// `RB0002`, `RB0004` when the store cannot be read.
    fn runs(&self) -> Result<Vec<RunInfo>>;

    /// One run, by its id or an unambiguous beginning of it.
    ///
    /// # Errors
    /// `RB0008` when there is none or there are several.
    fn run(&self, id: &str) -> Result<RunInfo>;

    /// A kept file of a run.
    ///
    /// # Errors
    /// `RB0002` when the store cannot be read.
    fn source(&self, run: &str, path: &str) -> Result<Option<Vec<u8>>>;

    /// Every kept file of a run.
    ///
    /// # Errors
    /// `RB0002` when the store cannot be read.
    fn sources(&self, run: &str) -> Result<BTreeMap<String, Vec<u8>>>;

    /// Replaces kept files of a run (`resume --edited`); the digests go into the journal.
    ///
    /// # Errors
    /// `RB0005` when `fence` is no longer the lock's.
    fn replace_sources(&self, run: &str, fence: i64, sources: &BTreeMap<String, Vec<u8>>) -> Result<()>;

    /// Hands each entry from `from_seq` on to `f`, in order.
    ///
    /// # Errors
    /// `RB0004` when the store is damaged; what `f` returns.
    fn entries(&self, run: &str, from_seq: u64, f: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()>;

    /// Appends and syncs: when it returns, the entries survive power loss. Concurrent calls share a commit.
    ///
    /// # Errors
    /// `RB0005` when `fence` is no longer the lock's, `RB0003` when the disk is full (nothing of the batch is kept then),
    /// `RB0002` otherwise.
    fn append(&self, run: &str, fence: i64, batch: Batch) -> Result<()>;

    /// Appends without waiting for the disk: the entries become durable with the next [`Store::append`] or [`Store::flush`], and
    /// before those. For outcomes: nothing that depends on them is done before the next intent is synced.
    ///
    /// # Errors
    /// As [`Store::append`]; an error of the disk or a lost fence may come with the next call instead. When that call fails for the
    /// disk, these entries wait for the next one that succeeds: what they tell has happened. With a lost fence they are dropped.
    fn append_later(&self, run: &str, fence: i64, batch: Batch) -> Result<()>;

    /// Syncs what [`Store::append_later`] left.
    ///
    /// # Errors
    /// As [`Store::append`].
    fn flush(&self, run: &str, fence: i64) -> Result<()>;

    /// Takes an environment's lock for a lease from `now` to `until`. Held by the same run and operator process: taken again.
    /// With `over`, takes it over from exactly the holder with that fencing number.
    ///
    /// # Errors
    /// `RB0002` when the store cannot be written.
    fn acquire(&self, environment: &str, run: &str, operator: &Operator, until: Timestamp, over: Option<i64>) -> Result<Acquired>;

    /// Extends the lease.
    ///
    /// # Errors
    /// `RB0005` when `fence` is no longer the lock's.
    fn renew(&self, environment: &str, fence: i64, until: Timestamp) -> Result<()>;

    /// Gives the lock back; nothing happens when `fence` is no longer the lock's.
    ///
    /// # Errors
    /// `RB0002` when the store cannot be written.
    fn release(&self, environment: &str, fence: i64) -> Result<()>;

    /// Who holds an environment.
    ///
    /// # Errors
    /// `RB0002` when the store cannot be read.
    fn holder(&self, environment: &str) -> Result<Option<Holder>>;

    /// Leaves a message for the controller of a run.
    ///
    /// # Errors
    /// `RB0002`, `RB0003` when the store cannot hold it.
    fn post(&self, run: &str, message: &Message) -> Result<()>;

    /// Looks for messages of a kind about a path, oldest first, without removing them.
    ///
    /// # Errors
    /// `RB0002` when the store cannot be read.
    fn messages(&self, run: &str, kind: &str, path: &str) -> Result<Vec<Message>>;

    /// Removes the messages of a kind about a path: they have been journaled.
    ///
    /// # Errors
    /// `RB0002` when the store cannot be written.
    fn clear_messages(&self, run: &str, kind: &str, path: &str) -> Result<()>;

    /// Checks the whole store, beyond what the hash chains of its runs show.
    ///
    /// # Errors
    /// `RB0004` with what is wrong.
    fn check(&self) -> Result<()>;

    /// A fact of an environment; `None` also when it was removed.
    ///
    /// # Errors
    /// `RB0002` when the store cannot be read.
    fn fact(&self, environment: &str, key: &str) -> Result<Option<Value>>;
}
