//! The supervisor's shell text under every POSIX shell that is installed here, without any SSH.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Output, Stdio};
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

/// The arguments of a station.
fn station<'a>() -> [&'a str; 5] {
    ["HI", "run", script::run(), script::reader(), ""]
}

/// A request to a station.
fn request(mark: &str, id: &str, instead: &str, command: &str, private: &str, length: usize) -> Vec<u8> {
    format!("run {mark}\n{id}\nIN\n{length}\n\n0\n{instead}\n\n\n{command}\nIN\n{private}").into_bytes()
}

/// What a station says about one request, without its first line.
fn ask(shell: &[&str], home: &Path, request: &[u8]) -> (String, String) {
    let o = sh(shell, home, script::station(), &station(), request);
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap().strip_prefix("HI hi\n").unwrap().to_string();
    (text(o.stdout), text(o.stderr))
}

fn start(shell: &[&str], home: &Path, id: &str, command: &str, private: &str) -> (String, String) {
    ask(shell, home, &request("MARK", id, "", command, private, private.len()))
}

/// A station that is asked several times.
struct Desk {
    child: Child,
    stdin: Option<ChildStdin>,
    out: BufReader<ChildStdout>,
    err: BufReader<ChildStderr>,
}

impl Desk {
    fn new(shell: &[&str], home: &Path) -> Desk {
        let mut child = Command::new(shell[0])
            .args(&shell[1..])
            .args(["-c", script::station(), "runbook"])
            .args(station())
            .env("HOME", home)
            .current_dir(home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, out, err) = (child.stdin.take(), child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let mut desk = Desk { child, stdin, out: BufReader::new(out), err: BufReader::new(err) };
        assert_eq!((desk.line(), desk.error()), ("HI hi\n".into(), "HI hi\n".into()));
        desk
    }

    fn say(&mut self, request: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(request).unwrap();
    }

    fn line(&mut self) -> String {
        let mut l = String::new();
        self.out.read_line(&mut l).unwrap();
        l
    }

    fn error(&mut self) -> String {
        let mut l = String::new();
        self.err.read_line(&mut l).unwrap();
        l
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
        assert_eq!(out, format!("MARK ok\n{}\nMARK end\n", home.path().display()), "{shell:?}");
        assert_eq!(err, "MARK ok\nit's\nMARK end 3 - -\n", "{shell:?}");
        assert_eq!(start(&shell, home.path(), "a-1", command, "").0, "MARK taken\n", "{shell:?}");
        let (out, err) = attach(&shell, home.path(), "a-1", "1", "2");
        assert_eq!(out, format!("MARK ok -\n{}\nMARK end\n", &home.path().display().to_string()[1..]), "{shell:?}");
        assert_eq!(err, "MARK ok\n's\nMARK end 3 - -\n", "{shell:?}");
        assert_eq!(attach(&shell, home.path(), "a-2", "0", "0").0, "MARK absent MARK\n", "{shell:?}");
    }
}

#[test]
fn what_is_said_to_be_absent_cannot_begin_by_a_request_that_comes_late() {
    for shell in shells() {
        let home = tempfile::tempdir().unwrap();
        let begin = |instead: &str| ask(&shell, home.path(), &request("NEW", "a-1", instead, "echo ran >>ran", "", 0)).0;
        let ran = || std::fs::read_to_string(home.path().join("ran")).unwrap_or_default();
        assert_eq!(attach(&shell, home.path(), "a-1", "0", "0").0, "MARK absent MARK\n", "{shell:?}");
        // The request of the controller that died arrives only now; so does one that knows of another void claim.
        for late in ["", "OTHER"] {
            assert_eq!(begin(late), "NEW taken\n", "{shell:?}");
        }
        assert_eq!(ran(), "", "{shell:?}");
        assert_eq!(attach(&shell, home.path(), "a-1", "0", "0").0, "MARK absent MARK\n", "{shell:?}: said again");
        // Who was told the word begins it, once.
        assert_eq!(begin("MARK"), "NEW ok\nNEW end\n", "{shell:?}");
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
        let mut slow = Desk::new(&shell, home.path());
        slow.say(&request("SLOW", "a-1", "", "echo slow >>ran", "half", 100));
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(attach(&shell, home.path(), "a-1", "0", "0").0, "MARK absent MARK\n", "{shell:?}");
        let said = ask(&shell, home.path(), &request("NEW", "a-1", "MARK", "echo new >>ran", "", 0)).0;
        assert_eq!(said, "NEW ok\nNEW end\n", "{shell:?}");
        drop(slow.stdin.take());
        assert_eq!(slow.child.wait().unwrap().code(), Some(255), "{shell:?}");
        assert_eq!(std::fs::read_to_string(claim.join("status")).unwrap().trim(), "0", "{shell:?}: the new claim is whole");
        assert_eq!(std::fs::read_to_string(home.path().join("ran")).unwrap(), "new\n", "{shell:?}");
    }
}

#[test]
fn one_session_serves_many_commands_and_follows_long_ones_when_asked() {
    for shell in shells() {
        let home = tempfile::tempdir().unwrap();
        let mut desk = Desk::new(&shell, home.path());
        for i in 0..3 {
            desk.say(&request(&format!("M{i}"), &format!("a-{i}"), "", &format!("echo out{i}; exit {i}"), "", 0));
            let said = [desk.line(), desk.line(), desk.line(), desk.error(), desk.error()].concat();
            assert_eq!(said, format!("M{i} ok\nout{i}\nM{i} end\nM{i} ok\nM{i} end {i} - -\n"), "{shell:?}");
            // One that came too late to be of use is passed over.
            desk.say(b"go\n");
        }
        // Its input does not come before what follows.
        let private = "IN\nexport A=x\nIN\nthe input\n";
        desk.say(&request("P", "a-p", "", "cat; echo \"$A\"", private, private.len()));
        let said = [desk.line(), desk.line(), desk.line(), desk.line()].concat();
        assert_eq!(said, "P ok\nthe input\nx\nP end\n", "{shell:?}");
        assert_eq!([desk.error(), desk.error()].concat(), "P ok\nP end 0 - -\n", "{shell:?}");
        let began = Instant::now();
        desk.say(&request("L", "a-l", "", "echo early; sleep 2; echo late", "", 0));
        assert_eq!(desk.line(), "L ok\n");
        desk.say(b"go\n");
        assert_eq!(desk.line(), "early\n", "{shell:?}");
        assert!(began.elapsed() < Duration::from_millis(1900), "{shell:?}: {:?}", began.elapsed());
        assert_eq!([desk.line(), desk.line()].concat(), "late\nL end\n", "{shell:?}");
        assert_eq!([desk.error(), desk.error()].concat(), "L ok\nL end 0 - -\n", "{shell:?}");
    }
}

#[test]
fn a_request_that_comes_after_the_runs_folder_was_removed_begins_nothing() {
    for shell in shells() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(".runbook/run");
        let mut late = Desk::new(&shell, home.path());
        let mut later = Desk::new(&shell, home.path());
        // The run has ended and was cleaned up, while a request was on its way; once with nothing after it, and once the run's id has
        // come to life again, as when it is rolled back.
        let mut cleans = Desk::new(&shell, home.path());
        cleans.say(b"clean C\n");
        assert_eq!(cleans.line(), "C clean\n", "{shell:?}");
        assert!(!folder.exists() && !home.path().join(".runbook").exists(), "{shell:?}");
        late.say(&request("LATE", "a-1", "", "echo late >>ran", "", 0));
        let said = late.line();
        assert!(said.starts_with("LATE no "), "{shell:?}: {said}");
        let mut again = Desk::new(&shell, home.path());
        later.say(&request("LATER", "a-1", "", "echo later >>ran", "", 0));
        let said = later.line();
        assert!(said.starts_with("LATER no "), "{shell:?}: {said}");
        assert!(!folder.join("a-1").exists() && !home.path().join("ran").exists(), "{shell:?}: nothing was begun");
        again.say(&request("AGAIN", "a-1", "", "echo again >>ran", "", 0));
        assert_eq!([again.line(), again.line()].concat(), "AGAIN ok\nAGAIN end\n", "{shell:?}");
        assert_eq!(std::fs::read_to_string(home.path().join("ran")).unwrap(), "again\n", "{shell:?}");
    }
}

