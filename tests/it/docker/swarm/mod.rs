//! Swarms of three real engines, each on a host of its own behind an SSH server, on one network.

use super::*;
use crate::support::desk::{Project, until};
use crate::support::switch::Switch;

mod killed;
mod nodes;
mod services;
mod stacks;
mod whole;

/// Three hosts, `n1` to `n3`, with an engine each under the same name.
struct Three {
    hosts: Vec<(Sshd, tempfile::TempDir)>,
    engines: Vec<Option<Engine>>,
    env: Environment,
    world: Arc<World>,
    shared: Arc<Shared>,
    _switch: Switch,
}

const NAMES: [&str; 3] = ["n1", "n2", "n3"];

/// The address of a node.
fn address(n: usize) -> String {
    format!("10.97.0.{n}")
}

impl Three {
    fn start() -> Option<Three> {
        let switch = Switch::new()?;
        let (mut hosts, mut engines) = (vec![], vec![]);
        for (i, name) in NAMES.iter().enumerate() {
            let srv = tempfile::tempdir().unwrap();
            let own = format!("mount --bind {} /srv && exec \"$@\"", srv.path().display());
            let prefix = ["unshare", "-m", "sh", "-c", &own, "sh"].map(String::from).to_vec();
            let sshd = Sshd::start_in("", Around { prefix, ..Around::default() })?;
            let engine = Engine::start_node(srv.path(), name)?;
            switch.plug(&engine, &address(i + 1));
            engine.base();
            hosts.push((sshd, srv));
            engines.push(Some(engine));
        }
        let settings: Vec<_> = NAMES.iter().zip(&hosts).map(|(n, (s, _))| (*n, s.settings())).collect();
        let mut env = environment(&settings);
        for (name, engine) in NAMES.iter().zip(engines.iter().flatten()) {
            let socket = engine.socket().display().to_string();
            let settings = BTreeMap::from([("host".to_string(), Value::from(*name)), ("socket".to_string(), socket.into())]);
            let r = Resource { name: (*name).into(), kind: "docker".into(), settings };
            env.resources.entry(Section::Engines).or_default().insert((*name).into(), r);
        }
        let t = Three { hosts, engines, env, world: world(), shared: Arc::default(), _switch: switch };
        t.shared.get::<HelperExe>().set(env!("CARGO_BIN_EXE_runbook"));
        Some(t)
    }

    /// A swarm of these managers and workers, made by the stock client.
    fn joined(roles: [&str; 3]) -> Option<Three> {
        let t = Three::start()?;
        t.engine(1).docker(&["swarm", "init", "--advertise-addr", &address(1)]);
        for (n, role) in [(2, roles[1]), (3, roles[2])] {
            let token = t.engine(1).docker(&["swarm", "join-token", "-q", role]);
            t.engine(n).docker(&["swarm", "join", "--token", &token, &format!("{}:2377", address(1))]);
        }
        until("all nodes are ready", || t.engine(1).docker(&["node", "ls", "--format", "{{.Status}}"]).matches("Ready").count() == 3);
        Some(t)
    }

    /// The engine of a node that is up, by its number.
    fn engine(&self, n: usize) -> &Engine {
        self.engines[n - 1].as_ref().expect("an engine that is up")
    }

    /// Where a host's /srv lies.
    fn srv(&self, n: usize) -> &Path {
        self.hosts[n - 1].1.path()
    }

    /// The stock client on the first node.
    #[track_caller]
    fn docker(&self, words: &str) -> String {
        self.engine(1).docker(&words.split(' ').collect::<Vec<_>>())
    }

    /// The hosts and engines as a project has them.
    fn inventory(&self) -> String {
        let mut text = "[secrets]\ndb = { env = \"RUNBOOK_TEST_DB\" }\n".to_string();
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

    fn cx(&self, action: &str) -> Cx {
        let mut cx = cx(&self.world, self.env.clone(), action);
        cx.shared = self.shared.clone();
        cx
    }

    /// A handle as a script makes it: `swarm`, or `node n2`, `service web` of it, of an engine.
    fn handle(&self, engine: &str, on: &str) -> Record {
        let registry = runbook_primitives::registry();
        let pure = |ty: Option<&'static str>, name: &'static str, of: Option<Record>, args: Vec<Value>| {
            let (spec, make) = &registry.pure[&(ty, name)];
            make(&self.env, &spec.bind(of, args).unwrap()).unwrap().as_record().unwrap().clone()
        };
        let docker = pure(None, "docker", None, vec![engine.into()]);
        if on == "docker" {
            return docker;
        }
        let swarm = pure(Some("Docker"), "swarm", Some(docker), vec![]);
        let Some((kind, name)) = on.split_once(' ') else { return swarm };
        let kind = ["node", "service", "stack", "secret", "config"].into_iter().find(|k| *k == kind).unwrap();
        pure(Some("Swarm"), kind, Some(swarm), vec![name.into()])
    }

    fn bind(&self, engine: &str, on: &str, method: &'static str, args: Vec<Value>) -> (Arc<dyn runbook_core::primitive::Primitive>, Call) {
        let registry = runbook_primitives::registry();
        let receiver = self.handle(engine, on);
        let ty = registry.types.keys().find(|t| **t == receiver.ty).copied().unwrap();
        let p = registry.primitives[&(Some(ty), method)].clone();
        let call = p.spec().bind(Some(receiver), args).unwrap();
        (p, call)
    }

    async fn call(&self, engine: &str, on: &str, method: &'static str, args: Vec<Value>) -> Result<Outcome> {
        let (p, call) = self.bind(engine, on, method, args);
        static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        p.act(&self.cx(&format!("r1-{n}")), &call).await
    }

    /// Whether it changed anything.
    async fn changes(&self, engine: &str, on: &str, method: &'static str, args: Vec<Value>) -> bool {
        self.call(engine, on, method, args).await.unwrap().changed == Some(true)
    }

    async fn does(&self, engine: &str, on: &str, method: &'static str, args: Vec<Value>) -> Value {
        self.call(engine, on, method, args).await.unwrap().value
    }

    async fn fails(&self, engine: &str, on: &str, method: &'static str, args: Vec<Value>) -> Error {
        self.call(engine, on, method, args).await.expect_err("an error")
    }

    /// The nodes on which the tasks of a service run, as the stock client tells.
    fn runs_on(&self, service: &str) -> Vec<String> {
        let said =
            self.docker(&format!("service ps {service} --filter desired-state=running --format {{{{.Node}}}}:{{{{.CurrentState}}}}"));
        let running = said.lines().filter_map(|l| l.split_once(':')).filter(|(_, s)| s.starts_with("Running"));
        let mut all: Vec<String> = running.map(|(n, _)| n.to_string()).collect();
        all.sort();
        all
    }
}

/// Options that are waited for a short time only.
fn soon(more: &[(&str, Value)]) -> Value {
    let mut all = vec![("within", Value::from("60s")), ("steady", "500ms".into())];
    all.extend(more.iter().cloned());
    options(&all)
}
