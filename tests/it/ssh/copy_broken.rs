//! Copies that break off, through the binary: the controller killed or stopped, a host gone, in every way that files take.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::copy_ways::{FROM, Pair, TO, all, noise};
use crate::support::sshd::{Sshd, processes};

/// Every way, with the size of the file and the limit by which the transfer lasts long enough to be met in its middle.
const SLOW: [(&str, &str, usize, Option<&str>); 4] = [
    ("direct", "rsync", 80, Some("16MiB")),
    ("controller", "rsync", 80, Some("16MiB")),
    ("controller", "tar", 80, Some("16MiB")),
    // Nothing slows this one down.
    ("direct", "tar", 480, None),
];

struct Trial {
    p: Pair,
    dir: tempfile::TempDir,
    how: String,
}

impl Trial {
    /// A project with both hosts, a large file on the one, and a runbook that copies it.
    fn new(via: &str, tool: &str, mib: usize, limit: Option<&str>) -> Option<Trial> {
        let p = Pair::start()?;
        std::fs::create_dir_all(p.from()).unwrap();
        let mut content = noise(8 << 20, 11).repeat(mib / 8);
        // No two parts are the same.
        for (i, part) in content.chunks_mut(4096).enumerate() {
            part[..8].copy_from_slice(&(i as u64).to_le_bytes());
        }
        std::fs::write(p.from().join("big"), content).unwrap();
        std::fs::write(p.from().join("small"), "x").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let host = |name: &str, s: &Sshd| {
            format!(
                "[environments.test.hosts.{name}]\nssh = \"root@127.0.0.1:{}\"\nidentity_file = \"{}\"\nknown_hosts = \"{}\"\n",
                s.port,
                s.path("user_key").display(),
                s.path("known_hosts").display()
            )
        };
        let hosts = format!("[project]\nname = \"x\"\n[environments.test]\n{}{}", host("old", &p.b.host), host("new", &p.new));
        std::fs::write(dir.path().join("runbook.toml"), hosts).unwrap();
        let limit = limit.map(|l| format!(", bandwidth: \"{l}\"")).unwrap_or_default();
        let to = TO.replace('"', "\\\"");
        let call = format!("new.copy_from(old, \"{FROM}\", \"{to}\", #{{ via: \"{via}\", tool: \"{tool}\"{limit} }})");
        let text = format!("//! Copies.\nlet old = host(\"old\");\nlet new = host(\"new\");\nstep \"Copy\" {{ {call}; }} undo {{ }}\n");
        std::fs::create_dir(dir.path().join("runbooks")).unwrap();
        std::fs::write(dir.path().join("runbooks/r.rhai"), text).unwrap();
        Some(Trial { p, dir, how: format!("{tool} {via}") })
    }

