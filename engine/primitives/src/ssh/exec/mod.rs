//! Commands without the supervisor: buffered with [`Session::exec`], as streams with [`Session::open`].

mod collector;
mod drive;
mod gate;
mod line;
mod open;
mod shell;
pub(super) mod spill;
mod way;
mod wire;

use std::borrow::Cow;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use runbook_core::cancel::Cancel;
use runbook_core::primitive::{Cx, StreamKind};
use runbook_core::{Code, Error, Result};
use russh::Sig;

pub(crate) use collector::Collector;
pub(super) use collector::KEEP;
pub(super) use drive::{End, Ending, Said, drive, feed, next};
pub(super) use gate::{Gate, partial, rfind};
pub(super) use line::{Kept, Line, Stays};
pub(super) use shell::Shell;
pub(super) use wire::{check, exports, marker};

use super::transport::aborted;
use super::{Done, Exec, Session, connect, privilege};

impl Session {
    /// The host's inventory name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.slot.target.name
    }

    /// Whether a round trip to the host's SSH server takes no longer than this; `false` without a connection.
    pub async fn is_within(&self, limit: Duration) -> bool {
        self.slot.answers_within(limit).await
    }

    /// Runs a command without the supervisor. A non-zero status is not an error.
    ///
    /// # Errors
    /// `RB0300`–`RB0303` when the host cannot be reached, `RB0305` when the connection is lost before the command's end, `RB0312`
    /// after `timeout`, `RB0314` and `RB0317` to `RB0323` when privileges are not raised, `RB0316` when the login runs no commands, `RB0021` when cancelled.
    pub fn exec<'a>(&'a self, cx: &'a Cx, exec: Exec) -> BoxFuture<'a, Result<Done>> {
        Box::pin(async move { self.once(cx, exec, &Begun::default(), false).await })
    }

    /// Runs a command that may be repeated (a read or a converge): when the connection is lost, it is made again within the host's
    /// `reconnect_within`, what still runs is ended, and the command begins anew, three times at most.
    ///
    /// # Errors
    /// As [`Session::exec`].
    pub fn exec_again<'a>(&'a self, cx: &'a Cx, exec: Exec) -> BoxFuture<'a, Result<Done>> {
        Box::pin(async move {
            let mut session = self.clone();
            for _ in 0..3 {
                let begun = Begun::default();
                let lost = match session.once(cx, exec.clone(), &begun, true).await {
                    Err(e) if e.code == Code::SSH_LOST && e.retryable => e,
                    done => return done,
                };
                session = self.reconnect(cx, lost).await?;
                session.end(cx, &begun, &exec, true).await;
                cx.message(format!(
                    "the connection to {} was lost in mid-command; the command may be repeated and begins anew",
                    self.name()
                ));
            }
            session.exec(cx, exec).await
        })
    }

    /// Connects again, with longer and longer pauses, as long as the host's `reconnect_within`.
    async fn reconnect(&self, cx: &Cx, lost: Error) -> Result<Session> {
        let until = tokio::time::Instant::now() + self.slot.target.reconnect_within;
        let mut wait = Duration::from_millis(50);
        loop {
            cx.sleep(wait).await?;
            wait = (wait * 2).min(Duration::from_secs(5));
            match connect(cx, self.name()).await {
                Ok(s) => return Ok(s),
                Err(e) if e.retryable && tokio::time::Instant::now() < until => {}
                Err(e) if e.retryable => return Err(lost),
                Err(e) => return Err(e),
            }
        }
    }

    /// With `again`, for a command that may be repeated.
    async fn once(&self, cx: &Cx, exec: Exec, begun: &Begun, again: bool) -> Result<Done> {
        for n in 1..=5 {
            match self.attempt(cx, &exec, begun, again).await? {
                Attempt::Done(done) => return Ok(done),
                Attempt::Stale => continue,
                // dropbear does this to some of the channels of one connection that begin at the same moment.
                Attempt::Shut => self.slot.one_at_a_time(),
            }
            cx.sleep(Duration::from_millis(20 * n)).await?;
        }
        Err(Error::new(Code::SSH_LOST, "the host closes every channel before the command begins").host(self.name()).retryable(true))
    }

    async fn attempt(&self, cx: &Cx, exec: &Exec, begun: &Begun, again: bool) -> Result<Attempt> {
        let host = self.name().to_string();
        let way = self.way(cx, exec, again).await?;
        let shared = way.is_used();
        let mut out = Collector::new(cx, StreamKind::Stdout, exec.live, exec.whole);
        let mut err = Collector::new(cx, StreamKind::Stderr, exec.live, exec.whole);
        begun.mark(way.known_by());
        let mut gates = Gates::new(way.marker(), begun);
        let (tx, mut rx) = tokio::sync::mpsc::channel(4);
        let ended = {
            let on = |kind: StreamKind, piece: &[u8]| match kind {
                StreamKind::Stdout => out.push(&gates.out.pass(piece)),
                StreamKind::Stderr => err.push(&gates.stderr(piece)),
            };
            let mut run = pin!(way.go(&host, on, &mut rx));
            let limit = async {
                match exec.timeout {
                    Some(d) => tokio::time::sleep(d).await,
                    None => std::future::pending().await,
                }
            };
            let stop = tokio::select! {
                r = &mut run => Ok(r?),
                () = limit => Err(true),
                () = cx.cancel.cancelled() => Err(false),
            };
            match stop {
                Ok((end, shell)) => {
                    self.keep(shell);
                    Ok(end)
                }
                Err(timed_out) => {
                    let ending = tokio::time::timeout(Duration::from_secs(10), &mut run);
                    let stopping = async {
                        self.end(cx, begun, exec, false).await;
                        // Not before: a shell that ends by itself leaves its children where nobody finds them.
                        let _ = tx.try_send(Sig::TERM);
                    };
                    let _ = tokio::join!(stopping, ending);
                    Err(timed_out)
                }
            }
        };
        let (stdout, stderr, whole) = streams(out, err);
        match ended {
            // A shell that has served others and is gone says nothing about the login.
            Ok(End::Status(_) | End::Shut) if !gates.open() && shared => Ok(Attempt::Stale),
            Ok(End::Status(status)) if !gates.open() => Err(gates.refused(cx, &host, exec.sudo, status)),
            Ok(End::Status(status)) => Ok(Attempt::Done(Done { status, stdout, stderr, whole })),
            // All that was said has come, and the reader speaks before the command does.
            Ok(End::Shut) if !gates.open() => Ok(Attempt::Shut),
            Ok(End::Lost | End::Shut) => Err(Error::new(Code::SSH_LOST, "the connection was lost before the command ended")
                .host(&host)
                .retryable(true)
                .hint("the command may be repeated: run `runbook resume`")),
            Err(true) => Err(spill::refer(timed_out(&host, exec.timeout.unwrap_or_default(), &stderr), &whole)),
            Err(false) => Err(aborted(&host)),
        }
    }

    /// Ends a command by its process group, over another channel: OpenSSH takes no signals for the sessions of root. With `look`, only
    /// when the process is still that of the command.
    async fn end(&self, cx: &Cx, begun: &Begun, of: &Exec, look: bool) {
        let (pid, marker) = (begun.pid(), begun.marker());
        if pid < 2 {
            return;
        }
        let mut cx = cx.clone();
        // The end itself must not be stopped by the same cancellation.
        cx.cancel = Cancel::default();
        let guard = if look { format!("grep -q {marker} /proc/{pid}/cmdline 2>/dev/null || exit 0\n") } else { String::new() };
        let script = format!("{guard}p={pid}\n{END}");
        let exec = Exec { sudo: of.sudo, user: of.user.clone(), ..Exec::new(script) };
        // What cannot be ended is left alone: the caller's error is the one that counts.
        let _ = tokio::time::timeout(Duration::from_secs(8), Box::pin(self.exec(&cx, exec))).await;
    }
}

