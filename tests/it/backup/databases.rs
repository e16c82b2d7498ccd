//! Databases streamed into snapshots of restic and borg, through the binary: real MariaDB, PostgreSQL, restic, borg, sshd.

use std::process::Command;
use std::time::Duration;

use super::*;
use crate::support::desk::{Project, until};
use crate::support::killed;
use crate::support::mariadb::Mariadb;
use crate::support::postgres::Cluster;
use crate::support::sshd::processes;

const PASSWORD: &str = "a repository's \"password\"";
const LOGIN: &str = "the app's s3cret";

enum Server {
    Maria(Box<Mariadb>),
    Pg(Cluster),
}

/// A host with a server, a shop in it, and a repository.
struct Site {
    tool: &'static str,
    host: Sshd,
    server: Server,
    p: Project,
}

impl Server {
    fn maria() -> Option<Server> {
        let m = Mariadb::start(1, "")?;
        m.sql(&format!(
            "CREATE DATABASE shop CHARACTER SET utf8mb4 COLLATE utf8mb4_bin; CREATE USER backup@localhost IDENTIFIED BY '{}'; GRANT ALL ON *.* TO backup@localhost WITH GRANT OPTION",
            LOGIN.replace('\'', "''")
        ));
        Some(Server::Maria(Box::new(m)))
    }

    fn pg() -> Option<Server> {
        let c = Cluster::place()?;
        c.init(false);
        c.start();
        c.sql("postgres", &format!("CREATE ROLE backup SUPERUSER LOGIN PASSWORD '{}'", LOGIN.replace('\'', "''")));
        c.sql("postgres", "CREATE DATABASE shop OWNER backup");
        Some(Server::Pg(c))
    }

    fn kind(&self) -> &'static str {
        match self {
            Server::Maria(_) => "mariadb",
            Server::Pg(_) => "postgresql",
        }
    }

    fn sql(&self, database: &str, sql: &str) -> String {
        match self {
            Server::Maria(m) => m.sql(&format!("USE {database}; {sql}")),
            Server::Pg(c) => c.sql(database, sql),
        }
    }

    /// Names of databases that begin with this.
    fn named(&self, like: &str) -> String {
        match self {
            Server::Maria(m) => m.sql(&format!("SELECT schema_name FROM information_schema.schemata WHERE schema_name LIKE '{like}%'")),
            Server::Pg(c) => c.sql("postgres", &format!("SELECT datname FROM pg_database WHERE datname LIKE '{like}%'")),
        }
    }

    fn fill(&self) {
        match self {
            Server::Maria(_) => self.sql(
                "shop",
                r#"CREATE TABLE orders (id INT AUTO_INCREMENT PRIMARY KEY, item TEXT NOT NULL, data LONGBLOB, at DATETIME(6)) ENGINE=InnoDB;
                   CREATE TABLE `we``ird "name` (a INT PRIMARY KEY, b VARCHAR(20)); INSERT INTO `we``ird "name` VALUES (1, '(2,''x'');\n'), (3, NULL);
                   CREATE TABLE empty (a INT PRIMARY KEY);
                   INSERT INTO orders (item, data, at) VALUES ('line\nnew -- runbook:x end', x'00ff27', NOW(6)), ('ü\\ ''quoted''', NULL, NULL);
                   CREATE VIEW cheap AS SELECT id, item FROM orders;
                   CREATE TABLE log (n INT);
                   CREATE TRIGGER noted AFTER DELETE ON orders FOR EACH ROW INSERT INTO log VALUES (OLD.id);
                   CREATE PROCEDURE twice(IN x INT) SELECT x * 2;
                   SET GLOBAL event_scheduler = ON;
                   CREATE EVENT busy ON SCHEDULE EVERY 1 SECOND DISABLE DO INSERT INTO shop.ticks VALUES (DATABASE());
                   CREATE TABLE ticks (who VARCHAR(64)) ENGINE=InnoDB;"#,
            ),
            Server::Pg(_) => self.sql(
                "shop",
                r#"CREATE TABLE orders (id serial PRIMARY KEY, item text NOT NULL, data bytea, at timestamptz); CREATE SCHEMA other;
                   CREATE TABLE other."we(ird ""name" (a int PRIMARY KEY, b text); INSERT INTO other."we(ird ""name" VALUES (1, E'\\.'), (2, E'x\ny'), (3, NULL);
                   CREATE TABLE empty (a int PRIMARY KEY);
                   INSERT INTO orders (item, data, at) VALUES (E'line\nnew', '\x00ff27', now()), ('-- runbook:x end', NULL, NULL);
                   CREATE VIEW cheap AS SELECT id, item FROM orders; CREATE FUNCTION twice(x int) RETURNS int LANGUAGE sql AS 'SELECT x * 2';
                   SELECT lo_from_bytea(0, 'large');"#,
            ),
        };
    }

    /// Makes it large enough to be caught at work.
    fn swell(&self, megabytes: u32) {
        match self {
            Server::Maria(_) => self.sql(
                "shop",
                &format!("INSERT INTO orders (item, data) SELECT CONCAT('big ', seq), RANDOM_BYTES(1000) FROM seq_1_to_{}", megabytes * 500),
            ),
            Server::Pg(_) => self.sql(
                "shop",
                &format!(
                    "INSERT INTO orders (item, data) SELECT 'big ' || g, decode(string_agg(md5(random()::text || h || g), ''), 'hex') FROM generate_series(1, {}) g, generate_series(1, 62) h GROUP BY g",
                    megabytes * 500
                ),
            ),
        };
    }

    fn settings(&self) -> String {
        match self {
            Server::Maria(m) => format!("user = \"backup\"\npassword = \"login\"\nsocket = {:?}\nconfig_dir = \"none\"\n", m.socket()),
            // Half of them by the password, half as the user that the server knows.
            Server::Pg(c) => format!(
                "user = \"backup\"\npassword = \"login\"\naddress = \"127.0.0.1\"\nport = {}\nbin = {:?}\n",
                c.port,
                c.settings("old")["bin"].as_str().unwrap()
            ),
        }
    }

    fn tools(&self) -> (&'static str, &'static str) {
        match self {
            Server::Maria(_) => ("mariadb-dump", "mariadb"),
            Server::Pg(_) => ("pg_dump", "psql"),
        }
    }
}