    fn runbook(&self, args: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_runbook"));
        c.args(args).current_dir(self.dir.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        c
    }

    /// Begins the copy and comes back in its middle.
    fn begun(&self) -> Child {
        let mut run = self.runbook(&["run", "runbooks/r.rhai", "--env", "test", "--yes"]).spawn().unwrap();
        let partly = || all(&self.p.to()).iter().any(|f| std::fs::metadata(f).is_ok_and(|m| m.is_file() && m.len() > 4 << 20));
        let until = Instant::now() + Duration::from_secs(60);
        while !partly() {
            assert!(Instant::now() < until && run.try_wait().unwrap().is_none(), "{}: no transfer: {:?}", self.how, run.wait_with_output());
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.how.ends_with("direct") {
            let keys = std::fs::read_to_string(self.p.new.home().join(".ssh/authorized_keys")).unwrap();
            assert!(keys.contains("runbook-copy:"), "{}: {keys}", self.how);
        }
        run
    }

    /// The file is not there before it is whole, and nothing goes on by itself.
    fn stands_still(&self) {
        assert!(!self.p.to().join("big").exists(), "{}: half a file stands in its place", self.how);
        let (from, to) = (self.p.from(), self.p.to());
        let at_work = || {
            let mut all = processes().into_iter().filter(|x| ["rsync", "tar", "dd", "cat", "ssh"].contains(&x.name.as_str()));
            all.find(|x| std::fs::read_link(format!("/proc/{}/cwd", x.pid)).is_ok_and(|at| at == from || at == to))
        };
        let until = Instant::now() + Duration::from_secs(10);
        while let Some(x) = at_work() {
            assert!(Instant::now() < until, "{}: the transfer goes on without its controller: {}", self.how, x.command);
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(!self.p.to().join("big").exists(), "{}: half a file stands in its place", self.how);
    }

    /// Runs a verb to its end, and gives what it said.
    #[track_caller]
    fn ends(&self, args: &[&str], status: i32) -> String {
        let out = self.runbook(args).output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert_eq!(out.status.code(), Some(status), "{} {args:?}: {said}", self.how);
        said
    }

    /// No key, list or folder of the copy is on a host any more.
    #[track_caller]
    fn tidy(&self, host: &Sshd) {
        let left = |p: &str| host.home().join(p).exists();
        assert!(!left(".ssh/authorized_keys") && !left(".ssh") && !left(".runbook"), "{}: {:?}", self.how, all(&host.home()));
    }

    #[track_caller]
    fn copied(&self) {
        assert!(std::fs::read(self.p.from().join("big")).unwrap() == std::fs::read(self.p.to().join("big")).unwrap(), "{}", self.how);
        let names = |root: &Path| all(root).iter().map(|f| f.strip_prefix(root).unwrap().to_path_buf()).collect::<Vec<_>>();
        assert_eq!(names(&self.p.from()), names(&self.p.to()), "{}", self.how);
        self.tidy(&self.p.b.host);
        self.tidy(&self.p.new);
    }

    /// How many MiB the last copy has sent, as its note says.
    fn sent(&self) -> f64 {
        let log = String::from_utf8_lossy(&self.runbook(&["log", "--json"]).output().unwrap().stdout).into_owned();
        let note = log.lines().rfind(|l| l.contains(" copied (")).unwrap_or_else(|| panic!("no note: {log}")).to_string();
        let sent = note.split(" sent").next().and_then(|t| t.rsplit(' ').next()).unwrap();
        sent.strip_suffix("MiB").and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{sent} in {note}"))
    }
}

#[test]
fn a_controller_killed_in_mid_transfer_leaves_nothing_that_resume_does_not_take_back() {
    for (via, tool, mib, limit) in SLOW {
        for rollback in [false, true] {
            let Some(t) = Trial::new(via, tool, mib, limit) else { return };
            let mut run = t.begun();
            std::thread::sleep(Duration::from_millis(if limit.is_some() { 1000 } else { 100 }));
            run.kill().unwrap();
            run.wait().unwrap();
            t.stands_still();
            if rollback {
                t.ends(&["rollback"], 6);
                t.tidy(&t.p.b.host);
                t.tidy(&t.p.new);
            } else {
                t.ends(&["resume", "--yes"], 0);
                t.copied();
                let sent = t.sent();
                eprintln!("{}: {sent} of {mib} MiB sent after the kill", t.how);
                assert!(sent < mib as f64 - 3.0, "{}: what had come was sent again: {sent}", t.how);
            }
        }
    }
}

#[test]
fn a_copy_that_is_stopped_takes_its_key_back_at_once() {
    for (via, tool, mib, limit) in SLOW {
        let Some(t) = Trial::new(via, tool, mib, limit) else { return };
        let mut run = t.begun();
        let interrupt = || Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap();
        // Once: the copy in hand would come to its end. Twice: it stops now.
        interrupt();
        std::thread::sleep(Duration::from_millis(150));
        interrupt();
        let status = run.wait().unwrap();
        assert_eq!(status.code(), Some(130), "{}", t.how);
        t.tidy(&t.p.new);
        t.tidy(&t.p.b.host);
        t.stands_still();
        t.ends(&["resume", "--yes"], 0);
        t.copied();
    }
}

#[test]
fn a_host_that_is_gone_ends_the_copy_and_is_cleared_when_it_is_back() {
    for (via, tool, mib, limit) in SLOW {
        for target in [true, false] {
            let Some(mut t) = Trial::new(via, tool, mib, limit) else { return };
            let run = t.begun();
            if target {
                t.p.new.down()
            } else {
                t.p.b.host.down()
            }
            let out = run.wait_with_output().unwrap();
            let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
            assert_eq!(out.status.code(), Some(1), "{}: {said}", t.how);
            assert!(said.contains("RB0300") && said.contains("runbook resume"), "{}: {said}", t.how);
            t.stands_still();
            // The host that is there has nothing left but what it keeps to go on from.
            t.tidy(if target { &t.p.b.host } else { &t.p.new });
            if target {
                t.p.new.up()
            } else {
                t.p.b.host.up()
            }
            t.ends(&["resume", "--yes"], 0);
            t.copied();
        }
    }
}
