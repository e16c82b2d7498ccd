//! The way back from a logical replica that took over: the old side has followed since, and gets every row and every sequence.

use std::time::{Duration, Instant};

use runbook_core::{Code, Value};

use super::logical::{logical, restart, site, status};
use super::switch::{Shop, all_there, db};
use crate::support::postgres::Site;

const WAY_BACK: (&str, Value) = ("way_back", Value::Bool(true));

/// A session of a super-user who means to write behind the fence.
const WRITING: &str = "dbname=shop options='-c default_transaction_read_only=off'";

async fn replicate(s: &Site, more: &[(&str, Value)]) {
    s.run("shop_new", "replicate_from", vec![db("shop_old"), logical(&[&[WAY_BACK], more].concat())]).await.unwrap();
}

async fn switch(s: &Site, cut: impl Fn(u64) -> Option<Duration>) -> Value {
    let fence = s.run_cut("shop_old", "fence", vec![], cut(1)).await.unwrap();
    s.run("shop_new", "wait_caught_up", vec![fence.clone()]).await.unwrap();
    s.run_cut("shop_new", "promote", vec![fence.clone()], cut(2)).await.unwrap();
    fence
}

/// Waits until the old side follows the new one.
async fn follows(s: &Site) {
    let began = Instant::now();
    loop {
        let st = status(s, "shop_old").await;
        if st.get("running") == &Value::Bool(true) {
            assert_eq!((st.str("role"), st.str("source"), st.get("error")), ("replica", "shop_new", &Value::Unit), "{st:?}");
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "it does not follow: {st:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A primary and a cluster that may both be replicated.
fn both() -> Option<Site> {
    let s = site()?;
    s.new.sql("postgres", "ALTER SYSTEM SET wal_level = logical");
    restart(&s.new);
    Some(s)
}

/// What a way back leaves of itself: slots, publications, subscriptions, passwords.
fn left(s: &Site) -> String {
    let sql = "SELECT (SELECT count(*) FROM pg_replication_slots) || ' ' || (SELECT count(*) FROM pg_subscription) || ' ' || \
               (SELECT count(*) FROM pg_publication WHERE pubname = 'runbook_shop_old')";
    let passwords = [&s.old, &s.new].map(|c| c.path("data.runbook-pass").exists());
    format!("{}, {}, {passwords:?}", s.old.sql("shop", sql), s.new.sql("shop", sql))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shop_comes_back_from_a_logical_replica_cut_anywhere() {
    let Some(s) = both() else { return };
    s.old.sql(
        "shop",
        "INSERT INTO orders (item) SELECT 'early ' || i FROM generate_series(1, 5000) i; CREATE SEQUENCE invoice START 1000; SELECT setval('invoice', 4242); \
         CREATE MATERIALIZED VIEW totals AS SELECT count(*) AS n FROM orders WHERE item LIKE 'early%'",
    );
    let shop = Shop::open(&s);
    let (mut cuts, mut died) = (0, 0);
    for round in 0..4u64 {
        replicate(&s, if round == 0 { &[] } else { &[("replace", Value::Bool(true))] }).await;
        shop.some_orders().await;
        let fence = switch(&s, |i| Some(Duration::from_millis(10 + (round * 97 + i * 61) % 200))).await;
        shop.some_orders().await;
        assert_eq!(s.run("shop_new", "promote", vec![fence.clone()]).await.unwrap(), Value::Unit);
        // Rows come, change and go, and numbers are drawn.
        s.new.sql("shop", "UPDATE orders SET item = item || '!' WHERE id % 7 = 0 AND item LIKE 'early%'; DELETE FROM orders WHERE id % 11 = 0 AND item LIKE 'early%'");
        let number: i64 = s.new.sql("shop", "SELECT nextval('invoice')").parse().unwrap();
        let early = s.new.sql("shop", "SELECT md5(string_agg(o::text, ',' ORDER BY id)) FROM orders o WHERE item LIKE 'early%'");
        follows(&s).await;
        let e = s.run("shop_old", "unfence", vec![]).await.unwrap_err();
        assert!(e.message.contains("has handed over"), "{e}");

        let last = 6;
        let began = Instant::now();
        for i in 0..=last {
            let within = Duration::from_millis(40 + round * 53 + i * 131);
            cuts += 1;
            match s.run_once("shop_new", "demote", vec![db("shop_old")], (i < last).then_some(within)).await {
                Some(Ok(_)) => break,
                Some(Err(e)) if e.retryable && i < last => {}
                Some(Err(e)) => panic!("round {round}, cut {i}: {e:?}"),
                None => died += 1,
            }
        }
        eprintln!("round {round}: taken back after {:?}", began.elapsed());
        // Nobody takes writes until the fence of the old side is lifted.
        let before = shop.taken.lock().len();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(shop.taken.lock().len(), before);
        assert_eq!(s.run("shop_new", "demote", vec![db("shop_old")]).await.unwrap(), Value::Unit);
        let e = s.run("shop_new", "promote", vec![fence]).await.unwrap_err();
        assert_eq!(e.code, Code::DB_COPY, "{e}");
        let e = s.run("shop_new", "unfence", vec![]).await.unwrap_err();
        assert!(e.message.contains("has handed over to \"shop_old\""), "{e}");
        assert_eq!(left(&s), "0 0 0, 0 0 0, [false, true]");
        s.run("shop_old", "unfence", vec![]).await.unwrap();
        shop.some_orders().await;
        assert_eq!(s.old.sql("shop", "SELECT md5(string_agg(o::text, ',' ORDER BY id)) FROM orders o WHERE item LIKE 'early%'"), early);
        assert_eq!(
            s.old.sql("shop", "SELECT n = (SELECT count(*) FROM orders WHERE item LIKE 'early%') FROM totals"),
            "t",
            "it was refreshed"
        );
        assert_eq!(s.old.sql("shop", "SELECT nextval('invoice')"), (number + 1).to_string());
        assert_eq!(s.old.sql("shop", "SELECT count(*) FROM pg_db_role_setting"), "0");
    }
    let taken = shop.close().await;
    eprintln!("{cuts} ways back begun, {died} of them cut; {} orders", taken.len());
    all_there(&s.old, &taken);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_way_back_that_would_lose_something_keeps_nobody_out() {
    let Some(s) = site() else { return };
    // What the way back needs is said before anything starts.
    let e = s.run("shop_new", "replicate_from", vec![db("shop_old"), logical(&[WAY_BACK])]).await.unwrap_err();
    assert!(e.code == Code::DB_SETTINGS && e.message.contains("\"shop_new\" has wal_level = replica"), "{e}");
    assert_eq!(s.new.sql("postgres", "SELECT count(*) FROM pg_database WHERE datname = 'shop'"), "0");
    s.new.sql("postgres", "ALTER SYSTEM SET wal_level = logical");
    restart(&s.new);
    s.new.hba(&["local all postgres peer"]);
    s.new.sql("postgres", "SELECT pg_reload_conf()");
    let e = s.run("shop_new", "replicate_from", vec![db("shop_old"), logical(&[WAY_BACK])]).await.unwrap_err();
    assert!(
        e.code == Code::DB_SETTINGS && e.message.contains("pg_hba.conf of \"shop_new\" does not let the standby \"shop_old\" in"),
        "{e}"
    );
    s.new.hba(&["local all postgres peer", "local all all scram-sha-256", "host all all 127.0.0.1/32 scram-sha-256"]);
    s.new.sql("postgres", "SELECT pg_reload_conf()");
    replicate(&s, &[]).await;
    let shop = Shop::open(&s);

    // Somebody else's transaction keeps the slot from being made: nothing is handed over, and it says who.
    s.new.sql("postgres", "CREATE TABLE t (a int)");
    let mut other = std::process::Command::new("runuser")
        .args([
            "-u",
            "postgres",
            "--",
            "psql",
            "-X",
            "-h",
            &s.new.path("").display().to_string(),
            "-p",
            &s.new.port.to_string(),
            "-d",
            "postgres",
        ])
        .args(["-c", "BEGIN; INSERT INTO t VALUES (1); SELECT pg_sleep(60)"])
        .current_dir("/")
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    s.run("shop_new", "wait_caught_up", vec![fence.clone()]).await.unwrap();
    let e = s.run("shop_new", "promote", vec![fence.clone()]).await.unwrap_err();
    assert!(e.code == Code::DB_COPY && e.retryable && e.message.contains("of postgres since"), "{e}");
    s.new.sql(
        "postgres",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND pid <> pg_backend_pid()",
    );
    other.wait().unwrap();
    s.run("shop_old", "unfence", vec![]).await.unwrap();
    shop.some_orders().await;
    switch(&s, |_| None).await;
    shop.some_orders().await;

    // A table that the old side does not have.
    s.new.sql("shop", "CREATE TABLE later (a int PRIMARY KEY); ALTER TABLE later OWNER TO app");
    let e = s.run("shop_new", "demote", vec![db("shop_old")]).await.unwrap_err();
    assert!(e.code == Code::DB_DIFFERS && e.message.contains("table public.later is not subscribed to"), "{e}");
    shop.some_orders().await;
    s.new.sql("shop", "INSERT INTO later VALUES (1)");
    s.old.sql(WRITING, "CREATE TABLE later (a int PRIMARY KEY); ALTER TABLE later OWNER TO app");
    s.old.sql(WRITING, "ALTER SUBSCRIPTION runbook_shop_old REFRESH PUBLICATION");
    follows(&s).await;
    s.run("shop_new", "demote", vec![db("shop_old")]).await.unwrap();
    s.run("shop_old", "unfence", vec![]).await.unwrap();
    assert_eq!(s.old.sql("shop", "SELECT count(*) FROM later"), "1");
    shop.some_orders().await;

    // What stops the old side is told in the server's words, and keeps nobody out.
    replicate(&s, &[("replace", Value::Bool(true))]).await;
    switch(&s, |_| None).await;
    s.old.sql(WRITING, "INSERT INTO later VALUES (7)");
    s.new.sql("shop", "INSERT INTO later VALUES (7)");
    let e = s.run("shop_new", "demote", vec![db("shop_old")]).await.unwrap_err();
    assert!(e.code == Code::DB_REPLICATION && e.message.contains("duplicate key value"), "{e}");
    shop.some_orders().await;

    // Given up: the new side keeps nothing for it, and there is no way back any more.
    s.run("shop_old", "stop_replication", vec![]).await.unwrap();
    assert_eq!(s.new.sql("shop", "SELECT count(*) FROM pg_replication_slots"), "0");
    let e = s.run("shop_new", "demote", vec![db("shop_old")]).await.unwrap_err();
    assert!(e.code == Code::DB_REPLICATION && e.message.contains("is gone, and with it the way back"), "{e}");
    shop.some_orders().await;
    let taken = shop.close().await;
    all_there(&s.new, &taken);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_side_that_is_opened_by_force_follows_no_longer() {
    let Some(s) = both() else { return };
    replicate(&s, &[]).await;
    switch(&s, |_| None).await;
    assert_eq!(s.new.sql("shop", "SELECT count(*) FROM pg_replication_slots"), "1");
    s.run("shop_old", "unfence", vec![Value::Map([("force".to_string(), Value::Bool(true))].into())]).await.unwrap();
    assert_eq!(left(&s), "0 0 0, 0 0 0, [false, true]");
    s.new.sql("shop", "INSERT INTO orders (item) VALUES ('there')");
    s.old.sql("shop", "INSERT INTO orders (item) VALUES ('here')");
    assert_eq!(s.old.sql("shop", "SELECT string_agg(item, ',') FROM orders"), "here");
    let e = s.run("shop_new", "demote", vec![db("shop_old")]).await.unwrap_err();
    assert!(e.code == Code::DB_DIFFERS && e.message.contains("both take writes"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_side_that_never_came_to_follow_lets_go_all_the_same() {
    let Some(s) = both() else { return };
    replicate(&s, &[]).await;
    switch(&s, |_| None).await;
    // As if the controller had died before.
    s.old.sql(WRITING, "ALTER SUBSCRIPTION runbook_shop_old DISABLE; ALTER SUBSCRIPTION runbook_shop_old SET (slot_name = NONE); DROP SUBSCRIPTION runbook_shop_old; ALTER DATABASE shop RESET runbook.replica");
    assert_eq!(s.new.sql("shop", "SELECT count(*) FROM pg_replication_slots"), "1");
    s.run("shop_old", "stop_replication", vec![]).await.unwrap();
    assert_eq!(left(&s), "0 0 0, 0 0 0, [false, true]");
    s.run("shop_old", "stop_replication", vec![]).await.unwrap();
}
