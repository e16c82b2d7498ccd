//! What a host pipes into restic, and back.

use async_trait::async_trait;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::{Restic, TAG, command};
use crate::backup::database::streams::{Keep, Streams};
use crate::backup::repository::Snapshot;
use crate::backup::tool::Kept;
use crate::ssh::{Done, Exec, quote};

#[async_trait]
impl Streams for Kept<Restic> {
    fn keeper(&self, cx: &Cx, keep: &Keep<'_>, script: &str) -> Result<Exec> {
        if self.local() && keep.host != self.host {
            return Err(Error::new(
                Code::BACKUP_SNAPSHOT,
                format!("the repository \"{}\" is a folder on {} and takes snapshots of that host alone", self.name, self.host),
            )
            .host(keep.host)
            .hint("give it as the database's host reaches it: sftp:USER@HOST:/PATH, s3:…, rest:…"));
        }
        for t in keep.tags {
            if t.is_empty() || t.contains([',', '\n', '\0']) || t.starts_with(TAG) {
                return Err(Error::new(Code::BACKUP_SNAPSHOT, format!("{t:?} is not a tag of restic")).hint("use words without commas"));
            }
        }
        let tags: String = keep.tags.iter().map(|t| format!(" --tag={}", quote(t))).collect();
        let text = format!(
            "RESTIC_PROGRESS_FPS=0.5\nexport RESTIC_PROGRESS_FPS\n\
             keep() {{ exec {words} backup --json --stdin --stdin-filename={name} --tag={tag}{tags} --host={host}; }}\n\
             found() {{ {words} snapshots --no-lock --json --tag={tag} 2>/dev/null | tr ',{{}}' '\\n\\n\\n' | sed -n 's/^\"id\":\"\\([0-9a-f]*\\)\"$/\\1/p'; }}\n\
             drop() {{ for pause in 1 2 3 4 5; do {words} forget \"$1\" >/dev/null 2>&1 && return; sleep \"$pause\"; done; \
             echo \"runbook: the incomplete snapshot $1 could not be removed: restic forget $1\" >&2; }}\n{script}",
            words = command(&self.settings),
            name = quote(keep.name),
            tag = quote(&format!("{TAG}{}", keep.action)),
            host = quote(keep.host),
        );
        Ok(Exec { live: true, ..self.exec(cx, &text, keep.sudo)? })
    }

    fn giver(&self, cx: &Cx, snapshot: &Snapshot, script: &str) -> Result<Exec> {
        let path = snapshot.paths.first().map_or("", String::as_str);
        self.exec(
            cx,
            &format!(
                "give() {{ exec {} dump --no-lock --no-cache {} {}; }}\n{script}",
                command(&self.settings),
                quote(&snapshot.id),
                quote(path)
            ),
            false,
        )
    }

    async fn kept(&self, cx: &Cx, host: &str, id: &str) -> Result<Snapshot> {
        let mut s = self.named(cx, host, id).await?.ok_or_else(|| {
            Error::new(Code::BACKUP_SNAPSHOT, format!("restic has made the snapshot {id}, which is not in the repository any more"))
                .host(host)
        })?;
        self.count(cx, host, &mut s).await?;
        Ok(s)
    }

    async fn of_action(&self, cx: &Cx, host: &str) -> Result<Vec<Snapshot>> {
        let action = cx.action_id.to_string();
        Ok(self.snapshots(cx, host).await?.into_iter().filter(|s| s.action == action).collect())
    }

    async fn forget(&self, cx: &Cx, host: &str, snapshot: &Snapshot) -> Result<()> {
        let script = format!("restic unlock >/dev/null 2>&1\nrestic forget {}", quote(&snapshot.id));
        self.must(cx, host, &script, Code::BACKUP_REPOSITORY, "a snapshot that is not whole cannot be removed").await.map(drop)
    }

    fn failed(&self, host: &str, code: Code, what: &str, done: &Done) -> Error {
        self.fault(host, code, what, done)
    }

    fn host(&self) -> &str {
        &self.host
    }
}
