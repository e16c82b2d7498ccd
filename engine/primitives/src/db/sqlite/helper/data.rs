//! Queries, statements with a marker, and facts.

use std::collections::BTreeMap;
use std::path::Path;

use runbook_core::{Code, Error, Result, Value};
use rusqlite::fallible_iterator::FallibleIterator as _;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Batch, Connection, OptionalExtension as _, Statement, ToSql, TransactionBehavior, params};
use serde_json::Value as Json;

use super::open::{self, sql};
use super::{digest, guard, state};
use crate::db::sqlite::proto::Executed;

/// The most that a query may give back: results are kept in the run's record.
const MOST: usize = 2 << 20;

/// Runs a statement that only reads, on a read-only connection; gives its rows as maps.
///
/// # Errors
/// `RB0500`, `RB0501`.
pub fn query(path: &Path, text: &str, given: &Json) -> Result<Json> {
    let conn = open::read(path)?;
    let err = sql(path, "query");
    let mut batch = Batch::new(&conn, text);
    let Some(mut stmt) = batch.next().map_err(&err)? else {
        return Err(Error::new(Code::DB_QUERY, "the query is empty"));
    };
    if batch.next().map_err(&err)?.is_some() {
        return Err(Error::new(Code::DB_QUERY, "a query is one statement, and this text has several").hint("make a query of each"));
    }
    if !stmt.readonly() {
        return Err(
            Error::new(Code::DB_QUERY, "a query only reads, and this statement writes").hint("use execute(…) for statements that write")
        );
    }
    bind(&mut stmt, given)?;
    let names: Vec<String> = stmt.column_names().map(str::to_string).collect();
    let mut rows = stmt.raw_query();
    let (mut out, mut size) = (Vec::new(), 0);
    while let Some(r) = rows.next().map_err(&err)? {
        let mut row = BTreeMap::new();
        for (i, name) in names.iter().enumerate() {
            let v = r.get_ref(i).map_err(&err)?;
            size += name.len() + 8 + if let ValueRef::Text(b) | ValueRef::Blob(b) = v { b.len() * 4 / 3 } else { 8 };
            row.insert(name.clone(), digest::value(v));
        }
        if size > MOST {
            return Err(Error::new(
                Code::DB_QUERY,
                format!("the query's result is larger than {}", runbook_core::units::show_bytes(MOST as u64)),
            )
            .hint("results are kept in the run's record: use LIMIT, fewer columns, or count and sum in the query"));
        }
        out.push(Value::Map(row).to_json());
    }
    Ok(Json::Array(out))
}

struct Param(Value);

impl ToSql for Param {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match &self.0 {
            Value::Unit => ToSqlOutput::Borrowed(ValueRef::Null),
            Value::Bool(b) => i64::from(*b).into(),
            Value::Int(i) => (*i).into(),
            Value::Float(f) => (*f).into(),
            Value::Str(s) => ToSqlOutput::Borrowed(ValueRef::Text(s.as_bytes())),
            Value::Blob(b) => ToSqlOutput::Borrowed(ValueRef::Blob(b)),
            Value::Bytes(n) => i64::try_from(*n).unwrap_or(i64::MAX).into(),
            Value::Time(t) => ToSqlOutput::Owned(rusqlite::types::Value::Text(runbook_core::clock::rfc3339(*t))),
            other => {
                let why = format!("a value of type {} cannot be a parameter", other.type_name());
                return Err(rusqlite::Error::ToSqlConversionFailure(why.into()));
            }
        })
    }
}

fn bind(stmt: &mut Statement<'_>, given: &Json) -> Result<()> {
    let wrong = |why: String| Error::new(Code::DB_QUERY, why);
    let sql_err = |e: rusqlite::Error| wrong(format!("a parameter cannot be used: {e}"));
    let want = stmt.parameter_count();
    match Value::from_json(given)? {
        Value::Unit if want == 0 => Ok(()),
        Value::List(list) if list.len() == want => {
            for (i, v) in list.into_iter().enumerate() {
                stmt.raw_bind_parameter(i + 1, Param(v)).map_err(sql_err)?;
            }
            Ok(())
        }
        Value::Map(map) => {
            let mut used = 0;
            for i in 1..=want {
                let name = stmt.parameter_name(i).unwrap_or("?").to_string();
                let v = name.get(1..).and_then(|n| map.get(n)).ok_or_else(|| wrong(format!("the parameter {name} has no value")))?;
                used += 1;
                stmt.raw_bind_parameter(i, Param(v.clone())).map_err(sql_err)?;
            }
            if used < map.len() {
                return Err(wrong(format!("{} values were given for {used} parameters", map.len())));
            }
            Ok(())
        }
        Value::List(list) => Err(wrong(format!("the statement has {want} parameters, and {} values were given", list.len()))),
        _ => Err(wrong(format!("the statement has {want} parameters, and no values were given"))),
    }
}

