//! What a kind of repository must be able to do to take databases: keep what a host pipes into it, and give it back.

use async_trait::async_trait;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use crate::backup::repository::{Plan, Snapshot};
use crate::ssh::{Done, Exec};

/// A repository of streams. Scripts run on a host with what opens the repository in their environment. The one path of a plan is the name of the file
/// in the snapshot.
#[async_trait]
pub trait Streams: Send + Sync {
    /// A script with the functions that `write.sh` wants: `keep`, `hear`, `kept`, `found`, `drop`.
    ///
    /// # Errors
    /// `RB0700` for what the repository cannot take.
    fn keeper(&self, cx: &Cx, plan: &Plan, script: &str) -> Result<Exec>;
    /// A script with the function `give`, which becomes the program that prints the stream.
    ///
    /// # Errors
    /// Those of secrets.
    fn giver(&self, cx: &Cx, snapshot: &Snapshot, script: &str) -> Result<Exec>;
    /// What is on the command line of every process that makes the snapshot of the action, and nowhere else.
    fn trace(&self, cx: &Cx, plan: &Plan) -> String;
    /// The snapshot that was just made by a script that printed this.
    async fn kept(&self, cx: &Cx, plan: &Plan, out: &str, id: &str) -> Result<Snapshot>;
    /// What there is of the action.
    async fn of_action(&self, cx: &Cx, host: &str) -> Result<Vec<Snapshot>>;
    /// Removes a snapshot that is not whole.
    async fn forget(&self, cx: &Cx, host: &str, snapshot: &Snapshot) -> Result<()>;
    /// Removes what is no snapshot and was left by an attempt of the action that is gone.
    async fn tidy(&self, cx: &Cx, plan: &Plan) -> Result<()>;
    /// What the program of the repository said, as an error.
    fn failed(&self, host: &str, code: Code, what: &str, done: &Done) -> Error;
    /// The host of the repository.
    fn host(&self) -> &str;
}
