//! The contexts of this machine's docker client, as `docker context create` writes them.
//!
//! A context's folder is named by the SHA-256 of its name: `contexts/meta/HASH/meta.json` and, with TLS, `contexts/tls/HASH/docker/{ca,cert,key}.pem`.
//! Source: <https://github.com/docker/cli>, cli/context/store.

use std::path::PathBuf;

use runbook_core::inventory::{Environment, Resource, Section};
use runbook_core::{Code, Error, Result};
use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

use crate::ssh::parse_place;

/// Where a context leads.
#[derive(Debug, PartialEq)]
pub(super) enum Leads {
    /// To the engine of a host of the inventory, at a socket that is not the usual one.
    Host(String, Option<String>),
    /// To a `unix:` or `tcp:` address, with the files of its certificate.
    Url(String, Option<Files>),
}

/// Certificates and a key, each where there is one.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Files {
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// The folder of docker's own configuration on this machine.
fn configuration() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("DOCKER_CONFIG").or_else(|| set("HOME").map(|h| h.join(".docker")))
}

/// Reads a context.
///
/// # Errors
/// `RB0104` when there is none of that name, when it cannot be read, or when it leads to a host that the inventory does not have.
pub(super) fn read(env: &Environment, r: &Resource, context: &str) -> Result<Leads> {
    let unusable = |why: String| {
        Error::new(Code::INVENTORY_TYPE, format!("the docker context \"{context}\" of the engine \"{}\" cannot be used: {why}", r.name))
    };
    let folder = configuration().ok_or_else(|| unusable("neither DOCKER_CONFIG nor HOME is set".into()))?.join("contexts");
    let hash: String = Sha256::digest(context.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    let meta = folder.join("meta").join(&hash).join("meta.json");
    let text = std::fs::read_to_string(&meta).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            unusable(format!("there is none of that name in {}", folder.display())).hint("docker context ls lists those of this machine")
        }
        _ => unusable(format!("{}: {e}", meta.display())),
    })?;
    let json: Json = serde_json::from_str(&text).map_err(|e| unusable(format!("{}: {e}", meta.display())))?;
    let end = json.pointer("/Endpoints/docker").ok_or_else(|| unusable("it has no endpoint for docker".into()))?;
    let at = end.get("Host").and_then(Json::as_str).unwrap_or_default();
    if end.get("SkipTLSVerify").and_then(Json::as_bool) == Some(true) {
        return Err(
            unusable("it does not verify who answers (skip-tls-verify)".into()).hint("make it anew with the authority's certificate")
        );
    }
    if let Some(rest) = at.strip_prefix("ssh://") {
        let (login, path) = rest.split_once('/').map_or((rest, None), |(l, p)| (l, Some(format!("/{p}")).filter(|p| p.len() > 1)));
        return Ok(Leads::Host(host(env, login).ok_or_else(|| no_host(&unusable, login))?, path));
    }
    let tls = folder.join("tls").join(&hash).join("docker");
    let file = |name: &str| Some(tls.join(name)).filter(|p| p.exists());
    let files = Files { ca: file("ca.pem"), cert: file("cert.pem"), key: file("key.pem") };
    Ok(Leads::Url(at.to_string(), (files != Files::default()).then_some(files)))
}

/// The host of the inventory that a context means: the one at its address, with its user and port where both name one.
fn host(env: &Environment, login: &str) -> Option<String> {
    let to = parse_place(login).ok()?;
    let means = |h: &&Resource| {
        let Ok(its) = parse_place(h.str("ssh").unwrap_or(&h.name)) else { return false };
        let user = h.str("user").map(str::to_string).or(its.user);
        let port = h.int("port").and_then(|p| u16::try_from(p).ok()).or(its.port);
        (its.host == to.host || h.name == to.host || h.str("address") == Some(&to.host))
            && (to.user.is_none() || user.is_none() || to.user == user)
            && (to.port.is_none() || port.is_none() || to.port == port)
    };
    env.resources.get(&Section::Hosts)?.values().find(means).map(|h| h.name.clone())
}

fn no_host(unusable: &dyn Fn(String) -> Error, login: &str) -> Error {
    unusable(format!("it leads over SSH to {login}, which is no host of this environment")).hint(format!(
        "name that host in runbook.toml, so that its key and its login are known: [environments.….hosts.NAME] with ssh = \"{login}\""
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use runbook_core::Value;

    use super::*;

    #[test]
    fn a_host_is_found_by_its_address_and_not_with_another_login() {
        let mut env = Environment::default();
        for (name, key, value) in [("old", "ssh", "root@192.0.2.1:2222"), ("new", "address", "192.0.2.2"), ("alias", "user", "deploy")] {
            let settings = BTreeMap::from([(key.to_string(), Value::from(value))]);
            let r = Resource { name: name.into(), kind: "ssh".into(), settings };
            env.resources.entry(Section::Hosts).or_default().insert(name.into(), r);
        }
        for (login, want) in [
            ("192.0.2.1", Some("old")),
            ("root@192.0.2.1:2222", Some("old")),
            ("other@192.0.2.1", None),
            ("root@192.0.2.1:22", None),
            ("any@192.0.2.2", Some("new")),
            ("deploy@alias", Some("alias")),
            ("root@alias", None),
            ("192.0.2.3", None),
        ] {
            assert_eq!(host(&env, login).as_deref(), want, "{login}");
        }
    }
}
