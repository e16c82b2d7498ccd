//! Large files where `rsync` does not carry them: only the blocks that differ are sent, beside the file's place, and a broken transfer
//! goes on from what has come.
//!
//! Both sides sum the file in blocks of the same size with their own tools, so nothing has to be put on a host for it. What differs is
//! read out of the source's file and written into `.runbook-partial/NAME` on the target: a copy of the file that is there, or what an
//! earlier try has left. The written blocks are read again and compared; then the file gets its attributes and takes its place at one
//! stroke. Blocks begin at fixed places, so a file into which something was inserted is sent from there on; `rsync` finds such moves
//! (A. Tridgell, P. Mackerras: The rsync algorithm, 1996), where both hosts have it: it is asked when more than half of a file differs.
//!
//! Where both hosts have Python, one process of it reads a file once, on all cores, in small blocks, and fills the target's copy while
//! it sums it (`blocks.py`). Otherwise `split` starts a process for each block, and the blocks are larger.

use runbook_core::Result;
use tokio::io::AsyncReadExt as _;

use super::diff::{Diff, PARTIAL};
use super::job::Load;
use super::manifest::Entry;
use super::verify::Paths;
use super::{Job, failure, header, tools};
use crate::ssh::files::dashed;
use crate::ssh::{Channel, Exec, Session, quote};

/// Files from this size on, when the target has another version of them.
pub(super) const LARGE: u64 = 8 << 20;
/// Files from this size on that the target does not have: they are not half there when their transfer breaks.
const NEW: u64 = 64 << 20;
/// How many files one round carries so: what is said of each goes in the text of a command.
const MOST: usize = 100;
/// How many pieces of files one round carries so; those that are close together go as one when there are more.
const PIECES: usize = 256;
/// The same where one process reads and writes them.
const FINE_PIECES: usize = 4096;

const PROGRAM: &str = include_str!("blocks.py");
/// Finds Python.
const PYTHON: &str = "for py in python3 /usr/libexec/platform-python none; do command -v \"$py\" >/dev/null 2>&1 && break; done\n";

/// One file that is sent in blocks.
pub(super) struct Patch {
    pub entry: Entry,
    /// The size of a block.
    block: u64,
    /// The sums of the source's blocks; empty when the target has nothing to build on.
    sums: Vec<String>,
    /// What is sent: from where and how much.
    pub pieces: Vec<(u64, u64)>,
    /// Whether one process of Python sees to its blocks.
    fine: bool,
}

impl Patch {
    /// How many bytes are sent.
    pub(super) fn bytes(&self) -> u64 {
        self.pieces.iter().map(|(_, n)| n).sum()
    }

    /// Whether its blocks were compared, so that it needs no other comparison.
    pub(super) fn compared(&self) -> bool {
        !self.sums.is_empty()
    }

    fn source(&self) -> Option<String> {
        here(&self.entry.path)
    }

    fn partial(&self) -> Option<String> {
        here(&partial(&self.entry.path))
    }

    /// Itself for `blocks.py`; without the part where there is none.
    fn line(&self, with_part: bool) -> String {
        let hex = |path: &[u8]| b"./".iter().chain(path).map(|b| format!("{b:02x}")).collect::<String>();
        let part = if with_part { hex(&partial(&self.entry.path)) } else { "-".into() };
        let (mut at, mut pieces) = (0, Vec::new());
        for (from, n) in &self.pieces {
            let (first, n) = (from / self.block, n.div_ceil(self.block));
            pieces.push(format!("{}+{n}", first.saturating_sub(at)));
            at = first + n;
        }
        let pieces = if pieces.is_empty() { "-".into() } else { pieces.join(",") };
        format!("{} {part} {} {} {pieces}\n", hex(&self.entry.path), self.entry.size, self.block)
    }
}

/// `blocks.py` at work on these files, as shell text; `or` follows where it fails.
fn python<'a>(what: &str, patches: impl Iterator<Item = &'a Patch>, with_part: bool, or: &str) -> String {
    let lines: String = patches.map(|p| p.line(with_part)).collect();
    format!("{PYTHON}\"$py\" -I -S -c {} {what} 3<<'RB_END'{or}\n{lines}RB_END\n", quote(PROGRAM))
}

