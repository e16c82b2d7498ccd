//! Keeps `docs/reference/journal.md` true to `entry.rs`, and the journals of earlier versions readable (`tests/journals/`).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value as Json, json};

use super::conformance::{now, ready};
use super::memory::MemoryStore;
use super::{Batch, Body, Entry, Store, line, verify_lines};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn snake(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.extend(c.to_lowercase());
    }
    out
}

/// A member of a type in the source: its name, its type (none for a variant), its doc comment, its own members.
#[derive(Default, Debug)]
struct Member {
    name: String,
    ty: String,
    doc: String,
    optional: bool,
    members: Vec<Member>,
}

/// Reads `pub enum NAME {…}` or `pub struct NAME {…}` as rustfmt lays it out.
fn parse(source: &str, name: &str) -> Member {
    let mut lines = source.lines().peekable();
    let mut head = Member { name: name.into(), ..Member::default() };
    for line in lines.by_ref() {
        match line.strip_prefix("/// ") {
            Some(doc) => head.doc = [&head.doc, doc].join(" ").trim().to_string(),
            None if [format!("pub enum {name} {{"), format!("pub struct {name} {{")].contains(&line.to_string()) => break,
            None if line.starts_with("#[") => {}
            None => head.doc.clear(),
        }
    }
    let mut next = Member::default();
    for line in lines {
        let deep = line.starts_with("        ");
        let line = line.trim();
        if let Some(doc) = line.strip_prefix("/// ") {
            next.doc = [&next.doc, doc].join(" ").trim().to_string();
        } else if line.starts_with("#[serde(default") {
            next.optional = true;
        } else if line.starts_with("#[") || line == "}," {
        } else if line == "}" {
            break;
        } else {
            let line = line.trim_start_matches("pub ").trim_end_matches(',').trim_end_matches(" {");
            let (name, ty) = line.split_once(": ").unwrap_or((line, ""));
            next.name = if ty.is_empty() { snake(name) } else { name.to_string() };
            next.ty = ty.to_string();
            let done = std::mem::take(&mut next);
            if deep { head.members.last_mut().unwrap().members.push(done) } else { head.members.push(done) }
        }
    }
    assert!(!head.members.is_empty(), "{name} was not found");
    head
}

fn body() -> Member {
    parse(include_str!("entry.rs"), "Body")
}

fn type_text(m: &Member) -> String {
    let mut ty = m.ty.clone();
    for (rust, word) in [
        ("BTreeMap<String, String>", "map of text"),
        ("Vec<String>", "list of text"),
        ("String", "text"),
        ("Json", "any value"),
        ("bool", "true or false"),
        ("u32", "number"),
        ("u64", "number"),
        ("i64", "number"),
        ("usize", "number"),
        ("Code", "text"),
    ] {
        ty = ty.replace(rust, word);
    }
    let inner = ty.strip_prefix("Option<").and_then(|t| t.strip_suffix('>')).unwrap_or(&ty).to_string();
    let inner = inner.replace("Vec<Failure>", "list of [Failure](#failure)");
    let known = ["Status", "Via", "UndoKind", "Purpose", "Operator", "State", "Error", "Kind", "Location"];
    let shown = if known.contains(&inner.as_str()) { format!("[{inner}](#{})", inner.to_lowercase()) } else { inner };
    if m.optional { format!("{shown}, optional") } else { shown }
}

fn fields(out: &mut String, members: &[Member]) {
    out.push_str("| field | type | |\n|---|---|---|\n");
    for f in members {
        let doc = f.doc.replace("[`super::FORMAT`]", "\"Format\" above").replace('|', "\\|");
        let _ = writeln!(out, "| `{}` | {} | {doc} |", f.name, type_text(f));
    }
}

/// The generated part of the page.
fn reference() -> String {
    let (entry, error) = (include_str!("entry.rs"), include_str!("../error.rs"));
    let mut out = String::from("## Kinds\n");
    for kind in body().members {
        assert!(kind.doc.contains("Written") && kind.doc.contains("Read by"), "{} does not say who writes and who reads it", kind.name);
        let _ = write!(out, "\n### {}\n\n{}\n\n", kind.name, kind.doc);
        fields(&mut out, &kind.members);
    }
    out.push_str("\n## Types of fields\n");
    for (source, name) in [(entry, "Status"), (entry, "Via"), (entry, "UndoKind"), (entry, "Purpose"), (entry, "State"), (error, "Kind")] {
        let ty = parse(source, name);
        let _ = write!(out, "\n### {name}\n\n{}\n\n", ty.doc);
        for v in ty.members {
            let _ = writeln!(out, "- `{}`: {}", v.name, v.doc);
        }
    }
    for (source, name) in [(entry, "Operator"), (error, "Error"), (error, "Failure"), (error, "Location")] {
        let ty = parse(source, name);
        let _ = write!(out, "\n### {name}\n\n{}\n\n", ty.doc);
        fields(&mut out, &ty.members);
    }
    out
}

