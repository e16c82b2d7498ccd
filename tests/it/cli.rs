//! The real binary: bad input, gates and locks across processes, signals, the audit log. Nothing is contacted but a server of the tests' own.

use serde_json::Value as Json;

use crate::support::desk::{INVENTORY, Project};
use crate::support::sshd::Sshd;

const SHOP: &str =
    "[environments.test.hosts.old]\nssh = \"nobody@127.0.0.1:1\"\n[environments.test.databases.shop]\nkind = \"mariadb\"\nhost = \"old\"\n";

/// Each case: the inventory, the runbook, the code, and where it is (with its file).
#[test]
fn bad_input_is_a_located_error_with_exit_2_or_3() {
    let broken = INVENTORY.replace("[params]", "[params");
    let wrong_type = INVENTORY.replace("\"nobody@127.0.0.1:1\"", "22");
    let cases: &[(&str, &str, &str, &str)] = &[
        (&broken, "1", "RB0102", "runbook.toml:2:"),
        (&wrong_type, "1", "RB0104", "runbook.toml:10:7"),
        (INVENTORY, "let x = ;", "RB0200", "a.rhai:1:9"),
        (INVENTORY, "step \"x\" {\n  let y = olt;\n}", "RB0201", "a.rhai:2:11"),
        (INVENTORY, "secret(\"nope\");", "RB0109", "a.rhai:1:1"),
        (INVENTORY, "step \"x\" { secret(\"unset\"); }", "RB0109", "a.rhai:1:"),
        (INVENTORY, "step \"x\" { sleep(5); }", "RB0205", "a.rhai:1:"),
        (SHOP, "let shop = database(\"shop\");\nstep \"x\" { shop.promote(\"a fence\"); }", "RB0205", "a.rhai:2:25"),
        (
            SHOP,
            "let shop = database(\"shop\");\nlet f = #{ id: \"x\", proven: true };\nstep \"x\" { shop.promote(f); }",
            "RB0205",
            "a.rhai:3:25",
        ),
        (SHOP, "fn over(shop) { shop.promote(\"a fence\") }\nover(database(\"shop\"));", "RB0205", "a.rhai:1:30"),
        (SHOP, "let shop = database(\"shop\");\nstep \"x\" { shop.promote(); }", "RB0202", "a.rhai:2:17"),
        (INVENTORY, "step \"x\" { sleep(\"5\"); }", "RB0203", "a.rhai:1:"),
        (INVENTORY, "let i = 0;\nwhile true { i += 1; }", "RB0207", "a.rhai:2:"),
        (INVENTORY, "fn f(n) { f(n + 1) + 1 }\nf(1);", "RB0207", "a.rhai:2:"),
        (INVENTORY, "import \"../../etc/passwd\" as x;", "RB0110", "a.rhai:1:"),
        (INVENTORY, "import \"/etc/passwd\" as x;", "RB0110", "a.rhai:1:"),
        (INVENTORY, "let x = open_file(\"/etc/passwd\");", "RB0202", "a.rhai:1:9"),
        (INVENTORY, "let x = eval(\"1\");", "RB0211", "a.rhai:1:9"),
    ];
    for (inventory, runbook, code, place) in cases {
        let p = Project::new(inventory, runbook);
        let (status, _, err) = p.text(&["run", "a.rhai"]);
        assert!([2, 3].contains(&status), "{runbook}: exit {status}\n{err}");
        assert!(
            err.contains(&format!("error[{code}]")) && err.contains(&format!("--> {place}")),
            "{runbook}: not {code} at {place}\n{err}"
        );
        let o = p.run(&["run", "a.rhai", "--json"]);
        let out = String::from_utf8(o.stdout).unwrap();
        let last: Json = serde_json::from_str(out.lines().last().unwrap_or_default()).unwrap_or_else(|e| panic!("{runbook}: {e}: {out}"));
        assert_eq!((last["error"]["code"].as_str(), last["exit"].as_i64()), (Some(*code), Some(i64::from(status))), "{runbook}");
        assert!(out.lines().all(|l| serde_json::from_str::<Json>(l).is_ok()), "{runbook}: {out}");
    }
}

