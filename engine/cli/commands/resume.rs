//! `runbook resume`: goes on with a run that stopped.

use clap::Args;
use runbook_core::inventory::Environment;
use runbook_core::{Code, Error};
use runbook_script::drive::{Controller, Ended};

use super::lab;
use crate::app::{App, Done};
use crate::ask::{Answer, confirm};
use crate::command_error::Failure;
use crate::project::Project;
use crate::session::{Session, Wishes, done, kept_environment};

/// Goes on with a run that stopped
#[derive(Debug, Args)]
pub struct Resume {
    /// The run's id or the beginning of it; the newest unless given
    #[arg(value_name = "RUN")]
    run: Option<String>,
    /// Take the project's files as they are now, instead of those that the run began with
    #[arg(long)]
    edited: bool,
    /// Take the environment over from a controller that is gone, also when it was on another machine
    #[arg(long)]
    take_over: bool,
    /// What became of the action in doubt
    #[arg(long, value_name = "ANSWER")]
    answer: Option<Answer>,
    /// Ask before each step
    #[arg(long)]
    step: bool,
    /// Answer every gate with yes
    #[arg(long)]
    yes: bool,
    /// Confirm the environment's name, where it wants that
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
}

impl Resume {
    pub fn run(self, app: &App) -> Result<Done, Failure> {
        let wishes =
            Wishes { yes: self.yes, step: self.step, doubt: self.answer.map(Into::into), take_over: self.take_over, ..Wishes::default() };
        again(app, self.run.as_deref(), self.confirm.as_deref(), &wishes, |c, id| c.resume(id, self.edited))
    }
}

/// Takes a run up again: finds it and its environment, has that confirmed, brings its lab up, and does the work on it.
///
/// # Errors
/// `RB0008`, `RB0900` and its like; what the work gives.
pub fn again(
    app: &App,
    run: Option<&str>,
    confirmed: Option<&str>,
    wishes: &Wishes,
    work: impl FnOnce(&Controller, &str) -> Result<Ended, Error>,
) -> Result<Done, Failure> {
    let project = app.project()?;
    let (store, info) = app.run(&project, run)?;
    let env = kept_environment(&store, &info.id)?;
    confirm(&app.term, &env, confirmed)?;
    let runtime = app.runtime()?;
    lab_again(app, &project, &env, &runtime)?;
    let session = Session::new(app, &project, store, &env, &info.id, runtime, wishes)?;
    session.work(app, &project, |c| work(c, &info.id)).map(|ended| done(&ended))
}

/// Starts the lab of an embedded environment that is not up any more. Its addresses must be those that the run began with.
///
/// # Errors
/// `RB0900` when it cannot be started.
fn lab_again(app: &App, project: &Project, env: &Environment, runtime: &tokio::runtime::Runtime) -> Result<(), Failure> {
    if !env.embedded || runtime.block_on(runbook_lab::peek(&project.lab(&env.name))).is_ok_and(|s| s.up) {
        return Ok(());
    }
    let inventory = project.inventory()?;
    let overlay = lab::ready(project, &inventory, &env.name, runtime, &app.term)?;
    let hosts = env.resources.get(&runbook_core::inventory::Section::Hosts);
    let moved = hosts.into_iter().flatten().find(|(name, h)| {
        let now = overlay.pointer(&format!("/hosts/{name}/ssh")).and_then(|v| v.as_str());
        now.is_some() && now != h.str("ssh")
    });
    if let Some((name, _)) = moved {
        return Err(Error::new(
            Code::LAB,
            format!("the lab of \"{}\" has other addresses now than when the run began (host {name})", env.name),
        )
        .hint("begin a new run: `runbook lab reset`, then `runbook run`")
        .into());
    }
    Ok(())
}
