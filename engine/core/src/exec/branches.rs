//! Branches: the same on many hosts, or several things at the same time, each with a path and a thread of its own.
//!
//! How many run at once, in which batches, and how many may fail before no further one begins is a [`BranchPlan`]. Replay depends on
//! none of that: a branch answers from its own record. What does matter to replay is which branches were left out when the script went
//! on, so that is recorded ([`Body::BranchesEnded`]).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::frame::{Frame, escape};
use super::run::{Mode, Run};
use crate::error::{Code, Error, Failure, Kind, Result};
use crate::journal::{Body, Status};

/// How many failures a message tells one by one; all are in [`Error::failures`].
const TOLD: usize = 5;

/// Which branches there are, and how they are gone through.
#[derive(Debug, Clone)]
pub struct BranchPlan {
    /// The word of the script: `each` or `parallel`.
    pub word: &'static str,
    /// The branches' names in order.
    pub names: Vec<String>,
    /// How many begin together: one batch ends before the next begins, the last number is repeated. Empty: all together.
    pub serial: Vec<usize>,
    /// How many run at the same time at most.
    pub at_once: usize,
    /// How many may fail before no further one begins; `None`: all begin.
    pub max_fail: Option<usize>,
    /// The stack of a branch's thread, in bytes.
    pub stack: usize,
}

/// How a branch ended.
#[derive(Debug)]
pub enum Branch<T> {
    /// With a value.
    Ok(T),
    /// With a failure.
    Failed(Box<Error>),
    /// It did not begin, since too many others had failed.
    NotBegun,
}

/// All branches of one `each` or `parallel`, in order.
#[derive(Debug)]
pub struct Branched<T> {
    /// The path of the whole.
    pub path: String,
    /// How each ended.
    pub results: Vec<Branch<T>>,
}

/// What is recorded of a set of branches.
#[derive(Debug, Default)]
pub(super) struct BranchesRecord {
    /// Those that were begun, and how the last end of each was.
    pub begun: std::collections::HashMap<String, Option<Status>>,
    /// Which failed and which were left out, once all had ended.
    pub ended: Option<(Vec<String>, Vec<String>)>,
}

/// One going through all branches.
struct Round<'a, T, F> {
    run: &'a Arc<Run>,
    plan: &'a BranchPlan,
    path: &'a str,
    frames: Vec<Arc<Frame>>,
    body: &'a F,
    /// What is recorded.
    record: &'a BranchesRecord,
    /// Nothing is recorded: inside a condition that is waited for, or in the replay of something older.
    quiet: bool,
    /// Undo blocks are gathered: everything is evaluated, and ends where its record ends.
    gathering: bool,
    /// An edited runbook is compared: every branch is gone through, whatever is found in another one.
    comparing: bool,
    /// Those that stay left out: the script went on without them.
    left_out: HashSet<String>,
    /// Those whose recorded failure stands, counted from the start.
    known_failed: HashSet<usize>,
    failed: AtomicUsize,
    /// A reason to stop came up in a branch: no further one begins.
    halted: AtomicBool,
    stop: Mutex<Option<Error>>,
    results: Vec<Mutex<Branch<T>>>,
}

impl Run {
    /// Evaluates branches and waits for all that have begun: `body` is called with the branch's number and frame, on a thread of its own.
    /// The failures of branches are in the result; see [`Run::branch_failure`].
    ///
    /// # Errors
    /// `RB0019` for a name given twice; `RB0016` when a branch that had begun is gone; the reasons to stop.
    pub fn branches<T: Send>(
        self: &Arc<Self>,
        parent: &Frame,
        plan: &BranchPlan,
        body: impl Fn(usize, &Arc<Frame>) -> Result<T> + Sync,
    ) -> Result<Branched<T>> {
        let path = parent.ordinal();
        let all = parent.below(path.clone());
        let frames: Vec<Arc<Frame>> = plan.names.iter().map(|n| Ok(Arc::new(all.below(all.named(n)?)))).collect::<Result<_>>()?;
        let history = &self.parts.history;
        let none = BranchesRecord::default();
        let recorded = history.branches.get(&path);
        let record = recorded.unwrap_or(&none);
        if let Some(gone) = record.begun.keys().find(|b| !plan.names.contains(b)) {
            return Err(Error::new(
                Code::MISMATCH,
                format!("this run no longer matches its runbook at {path}: there is no \"{gone}\" any more"),
            )
            .detail("recorded", format!("{} with \"{gone}\", which had begun", plan.word))
            .detail("now", format!("{} over {}", plan.word, plan.names.join(", ")))
            .detail("path", &path)
            .hint("resume with the runbook that the run began with, or see `runbook explain RB0016`"));
        }
        let comparing = self.parts.mode == Mode::Compare;
        let gathering = !comparing && self.frontier().is_err();
        let quiet = gathering || comparing || parent.held.is_some() || recorded.is_none() && history.knows_below(&path);
        if recorded.is_none() && !quiet {
            self.check_stop()?;
            self.append_later(Body::BranchesStarted { path: path.clone(), word: plan.word.into(), names: plan.names.clone() })?;
        }
        // Where the last controller stopped, those that were left out begin now.
        let handled = record.ended.as_ref().filter(|_| !self.stopped_within(&path));
        let left_out: HashSet<String> = handled.map(|(_, n)| n.iter().cloned().collect()).unwrap_or_default();
        let stands = |name: &String, frame: &Frame| {
            matches!(record.begun.get(name), Some(Some(Status::Failed))) && !self.stopped_within(&frame.path)
        };
        let known_failed: HashSet<usize> =
            plan.names.iter().zip(&frames).enumerate().filter(|(_, (n, f))| stands(n, f)).map(|(i, _)| i).collect();
        let round = Round {
            run: self,
            plan,
            path: &path,
            frames,
            body: &body,
            record,
            quiet,
            gathering,
            comparing,
            left_out,
            failed: AtomicUsize::new(known_failed.len()),
            known_failed,
            halted: AtomicBool::new(false),
            stop: Mutex::new(None),
            results: plan.names.iter().map(|_| Mutex::new(Branch::NotBegun)).collect(),
        };
        let results = round.go()?;
        Ok(Branched { path, results })
    }

