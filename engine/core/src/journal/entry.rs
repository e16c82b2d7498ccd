//! The kinds of journal entries: one record that is checkpoint and audit log at once.
//!
//! Each kind says who writes it and who reads it. Fields are only ever added, as optional ones: old journals are replayed for ever.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::error::Error;

/// How a step, a phase or an undo block ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It did what it should.
    Ok,
    /// It failed.
    Failed,
    /// It was left out, by `when` or by the operator.
    Skipped,
}

/// How an outcome came to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// The primitive acted and returned.
    Act,
    /// The far side was asked after a crash.
    Reconcile,
    /// The operator said so.
    Operator,
    /// Taken over from an earlier attempt of the same step: a `once` action that had succeeded is not repeated.
    Carried,
}

/// What a step has for an undo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum UndoKind {
    /// Neither `undo` nor `irreversible`.
    #[default]
    None,
    /// An undo block.
    Block,
    /// `irreversible "why"`.
    Irreversible,
}

/// Why a controller began to work on a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// A new run.
    Run,
    /// Going on with a stopped run.
    Resume,
    /// Taking a run back.
    Rollback,
}

/// Who ran it, from where, with which binary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Operator {
    /// Login name.
    pub user: String,
    /// The controller's host name.
    pub host: String,
    /// The controller's process id.
    pub pid: u32,
    /// When that process started, as the system counts it; tells a reused pid from the same process.
    #[serde(default)]
    pub pid_start: u64,
    /// The controller's boot id.
    #[serde(default)]
    pub boot: String,
    /// Where the operator came from (the client of an SSH login), when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Version of this program.
    #[serde(default)]
    pub version: String,
    /// SHA-256 of the executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<String>,
}

/// How a controller's work on a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A controller works on it (or died while it did).
    Running,
    /// Done.
    Finished,
    /// A step failed; resumable.
    Failed,
    /// A gate waits, a sleep is not over, or the operator stopped; resumable.
    Paused,
    /// Ctrl-C or SIGTERM; resumable.
    Interrupted,
    /// An action in doubt needs an answer; resumable.
    InDoubt,
    /// A rollback began and is not done; it can be resumed with `rollback`.
    RollingBack,
    /// Taken back.
    RolledBack,
}

