//! The store in a SQLite file, `.runbook/journal.db`: WAL mode, every commit synced, modes 0600 and 0700.
//!
//! Safe for several threads (group commit, see `commit.rs`) and several processes: SQLite's own locks order the commits,
//! the fencing number decides who may append, and what is kept in memory is forgotten when another process has written.

mod commit;
mod errors;
mod locks;
mod open;
mod read;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use parking_lot::Mutex;
use rusqlite::{Connection, params};

use self::commit::{Group, Job, Writer};
use self::errors::sql;
use super::canonical::{Prepared, canonical};
use super::{Acquired, Batch, Entry, Holder, Message, NewRun, Operator, RunInfo, State, Store};
use crate::digest::sha256;
use crate::error::{Error, Result};
use crate::value::Value;

pub use self::open::SCHEMA;

/// Bits of an entry's key that hold its `seq`; the run's number is above them.
const SEQ_BITS: u32 = 32;

/// An entry's key.
fn key(run_no: i64, seq: u64) -> i64 {
    (run_no << SEQ_BITS) | seq as i64
}

/// The `seq` in an entry's key.
fn seq(key: i64) -> u64 {
    key as u64 & ((1 << SEQ_BITS) - 1)
}

fn state_text(state: State) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(s)) => s,
        _ => String::new(),
    }
}

/// A [`Store`] in a SQLite file.
pub struct SqliteStore {
    path: PathBuf,
    group: Group,
    /// Connections that only read; one is taken for each reading and put back.
    readers: Mutex<Vec<Connection>>,
}

impl SqliteStore {
    /// Opens the store in this file; makes file and folder when they are missing.
    ///
    /// # Errors
    /// `RB0002` when it cannot be opened, `RB0003` when the disk is full, `RB0004` when it is damaged, `RB0024` when a newer
    /// version wrote it.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let conn = open::prepare(&path)?;
        Ok(SqliteStore { group: Group::new(Writer::new(path.clone(), conn)), readers: Mutex::default(), path })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn job(&self, run: &str, fence: i64, batch: Batch) -> Result<Job> {
        let rows = batch.bodies.iter().map(|(time, body)| Prepared::new(*time, body)).collect::<Result<_>>()?;
        let facts = batch.facts.into_iter().map(|(k, v)| fact(&v).map(|text| (k, text))).collect::<Result<_>>()?;
        Ok(Job { run: run.to_string(), fence, rows, facts, state: batch.state, ticket: None })
    }

    /// Runs `f` with a connection for reading.
    fn read<T>(&self, what: &str, f: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        let conn = self.reader()?;
        let result = f(&conn).map_err(|e| sql(&self.path, what, &e));
        self.readers.lock().push(conn);
        result
    }

    fn reader(&self) -> Result<Connection> {
        let ready = self.readers.lock().pop();
        match ready {
            Some(conn) => Ok(conn),
            None => open::connect(&self.path),
        }
    }

    /// Runs `f` in a transaction of its own.
    fn write<T>(&self, what: &str, f: impl FnOnce(&mut Writer) -> Result<T>) -> Result<T> {
        self.group.writer.lock().transaction(what, f)
    }

    fn run_no(&self, conn: &Connection, run: &str) -> Result<i64> {
        use rusqlite::OptionalExtension;
        conn.prepare_cached("SELECT no FROM runs WHERE id = ?1")
            .and_then(|mut s| s.query_row([run], |r| r.get(0)).optional())
            .map_err(|e| sql(&self.path, "looking for the run", &e))?
            .ok_or_else(|| no_run(run))
    }

    fn keep(&self, conn: &Connection, no: i64, sources: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        let fail = |e: rusqlite::Error| sql(&self.path, "keeping the sources", &e);
        for (path, bytes) in sources {
            let sha = sha256(bytes);
            conn.prepare_cached("INSERT INTO contents (sha, bytes) VALUES (?1, ?2) ON CONFLICT DO NOTHING")
                .and_then(|mut s| s.execute(params![sha, bytes]))
                .map_err(fail)?;
            conn.prepare_cached("INSERT INTO sources (run, path, sha) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET sha = excluded.sha")
                .and_then(|mut s| s.execute(params![no, path, sha]))
                .map_err(fail)?;
        }
        Ok(())
    }
}

/// A fact's text; `None` when it is to be removed.
fn fact(value: &Value) -> Result<Option<String>> {
    if *value == Value::Unit { Ok(None) } else { canonical(&value.to_json()).map(Some) }
}

fn no_run(id: &str) -> Error {
    Error::new(crate::Code::NO_RUN, format!("there is no run {id}")).hint("see `runbook runs`")
}

