//! Runs a script for a run: a new one, one that goes on, one that is taken back.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::Rng;
use rhai::{Dynamic, Engine, EvalContext, Scope};
use runbook_core::clock::{Clock, rfc3339};
use runbook_core::digest::sha256_hex;
use runbook_core::error::{Kind, Location};
use runbook_core::exec::{CrashPoint, Frame, History, Lease, Liveness, Mode, Run, RunParts, Surroundings};
use runbook_core::inventory::Environment;
use runbook_core::journal::{Batch, Body, FORMAT, NewRun, Operator, Purpose, RunInfo, State, Store};
use runbook_core::primitive::Files;
use runbook_core::{Code, Error, Result, Value};

use crate::check::check;
use crate::engine::{Host, make};
use crate::fault::to_error;
use crate::modules::Sources;

/// The stack of the thread that evaluates scripts: deep but legal recursion must not reach its end.
const STACK: usize = 64 << 20;

/// Where the resolved environment is kept with a run.
pub const ENVIRONMENT: &str = "@environment.json";

/// The crash harness's hook.
pub type Crash = Arc<dyn Fn(CrashPoint<'_>) + Send + Sync>;

/// Everything that runs share in one controller.
pub struct Controller {
    /// Where they are recorded, what they may use, who follows and who answers.
    pub around: Surroundings,
    /// The project's files as they are now.
    pub files: Arc<dyn Files>,
    /// Who we are.
    pub operator: Operator,
    /// Whether another controller is alive.
    pub alive: Arc<dyn Fn(&Operator) -> Liveness + Send + Sync>,
    /// Take over a stale lock.
    pub take_over: bool,
}

/// How a controller's work on a run ended.
#[derive(Debug)]
pub struct Ended {
    /// The run's id.
    pub run: String,
    /// The state that was recorded (or would have been, when the store failed).
    pub state: State,
    /// Why, unless it finished.
    pub error: Option<Error>,
    /// Whether anything but reads was begun.
    pub wrote: bool,
}

/// Makes the id of a new run: date, time, the runbook's name, and four letters.
#[must_use]
pub fn new_run_id(clock: &dyn Clock, runbook: &str) -> String {
    let t = rfc3339(clock.now());
    let digits: String = t.chars().filter(char::is_ascii_digit).take(12).collect();
    let mut parts = runbook.trim_end_matches(".rhai").rsplit('/').filter(|p| *p != "runbook" && !p.is_empty());
    let slug: String =
        parts.next().unwrap_or("run").to_lowercase().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(20).collect();
    let mut rng = rand::rng();
    let tail: String = (0..4).map(|_| char::from(b"abcdefghjkmnpqrstuvwxyz23456789"[rng.random_range(0..31)])).collect();
    let (date, time) = digits.split_at(digits.len().min(8));
    format!("{date}-{time}-{}-{tail}", if slug.is_empty() { "run" } else { &slug })
}

/// The files of a run: kept ones first, then the project's as they are now, kept from then on.
struct KeptFiles {
    kept: Mutex<BTreeMap<String, Vec<u8>>>,
    project: Arc<dyn Files>,
    keep: Mutex<Option<(Arc<dyn Store>, String, i64)>>,
}

impl Files for KeptFiles {
    fn read(&self, path: &str) -> Result<Vec<u8>> {
        if let Some(found) = self.kept.lock().get(path) {
            return Ok(found.clone());
        }
        let bytes = self.project.read(path)?;
        if let Some((store, run, fence)) = self.keep.lock().as_ref() {
            store.replace_sources(run, *fence, &BTreeMap::from([(path.to_string(), bytes.clone())]))?;
        }
        self.kept.lock().insert(path.to_string(), bytes.clone());
        Ok(bytes)
    }

    fn local(&self, path: &str) -> Result<std::path::PathBuf> {
        self.project.local(path)
    }

    fn folder(&self) -> Option<std::path::PathBuf> {
        self.project.folder()
    }
}

fn digests(sources: &BTreeMap<String, Vec<u8>>) -> BTreeMap<String, String> {
    sources.iter().map(|(p, b)| (p.clone(), sha256_hex(b))).collect()
}

/// A script ready to be evaluated.
struct Script {
    engine: Arc<Engine>,
    host: Arc<Host>,
    ast: rhai::AST,
}

impl Controller {
    /// Runs a runbook as a new run.
    ///
    /// # Errors
    /// What keeps the run from existing at all: findings of the check (the first one; see [`Controller::check`]), a held lock, a
    /// store that cannot hold it. Everything after that is in [`Ended`].
    pub fn run(&self, id: &str, env: &Arc<Environment>, runbook: &str) -> Result<Ended> {
        let files = self.kept(BTreeMap::new());
        let (script, sources) = self.load(files.clone(), runbook, Some(env))?;
        let mut kept = sources.read_so_far();
        let env_json = serde_json::to_vec(&env.to_json()).map_err(|e| Error::internal(format!("the environment cannot be kept: {e}")))?;
        kept.insert(ENVIRONMENT.into(), env_json);
        let lease = self.lock(&env.name, id)?;
        self.around.store.create(&NewRun {
            id: id.into(),
            environment: env.name.clone(),
            runbook: runbook.into(),
            sources: kept.clone(),
        })?;
        *files.keep.lock() = Some((self.around.store.clone(), id.into(), lease.fence));
        let now = self.around.clock.now();
        let started = Body::RunStarted {
            runbook: runbook.into(),
            environment: env.name.clone(),
            params: Value::Map(env.params.clone()).to_json(),
            sources: digests(&kept),
            format: FORMAT,
        };
        let bodies = vec![(now, started), (now, self.session(Purpose::Run, &lease, None))];
        self.begin(id, &lease, bodies)?;
        let run = self.make_run(id, env, files, lease.fence, History::default(), Mode::Forward);
        Ok(self.forward(&script, &run, lease))
    }

    /// Checks a runbook with everything it imports.
    #[must_use]
    pub fn check(&self, runbook: &str, env: Option<&Environment>) -> Vec<Error> {
        let sources = Sources::new(self.files.clone());
        let (engine, _host) = make(self.around.registry.clone(), sources.clone());
        check(&engine, &self.around.registry, &sources, runbook, env).findings
    }

    /// Goes on with a run that stopped. With `edited`, from the project's files as they are now.
    ///
    /// # Errors
    /// `RB0008`, `RB0009` when there is nothing to go on with; `RB0006`, `RB0007` when it is held; what the store says.
    pub fn resume(&self, id: &str, edited: bool) -> Result<Ended> {
        let info = self.around.store.run(id)?;
        self.resumable(&info, "resumed")?;
        let env = self.environment(&info.id)?;
        let lease = self.lock(&info.environment, &info.id)?;
        let files = self.kept(if edited { BTreeMap::new() } else { self.around.store.sources(&info.id)? });
        let (script, sources) = self.load(files.clone(), &info.runbook, None)?;
        let history = self.history(&info.id)?;
        if history.rolling_back() {
            return Err(Error::new(Code::RUN_STATE, format!("run {} is being rolled back", info.id))
                .hint(format!("`runbook rollback {}` goes on with that", info.id)));
        }
        let mut new = None;
        if edited {
            let matching = self.compare(&script, &info.id, &env, &files, lease.fence)?;
            // Only now: a runbook that does not match must not take the place of the one that does.
            let read = sources.read_so_far();
            self.around.store.replace_sources(&info.id, lease.fence, &read)?;
            new = Some((digests(&read), matching));
        }
        *files.keep.lock() = Some((self.around.store.clone(), info.id.clone(), lease.fence));
        self.begin(&info.id, &lease, vec![(self.around.clock.now(), self.session(Purpose::Resume, &lease, new))])?;
        let run = self.make_run(&info.id, &env, files, lease.fence, history, Mode::Forward);
        Ok(self.forward(&script, &run, lease))
    }

    /// Takes a run back, or goes on taking it back.
    ///
    /// # Errors
    /// As [`Controller::resume`]; `RB0014` past the point of no return.
    pub fn rollback(&self, id: &str) -> Result<Ended> {
        let info = self.around.store.run(id)?;
        if info.state == State::RolledBack {
            return Err(Error::new(Code::RUN_STATE, format!("run {} was rolled back already", info.id)));
        }
        let env = self.environment(&info.id)?;
        let lease = self.lock(&info.environment, &info.id)?;
        let files = self.kept(self.around.store.sources(&info.id)?);
        *files.keep.lock() = Some((self.around.store.clone(), info.id.clone(), lease.fence));
        let (script, _) = self.load(files.clone(), &info.runbook, None)?;
        let history = self.history(&info.id)?;
        if let Some(why) = history.no_return() {
            return Err(Error::new(Code::PAST_NO_RETURN, format!("run {} is past its point of no return: {why}", info.id))
                .hint(format!("it can only go forward: `runbook resume {}`, or write a runbook that moves back", info.id)));
        }
        self.begin(&info.id, &lease, vec![(self.around.clock.now(), self.session(Purpose::Rollback, &lease, None))])?;
        let run = self.make_run(&info.id, &env, files, lease.fence, history, Mode::Rollback);
        Ok(self.backward(&script, &run, lease, "asked for by the operator"))
    }

    /// Compares an edited runbook with the record, before anything is touched; the finished steps that match.
    fn compare(&self, script: &Script, id: &str, env: &Arc<Environment>, files: &Arc<KeptFiles>, fence: i64) -> Result<Vec<String>> {
        let history = History::load(self.around.store.as_ref(), id, &mut |_, _| {})?;
        let run = self.make_run(id, env, files.clone(), fence, history, Mode::Compare);
        let (found, mismatch) = run.comparison(evaluate(script, &run));
        self.around.observer.compared(&found);
        mismatch.map_or(Ok(found.matching), Err)
    }

    fn resumable(&self, info: &RunInfo, what: &str) -> Result<()> {
        match info.state {
            State::Finished | State::RolledBack => Err(Error::new(
                Code::RUN_STATE,
                format!(
                    "run {} cannot be {what}: it has {}",
                    info.id,
                    if info.state == State::Finished { "finished" } else { "been rolled back" }
                ),
            )),
            _ => Ok(()),
        }
    }

    fn kept(&self, kept: BTreeMap<String, Vec<u8>>) -> Arc<KeptFiles> {
        Arc::new(KeptFiles { kept: Mutex::new(kept), project: self.files.clone(), keep: Mutex::new(None) })
    }

    fn load(&self, files: Arc<KeptFiles>, runbook: &str, env: Option<&Environment>) -> Result<(Script, Arc<Sources>)> {
        let sources = Sources::new(files.clone());
        sources.keep_library(&files.kept.lock());
        let (engine, host) = make(self.around.registry.clone(), sources.clone());
        let checked = check(&engine, &self.around.registry, &sources, runbook, env);
        if let Some(first) = checked.findings.into_iter().next() {
            return Err(first);
        }
        let ast = checked.ast.ok_or_else(|| Error::internal("a runbook without findings was not parsed"))?;
        Ok((Script { engine, host, ast }, sources))
    }

    fn environment(&self, id: &str) -> Result<Arc<Environment>> {
        let bytes = self
            .around
            .store
            .source(id, ENVIRONMENT)?
            .ok_or_else(|| Error::new(Code::STORE_DAMAGED, format!("run {id} has lost its environment")))?;
        let json = serde_json::from_slice(&bytes)
            .map_err(|e| Error::new(Code::STORE_DAMAGED, format!("the environment of run {id} cannot be read: {e}")))?;
        Ok(Arc::new(Environment::from_json(&json)?))
    }

    fn history(&self, id: &str) -> Result<History> {
        History::load(self.around.store.as_ref(), id, &mut |entry, body| {
            let time = entry.time.parse().unwrap_or_default();
            self.around.observer.entry(time, body, true);
        })
    }

    fn lock(&self, environment: &str, id: &str) -> Result<Lease> {
        let mut lease = Lease::take(
            &self.around.store,
            self.around.clock.as_ref(),
            environment,
            id,
            &self.operator,
            self.take_over,
            self.alive.as_ref(),
        )?;
        if let Some(h) = &lease.took_over {
            self.around.observer.notice(&format!("took over from {}, whose controller is gone", h));
        }
        lease.keep(&self.around.runtime, self.around.clock.clone(), self.around.abort.clone());
        Ok(lease)
    }

    fn session(&self, purpose: Purpose, lease: &Lease, edited: Option<(BTreeMap<String, String>, Vec<String>)>) -> Body {
        let (edited, matching) = edited.unzip();
        Body::SessionStarted {
            purpose,
            operator: self.operator.clone(),
            fence: lease.fence,
            edited,
            matching,
            took_over: lease.took_over.as_ref().map(ToString::to_string),
        }
    }

    fn begin(&self, id: &str, lease: &Lease, bodies: Vec<(jiff::Timestamp, Body)>) -> Result<()> {
        self.around.store.append(id, lease.fence, Batch { bodies: bodies.clone(), state: Some(State::Running), ..Batch::default() })?;
        for (t, b) in &bodies {
            self.around.observer.entry(*t, b, false);
            if let Some(crash) = &self.around.crash {
                crash(CrashPoint::Entry(b));
            }
        }
        Ok(())
    }

    fn make_run(&self, id: &str, env: &Arc<Environment>, files: Arc<KeptFiles>, fence: i64, history: History, mode: Mode) -> Arc<Run> {
        Run::new(RunParts { id: id.into(), env: env.clone(), fence, history, mode, files, around: self.around.clone() })
    }

    fn forward(&self, script: &Script, run: &Arc<Run>, lease: Lease) -> Ended {
        let error = match evaluate(script, run) {
            Ok(()) => {
                // Everything is on record, so what the run left on hosts can go; before the last entry, so that a controller which dies
                // here leaves a run that is resumed and cleaned up after all.
                run.finish_hooks();
                let ended = run.end(State::Finished, None);
                drop(lease);
                return match ended {
                    Ok(()) => Ended { run: run.id().into(), state: State::Finished, error: None, wrote: run.wrote() },
                    Err(e) => Ended { run: run.id().into(), state: State::Running, error: Some(e), wrote: run.wrote() },
                };
            }
            Err(e) => e,
        };
        if error.kind == Kind::RollBack {
            return self.turn_back(script, run, lease, &error);
        }
        let state = Run::state_after(&error);
        if state == State::Failed && run.stuck() {
            // Now it is on record that the run ended there, so that the failed step gets its new attempt.
            let again = || -> Result<Arc<Run>> {
                run.end(state, Some(error.clone()))?;
                let history = History::load(self.around.store.as_ref(), run.id(), &mut |_, _| {})?;
                let env = self.environment(run.id())?;
                Ok(self.make_run(run.id(), &env, self.kept(self.around.store.sources(run.id())?), lease.fence, history, Mode::Forward))
            };
            return match again() {
                Ok(next) => self.forward(script, &next, lease),
                Err(e) => self.stopped(run, state, e),
            };
        }
        self.stopped(run, state, error)
    }

    /// Records why the run stopped. When even that cannot be recorded, that is the greater trouble and is what is told.
    fn stopped(&self, run: &Arc<Run>, state: State, error: Error) -> Ended {
        if state == State::Interrupted && self.around.abort.is_cancelled() {
            run.stop_hooks();
        }
        let told = match run.end(state, Some(error.clone())) {
            Ok(()) => error,
            Err(_) if error.kind == Kind::Store => error,
            Err(e) => e.detail("while", error.to_string()),
        };
        Ended { run: run.id().into(), state, error: Some(told), wrote: run.wrote() }
    }

    /// A forward run that is to be taken back: its record is read again and evaluated for its undo blocks.
    fn turn_back(&self, script: &Script, run: &Arc<Run>, lease: Lease, why: &Error) -> Ended {
        let again = || -> Result<Arc<Run>> {
            self.around.store.flush(run.id(), lease.fence)?;
            let env = self.environment(run.id())?;
            let history = History::load(self.around.store.as_ref(), run.id(), &mut |_, _| {})?;
            let files = self.kept(self.around.store.sources(run.id())?);
            Ok(self.make_run(run.id(), &env, files, lease.fence, history, Mode::Rollback))
        };
        match again() {
            Ok(back) => self.backward(script, &back, lease, &why.message),
            Err(e) => self.stopped(run, State::Failed, e),
        }
    }

    fn backward(&self, script: &Script, run: &Arc<Run>, lease: Lease, reason: &str) -> Ended {
        // Evaluation ends where the record ends: by the engine's own unwinding, by the failure at which the run had stopped, or at
        // the end of a script that was done. A mismatch or a store that fails is real.
        let rebuilt = match evaluate(script, run) {
            Err(e) if matches!(e.kind, Kind::Mismatch | Kind::Store | Kind::Internal | Kind::Interrupted | Kind::InDoubt) => Err(e),
            _ => Ok(()),
        };
        let done = rebuilt.and_then(|()| on_big_stack(|| run.roll_back(reason)));
        let ended = done.and_then(|()| {
            run.finish_hooks();
            run.end(State::RolledBack, None)
        });
        match ended {
            Ok(()) => {
                drop(lease);
                Ended { run: run.id().into(), state: State::RolledBack, error: None, wrote: run.wrote() }
            }
            Err(e) => {
                let state = match e.kind {
                    Kind::Interrupted => State::Interrupted,
                    Kind::InDoubt => State::InDoubt,
                    _ if e.code == Code::PAST_NO_RETURN => State::Failed,
                    _ => State::RollingBack,
                };
                self.stopped(run, state, e)
            }
        }
    }
}

fn on_big_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|s| {
        let thread = std::thread::Builder::new().name("script".into()).stack_size(STACK).spawn_scoped(s, work);
        match thread {
            Ok(t) => t.join().unwrap_or_else(|_| Err(Error::internal("the thread of the script panicked"))),
            Err(e) => Err(Error::internal(format!("no thread can be had for the script: {e}"))),
        }
    })
}

