//! From errors to what the operator sees: the message, the exit status, the JSON form. The only place that maps kinds to statuses.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use runbook_core::error::{Kind, Location};
use runbook_core::{Code, Error};
use serde_json::{Value as Json, json};

use crate::terminal::{Style, Terminal, printable};

/// Exit status of a run that was rolled back.
pub const ROLLED_BACK: u8 = 6;

/// Why a command did not do what it should: one or several errors, with the sources that they point into.
#[derive(Debug, Default)]
pub struct Failure {
    /// What went wrong.
    pub errors: Vec<Error>,
    /// Whether something had been written before: then the run is left half-way.
    pub wrote: bool,
    /// The texts that locations refer to, by file.
    pub sources: BTreeMap<String, String>,
    /// What can be done next, for people: the last thing that they read.
    pub after: String,
    /// Overrides the exit status.
    pub exit: Option<u8>,
    /// What a command knows besides, for the JSON form.
    pub facts: serde_json::Map<String, Json>,
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Failure { errors: vec![e], ..Failure::default() }
    }
}

impl From<Vec<Error>> for Failure {
    fn from(errors: Vec<Error>) -> Self {
        Failure { errors, ..Failure::default() }
    }
}

impl Failure {
    /// Adds a source for snippets.
    pub fn source(mut self, file: &str, text: &str) -> Self {
        self.sources.insert(file.to_string(), text.to_string());
        self
    }

    /// The exit status: that of the first error unless overridden.
    pub fn status(&self) -> u8 {
        let by_kind = |e: &Error| match e.code {
            // A script that runs away before it has touched anything is a mistake in the script.
            Code::LIMIT if !self.wrote => 3,
            _ => exit_status(e.kind, self.wrote),
        };
        self.exit.unwrap_or_else(|| self.errors.first().map_or(1, by_kind))
    }

    /// The JSON form.
    pub fn json(&self) -> Json {
        let mut doc = self.facts.clone();
        doc.insert("ok".into(), false.into());
        doc.insert("exit".into(), self.status().into());
        doc.insert("error".into(), self.errors.first().map_or(Json::Null, |e| json!(e)));
        if self.errors.len() > 1 {
            doc.insert("errors".into(), json!(self.errors));
        }
        Json::Object(doc)
    }

    /// The text form, for standard error.
    pub fn text(&self, t: &Terminal) -> String {
        let mut out = String::new();
        for e in &self.errors {
            out.push_str(&render(e, t, e.location.as_ref().and_then(|l| self.sources.get(&l.file)).map(String::as_str)));
        }
        if self.errors.len() > 1 {
            let _ = writeln!(out, "{} errors", self.errors.len());
        }
        out.push_str(&self.after);
        out
    }
}

/// The exit status for a kind of error (design, section 7). `wrote`: something was written before, so that "nothing was touched" would be wrong.
pub fn exit_status(kind: Kind, wrote: bool) -> u8 {
    match kind {
        Kind::Usage => 2,
        Kind::Check if !wrote => 3,
        Kind::Unreachable if !wrote => 4,
        Kind::Failed | Kind::Check | Kind::Unreachable | Kind::Mismatch | Kind::Store | Kind::RollBack | Kind::Internal => 1,
        Kind::Paused => 5,
        Kind::Locked => 7,
        Kind::Audit => 8,
        Kind::InDoubt => 9,
        Kind::Interrupted => 130,
    }
}

/// One error as text: message, place with snippet, facts, help.
pub fn render(e: &Error, t: &Terminal, source: Option<&str>) -> String {
    let mut out = String::new();
    let host = e.host.as_ref().map(|h| format!(" (host {h})")).unwrap_or_default();
    let head = t.paint(Style::Red, &format!("error[{}]", e.code));
    // A message may hold what a command printed last: further lines stand below the first.
    let mut lines = e.message.lines().map(printable);
    let _ = writeln!(out, "{head}: {}{host}", t.paint(Style::Bold, &lines.next().unwrap_or_default()));
    for l in lines {
        let _ = writeln!(out, "   {l}");
    }
    if let Some(at) = &e.location {
        place(&mut out, t, at, source);
    } else if let Some(path) = e.at.first() {
        let _ = writeln!(out, "  {} {path}", t.paint(Style::Blue, "in"));
    }
    facts(&mut out, e);
    for f in &e.failures {
        let _ = writeln!(out, "  {}  {}: {}", t.paint(Style::Red, &printable(&f.name)), f.error.code, printable(&f.error.message));
        for l in said(&f.error) {
            let _ = writeln!(out, "      {l}");
        }
    }
    if let Some(hint) = &e.hint {
        let _ = writeln!(out, "  {}: {hint}", t.paint(Style::Blue, "help"));
    }
    out
}

