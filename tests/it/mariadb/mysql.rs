//! MySQL's own dialect, on a MySQL server: 5.6, the one that can be had from a package registry. Its tools cannot, so that nothing is tried here
//! that begins with a dump.

use super::*;

const GTID: &str = "gtid-mode=ON\nenforce-gtid-consistency=1";

impl Site {
    fn mysql(extra: &str) -> Option<Site> {
        let hosts = [Sshd::start("")?, Sshd::start("")?];
        Site::of(hosts, "mysql", Mariadb::mysql(1, extra)?, Mariadb::mysql(2, extra)?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_is_asked_written_to_and_described() {
    let Some(s) = Site::mysql(GTID) else { return };
    let insert = "INSERT INTO orders (item) VALUES (?)";
    let done = s.run("shop_old", "execute", vec![insert.into(), Value::List(vec!["a".into()])]).await.unwrap();
    assert_eq!(field(&done, "rows"), &Value::Int(1));
    for ms in [1, 20, 60, 120] {
        let sql =
            format!("INSERT INTO orders (item) VALUES ('once {ms}'); SELECT SLEEP(0.1); INSERT INTO orders (item) VALUES ('twice {ms}')");
        s.run_cut("shop_old", "execute", vec![sql.into()], Some(Duration::from_millis(ms))).await.unwrap();
    }
    assert_eq!(s.old.sql("SELECT COUNT(*), COUNT(DISTINCT item) FROM shop.orders"), "9\t9");
    let rows = s.run("shop_old", "query", vec!["SELECT COUNT(*) AS n, CAST(1.50 AS DECIMAL(5,2)) AS d FROM orders".into()]).await.unwrap();
    let row = rows.as_list().unwrap()[0].as_map().unwrap();
    assert_eq!((&row["n"], &row["d"]), (&Value::Int(9), &"1.50".into()));
    let e = s.run("shop_old", "query", vec!["DELETE FROM orders".into()]).await.unwrap_err();
    assert_eq!((e.code, s.old.sql("SELECT COUNT(*) FROM shop.orders").as_str()), (Code::DB_QUERY, "9"));
    let facts = s.run("shop_old", "facts", vec![]).await.unwrap();
    assert_eq!((field(&facts, "flavour"), field(&facts, "tables").as_list().unwrap()), (&Value::from("mysql"), &["orders".into()][..]));
    assert!(field(&facts, "version").as_str().unwrap().starts_with("5.6."), "{facts:?}");
    assert!(field(&facts, "gtid").as_str().unwrap().contains(":1-"), "{facts:?}");
    let status = s.run("shop_old", "status", vec![]).await.unwrap();
    assert_eq!((field(&status, "role"), field(&status, "error")), (&"alone".into(), &Value::Unit), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_of_mysql_are_copied_with_their_passwords() {
    let Some(s) = Site::mysql("") else { return };
    s.old.sql(
        "CREATE USER clerk@'10.%' IDENTIFIED BY 'clerk-secret'; GRANT SELECT (id) ON shop.orders TO clerk@'10.%'; \
         GRANT RELOAD ON *.* TO clerk@'10.%' WITH GRANT OPTION; CREATE USER nobody@'%'",
    );
    s.new.sql(
        "CREATE DATABASE shop; CREATE TABLE shop.orders (id INT, item VARCHAR(80)); CREATE USER shop@localhost IDENTIFIED BY 'another'",
    );
    let copied = s.run("shop_new", "copy_accounts_from", vec![handle("shop_old").into()]).await.unwrap();
    assert_eq!(field(&copied, "changed").as_list().unwrap(), ["'shop'@'localhost'".into()], "{copied:?}");
    assert_eq!(field(&copied, "created").as_list().unwrap().len(), 2, "{copied:?}");
    for who in ["clerk@'10.%'", "nobody@'%'", "shop@localhost"] {
        let grants = format!("SHOW GRANTS FOR {who}");
        assert_eq!(s.new.sql(&grants), s.old.sql(&grants));
    }
    assert_eq!(s.new.sql_as("shop", "shop-secret", "SELECT COUNT(*) FROM shop.orders").unwrap(), "0");
    let again = s.run("shop_new", "copy_accounts_from", vec![handle("shop_old").into()]).await.unwrap();
    assert_eq!(field(&again, "equal").as_list().unwrap().len(), 3, "{again:?}");
    let all = s.run("shop_old", "accounts", vec![]).await.unwrap();
    assert!(!format!("{all:?}").contains('*') || !format!("{all:?}").contains("PASSWORD '"), "no hash is shown: {all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_on_mysql_are_fenced_and_two_of_them_compared() {
    let Some(s) = Site::mysql(GTID) else { return };
    let fill = "INSERT INTO shop.orders (item) VALUES ('a'), ('b'), ('c')";
    s.old.sql(fill);
    s.new.sql("CREATE DATABASE shop; CREATE TABLE shop.orders (id INT AUTO_INCREMENT PRIMARY KEY, item VARCHAR(80) NOT NULL UNIQUE) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4");
    s.new.sql(fill);
    let compare = async || s.run("shop_old", "compare", vec![handle("shop_new").into()]).await.unwrap();
    let equal = compare().await;
    assert_eq!(field(&equal, "equal"), &Value::Bool(true), "{equal:?}");
    s.new.sql("UPDATE shop.orders SET item = 'B' WHERE id = 2; DELETE FROM shop.orders WHERE id = 3");
    let differs = compare().await;
    let text = format!("{:?}", field(&differs, "differences"));
    assert!(field(&differs, "equal") == &Value::Bool(false) && text.contains("orders"), "{text}");

    let write = "INSERT INTO shop.orders (item) VALUES ('late')";
    // Who may write to a read-only server loses that while the fence is up, and gets it back.
    s.old.sql("CREATE USER admin@localhost IDENTIFIED BY 'admin-secret'; GRANT SUPER ON *.* TO admin@localhost; GRANT INSERT ON shop.* TO admin@localhost");
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    let e = s.old.sql_as("shop", "shop-secret", write).unwrap_err();
    assert!(e.contains("read-only") || e.contains("denied") || e.contains("read_only"), "{e}");
    assert_eq!((field(&fence, "proven"), s.old.sql("SELECT COUNT(*) FROM shop.orders").as_str()), (&Value::Bool(true), "3"));
    assert!(s.old.sql_as("admin", "admin-secret", write).is_err());
    s.run("shop_old", "unfence", vec![]).await.unwrap();
    s.old.sql_as("shop", "shop-secret", write).unwrap();
    assert!(s.old.sql("SHOW GRANTS FOR admin@localhost").contains("SUPER"));
}
