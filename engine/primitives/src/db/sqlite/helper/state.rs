//! The engine's own tables in a database: what it is to a migration. Each has at most one row, except the markers.

use std::path::Path;

use runbook_core::Result;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::guard;
use super::open::sql;
use crate::db::sqlite::proto::{CopyRow, FenceRow, PromotedRow, State};

/// Table of the fence on this database.
pub const FENCE: &str = "_runbook_fence";
/// Table that marks a copy.
pub const COPY: &str = "_runbook_copy";
/// Table that marks a promoted copy.
pub const PROMOTED: &str = "_runbook_promoted";
/// Table of the markers of `execute`.
pub const ACTIONS: &str = "_runbook_actions";
/// Every one of them.
pub const ALL: [&str; 4] = [FENCE, COPY, PROMOTED, ACTIONS];

/// Whether there is such a table.
///
/// # Errors
/// `RB0501`.
pub fn has(conn: &Connection, path: &Path, table: &str) -> Result<bool> {
    conn.query_row("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1", [table], |_| Ok(()))
        .optional()
        .map(|o| o.is_some())
        .map_err(sql(path, "read the schema of"))
}

/// The only row of one of the tables, when there is one. Outside of a transaction another process may drop the table between the two
/// looks, as a helper does whose controller has died: so both are of one moment.
fn row<T>(
    conn: &Connection,
    path: &Path,
    table: &str,
    select: &str,
    what: &'static str,
    read: impl FnOnce(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>> {
    let _moment = if conn.is_autocommit() { Some(conn.unchecked_transaction().map_err(sql(path, what))?) } else { None };
    if !has(conn, path, table)? {
        return Ok(None);
    }
    conn.query_row(select, [], read).optional().map_err(sql(path, what))
}

/// The fence's row.
///
/// # Errors
/// `RB0501`.
pub fn fence(conn: &Connection, path: &Path) -> Result<Option<FenceRow>> {
    row(conn, path, FENCE, "SELECT id, time, stamp, handed_to FROM _runbook_fence", "read the fence of", |r| {
        Ok(FenceRow { id: r.get(0)?, time: r.get(1)?, stamp: r.get(2)?, handed_to: r.get(3)? })
    })
}

/// Writes the fence's row.
///
/// # Errors
/// `RB0501`.
pub fn set_fence(conn: &Connection, path: &Path, row: &FenceRow) -> Result<()> {
    conn.execute_batch(
        "CREATE TABLE IF NOT EXISTS _runbook_fence (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL, time TEXT NOT NULL, \
         stamp TEXT, handed_to TEXT)",
    )
    .and_then(|()| {
        conn.execute(
            "INSERT OR REPLACE INTO _runbook_fence (one, id, time, stamp, handed_to) VALUES (1, ?1, ?2, ?3, ?4)",
            params![row.id, row.time, row.stamp, row.handed_to],
        )
    })
    .map(drop)
    .map_err(sql(path, "record the fence in"))
}

/// The copy's mark.
///
/// # Errors
/// `RB0501`.
pub fn copy(conn: &Connection, path: &Path) -> Result<Option<CopyRow>> {
    row(conn, path, COPY, "SELECT origin, stamp, fence, time FROM _runbook_copy", "read the mark of", |r| {
        Ok(CopyRow { origin: r.get(0)?, stamp: r.get(1)?, fence: r.get(2)?, time: r.get(3)? })
    })
}

/// Marks a copy.
///
/// # Errors
/// `RB0501`.
pub fn set_copy(conn: &Connection, path: &Path, row: &CopyRow) -> Result<()> {
    conn.execute_batch(
        "CREATE TABLE IF NOT EXISTS _runbook_copy (one INTEGER PRIMARY KEY CHECK (one = 1), origin TEXT NOT NULL, stamp TEXT NOT NULL, \
         fence TEXT, time TEXT NOT NULL)",
    )
    .and_then(|()| {
        conn.execute(
            "INSERT OR REPLACE INTO _runbook_copy (one, origin, stamp, fence, time) VALUES (1, ?1, ?2, ?3, ?4)",
            params![row.origin, row.stamp, row.fence, row.time],
        )
    })
    .map(drop)
    .map_err(sql(path, "mark"))
}

/// The promotion's mark.
///
/// # Errors
/// `RB0501`.
pub fn promoted(conn: &Connection, path: &Path) -> Result<Option<PromotedRow>> {
    row(conn, path, PROMOTED, "SELECT action, fence, stamp, time FROM _runbook_promoted", "read the mark of", |r| {
        Ok(PromotedRow { action: r.get(0)?, fence: r.get(1)?, stamp: r.get(2)?, time: r.get(3)? })
    })
}

/// Marks a promoted copy.
///
/// # Errors
/// `RB0501`.
pub fn set_promoted(conn: &Connection, path: &Path, row: &PromotedRow) -> Result<()> {
    conn.execute_batch(
        "CREATE TABLE IF NOT EXISTS _runbook_promoted (one INTEGER PRIMARY KEY CHECK (one = 1), action TEXT NOT NULL, \
         fence TEXT NOT NULL, stamp TEXT NOT NULL, time TEXT NOT NULL)",
    )
    .and_then(|()| {
        conn.execute(
            "INSERT OR REPLACE INTO _runbook_promoted (one, action, fence, stamp, time) VALUES (1, ?1, ?2, ?3, ?4)",
            params![row.action, row.fence, row.stamp, row.time],
        )
    })
    .map(drop)
    .map_err(sql(path, "mark"))
}

/// Drops one of the engine's tables.
///
/// # Errors
/// `RB0501`.
pub fn drop_table(conn: &Connection, path: &Path, table: &str) -> Result<()> {
    conn.execute_batch(&format!("DROP TABLE IF EXISTS main.{table}")).map_err(sql(path, "change"))
}

/// Reads what the file is to the engine.
///
/// # Errors
/// `RB0500`, `RB0501`.
pub fn state(path: &Path) -> Result<State> {
    // An empty file is a database without anything in it, for SQLite and for us.
    let empty = |m: std::fs::Metadata| m.is_file() && m.len() == 0 && !super::open::beside(path, "-wal").exists();
    if std::fs::metadata(path).map_or(true, empty) {
        return Ok(State::default());
    }
    let conn = super::open::read(path)?;
    let tx = conn.unchecked_transaction().map_err(sql(path, "read"))?;
    let mut s =
        State { exists: true, fence: fence(&tx, path)?, copy: copy(&tx, path)?, promoted: promoted(&tx, path)?, unguarded: Vec::new() };
    if s.fence.is_some() || s.is_unpromoted_copy() {
        s.unguarded = guard::missing(&tx, path)?;
    }
    Ok(s)
}
