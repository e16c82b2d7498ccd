//! Standbys, fences, promotion and the way back, with a shop that writes all the time.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use runbook_core::inventory::Section;
use runbook_core::{Code, Value};

use crate::support::actions::handle;
use crate::support::postgres::Site;
use crate::support::wires::Wires;

/// The shop: places an order every few milliseconds on whichever side takes it; remembers what was acknowledged. An order whose answer
/// was lost is looked for before it is placed again.
pub(super) struct Shop {
    stop: Arc<AtomicBool>,
    pub(super) taken: Arc<Mutex<Vec<(String, Instant)>>>,
    last: Arc<Mutex<String>>,
    work: tokio::task::JoinHandle<()>,
}

impl Shop {
    pub(super) fn open(s: &Site) -> Shop {
        let (stop, taken): (Arc<AtomicBool>, Arc<Mutex<Vec<_>>>) = Default::default();
        let ports = [s.old.port, s.new.port];
        let last: Arc<Mutex<String>> = Arc::default();
        let (end, log, said) = (stop.clone(), taken.clone(), last.clone());
        let work = tokio::spawn(async move {
            let mut side = 0;
            let mut client: Option<tokio_postgres::Client> = None;
            let (mut n, mut unsure) = (0, false);
            while !end.load(Ordering::Relaxed) {
                if client.is_none() {
                    let mut config = tokio_postgres::Config::new();
                    config.host("127.0.0.1").port(ports[side]).user("app").password("app s3cret'").dbname("shop");
                    match tokio::time::timeout(Duration::from_secs(2), config.connect(tokio_postgres::NoTls)).await {
                        Ok(Ok((c, connection))) => {
                            tokio::spawn(connection);
                            // As far as an ordinary user can go; a standby refuses even that.
                            match c.batch_execute("SET transaction_read_only = off; SET default_transaction_read_only = off").await {
                                Ok(()) => client = Some(c),
                                Err(_) => side = 1 - side,
                            }
                        }
                        failed => {
                            *said.lock() = format!("connecting to side {side}: {:?}", failed.map(|r| r.map(|_| ())));
                            side = 1 - side;
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                    }
                    continue;
                }
                let c = client.as_ref().unwrap();
                let item = format!("order {n}");
                if unsure {
                    match c.query("SELECT FROM orders WHERE item = $1", &[&item]).await {
                        Ok(rows) if !rows.is_empty() => {
                            log.lock().push((item, Instant::now()));
                            (n, unsure) = (n + 1, false);
                            continue;
                        }
                        Ok(_) => unsure = false,
                        Err(_) => {
                            client = None;
                            continue;
                        }
                    }
                }
                match c.execute("INSERT INTO orders (item) VALUES ($1)", &[&item]).await {
                    Ok(_) => {
                        log.lock().push((item, Instant::now()));
                        n += 1;
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    Err(e) => {
                        *said.lock() = format!("an order on side {side}: {e:?}");
                        unsure = e.as_db_error().is_none() || e.code().is_some_and(|c| c.code() == "57P01");
                        client = None;
                        side = 1 - side;
                    }
                }
            }
        });
        Shop { stop, taken, last, work }
    }

    pub(super) async fn some_orders(&self) {
        let before = self.taken.lock().len();
        let began = Instant::now();
        while self.taken.lock().len() < before + 10 {
            assert!(began.elapsed() < Duration::from_secs(60), "no order is taken; the shop says: {}", self.last.lock());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The longest time between two orders.
    pub(super) fn longest_gap(&self) -> Duration {
        let t = self.taken.lock();
        t.windows(2).map(|w| w[1].1 - w[0].1).max().unwrap_or_default()
    }

    pub(super) async fn close(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.work.await.unwrap();
        let taken = self.taken.lock();
        taken.iter().map(|t| t.0.clone()).collect()
    }
}

/// Every acknowledged order is there once, and nothing is there twice.
pub(super) fn all_there(cluster: &crate::support::postgres::Cluster, taken: &[String]) {
    let rows = cluster.sql("shop", "SELECT item FROM orders");
    let mut seen = BTreeMap::<&str, usize>::new();
    for line in rows.lines().filter(|l| l.starts_with("order ")) {
        *seen.entry(line).or_default() += 1;
    }
    let lost: Vec<&String> = taken.iter().filter(|t| !seen.contains_key(t.as_str())).collect();
    let doubled: Vec<_> = seen.iter().filter(|(_, n)| **n > 1).collect();
    assert!(lost.is_empty() && doubled.is_empty(), "of {}: lost {lost:?}, doubled {doubled:?}", taken.len());
}

pub(super) fn db(name: &str) -> Value {
    handle(name).into()
}

async fn replicated(checksums: bool) -> Option<Site> {
    let s = Site::start(checksums)?;
    s.allow_replication();
    let r = s.run("shop_new", "replicate_from", vec![db("shop_old")]).await.unwrap();
    assert_eq!(r.as_record().unwrap().get("changed"), &Value::Bool(true));
    Some(s)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shop_moves_and_moves_back_and_no_order_is_lost() {
    for checksums in [true, false] {
        let Some(s) = replicated(checksums).await else { return };
        let shop = Shop::open(&s);
        shop.some_orders().await;
        let again = s.run("shop_new", "replicate_from", vec![db("shop_old")]).await.unwrap();
        assert_eq!(again.as_record().unwrap().get("changed"), &Value::Bool(false));
        let status = s.run("shop_new", "status", vec![]).await.unwrap();
        let st = status.as_record().unwrap();
        assert_eq!(
            (st.str("role"), st.get("running"), st.get("read_only"), st.get("error")),
            ("replica", &Value::Bool(true), &Value::Bool(true), &Value::Unit),
            "{status:?}"
        );
        assert_eq!(s.run("shop_old", "status", vec![]).await.unwrap().as_record().unwrap().str("role"), "primary");

        let began = Instant::now();
        let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
        let fenced = began.elapsed();
        s.run("shop_new", "wait_caught_up", vec![fence.clone()]).await.unwrap();
        let caught = began.elapsed();
        s.run("shop_new", "promote", vec![fence.clone()]).await.unwrap();
        let promoted = began.elapsed();
        shop.some_orders().await;
        eprintln!(
            "fence {fenced:?}, caught up {caught:?}, promoted {promoted:?}; the longest time without an order {:?}",
            shop.longest_gap()
        );
        assert_eq!(s.run("shop_new", "promote", vec![fence.clone()]).await.unwrap(), Value::Unit, "a second time it is done already");
        let e = s.run("shop_old", "unfence", vec![]).await.unwrap_err();
        assert!(e.message.contains("has handed over to \"shop_new\""), "{e}");
        assert_eq!(s.old.sql("shop", "SELECT count(*) FROM orders WHERE item = 'x'"), "0", "a super-user may read");

        let began = Instant::now();
        s.run("shop_new", "demote", vec![db("shop_old")]).await.unwrap();
        eprintln!("demoted in {:?} ({})", began.elapsed(), if checksums { "rewound" } else { "copied anew" });
        let said = s.world.messages.lock().join("\n");
        assert!(!said.contains("copied anew") || !checksums, "{said}");
        // Still fenced: nobody takes writes until it is lifted.
        let before = shop.taken.lock().len();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(shop.taken.lock().len(), before);
        assert_eq!(s.run("shop_new", "demote", vec![db("shop_old")]).await.unwrap(), Value::Unit);
        // The fence of before proves nothing any more.
        let e = s.run("shop_new", "promote", vec![fence]).await.unwrap_err();
        assert!(e.code == Code::DB_NOT_FENCED && e.message.contains("standby since"), "{e}");
        s.run("shop_old", "unfence", vec![]).await.unwrap();
        shop.some_orders().await;
        let status = s.run("shop_new", "status", vec![]).await.unwrap();
        assert_eq!(status.as_record().unwrap().get("running"), &Value::Bool(true), "{status:?}");
        let taken = shop.close().await;
        all_there(&s.old, &taken);
        assert_eq!(s.old.sql("shop", "SELECT datconnlimit FROM pg_database WHERE datname = 'shop'"), "-1");
        assert_eq!(s.old.sql("shop", "SELECT count(*) FROM pg_db_role_setting"), "0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_cut_anywhere_is_completed_and_taken_back() {
    let Some(s) = replicated(true).await else { return };
    let shop = Shop::open(&s);
    let mut cuts = 0;
    for round in 0..4u64 {
        shop.some_orders().await;
        eprintln!("round {round}: {} orders so far", shop.taken.lock().len());
        let cut = |i: u64| Some(Duration::from_millis(15 + (round * 97 + i * 61) % 260));
        let fence = s.run_cut("shop_old", "fence", vec![], cut(1)).await.unwrap();
        s.run("shop_new", "wait_caught_up", vec![fence.clone()]).await.unwrap();
        s.run_cut("shop_new", "promote", vec![fence], cut(2)).await.unwrap();
        shop.some_orders().await;
        // The way back is cut several times over.
        let last = 6;
        for i in 0..=last {
            let within = Duration::from_millis(120 + round * 111 + i * 377);
            let done = if i == last { None } else { Some(within) };
            cuts += 1;
            let primitive = s.run_once("shop_new", "demote", vec![db("shop_old")], done).await;
            match primitive {
                Some(Ok(_)) => break,
                Some(Err(e)) if e.retryable && i < last => {}
                Some(Err(e)) => panic!("round {round}, cut {i}: {e:?}"),
                None => {}
            }
        }
        s.run("shop_old", "unfence", vec![]).await.unwrap();
    }
    shop.some_orders().await;
    let taken = shop.close().await;
    eprintln!("{cuts} cuts, {} orders", taken.len());
    all_there(&s.old, &taken);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_whose_connections_are_reset_at_random_loses_and_doubles_no_order() {
    let Some(mut s) = replicated(true).await else { return };
    let wires = Wires::lay(&mut s).await;
    let shop = Shop::open(&s);
    wires.switch_there_and_back(&s, async |_| shop.some_orders().await).await;
    let taken = shop.close().await;
    println!("{} orders, none lost, none doubled", taken.len());
    all_there(&s.old, &taken);
}

/// More of the log than one segment lies between the last checkpoint that both sides share and the switch; the new side has its
/// checkpoints since.
#[tokio::test(flavor = "multi_thread")]
async fn the_way_back_has_the_log_that_it_needs() {
    let Some(s) = replicated(true).await else { return };
    for kept in [true, false] {
        s.world.messages.lock().clear();
        s.old.sql("shop", "CHECKPOINT");
        for i in 0..4 {
            s.old.sql("shop", &format!("INSERT INTO orders (item) VALUES ('kept {kept} {i}')"));
            s.old.sql("shop", "SELECT pg_switch_wal()");
        }
        let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
        s.run("shop_new", "wait_caught_up", vec![fence.clone()]).await.unwrap();
        s.run("shop_new", "promote", vec![fence]).await.unwrap();
        if !kept {
            s.new.sql("shop", "ALTER SYSTEM SET wal_keep_size = 0");
            s.new.sql("shop", "SELECT pg_reload_conf()");
        }
        s.new.sql("shop", &format!("INSERT INTO orders (item) VALUES ('there {kept}')"));
        for _ in 0..2 {
            s.new.sql("shop", "SELECT pg_switch_wal()");
            s.new.sql("shop", "CHECKPOINT");
        }
        let demoted = s.run("shop_new", "demote", vec![db("shop_old")]).await;
        let said = s.world.messages.lock().join("; ");
        demoted.unwrap_or_else(|e| panic!("kept {kept}: {e:?}\n{said}\n{}\n{}", s.old.said(), s.new.said()));
        s.run("shop_old", "unfence", vec![]).await.unwrap();
        assert_eq!(said.contains("is copied anew"), !kept, "{said}");
        assert_eq!(s.old.sql("shop", &format!("SELECT count(*) FROM orders WHERE item ~ '(kept|there) {kept}'")), "5");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_standby_lacks_is_said_before_anything_is_touched() {
    let Some(s) = Site::start(false) else { return };
    let e = s.run("shop_new", "replicate_from", vec![db("shop_old")]).await.unwrap_err();
    let line = "host    replication     runbook_replication    127.0.0.1/32    scram-sha-256";
    assert!(e.code == Code::DB_SETTINGS && e.message.contains(line), "{e}");
    s.allow_replication();
    s.world.secrets.lock().insert("replication".into(), "another pass".into());
    let e = s.run("shop_new", "replicate_from", vec![db("shop_old")]).await.unwrap_err();
    assert_eq!(e.code, Code::DB_LOGIN, "{e}");
    assert!(!format!("{e:?}").contains("another pass"));
    s.world.secrets.lock().insert("replication".into(), "repl:s3\\cret".into());

    // A cluster of another origin is never overwritten unless told.
    s.new.init(false);
    s.new.start();
    s.new.sql("postgres", "CREATE DATABASE shop");
    let e = s.run("shop_new", "replicate_from", vec![db("shop_old")]).await.unwrap_err();
    assert!(e.code == Code::DB_COPY && e.message.contains("of another origin") && e.hint.unwrap().contains("replace"), "{}", e.message);
    assert_eq!(s.new.sql("postgres", "SELECT 1"), "1");
    let replace = Value::Map(BTreeMap::from([("replace".to_string(), true.into())]));
    s.run("shop_new", "replicate_from", vec![db("shop_old"), replace]).await.unwrap();
    assert_eq!(s.new.sql("shop", "SELECT count(*) FROM orders"), "0");
    for left in ["data.runbook-new", "data.runbook-replaced", "data.runbook-pid"] {
        assert!(!s.new.path(left).exists(), "{left}");
    }
    // Its undo, on both sides.
    assert_eq!(s.old.sql("shop", "SELECT count(*) FROM pg_replication_slots"), "1");
    s.run("shop_new", "stop_replication", vec![]).await.unwrap();
    assert_eq!(s.old.sql("shop", "SELECT count(*) FROM pg_replication_slots"), "0");
    assert!(!s.new.path("data.runbook-pass").exists());
    s.run("shop_new", "stop_replication", vec![]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_cut_short_is_never_taken_for_a_standby() {
    let Some(s) = Site::start(false) else { return };
    s.allow_replication();
    s.old.sql("shop", "INSERT INTO orders (item) SELECT repeat('x', 100) || i FROM generate_series(1, 200000) i");
    for ms in [150, 300, 500, 800, 1200, 1700, 2300] {
        let done = s.run_once("shop_new", "replicate_from", vec![db("shop_old")], Some(Duration::from_millis(ms))).await;
        if let Some(done) = done {
            done.unwrap();
            break;
        }
        assert!(!s.new.path("data").exists() || s.new.path("data/standby.signal").exists(), "cut after {ms} ms");
    }
    s.run("shop_new", "replicate_from", vec![db("shop_old")]).await.unwrap();
    assert_eq!(s.new.sql("shop", "SELECT count(*) FROM orders"), "200000");
    assert!(!s.new.path("data.runbook-new").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_super_user_who_writes_stops_the_switch_with_his_name() {
    let Some(s) = replicated(false).await else { return };
    // One who logs in again and again and means it.
    let stop = Arc::new(AtomicBool::new(false));
    let (end, words) = (stop.clone(), (s.old.port, s.old.path("").display().to_string()));
    s.old.sql("shop", "CREATE ROLE dba SUPERUSER LOGIN PASSWORD 'dba'");
    let writer = tokio::spawn(async move {
        while !end.load(Ordering::Relaxed) {
            let mut config = tokio_postgres::Config::new();
            config.host("127.0.0.1").port(words.0).user("dba").password("dba").dbname("shop").application_name("nightly job");
            config.options("-c default_transaction_read_only=off");
            if let Ok((c, connection)) = config.connect(tokio_postgres::NoTls).await {
                tokio::spawn(connection);
                while !end.load(Ordering::Relaxed) && c.batch_execute("INSERT INTO orders (item) VALUES ('by the dba')").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let e = s.run("shop_old", "fence", vec![]).await.unwrap_err();
    assert!(e.message.contains("super-user") && e.message.contains("dba") || e.message.contains("orders"), "{e}");
    // The shop is not kept out for nothing.
    assert_eq!(s.old.sql("shop", "SELECT datconnlimit FROM pg_database WHERE datname = 'shop'"), "-1");
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();

    // One who comes after the fence, writes once, and is gone.
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    s.run("shop_new", "wait_caught_up", vec![fence.clone()]).await.unwrap();
    s.old.sql("shop", "BEGIN READ WRITE; INSERT INTO orders (item) VALUES ('behind your back'); COMMIT");
    let e = s.run("shop_new", "promote", vec![fence]).await.unwrap_err();
    assert!(e.code == Code::DB_NOT_FENCED && e.message.contains("written to under its fence") && e.message.contains("orders"), "{e}");
    assert_eq!(s.new.sql("shop", "SELECT pg_is_in_recovery()::text"), "true");

    // A fence that was lifted, and one that another has taken over.
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    let newer = s.run("shop_old", "fence", vec![]).await.unwrap();
    let e = s.run("shop_new", "promote", vec![fence]).await.unwrap_err();
    assert!(e.message.contains("another stands now"), "{e}");
    s.run("shop_old", "unfence", vec![]).await.unwrap();
    let e = s.run("shop_new", "promote", vec![newer]).await.unwrap_err();
    assert!(e.code == Code::DB_NOT_FENCED && e.message.contains("there is no fence now"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_fence_cannot_hold_is_named() {
    let Some(s) = replicated(false).await else { return };
    let e = s.run("shop_new", "fence", vec![]).await.unwrap_err();
    assert!(e.message.contains("is a standby"), "{e}");
    // A transaction under way is waited for, and then ended; its rows are not there.
    let slow = {
        let port = s.old.port;
        tokio::spawn(async move {
            let mut config = tokio_postgres::Config::new();
            config.host("127.0.0.1").port(port).user("app").password("app s3cret'").dbname("shop");
            let (c, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            c.batch_execute("BEGIN; INSERT INTO orders (item) VALUES ('never')").await.unwrap();
            tokio::time::sleep(Duration::from_secs(4)).await;
            c.batch_execute("COMMIT").await.is_err()
        })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    let within = Value::Map(BTreeMap::from([("within".to_string(), Value::Duration(Duration::from_secs(1)))]));
    let began = Instant::now();
    s.run("shop_old", "fence", vec![within]).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert!(slow.await.unwrap(), "its COMMIT is refused");
    assert_eq!(s.old.sql("shop", "SELECT count(*) FROM orders"), "0");
    // It outlives a restart of the server.
    s.old.as_postgres("pg_ctl", &["-D", &s.old.path("data").display().to_string(), "-m", "immediate", "stop"]);
    s.old.start();
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| s.old.sql("shop", "INSERT INTO orders (item) VALUES ('x')")));
    assert!(refused.is_err());
    s.run("shop_old", "unfence", vec![]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_broken_stops_the_wait_at_once() {
    let Some(s) = replicated(false).await else { return };
    s.new.as_postgres("pg_ctl", &["-D", &s.new.path("data").display().to_string(), "-m", "fast", "stop"]);
    s.old.sql("shop", "SELECT pg_drop_replication_slot('runbook_shop_new')");
    s.old.sql("shop", "INSERT INTO orders (item) VALUES ('one more')");
    s.new.start();
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    let began = Instant::now();
    let e = s.run("shop_new", "wait_caught_up", vec![fence.clone()]).await.unwrap_err();
    assert!(e.code == Code::DB_REPLICATION && e.message.contains("replication slot \"runbook_shop_new\" does not exist"), "{e}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let status = s.run("shop_new", "status", vec![]).await.unwrap();
    assert!(format!("{status:?}").contains("does not exist"), "{status:?}");
    let e = s.run("shop_new", "promote", vec![fence]).await.unwrap_err();
    assert!(matches!(e.code, Code::DB_REPLICATION | Code::DB_BEHIND), "{e}");
    s.run("shop_old", "unfence", vec![]).await.unwrap();
    // Made anew, since what it lacks may be gone.
    let r = s.run("shop_new", "replicate_from", vec![db("shop_old")]).await.unwrap();
    assert_eq!(r.as_record().unwrap().get("changed"), &Value::Bool(true));
    assert_eq!(s.new.sql("shop", "SELECT count(*) FROM orders"), "1");
}

/// A checkpoint of the source may remove segments while `pg_rewind` reads them: here one is gone from what it has brought.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_in_the_log_that_a_rewind_has_brought_is_seen() {
    let Some(mut s) = replicated(true).await else { return };
    let (real, bin) = (s.old.bin.clone(), s.old.path("bin"));
    let script = format!(
        "mkdir {bin} && ln -s {real}/* {bin}/ && rm {bin}/pg_rewind && cat >{bin}/pg_rewind && chmod -R a+rx {bin}",
        bin = bin.display(),
        real = real.display()
    );
    let wrapper = format!(
        "#!/bin/sh\nd=$2\n{}/pg_rewind \"$@\" || exit 1\nrm \"$d\"/pg_wal/$(ls \"$d/pg_wal\" | grep -E '^[0-9A-F]{{24}}$' | sort -k 1.9 | sed -n 3p)\n",
        real.display()
    );
    let mut made = Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap();
    made.stdin.take().unwrap().write_all(wrapper.as_bytes()).unwrap();
    assert!(made.wait().unwrap().success());
    let old = s.env.resources.get_mut(&Section::Databases).unwrap().get_mut("shop_old").unwrap();
    old.settings.insert("bin".into(), bin.display().to_string().into());
    for i in 0..4 {
        s.old.sql("shop", &format!("INSERT INTO orders (item) VALUES ('here {i}')"));
        s.old.sql("shop", "SELECT pg_switch_wal()");
    }
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    s.run("shop_new", "wait_caught_up", vec![fence.clone()]).await.unwrap();
    s.run("shop_new", "promote", vec![fence]).await.unwrap();
    s.new.sql("shop", "INSERT INTO orders (item) VALUES ('there')");
    let demoted = s.run("shop_new", "demote", vec![db("shop_old")]).await;
    let said = s.world.messages.lock().join("; ");
    demoted.unwrap_or_else(|e| panic!("{e:?}\n{said}\n{}\n{}", s.old.said(), s.new.said()));
    assert!(said.contains("on is gone on both sides): it is copied anew"), "{said}");
    assert_eq!(s.old.sql("shop", "SELECT count(*) FROM orders WHERE item ~ 'here|there'"), "5");
}
