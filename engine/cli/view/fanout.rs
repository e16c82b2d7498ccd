//! The same on many hosts, shown: a line a host.
//!
//! On a terminal the hosts that are at work are drawn with what they do and the last line that they printed; a host that has ended is
//! printed once, with its error unfolded when it failed. Elsewhere every line begins with its host. What commands print is never mixed.

use std::collections::HashMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use runbook_core::Error;
use runbook_core::exec::unescape;
use runbook_core::journal::{Body, Status};

use super::lines::{describe, path_mut};
use super::span;
use super::tree::{Tree, readable};
use crate::command_error::said;
use crate::terminal::{Style, Terminal, printable};

/// Up to how many branches of a `parallel` are shown as steps rather than as hosts.
const FEW: usize = 8;
/// How wide the column of names may become.
const WIDEST: usize = 24;
/// What a line begins with: a word of a host, one that is done, one that failed.
const SIGNS: [&str; 3] = ["·", "✓", "✗"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    Done,
    Failed,
    NotBegun,
}

#[derive(Debug)]
struct Row {
    name: String,
    state: State,
    began: Timestamp,
    /// The step that it is in.
    step: String,
    /// What it printed last, or how far it is.
    line: String,
}

/// One `each` (or a `parallel` of many).
#[derive(Debug)]
struct Set {
    path: String,
    word: String,
    rows: Vec<Row>,
    by_name: HashMap<String, usize>,
    began: Timestamp,
    /// How wide the column of names is.
    width: usize,
    ended: bool,
}

/// Everything of a run that is shown with a line a host.
#[derive(Debug, Default)]
pub struct Fanout {
    sets: Vec<Set>,
    by_path: HashMap<String, usize>,
}

impl Set {
    fn count(&self, state: State) -> usize {
        self.rows.iter().filter(|r| r.state == state).count()
    }
}