#[test]
fn the_reference_page_tells_every_kind_as_the_source_does() {
    let path = root().join("docs/reference/journal.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let mark = "<!-- Written from engine/core/src/journal/entry.rs; a test keeps it true. RUNBOOK_UPDATE_DOCS=1 cargo test -p runbook-core journal -->\n";
    let (head, tail) = page.split_once(mark).expect("the page has its mark");
    let expected = format!("\n{}", reference());
    if std::env::var_os("RUNBOOK_UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{head}{mark}{expected}")).unwrap();
    } else {
        assert_eq!(tail, expected, "RUNBOOK_UPDATE_DOCS=1 cargo test -p runbook-core journal");
    }
}

/// The journals of `tests/journals/`.
fn kept_journals() -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(root().join("tests/journals"))
        .unwrap()
        .map(|f| f.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "jsonl"))
        .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(p).unwrap()))
        .collect();
    all.sort();
    all
}

fn entries(log: &[u8]) -> Vec<Entry> {
    std::str::from_utf8(log).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// Whether everything in `a` is in `b` as well.
fn within(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Object(a), Json::Object(b)) => a.iter().all(|(k, v)| b.get(k).is_some_and(|w| within(v, w))),
        (Json::Array(a), Json::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(v, w)| within(v, w)),
        _ => a == b,
    }
}

#[test]
fn the_journals_of_earlier_versions_are_read_whole() {
    let mut kinds = BTreeSet::new();
    for (name, log) in kept_journals() {
        let (format, _) = name.split_once('-').expect("<format>-<name>.jsonl");
        let format: u32 = format.parse().expect("<format>-<name>.jsonl");
        assert!(format <= super::FORMAT, "{name} is from the future");
        verify_lines(&log[..], None).unwrap_or_else(|e| panic!("{name}: {e}"));
        for entry in entries(&log) {
            let body = entry.body().unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(body.kind(), entry.kind);
            let again = serde_json::to_value(&body).unwrap();
            assert!(within(&entry.data, &again["data"]), "{name}: entry {} loses {} by being read: {again}", entry.seq, entry.data);
            if let Body::RunStarted { format: recorded, .. } = body {
                assert_eq!(recorded, format, "{name}");
            }
            kinds.insert(entry.kind);
        }
    }
    let all: BTreeSet<_> = body().members.into_iter().map(|k| k.name).collect();
    let unheard: Vec<_> = all.difference(&kinds).collect();
    assert!(unheard.is_empty(), "no kept journal has an entry of {unheard:?}: see tests/journals/README.md");
}

