//! Output on its way to the operator and into a result: secrets are struck, a bounded part is kept.

use runbook_core::primitive::{Cx, StreamKind};
use runbook_core::secret::Stream;

/// How much of each stream of a buffered command is kept.
pub(in crate::ssh) const KEEP: usize = 4 << 20;
/// Strikes secrets from one stream, passes it on live and keeps its beginning.
pub(in crate::ssh) struct Collector {
    cx: Cx,
    kind: StreamKind,
    live: bool,
    stream: Stream,
    kept: Vec<u8>,
    cut: usize,
}

impl Collector {
    pub(in crate::ssh) fn new(cx: &Cx, kind: StreamKind, live: bool) -> Self {
        Collector { cx: cx.clone(), kind, live, stream: cx.redactor.stream(), kept: Vec::new(), cut: 0 }
    }

    pub(in crate::ssh) fn push(&mut self, piece: &[u8]) {
        let clean = self.stream.push(piece);
        self.keep(&clean);
    }

    fn keep(&mut self, clean: &[u8]) {
        if self.live {
            self.cx.output(self.kind, clean);
        }
        let take = clean.len().min(KEEP.saturating_sub(self.kept.len()));
        self.kept.extend_from_slice(clean.get(..take).unwrap_or_default());
        self.cut += clean.len() - take;
    }

    /// What was kept so far, for a message.
    pub(in crate::ssh) fn so_far(&self) -> &[u8] {
        &self.kept
    }

    pub(in crate::ssh) fn finish(mut self) -> Vec<u8> {
        let rest = self.stream.finish();
        self.keep(&rest);
        if self.cut > 0 {
            self.kept.extend_from_slice(format!("\n[output cut: {} bytes more]\n", self.cut).as_bytes());
        }
        self.kept
    }
}

/// The last 64 KiB of a stream.
pub(super) struct Tail {
    cx: Cx,
    live: bool,
    stream: Stream,
    kept: Vec<u8>,
}

impl Tail {
    pub(super) fn new(cx: &Cx, live: bool) -> Self {
        Tail { cx: cx.clone(), live, stream: cx.redactor.stream(), kept: Vec::new() }
    }

    pub(super) fn push(&mut self, piece: &[u8]) {
        let clean = self.stream.push(piece);
        self.keep(&clean);
    }

    fn keep(&mut self, clean: &[u8]) {
        if self.live {
            self.cx.output(StreamKind::Stderr, clean);
        }
        self.kept.extend_from_slice(clean);
        if self.kept.len() > 128 << 10 {
            self.kept.drain(..self.kept.len() - (64 << 10));
        }
    }

    pub(super) fn finish(mut self) -> String {
        let rest = self.stream.finish();
        self.keep(&rest);
        String::from_utf8_lossy(&self.kept).into_owned()
    }
}
