//! What clients and servers said on a host, without anything of the customer's rows.
//!
//! Errors go to the terminal and into the journal for good, and servers like to quote what they choke on. So a line is shown only when its
//! form is known: a server's own error (number, SQLSTATE, message without the values in it), a tool's word for what the system refused,
//! and what our own scripts say. Details, contexts, statements and everything else stay on the host.

/// What our own scripts put before a line.
const OURS: &str = "runbook: ";

/// What a script says when something from outside has ended it or a part of it.
pub(in crate::db) const KILLED: &str = "killed from outside";

/// The system's own words.
const CAUSES: [&str; 13] = [
    "No space left on device",
    "Disk quota exceeded",
    "Permission denied",
    "No such file or directory",
    "Input/output error",
    "Read-only file system",
    "Cannot allocate memory",
    "Too many open files",
    "File too large",
    "Not a directory",
    "Is a directory",
    "Argument list too long",
    "Operation not permitted",
];

/// Errors of MariaDB and MySQL that quote names, and never values or statements.
const NAMING: [u32; 62] = [
    1005, 1007, 1008, 1016, 1021, 1023, 1025, 1026, 1030, 1036, 1040, 1043, 1044, 1045, 1046, 1048, 1049, 1050, 1051, 1053, 1054, 1060,
    1061, 1067, 1072, 1091, 1101, 1114, 1115, 1130, 1142, 1143, 1146, 1153, 1180, 1203, 1205, 1213, 1215, 1226, 1227, 1230, 1264, 1265,
    1267, 1273, 1286, 1290, 1305, 1317, 1356, 1364, 1370, 1406, 1418, 1419, 1449, 1451, 1452, 1568, 1836, 4025,
];

/// PostgreSQL's programs.
const TOOLS: [&str; 5] = ["pg_dump", "pg_restore", "psql", "pg_basebackup", "pg_verifybackup"];

/// What a quoted word of PostgreSQL is the name of, so that it may be shown.
const KINDS: [&str; 27] = [
    "relation",
    "table",
    "view",
    "column",
    "constraint",
    "index",
    "sequence",
    "schema",
    "database",
    "role",
    "user",
    "extension",
    "function",
    "procedure",
    "type",
    "language",
    "tablespace",
    "collation",
    "encoding",
    "file",
    "library",
    "server",
    "wrapper",
    "parameter",
    "trigger",
    "method",
    "publication",
];

/// The lines that may be shown.
pub(in crate::db) fn shown(said: &str) -> Vec<String> {
    let mut lines: Vec<String> = said.lines().filter_map(|l| line(l.trim_end())).collect();
    lines.dedup();
    lines
}

fn line(l: &str) -> Option<String> {
    if let Some(own) = l.strip_prefix(OURS) {
        return Some(own.to_string());
    }
    mysql(l).or_else(|| mysql_dump(l)).or_else(|| postgres(l)).or_else(|| refused(l))
}

/// What the system refused, after the tool's name when it has one.
fn refused(l: &str) -> Option<String> {
    let cause = CAUSES.iter().find(|c| l.contains(**c))?;
    let tool =
        l.split_once(": ").map(|(t, _)| t).filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
    Some(tool.map_or_else(|| (*cause).to_string(), |t| format!("{t}: {cause}")))
}

/// `ERROR 1062 (23000) at line 5: …`
fn mysql(l: &str) -> Option<String> {
    let (head, message) = l.strip_prefix("ERROR ")?.split_once(": ")?;
    let mut words = head.split(' ');
    let number: u32 = words.next()?.parse().ok()?;
    let state = words.next().filter(|s| s.starts_with('(') && s.ends_with(')') && s.len() == 7);
    let state = state.map_or(String::new(), |s| format!(" {s}"));
    Some(format!("ERROR {number}{state}: {}", without_values(number, message)))
}

/// What the dump programs say: `Error 2013: …`, `Got error: 1045: "…" when …`, `Couldn't execute '…': … (1142)`.
fn mysql_dump(l: &str) -> Option<String> {
    let (tool, rest) = l.split_once(": ").filter(|(t, _)| matches!(*t, "mariadb-dump" | "mysqldump"))?;
    if rest.starts_with("Couldn't execute") {
        let message = rest.rfind("': ").and_then(|at| rest.get(at + 3..))?;
        let number = message.rsplit_once(" (").and_then(|(_, n)| n.trim_end_matches(')').parse().ok()).unwrap_or(0);
        return Some(format!("{tool}: {}", without_values(number, message)));
    }
    let (number, message) = rest.strip_prefix("Error ").or_else(|| rest.strip_prefix("Got error: "))?.split_once(": ")?;
    let number = number.parse().ok()?;
    Some(format!("{tool}: error {number}: {}", without_values(number, message)))
}

