//! `Docker.info`, `containers`, `images`, `volumes`, `networks`: what an engine is and has.

use std::collections::HashMap;

use bollard::models::{ContainerSummary, ImageSummary, Network, Volume};
use bollard::query_parameters::{ListContainersOptions, ListImagesOptions, ListNetworksOptions, ListVolumesOptions};
use futures::FutureExt as _;
use runbook_core::primitive::{Cx, Outcome, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::{Code, Record, Result, Value};

use super::acts::acting;
use super::engine::Engine;

const ERRORS: &[Code] = &[Code::DOCKER, Code::DOCKER_CONNECT, Code::SSH_CONNECT];

pub(super) fn register(r: &mut Registry) {
    let labels = || Ty::Map(Box::new(Ty::Str));
    let texts = || Ty::List(Box::new(Ty::Str));
    r.add_type(
        TypeSpec::new("DockerInfo", "What a Docker Engine is.")
            .field("version", Ty::Str, "The engine's version.")
            .field("api", Ty::Str, "The version of the API that is spoken with it.")
            .field("system", Ty::Str, "The operating system of its host.")
            .field("architecture", Ty::Str, "The processor, such as `x86_64`.")
            .field("storage", Ty::Str, "The storage driver, such as `overlay2`.")
            .field("root", Ty::Str, "The folder of its data.")
            .field("containers", Ty::Int, "How many containers it has.")
            .field("running", Ty::Int, "How many of them run.")
            .field("images", Ty::Int, "How many images it has.")
            .field("swarm", Ty::Bool, "Whether it is a node of a swarm."),
    );
    r.add_type(
        TypeSpec::new("ContainerSummary", "A container in a list.")
            .field("name", Ty::Str, "Its name.")
            .field("id", Ty::Str, "Its id.")
            .field("image", Ty::Str, "The image that it was made from, as it was named then.")
            .field("state", Ty::Str, "`created`, `running`, `paused`, `restarting`, `exited` or `dead`.")
            .field("status", Ty::Str, "The engine's words, such as `Up 2 hours (healthy)`.")
            .field("labels", labels(), "Its labels."),
    );
    r.add_type(
        TypeSpec::new("ImageSummary", "An image in a list.")
            .field("id", Ty::Str, "Its id: the hash of its configuration.")
            .field("tags", texts(), "Its names.")
            .field("bytes", Ty::Bytes, "Its size, with the layers that it shares."),
    );
    r.add_type(
        TypeSpec::new("VolumeInfo", "A volume.")
            .field("name", Ty::Str, "Its name.")
            .field("driver", Ty::Str, "The driver that keeps it; `local` for a folder of the host.")
            .field("folder", Ty::Str, "Where it is on the host.")
            .field("labels", labels(), "Its labels.")
            .field("options", labels(), "The driver's options."),
    );
    r.add_type(
        TypeSpec::new("NetworkInfo", "A network.")
            .field("name", Ty::Str, "Its name.")
            .field("id", Ty::Str, "Its id.")
            .field("driver", Ty::Str, "`bridge`, `overlay`, `host` and so on.")
            .field("internal", Ty::Bool, "Whether it leads nowhere else.")
            .field("subnets", texts(), "Its addresses, such as `172.18.0.0/16`.")
            .field("labels", labels(), "Its labels."),
    );
    r.add(acting(
        Spec::method("Docker", "info", Effect::Read, "Tells what the engine is: its version, its host, how much it has.")
            .returns(Ty::Record("DockerInfo"))
            .example(r#"if docker("new").info().architecture != docker("old").info().architecture { throw "another processor"; }"#)
            .errors(ERRORS),
        |cx, e, call| info(cx, e, call).boxed(),
    ));
    r.add(acting(
        Spec::method("Docker", "containers", Effect::Read, "Lists the containers, in order of their names.")
            .option("all", Ty::Bool, "Those too that do not run; false by default.")
            .option("label", Ty::Str, "Only those with this label: `name` or `name=value`.")
            .returns(Ty::List(Box::new(Ty::Record("ContainerSummary"))))
            .example(r#"for c in docker("old").containers() { log(`${c.name}: ${c.status}`); }"#)
            .errors(ERRORS),
        |cx, e, call| containers(cx, e, call).boxed(),
    ));
    r.add(acting(
        Spec::method("Docker", "images", Effect::Read, "Lists the images that have names, in order of these.")
            .returns(Ty::List(Box::new(Ty::Record("ImageSummary"))))
            .example(r#"for i in docker("old").images() { log(i.tags); }"#)
            .errors(ERRORS),
        |cx, e, call| images(cx, e, call).boxed(),
    ));
    r.add(acting(
        Spec::method("Docker", "volumes", Effect::Read, "Lists the volumes, in order of their names.")
            .option("label", Ty::Str, "Only those with this label: `name` or `name=value`.")
            .returns(Ty::List(Box::new(Ty::Record("VolumeInfo"))))
            .example(r#"for v in docker("old").volumes() { log(v.folder); }"#)
            .errors(ERRORS),
        |cx, e, call| volumes(cx, e, call).boxed(),
    ));
    r.add(acting(
        Spec::method("Docker", "networks", Effect::Read, "Lists the networks, in order of their names.")
            .option("label", Ty::Str, "Only those with this label: `name` or `name=value`.")
            .returns(Ty::List(Box::new(Ty::Record("NetworkInfo"))))
            .example(r#"for n in docker("old").networks() { log(n.name); }"#)
            .errors(ERRORS),
        |cx, e, call| networks(cx, e, call).boxed(),
    ));
}

fn count(n: Option<i64>) -> Value {
    Value::Int(n.unwrap_or_default())
}

fn text(t: Option<String>) -> Value {
    t.unwrap_or_default().into()
}

pub(super) fn texts(all: impl IntoIterator<Item = String>) -> Value {
    Value::List(all.into_iter().map(Value::from).collect())
}

/// Labels or options as a script's map.
pub(super) fn map(all: Option<HashMap<String, String>>) -> Value {
    Value::Map(all.unwrap_or_default().into_iter().map(|(k, v)| (k, Value::from(v))).collect())
}

/// The filter for things with a label.
fn by_label(call: &Call) -> Option<HashMap<String, Vec<String>>> {
    call.opt_str("label").map(|l| HashMap::from([("label".to_string(), vec![l.to_string()])]))
}

/// A list in order of names.
pub(super) fn in_order(mut all: Vec<Record>, key: &str) -> Outcome {
    all.sort_by_key(|r| r.get(key).to_string());
    Value::List(all.into_iter().map(Value::from).collect()).into()
}

async fn info(_: &Cx, engine: &Engine, _: &Call) -> Result<Outcome> {
    let i = engine.ask("asking what the engine is", engine.api.info()).await?;
    let swarm = i.swarm.and_then(|s| s.local_node_state).is_some_and(|s| s.to_string() == "active");
    let api = engine.api.client_version();
    Ok(Record::new(
        "DockerInfo",
        [
            ("version", text(i.server_version)),
            ("api", format!("{}.{}", api.major_version, api.minor_version).into()),
            ("system", text(i.operating_system)),
            ("architecture", text(i.architecture)),
            ("storage", text(i.driver)),
            ("root", text(i.docker_root_dir)),
            ("containers", count(i.containers)),
            ("running", count(i.containers_running)),
            ("images", count(i.images)),
            ("swarm", swarm.into()),
        ],
    )
    .into())
}

async fn containers(_: &Cx, engine: &Engine, call: &Call) -> Result<Outcome> {
    let options = ListContainersOptions { all: call.opt_bool("all"), filters: by_label(call), ..Default::default() };
    let all = engine.ask("listing the containers", engine.api.list_containers(Some(options))).await?;
    Ok(in_order(all.into_iter().map(container).collect(), "name"))
}

pub(super) fn container(c: ContainerSummary) -> Record {
    // A link from another container is a name too, with a further slash in it.
    let name = c.names.unwrap_or_default().into_iter().filter_map(|n| n.strip_prefix('/').map(str::to_string)).find(|n| !n.contains('/'));
    Record::new(
        "ContainerSummary",
        [
            ("name", text(name)),
            ("id", text(c.id)),
            ("image", text(c.image)),
            ("state", text(c.state.map(|s| s.to_string()))),
            ("status", text(c.status)),
            ("labels", map(c.labels)),
        ],
    )
}

async fn images(_: &Cx, engine: &Engine, _: &Call) -> Result<Outcome> {
    let all = engine.ask("listing the images", engine.api.list_images(None::<ListImagesOptions>)).await?;
    let named = all.into_iter().filter(|i| i.repo_tags.iter().any(|t| t != "<none>:<none>"));
    Ok(in_order(named.map(image).collect(), "tags"))
}

fn image(mut i: ImageSummary) -> Record {
    i.repo_tags.sort();
    Record::new(
        "ImageSummary",
        [("id", i.id.into()), ("tags", texts(i.repo_tags)), ("bytes", Value::Bytes(u64::try_from(i.size).unwrap_or_default()))],
    )
}

async fn volumes(_: &Cx, engine: &Engine, call: &Call) -> Result<Outcome> {
    let options = ListVolumesOptions { filters: by_label(call) };
    let all = engine.ask("listing the volumes", engine.api.list_volumes(Some(options))).await?;
    Ok(in_order(all.volumes.unwrap_or_default().into_iter().map(volume).collect(), "name"))
}

pub(super) fn volume(v: Volume) -> Record {
    Record::new(
        "VolumeInfo",
        [
            ("name", v.name.into()),
            ("driver", v.driver.into()),
            ("folder", v.mountpoint.into()),
            ("labels", map(Some(v.labels))),
            ("options", map(Some(v.options))),
        ],
    )
}

async fn networks(_: &Cx, engine: &Engine, call: &Call) -> Result<Outcome> {
    let options = ListNetworksOptions { filters: by_label(call) };
    let all = engine.ask("listing the networks", engine.api.list_networks(Some(options))).await?;
    Ok(in_order(all.into_iter().map(network).collect(), "name"))
}

pub(super) fn network(n: Network) -> Record {
    let subnets = n.ipam.and_then(|i| i.config).unwrap_or_default().into_iter().filter_map(|c| c.subnet);
    Record::new(
        "NetworkInfo",
        [
            ("name", text(n.name)),
            ("id", text(n.id)),
            ("driver", text(n.driver)),
            ("internal", n.internal.unwrap_or_default().into()),
            ("subnets", texts(subnets)),
            ("labels", map(n.labels)),
        ],
    )
}
