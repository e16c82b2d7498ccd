//! A real BIND name server on loopback, in a folder of its own, run as the present user.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The TSIG key of every server here, in base64.
pub const SECRET: &str = "c2VjcmV0LWtleS1vZi10aGUtdGVzdHMtMDEyMzQ1Njc=";

/// A running server; killed on drop.
pub struct Bind {
    dir: tempfile::TempDir,
    /// Its port on 127.0.0.1, UDP and TCP.
    pub port: u16,
    child: Option<Child>,
    resolver: bool,
}

impl Bind {
    /// A primary with the zone `example.test` that takes updates signed by the key `runbook`, and the zone `frozen.test` that takes
    /// none. `records` are further lines of `example.test`.
    pub fn primary(records: &str) -> Option<Bind> {
        Bind::start(|b| {
            let head = "$TTL 3600\n@ SOA ns1 admin 1 2 1 3600 5\n@ NS ns1\nns1 A 127.0.0.99\n";
            std::fs::write(b.path("example.db"), format!("{head}{records}\n")).expect("a zone");
            std::fs::write(b.path("frozen.db"), format!("{head}shop A 192.0.2.1\n")).expect("a zone");
            "zone \"example.test\" { type primary; file \"example.db\"; allow-update { key \"runbook\"; }; };\n\
             zone \"frozen.test\" { type primary; file \"frozen.db\"; allow-update { none; }; };\n"
                .to_string()
        })
    }

    /// A secondary of `example.test` that hears of changes only when it asks, every two or three seconds.
    pub fn lagging_secondary(primary: &Bind) -> Option<Bind> {
        let port = primary.port;
        Bind::start(|_| {
            format!(
                "zone \"example.test\" {{ type secondary; file \"copy.db\"; primaries {{ 127.0.0.1 port {port}; }}; \
                 min-refresh-time 2; max-refresh-time 3; min-retry-time 1; max-retry-time 2; }};\n"
            )
        })
    }

    fn start(zones: impl FnOnce(&Bind) -> String) -> Option<Bind> {
        Bind::start_as(false, zones)
    }