#[test]
fn a_clean_up_that_comes_late_takes_no_other_claims_away() {
    for shell in shells() {
        let home = tempfile::tempdir().unwrap();
        let mut late = Desk::new(&shell, home.path());
        std::fs::remove_dir_all(home.path().join(".runbook")).unwrap();
        start(&shell, home.path(), "a-1", "true", "");
        late.say(b"clean C\n");
        assert_eq!(late.line(), "C clean\n", "{shell:?}");
        assert!(home.path().join(".runbook/run/a-1/status").exists(), "{shell:?}");
        // Who only looks makes nothing.
        let mut look = station();
        (look[1], look[4]) = ("other", "look");
        let o = sh(&shell, home.path(), script::station(), &look, b"");
        assert_eq!((o.stdout.as_slice(), home.path().join(".runbook/other").exists()), (b"HI none\n".as_slice(), false), "{shell:?}");
    }
}

#[test]
fn environment_and_input_come_whole_or_nothing_runs() {
    for shell in shells() {
        let home = tempfile::tempdir().unwrap();
        let private = "IN\nexport A='x y'\nIN\nthe input";
        let (out, err) = start(&shell, home.path(), "a-1", "echo \"$A\"; cat", private);
        assert_eq!((out.as_str(), err.as_str()), ("MARK ok\nx y\nthe inputMARK end\n", "MARK ok\nMARK end 0 - -\n"), "{shell:?}");
        // Cut short in the input, in the script, and in the words: no claim is left, and the others are as they were.
        let whole = request("MARK", "a-2", "", "touch ran", "IN\nIN\ncut", 100);
        for cut in [whole.len(), whole.len() - 11, 12] {
            let o = sh(&shell, home.path(), script::station(), &station(), &whole[..cut]);
            assert_eq!((o.status.code(), o.stdout.as_slice()), (Some(255), b"HI hi\n".as_slice()), "{shell:?}");
        }
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
        let mut desk = Desk::new(&shell, home.path());
        desk.say(&request("MARK", "a-1", "", "echo begun; sleep 30; echo never", "", 0));
        let claim = home.path().join(".runbook/run/a-1");
        let began = Instant::now();
        while std::fs::read_to_string(claim.join("out")).unwrap_or_default() != "begun\n" {
            assert!(began.elapsed() < Duration::from_secs(10), "{shell:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(desk);
        assert!(!claim.join("status").exists(), "{shell:?}: it goes on");
        sh(&shell, home.path(), script::stop(), &["run", "a-1", "timeout"], b"");
        let (out, err) = attach(&shell, home.path(), "a-1", "0", "0");
        assert_eq!(out, "MARK ok -\nbegun\nMARK end\n", "{shell:?}");
        assert!(err.contains("MARK end 143 - timeout\n"), "{shell:?}: {err}");
    }
}

#[test]
fn a_shell_that_stays_runs_one_command_after_another() {
    for shell in shells() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("sub")).unwrap();
        let requests = [
            "ma\npwd; printf 'x\\n\\ny'; printf z >&2\nma\n",
            "mb\ncd sub; x=1; alias ls=false; trap 'echo gone' EXIT; pwd; exit 7\nmb\n",
            // Nothing of an earlier one is left, a wrong one ends itself alone, and its input is empty.
            "mc\npwd; echo \"[$x]\"; cat\nmc\n\n",
            "md\nif\nmd\n",
            "me\nexport E=1; exec printf e\nme\n",
            "mf\necho \"[$E$RB_S$RB_N$RB_P]\"; kill -9 $$; echo more\nmf\n",
            // Half a command never runs.
            "mg\ntouch half\n",
        ];
        let o = sh(&shell, home.path(), script::shell(), &["HI", script::command()], requests.concat().as_bytes());
        let here = home.path().canonicalize().unwrap().display().to_string();
        let (out, err) = (String::from_utf8(o.stdout).unwrap(), String::from_utf8(o.stderr).unwrap());
        let part = |text: &str, m: &str| {
            let (_, rest) = text.split_once(&format!("{m} ")).unwrap();
            let (_, rest) = rest.split_once('\n').unwrap();
            let (own, rest) = rest.split_once(&format!("{m}e ")).unwrap();
            (own.to_string(), rest.split_once('\n').unwrap().0.to_string())
        };
        assert_eq!(part(&out, "ma"), (format!("{here}\nx\n\ny"), String::new()), "{shell:?}");
        assert_eq!(part(&err, "ma"), ("z".into(), "0".into()), "{shell:?}");
        assert_eq!((part(&out, "mb").0, part(&err, "mb").1), (format!("{here}/sub\ngone\n"), "7".into()), "{shell:?}");
        assert_eq!((part(&out, "mc").0, part(&err, "mc")), (format!("{here}\n[]\n"), (String::new(), "0".into())), "{shell:?}");
        let (said, status) = part(&err, "md");
        assert!(said.contains("yntax error") && status != "0", "{shell:?}: {said} {status}");
        assert_eq!((part(&out, "me").0.as_str(), part(&err, "me").1.as_str()), ("e", "0"), "{shell:?}");
        let (said, status) = (part(&out, "mf").0, part(&err, "mf").1);
        assert!(said == "[]\n" && (status == "137" || status == "265"), "{shell:?}: {said} {status}");
        assert!(!home.path().join("half").exists() && o.status.code() == Some(255), "{shell:?}: {:?}", o.status);
    }
}
