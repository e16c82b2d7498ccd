//! A Docker Engine of the inventory, and what it answers.

use std::collections::BTreeMap;

use bollard::errors::Error as Fault;
use bollard::{API_DEFAULT_VERSION, ClientVersion, Docker};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use runbook_core::inventory::{Environment, Resource, Section};
use runbook_core::primitive::Cx;
use runbook_core::spec::Call;
use runbook_core::{Code, Error, Result};

use super::context::{self, Files, Leads};
use super::transport::{At, client};
use crate::ssh::Place;

const SOCKET: &str = "/var/run/docker.sock";

/// An engine, connected to.
pub(super) struct Engine {
    /// Its name in the inventory.
    pub name: String,
    /// The host whose engine it is, when it is reached over one.
    pub host: Option<String>,
    /// Whether its host's root is needed to reach it.
    pub sudo: bool,
    /// Its socket on that host.
    pub socket: String,
    /// Its API.
    pub api: Docker,
    /// Where it listens, for what its API's types do not carry whole.
    pub place: At,
    cx: Cx,
}

/// The version of the API that each engine speaks with this program.
#[derive(Default)]
struct Versions(Mutex<BTreeMap<String, ClientVersion>>);

/// How the inventory says that an engine is reached.
enum Way {
    /// Over a host, at a socket of its.
    Host(String, String),
    /// By this machine, with the files of its certificate where a context has them.
    Url(String, Option<Files>),
}

fn way(env: &Environment, r: &Resource) -> Result<Way> {
    let wrong = |why: &str| {
        Err(Error::new(Code::INVENTORY_MISSING, format!("the Docker Engine \"{}\" {why}", r.name))
            .hint("give it host = \"…\" for the engine of a host, url = \"unix:///…\" or \"tcp://name:2376\" for one that this machine reaches, or context = \"…\" for one of docker's own"))
    };
    match (r.str("host"), r.str("url"), r.str("context")) {
        (Some(host), None, None) => Ok(Way::Host(host.to_string(), r.str("socket").unwrap_or(SOCKET).to_string())),
        (None, Some(url), None) => Ok(Way::Url(url.to_string(), None)),
        (None, None, Some(context)) => Ok(match context::read(env, r, context)? {
            Leads::Host(host, socket) => Way::Host(host, socket.unwrap_or_else(|| r.str("socket").unwrap_or(SOCKET).to_string())),
            Leads::Url(url, files) => Way::Url(url, Some(files.unwrap_or_default())),
        }),
        (None, None, None) => wrong("has neither a host nor a url nor a context"),
        _ => wrong("has more than one of host, url and context"),
    }
}

impl Engine {
    /// The engine of that name.
    ///
    /// # Errors
    /// `RB0106` when the inventory has none, `RB0114` for what its section lacks, `RB1001` when it does not answer; those of SSH.
    pub fn of<'a>(cx: &'a Cx, name: &'a str) -> BoxFuture<'a, Result<Engine>> {
        Box::pin(async move {
            let r = cx.env.resource(Section::Engines, name)?;
            if r.kind != "docker" {
                return Err(Error::new(Code::INVENTORY_TYPE, format!("the engine \"{name}\" has the unknown kind \"{}\"", r.kind))
                    .hint("there is: docker"));
            }
            let (host, socket, at) = match way(&cx.env, r)? {
                Way::Host(host, socket) => {
                    let at = At::Host(host.clone(), Place::Unix(socket.clone()), r.flag("sudo").then(|| "root".to_string()));
                    (Some(host), socket, at)
                }
                Way::Url(url, files) => (None, SOCKET.to_string(), super::url::parse(cx, r, &url, files.as_ref())?),
            };
            let mut engine = Engine {
                name: name.to_string(),
                host,
                sudo: r.flag("sudo"),
                socket,
                api: client(cx, &at, API_DEFAULT_VERSION).map_err(|e| Error::internal(e.to_string()))?,
                place: at.clone(),
                cx: cx.clone(),
            };
            let known = cx.shared.get::<Versions>();
            let key = format!("{}/{name}", cx.env.name);
            let version = known.0.lock().get(&key).copied();
            let version = match version {
                Some(v) => v,
                None => {
                    let api = engine.ask("asking for its version", engine.api.clone().negotiate_version()).await?;
                    let v = api.client_version();
                    known.0.lock().insert(key, v);
                    v
                }
            };
            engine.api = client(cx, &at, &version).map_err(|e| Error::internal(e.to_string()))?;
            Ok(engine)
        })
    }

