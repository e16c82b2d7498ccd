//! The helper against real database files, with other connections open.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use runbook_core::{Code, Error, Value};
use rusqlite::Connection;
use serde_json::{Value as Json, json};

use super::*;
use crate::db::sqlite::proto::{CopyRow, Digest, FenceRow, Header, State};

const WITHIN: Duration = Duration::from_secs(5);
const NOW: &str = "2026-11-21T02:00:00.000Z";

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Dir(tempfile::tempdir().unwrap())
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn db(&self, name: &str, sql: &str) -> (PathBuf, Connection) {
        let path = self.path(name);
        let conn = Connection::open(&path).unwrap();
        conn.busy_timeout(WITHIN).unwrap();
        conn.execute_batch(sql).unwrap();
        (path, conn)
    }
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(self.0.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

const SHOP: &str = "PRAGMA journal_mode = WAL; CREATE TABLE orders (id INTEGER PRIMARY KEY AUTOINCREMENT, item TEXT NOT NULL, total REAL \
                    DEFAULT 1.5); INSERT INTO orders (item, total) VALUES ('a', 1), ('b', 2.5), ('c', 3)";

fn fenced(path: &Path, id: &str) -> crate::db::sqlite::proto::Fenced {
    fence::fence(path, id, "shop_old", NOW, WITHIN).unwrap()
}

fn digest_of(path: &Path) -> Digest {
    digest::digest(&open::read(path).unwrap(), path, true).unwrap()
}

fn state_of(path: &Path) -> State {
    state::state(path).unwrap()
}

/// What a controller does with a copy: the bytes of `send` handed to `take`.
fn ship(from: &Path, take: impl FnOnce(&Header, &mut dyn Read) -> Result<crate::db::sqlite::proto::Placed>) -> Result<()> {
    let mut bytes = Vec::new();
    let header = std::cell::RefCell::new(None);
    copy::send(from, None, &mut bytes, |offer, _| {
        if let Offer::File(h) = offer {
            *header.borrow_mut() = Some(h.clone());
        }
        Ok(())
    })?;
    take(&header.into_inner().unwrap(), &mut bytes.as_slice()).map(drop)
}

fn copy_to(from: &Path, to: &Path) -> Result<()> {
    ship(from, |h, bytes| copy::receive(to, h, "shop_old", NOW, bytes))
}

fn ask(path: &Path, request: Request) -> Result<Json> {
    let envelope = Envelope { protocol: PROTOCOL, db: path.to_string_lossy().into_owned(), request };
    let (line, mut out) = (serde_json::to_vec(&envelope).unwrap(), Vec::new());
    serve(&mut line.as_slice(), &mut out);
    Reply::read(&out)
}

fn query(path: &Path, sql: &str, params: Json) -> Result<Value> {
    Value::from_json(&ask(path, Request::Query { sql: sql.into(), params })?)
}

fn execute(path: &Path, sql: &str, params: Json, action: &str) -> Result<Json> {
    ask(path, Request::Execute { sql: sql.into(), params, action: action.into(), time: NOW.into() })
}

#[test]
fn queries_keep_types_and_only_read() {
    let d = Dir::new();
    let (path, _open) = d.db("a.db", SHOP);
    let rows = query(&path, "SELECT 9007199254740993 AS i, 2.0 AS f, 'é' AS t, x'00ff' AS b, NULL AS n", Json::Null).unwrap();
    let row = rows.as_list().unwrap()[0].as_map().unwrap().clone();
    assert_eq!(row["i"], Value::Int(9_007_199_254_740_993));
    assert_eq!((&row["f"], &row["t"]), (&Value::Float(2.0), &Value::from("é")));
    assert_eq!((&row["b"], &row["n"]), (&Value::Blob(vec![0, 255]), &Value::Unit));

    let named = query(&path, "SELECT item FROM orders WHERE total > :least", json!({ "least": 2 })).unwrap();
    assert_eq!(named.as_list().unwrap().len(), 2);
    for (sql, params, why) in [
        ("DELETE FROM orders", Json::Null, "writes"),
        ("SELECT 1; SELECT 2", Json::Null, "several"),
        ("SELECT ?", Json::Null, "1 parameters, and no values"),
        ("SELECT ?", json!([1, 2]), "2 values"),
        ("SELECT :a", json!({ "b": 1 }), ":a has no value"),
        ("SELECT * FROM missing_one", Json::Null, "no such table"),
        ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT hex(zeroblob(1000)) FROM n", Json::Null, "larger than"),
    ] {
        let e = query(&path, sql, params).unwrap_err();
        assert_eq!(e.code, Code::DB_QUERY, "{sql}");
        assert!(e.message.contains(why), "{sql}: {}", e.message);
    }
    assert_eq!(query(&d.path("none.db"), "SELECT 1", Json::Null).unwrap_err().code, Code::DB_CONNECT);
    assert!(!d.path("none.db").exists(), "reading must not make a file");
    std::fs::write(d.path("text.db"), "not a database, only some text that is long enough").unwrap();
    assert_eq!(query(&d.path("text.db"), "SELECT 1", Json::Null).unwrap_err().code, Code::DB_CONNECT);
}

#[test]
fn a_query_recovers_what_a_killed_writer_left() {
    let d = Dir::new();
    let (path, open) = d.db("a.db", "CREATE TABLE t (x); INSERT INTO t VALUES (1); PRAGMA cache_spill = 1; PRAGMA cache_size = 1; BEGIN");
    // A hot journal: pages spilled into the file by a transaction that never commits.
    open.execute_batch("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 5000) INSERT INTO t SELECT i FROM n").unwrap();
    let killed = d.path("killed.db");
    std::fs::copy(&path, &killed).unwrap();
    std::fs::copy(open::beside(&path, "-journal"), open::beside(&killed, "-journal")).unwrap();
    let n = query(&killed, "SELECT count(*) AS n FROM t", Json::Null).unwrap();
    assert_eq!(n.as_list().unwrap()[0].as_map().unwrap()["n"], Value::Int(1));
}

#[test]
fn execute_happens_once_with_its_marker() {
    let d = Dir::new();
    let (path, conn) = d.db("a.db", SHOP);
    assert_eq!(ask(&path, Request::Executed { action: "act-1".into() }).unwrap(), Json::Null);
    let sql = "INSERT INTO orders (item) VALUES (?)";
    let first = execute(&path, sql, json!(["d"]), "act-1").unwrap();
    assert_eq!(first, json!({ "rows": 1, "last_id": 4 }));
    // The answer was lost, the controller asks, or even repeats: the same result, and no second row.
    assert_eq!(ask(&path, Request::Executed { action: "act-1".into() }).unwrap(), first);
    assert_eq!(execute(&path, sql, json!(["d"]), "act-1").unwrap(), first);
    let rows: i64 = conn.query_row("SELECT count(*) FROM orders", [], |r| r.get(0)).unwrap();
    assert_eq!(rows, 4);

    // A failure in the middle takes everything back, the marker too.
    let e =
        execute(&path, "INSERT INTO orders (item) VALUES ('e'); INSERT INTO orders (item) VALUES (NULL)", Json::Null, "act-2").unwrap_err();
    assert_eq!(e.code, Code::DB_QUERY);
    assert_eq!(ask(&path, Request::Executed { action: "act-2".into() }).unwrap(), Json::Null);
    for (sql, why) in [("DELETE FROM orders; COMMIT", "BEGIN, COMMIT"), ("ATTACH 'x.db' AS x", "ATTACH"), ("", "no statement")] {
        let e = execute(&path, sql, Json::Null, "act-3").unwrap_err();
        assert!(e.message.contains(why), "{sql}: {}", e.message);
    }
    let rows: i64 = conn.query_row("SELECT count(*) FROM orders", [], |r| r.get(0)).unwrap();
    assert_eq!(rows, 4);
    // The marker's table is the engine's: the content is as if it were not there.
    assert!(!digest_of(&path).objects.keys().any(|k| k.contains("_runbook")));
}

/// Every kind of table that an application can have, and a write on each.
const KINDS: &str = "
    CREATE TABLE plain (a, b UNIQUE); INSERT INTO plain VALUES (1, 1), (2, 2);
    CREATE TABLE \"odd \"\" 'name\" (a NOT NULL);
    CREATE TABLE counted (id INTEGER PRIMARY KEY AUTOINCREMENT, a NOT NULL CHECK (a > 0)); INSERT INTO counted (a) VALUES (1);
    CREATE TABLE no_rowid (k TEXT PRIMARY KEY, v) WITHOUT ROWID; INSERT INTO no_rowid VALUES ('k', 1);
    CREATE TABLE strict_one (a INT NOT NULL, g INT GENERATED ALWAYS AS (a * 2) STORED) STRICT; INSERT INTO strict_one VALUES (1);
    CREATE TABLE parent (id INTEGER PRIMARY KEY); INSERT INTO parent VALUES (1);
    CREATE TABLE child (of INTEGER REFERENCES parent ON DELETE CASCADE); INSERT INTO child VALUES (1);
    CREATE TABLE empty (a);
    CREATE TABLE log (what);
    CREATE TRIGGER own BEFORE INSERT ON plain BEGIN INSERT INTO log VALUES ('own'); END;
    CREATE VIEW v AS SELECT a FROM plain;
    CREATE TRIGGER through INSTEAD OF INSERT ON v BEGIN INSERT INTO plain VALUES (new.a, new.a); END;";

const WRITES: &[&str] = &[
    "INSERT INTO plain VALUES (9, 9)",
    "INSERT OR IGNORE INTO plain VALUES (1, 1)",
    "INSERT OR REPLACE INTO plain VALUES (5, 1)",
    "REPLACE INTO no_rowid VALUES ('k', 2)",
    "INSERT INTO no_rowid VALUES ('k', 2) ON CONFLICT DO UPDATE SET v = 2",
    "UPDATE OR IGNORE plain SET b = 2 WHERE a = 1",
    "UPDATE OR REPLACE plain SET b = 2 WHERE a = 1",
    "DELETE FROM plain",
    "INSERT INTO \"odd \"\" 'name\" VALUES (1)",
    "INSERT INTO counted (a) VALUES (2)",
    "INSERT INTO strict_one VALUES (2)",
    "UPDATE strict_one SET a = 3",
    "DELETE FROM parent",
    "DELETE FROM child",
    "INSERT INTO empty VALUES (1)",
    "INSERT INTO log VALUES ('x')",
    "INSERT INTO v VALUES (7)",
];

#[test]
fn a_fence_stops_every_write_of_a_connection_that_was_open_before() {
    for mode in ["WAL", "DELETE"] {
        let d = Dir::new();
        let (path, open) = d.db("a.db", &format!("PRAGMA journal_mode = {mode}; {KINDS}"));
        let before = digest_of(&path);
        // Statements prepared before the fence must see it too.
        let mut prepared = open.prepare("INSERT INTO plain VALUES (?1, ?1)").unwrap();
        prepared.execute([100]).unwrap();
        open.execute("DELETE FROM plain WHERE a = 100", []).unwrap();
        open.execute("DELETE FROM log", []).unwrap();

        let f = fenced(&path, "f1");
        assert!(f.leaks.is_empty() && f.taken_over.is_none());
        assert_eq!(f.digest, before, "the fence is not content");
        assert!(guard::refused(&prepared.execute([101]).unwrap_err()));
        for write in WRITES {
            let e = open.execute_batch(write).expect_err(write);
            assert!(e.to_string().contains("fenced by runbook: shop_old is being moved (fence f1)"), "{mode}: {write}: {e}");
            // Also inside a transaction of the application's own, which goes on to commit.
            open.execute_batch("BEGIN").unwrap();
            open.execute_batch(write).expect_err(write);
            open.execute_batch("COMMIT").unwrap();
        }
        assert_eq!(digest_of(&path), before);

        assert!(fence::unfence(&path, false).unwrap());
        assert!(!fence::unfence(&path, false).unwrap(), "the second time there is nothing to do");
        prepared.execute([102]).unwrap();
        drop(prepared);
        for write in WRITES {
            open.execute_batch(write).unwrap_or_else(|e| panic!("{write}: {e}"));
        }
        assert!(!digest_of(&path).objects.keys().any(|k| k.contains("_runbook")));
        assert_eq!(state_of(&path), State { exists: true, ..State::default() });
    }
}

#[test]
fn a_fence_that_was_begun_is_completed_and_an_old_one_taken_over() {
    let d = Dir::new();
    let (path, open) = d.db("a.db", SHOP);
    // As a crash right after the transaction leaves it: triggers and row, no proof yet.
    open.execute_batch("BEGIN").unwrap();
    guard::install(&open, &path, "shop_old is being moved (fence f1)").unwrap();
    state::set_fence(&open, &path, &FenceRow { id: "f1".into(), time: NOW.into(), stamp: None, handed_to: None }).unwrap();
    open.execute_batch("COMMIT").unwrap();
    let f = fence::fence(&path, "f1", "shop_old", "2026-11-21T03:00:00.000Z", WITHIN).unwrap();
    assert_eq!(f.fence.as_ref().unwrap().time, NOW);
    assert_eq!(state_of(&path).fence.unwrap().stamp, Some(f.digest.stamp()));

    let f = fenced(&path, "f2");
    assert_eq!(f.taken_over.as_deref(), Some("f1"));
    let old = fence::check(&path, "f1").unwrap();
    assert!(old.fence.is_none() && old.other.is_some_and(|o| o.id == "f2"));

    fence::hand_over(&path, Some("shop_new")).unwrap();
    assert_eq!(fence::unfence(&path, false).unwrap_err().code, Code::DB_NOT_FENCED);
    assert_eq!(fence::fence(&path, "f3", "shop_old", NOW, WITHIN).unwrap_err().code, Code::DB_FENCE);
    assert!(fence::unfence(&path, true).unwrap());
}

#[test]
fn what_cannot_be_fenced_is_named_and_nothing_is_left_behind() {
    let d = Dir::new();
    let (path, open) = d.db("a.db", &format!("{SHOP}; CREATE VIRTUAL TABLE found USING fts5(text)"));
    let e = fence::fence(&path, "f1", "shop_old", NOW, WITHIN).unwrap_err();
    assert!(e.code == Code::DB_FENCE && e.message.ends_with("found"), "{}", e.message);

    // A table on which a write cannot be tried is not proven, so the fence is taken off again.
    open.execute_batch("DROP TABLE found; CREATE TABLE t (a, b GENERATED ALWAYS AS (a) VIRTUAL)").unwrap();
    // As an application leaves it that brings a function of its own.
    open.execute_batch(
        "CREATE TABLE u (a); PRAGMA writable_schema = ON; \
         UPDATE sqlite_schema SET sql = 'CREATE TABLE u (a CHECK (own_check(a)))' WHERE name = 'u'; PRAGMA writable_schema = RESET",
    )
    .unwrap();
    let e = fence::fence(&path, "f1", "shop_old", NOW, WITHIN).unwrap_err();
    assert!(e.code == Code::DB_NOT_FENCED && e.message.contains("insert on u could not be tried"), "{}", e.message);
    assert_eq!(state_of(&path), State { exists: true, ..State::default() });
    open.execute("INSERT INTO orders (item) VALUES ('still open')", []).unwrap();
}

#[test]
fn a_fence_waits_for_a_writer_and_gives_up_in_time() {
    let d = Dir::new();
    let (path, open) = d.db("a.db", SHOP);
    open.execute_batch("BEGIN IMMEDIATE; INSERT INTO orders (item) VALUES ('late')").unwrap();
    let e = fence::fence(&path, "f1", "shop_old", NOW, Duration::from_millis(100)).unwrap_err();
    assert!(e.code == Code::DB_FENCE && e.retryable, "{e}");
    let writer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        open.execute_batch("COMMIT").unwrap();
    });
    let f = fenced(&path, "f1");
    writer.join().unwrap();
    assert_eq!(f.digest.tables["orders"].rows, 4, "the writer's row is in what was fenced");
}

