//! The view while a run goes on: a live tree on a terminal, plain lines elsewhere, JSON lines with `--json`.
//!
//! On a terminal, what has ended is printed once and scrolls away; below it, what runs now is drawn anew ten times a second: steps with
//! their time, their last lines of output and progress, and the countdown of the window.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::sync::{Arc, Weak};
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use runbook_core::exec::{Comparison, Observer};
use runbook_core::journal::{Body, State, Store, line};
use runbook_core::primitive::{Progress, StreamKind};
use runbook_core::units::show_bytes;

use super::fanout::Fanout;
use super::lines::{self, describe};
use super::tree::{Kind, Mark, Node, Tree, row};
use super::{clock, span};
use crate::terminal::{Style, Terminal, columns, count, cut, printable};

/// How a run is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// A tree that is redrawn.
    Live,
    /// A line an entry.
    Plain,
    /// The entries themselves, one a line, on standard output.
    Json,
    /// Nothing.
    Silent,
}

const FRAMES: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
/// How many lines of a step's output are shown.
const TAIL: usize = 3;

/// Follows a run for the operator.
pub struct View {
    term: Terminal,
    manner: Manner,
    inner: Mutex<Inner>,
    /// The store and the run's id, for JSON lines.
    source: Mutex<Option<(Arc<dyn Store>, String)>>,
    /// How an edited runbook fits the record.
    comparison: Mutex<Option<Comparison>>,
}

#[derive(Default)]
struct Inner {
    tree: Tree,
    /// What is shown with a line a host.
    fanout: Fanout,
    run: String,
    /// Printed with the next drawing, once.
    pending: String,
    /// How wide the lines are that are drawn at the moment.
    drawn: Vec<usize>,
    /// A question stands on the screen: nothing may be drawn.
    paused: bool,
    frame: usize,
    /// The node under whose heading the last line was printed.
    heading: Option<usize>,
    tails: HashMap<usize, Tail>,
    progress: HashMap<usize, Progress>,
    /// The entry after the last one that was handed on as JSON.
    next: u64,
}

#[derive(Default)]
struct Tail {
    lines: VecDeque<String>,
    open: Vec<u8>,
}

