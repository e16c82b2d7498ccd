//! The options of a call as the engine's specification of a service: put onto what is there, which else stays as it is.

use std::collections::BTreeMap;

use base64::Engine as _;
use runbook_core::primitive::Cx;
use runbook_core::spec::Call;
use runbook_core::{Code, Error, Result, Value};
use serde_json::{Map, Value as Json, json};

use super::api::{encoded, find, items, text};
use super::node::set_labels;
use crate::docker::engine::Engine;
use crate::docker::given::{Mounted, Published, bad, choice, health_test, listed, nano_cpus, nanos, words};
use crate::docker::things::reveal;

const CONTAINER: &[&str] = &["TaskTemplate", "ContainerSpec"];

/// Puts a value at a place of a specification, making what leads there.
fn put(spec: &mut Json, at: &[&str], key: &str, value: impl Into<Json>) {
    let mut here = spec;
    for step in at {
        if !here.get(*step).is_some_and(Json::is_object)
            && let Some(o) = here.as_object_mut()
        {
            o.insert((*step).to_string(), json!({}));
        }
        match here.get_mut(*step) {
            Some(next) => here = next,
            None => return,
        }
    }
    if let Some(o) = here.as_object_mut() {
        o.insert(key.to_string(), value.into());
    }
}

fn mount(given: &str) -> Result<Json> {
    let m = Mounted::of(given)?;
    let mut json = json!({"Type": if m.is_folder() { "bind" } else { "volume" }, "Source": m.source, "Target": m.target});
    if m.read_only {
        put(&mut json, &[], "ReadOnly", true);
    }
    Ok(json)
}

fn port(given: &str, mode: &str) -> Result<Json> {
    let p = Published::of(given)?;
    if p.address.is_some() {
        return Err(bad(format!("\"{given}\" is no port of a service"), "a swarm publishes on all addresses: give PUBLISHED:TARGET"));
    }
    Ok(json!({"Protocol": p.protocol, "TargetPort": p.inside, "PublishedPort": p.outside, "PublishMode": mode}))
}

/// Puts the options of a call onto a specification.
///
/// # Errors
/// `RB0313` for options that are not well formed, `RB1002` for a network, secret or config that the swarm does not have.
pub(super) async fn apply(cx: &Cx, e: &Engine, call: &Call, image: Option<&str>, spec: &mut Json) -> Result<()> {
    container(cx, call, image, spec);
    resources(call, spec)?;
    placing(call, spec)?;
    changing(call, spec)?;
    if let Some(v) = listed(call, "volumes") {
        put(spec, CONTAINER, "Mounts", v.into_iter().map(mount).collect::<Result<Vec<_>>>()?);
    }
    if let Some(names) = listed(call, "networks") {
        let mut all = vec![];
        for name in names {
            all.push(json!({"Target": network(cx, e, name).await?}));
        }
        put(spec, &["TaskTemplate"], "Networks", all);
    }
    for (option, path, key) in [("secrets", "/secrets", "Secret"), ("configs", "/configs", "Config")] {
        let Some(given) = call.opt(option) else { continue };
        let mut all = vec![];
        for (name, file) in files(given, key) {
            let id = super::keep::id_of(cx, e, path, &name).await?;
            let file = json!({"Name": file, "UID": "0", "GID": "0", "Mode": 0o444});
            all.push(json!({"File": file, format!("{key}ID"): id, format!("{key}Name"): name}));
        }
        put(spec, CONTAINER, &format!("{key}s"), all);
    }
    if let Some(given) = call.opt("labels").and_then(Value::as_map) {
        set_labels(spec, given);
    }
    Ok(())
}

/// What the process in the container is.
fn container(cx: &Cx, call: &Call, image: Option<&str>, spec: &mut Json) {
    if let Some(image) = image {
        put(spec, CONTAINER, "Image", image);
    }
    if let Some(w) = call.opt("command").and_then(words) {
        put(spec, CONTAINER, "Args", w);
    }
    for (option, key) in [("user", "User"), ("cwd", "Dir")] {
        if let Some(v) = call.opt_str(option) {
            put(spec, CONTAINER, key, v);
        }
    }
    if let Some(v) = call.opt("init").and_then(Value::as_bool) {
        put(spec, CONTAINER, "Init", v);
    }
    if let Some(given) = call.opt("env").and_then(Value::as_map) {
        let present = items(spec, "/TaskTemplate/ContainerSpec/Env").iter().filter_map(Json::as_str).map(str::to_string).collect();
        put(spec, CONTAINER, "Env", environment(cx, present, given));
    }
    if let Some(t) = call.opt_duration("stop_timeout") {
        put(spec, CONTAINER, "StopGracePeriod", nanos(t));
    }
    let check: &[&str] = &["TaskTemplate", "ContainerSpec", "Healthcheck"];
    if let Some(test) = health_test(call) {
        put(spec, check, "Test", test);
    }
    for (option, key) in [("health_interval", "Interval"), ("health_timeout", "Timeout"), ("health_start", "StartPeriod")] {
        if let Some(d) = call.opt_duration(option) {
            put(spec, check, key, nanos(d));
        }
    }
    if let Some(n) = call.opt_int("health_retries") {
        put(spec, check, "Retries", n);
    }
}

