//! How the database files of a host are reached: by the helper, else by the host's `sqlite3`.

use std::collections::BTreeMap;
use std::sync::Arc;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use crate::ssh::{Exec, Session, helper};

/// How the database files of a host are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// By the helper at this path.
    Helper(String),
    /// By the host's `sqlite3` command.
    Sqlite3,
}

/// What was found out about each host.
#[derive(Default)]
struct Ways(tokio::sync::Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<Option<Way>>>>>);

/// Finds, or makes, the way to a host's database files.
///
/// # Errors
/// `RB0507` naming what to install.
pub async fn way(cx: &Cx, session: &Session, host: &str) -> Result<Way> {
    let slot = cx.shared.get::<Ways>().0.lock().await.entry(host.to_string()).or_default().clone();
    let mut slot = slot.lock().await;
    if let Some(found) = slot.as_ref() {
        return Ok(found.clone());
    }
    let found = match helper::put(cx, session, host, None).await {
        Ok(path) => Way::Helper(path),
        Err(e) if e.code == Code::DB_HELPER => own(cx, session, &e.message).await.map_err(|e| e.host(host))?,
        Err(e) => return Err(e),
    };
    *slot = Some(found.clone());
    Ok(found)
}

/// Forgets what was found out about a host.
pub async fn forget(cx: &Cx, host: &str) {
    cx.shared.get::<Ways>().0.lock().await.remove(host);
    helper::forget(cx, host).await;
}

/// The host's own `sqlite3`, where the helper cannot be had.
async fn own(cx: &Cx, session: &Session, why_not: &str) -> Result<Way> {
    let done = session.exec(cx, Exec::new("sqlite3 --version 2>/dev/null || true")).await?;
    let version = String::from_utf8_lossy(&done.stdout).trim().to_string();
    if recent(&version) {
        cx.message(format!("using the host's sqlite3 {}: {why_not}", version.split(' ').next().unwrap_or("")));
        return Ok(Way::Sqlite3);
    }
    let old = if version.is_empty() { "it has no sqlite3 command either".into() } else { format!("its sqlite3 is too old ({version})") };
    Err(Error::new(Code::DB_HELPER, format!("databases on this host cannot be reached: {why_not}, and {old}"))
        .hint("install the package sqlite3 (3.33 or newer) on the host"))
}

/// Whether `sqlite3 --version` says 3.33 or newer, the first with `-json`.
fn recent(version: &str) -> bool {
    let mut numbers = version.split(['.', ' ']).map_while(|n| n.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (3, 33)
}

#[cfg(test)]
mod tests {
    #[test]
    fn versions_of_sqlite3() {
        assert!(super::recent("3.40.1 2022-12-28 14:03:47 df5c253"));
        assert!(super::recent("3.33.0"));
        assert!(!super::recent("3.31.1 2020-01-27"));
        assert!(!super::recent(""));
    }
}
