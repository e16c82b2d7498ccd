//! The names of `known_hosts`: how a host is looked up, and which patterns stand for it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The name under which a host stands in `known_hosts`.
pub(in crate::ssh) fn entry_name(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    if port == 22 { host } else { format!("[{host}]:{port}") }
}

/// The names field of one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Names {
    /// One hashed name.
    Hashed {
        /// The salt, which is the key of the MAC.
        salt: Vec<u8>,
        /// HMAC-SHA-1 of the name.
        mac: Vec<u8>,
    },
    /// Patterns with `*` and `?`; with `!` before it, one takes the line away from a host.
    Patterns(Vec<(bool, String)>),
}

impl Names {
    /// Reads the field; `None` when it looks hashed and is not well formed.
    pub(super) fn parse(field: &str) -> Option<Names> {
        if let Some(rest) = field.strip_prefix('|') {
            let (salt, mac) = rest.strip_prefix("1|")?.split_once('|')?;
            let (salt, mac) = (STANDARD.decode(salt).ok()?, STANDARD.decode(mac).ok()?);
            return (salt.len() == 20 && mac.len() == 20).then_some(Names::Hashed { salt, mac });
        }
        let patterns = field.split(',').map(|p| match p.strip_prefix('!') {
            Some(p) => (false, p.to_string()),
            None => (true, p.to_string()),
        });
        Some(Names::Patterns(patterns.collect()))
    }

    /// Whether the line stands for this name (as [`entry_name`] writes it).
    pub(super) fn matches(&self, name: &str) -> bool {
        match self {
            Names::Hashed { salt, mac } => {
                let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, salt);
                ring::hmac::verify(&key, name.as_bytes(), mac).is_ok()
            }
            Names::Patterns(all) => {
                let mut found = false;
                for (wanted, pattern) in all {
                    if wildcard(pattern, name) {
                        if !wanted {
                            return false;
                        }
                        found = true;
                    }
                }
                found
            }
        }
    }
}

/// The hashed form of a name, under a random salt.
pub(super) fn hash(name: &str) -> String {
    let salt: [u8; 20] = rand::random();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
    format!("|1|{}|{}", STANDARD.encode(salt), STANDARD.encode(ring::hmac::sign(&key, name.as_bytes())))
}

/// Matches `*` and `?` as OpenSSH does, without regard to case.
pub(in crate::ssh) fn wildcard(pattern: &str, name: &str) -> bool {
    let (p, n) = (pattern.to_ascii_lowercase().into_bytes(), name.to_ascii_lowercase().into_bytes());
    let (mut i, mut j) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while j < n.len() {
        match p.get(i) {
            Some(b'*') => {
                back = Some((i, j));
                i += 1;
            }
            Some(c) if *c == b'?' || n.get(j) == Some(c) => {
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
    p.get(i..).is_some_and(|rest| rest.iter().all(|c| *c == b'*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_takes_as_much_as_it_needs() {
        assert!(wildcard("a*b*c", "axxbyyc") && !wildcard("a*b*c", "axxbyy") && wildcard("*", "") && !wildcard("?", ""));
        assert!(wildcard("*.Example.com", "a.example.COM") && !wildcard("[h]", "h"));
    }

    #[test]
    fn a_hashed_name_is_found_again_and_no_other() {
        let n = Names::parse(&hash("[web]:2222")).unwrap();
        assert!(n.matches("[web]:2222") && !n.matches("web") && !n.matches("[web]:2223"));
        for bad in ["|1|x", "|1|AAAA|AAAA", "|2|a|b", "|", "|1||"] {
            assert_eq!(Names::parse(bad), None, "{bad}");
        }
    }
}
