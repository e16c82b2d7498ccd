//! A full disk under the journal, and a damaged journal: no false success, a clear message, resumable once mended.

use crate::support::mount::Small;
use crate::support::project::Project;

const INVENTORY: &str = "[project]\nname = \"disk\"\n\n[environments.here]\n";

/// Writes two megabytes of log, a step at a time, each line different.
const SCRIPT: &str = r#"
    for i in 0..200 {
        step `line ${i}` {
            let text = `${i}:`;
            for j in 0..1000 { text += `${i * 7919 + j * 104729} `; }
            log(text);
        }
    }
"#;

fn project() -> Project {
    let p = Project::new();
    std::fs::write(p.path().join("runbook.toml"), INVENTORY).unwrap();
    std::fs::write(p.path().join("runbooks/disk.rhai"), SCRIPT).unwrap();
    p
}

#[test]
fn a_full_disk_under_the_journal_is_said_and_the_run_goes_on_once_there_is_room() {
    let p = project();
    let folder = p.path().join(".runbook");
    let Some(small) = Small::mount(folder, "1m,mode=0700") else { return };
    let ran = p.run(&["run", "runbooks/disk.rhai", "--env", "here"]);
    assert_ne!(ran.code, Some(0), "{}\n{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("RB0003"), "{}", ran.stderr);
    small.grow("64m");
    let id = p.newest();
    let ran = p.run(&["resume", &id]);
    assert_eq!(ran.code, Some(0), "{}\n{}", ran.stdout, ran.stderr);
    p.expect(&["audit", "verify", &id], 0);
    let log = p.run(&["audit", "export", &id]).stdout;
    let lines = log.lines().filter(|l| l.contains("\"kind\":\"log\"")).count();
    assert_eq!(lines, 200, "each line is there once");
    drop(small);
}

#[test]
fn a_damaged_journal_is_never_taken_for_a_whole_one() {
    let p = project();
    p.expect(&["run", "runbooks/disk.rhai", "--env", "here"], 0);
    let id = p.newest();
    let db = p.path().join(".runbook/runs.db");
    let bytes = std::fs::read(&db).unwrap();
    let entries = p.run(&["audit", "export", &id]).stdout.lines().count();
    for (what, damaged) in [
        ("its last page is torn", bytes[..bytes.len() - 2048].to_vec()),
        ("a page in its middle is zero", {
            let mut b = bytes.clone();
            let at = b.len() / 2 / 4096 * 4096;
            b[at..at + 4096].fill(0);
            b
        }),
    ] {
        std::fs::write(&db, &damaged).unwrap();
        let ran = p.run(&["audit", "verify", &id]);
        assert_eq!(ran.code, Some(8), "{what}\n{}", ran.stdout);
        // A page of nothing but text may be zero in a file that is otherwise in order: then the chain tells.
        assert!(ran.stderr.contains("RB0004") || ran.stderr.contains("RB0017"), "{what}: {}", ran.stderr);
        let ran = p.run(&["audit", "export", &id]);
        let all = ran.stdout.lines().count();
        assert!(ran.code != Some(0) || all == entries, "{what}: {all} of {entries} entries as if that were all");
    }
    // A broken chain in a whole file, and in a damaged one as well: both are told.
    std::fs::write(&db, &bytes).unwrap();
    let conn = rusqlite::Connection::open(&db).unwrap();
    conn.execute(
        "UPDATE entries SET data = replace(data, 'runbooks/disk.rhai', 'runbooks/desk.rhai') WHERE id = (SELECT min(id) FROM entries)",
        [],
    )
    .unwrap();
    let page: i64 = conn.query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'contents'", [], |r| r.get(0)).unwrap();
    drop(conn);
    let ran = p.run(&["audit", "verify", &id]);
    assert_eq!((ran.code, ran.stderr.matches("error[").count()), (Some(8), 1), "{}", ran.stderr);
    assert!(ran.stderr.contains("RB0017") && ran.stderr.contains("entry 0"), "{}", ran.stderr);
    let mut damaged = std::fs::read(&db).unwrap();
    let at = (usize::try_from(page).unwrap() - 1) * 4096;
    damaged[at..at + 4096].fill(0);
    std::fs::write(&db, damaged).unwrap();
    let ran = p.run(&["audit", "verify", &id]);
    assert_eq!(ran.code, Some(8), "{}", ran.stderr);
    assert!(ran.stderr.contains("RB0017") && ran.stderr.contains("RB0004"), "{}", ran.stderr);
    let json = p.expect(&["audit", "verify", &id, "--json"], 8);
    let codes: Vec<&str> = json["errors"].as_array().into_iter().flatten().filter_map(|e| e["code"].as_str()).collect();
    assert_eq!(codes, ["RB0017", "RB0004"], "{json}");
    // Mended from a copy, everything is there again.
    std::fs::write(&db, &bytes).unwrap();
    p.expect(&["audit", "verify", &id], 0);
}
