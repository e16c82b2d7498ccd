//! The same on many hosts: values, options, failures by name, what is left out, crashes anywhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use runbook_core::Code;
use runbook_core::journal::memory::MemoryStore;
use runbook_core::journal::{Body, State, Status, Store as _};

use super::world::{Far, Rig};

/// Twenty boxes called web0 … web19.
const BOXES: &str = "let all = []; for i in 0..20 { all.push(box(`web${i}`)); }\n";

fn rig(script: &str) -> Rig {
    Rig::new(&format!("{BOXES}{script}"))
}

fn finished(script: &str) -> Rig {
    let rig = rig(script);
    let ended = rig.run();
    assert_eq!(ended.state, State::Finished, "{:?}", ended.error);
    rig
}

/// Runs and returns the error and how often each name was worked on.
fn failing(rig: &Rig, fail: &[&str]) -> runbook_core::Error {
    rig.world.lock().fail.extend(fail.iter().map(|f| ((*f).to_string(), 1)));
    let ended = rig.run();
    assert_eq!(ended.state, State::Failed, "{:?}", ended.error);
    ended.error.unwrap()
}

fn worked(rig: &Rig) -> usize {
    rig.world.lock().count.len()
}

#[test]
fn values_come_back_by_name_in_order() {
    let rig = finished(
        r#"
        let r = all.each(|b| { step "work" { b.work(b.name) } });
        log(`${r.len()} ${r} ${r.web7} ${r["web8"]} ${r.value("web9")}`);
        log(r.ok() == all.names());
        log(r.values()[19]);
        log(r.to_map().web3);
        b_set(all[0], r);
        fn b_set(b, r) { b.set("given to a primitive", r); }
        let texts = ["x", "y"].each(|t| t + "!");
        log(texts.x + texts.y);
        log([].each(|b| b).len());
        try { r.web77 } catch (e) { log(e.hint) }
        try { r.value("nothing") } catch (e) { log(e.code) }
    "#,
    );
    let logs = rig.logs();
    assert_eq!(logs[0], "20 20 ok did web7 did web8 did web9");
    assert_eq!(logs[1..6], ["true", "did web19", "did web3", "x!y!", "0"]);
    assert_eq!(logs[6..], ["did you mean \"web7\"?", "RB0212"]);
    assert!(rig.world.lock().count.values().all(|n| *n == 1));
    assert!(rig.world.lock().state["given to a primitive"].contains("web19: \"did web19\""));
}

