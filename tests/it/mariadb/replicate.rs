//! Setting replication up, its state, and its end.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_replicated_while_it_is_written_to_and_twice_changes_nothing() {
    let Some(s) = Site::new() else { return };
    s.old.sql(
        "USE shop; CREATE TABLE parts (o INT, n INT, note TEXT, PRIMARY KEY (o, n)); INSERT INTO parts SELECT seq, seq % 7, REPEAT('it''s; \\n é', 20) FROM seq_1_to_5000; \
         CREATE VIEW v AS SELECT COUNT(*) AS n FROM orders; CREATE TABLE log (id INT AUTO_INCREMENT PRIMARY KEY, what TEXT); \
         CREATE TRIGGER tr AFTER INSERT ON orders FOR EACH ROW INSERT INTO log (what) VALUES (CONCAT('new; ', NEW.item)); \
         CREATE FUNCTION f(x INT) RETURNS INT DETERMINISTIC RETURN x + 1; \
         CREATE EVENT e ON SCHEDULE EVERY 1 SECOND DO INSERT INTO log (what) VALUES ('event'); SET GLOBAL event_scheduler = ON; CREATE DATABASE other; CREATE TABLE other.t AS SELECT 1 AS a",
    );
    let mut writer = s.writer();
    writer.some().await;
    let e = s.run("shop_new", "status", vec![]).await.unwrap();
    assert_eq!(field(&e, "role"), &Value::from("alone"));
    let done = s.run("shop_new", "replicate_from", vec![handle("shop_old").into(), options(&[("jobs", Value::Int(3))])]).await.unwrap();
    assert_eq!(field(&done, "changed"), &Value::Bool(true));
    assert!(field(&done, "rows").as_int().unwrap() > 5000, "{done:?}");
    writer.some().await;
    let again = s.run("shop_new", "replicate_from", vec![handle("shop_old").into()]).await.unwrap();
    assert_eq!(field(&again, "changed"), &Value::Bool(false));
    let status = s.run("shop_new", "status", vec![]).await.unwrap();
    assert_eq!(
        (field(&status, "role"), field(&status, "running"), field(&status, "read_only")),
        (&Value::from("replica"), &true.into(), &true.into())
    );
    assert_eq!(field(&status, "error"), &Value::Unit);
    assert_eq!(field(&s.run("shop_old", "status", vec![]).await.unwrap(), "role"), &Value::from("primary"));
    // No event runs on the replica by itself, and an ordinary user cannot write there.
    assert_eq!(s.new.sql("SELECT status FROM information_schema.events"), "SLAVESIDE_DISABLED");
    assert!(s.new.sql_as("shop", "shop-secret", "DELETE FROM shop.orders").unwrap_err().contains("1290"));
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    s.run("shop_new", "wait_caught_up", vec![fence.clone()]).await.unwrap();
    let c = s.run("shop_old", "compare", vec![handle("shop_new").into()]).await.unwrap();
    assert_eq!(field(&c, "equal"), &Value::Bool(true), "{:?}", field(&c, "differences"));
    assert_eq!(s.new.sql("SELECT shop.f(1), (SELECT a FROM other.t)"), "2\t1");
    s.run("shop_new", "promote", vec![fence]).await.unwrap();
    assert_eq!(s.new.sql("SELECT status, @@event_scheduler FROM information_schema.events"), "ENABLED\tON");
    writer.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_is_named() {
    let Some(s) = Site::new() else { return };
    s.new.sql("CREATE DATABASE precious; CREATE TABLE precious.t (i INT)");
    let old = || Value::from(handle("shop_old"));
    let e = s.run("shop_new", "replicate_from", vec![old()]).await.unwrap_err();
    assert!(e.code == Code::DB_COPY && e.message.contains("precious"), "{e}");
    assert_eq!(s.new.sql("SELECT COUNT(*) FROM precious.t"), "0");
    s.run("shop_new", "replicate_from", vec![old(), options(&[("replace", true.into())])]).await.unwrap();
    assert_eq!(s.new.sql("SHOW DATABASES LIKE 'precious'"), "");
    s.new.sql("STOP SLAVE; SET GLOBAL server_id = 1");
    let e = s.run("shop_new", "replicate_from", vec![old()]).await.unwrap_err();
    assert!(e.code == Code::DB_SETTINGS && e.message.contains("server_id, 1"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn replication_that_stopped_on_an_error_ends_the_wait_at_once_in_the_servers_words() {
    let Some(s) = Site::new() else { return };
    s.replicate().await;
    s.new.sql("SET sql_log_bin = 0; INSERT INTO shop.orders (item) VALUES ('twice')");
    s.old.sql("INSERT INTO shop.orders (item) VALUES ('twice')");
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    let begun = std::time::Instant::now();
    let e = s.run("shop_new", "wait_caught_up", vec![fence.clone(), options(&[("within", "60s".into())])]).await.unwrap_err();
    assert_eq!((e.code, e.retryable), (Code::DB_REPLICATION, false), "{e}");
    assert!(e.message.contains("Duplicate entry") && begun.elapsed() < Duration::from_secs(20), "{e}");
    let e = s.run("shop_new", "promote", vec![fence]).await.unwrap_err();
    assert_eq!(e.code, Code::DB_REPLICATION, "{e}");
    assert_eq!(s.new.sql("SELECT @@read_only"), "1");
    let status = s.run("shop_new", "status", vec![]).await.unwrap();
    assert!(format!("{:?}", field(&status, "error")).contains("Duplicate entry"), "{status:?}");
    // Anew, over what is there.
    s.run("shop_old", "unfence", vec![]).await.unwrap();
    s.run("shop_new", "replicate_from", vec![handle("shop_old").into(), options(&[("replace", true.into())])]).await.unwrap();
    assert_eq!(s.new.sql(ORDERS), "twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn replication_is_stopped_goes_on_and_is_dropped() {
    let Some(s) = Site::new() else { return };
    for mode in ["gtid", "position"] {
        let with = || vec![handle("shop_old").into(), options(&[("mode", mode.into())])];
        s.run("shop_new", "replicate_from", with()).await.unwrap();
        assert_eq!(s.old.sql("SELECT COUNT(*) FROM mysql.user WHERE user LIKE '\\_runbook%'"), "1");
        s.run("shop_new", "stop_replication", vec![]).await.unwrap();
        assert_eq!(s.old.sql("SELECT COUNT(*) FROM mysql.user WHERE user LIKE '\\_runbook%'"), "0");
        s.old.sql(&format!("INSERT INTO shop.orders (item) VALUES ('while stopped, {mode}')"));
        s.run("shop_new", "replicate_from", with()).await.unwrap();
        let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
        s.run("shop_new", "wait_caught_up", vec![fence]).await.unwrap();
        assert_eq!(s.new.sql(ORDERS), s.old.sql(ORDERS));
        s.run("shop_old", "unfence", vec![]).await.unwrap();
        s.run("shop_new", "drop_copy", vec![]).await.unwrap();
        assert_eq!(s.new.sql("SHOW DATABASES LIKE 'shop'; SELECT @@read_only"), "0");
        assert_eq!(std::fs::read_dir(s.new.dir.path().join("conf.d")).unwrap().count(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_is_copied_and_not_twice() {
    let Some(mut s) = Site::new() else { return };
    s.set("shop_new", "database", "shop2");
    s.old.sql("INSERT INTO shop.orders (item) VALUES ('a'), ('b')");
    let copy = async || s.run("shop_new", "copy_from", vec![handle("shop_old").into()]).await.unwrap();
    assert_eq!(field(&copy().await, "rows"), &Value::Int(2));
    assert_eq!(s.new.sql("SELECT item FROM shop2.orders ORDER BY id"), "a\nb");
    assert_eq!(field(&copy().await, "changed"), &Value::Bool(false));
    s.old.sql("INSERT INTO shop.orders (item) VALUES ('c')");
    assert_eq!(field(&copy().await, "changed"), &Value::Bool(true));
    assert_eq!(s.new.sql("SELECT COUNT(*) FROM shop2.orders"), "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_of_servers_without_a_log_is_copied_anew_each_time() {
    let Some(s) = Site::with("skip-log-bin") else { return };
    s.old.sql("INSERT INTO shop.orders (item) VALUES ('a')");
    let copy = async || s.run("shop_new", "copy_from", vec![handle("shop_old").into()]).await.unwrap();
    for rows in ["1", "2"] {
        assert_eq!(field(&copy().await, "changed"), &Value::Bool(true));
        assert_eq!(s.new.sql("SELECT COUNT(*) FROM shop.orders"), rows);
        s.old.sql(&format!("INSERT INTO shop.orders (item) VALUES ('after {rows}')"));
    }
}
