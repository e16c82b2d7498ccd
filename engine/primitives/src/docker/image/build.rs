//! `Image.build`: by the docker client of the engine's host, from a folder there.

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::{Code, Error, Result, Value};

use super::{find, info, look};
use crate::docker::engine::Engine;
use crate::docker::things::name;
use crate::ssh::{Exec, connect, quote};

pub(super) fn register(r: &mut Registry) {
    r.add(Build(
        Spec::method(
            "Image",
            "build",
            Effect::Converge,
            "Builds the image from a folder on the engine's host, by `docker build` there, and gives it its name. There is nothing to do when the \
             result is the image that has the name already.\n\nWhat an image is made with can be read from it: `args` are no place for secrets.",
        )
        .arg("folder", Ty::Str, "The folder on the engine's host, with its Dockerfile and, if need be, `.dockerignore`.")
        .option("file", Ty::Str, "The Dockerfile, relative to the folder; `Dockerfile` when not given.")
        .option("target", Ty::Str, "The stage to build, of a Dockerfile that has several; the last when not given.")
        .option("args", Ty::Map(Box::new(Ty::Str)), "Values for the Dockerfile's `ARG`s.")
        .option("labels", Ty::Map(Box::new(Ty::Str)), "Labels for the image.")
        .option("network", Ty::Str, "The network of its `RUN` commands, such as `none` or `host`; the engine's own when not given.")
        .option("pull", Ty::Bool, "Whether images that it is built on are pulled anew; false by default.")
        .option("cache", Ty::Bool, "Whether steps that were done before may be taken from the cache; true by default.")
        .returns(Ty::Record("ImageInfo"))
        .example(r#"docker("new").image("shop:8").build("/srv/shop/src", #{ args: #{ "PHP": "8.3" } });"#)
        .errors(&[Code::DOCKER_BUILD, Code::HOST_TOOL_MISSING, Code::DOCKER_CONNECT, Code::SSH_CONNECT]),
    ));
}

struct Build(Spec);

/// The words for docker, and what its environment holds: values go there, so that nothing needs to be quoted twice.
fn words(engine: &Engine, call: &Call) -> (Vec<String>, Vec<(String, String)>) {
    let socket = format!("unix://{}", engine.socket);
    let mut words: Vec<String> = ["docker", "-H", &socket, "build", "-t", name(call)].map(str::to_string).into();
    for (flag, option) in [("--target", "target"), ("--network", "network")] {
        words.extend(call.opt_str(option).into_iter().flat_map(|v| [flag.to_string(), v.to_string()]));
    }
    let file = call.opt_str("file").map(|f| if f.starts_with('/') { f.to_string() } else { format!("{}/{f}", call.str(0)) });
    words.extend(file.into_iter().flat_map(|f| ["-f".to_string(), f]));
    let pairs = |option| {
        let all = call.opt(option).and_then(Value::as_map).into_iter().flatten();
        all.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_string()))
    };
    let mut env = vec![("DOCKER_CLI_HINTS".to_string(), "false".to_string()), ("BUILDKIT_PROGRESS".into(), "plain".into())];
    for (key, value) in pairs("args") {
        words.extend(["--build-arg".to_string(), key.clone()]);
        env.push((key, value));
    }
    words.extend(pairs("labels").flat_map(|(k, v)| ["--label".to_string(), format!("{k}={v}")]));
    words.extend(call.opt_bool("pull").then(|| "--pull".to_string()));
    words.extend((call.opt("cache").and_then(Value::as_bool) == Some(false)).then(|| "--no-cache".to_string()));
    words.extend(["--".to_string(), call.str(0).to_string()]);
    (words, env)
}

#[async_trait]
impl Primitive for Build {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (engine, own) = (Engine::on(cx, call).await?, name(call));
        let Some(host) = engine.host.as_deref() else {
            return Err(Error::new(Code::COMMAND_BAD, format!("\"{}\" is reached without a host, and build needs one", engine.name))
                .hint("give the engine host = \"…\" in runbook.toml"));
        };
        if own.contains('@') {
            return Err(Error::new(Code::COMMAND_BAD, format!("\"{own}\" cannot be the name of an image that is built")));
        }
        let before = find(&engine, own).await?.and_then(|i| i.id);
        let (words, env) = words(&engine, call);
        let all: Vec<String> = words.iter().map(|w| quote(w)).collect();
        let script = format!("command -v docker >/dev/null 2>&1 || exit 127\nexec {}", all.join(" "));
        let done = connect(cx, host).await?.exec_again(cx, Exec { env, sudo: engine.sudo, live: true, ..Exec::new(script) }).await?;
        match done.status {
            0 => {}
            127 if done.stderr.is_empty() => {
                return Err(Error::new(Code::HOST_TOOL_MISSING, "the host has no `docker` to build with")
                    .host(host)
                    .hint("install the package docker-cli, docker-ce-cli or docker.io"));
            }
            status => {
                let said = String::from_utf8_lossy(&done.stderr).into_owned();
                let last = said.lines().map(str::trim).rfind(|l| !l.is_empty()).unwrap_or("").to_string();
                return Err(Error::new(
                    Code::DOCKER_BUILD,
                    format!("building {own} from {} failed: {}", call.str(0), cx.redactor.text(&last)),
                )
                .host(host)
                .hint("its output above says which step")
                .detail("status", status)
                .detail("stderr", cx.redactor.text(said.trim())));
            }
        }
        let now = look(&engine, own).await?;
        let same = before.is_some() && before == now.id;
        let value = info(now);
        Ok(if same { Outcome::unchanged(value, "it is what the folder makes") } else { Outcome::changed(value) })
    }
}
