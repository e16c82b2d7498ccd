//! Which entries are about a host: for `log --host` and `show --host`.

use std::collections::HashSet;

use runbook_core::exec::escape;
use runbook_core::journal::Body;

use super::lines::path_mut;

/// Tells, entry by entry in their order, what belongs to a host: what its branch of an `each` or `parallel` did, steps that say it by `on`,
/// and calls of its methods.
pub struct OfHost {
    branch: String,
    name: String,
    call: String,
    /// Steps and calls that are the host's: what lies below is too.
    paths: HashSet<String>,
}

impl OfHost {
    /// For the host of this name.
    pub fn new(name: &str) -> Self {
        OfHost { branch: escape(name), name: name.into(), call: format!("host({name:?})."), paths: HashSet::new() }
    }

    /// The path of an entry that is about the host.
    pub fn path(&mut self, body: &Body) -> Option<String> {
        let path = path_mut(&mut body.clone())?.clone();
        let said = match body {
            Body::StepStarted { on: Some(h), .. } | Body::Intent { on: Some(h), .. } => *h == self.name,
            Body::Outcome { call: Some(c), .. } => c.starts_with(&self.call),
            _ => false,
        };
        if said {
            self.paths.insert(bare(&path).to_string());
            return Some(path);
        }
        (self.in_branch(&path) || self.below(&path)).then_some(path)
    }

    fn in_branch(&self, path: &str) -> bool {
        let parts: Vec<&str> = path.split('/').collect();
        parts.windows(2).any(|w| matches!(w, [all, name] if all.starts_with('#') && *name == self.branch))
    }

    fn below(&self, path: &str) -> bool {
        let ends = path.match_indices('/').map(|(i, _)| i).chain([path.len()]);
        ends.into_iter().any(|i| path.get(..i).is_some_and(|p| self.paths.contains(bare(p))))
    }
}

/// A path without the attempt at its end.
fn bare(path: &str) -> &str {
    path.rsplit_once('@').filter(|(_, n)| n.bytes().all(|b| b.is_ascii_digit())).map_or(path, |(p, _)| p)
}

#[cfg(test)]
mod tests {
    use super::*;
    use runbook_core::journal::{Status, UndoKind};

    #[test]
    fn a_hosts_entries_are_those_of_its_branch_its_steps_and_its_calls() {
        let mut of = OfHost::new("web1");
        let step = |path: &str, on: Option<&str>| Body::StepStarted {
            path: path.into(),
            attempt: 1,
            undo: UndoKind::None,
            at: None,
            on: on.map(str::to_string),
        };
        let log = |path: &str| Body::Log { path: path.into(), level: "info".into(), message: String::new() };
        assert!(of.path(&step("#0/web1/Copy", None)).is_some());
        assert!(of.path(&step("#0/web11/Copy", None)).is_none());
        assert!(of.path(&step("web1", None)).is_none(), "a step that is called like a host is not the host");
        assert!(of.path(&log("P/Install/#1")).is_none());
        assert!(of.path(&step("P/Install", Some("web1"))).is_some());
        assert!(of.path(&log("P/Install@2/#1")).is_some());
        assert!(of.path(&log("P/Install more/#1")).is_none());
        assert!(of.path(&Body::BranchEnded { path: "P@2/#4/web1".into(), status: Status::Ok, ms: 1, error: None }).is_some());
    }
}
