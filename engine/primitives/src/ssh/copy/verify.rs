//! Whether what was copied is the same on both sides: by SHA-256 sums, or by size alone.
//!
//! The source is summed while the copy is on its way, or from the archive itself where that passes through the controller. What has changed there since it was listed, by its time of status change, which
//! nobody can set, is summed again afterwards: so every verdict is about the source as it is when the copy has ended.

use std::collections::{BTreeSet, HashMap};
use std::io::Write as _;

use parking_lot::Mutex;
use runbook_core::Result;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use super::diff::Diff;
use super::manifest::{Entry, list};
use super::{Job, diff};
use crate::ssh::files::dashed;
use crate::ssh::{Channel, Exec, Session, quote};
use crate::tar_stream::Hasher;

/// Prints the sums of the files that come by on standard input, in their order, a line each; a file that cannot be read has none.
///
/// `openssl` has the instructions that processors have for it; `sha256sum` takes up to four times as long.
const PLAIN: &str =
    "if echo | openssl dgst -sha256 -r >/dev/null 2>&1; then xargs -0 -r openssl dgst -sha256 -r\nelse xargs -0 -r sha256sum --; fi";
/// The same for names that do not stand in a line as they are; each sum ends in NUL.
const ODD: &str = "xargs -0 -r sha256sum -z --";

type Sum = [u8; 32];
/// Paths of files.
pub(super) type Paths = BTreeSet<Box<[u8]>>;

/// What a comparison found.
#[derive(Default)]
pub(super) struct Verdict {
    /// Files with other content on the target.
    pub differ: Paths,
    /// Whether the source has lost files meanwhile.
    pub vanished: bool,
}

/// The sums of some files on one side, by their place among them; `None` for what could not be read.
pub(super) struct Sums(Vec<Option<Sum>>);

/// The sums of the source's files from the archive of them that passes through here.
pub(super) struct Passing(Option<Hasher>);

impl Passing {
    pub(super) fn new() -> Self {
        Passing(Some(Hasher::default()))
    }

    /// Takes the next piece of the archive.
    pub(super) fn take(&mut self, piece: &[u8]) {
        // What cannot be read here is still the target's to judge; its files are read where they are.
        if self.0.as_mut().is_some_and(|h| h.write_all(piece).is_err()) {
            self.0 = None;
        }
    }

    /// The sums of these files. `None` when the archive could not be read.
    pub(super) fn sums(self, files: &[&Entry]) -> Option<Sums> {
        let entries = self.0?.take_entries();
        let by_path: HashMap<&[u8], Sum> = entries.iter().filter_map(|e| Some((e.name.strip_prefix(b"./")?, e.sum?))).collect();
        Some(Sums(files.iter().map(|e| by_path.get(&*e.path).copied()).collect()))
    }
}

/// Those of the entries that have a content of their own, but for those that need no comparison any more.
pub(super) fn files<'a>(entries: &'a [Entry], compared: &Paths) -> Vec<&'a Entry> {
    entries.iter().filter(|e| e.is_file() && e.same_as.is_none() && !compared.contains(&e.path)).collect()
}

/// The sums of these files of the source.
pub(super) async fn source(job: &Job<'_>, files: &[&Entry]) -> Result<Sums> {
    read(job, &job.from, job.source, files, false).await
}

/// Compares these files of both hosts.
pub(super) async fn sums(job: &Job<'_>, entries: &[Entry]) -> Result<Verdict> {
    let files = files(entries, &Paths::new());
    let (a, b) = futures::try_join!(source(job, &files), read(job, &job.to, job.target, &files, true))?;
    Ok(verdict(&files, &a, &b))
}

/// Compares what was copied with the source's sums from the time of the copy, or from now where it has changed since. The content of
/// those `compared` was compared on the way.
pub(super) async fn copied(job: &Job<'_>, diff: &Diff, early: Sums, compared: &Paths) -> Result<Verdict> {
    let files = files(&diff.copy, compared);
    let late = async {
        let Some(changed) = changed(job, &diff.clock).await? else { return Ok(None) };
        let mut sums = early;
        let stale = |(e, sum): (&&Entry, &Option<Sum>)| sum.is_none() || changed.contains(&*e.path);
        let places: Vec<usize> = files.iter().zip(&sums.0).enumerate().filter(|(_, f)| stale(*f)).map(|(i, _)| i).collect();
        let again: Vec<&Entry> = places.iter().filter_map(|i| files.get(*i).copied()).collect();
        for (place, sum) in places.into_iter().zip(source(job, &again).await?.0) {
            if let Some(slot) = sums.0.get_mut(place) {
                *slot = sum;
            }
        }
        Ok(Some((sums, changed)))
    };
    let (late, there) = futures::try_join!(late, read(job, &job.to, job.target, &files, true))?;
    let Some((here, changed)) = late else { return sums(job, &diff.copy).await };
    let mut verdict = verdict(&files, &here, &there);
    verdict.differ.extend(compared.iter().filter(|p| changed.contains(&***p)).cloned());
    Ok(verdict)
}

