//! A master-master pair that is moved to a new pair, and taken back.

use super::*;

const MARKS: &str = "SELECT COUNT(*) FROM shop.marks";

/// Waits until a server has so many marks.
async fn marks(m: &Mariadb, n: &str) {
    for _ in 0..400 {
        if m.sql(MARKS) == n {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{} marks instead of {n}", m.sql(MARKS));
}

async fn equal(s: &Site, a: &str, b: &str) {
    // Under no writes; replicas are given the time that they need.
    let mut differences = Value::Unit;
    for _ in 0..50 {
        let c = s.run(a, "compare", vec![handle(b).into()]).await.unwrap();
        if field(&c, "equal") == &Value::Bool(true) {
            return;
        }
        differences = field(&c, "differences").clone();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{a} and {b}: {differences:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_is_moved_to_a_new_pair_and_taken_back() {
    const EXTRA: &str = "log-slave-updates=1";
    let Some(mut s) = Site::with(EXTRA) else { return };
    let (Some(b), Some(d)) = (Mariadb::start(3, EXTRA), Mariadb::start(4, EXTRA)) else { return };
    for (name, like, server) in [("standby_old", "shop_old", &b), ("standby_new", "shop_new", &d)] {
        let databases = s.env.resources.get_mut(&Section::Databases).unwrap();
        let mut db = Resource { name: name.into(), ..databases[like].clone() };
        for (key, path) in
            [("socket", server.socket()), ("config_dir", server.dir.path().join("conf.d")), ("defaults_file", server.config())]
        {
            db.settings.insert(key.into(), path.display().to_string().into());
        }
        db.settings.insert("replication_port".into(), Value::Int(i64::from(server.port)));
        databases.insert(name.into(), db);
    }
    let on = |name: &str| vec![Value::from(handle(name))];
    s.old.sql("CREATE TABLE shop.marks (id INT AUTO_INCREMENT PRIMARY KEY, what VARCHAR(40))");
    let mut writer = s.writer();
    writer.some().await;

    // The old pair: the shop writes on one side.
    let e = s.run("shop_old", "pair_with", on("standby_old")).await.unwrap_err();
    assert!(e.code == Code::DB_REPLICATION && e.message.contains("does not replicate from it"), "{e}");
    s.run("standby_old", "replicate_from", on("shop_old")).await.unwrap();
    s.run("shop_old", "pair_with", on("standby_old")).await.unwrap();
    s.run("shop_old", "pair_with", on("standby_old")).await.unwrap();
    b.sql("INSERT INTO shop.marks (what) VALUES ('on the other side')");
    marks(&s.old, "1").await;

    // The new pair follows, one after another.
    s.run("shop_new", "replicate_from", on("shop_old")).await.unwrap();
    s.run("standby_new", "replicate_from", on("shop_new")).await.unwrap();
    b.sql("INSERT INTO shop.marks (what) VALUES ('through all four')");
    marks(&d, "2").await;

    // Neither side of a pair can be fenced as it is; and it is not parted while both may take writes.
    let e = s.run("shop_old", "fence", vec![]).await.unwrap_err();
    assert!(e.code == Code::DB_FENCE && e.hint.as_ref().unwrap().contains("unpair"), "{e}");
    b.sql("SET GLOBAL read_only = 0");
    let e = s.run("shop_old", "unpair", on("standby_old")).await.unwrap_err();
    assert!(e.code == Code::DB_FENCE && e.message.contains("\"standby_old\" may take writes as well as \"shop_old\""), "{e}");
    b.sql("SET GLOBAL read_only = 1");
    writer.some().await;

    // The window.
    writer.gap.store(0, Ordering::Relaxed);
    s.run("shop_old", "unpair", on("standby_old")).await.unwrap();
    s.run("shop_old", "unpair", on("standby_old")).await.unwrap();
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    s.run("shop_new", "wait_caught_up", vec![fence.clone()]).await.unwrap();
    s.run("shop_new", "promote", vec![fence]).await.unwrap();
    writer.new_side.store(true, Ordering::Relaxed);
    s.run("shop_new", "pair_with", on("standby_new")).await.unwrap();
    writer.some().await;
    println!("no order for {} ms", writer.gap.load(Ordering::Relaxed));
    d.sql("INSERT INTO shop.marks (what) VALUES ('on the new other side')");
    marks(&s.new, "3").await;

    // And back, with everything that came since.
    s.run("shop_new", "unpair", on("standby_new")).await.unwrap();
    s.run("shop_new", "demote", on("shop_old")).await.unwrap();
    s.run("shop_old", "unfence", vec![]).await.unwrap();
    s.run("shop_old", "pair_with", on("standby_old")).await.unwrap();
    writer.some().await;
    writer.close();
    let n = writer.settle(&s.old.sql(ORDERS));
    println!("{n} orders, none lost, none doubled");
    assert_eq!(s.old.sql(MARKS), "3");
    b.sql("INSERT INTO shop.marks (what) VALUES ('on the old other side again')");
    marks(&s.old, "4").await;
    for other in ["standby_old", "shop_new", "standby_new"] {
        equal(&s, "shop_old", other).await;
    }

    // What the other side writes while they are parted does not vanish in silence.
    s.run("shop_old", "unpair", on("standby_old")).await.unwrap();
    b.sql("INSERT INTO shop.marks (what) VALUES ('apart')");
    let e = s.run("shop_old", "pair_with", on("standby_old")).await.unwrap_err();
    assert!(e.code == Code::DB_DIFFERS && e.message.contains("has written by itself"), "{e}");
}
