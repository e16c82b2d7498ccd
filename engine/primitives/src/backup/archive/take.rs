//! Taking a snapshot: `tar` on the source host, through the controller, into the repository; proven, then renamed into place.

use flate2::write::MultiGzDecoder;
use runbook_core::digest::hex;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use sha2::{Digest, Sha256};
use std::io::Write as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Archive;
use crate::backup::manifest;
use crate::backup::on_host::{hint_for, remove_quietly, safe, said};
use crate::backup::pipe::PIECE;
use crate::backup::repository::{Plan, Snapshot};
use crate::ssh::{Exec, connect, quote};
use crate::tar_stream::Hasher;

/// How often a snapshot is taken when files change while they are read.
const ATTEMPTS: u32 = 3;

/// What passed through the controller.
struct Passed {
    archive_sha256: String,
    manifest_sha256: String,
    archive_bytes: u64,
    files: u64,
    links: u64,
    bytes: u64,
    changed: Vec<String>,
}

impl Archive {
    pub(super) async fn take(&self, cx: &Cx, plan: &Plan) -> Result<(Snapshot, Vec<String>)> {
        let script = tar_command(plan)?;
        // Asked again after a lost answer: it may be there already.
        if let Some(done) = self.of_action(cx).await? {
            return Ok((done, vec![]));
        }
        let new = self.at(&format!(".new.{}", cx.action_id));
        let made = self.take_until_still(cx, plan, &script, &new).await;
        if made.is_err() {
            remove_quietly(cx, &self.host, &new, false).await;
        }
        made
    }

    async fn take_until_still(&self, cx: &Cx, plan: &Plan, script: &str, new: &str) -> Result<(Snapshot, Vec<String>)> {
        for attempt in 1.. {
            let time = cx.clock.now();
            let passed = self.pass(cx, plan, script, new).await?;
            if passed.changed.is_empty() || plan.accept_changing {
                return self.finish(cx, plan, time, passed, new).await;
            }
            let names = passed.changed.join("; ");
            if attempt == ATTEMPTS {
                return Err(Error::new(
                    Code::BACKUP_SNAPSHOT,
                    format!("files changed while they were read, {ATTEMPTS} times in a row; nothing was kept: {names}"),
                )
                .host(&plan.host)
                .hint("stop what writes them, exclude them, or keep the snapshot as it is: #{ accept_changing: true }")
                .retryable(true));
            }
            cx.message(format!("taken again, since files changed while they were read: {names}"));
        }
        Err(Error::internal("the loop above does not end"))
    }

