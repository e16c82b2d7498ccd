//! `dump` and `load`: everything kept, one moment, nothing to do, what goes wrong, and controllers and servers that die in the middle.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::support::actions::until_done;
use crate::support::dumps::{self, Carried, Folder, edit, many};

/// A schema with everything that a dump must keep.
const SHOP: &str = r"
ALTER DATABASE shop CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci; USE shop;
CREATE TABLE parent (id INT PRIMARY KEY, kind ENUM('a','b') NOT NULL, note VARCHAR(80) CHARACTER SET latin1) ENGINE=InnoDB;
CREATE TABLE child (id INT AUTO_INCREMENT PRIMARY KEY, parent INT NOT NULL, net DECIMAL(12,3), gross DECIMAL(12,3) AS (net * 1.19) STORED,
  half DECIMAL(12,3) AS (net / 2) VIRTUAL, raw VARBINARY(400), doc JSON, at TIMESTAMP(6) NULL, flag BIT(5), f DOUBLE, g POINT NULL,
  UNIQUE KEY (parent, id), CONSTRAINT up FOREIGN KEY (parent) REFERENCES parent (id)) ENGINE=InnoDB COMMENT='it''s; -- a `comment`';
ALTER TABLE parent ADD COLUMN best INT NULL, ADD CONSTRAINT down FOREIGN KEY (best) REFERENCES child (id);
CREATE TABLE `odd ``name; it's` (`a``b` INT, t LONGTEXT) ENGINE=InnoDB;
CREATE TABLE heap (a INT, b TEXT) ENGINE=InnoDB;
CREATE TABLE empty_one (a INT PRIMARY KEY DEFAULT 7) ENGINE=InnoDB;
CREATE TABLE old_kind (id INT PRIMARY KEY, b BLOB) ENGINE=MyISAM;
INSERT INTO parent (id, kind, note) SELECT seq, IF(seq % 2, 'a', 'b'), CONCAT('Grüße ', seq) FROM seq_1_to_300;
INSERT INTO child (id, parent, net, raw, doc, at, flag, f, g) SELECT seq, 1 + seq % 300, seq / 7, CONCAT(CHAR(seq % 256), CHAR(0), UNHEX('ff0a0d5c27'), REPEAT(CHAR(seq % 251), 200)),
  JSON_OBJECT('n', seq, 't', 'ä'), FROM_UNIXTIME(1700000000 + seq), seq % 32, 1 / seq, POINT(seq, 1) FROM seq_1_to_60000;
UPDATE parent SET best = id + 299 WHERE id < 200;
INSERT INTO `odd ``name; it's` VALUES (1, '-- Dumping data for table `heap`\n); INSERT INTO heap VALUES (1);\n(x\n'), (NULL, NULL), (0, ''), (3, 'NULL'), (4, REPEAT('long ', 300000));
INSERT INTO heap SELECT seq, IF(seq % 3, 'x', NULL) FROM seq_1_to_5000;
INSERT INTO old_kind SELECT seq, REPEAT(CHAR(seq % 256), 50) FROM seq_1_to_3000;
CREATE SEQUENCE numbers START WITH 100 INCREMENT BY 10; DO NEXTVAL(numbers); DO NEXTVAL(numbers);
CREATE TABLE logged (n INT) ENGINE=InnoDB;
CREATE FUNCTION twice(x INT) RETURNS INT DETERMINISTIC RETURN x * 2;
CREATE VIEW b_view AS SELECT id, twice(id) AS d FROM parent;
CREATE VIEW a_view AS SELECT d FROM b_view WHERE d > 10;
DELIMITER //
CREATE TRIGGER after_heap AFTER INSERT ON heap FOR EACH ROW BEGIN
-- Dumping data for table `x`
INSERT INTO logged VALUES (NEW.a); END//
CREATE PROCEDURE fill() BEGIN DECLARE i INT DEFAULT 0; INSERT INTO heap VALUES (-1, 'a;b'); END//
DELIMITER ;
CREATE EVENT nightly ON SCHEDULE EVERY 1 DAY STARTS '2037-01-01' DO DELETE FROM logged;
";

