//! Docker Engines over real SSH servers: two hosts, each with an engine of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use runbook_core::inventory::{Environment, Resource, Section};
use runbook_core::primitive::{Cx, Outcome, Reconciled, Shared};
use runbook_core::spec::Call;
use runbook_core::{Code, Error, Record, Result, Value};
use runbook_primitives::ssh::helper::HelperExe;
use runbook_testkit::{World, cx};

use crate::support::docker::Engine;
use crate::support::sshd::{Around, Sshd, environment, world};
use crate::support::{list, options};

mod compose;
mod containers;
mod contexts;
mod files;
mod images;
mod killed;
mod run;
mod swarm;
mod volumes;

/// Two hosts, `old` and `new`, with an engine each under the same name.
struct Pair {
    old: Sshd,
    new: Sshd,
    a: Engine,
    b: Engine,
    env: Environment,
    world: Arc<World>,
    shared: Arc<Shared>,
    /// What is /srv on each.
    srv: [tempfile::TempDir; 2],
}

impl Pair {
    fn start() -> Option<Pair> {
        let srv = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let sshd = |srv: &Path| {
            let own = format!("mount --bind {} /srv && exec \"$@\"", srv.display());
            let prefix = ["unshare", "-m", "sh", "-c", &own, "sh"].map(String::from).to_vec();
            Sshd::start_in("", Around { prefix, ..Around::default() })
        };
        let (old, new) = (sshd(srv[0].path())?, sshd(srv[1].path())?);
        let (a, b) = (Engine::start(srv[0].path())?, Engine::start(srv[1].path())?);
        let mut env = environment(&[("old", old.settings()), ("new", new.settings())]);
        for (name, engine) in [("old", &a), ("new", &b)] {
            let socket = engine.socket().display().to_string();
            let settings = BTreeMap::from([("host".to_string(), Value::from(name)), ("socket".to_string(), socket.into())]);
            let r = Resource { name: name.into(), kind: "docker".into(), settings };
            env.resources.entry(Section::Engines).or_default().insert(name.into(), r);
        }
        let p = Pair { old, new, a, b, env, world: world(), shared: Arc::default(), srv };
        p.shared.get::<HelperExe>().set(env!("CARGO_BIN_EXE_runbook"));
        Some(p)
    }

    fn cx(&self, action: &str) -> Cx {
        let mut cx = cx(&self.world, self.env.clone(), action);
        cx.shared = self.shared.clone();
        cx
    }

    /// A call of a method on something of an engine, as a script makes it: `"volume shop_data"` of `new`, or the engine itself.
    fn bind(&self, engine: &str, on: &str, method: &'static str, args: Vec<Value>) -> (Arc<dyn runbook_core::primitive::Primitive>, Call) {
        let registry = runbook_primitives::registry();
        let docker = self.engine(engine);
        let (ty, receiver) = match on.split_once(' ') {
            None => ("Docker", docker.as_record().unwrap().clone()),
            Some((kind, name)) => {
                let ((on, _), (spec, make)) = registry.pure.iter().find(|((on, n), _)| *on == Some("Docker") && *n == kind).unwrap();
                assert_eq!(*on, Some("Docker"));
                let call = spec.bind(Some(docker.as_record().unwrap().clone()), vec![name.into()]).unwrap();
                let made = make(&self.env, &call).unwrap().as_record().unwrap().clone();
                (registry.types.keys().find(|t| **t == made.ty).copied().unwrap(), made)
            }
        };
        let p = registry.primitives[&(Some(ty), method)].clone();
        let call = p.spec().bind(Some(receiver), args).unwrap();
        (p, call)
    }

    /// The hosts and engines as a project has them.
    fn inventory(&self) -> String {
        let mut text = String::new();
        for (section, all) in &self.env.resources {
            for (name, r) in all {
                text.push_str(&format!("[environments.test.{}.{name}]\n", section.key()));
                if *section == Section::Engines {
                    text.push_str("kind = \"docker\"\n");
                }
                text.extend(r.settings.iter().map(|(k, v)| format!("{k} = {:?}\n", v.as_str().unwrap())));
            }
        }
        text
    }

    /// A script's engine.
    fn engine(&self, name: &str) -> Value {
        let registry = runbook_primitives::registry();
        let (spec, make) = &registry.pure[&(None, "docker")];
        make(&self.env, &spec.bind(None, vec![name.into()]).unwrap()).unwrap()
    }

    async fn call(&self, engine: &str, on: &str, method: &'static str, args: Vec<Value>) -> Result<Outcome> {
        let (p, call) = self.bind(engine, on, method, args);
        p.act(&self.cx("r1-a"), &call).await
    }

    async fn does(&self, engine: &str, on: &str, method: &'static str, args: Vec<Value>) -> Record {
        let o = self.call(engine, on, method, args).await.unwrap();
        o.value.as_record().cloned().expect("a record")
    }

    /// Whether it changed anything.
    async fn changes(&self, engine: &str, on: &str, method: &'static str, args: Vec<Value>) -> bool {
        self.call(engine, on, method, args).await.unwrap().changed == Some(true)
    }

    async fn fails(&self, engine: &str, on: &str, method: &'static str, args: Vec<Value>) -> Error {
        self.call(engine, on, method, args).await.expect_err("an error")
    }
}

fn sh(script: &str, at: &Path) -> String {
    let out = Command::new("bash").args(["-c", script]).current_dir(at).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr).into_owned());
    assert!(out.status.success(), "{script}: {stdout}{stderr}");
    stdout
}
