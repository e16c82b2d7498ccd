//! Logical replicas of one database: what is not carried is named before anything starts; made, cut anywhere, switched to under writes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use runbook_core::{Code, Value};

use super::switch::{Shop, all_there, db};
use crate::support::dumps::{self, Carried};
use crate::support::postgres::{Cluster, Site};
use crate::support::wires::Wires;

pub(super) fn restart(c: &Cluster) {
    c.as_postgres("pg_ctl", &["-D", &c.path("data").display().to_string(), "-m", "fast", "-w", "stop"]);
    c.start();
}

/// A primary that can be replicated logically, and an empty cluster of another origin.
pub(super) fn site() -> Option<Site> {
    let s = Site::start(false)?;
    s.old.sql("postgres", "ALTER SYSTEM SET wal_level = logical");
    restart(&s.old);
    s.new.init(false);
    s.new.start();
    Some(s)
}

pub(super) fn logical(s: &[(&str, Value)]) -> Value {
    let mut all = BTreeMap::from([("mode".to_string(), Value::from("logical"))]);
    all.extend(s.iter().map(|(k, v)| ((*k).to_string(), v.clone())));
    Value::Map(all)
}

pub(super) async fn status(s: &Site, of: &str) -> runbook_core::Record {
    s.run(of, "status", vec![]).await.unwrap().as_record().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_carried_is_named_before_anything_starts() {
    let Some(s) = Site::start(false) else { return };
    s.new.init(false);
    s.new.start();
    let again = async || s.run("shop_new", "replicate_from", vec![db("shop_old"), logical(&[])]).await;
    let e = again().await.unwrap_err();
    assert!(e.code == Code::DB_SETTINGS && e.message.contains("wal_level = replica"), "{e}");
    s.old.sql("postgres", "ALTER SYSTEM SET wal_level = logical");
    restart(&s.old);
    s.old.sql("shop", "CREATE TABLE keyless (a int); CREATE TABLE \"No Key\" (a int); CREATE TABLE full_one (a int); ALTER TABLE full_one REPLICA IDENTITY FULL");
    let e = again().await.unwrap_err();
    assert!(e.code == Code::DB_SETTINGS && e.message.ends_with("would fail: \"No Key\", keyless"), "{e}");
    s.old.sql("shop", "DROP TABLE keyless; ALTER TABLE \"No Key\" ADD PRIMARY KEY (a); SELECT lo_create(4711)");
    let e = again().await.unwrap_err();
    assert!(e.message.contains("has 1 large objects"), "{e}");
    s.old.sql("shop", "SELECT lo_unlink(4711); CREATE UNLOGGED TABLE cache (a int); CREATE TABLE secret (a int PRIMARY KEY); ALTER TABLE secret ENABLE ROW LEVEL SECURITY");
    let e = again().await.unwrap_err();
    assert!(e.message.contains("row-level security") && e.message.ends_with("secret"), "{e}");
    assert_eq!(s.new.sql("postgres", "SELECT count(*) FROM pg_database WHERE datname = 'shop'"), "0");
    assert_eq!(s.old.sql("shop", "SELECT count(*) FROM pg_publication"), "0");
    s.old.sql("shop", "ALTER TABLE secret DISABLE ROW LEVEL SECURITY");
    // What is there already is not removed unless told.
    s.new.sql("postgres", "CREATE DATABASE shop");
    s.new.sql("shop", "CREATE TABLE precious (a int)");
    let e = again().await.unwrap_err();
    assert!(e.code == Code::DB_COPY && e.message.contains("is not empty"), "{e}");
    s.run("shop_new", "replicate_from", vec![db("shop_old"), logical(&[("replace", true.into())])]).await.unwrap();
    assert!(s.world.messages.lock().join("\n").contains("unlogged tables"));
    assert_eq!(s.new.sql("shop", "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"), "5");
    s.run("shop_new", "stop_replication", vec![]).await.unwrap();
    assert_eq!(s.old.sql("shop", "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication)"), "0");
    assert_eq!(s.new.sql("shop", "SELECT count(*) FROM pg_subscription"), "0");
    assert!(!s.new.path("data.runbook-pass").exists());
    s.run("shop_new", "stop_replication", vec![]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shop_moves_to_a_logical_replica_cut_anywhere() {
    for round in 0..3u64 {
        let Some(s) = site() else { return };
        s.old.sql(
            "shop",
            "INSERT INTO orders (item) SELECT 'early ' || i FROM generate_series(1, 50000) i; CREATE SEQUENCE invoice START 1000; SELECT setval('invoice', 4242); \
             CREATE MATERIALIZED VIEW totals AS SELECT count(*) AS n FROM orders; ALTER SEQUENCE invoice OWNER TO app",
        );
        let shop = Shop::open(&s);
        shop.some_orders().await;
        let mut cuts = 0;
        for i in 0..4u64 {
            let cut = Duration::from_millis(60 + (round * 211 + i * 397) % 1500);
            match s.run_once("shop_new", "replicate_from", vec![db("shop_old"), logical(&[])], Some(cut)).await {
                Some(done) => drop(done.unwrap()),
                None => cuts += 1,
            }
        }
        s.run("shop_new", "replicate_from", vec![db("shop_old"), logical(&[])]).await.unwrap();
        let again = s.run("shop_new", "replicate_from", vec![db("shop_old"), logical(&[])]).await.unwrap();
        assert_eq!(again.as_record().unwrap().get("changed"), &Value::Bool(false));
        shop.some_orders().await;
        let st = status(&s, "shop_new").await;
        assert_eq!(
            (st.str("role"), st.get("running"), st.get("read_only"), st.get("error")),
            ("replica", &Value::Bool(true), &Value::Bool(true), &Value::Unit)
        );

        // What was changed since is named, and may be made on both sides.
        if round == 0 {
            // On the replica first: rows with a column that it lacks would stop it.
            s.new.sql("shop", "ALTER TABLE orders ADD note text");
            s.old.sql("shop", "ALTER TABLE orders ADD note text; CREATE TABLE later (a int PRIMARY KEY)");
            let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
            let e = s.run("shop_new", "promote", vec![fence.clone()]).await;
            let e = if e.as_ref().is_err_and(|e| e.code == Code::DB_BEHIND) {
                s.run("shop_new", "wait_caught_up", vec![fence.clone()]).await.unwrap();
                s.run("shop_new", "promote", vec![fence]).await
            } else {
                e
            };
            let e = e.unwrap_err();
            assert!(
                e.code == Code::DB_DIFFERS
                    && e.message.contains("table public.later is not subscribed to")
                    && e.message.contains("table later"),
                "{e}"
            );
            s.run("shop_old", "unfence", vec![]).await.unwrap();
            // A row of a table that the replica does not have stops it, in the server's words.
            s.old.sql("shop", "INSERT INTO later VALUES (1)");
            let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
            let e = s.run("shop_new", "wait_caught_up", vec![fence]).await.unwrap_err();
            assert!(e.code == Code::DB_REPLICATION && e.message.contains("\"public.later\" does not exist"), "{e}");
            s.run("shop_old", "unfence", vec![]).await.unwrap();
            s.new.sql("shop", "CREATE TABLE later (a int PRIMARY KEY)");
            s.run("shop_new", "replicate_from", vec![db("shop_old"), logical(&[])]).await.unwrap();
            assert_eq!(s.new.sql("shop", "SELECT count(*) FROM later"), "1");
            s.old.sql("shop", "ALTER TABLE later OWNER TO app");
            s.new.sql("shop", "ALTER TABLE later OWNER TO app");
            shop.some_orders().await;
        }

        let cut = |i: u64| Some(Duration::from_millis(10 + (round * 97 + i * 61) % 200));
        let began = Instant::now();
        let fence = s.run_cut("shop_old", "fence", vec![], cut(1)).await.unwrap();
        s.run("shop_new", "wait_caught_up", vec![fence.clone()]).await.unwrap();
        let caught = began.elapsed();
        s.run_cut("shop_new", "promote", vec![fence.clone()], cut(2)).await.unwrap();
        eprintln!("round {round}: {cuts} cuts of the making; caught up {caught:?}, promoted {:?}", began.elapsed());
        shop.some_orders().await;
        assert_eq!(s.run("shop_new", "promote", vec![fence]).await.unwrap(), Value::Unit);
        assert_eq!(s.new.sql("shop", "SELECT nextval('invoice')"), "4243");
        assert_eq!(s.old.sql("shop", "SELECT count(*) FROM pg_replication_slots"), "0");
        assert_eq!(s.new.sql("shop", "SELECT count(*) FROM pg_subscription"), "0");
        assert_eq!(s.new.sql("shop", "SELECT count(*) > 50000 FROM orders"), "t");
        assert_eq!(s.new.sql("shop", "SELECT n > 50000 FROM totals"), "t", "it was refreshed");
        let e = s.run("shop_new", "demote", vec![db("shop_old")]).await.unwrap_err();
        assert!(e.code == Code::DB_CANNOT && e.message.contains("without a way back"), "{e}");
        let e = s.run("shop_old", "unfence", vec![]).await.unwrap_err();
        assert!(e.message.contains("has handed over"), "{e}");
        let taken = shop.close().await;
        all_there(&s.new, &taken);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_is_told_in_the_servers_words_and_stops_the_wait() {
    let Some(s) = site() else { return };
    s.run("shop_new", "replicate_from", vec![db("shop_old"), logical(&[])]).await.unwrap();
    s.new.sql("shop", "INSERT INTO orders VALUES (1, 'in the way')");
    s.old.sql("shop", "INSERT INTO orders (item) VALUES ('first')");
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    let e = s.run("shop_new", "wait_caught_up", vec![fence.clone()]).await.unwrap_err();
    assert!(e.code == Code::DB_REPLICATION && e.message.contains("duplicate key value violates unique constraint \"orders_pkey\""), "{e}");
    let st = status(&s, "shop_new").await;
    assert!(format!("{:?}", st.get("error")).contains("duplicate key value"), "{st:?}");
    assert_eq!(st.get("running"), &Value::Bool(false));
    let e = s.run("shop_new", "promote", vec![fence.clone()]).await.unwrap_err();
    assert!(matches!(e.code, Code::DB_REPLICATION | Code::DB_BEHIND), "{e}");
    // It goes on by itself once the row is out of the way; not under the fence, which lets no new session of the replica in.
    s.run("shop_old", "unfence", vec![]).await.unwrap();
    s.new.sql("shop", "DELETE FROM orders WHERE id = 1");
    let began = Instant::now();
    while s.new.sql("shop", "SELECT string_agg(item, ',') FROM orders") != "first" {
        assert!(began.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    s.run("shop_new", "wait_caught_up", vec![fence.clone()]).await.unwrap();
    // Not promoted yet: the way back is open.
    assert_eq!(s.run("shop_new", "demote", vec![db("shop_old")]).await.unwrap(), Value::Unit);
    s.run("shop_new", "promote", vec![fence]).await.unwrap();
    assert_eq!(s.new.sql("shop", "INSERT INTO orders (item) VALUES ('second') RETURNING id"), "2");
}

/// From Debian's PostgreSQL to the newer one of a Python package, and back: what newer servers write differently is no difference.
#[tokio::test(flavor = "multi_thread")]
async fn the_shop_moves_to_another_major_version_and_back() {
    let (Some(old), Some(new)) = (Cluster::place(), Cluster::other()) else { return };
    let Some(s) = Site::of(old, new, false) else { return };
    s.old.sql("postgres", "ALTER SYSTEM SET wal_level = logical");
    restart(&s.old);
    s.allow_replication();
    let e = s.run("shop_new", "replicate_from", vec![db("shop_old")]).await.unwrap_err();
    assert!(e.code == Code::DB_SETTINGS && e.hint.as_ref().unwrap().contains("logical"), "{e:?}");
    s.new.init(false);
    s.new.start();
    s.new.sql("postgres", "ALTER SYSTEM SET wal_level = logical");
    restart(&s.new);
    let versions = [&s.old, &s.new].map(|c| c.sql("postgres", "SHOW server_version"));
    s.old.sql(
        "shop",
        "CREATE ROLE reader NOLOGIN; GRANT reader TO app; CREATE SCHEMA stock AUTHORIZATION app; \
         CREATE TYPE stock.size AS ENUM ('small', 'large'); CREATE DOMAIN positive AS int CHECK (VALUE > 0); \
         CREATE TABLE stock.item (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, size stock.size NOT NULL DEFAULT 'small', n positive, \
           price numeric(10,2) NOT NULL DEFAULT 0, twice numeric GENERATED ALWAYS AS (price * 2) STORED, tags text[], doc jsonb, at timestamptz DEFAULT now()); \
         INSERT INTO stock.item (size, n, price, tags, doc) SELECT 'large', i, i * 1.25, ARRAY['a', i::text], jsonb_build_object('i', i, 'f', i / 7.0) FROM generate_series(1, 30000) i; \
         CREATE INDEX ON stock.item (lower(tags[1])) WHERE n > 5; \
         CREATE TABLE event (day date NOT NULL, id bigint NOT NULL, body text, PRIMARY KEY (day, id)) PARTITION BY RANGE (day); \
         CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM ('2026-01-01') TO ('2026-07-01'); \
         CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM ('2026-07-01') TO ('2027-01-01'); \
         INSERT INTO event SELECT '2026-01-01'::date + i % 365, i, repeat('x', i % 100) FROM generate_series(1, 5000) i; \
         CREATE VIEW cheap AS SELECT id, price FROM stock.item WHERE price < 10; \
         CREATE VIEW both_of AS SELECT o.id, i.price FROM orders o JOIN stock.item i USING (id); \
         CREATE MATERIALIZED VIEW total AS SELECT size, count(*) AS n FROM stock.item GROUP BY size; \
         CREATE FUNCTION f(a int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT a + 1'; \
         GRANT ALL ON stock.item TO reader; GRANT SELECT, INSERT ON orders TO reader WITH GRANT OPTION; \
         CREATE SEQUENCE invoice INCREMENT 5 START 1000; SELECT setval('invoice', 4245)",
    );
    let shop = Shop::open(&s);
    shop.some_orders().await;
    let began = Instant::now();
    s.run("shop_new", "replicate_from", vec![db("shop_old"), logical(&[("way_back", true.into())])]).await.unwrap();
    let made = began.elapsed();
    s.old.sql("shop", "UPDATE stock.item SET price = price + 1 WHERE id % 3 = 0; DELETE FROM event WHERE id % 10 = 0; UPDATE event SET day = day + 180 WHERE id % 7 = 0 AND day < '2026-06-01'");
    shop.some_orders().await;
    let began = Instant::now();
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    s.run("shop_new", "wait_caught_up", vec![fence.clone()]).await.unwrap();
    let compared = s.run("shop_old", "compare", vec![db("shop_new")]).await.unwrap();
    let compared = compared.as_record().unwrap();
    assert_eq!(compared.get("differences"), &Value::List(vec![]));
    s.run("shop_new", "promote", vec![fence]).await.unwrap();
    let switched = began.elapsed();
    shop.some_orders().await;
    eprintln!(
        "{} to {}: made in {made:.1?}, switched in {switched:.0?}, {} rows compared, longest time without an order {:.0?}",
        versions[0],
        versions[1],
        compared.get("rows"),
        shop.longest_gap()
    );
    assert_eq!(s.new.sql("shop", "SELECT nextval('invoice')"), "4250");
    assert_eq!(s.new.sql("shop", "INSERT INTO stock.item (price) VALUES (1) RETURNING id"), "30001");
    s.new.sql(
        "shop",
        "UPDATE stock.item SET tags = tags || 'new'::text WHERE id % 5 = 0; DELETE FROM event WHERE id % 3 = 0; TRUNCATE event_2",
    );
    let began = Instant::now();
    s.run("shop_new", "demote", vec![db("shop_old")]).await.unwrap();
    eprintln!("taken back in {:.0?}", began.elapsed());
    let compared = s.run("shop_old", "compare", vec![db("shop_new")]).await.unwrap();
    assert_eq!(compared.as_record().unwrap().get("differences"), &Value::List(vec![]));
    s.run("shop_old", "unfence", vec![]).await.unwrap();
    shop.some_orders().await;
    assert_eq!(s.old.sql("shop", "INSERT INTO stock.item (price) VALUES (1) RETURNING id"), "30002");
    let taken = shop.close().await;
    all_there(&s.old, &taken);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_connections_are_reset_at_random_loses_and_doubles_nothing() {
    let Some(mut s) = site() else { return };
    let wires = Wires::lay(&mut s).await;
    s.fill();
    // The copies of its tables are retried by the server; a key would hide what comes twice.
    s.old.sql("shop", "CREATE TABLE all_of_it (a int); ALTER TABLE all_of_it REPLICA IDENTITY FULL; INSERT INTO all_of_it SELECT generate_series(1, 50000); ALTER TABLE heap REPLICA IDENTITY FULL; ALTER TABLE one REPLICA IDENTITY FULL; ALTER TABLE two REPLICA IDENTITY FULL");
    dumps::replicate_under_resets(&s, &wires, &mut dumps::seed(), logical(&[("replace", true.into())])).await;
    for table in ["all_of_it", "bulk", "heap", "one", "two", "child", "orders"] {
        let sum = format!("SELECT count(*), sum(hashtextextended(t::text, 0)) FROM {table} t");
        assert_eq!(s.old.sql("shop", &sum), s.new.sql("shop", &sum), "{table}");
    }
}
