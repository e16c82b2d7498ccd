//! A store in memory for tests: the same rules as the SQLite store, with failures on demand and a look at what a crash leaves.

use std::collections::BTreeMap;

use jiff::Timestamp;
use parking_lot::Mutex;

use super::canonical::{Prepared, seal};
use super::{Acquired, Batch, Entry, GENESIS, Holder, Message, NewRun, Operator, RunInfo, State, Store};
use crate::digest::hex;
use crate::error::{Code, Error, Result};
use crate::value::Value;

#[derive(Clone)]
struct Run {
    new: NewRun,
    created: String,
    entries: Vec<Entry>,
    /// States with the number of entries at which each was set.
    states: Vec<(usize, State)>,
}

/// A fact with the place in its run's journal at which it was set.
#[derive(Clone)]
struct Fact {
    environment: String,
    key: String,
    value: Value,
    run: String,
    entries: usize,
}

#[derive(Clone, Default)]
struct Inner {
    runs: Vec<Run>,
    locks: BTreeMap<String, (i64, Option<Holder>)>,
    messages: Vec<(String, Message)>,
    facts: Vec<Fact>,
    later: Vec<(String, i64, Batch)>,
    commits: u64,
    fail_from: Option<(u64, u64, Code)>,
}

/// A [`Store`] in memory.
#[derive(Default)]
pub struct MemoryStore(Mutex<Inner>);

impl MemoryStore {
    /// Makes commits fail: `count` of them beginning with the `nth` from now (1 is the next). Nothing of a failed commit stays,
    /// but for what `append_later` left, which goes into the next commit that succeeds.
    pub fn fail_commits(&self, nth: u64, count: u64, code: Code) {
        let mut inner = self.0.lock();
        let from = inner.commits + nth;
        inner.fail_from = Some((from, from + count, code));
    }

    /// How many commits there were, failed ones included.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.0.lock().commits
    }

    /// What a crash now would leave on disk: everything but what `append_later` left. Locks stay held.
    #[must_use]
    pub fn crashed(&self) -> MemoryStore {
        let mut inner = self.0.lock().clone();
        inner.later.clear();
        inner.fail_from = None;
        MemoryStore(Mutex::new(inner))
    }

    /// What a crash would have left when `run` had this many entries: later entries, states and facts of this run are gone.
    #[must_use]
    pub fn crashed_at(&self, run: &str, entries: usize) -> MemoryStore {
        let store = self.crashed();
        {
            let mut inner = store.0.lock();
            for r in inner.runs.iter_mut().filter(|r| r.new.id == run) {
                r.entries.truncate(entries);
                r.states.retain(|(at, _)| *at <= entries);
            }
            inner.facts.retain(|f| f.run != run || f.entries <= entries);
        }
        store
    }

    /// Every entry of a run.
    #[must_use]
    pub fn log(&self, run: &str) -> Vec<Entry> {
        self.0.lock().runs.iter().find(|r| r.new.id == run).map(|r| r.entries.clone()).unwrap_or_default()
    }
}

impl Inner {
    fn run(&self, id: &str) -> Result<&Run> {
        self.runs.iter().find(|r| r.new.id == id).ok_or_else(|| no_run(id))
    }

    fn check_fence(&self, run: &str, fence: i64) -> Result<()> {
        let environment = &self.run(run)?.new.environment;
        match self.locks.get(environment) {
            Some((f, Some(h))) if *f == fence && h.run == run => Ok(()),
            _ => Err(Error::new(Code::FENCED_OFF, format!("run {run} may not be recorded with fence {fence}"))
                .hint("this controller has lost the run and stops")),
        }
    }

    /// Writes what was left and then `batch`. The fence of what was left is checked too; what lost it is dropped.
    fn commit(&mut self, run: &str, fence: i64, batch: Batch) -> Result<()> {
        self.commits += 1;
        if let Some((from, to, code)) = self.fail_from
            && (from..to).contains(&self.commits)
        {
            return Err(Error::new(code, "the store was told to fail").hint("make room on that disk, then resume the run"));
        }
        for (run, fence, batch) in std::mem::take(&mut self.later) {
            if self.check_fence(&run, fence).is_ok() {
                self.write(&run, batch)?;
            }
        }
        self.check_fence(run, fence)?;
        self.write(run, batch)
    }

