//! The primitives over the helper in this process, with the connection lost before and after every single request.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use runbook_core::inventory::{Environment, Resource, Section};
use runbook_core::primitive::{Cx, Outcome, Reconciled, Registry};
use runbook_core::{Effect, Record};
use runbook_testkit::World;
use rusqlite::Connection;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, DuplexStream};
use tokio::runtime::Handle;

use super::*;
use crate::db::driver::Drivers;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Cut {
    Never,
    Before(usize),
    After(usize),
}

/// Serves requests in this process; loses the connection once, before or after the request of this number.
struct Local {
    cut: Mutex<Cut>,
    requests: AtomicUsize,
}

struct Blocking<T>(T, Handle);

impl<T: AsyncRead + Unpin> Read for Blocking<T> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.1.block_on(self.0.read(buf))
    }
}

impl<T: AsyncWrite + Unpin> Write for Blocking<T> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.1.block_on(self.0.write(buf))
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.1.block_on(self.0.flush())
    }
}

fn cut_off() -> Error {
    Error::new(Code::SSH_LOST, "cut off by the test").retryable(true)
}

impl Local {
    fn new(cut: Cut) -> Arc<Self> {
        Arc::new(Local { cut: Mutex::new(cut), requests: AtomicUsize::new(0) })
    }

    fn fate(&self) -> Cut {
        let n = self.requests.fetch_add(1, Ordering::SeqCst);
        let mut cut = self.cut.lock();
        if *cut == Cut::Before(n) || *cut == Cut::After(n) { std::mem::replace(&mut *cut, Cut::Never) } else { Cut::Never }
    }
}

#[async_trait]
impl Link for Local {
    async fn call(&self, _cx: &Cx, db: &Db, request: Request) -> Result<Json> {
        let fate = self.fate();
        if matches!(fate, Cut::Before(_)) {
            return Err(cut_off());
        }
        let line = link::line(db, request)?;
        let out = tokio::task::spawn_blocking(move || {
            let mut out = Vec::new();
            helper::serve(&mut line.as_slice(), &mut out);
            out
        })
        .await
        .unwrap();
        if matches!(fate, Cut::After(_)) {
            return Err(cut_off());
        }
        proto::Reply::read(&out)
    }

    async fn open(&self, _cx: &Cx, db: &Db, request: Request) -> Result<Pipe> {
        let fate = self.fate();
        if matches!(fate, Cut::Before(_)) {
            return Err(cut_off());
        }
        let (mut input, theirs): (DuplexStream, DuplexStream) = tokio::io::duplex(64 << 10);
        let (out, output): (DuplexStream, DuplexStream) = tokio::io::duplex(64 << 10);
        let handle = Handle::current();
        let served = tokio::task::spawn_blocking(move || {
            helper::serve(&mut Blocking(theirs, handle.clone()), &mut Blocking(out, handle));
        });
        input.write_all(&link::line(db, request)?).await.unwrap();
        let lost = matches!(fate, Cut::After(_));
        // The answer is lost, but what the helper had begun goes on to its end.
        let output: Box<dyn AsyncRead + Send + Unpin> = if lost { Box::new(tokio::io::empty()) } else { Box::new(output) };
        let done = Box::pin(async move {
            served.await.unwrap();
            if lost { Err(cut_off()) } else { Ok((0, String::new())) }
        });
        Ok(Pipe { input: Box::new(input), output: BufReader::new(output), done })
    }
}

/// Two hosts with a database each.
struct Site {
    _dir: tempfile::TempDir,
    old: PathBuf,
    new: PathBuf,
    world: Arc<World>,
    env: Environment,
    link: Arc<Local>,
    registry: Registry,
    actions: AtomicUsize,
}