impl Site {
    fn start(tool: &'static str, server: Option<Server>) -> Option<Site> {
        if !crate::support::have(tool) {
            return None;
        }
        let (server, host) = (server?, Sshd::start("")?);
        server.fill();
        let hosts: String = host.settings().iter().map(|(k, v)| format!("{k} = {:?}\n", v.as_str().unwrap())).collect();
        let db = |name: &str, database: &str| {
            format!(
                "[environments.test.databases.{name}]\nkind = \"{}\"\nhost = \"old\"\ndatabase = \"{database}\"\n{}",
                server.kind(),
                server.settings()
            )
        };
        let inventory = format!(
            "[environments.test.hosts.old]\n{hosts}{}{}[environments.test.backups.vault]\nkind = {tool:?}\nhost = \"old\"\nrepository = {:?}\npassword = \"store\"\n\
             [secrets]\nstore = {{ file = \"store.pw\" }}\nlogin = {{ file = \"login.pw\" }}\n",
            db("shop", "shop"),
            db("copy", "shop_copy"),
            host.home().join("my repository"),
        );
        let p = Project::new(&inventory, "");
        p.write("store.pw", PASSWORD);
        p.write("login.pw", LOGIN);
        let s = Site { tool, host, server, p };
        s.script("init", "vault.init();");
        s.p.expect(&["run", "init.rhai", "--env", "test"], 0);
        Some(s)
    }

    fn script(&self, name: &str, body: &str) {
        let head = "let vault = backup(\"vault\");\nlet shop = database(\"shop\");\nlet copy = database(\"copy\");\n";
        self.p.write(&format!("{name}.rhai"), &format!("{head}step \"{name}\" {{ {body} }}\n"));
    }

    /// Runs a body as a runbook of its own, and wants this exit status.
    #[track_caller]
    fn run(&self, name: &str, body: &str, status: i32) -> String {
        self.script(name, body);
        self.p.expect(&["run", &format!("{name}.rhai"), "--env", "test"], status)
    }

