//! A real PowerDNS authoritative server on loopback with a SQLite database, in a folder of its own, run as the present user.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The key of its API.
pub const KEY: &str = "api-key-of-the-tests-0123456789";

/// A running server; killed on drop.
pub struct Pdns {
    dir: tempfile::TempDir,
    /// The port of its API.
    pub api: u16,
    /// Its DNS port, UDP and TCP.
    pub dns: u16,
    child: Option<Child>,
}

impl Pdns {
    /// Starts a server that holds `zones`, each with its SOA and one name server.
    pub fn start(zones: &[&str]) -> Option<Pdns> {
        if !super::have("pdns_server") || !super::have("sqlite3") || !super::have("dig") {
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (api, dns) = (super::free_port(), super::free_port());
        let db = dir.path().join("pdns.db");
        let schema =
            ["/usr/share/pdns-backend-sqlite3/schema/schema.sqlite3.sql", "/usr/share/doc/pdns-backend-sqlite3/schema.sqlite3.sql"];
        let Some(schema) = schema.iter().find(|p| std::path::Path::new(p).exists()) else {
            assert!(std::env::var_os("CI").is_none(), "pdns-backend-sqlite3 is not installed, and CI is set: tests/run installs it");
            eprintln!("skipped: pdns-backend-sqlite3 is not installed (tests/run installs it)");
            return None;
        };
        let made = Command::new("sqlite3").arg(&db).stdin(std::fs::File::open(schema).expect("the schema")).status().expect("sqlite3");
        assert!(made.success(), "the schema");
        let conf = format!(
            "launch=gsqlite3\ngsqlite3-database={db}\nlocal-address=127.0.0.1:{dns}\napi=yes\napi-key={KEY}\nwebserver=yes\n\
             webserver-address=127.0.0.1\nwebserver-port={api}\nwebserver-allow-from=127.0.0.1\nsocket-dir={dir}\ncache-ttl=0\n\
             query-cache-ttl=0\nnegquery-cache-ttl=0\nzone-cache-refresh-interval=0\nallow-axfr-ips=127.0.0.1\nguardian=no\n\
             disable-syslog=yes\nloglevel=4\nsecurity-poll-suffix=\n",
            db = db.display(),
            dir = dir.path().display()
        );
        std::fs::write(dir.path().join("pdns.conf"), conf).expect("pdns.conf");
        let mut p = Pdns { dir, api, dns, child: None };
        p.up();
        for zone in zones {
            let body = serde_json::json!({ "name": format!("{zone}."), "kind": "Native", "nameservers": [format!("ns1.{zone}.")] });
            let (status, text) = p.api("POST", "/api/v1/servers/localhost/zones", &body.to_string());
            assert_eq!(status, 201, "{text}");
        }
        Some(p)
    }

    /// Starts the server process (again).
    pub fn up(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).expect("a log");
        let program = ["/usr/sbin/pdns_server", "/usr/local/sbin/pdns_server"].iter().find(|p| std::path::Path::new(p).exists());
        let child = Command::new(program.expect("pdns_server"))
            .arg(format!("--config-dir={}", self.dir.path().display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("pdns_server starts");
        self.child = Some(child);
        let began = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.api)).is_err()
            || std::net::TcpStream::connect(("127.0.0.1", self.dns)).is_err()
        {
            assert!(began.elapsed() < Duration::from_secs(20), "pdns_server does not answer: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops it.
    pub fn down(&mut self) {
        if let Some(mut c) = self.child.take() {
            let _ = c.kill();
            let _ = c.wait();
        }
    }

    /// One request to the API, as another administrator would send it; status and body.
    pub fn api(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        super::http_request(self.api, method, path, &[("X-API-Key", KEY)], body)
    }

    /// Its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The whole zone as `dig` gets it by transfer, line by line.
    pub fn transfer(&self, zone: &str) -> Vec<String> {
        super::bind::transfer(self.dns, zone)
    }
}

impl Drop for Pdns {
    fn drop(&mut self) {
        self.down();
    }
}
