//! `SwarmNode.tasks`, `SwarmService.tasks`, `SwarmStack.tasks`, and what is said of a task.

use std::collections::BTreeMap;

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::{Record, Result, Value};
use serde_json::Value as Json;

use super::api::{all, filters, get, int, text};
use super::node::{ERRORS, names, need};
use super::service::{look, of_stack};
use crate::docker::engine::Engine;
use crate::docker::info::in_order;
use crate::docker::things::name;

pub(super) fn register(r: &mut Registry) {
    r.add_type(
        TypeSpec::new("SwarmTask", "A task of a service: one container on one node.")
            .field("name", Ty::Str, "The service and its slot, such as `shop_web.2`; the node instead of a slot for a global service.")
            .field("id", Ty::Str, "Its id.")
            .field("service", Ty::Str, "The service.")
            .field("node", Ty::Str, "The host name of its node; empty until it has one.")
            .field("image", Ty::Str, "The image of its container.")
            .field(
                "state",
                Ty::Str,
                "What it is: `pending`, `preparing`, `running`, `complete`, `shutdown`, `failed`, `rejected` and so on.",
            )
            .field("desired", Ty::Str, "What the swarm wants it to be: `running`, `shutdown` and so on.")
            .field("error", Ty::Str, "Why it failed or has no node; empty when nothing is wrong.")
            .field("since", Ty::OneOf(vec![Ty::Time, Ty::Unit]), "Since when it is in its state."),
    );
    let spec = |on, doc, example| {
        Spec::method(on, "tasks", Effect::Read, doc)
            .option("all", Ty::Bool, "Those too that have ended, as far as the swarm keeps them; false by default.")
            .returns(Ty::List(Box::new(Ty::Record("SwarmTask"))))
            .example(example)
            .errors(ERRORS)
    };
    r.add(Tasks(
        Of::Node,
        spec(
            "SwarmNode",
            "Lists the tasks on the node, in order of their names.",
            r#"for t in docker("m1").swarm().node("web2").tasks() { log(t.name); }"#,
        ),
    ));
    r.add(Tasks(
        Of::Service,
        spec(
            "SwarmService",
            "Lists the tasks of the service, in order of their names.",
            r#"for t in docker("m1").swarm().service("shop_web").tasks() { log(`${t.name} on ${t.node}: ${t.state}`); }"#,
        ),
    ));
    r.add(Tasks(
        Of::Stack,
        spec(
            "SwarmStack",
            "Lists the tasks of the stack's services, in order of their names.",
            r#"for t in docker("m1").swarm().stack("shop").tasks(#{ all: true }) { log(`${t.name}: ${t.error}`); }"#,
        ),
    ));
}

/// The tasks of a service.
pub(super) async fn of_service(cx: &Cx, e: &Engine, id: &str) -> Result<Vec<Json>> {
    let what = format!("listing the tasks of a service on \"{}\"", e.name);
    Ok(all(get(cx, e, &what, &format!("/tasks{}", filters(&[("service", id)]))).await?))
}

/// The tasks of a service that are of its present version.
pub(super) async fn up_to_date(cx: &Cx, e: &Engine, id: &str) -> Result<Vec<Json>> {
    let what = format!("listing the tasks of a service on \"{}\"", e.name);
    Ok(all(get(cx, e, &what, &format!("/tasks{}", filters(&[("service", id), ("_up-to-date", "true")]))).await?))
}

/// Whether it has ended, well or not.
pub(super) fn is_over(t: &Json) -> bool {
    matches!(text(t, "/Status/State"), "complete" | "shutdown" | "failed" | "rejected" | "remove" | "orphaned")
}

/// Whether it has ended because something went wrong.
pub(super) fn is_failed(t: &Json) -> bool {
    matches!(text(t, "/Status/State"), "failed" | "rejected")
}

/// Whether the swarm wants it to run.
pub(super) fn is_wanted(t: &Json) -> bool {
    matches!(text(t, "/DesiredState"), "running" | "ready" | "complete")
}

