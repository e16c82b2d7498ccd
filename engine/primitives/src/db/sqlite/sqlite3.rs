//! The host's own `sqlite3` command, where the helper cannot run: queries, marked statements, row counts, copies to a file.
//!
//! Everything that moves writes from one side to the other needs the helper. Statements and parameters go in by standard input.
//! Rows come in the `quote` mode, which keeps types: `1`, `1.0`, `'text'`, `X'00'`, `NULL`.

use std::collections::BTreeMap;

use runbook_core::digest::{hex, unhex};
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result, Value};
use serde_json::Value as Json;

use super::helper::{ident, is_internal, literal};
use super::link::{Pipe, path};
use super::proto::{Digest, Executed, Placed, Request, Table};
use crate::db::driver::Db;
use crate::ssh::{self, Exec, Session};

struct Host<'a> {
    cx: &'a Cx,
    session: &'a Session,
    db: &'a Db,
}

/// Does a request.
///
/// # Errors
/// `RB0501` from the database; `RB0507` for what this way cannot do.
pub async fn call(cx: &Cx, session: &Session, db: &Db, request: &Request) -> Result<Json> {
    let host = Host { cx, session, db };
    match request {
        Request::Query { sql, params } => {
            let rows = host.rows(sql, params).await?;
            Ok(Value::List(rows.into_iter().map(Value::Map).collect()).to_json())
        }
        Request::Execute { sql, params, action, time } => host.execute(sql, params, action, time).await,
        Request::Executed { action } => host.executed(action).await,
        Request::Digest { checksums: false } => to_json(&host.counts().await?),
        Request::CopyFile { to } => host.copy_file(to).await,
        _ => Err(cannot()),
    }
}

/// Does a request as a stream.
///
/// # Errors
/// `RB0507`: this way has none.
pub async fn open(_cx: &Cx, _session: &Session, _db: &Db, _request: &Request) -> Result<Pipe> {
    Err(cannot())
}

fn cannot() -> Error {
    Error::new(Code::DB_HELPER, "this needs the database helper, and the host can only run its own sqlite3")
        .hint("run the controller on the host's platform; with sqlite3 alone there are query, execute, counts and copy_to_file")
}

fn to_json(v: &impl serde::Serialize) -> Result<Json> {
    serde_json::to_value(v).map_err(|e| Error::internal(e.to_string()))
}

