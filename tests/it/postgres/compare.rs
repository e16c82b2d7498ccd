//! Chunks summed up by the server: what differs is found by range and by key.

use runbook_core::Value;
use runbook_core::inventory::Section;
use runbook_primitives::db::driver::{Db, Keyed, Row, Span};

use crate::support::actions::handle;
use crate::support::postgres::Site;

/// Two databases of one cluster, the second a copy of the first.
fn two() -> Option<Site> {
    let mut s = Site::start(false)?;
    let settings = s.env.resources[&Section::Databases]["shop_old"].settings.clone();
    let new = s.env.resources.get_mut(&Section::Databases).unwrap().get_mut("shop_new").unwrap();
    new.settings = settings;
    new.settings.insert("database".into(), "copy".into());
    s.old.sql(
        "shop",
        "INSERT INTO orders (item) SELECT 'order ' || i FROM generate_series(1, 5000) i; \
         CREATE SCHEMA app; CREATE TABLE app.\"od d\" (a int, b text, c bytea, n numeric, PRIMARY KEY (a, b)); \
         INSERT INTO app.\"od d\" SELECT i / 10, 'k''' || i, decode(md5(i::text), 'hex'), i * 1.10 FROM generate_series(1, 3000) i; \
         CREATE TABLE heap (x text); INSERT INTO heap VALUES ('a'), ('a'), (NULL), ('')",
    );
    s.old.sql("postgres", "CREATE DATABASE copy TEMPLATE shop");
    Some(s)
}