fn without_values(number: u32, message: &str) -> String {
    // Those of the client itself know no rows.
    if (2000..3000).contains(&number) || NAMING.contains(&number) {
        return message.to_string();
    }
    if number == 1644 {
        return "a trigger or routine refused it; its words are not shown".into();
    }
    let Some((head, _)) = message.split_once(['\'', '"']) else { return message.to_string() };
    let tail = ["' for key '", "' for column `"].iter().find_map(|t| {
        let at = message.rfind(t).filter(|at| *at > head.len())?;
        message.get(at + 1..)
    });
    match tail {
        Some(tail) => format!("{head}(a value){tail}"),
        None => format!("{head}(not shown)"),
    }
}

/// `psql:<stdin>:7: ERROR:  23505: …`, `pg_dump: error: …`
fn postgres(l: &str) -> Option<String> {
    for plain in [
        "connection to server",
        "server closed the connection unexpectedly",
        "could not translate host name",
        "SSL SYSCALL error",
        "fe_sendauth: no password supplied",
    ] {
        // A server that refuses says so behind its own mark.
        if l.contains(plain) && ours_is_before(l, plain) {
            let text = l.get(l.find(plain)?..)?;
            return Some(text.to_string());
        }
    }
    for mark in ["ERROR:  ", "FATAL:  ", "PANIC:  "] {
        if let Some(at) = l.find(mark)
            && ours_is_before(l, mark)
        {
            let message = l.get(at + mark.len()..)?;
            return Some(format!("{}{}", mark.replace("  ", " "), without_quotes(message)));
        }
    }
    let (tool, rest) = l.split_once(": error: ").filter(|(t, _)| TOOLS.contains(t))?;
    Some(format!("{tool}: {}", without_quotes(rest)))
}

/// Whether only a tool's name and place stand before that.
fn ours_is_before(l: &str, what: &str) -> bool {
    let head = l.find(what).and_then(|at| l.get(..at)).unwrap_or(l).trim_end();
    head.is_empty() || TOOLS.iter().any(|t| head.strip_prefix(t).is_some_and(|rest| rest.starts_with(':'))) && head.ends_with(':')
}