impl Host<'_> {
    /// A command on the database's host, as root where its file is to be read so.
    fn exec(&self, script: String) -> Exec {
        Exec { sudo: self.db.settings.flag("sudo"), ..Exec::new(script) }
    }

    /// Feeds `sqlite3`; gives its output, or its complaint as an error.
    async fn feed(&self, options: &str, input: String) -> Result<String> {
        let file = match path(self.db)? {
            // An absolute or `./` path can be taken neither for an option nor for a URI.
            p if p.starts_with('/') => ssh::quote(p),
            p => p.strip_prefix("~/").map_or_else(|| ssh::quote(&format!("./{p}")), |rest| format!("\"$HOME\"/{}", ssh::quote(rest))),
        };
        let script = format!(
            "[ -f {file} ] || {{ echo 'there is no such file' >&2; exit 14; }}; exec sqlite3 -batch -bail -init /dev/null {options} {file}"
        );
        let input = format!(".timeout 30000\nPRAGMA foreign_keys = ON;\n{input}");
        let done = self.session.exec(self.cx, Exec { stdin: Some(input.into_bytes()), ..self.exec(script) }).await?;
        if done.status == 0 {
            return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
        }
        let text = String::from_utf8_lossy(&done.stderr).trim().to_string();
        let (code, name) = (if done.status == 14 { Code::DB_CONNECT } else { Code::DB_QUERY }, &self.db.name);
        Err(Error::new(code, format!("sqlite3 on \"{name}\" failed: {text}")).retryable(text.contains("locked")))
    }

    async fn rows(&self, sql: &str, params: &Json) -> Result<Vec<BTreeMap<String, Value>>> {
        let input = format!("{}.headers on\n.mode quote\n{sql}\n;\n", bindings(params)?.0);
        let text = self
            .feed("-readonly", input)
            .await
            .map_err(|e| if e.message.contains("readonly database") { e.hint("use execute(…) for statements that write") } else { e })?;
        let mut lines = parse(&text)?.into_iter();
        let Some(head) = lines.next() else { return Ok(Vec::new()) };
        let names: Vec<String> = head.into_iter().map(|v| v.as_str().unwrap_or("").to_string()).collect();
        Ok(lines.map(|row| names.iter().cloned().zip(row).collect()).collect())
    }

    async fn executed(&self, action: &str) -> Result<Json> {
        // The lock first: a command of a lost connection may still be at work.
        let input = format!(
            "BEGIN IMMEDIATE;\nCREATE TABLE IF NOT EXISTS _runbook_actions (action_id TEXT PRIMARY KEY, time TEXT NOT NULL, result TEXT NOT NULL);\n\
             .headers off\n.mode quote\nSELECT result FROM _runbook_actions WHERE action_id = {};\nROLLBACK;\n",
            literal(action)
        );
        let rows = parse(&self.feed("", input).await?)?;
        match rows.first().and_then(|r| r.first()).and_then(Value::as_str) {
            Some(text) => {
                let done: Executed = serde_json::from_str(text)
                    .map_err(|e| Error::new(Code::DB_QUERY, format!("the marker of {action} cannot be read: {e}")))?;
                to_json(&done)
            }
            None => Ok(Json::Null),
        }
    }

    async fn execute(&self, sql: &str, params: &Json, action: &str, time: &str) -> Result<Json> {
        if let done @ Json::Object(_) = self.executed(action).await? {
            return Ok(done);
        }
        // Cautious rather than clever: also a trigger's END is refused here, since an END of its own would commit.
        const ENDS: [&str; 8] = ["BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE", "ATTACH", "DETACH"];
        let first = |s: &str| s.split_whitespace().next().unwrap_or("").to_uppercase();
        if sql.split(';').any(|s| ENDS.contains(&first(s).as_str())) || sql.lines().any(|l| l.trim_start().starts_with('.')) {
            return Err(Error::new(
                Code::DB_QUERY,
                "execute runs in a transaction of its own: transaction statements, ATTACH and the shell's own commands cannot be used in it",
            ));
        }
        let (bind, n) = bindings(params)?;
        let input = format!(
            "{bind}BEGIN IMMEDIATE;\n.mode list\n{sql}\n;\n\
             CREATE TABLE IF NOT EXISTS _runbook_actions (action_id TEXT PRIMARY KEY, time TEXT NOT NULL, result TEXT NOT NULL);\n\
             INSERT INTO _runbook_actions VALUES ({}, {}, printf('{{\"rows\":%d,\"last_id\":%d}}', total_changes() - {n}, last_insert_rowid()));\n\
             COMMIT;\n",
            literal(action),
            literal(time)
        );
        self.feed("", input).await?;
        // Read back rather than taken from the output, in which the statements may have printed as well.
        match self.executed(action).await? {
            done @ Json::Object(_) => Ok(done),
            _ => Err(Error::new(Code::DB_QUERY, format!("the statements on \"{}\" left no marker", self.db.name))),
        }
    }

    async fn counts(&self) -> Result<Digest> {
        let mut out = Digest::default();
        let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name";
        for row in self.rows(&sql.replace("sqlite_schema", "sqlite_master"), &Json::Null).await? {
            let Some(name) = row.get("name").and_then(Value::as_str).filter(|n| !is_internal(n)) else { continue };
            let counted = self.rows(&format!("SELECT count(*) AS n FROM {}", ident(name)), &Json::Null).await?;
            let rows = counted.first().and_then(|r| r.get("n")).and_then(Value::as_int).unwrap_or(0);
            out.tables.insert(name.to_string(), Table { rows: rows.unsigned_abs(), sum: String::new() });
        }
        Ok(out)
    }

    async fn copy_file(&self, to: &str) -> Result<Json> {
        let rows = self.counts().await?.rows();
        let to = if to.starts_with('/') { to.to_string() } else { format!("./{to}") };
        let temp = format!("{to}.runbook-{}", self.cx.action_id);
        let vacuum = format!("VACUUM INTO {};\n", literal(&temp));
        let (temp, to) = (ssh::quote(&temp), ssh::quote(&to));
        self.session.exec(self.cx, self.exec(format!("mkdir -p \"$(dirname {to})\" && rm -f {temp}"))).await?;
        // Not the shell's .backup, which begins again whenever a writer comes in between.
        self.feed("", vacuum).await?;
        let done = self.session.exec(self.cx, self.exec(format!("chmod 600 {temp} && mv -f {temp} {to} && wc -c < {to}"))).await?;
        let size = String::from_utf8_lossy(&done.stdout).trim().parse().map_err(|_| {
            Error::new(Code::DB_COPY, format!("the copy cannot be put in place: {}", String::from_utf8_lossy(&done.stderr).trim()))
        })?;
        to_json(&Placed { rows, size, changed: true, stamp: String::new() })
    }
}

