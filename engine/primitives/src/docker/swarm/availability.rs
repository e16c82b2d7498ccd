//! `SwarmNode.drain`, `pause` and `activate`.

use std::time::Duration;

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::units::show_duration;
use runbook_core::{Code, Error, Result};
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use super::api::{all, filters, get, text};
use super::node::{ERRORS, change, is_down, need};
use super::task::{is_over, shown};
use crate::docker::engine::Engine;
use crate::docker::things::name;

/// How long the tasks of a node may take to end when nothing is said.
const GONE_WITHIN: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Drain,
    Pause,
    Active,
}

pub(super) fn register(r: &mut Registry) {
    let spec = |name, doc, example| Spec::method("SwarmNode", name, Effect::Converge, doc).example(example).errors(ERRORS);
    r.add(Set(
        To::Drain,
        spec(
            "drain",
            "Moves the node's tasks to other nodes: it gets no more, and those that it has end. It waits until none is left there. \
             Whether the services run elsewhere then is asked by `SwarmService.wait_converged`.\n\nThe tasks of a node that is down are not waited for.",
            r#"docker("m1").swarm().node("web2").drain(#{ within: "2m" });"#,
        )
        .option("within", Ty::Duration, "How long its tasks may take to end; `\"5m\"` when not given."),
    ));
    r.add(Set(
        To::Pause,
        spec("pause", "Lets the node keep its tasks, and gives it no more.", r#"docker("m1").swarm().node("web2").pause();"#),
    ));
    r.add(Set(
        To::Active,
        spec(
            "activate",
            "Lets the node have tasks again. Those that went elsewhere stay there, until they are made anew.",
            r#"docker("m1").swarm().node("web2").activate();"#,
        ),
    ));
}

struct Set(To, Spec);

#[async_trait]
impl Primitive for Set {
    fn spec(&self) -> &Spec {
        &self.1
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (e, name) = (Engine::on(cx, call).await?, name(call));
        let wanted = match self.0 {
            To::Drain => "drain",
            To::Pause => "pause",
            To::Active => "active",
        };
        let what = format!("setting the node {name} of the swarm of \"{}\" to {wanted}", e.name);
        let (node, changed) = change(cx, &e, name, &what, |spec| {
            if text(spec, "/Availability") != wanted
                && let Some(spec) = spec.as_object_mut()
            {
                spec.insert("Availability".into(), json!(wanted));
            }
        })
        .await?;
        if self.0 == To::Drain {
            // What was shut down on a node that nobody hears of is never said to have ended.
            let within = call.opt_duration("within").unwrap_or(GONE_WITHIN);
            let left = if is_down(&node) { 0 } else { gone(cx, &e, name, text(&node, "/ID"), within).await? };
            let already = if left == 0 { "it is drained" } else { "it was drained, and its last tasks have ended now" };
            return Ok(Outcome::done(changed, already));
        }
        Ok(Outcome::done(changed, format!("it is {wanted}")))
    }
}

/// Waits until a node has no tasks; how many it had.
async fn gone(cx: &Cx, e: &Engine, name: &str, id: &str, within: Duration) -> Result<usize> {
    let end = Instant::now() + within;
    let what = format!("listing the tasks on the node {name} of the swarm of \"{}\"", e.name);
    let mut most = 0;
    loop {
        let tasks = all(get(cx, e, &what, &format!("/tasks{}", filters(&[("node", id)]))).await?);
        let left: Vec<&Json> = tasks.iter().filter(|t| !is_over(t)).collect();
        most = most.max(left.len());
        cx.progress(format!("tasks gone from {name}"), (most - left.len()) as u64, Some(most as u64), "tasks");
        if left.is_empty() {
            return Ok(most);
        }
        if Instant::now() >= end {
            if is_down(&need(cx, e, id).await?) {
                return Ok(most);
            }
            let left: Vec<String> = left.iter().map(|t| shown(t, &super::task::services(t), "")).collect();
            return Err(Error::new(
                Code::SERVICE_CONVERGE,
                format!(
                    "the node {name} of the swarm of \"{}\" still has tasks after {}: {}",
                    e.name,
                    show_duration(within),
                    left.join("; ")
                ),
            )
            .host(e.at())
            .hint("a container has its stop time to end by itself, 10 s unless it says otherwise; give #{ within: \"…\" } more than that")
            .retryable(true));
        }
        cx.sleep(Duration::from_millis(300)).await?;
    }
}
