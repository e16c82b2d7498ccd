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
        assert_eq!(attach(&shell, home.path(), "a-2", "0", "0").0, "MARK absent\n", "{shell:?}");
    }
}

#[test]
fn environment_and_input_come_whole_or_nothing_runs() {
    for shell in shells() {
        let home = tempfile::tempdir().unwrap();
        let private = "MARK\nexport A='x y'\nMARK\nthe input";
        let (out, err) = start(&shell, home.path(), "a-1", "echo \"$A\"; cat", private);
        assert_eq!((out.as_str(), err.as_str()), ("MARK ok\nx y\nthe input", "MARK ok\nMARK end 0 - -\n"), "{shell:?}");
        // Cut short in the input, and in the script: no claim is left.
        let args = |n: &'static str| ["MARK", "run", "a-2", n, script::run(), script::reader(), "", "0", ""];
        let o = sh(&shell, home.path(), script::start(), &args("100"), b"touch ran\nMARK\nMARK\nMARK\ncut");
        assert_eq!((o.status.code(), o.stdout.len()), (Some(255), 0), "{shell:?}");
        let o = sh(&shell, home.path(), script::start(), &args("0"), b"touch ran\nMAR");
        assert_eq!(o.status.code(), Some(255), "{shell:?}");
        assert!(!home.path().join("ran").exists() && !home.path().join(".runbook/run/a-2").exists(), "{shell:?}");
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
        assert_eq!(attach(&shell, home.path(), "a-1", "0", "0").0, "MARK absent\n", "{shell:?}");
        late.wait().unwrap();
        assert!(!home.path().join("ran").exists(), "{shell:?}: it must not run after it was said that it never began");
        assert!(!claim.exists());
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
