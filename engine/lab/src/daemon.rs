//! The daemon: brings everything up in order, answers control requests, and ends when it is no longer wanted.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use runbook_core::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::control::{self, Answer, HostStatus, Info, Status};
use crate::customer::{Customer, now_ms};
use crate::dns::{Dns, Zone};
use crate::entry::Resolver;
use crate::layout::{Layout, Plan, open_private, read_json, write_json};
use crate::memory::Memory;
use crate::net::Block;
use crate::process::{Pid, Role, end_marked};
use crate::ssh;
use crate::units::Units;
use crate::{IDLE_LIMIT, client, entry, failed, keys, net, seed};

struct Lab {
    layout: Layout,
    plan: Plan,
    block: Block,
    dns: Arc<Dns>,
    resolver: Arc<Resolver>,
    units: Units,
    customer: Arc<Customer>,
    connections: Arc<AtomicUsize>,
    contact: Mutex<Instant>,
    /// Held by a reset, so that two do not mix.
    resetting: tokio::sync::Mutex<()>,
    end: Notify,
}

/// Runs the lab of a folder until it is told to end.
pub(crate) async fn serve(dir: &Path) -> Result<()> {
    // Away from the starter's terminal and process group. Fails harmlessly when it leads a group already.
    let _ = rustix::process::setsid();
    let layout = Layout::at(dir)?;
    let lock = open_private(&layout.lock(), true).map_err(|e| failed(layout.lock().display(), e))?;
    if lock.try_lock().is_err() {
        return Err(failed(layout.dir.display(), "another daemon runs in this folder"));
    }
    let plan: Plan = read_json(&layout.plan())?.ok_or_else(|| failed(layout.plan().display(), "there is no plan"))?;
    write_json(&layout.pid(), &Pid::me())?;
    // Services of a daemon that was killed still hold their ports.
    end_marked(&layout.dir, &[Role::Unit], Duration::from_secs(5));
    let lab = Arc::new(Lab::begin(layout, plan).await?);
    let listener = control::listen(&lab.layout.dir)?;
    crate::say(format!("the lab is up, entry {}", lab.block.entry_addr()));
    tokio::spawn(lab.clone().answer(listener));
    let why = tokio::select! {
        () = lab.end.notified() => "asked to end",
        () = crate::args::terminated() => "SIGTERM",
        why = lab.unwanted() => why,
    };
    crate::say(format!("ending: {why}"));
    lab.units.halt().await;
    end_marked(&lab.layout.dir, &[Role::Command, Role::Unit], Duration::from_millis(300));
    let _ = std::fs::remove_file(lab.layout.dir.join("lab.sock"));
    let _ = std::fs::remove_file(lab.layout.pid());
    Ok(())
}

impl Lab {
    async fn begin(layout: Layout, plan: Plan) -> Result<Lab> {
        let bound = net::claim(&layout, &plan)?;
        let block = bound.block;
        let client = keys::client(&layout)?;
        let secret = keys::tsig(&layout)?;
        let origin = plan.zone.trim_end_matches('.');
        let fresh = read_json::<Plan>(&layout.populated())?.is_none_or(|p| !same_world(&p, &plan));
        if fresh {
            wipe(&layout)?;
            // Orders of another world are not in this one's shop.
            Memory::open(&layout.memory())?.forget()?;
        }
        let zone = match Zone::load(origin, layout.zone())? {
            Some(z) if !fresh => z,
            _ => {
                let mut z = seed::zone(&layout, &plan, &block)?;
                z.save()?;
                z
            }
        };
        let dns = Dns::new(zone, keys::TSIG_NAME, secret)?;
        dns.serve(bound.dns_udp, bound.dns_tcp)?;
        if fresh {
            seed::hosts(&layout, &plan)?;
            write_json(&layout.populated(), &plan)?;
        } else {
            for name in &plan.hosts {
                // The executable may have moved.
                seed::systemctl(&layout, &plan, name, &layout.host(name)).map_err(|e| failed(format!("host {name}"), e))?;
            }
        }
        let connections = Arc::new(AtomicUsize::new(0));
        let mut host_keys = vec![];
        for name in bound.ssh.keys() {
            host_keys.push((name, keys::host(&layout, name)?));
        }
        keys::write_known_hosts(&layout, &block, host_keys.iter().map(|(n, k)| (*n, k)))?;
        let host_keys: Vec<_> = host_keys.into_iter().map(|(_, k)| k).collect();
        for ((name, listener), key) in bound.ssh.into_iter().zip(host_keys) {
            let host = ssh::Host {
                address: block.host(&name)?,
                root: layout.host(&name),
                lab: layout.dir.clone(),
                user: client::USER.into(),
                client: client.clone(),
                connections: connections.clone(),
                name,
            };
            ssh::serve(listener, key, host)?;
        }
        let units = Units::new(&layout, &plan, &block)?;
        units.start_kept().await?;
        let resolver = Arc::new(Resolver::new(block.dns_addr(), &plan.name)?);
        entry::serve(bound.entry, resolver.clone(), block.ports.edge)?;
        let customer = Customer::new(block.entry_addr(), plan.name.trim_end_matches('.'), plan.order_every, &layout.memory())?;
        customer.start();
        Ok(Lab {
            layout,
            plan,
            block,
            dns,
            resolver,
            units,
            customer,
            connections,
            contact: Mutex::new(Instant::now()),
            resetting: tokio::sync::Mutex::default(),
            end: Notify::new(),
        })
    }

