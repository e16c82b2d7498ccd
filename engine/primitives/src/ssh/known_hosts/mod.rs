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
    /// Whether it stands for the host on its port; otherwise for the bare name alone.
    own: bool,
    key: PublicKey,
}

/// The entries of `known_hosts` files that stand for one host. Those of other hosts are not kept: a hundred hosts would each hold all.
#[derive(Debug, Clone)]
pub(super) struct KnownHosts {
    /// The name that [`entry_name`] gives.
    name: String,
    /// The bare name, where it is another one.
    bare: Option<String>,
    entries: Vec<Entry>,
}

impl KnownHosts {
    /// Reads what the files that exist say of `host` on `port`. Lines that cannot be understood are passed over, as OpenSSH does.
    pub(super) fn read(files: &[PathBuf], host: &str, port: u16) -> Self {
        let mut all = KnownHosts::of(host, port);
        for file in files {
            if let Ok(bytes) = std::fs::read(file) {
                all.parse(file, &String::from_utf8_lossy(&bytes));
            }
        }
        all
    }

    fn of(host: &str, port: u16) -> Self {
        let bare = (port != 22).then(|| host.to_ascii_lowercase());
        KnownHosts { name: entry_name(host, port), bare, entries: Vec::new() }
    }

    fn parse(&mut self, file: &Path, text: &str) {
        for (i, line) in text.split('\n').enumerate() {
            if let Some((marker, own, key)) = self.entry(line) {
                self.entries.push(Entry { file: file.to_path_buf(), line: i + 1, marker, own, key });
            }
        }
    }

    /// Reads one line, when it stands for this host.
    fn entry(&self, line: &str) -> Option<(Marker, bool, PublicKey)> {
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
        let own = names.matches(&self.name);
        if !own && !self.bare.as_deref().is_some_and(|bare| names.matches(bare)) {
            return None;
        }
        let (kind, blob) = (word(&mut rest)?, word(&mut rest)?);
        let key = parse_public_key_base64(&blob).ok()?;
        (key.algorithm().as_str() == kind).then_some((marker, own, key))
    }

    fn marked(&self, marker: Marker) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |e| e.marker == marker)
    }

    /// Judges a plain key that the host showed.
    pub(super) fn judge(&self, key: &PublicKey) -> Verdict {
        if let Some((file, line)) = self.revoked(key) {
            return Verdict::Revoked { file, line };
        }
        let same = |e: &&Entry| e.key.key_data() == key.key_data();
        let own = || self.marked(Marker::Plain).filter(|e| e.own);
        if own().any(|e| same(&e)) {
            return Verdict::Known;
        }
        if let Some(e) = own().find(|e| e.key.algorithm() == key.algorithm()) {
            return Verdict::Changed { file: e.file.clone(), line: e.line };
        }
        // As OpenSSH does: for another port than 22, a key recorded for the bare name is taken when it is the same.
        if self.marked(Marker::Plain).any(|e| same(&e)) { Verdict::Known } else { Verdict::Unknown }
    }

    /// The keys of certificate authorities that may vouch for the host.
    pub(super) fn authorities(&self) -> Vec<PublicKey> {
        self.marked(Marker::Authority).map(|e| e.key.clone()).collect()
    }

    /// The plain keys recorded for the host; their types are asked for first.
    pub(super) fn keys(&self) -> Vec<PublicKey> {
        self.marked(Marker::Plain).map(|e| e.key.clone()).collect()
    }

    /// Where a key is revoked for the host: a host key, or that of an authority.
    pub(super) fn revoked(&self, key: &PublicKey) -> Option<(PathBuf, usize)> {
        self.marked(Marker::Revoked).find(|e| e.key.key_data() == key.key_data()).map(|e| (e.file.clone(), e.line))
    }
}

#[cfg(test)]
mod tests;
