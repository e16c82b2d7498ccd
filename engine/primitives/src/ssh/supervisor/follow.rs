//! Reads what the supervisor says: a first line on each stream, the command's own output, a last line on standard error. Counts what
//! was received, so that a new connection goes on where the old one broke.

use std::time::Duration;

use runbook_core::primitive::{Cx, StreamKind};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::ssh::exec::{Collector, End, find};

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
    Absent,
    /// The action is claimed already.
    Taken,
    /// The process is gone without a status; why.
    Gone(String),
    /// The claim cannot be made; why.
    Refused(String),
    /// The session broke off.
    Lost,
}

/// The state of a command's output over all its sessions.
pub(super) struct Follow {
    out: Collector,
    err: Collector,
    out_len: u64,
    err_len: u64,
    /// Whether the command was to run by sudo.
    pub sudo: bool,
    marker: Vec<u8>,
    head: Vec<u8>,
    word: Option<String>,
    /// Standard error that may be the beginning of the first or of the last line.
    held: Vec<u8>,
    err_begun: bool,
    last: Option<Vec<u8>>,
    left: watch::Sender<Option<Instant>>,
}

/// When the command's time is up, once the host has told.
pub(super) struct Deadline(watch::Receiver<Option<Instant>>);

impl Deadline {
    pub(super) async fn wait(&mut self) {
        match self.0.wait_for(Option::is_some).await.map(|at| *at) {
            Ok(Some(at)) => tokio::time::sleep_until(at).await,
            _ => std::future::pending().await,
        }
    }
}

impl Follow {
    pub(super) fn new(cx: &Cx, live: bool) -> Self {
        Follow {
            out: Collector::new(cx, StreamKind::Stdout, live),
            err: Collector::new(cx, StreamKind::Stderr, live),
            out_len: 0,
            err_len: 0,
            sudo: false,
            marker: Vec::new(),
            head: Vec::new(),
            word: None,
            held: Vec::new(),
            err_begun: false,
            last: None,
            left: watch::channel(None).0,
        }
    }

    /// Begins a new session, whose lines carry this marker.
    pub(super) fn expect(&mut self, marker: &str) {
        self.marker = format!("{marker} ").into_bytes();
        self.head.clear();
        self.word = None;
        self.held.clear();
        self.err_begun = false;
        self.last = None;
    }

    pub(super) fn offsets(&self) -> (u64, u64) {
        (self.out_len, self.err_len)
    }

    pub(super) fn deadline(&self) -> Deadline {
        Deadline(self.left.subscribe())
    }

    pub(super) fn push(&mut self, kind: StreamKind, piece: &[u8]) {
        match kind {
            StreamKind::Stdout => self.stdout(piece),
            StreamKind::Stderr => self.stderr(piece),
        }
    }

    fn stdout(&mut self, piece: &[u8]) {
        if self.word.is_some() {
            self.out_len += piece.len() as u64;
            return self.out.push(piece);
        }
        // What a login shell prints before the first line is not the command's.
        self.head.extend_from_slice(piece);
        let Some(at) = find(&self.head, &self.marker) else { return };
        let rest = self.head.split_off(at + self.marker.len());
        let Some(end) = rest.iter().position(|b| *b == b'\n') else {
            self.head.extend(rest);
            return;
        };
        let (word, own) = rest.split_at(end);
        let word = String::from_utf8_lossy(word).trim().to_string();
        if let Some(left) = word.strip_prefix("ok ").and_then(|l| l.parse::<i64>().ok()) {
            let left = Duration::from_secs(u64::try_from(left).unwrap_or(0));
            self.left.send_replace(Some(Instant::now() + left));
        }
        self.word = Some(word);
        let own = own.get(1..).unwrap_or_default().to_vec();
        self.head.clear();
        if !own.is_empty() {
            self.stdout(&own);
        }
    }

    fn stderr(&mut self, piece: &[u8]) {
        if let Some(last) = &mut self.last {
            last.extend_from_slice(piece);
            return;
        }
        self.held.extend_from_slice(piece);
        if !self.err_begun {
            let Some(at) = find(&self.held, &self.marker) else { return };
            let Some(end) = self.held.get(at..).and_then(|r| r.iter().position(|b| *b == b'\n')) else { return };
            self.held.drain(..=at + end);
            self.err_begun = true;
        }
        match find(&self.held, &self.marker) {
            Some(at) => {
                let last = self.held.split_off(at);
                self.pass_held();
                self.last = Some(last);
            }
            None => {
                let keep = partial(&self.held, &self.marker);
                let tail = self.held.split_off(self.held.len() - keep);
                self.pass_held();
                self.held = tail;
            }
        }
    }

    fn pass_held(&mut self) {
        self.err_len += self.held.len() as u64;
        let own = std::mem::take(&mut self.held);
        self.err.push(&own);
    }

    /// What the session told, now that it has ended.
    pub(super) fn report(&self, end: End) -> Report {
        let word = self.word.as_deref().unwrap_or("");
        let (first, rest) = word.split_once(' ').unwrap_or((word, ""));
        match first {
            "absent" => return Report::Absent,
            "taken" => return Report::Taken,
            "no" => return Report::Refused(rest.to_string()),
            "ok" => {}
            // No first line: the session broke off, or the host's shell could not run the supervisor at all.
            _ => {
                return match end {
                    End::Status(0 | 255) | End::Lost => Report::Lost,
                    End::Status(s) if s > 128 => Report::Lost,
                    End::Status(s) => Report::Refused(format!("its shell ended with status {s}: {}", self.shown())),
                };
            }
        }
        let last = self.last.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        // A line cut short is no line.
        let Some(last) = last.strip_suffix('\n') else { return Report::Lost };
        let words: Vec<&str> = last.split_whitespace().skip(1).collect();
        match words.as_slice() {
            ["end", status, raised, why] => match status.parse() {
                Ok(status) => Report::Ended { status, raised: *raised == "raised", why: (*why != "-").then(|| (*why).to_string()) },
                Err(_) => Report::Lost,
            },
            ["gone", why] => Report::Gone((*why).to_string()),
            _ => Report::Lost,
        }
    }

    fn shown(&self) -> String {
        let text = String::from_utf8_lossy(&self.held).trim().to_string();
        if text.is_empty() { String::from_utf8_lossy(self.err.so_far()).trim().to_string() } else { text }
    }

    /// Both outputs.
    pub(super) fn finish(self) -> (Vec<u8>, Vec<u8>) {
        (self.out.finish(), self.err.finish())
    }
}

/// How many bytes at the end of `held` may be the beginning of `marker`.
fn partial(held: &[u8], marker: &[u8]) -> usize {
    (1..marker.len().min(held.len() + 1)).rev().find(|n| held.ends_with(marker.get(..*n).unwrap_or_default())).unwrap_or(0)
}
