//! Verifying a snapshot where it lies: every checksum computed again by the host of the repository, nothing written.

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

use super::Archive;
use crate::backup::manifest;
use crate::backup::on_host::{Faults, said};
use crate::backup::repository::Snapshot;
use crate::ssh::Exec;

async fn line(stream: &mut BufReader<Box<dyn AsyncRead + Send + Unpin>>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    match stream.read_until(b'\n', &mut out).await {
        Ok(n) if n > 0 => {
            if out.last() == Some(&b'\n') {
                out.pop();
            }
            Some(out)
        }
        _ => None,
    }
}

impl Archive {
    pub(super) async fn check(&self, cx: &Cx, s: &Snapshot) -> Result<()> {
        let work = self.check_inner(cx, s);
        tokio::select! {
            r = work => r,
            () = cx.cancel.cancelled() => Err(Error::new(Code::ABORTED, "stopped while verifying a snapshot").host(&self.host)),
        }
    }

    async fn check_inner(&self, cx: &Cx, s: &Snapshot) -> Result<()> {
        let folder = self.at(&s.id);
        let mut faults = Faults::new();
        let sums = self.run(cx, format!("cd {folder} && sha256sum archive.tar.gz SHA256SUMS")).await?;
        let sums = String::from_utf8_lossy(&sums.stdout).into_owned();
        for (file, wanted) in [("archive.tar.gz", &s.archive_sha256), ("SHA256SUMS", &s.manifest_sha256)] {
            let is = sums.lines().find_map(|l| l.strip_suffix(file).map(str::trim_end));
            match is {
                None => faults.add(|| format!("{file} is missing or cannot be read")),
                Some(is) if is != wanted => faults.add(|| format!("{file} does not have its checksum")),
                Some(_) => {}
            }
        }
        let whole = faults.show();

        // The host computes a checksum for each file in the archive, in the order in which the manifest names them.
        let session = self.session(cx).await?;
        let script = format!("LC_ALL=C; export LC_ALL; cd {folder} && tar -xzf archive.tar.gz --to-command='sha256sum -b' | cut -c1-64");
        let computed = session.open(cx, Exec::new(script)).await?;
        let wanted = session.open(cx, Exec::new(format!("cd {folder} && cat SHA256SUMS"))).await?;
        drop((computed.stdin, wanted.stdin));
        let (mut is, mut should) = (BufReader::new(computed.stdout), BufReader::new(wanted.stdout));
        let mut files = 0u64;
        let mut single = Faults::new();
        while let Some(wanted) = line(&mut should).await {
            files += 1;
            let got = line(&mut is).await;
            let Some((hash, name)) = manifest::parse(&wanted) else {
                single.add(|| format!("line {files} of SHA256SUMS is not one of sha256sum"));
                continue;
            };
            match got {
                Some(got) if got == hash.as_bytes() => {}
                Some(_) => single.add(|| format!("{} is damaged", manifest::show(&name))),
                None => single.add(|| format!("{} is missing or cannot be read", manifest::show(&name))),
            }
            if files.is_multiple_of(64) {
                cx.progress("verifying files", files, Some(s.files), "files");
            }
        }
        while line(&mut is).await.is_some() {
            single.add(|| "a file of the archive is not in SHA256SUMS".into());
        }
        let (ended, _) = tokio::join!(computed.done, wanted.done);
        let (_, stderr) = ended?;
        if files != s.files {
            single.add(|| format!("SHA256SUMS names {files} files, and {} were taken", s.files));
        }
        let Some(list) = single.show().or_else(|| whole.clone()) else { return Ok(()) };
        let mut e = self
            .error(Code::BACKUP_DAMAGED, format!("the snapshot {} is damaged: {list}", s.id))
            .hint("restore from another snapshot, take a new one, and check the disk of this host");
        if let Some(whole) = whole {
            e = e.detail("whole", whole);
        }
        if !stderr.trim().is_empty() {
            e = e.detail("tar", said(&stderr));
        }
        Err(e)
    }
}
