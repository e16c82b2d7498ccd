//! What a run's journal says already: the answers that replay gives instead of acting.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value as Json;

use super::branches::BranchesRecord;
use super::frame::{unescape, without_attempts};
use crate::error::{Code, Error, Result};
use crate::journal::{Body, Entry, State, Status, Store};

/// A recorded outcome.
#[derive(Debug, Clone)]
pub(super) struct Recorded {
    pub name: String,
    pub digest: String,
    pub call: String,
    pub action: String,
    pub value: Result<Json>,
    pub once: bool,
}

/// An intent, perhaps without an outcome.
#[derive(Debug, Clone)]
pub(super) struct Intended {
    pub name: String,
    pub digest: String,
    pub call: String,
}

/// What is recorded of a step.
#[derive(Debug, Clone, Default)]
pub(super) struct StepRecord {
    /// The sequence number of its first `step_started`.
    pub began: u64,
    /// The highest attempt begun.
    pub attempts: u32,
    /// The attempts that ended.
    pub ended: HashSet<u32>,
    /// The attempts that failed, and why.
    pub failed: HashMap<u32, Error>,
    /// Why it was skipped.
    pub skipped: Option<String>,
}

/// What is recorded of a window.
#[derive(Debug, Clone)]
pub(super) struct WindowRecord {
    pub opened: Timestamp,
    pub overrun: Option<String>,
    pub closed: bool,
}

/// Everything recorded of a run, by path.
#[derive(Debug, Default)]
pub struct History {
    pub(super) outcomes: HashMap<String, Recorded>,
    pub(super) intents: HashMap<String, Intended>,
    pub(super) once_done: HashMap<String, Recorded>,
    pub(super) steps: HashMap<String, StepRecord>,
    pub(super) phases: HashMap<String, (Timestamp, bool)>,
    pub(super) gates: HashMap<String, Option<bool>>,
    pub(super) windows: HashMap<String, WindowRecord>,
    /// Branches by the path of their `each` or `parallel`.
    pub(super) branches: HashMap<String, BranchesRecord>,
    pub(super) timers: HashMap<String, (Timestamp, bool)>,
    pub(super) doubts: HashMap<String, String>,
    pub(super) undone: HashMap<String, StepRecord>,
    pub(super) no_return: Option<String>,
    pub(super) no_return_path: Option<String>,
    pub(super) rollback: bool,
    pub(super) stopped_at: HashSet<String>,
    pub(super) logged: HashSet<String>,
    /// Hosts and other things on which `once` actions were begun.
    pub(super) touched: HashSet<String>,
    /// How many entries there are.
    pub(super) len: u64,
    /// The state that the last controller left; `Running` when it died.
    pub(super) state: Option<State>,
}

fn moment(text: &str) -> Result<Timestamp> {
    text.parse().map_err(|_| Error::new(Code::STORE_DAMAGED, format!("\"{text}\" in the run's record is not a moment")))
}

impl History {
    /// Reads a run's journal, handing each entry on to `see` as well.
    ///
    /// # Errors
    /// `RB0004` when the store is damaged, `RB0024` when a newer version wrote it.
    pub fn load(store: &dyn Store, run: &str, see: &mut dyn FnMut(&Entry, &Body)) -> Result<History> {
        let mut h = History::default();
        store.entries(run, 0, &mut |mut entry| {
            let body = Body::take(&mut entry)?;
            see(&entry, &body);
            h.add(&entry, body)
        })?;
        Ok(h)
    }

    /// How many actions other than reads were begun, without those whose host was provably never reached.
    #[must_use]
    pub fn writes(&self) -> usize {
        let reached = |path: &&String| !self.outcomes.get(*path).is_some_and(|r| matches!(&r.value, Err(e) if e.never_reached()));
        self.intents.keys().filter(reached).count()
    }

    /// Why there is no way back, once the point of no return is passed.
    #[must_use]
    pub fn no_return(&self) -> Option<&str> {
        self.no_return.as_deref()
    }

    /// Whether a rollback has begun.
    #[must_use]
    pub fn rolling_back(&self) -> bool {
        self.rollback
    }

    /// The state that the last controller left: `Running` when it died, `None` for a run without entries.
    #[must_use]
    pub fn state(&self) -> Option<State> {
        self.state
    }

    /// Whether anything is recorded below a path.
    pub(super) fn knows_below(&self, path: &str) -> bool {
        let below = |p: &String| p.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
        self.len > 0 && (self.outcomes.keys().any(below) || self.intents.keys().any(below) || self.steps.keys().any(below))
    }

