//! A whole server copied file by file: while it is written to, killed anywhere, and refused where it cannot be.

use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;

use runbook_core::primitive::Primitive;

use super::node::Node;
use super::*;

/// The shop's site, where the host `new` has a server that it starts and stops by itself.
struct Whole {
    s: Site,
    new: Node,
}

impl Whole {
    /// With `extra` lines of the new server's configuration.
    async fn new(extra: &str) -> Option<Whole> {
        if !crate::support::have("mariadb-backup") {
            return None;
        }
        let mut s = Site::new()?;
        s.new.down();
        let new = Whole::server(&mut s, extra)?;
        let w = Whole { s, new };
        w.up().await;
        Some(w)
    }

    /// Makes an empty server for the host `new`.
    fn server(s: &mut Site, extra: &str) -> Option<Node> {
        let (node, mut settings) = Node::new(2, extra)?;
        settings.insert("host".into(), "new".into());
        let db = Resource { name: "shop_new".into(), kind: "mariadb".into(), settings };
        s.env.resources.entry(Section::Databases).or_default().insert("shop_new".into(), db);
        s.shared = Arc::default();
        Some(node)
    }

    async fn up(&self) {
        assert!(std::process::Command::new(self.new.dir.path().join("control")).arg("start").status().unwrap().success());
        for _ in 0..400 {
            if self.new.sql("SELECT 1").is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the new server does not start");
    }

    fn sql(&self, sql: &str) -> String {
        self.new.sql(sql).unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    async fn copy(&self) -> Result<Value> {
        self.s.run("shop_new", "replicate_from", args(&[])).await
    }

    /// What lies beside the data folder, and what a copy has left in it.
    fn left(&self) -> Vec<String> {
        let names = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.file_name().into_string().unwrap());
        let beside = names(self.new.dir.path().into()).filter(|n| n.starts_with("data."));
        beside
            .chain(
                names(self.new.dir.path().join("data")).filter(|n| ["runbook", "xtrabackup", "backup-my"].iter().any(|p| n.starts_with(p))),
            )
            .collect()
    }

    /// Both sides are equal once the new one has everything.
    async fn equal(&self) -> Value {
        let fence = self.s.run("shop_old", "fence", vec![]).await.unwrap();
        self.s.run("shop_new", "wait_caught_up", vec![fence.clone(), options(&[("within", "30s".into())])]).await.unwrap();
        let c = self.s.run("shop_old", "compare", vec![handle("shop_new").into()]).await.unwrap();
        assert_eq!(field(&c, "equal"), &Value::Bool(true), "{:?}", field(&c, "differences"));
        fence
    }
}

fn args(more: &[(&str, Value)]) -> Vec<Value> {
    let mut all = vec![("mode", "physical".into())];
    all.extend(more.iter().cloned());
    vec![handle("shop_old").into(), options(&all)]
}

/// Tables of every engine, and what else a server has.
fn fill(old: &Mariadb, rows: u32) {
    old.sql(&format!(
        "USE shop; CREATE TABLE parts (o INT, n INT, note TEXT, PRIMARY KEY (o, n)) ENGINE=InnoDB; INSERT INTO parts SELECT seq, seq % 7, REPEAT('it''s; \\n é', 60) FROM seq_1_to_{rows}; \
         CREATE TABLE pages (i INT PRIMARY KEY, t TEXT) ENGINE=Aria; INSERT INTO pages SELECT seq, REPEAT('aria', 50) FROM seq_1_to_5000; \
         CREATE TABLE notes (i INT PRIMARY KEY, t TEXT) ENGINE=MyISAM; INSERT INTO notes SELECT seq, REPEAT('isam', 50) FROM seq_1_to_5000; \
         CREATE VIEW v AS SELECT COUNT(*) AS n FROM orders; CREATE TABLE log (id INT AUTO_INCREMENT PRIMARY KEY, what TEXT); \
         CREATE FUNCTION f(x INT) RETURNS INT DETERMINISTIC RETURN x + 1; \
         CREATE EVENT e ON SCHEDULE EVERY 1 SECOND DO INSERT INTO log (what) VALUES ('event'); SET GLOBAL event_scheduler = ON; \
         CREATE DATABASE other; CREATE TABLE other.t AS SELECT 1 AS a; CREATE USER report@'%' IDENTIFIED BY 'report-secret'; GRANT SELECT ON other.* TO report@'%'"
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_server_is_copied_while_it_is_written_to_and_moved() {
    let Some(w) = Whole::new("").await else { return };
    fill(&w.s.old, 60_000);
    // What is kept on the primary about itself does not come along.
    w.s.run("shop_old", "fence", vec![]).await.unwrap();
    w.s.run("shop_old", "unfence", vec![]).await.unwrap();
    let mut writer = Writer::open(w.s.old.socket(), w.new.dir.path().join("sock"));
    writer.some().await;
    let noisy = w.s.old.socket();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let isam = std::thread::spawn(move || {
        for n in 10_000.. {
            if stopped.try_recv().is_ok() {
                return;
            }
            let sql = format!("INSERT INTO notes VALUES ({n}, 'n'); INSERT INTO pages VALUES ({n}, 'n')");
            let mut c = std::process::Command::new("mariadb");
            c.args(["--no-defaults", "-uroot", "-S"]).arg(&noisy).args(["shop", "-e", &sql]);
            assert!(c.status().unwrap().success());
        }
    });
    let began = std::time::Instant::now();
    let done = w.copy().await.unwrap();
    println!("copied in {:?}: {done:?}", began.elapsed());
    assert_eq!(field(&done, "changed"), &Value::Bool(true));
    assert!(matches!(field(&done, "bytes"), Value::Bytes(n) if *n > 30 << 20), "{done:?}");
    assert_eq!(w.left(), Vec::<String>::new());
    assert_eq!(w.sql("SELECT value LIKE '%shop_old%' FROM _runbook.state; SELECT COUNT(*) FROM _runbook.state"), "1\n1");
    // Accounts came as files, with their grants; it takes no writes, and its events are the primary's.
    let report = std::process::Command::new("mariadb")
        .args(["--no-defaults", "-N", "-B", "-ureport", "-preport-secret", "-S"])
        .arg(w.new.dir.path().join("sock"))
        .args(["-e", "SELECT a FROM other.t"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&report.stdout), "1\n", "{report:?}");
    assert_eq!(
        w.sql("SELECT @@read_only, @@event_scheduler, status, shop.f(1) FROM information_schema.events"),
        "1\tOFF\tSLAVESIDE_DISABLED\t2"
    );
    // Nothing is left to do, however it is asked.
    for more in [args(&[]), vec![handle("shop_old").into()]] {
        let again = w.s.run("shop_new", "replicate_from", more).await.unwrap();
        assert_eq!(field(&again, "changed"), &Value::Bool(false));
    }
    w.s.run("shop_new", "stop_replication", vec![]).await.unwrap();
    let on = w.copy().await.unwrap();
    assert_eq!((field(&on, "changed"), field(&on, "bytes")), (&Value::Bool(true), &Value::Bytes(0)));
    writer.some().await;
    stop.send(()).unwrap();
    isam.join().unwrap();
    let fence = w.equal().await;
    w.s.run("shop_new", "promote", vec![fence]).await.unwrap();
    writer.new_side.store(true, Ordering::Relaxed);
    writer.some().await;
    assert_eq!(w.sql("SELECT status, @@event_scheduler, @@read_only FROM information_schema.events"), "ENABLED\tON\t0");
    // And back, with the rows that came since.
    w.s.run("shop_new", "demote", vec![handle("shop_old").into()]).await.unwrap();
    w.s.run("shop_old", "unfence", vec![]).await.unwrap();
    writer.some().await;
    writer.close();
    w.equal().await;
    assert!(writer.settle(&w.s.old.sql(ORDERS)) > 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_without_gtids_is_followed_from_file_and_position() {
    let Some(w) = Whole::new("").await else { return };
    w.s.old.sql("RESET MASTER");
    w.copy().await.unwrap();
    assert!(w.sql("SELECT value FROM _runbook.state WHERE name = 'replica'").contains("\"gtid\":false"));
    w.s.old.sql("INSERT INTO shop.orders (item) VALUES ('later')");
    w.equal().await;
    assert_eq!(w.sql(ORDERS), "later");
}

/// Does the copy, killed after each of those times, and then to its end. What the data folder is at each death is looked at.
async fn killed(w: &Whole, cuts: &[Duration]) -> Value {
    let primitive: Arc<dyn Primitive> = w.s.registry.primitives.get(&(Some("Database"), "replicate_from")).unwrap().clone();
    let call = primitive.spec().bind(Some(handle("shop_new")), args(&[])).unwrap();
    let cx = w.s.cx();
    for cut in cuts {
        let cx = Cx { shared: Arc::default(), ..cx.clone() };
        if let Ok(done) = tokio::time::timeout(*cut, primitive.act(&cx, &call)).await {
            return done.unwrap_or_else(|e| panic!("before {cut:?} of {cuts:?}: {e:?}")).value;
        }
        // Never half a copy in its place: what is there is the old one, or what was prepared.
        let data = w.new.dir.path().join("data");
        if data.join("runbook-copy").exists() {
            assert!(data.join("runbook-prepared").exists() && !data.join("runbook-preparing").exists(), "half of it after {cuts:?}");
        }
    }
    let cx = Cx { shared: Arc::default(), ..cx };
    primitive.act(&cx, &call).await.unwrap_or_else(|e| panic!("after {cuts:?}: {e:?}\n{:?}", w.left())).value
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_may_be_killed_at_any_moment() {
    let Some(mut w) = Whole::new("").await else { return };
    fill(&w.s.old, 5000);
    let mut writer = Writer::open(w.s.old.socket(), w.new.dir.path().join("sock"));
    writer.some().await;
    let began = std::time::Instant::now();
    w.copy().await.unwrap();
    let whole = began.elapsed();
    let rounds: u32 = if std::env::var_os("RUNBOOK_TEST_ALL").is_some() { 16 } else { 5 };
    for round in 1..=rounds {
        w.s.run("shop_new", "stop_replication", vec![]).await.unwrap();
        w.new.kill();
        w.new = Whole::server(&mut w.s, "").unwrap();
        w.up().await;
        // Every second time twice: what the first resume finds may be cut as well.
        let cut = whole * round / (rounds + 1);
        let cuts = if round % 2 == 0 { vec![cut, whole / 5 + cut / 3] } else { vec![cut] };
        killed(&w, &cuts).await;
        assert_eq!(w.left(), Vec::<String>::new(), "after {cuts:?}");
        assert!(!at_work(&w), "something of it goes on after {cuts:?}");
        w.equal().await;
        w.s.run("shop_old", "unfence", vec![]).await.unwrap();
    }
    writer.close();
    w.equal().await;
    assert!(writer.settle(&w.sql(ORDERS)) > 20);
    println!("a copy takes {whole:?}; killed in {rounds} places of it: whole each time, no order lost");
}

/// Whether the tool still copies from the old server.
fn at_work(w: &Whole) -> bool {
    let dir = w.s.old.dir.path().display().to_string();
    crate::support::sshd::processes().iter().any(|p| p.command.contains("--backup --stream") && p.command.contains(&dir))
}

/// Kills whatever runs there with these words, once it runs.
fn kill_once(words: &'static str, dir: PathBuf) -> std::thread::JoinHandle<bool> {
    std::thread::spawn(move || {
        let (began, dir) = (std::time::Instant::now(), dir.display().to_string());
        while began.elapsed() < Duration::from_secs(60) {
            for p in crate::support::sshd::processes() {
                if p.command.contains(words) && p.command.contains(&dir) && !p.command.starts_with("sh ") && !p.name.starts_with("sh") {
                    return std::process::Command::new("kill").args(["-KILL", &p.pid.to_string()]).status().unwrap().success();
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        false
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_that_are_killed_fail_the_copy_and_the_next_one_is_whole() {
    let Some(w) = Whole::new("").await else { return };
    fill(&w.s.old, 5000);
    w.s.old.sql("INSERT INTO shop.orders (item) VALUES ('one')");
    let new = || w.new.dir.path().to_path_buf();
    for (words, dir, said) in [
        ("--backup --stream", w.s.old.dir.path().to_path_buf(), "mariabackup ended with status"),
        ("mbstream -x", new(), "mbstream ended with status"),
        ("--prepare", new(), "killed on the host"),
    ] {
        let killer = kill_once(words, dir);
        let e = w.copy().await.unwrap_err();
        assert!(killer.join().unwrap(), "{words} was not seen");
        assert!(e.code == Code::DB_COPY && e.message.contains(said) && e.retryable, "{words}: {e:?}");
        // The old one is where it was, and in use.
        assert_eq!(w.sql("SHOW DATABASES LIKE 'shop'"), "");
    }
    // The way to either host is cut in the middle.
    for host in 0..2 {
        // It waits for this lock, which is held as long as its session has an input.
        let mut locked =
            w.s.old.client().arg("--unbuffered").stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut input = locked.stdin.take().unwrap();
        writeln!(input, "FLUSH TABLES WITH READ LOCK; SELECT 'locked';").unwrap();
        let mut said = String::new();
        std::io::BufReader::new(locked.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "locked\n");
        let cut = async {
            while !at_work(&w) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            w.s._hosts[host].cut();
        };
        let (e, ()) = tokio::join!(w.copy(), cut);
        drop(input);
        locked.wait().unwrap();
        let e = e.unwrap_err();
        assert!(e.retryable, "{e:?}");
        assert_eq!(w.sql("SHOW DATABASES LIKE 'shop'"), "");
    }
    w.copy().await.unwrap();
    w.equal().await;
    assert_eq!(w.left(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_copy_that_was_killed_has_left_goes_with_its_undo() {
    let Some(w) = Whole::new("").await else { return };
    fill(&w.s.old, 5000);
    let primitive = w.s.registry.primitives.get(&(Some("Database"), "replicate_from")).unwrap().clone();
    let call = primitive.spec().bind(Some(handle("shop_new")), args(&[])).unwrap();
    let began = std::time::Instant::now();
    for n in 4.. {
        if !w.left().is_empty() {
            break;
        }
        let cx = Cx { shared: Arc::default(), ..w.s.cx() };
        let _ = tokio::time::timeout(Duration::from_millis(n * 250), primitive.act(&cx, &call)).await.map(|done| panic!("{done:?}"));
        assert!(began.elapsed() < Duration::from_secs(30));
    }
    w.s.run("shop_new", "stop_replication", vec![]).await.unwrap();
    assert_eq!(w.left(), Vec::<String>::new());
    assert_eq!(w.sql("SHOW DATABASES LIKE 'shop'"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_start_on_the_copy_says_why_and_goes_on_once_it_does() {
    let Some(w) = Whole::new("").await else { return };
    fill(&w.s.old, 5000);
    let bad = w.new.dir.path().join("conf.d/own.cnf");
    std::fs::write(&bad, "[mysqld]\nno_such_option = 1\n").unwrap();
    let e = w.copy().await.unwrap_err();
    assert!(e.code == Code::DB_COPY && e.message.contains("does not start on the copy") && e.message.contains("no_such_option"), "{e}");
    assert!(w.new.dir.path().join("data/runbook-copy").exists() && w.new.dir.path().join("data.runbook-replaced").exists());
    std::fs::remove_file(bad).unwrap();
    // The next one does not copy again.
    let e = std::fs::metadata(w.new.dir.path().join("data/ibdata1")).unwrap();
    w.copy().await.unwrap();
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(std::fs::metadata(w.new.dir.path().join("data/ibdata1")).unwrap().ino(), e.ino());
    w.equal().await;
    assert_eq!(w.left(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_is_named_before_anything_is_touched() {
    let Some(mut w) = Whole::new("lower-case-table-names=1").await else { return };
    w.s.old.sql("INSERT INTO shop.orders (item) VALUES ('one')");
    let refused = async |w: &Whole, code: Code, why: &str| {
        let e = w.copy().await.unwrap_err();
        assert!(e.code == code && e.message.contains(why), "{why}: {e:?}");
        assert_eq!(w.left(), Vec::<String>::new(), "{why}");
        assert!(w.new.sql("SELECT 1").is_ok());
    };
    refused(&w, Code::DB_SETTINGS, "lower_case_table_names is 1").await;
    w.sql("CREATE DATABASE precious; CREATE TABLE precious.t (i INT)");
    refused(&w, Code::DB_COPY, "schemas of its own: precious").await;
    w.sql("DROP DATABASE precious");
    w.new.kill();

    w.new = Whole::server(&mut w.s, "").unwrap();
    w.up().await;
    // Accounts come with the copy: the login of the new side must be one of the primary's.
    let admin = "CREATE USER admin@localhost IDENTIFIED BY 'admin \"secret'; GRANT ALL ON *.* TO admin@localhost WITH GRANT OPTION";
    w.s.world.secrets.lock().insert("admin".into(), "admin \"secret".into());
    w.sql(admin);
    w.s.set("shop_new", "user", "admin");
    w.s.set("shop_new", "password", "admin");
    refused(&w, Code::DB_LOGIN, "is worked on as admin").await;
    w.s.old.sql(admin);
    w.s.set("shop_old", "user", "admin");
    w.s.set("shop_old", "password", "admin");
    for (key, value, code, why) in [
        ("control", "/nowhere/control".to_string(), Code::DB_COPY, "/nowhere/control (control) is no program"),
        ("data_dir", "/tmp".to_string(), Code::INVENTORY_MISSING, "has its data in"),
    ] {
        let was = w.s.env.resources[&Section::Databases]["shop_new"].settings[key].clone();
        w.s.set("shop_new", key, value);
        refused(&w, code, why).await;
        w.s.set("shop_new", key, was);
    }
    // Programs of another series, or none.
    let bin = tempfile::tempdir().unwrap();
    let script = "cd \"$1\" && for f in /usr/bin/* /bin/* /usr/sbin/* /sbin/*; do case ${f##*/} in mariabackup|mariadb-backup) ;; *) ln -sf \"$f\" .;; esac; done";
    assert!(std::process::Command::new("sh").args(["-c", script, "sh"]).arg(bin.path()).status().unwrap().success());
    for (host, side) in [(0, "shop_old"), (1, "shop_new")] {
        let name = ["old", "new"][host];
        let Some(sshd) = Sshd::start(&format!("SetEnv PATH={}\n", bin.path().display())) else { return };
        let was = w.s.env.resources[&Section::Hosts][name].settings.clone();
        w.s.env.resources.get_mut(&Section::Hosts).unwrap().get_mut(name).unwrap().settings = sshd.settings();
        w.s.shared = Arc::default();
        refused(&w, Code::HOST_TOOL_MISSING, &format!("the host of \"{side}\" has no mariabackup")).await;
        let fake = bin.path().join("mariabackup");
        std::fs::write(&fake, "#!/bin/sh\necho 'mariabackup based on MariaDB server 10.6.18-MariaDB debian-linux-gnu (x86_64)'\n").unwrap();
        assert!(std::process::Command::new("chmod").arg("755").arg(&fake).status().unwrap().success());
        refused(&w, Code::HOST_TOOL_MISSING, "is of 10.6, and the server of 10.11").await;
        std::fs::remove_file(fake).unwrap();
        w.s.env.resources.get_mut(&Section::Hosts).unwrap().get_mut(name).unwrap().settings = was;
        w.s.shared = Arc::default();
    }
    // Told to, it takes what is there away; and the password is on no command line meanwhile.
    w.sql("CREATE DATABASE precious");
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        let mut seen = false;
        while stopped.try_recv().is_err() {
            let all = crate::support::sshd::processes();
            assert!(!all.iter().any(|p| p.command.contains("admin \"secret")));
            seen |= all.iter().any(|p| p.command.contains("--backup --stream"));
            std::thread::sleep(Duration::from_millis(5));
        }
        seen
    });
    w.s.run("shop_new", "replicate_from", args(&[("replace", true.into())])).await.unwrap();
    stop.send(()).unwrap();
    assert!(watch.join().unwrap(), "the tool was not seen");
    assert_eq!(w.sql("SHOW DATABASES LIKE 'precious'"), "");
    w.equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_has_no_room_or_no_place_is_refused_before_it_begins() {
    let Some(w) = Whole::new("").await else { return };
    fill(&w.s.old, 60_000);
    // Data folder and what is beside it on a small file system.
    assert!(std::process::Command::new(w.new.dir.path().join("control")).arg("stop").status().unwrap().success());
    let aside = tempfile::tempdir_in("/tmp").unwrap();
    let cp = |from: &std::path::Path, to: &std::path::Path| {
        assert!(std::process::Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap().success())
    };
    cp(w.new.dir.path(), aside.path());
    let Some(small) = crate::support::mount::Small::mount(w.new.dir.path().to_path_buf(), "150m,mode=755") else { return };
    cp(aside.path(), w.new.dir.path());
    w.up().await;
    let e = w.copy().await.unwrap_err();
    assert!(e.code == Code::DISK_SPACE && e.message.contains("are free, and about"), "{e}");
    assert_eq!(w.left(), Vec::<String>::new());
    assert!(w.new.sql("SELECT 1").is_ok());
    let down = || assert!(std::process::Command::new(w.new.dir.path().join("control")).arg("stop").status().unwrap().success());
    down();
    drop(small);
    // A file system of its own has room, and cannot be replaced.
    let Some(_own) = crate::support::mount::Small::mount(w.new.dir.path().join("data"), "1g,mode=755") else { return };
    cp(&aside.path().join("data"), &w.new.dir.path().join("data"));
    w.up().await;
    let e = w.copy().await.unwrap_err();
    assert!(e.code == Code::DB_COPY && e.message.contains("is a file system of its own"), "{e}");
    down();
}