/// A path below the present folder as a word for a shell; `None` when it is no text.
fn here(path: &[u8]) -> Option<String> {
    std::str::from_utf8(path).ok().map(|p| quote(&format!("./{p}")))
}

/// Where a file is kept until it is whole.
pub(super) fn partial(path: &[u8]) -> Vec<u8> {
    let at = path.iter().rposition(|b| *b == b'/').map_or(0, |n| n + 1);
    let (folder, name) = path.split_at_checked(at).unwrap_or((&[], path));
    [folder, PARTIAL.as_bytes(), b"/", name].concat()
}

fn block(size: u64, fine: bool) -> u64 {
    if fine {
        (size / 4096).next_power_of_two().clamp(64 << 10, 64 << 20)
    } else {
        (size / 64).next_power_of_two().clamp(1 << 20, 64 << 20)
    }
}

/// Whether the target has something of a file to build on.
fn based(diff: &Diff, e: &Entry) -> bool {
    diff.there.contains_key(&e.path) || diff.begun.contains_key(&e.path)
}

/// Whether a file can go in blocks.
fn fits(diff: &Diff, e: &Entry) -> bool {
    let least = if based(diff, e) { LARGE } else { NEW };
    e.is_file() && e.size >= least && !e.linked && !e.sparse() && here(&e.path).is_some()
}

/// What may go whole of files that have another version on the target.
const WHOLE: u64 = 16 << 20;

/// Whether nearly all of what the target has another version of could go in blocks.
pub(super) fn suit(diff: &Diff) -> bool {
    let all: Vec<&Entry> = diff.copy.iter().filter(|e| fits(diff, e) && based(diff, e)).collect();
    let bytes: u64 = all.iter().map(|e| e.size).sum();
    !all.is_empty() && all.len() <= MOST && diff.updated.saturating_sub(bytes) <= WHOLE
}

/// Whether blocks are a good way for what was found: not where most of the files differs, since something may only have moved there.
pub(super) fn worth(diff: &Diff, patches: &[Patch]) -> bool {
    let these = || patches.iter().filter(|p| p.compared());
    let (bytes, sent) = these().fold((0, 0), |(b, s), p| (b + p.entry.size, s + p.bytes()));
    sent <= bytes / 2 && diff.updated.saturating_sub(bytes) <= WHOLE
}

/// What of the large files has to be sent, after both sides have summed what the target can build on. `None` when that was to be done
/// by Python and it cannot.
pub(super) async fn find(job: &Job<'_>, diff: &Diff, fine: bool) -> Result<Option<Vec<Patch>>> {
    let mut free = diff.room.0.map(|r| r.saturating_sub(diff.needs));
    let mut patches = Vec::new();
    let based = |e: &Entry| based(diff, e);
    let mut entries: Vec<&Entry> = diff.copy.iter().filter(|e| fits(diff, e)).collect();
    entries.sort_by_key(|e| (!based(e), std::cmp::Reverse(e.size)));
    for e in entries.into_iter().take(MOST) {
        // A copy of what is there is made first; where it has no room, tar replaces the file.
        let copied = if diff.begun.contains_key(&e.path) { 0 } else { diff.there.get(&e.path).copied().unwrap_or(0) };
        if free.is_some_and(|f| f < copied) {
            continue;
        }
        free = free.map(|f| f - copied);
        // A file that goes from its beginning to its end needs no small blocks.
        let fine = fine && based(e);
        let p = Patch { entry: e.clone(), block: block(e.size, fine), sums: Vec::new(), pieces: vec![(0, e.size)], fine };
        patches.push((based(e), p));
    }
    let based: Vec<&Patch> = patches.iter().filter(|(based, _)| *based).map(|(_, p)| p).collect();
    if !based.is_empty() {
        job.cx.progress(format!("comparing blocks of {} large files", based.len()), 0, None, "bytes");
        let (a, b) = futures::try_join!(source_sums(job, &based, fine), target_sums(job, &based, fine))?;
        let (Some(a), Some(b)) = (a, b) else { return Ok(None) };
        let mut both = a.into_iter().zip(b);
        for (_, p) in patches.iter_mut().filter(|(based, _)| *based) {
            let Some((ours, theirs)) = both.next() else { break };
            if ours.len() as u64 == p.entry.size.div_ceil(p.block) {
                p.pieces = pieces(&ours, &theirs, p.block, p.entry.size);
                p.sums = ours;
            }
        }
    }
    let mut all: Vec<Patch> = patches.into_iter().map(|(_, p)| p).collect();
    limit(&mut all, if fine { FINE_PIECES } else { PIECES });
    Ok(Some(all))
}

