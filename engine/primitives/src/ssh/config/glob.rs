//! File names with `*`, `?` and `[…]`, for `Include`.

use std::path::{Path, PathBuf};

/// The files that a pattern names, sorted; none when nothing fits. A name that begins with a dot must be named so.
#[must_use]
pub fn glob(pattern: &str) -> Vec<PathBuf> {
    let (start, rest) = match pattern.strip_prefix('/') {
        Some(r) => (PathBuf::from("/"), r),
        None => (PathBuf::new(), pattern),
    };
    let mut found = vec![start];
    let mut parts = rest.split('/').filter(|p| !p.is_empty()).peekable();
    while let Some(part) = parts.next() {
        let chars: Vec<char> = part.chars().collect();
        let last = parts.peek().is_none();
        let mut next = Vec::new();
        for dir in &found {
            if !part.contains(['*', '?', '[', '\\']) {
                let path = dir.join(part);
                if !last || path.symlink_metadata().is_ok() {
                    next.push(path);
                }
                continue;
            }
            let here = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
            let mut names: Vec<String> =
                std::fs::read_dir(here).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
            names.sort();
            for name in names {
                let hidden = name.starts_with('.') && !part.starts_with('.');
                if !hidden && fits(&name.chars().collect::<Vec<_>>(), &chars) {
                    next.push(dir.join(name));
                }
            }
        }
        found = next;
    }
    found.retain(|p| !p.as_os_str().is_empty());
    found
}

fn fits(name: &[char], pattern: &[char]) -> bool {
    let Some((p, rest)) = pattern.split_first() else { return name.is_empty() };
    match p {
        '*' => {
            // One star is as good as several.
            let rest = rest.iter().position(|c| *c != '*').and_then(|i| rest.get(i..)).unwrap_or(&[]);
            rest.is_empty() || (0..=name.len()).any(|i| name.get(i..).is_some_and(|n| fits(n, rest)))
        }
        '?' => name.split_first().is_some_and(|(_, n)| fits(n, rest)),
        '[' => match (class(rest), name.split_first()) {
            (Some((set, after)), Some((c, n))) => contains(set, *c) && fits(n, after),
            (None, Some((c, n))) => *c == '[' && fits(n, rest),
            (_, None) => false,
        },
        '\\' if !rest.is_empty() => match (rest.split_first(), name.split_first()) {
            (Some((want, after)), Some((c, n))) => want == c && fits(n, after),
            _ => false,
        },
        c => name.split_first().is_some_and(|(first, n)| first == c && fits(n, rest)),
    }
}

/// The inside of brackets and what follows them.
fn class(after: &[char]) -> Option<(&[char], &[char])> {
    let skip = usize::from(matches!(after.first(), Some('!' | '^')));
    // A bracket that comes first is one of the characters.
    let end = after.iter().enumerate().skip(skip + 1).find(|(_, c)| **c == ']')?.0;
    Some((after.get(..end)?, after.get(end + 1..)?))
}

fn contains(set: &[char], c: char) -> bool {
    let (negated, set) = match set.split_first() {
        Some(('!' | '^', rest)) => (true, rest),
        _ => (false, set),
    };
    let mut rest = set;
    let mut found = false;
    while let Some((a, tail)) = rest.split_first() {
        rest = match tail {
            ['-', b, more @ ..] => {
                found |= (*a..=*b).contains(&c);
                more
            }
            _ => {
                found |= *a == c;
                tail
            }
        };
    }
    found != negated
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn yes(name: &str, pattern: &str) -> bool {
        fits(&name.chars().collect::<Vec<_>>(), &pattern.chars().collect::<Vec<_>>())
    }

    #[test]
    fn patterns() {
        for (name, pattern, want) in [
            ("10-a.conf", "*.conf", true),
            ("a.conf~", "*.conf", false),
            ("b1", "[a-c][0-9]", true),
            ("d1", "[a-c]?", false),
            ("d1", "[!a-c]?", true),
            ("]", "[]]", true),
            ("[x", "[x", true),
            ("a*", r"a\*", true),
            ("ab", r"a\*", false),
            ("abc", "a**c", true),
        ] {
            assert_eq!(yes(name, pattern), want, "{name} {pattern}");
        }
    }

    #[test]
    fn files() {
        let dir = tempfile::tempdir().unwrap();
        for f in ["b.conf", "a.conf", ".hidden.conf", "c.txt"] {
            std::fs::write(dir.path().join(f), "").unwrap();
        }
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/z.conf"), "").unwrap();
        let names = |p: &str| -> Vec<String> {
            let found = glob(&format!("{}/{p}", dir.path().display()));
            found.iter().map(|f| f.strip_prefix(dir.path()).unwrap().display().to_string()).collect()
        };
        assert_eq!(names("*.conf"), ["a.conf", "b.conf"]);
        assert_eq!(names(".*.conf"), [".hidden.conf"]);
        assert_eq!(names("*/*.conf"), ["sub/z.conf"]);
        assert_eq!(names("c.txt"), ["c.txt"]);
        assert!(names("none").is_empty() && names("no*").is_empty());
    }

    proptest! {
        #[test]
        fn nothing_panics(name in "\\PC{0,10}", pattern in "[a-c*?\\[\\]!^\\\\-]{0,10}") {
            let _ = yes(&name, &pattern);
        }
    }
}
