//! What a fence stops, what stops a fence, and what promote makes of one that is not what it was.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_refuses_writes_also_after_a_restart_and_is_lifted_without_a_trace() {
    let Some(mut s) = Site::new() else { return };
    s.old.sql("GRANT ALL ON *.* TO boss@localhost IDENTIFIED BY 'boss-secret' WITH GRANT OPTION; SET GLOBAL event_scheduler = ON; CREATE EVENT shop.e ON SCHEDULE EVERY 1 HOUR DO DELETE FROM shop.orders WHERE id < 0");
    let grants = s.old.sql("SHOW GRANTS FOR boss@localhost");
    s.set("shop_old", "app_user", "boss");
    s.set("shop_old", "app_password", "boss");
    s.world.secrets.lock().insert("boss".into(), "boss-secret".into());
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    assert_eq!(field(&fence, "proven"), &Value::Bool(true));
    let refused = |s: &Site| {
        for (user, password) in [("shop", "shop-secret"), ("boss", "boss-secret")] {
            let e = s.old.sql_as(user, password, "INSERT INTO shop.orders (item) VALUES ('x')").unwrap_err();
            assert!(e.contains("1290"), "{e}");
            assert_eq!(s.old.sql_as(user, password, "SELECT COUNT(*) FROM shop.orders").unwrap(), "0", "reading goes on");
        }
    };
    refused(&s);
    s.old.shutdown();
    s.old.up();
    refused(&s);
    assert_eq!(s.old.sql("SELECT @@event_scheduler"), "OFF");
    assert_eq!(s.run("shop_old", "unfence", vec![]).await.unwrap(), Value::Unit);
    s.old.sql_as("shop", "shop-secret", "INSERT INTO shop.orders (item) VALUES ('x')").unwrap();
    assert_eq!(s.old.sql("SHOW GRANTS FOR boss@localhost"), grants);
    assert_eq!(s.old.sql("SELECT @@event_scheduler"), "ON");
    assert_eq!(std::fs::read_dir(s.old.dir.path().join("conf.d")).unwrap().count(), 0);
    assert_eq!(s.old.sql("SELECT COUNT(*) FROM mysql.user WHERE user LIKE '\\_runbook%'"), "0");
    assert_eq!(s.old.sql("SELECT COUNT(*) FROM _runbook.state"), "0");
}

/// Waits until a count is one.
async fn until(s: &Site, sql: &str) {
    for _ in 0..40 {
        if s.old.sql(sql) == "1" {
            return;
        }
        // InnoDB shows open transactions as they were when they were asked for less than 100 ms ago.
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    panic!("{sql}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_under_way_is_refused_at_its_commit_and_a_long_statement_is_waited_for() {
    let Some(s) = Site::new() else { return };
    let sock = s.old.socket();
    let open = std::thread::spawn(move || {
        let mut c = std::process::Command::new("mariadb");
        c.args(["--no-defaults", "-ushop", "-S"]).arg(sock).env("MYSQL_PWD", "shop-secret");
        c.args(["-e", "START TRANSACTION; INSERT INTO shop.orders (item) VALUES ('open'); SELECT SLEEP(3); COMMIT"]).output().unwrap()
    });
    until(&s, "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_rows_modified > 0").await;
    s.run("shop_old", "fence", vec![]).await.unwrap();
    assert!(!open.join().unwrap().status.success());
    assert_eq!(s.old.sql("SELECT COUNT(*) FROM shop.orders"), "0");
    s.run("shop_old", "unfence", vec![]).await.unwrap();
    s.old.sql("INSERT INTO shop.orders (item) VALUES ('a'), ('b')");
    let sock = s.old.socket();
    let slow = std::thread::spawn(move || {
        let mut c = std::process::Command::new("mariadb");
        c.args(["--no-defaults", "-ushop", "-S"]).arg(sock).env("MYSQL_PWD", "shop-secret");
        c.args(["-e", "UPDATE shop.orders SET item = CONCAT(item, '!') WHERE SLEEP(1) = 0"]).output().unwrap()
    });
    until(&s, "SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'shop' AND state = 'User sleep'").await;
    s.run("shop_old", "fence", vec![options(&[("within", "20s".into())])]).await.unwrap();
    assert!(slow.join().unwrap().status.success());
    assert_eq!(s.old.sql(ORDERS), "a!\nb!");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_super_user_who_goes_on_writing_is_named_and_the_fence_comes_down_again() {
    let Some(s) = Site::new() else { return };
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (sock, done) = (s.old.socket(), stop.clone());
    let root = std::thread::spawn(move || {
        // One session after another, as a cron job of the administrator would.
        let mut n = 0;
        while !done.load(Ordering::Relaxed) {
            n += 1;
            let sql = format!(
                "INSERT INTO shop.orders (item) VALUES ('root {n}'); SELECT SLEEP(0.05); INSERT INTO shop.orders (item) VALUES ('root {n}b'); DO SLEEP(0.2)"
            );
            let mut c = std::process::Command::new("mariadb");
            let _ = c.args(["--no-defaults", "-uroot", "-S"]).arg(&sock).args(["-e", &sql]).output();
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let e = s.run("shop_old", "fence", vec![options(&[("within", "2s".into())])]).await.unwrap_err();
    stop.store(true, Ordering::Relaxed);
    root.join().unwrap();
    assert_eq!(e.code, Code::DB_FENCE, "{e}");
    assert!(e.message.contains("super-user") && e.message.contains("root@localhost"), "{e}");
    assert_eq!(s.old.sql("SELECT @@read_only"), "0");
    s.old.sql_as("shop", "shop-secret", "INSERT INTO shop.orders (item) VALUES ('users go on')").unwrap();
    assert_eq!(std::fs::read_dir(s.old.dir.path().join("conf.d")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn promote_takes_no_fence_that_is_old_lifted_leaking_or_written_through() {
    let Some(s) = Site::new() else { return };
    s.replicate().await;
    let refused = async |fence: &Value, part: &str| {
        let e = s.run("shop_new", "promote", vec![fence.clone()]).await.unwrap_err();
        assert!(e.code == Code::DB_NOT_FENCED && e.message.contains(part), "{part}: {e}");
        assert_eq!(s.new.sql("SELECT @@read_only"), "1");
    };
    let first = s.run("shop_old", "fence", vec![]).await.unwrap();
    let second = s.run("shop_old", "fence", vec![]).await.unwrap();
    refused(&first, "another stands now").await;
    s.old.sql("SET GLOBAL read_only = 0");
    refused(&second, "read_only was turned off").await;
    s.old.sql("SET GLOBAL read_only = 1; INSERT INTO shop.orders (item) VALUES ('by root')");
    refused(&second, "was written to under its fence").await;
    s.run("shop_old", "unfence", vec![]).await.unwrap();
    refused(&second, "there is no fence now").await;
    let third = s.run("shop_old", "fence", vec![]).await.unwrap();
    s.run("shop_new", "wait_caught_up", vec![third.clone()]).await.unwrap();
    s.run("shop_new", "promote", vec![third]).await.unwrap();
    let e = s.run("shop_old", "unfence", vec![]).await.unwrap_err();
    assert!(e.code == Code::DB_NOT_FENCED && e.message.contains("handed over to \"shop_new\""), "{e}");
}
