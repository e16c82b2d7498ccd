//! `runbook check`: every mistake that can be found without contacting anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::Args;
use runbook_core::inventory::{Environment, Inventory};
use runbook_core::{Code, Error};
use runbook_script::check::check;
use runbook_script::engine::make;
use runbook_script::modules::Sources;
use serde_json::json;

use crate::app::{App, Done};
use crate::command_error::Failure;
use crate::project::Project;

/// Looks for mistakes in runbooks and the inventory; contacts nothing
#[derive(Debug, Args)]
pub struct Check {
    /// The runbooks; all of runbooks/*/runbook.rhai unless given
    #[arg(value_name = "FILE")]
    files: Vec<String>,
    /// Check names against this environment only, instead of all
    #[arg(long, value_name = "NAME")]
    env: Option<String>,
}

impl Check {
    pub fn run(self, app: &App) -> Result<Done, Failure> {
        let project = app.project()?;
        let inventory = project.inventory()?;
        let files =
            if self.files.is_empty() { all(&project) } else { self.files.iter().map(|f| project.relative(f)).collect::<Result<_, _>>()? };
        if files.is_empty() {
            return Err(Error::new(Code::MISSING_FILE, "there is no runbook: runbooks/*/runbook.rhai")
                .hint("name the file to check, or begin with `runbook init`")
                .into());
        }
        let names: Vec<String> = match &self.env {
            Some(name) => inventory.declared(name).map(|_| vec![name.clone()])?,
            None => inventory.environments.keys().cloned().collect(),
        };
        let environments = names.iter().map(|n| declared(&inventory, n)).collect::<Result<Vec<_>, _>>()?;
        let mut failure = Failure::default();
        for file in &files {
            if environments.is_empty() {
                add(&mut failure, findings(&project, file, None));
            }
            for env in &environments {
                add(&mut failure, findings(&project, file, Some(env)));
            }
        }
        if failure.errors.is_empty() {
            let text = format!("{}: no mistakes found\n", files.join(", "));
            return Ok(Done::new(text, json!({ "ok": true, "files": files, "environments": names })));
        }
        Err(failure)
    }
}

/// An environment as far as it is known without parameters of a run: a required one without a value is no mistake of the files.
fn declared(inventory: &Inventory, name: &str) -> Result<Environment, Error> {
    let mut relaxed = inventory.clone();
    for p in relaxed.params.values_mut() {
        p.required = false;
    }
    relaxed.environment(name, &BTreeMap::new(), None)
}

/// Checks one runbook; the failure has no errors when there are none.
pub fn findings(project: &Project, file: &str, env: Option<&Environment>) -> Failure {
    let registry = Arc::new(runbook_primitives::registry());
    let sources = Sources::new(Arc::new(project.clone()));
    let (engine, _) = make(registry.clone(), sources.clone());
    let checked = check(&engine, &registry, &sources, file, env);
    let mut failure = Failure::from(checked.findings);
    for (path, bytes) in sources.read_so_far() {
        failure.sources.insert(path, String::from_utf8_lossy(&bytes).into_owned());
    }
    failure
}

/// Adds findings that are not there yet: the same mistake shows in every environment.
fn add(all: &mut Failure, more: Failure) {
    for e in more.errors {
        if !all.errors.iter().any(|a| a.message == e.message && a.location == e.location) {
            all.errors.push(e);
        }
    }
    all.sources.extend(more.sources);
}

fn all(project: &Project) -> Vec<String> {
    let mut found: Vec<String> = std::fs::read_dir(project.root.join("runbooks"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| format!("runbooks/{}/runbook.rhai", e.file_name().to_string_lossy()))
        .filter(|f| project.root.join(f).is_file())
        .collect();
    found.sort();
    found
}
