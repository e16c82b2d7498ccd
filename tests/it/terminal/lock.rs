//! The environment's lock, its holder on another machine: named, taken over when asked for, and then fenced off.

use crate::support::desk::{INVENTORY, Project, until};

const GATE: &str = "step \"before\" { log(\"before\"); }\ngate \"Go?\";\nstep \"after\" { log(\"after\"); }";

/// Makes the lock's holder one on another machine, its lease ended long ago or not.
fn move_holder(p: &Project, until: &str) {
    let db = rusqlite::Connection::open(p.dir().join(".runbook/runs.db")).unwrap();
    let text: String = db.query_row("SELECT operator FROM locks", [], |r| r.get(0)).unwrap();
    let mut operator: serde_json::Value = serde_json::from_str(&text).unwrap();
    operator["host"] = "ops-elsewhere".into();
    assert_eq!(db.execute("UPDATE locks SET operator = ?1, until = ?2", [operator.to_string(), until.to_string()]).unwrap(), 1);
}

#[test]
fn a_holder_elsewhere_is_named_taken_over_when_asked_for_and_fenced_off() {
    let p = Project::new(INVENTORY, GATE);
    let first = p.command(&["run", "a.rhai"]).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut first = crate::support::desk::Running(first);
    until("a gate waits", || {
        p.dir().join(".runbook/runs.db").exists()
            && !p.text(&["log", "--json"]).1.contains("\"gate_answered\"")
            && p.text(&["log"]).1.contains("Go?")
    });
    let run = p.newest();
    // The machine sleeps: its lease is not renewed any more.
    first.signal("-STOP");
    move_holder(&p, "2099-01-01T00:00:00Z");
    for args in [&["run", "a.rhai"][..], &["resume", &run], &["resume", &run, "--take-over"], &["rollback", &run]] {
        let text = p.expect(args, 7);
        assert!(text.contains("error[RB0006]") && text.contains("on ops-elsewhere") && text.contains(&run), "{args:?}: {text}");
        assert!(text.contains("lease"), "{args:?} says for how long: {text}");
    }
    move_holder(&p, "2020-01-01T00:00:00Z");
    for args in [&["run", "a.rhai"][..], &["resume", &run], &["rollback", &run]] {
        let text = p.expect(args, 7);
        assert!(text.contains("error[RB0007]") && text.contains("on ops-elsewhere") && text.contains("--take-over"), "{args:?}: {text}");
    }
    let text = p.expect(&["resume", &run, "--take-over", "--no-input"], 5);
    assert!(text.contains("took over from run") && text.contains("ops-elsewhere"), "{text}");
    // The machine wakes up; its gate is answered, and it wants to write that down.
    first.signal("-CONT");
    p.expect(&["approve", &run], 0);
    assert_eq!(first.wait(), 1);
    let mut text = String::new();
    std::io::Read::read_to_string(first.0.stderr.as_mut().unwrap(), &mut text).unwrap();
    assert!(text.contains("error[RB0005]") && text.contains("taken over"), "{text}");
    assert!(!text.contains("go on       runbook resume"), "there is nothing for it to go on with:\n{text}");
    assert_eq!(p.entries("log").len(), 1, "it did nothing more");
    p.expect(&["resume", &run, "--yes"], 0);
    assert_eq!(p.entries("log").len(), 2);
    p.expect(&["audit", "verify"], 0);
}
