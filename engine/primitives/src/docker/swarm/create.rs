//! `SwarmService.create`.

use futures::FutureExt as _;
use hyper::Method;
use runbook_core::primitive::{Cx, Outcome, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::{Code, Error, Result};
use serde_json::{Map, Value as Json, json};

use super::api::{differing, send, text};
use super::service::{ERRORS, info, look, search, wait_of};
use super::spec::{apply, login};
use super::wait::{Wait, converged};
use super::{MADE, options};
use crate::docker::ACTION;
use crate::docker::acts::acting;
use crate::docker::engine::Engine;
use crate::docker::things::{name, named};

pub(super) fn register(r: &mut Registry) {
    r.add(acting(options::options(
        Spec::method(
            "SwarmService",
            "create",
            Effect::Converge,
            "Makes the service, unless it is there, and waits until its tasks run. One that differs from what the options say is an error: `update` changes it.",
        )
        .arg("image", Ty::Str, "The image of its tasks, which each node has or can pull.")
        .returns(Ty::Record("SwarmServiceInfo"))
        .example(
            r#"docker("m1").swarm().service("web").create("shop:7", #{ replicas: 3, ports: ["80:8080"], secrets: ["db_password"], update_failure: "rollback" });"#,
        )
        .errors(ERRORS),
    ), |cx, e, call| create(cx, e, call).boxed()));
}

/// The name of an image, refused when it could be none.
pub(super) fn image(given: &str) -> Result<&str> {
    if named(given, true) {
        return Ok(given);
    }
    Err(Error::new(Code::COMMAND_BAD, format!("\"{given}\" cannot be the name of an image")))
}

/// Puts labels of ours on a specification.
pub(super) fn mark(spec: &mut Json, labels: &[(&str, &str)]) {
    let Some(spec) = spec.as_object_mut() else { return };
    let there = spec.entry("Labels").or_insert_with(|| json!({}));
    if !there.is_object() {
        *there = Json::Object(Map::new());
    }
    if let Some(there) = there.as_object_mut() {
        there.extend(labels.iter().map(|(k, v)| ((*k).to_string(), Json::from(*v))));
    }
}

async fn create(cx: &Cx, e: &Engine, call: &Call) -> Result<Outcome> {
    let (name, image) = (name(call), image(call.str(0))?);
    let made = match search(cx, e, name).await? {
        Some(is) => {
            let present = is.pointer("/Spec").cloned().unwrap_or(Json::Null);
            let mut wanted = present.clone();
            apply(cx, e, call, Some(image), &mut wanted).await?;
            let other = differing(&present, &wanted);
            if !other.is_empty() {
                return Err(Error::new(
                    Code::DOCKER_CONFLICT,
                    format!("the service {name} on \"{}\" is there, and differs in {}", e.name, other.join(", ")),
                )
                .host(e.at())
                .hint("update() changes it; remove() it first to have it made anew"));
            }
            // One that a controller made which died is as new.
            text(&present, "/Labels/runbook.action") == cx.action_id.0
        }
        None => {
            let mut spec = json!({"Name": name, "Mode": {"Replicated": {"Replicas": 1}}, "TaskTemplate": {"ContainerSpec": {}}});
            apply(cx, e, call, Some(image), &mut spec).await?;
            mark(&mut spec, &[(ACTION, &cx.action_id.0), (MADE, &cx.run)]);
            let what = format!("making the service {name} on \"{}\"", e.name);
            let login = login(cx, call);
            let sent = send(cx, e, &what, Method::POST, "/services/create", Some(&spec), login.as_deref()).await;
            match sent {
                // The request of a controller that died may have come through just now.
                Err(fault) if fault.code == Code::DOCKER_CONFLICT => {
                    let is = look(cx, e, name).await?;
                    if text(&is, "/Spec/Labels/runbook.action") != cx.action_id.0 {
                        return Err(fault);
                    }
                }
                sent => drop(sent?),
            }
            true
        }
    };
    let is = if call.opt_bool("detach") {
        look(cx, e, name).await?
    } else {
        converged(cx, e, &Wait { back: !made, ..wait_of(call, name, 0) }).await?
    };
    Ok(if made { Outcome::changed(info(&is)) } else { Outcome::unchanged(info(&is), "it is there and runs") })
}
