//! What the command line calls: start, ask, reset and end a lab.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use runbook_core::{Code, Error, Result};
use serde_json::{Value, json};

use crate::control::{Info, Status, ask};
use crate::customer::now_ms;
use crate::failed;
use crate::keys;
use crate::layout::{Layout, Plan, open_private, read_json, write_json};
use crate::memory::{Memory, Tally};
use crate::net::{Block, SHOP_PORT};
use crate::process::{MARK, Pid, ROLE, Role, end_marked, marked};

/// The user name on the lab's hosts; commands run as the present user whatever its name is.
pub(crate) const USER: &str = "lab";

/// Starts the lab of a folder, or finds it running; returns when everything answers.
///
/// # Errors
/// `RB0900` when it cannot start (with the end of its log), or runs with other hosts and names than `plan`.
pub async fn up(dir: &Path, plan: &Plan) -> Result<Info> {
    plan.check()?;
    let layout = Layout { dir: dir.to_path_buf() }.create()?;
    let lock = open_private(&layout.up_lock(), true).map_err(|e| failed(layout.up_lock().display(), e))?;
    let _lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock))
        .await
        .map_err(|e| failed("the lab's lock", e))?
        .map_err(|e| failed("the lab's lock", e))?;
    match ask(&layout.dir, &json!({ "do": "plan" })).await {
        Ok(running) => {
            let running: Plan = from_json(running)?;
            if (Plan { exe: plan.exe.clone(), ..running }) != *plan {
                return Err(failed("the lab is up", "it has other hosts or settings than runbook.toml says now")
                    .hint("run `runbook lab down`, then `runbook lab up`"));
            }
        }
        Err(e) if e.code == Code::LAB_DOWN => start(&layout, plan).await?,
        Err(e) => return Err(e),
    }
    from_json(ask(&layout.dir, &json!({ "do": "info" })).await?)
}

