//! Writing: one connection, one transaction for everything that waits (group commit), the fence checked inside of it.
//!
//! There is no writer thread. Callers put their job into a queue; whoever finds nobody at work becomes the leader, takes
//! the whole queue and commits it. A single caller therefore pays no hand-over, and callers that come while a commit waits
//! for the disk share the next one.

use std::collections::HashMap;
use std::path::PathBuf;

use parking_lot::{Condvar, Mutex, MutexGuard};
use rusqlite::{Connection, OptionalExtension, params};

use super::errors::{damaged, sql};
use super::{SEQ_BITS, key, state_text};
use crate::digest::{hex, unhex};
use crate::error::{Code, Error, Result};
use crate::journal::canonical::{Prepared, seal};
use crate::journal::{GENESIS, State};

/// How many jobs `append_later` may leave before it commits them itself.
const MAX_LATER: usize = 1024;

/// How often the end of a growing chain is noted with its run, in entries.
const NOTED_EVERY: u64 = 64;

/// A batch on its way to the disk.
pub(super) struct Job {
    pub run: String,
    pub fence: i64,
    pub rows: Vec<Prepared>,
    /// Facts by key, as JSON text; `None` removes one.
    pub facts: Vec<(String, Option<String>)>,
    pub state: Option<State>,
    /// Whom to tell; nobody waits for a job that came by `append_later`.
    pub ticket: Option<u64>,
}

impl Job {
    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.facts.is_empty() && self.state.is_none()
    }
}

#[derive(Default)]
struct Waiting {
    queue: Vec<Job>,
    done: HashMap<u64, Result<()>>,
    next_ticket: u64,
    leading: bool,
}

/// The queue before the writer.
pub(super) struct Group {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    pub writer: Mutex<Writer>,
}

impl Group {
    pub fn new(writer: Writer) -> Self {
        Group { waiting: Mutex::default(), wake: Condvar::new(), writer: Mutex::new(writer) }
    }

    /// Leaves a job for the next commit.
    pub fn later(&self, job: Job) -> Result<()> {
        let mut waiting = self.waiting.lock();
        if waiting.queue.len() >= MAX_LATER {
            return self.run(waiting, job);
        }
        waiting.queue.push(job);
        Ok(())
    }

    /// Commits a job with everything that came before it, and waits for the disk.
    pub fn now(&self, job: Job) -> Result<()> {
        let waiting = self.waiting.lock();
        if job.is_empty() && waiting.queue.is_empty() && !waiting.leading {
            return Ok(());
        }
        self.run(waiting, job)
    }

    fn run(&self, mut waiting: MutexGuard<'_, Waiting>, mut job: Job) -> Result<()> {
        let ticket = waiting.next_ticket;
        waiting.next_ticket += 1;
        job.ticket = Some(ticket);
        waiting.queue.push(job);
        loop {
            if let Some(result) = waiting.done.remove(&ticket) {
                return result;
            }
            if waiting.leading {
                self.wake.wait(&mut waiting);
                continue;
            }
            waiting.leading = true;
            let mut jobs = std::mem::take(&mut waiting.queue);
            let results = MutexGuard::unlocked(&mut waiting, || self.writer.lock().commit(&jobs));
            waiting.leading = false;
            match results {
                Ok(lost) => {
                    for (job, lost) in jobs.into_iter().zip(lost) {
                        if let Some(t) = job.ticket {
                            waiting.done.insert(t, lost.map_or(Ok(()), Err));
                        }
                    }
                }
                Err(e) => {
                    for t in jobs.iter().filter_map(|j| j.ticket) {
                        waiting.done.insert(t, Err(e.clone()));
                    }
                    // What nobody waits for did happen: it stays first in line for when the disk takes it.
                    jobs.retain(|j| j.ticket.is_none());
                    jobs.append(&mut waiting.queue);
                    waiting.queue = jobs;
                }
            }
            self.wake.notify_all();
        }
    }
}

/// Where a run's chain ends.
struct Head {
    no: i64,
    environment: String,
    next: u64,
    hash: String,
}

