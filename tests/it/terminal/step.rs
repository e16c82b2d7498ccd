//! `run --step` on a terminal: every answer that it offers.

use super::signals::read;
use crate::support::desk::Project;
use crate::support::sshd::Sshd;

const RUNBOOK: &str = r#"phase "Prepare" {
    step "One" {
        old.run("echo one >>ran");
    } undo {
        old.run("echo undo one >>ran");
    }
    step "Two" { old.run("echo two >>ran"); }
    step "Three" #{ on: "old" } { old.run("test -e three && echo three >>ran"); } irreversible
        "it is written";
    step "Four" { old.run("echo four >>ran"); }
}"#;

#[test]
fn run_skip_preview_shell_retry_and_quit() {
    let Some(host) = Sshd::start("") else { return };
    let p = Project::on(&host, RUNBOOK);
    let mut s = p.screen(&["run", "a.rhai", "--step"], 60, 100);
    s.answer("? Prepare / One  [r]un (Enter) [s]kip [p]review s[h]ell roll [b]ack [q]uit:", "p");
    s.wait_for(
        "  | step \"One\" {\n  |     old.run(\"echo one >>ran\");\n  | } undo {\n  |     old.run(\"echo undo one >>ran\");\n  | }\n",
    );
    assert_eq!(read(&host.home().join("ran")), "", "a preview does nothing");
    s.answer("? Prepare / One", "x");
    s.answer("that is no answer: type r, s, p, h, b, q", "run");
    s.answer("? Prepare / Two  [r]un", "s");
    s.answer("why is it left out?", "the disk is new");
    s.answer("? Prepare / Three on old  [r]un", "p");
    s.wait_for("\"it is written\"");
    s.answer("? Prepare / Three on old  [r]un", "");
    s.wait_for("error[RB0310]");
    s.answer("? Prepare / Three failed  [r]etry [s]kip", "h");
    // OpenSSH's own client, with what the inventory says of the host.
    s.answer("a shell on old; `exit` comes back to the run", "touch $HOME/three; echo here=$HOME");
    s.wait_for(&format!("here={}", host.home().display()));
    s.keys("exit\n");
    s.wait_for("closed.");
    // A retry is a new attempt, and its question is asked again.
    s.answer("closed.\n? Prepare / Three failed", "r");
    s.answer("? Prepare / Four  [r]un", "q");
    assert_eq!(s.wait(), 5);
    let text = s.text();
    assert!(text.contains("✓ Three") && text.contains("attempt 2") && text.contains("– Two"), "{text}");
    assert!(text.contains("the operator stopped before \"Four\"") && text.contains("paused after"), "{text}");
    assert_eq!(read(&host.home().join("ran")), "one\nthree\n");
    let skipped = p.entries("step_ended").into_iter().find(|e| e["status"] == "skipped").unwrap();
    assert_eq!(skipped["reason"], "the disk is new");
    p.expect(&["resume"], 0);
    assert_eq!(read(&host.home().join("ran")), "one\nthree\nfour\n");
}

#[test]
fn rolling_back_from_a_question_and_from_a_failure() {
    let Some(host) = Sshd::start("") else { return };
    for at in ["? Prepare / Two  [r]un", "? Prepare / Three failed"] {
        let p = Project::on(&host, RUNBOOK);
        let mut s = p.screen(&["run", "a.rhai", "--step"], 60, 100);
        s.answer("? Prepare / One  [r]un", "r");
        if at.contains("failed") {
            s.answer("? Prepare / Two  [r]un", "s no need");
            s.answer("? Prepare / Three on old  [r]un", "r");
        }
        s.answer(at, "b");
        assert_eq!(s.wait(), 6, "{}", s.text());
        let text = s.text();
        assert!(
            text.contains("✓ take back: Prepare / One") && text.contains("was rolled back") && text.contains("1 step taken back"),
            "{text}"
        );
        assert_eq!(read(&host.home().join("ran")), "one\nundo one\n");
        assert_eq!(p.state(), "rolled_back");
        std::fs::remove_file(host.home().join("ran")).unwrap();
    }
}

#[test]
fn ctrl_c_at_a_question_is_no_answer_and_keys_typed_before_it_neither() {
    let p = Project::new(
        crate::support::desk::INVENTORY,
        "step \"One\" { sleep(\"2s\"); log(\"one\"); }\nstep \"Two\" { log(\"two\"); }\nstep \"Three\" { log(\"three\"); }",
    );
    let mut s = p.screen(&["run", "a.rhai", "--step"], 40, 100);
    s.answer("? One  [r]un", "r");
    s.wait_for("One  ");
    // An impatient operator: none of this may run step two.
    s.keys("\n\nr\n");
    s.wait_for("? Two  [r]un");
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(!s.text().contains("? Three"), "{}", s.text());
    s.keys("\x03");
    assert_eq!(s.wait(), 130, "{}", s.text());
    assert!(s.text().contains("interrupted at a question"), "{}", s.text());
    assert_eq!((p.state().as_str(), p.entries("log").len()), ("interrupted", 1));
    let mut s = p.screen(&["resume", "--step"], 40, 100);
    s.answer("? Two  [r]un", "r");
    s.answer("? Three  [r]un", "s not today");
    assert_eq!(s.wait(), 0, "{}", s.text());
    assert_eq!(p.entries("log").len(), 2);
}

#[test]
fn branches_ask_one_after_another() {
    let p = Project::new(crate::support::desk::INVENTORY, "parallel { for n in [\"a\", \"b\", \"c\"] { step `Do ${n}` { log(n); } } }");
    let mut s = p.screen(&["run", "a.rhai", "--step"], 40, 100);
    for n in 1..=3 {
        let questions = || s.text().matches("[r]un (Enter)").count();
        crate::support::desk::until("a question stands there", || questions() >= n);
        std::thread::sleep(std::time::Duration::from_millis(700));
        assert_eq!(questions(), n, "one at a time:\n{}", s.text());
        s.keys("r\n");
    }
    assert_eq!(s.wait(), 0);
    assert_eq!(p.entries("log").len(), 3);
}
