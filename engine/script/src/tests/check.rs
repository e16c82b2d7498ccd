//! What the static check finds, and what it lets through.

use std::collections::BTreeMap;

use runbook_core::Code;

use super::world::Rig;

fn findings(script: &str) -> Vec<(Code, usize, usize)> {
    let mut rig = Rig::new(script);
    rig.files.insert("lib/x.rhai".into(), "fn ok(a) { a }\nfn bad() { nope() }".into());
    rig.files.insert("lib/fine.rhai".into(), "fn ok(a) { a }".into());
    rig.files.insert("broken.rhai".into(), "fn (".into());
    let found = rig.controller().check("r.rhai", Some(&Rig::env()));
    found
        .into_iter()
        .map(|e| {
            let at = e.location.unwrap_or_else(|| panic!("no place for {}", e.message));
            (e.code, at.line, at.column)
        })
        .collect()
}

#[test]
fn a_correct_runbook_has_no_findings() {
    let script = r#"
        import "lib/fine" as fine;
        fine::ok(1);
        let b = box("a");
        let new = box("new");
        new.look(new.name);
        step "may throw" { if new.look("k") == "x" { throw "no"; } }
        fn helper(b, x) { b.work(x); if x == "y" { return 1; } 2 }
        step "one" #{ retries: 1 } { helper(b, "z"); let l = [1, 2]; l.push(3); for i in l { if i == 2 { break; } } }
        let f = |x| x + 1;
        f.call(1);
        let p = parallel { for n in [1, 2] { let own = n; own += 1; own } };
        log(`${p.len()} ${b.name}`);
        downtime "w" { step "look" { b.look("k"); } step "set" { b.set("k", "v"); } undo { b.set("k", ""); } }
    "#;
    assert_eq!(findings(script), []);
}

#[test]
fn every_fault_is_found_with_its_place() {
    let cases: &[(&str, Code, usize, usize)] = &[
        ("let x = 1;\nlog(y);", Code::UNDEFINED_VARIABLE, 2, 5),
        ("lgo(1);", Code::UNKNOWN_FUNCTION, 1, 1),
        ("let b = box(\"a\");\n  b.wrok(\"x\");", Code::UNKNOWN_FUNCTION, 2, 5),
        ("let b = box();", Code::UNKNOWN_FUNCTION, 1, 9),
        ("let b = box(\"a\"); b.set(\"k\");", Code::UNKNOWN_FUNCTION, 1, 21),
        ("import \"std/sqll\" as s;", Code::BAD_IMPORT, 1, 1),
        ("import \"../../etc/x\" as s;", Code::OUTSIDE_PROJECT, 1, 1),
        ("import \"lib/none\" as s;", Code::MISSING_FILE, 1, 1),
        ("import \"lib/x\" as x; x::no(1);", Code::UNKNOWN_FUNCTION, 1, 25),
        ("import \"broken\" as x;", Code::SYNTAX, 1, 4),
        ("step \"a\" { return 1; }", Code::STEP_ESCAPE, 1, 12),
        ("for i in 0..2 { step `a${i}` { break; } }", Code::STEP_ESCAPE, 1, 32),
        ("step \"a\" { } step \"a\" { }", Code::STEP_DUPLICATE, 1, 14),
        ("let t = 0; parallel { for n in [1] { t += n; } }", Code::BAD_WORD, 1, 38),
        ("let b = box(\"a\"); downtime \"w\" { step \"s\" { b.set(\"k\", 1); } }", Code::BAD_WORD, 1, 34),
        ("let x = step \"a\" { 5 }\n-1;", Code::BAD_WORD, 2, 1),
        ("host(\"nowhere\");", Code::UNKNOWN_FUNCTION, 1, 1),
        ("eval(\"1\");", Code::BAD_WORD, 1, 1),
        ("timestamp();", Code::UNKNOWN_FUNCTION, 1, 1),
        ("secret(\"none\");", Code::MISSING_SECRET, 1, 1),
    ];
    let mut missed = BTreeMap::new();
    for (script, code, line, column) in cases {
        let found = findings(script);
        if !found.contains(&(*code, *line, *column)) {
            missed.insert(*script, found);
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
fn a_value_of_another_type_is_found_where_that_is_certain() {
    for (script, line, column) in [
        ("let b = box(\"a\");\nb.look(5);", 2, 8),
        ("box(\"a\").look(#{ key: 1 });", 1, 15),
        ("let b = box(\"a\");\nlet n = 5;\nstep \"s\" { b.look(n); }", 3, 19),
        ("let b = step \"make\" { box(\"a\") };\nb.look(b);", 2, 8),
        ("let b = box(\"a\"); let t = b.look(\"k\");\nb.nap(b);", 2, 7),
        ("let b = box(\"a\");\nlet f = || b.look([1]);", 2, 19),
    ] {
        let found = findings(script);
        assert_eq!(found, [(Code::WRONG_TYPE, line, column)], "{script}");
    }
    assert_eq!(findings("let b = box(\"a\");\nb.look();"), [(Code::UNKNOWN_FUNCTION, 2, 3)]);
}

#[test]
fn what_may_be_right_is_let_through() {
    for script in [
        // Another value under the same name, by any way.
        "let x = 5; let b = box(\"a\"); x = \"k\"; b.look(x);",
        "let b = box(\"a\"); let x = 5; if true { let x = \"k\"; b.look(x); }",
        "let b = box(\"a\"); let x = 5; for x in [\"k\"] { b.look(x); }",
        "let b = box(\"a\"); let x = 5; fn f(b, x) { b.look(x) } f(b, \"k\");",
        "let b = box(\"a\"); let k = 5; let f = |k| b.look(k); f.call(\"k\");",
        "let b = box(\"a\"); try { throw \"k\"; } catch (e) { b.look(e); } let e = 5;",
        "let shelf = #{ look: |n| n + 1 }; shelf.look(1); fn f(x) { x.look(1) } f(shelf);",
        // What a script's own function gives, or an element of a list, nobody knows.
        "fn look(x) { x } let b = box(\"a\"); b.look(5);",
        "let b = box(\"a\"); let l = [\"k\"]; b.look(l[0]); let m = #{ k: \"k\" }; b.look(m.k);",
        "let l = [1]; l.set(0, 5); fn f(x) { x.set(0, 5) } let m = #{}; m.set(\"k\", 5);",
        "let b = box(\"a\"); b.set(\"k\", 5); b.nap(\"1s\"); b.look(`${1}`); b.look(b.name);",
    ] {
        assert_eq!(findings(script), [], "{script}");
    }
}
