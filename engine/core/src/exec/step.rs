//! Steps: what an operator sees, approves, retries, skips and undoes. A step's block may run several times; its actions answer from the record.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ask::{OnFailure, StepChoice, StepView};
use super::frame::Frame;
use super::history::StepRecord;
use super::run::{Fault, Mode, Run};
use crate::cancel::Cancel;
use crate::error::{Code, Error, Kind, Result};
use crate::journal::{Body, Status, UndoKind};

/// What `step NAME #{ … }` says.
#[derive(Debug, Clone, Default)]
pub struct StepOptions {
    /// Its name.
    pub name: String,
    /// How often it is tried again after a failure.
    pub retries: u32,
    /// How long it waits before the first retry; doubled each time, at most a minute.
    pub backoff: Duration,
    /// How long one attempt may take.
    pub timeout: Option<Duration>,
    /// Whether it is to run at all.
    pub when: bool,
    /// The host shown.
    pub on: Option<String>,
    /// What it has for an undo.
    pub undo: UndoKind,
    /// Where in the sources.
    pub at: Option<String>,
    /// Its source, for previews.
    pub source: String,
}

/// The longest wait between two attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

impl Run {
    /// Runs a step: `body` is its block, called once an attempt with the attempt's frame and the sequence number that orders undo blocks.
    /// `None` when it was skipped.
    ///
    /// # Errors
    /// The block's own once no attempt is left; `RB0019` for a name given twice; the reasons to stop.
    pub fn step<T, E: Fault>(
        self: &Arc<Self>,
        parent: &Frame,
        options: &StepOptions,
        mut body: impl FnMut(&Arc<Frame>, u64) -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        let path = parent.named(&options.name)?;
        let none = StepRecord::default();
        let rec = self.parts.history.steps.get(&path).unwrap_or(&none);
        if let Some(skipped) = self.before(parent, &path, options, rec)? {
            debug_assert!(skipped);
            return Ok(None);
        }
        // Undo blocks are gathered only while a run is taken back, and then every step that is evaluated is recorded.
        let order = rec.began;
        let mut attempt = 1;
        let mut series = 1;
        loop {
            let recorded = attempt <= rec.attempts;
            if !recorded {
                self.append_later(Body::StepStarted {
                    path: path.clone(),
                    attempt,
                    undo: options.undo,
                    at: options.at.clone(),
                    on: options.on.clone(),
                })?;
            }
            let began = Instant::now();
            // An attempt that failed left no trace in the script, so replay does not go through it. A rollback does, for the undo blocks
            // in it; what it evaluates to is known.
            let result = match rec.failed.get(&attempt) {
                Some(error) if self.parts.mode != Mode::Rollback => Err(E::from(error.clone())),
                recorded => {
                    let frame = attempt_frame(parent, &path, attempt, options.timeout);
                    let timer = self.start_timer(&frame);
                    let result = body(&frame, order);
                    drop(timer);
                    match recorded {
                        Some(error) => Err(E::from(error.clone())),
                        None => result,
                    }
                }
            };
            let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let ended = |status, error, reason| Body::StepEnded { path: path.clone(), attempt, status, ms, error, reason };
            let fault = match result {
                Ok(v) => {
                    self.found(&path);
                    if !rec.ended.contains(&attempt) && self.frontier().is_ok() {
                        self.append_later(ended(Status::Ok, None, None))?;
                        self.flush()?;
                    }
                    return Ok(Some(v));
                }
                Err(fault) => fault,
            };
            let mut error = fault.to_error();
            if !error.kind.catchable() {
                return Err(fault);
            }
            if error.at.is_empty() {
                error.at.push(path.clone());
            }
            let fault = E::from(error.clone());
            let live = !rec.ended.contains(&attempt);
            if live {
                self.frontier()?;
                self.append_later(ended(Status::Failed, Some(error.clone()), None))?;
                self.flush()?;
            }
            if attempt < rec.attempts {
                attempt += 1;
                continue;
            }
            if !live && rec.skipped.is_some() {
                self.found(&path);
                return Ok(None);
            }
            // The failure at which the run stopped: here a new attempt begins, which may be another one.
            if self.parts.mode == Mode::Compare && (self.parts.history.stopped_at.contains(&path) || attempt - series < options.retries) {
                self.frontier()?;
            }
            if !live && self.parts.mode == Mode::Rollback {
                return Err(fault);
            }
            if attempt - series < options.retries && !matches!(error.kind, Kind::Usage | Kind::Check) {
                let wait = backoff(options.backoff, attempt - series);
                attempt += 1;
                self.append_later(Body::RetryScheduled {
                    path: path.clone(),
                    attempt,
                    after_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                })?;
                self.pause(wait)?;
                self.check_stop()?;
                self.check_window(parent)?;
                continue;
            }
            if !live {
                // The failure at which the last controller stopped, in this step or in one inside of it, gets one more series of
                // attempts; a failure that the script had handled then is not touched.
                if self.stopped_within(&path) {
                    attempt += 1;
                    series = attempt;
                    continue;
                }
                return Err(fault);
            }
            match self.parts.around.ask.failed_step(&view(&path, attempt, options), &error)? {
                OnFailure::Stop => return Err(fault),
                OnFailure::Retry => {
                    attempt += 1;
                    series = attempt;
                }
                OnFailure::Skip(reason) => {
                    self.append(ended(Status::Skipped, None, Some(reason)))?;
                    return Ok(None);
                }
                OnFailure::RollBack => return Err(Error::new(Code::ROLL_BACK, "the operator wants the run rolled back").into()),
            }
        }
    }