#[test]
fn checksums_find_every_kind_of_change_and_only_those() {
    let d = Dir::new();
    let (path, open) = d.db("a.db", SHOP);
    let before = digest_of(&path);
    for change in [
        "UPDATE orders SET item = 'B' WHERE id = 2",
        "UPDATE orders SET item = x'62' WHERE id = 2",
        "UPDATE orders SET item = CAST(item AS BLOB)",
        "DELETE FROM orders WHERE id = 3",
        "INSERT INTO orders (item) VALUES ('d')",
        "INSERT INTO orders SELECT id + 10, item, total FROM orders",
        "UPDATE orders SET id = 9 WHERE id = 3",
        "UPDATE orders SET total = NULL WHERE id = 1",
        "UPDATE sqlite_sequence SET seq = 99",
        "CREATE INDEX by_item ON orders (item)",
        "PRAGMA user_version = 3",
        "ALTER TABLE orders ADD COLUMN note DEFAULT 'x'",
        "DROP TABLE orders; CREATE TABLE orders (id INTEGER PRIMARY KEY AUTOINCREMENT, item TEXT NOT NULL, total REAL DEFAULT 2.5); \
         INSERT INTO orders (item, total) VALUES ('a', 1), ('b', 2.5), ('c', 3)",
    ] {
        open.execute_batch(&format!("BEGIN; {change}")).unwrap();
        let after = digest::digest(&open, &path, true).unwrap();
        assert_ne!(after.stamp(), before.stamp(), "{change}");
        open.execute_batch("ROLLBACK").unwrap();
    }
    // The same rows written in another order, in other pages, are the same content.
    let (other, conn) = d.db("b.db", &format!("PRAGMA page_size = 512; {SHOP}"));
    conn.execute_batch("DELETE FROM orders; INSERT INTO orders VALUES (3, 'c', 3), (1, 'a', 1), (2, 'b', 2.5); VACUUM").unwrap();
    assert_eq!(digest_of(&other).stamp(), before.stamp());
    // Two equal changes must not cancel each other out.
    let (twins, conn) = d.db("c.db", "CREATE TABLE t (a); INSERT INTO t VALUES (1), (1)");
    let two = digest_of(&twins);
    conn.execute_batch("UPDATE t SET a = 2").unwrap();
    assert_ne!(digest_of(&twins).tables["t"].sum, two.tables["t"].sum);
}