/// What came of one attempt.
enum Attempt {
    Done(Done),
    /// The server has closed the channel, and the command has provably not begun.
    Shut,
    /// The shell that should have run it was gone, and it has not begun.
    Stale,
}

/// Both streams as they were collected, and the files that hold all of them.
pub(super) fn streams(out: Collector, err: Collector) -> (Vec<u8>, Vec<u8>, Vec<spill::Kept>) {
    let ((stdout, all_out), (stderr, all_err)) = (out.finish(), err.finish());
    (stdout, stderr, all_out.into_iter().chain(all_err).collect())
}

/// Ends the process `p` with its group. A server that gives commands no group of their own (dropbear) is asked for everything below it.
const END: &str = r#"g=-$p
if ! kill -s TERM -- $g 2>/dev/null; then
  g=$p n=
  while [ "$g" != "$n" ]; do
    n=$g
    for f in /proc/[0-9]*/stat; do
      l=
      { read -r l <"$f"; } 2>/dev/null
      set -- ${l##*")" }
      f=${f#/proc/}
      case " $g " in *" ${f%/stat} "*) ;; *" $2 "*) g="$g ${f%/stat}" ;; esac
    done
  done
  kill -s TERM $g 2>/dev/null
fi
alive() {
  for q in $g; do
    if kill -s 0 -- $q 2>/dev/null; then return 0; fi
  done
  return 1
}
i=0
while [ $i -lt 30 ] && alive; do
  i=$((i+1))
  sleep .1 2>/dev/null || { sleep 1; i=$((i+9)); }
