//! End-to-end tests of the area `ssh`: the primitives against a real OpenSSH server.

use std::collections::BTreeMap;
use std::sync::Arc;

use runbook_core::inventory::Environment;
use runbook_core::primitive::{Cx, Outcome, Reconciled, Registry};
use runbook_core::{Code, Error, Record, Result, Value};
use runbook_testkit::World;

use crate::support::server::{Kind, Server};
use crate::support::sshd::{Sshd, environment, world};

mod auth;
mod auth_config;
mod commands;
mod config;
mod connect;
mod copy;
mod copy_blocks;
mod copy_broken;
mod copy_ways;
mod cuts;
mod fanout;
mod files;
mod host_keys;
mod jump_secrets;
mod lost;
mod matrix;
mod passwords;
mod privilege;
mod service;
mod shared;

/// Hosts, a world and the primitives.
struct Bench {
    host: Server,
    world: Arc<World>,
    env: Environment,
    registry: Registry,
    shared: Arc<runbook_core::primitive::Shared>,
}

impl Bench {
    /// One server under the name `old`, with further lines of its configuration.
    fn new(extra: &str) -> Option<Bench> {
        Sshd::start(extra).map(|s| Bench::of(Server::OpenSsh(s)))
    }

    /// This server under the name `old`.
    fn of(host: Server) -> Bench {
        let env = environment(&[("old", host.settings())]);
        Bench { host, world: world(), env, registry: runbook_primitives::registry(), shared: Arc::default() }
    }

    /// A server of every kind that is installed, one after the other.
    fn every() -> impl Iterator<Item = Bench> {
        Kind::ALL.into_iter().filter_map(|kind| {
            eprintln!("== on {kind:?}");
            Server::start(kind).map(Bench::of)
        })
    }

    /// The context of one action; all share their connections.
    fn cx(&self, id: &str) -> Cx {
        Cx { shared: self.shared.clone(), ..runbook_testkit::cx(&self.world, self.env.clone(), id) }
    }

    fn pure(&self, on: Option<&'static str>, name: &'static str, receiver: Option<Record>, args: Vec<Value>) -> Result<Value> {
        let (spec, f) = self.registry.pure.get(&(on, name)).expect("there is such a function");
        f(&self.env, &spec.bind(receiver, args)?)
    }

    fn handle(&self) -> Record {
        let v = self.pure(None, "host", None, vec!["old".into()]).expect("a host");
        v.as_record().expect("a handle").clone()
    }

    /// Calls a primitive under an action id.
    async fn act_on(&self, cx: &Cx, receiver: Record, name: &'static str, args: Vec<Value>) -> Result<Outcome> {
        let on: &'static str = if receiver.ty == "Service" { "Service" } else { "Host" };
        let p = self.registry.primitives.get(&(Some(on), name)).expect("there is such a primitive");
        let call = p.spec().bind(Some(receiver), args)?;
        p.act(cx, &call).await
    }

    /// Calls a method of the host.
    async fn act(&self, id: &str, name: &'static str, args: Vec<Value>) -> Result<Outcome> {
        self.act_on(&self.cx(id), self.handle(), name, args).await
    }

    /// Asks a method of the host what became of an action.
    async fn reconcile(&self, id: &str, name: &'static str, args: Vec<Value>) -> Result<Reconciled> {
        let p = self.registry.primitives.get(&(Some("Host"), name)).expect("there is such a primitive");
        let call = p.spec().bind(Some(self.handle()), args)?;
        p.reconcile(&self.cx(id), &call).await
    }

    /// Writes a file in the host's home.
    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.host.home().join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, content).expect("a file");
    }

    /// Reads a file in the host's home.
    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.host.home().join(path)).unwrap_or_default()
    }

    fn output(&self) -> String {
        String::from_utf8_lossy(&self.world.output.lock()).into_owned()
    }
}

/// An options map.
fn options<const N: usize>(all: [(&str, Value); N]) -> Value {
    Value::Map(all.into_iter().map(|(k, v)| (k.to_string(), v)).collect::<BTreeMap<_, _>>())
}

/// A field of the record that an action gave.
fn field(outcome: &Outcome, name: &str) -> Value {
    outcome.value.as_record().expect("a record").get(name).clone()
}

/// The error, with its code checked and everything that a user sees in it.
fn failure(result: Result<Outcome>, code: Code) -> Error {
    let e = result.expect_err("it fails");
    assert_eq!(e.code, code, "{e:?}");
    assert!(e.hint.is_some(), "without a hint: {e:?}");
    e
}