#[test]
fn a_copy_is_protected_from_its_birth_and_keeps_the_mode_of_the_journal() {
    for mode in ["wal", "delete"] {
        let d = Dir::new();
        let (from, _open) = d.db("old.db", &SHOP.replace("WAL", mode));
        let to = d.path("sub/new.db");
        copy_to(&from, &to).unwrap();
        assert_eq!(digest_of(&to).stamp(), digest_of(&from).stamp());
        let conn = Connection::open(&to).unwrap();
        assert!(guard::refused(&conn.execute("DELETE FROM orders", []).unwrap_err()));
        let kept: String = conn.pragma_query_value(None, "journal_mode", |r| r.get(0)).unwrap();
        assert_eq!(kept, mode);
        drop(conn);
        assert!(state_of(&to).is_unpromoted_copy() && state_of(&to).unguarded.is_empty());
        assert!(copy::drop_copy(&to).unwrap());
        assert!(!copy::drop_copy(&to).unwrap());
        assert_eq!(std::fs::read_dir(d.path("sub")).unwrap().count(), 0, "nothing is left of it");
        assert!(d.names().iter().all(|n| !n.contains("runbook")), "{:?}", d.names());
    }
}

#[test]
fn a_copy_never_replaces_what_may_have_rows_of_its_own() {
    let d = Dir::new();
    let (from, _open) = d.db("old.db", SHOP);
    let refused = |to: &Path, why: &str| {
        let before = std::fs::read(to).unwrap_or_default();
        let e = copy_to(&from, to).unwrap_err();
        assert!(e.code == Code::DB_COPY && e.message.contains(why), "{}", e.message);
        assert_eq!(std::fs::read(to).unwrap_or_default(), before);
        assert!(copy::drop_copy(to).is_err() || !to.exists());
    };
    let (foreign, _conn) = d.db("foreign.db", "CREATE TABLE t (a)");
    refused(&foreign, "not made by copy_from");

    let opened = d.path("opened.db");
    copy_to(&from, &opened).unwrap();
    let conn = Connection::open(&opened).unwrap();
    conn.execute_batch("DROP TRIGGER _runbook_guard_insert_orders").unwrap();
    drop(conn);
    refused(&opened, "lost its write protection");

    let orphan = d.path("orphan.db");
    std::fs::write(open::beside(&orphan, "-wal"), "a log").unwrap();
    refused(&orphan, "its log is there");

    let used = d.path("used.db");
    copy_to(&from, &used).unwrap();
    let mut child = std::process::Command::new("sleep").arg("60").stdin(std::fs::File::open(&used).unwrap()).spawn().unwrap();
    refused(&used, &format!("is open in sleep (process {})", child.id()));
    child.kill().unwrap();
    child.wait().unwrap();
    copy_to(&from, &used).unwrap();
}

