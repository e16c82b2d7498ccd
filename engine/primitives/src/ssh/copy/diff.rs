//! What differs between two folders: both are listed at once and walked in step; only what differs is kept.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use runbook_core::{Code, Error, Result};

use super::manifest::{Entry, Manifest};
use super::{Job, blocks, xattrs};

/// What has to be done.
#[derive(Default)]
pub(super) struct Diff {
    /// To be copied, parents before what they hold.
    pub copy: Vec<Entry>,
    /// On the target alone; empty unless deletion is wanted.
    pub surplus: Vec<Entry>,
    /// On the target, in the way of an entry of the source.
    pub conflicts: Vec<Entry>,
    /// Files that look equal; kept only to be compared by checksum.
    pub look_equal: Vec<Entry>,
    /// How many entries are equal.
    pub equal: u64,
    /// How many are on the target alone.
    pub extra: u64,
    /// How many entries the target has.
    pub target: u64,
    /// Entries that the target lacks.
    pub new: u64,
    /// How many entries differ; more than `copy` holds when one round cannot take them all.
    pub differ: u64,
    /// Bytes of the files that differ.
    pub all_bytes: u64,
    /// Bytes of those that are in `copy`.
    pub bytes: u64,
    /// Bytes of files of which the target has another version.
    pub updated: u64,
    /// Whether more differs than one round takes.
    pub more: bool,
    /// Room that the target needs.
    pub needs: u64,
    /// Kinds that are not copied.
    pub left_out: u64,
    /// Whether owners are set.
    pub owners: bool,
    /// Room on the target: bytes and files.
    pub room: (Option<u64>, Option<u64>),
    /// What the source's clock said before it was listed, and when it was heard here.
    pub clock: String,
    pub heard: Option<Instant>,
    /// The size of what the target has of large files that differ.
    pub there: HashMap<Box<[u8]>, u64>,
    /// What a broken copy has left of files on the target, in bytes on the disk.
    pub begun: HashMap<Box<[u8]>, u64>,
    /// The folders on the target that it has left those in.
    pub partials: Vec<Entry>,
    /// The folders of the source.
    pub folders: HashMap<Box<[u8]>, Entry>,
    /// All names of each file of the source that has several, by the first.
    pub groups: HashMap<Arc<[u8]>, Vec<Entry>>,
}

impl Diff {
    pub(super) fn is_nothing(&self) -> bool {
        self.copy.is_empty() && self.surplus.is_empty() && self.conflicts.is_empty()
    }

    fn take(&mut self, e: Entry, there: Option<&Entry>) {
        self.differ += 1;
        self.new += u64::from(there.is_none());
        if e.is_file() && e.same_as.is_none() {
            let before = there.filter(|t| t.is_file()).map_or(0, |t| t.stored);
            self.all_bytes += e.size;
            self.updated += if before > 0 { e.size } else { 0 };
            self.needs += e.stored.min(e.size).saturating_sub(before);
        }
        // The rest is found again by the next comparison: lists of any length take bounded memory here.
        if self.copy.len() < MOST {
            self.copy.push(e);
        } else {
            self.more = true;
        }
    }

    /// Adds what has to go along: every name of a file that has several, and the folders whose time of change the copy would alter.
    pub(super) fn complete(&mut self) {
        let first = |e: &Entry| e.same_as.clone().unwrap_or_else(|| e.path.as_ref().into());
        let listed: BTreeSet<Arc<[u8]>> = self.copy.iter().filter(|e| e.linked).map(first).collect();
        for first in listed {
            self.copy.extend(self.groups.get(&first).into_iter().flatten().cloned());
        }
        let touched: BTreeSet<&[u8]> = self.copy.iter().chain(&self.surplus).filter(|e| !e.path.is_empty()).map(Entry::parent).collect();
        let parents: Vec<Entry> = touched.into_iter().filter_map(|p| self.folders.get(p).cloned()).collect();
        self.copy.extend(parents);
        self.copy.sort_by(|a, b| a.path.cmp(&b.path));
        self.copy.dedup_by(|a, b| a.path == b.path);
        self.bytes = self.copy.iter().filter(|e| e.is_file() && e.same_as.is_none()).map(|e| e.size).sum();
    }
}

/// How many entries one round takes.
const MOST: usize = 200_000;

