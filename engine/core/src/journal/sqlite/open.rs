//! Opening and making the file: modes, pragmas, schema version.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::errors::{damaged, sql};
use crate::error::{Code, Error, Result};

/// The schema that this version writes; `PRAGMA user_version`.
pub const SCHEMA: i32 = 1;

/// Marks the file as a journal of runbook; `PRAGMA application_id`: "RBjl".
const APPLICATION: i32 = 0x5242_6a6c;

/// How long a call waits for another process that writes.
const BUSY: Duration = Duration::from_secs(15);

/// An entry's key is the run's number and the entry's `seq` in one integer: one tree, appended at a run's end, no index.
const TABLES: &str = "
CREATE TABLE runs (
    no INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, environment TEXT NOT NULL, runbook TEXT NOT NULL, created TEXT NOT NULL,
    state TEXT NOT NULL, closed INTEGER NOT NULL DEFAULT 0, closed_head BLOB
) STRICT;
CREATE TABLE entries (id INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL, hash BLOB NOT NULL) STRICT;
CREATE TABLE contents (sha BLOB NOT NULL UNIQUE, bytes BLOB NOT NULL) STRICT;
CREATE TABLE sources (run INTEGER NOT NULL, path TEXT NOT NULL, sha BLOB NOT NULL, PRIMARY KEY (run, path)) STRICT, WITHOUT ROWID;
CREATE TABLE locks (environment TEXT PRIMARY KEY, fence INTEGER NOT NULL, run TEXT, operator TEXT, until TEXT) STRICT, WITHOUT ROWID;
CREATE TABLE messages (id INTEGER PRIMARY KEY, run INTEGER NOT NULL, kind TEXT NOT NULL, path TEXT NOT NULL, message TEXT NOT NULL) STRICT;
CREATE INDEX messages_of ON messages (run, kind, path);
CREATE TABLE facts (environment TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (environment, key)) STRICT, WITHOUT ROWID;
";

/// Makes the file when it is missing, tightens its modes, checks that this version can use it.
pub(super) fn prepare(path: &Path) -> Result<Connection> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    if !folder.exists() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|e| io_error(folder, "the folder cannot be made", &e))?;
    }
    match fs::metadata(path) {
        Ok(m) if m.len() == 0 => {
            // The file is linked into place complete (below), so it never was empty.
            return Err(damaged(path, format!("{} is empty: its content was cut off", path.display())));
        }
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => make(path, folder)?,
        Err(e) => return Err(io_error(path, "it cannot be read", &e)),
    }
    for suffix in ["", "-wal", "-shm"] {
        tighten(&with_suffix(path, suffix))?;
    }
    let conn = connect(path)?;
    check_version(path, &conn)?;
    Ok(conn)
}

/// Opens one more connection to a file that [`prepare`] has looked at.
pub(super) fn connect(path: &Path) -> Result<Connection> {
    let fail = |e: rusqlite::Error| sql(path, "opening it", &e);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(fail)?;
    conn.busy_timeout(BUSY).map_err(fail)?;
    conn.set_prepared_statement_cache_capacity(64);
    conn.execute_batch("PRAGMA synchronous=FULL; PRAGMA cell_size_check=ON; PRAGMA trusted_schema=OFF; PRAGMA temp_store=MEMORY;")
        .map_err(fail)?;
    let mode = write_ahead(&conn).map_err(fail)?;
    if mode != "wal" {
        return Err(Error::new(Code::STORE, format!("{} cannot be kept in WAL mode (it is in mode {mode})", path.display()))
            .hint("keep the project on a local file system: shared memory is needed beside the file"));
    }
    Ok(conn)
}

/// Keeps the file in WAL mode. Two processes that change a new file to it at once would wait for each other, so SQLite tells one of them
/// that it is busy without waiting at all (`sqlite3_busy_handler`: it is not called where waiting could be a deadlock).
fn write_ahead(conn: &Connection) -> rusqlite::Result<String> {
    let began = Instant::now();
    loop {
        match conn.query_row("PRAGMA journal_mode=WAL", [], |r| r.get(0)) {
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && began.elapsed() < BUSY => {
                std::thread::sleep(Duration::from_millis(5));
            }
            done => return done,
        }
    }
}

fn check_version(path: &Path, conn: &Connection) -> Result<()> {
    let fail = |e: rusqlite::Error| sql(path, "reading its version", &e);
    let application: i32 = conn.query_row("PRAGMA application_id", [], |r| r.get(0)).map_err(fail)?;
    let version: i32 = conn.query_row("PRAGMA user_version", [], |r| r.get(0)).map_err(fail)?;
    if application != APPLICATION {
        return Err(Error::new(Code::STORE, format!("{} is a SQLite file, but no journal of runbook", path.display()))
            .hint("move it away: runbook makes a file of its own in its place"));
    }
    if version > SCHEMA {
        return Err(Error::new(
            Code::JOURNAL_FORMAT,
            format!("{} has format {version}, this version of runbook reads up to {SCHEMA}", path.display()),
        )
        .hint("use the version of runbook that wrote it, or a newer one"));
    }
    if version < 1 {
        return Err(damaged(path, format!("{} has no format version", path.display())));
    }
    Ok(())
}

/// Makes the file under another name and links it into place, so that no process ever sees it half made.
fn make(path: &Path, folder: &Path) -> Result<()> {
    let unique = format!(".new-{}-{:08x}", std::process::id(), rand::random::<u32>());
    let temp = with_suffix(path, &unique);
    let made = fill(&temp).and_then(|()| match fs::hard_link(&temp, path) {
        // Another process was quicker: its file is as good.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(io_error(path, "it cannot be made", &e)),
        Ok(()) => fs::File::open(folder).and_then(|d| d.sync_all()).map_err(|e| io_error(folder, "the folder cannot be synced", &e)),
    });
    for suffix in ["", "-wal", "-shm", "-journal"] {
        // Leftovers of a name of our own do no harm.
        let _ = fs::remove_file(with_suffix(&temp, suffix));
    }
    made
}

fn fill(temp: &Path) -> Result<()> {
    let fail = |e: rusqlite::Error| sql(temp, "making it", &e);
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(temp).map_err(|e| io_error(temp, "it cannot be made", &e))?;
    // Not in WAL mode yet: the file has to be complete in itself when it is linked.
    let mut conn = Connection::open_with_flags(temp, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(fail)?;
    conn.execute_batch("PRAGMA synchronous=FULL").map_err(fail)?;
    let tx = conn.transaction().map_err(fail)?;
    tx.execute_batch(TABLES).map_err(fail)?;
    tx.pragma_update(None, "application_id", APPLICATION).map_err(fail)?;
    tx.pragma_update(None, "user_version", SCHEMA).map_err(fail)?;
    tx.commit().map_err(fail)?;
    conn.close().map_err(|(_, e)| fail(e))
}

/// Takes away what others may do with a file; one that is not there is made by SQLite with the main file's mode.
fn tighten(file: &Path) -> Result<()> {
    match fs::metadata(file) {
        Ok(m) if m.permissions().mode() & 0o077 != 0 => {
            fs::set_permissions(file, fs::Permissions::from_mode(0o600)).map_err(|e| io_error(file, "its mode cannot be set to 0600", &e))
        }
        _ => Ok(()),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn io_error(path: &Path, what: &str, e: &io::Error) -> Error {
    let code = if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) { Code::STORE_FULL } else { Code::STORE };
    Error::new(code, format!("{}: {what}: {e}", path.display())).hint("the project's folder must be writable and have room")
}
