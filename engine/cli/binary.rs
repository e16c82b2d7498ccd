//! Which executable this is, for the journal.
//!
//! To read and hash its 50 MB takes as long as everything else that a short run does here. So the sum is kept in the project's state folder, with what tells
//! that the file is the same still; who can write there can write the journal.

use std::fs::{File, Metadata};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// SHA-256 of this executable; `state` is the project's state folder.
pub fn sum(state: &Path) -> Option<String> {
    sum_of(&File::open("/proc/self/exe").ok()?, &state.join("binary"))
}

fn sum_of(file: &File, kept: &Path) -> Option<String> {
    let now = stamp(&file.metadata().ok()?);
    if let Some(sum) = std::fs::read_to_string(kept).ok().and_then(|k| read(&k, &now)) {
        return Some(sum);
    }
    let sum = runbook_core::digest::sha256_of(file).ok()?;
    // Without it the next one takes a moment longer.
    let _ = keep(kept, &format!("{sum} {now}\n"));
    Some(sum)
}

/// What changes with the file. Nobody sets the time of the last change of an inode.
fn stamp(m: &Metadata) -> String {
    format!("{} {} {} {}.{:09} {}.{:09}", m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec())
}

/// The sum, when it was kept of the file as it is now.
fn read(kept: &str, now: &str) -> Option<String> {
    let (sum, then) = kept.strip_suffix('\n')?.split_once(' ')?;
    (then == now && sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit())).then(|| sum.to_string())
}

/// Whole or not at all, and never through a link.
fn keep(path: &Path, line: &str) -> std::io::Result<()> {
    let new = path.with_extension(std::process::id().to_string());
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
    let done = file.write_all(line.as_bytes()).and_then(|()| std::fs::rename(&new, path));
    if done.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_kept_until_the_file_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let (file, kept) = (folder.path().join("exe"), folder.path().join("binary"));
        let sum = |text: &str| {
            std::fs::write(&file, text).unwrap();
            sum_of(&File::open(&file).unwrap(), &kept).unwrap()
        };
        let of = |text: &str| runbook_core::digest::sha256_hex(text.as_bytes());
        assert_eq!(sum("one"), of("one"));
        let line = std::fs::read_to_string(&kept).unwrap();
        // What is kept is what is said.
        std::fs::write(&kept, line.replace(&of("one"), &of("kept"))).unwrap();
        assert_eq!(sum_of(&File::open(&file).unwrap(), &kept).unwrap(), of("kept"));
        assert_eq!(sum("two!"), of("two!"));
        assert_eq!(sum_of(&File::open(&file).unwrap(), &kept).unwrap(), of("two!"));
        for damaged in ["", "\n", "x y\n", line.trim_end()] {
            std::fs::write(&kept, damaged).unwrap();
            assert_eq!(sum_of(&File::open(&file).unwrap(), &kept).unwrap(), of("two!"), "{damaged:?}");
        }
        assert_eq!(kept.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        assert_eq!(sum_of(&File::open(&file).unwrap(), &folder.path().join("none/binary")).unwrap(), of("two!"));
    }
}