    /// The failure of branches as one error that names each, and what was not begun; `None` when all went well. A single failure of a
    /// `parallel` that left nothing out stays itself.
    #[must_use]
    pub fn branch_failure<T>(&self, parent: &Frame, plan: &BranchPlan, branched: &Branched<T>) -> Option<Error> {
        let mut failures: Vec<Failure> = Vec::new();
        let mut not_begun: Vec<String> = Vec::new();
        for (name, r) in plan.names.iter().zip(&branched.results) {
            match r {
                Branch::Ok(_) => {}
                Branch::Failed(e) => failures.push(Failure { name: name.clone(), error: (**e).clone() }),
                Branch::NotBegun => not_begun.push(name.clone()),
            }
        }
        if failures.is_empty() && not_begun.is_empty() {
            return None;
        }
        if let ("parallel", [only], true) = (plan.word, failures.as_slice(), not_begun.is_empty()) {
            return Some(only.error.clone());
        }
        let told: Vec<String> = failures.iter().take(TOLD).map(|f| format!("{}: {}", escape(&f.name), f.error.message)).collect();
        let more = failures.len().saturating_sub(TOLD);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        let head = match plan.word {
            "parallel" => format!("{} branches failed", failures.len()),
            _ => format!("{} of {} failed", failures.len(), plan.names.len()),
        };
        let rest = if not_begun.is_empty() { String::new() } else { format!("; not begun: {}", not_begun.join(", ")) };
        let mut error = Error::new(Code::PARALLEL_FAILED, format!("{head}: {}{more}{rest}", told.join("; ")));
        if failures.iter().all(|f| f.error.kind == Kind::Unreachable) {
            error.kind = Kind::Unreachable;
        }
        error.hint = Some(format!(
            "mend the causes, then `runbook resume {}` tries the failed ones again{}; what is done stays done",
            self.id(),
            if not_begun.is_empty() { "" } else { " and begins the others" }
        ));
        error.retryable = failures.iter().all(|f| f.error.retryable);
        for f in &failures {
            error.details.insert(f.name.clone(), f.error.to_string());
            error.at.extend(f.error.at.iter().cloned());
        }
        // Inside a step it is the step that is tried again.
        if !not_begun.is_empty() && !parent.in_step && !parent.undo {
            error.at.push(branched.path.clone());
        }
        error.failures = failures;
        error.not_begun = not_begun;
        Some(error)
    }

    /// Whether the last controller stopped at this path or below it.
    pub(super) fn stopped_within(&self, path: &str) -> bool {
        self.parts
            .history
            .stopped_at
            .iter()
            .any(|p| p.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || rest.starts_with('@')))
    }
}

