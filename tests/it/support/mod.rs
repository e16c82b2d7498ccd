//! What the end-to-end tests share.

use runbook_core::Value;

pub mod actions;
#[allow(dead_code)]
pub mod bind;
#[allow(dead_code)]
pub mod containers;
pub mod desk;
#[allow(dead_code)]
pub mod docker;
pub mod dumps;
pub mod killed;
pub mod knot;
pub mod lab;
#[allow(dead_code)]
pub mod mariadb;
#[allow(dead_code)]
pub mod mount;
pub mod netns;
pub mod pdns;
#[allow(dead_code)]
pub mod postgres;
pub mod project;
#[allow(dead_code)]
pub mod proxy;
#[allow(dead_code)]
pub mod python;
#[allow(dead_code)]
pub mod remote;
pub mod screen;
#[allow(dead_code)]
pub mod server;
#[allow(dead_code)]
pub mod sshd;
#[allow(dead_code)]
pub mod switch;
pub mod tls;
pub mod users;
pub mod wires;

/// Whether `tool` is there. When it is not: prints why the test is skipped, or fails under CI.
#[allow(dead_code)]
pub fn have(tool: &str) -> bool {
    let dirs = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin";
    if dirs.split(':').any(|d| std::path::Path::new(d).join(tool).exists()) {
        return true;
    }
    missing(tool);
    false
}

/// Says that a test is skipped for want of something, which under CI is a failure.
pub fn missing(tool: &str) {
    assert!(std::env::var_os("CI").is_none(), "{tool} is not installed, and CI is set: tests/run installs it");
    eprintln!("skipped: {tool} is not installed (tests/run installs it)");
}

/// A port of 127.0.0.1 that nothing has, below those that the system gives to connections that go out: those come and go all the time.
#[allow(dead_code)]
pub fn free_port() -> u16 {
    let low: u16 = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|t| t.split_whitespace().next()?.parse().ok())
        .filter(|low| *low > 12_000)
        .unwrap_or(32_768);
    for _ in 0..1000 {
        let port = rand::random_range(10_000..low);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() && std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("there is no free port from 10000 to {low}")
}

/// A script's array of texts.
pub fn list(items: &[&str]) -> Value {
    Value::List(items.iter().map(|s| (*s).into()).collect())
}

/// A script's options map.
pub fn options(pairs: &[(&str, Value)]) -> Value {
    Value::Map(pairs.iter().map(|(k, v)| ((*k).to_string(), v.clone())).collect())
}

/// One HTTP/1.1 request to a server on loopback; its status and body.
pub fn http_request(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("the server listens");
    let headers: String = headers.iter().map(|(k, v)| format!("{k}: {v}\r\n")).collect();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n{headers}Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).expect("the request is sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split_whitespace().nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    (status, body.to_string())
}