    /// The engine that a method was called on, directly or on something of its.
    ///
    /// # Errors
    /// As [`Engine::of`].
    pub async fn on(cx: &Cx, call: &Call) -> Result<Engine> {
        let name = call.receiver.as_ref().map_or("", |r| match r.str("engine") {
            "" => r.name.as_deref().unwrap_or(""),
            engine => engine,
        });
        Engine::of(cx, name).await
    }

    /// The engine that a method was given as its first argument.
    ///
    /// # Errors
    /// As [`Engine::of`].
    pub async fn given(cx: &Cx, call: &Call) -> Result<Engine> {
        Engine::of(cx, call.arg(0).as_record().and_then(|r| r.name.as_deref()).unwrap_or("")).await
    }

    /// Waits for an answer, or for the operator to stop. `what` is being done, for the message of a failure.
    ///
    /// # Errors
    /// As [`Engine::fault`].
    pub fn ask<'a, T: 'a>(
        &'a self,
        what: &'a str,
        answer: impl Future<Output = std::result::Result<T, Fault>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T>> {
        Box::pin(async move {
            tokio::select! {
                a = answer => a.map_err(|e| self.fault(what, e)),
                () = self.cx.cancel.cancelled() => Err(Error::new(Code::ABORTED, format!("stopped while {what}")).host(self.at())),
            }
        })
    }

    /// As [`Engine::ask`]; `None` when there is no such thing.
    ///
    /// # Errors
    /// As [`Engine::fault`].
    pub async fn find<'a, T: 'a>(
        &'a self,
        what: &'a str,
        answer: impl Future<Output = std::result::Result<T, Fault>> + Send + 'a,
    ) -> Result<Option<T>> {
        match self.ask(what, answer).await {
            Ok(found) => Ok(Some(found)),
            Err(e) if e.code == Code::DOCKER_MISSING => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// What an error names: the host, or the engine where there is none.
    pub fn at(&self) -> &str {
        self.host.as_deref().unwrap_or(&self.name)
    }

    /// What went wrong, as an error of ours: `RB1002` when there is no such thing, `RB1003` when something is in the way, `RB1000` for
    /// what else the engine refuses, `RB0305` or `RB1001` when the connection was lost, those of SSH when there was none.
    pub fn fault(&self, what: &str, fault: Fault) -> Error {
        let error = |code, why: &str| Error::new(code, format!("{what}: {}", one_line(why))).host(self.at());
        match fault {
            Fault::DockerResponseServerError { status_code: 404, message } => error(Code::DOCKER_MISSING, &message),
            Fault::DockerResponseServerError { status_code: 409, message } => error(Code::DOCKER_CONFLICT, &message),
            Fault::DockerResponseServerError { status_code, message } => {
                error(Code::DOCKER, &message).detail("status", status_code).retryable(status_code == 503)
            }
            Fault::DockerStreamError { error: why } | Fault::DockerContainerWaitError { error: why, .. } => error(Code::DOCKER, &why),
            Fault::IOError { err } => match err.downcast::<Error>() {
                Ok(ours) => ours,
                Err(err) => self.lost(what, &err),
            },
            Fault::HyperResponseError { err } => self.lost(what, &err),
            Fault::RequestTimeoutError => error(Code::DOCKER_CONNECT, "the engine does not answer").retryable(true),
            other => error(Code::DOCKER, &other.to_string()),
        }
    }

    fn lost(&self, what: &str, e: &dyn std::error::Error) -> Error {
        let mut why = e.to_string();
        let mut cause = e.source();
        while let Some(c) = cause {
            // An error of the stream below the protocol says more than "connection error".
            why = format!("{why}: {c}");
            cause = c.source();
        }
        let code = if self.host.is_some() { Code::SSH_LOST } else { Code::DOCKER_CONNECT };
        Error::new(code, format!("the connection to the Docker Engine was lost while {what}: {why}")).host(self.at()).retryable(true)
    }
}

/// An engine's message without its line ends.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The host of an engine, as the inventory or its context says; empty where it is reached without one.
pub(super) fn host_of(env: &Environment, engine: &str) -> Result<String> {
    let r = env.resource(Section::Engines, engine)?;
    if r.str("context").is_none() {
        return Ok(r.str("host").unwrap_or_default().to_string());
    }
    Ok(match way(env, r)? {
        Way::Host(host, _) => host,
        Way::Url(..) => String::new(),
    })
}