    /// The stock tool.
    fn stock(&self, words: &str) -> String {
        let password = self.p.dir().join("store.pw").display().to_string();
        let script = format!(
            "export RESTIC_REPOSITORY=\"$PWD/my repository\" BORG_REPO=\"$PWD/my repository\" HOME=\"$PWD\" RESTIC_PASSWORD_FILE='{password}' BORG_PASSCOMMAND=\"cat '{password}'\"\n\
             borg() {{ command borg --lock-wait 20 \"$@\"; }}\n{words}"
        );
        sh(&self.host.home(), &script)
    }

    /// What there is, halves too.
    fn snapshots(&self) -> Vec<String> {
        if self.tool == "borg" {
            return self.stock("borg list --short --consider-checkpoints").lines().map(str::to_string).collect();
        }
        let all: serde_json::Value = serde_json::from_str(&self.stock("restic snapshots --no-lock --json")).unwrap();
        all.as_array().into_iter().flatten().map(|s| s["id"].as_str().unwrap().to_string()).collect()
    }

    /// The command of the stock tool that prints a stream.
    fn print(&self, id: &str) -> String {
        if self.tool == "borg" { format!("borg extract --stdout ::{id} shop.sql") } else { format!("restic dump --no-lock {id} /shop.sql") }
    }