/// The connection that writes, with what it knows as long as nobody else has written.
pub(super) struct Writer {
    pub conn: Connection,
    path: PathBuf,
    version: i64,
    heads: HashMap<String, Head>,
    /// The present lock by environment: fence and run.
    pub locks: HashMap<String, Option<(i64, String)>>,
    scratch: String,
}

impl Writer {
    pub fn new(path: PathBuf, conn: Connection) -> Self {
        Writer { conn, path, version: -1, heads: HashMap::new(), locks: HashMap::new(), scratch: String::new() }
    }

    /// Runs `f` in a transaction that is synced when this returns `Ok`; on any error nothing of it stays.
    pub fn transaction<T>(&mut self, what: &str, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if let Err(e) = self.step("BEGIN IMMEDIATE") {
            return Err(sql(&self.path, what, &e));
        }
        let result = self.look_for_others(what).and_then(|()| f(self));
        let result = match result {
            Ok(value) => self.step("COMMIT").map(|()| value).map_err(|e| sql(&self.path, what, &e)),
            Err(e) => Err(e),
        };
        if result.is_err() {
            // What is known of heads and locks may be from the transaction that is taken back.
            self.forget();
            if !self.conn.is_autocommit() {
                // SQLite has rolled back by itself where this fails.
                let _ = self.step("ROLLBACK");
            }
        }
        result
    }

    fn step(&self, statement: &str) -> rusqlite::Result<()> {
        self.conn.prepare_cached(statement)?.execute([]).map(|_| ())
    }

    fn forget(&mut self) {
        self.heads.clear();
        self.locks.clear();
        self.version = -1;
    }

    /// Forgets heads and locks when another connection has written since.
    fn look_for_others(&mut self, what: &str) -> Result<()> {
        let version: i64 = self
            .conn
            .prepare_cached("PRAGMA data_version")
            .and_then(|mut s| s.query_row([], |r| r.get(0)))
            .map_err(|e| sql(&self.path, what, &e))?;
        if version != self.version {
            self.forget();
            self.version = version;
        }
        Ok(())
    }

    /// Commits jobs in order. For each: `None`, or why it alone was left out (its fence is lost, its run unknown).
    fn commit(&mut self, jobs: &[Job]) -> Result<Vec<Option<Error>>> {
        if jobs.iter().all(Job::is_empty) {
            return Ok(jobs.iter().map(|_| None).collect());
        }
        self.transaction("recording", |w| {
            let mut lost = Vec::with_capacity(jobs.len());
            for job in jobs {
                match w.check_fence(&job.run, job.fence) {
                    Ok(()) => {
                        w.write(job)?;
                        lost.push(None);
                    }
                    Err(e) if matches!(e.code, Code::FENCED_OFF | Code::NO_RUN) => lost.push(Some(e)),
                    Err(e) => return Err(e),
                }
            }
            Ok(lost)
        })
    }

    /// Within a transaction: refuses with `RB0005` when the lock of the run's environment is no longer this run's with this fence.
    pub fn check_fence(&mut self, run: &str, fence: i64) -> Result<()> {
        self.load_head(run)?;
        let Some(environment) = self.heads.get(run).map(|h| h.environment.clone()) else {
            return Err(Error::internal("a run has no head"));
        };
        self.load_lock(&environment)?;
        match self.locks.get(&environment) {
            Some(Some((f, r))) if *f == fence && r == run => Ok(()),
            held => Err(fenced_off(run, fence, held.and_then(Option::as_ref).map(|(f, r)| (*f, r.as_str())))),
        }
    }

    fn load_lock(&mut self, environment: &str) -> Result<()> {
        if self.locks.contains_key(environment) {
            return Ok(());
        }
        let lock: Option<(i64, Option<String>)> = self
            .conn
            .prepare_cached("SELECT fence, run FROM locks WHERE environment = ?1")
            .and_then(|mut s| s.query_row([environment], |r| Ok((r.get(0)?, r.get(1)?))).optional())
            .map_err(|e| sql(&self.path, "reading the lock", &e))?;
        self.locks.insert(environment.to_string(), lock.and_then(|(fence, run)| Some((fence, run?))));
        Ok(())
    }

