//! What the end-to-end tests share.

use runbook_core::Value;

pub mod actions;
#[allow(dead_code)]
pub mod bind;
#[allow(dead_code)]
pub mod containers;
pub mod desk;
pub mod dumps;
pub mod lab;
#[allow(dead_code)]
pub mod mariadb;
#[allow(dead_code)]
pub mod netns;
#[allow(dead_code)]
pub mod postgres;
pub mod project;
#[allow(dead_code)]
pub mod proxy;
pub mod screen;
#[allow(dead_code)]
pub mod server;
#[allow(dead_code)]
pub mod sshd;
pub mod tls;
pub mod users;

/// Whether `tool` is there. When it is not: prints why the test is skipped, or fails under CI.
#[allow(dead_code)]
pub fn have(tool: &str) -> bool {
    let dirs = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin";
    if dirs.split(':').any(|d| std::path::Path::new(d).join(tool).exists()) {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "{tool} is not installed, and CI is set: tests/run installs it");
    eprintln!("skipped: {tool} is not installed (tests/run installs it)");
    false
}

/// A script's array of texts.
pub fn list(items: &[&str]) -> Value {
    Value::List(items.iter().map(|s| (*s).into()).collect())
}

/// A script's options map.
pub fn options(pairs: &[(&str, Value)]) -> Value {
    Value::Map(pairs.iter().map(|(k, v)| ((*k).to_string(), v.clone())).collect())
}
