//! A network namespace with one link to it, in which packets can be dropped and refused. Needs root, `ip` and `nft`.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A namespace; removed on drop, with its link.
pub struct Netns {
    name: String,
    /// The address on its side.
    pub address: String,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

fn run(words: &[&str]) -> bool {
    let out = Command::new(words[0]).args(&words[1..]).output();
    let good = out.as_ref().is_ok_and(|o| o.status.success());
    if !good {
        eprintln!("{words:?}: {out:?}");
    }
    good
}

impl Netns {
    /// Makes one; `None` (or a failure under CI) where that cannot be done.
    pub fn new() -> Option<Netns> {
        if !super::have("ip") || !super::have("nft") {
            return None;
        }
        let n = COUNT.fetch_add(1, Ordering::SeqCst);
        let pid = std::process::id();
        // A /30 of its own in 10.213.0.0/16, by process and count.
        let block = ((pid.wrapping_mul(7) + n) % 16_000) * 4;
        let at = |host: u32| format!("10.213.{}.{}", block / 256, block % 256 + host);
        let name = format!("rbt{pid}x{n}");
        let (near, far) = (format!("rbn{}x{n}", pid % 100_000), format!("rbf{}x{n}", pid % 100_000));
        let ns = Netns { address: at(2), name: name.clone() };
        let made = run(&["ip", "netns", "add", &name])
            && run(&["ip", "link", "add", &near, "type", "veth", "peer", "name", &far, "netns", &name])
            && run(&["ip", "addr", "add", &format!("{}/30", at(1)), "dev", &near])
            && run(&["ip", "link", "set", &near, "up"])
            && run(&["ip", "-n", &name, "addr", "add", &format!("{}/30", at(2)), "dev", &far])
            && run(&["ip", "-n", &name, "link", "set", &far, "up"])
            && run(&["ip", "-n", &name, "link", "set", "lo", "up"]);
        if !made {
            assert!(std::env::var_os("CI").is_none(), "no network namespace can be made, and CI is set");
            eprintln!("skipped: no network namespace can be made here (needs root)");
            return None;
        }
        Some(ns)
    }

    /// The words before a command that is to run in it.
    pub fn prefix(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(String::from).to_vec()
    }

    fn rules(&self, rules: &str) {
        assert!(run(&["ip", "netns", "exec", &self.name, "nft", &format!("flush ruleset; {rules}")]));
    }

    /// Drops every packet, both ways, silently.
    pub fn drop_packets(&self) {
        let chain = |hook: &str| format!("chain {hook} {{ type filter hook {hook} priority 0 ; policy drop ; }} ;");
        self.rules(&format!("table inet t {{ {} {} }}", chain("input"), chain("output")));
    }

    /// Answers every packet to a port with a reset.
    pub fn reset_packets(&self, port: u16) {
        self.rules(&format!(
            "table inet t {{ chain i {{ type filter hook input priority 0 ; tcp dport {port} reject with tcp reset ; }} ; }}"
        ));
    }

    /// Lets everything pass again.
    pub fn heal(&self) {
        self.rules("");
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        run(&["ip", "netns", "del", &self.name]);
    }
}