impl Fanout {
    /// The host that a path belongs to: the outermost set and its row, and the path of the branch.
    fn find<'p>(&self, path: &'p str) -> Option<(usize, usize, &'p str)> {
        for (i, _) in path.match_indices('/').chain([(path.len(), "")]) {
            let Some(set) = path.get(..i).and_then(|p| self.by_path.get(p)) else { continue };
            let rest = path.get(i + 1..)?;
            let name = rest.split('/').next()?;
            let row = self.sets.get(*set)?.by_name.get(&unescape(name))?;
            return Some((*set, *row, path.get(..i + 1 + name.len())?));
        }
        None
    }

    /// Whether this belongs to a host that has a line of its own.
    pub fn has(&self, path: &str) -> bool {
        self.find(path).is_some()
    }

    fn row(&mut self, path: &str, time: Timestamp) -> Option<&mut Row> {
        let (set, row, _) = self.find(path)?;
        let set = self.sets.get_mut(set)?;
        set.ended = false;
        let row = set.rows.get_mut(row)?;
        if row.state != State::Running {
            (row.state, row.began) = (State::Running, time);
            row.step.clear();
            row.line.clear();
        }
        Some(row)
    }

    /// Takes in an entry.
    pub fn apply(&mut self, time: Timestamp, body: &Body) {
        match body {
            Body::BranchesStarted { path, word, names } if (word == "each" || names.len() > FEW) && !self.has(path) => {
                let row =
                    |n: &String| Row { name: printable(n), state: State::Waiting, began: time, step: String::new(), line: String::new() };
                self.by_path.insert(path.clone(), self.sets.len());
                self.sets.push(Set {
                    path: path.clone(),
                    word: word.clone(),
                    rows: names.iter().map(row).collect(),
                    by_name: names.iter().enumerate().map(|(i, n)| (n.clone(), i)).collect(),
                    began: time,
                    width: names.iter().map(|n| n.chars().count()).max().unwrap_or(0).min(WIDEST),
                    ended: false,
                });
            }
            Body::BranchStarted { path } => {
                self.row(path, time);
            }
            Body::BranchEnded { path, status, .. } => {
                if let Some((set, row, branch)) = self.find(path)
                    && branch == path
                    && let Some(row) = self.sets.get_mut(set).and_then(|s| s.rows.get_mut(row))
                {
                    row.state = if *status == Status::Failed { State::Failed } else { State::Done };
                }
            }
            Body::BranchesEnded { path, not_begun, .. } => {
                if let Some(set) = self.by_path.get(path).and_then(|s| self.sets.get_mut(*s)) {
                    set.ended = true;
                    for r in set.rows.iter_mut().filter(|r| not_begun.contains(&r.name)) {
                        r.state = State::NotBegun;
                    }
                }
            }
            // Whatever was going on has stopped; it shows again when it goes on.
            Body::SessionStarted { .. } | Body::SessionEnded { .. } | Body::RollbackStarted { .. } => {
                for set in &mut self.sets {
                    set.ended = true;
                    for r in set.rows.iter_mut().filter(|r| r.state == State::Running) {
                        r.state = State::Waiting;
                    }
                }
            }
            Body::StepStarted { path, attempt, .. } => {
                let step = self.find(path).map(|(.., branch)| readable(path.get(branch.len()..).unwrap_or("").trim_start_matches('/')));
                if let (Some(step), Some(row)) = (step, self.row(path, time)) {
                    row.step = if *attempt > 1 { format!("{step} (attempt {attempt})") } else { step };
                    row.line.clear();
                }
            }
            Body::Intent { path, .. } => {
                self.row(path, time);
            }
            _ => {}
        }
    }

    /// A host has printed a line, or says how far it is.
    pub fn line(&mut self, path: &str, text: &str) {
        if let Some(row) = self.row(path, Timestamp::now()) {
            row.line = text.to_string();
        }
    }

    /// What an entry of a host leaves on a terminal, after the path of the whole: nothing but how the host ended, and what the script logs
    /// there. `None` for an entry of no host.
    pub fn commit(&self, term: &Terminal, tree: &Tree, body: &Body) -> Option<(&str, String)> {
        let path = path_mut(&mut body.clone()).cloned()?;
        if let Body::BranchesEnded { path, ms, .. } = body {
            let set = self.by_path.get(path).and_then(|s| self.sets.get(*s))?;
            return Some((&set.path, format!("{}  {}\n", summary(set), term.paint(Style::Dim, &span(*ms)))));
        }
        let (set, row, branch) = self.find(&path)?;
        let set = self.sets.get(set)?;
        let name = pad(&set.rows.get(row)?.name, set.width);
        let text = match body {
            Body::BranchEnded { status: Status::Failed, ms, error, .. } if branch == path => {
                let mut out = format!("{} {name}  {:>7}", term.paint(Style::Red, SIGNS[2]), span(*ms));
                if let Some(e) = error {
                    unfold(&mut out, e, &failed_step(tree, branch), set.width + 4);
                } else {
                    out.push('\n');
                }
                out
            }
            Body::BranchEnded { ms, .. } if branch == path => {
                let line = &set.rows.get(row)?.line;
                let last = if line.is_empty() { String::new() } else { format!("  {}", term.paint(Style::Dim, line)) };
                format!("{} {name}  {:>7}{last}\n", term.paint(Style::Green, SIGNS[1]), span(*ms))
            }
            Body::Log { .. }
            | Body::DoubtAsked { .. }
            | Body::DoubtAnswered { .. }
            | Body::GateAsked { .. }
            | Body::GateAnswered { .. } => {
                let l = describe(body);
                format!("{} {name}  {} {}\n", SIGNS[0], term.paint(Style::Dim, l.tag), l.text)
            }
            _ => String::new(),
        };
        Some((&set.path, text))
    }

    /// The hosts that are at work, in at most so many lines, the first of which counts them all.
    pub fn live(&self, term: &Terminal, now: Timestamp, sign: &str, most: usize) -> Vec<String> {
        let mut out = vec![];
        for set in self.sets.iter().filter(|s| !s.ended && s.rows.iter().any(|r| r.state == State::Running)) {
            out.push(format!("{} {}  {}", term.paint(Style::Bold, sign), summary(set), span(since(set.began, now))));
            let running: Vec<&Row> = set.rows.iter().filter(|r| r.state == State::Running).collect();
            let room = most.saturating_sub(out.len());
            let shown = if running.len() > room { room.saturating_sub(1) } else { running.len() };
            for r in running.iter().take(shown) {
                let what = match (r.step.is_empty(), r.line.is_empty()) {
                    (true, _) => r.line.clone(),
                    (false, true) => r.step.clone(),
                    (false, false) => format!("{}: {}", r.step, r.line),
                };
                let time = span(since(r.began, now));
                out.push(format!("  {} {:>7}  {}", pad(&r.name, set.width), time, term.paint(Style::Dim, &what)));
            }
            if shown < running.len() && out.len() < most {
                out.push(term.paint(Style::Dim, &format!("  … {} more running", running.len() - shown)));
            }
        }
        out.truncate(most);
        out
    }

    /// A line of the plain view for an entry of a host: the host first, then what happened there.
    pub fn plain(&self, time: Timestamp, body: &Body) -> Option<String> {
        let mut body = body.clone();
        let path = path_mut(&mut body)?.clone();
        let (set, row, branch) = self.find(&path)?;
        let set = self.sets.get(set)?;
        let name = &set.rows.get(row)?.name;
        let cut = path.get(branch.len()..).unwrap_or("").trim_start_matches('/').to_string();
        *path_mut(&mut body)? = cut;
        let l = describe(&body);
        if l.detail {
            return Some(String::new());
        }
        let mut out = format!("{}  {}  {:<9} {}\n", time.strftime("%H:%M:%S"), pad(name, set.width), l.tag, l.text.trim_start());
        if let Body::BranchEnded { error: Some(e), .. } = &body {
            for l in said(e) {
                let _ = writeln!(out, "          {}  | {l}", pad(name, set.width));
            }
        }
        Some(out)
    }

    /// A line that a command of a host printed, for the plain view.
    pub fn printed(&self, path: &str, text: &str) -> Option<String> {
        let (set, row, _) = self.find(path)?;
        let set = self.sets.get(set)?;
        Some(format!("          {}  | {text}\n", pad(&set.rows.get(row)?.name, set.width)))
    }

    #[cfg(test)]
    fn first(&self) -> &Set {
        &self.sets[0]
    }
}

