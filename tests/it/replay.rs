//! Old journals are replayed for ever: a run recorded by an earlier version is gone through by this one, without acting.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use runbook_core::cancel::Cancel;
use runbook_core::clock::System;
use runbook_core::exec::{Liveness, NoAsk, Observer, Surroundings};
use runbook_core::inventory::Environment;
use runbook_core::journal::memory::MemoryStore;
use runbook_core::journal::{Batch, Body, Entry, NewRun, Operator, State, Store};
use runbook_core::primitive::Files;
use runbook_core::secret::Redactor;
use runbook_core::{Code, Error, Result};
use runbook_script::drive::{Controller, ENVIRONMENT};
use runbook_testkit::World;

struct NoFiles;
impl Files for NoFiles {
    fn read(&self, path: &str) -> Result<Vec<u8>> {
        Err(Error::new(Code::MISSING_FILE, format!("{path} was not kept with the run")))
    }
}

/// Remembers what this controller recorded itself.
#[derive(Default)]
struct New(parking_lot::Mutex<Vec<Body>>);
impl Observer for New {
    fn entry(&self, _: jiff::Timestamp, body: &Body, replayed: bool) {
        if !replayed {
            self.0.lock().push(body.clone());
        }
    }
}

fn kept(dir: &Path, below: &Path, out: &mut BTreeMap<String, Vec<u8>>) {
    for e in std::fs::read_dir(below).unwrap().flatten() {
        if e.path().is_dir() {
            kept(dir, &e.path(), out);
        } else {
            let name = e.path().strip_prefix(dir).unwrap().to_string_lossy().into_owned();
            out.insert(name, std::fs::read(e.path()).unwrap());
        }
    }
}

/// Resumes a recorded run whose last entry (its end) is taken off; its hosts are long gone.
fn replay(journal: &Path, sources: &Path) {
    let text = std::fs::read_to_string(journal).unwrap();
    let entries: Vec<Entry> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let mut files = BTreeMap::new();
    kept(sources, sources, &mut files);
    let env = Environment::from_json(&serde_json::from_slice(&files[ENVIRONMENT]).unwrap()).unwrap();
    let Body::RunStarted { runbook, .. } = entries[0].body().unwrap() else { panic!("the first entry is {}", entries[0].kind) };
    let store = Arc::new(MemoryStore::default());
    let id = entries[0].run.clone();
    store.create(&NewRun { id: id.clone(), environment: env.name.clone(), runbook, sources: files }).unwrap();
    let dead = Operator { pid: 1, ..Operator::default() };
    let until = jiff::Timestamp::now();
    let runbook_core::journal::Acquired::Yes(fence) = store.acquire(&env.name, &id, &dead, until, None).unwrap() else { panic!("held") };
    let bodies: Vec<_> = entries.iter().map(|e| (e.time.parse().unwrap(), e.body().unwrap())).collect();
    let last = bodies.iter().rposition(|(_, b)| matches!(b, Body::SessionEnded { .. })).unwrap();
    store.append(&id, fence, Batch { bodies: bodies[..last].to_vec(), state: Some(State::Running), ..Batch::default() }).unwrap();

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let seen = Arc::new(New::default());
    let controller = Controller {
        around: Surroundings {
            store: store.clone(),
            clock: Arc::new(System),
            registry: Arc::new({
                let mut r = runbook_primitives::registry();
                // There is nobody left to clean up on.
                r.hooks.clear();
                r
            }),
            shared: Arc::default(),
            secrets: Arc::new(World::default()),
            redactor: Redactor::default(),
            observer: seen.clone(),
            ask: Arc::new(NoAsk),
            runtime: runtime.handle().clone(),
            stop: Cancel::default(),
            abort: Cancel::default(),
            crash: None,
        },
        files: Arc::new(NoFiles),
        operator: Operator { pid: 2, ..Operator::default() },
        alive: Arc::new(|_| Liveness::Dead),
        take_over: false,
    };
    let ended = controller.resume(&id, false).unwrap();
    assert_eq!(ended.state, State::Finished, "{}: {:?}", journal.display(), ended.error);
    let acted: Vec<Body> =
        seen.0.lock().iter().filter(|b| !matches!(b, Body::SessionStarted { .. } | Body::SessionEnded { .. })).cloned().collect();
    assert_eq!(acted, [], "{}: replay did something new", journal.display());
}

#[test]
fn every_old_run_is_replayed_without_acting() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/journals");
    let mut tried = 0;
    for e in std::fs::read_dir(&dir).unwrap().flatten() {
        let sources = e.path();
        if sources.extension().is_some_and(|x| x == "sources") {
            replay(&sources.with_extension("jsonl"), &sources);
            tried += 1;
        }
    }
    assert!(tried > 0, "no old run was found");
}
