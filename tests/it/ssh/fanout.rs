//! The same on a hundred hosts: the real binary against real OpenSSH servers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use crate::support::desk::{Project, until};
use crate::support::sshd::Sshd;

/// A hundred hosts of the inventory, web1 to web100, on a few servers.
struct Fleet {
    servers: Vec<Sshd>,
}

const HOSTS: usize = 100;
const SERVERS: usize = 4;

impl Fleet {
    fn start() -> Option<Fleet> {
        let servers: Vec<Sshd> = (0..SERVERS).map(|_| Sshd::start("")).collect::<Option<_>>()?;
        Some(Fleet { servers })
    }

    /// The inventory; the hosts in `gone` have an address where nobody listens.
    fn inventory(&self, gone: &[usize]) -> String {
        let mut out = String::new();
        for n in 1..=HOSTS {
            let mut settings = self.servers[n % SERVERS].settings();
            if gone.contains(&n) {
                settings.insert("ssh".into(), "root@127.0.0.1:1".into());
            }
            let _ = writeln!(out, "[environments.test.hosts.web{n}]\nroles = [\"web\"]");
            for (k, v) in settings {
                let _ = writeln!(out, "{k} = {:?}", v.as_str().unwrap());
            }
        }
        out
    }

    fn project(&self, gone: &[usize], script: &str) -> Project {
        Project::new(&self.inventory(gone), script)
    }

    fn home(&self, n: usize) -> PathBuf {
        self.servers[n % SERVERS].home()
    }

    /// How often each file was written to: `web7` → 2.
    fn counts(&self) -> BTreeMap<String, usize> {
        let mut out = BTreeMap::new();
        for s in &self.servers {
            for e in std::fs::read_dir(s.home()).unwrap().flatten() {
                let name = e.file_name().to_string_lossy().into_owned();
                if let Some(name) = name.strip_prefix("count-") {
                    out.insert(name.to_string(), std::fs::read_to_string(e.path()).unwrap().lines().count());
                }
            }
        }
        out
    }

    fn clear(&self) {
        for s in &self.servers {
            for e in std::fs::read_dir(s.home()).unwrap().flatten() {
                if e.path().is_file() {
                    std::fs::remove_file(e.path()).unwrap();
                }
            }
        }
    }
}

/// Leaves a line each time it runs, and fails while there is a file `bad-NAME`.
const WORK: &str = r#"h.run(`echo once >>count-${h.name}; echo ${h.name} is at work; if [ -e bad-${h.name} ]; then echo ${h.name} is broken >&2; exit 7; fi`);"#;

/// The most memory that a process had, in MiB.
fn peak(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}

#[test]
fn a_hundred_hosts_at_the_same_time() {
    let Some(fleet) = Fleet::start() else { return };
    let p = fleet.project(
        &[],
        &format!("let r = hosts(\"web\").each(|h| {{ step \"Work\" {{ {WORK} }} h.run(\"sleep .2; uname\").stdout }});\nlog(`${{r.len()}} ${{r.web100}}`);"),
    );
    let began = std::time::Instant::now();
    let mut run = p.start(&["run", "a.rhai"]);
    let mut most: f64 = 0.0;
    while run.0.try_wait().unwrap().is_none() {
        most = most.max(peak(run.id()).unwrap_or(0.0));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(run.wait(), 0);
    println!("100 hosts, 200 commands: {:.1} s, peak memory of the controller {most:.1} MiB ({})", began.elapsed().as_secs_f64(), build());
    let counts = fleet.counts();
    assert!(counts.len() == HOSTS && counts.values().all(|n| *n == 1), "{counts:?}");
    // As plain lines: each begins with its host.
    fleet.clear();
    let (status, _, err) = p.text(&["run", "a.rhai"]);
    assert_eq!(status, 0, "{err}");
    let of7: Vec<&str> = err.lines().filter(|l| l.contains("web7 ")).collect();
    assert!(of7.iter().any(|l| l.contains("web7    step      Work")), "{err}");
    assert!(of7.iter().any(|l| l.ends_with("web7    | web7 is at work")), "{err}");
    assert!(of7.iter().any(|l| l.contains("web7    done ")), "{err}");
    assert!(err.contains("log       100 Linux"), "{err}");
    // What a host did, by itself.
    let log = p.expect(&["log", "--host", "web7"], 0);
    assert!(log.contains("web7 is at work") && !log.contains("web8") && !log.contains("web70"), "{log}");
    let shown = p.expect(&["show", "--host", "web7"], 0);
    assert!(shown.contains("web7") && shown.contains("Work") && !shown.contains("web8"), "{shown}");
    let all = p.expect(&["show"], 0);
    assert!(all.lines().filter(|l| l.contains("✓ web")).count() == HOSTS && !all.contains("Work"), "a line a host: {all}");
    p.expect(&["show", "--host", "web700"], 3);
}

fn build() -> &'static str {
    if cfg!(debug_assertions) { "debug build" } else { "release build" }
}

