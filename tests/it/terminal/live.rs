//! The live view on terminals of all sizes, and what is left of it where there is no terminal.

use std::time::Duration;

use crate::support::desk::{INVENTORY, Project};
use crate::support::sshd::Sshd;

const NAMES: [&str; 8] = ["web1", "web2", "web3", "web4", "web5", "web6", "web7", "web8"];
const SPINNER: &str = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏";

/// Eight branches that print long lines for about two seconds.
fn eight(host: &Sshd) -> Project {
    Project::on(
        host,
        r#"phase "Prepare" {
    parallel { for n in ["web1", "web2", "web3", "web4", "web5", "web6", "web7", "web8"] {
        step "Copy" { old.run(`for i in 1 2 3 4; do echo ${n} says $i in a line that is much longer than any of these terminals is wide, so that it must be cut; sleep .5; done`); }
    } }
}
step "End" { old.run("sleep .3"); }"#,
    )
}

/// The rows that must stand on a terminal in the end, wrapped or not, once each, with nothing of the live part left.
#[track_caller]
fn all_there(text: &str, how: &str) {
    let flat = text.replace('\n', "");
    for n in NAMES {
        assert_eq!(flat.matches(&format!("✓ {n} / Copy")).count(), 1, "{how}, {n}:\n{text}");
    }
    assert_eq!(flat.matches("✓ End").count(), 1, "{how}:\n{text}");
    assert!(flat.contains("finished after"), "{how}:\n{text}");
    assert!(!flat.contains(|c| SPINNER.contains(c)), "{how}: nothing live is left:\n{text}");
    assert!(!flat.contains("says"), "{how}: output goes when its step ends:\n{text}");
}

#[test]
fn eight_branches_on_a_usual_terminal() {
    let Some(host) = Sshd::start("") else { return };
    let p = eight(&host);
    let mut s = p.screen(&["run", "a.rhai"], 40, 100);
    s.wait_for("web8 says 3");
    let text = s.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "Prepare", "{text}");
    for n in NAMES {
        let head = lines.iter().position(|l| l.contains(&format!(" {n} / Copy  "))).unwrap_or_else(|| panic!("{n}:\n{text}"));
        assert!(lines[head].starts_with("  ") && SPINNER.contains(lines[head].chars().nth(2).unwrap()), "{n}:\n{text}");
        assert!(lines[head + 1].starts_with(&format!("      {n} says")), "its own output is below it, {n}:\n{text}");
    }
    assert!(lines.last().unwrap().contains(&p.newest()), "{text}");
    assert_eq!(s.wait(), 0);
    all_there(&s.text(), "usual");
    let times: Vec<usize> = s.text().lines().filter(|l| l.contains('✓')).map(|l| l.chars().count()).collect();
    assert!(times.windows(2).all(|w| w[0] == w[1]), "times end in one column:\n{}", s.text());
}

#[test]
fn narrow_short_and_tiny_terminals() {
    let Some(host) = Sshd::start("") else { return };
    for (rows, columns) in [(50, 20), (12, 100), (12, 20), (6, 40), (3, 20), (2, 80), (1, 80)] {
        let p = eight(&host);
        let how = format!("{rows} rows, {columns} columns");
        let mut s = p.screen(&["run", "a.rhai"], rows, columns);
        std::thread::sleep(Duration::from_millis(1500));
        let text = s.text();
        if rows >= 3 {
            assert!(text.lines().last().unwrap_or_default().contains('s'), "{how}: the last line says how long it takes:\n{text}");
        }
        if rows == 12 || rows == 6 {
            let hidden = text.lines().find(|l| l.trim_start().starts_with("… "));
            let shown = NAMES.iter().filter(|n| text.contains(&format!("{n} / Copy"))).count();
            assert!(shown == 8 || hidden.is_some(), "{how}: what is not shown is counted:\n{text}");
        }
        assert_eq!(s.wait(), 0, "{how}");
        // What scrolled away is in what was written.
        if rows >= 40 {
            all_there(&s.text(), &how);
        } else {
            let raw = s.raw();
            for n in NAMES {
                assert!(raw.contains(&format!("{n} / Copy")), "{how}");
                let done = raw.lines().filter(|l| l.contains('✓') && l.contains(&format!("{n} / Copy"))).count();
                assert_eq!(done, 1, "{how}, {n}");
            }
            assert!(!s.text().contains(|c| SPINNER.contains(c)), "{how}:\n{}", s.text());
        }
    }
}

#[test]
fn a_terminal_that_changes_its_size_in_mid_run() {
    let Some(host) = Sshd::start("") else { return };
    let p = eight(&host);
    let mut s = p.screen(&["run", "a.rhai"], 60, 100);
    s.wait_for("web8 says 1");
    for (rows, columns) in [(60, 30), (60, 120), (20, 50), (60, 100)] {
        s.resize(rows, columns);
        std::thread::sleep(Duration::from_millis(350));
        let text = s.text();
        assert!(text.lines().all(|l| l.chars().count() <= usize::from(columns)), "{columns}:\n{text}");
    }
    assert_eq!(s.wait(), 0);
    all_there(&s.text(), "resized");
}

#[test]
fn colours_only_where_they_are_wanted() {
    let p = Project::new(INVENTORY, "phase \"P\" { step \"One\" { sleep(\"500ms\"); } step \"日本語のサーバー\" { sleep(\"300ms\"); } }");
    let run = |env: &[(&str, &str)]| {
        let mut s = p.screen_with(&["run", "a.rhai"], 24, 80, env);
        assert_eq!(s.wait(), 0, "{}", s.text());
        (s.raw(), s.text())
    };
    let (raw, text) = run(&[]);
    assert!(raw.contains("\x1b[32m✓\x1b[0m"), "{raw:?}");
    assert!(text.contains("✓ 日本語のサーバー"), "{text}");
    let (raw, text) = run(&[("NO_COLOR", "1")]);
    assert!(!raw.contains("\x1b[32m") && !raw.contains("\x1b[1m") && raw.contains("\x1b[J"), "no colours, but live: {raw:?}");
    assert!(text.contains("✓ One"), "{text}");
    for term in ["dumb", ""] {
        let (raw, text) = run(&[("TERM", term)]);
        assert!(!raw.contains('\x1b'), "plain lines: {raw:?}");
        assert!(text.contains("step      P / One") && text.contains("ok        P / One"), "{text}");
    }
}

#[test]
fn a_pipe_gets_plain_lines() {
    let Some(host) = Sshd::start("") else { return };
    let p = eight(&host);
    let (status, out, err) = p.text(&["run", "a.rhai"]);
    assert_eq!(status, 0, "{err}");
    assert!(!out.contains('\x1b') && !err.contains('\x1b'), "{err:?}");
    assert!(out.ends_with("9 steps done\n") && out.lines().count() == 1, "{out}");
    for n in NAMES {
        assert!(err.contains(&format!("ok        Prepare / {n} / Copy")), "{err}");
        assert!(err.contains(&format!("          | {n} says 4")), "{err}");
    }
}
