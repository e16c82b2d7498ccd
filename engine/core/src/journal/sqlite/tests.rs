//! The SQLite store: the rules of every store, and what only a file can suffer.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use super::*;
use crate::error::Code;
use crate::journal::conformance::{self, chained, lock, log, new_run, now, ready};
use crate::journal::{Body, verify_run};

fn store(dir: &tempfile::TempDir) -> SqliteStore {
    SqliteStore::open(dir.path().join(".runbook/journal.db")).unwrap()
}

fn code<T>(r: Result<T>) -> Code {
    r.err().expect("an error").code
}

fn try_read(store: &SqliteStore, run: &str) -> Result<Vec<Entry>> {
    let mut all = Vec::new();
    store.entries(run, 0, &mut |e| {
        all.push(e);
        Ok(())
    })?;
    Ok(all)
}

/// Changes the file behind the store's back.
fn meddle(dir: &tempfile::TempDir, statements: &str) {
    Connection::open(dir.path().join(".runbook/journal.db")).unwrap().execute_batch(statements).unwrap();
}

#[test]
fn keeps_the_rules_of_a_store() {
    conformance::all(&|| {
        let dir = tempfile::tempdir().unwrap();
        Box::new(move || Arc::new(SqliteStore::open(dir.path().join(".runbook/journal.db")).unwrap()))
    });
}

#[test]
fn folder_and_files_are_for_the_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
    let files = [".runbook/journal.db", ".runbook/journal.db-wal", ".runbook/journal.db-shm"];
    let first = store(&dir);
    ready(&first);
    assert_eq!(mode(".runbook"), 0o700);
    assert!(files.iter().all(|f| mode(f) == 0o600));
    for f in files {
        std::fs::set_permissions(dir.path().join(f), std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    let second = store(&dir);
    assert!(files.iter().all(|f| mode(f) == 0o600), "tightened");
    drop((first, second));
    let left: Vec<_> = std::fs::read_dir(dir.path().join(".runbook")).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(left, ["journal.db"], "nothing else is left");
}

#[test]
fn what_is_no_journal_or_a_newer_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(".runbook/journal.db");
    drop(store(&dir));
    meddle(&dir, &format!("PRAGMA user_version = {}", SCHEMA + 1));
    assert_eq!(code(SqliteStore::open(&path)), Code::JOURNAL_FORMAT);
    meddle(&dir, "PRAGMA application_id = 7");
    assert_eq!(code(SqliteStore::open(&path)), Code::STORE);
    std::fs::write(&path, "this is not a database, it is a text that somebody put here\n".repeat(200)).unwrap();
    assert_eq!(code(SqliteStore::open(&path)), Code::STORE_DAMAGED);
    std::fs::write(&path, "").unwrap();
    assert_eq!(code(SqliteStore::open(&path)), Code::STORE_DAMAGED, "an empty file was cut");
    let e = SqliteStore::open(dir.path().join(".runbook/journal.db/below")).err().unwrap();
    assert!(e.code == Code::STORE && e.hint.is_some(), "{e}");
}

#[test]
fn a_row_changed_removed_or_added_behind_its_back_is_found() {
    for (statement, seq) in [
        ("UPDATE entries SET data = replace(data, 'message 3', 'message 4') WHERE id & 0xffffffff = 3", 3),
        ("UPDATE entries SET time = '2026-01-02T03:04:05.679Z' WHERE id & 0xffffffff = 3", 3),
        ("UPDATE entries SET kind = 'output' WHERE id & 0xffffffff = 3", 3),
        ("UPDATE entries SET hash = zeroblob(32) WHERE id & 0xffffffff = 3", 3),
        ("DELETE FROM entries WHERE id & 0xffffffff = 3", 3),
        ("DELETE FROM entries WHERE id & 0xffffffff >= 8", 8),
        ("DELETE FROM entries", 0),
        ("UPDATE entries SET id = id + 1 WHERE id & 0xffffffff = 9", 9),
        ("UPDATE runs SET id = 's'; UPDATE locks SET run = 's'", 0),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let first = store(&dir);
        let fence = ready(&first);
        (0..10).for_each(|n| first.append("r", fence, log(n)).unwrap());
        first.append("r", fence, Batch { state: Some(State::Failed), ..Batch::default() }).unwrap();
        meddle(&dir, statement);
        let run = if statement.contains("'s'") { "s" } else { "r" };
        let e = try_read(&first, run).unwrap_err();
        assert_eq!((e.code, e.details["seq"].clone()), (Code::STORE_DAMAGED, seq.to_string()), "{statement}: {e}");
        let e = verify_run(&first, run, None).unwrap_err();
        assert_eq!((e.code, e.details["seq"].clone()), (Code::AUDIT_INVALID, seq.to_string()), "{statement}: {e}");
    }
}

