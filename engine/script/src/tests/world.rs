//! A far side that remembers, primitives that act on it, and a controller around both.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use runbook_core::cancel::Cancel;
use runbook_core::clock::System;
use runbook_core::exec::{Ask, Comparison, GateAnswer, Liveness, Observer, Surroundings};
use runbook_core::inventory::Environment;
use runbook_core::journal::memory::MemoryStore;
use runbook_core::journal::{Body, Operator, Store};
use runbook_core::primitive::{Cx, Files, Outcome, Primitive, Reconciled, Registry, SecretSource};
use runbook_core::secret::{Redactor, Secret};
use runbook_core::{Call, Code, Effect, Error, Record, Result, Spec, Ty, TypeSpec, Value};

use crate::drive::{Controller, Crash, Ended};

/// What was done, by name and action id, and what state there is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Far {
    /// `once` actions by action id.
    pub done: BTreeMap<String, String>,
    /// How often each `once` action was done, by name.
    pub count: BTreeMap<String, u32>,
    /// `once` actions that failed, by action id.
    pub failed: BTreeMap<String, String>,
    /// State set by `converge` actions.
    pub state: BTreeMap<String, String>,
    /// How many more calls of a name fail.
    pub fail: BTreeMap<String, u32>,
    /// How often each thing was read.
    pub reads: BTreeMap<String, u32>,
    /// Actions that the far side cannot tell about.
    pub unknowable: bool,
    /// How many naps there are now, and how many there were at the same time.
    pub naps: (u32, u32),
    /// The order in which `once` actions were done.
    pub order: Vec<String>,
}

/// The far side, shared with the primitives.
pub type World = Arc<Mutex<Far>>;

struct Prim {
    spec: Spec,
    world: World,
    act: fn(&mut Far, &Cx, &Call) -> Result<Outcome>,
}

fn may_fail(far: &mut Far, name: &str) -> Result<()> {
    match far.fail.get_mut(name) {
        Some(n) if *n > 0 => {
            *n -= 1;
            Err(Error::new(Code::COMMAND_FAILED, format!("{name} failed")).retryable(true))
        }
        _ => Ok(()),
    }
}

#[async_trait::async_trait]
impl Primitive for Prim {
    fn spec(&self) -> &Spec {
        &self.spec
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        (self.act)(&mut self.world.lock(), cx, call)
    }
    async fn reconcile(&self, cx: &Cx, _call: &Call) -> Result<Reconciled> {
        let far = self.world.lock();
        if self.spec.effect != Effect::Once {
            return Ok(Reconciled::NotStarted);
        }
        if far.unknowable {
            return Ok(Reconciled::Unknown { known: "the host rebooted".into() });
        }
        if let Some(name) = far.failed.get(&cx.action_id.0) {
            return Ok(Reconciled::Failed(Error::new(Code::COMMAND_FAILED, format!("{name} failed")).retryable(true)));
        }
        Ok(match far.done.get(&cx.action_id.0) {
            Some(name) => Reconciled::Done(Outcome::changed(format!("did {name}"))),
            None => Reconciled::NotStarted,
        })
    }
}

/// A registry with `box(name)`, `Box.work(what)` (once), `Box.set(key, value)` (converge), `Box.look(key)` (read).
pub fn registry(world: &World) -> Registry {
    let mut r = Registry::default();
    r.add_type(TypeSpec::new("Box", "A thing to act on.").field("name", Ty::Str, "Its name."));
    r.add_pure(Spec::function("box", Effect::Pure, "A box.").arg("name", Ty::Str, "Its name.").returns(Ty::Record("Box")), |_, c| {
        Ok(Record::handle("Box", c.str(0), BTreeMap::from([("name".to_string(), Value::from(c.str(0)))])).into())
    });
    r.add(Prim {
        spec: Spec::method("Box", "work", Effect::Once, "Works.")
            .arg("what", Ty::Str, "What.")
            .option("note", Ty::Any, "Anything.")
            .returns(Ty::Str),
        world: world.clone(),
        act: |far, cx, call| {
            let name = call.str(0).to_string();
            if let Err(e) = may_fail(far, &name) {
                far.failed.insert(cx.action_id.0.clone(), name);
                return Err(e);
            }
            *far.count.entry(name.clone()).or_default() += 1;
            far.order.push(name.clone());
            far.done.insert(cx.action_id.0.clone(), name.clone());
            Ok(Outcome::changed(format!("did {name}")))
        },
    });
    r.add(Prim {
        spec: Spec::method("Box", "set", Effect::Converge, "Sets.").arg("key", Ty::Str, "Key.").arg("value", Ty::Any, "Value."),
        world: world.clone(),
        act: |far, _, call| {
            let value = match call.arg(1) {
                Value::Str(s) => s.clone(),
                v => v.to_string(),
            };
            if far.state.get(call.str(0)) == Some(&value) {
                return Ok(Outcome::unchanged((), "already so"));
            }
            may_fail(far, call.str(0))?;
            far.state.insert(call.str(0).into(), value);
            Ok(Outcome::changed(()))
        },
    });
    r.add(Nap {
        spec: Spec::method("Box", "nap", Effect::Read, "Takes its time.").arg("how_long", Ty::Duration, "How long."),
        world: world.clone(),
    });
    r.add(Prim {
        spec: Spec::method("Box", "look", Effect::Read, "Looks.").arg("key", Ty::Str, "Key.").returns(Ty::Str),
        world: world.clone(),
        act: |far, _, call| {
            let n = far.reads.entry(call.str(0).into()).or_default();
            *n += 1;
            let n = *n;
            Ok(far.state.get(call.str(0)).cloned().unwrap_or_else(|| n.to_string()).into())
        },
    });
    r
}

