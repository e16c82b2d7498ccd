//! `query`, `execute`, `facts`.

use std::collections::BTreeMap;

use mysql_async::Row;
use mysql_async::prelude::Queryable as _;
use runbook_core::clock::rfc3339;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result, Value};

use super::connect::{Named, Sess, get, server, session};
use super::sql::{commits, ident, reads, statements, text};
use super::{state, value};
use crate::db::driver::{Db, Executed};

/// The table with a row for every action, in the database itself, so that it belongs to the same transaction.
pub const ACTIONS: &str = "_runbook_actions";

/// What a script's result may weigh, roughly; the journal keeps it.
const LARGEST: usize = 2 << 20;

/// Makes the inventory's database the session's own, when there is one.
pub async fn enter(s: &mut Sess, db: &Db) -> Result<()> {
    match db.settings.str("database") {
        Some(name) => s.run(format!("USE {}", ident(name))).await.map(drop).map_err(|e| Error { code: Code::DB_CONNECT, ..e }),
        None => Ok(()),
    }
}

pub async fn query(cx: &Cx, db: &Db, sql: &str, params: &Value) -> Result<Vec<Value>> {
    let parts = statements(sql);
    let [statement] = parts.as_slice() else {
        return Err(Error::new(Code::DB_QUERY, format!("query takes one statement, not {}", parts.len())).host(&db.host));
    };
    if !reads(statement) {
        let first = super::sql::words(statement, 1).join("");
        return Err(Error::new(Code::DB_QUERY, format!("query only reads, and {first} does more"))
            .hint("use execute(…) for statements that write")
            .host(&db.host));
    }
    let mut s = session(cx, db).await?;
    enter(&mut s, db).await?;
    // The server itself refuses what writes in spite of its first word, such as a function.
    s.run("START TRANSACTION READ ONLY").await?;
    let params = value::params(params)?;
    let host = db.host.clone();
    let work = async {
        let bare = params == mysql_async::Params::Empty;
        let conn = s.conn()?;
        let found: std::result::Result<Vec<Row>, _> = conn.exec(statement.as_str(), params).await;
        match found {
            // Not every statement can be prepared.
            Err(e) if bare && matches!(super::errors::number(&e), 1295 | 1064 | 1615) => {
                conn.query(statement.as_str()).await.map_err(|e| s.failed(&e))
            }
            found => found.map_err(|e| s.failed(&e)),
        }
    };
    let rows = tokio::select! {
        rows = work => rows,
        () = cx.cancel.cancelled() => return Err(Error::new(Code::ABORTED, "stopped in the middle of a query").host(host)),
    }
    .map_err(|e| if e.details.get("code").is_some_and(|c| c == "1792") { e.hint("use execute(…) for statements that write") } else { e })?;
    s.close().await;
    let mut weight = 0;
    let mut out = Vec::with_capacity(rows.len());
    for row in rows {
        let columns = row.columns();
        let mut map = BTreeMap::new();
        for (column, v) in columns.iter().zip(row.unwrap()) {
            if let mysql_async::Value::Bytes(b) = &v {
                weight += b.len();
            }
            weight += 16;
            map.insert(column.name_str().into_owned(), value::value(column, v));
        }
        if weight > LARGEST {
            return Err(Error::new(Code::DB_QUERY, "the result is larger than 2 MiB").host(&db.host).hint("ask for fewer rows or columns"));
        }
        out.push(Value::Map(map));
    }
    Ok(out)
}

