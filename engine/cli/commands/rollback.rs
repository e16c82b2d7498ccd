//! `runbook rollback`: takes a run back.

use clap::Args;

use super::resume::again;
use crate::app::{App, Done};
use crate::ask::Answer;
use crate::command_error::Failure;
use crate::session::Wishes;

/// Takes a run back: the undo blocks of its steps, the last one first
#[derive(Debug, Args)]
pub struct Rollback {
    /// The run's id or the beginning of it; the newest unless given
    #[arg(value_name = "RUN")]
    run: Option<String>,
    /// Take the environment over from a controller that is gone, also when it was on another machine
    #[arg(long)]
    take_over: bool,
    /// What became of the action in doubt
    #[arg(long, value_name = "ANSWER")]
    answer: Option<Answer>,
    /// Confirm the environment's name, where it wants that
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
}

impl Rollback {
    pub fn run(self, app: &App) -> Result<Done, Failure> {
        let wishes = Wishes { doubt: self.answer.map(Into::into), take_over: self.take_over, failures: true, ..Wishes::default() };
        again(app, self.run.as_deref(), self.confirm.as_deref(), &wishes, |c, id| c.rollback(id))
    }
}
