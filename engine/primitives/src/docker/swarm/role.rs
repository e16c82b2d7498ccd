//! `SwarmNode.promote` and `demote`, and which manager a swarm can do without.

use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::units::show_duration;
use runbook_core::{Code, Error, Result};
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use super::api::text;
use super::cluster::look;
use super::node::{ERRORS, change, need, nodes};
use crate::docker::acts::acting;
use crate::docker::engine::Engine;
use crate::docker::things::name;

/// How long a node may take to have its new role when nothing is said.
pub(super) const WITHIN: Duration = Duration::from_secs(60);

pub(super) fn register(r: &mut Registry) {
    let within = |s: Spec| s.option("within", Ty::Duration, "How long it may take to have its new role; `\"1m\"` when not given.");
    let spec = |name, doc, example| within(Spec::method("SwarmNode", name, Effect::Converge, doc).example(example).errors(ERRORS));
    r.add(acting(
        spec(
            "promote",
            "Makes the node a manager, unless it is one, and waits until the others reach it.",
            r#"docker("m1").swarm().node("m2").promote();"#,
        ),
        |cx, e, call| promote(cx, e, call).boxed(),
    ));
    r.add(Demote(spec(
        "demote",
        "Makes the node a worker, unless it is one, and waits until it is. Refused where the managers that are left would have no quorum.",
        r#"docker("m1").swarm().node("m2").demote();"#,
    )));
}

/// The managers of a swarm.
#[derive(Debug)]
pub(super) struct Managers(Vec<Manager>);

#[derive(Debug)]
struct Manager {
    id: String,
    name: String,
    reached: bool,
}

impl Managers {
    pub(super) async fn of(cx: &Cx, e: &Engine) -> Result<Managers> {
        Ok(Managers::among(&nodes(cx, e).await?))
    }

    fn among(nodes: &[Json]) -> Managers {
        let all = nodes.iter().filter(|n| text(n, "/Spec/Role") == "manager").map(|n| Manager {
            id: text(n, "/ID").to_string(),
            name: text(n, "/Description/Hostname").to_string(),
            reached: text(n, "/ManagerStatus/Reachability") == "reachable",
        });
        Managers(all.collect())
    }

    /// Refuses the loss of a manager after which there is no quorum. `how` it is lost, for the message.
    pub(super) fn may_lose(&self, e: &Engine, id: &str, how: &str) -> Result<()> {
        self.refusal(id, how)
            .map_or(Ok(()), |why| Err(Error::new(Code::SWARM_QUORUM, format!("{why}, in the swarm of \"{}\"", e.name)).host(e.at())))
    }

    fn refusal(&self, id: &str, how: &str) -> Option<String> {
        let (lost, left): (Vec<&Manager>, Vec<&Manager>) = self.0.iter().partition(|m| m.id == id);
        let name = &lost.first()?.name;
        if left.is_empty() {
            return Some(format!("{name} is the last manager: nobody is left to lead if it {how}"));
        }
        let (quorum, up) = (left.len() / 2 + 1, left.iter().filter(|m| m.reached).count());
        let away: Vec<&str> = left.iter().filter(|m| !m.reached).map(|m| m.name.as_str()).collect();
        (up < quorum).then(|| {
            format!(
                "if {name} {how}, {} of the {} managers that are left can be reached, and a quorum is {quorum} ({} cannot be)",
                up,
                left.len(),
                away.join(", ")
            )
        })
    }
}

