//! Which host keys are known: OpenSSH's `known_hosts` with plain, `[host]:port`, hashed, wildcard and negated names, `@revoked`
//! and `@cert-authority`.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use russh::keys::{PublicKey, parse_public_key_base64};

/// What the files say of a key that a host showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The key is that of the host.
    Known,
    /// No file has a key of this host.
    Unknown,
    /// The files have another key for this host, here.
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
    names: String,
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
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut words = line.split_whitespace();
            let mut first = words.next().unwrap_or("");
            let marker = match first {
                "@revoked" => Marker::Revoked,
                "@cert-authority" => Marker::Authority,
                _ => Marker::Plain,
            };
            if first.starts_with('@') {
                if marker == Marker::Plain {
                    continue;
                }
                first = words.next().unwrap_or("");
            }
            let (Some(_kind), Some(blob)) = (words.next(), words.next()) else { continue };
            let Ok(key) = parse_public_key_base64(blob) else { continue };
            self.entries.push(Entry { file: file.to_path_buf(), line: i + 1, marker, names: first.to_string(), key });
        }
    }

    /// Judges a plain key that `host` on `port` showed.
    pub(super) fn judge(&self, host: &str, port: u16, key: &PublicKey) -> Verdict {
        let same = |e: &&Entry| e.key.key_data() == key.key_data();
        let names = lookup_names(host, port);
        if let Some(e) = self.entries.iter().filter(|e| e.marker == Marker::Revoked && e.matches_any(&names)).find(same) {
            return Verdict::Revoked { file: e.file.clone(), line: e.line };
        }
        let mut plain = self.entries.iter().filter(|e| e.marker == Marker::Plain);
        if plain.clone().filter(|e| e.matches(&names[0])).any(|e| same(&e)) {
            return Verdict::Known;
        }
        if let Some(e) = plain.clone().find(|e| e.matches(&names[0])) {
            return Verdict::Changed { file: e.file.clone(), line: e.line };
        }
        // As OpenSSH does: for another port than 22, a key recorded for the bare name is taken when it is the same.
        if plain.any(|e| e.matches_any(&names) && same(&e)) { Verdict::Known } else { Verdict::Unknown }
    }

    /// The keys of certificate authorities that may vouch for this host.
    pub(super) fn authorities(&self, host: &str, port: u16) -> Vec<PublicKey> {
        let names = lookup_names(host, port);
        self.entries.iter().filter(|e| e.marker == Marker::Authority && e.matches_any(&names)).map(|e| e.key.clone()).collect()
    }

    /// The plain keys recorded for this host; their types are asked for first.
    pub(super) fn keys(&self, host: &str, port: u16) -> Vec<PublicKey> {
        let names = lookup_names(host, port);
        self.entries.iter().filter(|e| e.marker == Marker::Plain && e.matches_any(&names)).map(|e| e.key.clone()).collect()
    }

    /// Whether a key is revoked for this host; used for the authorities of certificates.
    pub(super) fn is_revoked(&self, host: &str, port: u16, key: &PublicKey) -> bool {
        matches!(self.judge(host, port, key), Verdict::Revoked { .. })
    }
}

impl Entry {
    fn matches_any(&self, names: &[String]) -> bool {
        names.iter().any(|n| self.matches(n))
    }

    fn matches(&self, name: &str) -> bool {
        if let Some(rest) = self.names.strip_prefix("|1|") {
            return hashed(rest, name);
        }
        let mut found = false;
        for pattern in self.names.split(',') {
            match pattern.strip_prefix('!') {
                Some(p) if wildcard(p, name) => return false,
                Some(_) => {}
                None => found |= wildcard(pattern, name),
            }
        }
        found
    }
}

/// The name under which a host stands in `known_hosts`.
pub(super) fn entry_name(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    if port == 22 { host } else { format!("[{host}]:{port}") }
}

fn lookup_names(host: &str, port: u16) -> Vec<String> {
    let mut names = vec![entry_name(host, port)];
    if port != 22 {
        names.push(host.to_ascii_lowercase());
    }
    names
}

fn hashed(rest: &str, name: &str) -> bool {
    let Some((salt, mac)) = rest.split_once('|') else { return false };
    let (Ok(salt), Ok(mac)) = (STANDARD.decode(salt), STANDARD.decode(mac)) else { return false };
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
    ring::hmac::verify(&key, name.as_bytes(), &mac).is_ok()
}

