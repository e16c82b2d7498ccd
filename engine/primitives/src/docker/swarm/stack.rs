//! `Swarm.stacks`; `SwarmStack.deploy`, `services` and `remove`. A stack is deployed by the host's own `docker stack`, which reads its files.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures::FutureExt as _;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::{Code, Error, Record, Result, Value};
use serde_json::Value as Json;

use super::api::{all, delete, encoded, filters, get, int, pruned, text};
use super::service::{ended, info, of_stack, wait_of};
use super::wait::{WITHIN, converged};
use super::{STACK, options};
use crate::docker::acts::acting;
use crate::docker::engine::Engine;
use crate::docker::info::in_order;
use crate::docker::things::{name, reveal};
use crate::ssh::{Exec, connect, quote};

const ERRORS: &[Code] = &[
    Code::SWARM_STACK,
    Code::SERVICE_UPDATE,
    Code::SERVICE_CONVERGE,
    Code::SWARM_STATE,
    Code::SWARM_QUORUM,
    Code::DOCKER_CONNECT,
    Code::HOST_TOOL_MISSING,
    Code::SSH_CONNECT,
];
/// What a stack is made of, beside its services, in the order in which it can go.
const PARTS: [&str; 3] = ["secrets", "configs", "networks"];

pub(super) fn register(r: &mut Registry) {
    r.add_type(TypeSpec::new("SwarmStackInfo", "A stack of a swarm.").field("name", Ty::Str, "Its name.").field(
        "services",
        Ty::Int,
        "How many services it has.",
    ));
    r.add(acting(
        Spec::method("Swarm", "stacks", Effect::Read, "Lists the stacks that have services, in order of their names.")
            .returns(Ty::List(Box::new(Ty::Record("SwarmStackInfo"))))
            .example(r#"for s in docker("m1").swarm().stacks() { log(`${s.name}: ${s.services}`); }"#)
            .errors(ERRORS),
        |cx, e, call| list(cx, e, call).boxed(),
    ));
    r.add(acting(
        Spec::method("SwarmStack", "services", Effect::Read, "Lists the stack's services, in order of their names.")
            .returns(Ty::List(Box::new(Ty::Record("SwarmServiceInfo"))))
            .example(r#"for s in docker("m1").swarm().stack("shop").services() { log(`${s.name}: ${s.replicas}`); }"#)
            .errors(ERRORS),
        |cx, e, call| services(cx, e, call).boxed(),
    ));
    r.add(Deploy(options::waiting(
        Spec::method(
            "SwarmStack",
            "deploy",
            Effect::Converge,
            "Makes the stack what its files say, by `docker stack deploy` on the host of the engine, and waits until all of its services have converged. \
             There is nothing to do when all of it is so.\n\nAn update of a service that the swarm stops or rolls back is an error, with what its tasks said.",
        )
        .arg("file", Ty::OneOf(vec![Ty::Str, Ty::List(Box::new(Ty::Str))]), "The absolute path of its Compose file on the host of the engine, or several.")
        .option("env", Ty::Map(Box::new(Ty::OneOf(vec![Ty::Str, Ty::Secret]))), "Variables for the files; secrets do not show in `ps` on the host.")
        .option("prune", Ty::Bool, "Remove services that the files no longer have; false by default.")
        .option("resolve_image", Ty::Str, "Whether registries are asked for the digests of images: `always`, `changed` or `never`; `always` when not given.")
        .option("registry_auth", Ty::Bool, "Give the nodes the login at the registry that the host has; false by default.")
        .option("detach", Ty::Bool, "Do not wait until its services have converged; false by default."),
    )
    .returns(Ty::List(Box::new(Ty::Record("SwarmServiceInfo"))))
    .example(r#"docker("m1").swarm().stack("shop").deploy("/srv/shop/stack.yaml", #{ within: "5m" });"#)
    .errors(ERRORS)));
    r.add(acting(
        Spec::method(
            "SwarmStack",
            "remove",
            Effect::Converge,
            "Removes the stack: its services, secrets, configs and networks, and waits until its containers have ended. Volumes stay on the nodes. There is nothing to do when there is none.",
        )
        .option("within", Ty::Duration, "How long its containers may take to end; `\"5m\"` when not given.")
        .example(r#"docker("m1").swarm().stack("shop").remove();"#)
        .errors(ERRORS), |cx, e, call| remove(cx, e, call).boxed()));
}

/// What of one kind belongs to a stack.
async fn parts(cx: &Cx, e: &Engine, stack: &str, kind: &str) -> Result<Vec<Json>> {
    let what = format!("listing the {kind} of the stack {stack} on \"{}\"", e.name);
    Ok(all(get(cx, e, &what, &format!("/{kind}{}", filters(&[("label", &format!("{STACK}={stack}"))]))).await?))
}

/// A stack as it can be compared: its services as they are specified, and the ids of what else it has.
async fn seen(cx: &Cx, e: &Engine, stack: &str) -> Result<(BTreeMap<String, Json>, Vec<String>)> {
    let services = of_stack(cx, e, stack).await?;
    let specs = services.iter().map(|s| (text(s, "/Spec/Name").to_string(), pruned(s.pointer("/Spec").unwrap_or(&Json::Null)))).collect();
    let mut others = vec![];
    for kind in PARTS {
        others.extend(parts(cx, e, stack, kind).await?.iter().map(id));
    }
    others.sort();
    Ok((specs, others))
}

/// The id of a network is spelled in another way than those of everything else.
fn id(part: &Json) -> String {
    match text(part, "/ID") {
        "" => text(part, "/Id").to_string(),
        id => id.to_string(),
    }
}

async fn list(cx: &Cx, e: &Engine, _: &Call) -> Result<Outcome> {
    let mut count: BTreeMap<String, i64> = BTreeMap::new();
    for s in all(get(cx, e, &format!("listing the stacks on \"{}\"", e.name), &format!("/services{}", filters(&[("label", STACK)]))).await?)
    {
        if let Some(stack) = s.pointer("/Spec/Labels").and_then(|l| l.get(STACK)).and_then(Json::as_str) {
            *count.entry(stack.to_string()).or_default() += 1;
        }
    }
    let record = |(name, n): (String, i64)| Record::new("SwarmStackInfo", [("name", name.into()), ("services", Value::Int(n))]);
    Ok(in_order(count.into_iter().map(record).collect(), "name"))
}

async fn services(cx: &Cx, e: &Engine, call: &Call) -> Result<Outcome> {
    Ok(in_order(of_stack(cx, e, name(call)).await?.iter().map(info).collect(), "name"))
}

struct Deploy(Spec);

/// The files of a stack, the folder that they lie in first.
fn files(call: &Call) -> Result<Vec<&str>> {
    let given: Vec<&str> = match call.arg(0) {
        Value::List(all) => all.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect(),
    };
    match given.iter().find(|f| !f.starts_with('/') || f.contains('\0') || f.ends_with('/')) {
        Some(bad) => Err(Error::new(Code::COMMAND_BAD, format!("\"{bad}\" cannot be the file of a stack"))
            .hint("give its absolute path on the host, such as \"/srv/shop/stack.yaml\"")),
        None if given.is_empty() => Err(Error::new(Code::COMMAND_BAD, "a stack has at least one file")),
        None => Ok(given),
    }
}

/// Runs `docker stack deploy` on the host.
async fn deploy(cx: &Cx, e: &Engine, call: &Call, files: &[&str]) -> Result<()> {
    let host = e.host.as_deref().ok_or_else(|| {
        Error::new(Code::SWARM_STACK, format!("\"{}\" is reached without a host, and `docker stack` runs on one", e.name))
            .hint("give the engine host = \"…\" in runbook.toml")
    })?;
    let mut words: Vec<String> = vec!["docker".into(), "stack".into(), "deploy".into()];
    words.extend(files.iter().flat_map(|f| ["-c".to_string(), (*f).to_string()]));
    words.extend(call.opt_bool("prune").then(|| "--prune".to_string()));
    words.extend(call.opt_bool("registry_auth").then(|| "--with-registry-auth".to_string()));
    if let Some(how) = call.opt_str("resolve_image") {
        if !matches!(how, "always" | "changed" | "never") {
            return Err(Error::new(Code::COMMAND_BAD, format!("resolve_image cannot be \"{how}\"")).hint("it is always, changed or never"));
        }
        words.extend(["--resolve-image".to_string(), how.to_string()]);
    }
    words.push(name(call).to_string());
    let line: Vec<String> = words.iter().map(|w| quote(w).to_string()).collect();
    let folder = files.first().and_then(|f| f.rsplit_once('/')).map_or("/", |(folder, _)| if folder.is_empty() { "/" } else { folder });
    let script = format!("cd {} || exit 124\ncommand -v docker >/dev/null 2>&1 || exit 125\nexec {}", quote(folder), line.join(" "));
    let mut env = vec![("DOCKER_HOST".to_string(), format!("unix://{}", e.socket))];
    env.extend(call.opt("env").and_then(Value::as_map).into_iter().flatten().map(|(k, v)| (k.clone(), reveal(cx, v))));
    let done = connect(cx, host).await?.exec_again(cx, Exec { env, sudo: e.sudo, live: true, ..Exec::new(script) }).await?;
    let said = cx.redactor.text(String::from_utf8_lossy(&done.stderr).trim());
    match done.status {
        0 => Ok(()),
        125 if said.is_empty() => Err(Error::new(Code::HOST_TOOL_MISSING, "the host has no `docker` command")
            .host(host)
            .hint("install the package docker.io or docker-ce-cli")),
        124 => Err(Error::new(Code::SWARM_STACK, format!("the folder {folder} of the stack {} cannot be entered", name(call))).host(host)),
        status => {
            let last = said.lines().map(str::trim).rfind(|l| !l.is_empty()).unwrap_or("").to_string();
            Err(Error::new(Code::SWARM_STACK, format!("the stack {} on \"{}\" cannot be deployed: {last}", name(call), e.name))
                .host(host)
                .hint("its output above says why")
                .detail("status", status)
                .detail("stderr", said))
        }
    }
}

#[async_trait]
impl Primitive for Deploy {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (e, name, files) = (Engine::on(cx, call).await?, name(call), files(call)?);
        let before = seen(cx, &e, name).await?;
        // A failure of a task is one of this deployment when the swarm has counted it after what is there now.
        let mut since = 0;
        for s in of_stack(cx, &e, name).await? {
            since = since.max(int(&s, "/Version/Index"));
        }
        deploy(cx, &e, call, &files).await?;
        if !call.opt_bool("detach") {
            let names: Vec<String> = of_stack(cx, &e, name).await?.iter().map(|s| text(s, "/Spec/Name").to_string()).collect();
            let waits: Vec<_> = names.iter().map(|s| wait_of(call, s, since)).collect();
            futures::future::try_join_all(waits.iter().map(|w| converged(cx, &e, w))).await?;
        }
        let after = seen(cx, &e, name).await?;
        let services = in_order(of_stack(cx, &e, name).await?.iter().map(info).collect(), "name").value;
        Ok(if after == before { Outcome::unchanged(services, "all of it is so already") } else { Outcome::changed(services) })
    }
}

async fn remove(cx: &Cx, e: &Engine, call: &Call) -> Result<Outcome> {
    let name = name(call);
    let what = |kind: &str| format!("removing the {kind} of the stack {name} on \"{}\"", e.name);
    let ids: Vec<String> = of_stack(cx, e, name).await?.iter().map(id).collect();
    let mut changed = !ids.is_empty();
    for id in &ids {
        delete(cx, e, &what("services"), &format!("/services/{}", encoded(id))).await?;
    }
    // Networks are in use until the last container has ended.
    ended(cx, e, &ids, call.opt_duration("within").unwrap_or(WITHIN)).await?;
    for kind in PARTS {
        for part in parts(cx, e, name, kind).await? {
            changed |= delete(cx, e, &what(kind), &format!("/{kind}/{}", encoded(&id(&part)))).await?;
        }
    }
    Ok(Outcome::done(changed, "there is none"))
}
