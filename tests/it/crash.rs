//! The crash harness: the controller is killed (SIGKILL) after journal entries and between act and outcome, of the demo's cutover and of
//! its rollback; then the run goes on and the far side is compared.

use crate::support::have;
use crate::support::project::{Project, RUNBOOK, World};

/// How many kills one chain may need; each makes progress, so more means a livelock.
const MANY: u32 = 600;

fn all() -> bool {
    std::env::var_os("RUNBOOK_TEST_ALL").is_some()
}

/// What must hold after the cutover, however often its controller died.
#[track_caller]
fn moved(p: &Project, id: &str, want: Option<&World>, how: &str) -> World {
    let status = p.settled();
    assert_eq!(status["orders_lost"], 0, "{how}: {status}");
    // Commands that must not happen twice leave a line each time they do.
    let logbook = |host: &str| std::fs::read_to_string(p.host(host).join("shop/LOGBOOK")).unwrap_or_default();
    assert_eq!(logbook("old"), "the shop moves away today\nthe shop has moved\n", "{how}");
    assert_eq!(logbook("new"), "the shop has moved\n", "{how}");
    let snapshots = std::fs::read_dir(p.host("vault").join("backups")).unwrap().flatten();
    let snapshots: Vec<String> = snapshots.map(|e| e.file_name().to_string_lossy().into_owned()).filter(|n| !n.starts_with('.')).collect();
    assert_eq!(snapshots.len(), 1, "{how}: {snapshots:?}");
    for host in ["old", "new", "vault"] {
        assert!(!p.host(host).join(".runbook").join(id).exists(), "{how}: {host} keeps the supervisor's folders");
    }
    p.expect(&["audit", "verify", id], 0);
    let world = p.world();
    if let Some(want) = want {
        assert_eq!(&world, want, "{how}");
    }
    world
}

/// How many entries of a run are on disk.
fn entries(p: &Project, id: &str) -> usize {
    p.run(&["audit", "export", id]).stdout.lines().count()
}

/// Kills the controller again and again until the run is done. Every controller dies as early as it can after its own first entry:
/// at the second point, and where that left nothing on disk (an entry that waits for the next commit), one point later.
fn chain(p: &Project, first: &[&str], again: &str, kind: &str, done: i32) -> u32 {
    let mut ran = p.run_dying(first, Some(&format!("{kind}:2")));
    let id = p.newest();
    let (mut kills, mut n) = (0, 2);
    let mut before = entries(p, &id);
    while ran.code.is_none() {
        kills += 1;
        assert!(kills < MANY, "{again} {kind} gets nowhere");
        ran = if again == "rollback" {
            p.run_dying(&[again, &id], Some(&format!("{kind}:{n}")))
        } else {
            p.run_dying(&[again, &id, "--yes"], Some(&format!("{kind}:{n}")))
        };
        // Each controller leaves the entry that says that it began.
        let now = entries(p, &id);
        n = if now > before + 1 { 2 } else { n + 1 };
        before = now;
    }
    // Killed after the last entry: there is nothing left to go on with.
    let over = ran.code == Some(2) && ran.stderr.contains("RB0009");
    assert!(over || ran.code == Some(done), "{again} {kind}: {:?} {}\n{}", ran.code, ran.stdout, ran.stderr);
    kills
}

