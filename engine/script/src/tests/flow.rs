//! Steps, values, retries, gates, windows, waits, branches, limits.

use runbook_core::Code;
use runbook_core::error::Kind;
use runbook_core::exec::NoAsk;
use runbook_core::journal::{Message, State, Store};

use super::world::Rig;

fn finished(script: &str) -> Rig {
    let rig = Rig::new(script);
    let ended = rig.run();
    assert_eq!(ended.state, State::Finished, "{:?}", ended.error);
    rig
}

#[test]
fn values_come_out_of_steps_phases_and_branches() {
    let rig = finished(
        r#"
        let b = box("a");
        let x = phase "P" { let y = step "S" { b.work("one") }; `${y}!` };
        log(x);
        let m = parallel { branch "l" { b.work("left") } branch "r" { step "inner" { b.work("right") } } };
        log(`${m.l} ${m.r}`);
        let names = parallel { for n in ["u", "v"] { b.work(n) } };
        log(names.u);
        fn f(b) { step "in a function" { b.work("f") } }
        log(f(b));
        for i in 0..3 { step `loop ${i}` { b.work(`w${i}`); } }
    "#,
    );
    assert_eq!(rig.logs(), ["did one!", "did left did right", "did u", "did f"]);
    assert!(rig.world.lock().count.values().all(|n| *n == 1));
    assert_eq!(rig.world.lock().count.len(), 9);
}

#[test]
fn undo_runs_in_reverse_with_the_variables_as_they_were() {
    let rig = Rig::new(
        r#"
        let b = box("a");
        for i in 0..3 { step `s${i}` { b.work(`do${i}`); } undo { b.work(`undo${i}`); } }
        let note = "before";
        step "changes" { note = "after"; b.work("c"); } undo { b.set("note", note); }
        step "fails" { b.work("boom"); } undo { b.set("began", "yes"); }
        step "never" { b.work("never"); } undo { b.work("undo never"); }
    "#,
    );
    rig.world.lock().fail.insert("boom".into(), 9);
    let ended = rig.run();
    assert_eq!((ended.state, ended.error.unwrap().code), (State::Failed, Code::COMMAND_FAILED));
    let ended = rig.rollback();
    assert_eq!(ended.state, State::RolledBack, "{:?}", ended.error);
    let far = rig.world.lock().clone();
    assert_eq!(far.state.get("note").map(String::as_str), Some("after"));
    assert_eq!(far.state.get("began").map(String::as_str), Some("yes"));
    assert!(!far.count.contains_key("undo never"));
    let order: Vec<String> = rig
        .seen
        .0
        .lock()
        .iter()
        .filter_map(|b| if let runbook_core::journal::Body::UndoStarted { path, .. } = b { Some(path.clone()) } else { None })
        .collect();
    assert_eq!(order, ["fails", "changes", "s2", "s1", "s0"]);
    assert_eq!(rig.controller().rollback("run-1").unwrap_err().code, Code::RUN_STATE);
}

#[test]
fn a_retry_does_not_repeat_what_must_not_happen_twice() {
    let rig = Rig::new(
        r#"
        let b = box("a");
        step "s" #{ retries: 3, backoff: "1ms" } { b.work("first"); b.look("k"); b.work("second"); }
        log("done");
    "#,
    );
    rig.world.lock().fail.insert("second".into(), 2);
    let ended = rig.run();
    assert_eq!(ended.state, State::Finished, "{:?}", ended.error);
    let far = rig.world.lock().clone();
    assert_eq!((far.count["first"], far.count["second"], far.reads["k"]), (1, 1, 3));
}