/// Evaluates the script for the run.
fn evaluate(script: &Script, run: &Arc<Run>) -> Result<()> {
    *script.host.run.write() = Some(run.clone());
    on_big_stack(|| {
        let done = eval_top(&script.engine, &script.ast);
        done.map_err(|e| {
            let mut error = to_error(&e);
            let source = script.ast.source().unwrap_or("").to_string();
            match &mut error.location {
                Some(l) if l.file.is_empty() => l.file = source,
                None => {
                    let pos = e.position();
                    error.location = pos.line().map(|line| Location { file: source, line, column: pos.position().unwrap_or(0) });
                }
                _ => {}
            }
            error
        })
    })
}

/// Evaluates the top level with the root frame as its place. (The engine's own way has no tag to give it by: the default tag would
/// also go to the top levels of modules, which must not act.)
fn eval_top(engine: &Engine, ast: &rhai::AST) -> Result<(), Box<rhai::EvalAltResult>> {
    let mut global = engine.new_global_runtime_state();
    global.tag = Dynamic::from(Frame::root());
    global.source = ast.source().map(Into::into);
    global.lib.push(ast.shared_lib().clone());
    let block = rhai::StmtBlock::new(ast.statements().iter().cloned(), rhai::Position::START, rhai::Position::NONE);
    let top = rhai::Expr::Stmt(Box::new(block));
    let (mut caches, mut scope) = (rhai::Caches::new(), Scope::new());
    let mut ctx = EvalContext::new(engine, &mut global, &mut caches, &mut scope, None);
    ctx.eval_expression_tree(&rhai::Expression::from(&top)).map(|_| ())
}