/// Removes the copies that [`find`] has made of what is there. `rsync` would write into them and find nothing that has moved.
pub(super) async fn forget(job: &Job<'_>, diff: &Diff) -> Result<()> {
    let made = diff.copy.iter().filter(|e| fits(diff, e) && diff.there.contains_key(&e.path) && !diff.begun.contains_key(&e.path));
    let parts: Vec<u8> = made.take(MOST).flat_map(|e| [b"./".as_slice(), &partial(&e.path), b"\0"].concat()).collect();
    let script = format!(
        "cd -- {} || exit 96\nxargs -0 -r sh -c 'rm -f -- \"$@\"; for p; do rmdir -- \"${{p%/*}}\" 2>/dev/null; done; :' sh",
        quote(&dashed(job.target))
    );
    job.to.exec(job.cx, Exec { sudo: job.o.sudo, stdin: Some(parts), ..Exec::new(script) }).await?;
    Ok(())
}

/// What differs, block by block; neighbours as one piece.
fn pieces(ours: &[String], theirs: &[String], block: u64, size: u64) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for (i, _) in ours.iter().enumerate().filter(|(i, sum)| theirs.get(*i) != Some(sum)) {
        let from = i as u64 * block;
        let n = block.min(size.saturating_sub(from));
        match out.last_mut() {
            Some((at, len)) if *at + *len == from => *len += n,
            _ => out.push((from, n)),
        }
    }
    out
}

/// Joins pieces over the smallest gaps until there are no more than `most`.
fn limit(all: &mut [Patch], most: usize) {
    while all.iter().map(|p| p.pieces.len()).sum::<usize>() > most {
        let gap = |w: &[(u64, u64)]| match w {
            [(a, n), (b, _)] => b - (a + n),
            _ => u64::MAX,
        };
        let widest = all.iter().flat_map(|p| p.pieces.windows(2).map(gap)).min();
        let Some(smallest) = widest else { return };
        for p in all.iter_mut() {
            let mut joined: Vec<(u64, u64)> = Vec::new();
            for (at, n) in p.pieces.drain(..) {
                match joined.last_mut() {
                    Some((from, len)) if at - (*from + *len) <= smallest => *len = at + n - *from,
                    _ => joined.push((at, n)),
                }
            }
            p.pieces = joined;
        }
    }
}

/// The tool of sums, in `h`, and the shell by which `split` starts it.
const TOOL: &str =
    "h=sha256sum\nif echo | openssl dgst -sha256 -r >/dev/null 2>&1; then h='openssl dgst -sha256 -r'; fi\nexport SHELL=/bin/sh\n";

async fn source_sums(job: &Job<'_>, patches: &[&Patch], fine: bool) -> Result<Option<Sums>> {
    let mut script = format!("cd -- {} || exit 96\n", quote(&dashed(job.source)));
    if fine {
        script.push_str(&python("sum", patches.iter().copied(), false, ""));
    } else {
        script.push_str(TOOL);
        for p in patches {
            if let Some(path) = p.source() {
                script.push_str(&format!("echo @; split -b {} --filter=\"$h\" -- {path}\n", p.block));
            }
        }
    }
    // A file that went away is seen by the comparison afterwards.
    let (sums, end) = ask(job, &job.from, script).await?;
    Ok((!fine || !no_python(&end)).then_some(sums))
}

/// Whether there is no Python that could have done it.
fn no_python(end: &Option<(i32, String)>) -> bool {
    matches!(end, Some((97 | 126 | 127, _)))
}