#[test]
fn a_changed_source_or_fact_is_not_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    let first = store(&dir);
    let fence = ready(&first);
    first.append("r", fence, Batch { facts: BTreeMap::from([("k".into(), Value::Int(1))]), ..log(0) }).unwrap();
    new_run(&first, "s", "staging");
    let kept: i64 = first.read("counting", |c| c.query_row("SELECT count(*) FROM contents", [], |r| r.get(0))).unwrap();
    assert_eq!(kept, 1, "equal sources of two runs are stored once");
    meddle(&dir, "UPDATE contents SET bytes = x'00'; UPDATE facts SET value = '{'");
    assert_eq!(code(first.source("r", "runbooks/a.rhai")), Code::STORE_DAMAGED);
    assert_eq!(code(first.sources("s")), Code::STORE_DAMAGED);
    assert_eq!(code(first.fact("production", "k")), Code::STORE_DAMAGED);
    meddle(&dir, "DELETE FROM contents");
    assert_eq!(code(first.source("r", "runbooks/a.rhai")), Code::STORE_DAMAGED);
    first.check().unwrap();
}

/// A folder with the three files of a store whose first entries are in the main file and whose newest are in the log only.
fn crashed_files(dir: &tempfile::TempDir) -> (Vec<Entry>, u64) {
    let first = store(dir);
    let fence = ready(&first);
    (0..120).for_each(|n| first.append("r", fence, log(n)).unwrap());
    first.write("checkpoint", |_| Ok(())).unwrap();
    first.read("checkpoint", |c| c.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))).unwrap();
    (120..160).for_each(|n| first.append("r", fence, log(n)).unwrap());
    let all = try_read(&first, "r").unwrap();
    // As after SIGKILL: closing it would move everything into the main file.
    std::mem::forget(first);
    (all, 120)
}

fn copy(from: &tempfile::TempDir) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    std::fs::create_dir(to.path().join(".runbook")).unwrap();
    for name in ["journal.db", "journal.db-wal"] {
        std::fs::copy(from.path().join(".runbook").join(name), to.path().join(".runbook").join(name)).unwrap();
    }
    to
}

/// Opens damaged files: an error that says so, or entries that are all genuine. Tells how many were read.
fn outcome(dir: &tempfile::TempDir, all: &[Entry], what: &str) -> Option<usize> {
    let read = SqliteStore::open(dir.path().join(".runbook/journal.db")).and_then(|s| try_read(&s, "r"));
    match read {
        Ok(read) => {
            assert!(read.len() <= all.len() && read == all[..read.len()], "{what}: an altered chain");
            Some(read.len())
        }
        Err(e) => {
            let known = [Code::STORE_DAMAGED, Code::STORE, Code::JOURNAL_FORMAT, Code::NO_RUN];
            assert!(known.contains(&e.code), "{what}: {e}");
            None
        }
    }
}

#[test]
fn a_torn_or_flipped_file_is_never_read_as_another_chain() {
    let whole = tempfile::tempdir().unwrap();
    let (all, in_main) = crashed_files(&whole);
    assert_eq!(outcome(&copy(&whole), &all, "whole"), Some(160), "a killed controller loses nothing");
    let read = |name: &str| std::fs::read(whole.path().join(".runbook").join(name)).unwrap();
    let (main, wal) = (read("journal.db"), read("journal.db-wal"));
    let (mut refused, mut shorter, mut unharmed) = (0, 0, 0);
    // Positions spread over the files, the same each time.
    let spread = |len: usize, n: usize| (0..n).map(move |i| (i * 7919 * 31 + i) % len);
    let mut tried = |name: &str, bytes: &[u8], what: String| {
        let dir = copy(&whole);
        std::fs::write(dir.path().join(".runbook").join(name), bytes).unwrap();
        match outcome(&dir, &all, &what) {
            None => refused += 1,
            Some(160) => unharmed += 1,
            Some(n) => {
                shorter += 1;
                // Only the write-ahead log may end earlier: SQLite drops from it what its checksums do not vouch for.
                assert!(name == "journal.db-wal" && n as u64 >= in_main, "{what}: silently only {n} entries");
            }
        }
    };
    for at in spread(main.len(), 150).chain(0..104) {
        let mut bytes = main.clone();
        bytes[at] ^= 1 << (at % 8);
        tried("journal.db", &bytes, format!("byte {at} of the file flipped"));
    }
    // A page's number of rows: made smaller, its last rows would be gone.
    for (page, bit) in (1..main.len() / 4096).flat_map(|page| (0..5).map(move |bit| (page, bit))) {
        let mut bytes = main.clone();
        bytes[page * 4096 + 4] ^= 1 << bit;
        tried("journal.db", &bytes, format!("bit {bit} of the rows of page {page} flipped"));
    }
    for at in spread(wal.len(), 90).chain(0..56) {
        let mut bytes = wal.clone();
        bytes[at] ^= 1 << (at % 8);
        tried("journal.db-wal", &bytes, format!("byte {at} of the log flipped"));
    }
    for len in spread(main.len(), 20).chain([main.len() - 1, main.len() - 4096, 4096]) {
        tried("journal.db", &main[..len], format!("the file cut to {len} bytes"));
    }
    for len in spread(wal.len(), 20).chain([0, 31, wal.len() - 1, wal.len() - 4096]) {
        tried("journal.db-wal", &wal[..len], format!("the log cut to {len} bytes"));
    }
    for page in 0..main.len() / 4096 {
        let mut bytes = main.clone();
        bytes[page * 4096 + 2048..(page + 1) * 4096].fill(0);
        tried("journal.db", &bytes, format!("page {page} torn"));
    }
    eprintln!("refused {refused}, the log's tail dropped {shorter}, not met {unharmed}");
    assert!(refused > 100 && shorter > 100);
}