fn verdict(files: &[&Entry], a: &Sums, b: &Sums) -> Verdict {
    let mut verdict = Verdict::default();
    for (e, (x, y)) in files.iter().zip(a.0.iter().zip(&b.0)) {
        if x.is_none() {
            verdict.vanished = true;
        } else if x != y {
            verdict.differ.insert(e.path.clone());
        }
    }
    verdict
}

/// The files of the source whose status has changed since its clock said `since`; `None` when it cannot tell.
async fn changed(job: &Job<'_>, since: &str) -> Result<Option<BTreeSet<Vec<u8>>>> {
    let Some(since) = moment(since) else { return Ok(None) };
    let script =
        format!("cd -- {} || exit 96\nfind . -type f -newerct @{since} -printf '%P\\0' 2>/dev/null; echo end", quote(&dashed(job.source)));
    let Channel { stdin: _stdin, mut stdout, done } = job.from.open(job.cx, Exec { sudo: job.o.sudo, ..Exec::new(script) }).await?;
    let mut names = Vec::new();
    let _ = stdout.read_to_end(&mut names).await;
    done.await?;
    let Some(names) = names.strip_suffix(b"end\n") else { return Ok(None) };
    Ok(Some(names.split(|b| *b == 0).map(<[u8]>::to_vec).collect()))
}

/// What `-newerct` can take: seconds with their fraction. A `date` without fractions cannot tell what is new.
fn moment(clock: &str) -> Option<&str> {
    let (seconds, fraction) = clock.split_once('.')?;
    let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    (digits(seconds) && digits(fraction)).then_some(clock)
}

/// How many readers sum at once on a host that has nothing else to do, and how many files each has at least: what is summed in the time
/// of a login or two, since each reader but the first may need a connection of its own.
const READERS: usize = 3;
const EACH: usize = 20_000;

/// Reads the sums of files on a host as they come; `shown` when nothing else is under way.
async fn read(job: &Job<'_>, session: &Session, folder: &str, files: &[&Entry], shown: bool) -> Result<Sums> {
    let odd = |e: &Entry| e.path.iter().any(|b| matches!(b, b'\n' | b'\\'));
    let seen = shown.then(|| Seen::of(job, files));
    let mut parts: Vec<(bool, Vec<(usize, &Entry)>)> = Vec::new();
    for odds in [false, true] {
        let these: Vec<(usize, &Entry)> = files.iter().copied().enumerate().filter(|(_, e)| odd(e) == odds).collect();
        let readers = if shown { (these.len() / EACH).clamp(1, READERS) } else { 1 };
        let each = these.len().div_ceil(readers).max(1);
        parts.extend(these.chunks(each).map(|some| (odds, some.to_vec())));
    }
    let found = parts.iter().map(|(odds, these)| some(job, session, folder, these, *odds, seen.as_ref()));
    let mut sums = vec![None; files.len()];
    for (place, sum) in futures::future::try_join_all(found).await?.into_iter().flatten() {
        if let Some(slot) = sums.get_mut(place) {
            *slot = Some(sum);
        }
    }
    Ok(Sums(sums))
}

/// How far several readers are.
struct Seen<'a> {
    job: &'a Job<'a>,
    what: String,
    total: (u64, u64),
    done: Mutex<(u64, u64)>,
}

impl<'a> Seen<'a> {
    fn of(job: &'a Job<'a>, files: &[&Entry]) -> Seen<'a> {
        let total = (files.iter().map(|e| e.size).sum(), files.len() as u64);
        Seen { job, what: format!("comparing checksums of {} files", files.len()), total, done: Mutex::default() }
    }

    fn one(&self, bytes: u64) {
        let mut done = self.done.lock();
        *done = (done.0 + bytes, done.1 + 1);
        if done.1 % 500 == 1 || done.1 == self.total.1 {
            self.job.cx.progress(self.what.as_str(), done.0, Some(self.total.0), "bytes");
        }
    }
}

/// The sums of some files, with their places, by one reader.
async fn some(
    job: &Job<'_>,
    session: &Session,
    folder: &str,
    these: &[(usize, &Entry)],
    odds: bool,
    seen: Option<&Seen<'_>>,
) -> Result<Vec<(usize, Sum)>> {
    let (script, end) = if odds { (ODD, 0) } else { (PLAIN, b'\n') };
    let places: HashMap<&[u8], (usize, u64)> = these.iter().map(|(i, e)| (&*e.path, (*i, e.size))).collect();
    let script = format!("cd -- {} || exit 96\n{script}", quote(&dashed(folder)));
    let Channel { mut stdin, stdout, done } = session.open(job.cx, Exec { sudo: job.o.sudo, ..Exec::new(script) }).await?;
    let feed = async {
        // In pieces: the list of a large folder is large.
        for some in these.chunks(4096) {
            if stdin.write_all(&list(some.iter().map(|(_, e)| *e))).await.is_err() {
                break;
            }
        }
        let _ = stdin.shutdown().await;
    };
    let take = async {
        let (mut out, mut line, mut found) = (BufReader::with_capacity(64 << 10, stdout), Vec::new(), Vec::new());
        while out.read_until(end, &mut line).await.is_ok_and(|n| n > 0) {
            if line.pop() == Some(end)
                && let Some((sum, path)) = parse(&line)
                && let Some((place, size)) = places.get(path)
            {
                found.push((*place, sum));
                if let Some(seen) = seen {
                    seen.one(*size);
                }
            }
            line.clear();
        }
        found
    };
    let ((), found) = tokio::join!(feed, take);
    // What was not read shows by its missing sum; what counts here is that the connection held.
    done.await?;
    Ok(found)
}

