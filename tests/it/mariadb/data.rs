//! Queries, marked statements, facts, accounts.

use runbook_core::primitive::Reconciled;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn values_keep_their_types_both_ways() {
    let Some(s) = Site::new() else { return };
    s.old.sql(
        "CREATE TABLE shop.kinds (id BIGINT UNSIGNED PRIMARY KEY, d DECIMAL(20,4), f FLOAT, g DOUBLE, at DATETIME(3), ts TIMESTAMP(6) NULL, day DATE, t TIME, y YEAR, \
         b BLOB, v VARBINARY(8), txt TEXT CHARACTER SET utf8mb4, e ENUM('x','y'), bits BIT(10), j JSON, n INT, u UUID)",
    );
    let sql = "INSERT INTO kinds VALUES (:id, :d, :f, :g, :at, :ts, :day, :t, 2026, :b, :v, :txt, 'y', b'1000000001', '{\"a\":1}', NULL, '123e4567-e89b-12d3-a456-426655440000')";
    let moment: Value = Value::Time("2026-11-21T10:11:12.345678Z".parse().unwrap());
    let params = options(&[
        ("id", "18446744073709551615".into()),
        ("d", "-12345678901234.5600".into()),
        ("f", Value::Float(0.1)),
        ("g", Value::Float(1e300)),
        ("at", "2026-11-21 01:02:03.450".into()),
        ("ts", moment.clone()),
        ("day", "2026-02-28".into()),
        ("t", "-26:03:04".into()),
        ("b", Value::Blob(vec![0, 255, 39])),
        ("v", Value::Blob(vec![1, 0])),
        ("txt", "it's \"é\" \\ 😀".into()),
    ]);
    s.run("shop_old", "execute", vec![sql.into(), params]).await.unwrap();
    let rows = s.run("shop_old", "query", vec!["SELECT *, @@time_zone AS tz FROM kinds".into()]).await.unwrap();
    let row = rows.as_list().unwrap()[0].as_map().unwrap().clone();
    for (column, want) in [
        ("id", Value::from("18446744073709551615")),
        ("d", "-12345678901234.5600".into()),
        ("f", Value::Float(0.1)),
        ("g", Value::Float(1e300)),
        ("at", "2026-11-21 01:02:03.450".into()),
        ("ts", moment),
        ("day", "2026-02-28".into()),
        ("t", "-26:03:04".into()),
        ("y", Value::Int(2026)),
        ("b", Value::Blob(vec![0, 255, 39])),
        ("v", Value::Blob(vec![1, 0])),
        ("txt", "it's \"é\" \\ 😀".into()),
        ("e", "y".into()),
        ("bits", Value::Int(513)),
        ("j", "{\"a\":1}".into()),
        ("n", Value::Unit),
        ("u", "123e4567-e89b-12d3-a456-426655440000".into()),
    ] {
        assert_eq!(row[column], want, "{column}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_happen_once_and_what_commits_by_itself_is_refused() {
    let Some(s) = Site::new() else { return };
    let execute = s.registry.primitives.get(&(Some("Database"), "execute")).unwrap();
    let cx = s.cx();
    let call = execute
        .spec()
        .bind(Some(handle("shop_old")), vec!["INSERT INTO orders (item) VALUES ('a'); UPDATE orders SET item = 'b'".into()])
        .unwrap();
    assert!(matches!(execute.reconcile(&cx, &call).await.unwrap(), Reconciled::NotStarted));
    let first = execute.act(&cx, &call).await.unwrap();
    assert_eq!((field(&first.value, "rows"), field(&first.value, "last_id")), (&Value::Int(2), &Value::Int(1)));
    assert_eq!(execute.act(&cx, &call).await.unwrap(), first, "once");
    assert!(matches!(execute.reconcile(&cx, &call).await.unwrap(), Reconciled::Done(o) if o == first));
    assert_eq!(s.old.sql(ORDERS), "b");
    for sql in ["CREATE TABLE x (i INT)", "INSERT INTO orders (item) VALUES ('c'); COMMIT", "TRUNCATE orders"] {
        let e = s.run("shop_old", "execute", vec![sql.into()]).await.unwrap_err();
        assert!(e.code == Code::DB_QUERY && e.message.contains("ends or commits"), "{e}");
    }
    // Half of it fails: nothing of it happens, and no marker is left.
    let e = s
        .run("shop_old", "execute", vec!["INSERT INTO orders (item) VALUES ('d'); INSERT INTO orders (item) VALUES ('d')".into()])
        .await
        .unwrap_err();
    assert!(e.message.contains("Duplicate entry"), "{e}");
    assert_eq!(s.old.sql("SELECT COUNT(*) FROM shop._runbook_actions"), "1");
    for sql in ["DELETE FROM orders", "SELECT 1; DELETE FROM orders", "SET GLOBAL read_only = 1"] {
        let e = s.run("shop_old", "query", vec![sql.into()]).await.unwrap_err();
        assert_eq!((e.code, s.old.sql(ORDERS).as_str()), (Code::DB_QUERY, "b"), "{sql}");
    }
    assert_eq!(s.run("shop_old", "counts", vec![]).await.unwrap().as_map().unwrap()["orders"], Value::Int(1));
    let sums = s.run("shop_old", "checksums", vec![]).await.unwrap();
    s.old.sql("UPDATE shop.orders SET item = 'c'");
    assert_ne!(s.run("shop_old", "checksums", vec![]).await.unwrap(), sums, "one value was changed");
    s.old.sql("UPDATE shop.orders SET item = 'b'");
    assert_eq!(s.run("shop_old", "checksums", vec![]).await.unwrap(), sums, "and changed back");
    let facts = s.run("shop_old", "facts", vec![]).await.unwrap();
    assert_eq!((field(&facts, "flavour"), field(&facts, "fence")), (&Value::from("mariadb"), &Value::Unit));
    assert_eq!(field(&facts, "tables").as_list().unwrap(), ["orders".into()]);
    let sizes = field(&facts, "sizes").as_map().unwrap();
    assert_eq!((sizes.len(), &sizes["orders"]), (1, field(&facts, "bytes")), "a page of 16 KiB at least: {facts:?}");
    assert!(matches!(sizes["orders"], Value::Bytes(16384..)), "{facts:?}");
    assert_eq!(field(&facts, "engines").as_map().unwrap(), &[("InnoDB".to_string(), Value::Int(1))].into());
    s.old.sql("CREATE USER clerk@'%'; GRANT SELECT, INSERT ON shop.* TO clerk@'%'; GRANT SELECT ON mysql.* TO clerk@'%'");
    let facts = s.run("shop_old", "facts", vec![]).await.unwrap();
    assert!(field(&facts, "grants").as_list().unwrap().contains(&"'clerk'@'%' shop INSERT, SELECT".into()), "{facts:?}");
    assert!(field(&facts, "accounts").as_list().unwrap().contains(&"'clerk'@'%'".into()), "{facts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_and_a_server_that_is_not_there_are_told_apart() {
    let Some(mut s) = Site::new() else { return };
    s.set("shop_old", "user", "shop");
    let e = s.run("shop_old", "counts", vec![]).await.unwrap_err();
    assert_eq!((e.code, e.retryable), (Code::DB_LOGIN, false), "{e}");
    assert!(e.message.contains("Access denied for user 'shop'@'localhost'"), "{e}");
    s.set("shop_old", "socket", "/nowhere/sock");
    let e = s.run("shop_old", "counts", vec![]).await.unwrap_err();
    assert_eq!(e.code, Code::DB_CONNECT, "{e}");
    s.set("shop_new", "kind", "x");
    s.env.resources.get_mut(&Section::Databases).unwrap().get_mut("shop_new").unwrap().kind = "mysql".into();
    let e = s.run("shop_new", "counts", vec![]).await.unwrap_err();
    assert_eq!((e.code, e.hint.as_deref()), (Code::INVENTORY_TYPE, Some("write kind = \"mariadb\"")), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_copied_with_their_passwords_and_grants() {
    let Some(s) = Site::new() else { return };
    s.old.sql(
        "CREATE ROLE clerk; GRANT SELECT ON shop.* TO clerk; CREATE USER 'a b'@'10.%' IDENTIFIED BY 'other-secret' REQUIRE SSL; GRANT clerk TO 'a b'@'10.%'; \
         GRANT ALL ON *.* TO 'admin'@'%' IDENTIFIED BY 'admin-secret' WITH GRANT OPTION",
    );
    s.new.sql("CREATE USER mine@localhost; CREATE USER shop@localhost IDENTIFIED BY 'wrong'; GRANT ALL ON *.* TO shop@localhost");
    let names = |v: &Value| -> Vec<String> {
        v.as_list()
            .unwrap()
            .iter()
            .map(|a| a.as_str().map_or_else(|| field(a, "name").as_str().unwrap().to_string(), str::to_string))
            .collect()
    };
    let found = s.run("shop_old", "accounts", vec![]).await.unwrap();
    assert_eq!(names(&found), ["'a b'@'10.%'", "'admin'@'%'", "'clerk'", "'shop'@'localhost'"]);
    let shown = format!("{found:?}");
    assert!(!shown.contains("IDENTIFIED") && !shown.contains('*'.to_string().as_str().repeat(2).as_str()), "{shown}");
    let done = s.run("shop_new", "copy_accounts_from", vec![handle("shop_old").into()]).await.unwrap();
    assert_eq!(names(field(&done, "created")), ["'clerk'", "'a b'@'10.%'", "'admin'@'%'"]);
    assert_eq!(names(field(&done, "changed")), ["'shop'@'localhost'"]);
    s.new.sql("CREATE DATABASE shop; CREATE TABLE shop.t (i INT)");
    assert!(s.new.sql_as("shop", "shop-secret", "INSERT INTO shop.t VALUES (1)").is_ok());
    assert!(s.new.sql_as("shop", "shop-secret", "CREATE TABLE shop.u (i INT)").is_err(), "what it had too much is gone");
    for who in ["'a b'@'10.%'", "clerk", "admin", "shop@localhost"] {
        assert_eq!(s.new.sql(&format!("SHOW GRANTS FOR {who}")), s.old.sql(&format!("SHOW GRANTS FOR {who}")));
    }
    let again = s.run("shop_new", "copy_accounts_from", vec![handle("shop_old").into()]).await.unwrap();
    assert_eq!(names(field(&again, "equal")).len(), 4, "{again:?}");
    assert_eq!(s.new.sql("SELECT COUNT(*) FROM mysql.user WHERE user = 'mine'"), "1");
}