#[test]
fn the_end_of_a_run_that_ended_in_order_cannot_go_missing() {
    let whole = tempfile::tempdir().unwrap();
    let first = store(&whole);
    let fence = ready(&first);
    (0..60).for_each(|n| first.append("r", fence, log(n)).unwrap());
    let all = try_read(&first, "r").unwrap();
    first.append("r", fence, Batch { state: Some(State::Failed), ..Batch::default() }).unwrap();
    // Closing moves everything into the main file.
    drop(first);
    let main = std::fs::read(whole.path().join(".runbook/journal.db")).unwrap();
    let mut refused = 0;
    for (page, bit) in (1..main.len() / 4096).flat_map(|page| (0..5).map(move |bit| (page, bit))) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".runbook")).unwrap();
        let mut bytes = main.clone();
        bytes[page * 4096 + 4] ^= 1 << bit;
        std::fs::write(dir.path().join(".runbook/journal.db"), bytes).unwrap();
        match outcome(&dir, &all, "rows of a page") {
            None => refused += 1,
            Some(n) => assert_eq!(n, 60, "page {page}, bit {bit}"),
        }
    }
    assert!(refused > 10, "{refused}");
}

#[test]
fn the_end_of_a_long_run_is_noted_while_it_grows() {
    let dir = tempfile::tempdir().unwrap();
    let first = store(&dir);
    let fence = ready(&first);
    (0..150).for_each(|n| first.append("r", fence, log(n)).unwrap());
    meddle(&dir, "DELETE FROM entries WHERE id & 0xffffffff >= 128");
    assert_eq!(try_read(&first, "r").unwrap().len(), 128);
    meddle(&dir, "DELETE FROM entries WHERE id & 0xffffffff >= 127");
    assert_eq!(try_read(&first, "r").unwrap_err().details["seq"], "127");
}

/// Appends until the disk is full; the numbers that were acknowledged.
fn fill(store: &SqliteStore, fence: i64) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for n in 0..10_000 {
        let text = format!("{n} {}", "x".repeat(2000));
        match store.append("r", fence, Batch::one(now(), conformance::message(&text))) {
            Ok(()) => acknowledged.push(text),
            Err(e) => {
                assert_eq!(e.code, Code::STORE_FULL, "{e}");
                assert!(e.message.contains("journal.db") && e.hint.is_some());
                return acknowledged;
            }
        }
    }
    panic!("the disk was never full");
}

/// What must hold on a full disk, and after `make_room`.
fn full_disk(store: &SqliteStore, make_room: impl FnOnce()) {
    let fence = ready(store);
    let mut expected = fill(store, fence);
    assert!(expected.len() > 10);
    assert_eq!(chained(store, "r"), expected, "exactly what was acknowledged");
    // An outcome that nobody waits for, then several callers at once: each of them hears of it.
    store.append_later("r", fence, log(7_000_001)).unwrap();
    let long = "y".repeat(8000);
    std::thread::scope(|s| {
        let callers: Vec<_> =
            (0..4).map(|_| s.spawn(|| store.append("r", fence, Batch::one(now(), conformance::message(&long))))).collect();
        for caller in callers {
            assert_eq!(code(caller.join().unwrap()), Code::STORE_FULL);
        }
    });
    assert_eq!(chained(store, "r"), expected);
    make_room();
    store.append("r", fence, log(7_000_002)).unwrap();
    expected.extend(["message 7000001".into(), "message 7000002".into()]);
    assert_eq!(chained(store, "r"), expected, "goes on where it was; what had happened is recorded late, not lost");
    store.check().unwrap();
}

#[test]
fn a_full_disk_leaves_nothing_half_simulated() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    let pages = |n: u32| {
        let w = store.group.writer.lock();
        w.conn.pragma_update(None, "max_page_count", n).unwrap();
    };
    pages(60);
    full_disk(&store, || pages(100_000));
}

