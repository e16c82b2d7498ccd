//! The hosts' services: processes of the same executable, started, watched and stopped as systemd does it for simple units.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use runbook_core::Result;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::customer::now_ms;
use crate::failed;
use crate::layout::{Layout, Plan, open_private, read_json, write_json};
use crate::net::{Block, SHOP_PORT};
use crate::process::{MARK, Pid, ROLE, Role};
use crate::shop::Settings;

/// What is kept of a unit when the lab is down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    enabled: bool,
    /// Was started and not stopped.
    active: bool,
}

/// A unit as `systemctl show` tells it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Shown {
    pub enabled: bool,
    /// `active`, `inactive` or `failed`.
    pub state: String,
    pub pid: i32,
    /// `success`, `exit-code` or `signal`.
    pub result: String,
    /// Exit status or signal of the last process.
    pub status: i32,
    /// Milliseconds since 1970 of the last change.
    pub since: u64,
    /// The last lines of its log.
    pub log: Vec<String>,
}

#[derive(Default)]
struct Live {
    pid: Option<Pid>,
    /// How the last process ended.
    ended: Option<ExitStatus>,
    /// It was asked to end, so that its end is no failure.
    stopping: bool,
    since: u64,
}

struct Unit {
    host: String,
    name: &'static str,
    own: Ipv4Addr,
    kept: Mutex<Kept>,
    live: Arc<Mutex<Live>>,
    /// Held while it is started or stopped.
    turn: tokio::sync::Mutex<()>,
}

/// Every unit of the lab.
pub(crate) struct Units {
    layout: Layout,
    exe: std::path::PathBuf,
    all: BTreeMap<(String, String), Unit>,
    initial: BTreeMap<String, Kept>,
    edge_port: u16,
}

impl Units {
    pub fn new(layout: &Layout, plan: &Plan, block: &Block) -> Result<Units> {
        let mut initial = BTreeMap::new();
        let saved: BTreeMap<String, Kept> = read_json(&layout.units())?.unwrap_or_default();
        let mut all = BTreeMap::new();
        for host in &plan.edge_hosts {
            for name in ["shop", "edge"] {
                let on = name == "edge" || *host == plan.app_host;
                let first = Kept { enabled: on, active: on };
                let key = format!("{host}/{name}");
                let kept = Mutex::new(*saved.get(&key).unwrap_or(&first));
                initial.insert(key, first);
                let unit = Unit {
                    host: host.clone(),
                    name,
                    own: block.host(host)?,
                    kept,
                    live: Arc::default(),
                    turn: tokio::sync::Mutex::default(),
                };
                all.insert((host.clone(), name.to_string()), unit);
            }
        }
        Ok(Units { layout: layout.clone(), exe: plan.exe.clone(), all, initial, edge_port: block.ports.edge })
    }

    fn get(&self, host: &str, unit: &str) -> Option<&Unit> {
        self.all.get(&(host.to_string(), unit.trim_end_matches(".service").to_string()))
    }

    fn save(&self) -> Result<()> {
        let kept: BTreeMap<String, Kept> = self.all.values().map(|u| (format!("{}/{}", u.host, u.name), *u.kept.lock())).collect();
        write_json(&self.layout.units(), &kept)
    }

    /// Starts the units that were running when the lab went down, or that run at the beginning.
    pub async fn start_kept(&self) -> Result<()> {
        for u in self.all.values().filter(|u| u.kept.lock().active) {
            if !self.start(&u.host, u.name).await? {
                crate::say(format!("{}: {} did not start", u.host, u.name));
            }
        }
        Ok(())
    }

    /// Ends every unit's process, remembering which were running.
    pub async fn halt(&self) {
        futures::future::join_all(self.all.values().map(|u| self.end(u))).await;
    }

    /// Back to the state before the migration; nothing runs afterwards.
    pub async fn reset(&self) -> Result<()> {
        self.halt().await;
        for u in self.all.values() {
            *u.live.lock() = Live::default();
            if let Some(first) = self.initial.get(&format!("{}/{}", u.host, u.name)) {
                *u.kept.lock() = *first;
            }
        }
        self.save()
    }

