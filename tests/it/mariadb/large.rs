//! A large server under constant writes: only with RUNBOOK_TEST_ALL=1. RUNBOOK_TEST_BYTES says how large; 2 GiB unless given.

use std::time::Instant;

use super::*;

fn megabytes(bytes: u64, since: Instant) -> String {
    let s = since.elapsed().as_secs_f64();
    format!("{s:.1} s ({:.0} MB/s)", bytes as f64 / 1e6 / s)
}

/// The most memory that this process, which is the controller too, has had.
fn peak() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    text.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_server_is_moved_and_taken_back_under_constant_writes_and_compared() {
    if std::env::var_os("RUNBOOK_TEST_ALL").is_none() {
        eprintln!("skipped: takes minutes and 12 GB of disk; RUNBOOK_TEST_ALL=1 runs it");
        return;
    }
    let bytes: u64 = std::env::var("RUNBOOK_TEST_BYTES").map_or(2 << 30, |b| b.parse().expect("a number of bytes"));
    let free = std::process::Command::new("df").args(["-B1", "--output=avail", "/tmp"]).output().unwrap();
    let free: u64 = String::from_utf8_lossy(&free.stdout).lines().last().unwrap().trim().parse().unwrap();
    assert!(free > bytes * 6, "{free} bytes are free in /tmp, {} are needed", bytes * 6);
    let Some(s) =
        Site::with("innodb-buffer-pool-size=512M\ninnodb-log-file-size=256M\ninnodb-doublewrite=0\nskip-innodb-adaptive-hash-index")
    else {
        return;
    };

    // Eight tables of rows of about 1 KiB.
    let (begun, rows) = (Instant::now(), bytes / 8 / 1060);
    for t in 1..=8 {
        s.old.sql(&format!("CREATE TABLE shop.big{t} (id INT PRIMARY KEY, n INT NOT NULL DEFAULT 0, name VARCHAR(40), body VARBINARY(1024), KEY (n)) ENGINE=InnoDB"));
        let mut from = 1;
        while from <= rows {
            let to = rows.min(from + 49_999);
            s.old.sql(&format!(
                "USE shop; SET sql_log_bin = 0; INSERT INTO big{t} SELECT seq, seq % 1000, CONCAT('part ', seq), CONCAT(REPEAT(SHA2(CONCAT({t}, '-', seq), 512), 7), SHA2(seq, 256), 'é') FROM seq_{from}_to_{to}"
            ));
            from = to + 1;
        }
    }
    let size: u64 =
        s.old.sql("SELECT SUM(data_length + index_length) FROM information_schema.tables WHERE table_schema = 'shop'").parse().unwrap();
    println!("{size} bytes in {} rows made in {}", rows * 8, megabytes(size, begun));

    let mut writer = s.writer();
    writer.some().await;
    let begun = Instant::now();
    let done = s.run("shop_new", "replicate_from", vec![handle("shop_old").into()]).await.unwrap();
    println!("replicate_from: {}; {:?} rows", megabytes(size, begun), field(&done, "rows"));
    writer.some().await;
    let begun = Instant::now();
    let c = s.run("shop_old", "compare", vec![handle("shop_new").into()]).await.unwrap();
    assert_eq!(field(&c, "equal"), &Value::Bool(true), "{:?}", field(&c, "differences"));
    println!("compare under writes: {}", megabytes(size, begun));

    writer.gap.store(0, Ordering::Relaxed);
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    s.run("shop_new", "wait_caught_up", vec![fence.clone()]).await.unwrap();
    s.run("shop_new", "promote", vec![fence]).await.unwrap();
    writer.new_side.store(true, Ordering::Relaxed);
    writer.some().await;
    println!("fence, catch up, promote: no order for {} ms", writer.gap.swap(0, Ordering::Relaxed));
    let begun = Instant::now();
    s.run("shop_new", "demote", vec![handle("shop_old").into()]).await.unwrap();
    s.run("shop_old", "unfence", vec![]).await.unwrap();
    writer.some().await;
    println!("demote and unfence: {:.1} s; no order for {} ms", begun.elapsed().as_secs_f64(), writer.gap.load(Ordering::Relaxed));
    writer.close();
    let orders = writer.settle(&s.old.sql(ORDERS));
    println!("{orders} orders acknowledged, none lost, none doubled");

    let differences = async || {
        let begun = Instant::now();
        let c = s.run("shop_old", "compare", vec![handle("shop_new").into()]).await.unwrap();
        let found: Vec<String> = field(&c, "differences").as_list().unwrap().iter().map(|d| d.as_str().unwrap().to_string()).collect();
        println!("compare: {}: {found:?}", megabytes(size, begun));
        found
    };
    // All four at once, then equal again.
    s.new.sql(&format!(
        "SET sql_log_bin = 0; UPDATE shop.big3 SET body = INSERT(body, 500, 1, CHAR(ASCII(SUBSTR(body, 500, 1)) ^ 1)) WHERE id = {half}; \
         DELETE FROM shop.big5 WHERE id = {rows}; INSERT INTO shop.big7 (id) VALUES (-5); ALTER TABLE shop.big8 ALTER COLUMN n SET DEFAULT 1",
        half = rows / 2
    ));
    let found = differences().await;
    assert_eq!(found.len(), 4, "{found:?}");
    for want in [
        format!("big3: the row id = {} differs", rows / 2),
        format!("big5: the row id = {rows} is only in shop_old"),
        "big7: the row id = -5 is only in shop_new".into(),
    ] {
        assert!(found.contains(&want), "{want}: {found:?}");
    }
    assert!(found.iter().any(|d| d.starts_with("table big8 is ")), "{found:?}");
    println!("the most memory of this process: {} KiB", peak());
}
