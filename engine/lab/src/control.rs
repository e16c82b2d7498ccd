//! How the command line and the hosts' `systemctl` talk to the daemon: JSON lines over a Unix socket in the lab's folder.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use runbook_core::{Code, Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::failed;

/// What a lab that is up offers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// The lab's folder.
    pub dir: std::path::PathBuf,
    /// The daemon's process id.
    pub pid: i32,
    /// Where customers reach the shop (with the public name in the `Host` header).
    pub entry: String,
    /// The name that customers ask for.
    pub name: String,
    /// The name server, `address:port`.
    pub dns: String,
    /// The hosts by inventory name.
    pub hosts: BTreeMap<String, HostStatus>,
}

/// One host of the lab.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its address.
    pub address: String,
    /// Its SSH server, `user@address:port`.
    pub ssh: String,
    /// Its files.
    pub folder: std::path::PathBuf,
    /// Its services and whether they are `active`, `inactive` or `failed`.
    pub units: BTreeMap<String, String>,
}

/// The state of a lab and of its customer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Status {
    /// Whether the daemon runs.
    pub up: bool,
    /// The daemon's process id.
    pub pid: Option<i32>,
    /// Orders that the shop acknowledged, since the lab began or was reset.
    pub orders_placed: u64,
    /// Orders that it did not.
    pub orders_refused: u64,
    /// Orders that were sent and not answered, and about which the shop has not been asked yet.
    pub orders_unsure: u64,
    /// Acknowledged orders that are not in the shop that the public name leads to; `None` when that could not be looked up now.
    pub orders_lost: Option<u64>,
    /// Some of these orders' ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<String>,
    /// Seconds without acknowledged orders around refusals, by the customer's clock: from the last acknowledgement before to
    /// the first after, all such gaps together, the present one included.
    pub downtime_s: f64,
    /// The longest of these gaps, in seconds.
    pub longest_downtime_s: f64,
    /// How many gaps there were.
    pub outages: u64,
    /// Whether the newest answers were refusals.
    pub refusing: bool,
    /// The address that the public name has now, at the name server.
    pub shop_address: Option<String>,
    /// Where customers reach the shop.
    pub entry: Option<String>,
    /// The hosts by inventory name.
    pub hosts: BTreeMap<String, HostStatus>,
}

/// The socket's path by way of the folder's descriptor: a socket's path may have 107 bytes, the folder's may have more.
fn through<T>(dir: &Path, f: impl FnOnce(&Path) -> std::io::Result<T>) -> std::io::Result<T> {
    let folder = std::fs::File::open(dir)?;
    f(Path::new(&format!("/proc/self/fd/{}/lab.sock", folder.as_raw_fd())))
}

/// Listens for control requests; takes the place of a dead daemon's socket.
pub(crate) fn listen(dir: &Path) -> Result<UnixListener> {
    let path = dir.join("lab.sock");
    let bind = || {
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let l = through(dir, |p| UnixListener::bind(p))?;
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(l)
    };
    bind().map_err(|e| failed(format!("{} cannot be made", path.display()), e))
}

fn down(dir: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(Code::LAB_DOWN, format!("the lab in {} is not up ({why})", dir.display())).hint("start it with `runbook lab up`")
}

async fn connect(dir: &Path) -> Result<UnixStream> {
    let stream = through(dir, |p| {
        let s = std::os::unix::net::UnixStream::connect(p)?;
        s.set_nonblocking(true)?;
        Ok(s)
    });
    stream.and_then(UnixStream::from_std).map_err(|e| down(dir, e))
}

/// Asks the daemon something and waits for its answer.
///
/// # Errors
/// `RB0901` when the lab is not up; otherwise what the daemon answers.
pub(crate) async fn ask(dir: &Path, request: &Value) -> Result<Value> {
    let mut stream = connect(dir).await?;
    let talk = async {
        stream.write_all(format!("{request}\n").as_bytes()).await?;
        let mut line = String::new();
        BufReader::new(&mut stream).read_line(&mut line).await?;
        Ok::<_, std::io::Error>(line)
    };
    // A reset waits for orders under way and for services to stop.
    let line = match tokio::time::timeout(Duration::from_secs(90), talk).await {
        Ok(Ok(l)) => l,
        Ok(Err(e)) => return Err(down(dir, e)),
        Err(_) => return Err(failed("the lab's daemon", "no answer within 90s").hint("see lab.log in the lab's folder")),
    };
    if line.is_empty() {
        return Err(down(dir, "it ended in mid-answer"));
    }
    match serde_json::from_str::<Answer>(&line) {
        Ok(Answer::Ok(v)) => Ok(v),
        Ok(Answer::Error(e)) => Err(*e),
        Err(e) => Err(failed("the lab's daemon answers nonsense", e)),
    }
}

/// What the daemon sends back.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Ok(Value),
    Error(Box<Error>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_works_in_a_folder_with_a_long_name() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(120)).join("y".repeat(60));
        std::fs::create_dir_all(&long).unwrap();
        assert_eq!(ask(&long, &Value::Null).await.unwrap_err().code, Code::LAB_DOWN);
        let l = listen(&long).unwrap();
        tokio::spawn(async move {
            let (s, _) = l.accept().await.unwrap();
            let mut s = BufReader::new(s);
            let mut line = String::new();
            s.read_line(&mut line).await.unwrap();
            s.write_all(format!("{{\"ok\":{}}}\n", line.trim()).as_bytes()).await.unwrap();
        });
        assert_eq!(ask(&long, &Value::from("hello")).await.unwrap(), Value::from("hello"));
    }
}
