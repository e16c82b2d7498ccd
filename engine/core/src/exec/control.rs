//! Phases, gates, downtime windows, the point of no return, log lines.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::ask::GateAnswer;
use super::frame::{Frame, Window};
use super::history::since;
use super::run::{Fault, Run};
use crate::error::{Code, Error, Kind, Result};
use crate::journal::{Body, Status};
use crate::units::show_duration;

fn ms(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

impl Run {
    /// Runs a phase: a named group of steps.
    ///
    /// # Errors
    /// The block's own; `RB0019` for a name given twice.
    pub fn phase<T, E: Fault>(
        self: &Arc<Self>,
        parent: &Frame,
        name: &str,
        body: impl FnOnce(&Arc<Frame>) -> Result<T, E>,
    ) -> Result<T, E> {
        let path = parent.named(name)?;
        self.phase_at(parent, path, body)
    }

    fn phase_at<T, E: Fault>(
        self: &Arc<Self>,
        parent: &Frame,
        path: String,
        body: impl FnOnce(&Arc<Frame>) -> Result<T, E>,
    ) -> Result<T, E> {
        let recorded = self.parts.history.phases.get(&path).copied();
        if recorded.is_none() && !self.pass_over() {
            self.frontier()?;
            self.check_stop()?;
            self.append_later(Body::PhaseStarted { path: path.clone() })?;
        }
        let began = recorded.map_or_else(|| self.now(), |(t, _)| t);
        let result = body(&Arc::new(parent.below(path.clone())));
        let ended = recorded.is_some_and(|(_, ended)| ended);
        let status = match &result {
            Ok(_) => Status::Ok,
            Err(e) if e.to_error().kind.catchable() => Status::Failed,
            Err(_) => return result,
        };
        // A failed phase is gone through again on resume, so only its success ends it.
        if !ended && status == Status::Ok && self.frontier().is_ok() {
            self.append_later(Body::PhaseEnded { path, status, ms: ms(since(began, self.now())) })?;
        }
        result
    }

    /// Asks a question that a person answers, here or from elsewhere, and remembers the answer.
    ///
    /// # Errors
    /// `RB0011` when nobody is there to answer, `RB0012` when the answer is no.
    pub fn gate(self: &Arc<Self>, parent: &Frame, question: &str) -> Result<()> {
        let path = parent.named(question)?;
        let recorded = self.parts.history.gates.get(&path).copied();
        if recorded == Some(Some(true)) || recorded.is_none() && self.pass_over() {
            return Ok(());
        }
        self.frontier()?;
        self.check_stop()?;
        if recorded.is_none() {
            self.append(Body::GateAsked { path: path.clone(), question: question.into() })?;
        }
        let mut elsewhere = || -> Result<Option<GateAnswer>> {
            self.check_stop()?;
            let found = self.message("gate", &path)?;
            Ok(found.map(|m| GateAnswer { yes: m.answer == "yes", by: m.by, comment: m.comment }))
        };
        let answer = match elsewhere()? {
            Some(a) => Some(a),
            None => self.parts.around.ask.gate(&path, question, &mut elsewhere)?,
        };
        let Some(a) = answer else {
            return Err(Error::new(Code::PAUSED, format!("the gate \"{question}\" waits for an answer"))
                .detail("gate", &path)
                .hint(format!("`runbook approve {0}` answers it, then `runbook resume {0}`", self.id())));
        };
        self.append(Body::GateAnswered { path: path.clone(), yes: a.yes, by: a.by.clone(), comment: a.comment })?;
        self.parts.around.store.clear_messages(&self.parts.id, "gate", &path)?;
        if a.yes {
            return Ok(());
        }
        Err(Error::new(Code::GATE_REFUSED, format!("{} answered no to \"{question}\"", a.by))
            .detail("gate", &path)
            .hint(format!("`runbook resume {0}` asks again; `runbook rollback {0}` takes the run back", self.id())))
    }

    /// Runs the part of the run in which users are cut off, and measures it.
    ///
    /// # Errors
    /// The block's own; `RB0019` for a name given twice.
    pub fn downtime<T, E: Fault>(
        self: &Arc<Self>,
        parent: &Frame,
        name: &str,
        budget: Option<Duration>,
        on_overrun: &str,
        body: impl FnOnce(&Arc<Frame>) -> Result<T, E>,
    ) -> Result<T, E> {
        let path = parent.named(name)?;
        let recorded = self.parts.history.windows.get(&path).cloned();
        let opened = match &recorded {
            Some(w) => w.opened,
            None if self.pass_over() => self.now(),
            None => {
                self.frontier()?;
                self.check_stop()?;
                let now = self.now();
                self.append(Body::WindowOpened { path: path.clone(), budget_ms: budget.map(ms), on_overrun: on_overrun.into() })?;
                now
            }
        };
        let overran = recorded.as_ref().is_some_and(|w| w.overrun.is_some());
        let window = Arc::new(Window { path: path.clone(), opened, budget, on_overrun: on_overrun.into(), overrun: Mutex::new(overran) });
        let mut frame = parent.below(path.clone());
        frame.window = Some(window.clone());
        let result = body(&Arc::new(frame));
        if result.is_ok() && !recorded.is_some_and(|w| w.closed) && self.frontier().is_ok() {
            let open = since(opened, self.now());
            self.append(Body::WindowClosed { path, ms: ms(open), overran: budget.is_some_and(|b| open > b) })?;
        }
        result
    }

    /// Decides, before anything new begins inside a window that is over its budget, how to go on. Once a window.
    pub(super) fn check_window(&self, frame: &Frame) -> Result<()> {
        let Some(w) = &frame.window else { return Ok(()) };
        let Some(budget) = w.budget else { return Ok(()) };
        let open = since(w.opened, self.now());
        if open <= budget || frame.undo {
            return Ok(());
        }
        let mut decided = w.overrun.lock();
        if *decided {
            return Ok(());
        }
        let name = w.path.rsplit('/').next().unwrap_or(&w.path);
        let (go_on, by) = if self.past_no_return().is_some() {
            (true, "the point of no return is passed".to_string())
        } else {
            match w.on_overrun.as_str() {
                "continue" => (true, "the runbook".into()),
                "rollback" => (false, "the runbook".into()),
                _ => match self.message("overrun", &w.path)? {
                    Some(m) => (m.answer == "continue", m.by),
                    None => match self.parts.around.ask.overrun(name, open, budget)? {
                        Some(said) => (said.answer, said.by),
                        None => (true, "nobody was there to ask".into()),
                    },
                },
            }
        };
        let decision = if go_on { "continue" } else { "rollback" };
        self.append(Body::WindowOverrun { path: w.path.clone(), decision: decision.into(), by: by.clone(), ms: ms(open) })?;
        *decided = true;
        if go_on {
            self.notice(&format!("\"{name}\" is over its budget of {}: going on ({by})", show_duration(budget)));
            return Ok(());
        }
        Err(Error::new(Code::WINDOW_OVERRUN, format!("\"{name}\" is over its budget of {}: rolling back ({by})", show_duration(budget)))
            .kind(Kind::RollBack))
    }

    /// Passes the point of no return: from here on the run only goes forward.
    ///
    /// # Errors
    /// `RB0002` and its like when it cannot be recorded: then it is not passed.
    pub fn point_of_no_return(self: &Arc<Self>, parent: &Frame, why: &str) -> Result<()> {
        let path = parent.named(why)?;
        if self.parts.history.no_return_path.as_deref() == Some(path.as_str()) {
            return Ok(());
        }
        self.frontier()?;
        self.check_stop()?;
        self.check_window(parent)?;
        self.append(Body::PointOfNoReturn { path, why: why.into() })?;
        *self.no_return.lock() = Some(why.into());
        Ok(())
    }

    /// Writes a line to the log, once.
    ///
    /// # Errors
    /// `RB0002` and its like when it cannot be recorded.
    pub fn log(self: &Arc<Self>, frame: &Frame, level: &str, message: &str) -> Result<()> {
        let path = frame.ordinal();
        if self.parts.history.logged.contains(&path) || frame.held.is_some() || self.pass_over() {
            return Ok(());
        }
        self.frontier()?;
        self.append_later(Body::Log { path, level: level.into(), message: self.parts.around.redactor.text(message) })
    }
}
