//! `SwarmService.update` and `rollback`: each exactly once.
//!
//! Before the request, what the service was and what it is to be is kept as a fact (as digests, since a specification may hold secrets), with
//! the swarm's count of changes. A version that came of an action bears that action's label. So whoever asks for the action again, after a
//! crash of any kind, sees whether it never began, is under way, is done, or was taken back by the swarm.

use std::collections::BTreeMap;

use async_trait::async_trait;
use hyper::Method;
use runbook_core::digest::sha256_hex;
use runbook_core::primitive::{Cx, Outcome, Primitive, Reconciled, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::{Code, Error, Result, Value};
use serde_json::Value as Json;

use super::api::{differing, int, pruned, send, text};
use super::create::{image, mark};
use super::service::{ERRORS, info, look, path, wait_of};
use super::spec::{apply, login};
use super::wait::{Wait, converged};
use super::{UPDATED, by_this_run, options};
use crate::docker::ACTION;
use crate::docker::engine::Engine;
use crate::docker::things::name;

/// How often a change is tried anew when only the swarm itself has written to the service meanwhile.
const ATTEMPTS: usize = 8;

pub(super) fn register(r: &mut Registry) {
    r.add(Update(options::options(
        Spec::method(
            "SwarmService",
            "update",
            Effect::Once,
            "Changes the service in what the options say, exactly once, and waits until it has converged. What is not given stays as it is; a list replaces that list. \
             There is nothing to do when all of it is so.\n\n\
             An update that the swarm stops or rolls back is an error, with what the tasks said. A change of the service by somebody else at the same moment is never overwritten.",
        )
        .option("image", Ty::Str, "The new image, which each node has or can pull.")
        .option("force", Ty::Bool, "Make its tasks anew even if nothing is changed; false by default.")
        .returns(Ty::Record("SwarmServiceInfo"))
        .example(r#"docker("m1").swarm().service("shop_web").update(#{ image: "shop:8", update_failure: "rollback", update_order: "start-first" });"#)
        .errors(ERRORS),
    )));
    r.add(Rollback(options::waiting(
        Spec::method(
            "SwarmService",
            "rollback",
            Effect::Once,
            "Brings the service's former version back, exactly once, and waits until it has converged. It undoes an `update` of this run: there is nothing to do when the present version is of no such update, \
             as when the update never began or was rolled back by the swarm.\n\nThe swarm keeps one former version only: where that is not the one before the update, it is an error.",
        )
        .option("any", Ty::Bool, "Whoever has made the present version; false by default.")
        .returns(Ty::Record("SwarmServiceInfo"))
        .example(r#"docker("m1").swarm().service("shop_web").rollback();"#)
        .errors(ERRORS),
    )));
}

/// What an action is about to do to a service.
struct Change {
    /// The swarm's count of changes before.
    index: i64,
    /// The digest of the specification before.
    from: String,
    /// That of the specification after.
    to: String,
}

fn digest(spec: &Json) -> String {
    sha256_hex(pruned(spec).to_string().as_bytes())
}

impl Change {
    fn key(cx: &Cx) -> String {
        format!("docker.service.{}", cx.action_id)
    }

    fn keep(&self, cx: &Cx) -> Result<()> {
        let fields = [("index", Value::Int(self.index)), ("from", self.from.as_str().into()), ("to", self.to.as_str().into())];
        let value = Value::Map(fields.into_iter().map(|(k, v)| (k.to_string(), v)).collect());
        cx.facts.put(BTreeMap::from([(Change::key(cx), value)]))
    }

    fn kept(cx: &Cx) -> Result<Option<Change>> {
        let Some(Value::Map(m)) = cx.facts.get(&Change::key(cx))? else { return Ok(None) };
        let text = |k: &str| m.get(k).and_then(Value::as_str).unwrap_or_default().to_string();
        Ok(Some(Change { index: m.get("index").and_then(Value::as_int).unwrap_or_default(), from: text("from"), to: text("to") }))
    }
}

/// Sends a new specification. What else the swarm writes to the service (how an update stands) is no hindrance; what somebody else writes is.
async fn change(cx: &Cx, e: &Engine, call: &Call, what: &str, query: &str, former: &Json, wanted: &Json) -> Result<Change> {
    let name = name(call);
    let (from, login) = (digest(former), login(cx, call));
    let mut attempt = 0;
    loop {
        let is = look(cx, e, name).await?;
        let present = is.pointer("/Spec").cloned().unwrap_or(Json::Null);
        if digest(&present) != from {
            return Err(Error::new(
                Code::SERVICE_CHANGED,
                format!("the service {name} on \"{}\" was changed by somebody else in {}", e.name, differing(former, &present).join(", ")),
            )
            .host(e.at())
            .hint("nothing was written; see what they did, then do it again")
            .retryable(true));
        }
        let change = Change { index: int(&is, "/Version/Index"), from: from.clone(), to: digest(wanted) };
        change.keep(cx)?;
        let path = format!("{}/update?version={}{query}", path(name), change.index);
        match send(cx, e, what, Method::POST, &path, Some(wanted), login.as_deref()).await {
            Err(fault) if fault.code == Code::SERVICE_CHANGED && attempt < ATTEMPTS => attempt += 1,
            Err(fault) => return Err(fault),
            Ok(_) => return Ok(change),
        }
    }
}

/// Waits for what an action has begun.
async fn finish(cx: &Cx, e: &Engine, call: &Call, wait: &Wait<'_>) -> Result<Outcome> {
    let name = name(call);
    let is = if call.opt_bool("detach") { look(cx, e, name).await? } else { converged(cx, e, wait).await? };
    Ok(Outcome::changed(info(&is)).fact(Change::key(cx), Value::Unit))
}

/// What became of the action, as the service tells.
async fn found(cx: &Cx, call: &Call, e: &Engine, result: impl AsyncFnOnce(i64) -> Result<Outcome>) -> Result<Reconciled> {
    let name = name(call);
    let Some(change) = Change::kept(cx)? else { return Ok(Reconciled::NotStarted) };
    let is = look(cx, e, name).await?;
    let present = is.pointer("/Spec").cloned().unwrap_or(Json::Null);
    let (marked, digest) = (text(&present, "/Labels/runbook.action") == cx.action_id.0, digest(&present));
    let rolled_back = text(&is, "/UpdateStatus/State").starts_with("rollback") && int(&is, "/Version/Index") > change.index;
    if marked || digest == change.to || digest == change.from && rolled_back {
        return Ok(match result(change.index).await {
            Ok(outcome) => Reconciled::Done(outcome),
            Err(fault) if matches!(fault.code, Code::SERVICE_UPDATE | Code::SERVICE_CONVERGE) => Reconciled::Failed(fault),
            Err(fault) => return Err(fault),
        });
    }
    if digest == change.from {
        return Ok(Reconciled::NotStarted);
    }
    Ok(Reconciled::Unknown {
        known: format!("the service {name} on \"{}\" is neither what it was nor what it was to be: somebody else has changed it", e.name),
    })
}

struct Update(Spec);

#[async_trait]
impl Primitive for Update {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (e, name) = (Engine::on(cx, call).await?, name(call));
        let given = call.opt_str("image").map(image).transpose()?;
        let is = look(cx, &e, name).await?;
        let present = is.pointer("/Spec").cloned().unwrap_or(Json::Null);
        let mut wanted = present.clone();
        apply(cx, &e, call, given, &mut wanted).await?;
        if call.opt_bool("force") {
            let n = int(&wanted, "/TaskTemplate/ForceUpdate") + 1;
            if let Some(task) = wanted.pointer_mut("/TaskTemplate").and_then(Json::as_object_mut) {
                task.insert("ForceUpdate".into(), n.into());
            }
        }
        if differing(&present, &wanted).is_empty() {
            let wait = Wait { back: true, ..wait_of(call, name, int(&is, "/Version/Index")) };
            let outcome = finish(cx, &e, call, &wait).await?;
            return Ok(Outcome { changed: Some(false), note: Some("all of it is so already".into()), ..outcome });
        }
        mark(&mut wanted, &[(ACTION, &cx.action_id.0), (UPDATED, &cx.run)]);
        let what = format!("updating the service {name} on \"{}\"", e.name);
        let change = change(cx, &e, call, &what, "", &present, &wanted).await?;
        finish(cx, &e, call, &wait_of(call, name, change.index)).await
    }

    async fn reconcile(&self, cx: &Cx, call: &Call) -> Result<Reconciled> {
        let e = Engine::on(cx, call).await?;
        found(cx, call, &e, async |index| finish(cx, &e, call, &wait_of(call, name(call), index)).await).await
    }
}

struct Rollback(Spec);

/// Why the former version that the swarm keeps is not the one that is meant.
fn gone(e: &Engine, name: &str, why: &str) -> Error {
    Error::new(Code::DOCKER_CONFLICT, format!("the version of the service {name} on \"{}\" before the update is not kept any more: {why}", e.name))
        .host(e.at())
        .hint("give the former values by update(#{ … }); of several changes of one service in a run, only the last can be taken back by rollback()")
}

/// Waits until the former version runs. That the swarm says of it that it was rolled back is what was wanted here.
async fn rolled_back(cx: &Cx, e: &Engine, call: &Call, since: i64) -> Result<Outcome> {
    finish(cx, e, call, &Wait { back: true, ..wait_of(call, name(call), since) }).await
}

#[async_trait]
impl Primitive for Rollback {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (e, name, any) = (Engine::on(cx, call).await?, name(call), call.opt_bool("any"));
        let is = look(cx, &e, name).await?;
        let present = is.pointer("/Spec").cloned().unwrap_or(Json::Null);
        if !any && !by_this_run(cx, &present, UPDATED) {
            return Ok(Outcome::unchanged(info(&is), "its present version is of no update of this run"));
        }
        let Some(former) = is.pointer("/PreviousSpec").filter(|s| s.is_object()) else {
            return Err(gone(&e, name, "the swarm has none"));
        };
        let mark = |spec: &Json| text(spec, "/Labels/runbook.action").to_string();
        if !any && mark(former) == mark(&present) {
            return Err(gone(&e, name, "the service was changed since, as by scale()"));
        }
        if !any && text(&is, "/UpdateStatus/State").starts_with("rollback") {
            return Err(gone(&e, name, "the present version was itself brought back by a rollback"));
        }
        let what = format!("rolling the service {name} on \"{}\" back", e.name);
        let change = {
            let kept = Change { index: int(&is, "/Version/Index"), from: digest(&present), to: digest(former) };
            kept.keep(cx)?;
            let path = format!("{}/update?version={}&rollback=previous", path(name), kept.index);
            send(cx, &e, &what, Method::POST, &path, Some(&present), None).await?;
            kept
        };
        rolled_back(cx, &e, call, change.index).await
    }

    async fn reconcile(&self, cx: &Cx, call: &Call) -> Result<Reconciled> {
        let e = Engine::on(cx, call).await?;
        let Some(change) = Change::kept(cx)? else { return Ok(Reconciled::NotStarted) };
        let is = look(cx, &e, name(call)).await?;
        let digest = digest(is.pointer("/Spec").unwrap_or(&Json::Null));
        if digest == change.from {
            return Ok(Reconciled::NotStarted);
        }
        if digest != change.to {
            let known = format!("the service {} on \"{}\" is neither what it was nor what it was to be", name(call), e.name);
            return Ok(Reconciled::Unknown { known });
        }
        Ok(match rolled_back(cx, &e, call, change.index).await {
            Ok(outcome) => Reconciled::Done(outcome),
            Err(fault) if matches!(fault.code, Code::SERVICE_UPDATE | Code::SERVICE_CONVERGE) => Reconciled::Failed(fault),
            Err(fault) => return Err(fault),
        })
    }
}