/// Variables put onto those that are there, in place; `()` takes one away.
fn environment(cx: &Cx, mut present: Vec<String>, given: &BTreeMap<String, Value>) -> Vec<String> {
    for (key, value) in given {
        let at = present.iter().position(|p| p.split('=').next() == Some(key));
        match (value, at) {
            (Value::Unit, Some(i)) => drop(present.remove(i)),
            (Value::Unit, None) => {}
            (v, at) => {
                let line = format!("{key}={}", reveal(cx, v));
                match at.and_then(|i| present.get_mut(i)) {
                    Some(there) => *there = line,
                    None => present.push(line),
                }
            }
        }
    }
    present
}

/// What a task may use, and when it is replaced.
fn resources(call: &Call, spec: &mut Json) -> Result<()> {
    for (memory, cpus, key) in [("memory", "cpus", "Limits"), ("reserve_memory", "reserve_cpus", "Reservations")] {
        let at: &[&str] = &["TaskTemplate", "Resources", key];
        if let Some(Value::Bytes(n)) = call.opt(memory) {
            put(spec, at, "MemoryBytes", *n);
        }
        if let Some(n) = nano_cpus(call, cpus)? {
            put(spec, at, "NanoCPUs", n);
        }
    }
    let at: &[&str] = &["TaskTemplate", "RestartPolicy"];
    if let Some(v) = choice(call, "restart", &["any", "on-failure", "none"])? {
        put(spec, at, "Condition", v);
    }
    if let Some(d) = call.opt_duration("restart_delay") {
        put(spec, at, "Delay", nanos(d));
    }
    Ok(())
}

/// How many tasks there are, where, and how they are reached.
fn placing(call: &Call, spec: &mut Json) -> Result<()> {
    let (replicas, global) = (call.opt_int("replicas"), call.opt("global").and_then(Value::as_bool));
    match (replicas, global) {
        (Some(_), Some(true)) => {
            return Err(bad("a service cannot have both replicas and a task on each node".into(), "give `replicas` or `global`"));
        }
        (Some(n), _) if n < 0 => return Err(bad(format!("replicas cannot be {n}"), "give a number of tasks")),
        (Some(_), _) if spec.pointer("/Mode/Global").is_some() => {
            return Err(bad("the service has one task on each node, which cannot be counted".into(), "leave `replicas` out"));
        }
        (Some(n), _) => put(spec, &["Mode", "Replicated"], "Replicas", n),
        (None, Some(true)) => put(spec, &[], "Mode", json!({"Global": {}})),
        _ => {}
    }
    let placement: &[&str] = &["TaskTemplate", "Placement"];
    if let Some(v) = listed(call, "constraints") {
        put(spec, placement, "Constraints", v);
    }
    if let Some(n) = call.opt_int("max_per_node") {
        put(spec, placement, "MaxReplicas", n);
    }
    if let Some(v) = choice(call, "endpoint", &["vip", "dnsrr"])? {
        put(spec, &["EndpointSpec"], "Mode", v);
    }
    for (option, mode) in [("ports", "ingress"), ("host_ports", "host")] {
        let Some(given) = listed(call, option) else { continue };
        let others = items(spec, "/EndpointSpec/Ports").iter().filter(|p| text(p, "/PublishMode") != mode).cloned();
        let mut all: Vec<Json> = others.collect();
        for p in given {
            all.push(port(p, mode)?);
        }
        put(spec, &["EndpointSpec"], "Ports", all);
    }
    Ok(())
}

/// How an update and a rollback go.
fn changing(call: &Call, spec: &mut Json) -> Result<()> {
    for (which, key) in [("update", "UpdateConfig"), ("rollback", "RollbackConfig")] {
        let name = |what: &str| format!("{which}_{what}");
        let mut set: Map<String, Json> = Map::new();
        if let Some(n) = call.opt_int(&name("parallelism")) {
            if n < 0 {
                return Err(bad(format!("{which}_parallelism cannot be {n}"), "give a number of tasks, 0 for all"));
            }
            set.insert("Parallelism".into(), n.into());
        }
        for (what, key) in [("delay", "Delay"), ("monitor", "Monitor")] {
            if let Some(d) = call.opt_duration(&name(what)) {
                set.insert(key.into(), nanos(d).into());
            }
        }
        let actions: &[&str] = if which == "update" { &["pause", "continue", "rollback"] } else { &["pause", "continue"] };
        if let Some(v) = choice(call, &name("failure"), actions)? {
            set.insert("FailureAction".into(), v.into());
        }
        if let Some(Value::Float(share)) = call.opt(&name("max_failures")) {
            if !(0.0..=1.0).contains(share) {
                return Err(bad(format!("{which}_max_failures cannot be {share}"), "give a share between 0 and 1"));
            }
            set.insert("MaxFailureRatio".into(), (*share).into());
        }
        if let Some(v) = choice(call, &name("order"), &["stop-first", "start-first"])? {
            set.insert("Order".into(), v.into());
        }
        if set.is_empty() {
            continue;
        }
        // Without any configuration the engine replaces one task at a time; a new one without this would have it replace all.
        if spec.pointer(&format!("/{key}/Parallelism")).is_none() {
            set.entry("Parallelism").or_insert_with(|| 1.into());
        }
        for (k, v) in set {
            put(spec, &[key], &k, v);
        }
    }
    Ok(())
}

