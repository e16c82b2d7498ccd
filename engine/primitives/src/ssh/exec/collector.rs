//! Output on its way to the operator and into a result: secrets are struck, a bounded part is kept.

use runbook_core::primitive::{Cx, StreamKind};
use runbook_core::secret::Stream;

use super::spill::{Kept, Spill};

/// How much of each stream of a buffered command is kept.
pub(in crate::ssh) const KEEP: usize = 4 << 20;
/// How much of each stream the record of a command holds; beyond it, all of it is in a file beside the record.
pub(in crate::ssh) const RECORD: usize = 256 << 10;

/// Strikes secrets from one stream, passes it on live and keeps its beginning, or all of it in a file.
pub(crate) struct Collector {
    cx: Cx,
    kind: StreamKind,
    live: bool,
    stream: Stream,
    kept: Vec<u8>,
    limit: usize,
    cut: u64,
    whole: bool,
    spill: Option<Spill>,
}

impl Collector {
    /// With `whole`, what is beyond the beginning is not lost.
    pub(crate) fn new(cx: &Cx, kind: StreamKind, live: bool, whole: bool) -> Self {
        let limit = if whole { RECORD } else { KEEP };
        Collector { cx: cx.clone(), kind, live, stream: cx.redactor.stream(), kept: Vec::new(), limit, cut: 0, whole, spill: None }
    }

    pub(crate) fn push(&mut self, piece: &[u8]) {
        if !piece.is_empty() {
            let clean = self.stream.push(piece);
            self.keep(&clean);
        }
    }

    fn keep(&mut self, clean: &[u8]) {
        if self.live {
            self.cx.output(self.kind, clean);
        }
        let take = clean.len().min(self.limit.saturating_sub(self.kept.len()));
        let (own, more) = clean.split_at(take);
        self.kept.extend_from_slice(own);
        self.cut += more.len() as u64;
        if self.whole && !more.is_empty() {
            let (cx, kind, kept) = (&self.cx, self.kind, &self.kept);
            let spill = self.spill.get_or_insert_with(|| {
                let mut spill = Spill::new(cx, kind);
                spill.push(kept);
                spill
            });
            spill.push(more);
        }
    }

    /// What is kept in memory, and the file that holds all.
    pub(crate) fn finish(mut self) -> (Vec<u8>, Option<Kept>) {
        let rest = self.stream.finish();
        self.keep(&rest);
        let kept = self.spill.map(Spill::finish);
        if self.cut > 0 {
            let all = kept.as_ref().map(|k| format!("; {}", k.note())).unwrap_or_default();
            self.kept.extend_from_slice(format!("\n[output cut: {} bytes more{all}]\n", self.cut).as_bytes());
        }
        (self.kept, kept)
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