    /// What is known of a unit; `None` when there is no such unit on the host.
    pub fn show(&self, host: &str, unit: &str) -> Option<Shown> {
        let u = self.get(host, unit)?;
        let live = u.live.lock();
        let running = live.pid.is_some();
        let failed = !running && !live.stopping && live.ended.is_some_and(|e| !e.success());
        let (result, status) = match live.ended {
            Some(e) if failed => match e.signal() {
                Some(n) => ("signal", n),
                None => ("exit-code", e.code().unwrap_or(0)),
            },
            _ => ("success", 0),
        };
        let log = std::fs::read_to_string(self.layout.unit_log(host, u.name)).unwrap_or_default();
        let lines: Vec<String> = log.lines().map(str::to_string).collect();
        Some(Shown {
            enabled: u.kept.lock().enabled,
            state: if running { "active" } else { if failed { "failed" } else { "inactive" } }.to_string(),
            pid: live.pid.map_or(0, |p| p.pid),
            result: result.into(),
            status,
            since: live.since,
            log: lines.get(lines.len().saturating_sub(10)..).unwrap_or_default().to_vec(),
        })
    }

    /// The states of a host's units.
    pub fn of_host(&self, host: &str) -> BTreeMap<String, String> {
        let units = self.all.keys().filter(|(h, _)| h == host);
        units.filter_map(|(h, u)| self.show(h, u).map(|s| (u.clone(), s.state))).collect()
    }

    /// Sets whether a unit starts at boot.
    pub fn enable(&self, host: &str, unit: &str, on: bool) -> Result<()> {
        if let Some(u) = self.get(host, unit) {
            u.kept.lock().enabled = on;
        }
        self.save()
    }

    fn port(&self, u: &Unit) -> u16 {
        if u.name == "edge" {
            return self.edge_port;
        }
        let conf = std::fs::read_to_string(self.layout.host(&u.host).join("shop/shop.conf")).ok();
        conf.and_then(|t| Settings::parse(&t).ok()).map_or(SHOP_PORT, |s| s.port)
    }

    fn spawn(&self, u: &Unit) -> std::io::Result<tokio::process::Child> {
        let root = self.layout.host(&u.host);
        let log = open_private(&self.layout.unit_log(&u.host, u.name), true)?;
        tokio::process::Command::new(&self.exe)
            .args(["__lab", u.name, "--host", &u.host, "--address", &u.own.to_string(), "--port", &self.edge_port.to_string(), "--root"])
            .arg(&root)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env(MARK, &self.layout.dir)
            .env(ROLE, Role::Unit.name())
            .current_dir(&root)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
    }

    /// Starts a unit and waits until it takes connections. `false` when its process ended instead.
    pub async fn start(&self, host: &str, unit: &str) -> Result<bool> {
        let Some(u) = self.get(host, unit) else { return Ok(false) };
        let _turn = u.turn.lock().await;
        if u.live.lock().pid.is_some() {
            return Ok(true);
        }
        let mut child = self.spawn(u).map_err(|e| failed(format!("{host}: {unit} cannot be started"), e))?;
        let pid = child.id().and_then(|p| i32::try_from(p).ok()).and_then(Pid::of);
        *u.live.lock() = Live { pid, since: now_ms(), ..Live::default() };
        let live = u.live.clone();
        tokio::spawn(async move {
            let ended = child.wait().await;
            let mut live = live.lock();
            // Only this process's end; a later one has a state of its own.
            if live.pid == pid {
                *live = Live { pid: None, ended: ended.ok(), stopping: live.stopping, since: now_ms() };
            }
        });
        let to: SocketAddr = (u.own, self.port(u)).into();
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            if u.live.lock().pid.is_none() {
                u.kept.lock().active = false;
                self.save()?;
                return Ok(false);
            }
            if TcpStream::connect(to).await.is_ok() || Instant::now() > until {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        u.kept.lock().active = true;
        self.save()?;
        Ok(true)
    }

    /// Stops a unit: SIGTERM, after 10 s SIGKILL. Returns when its process is gone.
    pub async fn stop(&self, host: &str, unit: &str) -> Result<()> {
        if let Some(u) = self.get(host, unit) {
            self.end(u).await;
            u.kept.lock().active = false;
        }
        self.save()
    }

    async fn end(&self, u: &Unit) {
        let _turn = u.turn.lock().await;
        let pid = {
            let mut live = u.live.lock();
            live.stopping = true;
            live.pid
        };
        let Some(pid) = pid else { return };
        for (signal, patience) in [(Signal::TERM, 10), (Signal::KILL, 5)] {
            pid.signal(signal);
            let until = Instant::now() + Duration::from_secs(patience);
            while u.live.lock().pid.is_some() && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }
}
