//! Which host keys are known: OpenSSH's `known_hosts` with plain, `[host]:port`, hashed, wildcard and negated names, `@revoked`
//! and `@cert-authority`.

mod names;
mod write;

use std::path::{Path, PathBuf};

use russh::keys::{PublicKey, parse_public_key_base64};

use names::Names;
pub(super) use names::entry_name;
pub(super) use write::{append, line};

/// What the files say of a key that a host showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The key is that of the host.
    Known,
    /// No file has a key of this type for this host.
    Unknown,
    /// The files have another key of this type for this host, here.
    Changed {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// The key is marked as revoked, here.
    Revoked {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marker {
    Plain,
    Revoked,
    Authority,
}

#[derive(Debug, Clone)]
struct Entry {
    file: PathBuf,
    line: usize,
    marker: Marker,
    names: Names,
    key: PublicKey,
}

/// The entries of the `known_hosts` files of one host.
#[derive(Debug, Clone, Default)]
pub(super) struct KnownHosts {
    entries: Vec<Entry>,
}

impl KnownHosts {
    /// Reads the files that exist. Lines that cannot be understood are passed over, as OpenSSH does.
    pub(super) fn read(files: &[PathBuf]) -> Self {
        let mut all = KnownHosts::default();
        for file in files {
            if let Ok(bytes) = std::fs::read(file) {
                all.parse(file, &String::from_utf8_lossy(&bytes));
            }
        }
        all
    }

    pub(super) fn parse(&mut self, file: &Path, text: &str) {
        for (i, line) in text.split('\n').enumerate() {
            if let Some((marker, names, key)) = entry(line) {
                self.entries.push(Entry { file: file.to_path_buf(), line: i + 1, marker, names, key });
            }
        }
    }

    fn of<'a>(&'a self, marker: Marker, names: &'a [String]) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |e| e.marker == marker && names.iter().any(|n| e.names.matches(n)))
    }

    /// Judges a plain key that `host` on `port` showed.
    pub(super) fn judge(&self, host: &str, port: u16, key: &PublicKey) -> Verdict {
        if let Some((file, line)) = self.revoked(host, port, key) {
            return Verdict::Revoked { file, line };
        }
        let names = lookup_names(host, port);
        let same = |e: &&Entry| e.key.key_data() == key.key_data();
        let (own, all) = (names.get(..1).unwrap_or_default(), &names);
        if self.of(Marker::Plain, own).any(|e| same(&e)) {
            return Verdict::Known;
        }
        if let Some(e) = self.of(Marker::Plain, own).find(|e| e.key.algorithm() == key.algorithm()) {
            return Verdict::Changed { file: e.file.clone(), line: e.line };
        }
        // As OpenSSH does: for another port than 22, a key recorded for the bare name is taken when it is the same.
        if self.of(Marker::Plain, all).any(|e| same(&e)) { Verdict::Known } else { Verdict::Unknown }
    }

    /// The keys of certificate authorities that may vouch for this host.
    pub(super) fn authorities(&self, host: &str, port: u16) -> Vec<PublicKey> {
        self.of(Marker::Authority, &lookup_names(host, port)).map(|e| e.key.clone()).collect()
    }

    /// The plain keys recorded for this host; their types are asked for first.
    pub(super) fn keys(&self, host: &str, port: u16) -> Vec<PublicKey> {
        self.of(Marker::Plain, &lookup_names(host, port)).map(|e| e.key.clone()).collect()
    }

    /// Where a key is revoked for this host: a host key, or that of an authority.
    pub(super) fn revoked(&self, host: &str, port: u16, key: &PublicKey) -> Option<(PathBuf, usize)> {
        let names = lookup_names(host, port);
        self.of(Marker::Revoked, &names).find(|e| e.key.key_data() == key.key_data()).map(|e| (e.file.clone(), e.line))
    }

    /// The lines of the first file that stand for this very name; for comparing with `ssh-keygen -F`.
    #[cfg(test)]
    fn lines(&self, name: &str) -> Vec<usize> {
        self.entries.iter().filter(|e| e.names.matches(name)).map(|e| e.line).collect()
    }
}

/// Reads one line.
fn entry(line: &str) -> Option<(Marker, Names, PublicKey)> {
    let blank = |c: char| c == ' ' || c == '\t';
    let word = |rest: &mut &str| -> Option<String> {
        let (w, tail) = rest.split_once(blank).unwrap_or((rest, ""));
        let w = w.to_string();
        *rest = tail.trim_start_matches(blank);
        Some(w).filter(|w| !w.is_empty())
    };
    let mut rest = line.trim_matches(|c: char| blank(c) || c == '\r');
    if rest.starts_with('#') {
        return None;
    }
    let mut marker = Marker::Plain;
    while rest.starts_with('@') {
        // Each line has one marker at most.
        marker = match (marker, word(&mut rest)?.as_str()) {
            (Marker::Plain, "@revoked") => Marker::Revoked,
            (Marker::Plain, "@cert-authority") => Marker::Authority,
            _ => return None,
        };
    }
    let names = Names::parse(&word(&mut rest)?)?;
    let (kind, blob) = (word(&mut rest)?, word(&mut rest)?);
    let key = parse_public_key_base64(&blob).ok()?;
    (key.algorithm().as_str() == kind).then_some((marker, names, key))
}

fn lookup_names(host: &str, port: u16) -> Vec<String> {
    let mut names = vec![entry_name(host, port)];
    if port != 22 {
        names.push(host.to_ascii_lowercase());
    }
    names
}

#[cfg(test)]
mod tests;