#[test]
fn unknown_names_and_values_on_the_command_line() {
    let p = Project::new(INVENTORY, "1");
    for (args, code, status) in [
        (&["run", "a.rhai", "--env", "tset"][..], "RB0105", 3),
        (&["run", "b.rhai"], "RB0111", 3),
        (&["run", "/etc/hostname"], "RB0110", 3),
        (&["run", "a.rhai", "--param", "count=many"], "RB0108", 3),
        (&["run", "a.rhai", "--param", "cuont=1"], "RB0108", 3),
        (&["run", "a.rhai", "--param", "count"], "RB0100", 2),
        (&["run", "a.rhai", "--step"], "RB0100", 2),
        (&["run"], "RB0100", 2),
        (&["plan", "a.rhai"], "RB0100", 2),
        (&["show"], "RB0008", 2),
        (&["resume"], "RB0008", 2),
        (&["explain", "RB9999"], "RB0100", 2),
        (&["lab", "up"], "RB0100", 2),
        (&["-C", "/nowhere", "runs"], "RB0101", 2),
        (&["init"], "RB0113", 2),
        (&["demo", "."], "RB0113", 2),
    ] {
        let (got, _, err) = p.text(args);
        assert_eq!(got, status, "{args:?}\n{err}");
        assert!(err.contains(&format!("error[{code}]")), "{args:?}\n{err}");
        let (got, doc) = p.json(args);
        assert_eq!((got, doc["error"]["code"].as_str()), (status, Some(code)), "{args:?}");
    }
}

#[test]
fn a_run_that_only_thinks_finishes_and_its_log_verifies() {
    let p = Project::new(INVENTORY, "phase \"A\" { step \"b\" { log(`${param(\"greeting\")} ${param(\"count\")}`); } }");
    let (status, out, err) = p.text(&["run", "a.rhai", "--param", "greeting=guten Tag"]);
    assert_eq!(status, 0, "{err}");
    assert!(out.contains("finished") && err.contains("guten Tag 3"), "{out}{err}");
    let run = p.newest();
    let (status, out, _) = p.text(&["audit", "export", &run]);
    assert_eq!(status, 0);
    let lines: Vec<&str> = out.lines().collect();
    let entries: Vec<Json> = lines.iter().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(entries[0]["kind"], "run_started");
    assert_eq!(entries[0]["prev"], "0".repeat(64));
    std::fs::write(p.dir().join("log.jsonl"), &out).unwrap();
    let (status, text, _) = p.text(&["audit", "verify", "log.jsonl"]);
    assert_eq!(status, 0, "{text}");
    let head = entries.last().unwrap()["hash"].as_str().unwrap();
    assert_eq!(p.text(&["audit", "verify", &run, "--head", head]).0, 0);
    // A changed word, an entry that is missing, an end that is cut off.
    for (name, bad) in
        [("changed", out.replace("guten Tag", "guten Abend")), ("missing", format!("{}\n", [&lines[..2], &lines[3..]].concat().join("\n")))]
    {
        std::fs::write(p.dir().join("bad.jsonl"), bad).unwrap();
        let (status, _, err) = p.text(&["audit", "verify", "bad.jsonl"]);
        assert_eq!(status, 8, "{name}: {err}");
        assert!(err.contains("error[RB0017]"), "{name}: {err}");
    }
    std::fs::write(p.dir().join("short.jsonl"), format!("{}\n", lines[..lines.len() - 1].join("\n"))).unwrap();
    assert_eq!(p.text(&["audit", "verify", "short.jsonl"]).0, 0, "a chain alone cannot show that");
    assert_eq!(p.text(&["audit", "verify", "short.jsonl", "--head", head]).0, 8);
    // Looking at a finished run.
    assert_eq!(p.text(&["resume", &run]).0, 2);
    let (_, doc) = p.json(&["show", &run]);
    assert_eq!((doc["run"]["state"].as_str(), doc["nodes"].as_array().unwrap().len()), (Some("finished"), 2));
}

