//! The first line that our shell text says on a stream: what comes before it is not the command's.

/// How much of what came before is remembered, for a message.
const SAID: usize = 4 << 10;
/// A first line is shorter than this; without a limit, a host could fill the memory.
const LINE: usize = 4 << 10;

/// Holds a stream back until the line that begins with the marker has come; passes on what follows it.
///
/// Before it may stand what a login shell's start files print, a remark of sudo, or all that a forced command has to say.
pub(in crate::ssh) struct Gate {
    marker: Vec<u8>,
    held: Vec<u8>,
    said: Vec<u8>,
    word: Option<String>,
}

impl Gate {
    /// `marker` is the line's first word.
    pub(in crate::ssh) fn new(marker: &str) -> Self {
        Gate { marker: format!("{marker} ").into_bytes(), held: Vec::new(), said: Vec::new(), word: None }
    }

    /// The rest of the line, once it has come.
    pub(in crate::ssh) fn word(&self) -> Option<&str> {
        self.word.as_deref()
    }

    /// What came before the line, or instead of it.
    pub(in crate::ssh) fn said(&self) -> Vec<u8> {
        let mut said = self.said.clone();
        if self.word.is_none() {
            said.extend_from_slice(&self.held);
        }
        said
    }

    /// Takes a piece of the stream; returns what of it is the command's.
    pub(in crate::ssh) fn pass<'a>(&mut self, piece: &'a [u8]) -> std::borrow::Cow<'a, [u8]> {
        if self.word.is_some() {
            return piece.into();
        }
        self.held.extend_from_slice(piece);
        while let Some(at) = find(&self.held, &self.marker) {
            let line = self.held.get(at + self.marker.len()..).unwrap_or_default();
            match line.iter().take(LINE).position(|b| *b == b'\n') {
                Some(end) => {
                    self.word = Some(String::from_utf8_lossy(line.get(..end).unwrap_or_default()).trim().to_string());
                    let own = line.get(end + 1..).unwrap_or_default().to_vec();
                    self.forget(at);
                    self.held = Vec::new();
                    return own.into();
                }
                None if line.len() < LINE => return Vec::new().into(),
                // Not such a line after all.
                None => self.forget(at + self.marker.len()),
            }
        }
        self.forget(self.held.len() - partial(&self.held, &self.marker));
        Vec::new().into()
    }

    fn forget(&mut self, n: usize) {
        let room = SAID.saturating_sub(self.said.len());
        let gone: Vec<u8> = self.held.drain(..n).collect();
        self.said.extend(gone.into_iter().take(room));
    }
}

/// Where `needle` begins in `hay`.
fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len().max(1)).position(|w| w == needle)
}

/// Where `needle` begins in `hay` for the last time.
pub(in crate::ssh) fn rfind(hay: &[u8], needle: &[u8]) -> Option<usize> {
    let last = *needle.last()?;
    // Most pieces have no such byte sequence at all: the search for one byte is fast.
    let mut end = hay.len();
    loop {
        let at = hay.get(..end)?.iter().rposition(|b| *b == last)?;
        if hay.get(..=at)?.ends_with(needle) {
            return Some(at + 1 - needle.len());
        }
        end = at;
    }
}

/// How many bytes at the end of `held` may be the beginning of `marker`.
pub(in crate::ssh) fn partial(held: &[u8], marker: &[u8]) -> usize {
    (1..marker.len().min(held.len() + 1)).rev().find(|n| held.ends_with(marker.get(..*n).unwrap_or_default())).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn through(gate: &mut Gate, pieces: &[&[u8]]) -> Vec<u8> {
        pieces.iter().flat_map(|p| gate.pass(p).into_owned()).collect()
    }

    #[test]
    fn noise_before_the_line_is_dropped_and_remembered() {
        let mut g = Gate::new("MARK");
        assert_eq!(through(&mut g, &[b"hello\nMA", b"RK 12", b"3\r", b"\nown", b" MARK 4\n"]), b"own MARK 4\n");
        assert_eq!((g.word(), g.said()), (Some("123"), b"hello\n".to_vec()));
    }

    #[test]
    fn a_flood_without_the_line_takes_no_memory() {
        let mut g = Gate::new("MARK");
        for _ in 0..1000 {
            assert!(g.pass(&[b"MARK ".as_slice(), &[b'x'; 8000]].concat()).is_empty());
        }
        assert!(g.word().is_none() && g.held.len() < 9000 && g.said().len() < 14_000);
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(noise in "[MARK x\n]{0,40}", own in proptest::collection::vec(any::<u8>(), 0..60), cuts in proptest::collection::vec(1usize..7, 0..60)) {
            prop_assume!(!noise.contains("MARK "));
            let all = [noise.as_bytes(), b"\nMARK ok\n", &own].concat();
            let (mut g, mut got, mut rest) = (Gate::new("MARK"), Vec::new(), all.as_slice());
            for c in cuts {
                let (piece, later) = rest.split_at(c.min(rest.len()));
                got.extend(g.pass(piece).into_owned());
                rest = later;
            }
            got.extend(g.pass(rest).into_owned());
            prop_assert_eq!((g.word(), got), (Some("ok"), own));
        }
    }
}