/// One entry of each kind of format 1, with every optional field that it had then.
fn every_kind() -> Vec<Json> {
    let sha = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    let error = json!({
        "code": "RB0310", "kind": "failed", "message": "the command \"false\" ended with status 1", "hint": "look at its output",
        "host": "old", "retryable": true, "details": { "status": "1", "stderr": "\u{1f4a5} naïve\n" },
        "location": { "file": "runbooks/a/runbook.rhai", "line": 4, "column": 9 }, "at": ["Cutover/Stop writes"]
    });
    let operator = json!({
        "user": "ann", "host": "desk", "pid": 4711, "pid_start": 123_456, "boot": "7d0e", "from": "192.0.2.9", "version": "0.1.0", "binary": sha
    });
    let value = json!({
        "$": "Output", "v": {
            "took": { "$": "duration", "v": "1500000000" }, "size": { "$": "bytes", "v": "18446744073709551615" }, "half": { "$": "float", "v": "0.5" },
            "big": { "$": "int", "v": "-9223372036854775808" }, "raw": { "$": "blob", "v": "AP8=" }, "at": { "$": "time", "v": "2026-01-02T03:04:05Z" },
            "host": { "$": "Host", "name": "old" }, "password": { "$": "secret", "v": "tsig" }, "list": [null, true, -1, "\u{20ac}\u{0}\"\\"]
        }
    });
    let (path, action) = ("Cutover/Stop writes/0", "r-0123456789abcdef");
    vec![
        json!({ "kind": "run_started", "data": { "runbook": "runbooks/a/runbook.rhai", "environment": "production",
            "params": { "smoke_path": "/health" }, "sources": { "runbooks/a/runbook.rhai": sha }, "format": 1 } }),
        json!({ "kind": "session_started", "data": { "purpose": "run", "operator": operator, "fence": 1, "edited": { "runbooks/a/runbook.rhai": sha },
            "matching": ["Prepare/Copy"], "took_over": "bob@desk, process 42" } }),
        json!({ "kind": "phase_started", "data": { "path": "Cutover" } }),
        json!({ "kind": "window_opened", "data": { "path": "Cutover", "budget_ms": 600_000, "on_overrun": "ask" } }),
        json!({ "kind": "step_started", "data": { "path": "Cutover/Stop writes", "attempt": 1, "undo": "block",
            "at": "runbooks/a/runbook.rhai:4:5", "on": "old" } }),
        json!({ "kind": "intent", "data": { "path": path, "action": action, "name": "Host.run", "call": "host(\"old\").run(\"false\")",
            "digest": sha, "effect": "once", "on": "old" } }),
        json!({ "kind": "output", "data": { "path": path, "stream": "stderr", "text": "[secret]\n" } }),
        json!({ "kind": "outcome", "data": { "path": path, "action": action, "name": "Host.run", "call": "host(\"old\").run(\"false\")",
            "digest": sha, "effect": "once", "value": value, "error": error, "changed": true, "note": "a remark", "ms": 12, "via": "reconcile" } }),
        json!({ "kind": "step_ended", "data": { "path": "Cutover/Stop writes", "attempt": 1, "status": "failed", "ms": 15, "error": error,
            "reason": "ann: not today" } }),
        json!({ "kind": "retry_scheduled", "data": { "path": "Cutover/Stop writes", "attempt": 2, "after_ms": 2000 } }),
        json!({ "kind": "gate_asked", "data": { "path": "Go or no-go?", "question": "Go or no-go?" } }),
        json!({ "kind": "gate_answered", "data": { "path": "Go or no-go?", "yes": true, "by": "ann@desk", "comment": "all green" } }),
        json!({ "kind": "timer_set", "data": { "path": "sleep/0", "until": "2026-01-02T03:05:05.678Z" } }),
        json!({ "kind": "timer_fired", "data": { "path": "sleep/0" } }),
        json!({ "kind": "doubt_asked", "data": { "path": path, "action": action, "known": "the host was started again meanwhile" } }),
        json!({ "kind": "doubt_answered", "data": { "path": path, "action": action, "answer": "done", "by": "ann@desk" } }),
        json!({ "kind": "log", "data": { "path": path, "level": "warn", "message": "a word" } }),
        json!({ "kind": "window_overrun", "data": { "path": "Cutover", "decision": "continue", "by": "ann@desk", "ms": 600_001 } }),
        json!({ "kind": "window_closed", "data": { "path": "Cutover", "ms": 700_000, "overran": true } }),
        json!({ "kind": "phase_ended", "data": { "path": "Cutover", "status": "ok", "ms": 700_001 } }),
        json!({ "kind": "point_of_no_return", "data": { "path": "PONR", "why": "The new database takes writes" } }),
        json!({ "kind": "rollback_started", "data": { "reason": "ann@desk" } }),
        json!({ "kind": "undo_started", "data": { "path": "Cutover/Stop writes", "attempt": 1 } }),
        json!({ "kind": "undo_ended", "data": { "path": "Cutover/Stop writes", "attempt": 1, "status": "skipped", "ms": 3, "error": error } }),
        json!({ "kind": "session_ended", "data": { "state": "rolling_back", "at": ["Cutover/Stop writes"], "error": error } }),
    ]
}

/// The kinds that came with branches, and the fields of errors.
fn branches() -> Vec<Json> {
    let error = json!({ "code": "RB0310", "kind": "failed", "message": "the command \"false\" ended with status 1", "host": "web2", "retryable": true });
    let all = json!({
        "code": "RB0022", "kind": "failed", "message": "1 of 3 failed: web2: the command \"false\" ended with status 1; not begun: web3",
        "retryable": true, "at": ["#0/web2/#0", "#0"], "failures": [{ "name": "web2", "error": error }], "not_begun": ["web3"]
    });
    vec![
        json!({ "kind": "branches_started", "data": { "path": "#0", "word": "each", "names": ["web1", "web2", "web3"] } }),
        json!({ "kind": "branch_started", "data": { "path": "#0/web2" } }),
        json!({ "kind": "branch_ended", "data": { "path": "#0/web2", "status": "failed", "ms": 12, "error": error } }),
        json!({ "kind": "branches_ended", "data": { "path": "#0", "failed": ["web2"], "not_begun": ["web3"], "ms": 13 } }),
        json!({ "kind": "session_ended", "data": { "state": "failed", "at": ["#0/web2/#0", "#0"], "error": all } }),
    ]
}

/// A log of these bodies as `audit export` writes it.
fn export(bodies: &[Json]) -> Vec<u8> {
    let store = MemoryStore::default();
    let fence = ready(&store);
    for json in bodies {
        let body: Body = serde_json::from_value(json.clone()).unwrap();
        store.append("r", fence, Batch::one(now(), body)).unwrap();
    }
    store.log("r").iter().flat_map(|e| (line(e).unwrap() + "\n").into_bytes()).collect()
}