pub async fn execute(cx: &Cx, db: &Db, sql: &str, params: &Value) -> Result<Executed> {
    let parts = statements(sql);
    if let Some(what) = parts.iter().find_map(|p| commits(p)) {
        return Err(Error::new(
            Code::DB_QUERY,
            format!("execute runs in one transaction, and {what} ends or commits it: {} cannot take it back", db.settings.kind),
        )
        .host(&db.host)
        .hint("change definitions in a step of its own with a command that may be repeated (IF NOT EXISTS), by host(…).converge"));
    }
    db.settings.need("database")?;
    let params = value::params(params)?;
    if parts.len() != 1 && params != mysql_async::Params::Empty {
        return Err(Error::new(Code::DB_QUERY, format!("parameters need one statement, not {}", parts.len())).host(&db.host));
    }
    let mut s = session(cx, db).await?;
    enter(&mut s, db).await?;
    if let Some(done) = marker(cx, &mut s).await? {
        return Ok(done);
    }
    s.run(format!(
        "CREATE TABLE IF NOT EXISTS {ACTIONS} (action_id VARCHAR(64) CHARACTER SET ascii PRIMARY KEY, time VARCHAR(32) NOT NULL, result VARCHAR(255) NOT NULL) ENGINE=InnoDB"
    ))
    .await?;
    let mut done = Executed { rows: 0, last_id: 0 };
    let (id, time) = (cx.action_id.to_string(), rfc3339(cx.clock.now()));
    // The marker first: its key holds off a second try of the same action until this one has ended.
    s.run("SET autocommit = 0").await?;
    s.run(format!("INSERT INTO {ACTIONS} VALUES ({}, {}, '')", text(&id), text(&time))).await?;
    let host = db.host.clone();
    let work = async {
        for part in &parts {
            let conn = s.conn()?;
            let (rows, last) = if params == mysql_async::Params::Empty {
                conn.query_drop(part.as_str()).await
            } else {
                conn.exec_drop(part.as_str(), params.clone()).await
            }
            .map(|()| (conn.affected_rows(), conn.last_insert_id().unwrap_or(0)))
            .map_err(|e| s.failed(&e))?;
            done.rows += rows;
            if last != 0 {
                done.last_id = i64::try_from(last).unwrap_or(i64::MAX);
            }
        }
        Ok::<(), Error>(())
    };
    tokio::select! {
        r = work => r?,
        () = cx.cancel.cancelled() => return Err(Error::new(Code::ABORTED, "stopped in the middle of statements; they are rolled back").host(host)),
    }
    let result = format!("{{\"rows\":{},\"last_id\":{}}}", done.rows, done.last_id);
    // No row means that something (a procedure) has committed or rolled back by itself.
    let marked = s.run(format!("UPDATE {ACTIONS} SET result = {} WHERE action_id = {}", text(&result), text(&id))).await?;
    if marked != 1 {
        let _ = s.run("ROLLBACK").await;
        return Err(Error::new(Code::DB_QUERY, "the statements have rolled their transaction back")
            .host(&db.host)
            .hint("a procedure may not end the transaction"));
    }
    s.run("COMMIT").await?;
    s.close().await;
    Ok(done)
}

/// The result of the action, when its statements have taken effect.
async fn marker(cx: &Cx, s: &mut Sess) -> Result<Option<Executed>> {
    let there = s
        .int(format!("SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = {}", text(ACTIONS)))
        .await?;
    if there == 0 {
        return Ok(None);
    }
    // Locking: a session of a lost connection may still be at work, and its end is waited for.
    s.run("SET autocommit = 1, innodb_lock_wait_timeout = 60").await?;
    let found =
        s.text(format!("SELECT result FROM {ACTIONS} WHERE action_id = {} LOCK IN SHARE MODE", text(&cx.action_id.to_string()))).await?;
    let Some(found) = found else { return Ok(None) };
    let json: serde_json::Value = serde_json::from_str(&found)
        .map_err(|e| Error::new(Code::DB_QUERY, format!("the marker of {} cannot be read: {e}", cx.action_id)))?;
    Ok(Some(Executed {
        rows: json.get("rows").and_then(serde_json::Value::as_u64).unwrap_or(0),
        last_id: json.get("last_id").and_then(serde_json::Value::as_i64).unwrap_or(0),
    }))
}

pub async fn executed(cx: &Cx, db: &Db) -> Result<Option<Executed>> {
    let mut s = session(cx, db).await?;
    enter(&mut s, db).await?;
    let found = marker(cx, &mut s).await;
    s.close().await;
    found
}

/// The settings that decide how a server replicates, stores and reads.
const SETTINGS: [&str; 22] = [
    "server_id",
    "log_bin",
    "binlog_format",
    "binlog_row_image",
    "gtid_domain_id",
    "gtid_strict_mode",
    "gtid_mode",
    "enforce_gtid_consistency",
    "log_slave_updates",
    "log_replica_updates",
    "read_only",
    "super_read_only",
    "event_scheduler",
    "sql_mode",
    "lower_case_table_names",
    "character_set_server",
    "collation_server",
    "time_zone",
    "max_allowed_packet",
    "innodb_buffer_pool_size",
    "innodb_flush_log_at_trx_commit",
    "sync_binlog",
];

