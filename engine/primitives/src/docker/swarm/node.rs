//! `Swarm.nodes`; `SwarmNode.inspect`, `label` and `remove`; and how a node is found and changed.

use std::collections::BTreeMap;

use futures::FutureExt as _;
use runbook_core::primitive::{Cx, Outcome, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::{Code, Error, Record, Result, Value};
use serde_json::{Value as Json, json};

use super::api::{all, delete, encoded, flag, get, int, post, text, texts};
use super::{former, former_key};
use crate::docker::acts::acting;
use crate::docker::engine::Engine;
use crate::docker::info::in_order;
use crate::docker::things::name;

pub(super) const ERRORS: &[Code] = &[
    Code::DOCKER,
    Code::DOCKER_MISSING,
    Code::DOCKER_CONFLICT,
    Code::SWARM_STATE,
    Code::SWARM_QUORUM,
    Code::DOCKER_CONNECT,
    Code::SSH_CONNECT,
];
/// How often a change is tried anew when the node was changed meanwhile.
const ATTEMPTS: usize = 8;

pub(super) fn register(r: &mut Registry) {
    r.add_type(
        TypeSpec::new("SwarmNodeInfo", "A node of a swarm, as its managers know it.")
            .field("id", Ty::Str, "Its id.")
            .field("name", Ty::Str, "The name of its host.")
            .field("role", Ty::Str, "`worker` or `manager`.")
            .field("availability", Ty::Str, "`active`, `pause` (no new tasks) or `drain` (no tasks).")
            .field("state", Ty::Str, "`ready`, `down`, `disconnected` or `unknown`.")
            .field("leader", Ty::Bool, "Whether it is the manager that leads the others.")
            .field("reachability", Ty::Str, "Of a manager: `reachable`, `unreachable` or `unknown`; empty for a worker.")
            .field("address", Ty::Str, "Its address.")
            .field("version", Ty::Str, "The version of its engine.")
            .field("labels", Ty::Map(Box::new(Ty::Str)), "Its labels, which constraints such as `node.labels.disk==ssd` are about."),
    );
    r.add(acting(
        Spec::method("Swarm", "nodes", Effect::Read, "Lists the nodes, in order of their names.")
            .returns(Ty::List(Box::new(Ty::Record("SwarmNodeInfo"))))
            .example(r#"if docker("m1").swarm().nodes().some(|n| n.state != "ready") { throw "a node is not well"; }"#)
            .errors(ERRORS),
        |cx, e, call| list(cx, e, call).boxed(),
    ));
    r.add(acting(
        Spec::method("SwarmNode", "inspect", Effect::Read, "Tells what the node is and how it fares.")
            .returns(Ty::Record("SwarmNodeInfo"))
            .example(r#"log(docker("m1").swarm().node("web2").inspect().availability);"#)
            .errors(ERRORS),
        |cx, e, call| inspect(cx, e, call).boxed(),
    ));
    r.add(acting(
        Spec::method(
            "SwarmNode",
            "label",
            Effect::Converge,
            "Sets labels of the node; `()` removes one. Other labels stay. There is nothing to do when all of them are so.\n\n\
             It gives what these labels were before, with `()` for those that were not there: `label` of that takes it back.",
        )
        .arg("labels", Ty::Map(Box::new(Ty::OneOf(vec![Ty::Str, Ty::Unit]))), "The labels and their values.")
        .returns(Ty::Map(Box::new(Ty::OneOf(vec![Ty::Str, Ty::Unit]))))
        .example(r#"docker("m1").swarm().node("web2").label(#{ disk: "ssd", old: () });"#)
        .errors(ERRORS),
        |cx, e, call| label(cx, e, call).boxed(),
    ));
    r.add(acting(
        Spec::method(
            "SwarmNode",
            "remove",
            Effect::Converge,
            "Takes a node that has left off the swarm's list. There is nothing to do when there is none; one that is up, or a manager, is an error.",
        )
        .option("force", Ty::Bool, "Even when it is up: it is expelled then; false by default.")
        .example(r#"docker("m1").swarm().node("web2").remove();"#)
        .errors(ERRORS), |cx, e, call| remove(cx, e, call).boxed()));
}

/// Every node of the swarm.
pub(super) async fn nodes(cx: &Cx, e: &Engine) -> Result<Vec<Json>> {
    Ok(all(get(cx, e, &format!("listing the nodes of the swarm of \"{}\"", e.name), "/nodes").await?))
}

/// The names of the nodes by their ids.
pub(super) async fn names(cx: &Cx, e: &Engine) -> Result<BTreeMap<String, String>> {
    let all = nodes(cx, e).await?;
    Ok(all.iter().map(|n| (text(n, "/ID").to_string(), text(n, "/Description/Hostname").to_string())).collect())
}

/// Whether its managers hear of the node no more.
pub(super) fn is_down(node: &Json) -> bool {
    text(node, "/Status/State") == "down"
}

/// The node of that host name or id. A host that has left and joined again is in the list twice: the one that `wants` is taken then.
pub(super) async fn find(cx: &Cx, e: &Engine, name: &str, wants: impl Fn(&Json) -> bool) -> Result<Option<Json>> {
    let mut found: Vec<Json> = nodes(cx, e).await?;
    found.retain(|n| text(n, "/ID") == name || text(n, "/Description/Hostname") == name);
    if found.len() > 1 && found.iter().any(&wants) {
        found.retain(wants);
    }
    let ids: Vec<&str> = found.iter().map(|n| text(n, "/ID")).collect();
    if ids.len() > 1 {
        return Err(Error::new(Code::DOCKER_CONFLICT, format!("the swarm of \"{}\" has {} nodes called {name}", e.name, ids.len()))
            .host(e.at())
            .hint(format!("name one by its id: {}", ids.join(", "))));
    }
    Ok(found.pop())
}

/// As [`find`], which must find one.
pub(super) async fn need(cx: &Cx, e: &Engine, name: &str) -> Result<Json> {
    find(cx, e, name, |n| !is_down(n)).await?.ok_or_else(|| {
        Error::new(Code::DOCKER_MISSING, format!("the swarm of \"{}\" has no node {name}", e.name))
            .host(e.at())
            .hint("nodes() lists them: a node has the name that its host has, or its id")
    })
}

/// Changes a node's specification; the node as it was, and whether there was anything to change. Somebody else's change at the same moment
/// is no hindrance, as only one part is written.
pub(super) async fn change(cx: &Cx, e: &Engine, name: &str, what: &str, mut with: impl FnMut(&mut Json)) -> Result<(Json, bool)> {
    let mut attempt = 0;
    loop {
        let node = need(cx, e, name).await?;
        let before = node.pointer("/Spec").cloned().unwrap_or_else(|| json!({}));
        let mut spec = before.clone();
        with(&mut spec);
        if spec == before {
            return Ok((node, false));
        }
        let path = format!("/nodes/{}/update?version={}", encoded(text(&node, "/ID")), int(&node, "/Version/Index"));
        match post(cx, e, what, &path, &spec).await {
            Err(fault) if fault.code == Code::SERVICE_CHANGED && attempt < ATTEMPTS => attempt += 1,
            Err(fault) => return Err(fault),
            Ok(_) => return Ok((node, true)),
        }
    }
}

fn info(n: &Json) -> Record {
    let at = |path| Value::from(text(n, path));
    // A manager is known by what it says to the others, a worker by what it was heard with.
    let address = match text(n, "/Status/Addr") {
        "" | "0.0.0.0" => text(n, "/ManagerStatus/Addr").rsplit_once(':').map_or("", |(a, _)| a),
        address => address,
    };
    Record::new(
        "SwarmNodeInfo",
        [
            ("id", at("/ID")),
            ("name", at("/Description/Hostname")),
            ("role", at("/Spec/Role")),
            ("availability", at("/Spec/Availability")),
            ("state", at("/Status/State")),
            ("leader", flag(n, "/ManagerStatus/Leader").into()),
            ("reachability", at("/ManagerStatus/Reachability")),
            ("address", address.into()),
            ("version", at("/Description/Engine/EngineVersion")),
            ("labels", texts(n, "/Spec/Labels")),
        ],
    )
}

async fn list(cx: &Cx, e: &Engine, _: &Call) -> Result<Outcome> {
    Ok(in_order(nodes(cx, e).await?.iter().map(info).collect(), "name"))
}

async fn inspect(cx: &Cx, e: &Engine, call: &Call) -> Result<Outcome> {
    Ok(info(&need(cx, e, name(call)).await?).into())
}

/// Sets labels, or removes those that are `()`.
pub(super) fn set_labels(spec: &mut Json, given: &BTreeMap<String, Value>) {
    let Some(spec) = spec.as_object_mut() else { return };
    let labels = spec.entry("Labels").or_insert_with(|| json!({}));
    if labels.is_null() {
        *labels = json!({});
    }
    let Some(labels) = labels.as_object_mut() else { return };
    for (k, v) in given {
        match v.as_str() {
            Some(v) => drop(labels.insert(k.clone(), v.into())),
            None => drop(labels.remove(k)),
        }
    }
}

async fn label(cx: &Cx, e: &Engine, call: &Call) -> Result<Outcome> {
    let name = name(call);
    let given = call.arg(0).as_map().cloned().unwrap_or_default();
    let node = need(cx, e, name).await?;
    let was = former(cx, || {
        let labels = texts(&node, "/Spec/Labels");
        let has = |k: &String| labels.as_map().and_then(|l| l.get(k)).cloned().unwrap_or_default();
        Value::Map(given.keys().map(|k| (k.clone(), has(k))).collect())
    })?;
    let what = format!("labelling the node {name} of the swarm of \"{}\"", e.name);
    let (_, changed) = change(cx, e, name, &what, |spec| set_labels(spec, &given)).await?;
    let outcome = if changed { Outcome::changed(was) } else { Outcome::unchanged(was, "it has these labels") };
    Ok(outcome.fact(former_key(cx), Value::Unit))
}

async fn remove(cx: &Cx, e: &Engine, call: &Call) -> Result<Outcome> {
    let name = name(call);
    let Some(node) = find(cx, e, name, is_down).await? else { return Ok(Outcome::unchanged((), "there is none")) };
    let what = format!("removing the node {name} from the swarm of \"{}\"", e.name);
    let path = format!("/nodes/{}?force={}", encoded(text(&node, "/ID")), call.opt_bool("force"));
    let removed = delete(cx, e, &what, &path).await.map_err(|fault| {
        let said = fault.message.clone();
        if said.contains("is not down") {
            fault
                .hint("let it leave() first, or expel it by #{ force: true }; what has just left is down after some seconds")
                .retryable(true)
        } else if said.contains("manager") {
            fault.hint("demote() it first")
        } else {
            fault
        }
    })?;
    Ok(Outcome::done(removed, "there is none"))
}
