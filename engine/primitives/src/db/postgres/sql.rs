//! Enough of PostgreSQL's lexical rules to find parameters and the ends of statements.

/// A text as an SQL literal.
pub(super) fn lit(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if text.contains('\\') { format!(" E'{}'", doubled.replace('\\', "\\\\")) } else { format!("'{doubled}'") }
}

/// A name as an SQL identifier.
pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A piece of SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece<'a> {
    /// Code in which parameters and semicolons mean something.
    Code(&'a str),
    /// A string, a quoted name or a comment.
    Quoted(&'a str),
}

/// Cuts a text into code and what is quoted.
fn pieces(sql: &str) -> Vec<Piece<'_>> {
    let bytes = sql.as_bytes();
    let at = |i: usize| bytes.get(i).copied().unwrap_or(0);
    let (mut out, mut from, mut i) = (Vec::new(), 0, 0);
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80;
    while i < bytes.len() {
        let end = match at(i) {
            b'\'' => {
                let escapes = i > 0 && matches!(at(i - 1), b'E' | b'e') && (i < 2 || !word(at(i - 2)));
                Some(quoted(bytes, i, b'\'', escapes))
            }
            b'"' => Some(quoted(bytes, i, b'"', false)),
            b'-' if at(i + 1) == b'-' => Some(bytes.iter().skip(i).position(|b| *b == b'\n').map_or(bytes.len(), |n| i + n)),
            b'/' if at(i + 1) == b'*' => Some(comment(bytes, i)),
            b'$' if i == 0 || !word(at(i - 1)) => dollar(sql, i),
            _ => None,
        };
        match end {
            Some(end) => {
                out.push(Piece::Code(sql.get(from..i).unwrap_or_default()));
                out.push(Piece::Quoted(sql.get(i..end).unwrap_or_default()));
                (from, i) = (end, end);
            }
            None => i += 1,
        }
    }
    out.push(Piece::Code(sql.get(from..).unwrap_or_default()));
    out
}

fn quoted(bytes: &[u8], from: usize, quote: u8, escapes: bool) -> usize {
    let mut i = from + 1;
    while let Some(b) = bytes.get(i) {
        if escapes && *b == b'\\' {
            i += 2;
            continue;
        }
        if *b == quote {
            if bytes.get(i + 1) == Some(&quote) {
                i += 2;
                continue;
            }
            return i + 1;
        }
        i += 1;
    }
    bytes.len()
}

fn comment(bytes: &[u8], from: usize) -> usize {
    let (mut depth, mut i) = (0, from);
    while i < bytes.len() {
        match (bytes.get(i), bytes.get(i + 1)) {
            (Some(b'/'), Some(b'*')) => (depth, i) = (depth + 1, i + 2),
            (Some(b'*'), Some(b'/')) => {
                (depth, i) = (depth - 1, i + 2);
                if depth == 0 {
                    return i;
                }
            }
            _ => i += 1,
        }
    }
    bytes.len()
}

/// The end of a dollar-quoted string that begins here, when one does.
fn dollar(sql: &str, from: usize) -> Option<usize> {
    let rest = sql.get(from..)?;
    let tag_end = rest.get(1..)?.find('$')? + 2;
    let tag = rest.get(..tag_end)?;
    let name = tag.trim_matches('$');
    if name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(|c| c.is_alphanumeric() || c == '_') {
        return None;
    }
    let body = rest.get(tag_end..)?;
    Some(from + tag_end + body.find(tag).map_or(body.len(), |n| n + tag.len()))
}

/// What stands for the parameters of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Names {
    /// `$1`, or nothing.
    Own,
    /// `?`, this many.
    Marks(usize),
    /// `:name`, each once, in the order of their numbers.
    Named(Vec<String>),
}

/// Puts `$1`, `$2` and so on in the places of `?` (with `marks`) or of `:name`.
pub(super) fn numbered(sql: &str, marks: bool) -> (String, Names) {
    let all = pieces(sql);
    let own = all.iter().any(|p| matches!(p, Piece::Code(c) if has_own(c)));
    if own {
        return (sql.to_string(), Names::Own);
    }
    let (mut out, mut count, mut names) = (String::with_capacity(sql.len() + 8), 0, Vec::<String>::new());
    for piece in all {
        let code = match piece {
            Piece::Quoted(q) => {
                out.push_str(q);
                continue;
            }
            Piece::Code(c) => c,
        };
        let mut chars = code.char_indices().peekable();
        let mut before = ' ';
        while let Some((i, c)) = chars.next() {
            let next = chars.peek().map_or(' ', |(_, c)| *c);
            if c == '?' && marks {
                count += 1;
                out.push_str(&format!("${count}"));
            } else if c == ':' && !marks && before != ':' && (next.is_alphabetic() || next == '_') {
                let rest = code.get(i + 1..).unwrap_or_default();
                let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                for _ in name.chars() {
                    chars.next();
                }
                let n = names.iter().position(|n| *n == name).unwrap_or_else(|| {
                    names.push(name);
                    names.len() - 1
                });
                out.push_str(&format!("${}", n + 1));
            } else {
                out.push(c);
            }
            before = c;
        }
    }
    (out, if marks { Names::Marks(count) } else { Names::Named(names) })
}

