//! Reads a tar stream as it passes by, in pieces of any size, and hashes each file: memory does not grow with the archive.
//!
//! It reads what GNU tar writes with `--format=gnu`, and pax and ustar as well.

use std::io::{self, Write};

use sha2::{Digest, Sha256};

/// The longest name that is believed.
const MAX_NAME: u64 = 1 << 20;
const BLOCK: usize = 512;

/// What an archive has of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name, as the archive has it.
    pub name: Vec<u8>,
    /// Its kind, as tar writes it: `0` a file, `1` a hard link, `2` a symbolic link, `5` a folder.
    pub kind: u8,
    /// Permissions.
    pub mode: u64,
    /// The owner's number.
    pub uid: u64,
    /// The group's number.
    pub gid: u64,
    /// What a link leads to.
    pub link: Vec<u8>,
    /// The SHA-256 of a file.
    pub sum: Option<[u8; 32]>,
}

/// What a pax header says of the next entry, beside its name and size.
#[derive(Default)]
struct Pax {
    uid: Option<u64>,
    gid: Option<u64>,
    link: Option<Vec<u8>>,
}

/// Takes an uncompressed tar stream by [`Write`] and yields its entries.
pub struct Hasher {
    state: State,
    entries: Vec<Entry>,
    pax: Pax,
    block: Vec<u8>,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// Regular files so far.
    pub files: u64,
    /// Hard links to earlier files so far.
    pub links: u64,
    /// The sizes of all files together.
    pub bytes: u64,
    /// Whether the end of the archive was seen.
    pub ended: bool,
}

enum State {
    Header,
    /// A file, the last entry: what is left of it, its padding, its hash.
    File {
        left: u64,
        pad: u64,
        hash: Box<Sha256>,
    },
    /// The content of an entry that describes the next one.
    Extra {
        left: u64,
        pad: u64,
        kind: u8,
        data: Vec<u8>,
    },
    Skip {
        left: u64,
    },
    End,
}

impl Default for Hasher {
    fn default() -> Self {
        Hasher {
            state: State::Header,
            entries: Vec::new(),
            pax: Pax::default(),
            block: Vec::with_capacity(BLOCK),
            name: None,
            size: None,
            files: 0,
            links: 0,
            bytes: 0,
            ended: false,
        }
    }
}

