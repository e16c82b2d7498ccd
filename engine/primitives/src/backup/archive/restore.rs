//! Restoring, as a test and for good: `tar` and `sha256sum -c`, as a person would do it by hand.

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::Archive;
use crate::backup::on_host::{differences, hint_for, remove_quietly, safe, said};
use crate::backup::pipe::{Piped, pipe};
use crate::backup::repository::{Restored, Snapshot};
use crate::ssh::{Exec, connect, quote};

impl Archive {
    fn failed(&self, s: &Snapshot, host: &str, what: &str, why: &str) -> Error {
        let hint = match hint_for(why) {
            "mend what is said there, then resume" => "verify the snapshot, and see the space and the rights on this host",
            other => other,
        };
        Error::new(Code::BACKUP_RESTORE, format!("{what} of the snapshot {} failed: {why}", s.id)).host(host).hint(hint)
    }

    /// Streams a file of the snapshot into a command on a host.
    async fn feed(&self, cx: &Cx, s: &Snapshot, file: &str, host: &str, exec: Exec) -> Result<Piped> {
        let from = self.session(cx).await?.open(cx, Exec::new(format!("exec cat {}", self.at(&format!("{}/{file}", s.id))))).await?;
        let to = connect(cx, host).await?.open(cx, exec).await?;
        let total = (file == "archive.tar.gz").then_some(s.archive_bytes);
        pipe(cx, &format!("reading {file} of the snapshot"), total, from, to).await
    }

    /// Streams the archive into `tar` on a host.
    async fn extract(&self, cx: &Cx, s: &Snapshot, host: &str, folder: &str, sudo: bool, what: &str) -> Result<()> {
        let script =
            format!("LC_ALL=C; export LC_ALL; umask 077; exec tar --extract --gzip --file=- --preserve-permissions --directory={folder}");
        let done = self.feed(cx, s, "archive.tar.gz", host, Exec { sudo, ..Exec::new(script) }).await?;
        if done.to.0 != 0 {
            return Err(self.failed(s, host, what, &said(&done.to.1)));
        }
        match done.from {
            Some((0, _)) => Ok(()),
            Some((_, stderr)) => Err(self.failed(s, &self.host, what, &said(&stderr))),
            None => Err(self.failed(s, host, what, "tar ended before the archive did")),
        }
    }

    /// Checks a folder against the manifest; what differs.
    async fn differs(&self, cx: &Cx, s: &Snapshot, host: &str, folder: &str, sudo: bool) -> Result<Option<String>> {
        if s.files == 0 {
            return Ok(None);
        }
        let script = format!("LC_ALL=C; export LC_ALL; cd {folder} && exec sha256sum -c --quiet --strict -");
        let done = self.feed(cx, s, "SHA256SUMS", host, Exec { sudo, ..Exec::new(script) }).await?;
        if let Some((status, stderr)) = &done.from
            && *status != 0
        {
            return Err(self.failed(s, &self.host, "reading the manifest", &said(stderr)));
        }
        if done.to.0 == 0 {
            return Ok(None);
        }
        Ok(Some(differences(&done.said).show().unwrap_or_else(|| said(&done.to.1))))
    }

    pub(super) async fn try_restore(&self, cx: &Cx, s: &Snapshot, host: &str, compare: bool) -> Result<Restored> {
        // Named by the action, so that what a crash left is found and removed by the next attempt.
        let folder = if host == self.host {
            self.at(&format!(".restore.{}", cx.action_id))
        } else {
            format!("\"${{TMPDIR:-/tmp}}\"/runbook-restore.{}", cx.action_id)
        };
        let tested = self.test_in(cx, s, host, &folder).await;
        remove_quietly(cx, host, &folder, false).await;
        let restored = tested?;
        if compare {
            let root = if s.absolute() { "/" } else { "." };
            if let Some(list) = self.differs(cx, s, &s.host, root, false).await? {
                return Err(Error::new(
                    Code::BACKUP_RESTORE,
                    format!("the snapshot {} restores, but is not what is on the host now: {list}", s.id),
                )
                .host(&s.host)
                .hint("take a new snapshot if these files matter"));
            }
        }
        Ok(restored)
    }

    async fn test_in(&self, cx: &Cx, s: &Snapshot, host: &str, folder: &str) -> Result<Restored> {
        let what = "the restore test";
        let session = connect(cx, host).await?;
        let prepare = format!("umask 077; chmod -R u+rwX {folder} 2>/dev/null; rm -rf {folder}; mkdir {folder}");
        let done = session.exec(cx, Exec::new(prepare)).await?;
        if done.status != 0 {
            return Err(self.failed(s, host, what, &said(&String::from_utf8_lossy(&done.stderr))));
        }
        if host == self.host {
            // Nothing needs to travel.
            let archive = self.at(&format!("{}/archive.tar.gz", s.id));
            let script = format!("LC_ALL=C; export LC_ALL; umask 077; exec tar --extract --gzip --file={archive} --directory={folder}");
            let done = session.exec(cx, Exec::new(script)).await?;
            if done.status != 0 {
                return Err(self.failed(s, host, what, &said(&String::from_utf8_lossy(&done.stderr))));
            }
        } else {
            self.extract(cx, s, host, folder, false, what).await?;
        }
        if let Some(list) = self.differs(cx, s, host, folder, false).await? {
            return Err(self.failed(s, host, what, &list));
        }
        // The manifest has named no file too many or too few.
        let count = session.exec(cx, Exec::new(format!("find {folder} -type f -printf x | wc -c"))).await?;
        let count: Option<u64> = String::from_utf8_lossy(&count.stdout).trim().parse().ok();
        if count != Some(s.files + s.links) {
            let is = count.map_or_else(|| "an unknown number of".into(), |n| n.to_string());
            return Err(self.failed(s, host, what, &format!("{is} files came back, and {} were taken", s.files + s.links)));
        }
        Ok(Restored { files: s.files + s.links, bytes: s.bytes })
    }

    pub(super) async fn bring_back(&self, cx: &Cx, s: &Snapshot, host: &str, dest: &str, sudo: bool) -> Result<bool> {
        let folder = quote(&safe(if dest.is_empty() { "." } else { dest }));
        let session = connect(cx, host).await?;
        let there = session.exec(cx, Exec { sudo, ..Exec::new(format!("[ -d {folder} ]")) }).await?.status == 0;
        // Contents first, which costs little; then modes, times, links and folders.
        if there && self.differs(cx, s, host, &folder, sudo).await?.is_none() {
            let script = format!("LC_ALL=C; export LC_ALL; exec tar --diff --gzip --file=- --directory={folder}");
            if self.feed(cx, s, "archive.tar.gz", host, Exec { sudo, ..Exec::new(script) }).await?.to.0 == 0 {
                return Ok(false);
            }
        }
        let what = "the restore";
        let made = session.exec(cx, Exec { sudo, ..Exec::new(format!("mkdir -p {folder}")) }).await?;
        if made.status != 0 {
            return Err(self.failed(s, host, what, &said(&String::from_utf8_lossy(&made.stderr))));
        }
        self.extract(cx, s, host, &folder, sudo, what).await?;
        match self.differs(cx, s, host, &folder, sudo).await? {
            None => Ok(true),
            Some(list) => Err(self.failed(s, host, what, &list)),
        }
    }
}