#[test]
fn json_lines_of_a_run_are_the_exported_entries() {
    let p = Project::new(INVENTORY, "step \"b\" { log(\"x\"); }");
    let (status, lines, _) = p.text(&["run", "a.rhai", "--json"]);
    assert_eq!(status, 0);
    assert_eq!(lines, p.text(&["audit", "export"]).1);
    assert_eq!(lines, p.text(&["log", "--json"]).1);
}

const GATE: &str = "step \"before\" { log(\"before\"); }\ngate \"Go?\";\nstep \"after\" { log(\"after\"); }";

#[test]
fn another_terminal_answers_a_gate_and_a_second_run_is_refused() {
    let p = Project::new(INVENTORY, GATE);
    let mut first = p.waiting(&["run", "a.rhai"]);
    let run = p.newest();
    let (status, _, err) = p.text(&["run", "a.rhai"]);
    assert_eq!(status, 7, "{err}");
    assert!(err.contains("error[RB0006]") && err.contains(&run) && err.contains(&format!("pid {}", first.id())), "{err}");
    let (status, out, _) = p.text(&["approve", &run, "--comment", "all quiet"]);
    assert_eq!(status, 0);
    assert!(out.contains("the run goes on"), "{out}");
    assert_eq!(first.wait(), 0);
    let (_, log, _) = p.text(&["log", &run]);
    assert!(log.contains("yes by") && log.contains("all quiet") && log.contains("after"), "{log}");
    assert_eq!(p.text(&["approve", &run]).0, 2, "nothing is asked any more");
}

#[test]
fn without_input_a_gate_pauses_the_run() {
    let p = Project::new(INVENTORY, GATE);
    let (status, _, err) = p.text(&["run", "a.rhai", "--no-input"]);
    assert_eq!(status, 5, "{err}");
    assert!(err.contains("error[RB0011]") && err.contains("runbook approve"), "{err}");
    let run = p.newest();
    assert_eq!(p.text(&["approve", &run, "--no"]).0, 0);
    let (status, _, err) = p.text(&["resume", &run, "--no-input"]);
    assert_eq!(status, 5, "{err}");
    assert!(err.contains("error[RB0012]"), "{err}");
    assert_eq!(p.text(&["approve", &run]).0, 0);
    assert_eq!(p.text(&["resume", &run, "--no-input"]).0, 0);
    let p = Project::new(INVENTORY, GATE);
    assert_eq!(p.text(&["run", "a.rhai", "--yes"]).0, 0);
}

#[test]
fn ctrl_c_stops_resumable() {
    let p = Project::new(INVENTORY, GATE);
    for signal in ["-INT", "-TERM"] {
        let mut first = p.waiting(&["run", "a.rhai"]);
        first.signal(signal);
        assert_eq!(first.wait(), 130, "{signal}");
        assert_eq!(p.json(&["show"]).1["run"]["state"], "interrupted");
        assert_eq!(p.text(&["resume", "--yes"]).0, 0);
    }
}

#[test]
fn a_killed_controller_leaves_a_run_that_goes_on() {
    let p = Project::new(INVENTORY, GATE);
    let first = p.waiting(&["run", "a.rhai"]);
    let run = p.newest();
    drop(first);
    let (_, out, _) = p.text(&["runs"]);
    assert!(out.contains("its controller is gone"), "{out}");
    let (status, _, err) = p.text(&["run", "a.rhai"]);
    assert_eq!(status, 7, "{err}");
    assert!(err.contains("error[RB0007]") && err.contains(&format!("runbook resume {run}")), "{err}");
    assert_eq!(p.text(&["resume", &run, "--yes"]).0, 0);
    let (status, out, _) = p.text(&["audit", "verify", &run]);
    assert_eq!(status, 0, "{out}");
}