fn bad(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the archive cannot be read: {}", why.into()))
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

fn number(field: &[u8]) -> io::Result<u64> {
    if field.first().is_some_and(|b| b & 0x80 != 0) {
        // GNU: numbers too large for octal are binary, with the top bit set.
        let mut n: u64 = 0;
        for (i, b) in field.iter().enumerate() {
            let b = if i == 0 { b & 0x7f } else { *b };
            n = n.checked_mul(256).and_then(|n| n.checked_add(u64::from(b))).ok_or_else(|| bad("a number is too large"))?;
        }
        return Ok(n);
    }
    let digits = std::str::from_utf8(text(field)).map_err(|_| bad("a number is none"))?.trim();
    if digits.is_empty() {
        return Ok(0);
    }
    u64::from_str_radix(digits, 8).map_err(|_| bad(format!("{digits:?} is not an octal number")))
}

impl Hasher {
    /// The entries since the last call. A file comes once all of it has passed.
    pub fn take_entries(&mut self) -> Vec<Entry> {
        let begun = if matches!(self.state, State::File { .. }) { self.entries.pop() } else { None };
        std::mem::replace(&mut self.entries, begun.into_iter().collect())
    }

    fn header(&mut self) -> io::Result<State> {
        let block = std::mem::take(&mut self.block);
        let get = |from: usize, to: usize| block.get(from..to).unwrap_or_default();
        if block.iter().all(|b| *b == 0) {
            self.ended = true;
            return Ok(State::End);
        }
        let sum: u64 = block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u64::from(*b) }).sum();
        if number(get(148, 156))? != sum {
            return Err(bad("an entry's head is damaged"));
        }
        let kind = block.get(156).copied().unwrap_or(0);
        let describes_next = matches!(kind, b'L' | b'K' | b'x' | b'g');
        let size = if describes_next { number(get(124, 136))? } else { self.size.take().map_or_else(|| number(get(124, 136)), Ok)? };
        if describes_next {
            if size > MAX_NAME {
                return Err(bad("a name is longer than 1 MiB"));
            }
            return Ok(State::Extra { left: size, pad: padding(size), kind, data: Vec::new() });
        }
        let name = self.name.take().unwrap_or_else(|| {
            let prefix = text(get(345, 500));
            if get(257, 263) == b"ustar\0" && !prefix.is_empty() {
                [prefix, b"/", text(get(0, 100))].concat()
            } else {
                text(get(0, 100)).to_vec()
            }
        });
        let pax = std::mem::take(&mut self.pax);
        self.entries.push(Entry {
            name,
            kind: if matches!(kind, 0 | b'7') { b'0' } else { kind },
            mode: number(get(100, 108))? & 0o7777,
            uid: pax.uid.map_or_else(|| number(get(108, 116)), Ok)?,
            gid: pax.gid.map_or_else(|| number(get(116, 124)), Ok)?,
            link: pax.link.unwrap_or_else(|| text(get(157, 257)).to_vec()),
            sum: None,
        });
        Ok(match kind {
            b'0' | 0 | b'7' => {
                self.files += 1;
                self.bytes += size;
                let hash = Box::new(Sha256::new());
                self.after_piece(State::File { left: size, pad: padding(size), hash })?
            }
            b'S' => return Err(bad("it holds sparse files in a form of their own")),
            b'1' => {
                self.links += 1;
                State::Skip { left: size + padding(size) }
            }
            _ => State::Skip { left: size + padding(size) },
        })
    }

    /// Moves on when an entry's content is complete.
    fn after_piece(&mut self, state: State) -> io::Result<State> {
        Ok(match state {
            State::File { left: 0, pad, hash } => {
                if let Some(e) = self.entries.last_mut() {
                    e.sum = Some(hash.finalize().into());
                }
                State::Skip { left: pad }
            }
            State::Extra { left: 0, pad, kind, data } => {
                match kind {
                    b'L' => self.name = Some(text(&data).to_vec()),
                    b'K' => self.pax.link = Some(text(&data).to_vec()),
                    b'x' => self.pax(&data)?,
                    _ => {}
                }
                State::Skip { left: pad }
            }
            State::Skip { left: 0 } => State::Header,
            other => return Ok(other),
        })
    }

    fn pax(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let space = data.iter().position(|b| *b == b' ').ok_or_else(|| bad("a pax record is damaged"))?;
            let length = data.get(..space).and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| d.parse::<usize>().ok());
            let length = length.filter(|l| *l > space && *l <= data.len()).ok_or_else(|| bad("a pax record is damaged"))?;
            let (record, rest) = data.split_at(length);
            data = rest;
            let record = record.get(space + 1..).unwrap_or_default();
            let record = record.strip_suffix(b"\n").unwrap_or(record);
            let Some(equals) = record.iter().position(|b| *b == b'=') else { continue };
            let (key, value) = (record.get(..equals).unwrap_or_default(), record.get(equals + 1..).unwrap_or_default());
            let n = || std::str::from_utf8(value).ok().and_then(|s| s.parse().ok()).ok_or_else(|| bad("a pax number is none"));
            match key {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.pax.link = Some(value.to_vec()),
                b"size" => self.size = Some(n()?),
                b"uid" => self.pax.uid = Some(n()?),
                b"gid" => self.pax.gid = Some(n()?),
                _ => {}
            }
        }
        Ok(())
    }
}

fn part(piece: &[u8], left: u64) -> (&[u8], &[u8]) {
    piece.split_at(usize::try_from(left).map_or(piece.len(), |l| l.min(piece.len())))
}