    fn write(&mut self, id: &str, batch: Batch) -> Result<()> {
        let rows = batch.bodies.iter().map(|(t, b)| Prepared::new(*t, b)).collect::<Result<Vec<_>>>()?;
        let Some(run) = self.runs.iter_mut().find(|r| r.new.id == id) else { return Err(no_run(id)) };
        for row in rows {
            let seq = run.entries.len() as u64;
            let prev = run.entries.last().map_or_else(|| GENESIS.to_string(), |e| e.hash.clone());
            let hash = hex(&seal(&mut String::new(), id, seq, &row.time, &row.kind, &row.data, &prev));
            let data = serde_json::from_str(&row.data).map_err(|e| Error::internal(format!("an entry cannot be read again: {e}")))?;
            run.entries.push(Entry { seq, time: row.time, run: id.to_string(), kind: row.kind, data, prev, hash });
        }
        let entries = run.entries.len();
        run.states.extend(batch.state.map(|s| (entries, s)));
        let environment = run.new.environment.clone();
        for (key, value) in batch.facts {
            // As on disk: what has no content there (a handle) cannot come back.
            let value = Value::from_json(&value.to_json())?;
            self.facts.push(Fact { environment: environment.clone(), key, value, run: id.to_string(), entries });
        }
        Ok(())
    }
}

fn no_run(id: &str) -> Error {
    Error::new(Code::NO_RUN, format!("there is no run {id}")).hint("see `runbook runs`")
}

fn info(r: &Run) -> RunInfo {
    RunInfo {
        id: r.new.id.clone(),
        environment: r.new.environment.clone(),
        runbook: r.new.runbook.clone(),
        created: r.entries.first().map_or_else(|| r.created.clone(), |e| e.time.clone()),
        state: r.states.last().map_or(State::Running, |(_, s)| *s),
        entries: r.entries.len() as u64,
        head: r.entries.last().map_or_else(|| GENESIS.to_string(), |e| e.hash.clone()),
    }
}

impl Store for MemoryStore {
    fn create(&self, run: &NewRun) -> Result<()> {
        let mut inner = self.0.lock();
        if inner.run(&run.id).is_ok() {
            return Err(Error::internal(format!("there is a run {} already", run.id)));
        }
        inner.runs.push(Run {
            new: run.clone(),
            created: crate::clock::rfc3339(Timestamp::now()),
            entries: Vec::new(),
            states: Vec::new(),
        });
        Ok(())
    }

    fn runs(&self) -> Result<Vec<RunInfo>> {
        Ok(self.0.lock().runs.iter().rev().map(info).collect())
    }

    fn run(&self, id: &str) -> Result<RunInfo> {
        let inner = self.0.lock();
        if let Ok(exact) = inner.run(id) {
            return Ok(info(exact));
        }
        let mut found = inner.runs.iter().filter(|r| !id.is_empty() && r.new.id.starts_with(id));
        match (found.next(), found.next()) {
            (Some(r), None) => Ok(info(r)),
            (None, _) => Err(no_run(id)),
            _ => Err(Error::new(Code::NO_RUN, format!("\"{id}\" may be any of several runs")).hint("give more of its id")),
        }
    }

