//! `copy_from`: everything is there, as of one moment; controllers, jobs and servers that die in the middle; and what is refused.

use std::time::{Duration, Instant};

use runbook_core::{Code, Result, Value};

use super::dumps::{LARGE, SHOP, others, site};
use crate::support::actions::handle;
use crate::support::dumps::{Carried, Folder, all, kill_job};
use crate::support::options;
use crate::support::postgres::Site;

/// The rows of [`SHOP`].
const ROWS: i64 = 300 + 60_000 + 4 + 5000 + 5000;

fn with(jobs: i64) -> Vec<Value> {
    vec![handle("shop_old").into(), options(&[("jobs", Value::Int(jobs))])]
}

async fn copy(s: &Site) -> Result<Value> {
    s.run("shop_new", "copy_from", with(3)).await
}

fn rows(v: &Value) -> i64 {
    v.as_record().unwrap().get("rows").as_int().unwrap()
}

/// The folder of the job that copies into the new database.
fn job(s: &Site) -> std::path::PathBuf {
    let sql = "SELECT format('/var/tmp/runbook-copy.%s.%s', (SELECT system_identifier FROM pg_control_system()), oid) FROM pg_database WHERE datname = 'shop'";
    s.new.sql("shop", sql).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_copied() {
    let Some(s) = site() else { return };
    s.old.sql("shop", &SHOP.replace(LARGE, ""));
    // What only a database that grew has: dropped columns, an inherited table, a sequence that was never asked, or was set back.
    s.old.sql(
        "shop",
        "ALTER TABLE heap DROP COLUMN b, ADD COLUMN c text DEFAULT 'c'; CREATE TABLE heir (d int) INHERITS (heap); INSERT INTO heir VALUES (1, 'x', 2); \
         CREATE TABLE nothing (); INSERT INTO nothing DEFAULT VALUES; CREATE UNLOGGED TABLE fast (a regclass); INSERT INTO fast VALUES ('heap'); \
         CREATE SEQUENCE fresh START 7; CREATE SEQUENCE back; SELECT nextval('back'); ALTER SEQUENCE back RESTART WITH 42; \
         CREATE TABLE \"two\nlines\" (\"a\nb\" int); INSERT INTO \"two\nlines\" VALUES (1)",
    );
    let c = copy(&s).await.unwrap();
    assert_eq!(rows(&c), ROWS + 4, "{c:?}");
    s.equal().await;
    assert_eq!(others(&s.old), others(&s.new));
    for seq in ["numbers", "fresh", "back", "orders_id_seq"] {
        let sql = format!("SELECT last_value, is_called FROM {seq}");
        assert_eq!(s.old.sql("shop", &sql), s.new.sql("shop", &sql), "{seq}");
    }
    assert_eq!(s.new.sql("shop", "SELECT count(*) FROM nothing; SELECT a FROM fast; SELECT count(*) FROM logged"), "1\nheap\n0");

    // Made anew while it is as it was copied, by another action; not when somebody has made something else of it.
    s.new.sql("shop", "DELETE FROM heap");
    copy(&s).await.unwrap();
    s.equal().await;
    s.new.sql("shop", "CREATE TABLE mine (a int)");
    let e = copy(&s).await.unwrap_err();
    assert!(e.code == Code::DB_COPY && e.message.starts_with("\"shop_new\" is not empty: it has "), "{e:?}");
    let e = s.run("shop_new", "drop_copy", vec![]).await.unwrap_err();
    assert_eq!(e.message, "\"shop_new\" is no copy any more: its tables are others than those that were copied");
    s.new.sql("shop", "DROP TABLE mine");
    s.run("shop_new", "drop_copy", vec![]).await.unwrap();
    assert_eq!(s.new.sql("shop", "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"), "0");
    s.run("shop_new", "drop_copy", vec![]).await.unwrap();

    // A dump that was loaded before is not taken for what is there now.
    let (f, replace) = (Folder::new(), || options(&[("replace", true.into())]));
    s.run("shop_old", "dump", vec![f.at("d")]).await.unwrap();
    s.run("shop_new", "load", vec![f.at("d")]).await.unwrap();
    s.new.sql("shop", "DROP SCHEMA public, \"odd; name\" CASCADE; CREATE SCHEMA public");
    copy(&s).await.unwrap();
    s.new.sql("shop", "DELETE FROM heap");
    let l = s.run("shop_new", "load", vec![f.at("d"), replace()]).await.unwrap();
    assert_eq!(l.as_record().unwrap().get("changed"), &Value::Bool(true));
    s.equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_tables_go_in_parts_and_as_the_server_keeps_them() {
    let Some(s) = site() else { return };
    let fill = "SELECT n, CASE WHEN n % 2 = 0 THEN 'sad' ELSE 'glad' END, n / 7.0, CASE WHEN n % 3 > 0 THEN decode(md5(n::text), 'hex') END, ARRAY[n::text, NULL], \
        jsonb_build_object('n', n), date '2020-01-01' + n % 900, 'Grüße\t' || repeat(md5(n::text), 8)";
    let columns = "net numeric, raw bytea, list text[], doc jsonb, day date, note text";
    s.old.sql(
        "shop",
        &format!(
            "CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE TABLE plain (id int PRIMARY KEY, mood text, {columns}); CREATE TABLE odd (id int PRIMARY KEY, mood mood, {columns}); \
             CREATE TABLE small (id int, mood text, {columns}); \
             INSERT INTO plain {fill} FROM generate_series(1, 200000) n; INSERT INTO odd {} FROM generate_series(1, 200000) n; INSERT INTO small {fill} FROM generate_series(1, 20000) n",
            fill.replace("END, n / 7.0", "END::mood, n / 7.0")
        ),
    );
    let c = s.run("shop_new", "copy_from", with(4)).await.unwrap();
    assert_eq!(rows(&c), 420_000);
    s.equal().await;
    // Each part is a transaction.
    for (table, parts) in [("plain", "3"), ("odd", "3"), ("small", "1")] {
        assert_eq!(s.new.sql("shop", &format!("SELECT count(DISTINCT xmin::text) FROM {table}")), parts, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_of_one_moment_while_others_write_and_nobody_empties_a_table_under_it() {
    let Some(s) = site() else { return };
    s.fill();
    s.old.sql(
        "shop",
        "CREATE TABLE a_left (n int); CREATE TABLE z_right (n int); INSERT INTO a_left VALUES (0); INSERT INTO z_right VALUES (0); \
         CREATE TABLE doomed AS SELECT generate_series(1, 1000) n",
    );
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (first, turns, emptied) = std::thread::scope(|t| {
        let writer = t.spawn(|| {
            let mut n = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                s.old.sql(
                    "shop",
                    "BEGIN; UPDATE a_left SET n = n + 1; INSERT INTO orders (item) VALUES ('o'); UPDATE z_right SET n = n + 1; COMMIT",
                );
                n += 1;
            }
            n
        });
        // As soon as the copy holds its tables.
        let truncate = t.spawn(|| {
            let held = "SELECT count(*) FROM pg_locks WHERE relation = 'doomed'::regclass AND mode = 'AccessShareLock'";
            for _ in 0..600 {
                if s.old.sql("shop", held) != "0" {
                    s.old.sql("shop", "TRUNCATE doomed");
                    return true;
                }
            }
            false
        });
        let rt = tokio::runtime::Handle::current();
        let first = tokio::task::block_in_place(|| rt.block_on(copy(&s)));
        let emptied = truncate.join();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        (first, writer.join().unwrap(), emptied.unwrap())
    });
    assert!(emptied, "the copy holds the table");
    assert_eq!(s.old.sql("shop", "SELECT count(*) FROM doomed"), "0");
    // It waited until all of the copy was made, or the copy would have waited for it and says so.
    let doomed = match first {
        Ok(_) => "1000",
        Err(e) => {
            assert!(e.retryable && e.message.contains(" timeout") && e.hint.as_ref().unwrap().contains("TRUNCATE"), "{e:?}");
            copy(&s).await.unwrap();
            "0"
        }
    };
    let same = "SELECT a.n = z.n AND a.n = (SELECT count(*) FROM orders) FROM a_left a, z_right z";
    assert_eq!(s.new.sql("shop", same), "t");
    assert_eq!(s.new.sql("shop", "SELECT count(*) FROM doomed"), doomed);
    println!("{turns} transactions meanwhile; the table had {doomed} rows");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_copied_is_said_before_anything_is_done() {
    let Some(mut s) = site() else { return };
    s.new.sql("shop", "CREATE TABLE precious (a int)");
    let e = copy(&s).await.unwrap_err();
    assert!(e.message == "\"shop_new\" is not empty: it has public.precious" && e.hint.unwrap().contains("earlier copy"), "{}", e.message);
    assert!(!job(&s).exists());
    s.new.sql("shop", "DROP TABLE precious");
    let e =
        s.run("shop_new", "copy_from", vec![handle("shop_old").into(), options(&[("tables", Value::List(vec!["orders".into()]))])]).await;
    assert_eq!(e.unwrap_err().code, Code::DB_CANNOT);
    s.old.sql("shop", "SELECT lo_from_bytea(0, 'x')");
    let e = copy(&s).await.unwrap_err();
    assert_eq!(e.message, "\"shop_old\" has 1 large objects, which are not copied");
    s.old.sql("shop", "SELECT lo_unlink(oid) FROM pg_largeobject_metadata");
    // The way from host to host.
    s.old.hba(&["local all postgres peer", "host all app 127.0.0.1/32 scram-sha-256"]);
    s.old.sql("shop", "SELECT pg_reload_conf()");
    let e = copy(&s).await.unwrap_err();
    assert!(
        e.code == Code::DB_SETTINGS && e.message.contains("this line is missing: host    shop     runbook_replication"),
        "{}",
        e.message
    );
    // On one host they meet at the sockets, and need none.
    let db = s.env.resources.get_mut(&runbook_core::inventory::Section::Databases).unwrap().get_mut("shop_new").unwrap();
    db.settings.insert("host".into(), "old".into());
    copy(&s).await.unwrap();
    s.equal().await;
    // Twice the same database.
    let db = s.env.resources.get_mut(&runbook_core::inventory::Section::Databases).unwrap().get_mut("shop_new").unwrap();
    db.settings = s.old.settings("old");
    let e = copy(&s).await.unwrap_err();
    assert_eq!(e.message, "\"shop_new\" cannot become a copy: it is the same database as \"shop_old\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_dies_anywhere_disturbs_nothing() {
    let Some(s) = site() else { return };
    s.fill();
    let began = Instant::now();
    copy(&s).await.unwrap();
    let whole = began.elapsed();
    let rounds: u32 = if all() { 20 } else { 4 };
    for n in 0..rounds {
        s.write(&format!("round {n}"));
        s.clear();
        let cut = whole.mul_f64((f64::from(n) + 0.5) / f64::from(rounds));
        let c = s.run_cut("shop_new", "copy_from", with(2), Some(cut)).await.unwrap();
        s.equal().await;
        println!("cut {n} at {cut:?} of {whole:?}: equal, {} rows", rows(&c));
    }
    // What a dead controller has left at work is nobody else's: another action waits for its end.
    s.clear();
    let mut refused = 0;
    assert!(s.run_once("shop_new", "copy_from", with(2), Some(whole / 3)).await.is_none());
    let e = s.run("shop_new", "drop_copy", vec![]).await.unwrap_err();
    assert!(e.retryable && e.message.contains(") is at work on"), "{e:?}");
    loop {
        match copy(&s).await {
            Ok(_) => break,
            Err(e) => assert!(e.retryable && e.message.contains(") is at work on \"shop_new\""), "{e:?}"),
        }
        refused += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    s.equal().await;
    println!("refused {refused} times while another was at work");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_killed_is_begun_anew_or_goes_on_with_its_indexes() {
    let Some(mut s) = site() else { return };
    s.fill();
    let began = Instant::now();
    let want = rows(&copy(&s).await.unwrap());
    let whole = began.elapsed();
    let rounds = if all() { 24u32 } else { 8 };
    let (mut cut, mut kept) = (0, 0);
    for n in 0..rounds {
        s.clear();
        let wait = whole.mul_f64((f64::from(n) + 1.5) / (f64::from(rounds) + 2.0));
        let what = ["the new server", "the old server", "the job", "the clients"][n as usize % 4];
        let (cx, job) = (s.cx(), job(&s));
        let (first, ()) = tokio::join!(s.act_as(&cx, "shop_new", "copy_from", with(2)), async {
            tokio::time::sleep(wait).await;
            match what {
                "the new server" => s.kill(),
                "the old server" => s.old.quit(),
                "the job" => drop(kill_job(&job, &[])),
                _ => drop(kill_job(&job, &["psql", "pg_dump", "pg_restore"])),
            }
        });
        match what {
            "the new server" => s.again().await,
            "the old server" => s.old.after_quit().await,
            _ => {}
        }
        let c = match first {
            // It was faster than the kill.
            Ok(v) => v,
            Err(e) => {
                cut += 1;
                assert!(e.retryable, "{what}: {e:?}");
                kept +=
                    usize::from(s.kept() > 0 && s.new.sql("shop", "SELECT count(*) FROM _runbook.loaded WHERE item LIKE 'all %'") == "1");
                s.act_as(&cx, "shop_new", "copy_from", with(2)).await.unwrap()
            }
        };
        assert_eq!(rows(&c), want, "{what}");
        s.equal().await;
        assert!(!job.exists());
        println!("{what} killed after {wait:?} of {whole:?}: equal, {cut} cut, {kept} of them with all rows there");
    }
    assert!(cut > 0, "no copy was cut in its middle");
}
