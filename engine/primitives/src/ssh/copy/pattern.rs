//! What to leave alone: one pattern language for every way of copying, matched here and never by a tool of a host.

/// The patterns of one copy.
#[derive(Debug, Clone, Default)]
pub(super) struct Patterns {
    all: Vec<Pattern>,
}

#[derive(Debug, Clone)]
struct Pattern {
    glob: Vec<Token>,
    /// Holds a `/` inside or at its head: fits the path from the copied folder on.
    anchored: bool,
    /// Ends in `/`: fits folders only.
    folder: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `?`: one byte but `/`.
    One,
    /// `[a-z]`: one byte of these ranges (or, with `true`, of no range), but `/`.
    Class(Vec<(u8, u8)>, bool),
    /// `*`: any bytes but `/`.
    Star,
    /// `**`: any bytes.
    Deep,
    /// `**/`: nothing, or any bytes that end in `/`.
    Folders,
}

impl Patterns {
    pub(super) fn new<'a>(texts: impl Iterator<Item = &'a str>) -> Self {
        let all = texts.filter_map(|t| {
            let body = t.trim_end_matches('/');
            let glob = tokens(body.trim_start_matches('/').as_bytes());
            (!glob.is_empty()).then(|| Pattern { glob, anchored: body.contains('/'), folder: t.ends_with('/') })
        });
        Patterns { all: all.collect() }
    }

    /// Whether a pattern fits the path or a folder above it. `is_folder` tells what the path itself is.
    pub(super) fn exclude(&self, path: &[u8], is_folder: bool) -> bool {
        if self.all.is_empty() || path.is_empty() {
            return false;
        }
        let mut start = 0;
        loop {
            let end = path.iter().skip(start).position(|b| *b == b'/').map_or(path.len(), |n| start + n);
            let (upto, name) = (path.get(..end).unwrap_or_default(), path.get(start..end).unwrap_or_default());
            let folder = end < path.len() || is_folder;
            if self.all.iter().any(|p| (folder || !p.folder) && fits(&p.glob, if p.anchored { upto } else { name })) {
                return true;
            }
            if end >= path.len() {
                return false;
            }
            start = end + 1;
        }
    }
}

fn tokens(mut p: &[u8]) -> Vec<Token> {
    let mut out = Vec::new();
    loop {
        let (token, rest) = match p {
            [] => return out,
            [b'*', b'*', b'/', rest @ ..] if matches!(out.last(), None | Some(Token::Byte(b'/') | Token::Folders)) => {
                (Token::Folders, rest)
            }
            [b'*', b'*', rest @ ..] => (Token::Deep, rest),
            [b'*', rest @ ..] => (Token::Star, rest),
            [b'?', rest @ ..] => (Token::One, rest),
            [b'\\', x, rest @ ..] => (Token::Byte(*x), rest),
            [b'[', rest @ ..] => class(rest).unwrap_or((Token::Byte(b'['), rest)),
            [x, rest @ ..] => (Token::Byte(*x), rest),
        };
        out.push(token);
        p = rest;
    }
}

fn class(p: &[u8]) -> Option<(Token, &[u8])> {
    let (not, mut p) = match p {
        [b'!' | b'^', rest @ ..] => (true, rest),
        _ => (false, p),
    };
    let mut ranges = Vec::new();
    loop {
        match p {
            [b']', rest @ ..] if !ranges.is_empty() => return Some((Token::Class(ranges, not), rest)),
            [a, b'-', b, rest @ ..] if *b != b']' => {
                ranges.push((*a, *b));
                p = rest;
            }
            [a, rest @ ..] => {
                ranges.push((*a, *a));
                p = rest;
            }
            [] => return None,
        }
    }
}

