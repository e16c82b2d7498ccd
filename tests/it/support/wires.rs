//! Both hosts behind proxies, and the old server, too, as the new one reaches it: every connection there is can be reset.

use std::time::Duration;

use runbook_core::Value;
use runbook_core::inventory::Section;

use super::actions::handle;
use super::dumps::{Carried, all, next, seed};
use super::proxy::Proxy;

/// The proxies.
pub struct Wires {
    proxies: Vec<Proxy>,
    _known: Vec<tempfile::TempDir>,
}

impl Wires {
    /// Puts a proxy in front of the hosts `old` and `new`, and one between the server of `shop_old` and its replicas.
    pub async fn lay(s: &mut impl Carried) -> Wires {
        let (env, port) = s.ways();
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
    async fn reset_during<T>(&self, random: &mut u64, work: impl Future<Output = T>) -> (T, u32) {
        let mut resets = 0;
        let resetting = async {
            while resets < 4 {
                let wait = next(random) % 120;
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

    /// Moves the shop to the new side and back, again and again, while every connection is reset. `orders` waits until some are taken, also
    /// on the new side where that is said. Prints how often.
    pub async fn switch_there_and_back(&self, s: &impl Carried, orders: impl AsyncFn(bool)) {
        let mut random = seed();
        let mut act = async |on: &'static str, name: &'static str, args: Vec<Value>| {
            let ((done, tries), resets) = self.reset_during(&mut random, s.until_done(on, name, args)).await;
            println!("| {name} | {resets} | {tries} | done |");
            done
        };
        for _ in 0..if all() { 10 } else { 2 } {
            orders(false).await;
            let fence = act("shop_old", "fence", vec![]).await;
            act("shop_new", "wait_caught_up", vec![fence.clone()]).await;
            act("shop_new", "promote", vec![fence]).await;
            orders(true).await;
            act("shop_new", "demote", vec![handle("shop_old").into()]).await;
            act("shop_old", "unfence", vec![]).await;
        }
        orders(false).await;
    }

    /// How many connections the servers have made to each other.
    pub fn between(&self) -> u64 {
        self.proxies.last().map_or(0, Proxy::connections)
    }
}