impl Write for Hasher {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let mut rest = piece;
        loop {
            let state = std::mem::replace(&mut self.state, State::Header);
            let next = match state {
                State::Header => {
                    let (now, after) = part(rest, (BLOCK - self.block.len()) as u64);
                    self.block.extend_from_slice(now);
                    rest = after;
                    if self.block.len() < BLOCK { State::Header } else { self.header()? }
                }
                State::File { left, pad, mut hash } => {
                    let (now, after) = part(rest, left);
                    hash.update(now);
                    rest = after;
                    State::File { left: left - now.len() as u64, pad, hash }
                }
                State::Extra { left, pad, kind, mut data } => {
                    let (now, after) = part(rest, left);
                    data.extend_from_slice(now);
                    rest = after;
                    State::Extra { left: left - now.len() as u64, pad, kind, data }
                }
                State::Skip { left } => {
                    let (now, after) = part(rest, left);
                    rest = after;
                    State::Skip { left: left - now.len() as u64 }
                }
                State::End => {
                    rest = &[];
                    State::End
                }
            };
            let mut next = self.after_piece(next)?;
            // An empty content and an empty padding end at once.
            while matches!(next, State::Skip { left: 0 }) {
                next = self.after_piece(next)?;
            }
            self.state = next;
            if rest.is_empty() {
                return Ok(piece.len());
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::manifest::line;
    use proptest::prelude::*;
    use std::process::Command;

    fn hash_of(archive: &[u8], cuts: &[usize]) -> io::Result<(String, Hasher)> {
        let mut h = Hasher::default();
        let mut at = 0;
        for c in cuts.iter().copied().chain([archive.len()]) {
            let c = c.clamp(at, archive.len());
            h.write_all(&archive[at..c])?;
            at = c;
        }
        let lines = h.take_entries().iter().filter_map(|e| Some(line(&e.sum?, &e.name))).flatten().collect::<Vec<u8>>();
        Ok((String::from_utf8_lossy(&lines).into_owned(), h))
    }

    /// A folder with every kind of name, and its archive by the real tar.
    fn real(format: &str) -> Option<(tempfile::TempDir, Vec<u8>, String)> {
        let dir = tempfile::tempdir().unwrap();
        let deep = format!("deep/{}/{}", "d".repeat(90), "e".repeat(90));
        std::fs::create_dir_all(dir.path().join(&deep)).unwrap();
        let long = format!("{deep}/{}", "f".repeat(120));
        for (name, content) in [
            ("plain", "hello".to_string()),
            ("empty", String::new()),
            ("with space 'and' \"quotes\"", "x".repeat(512)),
            ("with\nnewline\\", "y".repeat(513)),
            ("-dash", "z".repeat(100_000)),
            (long.as_str(), "long name".into()),
        ] {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        std::fs::hard_link(dir.path().join("plain"), dir.path().join("plain2")).unwrap();
        std::os::unix::fs::symlink("plain", dir.path().join("link")).unwrap();
        let run = |cmd: &str| Command::new("sh").args(["-c", cmd]).current_dir(dir.path()).output().ok().filter(|o| o.status.success());
        let tar = run(&format!("tar -c --sort=name --format={format} -f - ."))?.stdout;
        let sums = run("find . -type f ! -name plain2 -exec sha256sum -- {} +")?.stdout;
        Some((dir, tar, String::from_utf8(sums).unwrap()))
    }

    fn sorted(text: &str) -> Vec<&str> {
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        lines
    }

    #[test]
    fn the_manifest_is_what_sha256sum_says_of_the_files() {
        for format in ["gnu", "pax", "ustar"] {
            let Some((_dir, tar, sums)) = real(format) else { continue };
            let (lines, h) = hash_of(&tar, &[]).unwrap();
            assert_eq!(sorted(&lines), sorted(&sums), "{format}");
            assert!(h.ended);
            assert_eq!((h.files, h.links, h.bytes), (6, 1, 5 + 512 + 513 + 100_000 + 9), "{format}");
        }
    }

    #[test]
    fn a_listing_has_each_entry_with_all_that_is_said_of_it() {
        for format in ["gnu", "pax", "ustar"] {
            let Some((dir, tar, sums)) = real(format) else { continue };
            let mut h = Hasher::default();
            h.write_all(&tar).unwrap();
            let all = h.take_entries();
            let hex = |s: &[u8]| s.iter().map(|b| format!("{b:02x}")).collect::<String>();
            let find = |name: &str| all.iter().find(|e| e.name == name.as_bytes()).unwrap();
            for e in all.iter().filter(|e| e.kind == b'0' && !e.name.contains(&b'\n')) {
                let line = format!("{}  {}", hex(&e.sum.unwrap()), String::from_utf8_lossy(&e.name));
                assert!(sums.lines().any(|l| l == line), "{format}: {line}");
            }
            use std::os::unix::fs::MetadataExt as _;
            let is = std::fs::metadata(dir.path().join("plain")).unwrap();
            let plain = find("./plain");
            assert_eq!((plain.mode, plain.uid, plain.gid), (u64::from(is.mode() & 0o7777), u64::from(is.uid()), u64::from(is.gid())));
            assert_eq!((find("./link").kind, find("./link").link.as_slice()), (b'2', &b"plain"[..]));
            assert_eq!((find("./plain2").kind, find("./plain2").link.as_slice()), (b'1', &b"./plain"[..]));
            assert_eq!(find("./").kind, b'5');
        }
    }

    #[test]
    fn a_damaged_or_cut_archive_is_noticed() {
        let Some((_dir, tar, _)) = real("gnu") else { return };
        assert!(!hash_of(&tar[..tar.len() / 2], &[]).unwrap().1.ended);
        let mut broken = tar.clone();
        broken[10] ^= 1;
        assert!(hash_of(&broken, &[]).err().unwrap().to_string().contains("head is damaged"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn pieces_of_any_size_give_the_same(mut cuts in proptest::collection::vec(0usize..110_000, 0..40)) {
            let Some((_dir, tar, _)) = real("gnu") else { return Ok(()) };
            cuts.sort_unstable();
            prop_assert_eq!(hash_of(&tar, &cuts).unwrap().0, hash_of(&tar, &[]).unwrap().0);
        }

        #[test]
        fn garbage_is_refused_and_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let _ = hash_of(&bytes, &[700]);
        }
    }
}
