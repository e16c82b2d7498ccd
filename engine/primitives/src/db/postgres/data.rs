//! Queries, statements with a marker, and facts.

use std::collections::BTreeMap;
use std::pin::pin;

use futures::TryStreamExt as _;
use runbook_core::primitive::Cx;
use runbook_core::units::show_bytes;
use runbook_core::{Code, Error, Result, Value};
use tokio_postgres::types::{Kind, ToSql};
use tokio_postgres::{SimpleQueryMessage, Statement};

use super::client::{Conn, For, col, connect};
use super::kept::Home;
use super::sql::{Names, ends_transaction, ident, lit, numbered, statements};
use super::state::{self, look};
use super::value::{Param, Raw, array_text, native, read};
use crate::db::driver::{Db, Executed};

/// The most that a query may give back: results are kept in the run's record.
const MOST: usize = 2 << 20;

/// Runs work, but not beyond a cancellation.
pub(super) async fn unless_stopped<T>(cx: &Cx, db: &Db, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    tokio::select! {
        r = work => r,
        () = cx.cancel.cancelled() => Err(Error::new(Code::ABORTED, format!("stopped while \"{}\" was at work", db.name)).host(&db.host)),
    }
}

/// The statement as the server numbers its parameters, and the values in that order.
fn bound(sql: &str, params: &Value) -> Result<(String, Vec<Param>)> {
    let wrong = |why: String| Error::new(Code::DB_QUERY, why);
    let marks = !matches!(params, Value::Map(_));
    let (text, names) = if *params == Value::Unit { (sql.to_string(), Names::Own) } else { numbered(sql, marks) };
    let values = match (names, params) {
        (_, Value::Unit) => vec![],
        (Names::Own, Value::List(l)) => l.clone(),
        (Names::Marks(n), Value::List(l)) if n == l.len() => l.clone(),
        (Names::Marks(n), Value::List(l)) => {
            return Err(wrong(format!("the statement has {n} parameters and {} values are given", l.len())));
        }
        (Names::Named(names), Value::Map(m)) => {
            if let Some(extra) = m.keys().find(|k| !names.contains(k)) {
                return Err(wrong(format!("the statement has no parameter :{extra}")));
            }
            let value = |n: &String| m.get(n).cloned().ok_or_else(|| wrong(format!("the parameter :{n} has no value")));
            names.iter().map(value).collect::<Result<_>>()?
        }
        _ => return Err(wrong("values go with `?` or `$1` as an array, with `:name` as a map".into())),
    };
    Ok((text, values.into_iter().map(Param).collect()))
}

fn refs(params: &[Param]) -> Vec<&(dyn ToSql + Sync)> {
    params.iter().map(|p| p as &(dyn ToSql + Sync)).collect()
}

/// Rows of one statement, in a read-only transaction.
pub(super) async fn query(cx: &Cx, db: &Db, sql: &str, params: &Value) -> Result<Vec<Value>> {
    let (text, params) = bound(sql, params)?;
    unless_stopped(cx, db, async {
        let conn = connect(cx, db, For::Script).await?;
        conn.run("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let rows = select(&conn, &text, &params).await?;
        conn.run("ROLLBACK").await?;
        Ok(rows)
    })
    .await
}

async fn select(conn: &Conn, text: &str, params: &[Param]) -> Result<Vec<Value>> {
    let failed = |e: tokio_postgres::Error| conn.failed(&e);
    let first: Statement = conn.prepare(text).await.map_err(failed)?;
    let names: Vec<String> = first.columns().iter().map(|c| c.name().to_string()).collect();
    let types: Vec<_> = first.columns().iter().map(|c| c.type_().clone()).collect();
    let statement = if types.iter().all(native) {
        first
    } else {
        // What has no exact value here is taken as the server writes it.
        let alias = |i: usize| format!("c{i}");
        let list: Vec<String> =
            types.iter().enumerate().map(|(i, t)| if native(t) { alias(i) } else { format!("{}::text", alias(i)) }).collect();
        let aliases: Vec<String> = (0..types.len()).map(alias).collect();
        let body = text.trim_end().trim_end_matches(';');
        let wrapped = format!("SELECT {} FROM (\n{body}\n) AS q({})", list.join(","), aliases.join(","));
        let of: Vec<_> = first.params().to_vec();
        conn.prepare_typed(&wrapped, &of).await.map_err(failed)?
    };
    let mut rows = pin!(conn.query_raw(&statement, refs(params)).await.map_err(failed)?);
    let (mut out, mut size) = (Vec::new(), 0);
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        let mut map = BTreeMap::new();
        for (i, name) in names.iter().enumerate() {
            let raw: Raw = row.try_get(i).map_err(failed)?;
            size += name.len() + 8 + raw.0.as_ref().map_or(0, Vec::len) * 4 / 3;
            let (Some(ty), Some(sent)) = (types.get(i), statement.columns().get(i)) else { continue };
            let v = read(sent.type_(), raw.0.as_deref())?;
            let array = !native(ty) && matches!(ty.kind(), Kind::Array(_));
            map.insert(name.clone(), v.as_str().filter(|_| array).and_then(array_text).unwrap_or(v));
        }
        if size > MOST {
            return Err(Error::new(Code::DB_QUERY, format!("the query's result is larger than {}", show_bytes(MOST as u64)))
                .hint("results are kept in the run's record: use LIMIT, fewer columns, or count and sum in the query"));
        }
        out.push(Value::Map(map));
    }
    Ok(out)
}

