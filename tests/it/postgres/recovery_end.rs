//! Recovery to the end of the archive: a server that is lost comes back with everything that was archived, and never with less.

use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use runbook_core::{Code, Value};

use super::archive::{chown, field, site, text};
use super::recovery::{archived, args, order, orders, recover, started, state, stop, stop_by};
use crate::support::dumps::{Folder, all};
use crate::support::mount::Small;
use crate::support::options;
use crate::support::postgres::{Cluster, Site};
use crate::support::sshd::{Process, processes};

/// The server ends at once, and its disk is gone.
fn lose(c: &Cluster) {
    stop_by(c, "immediate");
    std::fs::remove_dir_all(c.path("data")).unwrap();
}

/// A base backup of 100,000 orders, and 50,000 more in the archive; gives the segment of the last.
async fn filled(s: &Site, f: &Folder) -> String {
    archived(s, f).await;
    s.old.sql("shop", "INSERT INTO orders (item) SELECT repeat('order ' || i, 10) FROM generate_series(1, 100000) i");
    s.run("shop_old", "base_backup", vec![f.at("base")]).await.unwrap();
    s.old.sql("shop", "INSERT INTO orders (item) SELECT 'order ' || i FROM generate_series(1, 50000) i");
    archived(s, f).await
}

fn nothing_left_out(done: &Value) {
    for name in ["left_out", "time", "statement"] {
        assert_eq!(field(done, name), &Value::Unit, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_server_comes_back_with_everything_that_was_archived() {
    let Some(s) = site() else { return };
    let f = Folder::new();
    s.old.sql("shop", "ALTER SYSTEM SET max_prepared_transactions = 4");
    archived(&s, &f).await;
    order(&s, "early");
    s.run("shop_old", "base_backup", vec![f.at("base")]).await.unwrap();
    archived(&s, &f).await;
    // Nothing was committed since the backup: its own end.
    let done = recover(&s, &f, "end").await.unwrap();
    nothing_left_out(&done);
    assert_eq!((orders(&s.new).as_str(), state(&s.new).as_str()), ("early", "truepaused"));
    let mark = s.new.path("data/of-this-copy");
    std::fs::write(&mark, "").unwrap();
    let first = started(&s.new);
    recover(&s, &f, "end").await.unwrap();
    assert_eq!(started(&s.new), first);

    // More has come: it goes on, and stays there over a restart.
    let one = order(&s, "one");
    archived(&s, &f).await;
    let done = recover(&s, &f, " end ").await.unwrap();
    nothing_left_out(&done);
    let Value::Time(last) = field(&done, "last") else { panic!("{done:?}") };
    assert!(*last >= one.1.parse().unwrap() && mark.exists());
    assert_eq!(orders(&s.new), "early one");
    stop(&s.new);
    recover(&s, &f, "end").await.unwrap();
    assert_eq!((orders(&s.new).as_str(), state(&s.new).as_str(), mark.exists()), ("early one", "truepaused", true));
    // An earlier moment begins anew; from there it goes on to the end.
    let done = recover(&s, &f, &one.0).await.unwrap();
    assert_eq!((orders(&s.new).as_str(), mark.exists()), ("early", false));
    assert!(text(&done, "statement").contains("changes 1 rows of orders"), "{done:?}");
    std::fs::write(&mark, "").unwrap();

    // The last thing in the archive is what was only prepared; a row that was not archived goes with the server.
    s.old.sql("shop", "INSERT INTO orders (item) VALUES ('two')");
    s.old.sql("shop", "BEGIN; INSERT INTO orders (item) VALUES ('prepared'); PREPARE TRANSACTION 'later'");
    archived(&s, &f).await;
    order(&s, "lost");
    lose(&s.old);
    let done = recover(&s, &f, "end").await.unwrap();
    nothing_left_out(&done);
    assert_eq!((orders(&s.new).as_str(), state(&s.new).as_str(), mark.exists()), ("early one two", "truepaused", true));
    let first = started(&s.new);
    recover(&s, &f, "end").await.unwrap();
    assert_eq!(started(&s.new), first);

    s.run("shop_new", "end_recovery", vec![]).await.unwrap();
    s.new.sql("shop", "COMMIT PREPARED 'later'");
    s.new.sql("shop", "INSERT INTO orders (item) VALUES ('new')");
    assert_eq!(orders(&s.new), "early one two prepared new");
    stop(&s.new);
    s.new.start();
    for (name, want) in [("restore_command", ""), ("recovery_target", ""), ("recovery_target_inclusive", "on"), ("archive_mode", "off")] {
        assert_eq!(s.new.sql("shop", &format!("SHOW {name}")), want, "{name}");
    }
    assert_eq!(s.new.sql("shop", "SELECT timeline_id FROM pg_control_checkpoint()"), "2");
    // It has rows of its own now.
    let e = recover(&s, &f, "end").await.unwrap_err();
    assert!(e.code == Code::DB_COPY && e.message.contains("a server runs in"), "{e}");
    assert_eq!(orders(&s.new), "early one two prepared new");
}

/// What a server archives by itself ends in the middle of a record: what was committed before that is there, whole.
#[tokio::test(flavor = "multi_thread")]
async fn segments_that_were_filled_end_in_the_middle_of_a_record() {
    let Some(s) = site() else { return };
    let f = Folder::new();
    archived(&s, &f).await;
    s.run("shop_old", "base_backup", vec![f.at("base")]).await.unwrap();
    let insert = "INSERT INTO orders (item) SELECT repeat(md5(i::text), 30) FROM generate_series(1, 1000) i";
    let place = || s.old.sql("shop", "SELECT pg_current_wal_insert_lsn() - '0/0'").parse::<u64>().unwrap();
    let mut places = vec![place()];
    for _ in 0..45 {
        s.old.sql("shop", insert);
        places.push(place());
    }
    let full = s.old.sql("shop", "SELECT pg_walfile_name(pg_current_wal_lsn() - 16777216)");
    let began = std::time::Instant::now();
    while !f.path("archive").join(&full).exists() {
        assert!(began.elapsed() < Duration::from_secs(60), "{full} does not arrive");
        std::thread::sleep(Duration::from_millis(50));
    }
    lose(&s.old);
    let number = u64::from_str_radix(&full[8..16], 16).unwrap() * 256 + u64::from_str_radix(&full[16..], 16).unwrap();
    let end = (number + 1) * (16 << 20);
    let done = recover(&s, &f, "end").await.unwrap();
    nothing_left_out(&done);
    assert_eq!(state(&s.new), "truepaused");
    let got: usize = s.new.sql("shop", "SELECT count(*) FROM orders").parse().unwrap();
    // Each is in when the log was in the archive before the next one began.
    let sure = places.iter().skip(1).filter(|p| **p <= end).count();
    assert!((20..45).contains(&sure), "{sure}");
    assert!(got == sure * 1000 || got == (sure + 1) * 1000, "{got} rows, and {sure} statements were archived");
    let again = started(&s.new);
    recover(&s, &f, "end").await.unwrap();
    assert_eq!(started(&s.new), again);
}

/// Ends processes that the host of a test runs for it; gives how many.
fn kill(which: impl Fn(&Process) -> bool) -> usize {
    let found: Vec<Process> = processes().into_iter().filter(|p| which(p)).collect();
    for p in &found {
        let _ = Command::new("kill").args(["-KILL", &p.pid.to_string()]).stderr(Stdio::null()).status();
    }
    found.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_segment_of_a_lost_servers_disk_is_taken_when_that_is_said() {
    let Some(s) = site() else { return };
    let f = Folder::new();
    archived(&s, &f).await;
    s.run("shop_old", "base_backup", vec![f.at("base")]).await.unwrap();
    order(&s, "one");
    let first = archived(&s, &f).await;
    order(&s, "two");
    let newest = s.old.sql("shop", "SELECT pg_walfile_name(pg_current_wal_lsn())");
    stop_by(&s.old, "immediate");
    let segment = |name: &str| f.path("archive").join(name);
    std::fs::copy(s.old.path("data/pg_wal").join(&newest), segment(&newest)).unwrap();
    chown(&segment(&newest));
    std::fs::remove_dir_all(s.old.path("data")).unwrap();
    let unfinished = async |upto: &str| {
        let options = options(&[("unfinished", true.into())]);
        s.run("shop_new", "recover_to", vec![upto.into(), f.at("base"), f.at("archive"), options]).await
    };
    let e = recover(&s, &f, "end").await.unwrap_err();
    assert!(e.code == Code::DB_POSITION && e.message.contains(&format!("is damaged or ends in {newest}")), "{e}");
    assert!(e.hint.as_deref().unwrap().contains("unfinished: true"), "{e:?}");
    let e = unfinished("0/5000000").await.unwrap_err();
    assert!(e.code == Code::WRONG_TYPE && e.message.contains("goes with recover_to(\"end\""), "{e}");
    // That is no leave for a segment before it.
    let good = std::fs::read(segment(&first)).unwrap();
    write_at(&segment(&first), &[good[100] ^ 0x55], 100);
    let e = unfinished("end").await.unwrap_err();
    assert!(e.message.contains(&format!("is damaged or ends in {first}")) && !e.hint.as_deref().unwrap().contains("unfinished"), "{e:?}");
    assert!(!s.new.path("data").exists());
    std::fs::write(segment(&first), good).unwrap();
    let done = unfinished("end").await.unwrap();
    nothing_left_out(&done);
    assert_eq!((orders(&s.new).as_str(), state(&s.new).as_str()), ("one two", "truepaused"));
    assert!(s.world.messages.lock().join("\n").contains("breaks off in its newest segment"));
    let first = started(&s.new);
    unfinished("end").await.unwrap();
    assert_eq!(started(&s.new), first);
    s.run("shop_new", "end_recovery", vec![]).await.unwrap();
    s.new.sql("shop", "INSERT INTO orders (item) VALUES ('three')");
    assert_eq!(orders(&s.new), "one two three");
}

/// Changes bytes of a file.
fn write_at(file: &Path, bytes: &[u8], at: u64) {
    std::fs::OpenOptions::new().write(true).open(file).unwrap().write_all_at(bytes, at).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_is_not_whole_is_never_taken_for_one_that_ends_there() {
    let Some(s) = site() else { return };
    let f = Folder::new();
    archived(&s, &f).await;
    s.run("shop_old", "base_backup", vec![f.at("base")]).await.unwrap();
    order(&s, "one");
    archived(&s, &f).await;
    let more = |n: u32| s.old.sql("shop", &format!("CREATE TABLE more{n} AS SELECT i FROM generate_series(1, 1000) i"));
    order(&s, "two");
    more(2);
    let second = archived(&s, &f).await;
    order(&s, "three");
    more(3);
    let third = archived(&s, &f).await;
    lose(&s.old);
    let segment = |name: &str| f.path("archive").join(name);
    let refused = async |what: &str, code: Code, why: &str, hint: &str| {
        let e = recover(&s, &f, "end").await.unwrap_err();
        assert!(e.code == code && e.message.contains(why), "{what}: {e}");
        assert!(e.hint.as_deref().unwrap_or("").contains(hint) && e.host.as_deref() == Some("new"), "{what}: {e:?}");
        assert!(!s.new.path("data/PG_VERSION").exists() && !s.new.path("data.runbook-new").exists(), "{what}");
    };
    let position = Code::DB_POSITION;
    let e = recover(&s, &f, "End").await.unwrap_err();
    assert!(e.code == position && e.message.contains("\"End\" is no position") && e.hint.unwrap().contains("\"end\""), "{}", e.message);

    // Missing, cut short, with other bytes, with nothing in its last part: in the middle, and at the end.
    std::fs::rename(segment(&second), f.path("kept")).unwrap();
    refused("missing", position, &format!("the archive has a gap: {second} is missing"), "move that elsewhere").await;
    std::fs::rename(f.path("kept"), segment(&second)).unwrap();
    for name in [&second, &third] {
        let good = std::fs::read(segment(name)).unwrap();
        let used = good.iter().rposition(|b| *b != 0).unwrap();
        assert!((600..1 << 20).contains(&used), "{used}");
        std::fs::write(segment(name), &good[..1 << 20]).unwrap();
        refused("short", position, &format!("{name} is damaged: it has 1048576 of 16777216 bytes"), "another copy").await;
        for at in [100, used as u64 / 2, used as u64 - 2] {
            std::fs::write(segment(name), &good).unwrap();
            write_at(&segment(name), &[good[at as usize] ^ 0x55], at);
            refused(&format!("byte {at} of {used}"), position, &format!("is damaged or ends in {name}"), "another copy").await;
        }
        let mut empty = good.clone();
        empty[512..].fill(0);
        std::fs::write(segment(name), &empty).unwrap();
        refused("nothing behind 512", position, &format!("is damaged or ends in {name}"), "another copy").await;
        std::fs::write(segment(name), &good).unwrap();
        std::fs::set_permissions(segment(name), std::fs::Permissions::from_mode(0o000)).unwrap();
        let e = recover(&s, &f, "end").await.unwrap_err();
        assert!(
            e.message.contains(name.as_str()) && e.message.contains("Permission denied") && e.hint.unwrap().contains("chown -R"),
            "{}",
            e.message
        );
        std::fs::set_permissions(segment(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    // The log goes on in another way.
    let number = u64::from_str_radix(&third[8..], 16).unwrap() + 1;
    let next = format!("{}{number:016X}", &third[..8]);
    for (file, why, hint) in [
        (
            "00000002.history".to_string(),
            "goes on on another timeline (00000002.history) than the base backup's, 1",
            "made on that timeline",
        ),
        (format!("00000002{number:016X}"), "goes on on another timeline", "made on that timeline"),
        (format!("{next}.partial"), ".partial, which is no whole segment", "under the segment's own name"),
        (format!("{next}.zst"), ".zst, which is no whole segment", "under the segment's own name"),
    ] {
        std::fs::copy(segment(&third), segment(&file)).unwrap();
        chown(&segment(&file));
        refused(&file, position, why, hint).await;
        std::fs::remove_file(segment(&file)).unwrap();
    }
    // The folder: not there, not readable.
    let folder = f.path("archive");
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o300)).unwrap();
    refused("not readable", Code::DB_COPY, "reading the archive in", "chown -R").await;
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::rename(&folder, f.path("away")).unwrap();
    refused("not there", Code::DB_COPY, "reading the archive in", "chown -R").await;
    std::fs::create_dir(&folder).unwrap();
    chown(&folder);
    refused("empty", position, "the archive has a gap: ", "another copy").await;
    std::fs::remove_dir(&folder).unwrap();
    std::fs::rename(f.path("away"), &folder).unwrap();

    recover(&s, &f, "end").await.unwrap();
    assert_eq!((orders(&s.new).as_str(), state(&s.new).as_str()), ("one two three", "truepaused"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_dies_on_the_way_to_the_end_is_followed_by_another() {
    let Some(s) = site() else { return };
    let f = Folder::new();
    let half = filled(&s, &f).await;
    s.old.sql("shop", "DELETE FROM orders WHERE id % 2 = 0");
    archived(&s, &f).await;
    lose(&s.old);
    let began = std::time::Instant::now();
    recover(&s, &f, "end").await.unwrap();
    let whole = began.elapsed();
    let count = || s.new.sql("shop", "SELECT count(*) FROM orders");
    assert_eq!(count(), "75000");
    let later: Vec<std::path::PathBuf> = std::fs::read_dir(f.path("archive"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.file_name().unwrap().to_str().unwrap() > half.as_str())
        .collect();
    let rounds: u32 = if all() { 20 } else { 6 };
    let mut cuts = 0;
    for n in 0..rounds {
        stop(&s.new);
        std::fs::remove_dir_all(s.new.path("data")).unwrap();
        let on = n % 2 == 1;
        if on {
            // It stands at what was the end once, and goes on.
            std::fs::create_dir(f.path("later")).unwrap();
            let aside = |p: &Path| f.path("later").join(p.file_name().unwrap());
            later.iter().for_each(|p| std::fs::rename(p, aside(p)).unwrap());
            recover(&s, &f, "end").await.unwrap();
            assert_eq!(count(), "150000");
            later.iter().for_each(|p| std::fs::rename(aside(p), p).unwrap());
            std::fs::remove_dir(f.path("later")).unwrap();
        }
        let at: Duration = whole.mul_f64((f64::from(n) + 0.5) / f64::from(rounds));
        cuts += u32::from(s.run_once("shop_new", "recover_to", args(&f, "end", false), Some(at)).await.is_none());
        let done = recover(&s, &f, "end").await.unwrap_or_else(|e| panic!("cut after {at:?}: {e:?}"));
        nothing_left_out(&done);
        assert_eq!((count().as_str(), state(&s.new).as_str()), ("75000", "truepaused"), "cut after {at:?}");
        let left = std::fs::read_dir(s.new.path("")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        assert_eq!(left.filter(|n| n.starts_with("data.")).collect::<Vec<_>>(), [""; 0]);
    }
    println!("{cuts} of {rounds} controllers died in the middle of {whole:?}");
    assert!(cuts > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_it_and_it_goes_on_when_there_is_room() {
    let Some(s) = site() else { return };
    let f = Folder::new();
    archived(&s, &f).await;
    s.run("shop_old", "base_backup", vec![f.at("base")]).await.unwrap();
    s.old.sql("shop", "INSERT INTO orders (item) SELECT repeat(md5(i::text), 30) FROM generate_series(1, 60000) i");
    archived(&s, &f).await;
    lose(&s.old);
    // The tool that reads the log is killed: how far it came is no end of the log.
    let archive = f.path("archive").display().to_string();
    let reads = |p: &Process| p.name == "pg_waldump" && p.command.contains(&archive);
    let done = std::sync::atomic::AtomicBool::new(false);
    let e = std::thread::scope(|t| {
        t.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                kill(reads);
            }
        });
        let e = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(recover(&s, &f, "end")));
        done.store(true, Ordering::SeqCst);
        e.unwrap_err()
    });
    assert!(e.retryable && e.message.contains("cannot be read: pg_waldump was killed (status 137)"), "{e:?}");
    assert_eq!(std::fs::read_dir(s.new.path("")).unwrap().count(), 0);
    let Some(disk) = Small::mount(s.new.path(""), "20m") else { return };
    chown(&s.new.path(""));
    // Not even the base backup finds room: nothing is left of it.
    let e = recover(&s, &f, "end").await.unwrap_err();
    assert!(e.message.contains("restoring the base backup") && e.message.contains("No space left on device"), "{e}");
    assert_eq!(std::fs::read_dir(s.new.path("")).unwrap().count(), 0);
    // The log does not: it never passes for the end of what is archived.
    disk.grow("80m");
    let e = recover(&s, &f, "end").await.unwrap_err();
    assert!(
        e.code == Code::DB_COPY && e.message.contains("the cluster of \"shop_new\"") && e.message.contains("its disk has 0 MiB left"),
        "{e}"
    );
    disk.grow("600m");
    recover(&s, &f, "end").await.unwrap();
    assert_eq!((s.new.sql("shop", "SELECT count(*) FROM orders").as_str(), state(&s.new).as_str()), ("60000", "truepaused"));
    stop(&s.new);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_works_on_the_host_is_killed_and_it_is_done_again() {
    let Some(s) = site() else { return };
    let f = Folder::new();
    filled(&s, &f).await;
    lose(&s.old);
    let began = std::time::Instant::now();
    recover(&s, &f, "end").await.unwrap();
    let whole = began.elapsed();
    let rounds: u32 = if all() { 20 } else { 5 };
    let (mut killed, mut failed) = (0, 0);
    let data = s.new.path("data").display().to_string();
    for n in 0..rounds {
        stop(&s.new);
        std::fs::remove_dir_all(s.new.path("data")).unwrap();
        let at: Duration = whole.mul_f64((f64::from(n) + 0.5) / f64::from(rounds));
        let (done, ()) = tokio::join!(recover(&s, &f, "end"), async {
            let mut works = vec!["postgres"];
            if n % 2 == 0 {
                tokio::time::sleep(at).await;
                works.extend(["cp", "pg_verifybackup", "pg_ctl"]);
            }
            // In every other round the server, while it comes up or applies the log.
            let began = std::time::Instant::now();
            while began.elapsed() < whole * 3 {
                let found = kill(|p| works.contains(&p.name.as_str()) && p.command.contains(&data));
                killed += found;
                if found > 0 || n % 2 == 0 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5 * u64::from(n))).await;
            }
        });
        failed += u32::from(done.is_err());
        if let Err(e) = done {
            println!("killed after {at:?}: {e}");
        }
        let done = recover(&s, &f, "end").await.unwrap_or_else(|e| panic!("killed after {at:?}: {e:?}"));
        nothing_left_out(&done);
        assert_eq!((s.new.sql("shop", "SELECT count(*) FROM orders").as_str(), state(&s.new).as_str()), ("150000", "truepaused"), "{at:?}");
    }
    println!("{killed} processes were killed in {rounds} rounds, {failed} of which failed");
    assert!(killed > 0 && failed > 0);
}