/// Writes into the table of orders until it is told to stop; gives how often it wrote.
fn writer(s: &Site) -> (std::sync::Arc<std::sync::atomic::AtomicBool>, tokio::task::JoinHandle<u32>) {
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (end, port) = (stop.clone(), s.old.port);
    let writer = tokio::spawn(async move {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(port).user("app").password("app s3cret'").dbname("shop");
        let (c, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let mut n = 0;
        while !end.load(std::sync::atomic::Ordering::Relaxed) {
            c.batch_execute(
                "INSERT INTO orders (item) VALUES ('live'); UPDATE orders SET item = item || '.' WHERE id = 1 + (random() * 2999)::bigint",
            )
            .await
            .unwrap();
            n += 1;
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        n
    });
    (stop, writer)
}

/// What differs between both sides, found as `compare` does: by chunks, then by rows of those that differ.
async fn differences(s: &Site) -> Vec<String> {
    let cx = s.cx();
    let (a, b) = (Db::find(&cx, "shop_old").unwrap(), Db::find(&cx, "shop_new").unwrap());
    let d = a.driver(&cx).unwrap();
    let ((left, tables), (right, _)) = (d.schema(&cx, &a).await.unwrap(), d.schema(&cx, &b).await.unwrap());
    let mut found: Vec<String> = left.iter().filter(|(k, v)| right.get(*k) != Some(v)).map(|(k, _)| k.clone()).collect();
    found.extend(right.keys().filter(|k| !left.contains_key(*k)).cloned());
    for t in &tables {
        let mut bounds = d.bounds(&cx, &a, t, &Span::default(), 500).await.unwrap();
        assert!(t.key.is_empty() || bounds.len() >= 4, "{}: {}", t.name, bounds.len());
        bounds.push(vec![]);
        let mut after = None;
        for upto in bounds {
            let span = Span { after: after.take(), upto: Some(upto.clone()).filter(|u| !u.is_empty()) };
            after = Some(upto);
            let (l, r) = d.chunk_of_both(&cx, &a, &b, t, &span).await.unwrap();
            if l != r {
                let (l, r) = d.rows_of_both(&cx, &a, &b, t, &span).await.unwrap();
                found.extend(rows(t, &l, &r));
            }
        }
    }
    found
}

fn rows(t: &Keyed, l: &[Row], r: &[Row]) -> Vec<String> {
    let key = |r: &Row| r.key.iter().map(Value::to_string).collect::<Vec<_>>().join(",");
    let only = |x: &[Row], y: &[Row], side: &str| -> Vec<String> {
        x.iter().filter(|a| !y.contains(a)).map(|a| format!("{} {} in {side}", t.name, key(a))).collect()
    };
    [only(l, r, "a"), only(r, l, "b")].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_byte_one_row_one_default() {
    let Some(s) = two() else { return };
    assert_eq!(differences(&s).await, Vec::<String>::new());
    let undo = |sql: &str| s.old.sql("copy", sql);
    s.old.sql("copy", "UPDATE app.\"od d\" SET c = set_byte(c, 3, get_byte(c, 3) # 1) WHERE b = 'k''77'");
    assert_eq!(differences(&s).await, ["app.\"od d\" 7,\"k'77\" in a", "app.\"od d\" 7,\"k'77\" in b"]);
    undo("UPDATE app.\"od d\" SET c = set_byte(c, 3, get_byte(c, 3) # 1) WHERE b = 'k''77'");
    s.old.sql("copy", "DELETE FROM orders WHERE id = 2500");
    assert_eq!(differences(&s).await, ["orders 2500 in a"]);
    undo("INSERT INTO orders VALUES (2500, 'order 2500')");
    s.old.sql("copy", "INSERT INTO orders VALUES (999999, 'one more')");
    assert_eq!(differences(&s).await, ["orders 999999 in b"]);
    undo("DELETE FROM orders WHERE id = 999999");
    s.old.sql("copy", "UPDATE heap SET x = NULL WHERE x = ''");
    assert_eq!(differences(&s).await.len(), 1, "NULL is not the empty text");
    undo("UPDATE heap SET x = '' WHERE ctid = (SELECT max(ctid) FROM heap)");
    s.old.sql("copy", "ALTER TABLE app.\"od d\" ALTER n SET DEFAULT 7");
    assert_eq!(differences(&s).await, ["table app.\"od d\""]);
    undo("ALTER TABLE app.\"od d\" ALTER n DROP DEFAULT");
    s.old.sql("copy", "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'");
    assert_eq!(differences(&s).await, ["function public.f()"]);
}

/// A file of the standby, and the place in it after which a text stands.
fn spoil(s: &Site, relation: &str, text: &str, spoil: impl Fn(&mut [u8], usize)) {
    let file = s.new.path("data").join(relation);
    let mut bytes = std::fs::read(&file).unwrap();
    let at: Vec<usize> = (0..bytes.len() - text.len()).filter(|i| bytes[*i..].starts_with(text.as_bytes())).collect();
    assert_eq!(at.len(), 1, "{text} is {} times in {}", at.len(), file.display());
    spoil(&mut bytes, at[0]);
    std::fs::write(&file, bytes).unwrap();
}

/// Marks a row (a bigint and a short text at `at`) as deleted, or as not deleted, in its header.
fn deleted(bytes: &mut [u8], at: usize, yes: bool) {
    const COMMITTED: u16 = 0x0400;
    const INVALID: u16 = 0x0800;
    let head = at - 1 - 8 - 24;
    let mask = u16::from_le_bytes([bytes[head + 20], bytes[head + 21]]) & !(COMMITTED | INVALID);
    let xmin = bytes[head..head + 4].to_vec();
    let (xmax, mask) = if yes { (xmin, mask | COMMITTED) } else { (vec![0; 4], mask | INVALID) };
    bytes[head + 4..head + 8].copy_from_slice(&xmax);
    bytes[head + 20..head + 22].copy_from_slice(&mask.to_le_bytes());
}

/// The primitive, on a standby whose files have gone bad while the primary is written to: what a restart or a bad disk leaves.
#[tokio::test(flavor = "multi_thread")]
async fn one_byte_one_row_and_one_default_of_a_standby_are_named_under_writes() {
    let Some(s) = Site::start(false) else { return };
    s.allow_replication();
    s.old.sql(
        "shop",
        "CREATE TABLE ledger (id bigint PRIMARY KEY, item text NOT NULL, n int DEFAULT 7) WITH (autovacuum_enabled = off); \
         INSERT INTO ledger SELECT i, 'entry ' || i || '!' FROM generate_series(1, 20000) i",
    );
    s.run("shop_new", "replicate_from", vec![handle("shop_old").into()]).await.unwrap();
    let (stop, writer) = writer(&s);
    let compared = async |s: &Site| {
        let c = s.run("shop_old", "compare", vec![handle("shop_new").into()]).await.unwrap();
        let c = c.as_record().unwrap().clone();
        c.get("differences").as_list().unwrap().iter().map(|d| d.as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(compared(&s).await, Vec::<String>::new());

    // While somebody might still see it, the deleted row is not cleared away.
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(s.old.port).user("app").password("app s3cret'").dbname("shop");
    let (reader, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM orders").await.unwrap();
    s.old.sql("shop", "DELETE FROM ledger WHERE id = 15000");
    s.old.sql("shop", "CHECKPOINT");
    let lsn = s.old.sql("shop", "SELECT pg_current_wal_lsn()");
    while s.new.sql("shop", &format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'")) != "t" {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let ledger = s.new.sql("shop", "SELECT pg_relation_filepath('ledger')");
    let defaults = s.new.sql("shop", "SELECT pg_relation_filepath('pg_attrdef')");
    s.new.sql("shop", "CHECKPOINT");
    s.new.as_postgres("pg_ctl", &["-D", &s.new.path("data").display().to_string(), "-m", "fast", "-w", "stop"]);
    spoil(&s, &ledger, "entry 777!", |b, at| b[at + 9] = b'?');
    spoil(&s, &ledger, "entry 9000!", |b, at| deleted(b, at, true));
    spoil(&s, &ledger, "entry 15000!", |b, at| deleted(b, at, false));
    spoil(&s, &defaults, "[ 7 0 0 0 0 0 0 0 ]", |b, at| b[at + 2] = b'8');
    s.new.start();
    let found = compared(&s).await;
    drop(reader);
    assert_eq!(found.len(), 4, "{found:?}");
    assert!(found.contains(&"ledger: the row id = 777 differs".to_string()), "{found:?}");
    assert!(found.contains(&"ledger: the row id = 9000 is only in shop_old".to_string()), "{found:?}");
    assert!(found.contains(&"ledger: the row id = 15000 is only in shop_new".to_string()), "{found:?}");
    assert!(found.iter().any(|f| f.starts_with("table ledger is") && f.contains("default 7") && f.contains("default 8")), "{found:?}");
    let status = s.run("shop_new", "status", vec![]).await.unwrap();
    assert_eq!(status.as_record().unwrap().get("running"), &Value::Bool(true), "it replicates all the while");
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(writer.await.unwrap() > 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_equal_to_a_primary_that_is_written_to_all_the_time() {
    let Some(s) = Site::start(false) else { return };
    s.allow_replication();
    s.old.sql("shop", "INSERT INTO orders (item) SELECT 'order ' || i FROM generate_series(1, 3000) i");
    s.run("shop_new", "replicate_from", vec![handle("shop_old").into()]).await.unwrap();
    let (stop, writer) = writer(&s);
    for _ in 0..3 {
        assert_eq!(differences(&s).await, Vec::<String>::new());
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(writer.await.unwrap() > 20);
}