/// The body of an entry: its `kind` and `data`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "data", rename_all = "snake_case")]
pub enum Body {
    /// Written once, first, by `run`. Read by replay (parameters, sources), `show` and audits.
    RunStarted {
        /// The runbook's path in the project.
        runbook: String,
        /// The environment's name.
        environment: String,
        /// Parameters, encoded; secrets by name.
        params: Json,
        /// SHA-256 of every kept source by path.
        sources: BTreeMap<String, String>,
        /// The format of the journal; see [`super::FORMAT`].
        format: u32,
    },
    /// Written by every controller when it begins to work on the run. Read by `show`, audits and the stale-lock message.
    SessionStarted {
        /// Why.
        purpose: Purpose,
        /// Who.
        operator: Operator,
        /// The fencing number of its lock.
        fence: i64,
        /// Sources replaced by `resume --edited`: SHA-256 by path.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        edited: Option<BTreeMap<String, String>>,
        /// The finished steps that the edited runbook has as they were, by path.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        matching: Option<Vec<String>>,
        /// The holder whose lock was taken over.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        took_over: Option<String>,
    },
    /// Written last by every controller that ends in order. Read by resume (where to retry), `runs`, `show`.
    SessionEnded {
        /// How.
        state: State,
        /// The innermost paths at which it stopped; several when branches of `parallel` failed.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        at: Vec<String>,
        /// Why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<Error>,
    },
    /// Written when a phase begins for the first time. Read by views.
    PhaseStarted {
        /// Its path.
        path: String,
    },
    /// Written when a phase ends. Read by views.
    PhaseEnded {
        /// Its path.
        path: String,
        /// How.
        status: Status,
        /// How long since its start, waits included.
        ms: u64,
    },
    /// Written before a step's block runs, once an attempt. Read by replay (attempts), rollback (which undo blocks, in which
    /// order) and views.
    StepStarted {
        /// Its path, without the attempt.
        path: String,
        /// From 1.
        attempt: u32,
        /// What it has for an undo.
        undo: UndoKind,
        /// Where in the sources.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<String>,
        /// The host shown.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        on: Option<String>,
    },
    /// Written when an attempt of a step ends. Read by replay (skips) and views.
    StepEnded {
        /// Its path.
        path: String,
        /// The attempt.
        attempt: u32,
        /// How.
        status: Status,
        /// How long.
        ms: u64,
        /// What went wrong.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<Error>,
        /// Why it was skipped, and by whom.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Written and synced before a `converge` or `once` action. Read by resume: an intent without an outcome is in doubt.
    Intent {
        /// The action's path, with its ordinal.
        path: String,
        /// Its id, carried to the far side.
        action: String,
        /// The primitive's full name.
        name: String,
        /// The call as the script has it, secrets struck.
        call: String,
        /// SHA-256 of the canonical arguments.
        digest: String,
        /// `converge` or `once`.
        effect: String,
        /// The host or other thing that it acts on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        on: Option<String>,
    },
    /// Written after an action, before anything that depends on it. Read by replay, which returns it instead of acting.
    Outcome {
        /// The action's path, with its ordinal.
        path: String,
        /// Its id.
        action: String,
        /// The primitive's full name.
        name: String,
        /// The call, for `read` actions, which have no intent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        call: Option<String>,
        /// SHA-256 of the canonical arguments.
        digest: String,
        /// `read`, `converge` or `once`.
        effect: String,
        /// The result, encoded (`null` for nothing); absent on failure.
        #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
        value: Option<Json>,
        /// The failure.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<Error>,
        /// Whether the world was changed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        changed: Option<bool>,
        /// A remark for the operator.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        note: Option<String>,
        /// How long it took.
        ms: u64,
        /// How it came to be known.
        via: Via,
    },
    /// Written while an action of more than a second gives output. Read by `log`.
    Output {
        /// The action's path.
        path: String,
        /// `stdout` or `stderr`.
        stream: String,
        /// The text, secrets struck, bytes that are not UTF-8 replaced.
        text: String,
    },
    /// Written when a gate is reached for the first time. Read by `approve`, views.
    GateAsked {
        /// Its path.
        path: String,
        /// The question.
        question: String,
    },
    /// Written when a person has answered. Read by replay and audits.
    GateAnswered {
        /// Its path.
        path: String,
        /// Go (`true`) or no-go.
        yes: bool,
        /// Who.
        by: String,
        /// What they added.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        comment: Option<String>,
    },
    /// Written when a downtime window opens. Read by replay (its clock goes on across crashes) and views.
    WindowOpened {
        /// Its path.
        path: String,
        /// The budget.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        budget_ms: Option<u64>,
        /// `ask`, `rollback` or `continue`.
        on_overrun: String,
    },
    /// Written when the window is over its budget and it was decided how to go on. Read by replay.
    WindowOverrun {
        /// Its path.
        path: String,
        /// `continue` or `rollback`.
        decision: String,
        /// Who decided; the runbook itself when `on_overrun` does.
        by: String,
        /// How long the window had been open.
        ms: u64,
    },
    /// Written when the window closes. Read by views and forecasts.
    WindowClosed {
        /// Its path.
        path: String,
        /// How long it was open.
        ms: u64,
        /// Whether it went over its budget.
        overran: bool,
    },
    /// Written when the point of no return is passed. Read by `rollback`, which refuses from here on.
    PointOfNoReturn {
        /// Its path.
        path: String,
        /// Why there is no way back.
        why: String,
    },
    /// Written when a failed attempt is followed by another. Read by views.
    RetryScheduled {
        /// The step's path.
        path: String,
        /// The attempt that comes.
        attempt: u32,
        /// How long it waits first.
        after_ms: u64,
    },
    /// Written when a durable sleep begins. Read by replay: the end stands, however often the controller dies.
    TimerSet {
        /// Its path.
        path: String,
        /// The end, RFC 3339.
        until: String,
    },
    /// Written when a durable sleep is over. Read by replay.
    TimerFired {
        /// Its path.
        path: String,
    },
    /// Written when the far side cannot tell what became of an action. Read by views and `resume`.
    DoubtAsked {
        /// The action's path.
        path: String,
        /// Its id.
        action: String,
        /// What is known.
        known: String,
    },
    /// Written when the operator has answered: `retry`, `done` or `rollback`. Read by resume.
    DoubtAnswered {
        /// The action's path.
        path: String,
        /// Its id.
        action: String,
        /// `retry`, `done` or `rollback`.
        answer: String,
        /// Who.
        by: String,
    },
    /// Written when an `each` or a `parallel` begins for the first time. Read by replay and views.
    BranchesStarted {
        /// Its path.
        path: String,
        /// `each` or `parallel`.
        word: String,
        /// The branches' names in order: those of their hosts.
        names: Vec<String>,
    },
    /// Written when a branch begins, and again when a failed one is tried again. Read by replay (which had begun) and views.
    BranchStarted {
        /// Its path.
        path: String,
    },
    /// Written when a branch ends. Read by replay (how many failed) and views.
    BranchEnded {
        /// Its path.
        path: String,
        /// How.
        status: Status,
        /// How long.
        ms: u64,
        /// What went wrong.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<Error>,
    },
    /// Written when all branches that had begun have ended. Read by replay, which begins those that were left out only where the run stopped.
    BranchesEnded {
        /// Its path.
        path: String,
        /// The names of those that failed.
        failed: Vec<String>,
        /// The names of those that did not begin.
        not_begun: Vec<String>,
        /// How long.
        ms: u64,
    },
    /// Written by the script's `log` and by primitives. Read by views.
    Log {
        /// Where.
        path: String,
        /// `info`, `warn`.
        level: String,
        /// The text, secrets struck.
        message: String,
    },
    /// Written when a rollback begins; nothing forward is recorded after it. Read by `rollback`, replay, views.
    RollbackStarted {
        /// Why, or who asked for it.
        reason: String,
    },
    /// Written before an undo block runs, once an attempt. Read by views and by a resumed rollback.
    UndoStarted {
        /// The step's path.
        path: String,
        /// From 1.
        attempt: u32,
    },
    /// Written when an undo block has run. Read by a resumed rollback, which does not run it again.
    UndoEnded {
        /// The step's path.
        path: String,
        /// The attempt.
        attempt: u32,
        /// How; `skipped` when the operator said so.
        status: Status,
        /// How long.
        ms: u64,
        /// What went wrong.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<Error>,
    },
}

/// Reads a field that is there, `null` included, as `Some`.
fn present<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Json>, D::Error> {
    Json::deserialize(d).map(Some)
}

impl Body {
    /// Reads the body of an entry, taking its `data` out of it (the entry keeps `null`).
    ///
    /// # Errors
    /// `RB0024` when this version does not know the kind or its fields.
    pub fn take(entry: &mut Entry) -> crate::Result<Body> {
        let mut m = serde_json::Map::with_capacity(2);
        m.insert("kind".into(), Json::String(entry.kind.clone()));
        m.insert("data".into(), std::mem::take(&mut entry.data));
        serde_json::from_value(Json::Object(m)).map_err(|e| {
            Error::new(crate::Code::JOURNAL_FORMAT, format!("entry {} of run {} cannot be read: {e}", entry.seq, entry.run))
                .hint("use the version of runbook that wrote it, or a newer one")
        })
    }

    /// The name of the kind, as in the exported log.
    #[must_use]
    pub fn kind(&self) -> String {
        match serde_json::to_value(self) {
            Ok(Json::Object(mut m)) => match m.remove("kind") {
                Some(Json::String(s)) => s,
                _ => String::new(),
            },
            _ => String::new(),
        }
    }
}

/// One entry as it is stored, exported and hashed. `kind` and `data` are those of [`Body`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// From 0.
    pub seq: u64,
    /// RFC 3339, UTC, milliseconds.
    pub time: String,
    /// The run's id.
    pub run: String,
    /// The kind.
    pub kind: String,
    /// The kind's fields.
    pub data: Json,
    /// The hash of the entry before it; 64 zeros for the first.
    pub prev: String,
    /// SHA-256, lower-case hex, of this entry without `hash` as canonical JSON (RFC 8785).
    pub hash: String,
}

impl Entry {
    /// Reads kind and data as a [`Body`].
    ///
    /// # Errors
    /// `RB0024` when this version does not know the kind or its fields.
    pub fn body(&self) -> crate::Result<Body> {
        Body::take(&mut self.clone())
    }
}