/// The key of the advisory lock that a transaction with this marker holds.
fn lock_of(action: &str) -> String {
    format!("hashtextextended({}, 0)", lit(&format!("runbook {action}")))
}

/// Runs statements in one transaction with the marker of this action.
pub(super) async fn execute(cx: &Cx, db: &Db, sql: &str, params: &Value) -> Result<Executed> {
    let all = statements(sql);
    if let Some(word) = all.iter().find_map(|s| ends_transaction(s)) {
        return Err(Error::new(Code::DB_QUERY, format!("{word} is refused: the statements are one transaction with their marker"))
            .hint("leave transaction statements out; make an execute of each part that is to be a transaction of its own"));
    }
    let (text, params) = bound(sql, params)?;
    if all.is_empty() {
        return Err(Error::new(Code::DB_QUERY, "the statement is empty"));
    }
    if !params.is_empty() && all.len() > 1 {
        return Err(Error::new(Code::DB_QUERY, "several statements cannot have parameters").hint("make an execute of each"));
    }
    let action = cx.action_id.to_string();
    unless_stopped(cx, db, async {
        let conn = connect(cx, db, For::Script).await?;
        conn.run("BEGIN").await?;
        // Whoever asks later whether this took effect waits for the lock, and so for the end of this transaction.
        conn.run(&format!("SELECT pg_advisory_xact_lock({})", lock_of(&action))).await?;
        let marked = conn.run(&format!(
            "CREATE TABLE IF NOT EXISTS {MARKERS} (action text PRIMARY KEY, rows bigint NOT NULL, at timestamptz NOT NULL DEFAULT now()); \
             INSERT INTO {MARKERS} (action, rows) VALUES ({}, -1)",
            lit(&action)
        ))
        .await;
        match marked {
            // An earlier try of this very action got through in the meantime.
            Err(e) if e.details.get("sqlstate").is_some_and(|s| s == "23505") => {
                conn.run("ROLLBACK").await?;
                let rows = conn.text(&format!("SELECT rows FROM {MARKERS} WHERE action = {}", lit(&action))).await?;
                return rows.and_then(|r| r.parse().ok()).map(|rows| Executed { rows, last_id: 0 }).ok_or(e);
            }
            marked => marked?,
        }
        let rows = if params.is_empty() {
            let done = conn.simple_query(&text).await.map_err(|e| conn.failed(&e))?;
            done.iter().map(|m| if let SimpleQueryMessage::CommandComplete(n) = m { *n } else { 0 }).sum()
        } else {
            conn.execute_raw(&text, refs(&params)).await.map_err(|e| conn.failed(&e))?
        };
        conn.run(&format!("UPDATE {MARKERS} SET rows = {rows} WHERE action = {}", lit(&action))).await?;
        conn.run("COMMIT").await?;
        Ok(Executed { rows, last_id: 0 })
    })
    .await
}

/// The table of markers, made by the first `execute`.
pub(super) const MARKERS: &str = "public._runbook_actions";

/// What the statements with the marker of this action did.
pub(super) async fn executed(cx: &Cx, db: &Db) -> Result<Option<Executed>> {
    let action = cx.action_id.to_string();
    unless_stopped(cx, db, async {
        let conn = connect(cx, db, For::Script).await?;
        // A session that a dead controller left may still be at it.
        conn.run(&format!("SELECT pg_advisory_lock_shared({0}), pg_advisory_unlock_shared({0})", lock_of(&action))).await?;
        if conn.text(&format!("SELECT to_regclass({})::text", lit(MARKERS))).await?.is_none() {
            return Ok(None);
        }
        let rows = conn.text(&format!("SELECT rows FROM {MARKERS} WHERE action = {}", lit(&action))).await?;
        Ok(rows.and_then(|r| r.parse().ok()).map(|rows| Executed { rows, last_id: 0 }))
    })
    .await
}