/// The names of secrets or configs with the files that they are to be.
fn files(given: &Value, kind: &str) -> Vec<(String, String)> {
    let own = |name: &str| if kind == "Config" { format!("/{name}") } else { name.to_string() };
    match given {
        Value::List(all) => all.iter().filter_map(Value::as_str).map(|n| (n.to_string(), own(n))).collect(),
        Value::Map(all) => all.iter().filter_map(|(n, f)| Some((n.clone(), f.as_str()?.to_string()))).collect(),
        _ => vec![],
    }
}

/// The id of a network of the swarm.
async fn network(cx: &Cx, e: &Engine, name: &str) -> Result<String> {
    let what = format!("looking at the network {name} on \"{}\"", e.name);
    let found = find(cx, e, &what, &format!("/networks/{}?scope=swarm", encoded(name))).await?;
    found.map(|n| text(&n, "/Id").to_string()).ok_or_else(|| {
        Error::new(Code::DOCKER_MISSING, format!("the swarm of \"{}\" has no network {name}", e.name))
            .host(e.at())
            .hint(format!("make it on a manager: docker(…).network(\"{name}\").create(#{{ driver: \"overlay\" }})"))
    })
}

/// The header with which the nodes log in to the registry of the image.
pub(super) fn login(cx: &Cx, call: &Call) -> Option<String> {
    let user = call.opt_str("registry_user")?;
    let password = call.opt("registry_password").map(|p| reveal(cx, p)).unwrap_or_default();
    let text = json!({"username": user, "password": password}).to_string();
    let encoded = base64::engine::general_purpose::URL_SAFE.encode(text);
    cx.redactor.add(&encoded);
    Some(encoded)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn mounts_and_ports_are_as_the_engine_has_them() {
        assert_eq!(mount("data:/data").unwrap(), json!({"Type": "volume", "Source": "data", "Target": "/data"}));
        assert_eq!(mount("/srv/x:/x:ro").unwrap(), json!({"Type": "bind", "Source": "/srv/x", "Target": "/x", "ReadOnly": true}));
        assert_eq!(
            port("5353:53/udp", "host").unwrap(),
            json!({"Protocol": "udp", "TargetPort": 53, "PublishedPort": 5353, "PublishMode": "host"})
        );
        assert_eq!(port("127.0.0.1:80:80", "host").unwrap_err().code, Code::COMMAND_BAD);
    }

    #[test]
    fn only_what_is_given_changes() {
        let call = |options: &[(&str, Value)]| Call {
            options: options.iter().map(|(k, v)| ((*k).to_string(), v.clone())).collect(),
            ..Call::default()
        };
        let mut spec = json!({"Mode": {"Replicated": {"Replicas": 2}}, "EndpointSpec": {"Ports": [{"PublishMode": "host", "TargetPort": 1}]},
            "UpdateConfig": {"Parallelism": 0}, "TaskTemplate": {"Placement": {"Constraints": ["x==y"]}}});
        let given = call(&[
            ("replicas", Value::Int(3)),
            ("ports", Value::List(vec!["80:80".into()])),
            ("update_monitor", Value::Duration(Duration::from_secs(1))),
        ]);
        placing(&given, &mut spec).unwrap();
        changing(&given, &mut spec).unwrap();
        assert_eq!(spec.pointer("/Mode/Replicated/Replicas"), Some(&json!(3)));
        assert_eq!(items(&spec, "/EndpointSpec/Ports").len(), 2);
        assert_eq!(spec.pointer("/UpdateConfig"), Some(&json!({"Parallelism": 0, "Monitor": 1_000_000_000})));
        assert_eq!(spec.pointer("/TaskTemplate/Placement/Constraints"), Some(&json!(["x==y"])));
        let mut global = json!({"Mode": {"Global": {}}});
        assert_eq!(placing(&given, &mut global).unwrap_err().code, Code::COMMAND_BAD);
        let wrong = call(&[("update_failure", "explode".into())]);
        assert!(changing(&wrong, &mut spec).unwrap_err().message.contains("explode"));
    }
}