/// Matches `*` and `?` as OpenSSH does, without regard to case.
pub(super) fn wildcard(pattern: &str, name: &str) -> bool {
    let (p, n): (Vec<char>, Vec<char>) = (pattern.to_lowercase().chars().collect(), name.to_lowercase().chars().collect());
    let (mut i, mut j) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while j < n.len() {
        match p.get(i) {
            Some('*') => {
                back = Some((i, j));
                i += 1;
            }
            Some(c) if *c == '?' || n.get(j) == Some(c) => {
                i += 1;
                j += 1;
            }
            _ => match back {
                Some((star, at)) => {
                    i = star + 1;
                    j = at + 1;
                    back = Some((star, at + 1));
                }
                None => return false,
            },
        }
    }
    p.get(i..).is_some_and(|rest| rest.iter().all(|c| *c == '*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    const B: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIB9dG4kjRhQTtWTVzd2t27+t0DEHBPW7iOD23TUiYLio";

    fn key(blob: &str) -> PublicKey {
        parse_public_key_base64(blob).unwrap()
    }

    fn known(text: &str) -> KnownHosts {
        let mut k = KnownHosts::default();
        k.parse(Path::new("kh"), text);
        k
    }

    #[test]
    fn plain_names_and_ports() {
        let k = known(&format!("# comment\n\nold,192.0.2.1 ssh-ed25519 {A} note\n[new]:2222 ssh-ed25519 {B}\n"));
        assert_eq!(k.judge("old", 22, &key(A)), Verdict::Known);
        assert_eq!(k.judge("OLD", 22, &key(A)), Verdict::Known);
        assert_eq!(k.judge("192.0.2.1", 22, &key(A)), Verdict::Known);
        assert_eq!(k.judge("old", 22, &key(B)), Verdict::Changed { file: "kh".into(), line: 3 });
        assert_eq!(k.judge("new", 2222, &key(B)), Verdict::Known);
        assert_eq!(k.judge("new", 2222, &key(A)), Verdict::Changed { file: "kh".into(), line: 4 });
        assert_eq!(k.judge("new", 22, &key(B)), Verdict::Unknown);
        assert_eq!(k.judge("other", 22, &key(A)), Verdict::Unknown);
        // Another port: the bare name's key is taken when it is the same, and says nothing when it is not.
        assert_eq!(k.judge("old", 2222, &key(A)), Verdict::Known);
        assert_eq!(k.judge("old", 2222, &key(B)), Verdict::Unknown);
    }

    #[test]
    fn wildcards_and_negation() {
        let k = known(&format!("*.example.com,!bad.example.com,10.0.?.1 ssh-ed25519 {A}\n"));
        assert_eq!(k.judge("a.example.com", 22, &key(A)), Verdict::Known);
        assert_eq!(k.judge("bad.example.com", 22, &key(A)), Verdict::Unknown);
        assert_eq!(k.judge("10.0.7.1", 22, &key(A)), Verdict::Known);
        assert_eq!(k.judge("10.0.77.1", 22, &key(A)), Verdict::Unknown);
        assert!(wildcard("a*b*c", "axxbyyc") && !wildcard("a*b*c", "axxbyy") && wildcard("*", "") && !wildcard("?", ""));
    }

    #[test]
    fn hashed_names() {
        let salt = b"0123456789abcdefghij";
        let mac = |name: &str| {
            let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, salt);
            STANDARD.encode(ring::hmac::sign(&key, name.as_bytes()))
        };
        let line = |name: &str| format!("|1|{}|{} ssh-ed25519 {A}\n", STANDARD.encode(salt), mac(name));
        let k = known(&(line("old") + &line("[new]:2222")));
        assert_eq!(k.judge("old", 22, &key(A)), Verdict::Known);
        assert_eq!(k.judge("new", 2222, &key(A)), Verdict::Known);
        assert_eq!(k.judge("old", 22, &key(B)), Verdict::Changed { file: "kh".into(), line: 1 });
        assert_eq!(k.judge("else", 22, &key(A)), Verdict::Unknown);
    }

    #[test]
    fn revoked_keys_and_authorities() {
        let k = known(&format!("@revoked * ssh-ed25519 {B}\nold ssh-ed25519 {B}\n@cert-authority *.example.com ssh-ed25519 {A}\n"));
        assert_eq!(k.judge("old", 22, &key(B)), Verdict::Revoked { file: "kh".into(), line: 1 });
        assert_eq!(k.judge("a.example.com", 22, &key(A)), Verdict::Unknown, "an authority is not a host key");
        assert_eq!(k.authorities("a.example.com", 22).len(), 1);
        assert!(k.authorities("a.example.org", 22).is_empty());
    }

    #[test]
    fn broken_lines_are_passed_over() {
        let k = known(&format!("old\n@strange old ssh-ed25519 {A}\nold ssh-ed25519 !!!\n|1|x ssh-ed25519 {A}\nold ssh-ed25519 {A}"));
        assert_eq!(k.judge("old", 22, &key(A)), Verdict::Known);
        assert_eq!(k.entries.len(), 2);
    }
}
