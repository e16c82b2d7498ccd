//! A standby that lags on purpose: a table that was dropped on the primary comes back from it.

use std::collections::BTreeMap;
use std::time::Duration;

use runbook_core::{Code, Result, Value};

use super::switch::db;
use crate::support::postgres::{Cluster, Site};

fn field<'a>(v: &'a Value, name: &str) -> &'a Value {
    v.as_record().unwrap().get(name)
}

fn replicated() -> Option<Site> {
    let s = Site::start(false)?;
    s.allow_replication();
    Some(s)
}

async fn replicate(s: &Site) -> Result<Value> {
    s.run("shop_new", "replicate_from", vec![db("shop_old")]).await
}

async fn roll(s: &Site, before: &str) -> Result<Value> {
    s.run("shop_new", "roll_forward", vec![before.into()]).await
}

/// Places an order; gives the log's position and the moment just before.
fn order(s: &Site, item: &str) -> (String, String) {
    let at = now(s);
    s.old.sql("shop", &format!("INSERT INTO orders (item) VALUES ('{item}')"));
    at
}

fn now(s: &Site) -> (String, String) {
    let sql =
        "SELECT pg_current_wal_insert_lsn() || ' ' || to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let text = s.old.sql("shop", sql);
    let (lsn, time) = text.split_once(' ').unwrap();
    (lsn.into(), time.into())
}

fn orders(c: &Cluster) -> String {
    c.sql("shop", "SELECT string_agg(item, ' ' ORDER BY id) FROM orders")
}