/// Fields of `DatabaseFacts`.
pub(super) async fn facts(cx: &Cx, db: &Db) -> Result<BTreeMap<String, Value>> {
    unless_stopped(cx, db, async {
        let conn = connect(cx, db, For::Script).await?;
        let node = look(&conn).await?;
        let one = conn
            .texts(
                "SELECT current_setting('server_version'), pg_database_size(current_database()), pg_encoding_to_char(encoding), datcollate, \
                 datctype, pg_is_in_recovery()::text, current_setting('wal_level'), current_setting('data_checksums'), \
                 pg_size_bytes(current_setting('block_size')), (SELECT rolname FROM pg_roles WHERE oid = datdba) \
                 FROM pg_database WHERE datname = current_database()",
            )
            .await?;
        let row = one.into_iter().next().unwrap_or_default();
        let texts = |rows: Vec<Vec<Option<String>>>| Value::List(rows.iter().map(|r| col(r, 0).into()).collect());
        let maps = |rows: Vec<Vec<Option<String>>>| Value::Map(rows.iter().map(|r| (col(r, 0).to_string(), col(r, 1).into())).collect());
        let tables = conn
            .texts(&format!(
                "SELECT {NAME}, pg_total_relation_size(c.oid)::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') AND {OURS} ORDER BY 1"
            ))
            .await?;
        let extensions = conn.texts("SELECT extname, extversion FROM pg_extension ORDER BY 1").await?;
        let accounts = conn.texts("SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1").await?;
        let settings = conn
            .texts(
                // What may have a password in it is nobody's business.
                "SELECT name, current_setting(name) FROM pg_settings WHERE source NOT IN ('default', 'override', 'client', 'session') \
                 AND name NOT IN ('primary_conninfo', 'ssl_passphrase_command') ORDER BY 1",
            )
            .await?;
        let grants = conn.texts("SELECT unnest(coalesce(datacl, acldefault('d', datdba)))::text FROM pg_database WHERE datname = current_database()").await?;
        let bytes = |i: usize| Value::Bytes(col(&row, i).parse().unwrap_or(0));
        Ok(BTreeMap::from(
            [
                ("version", col(&row, 0).into()),
                ("bytes", bytes(1)),
                ("encoding", col(&row, 2).into()),
                ("collation", col(&row, 3).into()),
                ("ctype", col(&row, 4).into()),
                ("is_in_recovery", Value::Bool(col(&row, 5) == "true")),
                ("wal_level", col(&row, 6).into()),
                ("data_checksums", Value::Bool(col(&row, 7) == "on")),
                ("owner", col(&row, 9).into()),
                ("page_size", Value::Int(col(&row, 8).parse().unwrap_or(0))),
                ("sizes", Value::Map(tables.iter().map(|r| (col(r, 0).to_string(), Value::Bytes(col(r, 1).parse().unwrap_or(0)))).collect())),
                ("tables", texts(tables)),
                ("extensions", maps(extensions)),
                ("accounts", texts(accounts)),
                ("settings", maps(settings)),
                ("grants", texts(grants)),
                ("fence", node.fence.as_ref().filter(|f| f.hold_for.is_none()).map(|f| f.id.clone()).into()),
                ("copy_of", node.in_recovery.then(|| node.system.clone()).into()),
                ("promoted", Value::Bool(node.promoted.is_some())),
            ]
            .map(|(k, v)| (k.to_string(), v)),
        ))
    })
    .await
}

/// A relation's name: without its schema when that is `public`.
pub(super) const NAME: &str = "(CASE WHEN n.nspname = 'public' THEN '' ELSE quote_ident(n.nspname) || '.' END || quote_ident(c.relname))";
/// Relations of the application.
pub(super) const OURS: &str = "n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)' \
     AND c.relname <> '_runbook_actions' AND c.relpersistence <> 't' \
     AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')";

/// How long a connection that is in use is waited for before a new one is begun.
const SOON: std::time::Duration = std::time::Duration::from_millis(15);

/// A connection for the driver's own work, kept from an earlier action when there is one that lives, and where the server stands.
pub(super) async fn admin(cx: &Cx, db: &Db) -> Result<(Conn, state::Node)> {
    let home = Home::of(cx, db)?;
    // Boxed: everything calls this, and would be as large. One that is in use may come back sooner than a new one is made.
    let mut made = Box::pin(async {
        if home.back().is_some() {
            tokio::time::sleep(SOON).await;
        }
        connect(cx, db, For::Admin).await
    });
    loop {
        // Before looking, so that none comes back unseen in between.
        let back = home.back();
        while let Some(conn) = Conn::kept(cx, db)? {
            // Whatever is wrong with it, a new one tells it better.
            if let Ok(Ok(node)) = tokio::time::timeout(std::time::Duration::from_secs(5), look(&conn)).await {
                return Ok((conn, node));
            }
        }
        let back = async {
            match back {
                Some(back) => back.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            conn = &mut made => {
                let conn = conn?;
                let node = look(&conn).await?;
                return Ok((conn, node));
            }
            () = back => {}
        }
    }
}

/// A database's name as an identifier.
pub(super) fn database_ident(db: &Db) -> Result<String> {
    super::settings::database(db).map(ident)
}
