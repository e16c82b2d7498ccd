//! Checksums of chunks, worked out by the server; and both sides of a chunk at one position while the primary is written to.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::stream::{StreamExt as _, TryStreamExt as _};
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result, Value};

use super::connect::{Sess, get, server, session};
use super::schema;
use super::sql::{ident, text};
use super::state::{self, Phase};
use super::status;
use crate::db::driver::{Chunk, Content, Db, Keyed, Row, Span, Table};

/// How many tables are read at once.
const AT_ONCE: usize = 4;

/// How often a chunk is locked again that others held.
const TRIES: u32 = 20;

fn type_of<'a>(t: &'a Keyed, column: &str) -> &'a str {
    t.extra.get(&format!("type {column}")).map_or("", String::as_str)
}

fn table(db: &Db, t: &Keyed) -> String {
    // What is compared may be in a schema of another name there.
    match db.settings.str("database") {
        Some(schema) => format!("{}.{}", ident(schema), ident(&t.name)),
        None => t.extra.get("table").cloned().unwrap_or_default(),
    }
}

/// One row's checksum: 128 bits over every value with its length, NULL told from every text.
fn row_sum(t: &Keyed) -> String {
    let parts: Vec<String> = t
        .columns
        .iter()
        .map(|c| {
            let (name, ty) = (ident(c), type_of(t, c));
            // Large values by their own checksum: what is put together may not be longer than a packet.
            let bytes = match ty {
                "float" | "double" => format!("CAST({name} + 0e0 AS BINARY)"),
                "bit" => format!("HEX({name})"),
                "mediumtext" | "longtext" | "mediumblob" | "longblob" => format!("MD5({name})"),
                "json" => format!("MD5(CAST({name} AS CHAR))"),
                "geometry" | "point" | "linestring" | "polygon" | "multipoint" | "multilinestring" | "multipolygon"
                | "geometrycollection" => {
                    format!("MD5(ST_AsWKB({name}))")
                }
                _ => format!("CAST({name} AS BINARY)"),
            };
            format!("IFNULL(LENGTH({bytes}), 'n'), {bytes}")
        })
        .collect();
    format!("MD5(CONCAT_WS('#', {}))", parts.join(", "))
}

/// A key's value as a literal of its column.
fn literal(t: &Keyed, column: &str, v: &Value) -> String {
    match v {
        Value::Unit => "NULL".into(),
        Value::Int(i) => i.to_string(),
        Value::Blob(b) if b.is_empty() => "''".into(),
        Value::Blob(b) => format!("x'{}'", runbook_core::digest::hex(b)),
        Value::Str(s) => {
            let digits = !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'-' | b'.'));
            // As numbers: against a text, the server would compare as floats.
            if digits && matches!(type_of(t, column), "decimal" | "bigint" | "int" | "mediumint" | "smallint" | "tinyint" | "year") {
                s.clone()
            } else {
                text(s)
            }
        }
        other => text(&other.to_string()),
    }
}

/// `key > bound` (or `<=`) as the server finds it by the index, column after column.
fn against(t: &Keyed, bound: &[Value], after: bool) -> String {
    let mut parts = Vec::new();
    let columns: Vec<(String, String)> = t.key.iter().zip(bound).map(|(c, v)| (ident(c), literal(t, c, v))).collect();
    for i in 0..columns.len() {
        let mut and: Vec<String> = columns.iter().take(i).map(|(c, v)| format!("{c} = {v}")).collect();
        if let Some((c, v)) = columns.get(i) {
            let last = i + 1 == columns.len();
            and.push(format!(
                "{c} {} {v}",
                if after {
                    ">"
                } else if last {
                    "<="
                } else {
                    "<"
                }
            ));
        }
        parts.push(format!("({})", and.join(" AND ")));
    }
    let whole = format!("({})", parts.join(" OR "));
    match columns.first() {
        // The first column alone, so that a key of several is found as a range too.
        Some((c, v)) if columns.len() > 1 => format!("({c} {} {v} AND {whole})", if after { ">=" } else { "<=" }),
        _ => whole,
    }
}

fn within(t: &Keyed, span: &Span) -> String {
    let both: Vec<String> = span.after.iter().map(|b| against(t, b, true)).chain(span.upto.iter().map(|b| against(t, b, false))).collect();
    if both.is_empty() { String::new() } else { format!(" WHERE {}", both.join(" AND ")) }
}