    /// One attempt: everything into the folder `new`, with checksums of what passed by.
    async fn pass(&self, cx: &Cx, plan: &Plan, script: &str, new: &str) -> Result<Passed> {
        let (source, repository) = (connect(cx, &plan.host).await?, self.session(cx).await?);
        // What older runs left behind and nobody resumed goes after a week.
        let prepare = format!(
            "umask 077; mkdir -p {root} || exit 1; find {root} -mindepth 1 -maxdepth 1 -name '.new.*' -mtime +7 -exec rm -rf {{}} +\n\
             rm -rf {new}; mkdir {new}",
            root = quote(&self.path)
        );
        let done = self.run(cx, prepare).await?;
        if done.status != 0 {
            return Err(self.cannot_keep(&String::from_utf8_lossy(&done.stderr)));
        }
        let receive = |file: &str| Exec::new(format!("LC_ALL=C; export LC_ALL; umask 077; cat >{new}/{file}"));
        let mut archive = repository.open(cx, receive("archive.tar.gz")).await?;
        let mut sums = repository.open(cx, receive("SHA256SUMS")).await?;
        let mut tar = source.open(cx, Exec { sudo: plan.sudo, ..Exec::new(script) }).await?;
        drop(tar.stdin);

        let mut reader = MultiGzDecoder::new(Hasher::default());
        let (mut archive_hash, mut manifest_hash) = (Sha256::new(), Sha256::new());
        let mut archive_bytes = 0;
        let mut buffer = vec![0; PIECE];
        let mut unreadable = None;
        loop {
            let n = tokio::select! {
                r = tar.stdout.read(&mut buffer) => r.unwrap_or(0),
                () = cx.cancel.cancelled() => return Err(Error::new(Code::ABORTED, "stopped while taking a snapshot").host(&plan.host)),
            };
            if n == 0 {
                break;
            }
            let piece = buffer.get(..n).unwrap_or_default();
            archive_hash.update(piece);
            archive_bytes += n as u64;
            if let Err(e) = reader.write_all(piece).and_then(|()| reader.flush()) {
                unreadable = Some(e);
                break;
            }
            let lines = lines(reader.get_mut());
            manifest_hash.update(&lines);
            let kept = async {
                archive.stdin.write_all(piece).await?;
                sums.stdin.write_all(&lines).await
            };
            let kept = tokio::select! {
                r = kept => r,
                () = cx.cancel.cancelled() => return Err(Error::new(Code::ABORTED, "stopped while taking a snapshot").host(&plan.host)),
            };
            if kept.is_err() {
                // One of the two has ended, and says why; the other ends when its input does.
                let _ = (archive.stdin.shutdown().await, sums.stdin.shutdown().await);
                drop((archive.stdin, sums.stdin));
                let (a, s) = tokio::join!(archive.done, sums.done);
                let (a, s) = (a?, s?);
                return Err(self.cannot_keep(if a.0 != 0 { &a.1 } else { &s.1 }));
            }
            cx.progress(format!("{} files into the snapshot", reader.get_ref().files), reader.get_ref().bytes, None, "bytes");
        }
        if let Some(e) = unreadable {
            return Err(self.source_failed(plan, &e.to_string()));
        }
        let (status, stderr) = tar.done.await?;
        // 1: something changed while it was read; the archive itself is whole.
        if !(0..=1).contains(&status) {
            return Err(self.source_failed(plan, &said(&stderr)));
        }
        reader.try_finish().map_err(|e| self.source_failed(plan, &format!("the archive ended too early: {e}")))?;
        let hasher = reader.get_mut();
        let lines = lines(hasher);
        manifest_hash.update(&lines);
        if !hasher.ended {
            return Err(self.source_failed(plan, "the archive ended too early"));
        }
        let (files, links, bytes) = (hasher.files, hasher.links, hasher.bytes);
        // A failure to write the rest shows in the status below.
        let _ = sums.stdin.write_all(&lines).await;
        let _ = (archive.stdin.shutdown().await, sums.stdin.shutdown().await);
        drop((archive.stdin, sums.stdin));
        let (a, s) = tokio::join!(archive.done, sums.done);
        for (status, stderr) in [a?, s?] {
            if status != 0 {
                return Err(self.cannot_keep(&stderr));
            }
        }
        let changed = if status == 1 { changes(&stderr) } else { vec![] };
        Ok(Passed {
            archive_sha256: hex(&archive_hash.finalize()),
            manifest_sha256: hex(&manifest_hash.finalize()),
            archive_bytes,
            files,
            links,
            bytes,
            changed,
        })
    }

