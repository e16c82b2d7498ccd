//! Definitions and content for `compare`: the server sums up ranges of keys by itself.

use std::collections::BTreeMap;

use runbook_core::primitive::Cx;
use runbook_core::{Result, Value};

use super::client::{Conn, For, col, connect};
use super::data::{NAME, OURS, admin, unless_stopped};
use super::sql::{ident, lit};
use super::state::Lsn;
use crate::db::driver::{Chunk, Content, Db, Keyed, Row, Span, Table};

/// Objects and their definitions, one query a kind: `kind name`, `definition`.
const OBJECTS: &[&str] = &[
    "SELECT 'database setting ' || k, v FROM (SELECT 'encoding' k, pg_encoding_to_char(encoding) v, datname FROM pg_database \
     UNION ALL SELECT 'collation', datcollate, datname FROM pg_database UNION ALL SELECT 'ctype', datctype, datname FROM pg_database) s \
     WHERE datname = current_database()",
    "SELECT 'schema ' || nspname, pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'",
    "SELECT 'extension ' || extname, extversion FROM pg_extension",
    "SELECT CASE relkind WHEN 'v' THEN 'view ' WHEN 'm' THEN 'materialized view ' ELSE 'rule ' END || {NAME}, pg_get_viewdef(c.oid) FROM pg_class c \
     JOIN pg_namespace n ON n.oid = c.relnamespace WHERE relkind IN ('v', 'm') AND {OURS}",
    "SELECT 'index ' || {NAME}, pg_get_indexdef(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
     WHERE relkind IN ('i', 'I') AND {OURS} AND NOT EXISTS (SELECT FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid WHERE i.indexrelid = c.oid AND t.relname = '_runbook_actions')",
    "SELECT 'constraint ' || o.conname || ' of ' || {NAME}, pg_get_constraintdef(o.oid) FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid \
     JOIN pg_namespace n ON n.oid = c.relnamespace WHERE o.contype <> 'n' AND {OURS}",
    "SELECT 'trigger ' || t.tgname || ' of ' || {NAME}, pg_get_triggerdef(t.oid) || ' ' || t.tgenabled::text FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid \
     JOIN pg_namespace n ON n.oid = c.relnamespace WHERE NOT t.tgisinternal AND {OURS}",
    "SELECT 'policy ' || p.polname || ' of ' || {NAME}, concat_ws(' ', p.polcmd, p.polpermissive, p.polroles, pg_get_expr(p.polqual, p.polrelid), \
     pg_get_expr(p.polwithcheck, p.polrelid)) FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {OURS}",
    "SELECT 'function ' || c.oid::regprocedure, CASE WHEN c.prokind = 'a' THEN 'aggregate' ELSE pg_get_functiondef(c.oid) END FROM pg_proc c \
     JOIN pg_namespace n ON n.oid = c.pronamespace WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_' \
     AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = c.oid AND d.deptype = 'e')",
    "SELECT 'type ' || format_type(c.oid, NULL), CASE c.typtype WHEN 'e' THEN (SELECT string_agg(quote_literal(enumlabel), ', ' ORDER BY enumsortorder) \
     FROM pg_enum WHERE enumtypid = c.oid) ELSE concat_ws(' ', format_type(c.typbasetype, c.typtypmod), c.typnotnull, c.typdefault) END FROM pg_type c \
     JOIN pg_namespace n ON n.oid = c.typnamespace WHERE c.typtype IN ('e', 'd') AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
     AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_type'::regclass AND d.objid = c.oid AND d.deptype = 'e')",
    "SELECT 'sequence ' || {NAME}, concat_ws(' ', format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle) \
     FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {OURS}",
    "SELECT 'grants of ' || {NAME}, (SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest(c.relacl) a) FROM pg_class c \
     JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relacl IS NOT NULL AND {OURS}",
];