    fn start_as(resolver: bool, zones: impl FnOnce(&Bind) -> String) -> Option<Bind> {
        if !super::have("named") || !super::have("dig") {
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut b = Bind { dir, port: super::free_port(), child: None, resolver };
        let zones = zones(&b);
        let mut conf = String::new();
        let _ = write!(
            conf,
            "options {{ directory \"{dir}\"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; pid-file none; \
             session-keyfile none; recursion {recursion}; dnssec-validation {recursion}; notify no; check-names primary ignore; allow-transfer {{ any; }}; \
             tcp-clients 50; }};\ncontrols {{ }};\n\
             key \"runbook\" {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n{zones}",
            dir = b.dir.path().display(),
            port = b.port,
            recursion = if resolver { "yes" } else { "no" }
        );
        std::fs::write(b.path("named.conf"), conf).expect("named.conf");
        b.up();
        Some(b)
    }

    /// Starts the server process (again).
    pub fn up(&mut self) {
        let log = std::fs::File::create(self.path("named.log")).expect("a log");
        let named = ["/usr/sbin/named", "/usr/bin/named", "/usr/local/sbin/named"].iter().find(|p| std::path::Path::new(p).exists());
        let child = Command::new(named.expect("named"))
            .args(["-g", "-n", "1", "-c"])
            .arg(self.path("named.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("named starts");
        self.child = Some(child);
        let began = Instant::now();
        // A resolver is up when it answers at all: what it answers is for the test.
        let answers = |b: &Bind| {
            let out = b.dig(&["example.test", "SOA"]);
            out.contains("admin.example.test") || (b.resolver && !out.contains(";;"))
        };
        while !answers(self) {
            assert!(began.elapsed() < Duration::from_secs(20), "named does not answer: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Stops it.
    pub fn down(&mut self) {
        if let Some(mut c) = self.child.take() {
            let _ = c.kill();
            let _ = c.wait();
        }
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

    /// Makes a change as another administrator would.
    pub fn nsupdate(&self, lines: &str) {
        use std::io::Write as _;
        let mut child = Command::new("nsupdate")
            .args(["-y", &format!("hmac-sha256:runbook:{SECRET}")])
            .stdin(Stdio::piped())
            .spawn()
            .expect("nsupdate");
        let script = format!("server 127.0.0.1 {}\nzone example.test\n{lines}\nsend\n", self.port);
        child.stdin.take().expect("stdin").write_all(script.as_bytes()).expect("lines");
        assert!(child.wait().expect("nsupdate").success(), "{}", self.log());
    }

    /// Its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("named.log")).unwrap_or_default()
    }

    /// Its address.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A file of its folder.
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a server that is up").id()
    }

    /// A primary of the zone `example.test`, signed with a key of its own; the record of the key's public half.
    pub fn signed(records: &str) -> Option<(Bind, String)> {
        if !super::have("dnssec-signzone") {
            return None;
        }
        let mut key = String::new();
        let b = Bind::start(|b| {
            let head = "$TTL 3600\n@ SOA ns1 admin 1 2 1 3600 5\n@ NS ns1\nns1 A 127.0.0.99\n";
            std::fs::write(b.path("example.db"), format!("{head}{records}\n")).expect("a zone");
            let run = |program: &str, args: &[&str]| {
                let out = Command::new(program).args(args).current_dir(b.dir.path()).output().expect("the tool starts");
                assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
                String::from_utf8_lossy(&out.stdout).trim().to_string()
            };
            let name = run("dnssec-keygen", &["-a", "ECDSAP256SHA256", "-f", "KSK", "-n", "ZONE", "example.test"]);
            run("dnssec-signzone", &["-S", "-z", "-o", "example.test", "example.db"]);
            let text = std::fs::read_to_string(b.path(&format!("{name}.key"))).expect("the key");
            key = text.lines().find(|l| l.contains("DNSKEY")).expect("a record").split("DNSKEY ").nth(1).expect("data").to_string();
            "zone \"example.test\" { type primary; file \"example.db.signed\"; };\n".to_string()
        })?;
        Some((b, key))
    }

    /// A resolver that asks `of` for `example.test` and checks its signatures by `key`, the data of a DNSKEY record.
    pub fn resolver(of: &Bind, key: &str) -> Option<Bind> {
        let mut fields = key.splitn(4, ' ');
        let mut next = || fields.next().expect("a field").to_string();
        let (flags, protocol, algorithm, public) = (next(), next(), next(), next());
        let port = of.port;
        Bind::start_as(true, |_| {
            format!(
                "zone \"example.test\" {{ type forward; forward only; forwarders {{ 127.0.0.1 port {port}; }}; }};\n\
                 trust-anchors {{ example.test. static-key {flags} {protocol} {algorithm} \"{public}\"; }};\n"
            )
        })
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        self.down();
    }
}

/// The whole zone of a server on loopback as `dig` gets it by transfer: `name TTL type data`, sorted, without the SOA.
pub fn transfer(port: u16, zone: &str) -> Vec<String> {
    let out = Command::new("dig")
        .args(["@127.0.0.1", "-p", &port.to_string(), zone, "AXFR", "+noall", "+answer", "+onesoa"])
        .output()
        .expect("dig");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let mut lines: Vec<String> = text
        .lines()
        .filter_map(|l| {
            // Only what stands between the fields is white space that may be joined: data keeps its own.
            let mut rest = l.trim_end();
            let mut fields = Vec::new();
            for _ in 0..4 {
                let (field, after) = rest.split_once(char::is_whitespace)?;
                fields.push(field);
                rest = after.trim_start();
            }
            (fields[3] != "SOA").then(|| format!("{} {} {} {rest}", fields[0], fields[1], fields[3]))
        })
        .collect();
    lines.sort();
    lines
}