    fn add(&mut self, entry: &Entry, body: Body) -> Result<()> {
        self.len = entry.seq + 1;
        match body {
            Body::RunStarted { .. } => self.state = Some(State::Running),
            Body::SessionStarted { .. } => self.state = Some(State::Running),
            Body::SessionEnded { state, at, .. } => {
                self.state = Some(state);
                // A stop that is no failure of a step (a mismatch, a gate) leaves open what failed before.
                if !at.is_empty() {
                    self.stopped_at = at.into_iter().collect();
                }
            }
            Body::PhaseStarted { path } => {
                self.phases.insert(path, (moment(&entry.time)?, false));
            }
            Body::PhaseEnded { path, .. } => {
                if let Some(p) = self.phases.get_mut(&path) {
                    p.1 = true;
                }
            }
            Body::StepStarted { path, attempt, .. } => {
                let s = self.steps.entry(path).or_insert_with(|| StepRecord { began: entry.seq, ..StepRecord::default() });
                s.attempts = s.attempts.max(attempt);
            }
            Body::StepEnded { path, attempt, status, reason, error, .. } => {
                let s = self.steps.entry(path).or_insert_with(|| StepRecord { began: entry.seq, ..StepRecord::default() });
                s.ended.insert(attempt);
                if let (Status::Failed, Some(e)) = (status, error) {
                    s.failed.insert(attempt, e);
                }
                if status == Status::Skipped {
                    s.skipped = Some(reason.unwrap_or_default());
                }
            }
            Body::Intent { path, name, digest, call, effect, on, .. } => {
                if effect == "once" {
                    self.touched.extend(on);
                }
                self.intents.insert(path, Intended { name, digest, call });
            }
            Body::Outcome { path, action, name, digest, call, effect, value, error, .. } => {
                let call = call.or_else(|| self.intents.get(&path).map(|i| i.call.clone())).unwrap_or_else(|| name.clone());
                let value = error.map_or_else(|| Ok(value.unwrap_or(Json::Null)), Err);
                let r = Recorded { name, digest, call, action, value, once: effect == "once" };
                if r.once && r.value.is_ok() {
                    self.once_done.insert(without_attempts(&path), r.clone());
                }
                self.outcomes.insert(path, r);
            }
            Body::GateAsked { path, .. } => {
                self.gates.entry(path).or_insert(None);
            }
            Body::GateAnswered { path, yes, .. } => {
                self.gates.insert(path, Some(yes));
            }
            Body::WindowOpened { path, .. } => {
                self.windows.insert(path, WindowRecord { opened: moment(&entry.time)?, overrun: None, closed: false });
            }
            Body::WindowOverrun { path, decision, .. } => {
                if let Some(w) = self.windows.get_mut(&path) {
                    w.overrun = Some(decision);
                }
            }
            Body::WindowClosed { path, .. } => {
                if let Some(w) = self.windows.get_mut(&path) {
                    w.closed = true;
                }
            }
            Body::PointOfNoReturn { path, why } => {
                self.no_return = Some(why);
                self.no_return_path = Some(path);
            }
            Body::TimerSet { path, until } => {
                self.timers.insert(path, (moment(&until)?, false));
            }
            Body::TimerFired { path } => {
                if let Some(t) = self.timers.get_mut(&path) {
                    t.1 = true;
                }
            }
            Body::DoubtAnswered { action, answer, .. } => {
                self.doubts.insert(action, answer);
            }
            Body::RollbackStarted { .. } => self.rollback = true,
            Body::UndoStarted { path, attempt } => {
                let u = self.undone.entry(path).or_default();
                u.attempts = u.attempts.max(attempt);
            }
            Body::UndoEnded { path, attempt, status, .. } => {
                let u = self.undone.entry(path).or_default();
                if status != Status::Failed {
                    u.ended.insert(attempt);
                }
            }
            Body::BranchesStarted { path, .. } => {
                self.branches.entry(path).or_default();
            }
            Body::BranchStarted { path } => self.branch(&path, None),
            Body::BranchEnded { path, status, .. } => self.branch(&path, Some(status)),
            Body::BranchesEnded { path, failed, not_begun, .. } => {
                self.branches.entry(path).or_default().ended = Some((failed, not_begun));
            }
            Body::Log { path, .. } => {
                self.logged.insert(path);
            }
            Body::Output { .. } | Body::RetryScheduled { .. } | Body::DoubtAsked { .. } => {}
        }
        Ok(())
    }
}

impl History {
    fn branch(&mut self, path: &str, ended: Option<Status>) {
        if let Some((all, name)) = path.rsplit_once('/') {
            self.branches.entry(all.to_string()).or_default().begun.insert(unescape(name), ended);
        }
    }
}

/// Milliseconds between two moments; 0 when the clock went back.
pub(super) fn since(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO)
}
