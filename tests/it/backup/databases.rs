//! Databases streamed into snapshots of restic and borg, through the binary: real MariaDB, PostgreSQL, restic, borg, sshd.

mod each;

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

#[test]
fn what_a_run_that_was_given_up_has_left_is_named() {
    for s in [Server::maria(), Server::pg()].into_iter().filter_map(|server| Site::start("restic", server)) {
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