impl View {
    /// Makes a view; a live one is redrawn until it is dropped.
    pub fn new(term: &Terminal, manner: Manner) -> Arc<View> {
        let view =
            Arc::new(View { term: term.clone(), manner, inner: Mutex::default(), source: Mutex::default(), comparison: Mutex::default() });
        if manner == Manner::Live {
            let weak: Weak<View> = Arc::downgrade(&view);
            let ticker = std::thread::Builder::new().name("view".into());
            let _ = ticker.spawn(move || {
                while let Some(view) = weak.upgrade() {
                    view.tick();
                    drop(view);
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
        }
        view
    }

    /// Says which run is shown.
    pub fn follow(&self, store: &Arc<dyn Store>, run: &str) {
        self.inner.lock().run = run.to_string();
        *self.source.lock() = Some((store.clone(), run.to_string()));
    }

    /// Clears what is drawn so that something else can be printed, such as a question.
    pub fn pause(&self) {
        let mut inner = self.inner.lock();
        if self.manner == Manner::Live {
            inner.draw(&self.term, false);
        }
        inner.paused = true;
    }

    /// Goes on after [`View::pause`].
    pub fn unpause(&self) {
        self.inner.lock().paused = false;
    }

    /// Takes the drawing away for good and hands on what is left.
    pub fn finish(&self) {
        self.pause();
        if self.manner == Manner::Json {
            self.hand_on();
        }
    }

    /// How an edited runbook fits the record, once that was compared.
    pub fn comparison(&self) -> Option<Comparison> {
        self.comparison.lock().clone()
    }

    /// What is known of the run.
    pub fn with_tree<T>(&self, f: impl FnOnce(&Tree) -> T) -> T {
        f(&self.inner.lock().tree)
    }

    fn tick(&self) {
        let mut inner = self.inner.lock();
        if !inner.paused {
            inner.frame += 1;
            inner.draw(&self.term, true);
        }
    }

    /// Prints the entries that the store has by now.
    fn hand_on(&self) {
        let Some((store, run)) = self.source.lock().clone() else { return };
        let mut inner = self.inner.lock();
        let mut text = String::new();
        let mut next = inner.next;
        let _ = store.entries(&run, next, &mut |entry| {
            next = entry.seq + 1;
            text.push_str(&line(&entry)?);
            text.push('\n');
            Ok(())
        });
        inner.next = next;
        self.term.out(&text);
    }
}

impl Observer for View {
    fn entry(&self, time: Timestamp, body: &Body, replayed: bool) {
        let mut inner = self.inner.lock();
        inner.tree.apply(time, body);
        inner.fanout.apply(time, body);
        if replayed {
            inner.next += 1;
            return;
        }
        match self.manner {
            Manner::Silent => {}
            Manner::Json => {
                drop(inner);
                self.hand_on();
            }
            Manner::Plain => {
                if let Some(text) = inner.fanout.plain(time, body) {
                    self.term.err(&text);
                    return;
                }
                let l = describe(body);
                // Output was shown when it came.
                if !l.detail {
                    self.term.err(&l.render(time));
                }
            }
            Manner::Live => inner.commit(&self.term, body),
        }
    }

    fn output(&self, path: &str, _stream: StreamKind, bytes: &[u8]) {
        let mut inner = self.inner.lock();
        let Some(owner) = inner.tree.owner(path) else { return };
        let tail = inner.tails.entry(owner).or_default();
        let mut done = vec![];
        for b in bytes {
            if *b == b'\n' {
                let text = printable(&String::from_utf8_lossy(&std::mem::take(&mut tail.open)));
                tail.lines.push_back(text.clone());
                done.push(text);
                if tail.lines.len() > TAIL {
                    tail.lines.pop_front();
                }
            } else if tail.open.len() < 4096 {
                tail.open.push(*b);
            }
        }
        if let Some(last) = done.last() {
            inner.fanout.line(path, last);
        }
        if self.manner == Manner::Plain {
            for l in done {
                self.term.err(&inner.fanout.printed(path, &l).unwrap_or_else(|| format!("          | {l}\n")));
            }
        }
    }

    fn progress(&self, path: &str, progress: &Progress) {
        let mut inner = self.inner.lock();
        inner.fanout.line(path, &amount(progress));
        if let Some(owner) = inner.tree.owner(path) {
            inner.progress.insert(owner, progress.clone());
        }
    }

    fn compared(&self, comparison: &Comparison) {
        *self.comparison.lock() = Some(comparison.clone());
        if matches!(self.manner, Manner::Live | Manner::Plain) {
            let text = lines::comparison(comparison, &|s, t| self.term.paint(s, t));
            self.pause();
            self.term.err(&text);
            self.unpause();
        }
    }

    fn notice(&self, text: &str) {
        let text = format!("{}: {}\n", self.term.paint(Style::Yellow, "note"), printable(text));
        let mut inner = self.inner.lock();
        if self.manner == Manner::Live {
            inner.pending.push_str(&text);
        } else {
            self.term.err(&text);
        }
    }
}

impl Inner {
    fn chain(&self, node: Option<usize>) -> Vec<usize> {
        let mut chain = vec![];
        let mut at = node;
        while let Some(i) = at {
            let node = self.tree.nodes.get(i);
            if node.is_some_and(|n| n.kind != Kind::Branch) {
                chain.push(i);
            }
            at = node.and_then(|n| n.parent);
        }
        chain.reverse();
        chain
    }

    /// Prints the headings that a line below `parent` still lacks. Branches of `parallel` take turns, so a heading may come again.
    fn headings(&mut self, term: &Terminal, parent: Option<usize>) {
        let (want, have) = (self.chain(parent), self.chain(self.heading));
        let common = want.iter().zip(&have).take_while(|(a, b)| a == b).count();
        for (depth, i) in want.iter().enumerate().skip(common) {
            if let Some(n) = self.tree.nodes.get(*i) {
                let name = super::tree::label(n);
                let style = if n.kind == Kind::Window { Style::Yellow } else { Style::Bold };
                let _ = writeln!(self.pending, "{:indent$}{}", "", term.paint(style, &name), indent = depth * 2);
            }
        }
        if parent.is_some() {
            self.heading = parent;
        }
    }

    fn row(&mut self, term: &Terminal, index: usize) {
        let Some(parent) = self.tree.nodes.get(index).map(|n| n.parent) else { return };
        self.headings(term, parent);
        self.tails.remove(&index);
        self.progress.remove(&index);
        if let Some(n) = self.tree.flat(index) {
            let text = row(&n, self.tree.depth(&n), term.size().0, &|s, t| term.paint(s, t));
            self.pending.push_str(&text);
        }
    }

    /// What an entry leaves on the screen for good.
    fn commit(&mut self, term: &Terminal, body: &Body) {
        let index = |t: &Tree, path: &str| t.owner(path);
        if let Some((path, text)) = self.fanout.commit(term, &self.tree, body) {
            if !text.is_empty() {
                let parent = index(&self.tree, path);
                self.headings(term, parent);
                let indent = self.chain(parent).len() * 2;
                for l in text.lines() {
                    let _ = writeln!(self.pending, "{:indent$}{l}", "");
                }
            }
            return;
        }
        match body {
            Body::PhaseStarted { path } | Body::WindowOpened { path, .. } => {
                let node = index(&self.tree, path);
                self.headings(term, node);
            }
            Body::StepEnded { path, .. } | Body::GateAnswered { path, .. } | Body::PointOfNoReturn { path, .. } => {
                if let Some(i) = index(&self.tree, path) {
                    self.row(term, i);
                }
            }
            Body::UndoEnded { path, .. } => {
                if let Some(i) = index(&self.tree, &format!("undo:{path}")) {
                    self.row(term, i);
                }
            }
            Body::WindowClosed { ms, overran, .. } => {
                let over = if *overran { ", over its budget" } else { "" };
                let _ = writeln!(self.pending, "  {}", term.paint(Style::Yellow, &format!("closed after {}{over}", span(*ms))));
            }
            Body::WindowOverrun { .. }
            | Body::RetryScheduled { .. }
            | Body::Log { .. }
            | Body::TimerSet { .. }
            | Body::DoubtAnswered { .. }
            | Body::RollbackStarted { .. } => {
                let l = describe(body);
                let depth = self.chain(self.heading).len();
                let _ = writeln!(self.pending, "{:indent$}{} {}", "", term.paint(Style::Dim, l.tag), l.text, indent = depth * 2);
            }
            _ => {}
        }
    }

    fn draw(&mut self, term: &Terminal, live: bool) {
        let mut out = String::new();
        let (width, height) = term.size();
        if !self.drawn.is_empty() {
            // A terminal that became narrower has wrapped what was drawn.
            let rows: usize = self.drawn.iter().map(|w| w.div_ceil(width).max(1)).sum();
            let _ = write!(out, "\r\x1b[{}A\x1b[J", rows.min(height.saturating_sub(1)).max(1));
        }
        out.push_str(&std::mem::take(&mut self.pending));
        self.drawn.clear();
        if live {
            for l in self.live(term, Timestamp::now(), width, height.saturating_sub(2)) {
                let l = cut(&l, width);
                let _ = writeln!(out, "{l}");
                self.drawn.push(columns(&l));
            }
        }
        if !out.is_empty() {
            term.err(&out);
        }
    }

    /// What runs now, in at most so many lines: when there are too many, steps show less of their output, then fewer steps are shown.
    fn live(&self, term: &Terminal, now: Timestamp, width: usize, most: usize) -> Vec<String> {
        if !matches!(self.tree.state, Some(State::Running)) {
            return vec![];
        }
        let most = most.max(1) - 1;
        let steps: Vec<(String, Vec<String>)> = self.active(term, now);
        let mut hosts = self.fanout.live(term, now, FRAMES[self.frame % FRAMES.len()], most);
        let mut rest = vec![];
        if let Some(until) = &self.tree.sleeping {
            rest.push(format!("{} sleeping until {until}", FRAMES[self.frame % FRAMES.len()]));
        }
        for g in self.tree.gates() {
            rest.push(format!("{} {}  waits for an answer: runbook approve {}", term.paint(Style::Yellow, "?"), g.name, self.run));
        }
        let lines = |tail: usize| steps.iter().map(|(_, t)| 1 + t.len().min(tail)).sum::<usize>() + rest.len();
        let tail = (0..=TAIL).rev().find(|t| lines(*t) <= most).unwrap_or(0);
        let mut out = vec![];
        for (head, output) in steps {
            out.push(head);
            out.extend(output.into_iter().rev().take(tail).rev());
        }
        out.extend(rest);
        if !hosts.is_empty() && out.len() + hosts.len() > most {
            hosts = self.fanout.live(term, now, FRAMES[self.frame % FRAMES.len()], most.saturating_sub(out.len()).max(2));
        }
        out.extend(hosts);
        if out.len() > most {
            let hidden = out.len() - most.saturating_sub(1);
            out.truncate(most.saturating_sub(1));
            if most > 0 {
                out.push(term.paint(Style::Dim, &format!("… {hidden} more")));
            }
        }
        out.push(self.status(term, now, width));
        out
    }

    /// The steps that run, each with its last lines of output.
    fn active(&self, term: &Terminal, now: Timestamp) -> Vec<(String, Vec<String>)> {
        let nodes = self.tree.nodes.iter().enumerate();
        let active = nodes.filter(|(_, n)| {
            matches!(n.mark, Mark::Running)
                && matches!(n.kind, Kind::Step | Kind::Undo)
                && (n.kind == Kind::Undo || !self.fanout.has(&n.path))
        });
        let sign = FRAMES[self.frame % FRAMES.len()];
        let step = |(i, n): (usize, &Node)| {
            let indent = self.tree.depth(n) * 2;
            let progress = self.progress.get(&i).map(|p| format!("  {}", amount(p))).unwrap_or_default();
            let attempt = if n.attempt > 1 { format!(" (attempt {})", n.attempt) } else { String::new() };
            let name = self.tree.flat(i).map(|n| super::tree::label(&n)).unwrap_or_default();
            let head = format!("{:indent$}{} {name}{attempt}  {}{progress}", "", term.paint(Style::Bold, sign), span(since(n.began, now)));
            let tail = self.tails.get(&i).into_iter().flat_map(|t| t.lines.iter());
            (head, tail.map(|l| format!("{:indent$}    {}", "", term.paint(Style::Dim, l))).collect())
        };
        active.map(step).collect()
    }

    /// The last line: first what matters most, the window's countdown.
    fn status(&self, term: &Terminal, now: Timestamp, width: usize) -> String {
        let mut parts = vec![];
        if let Some(w) = self.tree.window() {
            let open = since(w.began, now);
            // The time that is left must be seen on the narrowest terminal.
            let (users, budget) = match width {
                ..30 => ("off", ""),
                30..60 => ("cut off", ""),
                _ => ("users are cut off for", " the budget"),
            };
            let text = match w.budget_ms {
                Some(b) if open <= b => format!("{users} {}, {} left", clock(ms(open)), clock(ms(b - open))),
                Some(b) => format!("{users} {}, {} over{budget}", clock(ms(open)), clock(ms(open - b))),
                None => format!("{users} {}", clock(ms(open))),
            };
            let over = w.budget_ms.is_some_and(|b| open > b);
            parts.push(term.paint(if over { Style::Red } else { Style::Yellow }, &text));
        }
        if let Some(began) = self.tree.began {
            parts.push(span(since(began, now)));
        }
        parts.push(term.paint(Style::Dim, &self.run));
        parts.join(" · ")
    }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn since(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.as_millisecond() - from.as_millisecond()).unwrap_or(0)
}

/// How far a long action is.
fn amount(p: &Progress) -> String {
    let show = |n: u64| if p.unit == "bytes" { show_bytes(n) } else { n.to_string() };
    let unit = if p.unit == "bytes" { String::new() } else { format!(" {}", p.unit) };
    match p.total {
        Some(total) if total > 0 => format!("{}: {} of {}{unit} ({}%)", p.what, show(p.done), show(total), p.done.min(total) * 100 / total),
        _ => format!("{}: {}{unit}", p.what, show(p.done)),
    }
}

/// How a run ended, for standard output.
pub fn ending(tree: &Tree, run: &str, state: State) -> String {
    let took = tree.began.zip(tree.last).map(|(a, b)| format!(" after {}", span(since(a, b)))).unwrap_or_default();
    let done = tree.nodes.iter().filter(|n| n.kind == Kind::Step && n.mark == Mark::Done).count();
    let undone = tree.nodes.iter().filter(|n| n.kind == Kind::Undo && n.mark == Mark::Done).count();
    let what = if matches!(state, State::RolledBack | State::RollingBack) {
        format!("{} taken back", count(undone, "step"))
    } else {
        format!("{} done", count(done, "step"))
    };
    format!("run {run} {}{took}: {what}\n", verb(state))
}

fn verb(state: State) -> &'static str {
    match state {
        State::Running => "is not finished",
        State::Finished => "finished",
        State::Failed => "failed",
        State::Paused => "paused",
        State::Interrupted => "was interrupted",
        State::InDoubt => "stopped in doubt",
        State::RollingBack => "stopped half-way back",
        State::RolledBack => "was rolled back",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_live_view_leaves_on_the_screen() {
        let term = Terminal::plain();
        let mut inner = Inner { run: "20261121-0315-cutover-ab12".into(), ..Inner::default() };
        for (time, body) in super::super::tree::sample() {
            inner.tree.apply(time, &body);
            inner.commit(&term, &body);
        }
        insta::assert_snapshot!(inner.pending);
    }

    #[test]
    fn what_a_live_view_shows_while_a_step_runs() {
        let term = Terminal::plain();
        let mut inner = Inner { run: "20261121-0315-cutover-ab12".into(), ..Inner::default() };
        let mut last = Timestamp::UNIX_EPOCH;
        for (time, body) in super::super::tree::sample().into_iter().take(13) {
            inner.tree.apply(time, &body);
            last = time;
        }
        let step = inner.tree.owner("Cutover/Smoke test/#0").unwrap();
        inner.tails.entry(step).or_default().lines.extend(["trying".to_string(), "again".to_string()]);
        inner.progress.insert(step, Progress { what: "copying uploads".into(), done: 3 << 20, total: Some(12 << 20), unit: "bytes" });
        let at = |s: i64| last + jiff::SignedDuration::from_millis(s * 1000);
        let show = |s: i64, width: usize, most: usize| inner.live(&term, at(s), width, most).join("\n");
        insta::assert_snapshot!(
            [show(3, 80, 20), show(150, 80, 20), show(3, 80, 3), show(3, 80, 2), show(3, 80, 0), show(3, 20, 3)].join("\n---\n")
        );
    }
}
