//! Journaled actions a second beside raw synced SQLite commits on the same disk, and the reading of a long journal.
//!
//! `cargo bench -p runbook-core --bench journal [-- --json] [--dir FOLDER] [--seconds N] [--only NAME]`. The rounds of all candidates take turns, so
//! that a disturbance of the machine meets each of them. The median round counts, for the ratio the median of the rounds' ratios.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use runbook_core::journal::{Acquired, Batch, Body, NewRun, Operator, SqliteStore, Store, Via};
use rusqlite::Connection;

const ROUNDS: usize = 25;
const LONG: u64 = 100_000;
const DIGEST: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn intent(n: u64) -> Body {
    Body::Intent {
        path: format!("Cutover/Stop writes on the old database/{n}"),
        action: format!("r-20260102-{n:016x}"),
        name: "Host.run".into(),
        call: "host(\"old\").run(\"systemctl stop shop\")".into(),
        digest: DIGEST.into(),
        effect: "once".into(),
        on: Some("old".into()),
    }
}

fn outcome(n: u64) -> Body {
    Body::Outcome {
        path: format!("Cutover/Stop writes on the old database/{n}"),
        action: format!("r-20260102-{n:016x}"),
        name: "Host.run".into(),
        call: None,
        digest: DIGEST.into(),
        effect: "once".into(),
        value: Some(serde_json::json!({ "$": "Output", "v": { "stdout": "stopped\n", "stderr": "", "status": 0 } })),
        error: None,
        changed: Some(true),
        note: None,
        ms: 12,
        via: Via::Act,
    }
}

fn one(body: Body) -> Batch {
    Batch::one(Timestamp::now(), body)
}

/// What is measured: a name, and what does it for a while and tells how many.
struct Candidate {
    name: String,
    run: Box<dyn Fn(Duration) -> Fallible<u64>>,
    rates: Vec<f64>,
}

/// One INSERT of a text of `size` bytes a commit.
fn raw(dir: &Path, size: usize) -> Fallible<Candidate> {
    let conn = Connection::open(dir.join(format!("raw-{size}.db")))?;
    conn.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t (id INTEGER PRIMARY KEY, data TEXT NOT NULL);")?;
    let text = "x".repeat(size);
    Ok(Candidate {
        name: format!("raw SQLite, one INSERT of {size} bytes a synced commit"),
        run: Box::new(move |length| {
            let (begin, mut n) = (Instant::now(), 0);
            while begin.elapsed() < length {
                conn.prepare_cached("INSERT INTO t (data) VALUES (?1)")?.execute([&text])?;
                n += 1;
            }
            Ok(n)
        }),
        rates: Vec::new(),
    })
}

struct Opened {
    store: SqliteStore,
    fence: i64,
}

fn open(dir: &Path, name: &str) -> Fallible<Arc<Opened>> {
    let store = SqliteStore::open(dir.join(name).join("journal.db"))?;
    store.create(&NewRun { id: "r-20260102".into(), environment: "production".into(), ..NewRun::default() })?;
    let Acquired::Yes(fence) = store.acquire("production", "r-20260102", &Operator::default(), Timestamp::now(), None)? else {
        return Err("the lock is held".into());
    };
    Ok(Arc::new(Opened { store, fence }))
}

