//! Ctrl-C and SIGTERM, once and twice, with a command of a real SSH server in hand.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::desk::{Project, Running, until};
use crate::support::sshd::Sshd;

/// A command that takes as long as the file `go` is not there, and leaves a line each time it is run.
pub const HELD: &str = "echo once >>ran; n=0; while [ ! -e go ] && [ $n -lt 600 ]; do n=$((n+1)); sleep .05; done; echo ended >>ran";

pub fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn runbook() -> String {
    format!(
        "step \"Held\" {{ old.run(\"{HELD}\"); }} undo {{ old.run(\"echo undone >>ran\"); }}\nstep \"After\" {{ old.run(\"echo after >>ran\"); }}"
    )
}

/// A run whose command is running, on a host without what an earlier one left.
fn held(host: &Sshd) -> (Project, Running) {
    for left in ["ran", "go"] {
        let _ = std::fs::remove_file(host.home().join(left));
    }
    let p = Project::on(host, &runbook());
    let run = p.start(&["run", "a.rhai"]);
    until("the command runs", || read(&host.home().join("ran")).contains("once"));
    (p, run)
}

#[test]
fn a_first_signal_lets_the_action_in_hand_end() {
    let Some(host) = Sshd::start("") else { return };
    for signal in ["-INT", "-TERM"] {
        let (p, mut run) = held(&host);
        run.signal(signal);
        std::thread::sleep(Duration::from_millis(500));
        assert!(run.0.try_wait().unwrap().is_none(), "{signal}: the command is still running, and it is waited for");
        std::fs::write(host.home().join("go"), "").unwrap();
        assert_eq!(run.wait(), 130, "{signal}");
        assert_eq!(read(&host.home().join("ran")), "once\nended\n", "{signal}: it ended, and nothing new was begun");
        assert_eq!(p.state(), "interrupted");
        assert_eq!(p.entries("outcome").len(), 1, "{signal}: what it did is on record");
        let shown = p.expect(&["show"], 0);
        assert!(shown.contains("runbook resume"), "{shown}");
        p.expect(&["resume"], 0);
        assert_eq!(read(&host.home().join("ran")), "once\nended\nafter\n", "{signal}");
        p.expect(&["audit", "verify"], 0);
    }
}

#[test]
fn a_second_signal_stops_now_and_the_action_is_found_again() {
    let Some(host) = Sshd::start("") else { return };
    for signal in ["-INT", "-TERM"] {
        let (p, mut run) = held(&host);
        run.signal(signal);
        std::thread::sleep(Duration::from_millis(200));
        let began = Instant::now();
        run.signal(signal);
        assert_eq!(run.wait(), 130, "{signal}");
        assert!(began.elapsed() < Duration::from_secs(5), "{signal}: {:?}", began.elapsed());
        assert_eq!(read(&host.home().join("ran")), "once\n", "{signal}: the command goes on without us");
        assert_eq!((p.state().as_str(), p.entries("outcome").len()), ("interrupted", 0), "{signal}: it is in doubt");
        let shown = p.expect(&["show"], 0);
        assert!(shown.contains("in doubt") && shown.contains("runbook resume"), "{shown}");
        // The host knows: resume waits for the same command.
        let mut again = p.start(&["resume"]);
        std::thread::sleep(Duration::from_millis(700));
        assert!(again.0.try_wait().unwrap().is_none(), "{signal}: it waits for the command");
        std::fs::write(host.home().join("go"), "").unwrap();
        assert_eq!(again.wait(), 0, "{signal}");
        assert_eq!(read(&host.home().join("ran")), "once\nended\nafter\n", "{signal}: the command ran once");
        assert_eq!(p.entries("outcome")[0]["via"], "reconcile", "{signal}");
    }
}

#[test]
fn ctrl_c_on_a_terminal_says_what_it_does_and_what_comes_next() {
    let Some(host) = Sshd::start("") else { return };
    let p = Project::on(&host, &runbook());
    let mut s = p.screen(&["run", "a.rhai"], 24, 100);
    until("the command runs", || read(&host.home().join("ran")).contains("once"));
    s.keys("\x03");
    s.wait_for("once more stops at once");
    s.keys("\x03");
    s.wait_for("stopping now");
    assert_eq!(s.wait(), 130);
    let text = s.text();
    assert!(text.contains("stopped in the middle of host(\"old\").run(") && text.contains("was interrupted"), "{text}");
    assert!(text.contains(&format!("runbook resume {}", p.newest())), "{text}");
    assert!(!text.contains("^C"), "the key leaves no trace:\n{text}");
    // A rollback asks the host as well; it waits for the command, and takes it back.
    std::fs::write(host.home().join("go"), "").unwrap();
    p.expect(&["rollback"], 6);
    assert_eq!(read(&host.home().join("ran")), "once\nended\nundone\n");
}
