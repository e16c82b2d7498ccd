//! Both hosts behind proxies, and the old server, too, as the new one reaches it: every connection there is can be reset.

use std::time::Duration;

use parking_lot::Mutex;
use runbook_core::Value;
use runbook_core::inventory::{Environment, Section};

use super::dumps::next;
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

    /// Works, while every connection is reset at random moments: four times at most, since a host that is cut off for ever is nothing to go
    /// on with. How many times it was.
    pub async fn reset_during<T>(&self, random: &Mutex<u64>, work: impl Future<Output = T>) -> (T, u32) {
        let mut resets = 0;
        let resetting = async {
            while resets < 4 {
                let wait = next(&mut random.lock()) % 120;
                tokio::time::sleep(Duration::from_millis(5 + wait)).await;
                self.reset();
                resets += 1;
            }
            std::future::pending::<()>().await;
        };
        let done = tokio::select! {
            done = work => done,
            () = resetting => unreachable!("it never ends"),
        };
        (done, resets)
    }

    /// How many connections the servers have made to each other.
    pub fn between(&self) -> u64 {
        self.proxies.last().map_or(0, Proxy::connections)
    }
}
