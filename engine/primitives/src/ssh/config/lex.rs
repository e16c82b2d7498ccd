//! Lines taken apart: the keyword, and its arguments with quotes and escapes, by OpenSSH's rules.

const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// A line that says something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    /// The keyword in lower case.
    pub keyword: String,
    /// What follows it, as it stands; empty when nothing does.
    pub rest: &'a str,
}

/// Takes a line apart. `None` for an empty line or a comment, and for a keyword whose quote is not closed, which OpenSSH passes over.
#[must_use]
pub fn line(text: &str) -> Option<Line<'_>> {
    // A line ends where C ends it. A form feed is space at the end of a line only.
    let text = text.split('\0').next().unwrap_or_default();
    let text = text.trim_end_matches([' ', '\t', '\r', '\n', '\x0c']);
    let mut rest = Some(text);
    let mut keyword = word(&mut rest)?;
    if keyword.is_empty() {
        keyword = word(&mut rest)?;
    }
    if keyword.is_empty() || keyword.starts_with('#') {
        return None;
    }
    Some(Line { keyword: keyword.to_ascii_lowercase(), rest: rest.unwrap_or_default().trim_start_matches(SPACE) })
}

/// The next word, up to a space or one `=`; double quotes hold spaces together, and nothing is escaped. So keywords and the
/// criteria of `Match` are read. `rest` is then what follows, or `None` at the end. `None` for a quote that is not closed.
pub fn word(rest: &mut Option<&str>) -> Option<String> {
    let s = rest.take()?;
    let Some((head, tail)) = s.find([' ', '\t', '\r', '\n', '"', '=']).and_then(|i| s.split_at_checked(i)) else {
        return Some(s.to_string());
    };
    if let Some(quoted) = tail.strip_prefix('"') {
        let (inner, after) = quoted.split_once('"')?;
        *rest = Some(after.trim_start_matches(SPACE));
        return Some(format!("{head}{inner}"));
    }
    let mut after = tail.get(1..).unwrap_or_default().trim_start_matches(SPACE);
    if !tail.starts_with('=')
        && let Some(a) = after.strip_prefix('=')
    {
        after = a.trim_start_matches(SPACE);
    }
    *rest = Some(after);
    Some(head.to_string())
}

/// Splits arguments: single and double quotes, `\"`, `\'`, `\\`, outside of quotes `\ ` as well; a word that begins with `#`
/// ends the line. `None` for a quote that is not closed.
#[must_use]
pub fn arguments(text: &str) -> Option<Vec<String>> {
    let mut out = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.peek().copied() {
        if c == ' ' || c == '\t' {
            chars.next();
            continue;
        }
        if c == '#' {
            break;
        }
        let mut arg = String::new();
        let mut quote: Option<char> = None;
        while let Some(c) = chars.next() {
            match (c, quote) {
                ('\\', _) => match chars.peek().copied() {
                    Some(n) if matches!(n, '\'' | '"' | '\\') || (quote.is_none() && n == ' ') => {
                        arg.push(n);
                        chars.next();
                    }
                    _ => arg.push('\\'),
                },
                (' ' | '\t', None) => break,
                ('"' | '\'', None) => quote = Some(c),
                (c, Some(q)) if c == q => quote = None,
                (c, _) => arg.push(c),
            }
        }
        if quote.is_some() {
            return None;
        }
        out.push(arg);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(text: &str) -> (String, String) {
        line(text).map(|l| (l.keyword, l.rest.to_string())).unwrap_or_default()
    }

    #[test]
    fn keywords() {
        for (text, keyword, rest) in [
            ("Port 22", "port", "22"),
            ("\t  PORT\t=  22  \r\n", "port", "22"),
            ("Port=22", "port", "22"),
            ("Port = = 22", "port", "= 22"),
            ("\"Port\" 22", "port", "22"),
            ("# Port 22", "", ""),
            ("   #Port", "", ""),
            ("", "", ""),
            ("   ", "", ""),
            ("Port", "port", ""),
            ("Port 22 # why", "port", "22 # why"),
            ("Host a\x0c", "host", "a"),
            ("\"Port", "", ""),
            ("User\0 x", "user", ""),
        ] {
            assert_eq!(of(text), (keyword.to_string(), rest.to_string()), "{text:?}");
        }
    }

    #[test]
    fn quotes_escapes_and_comments() {
        let a = |t: &str| arguments(t).map(|v| v.join("|"));
        for (text, want) in [
            ("a b\tc", Some("a|b|c")),
            ("\"a b\" c", Some("a b|c")),
            ("'a b' c", Some("a b|c")),
            (r"a\ b c", Some("a b|c")),
            (r#""a\ b" c"#, Some(r"a\ b|c")),
            (r#"a\"b"#, Some("a\"b")),
            (r"a\\b", Some(r"a\b")),
            (r"a\nb", Some(r"a\nb")),
            (r"a\", Some(r"a\")),
            ("a # b", Some("a")),
            ("a#b", Some("a#b")),
            ("\"#a\"", Some("#a")),
            ("pre\"a b\"post", Some("prea bpost")),
            ("\"\" x", Some("|x")),
            ("\"a", None),
            ("'a\"", None),
            ("", Some("")),
        ] {
            assert_eq!(a(text).as_deref(), want, "{text:?}");
        }
    }

    #[test]
    fn words_of_match() {
        let mut rest = Some("host=a,b exec \"test -f x\" user = me");
        let mut all = vec![];
        while let Some(w) = word(&mut rest).filter(|w| !w.is_empty()) {
            all.push(w);
        }
        assert_eq!(all, ["host", "a,b", "exec", "test -f x", "user", "me"]);
    }

    proptest! {
        #[test]
        fn quoted_arguments_come_back(args in proptest::collection::vec("[^\\x00\\r\\n]{0,10}", 0..5)) {
            let quoted: Vec<String> = args.iter().map(|a| format!("\"{}\"", a.replace('\\', r"\\").replace('"', "\\\""))).collect();
            prop_assert_eq!(arguments(&quoted.join(" ")).unwrap(), args);
        }

        #[test]
        fn nothing_panics(text in "\\PC{0,40}") {
            let _ = line(&text);
            let _ = arguments(&text);
        }
    }
}
