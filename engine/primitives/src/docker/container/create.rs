//! `Container.create`: a container as the options say, made once and compared afterwards.
//!
//! What it was made from is kept in a label, a short hash an option, so that one that is there is known for what it is: the engine fills in so much of
//! its own, of the image and of its defaults, that what it tells of a container says little of what was asked for.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, HealthConfig, HostConfig, Mount, MountType, NetworkConnectRequest, PortBinding, PortMap,
    RestartPolicy, RestartPolicyNameEnum,
};
use bollard::query_parameters::{CreateContainerOptions, RemoveContainerOptions};
use futures::FutureExt as _;
use runbook_core::digest::sha256_hex;
use runbook_core::primitive::{Cx, Outcome, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::{Code, Error, Result, Value};
use serde_json::{Value as Json, json};

use super::{info, look};
use crate::docker::ACTION;
use crate::docker::acts::acting;
use crate::docker::engine::Engine;
use crate::docker::given::{Mounted, Published, bad, command_ty, health, health_test, listed, nano_cpus, nanos, words};
use crate::docker::network::labels;
use crate::docker::things::{name, named, reveal};

/// The label with what a container was made from.
const MADE_FROM: &str = "runbook.container";

pub(super) fn register(r: &mut Registry) {
    let text = || Ty::OneOf(vec![Ty::Str, Ty::Secret]);
    let list = || Ty::List(Box::new(Ty::Str));
    let spec = Spec::method(
        "Container",
        "create",
        Effect::Converge,
        "Makes the container from an image that is there, unless it is there. It is not started: `start` does that.\n\nOne that was made from another image or \
         other options is an error that names them; `replace` makes it anew. A container that something else has made is never taken for the one that is wanted.",
    )
    .arg("image", Ty::Str, "The image, which must be there.")
    .option("command", command_ty(), "A text for the image's `sh`, or an array of words; the image's own when not given.")
    .option("entrypoint", list(), "What runs the command, as words; the image's own when not given.")
    .option("env", Ty::Map(Box::new(text())), "Environment variables. `docker inspect` shows them to whoever may use the engine.")
    .option("volumes", list(), "What it has mounted: `VOLUME:/path` or `/folder:/path`, with `:ro` at its end to read only. A folder must be there.")
    .option("ports", list(), "Ports that the host publishes: `8080:80`, `5353:53/udp`, `127.0.0.1:8080:80`.")
    .option("networks", list(), "The networks that it is on, which must be there; the engine's default when not given.")
    .option("restart", Ty::Str, "When the engine starts it anew: `no`, `always`, `unless-stopped`, `on-failure` or `on-failure:5`; `no` when not given.")
    .option("user", Ty::Str, "As whom; the image's own user when not given.")
    .option("cwd", Ty::Str, "The folder that it runs in.")
    .option("hostname", Ty::Str, "Its host name; its id when not given.")
    .option("labels", Ty::Map(Box::new(Ty::Str)), "Its labels.")
    .option("init", Ty::Bool, "Whether a small init is its first process, which ends what is left behind; false by default.")
    .option("memory", Ty::Bytes, "The memory that it may use at most.")
    .option("cpus", Ty::Float, "The processors that it may use at most, such as `0.5`.")
    .option("read_only", Ty::Bool, "Whether its own file system is read only; false by default.")
    .option("cap_add", list(), "Capabilities that it has beyond the usual ones: `NET_ADMIN`.")
    .option("cap_drop", list(), "Capabilities that it does not have: `ALL`.")
    .option("stop_timeout", Ty::Duration, "How long it may take to end before it is killed; `\"10s\"` when not given.");
    let spec = health(spec)
        .option(
            "replace",
            Ty::Bool,
            "Stop and remove one of that name that differs, whatever has made it, and make it anew; its named volumes stay. False by default.",
        )
        .returns(Ty::Record("ContainerInfo"))
        .example(
            r#"docker("new").container("cache").create("redis:7", #{ volumes: ["cache:/data"], ports: ["127.0.0.1:6379:6379"], restart: "unless-stopped" });
docker("new").container("cache").start();"#,
        )
        .errors(&[Code::DOCKER, Code::DOCKER_MISSING, Code::DOCKER_CONFLICT, Code::COMMAND_BAD, Code::DOCKER_CONNECT, Code::SSH_CONNECT]);
    r.add(acting(spec, |cx, e, call| create(cx, e, call).boxed()));
}

/// `always`, `on-failure:5` and so on.
fn restart(given: &str) -> Result<RestartPolicy> {
    let (word, times) = given.split_once(':').map_or((given, None), |(w, n)| (w, Some(n)));
    let maximum_retry_count = times.map(str::parse::<i64>).transpose().ok().filter(|n| n.is_none_or(|n| n > 0 && word == "on-failure"));
    let name = match word {
        "no" => Some(RestartPolicyNameEnum::NO),
        "always" => Some(RestartPolicyNameEnum::ALWAYS),
        "unless-stopped" => Some(RestartPolicyNameEnum::UNLESS_STOPPED),
        "on-failure" => Some(RestartPolicyNameEnum::ON_FAILURE),
        _ => None,
    };
    match (name, maximum_retry_count) {
        (Some(_), Some(maximum_retry_count)) => Ok(RestartPolicy { name, maximum_retry_count }),
        _ => Err(bad(format!("restart cannot be \"{given}\""), "it is one of no, always, unless-stopped, on-failure, on-failure:TIMES")),
    }
}

/// The ports to publish, as the engine has them.
fn ports(given: &[&str]) -> Result<PortMap> {
    let mut all = PortMap::new();
    for p in given {
        let p = Published::of(p)?;
        let binding = PortBinding { host_ip: p.address.map(|a| a.to_string()), host_port: Some(p.outside.to_string()) };
        all.entry(format!("{}/{}", p.inside, p.protocol)).or_default().get_or_insert_default().push(binding);
    }
    Ok(all)
}

fn mount(given: &str) -> Result<Mount> {
    let m = Mounted::of(given)?;
    Ok(Mount {
        typ: Some(if m.is_folder() { MountType::BIND } else { MountType::VOLUME }),
        source: Some(m.source.to_string()),
        target: Some(m.target.to_string()),
        read_only: Some(m.read_only),
        ..Default::default()
    })
}

/// What the container is made of, but for its further networks.
fn body(cx: &Cx, call: &Call, made_from: &BTreeMap<String, String>) -> Result<ContainerCreateBody> {
    let own = |name: &str| call.opt_str(name).map(str::to_string);
    let texts = |name: &str| listed(call, name).map(|l| l.into_iter().map(str::to_string).collect::<Vec<_>>());
    let ports = listed(call, "ports").map(|p| ports(&p)).transpose()?;
    let time = |name: &str| call.opt_duration(name).map(nanos);
    let healthcheck = HealthConfig {
        test: health_test(call),
        interval: time("health_interval"),
        timeout: time("health_timeout"),
        retries: call.opt_int("health_retries"),
        start_period: time("health_start"),
        ..Default::default()
    };
    let mut labels = labels(cx, call);
    labels.insert(MADE_FROM.into(), json!(made_from).to_string());
    Ok(ContainerCreateBody {
        image: Some(call.str(0).to_string()),
        cmd: call.opt("command").and_then(words),
        entrypoint: texts("entrypoint"),
        env: call.opt("env").and_then(Value::as_map).map(|m| m.iter().map(|(k, v)| format!("{k}={}", reveal(cx, v))).collect()),
        user: own("user"),
        working_dir: own("cwd"),
        hostname: own("hostname"),
        stop_timeout: call.opt_duration("stop_timeout").map(|d| d.as_secs_f64().ceil() as i64),
        healthcheck: (healthcheck != HealthConfig::default()).then_some(healthcheck),
        exposed_ports: ports.as_ref().map(|p| p.keys().cloned().collect()),
        labels: Some(labels),
        host_config: Some(HostConfig {
            mounts: listed(call, "volumes").map(|v| v.into_iter().map(mount).collect::<Result<Vec<_>>>()).transpose()?,
            port_bindings: ports,
            network_mode: listed(call, "networks").and_then(|n| n.first().map(|n| (*n).to_string())),
            restart_policy: call.opt_str("restart").map(restart).transpose()?,
            init: call.opt("init").and_then(Value::as_bool),
            memory: call.opt("memory").and_then(|v| if let Value::Bytes(n) = v { i64::try_from(*n).ok() } else { None }),
            nano_cpus: nano_cpus(call, "cpus")?,
            readonly_rootfs: call.opt("read_only").and_then(Value::as_bool),
            cap_add: texts("cap_add"),
            cap_drop: texts("cap_drop"),
            ..Default::default()
        }),
        ..Default::default()
    })
}

/// A hash of each option that was given, and the image's id.
fn made_from(cx: &Cx, call: &Call, image: &str) -> BTreeMap<String, String> {
    fn plain(cx: &Cx, v: &Value) -> Json {
        match v {
            Value::List(all) => all.iter().map(|v| plain(cx, v)).collect(),
            Value::Map(all) => Json::Array(all.iter().map(|(k, v)| json!([k, plain(cx, v)])).collect()),
            Value::Secret(_) => reveal(cx, v).into(),
            other => other.to_json(),
        }
    }
    let hash = |v: &Value| sha256_hex(plain(cx, v).to_string().as_bytes()).chars().take(16).collect();
    let given = call.options.iter().filter(|(k, _)| *k != "replace").map(|(k, v)| (k.clone(), hash(v)));
    given.chain([("image".to_string(), image.to_string())]).collect()
}

/// In what one that is there differs from what is wanted: the image, or options by their names.
fn differs(is: &ContainerInspectResponse, wanted: &BTreeMap<String, String>) -> Vec<String> {
    let label = is.config.as_ref().and_then(|c| c.labels.as_ref()?.get(MADE_FROM));
    let Some(made) = label.and_then(|l| serde_json::from_str::<BTreeMap<String, String>>(l).ok()) else {
        return vec!["all of it, since something else has made it".into()];
    };
    let keys: BTreeSet<&String> = made.keys().chain(wanted.keys()).collect();
    keys.into_iter().filter(|k| made.get(*k) != wanted.get(*k)).cloned().collect()
}

async fn there(engine: &Engine, name: &str) -> Result<Option<ContainerInspectResponse>> {
    engine.find(&format!("looking at the container {name} on \"{}\"", engine.name), engine.api.inspect_container(name, None)).await
}

async fn create(cx: &Cx, engine: &Engine, call: &Call) -> Result<Outcome> {
    let (name, image) = (name(call), call.str(0));
    if !named(image, true) {
        return Err(bad(format!("\"{image}\" cannot be the name of an image"), "give its name with its tag, such as \"redis:7\""));
    }
    let at = |what: &str| format!("{what} the container {name} on \"{}\"", engine.name);
    let found = engine.ask(&format!("looking at the image {image} on \"{}\"", engine.name), engine.api.inspect_image(image)).await;
    let missing = |e: Error| match e.code {
        Code::DOCKER_MISSING => e.hint("bring the image there first: image(…).copy_from(…) or image(…).pull()"),
        _ => e,
    };
    let wanted = made_from(cx, call, &found.map_err(missing)?.id.unwrap_or_default());
    let body = body(cx, call, &wanted)?;
    for network in listed(call, "networks").unwrap_or_default() {
        // The engine would tell when the container is started.
        engine.ask(&format!("looking at the network {network} on \"{}\"", engine.name), engine.api.inspect_network(network, None)).await?;
    }
    let mut note = None;
    if let Some(is) = there(engine, name).await? {
        let other = differs(&is, &wanted).join(", ");
        if other.is_empty() {
            let ours = is.config.as_ref().and_then(|c| c.labels.as_ref()?.get(ACTION)) == Some(&cx.action_id.0);
            let joined = join(engine, name, call, &is).await?;
            // One that a controller made which died is as new.
            return Ok(if joined || ours {
                Outcome::changed(info(look(engine, name).await?))
            } else {
                Outcome::unchanged(info(is), "it is there")
            });
        }
        if !call.opt_bool("replace") {
            return Err(Error::new(
                Code::DOCKER_CONFLICT,
                format!("the container {name} on \"{}\" is there, and differs in {other}", engine.name),
            )
            .host(engine.at())
            .hint("remove() it first, or say #{ replace: true }: it is stopped then, and made anew"));
        }
        engine.find(&at("stopping"), engine.api.stop_container(name, None)).await?;
        engine
            .find(&at("removing"), engine.api.remove_container(name, Some(RemoveContainerOptions { force: true, ..Default::default() })))
            .await?;
        note = Some(format!("in the place of one that differed in {other}"));
    }
    let options = CreateContainerOptions { name: Some(name.to_string()), ..Default::default() };
    let made = engine.ask(&at("making"), engine.api.create_container(Some(options), body)).await;
    let is = match (made, there(engine, name).await?) {
        (Ok(_), Some(is)) => is,
        // The request of a controller that died may have come through just now.
        (Err(e), Some(is)) if e.code == Code::DOCKER_CONFLICT && differs(&is, &wanted).is_empty() => is,
        (Err(e), _) => return Err(e),
        (Ok(_), None) => {
            return Err(Error::new(
                Code::DOCKER_MISSING,
                format!("the container {name} on \"{}\" was removed while it was made", engine.name),
            )
            .host(engine.at()));
        }
    };
    join(engine, name, call, &is).await?;
    Ok(Outcome { note, ..Outcome::changed(info(look(engine, name).await?)) })
}

/// Connects it to those of its networks that it is not on; whether there were such.
async fn join(engine: &Engine, name: &str, call: &Call, is: &ContainerInspectResponse) -> Result<bool> {
    let there: HashMap<_, _> = is.network_settings.as_ref().and_then(|n| n.networks.clone()).unwrap_or_default();
    let mut joined = false;
    for network in listed(call, "networks").unwrap_or_default().into_iter().filter(|n| !there.contains_key(*n)) {
        let request = NetworkConnectRequest { container: name.to_string(), endpoint_config: None };
        let what = format!("connecting {name} with the network {network} on \"{}\"", engine.name);
        engine.ask(&what, engine.api.connect_network(network, request)).await?;
        joined = true;
    }
    Ok(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_it_is_started_anew_is_read() {
        assert_eq!(restart("always").unwrap().name, Some(RestartPolicyNameEnum::ALWAYS));
        assert_eq!(restart("on-failure:5").unwrap().maximum_retry_count, Some(5));
        for wrong in ["", "sometimes", "always:5", "on-failure:x", "on-failure:0", "on-failure:"] {
            assert_eq!(restart(wrong).unwrap_err().code, Code::COMMAND_BAD, "{wrong}");
        }
    }

    #[test]
    fn a_port_may_be_published_on_several_addresses() {
        let all = ports(&["127.0.0.1:80:80", "[::1]:80:80", "53:53/udp"]).unwrap();
        assert_eq!(all["80/tcp"].as_ref().unwrap().len(), 2);
        assert_eq!(all["53/udp"].as_ref().unwrap()[0], PortBinding { host_ip: None, host_port: Some("53".into()) });
    }
}