impl Site {
    fn new(cut: Cut, journal: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old.db"), dir.path().join("new.db"));
        Connection::open(&old)
            .unwrap()
            .execute_batch(&format!(
                "PRAGMA journal_mode = {journal}; CREATE TABLE orders (id INTEGER PRIMARY KEY AUTOINCREMENT, item TEXT NOT NULL DEFAULT 'x'); \
                 CREATE TABLE stock (name TEXT PRIMARY KEY, n INTEGER) WITHOUT ROWID; INSERT INTO stock VALUES ('cup', 3), ('pot', 4); \
                 CREATE INDEX by_item ON orders (item)"
            ))
            .unwrap();
        let mut env = Environment { name: "test".into(), ..Environment::default() };
        for (name, path) in [("shop_old", &old), ("shop_new", &new)] {
            let path = path.to_string_lossy().into_owned();
            let settings = BTreeMap::from([("host".to_string(), Value::from(name)), ("path".to_string(), Value::from(path))]);
            let db = Resource { name: name.into(), kind: "sqlite".into(), settings };
            env.resources.entry(Section::Databases).or_default().insert(name.into(), db);
        }
        let mut registry = Registry::default();
        crate::db::register(&mut registry);
        Site { _dir: dir, old, new, world: Arc::default(), env, link: Local::new(cut), registry, actions: AtomicUsize::new(0) }
    }

    fn cx(&self) -> Cx {
        let n = self.actions.fetch_add(1, Ordering::SeqCst);
        let cx = runbook_testkit::cx(&self.world, self.env.clone(), &format!("act-{n}"));
        cx.shared.get::<Drivers>().0.write().insert("sqlite", Arc::new(Sqlite { link: self.link.clone() }));
        cx
    }

    fn handle(&self, name: &str) -> Record {
        Record::handle("Database", name, BTreeMap::new())
    }

    /// Does one action as the engine would: when the connection is lost, asks what became of it, and does it again if it must.
    async fn run(&self, on: &str, name: &'static str, args: Vec<Value>) -> Result<Value> {
        let primitive = self.registry.primitives.get(&(Some("Database"), name)).unwrap().clone();
        let call = primitive.spec().bind(Some(self.handle(on)), args)?;
        let cx = self.cx();
        let result = match primitive.act(&cx, &call).await {
            Err(e) if e.code == Code::SSH_LOST => {
                self.never_both();
                let known =
                    if primitive.spec().effect == Effect::Once { primitive.reconcile(&cx, &call).await? } else { Reconciled::NotStarted };
                match known {
                    Reconciled::Done(o) => Ok(o),
                    Reconciled::NotStarted => primitive.act(&cx, &call).await,
                    Reconciled::Failed(e) => Err(e),
                    Reconciled::Unknown { known } => panic!("{known}"),
                }
            }
            other => other,
        };
        self.never_both();
        result.map(|o: Outcome| o.value)
    }

    async fn both(&self, on: &str, name: &'static str, other: &str) -> Result<Value> {
        self.run(on, name, vec![self.handle(other).into()]).await
    }

    /// At no moment may both sides take writes.
    fn never_both(&self) {
        assert!(!(takes_writes(&self.old) && takes_writes(&self.new)), "both sides take writes");
    }
}

fn takes_writes(path: &Path) -> bool {
    if !path.exists() {
        return false;
    }
    let conn = Connection::open(path).unwrap();
    conn.execute_batch("BEGIN IMMEDIATE; INSERT INTO orders (item) VALUES ('try'); ROLLBACK").is_ok()
}

fn order(path: &Path, item: &str) {
    Connection::open(path).unwrap().execute("INSERT INTO orders (item) VALUES (?1)", [item]).unwrap();
}

fn orders(path: &Path) -> Vec<String> {
    let conn = Connection::open(path).unwrap();
    let mut stmt = conn.prepare("SELECT item FROM orders ORDER BY id").unwrap();
    stmt.query_map([], |r| r.get(0)).unwrap().map(|r| r.unwrap()).collect()
}

