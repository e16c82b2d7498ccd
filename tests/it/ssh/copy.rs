//! Copies from host to host.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use runbook_core::primitive::Outcome;
use runbook_core::{Code, Result, Value};

use super::{Bench, failure, field, options};
use crate::support::sshd::{Sshd, environment};

/// `old` with something in it, and `new`.
fn two() -> Option<(Bench, Sshd)> {
    let mut b = Bench::new("")?;
    let new = Sshd::start("")?;
    b.env = environment(&[("old", b.host.settings()), ("new", new.settings())]);
    Some((b, new))
}

async fn copy(b: &Bench, opts: Value) -> Result<Outcome> {
    let host = |name: &str| b.pure(None, "host", None, vec![name.into()]).unwrap().as_record().unwrap().clone();
    b.act_on(&b.cx("c"), host("new"), "copy_from", vec![host("old").into(), "up loads".into(), "the copy".into(), opts]).await
}

/// Everything in a folder: path, kind, mode, time, content or link.
fn tree(root: &Path) -> Vec<(PathBuf, u32, i64, i64, Vec<u8>)> {
    let mut all = Vec::new();
    let mut stack = vec![root.to_path_buf()];
    while let Some(dir) = stack.pop() {
        for e in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let meta = std::fs::symlink_metadata(e.path()).unwrap();
            let (content, time) = if meta.is_symlink() {
                (std::fs::read_link(e.path()).unwrap().into_os_string().into_encoded_bytes(), (0, 0))
            } else if meta.is_dir() {
                stack.push(e.path());
                (vec![], (0, 0))
            } else {
                (std::fs::read(e.path()).unwrap(), (meta.mtime(), meta.mtime_nsec()))
            };
            all.push((e.path().strip_prefix(root).unwrap().to_path_buf(), meta.mode(), time.0, time.1, content));
        }
    }
    all.sort();
    all
}

