//! One run in one controller: its record, its surroundings, and how it is stopped.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;

use super::ask::Ask;
use super::compare::Comparison;
use super::history::{History, Recorded};
use super::live::{LiveSink, StoreFacts};
use super::undo::UndoStack;
use crate::cancel::Cancel;
use crate::clock::Clock;
use crate::error::{Code, Error, Kind, Result};
use crate::inventory::Environment;
use crate::journal::{Batch, Body, Message, State, Store};
use crate::primitive::{ActionId, Cx, Files, Progress, Registry, SecretSource, Shared, StreamKind};
use crate::secret::{Redactor, Secret};

/// How long a hook may take when the run is stopped.
const STOPPING: Duration = Duration::from_secs(6);

/// What the run is evaluated for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// To go forward.
    Forward,
    /// To rebuild the undo blocks with their variables: nothing new happens, evaluation ends where the record ends.
    Rollback,
    /// To compare an edited runbook with the record: nothing happens at all, nothing is asked, nothing is recorded.
    Compare,
}

/// Follows a run: the terminal's view, `run --json`.
pub trait Observer: Send + Sync {
    /// An entry was appended (or, with `replayed`, was read from the record at the start).
    fn entry(&self, _time: Timestamp, _body: &Body, _replayed: bool) {}
    /// A piece of a command's output, secrets struck.
    fn output(&self, _path: &str, _stream: StreamKind, _bytes: &[u8]) {}
    /// How far a long action is.
    fn progress(&self, _path: &str, _progress: &Progress) {}
    /// Something the operator should know now that is no entry.
    fn notice(&self, _text: &str) {}
    /// An edited runbook was compared with the record.
    fn compared(&self, _comparison: &Comparison) {}
}

/// Shows nothing.
pub struct Quiet;
impl Observer for Quiet {}

/// The script engine's error, which carries ours.
pub trait Fault: From<Error> {
    /// What happened, as one of ours.
    fn to_error(&self) -> Error;
}

impl Fault for Error {
    fn to_error(&self) -> Error {
        self.clone()
    }
}

