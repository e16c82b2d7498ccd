//! A run as a tree of phases, windows, steps and gates, made from its entries, live or afterwards.

use std::collections::{HashMap, HashSet};

use crate::terminal::Style;
use jiff::Timestamp;
use runbook_core::Error;
use runbook_core::exec::escape;
use runbook_core::journal::{Body, Operator, Purpose, State, Status, UndoKind};

mod show;
#[cfg(test)]
mod tests;

pub use show::{Paint, label, row};
#[cfg(test)]
pub use tests::sample;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Phase,
    Window,
    Step,
    Gate,
    Undo,
    NoReturn,
    /// A branch of `each` or `parallel`.
    Branch,
}

/// How a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    Running,
    Done,
    Failed,
    Skipped,
    Waiting,
    Stopped,
}

impl Mark {
    /// One character and how it is painted.
    pub fn sign(self) -> (&'static str, Style) {
        match self {
            Mark::Running => ("▸", Style::Bold),
            Mark::Done => ("✓", Style::Green),
            Mark::Failed => ("✗", Style::Red),
            Mark::Skipped => ("–", Style::Dim),
            Mark::Waiting => ("?", Style::Yellow),
            Mark::Stopped => ("‖", Style::Yellow),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Mark::Running => "running",
            Mark::Done => "done",
            Mark::Failed => "failed",
            Mark::Skipped => "skipped",
            Mark::Waiting => "waiting",
            Mark::Stopped => "stopped",
        }
    }
}

/// A phase, window, step, gate or undo block.
#[derive(Debug, Clone)]
pub struct Node {
    pub path: String,
    pub name: String,
    pub parent: Option<usize>,
    pub kind: Kind,
    pub mark: Mark,
    pub attempt: u32,
    pub began: Timestamp,
    pub ms: Option<u64>,
    pub on: Option<String>,
    pub undo: UndoKind,
    /// Why it was skipped, who answered, why there is no way back.
    pub note: Option<String>,
    pub error: Option<Error>,
    /// Of a window.
    pub budget_ms: Option<u64>,
}

/// What is known of a run.
#[derive(Debug, Default)]
pub struct Tree {
    /// In the order in which they began.
    pub nodes: Vec<Node>,
    by_path: HashMap<String, usize>,
    /// The controllers that worked on it, with the time at which they began.
    pub sessions: Vec<(Timestamp, Purpose, Operator)>,
    /// When it began.
    pub began: Option<Timestamp>,
    /// When the last entry was written.
    pub last: Option<Timestamp>,
    /// How the last controller ended.
    pub state: Option<State>,
    /// Why.
    pub error: Option<Error>,
    /// The innermost paths at which it stopped.
    pub at: Vec<String>,
    /// The reason to go back.
    pub rollback: Option<String>,
    /// Until when it sleeps.
    pub sleeping: Option<String>,
    /// The action in doubt: its call and what is known.
    pub doubt: Option<(String, String)>,
    /// The calls that have begun and not ended by their path, and whether each must not happen twice.
    calls: HashMap<String, (String, bool)>,
    /// The nodes that are shown, when not all are; these are shown whole.
    kept: HashSet<usize>,
}

/// Up to how many branches beside each other show their steps.
const UNFOLDED: usize = 8;

/// The last name of a path, as it was written.
pub fn name_of(path: &str) -> String {
    let last = path.rsplit('/').next().unwrap_or(path);
    let last = last.rsplit_once('@').map_or(last, |(n, _)| n);
    last.replace("%2F", "/").replace("%40", "@").replace("%23", "#").replace("%25", "%")
}

/// A path as a person reads it.
pub fn readable(path: &str) -> String {
    path.split('/').filter(|p| !p.starts_with('#')).map(name_of).collect::<Vec<_>>().join(" / ")
}