fn chunk_sql(db: &Db, t: &Keyed, span: &Span, lock: &str) -> String {
    format!(
        "SELECT COUNT(*) AS n, CONCAT(LPAD(CONV(BIT_XOR(CAST(CONV(LEFT(h, 16), 16, 10) AS UNSIGNED)), 10, 16), 16, '0'), \
         LPAD(CONV(BIT_XOR(CAST(CONV(RIGHT(h, 16), 16, 10) AS UNSIGNED)), 10, 16), 16, '0'), '-', COALESCE(SUM(CRC32(h)), 0)) AS x \
         FROM (SELECT {} AS h FROM {}{}{lock}) c",
        row_sum(t),
        table(db, t),
        within(t, span)
    )
}

async fn read_chunk(s: &mut Sess, t: &Keyed, span: &Span, lock: &str) -> Result<Chunk> {
    let sql = chunk_sql(&s.db, t, span, lock);
    let rows = s.rows(sql).await?;
    let row = rows.first().ok_or_else(|| Error::new(Code::DB_QUERY, format!("no checksum of {}", t.name)))?;
    Ok(Chunk { rows: get(row, "n").parse().unwrap_or(0), sum: get(row, "x").to_lowercase() })
}

pub async fn chunk(cx: &Cx, db: &Db, t: &Keyed, span: &Span) -> Result<Chunk> {
    let mut s = session(cx, db).await?;
    let found = read_chunk(&mut s, t, span, "").await;
    s.close().await;
    found
}

async fn read_rows(s: &mut Sess, t: &Keyed, span: &Span, lock: &str) -> Result<Vec<Row>> {
    use mysql_async::prelude::Queryable as _;
    let keys: Vec<String> = t.key.iter().map(|c| ident(c)).collect();
    let sep = if keys.is_empty() { "" } else { ", " };
    let sql = format!("SELECT {}{sep}{} AS h FROM {}{}{lock}", keys.join(", "), row_sum(t), table(&s.db, t), within(t, span));
    let rows: std::result::Result<Vec<mysql_async::Row>, _> = s.conn()?.exec(sql, ()).await;
    let rows = rows.map_err(|e| s.failed(&e))?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let columns = row.columns();
            let mut values: Vec<Value> = columns.iter().zip(row.unwrap()).map(|(c, v)| super::value::value(c, v)).map(plain).collect();
            let sum = values.pop().and_then(|v| v.as_str().map(str::to_string)).unwrap_or_default();
            Row { key: values, sum }
        })
        .collect())
}

/// Moments as the text that the server takes back.
fn plain(v: Value) -> Value {
    match v {
        Value::Time(t) => Value::Str(t.strftime("%Y-%m-%d %H:%M:%S.%6f").to_string()),
        other => other,
    }
}

pub async fn rows(cx: &Cx, db: &Db, t: &Keyed, span: &Span) -> Result<Vec<Row>> {
    let mut s = session(cx, db).await?;
    let found = read_rows(&mut s, t, span, "").await;
    s.close().await;
    found
}