/// Runs statements in one transaction together with a marker row, so that it can be told afterwards whether they took effect.
/// A second call with the same marker changes nothing and gives the first one's result: the marker's primary key decides, also
/// when a helper of a lost connection is still at work.
///
/// # Errors
/// `RB0500`, `RB0501`.
pub fn execute(path: &Path, text: &str, given: &Json, action: &str, time: &str) -> Result<Executed> {
    let mut conn = open::write(path)?;
    let err = sql(path, "execute on");
    // Not taken back by hand on failure: closing the connection does that, as does the end of this process.
    conn.execute_batch("BEGIN IMMEDIATE").map_err(&err)?;
    if let Some(done) = marker(&conn, path, action)? {
        return Ok(done);
    }
    let before = conn.total_changes();
    run(&mut conn, path, text, given)?;
    let done = Executed { rows: conn.total_changes() - before, last_id: conn.last_insert_rowid() };
    let json = serde_json::to_string(&done).map_err(|e| Error::internal(e.to_string()))?;
    conn.execute_batch(
        "CREATE TABLE IF NOT EXISTS _runbook_actions (action_id TEXT PRIMARY KEY, time TEXT NOT NULL, result TEXT NOT NULL)",
    )
    .map_err(&err)?;
    conn.execute("INSERT INTO _runbook_actions (action_id, time, result) VALUES (?1, ?2, ?3)", params![action, time, json])
        .map_err(&err)?;
    conn.execute_batch("COMMIT").map_err(&err)?;
    Ok(done)
}

fn run(conn: &mut Connection, path: &Path, text: &str, given: &Json) -> Result<()> {
    let err = |e: rusqlite::Error| {
        if guard::refused(&e) {
            return Error::new(Code::DB_QUERY, format!("{} refuses the write: {e}", path.display()))
                .hint("the database is fenced, or a copy that is not promoted");
        }
        open::explain(path, "execute on", &e)
    };
    // COMMIT in the middle would part the statements from their marker; ATTACH would reach files that are not in the transaction.
    let no_escape = |cx: AuthContext<'_>| match cx.action {
        AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } | AuthAction::Attach { .. } | AuthAction::Detach { .. } => {
            Authorization::Deny
        }
        _ => Authorization::Allow,
    };
    conn.authorizer(Some(no_escape)).map_err(err)?;
    let result = (|| {
        let mut batch = Batch::new(conn, text);
        let mut n = 0;
        loop {
            let stmt = batch.next().map_err(|e| {
                if e.sqlite_error_code() == Some(rusqlite::ErrorCode::AuthorizationForStatementDenied) {
                    let why =
                        "execute runs in a transaction of its own: BEGIN, COMMIT, ROLLBACK, SAVEPOINT and ATTACH cannot be used in it";
                    return Error::new(Code::DB_QUERY, why);
                }
                err(e)
            })?;
            let Some(mut stmt) = stmt else { break };
            n += 1;
            if n > 1 && !given.is_null() {
                return Err(Error::new(Code::DB_QUERY, "parameters go with one statement, and this text has several"));
            }
            bind(&mut stmt, given)?;
            let mut rows = stmt.raw_query();
            while rows.next().map_err(err)?.is_some() {}
        }
        if n == 0 {
            return Err(Error::new(Code::DB_QUERY, "there is no statement to execute"));
        }
        Ok(())
    })();
    conn.authorizer(None::<fn(AuthContext<'_>) -> Authorization>).map_err(err)?;
    result
}

fn marker(conn: &Connection, path: &Path, action: &str) -> Result<Option<Executed>> {
    if !state::has(conn, path, state::ACTIONS)? {
        return Ok(None);
    }
    let found: Option<String> = conn
        .query_row("SELECT result FROM _runbook_actions WHERE action_id = ?1", [action], |r| r.get(0))
        .optional()
        .map_err(sql(path, "look for the marker in"))?;
    found
        .map(|text| {
            serde_json::from_str(&text)
                .map_err(|e| Error::new(Code::DB_QUERY, format!("the marker of {action} in {} cannot be read: {e}", path.display())))
        })
        .transpose()
}

/// The result kept with a marker. Takes the write lock first: a helper of a lost connection that is still at work must have ended
/// before "there is no marker" means that nothing happened.
///
/// # Errors
/// `RB0500`, `RB0501`.
pub fn executed(path: &Path, action: &str) -> Result<Option<Executed>> {
    let mut conn = open::write(path)?;
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql(path, "look for the marker in"))?;
    marker(&tx, path, action)
}

/// Version, size, settings, tables, and what the database is to the engine.
///
/// # Errors
/// `RB0500`, `RB0501`.
pub fn facts(path: &Path) -> Result<Json> {
    let conn = open::read(path)?;
    let pragma = |name: &str| -> Result<Value> {
        conn.pragma_query_value(None, name, |r| Ok(digest::value(r.get_ref(0)?))).map_err(sql(path, "read the settings of"))
    };
    let int = |v: Value| v.as_int().unwrap_or(0).unsigned_abs();
    let state = state::state(path)?;
    let tables: Vec<Value> = digest::tables(&conn, path)?.into_iter().filter(|t| t != "sqlite_sequence").map(Value::from).collect();
    let bytes = int(pragma("page_count")?).saturating_mul(int(pragma("page_size")?));
    let fields = BTreeMap::from([
        ("version".to_string(), Value::from(rusqlite::version())),
        ("bytes".to_string(), Value::Bytes(bytes)),
        ("page_size".to_string(), pragma("page_size")?),
        ("journal_mode".to_string(), pragma("journal_mode")?),
        ("encoding".to_string(), pragma("encoding")?),
        ("user_version".to_string(), pragma("user_version")?),
        ("tables".to_string(), Value::List(tables)),
        ("fence".to_string(), Value::from(state.fence.as_ref().map(|f| f.id.clone()))),
        ("copy_of".to_string(), Value::from(state.copy.as_ref().map(|c| c.origin.clone()))),
        ("promoted".to_string(), Value::from(state.promoted.is_some())),
    ]);
    Ok(Value::Map(fields).to_json())
}
