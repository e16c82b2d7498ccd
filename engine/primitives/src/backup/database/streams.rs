//! What a kind of repository must be able to do to take databases: keep what a host pipes into it, and give it back.

use async_trait::async_trait;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use crate::backup::repository::Snapshot;
use crate::ssh::{Done, Exec};

/// What a snapshot of a stream is called.
pub struct Keep<'a> {
    /// The inventory name of the host that writes it.
    pub host: &'a str,
    /// The name of the file in the snapshot.
    pub name: &'a str,
    /// The action that takes it.
    pub action: &'a str,
    /// What to mark it with.
    pub tags: &'a [String],
    /// Whether the program of the repository runs as root.
    pub sudo: bool,
}

/// A repository of streams. Scripts run on a host with what opens the repository in their environment.
#[async_trait]
pub trait Streams: Send + Sync {
    /// A script with the functions `keep` (becomes the program that makes a snapshot of its input, and tells of it in restic's lines of JSON),
    /// `found` (prints the ids of the snapshots of the action) and `drop` (removes one).
    ///
    /// # Errors
    /// `RB0700` for what the repository cannot take.
    fn keeper(&self, cx: &Cx, keep: &Keep<'_>, script: &str) -> Result<Exec>;
    /// A script with the function `give`, which becomes the program that prints the stream.
    ///
    /// # Errors
    /// Those of secrets.
    fn giver(&self, cx: &Cx, snapshot: &Snapshot, script: &str) -> Result<Exec>;
    /// The snapshot that was just made.
    async fn kept(&self, cx: &Cx, host: &str, id: &str) -> Result<Snapshot>;
    /// What there is of the action.
    async fn of_action(&self, cx: &Cx, host: &str) -> Result<Vec<Snapshot>>;
    /// Removes a snapshot that is not whole.
    async fn forget(&self, cx: &Cx, host: &str, snapshot: &Snapshot) -> Result<()>;
    /// What the program of the repository said, as an error.
    fn failed(&self, host: &str, code: Code, what: &str, done: &Done) -> Error;
    /// The host of the repository.
    fn host(&self) -> &str;
}
