//! What a primitive is to the engine: how it acts, and how it finds out after a crash whether it had acted.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::RwLock;

use crate::cancel::Cancel;
use crate::clock::Clock;
use crate::error::{Code, Error, Result};
use crate::inventory::Environment;
use crate::secret::{Redactor, Secret};
use crate::spec::{Call, Effect, Spec, TypeSpec};
use crate::value::Value;

/// The name of one action of one run, the same on every replay; carried to the far side by `once` actions.
///
/// Lower-case letters, digits and `-` only, at most 60 characters: safe as a file name, a label, a tag, an SQL literal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ActionId(pub String);

impl fmt::Display for ActionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an action brought about.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outcome {
    /// The result that the script gets.
    pub value: Value,
    /// Whether the world was changed; `None` for reads.
    pub changed: Option<bool>,
    /// A short remark for the operator, such as why there was nothing to do.
    pub note: Option<String>,
    /// Facts to be kept for the environment beyond this run, written together with the outcome; `()` removes one.
    pub facts: BTreeMap<String, Value>,
}

impl Outcome {
    /// The world was changed.
    pub fn changed(value: impl Into<Value>) -> Self {
        Outcome { value: value.into(), changed: Some(true), ..Outcome::default() }
    }

    /// There was nothing to do, and why.
    pub fn unchanged(value: impl Into<Value>, why: impl Into<String>) -> Self {
        Outcome { value: value.into(), changed: Some(false), note: Some(why.into()), ..Outcome::default() }
    }

    /// Made so, by which the world was changed or not; `why` there was nothing to do when not.
    pub fn done(changed: bool, why: impl Into<String>) -> Self {
        if changed { Outcome::changed(()) } else { Outcome::unchanged((), why) }
    }

    /// Adds a remark.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    /// Adds a fact to be kept for the environment; `()` removes it.
    #[must_use]
    pub fn fact(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.facts.insert(key.into(), value.into());
        self
    }
}

impl<T: Into<Value>> From<T> for Outcome {
    fn from(value: T) -> Self {
        Outcome { value: value.into(), ..Outcome::default() }
    }
}

/// What the far side says of an action whose intent is recorded and whose outcome is not.
#[derive(Debug, Clone)]
pub enum Reconciled {
    /// It was done (perhaps by waiting for it just now); this is its outcome.
    Done(Outcome),
    /// It was done and failed.
    Failed(Error),
    /// It never took effect, provably, and can be done now.
    NotStarted,
    /// The far side cannot know. The operator decides, with what is known.
    Unknown {
        /// What is known, for the operator.
        known: String,
    },
}

/// A typed function or method that the host gives to scripts.
///
/// A primitive never asks whether this is a dry run or a replay: the executor calls `act` only to act.
#[async_trait]
pub trait Primitive: Send + Sync {
    /// Its declaration.
    fn spec(&self) -> &Spec;

    /// Does it. `call` has been checked against the Spec.
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome>;

    /// Finds out what became of the action `cx.action_id`, begun earlier by a controller that died or lost its connection.
    ///
    /// The default fits what may be repeated; a `once` primitive must ask the far side.
    async fn reconcile(&self, _cx: &Cx, _call: &Call) -> Result<Reconciled> {
        Ok(match self.spec().effect {
            Effect::Once => Reconciled::Unknown { known: "this primitive cannot ask the far side".into() },
            _ => Reconciled::NotStarted,
        })
    }
}

/// A function that needs nothing but the inventory, evaluated again on every replay.
pub type PureFn = fn(&Environment, &Call) -> Result<Value>;

/// Work at the end of a run, such as removing what the run left on hosts.
#[async_trait]
pub trait RunHook: Send + Sync {
    /// Called once the run has ended for good (done or rolled back). `hosts` are the inventory names of the hosts on which
    /// the run began `once` actions. A failure is shown as a warning.
    async fn finished(&self, cx: &Cx, hosts: &BTreeSet<String>) -> Result<()>;

    /// Called when the run was stopped in the middle of an action and will be resumed: what must not stay on hosts until then goes.
    /// It gets a few seconds. A failure is shown as a warning.
    async fn stopped(&self, _cx: &Cx) -> Result<()> {
        Ok(())
    }
}

