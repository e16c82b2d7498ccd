//! Rolling back: the undo blocks of the steps that had begun, in reverse, recorded like everything else.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::Mutex;

use super::ask::{OnFailure, StepView};
use super::frame::{Frame, escape};
use super::history::StepRecord;
use super::run::{Mode, Run};
use super::step::attempt_frame;
use crate::error::{Code, Error, Kind, Result};
use crate::journal::{Body, State, Status};

/// An undo block with the variables as they were when its step ended.
pub trait Undo: Send {
    /// Runs it with the frame that its actions are recorded under.
    ///
    /// # Errors
    /// The block's own.
    fn undo(&mut self, run: &Arc<Run>, frame: &Arc<Frame>) -> Result<()>;
}

/// The undo blocks gathered while a run is evaluated in order to take it back.
#[derive(Default)]
pub(super) struct UndoStack(Mutex<Vec<(u64, String, Box<dyn Undo>)>>);

impl Run {
    /// Adds the undo block of a step; `order` is the one that [`Run::step`] gave. A later block of the same step replaces it.
    pub fn push_undo(&self, order: u64, step: &str, undo: Box<dyn Undo>) {
        let mut stack = self.undo.0.lock();
        stack.retain(|(_, s, _)| s != step);
        stack.push((order, step.to_string(), undo));
    }

    /// Takes the run back: runs the gathered undo blocks, the last step's first, each recorded; those that are recorded as done are
    /// not run again.
    ///
    /// # Errors
    /// `RB0014` past the point of no return; `RB0023` when an undo block fails: the rollback can be resumed; the reasons to stop.
    pub fn roll_back(self: &Arc<Self>, reason: &str) -> Result<()> {
        if let Some(why) = self.past_no_return() {
            return Err(past_no_return(self.id(), &why));
        }
        debug_assert_eq!(self.parts.mode, Mode::Rollback);
        self.undoing.store(true, Ordering::Relaxed);
        if !self.parts.history.rollback {
            let now = self.now();
            let body = Body::RollbackStarted { reason: reason.into() };
            self.append_batch(crate::journal::Batch { bodies: vec![(now, body)], state: Some(State::RollingBack), ..Default::default() })?;
        }
        let mut stack = std::mem::take(&mut *self.undo.0.lock());
        stack.sort_by_key(|(order, ..)| std::cmp::Reverse(*order));
        let root = Frame::root();
        for (_, step, mut block) in stack {
            self.undo_step(&root, &step, block.as_mut())?;
        }
        Ok(())
    }

    fn undo_step(self: &Arc<Self>, root: &Frame, step: &str, block: &mut dyn Undo) -> Result<()> {
        let none = StepRecord::default();
        let rec = self.parts.history.undone.get(step).unwrap_or(&none);
        if !rec.ended.is_empty() {
            return Ok(());
        }
        // A controller that died in an attempt goes on in it, so that what it did is found; one that ended in order begins a new one.
        let failed = self.parts.history.state.is_some_and(|s| s != State::Running) && rec.attempts > 0;
        let mut attempt = if failed { rec.attempts + 1 } else { rec.attempts.max(1) };
        loop {
            self.check_stop()?;
            if attempt > rec.attempts {
                self.append_later(Body::UndoStarted { path: step.into(), attempt })?;
            }
            let mut frame = below_undo(root, step, attempt);
            if let Some(f) = Arc::get_mut(&mut frame) {
                f.undo = true;
            }
            let began = Instant::now();
            let result = block.undo(self, &frame);
            let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let ended = |status, error| Body::UndoEnded { path: step.into(), attempt, status, ms, error };
            let error = match result {
                Ok(()) => {
                    self.append_later(ended(Status::Ok, None))?;
                    return self.flush();
                }
                Err(e) if !e.kind.catchable() => return Err(e),
                Err(e) => e,
            };
            self.append_later(ended(Status::Failed, Some(error.clone())))?;
            self.flush()?;
            let name = step.rsplit('/').next().unwrap_or(step).to_string();
            let view = StepView { path: step.into(), name, attempt, on: None, source: String::new(), undo: true };
            match self.parts.around.ask.failed_step(&view, &error)? {
                OnFailure::Retry => attempt += 1,
                OnFailure::Skip(_) => {
                    self.append(ended(Status::Skipped, None))?;
                    return Ok(());
                }
                OnFailure::Stop | OnFailure::RollBack => {
                    let mut e = Error::new(Code::UNDO_FAILED, format!("the undo of \"{step}\" failed: {}", error.message))
                        .kind(Kind::Failed)
                        .hint(format!("mend the cause, then `runbook rollback {}` goes on from here", self.id()));
                    e.details = error.details.clone();
                    e.details.insert("cause".into(), error.code.to_string());
                    e.host = error.host;
                    e.at.push(format!("undo/{step}"));
                    return Err(e);
                }
            }
        }
    }
}

fn below_undo(root: &Frame, step: &str, attempt: u32) -> Arc<Frame> {
    debug_assert!(!step.contains("@@"));
    attempt_frame(root, &format!("undo:{}", escape(step)), attempt, None)
}

/// The refusal to go back.
pub(super) fn past_no_return(run: &str, why: &str) -> Error {
    Error::new(Code::PAST_NO_RETURN, format!("run {run} is past its point of no return: {why}"))
        .hint(format!("it can only go forward: `runbook resume {run}`, or write a runbook that moves back"))
}
