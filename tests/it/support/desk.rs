//! A small project in a folder of its own, and the binary that works in it: with pipes, or on a terminal.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use super::screen::Screen;
use super::sshd::Sshd;

/// An inventory whose host cannot be reached: for runs that contact nothing.
pub const INVENTORY: &str = r#"
[params]
greeting = "hello"
count = 3

[secrets]
unset = { env = "RUNBOOK_TEST_SECRET_THAT_IS_NOT_SET" }

[environments.test.hosts.old]
ssh = "nobody@127.0.0.1:1"
"#;

/// A project in a folder of its own.
pub struct Project(tempfile::TempDir);

impl Project {
    /// With this inventory and this runbook, `a.rhai`.
    pub fn new(inventory: &str, runbook: &str) -> Project {
        let p = Project(tempfile::tempdir().unwrap());
        p.write("runbook.toml", inventory);
        p.write("a.rhai", runbook);
        p
    }

    /// In a folder as it is.
    pub fn of(dir: tempfile::TempDir) -> Project {
        Project(dir)
    }

    /// With the server as host "old", and "old" bound to it in the runbook.
    pub fn on(host: &Sshd, runbook: &str) -> Project {
        let settings: String = host.settings().iter().map(|(k, v)| format!("{k} = {:?}\n", v.as_str().unwrap())).collect();
        Project::new(&format!("[environments.test.hosts.old]\n{settings}"), &format!("let old = host(\"old\");\n{runbook}"))
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file of the project.
    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir().join(name), text).unwrap();
    }

    /// The command, not yet run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(exe());
        c.args(args).current_dir(self.dir()).env_remove("SSH_CLIENT").env("RUST_BACKTRACE", "0").stdin(Stdio::null());
        c
    }

    /// Runs it to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Exit status, standard output, standard error.
    pub fn text(&self, args: &[&str]) -> (i32, String, String) {
        let o = self.run(args);
        (o.status.code().unwrap_or(-1), String::from_utf8(o.stdout).unwrap(), String::from_utf8(o.stderr).unwrap())
    }

    /// Runs it and wants this exit status; standard output and standard error together.
    #[track_caller]
    pub fn expect(&self, args: &[&str], status: i32) -> String {
        let (got, out, err) = self.text(args);
        assert_eq!(got, status, "{args:?}\n{out}\n{err}");
        format!("{out}{err}")
    }

    /// The one JSON document of a command.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> (i32, Json) {
        let mut all = args.to_vec();
        all.push("--json");
        let (status, out, _) = self.text(&all);
        (status, serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?} printed no JSON document ({e}): {out}")))
    }

    /// The newest run's id.
    #[track_caller]
    pub fn newest(&self) -> String {
        self.json(&["runs"]).1["runs"][0]["id"].as_str().unwrap().to_string()
    }

    /// The newest run's state.
    #[track_caller]
    pub fn state(&self) -> String {
        self.json(&["show"]).1["run"]["state"].as_str().unwrap().to_string()
    }

    /// The newest run's entries of one kind, their data alone.
    #[track_caller]
    pub fn entries(&self, kind: &str) -> Vec<Json> {
        let (status, out, err) = self.text(&["audit", "export"]);
        assert_eq!(status, 0, "{err}");
        let all = out.lines().map(|l| serde_json::from_str::<Json>(l).unwrap());
        all.filter(|e| e["kind"] == kind).map(|e| e["data"].clone()).collect()
    }

    /// Starts it and lets it run, heard by nobody.
    pub fn start(&self, args: &[&str]) -> Running {
        Running(self.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Starts a run that waits at a gate, and waits until it does.
    pub fn waiting(&self, args: &[&str]) -> Running {
        let child = self.start(args);
        until("a gate waits", || self.json(&["runs"]).1["runs"].as_array().is_some_and(|r| !r.is_empty()) && self.gate_waits());
        child
    }

    fn gate_waits(&self) -> bool {
        let (_, doc) = self.json(&["show"]);
        doc["nodes"].as_array().is_some_and(|n| n.iter().any(|n| n["kind"] == "gate" && n["state"] == "waiting"))
    }

    /// Starts it on a terminal of its own.
    pub fn screen(&self, args: &[&str], rows: u16, columns: u16) -> Screen {
        self.screen_with(args, rows, columns, &[])
    }

    /// As [`Project::screen`], with further environment variables.
    pub fn screen_with(&self, args: &[&str], rows: u16, columns: u16, env: &[(&str, &str)]) -> Screen {
        Screen::start(&exe(), args, self.dir(), rows, columns, env)
    }
}

/// The binary.
pub fn exe() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_runbook"))
}

/// Waits until something is so.
#[track_caller]
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !so() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A child that does not outlive its test.
pub struct Running(pub Child);

impl Running {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Its exit status.
    #[track_caller]
    pub fn wait(&mut self) -> i32 {
        let mut status = None;
        until("the run ended", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code().unwrap_or(-1)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
