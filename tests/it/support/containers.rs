//! The hosts of `tests/lab`, for tests that need whole servers: one test at a time has them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value as Json;

use super::desk::Project;

/// The lab, held by one test; faults are taken back when it is dropped.
pub struct Lab {
    run: PathBuf,
    addresses: BTreeMap<String, String>,
    broken: std::cell::Cell<bool>,
    _held: File,
}

fn tool(args: &[&str]) -> Output {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/lab");
    Command::new(lab).args(args).stdin(Stdio::null()).output().expect("tests/lab/lab starts")
}

impl Lab {
    /// Waits until no other test has the lab; `None`, with the reason printed, when it is not up.
    pub fn take() -> Option<Lab> {
        let run = PathBuf::from(std::env::var_os("RUNBOOK_LAB_RUN").unwrap_or_else(|| "/run/runbook-lab".into()));
        let hosts = std::fs::read_to_string(run.join("hosts.json")).unwrap_or_default();
        if hosts.is_empty() {
            assert!(std::env::var_os("CI").is_none(), "the lab is not up, and CI is set: tests/run starts it");
            eprintln!("skipped: the lab is not up (tests/run starts it; by hand: tests/lab/lab up)");
            return None;
        }
        let held = File::create(run.join("test.lock")).expect("a lock file");
        held.lock().expect("the lock");
        let addresses: BTreeMap<String, String> = serde_json::from_str(&hosts).expect("hosts.json");
        let lab = Lab { run, addresses, broken: false.into(), _held: held };
        // What an earlier test left, when it was killed.
        lab.fault(&["heal"]);
        lab.broken.set(false);
        for host in lab.addresses.keys() {
            lab.on(host, "rm -rf /root/.runbook /root/t /root/t.out /etc/nginx/conf.d/broken.conf; systemctl reset-failed");
        }
        Some(lab)
    }

    /// `tests/lab/lab fault …`
    #[track_caller]
    pub fn fault(&self, words: &[&str]) {
        self.broken.set(true);
        let out = tool(&[&["fault"], words].concat());
        assert!(out.status.success(), "fault {words:?}: {}", String::from_utf8_lossy(&out.stderr));
    }

    /// Runs a shell command on a host beside SSH, which may be cut off, and gives what it printed.
    #[track_caller]
    pub fn on(&self, host: &str, command: &str) -> String {
        let (ok, text) = self.try_on(host, command);
        assert!(ok, "{host}: {command}: {text}");
        text
    }

    /// As [`Lab::on`]; whether it succeeded, and what it printed.
    pub fn try_on(&self, host: &str, command: &str) -> (bool, String) {
        let engine = format!("unix://{}", self.run.join("docker.sock").display());
        let out = Command::new("docker").args(["-H", &engine, "exec", host, "sh", "-c", command]).output().expect("docker starts");
        (out.status.success(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
    }

    /// Moves the shop from `old` to `new` by the reference cutover, while a customer orders, and gives what was seen; with `rollback`, the
    /// last step before the point of no return fails and everything is taken back.
    #[track_caller]
    pub fn cutover(&self, kind: &str, rollback: bool) -> Json {
        let mut words = vec!["cutover", kind, env!("CARGO_BIN_EXE_runbook")];
        if rollback {
            words.push("rollback");
        }
        let out = tool(&words);
        let (seen, said) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        println!("{seen}");
        assert!(out.status.success(), "{seen}{said}");
        serde_json::from_str(&seen).expect("JSON")
    }

    /// A project whose environment `test` has all hosts, with `old`, `new`, `edge` and `vault` bound to them in the runbook.
    pub fn project(&self, runbook: &str) -> Project {
        Project::new(&self.inventory(), &format!("{}{runbook}", self.names()))
    }

    /// The hosts of the environment `test`.
    pub fn inventory(&self) -> String {
        let file = |name: &str| self.run.join(name).display().to_string();
        let host = |(name, address): (&String, &String)| {
            format!(
                "[environments.test.hosts.{name}]\nssh = \"root@{address}\"\naddress = \"{address}\"\nssh_config = \"none\"\n\
                 identity_file = {:?}\nknown_hosts = {:?}\n",
                file("id"),
                file("known_hosts")
            )
        };
        self.addresses.iter().map(host).collect()
    }

    fn names(&self) -> String {
        self.addresses.keys().map(|n| format!("let {n} = host(\"{n}\");\n")).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.broken.get() {
            let _ = tool(&["fault", "heal"]);
        }
    }
}