    /// Returns when nobody wants the lab any more, with the reason.
    async fn unwanted(&self) -> &'static str {
        let folder = |p: &Path| std::fs::metadata(p).map(|m| (m.dev(), m.ino())).ok();
        let first = folder(&self.layout.dir);
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if folder(&self.layout.dir) != first {
                return "its folder is gone";
            }
            let mut contact = self.contact.lock();
            if self.connections.load(Ordering::Relaxed) > 0 {
                *contact = Instant::now();
            } else if contact.elapsed() > IDLE_LIMIT {
                return "nobody asked for it for a long time";
            }
        }
    }

    async fn answer(self: Arc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let lab = self.clone();
                    // A caller that goes away is its own affair.
                    tokio::spawn(async move { lab.talk(stream).await.ok() });
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    async fn talk(&self, stream: UnixStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        while stream.read_line(&mut line).await? > 0 {
            *self.contact.lock() = Instant::now();
            let answer = match serde_json::from_str(&line) {
                Ok(request) => self.act(request).await,
                Err(e) => Err(failed("a control request cannot be read", e)),
            };
            let answer = answer.map_or_else(|e: Error| Answer::Error(Box::new(e)), Answer::Ok);
            let mut text = serde_json::to_vec(&answer)?;
            text.push(b'\n');
            stream.write_all(&text).await?;
            line.clear();
        }
        Ok(())
    }

    async fn act(&self, request: Request) -> Result<Value> {
        match request {
            Request::Info => to_json(&self.info()),
            Request::Plan => to_json(&self.plan),
            Request::Status { check } => to_json(&self.status(check).await),
            Request::Reset => self.reset().await.map(|()| Value::Null),
            Request::Down => {
                self.end.notify_one();
                Ok(Value::Null)
            }
            Request::Unit { host, unit, verb } => self.unit(&host, &unit, &verb).await,
        }
    }

    async fn unit(&self, host: &str, unit: &str, verb: &str) -> Result<Value> {
        Ok(match verb {
            "show" => json!(self.units.show(host, unit)),
            "start" => json!(self.units.start(host, unit).await?),
            "stop" => {
                self.units.stop(host, unit).await?;
                json!(true)
            }
            // The lab's services read their files again only when they begin.
            "restart" | "try-restart" | "reload" | "reload-or-restart" => {
                self.units.stop(host, unit).await?;
                json!(self.units.start(host, unit).await?)
            }
            "enable" | "disable" => {
                self.units.enable(host, unit, verb == "enable")?;
                json!(true)
            }
            other => return Err(failed("a control request", format!("no verb \"{other}\""))),
        })
    }

    fn hosts(&self) -> std::collections::BTreeMap<String, HostStatus> {
        let one = |name: &String| {
            let address = self.block.host(name).ok()?;
            let status = HostStatus {
                address: address.to_string(),
                ssh: format!("{}@{address}:{}", client::USER, self.block.ports.ssh),
                folder: self.layout.host(name),
                units: self.units.of_host(name),
            };
            Some((name.clone(), status))
        };
        self.plan.hosts.iter().filter_map(one).collect()
    }

    fn info(&self) -> Info {
        Info {
            dir: self.layout.dir.clone(),
            pid: std::process::id().cast_signed(),
            entry: format!("http://{}", self.block.entry_addr()),
            name: self.plan.name.clone(),
            dns: self.block.dns_addr().to_string(),
            hosts: self.hosts(),
        }
    }

    async fn status(&self, check: bool) -> Status {
        let lost = if check { self.customer.lost().await } else { None };
        let info = self.info();
        let mut status = self.customer.tally(|t| client::count(t, now_ms()));
        status.up = true;
        status.pid = Some(info.pid);
        status.orders_lost = lost.as_ref().map(|l| l.len() as u64);
        status.lost = lost.unwrap_or_default().into_iter().take(10).collect();
        status.shop_address = self.dns.addresses(&self.plan.name).into_iter().next();
        status.entry = Some(info.entry);
        status.hosts = info.hosts;
        status
    }

    /// Back to the world before the migration. The customer waits meanwhile and begins with an empty memory.
    async fn reset(&self) -> Result<()> {
        let _one = self.resetting.lock().await;
        self.customer.pause().await;
        let renew = async {
            self.units.reset().await?;
            end_marked(&self.layout.dir, &[Role::Command], Duration::from_millis(300));
            wipe(&self.layout)?;
            self.dns.replace(seed::zone(&self.layout, &self.plan, &self.block)?)?;
            self.resolver.clear();
            seed::hosts(&self.layout, &self.plan)?;
            write_json(&self.layout.populated(), &self.plan)?;
            self.units.start_kept().await?;
            self.customer.forget()
        };
        let done = renew.await;
        self.customer.go_on();
        done
    }
}

/// Empties the hosts' folders. Their mark goes first, so that a crash in the middle makes the next start begin anew.
fn wipe(layout: &Layout) -> Result<()> {
    let hosts = layout.dir.join("hosts");
    let clear = || -> std::io::Result<()> {
        let _ = std::fs::remove_file(layout.populated());
        for entry in std::fs::read_dir(&hosts)? {
            let path = entry?.path();
            if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
        }
        match std::fs::remove_file(layout.units()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    };
    clear().map_err(|e| failed(format!("{} cannot be emptied", hosts.display()), e))
}

/// Whether two plans have the same things under the same names, so that the one's folders serve the other.
fn same_world(a: &Plan, b: &Plan) -> bool {
    (&a.hosts, &a.edge_hosts, &a.zone, &a.name, a.ttl, &a.app_host) == (&b.hosts, &b.edge_hosts, &b.zone, &b.name, b.ttl, &b.app_host)
}

fn to_json(value: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|e| failed("an answer cannot be encoded", e))
}

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
enum Request {
    Info,
    Plan,
    Status { check: bool },
    Reset,
    Down,
    Unit { host: String, unit: String, verb: String },
}
