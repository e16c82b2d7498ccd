//! `Swarm.services`; `SwarmService.inspect`, `scale`, `remove`, `wait_converged` and `logs`.

use std::collections::BTreeMap;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptions;
use futures::{FutureExt as _, StreamExt as _};
use runbook_core::primitive::{Cx, Outcome, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::units::show_duration;
use runbook_core::{Code, Error, Record, Result, Value};
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use super::api::{all, delete, encoded, filters, find, get, int, items, post, text, texts};
use super::node::{is_down, nodes};
use super::task::is_over;
use super::wait::{WITHIN, Wait, converged};
use super::{MADE, STACK, by_this_run, former, former_key, options};
use crate::docker::acts::acting;
use crate::docker::engine::Engine;
use crate::docker::info::in_order;
use crate::docker::things::name;

pub(super) const ERRORS: &[Code] = &[
    Code::SERVICE_CONVERGE,
    Code::SERVICE_UPDATE,
    Code::SERVICE_CHANGED,
    Code::DOCKER,
    Code::DOCKER_MISSING,
    Code::DOCKER_CONFLICT,
    Code::SWARM_STATE,
    Code::SWARM_QUORUM,
    Code::DOCKER_CONNECT,
    Code::SSH_CONNECT,
];
/// As many bytes at most of what its tasks wrote are given to a script.
const LIMIT: usize = 256 << 10;
/// How often a change of one number is tried anew when the service was changed meanwhile.
const ATTEMPTS: usize = 8;

pub(super) fn register(r: &mut Registry) {
    r.add_type(
        TypeSpec::new("SwarmServiceInfo", "A service of a swarm.")
            .field("name", Ty::Str, "Its name.")
            .field("id", Ty::Str, "Its id.")
            .field("image", Ty::Str, "The image of its tasks.")
            .field("mode", Ty::Str, "`replicated`, `global` (one task on each node) or a job.")
            .field("replicas", Ty::Int, "How many tasks are wanted; 0 for a global service.")
            .field(
                "update",
                Ty::Str,
                "How its last update stands: `updating`, `completed`, `paused`, `rollback_completed` and so on; empty when there was none.",
            )
            .field("said", Ty::Str, "What the swarm says of that.")
            .field(
                "ports",
                Ty::List(Box::new(Ty::Str)),
                "Its published ports: `8080:80/tcp`, with `@host` where only nodes with a task publish it.",
            )
            .field("labels", Ty::Map(Box::new(Ty::Str)), "Its labels.")
            .field("version", Ty::Int, "The swarm's count of changes at its last one."),
    );
    r.add(acting(
        Spec::method("Swarm", "services", Effect::Read, "Lists the services, in order of their names.")
            .option("label", Ty::Str, "Only those with this label: `name` or `name=value`.")
            .returns(Ty::List(Box::new(Ty::Record("SwarmServiceInfo"))))
            .example(r#"for s in docker("m1").swarm().services() { log(`${s.name}: ${s.image}`); }"#)
            .errors(ERRORS),
        |cx, e, call| list(cx, e, call).boxed(),
    ));
    r.add(acting(
        Spec::method("SwarmService", "inspect", Effect::Read, "Tells what the service is and how its last update stands.")
            .returns(Ty::Record("SwarmServiceInfo"))
            .example(r#"log(docker("m1").swarm().service("shop_web").inspect().image);"#)
            .errors(ERRORS),
        |cx, e, call| inspect(cx, e, call).boxed(),
    ));
    r.add(acting(options::waiting(
        Spec::method(
            "SwarmService",
            "scale",
            Effect::Converge,
            "Gives the service that many tasks, and waits until they run. There is nothing to do when it has as many.\n\nIt gives how many it had before: `scale` of that takes it back.",
        )
        .arg("replicas", Ty::Int, "How many tasks.")
        .returns(Ty::Int)
        .example(r#"docker("m1").swarm().service("shop_web").scale(3);"#)
        .errors(ERRORS),
    ), |cx, e, call| scale(cx, e, call).boxed()));
    r.add(acting(
        Spec::method(
            "SwarmService",
            "remove",
            Effect::Converge,
            "Removes the service, and waits until its containers have ended. There is nothing to do when there is none.",
        )
        .option("own", Ty::Bool, "Only when this run has made it, as an undo block wants; false by default.")
        .option("within", Ty::Duration, "How long its containers may take to end; `\"5m\"` when not given.")
        .example(r#"docker("m1").swarm().service("shop_old").remove();"#)
        .errors(ERRORS),
        |cx, e, call| remove(cx, e, call).boxed(),
    ));
    r.add(acting(options::waiting(
        Spec::method(
            "SwarmService",
            "wait_converged",
            Effect::Read,
            "Waits until as many tasks of the service's present version run as are wanted, no other is left, and its update is over.\n\n\
             An update that is paused is an error at once, with what its tasks said; one that was rolled back is one as soon as the former version runs.",
        )
        .returns(Ty::Record("SwarmServiceInfo"))
        .example(r#"docker("m1").swarm().service("shop_web").wait_converged(#{ within: "2m" });"#)
        .errors(ERRORS),
    ), |cx, e, call| wait_converged(cx, e, call).boxed()));
    r.add(acting(
        Spec::method(
            "SwarmService",
            "logs",
            Effect::Read,
            "Gives what the service's tasks have written last, all of them in one; 256 KiB at most.",
        )
        .option("tail", Ty::Int, "How many lines of each task; 100 when not given.")
        .returns(Ty::Str)
        .example(r#"log(docker("m1").swarm().service("shop_web").logs(#{ tail: 20 }));"#)
        .errors(ERRORS),
        |cx, e, call| logs(cx, e, call).boxed(),
    ));
}

/// The path of a service.
pub(super) fn path(name: &str) -> String {
    format!("/services/{}", encoded(name))
}

/// The service of that name.
pub(super) async fn search(cx: &Cx, e: &Engine, name: &str) -> Result<Option<Json>> {
    find(cx, e, &format!("looking at the service {name} on \"{}\"", e.name), &path(name)).await
}

/// As [`search`], which must find one.
pub(super) async fn look(cx: &Cx, e: &Engine, name: &str) -> Result<Json> {
    search(cx, e, name).await?.ok_or_else(|| missing(e, name))
}

fn missing(e: &Engine, name: &str) -> Error {
    Error::new(Code::DOCKER_MISSING, format!("the swarm of \"{}\" has no service {name}", e.name))
        .host(e.at())
        .hint("services() lists them; those of a stack are called STACK_SERVICE")
}

/// The services of a stack.
pub(super) async fn of_stack(cx: &Cx, e: &Engine, stack: &str) -> Result<Vec<Json>> {
    let path = format!("/services{}", filters(&[("label", &format!("{STACK}={stack}"))]));
    let mut found = all(get(cx, e, &format!("listing the services of the stack {stack} on \"{}\"", e.name), &path).await?);
    found.sort_by(|a, b| text(a, "/Spec/Name").cmp(text(b, "/Spec/Name")));
    Ok(found)
}

/// The names of the services by their ids.
pub(super) async fn names(cx: &Cx, e: &Engine) -> Result<BTreeMap<String, String>> {
    let found = all(get(cx, e, &format!("listing the services on \"{}\"", e.name), "/services").await?);
    Ok(found.iter().map(|s| (text(s, "/ID").to_string(), text(s, "/Spec/Name").to_string())).collect())
}

/// What a call waits for.
pub(super) fn wait_of<'a>(call: &Call, service: &'a str, since: i64) -> Wait<'a> {
    Wait { service, within: call.opt_duration("within").unwrap_or(WITHIN), steady: call.opt_duration("steady"), since, back: false }
}

pub(super) fn info(s: &Json) -> Record {
    let modes = s.pointer("/Spec/Mode").and_then(Json::as_object);
    let mode = modes.and_then(|m| m.keys().next()).map_or("", String::as_str).to_lowercase();
    let ports = items(s, "/Spec/EndpointSpec/Ports").iter().map(|p| {
        let host = if text(p, "/PublishMode") == "host" { "@host" } else { "" };
        format!("{}:{}/{}{host}", int(p, "/PublishedPort"), int(p, "/TargetPort"), text(p, "/Protocol")).into()
    });
    Record::new(
        "SwarmServiceInfo",
        [
            ("name", text(s, "/Spec/Name").into()),
            ("id", text(s, "/ID").into()),
            ("image", text(s, "/Spec/TaskTemplate/ContainerSpec/Image").into()),
            ("mode", mode.into()),
            ("replicas", Value::Int(int(s, "/Spec/Mode/Replicated/Replicas"))),
            ("update", text(s, "/UpdateStatus/State").into()),
            ("said", text(s, "/UpdateStatus/Message").into()),
            ("ports", Value::List(ports.collect())),
            ("labels", texts(s, "/Spec/Labels")),
            ("version", Value::Int(int(s, "/Version/Index"))),
        ],
    )
}

async fn list(cx: &Cx, e: &Engine, call: &Call) -> Result<Outcome> {
    let by = call.opt_str("label").map_or(String::new(), |l| filters(&[("label", l)]));
    let found = all(get(cx, e, &format!("listing the services on \"{}\"", e.name), &format!("/services{by}")).await?);
    Ok(in_order(found.iter().map(info).collect(), "name"))
}

async fn inspect(cx: &Cx, e: &Engine, call: &Call) -> Result<Outcome> {
    Ok(info(&look(cx, e, name(call)).await?).into())
}

async fn scale(cx: &Cx, e: &Engine, call: &Call) -> Result<Outcome> {
    let name = name(call);
    let wanted = call.arg(0).as_int().unwrap_or(-1);
    if wanted < 0 {
        return Err(Error::new(Code::COMMAND_BAD, format!("a service cannot have {wanted} tasks")));
    }
    let (mut attempt, mut since, mut changed) = (0, 0, false);
    let was = loop {
        let s = look(cx, e, name).await?;
        let Some(present) = s.pointer("/Spec/Mode/Replicated").map(|_| int(&s, "/Spec/Mode/Replicated/Replicas")) else {
            return Err(Error::new(Code::COMMAND_BAD, format!("the service {name} on \"{}\" is not replicated", e.name))
                .host(e.at())
                .hint("a global service has one task on each node that its constraints fit"));
        };
        let was = former(cx, || Value::Int(present))?;
        if present == wanted {
            break was;
        }
        since = int(&s, "/Version/Index");
        let mut spec = s.pointer("/Spec").cloned().unwrap_or(Json::Null);
        if let Some(replicas) = spec.pointer_mut("/Mode/Replicated").and_then(Json::as_object_mut) {
            replicas.insert("Replicas".into(), json!(wanted));
        }
        let what = format!("scaling the service {name} on \"{}\" to {wanted}", e.name);
        match post(cx, e, &what, &format!("{}/update?version={since}", path(name)), &spec).await {
            Err(fault) if fault.code == Code::SERVICE_CHANGED && attempt < ATTEMPTS => attempt += 1,
            Err(fault) => return Err(fault),
            Ok(_) => {
                changed = true;
                break was;
            }
        }
    };
    converged(cx, e, &Wait { back: !changed, ..wait_of(call, name, since) }).await?;
    let outcome = if changed { Outcome::changed(was) } else { Outcome::unchanged(was, "it has as many") };
    Ok(outcome.fact(former_key(cx), Value::Unit))
}

async fn remove(cx: &Cx, e: &Engine, call: &Call) -> Result<Outcome> {
    let name = name(call);
    let Some(s) = search(cx, e, name).await? else { return Ok(Outcome::unchanged((), "there is none")) };
    if call.opt_bool("own") && !s.pointer("/Spec").is_some_and(|spec| by_this_run(cx, spec, MADE)) {
        return Ok(Outcome::unchanged((), "this run has not made it"));
    }
    let id = text(&s, "/ID").to_string();
    let removed = delete(cx, e, &format!("removing the service {name} on \"{}\"", e.name), &path(&id)).await?;
    ended(cx, e, &[id], call.opt_duration("within").unwrap_or(WITHIN)).await?;
    Ok(Outcome::done(removed, "there is none"))
}

/// Waits until the containers of services that are removed have ended, so that what they used can go too.
pub(super) async fn ended(cx: &Cx, e: &Engine, services: &[String], within: Duration) -> Result<()> {
    let end = Instant::now() + within;
    loop {
        // By the service alone they cannot be asked for: the swarm knows it no more.
        let what = format!("listing the tasks on \"{}\"", e.name);
        let (tasks, nodes) = futures::try_join!(get(cx, e, &what, "/tasks"), nodes(cx, e))?;
        let up = |t: &Json| nodes.iter().any(|n| text(n, "/ID") == text(t, "/NodeID") && !is_down(n));
        let left = all(tasks).iter().filter(|t| services.iter().any(|s| s == text(t, "/ServiceID")) && !is_over(t) && up(t)).count();
        cx.progress("waiting for containers to end", 0, None, "tasks");
        if left == 0 {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(Error::new(
                Code::SERVICE_CONVERGE,
                format!("{left} containers of what was removed on \"{}\" have not ended after {}", e.name, show_duration(within)),
            )
            .host(e.at())
            .hint("they get their stop time first, 10 s unless they say otherwise; give #{ within: \"…\" } more than that")
            .retryable(true));
        }
        cx.sleep(Duration::from_millis(300)).await?;
    }
}

async fn wait_converged(cx: &Cx, e: &Engine, call: &Call) -> Result<Outcome> {
    let name = name(call);
    Ok(info(&converged(cx, e, &wait_of(call, name, 0)).await?).into())
}

/// What the tasks of a service wrote last.
pub(super) async fn last_lines(e: &Engine, name: &str) -> Result<String> {
    read(e, name, 5).await
}

async fn read(e: &Engine, name: &str, lines: i64) -> Result<String> {
    let options = LogsOptions { stdout: true, stderr: true, tail: lines.to_string(), ..Default::default() };
    let mut pieces = e.api.service_logs(name, Some(options));
    let collect = async {
        let mut out = Vec::new();
        while let Some(piece) = pieces.next().await {
            let (LogOutput::StdErr { message }
            | LogOutput::StdOut { message }
            | LogOutput::StdIn { message }
            | LogOutput::Console { message }) = piece?;
            out.extend_from_slice(&message);
            if out.len() > 2 * LIMIT {
                out.drain(..out.len() - LIMIT);
            }
        }
        Ok(out)
    };
    let out = e.ask(&format!("reading what the service {name} on \"{}\" wrote", e.name), collect).await?;
    let from = out.len().saturating_sub(LIMIT);
    Ok(String::from_utf8_lossy(out.get(from..).unwrap_or_default()).into_owned())
}

async fn logs(cx: &Cx, e: &Engine, call: &Call) -> Result<Outcome> {
    let name = name(call);
    let tail = call.opt_int("tail").unwrap_or(100);
    if tail < 0 {
        return Err(Error::new(Code::WRONG_TYPE, format!("`tail` is a number of lines, and {tail} is none")));
    }
    look(cx, e, name).await?;
    Ok(cx.redactor.text(&read(e, name, tail).await?).into())
}