/// The step of a branch that failed, when it was in one.
fn failed_step(tree: &Tree, branch: &str) -> String {
    let below = |p: &str| p.strip_prefix(branch).is_some_and(|r| r.starts_with('/'));
    let failed = tree.nodes.iter().rev().find(|n| n.mark == super::tree::Mark::Failed && below(&n.path));
    failed.map(|n| format!("{}: ", printable(&readable(n.path.get(branch.len() + 1..).unwrap_or(""))))).unwrap_or_default()
}

/// An error under its host: the message, and the end of what the command printed.
fn unfold(out: &mut String, e: &Error, step: &str, indent: usize) {
    let _ = writeln!(out, "  {step}{}: {}", e.code, printable(&e.message));
    for l in said(e) {
        let _ = writeln!(out, "{:indent$}{l}", "");
    }
}

/// `each of 100: 12 done, 1 failed, 5 running, 82 waiting`.
fn summary(set: &Set) -> String {
    let parts: Vec<String> = [
        (State::Done, "done"),
        (State::Failed, "failed"),
        (State::Running, "running"),
        (State::Waiting, "waiting"),
        (State::NotBegun, "not begun"),
    ]
    .into_iter()
    .map(|(s, word)| (set.count(s), word))
    .filter(|(n, _)| *n > 0)
    .map(|(n, word)| format!("{n} {word}"))
    .collect();
    let place = readable(&set.path);
    let place = if place.is_empty() { String::new() } else { format!("{}: ", printable(&place)) };
    format!("{place}{} of {}: {}", set.word, set.rows.len(), parts.join(", "))
}

fn pad(name: &str, width: usize) -> String {
    let short: String =
        if name.chars().count() > width { name.chars().take(width.saturating_sub(1)).chain(['…']).collect() } else { name.to_string() };
    format!("{short:<width$}")
}

