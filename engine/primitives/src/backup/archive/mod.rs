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
use runbook_core::inventory::Resource;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::on_host::{hint_for, safe, said};
use super::repository::{Copied, Made, Plan, Repository, Restored, Snapshot};
use crate::ssh::{Done, Exec, Session, connect, quote};

mod check;
mod restore;
mod take;

/// A repository of plain archives.
pub struct Archive {
    name: String,
    host: String,
    path: String,
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

    /// The snapshot of the action, when there is one; what it left unfinished is removed.
    async fn of_action(&self, cx: &Cx) -> Result<Option<Snapshot>> {
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

    fn parse(&self, line: &str) -> Result<Snapshot> {
        serde_json::from_str(line).map_err(|e| {
            self.error(Code::BACKUP_DAMAGED, format!("a snapshot.json in {} cannot be read: {e}", self.path))
                .hint("the archive beside it may still be sound: check it by hand with tar and sha256sum -c")
        })
    }
}

#[async_trait]
impl Repository for Archive {
    async fn snapshot(&self, cx: &Cx, plan: &Plan) -> Result<(Snapshot, Vec<String>)> {
        self.take(cx, plan).await
    }

    async fn init(&self, cx: &Cx) -> Result<bool> {
        let root = quote(&self.path);
        let done = self.run(cx, format!("umask 077; if [ -d {root} ]; then exit 64; fi; mkdir -p {root}")).await?;
        match done.status {
            64 => Ok(false),
            0 => Ok(true),
            _ => {
                let why = said(&String::from_utf8_lossy(&done.stderr));
                Err(self
                    .error(Code::BACKUP_REPOSITORY, format!("the repository \"{}\" cannot be made: {why}", self.name))
                    .hint(hint_for(&why)))
            }
        }
    }

    async fn made(&self, cx: &Cx, _plan: &Plan) -> Result<Made> {
        Ok(self.of_action(cx).await?.map_or(Made::No, |s| Made::Yes(Box::new(s))))
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

    async fn remove(&self, cx: &Cx, snapshots: &[Snapshot]) -> Result<()> {
        let ids: String = snapshots.iter().map(|s| format!(" {}", quote(&s.id))).collect();
        // Renamed first: half of one is never taken for a snapshot. What an earlier try has renamed goes as well.
        let script = format!(
            "cd {root} 2>/dev/null || exit 0\nfor id in{ids}; do if [ -e \"./$id\" ]; then mv -T \"./$id\" \".gone.$id\" || exit; fi; done\nrm -rf .gone.*",
            root = quote(&self.path)
        );
        let done = self.run(cx, script).await?;
        if done.status == 0 {
            return Ok(());
        }
        let why = said(&String::from_utf8_lossy(&done.stderr));
        Err(self.error(Code::BACKUP_REPOSITORY, format!("snapshots of \"{}\" cannot be removed: {why}", self.name)).hint(hint_for(&why)))
    }

    async fn check(&self, cx: &Cx, _percent: u8) -> Result<()> {
        // Each archive stands for itself, and is read from its beginning to its end or not at all.
        for s in self.list(cx).await? {
            self.verify(cx, &s).await?;
        }
        Ok(())
    }

    async fn unlock(&self, _cx: &Cx, _force: bool) -> Result<()> {
        // There are none: a snapshot in the making has a folder of its own.
        Ok(())
    }

    async fn copy_to(&self, _cx: &Cx, _snapshots: &[Snapshot], to: &Resource) -> Result<Copied> {
        Err(self
            .error(
                Code::BACKUP_REPOSITORY,
                format!("snapshots of \"{}\" cannot be copied into \"{}\": it keeps plain archives", self.name, to.name),
            )
            .hint("take a second snapshot into that repository, or copy the folders of its snapshots as files"))
    }

    async fn copied(&self, _cx: &Cx, _snapshots: &[Snapshot], _to: &Resource) -> Result<Made<Copied>> {
        Ok(Made::No)
    }
}