    /// Decides before the first attempt whether the step is left out.
    fn before(&self, parent: &Frame, path: &str, options: &StepOptions, rec: &StepRecord) -> Result<Option<bool>> {
        if rec.attempts > 0 {
            return Ok(None);
        }
        if rec.skipped.is_some() {
            self.found(path);
            return Ok(Some(true));
        }
        if self.pass_over() {
            return Ok(Some(true));
        }
        self.frontier()?;
        self.check_stop()?;
        self.check_window(parent)?;
        let skip = |reason: String| {
            self.append(Body::StepEnded {
                path: path.into(),
                attempt: 0,
                status: Status::Skipped,
                ms: 0,
                error: None,
                reason: Some(reason),
            })
        };
        if !options.when {
            skip("its `when` is false".into())?;
            return Ok(Some(true));
        }
        if parent.undo {
            return Ok(None);
        }
        match self.parts.around.ask.before_step(&view(path, 1, options))? {
            StepChoice::Run => Ok(None),
            StepChoice::Skip(reason) => {
                skip(reason)?;
                Ok(Some(true))
            }
            StepChoice::RollBack => Err(Error::new(Code::ROLL_BACK, "the operator wants the run rolled back")),
            StepChoice::Quit => Err(Error::new(Code::PAUSED, format!("the operator stopped before \"{}\"", options.name))
                .hint(format!("`runbook resume {}` goes on from here", self.id()))),
        }
    }

    /// Waits between attempts, ending early when the run is to stop.
    fn pause(&self, wait: Duration) -> Result<()> {
        self.flush()?;
        self.parts.around.runtime.block_on(async {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.parts.around.stop.cancelled() => {}
                () = self.parts.around.abort.cancelled() => {}
            }
        });
        Ok(())
    }

    fn start_timer(&self, frame: &Frame) -> Option<Timer> {
        let (cancel, limit) = frame.timeout.clone()?;
        Some(Timer(self.parts.around.runtime.spawn(async move {
            tokio::time::sleep(limit).await;
            cancel.cancel();
        })))
    }
}

/// Ends the countdown of a timeout when dropped.
struct Timer(tokio::task::JoinHandle<()>);

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn view(path: &str, attempt: u32, options: &StepOptions) -> StepView {
    StepView { path: path.into(), name: options.name.clone(), attempt, on: options.on.clone(), source: options.source.clone(), undo: false }
}

pub(super) fn attempt_frame(parent: &Frame, path: &str, attempt: u32, timeout: Option<Duration>) -> Arc<Frame> {
    let mut frame = parent.below(if attempt == 1 { path.to_string() } else { format!("{path}@{attempt}") });
    frame.in_step = true;
    if let Some(limit) = timeout {
        let cancel = frame.timeout.as_ref().map_or_else(Cancel::default, |(c, _)| c.child());
        frame.timeout = Some((cancel, limit));
    }
    Arc::new(frame)
}

fn backoff(first: Duration, retry: u32) -> Duration {
    let first = if first.is_zero() { Duration::from_secs(1) } else { first };
    first.saturating_mul(1u32.checked_shl(retry.min(16)).unwrap_or(u32::MAX)).min(MAX_BACKOFF.max(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_to_a_minute() {
        let s = Duration::from_secs;
        assert_eq!([0, 1, 2, 9].map(|n| backoff(s(2), n)), [s(2), s(4), s(8), s(60)]);
        assert_eq!(backoff(s(90), 3), s(90));
    }
}
