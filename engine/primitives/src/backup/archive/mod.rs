//! Plain archives: a folder a snapshot, in a folder of a host, with nothing in it that `tar` and `sha256sum` cannot read.
//!
//! ```text
//! backups/20261121-040506.old.<action id>/archive.tar.gz    made by GNU tar and gzip on the source host
//!                                        /SHA256SUMS       for `sha256sum -c` after `tar xzf`
//!                                        /snapshot.json    what it is; written last
//! backups/.new.<action id>/                                a snapshot in the making, renamed when it is proven complete
//! ```
//!
//! `take.rs` makes snapshots, `check.rs` verifies, `restore.rs` restores. The controller only passes data on, with bounded memory.

use async_trait::async_trait;
use runbook_core::cancel::Cancel;
use runbook_core::inventory::Resource;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::repository::{Plan, Repository, Restored, Snapshot};
use crate::ssh::{Done, Exec, Session, connect, quote};

mod check;
mod pipe;
mod restore;
mod take;

/// A repository of plain archives.
pub struct Archive {
    name: String,
    host: String,
    path: String,
}

/// A path that no tool takes for an option.
fn safe(path: &str) -> String {
    if path.starts_with('-') { format!("./{path}") } else { path.to_string() }
}

impl Archive {
    /// Reads the settings `host` and `path`.
    ///
    /// # Errors
    /// `RB0114` when one is missing.
    pub fn new(r: &Resource) -> Result<Self> {
        let path = safe(r.need("path")?.trim_end_matches('/'));
        Ok(Archive { name: r.name.clone(), host: r.need("host")?.to_string(), path: if path.is_empty() { "/".into() } else { path } })
    }

    async fn session(&self, cx: &Cx) -> Result<Session> {
        connect(cx, &self.host).await
    }

    /// A folder or file of the repository, quoted for its host.
    fn at(&self, below: &str) -> String {
        quote(&format!("{}/{below}", self.path))
    }

    async fn run(&self, cx: &Cx, script: String) -> Result<Done> {
        self.session(cx).await?.exec(cx, Exec::new(format!("LC_ALL=C; export LC_ALL\n{script}"))).await
    }

    fn error(&self, code: Code, message: impl Into<String>) -> Error {
        Error::new(code, message).host(&self.host)
    }

    /// Removes a folder that an action has left, whatever has happened to the action.
    async fn remove_quietly(&self, cx: &Cx, host: &str, folder: &str, sudo: bool) {
        // The action's own cancellation must not keep it from cleaning up.
        let cx = Cx { cancel: Cancel::default(), ..cx.clone() };
        let script = format!("chmod -R u+rwX {folder} 2>/dev/null; rm -rf {folder}");
        let clean = async { connect(&cx, host).await?.exec(&cx, Exec { sudo, ..Exec::new(script) }).await };
        let done = tokio::time::timeout(std::time::Duration::from_secs(15), clean).await;
        if !matches!(done, Ok(Ok(Done { status: 0, .. }))) {
            tracing::warn!(host, folder, "a temporary folder of a backup could not be removed");
        }
    }

    fn parse(&self, line: &str) -> Result<Snapshot> {
        serde_json::from_str(line).map_err(|e| {
            self.error(Code::BACKUP_DAMAGED, format!("a snapshot.json in {} cannot be read: {e}", self.path))
                .hint("the archive beside it may still be sound: check it by hand with tar and sha256sum -c")
        })
    }
}

/// The end of what a command said to standard error, without tar's remarks, in one line.
fn said(stderr: &str) -> String {
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
fn hint_for(why: &str) -> &'static str {
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

#[async_trait]
impl Repository for Archive {
    async fn snapshot(&self, cx: &Cx, plan: &Plan) -> Result<(Snapshot, Vec<String>)> {
        self.take(cx, plan).await
    }

    async fn made_by_action(&self, cx: &Cx) -> Result<Option<Snapshot>> {
        let action = &cx.action_id;
        let script = format!(
            "rm -rf {new}\nfor f in {root}/*.{action}/snapshot.json; do if [ -e \"$f\" ]; then cat \"$f\"; fi; done",
            new = self.at(&format!(".new.{action}")),
            root = quote(&self.path),
        );
        let done = self.run(cx, script).await?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        if done.status != 0 {
            let why = said(&String::from_utf8_lossy(&done.stderr));
            return Err(self
                .error(Code::BACKUP_SNAPSHOT, format!("the repository \"{}\" cannot be read: {why}", self.name))
                .hint(hint_for(&why)));
        }
        text.lines().next().map(|l| self.parse(l)).transpose()
    }

    async fn list(&self, cx: &Cx) -> Result<Vec<Snapshot>> {
        let script = format!("for f in {}/*/snapshot.json; do if [ -e \"$f\" ]; then cat \"$f\"; fi; done", quote(&self.path));
        let done = self.run(cx, script).await?;
        let mut all = Vec::new();
        for line in String::from_utf8_lossy(&done.stdout).lines().filter(|l| !l.trim().is_empty()) {
            match self.parse(line) {
                Ok(s) => all.push(s),
                // One that is damaged must not hide the others.
                Err(e) => cx.message(format!("left out of the list: {}", e.message)),
            }
        }
        all.sort_by(|a, b| a.time.cmp(&b.time).then_with(|| a.id.cmp(&b.id)));
        Ok(all)
    }

    async fn get(&self, cx: &Cx, id: &str) -> Result<Snapshot> {
        let missing = || {
            self.error(Code::BACKUP_MISSING, format!("the repository \"{}\" has no snapshot {id:?}", self.name))
                .hint(format!("see what there is: backup(\"{}\").list()", self.name))
        };
        if id.is_empty() || id.starts_with('.') || id.contains(['/', '\0', '\n']) {
            return Err(missing());
        }
        let file = self.at(&format!("{id}/snapshot.json"));
        let done = self.run(cx, format!("if [ -e {file} ]; then cat {file}; else exit 66; fi")).await?;
        match done.status {
            0 => {}
            66 => return Err(missing()),
            _ => {
                return Err(self.error(
                    Code::BACKUP_DAMAGED,
                    format!("the snapshot {id} cannot be read: {}", said(&String::from_utf8_lossy(&done.stderr))),
                ));
            }
        }
        self.parse(String::from_utf8_lossy(&done.stdout).trim())
    }

    async fn verify(&self, cx: &Cx, snapshot: &Snapshot) -> Result<()> {
        self.check(cx, snapshot).await
    }

    async fn restore_test(&self, cx: &Cx, snapshot: &Snapshot, on: Option<&str>, compare: bool) -> Result<Restored> {
        self.try_restore(cx, snapshot, on.unwrap_or(&self.host), compare).await
    }

    async fn restore(&self, cx: &Cx, snapshot: &Snapshot, host: &str, dest: &str, sudo: bool) -> Result<bool> {
        self.bring_back(cx, snapshot, host, dest, sudo).await
    }
}
