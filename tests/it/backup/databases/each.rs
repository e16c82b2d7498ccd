//! What is the same with either tool and either server, each pair by itself.

use super::*;

macro_rules! pairs {
    ($($pair:ident = $tool:literal, $server:ident;)*) => {$(
        mod $pair {
            use super::*;

            fn with(test: fn(Site)) {
                if let Some(s) = Site::start($tool, Server::$server()) {
                    test(s);
                }
            }

            #[test]
            fn a_database_goes_into_a_snapshot_and_comes_back() {
                with(goes_in_and_comes_back);
            }

            #[test]
            fn what_is_killed_in_the_middle_leaves_no_snapshot() {
                with(killed_in_the_middle);
            }

            #[test]
            fn a_controller_killed_at_random_makes_one_snapshot_and_leaves_no_database() {
                with(controller_killed);
            }

            #[test]
            fn a_restore_test_fails_by_name() {
                with(fails_by_name);
            }
        }
    )*};
}

pairs! {
    mariadb_restic = "restic", maria;
    postgresql_restic = "restic", pg;
    mariadb_borg = "borg", maria;
    postgresql_borg = "borg", pg;
}

fn goes_in_and_comes_back(s: Site) {
    let kind = s.server.kind();
    let out = s.run("take", r#"let t = vault.snapshot_database(shop, #{ tags: ["before"] }); log(`${t.id} ${t.stream.rows} ${t.stream.sha256} ${t.database} ${t.stream.position}`);"#, 0);
    let all = s.snapshots();
    assert_eq!(all.len(), 1, "{out}");
    let rows = if kind == "mariadb" { 4 } else { 5 };
    assert!(out.contains(&format!("{} {rows} ", all[0])) && out.contains(" shop "), "{kind}: {out}");
    assert!(
        if kind == "mariadb" { out.contains("MASTER_LOG_POS=") && out.contains("gtid_slave_pos") } else { out.contains("not before 0/") },
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

fn killed_in_the_middle(s: Site) {
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

fn group_of(pid: u32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().and_then(|t| t.split(' ').nth(2)).unwrap_or("0").to_string()
}

fn controller_killed(s: Site) {
    let rounds = if std::env::var_os("RUNBOOK_TEST_ALL").is_some() { 12 } else { 2 };
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

fn fails_by_name(s: Site) {
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
    let said: &[&str] = if s.tool == "borg" { &["damaged", "integrity"] } else { &["damaged", "verification failed"] };
    assert!(out.contains("RB0703") && said.iter().any(|w| out.contains(w)), "{out}");
    assert_eq!(s.server.named("runbook_test"), "");
}