fn place(out: &mut String, t: &Terminal, at: &Location, source: Option<&str>) {
    let column = if at.column > 0 { format!(":{}", at.column) } else { String::new() };
    let _ = writeln!(out, "  {} {}:{}{column}", t.paint(Style::Blue, "-->"), at.file, at.line);
    let Some(line) = source.and_then(|s| s.lines().nth(at.line.saturating_sub(1))) else { return };
    let number = at.line.to_string();
    let margin = " ".repeat(number.len());
    let bar = t.paint(Style::Blue, "|");
    let _ = writeln!(out, " {margin} {bar}");
    let _ = writeln!(out, " {} {bar} {}", t.paint(Style::Blue, &number), printable(line));
    if at.column > 0 {
        let (before, marked) = span(line, at.column);
        let _ = writeln!(out, " {margin} {bar} {}{}", " ".repeat(before), t.paint(Style::Red, &"^".repeat(marked)));
    }
}

/// How many columns lie before the mark, and how long the mark is: a word, a quoted text, or one character.
fn span(line: &str, column: usize) -> (usize, usize) {
    let before = column.saturating_sub(1).min(line.chars().count());
    let mut rest = line.chars().skip(before).peekable();
    let len = match rest.peek() {
        Some('"') => {
            rest.next();
            let inside = rest.by_ref().take_while(|c| *c != '"').count();
            inside + 2
        }
        Some(c) if c.is_alphanumeric() || *c == '_' => rest.take_while(|c| c.is_alphanumeric() || "_-".contains(*c)).count(),
        _ => 1,
    };
    (before, len.min(line.chars().count().saturating_sub(before)).max(1))
}

/// The facts that help a person: what differs, and the end of what a command printed.
fn facts(out: &mut String, e: &Error) {
    if e.code == Code::MISMATCH {
        for key in ["recorded", "now"] {
            if let Some(v) = e.details.get(key) {
                let _ = writeln!(out, "   {key:<9} {v}");
            }
        }
    }
    for l in said(e) {
        let _ = writeln!(out, "   {l}");
    }
}

/// The end of what a command printed before it failed, at most ten lines.
pub fn said(e: &Error) -> Vec<String> {
    let said = ["stderr", "stdout"].into_iter().find_map(|k| e.details.get(k).filter(|v| !v.trim().is_empty()));
    let lines: Vec<&str> = said.map(|s| s.trim_end().lines().collect()).unwrap_or_default();
    let from = lines.len().saturating_sub(10);
    let before = (from > 0).then(|| format!("… {from} lines before"));
    before.into_iter().chain(lines.iter().skip(from).map(|l| printable(l))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_of_the_contract() {
        use Kind::*;
        let all = [
            (Failed, 1),
            (Usage, 2),
            (Check, 3),
            (Unreachable, 4),
            (Paused, 5),
            (Locked, 7),
            (Audit, 8),
            (InDoubt, 9),
            (Interrupted, 130),
            (Mismatch, 1),
            (Store, 1),
            (RollBack, 1),
            (Internal, 1),
        ];
        for (kind, status) in all {
            assert_eq!(exit_status(kind, false), status, "{kind:?}");
        }
        assert_eq!((exit_status(Check, true), exit_status(Unreachable, true)), (1, 1), "something was touched");
    }

    #[test]
    fn messages() {
        let at = Location { file: "runbooks/x.rhai".into(), line: 2, column: 5 };
        let located = Error::new(Code::UNDEFINED_VARIABLE, "variable \"öld\" is not defined").at(at).hint("did you mean \"old\"?");
        let command = Error::new(Code::COMMAND_FAILED, "host(\"old\").run(\"make\") ended with status 2")
            .host("old")
            .detail("stderr", (1..14).map(|i| format!("line {i}\x1b[1m\n")).collect::<String>());
        let mismatch = Error::new(Code::MISMATCH, "this run no longer matches its runbook")
            .detail("recorded", "zone(\"e\").point(\"shop\")")
            .detail("now", "zone(\"e\").point(\"www\")")
            .at(Location { file: "gone.rhai".into(), line: 41, column: 0 });
        let f = Failure::from(vec![located, command, mismatch]).source("runbooks/x.rhai", "let old = 1;\nlet x = öld + 1;\n");
        insta::assert_snapshot!(f.text(&Terminal::plain()));
        insta::assert_snapshot!(serde_json::to_string_pretty(&f.json()).unwrap());
    }

    #[test]
    fn marks_cover_the_word() {
        assert_eq!(span("abc = 1", 1), (0, 3));
        assert_eq!(span("x = \"a b\"", 5), (4, 5));
        assert_eq!(span("x", 9), (1, 1));
        assert_eq!(span("", 1), (0, 1));
    }
}
