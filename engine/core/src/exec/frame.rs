//! Where in the run the script is: the path under which actions, steps and branches are recorded.
//!
//! `Cutover/Smoke test@2/#0` is the first action of the second attempt of a step. Names are escaped so that a path can be taken apart.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::cancel::Cancel;
use crate::error::{Code, Error, Result};
use crate::journal::Body;

/// A downtime window as those inside it see it.
#[derive(Debug)]
pub struct Window {
    /// Its path.
    pub path: String,
    /// When it opened, also across crashes.
    pub opened: Timestamp,
    /// Its budget.
    pub budget: Option<std::time::Duration>,
    /// `ask`, `rollback` or `continue`.
    pub on_overrun: String,
    /// Whether it was decided to go on over the budget.
    pub(super) overrun: Mutex<bool>,
}

/// A place in the run. Children are made for phases, attempts of steps, branches and undo blocks.
pub struct Frame {
    /// The path; empty at the top.
    pub path: Arc<str>,
    next: AtomicU32,
    names: Mutex<HashSet<String>>,
    /// Whether this is inside an undo block.
    pub undo: bool,
    /// The window around it.
    pub window: Option<Arc<Window>>,
    /// Cancelled when the timeout of a step around it has passed.
    pub(super) timeout: Option<(Cancel, std::time::Duration)>,
    /// Inside the condition of a wait: recorded reads are held back until the condition is true.
    pub(super) held: Option<Arc<Mutex<Vec<Body>>>>,
    /// Whether this is inside a step (a failed step can be tried again; a failed action outside one is tried again itself).
    pub(super) in_step: bool,
}

/// Escapes a name for a path: `/`, `@`, `#` and `%` as `%2F` and so on.
#[must_use]
pub fn escape(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '%' => out.push_str("%25"),
            '/' => out.push_str("%2F"),
            '@' => out.push_str("%40"),
            '#' => out.push_str("%23"),
            c => out.push(c),
        }
    }
    out
}

/// Takes back [`escape`].
#[must_use]
pub fn unescape(name: &str) -> String {
    name.replace("%2F", "/").replace("%40", "@").replace("%23", "#").replace("%25", "%")
}

/// Takes the attempts out of a path: what is the same place in all attempts.
pub(super) fn without_attempts(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').map(|p| p.rsplit_once('@').map_or(p, |(name, _)| name)).collect();
    parts.join("/")
}

impl Frame {
    /// The top of a run.
    #[must_use]
    pub fn root() -> Arc<Frame> {
        Arc::new(Frame {
            path: "".into(),
            next: AtomicU32::new(0),
            names: Mutex::default(),
            undo: false,
            window: None,
            timeout: None,
            held: None,
            in_step: false,
        })
    }

    /// A place below this one with the same surroundings.
    pub(super) fn below(&self, path: String) -> Frame {
        Frame {
            path: path.into(),
            next: AtomicU32::new(0),
            names: Mutex::default(),
            undo: self.undo,
            window: self.window.clone(),
            timeout: self.timeout.clone(),
            held: self.held.clone(),
            in_step: self.in_step,
        }
    }

    /// The path of the next thing that has no name here, such as an action: `…/#4`.
    pub(super) fn ordinal(&self) -> String {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        if self.path.is_empty() { format!("#{n}") } else { format!("{}/#{n}", self.path) }
    }

    /// The path of a named thing here.
    ///
    /// # Errors
    /// `RB0019` when the name was given here before.
    pub(super) fn named(&self, name: &str) -> Result<String> {
        let escaped = escape(name);
        if !self.names.lock().insert(escaped.clone()) {
            let place = if self.path.is_empty() { "the runbook".to_string() } else { format!("\"{}\"", self.path) };
            return Err(Error::new(Code::STEP_DUPLICATE, format!("there are two steps named \"{name}\" in {place}"))
                .hint("names must be unique within their parent; in a loop, build the name from the loop's value"));
        }
        Ok(if self.path.is_empty() { escaped } else { format!("{}/{escaped}", self.path) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_can_be_taken_apart() {
        let root = Frame::root();
        assert_eq!(root.ordinal(), "#0");
        assert_eq!(root.named("a/b@2").unwrap(), "a%2Fb%402");
        assert_eq!(root.named("a/b@2").unwrap_err().code, Code::STEP_DUPLICATE);
        assert_eq!(without_attempts("Cutover@2/Smoke test@3/#0"), "Cutover/Smoke test/#0");
    }
}