/// Names are kept; what else is quoted, and all that follows it, is not.
fn without_quotes(message: &str) -> String {
    let (state, text) = match message.split_once(": ") {
        Some((s, rest)) if s.len() == 5 && s.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()) => (s, rest),
        _ => ("", message),
    };
    let before = if state.is_empty() { String::new() } else { format!("{state}: ") };
    // What routines of the customer raise may have anything in it.
    if state.starts_with("P0") {
        return format!("{before}a routine refused it; its words are not shown");
    }
    if let Some(at) = text.find(": 0x") {
        return format!("{before}{}", text.get(..at).unwrap_or(""));
    }
    let mut from = 0;
    while let Some(open) = text.get(from..).and_then(|t| t.find('"')).map(|at| at + from) {
        let word = text.get(..open).unwrap_or("").trim_end().rsplit(' ').next().unwrap_or("");
        let close = text.get(open + 1..).and_then(|t| t.find('"')).map(|at| at + open + 1);
        match close {
            Some(close) if KINDS.contains(&word) => from = close + 1,
            _ => return format!("{before}{}(not shown)", text.get(..open).unwrap_or("")),
        }
    }
    format!("{before}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_rows_and_no_statements_are_shown() {
        for (said, want) in [
            // What MariaDB and MySQL say.
            (
                "ERROR 1062 (23000) at line 7: Duplicate entry 'anna@example.com' for key 'mail'",
                "ERROR 1062 (23000): Duplicate entry (a value) for key 'mail'",
            ),
            (
                "ERROR 1062 (23000) at line 7: Duplicate entry 'x' for key 'SECRET' for key 'mail'",
                "ERROR 1062 (23000): Duplicate entry (a value) for key 'mail'",
            ),
            (
                "ERROR 1366 (22007) at line 7: Incorrect integer value: 'SECRET' for column `shop`.`t`.`a` at row 3",
                "ERROR 1366 (22007): Incorrect integer value: (a value) for column `shop`.`t`.`a` at row 3",
            ),
            (
                "ERROR 1064 (42000) at line 9: You have an error in your SQL syntax; check the manual for the right syntax to use near '(3070,'SECRET\n(3071,'SECRET')\n' at line 1",
                "ERROR 1064 (42000): You have an error in your SQL syntax; check the manual for the right syntax to use near (not shown)",
            ),
            (
                "ERROR 1292 (22007) at line 1: Truncated incorrect DOUBLE value: 'SECRET",
                "ERROR 1292 (22007): Truncated incorrect DOUBLE value: (not shown)",
            ),
            (
                "ERROR 1644 (45000) at line 1: SECRET is no customer",
                "ERROR 1644 (45000): a trigger or routine refused it; its words are not shown",
            ),
            (
                "ERROR 2013 (HY000) at line 70: Lost connection to server during query",
                "ERROR 2013 (HY000): Lost connection to server during query",
            ),
            (
                "ERROR 1045 (28000): Access denied for user 'app'@'localhost'",
                "ERROR 1045 (28000): Access denied for user 'app'@'localhost'",
            ),
            ("--------------\nINSERT INTO t VALUES ('SECRET')\n--------------", ""),
            (
                "mariadb-dump: Couldn't execute 'SELECT 'SECRET'': Access denied for user 'a'@'b' (1142)",
                "mariadb-dump: Access denied for user 'a'@'b' (1142)",
            ),
            (
                "mysqldump: Error 2013: Lost connection to server during query when dumping table `t` at row: 5",
                "mysqldump: error 2013: Lost connection to server during query when dumping table `t` at row: 5",
            ),
            (
                "mariadb-dump: Got error: 1049: \"Unknown database 'x'\" when selecting the database",
                "mariadb-dump: error 1049: \"Unknown database 'x'\" when selecting the database",
            ),
            // What PostgreSQL says.
            (
                "psql:<stdin>:12: ERROR:  23505: duplicate key value violates unique constraint \"mail\"\nDETAIL:  Key (mail)=(SECRET) already exists.\nCONTEXT:  COPY t, line 1: \"SECRET\"\nSCHEMA NAME:  public",
                "ERROR: 23505: duplicate key value violates unique constraint \"mail\"",
            ),
            (
                "ERROR:  22P02: invalid input syntax for type integer: \"SECRET\"\nCONTEXT:  COPY t, line 1, column a: \"SECRET\"",
                "ERROR: 22P02: invalid input syntax for type integer: (not shown)",
            ),
            (
                "ERROR:  22021: invalid byte sequence for encoding \"UTF8\": 0xff",
                "ERROR: 22021: invalid byte sequence for encoding \"UTF8\"",
            ),
            ("ERROR:  42601: syntax error at or near \"SECRET\"\nLINE 1: SECRET", "ERROR: 42601: syntax error at or near (not shown)"),
            ("ERROR:  P0001: SECRET", "ERROR: P0001: a routine refused it; its words are not shown"),
            ("ERROR:  role \"app\" does not exist", "ERROR: role \"app\" does not exist"),
            (
                "pg_dump: error: Dumping the contents of table \"t\" failed: PQgetResult() failed.\npg_dump: detail: Error message from server: ERROR:  missing chunk\npg_dump: detail: Command was: COPY public.t (a) TO stdout;",
                "pg_dump: Dumping the contents of table \"t\" failed: PQgetResult() failed.\nERROR: missing chunk",
            ),
            (
                "psql: error: connection to server on socket \"/run/s\" failed: FATAL:  no such user",
                "connection to server on socket \"/run/s\" failed: FATAL:  no such user",
            ),
            (
                "psql:<stdin>:9: server closed the connection unexpectedly\n\tThis probably means",
                "server closed the connection unexpectedly",
            ),
            (
                "pg_basebackup: error: connection to server on socket \"/run/s\" failed: FATAL:  no pg_hba.conf entry for replication connection from host \"[local]\", user \"postgres\"",
                "connection to server on socket \"/run/s\" failed: FATAL:  no pg_hba.conf entry for replication connection from host \"[local]\", user \"postgres\"",
            ),
            ("pg_verifybackup: error: checksum mismatch for file \"base/5/1\"", "pg_verifybackup: checksum mismatch for file \"base/5/1\""),
            ("SECRET ERROR:  23505: SECRET", ""),
            // What the system and the scripts say.
            ("zstd: /*stdin*\\: No space left on device (SECRET)", "zstd: No space left on device"),
            ("SECRET: No space left on device", "No space left on device"),
            ("runbook: missing tool zstd", "missing tool zstd"),
        ] {
            let got = shown(said).join("\n");
            assert_eq!(got, want, "{said}");
            assert!(!got.contains("SECRET"), "{got}");
        }
    }
}
