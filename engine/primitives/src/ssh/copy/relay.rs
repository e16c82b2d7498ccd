//! Through the controller: both ends' streams joined here. At most a few hundred KiB are held in between.

use std::time::{Duration, Instant};

use runbook_core::units::show_bytes;
use runbook_core::{Code, Error, Result};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::direct::{Direction, ended, into, prepare, record, rsync_words};
use super::job::Load;
use super::manifest::list;
use super::verify::Passing;
use super::{Job, clean, failure, tools};
use crate::ssh::files::dashed;
use crate::ssh::{Channel, Exec, quote};

/// What stands for `ssh` on the calling side: the command's own streams, which end here.
///
/// It ends as soon as one direction does, as `ssh` would: `rsync` waits for it before it closes its own end.
const TUNNEL: &str = "exec 5<&0\n\
    cat <&3 4>&- & p=$!\n\
    (cat <&5 >&4; kill $p) >/dev/null 2>&1 & q=$!\n\
    exec >/dev/null 4>&- 5<&-\n\
    wait $p\n\
    kill $q 2>/dev/null\n\
    exit 0";

type In = Box<dyn AsyncWrite + Send + Unpin>;
type Out = Box<dyn AsyncRead + Send + Unpin>;

/// Moves bytes until their end, showing how far it is, no faster than `bandwidth`. Each piece is given to `seen` as well. Gives how many.
async fn pump(
    job: &Job<'_>,
    load: &Load<'_>,
    mut from: Out,
    mut to: In,
    shown: bool,
    mut seen: impl FnMut(&[u8]),
    bandwidth: Option<u64>,
) -> u64 {
    let what = format!("copying {} from {}", job.source, job.from.name());
    let (began, total) = (Instant::now(), load.diff.bytes);
    let (mut buffer, mut moved, mut told) = (vec![0u8; 256 << 10], 0u64, 0u64);
    loop {
        let n = from.read(&mut buffer).await.unwrap_or(0);
        let Some(piece) = buffer.get(..n).filter(|p| !p.is_empty()) else { break };
        if to.write_all(piece).await.is_err() {
            break;
        }
        moved += n as u64;
        seen(piece);
        let spent = began.elapsed().as_secs_f64();
        if shown && moved - told >= 1 << 20 {
            told = moved;
            let rate = show_bytes((moved as f64 / spent.max(0.001)) as u64);
            job.cx.progress(format!("{what}, {rate}/s"), moved.min(total), Some(total), "bytes");
        }
        if let Some(limit) = bandwidth {
            let due = moved as f64 / limit as f64;
            if due > spent && job.cx.sleep(Duration::from_secs_f64(due - spent)).await.is_err() {
                break;
            }
        }
    }
    let _ = to.shutdown().await;
    moved
}

/// A `tar` on either side. Gives how many bytes went over.
pub(super) async fn tar(job: &Job<'_>, load: &Load<'_>, passing: &mut Option<Passing>) -> Result<u64> {
    let pack = format!("cd -- {} || exit 96\n{}", quote(&dashed(job.source)), load.pack(job, "-"));
    let unpack = format!("{}\n{}", into(job.target), load.unpack(job));
    let exec = |script: String| Exec { sudo: job.o.sudo, ..Exec::new(script) };
    let (from, to) = futures::try_join!(job.from.open(job.cx, exec(pack)), job.to.open(job.cx, exec(unpack)))?;
    let Channel { stdin: mut names, stdout: archive, done: packed } = from;
    let Channel { stdin: sink, stdout: mut said, done: unpacked } = to;
    let feed = async {
        // In pieces: the list of a large folder is large.
        for some in load.diff.copy.chunks(4096) {
            if names.write_all(&list(some.iter())).await.is_err() {
                break;
            }
        }
        let _ = names.shutdown().await;
    };
    let seen = |piece: &[u8]| passing.iter_mut().for_each(|p| p.take(piece));
    // The pump owns both ends: when one side is gone, the other must not wait for somebody to read on.
    let together = async {
        let ((), moved) = tokio::join!(feed, pump(job, load, archive, sink, true, seen, job.o.bandwidth));
        (packed.await, moved)
    };
    let drain = async {
        let mut rest = Vec::new();
        let _ = said.read_to_end(&mut rest).await;
    };
    // An archive that was cut short may look whole to the target's tar; both sides are compared afterwards.
    let ((packed, moved), unpacked, ()) = tokio::join!(together, unpacked, drain);
    if matches!(packed, Ok((74, _))) {
        return Err(failure::shorter(&job.sides()));
    }
    let (status, stderr) = unpacked?;
    if status != 0 {
        // The end of the archive is missing because the source's side ended: that is the cause then.
        packed?;
        return Err(failure::transfer(&job.sides(), failure::Side::To, &stderr, status));
    }
    let (status, stderr) = packed?;
    // 1: a file changed as it was read; the comparison afterwards sees it.
    if status > 1 && !failure::only_vanished(&stderr) {
        return Err(failure::transfer(&job.sides(), failure::Side::From, &stderr, status));
    }
    Ok(moved)
}

/// The calling `rsync` on the source, the other one on the target, and the controller in place of `ssh`.
pub(super) async fn rsync(job: &Job<'_>, load: &Load<'_>) -> Result<u64> {
    clean::mark(job.cx, &[&job.from]).await?;
    job.left.lock().push(job.from.clone());
    let rsync = rsync_words(job, load);
    let names = load.names();
    let prepared = prepare(job, &job.from, TUNNEL, "", &record(&rsync, Direction::Push), names).await?.map_err(|why| {
        Error::new(Code::FILE_WRITE, format!("the copy cannot be prepared: {why}")).host(job.from.name()).hint("use #{ tool: \"tar\" }")
    })?;
    let words: Vec<&str> = prepared.words.iter().map(String::as_str).collect();
    let served = tools::served(&words, false).map_err(|e| e.host(job.from.name()))?;
    let call = format!(
        "d={}\ncd -- {} || exit 96\nexec 3<&0 4>&1\nexec {rsync} --files-from=\"$d/list\" --from0 -e \"sh \\\"$d/ssh\\\"\" ./ peer:./ </dev/null >&2",
        quote(&prepared.folder),
        quote(&dashed(job.source))
    );
    let serve = format!("{}\nexec {served}", into(job.target));
    let exec = |script: String| Exec { sudo: job.o.sudo, ..Exec::new(script) };
    let (from, to) = futures::try_join!(job.from.open(job.cx, exec(call)), job.to.open(job.cx, exec(serve)))?;
    let there = pump(job, load, from.stdout, to.stdin, true, |_| {}, None);
    let back = pump(job, load, to.stdout, from.stdin, false, |_| {}, None);
    let (forth, back, called, answered) = tokio::join!(there, back, from.done, to.done);
    // Whichever side ended for a reason of its own comes first; a lost connection explains the other side's end.
    let ((called, mut stderr), (answered, said)) = (called?, answered?);
    stderr.push_str(&said);
    let status = if called == 0 { answered } else { called };
    if status == 0 || (matches!(status, 23 | 24) && failure::only_vanished(&stderr)) {
        return Ok(forth + back);
    }
    Err(ended(job, status, &stderr))
}
