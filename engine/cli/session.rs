//! One controller's work on a run: puts the parts together, listens to signals, shows what happens, says how it ended.

use std::sync::Arc;

use parking_lot::Mutex;
use runbook_core::cancel::Cancel;
use runbook_core::clock::System;
use runbook_core::error::Kind;
use runbook_core::exec::{CrashPoint, DoubtAnswer, Surroundings};
use runbook_core::inventory::Environment;
use runbook_core::journal::{State, Store};
use runbook_core::{Code, Error, Result};
use runbook_script::drive::{Controller, Crash, ENVIRONMENT, Ended};
use serde_json::json;

use crate::app::{App, Done};
use crate::ask::Asker;
use crate::command_error::{Failure, ROLLED_BACK};
use crate::operator::{alive, here};
use crate::project::Project;
use crate::secrets::Secrets;
use crate::view::live::{Manner, View, ending};
use crate::view::tree::Kind as NodeKind;

/// What the operator said on the command line about how to work.
#[derive(Debug, Default, Clone)]
pub struct Wishes {
    /// Answer gates with yes.
    pub yes: bool,
    /// Ask before each step.
    pub step: bool,
    /// Ask when something fails for good.
    pub failures: bool,
    /// The answer for an action in doubt.
    pub doubt: Option<DoubtAnswer>,
    /// Take over a stale lock.
    pub take_over: bool,
    /// Nothing but the result is printed.
    pub silent: bool,
}

/// A controller with its view.
pub struct Session {
    controller: Controller,
    view: Arc<View>,
    asker: Arc<Asker>,
    run: String,
    // Last, so that everything that uses it is gone before.
    runtime: tokio::runtime::Runtime,
}

impl Session {
    /// Puts a controller together for one run.
    ///
    /// # Errors
    /// `RB0100` when steps are to be asked and nobody can be.
    pub fn new(
        app: &App,
        project: &Project,
        store: Arc<dyn Store>,
        env: &Arc<Environment>,
        run: &str,
        runtime: tokio::runtime::Runtime,
        wishes: &Wishes,
    ) -> Result<Session> {
        if wishes.step && !app.term.can_ask() {
            return Err(Error::new(Code::USAGE, "--step asks before each step, and there is no terminal to ask on")
                .hint("leave out --step, or run it in a terminal without --no-input"));
        }
        let manner = match (wishes.silent, app.term.json, app.term.live) {
            (true, ..) => Manner::Silent,
            (_, true, _) => Manner::Json,
            (_, _, true) => Manner::Live,
            _ => Manner::Plain,
        };
        let view = View::new(&app.term, manner);
        view.follow(&store, run);
        let (stop, abort) = (Cancel::default(), Cancel::default());
        listen(&runtime, stop.clone(), abort.clone(), view.clone());
        let asker = Asker {
            term: app.term.clone(),
            view: view.clone(),
            run: run.to_string(),
            yes: wishes.yes,
            step: wishes.step,
            failures: wishes.failures,
            doubt: Mutex::new(wishes.doubt),
            stop: stop.clone(),
            env: env.clone(),
            turn: Mutex::default(),
        };
        let asker = Arc::new(asker);
        let secrets = Secrets::new(env.secrets.clone(), project.root.clone()).asking({
            let asker = asker.clone();
            Box::new(move |question, echo| asker.secret(question, echo))
        });
        let controller = Controller {
            around: Surroundings {
                store,
                clock: Arc::new(System),
                registry: Arc::new(runbook_primitives::registry()),
                shared: Arc::default(),
                secrets: Arc::new(secrets),
                redactor: Default::default(),
                observer: view.clone(),
                ask: asker.clone(),
                runtime: runtime.handle().clone(),
                stop,
                abort,
                crash: crash_point(),
            },
            files: Arc::new(project.clone()),
            operator: here(&project.state()),
            alive: Arc::new(alive),
            take_over: wishes.take_over,
        };
        Ok(Session { controller, view, asker, run: run.to_string(), runtime })
    }

