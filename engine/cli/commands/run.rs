//! `runbook run`: a new run.

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::Args;
use runbook_core::clock::System;
use runbook_core::inventory::Environment;
use runbook_core::{Code, Error};
use runbook_script::drive::new_run_id;

use super::check::findings;
use super::lab;
use crate::app::{App, Done};
use crate::ask::confirm;
use crate::command_error::Failure;
use crate::project::Project;
use crate::session::{Session, Wishes, done};

/// Runs a runbook in an environment
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The runbook
    #[arg(value_name = "FILE")]
    file: String,
    /// The environment; needed when there are several
    #[arg(long, value_name = "NAME")]
    env: Option<String>,
    /// Set a parameter for this run
    #[arg(long = "param", value_name = "NAME=VALUE")]
    params: Vec<String>,
    /// Ask before each step: run, skip, preview, shell on the host, roll back, quit; and after a failure: retry
    #[arg(long)]
    step: bool,
    /// Answer every gate with yes
    #[arg(long)]
    yes: bool,
    /// Confirm the environment's name, where it wants that
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
    /// Leave the stopped run that holds the environment unfinished, and begin this one
    #[arg(long)]
    take_over: bool,
}

impl RunArgs {
    pub fn run(self, app: &App) -> Result<Done, Failure> {
        let project = app.project()?;
        let inventory = project.inventory()?;
        let name = app.environment(&inventory, self.env.as_deref())?;
        let file = project.relative(&self.file)?;
        let given = parameters(&self.params)?;
        // Everything that can be found without contacting anything, before a lab is started.
        let declared = inventory.environment(&name, &given, None)?;
        let found = findings(&project, &file, Some(&declared));
        if !found.errors.is_empty() {
            return Err(found);
        }
        confirm(&app.term, &declared, self.confirm.as_deref())?;
        let runtime = app.runtime()?;
        let env = if declared.embedded {
            let overlay = lab::ready(&project, &inventory, &name, &runtime, &app.term)?;
            inventory.environment(&name, &given, Some(&overlay))?
        } else {
            declared
        };
        let wishes = Wishes { yes: self.yes, step: self.step, take_over: self.take_over, ..Wishes::default() };
        begin(app, &project, env, &file, runtime, &wishes).map(|ended| done(&ended))
    }
}

/// Begins a new run and works on it until it ends.
///
/// # Errors
/// Everything but a run that finished or was rolled back.
pub fn begin(
    app: &App,
    project: &Project,
    env: Environment,
    file: &str,
    runtime: tokio::runtime::Runtime,
    wishes: &Wishes,
) -> Result<runbook_script::drive::Ended, Failure> {
    let env = Arc::new(env);
    let id = new_run_id(&System, file);
    let store = app.store(project)?;
    let session = Session::new(app, project, store, &env, &id, runtime, wishes)?;
    session.work(app, project, |c| c.run(&id, &env, file))
}

fn parameters(given: &[String]) -> Result<BTreeMap<String, String>, Error> {
    given
        .iter()
        .map(|p| {
            p.split_once('=')
                .map(|(k, v)| (k.trim().to_string(), v.to_string()))
                .ok_or_else(|| Error::new(Code::USAGE, format!("--param {p} has no value")).hint("write it as --param name=value"))
        })
        .collect()
}