#[test]
fn seven_of_a_hundred_fail_and_only_they_act_again() {
    let Some(fleet) = Fleet::start() else { return };
    let bad = [3, 17, 30, 44, 58, 71, 99];
    for n in bad {
        std::fs::write(fleet.home(n).join(format!("bad-web{n}")), "").unwrap();
    }
    let p = fleet.project(
        &[],
        &format!("hosts(\"web\").each(|h| {{ step \"Work\" {{ {WORK} }} undo {{ h.run(`echo back >>count-back-${{h.name}}`); }} }});"),
    );
    let (status, _, err) = p.text(&["run", "a.rhai"]);
    assert_eq!(status, 1, "{err}");
    assert!(err.contains("error[RB0022]: 7 of 100 failed: web3: ") && err.contains("; and 2 more"), "{err}");
    for n in bad {
        assert!(err.contains(&format!("  web{n}  RB0310: ")) && err.contains(&format!("      web{n} is broken")), "{n}: {err}");
    }
    assert_eq!(fleet.counts().values().sum::<usize>(), HOSTS);
    let shown = p.expect(&["show"], 0);
    assert_eq!((shown.matches("✓ web").count(), shown.matches("✗ web").count()), (93, 7), "{shown}");
    for n in bad {
        std::fs::remove_file(fleet.home(n).join(format!("bad-web{n}"))).unwrap();
    }
    p.expect(&["resume"], 0);
    let counts = fleet.counts();
    for n in 1..=HOSTS {
        // A command that failed did run; it runs once more.
        assert_eq!(counts[&format!("web{n}")], if bad.contains(&n) { 2 } else { 1 }, "web{n}");
    }
    p.expect(&["audit", "verify"], 0);
}

#[test]
fn unreachable_hosts_are_named_and_the_others_are_done() {
    let Some(fleet) = Fleet::start() else { return };
    let gone = [5, 50];
    let p = fleet.project(&gone, &format!("hosts(\"web\").each(|h| {{ step \"Work\" {{ {WORK} }} }});"));
    let (status, out, _) = p.text(&["run", "a.rhai", "--json"]);
    let doc: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    let error = &doc["error"];
    assert_eq!((status, error["code"].as_str(), error["retryable"].as_bool()), (1, Some("RB0022"), Some(true)), "{error}");
    let failures = error["failures"].as_array().unwrap();
    let named: Vec<_> = failures.iter().map(|f| (f["name"].as_str().unwrap(), f["error"]["code"].as_str().unwrap())).collect();
    assert_eq!(named, [("web5", "RB0300"), ("web50", "RB0300")], "{error}");
    assert_eq!(fleet.counts().len(), HOSTS - 2);
    let p = fleet.project(&(1..=HOSTS).collect::<Vec<_>>(), "hosts(\"web\").each(|h| { h.wait_ready(#{ within: \"1s\" }); });");
    assert_eq!(p.text(&["run", "a.rhai"]).0, 4, "nothing was reached and nothing was written");
}

#[test]
fn batches_stop_where_too_much_fails_and_go_on_from_there() {
    let Some(fleet) = Fleet::start() else { return };
    for n in [12, 13, 14] {
        std::fs::write(fleet.home(n).join(format!("bad-web{n}")), "").unwrap();
    }
    let p = fleet.project(
        &[],
        &format!("hosts(\"web\").each(#{{ serial: [1, 10, \"20%\"], max_fail: \"2%\" }}, |h| {{ step \"Work\" {{ {WORK} }} }});"),
    );
    let (status, _, err) = p.text(&["run", "a.rhai"]);
    assert_eq!(status, 1, "{err}");
    // 1 + 10 + 20 had begun, in the order in which people count.
    assert!(err.contains("3 of 100 failed: web12: ") && err.contains("not begun: web32, web33, "), "{err}");
    let counts = fleet.counts();
    assert!(counts.len() == 31 && (1..=31).all(|n| counts[&format!("web{n}")] == 1), "{counts:?}");
    let shown = p.expect(&["show"], 0);
    let left_out = shown.lines().filter(|l| l.trim_start().starts_with("– web") && l.ends_with("not begun")).count();
    assert_eq!(left_out, 69, "{shown}");
    for n in [12, 13, 14] {
        std::fs::remove_file(fleet.home(n).join(format!("bad-web{n}"))).unwrap();
    }
    p.expect(&["resume"], 0);
    let counts = fleet.counts();
    assert!(
        counts.len() == HOSTS && counts.iter().all(|(h, n)| *n == if ["web12", "web13", "web14"].contains(&h.as_str()) { 2 } else { 1 })
    );
}

