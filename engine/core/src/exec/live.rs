//! What an action says while it acts: output, progress, messages; and the facts that it reads and writes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::run::Run;
use crate::error::Result;
use crate::journal::{Batch, Body};
use crate::primitive::{Facts, Progress, Sink, StreamKind};
use crate::value::Value;

/// The environment's facts, in the run's store.
pub(super) struct StoreFacts(pub Arc<Run>);

impl Facts for StoreFacts {
    fn get(&self, key: &str) -> Result<Option<Value>> {
        self.0.parts.around.store.fact(&self.0.parts.env.name, key)
    }

    fn put(&self, facts: BTreeMap<String, Value>) -> Result<()> {
        self.0.append_batch(Batch { facts, ..Batch::default() })
    }
}

/// How long an action gives output before it also goes to the journal.
const QUIET: Duration = Duration::from_secs(1);
/// How much output goes to the journal at a time. A flood is thinned: the outcome has all of it, or names the file that has.
const CHUNK: usize = 8 << 10;

/// Where an action's output, progress and messages go.
pub(super) struct LiveSink(Arc<Run>, Mutex<Live>);

impl LiveSink {
    /// For one action of the run.
    pub fn new(run: Arc<Run>) -> Self {
        LiveSink(run, Mutex::default())
    }
}

struct Live {
    began: std::time::Instant,
    last: std::time::Instant,
    held: Held,
}

impl Default for Live {
    fn default() -> Self {
        let now = std::time::Instant::now();
        Live { began: now, last: now, held: Held::default() }
    }
}

/// The newest output that is not in the journal yet, in the order in which it came.
#[derive(Default)]
struct Held {
    pieces: std::collections::VecDeque<(StreamKind, Vec<u8>)>,
    len: usize,
    left_out: u64,
}

impl Held {
    fn push(&mut self, stream: StreamKind, bytes: &[u8]) {
        self.len += bytes.len();
        match self.pieces.back_mut() {
            Some((s, held)) if *s == stream => held.extend_from_slice(bytes),
            _ => self.pieces.push_back((stream, bytes.to_vec())),
        }
        while self.len > CHUNK {
            let Some((_, oldest)) = self.pieces.front_mut() else { return };
            let n = oldest.len().min(self.len - CHUNK);
            oldest.drain(..n);
            if oldest.is_empty() {
                self.pieces.pop_front();
            }
            self.len -= n;
            self.left_out += n as u64;
        }
    }

    fn take(&mut self) -> Vec<(StreamKind, String)> {
        let held = std::mem::take(self);
        let mut out: Vec<_> = held.pieces.into_iter().map(|(s, b)| (s, String::from_utf8_lossy(&b).into_owned())).collect();
        if let Some((_, first)) = out.first_mut().filter(|_| held.left_out > 0) {
            first.insert_str(0, &format!("[{} bytes are left out here; the outcome has all]\n", held.left_out));
        }
        out
    }
}

impl Sink for LiveSink {
    fn output(&self, path: &str, stream: StreamKind, bytes: &[u8]) {
        self.0.parts.around.observer.output(path, stream, bytes);
        let mut live = self.1.lock();
        live.held.push(stream, bytes);
        // The outcome holds the whole output; these entries are for those who follow a long command from elsewhere.
        if live.began.elapsed() > QUIET && live.last.elapsed() > QUIET / 2 {
            live.last = std::time::Instant::now();
            for (stream, text) in live.held.take() {
                let stream = if stream == StreamKind::Stdout { "stdout" } else { "stderr" };
                // A failure of the store comes back with the next entry that must be durable.
                let _ = self.0.append_later(Body::Output { path: path.into(), stream: stream.into(), text });
            }
        }
    }

    fn progress(&self, path: &str, progress: &Progress) {
        self.0.parts.around.observer.progress(path, progress);
    }

    fn message(&self, path: &str, text: &str) {
        let _ = self.0.append_later(Body::Log { path: path.into(), level: "info".into(), message: text.into() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_held_in_order_and_a_flood_is_thinned() {
        let mut held = Held::default();
        for (s, b) in [(StreamKind::Stdout, "a"), (StreamKind::Stdout, "b"), (StreamKind::Stderr, "c"), (StreamKind::Stdout, "d")] {
            held.push(s, b.as_bytes());
        }
        let text = |s: &str| s.to_string();
        assert_eq!(held.take(), [(StreamKind::Stdout, text("ab")), (StreamKind::Stderr, text("c")), (StreamKind::Stdout, text("d"))]);
        held.push(StreamKind::Stderr, b"gone");
        held.push(StreamKind::Stdout, &[b'x'; 2 * CHUNK]);
        assert!(held.len <= CHUNK);
        let all = held.take();
        assert_eq!(all.len(), 1);
        assert!(all[0].1.starts_with(&format!("[{} bytes are left out here; the outcome has all]\nxxx", CHUNK + 4)), "{}", &all[0].1[..80]);
        assert!(held.take().is_empty());
    }
}
