//! SSH hosts: one connection a host, many channels; commands, supervised commands, files, services.
//!
//! Other families use [`connect`], [`Session::exec`], [`Session::open`], [`supervised`] and [`reconcile_supervised`].

use std::sync::Arc;
use std::time::Duration;

use runbook_core::primitive::{Cx, Reconciled, Registry};
use runbook_core::{Result, Value};
use tokio::io::{AsyncRead, AsyncWrite};

/// Adds the primitives of this family.
pub fn register(_r: &mut Registry) {}

/// A command for a host's shell, with what it needs around it.
#[derive(Debug, Clone, Default)]
pub struct Exec {
    /// POSIX sh text. Data goes in by [`quote`], `env` or `stdin`, never unquoted.
    pub script: String,
    /// Fed to standard input, then closed.
    pub stdin: Option<Vec<u8>>,
    /// Exported before the script; sent by stdin or protocol, so that values do not show in `ps`.
    pub env: Vec<(String, String)>,
    /// Working folder; relative to the login folder.
    pub cwd: Option<String>,
    /// Run by `sudo`.
    pub sudo: bool,
    /// Passed live to [`Cx::output`] while it comes.
    pub live: bool,
    /// Ends the command with `RB0312` when it takes longer.
    pub timeout: Option<Duration>,
}

impl Exec {
    /// A command with nothing around it.
    pub fn new(script: impl Into<String>) -> Self {
        Exec { script: script.into(), ..Exec::default() }
    }
}

/// What a finished command left. Secrets are struck from both outputs; at most 4 MiB of each is kept.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Done {
    /// Exit status; 128 + n for signal n.
    pub status: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// A host's connection, shared by everything that talks to it.
#[derive(Clone)]
pub struct Session {
    // filled in by the SSH family
    _private: Arc<()>,
}

/// A running command as streams: stdin to write, stdout to read, and its exit at the end.
pub struct Channel {
    /// Standard input; drop or shut it down to end it.
    pub stdin: Box<dyn AsyncWrite + Send + Unpin>,
    /// Standard output.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// Resolves when the command has ended: exit status and the end of its standard error. An error when the connection is lost.
    pub done: futures::future::BoxFuture<'static, Result<(i32, String)>>,
}

/// The connection to the host with this inventory name, made on first use.
pub async fn connect(_cx: &Cx, _host: &str) -> Result<Session> {
    Err(runbook_core::Error::internal("not written yet"))
}

impl Session {
    /// Runs a command that may be repeated (a read or a converge), without the supervisor. A non-zero status is not an error.
    pub async fn exec(&self, _cx: &Cx, _exec: Exec) -> Result<Done> {
        Err(runbook_core::Error::internal("not written yet"))
    }

    /// Starts a command as streams, for data of any size. Nothing is kept in memory.
    pub async fn open(&self, _cx: &Cx, _exec: Exec) -> Result<Channel> {
        Err(runbook_core::Error::internal("not written yet"))
    }
}

/// Runs a command that must not happen twice, under the supervisor, claimed by `cx.action_id`.
pub async fn supervised(_cx: &Cx, _host: &str, _exec: Exec) -> Result<Done> {
    Err(runbook_core::Error::internal("not written yet"))
}

/// Asks the host what became of the supervised command of `cx.action_id`: waits for it when it still runs, collects its result when
/// it has ended. `done` turns what it left into the outcome.
pub async fn reconcile_supervised(
    _cx: &Cx,
    _host: &str,
    _live: bool,
    _done: &(dyn Fn(Done) -> Result<Value> + Send + Sync),
) -> Result<Reconciled> {
    Err(runbook_core::Error::internal("not written yet"))
}

/// Quotes a word for a POSIX shell: always safe, also for empty words, quotes and newlines.
#[must_use]
pub fn quote(word: &str) -> String {
    if !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./:=@%+,".contains(&b)) {
        return word.to_string();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}
