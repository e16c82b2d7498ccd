//! Reads what the supervisor says: a first line on each stream, the command's own output, a last line on each. Counts what was received,
//! so that a new connection goes on where the old one broke.
//!
//! The command may print anything, also lines like the supervisor's (it can see the marker of attach.sh in `ps`). So the last lines count
//! only when they are the very last, whole, and the session ended with the status that the supervisor ends with. In a session that goes
//! on after the command (see `station.rs`) the marker of a request goes by standard input alone, where the command cannot see it.

use std::time::Duration;

use runbook_core::primitive::{Cx, StreamKind};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::ssh::exec::spill::Kept;
use crate::ssh::exec::{Collector, End, Gate, partial, rfind, streams};

/// What one session with the supervisor told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Report {
    /// The command has ended.
    Ended {
        /// Its exit status.
        status: i32,
        /// Whether sudo let it in.
        raised: bool,
        /// Why the supervisor ended it, when it did.
        why: Option<String>,
    },
    /// Nothing was begun, and nothing of an earlier try can begin any more.
    Absent {
        /// What a new start must name to take the place of the void claim.
        word: String,
    },
    /// The action is claimed already.
    Taken,
    /// The process is gone without a status; why.
    Gone(String),
    /// The claim cannot be made; why.
    Refused(String),
    /// The host ended the session with this status and never ran the supervisor; what it said instead.
    Mute(i32, Vec<u8>),
    /// The session broke off.
    Lost,
}

/// The supervisor's last line is shorter than this.
const LINE: usize = 256;

/// One stream of a command's output over all its sessions.
struct Side {
    out: Collector,
    /// How many bytes were received.
    len: u64,
    gate: Gate,
    marker: Vec<u8>,
    /// What may be the beginning of the last line, or that line.
    held: Vec<u8>,
}

impl Side {
    fn new(out: Collector) -> Self {
        Side { out, len: 0, gate: Gate::new(""), marker: Vec::new(), held: Vec::new() }
    }

    fn expect(&mut self, marker: &str) {
        self.marker = format!("{marker} ").into_bytes();
        self.gate = Gate::new(marker);
        self.held.clear();
    }

    fn push(&mut self, piece: &[u8]) {
        let own = self.gate.pass(piece);
        if self.held.is_empty() && rfind(&own, &self.marker).is_none() {
            // Most pieces are the command's alone, and go on without a copy.
            let (own, rest) = own.split_at(own.len() - partial(&own, &self.marker));
            self.len += own.len() as u64;
            self.out.push(own);
            self.held.extend_from_slice(rest);
            return;
        }
        self.held.extend_from_slice(&own);
        loop {
            let Some(at) = rfind(&self.held, &self.marker) else {
                return self.pass_held(self.held.len() - partial(&self.held, &self.marker));
            };
            self.pass_held(at);
            match self.held.iter().take(LINE).position(|b| *b == b'\n') {
                // More comes after it: it was not the last line.
                Some(end) if end + 1 < self.held.len() => self.pass_held(end + 1),
                None if self.held.len() >= LINE => self.pass_held(self.marker.len()),
                _ => return,
            }
        }
    }

    /// The first `n` bytes that were held are the command's.
    fn pass_held(&mut self, n: usize) {
        let rest = self.held.split_off(n);
        let own = std::mem::replace(&mut self.held, rest);
        self.len += own.len() as u64;
        self.out.push(&own);
    }

    /// The last line without its marker, when it is whole.
    fn last(&self) -> Option<&str> {
        std::str::from_utf8(self.held.strip_prefix(self.marker.as_slice())?).ok()?.strip_suffix('\n')
    }
}

/// The state of a command's output over all its sessions.
pub(super) struct Follow {
    out: Side,
    err: Side,
    /// Whether the command was to run by sudo.
    pub sudo: bool,
    due: watch::Sender<Option<Instant>>,
}

/// When the command's time is up, as far as is known; the host knows best.
pub(super) struct Deadline(watch::Receiver<Option<Instant>>);

impl Deadline {
    pub(super) async fn wait(&mut self) {
        loop {
            let at = *self.0.borrow_and_update();
            let up = async {
                match at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = up => return,
                r = self.0.changed() => if r.is_err() {
                    return std::future::pending().await;
                },
            }
        }
    }
}

impl Follow {
    pub(super) fn new(cx: &Cx, live: bool, whole: bool) -> Self {
        let side = |kind| Side::new(Collector::new(cx, kind, live, whole));
        Follow { out: side(StreamKind::Stdout), err: side(StreamKind::Stderr), sudo: false, due: watch::channel(None).0 }
    }

    /// Begins a new session, or a new request in one, whose lines carry this marker.
    pub(super) fn expect(&mut self, marker: &str) {
        self.out.expect(marker);
        self.err.expect(marker);
    }

    pub(super) fn offsets(&self) -> (u64, u64) {
        (self.out.len, self.err.len)
    }

    pub(super) fn deadline(&self) -> Deadline {
        Deadline(self.due.subscribe())
    }

    /// The command has this much time from now.
    pub(super) fn due_in(&self, left: Duration) {
        self.due.send_replace(Instant::now().checked_add(left));
    }

    pub(super) fn push(&mut self, kind: StreamKind, piece: &[u8]) {
        if kind == StreamKind::Stderr {
            return self.err.push(piece);
        }
        let shut = !self.open();
        self.out.push(piece);
        let left = self.out.gate.word().filter(|_| shut).and_then(|w| w.strip_prefix("ok ")?.parse::<i64>().ok());
        if let Some(left) = left {
            self.due_in(Duration::from_secs(u64::try_from(left).unwrap_or(0)));
        }
    }

    /// Whether the host has answered.
    pub(super) fn open(&self) -> bool {
        self.out.gate.word().is_some()
    }

    /// Whether the last line of both streams has come. In a session that goes on nothing else says that the command has ended; the
    /// marker, which nobody else knows there, must do.
    pub(super) fn has_end(&self) -> bool {
        self.out.last().is_some() && self.err.last().is_some()
    }

    /// What the session told, now that it has ended, or has said the last line.
    pub(super) fn report(&self, end: End) -> Report {
        let Some(word) = self.out.gate.word() else {
            return match end {
                End::Lost | End::Shut => Report::Lost,
                End::Status(s) => Report::Mute(s, [self.out.gate.said(), self.err.gate.said()].concat()),
            };
        };
        let (first, rest) = word.split_once(' ').unwrap_or((word, ""));
        match first {
            "absent" => return Report::Absent { word: rest.to_string() },
            "taken" => return Report::Taken,
            "no" => return Report::Refused(rest.to_string()),
            "ok" => {}
            _ => return Report::Lost,
        }
        // A line cut short is no line, and only the supervisor itself ends the session with 0.
        let (Some("end"), Some(last), End::Status(0)) = (self.out.last(), self.err.last(), end) else { return Report::Lost };
        if let Some(why) = last.strip_prefix("no ") {
            return Report::Refused(why.to_string());
        }
        let words: Vec<&str> = last.split_whitespace().collect();
        match words.as_slice() {
            ["end", status, raised, why] => match status.parse() {
                Ok(status) => Report::Ended { status, raised: *raised == "raised", why: (*why != "-").then(|| (*why).to_string()) },
                Err(_) => Report::Lost,
            },
            ["gone", why] => Report::Gone((*why).to_string()),
            _ => Report::Lost,
        }
    }

    /// Both outputs, and the files that hold all of them.
    pub(super) fn finish(self) -> (Vec<u8>, Vec<u8>, Vec<Kept>) {
        streams(self.out.out, self.err.out)
    }
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
