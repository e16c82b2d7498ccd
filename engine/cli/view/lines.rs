//! Entries as lines of text: the view without a terminal, and `runbook log`.

use jiff::Timestamp;
use runbook_core::Error;
use runbook_core::exec::Comparison;
use runbook_core::journal::{Body, Purpose, State, Status, Via};
use serde_json::Value as Json;

use super::span;
use super::tree::{Paint, name_of, readable};
use crate::terminal::{Style, count, printable};

/// One line about an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What happened, in a word.
    pub tag: &'static str,
    /// To what.
    pub text: String,
    /// Only for `log`: the live view leaves it out.
    pub detail: bool,
    /// What was printed there.
    pub output: Vec<String>,
}

impl Line {
    /// The line with its time (of day, UTC), and what was printed below it.
    pub fn render(&self, time: Timestamp) -> String {
        let mut out = format!("{}  {:<9} {}\n", time.strftime("%H:%M:%S"), self.tag, self.text);
        for l in &self.output {
            out.push_str(&format!("          | {l}\n"));
        }
        out
    }
}

fn line(tag: &'static str, text: impl Into<String>) -> Line {
    Line { tag, text: printable(&text.into()), detail: false, output: vec![] }
}

fn detail(tag: &'static str, text: impl Into<String>) -> Line {
    Line { detail: true, ..line(tag, text) }
}

/// The path that an entry is about.
pub fn path_mut(body: &mut Body) -> Option<&mut String> {
    match body {
        Body::PhaseStarted { path }
        | Body::PhaseEnded { path, .. }
        | Body::StepStarted { path, .. }
        | Body::StepEnded { path, .. }
        | Body::Intent { path, .. }
        | Body::Outcome { path, .. }
        | Body::Output { path, .. }
        | Body::GateAsked { path, .. }
        | Body::GateAnswered { path, .. }
        | Body::WindowOpened { path, .. }
        | Body::WindowOverrun { path, .. }
        | Body::WindowClosed { path, .. }
        | Body::PointOfNoReturn { path, .. }
        | Body::RetryScheduled { path, .. }
        | Body::TimerSet { path, .. }
        | Body::TimerFired { path }
        | Body::DoubtAsked { path, .. }
        | Body::DoubtAnswered { path, .. }
        | Body::BranchesStarted { path, .. }
        | Body::BranchStarted { path }
        | Body::BranchEnded { path, .. }
        | Body::BranchesEnded { path, .. }
        | Body::Log { path, .. }
        | Body::UndoStarted { path, .. }
        | Body::UndoEnded { path, .. } => Some(path),
        Body::RunStarted { .. } | Body::SessionStarted { .. } | Body::SessionEnded { .. } | Body::RollbackStarted { .. } => None,
    }
}

/// Names for people; of many the first ones and the last.
pub fn some(names: &[String]) -> String {
    match names {
        [first @ .., last] if names.len() > 8 => format!("{}, … {last}", first.iter().take(4).cloned().collect::<Vec<_>>().join(", ")),
        all => all.join(", "),
    }
}

fn why(e: Option<&Error>) -> String {
    e.map(|e| format!(": {}", e.message)).unwrap_or_default()
}

/// Whether a failed step inside of the branch has said why already.
fn told_below(branch: &str, error: Option<&Error>) -> bool {
    let inside = |p: &String| p.strip_prefix(branch).is_some_and(|rest| rest.starts_with('/') && !readable(rest).is_empty());
    error.is_some_and(|e| e.at.iter().any(inside))
}

/// The name of a state for people.
pub fn state(s: State) -> &'static str {
    match s {
        State::Running => "running",
        State::Finished => "finished",
        State::Failed => "failed",
        State::Paused => "paused",
        State::Interrupted => "interrupted",
        State::InDoubt => "in doubt",
        State::RollingBack => "rolling back",
        State::RolledBack => "rolled back",
    }
}

