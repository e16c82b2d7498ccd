//! End-to-end tests of the area `mariadb`: two hosts behind real sshd, a real server on each, a shop that writes all the time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use runbook_core::inventory::{Environment, Resource, Section};
use runbook_core::primitive::{Cx, Primitive, Registry, Shared};
use runbook_core::{Call, Code, Result, Value};

use crate::support::actions::{done_or_found, handle};
use crate::support::mariadb::{Mariadb, Writer};
use crate::support::options;
use crate::support::sshd::{Sshd, environment, world};

mod compare;
mod crash;
mod data;
mod delayed;
mod dumps;
mod fence;
mod galera;
mod large;
mod loads;
mod mysql;
mod node;
mod pair;
mod physical;
mod physical_lab;
mod replicate;

/// Two hosts with a server each, the shop on the old one.
struct Site {
    old: Mariadb,
    new: Mariadb,
    _hosts: [Sshd; 2],
    env: Environment,
    shared: Arc<Shared>,
    world: Arc<runbook_testkit::World>,
    registry: Registry,
    actions: AtomicUsize,
}

impl Site {
    fn new() -> Option<Site> {
        Site::with("")
    }

    fn with(extra: &str) -> Option<Site> {
        let hosts = [Sshd::start("")?, Sshd::start("")?];
        Site::of(hosts, "mariadb", Mariadb::start(1, extra)?, Mariadb::start(2, extra)?)
    }

    fn of(hosts: [Sshd; 2], kind: &str, old: Mariadb, new: Mariadb) -> Option<Site> {
        let mut env = environment(&[("old", hosts[0].settings()), ("new", hosts[1].settings())]);
        for (name, host, server) in [("shop_old", "old", &old), ("shop_new", "new", &new)] {
            let text = |p: std::path::PathBuf| Value::from(p.display().to_string());
            let settings = BTreeMap::from([
                ("host".to_string(), Value::from(host)),
                ("database".to_string(), "shop".into()),
                ("socket".to_string(), text(server.socket())),
                ("config_dir".to_string(), text(server.dir.path().join("conf.d"))),
                ("defaults_file".to_string(), text(server.config())),
                ("replication_host".to_string(), "127.0.0.1".into()),
                ("replication_port".to_string(), Value::Int(i64::from(server.port))),
            ]);
            let db = Resource { name: name.into(), kind: kind.into(), settings };
            env.resources.entry(Section::Databases).or_default().insert(name.into(), db);
        }
        old.sql(
            "CREATE DATABASE shop; CREATE USER shop@localhost IDENTIFIED BY 'shop-secret'; GRANT SELECT, INSERT, UPDATE, DELETE ON shop.* TO shop@localhost; \
             USE shop; CREATE TABLE orders (id INT AUTO_INCREMENT PRIMARY KEY, item VARCHAR(80) NOT NULL UNIQUE) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",
        );
        Some(Site {
            old,
            new,
            _hosts: hosts,
            env,
            shared: Arc::default(),
            world: world(),
            registry: runbook_primitives::registry(),
            actions: AtomicUsize::new(0),
        })
    }

    fn set(&mut self, db: &str, key: &str, value: impl Into<Value>) {
        let db = self.env.resources.get_mut(&Section::Databases).unwrap().get_mut(db).unwrap();
        db.settings.insert(key.into(), value.into());
        // What is known of the way to the server is of the settings before.
        self.shared = Arc::default();
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

    /// An action and what it is called with.
    fn bound(&self, on: &str, name: &'static str, args: Vec<Value>) -> Result<(Arc<dyn Primitive>, Call)> {
        let primitive = self.registry.primitives.get(&(Some("Database"), name)).unwrap().clone();
        let call = primitive.spec().bind(Some(handle(on)), args)?;
        Ok((primitive, call))
    }

    /// Does an action. With `cut` the controller "dies" after that time: the future is dropped wherever it is, everything that the
    /// process had open is forgotten, and the action is found out about and done again as the engine does on resume.
    async fn run_cut(&self, on: &str, name: &'static str, args: Vec<Value>, cut: Option<Duration>) -> Result<Value> {
        let (primitive, call) = self.bound(on, name, args)?;
        let mut first = self.cx();
        let mut then = first.clone();
        if cut.is_some() {
            (first.shared, then.shared) = (Arc::default(), Arc::default());
        }
        done_or_found(primitive.as_ref(), &call, &first, &then, cut).await
    }

    async fn replicate(&self) {
        self.run("shop_new", "replicate_from", vec![handle("shop_old").into()]).await.unwrap();
    }

    fn writer(&self) -> Writer {
        Writer::open(self.old.socket(), self.new.socket())
    }
}

fn field<'a>(v: &'a Value, name: &str) -> &'a Value {
    v.as_record().unwrap().get(name)
}

