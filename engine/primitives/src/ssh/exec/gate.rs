//! The first line that the reader says on standard error.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Takes the first line of the reader out of standard error: that the command was let in, and its process.
pub(super) struct Raised {
    sudo: bool,
    marker: Option<Vec<u8>>,
    pub(super) pid: Arc<AtomicU32>,
    held: Vec<u8>,
}

impl Raised {
    pub(super) fn new(sudo: bool, marker: &str) -> Self {
        Raised { sudo, marker: Some(format!("{marker} ").into_bytes()), pid: Arc::default(), held: Vec::new() }
    }

    pub(super) fn pass(&mut self, piece: &[u8], mut on: impl FnMut(&[u8])) {
        let Some(marker) = &self.marker else { return on(piece) };
        self.held.extend_from_slice(piece);
        let Some(at) = find(&self.held, marker) else { return };
        let rest = self.held.get(at + marker.len()..).unwrap_or_default();
        let Some(end) = rest.iter().position(|b| *b == b'\n') else { return };
        let pid = rest.get(..end).and_then(|p| std::str::from_utf8(p).ok()?.trim().parse().ok()).unwrap_or(0);
        self.pid.store(pid, Ordering::Release);
        on(self.held.get(..at).unwrap_or_default());
        on(rest.get(end + 1..).unwrap_or_default());
        self.held.clear();
        self.marker = None;
    }

    /// Whether the command was let in, as far as `sudo` is concerned.
    pub(super) fn finish(&mut self, mut on: impl FnMut(&[u8])) -> bool {
        on(&std::mem::take(&mut self.held));
        self.marker.is_none() || !self.sudo
    }
}

pub(in crate::ssh) fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|w| w == needle)
}