/// A table's columns with types, defaults and so on, as one text.
const TABLES: &str = "SELECT {NAME}, c.relkind, c.relpersistence, greatest(c.reltuples, 0)::bigint, pg_total_relation_size(c.oid), \
    (SELECT string_agg(concat_ws(' ', quote_ident(a.attname), format_type(a.atttypid, a.atttypmod), \
       CASE WHEN a.attcollation <> t.typcollation THEN 'collate ' || (SELECT quote_ident(collname) FROM pg_collation WHERE oid = a.attcollation) END, \
       CASE WHEN a.attnotnull THEN 'not null' END, \
       CASE WHEN a.attgenerated <> '' THEN 'generated as ' || pg_get_expr(d.adbin, d.adrelid) ELSE 'default ' || pg_get_expr(d.adbin, d.adrelid) END, \
       CASE a.attidentity WHEN 'a' THEN 'identity always' WHEN 'd' THEN 'identity' END), ', ' ORDER BY a.attnum) \
     FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) \
      || coalesce(' partition by ' || pg_get_partkeydef(c.oid), '') || coalesce(' partition ' || pg_get_expr(c.relpartbound, c.oid), '') \
      || CASE WHEN c.relpersistence = 'u' THEN ' unlogged' ELSE '' END || ' owner ' || pg_get_userbyid(c.relowner), \
    (SELECT json_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), \
    (SELECT json_agg(json_build_array(a.attname, format_type(a.atttypid, a.atttypmod)) ORDER BY k.n) FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, n) \
     JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum WHERE k.n <= i.indnkeyatts) \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    LEFT JOIN LATERAL (SELECT i.* FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL \
      AND NOT EXISTS (SELECT FROM unnest(i.indkey::int2[]) k JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k WHERE NOT a.attnotnull) \
      ORDER BY i.indisprimary DESC, i.indnkeyatts, i.indexrelid LIMIT 1) i ON true \
    WHERE c.relkind IN ('r', 'p') AND {OURS} ORDER BY 1";

fn filled(sql: &str) -> String {
    sql.replace("{NAME}", NAME).replace("{OURS}", OURS)
}

/// Definitions by object, and the tables.
pub(super) async fn schema(cx: &Cx, db: &Db) -> Result<(BTreeMap<String, String>, Vec<Keyed>)> {
    unless_stopped(cx, db, async {
        let (conn, _) = admin(cx, db).await?;
        // One trip; names are written whole when no schema is searched.
        let all: Vec<String> = OBJECTS.iter().chain([&TABLES]).map(|q| filled(q)).collect();
        let sql =
            format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL search_path = pg_catalog; {}; COMMIT", all.join("; "));
        let (mut objects, mut tables) = (BTreeMap::new(), Vec::new());
        for r in conn.texts(&sql).await? {
            let name = col(&r, 0).to_string();
            if r.len() == 2 {
                objects.insert(name, col(&r, 1).to_string());
                continue;
            }
            objects.insert(format!("table {name}"), format!("({})", col(&r, 5)));
            // The rows of a partitioned table are those of its partitions. Unlogged tables are empty on a standby, by their nature.
            if col(&r, 1) == "p" || col(&r, 2) == "u" {
                continue;
            }
            let list: Vec<String> = serde_json::from_str(col(&r, 6)).unwrap_or_default();
            let keys: Vec<(String, String)> = serde_json::from_str(col(&r, 7)).unwrap_or_default();
            tables.push(Keyed {
                name,
                key: keys.iter().map(|(k, _)| k.clone()).collect(),
                columns: list,
                rows: col(&r, 3).parse().unwrap_or(0),
                bytes: col(&r, 4).parse().unwrap_or(0),
                extra: keys.into_iter().collect(),
            });
        }
        Ok((objects, tables))
    })
    .await
}

/// A table's name in SQL; [`NAME`] leaves `public` away.
fn qualified(table: &Keyed) -> String {
    let quoted_dot = split_name(&table.name).is_some();
    if quoted_dot { table.name.clone() } else { format!("public.{}", table.name) }
}

/// Schema and name, when both are there; dots in quotes separate nothing.
fn split_name(name: &str) -> Option<(&str, &str)> {
    let mut quoted = false;
    for (i, c) in name.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '.' if !quoted => return Some((name.get(..i)?, name.get(i + 1..)?)),
            _ => {}
        }
    }
    None
}

fn list(names: &[String]) -> String {
    names.iter().map(|n| ident(n)).collect::<Vec<_>>().join(", ")
}

/// The condition of a span.
fn within(table: &Keyed, span: &Span) -> String {
    let value = |key: &[Value]| -> String {
        let parts = table.key.iter().zip(key).map(|(name, v)| {
            let text = match v {
                Value::Str(s) => s.clone(),
                other => other.to_string(),
            };
            format!("{}::{}", lit(&text), table.extra.get(name).map_or("text", String::as_str))
        });
        format!("({})", parts.collect::<Vec<_>>().join(", "))
    };
    let key = format!("({})", list(&table.key));
    let mut all = Vec::new();
    if let Some(after) = span.after.as_ref().filter(|_| !table.key.is_empty()) {
        all.push(format!("{key} > {}", value(after)));
    }
    if let Some(upto) = span.upto.as_ref().filter(|_| !table.key.is_empty()) {
        all.push(format!("{key} <= {}", value(upto)));
    }
    if all.is_empty() { "true".into() } else { all.join(" AND ") }
}

