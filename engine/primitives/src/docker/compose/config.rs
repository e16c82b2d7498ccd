//! `Compose.config`: what a project's files say, with everything resolved. `Docker.projects`: which projects there are.

use std::collections::{BTreeMap, BTreeSet};

use bollard::models::ContainerSummary;
use bollard::query_parameters::ListContainersOptions;
use futures::FutureExt as _;
use runbook_core::primitive::{Cx, Outcome, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::{Code, Error, Record, Result, Value};
use serde_json::{Map, Value as Json};

use super::{PROJECT, Project, act, is_live};
use crate::docker::acts::acting;
use crate::docker::engine::Engine;
use crate::docker::info::in_order;

pub(super) fn register(r: &mut Registry) {
    let texts = || Ty::List(Box::new(Ty::Str));
    let names = || Ty::Map(Box::new(Ty::Str));
    r.add_type(
        TypeSpec::new("ComposeConfig", "What the files of a Compose project say.")
            .field("services", Ty::List(Box::new(Ty::Record("ComposeService"))), "Its services, in order of their names.")
            .field("images", texts(), "The images of its services.")
            .field("volumes", names(), "Its named volumes: as the engine knows them, by their names in the files.")
            .field("networks", names(), "Its networks, likewise.")
            .field(
                "external",
                texts(),
                "Those volumes and networks, as the engine knows them, that are not the project's own and must be there.",
            ),
    );
    r.add_type(
        TypeSpec::new("ComposeService", "A service in the files of a Compose project.")
            .field("name", Ty::Str, "Its name.")
            .field("image", Ty::Str, "Its image; empty when it is only built.")
            .field("builds", Ty::Bool, "Whether its image is built from a folder.")
            .field(
                "volumes",
                texts(),
                "What it has mounted: `VOLUME:/path` or `/folder:/path`, with `:ro` at its end when it is read only.",
            )
            .field("ports", texts(), "The ports that it publishes: `8080:80/tcp`, `127.0.0.1:8080:80/tcp`.")
            .field("networks", texts(), "The networks that it is on, by their names in the files.")
            .field("env", texts(), "The names of its environment variables. Their values may be secrets, and are not told.")
            .field("depends_on", texts(), "The services that it needs.")
            .field("restart", Ty::Str, "When the engine starts its containers anew; empty when nothing is said.")
            .field("profiles", texts(), "The profiles with which alone it is brought up."),
    );
    r.add_type(
        TypeSpec::new("ComposeProject", "A Compose project that has containers on an engine.")
            .field("name", Ty::Str, "Its name.")
            .field("folder", Ty::Str, "The folder from which it was brought up.")
            .field("files", texts(), "Its Compose files.")
            .field("services", texts(), "The services that have containers.")
            .field("containers", Ty::Int, "How many containers it has.")
            .field("running", Ty::Int, "How many of them run."),
    );
    let config = Spec::method(
        "Compose",
        "config",
        Effect::Read,
        "Reads the project's files as the host's Compose does: with `.env`, overrides, anchors and defaults. Nothing is changed.\n\nValues of environment variables are not told.",
    );
    r.add(acting(
        act::env(config)
            .returns(Ty::Record("ComposeConfig"))
            .example(r#"for s in docker("old").compose("/srv/shop").config().services { log(`${s.name}: ${s.image} ${s.ports}`); }"#)
            .errors(&[Code::DOCKER_COMPOSE, Code::DOCKER_CONNECT, Code::HOST_TOOL_MISSING, Code::SSH_CONNECT]),
        |cx, _, call| config_of(cx, call).boxed(),
    ));
    r.add(acting(
        Spec::method(
            "Docker",
            "projects",
            Effect::Read,
            "Lists the Compose projects that have containers on the engine, in order of their names: what is to be moved.",
        )
        .returns(Ty::List(Box::new(Ty::Record("ComposeProject"))))
        .example(r#"for p in docker("old").projects() { log(`${p.name} in ${p.folder}: ${p.running} of ${p.containers} run`); }"#)
        .errors(&[Code::DOCKER, Code::DOCKER_CONNECT, Code::SSH_CONNECT]),
        |_, e, _| projects(e).boxed(),
    ));
}

async fn config_of(cx: &Cx, call: &Call) -> Result<Outcome> {
    Ok(read(cx, &Project::on(cx, call).await?, call).await?.into())
}

/// What the project's files say.
///
/// # Errors
/// `RB1006` when Compose cannot read them, those of the connection.
pub(super) async fn read(cx: &Cx, p: &Project<'_>, call: &Call) -> Result<Record> {
    let text = act::run(cx, p, call, &["config".to_string()], true).await?;
    let unread =
        |why: String| Error::new(Code::DOCKER_COMPOSE, format!("what Compose says of {} cannot be read: {why}", p.folder)).host(&p.host);
    let files: Json = serde_saphyr::from_str(&text).map_err(|e| unread(e.to_string()))?;
    let files = files.as_object().ok_or_else(|| unread("it is no map".into()))?;
    Ok(config(p.name, files))
}

fn list(all: impl IntoIterator<Item = String>) -> Value {
    Value::List(all.into_iter().map(Value::from).collect())
}

/// A text, or a number or truth as the text that it was.
fn text(v: &Json) -> String {
    match v {
        Json::String(s) => s.clone(),
        Json::Null => String::new(),
        other => other.to_string(),
    }
}

/// The names in what may be a list of names, a list of `name=value`, or a map.
fn names(v: Option<&Json>) -> BTreeSet<String> {
    match v {
        Some(Json::Array(all)) => all.iter().map(|v| text(v).split('=').next().unwrap_or_default().to_string()).collect(),
        Some(Json::Object(all)) => all.keys().cloned().collect(),
        _ => BTreeSet::new(),
    }
}

/// A mount in its short form, without the `:rw` that says nothing.
fn mount(v: &Json) -> String {
    let Json::Object(m) = v else {
        let s = text(v);
        return s.strip_suffix(":rw").map_or(s.clone(), str::to_string);
    };
    let of = |k: &str| m.get(k).map(text).unwrap_or_default();
    let from = if of("source").is_empty() { String::new() } else { format!("{}:", of("source")) };
    format!("{from}{}{}", of("target"), if m.get("read_only") == Some(&Json::Bool(true)) { ":ro" } else { "" })
}

/// A port in its short form, with its protocol.
fn port(v: &Json) -> String {
    let Json::Object(m) = v else {
        let s = text(v);
        return if s.contains('/') { s } else { format!("{s}/tcp") };
    };
    let of = |k: &str| m.get(k).map(text).filter(|t| !t.is_empty());
    let at = of("host_ip").map(|a| if a.contains(':') { format!("[{a}]:") } else { format!("{a}:") }).unwrap_or_default();
    let published = of("published").map(|p| format!("{p}:")).unwrap_or_default();
    format!("{at}{published}{}/{}", of("target").unwrap_or_default(), of("protocol").unwrap_or_else(|| "tcp".into()))
}

fn service(name: &str, s: &Json) -> Record {
    let at = |k: &str| s.get(k);
    let each = |k: &str, show: fn(&Json) -> String| list(at(k).and_then(Json::as_array).into_iter().flatten().map(show));
    Record::new(
        "ComposeService",
        [
            ("name", name.into()),
            ("image", at("image").map(text).unwrap_or_default().into()),
            ("builds", at("build").is_some_and(|b| !b.is_null()).into()),
            ("volumes", each("volumes", mount)),
            ("ports", each("ports", port)),
            ("networks", list(names(at("networks")))),
            ("env", list(names(at("environment")))),
            ("depends_on", list(names(at("depends_on")))),
            ("restart", at("restart").map(text).unwrap_or_default().into()),
            ("profiles", list(names(at("profiles")))),
        ],
    )
}

/// What `config` of Compose prints, of any version.
fn config(project: &str, files: &Map<String, Json>) -> Record {
    let part = |k: &str| files.get(k).and_then(Json::as_object).into_iter().flatten();
    let mut external = BTreeSet::new();
    let mut named = |k: &str| -> BTreeMap<String, Value> {
        let one = |(key, v): (&String, &Json)| {
            let foreign = v.get("external").filter(|e| **e != Json::Bool(false));
            let own = v.get("name").or_else(|| foreign?.get("name")).and_then(Json::as_str);
            let name = own.map_or_else(|| if foreign.is_some() { key.clone() } else { format!("{project}_{key}") }, str::to_string);
            if foreign.is_some() {
                external.insert(name.clone());
            }
            (key.clone(), Value::from(name))
        };
        part(k).map(one).collect()
    };
    let (volumes, networks) = (named("volumes"), named("networks"));
    let services: BTreeMap<&String, Record> = part("services").map(|(name, s)| (name, service(name, s))).collect();
    let images: BTreeSet<String> = services.values().map(|s| s.str("image").to_string()).filter(|i| !i.is_empty()).collect();
    Record::new(
        "ComposeConfig",
        [
            ("services", Value::List(services.into_values().map(Value::from).collect())),
            ("images", list(images)),
            ("volumes", volumes.into()),
            ("networks", networks.into()),
            ("external", list(external)),
        ],
    )
}

async fn projects(engine: &Engine) -> Result<Outcome> {
    let filters = [("label".to_string(), vec![PROJECT.to_string()])].into();
    let options = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
    let all = engine.ask("listing the Compose projects", engine.api.list_containers(Some(options))).await?;
    let mut by_name: BTreeMap<String, Vec<ContainerSummary>> = BTreeMap::new();
    for c in all {
        let name = c.labels.as_ref().and_then(|l| l.get(PROJECT)).cloned().unwrap_or_default();
        by_name.entry(name).or_default().push(c);
    }
    Ok(in_order(by_name.iter().map(|(name, all)| project(name, all)).collect(), "name"))
}

fn project(name: &str, all: &[ContainerSummary]) -> Record {
    let label = |c: &ContainerSummary, k: &str| c.labels.as_ref().and_then(|l| l.get(&format!("com.docker.compose.{k}")).cloned());
    let first = |k: &str| all.iter().find_map(|c| label(c, k)).unwrap_or_default();
    let services: BTreeSet<String> = all.iter().filter_map(|c| label(c, "service")).collect();
    let count = |n: usize| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
    Record::new(
        "ComposeProject",
        [
            ("name", name.into()),
            ("folder", first("project.working_dir").into()),
            ("files", list(first("project.config_files").split(',').filter(|f| !f.is_empty()).map(str::to_string))),
            ("services", list(services)),
            ("containers", count(all.len())),
            ("running", count(all.iter().filter(|c| c.state.as_ref().is_some_and(|s| is_live(s.as_ref()))).count())),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Record {
        let files: Json = serde_saphyr::from_str(text).unwrap();
        config("shop", files.as_object().unwrap())
    }

    #[test]
    fn what_old_and_new_compose_print_is_the_same() {
        let old = "networks:\n  back: {}\n  theirs:\n    external: true\n    name: edge\nservices:\n  web:\n    depends_on:\n      db:\n        condition: service_started\n    \
                   environment:\n      A: 'no'\n      B: x=y\n    image: shop:1\n    networks:\n      back: null\n    ports:\n    - 127.0.0.1:8080:80/tcp\n    - published: 53\n      protocol: udp\n      target: 53\n    \
                   restart: always\n    volumes:\n    - data:/data:rw\n    - /srv/shop/conf:/conf:ro\nversion: '3.9'\nvolumes:\n  data: {}\n";
        let new = "name: shop\nservices:\n  web:\n    depends_on:\n      db:\n        condition: service_started\n        required: true\n    environment:\n      A: \"no\"\n      B: x=y\n    \
                   image: shop:1\n    networks:\n      back: null\n    ports:\n      - mode: ingress\n        host_ip: 127.0.0.1\n        target: 80\n        published: \"8080\"\n        protocol: tcp\n      \
                   - mode: ingress\n        target: 53\n        published: \"53\"\n        protocol: udp\n    restart: always\n    volumes:\n      - type: volume\n        source: data\n        target: /data\n        \
                   volume: {}\n      - type: bind\n        source: /srv/shop/conf\n        target: /conf\n        read_only: true\n        bind:\n          create_host_path: true\nnetworks:\n  back:\n    \
                   name: shop_back\n  theirs:\n    name: edge\n    external: true\nvolumes:\n  data:\n    name: shop_data\n";
        let (a, b) = (read(old), read(new));
        assert_eq!(a, b);
        let web = a.get("services").as_list().unwrap()[0].as_record().unwrap().clone();
        let texts = |all: &[&str]| list(all.iter().map(|s| (*s).to_string()));
        assert_eq!(web.get("volumes"), &texts(&["data:/data", "/srv/shop/conf:/conf:ro"]));
        assert_eq!(web.get("ports"), &texts(&["127.0.0.1:8080:80/tcp", "53:53/udp"]));
        assert_eq!((web.get("env"), web.get("depends_on"), web.str("restart")), (&texts(&["A", "B"]), &texts(&["db"]), "always"));
        assert_eq!(a.get("volumes").as_map().unwrap()["data"], "shop_data".into());
        assert_eq!((a.get("networks").as_map().unwrap()["back"].clone(), a.get("external")), ("shop_back".into(), &texts(&["edge"])));
    }
}