impl Store for SqliteStore {
    fn create(&self, run: &NewRun) -> Result<()> {
        self.write("recording a new run", |w| {
            let made = w
                .conn
                .prepare_cached(
                    "INSERT INTO runs (id, environment, runbook, created, state) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
                )
                .and_then(|mut s| {
                    s.execute(params![
                        run.id,
                        run.environment,
                        run.runbook,
                        crate::clock::rfc3339(Timestamp::now()),
                        state_text(State::Running)
                    ])
                })
                .map_err(|e| sql(&self.path, "recording a new run", &e))?;
            if made == 0 {
                return Err(Error::internal(format!("there is a run {} already", run.id)));
            }
            self.keep(&w.conn, w.conn.last_insert_rowid(), &run.sources)
        })
    }

    fn runs(&self) -> Result<Vec<RunInfo>> {
        self.read_runs()
    }

    fn run(&self, id: &str) -> Result<RunInfo> {
        self.read_run(id)
    }

    fn source(&self, run: &str, path: &str) -> Result<Option<Vec<u8>>> {
        self.read_source(run, path)
    }

    fn sources(&self, run: &str) -> Result<BTreeMap<String, Vec<u8>>> {
        self.read_sources(run)
    }

    fn replace_sources(&self, run: &str, fence: i64, sources: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        self.write("keeping the edited sources", |w| {
            w.check_fence(run, fence)?;
            let no = self.run_no(&w.conn, run)?;
            self.keep(&w.conn, no, sources)
        })
    }

    fn entries(&self, run: &str, from_seq: u64, f: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        self.read_entries(run, from_seq, f)
    }

    fn append(&self, run: &str, fence: i64, batch: Batch) -> Result<()> {
        self.group.now(self.job(run, fence, batch)?)
    }

    fn append_later(&self, run: &str, fence: i64, batch: Batch) -> Result<()> {
        self.group.later(self.job(run, fence, batch)?)
    }

    fn flush(&self, run: &str, fence: i64) -> Result<()> {
        self.group.now(self.job(run, fence, Batch::default())?)
    }

    fn acquire(&self, environment: &str, run: &str, operator: &Operator, until: Timestamp, over: Option<i64>) -> Result<Acquired> {
        self.take_lock(environment, run, operator, until, over)
    }

    fn renew(&self, environment: &str, fence: i64, until: Timestamp) -> Result<()> {
        self.renew_lock(environment, fence, until)
    }

    fn release(&self, environment: &str, fence: i64) -> Result<()> {
        self.release_lock(environment, fence)
    }

    fn holder(&self, environment: &str) -> Result<Option<Holder>> {
        let conn = self.reader()?;
        let holder = self.lock_holder(&conn, environment);
        self.readers.lock().push(conn);
        Ok(holder?.1)
    }

    fn post(&self, run: &str, message: &Message) -> Result<()> {
        let text = serde_json::to_string(message).map_err(|e| Error::internal(format!("a message cannot be written: {e}")))?;
        self.write("leaving a message", |w| {
            let no = self.run_no(&w.conn, run)?;
            w.conn
                .prepare_cached("INSERT INTO messages (run, kind, path, message) VALUES (?1, ?2, ?3, ?4)")
                .and_then(|mut s| s.execute(params![no, message.kind, message.path, text]))
                .map_err(|e| sql(&self.path, "leaving a message", &e))?;
            Ok(())
        })
    }

    fn messages(&self, run: &str, kind: &str, path: &str) -> Result<Vec<Message>> {
        let texts: Vec<String> = self.read("looking for messages", |c| {
            let mut s = c.prepare_cached(
                "SELECT message FROM messages WHERE run = (SELECT no FROM runs WHERE id = ?1) AND kind = ?2 AND path = ?3 ORDER BY id",
            )?;
            s.query_map([run, kind, path], |r| r.get(0))?.collect()
        })?;
        texts
            .iter()
            .map(|t| {
                serde_json::from_str(t).map_err(|e| errors::damaged(&self.path, format!("a message of run {run} cannot be read: {e}")))
            })
            .collect()
    }

    fn clear_messages(&self, run: &str, kind: &str, path: &str) -> Result<()> {
        self.write("removing messages", |w| {
            w.conn
                .prepare_cached("DELETE FROM messages WHERE run = (SELECT no FROM runs WHERE id = ?1) AND kind = ?2 AND path = ?3")
                .and_then(|mut s| s.execute([run, kind, path]))
                .map_err(|e| sql(&self.path, "removing messages", &e))?;
            Ok(())
        })
    }

    fn check(&self) -> Result<()> {
        let findings: Vec<String> = self.read("checking the file", |c| {
            let mut s = c.prepare("PRAGMA integrity_check(5)")?;
            s.query_map([], |r| r.get(0))?.collect()
        })?;
        if findings == ["ok"] {
            return Ok(());
        }
        Err(errors::damaged(&self.path, format!("{} is damaged: {}", self.path.display(), findings.join("; "))))
    }

    fn fact(&self, environment: &str, key: &str) -> Result<Option<Value>> {
        self.read_fact(environment, key)
    }
}
