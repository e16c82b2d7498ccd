//! `Docker.run`: a container that runs to its end, exactly once.
//!
//! The container is named after the action, and an engine has one of a name: so whoever asks for the action again, after a crash of any kind,
//! finds the container that was made for it, starts it if it never ran, and waits for it or reads what it left. Such containers are removed
//! when the run of the runbook has ended for good.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use async_trait::async_trait;
use bollard::container::LogOutput;
use bollard::models::{ContainerCreateBody, ContainerInspectResponse, HostConfig};
use bollard::query_parameters::{CreateContainerOptions, KillContainerOptions, ListContainersOptions, LogsOptions, RemoveContainerOptions};
use futures::StreamExt as _;
use runbook_core::inventory::Section;
use runbook_core::primitive::{Cx, Outcome, Primitive, Reconciled, Registry, RunHook, StreamKind};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::units::show_duration;
use runbook_core::{Code, Error, Result, Value};
use tokio::time::Instant;

use super::running;
use crate::docker::ACTION;
use crate::docker::engine::Engine;
use crate::docker::given::{command_ty, words};
use crate::docker::things::{named, reveal};
use crate::ssh::{Collector, Done, outcome_of};

/// The label that names the run of the runbook.
const RUN: &str = "runbook.run";
/// How long a lost connection is tried again while the container goes on.
const PATIENCE: Duration = Duration::from_secs(300);

