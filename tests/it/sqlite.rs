//! End-to-end tests of the area `sqlite`: two hosts behind real sshd, the real helper, a shop that writes all the time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use runbook_core::inventory::{Environment, Resource, Section};
use runbook_core::primitive::{Cx, Reconciled, Registry, Shared};
use runbook_core::{Code, Result, Value};
use runbook_primitives::ssh::helper::HelperExe;
use rusqlite::Connection;

use crate::support::actions::{done_or_found, handle};
use crate::support::have;
use crate::support::sshd::{Sshd, environment, world};

/// Two hosts, the shop's database on the old one.
struct Site {
    old: Sshd,
    new: Sshd,
    env: Environment,
    shared: Arc<Shared>,
    world: Arc<runbook_testkit::World>,
    registry: Registry,
    actions: AtomicUsize,
}

impl Site {
    fn new(journal: &str) -> Option<Site> {
        let (old, new) = (Sshd::start("")?, Sshd::start("")?);
        let mut env = environment(&[("old", old.settings()), ("new", new.settings())]);
        for (name, host) in [("shop_old", "old"), ("shop_new", "new")] {
            let settings =
                BTreeMap::from([("host".to_string(), Value::from(host)), ("path".to_string(), Value::from("shop/shop db's.sqlite"))]);
            let db = Resource { name: name.into(), kind: "sqlite".into(), settings };
            env.resources.entry(Section::Databases).or_default().insert(name.into(), db);
        }
        std::fs::create_dir(old.home().join("shop")).unwrap();
        let s = Site {
            old,
            new,
            env,
            shared: Arc::default(),
            world: world(),
            registry: runbook_primitives::registry(),
            actions: AtomicUsize::new(0),
        };
        s.shared.get::<HelperExe>().set(env!("CARGO_BIN_EXE_runbook"));
        let sql = "CREATE TABLE orders (id INTEGER PRIMARY KEY AUTOINCREMENT, item TEXT NOT NULL UNIQUE)";
        Connection::open(s.db("old")).unwrap().execute_batch(&format!("PRAGMA journal_mode = {journal}; {sql}")).unwrap();
        Some(s)
    }

    fn db(&self, host: &str) -> PathBuf {
        (if host == "old" { &self.old } else { &self.new }).home().join("shop/shop db's.sqlite")
    }

    fn cx(&self) -> Cx {
        let n = self.actions.fetch_add(1, Ordering::SeqCst);
        let mut cx = runbook_testkit::cx(&self.world, self.env.clone(), &format!("act-{n}"));
        cx.shared = self.shared.clone();
        cx
    }

    async fn run(&self, on: &str, name: &'static str, args: Vec<Value>) -> Result<Value> {
        self.run_cut(on, name, args, None).await
    }

    /// Does an action. With `cut` the controller "dies" after that time: the future is dropped wherever it is, and the action is
    /// found out about and done again as the engine does on resume.
    async fn run_cut(&self, on: &str, name: &'static str, args: Vec<Value>, cut: Option<Duration>) -> Result<Value> {
        let primitive = self.registry.primitives.get(&(Some("Database"), name)).unwrap().clone();
        let call = primitive.spec().bind(Some(handle(on)), args)?;
        let cx = self.cx();
        done_or_found(primitive.as_ref(), &call, &cx, &cx, cut).await
    }
}

/// The shop: writes an order every few milliseconds to whichever side takes it, and remembers what was acknowledged.
struct Shop {
    stop: Arc<AtomicBool>,
    new_side: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<String>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Shop {
    fn open(site: &Site) -> Shop {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let new_side = Arc::new(AtomicBool::new(false));
        let (old, new) = (site.db("old"), site.db("new"));
        let thread = {
            let (stop, new_side, acknowledged) = (stop.clone(), new_side.clone(), acknowledged.clone());
            std::thread::spawn(move || {
                // The old shop keeps its connection open all the time, as a shop does; the new one opens for each order.
                let kept = Connection::open(&old).unwrap();
                kept.busy_timeout(Duration::from_secs(10)).unwrap();
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let item = format!("order {n}");
                    if insert(&kept, &item) || new_side.load(Ordering::Relaxed) && Connection::open(&new).is_ok_and(|c| insert(&c, &item)) {
                        acknowledged.lock().push(item);
                    }
                    std::thread::sleep(Duration::from_millis(3));
                }
            })
        };
        Shop { stop, new_side, acknowledged, thread: Some(thread) }
    }

    fn close(&mut self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        self.acknowledged.lock().clone()
    }