/// Follows every way through the pattern at once, so that no pattern takes long.
fn fits(glob: &[Token], text: &[u8]) -> bool {
    let mut at = vec![false; glob.len() + 1];
    at[0] = true;
    skip(glob, &mut at, true);
    for (i, c) in text.iter().enumerate() {
        let mut next = vec![false; glob.len() + 1];
        for (n, token) in glob.iter().enumerate().filter(|(n, _)| at.get(*n) == Some(&true)) {
            let (stay, go) = match token {
                Token::Byte(b) => (false, b == c),
                Token::One => (false, *c != b'/'),
                Token::Class(ranges, not) => (false, *c != b'/' && ranges.iter().any(|(a, b)| (a..=b).contains(&c)) != *not),
                Token::Star => (*c != b'/', false),
                Token::Deep => (true, false),
                Token::Folders => (true, *c == b'/' && i > 0),
            };
            set(&mut next, n, stay);
            // Whoever comes to a `**/` may pass it at once.
            let mut to = n + 1;
            set(&mut next, to, go);
            while go && glob.get(to) == Some(&Token::Folders) {
                to += 1;
                set(&mut next, to, true);
            }
        }
        at = next;
        skip(glob, &mut at, false);
    }
    at.last() == Some(&true)
}

fn set(at: &mut [bool], n: usize, yes: bool) {
    if let Some(slot) = at.get_mut(n) {
        *slot |= yes;
    }
}

/// Passes tokens that may stand for nothing; a `**/` only at the beginning of the text, since later it has to be left by its `/`.
fn skip(glob: &[Token], at: &mut [bool], first: bool) {
    for (n, token) in glob.iter().enumerate() {
        let here = at.get(n) == Some(&true);
        set(at, n + 1, here && (matches!(token, Token::Star | Token::Deep) || (first && *token == Token::Folders)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ex(p: &str, path: &str) -> bool {
        Patterns::new([p].into_iter()).exclude(path.as_bytes(), false)
    }

    #[test]
    fn by_name_by_path_and_by_folder() {
        assert!(ex("*.tmp", "a/b.tmp") && ex("*.tmp", "b.tmp/inner") && !ex("*.tmp", "a/tmp") && !ex("*.tmp", "a.TMP"));
        assert!(ex("cache", "a/cache/x") && ex("a/cache", "a/cache/x") && ex("/a/cache/", "a/cache/x") && !ex("a/cache", "b/a/cache"));
        assert!(ex("/top", "top") && ex("/top", "top/x") && !ex("/top", "a/top"));
        let folder = Patterns::new(["cache/"].into_iter());
        assert!(folder.exclude(b"cache", true) && !folder.exclude(b"cache", false) && folder.exclude(b"a/cache/x", false));
        assert!(!ex("*", "") && !ex("", "a") && !ex("/", "a"), "the folder itself is never excluded");
    }

    #[test]
    fn wildcards() {
        assert!(ex("a/*/c", "a/b/c") && !ex("a/*/c", "a/b/b/c") && ex("a/**/c", "a/b/b/c") && ex("a/**/c", "a/c"));
        assert!(!ex("a/**/c", "a/bc") && ex("**/c", "x/c") && ex("**/c", "c") && !ex("x/**/c", "x/dc"));
        assert!(ex("a/**", "a/b/c") && ex("f?.[ch]", "fo.c") && !ex("f?.[ch]", "fo.d") && ex("[!a-c]x", "dx") && !ex("[!a-c]x", "bx"));
        assert!(ex(r"\*", "*") && !ex(r"\*", "a") && ex("a[", "a[") && ex("a*b*c", "axxbyyc") && !ex("a*b*c", "axxbyy"));
        assert!(Patterns::new(["\u{fc}*"].into_iter()).exclude("\u{fc}x".as_bytes(), false) && ex("b?", "b\n"));
    }

    #[test]
    fn a_hostile_pattern_ends() {
        assert!(!ex(&"*a".repeat(60), &"a".repeat(59)));
        assert!(ex(&"*a".repeat(60), &"a".repeat(600)));
    }
}