/// Compares both folders. `forced` are paths whose content is known to differ.
pub(super) async fn compare(job: &Job<'_>, forced: &BTreeSet<Box<[u8]>>) -> Result<Diff> {
    let o = &job.o;
    let (a, b) = futures::join!(Manifest::open(job, &job.from, job.source), Manifest::open(job, &job.to, job.target));
    let (mut a, mut b) = (a?, b?);
    if !a.there {
        return Err(Error::new(Code::FILE_MISSING, format!("there is no folder {}", job.source))
            .host(job.from.name())
            .hint("paths are absolute, or relative to the login's home folder"));
    }
    let attributes = if o.xattrs && b.there { Some(xattrs::read_both(job).await?) } else { None };
    let mut diff = Diff { owners: b.root, room: b.room, clock: std::mem::take(&mut a.clock), heard: Some(a.heard), ..Diff::default() };
    let (mut left, mut right) = (wanted(job, &mut a, None).await?, wanted(job, &mut b, Some(&mut diff)).await?);
    loop {
        let order = match (&left, &right) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(l), Some(r)) => l.order(r),
        };
        let l = if order == Ordering::Greater { None } else { std::mem::replace(&mut left, wanted(job, &mut a, None).await?) };
        let r = if order == Ordering::Less { None } else { std::mem::replace(&mut right, wanted(job, &mut b, Some(&mut diff)).await?) };
        diff.target += u64::from(r.is_some());
        let Some(l) = l else {
            diff.extra += 1;
            diff.surplus.extend(r.filter(|_| o.delete));
            continue;
        };
        match l.kind {
            b'd' => {
                diff.folders.insert(l.path.clone(), l.clone());
            }
            b'f' if l.linked => diff.groups.entry(l.same_as.clone().unwrap_or_else(|| l.path.as_ref().into())).or_default().push(l.clone()),
            b'f' | b'l' => {}
            _ => {
                diff.left_out += 1;
                continue;
            }
        }
        let Some(r) = r else {
            diff.take(l, None);
            continue;
        };
        let alike = attributes.as_ref().is_none_or(|both| both.same(&l.path));
        if l.same(&r, diff.owners) && alike && !forced.contains(&l.path) {
            diff.equal += 1;
            if o.checksum && l.is_file() {
                diff.look_equal.push(l);
            }
            continue;
        }
        if l.kind != r.kind || (r.same_as.is_some() && l.same_as != r.same_as) {
            // A file that shares its content with another one on the target alone must not be written through.
            diff.conflicts.push(r.clone());
        } else if r.is_file() && l.size >= blocks::LARGE {
            diff.there.insert(l.path.clone(), r.size);
        }
        diff.take(l, Some(&r));
    }
    let kept: u64 = diff.copy.iter().filter_map(|e| diff.begun.get(&e.path)).sum();
    diff.needs = diff.needs.saturating_sub(kept);
    diff.complete();
    Ok(diff)
}

/// The next entry that is not excluded. What an earlier copy has left on the target is noted apart.
async fn wanted(job: &Job<'_>, m: &mut Manifest, mut diff: Option<&mut Diff>) -> Result<Option<Entry>> {
    loop {
        match m.next().await? {
            Some(e) if job.o.exclude.exclude(&e.path, e.kind == b'd') => {}
            Some(e) if is_ours(&e.path) => {
                let Some(diff) = diff.as_deref_mut() else { continue };
                match whole(&e.path).filter(|_| e.is_file()) {
                    Some(whole) => drop(diff.begun.insert(whole.into(), e.stored)),
                    None if e.kind == b'd' && e.path.ends_with(PARTIAL.as_bytes()) => diff.partials.push(e),
                    None => {}
                }
            }
            other => return Ok(other),
        }
    }
}

/// The path of the file of which this is a part.
fn whole(path: &[u8]) -> Option<Vec<u8>> {
    let at = path.iter().rposition(|b| *b == b'/')?;
    let (folder, name) = path.split_at_checked(at)?;
    folder.strip_suffix(PARTIAL.as_bytes()).map(|f| [f, name.get(1..).unwrap_or_default()].concat())
}

/// Where files that have not come whole are kept on the target, beside their place.
pub(super) const PARTIAL: &str = ".runbook-partial";

fn is_ours(path: &[u8]) -> bool {
    path.split(|b| *b == b'/').any(|name| name == PARTIAL.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::manifest::tests::entry;
    use super::*;

    #[test]
    fn folders_and_further_names_go_along() {
        let dir = |p: &str| entry(p, "d 755 4 1.0 1:1 2 8 a:b");
        let file = |p: &str| entry(p, "f 644 4 1.0 1:2 2 8 a:b");
        let mut second = file("d/y");
        second.same_as = Some(b"d/x".as_slice().into());
        let folders = ["", "d", "e"].map(|p| (dir(p).path.clone(), dir(p))).into();
        let groups = [(Arc::from(b"d/x".as_slice()), vec![file("d/x"), second.clone()])].into();
        let mut diff = Diff { copy: vec![second], surplus: vec![file("e/old")], folders, groups, ..Diff::default() };
        diff.complete();
        assert_eq!(diff.copy.iter().map(Entry::shown).collect::<Vec<_>>(), ["d", "d/x", "d/y", "e"]);
    }

    #[test]
    fn what_is_kept_of_a_broken_copy_is_never_copied() {
        let of = |p: &[u8]| whole(p).map(|w| super::super::manifest::shown(&w));
        assert_eq!((of(b".runbook-partial/x"), of(b"a/b/.runbook-partial/x").as_deref()), (Some("x".into()), Some("a/b/x")));
        assert_eq!((of(b"a/x"), of(b".runbook-partial")), (None, None));
        assert!(is_ours(b".runbook-partial") && is_ours(b"a/.runbook-partial/x") && !is_ours(b"a/.runbook-partially"));
    }
}