/// `SUM  ./PATH` or `SUM *./PATH`.
fn parse(line: &[u8]) -> Option<(Sum, &[u8])> {
    let (hex, rest) = line.split_at_checked(64)?;
    let mut sum = [0u8; 32];
    for (byte, pair) in sum.iter_mut().zip(hex.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some((sum, rest.get(2..)?.strip_prefix(b"./")?))
}

/// Compares the sizes of what was copied, by listing both sides again.
pub(super) async fn sizes(job: &Job<'_>, entries: &[Entry]) -> Result<Verdict> {
    let copied: BTreeSet<&[u8]> = entries.iter().filter(|e| e.is_file()).map(|e| &*e.path).collect();
    let now = diff::compare(job, &BTreeSet::new()).await?;
    let differ = now.copy.into_iter().filter(|e| e.is_file() && copied.contains(&*e.path)).map(|e| e.path).collect();
    Ok(Verdict { differ, vanished: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_read_as_both_tools_print_them() {
        let sum = "00ff".repeat(16);
        for line in [format!("{sum}  ./a b"), format!("{sum} *./a b")] {
            let (found, path) = parse(line.as_bytes()).unwrap();
            assert_eq!((found[0], found[31], path), (0, 255, &b"a b"[..]));
        }
        for bad in ["", "00ff  ./a", &format!("{}  ./a", "zz".repeat(32)), &format!("{sum}  a"), &format!("\\{sum}  ./a")] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn an_archive_that_passes_is_summed_file_by_file() {
        let dir = tempfile::tempdir().unwrap();
        let names: [&[u8]; 4] = [b"a b", b"d/\xff\n\\", b"empty", b"second name"];
        std::fs::create_dir(dir.path().join("d")).unwrap();
        let at = |name: &[u8]| dir.path().join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name));
        for (name, content) in names.iter().zip(["hello", "x".repeat(70_000).as_str(), ""]) {
            std::fs::write(at(name), content).unwrap();
        }
        std::fs::hard_link(at(names[0]), at(names[3])).unwrap();
        let entries: Vec<Entry> = names
            .iter()
            .map(|n| Entry { path: (*n).into(), ..super::super::manifest::tests::entry("x", "f 644 1 1.0 1:1 1 8 a:b") })
            .collect();
        let files: Vec<&Entry> = entries.iter().collect();
        let packed = |names: &[&[u8]]| {
            let mut tar = std::process::Command::new("tar")
                .args(["-c", "--format=posix", "--no-recursion", "--null", "-T-", "-f-"])
                .current_dir(dir.path())
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let list: Vec<u8> = names.iter().flat_map(|n| [b"./", *n, b"\0"].concat()).collect();
            std::io::Write::write_all(&mut tar.stdin.take().unwrap(), &list).unwrap();
            tar.wait_with_output().unwrap().stdout
        };
        let sums = |archive: &[u8]| {
            let mut passing = Passing::new();
            archive.chunks(1000).for_each(|piece| passing.take(piece));
            passing.sums(&files).map(|s| s.0)
        };
        let whole = packed(&names);
        let found = sums(&whole).unwrap();
        let of = |content: &[u8]| Some(<Sum>::from(<sha2::Sha256 as sha2::Digest>::digest(content)));
        // A further name of a file is none of the files that are compared.
        assert_eq!(found, [of(b"hello"), of("x".repeat(70_000).as_bytes()), of(b""), None]);
        // What did not come has no sum, what was cut off neither, and what is no archive none at all.
        assert_eq!(sums(&packed(&[names[2]])).unwrap(), [None, None, of(b""), None]);
        assert_eq!(sums(&whole[..30_000]).unwrap(), [of(b"hello"), None, None, None]);
        assert_eq!(sums(&[7; 4096]), None);
    }

    #[test]
    fn a_clock_without_fractions_is_of_no_use() {
        assert_eq!(moment("1700000000.010000000"), Some("1700000000.010000000"));
        for bad in ["", "1700000000", "1700000000.%N", "x.000000000", "1.0 -delete"] {
            assert_eq!(moment(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_differs_and_what_went_away_is_told_apart() {
        let e = |p: &str| super::super::manifest::tests::entry(p, "f 644 1 1.0 1:1 1 8 a:b");
        let all = [e("same"), e("other"), e("gone here"), e("gone there")];
        let (x, y) = (Some([1; 32]), Some([2; 32]));
        let v = verdict(&files(&all, &Paths::new()), &Sums(vec![x, x, None, x]), &Sums(vec![x, y, x, None]));
        assert!(v.vanished && v.differ.iter().map(|p| super::super::manifest::shown(p)).eq(["gone there", "other"]));
    }
}