#[test]
fn a_log_that_a_crash_left_beside_an_old_copy_never_reaches_the_new_one() {
    let d = Dir::new();
    let (from, open) = d.db("old.db", SHOP);
    let to = d.path("new.db");
    copy_to(&from, &to).unwrap();
    // A crash of someone who wrote to the copy's engine tables: committed frames in the WAL, nobody there to check them in.
    let crashed = Connection::open(&to).unwrap();
    crashed.execute_batch("PRAGMA wal_autocheckpoint = 0; UPDATE _runbook_copy SET origin = 'x'").unwrap();
    let wal = std::fs::read(open::beside(&to, "-wal")).unwrap();
    assert!(!wal.is_empty());
    drop(crashed);
    std::fs::write(open::beside(&to, "-wal"), wal).unwrap();
    open.execute_batch("INSERT INTO orders (item) VALUES ('newer')").unwrap();
    copy_to(&from, &to).unwrap();
    assert!(!open::beside(&to, "-wal").exists());
    assert_eq!(digest_of(&to).stamp(), digest_of(&from).stamp());
    assert_eq!(state_of(&to).copy.unwrap().origin, "shop_old");
}

#[test]
fn a_stream_cut_off_or_damaged_leaves_the_old_copy() {
    let d = Dir::new();
    let (from, open) = d.db("old.db", SHOP);
    let to = d.path("new.db");
    copy_to(&from, &to).unwrap();
    let before = digest_of(&to).stamp();
    open.execute_batch("INSERT INTO orders (item) VALUES ('newer')").unwrap();
    for (damage, why) in [(0usize, "cut off"), (1, "damaged")] {
        let e = ship(&from, |h, bytes| {
            let mut all = Vec::new();
            bytes.read_to_end(&mut all).unwrap();
            if damage == 0 {
                all.truncate(all.len() / 2)
            } else {
                all[5000] ^= 1
            }
            copy::receive(&to, h, "shop_old", NOW, &mut all.as_slice())
        })
        .unwrap_err();
        assert!(e.message.contains(why) && e.retryable, "{}", e.message);
        assert_eq!(digest_of(&to).stamp(), before);
    }
    // What a killed helper left is removed by the next one; what a living one has is not.
    let (dead, alive) = (d.path(".new.db.runbook-999999999-1"), d.path(&format!(".new.db.runbook-{}-1", std::process::id())));
    for f in [&dead, &alive] {
        std::fs::write(f, "half").unwrap();
    }
    copy_to(&from, &to).unwrap();
    assert!(!dead.exists() && alive.exists());
}

