//! Other people's Python programs, from the packages of `tests/requirements.txt`, which tests/run installs into `target/python`.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A program of those packages; without it the test is skipped with the reason, and fails where `CI` is set.
pub fn program(name: &str) -> Option<PathBuf> {
    let python = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/python");
    let found = python.join("bin").join(name);
    // Written last, when all packages are there.
    if python.join("requirements.txt").exists() {
        return Some(found);
    }
    assert!(std::env::var_os("CI").is_none(), "{} is missing, and CI is set: tests/run installs tests/requirements.txt", found.display());
    eprintln!("skipped: the Python packages of tests/requirements.txt are not installed (tests/run installs them)");
    None
}

/// The folder of one of those packages; like [`program`].
pub fn package(name: &str) -> Option<PathBuf> {
    let bin = program("python")?;
    let lib = bin.parent().and_then(|p| p.parent()).expect("a folder").join("lib");
    let mut all = std::fs::read_dir(&lib).expect("its libraries").flatten().map(|e| e.path().join("site-packages").join(name));
    Some(all.find(|p| p.is_dir()).unwrap_or_else(|| panic!("{} has no {name}: tests/run installs tests/requirements.txt", lib.display())))
}

/// The stand-in for Cloudflare's API; killed on drop.
pub struct Cloudflare {
    child: Child,
    pub port: u16,
}

/// The token that it takes.
pub const TOKEN: &str = "Tok3n-of_the-tests-0123456789abcdefghijk";

fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/dns").join(name)
}

impl Cloudflare {
    /// Starts it with the zone `example.test`.
    pub fn start() -> Option<Cloudflare> {
        if !super::have("python3") {
            return None;
        }
        let mut child = Command::new("python3")
            .arg(script("cloudflare_server.py"))
            .args([TOKEN, "example.test"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout")).read_line(&mut line).expect("a line");
        let port = line.trim().parse().expect("a port");
        Some(Cloudflare { child, port })
    }

    /// The address of its API.
    pub fn api(&self) -> String {
        format!("http://127.0.0.1:{}/client/v4", self.port)
    }

    /// Sets what it does to the next requests (`busy`, `page`, `drop`), and gives the requests so far.
    pub fn control(&self, knobs: &str) -> Vec<String> {
        let (status, body) = super::http_request(self.port, "POST", "/_control", &[], knobs);
        assert_eq!(status, 200, "{body}");
        let json: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        json["seen"].as_array().into_iter().flatten().filter_map(|s| s.as_str().map(str::to_string)).collect()
    }

    /// Runs Cloudflare's own client against it; what it printed, when its packages are there.
    pub fn official_client(&self) -> Option<String> {
        let python = program("python")?;
        let out = Command::new(python)
            .arg(script("cloudflare_client.py"))
            .args([&self.port.to_string(), TOKEN, "example.test"])
            .output()
            .expect("python starts");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Some(String::from_utf8_lossy(&out.stdout).trim().to_string())
    }
}

impl Drop for Cloudflare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `moto`, an implementation of AWS by others, in server mode, behind a gate that checks signatures; killed on drop.
pub struct Moto {
    child: Child,
    gate: Child,
    moto: u16,
    pub port: u16,
}

/// The key that the gate takes.
pub const AWS_ID: &str = "AKIAIOSFODNN7EXAMPLE";
pub const AWS_KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
pub const AWS_SESSION: &str = "FwoGZXIvYXdzEBYaD/session+of==the-tests";

impl Moto {
    /// Starts it with the public zone `example.test`; with or without a session that the gate wants.
    pub fn start(session: bool) -> Option<Moto> {
        let (server, python) = (program("moto_server")?, program("python")?);
        let port = super::free_port();
        let child = Command::new(server)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("moto_server starts");
        let mut gate = Command::new(python);
        gate.arg(script("route53_gate.py")).args([&port.to_string(), AWS_ID, AWS_KEY]);
        if session {
            gate.arg(AWS_SESSION);
        }
        let mut gate = gate.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("python starts");
        let mut line = String::new();
        BufReader::new(gate.stdout.take().expect("stdout")).read_line(&mut line).expect("a line");
        let moto = Moto { child, gate, moto: port, port: line.trim().parse().expect("a port") };
        let began = std::time::Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < std::time::Duration::from_secs(60), "moto_server does not listen");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        moto.boto("r53.create_hosted_zone(Name='example.test', CallerReference='tests')['HostedZone']['Id']");
        Some(moto)
    }

    /// The address of the API, through the gate.
    pub fn api(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Sets what the gate does to the next requests (`throttle`, `pending`, `drop`), and gives the requests so far.
    pub fn control(&self, knobs: &str) -> Vec<String> {
        let (status, body) = super::http_request(self.port, "POST", "/_control", &[], knobs);
        assert_eq!(status, 200, "{body}");
        let json: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        json["seen"].as_array().into_iter().flatten().filter_map(|s| s.as_str().map(str::to_string)).collect()
    }

    /// What AWS's own library for Python says: `expression` is evaluated with the client `r53` and the zone's id `zone` bound; its JSON.
    pub fn boto(&self, expression: &str) -> serde_json::Value {
        let code = "import boto3, json, sys\nr53 = boto3.client('route53', endpoint_url=sys.argv[1], region_name='us-east-1', aws_access_key_id='x', aws_secret_access_key='y')\nzones = r53.list_hosted_zones()['HostedZones']\nzone = zones[0]['Id'] if zones else None\nprint(json.dumps(eval(sys.argv[2]), default=str))";
        let out = Command::new(program("python").expect("python"))
            .args(["-c", code, &format!("http://127.0.0.1:{}", self.moto), expression])
            .output()
            .expect("python starts");
        assert!(out.status.success(), "{expression}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).expect("JSON")
    }

    /// The record sets as that library lists them, in one text each, without those of the zone itself.
    pub fn sets(&self) -> Vec<String> {
        let all = self.boto(
            "[r for p in r53.get_paginator('list_resource_record_sets').paginate(HostedZoneId=zone) for r in p['ResourceRecordSets']]",
        );
        let list = all.as_array().expect("a list").iter().filter(|r| !["SOA", "NS"].contains(&r["Type"].as_str().unwrap_or("")));
        let mut out: Vec<String> = list.map(ToString::to_string).collect();
        out.sort();
        out
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        for child in [&mut self.gate, &mut self.child] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