/// What went wrong with it; empty when nothing did.
pub(super) fn error(t: &Json) -> String {
    let (said, code) = (text(t, "/Status/Err"), int(t, "/Status/ContainerStatus/ExitCode"));
    match (said, code) {
        // The engine's own words for it, and "task: non-zero exit (1)" when it has none.
        ("", 0) => String::new(),
        ("", code) => format!("it ended with status {code}"),
        (said, _) => said.trim().to_string(),
    }
}

/// A task in a message: `web.2 on node3: failed: no such image`.
pub(super) fn shown(t: &Json, service: &str, node: &str) -> String {
    let on = if node.is_empty() { String::new() } else { format!(" on {node}") };
    let why = error(t);
    let why = if why.is_empty() { String::new() } else { format!(": {why}") };
    format!("{}{on}: {}{why}", named(t, service, node), text(t, "/Status/State"))
}

/// The service of a task, when only its id is at hand: the name that its containers have before the first dot, or the id.
pub(super) fn services(t: &Json) -> String {
    text(t, "/ServiceID").chars().take(12).collect()
}

/// The name of a task.
fn named(t: &Json, service: &str, node: &str) -> String {
    match int(t, "/Slot") {
        0 if node.is_empty() => service.to_string(),
        0 => format!("{service}.{node}"),
        slot => format!("{service}.{slot}"),
    }
}

fn info(t: &Json, service: &str, nodes: &BTreeMap<String, String>) -> Record {
    let node = nodes.get(text(t, "/NodeID")).map_or(text(t, "/NodeID"), String::as_str);
    let since = text(t, "/Status/Timestamp").parse().map_or(Value::Unit, Value::Time);
    Record::new(
        "SwarmTask",
        [
            ("name", named(t, service, node).into()),
            ("id", text(t, "/ID").into()),
            ("service", service.into()),
            ("node", node.into()),
            ("image", text(t, "/Spec/ContainerSpec/Image").into()),
            ("state", text(t, "/Status/State").into()),
            ("desired", text(t, "/DesiredState").into()),
            ("error", error(t).into()),
            ("since", since),
        ],
    )
}

#[derive(Debug, Clone, Copy)]
enum Of {
    Node,
    Service,
    Stack,
}

struct Tasks(Of, Spec);

#[async_trait]
impl Primitive for Tasks {
    fn spec(&self) -> &Spec {
        &self.1
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (e, name, ended) = (Engine::on(cx, call).await?, name(call), call.opt_bool("all"));
        let nodes = names(cx, &e).await?;
        let mut found = vec![];
        match self.0 {
            Of::Node => {
                let id = text(&need(cx, &e, name).await?, "/ID").to_string();
                let what = format!("listing the tasks on the node {name} of the swarm of \"{}\"", e.name);
                let tasks = all(get(cx, &e, &what, &format!("/tasks{}", filters(&[("node", &id)]))).await?);
                let services = super::service::names(cx, &e).await?;
                for t in tasks {
                    let service = services.get(text(&t, "/ServiceID")).cloned().unwrap_or_else(|| self::services(&t));
                    found.push((service, t));
                }
            }
            Of::Service => {
                let s = look(cx, &e, name).await?;
                found.extend(of_service(cx, &e, text(&s, "/ID")).await?.into_iter().map(|t| (name.to_string(), t)));
            }
            Of::Stack => {
                for s in of_stack(cx, &e, name).await? {
                    let service = text(&s, "/Spec/Name").to_string();
                    found.extend(of_service(cx, &e, text(&s, "/ID")).await?.into_iter().map(|t| (service.clone(), t)));
                }
            }
        }
        let kept = found.iter().filter(|(_, t)| ended || !is_over(t) || is_wanted(t));
        Ok(in_order(kept.map(|(service, t)| info(t, service, &nodes)).collect(), "name"))
    }
}
