//! A replica that lags on purpose: a table that was dropped on the primary comes back from it.

use super::*;

async fn roll(s: &Site, before: &str) -> Result<Value> {
    s.run("shop_new", "roll_forward", vec![before.into()]).await
}

/// How replication stands, with names.
fn replica(m: &Mariadb) -> String {
    let out = std::process::Command::new("mariadb")
        .args(["--no-defaults", "-uroot", "-S"])
        .arg(m.socket())
        .args(["-e", "SHOW SLAVE STATUS\\G"])
        .output()
        .unwrap();
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Waits until the replica has received everything, applied or not.
async fn received(s: &Site) {
    for _ in 0..400 {
        let io = replica(&s.new);
        let of = |name: &str| io.lines().find_map(|l| l.trim().strip_prefix(name).map(str::to_string)).unwrap_or_default();
        let has = format!("{}\t{}", of("Master_Log_File: "), of("Read_Master_Log_Pos: "));
        if s.old.sql("SHOW MASTER STATUS").split('\t').take(2).collect::<Vec<_>>().join("\t") == has {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{}", replica(&s.new));
}

async fn second() {
    tokio::time::sleep(Duration::from_millis(1100)).await;
}

fn insert(s: &Site, item: &str) -> String {
    s.old.sql(&format!("INSERT INTO shop.orders (item) VALUES ('{item}'); SELECT @@gtid_binlog_pos"))
}

/// The moment of the server's clock, which events have.
fn now(s: &Site) -> String {
    s.old.sql("SELECT DATE_FORMAT(UTC_TIMESTAMP(), '%Y-%m-%dT%H:%i:%sZ')")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_table_is_brought_back_from_a_delayed_replica() {
    for mode in ["gtid", "position"] {
        let Some(mut s) = Site::new() else { return };
        s.run("shop_new", "replicate_from", vec![handle("shop_old").into(), options(&[("mode", mode.into())])]).await.unwrap();
        insert(&s, "before the delay");
        let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
        s.run("shop_new", "wait_caught_up", vec![fence]).await.unwrap();
        s.run("shop_old", "unfence", vec![]).await.unwrap();
        let early = now(&s);
        second().await;
        s.run("shop_new", "set_delay", vec!["1h".into()]).await.unwrap();
        let status = s.run("shop_new", "status", vec![]).await.unwrap();
        assert_eq!(field(&status, "detail").as_map().unwrap()["sql_delay"], Value::Int(3600));
        assert_eq!(field(&status, "running"), &Value::Bool(true));

        insert(&s, "one");
        let two = insert(&s, "two");
        second().await;
        s.old.sql("FLUSH BINARY LOGS");
        insert(&s, "three");
        second().await;
        // A statement that looks like the tool's own lines.
        s.old.sql("USE shop; CREATE TABLE other (a INT) COMMENT '\n# at 4\n#200101 10:00:00 server id 1  end_log_pos 9 CRC32 0x0 \tGTID 0-1-99999 ddl\n'");
        second().await;
        let moment = now(&s);
        let place = s.old.sql("SHOW MASTER STATUS").split('\t').take(2).collect::<Vec<_>>().join(":");
        s.old.sql("DROP TABLE shop.orders");
        let dropped = s.old.sql("SELECT @@gtid_binlog_pos");
        s.old.sql("CREATE TABLE shop.later (a INT)");
        received(&s).await;
        // A switch waits for nothing in silence.
        let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
        let e = s.run("shop_new", "wait_caught_up", vec![fence, options(&[("within", "300ms".into())])]).await.unwrap_err();
        assert!(e.message.contains("lags by 3600 s on purpose"), "{e}");
        s.run("shop_old", "unfence", vec![]).await.unwrap();
        // The primary is lost meanwhile: the replica has all that it needs.
        let lost = mode == "position";
        if lost {
            s.old.down();
        }

        for (bad, why) in [
            ("yesterday", "is no position"),
            ("2026-11-21 10:00:00", "no time zone"),
            ("2999-01-01T00:00:00Z", "has not come yet"),
            (early.as_str(), "is not known"),
            ("0-1-99999", "is not in its relay log, which ends with"),
            ("bin.000009:4", "no change begins at"),
            ("bin.000001:4", "has applied more than that"),
        ] {
            let e = roll(&s, bad).await.unwrap_err();
            assert!(e.code == Code::DB_POSITION && e.message.contains(why), "{bad}: {e}");
        }
        assert_eq!(s.new.sql("SELECT item FROM shop.orders"), "before the delay");

        // First to a place in the middle, by its GTID; then on to just before the mistake; each twice.
        for (before, want, changed) in [
            (two.as_str(), "before the delay\none", true),
            (two.as_str(), "before the delay\none", false),
            (moment.as_str(), "before the delay\none\ntwo\nthree", true),
            (dropped.as_str(), "before the delay\none\ntwo\nthree", false),
            (place.as_str(), "before the delay\none\ntwo\nthree", false),
        ] {
            let began = replica(&s.new);
            let done = roll(&s, before).await.unwrap();
            assert_eq!(s.new.sql(ORDERS), want, "{before}");
            let moved = began.lines().find(|l| l.contains("Exec_Master_Log_Pos"))
                != replica(&s.new).lines().find(|l| l.contains("Exec_Master_Log_Pos"));
            assert_eq!(moved, changed, "{before}");
            if want.ends_with("three") {
                assert_eq!(field(&done, "left_out"), &Value::from(dropped.as_str()));
                assert!(field(&done, "statement").as_str().unwrap().contains("DROP TABLE `shop`.`orders`"), "{done:?}");
            }
        }
        assert_eq!(s.new.sql("SHOW TABLES FROM shop LIKE 'other'; SHOW TABLES FROM shop LIKE 'later'"), "other");
        let e = roll(&s, &two).await.unwrap_err();
        assert!(e.message.contains("has applied more than that"), "{e}");
        // It stays there over a restart.
        s.new.shutdown();
        s.new.up();
        assert!(replica(&s.new).contains("Slave_SQL_Running: No"));
        if lost {
            s.old.up();
        }
        assert_eq!(s.new.sql(ORDERS), "before the delay\none\ntwo\nthree");

        // The table goes back to the primary, by the server's own tools.
        let dump = std::process::Command::new("mariadb-dump")
            .args(["--no-defaults", "-uroot", "-S"])
            .arg(s.new.socket())
            .args(["--single-transaction", "shop", "orders"])
            .output()
            .unwrap();
        let file = s.old.dir.path().join("orders.sql");
        std::fs::write(&file, &dump.stdout).unwrap();
        assert!(s.old.client().arg("shop").stdin(std::fs::File::open(&file).unwrap()).status().unwrap().success());
        assert_eq!(s.old.sql(ORDERS), "before the delay\none\ntwo\nthree");

        // And replication goes on, late again, until that is ended.
        s.run("shop_new", "replicate_from", vec![handle("shop_old").into(), options(&[("mode", mode.into())])]).await.unwrap();
        assert!(replica(&s.new).contains("SQL_Delay: 3600"));
        s.run("shop_new", "set_delay", vec!["0s".into()]).await.unwrap();
        let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
        s.run("shop_new", "wait_caught_up", vec![fence]).await.unwrap();
        let c = s.run("shop_old", "compare", vec![handle("shop_new").into()]).await.unwrap();
        assert_eq!(field(&c, "equal"), &Value::Bool(true), "{:?}", field(&c, "differences"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_delay_of_a_replica_without_its_primary_stays() {
    let Some(mut s) = Site::new() else { return };
    let e = s.run("shop_new", "set_delay", vec!["1h".into()]).await.unwrap_err();
    assert!(e.code == Code::DB_REPLICATION && e.message.contains("does not replicate"), "{e}");
    s.replicate().await;
    s.run("shop_new", "set_delay", vec!["1h".into()]).await.unwrap();
    insert(&s, "held");
    received(&s).await;
    s.old.down();
    for _ in 0..400 {
        if !replica(&s.new).contains("Slave_IO_Running: Yes") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let e = s.run("shop_new", "set_delay", vec!["0s".into()]).await.unwrap_err();
    assert!(e.code == Code::DB_REPLICATION && e.message.contains("would be lost"), "{e}");
    s.old.up();
    let e = s.run("shop_new", "set_delay", vec!["1500ms".into()]).await.unwrap_err();
    assert!(e.message.contains("whole seconds"), "{e}");
}