/// Makes a copy of what is there to write into, unless an earlier try has left one, and sums its blocks.
async fn target_sums(job: &Job<'_>, patches: &[&Patch], fine: bool) -> Result<Option<Sums>> {
    let mut script = format!("cd -- {} || exit 96\numask 077\n", quote(&dashed(job.target)));
    script.push_str(&if fine { python("sum", patches.iter().copied(), true, "") } else { TOOL.to_string() });
    for p in patches.iter().filter(|_| !fine) {
        if let (Some(path), Some(partial)) = (p.source(), p.partial()) {
            script.push_str(&format!(
                "echo @; p={partial}\nif [ -L \"$p\" ] || [ ! -f \"$p\" ]; then\n  mkdir -p -- \"${{p%/*}}\" && rm -rf -- \"$p\" && \
                 cp --reflink=auto -- {path} \"$p\" || {{ rm -f -- \"$p\"; exit 1; }}\nfi\nsplit -b {} --filter=\"$h\" -- \"$p\"\n",
                p.block
            ));
        }
    }
    let (sums, end) = ask(job, &job.to, script).await?;
    match end {
        end if fine && no_python(&end) => Ok(None),
        Some((status, stderr)) => Err(failure::transfer(&job.sides(), failure::Side::To, &stderr, status)),
        None => Ok(Some(sums)),
    }
}

type Sums = Vec<Vec<String>>;

/// Runs a script that prints the sums of files, with `@` before each file's. What it said when it failed comes with them.
async fn ask(job: &Job<'_>, host: &Session, script: String) -> Result<(Sums, Option<(i32, String)>)> {
    let Channel { stdin: _stdin, mut stdout, done } = host.open(job.cx, Exec { sudo: job.o.sudo, ..Exec::new(script) }).await?;
    let mut text = Vec::new();
    let _ = stdout.read_to_end(&mut text).await;
    let (status, stderr) = done.await?;
    let mut all: Sums = Vec::new();
    for line in String::from_utf8_lossy(&text).lines() {
        match (line, all.last_mut()) {
            ("@", _) => all.push(Vec::new()),
            (sum, Some(sums)) => sums.push(sum.chars().take(64).collect()),
            _ => {}
        }
    }
    Ok((all, (status != 0).then_some((status, stderr))))
}

/// The part of the source's stream that holds the pieces. It ends with 74 when a file turned out shorter than it was.
pub(super) fn send(patches: &[Patch]) -> String {
    let mut out = String::new();
    if patches.iter().any(|p| p.fine) {
        out.push_str(&python("send", patches.iter().filter(|p| p.fine), false, ""));
        out.push_str("s=$?; [ $s -eq 0 ] || exit $s\n");
    }
    for p in patches.iter().filter(|p| !p.fine) {
        let Some(path) = p.source() else { continue };
        for (at, n) in &p.pieces {
            out.push_str(&format!(
                "dd if={path} bs=1M iflag=skip_bytes,count_bytes,fullblock skip={at} count={n} status=none\ns=$?\n\
                 [ \"$(stat -L -c %s -- {path} || echo 0)\" -ge {} ] || exit 74\n[ $s -eq 0 ] || exit 1\n",
                at + n
            ));
        }
    }
    out
}

/// The part of the target's side that takes them.
pub(super) fn receive(patches: &[Patch]) -> String {
    let mut out = String::new();
    if !patches.is_empty() {
        // What a file holds is for nobody else before it has its permissions.
        out.push_str("umask 077\n");
    }
    if patches.iter().any(|p| p.fine) {
        out.push_str(&python("take", patches.iter().filter(|p| p.fine), true, " || exit 1"));
    }
    for p in patches.iter().filter(|p| !p.fine) {
        let Some(partial) = p.partial() else { continue };
        out.push_str(&format!("p={partial}\nmkdir -p -- \"${{p%/*}}\" || exit 1\n"));
        if !p.compared() {
            out.push_str("rm -rf -- \"$p\"; : >\"$p\" || exit 1\n");
        }
        for (at, n) in &p.pieces {
            out.push_str(&format!(
                "dd of=\"$p\" bs=1M iflag=count_bytes,fullblock oflag=seek_bytes conv=notrunc seek={at} count={n} status=none || exit 1\n"
            ));
        }
        out.push_str(&format!("truncate -s {} -- \"$p\" || exit 1\n", p.entry.size));
    }
    out
}

