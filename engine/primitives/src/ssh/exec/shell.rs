//! A shell on a host that stays and runs commands that may be repeated, one after another (see `shell.sh`): what a session costs (a
//! channel, a process of the server, the login's shell) is paid once, and a command costs one round trip.
//!
//! The marker of a request goes by standard input alone and the command cannot see it, so whatever the command prints, its end is known.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use runbook_core::Result;
use runbook_core::primitive::{Cx, StreamKind};
use russh::Sig;

use super::drive::{End, Ending, Said, next};
use super::gate::{Gate, partial, rfind};
use super::line::{Line, Stays};
use super::wire::{marker, text};
use crate::ssh::supervisor::script;
use crate::ssh::{Exec, Session, quote};

/// How long a shell may take to begin with a command before its input is ended: a login that does something else with what it is given
/// (a forced command) may wait for that.
const PATIENCE: Duration = Duration::from_secs(5);

/// The command goes to its process in the environment, where a text may have 128 KiB.
const LONGEST: usize = 64 << 10;

/// A shell that waits for a command.
pub(in crate::ssh) struct Shell {
    line: Line,
    /// What it is known by on the host, in its command line.
    pub marker: String,
    /// Whether it has served a command.
    pub used: bool,
    /// Whether it can take another command.
    pub free: bool,
}

impl Stays for Shell {
    fn line(&mut self) -> &mut Line {
        &mut self.line
    }
    fn into_line(self) -> Line {
        self.line
    }
}

/// A command as a shell takes it.
pub(super) struct Request {
    text: Vec<u8>,
    pub marker: String,
}

impl Request {
    /// `None` for what needs a session of its own: raised privileges, a terminal, an input, a very long text.
    ///
    /// # Errors
    /// `RB0313` for what no shell can take.
    pub(super) fn of(exec: &Exec) -> Result<Option<Request>> {
        if exec.sudo || exec.tty || exec.stdin.as_ref().is_some_and(|s| !s.is_empty()) {
            return Ok(None);
        }
        let marker = marker();
        let text = text(exec, &marker)?.into_bytes();
        Ok((text.len() < LONGEST).then_some(Request { text, marker }))
    }
}

impl Shell {
    /// Begins one, without waiting for it.
    ///
    /// # Errors
    /// Those of a channel.
    pub(super) async fn open(cx: &Cx, session: &Session) -> Result<Shell> {
        let line = Line::new(session.slot.channel(cx, false).await?);
        let marker = marker();
        let command = format!("cd; exec sh -c {} runbook {marker} {}", quote(script::shell()), quote(script::command()));
        // Without waiting for the answer: what fails is told by what comes next.
        let _ = line.write.exec(true, command).await;
        Ok(Shell { line, marker, used: false, free: true })
    }

    /// Runs a command until it ends, passing every piece of output to `on`.
    ///
    /// # Errors
    /// `RB0316` when the host starts no commands.
    pub(super) async fn work(
        &mut self,
        request: Request,
        host: &str,
        mut on: impl FnMut(StreamKind, &[u8]) + Send,
        signal: &mut tokio::sync::mpsc::Receiver<Sig>,
    ) -> Result<End> {
        let (mut out, mut err) = (Until::new(&request.marker), Until::new(&request.marker));
        self.free = false;
        let Line { read, write, permit } = &mut self.line;
        let mut feed = pin!(write.data_bytes(Bytes::from(request.text)).fuse());
        let mut begin = Gate::new(&request.marker);
        let (mut fed, mut begun, mut shut) = (false, false, false);
        let mut ending = Ending::default();
        let mut patience = pin!(tokio::time::sleep(PATIENCE));
        loop {
            tokio::select! {
                said = next(read, permit, host, &mut ending) => match said? {
                    Said::Piece(StreamKind::Stdout, piece) => out.pass(&piece, |p| on(StreamKind::Stdout, p)),
                    Said::Piece(StreamKind::Stderr, piece) => {
                        if !begun {
                            begin.pass(&piece);
                            begun = begin.word().is_some();
                        }
                        err.pass(&piece, |p| on(StreamKind::Stderr, p));
                        // From now on its output may be held open by somebody else alone.
                        ending.status = err.status().or(ending.status);
                    }
                    Said::End(end) => return Ok(err.status().map_or(end, End::Status)),
                },
                sent = &mut feed, if !fed => {
                    if sent.is_err() {
                        return Ok(End::Lost);
                    }
                    fed = true;
                }
                () = &mut patience, if fed && !begun && !shut => {
                    shut = true;
                    let _ = write.eof().await;
                }
                Some(sig) = signal.recv() => {
                    let _ = write.signal(sig).await;
                }
            }
            if let (Some(_), Some(status)) = (out.last(), err.status()) {
                (self.used, self.free) = (true, !shut);
                return Ok(End::Status(status));
            }
        }
    }
}

