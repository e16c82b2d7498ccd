//! What a run asks its operator, and the answers.

use std::time::Duration;

use crate::error::{Error, Result};

/// A step as questions show it.
#[derive(Debug, Clone)]
pub struct StepView {
    /// Its path.
    pub path: String,
    /// Its name.
    pub name: String,
    /// The attempt that comes (or failed).
    pub attempt: u32,
    /// The host shown.
    pub on: Option<String>,
    /// What it would do, from its source.
    pub source: String,
    /// Whether it is being taken back.
    pub undo: bool,
}

/// An answer, and who gave it how: `anna`, `anna (--yes)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said<T> {
    /// The answer.
    pub answer: T,
    /// Who gave it, and with which flag if not at a prompt.
    pub by: String,
}

/// The answer to a gate.
#[derive(Debug, Clone)]
pub struct GateAnswer {
    /// Go or no-go.
    pub yes: bool,
    /// Who.
    pub by: String,
    /// What they added.
    pub comment: Option<String>,
}

/// What to do with the step that comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepChoice {
    /// Run it.
    Run,
    /// Leave it out, for this reason.
    Skip(String),
    /// Take the run back.
    RollBack,
    /// Stop, resumable.
    Quit,
}

/// What to do with a step that failed and has no attempt left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnFailure {
    /// Let the failure go on to the script and end the run.
    Stop,
    /// Try again.
    Retry,
    /// Leave it out, for this reason.
    Skip(String),
    /// Take the run back.
    RollBack,
}

/// What the operator says of an action in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DoubtAnswer {
    /// It did not happen: do it.
    Retry,
    /// It happened: go on with an empty result.
    Done,
    /// Take the run back.
    RollBack,
}

/// Asks the operator. `None` always means that nobody is there to answer.
///
/// `elsewhere` looks whether the answer has come from another terminal and fails when the run is to stop: call it every
/// few hundred milliseconds while waiting.
pub trait Ask: Send + Sync {
    /// Go or no-go?
    ///
    /// # Errors
    /// What `elsewhere` returns.
    fn gate(&self, path: &str, question: &str, elsewhere: &mut dyn FnMut() -> Result<Option<GateAnswer>>) -> Result<Option<GateAnswer>>;
    /// Before a step, in step mode.
    ///
    /// # Errors
    /// When the terminal is gone.
    fn before_step(&self, _step: &StepView) -> Result<StepChoice> {
        Ok(StepChoice::Run)
    }
    /// After a step failed for good.
    ///
    /// # Errors
    /// When the terminal is gone.
    fn failed_step(&self, _step: &StepView, _error: &Error) -> Result<OnFailure> {
        Ok(OnFailure::Stop)
    }
    /// The window is over its budget: go on (`true`) or roll back?
    ///
    /// # Errors
    /// When the terminal is gone.
    fn overrun(&self, _window: &str, _open: Duration, _budget: Duration) -> Result<Option<Said<bool>>> {
        Ok(None)
    }
    /// It cannot be known what became of an action.
    ///
    /// # Errors
    /// When the terminal is gone.
    fn doubt(&self, _call: &str, _known: &str) -> Result<Option<Said<DoubtAnswer>>> {
        Ok(None)
    }
    /// Whether the operator has already said what [`Ask::doubt`] will answer. Then it counts also when the far side cannot be reached to be
    /// asked first; nobody is asked for that, since waiting until it can be reached is nearly always right.
    fn doubt_told(&self) -> bool {
        false
    }
}

/// Nobody to ask; gates pause the run.
pub struct NoAsk;
impl Ask for NoAsk {
    fn gate(&self, _: &str, _: &str, elsewhere: &mut dyn FnMut() -> Result<Option<GateAnswer>>) -> Result<Option<GateAnswer>> {
        elsewhere()
    }
}
