//! SSH hosts: one connection a host, many channels; commands, supervised commands, files, services.
//!
//! Other families use [`connect`], [`Session::exec`], [`Session::open`], [`supervised`], [`left_by`] and [`reconcile_supervised`].

mod auth;
mod awake;
mod command;
pub mod config;
mod copy;
mod exec;
mod files;
pub mod helper;
mod host;
mod host_key;
mod known_hosts;
mod local;
mod negotiate;
mod privilege;
mod prompt;
pub mod reach;
mod relay;
mod route;
mod service;
mod stream;
mod supervisor;
mod target;
mod transport;
pub mod tunnel;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use runbook_core::Result;
use runbook_core::primitive::{Cx, Registry};
use tokio::io::{AsyncRead, AsyncWrite};

pub(crate) use command::{outcome_of, run_once};
pub(crate) use copy::{CopyKind, copy_folder};
pub(crate) use exec::Collector;
pub use exec::spill::Kept;
pub use stream::{NotOpened, Place, Stream};
pub use supervisor::{Left, left_by, reconcile_supervised, supervised};
pub(crate) use target::parse_place;

/// Adds the primitives of this family.
pub fn register(r: &mut Registry) {
    host::register(r);
    command::register(r);
    files::register(r);
    copy::register(r);
    service::register(r);
    r.add_hook(supervisor::Clean);
}

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
    /// Run with raised privileges: by `sudo`, or by what the host's `sudo_method` says.
    pub sudo: bool,
    /// As whom when that is not root.
    pub user: Option<String>,
    /// Run on a terminal: both outputs come as one, with the line ends that terminals write.
    pub tty: bool,
    /// Passed live to [`Cx::output`] while it comes.
    pub live: bool,
    /// Keeps all of its output: what is beyond the first 256 KiB of a stream goes to a file beside the run's record.
    pub whole: bool,
    /// Ends the command with `RB0312` when it takes longer.
    pub timeout: Option<Duration>,
}

impl Exec {
    /// A command with nothing around it.
    pub fn new(script: impl Into<String>) -> Self {
        Exec { script: script.into(), ..Exec::default() }
    }
}

/// What a finished command left. Secrets are struck from both outputs; at most 4 MiB of each is held, or 256 KiB with [`Exec::whole`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Done {
    /// Exit status; 128 + n for signal n.
    pub status: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// The files of the streams that are longer, with [`Exec::whole`].
    pub whole: Vec<Kept>,
}

/// A host's connections, shared by everything that talks to it.
#[derive(Clone)]
pub struct Session {
    slot: Arc<transport::Slot>,
}

/// A running command as streams: stdin to write, stdout to read, and its exit at the end.
pub struct Channel {
    /// Standard input; drop or shut it down to end it.
    pub stdin: Box<dyn AsyncWrite + Send + Unpin>,
    /// Standard output.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// Resolves when the command has ended: exit status and the end of its standard error. An error when the connection is lost.
    /// Dropping it ends the command.
    pub done: BoxFuture<'static, Result<(i32, String)>>,
}

/// The connection to the host with this inventory name, made on first use and made again when it is gone.
///
/// # Errors
/// `RB0106` for an unknown name, `RB0304` for settings that cannot be used, `RB0300` when the host cannot be reached, `RB0301` when it
/// refuses the login, `RB0302` and `RB0303` for its key.
pub fn connect<'a>(cx: &'a Cx, host: &'a str) -> BoxFuture<'a, Result<Session>> {
    Box::pin(async move { transport::session(cx, host).await })
}

/// Makes connections to a host ahead, so that so many are there for what must not wait for them, such as a switch while users are cut off:
/// logging in takes as long as many commands. They are used by whoever comes first, as all connections are; one that cannot be made
/// now, or only by asking a person, is made when it is needed.
pub fn ready<'a>(cx: &'a Cx, host: &'a str, idle: usize) -> BoxFuture<'a, ()> {
    Box::pin(async move {
        if let Ok(session) = connect(cx, host).await {
            let _ = session.slot.ready(cx, idle).await;
        }
    })
}

/// Quotes a word for a POSIX shell: always safe, also for empty words, quotes and newlines.
#[must_use]
pub fn quote(word: &str) -> String {
    if !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./:=@%+,".contains(&b)) {
        return word.to_string();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn quoted_words_come_through_a_shell_as_they_were(words in proptest::collection::vec("[^\\x00]{0,12}", 1..6)) {
            let script = format!("printf '%s\\0' {}", words.iter().map(|w| quote(w)).collect::<Vec<_>>().join(" "));
            let out = std::process::Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
            let want: Vec<u8> = words.iter().flat_map(|w| [w.as_bytes(), b"\0"].concat()).collect();
            prop_assert_eq!(out.stdout, want);
        }
    }

    #[test]
    fn words_that_look_special_are_quoted() {
        for (word, quoted) in
            [("", "''"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("~", "'~'"), ("a=b", "a=b"), ("*", "'*'"), ("#", "'#'")]
        {
            assert_eq!(quote(word), quoted);
        }
    }
}