/// A whole move and the way back. Returns how many requests it took.
async fn there_and_back(cut: Cut, journal: &str) -> usize {
    let s = Site::new(cut, journal);
    order(&s.old, "before");
    s.both("shop_new", "copy_from", "shop_old").await.unwrap();
    order(&s.old, "between");
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    assert!(!takes_writes(&s.old));
    s.both("shop_new", "copy_from", "shop_old").await.unwrap();
    s.run("shop_new", "wait_caught_up", vec![fence.clone()]).await.unwrap();
    let c = s.both("shop_old", "compare", "shop_new").await.unwrap();
    assert_eq!(c.as_record().unwrap().get("equal"), &Value::Bool(true), "{:?}", c.as_record().unwrap().get("differences"));
    s.run("shop_new", "promote", vec![fence]).await.unwrap();
    assert!(takes_writes(&s.new));
    order(&s.new, "on the new side");
    s.both("shop_new", "demote", "shop_old").await.unwrap();
    assert!(!takes_writes(&s.new) && !takes_writes(&s.old));
    s.run("shop_old", "unfence", vec![]).await.unwrap();
    order(&s.old, "after");
    assert_eq!(orders(&s.old), ["before", "between", "on the new side", "after"]);
    s.run("shop_new", "drop_copy", vec![]).await.unwrap();
    assert!(!s.new.exists());
    let left: Vec<_> = std::fs::read_dir(s.old.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|n| n.to_string_lossy().starts_with("old.db")), "{left:?}");
    assert_eq!(*s.link.cut.lock(), Cut::Never, "the cut was reached");
    s.link.requests.load(Ordering::SeqCst)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_and_its_way_back_survive_a_cut_around_every_request() {
    // The journal's mode changes nothing in the order of requests, so with the second one a sample will do.
    for (journal, every) in [("WAL", 1), ("DELETE", 5)] {
        let requests = there_and_back(Cut::Never, journal).await;
        assert!(requests >= 20, "{requests}");
        for n in (0..requests).step_by(every) {
            there_and_back(Cut::Before(n), journal).await;
            there_and_back(Cut::After(n), journal).await;
        }
        eprintln!("{journal}: {} cuts tried", 2 * requests.div_ceil(every));
    }
}

/// A site that is fenced and copied under the fence.
async fn ready() -> (Site, Value) {
    let s = Site::new(Cut::Never, "WAL");
    order(&s.old, "a");
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    s.both("shop_new", "copy_from", "shop_old").await.unwrap();
    (s, fence)
}