/// What a person reads of an entry.
pub fn describe(body: &Body) -> Line {
    match body {
        Body::RunStarted { runbook, environment, .. } => line("run", format!("{runbook} in {environment}")),
        Body::SessionStarted { purpose, operator, took_over, edited, .. } => {
            let verb = match purpose {
                Purpose::Run => "begins",
                Purpose::Resume => "goes on",
                Purpose::Rollback => "is taken back",
            };
            let from = operator.from.as_ref().map(|f| format!(" from {f}")).unwrap_or_default();
            let took = took_over.as_ref().map(|t| format!(", taken over from {t}")).unwrap_or_default();
            let edited = if edited.is_some() { ", with edited files" } else { "" };
            line("session", format!("{verb} by {} on {}{from} (pid {}){took}{edited}", operator.user, operator.host, operator.pid))
        }
        Body::SessionEnded { state: s, error, at } => {
            let place = at.first().map(|p| readable(p)).filter(|p| !p.is_empty()).map(|p| format!(" at {p}")).unwrap_or_default();
            line("end", format!("{}{place}{}", state(*s), why(error.as_ref())))
        }
        Body::PhaseStarted { path } => line("phase", readable(path)),
        Body::PhaseEnded { path, ms, .. } => detail("phase end", format!("{}  {}", readable(path), span(*ms))),
        Body::StepStarted { path, attempt, on, .. } => {
            let on = on.as_ref().map(|h| format!(" on {h}")).unwrap_or_default();
            let attempt = if *attempt > 1 { format!(" (attempt {attempt})") } else { String::new() };
            line("step", format!("{}{on}{attempt}", readable(path)))
        }
        Body::StepEnded { path, status, ms, error, reason, .. } => match status {
            Status::Ok => line("ok", format!("{}  {}", readable(path), span(*ms))),
            Status::Failed => line("failed", format!("{}  {}{}", readable(path), span(*ms), why(error.as_ref()))),
            Status::Skipped => line("skipped", format!("{}: {}", readable(path), reason.as_deref().unwrap_or("no reason given"))),
        },
        Body::Intent { call, .. } => detail("begin", call),
        Body::Outcome { name, call, error, changed, note, ms, via, value, .. } => {
            let what = call.as_deref().unwrap_or(name);
            let change = match changed {
                Some(true) => ", changed",
                Some(false) => ", nothing to do",
                None => "",
            };
            let how = match via {
                Via::Act => "",
                Via::Reconcile => ", as the far side says",
                Via::Operator => ", as the operator says",
                Via::Carried => ", from an earlier attempt",
            };
            let note = note.as_ref().map(|n| format!(" ({n})")).unwrap_or_default();
            match error {
                Some(e) => detail("error", format!("{what}  {}{how}: {}", span(*ms), e.message)),
                None => Line { output: printed(value.as_ref()), ..detail("did", format!("{what}  {}{change}{how}{note}", span(*ms))) },
            }
        }
        Body::Output { text, .. } => Line { output: text.lines().map(printable).collect(), ..detail("output", "") },
        Body::GateAsked { question, .. } => line("gate", question),
        Body::GateAnswered { path, yes, by, comment } => {
            let comment = comment.as_ref().map(|c| format!(": {c}")).unwrap_or_default();
            line("answer", format!("{} by {by} to \"{}\"{comment}", if *yes { "yes" } else { "no" }, name_of(path)))
        }
        Body::WindowOpened { path, budget_ms, .. } => {
            let budget = budget_ms.map(|b| format!(" (budget {})", span(b))).unwrap_or_default();
            line("window", format!("\"{}\" is open: users are cut off{budget}", readable(path)))
        }
        Body::WindowOverrun { path, decision, by, ms } => {
            line("overrun", format!("\"{}\" is open for {}: {decision} ({by})", readable(path), span(*ms)))
        }
        Body::WindowClosed { path, ms, overran } => {
            let over = if *overran { ", over its budget" } else { "" };
            line("window", format!("\"{}\" is closed after {}{over}", readable(path), span(*ms)))
        }
        Body::PointOfNoReturn { why, .. } => line("no return", why),
        Body::RetryScheduled { path, attempt, after_ms } => {
            line("retry", format!("{}: attempt {attempt} in {}", readable(path), span(*after_ms)))
        }
        Body::TimerSet { until, .. } => line("sleep", format!("until {until}")),
        Body::TimerFired { .. } => detail("sleep end", ""),
        Body::DoubtAsked { path, known, .. } => line("in doubt", format!("{}: {known}", readable(path))),
        Body::DoubtAnswered { answer, by, .. } => line("answer", format!("{answer} by {by}")),
        Body::BranchesStarted { word, names, .. } => {
            line(if word == "each" { "each" } else { "parallel" }, format!("{} ({})", some(names), names.len()))
        }
        Body::BranchStarted { path } => detail("begin", readable(path)),
        Body::BranchEnded { path, status, ms, error } => match status {
            Status::Failed => {
                let why = if told_below(path, error.as_ref()) { String::new() } else { why(error.as_ref()) };
                line("failed", format!("{}  {}{why}", readable(path), span(*ms)))
            }
            Status::Ok | Status::Skipped => line("done", format!("{}  {}", readable(path), span(*ms))),
        },
        Body::BranchesEnded { failed, not_begun, ms, .. } if failed.is_empty() && not_begun.is_empty() => {
            detail("all done", format!("after {}", span(*ms)))
        }
        Body::BranchesEnded { failed, not_begun, .. } => {
            let rest = if not_begun.is_empty() { String::new() } else { format!("; not begun: {}", not_begun.join(", ")) };
            line("all ended", format!("failed: {}{rest}", failed.join(", ")))
        }
        Body::Log { level, message, .. } => line(if level == "warn" { "warning" } else { "log" }, message),
        Body::RollbackStarted { reason } => line("rollback", reason),
        Body::UndoStarted { path, .. } => line("undo", readable(path)),
        Body::UndoEnded { path, status, ms, error, .. } => match status {
            Status::Ok => line("undone", format!("{}  {}", readable(path), span(*ms))),
            Status::Failed => line("failed", format!("undo of {}  {}{}", readable(path), span(*ms), why(error.as_ref()))),
            Status::Skipped => line("skipped", format!("undo of {}", readable(path))),
        },
    }
}

