//! The supervisor's shell text under every POSIX shell that is installed here, without any SSH.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::script;

/// The shells that are `sh` on hosts: Debian's dash, Alpine's and OpenWrt's ash, bash, and the Korn shells of the BSDs and of Solaris.
fn shells() -> Vec<Vec<&'static str>> {
    let all: [&[&str]; 6] = [&["sh"], &["dash"], &["busybox", "ash"], &["bash", "--posix"], &["mksh", "-o", "posix"], &["ksh93"]];
    all.iter()
        .filter(|s| Command::new(s[0]).args(&s[1..]).args(["-c", ":"]).status().is_ok_and(|s| s.success()))
        .map(|s| s.to_vec())
        .collect()
}

fn sh(shell: &[&str], home: &Path, script: &str, args: &[&str], stdin: &[u8]) -> Output {
    let mut child = Command::new(shell[0])
        .args(&shell[1..])
        .args(["-c", script, "runbook"])
        .args(args)
        .env("HOME", home)
        .current_dir(home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

fn start(shell: &[&str], home: &Path, id: &str, command: &str, private: &str) -> (String, String) {
    let n = private.len().to_string();
    let stdin = format!("{command}\nMARK\n{private}");
    let args = ["MARK", "run", id, n.as_str(), script::run(), script::reader(), "", "0", ""];
    let o = sh(shell, home, script::start(), &args, stdin.as_bytes());
    (String::from_utf8(o.stdout).unwrap(), String::from_utf8(o.stderr).unwrap())
}

fn attach(shell: &[&str], home: &Path, id: &str, out: &str, err: &str) -> (String, String) {
    let o = sh(shell, home, script::attach(), &["MARK", "run", id, out, err], b"");
    (String::from_utf8(o.stdout).unwrap(), String::from_utf8(o.stderr).unwrap())
}

#[test]
fn a_command_is_claimed_run_once_and_its_result_kept() {
    for shell in shells() {
        let home = tempfile::tempdir().unwrap();
        let command = "pwd; echo 'it'\\''s' >&2\nexit 3";
        let (out, err) = start(&shell, home.path(), "a-1", command, "");
        assert_eq!(out, format!("MARK ok\n{}\n", home.path().display()), "{shell:?}");
        assert_eq!(err, "MARK ok\nit's\nMARK end 3 - -\n", "{shell:?}");
        assert_eq!(start(&shell, home.path(), "a-1", command, "").0, "MARK taken\n", "{shell:?}");
        let (out, err) = attach(&shell, home.path(), "a-1", "1", "2");
        assert_eq!(out, format!("MARK ok -\n{}\n", &home.path().display().to_string()[1..]), "{shell:?}");
        assert_eq!(err, "MARK ok\n's\nMARK end 3 - -\n", "{shell:?}");
        assert_eq!(attach(&shell, home.path(), "a-2", "0", "0").0, "MARK absent MARK\n", "{shell:?}");
    }
}

#[test]
fn what_is_said_to_be_absent_cannot_begin_by_a_request_that_comes_late() {
    for shell in shells() {
        let home = tempfile::tempdir().unwrap();
        let begin = |instead: &str| {
            let args = ["NEW", "run", "a-1", "0", script::run(), script::reader(), "", "0", instead];
            String::from_utf8(sh(&shell, home.path(), script::start(), &args, b"echo ran >>ran\nNEW\n").stdout).unwrap()
        };
        let ran = || std::fs::read_to_string(home.path().join("ran")).unwrap_or_default();
        assert_eq!(attach(&shell, home.path(), "a-1", "0", "0").0, "MARK absent MARK\n", "{shell:?}");
        // The request of the controller that died arrives only now; so does one that knows of another void claim.
        for late in ["", "OTHER"] {
            assert_eq!(begin(late), "NEW taken\n", "{shell:?}");
        }
        assert_eq!(ran(), "", "{shell:?}");
        assert_eq!(attach(&shell, home.path(), "a-1", "0", "0").0, "MARK absent MARK\n", "{shell:?}: said again");
        // Who was told the word begins it, once.
        assert_eq!(begin("MARK"), "NEW ok\n", "{shell:?}");
        assert_eq!((begin("MARK"), begin("")), ("NEW taken\n".into(), "NEW taken\n".into()), "{shell:?}");
        assert_eq!(ran(), "ran\n", "{shell:?}");
    }
}

#[test]
fn a_start_that_gives_up_leaves_the_claim_of_another_alone() {
    for shell in shells() {
        let home = tempfile::tempdir().unwrap();
        let claim = home.path().join(".runbook/run/a-1");
        // Its input never comes whole.
        let mut slow = Command::new(shell[0])
            .args(&shell[1..])
            .args(["-c", script::start(), "runbook", "SLOW", "run", "a-1", "100", script::run(), script::reader(), "", "0", ""])
            .env("HOME", home.path())
            .current_dir(home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = slow.stdin.take().unwrap();
        input.write_all(b"echo slow >>ran\nSLOW\n").unwrap();
        let began = Instant::now();
        while !claim.join("slot").exists() {
            assert!(began.elapsed() < Duration::from_secs(10), "{shell:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(attach(&shell, home.path(), "a-1", "0", "0").0, "MARK absent MARK\n", "{shell:?}");
        let args = ["NEW", "run", "a-1", "0", script::run(), script::reader(), "", "0", "MARK"];
        let o = sh(&shell, home.path(), script::start(), &args, b"echo new >>ran\nNEW\n");
        assert_eq!(String::from_utf8(o.stdout).unwrap(), "NEW ok\n", "{shell:?}");
        drop(input);
        assert_eq!(slow.wait().unwrap().code(), Some(255), "{shell:?}");
        assert_eq!(std::fs::read_to_string(claim.join("status")).unwrap().trim(), "0", "{shell:?}: the new claim is whole");
        assert_eq!(std::fs::read_to_string(home.path().join("ran")).unwrap(), "new\n", "{shell:?}");
    }
}

#[test]
fn environment_and_input_come_whole_or_nothing_runs() {
    for shell in shells() {
        let home = tempfile::tempdir().unwrap();
        let private = "MARK\nexport A='x y'\nMARK\nthe input";
        let (out, err) = start(&shell, home.path(), "a-1", "echo \"$A\"; cat", private);
        assert_eq!((out.as_str(), err.as_str()), ("MARK ok\nx y\nthe input", "MARK ok\nMARK end 0 - -\n"), "{shell:?}");
        // Cut short in the input, and in the script: no claim is left, and the others are as they were.
        let args = |n: &'static str| ["MARK", "run", "a-2", n, script::run(), script::reader(), "", "0", ""];
        let o = sh(&shell, home.path(), script::start(), &args("100"), b"touch ran\nMARK\nMARK\nMARK\ncut");
        assert_eq!((o.status.code(), o.stdout.len()), (Some(255), 0), "{shell:?}");
        let o = sh(&shell, home.path(), script::start(), &args("0"), b"touch ran\nMAR");
        assert_eq!(o.status.code(), Some(255), "{shell:?}");
        assert!(!home.path().join("ran").exists() && !home.path().join(".runbook/run/a-2").exists(), "{shell:?}");
        assert!(home.path().join(".runbook/run/a-1/status").exists(), "{shell:?}");
    }
}

#[test]
fn a_claim_without_a_process_is_made_void_and_cannot_begin_later() {
    for shell in shells() {
        let home = tempfile::tempdir().unwrap();
        let claim = home.path().join(".runbook/run/a-1");
        std::fs::create_dir_all(&claim).unwrap();
        std::fs::write(claim.join("script"), "touch ran\n").unwrap();
        // A runner that is slow to begin stands in the folder while it is judged.
        let mut late = Command::new(shell[0]);
        late.args(&shell[1..]).args(["-c", &format!("sleep 0.4; exec {} -c \"$0\" runbook MARK \"$HOME\" 0 '' '' 022", shell.join(" "))]);
        let mut late = late.arg(script::run()).env("HOME", home.path()).current_dir(&claim).stderr(Stdio::null()).spawn().unwrap();
        assert_eq!(attach(&shell, home.path(), "a-1", "0", "0").0, "MARK absent MARK\n", "{shell:?}");
        late.wait().unwrap();
        assert!(!home.path().join("ran").exists(), "{shell:?}: it must not run after it was said that it never began");
    }
}

#[test]
fn it_outlives_its_session_and_can_be_stopped() {
    for shell in shells() {
        let home = tempfile::tempdir().unwrap();
        let mut child = Command::new(shell[0])
            .args(&shell[1..])
            .args(["-c", script::start(), "runbook", "MARK", "run", "a-1", "0", script::run(), script::reader(), "", "0", ""])
            .env("HOME", home.path())
            .current_dir(home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"echo begun; sleep 30; echo never\nMARK\n").unwrap();
        let claim = home.path().join(".runbook/run/a-1");
        let began = Instant::now();
        while std::fs::read_to_string(claim.join("out")).unwrap_or_default() != "begun\n" {
            assert!(began.elapsed() < Duration::from_secs(10), "{shell:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!claim.join("status").exists(), "{shell:?}: it goes on");
        sh(&shell, home.path(), script::stop(), &["run", "a-1", "timeout"], b"");
        let (out, err) = attach(&shell, home.path(), "a-1", "0", "0");
        assert_eq!(out, "MARK ok -\nbegun\n", "{shell:?}");
        assert!(err.contains("MARK end 143 - timeout\n"), "{shell:?}: {err}");
    }
}
