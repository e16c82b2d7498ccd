//! The demo through the binary: the whole migration, failures at every step of the window, several terminals, the audit log.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::have;
use crate::support::project::{Project, RUNBOOK};

/// The `step "…"` names of the cutover's window, in order, up to the point of no return.
fn window_steps(text: &str) -> Vec<String> {
    let window = text.split("downtime \"Cutover\"").nth(1).unwrap().split("point_of_no_return").next().unwrap();
    window.match_indices("step \"").map(|(i, m)| window[i + m.len()..].split('"').next().unwrap().to_string()).collect()
}

#[test]
fn the_demo_moves_the_shop_and_loses_no_order() {
    let dir = tempfile::tempdir().unwrap();
    let demo = dir.path().join("demo");
    let run = |args: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_runbook")).args(args).current_dir(dir.path()).output().unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (code, stdout, stderr) = run(&["demo", "demo", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}\n{stderr}"));
    let down = || run(&["-C", "demo", "lab", "down"]);
    let checked = std::panic::catch_unwind(|| {
        assert_eq!(code, Some(0), "{stdout}\n{stderr}");
        assert_eq!(json["orders_lost"], 0);
        assert!(json["orders_placed"].as_u64().unwrap() > 100, "{json}");
        assert!(json["downtime_s"].as_f64().unwrap() > 0.0, "{json}");
        let id = json["run"].as_str().unwrap();
        let (code, log, stderr) = run(&["-C", "demo", "audit", "export", id]);
        assert_eq!(code, Some(0), "{stderr}");
        assert!(log.lines().count() > 50);
        assert_eq!(run(&["-C", "demo", "audit", "verify", id]).0, Some(0));
        if have("python3") {
            let file = dir.path().join("log.jsonl");
            std::fs::write(&file, &log).unwrap();
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/verify_audit.py");
            let verify = |file: &std::path::Path| Command::new("python3").arg(script).arg(file).output().unwrap().status.success();
            assert!(verify(&file));
            std::fs::write(&file, log.replacen("Lower the TTL", "Lower the tTL", 1)).unwrap();
            assert!(!verify(&file));
        }
        // The project runs again as the closing words say.
        assert!(demo.join(RUNBOOK).exists());
    });
    let (code, ..) = down();
    if let Err(e) = checked {
        std::panic::resume_unwind(e);
    }
    assert_eq!(code, Some(0));
}

#[test]
fn a_failure_at_any_step_of_the_window_can_be_rolled_back_whole() {
    if !have("dig") {
        return;
    }
    let p = Project::new();
    let text = std::fs::read_to_string(p.path().join(RUNBOOK)).unwrap();
    let steps = window_steps(&text);
    assert!(steps.len() >= 8, "{steps:?}");
    p.expect(&["lab", "up"], 0);
    let before = p.world();
    let all = std::env::var_os("RUNBOOK_TEST_ALL").is_some();
    let mut tried = 0;
    for (i, step) in steps.iter().enumerate() {
        // Every other step in the sample, always the ones on both sides of the switch.
        if !all && i % 2 == 1 && !step.contains("Promote") {
            continue;
        }
        tried += 1;
        p.expect(&["lab", "reset"], 0);
        std::fs::write(p.path().join(RUNBOOK), &text).unwrap();
        // At the end of the step's block: everything that it does has been done.
        let at = text.find(&format!("step \"{step}\"")).unwrap();
        let open = at + text[at..].find(" {").unwrap() + 1;
        let (mut depth, mut close) = (0, open);
        for (j, c) in text[open..].char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                close = open + j;
                break;
            }
        }
        let block = text[open + 1..close].trim_end().trim_end_matches(';');
        let broken = format!("{}{{ {block}; throw \"injected\"; {}", &text[..open], &text[close..]).replace("retries: 5", "retries: 0");
        std::fs::write(p.path().join(RUNBOOK), broken).unwrap();
        let ran = p.run(&["run", RUNBOOK, "--env", "demo", "--yes"]);
        assert_eq!(ran.code, Some(1), "{step}: {}\n{}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains("injected"), "{step}: {}", ran.stderr);
        let id = p.newest();
        let ran = p.run(&["rollback", &id]);
        assert_eq!(ran.code, Some(6), "{step}: {}\n{}", ran.stdout, ran.stderr);
        let status = p.settled();
        assert_eq!(status["orders_lost"], 0, "{step}: {status}");
        let mut after = p.world();
        // The logbook says that the move was called off: that is what its undo is for.
        let mut want = before.clone();
        for w in [&mut want, &mut after] {
            w.files.retain(|k, _| !k.ends_with("LOGBOOK"));
        }
        assert_eq!(after, want, "{step}");
        let logbook = std::fs::read_to_string(p.host("old").join("shop/LOGBOOK")).unwrap();
        assert_eq!(logbook, "the shop moves away today\nthe move was called off\n", "{step}");
        p.expect(&["audit", "verify", &id], 0);
    }
    println!("tried {tried} of {} steps of the window", steps.len());
}

#[test]
fn past_the_point_of_no_return_rollback_refuses_and_says_why() {
    let p = Project::new();
    p.edit(
        "proxy(\"new_edge\").maintenance(false); } irreversible",
        "proxy(\"new_edge\").maintenance(false); throw \"injected\"; } irreversible",
    );
    p.expect(&["run", RUNBOOK, "--env", "demo", "--yes"], 1);
    let ran = p.run(&["rollback", &p.newest()]);
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(ran.stderr.contains("RB0014") && ran.stderr.contains("The new database takes writes"), "{}", ran.stderr);
    p.expect(&["lab", "down"], 0);
}

#[test]
fn approve_answers_a_gate_of_a_run_that_waits_in_another_terminal() {
    let p = Project::new();
    let mut waiting = p
        .command(&["run", RUNBOOK, "--env", "demo"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    let id = loop {
        let runs = p.expect(&["runs", "--json"], 0);
        let list = runs.as_array().or_else(|| runs["runs"].as_array()).cloned().unwrap_or_default();
        if let Some(id) = list.first().and_then(|r| r["id"].as_str()) {
            let shown = p.run(&["log", id, "--json"]).stdout;
            if shown.contains("\"gate_asked\"") {
                break id.to_string();
            }
        }
        assert!(Instant::now() < until, "no gate was reached");
        std::thread::sleep(Duration::from_millis(200));
    };
    // A second run on the same environment is refused with the holder's name.
    let ran = p.run(&["run", RUNBOOK, "--env", "demo", "--yes"]);
    assert_eq!(ran.code, Some(7), "{}", ran.stderr);
    assert!(ran.stderr.contains(&id), "{}", ran.stderr);
    p.expect(&["approve", &id, "--comment", "looks good"], 0);
    let until = Instant::now() + Duration::from_secs(60);
    let status = loop {
        if let Some(s) = waiting.try_wait().unwrap() {
            break s;
        }
        assert!(Instant::now() < until, "the run did not go on");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(status.code(), Some(0));
    let log = p.run(&["log", &id, "--json"]).stdout;
    assert!(log.contains("looks good"));
    assert_eq!(p.settled()["orders_lost"], 0);
    p.expect(&["lab", "down"], 0);
}