/// `Box.nap(how_long)`: takes its time, and tells how many did so at once.
struct Nap {
    spec: Spec,
    world: World,
}

#[async_trait::async_trait]
impl Primitive for Nap {
    fn spec(&self) -> &Spec {
        &self.spec
    }
    async fn act(&self, _: &Cx, call: &Call) -> Result<Outcome> {
        {
            let mut far = self.world.lock();
            far.naps.0 += 1;
            far.naps.1 = far.naps.1.max(far.naps.0);
        }
        tokio::time::sleep(call.duration(0).unwrap_or_default()).await;
        self.world.lock().naps.0 -= 1;
        Ok(().into())
    }
}

/// Files in memory.
pub struct Mem(pub BTreeMap<String, String>);

impl Files for Mem {
    fn read(&self, path: &str) -> Result<Vec<u8>> {
        self.0.get(path).map(|t| t.clone().into_bytes()).ok_or_else(|| Error::new(Code::MISSING_FILE, format!("there is no {path}")))
    }
}

struct NoSecrets;
impl SecretSource for NoSecrets {
    fn get(&self, name: &str) -> Result<Secret> {
        Ok(Secret::new(name, format!("value-of-{name}")))
    }
}

/// Answers gates with yes.
pub struct Yes;
impl Ask for Yes {
    fn gate(&self, _: &str, _: &str, _: &mut dyn FnMut() -> Result<Option<GateAnswer>>) -> Result<Option<GateAnswer>> {
        Ok(Some(GateAnswer { yes: true, by: "test".into(), comment: None }))
    }
}

/// Remembers the entries, and how edited runbooks fitted.
#[derive(Default)]
pub struct Seen(pub Mutex<Vec<Body>>, pub Mutex<Vec<Comparison>>);
impl Observer for Seen {
    fn entry(&self, _: jiff::Timestamp, body: &Body, replayed: bool) {
        if !replayed {
            self.0.lock().push(body.clone());
        }
    }
    fn compared(&self, comparison: &Comparison) {
        self.1.lock().push(comparison.clone());
    }
}

/// A controller over a store, a far side and files.
pub struct Rig {
    pub world: World,
    pub store: Arc<MemoryStore>,
    pub files: BTreeMap<String, String>,
    pub ask: Arc<dyn Ask>,
    pub seen: Arc<Seen>,
    pub crash: Option<Crash>,
    pub stop: Cancel,
    pub runtime: tokio::runtime::Runtime,
}

static PID: AtomicU32 = AtomicU32::new(1);

impl Rig {
    pub fn new(script: &str) -> Rig {
        Rig::with(Arc::default(), Arc::default(), BTreeMap::from([("r.rhai".to_string(), script.to_string())]))
    }

    pub fn with(world: World, store: Arc<MemoryStore>, files: BTreeMap<String, String>) -> Rig {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Rig { world, store, files, ask: Arc::new(Yes), seen: Arc::default(), crash: None, stop: Cancel::default(), runtime }
    }

    pub fn controller(&self) -> Controller {
        Controller {
            around: Surroundings {
                store: self.store.clone(),
                clock: Arc::new(System),
                registry: Arc::new(registry(&self.world)),
                shared: Arc::default(),
                secrets: Arc::new(NoSecrets),
                redactor: Redactor::default(),
                observer: self.seen.clone(),
                ask: self.ask.clone(),
                runtime: self.runtime.handle().clone(),
                stop: self.stop.clone(),
                abort: Cancel::default(),
                crash: self.crash.clone(),
            },
            files: Arc::new(Mem(self.files.clone())),
            // Every controller is another process, and those before it are dead.
            operator: Operator { pid: PID.fetch_add(1, Ordering::Relaxed), ..Operator::default() },
            alive: Arc::new(|_| Liveness::Dead),
            take_over: false,
        }
    }

    pub fn env() -> Arc<Environment> {
        Arc::new(Environment { name: "test".into(), ..Environment::default() })
    }

    pub fn run(&self) -> Ended {
        self.controller().run("run-1", &Rig::env(), "r.rhai").unwrap()
    }

    pub fn resume(&self) -> Ended {
        self.controller().resume("run-1", false).unwrap()
    }

    pub fn rollback(&self) -> Ended {
        self.controller().rollback("run-1").unwrap()
    }

    pub fn entries(&self) -> u64 {
        self.store.run("run-1").unwrap().entries
    }

    pub fn logs(&self) -> Vec<String> {
        let seen = self.seen.0.lock();
        seen.iter().filter_map(|b| if let Body::Log { message, .. } = b { Some(message.clone()) } else { None }).collect()
    }
}
