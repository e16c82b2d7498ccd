//! One action: answered from the record, or done with its intent recorded before and its outcome after.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::frame::{Frame, without_attempts};
use super::history::Recorded;
use super::run::{CrashPoint, Mode, Run};
use crate::cancel::Cancel;
use crate::digest::sha256_hex;
use crate::error::{Code, Error, Kind, Result};
use crate::journal::{Batch, Body, Via};
use crate::primitive::{ActionId, Cx, Outcome, Primitive};
use crate::spec::{Call, Effect};
use crate::value::Value;

/// How long a primitive may take to stop after a timeout before it is given up.
const GRACE: Duration = Duration::from_secs(10);

/// The digest of a call: its name, receiver, arguments and options, secrets by name.
fn digest(name: &str, call: &Call) -> String {
    let json = serde_json::json!([
        name,
        call.receiver.clone().map_or(serde_json::Value::Null, |r| Value::from(r).to_json()),
        Value::List(call.args.clone()).to_json(),
        Value::Map(call.options.clone()).to_json(),
    ]);
    // `Value` keeps maps in key order and the outer level is an array, so this text is the same on every replay.
    sha256_hex(json.to_string().as_bytes())
}

/// The host or other thing that a call acts on.
fn target(call: &Call) -> Option<String> {
    let r = call.receiver.as_ref()?;
    let host = r.str("host");
    if !host.is_empty() { Some(host.to_string()) } else { r.name.clone() }
}

impl Run {
    pub(super) fn action_id(&self, path: &str) -> ActionId {
        let hash = sha256_hex(path.as_bytes());
        let run: String = self.parts.id.chars().take(47).collect();
        ActionId(format!("{run}-{}", hash.get(..12).unwrap_or("")))
    }

    /// Calls a primitive at this place: returns the recorded outcome, or acts.
    ///
    /// # Errors
    /// The primitive's own; `RB0016` when the record says another call was made here; the reasons to stop.
    pub fn act(self: &Arc<Self>, frame: &Frame, prim: &Arc<dyn Primitive>, call: &Call) -> Result<Value> {
        let base = frame.ordinal();
        let spec = prim.spec();
        let name = spec.full_name();
        let digest = digest(&name, call);
        let mut path = base.clone();
        let mut attempt = 1;
        loop {
            if let Some(rec) = self.parts.history.outcomes.get(&path) {
                // A failed action outside of any step is what the last controller stopped at: it gets another attempt, which an edited
                // runbook may make in another way.
                if rec.value.is_err() && !frame.in_step && !frame.undo && self.retry_here(&base) {
                    attempt += 1;
                    path = format!("{base}@{attempt}");
                    continue;
                }
                self.must_match(&path, rec, &name, &digest, call, spec.name)?;
                return match &rec.value {
                    Ok(json) => Value::from_json(json),
                    Err(e) => Err(e.clone()),
                };
            }
            break;
        }
        let act = Act { run: self, prim, call, name, digest, path, base, attempt };
        if let Some(intended) = self.parts.history.intents.get(&act.path) {
            let rec = Recorded {
                name: intended.name.clone(),
                digest: intended.digest.clone(),
                call: intended.call.clone(),
                action: String::new(),
                value: Ok(serde_json::Value::Null),
                once: false,
            };
            self.must_match(&act.path, &rec, &act.name, &act.digest, call, spec.name)?;
            if self.parts.mode == Mode::Compare {
                return self.frontier().map(|()| Value::Unit);
            }
            return act.in_doubt(frame);
        }
        self.frontier()?;
        if frame.held.is_some() && spec.effect != Effect::Read {
            return Err(Error::new(Code::BAD_WORD, format!("{} changes something, and the condition of a wait may only look", act.name))
                .hint("move the change out of wait_until"));
        }
        self.check_stop()?;
        self.check_window(frame)?;
        if spec.effect == Effect::Once
            && let Some(done) = self.carried(&act)?
        {
            return Ok(done);
        }
        act.intend()?;
        act.live(frame)
    }

    fn retry_here(&self, base: &str) -> bool {
        self.parts.mode != Mode::Rollback && self.parts.history.stopped_at.contains(base)
            || self.parts.history.outcomes.contains_key(&format!("{base}@2"))
    }