const ORDERS: &str = "SELECT item FROM shop.orders ORDER BY id";

/// Moves the shop, takes orders on the new side; with `back`, takes it all back again. The longest time without an order, in ms.
async fn cutover(s: &Site, back: bool, cut: &dyn Fn() -> Option<Duration>) -> usize {
    let mut writer = s.writer();
    writer.some().await;
    let old = || vec![Value::from(handle("shop_old"))];
    s.run_cut("shop_new", "replicate_from", old(), cut()).await.unwrap();
    writer.some().await;
    writer.gap.store(0, Ordering::Relaxed);
    let fence = s.run_cut("shop_old", "fence", vec![], cut()).await.unwrap();
    s.run("shop_new", "wait_caught_up", vec![fence.clone()]).await.unwrap();
    s.run_cut("shop_new", "promote", vec![fence], cut()).await.unwrap();
    writer.new_side.store(true, Ordering::Relaxed);
    writer.some().await;
    let gap = writer.gap.load(Ordering::Relaxed);
    if back {
        s.run_cut("shop_new", "demote", old(), cut()).await.unwrap();
        s.run_cut("shop_old", "unfence", vec![], cut()).await.unwrap();
        writer.some().await;
    }
    writer.close();
    let n = writer.settle(&if back { &s.old } else { &s.new }.sql(ORDERS));
    assert!(n > 10);
    if back {
        // It is a replica again, and has the orders that came after.
        for _ in 0..200 {
            if s.new.sql(ORDERS) == s.old.sql(ORDERS) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let c = s.run("shop_old", "compare", vec![handle("shop_new").into()]).await.unwrap();
        assert_eq!(field(&c, "equal"), &Value::Bool(true), "{:?}", field(&c, "differences"));
        assert_eq!(s.new.sql("SELECT @@read_only"), "1");
    }
    gap
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shop_is_moved_while_it_writes() {
    let Some(s) = Site::new() else { return };
    let gap = cutover(&s, false, &|| None).await;
    println!("no order for {gap} ms at most");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shop_is_moved_and_taken_back_with_the_orders_of_the_new_side() {
    for extra in ["", "log-slave-updates=1\ngtid-strict-mode=1", "gtid-domain-id=7"] {
        let Some(s) = Site::with(extra) else { return };
        cutover(&s, true, &|| None).await;
        // And all of it once more, over what the first time has left.
        cutover_again(&s).await;
    }
}

async fn cutover_again(s: &Site) {
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    s.run("shop_new", "wait_caught_up", vec![fence.clone()]).await.unwrap();
    s.run("shop_new", "promote", vec![fence]).await.unwrap();
    s.new.sql_as("shop", "shop-secret", "INSERT INTO shop.orders (item) VALUES ('on the new side')").unwrap();
    s.run("shop_new", "demote", vec![handle("shop_old").into()]).await.unwrap();
    s.run("shop_old", "unfence", vec![]).await.unwrap();
    assert_eq!(s.old.sql("SELECT COUNT(*) FROM shop.orders WHERE item = 'on the new side'"), "1");
    s.old.sql_as("shop", "shop-secret", "INSERT INTO shop.orders (item) VALUES ('on the old side again')").unwrap();
}
