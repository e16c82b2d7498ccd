//! Waiting that survives the controller: sleeps whose end stands, and conditions whose last answer is what is recorded.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;

use super::frame::Frame;
use super::history::since;
use super::run::{Fault, Run};
use crate::clock::rfc3339;
use crate::error::{Code, Error, Result};
use crate::journal::{Batch, Body, Via};
use crate::primitive::Progress;
use crate::units::show_duration;

impl Run {
    /// Sleeps until a moment that is fixed when the sleep begins, however often the controller dies.
    ///
    /// # Errors
    /// The reasons to stop.
    pub fn sleep(self: &Arc<Self>, frame: &Frame, how_long: Duration) -> Result<()> {
        let path = frame.ordinal();
        let until = match self.parts.history.timers.get(&path) {
            Some((_, true)) => return Ok(()),
            Some((until, false)) => {
                self.frontier()?;
                *until
            }
            None => {
                self.frontier()?;
                self.check_stop()?;
                let until = self
                    .now()
                    .checked_add(how_long)
                    .map_err(|_| Error::new(Code::BAD_DURATION, format!("{} is too long to sleep", show_duration(how_long))))?;
                self.append(Body::TimerSet { path: path.clone(), until: rfc3339(until) })?;
                until
            }
        };
        self.wait_for(&path, until, how_long)?;
        self.append_later(Body::TimerFired { path })
    }

    fn wait_for(&self, path: &str, until: Timestamp, total: Duration) -> Result<()> {
        loop {
            self.check_stop()?;
            let left = since(self.now(), until);
            if left.is_zero() {
                return Ok(());
            }
            let done = total.saturating_sub(left);
            let secs = |d: Duration| d.as_secs();
            let progress = Progress { what: "sleeping".into(), done: secs(done), total: Some(secs(total)), unit: "s" };
            self.parts.around.observer.progress(path, &progress);
            self.doze(left.min(Duration::from_secs(1)));
        }
    }

    fn doze(&self, d: Duration) {
        self.parts.around.runtime.block_on(async {
            tokio::select! {
                () = tokio::time::sleep(d) => {}
                () = self.parts.around.stop.cancelled() => {}
                () = self.parts.around.abort.cancelled() => {}
            }
        });
    }

    /// Evaluates a condition again and again until it is true. Only the reads of the evaluation that was true are recorded, so a
    /// long wait leaves a short record; `poll` must leave no trace in the script when it is not true.
    ///
    /// # Errors
    /// `RB0020` when it was not true in time, recorded as well; the condition's own errors; the reasons to stop.
    pub fn wait_until<E: Fault>(
        self: &Arc<Self>,
        frame: &Frame,
        what: &str,
        within: Duration,
        every: Duration,
        mut poll: impl FnMut(&Arc<Frame>) -> Result<bool, E>,
    ) -> Result<(), E> {
        let path = frame.ordinal();
        let recorded = self.parts.history.outcomes.get(&path).map(|o| o.value.clone());
        match recorded {
            Some(Err(e)) => return Err(e.into()),
            Some(Ok(_)) => {
                // The reads of the true evaluation answer from the record and bring its assignments back.
                poll(&Arc::new(frame.below(path)))?;
                return Ok(());
            }
            None => {}
        }
        self.frontier()?;
        self.flush()?;
        let began = self.now();
        let outcome = |error: Option<Error>, took: Duration| Body::Outcome {
            path: path.clone(),
            action: String::new(),
            name: "wait_until".into(),
            call: Some(format!("wait_until {what:?}")),
            digest: String::new(),
            effect: "read".into(),
            value: error.is_none().then(|| serde_json::Value::Bool(true)),
            error,
            changed: None,
            note: None,
            ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            via: Via::Act,
        };
        loop {
            self.check_stop()?;
            let mut inner = frame.below(path.clone());
            let held = Arc::new(Mutex::new(Vec::new()));
            inner.held = Some(held.clone());
            let ok = poll(&Arc::new(inner))?;
            let took = since(began, self.now());
            if ok {
                let now = self.now();
                let mut bodies: Vec<(Timestamp, Body)> = held.lock().drain(..).map(|b| (now, b)).collect();
                bodies.push((now, outcome(None, took)));
                self.append_batch(Batch { bodies, ..Batch::default() })?;
                return Ok(());
            }
            if took >= within {
                let mut e = Error::new(Code::WAIT_TIMEOUT, format!("\"{what}\" did not come true within {}", show_duration(within)))
                    .hint("see what the condition looks at, or give it a longer `within`")
                    .retryable(true);
                self.append(outcome(Some(e.clone()), took))?;
                if !frame.in_step {
                    e.at.push(path.clone());
                }
                return Err(e.into());
            }
            let progress = Progress { what: what.into(), done: took.as_secs(), total: Some(within.as_secs()), unit: "s" };
            self.parts.around.observer.progress(&path, &progress);
            self.doze(every.min(within.saturating_sub(took)));
        }
    }
}