    /// The command of the stock tool that keeps its input as a stream.
    fn keep(&self) -> &'static str {
        if self.tool == "borg" {
            r#"borg create --stdin-name shop.sql --comment 'runbook:["","old",["database:shop"],["shop.sql"]]' ::cut -"#
        } else {
            "restic backup --quiet --stdin --stdin-filename shop.sql --tag database:shop --host old"
        }
    }

    fn forget(&self, id: &str) {
        let words = if self.tool == "borg" { format!("borg delete ::{id}") } else { format!("restic forget --quiet {id}") };
        self.stock(&words);
    }

    /// Processes of a name that work for this site.
    fn pids(&self, name: &str) -> Vec<u32> {
        // They have the repository's place in their environment.
        let place = self.host.dir.path().display().to_string();
        let ours = |pid: u32| {
            let env = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            String::from_utf8_lossy(&env).contains(&place)
        };
        processes().into_iter().filter(|p| p.name == name && ours(p.pid)).map(|p| p.pid).collect()
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn both(tool: &'static str) -> Vec<Site> {
    [Server::maria(), Server::pg()].into_iter().filter_map(|server| Site::start(tool, server)).collect()
}

#[test]
fn a_database_goes_into_a_snapshot_and_comes_back() {
    goes_in_and_comes_back("restic");
}

#[test]
fn a_database_goes_into_a_snapshot_and_comes_back_with_borg() {
    goes_in_and_comes_back("borg");
}

#[test]
fn a_database_goes_onto_a_disk_when_it_is_there() {
    let Some(s) = Site::start("restic", Server::maria()) else { return };
    let place = s.host.home().join("disk");
    std::fs::create_dir(&place).unwrap();
    let inventory = std::fs::read_to_string(s.p.dir().join("runbook.toml")).unwrap();
    let vault = "[environments.test.backups.vault]\n";
    let inventory = inventory.replace(vault, &format!("{vault}mount = {place:?}\n")).replace("/my repository\"", "/disk/store\"");
    s.p.write("runbook.toml", &inventory);
    let take = "vault.snapshot_database(shop);";
    let out = s.run("away", take, 1);
    assert!(out.contains("RB0706") && sh(&place, "ls -A").is_empty(), "{out}");
    let Some(disk) = Small::mount(place, "60m") else { return };
    s.run("made", "vault.init();", 0);
    s.run("there", take, 0);
    let newest = r#"vault.require_fresh("1m", #{ tags: ["database:shop"] })"#;
    s.run("test", &format!("vault.verify({newest}); vault.restore_test({newest}, #{{ server: copy, compare: false }});"), 0);
    drop(disk);
    let out = s.run("gone", &format!("vault.restore_database({newest}, copy);"), 1);
    assert!(out.contains("RB0706"), "{out}");
}

fn goes_in_and_comes_back(tool: &'static str) {
    for s in both(tool) {
        let kind = s.server.kind();
        let out = s.run("take", r#"let t = vault.snapshot_database(shop, #{ tags: ["before"] }); log(`${t.id} ${t.stream.rows} ${t.stream.sha256} ${t.database} ${t.stream.position}`);"#, 0);
        let all = s.snapshots();
        assert_eq!(all.len(), 1, "{out}");
        let rows = if kind == "mariadb" { 4 } else { 5 };
        assert!(out.contains(&format!("{} {rows} ", all[0])) && out.contains(" shop "), "{kind}: {out}");
        assert!(
            if kind == "mariadb" {
                out.contains("MASTER_LOG_POS=") && out.contains("gtid_slave_pos")
            } else {
                out.contains("not before 0/")
            },
            "{out}"
        );

        s.run("verify", r#"vault.verify(vault.require_fresh("1h", #{ tags: ["database:shop", "before"] }));"#, 0);
        let out = s.run(
            "test",
            "let t = vault.restore_test(vault.list().pop(), #{ server: copy, compare: true }); log(`${t.tables} tables ${t.rows} rows`);",
            0,
        );
        let tables = if kind == "mariadb" { 5 } else { 3 };
        assert!(out.contains(&format!("{tables} tables {rows} rows")), "{kind}: {out}");
        assert_eq!(s.server.named("runbook_test"), "", "the throw-away database is gone");
        if kind == "mariadb" {
            assert_eq!(s.server.sql("shop", "SELECT COUNT(*) FROM ticks"), "0");
        }

        // By hand, with the stock tools.
        let out = match &s.server {
            Server::Maria(m) => {
                m.sql("CREATE DATABASE by_hand");
                let file = s.host.home().join("by hand.sql");
                s.stock(&format!("{} >'by hand.sql'", s.print(&all[0])));
                sh(&s.host.home(), &format!("mariadb --no-defaults -uroot -S '{}' by_hand <'{}'", m.socket().display(), file.display()));
                m.sql("SELECT COUNT(*) FROM by_hand.orders; CALL by_hand.twice(4)")
            }
            Server::Pg(c) => {
                c.sql("postgres", "CREATE DATABASE by_hand");
                s.stock(&format!("{} >/tmp/by-hand-{}.sql", s.print(&all[0]), c.port));
                let file = format!("/tmp/by-hand-{}.sql", c.port);
                let folder = c.path("").display().to_string();
                c.as_postgres(
                    "psql",
                    &["-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", &folder, "-p", &c.port.to_string(), "-d", "by_hand", "-f", &file],
                );
                std::fs::remove_file(file).unwrap();
                c.sql("by_hand", "SELECT count(*) FROM orders; SELECT twice(4)")
            }
        };
        assert_eq!(out.lines().collect::<Vec<_>>(), ["2", "8"]);

        // Into a database of the inventory that is not there, then again, then into one with something in it.
        s.run(
            "back",
            "vault.restore_database(vault.list().pop(), copy); let c = shop.compare(copy); if !c.equal { throw `${c.differences}`; }",
            0,
        );
        s.run("again", "vault.restore_database(vault.list().pop(), copy);", 0);
        let note = s.p.entries("outcome").last().unwrap()["note"].to_string();
        assert!(note.contains("this snapshot is in it already"), "{note}");
        let out = s.run("full", "vault.snapshot_database(copy); vault.restore_database(vault.list().pop(), shop);", 1);
        assert!(out.contains("RB0505") && out.contains("\"shop\" is not empty"), "{out}");

        // What changes meanwhile is named by table and key, and is no fault of the snapshot.
        s.server.sql("shop", "UPDATE orders SET item = 'other' WHERE id = 2");
        let out = s.run(
            "changed",
            r#"vault.restore_test(vault.require_fresh("1h", #{ tags: ["database:shop"] }), #{ server: copy, compare: true });"#,
            1,
        );
        assert!(
            out.contains("RB0703")
                && out.contains("restores, but is not what is in \"shop\" now")
                && out.contains("orders: the row id = 2 differs"),
            "{out}"
        );
        assert_eq!(s.server.named("runbook_test"), "");
        let out = s.run("where", "vault.restore_test(vault.list().pop());", 1);
        assert!(out.contains("needs a server"), "{out}");

        // Neither password is anywhere.
        for secret in [PASSWORD, LOGIN] {
            let left = sh(s.p.dir(), &format!("grep -rlF -- {} . | grep -v '\\.pw$' || true", quoted(secret)));
            assert_eq!(left, "", "{kind}");
            let left = sh(&s.host.home(), &format!("grep -rlF -- {} .runbook 2>/dev/null || true", quoted(secret)));
            assert_eq!(left, "", "{kind}");
        }
        // Of these runs: other tests have theirs beside.
        for run in s.p.json(&["runs"]).1["runs"].as_array().unwrap() {
            let id = run["id"].as_str().unwrap();
            assert_eq!(sh(&s.host.home(), &format!("ls -d /var/tmp/runbook-load.{id}-* 2>/dev/null || true")), "");
        }
    }
}

#[test]
fn what_is_killed_in_the_middle_leaves_no_snapshot() {
    killed_in_the_middle("restic");
}

#[test]
fn what_is_killed_in_the_middle_leaves_no_snapshot_with_borg() {
    killed_in_the_middle("borg");
}

fn killed_in_the_middle(tool: &'static str) {
    for s in both(tool) {
        s.server.swell(60);
        let (dump, _) = s.server.tools();
        let mut counts = std::collections::BTreeMap::<&str, (u32, u32)>::new();
        s.script("take", "vault.snapshot_database(shop);");
        for (n, victim) in [dump, "tee", "sha256sum", s.tool, dump, "the script", "its group", dump].into_iter().enumerate() {
            let before = s.snapshots().len();
            let mut run = s.p.start(&["run", "take.rhai", "--env", "test"]);
            until("the dump is at work", || !s.pids(s.tool).is_empty() && !s.pids(dump).is_empty());
            std::thread::sleep(Duration::from_millis(20 + 90 * n as u64));
            let pids = match victim {
                "the script" | "its group" => {
                    // The shell above the tool.
                    let tool = s.pids(s.tool);
                    tool.first()
                        .and_then(|p| std::fs::read_to_string(format!("/proc/{p}/stat")).ok())
                        .and_then(|t| t.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok())
                        .into_iter()
                        .collect()
                }
                name => s.pids(name),
            };
            let group = if victim == "its group" { "-" } else { "" };
            for pid in &pids {
                let who = if group.is_empty() { pid.to_string() } else { format!("-{}", group_of(*pid)) };
                let _ = Command::new("kill").args(["-KILL", "--", &who]).output();
            }
            let status = run.wait();
            until("all has ended", || s.pids(s.tool).is_empty() && s.pids(dump).is_empty());
            let after = s.snapshots().len();
            let c = counts.entry(victim).or_default();
            c.0 += 1;
            if status == 0 {
                // It was faster than the kill.
                assert_eq!(after, before + 1, "{victim}");
                continue;
            }
            c.1 += 1;
            assert_eq!(after, before, "{} into {}: {victim} killed: nothing that looks like a snapshot is left", s.server.kind(), s.tool);
            s.p.expect(&["resume"], 0);
            assert_eq!(s.snapshots().len(), before + 1, "{victim}");
        }
        s.run("verify", "for t in vault.list() { vault.verify(t); }", 0);
        println!("{} into {}: killed (tries, caught in the middle): {counts:?}", s.server.kind(), s.tool);
        assert!(counts.values().map(|c| c.1).sum::<u32>() >= 5, "{counts:?}");
    }
}

fn group_of(pid: u32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().and_then(|t| t.split(' ').nth(2)).unwrap_or("0").to_string()
}

#[test]
fn a_controller_killed_at_random_makes_one_snapshot_and_leaves_no_database() {
    controller_killed("restic");
}

#[test]
fn a_controller_killed_at_random_makes_one_snapshot_and_leaves_no_database_with_borg() {
    controller_killed("borg");
}

fn controller_killed(tool: &'static str) {
    let rounds = if std::env::var_os("RUNBOOK_TEST_ALL").is_some() { 12 } else { 2 };
    for s in both(tool) {
        s.server.swell(25);
        sh(&s.host.home(), "mkdir files; head -c 30000000 /dev/urandom >files/big; for i in $(seq 200); do echo $i >files/f$i; done");
        s.script(
            "all",
            r#"let t = vault.snapshot_database(shop); vault.restore_test(t, #{ server: copy, compare: true });
               vault.restore_test(vault.snapshot(host("old"), "files"), #{ compare: true });"#,
        );
        let what = format!("{} and files into {}", s.server.kind(), s.tool);
        let after = |n: usize| {
            assert_eq!(s.server.named("runbook_test"), "", "round {n}");
            assert_eq!(s.snapshots().len(), 2 * (n + 1), "{what}: round {n}: two snapshots for each run");
        };
        let k = killed::at_random(&s.p, rounds, |_| {}, after);
        s.run("verify", "for t in vault.list() { vault.verify(t); }", 0);
        println!(
            "{what}: {} runs of {:?}, the controller killed {} times: one whole snapshot of each, no database left",
            k.runs, k.whole, k.kills
        );
    }
}

#[test]
fn what_a_run_that_was_given_up_has_left_is_named() {
    for s in both("restic") {
        s.server.swell(25);
        s.run("take", "vault.snapshot_database(shop);", 0);
        s.script("test", "vault.restore_test(vault.list().pop(), #{ server: copy });");
        let mut run = s.p.start(&["run", "test.rhai", "--env", "test"]);
        until("its throw-away database is there", || !s.server.named("runbook_test").is_empty());
        run.0.kill().unwrap();
        run.0.wait().unwrap();
        let left = s.server.named("runbook_test").trim().to_string();
        let out = s.p.expect(&["run", "test.rhai", "--env", "test", "--take-over"], 0);
        assert!(out.contains(&format!("another throw-away database, {left}: ")), "{left}: {out}");
        // It may be another one's: it is left, and nothing else.
        assert_eq!(s.server.named("runbook_test").trim(), left);
    }
}

#[test]
fn a_restore_test_fails_by_name() {
    fails_by_name("restic");
}

#[test]
fn a_restore_test_fails_by_name_with_borg() {
    fails_by_name("borg");
}

fn fails_by_name(tool: &'static str) {
    for s in both(tool) {
        s.server.swell(3);
        s.run("take", "vault.snapshot_database(shop);", 0);
        let test = "vault.restore_test(vault.list().pop(), #{ server: copy });";
        // A dump that was cut off, by a tool that does not look.
        let whole = s.snapshots().pop().unwrap();
        for (cut, said) in [("head -c 1000000", "its last line is missing"), ("sed 's/big 77/big 78/'", "its SHA-256 is")] {
            s.stock(&format!("{} >cut.sql; {cut} <cut.sql | {}", s.print(&whole), s.keep()));
            let out = s.run("cut", test, 1);
            assert!(out.contains("RB0703") && out.contains(said), "{out}");
            let out = s.run("verify", "vault.verify(vault.list().pop());", 1);
            assert!(out.contains("RB0702") && out.contains(said), "{out}");
            let out = s.run("into", "vault.restore_database(vault.list().pop(), copy);", 1);
            assert!(out.contains("RB0703"), "{out}");
            let left = s.server.named("shop_copy");
            assert!(left.is_empty() || s.run("look", "let c = copy.facts(); log(`tables ${c.tables}`);", 0).contains("tables"), "{left}");
            let id = s.snapshots().pop().unwrap();
            s.forget(&id);
        }
        s.run("none", "vault.restore_database(vault.list().pop(), copy);", 0);
        // A wrong password.
        s.p.write("store.pw", "another");
        let out = s.run("password", test, 1);
        assert!(out.contains("RB0704") && out.contains("is not opened by its password"), "{out}");
        s.p.write("store.pw", PASSWORD);
        // A damaged repository.
        sh(
            &s.host.home(),
            "find 'my repository/data' -type f -size +100k | while read -r f; do chmod u+w \"$f\"; printf XXXX | dd of=\"$f\" bs=1 seek=5000 conv=notrunc status=none; done",
        );
        let out = s.run("damaged", test, 1);
        let said: &[&str] = if tool == "borg" { &["damaged", "integrity"] } else { &["damaged", "verification failed"] };
        assert!(out.contains("RB0703") && said.iter().any(|w| out.contains(w)), "{out}");
        assert_eq!(s.server.named("runbook_test"), "");
    }
}
