//! `host(name)`, its web address, and waiting until it is there.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use runbook_core::inventory::{Environment, Section};
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::units::show_duration;
use runbook_core::{Code, Error, Record, Result, Value};
use tokio::time::Instant;

use super::target::parse_place;
use super::{Exec, connect};

pub(super) fn register(r: &mut Registry) {
    r.add_type(
        TypeSpec::new("Host", "A host of the inventory, reached by SSH.")
            .field("name", Ty::Str, "Its name in the inventory.")
            .field("address", Ty::Str, "Its address: the setting `address`, or else the host part of `ssh`.")
            .field("roles", Ty::List(Box::new(Ty::Str)), "What it is for.")
            .field("vars", Ty::Map(Box::new(Ty::Any)), "Its free variables.")
            .field("ssh", Ty::Str, "Where it is logged in to.")
            .open(),
    );
    r.add_pure(
        Spec::function("host", Effect::Pure, "Gives the host of that name in the inventory. Nothing is contacted.")
            .arg("name", Ty::Str, "Its name in `[environments.….hosts]` of runbook.toml.")
            .returns(Ty::Record("Host"))
            .example(r#"let old = host("old");"#)
            .errors(&[Code::UNKNOWN_NAME]),
        host,
    );
    r.add_pure(
        Spec::method(
            "Host",
            "url",
            Effect::Pure,
            "Gives the web address of a path on the host, from its setting `url` or else `http://` and its address.",
        )
        .arg("path", Ty::Str, "The path: `/health`.")
        .returns(Ty::Str)
        .example(r#"http(host("new").url("/health")).expect_status(200);"#),
        url,
    );
    r.add(WaitReady::default());
}

/// Makes the handle of a host, with its fields from the inventory.
pub(super) fn handle(env: &Environment, name: &str) -> Result<Record> {
    let r = env.resource(Section::Hosts, name)?;
    let ssh = r.str("ssh").unwrap_or(&r.name);
    let address = match r.str("address") {
        Some(a) => a.to_string(),
        None => parse_place(ssh)?.host,
    };
    let vars = r.settings.get("vars").cloned().unwrap_or_else(|| Value::Map(BTreeMap::new()));
    let roles: Vec<Value> = r.list("roles").into_iter().map(Value::from).collect();
    Ok(Record::handle(
        "Host",
        name,
        BTreeMap::from([
            ("name".to_string(), Value::from(name)),
            ("address".to_string(), Value::from(address)),
            ("roles".to_string(), Value::from(roles)),
            ("vars".to_string(), vars),
            ("ssh".to_string(), Value::from(ssh)),
        ]),
    ))
}

fn host(env: &Environment, call: &Call) -> Result<Value> {
    handle(env, call.str(0)).map(Value::from)
}

fn url(env: &Environment, call: &Call) -> Result<Value> {
    let name = call.target();
    let r = env.resource(Section::Hosts, name)?;
    let base = match r.str("url") {
        Some(u) => u.trim_end_matches('/').to_string(),
        None => {
            let h = handle(env, name)?;
            let address = h.str("address");
            if address.contains(':') && address.parse::<std::net::Ipv6Addr>().is_ok() {
                format!("http://[{address}]")
            } else {
                format!("http://{address}")
            }
        }
    };
    Ok(Value::from(format!("{base}/{}", call.str(0).trim_start_matches('/'))))
}

/// `Host.wait_ready`.
pub(super) struct WaitReady {
    spec: Spec,
}

impl Default for WaitReady {
    fn default() -> Self {
        let spec = Spec::method("Host", "wait_ready", Effect::Read, "Waits until the host can be logged in to and runs commands.")
            .option("within", Ty::Duration, "How long to wait; `\"2m\"` when not given.")
            .example(r#"host("new").wait_ready(#{ within: "5m" });"#)
            .errors(&[Code::NOT_READY, Code::SSH_AUTH, Code::SSH_HOST_KEY_UNKNOWN, Code::SSH_HOST_KEY_CHANGED]);
        WaitReady { spec }
    }
}

#[async_trait]
impl Primitive for WaitReady {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let host = call.target();
        let within = call.opt_duration("within").unwrap_or(Duration::from_secs(120));
        let until = Instant::now() + within;
        let mut wait = Duration::from_millis(200);
        let mut tries = 0u32;
        let last = loop {
            tries += 1;
            let attempt = async {
                let done = connect(cx, host).await?.exec(cx, Exec::new("true")).await?;
                match done.status {
                    0 => Ok(()),
                    s => Err(Error::new(Code::SSH_CONNECT, format!("`true` ended with status {s}")).host(host).retryable(true)),
                }
            };
            let failed = match tokio::time::timeout_at(until, attempt).await {
                Ok(Ok(())) => return Ok(Outcome::from(()).note(format!("ready at the {}", ordinal(tries)))),
                // A refused login or a wrong key does not get better by waiting.
                Ok(Err(e)) if !e.retryable => return Err(e),
                Ok(Err(e)) => e.message,
                Err(_) => "it does not answer".to_string(),
            };
            if Instant::now() + wait >= until {
                break failed;
            }
            cx.progress(format!("waiting for {host}: {failed}"), u64::from(tries), None, "checks");
            cx.sleep(wait).await?;
            wait = (wait * 2).min(Duration::from_secs(5));
        };
        Err(Error::new(Code::NOT_READY, format!("the host was not ready within {}: {last}", show_duration(within)))
            .host(host)
            .retryable(true)
            .hint("check that it is up, or give it more time with #{ within: \"…\" }"))
    }
}

fn ordinal(n: u32) -> String {
    if n == 1 { "first try".into() } else { format!("{n}th try") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runbook_core::inventory::Resource;

    fn env(settings: &[(&str, &str)]) -> Environment {
        let settings = settings.iter().map(|(k, v)| ((*k).to_string(), Value::from(*v))).collect();
        let r = Resource { name: "new".into(), kind: "ssh".into(), settings };
        let mut env = Environment::default();
        env.resources.entry(Section::Hosts).or_default().insert("new".into(), r);
        env
    }

    fn url_of(settings: &[(&str, &str)], path: &str) -> String {
        let env = env(settings);
        let receiver = Some(handle(&env, "new").unwrap());
        let call = Call { receiver, args: vec![path.into()], ..Call::default() };
        url(&env, &call).unwrap().as_str().unwrap().to_string()
    }

    #[test]
    fn the_address_comes_from_ssh_unless_it_is_set() {
        let of = |s: &[(&str, &str)]| handle(&env(s), "new").unwrap().str("address").to_string();
        assert_eq!(of(&[("ssh", "root@192.0.2.1:2222")]), "192.0.2.1");
        assert_eq!(of(&[("ssh", "shop-alias"), ("address", "192.0.2.9")]), "192.0.2.9");
        assert_eq!(of(&[("ssh", "shop-alias")]), "shop-alias");
    }

    #[test]
    fn urls() {
        assert_eq!(url_of(&[("ssh", "root@192.0.2.1")], "/health"), "http://192.0.2.1/health");
        assert_eq!(url_of(&[("ssh", "root@[2001:db8::1]:22")], "health"), "http://[2001:db8::1]/health");
        assert_eq!(url_of(&[("url", "http://127.0.0.1:8081/")], "/a?b=c"), "http://127.0.0.1:8081/a?b=c");
    }

    #[test]
    fn an_unknown_host_names_the_closest() {
        let e = host(&env(&[("ssh", "a@b")]), &Call { args: vec!["neww".into()], ..Call::default() }).unwrap_err();
        assert_eq!((e.code, e.hint.as_deref()), (Code::UNKNOWN_NAME, Some("did you mean \"new\"?")));
    }
}
