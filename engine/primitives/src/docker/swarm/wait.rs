//! Waiting until a service has converged: what is wanted of it runs, and its update is over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::units::show_duration;
use runbook_core::{Code, Error, Result};
use serde_json::Value as Json;
use tokio::time::Instant;

use super::api::{int, text};
use super::node::{is_down, nodes};
use super::service::look;
use super::task::{error, is_failed, is_over, is_wanted, of_service, shown, up_to_date};
use crate::docker::engine::Engine;

/// How long a service may take when nothing is said.
pub(super) const WITHIN: Duration = Duration::from_secs(300);
/// How long all of its tasks must have run, where the service's own time to watch an update is not said.
const STEADY: Duration = Duration::from_secs(5);
/// How long the managers may be away while it is waited, as when they elect a leader.
const PATIENCE: Duration = Duration::from_secs(60);
/// As many failures of one task are enough to say that it will not run.
const FAILURES: usize = 4;

/// What is waited for.
pub(super) struct Wait<'a> {
    /// The service.
    pub service: &'a str,
    /// How long it may take.
    pub within: Duration,
    /// How long all of its tasks must have run.
    pub steady: Option<Duration>,
    /// The swarm's count of changes before this action: a failure with a greater one came after.
    pub since: i64,
    /// Whether a rollback that is over is no failure: it was asked for, or it is of an update before this action, which has changed nothing.
    pub back: bool,
}

/// A task that failed: its slot or node, and what it said.
struct Failure {
    place: String,
    said: String,
}

/// How a service stands.
struct Seen {
    service: Json,
    wanted: usize,
    running: usize,
    /// Those of an older version, or too many, that have not ended.
    leaving: usize,
    /// What keeps those that are wanted from running.
    waiting: Vec<String>,
    /// What failed, by task.
    failed: BTreeMap<String, Failure>,
}

impl Seen {
    /// Whether what is wanted runs, and nothing else.
    fn is_whole(&self) -> bool {
        self.running == self.wanted && self.waiting.is_empty() && self.leaving == 0
    }

    /// How many of its tasks run, as in `1 of 2 tasks running`.
    fn count(&self) -> String {
        format!("{} of {} tasks running", self.running.min(self.wanted), self.wanted)
    }
}

async fn see(cx: &Cx, e: &Engine, wait: &Wait<'_>) -> Result<Seen> {
    let service = look(cx, e, wait.service).await?;
    let id = text(&service, "/ID");
    let (all, fresh, nodes) = futures::try_join!(of_service(cx, e, id), up_to_date(cx, e, id), nodes(cx, e))?;
    let host = |t: &Json| nodes.iter().find(|n| text(n, "/ID") == text(t, "/NodeID"));
    let host_name = |t: &Json| host(t).map_or("", |n| text(n, "/Description/Hostname"));
    let fresh_ids: BTreeSet<&str> = fresh.iter().map(|t| text(t, "/ID")).collect();
    let wanted_now: Vec<&Json> = fresh.iter().filter(|t| is_wanted(t)).collect();
    let runs = |t: &&&Json| text(t, "/Status/State") == "running" || text(t, "/Status/State") == "complete";
    let wanted = match service.pointer("/Spec/Mode/Replicated") {
        Some(_) => usize::try_from(int(&service, "/Spec/Mode/Replicated/Replicas")).unwrap_or_default(),
        // One on each node that it fits: the swarm has made a task for each by then.
        None => wanted_now.len(),
    };
    // What runs on a node that is down is never said to have ended.
    let leaves = |t: &&Json| !is_over(t) && (!is_wanted(t) || !fresh_ids.contains(text(t, "/ID"))) && host(t).is_some_and(|n| !is_down(n));
    let mut seen = Seen {
        wanted,
        running: wanted_now.iter().filter(runs).count(),
        leaving: all.iter().filter(leaves).count(),
        waiting: wanted_now.iter().filter(|t| !runs(t)).map(|t| shown(t, wait.service, host_name(t))).collect(),
        failed: BTreeMap::new(),
        service,
    };
    for t in all.iter().filter(|t| is_failed(t) && int(t, "/Version/Index") > wait.since) {
        let place = match int(t, "/Slot") {
            0 => host_name(t).to_string(),
            slot => slot.to_string(),
        };
        let on = if host_name(t).is_empty() { String::new() } else { format!(" on {}", host_name(t)) };
        let said = format!("{}.{place}{on}: {}", wait.service, error(t));
        seen.failed.insert(text(t, "/ID").to_string(), Failure { place, said });
    }
    Ok(seen)
}

