//! Zones at several providers, and everything remembered about them.

use std::collections::BTreeMap;
use std::sync::Arc;

use runbook_core::inventory::{Environment, Resource, Section};
use runbook_core::primitive::{Cx, Outcome, Reconciled};
use runbook_core::{Record, Result, Value};
use runbook_testkit::{World, cx};

use crate::support::bind::SECRET;
use crate::support::list;

/// An environment with zones.
pub struct Desk {
    pub world: Arc<World>,
    pub env: Environment,
}

impl Desk {
    pub fn new() -> Desk {
        let world = World::default();
        for (name, value) in [("tsig", SECRET), ("pdns", crate::support::pdns::KEY), ("wrong", "not-the-key-0123456789")] {
            world.secrets.lock().insert(name.into(), value.into());
        }
        Desk { world: Arc::new(world), env: Environment { name: "test".into(), ..Environment::default() } }
    }

    /// Adds a zone.
    pub fn zone(mut self, name: &str, kind: &str, settings: &[(&str, &str)]) -> Desk {
        let settings = settings.iter().map(|(k, v)| ((*k).to_string(), Value::from(*v))).collect();
        let zone = Resource { name: name.into(), kind: kind.into(), settings };
        self.env.resources.entry(Section::Zones).or_default().insert(name.into(), zone);
        self
    }

    /// Adds a zone of a server that takes updates.
    pub fn updates(self, name: &str, server: &str) -> Desk {
        let mut d =
            self.zone(name, "rfc2136", &[("zone", "example.test"), ("server", server), ("tsig_name", "runbook"), ("tsig_secret", "tsig")]);
        let zone = d.env.resources.get_mut(&Section::Zones).and_then(|z| z.get_mut(name)).unwrap();
        zone.settings.insert("nameservers".into(), list(&[server]));
        d
    }

    /// Adds a zone of a PowerDNS server.
    pub fn powerdns(self, name: &str, port: u16) -> Desk {
        self.zone(name, "powerdns", &[("zone", "example.test"), ("api", &format!("http://127.0.0.1:{port}")), ("api_key", "pdns")])
    }

    pub fn handle(name: &str) -> Value {
        Record::handle("Zone", name, BTreeMap::new()).into()
    }

    pub fn cx(&self) -> Cx {
        cx(&self.world, self.env.clone(), "a-1")
    }

    /// Does it and loses the outcome, as a controller that dies.
    pub async fn act_and_die(&self, zone: &str, method: &'static str, args: Vec<Value>) -> Result<Outcome> {
        self.act_as("a-1", zone, method, args).await
    }

    /// As the action of that id.
    pub async fn act_as(&self, id: &str, zone: &str, method: &'static str, args: Vec<Value>) -> Result<Outcome> {
        let p = runbook_primitives::registry().primitives[&(Some("Zone"), method)].clone();
        let receiver = Record::handle("Zone", zone, BTreeMap::new());
        p.act(&cx(&self.world, self.env.clone(), id), &p.spec().bind(Some(receiver), args)?).await
    }

    /// Asks what became of the action of that id.
    pub async fn reconcile(&self, id: &str, zone: &str, method: &'static str, args: Vec<Value>) -> Result<Reconciled> {
        let p = runbook_primitives::registry().primitives[&(Some("Zone"), method)].clone();
        let receiver = Record::handle("Zone", zone, BTreeMap::new());
        p.reconcile(&cx(&self.world, self.env.clone(), id), &p.spec().bind(Some(receiver), args)?).await
    }

    pub async fn act(&self, zone: &str, method: &'static str, args: Vec<Value>) -> Outcome {
        let out = self.act_and_die(zone, method, args).await.unwrap_or_else(|e| panic!("{zone}.{method}: {e:?}"));
        self.world.facts.lock().extend(out.facts.clone());
        out
    }

    pub async fn fails(&self, zone: &str, method: &'static str, args: Vec<Value>) -> runbook_core::Error {
        let e = self.act_and_die(zone, method, args).await.expect_err("an error");
        self.no_secret(&format!("{e:?}"));
        e
    }

    /// No text has the value of a secret.
    pub fn no_secret(&self, text: &str) {
        for (name, value) in self.world.secrets.lock().iter() {
            assert!(!text.contains(value.as_str()), "the secret {name} is in {text}");
        }
    }
}

/// The texts of a list in a record.
pub fn texts(value: &Value, field: &str) -> Vec<String> {
    let r = value.as_record().expect("a record");
    r.get(field).as_list().unwrap_or_default().iter().filter_map(|v| v.as_str().map(str::to_string)).collect()
}
