//! The controller is killed in the middle, again and again; the run ends as if it never was.

use std::time::Duration;

use super::*;

const RUNBOOK: &str = r#"
let m = docker("n1");
let swarm = m.swarm();
let web = swarm.service("web");
let soon = #{ within: "60s", steady: "300ms" };

step "Init" { swarm.init(#{ advertise: "10.97.0.1" }); } undo { swarm.leave(#{ force: true }); }
for n in ["n2", "n3"] {
    step `${n} joins` { docker(n).swarm().join(m); } undo { docker(n).swarm().leave(); }
}
step "Secret" { swarm.secret("db_1").create(secret("db")); } undo { swarm.secret("db_1").remove(#{ own: true }); }
step "Config" { swarm.config("conf_1").create("one\n"); } undo { swarm.config("conf_1").remove(#{ own: true }); }
step "Service" {
    web.create("base:1", #{ replicas: 2, init: true, secrets: ["db_1"], configs: ["conf_1"], stop_timeout: "1s", update_monitor: "300ms",
        update_parallelism: 0, rollback_parallelism: 0, rollback_monitor: "300ms", within: "60s", steady: "300ms" });
} undo { web.remove(#{ own: true }); }
step "Three" { let was = web.scale(3, soon); if was != 2 { throw `it had ${was}`; } } undo { web.scale(2, soon); }
step "Anew" { web.update(#{ force: true, env: #{ VERSION: "2" }, within: "60s" }); } undo { web.rollback(soon); }
step "Label" { let was = swarm.node("n3").label(#{ disk: "ssd" }); if was.disk != () { throw "it had one"; } } undo { swarm.node("n3").label(#{ disk: () }); }
step "Drain" { swarm.node("n3").drain(); web.wait_converged(soon); } undo { swarm.node("n3").activate(); }
"#;

#[test]
fn a_controller_that_is_killed_again_and_again_leaves_nothing_doubled() {
    let Some(t) = Three::start() else { return };
    let desk = Project::new(&t.inventory(), RUNBOOK);
    let command = |args: &[&str]| {
        let mut c = desk.command(args);
        c.env("RUNBOOK_TEST_DB", "s3cr3t");
        c
    };
    // Where it is killed: at the n-th entry of its journal, after an act and before its outcome is written, or whenever.
    let drive = |first: &[&str], again: &[&str], done: i32| -> (usize, usize, usize) {
        let (mut entries, mut acted, mut random) = (0, 0, 0);
        let mut args = first;
        for n in 0..400usize {
            let mut c = command(args);
            let way = n % 3;
            match way {
                0 => drop(c.env("RUNBOOK_CRASH", "acted:1")),
                1 => drop(c.env("RUNBOOK_CRASH", format!("entry:{}", 3 + n % 4))),
                _ => {}
            }
            let mut child = c.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap();
            if way == 2 {
                std::thread::sleep(Duration::from_millis(300 + (n as u64 * 397) % 1500));
                let _ = child.kill();
            }
            let out = child.wait_with_output().unwrap();
            match out.status.code() {
                None => *[&mut acted, &mut entries, &mut random][way] += 1,
                Some(code) => {
                    let said = String::from_utf8_lossy(&out.stderr);
                    // RB0009: the one before had recorded its end already when it was killed.
                    assert!(code == done || said.contains("RB0009"), "{code}: {said}");
                    return (entries, acted, random);
                }
            }
            args = if desk.json(&["runs"]).1["runs"].as_array().is_some_and(|r| !r.is_empty()) { again } else { first };
        }
        panic!("it gets nowhere");
    };
    let (e, a, r) = drive(&["run", "a.rhai", "--env", "test", "--no-input"], &["resume", "--yes", "--take-over"], 0);
    println!("the run: killed {e} times at an entry, {a} times between act and outcome, {r} times at random");
    assert!(e > 2 && a > 2 && r > 2);
    assert_eq!(t.docker("node ls --format {{.Hostname}}:{{.Status}}").lines().count(), 3, "no node joined twice");
    assert_eq!(t.docker("service ls --format {{.Name}}"), "web");
    assert_eq!(t.docker("secret ls --format {{.Name}}"), "db_1");
    assert_eq!(t.docker("config ls --format {{.Name}}"), "conf_1");
    assert_eq!(t.docker("service inspect web --format {{.Spec.TaskTemplate.ForceUpdate}}"), "1", "updated once");
    assert_eq!(t.docker("service inspect web --format {{.PreviousSpec.TaskTemplate.ForceUpdate}}"), "0");
    assert_eq!(t.runs_on("web").len(), 3);
    assert!(!t.runs_on("web").contains(&"n3".to_string()));

    let (e, a, r) = drive(&["rollback"], &["rollback", "--take-over"], 6);
    println!("its rollback: killed {e} times at an entry, {a} times between act and outcome, {r} times at random");
    for n in 1..=3 {
        assert_eq!(t.engine(n).docker(&["info", "-f", "{{.Swarm.LocalNodeState}}"]), "inactive", "n{n}");
        assert_eq!(t.engine(n).docker(&["ps", "-aq"]), "", "n{n}");
    }
    let (status, out, err) = desk.text(&["audit", "verify"]);
    assert_eq!(status, 0, "{out}{err}");
}
