//! Dies at every entry and between every act and its outcome, goes on (or back), and compares the far side.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use runbook_core::journal::State;
use runbook_core::journal::memory::MemoryStore;

use super::world::{Far, Rig, World};

const SCRIPT: &str = r#"
    import "./lib" as lib;
    let b = box("a");
    let total = 0;
    phase "Prepare" {
        for i in 0..3 {
            step `part ${i}` #{ retries: 2, backoff: "1ms" } { b.work(`p${i}`); total += 1; } undo { b.work(`undo p${i}`); }
        }
        lib::twice(b);
    }
    gate "Go?";
    let got = parallel {
        branch "l" { step "left" { b.work("l1"); b.work("l2") } undo { b.set("l", "back"); } }
        branch "r" { step "right" { b.look("x"); b.work("r1") } undo { b.set("r", "back"); } }
    };
    try { step "caught" { b.work("bad"); } } catch (e) { log(e.code); }
    downtime "Window" #{ budget: "1h" } {
        step "outer" {
            step "inner" { b.set("k", `total ${total} ${got.l}`); } undo { b.set("k", "old"); }
            b.work("after inner");
        } undo { b.work("undo outer"); }
        sleep("2ms");
        wait_until "it is there" #{ every: "1ms" } { b.look("k") != "" }
        step "flaky" #{ retries: 5, backoff: "1ms" } { b.work("flaky"); } undo { b.set("was flaky", "undone"); }
    }
    b.work("outside");
"#;

const LIB: &str = r#"fn twice(b) { for i in 0..2 { step `lib ${i}` { b.work(`lib${i}`); } } }"#;

fn files() -> BTreeMap<String, String> {
    BTreeMap::from([("r.rhai".to_string(), SCRIPT.to_string()), ("lib.rhai".to_string(), LIB.to_string())])
}

fn world() -> World {
    let w = World::default();
    w.lock().fail.extend([("flaky".to_string(), 2), ("bad".to_string(), 1)]);
    w
}

/// What a crash left: the store and the far side at one moment.
type Left = (MemoryStore, Far);

/// Runs (or takes back) and gathers what a crash would leave at every point.
fn every_point(rig: &mut Rig, go: impl Fn(&Rig) -> State) -> (State, Vec<Left>) {
    let left: Arc<Mutex<Vec<Left>>> = Arc::default();
    let (l, store, world) = (left.clone(), rig.store.clone(), rig.world.clone());
    rig.crash = Some(Arc::new(move |_| {
        // The far side is held still while the store is copied: whatever was done there has its intent in the copy.
        let far = world.lock();
        l.lock().push((store.crashed(), far.clone()));
    }));
    let state = go(rig);
    let points = std::mem::take(&mut *left.lock());
    (state, points)
}

fn stable(far: &Far) -> (BTreeMap<String, u32>, BTreeMap<String, String>) {
    (far.count.clone(), far.state.clone())
}

#[test]
fn a_run_killed_anywhere_ends_as_if_it_had_not_been() {
    let mut rig = Rig::with(world(), Arc::default(), files());
    let (state, points) = every_point(&mut rig, |r| r.run().state);
    assert_eq!(state, State::Finished);
    let want = stable(&rig.world.lock());
    assert!(want.0.values().all(|n| *n == 1), "{want:?}");
    let total = points.len();
    for (i, (store, far)) in points.into_iter().enumerate() {
        let again = Rig::with(Arc::new(Mutex::new(far)), Arc::new(store), files());
        match again.controller().resume("run-1", false) {
            Ok(ended) => assert_eq!(ended.state, State::Finished, "point {i}: {:?}", ended.error),
            // The last point is after the end of the run.
            Err(e) => assert!(i + 1 == total, "point {i}: {e}"),
        }
        assert_eq!(stable(&again.world.lock()), want, "point {i} of {total}");
    }
    println!("tried {total} points of a run");
    assert!(total > 80, "{total}");
}

#[test]
fn a_rollback_killed_anywhere_ends_as_if_it_had_not_been() {
    // First what each point of the run looks like when it is taken back from there, undisturbed.
    let mut rig = Rig::with(world(), Arc::default(), files());
    let (_, points) = every_point(&mut rig, |r| r.run().state);
    let mut tried = 0;
    for (i, (store, far)) in points.into_iter().enumerate() {
        let fresh = || (Arc::new(store.crashed()), Arc::new(Mutex::new(far.clone())));
        let (s, w) = fresh();
        let mut back = Rig::with(w, s, files());
        let (state, within) = every_point(&mut back, |r| {
            let ended = r.rollback();
            assert!(ended.error.is_none(), "point {i}: {:?}", ended.error);
            ended.state
        });
        assert_eq!(state, State::RolledBack, "point {i}");
        let want = stable(&back.world.lock());
        assert!(want.0.values().all(|n| *n == 1), "point {i}: {want:?}");
        // Every point of the rollback for some of the points of the run.
        if i % 9 != 4 {
            continue;
        }
        let total = within.len();
        for (j, (store, far)) in within.into_iter().enumerate() {
            tried += 1;
            let again = Rig::with(Arc::new(Mutex::new(far)), Arc::new(store), files());
            match again.controller().rollback("run-1") {
                Ok(ended) => assert_eq!(ended.state, State::RolledBack, "point {i}/{j}: {:?}", ended.error),
                Err(e) => assert!(j + 1 == total, "point {i}/{j}: {e}"),
            }
            assert_eq!(stable(&again.world.lock()), want, "point {i}/{j} of {total}");
        }
    }
    println!("tried {tried} points of rollbacks");
    assert!(tried > 100, "{tried}");
}