done
for q in $g; do
  kill -s KILL -- $q 2>/dev/null
done
"#;

/// What is known of a command on the host: its marker, and its process once it runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Begun {
    pid: Arc<AtomicU32>,
    marker: Arc<Mutex<String>>,
}

impl Begun {
    pub(super) fn mark(&self, marker: &str) {
        *self.marker.lock() = marker.to_string();
    }

    fn pid(&self) -> u32 {
        self.pid.load(Ordering::Acquire)
    }

    fn marker(&self) -> String {
        self.marker.lock().clone()
    }
}

/// The beginnings of both streams of a command.
pub(super) struct Gates {
    pub out: Gate,
    err: Gate,
    begun: Begun,
}

impl Gates {
    pub(super) fn new(marker: &str, begun: &Begun) -> Self {
        Gates { out: Gate::new(marker), err: Gate::new(marker), begun: begun.clone() }
    }

    /// Takes a piece of standard error; returns what of it is the command's.
    pub(super) fn stderr<'a>(&mut self, piece: &'a [u8]) -> Cow<'a, [u8]> {
        let shut = !self.open();
        let own = self.err.pass(piece);
        if shut && let Some(pid) = self.err.word().and_then(|w| w.parse().ok()) {
            self.begun.pid.store(pid, Ordering::Release);
        }
        own
    }

    /// Whether the command was let in.
    pub(super) fn open(&self) -> bool {
        self.err.word().is_some()
    }

    /// Why it was not.
    pub(super) fn refused(&self, cx: &Cx, host: &str, sudo: bool, status: i32) -> Error {
        let said = cx.redactor.bytes(&[self.out.said(), self.err.said()].concat());
        if sudo { privilege::refused(host, &said) } else { not_run(host, Some(status), &said) }
    }
}

/// The host took the login and did something else than the command.
pub(super) fn not_run(host: &str, status: Option<i32>, said: &[u8]) -> Error {
    let said = tail(said);
    let last = said.lines().next_back().unwrap_or("").trim();
    let how = match (status, last) {
        (None, _) => "it refuses to start them".to_string(),
        (Some(s), "") => format!("its shell ended at once with status {s} and said nothing"),
        (Some(s), last) => format!("its shell ended with status {s} and said: {last}"),
    };
    Error::new(Code::NOT_RUN, format!("{host} takes the login but does not run its commands: {how}"))
        .host(host)
        .hint("look at the login's shell (/bin/false, nologin and restricted shells run nothing), at ForceCommand in sshd_config and at command= in authorized_keys on the host")
        .detail("output", said)
}

pub(super) fn timed_out(host: &str, limit: Duration, stderr: &[u8]) -> Error {
    Error::new(Code::COMMAND_TIMEOUT, format!("the command took longer than {} and was ended", runbook_core::units::show_duration(limit)))
        .host(host)
        .hint("find out why it is slow, or give it a larger timeout")
        .detail("stderr", tail(stderr))
}

/// The last lines of an output, for messages.
pub(super) fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let mut out = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n");
    while out.len() > 4000 {
        out = out.split_off(out.char_indices().nth(out.chars().count() / 2).map_or(out.len(), |(i, _)| i));
    }
    out
}