    fn must_match(&self, path: &str, rec: &Recorded, name: &str, digest: &str, call: &Call, short: &str) -> Result<()> {
        if rec.name == name && rec.digest == digest {
            return Ok(());
        }
        let now = self.parts.around.redactor.text(&call.show(short));
        let why = if rec.call == now { "the arguments' content differs" } else { "another call stands here now" };
        Err(Error::new(Code::MISMATCH, format!("this run no longer matches its runbook at {path}: {why}"))
            .detail("recorded", &rec.call)
            .detail("now", now)
            .detail("path", path)
            .hint("resume with the runbook that the run began with, or see `runbook explain RB0016`"))
    }

    /// A `once` action that succeeded in an earlier attempt of its step is not repeated.
    fn carried(&self, act: &Act<'_>) -> Result<Option<Value>> {
        let key = without_attempts(&act.path);
        if key == act.path {
            return Ok(None);
        }
        let Some(rec) = self.once_done.lock().get(&key).filter(|r| r.name == act.name && r.digest == act.digest).cloned() else {
            return Ok(None);
        };
        let Ok(json) = rec.value else { return Ok(None) };
        self.append_later(Body::Outcome {
            path: act.path.clone(),
            action: rec.action,
            name: act.name.clone(),
            call: Some(rec.call),
            digest: act.digest.clone(),
            effect: "once".into(),
            value: Some(json.clone()),
            error: None,
            changed: Some(false),
            note: Some("done in an earlier attempt; not repeated".into()),
            ms: 0,
            via: Via::Carried,
        })?;
        Ok(Some(Value::from_json(&json)?))
    }
}

/// An action that is to be done, or whose fate is to be found out.
pub(super) struct Act<'a> {
    pub(super) run: &'a Arc<Run>,
    pub(super) prim: &'a Arc<dyn Primitive>,
    pub(super) call: &'a Call,
    name: String,
    digest: String,
    pub(super) path: String,
    pub(super) base: String,
    attempt: u32,
}

