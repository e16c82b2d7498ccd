//! `Swarm.join`: the token goes from the manager's engine to the new node's within the action, and nowhere else.

use std::time::Duration;

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::units::show_duration;
use runbook_core::{Code, Error, Result};
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use super::api::{all, flag, get, items, post, text};
use super::cluster::{LISTEN, info, look, state, unfit};
use crate::docker::engine::Engine;

/// How long a node may take to be ready when nothing is said.
const READY_WITHIN: Duration = Duration::from_secs(60);

pub(super) fn register(r: &mut Registry) {
    r.add(Join(
        Spec::method(
            "Swarm",
            "join",
            Effect::Converge,
            "Takes the engine into the swarm of a manager, and waits until its node is ready. There is nothing to do when it is there; one that is in another swarm is an error.\n\n\
             The join token is fetched from the manager within the action: it is in no journal, no message and no command line.",
        )
        .arg("manager", Ty::Record("Docker"), "The engine of a manager.")
        .option("role", Ty::Str, "`worker` or `manager`; `worker` when not given.")
        .option("address", Ty::Str, "The manager's address and port, where it is not what the manager advertises.")
        .option("advertise", Ty::Str, "The address, or the network interface, under which the other nodes reach the new one; found by the engine when it has only one.")
        .option("listen", Ty::Str, "Where it listens for them; `0.0.0.0:2377` when not given.")
        .option("data_path", Ty::Str, "The address, or the interface, for the traffic of containers; that of `advertise` when not given.")
        .option("token", Ty::Secret, "The join token, where the manager's own is not to be asked for.")
        .option("within", Ty::Duration, "How long the node may take to be ready; `\"1m\"` when not given.")
        .returns(Ty::Record("SwarmStatus"))
        .example(r#"docker("w1").swarm().join(docker("m1"));"#)
        .errors(&[Code::SWARM_JOIN, Code::SWARM_STATE, Code::SWARM_QUORUM, Code::DOCKER, Code::DOCKER_CONNECT, Code::SSH_CONNECT]),
    ));
}

struct Join(Spec);

/// The node of that id as the manager knows it.
async fn known(cx: &Cx, manager: &Engine, id: &str) -> Result<Option<Json>> {
    let nodes = all(get(cx, manager, &format!("listing the nodes of the swarm of \"{}\"", manager.name), "/nodes").await?);
    Ok(nodes.into_iter().find(|n| text(n, "/ID") == id))
}

/// What the new node is told of the manager: where it is, and the token for the role.
async fn invitation(cx: &Cx, call: &Call, manager: &Engine, is: &Json, role: &str) -> Result<(String, String)> {
    let node = text(is, "/NodeID");
    let own = items(is, "/RemoteManagers").iter().find(|m| text(m, "/NodeID") == node).map(|m| text(m, "/Addr"));
    let address = call.opt_str("address").or(own).unwrap_or_default().to_string();
    if let Some(given) = call.opt_secret("token") {
        cx.redactor.add(given.reveal());
        return Ok((address, given.reveal().to_string()));
    }
    let swarm = get(cx, manager, &format!("asking \"{}\" how to join its swarm", manager.name), "/swarm").await?;
    let token = text(&swarm, if role == "manager" { "/JoinTokens/Manager" } else { "/JoinTokens/Worker" });
    cx.redactor.add(token);
    Ok((address, token.to_string()))
}

#[async_trait]
impl Primitive for Join {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let role = call.opt_str("role").unwrap_or("worker");
        if !matches!(role, "worker" | "manager") {
            return Err(Error::new(Code::COMMAND_BAD, format!("a node cannot join as \"{role}\"")).hint("it is \"worker\" or \"manager\""));
        }
        let (manager, e) = futures::try_join!(Engine::given(cx, call), Engine::on(cx, call))?;
        let there = look(cx, &manager).await?;
        if !flag(&there, "/ControlAvailable") {
            return Err(unfit(&manager, "is not a manager of a swarm", "make a swarm there by init(), or name the engine of a manager"));
        }
        let is = look(cx, &e).await?;
        match state(&is) {
            "inactive" => {}
            "active" => {
                let Some(node) = known(cx, &manager, text(&is, "/NodeID")).await? else {
                    return Err(unfit(
                        &e,
                        &format!("is in another swarm than \"{}\"", manager.name),
                        "take it out of that by leave() first",
                    ));
                };
                let has = text(&node, "/Spec/Role");
                if has != role {
                    let verb = if role == "manager" { "promote" } else { "demote" };
                    return Err(unfit(&e, &format!("is in that swarm as a {has}"), &format!("use {verb}() of its node")));
                }
                ready(cx, call, &manager, &e, text(&is, "/NodeID"), role).await?;
                return Ok(Outcome::unchanged(info(&is), "it is in that swarm"));
            }
            // A join that an earlier controller began, and that has come to nothing so far.
            _ => drop_out(cx, &e).await?,
        }
        let (address, token) = invitation(cx, call, &manager, &there, role).await?;
        let body = json!({
            "ListenAddr": call.opt_str("listen").unwrap_or(LISTEN),
            "AdvertiseAddr": call.opt_str("advertise").unwrap_or_default(),
            "DataPathAddr": call.opt_str("data_path").unwrap_or_default(),
            "RemoteAddrs": [address],
            "JoinToken": token,
        });
        cx.progress(format!("\"{}\" joins the swarm at {address}", e.name), 0, None, "checks");
        let joined = post(cx, &e, &format!("taking \"{}\" into the swarm at {address}", e.name), "/swarm/join", &body).await;
        if let Err(fault) = joined {
            // The engine would go on trying for ever, unseen.
            if fault.code == Code::DOCKER && look(cx, &e).await.is_ok_and(|is| matches!(state(&is), "pending" | "error")) {
                drop_out(cx, &e).await?;
            }
            return Err(refused(fault, &e, &address));
        }
        let is = look(cx, &e).await?;
        ready(cx, call, &manager, &e, text(&is, "/NodeID"), role).await?;
        Ok(Outcome::changed(info(&look(cx, &e).await?)))
    }
}