#[tokio::test(flavor = "multi_thread")]
async fn promote_refuses_a_fence_that_is_old_lifted_leaking_or_forged() {
    let (s, fence) = ready().await;
    let refused = async |s: &Site, fence: &Value, why: &str| {
        let e = s.run("shop_new", "promote", vec![fence.clone()]).await.unwrap_err();
        assert!(e.code == Code::DB_NOT_FENCED && e.message.contains(why), "{e}");
        assert!(!takes_writes(&s.new));
    };
    s.run("shop_old", "unfence", vec![]).await.unwrap();
    refused(&s, &fence, "no longer stands").await;

    let newer = s.run("shop_old", "fence", vec![]).await.unwrap();
    refused(&s, &fence, "another stands now").await;
    let e = s.run("shop_new", "promote", vec![newer.clone()]).await.unwrap_err();
    assert_eq!(e.code, Code::DB_BEHIND, "the copy was made under the older fence: {e}");
    let e = s.run("shop_new", "wait_caught_up", vec![newer.clone()]).await.unwrap_err();
    assert!(e.code == Code::DB_BEHIND && e.message.contains("before the fence"), "{e}");
    s.both("shop_new", "copy_from", "shop_old").await.unwrap();

    let old = Connection::open(&s.old).unwrap();
    old.execute_batch("DROP TRIGGER _runbook_guard_update_stock").unwrap();
    refused(&s, &newer, "update on stock was not refused").await;
    old.execute_batch("UPDATE stock SET n = 99").unwrap();
    let newest = s.run("shop_old", "fence", vec![]).await.unwrap();
    s.both("shop_new", "copy_from", "shop_old").await.unwrap();
    old.execute_batch("CREATE TABLE around (x)").unwrap();
    old.execute_batch("INSERT INTO around VALUES (1)").unwrap();
    let e = s.run("shop_new", "promote", vec![newest]).await.unwrap_err();
    assert!(e.code == Code::DB_NOT_FENCED && e.message.contains("around"), "{e}");

    // What is not a Fence does not even get that far.
    let e = s.run("shop_new", "promote", vec!["f".into()]).await.unwrap_err();
    assert_eq!(e.code, Code::WRONG_TYPE);
    let forged = Record::new("Fence", [("id", "x".into()), ("database", "shop_old".into())]);
    assert_eq!(s.run("shop_new", "promote", vec![forged.into()]).await.unwrap_err().code, Code::DB_NOT_FENCED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_side_is_never_overwritten_nor_opened_twice() {
    let (s, fence) = ready().await;
    s.run("shop_new", "promote", vec![fence.clone()]).await.unwrap();
    s.run("shop_new", "promote", vec![fence]).await.unwrap();
    order(&s.new, "b");
    for (on, name, arg) in [("shop_new", "copy_from", Some("shop_old")), ("shop_new", "drop_copy", None), ("shop_old", "unfence", None)] {
        let args = arg.map(|a| Value::from(s.handle(a))).into_iter().collect();
        let e = s.run(on, name, args).await.unwrap_err();
        assert!(e.hint.as_deref().unwrap().contains("demote"), "{name}: {e}");
    }
    assert_eq!(orders(&s.new), ["a", "b"]);
    // Both sides with rows of their own: nothing is thrown away, by no side.
    let force = Value::Map(BTreeMap::from([("force".to_string(), Value::Bool(true))]));
    let primitive = s.registry.primitives.get(&(Some("Database"), "unfence")).unwrap();
    primitive.act(&s.cx(), &primitive.spec().bind(Some(s.handle("shop_old")), vec![force]).unwrap()).await.unwrap();
    order(&s.old, "c");
    let primitive = s.registry.primitives.get(&(Some("Database"), "demote")).unwrap();
    let call = primitive.spec().bind(Some(s.handle("shop_new")), vec![s.handle("shop_old").into()]).unwrap();
    let e = primitive.act(&s.cx(), &call).await.unwrap_err();
    assert_eq!(e.code, Code::DB_DIFFERS, "{e}");
    assert_eq!((orders(&s.old).len(), orders(&s.new).len()), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn demote_is_safe_when_promote_only_began_or_never_happened() {
    let s = Site::new(Cut::Never, "WAL");
    s.both("shop_new", "demote", "shop_old").await.unwrap();
    let (s, _) = ready().await;
    s.both("shop_new", "demote", "shop_old").await.unwrap();
    // Promote had told the old side and died.
    s.link.call(&s.cx(), &Db::find(&s.cx(), "shop_old").unwrap(), Request::HandOver { to: Some("shop_new".into()) }).await.unwrap();
    assert!(s.run("shop_old", "unfence", vec![]).await.is_err());
    s.both("shop_new", "demote", "shop_old").await.unwrap();
    s.run("shop_old", "unfence", vec![]).await.unwrap();
    assert!(takes_writes(&s.old) && !takes_writes(&s.new));
}

#[tokio::test(flavor = "multi_thread")]
async fn compare_names_what_differs_by_table_and_key() {
    let (s, _) = ready().await;
    for item in ["b", "c", "d"] {
        s.run("shop_old", "unfence", vec![]).await.unwrap();
        order(&s.old, item);
    }
    s.run("shop_old", "fence", vec![]).await.unwrap();
    let other = Connection::open(&s.new).unwrap();
    other
        .execute_batch(
            "DROP TRIGGER _runbook_guard_insert_orders; DROP TRIGGER _runbook_guard_update_orders; DROP TRIGGER _runbook_guard_update_stock; \
             INSERT INTO orders VALUES (2, 'b'), (3, x'63'), (9, 'extra'); UPDATE stock SET n = '4' || 'x' WHERE name = 'pot'; \
             DROP INDEX by_item; CREATE TABLE more (x)",
        )
        .unwrap();
    let c = s.both("shop_old", "compare", "shop_new").await.unwrap();
    let r = c.as_record().unwrap();
    let found: Vec<&str> = r.get("differences").as_list().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    assert_eq!(
        found,
        [
            "index by_item is only in shop_old",
            "table more is only in shop_new",
            "orders: the row id = 3 differs",
            "orders: the row id = 4 is only in shop_old",
            "orders: the row id = 9 is only in shop_new",
            "sqlite_sequence: the row rowid = 1 differs",
            "stock: the row name = \"pot\" differs",
        ]
    );
    assert_eq!((r.get("equal"), r.get("rows")), (&Value::Bool(false), &Value::Int(7)));
}