/// A row as one text in which NULL is not the empty text.
fn row_text(table: &Keyed) -> String {
    if table.columns.is_empty() { "''".into() } else { format!("ROW({})::text", list(&table.columns)) }
}

/// Key columns as texts, and as values: whole numbers stay numbers.
fn key_values(table: &Keyed, row: &[Option<String>]) -> Vec<Value> {
    let int = |name: &String| table.extra.get(name).is_some_and(|t| ["smallint", "integer", "bigint"].contains(&t.as_str()));
    let one = |(name, text): (&String, &Option<String>)| {
        let text = text.clone().unwrap_or_default();
        if int(name) { text.parse().map_or(Value::Str(text), Value::Int) } else { Value::Str(text) }
    };
    table.key.iter().zip(row).map(one).collect()
}

fn key_texts(table: &Keyed) -> String {
    table.key.iter().map(|k| format!("{}::text", ident(k))).collect::<Vec<_>>().join(", ")
}

/// The last key of every chunk but the last.
pub(super) async fn bounds(cx: &Cx, db: &Db, table: &Keyed, span: &Span, rows: u64) -> Result<Vec<Vec<Value>>> {
    if table.key.is_empty() {
        return Ok(vec![]);
    }
    unless_stopped(cx, db, async {
        let (conn, _) = admin(cx, db).await?;
        let (key, rows) = (list(&table.key), rows.max(1));
        let sql = format!(
            "SELECT {} FROM (SELECT {key}, row_number() OVER (ORDER BY {key}) AS runbook_n, count(*) OVER () AS runbook_all \
             FROM ONLY {} WHERE {}) s WHERE runbook_n % {rows} = 0 AND runbook_n < runbook_all ORDER BY runbook_n",
            key_texts(table),
            qualified(table),
            within(table, span)
        );
        Ok(conn.texts(&sql).await?.iter().map(|r| key_values(table, r)).collect())
    })
    .await
}

/// Two hashes of 64 bits of every row, summed up: whatever the order.
fn sums(table: &Keyed, span: &Span) -> String {
    format!(
        // Without OFFSET the server would write each row as text twice, which is most of the work.
        "SELECT count(*), coalesce(sum(hashtextextended(r, 0)), 0) || ':' || coalesce(sum(hashtextextended(r, 7)), 0) \
         FROM (SELECT {} AS r FROM ONLY {} WHERE {} OFFSET 0) s",
        row_text(table),
        qualified(table),
        within(table, span)
    )
}

async fn chunk_on(conn: &Conn, table: &Keyed, span: &Span) -> Result<Chunk> {
    let row = conn.row(&sums(table, span)).await?;
    Ok(Chunk { rows: col(&row, 0).parse().unwrap_or(0), sum: col(&row, 1).to_string() })
}

/// Number and checksum of the rows of a span.
pub(super) async fn chunk(cx: &Cx, db: &Db, table: &Keyed, span: &Span) -> Result<Chunk> {
    unless_stopped(cx, db, async { chunk_on(&admin(cx, db).await?.0, table, span).await }).await
}

async fn rows_on(conn: &Conn, table: &Keyed, span: &Span) -> Result<Vec<Row>> {
    let keys = if table.key.is_empty() { "NULL".into() } else { key_texts(table) };
    let order = if table.key.is_empty() { "2".into() } else { list(&table.key) };
    let sql =
        format!("SELECT {keys}, md5({}) FROM ONLY {} WHERE {} ORDER BY {order}", row_text(table), qualified(table), within(table, span));
    let made = conn.texts(&sql).await?.into_iter().map(|r| {
        let sum = r.last().cloned().flatten().unwrap_or_default();
        // Without a key, a row is known by what it holds.
        let key = if table.key.is_empty() { vec![Value::Str(sum.clone())] } else { key_values(table, &r) };
        Row { key, sum }
    });
    Ok(made.collect())
}

