//! `load`: rows that the server reads by itself, rows that it must be given as statements, and dumps of earlier versions.

use super::*;
use crate::support::dumps::{Carried, Folder};

/// Every kind of value, in every kind of character set.
const KINDS: &str = r#"
SET sql_mode = ''; USE shop;
CREATE TABLE `Größen (cm)` (`Länge; ''it` INT PRIMARY KEY, jis VARCHAR(20) CHARACTER SET sjis, gbk TEXT CHARACTER SET gbk, u16 VARCHAR(20) CHARACTER SET utf16,
  l1 CHAR(9) CHARACTER SET latin1, e ENUM('ä','b') CHARACTER SET latin1, s SET('x','ö'), y YEAR, t TIME(6), d DATE, f FLOAT, g DOUBLE, n DECIMAL(20,6),
  big BIGINT UNSIGNED, raw BLOB, bin BINARY(4), bits BIT(13), at GEOMETRY, doc JSON, twice INT AS (`Länge; ''it` * 2) VIRTUAL,
  kept INT AS (`Länge; ''it` * 3) STORED, late INT DEFAULT 5) ENGINE=InnoDB CHARACTER SET utf8mb4;
INSERT INTO `Größen (cm)` (`Länge; ''it`, jis, gbk, u16, l1, e, s, y, t, d, f, g, n, big, raw, bin, bits, at, doc) SELECT seq, 'ソ表能', '縗誠', 'ß\\😀', 'é''', 'ä', 'x,ö', 1901 + seq,
  '-838:59:58.999999', '0000-00-00', -0.125 * seq, PI() * seq, -12345678901234.567891, 18446744073709551615, REPEAT(CHAR(seq), 3), UNHEX('00270a5c'), seq,
  ST_GeomFromText('LINESTRING(1 2, 3 4)'), '{"a": "\\n''),("}' FROM seq_0_to_250;
INSERT INTO `Größen (cm)` (`Länge; ''it`, jis, raw) VALUES (300, '),\n(', '\\N'), (301, 'NULL', '\'),'), (302, '', ''), (303, NULL, NULL), (-304, '\0\Z\t\r', '@@');
CREATE TABLE plugins (ip INET6, old INET4, id UUID, t TEXT CHARACTER SET latin1, raw BLOB); INSERT INTO plugins VALUES ('::1', '10.0.0.1', UUID(), 'ä', '\0\Z\'\n'), (NULL, NULL, NULL, NULL, NULL);
CREATE TABLE hidden (a INT, b INT INVISIBLE DEFAULT 3, c INT); INSERT INTO hidden (a, b, c) VALUES (1, 2, 3), (4, NULL, 6);
CREATE TABLE wrong (id INT PRIMARY KEY, e ENUM('a','b')); INSERT INTO wrong VALUES (1, 'a'), (2, 'z'), (3, NULL);
CREATE TABLE no_transactions (a INT, b VARCHAR(9)) ENGINE=MyISAM; INSERT INTO no_transactions SELECT seq, 'x' FROM seq_1_to_500;
CREATE TABLE history (a INT) WITH SYSTEM VERSIONING;
INSERT INTO history (a) VALUES (1), (2);
"#;

/// Every value as the server has it.
fn sums(m: &Mariadb) -> String {
    m.sql("CHECKSUM TABLE shop.`Größen (cm)`, shop.hidden, shop.plugins, shop.wrong, shop.no_transactions; SELECT e + 0 FROM shop.wrong; SELECT a, b, c FROM shop.hidden; SELECT a FROM shop.history")
}

fn status(m: &Mariadb, name: &str) -> u64 {
    m.sql(&format!("SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = '{name}'")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_in_whichever_way_the_server_takes_them() {
    let Some(s) = Site::new() else { return };
    s.old.feed(KINDS);
    let f = Folder::new();
    s.run("shop_old", "dump", vec![f.at("shop")]).await.unwrap();
    for reads in [true, false] {
        s.new.sql(&format!("SET GLOBAL local_infile = {}; DROP DATABASE IF EXISTS shop", u8::from(reads)));
        let before = status(&s.new, "Com_load");
        s.run("shop_new", "load", vec![f.at("shop")]).await.unwrap();
        assert_eq!(sums(&s.old), sums(&s.new), "reads: {reads}");
        s.equal().await;
        // `Größen (cm)`, wrong (which is refused then, and goes in by statements), no_transactions, history; the others take no bytes.
        assert_eq!(status(&s.new, "Com_load") - before, if reads { 4 } else { 0 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dumps_of_earlier_versions_are_loaded() {
    let Some(s) = Site::new() else { return };
    let dumps = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dumps");
    let mut loaded = 0;
    for dump in std::fs::read_dir(dumps).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()) {
        let f = Folder::new();
        std::fs::create_dir(f.path("shop")).unwrap();
        for file in std::fs::read_dir(&dump).unwrap().map(|e| e.unwrap().path()) {
            std::fs::copy(&file, f.path("shop").join(file.file_name().unwrap())).unwrap();
        }
        s.run("shop_new", "load", vec![f.at("shop"), options(&[("replace", true.into())])]).await.unwrap();
        assert_eq!(
            s.new.sql("SET time_zone = '+00:00'; SELECT id, name, HEX(raw), at, twice FROM shop.people ORDER BY id"),
            "1\tGrüße\tFF00270A5C\t2026-11-22 12:00:00\t2\n2\tNULL\tNULL\tNULL\t4\n3\t),\\n(\t00\t2038-01-01 00:00:00\t6",
            "{dump:?}"
        );
        assert_eq!(s.new.sql("SELECT * FROM shop.`Größen` ORDER BY 1"), "NULL\tNULL\n1.5\tß; €", "{dump:?}");
        assert_eq!(s.new.sql("SELECT COUNT(*) FROM shop.names"), "3");
        loaded += 1;
    }
    assert!(loaded > 0);
}
