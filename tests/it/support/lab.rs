//! What an embedded lab of the tests is made of.

use std::time::Duration;

use runbook_lab::Plan;

/// A lab with these hosts, the shop on `old` and edges on `old` and `new`. The test has to end it.
pub fn plan(hosts: &[&str], ttl: Duration, order_every: Duration) -> Plan {
    Plan {
        hosts: hosts.iter().map(ToString::to_string).collect(),
        edge_hosts: ["old", "new"].map(String::from).to_vec(),
        zone: "example.test".into(),
        name: "shop.example.test".into(),
        ttl,
        order_every,
        app_host: "old".into(),
        exe: env!("CARGO_BIN_EXE_runbook").into(),
        env_name: "demo".into(),
    }
}