fn has_own(code: &str) -> bool {
    code.as_bytes().windows(2).any(|w| w.first() == Some(&b'$') && w.get(1).is_some_and(u8::is_ascii_digit))
}

/// The statements of a text, without empty ones and comments before them.
pub(super) fn statements(sql: &str) -> Vec<String> {
    let (mut out, mut now) = (Vec::new(), String::new());
    for piece in pieces(sql) {
        match piece {
            Piece::Quoted(q) if now.trim().is_empty() && (q.starts_with("--") || q.starts_with("/*")) => {}
            Piece::Quoted(q) => now.push_str(q),
            Piece::Code(c) => {
                let mut parts = c.split(';');
                now.push_str(parts.next().unwrap_or_default());
                for part in parts {
                    out.push(std::mem::take(&mut now));
                    now.push_str(part);
                }
            }
        }
    }
    out.push(now);
    out.into_iter().map(|s| s.trim().to_string()).filter(|s| !s.is_empty()).collect()
}

/// The words by which a statement would end the transaction that it is in.
pub(super) fn ends_transaction(statement: &str) -> Option<String> {
    let mut words = statement.split(|c: char| !c.is_ascii_alphabetic()).filter(|w| !w.is_empty()).map(str::to_ascii_uppercase);
    let (first, second) = (words.next()?, words.next().unwrap_or_default());
    match (first.as_str(), second.as_str()) {
        ("BEGIN" | "COMMIT" | "END" | "ABORT", _) => Some(first),
        ("START", "TRANSACTION") | ("PREPARE", "TRANSACTION") => Some(format!("{first} {second}")),
        ("ROLLBACK", "TO") => None,
        ("ROLLBACK", _) => Some(first),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_numbered_outside_of_what_is_quoted() {
        let (sql, n) = numbered("SELECT '?', \"a?\", $$ ? $$, $t$?$t$, E'\\'?' -- ?\n/* ? /* ? */ */ WHERE a = ? AND b = ?", true);
        assert_eq!(n, Names::Marks(2));
        assert!(sql.ends_with("WHERE a = $1 AND b = $2") && sql.starts_with("SELECT '?', \"a?\", $$ ? $$"), "{sql}");
    }

    #[test]
    fn names_are_numbered_and_casts_are_not_names() {
        let (sql, n) = numbered("SELECT :a::int, ':b', :b, :a, '{}'::jsonb ? 'k', x[1:2]", false);
        assert_eq!(sql, "SELECT $1::int, ':b', $2, $1, '{}'::jsonb ? 'k', x[1:2]");
        assert_eq!(n, Names::Named(vec!["a".into(), "b".into()]));
        assert_eq!(numbered("SELECT $1 WHERE j ? 'a'", true), ("SELECT $1 WHERE j ? 'a'".into(), Names::Own));
    }

    #[test]
    fn statements_end_where_they_end() {
        let s = statements("-- first\nINSERT INTO t VALUES (';');\nDO $$ BEGIN x; END $$; ;/* c */ COMMIT");
        assert_eq!(s, ["INSERT INTO t VALUES (';')", "DO $$ BEGIN x; END $$", "COMMIT"]);
        assert_eq!(ends_transaction(&s[2]).as_deref(), Some("COMMIT"));
        assert_eq!(ends_transaction(&s[1]), None);
        assert_eq!(ends_transaction("rollback to savepoint a"), None);
        assert_eq!(ends_transaction("start transaction read write").as_deref(), Some("START TRANSACTION"));
        assert_eq!(ends_transaction("end").as_deref(), Some("END"));
    }

    #[test]
    fn literals_and_names_are_quoted() {
        assert_eq!(lit("it's"), "'it''s'");
        assert_eq!(lit(r"a\b'"), r" E'a\\b'''");
        assert_eq!(ident("a\"b"), "\"a\"\"b\"");
    }

    proptest::proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_panics(sql in "[a'\"$?:;/*\\- \nE\\\\é1]{0,40}") {
            let joined: String = pieces(&sql).iter().map(|p| match p { Piece::Code(c) | Piece::Quoted(c) => *c }).collect();
            proptest::prop_assert_eq!(joined, sql.clone());
            let _ = (numbered(&sql, true), numbered(&sql, false), statements(&sql));
        }
    }
}