#[test]
fn the_kept_journal_of_every_kind_is_there() {
    for (name, bodies) in [("1-every-kind.jsonl", every_kind()), ("1-branches.jsonl", branches())] {
        let path = root().join("tests/journals").join(name);
        // Made once. It is not made again when entries change: an old journal stays what it was.
        if !path.exists() && std::env::var_os("RUNBOOK_UPDATE_DOCS").is_some() {
            std::fs::write(&path, export(&bodies)).unwrap();
        }
        assert!(path.exists(), "{name}");
    }
}

/// Runs Python with the verifying script as the module `verify_audit`; `None` without Python.
fn python(program: &str, args: &[&Path]) -> Option<std::process::Output> {
    let docs = root().join("docs");
    match Command::new("python3").arg("-c").arg(program).args(args).env("PYTHONPATH", docs).env("PYTHONDONTWRITEBYTECODE", "1").output() {
        Ok(out) => Some(out),
        Err(e) => {
            assert!(std::env::var_os("CI").is_none(), "python3 cannot be run, and CI is set: {e}");
            eprintln!("skipped: python3 cannot be run: {e}");
            None
        }
    }
}

#[test]
fn the_python_script_agrees_with_the_engine() {
    // A genuine log, then each byte changed, each entry removed, swapped, inserted: prints what it wrongly accepted.
    const PROGRAM: &str = r#"
import sys
from verify_audit import verify
log = open(sys.argv[1], "rb").read()
entries, head = verify(log)
assert verify(log, head.upper()) == (entries, head)
lines, tried = log.splitlines(True), 0
def refused(what, changed, head=None):
    global tried
    tried += 1
    try:
        verify(changed, head)
    except (KeyError, TypeError, ValueError, RecursionError):
        return
    sys.exit("accepted: " + what)
step = int(sys.argv[2])
for i in range(0, len(log), step):
    for byte in {log[i] ^ 1, log[i] ^ 32, log[i] ^ 128, 10} - {log[i]}:
        refused("byte %d as %d" % (i, byte), log[:i] + bytes([byte]) + log[i + 1:])
for i in range(len(lines)):
    cut = i == len(lines) - 1
    refused("without entry %d" % i, b"".join(lines[:i] + lines[i + 1:]), head if cut else None)
    refused("entry %d twice" % i, b"".join(lines[:i] + [lines[i]] + lines[i:]))
    if not cut:
        refused("entry %d swapped" % i, b"".join(lines[:i] + [lines[i + 1], lines[i]] + lines[i + 2:]))
refused("nothing", b"")
print(entries, head, tried)
"#;
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().join("small.jsonl");
    let log = export(&every_kind()[5..7]);
    std::fs::write(&small, &log).unwrap();
    let whole = dir.path().join("whole.jsonl");
    let every = export(&every_kind());
    std::fs::write(&whole, &every).unwrap();
    for (log, path, step) in [(&log, &small, "1"), (&every, &whole, "97")] {
        let Some(out) = python(PROGRAM, &[path, Path::new(step)]) else { return };
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let ours = verify_lines(&log[..], None).unwrap();
        let theirs = String::from_utf8(out.stdout).unwrap();
        eprintln!("entries, head, changes refused: {theirs}");
        assert!(theirs.starts_with(&format!("{} {} ", ours.entries, ours.head)), "{theirs}");
    }
}

#[test]
fn the_python_script_is_short_and_tells_by_its_exit_status() {
    let script = root().join("docs/verify_audit.py");
    assert!(std::fs::read_to_string(&script).unwrap().lines().count() <= 40);
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log.jsonl");
    let text = export(&every_kind());
    let head = verify_lines(&text[..], None).unwrap().head;
    let run = |bytes: &[u8], args: &[&str]| {
        std::fs::write(&log, bytes).unwrap();
        let out = Command::new("python3").arg(&script).arg(&log).args(args).output().ok()?;
        Some((out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)))
    };
    let Some((good, said)) = run(&text, &["--head", &head]) else {
        assert!(std::env::var_os("CI").is_none(), "python3 cannot be run, and CI is set");
        eprintln!("skipped: python3 cannot be run");
        return;
    };
    assert!(good && said == format!("verified: 25 entries, head {head}\n"), "{said}");
    let cut = &text[..text.iter().rposition(|b| *b == b'{').unwrap_or(0)];
    let (good, said) = run(cut, &[]).unwrap();
    assert!(!good && said.starts_with("NOT VERIFIED: "), "{said}");
    let without_last = text.split_inclusive(|b| *b == b'\n').take(24).collect::<Vec<_>>().concat();
    assert!(run(&without_last, &[]).unwrap().0, "a chain alone cannot show that");
    let (good, said) = run(&without_last, &["--head", &head]).unwrap();
    assert!(!good && said.contains("head is not in the log"), "{said}");
}