/// The keys that cut a span: even parts of the numbers of a whole table with a whole-number key, else by counting along the key.
pub async fn bounds(cx: &Cx, db: &Db, t: &Keyed, span: &Span, rows: u64) -> Result<Vec<Vec<Value>>> {
    if t.key.is_empty() || t.extra.contains_key("uncut") || rows == 0 {
        return Ok(vec![]);
    }
    let mut s = session(cx, db).await?;
    if let ([one], true) = (t.key.as_slice(), span.after.is_none() && span.upto.is_none())
        && matches!(type_of(t, one), "int" | "bigint" | "mediumint" | "smallint" | "tinyint")
    {
        let found = s.rows(format!("SELECT MIN({0}) AS a, MAX({0}) AS b FROM {1}", ident(one), table(db, t))).await?;
        let edges = found.first().and_then(|r| Some((get(r, "a").parse::<i64>().ok()?, get(r, "b").parse::<i64>().ok()?)));
        if let Some((a, b)) = edges {
            let n = i128::from(t.rows.div_ceil(rows).max(1));
            let wide = i128::from(b) - i128::from(a);
            let mut out: Vec<Vec<Value>> =
                (1..n).filter_map(|i| i64::try_from(i128::from(a) + wide * i / n).ok()).map(|k| vec![Value::Int(k)]).collect();
            out.dedup();
            s.close().await;
            return Ok(out);
        }
    }
    let keys: Vec<String> = t.key.iter().map(|c| ident(c)).collect();
    let (mut out, mut at) = (Vec::new(), span.clone());
    loop {
        use mysql_async::prelude::Queryable as _;
        let sql =
            format!("SELECT {0} FROM {1}{2} ORDER BY {0} LIMIT 1 OFFSET {3}", keys.join(", "), table(db, t), within(t, &at), rows - 1);
        let found: std::result::Result<Option<mysql_async::Row>, _> = s.conn()?.exec_first(sql, ()).await;
        let Some(row) = found.map_err(|e| s.failed(&e))? else { break };
        let columns = row.columns();
        let key: Vec<Value> = columns.iter().zip(row.unwrap()).map(|(c, v)| super::value::value(c, v)).map(plain).collect();
        at.after = Some(key.clone());
        out.push(key);
    }
    s.close().await;
    Ok(out)
}

/// Whether `b` follows `a`, and how its position is waited for.
async fn follows(cx: &Cx, a: &Db, b: &Db) -> Result<Option<state::ReplicaMark>> {
    let mut s = session(cx, b).await?;
    let mark = state::read(&mut s).await?.replica.filter(|m| m.of == a.name && m.phase == Phase::Running);
    s.close().await;
    Ok(mark)
}

/// Asks both sides at one position: rows of the span are locked on the primary, whose position then includes everything that was
/// committed to them; the replica is asked when it has that. Writers of these rows wait meanwhile, and of no others.
async fn at_one_position(cx: &Cx, a: &Db, b: &Db, t: &Keyed, span: &Span, what: Ask) -> Result<(Got, Got)> {
    let Some(mark) = follows(cx, a, b).await? else {
        let (mut s, mut r) = (session(cx, a).await?, session(cx, b).await?);
        let both = (what.read(&mut s, t, span, "").await?, what.read(&mut r, t, span, "").await?);
        s.close().await;
        r.close().await;
        return Ok(both);
    };
    let (at, there) = (server(cx, a).await?, server(cx, b).await?);
    let (mut s, mut r) = (session(cx, a).await?, session(cx, b).await?);
    s.run("SET SESSION innodb_lock_wait_timeout = 2").await?;
    for n in 1..=TRIES {
        s.run("START TRANSACTION").await?;
        let left = match what.read(&mut s, t, span, " LOCK IN SHARE MODE").await {
            Ok(v) => v,
            Err(e) if e.details.get("code").is_some_and(|c| c == "1205" || c == "1213") && n < TRIES => {
                let _ = s.run("ROLLBACK").await;
                cx.sleep(Duration::from_millis(20 * u64::from(n))).await?;
                continue;
            }
            Err(e) => return Err(e),
        };
        let position = state::position(&mut s, &at.flavour).await?;
        let mut reached = false;
        for _ in 0..40 {
            if status::reached(&mut r, &there.flavour, &mark, &position, 0.25).await? {
                reached = true;
                break;
            }
        }
        let right = if reached { Some(what.read(&mut r, t, span, "").await?) } else { None };
        s.run("COMMIT").await?;
        if let Some(right) = right {
            s.close().await;
            r.close().await;
            return Ok((left, right));
        }
        // The writers of these rows may not wait for ever for a replica that lags.
        let streams = status::read(&mut r, &there.flavour).await?;
        if let Some(e) = streams.iter().find_map(status::Stream::error) {
            return Err(e.stopped(b));
        }
        cx.sleep(Duration::from_millis(500)).await?;
    }
    Err(Error::new(Code::DB_BEHIND, format!("\"{}\" lags too much to be compared while \"{}\" is written to", b.name, a.name))
        .host(&b.host)
        .hint("wait until it has caught up, or compare under the fence")
        .retryable(true))
}

/// What is asked of both sides.
#[derive(Debug, Clone, Copy)]
enum Ask {
    Chunk,
    Rows,
}

