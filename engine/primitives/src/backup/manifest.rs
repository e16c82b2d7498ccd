//! Lines of a manifest in the format of `sha256sum`, so that `sha256sum -c` checks what `tar` restored.

use runbook_core::digest::hex;

/// One line with its newline. Names with a newline, carriage return or backslash are escaped as coreutils does it.
pub fn line(hash: &[u8], name: &[u8]) -> Vec<u8> {
    let special = name.iter().any(|b| matches!(b, b'\n' | b'\r' | b'\\'));
    let mut out = Vec::with_capacity(name.len() + 70);
    if special {
        out.push(b'\\');
    }
    out.extend_from_slice(hex(hash).as_bytes());
    out.extend_from_slice(b"  ");
    for &b in name {
        match b {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b => out.push(b),
        }
    }
    out.push(b'\n');
    out
}

/// Reads a line without its newline: the hash in hexadecimal, and the name.
pub fn parse(line: &[u8]) -> Option<(&str, Vec<u8>)> {
    let (escaped, rest) = line.strip_prefix(b"\\").map_or((false, line), |r| (true, r));
    let (hash, name) = rest.split_at_checked(64)?;
    let hash = std::str::from_utf8(hash).ok().filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()))?;
    let name = name.strip_prefix(b"  ").or_else(|| name.strip_prefix(b" *"))?;
    if name.is_empty() {
        return None;
    }
    if !escaped {
        return Some((hash, name.to_vec()));
    }
    let mut out = Vec::with_capacity(name.len());
    let mut bytes = name.iter();
    while let Some(&b) = bytes.next() {
        out.push(match b {
            b'\\' => match bytes.next()? {
                b'n' => b'\n',
                b'r' => b'\r',
                b'\\' => b'\\',
                _ => return None,
            },
            b => b,
        });
    }
    Some((hash, out))
}

/// A file name for messages.
pub fn show(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    if text.chars().any(|c| c.is_control() || c == '\u{fffd}') { format!("{text:?}") } else { text.into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_those_of_sha256sum() {
        let hash = [0xab; 32];
        let hex = "ab".repeat(32);
        assert_eq!(line(&hash, b"a b"), format!("{hex}  a b\n").into_bytes());
        assert_eq!(line(&hash, b"a\nb\\"), format!("\\{hex}  a\\nb\\\\\n").into_bytes());
    }

    #[test]
    fn what_is_no_line_is_refused() {
        for bad in ["", "abc", &"ab".repeat(32), &format!("{}  ", "ab".repeat(32)), &format!("{}  x", "zz".repeat(32))] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
        assert!(parse(format!("\\{}  a\\x", "ab".repeat(32)).as_bytes()).is_none());
    }

    proptest! {
        #[test]
        fn every_name_comes_back(name in proptest::collection::vec(any::<u8>().prop_filter("no NUL in names", |b| *b != 0), 1..60)) {
            let made = line(&[7; 32], &name);
            let body = &made[..made.len() - 1];
            prop_assert!(!body.contains(&b'\n'));
            prop_assert_eq!(parse(body).unwrap().1, name);
        }
    }
}
