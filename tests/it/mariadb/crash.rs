//! A controller that dies anywhere.

use super::*;
use crate::support::dumps::Carried;
use crate::support::wires::Wires;

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_dies_anywhere_loses_no_order() {
    for round in 0..4u64 {
        let Some(s) = Site::new() else { return };
        let n = std::cell::Cell::new(0u64);
        let cut = || {
            n.set(n.get() + 1);
            Some(Duration::from_millis(30 + (round * 97 + n.get() * 41) % 420))
        };
        cutover(&s, true, &cut).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_whose_connections_are_reset_at_random_loses_and_doubles_no_order() {
    let Some(mut s) = Site::new() else { return };
    let wires = Wires::lay(&mut s).await;
    s.replicate().await;
    let mut writer = s.writer();
    wires
        .switch_there_and_back(&s, async |new_side| {
            writer.new_side.store(new_side, Ordering::Relaxed);
            writer.some().await;
        })
        .await;
    writer.close();
    let n = writer.settle(&s.old.sql(ORDERS));
    println!("{n} orders, none lost, none doubled");
    s.level().await;
}

/// To the new side and back on one site, each of the two killed after that time. How long they took.
async fn there_and_back(s: &Site, n: usize, cut: [Option<Duration>; 2]) -> [Duration; 2] {
    let order = |m: &Mariadb, what: &str| {
        m.sql_as("shop", "shop-secret", &format!("INSERT INTO shop.orders (item) VALUES ('{n} {what}')")).map(|_| ())
    };
    order(&s.old, "before").unwrap();
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    s.run("shop_new", "wait_caught_up", vec![fence.clone()]).await.unwrap();
    let began = std::time::Instant::now();
    s.run_cut("shop_new", "promote", vec![fence], cut[0]).await.unwrap_or_else(|e| panic!("promote, killed after {:?}: {e:?}", cut[0]));
    let promote = began.elapsed();
    order(&s.new, "there").unwrap();
    assert!(order(&s.old, "nowhere").is_err(), "both sides take orders after {cut:?}");
    let began = std::time::Instant::now();
    s.run_cut("shop_new", "demote", vec![handle("shop_old").into()], cut[1])
        .await
        .unwrap_or_else(|e| panic!("demote, killed after {:?}: {e:?}", cut[1]));
    let demote = began.elapsed();
    assert!(order(&s.new, "nowhere").is_err() && order(&s.old, "nowhere").is_err(), "a side takes orders after {cut:?}");
    s.run("shop_old", "unfence", vec![]).await.unwrap();
    order(&s.old, "back").unwrap();
    assert!(order(&s.new, "nowhere").is_err());
    let want = s.old.sql(ORDERS);
    for kind in ["before", "there", "back"] {
        assert!(want.lines().any(|l| l == format!("{n} {kind}")), "{kind} of {n} is lost after {cut:?}");
    }
    for _ in 0..500 {
        if s.new.sql(ORDERS) == want {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(s.new.sql(ORDERS), want, "after {cut:?}");
    [promote, demote]
}

#[tokio::test(flavor = "multi_thread")]
async fn promote_and_demote_may_be_killed_at_any_moment() {
    let Some(s) = Site::new() else { return };
    s.replicate().await;
    let never = Some(Duration::from_secs(600));
    let whole = there_and_back(&s, 0, [never, never]).await;
    let longest = whole.iter().max().unwrap().as_millis();
    // Steps of 4 ms over the whole of the longer; eight of them unless all are wanted.
    let steps = usize::try_from(longest / 4 + 4).unwrap();
    let taken: Vec<usize> =
        if std::env::var_os("RUNBOOK_TEST_ALL").is_some() { (0..steps).collect() } else { (0..8).map(|i| i * steps / 8 + i % 3).collect() };
    for (n, step) in taken.iter().enumerate() {
        let cut = Some(Duration::from_millis(*step as u64 * 4));
        there_and_back(&s, n + 1, [cut, cut]).await;
    }
    println!("promote takes {:?}, demote {:?}; each killed {} times, in steps of 4 ms: no order lost", whole[0], whole[1], taken.len());
}
