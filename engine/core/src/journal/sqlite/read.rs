//! Reading: runs, entries (each checked against its hash and place), sources, facts.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row};

use super::errors::{damaged, sql};
use super::{SqliteStore, key, no_run};
use crate::digest::{hex, sha256};
use crate::error::{Code, Error, Result};
use crate::journal::canonical::seal;
use crate::journal::{Entry, GENESIS, RunInfo};
use crate::value::Value;

const RUN_COLUMNS: &str = "SELECT no, id, environment, runbook, created, state, closed, closed_head FROM runs";

struct RunRow {
    no: i64,
    info: RunInfo,
    state: String,
    closed: u64,
    closed_head: Option<Vec<u8>>,
}

fn run_row(r: &Row<'_>) -> rusqlite::Result<RunRow> {
    let info = RunInfo {
        id: r.get(1)?,
        environment: r.get(2)?,
        runbook: r.get(3)?,
        created: r.get(4)?,
        state: crate::journal::State::Running,
        entries: 0,
        head: GENESIS.into(),
    };
    let closed: i64 = r.get(6)?;
    Ok(RunRow { no: r.get(0)?, info, state: r.get(5)?, closed: closed.unsigned_abs(), closed_head: r.get(7)? })
}

impl SqliteStore {
    pub(super) fn read_runs(&self) -> Result<Vec<RunInfo>> {
        self.with_reader(|c| {
            let rows: Vec<RunRow> = c
                .prepare_cached(&format!("{RUN_COLUMNS} ORDER BY no DESC"))
                .and_then(|mut s| s.query_map([], run_row)?.collect())
                .map_err(|e| sql(&self.path, "listing the runs", &e))?;
            rows.into_iter().map(|r| self.complete(c, r)).collect()
        })
    }

    pub(super) fn read_run(&self, id: &str) -> Result<RunInfo> {
        self.with_reader(|c| {
            let mut rows: Vec<RunRow> = c
                .prepare_cached(&format!("{RUN_COLUMNS} WHERE substr(id, 1, length(?1)) = ?1 ORDER BY id"))
                .and_then(|mut s| s.query_map([id], run_row)?.collect())
                .map_err(|e| sql(&self.path, "looking for the run", &e))?;
            if id.is_empty() {
                return Err(no_run("without a name"));
            }
            if let Some(i) = rows.iter().position(|r| r.info.id == id) {
                rows.swap(0, i);
                rows.truncate(1);
            }
            if rows.len() > 1 {
                let names: Vec<_> = rows.iter().map(|r| r.info.id.as_str()).collect();
                return Err(Error::new(Code::NO_RUN, format!("\"{id}\" may be any of {}", names.join(", "))).hint("give more of its id"));
            }
            match rows.pop() {
                Some(row) => self.complete(c, row),
                None => Err(no_run(id)),
            }
        })
    }

    /// Adds what the run's entries say: how many there are, the head, when it began.
    fn complete(&self, c: &Connection, row: RunRow) -> Result<RunInfo> {
        let RunRow { no, mut info, state, .. } = row;
        let fail = |e: rusqlite::Error| sql(&self.path, "looking for the run's end", &e);
        info.state = serde_json::from_value(serde_json::Value::String(state))
            .map_err(|e| damaged(&self.path, format!("the state of run {} cannot be read: {e}", info.id)))?;
        let (low, high) = (key(no, 0), key(no + 1, 0) - 1);
        let last: Option<(i64, Vec<u8>)> = c
            .prepare_cached("SELECT id, hash FROM entries WHERE id BETWEEN ?1 AND ?2 ORDER BY id DESC LIMIT 1")
            .and_then(|mut s| s.query_row([low, high], |r| Ok((r.get(0)?, r.get(1)?))).optional())
            .map_err(fail)?;
        if let Some((id, hash)) = last {
            info.entries = super::seq(id) + 1;
            info.head = hex(&hash);
            let first: Option<String> = c
                .prepare_cached("SELECT time FROM entries WHERE id = ?1")
                .and_then(|mut s| s.query_row([low], |r| r.get(0)).optional())
                .map_err(fail)?;
            if let Some(time) = first {
                info.created = time;
            }
        }
        Ok(info)
    }

    pub(super) fn read_entries(&self, run: &str, from_seq: u64, f: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        self.with_reader(|c| {
            // One transaction, so that the run's row and its entries are of one moment.
            let tx = c.unchecked_transaction().map_err(|e| sql(&self.path, "reading the entries", &e))?;
            self.stream(&tx, run, from_seq, f)
        })
    }