#[test]
fn resume_tries_the_failed_step_again_but_not_one_that_the_script_handled() {
    let rig = Rig::new(
        r#"
        let b = box("a");
        try { step "handled" { b.work("bad"); } } catch (e) { log(e.message); }
        step "fails" { b.work("one"); b.work("boom"); }
        step "after" { b.work("after"); }
    "#,
    );
    rig.world.lock().fail.extend([("boom".to_string(), 1), ("bad".to_string(), 1)]);
    let ended = rig.run();
    assert_eq!(ended.error.as_ref().unwrap().at, ["fails"]);
    let ended = rig.resume();
    assert_eq!(ended.state, State::Finished, "{:?}", ended.error);
    let far = rig.world.lock().clone();
    assert_eq!((far.count["one"], far.count["boom"], far.count["after"]), (1, 1, 1));
    assert!(!far.count.contains_key("bad"));
    assert_eq!(rig.logs(), ["bad failed"]);
    assert_eq!(rig.controller().resume("run-1", false).unwrap_err().code, Code::RUN_STATE);
}

#[test]
fn a_failed_action_outside_of_steps_is_tried_again_on_resume() {
    let rig = Rig::new(r#"let b = box("a"); b.work("one"); b.work("boom"); b.work("two");"#);
    rig.world.lock().fail.insert("boom".into(), 2);
    assert_eq!(rig.run().state, State::Failed);
    assert_eq!(rig.resume().state, State::Failed);
    let ended = rig.resume();
    assert_eq!(ended.state, State::Finished, "{:?}", ended.error);
    assert!(rig.world.lock().count.values().all(|n| *n == 1));
}

#[test]
fn failures_in_several_branches_are_all_named_and_all_tried_again() {
    let rig = Rig::new(
        r#"
        let b = box("a");
        parallel { for n in ["u", "v", "w"] { step "s" { b.work(n); } } }
        log("end");
    "#,
    );
    rig.world.lock().fail.extend([("u".to_string(), 1), ("w".to_string(), 1)]);
    let error = rig.run().error.unwrap();
    assert_eq!(error.code, Code::PARALLEL_FAILED);
    assert!(error.message.contains("u: u failed") && error.message.contains("w: w failed"), "{}", error.message);
    let ended = rig.resume();
    assert_eq!(ended.state, State::Finished, "{:?}", ended.error);
    assert_eq!(rig.world.lock().count.values().copied().collect::<Vec<_>>(), [1, 1, 1]);
}

#[test]
fn a_gate_waits_for_a_person_anywhere() {
    let mut rig = Rig::new(r#"let b = box("a"); b.work("one"); gate "Go?"; b.work("two");"#);
    rig.ask = std::sync::Arc::new(NoAsk);
    let ended = rig.run();
    assert_eq!((ended.state, ended.error.unwrap().code), (State::Paused, Code::PAUSED));
    let answer = |a: &str| Message { kind: "gate".into(), path: "Go?".into(), answer: a.into(), by: "ann".into(), comment: None };
    rig.store.post("run-1", &answer("no")).unwrap();
    let ended = rig.resume();
    assert_eq!(ended.error.unwrap().code, Code::GATE_REFUSED);
    rig.store.post("run-1", &answer("yes")).unwrap();
    assert_eq!(rig.resume().state, State::Finished);
    assert_eq!(rig.world.lock().count["two"], 1);
}

#[test]
fn past_the_point_of_no_return_there_is_no_way_back() {
    let rig = Rig::new(
        r#"
        let b = box("a");
        downtime "W" #{ budget: "1h" } {
            step "s" { b.set("k", "new"); } undo { b.set("k", "old"); }
            point_of_no_return "orders are taken";
            step "t" { b.work("boom"); } irreversible "it is public";
        }
    "#,
    );
    rig.world.lock().fail.insert("boom".into(), 1);
    assert_eq!(rig.run().state, State::Failed);
    let e = rig.controller().rollback("run-1").unwrap_err();
    assert_eq!(e.code, Code::PAST_NO_RETURN);
    assert!(e.message.contains("orders are taken"));
    assert_eq!(rig.resume().state, State::Finished);
    assert_eq!(rig.world.lock().state["k"], "new");
}

#[test]
fn a_window_over_its_budget_rolls_back_when_told_to() {
    let rig = Rig::new(
        r#"
        let b = box("a");
        downtime "W" #{ budget: "20ms", on_overrun: "rollback" } {
            step "s" { b.set("k", "new"); } undo { b.set("k", "old"); }
            sleep("60ms");
            step "t" { b.work("late"); } undo { }
        }
    "#,
    );
    let ended = rig.run();
    assert_eq!(ended.state, State::RolledBack, "{:?}", ended.error);
    let far = rig.world.lock().clone();
    assert_eq!(far.state["k"], "old");
    assert!(!far.count.contains_key("late"));
}