/// Waits until the standby has received everything, applied or not.
async fn received(s: &Site) {
    let want = s.old.sql("shop", "SELECT pg_current_wal_flush_lsn()");
    for _ in 0..500 {
        if s.new.sql("shop", &format!("SELECT coalesce(pg_last_wal_receive_lsn() >= '{want}', false)")) == "t" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the standby does not receive {want}");
}

fn stop(c: &Cluster) {
    c.as_postgres("pg_ctl", &["-D", &c.path("data").display().to_string(), "-m", "fast", "-w", "stop"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_table_is_brought_back_from_a_delayed_standby() {
    let Some(s) = replicated() else { return };
    replicate(&s).await.unwrap();
    order(&s, "early");
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    s.run("shop_new", "wait_caught_up", vec![fence]).await.unwrap();
    s.run("shop_old", "unfence", vec![]).await.unwrap();
    let past = now(&s);
    assert_eq!(orders(&s.new), "early");
    s.run("shop_new", "set_delay", vec!["1h".into()]).await.unwrap();
    s.run("shop_new", "set_delay", vec!["1h".into()]).await.unwrap();
    let status = s.run("shop_new", "status", vec![]).await.unwrap();
    assert_eq!(field(&status, "detail").as_map().unwrap()["delay"], Value::Duration(Duration::from_secs(3600)));
    assert_eq!(field(&status, "running"), &Value::Bool(true), "{status:?}");

    order(&s, "one");
    let two = order(&s, "two");
    order(&s, "three");
    s.old.sql("shop", "SELECT pg_switch_wal()");
    let (place, moment) = now(&s);
    s.old.sql("shop", "DROP TABLE orders");
    s.old.sql("shop", "CREATE TABLE later (a int)");
    let after = now(&s);
    received(&s).await;
    // A switch waits for nothing in silence.
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    let within = Value::Map(BTreeMap::from([("within".to_string(), Value::Duration(Duration::from_millis(1500)))]));
    let e = s.run("shop_new", "wait_caught_up", vec![fence, within]).await.unwrap_err();
    assert!(e.message.contains("lags by 3600 s on purpose"), "{e}");
    s.run("shop_old", "unfence", vec![]).await.unwrap();
    // The primary is lost meanwhile: the standby has all that it needs.
    stop(&s.old);

    for (bad, why) in [
        ("0-1-4711", "is no position of a PostgreSQL server"),
        ("2026-11-21 10:00:00", "no time zone"),
        ("2999-01-01T00:00:00Z", "has not come yet"),
        ("2001-01-01T00:00:00Z", "has applied more than that"),
        ("0/1000028", "has applied more than that"),
        ("FF/28", "nothing would be left out: the last transaction that it has received is at"),
    ] {
        let e = roll(&s, bad).await.unwrap_err();
        assert!(e.code == Code::DB_POSITION && e.message.contains(why), "{bad}: {e}");
    }
    assert_eq!(orders(&s.new), "early");
    // Right behind what is applied: nothing is to be done.
    let done = roll(&s, &past.1).await.unwrap();
    assert!(field(&done, "statement").as_str().unwrap().ends_with("changes 1 rows of orders"), "{done:?}");
    assert_eq!(orders(&s.new), "early");

    // First to a place in the middle; then on to just before the mistake; each twice.
    for (before, want, changed) in [
        (&two.1, "early one", true),
        (&two.1, "early one", false),
        (&moment, "early one two three", true),
        (&moment, "early one two three", false),
        (&place, "early one two three", false),
    ] {
        let began = s.new.sql("shop", "SELECT pg_last_wal_replay_lsn()");
        let done = roll(&s, before).await.unwrap_or_else(|e| panic!("{before}: {e:?}"));
        assert_eq!(s.new.sql("shop", "SELECT pg_last_wal_replay_lsn()") != began, changed, "{before}");
        assert_eq!(orders(&s.new), want, "{before}");
        assert_eq!(s.new.sql("shop", "SELECT pg_is_in_recovery()::text || pg_get_wal_replay_pause_state()"), "truepaused");
        if want.ends_with("three") {
            let text = field(&done, "statement").as_str().unwrap();
            assert!(text.contains("drops or empties orders"), "{text}");
        }
    }
    let e = roll(&s, &two.0).await.unwrap_err();
    assert!(e.message.contains("has applied more than that"), "{e}");
    // It stays there over a restart, and the delay is not needed for that.
    stop(&s.new);
    s.new.start();
    for _ in 0..200 {
        if s.new.sql("shop", "SELECT pg_get_wal_replay_pause_state()") == "paused" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(orders(&s.new), "early one two three");
    assert_eq!(s.new.sql("shop", "SELECT to_regclass('later') IS NULL"), "t");
    let e = s.run("shop_new", "set_delay", vec!["0s".into()]).await.unwrap_err();
    assert!(e.code == Code::DB_REPLICATION && e.message.contains("was rolled forward to just before"), "{e}");

    // The table goes back to the primary, by the server's own tools.
    s.old.start();
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    let e = s.run("shop_new", "wait_caught_up", vec![fence]).await.unwrap_err();
    assert!(e.message.contains("stays there: replicate_from lets it go on"), "{e}");
    s.run("shop_old", "unfence", vec![]).await.unwrap();
    let dump = s.old.path("orders.sql");
    let (port, folder) = (s.new.port.to_string(), s.new.path("").display().to_string());
    let text = s.old.as_postgres("pg_dump", &["-h", &folder, "-p", &port, "-t", "orders", "shop"]);
    std::fs::write(&dump, text).unwrap();
    s.old.as_postgres(
        "psql",
        &[
            "-X",
            "-q",
            "-h",
            &s.old.path("").display().to_string(),
            "-p",
            &s.old.port.to_string(),
            "-d",
            "shop",
            "-f",
            &dump.display().to_string(),
        ],
    );
    assert_eq!(orders(&s.old), "early one two three");

    // And replication goes on, late again, until that is ended.
    let again = replicate(&s).await.unwrap();
    assert_eq!(field(&again, "changed"), &Value::Bool(true));
    assert_eq!(s.new.sql("shop", "SHOW recovery_min_apply_delay"), "1h");
    assert_eq!(s.new.sql("shop", "SHOW recovery_target_lsn"), "");
    s.run("shop_new", "set_delay", vec!["0s".into()]).await.unwrap();
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    s.run("shop_new", "wait_caught_up", vec![fence]).await.unwrap();
    let c = s.run("shop_old", "compare", vec![db("shop_new")]).await.unwrap();
    assert_eq!(field(&c, "equal"), &Value::Bool(true), "{:?}", field(&c, "differences"));
    assert!(after.0 > place);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_dies_while_rolling_forward_is_followed_by_another() {
    let Some(s) = replicated() else { return };
    replicate(&s).await.unwrap();
    s.run("shop_new", "set_delay", vec!["1h".into()]).await.unwrap();
    s.old.sql("shop", "INSERT INTO orders (item) SELECT 'order ' || i FROM generate_series(1, 50000) i");
    let (_, moment) = now(&s);
    s.old.sql("shop", "DELETE FROM orders WHERE id > 100");
    received(&s).await;
    let mut cuts = 0;
    for ms in [5, 30, 80, 150, 300, 600, 1200] {
        let done = s.run_once("shop_new", "roll_forward", vec![moment.as_str().into()], Some(Duration::from_millis(ms))).await;
        if done.is_none() {
            cuts += 1;
        }
        // Whoever comes next finds out how far it was.
        let done = roll(&s, &moment).await.unwrap_or_else(|e| panic!("cut after {ms} ms: {e:?}"));
        assert_eq!(s.new.sql("shop", "SELECT count(*) FROM orders"), "50000", "cut after {ms} ms");
        assert!(field(&done, "statement").as_str().unwrap().contains("changes 49900 rows of orders"), "{done:?}");
        replicate(&s).await.unwrap();
        assert_eq!(s.new.sql("shop", "SHOW recovery_min_apply_delay"), "1h");
    }
    println!("{cuts} of 7 controllers died in the middle");
    assert!(cuts > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_was_stopped_at_once_is_rolled_forward_before_it_applies_anything() {
    let Some(s) = replicated() else { return };
    let e = s.run("shop_old", "set_delay", vec!["1h".into()]).await.unwrap_err();
    assert!(e.code == Code::DB_REPLICATION && e.message.contains("does not replicate"), "{e}");
    replicate(&s).await.unwrap();
    // The delay will be over when it is started again.
    s.run("shop_new", "set_delay", vec!["3s".into()]).await.unwrap();
    order(&s, "one");
    let (_, moment) = now(&s);
    s.old.sql("shop", "TRUNCATE orders");
    received(&s).await;
    stop(&s.new);
    tokio::time::sleep(Duration::from_secs(4)).await;
    let done = roll(&s, &moment).await.unwrap();
    assert_eq!(orders(&s.new), "one", "{done:?}");
    let e = s.run("shop_new", "set_delay", vec![Value::Duration(Duration::from_secs(3_000_000))]).await.unwrap_err();
    assert!(e.message.contains("24 days at most"), "{e}");
}
