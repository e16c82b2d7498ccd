//! Whether what was copied is the same on both sides: by SHA-256 sums, or by size alone.

use std::collections::BTreeSet;

use runbook_core::Result;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWriteExt as _, BufReader};

use super::manifest::{Entry, list};
use super::{Job, diff};
use crate::ssh::files::dashed;
use crate::ssh::{Channel, Exec, Session, quote};

/// Files from this size on are summed one by one, by the fastest tool there is.
const LARGE: u64 = 8 << 20;

/// Sums of the files that come by on standard input, in their order; a file that cannot be read has none.
const SMALL_SUMS: &str = "xargs -0 -r sha256sum -z --";
const LARGE_SUMS: &str = "if echo | openssl dgst -sha256 -r >/dev/null 2>&1; then\n\
    xargs -0 -r -n 1 sh -c 's=$(openssl dgst -sha256 -r <\"$1\") && printf \"%s  %s\\0\" \"${s%% *}\" \"$1\"' sh\n\
    else xargs -0 -r sha256sum -z --; fi";

/// What a comparison found.
#[derive(Default)]
pub(super) struct Verdict {
    /// Files with other content on the target.
    pub differ: BTreeSet<Box<[u8]>>,
    /// Whether the source has lost files meanwhile.
    pub vanished: bool,
}

/// Compares the SHA-256 sums of the files among these entries on both hosts.
pub(super) async fn sums(job: &Job<'_>, entries: &[Entry]) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let all: Vec<&Entry> = entries.iter().filter(|e| e.is_file() && e.same_as.is_none()).collect();
    let (large, small): (Vec<&Entry>, Vec<&Entry>) = all.iter().partition(|e| e.size >= LARGE);
    let total: u64 = all.iter().map(|e| e.size).sum();
    let mut done = 0;
    for (files, script) in [(small, SMALL_SUMS), (large, LARGE_SUMS)] {
        if !files.is_empty() {
            compare(job, &files, script, &mut verdict, &mut done, total).await?;
        }
    }
    Ok(verdict)
}

async fn compare(job: &Job<'_>, files: &[&Entry], script: &str, verdict: &mut Verdict, bytes: &mut u64, total: u64) -> Result<()> {
    let (mut a, mut b) =
        futures::try_join!(Sums::open(job, &job.from, job.source, files, script), Sums::open(job, &job.to, job.target, files, script))?;
    let what = format!("comparing checksums of {} files", files.len());
    for (i, e) in files.iter().enumerate() {
        match futures::try_join!(a.of(e), b.of(e))? {
            (None, _) => verdict.vanished = true,
            (Some(x), Some(y)) if x == y => {}
            _ => {
                verdict.differ.insert(e.path.clone());
            }
        }
        *bytes += e.size;
        if i % 500 == 0 || e.size >= LARGE {
            job.cx.progress(what.as_str(), *bytes, Some(total), "bytes");
        }
    }
    a.end().await?;
    b.end().await
}

/// The sums of one side as they come.
struct Sums {
    out: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    ahead: Option<(Vec<u8>, Vec<u8>)>,
    done: futures::future::BoxFuture<'static, Result<(i32, String)>>,
    feed: tokio::task::JoinHandle<()>,
}

impl Sums {
    async fn open(job: &Job<'_>, session: &Session, folder: &str, files: &[&Entry], script: &str) -> Result<Sums> {
        let script = format!("cd -- {} || exit 96\n{script}", quote(&dashed(folder)));
        let Channel { mut stdin, stdout, done } = session.open(job.cx, Exec { sudo: job.o.sudo, ..Exec::new(script) }).await?;
        let pieces: Vec<Vec<u8>> = files.chunks(4096).map(|some| list(some.iter().copied())).collect();
        let feed = tokio::spawn(async move {
            for piece in pieces {
                if stdin.write_all(&piece).await.is_err() {
                    break;
                }
            }
            let _ = stdin.shutdown().await;
        });
        Ok(Sums { out: BufReader::new(stdout), ahead: None, done, feed })
    }

    /// The sum of this file; `None` when it could not be read.
    async fn of(&mut self, e: &Entry) -> Result<Option<Vec<u8>>> {
        if self.ahead.is_none() {
            let mut raw = Vec::new();
            let _ = self.out.read_until(0, &mut raw).await;
            if raw.pop() != Some(0) {
                return Ok(None);
            }
            let (sum, path) = raw.split_at_checked(66).unwrap_or((&raw, &[]));
            self.ahead = Some((path.strip_prefix(b"./").unwrap_or(path).to_vec(), sum.to_vec()));
        }
        match self.ahead.take() {
            Some((path, sum)) if path == *e.path => Ok(Some(sum)),
            other => {
                self.ahead = other;
                Ok(None)
            }
        }
    }

    /// What was not read shows by its missing sum; what counts here is that the connection held.
    async fn end(self) -> Result<()> {
        let _ = self.feed.await;
        drop(self.out);
        self.done.await.map(|_| ())
    }
}

/// Compares the sizes of what was copied, by listing both sides again.
pub(super) async fn sizes(job: &Job<'_>, entries: &[Entry]) -> Result<Verdict> {
    let copied: BTreeSet<&[u8]> = entries.iter().filter(|e| e.is_file()).map(|e| &*e.path).collect();
    let now = diff::compare(job, &BTreeSet::new()).await?;
    let differ = now.copy.into_iter().filter(|e| e.is_file() && copied.contains(&*e.path)).map(|e| e.path).collect();
    Ok(Verdict { differ, vanished: false })
}