#[test]
fn wait_until_records_only_the_look_that_was_true() {
    let rig = finished(
        r#"
        let b = box("a");
        let seen = 0;
        wait_until "the third look" #{ every: "1ms", within: "5s" } { seen += 1; b.look("n") == "3" }
        log(seen);
        b.work("after");
    "#,
    );
    assert_eq!(rig.logs(), ["1"]);
    let rig = Rig::new(r#"wait_until "never" #{ every: "1ms", within: "20ms" } { false }"#);
    assert_eq!(rig.run().error.unwrap().code, Code::WAIT_TIMEOUT);
    let rig = Rig::new(r#"let b = box("a"); wait_until "changes" { b.work("x"); true }"#);
    assert_eq!(rig.run().error.unwrap().code, Code::BAD_WORD);
}

#[test]
fn a_doubt_that_nobody_can_settle_waits_for_the_operator() {
    let rig = Rig::new(r#"let b = box("a"); step "s" { log(b.work("one")); } undo { b.work("undo one"); }"#);
    // The controller dies between act and outcome, and the far side cannot tell.
    let world = rig.world.clone();
    let store = rig.store.clone();
    let died: std::sync::Arc<parking_lot::Mutex<Option<runbook_core::journal::memory::MemoryStore>>> = Default::default();
    let d = died.clone();
    let mut first = Rig::with(world.clone(), store.clone(), rig.files.clone());
    first.crash = Some(std::sync::Arc::new(move |p| {
        if matches!(p, runbook_core::exec::CrashPoint::Acted(_)) {
            d.lock().get_or_insert_with(|| store.crashed());
        }
    }));
    assert_eq!(first.run().state, State::Finished);
    let left = std::sync::Arc::new(died.lock().take().unwrap());
    world.lock().unknowable = true;
    let second = Rig::with(world.clone(), left.clone(), rig.files.clone());
    let ended = second.resume();
    assert_eq!((ended.state, ended.error.as_ref().unwrap().kind), (State::InDoubt, Kind::InDoubt));
    let path = ended.error.unwrap().details["path"].clone();
    left.post("run-1", &Message { kind: "doubt".into(), path, answer: "done".into(), by: "ann".into(), comment: None }).unwrap();
    let ended = second.resume();
    assert_eq!(ended.state, State::Finished, "{:?}", ended.error);
    assert_eq!(world.lock().count["one"], 1);
}

#[test]
fn an_edited_runbook_goes_on_where_it_still_matches_and_stops_where_not() {
    let mut rig = Rig::new(r#"let b = box("a"); step "s" { b.work("one"); } step "t" { b.work("boom"); }"#);
    rig.world.lock().fail.insert("boom".into(), 99);
    assert_eq!(rig.run().state, State::Failed);
    rig.files.insert("r.rhai".into(), r#"let b = box("a"); step "s" { b.work("ONE"); } step "t" { b.work("two"); }"#.into());
    let before = rig.entries();
    let e = rig.controller().resume("run-1", true).unwrap_err();
    assert_eq!((e.code, e.kind), (Code::MISMATCH, Kind::Mismatch));
    assert_eq!((e.details["recorded"].as_str(), e.details["now"].as_str()), (r#"box("a").work("one")"#, r#"box("a").work("ONE")"#));
    assert_eq!(rig.entries(), before, "nothing was touched");
    assert_eq!(rig.seen.1.lock().pop().unwrap().differing.as_deref(), Some("s"));
    rig.files.insert("r.rhai".into(), r#"let b = box("a"); step "s" { b.work("one"); } step "t" { b.work("two"); }"#.into());
    let ended = rig.controller().resume("run-1", true).unwrap();
    assert_eq!(ended.state, State::Finished, "{:?}", ended.error);
    assert_eq!(rig.world.lock().count.len(), 2);
}

#[test]
fn an_edited_runbook_is_compared_before_anything_is_touched() {
    let script = r#"let b = box("a");
        phase "P" {
            parallel { for n in ["x", "y"] { step "in" { b.work(n); } } }
            step "two" { b.work("two"); }
            try { step "fails" { b.work("no"); } } catch { }
            step "when" #{ when: false } { b.work("never"); }
        }
        gate "Go?";
        step "last" { b.work("boom"); b.work("later"); }"#;
    let mut rig = Rig::new(script);
    rig.world.lock().fail.extend([("boom".to_string(), 99), ("no".to_string(), 99)]);
    assert_eq!(rig.run().state, State::Failed);
    let all = ["P/#0/x/in", "P/#0/y/in", "P/two", "P/when"];
    let sorted = |mut v: Vec<String>| {
        v.sort();
        v
    };
    // The edit; what is found to match (all unless said otherwise), and where it differs.
    let edits: &[(&str, &str, Option<&str>)] = &[
        (r#"b.work("later")"#, r#"b.work("otherwise")"#, None),
        (r#"b.work("boom")"#, r#"b.work("calm")"#, None),
        (r#"step "two""#, r#"log("new"); phase "N" { step "new" { b.work("new"); } } step "two""#, None),
        (r#"gate "Go?";"#, r#"gate "Go?"; step "more" { b.work("more"); }"#, None),
        (r#"step "in" { b.work(n)"#, r#"step "in" { b.work(if n == "y" { "z" } else { n })"#, Some("P/#0/y/in")),
        (r#"step "two""#, r#"step "zwei""#, Some("P/two")),
        (r#"step "two" { b.work("two"); }"#, "", Some("P/two")),
        (r#"step "two""#, r#"b.work("loose"); step "two""#, Some("P/two")),
    ];
    for (from, to, differs) in edits {
        assert!(script.contains(from));
        rig.files.insert("r.rhai".into(), script.replacen(from, to, 1));
        let count = rig.world.lock().count.clone();
        let before = rig.entries();
        let result = rig.controller().resume("run-1", true);
        let found = rig.seen.1.lock().pop().unwrap();
        assert_eq!(found.differing.as_deref(), *differs, "{to}");
        match differs {
            None => {
                assert_eq!(sorted(found.matching), all, "{to}");
                let _ = result.unwrap();
            }
            Some(_) => {
                assert_eq!(result.unwrap_err().code, Code::MISMATCH, "{to}");
                assert_eq!((rig.entries(), rig.world.lock().count.clone()), (before, count), "{to}: nothing was touched");
                assert_eq!(sorted([found.matching, found.open].concat()).len(), 3, "{to}");
                // The runbook that the run has is still the one that matches.
                assert_eq!(rig.resume().state, State::Failed, "{to}");
            }
        }
        // Each edit is tried on the run as it was.
        rig = Rig::new(script);
        rig.world.lock().fail.extend([("boom".to_string(), 99), ("no".to_string(), 99)]);
        assert_eq!(rig.run().state, State::Failed);
    }
}

#[test]
fn limits_and_forbidden_things_are_located_errors() {
    for (script, code) in [
        ("loop { }", Code::LIMIT),
        ("fn f(n) { f(n + 1) }\nf(0);", Code::LIMIT),
        ("let s = \"x\"; loop { s += s; }", Code::LIMIT),
        ("sleep(5);", Code::WRONG_TYPE),
        ("exit();", Code::BAD_WORD),
        ("throw \"no\";", Code::SCRIPT),
        ("let x = #{ a: 1 }; x.b;", Code::UNKNOWN_PROPERTY),
        ("let b = box(\"a\"); b.nmae;", Code::UNKNOWN_PROPERTY),
        ("step \"a\" { } step \"a\" + \"\" { }", Code::STEP_DUPLICATE),
        ("let b = box(\"a\"); b.set(\"k\", |x| x);", Code::NOT_A_RUNBOOK_VALUE),
        ("duration(\"5 parsecs\");", Code::BAD_DURATION),
        ("param(\"none\");", Code::MISSING_PARAM),
    ] {
        let rig = Rig::new(script);
        let e = rig.run().error.unwrap_or_else(|| panic!("{script} went through"));
        assert_eq!(e.code, code, "{script}: {e}");
        let at = e.location.unwrap_or_else(|| panic!("{script}: no place"));
        assert_eq!(at.file, "r.rhai", "{script}");
        assert!(!rig.controller().around.store.runs().unwrap().is_empty());
    }
}

#[test]
fn ctrl_c_stops_before_the_next_action_and_resume_goes_on() {
    let mut rig = Rig::new(r#"let b = box("a"); step "s" { b.work("one"); b.work("two"); }"#);
    let stop = rig.stop.clone();
    rig.crash = Some(std::sync::Arc::new(move |p| {
        if matches!(p, runbook_core::exec::CrashPoint::Acted(_)) {
            stop.cancel();
        }
    }));
    let ended = rig.run();
    assert_eq!((ended.state, ended.error.unwrap().code), (State::Interrupted, Code::INTERRUPTED));
    assert_eq!(rig.world.lock().count.len(), 1);
    rig.stop = Default::default();
    rig.crash = None;
    assert_eq!(rig.resume().state, State::Finished);
    assert!(rig.world.lock().count.values().all(|n| *n == 1));
}

#[test]
fn a_store_that_is_full_never_lets_an_action_pass_unrecorded() {
    for nth in 1..12 {
        let rig = Rig::new(r#"let b = box("a"); step "s" { b.work("one"); b.work("two"); b.set("k", "v"); }"#);
        rig.store.fail_commits(nth, 1000, Code::STORE_FULL);
        let first = rig.controller().run("run-1", &Rig::env(), "r.rhai");
        let code = match &first {
            Err(e) => e.code,
            Ok(ended) => match &ended.error {
                None => break,
                Some(e) => e.code,
            },
        };
        assert_eq!(code, Code::STORE_FULL, "commit {nth}");
        rig.store.fail_commits(1, 0, Code::STORE_FULL);
        if rig.store.runs().unwrap().is_empty() || rig.entries() == 0 {
            continue;
        }
        let ended = rig.resume();
        assert_eq!(ended.state, State::Finished, "commit {nth}: {:?}", ended.error);
        let far = rig.world.lock().clone();
        assert_eq!((far.count["one"], far.count["two"]), (1, 1), "commit {nth}");
    }
}

#[test]
fn a_controller_that_died_just_after_a_failure_is_no_reason_to_resume_twice() {
    let rig = Rig::new(r#"let b = box("a"); step "fails" { b.work("boom"); } step "after" { b.work("after"); }"#);
    rig.world.lock().fail.insert("boom".into(), 1);
    assert_eq!(rig.run().state, State::Failed);
    let entries = rig.entries() - 1;
    let left = std::sync::Arc::new(rig.store.crashed_at("run-1", usize::try_from(entries).unwrap()));
    let again = Rig::with(rig.world.clone(), left, rig.files.clone());
    let ended = again.resume();
    assert_eq!(ended.state, State::Finished, "{:?}", ended.error);
    assert_eq!(rig.world.lock().count["boom"], 1);
}