/// Objects that `compare` may not look at, as the server shows them.
fn others(m: &Mariadb) -> String {
    m.sql(
        "SELECT routine_name, routine_definition, definer FROM information_schema.routines WHERE routine_schema = 'shop' ORDER BY 1; \
         SELECT trigger_name, action_statement, event_object_table FROM information_schema.triggers WHERE trigger_schema = 'shop' ORDER BY 1; \
         SELECT event_name, event_definition, status FROM information_schema.events WHERE event_schema = 'shop'; \
         SELECT table_name, view_definition FROM information_schema.views WHERE table_schema = 'shop' ORDER BY 1; \
         SELECT default_collation_name FROM information_schema.schemata WHERE schema_name = 'shop'; SELECT NEXT_NOT_CACHED_VALUE FROM shop.numbers; \
         SELECT constraint_name, table_name FROM information_schema.referential_constraints WHERE constraint_schema = 'shop' ORDER BY 1; CHECKSUM TABLE shop.child, shop.parent, shop.old_kind, shop.heap",
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_kept() {
    let Some(s) = Site::new() else { return };
    s.old.feed(SHOP);
    let f = Folder::new();
    let d = s.run("shop_old", "dump", vec![f.at("shop"), options(&[("jobs", Value::Int(3))])]).await.unwrap();
    let rows: i64 = s.old.sql("SELECT (SELECT COUNT(*) FROM shop.parent) + (SELECT COUNT(*) FROM shop.child) + (SELECT COUNT(*) FROM shop.heap) + (SELECT COUNT(*) FROM shop.old_kind) + 5").parse().unwrap();
    assert_eq!((field(&d, "rows"), field(&d, "changed")), (&Value::Int(rows), &Value::Bool(true)), "{d:?}");
    assert!(d.as_record().unwrap().str("position").starts_with("gtid=0-1-"), "{d:?}");
    let l = s.run("shop_new", "load", vec![f.at("shop"), options(&[("jobs", Value::Int(3))])]).await.unwrap();
    assert_eq!(field(&l, "rows"), &Value::Int(rows));
    s.equal().await;
    assert_eq!(others(&s.old), others(&s.new));
    // A trigger that is there does not fire while rows are loaded.
    assert_eq!(s.new.sql("SELECT COUNT(*) FROM shop.logged"), "0");
    s.new.sql("CALL shop.fill(); SELECT * FROM shop.a_view LIMIT 1");
    assert_eq!(s.new.sql("SELECT COUNT(*) FROM shop.logged"), "1");

    // Nothing was written since: nothing to do. Afterwards: refused, unless told.
    let again = s.run("shop_old", "dump", vec![f.at("shop")]).await.unwrap();
    assert_eq!((field(&again, "changed"), field(&again, "id")), (&Value::Bool(false), field(&d, "id")));
    let again = s.run("shop_new", "load", vec![f.at("shop")]).await.unwrap();
    assert_eq!(field(&again, "changed"), &Value::Bool(false));
    s.old.sql("INSERT INTO shop.empty_one VALUES (1)");
    let e = s.run("shop_old", "dump", vec![f.at("shop")]).await.unwrap_err();
    assert!(
        e.code == Code::DB_COPY && e.message.contains("has a dump of shop of 20") && e.hint.unwrap().contains("replace"),
        "{}",
        e.message
    );
    let d = s.run("shop_old", "dump", vec![f.at("shop"), options(&[("replace", true.into())])]).await.unwrap();
    assert_eq!(field(&d, "rows"), &Value::Int(rows + 1));
    let e = s.run("shop_new", "load", vec![f.at("shop")]).await.unwrap_err();
    assert!(e.message.starts_with("\"shop_new\" is not empty: its schema shop has tables (a_view, b_view, child"), "{}", e.message);
    s.run("shop_new", "load", vec![f.at("shop"), options(&[("replace", true.into())])]).await.unwrap();
    s.equal().await;
    // Nothing of the work is left.
    assert_eq!(s.new.sql("SHOW TABLES FROM shop LIKE '\\_runbook%'"), "");
    let left: Vec<_> = std::fs::read_dir(f.0.path().join("shop")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|n| !n.to_string_lossy().starts_with('.')), "{left:?}");
}

/// Writes two tables in each transaction until told to stop, by the account that dumps; gives how many pairs. Each takes a session of its
/// own, or all take one.
fn pairs(m: &Mariadb, stop: Arc<AtomicBool>, own: bool) -> std::thread::JoinHandle<usize> {
    use std::io::Write as _;
    const PAIR: &str = "START TRANSACTION; INSERT INTO shop.left_side VALUES (NULL, 'x'); INSERT INTO shop.right_side VALUES (LAST_INSERT_ID(), 'x'); COMMIT;\n";
    let socket = m.socket();
    let client = move || {
        let mut c = std::process::Command::new("mariadb");
        c.args(["--no-defaults", "-uroot", "-S"]).arg(&socket);
        c
    };
    std::thread::spawn(move || {
        let mut n = 0;
        if own {
            while !stop.load(Ordering::Relaxed) {
                assert!(client().args(["-e", PAIR]).status().unwrap().success());
                n += 1;
            }
            return n;
        }
        let mut c = client().stdin(std::process::Stdio::piped()).spawn().unwrap();
        let mut to = c.stdin.take().unwrap();
        while !stop.load(Ordering::Relaxed) {
            to.write_all(PAIR.as_bytes()).unwrap();
            n += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(to);
        assert!(c.wait().unwrap().success());
        n
    })
}

/// The number of the last transaction: of `gtid=0-1-4711 …`, or `0-1-4711`.
fn number(position: &str) -> i64 {
    position.split_whitespace().next().unwrap().rsplit('-').next().unwrap().parse().unwrap()
}

const SIDES: &str = "USE shop; CREATE TABLE left_side (id INT AUTO_INCREMENT PRIMARY KEY, t CHAR(1)); CREATE TABLE right_side (id INT PRIMARY KEY, t CHAR(1)); \
     CREATE TABLE bulk (id INT PRIMARY KEY, b CHAR(200)); INSERT INTO bulk SELECT seq, REPEAT('x', 200) FROM seq_1_to_100000";

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_is_of_one_moment_while_others_write() {
    let Some(s) = Site::new() else { return };
    s.old.sql(SIDES);
    let base = number(&s.old.sql("SELECT @@gtid_binlog_pos"));
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = [true, true, true, false, false].into_iter().map(|own| pairs(&s.old, stop.clone(), own)).collect();
    let f = Folder::new();
    for round in 0..if dumps::all() { 40 } else { 6 } {
        let dir = f.at(&format!("d{round}"));
        let d = s.run("shop_old", "dump", vec![dir.clone(), options(&[("jobs", Value::Int(4))])]).await.unwrap();
        s.run("shop_new", "load", vec![dir, options(&[("replace", true.into())])]).await.unwrap();
        let n: i64 = s.new.sql("SELECT COUNT(*) FROM shop.left_side").parse().unwrap();
        assert_eq!(s.new.sql("SELECT COUNT(*) FROM shop.right_side JOIN shop.left_side USING (id)").parse::<i64>().unwrap(), n);
        assert_eq!(s.new.sql("SELECT COUNT(*) FROM shop.right_side").parse::<i64>().unwrap(), n);
        // The position is of that very moment: each transaction up to it is one pair, and nothing is left over.
        let position = d.as_record().unwrap().str("position").to_string();
        assert_eq!(number(&position) - base, n, "{position}");
        println!("round {round}: {n} pairs at {position}");
    }
    stop.store(true, Ordering::Relaxed);
    let written: usize = writers.into_iter().map(|w| w.join().unwrap()).sum();
    assert!(written > 100, "{written}");
}

/// Ends the sessions that hold up commits, up to `most` of them: those that are idle for a few milliseconds and
/// have chosen no schema, while others are at work on it.
const SABOTAGE: &str = r"
CREATE DATABASE trick; USE trick; CREATE TABLE killed (id BIGINT PRIMARY KEY) ENGINE=MyISAM; CREATE TABLE stop (a INT) ENGINE=MyISAM;
CREATE USER saboteur@localhost; GRANT ALL ON *.* TO saboteur@localhost;
DELIMITER //
CREATE PROCEDURE sabotage(most INT)
BEGIN
  DECLARE who BIGINT;
  DECLARE CONTINUE HANDLER FOR 1094 BEGIN END;
  SET SESSION sql_log_bin = 0;
  WHILE (SELECT COUNT(*) FROM killed) < most AND NOT EXISTS (SELECT * FROM stop) DO
    SET who = (SELECT MIN(id) FROM information_schema.processlist WHERE user = 'root' AND command = 'Sleep' AND db IS NULL AND time_ms BETWEEN 4 AND 5000
      AND EXISTS (SELECT * FROM information_schema.processlist WHERE user = 'root' AND db = 'shop'));
    IF who IS NOT NULL THEN
      KILL who;
      INSERT IGNORE INTO killed VALUES (who);
    END IF;
    DO SLEEP(0.001);
  END WHILE;
END//
DELIMITER ;
";

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_whose_moment_is_lost_begins_again_by_itself() {
    let Some(s) = Site::new() else { return };
    s.old.sql(SIDES);
    s.old.feed(SABOTAGE);
    for (most, works) in [(2, true), (1000, false)] {
        let mut saboteur = std::process::Command::new("mariadb")
            .args(["--no-defaults", "-usaboteur", "-S"])
            .arg(s.old.socket())
            .args(["-e", &format!("CALL trick.sabotage({most})")])
            .spawn()
            .unwrap();
        let f = Folder::new();
        let d = s.run("shop_old", "dump", vec![f.at("shop"), options(&[("jobs", Value::Int(3))])]).await;
        s.old.sql("SET sql_log_bin = 0; INSERT INTO trick.stop VALUES (1)");
        saboteur.wait().unwrap();
        let killed = s.old.sql("SELECT COUNT(*) FROM trick.killed");
        println!("{killed} sessions were ended: {d:?}");
        if works {
            assert_eq!(killed, most.to_string());
            s.run("shop_new", "load", vec![f.at("shop")]).await.unwrap();
            s.equal().await;
        } else {
            let e = d.unwrap_err();
            assert!(e.code == Code::DB_COPY && e.retryable && e.hint.as_ref().unwrap().contains("resume"), "{e:?}");
            assert!(killed.parse::<usize>().unwrap() >= 4, "{killed}");
            let left: Vec<_> = std::fs::read_dir(f.0.path().join("shop")).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert!(left.iter().all(|n| n.to_string_lossy().starts_with('.')), "{left:?}");
        }
        s.old.sql("SET sql_log_bin = 0; DELETE FROM trick.stop; DELETE FROM trick.killed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_said() {
    let Some(mut s) = Site::new() else { return };
    s.old.sql("USE shop; INSERT INTO orders (item) SELECT CONCAT('order ', seq) FROM seq_1_to_20000");
    let f = Folder::new();
    let e = s.run("shop_old", "dump", vec!["dumps/shop".into()]).await.unwrap_err();
    assert_eq!(e.code, Code::WRONG_TYPE);
    std::fs::create_dir(f.0.path().join("mine")).unwrap();
    std::fs::write(f.0.path().join("mine/letter"), "dear").unwrap();
    let e = s.run("shop_old", "dump", vec![f.at("mine")]).await.unwrap_err();
    assert!(e.message.ends_with("/mine has files that are of no dump"), "{}", e.message);
    let e = s.run("shop_new", "load", vec![f.at("mine")]).await.unwrap_err();
    assert!(e.message.ends_with("/mine has no whole dump"), "{}", e.message);
    s.run("shop_old", "dump", vec![f.at("shop")]).await.unwrap();
    // A byte of a file is another.
    let rows =
        f.0.path().join("shop").read_dir().unwrap().map(|e| e.unwrap().path()).find(|p| p.display().to_string().contains("d1-")).unwrap();
    let good = std::fs::read(&rows).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    std::fs::write(&rows, bad).unwrap();
    let e = s.run("shop_new", "load", vec![f.at("shop")]).await.unwrap_err();
    assert!(e.code == Code::DB_COPY && e.message.contains("is not as it was dumped"), "{}", e.message);
    std::fs::write(&rows, good).unwrap();
    s.run("shop_new", "load", vec![f.at("shop")]).await.unwrap();
    s.equal().await;
    // What was dropped by hand is loaded anew, but over nobody's rows.
    s.new.sql("DROP DATABASE shop; CREATE DATABASE shop; CREATE TABLE shop.mine (a INT)");
    let e = s.run("shop_new", "load", vec![f.at("shop")]).await.unwrap_err();
    assert!(e.message.starts_with("\"shop_new\" is not empty: its schema shop has tables (mine)"), "{}", e.message);
    s.new.sql("DROP DATABASE shop");
    let l = s.run("shop_new", "load", vec![f.at("shop")]).await.unwrap();
    assert_eq!(field(&l, "changed"), &Value::Bool(true));
    s.equal().await;
    // A login without rights, and no server.
    s.new.sql("DROP DATABASE shop");
    s.new.sql("CREATE USER weak@localhost IDENTIFIED BY 'weak-secret'; GRANT SELECT ON *.* TO weak@localhost");
    s.set("shop_new", "user", "weak");
    s.set("shop_new", "password", "weak");
    s.world.secrets.lock().insert("weak".into(), "weak-secret".into());
    let e = s.run("shop_new", "load", vec![f.at("shop")]).await.unwrap_err();
    assert!(e.message.contains("denied"), "{}", e.message);
    s.old.down();
    let e = s.run("shop_old", "dump", vec![f.at("another")]).await.unwrap_err();
    assert!(matches!(e.code, Code::DB_CONNECT | Code::SSH_SOCKET), "{e:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_says_has_no_rows_and_no_statements_in_it() {
    let Some(s) = Site::new() else { return };
    s.old.sql("USE shop; CREATE TABLE people (mail VARCHAR(60) PRIMARY KEY, age INT); INSERT INTO people VALUES ('anna-SECRET', 30), ('bert-SECRET', 31)");
    for (n, sed, want) in [
        (0, "s/bert-SECRET/anna-SECRET/", "ERROR 1062 (23000): Duplicate entry (a value) for key 'PRIMARY'"),
        (1, "s/'anna-SECRET',30/'anna-SECRET', oops 'bert-SECRET/", "the right syntax to use near (not shown)"),
    ] {
        let f = Folder::new();
        s.run("shop_old", "dump", vec![f.at("shop")]).await.unwrap();
        edit(&f.path("shop"), "anna-SECRET", sed);
        s.new.sql("DROP DATABASE IF EXISTS shop; SET GLOBAL sql_mode = 'STRICT_ALL_TABLES'");
        let e = s.run("shop_new", "load", vec![f.at("shop")]).await.unwrap_err();
        assert!(e.code == Code::DB_COPY && e.message.contains(want) && !e.retryable, "{n}: {}", e.message);
        let all = format!("{e:?}");
        assert!(!all.contains("SECRET") && !all.contains("INSERT INTO"), "{n}: {all}");
    }
}

impl Carried for Site {
    const CLIENTS: &'static [&'static str] = &["mariadb", "mysql", "zstd", "gzip"];

    async fn act(&self, on: &str, name: &'static str, args: Vec<Value>, cut: Option<Duration>) -> Result<Value> {
        self.run_cut(on, name, args, cut).await
    }

    async fn until_done(&self, on: &str, name: &'static str, args: Vec<Value>) -> (Value, u32) {
        let (primitive, call) = self.bound(on, name, args).unwrap();
        until_done(primitive.as_ref(), &call, &self.cx()).await
    }

    fn fill(&self) {
        let n = many();
        self.old.sql(&format!(
            "USE shop; CREATE TABLE bulk (id INT PRIMARY KEY, u INT NOT NULL UNIQUE, b VARCHAR(400), KEY (b(40))); \
             INSERT INTO bulk SELECT seq, 1000000 - seq, CONCAT(MD5(seq), REPEAT(MD5(seq), 10)) FROM seq_1_to_{}; \
             CREATE TABLE heap (a INT, b VARCHAR(200)); INSERT INTO heap SELECT seq, REPEAT(MD5(seq), 5) FROM seq_1_to_{}; \
             CREATE TABLE old_kind (a INT, b VARCHAR(200)) ENGINE=MyISAM; INSERT INTO old_kind SELECT seq, REPEAT(MD5(seq), 5) FROM seq_1_to_{n}",
            n * 3,
            n * 2
        ));
    }

    fn write(&self, row: &str) {
        self.old.sql(&format!("INSERT INTO shop.orders (item) VALUES ('{row}')"));
    }

    fn clear(&self) {
        self.new.sql("DROP DATABASE IF EXISTS shop; DROP DATABASE IF EXISTS _runbook");
    }

    fn beside(&self) {
        // Without transactions: a piece that is loaded twice would be there twice.
        let there =
            "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = 'shop' AND engine = 'MyISAM' AND table_name = 'old_kind'";
        if self.old.sql(there) == "1" {
            let rows = "SELECT COUNT(*) FROM shop.old_kind";
            assert_eq!(self.old.sql(rows), self.new.sql(rows));
        }
    }

    fn kill(&self) {
        self.new.kill();
    }

    async fn again(&mut self) {
        self.new.down();
        self.new.up();
        self.shared = Arc::default();
    }

    fn ways(&mut self) -> (&mut Environment, u16) {
        (&mut self.env, self.old.port)
    }

    fn hosts(&self) -> [&crate::support::sshd::Sshd; 2] {
        [&self._hosts[0], &self._hosts[1]]
    }

    async fn level(&self) {
        for _ in 0..500 {
            if self.old.sql(ORDERS) == self.new.sql(ORDERS) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the replica does not get the last order");
    }

    fn kept(&self) -> usize {
        let there = "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = 'shop' AND table_name = '_runbook_loaded'";
        if self.new.sql(there) == "1" { self.new.sql("SELECT COUNT(*) FROM shop._runbook_loaded").parse().unwrap() } else { 0 }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_dies_anywhere_doubles_and_loses_nothing() {
    let Some(s) = Site::new() else { return };
    dumps::a_controller_dies_anywhere(&s).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_goes_on_where_it_was_when_the_server_or_the_job_was_killed() {
    let Some(mut s) = Site::new() else { return };
    dumps::a_load_goes_on_where_it_was(&mut s).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_it_goes_on_once_there_is_room() {
    let Some(s) = Site::new() else { return };
    dumps::a_full_disk_is_said(&s).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_cut_at_random_lose_and_double_nothing() {
    let Some(s) = Site::new() else { return };
    dumps::connections_are_cut_at_random(&s).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_reset_at_random_lose_and_double_nothing() {
    let Some(mut s) = Site::new() else { return };
    dumps::connections_are_reset_at_random(&mut s).await;
}
