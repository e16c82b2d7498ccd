//! `runbook approve`: answers a gate of a run that waits in another terminal, or is paused.

use clap::Args;
use runbook_core::exec::Liveness;
use runbook_core::journal::{Message, State};
use runbook_core::{Code, Error};
use serde_json::json;

use crate::app::{App, Done};
use crate::command_error::Failure;
use crate::operator::{alive, user};
use crate::view::tree::Tree;

/// Answers a gate that waits
#[derive(Debug, Args)]
pub struct Approve {
    /// The run's id or the beginning of it
    #[arg(value_name = "RUN")]
    run: String,
    /// The gate's path, when several wait
    #[arg(long, value_name = "PATH")]
    gate: Option<String>,
    /// Answer no instead of yes
    #[arg(long)]
    no: bool,
    /// What the log shall say besides
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
}

impl Approve {
    pub fn run(self, app: &App) -> Result<Done, Failure> {
        let project = app.project()?;
        let (store, info) = app.run(&project, Some(&self.run))?;
        let mut tree = Tree::default();
        store.entries(&info.id, 0, &mut |entry| {
            tree.apply(entry.time.parse().unwrap_or_default(), &entry.body()?);
            Ok(())
        })?;
        if matches!(info.state, State::Finished | State::RolledBack) || tree.rollback.is_some() {
            return Err(Error::new(Code::RUN_STATE, format!("run {} asks nothing any more", info.id))
                .hint(format!("see `runbook show {}`", info.id))
                .into());
        }
        let waiting: Vec<(String, String)> = tree.gates().map(|g| (g.path.clone(), g.name.clone())).collect();
        let list = || waiting.iter().map(|(p, _)| format!("\"{p}\"")).collect::<Vec<_>>().join(", ");
        let found = match (&self.gate, waiting.as_slice()) {
            (Some(wanted), all) => all.iter().find(|(p, n)| p == wanted || n == wanted),
            (None, [one]) => Some(one),
            (None, _) => None,
        };
        let Some((path, question)) = found else {
            let (message, hint) = match (waiting.is_empty(), &self.gate) {
                (true, _) => (format!("no gate of run {} waits", info.id), format!("see `runbook show {}`", info.id)),
                (false, Some(g)) => (format!("run {} has no gate \"{g}\" that waits", info.id), format!("there are: {}", list())),
                (false, None) => (format!("several gates of run {} wait: {}", info.id, list()), "name one with --gate".into()),
            };
            return Err(Error::new(Code::RUN_STATE, message).hint(hint).into());
        };
        let answer = if self.no { "no" } else { "yes" };
        store.post(
            &info.id,
            &Message { kind: "gate".into(), path: path.clone(), answer: answer.into(), by: user(), comment: self.comment.clone() },
        )?;
        let living = store.holder(&info.environment)?.is_some_and(|h| h.run == info.id && alive(&h.operator) != Liveness::Dead);
        let then = if living { "the run goes on".to_string() } else { format!("`runbook resume {}` goes on", info.id) };
        let doc = json!({ "run": info.id, "gate": path, "answer": answer, "controller_alive": living });
        Ok(Done::new(format!("answered {answer} to \"{question}\"; {then}\n"), doc))
    }
}
