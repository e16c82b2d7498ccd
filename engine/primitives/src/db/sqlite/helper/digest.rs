//! Schema and content of a database as checksums: independent of row order and page layout, with every value's type in them.

use std::io::Write;
use std::path::Path;

use runbook_core::digest::hex;
use runbook_core::{Result, Value};
use rusqlite::Connection;
use rusqlite::types::ValueRef;
use sha2::{Digest as _, Sha256};

use super::open::{ident, sql};
use crate::db::sqlite::proto::{Digest, RowHash, RowLine, Table};

/// The prefix of everything that the engine itself keeps in a database.
pub const ENGINE: &str = "_runbook_";

/// Whether an object belongs to the engine or to SQLite, not to the application.
#[must_use]
pub fn is_internal(name: &str) -> bool {
    name.starts_with(ENGINE) || name.starts_with("sqlite_")
}

/// The checksum of a row: the first 16 bytes of the SHA-256 of its values, each with its type and length.
#[derive(Default)]
pub struct RowHasher(Sha256);

impl RowHasher {
    /// Adds a value.
    pub fn add(&mut self, v: ValueRef<'_>) {
        match v {
            ValueRef::Null => self.0.update([0]),
            ValueRef::Integer(i) => self.fixed(1, i.to_le_bytes()),
            ValueRef::Real(f) => self.fixed(2, f.to_bits().to_le_bytes()),
            ValueRef::Text(t) => self.long(3, t),
            ValueRef::Blob(b) => self.long(4, b),
        }
    }

    fn fixed(&mut self, tag: u8, bytes: [u8; 8]) {
        self.0.update([tag]);
        self.0.update(bytes);
    }