    async fn some_orders(&self) {
        let before = self.acknowledged.lock().len();
        for _ in 0..2000 {
            if self.acknowledged.lock().len() >= before + 5 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("no order is taken");
    }
}

fn insert(conn: &Connection, item: &str) -> bool {
    match conn.execute("INSERT INTO orders (item) VALUES (?1)", [item]) {
        Ok(n) => n == 1,
        Err(e) => {
            let text = e.to_string();
            assert!(text.contains("fenced by runbook") || text.contains("locked") || text.contains("no such table"), "{text}");
            false
        }
    }
}

fn orders(path: &Path) -> Vec<String> {
    let conn = Connection::open(path).unwrap();
    let mut stmt = conn.prepare("SELECT item FROM orders ORDER BY id").unwrap();
    stmt.query_map([], |r| r.get(0)).unwrap().map(|r| r.unwrap()).collect()
}

/// Moves the shop, takes orders on the new side; with `back`, takes it all back again.
async fn cutover(s: &Site, back: bool, cut: &dyn Fn() -> Option<Duration>) {
    let mut shop = Shop::open(s);
    shop.some_orders().await;
    let old = || vec![Value::from(handle("shop_old"))];
    s.run_cut("shop_new", "copy_from", old(), cut()).await.unwrap();
    shop.some_orders().await;
    let fence = s.run_cut("shop_old", "fence", vec![], cut()).await.unwrap();
    s.run_cut("shop_new", "copy_from", old(), cut()).await.unwrap();
    s.run("shop_new", "wait_caught_up", vec![fence.clone()]).await.unwrap();
    let c = s.run("shop_old", "compare", vec![handle("shop_new").into()]).await.unwrap();
    assert_eq!(c.as_record().unwrap().get("equal"), &Value::Bool(true), "{:?}", c.as_record().unwrap().get("differences"));
    s.run_cut("shop_new", "promote", vec![fence], cut()).await.unwrap();
    shop.new_side.store(true, Ordering::Relaxed);
    shop.some_orders().await;
    if back {
        s.run_cut("shop_new", "demote", old(), cut()).await.unwrap();
        s.run_cut("shop_old", "unfence", vec![], cut()).await.unwrap();
        shop.some_orders().await;
    }
    let acknowledged = shop.close();
    assert_eq!(orders(&s.db(if back { "old" } else { "new" })), acknowledged, "every acknowledged order, once, in its order");
    if back {
        s.run_cut("shop_new", "drop_copy", vec![], cut()).await.unwrap();
        assert_eq!(std::fs::read_dir(s.new.home().join("shop")).unwrap().count(), 0);
    }
    let left: Vec<String> =
        std::fs::read_dir(s.old.home().join("shop")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|n| !n.contains("runbook")), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shop_is_moved_while_it_writes() {
    for journal in ["WAL", "DELETE"] {
        let Some(s) = Site::new(journal) else { return };
        cutover(&s, false, &|| None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shop_is_moved_and_taken_back_with_the_orders_of_the_new_side() {
    for journal in ["WAL", "DELETE"] {
        let Some(s) = Site::new(journal) else { return };
        cutover(&s, true, &|| None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_dies_anywhere_loses_no_order() {
    for round in 0..6u64 {
        let Some(s) = Site::new("WAL") else { return };
        // A helper may still be at work when its controller is gone; what follows must cope with it.
        let n = std::cell::Cell::new(0u64);
        let cut = || {
            n.set(n.get() + 1);
            Some(Duration::from_millis((round * 37 + n.get() * 13) % 110))
        };
        cutover(&s, true, &cut).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_and_a_marked_statement_over_ssh() {
    let Some(s) = Site::new("WAL") else { return };
    queries(&s).await;
    let sums = s.run("shop_old", "checksums", vec![]).await.unwrap();
    let change = |sql: &str| Connection::open(s.db("old")).unwrap().execute(sql, []).unwrap();
    change("UPDATE orders SET item = 'other'");
    assert_ne!(s.run("shop_old", "checksums", vec![]).await.unwrap(), sums, "one value was changed");
    change("UPDATE orders SET item = 'it''s' || char(10) || '\"é\"'");
    assert_eq!(s.run("shop_old", "checksums", vec![]).await.unwrap(), sums, "and changed back");
}

async fn queries(s: &Site) {
    let marked = s.run("shop_old", "execute", vec!["INSERT INTO orders (item) VALUES (?)".into(), Value::List(vec!["it's\n\"é\"".into()])]);
    assert_eq!(marked.await.unwrap().as_record().unwrap().get("last_id"), &Value::Int(1));
    let rows = s.run("shop_old", "query", vec!["SELECT id, item, 2.5 AS f, x'00ff' AS b, NULL AS n FROM orders".into()]).await.unwrap();
    let row = rows.as_list().unwrap()[0].as_map().unwrap().clone();
    assert_eq!((&row["id"], &row["item"], &row["f"]), (&Value::Int(1), &Value::from("it's\n\"é\""), &Value::Float(2.5)));
    assert_eq!((&row["b"], &row["n"]), (&Value::Blob(vec![0, 255]), &Value::Unit));
    let e = s.run("shop_old", "query", vec!["DELETE FROM orders".into()]).await.unwrap_err();
    assert_eq!((e.code, e.host.as_deref()), (Code::DB_QUERY, Some("old")));
    let counts = s.run("shop_old", "counts", vec![]).await.unwrap();
    assert_eq!(counts.as_map().unwrap()["orders"], Value::Int(1));
    assert_eq!(s.run("shop_new", "counts", vec![]).await.unwrap_err().code, Code::DB_CONNECT);
    s.run("shop_old", "copy_to_file", vec!["shop/backup.db".into()]).await.unwrap();
    assert_eq!(orders(&s.old.home().join("shop/backup.db")).len(), 1);
    std::fs::remove_file(s.old.home().join("shop/backup.db")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_helper_is_uploaded_once_and_mended_when_it_was_damaged() {
    let Some(s) = Site::new("WAL") else { return };
    s.shared.get::<HelperExe>().always_upload();
    queries(&s).await;
    let cache = s.old.home().join(".cache/runbook");
    let found: Vec<PathBuf> = std::fs::read_dir(&cache).unwrap().map(|e| e.unwrap().path()).collect();
    let [helper] = found.as_slice() else { panic!("{found:?}") };
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(helper).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
    // Removed under a controller that relies on it: it is put there again.
    std::fs::remove_file(helper).unwrap();
    s.run("shop_old", "counts", vec![]).await.unwrap();
    // Damaged before a new controller comes: its checksum tells.
    std::fs::write(helper, "#!/bin/sh\necho nonsense\n").unwrap();
    let fresh = Site { shared: Arc::default(), ..s };
    fresh.shared.get::<HelperExe>().set(env!("CARGO_BIN_EXE_runbook"));
    fresh.shared.get::<HelperExe>().always_upload();
    fresh.run("shop_old", "counts", vec![]).await.unwrap();
    assert!(std::fs::metadata(helper).unwrap().len() > 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_helper_the_hosts_own_sqlite3_reads_and_marks() {
    if !have("sqlite3") {
        return;
    }
    let Some(s) = Site::new("WAL") else { return };
    s.shared.get::<HelperExe>().disable();
    queries(&s).await;
    // A marker written by one way is found by the other.
    let cx = s.cx();
    let execute = s.registry.primitives.get(&(Some("Database"), "execute")).unwrap();
    let sql = "INSERT INTO orders (item) VALUES (:item)";
    let params = Value::Map(BTreeMap::from([("item".to_string(), Value::from("\n.shell touch pwned\n"))]));
    let call = execute.spec().bind(Some(handle("shop_old")), vec![sql.into(), params]).unwrap();
    assert!(matches!(execute.reconcile(&cx, &call).await.unwrap(), Reconciled::NotStarted));
    let first = execute.act(&cx, &call).await.unwrap();
    assert_eq!(execute.act(&cx, &call).await.unwrap(), first, "once");
    let mut other = cx.clone();
    other.shared = Arc::default();
    other.shared.get::<HelperExe>().set(env!("CARGO_BIN_EXE_runbook"));
    assert!(matches!(execute.reconcile(&other, &call).await.unwrap(), Reconciled::Done(o) if o == first));
    assert_eq!(orders(&s.db("old")), ["it's\n\"é\"", "\n.shell touch pwned\n"]);
    assert!(!s.old.home().join("pwned").exists());
    for sql in ["DELETE FROM orders; COMMIT", "INSERT INTO orders (item) VALUES ('x'); INSERT INTO orders (item) VALUES ('x')"] {
        assert_eq!(s.run("shop_old", "execute", vec![sql.into()]).await.unwrap_err().code, Code::DB_QUERY);
    }
    assert_eq!(orders(&s.db("old")).len(), 2);
    let e = s.run("shop_new", "copy_from", vec![handle("shop_old").into()]).await.unwrap_err();
    assert_eq!(e.code, Code::DB_HELPER, "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_roots_is_reached_by_sudo() {
    if !have("sudo") || !have("sqlite3") {
        return;
    }
    let Some(mut s) = Site::new("WAL") else { return };
    // A sudo that notes what it is asked for, before the real one does it.
    let bin = s.old.home().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("sudo"), "#!/bin/sh\necho asked >>\"$HOME/asked\"\nexec /usr/bin/sudo \"$@\"\n").unwrap();
    std::fs::set_permissions(bin.join("sudo"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    s.old.down();
    s.old.configure(&format!("SetEnv PATH={}:/usr/bin:/bin", bin.display()));
    s.old.up();
    let asked = |s: &Site| std::fs::read_to_string(s.old.home().join("asked")).unwrap_or_default().lines().count();
    let set = |s: &mut Site, sudo: bool| {
        let db = s.env.resources.get_mut(&Section::Databases).unwrap().get_mut("shop_old").unwrap();
        db.settings.insert("sudo".into(), sudo.into());
    };
    for helper in [true, false] {
        let mut before = asked(&s);
        if !helper {
            s.shared = Arc::default();
            s.shared.get::<HelperExe>().disable();
        }
        for sudo in [false, true] {
            set(&mut s, sudo);
            s.run("shop_old", "execute", vec![format!("INSERT INTO orders (item) VALUES ('{helper} {sudo}')").into()]).await.unwrap();
            let to = format!("copies/{helper} {sudo}.sqlite");
            s.run("shop_old", "copy_to_file", vec![to.as_str().into()]).await.unwrap();
            assert_eq!(orders(&s.old.home().join(to)), orders(&s.db("old")));
            assert_eq!(asked(&s) > before, sudo, "helper: {helper}, sudo: {sudo}");
            before = asked(&s);
        }
    }
    assert_eq!(orders(&s.db("old")).len(), 4);
}
