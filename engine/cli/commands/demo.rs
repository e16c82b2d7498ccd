//! `runbook demo`: a whole migration on this machine, while a customer keeps ordering.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use runbook_core::journal::State;
use runbook_core::{Code, Error};
use runbook_lab::Status;
use serde_json::json;

use super::init::write_new;
use super::lab;
use super::run::begin;
use crate::app::{App, Done};
use crate::command_error::Failure;
use crate::embedded::CUTOVER;
use crate::project::{INVENTORY, Project};
use crate::session::Wishes;
use crate::terminal::Style;

/// Moves a shop from one server to another on this machine, while a customer keeps ordering
///
/// Writes a project folder to read, change and run again, starts the embedded lab, and runs the cutover as production would. No root, no Docker.
#[derive(Debug, Args)]
pub struct Demo {
    /// The project's folder
    #[arg(value_name = "DIR", default_value = "runbook-demo")]
    dir: PathBuf,
}

const ENVIRONMENT: &str = "demo";
const RUNBOOK: &str = "runbooks/cutover/runbook.rhai";
/// Says that a folder was made by the demo.
const MARKER: &str = ".runbook/demo";

impl Demo {
    pub fn run(self, app: &App) -> Result<Done, Failure> {
        let dir = app.folder().join(&self.dir);
        let again = write_project(&dir)?;
        let project = Project::find(&dir, true)?;
        let app = app.in_dir(dir);
        let inventory = project.inventory()?;
        let say = |text: &str| {
            if !app.term.json {
                app.term.err(text);
            }
        };
        let runtime = app.runtime()?;
        let overlay = lab::ready(&project, &inventory, ENVIRONMENT, &runtime, &app.term)?;
        let lab_dir = project.lab(ENVIRONMENT);
        if again {
            say("bringing the lab back to the state before the migration\n");
            runtime.block_on(runbook_lab::reset(&lab_dir))?;
        }
        let env = inventory.environment(ENVIRONMENT, &Default::default(), Some(&overlay))?;
        runtime.block_on(first_orders(&lab_dir))?;
        let shown = self.dir.display();
        say(&format!("a customer orders every 20 ms; the cutover begins (Ctrl-C or kill -9 it: `runbook -C {shown} resume` goes on)\n\n"));
        // What an earlier demo left unfinished was undone by the reset.
        let wishes = Wishes { yes: true, take_over: true, silent: app.term.json, ..Wishes::default() };
        let outcome = begin(&app, &project, env, RUNBOOK, runtime, &wishes);
        let runtime = app.runtime()?;
        let status = runtime.block_on(settled(&lab_dir))?;
        let mut facts = serde_json::Map::new();
        for (k, v) in [
            ("orders_placed", json!(status.orders_placed)),
            ("orders_refused", json!(status.orders_refused)),
            ("orders_lost", json!(status.orders_lost)),
            ("downtime_s", json!(status.downtime_s)),
            ("project", json!(project.root)),
        ] {
            facts.insert(k.into(), v);
        }
        let ended = match outcome {
            Ok(e) => e,
            Err(mut f) => {
                say(&format!("the project is in {shown}: run these commands there, or with -C {shown}\n"));
                f.facts.extend(facts);
                return Err(f);
            }
        };
        facts.insert("run".into(), json!(ended.run));
        facts.insert("state".into(), json!(ended.state));
        let lost = match status.orders_lost {
            Some(0) => None,
            Some(n) => Some(Error::new(Code::ORDERS_LOST, format!("{n} orders were acknowledged and are lost"))),
            None => {
                Some(Error::new(Code::ORDERS_LOST, "the shop that the public name leads to could not be asked for the customer's orders"))
            }
        };
        if let Some(e) = lost {
            let mut f = Failure::from(e.hint(format!("`runbook -C {} log {}` shows what happened", self.dir.display(), ended.run)));
            f.facts = facts;
            f.wrote = true;
            return Err(f);
        }
        let text = report(&app, &self.dir, &ended.run, &status, ended.state);
        facts.insert("ok".into(), true.into());
        Ok(Done { text, json: Some(facts.into()), exit: crate::session::done(&ended).exit })
    }
}

