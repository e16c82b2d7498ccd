//! `runbook rollback`: takes a run back.

use clap::Args;

use super::resume::lab_again;
use crate::app::{App, Done};
use crate::ask::{Answer, confirm};
use crate::command_error::Failure;
use crate::session::{Session, Wishes, done, kept_environment};

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
        let project = app.project()?;
        let (store, info) = app.run(&project, self.run.as_deref())?;
        let env = kept_environment(&store, &info.id)?;
        confirm(&app.term, &env, self.confirm.as_deref())?;
        let runtime = app.runtime()?;
        lab_again(app, &project, &env, &runtime)?;
        let wishes = Wishes { doubt: self.answer.map(Into::into), take_over: self.take_over, failures: true, ..Wishes::default() };
        let session = Session::new(app, &project, store, &env, &info.id, runtime, &wishes)?;
        session.work(app, &project, |c| c.rollback(&info.id)).map(|ended| done(&ended))
    }
}
