//! `runbook show`: where a run stands, and what to do next.

use std::fmt::Write as _;

use clap::Args;
use runbook_core::exec::Liveness;
use runbook_core::journal::{RunInfo, State};
use runbook_core::{Code, Error};
use serde_json::{Value as Json, json};

use crate::app::{App, Done};
use crate::command_error::Failure;
use crate::operator::alive;
use crate::terminal::{Style, Terminal, printable};
use crate::view::host::OfHost;
use crate::view::lines::state;
use crate::view::span;
use crate::view::tree::{Kind, Mark, Tree, readable};

/// Shows where a run stands: its steps with their times, the window, where it stopped and what to do next
#[derive(Debug, Args)]
pub struct Show {
    /// The run's id or the beginning of it; the newest unless given
    #[arg(value_name = "RUN")]
    run: Option<String>,
    /// Only the steps of this host
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
}

impl Show {
    pub fn run(self, app: &App) -> Result<Done, Failure> {
        let project = app.project()?;
        let (store, info) = app.run(&project, self.run.as_deref())?;
        let mut tree = Tree::default();
        let mut params = Json::Null;
        let mut of = self.host.as_deref().map(OfHost::new);
        store.entries(&info.id, 0, &mut |entry| {
            let body = entry.body()?;
            if let runbook_core::journal::Body::RunStarted { params: p, .. } = &body {
                params = p.clone();
            }
            tree.apply(entry.time.parse().unwrap_or_default(), &body);
            if let Some(path) = of.as_mut().and_then(|of| of.path(&body)) {
                tree.keep(&path);
            }
            Ok(())
        })?;
        if let Some(host) = &self.host
            && !tree.keeps()
        {
            return Err(Error::new(Code::UNKNOWN_NAME, format!("run {} has nothing of a host \"{host}\"", info.id))
                .hint("`runbook show` without --host shows all of it")
                .into());
        }
        let living = store.holder(&info.environment)?.is_some_and(|h| h.run == info.id && alive(&h.operator) != Liveness::Dead);
        let next = next(&info, &tree, living);
        let doc = json!({
            "run": info,
            "controller_alive": living,
            "params": params,
            "began": tree.began.map(|t| t.to_string()),
            "stopped_at": tree.at,
            "error": tree.error,
            "rollback": tree.rollback,
            "point_of_no_return": tree.nodes.iter().find(|n| n.kind == Kind::NoReturn).map(|n| n.name.clone()),
            "sessions": tree.sessions.iter().map(|(t, p, o)| json!({ "began": t.to_string(), "purpose": p, "operator": o })).collect::<Vec<_>>(),
            "nodes": tree.json(),
            "next": next.iter().map(|(c, w)| json!({ "command": c, "why": w })).collect::<Vec<_>>(),
        });
        Ok(Done::new(text(&app.term, &info, &tree, living, &next), doc))
    }
}

fn text(t: &Terminal, info: &RunInfo, tree: &Tree, living: bool, next: &[(String, String)]) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}  {} in {}", t.paint_out(Style::Bold, &info.id), info.runbook, info.environment);
    let shown = match info.state {
        State::Running if living => "running".to_string(),
        State::Running => "stopped: its controller is gone".to_string(),
        s => state(s).to_string(),
    };
    let took = tree.began.zip(tree.last).map_or(0, |(a, b)| u64::try_from(b.as_millisecond() - a.as_millisecond()).unwrap_or(0));
    let began = tree.began.map(|t| t.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()).unwrap_or_default();
    let _ = writeln!(out, "{shown}, began {began}, last entry {} later\n", span(took));
    out.push_str(&tree.text(t.width_out(), &|s, text| t.paint_out(s, text)));
    if let Some(w) = tree.window() {
        let _ = writeln!(out, "\nThe window \"{}\" is open since {}: users are cut off.", w.name, w.began.strftime("%H:%M:%S UTC"));
    }
    if let Some(e) = &tree.error {
        let place = tree.at.first().map(|p| readable(p)).filter(|p| !p.is_empty()).map(|p| format!(" at {p}")).unwrap_or_default();
        let host = e.host.as_ref().map(|h| format!(" (host {h})")).unwrap_or_default();
        let _ = writeln!(out, "\nStopped{place}: {}: {}{host}", e.code, printable(&e.message));
        if let Some(hint) = &e.hint {
            let _ = writeln!(out, "  help: {hint}");
        }
    }
    if let Some((call, known)) = &tree.doubt {
        let _ = writeln!(out, "\nIn doubt: {}\n  what is known: {}", printable(call), printable(known));
    }
    if tree.doubt.is_none() && !living {
        for call in tree.unknown() {
            let _ =
                writeln!(out, "\nIn doubt: {}\n  it was begun, and its end is not on record; resume asks the far side", printable(call));
        }
    }
    if !next.is_empty() {
        out.push_str("\nNext:\n");
        let wide = next.iter().map(|(c, _)| c.chars().count()).max().unwrap_or(0);
        for (command, why) in next {
            let _ = writeln!(out, "  {command:wide$}  {why}");
        }
    }
    out
}

/// What can be done with a run as it stands, and what each does.
fn next(info: &RunInfo, tree: &Tree, living: bool) -> Vec<(String, String)> {
    let id = &info.id;
    let c = |verb: &str, why: &str| (format!("runbook {verb} {id}"), why.to_string());
    let back = tree.nodes.iter().all(|n| n.kind != Kind::NoReturn);
    let rollback = || back.then(|| c("rollback", "takes it back"));
    let mut out = vec![];
    match info.state {
        State::Finished | State::RolledBack => out.push(c("audit verify", "checks its record")),
        State::Running if living => {
            if tree.gates().next().is_some() {
                out.push(c("approve", "answers the gate"));
            }
            out.push((format!("runbook log {id} -f"), "follows it".into()));
        }
        State::RollingBack => out.push(c("rollback", "goes on taking it back")),
        State::InDoubt => {
            out.push((format!("runbook resume {id} --answer retry"), "it did not happen: does it".into()));
            out.push((format!("runbook resume {id} --answer done"), "it happened: goes on".into()));
            out.extend(rollback());
        }
        _ if tree.rollback.is_some() => out.push(c("rollback", "goes on taking it back")),
        State::Paused if tree.gates().any(|g| g.mark == Mark::Waiting) => {
            out.push(c("approve", "answers the gate"));
            out.push(c("resume", "goes on then"));
            out.extend(rollback());
        }
        _ => {
            out.push(c("resume", "goes on from here"));
            out.extend(rollback());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tree::sample;

    #[test]
    fn a_run_that_failed_in_the_window_says_what_to_do() {
        let mut tree = Tree::default();
        for (t, b) in sample() {
            tree.apply(t, &b);
        }
        let info = RunInfo {
            id: "20261121-0315-cutover-ab12".into(),
            environment: "demo".into(),
            runbook: "runbooks/cutover/runbook.rhai".into(),
            created: "2026-11-21T03:15:00.000Z".into(),
            state: State::Failed,
            entries: 22,
            head: "0".into(),
        };
        let forward_only = next(&info, &tree, false);
        assert_eq!(forward_only.len(), 1, "past the point of no return there is no rollback");
        insta::assert_snapshot!(text(&Terminal::plain(), &info, &tree, false, &forward_only));
    }
}
