//! Queries, statements with their marker, facts, against a real server.

use std::collections::BTreeMap;
use std::time::Duration;

use runbook_core::{Code, Value};

use crate::support::postgres::Site;

fn list(items: Vec<Value>) -> Value {
    Value::List(items)
}

#[tokio::test(flavor = "multi_thread")]
async fn values_keep_their_types_both_ways() {
    let Some(s) = Site::start(false) else { return };
    let row = |v: Value| v.as_list().unwrap()[0].as_map().unwrap().clone();
    let sql = "SELECT true AS b, 7::smallint AS i2, 9007199254740993::bigint AS i8, 0.1::real AS f4, 'Infinity'::float8 AS f8, \
               12345678901234567890.123456789000::numeric AS n, '\\x00ff'::bytea AS y, 'ä''\\' AS t, NULL::int AS nil, \
               '2026-11-21 10:00:00.123456+02'::timestamptz AS tz, '2026-11-21 10:00:00.5'::timestamp AS ts, 'infinity'::timestamptz AS inf, \
               '1 mon 2 days'::interval AS iv, '6ba7b810-9dad-11d1-80b4-00c04fd430c8'::uuid AS u, '{\"a\": 1.50}'::jsonb AS j, \
               ARRAY[1,NULL,3] AS ai, ARRAY[1.50,NULL]::numeric[] AS an, ARRAY[['a','b'],['c','d']] AS at2, '192.0.2.0/24'::cidr AS net, \
               int4range(1,5) AS r, ROW(1,'x') AS rec";
    let r = row(s.run("shop_old", "query", vec![sql.into()]).await.unwrap());
    let text = |k: &str| r[k].as_str().unwrap_or_else(|| panic!("{k}: {:?}", r[k])).to_string();
    assert_eq!((&r["b"], &r["i2"], &r["i8"]), (&Value::Bool(true), &Value::Int(7), &Value::Int(9_007_199_254_740_993)));
    assert_eq!((&r["f4"], &r["f8"], &r["nil"]), (&Value::Float(0.1), &Value::Float(f64::INFINITY), &Value::Unit));
    assert_eq!(text("n"), "12345678901234567890.123456789000");
    assert_eq!((&r["y"], text("t").as_str()), (&Value::Blob(vec![0, 255]), "ä'\\"));
    assert_eq!(r["tz"], Value::Time("2026-11-21T08:00:00.123456Z".parse().unwrap()));
    assert_eq!((text("ts").as_str(), text("inf").as_str(), text("iv").as_str()), ("2026-11-21 10:00:00.5", "infinity", "P1M2D"));
    assert_eq!((text("u").as_str(), text("j").as_str()), ("6ba7b810-9dad-11d1-80b4-00c04fd430c8", "{\"a\": 1.50}"));
    assert_eq!(r["ai"], list(vec![Value::Int(1), Value::Unit, Value::Int(3)]));
    assert_eq!(r["an"], list(vec!["1.50".into(), Value::Unit]));
    assert_eq!(r["at2"], list(vec![list(vec!["a".into(), "b".into()]), list(vec!["c".into(), "d".into()])]));
    assert_eq!((text("net").as_str(), text("r").as_str(), text("rec").as_str()), ("192.0.2.0/24", "[1,5)", "(1,x)"));

    // And back: what was read goes in as parameters, and comes out the same.
    s.run(
        "shop_old",
        "execute",
        vec![
            "CREATE TABLE v (n numeric, y bytea, t text, tz timestamptz, u uuid, j jsonb, ai int[], at2 text[], iv interval, nil int)"
                .into(),
        ],
    )
    .await
    .unwrap();
    let names = ["n", "y", "t", "tz", "u", "j", "ai", "at2", "iv", "nil"];
    let values: Vec<Value> = names.iter().map(|k| r[*k].clone()).collect();
    let done = s.run("shop_old", "execute", vec!["INSERT INTO v VALUES (?,?,?,?,?,?,?,?,?,?) -- ?".into(), list(values)]).await.unwrap();
    assert_eq!(done.as_record().unwrap().get("rows"), &Value::Int(1));
    let map = Value::Map(BTreeMap::from([("n".to_string(), r["n"].clone())]));
    let back = row(s.run("shop_old", "query", vec!["SELECT * FROM v WHERE n = :n::numeric AND t <> ':n'".into(), map]).await.unwrap());
    for k in names {
        assert_eq!(back[k], r[k], "{k}");
    }
    // Statements that are no SELECT.
    let shown = row(s.run("shop_old", "query", vec!["SHOW server_encoding".into()]).await.unwrap());
    assert_eq!(shown["server_encoding"].as_str(), Some("UTF8"));
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_and_checksums_tell_what_is_in_the_tables() {
    let Some(s) = Site::start(false) else { return };
    let of = async |name: &'static str| s.run("shop_old", name, vec![]).await.unwrap().as_map().unwrap().clone();
    s.old.sql("shop", "INSERT INTO orders (item) VALUES ('a'), ('b'); CREATE SCHEMA more; CREATE TABLE more.x (n int)");
    assert_eq!(of("counts").await, BTreeMap::from([("orders".to_string(), Value::Int(2)), ("more.x".to_string(), Value::Int(0))]));
    let sums = of("checksums").await;
    assert_eq!(sums.keys().collect::<Vec<_>>(), ["more.x", "orders"]);
    s.old.sql("shop", "UPDATE orders SET item = 'c' WHERE item = 'b'");
    let changed = of("checksums").await;
    assert!(changed["orders"] != sums["orders"] && changed["more.x"] == sums["more.x"], "{sums:?} {changed:?}");
    // The rows as they were, in another order.
    s.old.sql(
        "shop",
        "UPDATE orders SET item = 'b' WHERE item = 'c'; CLUSTER orders USING orders_pkey; UPDATE orders SET item = item WHERE item = 'a'",
    );
    assert_eq!(of("checksums").await, sums);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_only_reads_and_what_goes_wrong_is_said() {
    let Some(s) = Site::start(false) else { return };
    let fails = async |name: &'static str, sql: &str| s.run("shop_old", name, vec![sql.into()]).await.unwrap_err();
    let e = fails("query", "INSERT INTO orders (item) VALUES ('x')").await;
    assert_eq!((e.code, e.details["sqlstate"].as_str()), (Code::DB_QUERY, "25006"));
    let e = fails("query", "SELECT 1; SELECT 2").await;
    assert!(e.message.contains("multiple commands"), "{e}");
    let e = fails("query", "SELECT nope FROM orders").await;
    assert!(e.message.contains("nope") && e.host.as_deref() == Some("old"), "{e}");
    let e = fails("query", "SELECT repeat('x', 3000000)").await;
    assert!(e.message.contains("larger than"), "{e}");
    for (sql, named) in [("COMMIT", "COMMIT"), ("INSERT INTO orders (item) VALUES ('a'); /* c */ rollback; SELECT 1", "ROLLBACK")] {
        let e = fails("execute", sql).await;
        assert!(e.message.starts_with(named), "{e}");
    }
    let e = fails("execute", "VACUUM").await;
    assert!(e.message.contains("VACUUM") && e.hint.unwrap().contains("transaction"), "{}", e.message);
    let e = s.run("shop_old", "execute", vec!["INSERT INTO orders (item) VALUES (?)".into(), list(vec![])]).await.unwrap_err();
    assert_eq!(e.message, "the statement has 1 parameters and 0 values are given");
    assert_eq!(s.old.sql("shop", "SELECT count(*) FROM orders"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_take_effect_once_however_often_the_controller_dies() {
    let Some(s) = Site::start(false) else { return };
    let sql = "INSERT INTO orders (item) VALUES ('once'); SELECT pg_sleep(0.15); INSERT INTO orders (item) VALUES ('once')";
    for ms in [1, 20, 60, 90, 120, 150, 180, 210, 240, 270, 300, 400] {
        let before: i64 = s.old.sql("shop", "SELECT count(*) FROM orders").parse().unwrap();
        s.run_cut("shop_old", "execute", vec![sql.into()], Some(Duration::from_millis(ms))).await.unwrap();
        let after: i64 = s.old.sql("shop", "SELECT count(*) FROM orders").parse().unwrap();
        assert_eq!(after - before, 2, "cut after {ms} ms");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_by_password_and_what_is_said_when_they_fail() {
    let Some(mut s) = Site::start(false) else { return };
    let db = s.env.resources.get_mut(&runbook_core::inventory::Section::Databases).unwrap().get_mut("shop_old").unwrap();
    for (k, v) in [("user", Value::from("app")), ("password", "app".into()), ("sudo", false.into()), ("address", "127.0.0.1".into())] {
        db.settings.insert(k.into(), v);
    }
    db.settings.remove("socket");
    let who = s.run("shop_old", "query", vec!["SELECT current_user::text AS u".into()]).await.unwrap();
    assert_eq!(who.as_list().unwrap()[0].as_map().unwrap()["u"].as_str(), Some("app"));
    let facts = s.run("shop_old", "facts", vec![]).await.unwrap();
    let f = facts.as_record().unwrap();
    assert!(f.str("version").starts_with("15.") && f.str("encoding") == "UTF8", "{facts:?}");
    assert_eq!((f.get("is_in_recovery"), f.str("owner")), (&Value::Bool(false), "app"));
    assert_eq!(f.get("tables").as_list().unwrap(), ["orders".into()]);
    let orders = &f.get("sizes").as_map().unwrap()["orders"];
    assert!(matches!((orders, f.get("bytes")), (Value::Bytes(one @ 8192..), Value::Bytes(all)) if one < all), "{facts:?}");
    assert!(f.get("accounts").as_list().unwrap().contains(&"app".into()), "{facts:?}");
    assert!(f.get("grants").as_list().unwrap().iter().any(|g| g.as_str() == Some("app=CTc/app")), "{facts:?}");
    assert_eq!((&f.get("extensions").as_map().unwrap()["plpgsql"], f.get("page_size")), (&"1.0".into(), &Value::Int(8192)));
    let e = s.run("shop_old", "fence", vec![]).await.unwrap_err();
    assert!(e.code == Code::DB_FENCE && e.message.contains("app is no super-user"), "{e}");
    s.world.secrets.lock().insert("app".into(), "wrong pass".into());
    let e = s.run("shop_old", "query", vec!["SELECT 1".into()]).await.unwrap_err();
    assert_eq!((e.code, e.details["sqlstate"].as_str()), (Code::DB_LOGIN, "28P01"));
    assert!(!format!("{e:?}").contains("wrong pass"));
    s.env
        .resources
        .get_mut(&runbook_core::inventory::Section::Databases)
        .unwrap()
        .get_mut("shop_old")
        .unwrap()
        .settings
        .insert("port".into(), Value::Int(1));
    let e = s.run("shop_old", "query", vec!["SELECT 1".into()]).await.unwrap_err();
    assert_eq!((e.code, e.details["reason"].as_str()), (Code::SSH_SOCKET, "refused"), "{e:?}");
}
