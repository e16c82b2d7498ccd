//! Large files without rsync: only the blocks that differ go over, beside the file's place.

use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::Command;

use runbook_core::{Code, Value};

use super::copy_ways::{Pair, noise, run, same, touch, way};
use super::{failure, field, options};
use crate::support::sshd::Sshd;

fn sent(o: &runbook_core::primitive::Outcome) -> u64 {
    let Value::Bytes(n) = field(o, "sent") else { panic!("{o:?}") };
    n
}

/// Makes a host on which everything is but Python; with some text, a program in its place.
fn without_python(host: &mut Sshd, instead: Option<&str>) {
    let bin: PathBuf = host.path("bin");
    std::fs::create_dir(&bin).unwrap();
    for dir in ["/usr/bin", "/bin", "/usr/sbin"] {
        for e in std::fs::read_dir(dir).unwrap().flatten().filter(|e| !e.file_name().to_string_lossy().starts_with("python3")) {
            let _ = symlink(e.path(), bin.join(e.file_name()));
        }
    }
    if let Some(text) = instead {
        std::fs::write(bin.join("python3"), text).unwrap();
        std::fs::set_permissions(bin.join("python3"), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    host.down();
    host.configure(&format!("SetEnv PATH={}", bin.display()));
    host.up();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_blocks_that_differ_go_over() {
    for (via, python) in [("direct", true), ("controller", true), ("direct", false), ("controller", false)] {
        let Some(mut p) = Pair::start() else { return };
        if !python {
            without_python(&mut p.new, None);
        }
        std::fs::create_dir_all(p.from().join("d/it's \"deep\"")).unwrap();
        let big = p.from().join("d/it's \"deep\"/-big\nfile");
        std::fs::write(&big, noise(70 << 20, 7)).unwrap();
        std::fs::write(p.from().join("d/small"), "x").unwrap();
        let attributes = |mode: u32, note: &str| {
            std::os::unix::fs::chown(&big, Some(12345), Some(33)).unwrap();
            std::fs::set_permissions(&big, std::fs::Permissions::from_mode(mode)).unwrap();
            run("setfattr", &["-n".as_ref(), "user.note".as_ref(), "-v".as_ref(), note.as_ref(), big.as_os_str()]);
            run("setfacl", &["-m".as_ref(), "u:4711:rw".as_ref(), big.as_os_str()]);
            touch(&big, "2001-02-03T04:05:06.123456789");
            touch(&p.from().join("d/it's \"deep\""), "2002-02-02T02:02:02.5");
            touch(&p.from(), "2003-03-03T03:03:03");
        };
        attributes(0o4750, "first");
        let o = p.copy(way(via, "tar", &[])).await.unwrap();
        assert!(sent(&o) >= 70 << 20, "{via}");
        same(&p.from(), &p.to(), via);
        p.tidy(via);
        let there = p.to().join("d/it's \"deep\"/-big\nfile");
        let before = std::fs::metadata(&there).unwrap().ino();
        // A part in the middle, two neighbours at a border of blocks, and a longer end.
        let file = std::fs::File::options().write(true).open(&big).unwrap();
        file.write_at(&noise(1000, 3), 5_000_000).unwrap();
        file.write_at(&noise(1000, 4), (32 << 20) - 500).unwrap();
        file.write_at(&noise(300_000, 5), 70 << 20).unwrap();
        attributes(0o640, "second");
        let o = p.copy(way(via, "tar", &[("xattrs", true.into())])).await.unwrap();
        // Four places, in blocks of 64 KiB, or of 2 MiB.
        assert!(sent(&o) < if python { 1 << 20 } else { 9 << 20 }, "{via}: {}", sent(&o));
        same(&p.from(), &p.to(), via);
        assert_ne!(std::fs::metadata(&there).unwrap().ino(), before, "it takes its place at one stroke");
        // Shorter, and attributes alone.
        file.set_len(66 << 20).unwrap();
        attributes(0o600, "third");
        let o = p.copy(way(via, "tar", &[])).await.unwrap();
        assert!(sent(&o) < 3 << 20, "{via}: {}", sent(&o));
        same(&p.from(), &p.to(), via);
        attributes(0o604, "fourth");
        let o = p.copy(way(via, "tar", &[("xattrs", true.into())])).await.unwrap();
        assert!(sent(&o) < 1 << 20, "{via}: {}", sent(&o));
        same(&p.from(), &p.to(), via);
        // What looks equal and is not.
        let when = std::fs::metadata(&there).unwrap().modified().unwrap();
        let file = std::fs::File::options().write(true).open(&there).unwrap();
        file.write_at(b"flipped", 40 << 20).unwrap();
        file.set_modified(when).unwrap();
        let o = p.copy(way(via, "tar", &[("checksum", true.into())])).await.unwrap();
        assert!((o.changed, sent(&o) < 3 << 20) == (Some(true), true), "{via}: {o:?}");
        same(&p.from(), &p.to(), via);
        p.tidy(via);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_try_left_is_never_trusted() {
    let Some(p) = Pair::start() else { return };
    std::fs::create_dir_all(p.from()).unwrap();
    std::fs::write(p.from().join("big"), noise(70 << 20, 7)).unwrap();
    let partial = p.to().join(".runbook-partial");
    std::fs::create_dir_all(&partial).unwrap();
    let outside = p.new.home().join("outside");
    std::fs::write(&outside, "mine").unwrap();
    // A link in its place is not followed.
    symlink(&outside, partial.join("big")).unwrap();
    p.copy(way("controller", "tar", &[])).await.unwrap();
    assert_eq!(std::fs::read_to_string(&outside).unwrap(), "mine");
    same(&p.from(), &p.to(), "link");
    // The first half, with one wrong byte, and too long.
    let mut half = noise(70 << 20, 7);
    half[1_000_000] ^= 1;
    half[35 << 20..].fill(0);
    half.extend_from_slice(b"more");
    std::fs::remove_file(p.to().join("big")).unwrap();
    std::fs::create_dir_all(&partial).unwrap();
    std::fs::write(partial.join("big"), half).unwrap();
    let o = p.copy(way("controller", "tar", &[])).await.unwrap();
    assert!((35 << 20..45 << 20).contains(&sent(&o)), "{}", sent(&o));
    same(&p.from(), &p.to(), "half");
    p.tidy("half");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_for_a_second_copy_the_file_goes_whole() {
    let Some(p) = Pair::start() else { return };
    std::fs::create_dir_all(p.from()).unwrap();
    std::fs::write(p.from().join("big"), noise(70 << 20, 7)).unwrap();
    std::fs::create_dir(p.to()).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=100m", "none"]).arg(p.to()).status();
    if !mounted.is_ok_and(|s| s.success()) {
        eprintln!("skipped: nothing can be mounted here");
        return;
    }
    let first = p.copy(way("direct", "tar", &[])).await;
    let file = std::fs::File::options().write(true).open(p.from().join("big")).unwrap();
    file.write_at(b"changed", 1 << 20).unwrap();
    let second = p.copy(way("direct", "tar", &[])).await;
    let equal = std::fs::read(p.from().join("big")).unwrap() == std::fs::read(p.to().join("big")).unwrap();
    let partial = p.to().join(".runbook-partial").exists();
    // Somebody fills the disk while the file is on its way.
    std::fs::remove_file(p.to().join("big")).unwrap();
    std::fs::write(p.to().join("filler"), noise(60 << 20, 1)).unwrap();
    let full = p.copy(way("direct", "tar", &[("check_space", false.into())])).await;
    let half = p.to().join("big").exists();
    std::fs::remove_file(p.to().join("filler")).unwrap();
    let then = p.copy(way("direct", "tar", &[])).await;
    let at_last = std::fs::read(p.to().join("big")).is_ok_and(|there| there == std::fs::read(p.from().join("big")).unwrap());
    let _ = Command::new("umount").arg(p.to()).status();
    first.unwrap();
    assert!(sent(&second.unwrap()) >= 70 << 20 && equal && !partial);
    let e = failure(full, Code::DISK_SPACE);
    assert!(e.message.contains("No space left") && e.host.as_deref() == Some("new") && !half, "{e}");
    assert!(sent(&then.unwrap()) < 40 << 20 && at_last, "what had come was kept");
    p.tidy("room");
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_are_chosen_where_they_suit_and_rsync_where_they_do_not() {
    let Some(p) = Pair::start() else { return };
    std::fs::create_dir_all(p.from()).unwrap();
    let big = p.from().join("big");
    std::fs::write(&big, noise(40 << 20, 7)).unwrap();
    std::fs::write(p.from().join("small"), "x").unwrap();
    p.copy(options([])).await.unwrap();
    // A little of it.
    let file = std::fs::File::options().write(true).open(&big).unwrap();
    file.write_at(&noise(1 << 20, 3), 20 << 20).unwrap();
    std::fs::write(p.from().join("small"), "another").unwrap();
    let o = p.copy(options([])).await.unwrap();
    assert!(field(&o, "tool") == "tar".into() && sent(&o) < 2 << 20, "{o:?}");
    same(&p.from(), &p.to(), "blocks");
    p.tidy("blocks");
    // Something inserted at the beginning: every block differs, and rsync finds where they have gone.
    let all = std::fs::read(&big).unwrap();
    std::fs::write(&big, [b"inserted".as_slice(), &all].concat()).unwrap();
    let o = p.copy(options([])).await.unwrap();
    assert!(field(&o, "tool") == "rsync".into() && sent(&o) < 2 << 20, "{o:?}");
    same(&p.from(), &p.to(), "rsync");
    p.tidy("rsync");
    // Much that is too small for blocks.
    for i in 0..4 {
        std::fs::write(p.from().join(format!("middle{i}")), noise(7 << 20, i + 20)).unwrap();
    }
    p.copy(options([])).await.unwrap();
    for name in ["big", "middle0", "middle1", "middle2", "middle3"] {
        std::fs::File::options().write(true).open(p.from().join(name)).unwrap().write_at(b"different", 5 << 20).unwrap();
    }
    let o = p.copy(options([])).await.unwrap();
    assert!(field(&o, "tool") == "rsync".into() && sent(&o) < 2 << 20, "{o:?}");
    same(&p.from(), &p.to(), "middle");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_that_cannot_is_done_without() {
    for program in ["#!/bin/sh\nexit 97\n", "#!/no/such/program\n"] {
        let Some(mut p) = Pair::start() else { return };
        without_python(&mut p.new, Some(program));
        std::fs::create_dir_all(p.from()).unwrap();
        let big = p.from().join("big");
        std::fs::write(&big, noise(40 << 20, 7)).unwrap();
        p.copy(options([])).await.unwrap();
        for (tool, options) in [("rsync", options([])), ("tar", options([("tool", "tar".into())]))] {
            let file = std::fs::File::options().write(true).open(&big).unwrap();
            file.write_at(tool.as_bytes(), 20 << 20).unwrap();
            let o = p.copy(options).await.unwrap();
            assert!(field(&o, "tool") == tool.into() && sent(&o) < 2 << 20, "{o:?}");
            same(&p.from(), &p.to(), program);
            p.tidy(program);
        }
    }
}
