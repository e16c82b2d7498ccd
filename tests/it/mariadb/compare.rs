//! Every kind of difference, named by table and key.

use super::*;

async fn differences(s: &Site) -> Vec<String> {
    let c = s.run("shop_old", "compare", vec![handle("shop_new").into()]).await.unwrap();
    field(&c, "differences").as_list().unwrap().iter().map(|d| d.as_str().unwrap().to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_byte_one_row_and_one_default_are_found() {
    let Some(s) = Site::new() else { return };
    s.old.sql(
        "USE shop; CREATE TABLE big (id BIGINT PRIMARY KEY, body VARBINARY(200), amount DECIMAL(10,2), at TIMESTAMP(6) NULL); \
         INSERT INTO big SELECT seq * 3, REPEAT(CHAR(seq % 256), 100), seq / 7, FROM_UNIXTIME(1700000000 + seq) FROM seq_1_to_60000; \
         CREATE TABLE words (lang CHAR(2), word VARCHAR(40) COLLATE utf8mb4_unicode_ci, n INT DEFAULT 1, PRIMARY KEY (lang, word)) DEFAULT CHARSET=utf8mb4; \
         INSERT INTO words SELECT IF(seq % 2, 'de', 'fr'), CONCAT('Wort ', seq), seq FROM seq_1_to_3000; CREATE TABLE heap (a INT, b TEXT); INSERT INTO heap SELECT seq, 'x' FROM seq_1_to_100",
    );
    s.replicate().await;
    let fence = s.run("shop_old", "fence", vec![]).await.unwrap();
    s.run("shop_new", "wait_caught_up", vec![fence]).await.unwrap();
    assert_eq!(differences(&s).await, Vec::<String>::new());
    for (spoil, mend, want) in [
        (
            "UPDATE shop.big SET body = CONCAT(LEFT(body, 99), 'Q') WHERE id = 90000",
            "UPDATE shop.big SET body = REPEAT(CHAR(30000 % 256), 100) WHERE id = 90000",
            "big: the row id = 90000 differs",
        ),
        (
            "DELETE FROM shop.words WHERE word = 'Wort 777'",
            "INSERT INTO shop.words VALUES ('de', 'Wort 777', 777)",
            "words: the row lang = \"de\", word = \"Wort 777\" is only in shop_old",
        ),
        ("INSERT INTO shop.big (id) VALUES (91)", "DELETE FROM shop.big WHERE id = 91", "big: the row id = 91 is only in shop_new"),
        (
            "INSERT INTO shop.big (id) VALUES (999999999)",
            "DELETE FROM shop.big WHERE id = 999999999",
            "big: the row id = 999999999 is only in shop_new",
        ),
        (
            "UPDATE shop.big SET at = at + INTERVAL 1 MICROSECOND WHERE id = 3",
            "UPDATE shop.big SET at = at - INTERVAL 1 MICROSECOND WHERE id = 3",
            "big: the row id = 3 differs",
        ),
    ] {
        s.new.sql(&format!("SET sql_log_bin = 0; {spoil}"));
        assert_eq!(differences(&s).await, [want]);
        s.new.sql(&format!("SET sql_log_bin = 0; {mend}"));
        assert_eq!(differences(&s).await, Vec::<String>::new(), "{mend}");
    }
    s.new.sql("SET sql_log_bin = 0; UPDATE shop.heap SET b = 'y' WHERE a = 50");
    let found = differences(&s).await;
    assert!(found.len() == 1 && found[0].starts_with("heap: "), "{found:?}");
    s.new.sql("SET sql_log_bin = 0; UPDATE shop.heap SET b = 'x' WHERE a = 50; ALTER TABLE shop.words ALTER COLUMN n SET DEFAULT 2");
    let found = differences(&s).await;
    assert!(found.len() == 1 && found[0].starts_with("table words is ") && found[0].contains("DEFAULT 2"), "{found:?}");
    s.new.sql("SET sql_log_bin = 0; ALTER TABLE shop.words ALTER COLUMN n SET DEFAULT 1; DROP TABLE shop.heap");
    assert_eq!(differences(&s).await, ["table heap is only in shop_old"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_are_compared_while_the_primary_is_written_to() {
    let Some(s) = Site::new() else { return };
    s.old.sql("USE shop; INSERT INTO orders (item) SELECT CONCAT('old ', seq) FROM seq_1_to_20000");
    s.replicate().await;
    let mut writer = s.writer();
    for _ in 0..5 {
        writer.some().await;
        assert_eq!(differences(&s).await, Vec::<String>::new());
    }
    s.new.sql("SET sql_log_bin = 0; UPDATE shop.orders SET item = 'spoilt' WHERE id = 777");
    writer.some().await;
    assert_eq!(differences(&s).await, ["orders: the row id = 777 differs"]);
    writer.close();
}
