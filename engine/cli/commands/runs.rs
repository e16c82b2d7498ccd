//! `runbook runs`: the runs of the project.

use clap::Args;
use runbook_core::exec::Liveness;
use runbook_core::journal::{RunInfo, State};
use serde_json::json;

use crate::app::{App, Done};
use crate::command_error::Failure;
use crate::operator::alive;
use crate::view::lines::state;

/// Lists the runs of the project, the newest first
#[derive(Debug, Args)]
pub struct Runs {
    /// Only those of this environment
    #[arg(long, value_name = "NAME")]
    env: Option<String>,
}

impl Runs {
    pub fn run(self, app: &App) -> Result<Done, Failure> {
        let project = app.project()?;
        let Some(store) = app.store_if_any(&project)? else {
            return Ok(Done::new("no runs yet: `runbook run FILE --env E` begins one\n", json!({ "runs": [] })));
        };
        let mut runs = store.runs()?;
        runs.retain(|r| self.env.as_ref().is_none_or(|e| *e == r.environment));
        let mut rows = vec![];
        let mut list = vec![];
        for r in &runs {
            // A run that says that it runs may have lost its controller.
            let holder = store.holder(&r.environment)?.filter(|h| h.run == r.id);
            let living = holder.as_ref().is_some_and(|h| alive(&h.operator) != Liveness::Dead);
            let shown = if r.state == State::Running && !living { "stopped (its controller is gone)" } else { state(r.state) };
            rows.push((r, shown));
            let mut doc = json!(r);
            if let Some(o) = doc.as_object_mut() {
                o.insert("controller_alive".into(), living.into());
            }
            list.push(doc);
        }
        Ok(Done::new(table(&rows), json!({ "runs": list })))
    }
}

fn table(rows: &[(&RunInfo, &str)]) -> String {
    if rows.is_empty() {
        return "no runs\n".into();
    }
    let wide = |f: &dyn Fn(&RunInfo) -> usize, head: usize| rows.iter().map(|(r, _)| f(r)).max().unwrap_or(0).max(head);
    let (a, b, c) = (wide(&|r| r.id.len(), 3), wide(&|r| r.environment.len(), 11), wide(&|r| r.runbook.len(), 7));
    let mut out = format!("{:a$}  {:b$}  {:c$}  {:16}  STATE\n", "RUN", "ENVIRONMENT", "RUNBOOK", "BEGAN (UTC)");
    for (r, state) in rows {
        let began = r.created.get(..16).unwrap_or(&r.created).replace('T', " ");
        out.push_str(&format!("{:a$}  {:b$}  {:c$}  {began:16}  {state}\n", r.id, r.environment, r.runbook));
    }
    out
}
