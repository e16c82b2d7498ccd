//! `Swarm.status`, `init` and `leave`.

use std::time::Duration;

use futures::FutureExt as _;
use runbook_core::primitive::{Cx, Outcome, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::{Code, Error, Record, Result, Value};
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use super::api::{flag, get, int, items, post, text};
use super::role::{Managers, WITHIN, demote};
use crate::docker::acts::acting;
use crate::docker::engine::Engine;

const ERRORS: &[Code] = &[Code::SWARM_STATE, Code::SWARM_QUORUM, Code::DOCKER, Code::DOCKER_CONNECT, Code::SSH_CONNECT];
/// Where a node listens for the others when nothing is said.
pub(super) const LISTEN: &str = "0.0.0.0:2377";

pub(super) fn register(r: &mut Registry) {
    r.add_type(
        TypeSpec::new("SwarmStatus", "What a Docker Engine is to a swarm.")
            .field("state", Ty::Str, "`inactive` (in none), `active`, `pending` (about to join), `locked` or `error`.")
            .field("node", Ty::Str, "The id of its node; empty when it is in no swarm.")
            .field("address", Ty::Str, "The address under which the others know it.")
            .field("manager", Ty::Bool, "Whether it is a manager that can be asked.")
            .field("cluster", Ty::Str, "The id of the swarm; empty when it is no manager.")
            .field("nodes", Ty::Int, "How many nodes the swarm has; 0 when it is no manager.")
            .field("managers", Ty::Int, "How many of them are managers; 0 when it is no manager.")
            .field("remotes", Ty::List(Box::new(Ty::Str)), "The addresses of the managers that it knows.")
            .field("error", Ty::Str, "What keeps it from being active."),
    );
    r.add(acting(
        Spec::method("Swarm", "status", Effect::Read, "Tells what the engine is to a swarm. Any engine can be asked.")
            .returns(Ty::Record("SwarmStatus"))
            .example(r#"if docker("w1").swarm().status().state != "inactive" { throw "it is in a swarm"; }"#)
            .errors(&[Code::DOCKER, Code::DOCKER_CONNECT, Code::SSH_CONNECT]),
        |cx, e, call| status(cx, e, call).boxed(),
    ));
    r.add(acting(
        Spec::method(
            "Swarm",
            "init",
            Effect::Converge,
            "Makes a swarm with the engine as its first manager, unless it is a manager already. An engine that is in a swarm otherwise is an error.",
        )
        .option("advertise", Ty::Str, "The address, or the network interface, under which the other nodes reach it; found by the engine when it has only one.")
        .option("listen", Ty::Str, "Where it listens for them; `0.0.0.0:2377` when not given.")
        .option("data_path", Ty::Str, "The address, or the interface, for the traffic of containers; that of `advertise` when not given.")
        .option("data_path_port", Ty::Int, "The UDP port of that traffic; 4789 when not given.")
        .option("address_pools", Ty::List(Box::new(Ty::Str)), "Where overlay networks get their addresses, such as `10.20.0.0/16`.")
        .option("subnet_size", Ty::Int, "The length of the prefix of each of these networks; 24 when not given.")
        .option(
            "force_new_cluster",
            Ty::Bool,
            "For a swarm that has lost its quorum for good: this manager goes on alone, with all services; false by default.",
        )
        .returns(Ty::Record("SwarmStatus"))
        .example(r#"docker("m1").swarm().init(#{ advertise: "192.0.2.11" });"#)
        .errors(ERRORS), |cx, e, call| init(cx, e, call).boxed()));
    r.add(acting(
        Spec::method(
            "Swarm",
            "leave",
            Effect::Converge,
            "Takes the engine out of its swarm. There is nothing to do when it is in none.\n\nA manager is made a worker first, and refused where the others would have no quorum then. Its containers end; \
             the node stays in the swarm's list as `down` until `SwarmNode.remove`.",
        )
        .option(
            "force",
            Ty::Bool,
            "Leave whatever it does to the swarm: with its last manager the swarm is gone, with all its services, secrets and configs; false by default.",
        )
        .example(r#"docker("w2").swarm().leave();"#)
        .errors(ERRORS), |cx, e, call| leave(cx, e, call).boxed()));
}

/// What an engine says of itself and a swarm.
pub(super) async fn look(cx: &Cx, e: &Engine) -> Result<Json> {
    let info = get(cx, e, &format!("asking \"{}\" for its swarm", e.name), "/info").await?;
    Ok(info.pointer("/Swarm").cloned().unwrap_or(Json::Null))
}

/// `inactive`, `pending`, `active`, `error` or `locked`.
pub(super) fn state(swarm: &Json) -> &str {
    match text(swarm, "/LocalNodeState") {
        "" => "inactive",
        state => state,
    }
}

/// An engine that is in a state that this does not fit.
pub(super) fn unfit(e: &Engine, why: &str, hint: &str) -> Error {
    Error::new(Code::SWARM_STATE, format!("\"{}\" {why}", e.name)).host(e.at()).hint(hint)
}

pub(super) fn info(swarm: &Json) -> Record {
    let remotes = items(swarm, "/RemoteManagers").iter().map(|m| Value::from(text(m, "/Addr"))).collect();
    Record::new(
        "SwarmStatus",
        [
            ("state", state(swarm).into()),
            ("node", text(swarm, "/NodeID").into()),
            ("address", text(swarm, "/NodeAddr").into()),
            ("manager", flag(swarm, "/ControlAvailable").into()),
            ("cluster", text(swarm, "/Cluster/ID").into()),
            ("nodes", Value::Int(int(swarm, "/Nodes"))),
            ("managers", Value::Int(int(swarm, "/Managers"))),
            ("remotes", Value::List(remotes)),
            ("error", text(swarm, "/Error").into()),
        ],
    )
}

async fn status(cx: &Cx, e: &Engine, _: &Call) -> Result<Outcome> {
    Ok(info(&look(cx, e).await?).into())
}

async fn init(cx: &Cx, e: &Engine, call: &Call) -> Result<Outcome> {
    let is = look(cx, e).await?;
    let advertise = call.opt_str("advertise");
    let anew = call.opt_bool("force_new_cluster");
    match state(&is) {
        "inactive" if anew => {
            return Err(unfit(e, "is in no swarm that it could go on with alone", "leave force_new_cluster out to make a new one"));
        }
        "inactive" => {}
        "active" if flag(&is, "/ControlAvailable") && (!anew || int(&is, "/Managers") == 1) => {
            // An interface's name cannot be compared with an address.
            let own = |a: &str| a.parse::<std::net::IpAddr>().is_err() || a == text(&is, "/NodeAddr");
            return match advertise.filter(|a| !own(a)) {
                Some(other) => Err(unfit(
                    e,
                    &format!("is a manager already, with the address {}, not {other}", text(&is, "/NodeAddr")),
                    "take it out of its swarm first by leave(), or leave `advertise` out",
                )),
                None => Ok(Outcome::unchanged(info(&is), "it is a manager already")),
            };
        }
        _ if anew => {}
        "active" => {
            return Err(unfit(e, "is a worker of a swarm", "take it out of that by leave(), or make it a manager there by promote()"));
        }
        other => {
            let why = format!("is {other} in a swarm: {}", text(&is, "/Error"));
            return Err(unfit(e, why.trim_end_matches(": "), "take it out of that by leave(#{ force: true })"));
        }
    }
    let mut body = json!({
        "ListenAddr": call.opt_str("listen").unwrap_or(LISTEN),
        "AdvertiseAddr": advertise.unwrap_or_default(),
        "DataPathAddr": call.opt_str("data_path").unwrap_or_default(),
        "ForceNewCluster": anew,
        "Spec": {},
    });
    let more = [
        ("DataPathPort", call.opt_int("data_path_port").map(Json::from)),
        ("DefaultAddrPool", call.opt("address_pools").map(Value::to_json)),
        ("SubnetSize", call.opt_int("subnet_size").map(Json::from)),
    ];
    for (key, value) in more {
        if let (Some(value), Some(body)) = (value, body.as_object_mut()) {
            body.insert(key.into(), value);
        }
    }
    let made = post(cx, e, &format!("making a swarm on \"{}\"", e.name), "/swarm/init", &body).await;
    made.map_err(|fault| match fault.message.contains("could not choose an IP address") {
        true => fault.hint("give #{ advertise: \"…\" }: the address under which the other nodes reach it"),
        false => fault,
    })?;
    Ok(Outcome::changed(info(&look(cx, e).await?)))
}

async fn leave(cx: &Cx, e: &Engine, call: &Call) -> Result<Outcome> {
    let (what, end, mut began) = (format!("taking \"{}\" out of its swarm", e.name), Instant::now() + WITHIN, false);
    loop {
        let is = look(cx, e).await?;
        if state(&is) == "inactive" {
            return Ok(Outcome::done(began, "it is in no swarm"));
        }
        // One that waits for a manager that never answers is no member, and is let go by force alone.
        let force = call.opt_bool("force") || state(&is) != "active";
        if !force && flag(&is, "/ControlAvailable") {
            let node = text(&is, "/NodeID");
            Managers::of(cx, e).await?.may_lose(e, node, "leaves").map_err(|refused| {
                refused.hint(
                    "start the managers that are down or promote other nodes first; leave(#{ force: true }) leaves whatever that does to the swarm",
                )
            })?;
            demote(cx, e, node, WITHIN).await?;
        }
        began = true;
        match post(cx, e, &what, &format!("/swarm/leave?force={force}"), &Json::Null).await {
            Ok(_) => return Ok(Outcome::changed(())),
            // A manager cannot be asked for a moment after its swarm has a new leader, and is one to its own engine for a moment after it was
            // made a worker.
            Err(fault) if !force && fault.message.contains("participating as a manager") && Instant::now() < end => {
                cx.sleep(Duration::from_millis(500)).await?;
            }
            Err(fault) => return Err(fault),
        }
    }
}