/// Where live output and progress go; the terminal and the journal listen.
pub trait Sink: Send + Sync {
    /// A piece of a command's output, secrets struck.
    fn output(&self, path: &str, stream: StreamKind, bytes: &[u8]);
    /// How far a long action is.
    fn progress(&self, path: &str, progress: &Progress);
    /// A message of the primitive to the operator (journaled as `log`).
    fn message(&self, path: &str, text: &str);
}

/// Which stream a piece of output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamKind {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How far a long action is.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// What is being done: `copying uploads`.
    pub what: String,
    /// How much is done, in `unit`.
    pub done: u64,
    /// How much there is in all, when known.
    pub total: Option<u64>,
    /// `bytes`, `rows`, `files`, `checks`.
    pub unit: &'static str,
}

/// Gives the values of secrets. The command line supplies one that reads environment variables, files and commands.
pub trait SecretSource: Send + Sync {
    /// Resolves a secret by its inventory name.
    ///
    /// # Errors
    /// `RB0109` when there is none or it cannot be read.
    fn get(&self, name: &str) -> Result<Secret>;

    /// Asks the operator for something that no secret holds: a passphrase, a one-time code. `echo` shows what is typed.
    ///
    /// Waits for a person. `None` when there is nobody to ask, which is what this does unless it is overridden.
    fn ask(&self, _question: &str, _echo: bool) -> Option<Secret> {
        None
    }
}

/// The project's own files (templates, files to upload), as kept with the run.
pub trait Files: Send + Sync {
    /// Reads a file by its path relative to the project.
    ///
    /// # Errors
    /// `RB0110` when the path leaves the project, `RB0111` when there is no such file.
    fn read(&self, path: &str) -> Result<Vec<u8>>;

    /// Where a path of the project lies on this machine, for a primitive that writes there (a file fetched from a host).
    ///
    /// # Errors
    /// `RB0110` when the path leaves the project, or when the project has no folder here.
    fn local(&self, path: &str) -> Result<std::path::PathBuf> {
        Err(Error::new(Code::OUTSIDE_PROJECT, format!("{path} cannot be written: the project has no folder here")))
    }

    /// The project's folder on this machine, to which paths in the inventory are relative; `None` when there is none.
    fn folder(&self) -> Option<std::path::PathBuf> {
        None
    }
}

/// Facts of an environment that outlive a run, such as when a TTL was lowered.
pub trait Facts: Send + Sync {
    /// Reads a fact.
    ///
    /// # Errors
    /// `RB0002` when the store cannot be read.
    fn get(&self, key: &str) -> Result<Option<Value>>;

    /// Writes facts at once and durably (a [`Store::append`](crate::journal::Store::append) of a batch with these facts alone).
    ///
    /// For what the act itself destroys: a TTL must be on record before it is lowered, or a crash in between would lose it
    /// for ever. Everything else goes into [`Outcome::facts`]. A fact set to `()` is removed.
    ///
    /// # Errors
    /// As [`Store::append`](crate::journal::Store::append).
    fn put(&self, facts: BTreeMap<String, Value>) -> Result<()>;
}

/// Everything a primitive may use while it acts. Cheap to clone.
#[derive(Clone)]
pub struct Cx {
    /// The action's stable name.
    pub action_id: ActionId,
    /// The action's path in the run: `phase/step/0`.
    pub path: Arc<str>,
    /// The run's id.
    pub run: Arc<str>,
    /// The environment, resolved.
    pub env: Arc<Environment>,
    /// Cancelled when the operator wants to stop at once, or the step's timeout has passed.
    pub cancel: Cancel,
    /// Set by whoever gives the action a way to a host: from then on it may have written something there.
    pub reached: Arc<AtomicBool>,
    /// Strikes secrets. Output given to [`Cx::output`] is struck already; primitives use it for what they put into values.
    pub redactor: Redactor,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Shared state of the primitive families (connection pools and the like), by type.
    pub shared: Arc<Shared>,
    /// Secrets.
    pub secrets: Arc<dyn SecretSource>,
    /// The project's files.
    pub files: Arc<dyn Files>,
    /// Facts of the environment.
    pub facts: Arc<dyn Facts>,
    /// Where output and progress go.
    pub sink: Arc<dyn Sink>,
}