async fn drop_out(cx: &Cx, e: &Engine) -> Result<()> {
    post(cx, e, &format!("ending an attempt of \"{}\" to join a swarm", e.name), "/swarm/leave?force=true", &Json::Null).await.map(drop)
}

/// Why the engine could not join.
fn refused(fault: Error, e: &Engine, address: &str) -> Error {
    if fault.code != Code::DOCKER && fault.code != Code::SWARM_QUORUM {
        return fault;
    }
    let late = fault.message.contains("Timeout was reached") || fault.code == Code::SWARM_QUORUM;
    let token = fault.message.contains("join token");
    let (why, hint) = if token {
        (
            "the join token is not accepted".to_string(),
            "leave `token` out, so that the manager's own is used; it changes when it is rotated".to_string(),
        )
    } else if late {
        (
            format!("the manager at {address} does not answer"),
            format!("see whether {address} (TCP) can be reached from there: firewall, `advertise` of the manager, #{{ address: \"…\" }}"),
        )
    } else {
        (fault.message.clone(), "the engine's log on its host says more".to_string())
    };
    Error::new(Code::SWARM_JOIN, format!("\"{}\" could not join the swarm at {address}: {why}", e.name))
        .host(e.at())
        .hint(hint)
        .retryable(late)
}

/// Waits until the manager knows the node as ready, and, of a manager, as one that can be reached.
async fn ready(cx: &Cx, call: &Call, manager: &Engine, e: &Engine, id: &str, role: &str) -> Result<()> {
    let within = call.opt_duration("within").unwrap_or(READY_WITHIN);
    let end = Instant::now() + within;
    loop {
        let is = match known(cx, manager, id).await {
            Ok(node) => node.unwrap_or(Json::Null),
            // A second manager leaves the first without a quorum for a moment.
            Err(fault) if fault.code == Code::SWARM_QUORUM && Instant::now() < end => Json::Null,
            Err(fault) => return Err(fault),
        };
        let reached = role == "worker" || text(&is, "/ManagerStatus/Reachability") == "reachable";
        if text(&is, "/Status/State") == "ready" && reached {
            return Ok(());
        }
        if Instant::now() >= end {
            let has = match text(&is, "/Status/State") {
                "" => "not known to the manager",
                "ready" => "not yet a manager that can be reached",
                other => other,
            };
            return Err(Error::new(
                Code::SWARM_JOIN,
                format!("the node of \"{}\" is not ready after {}: {has}", e.name, show_duration(within)),
            )
            .host(e.at())
            .hint("the engine's log on its host says more; the ports 2377 (TCP), 7946 (TCP and UDP) and 4789 (UDP) must be open between the nodes")
            .retryable(true));
        }
        cx.sleep(Duration::from_millis(250)).await?;
    }
}
