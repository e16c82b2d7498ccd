//! An action in doubt: its intent is on record and its outcome is not, so the far side is asked, and the operator where it cannot know.

use std::time::Instant;

use super::act::Act;
use super::ask::DoubtAnswer;
use super::frame::Frame;
use super::run::CrashPoint;
use crate::error::{Code, Error, Kind, Result};
use crate::journal::{Body, Via};
use crate::primitive::{ActionId, Outcome, Reconciled};
use crate::spec::Effect;
use crate::value::Value;

/// What an operator's answer stands for, when it is one to go on with.
fn decided(answer: &str) -> Option<Reconciled> {
    match answer {
        "retry" => Some(Reconciled::NotStarted),
        "done" => Some(Reconciled::Done(Outcome { note: Some("the operator says that it was done".into()), ..Outcome::default() })),
        _ => None,
    }
}

impl Act<'_> {
    /// An intent without an outcome: ask the far side what happened, and only then act or go on.
    pub(super) fn in_doubt(&self, frame: &Frame) -> Result<Value> {
        let run = self.run;
        let id = run.action_id(&self.path);
        let began = Instant::now();
        let rolling_back = run.frontier().is_err();
        let (prim, call) = (self.prim.clone(), self.call.clone());
        let told = run.parts.history.doubts.get(&id.0).map(String::as_str);
        let said = match told.and_then(decided) {
            Some(said) => Ok(said),
            None => self.drive(frame, |cx| async move { prim.reconcile(&cx, &call).await })?,
        };
        let said = match said {
            // A host that is gone for good must not hold the run for ever.
            Err(e)
                if matches!(e.kind, Kind::Unreachable | Kind::Failed)
                    && if rolling_back { told == Some("rollback") } else { run.parts.around.ask.doubt_told() } =>
            {
                Reconciled::Unknown { known: format!("the far side cannot be asked: {}", e.message) }
            }
            Err(mut e) => {
                if matches!(e.kind, Kind::Unreachable | Kind::Failed) {
                    e.message = format!("it cannot be found out yet what became of {}: {}", self.shown(), e.message);
                    e.kind = Kind::InDoubt;
                    e.hint = Some(format!(
                        "once it can be reached, `runbook resume {}` finds out and goes on; when it is gone for good, tell: `--answer done` (go on without it) or `--answer rollback`",
                        run.id()
                    ));
                }
                e.at.push(self.base.clone());
                return Err(e);
            }
            Ok(said) => said,
        };
        let (via_operator, said) = match said {
            Reconciled::Unknown { known } if rolling_back => {
                // The step's undo block runs next and is written to be safe when its step had only begun.
                run.notice(&format!("it is not known whether {} happened ({known}); its step is undone", self.shown()));
                return run.frontier().map(|()| Value::Unit);
            }
            Reconciled::Unknown { known } => (true, self.ask(&id, &known)?),
            other => (false, other),
        };
        let via = if via_operator { Via::Operator } else { Via::Reconcile };
        match said {
            Reconciled::Done(outcome) => self.record(frame, Ok(outcome), began.elapsed(), via),
            Reconciled::Failed(e) => self.record(frame, Err(e), began.elapsed(), via),
            Reconciled::NotStarted | Reconciled::Unknown { .. } => {
                run.frontier()?;
                run.check_stop()?;
                // The recorded intent still stands; the same id makes the far side refuse a second claim.
                self.live_again(frame, began)
            }
        }
    }

    fn live_again(&self, frame: &Frame, began: Instant) -> Result<Value> {
        let (prim, call) = (self.prim.clone(), self.call.clone());
        let result = self.drive(frame, |cx| async move { prim.act(&cx, &call).await })?;
        self.run.crash(CrashPoint::Acted(&self.path));
        match result {
            Err(mut e) if self.prim.spec().effect == Effect::Once && (e.kind == Kind::InDoubt || e.code == Code::SSH_LOST) => {
                e.kind = Kind::InDoubt;
                e.hint.get_or_insert_with(|| format!("`runbook resume {}` asks the far side again", self.run.id()));
                e.at.push(self.base.clone());
                Err(e)
            }
            // The controller before may have got further than this one did.
            result => self.record(frame, result.map_err(Error::reached_before), began.elapsed(), Via::Act),
        }
    }

    fn ask(&self, id: &ActionId, known: &str) -> Result<Reconciled> {
        let run = self.run;
        let known = run.parts.around.redactor.text(known);
        run.append(Body::DoubtAsked { path: self.path.clone(), action: id.0.clone(), known: known.clone() })?;
        let (answer, by) = match run.message("doubt", &self.path)? {
            Some(m) => (m.answer.clone(), m.by),
            None => match run.parts.around.ask.doubt(&self.shown(), &known)? {
                Some(said) => {
                    let text = match said.answer {
                        DoubtAnswer::Retry => "retry",
                        DoubtAnswer::Done => "done",
                        DoubtAnswer::RollBack => "rollback",
                    };
                    (text.to_string(), said.by)
                }
                None => {
                    return Err(Error::new(Code::IN_DOUBT, format!("it cannot be known what became of {}: {known}", self.shown()))
                        .detail("action", id)
                        .detail("path", &self.path)
                        .hint(format!(
                            "look on the far side whether it happened, then tell: `runbook resume {} --answer retry` (it did not: do it), \
                             `--answer done` (it did: go on) or `--answer rollback`",
                            run.id()
                        )));
                }
            },
        };
        run.append(Body::DoubtAnswered { path: self.path.clone(), action: id.0.clone(), answer: answer.clone(), by })?;
        decided(&answer).ok_or_else(|| match answer.as_str() {
            "rollback" => Error::new(Code::ROLL_BACK, "the operator wants the run rolled back"),
            other => Error::new(Code::USAGE, format!("\"{other}\" is not an answer: say retry, done or rollback")),
        })
    }
}