/// Compares what was written with the source's sums, gives the files their attributes, and puts them in their place. Gives the paths
/// of those that are not as the source's blocks were.
pub(super) async fn finish(job: &Job<'_>, load: &Load<'_>) -> Result<Paths> {
    let all: Vec<&Patch> = load.patches.iter().collect();
    let (wrong, heads) = futures::try_join!(written(job, load.patches), heads(job, load, &all))?;
    let good = all.into_iter().zip(heads).filter(|(p, _)| !wrong.contains(&p.entry.path));
    let (mut archive, mut script) = (Vec::new(), format!("cd -- {} || exit 96\n", quote(&dashed(job.target))));
    let unpack = tools::unpack(job, load.tools);
    script.push_str(&format!("mkdir -p -- {PARTIAL} && {unpack} -C {PARTIAL} || exit 1\n"));
    let mut failed = wrong.clone();
    for (i, (p, head)) in good.enumerate() {
        let (Some(path), Some(partial), Some(head)) = (p.source(), p.partial(), head) else {
            // It has gone, or cannot be carried so: the next round sees to it.
            failed.insert(p.entry.path.clone());
            continue;
        };
        archive.extend_from_slice(&header::alone(&head, &format!("attributes-{i}")));
        script.push_str(&format!(
            "p={partial}; a={PARTIAL}/attributes-{i}\ncp --attributes-only --preserve=all -- \"$a\" \"$p\" && rm -f -- \"$a\" && mv -f -- \"$p\" {path} || exit 1\n\
             rmdir -- \"${{p%/*}}\" 2>/dev/null\n"
        ));
    }
    archive.extend_from_slice(&[0; 1024]);
    script.push_str(&format!("rmdir -- {PARTIAL} 2>/dev/null; :"));
    let done = job.to.exec(job.cx, Exec { sudo: job.o.sudo, stdin: Some(archive), ..Exec::new(script) }).await?;
    if done.status != 0 {
        return Err(failure::transfer(&job.sides(), failure::Side::To, &String::from_utf8_lossy(&done.stderr), done.status));
    }
    Ok(failed)
}

/// The files of which a written block is not as the source's was.
async fn written(job: &Job<'_>, patches: &[Patch]) -> Result<Paths> {
    let these: Vec<&Patch> = patches.iter().filter(|p| p.compared() && !p.pieces.is_empty()).collect();
    if these.is_empty() {
        return Ok(Paths::new());
    }
    let fine = these.iter().any(|p| p.fine);
    let mut script = format!("cd -- {} || exit 96\n", quote(&dashed(job.target)));
    script.push_str(&if fine { python("check", these.iter().copied(), true, "") } else { TOOL.to_string() });
    for p in these.iter().filter(|_| !fine) {
        let Some(partial) = p.partial() else { continue };
        script.push_str("echo @\n");
        for (at, n) in &p.pieces {
            script.push_str(&format!(
                "dd if={partial} bs=1M iflag=skip_bytes,count_bytes,fullblock skip={at} count={n} status=none | split -b {} --filter=\"$h\"\n",
                p.block
            ));
        }
    }
    let (sums, _) = ask(job, &job.to, script).await?;
    let mut wrong = Paths::new();
    for (i, p) in these.iter().enumerate() {
        let want = p.pieces.iter().flat_map(|(at, n)| (at / p.block..(at + n).div_ceil(p.block)).map(|b| p.sums.get(b as usize)));
        if !want.eq(sums.get(i).into_iter().flatten().map(Some)) {
            wrong.insert(p.entry.path.clone());
        }
    }
    Ok(wrong)
}