#[test]
fn a_full_disk_leaves_nothing_half_real() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&disk).output();
    match mounted {
        Ok(out) if out.status.success() => {}
        other => {
            let root = std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
            assert!(std::env::var_os("CI").is_none() || !root, "a small disk cannot be mounted, and CI is set: {other:?}");
            eprintln!("skipped: a small disk cannot be mounted: {other:?}");
            return;
        }
    }
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let _mounted = Mounted(disk.clone());
    let filler = disk.join("filler");
    std::fs::write(&filler, vec![0; 300 << 10]).unwrap();
    let path = disk.join(".runbook/journal.db");
    let store = SqliteStore::open(&path).unwrap();
    full_disk(&store, || std::fs::remove_file(&filler).unwrap());
    // A controller that starts on the full disk: told so, and nothing is harmed.
    let fence = store.holder("production").unwrap().unwrap().fence;
    fill(&store, fence);
    let before = chained(&store, "r");
    drop(store);
    let _ = std::fs::write(&filler, vec![0; 1 << 20]);
    match SqliteStore::open(&path) {
        Err(e) => assert_eq!(e.code, Code::STORE_FULL, "{e}"),
        Ok(store) => {
            assert_eq!(code(store.append("r", fence, Batch::one(now(), conformance::message(&"z".repeat(100_000))))), Code::STORE_FULL);
            assert_eq!(chained(&store, "r"), before);
        }
    }
    let e = SqliteStore::open(disk.join("other/journal.db")).err().unwrap();
    assert_eq!(e.code, Code::STORE_FULL, "a new store on a full disk: {e}");
    assert!(!disk.join("other/journal.db").exists(), "nothing half made");
    std::fs::remove_file(&filler).unwrap();
    assert_eq!(chained(&SqliteStore::open(&path).unwrap(), "r"), before);
}

/// Another process (this test binary, started anew) that opens the store and appends `count` entries to a run of its own.
fn child(path: &Path, run: &str, count: usize) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "journal::sqlite::tests::as_another_process", "--nocapture", "--test-threads=1"])
        .env("RUNBOOK_TEST_STORE", path)
        .env("RUNBOOK_TEST_RUN", run)
        .env("RUNBOOK_TEST_COUNT", count.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn as_another_process() {
    let Some(path) = std::env::var_os("RUNBOOK_TEST_STORE") else { return };
    let run = std::env::var("RUNBOOK_TEST_RUN").unwrap();
    let store = SqliteStore::open(PathBuf::from(path)).unwrap();
    new_run(&store, &run, &run);
    let fence = lock(&store, &run, &run);
    for n in 0..std::env::var("RUNBOOK_TEST_COUNT").unwrap().parse().unwrap() {
        store.append(&run, fence, log(n)).unwrap();
        println!("\nappended {n}");
    }
}

#[test]
fn processes_make_and_use_one_file_at_the_same_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(".runbook/journal.db");
    let children: Vec<_> = ["a", "b", "c", "d"].map(|run| (run, child(&path, run, 60))).into();
    for (run, child) in children {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{run}: {}", String::from_utf8_lossy(&out.stdout));
    }
    let store = SqliteStore::open(&path).unwrap();
    for run in ["a", "b", "c", "d"] {
        assert!(chained(&store, run).into_iter().eq((0..60).map(|n| format!("message {n}"))));
    }
}

#[test]
fn a_new_file_is_opened_by_many_at_once() {
    // Its change to the mode in which it is kept (WAL) waits for nobody by itself.
    for _ in 0..150 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".runbook/journal.db");
        let start = std::sync::Barrier::new(8);
        std::thread::scope(|s| {
            for _ in 0..8 {
                s.spawn(|| {
                    start.wait();
                    SqliteStore::open(&path).unwrap();
                });
            }
        });
    }
}

#[test]
fn a_killed_process_leaves_what_it_was_told_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(".runbook/journal.db");
    for (i, stop_after) in [0usize, 7, 40].into_iter().enumerate() {
        let run = format!("r{i}");
        let mut child = child(&path, &run, 1_000_000);
        let last = format!("appended {stop_after}");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|l| l.unwrap() == last));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = SqliteStore::open(&path).unwrap();
        let entries = chained(&store, &run);
        assert!(entries.len() > stop_after && entries.iter().enumerate().all(|(n, m)| *m == format!("message {n}")));
        // Its lock stands, names it, and can be taken over.
        let holder = store.holder(&run).unwrap().unwrap();
        let Acquired::Yes(fence) = store.acquire(&run, &run, &conformance::operator(2), now(), Some(holder.fence)).unwrap() else {
            panic!()
        };
        store.append(&run, fence, Batch::one(now(), Body::RollbackStarted { reason: "test".into() })).unwrap();
        assert_eq!(chained(&store, &run).len(), entries.len() + 1);
    }
}
