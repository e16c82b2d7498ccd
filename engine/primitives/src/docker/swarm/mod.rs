//! Swarms: their nodes, services, stacks, secrets and configs, through the engine of a manager.
//!
//! - `api.rs`: requests and answers as JSON, since an update must give back every part of a specification that it does not change
//! - `cluster.rs`, `join.rs`: a swarm is made, joined and left
//! - `node.rs`, `availability.rs`, `role.rs`: nodes
//! - `options.rs`, `spec.rs`: what a service may be given, and what that is to the engine
//! - `service.rs`, `create.rs`, `update.rs`, `task.rs`, `wait.rs`: services
//! - `stack.rs`, `keep.rs`: stacks; secrets and configs

mod api;
mod availability;
mod cluster;
mod create;
mod join;
mod keep;
mod node;
mod options;
mod role;
mod service;
mod spec;
mod stack;
mod task;
mod update;
mod wait;

use std::collections::BTreeMap;

use runbook_core::inventory::Environment;
use runbook_core::primitive::{Cx, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::{Code, Error, Record, Result, Value};
use serde_json::Value as Json;

use super::engine::host_of;
use super::things::named;

/// The label that names the run by which something was made.
const MADE: &str = "runbook.made";
/// The label that names the run by whose update the present version of a service came.
const UPDATED: &str = "runbook.updated";
/// The label of everything that belongs to a stack.
const STACK: &str = "com.docker.stack.namespace";

pub(super) fn register(r: &mut Registry) {
    let handle = |t: TypeSpec| {
        t.field("engine", Ty::Str, "The name of the engine in the inventory.").field(
            "host",
            Ty::Str,
            "The inventory name of the engine's host.",
        )
    };
    r.add_type(handle(TypeSpec::new("Swarm", "The swarm of a Docker Engine.")));
    r.add_pure(
        Spec::method(
            "Docker",
            "swarm",
            Effect::Pure,
            "Gives the swarm that the engine belongs to, or is to belong to. Nothing is contacted.\n\nNodes, services, stacks, secrets and configs are asked of a manager.",
        )
        .returns(Ty::Record("Swarm"))
        .example(r#"for n in docker("m1").swarm().nodes() { log(`${n.name}: ${n.state}`); }"#)
        .errors(&[Code::UNKNOWN_NAME]),
        swarm,
    );
    for (ty, method, is, doc, example) in [
        (
            "SwarmNode",
            "node",
            "A node of a swarm.",
            "Gives the node of that host name or id. Nothing is contacted.",
            r#"docker("m1").swarm().node("web2").drain();"#,
        ),
        (
            "SwarmService",
            "service",
            "A service of a swarm.",
            "Gives the service of that name. Nothing is contacted.",
            r#"docker("m1").swarm().service("shop_web").scale(3);"#,
        ),
        (
            "SwarmStack",
            "stack",
            "A stack of a swarm.",
            "Gives the stack of that name. Nothing is contacted.",
            r#"docker("m1").swarm().stack("shop").deploy("/srv/shop/stack.yaml");"#,
        ),
        (
            "SwarmSecret",
            "secret",
            "A secret of a swarm.",
            "Gives the secret of that name in the swarm, which need not be there. Nothing is contacted.",
            r#"docker("m1").swarm().secret("db_password_2").create(secret("db"));"#,
        ),
        (
            "SwarmConfig",
            "config",
            "A config of a swarm.",
            "Gives the config of that name in the swarm, which need not be there. Nothing is contacted.",
            r#"docker("m1").swarm().config("shop_conf_2").create("workers = 4\n");"#,
        ),
    ] {
        r.add_type(handle(TypeSpec::new(ty, is)).field("name", Ty::Str, "Its name."));
        r.add_pure(
            Spec::method("Swarm", method, Effect::Pure, doc)
                .arg("name", Ty::Str, "Its name.")
                .returns(Ty::Record(ty))
                .example(example)
                .errors(&[Code::COMMAND_BAD]),
            match ty {
                "SwarmNode" => |env, call| thing(env, call, "SwarmNode"),
                "SwarmService" => |env, call| thing(env, call, "SwarmService"),
                "SwarmStack" => |env, call| thing(env, call, "SwarmStack"),
                "SwarmSecret" => |env, call| thing(env, call, "SwarmSecret"),
                _ => |env, call| thing(env, call, "SwarmConfig"),
            },
        );
    }
    cluster::register(r);
    join::register(r);
    node::register(r);
    availability::register(r);
    role::register(r);
    task::register(r);
    service::register(r);
    create::register(r);
    update::register(r);
    stack::register(r);
    keep::register(r);
}

fn swarm(env: &Environment, call: &Call) -> Result<Value> {
    let engine = call.target();
    let fields = BTreeMap::from([("engine".to_string(), Value::from(engine)), ("host".to_string(), Value::from(host_of(env, engine)?))]);
    Ok(Record::handle("Swarm", engine, fields).into())
}

fn thing(env: &Environment, call: &Call, ty: &'static str) -> Result<Value> {
    let (engine, name) = (call.target(), call.str(0));
    if !named(name, false) {
        return Err(Error::new(Code::COMMAND_BAD, format!("\"{name}\" cannot be the name of anything in a swarm"))
            .hint("such a name begins with a letter or a digit, and has these, `_`, `.` and `-` in it"));
    }
    let fields = BTreeMap::from([
        ("engine".to_string(), Value::from(engine)),
        ("host".to_string(), Value::from(host_of(env, engine)?)),
        ("name".to_string(), Value::from(name)),
    ]);
    Ok(Record::handle(ty, format!("{engine}/{name}"), fields).into())
}

/// Whether a label of a specification names this run of the runbook.
fn by_this_run(cx: &Cx, spec: &Json, label: &str) -> bool {
    spec.pointer(&format!("/Labels/{label}")).and_then(Json::as_str) == Some(&*cx.run)
}

/// What an action finds before it changes it, the same however often the action is begun anew: kept as a fact before the change.
fn former(cx: &Cx, present: impl FnOnce() -> Value) -> Result<Value> {
    let key = former_key(cx);
    match cx.facts.get(&key)? {
        Some(found) if found != Value::Unit => Ok(found),
        _ => {
            let value = present();
            cx.facts.put(BTreeMap::from([(key, value.clone())]))?;
            Ok(value)
        }
    }
}

/// The fact that [`former`] keeps; removed with the action's outcome.
fn former_key(cx: &Cx) -> String {
    format!("docker.former.{}", cx.action_id)
}