    /// Does the work and says how it ended. `sources` are for snippets.
    ///
    /// # Errors
    /// Everything but a run that finished or was rolled back.
    pub fn work(self, app: &App, project: &Project, work: impl FnOnce(&Controller) -> Result<Ended>) -> Result<Ended, Failure> {
        let outcome = work(&self.controller);
        self.view.finish();
        let Session { controller, view, asker, run, runtime } = self;
        if outcome.is_ok() && asker.doubt.lock().is_some() && !app.term.json {
            app.term.err("note: no answer was asked for: the far side could tell what happened, or nothing was in doubt\n");
        }
        let shown = |f: &mut Failure| {
            let sources = controller.around.store.sources(&run).unwrap_or_default();
            for file in f.errors.iter().filter_map(|e| e.location.as_ref()).map(|l| l.file.clone()) {
                let kept = sources.get(&file).map(|b| String::from_utf8_lossy(b).into_owned());
                let now = || project.text(&file).ok();
                // An edited runbook that does not match is the one to show.
                let text = if view.comparison().is_some() { now().or(kept) } else { kept.or_else(now) };
                if let Some(text) = text {
                    f.sources.insert(file, text);
                }
            }
        };
        let result = match outcome {
            Err(e) => {
                let mut f = Failure::from(e);
                shown(&mut f);
                if let Some(c) = view.comparison() {
                    f.facts.insert("run".into(), json!(run));
                    f.facts.insert("matching".into(), json!(c.matching));
                    f.facts.insert("differing".into(), json!(c.differing));
                    f.facts.insert("not_compared".into(), json!(c.open));
                }
                Err(f)
            }
            Ok(Ended { run, state, error: Some(e), wrote }) => {
                let past = view.with_tree(|t| t.nodes.iter().any(|n| n.kind == NodeKind::NoReturn));
                let text = match e.code {
                    Code::FENCED_OFF => format!("run {run} is no longer ours\n"),
                    _ => view.with_tree(|t| ending(t, &run, state)),
                };
                let after = format!("\n{text}{}", next(&run, state, past, &e));
                let mut f = Failure { wrote, after, ..Failure::from(e) };
                f.facts.insert("run".into(), json!(run));
                f.facts.insert("state".into(), json!(state));
                shown(&mut f);
                Err(f)
            }
            Ok(ended) => Ok(ended),
        };
        drop(controller);
        // Primitives that hang may not keep the process: what they did is on record or in doubt.
        runtime.shutdown_timeout(std::time::Duration::from_secs(2));
        if let Ok(ended) = &result
            && !app.term.json
        {
            app.term.out(&view.with_tree(|t| ending(t, &ended.run, ended.state)));
        }
        result
    }
}

/// What a command prints of a run that ended well.
pub fn done(ended: &Ended) -> Done {
    // The text is out already; with --json the entries are.
    Done { exit: if ended.state == State::RolledBack { ROLLED_BACK } else { 0 }, ..Done::default() }
}

/// What can be done next, for the terminal.
fn next(run: &str, state: State, past: bool, e: &Error) -> String {
    let (kind, code) = (e.kind, e.code);
    let resume = format!("  go on       runbook resume {run}\n");
    let back = if past { String::new() } else { format!("  take back   runbook rollback {run}\n") };
    match (state, kind) {
        // Another controller has it now.
        (_, Kind::Store) if code == Code::FENCED_OFF => format!("  look        runbook show {run}\n"),
        (State::RollingBack, _) => format!("  go on       runbook rollback {run}\n"),
        (State::InDoubt, _) if code == Code::IN_DOUBT => format!(
            "  it did not happen   runbook resume {run} --answer retry\n  \
               it happened         runbook resume {run} --answer done\n  \
               take back           runbook resume {run} --answer rollback\n"
        ),
        (_, Kind::Mismatch) => format!("{resume}{back}"),
        _ => format!("{resume}{back}  look        runbook show {run}\n"),
    }
}

/// The environment that a run began with.
///
/// # Errors
/// `RB0004` when it is gone.
pub fn kept_environment(store: &Arc<dyn Store>, run: &str) -> Result<Arc<Environment>> {
    let lost = |why: &str| Error::new(Code::STORE_DAMAGED, format!("the environment of run {run} {why}"));
    let bytes = store.source(run, ENVIRONMENT)?.ok_or_else(|| lost("is not kept"))?;
    let json = serde_json::from_slice(&bytes).map_err(|e| lost(&format!("cannot be read: {e}")))?;
    Ok(Arc::new(Environment::from_json(&json)?))
}

/// Ctrl-C or SIGTERM once: finish the action in hand. Twice: stop now. A third time, when nothing helps: leave.
fn listen(runtime: &tokio::runtime::Runtime, stop: Cancel, abort: Cancel, view: Arc<View>) {
    use tokio::signal::unix::{SignalKind, signal};
    // The handlers stand before the run begins, not when the task is first scheduled.
    let _guard = runtime.enter();
    let (Ok(mut int), Ok(mut term)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else { return };
    runtime.spawn(async move {
        for count in 1.. {
            tokio::select! {
                _ = int.recv() => {}
                _ = term.recv() => {}
            }
            use runbook_core::exec::Observer;
            match count {
                1 => {
                    view.notice("stopping after the action in hand; once more stops at once");
                    stop.cancel();
                }
                2 => {
                    view.notice("stopping now: the action in hand will be in doubt");
                    abort.cancel();
                }
                _ => {
                    crate::terminal::restore();
                    std::process::exit(130)
                }
            }
        }
    });
}

/// For the crash harness: `RUNBOOK_CRASH=entry:7` kills this process (SIGKILL) after it has appended its 7th entry, `acted:3` after its
/// 3rd action has acted and before its outcome is recorded.
///
/// Only in debug builds: the binary that people use has no such switch.
fn crash_point() -> Option<Crash> {
    if !cfg!(debug_assertions) {
        return None;
    }
    let wish = std::env::var("RUNBOOK_CRASH").ok()?;
    let (kind, n) = wish.split_once(':')?;
    let n: u64 = n.parse().ok()?;
    let entries = match kind {
        "entry" => true,
        "acted" => false,
        _ => return None,
    };
    let count = std::sync::atomic::AtomicU64::new(0);
    Some(Arc::new(move |point| {
        let counts = matches!((point, entries), (CrashPoint::Entry(_), true) | (CrashPoint::Acted(_), false));
        if counts && count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1 == n {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            std::thread::sleep(std::time::Duration::from_secs(60));
        }
    }))
}
