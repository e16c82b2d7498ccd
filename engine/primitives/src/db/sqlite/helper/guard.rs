//! Write protection by triggers: put on every table in one transaction, and proven by writes that are refused.
//!
//! Triggers live in the database file, so they bind every process that opens it, also those that have it open already: SQLite
//! compares the schema's version whenever a statement starts. They outlive a crash of anyone. What goes around triggers (schema
//! changes, incremental blob writes, a connection that has triggers switched off) is found afterwards by the content's stamp, which
//! `wait_caught_up` and `promote` compare.

use std::path::Path;

use runbook_core::Result;
use rusqlite::{Connection, ErrorCode};

use super::digest;
use super::open::{self, ident, literal, sql};

/// How every refusal begins, so that applications and the proof can tell it.
pub const REFUSAL: &str = "fenced by runbook: ";

const VERBS: [&str; 3] = ["INSERT", "UPDATE", "DELETE"];

fn trigger(verb: &str, table: &str) -> String {
    format!("{}guard_{}_{table}", digest::ENGINE, verb.to_lowercase())
}

/// The application's tables that triggers can protect.
///
/// # Errors
/// `RB0501`.
pub fn tables(conn: &Connection, path: &Path) -> Result<Vec<String>> {
    let err = sql(path, "list the tables of");
    let mut stmt =
        conn.prepare("SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' ORDER BY name").map_err(&err)?;
    let names = stmt.query_map([], |r| r.get::<_, String>(0)).map_err(&err)?;
    let names: Vec<String> = names.collect::<rusqlite::Result<_>>().map_err(&err)?;
    Ok(names.into_iter().filter(|n| !digest::is_internal(n)).collect())
}

/// Tables that triggers cannot protect: virtual ones, which may keep their rows anywhere.
///
/// # Errors
/// `RB0501`.
pub fn unguardable(conn: &Connection, path: &Path) -> Result<Vec<String>> {
    let err = sql(path, "list the tables of");
    let mut stmt =
        conn.prepare("SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'virtual' ORDER BY name").map_err(&err)?;
    let names = stmt.query_map([], |r| r.get(0)).map_err(&err)?;
    names.collect::<rusqlite::Result<_>>().map_err(&err)
}

/// Puts the protection on every table; `conn` is in a write transaction. Any earlier protection is replaced.
///
/// # Errors
/// `RB0501`.
pub fn install(conn: &Connection, path: &Path, why: &str) -> Result<()> {
    remove(conn, path)?;
    let refusal = literal(&format!("{REFUSAL}{why}"));
    for table in tables(conn, path)? {
        for verb in VERBS {
            let text = format!(
                "CREATE TRIGGER {} BEFORE {verb} ON {} BEGIN SELECT RAISE(ABORT, {refusal}); END",
                ident(&trigger(verb, &table)),
                ident(&table)
            );
            conn.execute_batch(&text).map_err(sql(path, "protect"))?;
        }
    }
    Ok(())
}

/// Takes the protection off; `conn` is in a write transaction.
///
/// # Errors
/// `RB0501`.
pub fn remove(conn: &Connection, path: &Path) -> Result<()> {
    for (name, _) in installed(conn, path)? {
        conn.execute_batch(&format!("DROP TRIGGER {}", ident(&name))).map_err(sql(path, "unprotect"))?;
    }
    Ok(())
}

fn installed(conn: &Connection, path: &Path) -> Result<Vec<(String, String)>> {
    let err = sql(path, "read the schema of");
    let mut stmt = conn.prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").map_err(&err)?;
    let found = stmt.query_map([], |r| Ok((r.get::<_, String>(0)?, r.get::<_, String>(1)?))).map_err(&err)?;
    let found: Vec<(String, String)> = found.collect::<rusqlite::Result<_>>().map_err(&err)?;
    Ok(found.into_iter().filter(|(n, _)| n.starts_with(&format!("{}guard_", digest::ENGINE))).collect())
}

/// Tables that lack a part of the protection.
///
/// # Errors
/// `RB0501`.
pub fn missing(conn: &Connection, path: &Path) -> Result<Vec<String>> {
    let there = installed(conn, path)?;
    let whole = |table: &str| VERBS.iter().all(|v| there.iter().any(|(n, s)| *n == trigger(v, table) && s.contains("RAISE(ABORT")));
    Ok(tables(conn, path)?.into_iter().filter(|t| !whole(t)).collect())
}

/// Tries to insert, update and delete on every table, over a connection of its own, in a transaction that is rolled back.
/// Returns what was not refused by the fence; empty is the proof.
///
/// # Errors
/// `RB0501` when it cannot be tried.
pub fn prove(path: &Path) -> Result<Vec<String>> {
    let conn = open::write(path)?;
    conn.execute_batch("BEGIN IMMEDIATE").map_err(sql(path, "try a write on"))?;
    let leaks = try_all(&conn, path);
    conn.execute_batch("ROLLBACK").map_err(sql(path, "take back a tried write on"))?;
    leaks
}

fn try_all(conn: &Connection, path: &Path) -> Result<Vec<String>> {
    let mut leaks: Vec<String> = unguardable(conn, path)?.into_iter().map(|t| format!("{t} is a virtual table")).collect();
    for table in tables(conn, path)? {
        let t = ident(&table);
        let filled: bool = conn.query_row(&format!("SELECT EXISTS (SELECT 1 FROM {t})"), [], |r| r.get(0)).map_err(sql(path, "read"))?;
        let column = digest::columns(conn, path, &table)?.stored.first().map(|c| ident(c)).unwrap_or_default();
        let tries = [
            ("insert", format!("INSERT INTO {t} DEFAULT VALUES")),
            ("update", format!("UPDATE {t} SET {column} = {column}")),
            ("delete", format!("DELETE FROM {t}")),
        ];
        for (verb, text) in tries {
            match conn.execute_batch(&text) {
                Err(e) if refused(&e) => {}
                Err(e) => leaks.push(format!("{verb} on {table} could not be tried: {e}")),
                // On an empty table there is no row for an update or delete to be refused on; nothing is written either.
                Ok(()) if verb != "insert" && !filled => {}
                Ok(()) => leaks.push(format!("{verb} on {table} was not refused")),
            }
        }
    }
    Ok(leaks)
}

/// Whether a write was refused by this protection and by nothing else.
#[must_use]
pub fn refused(e: &rusqlite::Error) -> bool {
    e.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) && e.to_string().contains(REFUSAL)
}
