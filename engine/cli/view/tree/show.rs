//! The tree as text and for machines.

use std::fmt::Write as _;

use serde_json::{Value as Json, json};

use super::super::span;
use super::{Kind, Mark, Node, Tree, UNFOLDED, readable};
use crate::terminal::{Style, columns, printable};

impl Tree {
    /// The tree as text of a width, depth first; children of one parent in the order in which they began.
    pub fn text(&self, width: usize, paint: &Paint<'_>) -> String {
        let mut out = String::new();
        self.children(&mut out, width, paint, None, 0);
        out
    }

    fn children(&self, out: &mut String, width: usize, paint: &Paint<'_>, parent: Option<usize>, depth: usize) {
        // Of many branches, those that went well are a line each.
        let branches = self.nodes.iter().filter(|n| n.parent == parent && n.kind == Kind::Branch).count();
        let folds = self.kept.is_empty() && branches > UNFOLDED;
        for (i, n) in self.nodes.iter().enumerate().filter(|(i, n)| n.parent == parent && self.shows(*i)) {
            // What failed in a branch is told where it failed.
            let told = n.kind == Kind::Branch && self.nodes.iter().any(|c| c.parent == Some(i) && c.mark == Mark::Failed);
            let line = if told { row(&Node { error: None, ..n.clone() }, depth, width, paint) } else { row(n, depth, width, paint) };
            out.push_str(&line);
            if !(folds && n.kind == Kind::Branch && matches!(n.mark, Mark::Done | Mark::Skipped)) {
                self.children(out, width, paint, Some(i), depth + 1);
            }
        }
    }

    /// The tree for machines.
    pub fn json(&self) -> Json {
        let nodes = self.nodes.iter().enumerate().filter(|(i, _)| self.shows(*i)).map(|(_, n)| {
            json!({
                "path": n.path,
                "kind": match n.kind {
                    Kind::Phase => "phase",
                    Kind::Window => "window",
                    Kind::Step => "step",
                    Kind::Gate => "gate",
                    Kind::Undo => "undo",
                    Kind::NoReturn => "point_of_no_return",
                    Kind::Branch => "branch",
                },
                "state": n.mark.name(),
                "attempt": n.attempt,
                "began": n.began.to_string(),
                "ms": n.ms,
                "budget_ms": n.budget_ms,
                "on": n.on,
                "note": n.note,
                "error": n.error,
            })
        });
        Json::Array(nodes.collect())
    }
}

/// Paints text for the stream that it goes to.
pub type Paint<'a> = dyn Fn(Style, &str) -> String + 'a;

/// The column in which times end, where there is room for it.
const TIMES: usize = 72;

/// A node as a line (and a second one for its failure). `width` is that of the terminal.
pub fn row(n: &Node, depth: usize, width: usize, paint: &Paint<'_>) -> String {
    let (sign, style) = n.mark.sign();
    let indent = depth * 2;
    let label = label(n);
    let time = n.ms.map(span).unwrap_or_default();
    let mut rest = vec![];
    if n.attempt > 1 {
        rest.push(format!("attempt {}", n.attempt));
    }
    if let Some(b) = n.budget_ms {
        rest.push(format!("budget {}", span(b)));
    }
    if let Some(note) = n.note.as_ref().filter(|_| n.kind != Kind::NoReturn) {
        rest.push(printable(note));
    }
    let rest = if rest.is_empty() { String::new() } else { format!("  {}", paint(Style::Dim, &rest.join(", "))) };
    let name = indent + 2 + columns(&label);
    // A time that ends in the last column would wrap on some terminals.
    let pad = TIMES.min(width.saturating_sub(1)).saturating_sub(name + columns(&time)).max(1);
    let line = format!("{:indent$}{} {label}{:pad$}{time}{rest}", "", paint(style, sign), "");
    let mut out = format!("{}\n", line.trim_end());
    if let Some(e) = n.error.as_ref().filter(|_| n.mark == Mark::Failed) {
        let _ = writeln!(out, "{:indent$}    {}: {}", "", e.code, printable(&e.message));
    }
    out
}

/// What a node is called in a tree.
pub fn label(n: &Node) -> String {
    let name = printable(&n.name);
    match n.kind {
        Kind::Phase | Kind::Step | Kind::Gate | Kind::Branch => name,
        Kind::Window => format!("{name} (users are cut off)"),
        Kind::Undo => format!("take back: {}", printable(&readable(&n.path))),
        Kind::NoReturn => format!("point of no return: {name}"),
    }
}