/// An action: its intent synced, its outcome left for the next commit.
fn actions(dir: &Path, threads: u64) -> Fallible<Candidate> {
    let opened = open(dir, &format!("actions-{threads}"))?;
    let next = Arc::new(AtomicU64::new(0));
    let name =
        if threads == 1 { "journaled actions, one after the other".into() } else { format!("journaled actions, {threads} branches") };
    Ok(Candidate {
        name,
        run: Box::new(move |length| {
            let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
            let work = || -> Result<(), runbook_core::Error> {
                while !stop.load(Ordering::Relaxed) {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    opened.store.append("r-20260102", opened.fence, one(intent(n)))?;
                    opened.store.append_later("r-20260102", opened.fence, one(outcome(n)))?;
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            };
            std::thread::scope(|s| -> Fallible<()> {
                let others: Vec<_> = (0..threads).map(|_| s.spawn(work)).collect();
                std::thread::sleep(length);
                stop.store(true, Ordering::Relaxed);
                for other in others {
                    other.join().map_err(|_| "a thread panicked")??;
                }
                Ok(())
            })?;
            opened.store.flush("r-20260102", opened.fence)?;
            Ok(count.load(Ordering::Relaxed))
        }),
        rates: Vec::new(),
    })
}

/// Milliseconds to read a journal of [`LONG`] entries: as entries (each checked against its hash), and as bodies too.
fn reading(dir: &Path) -> Fallible<(f64, f64)> {
    let opened = open(dir, "long")?;
    for n in 0..LONG / 2 {
        opened.store.append_later("r-20260102", opened.fence, one(intent(n)))?;
        opened.store.append_later("r-20260102", opened.fence, one(outcome(n)))?;
    }
    opened.store.flush("r-20260102", opened.fence)?;
    let (mut entries, mut bodies) = (Vec::new(), Vec::new());
    for round in 0..10 {
        // As a new controller does: with a store just opened.
        let store = SqliteStore::open(dir.join("long/journal.db"))?;
        let (begin, mut n) = (Instant::now(), 0);
        store.entries("r-20260102", 0, &mut |mut entry| {
            if round % 2 == 1 {
                std::hint::black_box(Body::take(&mut entry)?);
            }
            n += 1;
            Ok(())
        })?;
        if n != LONG {
            return Err(format!("{n} entries were read").into());
        }
        let ms = begin.elapsed().as_secs_f64() * 1e3;
        if round % 2 == 1 { bodies.push(ms) } else { entries.push(ms) }
    }
    Ok((median(&mut entries), median(&mut bodies)))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn main() -> Fallible<()> {
    let args: Vec<String> = std::env::args().collect();
    let after = |flag: &str| args.iter().position(|a| a == flag).and_then(|i| args.get(i + 1)).cloned();
    let json = args.iter().any(|a| a == "--json");
    let base = after("--dir").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let seconds: f64 = after("--seconds").map_or(Ok(0.2), |s| s.parse())?;
    let dir = tempfile::tempdir_in(base)?;

    // An action's two entries hold about 1,000 bytes; the raw INSERT of one small row is the harder mark.
    let mut candidates = vec![raw(dir.path(), 100)?, raw(dir.path(), 1000)?];
    for threads in [1, 2, 4, 8] {
        candidates.push(actions(dir.path(), threads)?);
    }
    if let Some(only) = after("--only") {
        candidates.retain(|c| c.name.contains(&only));
    }
    for _ in 0..ROUNDS {
        for c in &mut candidates {
            let begin = Instant::now();
            let n = (c.run)(Duration::from_secs_f64(seconds))?;
            c.rates.push(n as f64 / begin.elapsed().as_secs_f64());
        }
    }
    let marks = candidates.first().map(|c| c.rates.clone()).unwrap_or_default();
    let results: Vec<(String, f64, f64)> = candidates
        .iter_mut()
        .map(|c| {
            let mut ratios: Vec<f64> = c.rates.iter().zip(&marks).map(|(rate, mark)| rate / mark).collect();
            (c.name.clone(), median(&mut c.rates), median(&mut ratios))
        })
        .collect();
    let (entries_ms, bodies_ms) = if after("--only").is_some() { (0.0, 0.0) } else { reading(dir.path())? };

    if json {
        let rates: Vec<_> = results
            .iter()
            .map(|(name, rate, ratio)| serde_json::json!({ "name": name, "per_second": rate.round(), "ratio": ratio }))
            .collect();
        println!("{}", serde_json::json!({ "rates": rates, "read_entries": LONG, "read_ms": entries_ms, "read_bodies_ms": bodies_ms }));
        return Ok(());
    }
    println!("| what | a second | ratio |\n|---|---:|---:|");
    for (name, rate, ratio) in &results {
        println!("| {name} | {rate:.0} | {ratio:.2} |");
    }
    println!(
        "\n| reading {LONG} entries | ms |\n|---|---:|\n| each checked against its hash | {entries_ms:.0} |\n| and as bodies | {bodies_ms:.0} |"
    );
    Ok(())
}
