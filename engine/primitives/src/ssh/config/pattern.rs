//! Patterns with `*` and `?`, and comma-separated lists of them with `!`, as OpenSSH matches them.

/// Whether `text` is matched by a pattern; upper and lower case differ.
#[must_use]
pub fn matches(text: &str, pattern: &str) -> bool {
    let (t, p): (Vec<char>, Vec<char>) = (text.chars().collect(), pattern.chars().collect());
    let (mut i, mut j) = (0, 0);
    // Where to go on when what follows the last star does not fit.
    let mut back: Option<(usize, usize)> = None;
    while i < t.len() {
        match p.get(j) {
            Some('*') => {
                back = Some((i, j));
                j += 1;
            }
            Some(c) if *c == '?' || t.get(i) == Some(c) => {
                i += 1;
                j += 1;
            }
            _ => match back {
                Some((at, star)) => {
                    back = Some((at + 1, star));
                    i = at + 1;
                    j = star + 1;
                }
                None => return false,
            },
        }
    }
    p.get(j..).is_some_and(|rest| rest.iter().all(|c| *c == '*'))
}

/// Whether a list of patterns matches: one of them, and none that is negated. With `lower`, the patterns are taken in lower case.
#[must_use]
pub fn matches_list(text: &str, list: &str, lower: bool) -> bool {
    let mut found = false;
    for pattern in list.split(',') {
        let (negated, pattern) = match pattern.strip_prefix('!') {
            Some(p) => (true, p),
            None => (false, pattern),
        };
        let hit = if lower { matches(text, &pattern.to_ascii_lowercase()) } else { matches(text, pattern) };
        if hit && negated {
            return false;
        }
        found |= hit;
    }
    found
}

/// Whether a list of patterns matches a host name, in whatever case either is written.
#[must_use]
pub fn matches_host(host: &str, list: &str) -> bool {
    matches_list(&host.to_ascii_lowercase(), list, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stars_and_question_marks() {
        for (text, pattern, yes) in [
            ("a.example.com", "*.example.com", true),
            ("example.com", "*.example.com", false),
            ("192.168.0.7", "192.168.0.?", true),
            ("192.168.0.77", "192.168.0.?", false),
            ("", "*", true),
            ("", "?", false),
            ("", "", true),
            ("x", "", false),
            ("axxbyyc", "a*b*c", true),
            ("axxbyy", "a*b*c", false),
            ("Web", "web", false),
            ("aab", "*ab", true),
            ("ab", "a**b", true),
        ] {
            assert_eq!(matches(text, pattern), yes, "{text} {pattern}");
        }
    }

    #[test]
    fn lists_and_negation() {
        assert!(matches_list("web1", "db*,web*", false));
        assert!(!matches_list("web1", "web*,!web1", false));
        assert!(!matches_list("web1", "!db1", false), "a negation alone matches nothing");
        assert!(matches_list("web1", "!db1,*", false));
        assert!(matches_host("WEB1.Example.COM", "*.example.com"));
        assert!(matches_host("web1", "WEB*"));
        assert!(!matches_list("web1", "WEB*", false));
    }

    proptest! {
        #[test]
        fn a_name_matches_itself_and_any_part_replaced_by_a_star(name in "[a-z0-9.-]{0,12}", from in 0usize..12, to in 0usize..12) {
            prop_assert!(matches(&name, &name));
            let (a, b) = (from.min(to).min(name.len()), from.max(to).min(name.len()));
            let starred = format!("{}*{}", name.get(..a).unwrap(), name.get(b..).unwrap());
            prop_assert!(matches(&name, &starred), "{} {}", name, starred);
        }
    }
}