    fn source(&self, run: &str, path: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.0.lock().run(run).ok().and_then(|r| r.new.sources.get(path).cloned()))
    }

    fn sources(&self, run: &str) -> Result<BTreeMap<String, Vec<u8>>> {
        Ok(self.0.lock().run(run).map(|r| r.new.sources.clone()).unwrap_or_default())
    }

    fn replace_sources(&self, run: &str, fence: i64, sources: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        let mut inner = self.0.lock();
        inner.check_fence(run, fence)?;
        if let Some(r) = inner.runs.iter_mut().find(|r| r.new.id == run) {
            r.new.sources.extend(sources.clone());
        }
        Ok(())
    }

    fn entries(&self, run: &str, from_seq: u64, f: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        // A copy, so that `f` may call the store.
        let entries = self.0.lock().run(run)?.entries.clone();
        entries.into_iter().filter(|e| e.seq >= from_seq).try_for_each(f)
    }

    fn append(&self, run: &str, fence: i64, batch: Batch) -> Result<()> {
        self.0.lock().commit(run, fence, batch)
    }

    fn append_later(&self, run: &str, fence: i64, batch: Batch) -> Result<()> {
        self.0.lock().later.push((run.to_string(), fence, batch));
        Ok(())
    }

    fn flush(&self, run: &str, fence: i64) -> Result<()> {
        let mut inner = self.0.lock();
        if inner.later.is_empty() {
            return Ok(());
        }
        inner.commit(run, fence, Batch::default())
    }

    fn acquire(&self, environment: &str, run: &str, operator: &Operator, until: Timestamp, over: Option<i64>) -> Result<Acquired> {
        let mut inner = self.0.lock();
        let (fence, holder) = inner.locks.entry(environment.to_string()).or_default();
        if let Some(h) = holder {
            let a = (&h.operator.host, &h.operator.boot, h.operator.pid, h.operator.pid_start);
            let same = h.run == run && a == (&operator.host, &operator.boot, operator.pid, operator.pid_start);
            if !same && over != Some(h.fence) {
                return Ok(Acquired::Held(h.clone()));
            }
        }
        *fence += 1;
        *holder = Some(Holder { run: run.to_string(), operator: operator.clone(), fence: *fence, until });
        Ok(Acquired::Yes(*fence))
    }

    fn renew(&self, environment: &str, fence: i64, until: Timestamp) -> Result<()> {
        match self.0.lock().locks.get_mut(environment) {
            Some((f, Some(h))) if *f == fence => {
                h.until = until;
                Ok(())
            }
            _ => Err(Error::new(Code::FENCED_OFF, format!("the lease on {environment} with fence {fence} is lost"))
                .hint("this controller has lost the run and stops")),
        }
    }

    fn release(&self, environment: &str, fence: i64) -> Result<()> {
        if let Some((f, holder)) = self.0.lock().locks.get_mut(environment)
            && *f == fence
        {
            *holder = None;
        }
        Ok(())
    }

    fn holder(&self, environment: &str) -> Result<Option<Holder>> {
        Ok(self.0.lock().locks.get(environment).and_then(|(_, h)| h.clone()))
    }

    fn post(&self, run: &str, message: &Message) -> Result<()> {
        let mut inner = self.0.lock();
        inner.run(run)?;
        inner.messages.push((run.to_string(), message.clone()));
        Ok(())
    }

    fn messages(&self, run: &str, kind: &str, path: &str) -> Result<Vec<Message>> {
        let inner = self.0.lock();
        Ok(inner.messages.iter().filter(|(r, m)| r == run && m.kind == kind && m.path == path).map(|(_, m)| m.clone()).collect())
    }

    fn clear_messages(&self, run: &str, kind: &str, path: &str) -> Result<()> {
        self.0.lock().messages.retain(|(r, m)| !(r == run && m.kind == kind && m.path == path));
        Ok(())
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn fact(&self, environment: &str, key: &str) -> Result<Option<Value>> {
        let inner = self.0.lock();
        let last = inner.facts.iter().rev().find(|f| f.environment == environment && f.key == key);
        Ok(last.map(|f| f.value.clone()).filter(|v| *v != Value::Unit))
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{self, log, new_run, ready};
    use super::*;
    use std::sync::Arc;

    #[test]
    fn keeps_the_rules_of_a_store() {
        conformance::all(&|| {
            let store = Arc::new(MemoryStore::default());
            Box::new(move || store.clone())
        });
    }

    #[test]
    fn a_failed_commit_leaves_nothing_but_what_was_left_for_later() {
        let store = MemoryStore::default();
        let fence = ready(&store);
        store.append("r", fence, log(0)).unwrap();
        store.append_later("r", fence, log(1)).unwrap();
        store.fail_commits(1, 2, Code::STORE_FULL);
        for _ in 0..2 {
            assert_eq!(store.append("r", fence, log(2)).unwrap_err().code, Code::STORE_FULL);
            assert_eq!(conformance::chained(&store, "r"), ["message 0"]);
        }
        store.append("r", fence, log(3)).unwrap();
        assert_eq!(conformance::chained(&store, "r"), ["message 0", "message 1", "message 3"]);
    }

    #[test]
    fn a_crash_loses_what_was_not_synced() {
        let store = MemoryStore::default();
        let fence = ready(&store);
        new_run(&store, "other", "staging");
        let set = |n: i64| BTreeMap::from([("k".to_string(), Value::Int(n))]);
        store.append("r", fence, Batch { facts: set(1), state: Some(State::Paused), ..log(0) }).unwrap();
        store.append("r", fence, Batch { facts: set(2), state: Some(State::Finished), ..log(1) }).unwrap();
        store.append_later("r", fence, log(2)).unwrap();
        let after = store.crashed();
        after.append("r", fence, log(3)).unwrap();
        assert_eq!(conformance::chained(&after, "r"), ["message 0", "message 1", "message 3"]);
        let earlier = store.crashed_at("r", 1);
        assert_eq!(conformance::chained(&earlier, "r"), ["message 0"]);
        assert_eq!((earlier.fact("production", "k").unwrap(), earlier.run("r").unwrap().state), (Some(Value::Int(1)), State::Paused));
    }
}