/// Passes a stream on up to the last line of a command.
struct Until {
    marker: Vec<u8>,
    held: Vec<u8>,
    last: Option<String>,
}

impl Until {
    fn new(marker: &str) -> Until {
        Until { marker: format!("{marker}e ").into_bytes(), held: Vec::new(), last: None }
    }

    /// The last line without its marker, once it has come.
    fn last(&self) -> Option<&str> {
        self.last.as_deref()
    }

    /// The status that it tells; 128 + n for signal n, for which ksh93 says 256 + n.
    fn status(&self) -> Option<i32> {
        let said: i32 = self.last()?.trim().parse().ok()?;
        Some(if said > 256 { said - 128 } else { said })
    }

    fn pass(&mut self, piece: &[u8], mut on: impl FnMut(&[u8])) {
        if self.last.is_some() {
            return;
        }
        let joined: Vec<u8>;
        let all = if self.held.is_empty() {
            piece
        } else {
            joined = [std::mem::take(&mut self.held).as_slice(), piece].concat();
            &joined
        };
        let at = rfind(all, &self.marker).unwrap_or(all.len() - partial(all, &self.marker));
        let (own, rest) = all.split_at(at);
        if !own.is_empty() {
            on(own);
        }
        match rest.strip_prefix(self.marker.as_slice()).and_then(|l| l.iter().position(|b| *b == b'\n').and_then(|end| l.get(..end))) {
            Some(line) => self.last = Some(String::from_utf8_lossy(line).into_owned()),
            None => self.held = rest.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn through(pieces: &[&[u8]]) -> (Vec<u8>, Option<i32>) {
        let (mut until, mut own) = (Until::new("m"), Vec::new());
        for p in pieces {
            until.pass(p, |o| own.extend_from_slice(o));
        }
        (own, until.status())
    }

    #[test]
    fn an_output_ends_with_the_last_line() {
        assert_eq!(through(&[b"a\nbme 3\n"]), (b"a\nb".to_vec(), Some(3)));
        assert_eq!(through(&[b"am", b"e", b" 1", b"37", b"\n", b"of nobody"]), (b"a".to_vec(), Some(137)));
        assert_eq!(through(&[b"me 265\n"]), (Vec::new(), Some(137)));
        assert_eq!(through(&[b"me 12"]), (Vec::new(), None), "half a line tells nothing");
        assert_eq!(through(&[b"mee me"]), (b"mee ".to_vec(), None));
    }

    #[test]
    fn what_needs_a_session_of_its_own_has_one() {
        let plain = Exec::new("true");
        let stdin = |data: &[u8]| Exec { stdin: Some(data.to_vec()), ..plain.clone() };
        let is_shared = |exec: &Exec| Request::of(exec).unwrap().is_some();
        assert!(is_shared(&plain) && is_shared(&stdin(b"")));
        assert!(!is_shared(&stdin(b"x")) && !is_shared(&Exec::new("x".repeat(LONGEST))));
        assert!(!is_shared(&Exec { sudo: true, ..plain.clone() }) && !is_shared(&Exec { tty: true, ..plain.clone() }));
        assert_eq!(Request::of(&Exec::new("a\0b")).err().map(|e| e.code), Some(runbook_core::Code::COMMAND_BAD));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(own in "[me \n]{0,30}", cuts in proptest::collection::vec(1usize..5, 0..40)) {
            prop_assume!(!own.contains("me "));
            let all = format!("{own}me 0\n").into_bytes();
            let (mut pieces, mut rest) = (Vec::new(), all.as_slice());
            for c in cuts {
                let (piece, later) = rest.split_at(c.min(rest.len()));
                pieces.push(piece);
                rest = later;
            }
            pieces.push(rest);
            prop_assert_eq!(through(&pieces), (own.into_bytes(), Some(0)));
        }
    }
}
