//! `resume --edited` through the binary: which finished steps still match is said, and at the first that does not it stops.

use serde_json::Value as Json;

use super::signals::read;
use crate::support::desk::Project;
use crate::support::sshd::Sshd;

const HEAD: &str = "let old = host(\"old\");\n";
const RUNBOOK: &str = r#"phase "Prepare" {
    step "One" { old.run("echo one >>ran"); } undo { old.run("echo undo one >>ran"); }
    step "Two" { old.run("echo two >>ran"); }
    step "Three" { old.run("echo three >>ran"); }
}
step "Four" { throw "no disk"; }
"#;
const RAN: &str = "one\ntwo\nthree\n";

fn stopped(host: &Sshd) -> Project {
    let p = Project::on(host, RUNBOOK);
    p.expect(&["run", "a.rhai"], 1);
    p
}

fn edit(p: &Project, from: &str, to: &str) {
    assert!(RUNBOOK.contains(from));
    p.write("a.rhai", &format!("{HEAD}{}", RUNBOOK.replacen(from, to, 1)));
}

#[test]
fn what_matches_is_listed_and_the_run_goes_on() {
    let Some(host) = Sshd::start("") else { return };
    let p = stopped(&host);
    edit(&p, "throw \"no disk\"", "log(\"a new disk\")");
    let text = p.expect(&["resume", "--edited"], 0);
    assert!(
        text.contains(
            "3 finished steps of the record still match the edited runbook:\n  ✓ Prepare / One\n  ✓ Prepare / Two\n  ✓ Prepare / Three\n"
        ),
        "{text}"
    );
    assert!(text.contains("with edited files") && text.contains("a new disk"), "{text}");
    let session = p.entries("session_started").pop().unwrap();
    assert_eq!(session["matching"], serde_json::json!(["Prepare/One", "Prepare/Two", "Prepare/Three"]));
    assert!(session["edited"]["a.rhai"].is_string(), "{session}");
    p.expect(&["audit", "verify"], 0);
    assert_eq!(read(&host.home().join("ran")), RAN);
}

#[test]
fn the_first_that_does_not_match_stops_it_before_anything_is_touched() {
    let Some(host) = Sshd::start("") else { return };
    let p = stopped(&host);
    let run = p.newest();
    let before = p.text(&["audit", "export"]).1;
    edit(&p, "echo two", "echo zwei");
    let text = p.expect(&["resume", "--edited"], 1);
    insta::assert_snapshot!("an_edited_runbook_that_does_not_match", text.replace(&run, "RUN"));
    assert_eq!(p.text(&["audit", "export"]).1, before, "nothing was recorded");
    let o = p.run(&["resume", "--edited", "--json"]);
    let doc: Json = serde_json::from_slice(&o.stdout).unwrap();
    assert_eq!(doc["matching"], serde_json::json!(["Prepare/One"]), "{doc}");
    assert_eq!((doc["differing"].as_str(), doc["not_compared"][0].as_str()), (Some("Prepare/Two"), Some("Prepare/Three")), "{doc}");
    assert_eq!((doc["exit"].as_i64(), doc["error"]["code"].as_str()), (Some(1), Some("RB0016")), "{doc}");
    // A step that is gone would not be taken back any more.
    edit(&p, "    step \"Three\" { old.run(\"echo three >>ran\"); }\n", "");
    let text = p.expect(&["resume", "--edited"], 1);
    assert!(text.contains("  ✗ Prepare / Three: does not match") && text.contains("the finished step is gone"), "{text}");
    assert_eq!(read(&host.home().join("ran")), RAN, "nothing was touched");
    // The runbook that the run began with is still the one that it goes on with, forward and back.
    let text = p.expect(&["resume"], 1);
    assert!(text.contains("no disk"), "{text}");
    p.expect(&["rollback"], 6);
    assert_eq!(read(&host.home().join("ran")), format!("{RAN}undo one\n"));
}