#[test]
fn copies_under_a_hammering_writer_are_of_one_moment() {
    for mode in ["WAL", "DELETE"] {
        let d = Dir::new();
        let (from, open) = d.db("old.db", &format!("PRAGMA journal_mode = {mode}; CREATE TABLE a (x); CREATE TABLE b (x, filler)"));
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writer = {
            let (stop, written) = (stop.clone(), written.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // Both tables in one transaction: a copy of one moment has as many rows in each.
                    open.execute_batch("BEGIN IMMEDIATE; INSERT INTO a VALUES (1); INSERT INTO b VALUES (1, zeroblob(3000)); COMMIT")
                        .unwrap();
                    written.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let to = d.path("new.db");
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(30));
            let least = written.load(Ordering::Relaxed);
            copy_to(&from, &to).unwrap();
            let tables = digest_of(&to).tables;
            assert_eq!(tables["a"].rows, tables["b"].rows, "{mode}");
            assert!(tables["a"].rows >= least, "{mode}: what was acknowledged before is in the copy");
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    }
}

#[test]
fn restoring_into_a_live_file_keeps_open_connections_working() {
    for mode in ["WAL", "DELETE"] {
        let d = Dir::new();
        let (old, shop) = d.db("old.db", &SHOP.replace("WAL", mode));
        execute(&old, "UPDATE orders SET total = 9 WHERE id = 1", Json::Null, "kept").unwrap();
        fenced(&old, "f1");
        let new = d.path("new.db");
        copy_to(&old, &new).unwrap();
        let stamp = digest_of(&old).stamp();
        assert!(switch::promote(&new, "f1", &stamp, "p1", NOW).unwrap());
        Connection::open(&new).unwrap().execute_batch("INSERT INTO orders (item) VALUES ('on the new side')").unwrap();

        ship(&new, |h, bytes| copy::restore(&old, h, WITHIN, bytes)).unwrap();
        assert_eq!(digest_of(&old).stamp(), digest_of(&new).stamp());
        let rows: i64 = shop.query_row("SELECT count(*) FROM orders", [], |r| r.get(0)).unwrap();
        assert_eq!(rows, 4, "a connection that was open sees the new rows");
        assert!(guard::refused(&shop.execute("DELETE FROM orders", []).unwrap_err()), "and is still fenced");
        assert!(ask(&old, Request::Executed { action: "kept".into() }).unwrap().is_object(), "markers of the live side stay");
        let s = state_of(&old);
        assert_eq!((s.fence.unwrap().stamp, s.copy, s.promoted), (Some(digest_of(&old).stamp()), None, None));
        let kept: String = shop.pragma_query_value(None, "journal_mode", |r| r.get(0)).unwrap();
        assert_eq!(kept, mode.to_lowercase());
        fence::unfence(&old, false).unwrap();
        shop.execute_batch("INSERT INTO orders (item) VALUES ('after')").unwrap();
        let last: i64 = shop.query_row("SELECT max(id) FROM orders", [], |r| r.get(0)).unwrap();
        assert_eq!(last, 5, "the counter went along: no order number is given twice");
    }
}

#[test]
fn a_restore_never_overwrites_rows_of_an_open_or_changed_side() {
    let d = Dir::new();
    let (old, shop) = d.db("old.db", SHOP);
    fenced(&old, "f1");
    let new = d.path("new.db");
    copy_to(&old, &new).unwrap();
    switch::promote(&new, "f1", &digest_of(&old).stamp(), "p1", NOW).unwrap();
    Connection::open(&new).unwrap().execute_batch("INSERT INTO orders (item) VALUES ('new side')").unwrap();
    // A schema change goes around triggers; the stamp finds it.
    shop.execute_batch("CREATE TABLE around (x)").unwrap();
    let e = ship(&new, |h, bytes| copy::restore(&old, h, WITHIN, bytes)).unwrap_err();
    assert_eq!(e.code, Code::DB_DIFFERS);
    fence::unfence(&old, true).unwrap();
    let e = ship(&new, |h, bytes| copy::restore(&old, h, WITHIN, bytes)).unwrap_err();
    assert_eq!(e.code, Code::DB_NOT_FENCED);
}

#[test]
fn a_file_copy_is_whole_and_done_once() {
    let d = Dir::new();
    let (from, open) = d.db("old.db", SHOP);
    let to = d.path("backup.db");
    assert!(copy::to_file(&from, &to).unwrap().changed);
    assert!(!copy::to_file(&from, &to).unwrap().changed);
    open.execute_batch("INSERT INTO orders (item) VALUES ('d')").unwrap();
    assert!(copy::to_file(&from, &to).unwrap().changed);
    assert_eq!(digest_of(&to), digest_of(&from));
    for bad in [&from, &d.path("./old.db")] {
        assert!(copy::to_file(&from, bad).unwrap_err().message.contains("onto itself"));
    }
    assert_eq!(state_of(&to).copy, None::<CopyRow>);
}

#[test]
fn a_wrong_request_is_answered_and_not_acted_on() {
    let mut out = Vec::new();
    assert!(!serve(&mut b"{\"protocol\":1,\"db\":\"x\",\"op\":\"shutdown\"}\n".as_slice(), &mut out));
    let e: Error = Reply::read::<Json>(&out).unwrap_err();
    assert_eq!(e.code, Code::DB_HELPER);
    out.clear();
    assert!(!serve(&mut b"{\"protocol\":999,\"db\":\"x\",\"op\":\"state\"}\n".as_slice(), &mut out));
    assert!(Reply::read::<Json>(&out).unwrap_err().message.contains("version"));
    assert_eq!(Reply::read::<Json>(b"Welcome to the server!\n").unwrap_err().code, Code::DB_HELPER);
}

#[test]
fn a_fence_that_goes_while_it_is_looked_at_is_there_or_not() {
    let d = Dir::new();
    let (path, open) = d.db("a.db", SHOP);
    let stop = Arc::new(AtomicBool::new(false));
    let (end, at) = (stop.clone(), path.clone());
    let looks = std::thread::spawn(move || {
        let conn = open::read(&at).unwrap();
        let mut seen = [0, 0];
        while !end.load(Ordering::Relaxed) {
            seen[usize::from(state::fence(&conn, &at).unwrap().is_some())] += 1;
        }
        seen
    });
    let row = FenceRow { id: "f1".into(), time: NOW.into(), stamp: None, handed_to: None };
    for _ in 0..400 {
        open.execute_batch("BEGIN IMMEDIATE").unwrap();
        state::set_fence(&open, &path, &row).unwrap();
        open.execute_batch("COMMIT").unwrap();
        state::drop_table(&open, &path, state::FENCE).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let seen = looks.join().unwrap();
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
}