/// Writes the project, or finds it as an earlier demo wrote it (then `true`): what was changed since stays.
fn write_project(dir: &Path) -> Result<bool, Error> {
    if dir.join(MARKER).exists() && dir.join(INVENTORY).exists() {
        return Ok(true);
    }
    let full = std::fs::read_dir(dir).is_ok_and(|mut d| d.next().is_some());
    if full || dir.is_file() {
        return Err(Error::new(Code::FILE_EXISTS, format!("{} is not empty and was not made by the demo", dir.display()))
            .hint("name another folder: `runbook demo DIR`"));
    }
    for (name, text) in CUTOVER {
        let file = if *name == INVENTORY { dir.join(name) } else { dir.join("runbooks/cutover").join(name) };
        write_new(&file, text)?;
    }
    write_new(&dir.join("README.md"), include_str!("../templates/demo.md"))?;
    write_new(&dir.join(".gitignore"), "/.runbook/\n")?;
    write_new(&dir.join(MARKER), "made by `runbook demo`\n")?;
    Ok(false)
}

/// Waits until the customer has some orders, so that there is something to lose.
async fn first_orders(dir: &Path) -> Result<(), Error> {
    let until = Instant::now() + Duration::from_secs(15);
    while Instant::now() < until {
        if runbook_lab::peek(dir).await?.orders_placed >= 25 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(Error::new(Code::LAB, "the customer cannot place orders").hint("see `runbook lab status` and .runbook/lab/demo/lab.log"))
}

/// The customer's counts, once every order that was sent is known to be taken or not, and the shop takes orders again.
async fn settled(dir: &Path) -> Result<Status, Error> {
    let until = Instant::now() + Duration::from_secs(15);
    loop {
        let s = runbook_lab::status(dir).await?;
        if (s.orders_unsure == 0 && !s.refusing && s.orders_lost.is_some()) || Instant::now() > until {
            return Ok(s);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn report(app: &App, dir: &Path, run: &str, s: &Status, state: State) -> String {
    let paint = |text: &str| app.term.paint_out(Style::Bold, text);
    let lost = s.orders_lost.unwrap_or_default();
    let moved = if state == State::Finished { "The shop has moved." } else { "The shop is where it was." };
    let d = dir.display();
    format!(
        "\n{moved} What the customer saw:\n  \
         orders placed    {}\n  orders refused   {}   (told to try again while users were cut off)\n  orders lost      {}\n  \
         downtime         {} by the customer's clock\n\n\
         The project is in {d}, its log in {d}/.runbook: `runbook log {run}`\n\n\
         The lab is still up. Try next, in {d}:\n  \
         runbook lab reset                          everything as before the migration, then\n  \
         runbook run {RUNBOOK}  with Ctrl-C, or kill -9, at any moment, then\n  \
         runbook resume                             goes on where it was\n  \
         runbook rollback                           or takes it back, up to the point of no return\n  \
         runbook run {RUNBOOK} --step   asks before each step\n  \
         runbook audit verify                       checks the record\n  \
         runbook lab down                           ends the lab\n",
        s.orders_placed,
        s.orders_refused,
        paint(&lost.to_string()),
        paint(&format!("{:.1} s", s.downtime_s)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_a_project_that_parses_and_leaves_other_folders_alone() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("demo");
        assert!(!write_project(&dir).unwrap());
        let project = Project::find(&dir, true).unwrap();
        project.inventory().map_err(|f| f.errors).unwrap().declared(ENVIRONMENT).unwrap();
        project.text(RUNBOOK).unwrap();
        std::fs::write(dir.join(RUNBOOK), "changed").unwrap();
        assert!(write_project(&dir).unwrap(), "it is found again");
        assert_eq!(project.text(RUNBOOK).unwrap(), "changed");
        std::fs::create_dir(tmp.path().join("other")).unwrap();
        std::fs::write(tmp.path().join("other/mine"), "").unwrap();
        assert_eq!(write_project(&tmp.path().join("other")).unwrap_err().code, Code::FILE_EXISTS);
    }
}
