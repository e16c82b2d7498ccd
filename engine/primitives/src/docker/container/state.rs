//! `Container.start`, `stop`, `restart`, `remove`, `wait_healthy`.

use std::time::Duration;

use bollard::models::{ContainerInspectResponse, HealthStatusEnum};
use bollard::query_parameters::{RemoveContainerOptions, RestartContainerOptions, StopContainerOptions};
use futures::FutureExt as _;
use runbook_core::primitive::{Cx, Outcome, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::units::show_duration;
use runbook_core::{Code, Error, Result};
use tokio::time::Instant;

use super::{health, info, logs, look, running};
use crate::docker::acts::acting;
use crate::docker::engine::Engine;
use crate::docker::things::name;

const ERRORS: &[Code] = &[Code::DOCKER, Code::DOCKER_MISSING, Code::DOCKER_HEALTH, Code::DOCKER_CONNECT, Code::SSH_CONNECT];
/// How long a container may take to become healthy when nothing is said.
pub(in crate::docker) const HEALTHY_WITHIN: Duration = Duration::from_secs(120);
/// How long a container without a health check must have run to be taken as well.
const STEADY: Duration = Duration::from_secs(2);

pub(super) fn register(r: &mut Registry) {
    let timeout = |s: Spec| {
        s.option(
            "timeout",
            Ty::Duration,
            "How long it may take to end before it is killed; what the container says, else 10 s, when not given.",
        )
    };
    r.add(acting(
        Spec::method(
            "Container",
            "start",
            Effect::Converge,
            "Starts the container, unless it runs. It may end at once: `wait_healthy` sees that.",
        )
        .example(r#"docker("new").container("shop").start();"#)
        .errors(ERRORS),
        |cx, e, call| start(cx, e, call).boxed(),
    ));
    r.add(acting(
        timeout(
            Spec::method(
                "Container",
                "stop",
                Effect::Converge,
                "Stops the container, unless it is stopped. It gets time to end by itself.",
            )
            .example(r#"docker("old").container("shop").stop(#{ timeout: "30s" });"#)
            .errors(ERRORS),
        ),
        |cx, e, call| stop(cx, e, call).boxed(),
    ));
    r.add(acting(
        timeout(
            Spec::method("Container", "restart", Effect::Converge, "Stops the container and starts it anew.")
                .example(r#"docker("new").container("proxy").restart();"#)
                .errors(ERRORS),
        ),
        |cx, e, call| restart(cx, e, call).boxed(),
    ));
    r.add(acting(
        Spec::method(
            "Container",
            "remove",
            Effect::Converge,
            "Removes the container. Its named volumes stay.\n\nThere is nothing to do when there is none. One that runs is an error, unless `force` is given.",
        )
        .option("force", Ty::Bool, "Kill it when it runs; false by default.")
        .option("anonymous_volumes", Ty::Bool, "Remove the volumes without a name that were made for it alone; false by default.")
        .example(r#"docker("old").container("shop").remove();"#)
        .errors(&[Code::DOCKER, Code::DOCKER_CONFLICT, Code::DOCKER_CONNECT, Code::SSH_CONNECT]), |cx, e, call| remove(cx, e, call).boxed()));
    r.add(acting(
        Spec::method(
            "Container",
            "wait_healthy",
            Effect::Read,
            "Waits until the container's health check succeeds, or, when it has none, until it has run for two seconds without being started anew.\n\n\
             A container that has ended, or whose health check has failed as often as it may, is an error at once; the last lines that it wrote are shown.",
        )
        .option("within", Ty::Duration, "How long that may take; `\"2m\"` when not given.")
        .returns(Ty::Record("ContainerInfo"))
        .example(r#"docker("new").container("shop").wait_healthy(#{ within: "1m" });"#)
        .errors(ERRORS), |cx, e, call| wait_healthy(cx, e, call).boxed()));
}

async fn start(_: &Cx, engine: &Engine, call: &Call) -> Result<Outcome> {
    let name = name(call);
    if running(&look(engine, name).await?) {
        return Ok(Outcome::unchanged((), "it runs"));
    }
    engine.ask(&format!("starting {name} on \"{}\"", engine.name), engine.api.start_container(name, None)).await?;
    Ok(Outcome::changed(()))
}

/// A time in whole seconds, as the engine takes it; at least one.
fn seconds(call: &Call) -> Option<i32> {
    let given = call.opt_duration("timeout")?;
    Some(i32::try_from(given.as_secs_f64().ceil() as i64).unwrap_or(i32::MAX).max(1))
}

async fn stop(_: &Cx, engine: &Engine, call: &Call) -> Result<Outcome> {
    let name = name(call);
    let c = look(engine, name).await?;
    if !running(&c) && !c.state.and_then(|s| s.restarting).unwrap_or_default() {
        return Ok(Outcome::unchanged((), "it is stopped"));
    }
    let options = StopContainerOptions { t: seconds(call), ..Default::default() };
    engine.ask(&format!("stopping {name} on \"{}\"", engine.name), engine.api.stop_container(name, Some(options))).await?;
    Ok(Outcome::changed(()))
}

async fn restart(_: &Cx, engine: &Engine, call: &Call) -> Result<Outcome> {
    let name = name(call);
    let options = RestartContainerOptions { t: seconds(call), ..Default::default() };
    engine.ask(&format!("starting {name} on \"{}\" anew", engine.name), engine.api.restart_container(name, Some(options))).await?;
    Ok(Outcome::changed(()))
}

async fn remove(_: &Cx, engine: &Engine, call: &Call) -> Result<Outcome> {
    let name = name(call);
    let options = RemoveContainerOptions { force: call.opt_bool("force"), v: call.opt_bool("anonymous_volumes"), ..Default::default() };
    let what = format!("removing {name} on \"{}\"", engine.name);
    let removed = engine.find(&what, engine.api.remove_container(name, Some(options))).await;
    let removed = removed.map_err(|e| match e.code {
        Code::DOCKER_CONFLICT => e.hint("stop it first, or give #{ force: true } to kill it"),
        _ => e,
    })?;
    Ok(Outcome::done(removed.is_some(), "there is none"))
}

/// How it stands with a container that is waited for.
enum Fares {
    Well,
    Waiting(String),
    /// It has ended, and says that all went well.
    Ended,
    Bad(String),
}

fn fares(c: &ContainerInspectResponse, now: jiff::Timestamp) -> Fares {
    let state = c.state.clone().unwrap_or_default();
    if !running(c) && !state.restarting.unwrap_or_default() {
        let status = state.status.map(|s| s.to_string()).unwrap_or_default();
        let unsaid = state.error.as_ref().is_none_or(String::is_empty);
        match (status.as_str(), state.exit_code) {
            ("exited", Some(0)) if unsaid => return Fares::Ended,
            ("created", _) if unsaid => return Fares::Bad("was never started".into()),
            _ => {}
        }
        let why = state.error.filter(|e| !e.is_empty()).map_or(String::new(), |e| format!(" ({e})"));
        return Fares::Bad(format!("does not run: it ended with status {}{why}", state.exit_code.unwrap_or_default()));
    }
    match health(c) {
        Some(HealthStatusEnum::HEALTHY) => Fares::Well,
        Some(HealthStatusEnum::UNHEALTHY) => {
            let said = state.health.and_then(|h| h.log).unwrap_or_default().pop().and_then(|r| r.output).unwrap_or_default();
            Fares::Bad(format!("is unhealthy: {}", said.split_whitespace().collect::<Vec<_>>().join(" ")))
        }
        Some(other) => Fares::Waiting(other.to_string()),
        None if !running(c) => Fares::Waiting("being started anew".into()),
        None => {
            let since = state.started_at.and_then(|t| t.parse::<jiff::Timestamp>().ok());
            let steady = since.is_none_or(|t| Duration::try_from(now.duration_since(t)).unwrap_or_default() >= STEADY);
            if steady { Fares::Well } else { Fares::Waiting("just started".into()) }
        }
    }
}

async fn wait_healthy(cx: &Cx, engine: &Engine, call: &Call) -> Result<Outcome> {
    let within = call.opt_duration("within").unwrap_or(HEALTHY_WITHIN);
    Ok(info(wait_well(cx, engine, name(call), within, false).await?).into())
}

/// Waits until a container is well. One that has ended with status 0 is so when it `may_end`.
///
/// # Errors
/// `RB1004` when it is not; those of the engine.
pub(in crate::docker) async fn wait_well(
    cx: &Cx,
    engine: &Engine,
    name: &str,
    within: Duration,
    may_end: bool,
) -> Result<ContainerInspectResponse> {
    let first = look(engine, name).await?;
    let (end, restarts) = (Instant::now() + within, first.restart_count);
    let shown = first.name.as_deref().unwrap_or(name).trim_start_matches('/').to_string();
    // The engine's clock stamps the starts.
    let now = engine.ask("asking for the engine's time", engine.api.info()).await?.system_time;
    let ahead = now.and_then(|t| t.parse::<jiff::Timestamp>().ok()).map_or_else(Default::default, |t| t.duration_since(cx.clock.now()));
    let ill = async |why: String| {
        let last = logs::last_lines(engine, name, 20).await.unwrap_or_default();
        let e = Error::new(Code::DOCKER_HEALTH, format!("the container {shown} on \"{}\" {why}", engine.name)).host(engine.at());
        Err(if last.is_empty() { e } else { e.detail("output", cx.redactor.text(&last)) }
            .hint(format!("look at `docker logs {shown}` on its host")))
    };
    loop {
        let c = look(engine, name).await?;
        if c.restart_count > restarts {
            return ill("ends again and again".into()).await;
        }
        match fares(&c, cx.clock.now() + ahead) {
            Fares::Well => return Ok(c),
            Fares::Ended if may_end => return Ok(c),
            Fares::Ended => return ill("does not run: it ended with status 0".into()).await,
            Fares::Bad(why) => return ill(why).await,
            Fares::Waiting(how) if Instant::now() >= end => {
                return ill(format!("is not healthy after {}: {how}", show_duration(within))).await;
            }
            Fares::Waiting(_) => cx.sleep(Duration::from_millis(250)).await?,
        }
    }
}