    fn stream(&self, c: &Connection, run: &str, from_seq: u64, f: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        let fail = |e: rusqlite::Error| sql(&self.path, &format!("reading the entries of run {run}"), &e);
        let row = c
            .prepare_cached(&format!("{RUN_COLUMNS} WHERE id = ?1"))
            .and_then(|mut s| s.query_row([run], run_row).optional())
            .map_err(fail)?
            .ok_or_else(|| no_run(run))?;
        let broken =
            |seq: u64, what: &str| damaged(&self.path, format!("entry {seq} of run {run} {what}")).detail("seq", seq).detail("run", run);
        let mut prev = match from_seq {
            0 => GENESIS.to_string(),
            n => {
                let before: Option<Vec<u8>> = c
                    .prepare_cached("SELECT hash FROM entries WHERE id = ?1")
                    .and_then(|mut s| s.query_row([key(row.no, n - 1)], |r| r.get(0)).optional())
                    .map_err(fail)?;
                match before {
                    Some(hash) => hex(&hash),
                    None => return Ok(()),
                }
            }
        };
        let mut statement =
            c.prepare_cached("SELECT id, time, kind, data, hash FROM entries WHERE id BETWEEN ?1 AND ?2 ORDER BY id").map_err(fail)?;
        let mut rows = statement.query([key(row.no, from_seq), key(row.no + 1, 0) - 1]).map_err(fail)?;
        let mut scratch = String::new();
        let mut seq = from_seq;
        while let Some(r) = rows.next().map_err(fail)? {
            if super::seq(r.get(0).map_err(fail)?) != seq {
                return Err(broken(seq, "is missing"));
            }
            let time: String = r.get(1).map_err(fail)?;
            let kind: String = r.get(2).map_err(fail)?;
            let text = r.get_ref(3).and_then(|t| t.as_str().map_err(rusqlite::Error::from)).map_err(fail)?;
            let hash = r.get_ref(4).and_then(|b| b.as_blob().map_err(rusqlite::Error::from)).map_err(fail)?;
            if seal(&mut scratch, run, seq, &time, &kind, text, &prev) != hash {
                return Err(broken(seq, "is not what was recorded"));
            }
            let data = serde_json::from_str(text).map_err(|_| broken(seq, "is not what was recorded"))?;
            let hash = hex(hash);
            seq += 1;
            if seq == row.closed && row.closed_head.as_deref().is_some_and(|h| hex(h) != hash) {
                return Err(broken(seq - 1, "is not what was recorded"));
            }
            let prev = std::mem::replace(&mut prev, hash.clone());
            f(Entry { seq: seq - 1, time, run: run.to_string(), kind, data, prev, hash })?;
        }
        if from_seq <= row.closed && seq < row.closed {
            return Err(broken(seq, "and what follows it are missing"));
        }
        Ok(())
    }

    pub(super) fn read_source(&self, run: &str, path: &str) -> Result<Option<Vec<u8>>> {
        let found: Option<(Vec<u8>, Option<Vec<u8>>)> = self.read("reading a kept source", |c| {
            c.prepare_cached(
                "SELECT s.sha, c.bytes FROM runs r JOIN sources s ON s.run = r.no LEFT JOIN contents c ON c.sha = s.sha
                 WHERE r.id = ?1 AND s.path = ?2",
            )?
            .query_row([run, path], |r| Ok((r.get(0)?, r.get(1)?)))
            .optional()
        })?;
        found.map(|(sha, bytes)| self.intact(run, path, &sha, bytes)).transpose()
    }

    pub(super) fn read_sources(&self, run: &str) -> Result<BTreeMap<String, Vec<u8>>> {
        type Kept = (String, Vec<u8>, Option<Vec<u8>>);
        let found: Vec<Kept> = self.read("reading the kept sources", |c| {
            let mut s = c.prepare_cached(
                "SELECT s.path, s.sha, c.bytes FROM runs r JOIN sources s ON s.run = r.no LEFT JOIN contents c ON c.sha = s.sha WHERE r.id = ?1",
            )?;
            s.query_map([run], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?.collect()
        })?;
        found.into_iter().map(|(path, sha, bytes)| self.intact(run, &path, &sha, bytes).map(|b| (path, b))).collect()
    }

    fn intact(&self, run: &str, path: &str, sha: &[u8], bytes: Option<Vec<u8>>) -> Result<Vec<u8>> {
        bytes
            .filter(|b| sha256(b) == *sha)
            .ok_or_else(|| damaged(&self.path, format!("the file {path} kept for run {run} is not what was recorded")))
    }

    pub(super) fn read_fact(&self, environment: &str, name: &str) -> Result<Option<Value>> {
        let text: Option<String> = self.read("reading a fact", |c| {
            c.prepare_cached("SELECT value FROM facts WHERE environment = ?1 AND key = ?2")?
                .query_row([environment, name], |r| r.get(0))
                .optional()
        })?;
        let Some(text) = text else { return Ok(None) };
        let json = serde_json::from_str(&text)
            .map_err(|e| damaged(&self.path, format!("the fact {name} of environment {environment} cannot be read: {e}")))?;
        // Older versions kept a removed fact as a recorded nothing.
        Value::from_json(&json).map(|v| (v != Value::Unit).then_some(v))
    }

    fn with_reader<T>(&self, f: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let conn = self.reader()?;
        let result = f(&conn);
        self.readers.lock().push(conn);
        result
    }
}
