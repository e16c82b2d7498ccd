//! What the lab is to be ([`Plan`]) and where it keeps what ([`Layout`]).

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use runbook_core::{Code, Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::failed;

/// What the lab is made of; the command line fills it from the inventory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Inventory names of the hosts.
    pub hosts: Vec<String>,
    /// The hosts that have an edge and can run the shop; a subset of `hosts`.
    pub edge_hosts: Vec<String>,
    /// The zone that the name server answers for, such as `example.test`.
    pub zone: String,
    /// The name that customers ask for, in that zone.
    pub name: String,
    /// The TTL of that name at the beginning; whole seconds.
    pub ttl: Duration,
    /// How often the customer places an order.
    pub order_every: Duration,
    /// The host on which the shop runs at the beginning; one of `edge_hosts`.
    pub app_host: String,
    /// The executable that the daemon and its services run.
    pub exe: PathBuf,
    /// The environment's name.
    pub env_name: String,
}

impl Plan {
    /// Checks that names are usable as folder and DNS names and that they refer to each other.
    ///
    /// # Errors
    /// `RB0900` naming what is wrong.
    pub fn check(&self) -> Result<()> {
        let bad = |m: String| Err(Error::new(Code::LAB, m).hint("correct the environment's section in runbook.toml"));
        let word = |s: &str| {
            !s.is_empty()
                && s.len() <= 63
                && !s.starts_with('-')
                && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
        };
        if self.hosts.is_empty() || self.hosts.len() > 200 {
            return bad(format!("the lab needs 1 to 200 hosts, not {}", self.hosts.len()));
        }
        for h in &self.hosts {
            if !word(h) {
                return bad(format!("\"{h}\" cannot be a host of the lab: use lower-case letters, digits, - and _"));
            }
            if self.hosts.iter().filter(|o| *o == h).count() > 1 {
                return bad(format!("host \"{h}\" is there twice"));
            }
        }
        if let Some(h) = self.edge_hosts.iter().find(|h| !self.hosts.contains(h)) {
            return bad(format!("\"{h}\" is to have an edge and is not a host of the lab"));
        }
        if !self.edge_hosts.contains(&self.app_host) {
            return bad(format!("the shop is to run on \"{}\", which is not among the lab's hosts with an edge", self.app_host));
        }
        let zone = self.zone.trim_end_matches('.');
        if zone.is_empty() || !self.name.trim_end_matches('.').ends_with(&format!(".{zone}")) {
            return bad(format!("the name \"{}\" is not in the zone \"{}\"", self.name, self.zone));
        }
        if self.order_every < Duration::from_millis(1) {
            return bad("order_every must be at least 1ms".into());
        }
        Ok(())
    }
}

/// The lab's folder and the names of what is in it.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub dir: PathBuf,
}

impl Layout {
    /// The folder as an absolute path, whether it exists or not. Processes of the lab carry this path as their mark.
    pub fn at(dir: &Path) -> Result<Layout> {
        let dir = match dir.canonicalize() {
            Ok(d) => d,
            Err(_) => std::path::absolute(dir).map_err(|e| failed(dir.display(), e))?,
        };
        Ok(Layout { dir })
    }

    pub fn create(&self) -> Result<Layout> {
        private_dir(&self.dir)?;
        for sub in ["keys", "dns", "hosts", "log", "customer"] {
            private_dir(&self.dir.join(sub))?;
        }
        Layout::at(&self.dir)
    }

    pub fn plan(&self) -> PathBuf {
        self.dir.join("plan.json")
    }
    pub fn block(&self) -> PathBuf {
        self.dir.join("addresses.json")
    }
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lab.lock")
    }
    pub fn up_lock(&self) -> PathBuf {
        self.dir.join("up.lock")
    }
    pub fn pid(&self) -> PathBuf {
        self.dir.join("lab.pid")
    }
    pub fn log(&self) -> PathBuf {
        self.dir.join("lab.log")
    }
    pub fn host(&self, name: &str) -> PathBuf {
        self.dir.join("hosts").join(name)
    }
    pub fn populated(&self) -> PathBuf {
        self.dir.join("hosts").join(".populated")
    }
    pub fn units(&self) -> PathBuf {
        self.dir.join("units.json")
    }
    pub fn zone(&self) -> PathBuf {
        self.dir.join("dns").join("zone.json")
    }
    pub fn tsig(&self) -> PathBuf {
        self.dir.join("keys").join("tsig")
    }
    pub fn memory(&self) -> PathBuf {
        self.dir.join("customer").join("orders.log")
    }
    pub fn unit_log(&self, host: &str, unit: &str) -> PathBuf {
        self.dir.join("log").join(format!("{host}-{unit}.log"))
    }
}

/// Makes a folder (and those above it) that only this user can enter.
pub(crate) fn private_dir(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| failed(path.display(), e))
}

/// Replaces a file whole, mode 0600, synced, so that a crash leaves the old or the new content.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let tmp = PathBuf::from(name);
    let write = || -> std::io::Result<()> {
        let mut f = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&tmp)?;
        f.write_all(content)?;
        f.sync_data()?;
        std::fs::rename(&tmp, path)
    };
    write().map_err(|e| failed(format!("{} cannot be written", path.display()), e))
}

/// Opens a file of the lab for this user only: emptied, or to append to.
pub(crate) fn open_private(path: &Path, append: bool) -> std::io::Result<std::fs::File> {
    std::fs::OpenOptions::new().create(true).write(!append).append(append).truncate(!append).mode(0o600).open(path)
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).map_err(|e| failed(path.display(), e))?;
    write_private(path, &text)
}

/// Reads a JSON file; `None` when it is not there.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match std::fs::read(path) {
        Ok(t) => t,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(format!("{} cannot be read", path.display()), e)),
    };
    serde_json::from_slice(&text).map(Some).map_err(|e| {
        failed(format!("{} is damaged", path.display()), e).hint("run `runbook lab down`, delete the lab's folder, and `runbook lab up`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            hosts: vec!["old".into(), "new".into(), "vault".into()],
            edge_hosts: vec!["old".into(), "new".into()],
            zone: "example.test".into(),
            name: "shop.example.test".into(),
            ttl: Duration::from_secs(12),
            order_every: Duration::from_millis(20),
            app_host: "old".into(),
            exe: "/bin/true".into(),
            env_name: "demo".into(),
        }
    }

    #[test]
    fn a_plan_is_checked() {
        plan().check().unwrap();
        for (change, text) in [
            (Plan { hosts: vec!["../x".into()], ..plan() }, "\"../x\" cannot be a host"),
            (Plan { app_host: "vault".into(), ..plan() }, "is to run on \"vault\""),
            (Plan { name: "shop.example.org".into(), ..plan() }, "not in the zone"),
            (Plan { edge_hosts: vec!["old".into(), "x".into()], ..plan() }, "\"x\" is to have an edge"),
            (Plan { order_every: Duration::ZERO, ..plan() }, "order_every"),
        ] {
            let e = change.check().unwrap_err();
            assert!(e.message.contains(text), "{e}");
        }
    }

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        write_json(&path, &vec![1, 2]).unwrap();
        write_json(&path, &vec![3]).unwrap();
        assert_eq!(read_json::<Vec<i32>>(&path).unwrap(), Some(vec![3]));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_json::<Vec<i32>>(&dir.path().join("none")).unwrap(), None);
    }
}
