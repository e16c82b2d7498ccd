//! What SQLite's errors mean for a run.

use std::path::Path;

use rusqlite::ffi;

use crate::error::{Code, Error};

/// Turns an error of SQLite into the engine's: full disk, damaged file, busy, or any other refusal.
pub(super) fn sql(path: &Path, what: &str, e: &rusqlite::Error) -> Error {
    let file = path.display();
    let (primary, extended) = e.sqlite_error().map_or((0, 0), |f| (f.extended_code & 0xff, f.extended_code));
    match (primary, extended) {
        (ffi::SQLITE_FULL, _) | (_, ffi::SQLITE_IOERR_SHMSIZE) => {
            Error::new(Code::STORE_FULL, format!("the disk under {file} is full: {what} failed"))
                .hint("make room on that disk, then resume the run: an action whose intent could not be recorded was not begun")
        }
        (ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB, _) | (_, ffi::SQLITE_IOERR_SHORT_READ | ffi::SQLITE_IOERR_CORRUPTFS) => {
            damaged(path, format!("{file} is damaged: {what} failed: {e}"))
        }
        (ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED, _) => {
            Error::new(Code::STORE, format!("{file} is kept busy by another process: {what} was given up"))
                .hint("look for another runbook process or a backup that reads this file for long, then try again")
                .retryable(true)
        }
        (ffi::SQLITE_READONLY | ffi::SQLITE_PERM | ffi::SQLITE_AUTH | ffi::SQLITE_CANTOPEN, _) => {
            Error::new(Code::STORE, format!("{file} cannot be opened for writing: {what} failed: {e}"))
                .hint("the file and its folder must belong to you and be writable; runbook makes them with modes 0600 and 0700")
        }
        (0, _) => match e {
            // The file was read, but a row is not what this program writes.
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::Utf8Error(..) => damaged(path, format!("{file} is damaged: {what} failed: {e}")),
            other => Error::internal(format!("{what} failed on {file}: {other}")).kind(crate::error::Kind::Store),
        },
        _ => Error::new(Code::STORE, format!("{what} failed on {file}: {e}"))
            .hint("look at the system's log for errors of the disk; the run can be resumed once the file can be written again"),
    }
}

/// The file is not what was written.
pub(super) fn damaged(path: &Path, message: impl Into<String>) -> Error {
    Error::new(Code::STORE_DAMAGED, message).hint(format!(
        "keep a copy of {0} with its -wal and -shm files, then restore them from a backup; `sqlite3 {0} .recover` may save what is readable",
        path.display()
    ))
}