    fn long(&mut self, tag: u8, bytes: &[u8]) {
        self.fixed(tag, (bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// The row's checksum; begins the next row.
    pub fn finish(&mut self) -> u128 {
        let hash = std::mem::take(&mut self.0).finalize();
        hash.iter().take(16).fold(0, |n, b| n << 8 | u128::from(*b))
    }
}

/// What a table's columns are to the content.
pub struct Columns {
    /// Stored columns; generated ones follow from them.
    pub stored: Vec<String>,
    /// The primary key, or the row id.
    pub key: Vec<String>,
}

/// The columns of a table.
///
/// # Errors
/// `RB0501`.
pub fn columns(conn: &Connection, path: &Path, table: &str) -> Result<Columns> {
    let err = sql(path, "read the columns of");
    let mut stmt = conn.prepare("SELECT name, pk FROM pragma_table_xinfo(?1) WHERE hidden = 0 ORDER BY cid").map_err(&err)?;
    let all = stmt.query_map([table], |r| Ok((r.get::<_, String>(0)?, r.get::<_, i64>(1)?))).map_err(&err)?;
    let all: Vec<(String, i64)> = all.collect::<rusqlite::Result<_>>().map_err(&err)?;
    let mut key: Vec<(i64, String)> = all.iter().filter(|(_, pk)| *pk > 0).map(|(n, pk)| (*pk, n.clone())).collect();
    key.sort();
    let mut key: Vec<String> = key.into_iter().map(|(_, n)| n).collect();
    if key.is_empty() {
        let free = ["rowid", "_rowid_", "oid"].into_iter().find(|w| !all.iter().any(|(n, _)| n.eq_ignore_ascii_case(w)));
        key.extend(free.map(str::to_string));
    }
    Ok(Columns { stored: all.into_iter().map(|(n, _)| n).collect(), key })
}

/// The application's tables that hold rows: ordinary ones, and those behind virtual ones.
///
/// # Errors
/// `RB0501`.
pub fn tables(conn: &Connection, path: &Path) -> Result<Vec<String>> {
    let err = sql(path, "list the tables of");
    let mut stmt = conn
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name")
        .map_err(&err)?;
    let names = stmt.query_map([], |r| r.get::<_, String>(0)).map_err(&err)?;
    let names: Vec<String> = names.collect::<rusqlite::Result<_>>().map_err(&err)?;
    // The counters of AUTOINCREMENT are content: a copy without them could give an order number a second time.
    Ok(names.into_iter().filter(|n| !is_internal(n) || n == "sqlite_sequence").collect())
}

/// Reads schema and content in one read transaction.
///
/// # Errors
/// `RB0501`.
pub fn digest(conn: &Connection, path: &Path, checksums: bool) -> Result<Digest> {
    let own = conn.is_autocommit();
    if own {
        conn.execute_batch("BEGIN").map_err(sql(path, "read"))?;
    }
    let result = digest_now(conn, path, checksums);
    if own {
        conn.execute_batch("COMMIT").map_err(sql(path, "read"))?;
    }
    result
}

fn digest_now(conn: &Connection, path: &Path, checksums: bool) -> Result<Digest> {
    let err = sql(path, "read");
    let mut out = Digest::default();
    let mut stmt = conn.prepare("SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL").map_err(&err)?;
    let mut rows = stmt.query([]).map_err(&err)?;
    while let Some(r) = rows.next().map_err(&err)? {
        let (ty, name): (String, String) = (r.get(0).map_err(&err)?, r.get(1).map_err(&err)?);
        let (of, text): (String, String) = (r.get(2).map_err(&err)?, r.get(3).map_err(&err)?);
        if !is_internal(&name) && !of.starts_with(ENGINE) {
            out.objects.insert(format!("{ty} {name}"), text);
        }
    }
    for setting in ["user_version", "application_id"] {
        let n: i64 = conn.pragma_query_value(None, setting, |r| r.get(0)).map_err(&err)?;
        out.objects.insert(format!("setting {setting}"), n.to_string());
    }
    for table in tables(conn, path)? {
        let content = if checksums { content(conn, path, &table)? } else { count(conn, path, &table)? };
        // An empty counter table is as good as none; it appears with the first AUTOINCREMENT table and never goes away.
        if table != "sqlite_sequence" || content.rows > 0 {
            out.tables.insert(table, content);
        }
    }
    Ok(out)
}

fn count(conn: &Connection, path: &Path, table: &str) -> Result<Table> {
    let text = format!("SELECT count(*) FROM {}", ident(table));
    let rows: i64 = conn.query_row(&text, [], |r| r.get(0)).map_err(sql(path, "count the rows of"))?;
    Ok(Table { rows: rows.unsigned_abs(), sum: String::new() })
}

fn content(conn: &Connection, path: &Path, table: &str) -> Result<Table> {
    let err = sql(path, "read the rows of");
    let columns = columns(conn, path, table)?.stored;
    let list: Vec<String> = columns.iter().map(|c| ident(c)).collect();
    let mut stmt = conn.prepare(&format!("SELECT {} FROM {}", list.join(", "), ident(table))).map_err(&err)?;
    let mut rows = stmt.query([]).map_err(&err)?;
    let (mut n, mut sum, mut hasher) = (0u64, 0u128, RowHasher::default());
    while let Some(r) = rows.next().map_err(&err)? {
        for i in 0..columns.len() {
            hasher.add(r.get_ref(i).map_err(&err)?);
        }
        // Addition and not xor: two equal rows must not cancel each other out.
        sum = sum.wrapping_add(hasher.finish());
        n += 1;
    }
    Ok(Table { rows: n, sum: format!("{sum:032x}") })
}

/// A value of SQLite as one of the script language.
#[must_use]
pub fn value(v: ValueRef<'_>) -> Value {
    match v {
        ValueRef::Null => Value::Unit,
        ValueRef::Integer(i) => Value::Int(i),
        ValueRef::Real(f) => Value::Float(f),
        // Text that is not UTF-8 stays what it is: bytes.
        ValueRef::Text(t) => std::str::from_utf8(t).map_or_else(|_| Value::Blob(t.to_vec()), |s| Value::Str(s.to_string())),
        ValueRef::Blob(b) => Value::Blob(b.to_vec()),
    }
}

/// Writes keys and checksums of a table's rows in order of their keys, a line each, in constant memory.
///
/// # Errors
/// `RB0501`; `RB0507` when the controller has gone.
pub fn rows(conn: &Connection, path: &Path, table: &str, out: &mut dyn Write) -> Result<()> {
    let err = sql(path, "read the rows of");
    let Columns { stored, key } = columns(conn, path, table)?;
    let list: Vec<String> = key.iter().chain(&stored).map(|c| ident(c)).collect();
    let order: Vec<String> = key.iter().map(|c| format!("{} COLLATE BINARY", ident(c))).collect();
    let text = format!("SELECT {} FROM {} ORDER BY {}", list.join(", "), ident(table), order.join(", "));
    let mut stmt = conn.prepare(&text).map_err(&err)?;
    line(out, &RowLine::Key(key.clone()))?;
    let mut rows = stmt.query([]).map_err(&err)?;
    let mut hasher = RowHasher::default();
    while let Some(r) = rows.next().map_err(&err)? {
        let mut k = Vec::with_capacity(key.len());
        for i in 0..key.len() {
            k.push(value(r.get_ref(i).map_err(&err)?).to_json());
        }
        for i in key.len()..list.len() {
            hasher.add(r.get_ref(i).map_err(&err)?);
        }
        line(out, &RowLine::Row(RowHash { key: k, hash: hex(&hasher.finish().to_be_bytes()) }))?;
    }
    line(out, &RowLine::End)
}

/// Writes a JSON line.
///
/// # Errors
/// `RB0507` when the controller has gone.
pub fn line(out: &mut dyn Write, v: &impl serde::Serialize) -> Result<()> {
    let gone = |e: std::io::Error| runbook_core::Error::new(runbook_core::Code::DB_HELPER, format!("the controller has gone: {e}"));
    let mut text = serde_json::to_vec(v).map_err(|e| runbook_core::Error::internal(e.to_string()))?;
    text.push(b'\n');
    out.write_all(&text).map_err(gone)
}
