//! Recovery to a point in time: a dropped table comes back from a base backup and the archived log, with its server gone.

use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::time::Duration;

use runbook_core::{Code, Result, Value};

use super::archive::{chown, field, site, text};
use crate::support::dumps::{Folder, all};
use crate::support::options;
use crate::support::postgres::{Cluster, Site};

/// The log's position and the moment.
pub fn now(s: &Site) -> (String, String) {
    let sql =
        "SELECT pg_current_wal_insert_lsn() || ' ' || to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let text = s.old.sql("shop", sql);
    let (lsn, time) = text.split_once(' ').unwrap();
    (lsn.into(), time.into())
}

/// Places an order; gives the log's position and the moment just before.
pub fn order(s: &Site, item: &str) -> (String, String) {
    let at = now(s);
    s.old.sql("shop", &format!("INSERT INTO orders (item) VALUES ('{item}')"));
    at
}

pub fn orders(c: &Cluster) -> String {
    c.sql("shop", "SELECT string_agg(item, ' ' ORDER BY id) FROM orders")
}

/// Everything of now is in the archive; gives the name of the segment.
pub async fn archived(s: &Site, f: &Folder) -> String {
    text(&s.run("shop_old", "archive_to", vec![f.at("archive"), options(&[("restart", true.into())])]).await.unwrap(), "segment")
}

pub fn args(f: &Folder, before: &str, replace: bool) -> Vec<Value> {
    vec![before.into(), f.at("base"), f.at("archive"), options(&[("replace", replace.into())])]
}

pub async fn recover(s: &Site, f: &Folder, before: &str) -> Result<Value> {
    s.run("shop_new", "recover_to", args(f, before, false)).await
}

pub fn stop(c: &Cluster) {
    stop_by(c, "fast");
}

/// Stops a server in this mode of `pg_ctl`.
pub fn stop_by(c: &Cluster, mode: &str) {
    c.as_postgres("pg_ctl", &["-D", &c.path("data").display().to_string(), "-m", mode, "-w", "stop"]);
}

/// When the server was started.
pub fn started(c: &Cluster) -> String {
    c.sql("shop", "SELECT pg_postmaster_start_time()")
}

