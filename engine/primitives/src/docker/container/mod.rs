//! `Container.inspect`, and what it is made of; the other methods of containers stand beside it.

mod create;
mod exec;
mod files;
mod logs;
mod run;
mod state;
mod tree;

pub(super) use state::{HEALTHY_WITHIN, wait_well};

use bollard::models::{ContainerInspectResponse, HealthStatusEnum};
use futures::FutureExt as _;
use jiff::Timestamp;
use runbook_core::primitive::{Cx, Outcome, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::{Code, Record, Result, Value};

use super::acts::acting;
use super::engine::Engine;
use super::info::{map, texts};
use super::things::name;

pub(super) fn register(r: &mut Registry) {
    r.add_type(
        TypeSpec::new("ContainerInfo", "A container.")
            .field("name", Ty::Str, "Its name.")
            .field("id", Ty::Str, "Its id.")
            .field("image", Ty::Str, "The image that it was made from, as it was named then.")
            .field("image_id", Ty::Str, "The id of that image.")
            .field("state", Ty::Str, "`created`, `running`, `paused`, `restarting`, `exited` or `dead`.")
            .field("running", Ty::Bool, "Whether it runs.")
            .field("health", Ty::Str, "`starting`, `healthy` or `unhealthy`; empty when it has no health check.")
            .field("exit_code", Ty::Int, "The status with which it ended last.")
            .field("started", Ty::OneOf(vec![Ty::Time, Ty::Unit]), "When it was started last; `()` when it never was.")
            .field("restarts", Ty::Int, "How often the engine has started it anew by itself.")
            .field("labels", Ty::Map(Box::new(Ty::Str)), "Its labels.")
            .field("networks", Ty::List(Box::new(Ty::Str)), "The networks that it is on.")
            .field("address", Ty::Str, "Its address on the first of these; empty when it does not run.")
            .field("volumes", Ty::List(Box::new(Ty::Str)), "The volumes that it has mounted.")
            .field("folders", Ty::List(Box::new(Ty::Str)), "The folders and files of the host that it has mounted."),
    );
    r.add(acting(
        Spec::method("Container", "inspect", Effect::Read, "Tells what the container is and how it fares.")
            .returns(Ty::Record("ContainerInfo"))
            .example(r#"if docker("old").container("shop").inspect().restarts > 3 { throw "it is not well"; }"#)
            .errors(&[Code::DOCKER_MISSING, Code::DOCKER_CONNECT, Code::SSH_CONNECT]),
        |cx, e, call| inspect(cx, e, call).boxed(),
    ));
    create::register(r);
    state::register(r);
    logs::register(r);
    exec::register(r);
    files::register(r);
    run::register(r);
}

async fn inspect(_: &Cx, engine: &Engine, call: &Call) -> Result<Outcome> {
    Ok(info(look(engine, name(call)).await?).into())
}

/// What the engine says of a container.
pub(super) async fn look(engine: &Engine, name: &str) -> Result<ContainerInspectResponse> {
    engine.ask(&format!("looking at the container {name} on \"{}\"", engine.name), engine.api.inspect_container(name, None)).await
}

/// Its health, when it has a health check.
fn health(c: &ContainerInspectResponse) -> Option<HealthStatusEnum> {
    let status = c.state.as_ref()?.health.as_ref()?.status?;
    (!matches!(status, HealthStatusEnum::NONE | HealthStatusEnum::EMPTY)).then_some(status)
}

fn running(c: &ContainerInspectResponse) -> bool {
    c.state.as_ref().and_then(|s| s.running).unwrap_or_default()
}

fn info(c: ContainerInspectResponse) -> Record {
    let (health, runs) = (health(&c), running(&c));
    let state = c.state.unwrap_or_default();
    let (image, labels) = c.config.map(|c| (c.image, c.labels)).unwrap_or_default();
    // The engine's own way to say "never" is the year 1.
    let started = state.started_at.and_then(|t| t.parse::<Timestamp>().ok()).filter(|t| t.as_second() > 0);
    let mut networks: Vec<_> = c.network_settings.and_then(|n| n.networks).unwrap_or_default().into_iter().collect();
    networks.sort_by(|a, b| a.0.cmp(&b.0));
    let address = networks.first().and_then(|(_, n)| n.ip_address.clone()).unwrap_or_default();
    let mounts = c.mounts.unwrap_or_default();
    let of = |kind: &str| {
        let all = mounts.iter().filter(|m| m.typ.as_ref().map(ToString::to_string).as_deref() == Some(kind));
        let mut all: Vec<String> = all.filter_map(|m| if kind == "volume" { m.name.clone() } else { m.source.clone() }).collect();
        all.sort();
        texts(all)
    };
    let text = |t: Option<String>| Value::from(t.unwrap_or_default());
    Record::new(
        "ContainerInfo",
        [
            ("name", c.name.unwrap_or_default().trim_start_matches('/').into()),
            ("id", text(c.id)),
            ("image", text(image)),
            ("image_id", text(c.image)),
            ("state", text(state.status.map(|s| s.to_string()))),
            ("running", runs.into()),
            ("health", text(health.map(|h| h.to_string()))),
            ("exit_code", Value::Int(state.exit_code.unwrap_or_default())),
            ("started", started.map_or(Value::Unit, Value::Time)),
            ("restarts", Value::Int(c.restart_count.unwrap_or_default())),
            ("labels", map(labels)),
            ("networks", texts(networks.into_iter().map(|(n, _)| n))),
            ("address", address.into()),
            ("volumes", of("volume")),
            ("folders", of("bind")),
        ],
    )
}
