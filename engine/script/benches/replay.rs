//! Replay of recorded actions through the language: `cargo bench -p runbook-script --bench replay [-- --json]`.
//!
//! Records runs of several lengths in a SQLite store on disk, each ending at a gate that nobody answers, and times their resumption: the journal is
//! read, its chain checked, the script evaluated from its start with every action answered from the record.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use runbook_core::cancel::Cancel;
use runbook_core::clock::System;
use runbook_core::exec::{Liveness, NoAsk, Quiet, Surroundings};
use runbook_core::inventory::Environment;
use runbook_core::journal::{Operator, SqliteStore, State};
use runbook_core::primitive::{Cx, Files, Outcome, Primitive, Registry, SecretSource};
use runbook_core::secret::{Redactor, Secret};
use runbook_core::{Call, Code, Effect, Error, Result, Spec, Ty};
use runbook_script::drive::Controller;

struct Look(Spec);

#[async_trait::async_trait]
impl Primitive for Look {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, _: &Cx, call: &Call) -> Result<Outcome> {
        Ok(format!("seen {}", call.arg(0)).into())
    }
}

struct Script(String);
impl Files for Script {
    fn read(&self, _: &str) -> Result<Vec<u8>> {
        Ok(self.0.clone().into_bytes())
    }
}

struct NoSecrets;
impl SecretSource for NoSecrets {
    fn get(&self, name: &str) -> Result<Secret> {
        Err(Error::new(Code::MISSING_SECRET, name))
    }
}

fn controller(store: &Path, actions: u32, runtime: &tokio::runtime::Runtime, pid: u32) -> Result<Controller> {
    let mut registry = Registry::default();
    registry.add(Look(Spec::function("look", Effect::Read, "Looks.").arg("at", Ty::Int, "Where.").returns(Ty::Str)));
    let script = format!("for i in 0..{} {{ step `s${{i}}` {{ for j in 0..100 {{ look(j); }} }} }}\ngate \"Go?\";", actions / 100);
    Ok(Controller {
        around: Surroundings {
            store: Arc::new(SqliteStore::open(store)?),
            clock: Arc::new(System),
            registry: Arc::new(registry),
            shared: Arc::default(),
            secrets: Arc::new(NoSecrets),
            redactor: Redactor::default(),
            observer: Arc::new(Quiet),
            ask: Arc::new(NoAsk),
            runtime: runtime.handle().clone(),
            stop: Cancel::default(),
            abort: Cancel::default(),
            crash: None,
        },
        files: Arc::new(Script(script)),
        operator: Operator { pid, ..Operator::default() },
        alive: Arc::new(|_| Liveness::Dead),
        take_over: false,
    })
}

fn measure(actions: u32, runtime: &tokio::runtime::Runtime) -> Result<(Duration, Duration)> {
    let dir = std::env::temp_dir().join(format!("runbook-bench-replay-{}-{actions}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|e| Error::internal(e.to_string()))?;
    let db = dir.join("runs.db");
    let env = Arc::new(Environment { name: "bench".into(), ..Environment::default() });
    let began = Instant::now();
    let ended = controller(&db, actions, runtime, 1)?.run("bench", &env, "bench.rhai")?;
    let recorded = began.elapsed();
    if ended.state != State::Paused {
        return Err(ended.error.unwrap_or_else(|| Error::internal("the run did not stop at its gate")));
    }
    let mut best = Duration::MAX;
    for pid in 2..5 {
        let c = controller(&db, actions, runtime, pid)?;
        let began = Instant::now();
        let ended = c.resume("bench", false)?;
        best = best.min(began.elapsed());
        if ended.state != State::Paused {
            return Err(ended.error.unwrap_or_else(|| Error::internal("the resumed run did not stop at its gate")));
        }
    }
    let _ = std::fs::remove_dir_all(&dir);
    Ok((recorded, best))
}

fn main() {
    let json = std::env::args().any(|a| a == "--json");
    let Ok(runtime) = tokio::runtime::Runtime::new() else { return };
    let mut rows = Vec::new();
    for actions in [25_000, 50_000, 100_000, 200_000] {
        match measure(actions, &runtime) {
            Ok((recorded, replayed)) => rows.push((actions, recorded, replayed)),
            Err(e) => {
                eprintln!("{e}");
                std::process::exit(1);
            }
        }
    }
    if json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(n, r, p)| serde_json::json!({ "actions": n, "record_s": r.as_secs_f64(), "replay_s": p.as_secs_f64() }))
            .collect();
        println!("{}", serde_json::Value::Array(rows));
        return;
    }
    println!("{:>9} {:>12} {:>12} {:>16}", "actions", "recorded", "replayed", "replayed a second");
    for (n, r, p) in rows {
        println!("{n:>9} {:>10.2} s {:>10.3} s {:>16.0}", r.as_secs_f64(), p.as_secs_f64(), f64::from(n) / p.as_secs_f64());
    }
}
