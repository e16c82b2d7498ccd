//! A large database under constant writes, moved and moved back. Only with `RUNBOOK_TEST_ALL=1`; `RUNBOOK_TEST_MIB` says how large (2048
//! unless given). It is on the disk, in a folder of the test's own, and wants five times its size there.

use std::time::Instant;

use runbook_core::Value;

use super::switch::{Shop, all_there, db};
use crate::support::postgres::Site;

#[tokio::test(flavor = "multi_thread")]
async fn a_large_database_moves_and_moves_back_under_writes() {
    if std::env::var_os("RUNBOOK_TEST_ALL").is_none() {
        eprintln!("skipped: a large database is moved only with RUNBOOK_TEST_ALL=1");
        return;
    }
    let mib: u64 = std::env::var("RUNBOOK_TEST_MIB").ok().and_then(|n| n.parse().ok()).unwrap_or(2048);
    let Some(s) = Site::start(true) else { return };
    s.allow_replication();
    let began = Instant::now();
    // A row takes about 1,060 bytes with its share of the key.
    let rows = mib * (1 << 20) / 1060;
    s.old.sql("shop", "CREATE TABLE bulk (id bigint PRIMARY KEY, body text NOT NULL)");
    let part = rows / 8;
    for i in 0..8 {
        s.old.sql(
            "shop",
            &format!("INSERT INTO bulk SELECT i, repeat(md5(i::text), 31) FROM generate_series({}, {}) i", i * part + 1, (i + 1) * part),
        );
    }
    let size: u64 = s.old.sql("shop", "SELECT pg_database_size('shop')").parse().unwrap();
    eprintln!("{} MiB, {} rows, made in {:.1?}", size >> 20, part * 8, began.elapsed());
    let digest =
        |c: &crate::support::postgres::Cluster| c.sql("shop", "SELECT count(*), sum(hashtextextended(body, id)::numeric) FROM bulk");
    let was = digest(&s.old);

    let shop = Shop::open(&s);
    shop.some_orders().await;
    let began = Instant::now();
    s.run("shop_new", "replicate_from", vec![db("shop_old")]).await.unwrap();
    let replicated = began.elapsed();
    let during = shop.taken.lock().len();
    let began = Instant::now();
    let c = s.run("shop_old", "compare", vec![db("shop_new")]).await.unwrap();
    assert_eq!(c.as_record().unwrap().get("equal"), &Value::Bool(true), "{c:?}");
    let compared = began.elapsed();
    shop.some_orders().await;

    let began = Instant::now();
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    let fenced = began.elapsed();
    s.run("shop_new", "wait_caught_up", vec![fence.clone()]).await.unwrap();
    let caught = began.elapsed();
    s.run("shop_new", "promote", vec![fence]).await.unwrap();
    let promoted = began.elapsed();
    shop.some_orders().await;
    let gap = shop.longest_gap();
    assert_eq!(digest(&s.new), was);

    let began = Instant::now();
    s.run("shop_new", "demote", vec![db("shop_old")]).await.unwrap();
    let demoted = began.elapsed();
    s.run("shop_old", "unfence", vec![]).await.unwrap();
    shop.some_orders().await;
    let taken = shop.close().await;
    all_there(&s.old, &taken);
    assert_eq!(digest(&s.old), was);
    eprintln!(
        "replicated in {replicated:.1?} while {during} orders came; compared in {compared:.1?}; fenced {fenced:.0?}, caught up {caught:.0?}, promoted {promoted:.0?} \
         (longest time without an order {gap:.0?}); demoted in {demoted:.1?}; {} orders, none lost or doubled",
        taken.len()
    );
}