#[test]
fn a_cutover_killed_anywhere_goes_on_and_ends_the_same() {
    if !have("dig") {
        return;
    }
    let p = Project::new();
    let run = ["run", RUNBOOK, "--env", "demo", "--yes"];
    p.expect(&run, 0);
    let id = p.newest();
    let want = moved(&p, &id, None, "undisturbed");
    let entries = entries(&p, &id);
    let acts = p.run(&["audit", "export", &id]).stdout.matches("\"via\":\"act\"").count();
    let mut tried = 0;

    // One run whose every controller dies: after each second entry (the first is its own), after each second act.
    for crash in ["entry", "acted"] {
        p.expect(&["lab", "reset"], 0);
        tried += chain(&p, &run, "resume", crash, 0);
        moved(&p, &p.newest(), Some(&want), crash);
    }

    // Runs that die once, at one point each.
    let step = |n: usize, sample: usize| if all() { 1 } else { n.div_ceil(sample).max(1) };
    let points = (1..=entries)
        .step_by(step(entries, 3))
        .map(|n| format!("entry:{n}"))
        .chain((1..=acts).step_by(step(acts, 3)).map(|n| format!("acted:{n}")));
    for crash in points {
        p.expect(&["lab", "reset"], 0);
        let ran = p.run_dying(&run, Some(&crash));
        let id = p.newest();
        if ran.code.is_none() {
            tried += 1;
            let state = p.run(&["show", &id, "--json"]).stdout;
            if !state.contains("\"finished\"") {
                let ran = p.run(&["resume", &id, "--yes"]);
                // Killed after the last entry: there is nothing left to go on with.
                assert!(ran.code == Some(0) || ran.stderr.contains("RB0009"), "{crash}: {:?}\n{}", ran.code, ran.stderr);
            }
        }
        moved(&p, &id, Some(&want), &crash);
    }
    println!("the cutover was killed at {tried} points ({entries} entries and {acts} acts in an undisturbed run)");
    assert!(tried > 100, "{tried}");
}

#[test]
fn a_rollback_killed_anywhere_goes_on_and_brings_back_the_world() {
    if !have("dig") {
        return;
    }
    let p = Project::new();
    p.expect(&["lab", "up"], 0);
    let before = p.world();
    // Everything up to the point of no return is done when it fails.
    p.edit("point_of_no_return", "step \"Injected\" { throw \"injected\"; }\n    point_of_no_return");
    let restored = |id: &str, how: &str| {
        let status = p.settled();
        assert_eq!(status["orders_lost"], 0, "{how}: {status}");
        let (mut after, mut want) = (p.world(), before.clone());
        for w in [&mut want, &mut after] {
            w.files.retain(|k, _| !k.ends_with("LOGBOOK"));
        }
        assert_eq!(after, want, "{how}");
        let logbook = std::fs::read_to_string(p.host("old").join("shop/LOGBOOK")).unwrap();
        assert_eq!(logbook, "the shop moves away today\nthe move was called off\n", "{how}");
        p.expect(&["audit", "verify", id], 0);
    };
    // A run that has failed and is to be rolled back, in a fresh world.
    let failed = || {
        p.expect(&["lab", "reset"], 0);
        p.expect(&["run", RUNBOOK, "--env", "demo", "--yes"], 1);
        p.newest()
    };
    let mut tried = 0;

    // One rollback whose every controller dies.
    for crash in ["entry", "acted"] {
        let id = failed();
        tried += chain(&p, &["rollback", &id], "rollback", crash, 6);
        restored(&id, crash);
    }

    // Rollbacks that die once, at one point each, until a rollback lives through: it has no more points.
    for crash in ["entry", "acted"] {
        for n in (1..).step_by(if all() { 1 } else { 20 }) {
            let how = format!("{crash}:{n}");
            let id = failed();
            let ran = p.run_dying(&["rollback", &id], Some(&how));
            let lived = ran.code.is_some();
            if lived {
                assert_eq!(ran.code, Some(6), "{how}: {}\n{}", ran.stdout, ran.stderr);
            } else {
                tried += 1;
                let ran = p.run(&["rollback", &id]);
                // Killed after the last entry: there is nothing left to take back.
                let over = ran.code == Some(2) && ran.stderr.contains("RB0009");
                assert!(over || ran.code == Some(6), "{how}: {:?}\n{}", ran.code, ran.stderr);
            }
            restored(&id, &how);
            if lived {
                break;
            }
        }
    }
    println!("the rollback was killed at {tried} points");
    assert!(tried > 30, "{tried}");
}