impl Act<'_> {
    pub(super) fn shown(&self) -> String {
        self.run.parts.around.redactor.text(&self.call.show(self.prim.spec().name))
    }

    /// Intent first: dying after the act but before the record would make resume act twice.
    fn intend(&self) -> Result<()> {
        let effect = self.prim.spec().effect;
        if effect == Effect::Read {
            return Ok(());
        }
        let on = target(self.call);
        if effect == Effect::Once {
            self.run.touched.lock().extend(on.clone());
        }
        self.run.append(Body::Intent {
            path: self.path.clone(),
            action: self.run.action_id(&self.path).0,
            name: self.name.clone(),
            call: self.shown(),
            digest: self.digest.clone(),
            effect: effect.name().into(),
            on,
        })
    }

    fn live(&self, frame: &Frame) -> Result<Value> {
        let began = Instant::now();
        let (prim, call) = (self.prim.clone(), self.call.clone());
        let result = self.drive(frame, |cx| async move { prim.act(&cx, &call).await })?;
        self.run.crash(CrashPoint::Acted(&self.path));
        let ambiguous = |e: &Error| e.kind == Kind::InDoubt || e.code == Code::SSH_LOST || e.code == Code::ABORTED;
        match result {
            Err(e) if self.prim.spec().effect == Effect::Once && ambiguous(&e) => {
                self.run.notice(&format!("{} may or may not have happened ({e}); asking the far side", self.shown()));
                self.in_doubt(frame)
            }
            result => self.record(frame, result, began.elapsed(), Via::Act),
        }
    }

    /// Runs a future of the primitive, ending it on a timeout of a step around it; a stop at once leaves the action in doubt.
    ///
    /// It runs as a task of its own, so that what it needs of the stack is that of the few threads of the runtime: a hundred branches that
    /// wait for their hosts would each have touched as much of theirs.
    pub(super) fn drive<T, F>(&self, frame: &Frame, make: impl FnOnce(Cx) -> F) -> Result<Result<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let run = self.run;
        let cancel = frame.timeout.as_ref().map_or_else(Cancel::default, |(c, _)| c.child());
        let cx = run.cx(&self.path, &run.action_id(&self.path), cancel.clone());
        let reached = cx.reached.clone();
        let late = |limit: Duration| {
            Error::new(Code::TIMEOUT, format!("{} took longer than the step's {}", self.shown(), crate::units::show_duration(limit)))
                .hint("raise the step's timeout, or find out what it waits for")
                .retryable(true)
        };
        let limit = frame.timeout.as_ref().map(|t| t.1).unwrap_or_default();
        let mut work = run.parts.around.runtime.spawn(make(cx));
        run.parts.around.runtime.block_on(async {
            let given_up = tokio::select! {
                biased;
                () = run.parts.around.abort.cancelled() => Err(Error::new(Code::ABORTED, format!("stopped in the middle of {}", self.shown()))
                    .hint(format!("the action is in doubt: `runbook resume {}` finds out what became of it", run.id()))),
                r = &mut work => return match r {
                    Ok(Err(_)) if cancel.is_cancelled() => Ok(Err(late(limit))),
                    Ok(Err(e)) if reached.load(Ordering::Relaxed) => Ok(Err(e.reached_before())),
                    Ok(r) => Ok(r),
                    Err(e) => Err(Error::internal(format!("{} broke off: {e}", self.shown()))),
                },
                () = async { cancel.cancelled().await; tokio::time::sleep(GRACE).await } => {
                    // It does not stop: what it did is not known.
                    Ok(Err(late(limit).kind(Kind::InDoubt)))
                }
            };
            work.abort();
            let _ = tokio::time::timeout(Duration::from_millis(500), &mut work).await;
            given_up
        })
    }

    pub(super) fn record(&self, frame: &Frame, result: Result<Outcome>, took: Duration, via: Via) -> Result<Value> {
        let run = self.run;
        let effect = self.prim.spec().effect;
        let strike = |s: String| run.parts.around.redactor.text(&s);
        let (value, error, changed, note, facts) = match result {
            Ok(o) => {
                let json = o.value.map_text(&strike).to_json();
                (Some(json), None, o.changed, o.note.map(strike), o.facts)
            }
            Err(mut e) => {
                // What stops the run is no outcome of the action; only what the script may see is recorded.
                if !e.kind.catchable() {
                    if e.at.is_empty() {
                        e.at.push(self.base.clone());
                    }
                    return Err(e);
                }
                if effect != Effect::Read && e.never_reached() {
                    run.not_written();
                }
                e.message = strike(e.message);
                e.hint = e.hint.map(strike);
                e.details = e.details.into_iter().map(|(k, v)| (k, strike(v))).collect();
                (None, Some(e), None, None, Default::default())
            }
        };
        let body = Body::Outcome {
            path: self.path.clone(),
            action: run.action_id(&self.path).0,
            name: self.name.clone(),
            call: (effect == Effect::Read).then(|| self.shown()),
            digest: self.digest.clone(),
            effect: effect.name().into(),
            value: value.clone(),
            error: error.clone(),
            changed,
            note,
            ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            via,
        };
        match (&frame.held, facts.is_empty()) {
            (Some(held), _) => held.lock().push(body),
            (None, true) => run.append_later(body)?,
            (None, false) => run.append_batch(Batch { bodies: vec![(run.now(), body)], facts, state: None })?,
        }
        match (value, error) {
            (Some(json), _) => {
                // Only within a step is there another attempt that may meet it.
                if effect == Effect::Once && frame.in_step {
                    let rec = Recorded {
                        name: self.name.clone(),
                        digest: self.digest.clone(),
                        call: self.shown(),
                        action: run.action_id(&self.path).0,
                        value: Ok(json.clone()),
                        once: true,
                    };
                    run.once_done.lock().insert(without_attempts(&self.path), rec);
                }
                // The script gets what replay will give it: struck, and through the same form.
                Value::from_json(&json)
            }
            (None, Some(mut e)) => {
                if !frame.in_step && e.at.is_empty() {
                    debug_assert!(self.attempt >= 1);
                    e.at.push(self.base.clone());
                }
                Err(e)
            }
            (None, None) => Ok(Value::Unit),
        }
    }
}