#[test]
fn a_failed_run_says_where_and_what_next_and_can_be_rolled_back() {
    let p = Project::new(
        INVENTORY,
        "phase \"A\" { step \"one\" { log(\"did\"); } undo { log(\"took back\"); } }\nphase \"B\" { step \"two\" { throw \"no disk\"; } }",
    );
    let (status, _, err) = p.text(&["run", "a.rhai"]);
    assert_eq!(status, 1, "{err}");
    let run = p.newest();
    assert!(err.contains("error[RB0208]") && err.contains("no disk") && err.contains("--> a.rhai:2:"), "{err}");
    assert!(err.contains(&format!("runbook resume {run}")) && err.contains(&format!("runbook rollback {run}")), "{err}");
    let (_, shown, _) = p.text(&["show"]);
    assert!(shown.contains("✗ two") && shown.contains("Stopped at B / two"), "{shown}");
    let (status, _, err) = p.text(&["rollback", &run]);
    assert_eq!(status, 6, "{err}");
    assert!(err.contains("took back"), "{err}");
    assert_eq!(p.json(&["show"]).1["run"]["state"], "rolled_back");
    assert_eq!(p.text(&["rollback", &run]).0, 2);
}

#[test]
fn a_name_must_be_confirmed() {
    let p =
        Project::new(&INVENTORY.replace("[environments.test.hosts", "[environments.test]\nconfirm = true\n[environments.test.hosts"), "1");
    let (status, _, err) = p.text(&["run", "a.rhai", "--yes"]);
    assert_eq!(status, 2, "{err}");
    assert!(err.contains("error[RB0112]") && err.contains("--confirm test"), "{err}");
    assert_eq!(p.text(&["run", "a.rhai", "--confirm", "tset"]).0, 2);
    assert_eq!(p.text(&["run", "a.rhai", "--confirm", "test"]).0, 0);
}

#[test]
fn a_new_project_has_no_mistakes_and_help_comes_for_everything() {
    let dir = tempfile::tempdir().unwrap();
    let p = Project::of(dir);
    assert_eq!(p.text(&["init", "new"]).0, 0);
    let (status, out, err) = p.text(&["-C", "new", "check"]);
    assert_eq!(status, 0, "{err}");
    assert!(out.contains("runbooks/hello/runbook.rhai"), "{out}");
    for args in [
        &["explain", "RB0301"][..],
        &["completions", "bash"],
        &["man"],
        &["man", "audit", "verify"],
        &["definitions"],
        &["--version"],
        &["run", "--help"],
    ] {
        let (status, out, err) = p.text(args);
        assert!(status == 0 && out.len() > 10, "{args:?}: {status} {err}");
    }
    assert!(p.text(&["explain", "rb301"]).1.starts_with("RB0301: A host refuses the login"));
}

#[test]
fn a_host_that_is_not_reached_before_the_first_write_is_exit_4() {
    let gone = Project::new(INVENTORY, "host(\"old\").run(\"true\");");
    let (status, _, said) = gone.text(&["run", "a.rhai"]);
    assert_eq!(status, 4, "the command has provably not begun: {said}");
    assert_eq!(gone.text(&["resume"]).0, 4, "nor has it in the record");
    let Some(host) = Sshd::start("") else { return };
    let runbook = "old.run(\"echo once >>ran\"); host(\"gone\").run(\"true\");";
    let p = Project::on(&host, runbook);
    let inventory = std::fs::read_to_string(p.dir().join("runbook.toml")).unwrap();
    p.write("runbook.toml", &format!("{inventory}\n[environments.test.hosts.gone]\nssh = \"nobody@127.0.0.1:1\"\n"));
    assert_eq!(p.text(&["run", "a.rhai"]).0, 1, "something was done before");
    assert_eq!(p.text(&["resume"]).0, 1);
}
