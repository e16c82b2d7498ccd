//! Opening database files, and turning SQLite's errors into the engine's.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use runbook_core::{Code, Error, Result};
use rusqlite::{Connection, ErrorCode, OpenFlags};

/// How long an operation waits for another process's lock unless it was told otherwise.
pub const BUSY: Duration = Duration::from_secs(30);

/// Makes a path absolute, with `~/` as the home folder. An absolute one can also never be taken for a `file:` URI.
pub fn resolve(text: &str) -> Result<PathBuf> {
    let bad = |why: String| Error::new(Code::DB_CONNECT, format!("the path {text:?} of the database cannot be used: {why}"));
    if text.is_empty() {
        return Err(bad("it is empty".into()));
    }
    let path = match text.strip_prefix("~/") {
        Some(rest) => PathBuf::from(std::env::var_os("HOME").ok_or_else(|| bad("HOME is not set".into()))?).join(rest),
        None => PathBuf::from(text),
    };
    std::path::absolute(path).map_err(|e| bad(e.to_string()))
}

/// The path with something appended to its file name: `shop.db` and `-wal` give `shop.db-wal`.
#[must_use]
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    name.into()
}

/// Opens for reading only.
///
/// # Errors
/// `RB0500`.
pub fn read(path: &Path) -> Result<Connection> {
    exists(path)?;
    let conn = with(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    match probe(&conn) {
        Ok(()) => Ok(conn),
        // A crashed writer's journal or WAL must first be rolled back or recovered, which a read-only connection cannot do.
        Err(e) if matches!(e.sqlite_error_code(), Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen)) => {
            let conn = with(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            conn.pragma_update(None, "query_only", true).map_err(sql(path, "open"))?;
            probe(&conn).map_err(sql(path, "open"))?;
            Ok(conn)
        }
        Err(e) => Err(sql(path, "open")(e)),
    }
}

/// Opens for reading and writing a database that exists. Commits are synced, so that what was acknowledged survives a power loss.
///
/// # Errors
/// `RB0500`.
pub fn write(path: &Path) -> Result<Connection> {
    exists(path)?;
    let conn = with(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    conn.pragma_update(None, "synchronous", "FULL").map_err(sql(path, "open"))?;
    probe(&conn).map_err(sql(path, "open"))?;
    Ok(conn)
}

/// Makes a new, empty database file.
///
/// # Errors
/// `RB0505` when it cannot be made.
pub fn create(path: &Path) -> Result<Connection> {
    with(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)
}

fn with(path: &Path, flags: OpenFlags) -> Result<Connection> {
    let mut conn = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(sql(path, "open"))?;
    patience(&mut conn, BUSY).map_err(sql(path, "open"))?;
    Ok(conn)
}

thread_local! {
    static PATIENCE: Cell<Duration> = const { Cell::new(BUSY) };
    static SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Sets how long statements wait for other processes' locks.
///
/// SQLite's own waiting sleeps up to 100 ms at a time. Against an application that writes without a pause its lock is free for
/// moments only, and one that looks so seldom is starved.
///
/// # Errors
/// Never one that matters.
pub fn patience(conn: &mut Connection, limit: Duration) -> rusqlite::Result<()> {
    PATIENCE.set(limit);
    conn.busy_handler(Some(|tries| {
        if tries == 0 || SINCE.get().is_none() {
            SINCE.set(Some(Instant::now()));
        }
        let waited = SINCE.get().map_or(Duration::ZERO, |t| t.elapsed());
        std::thread::sleep(if waited < Duration::from_secs(5) { Duration::from_micros(300) } else { Duration::from_millis(10) });
        waited < PATIENCE.get()
    }))
}

fn probe(conn: &Connection) -> rusqlite::Result<()> {
    conn.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
}

fn exists(path: &Path) -> Result<()> {
    match std::fs::metadata(path) {
        Ok(m) if m.is_file() => Ok(()),
        Ok(_) => Err(Error::new(Code::DB_CONNECT, format!("{} is not a file", path.display()))),
        Err(e) => Err(Error::new(Code::DB_CONNECT, format!("there is no database at {}: {e}", path.display()))
            .hint("check \"path\" in the database's section of runbook.toml; relative paths start at the login folder")),
    }
}

/// Turns SQLite's error into one of the engine's that names the file and what was being done.
pub fn sql<'a>(path: &'a Path, doing: &'a str) -> impl Fn(rusqlite::Error) -> Error + 'a {
    move |e| explain(path, doing, &e)
}

/// Turns SQLite's error into one of the engine's.
#[must_use]
pub fn explain(path: &Path, doing: &str, e: &rusqlite::Error) -> Error {
    let place = path.display();
    let code = e.sqlite_error_code();
    match code {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            Error::new(Code::DB_QUERY, format!("cannot {doing} {place}: another process holds its lock ({e})"))
                .hint("find the process with a long transaction (fuser or lsof on the file), or try again")
                .retryable(true)
        }
        Some(ErrorCode::NotADatabase | ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
            Error::new(Code::DB_CONNECT, format!("cannot {doing} {place}: {e}"))
                .hint("is it a SQLite database, and may the login user read and write the file and its folder?")
        }
        Some(ErrorCode::DatabaseCorrupt) => Error::new(Code::DB_QUERY, format!("cannot {doing} {place}: it is damaged ({e})"))
            .hint("run PRAGMA integrity_check on it, and restore it from a backup"),
        Some(ErrorCode::DiskFull) => Error::new(Code::DB_QUERY, format!("cannot {doing} {place}: the disk is full"))
            .hint("free some space on the host and try again"),
        _ => Error::new(Code::DB_QUERY, format!("cannot {doing} {place}: {e}")),
    }
}

/// Quotes a name for SQL.
#[must_use]
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a text for SQL.
#[must_use]
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