/// The shell's input that binds parameters, and how many rows that changes.
fn bindings(params: &Json) -> Result<(String, usize)> {
    let named: Vec<(String, Value)> = match Value::from_json(params)? {
        Value::Unit => return Ok((String::new(), 0)),
        Value::List(l) => l.into_iter().enumerate().map(|(i, v)| (format!("?{}", i + 1), v)).collect(),
        Value::Map(m) => m.into_iter().flat_map(|(k, v)| [':', '@', '$'].map(|p| (format!("{p}{k}"), v.clone()))).collect(),
        other => return Err(Error::new(Code::DB_QUERY, format!("parameters are an array or a map, not {}", other.type_name()))),
    };
    let mut out = String::from(".parameter init\n");
    for (name, v) in &named {
        let v = match v {
            Value::Unit => "NULL".into(),
            Value::Bool(b) => i64::from(*b).to_string(),
            Value::Int(i) => i.to_string(),
            Value::Float(f) => format!("{f:?}"),
            // By its bytes: a text may hold what the shell would take for its own commands.
            Value::Str(s) => format!("CAST(X'{}' AS TEXT)", hex(s.as_bytes())),
            Value::Blob(b) => format!("X'{}'", hex(b)),
            Value::Bytes(n) => n.to_string(),
            Value::Time(t) => literal(&runbook_core::clock::rfc3339(*t)),
            other => return Err(Error::new(Code::DB_QUERY, format!("a value of type {} cannot be a parameter", other.type_name()))),
        };
        out.push_str(&format!("INSERT OR REPLACE INTO temp.sqlite_parameters (key, value) VALUES ({}, {v});\n", literal(name)));
    }
    Ok((out, named.len()))
}

/// Reads rows in the `quote` mode.
fn parse(text: &str) -> Result<Vec<Vec<Value>>> {
    let bad = || Error::new(Code::DB_HELPER, "the output of sqlite3 is not understood").hint("is it 3.33 or newer?");
    let (mut rows, mut row) = (Vec::new(), Vec::new());
    let mut rest = text;
    while !rest.is_empty() {
        let (value, after) = if let Some(quoted) = rest.strip_prefix('\'') {
            let (s, after) = until_quote(quoted).ok_or_else(bad)?;
            (Value::Str(s), after)
        } else {
            let end = rest.find([',', '\n']).unwrap_or(rest.len());
            let (word, after) = rest.split_at_checked(end).ok_or_else(bad)?;
            (word_value(word.trim_end_matches('\r')).ok_or_else(bad)?, after)
        };
        row.push(value);
        rest = match after.chars().next() {
            Some(',') => after.get(1..).unwrap_or(""),
            Some('\n') => {
                rows.push(std::mem::take(&mut row));
                after.get(1..).unwrap_or("")
            }
            Some('\r') => after.get(1..).unwrap_or(""),
            None => after,
            Some(_) => return Err(bad()),
        };
    }
    if !row.is_empty() {
        rows.push(row);
    }
    Ok(rows)
}

fn until_quote(text: &str) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut rest = text;
    loop {
        let (before, after) = rest.split_once('\'')?;
        out.push_str(before);
        match after.strip_prefix('\'') {
            Some(more) => {
                out.push('\'');
                rest = more;
            }
            None => return Some((out, after)),
        }
    }
}

fn word_value(word: &str) -> Option<Value> {
    if word == "NULL" {
        return Some(Value::Unit);
    }
    if let Some(digits) = word.strip_prefix("X'").or_else(|| word.strip_prefix("x'")) {
        return unhex(digits.strip_suffix('\'')?).map(Value::Blob);
    }
    word.parse().map(Value::Int).ok().or_else(|| word.parse().map(Value::Float).ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_in_quote_mode_keep_their_types() {
        let rows = parse("'i','t'\n1,'it''s\nx, y'\nNULL,X'00ff'\n2.0,1.5e+300\n-9223372036854775808,''\n").unwrap();
        assert_eq!(
            rows,
            [
                vec![Value::from("i"), "t".into()],
                vec![Value::Int(1), "it's\nx, y".into()],
                vec![Value::Unit, Value::Blob(vec![0, 255])],
                vec![Value::Float(2.0), Value::Float(1.5e300)],
                vec![Value::Int(i64::MIN), "".into()],
            ]
        );
        for bad in ["'open", "what", "X'0g'", "'a'b"] {
            assert_eq!(parse(bad).unwrap_err().code, Code::DB_HELPER, "{bad}");
        }
    }

    #[test]
    fn a_parameter_is_never_a_command() {
        let (text, n) = bindings(&json!(["\n.shell id\n", { "$": "blob", "v": "AP8=" }, null])).unwrap();
        assert_eq!(n, 3);
        assert!(!text.contains("\n.shell"));
        assert!(text.contains("X'00ff'") && text.contains("VALUES ('?3', NULL)"), "{text}");
    }
}
