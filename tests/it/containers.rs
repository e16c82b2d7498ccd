//! Whole servers: the hosts of `tests/lab`, with systemd and sshd, that reboot, are cut off and run full.

use std::time::{Duration, Instant};

use crate::support::containers::Lab;
use crate::support::desk::until;

#[test]
fn every_host_is_reached_with_strict_host_keys_and_runs_systemd() {
    let Some(lab) = Lab::take() else { return };
    let p = lab.project(
        r#"for h in [old, new, edge, vault] {
            step `on ${h.name}` { log(h.run("hostname; ps -o comm= -p 1; systemctl is-system-running").stdout); }
        }"#,
    );
    p.expect(&["run", "a.rhai", "--env", "test"], 0);
    let log = p.expect(&["log"], 0);
    for host in ["old", "new", "edge", "vault"] {
        assert!(log.contains(&format!("log       {host} systemd running")), "{host}: {log}");
    }
    // Without the lab's list of host keys none of them is trusted.
    p.write("runbook.toml", &lab.inventory().replace("known_hosts = \"", "known_hosts = \"/nonexistent"));
    let (status, _, said) = p.text(&["run", "a.rhai", "--env", "test"]);
    assert!(status == 4 && said.contains("RB0302"), "{status}: {said}");
}

#[test]
fn a_reboot_in_mid_command_is_told_apart_and_put_to_the_operator() {
    let Some(lab) = Lab::take() else { return };
    let p = lab.project(
        r#"step "Half" { old.run("mkdir -p t; echo half >>t/ran; sync; [ -e t/go ] || sleep 600"); }
           step "After" { old.run("echo after >>t/ran"); }"#,
    );
    let boot = || lab.on("old", "cat /proc/sys/kernel/random/boot_id");
    let before = boot();
    let mut run = p.start(&["run", "a.rhai", "--env", "test"]);
    until("the command runs", || lab.try_on("old", "cat /root/t/ran").0);
    lab.fault(&["reboot", "old", "hard"]);
    assert_ne!(boot(), before, "a boot id of its own for each start");
    assert_eq!(run.wait(), 9);
    assert_eq!(p.state(), "in_doubt");
    let shown = p.expect(&["show"], 0);
    assert!(shown.contains("started anew"), "{shown}");
    assert_eq!(lab.on("old", "cat /root/t/ran"), "half\n", "nothing was done while nobody had answered");
    lab.on("old", "touch /root/t/go");
    p.expect(&["resume", "--answer", "retry"], 0);
    assert_eq!(lab.on("old", "cat /root/t/ran"), "half\nhalf\nafter\n");
    p.expect(&["audit", "verify"], 0);
}

#[test]
fn a_host_cut_off_during_a_command_runs_it_once_and_loses_no_output() {
    let Some(lab) = Lab::take() else { return };
    // Shorter than the connection's patience, and longer: then it is given up and made anew.
    for (seconds, lines) in [(5, 120), (50, 600)] {
        let p = lab.project(&format!(
            r#"step "Long" {{
                let r = old.run("mkdir -p t; echo once >>t/ran; i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo line $i; sleep .1; done");
                if r.stdout.split("\n").len() < {lines} {{ throw `${{r.stdout}}`; }}
                new.write_file("t.out", r.stdout);
            }}"#
        ));
        let mut run = p.start(&["run", "a.rhai", "--env", "test"]);
        until("the command runs", || lab.try_on("old", "cat /root/t/ran").0);
        std::thread::sleep(Duration::from_secs(1));
        lab.fault(&["partition", "old"]);
        let cut = Instant::now();
        std::thread::sleep(Duration::from_secs(seconds));
        lab.fault(&["heal"]);
        assert!(cut.elapsed() >= Duration::from_secs(seconds));
        let end = Instant::now() + Duration::from_secs(150);
        while run.0.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "the run does not end after a cut of {seconds} s");
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(run.wait(), 0, "{}", p.expect(&["show"], 0));
        assert_eq!(lab.on("old", "cat /root/t/ran"), "once\n", "{seconds} s");
        let want: String = (1..=lines).map(|i| format!("line {i}\n")).collect();
        assert!(lab.on("new", "cat /root/t.out") == want, "the output is whole after a cut of {seconds} s");
        lab.on("old", "rm -rf /root/t");
    }
}

