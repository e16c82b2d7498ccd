//! A server that its host starts and stops by itself, as a service.

use std::process::Command;

use super::*;

/// Ports of 127.0.0.1 that nothing has.
pub fn ports<const N: usize>() -> [u16; N] {
    std::array::from_fn(|_| crate::support::free_port())
}

/// A server that its host's `control` starts and stops, in a folder of its own.
pub struct Node {
    /// Its folder: `data`, `sock`, `conf.d`, `log.err`, `control`.
    pub dir: tempfile::TempDir,
}

impl Node {
    /// Makes one that does not run, with further lines of configuration; and what the inventory says of it.
    pub fn new(id: u32, extra: &str) -> Option<(Node, BTreeMap<String, Value>)> {
        // The folder with an empty data folder, and a free port, as other servers of these tests have them.
        let mut m = Mariadb::start(id, extra)?;
        m.shutdown();
        let dir = tempfile::Builder::new().prefix("rbg").tempdir_in("/tmp").unwrap();
        assert!(
            Command::new("cp")
                .arg("-a")
                .args(["data", "conf.d", "tmp"].map(|n| m.dir.path().join(n)))
                .arg(dir.path())
                .status()
                .unwrap()
                .success()
        );
        let [port] = ports();
        let d = dir.path().display().to_string();
        let text = std::fs::read_to_string(m.config())
            .unwrap()
            .replace(&m.dir.path().display().to_string(), &d)
            .replace(&format!("port={}", m.port), &format!("port={port}"))
            // As packages run it. The state transfer's rsync daemon, were it root's, would become nobody and reach no file.
            .replace("user=root", "user=mysql");
        std::fs::write(dir.path().join("my.cnf"), text).unwrap();
        let control = format!(
            "#!/bin/sh\np=$(cat {d}/pid 2>/dev/null)\ncase $1 in\n\
             stop) [ -n \"$p\" ] && kill \"$p\"; for i in $(seq 300); do [ -e {d}/pid ] || exit 0; sleep 0.1; done; echo 'it does not end' >&2; exit 1;;\n\
             bootstrap) n=--wsrep-new-cluster;;\nesac\nrm -f {d}/pid\n\
             setsid mariadbd --defaults-file={d}/my.cnf $n </dev/null >/dev/null 2>&1 &\necho $! >{d}/started\n"
        );
        std::fs::write(dir.path().join("control"), control).unwrap();
        assert!(Command::new("chmod").arg("755").arg(dir.path().join("control")).status().unwrap().success());
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(Command::new("chown").args(["-R", "mysql:mysql"]).arg(dir.path()).status().unwrap().success());
        let own = |name: &str| Value::from(format!("{d}/{name}"));
        let settings = BTreeMap::from([
            ("database".to_string(), Value::from("shop")),
            ("socket".to_string(), own("sock")),
            ("config_dir".to_string(), own("conf.d")),
            ("defaults_file".to_string(), own("my.cnf")),
            ("data_dir".to_string(), own("data")),
            ("control".to_string(), own("control")),
            ("replication_host".to_string(), "127.0.0.1".into()),
            ("replication_port".to_string(), Value::Int(i64::from(port))),
        ]);
        Some((Node { dir }, settings))
    }

    /// Its process, as its own file says.
    pub fn pid(&self) -> Option<String> {
        let pid = std::fs::read_to_string(self.dir.path().join("pid")).ok()?;
        Some(pid.trim().to_string())
    }

    /// Sends its process a signal.
    pub fn signal(&self, signal: &str) {
        for pid in
            [self.pid(), std::fs::read_to_string(self.dir.path().join("started")).ok().map(|p| p.trim().to_string())].into_iter().flatten()
        {
            // Only what is still this very server.
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if line.contains(&self.dir.path().display().to_string()) {
                let _ = Command::new("kill").args([signal, &pid]).status();
            }
        }
    }

    /// Kills it.
    pub fn kill(&self) {
        self.signal("-KILL");
        std::thread::sleep(Duration::from_millis(300));
    }

    /// Runs statements as the super-user; what they print, or the complaint.
    pub fn sql(&self, sql: &str) -> Result<String, String> {
        let out = Command::new("timeout")
            .args(["60", "mariadb", "--no-defaults", "-N", "-B", "-uroot", "-S"])
            .arg(self.dir.path().join("sock"))
            .args(["-e", sql])
            .output()
            .unwrap();
        if out.status.success() {
            Ok(String::from_utf8_lossy(&out.stdout).trim().to_string())
        } else {
            Err(String::from_utf8_lossy(&out.stderr).into_owned())
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("log.err")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(25).collect();
            eprintln!("{} said last:\n{}", self.dir.path().display(), tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        self.signal("-KILL");
    }
}