async fn start(layout: &Layout, plan: &Plan) -> Result<()> {
    // A daemon that does not answer, and what one that was killed left behind.
    let dir = layout.dir.clone();
    tokio::task::spawn_blocking(move || end_marked(&dir, &[Role::Daemon, Role::Unit], Duration::from_secs(2)))
        .await
        .map_err(|e| failed("the lab", e))?;
    write_json(&layout.plan(), plan)?;
    let log = open_private(&layout.log(), false).map_err(|e| failed(layout.log().display(), e))?;
    let err = log.try_clone().map_err(|e| failed(layout.log().display(), e))?;
    let mut child = tokio::process::Command::new(&plan.exe)
        .args(["__lab", "serve", "--dir"])
        .arg(&layout.dir)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env(MARK, &layout.dir)
        .env(ROLE, Role::Daemon.name())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(err)
        .spawn()
        .map_err(|e| failed(format!("{} cannot be started", plan.exe.display()), e))?;
    let until = Instant::now() + Duration::from_secs(30);
    let why = loop {
        match ask(&layout.dir, &json!({ "do": "info" })).await {
            Ok(_) => return Ok(()),
            Err(e) if Instant::now() > until => break e.message,
            Err(_) => {}
        }
        if let Ok(Some(status)) = child.try_wait() {
            break format!("its daemon ended with {status}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let log = std::fs::read_to_string(layout.log()).unwrap_or_default();
    let tail: Vec<&str> = log.lines().rev().take(3).collect();
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    let _ = child.start_kill();
    Err(failed("the lab did not start", format!("{why}: {}", tail.join("; "))).hint(format!("see {}", layout.log().display())))
}

/// The state of the lab and of its customer, with a search for lost orders in the shop that the public name leads to.
///
/// A lab that is down is no error: `up` is false and the counts are those of the customer's memory.
///
/// # Errors
/// `RB0900` when the memory cannot be read or the daemon answers nonsense.
pub async fn status(dir: &Path) -> Result<Status> {
    state(dir, true).await
}

/// Like [`status`], without the search: `orders_lost` is `None`. Cheap enough to be asked many times a second.
///
/// # Errors
/// As [`status`].
pub async fn peek(dir: &Path) -> Result<Status> {
    state(dir, false).await
}

async fn state(dir: &Path, check: bool) -> Result<Status> {
    let layout = Layout::at(dir)?;
    match ask(&layout.dir, &json!({ "do": "status", "check": check })).await {
        Ok(v) => from_json(v),
        Err(e) if e.code == Code::LAB_DOWN => Ok(count(&Memory::read(&layout.memory())?, now_ms())),
        Err(e) => Err(e),
    }
}

/// The customer's part of a status.
pub(crate) fn count(t: &Tally, now: u64) -> Status {
    let (total, longest) = t.downtime(now);
    Status {
        orders_placed: t.placed.len() as u64,
        orders_refused: t.refused,
        orders_unsure: t.unsure.len() as u64,
        downtime_s: total.as_secs_f64(),
        longest_downtime_s: longest.as_secs_f64(),
        outages: t.gaps + u64::from(t.in_gap()),
        refusing: t.in_gap(),
        ..Status::default()
    }
}

/// Brings the lab back to the state before the migration: databases, files, DNS, services, the customer's memory. Addresses and
/// keys stay.
///
/// # Errors
/// `RB0901` when the lab is not up.
pub async fn reset(dir: &Path) -> Result<()> {
    ask(&Layout::at(dir)?.dir, &json!({ "do": "reset" })).await.map(drop)
}

/// Ends the lab and every process that it started, also when its daemon was killed. Its folder stays, for the next [`up`].
///
/// # Errors
/// `RB0900` when a process does not end.
pub async fn down(dir: &Path) -> Result<()> {
    let layout = Layout::at(dir)?;
    if let Err(e) = ask(&layout.dir, &json!({ "do": "down" })).await
        && e.code != Code::LAB_DOWN
    {
        return Err(e);
    }
    let work = tokio::task::spawn_blocking(move || {
        // An orderly end takes the shop's time to finish what it has in hand.
        let until = Instant::now() + Duration::from_secs(15);
        while !marked(&layout.dir, &[Role::Daemon]).is_empty() && Instant::now() < until {
            if read_json::<Option<Pid>>(&layout.pid()).ok().flatten().flatten().is_none_or(|p| !p.alive()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        end_marked(&layout.dir, &[Role::Daemon, Role::Unit, Role::Command], Duration::from_secs(2))
    });
    if work.await.map_err(|e| failed("the lab", e))? { Ok(()) } else { Err(failed("the lab", "a process of it does not end")) }
}

/// The settings of hosts, zones and secrets that the inventory of an embedded environment lacks, in its own shape.
///
/// # Errors
/// `RB0901` when the lab has never been up, so that there are no addresses yet.
pub async fn overlay(dir: &Path) -> Result<Value> {
    let layout = Layout::at(dir)?;
    let never = || {
        Error::new(Code::LAB_DOWN, format!("the lab in {} has never been up", layout.dir.display())).hint("start it with `runbook lab up`")
    };
    let plan: Plan = read_json(&layout.plan())?.ok_or_else(never)?;
    let block: Block = read_json(&layout.block())?.ok_or_else(never)?;
    let mut hosts = serde_json::Map::new();
    for name in &plan.hosts {
        let a = block.host(name)?;
        let mut host = json!({
            "ssh": format!("{USER}@{a}:{}", block.ports.ssh),
            "address": a.to_string(),
            // The lab is whole in itself: whatever the operator's configuration says of every host is not for it.
            "ssh_config": "none",
            "identity_file": keys::identity(&layout).to_string_lossy(),
            "known_hosts": keys::known_hosts(&layout).to_string_lossy(),
        });
        if plan.edge_hosts.contains(name)
            && let Some(h) = host.as_object_mut()
        {
            h.insert("url".into(), format!("http://{a}:{SHOP_PORT}").into());
        }
        hosts.insert(name.clone(), host);
    }
    let server = block.dns_addr().to_string();
    Ok(json!({
        "hosts": hosts,
        "zones": { plan.zone.trim_end_matches('.'): {
            "server": server,
            "tsig_name": keys::TSIG_NAME.trim_end_matches('.'),
            "tsig_algorithm": "hmac-sha256",
            "tsig_secret": "lab-tsig",
            "resolvers": [server.as_str()],
            // The zone's NS record is for looks: name servers named by it are asked on port 53, which the lab cannot have.
            "nameservers": [server.as_str()],
        } },
        "secrets": { "lab-tsig": { "file": layout.tsig().to_string_lossy() } },
    }))
}

fn from_json<T: serde::de::DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|e| {
        failed("the lab's daemon answers in a form that is not understood", e)
            .hint("it may be of another version: `runbook lab down`, then up")
    })
}