pub async fn facts(cx: &Cx, db: &Db) -> Result<BTreeMap<String, Value>> {
    let at = server(cx, db).await?;
    let mut s = session(cx, db).await?;
    let schemas = schemas(&mut s, db).await?;
    let list = list(&schemas);
    let sizes = s
        .rows(format!(
            "SELECT table_schema AS sch, table_name AS tab, engine AS eng, COALESCE(data_length + index_length, 0) AS bytes \
             FROM information_schema.tables WHERE table_schema IN ({list}) AND table_type = 'BASE TABLE' AND table_name <> '{ACTIONS}' ORDER BY 1, 2"
        ))
        .await?;
    let mut settings = BTreeMap::new();
    for name in SETTINGS {
        if let Some(v) = s.variable(name).await? {
            settings.insert(name.to_string(), v.parse().map_or(Value::Str(v), Value::Int));
        }
    }
    let mut engines: BTreeMap<String, Value> = BTreeMap::new();
    for row in &sizes {
        let n = engines.get(get(row, "eng")).and_then(Value::as_int).unwrap_or(0);
        engines.insert(get(row, "eng").to_string(), Value::Int(n + 1));
    }
    let sizes: BTreeMap<String, u64> =
        sizes.iter().map(|r| (named(db, get(r, "sch"), get(r, "tab")), get(r, "bytes").parse().unwrap_or(0))).collect();
    let charsets = s
        .rows(format!("SELECT schema_name AS sch, default_character_set_name AS cs, default_collation_name AS co FROM information_schema.schemata WHERE schema_name IN ({list})"))
        .await?
        .iter()
        .map(|r| (get(r, "sch").to_string(), Value::from(format!("{} {}", get(r, "cs"), get(r, "co")))))
        .collect::<BTreeMap<_, _>>();
    let accounts = super::accounts::names(&mut s, &at.flavour).await?;
    let grants = s
        .column(format!(
            "SELECT CONCAT(grantee, ' ', table_schema, ' ', GROUP_CONCAT(privilege_type ORDER BY 1 SEPARATOR ', '), IF(is_grantable = 'YES', ' with grant option', '')) \
             FROM information_schema.schema_privileges WHERE table_schema IN ({list}) GROUP BY grantee, table_schema, is_grantable ORDER BY 1"
        ))
        .await?;
    let marks = state::read(&mut s).await?;
    let gtid = position(&mut s, at.flavour.maria).await?;
    s.close().await;
    Ok(BTreeMap::from([
        ("version".to_string(), Value::from(at.flavour.text.as_str())),
        ("flavour".to_string(), at.flavour.name().into()),
        ("bytes".to_string(), Value::Bytes(sizes.values().sum())),
        ("tables".to_string(), Value::List(sizes.keys().map(|t| t.as_str().into()).collect())),
        ("sizes".to_string(), Value::Map(sizes.into_iter().map(|(t, n)| (t, Value::Bytes(n))).collect())),
        ("schemas".to_string(), Value::List(schemas.into_iter().map(Value::from).collect())),
        ("charsets".to_string(), charsets.into()),
        ("engines".to_string(), engines.into()),
        ("accounts".to_string(), Value::List(accounts.into_iter().map(|a| a.shown.into()).collect())),
        ("grants".to_string(), Value::List(grants.into_iter().map(Value::from).collect())),
        ("settings".to_string(), settings.into()),
        ("gtid".to_string(), gtid.into()),
        ("fence".to_string(), marks.fence.map(|f| f.id).into()),
        ("copy_of".to_string(), marks.replica.map(|r| r.of).into()),
        ("promoted".to_string(), marks.promoted.is_some().into()),
    ]))
}

/// The server's position as GTIDs: what it has written and what it has applied from elsewhere.
pub async fn position(s: &mut Sess, maria: bool) -> Result<String> {
    let sql = if maria { "SELECT @@gtid_current_pos" } else { "SELECT @@GLOBAL.gtid_executed" };
    Ok(s.text(sql).await?.unwrap_or_default().replace('\n', ""))
}

/// The schemas that are the application's: the one of the inventory, or all that are not the system's.
pub async fn schemas(s: &mut Sess, db: &Db) -> Result<Vec<String>> {
    if let Some(one) = db.settings.str("database") {
        return Ok(vec![one.to_string()]);
    }
    every_schema(s).await
}

/// Every schema that is not the system's or ours.
pub async fn every_schema(s: &mut Sess) -> Result<Vec<String>> {
    s.column(format!(
        "SELECT schema_name FROM information_schema.schemata WHERE schema_name NOT IN ('mysql', 'information_schema', 'performance_schema', 'sys', '{}') ORDER BY 1",
        state::SCHEMA
    ))
    .await
}

/// A list of texts for `IN (…)`; never empty.
pub fn list(names: &[String]) -> String {
    if names.is_empty() { "''".into() } else { names.iter().map(|n| text(n)).collect::<Vec<_>>().join(", ") }
}

/// A table's name as scripts see it: with its schema where the inventory names none.
pub fn named(db: &Db, schema: &str, table: &str) -> String {
    if db.settings.str("database").is_some() { table.to_string() } else { format!("{schema}.{table}") }
}

/// Tables of rows by schema and name, without ours.
pub async fn tables(s: &mut Sess, schemas: &[String]) -> Result<Vec<Named>> {
    s.rows(format!(
        "SELECT table_schema AS sch, table_name AS tab, engine AS eng, table_rows AS n, data_length AS bytes FROM information_schema.tables \
         WHERE table_schema IN ({}) AND table_type IN ('BASE TABLE', 'SYSTEM VERSIONED') AND table_name <> '{ACTIONS}' ORDER BY 1, 2",
        list(schemas)
    ))
    .await
}