/// How an edited runbook fits the record, a line a finished step.
pub fn comparison(c: &Comparison, paint: &Paint<'_>) -> String {
    let verb = if c.matching.len() == 1 { "matches" } else { "match" };
    let mut out = format!("{} of the record still {verb} the edited runbook:\n", count(c.matching.len(), "finished step"));
    if c.matching.is_empty() {
        out = "no finished step of the record matches the edited runbook:\n".into();
    }
    if c.matching.is_empty() && c.differing.is_none() {
        out = "the record has no finished step: nothing to compare with the edited runbook\n".into();
    }
    let mut row = |sign: &str, style: Style, path: &str, why: &str| {
        out.push_str(&format!("  {} {}{why}\n", paint(style, sign), printable(&readable(path))));
    };
    c.matching.iter().for_each(|p| row("✓", Style::Green, p, ""));
    c.differing.iter().for_each(|p| row("✗", Style::Red, p, ": does not match"));
    c.open.iter().for_each(|p| row("·", Style::Dim, p, ": not compared"));
    out
}

/// What a command printed, at most the last lines of it.
fn printed(value: Option<&Json>) -> Vec<String> {
    let fields = value.filter(|v| v.get("$").and_then(Json::as_str) == Some("Output")).and_then(|v| v.get("v"));
    let text = |key: &str| fields.and_then(|f| f.get(key)).and_then(Json::as_str).unwrap_or("").to_string();
    let all: Vec<String> = text("stdout").lines().chain(text("stderr").lines()).map(printable).collect();
    all[all.len().saturating_sub(20)..].to_vec()
}

#[cfg(test)]
mod tests {
    use runbook_core::Code;

    use super::*;

    #[test]
    fn a_failure_is_told_once() {
        let text = |at: &str| {
            let mut e = Error::new(Code::LAB, "no disk");
            e.at.push(at.into());
            describe(&Body::BranchEnded { path: "a/web1".into(), status: Status::Failed, ms: 20, error: Some(e) }).text
        };
        assert_eq!(text("a/web1/Copy"), "a / web1  0.0s", "its step has said so");
        assert_eq!(text("a/web1/#0"), "a / web1  0.0s: no disk", "an action of the branch itself has no line of its own");
        assert_eq!(text("a/web10/Copy"), "a / web1  0.0s: no disk", "another branch");
    }
}