#[test]
fn closures_work_in_functions_modules_steps_and_each_other() {
    let mut rig = rig(r#"
        import "./lib" as lib;
        let suffix = "!";
        let few = [all[0], all[1]];
        let others = few;
        fn both(few, s) { few.each(|b| { step "f" { b.work(`f ${b.name}${s}`) } }) }
        log(both(few, suffix).web1);
        log(lib::both(few).web0);
        step "outer" { few.each(|b| { others.each(|c| { step "inner" { b.work(`${b.name}-${c.name}`) } }) }); } undo { few.each(|b| b.work(`undo ${b.name}`)); }
        let m = parallel { for b in few { few.each(|c| c.look("k")).len() } };
        log(m.web0);
        const FIXED = "fixed";
        log(few.each(|b| { let own = [FIXED]; own.push(suffix); own[1] = own[1] + "?"; own[1] }).web0);
        fn named(b) { `named ${b.name}` }
        log(few.each(Fn("named")).web1);
        b_fails(few);
        fn b_fails(few) { few.each(|b| b.work("boom")) }
    "#);
    rig.files.insert(
        "lib.rhai".into(),
        r#"fn help(b) { b.work(`lib ${b.name}`) } fn both(few) { few.each(|b| { step "lib" { help(b) } }) }"#.into(),
    );
    rig.world.lock().fail.insert("boom".into(), 2);
    let ended = rig.run();
    let e = ended.error.unwrap();
    assert_eq!(e.code, Code::PARALLEL_FAILED, "{e:?}");
    assert_eq!(rig.logs(), ["did f web1!", "did lib web0", "2", "!?", "named web1"]);
    // The failure in the closure points into the closure.
    assert_eq!(e.failures[0].error.location.as_ref().map(|l| l.line), Some(18), "{e:?}");
    assert_eq!(rig.rollback().state, State::RolledBack);
    let far = rig.world.lock().clone();
    assert_eq!((far.count["web0-web1"], far.count["undo web0"], far.count["undo web1"]), (1, 1, 1));
}

#[test]
fn a_branch_cannot_change_what_is_around_it() {
    // Found by the check where it can be seen …
    for (script, column) in [
        ("let t = 0; all.each(|b| { t += 1; });", 27),
        ("let t = 0; all.each(#{ at_once: 2 }, |b| { if true { t = 1; } });", 54),
        ("let t = 0; all.each(|b| { let f = |x| { t = x; }; f.call(1); });", 41),
        ("let t = 0; all.each(|b| { let f = |x| { let g = |y| { t = y; }; g.call(x); }; f.call(1); });", 55),
        ("let t = #{ a: 1 }; all.each(|b| { t.a = 2; });", 35),
        ("let t = [1]; all.each(|b| { step \"s\" { t[0] = 2; } });", 40),
    ] {
        let rig = rig(script);
        let found = rig.controller().check("r.rhai", None);
        let places: Vec<_> = found.iter().map(|e| (e.code, e.location.as_ref().map(|l| (l.line, l.column)))).collect();
        assert_eq!(places, [(Code::BAD_WORD, Some((2, column)))], "{script}: {found:?}");
    }
    let own = rig("all.each(|b| all.len());");
    assert_eq!(own.controller().check("r.rhai", None)[0].hint.as_deref(), Some("use a copy in the closure: let copy = list; before it"));
    assert_eq!(rig("let copy = all; all.each(|b| copy.len());").run().state, State::Finished);
    let window = rig("downtime \"w\" { all.each(|b| { step \"s\" { b.work(\"x\"); } }); }");
    assert!(window.controller().check("r.rhai", None)[0].message.contains("does not say how it is taken back"));
    // … and what is the closure's own is let through.
    let own = rig(
        "all.each(|b| { let t = 0; t += 1; b = box(\"x\"); for i in 0..2 { t += i; } let f = |x| { let t = x; t += 1; t }; t + f.call(1) });",
    );
    assert_eq!(own.controller().check("r.rhai", None), []);
    assert_eq!(own.run().state, State::Finished);
    // … and what another closure does, which is none of the branch's.
    let other = rig("let t = 0; let add = |n| { t += n; }; add.call(2); let r = all.each(|b| { t + 1 }); log(r.web0);");
    assert_eq!(other.controller().check("r.rhai", None), []);
    assert_eq!(other.run().state, State::Finished);
    // … and refused by the run everywhere.
    for script in [
        "let t = []; all.each(|b| { t.push(1); });",
        "let t = #{}; all.each(|b| { t.remove(\"x\"); });",
        "let t = [1]; parallel { for b in all { t.push(1); } };",
        "let t = 0; let add = |n| { t += n; }; all.each(|b| add.call(1));",
        "let t = 0; let add = |n| { t += n; }; parallel { for b in all { add.call(1); } };",
        "let t = 0; let f = |b| { t += 1; }; all.each(f);",
        "let t = [1]; all.each(|b| { step \"s\" #{ retries: 1, backoff: \"1ms\" } { t.push(1); } });",
    ] {
        let rig = rig(script);
        let ended = rig.run();
        let e = ended.error.unwrap_or_else(|| panic!("{script} went through"));
        assert_eq!(e.failures.first().map_or(e.code, |f| f.error.code), Code::BAD_WORD, "{script}: {e:?}");
    }
    let rig =
        finished("let t = [1]; let n = 0; let r = all.each(|b| { t.len() + t[0] + n }); log(r.web0); t.push(2); n += 1; log(t.len() + n);");
    assert_eq!(rig.logs(), ["2", "3"]);
}

#[test]
fn what_cannot_be_done_is_refused_before_anything_begins() {
    for (script, code) in [
        ("all.each(|a, b| a.work(\"x\"));", Code::BAD_WORD),
        ("all.each(#{ at_once: 0 }, |b| b.work(\"x\"));", Code::BAD_WORD),
        ("all.each(#{ seriel: 2 }, |b| b.work(\"x\"));", Code::UNKNOWN_OPTION),
        ("all.push(all[3]); all.each(|b| b.work(\"x\"));", Code::STEP_DUPLICATE),
        ("[|x| x].each(|b| b);", Code::NOT_A_RUNBOOK_VALUE),
        ("parallel #{ max_fail: \"x\" } { branch \"a\" { all[0].work(\"x\"); } };", Code::BAD_WORD),
        ("import \"./lib\" as lib; all.each(lib::make());", Code::BAD_WORD),
    ] {
        let mut rig = rig(script);
        rig.files.insert("lib.rhai".into(), "fn make() { |b| b.work(\"x\") }".into());
        let e = rig.run().error.unwrap_or_else(|| panic!("{script} went through"));
        assert_eq!((e.code, e.hint.is_some(), worked(&rig)), (code, true, 0), "{script}: {e:?}");
        assert_eq!(e.location.as_ref().map(|l| l.line), Some(2), "{script}");
    }
}

#[test]
fn failures_are_named_and_only_they_act_again() {
    let rig = rig(r#"let r = all.each(|b| { step "s" { b.work(b.name); b.look(b.name); } b.work(`then ${b.name}`); }); log(r);"#);
    let e = failing(&rig, &["web3", "then web7", "web11"]);
    assert_eq!(e.code, Code::PARALLEL_FAILED);
    assert_eq!(e.message, "3 of 20 failed: web3: web3 failed; web7: then web7 failed; web11: web11 failed");
    assert_eq!(e.failures.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["web3", "web7", "web11"]);
    assert!(e.retryable && e.not_begun.is_empty() && e.hint.as_ref().unwrap().contains("runbook resume run-1"), "{e:?}");
    assert_eq!(worked(&rig), 18 + 17, "those that had begun ended");
    let reads = rig.world.lock().reads.clone();
    let ended = rig.resume();
    assert_eq!(ended.state, State::Finished, "{:?}", ended.error);
    let far = rig.world.lock().clone();
    assert!(far.count.len() == 40 && far.count.values().all(|n| *n == 1), "{:?}", far.count);
    let again: Vec<&str> = far.reads.iter().filter(|(k, n)| reads.get(*k) != Some(n)).map(|(k, _)| k.as_str()).collect();
    assert_eq!(again, ["web11", "web3"]);
    assert_eq!(rig.logs(), ["20 ok"]);
}

#[test]
fn too_many_failures_keep_the_others_from_beginning() {
    let rig = rig(r#"all.each(#{ at_once: 1, max_fail: 1 }, |b| { step "s" { b.work(b.name); } });"#);
    let e = failing(&rig, &["web1", "web4"]);
    assert_eq!(e.failures.len(), 2);
    assert_eq!(e.not_begun.len(), 15);
    assert!(
        e.message
            .ends_with("not begun: web5, web6, web7, web8, web9, web10, web11, web12, web13, web14, web15, web16, web17, web18, web19")
    );
    assert_eq!(worked(&rig), 3);
    let ended = rig.resume();
    assert_eq!(ended.state, State::Finished, "{:?}", ended.error);
    assert!(worked(&rig) == 20 && rig.world.lock().count.values().all(|n| *n == 1));
}

#[test]
fn batches_follow_each_other_and_stop_at_the_first_failure_unless_told_otherwise() {
    let rig = finished(r#"all.each(#{ serial: [1, 5, "50%"] }, |b| { b.work(b.name); });"#);
    let order = rig.world.lock().order.clone();
    let batch = |from: usize, to: usize| {
        let mut b: Vec<String> = order[from..to].to_vec();
        b.sort_by_key(|n| n[3..].parse::<u32>().unwrap());
        assert_eq!(b, (from..to).map(|i| format!("web{i}")).collect::<Vec<_>>());
    };
    batch(0, 1);
    batch(1, 6);
    batch(6, 16);
    batch(16, 20);

    let stops = self::rig(r#"all.each(#{ serial: 5 }, |b| { step "s" { b.work(b.name); } });"#);
    let e = failing(&stops, &["web6"]);
    assert_eq!((e.failures.len(), e.not_begun.len(), worked(&stops)), (1, 10, 9));
    let goes_on = self::rig(r#"all.each(#{ serial: 5, max_fail: "10%" }, |b| { step "s" { b.work(b.name); } });"#);
    let e = failing(&goes_on, &["web1", "web6", "web7"]);
    assert_eq!((e.failures.len(), e.not_begun.len(), worked(&goes_on)), (3, 10, 7));
    assert_eq!(goes_on.resume().state, State::Finished);

    let rig = self::rig(r#"parallel #{ serial: "10%", max_fail: 0 } { for b in all { step "s" { b.work(b.name); } } };"#);
    let e = failing(&rig, &["web2"]);
    assert_eq!((e.failures.len(), e.not_begun.len(), worked(&rig)), (1, 16, 3));
}

#[test]
fn no_more_run_at_once_than_is_said_and_otherwise_all() {
    let rig = finished(r#"all.each(#{ at_once: 3 }, |b| b.nap("20ms"));"#);
    assert_eq!(rig.world.lock().naps, (0, 3));
    let rig = finished(r#"parallel #{ at_once: 2 } { for b in all { b.nap("10ms"); } };"#);
    assert_eq!(rig.world.lock().naps, (0, 2));
    let rig = finished(r#"all.each(|b| b.nap("500ms"));"#);
    assert_eq!(rig.world.lock().naps, (0, 20));
}

#[test]
fn a_failure_that_the_script_handles_stays_as_it_was_on_every_replay() {
    let rig = rig(r#"
        try { all.each(#{ at_once: 1, max_fail: 0 }, |b| { b.work(b.name); }); }
        catch (e) { log(`${e.failures.keys()} ${e.failures.web2.code} ${e.not_begun.len()}`); }
        let r = all.each(#{ tolerate: true, at_once: 1, max_fail: 1 }, |b| { step "second" { b.work(`again ${b.name}`) } });
        log(`${r}: ${r.ok()} ${r.failed()} ${r.error("web1").message} ${r.not_begun().len()}`);
        try { r.web1 } catch (e) { log(e.message); }
        all[0].work("boom");
    "#);
    let e = failing(&rig, &["web2", "again web1", "again web3", "boom"]);
    assert_eq!(e.code, Code::COMMAND_FAILED);
    let logs = rig.logs();
    assert_eq!(logs[0], r#"["web2"] RB0310 17"#);
    assert_eq!(logs[1], r#"2 ok, 2 failed, 16 not begun: ["web0", "web2"] ["web1", "web3"] again web1 failed 16"#);
    assert_eq!(logs[2], "there is no value for \"web1\", which failed: again web1 failed");
    let before = worked(&rig);
    let ended = rig.resume();
    assert_eq!(ended.state, State::Finished, "{:?}", ended.error);
    assert_eq!((worked(&rig), rig.logs().len()), (before + 1, 3), "only what the run had stopped at");
}

#[test]
fn a_step_that_holds_an_each_is_tried_again_as_a_whole_and_repeats_nothing() {
    let rig =
        rig(r#"step "all" #{ retries: 1, backoff: "1ms" } { all.each(#{ max_fail: 0, at_once: 4 }, |b| b.work(b.name)); } log("end");"#);
    rig.world.lock().fail.extend([("web1".to_string(), 2)]);
    assert_eq!(rig.run().state, State::Failed);
    rig.world.lock().fail.insert("web12".into(), 1);
    assert_eq!(rig.resume().state, State::Finished);
    assert!(worked(&rig) == 20 && rig.world.lock().count.values().all(|n| *n == 1));
}

#[test]
fn a_nested_step_that_failed_is_tried_again_on_resume() {
    let rig = Rig::new(r#"let b = box("a"); step "outer" { b.work("one"); step "inner" { b.work("boom"); } } log("end");"#);
    rig.world.lock().fail.insert("boom".into(), 1);
    assert_eq!(rig.run().error.unwrap().at, ["outer/inner"]);
    let ended = rig.resume();
    assert_eq!(ended.state, State::Finished, "{:?}", ended.error);
    assert_eq!(rig.world.lock().count["one"], 1);
    let rig = self::rig(r#"step "outer" { all.each(|b| { step "s" { b.work(b.name); } }); } log("end");"#);
    let e = failing(&rig, &["web3", "web5"]);
    assert_eq!(e.at, ["outer/#0/web3/s", "outer/#0/web5/s"]);
    let ended = rig.resume();
    assert_eq!(ended.state, State::Finished, "{:?}", ended.error);
    assert!(worked(&rig) == 20 && rig.world.lock().count.values().all(|n| *n == 1));
}

#[test]
fn ctrl_c_stops_every_branch_and_begins_no_other() {
    let mut rig = rig(r#"all.each(#{ at_once: 5 }, |b| { b.work(b.name); b.nap("5ms"); b.work(`then ${b.name}`); });"#);
    let (stop, world) = (rig.stop.clone(), rig.world.clone());
    rig.crash = Some(Arc::new(move |_| {
        if world.lock().count.len() >= 7 {
            stop.cancel();
        }
    }));
    let ended = rig.run();
    assert_eq!((ended.state, ended.error.unwrap().code), (State::Interrupted, Code::INTERRUPTED));
    assert!(worked(&rig) < 20, "{}", worked(&rig));
    rig.stop = Default::default();
    rig.crash = None;
    let ended = rig.resume();
    assert_eq!(ended.state, State::Finished, "{:?}", ended.error);
    assert!(worked(&rig) == 40 && rig.world.lock().count.values().all(|n| *n == 1));
}

#[test]
fn all_that_had_begun_is_undone_in_reverse() {
    let rig = rig(
        r#"all.each(#{ serial: 4, max_fail: 1 }, |b| { step "s" { b.work(b.name); } undo { b.work(`undo ${b.name}`); } step "t" { b.work(`t ${b.name}`); } undo { b.set(b.name, "t undone"); } });"#,
    );
    failing(&rig, &["web2", "t web5", "web6"]);
    let ended = rig.rollback();
    assert_eq!(ended.state, State::RolledBack, "{:?}", ended.error);
    let far = rig.world.lock().clone();
    let undone = (0..20).filter(|i| far.count.contains_key(&format!("undo web{i}"))).collect::<Vec<_>>();
    assert_eq!(undone, [0, 1, 2, 3, 4, 5, 6, 7], "the third batch had not begun");
    assert_eq!(far.state.len(), 6, "{:?}", far.state);
    // In the journal's own order: what is shown of branches at work may come in another.
    let mut all = Vec::new();
    let mut push = |e| {
        all.push(e);
        Ok(())
    };
    rig.store.entries("run-1", 0, &mut push).unwrap();
    let paths = |kind: &str| -> Vec<String> {
        all.iter().filter(|e| e.kind == kind).map(|e| e.data["path"].as_str().unwrap().to_string()).collect()
    };
    let (mut steps, undos) = (paths("step_started"), paths("undo_started"));
    steps.reverse();
    assert_eq!((undos.len(), undos), (steps.len(), steps));
}

#[test]
fn the_journal_tells_which_began_and_how_they_ended() {
    let rig = rig(r#"all.each(#{ serial: 10 }, |b| { b.work(b.name); });"#);
    failing(&rig, &["web4"]);
    let bodies = rig.seen.0.lock().clone();
    let began = bodies.iter().filter(|b| matches!(b, Body::BranchStarted { .. })).count();
    let (mut ok, mut failed) = (0, vec![]);
    for b in &bodies {
        match b {
            Body::BranchesStarted { path, word, names } => assert_eq!((path.as_str(), word.as_str(), names.len()), ("#0", "each", 20)),
            Body::BranchEnded { status: Status::Ok, .. } => ok += 1,
            Body::BranchEnded { path, error, .. } => failed.push((path.clone(), error.as_ref().map(|e| e.code))),
            Body::BranchesEnded { failed, not_begun, .. } => assert_eq!((failed.len(), not_begun.len()), (1, 10)),
            _ => {}
        }
    }
    assert_eq!((began, ok, failed), (10, 9, vec![("#0/web4".to_string(), Some(Code::COMMAND_FAILED))]));
}

#[test]
fn an_edited_runbook_may_not_lose_a_branch_that_had_begun() {
    let mut rig = Rig::new("let all = [box(\"a\"), box(\"b\")]; all.each(|x| { step \"s\" { x.work(x.name); } });");
    rig.world.lock().fail.insert("b".into(), 1);
    assert_eq!(rig.run().state, State::Failed);
    let with = |list: &str| format!("let all = [{list}]; all.each(|x| {{ step \"s\" {{ x.work(x.name); }} }});");
    rig.files.insert("r.rhai".into(), with("box(\"a\"), box(\"c\")"));
    let e = rig.controller().resume("run-1", true).unwrap_err();
    assert_eq!(e.code, Code::MISMATCH, "{e:?}");
    assert!(e.message.contains("\"b\""), "{e:?}");
    rig.files.insert("r.rhai".into(), with("box(\"a\"), box(\"c\"), box(\"b\")"));
    assert_eq!(rig.controller().resume("run-1", true).unwrap().state, State::Finished);
    assert!(rig.world.lock().count.len() == 3 && rig.world.lock().count.values().all(|n| *n == 1));
}

const FLEET: &str = r#"
    let before = "x";
    let got = all.each(#{ serial: [1, 5, "50%"], at_once: 6 }, |b| {
        step "first" #{ retries: 2, backoff: "1ms" } { b.work(`first ${b.name} ${before}`); b.work(`flaky ${b.name}`); } undo { b.work(`undo first ${b.name}`); }
        b.look(b.name);
        step "second" { b.set(b.name, "new") } undo { b.set(b.name, "old"); }
        b.name
    });
    all[0].work(`end ${got.len()} ${got.web19}`);
"#;

fn flaky() -> Far {
    let mut far = Far::default();
    far.fail.extend([("flaky web3".to_string(), 1), ("flaky web8".to_string(), 2)]);
    far
}

type Left = (MemoryStore, Far);

fn every_point(rig: &mut Rig, go: impl Fn(&Rig)) -> Vec<Left> {
    let left: Arc<Mutex<Vec<Left>>> = Arc::default();
    let (l, store, world) = (left.clone(), rig.store.clone(), rig.world.clone());
    rig.crash = Some(Arc::new(move |_| {
        let far = world.lock();
        l.lock().push((store.crashed(), far.clone()));
    }));
    go(rig);
    std::mem::take(&mut *left.lock())
}

fn stable(far: &Far) -> (BTreeMap<String, u32>, BTreeMap<String, String>) {
    (far.count.clone(), far.state.clone())
}

#[test]
fn a_run_killed_anywhere_among_twenty_hosts_ends_as_if_it_had_not_been() {
    let files = BTreeMap::from([("r.rhai".to_string(), format!("{BOXES}{FLEET}"))]);
    let mut rig = Rig::with(Arc::new(Mutex::new(flaky())), Arc::default(), files.clone());
    let points = every_point(&mut rig, |r| assert_eq!(r.run().state, State::Finished));
    let want = stable(&rig.world.lock());
    assert!(want.0.len() == 41 && want.0.values().all(|n| *n == 1), "{want:?}");
    let total = points.len();
    for (i, (store, far)) in points.into_iter().enumerate() {
        let again = Rig::with(Arc::new(Mutex::new(far.clone())), Arc::new(store.crashed()), files.clone());
        match again.controller().resume("run-1", false) {
            Ok(ended) => assert_eq!(ended.state, State::Finished, "point {i}: {:?}", ended.error),
            Err(e) => assert!(i + 1 == total, "point {i}: {e}"),
        }
        assert_eq!(stable(&again.world.lock()), want, "point {i} of {total}");
        // Every seventh is taken back instead: all that had begun, and nothing else.
        if i % 7 == 3 && i + 1 < total {
            let began: Vec<String> = (0..20).map(|n| format!("web{n}")).filter(|n| again_began(&store, n)).collect();
            let back = Rig::with(Arc::new(Mutex::new(far)), Arc::new(store), files.clone());
            let ended = back.controller().rollback("run-1").unwrap();
            assert_eq!(ended.state, State::RolledBack, "point {i}: {:?}", ended.error);
            let far = back.world.lock().clone();
            let undone: Vec<String> =
                (0..20).map(|n| format!("web{n}")).filter(|n| far.count.contains_key(&format!("undo first {n}"))).collect();
            assert_eq!(undone, began, "point {i}");
            assert!(far.count.values().all(|n| *n == 1) && !far.state.values().any(|v| v == "new"), "point {i}: {far:?}");
        }
    }
    println!("tried {total} points of a run over twenty hosts");
    assert!(total > 250, "{total}");
}

/// Whether the first step of this host is on record.
fn again_began(store: &MemoryStore, host: &str) -> bool {
    let step = format!("#0/{host}/first");
    store.log("run-1").iter().any(|e| matches!(e.body(), Ok(Body::StepStarted { path, .. }) if path == step))
}

#[test]
fn what_comes_behind_branches_that_were_left_out_is_compared_and_taken_back_too() {
    let script = r#"
        all.each(#{ tolerate: true, at_once: 1, max_fail: 0 }, |b| { step "s" { b.work(b.name) } undo { b.work(`undo ${b.name}`) } });
        step "behind" { all[0].work("behind") } undo { all[0].work("undo behind") }
        step "end" { all[0].work("boom") }
    "#;
    let mut rig = rig(script);
    rig.world.lock().fail.extend([("web3".to_string(), 99), ("boom".to_string(), 99)]);
    assert_eq!(rig.run().state, State::Failed);
    rig.files.insert("r.rhai".into(), format!("{BOXES}{}", script.replace("\"boom\"", "\"bang\"")));
    rig.world.lock().fail.insert("bang".into(), 99);
    assert_eq!(rig.controller().resume("run-1", true).unwrap().state, State::Failed);
    let found = rig.seen.1.lock().pop().unwrap();
    assert_eq!((found.differing, found.matching.len()), (None, 4), "{:?}", found.matching);
    assert_eq!(rig.rollback().state, State::RolledBack);
    let count = rig.world.lock().count.clone();
    assert_eq!(count.get("undo behind"), Some(&1), "{count:?}");
    assert_eq!(count.get("undo web0"), Some(&1), "{count:?}");
}