/// Makes a manager a worker, at its own engine or another's, and waits until it is one.
///
/// # Errors
/// `RB1011` when it takes too long; those of the engine.
pub(super) async fn demote(cx: &Cx, e: &Engine, id: &str, within: Duration) -> Result<bool> {
    let own = text(&look(cx, e).await?, "/NodeID") == id;
    let what = format!("making the node {id} of the swarm of \"{}\" a worker", e.name);
    let (node, changed) = change(cx, e, id, &what, |spec| set_role(spec, "worker")).await?;
    let end = Instant::now() + within;
    loop {
        let done = if own {
            // A worker cannot be asked for nodes.
            !super::api::flag(&look(cx, e).await?, "/ControlAvailable")
        } else {
            match need(cx, e, id).await {
                Ok(is) => is.pointer("/ManagerStatus").is_none_or(Json::is_null),
                // Without the one that led there is none for a moment.
                Err(fault) if fault.code == Code::SWARM_QUORUM => false,
                Err(fault) => return Err(fault),
            }
        };
        if done {
            return Ok(changed);
        }
        late(e, &node, "a worker", end, within)?;
        cx.sleep(Duration::from_millis(250)).await?;
    }
}

fn set_role(spec: &mut Json, role: &str) {
    if text(spec, "/Role") != role
        && let Some(spec) = spec.as_object_mut()
    {
        spec.insert("Role".into(), json!(role));
    }
}

fn late(e: &Engine, node: &Json, what: &str, end: Instant, within: Duration) -> Result<()> {
    if Instant::now() < end {
        return Ok(());
    }
    let name = text(node, "/Description/Hostname");
    Err(Error::new(
        Code::SERVICE_CONVERGE,
        format!("the node {name} of the swarm of \"{}\" is not {what} after {}", e.name, show_duration(within)),
    )
    .host(e.at())
    .hint("the log of its engine says more; a manager must be reached at port 2377 (TCP) by the others")
    .retryable(true))
}

async fn promote(cx: &Cx, e: &Engine, call: &Call) -> Result<Outcome> {
    let name = name(call);
    let what = format!("making the node {name} of the swarm of \"{}\" a manager", e.name);
    let (node, changed) = change(cx, e, name, &what, |spec| set_role(spec, "manager")).await?;
    let within = call.opt_duration("within").unwrap_or(WITHIN);
    let end = Instant::now() + within;
    loop {
        match need(cx, e, text(&node, "/ID")).await {
            Ok(is) if text(&is, "/ManagerStatus/Reachability") == "reachable" => return Ok(Outcome::done(changed, "it is a manager")),
            Ok(_) => {}
            // A second manager leaves the first without a quorum for a moment.
            Err(fault) if fault.code == Code::SWARM_QUORUM => {}
            Err(fault) => return Err(fault),
        }
        late(e, &node, "a manager that can be reached", end, within)?;
        cx.sleep(Duration::from_millis(250)).await?;
    }
}

struct Demote(Spec);

#[async_trait]
impl Primitive for Demote {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (e, name) = (Engine::on(cx, call).await?, name(call));
        let node = need(cx, &e, name).await?;
        let id = text(&node, "/ID");
        if text(&node, "/Spec/Role") == "manager" {
            Managers::of(cx, &e)
                .await?
                .may_lose(&e, id, "is demoted")
                .map_err(|refused| refused.hint("start the managers that are down, or promote() other nodes first"))?;
        }
        Ok(Outcome::done(demote(cx, &e, id, call.opt_duration("within").unwrap_or(WITHIN)).await?, "it is a worker"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_may_go_only_where_a_quorum_stays() {
        let of = |all: &[(&str, bool)]| {
            Managers(all.iter().map(|(n, up)| Manager { id: (*n).into(), name: (*n).into(), reached: *up }).collect())
        };
        assert_eq!(of(&[("a", true), ("b", true)]).refusal("a", "leaves"), None);
        assert_eq!(of(&[("a", true), ("b", true), ("c", false)]).refusal("c", "leaves"), None);
        let last = of(&[("a", true)]).refusal("a", "leaves").unwrap();
        assert_eq!(last, "a is the last manager: nobody is left to lead if it leaves");
        let refused = of(&[("a", true), ("b", true), ("c", false)]).refusal("a", "is demoted").unwrap();
        assert_eq!(refused, "if a is demoted, 1 of the 2 managers that are left can be reached, and a quorum is 2 (c cannot be)");
        // A worker is no loss.
        assert_eq!(of(&[("a", true)]).refusal("w", "leaves"), None);
    }
}