#[test]
fn a_full_disk_is_an_error_with_its_name_and_the_run_goes_on_once_there_is_room() {
    let Some(lab) = Lab::take() else { return };
    let p = lab.project(
        r#"step "Write" { old.write_file("t/file", "content\n"); }
           step "Run" { old.run("echo ran >>t/ran"); }"#,
    );
    lab.on("old", "mkdir -p /root/t /root/.runbook");
    lab.fault(&["disk-full", "old"]);
    let said = p.expect(&["run", "a.rhai", "--env", "test"], 1);
    assert!(said.contains("RB0401") && said.contains("No space left on device") && said.contains("host old"), "{said}");
    lab.fault(&["heal"]);
    p.expect(&["resume"], 0);
    assert_eq!(lab.on("old", "cat /root/t/file /root/t/ran"), "content\nran\n");
    // The supervisor too needs a little room, and says so before the command begins.
    let p = lab.project(r#"step "Run" { old.run("echo ran >>/tmp/ran-on-full"); }"#);
    lab.on("old", "rm -f /tmp/ran-on-full; rm -rf /root/.runbook");
    lab.fault(&["disk-full", "old"]);
    let said = p.expect(&["run", "a.rhai", "--env", "test"], 1);
    assert!(said.contains("RB0315") && said.contains("No space left on device") | said.contains("disk full"), "{said}");
    assert!(!lab.try_on("old", "test -e /tmp/ran-on-full").0, "nothing ran");
    lab.fault(&["heal"]);
    p.expect(&["resume"], 0);
    assert_eq!(lab.on("old", "cat /tmp/ran-on-full"), "ran\n");
}

#[test]
fn services_of_a_real_systemd_are_started_stopped_and_asked() {
    let Some(lab) = Lab::take() else { return };
    let p = lab.project(
        r#"let nginx = vault.service("nginx");
           step "Stop" { nginx.stop(); }
           step "Start" { nginx.start(); nginx.enable(); }
           step "Again" { nginx.start(); }
           step "It runs" { if !nginx.status().active { throw "it does not run"; } http(`http://${vault.address}/`).expect_status(200); }
           step "Anew" { nginx.restart(); nginx.reload(); }
           step "Broken" { vault.run("echo nonsense >/etc/nginx/conf.d/broken.conf"); nginx.restart(); }"#,
    );
    lab.on("vault", "systemctl stop nginx; systemctl disable -q nginx");
    let said = p.expect(&["run", "a.rhai", "--env", "test"], 1);
    assert!(said.contains("RB0320") && said.contains("nginx"), "{said}");
    assert!(said.contains("nonsense"), "the unit's own words are there: {said}");
    let log = p.expect(&["log"], 0);
    assert!(log.contains("nothing to do (nginx is so already)"), "a service that runs is not started: {log}");
    assert!(log.contains("Broken") && !log.contains("it does not run"), "{log}");
    lab.on("vault", "rm -f /etc/nginx/conf.d/broken.conf; systemctl disable -q nginx; systemctl stop nginx; systemctl reset-failed nginx");
}

#[test]
fn files_go_from_host_to_host_over_a_slow_line_that_breaks() {
    let Some(lab) = Lab::take() else { return };
    lab.on("old", "mkdir -p /root/t/files; for i in 1 2 3 4 5 6; do head -c 3000000 /dev/urandom >/root/t/files/$i; done");
    let sums = "cd /root/t/files && sha256sum *";
    let p = lab.project(r#"step "Copy" { new.copy_from(old, "t/files", "t/files"); }"#);
    // 18 MB at 20 Mbit/s: seven seconds at the least.
    lab.fault(&["slow", "old", "20mbit", "40ms"]);
    let began = Instant::now();
    let mut run = p.start(&["run", "a.rhai", "--env", "test"]);
    until("the copy is under way", || lab.try_on("new", "find /root/t/files -type f | grep .").0);
    lab.fault(&["partition", "new"]);
    std::thread::sleep(Duration::from_secs(4));
    lab.fault(&["heal"]);
    lab.fault(&["slow", "old", "20mbit", "40ms"]);
    let end = Instant::now() + Duration::from_secs(150);
    while run.0.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "the copy does not end");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(run.wait(), 0, "{}", p.expect(&["show"], 0));
    assert!(began.elapsed() > Duration::from_secs(7), "the line was slow");
    assert_eq!(lab.on("new", sums), lab.on("old", sums));
}

/// Nothing lost, nothing doubled, served by the right host; and there was a window, or else it was no cutover.
fn moved(kind: &str, rollback: bool) {
    let Some(lab) = Lab::take() else { return };
    let seen = lab.cutover(kind, rollback);
    assert_eq!(seen["lost"], serde_json::json!([]), "{seen}");
    assert_eq!(seen["doubled"], 0, "{seen}");
    assert_eq!(seen["served_by"], if rollback { "old" } else { "new" }, "{seen}");
    assert!(seen["placed"].as_u64().unwrap() >= 50 && seen["refused"].as_u64().unwrap() > 0, "{seen}");
}

#[test]
fn the_cutover_moves_a_shop_on_mariadb() {
    moved("mariadb", false);
}

#[test]
fn the_cutover_takes_a_shop_on_mariadb_back() {
    moved("mariadb", true);
}

#[test]
fn the_cutover_moves_a_shop_on_postgresql() {
    moved("postgresql", false);
}

#[test]
fn the_cutover_takes_a_shop_on_postgresql_back() {
    moved("postgresql", true);
}