    fn load_head(&mut self, run: &str) -> Result<()> {
        if self.heads.contains_key(run) {
            return Ok(());
        }
        let fail = |e: rusqlite::Error| sql(&self.path, "reading the chain's end", &e);
        let found: Option<(i64, String)> = self
            .conn
            .prepare_cached("SELECT no, environment FROM runs WHERE id = ?1")
            .and_then(|mut s| s.query_row([run], |r| Ok((r.get(0)?, r.get(1)?))).optional())
            .map_err(fail)?;
        let Some((no, environment)) = found else {
            return Err(Error::new(Code::NO_RUN, format!("there is no run {run}")).hint("see `runbook runs`"));
        };
        let last: Option<(i64, Vec<u8>)> = self
            .conn
            .prepare_cached("SELECT id, hash FROM entries WHERE id BETWEEN ?1 AND ?2 ORDER BY id DESC LIMIT 1")
            .and_then(|mut s| s.query_row([key(no, 0), key(no + 1, 0) - 1], |r| Ok((r.get(0)?, r.get(1)?))).optional())
            .map_err(fail)?;
        let (next, hash) = match last {
            None => (0, GENESIS.to_string()),
            Some((id, hash)) => (super::seq(id) + 1, hex(&hash)),
        };
        self.heads.insert(run.to_string(), Head { no, environment, next, hash });
        Ok(())
    }

    fn write(&mut self, job: &Job) -> Result<()> {
        let fail = |e: rusqlite::Error| sql(&self.path, "recording", &e);
        let Some(head) = self.heads.get_mut(&job.run) else { return Err(Error::internal("a run has no head")) };
        if !job.rows.is_empty() {
            let mut insert =
                self.conn.prepare_cached("INSERT INTO entries (id, time, kind, data, hash) VALUES (?1, ?2, ?3, ?4, ?5)").map_err(fail)?;
            for row in &job.rows {
                if head.next >> SEQ_BITS != 0 {
                    return Err(Error::internal(format!("run {} has too many entries", job.run)));
                }
                let hash = seal(&mut self.scratch, &job.run, head.next, &row.time, &row.kind, &row.data, &head.hash);
                insert.execute(params![key(head.no, head.next), row.time, row.kind, row.data, hash]).map_err(|e| {
                    if e.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) {
                        return damaged(&self.path, format!("run {} has an entry {} that cannot be there", job.run, head.next));
                    }
                    fail(e)
                })?;
                head.next += 1;
                head.hash = hex(&hash);
            }
        }
        for (name, value) in &job.facts {
            const SET: &str =
                "INSERT INTO facts (environment, key, value) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET value = excluded.value";
            match value {
                Some(value) => self.conn.prepare_cached(SET).and_then(|mut s| s.execute([&head.environment, name, value])),
                None => self
                    .conn
                    .prepare_cached("DELETE FROM facts WHERE environment = ?1 AND key = ?2")
                    .and_then(|mut s| s.execute([&head.environment, name])),
            }
            .map_err(fail)?;
        }
        // Where the chain ends is noted apart from the entries now and then, so that a page of entries which later goes missing is
        // found out even at the end. Not with each commit: that would write one page more every time.
        let crossed = head.next / NOTED_EVERY > (head.next - job.rows.len() as u64) / NOTED_EVERY;
        if job.state.is_some() || crossed {
            self.conn
                .prepare_cached("UPDATE runs SET state = coalesce(?2, state), closed = ?3, closed_head = ?4 WHERE no = ?1")
                .and_then(|mut s| s.execute(params![head.no, job.state.map(state_text), head.next as i64, unhex(&head.hash)]))
                .map_err(fail)?;
        }
        Ok(())
    }
}

/// The error of a controller whose lock is no longer its own.
pub(super) fn fenced_off(run: &str, fence: i64, held: Option<(i64, &str)>) -> Error {
    let by = match held {
        Some((f, r)) if r == run => format!("another controller works on it (fence {f}, ours was {fence})"),
        Some((f, r)) => format!("run {r} holds the environment (fence {f}, ours was {fence})"),
        None => format!("and nobody holds the environment now (our fence was {fence})"),
    };
    Error::new(Code::FENCED_OFF, format!("run {run} was taken over meanwhile: nothing more is recorded here; {by}"))
        .hint(format!("this controller does nothing more; `runbook show {run}` says who works on it and how it stands"))
        .detail("fence", fence)
}
