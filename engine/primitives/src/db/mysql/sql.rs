//! Text of the dialect: names, literals, and what a statement does.

/// A name in backticks.
pub fn ident(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A text literal. Backslashes are doubled, so `NO_BACKSLASH_ESCAPES` must be off, as it is in our sessions.
pub fn text(s: &str) -> String {
    format!("'{}'", s.replace('\\', "\\\\").replace('\'', "''").replace('\0', "\\0").replace('\n', "\\n").replace('\r', "\\r"))
}

/// The statements of a script, without comments around them, split at semicolons outside of quotes.
pub fn statements(sql: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut now = String::new();
    let mut rest = sql.chars().peekable();
    let mut quote: Option<char> = None;
    while let Some(c) = rest.next() {
        match quote {
            Some(q) => {
                now.push(c);
                if c == '\\' && q != '`' {
                    now.extend(rest.next());
                } else if c == q {
                    quote = None;
                }
            }
            None => match c {
                '\'' | '"' | '`' => {
                    quote = Some(c);
                    now.push(c);
                }
                '#' => skip_line(&mut rest, &mut now),
                '-' if rest.peek() == Some(&'-') => {
                    rest.next();
                    if rest.peek().is_none_or(|n| n.is_whitespace()) {
                        skip_line(&mut rest, &mut now);
                    } else {
                        now.push_str("--");
                    }
                }
                '/' if rest.peek() == Some(&'*') => {
                    rest.next();
                    // What the server executes in spite of the comment stays.
                    if matches!(rest.peek(), Some('!' | 'M')) {
                        now.push_str("/*");
                        continue;
                    }
                    let mut last = ' ';
                    for c in rest.by_ref() {
                        if last == '*' && c == '/' {
                            break;
                        }
                        last = c;
                    }
                    now.push(' ');
                }
                ';' => end(&mut now, &mut out),
                c => now.push(c),
            },
        }
    }
    end(&mut now, &mut out);
    out
}

fn skip_line(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, now: &mut String) {
    while rest.next_if(|c| *c != '\n').is_some() {}
    now.push(' ');
}

fn end(now: &mut String, out: &mut Vec<String>) {
    let done = std::mem::take(now);
    if !done.trim().is_empty() {
        out.push(done.trim().to_string());
    }
}

/// The first words of a statement, in capitals, without what opens a conditional comment.
pub fn words(statement: &str, n: usize) -> Vec<String> {
    let text = statement.trim_start();
    let text =
        text.strip_prefix("/*!").or_else(|| text.strip_prefix("/*M!")).map_or(text, |t| t.trim_start_matches(|c: char| c.is_ascii_digit()));
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|w| !w.is_empty()).take(n).map(str::to_uppercase).collect()
}

/// Whether a statement only reads.
pub fn reads(statement: &str) -> bool {
    let first = words(statement, 1);
    matches!(
        first.first().map(String::as_str),
        Some("SELECT" | "SHOW" | "DESCRIBE" | "DESC" | "EXPLAIN" | "WITH" | "TABLE" | "VALUES" | "CHECKSUM" | "CHECK" | "HELP" | "ANALYZE")
    ) && !(first == ["ANALYZE"] && words(statement, 2).get(1).is_some_and(|w| w == "TABLE"))
}

/// The words by which a statement ends or commits a transaction, so that it cannot be in one; `None` when it can.
pub fn commits(statement: &str) -> Option<String> {
    let w = words(statement, 2);
    let (first, second) = (w.first().map_or("", String::as_str), w.get(1).map_or("", String::as_str));
    let shown = || Some(format!("{first} {second}").trim().to_string());
    match (first, second) {
        ("BEGIN" | "COMMIT" | "ROLLBACK" | "START" | "SAVEPOINT" | "RELEASE" | "XA", _) => shown(),
        ("SET", "AUTOCOMMIT" | "TRANSACTION" | "PASSWORD" | "ROLE" | "DEFAULT") => shown(),
        // Temporary tables are the session's own, which ends with the action; their statements are of no use here.
        ("CREATE" | "ALTER" | "DROP" | "RENAME" | "TRUNCATE" | "GRANT" | "REVOKE" | "LOCK" | "UNLOCK" | "FLUSH" | "RESET", _) => shown(),
        (
            "ANALYZE" | "OPTIMIZE" | "REPAIR" | "CACHE" | "LOAD" | "INSTALL" | "UNINSTALL" | "CHANGE" | "STOP" | "PURGE" | "SHUTDOWN"
            | "KILL" | "BACKUP",
            _,
        ) => shown(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_split_where_the_server_would() {
        let sql = "UPDATE t SET a = 'x;\\'y', b = \"--\" -- a comment; here\n; # another;\n/* and; one */ INSERT INTO `a;b` VALUES (1);;";
        assert_eq!(statements(sql), ["UPDATE t SET a = 'x;\\'y', b = \"--\"", "INSERT INTO `a;b` VALUES (1)"]);
        assert_eq!(statements("SELECT 1--1"), ["SELECT 1--1"]);
        assert!(statements(" ; -- nothing").is_empty());
    }

    #[test]
    fn what_commits_by_itself_is_known() {
        for sql in [
            "CREATE TABLE t (i INT)",
            "alter table t add c int",
            "/*!40000 ALTER TABLE t DISABLE KEYS */",
            "COMMIT",
            "SET autocommit = 1",
            "truncate t",
        ] {
            assert!(commits(sql).is_some(), "{sql}");
        }
        for sql in ["INSERT INTO t VALUES (1)", "UPDATE t SET a = 1", "CALL p()", "SET @a = 1", "REPLACE INTO t VALUES (1)", "SELECT 1"] {
            assert_eq!(commits(sql), None, "{sql}");
        }
    }

    #[test]
    fn reading_is_known_by_its_first_word() {
        assert!(reads("select 1") && reads(" SHOW TABLES") && reads("WITH a AS (SELECT 1) SELECT * FROM a"));
        assert!(!reads("DELETE FROM t") && !reads("SET GLOBAL read_only = 0") && !reads("ANALYZE TABLE t") && !reads("CALL p()"));
    }

    #[test]
    fn quoting() {
        assert_eq!(ident("a`b"), "`a``b`");
        assert_eq!(text("it's \\ \n"), "'it''s \\\\ \\n'");
    }
}