/// The beginnings of archives of these files, as the source's `tar` makes them: there all attributes are.
async fn heads(job: &Job<'_>, load: &Load<'_>, patches: &[&Patch]) -> Result<Vec<Option<Vec<u8>>>> {
    let mut script = format!("cd -- {} || exit 96\n", quote(&dashed(job.source)));
    let pack = tools::pack_one(job, load.tools);
    for p in patches {
        let Some(path) = p.source() else { continue };
        script.push_str(&format!("echo @; {pack} -- {path} 2>/dev/null | head -c {} | od -An -v -tx1\n", header::MOST));
    }
    let Channel { stdin: _stdin, mut stdout, done } = job.from.open(job.cx, Exec { sudo: job.o.sudo, ..Exec::new(script) }).await?;
    let mut text = Vec::new();
    let _ = stdout.read_to_end(&mut text).await;
    done.await?;
    let mut all: Vec<Vec<u8>> = Vec::new();
    for line in String::from_utf8_lossy(&text).lines() {
        match (line, all.last_mut()) {
            ("@", _) => all.push(Vec::new()),
            (hex, Some(bytes)) => bytes.extend(hex.split_whitespace().filter_map(|h| u8::from_str_radix(h, 16).ok())),
            _ => {}
        }
    }
    Ok(all.into_iter().map(|bytes| header::read(&bytes)).collect())
}

#[cfg(test)]
mod tests {
    use super::super::manifest::tests::entry;
    use super::*;

    fn sums(of: &str) -> Vec<String> {
        of.chars().map(String::from).collect()
    }

    fn patch(pieces: &[(u64, u64)]) -> Patch {
        Patch { entry: entry("d/f", "f 644 90 1.0 1:1 1 8 a:b"), block: 10, sums: sums("x"), pieces: pieces.to_vec(), fine: false }
    }

    #[test]
    fn neighbours_go_as_one_piece_and_the_last_block_is_short() {
        assert_eq!(pieces(&sums("abcdef"), &sums("abXXe"), 10, 55), [(20, 20), (50, 5)]);
        assert_eq!(pieces(&sums("abc"), &sums("abcd"), 10, 30), [], "what is behind the end is cut off");
        assert_eq!(pieces(&sums("ab"), &[], 10, 15), [(0, 15)]);
    }

    #[test]
    fn close_pieces_are_joined_when_there_are_many() {
        let mut all = [patch(&[(0, 10), (20, 10), (80, 10)]), patch(&[(0, 10), (50, 10)])];
        limit(&mut all, 4);
        assert_eq!((all[0].pieces.as_slice(), all[1].pieces.len()), (&[(0, 30), (80, 10)][..], 2));
        limit(&mut all, 1);
        assert_eq!((all[0].pieces.as_slice(), all[1].pieces.as_slice()), (&[(0, 90)][..], &[(0, 60)][..]), "one piece a file is the least");
    }

    #[test]
    fn blocks_are_few() {
        assert_eq!([9 << 20, 1 << 30, 1 << 40].map(|n| block(n, false)), [1 << 20, 16 << 20, 64 << 20]);
        assert_eq!([9 << 20, 1 << 30, 1 << 40].map(|n| block(n, true)), [64 << 10, 256 << 10, 64 << 20]);
        assert_eq!((partial(b"a/b/c"), partial(b"c")), (b"a/b/.runbook-partial/c".to_vec(), b".runbook-partial/c".to_vec()));
    }

    #[test]
    fn one_process_is_told_blocks_and_not_bytes() {
        let p = patch(&[(0, 20), (50, 10), (80, 10)]);
        assert_eq!(p.line(false), "2e2f642f66 - 90 10 0+2,3+1,2+1\n");
        assert_eq!(patch(&[]).line(true), "2e2f642f66 2e2f642f2e72756e626f6f6b2d7061727469616c2f66 90 10 -\n");
    }

    #[test]
    fn what_mostly_differs_is_for_rsync() {
        let all = [patch(&[(0, 40)]), patch(&[(0, 50)])];
        assert!(worth(&Diff { updated: 180, ..Diff::default() }, &all));
        assert!(!worth(&Diff { updated: 180, ..Diff::default() }, &[patch(&[(0, 50)])]), "more than half");
        assert!(!worth(&Diff { updated: 180 + WHOLE + 1, ..Diff::default() }, &all), "much that cannot go in blocks");
    }

    #[test]
    fn both_ends_speak_of_the_same_bytes() {
        let all = [patch(&[(0, 10), (80, 10)])];
        let (s, r) = (send(&all), receive(&all));
        assert!(s.contains("if=./d/f") && s.contains("skip=80 count=10") && s.contains("-ge 90 ]"), "{s}");
        assert!(r.contains("p=./d/.runbook-partial/f") && r.contains("seek=80 count=10") && r.contains("truncate -s 90"), "{r}");
    }
}
