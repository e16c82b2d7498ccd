//! Both hosts behind proxies, and the old server, too, as the new one reaches it: every connection there is can be reset.

use runbook_core::Value;
use runbook_core::inventory::{Environment, Section};

use super::proxy::Proxy;

/// The proxies.
pub struct Wires {
    proxies: Vec<Proxy>,
    _known: Vec<tempfile::TempDir>,
}

impl Wires {
    /// Puts a proxy in front of the hosts `old` and `new`, and one between the server of `shop_old` on that port and its replicas.
    pub async fn lay(env: &mut Environment, port: u16) -> Wires {
        let mut wires = Wires { proxies: Vec::new(), _known: Vec::new() };
        for host in env.resources.get_mut(&Section::Hosts).unwrap().values_mut() {
            let at = host.settings["ssh"].as_str().unwrap().split_once('@').unwrap().1.to_string();
            let (proxy, known) = (Proxy::start(at).await, tempfile::tempdir().unwrap());
            host.settings = proxy.settings(&host.settings, known.path());
            wires.proxies.push(proxy);
            wires._known.push(known);
        }
        let between = Proxy::start(format!("127.0.0.1:{port}")).await;
        let old = env.resources.get_mut(&Section::Databases).unwrap().get_mut("shop_old").unwrap();
        match old.settings.contains_key("replication_address") {
            true => old.settings.insert("replication_address".into(), format!("127.0.0.1:{}", between.port).into()),
            false => old.settings.insert("replication_port".into(), Value::Int(between.port.into())),
        };
        wires.proxies.push(between);
        wires
    }

    /// Resets every connection (RST to both ends).
    pub fn reset(&self) {
        self.proxies.iter().for_each(Proxy::reset);
    }

    /// How many connections the servers have made to each other.
    pub fn between(&self) -> u64 {
        self.proxies.last().map_or(0, Proxy::connections)
    }
}