pub fn state(c: &Cluster) -> String {
    c.sql("shop", "SELECT pg_is_in_recovery()::text || pg_get_wal_replay_pause_state()")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_table_is_brought_back_with_its_server_gone() {
    let Some(s) = site() else { return };
    let f = Folder::new();
    archived(&s, &f).await;
    order(&s, "early");
    s.run("shop_old", "base_backup", vec![f.at("base")]).await.unwrap();
    order(&s, "one");
    let two = order(&s, "two");
    archived(&s, &f).await;
    order(&s, "three");
    let (place, moment) = now(&s);
    s.old.sql("shop", "DROP TABLE orders");
    s.old.sql("shop", "CREATE TABLE later (a int)");
    archived(&s, &f).await;
    // The server is lost with all that it had.
    stop(&s.old);
    std::fs::remove_dir_all(s.old.path("data")).unwrap();

    let done = recover(&s, &f, &moment).await.unwrap();
    assert!(text(&done, "statement").contains("drops or empties orders"), "{done:?}");
    assert_eq!((orders(&s.new).as_str(), state(&s.new).as_str()), ("early one two three", "truepaused"));
    let first = started(&s.new);
    for before in [&moment, &place] {
        recover(&s, &f, before).await.unwrap();
        assert_eq!(started(&s.new), first, "{before}");
    }
    // An earlier place begins anew, a later one goes on from there, and a restart changes nothing.
    let mark = s.new.path("data/of-this-copy");
    std::fs::write(&mark, "").unwrap();
    for (before, want, kept) in [(&two.1, "early one", false), (&moment, "early one two three", true)] {
        recover(&s, &f, before).await.unwrap_or_else(|e| panic!("{before}: {e:?}"));
        assert_eq!((orders(&s.new).as_str(), mark.exists()), (want, kept));
        std::fs::write(&mark, "").unwrap();
    }
    stop(&s.new);
    recover(&s, &f, &moment).await.unwrap();
    assert_eq!((orders(&s.new).as_str(), state(&s.new).as_str()), ("early one two three", "truepaused"));
    assert!(mark.exists());

    // It becomes a server of its own, which archives nowhere.
    s.run("shop_new", "end_recovery", vec![]).await.unwrap();
    s.new.sql("shop", "INSERT INTO orders (item) VALUES ('four')");
    assert_eq!(orders(&s.new), "early one two three four");
    assert_eq!(s.new.sql("shop", "SELECT timeline_id FROM pg_control_checkpoint()"), "2");
    s.run("shop_new", "end_recovery", vec![]).await.unwrap();
    stop(&s.new);
    s.new.start();
    for (name, want) in [("restore_command", ""), ("recovery_target_lsn", ""), ("archive_mode", "off")] {
        assert_eq!(s.new.sql("shop", &format!("SHOW {name}")), want, "{name}");
    }
    assert_eq!(orders(&s.new), "early one two three four");
    // Now it has rows of its own: they are kept unless that is said, and also then.
    let e = recover(&s, &f, &moment).await.unwrap_err();
    assert!(e.code == Code::DB_COPY && e.message.contains("a server runs in"), "{e}");
    s.run("shop_new", "recover_to", args(&f, &two.0, true)).await.unwrap();
    assert_eq!(orders(&s.new), "early one");
    assert!(s.new.path("data.runbook-replaced/PG_VERSION").exists() && !s.new.path("data.runbook-undone").exists());
    s.run("shop_new", "end_recovery", vec![]).await.unwrap();
    let e = s.run("shop_new", "recover_to", args(&f, &two.0, true)).await.unwrap_err();
    assert!(e.message.contains("has an earlier data folder, which is not overwritten"), "{e}");
    assert_eq!(orders(&s.new), "early one");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_lead_there_is_refused_before_anything_is_touched() {
    let Some(s) = site() else { return };
    let f = Folder::new();
    archived(&s, &f).await;
    let early = order(&s, "early");
    s.run("shop_old", "base_backup", vec![f.at("base")]).await.unwrap();
    order(&s, "one");
    let first = archived(&s, &f).await;
    order(&s, "two");
    let second = archived(&s, &f).await;
    order(&s, "three");
    let (_, moment) = now(&s);
    s.old.sql("shop", "DROP TABLE orders");
    let third = archived(&s, &f).await;
    let refused = async |before: &str, code: Code, why: &str| {
        let e = recover(&s, &f, before).await.unwrap_err();
        assert!(e.code == code && e.message.contains(why), "{before}: {e}");
        assert!(!s.new.path("data/PG_VERSION").exists() && !s.new.path("data.runbook-new").exists());
        assert!(e.host.as_deref() == Some("new") || code == Code::DB_POSITION, "{e:?}");
    };
    for (before, why) in [
        ("0-1-4711", "is no position of a PostgreSQL server"),
        ("2026-11-21 10:00:00", "no time zone"),
        ("2999-01-01T00:00:00Z", "has not come yet"),
        (&early.1, "the base backup began at"),
        (&early.0, "is before the base backup's end"),
        ("FF/28", "nothing would be left out: the archive ends with"),
    ] {
        refused(before, Code::DB_POSITION, why).await;
    }
    // The archive: a segment that is missing, short, damaged, or of another cluster.
    let segment = |name: &str| f.path("archive").join(name);
    std::fs::rename(segment(&second), f.path("kept")).unwrap();
    refused(&moment, Code::DB_POSITION, &format!("the archive has a gap: {second} is missing")).await;
    std::fs::write(segment(&second), "short").unwrap();
    chown(&segment(&second));
    refused(&moment, Code::DB_POSITION, &format!("the archived segment {second} is damaged: it has 5 of 16777216 bytes")).await;
    std::fs::copy(f.path("kept"), segment(&second)).unwrap();
    chown(&segment(&second));
    let file = std::fs::OpenOptions::new().write(true).open(segment(&second)).unwrap();
    file.write_all_at(&[0x55; 64], 100).unwrap();
    refused(&moment, Code::DB_POSITION, &format!("is damaged or ends in {second}")).await;
    std::fs::rename(f.path("kept"), segment(&second)).unwrap();
    let other = Cluster::place().unwrap();
    other.init(false);
    std::fs::rename(segment(&third), f.path("kept")).unwrap();
    std::fs::copy(other.path("data/pg_wal/000000010000000000000001"), segment(&third)).unwrap();
    chown(&segment(&third));
    refused(&moment, Code::DB_COPY, &format!("{third} in ")).await;
    std::fs::rename(f.path("kept"), segment(&third)).unwrap();
    assert!(first < second);
    // The base backup: none, of another version, or with a file that has changed.
    let manifest = std::fs::read_to_string(f.path("base/manifest")).unwrap();
    std::fs::write(f.path("base/manifest"), manifest.replace("major\t15", "major\t14")).unwrap();
    refused(&moment, Code::DB_SETTINGS, "is of PostgreSQL 14 and the host of \"shop_new\" has 15").await;
    std::fs::remove_file(f.path("base/manifest")).unwrap();
    refused(&moment, Code::DB_COPY, "has no whole base backup").await;
    std::fs::write(f.path("base/manifest"), &manifest).unwrap();
    let map = f.path("base/data/global/pg_filenode.map");
    let good = std::fs::read(&map).unwrap();
    std::fs::write(&map, vec![7; good.len()]).unwrap();
    let e = recover(&s, &f, &moment).await.unwrap_err();
    assert!(e.message.contains("checksum mismatch for file \"global/pg_filenode.map\""), "{e}");
    assert!(!s.new.path("data").exists());
    std::fs::write(&map, good).unwrap();
    // The place: something else, a cluster, a running one.
    std::fs::create_dir(s.new.path("data")).unwrap();
    chown(&s.new.path("data"));
    std::fs::write(s.new.path("data/letter"), "dear").unwrap();
    refused(&moment, Code::DB_COPY, "is not empty, and is no cluster").await;
    std::fs::remove_dir_all(s.new.path("data")).unwrap();
    s.new.init(false);
    let e = recover(&s, &f, &moment).await.unwrap_err();
    assert!(e.message.contains("there is a cluster in") && e.hint.unwrap().contains("replace: true"), "{}", e.message);
    s.new.start();
    let e = recover(&s, &f, &moment).await.unwrap_err();
    assert!(e.message.contains("a server runs in"), "{e}");
    // That very server is not one to end the recovery of.
    s.new.sql("postgres", "CREATE DATABASE shop");
    s.run("shop_new", "end_recovery", vec![]).await.unwrap();
    s.run("shop_new", "recover_to", args(&f, &moment, true)).await.unwrap();
    assert_eq!(orders(&s.new), "early one two three");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_dies_while_recovering_is_followed_by_another() {
    let Some(s) = site() else { return };
    let f = Folder::new();
    archived(&s, &f).await;
    s.old.sql("shop", "INSERT INTO orders (item) SELECT repeat('order ' || i, 10) FROM generate_series(1, 100000) i");
    s.run("shop_old", "base_backup", vec![f.at("base")]).await.unwrap();
    s.old.sql("shop", "INSERT INTO orders (item) SELECT 'order ' || i FROM generate_series(1, 50000) i");
    let (_, moment) = now(&s);
    s.old.sql("shop", "DELETE FROM orders WHERE id > 100");
    archived(&s, &f).await;
    stop(&s.old);
    let began = std::time::Instant::now();
    recover(&s, &f, &moment).await.unwrap();
    let whole = began.elapsed();
    let rounds: u32 = if all() { 20 } else { 6 };
    let mut cuts = 0;
    for n in 0..rounds {
        stop(&s.new);
        std::fs::remove_dir_all(s.new.path("data")).unwrap();
        let at: Duration = whole.mul_f64((f64::from(n) + 0.5) / f64::from(rounds));
        cuts += u32::from(s.run_once("shop_new", "recover_to", args(&f, &moment, false), Some(at)).await.is_none());
        // Whoever comes next finds out how far it was.
        let done = recover(&s, &f, &moment).await.unwrap_or_else(|e| panic!("cut after {at:?}: {e:?}"));
        assert_eq!(s.new.sql("shop", "SELECT count(*) FROM orders"), "150000", "cut after {at:?}");
        assert!(text(&done, "statement").contains("changes 149900 rows of orders"), "{done:?}");
        assert_eq!(state(&s.new), "truepaused");
        let left = Command::new("sh").arg("-c").arg("ls -d \"$0\".runbook-* 2>/dev/null").arg(s.new.path("data")).output().unwrap();
        assert!(left.stdout.is_empty(), "{}", String::from_utf8_lossy(&left.stdout));
    }
    println!("{cuts} of {rounds} controllers died in the middle of {whole:?}");
    assert!(cuts > 0);
    // The end of the recovery, cut at once: done again, it is done.
    for ms in [5, 100] {
        s.run_once("shop_new", "end_recovery", vec![], Some(Duration::from_millis(ms))).await;
    }
    s.run("shop_new", "end_recovery", vec![]).await.unwrap();
    s.new.sql("shop", "DELETE FROM orders");
    assert_eq!(field(&s.run("shop_new", "status", vec![]).await.unwrap(), "role").as_str(), Some("alone"));
}