/// Key and checksum of each row of a span.
pub(super) async fn chunk_rows(cx: &Cx, db: &Db, table: &Keyed, span: &Span) -> Result<Vec<Row>> {
    unless_stopped(cx, db, async { rows_on(&admin(cx, db).await?.0, table, span).await }).await
}

/// What is read of both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// Number and checksum.
    Sum,
    /// Each row.
    Rows,
}

/// A sum as rows, so that both are read the same way: one whose key is the number.
async fn read(conn: &Conn, table: &Keyed, span: &Span, what: What) -> Result<Vec<Row>> {
    match what {
        What::Rows => rows_on(conn, table, span).await,
        What::Sum => {
            let c = chunk_on(conn, table, span).await?;
            Ok(vec![Row { key: vec![Value::Int(i64::try_from(c.rows).unwrap_or(i64::MAX))], sum: c.sum }])
        }
    }
}

/// The sum that [`read`] gave as a row.
pub(super) fn as_chunk(rows: &[Row]) -> Chunk {
    let Some(r) = rows.first() else { return Chunk::default() };
    let n = r.key.first().and_then(Value::as_int).unwrap_or(0);
    Chunk { rows: u64::try_from(n).unwrap_or(0), sum: r.sum.clone() }
}

/// Reads both sides at one position when `b` is a standby of `a`: writers of the table wait until both have read.
pub(super) async fn both(cx: &Cx, (a, b): (&Db, &Db), table: &Keyed, span: &Span, what: What) -> Result<(Vec<Row>, Vec<Row>)> {
    unless_stopped(cx, a, async {
        let ((left, source), (right, copy)) = futures::try_join!(admin(cx, a), admin(cx, b))?;
        if source.in_recovery || !copy.in_recovery || source.system != copy.system {
            return futures::try_join!(read(&left, table, span, what), read(&right, table, span, what));
        }
        left.run(&format!("BEGIN; LOCK TABLE {} IN SHARE MODE", qualified(table))).await?;
        let at = left.text("SELECT pg_current_wal_insert_lsn()").await?.and_then(|t| Lsn::parse(&t)).unwrap_or_default();
        for _ in 0..500 {
            let now = right.text("SELECT pg_last_wal_replay_lsn()").await?.and_then(|t| Lsn::parse(&t)).unwrap_or_default();
            if now >= at {
                break;
            }
            cx.sleep(std::time::Duration::from_millis(20)).await?;
        }
        let found = futures::try_join!(read(&left, table, span, what), read(&right, table, span, what))?;
        left.run("ROLLBACK").await?;
        Ok(found)
    })
    .await
}

/// Schema and whole tables.
pub(super) async fn content(cx: &Cx, db: &Db, checksums: bool) -> Result<Content> {
    let (objects, tables) = schema(cx, db).await?;
    let conn = connect(cx, db, For::Script).await?;
    unless_stopped(cx, db, async {
        conn.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let mut found = BTreeMap::new();
        for table in tables {
            let made = if checksums {
                let c = chunk_on(&conn, &table, &Span::default()).await?;
                Table { rows: c.rows, sum: c.sum }
            } else {
                let n = conn.text(&format!("SELECT count(*) FROM ONLY {}", qualified(&table))).await?;
                Table { rows: n.and_then(|n| n.parse().ok()).unwrap_or(0), sum: String::new() }
            };
            found.insert(table.name, made);
        }
        Ok(Content { objects, tables: found })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_whole_and_spans_are_typed() {
        let t = |name: &str| Keyed {
            name: name.into(),
            key: vec!["a".into(), "b".into()],
            columns: vec!["a".into(), "b".into(), "c".into()],
            extra: BTreeMap::from([("a".to_string(), "bigint".to_string()), ("b".to_string(), "uuid".to_string())]),
            ..Keyed::default()
        };
        assert_eq!(qualified(&t("orders")), "public.orders");
        assert_eq!(qualified(&t("app.orders")), "app.orders");
        assert_eq!(qualified(&t("\"a.b\"")), "public.\"a.b\"");
        let span = Span { after: Some(vec![Value::Int(5), "it's".into()]), upto: None };
        assert_eq!(within(&t("orders"), &span), "(\"a\", \"b\") > ('5'::bigint, 'it''s'::uuid)");
        assert_eq!(within(&t("orders"), &Span::default()), "true");
        assert_eq!(key_values(&t("x"), &[Some("7".into()), Some("u".into()), Some("md5".into())]), [Value::Int(7), "u".into()]);
    }
}