enum Got {
    Chunk(Chunk),
    Rows(Vec<Row>),
}

impl Ask {
    async fn read(self, s: &mut Sess, t: &Keyed, span: &Span, lock: &str) -> Result<Got> {
        Ok(match self {
            Ask::Chunk => Got::Chunk(read_chunk(s, t, span, lock).await?),
            Ask::Rows => Got::Rows(read_rows(s, t, span, lock).await?),
        })
    }
}

pub async fn both(cx: &Cx, a: &Db, b: &Db, t: &Keyed, span: &Span) -> Result<(Chunk, Chunk)> {
    match at_one_position(cx, a, b, t, span, Ask::Chunk).await? {
        (Got::Chunk(l), Got::Chunk(r)) => Ok((l, r)),
        _ => Err(Error::internal("chunks were asked for")),
    }
}

pub async fn rows_of_both(cx: &Cx, a: &Db, b: &Db, t: &Keyed, span: &Span) -> Result<(Vec<Row>, Vec<Row>)> {
    match at_one_position(cx, a, b, t, span, Ask::Rows).await? {
        (Got::Rows(l), Got::Rows(r)) => Ok((l, r)),
        _ => Err(Error::internal("rows were asked for")),
    }
}

pub async fn content(cx: &Cx, db: &Db, checksums: bool) -> Result<Content> {
    let (objects, keyed) = schema::read(cx, db).await?;
    let found: Vec<(String, Table)> = futures::stream::iter(keyed)
        .map(|t| async move {
            let table = if checksums {
                let c = chunk(cx, db, &t, &Span::default()).await?;
                Table { rows: c.rows, sum: c.sum }
            } else {
                let mut s = session(cx, db).await?;
                let n = s.int(format!("SELECT COUNT(*) FROM {}", table(db, &t))).await?;
                s.close().await;
                Table { rows: n.unsigned_abs(), sum: String::new() }
            };
            Ok::<_, Error>((t.name, table))
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    Ok(Content { objects, tables: found.into_iter().collect::<BTreeMap<_, _>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyed(key: &[&str], types: &[(&str, &str)]) -> Keyed {
        let mut k = Keyed {
            name: "t".into(),
            key: key.iter().map(|c| (*c).into()).collect(),
            columns: types.iter().map(|(c, _)| (*c).into()).collect(),
            ..Keyed::default()
        };
        k.extra.insert("table".into(), "`s`.`t`".into());
        for (c, ty) in types {
            k.extra.insert(format!("type {c}"), (*ty).to_string());
        }
        k
    }

    #[test]
    fn a_span_is_a_range_of_the_key() {
        let t = keyed(&["id"], &[("id", "bigint")]);
        let span = Span { after: Some(vec![Value::Int(7)]), upto: Some(vec!["18446744073709551615".into()]) };
        assert_eq!(within(&t, &span), " WHERE ((`id` > 7)) AND ((`id` <= 18446744073709551615))");
        let t = keyed(&["a", "b"], &[("a", "varchar"), ("b", "decimal")]);
        let span = Span { after: Some(vec!["x'y".into(), "1.50".into()]), upto: None };
        assert_eq!(within(&t, &span), " WHERE (`a` >= 'x''y' AND ((`a` > 'x''y') OR (`a` = 'x''y' AND `b` > 1.50)))");
        let span = Span { after: None, upto: Some(vec!["k".into(), "2".into()]) };
        assert_eq!(within(&t, &span), " WHERE (`a` <= 'k' AND ((`a` < 'k') OR (`a` = 'k' AND `b` <= 2)))");
    }

    #[test]
    fn every_value_counts_with_its_length_and_null_is_no_text() {
        let t = keyed(&["id"], &[("id", "int"), ("f", "double"), ("l", "longtext")]);
        assert_eq!(
            row_sum(&t),
            "MD5(CONCAT_WS('#', IFNULL(LENGTH(CAST(`id` AS BINARY)), 'n'), CAST(`id` AS BINARY), \
             IFNULL(LENGTH(CAST(`f` + 0e0 AS BINARY)), 'n'), CAST(`f` + 0e0 AS BINARY), IFNULL(LENGTH(MD5(`l`)), 'n'), MD5(`l`)))"
        );
    }
}
