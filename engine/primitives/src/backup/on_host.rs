//! What drivers of repositories do on hosts, and what they make of what is said there.

use runbook_core::cancel::Cancel;
use runbook_core::primitive::Cx;

use crate::ssh::{Done, Exec, connect};

/// A path that no tool takes for an option.
pub(super) fn safe(path: &str) -> String {
    if path.starts_with('-') { format!("./{path}") } else { path.to_string() }
}

/// Removes a folder that an action has left, whatever has happened to the action.
pub(super) async fn remove_quietly(cx: &Cx, host: &str, folder: &str, sudo: bool) {
    // The action's own cancellation must not keep it from cleaning up.
    let cx = Cx { cancel: Cancel::default(), ..cx.clone() };
    let script = format!("chmod -R u+rwX {folder} 2>/dev/null; rm -rf {folder}");
    let clean = async { connect(&cx, host).await?.exec(&cx, Exec { sudo, ..Exec::new(script) }).await };
    let done = tokio::time::timeout(std::time::Duration::from_secs(15), clean).await;
    if !matches!(done, Ok(Ok(Done { status: 0, .. }))) {
        tracing::warn!(host, folder, "a temporary folder of a backup could not be removed");
    }
}

/// The end of what a command said to standard error, without tar's remarks, in one line.
pub(super) fn said(stderr: &str) -> String {
    let lines: Vec<&str> = stderr
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.contains("Removing leading") && !l.contains("Exiting with failure status"))
        .collect();
    let mut text = lines.get(lines.len().saturating_sub(5)..).unwrap_or_default().join("; ");
    if text.chars().count() > 600 {
        text = text.chars().take(600).collect::<String>() + "…";
    }
    if text.is_empty() { "it gave no reason".into() } else { text }
}

/// What to do about a failed write or read.
pub(super) fn hint_for(why: &str) -> &'static str {
    if why.contains("No space left") || why.contains("quota") {
        "free space there, or move the repository; nothing half was left behind"
    } else if why.contains("Permission denied") || why.contains("Operation not permitted") {
        "give the login these rights, or say #{ sudo: true }"
    } else if why.contains("No such file") {
        "check the paths: they are relative to the login folder, or absolute"
    } else if why.contains("not found") {
        "install tar, gzip, coreutils and findutils on that host"
    } else {
        "mend what is said there, then resume"
    }
}

/// How many files an error names.
const NAMED: usize = 10;

/// Names a few of many.
pub(super) struct Faults {
    named: Vec<String>,
    count: u64,
}

impl Faults {
    pub(super) fn new() -> Self {
        Faults { named: vec![], count: 0 }
    }

    pub(super) fn add(&mut self, what: impl FnOnce() -> String) {
        self.count += 1;
        if self.named.len() < NAMED {
            self.named.push(what());
        }
    }

    pub(super) fn show(&self) -> Option<String> {
        let more = self.count - self.named.len() as u64;
        let list = self.named.join("; ");
        match (self.count, more) {
            (0, _) => None,
            (_, 0) => Some(list),
            _ => Some(format!("{list}; and {more} more")),
        }
    }
}

/// The lines of `sha256sum -c --quiet` that name files which are not right.
pub(super) fn differences(stdout: &str) -> Faults {
    let mut faults = Faults::new();
    for l in stdout.lines().filter(|l| !l.trim().is_empty()) {
        faults.add(|| match (l.strip_suffix(": FAILED"), l.strip_suffix(": FAILED open or read")) {
            (Some(name), _) => format!("{name} differs"),
            (_, Some(name)) => format!("{name} is missing or cannot be read"),
            _ => l.to_string(),
        });
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sha256sum_complains_of_is_named() {
        assert_eq!(differences("").show(), None);
        let f = differences("a b: FAILED\nc: FAILED open or read\n").show();
        assert_eq!(f.as_deref(), Some("a b differs; c is missing or cannot be read"));
        let many: String = (0..12).map(|i| format!("{i}: FAILED\n")).collect();
        assert!(differences(&many).show().unwrap().ends_with("9 differs; and 2 more"));
    }
}
