//! An action in doubt whose host cannot know: the host was started anew in mid-command, and the controller had died.

use std::path::PathBuf;
use std::process::Command;

use super::signals::read;
use crate::support::desk::{Project, until};
use crate::support::sshd::{Sshd, processes};

/// The port stands for a time that no other test sleeps.
const RUNBOOK: &str = "step \"Half\" { old.run(\"echo half >>ran; echo so far; [ -e go ] || sleep PORT\"); } undo { old.run(\"echo undone >>ran\"); }\n\
                       step \"After\" { old.run(\"echo after >>ran\"); }";

/// A run whose controller was killed in mid-command, and whose host has since been started anew.
fn half_way(host: &Sshd) -> Project {
    let sleep = format!("sleep {}", host.port);
    let p = Project::on(host, &RUNBOOK.replace("sleep PORT", &sleep));
    let run = p.start(&["run", "a.rhai"]);
    until("the command runs", || read(&host.home().join("ran")).contains("half"));
    // Dropping it is SIGKILL.
    drop(run);
    let folder = action(host);
    // The supervisor first: it must not see how the command ends.
    for supervisor in [true, false] {
        for p in processes() {
            let inside = std::fs::read_link(format!("/proc/{}/cwd", p.pid)).is_ok_and(|c| c == folder);
            if if supervisor { inside } else { p.command.contains(&sleep) } {
                let _ = Command::new("kill").args(["-KILL", &p.pid.to_string()]).status();
            }
        }
    }
    assert!(!folder.join("status").exists());
    let text = read(&folder.join("pid"));
    let mut words: Vec<&str> = text.split_whitespace().collect();
    words[1] = "00000000-0000-0000-0000-000000000000";
    std::fs::write(folder.join("pid"), words.join(" ") + "\n").unwrap();
    // A second time the command ends at once.
    std::fs::write(host.home().join("go"), "").unwrap();
    p
}

/// The supervisor's folder of the only command.
fn action(host: &Sshd) -> PathBuf {
    let below = |dir: PathBuf| std::fs::read_dir(dir).unwrap().flatten().map(|e| e.path()).find(|p| p.is_dir()).unwrap();
    below(below(host.home().join(".runbook"))).canonicalize().unwrap()
}

/// Text with the run's id and other things that differ struck out.
fn pinned(p: &Project, host: &Sshd, text: &str) -> String {
    text.replace(&p.newest(), "RUN")
        .replace(&format!("sleep {}", host.port), "sleep TIME")
        .lines()
        .map(|l| format!("{}\n", l.trim_end()))
        .collect()
}

#[test]
fn a_host_that_cannot_know_leaves_the_answer_to_a_person() {
    let Some(host) = Sshd::start("") else { return };
    // What answers there are; each to a run of its own.
    for (answer, status, ran) in [("retry", 0, "half\nhalf\nafter\n"), ("done", 0, "half\nafter\n"), ("rollback", 6, "half\nundone\n")] {
        let p = half_way(&host);
        let (status_asked, out, err) = p.text(&["resume"]);
        assert_eq!((status_asked, out.as_str()), (9, ""), "{err}");
        assert_eq!(p.state(), "in_doubt");
        assert_eq!(read(&host.home().join("ran")), "half\n", "nothing was done while nobody had answered");
        if answer == "retry" {
            let end: Vec<&str> = err.lines().skip_while(|l| !l.starts_with("error[")).collect();
            let end = pinned(&p, &host, &end.join("\n"));
            let end = end.split_once(" after ").map_or(end.clone(), |(a, b)| format!("{a} after TIME:{}", b.split_once(':').unwrap().1));
            insta::assert_snapshot!("in_doubt_without_a_terminal", end);
            let shown = p.expect(&["show"], 0);
            for say in ["In doubt: host(\"old\").run(", "started anew", "--answer retry", "--answer done", "runbook rollback"] {
                assert!(shown.contains(say), "{say}: {shown}");
            }
            let o = p.run(&["resume", "--json"]);
            let text = String::from_utf8(o.stdout).unwrap();
            let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
            assert_eq!((last["exit"].as_i64(), last["error"]["code"].as_str()), (Some(9), Some("RB0013")), "{last}");
        }
        let text = p.expect(&["resume", "--answer", answer], status);
        assert_eq!(read(&host.home().join("ran")), ran, "{answer}\n{text}");
        let answered = p.entries("doubt_answered");
        assert_eq!((answered.len(), answered[0]["answer"].as_str()), (1, Some(answer)), "{answer}");
        p.expect(&["audit", "verify"], 0);
        for f in ["ran", "go"] {
            std::fs::remove_file(host.home().join(f)).unwrap();
        }
    }
}

#[test]
fn on_a_terminal_it_is_asked() {
    let Some(host) = Sshd::start("") else { return };
    let p = half_way(&host);
    let mut s = p.screen(&["resume"], 40, 110);
    s.wait_for("[q]uit:");
    let text = s.text();
    let question: Vec<&str> = text.lines().skip_while(|l| !l.starts_with("? ")).collect();
    insta::assert_snapshot!("in_doubt_on_a_terminal", pinned(&p, &host, &question.join("\n")));
    s.answer("[q]uit:", "q");
    assert_eq!(s.wait(), 9, "{}", s.text());
    // Ctrl-C is no answer either.
    let mut s = p.screen(&["resume"], 40, 110);
    s.wait_for("[q]uit:");
    s.keys("\x03");
    assert_eq!(s.wait(), 130, "{}", s.text());
    let mut s = p.screen(&["resume"], 40, 110);
    s.answer("[q]uit:", "d");
    assert_eq!(s.wait(), 0, "{}", s.text());
    assert_eq!(read(&host.home().join("ran")), "half\nafter\n");
    // An answer that nobody asked for is said to be one.
    let p = Project::on(&host, "step \"Fails\" { old.run(\"[ -e mended ]\"); }");
    p.expect(&["run", "a.rhai"], 1);
    std::fs::write(host.home().join("mended"), "").unwrap();
    let text = p.expect(&["resume", "--answer", "done"], 0);
    assert!(text.contains("no answer was asked for"), "{text}");
}

#[test]
fn a_host_that_is_gone_for_good_does_not_hold_the_run_for_ever() {
    let Some(mut host) = Sshd::start("") else { return };
    let p = half_way(&host);
    host.down();
    let (status, _, err) = p.text(&["resume"]);
    assert_eq!(status, 9, "{err}");
    assert!(err.contains("cannot be found out yet") && err.contains("gone for good"), "{err}");
    let (status, _, err) = p.text(&["rollback"]);
    assert_eq!(status, 9, "nobody has answered yet: {err}");
    // The step after it needs the host too, so that is where the run stops now.
    let (status, _, err) = p.text(&["resume", "--answer", "done"]);
    assert_eq!(status, 1, "{err}");
    assert!(err.contains("After") && err.contains("RB0300"), "{err}");
    let answered = p.entries("doubt_answered");
    assert_eq!((answered.len(), answered[0]["answer"].as_str()), (1, Some("done")));
    let asked = p.entries("doubt_asked");
    assert!(asked[0]["known"].as_str().unwrap().contains("cannot be asked"), "{asked:?}");
    p.expect(&["audit", "verify"], 0);
}