fn fill(b: &Bench) -> PathBuf {
    let root = b.host.home().join("up loads");
    for i in 0..300 {
        b.write(&format!("up loads/d{}/f{i}", i % 7), format!("file {i}\n").repeat(i));
    }
    b.write("up loads/-rf", "dash");
    b.write("up loads/it's\na \"name\" ü \\n", "odd");
    b.write("up loads/empty", "");
    b.write("up loads/big", vec![7u8; 3 << 20]);
    std::fs::create_dir(root.join("hollow")).unwrap();
    symlink("d1/f1", root.join("link")).unwrap();
    symlink("/nowhere/at all", root.join("dangling")).unwrap();
    std::fs::set_permissions(root.join("d2"), std::fs::Permissions::from_mode(0o750)).unwrap();
    std::fs::set_permissions(root.join("d1/f8"), std::fs::Permissions::from_mode(0o4711)).unwrap();
    root
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_becomes_equal_and_then_there_is_nothing_to_do() {
    let Some((b, new)) = two() else { return };
    let root = fill(&b);
    let to = new.home().join("the copy");
    let o = copy(&b, options([])).await.unwrap();
    assert_eq!(o.changed, Some(true));
    assert!(tree(&root) == tree(&to) && tree(&root).len() > 300);
    assert_eq!(field(&o, "deleted"), 0i64.into());
    let o = copy(&b, options([])).await.unwrap();
    assert_eq!((o.changed, field(&o, "files"), field(&o, "bytes")), (Some(false), 0i64.into(), Value::Bytes(0)));
    assert!(o.note.unwrap().starts_with("both are equal"));
    // Only what differs goes over.
    b.write("up loads/d3/f3", "new text");
    b.write("up loads/new", "more");
    std::fs::set_permissions(root.join("d4/f4"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::remove_file(root.join("link")).unwrap();
    symlink("d2", root.join("link")).unwrap();
    std::fs::write(to.join("surplus"), "stays").unwrap();
    let o = copy(&b, options([])).await.unwrap();
    // Four of them, the new one's and the changed one's folders, and the root for its time of change.
    assert!((4..=8).contains(&field(&o, "files").as_int().unwrap()), "{o:?}");
    assert!(to.join("surplus").exists(), "nothing is deleted unasked");
    std::fs::create_dir_all(to.join("extra/deep")).unwrap();
    std::fs::write(to.join("extra/deep/file"), "goes").unwrap();
    let o = copy(&b, options([("delete", true.into())])).await.unwrap();
    assert_eq!(field(&o, "deleted"), 4i64.into());
    assert!(tree(&root) == tree(&to));
}

/// A controller that dies right behind the last file leaves the folder of its halves, and one whose file then takes another way, or goes,
/// the half as well.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_broken_copy_has_left_goes_with_the_next() {
    let Some((b, new)) = two() else { return };
    let root = fill(&b);
    std::fs::create_dir_all(root.join("gone/deep")).unwrap();
    let to = new.home().join("the copy");
    copy(&b, options([])).await.unwrap();
    let half = |folder: &str, file: &str| {
        let at = to.join(folder).join(".runbook-partial");
        std::fs::create_dir(&at).unwrap();
        std::fs::write(at.join(file), "half").unwrap();
    };
    let time = |path: &Path| std::fs::metadata(path).map(|m| (m.mtime(), m.mtime_nsec())).unwrap();
    let before = [time(&to), time(&to.join("d2"))];
    half("", "big");
    half("d2", "f2");
    std::fs::create_dir(to.join("d3/.runbook-partial")).unwrap();
    std::fs::remove_dir_all(root.join("gone")).unwrap();
    half("gone/deep", "x");
    // Seen, and no difference by itself.
    let host = |name: &str| b.pure(None, "host", None, vec![name.into()]).unwrap().as_record().unwrap().clone();
    let args = || vec![host("old").into(), "up loads".into(), "the copy".into(), options([])];
    let diff = b.act_on(&b.cx("d"), host("new"), "diff_from", args()).await.unwrap();
    assert_eq!(field(&diff, "extra"), 2i64.into(), "{diff:?}");
    assert!(to.join("d3/.runbook-partial").exists());
    copy(&b, options([("delete", true.into())])).await.unwrap();
    assert!(tree(&root) == tree(&to), "nothing of it is left");
    assert_eq!([time(&to), time(&to.join("d2"))], [time(&root), time(&root.join("d2"))]);
    assert_eq!(time(&to.join("d2")), before[1]);
    half("d2", "f2");
    let o = copy(&b, options([])).await.unwrap();
    assert_eq!((o.changed, time(&to.join("d2"))), (Some(true), before[1]), "its time was another's");
    assert!(tree(&root) == tree(&to));
}

#[tokio::test(flavor = "multi_thread")]
async fn exclusion_holds_on_both_sides() {
    let Some((b, new)) = two() else { return };
    fill(&b);
    let to = new.home().join("the copy");
    std::fs::create_dir_all(to.join("d1/cache")).unwrap();
    std::fs::write(to.join("d1/cache/mine"), "kept").unwrap();
    b.write("up loads/d1/cache/theirs", "no");
    b.write("up loads/x.tmp", "no");
    let exclude = Value::List(vec!["cache".into(), "*.tmp".into(), "d2/f2".into()]);
    copy(&b, options([("delete", true.into()), ("exclude", exclude)])).await.unwrap();
    assert!(to.join("d1/cache/mine").exists() && !to.join("d1/cache/theirs").exists());
    assert!(!to.join("x.tmp").exists() && !to.join("d2/f2").exists() && to.join("d2/f9").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_that_conflict() {
    let Some((b, new)) = two() else { return };
    let root = fill(&b);
    let to = new.home().join("the copy");
    std::fs::create_dir_all(to.join("big/inner")).unwrap();
    std::fs::create_dir_all(new.home().join("outside")).unwrap();
    symlink("../outside", to.join("d1")).unwrap();
    let e = failure(copy(&b, options([])).await, Code::FILE_WRITE);
    assert_eq!(e.message, "the copy/big is a folder, and a file on old");
    copy(&b, options([("delete", true.into())])).await.unwrap();
    assert!(tree(&root) == tree(&to));
    assert_eq!(std::fs::read_dir(new.home().join("outside")).unwrap().count(), 0, "a link in the way is replaced, not followed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_changes_is_copied_whole() {
    let Some((b, new)) = two() else { return };
    let root = fill(&b);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut i = 0;
            while !stop.load(std::sync::atomic::Ordering::Acquire) {
                b.write(&format!("up loads/d5/live-{i}"), "an upload");
                i += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let done = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(copy(&b, options([]))));
        stop.store(true, std::sync::atomic::Ordering::Release);
        done.unwrap();
    });
    copy(&b, options([("delete", true.into())])).await.unwrap();
    assert!(tree(&root) == tree(&new.home().join("the copy")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_or_full_is_said() {
    let Some((b, new)) = two() else { return };
    let e = failure(copy(&b, options([])).await, Code::FILE_MISSING);
    assert_eq!((e.message.as_str(), e.host.as_deref()), ("there is no folder up loads", Some("old")));
    fill(&b);
    std::fs::write(new.home().join("the copy"), "a file").unwrap();
    failure(copy(&b, options([])).await, Code::FILE_READ);
    std::fs::remove_file(new.home().join("the copy")).unwrap();
    // A target without room for the big file.
    std::fs::create_dir(new.home().join("the copy")).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(new.home().join("the copy")).status();
    if mounted.is_ok_and(|s| s.success()) {
        let e = copy(&b, options([])).await;
        let _ = Command::new("umount").arg(new.home().join("the copy")).status();
        let e = failure(e, Code::DISK_SPACE);
        assert!(e.message.contains("it needs 3.4MiB more, and 1MiB are free"), "{e}");
    } else {
        eprintln!("skipped: the full disk, since nothing can be mounted here");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_cut_off_is_finished_by_the_next() {
    let Some((b, new)) = two() else { return };
    let root = fill(&b);
    b.write("up loads/huge", vec![9u8; 60 << 20]);
    let cut = async {
        tokio::time::sleep(Duration::from_millis(350)).await;
        new.cut();
        b.host.cut();
    };
    let (first, ()) = tokio::join!(copy(&b, options([])), cut);
    if let Err(e) = first {
        assert!(e.code == Code::SSH_LOST || e.retryable, "{e:?}");
    }
    copy(&b, options([("delete", true.into())])).await.unwrap();
    assert!(tree(&root) == tree(&new.home().join("the copy")));
}
