//! `Compose.up`, `start`, `stop`, `down`, `pull`, `ps`: by the host's own Compose.

use std::collections::BTreeMap;

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::{Code, Error, Result, Value};

use super::{Project, containers, is_live};
use crate::docker::container::{HEALTHY_WITHIN, wait_well};
use crate::docker::info;
use crate::docker::things::reveal;
use crate::ssh::{Exec, connect, quote};

/// Declares the option of variables.
pub(super) fn env(s: Spec) -> Spec {
    s.option(
        "env",
        Ty::Map(Box::new(Ty::OneOf(vec![Ty::Str, Ty::Secret]))),
        "Variables for the Compose files, beside those of `.env`; secrets do not show in `ps` on the host.",
    )
}

const ERRORS: &[Code] = &[Code::DOCKER_COMPOSE, Code::DOCKER_HEALTH, Code::DOCKER_CONNECT, Code::HOST_TOOL_MISSING, Code::SSH_CONNECT];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Up,
    Start,
    Stop,
    Down,
    Pull,
}

pub(super) fn register(r: &mut Registry) {
    let within = |s: Spec| s.option("within", Ty::Duration, "How long its containers may take to become healthy; `\"2m\"` when not given.");
    let spec = |name, doc, example| Spec::method("Compose", name, Effect::Converge, doc).example(example).errors(ERRORS);
    r.add(Act(
        Verb::Up,
        within(env(spec(
            "up",
            "Makes and starts what the project's files say, and waits until its containers are well, as `Container.wait_healthy` does; one that has ended with status 0 is well. \
             Containers whose configuration has changed are made anew; there is nothing to do when all of it runs as it should.",
            r#"docker("new").compose("/srv/shop").up(#{ within: "1m" });"#,
        )))
        .option("build", Ty::Bool, "Build images before; false by default.")
        .option("remove_orphans", Ty::Bool, "Remove containers of services that the files no longer have; false by default."),
    ));
    r.add(Act(
        Verb::Start,
        within(spec(
            "start",
            "Starts the project's containers as they are, and waits until they are well.",
            r#"docker("old").compose("/srv/shop").start();"#,
        )),
    ));
    r.add(Act(
        Verb::Stop,
        spec(
            "stop",
            "Stops the project's containers, in the order that their dependencies want. They stay, and so do their volumes.",
            r#"docker("old").compose("/srv/shop").stop(#{ timeout: "30s" });"#,
        )
        .option(
            "timeout",
            Ty::Duration,
            "How long each may take to end before it is killed; what it says, else 10 s, when not given.",
        ),
    ));
    r.add(Act(
        Verb::Down,
        env(spec(
            "down",
            "Stops and removes the project's containers and networks. Its volumes stay.",
            r#"docker("new").compose("/srv/shop").down();"#,
        )),
    ));
    r.add(Act(
        Verb::Pull,
        env(spec("pull", "Pulls the project's images from their registries.", r#"docker("new").compose("/srv/shop").pull();"#)),
    ));
    r.add(Ps(Spec::method(
        "Compose",
        "ps",
        Effect::Read,
        "Lists the project's containers, those too that do not run, in order of their names.",
    )
    .returns(Ty::List(Box::new(Ty::Record("ContainerSummary"))))
    .example(r#"for c in docker("new").compose("/srv/shop").ps() { log(`${c.name}: ${c.status}`); }"#)
    .errors(&[Code::DOCKER, Code::DOCKER_CONNECT, Code::SSH_CONNECT])));
}

struct Act(Verb, Spec);

impl Act {
    /// What Compose is told.
    fn words(&self, call: &Call) -> Vec<String> {
        let mut words: Vec<String> = vec![self.1.name.to_string()];
        match self.0 {
            Verb::Up => {
                words.push("-d".into());
                words.extend(call.opt_bool("build").then(|| "--build".to_string()));
                words.extend(call.opt_bool("remove_orphans").then(|| "--remove-orphans".to_string()));
            }
            Verb::Stop => {
                if let Some(t) = call.opt_duration("timeout") {
                    words.extend(["-t".to_string(), (t.as_secs_f64().ceil() as u64).max(1).to_string()]);
                }
            }
            Verb::Start | Verb::Down | Verb::Pull => {}
        }
        words
    }
}

/// What can be seen of a project: its containers, and how each of them is.
async fn seen(p: &Project<'_>) -> Result<BTreeMap<String, String>> {
    let all = containers(&p.engine, p.name).await?;
    let one = |c: bollard::models::ContainerSummary| Some((c.id?, c.state.map(|s| s.to_string()).unwrap_or_default()));
    Ok(all.into_iter().filter_map(one).collect())
}

/// Runs Compose on the project's host, in its folder; gives what it printed. `reading`, it sees the services of every profile, and shows nothing of its output.
pub(super) async fn run(cx: &Cx, p: &Project<'_>, call: &Call, words: &[String], reading: bool) -> Result<String> {
    let files = p.files.iter().flat_map(|f| ["-f", f]);
    let all: String = files.map(str::to_string).chain(words.iter().cloned()).map(|w| format!(" {}", quote(&w))).collect();
    let script = format!(
        "cd {} || exit 124\nif docker compose version >/dev/null 2>&1; then exec docker compose -p {name}{all}\n\
         elif command -v docker-compose >/dev/null 2>&1; then exec docker-compose --no-ansi -p {name}{all}\nelse exit 125; fi",
        quote(p.folder),
        name = quote(p.name)
    );
    let mut env = vec![("DOCKER_HOST".to_string(), format!("unix://{}", p.engine.socket))];
    if reading {
        env.push(("COMPOSE_PROFILES".into(), "*".into()));
    }
    env.extend(call.opt("env").and_then(Value::as_map).into_iter().flatten().map(|(k, v)| (k.clone(), reveal(cx, v))));
    let exec = Exec { env, sudo: p.engine.sudo, live: !reading, ..Exec::new(script) };
    let done = connect(cx, &p.host).await?.exec_again(cx, exec).await?;
    let what = words.first().map_or("", String::as_str);
    match done.status {
        0 => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
        125 if done.stderr.is_empty() => {
            Err(Error::new(Code::HOST_TOOL_MISSING, "the host has neither `docker compose` nor `docker-compose`")
                .host(&p.host)
                .hint("install the package docker-compose-plugin or docker-compose"))
        }
        124 => Err(Error::new(Code::DOCKER_COMPOSE, format!("the folder {} of {} cannot be entered", p.folder, p.shown())).host(&p.host)),
        status => {
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            let last = said.lines().map(str::trim).rfind(|l| !l.is_empty()).unwrap_or("").to_string();
            Err(Error::new(Code::DOCKER_COMPOSE, format!("compose {what} in {} failed: {}", p.folder, cx.redactor.text(&last)))
                .host(&p.host)
                .hint(if reading { "mend its files, or say which they are: #{ files: […] }" } else { "its output above says why" })
                .detail("status", status)
                .detail("stderr", cx.redactor.text(said.trim())))
        }
    }
}

#[async_trait]
impl Primitive for Act {
    fn spec(&self) -> &Spec {
        &self.1
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let p = Project::on(cx, call).await?;
        let before = seen(&p).await?;
        let running = |s: &BTreeMap<String, String>| s.values().any(|s| is_live(s));
        match self.0 {
            Verb::Stop if !running(&before) => return Ok(Outcome::unchanged((), "none of its containers runs")),
            Verb::Down if before.is_empty() => return Ok(Outcome::unchanged((), "it has no containers")),
            Verb::Start if before.is_empty() => {
                return Err(Error::new(Code::DOCKER_COMPOSE, format!("{} has no containers that could be started", p.shown()))
                    .host(&p.host)
                    .hint("up() makes them"));
            }
            _ => {}
        }
        run(cx, &p, call, &self.words(call), false).await?;
        if matches!(self.0, Verb::Up | Verb::Start) {
            let within = call.opt_duration("within").unwrap_or(HEALTHY_WITHIN);
            let names: Vec<String> = containers(&p.engine, p.name).await?.into_iter().filter_map(|c| c.id).collect();
            futures::future::try_join_all(names.iter().map(|name| wait_well(cx, &p.engine, name, within, true))).await?;
        }
        if self.0 == Verb::Pull {
            return Ok(Outcome::changed(()));
        }
        let after = seen(&p).await?;
        Ok(Outcome::done(after != before, "all of it is so already"))
    }
}

struct Ps(Spec);

#[async_trait]
impl Primitive for Ps {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let p = Project::on(cx, call).await?;
        let all = containers(&p.engine, p.name).await?.into_iter().map(info::container).collect();
        Ok(info::in_order(all, "name"))
    }
}
