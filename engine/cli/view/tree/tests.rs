//! A run that everything that shows runs is tried on, and the tree of it.

use serde_json::{Value as Json, json};

use super::*;

/// A finished small run, for tests of everything that shows runs.
pub fn sample() -> Vec<(Timestamp, Body)> {
    use runbook_core::Code;
    use runbook_core::journal::Via;
    let step = |path: &str, attempt, undo| Body::StepStarted { path: path.into(), attempt, undo, at: None, on: None };
    let end = |path: &str, attempt, status, ms, error| Body::StepEnded { path: path.into(), attempt, status, ms, error, reason: None };
    let operator = Operator { user: "ann".into(), host: "ops1".into(), pid: 4711, version: "0.1.0".into(), ..Operator::default() };
    let bodies = vec![
        Body::RunStarted {
            runbook: "runbooks/cutover/runbook.rhai".into(),
            environment: "demo".into(),
            params: Json::Null,
            sources: Default::default(),
            format: 1,
        },
        Body::SessionStarted { purpose: Purpose::Run, operator, fence: 1, edited: None, matching: None, took_over: None },
        Body::PhaseStarted { path: "Prepare".into() },
        step("Prepare/Copy a%2Fb", 1, UndoKind::Block),
        Body::Intent {
            path: "Prepare/Copy a%2Fb/#0".into(),
            action: "x".into(),
            name: "Host.run".into(),
            call: "host(\"old\").run(\"cp\")".into(),
            digest: String::new(),
            effect: "once".into(),
            on: Some("old".into()),
        },
        Body::Output { path: "Prepare/Copy a%2Fb/#0".into(), stream: "stdout".into(), text: "one\ntwo\n".into() },
        Body::Outcome {
            path: "Prepare/Copy a%2Fb/#0".into(),
            action: "x".into(),
            name: "Host.run".into(),
            call: None,
            digest: String::new(),
            effect: "once".into(),
            value: Some(json!({"$": "Output", "v": {"stdout": "one\ntwo\n", "status": 0}})),
            error: None,
            changed: Some(true),
            note: Some("2 files".into()),
            ms: 1200,
            via: Via::Act,
        },
        end("Prepare/Copy a%2Fb", 1, Status::Ok, 1250, None),
        Body::PhaseEnded { path: "Prepare".into(), status: Status::Ok, ms: 1300 },
        Body::GateAsked { path: "Go or no-go?".into(), question: "Go or no-go?".into() },
        Body::GateAnswered { path: "Go or no-go?".into(), yes: true, by: "ann".into(), comment: Some("all quiet".into()) },
        Body::WindowOpened { path: "Cutover".into(), budget_ms: Some(120_000), on_overrun: "ask".into() },
        step("Cutover/Smoke test", 1, UndoKind::None),
        end("Cutover/Smoke test", 1, Status::Failed, 300, Some(Error::new(Code::HTTP, "http://new/health answered 502 instead of 200"))),
        Body::RetryScheduled { path: "Cutover/Smoke test".into(), attempt: 2, after_ms: 1000 },
        step("Cutover/Smoke test", 2, UndoKind::None),
        end("Cutover/Smoke test", 2, Status::Ok, 200, None),
        Body::PointOfNoReturn { path: "Cutover/The new database takes writes".into(), why: "The new database takes writes".into() },
        Body::Log { path: "Cutover/#3".into(), level: "info".into(), message: "half way".into() },
        step("Cutover/Forward", 1, UndoKind::Irreversible),
        end("Cutover/Forward", 1, Status::Failed, 90, Some(Error::new(Code::SSH_LOST, "the connection to host \"old\" was lost"))),
        Body::SessionEnded {
            state: State::Failed,
            at: vec!["Cutover/Forward/#0".into()],
            error: Some(Error::new(Code::SSH_LOST, "the connection to host \"old\" was lost").host("old")),
        },
    ];
    let start: Timestamp = "2026-11-21T03:15:00Z".parse().unwrap_or_default();
    bodies.into_iter().enumerate().map(|(i, b)| (start + jiff::SignedDuration::from_millis(i as i64 * 400), b)).collect()
}

fn tree(entries: &[(Timestamp, Body)]) -> Tree {
    let mut t = Tree::default();
    for (time, body) in entries {
        t.apply(*time, body);
    }
    t
}

#[test]
fn a_run_as_a_tree() {
    let t = tree(&sample());
    insta::assert_snapshot!(t.text(usize::MAX, &|_, s| s.to_string()));
    insta::assert_snapshot!("a_run_as_a_tree_on_a_narrow_terminal", t.text(20, &|_, s| s.to_string()));
    assert_eq!(t.state, Some(State::Failed));
    assert_eq!(t.window().map(|w| w.name.as_str()), Some("Cutover"), "it is still open");
    let mut back = tree(&sample());
    back.apply(sample()[0].0, &Body::SessionEnded { state: State::RolledBack, at: vec![], error: None });
    assert!(back.window().is_none(), "users are served again");
    assert_eq!(t.owner("Cutover/Smoke test@2/#0").and_then(|i| t.nodes.get(i)).map(|n| n.name.as_str()), Some("Smoke test"));
    insta::assert_snapshot!(serde_json::to_string_pretty(&t.json()).unwrap());
}

#[test]
fn a_session_that_goes_on_brings_back_what_was_stopped() {
    let mut entries = sample();
    entries.truncate(4);
    let mut t = tree(&entries);
    let now = entries[0].0;
    t.apply(now, &Body::SessionEnded { state: State::Interrupted, at: vec![], error: None });
    assert_eq!(t.get("Prepare/Copy a%2Fb").unwrap().mark, Mark::Stopped);
    t.apply(
        now,
        &Body::SessionStarted {
            purpose: Purpose::Resume,
            operator: Operator::default(),
            fence: 2,
            edited: None,
            matching: None,
            took_over: None,
        },
    );
    assert_eq!(t.get("Prepare/Copy a%2Fb").unwrap().mark, Mark::Running);
}

#[test]
fn a_step_says_in_which_branch_it_is() {
    let mut t = Tree::default();
    let now = sample()[0].0;
    t.apply(now, &Body::PhaseStarted { path: "Prepare".into() });
    for path in ["Prepare/#1/web%2F1/Copy", "Prepare/#1/web2/Copy", "Prepare/#1/web2/Copy/Inner"] {
        t.apply(now, &Body::StepStarted { path: path.into(), attempt: 1, undo: UndoKind::None, at: None, on: None });
    }
    let names: Vec<&str> = t.nodes.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(names, ["Prepare", "web/1 / Copy", "web2 / Copy", "Inner"]);
}

#[test]
fn every_entry_as_a_line() {
    let text: String = sample().iter().map(|(time, b)| crate::view::lines::describe(b).render(*time)).collect();
    insta::assert_snapshot!(text);
}
