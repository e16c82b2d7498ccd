//! `Network.create` and `remove`.

use std::collections::HashMap;

use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest};
use futures::FutureExt as _;
use runbook_core::primitive::{Cx, Outcome, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::{Code, Error, Result, Value};

use super::ACTION;
use super::acts::acting;
use super::engine::Engine;
use super::things::name;

const ERRORS: &[Code] = &[Code::DOCKER, Code::DOCKER_CONFLICT, Code::DOCKER_CONNECT, Code::SSH_CONNECT];

pub(super) fn register(r: &mut Registry) {
    r.add(acting(
        Spec::method(
            "Network",
            "create",
            Effect::Converge,
            "Makes the network, unless it is there. One with another driver or other addresses is an error.",
        )
        .option("driver", Ty::Str, "`bridge` when not given.")
        .option("subnet", Ty::Str, "Its addresses, such as `172.30.0.0/24`; chosen by the engine when not given.")
        .option("internal", Ty::Bool, "Whether it leads nowhere else; false by default.")
        .option("attachable", Ty::Bool, "For `overlay`: whether containers that no service made may join; false by default.")
        .option("labels", Ty::Map(Box::new(Ty::Str)), "Its labels.")
        .example(r#"docker("new").network("shop").create(#{ subnet: "172.30.0.0/24" });"#)
        .errors(ERRORS),
        |cx, e, call| create(cx, e, call).boxed(),
    ));
    r.add(acting(
        Spec::method(
            "Network",
            "remove",
            Effect::Converge,
            "Removes the network. There is nothing to do when there is none; one in use is an error.",
        )
        .example(r#"docker("old").network("shop").remove();"#)
        .errors(ERRORS),
        |cx, e, call| remove(cx, e, call).boxed(),
    ));
}

/// The labels of a call, with the action's own.
pub(super) fn labels(cx: &Cx, call: &Call) -> HashMap<String, String> {
    let given = call.opt("labels").and_then(Value::as_map).into_iter().flatten();
    let own = (ACTION.to_string(), cx.action_id.to_string());
    given.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_string()))).chain([own]).collect()
}

async fn create(cx: &Cx, engine: &Engine, call: &Call) -> Result<Outcome> {
    let name = name(call);
    let (driver, subnet) = (call.opt_str("driver").unwrap_or("bridge"), call.opt_str("subnet"));
    let what = format!("looking at the network {name} on \"{}\"", engine.name);
    if let Some(is) = engine.find(&what, engine.api.inspect_network(name, None)).await? {
        let subnets: Vec<String> = is.ipam.and_then(|i| i.config).unwrap_or_default().into_iter().filter_map(|c| c.subnet).collect();
        let other = if is.driver.as_deref() != Some(driver) {
            Some(format!("the driver {}", is.driver.unwrap_or_default()))
        } else if is.internal.unwrap_or_default() != call.opt_bool("internal") {
            Some("another setting of `internal`".into())
        } else {
            subnet.filter(|s| !subnets.iter().any(|x| x == s)).map(|_| format!("the addresses {}", subnets.join(", ")))
        };
        return match other {
            None => Ok(Outcome::unchanged((), "it is there")),
            Some(other) => {
                Err(Error::new(Code::DOCKER_CONFLICT, format!("the network {name} on \"{}\" is there with {other}", engine.name))
                    .host(engine.at())
                    .hint("remove it, or use another name"))
            }
        };
    }
    let ipam =
        subnet.map(|s| Ipam { config: Some(vec![IpamConfig { subnet: Some(s.to_string()), ..Default::default() }]), ..Default::default() });
    let request = NetworkCreateRequest {
        name: name.to_string(),
        driver: Some(driver.to_string()),
        internal: Some(call.opt_bool("internal")),
        attachable: Some(call.opt_bool("attachable")),
        ipam,
        labels: Some(labels(cx, call)),
        ..Default::default()
    };
    engine.ask(&format!("making the network {name} on \"{}\"", engine.name), engine.api.create_network(request)).await?;
    Ok(Outcome::changed(()))
}

async fn remove(_: &Cx, engine: &Engine, call: &Call) -> Result<Outcome> {
    let name = name(call);
    let what = format!("removing the network {name} on \"{}\"", engine.name);
    let removed = engine.find(&what, engine.api.remove_network(name)).await?.is_some();
    Ok(Outcome::done(removed, "there is none"))
}