/// A point at which the crash harness may kill the controller.
#[derive(Debug, Clone, Copy)]
pub enum CrashPoint<'a> {
    /// An entry was appended.
    Entry(&'a Body),
    /// An action has acted; its outcome is not recorded.
    Acted(&'a str),
}

/// What surrounds the runs of a controller: where they are recorded, what they may use, who follows and who answers.
#[derive(Clone)]
pub struct Surroundings {
    /// Where the record lives.
    pub store: Arc<dyn Store>,
    /// What scripts can call.
    pub registry: Arc<Registry>,
    /// State that primitives share, kept when a run turns from forward to back.
    pub shared: Arc<Shared>,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// Where secrets come from.
    pub secrets: Arc<dyn SecretSource>,
    /// What is struck.
    pub redactor: Redactor,
    /// Who follows.
    pub observer: Arc<dyn Observer>,
    /// Who answers.
    pub ask: Arc<dyn Ask>,
    /// Where primitives run.
    pub runtime: tokio::runtime::Handle,
    /// Set to stop after the action in hand.
    pub stop: Cancel,
    /// Set to stop now.
    pub abort: Cancel,
    /// The crash harness.
    pub crash: Option<Arc<dyn Fn(CrashPoint<'_>) + Send + Sync>>,
}

/// What a run is made of.
pub struct RunParts {
    /// The run's id.
    pub id: String,
    /// The environment, resolved.
    pub env: Arc<Environment>,
    /// The fencing number of our lock.
    pub fence: i64,
    /// What is recorded already.
    pub history: History,
    /// Forward or back.
    pub mode: Mode,
    /// The run's files.
    pub files: Arc<dyn Files>,
    /// What it has in common with the controller's other runs.
    pub around: Surroundings,
}

/// One run in one controller.
pub struct Run {
    pub(super) parts: RunParts,
    pub(super) once_done: Mutex<std::collections::HashMap<String, Recorded>>,
    pub(super) touched: Mutex<BTreeSet<String>>,
    pub(super) undo: UndoStack,
    pub(super) no_return: Mutex<Option<String>>,
    pub(super) undoing: AtomicBool,
    /// In a comparison: the finished steps that are yet to be found in the edited runbook.
    pub(super) unseen: Mutex<BTreeSet<String>>,
    /// Actions that may have written.
    writes: AtomicUsize,
    moved: AtomicBool,
}

impl Run {
    /// Puts a run together.
    #[must_use]
    pub fn new(mut parts: RunParts) -> Arc<Run> {
        let once_done = Mutex::new(std::mem::take(&mut parts.history.once_done));
        let touched = Mutex::new(parts.history.touched.iter().cloned().collect());
        let writes = AtomicUsize::new(parts.history.writes());
        let no_return = Mutex::new(parts.history.no_return.clone());
        let unseen = if parts.mode == Mode::Compare { parts.history.finished().into_iter().collect() } else { BTreeSet::new() };
        Arc::new(Run {
            unseen: Mutex::new(unseen),
            parts,
            once_done,
            touched,
            undo: UndoStack::default(),
            no_return,
            undoing: AtomicBool::new(false),
            writes,
            moved: AtomicBool::new(false),
        })
    }

    /// The run's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.parts.id
    }

    /// The environment.
    #[must_use]
    pub fn env(&self) -> &Arc<Environment> {
        &self.parts.env
    }

    /// What scripts can call.
    #[must_use]
    pub fn registry(&self) -> &Arc<Registry> {
        &self.parts.around.registry
    }

    /// What is struck from everything.
    #[must_use]
    pub fn redactor(&self) -> &Redactor {
        &self.parts.around.redactor
    }

    /// Forward or back.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.parts.mode
    }

    /// Whether anything but reads was begun, in this controller or before.
    #[must_use]
    pub fn wrote(&self) -> bool {
        self.writes.load(Ordering::Relaxed) > 0
    }

    /// Why there is no way back, once the point of no return is passed.
    #[must_use]
    pub fn past_no_return(&self) -> Option<String> {
        self.no_return.lock().clone()
    }

    /// Whether this controller got nowhere: a failure from the record ended the run, and the controller that recorded it died
    /// before it could say that this was the end.
    #[must_use]
    pub fn stuck(&self) -> bool {
        self.parts.history.state == Some(State::Running) && !self.moved.load(Ordering::Relaxed)
    }

    /// A secret by its inventory name, struck from everything from now on.
    ///
    /// # Errors
    /// `RB0109` when it cannot be had.
    pub fn secret(&self, name: &str) -> Result<Secret> {
        let s = self.parts.around.secrets.get(name)?;
        self.parts.around.redactor.add(s.reveal());
        Ok(s)
    }

    /// The present moment.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.parts.around.clock.now()
    }

    /// An action that was begun never reached its host.
    pub(super) fn not_written(&self) {
        self.writes.fetch_sub(1, Ordering::Relaxed);
    }

    /// Tells the operator something that is no entry.
    pub fn notice(&self, text: &str) {
        self.parts.around.observer.notice(&self.parts.around.redactor.text(text));
    }

    /// Appends and syncs one entry.
    pub(super) fn append(&self, body: Body) -> Result<()> {
        let now = self.now();
        if matches!(body, Body::Intent { .. }) {
            self.writes.fetch_add(1, Ordering::Relaxed);
        }
        self.parts.around.store.append(&self.parts.id, self.parts.fence, Batch::one(now, body.clone()))?;
        self.shown(now, &body);
        Ok(())
    }

    /// Appends one entry that becomes durable with the next.
    pub(super) fn append_later(&self, body: Body) -> Result<()> {
        let now = self.now();
        self.parts.around.store.append_later(&self.parts.id, self.parts.fence, Batch::one(now, body.clone()))?;
        self.shown(now, &body);
        Ok(())
    }

    pub(super) fn append_batch(&self, batch: Batch) -> Result<()> {
        self.parts.around.store.append(&self.parts.id, self.parts.fence, batch.clone())?;
        for (t, b) in &batch.bodies {
            self.shown(*t, b);
        }
        Ok(())
    }

    /// Makes durable what [`Run::append_later`] left.
    pub(super) fn flush(&self) -> Result<()> {
        self.parts.around.store.flush(&self.parts.id, self.parts.fence)
    }

    pub(super) fn shown(&self, now: Timestamp, body: &Body) {
        self.moved.store(true, Ordering::Relaxed);
        self.parts.around.observer.entry(now, body, false);
        self.crash(CrashPoint::Entry(body));
    }

    pub(super) fn crash(&self, point: CrashPoint<'_>) {
        if let Some(crash) = &self.parts.around.crash {
            crash(point);
        }
    }

    /// Fails when the operator wants to stop: called before anything new begins.
    pub(super) fn check_stop(&self) -> Result<()> {
        if self.parts.around.abort.is_cancelled() || self.parts.around.stop.is_cancelled() {
            return Err(
                Error::new(Code::INTERRUPTED, "the run was interrupted").hint(format!("`runbook resume {}` goes on from here", self.id()))
            );
        }
        Ok(())
    }

    /// The answer that unwinds the script where the record ends, in a rollback or a comparison.
    pub(super) fn frontier(&self) -> Result<()> {
        if self.parts.mode != Mode::Forward && !self.undoing.load(Ordering::Relaxed) {
            return Err(Error::new(Code::ROLL_BACK, "the record ends here"));
        }
        Ok(())
    }

    /// Looks for a message from another process.
    pub(super) fn message(&self, kind: &str, path: &str) -> Result<Option<Message>> {
        Ok(self.parts.around.store.messages(&self.parts.id, kind, path)?.pop())
    }

    pub(super) fn cx(self: &Arc<Self>, path: &str, action: &ActionId, cancel: Cancel) -> Cx {
        Cx {
            action_id: action.clone(),
            path: path.into(),
            run: self.parts.id.as_str().into(),
            env: self.parts.env.clone(),
            cancel,
            reached: Arc::default(),
            redactor: self.parts.around.redactor.clone(),
            clock: self.parts.around.clock.clone(),
            shared: self.parts.around.shared.clone(),
            secrets: self.parts.around.secrets.clone(),
            files: self.parts.files.clone(),
            facts: Arc::new(StoreFacts(self.clone())),
            sink: Arc::new(LiveSink::new(self.clone())),
        }
    }

    /// Ends this controller's work in order: the last entry, the lock is the caller's.
    ///
    /// # Errors
    /// `RB0002`, `RB0003`, `RB0005` when it cannot be recorded.
    pub fn end(&self, state: State, error: Option<Error>) -> Result<()> {
        let at = error.as_ref().map(|e| e.at.clone()).unwrap_or_default();
        let now = self.now();
        let body = Body::SessionEnded { state, at, error };
        let batch = Batch { bodies: vec![(now, body.clone())], state: Some(state), ..Batch::default() };
        self.parts.around.store.append(&self.parts.id, self.parts.fence, batch)?;
        self.shown(now, &body);
        Ok(())
    }

    /// Runs the hooks of a run that is about to end for good, once everything else is on disk. Failures become notices.
    pub fn finish_hooks(self: &Arc<Self>) {
        if self.flush().is_err() {
            return;
        }
        let hosts = self.touched.lock().clone();
        let id = ActionId(format!("{}-end", self.parts.id));
        let cx = self.cx("", &id, self.parts.around.abort.child());
        for hook in &self.parts.around.registry.hooks {
            if let Err(e) = self.parts.around.runtime.block_on(hook.finished(&cx, &hosts)) {
                self.notice(&format!("the run has ended, but cleaning up failed: {e}"));
            }
        }
    }

    /// Runs the hooks of a run that was stopped in the middle of an action, before that is recorded. Failures become notices.
    pub fn stop_hooks(self: &Arc<Self>) {
        // Whoever has lost the run to another controller must not clear up after it.
        if self.flush().is_err() {
            return;
        }
        let id = ActionId(format!("{}-stop", self.parts.id));
        // What stopped the action does not stop this; whoever cannot wait stops the process.
        let cx = self.cx("", &id, Cancel::default());
        for hook in &self.parts.around.registry.hooks {
            let done = self.parts.around.runtime.block_on(async { tokio::time::timeout(STOPPING, hook.stopped(&cx)).await });
            let why = match done {
                Ok(Ok(())) => continue,
                Ok(Err(e)) => e.to_string(),
                Err(_) => "a host does not answer".into(),
            };
            self.notice(&format!("the run was stopped, but cleaning up failed: {why}"));
        }
    }

    /// The state in which an error leaves the run.
    #[must_use]
    pub fn state_after(error: &Error) -> State {
        match error.kind {
            Kind::Paused => State::Paused,
            Kind::Interrupted => State::Interrupted,
            Kind::InDoubt => State::InDoubt,
            Kind::RollBack => State::RollingBack,
            _ => State::Failed,
        }
    }
}