pub(super) fn register(r: &mut Registry) {
    let text = || Ty::OneOf(vec![Ty::Str, Ty::Secret]);
    r.add(RunOnce(
        Spec::method(
            "Docker",
            "run",
            Effect::Once,
            "Runs a command in a container of its own, made from an image that is there, exactly once and to its end; a status other than 0 is an error.\n\nIt survives the loss of \
             the connection and of the controller: the container bears the action's id, by which it is found again. It is removed when the run has ended for good.",
        )
        .arg("image", Ty::Str, "The image, which must be there.")
        .opt_arg("command", command_ty(), "A text for the image's `sh`, or an array of words; the image's own when not given.")
        .option("volumes", Ty::List(Box::new(Ty::Str)), "What it has mounted: `VOLUME:/path` or `/folder:/path`, with `:ro` at its end to read only.")
        .option("env", Ty::Map(Box::new(text())), "Environment variables. As long as the container is there, `docker inspect` shows them to whoever may use the engine.")
        .option("network", Ty::Str, "The network that it is on; the engine's default when not given.")
        .option("user", Ty::Str, "As whom; the image's own user when not given.")
        .option("cwd", Ty::Str, "The folder to run it in.")
        .option("timeout", Ty::Duration, "How long it may take before it is killed; no limit when not given.")
        .returns(Ty::Record("Output"))
        .example(r#"docker("new").run("shop:7", ["bin/migrate"], #{ network: "shop_default", env: #{ DB_PASSWORD: secret("db") } });"#)
        .errors(&[Code::COMMAND_FAILED, Code::COMMAND_TIMEOUT, Code::COMMAND_BAD, Code::DOCKER, Code::DOCKER_MISSING, Code::DOCKER_CONNECT, Code::SSH_CONNECT]),
    ));
    r.add_hook(Clean);
}

struct RunOnce(Spec);

fn container_of(cx: &Cx) -> String {
    format!("runbook-{}", cx.action_id)
}

/// The fact that a run has made containers on an engine.
fn fact(cx: &Cx, engine: &str) -> String {
    format!("docker.containers.{}.{engine}", cx.run)
}

/// What the container is made of.
fn body(cx: &Cx, call: &Call) -> ContainerCreateBody {
    let own = |name: &str| call.opt_str(name).map(str::to_string);
    let binds = call.opt("volumes").and_then(Value::as_list).map(|l| l.iter().filter_map(|v| v.as_str().map(str::to_string)).collect());
    ContainerCreateBody {
        image: Some(call.str(0).to_string()),
        cmd: words(call.arg(1)),
        env: call.opt("env").and_then(Value::as_map).map(|m| m.iter().map(|(k, v)| format!("{k}={}", reveal(cx, v))).collect()),
        user: own("user"),
        working_dir: own("cwd"),
        labels: Some(HashMap::from([(ACTION.to_string(), cx.action_id.to_string()), (RUN.to_string(), cx.run.to_string())])),
        host_config: Some(HostConfig { binds, network_mode: own("network"), init: Some(true), ..Default::default() }),
        ..Default::default()
    }
}

async fn find(engine: &Engine, name: &str) -> Result<Option<ContainerInspectResponse>> {
    engine.find(&format!("looking for the container of this action on \"{}\"", engine.name), engine.api.inspect_container(name, None)).await
}

/// Whether it was started, whatever became of it.
fn begun(c: &ContainerInspectResponse) -> bool {
    c.state.as_ref().and_then(|s| s.status).is_some_and(|s| s.to_string() != "created")
}

/// Waits for the container's end, over as many connections as it takes, and gives what it left.
async fn follow(cx: &Cx, engine: &str, name: &str, deadline: Option<Instant>) -> Result<Done> {
    let mut lost: Option<Instant> = None;
    let mut live = true;
    loop {
        match attend(cx, engine, name, deadline, live).await {
            Err(e) if e.retryable && e.code != Code::ABORTED => {
                let since = *lost.get_or_insert_with(Instant::now);
                if since.elapsed() > PATIENCE {
                    return Err(e);
                }
                // What was shown is not shown twice.
                live = false;
                cx.sleep(Duration::from_secs(1)).await?;
            }
            other => return other,
        }
    }
}

/// As [`follow`], over one connection.
async fn attend(cx: &Cx, engine: &str, name: &str, deadline: Option<Instant>, live: bool) -> Result<Done> {
    let engine = Engine::of(cx, engine).await?;
    let in_time = async {
        match deadline {
            Some(d) => tokio::time::sleep_until(d).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        shown = read(cx, &engine, name, true, live) => drop(shown?),
        () = in_time => {
            let killed = engine.api.kill_container(name, None::<KillContainerOptions>);
            // One that ends by itself at this moment cannot be killed, and is as good.
            let _ = engine.find("ending a container that takes too long", killed).await;
            return Err(Error::new(Code::COMMAND_TIMEOUT, "the container was killed after its time was up").host(engine.at()).hint("give it a longer timeout"));
        }
    }
    loop {
        let c = find(&engine, name).await?.ok_or_else(|| gone(&engine))?;
        if !running(&c) {
            // An engine that is followed may stop before it has sent the last piece.
            let (out, mut err) = read(cx, &engine, name, false, false).await?;
            let state = c.state.unwrap_or_default();
            if state.oom_killed == Some(true) {
                err.push(b"\nit was killed because it used more memory than it may\n");
            }
            let ((stdout, a), (stderr, b)) = (out.finish(), err.finish());
            let status = i32::try_from(state.exit_code.unwrap_or(-1)).unwrap_or(-1);
            return Ok(Done { status, stdout, stderr, whole: a.into_iter().chain(b).collect() });
        }
        cx.sleep(Duration::from_millis(50)).await?;
    }
}

/// What the container has written, from the first on: all that is there, or, with `follow`, until it has ended.
async fn read(cx: &Cx, engine: &Engine, name: &str, follow: bool, live: bool) -> Result<(Collector, Collector)> {
    let [mut out, mut err] = [StreamKind::Stdout, StreamKind::Stderr].map(|kind| Collector::new(cx, kind, live, !follow));
    let options = LogsOptions { follow, stdout: true, stderr: true, tail: "all".into(), ..Default::default() };
    let mut pieces = engine.api.logs(name, Some(options));
    let all = async {
        while let Some(piece) = pieces.next().await {
            match piece? {
                LogOutput::StdErr { message } => err.push(&message),
                LogOutput::StdOut { message } | LogOutput::Console { message } | LogOutput::StdIn { message } => out.push(&message),
            }
        }
        Ok(())
    };
    engine.ask(&format!("following a container on \"{}\"", engine.name), all).await?;
    Ok((out, err))
}

fn gone(engine: &Engine) -> Error {
    Error::new(Code::DOCKER_MISSING, format!("the container of this action on \"{}\" was removed while it ran", engine.name))
        .host(engine.at())
}

impl RunOnce {
    /// Starts the container unless it was, and brings its result.
    async fn go_on(&self, cx: &Cx, call: &Call, engine: &Engine, c: &ContainerInspectResponse) -> Result<Outcome> {
        let name = container_of(cx);
        if !begun(c) {
            let image = call.str(0);
            engine.ask(&format!("starting a container of {image} on \"{}\"", engine.name), engine.api.start_container(&name, None)).await?;
        }
        let deadline = call.opt_duration("timeout").map(|t| Instant::now() + t);
        let done = follow(cx, &engine.name, &name, deadline).await.map_err(|e| match (e.code, call.opt_duration("timeout")) {
            (Code::COMMAND_TIMEOUT, Some(t)) => Error { message: format!("the container was killed after {}", show_duration(t)), ..e },
            _ => e,
        })?;
        outcome_of(cx, engine.at(), &shown(call), &done)
    }
}

/// The command, for messages.
fn shown(call: &Call) -> String {
    let command = match call.arg(1) {
        Value::List(words) => words.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        other => other.as_str().unwrap_or("").to_string(),
    };
    format!("{} {command}", call.str(0)).trim_end().to_string()
}

#[async_trait]
impl Primitive for RunOnce {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        if !named(call.str(0), true) {
            return Err(Error::new(Code::COMMAND_BAD, format!("\"{}\" cannot be the name of an image", call.str(0))));
        }
        let (engine, name) = (Engine::on(cx, call).await?, container_of(cx));
        if let Some(c) = find(&engine, &name).await? {
            return self.go_on(cx, call, &engine, &c).await;
        }
        cx.facts.put(BTreeMap::from([(fact(cx, &engine.name), true.into())]))?;
        let options = CreateContainerOptions { name: Some(name.clone()), ..Default::default() };
        let made = engine.api.create_container(Some(options), body(cx, call));
        match engine.ask(&format!("making a container of {} on \"{}\"", call.str(0), engine.name), made).await {
            // The request of a controller that died may have come through just now.
            Ok(_) => {}
            Err(e) if e.code == Code::DOCKER_CONFLICT => {}
            Err(e) if e.code == Code::DOCKER_MISSING => {
                return Err(e.hint("bring the image there first: image(…).copy_from(…) or image(…).pull()"));
            }
            Err(e) => return Err(e),
        }
        let c = find(&engine, &name).await?.ok_or_else(|| gone(&engine))?;
        self.go_on(cx, call, &engine, &c).await
    }

    async fn reconcile(&self, cx: &Cx, call: &Call) -> Result<Reconciled> {
        let engine = Engine::on(cx, call).await?;
        // The secrets of the options must be known before the output is read again.
        let _ = body(cx, call);
        let Some(c) = find(&engine, &container_of(cx)).await? else { return Ok(Reconciled::NotStarted) };
        if !begun(&c) {
            return Ok(Reconciled::NotStarted);
        }
        Ok(match self.go_on(cx, call, &engine, &c).await {
            Ok(outcome) => Reconciled::Done(outcome),
            Err(e) if matches!(e.code, Code::COMMAND_FAILED | Code::COMMAND_TIMEOUT) => Reconciled::Failed(e),
            Err(e) if e.code == Code::DOCKER_MISSING => Reconciled::Unknown { known: e.message },
            Err(e) => return Err(e),
        })
    }
}

/// Removes the containers of a run that has ended for good.
struct Clean;

#[async_trait]
impl RunHook for Clean {
    async fn finished(&self, cx: &Cx, _hosts: &BTreeSet<String>) -> Result<()> {
        for name in cx.env.resources.get(&Section::Engines).into_iter().flat_map(BTreeMap::keys) {
            let fact = fact(cx, name);
            if cx.facts.get(&fact)?.is_none_or(|v| v == Value::Unit) {
                continue;
            }
            let engine = Engine::of(cx, name).await?;
            let filters = HashMap::from([("label".to_string(), vec![format!("{RUN}={}", cx.run)])]);
            let options = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
            for c in engine.ask("listing the containers of this run", engine.api.list_containers(Some(options))).await? {
                let id = c.id.unwrap_or_default();
                let how = RemoveContainerOptions { force: true, v: true, ..Default::default() };
                engine.find("removing a container of this run", engine.api.remove_container(&id, Some(how))).await?;
            }
            cx.facts.put(BTreeMap::from([(fact, Value::Unit)]))?;
        }
        Ok(())
    }
}