impl<T: Send, F: Fn(usize, &Arc<Frame>) -> Result<T> + Sync> Round<'_, T, F> {
    fn go(self) -> Result<Vec<Branch<T>>> {
        let began = Instant::now();
        let mut from = 0;
        let mut batch = 0;
        while from < self.plan.names.len() {
            let rest = self.plan.names.len() - from;
            let size = match self.plan.serial.get(batch).or_else(|| self.plan.serial.last()) {
                Some(n) if !self.gathering => (*n).clamp(1, rest),
                _ => rest,
            };
            self.batch(from, from + size);
            from += size;
            batch += 1;
        }
        let results: Vec<Branch<T>> = self.results.into_iter().map(Mutex::into_inner).collect();
        let failures = || results.iter().filter_map(|r| if let Branch::Failed(e) = r { Some(&**e) } else { None });
        // A mismatch first: another branch may just have come to the end of its record.
        let mismatch = failures().find(|e| e.kind == Kind::Mismatch).cloned();
        let stop = mismatch.or_else(|| self.stop.into_inner()).or_else(|| failures().find(|e| !e.kind.catchable()).cloned());
        if let Some(mut stop) = stop {
            // Whatever failed meanwhile is tried again as well when the run goes on.
            for p in failures().flat_map(|e| &e.at) {
                if !stop.at.contains(p) {
                    stop.at.push(p.clone());
                }
            }
            return Err(stop);
        }
        if !self.quiet {
            let of = |want: fn(&Branch<T>) -> bool| -> Vec<String> {
                self.plan.names.iter().zip(&results).filter(|(_, r)| want(r)).map(|(n, _)| n.clone()).collect()
            };
            let lists = (of(|r| matches!(r, Branch::Failed(_))), of(|r| matches!(r, Branch::NotBegun)));
            if self.record.ended.as_ref() != Some(&lists) {
                let (failed, not_begun) = lists;
                let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                self.run.append_later(Body::BranchesEnded { path: self.path.to_string(), failed, not_begun, ms })?;
            }
        }
        Ok(results)
    }

    /// Goes through a part of the branches with a thread for each that runs at the same time.
    fn batch(&self, from: usize, to: usize) {
        let next = AtomicUsize::new(from);
        let threads = self.plan.at_once.clamp(1, to - from);
        // Those that begin together do so whatever becomes of the first of them while the last is still being started.
        let open = self.few_failed();
        let work = || {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= to {
                    return;
                }
                self.one(i, if i < from + threads { open } else { self.few_failed() });
            }
        };
        std::thread::scope(|s| {
            for n in 0..threads {
                let spawned = std::thread::Builder::new().name(format!("branch-{n}")).stack_size(self.plan.stack).spawn_scoped(s, work);
                if spawned.is_err() {
                    self.run.notice("no further thread can be had: fewer branches run at the same time");
                    if n == 0 {
                        work();
                    }
                    break;
                }
            }
        });
    }

    /// Whether no more have failed than may.
    fn few_failed(&self) -> bool {
        self.plan.max_fail.is_none_or(|most| self.failed.load(Ordering::SeqCst) <= most)
    }

    /// Whether a branch may begin (or go on, when it is on record).
    fn may_begin(&self, i: usize, name: &str, open: bool) -> bool {
        if self.gathering {
            // The script went on without those that never began: to evaluate them would end the gathering before what comes behind.
            return self.record.ended.is_none() || self.record.begun.contains_key(name);
        }
        if self.comparing {
            return !self.left_out.contains(name);
        }
        if self.left_out.contains(name) || self.halted.load(Ordering::SeqCst) {
            return false;
        }
        if self.known_failed.contains(&i) || self.record.begun.contains_key(name) && !self.record_failed(name) {
            return true;
        }
        if !open {
            return false;
        }
        if let Err(e) = self.run.check_stop() {
            self.halt(e);
            return false;
        }
        true
    }

    fn record_failed(&self, name: &str) -> bool {
        matches!(self.record.begun.get(name), Some(Some(Status::Failed)))
    }

    fn halt(&self, e: Error) {
        self.halted.store(true, Ordering::SeqCst);
        self.stop.lock().get_or_insert(e);
    }

    fn one(&self, i: usize, open: bool) {
        let (Some(name), Some(frame), Some(slot)) = (self.plan.names.get(i), self.frames.get(i), self.results.get(i)) else { return };
        if !self.may_begin(i, name, open) {
            return;
        }
        // On record and as it was: nothing is written again.
        let replayed = match self.record.begun.get(name) {
            Some(Some(Status::Failed)) => self.known_failed.contains(&i),
            Some(_) => true,
            None => false,
        };
        let write = |body: Body| {
            if !self.quiet
                && let Err(e) = self.run.append_later(body)
            {
                self.halt(e);
            }
        };
        if !replayed {
            write(Body::BranchStarted { path: frame.path.to_string() });
        }
        let began = Instant::now();
        let result = (self.body)(i, frame);
        let (status, error) = match &result {
            Ok(_) => (Status::Ok, None),
            Err(e) if e.kind.catchable() => {
                if !self.known_failed.contains(&i) {
                    self.failed.fetch_add(1, Ordering::SeqCst);
                }
                (Status::Failed, Some(e.clone()))
            }
            Err(e) => {
                self.halt(e.clone());
                *slot.lock() = Branch::Failed(Box::new(e.clone()));
                return;
            }
        };
        if !(replayed && self.record.begun.get(name) == Some(&Some(status))) {
            let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            write(Body::BranchEnded { path: frame.path.to_string(), status, ms, error });
        }
        *slot.lock() = match result {
            Ok(v) => Branch::Ok(v),
            Err(e) => Branch::Failed(Box::new(e)),
        };
    }
}