    /// Proves that what lies in the repository is what passed by, then names it.
    async fn finish(&self, cx: &Cx, plan: &Plan, time: jiff::Timestamp, p: Passed, new: &str) -> Result<(Snapshot, Vec<String>)> {
        let source: String = plan.host.chars().map(|c| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '_' }).collect();
        let id = format!("{}.{source}.{}", time.strftime("%Y%m%d-%H%M%S"), cx.action_id);
        let snapshot = Snapshot {
            archive: format!("{}/{id}/archive.tar.gz", self.path),
            id,
            action: cx.action_id.to_string(),
            time,
            host: plan.host.clone(),
            paths: plan.paths.clone(),
            files: p.files,
            links: p.links,
            bytes: p.bytes,
            counted: true,
            sized: true,
            tags: plan.tags.clone(),
            archive_bytes: p.archive_bytes,
            archive_sha256: p.archive_sha256,
            manifest_sha256: p.manifest_sha256,
        };
        let json = serde_json::to_string(&snapshot).map_err(|e| Error::internal(format!("a snapshot cannot be described: {e}")))?;
        let script = format!(
            "umask 077\n( cd {new} || exit 1\n\
             printf '%s  %s\\n' {a} archive.tar.gz {m} SHA256SUMS | sha256sum -c --quiet --strict - >&2 || exit 75\n\
             printf '%s\\n' {json} >snapshot.json || exit 1\n\
             sync archive.tar.gz SHA256SUMS snapshot.json . 2>/dev/null || sync ) || exit\n\
             mv -T {new} {to} || exit 1\n\
             sync {root} 2>/dev/null || sync",
            a = snapshot.archive_sha256,
            m = snapshot.manifest_sha256,
            json = quote(&json),
            to = self.at(&snapshot.id),
            root = quote(&self.path),
        );
        let done = self.run(cx, script).await?;
        match done.status {
            0 => Ok((snapshot, p.changed)),
            75 => Err(self
                .error(Code::BACKUP_SNAPSHOT, "what arrived in the repository is not what was sent; nothing was kept")
                .hint("check the disk of this host")
                .retryable(true)),
            _ => Err(self.cannot_keep(&String::from_utf8_lossy(&done.stderr))),
        }
    }

    fn cannot_keep(&self, stderr: &str) -> Error {
        let why = said(stderr);
        self.error(Code::BACKUP_SNAPSHOT, format!("the repository \"{}\" cannot keep the snapshot: {why}", self.name)).hint(hint_for(&why))
    }

    fn source_failed(&self, plan: &Plan, why: &str) -> Error {
        Error::new(Code::BACKUP_SNAPSHOT, format!("{} cannot be read for a snapshot; nothing was kept: {why}", plan.paths.join(", ")))
            .host(&plan.host)
            .hint(hint_for(why))
    }
}

/// The manifest of what has passed since the last call.
fn lines(hasher: &mut Hasher) -> Vec<u8> {
    hasher.take_entries().iter().filter_map(|e| Some(manifest::line(&e.sum?, &e.name))).flatten().collect()
}

/// What tar says of files that changed or went away, a line each.
fn changes(stderr: &str) -> Vec<String> {
    let told = ["file changed as we read it", "File removed before we read it", "padding with zeros", "file is the archive"];
    let mut lines: Vec<String> =
        stderr.lines().filter(|l| told.iter().any(|t| l.contains(t))).map(|l| l.trim().trim_start_matches("tar: ").to_string()).collect();
    if lines.is_empty() {
        lines.push(said(stderr));
    }
    let more = lines.len().saturating_sub(5);
    lines.truncate(5);
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines
}

/// The command for the source host.
fn tar_command(plan: &Plan) -> Result<String> {
    plan.check()?;
    let exclude: String = plan.exclude.iter().map(|e| format!(" --exclude={}", quote(e))).collect();
    let paths: Vec<String> = plan.paths.iter().map(|p| quote(&safe(p))).collect();
    Ok(format!(
        "LC_ALL=C; export LC_ALL\nexec tar --create --format=gnu --use-compress-program='gzip -3' --file=-{exclude} -- {}",
        paths.join(" ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(paths: &[&str]) -> Plan {
        Plan { host: "old".into(), paths: paths.iter().map(|p| (*p).to_string()).collect(), ..Plan::default() }
    }

    #[test]
    fn paths_are_data_and_never_options() {
        let script = tar_command(&Plan { exclude: vec!["*.tmp; id".into()], ..plan(&["-rf", "it's", "a\nb"]) }).unwrap();
        assert!(script.ends_with("--file=- --exclude='*.tmp; id' -- ./-rf 'it'\\''s' 'a\nb'"), "{script}");
        for bad in [&["/etc", "home"][..], &["../x"], &["a/../b"], &[""]] {
            assert_eq!(tar_command(&plan(bad)).unwrap_err().code, Code::BACKUP_SNAPSHOT, "{bad:?}");
        }
    }

    #[test]
    fn changed_files_are_named() {
        let said =
            "tar: Removing leading `/' from member names\ntar: a/log: file changed as we read it\ntar: b: File removed before we read it\n";
        assert_eq!(changes(said), ["a/log: file changed as we read it", "b: File removed before we read it"]);
        let many: String = (0..9).map(|i| format!("tar: {i}: file changed as we read it\n")).collect();
        assert_eq!(changes(&many).last().unwrap(), "and 4 more");
    }
}
