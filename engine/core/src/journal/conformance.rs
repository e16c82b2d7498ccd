//! What every [`Store`] must do, run on each of them. A new store calls [`all`] with a way to open it.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::canonical::entry_hash;
use super::{Acquired, Batch, Body, Entry, GENESIS, Message, NewRun, Operator, Purpose, State, Store};
use crate::{Code, Value};

/// Opens the same store again, as another process would; each call of the outer function makes a new, empty one.
pub(crate) type Open = Box<dyn Fn() -> Arc<dyn Store>>;

pub(crate) fn all(fresh: &dyn Fn() -> Open) {
    for (name, case) in CASES {
        eprintln!("case: {name}");
        case(&fresh());
    }
}

type Case = (&'static str, fn(&Open));

const CASES: &[Case] = &[
    ("a chain", a_chain),
    ("later entries keep their order", later_entries_keep_their_order),
    ("fencing", fencing),
    ("take-over", take_over),
    ("fences grow across releases", fences_grow_across_releases),
    ("threads share commits", threads_share_commits),
    ("two handles", two_handles),
    ("runs are found by prefix", runs_are_found_by_prefix),
    ("sources", sources),
    ("messages", messages),
    ("facts", facts),
    ("odd text", odd_text),
    ("a callback may use the store", a_callback_may_use_the_store),
];

pub(crate) fn now() -> Timestamp {
    "2026-01-02T03:04:05.678Z".parse().unwrap()
}

pub(crate) fn log(n: usize) -> Batch {
    Batch::one(now(), message(&format!("message {n}")))
}

pub(crate) fn message(text: &str) -> Body {
    Body::Log { path: "Phase/Step".into(), level: "info".into(), message: text.into() }
}

pub(crate) fn operator(pid: u32) -> Operator {
    Operator { user: "ann".into(), host: "desk".into(), pid, pid_start: 99, boot: "b".into(), ..Operator::default() }
}

pub(crate) fn new_run(store: &dyn Store, id: &str, environment: &str) {
    let sources = BTreeMap::from([("runbooks/a.rhai".to_string(), b"step".to_vec())]);
    store.create(&NewRun { id: id.into(), environment: environment.into(), runbook: "runbooks/a.rhai".into(), sources }).unwrap();
}

pub(crate) fn lock(store: &dyn Store, run: &str, environment: &str) -> i64 {
    match store.acquire(environment, run, &operator(1), now(), None).unwrap() {
        Acquired::Yes(fence) => fence,
        Acquired::Held(h) => panic!("held by {h:?}"),
    }
}

/// A new run `r` in `production` and its fence.
pub(crate) fn ready(store: &dyn Store) -> i64 {
    new_run(store, "r", "production");
    lock(store, "r", "production")
}

pub(crate) fn read(store: &dyn Store, run: &str, from: u64) -> Vec<Entry> {
    let mut all = Vec::new();
    store
        .entries(run, from, &mut |e| {
            all.push(e);
            Ok(())
        })
        .unwrap();
    all
}

/// The messages of a run's entries, after its chain was found unbroken.
pub(crate) fn chained(store: &dyn Store, run: &str) -> Vec<String> {
    let entries = read(store, run, 0);
    let mut prev = GENESIS.to_string();
    for (i, e) in entries.iter().enumerate() {
        assert_eq!((e.seq, &e.run[..], &e.prev), (i as u64, run, &prev));
        assert_eq!(e.hash, entry_hash(e).unwrap());
        prev.clone_from(&e.hash);
    }
    let info = store.run(run).unwrap();
    assert_eq!((info.entries, info.head), (entries.len() as u64, prev));
    entries
        .iter()
        .map(|e| match e.body().unwrap() {
            Body::Log { message, .. } => message,
            other => other.kind(),
        })
        .collect()
}

fn code<T: std::fmt::Debug>(r: crate::Result<T>) -> Code {
    r.unwrap_err().code
}

fn a_chain(open: &Open) {
    let store = open();
    let fence = ready(&*store);
    assert_eq!(store.run("r").unwrap().head, GENESIS);
    assert!(read(&*store, "r", 0).is_empty());
    let started =
        Body::SessionStarted { purpose: Purpose::Run, operator: operator(1), fence, edited: None, matching: None, took_over: None };
    let two = Batch { bodies: vec![(now(), started.clone()), (now(), message("b"))], state: Some(State::Running), ..Batch::default() };
    store.append("r", fence, two).unwrap();
    store.append("r", fence, Batch { state: Some(State::Paused), ..log(3) }).unwrap();
    assert_eq!(chained(&*store, "r"), ["session_started", "b", "message 3"]);
    let entries = read(&*store, "r", 0);
    assert_eq!(entries[0].body().unwrap(), started);
    assert_eq!(entries[0].time, "2026-01-02T03:04:05.678Z");
    assert_eq!(read(&*store, "r", 1), entries[1..]);
    assert_eq!(read(&*store, "r", 3), []);
    assert_eq!(read(&*store, "r", 9), []);
    let info = store.run("r").unwrap();
    assert_eq!((info.state, info.environment.as_str(), info.created.as_str()), (State::Paused, "production", "2026-01-02T03:04:05.678Z"));
    assert_eq!(code(store.entries("nobody", 0, &mut |_| Ok(()))), Code::NO_RUN);
    assert_eq!(code(store.append("nobody", fence, log(0))), Code::NO_RUN);
    assert_eq!(code(store.create(&NewRun { id: "r".into(), ..NewRun::default() })), Code::INTERNAL);
}

fn later_entries_keep_their_order(open: &Open) {
    let store = open();
    let fence = ready(&*store);
    store.append("r", fence, log(0)).unwrap();
    store.append_later("r", fence, log(1)).unwrap();
    store.append_later("r", fence, Batch { facts: BTreeMap::from([("k".into(), Value::Int(1))]), ..log(2) }).unwrap();
    assert_eq!(chained(&*store, "r").len(), 1, "not before the next append");
    store.append("r", fence, log(3)).unwrap();
    store.append_later("r", fence, log(4)).unwrap();
    store.flush("r", fence).unwrap();
    store.flush("r", fence).unwrap();
    assert_eq!(chained(&*store, "r"), ["message 0", "message 1", "message 2", "message 3", "message 4"]);
    assert_eq!(store.fact("production", "k").unwrap(), Some(Value::Int(1)));
    // Very many: still in order, whenever they are written.
    for n in 5..3000 {
        store.append_later("r", fence, log(n)).unwrap();
    }
    store.flush("r", fence).unwrap();
    let all = chained(&*store, "r");
    assert!(all.len() == 3000 && all.iter().enumerate().all(|(i, m)| *m == format!("message {i}")));
}

fn fencing(open: &Open) {
    let store = open();
    new_run(&*store, "r", "production");
    assert_eq!(code(store.append("r", 0, log(0))), Code::FENCED_OFF, "without a lock");
    let fence = lock(&*store, "r", "production");
    assert_eq!(code(store.append("r", fence + 1, log(0))), Code::FENCED_OFF);
    assert_eq!(code(store.append("r", fence - 1, log(0))), Code::FENCED_OFF);
    new_run(&*store, "other", "production");
    assert_eq!(code(store.append("other", fence, log(0))), Code::FENCED_OFF, "the lock is another run's");
    assert_eq!(code(store.replace_sources("r", fence + 1, &BTreeMap::new())), Code::FENCED_OFF);
    store.append("r", fence, log(0)).unwrap();
    store.release("production", fence).unwrap();
    assert_eq!(code(store.append("r", fence, log(1))), Code::FENCED_OFF, "given back");
    assert_eq!(code(store.renew("production", fence, now())), Code::FENCED_OFF);
    // What was left before the lock was lost does not slip in with a later holder's commit.
    let fence = lock(&*store, "r", "production");
    store.append_later("r", fence, log(8)).unwrap();
    store.release("production", fence).unwrap();
    let fence = lock(&*store, "r", "production");
    store.append("r", fence, log(9)).unwrap();
    assert_eq!(chained(&*store, "r"), ["message 0", "message 9"]);
}

fn take_over(open: &Open) {
    let (a, b) = (open(), open());
    let first = ready(&*a);
    a.append("r", first, log(0)).unwrap();
    a.append_later("r", first, log(1)).unwrap();
    // Another process sees who holds it, and takes it over from exactly that holder.
    let Acquired::Held(holder) = b.acquire("production", "r", &operator(2), now(), None).unwrap() else { panic!() };
    assert_eq!((holder.fence, holder.run.as_str(), holder.operator), (first, "r", operator(1)));
    let wrong = b.acquire("production", "r", &operator(2), now(), Some(first + 7)).unwrap();
    assert!(matches!(wrong, Acquired::Held(_)));
    let Acquired::Yes(second) = b.acquire("production", "r", &operator(2), now(), Some(first)).unwrap() else { panic!() };
    assert!(second > first);
    b.append("r", second, log(2)).unwrap();
    // The one that was thought dead comes back to life and can write nothing.
    assert_eq!(code(a.append("r", first, log(3))), Code::FENCED_OFF);
    assert_eq!(code(a.renew("production", first, now())), Code::FENCED_OFF);
    a.release("production", first).unwrap();
    b.append("r", second, log(4)).unwrap();
    assert_eq!(chained(&*b, "r"), ["message 0", "message 2", "message 4"]);
    assert_eq!(chained(&*a, "r"), chained(&*b, "r"));
}

fn fences_grow_across_releases(open: &Open) {
    let store = open();
    new_run(&*store, "r", "production");
    assert_eq!(store.holder("production").unwrap(), None);
    let mut last = 0;
    for _ in 0..3 {
        let fence = lock(&*store, "r", "production");
        assert!(fence > last);
        last = fence;
        let until = now() + SignedDuration::from_secs(30);
        store.renew("production", fence, until).unwrap();
        let holder = store.holder("production").unwrap().unwrap();
        assert_eq!((holder.fence, holder.until), (fence, until));
        store.release("production", fence - 1).unwrap();
        assert!(store.holder("production").unwrap().is_some(), "an old fence releases nothing");
        store.release("production", fence).unwrap();
        assert_eq!(store.holder("production").unwrap(), None);
    }
    // The same process takes its own lock again.
    let one = lock(&*store, "r", "production");
    let two = lock(&*store, "r", "production");
    assert!(two > one);
    // Another environment has a lock of its own.
    new_run(&*store, "s", "staging");
    assert_eq!(lock(&*store, "s", "staging"), 1);
}

fn threads_share_commits(open: &Open) {
    let store = open();
    let fence = ready(&*store);
    std::thread::scope(|s| {
        for t in 0..8 {
            let store = store.clone();
            s.spawn(move || {
                for n in 0..40 {
                    store.append_later("r", fence, Batch::one(now(), message(&format!("{t} later {n}")))).unwrap();
                    store.append("r", fence, Batch::one(now(), message(&format!("{t} now {n}")))).unwrap();
                    let mine = format!("{t} now {n}");
                    if n % 16 == 0 {
                        assert!(read(&*store, "r", 0).iter().any(|e| e.data["message"] == *mine), "what was appended can be read");
                    }
                }
            });
        }
    });
    let all = chained(&*store, "r");
    assert_eq!(all.len(), 640);
    for t in 0..8 {
        let mine: Vec<_> = all.iter().filter(|m| m.starts_with(&format!("{t} "))).collect();
        let expected: Vec<_> = (0..40).flat_map(|n| [format!("{t} later {n}"), format!("{t} now {n}")]).collect();
        assert!(mine.into_iter().eq(expected.iter()), "each thread's entries are in its order");
    }
}

fn two_handles(open: &Open) {
    let (a, b) = (open(), open());
    let fence = ready(&*a);
    new_run(&*b, "s", "staging");
    let other = lock(&*b, "s", "staging");
    // Two controllers of two environments, and one run written through both handles.
    for n in 0..20 {
        a.append("r", fence, log(2 * n)).unwrap();
        b.append("r", fence, log(2 * n + 1)).unwrap();
        b.append("s", other, log(n)).unwrap();
    }
    let all = chained(&*a, "r");
    assert!(all.len() == 40 && all.iter().enumerate().all(|(i, m)| *m == format!("message {i}")));
    assert_eq!(chained(&*a, "s").len(), 20);
    assert_eq!(a.runs().unwrap(), b.runs().unwrap());
    std::thread::scope(|s| {
        for store in [&a, &b] {
            s.spawn(move || (0..30).for_each(|n| store.append("r", fence, log(n)).unwrap()));
        }
    });
    assert_eq!(chained(&*b, "r").len(), 100);
}

fn runs_are_found_by_prefix(open: &Open) {
    let store = open();
    assert_eq!(store.runs().unwrap(), []);
    for id in ["abc-1", "abc-12", "xyz_%"] {
        new_run(&*store, id, "production");
    }
    assert_eq!(store.runs().unwrap().iter().map(|r| r.id.as_str()).collect::<Vec<_>>(), ["xyz_%", "abc-12", "abc-1"], "newest first");
    assert_eq!(store.run("x").unwrap().id, "xyz_%");
    assert_eq!(store.run("abc-1").unwrap().id, "abc-1", "a whole id is not ambiguous");
    for bad in ["abc", "", "_", "%", "abc-123"] {
        assert_eq!(code(store.run(bad)), Code::NO_RUN, "{bad:?}");
    }
    assert_eq!(store.run("abc-12").unwrap().state, State::Running);
}

fn sources(open: &Open) {
    let store = open();
    let fence = ready(&*store);
    new_run(&*store, "s", "staging");
    assert_eq!(store.source("r", "runbooks/a.rhai").unwrap().as_deref(), Some(&b"step"[..]));
    assert_eq!(store.source("r", "nothing").unwrap(), None);
    assert_eq!(store.source("nobody", "runbooks/a.rhai").unwrap(), None);
    let edited = BTreeMap::from([("runbooks/a.rhai".to_string(), b"edited".to_vec()), ("templates/x".to_string(), vec![0, 255, 10])]);
    store.replace_sources("r", fence, &edited).unwrap();
    assert_eq!(store.sources("r").unwrap(), edited);
    assert_eq!(store.sources("s").unwrap()["runbooks/a.rhai"], b"step", "another run keeps its own");
}

fn messages(open: &Open) {
    let (a, b) = (open(), open());
    ready(&*a);
    let message = |answer: &str, path: &str| Message {
        kind: "gate".into(),
        path: path.into(),
        answer: answer.into(),
        by: "ann@desk".into(),
        comment: Some("all \"green\"".into()),
    };
    b.post("r", &message("no", "Go?")).unwrap();
    b.post("r", &message("yes", "Go?")).unwrap();
    b.post("r", &message("yes", "Other?")).unwrap();
    assert_eq!(code(b.post("nobody", &message("yes", "Go?"))), Code::NO_RUN);
    assert_eq!(a.messages("r", "gate", "Go?").unwrap(), [message("no", "Go?"), message("yes", "Go?")]);
    assert_eq!(a.messages("r", "gate", "Go?").unwrap().len(), 2, "looking does not remove");
    assert_eq!(a.messages("r", "doubt", "Go?").unwrap(), []);
    a.clear_messages("r", "gate", "Go?").unwrap();
    assert_eq!(b.messages("r", "gate", "Go?").unwrap(), []);
    assert_eq!(b.messages("r", "gate", "Other?").unwrap().len(), 1);
}

fn facts(open: &Open) {
    let store = open();
    let fence = ready(&*store);
    let set = |v: Value| Batch { facts: BTreeMap::from([("ttl".to_string(), v)]), ..log(0) };
    assert_eq!(store.fact("production", "ttl").unwrap(), None);
    let value = Value::Map(BTreeMap::from([("at".into(), Value::Time(now())), ("of".into(), Value::Float(0.5))]));
    store.append("r", fence, set(value.clone())).unwrap();
    assert_eq!(store.fact("production", "ttl").unwrap(), Some(value));
    assert_eq!(store.fact("staging", "ttl").unwrap(), None);
    assert_eq!(code(store.append("r", fence + 1, set(Value::Int(5)))), Code::FENCED_OFF);
    assert_eq!(code(store.append("r", fence + 1, set(Value::Unit))), Code::FENCED_OFF);
    assert!(store.fact("production", "ttl").unwrap().is_some_and(|v| v.as_map().is_some()), "a fenced-off batch sets and removes nothing");
    let other = Batch { facts: BTreeMap::from([("other".to_string(), Value::Int(1)), ("ttl".to_string(), Value::Unit)]), ..log(0) };
    store.append_later("r", fence, other).unwrap();
    store.append("r", fence, set(Value::Unit)).unwrap();
    assert_eq!(open().fact("production", "ttl").unwrap(), None, "set to nothing: removed; removed again: nothing happens");
    assert_eq!(open().fact("production", "other").unwrap(), Some(Value::Int(1)));
    store.append("r", fence, set(Value::Int(2))).unwrap();
    assert_eq!(open().fact("production", "ttl").unwrap(), Some(Value::Int(2)));
}

fn odd_text(open: &Open) {
    let store = open();
    let fence = ready(&*store);
    let texts = ["", "\u{0}\u{1f}\u{7f}\u{2028}", "\"\\/\u{10ffff}", "日本語 – naïve\r\n\t", "'; DROP TABLE entries; --"];
    for t in texts {
        store.append("r", fence, Batch::one(now(), message(t))).unwrap();
    }
    assert_eq!(chained(&*store, "r"), texts);
}

fn a_callback_may_use_the_store(open: &Open) {
    let store = open();
    let fence = ready(&*store);
    for n in 0..3 {
        store.append("r", fence, log(n)).unwrap();
    }
    let mut seen = 0;
    store
        .entries("r", 0, &mut |e| {
            seen += 1;
            assert_eq!(store.source("r", "runbooks/a.rhai")?.unwrap(), b"step");
            store.append("r", fence, log(100 + e.seq as usize))
        })
        .unwrap();
    assert_eq!(seen, 3, "what is appended meanwhile is not read");
    // An error of the callback ends the reading.
    let mut seen = 0;
    let stop = store.entries("r", 0, &mut |_| {
        seen += 1;
        Err(crate::Error::internal("enough"))
    });
    assert_eq!((code(stop), seen), (Code::INTERNAL, 1));
    assert_eq!(chained(&*store, "r").len(), 6);
}