fn since(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.as_millisecond() - from.as_millisecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use runbook_core::Code;
    use runbook_core::journal::UndoKind;

    /// Twelve hosts at different points.
    fn entries() -> Vec<Body> {
        let path = |n: usize| format!("Roll out/#0/web{n}");
        let step =
            |n: usize| Body::StepStarted { path: format!("{}/Install", path(n)), attempt: 1, undo: UndoKind::None, at: None, on: None };
        let names = (1..=12).map(|n| format!("web{n}")).collect();
        let mut all = vec![
            Body::PhaseStarted { path: "Roll out".into() },
            Body::BranchesStarted { path: "Roll out/#0".into(), word: "each".into(), names },
        ];
        for n in 1..=9 {
            all.extend([Body::BranchStarted { path: path(n) }, step(n)]);
        }
        all.push(Body::BranchEnded { path: path(1), status: Status::Ok, ms: 1200, error: None });
        let error = Error::new(Code::COMMAND_FAILED, "host(\"web2\").run(\"apt-get upgrade\") ended with status 100")
            .host("web2")
            .detail("stderr", "E: Could not get lock\nE: Is another process using it?\n");
        let ended = |error| Body::StepEnded {
            path: format!("{}/Install", path(2)),
            attempt: 1,
            status: Status::Failed,
            ms: 900,
            error,
            reason: None,
        };
        all.push(ended(Some(error.clone())));
        all.push(Body::BranchEnded { path: path(2), status: Status::Failed, ms: 950, error: Some(error) });
        all.push(Body::Log { path: format!("{}/#1", path(3)), level: "warn".into(), message: "low on memory".into() });
        all
    }

    fn at(n: usize) -> Timestamp {
        "2026-11-21T03:15:00Z".parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_millis(n as i64 * 100)
    }

    #[test]
    fn a_line_a_host() {
        let term = Terminal::plain();
        let (mut fan, mut tree, mut left, mut plain) = (Fanout::default(), Tree::default(), String::new(), String::new());
        let mut see = |fan: &mut Fanout, tree: &mut Tree, i: usize, b: &Body| {
            tree.apply(at(i), b);
            fan.apply(at(i), b);
            left.push_str(&fan.commit(&term, tree, b).map(|(_, t)| t).unwrap_or_default());
            plain.push_str(&fan.plain(at(i), b).unwrap_or_else(|| describe(b).render(at(i))));
        };
        for (i, b) in entries().iter().enumerate() {
            see(&mut fan, &mut tree, i, b);
        }
        fan.line("Roll out/#0/web4/Install/#0", "Unpacking nginx (1.26.3-3) …");
        fan.line("Roll out/#0/web5/Install/#0/#3", "Setting up");
        fan.line("Roll out/#0/web10/Install/#0", "hello");
        let printed = fan.printed("Roll out/#0/web10/Install/#0", "hello").unwrap();
        let live: Vec<String> = [20, 6, 2].iter().map(|most| fan.live(&term, at(60), "⠋", *most).join("\n")).collect();
        let first = fan.first();
        assert_eq!((first.count(State::Running), first.count(State::Waiting)), (8, 2), "a host that printed something runs");
        for (i, n) in [3, 4, 5, 6, 7, 8, 9, 10].into_iter().enumerate() {
            see(
                &mut fan,
                &mut tree,
                60 + i,
                &Body::BranchEnded { path: format!("Roll out/#0/web{n}"), status: Status::Ok, ms: 5000, error: None },
            );
        }
        let ended = Body::BranchesEnded {
            path: "Roll out/#0".into(),
            failed: vec!["web2".into()],
            not_begun: vec!["web11".into(), "web12".into()],
            ms: 6100,
        };
        see(&mut fan, &mut tree, 70, &ended);
        assert!(fan.live(&term, at(80), "⠋", 20).is_empty());
        insta::assert_snapshot!(format!("{}\n--- left\n{left}--- plain\n{plain}{printed}", live.join("\n---\n")));
    }

    #[test]
    fn few_branches_of_a_parallel_and_what_is_inside_a_host_have_no_lines_of_their_own() {
        let mut fan = Fanout::default();
        let started = |path: &str, word: &str, names: &[&str]| Body::BranchesStarted {
            path: path.into(),
            word: word.into(),
            names: names.iter().map(ToString::to_string).collect(),
        };
        fan.apply(at(0), &started("#0", "parallel", &["l", "r"]));
        assert!(!fan.has("#0/l/Copy"));
        fan.apply(at(0), &started("#1", "each", &["a/b", "c"]));
        fan.apply(at(0), &started("#1/a%2Fb/#0", "each", &["x"]));
        assert!(fan.has("#1/a%2Fb/Copy@2/#0") && !fan.has("#1") && !fan.has("#1/d/Copy"));
        assert_eq!(fan.sets.len(), 1);
        fan.line("#1/a%2Fb/#0/x/#0", "inner");
        assert_eq!(fan.first().rows[0].line, "inner");
        fan.apply(at(1), &Body::BranchEnded { path: "#1/a%2Fb/#0/x".into(), status: Status::Ok, ms: 1, error: None });
        assert_eq!(fan.first().rows[0].state, State::Running, "the inner one has ended, not the host");
    }
}
