//! A real Knot name server on loopback, in a folder of its own, run as the present user.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::bind::SECRET;

/// A running server; killed on drop.
pub struct Knot {
    dir: tempfile::TempDir,
    /// Its port on 127.0.0.1, UDP and TCP.
    pub port: u16,
    child: Child,
}

impl Knot {
    /// A primary with the zone `example.test` that takes updates and transfers signed by the key `runbook`, and the zone `frozen.test`
    /// from a file alone. `records` are further lines of both.
    pub fn start(records: &str) -> Option<Knot> {
        if !super::have("knotd") || !super::have("knotc") || !super::have("kzonecheck") || !super::have("dig") {
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary folder");
        let port = super::free_port();
        let d = dir.path().display();
        let conf = format!(
            "server:\n  rundir: {d}\n  listen: 127.0.0.1@{port}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n\
             control:\n  listen: {d}/knot.sock\nlog:\n  - target: stderr\n    any: info\ndatabase:\n  storage: {d}/db\n\
             key:\n  - id: runbook\n    algorithm: hmac-sha256\n    secret: {SECRET}\n\
             acl:\n  - id: signed\n    key: runbook\n    action: [update, transfer]\n\
             template:\n  - id: default\n    storage: {d}\n\
             zone:\n  - domain: example.test\n    file: example.db\n    acl: signed\n  - domain: frozen.test\n    file: frozen.db\n    zonefile-sync: -1\n"
        );
        let head = "$TTL 3600\n@ SOA ns1 admin 1 2 1 3600 5\n@ NS ns1\nns1 A 127.0.0.99\n";
        for file in ["example.db", "frozen.db"] {
            std::fs::write(dir.path().join(file), format!("{head}{records}\n")).expect("a zone");
        }
        std::fs::write(dir.path().join("knot.conf"), conf).expect("knot.conf");
        std::fs::create_dir(dir.path().join("db")).expect("a folder");
        let log = std::fs::File::create(dir.path().join("log")).expect("a log");
        let program = ["/usr/sbin/knotd", "/usr/local/sbin/knotd"].iter().find(|p| std::path::Path::new(p).exists()).expect("knotd");
        let child = Command::new(program)
            .arg("-c")
            .arg(dir.path().join("knot.conf"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("knotd starts");
        let k = Knot { dir, port, child };
        let began = Instant::now();
        while !k.dig(&["example.test", "SOA"]).contains("admin.example.test")
            || !k.dig(&["frozen.test", "SOA"]).contains("admin.frozen.test")
        {
            assert!(began.elapsed() < Duration::from_secs(20), "knotd does not answer: {}", k.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(k)
    }

    /// What `dig` says, short.
    pub fn dig(&self, args: &[&str]) -> String {
        let out = Command::new("dig")
            .args(["@127.0.0.1", "-p", &self.port.to_string(), "+short", "+norecurse", "+tries=1", "+time=1"])
            .args(args)
            .output()
            .expect("dig");
        String::from_utf8_lossy(&out.stdout).trim().to_string()
    }

    /// A file of its folder.
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// Its address.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

impl Drop for Knot {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("knotd said:\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