/// Waits until the service has converged, and gives it as it is then.
///
/// # Errors
/// `RB1010` when its update was stopped or taken back, with what the tasks said; `RB1011` when it takes too long or its tasks end again and
/// again; those of the engine.
pub(super) async fn converged(cx: &Cx, e: &Engine, wait: &Wait<'_>) -> Result<Json> {
    let end = Instant::now() + wait.within;
    let (mut well_since, mut lost): (Option<Instant>, Option<Instant>) = (None, None);
    let mut failed: BTreeMap<String, Failure> = BTreeMap::new();
    let mut before: Option<BTreeSet<String>> = None;
    loop {
        let mut seen = match see(cx, e, wait).await {
            Err(fault) if fault.retryable && fault.code != Code::ABORTED => {
                let since = *lost.get_or_insert_with(Instant::now);
                if since.elapsed() > PATIENCE || Instant::now() >= end {
                    return Err(fault);
                }
                cx.sleep(Duration::from_secs(1)).await?;
                continue;
            }
            seen => seen?,
        };
        lost = None;
        // The swarm keeps a few tasks only, and those of an update that is taken back are the first to go.
        failed.append(&mut seen.failed);
        let before = before.get_or_insert_with(|| failed.keys().cloned().collect());
        let update = text(&seen.service, "/UpdateStatus/State");
        cx.progress(format!("{}: tasks running", wait.service), seen.running.min(seen.wanted) as u64, Some(seen.wanted as u64), "tasks");
        let update = if wait.back && update == "rollback_completed" { "completed" } else { update };
        let over = Instant::now() >= end;
        match update {
            // The swarm says so while the last tasks of the former version still start.
            "rollback_completed" if !seen.is_whole() && !over && !again(&failed, before) => {}
            "paused" | "rollback_paused" | "rollback_completed" => return Err(broken(cx, e, wait, &seen, &failed, update).await),
            "updating" | "rollback_started" => well_since = None,
            _ if seen.is_whole() => {
                let since = *well_since.get_or_insert_with(Instant::now);
                // An update that is completed has been watched by the swarm.
                let monitor = u64::try_from(int(&seen.service, "/Spec/UpdateConfig/Monitor")).unwrap_or_default();
                let own = if monitor == 0 { STEADY } else { Duration::from_nanos(monitor) };
                let steady = wait.steady.unwrap_or(if update == "completed" { Duration::ZERO } else { own });
                if since.elapsed() >= steady {
                    return Ok(seen.service);
                }
            }
            _ => {
                well_since = None;
                if again(&failed, before) {
                    let why = "its tasks end again and again".to_string();
                    return Err(ill(cx, e, wait, why, &reasons(&failed), false).await);
                }
            }
        }
        if over {
            let why = format!(
                "has {} after {}{}{}",
                seen.count(),
                show_duration(wait.within),
                match seen.leaving {
                    0 => String::new(),
                    n => format!(", and {n} that should have ended"),
                },
                if update.is_empty() { String::new() } else { format!(", and its update is {update}") }
            );
            let mut reasons = reasons(&failed);
            reasons.extend(seen.waiting);
            return Err(ill(cx, e, wait, why, &reasons, true).await);
        }
        cx.sleep(Duration::from_millis(400)).await?;
    }
}

/// Whether one task has failed again and again since it is waited.
fn again(failed: &BTreeMap<String, Failure>, before: &BTreeSet<String>) -> bool {
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, f) in failed.iter().filter(|(id, _)| !before.contains(*id)) {
        *places.entry(&f.place).or_default() += 1;
    }
    places.values().any(|n| *n >= FAILURES)
}

/// What the tasks said, each once.
fn reasons(failed: &BTreeMap<String, Failure>) -> Vec<String> {
    let all: BTreeSet<&String> = failed.values().map(|f| &f.said).collect();
    all.into_iter().take(5).cloned().collect()
}

/// The error for an update that the swarm has stopped or taken back.
async fn broken(cx: &Cx, e: &Engine, wait: &Wait<'_>, seen: &Seen, failed: &BTreeMap<String, Failure>, update: &str) -> Error {
    let (what, hint) = match update {
        "rollback_completed" => {
            ("failed and was rolled back: the service is in its former version", "mend what the tasks say and update it again")
        }
        "rollback_paused" => (
            "failed, and so did its rollback, which is paused: the service is in both versions",
            "look at tasks(#{ all: true }); an update() to a version that runs goes on from there",
        ),
        _ => (
            "failed and is paused: the service is in both versions",
            "rollback() brings the former version back; with #{ update_failure: \"rollback\" } the swarm does so by itself",
        ),
    };
    let short = match update {
        "rollback_completed" if !seen.is_whole() => format!(", with {}", seen.count()),
        _ => String::new(),
    };
    let mut why = reasons(failed);
    if why.is_empty() {
        why.push(text(&seen.service, "/UpdateStatus/Message").to_string());
    }
    let e = Error::new(
        Code::SERVICE_UPDATE,
        format!("the update of the service {} on \"{}\" {what}{short}: {}", wait.service, e.name, cx.redactor.text(&why.join("; "))),
    )
    .host(e.at())
    .hint(hint)
    .detail("state", update)
    .detail("said", cx.redactor.text(text(&seen.service, "/UpdateStatus/Message")));
    e.detail("tasks", cx.redactor.text(&failed.values().map(|f| f.said.as_str()).collect::<Vec<_>>().join("\n")))
}

async fn ill(cx: &Cx, e: &Engine, wait: &Wait<'_>, why: String, reasons: &[String], late: bool) -> Error {
    let said = if reasons.is_empty() { String::new() } else { format!(": {}", cx.redactor.text(&reasons.join("; "))) };
    let output = super::service::last_lines(e, wait.service).await.unwrap_or_default();
    let error = Error::new(Code::SERVICE_CONVERGE, format!("the service {} on \"{}\" {why}{said}", wait.service, e.name))
        .host(e.at())
        .hint(
            "look at its tasks(#{ all: true }) and logs(); a task without a node waits for one that its constraints, limits and ports fit",
        )
        .retryable(late);
    if output.is_empty() { error } else { error.detail("output", cx.redactor.text(&output)) }
}
