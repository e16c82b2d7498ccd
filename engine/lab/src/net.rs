//! The lab's addresses: a block of 256 in 127.0.0.0/8, its own as far as can be seen, remembered in its folder.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use runbook_core::Result;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::failed;
use crate::layout::{Layout, Plan, read_json, write_json};

/// The shop's port; fixed, since the runbook's template and the inventory say it too.
pub(crate) const SHOP_PORT: u16 = 8081;

/// Port numbers, the same on every address of the lab. Others than the usual ones only where a program of this machine
/// listens on all addresses, which takes the number in every block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ports {
    pub ssh: u16,
    /// Of the hosts' edges and of the public entry.
    pub edge: u16,
    pub dns: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Ports { ssh: 2222, edge: 8080, dns: 5353 }
    }
}

impl Ports {
    /// The usual ports, each raised by 10000 as often as needed to be free at `probe`, an address that nobody uses by itself.
    fn choose(probe: Ipv4Addr) -> Ports {
        let pick = |first: u16| {
            let free = |p: &u16| TcpListener::bind((probe, *p)).is_ok() && UdpSocket::bind((probe, *p)).is_ok();
            (0..6).map(|i| first + i * 10_000).find(free).unwrap_or(first)
        };
        let usual = Ports::default();
        Ports { ssh: pick(usual.ssh), edge: pick(usual.edge), dns: pick(usual.dns) }
    }
}

/// Who has which address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Block {
    /// The name server.
    pub dns: Ipv4Addr,
    /// The public entry.
    pub entry: Ipv4Addr,
    /// Hosts by inventory name.
    pub hosts: BTreeMap<String, Ipv4Addr>,
    pub ports: Ports,
}

impl Block {
    fn new(x: u8, y: u8, hosts: &[String], ports: Ports) -> Block {
        let hosts = (10u8..).zip(hosts).map(|(z, h)| (h.clone(), Ipv4Addr::new(127, x, y, z))).collect();
        Block { dns: Ipv4Addr::new(127, x, y, 2), entry: Ipv4Addr::new(127, x, y, 3), hosts, ports }
    }

    pub fn host(&self, name: &str) -> Result<Ipv4Addr> {
        self.hosts.get(name).copied().ok_or_else(|| failed(format!("host \"{name}\""), "it has no address in this lab"))
    }

    pub fn dns_addr(&self) -> SocketAddr {
        (self.dns, self.ports.dns).into()
    }

    pub fn entry_addr(&self) -> SocketAddr {
        (self.entry, self.ports.edge).into()
    }

    /// Adds addresses for hosts that are new in the plan; those that were known keep theirs.
    fn extend(&mut self, hosts: &[String]) {
        let [_, x, y, _] = self.entry.octets();
        for h in hosts {
            if self.hosts.contains_key(h) {
                continue;
            }
            let free = (10..=250).map(|z| Ipv4Addr::new(127, x, y, z)).find(|a| !self.hosts.values().any(|u| u == a));
            if let Some(a) = free {
                self.hosts.insert(h.clone(), a);
            }
        }
    }
}

/// Everything that the daemon listens on, bound; so nobody else can take it any more.
pub(crate) struct Bound {
    pub block: Block,
    pub ssh: BTreeMap<String, TcpListener>,
    pub dns_tcp: TcpListener,
    pub dns_udp: UdpSocket,
    pub entry: TcpListener,
}

fn bind(block: &Block, plan: &Plan) -> std::io::Result<Bound> {
    let tcp = |a: Ipv4Addr, port: u16| {
        let l = TcpListener::bind((a, port)).map_err(|e| std::io::Error::new(e.kind(), format!("{a}:{port}: {e}")))?;
        l.set_nonblocking(true)?;
        Ok::<_, std::io::Error>(l)
    };
    let mut ssh = BTreeMap::new();
    for (name, addr) in block.hosts.iter().filter(|(n, _)| plan.hosts.contains(n)) {
        ssh.insert(name.clone(), tcp(*addr, block.ports.ssh)?);
        if plan.edge_hosts.contains(name) {
            // Services bind these themselves, later: only look whether they are free.
            tcp(*addr, SHOP_PORT)?;
            tcp(*addr, block.ports.edge)?;
        }
    }
    let dns_udp = UdpSocket::bind(block.dns_addr())?;
    dns_udp.set_nonblocking(true)?;
    Ok(Bound { block: block.clone(), ssh, dns_tcp: tcp(block.dns, block.ports.dns)?, dns_udp, entry: tcp(block.entry, block.ports.edge)? })
}

/// Binds the remembered block, or the first free one after the folder's hash.
pub(crate) fn claim(layout: &Layout, plan: &Plan) -> Result<Bound> {
    if let Some(mut block) = read_json::<Block>(&layout.block())? {
        block.extend(&plan.hosts);
        let bound = bind(&block, plan).map_err(|e| {
            failed(format!("the lab's addresses ({} and its neighbours) cannot be used", block.entry), e)
                .hint("another program listens there; end it, or delete the lab's folder for new addresses")
        })?;
        write_json(&layout.block(), &bound.block)?;
        return Ok(bound);
    }
    let hash = Sha256::digest(layout.dir.as_os_str().as_encoded_bytes());
    let start = u16::from_be_bytes([hash[0], hash[1]]);
    let mut last = None;
    for i in 0..256u16 {
        // 127.64 to 127.254, leaving alone what people and distributions use low in 127.0.0.0/8.
        let [x, y] = start.wrapping_add(i.wrapping_mul(257)).to_be_bytes();
        let x = 64 + x % 190;
        let block = Block::new(x, y, &plan.hosts, Ports::choose(Ipv4Addr::new(127, x, y, 254)));
        match bind(&block, plan) {
            Ok(bound) => {
                write_json(&layout.block(), &bound.block)?;
                return Ok(bound);
            }
            Err(e) => last = Some(e),
        }
    }
    let why = last.map_or_else(|| "none tried".to_string(), |e| e.to_string());
    Err(failed("no free block of loopback addresses", why).hint(format!(
        "the lab needs Linux, where all of 127.0.0.0/8 is loopback, and port {SHOP_PORT} not taken on all addresses (0.0.0.0)"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_keep_their_addresses_when_others_come() {
        let mut b = Block::new(70, 1, &["old".into(), "new".into()], Ports::default());
        let before = b.clone();
        b.extend(&["extra".into(), "old".into(), "new".into()]);
        assert_eq!(b.host("old").unwrap(), before.host("old").unwrap());
        assert_eq!(b.host("extra").unwrap(), Ipv4Addr::new(127, 70, 1, 12));
        assert!(b.host("none").is_err());
    }

    #[test]
    fn a_port_taken_on_all_addresses_is_replaced() {
        let probe = Ipv4Addr::new(127, 250, 251, 254);
        let Ok(_taken) = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 2222)) else {
            assert_ne!(Ports::choose(probe).ssh, 2222, "somebody listens there already");
            return;
        };
        assert_eq!(Ports::choose(probe).ssh, 12_222);
    }
}