impl Cx {
    /// Passes a piece of output on, live. The caller strikes secrets across pieces with [`Redactor::stream`].
    pub fn output(&self, stream: StreamKind, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.sink.output(&self.path, stream, bytes);
        }
    }

    /// Says how far the action is.
    pub fn progress(&self, what: impl Into<String>, done: u64, total: Option<u64>, unit: &'static str) {
        self.sink.progress(&self.path, &Progress { what: what.into(), done, total, unit });
    }

    /// Tells the operator something, also kept in the journal.
    pub fn message(&self, text: impl AsRef<str>) {
        self.sink.message(&self.path, &self.redactor.text(text.as_ref()));
    }

    /// Resolves a secret and has it struck from everything from now on.
    ///
    /// # Errors
    /// `RB0109` when it cannot be had.
    pub fn secret(&self, name: &str) -> Result<Secret> {
        let s = self.secrets.get(name)?;
        self.redactor.add(s.reveal());
        Ok(s)
    }

    /// Asks the operator on the terminal, and has the answer struck from everything from now on unless it was shown while typed.
    /// `None` when there is nobody to ask.
    ///
    /// # Errors
    /// `RB0021` when cancelled.
    pub async fn ask(&self, question: impl Into<String>, echo: bool) -> Result<Option<Secret>> {
        let (secrets, question) = (self.secrets.clone(), question.into());
        let asked = tokio::task::spawn_blocking(move || secrets.ask(&question, echo));
        let answer = tokio::select! {
            a = asked => a.unwrap_or_default(),
            () = self.cancel.cancelled() => return Err(Error::new(Code::ABORTED, "stopped while a question was open")),
        };
        if let Some(a) = answer.as_ref().filter(|a| !echo && !a.reveal().is_empty()) {
            self.redactor.add(a.reveal());
        }
        Ok(answer)
    }

    /// Waits, but not beyond a cancellation.
    ///
    /// # Errors
    /// `RB0021` when cancelled.
    pub async fn sleep(&self, d: Duration) -> Result<()> {
        tokio::select! {
            () = tokio::time::sleep(d) => Ok(()),
            () = self.cancel.cancelled() => Err(Error::new(Code::ABORTED, "stopped while waiting")),
        }
    }
}

/// State that the primitives of a family share for the life of the process: one value a type, made on first use.
#[derive(Default)]
pub struct Shared {
    map: RwLock<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
}

impl Shared {
    /// The shared value of type `T`, made by `T::default()` on first use.
    pub fn get<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        if let Some(found) = self.map.read().get(&TypeId::of::<T>()).cloned().and_then(|a| a.downcast().ok()) {
            return found;
        }
        let mut map = self.map.write();
        let entry = map.entry(TypeId::of::<T>()).or_insert_with(|| Arc::new(T::default())).clone();
        entry.downcast().unwrap_or_default()
    }
}

/// Every primitive, pure function, type and hook that scripts and the engine know.
#[derive(Default, Clone)]
pub struct Registry {
    /// Primitives by receiver type and name.
    pub primitives: BTreeMap<(Option<&'static str>, &'static str), Arc<dyn Primitive>>,
    /// Pure functions and methods by receiver type and name.
    pub pure: BTreeMap<(Option<&'static str>, &'static str), (Arc<Spec>, PureFn)>,
    /// Record and handle types by name.
    pub types: BTreeMap<&'static str, TypeSpec>,
    /// Work at the end of runs.
    pub hooks: Vec<Arc<dyn RunHook>>,
}

impl Registry {
    /// Adds a primitive.
    pub fn add(&mut self, p: impl Primitive + 'static) {
        let key = (p.spec().on, p.spec().name);
        let before = self.primitives.insert(key, Arc::new(p));
        debug_assert!(before.is_none(), "{key:?} is declared twice");
    }

    /// Adds a pure function or method.
    pub fn add_pure(&mut self, spec: Spec, f: PureFn) {
        let before = self.pure.insert((spec.on, spec.name), (Arc::new(spec), f));
        debug_assert!(before.is_none(), "a pure function is declared twice");
    }

    /// Adds a type.
    pub fn add_type(&mut self, t: TypeSpec) {
        self.types.insert(t.name, t);
    }

    /// Adds a hook.
    pub fn add_hook(&mut self, h: impl RunHook + 'static) {
        self.hooks.push(Arc::new(h));
    }

    /// Every declared Spec, functions first, then methods by type.
    pub fn specs(&self) -> impl Iterator<Item = &Spec> {
        let mut all: Vec<&Spec> = self.primitives.values().map(|p| p.spec()).chain(self.pure.values().map(|(s, _)| s.as_ref())).collect();
        all.sort_by_key(|s| (s.on, s.name));
        all.into_iter()
    }
}