#[test]
fn a_controller_that_is_killed_among_a_hundred_hosts_goes_on_and_repeats_nothing() {
    let Some(fleet) = Fleet::start() else { return };
    let script = r#"hosts("web").each(#{ at_once: 40 }, |h| {
        step "One" { h.run(`echo once >>count-one-${h.name}; sleep .3`); }
        step "Two" { h.run(`echo once >>count-two-${h.name}; sleep .3`); }
    });"#;
    let p = fleet.project(&[], script);
    let mut run = p.start(&["run", "a.rhai"]);
    // Killed several times, each time somewhere else.
    for (kill, enough) in [30, 90, 140].into_iter().enumerate() {
        until("some hosts are at work", || fleet.counts().len() >= enough);
        run.signal("-KILL");
        run.0.wait().unwrap();
        assert!(fleet.counts().len() < 2 * HOSTS, "killed {kill} times too late");
        run = p.start(&["resume"]);
    }
    let status = run.wait();
    assert_eq!(status, 0);
    let counts = fleet.counts();
    assert_eq!(counts.len(), 2 * HOSTS);
    assert!(counts.values().all(|n| *n == 1), "every command ran once on each host: {counts:?}");
    p.expect(&["audit", "verify"], 0);
    println!("killed 3 times among 100 hosts, 200 commands: each ran once");
}

#[test]
fn a_hundred_hosts_on_a_terminal() {
    let Some(fleet) = Fleet::start() else { return };
    std::fs::write(fleet.home(42).join("bad-web42"), "").unwrap();
    let p = fleet.project(
        &[],
        &format!("phase \"Roll out\" {{ hosts(\"web\").each(|h| {{ step \"Prepare\" {{ h.run(`echo ${{h.name}} prepares; sleep 3`); }} step \"Work\" {{ {WORK} }} }}); }}"),
    );
    let mut s = p.screen(&["run", "a.rhai"], 24, 90);
    s.wait_for("prepares");
    s.wait_for("more running");
    let text = s.text();
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    assert!(lines.len() <= 24, "{text}");
    assert!(text.contains("Roll out: each of 100: "), "{text}");
    let rows = lines.iter().filter(|l| l.trim_start().starts_with("web")).count();
    assert!(rows >= 10, "{text}");
    assert!(!text.contains("step"), "{text}");
    assert_eq!(s.wait(), 1);
    let all = s.raw();
    assert!(all.contains("web42 is broken"), "the error is unfolded: {all}");
    let text = s.text();
    assert!(text.contains("web42  RB0310: "), "{text}");
    assert!(all.contains("99 done, 1 failed"), "a summary");
    for n in 1..=HOSTS {
        assert!(n == 42 || all.contains(&format!("\u{1b}[32m✓\u{1b}[0m {:<6} ", format!("web{n}"))), "web{n}");
    }
}

#[test]
fn the_reference_roll_out_stops_goes_on_and_is_taken_back() {
    let Some(fleet) = Fleet::start() else { return };
    let script = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/runbooks/roll-out/runbook.rhai")).unwrap();
    let inventory = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/runbooks/roll-out/runbook.toml")).unwrap();
    let project = || {
        let p = fleet.project(&[], &script);
        // Hosts share their homes here, so that each writes to a file of its own folder.
        let all = fleet.inventory(&[]);
        let few: String = all.split_inclusive("[environments.test.hosts.").filter(|part| !part.is_empty()).take(13).collect();
        let few = few.trim_end_matches("[environments.test.hosts.");
        let params = inventory.split("[environments.production]").next().unwrap();
        p.write("runbook.toml", &format!("{params}\n{few}"));
        p
    };
    let check = Project::new(&inventory, &script);
    check.expect(&["check", "a.rhai"], 0);
    let p = project();
    for s in &fleet.servers {
        std::fs::write(s.home().join("motd"), "old\n").unwrap();
    }
    let run = ["run", "a.rhai", "--param", "path=motd", "--param", "content=new"];
    // The check fails on every host of the second server while a file is there.
    std::fs::write(fleet.servers[1].home().join("broken"), "").unwrap();
    let args: Vec<&str> = run.iter().copied().chain(["--param", "check=test ! -e broken"]).collect();
    let (status, _, err) = p.text(&args);
    assert_eq!(status, 1, "{err}");
    assert!(err.contains("1 of 12 failed: web1: ") && err.contains("not begun: web2, web3, "), "{err}");
    p.expect(&["rollback"], 6);
    let motd = |i: usize| std::fs::read_to_string(fleet.servers[i].home().join("motd")).unwrap();
    assert_eq!((0..SERVERS).map(motd).collect::<Vec<_>>(), ["old\n"; SERVERS]);
    let (status, _, err) = p.text(&args);
    assert_eq!(status, 1, "{err}");
    std::fs::remove_file(fleet.servers[1].home().join("broken")).unwrap();
    p.expect(&["resume"], 0);
    assert_eq!((0..SERVERS).map(motd).collect::<Vec<_>>(), ["new"; SERVERS]);
    assert!((0..SERVERS).all(|i| !fleet.servers[i].home().join("motd.before").exists()));
}
