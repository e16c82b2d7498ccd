//! The three things that a copy does on hosts: stream files from one to the other, remove, compare sums.

use runbook_core::{Code, Error, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Copy, Entry};
use crate::ssh::files::dashed;
use crate::ssh::{Channel, Exec, quote};

/// The paths as `tar`, `xargs` and `rm` take them: ended by NUL, never like an option.
fn list<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<u8> {
    let mut out = Vec::new();
    for e in entries {
        out.extend_from_slice(b"./");
        out.extend_from_slice(&e.path);
        out.push(0);
    }
    out
}

/// Streams these entries: a `tar` on either side, at most a few hundred KiB in between.
pub(super) async fn copy(c: &Copy<'_>, entries: &[Entry]) -> Result<()> {
    let (source, target) = (quote(&dashed(c.source)), quote(&dashed(c.target)));
    // Numbers for sizes and times beyond ustar, and fractions of seconds: the pax format.
    let pack = format!("cd {source} && tar -c --format=posix --no-recursion --ignore-failed-read --null -T - -f -");
    let unpack = format!("mkdir -p -- {target} && cd {target} && tar -x -p --delay-directory-restore -f -");
    let exec = |script: String| Exec { sudo: c.sudo, ..Exec::new(script) };
    let (from, to) = futures::try_join!(c.from.open(c.cx, exec(pack)), c.to.open(c.cx, exec(unpack)))?;
    let Channel { stdin: mut names, stdout: mut archive, done: packed } = from;
    let Channel { stdin: mut sink, stdout: mut said, done: unpacked } = to;
    let total: u64 = entries.iter().filter(|e| e.kind == b'f').map(|e| e.size).sum();
    let what = format!("copying {} from {}", c.source, c.from.name());
    let feed = async {
        // In pieces: the list of a large folder is large.
        for some in entries.chunks(4096) {
            if names.write_all(&list(some.iter())).await.is_err() {
                break;
            }
        }
        let _ = names.shutdown().await;
    };
    // Owns both ends: when one side is gone, the other must not wait for somebody to read on.
    let named = what.clone();
    let pump = async move {
        let (mut buffer, mut moved, mut shown) = (vec![0u8; 256 << 10], 0u64, 0u64);
        loop {
            let n = archive.read(&mut buffer).await.unwrap_or(0);
            let Some(piece) = buffer.get(..n).filter(|p| !p.is_empty()) else { break };
            if sink.write_all(piece).await.is_err() {
                break;
            }
            moved += n as u64;
            if moved - shown >= 1 << 20 {
                shown = moved;
                c.cx.progress(named.as_str(), moved.min(total), Some(total), "bytes");
            }
        }
        let _ = sink.shutdown().await;
    };
    let drain = async {
        let mut rest = Vec::new();
        let _ = said.read_to_end(&mut rest).await;
    };
    // An archive that was cut short may look whole to the target's tar; the sums are compared afterwards.
    let together = async {
        tokio::join!(feed, pump);
        packed.await
    };
    let (packed, unpacked, ()) = tokio::join!(together, unpacked, drain);
    let (status, stderr) = unpacked?;
    if status != 0 {
        return Err(failed(c.to.name(), Code::FILE_WRITE, &format!("{} cannot be written", c.target), &stderr));
    }
    let (status, stderr) = packed?;
    // 1: a file changed as it was read; the comparison afterwards sees it.
    let gone = |l: &str| {
        l.contains("No such file or directory")
            || l.contains("changed as we read it")
            || l.contains("previous errors")
            || l.contains("File removed before")
    };
    if status > 1 && !stderr.lines().all(gone) {
        return Err(failed(c.from.name(), Code::FILE_READ, &format!("{} cannot be read", c.source), &stderr));
    }
    c.cx.progress(what.as_str(), total, Some(total), "bytes");
    Ok(())
}

fn failed(host: &str, code: Code, what: &str, stderr: &str) -> Error {
    let lines: Vec<&str> = stderr.lines().filter(|l| !l.trim().is_empty() && !l.contains("previous errors")).collect();
    if stderr.contains("not found") {
        return Error::new(Code::HOST_TOOL_MISSING, format!("{what}: {}", lines.first().unwrap_or(&"")))
            .host(host)
            .hint("copy_from needs GNU find, sort, tar, xargs and sha256sum on both hosts");
    }
    // tar tells the cause after its effects.
    let cause = lines.iter().find(|l| ["No space left", "Permission denied", "quota", "Read-only"].iter().any(|c| l.contains(c)));
    Error::new(code, format!("{what}: {}", cause.or(lines.first()).unwrap_or(&"it is not said why")))
        .host(host)
        .hint("check permissions (or use sudo: true) and the space left")
        .detail("stderr", stderr)
}

/// Removes entries on the target: files and links, then folders that have become empty, the innermost first.
pub(super) async fn remove(c: &Copy<'_>, entries: &[Entry]) -> Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let target = quote(&dashed(c.target));
    let (folders, others): (Vec<&Entry>, Vec<&Entry>) = entries.iter().partition(|e| e.kind == b'd');
    for (these, script) in [
        (others, format!("cd {target} && xargs -0 -r rm -f --")),
        // A folder that holds something excluded stays.
        (folders, format!("cd {target} && xargs -0 -r rmdir --ignore-fail-on-non-empty --")),
    ] {
        if these.is_empty() {
            continue;
        }
        let stdin = Some(list(these.into_iter().rev()));
        let done = c.to.exec(c.cx, Exec { sudo: c.sudo, stdin, ..Exec::new(script) }).await?;
        if done.status != 0 {
            return Err(failed(
                c.to.name(),
                Code::FILE_WRITE,
                &format!("{} cannot be cleared", c.target),
                &String::from_utf8_lossy(&done.stderr),
            ));
        }
    }
    Ok(())
}

/// Compares the SHA-256 sums of the files among these entries on both hosts; `false` when the source has changed meanwhile.
pub(super) async fn verify(c: &Copy<'_>, entries: &[Entry]) -> Result<bool> {
    let files: Vec<&Entry> = entries.iter().filter(|e| e.kind == b'f').collect();
    for some in files.chunks(2000) {
        let names = list(some.iter().copied());
        let sums = |folder: &str| Exec {
            sudo: c.sudo,
            stdin: Some(names.clone()),
            ..Exec::new(format!("cd {} && xargs -0 -r sha256sum -z --", quote(&dashed(folder))))
        };
        c.cx.progress("comparing checksums", 0, Some(files.len() as u64), "files");
        let (a, b) = futures::try_join!(c.from.exec(c.cx, sums(c.source)), c.to.exec(c.cx, sums(c.target)))?;
        if b.status != 0 && a.status == 0 {
            return Err(failed(c.to.name(), Code::FILE_CHECKSUM, "what was copied cannot be read", &String::from_utf8_lossy(&b.stderr)));
        }
        if a.status != 0 || a.stdout != b.stdout {
            return Ok(false);
        }
    }
    Ok(true)
}