impl Tree {
    /// The node with this path.
    #[cfg(test)]
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.by_path.get(path).and_then(|i| self.nodes.get(*i))
    }

    /// The innermost node that a path lies in or is.
    pub fn owner(&self, path: &str) -> Option<usize> {
        let mut p = path;
        loop {
            let bare = p.rsplit_once('@').filter(|(_, n)| n.chars().all(|c| c.is_ascii_digit())).map_or(p, |(b, _)| b);
            if let Some(i) = self.by_path.get(p).or_else(|| self.by_path.get(bare)) {
                return Some(*i);
            }
            p = p.rsplit_once('/')?.0;
        }
    }

    /// Shows only what was asked to be kept: the node that this path lies in and those above it.
    pub fn keep(&mut self, path: &str) {
        let mut at = self.owner(path);
        while let Some(i) = at {
            self.kept.insert(i);
            at = self.nodes.get(i).and_then(|n| n.parent);
        }
    }

    /// Whether anything was asked to be kept.
    pub fn keeps(&self) -> bool {
        !self.kept.is_empty()
    }

    fn shows(&self, index: usize) -> bool {
        self.kept.is_empty() || self.kept.contains(&index)
    }

    /// How deep a node lies, branches not counted.
    pub fn depth(&self, node: &Node) -> usize {
        let mut depth = 0;
        let mut at = node.parent;
        while let Some(n) = at.and_then(|i| self.nodes.get(i)) {
            depth += usize::from(n.kind != Kind::Branch);
            at = n.parent;
        }
        depth
    }

    /// A node as it is called where its branch has no line of its own: `web1 / Copy`.
    pub fn flat(&self, index: usize) -> Option<Node> {
        let mut node = self.nodes.get(index)?.clone();
        let mut above = node.parent.and_then(|i| self.nodes.get(i));
        while let Some(b) = above.filter(|b| b.kind == Kind::Branch) {
            node.name = format!("{} / {}", b.name, node.name);
            above = b.parent.and_then(|i| self.nodes.get(i));
        }
        Some(node)
    }

    /// The window that is open. One that was taken back is not, though nothing has closed it.
    pub fn window(&self) -> Option<&Node> {
        if matches!(self.state, Some(State::RolledBack | State::Finished)) {
            return None;
        }
        self.nodes.iter().rev().find(|n| n.kind == Kind::Window && n.ms.is_none())
    }

    /// The gates that wait for an answer.
    pub fn gates(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|n| n.kind == Kind::Gate && n.mark != Mark::Done)
    }

    fn node(&mut self, path: &str, kind: Kind, time: Timestamp) -> Option<&mut Node> {
        let key = if kind == Kind::Undo { format!("undo:{path}") } else { path.to_string() };
        let index = match self.by_path.get(&key) {
            Some(i) => *i,
            None => {
                let parent = if kind == Kind::Undo { None } else { path.rsplit_once('/').and_then(|(p, _)| self.owner(p)) };
                let i = self.nodes.len();
                // Below its parent, so that a step says in which branch of `parallel` it is.
                let above = parent.and_then(|p| self.nodes.get(p)).map_or(0, |p| p.path.split('/').count());
                let name = readable(&path.split('/').skip(above).collect::<Vec<_>>().join("/"));
                self.nodes.push(Node {
                    path: path.to_string(),
                    name,
                    parent,
                    kind,
                    mark: Mark::Running,
                    attempt: 1,
                    began: time,
                    ms: None,
                    on: None,
                    undo: UndoKind::None,
                    note: None,
                    error: None,
                    budget_ms: None,
                });
                self.by_path.insert(key, i);
                i
            }
        };
        self.nodes.get_mut(index)
    }

    /// A step, phase or undo block has ended, with its failure and a remark.
    fn ended(
        &mut self,
        (path, kind): (&str, Kind),
        time: Timestamp,
        (status, ms): (Status, u64),
        error: Option<&Error>,
        note: Option<&String>,
    ) {
        if let Some(n) = self.node(path, kind, time) {
            n.mark = match status {
                Status::Ok => Mark::Done,
                Status::Failed => Mark::Failed,
                Status::Skipped => Mark::Skipped,
            };
            n.ms = Some(ms);
            n.error = error.cloned();
            n.note = note.cloned();
        }
    }

    /// Takes in an entry.
    pub fn apply(&mut self, time: Timestamp, body: &Body) {
        self.began.get_or_insert(time);
        self.last = Some(time);
        match body {
            Body::SessionStarted { purpose, operator, .. } => {
                self.sessions.push((time, *purpose, operator.clone()));
                self.state = Some(State::Running);
                self.error = None;
                self.at.clear();
                for n in self.nodes.iter_mut().filter(|n| n.mark == Mark::Stopped) {
                    n.mark = Mark::Running;
                }
            }
            Body::SessionEnded { state, at, error } => {
                self.state = Some(*state);
                self.error = error.clone();
                self.at = at.clone();
                for n in self.nodes.iter_mut().filter(|n| n.mark == Mark::Running) {
                    n.mark = Mark::Stopped;
                }
            }
            Body::PhaseStarted { path } => {
                self.node(path, Kind::Phase, time);
            }
            Body::PhaseEnded { path, status, ms } => self.ended((path, Kind::Phase), time, (*status, *ms), None, None),
            Body::StepStarted { path, attempt, undo, on, .. } => {
                if let Some(n) = self.node(path, Kind::Step, time) {
                    (n.mark, n.attempt, n.began, n.ms, n.error) = (Mark::Running, *attempt, time, None, None);
                    (n.undo, n.on) = (*undo, on.clone());
                }
            }
            Body::StepEnded { path, status, ms, error, reason, .. } => {
                self.ended((path, Kind::Step), time, (*status, *ms), error.as_ref(), reason.as_ref());
            }
            Body::Intent { path, call, effect, .. } => {
                self.calls.insert(path.clone(), (call.clone(), effect == "once"));
            }
            Body::Outcome { path, .. } => {
                self.calls.remove(path);
            }
            Body::GateAsked { path, .. } => {
                if let Some(n) = self.node(path, Kind::Gate, time) {
                    n.mark = Mark::Waiting;
                }
            }
            Body::GateAnswered { path, yes, by, comment } => {
                if let Some(n) = self.node(path, Kind::Gate, time) {
                    n.mark = if *yes { Mark::Done } else { Mark::Failed };
                    let comment = comment.as_ref().map(|c| format!(": {c}")).unwrap_or_default();
                    n.note = Some(format!("{} by {by}{comment}", if *yes { "yes" } else { "no" }));
                }
            }
            Body::WindowOpened { path, budget_ms, .. } => {
                if let Some(n) = self.node(path, Kind::Window, time) {
                    n.budget_ms = *budget_ms;
                }
            }
            Body::WindowOverrun { path, decision, by, .. } => {
                if let Some(n) = self.node(path, Kind::Window, time) {
                    n.note = Some(format!("over its budget: {decision} ({by})"));
                }
            }
            Body::WindowClosed { path, ms, .. } => {
                if let Some(n) = self.node(path, Kind::Window, time) {
                    (n.ms, n.mark) = (Some(*ms), Mark::Done);
                }
            }
            Body::PointOfNoReturn { path, why } => {
                if let Some(n) = self.node(path, Kind::NoReturn, time) {
                    (n.mark, n.note) = (Mark::Done, Some(why.clone()));
                }
            }
            Body::TimerSet { until, .. } => self.sleeping = Some(until.clone()),
            Body::TimerFired { .. } => self.sleeping = None,
            Body::DoubtAsked { path, known, .. } => {
                let call = self.calls.get(path).map_or_else(|| readable(path), |(c, _)| c.clone());
                self.doubt = Some((call, known.clone()));
            }
            Body::DoubtAnswered { .. } => self.doubt = None,
            Body::RollbackStarted { reason } => self.rollback = Some(reason.clone()),
            Body::UndoStarted { path, attempt } => {
                if let Some(n) = self.node(path, Kind::Undo, time) {
                    (n.mark, n.attempt, n.began, n.ms, n.error) = (Mark::Running, *attempt, time, None, None);
                }
            }
            Body::UndoEnded { path, status, ms, error, .. } => self.ended((path, Kind::Undo), time, (*status, *ms), error.as_ref(), None),
            Body::BranchStarted { path } => {
                if let Some(n) = self.node(path, Kind::Branch, time) {
                    (n.mark, n.began, n.ms, n.error, n.note) = (Mark::Running, time, None, None, None);
                }
            }
            Body::BranchEnded { path, status, ms, error } => self.ended((path, Kind::Branch), time, (*status, *ms), error.as_ref(), None),
            Body::BranchesEnded { path, not_begun, .. } => {
                for name in not_begun {
                    if let Some(n) = self.node(&format!("{path}/{}", escape(name)), Kind::Branch, time) {
                        (n.mark, n.note) = (Mark::Skipped, Some("not begun".into()));
                    }
                }
            }
            Body::RunStarted { .. }
            | Body::BranchesStarted { .. }
            | Body::Output { .. }
            | Body::RetryScheduled { .. }
            | Body::Log { .. } => {}
        }
    }

    /// The calls that must not happen twice, have begun, and of which it is not recorded how they ended.
    pub fn unknown(&self) -> Vec<&str> {
        let mut all: Vec<&str> = self.calls.values().filter(|(_, once)| *once).map(|(c, _)| c.as_str()).collect();
        all.sort_unstable();
        all
    }
}
