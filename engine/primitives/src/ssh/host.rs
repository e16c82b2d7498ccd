//! `host(name)`, its web address, and waiting until it is there.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use runbook_core::inventory::{Environment, Section};
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::suggest::closest;
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
        Spec::function(
            "hosts",
            Effect::Pure,
            "Gives the hosts of a role, of a pattern of names, or of a list of names, as an array. Nothing is contacted.\n\n\
             A text without `*` and `?` is a role: all hosts whose `roles` have it. A text with them is a pattern of names: `hosts(\"*\")` are all. \
             Roles and patterns give the hosts in order of their names, numbers in them by their value (`web2` before `web10`). A list gives them in \
             its own order, each once; patterns may stand in it.",
        )
        .arg("which", Ty::OneOf(vec![Ty::Str, Ty::List(Box::new(Ty::Str))]), "A role, a pattern, or names.")
        .returns(Ty::List(Box::new(Ty::Record("Host"))))
        .example(r#"hosts("web").each(#{ serial: "25%" }, |h| { step "Restart" { h.service("shop").restart(); } });"#)
        .errors(&[Code::UNKNOWN_NAME]),
        hosts,
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

fn hosts(env: &Environment, call: &Call) -> Result<Value> {
    let mut names: Vec<String> = Vec::new();
    match call.arg(0) {
        Value::List(l) => {
            for name in l.iter().filter_map(Value::as_str) {
                let found = if is_pattern(name) { matching(env, name)? } else { vec![env.resource(Section::Hosts, name)?.name.clone()] };
                names.extend(found);
            }
            let mut seen = std::collections::BTreeSet::new();
            names.retain(|n| seen.insert(n.clone()));
        }
        which => {
            let which = which.as_str().unwrap_or("");
            names = if is_pattern(which) { matching(env, which)? } else { with_role(env, which)? };
        }
    }
    Ok(names.iter().map(|n| handle(env, n).map(Value::from)).collect::<Result<Vec<Value>>>()?.into())
}

fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// The names of the environment's hosts, in natural order.
fn all_names(env: &Environment) -> Vec<&str> {
    let mut names: Vec<&str> = env.resources.get(&Section::Hosts).into_iter().flatten().map(|(n, _)| n.as_str()).collect();
    names.sort_by_key(|n| natural(n));
    names
}

fn matching(env: &Environment, pattern: &str) -> Result<Vec<String>> {
    let found: Vec<String> = all_names(env).into_iter().filter(|n| fits(pattern.as_bytes(), n.as_bytes())).map(str::to_string).collect();
    if found.is_empty() {
        let known = all_names(env).join(", ");
        return Err(Error::new(Code::UNKNOWN_NAME, format!("no host of environment \"{}\" is called like \"{pattern}\"", env.name))
            .hint(if known.is_empty() { "no host is declared".to_string() } else { format!("there are: {known}") }));
    }
    Ok(found)
}

fn with_role(env: &Environment, role: &str) -> Result<Vec<String>> {
    let declared = env.resources.get(&Section::Hosts);
    let of = |name: &str| declared.and_then(|h| h.get(name)).map(|r| r.list("roles")).unwrap_or_default();
    let found: Vec<String> = all_names(env).into_iter().filter(|n| of(n).iter().any(|r| r == role)).map(str::to_string).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let roles: std::collections::BTreeSet<String> = all_names(env).into_iter().flat_map(of).collect();
    let e = Error::new(Code::UNKNOWN_NAME, format!("no host of environment \"{}\" has the role \"{role}\"", env.name));
    Err(if all_names(env).contains(&role) {
        e.hint(format!("\"{role}\" is a host: write host(\"{role}\") or hosts([\"{role}\"])"))
    } else if let Some(c) = closest(role, roles.iter().map(String::as_str)) {
        e.hint(format!("did you mean \"{c}\"?"))
    } else if roles.is_empty() {
        e.hint(format!("no host has roles: add roles = [\"{role}\"] to hosts in runbook.toml"))
    } else {
        e.hint(format!("there are the roles {}", roles.into_iter().collect::<Vec<_>>().join(", ")))
    })
}

/// Whether a name fits a pattern in which `*` is any text and `?` any one character.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), Some((_, tail))) => fits(rest, name) || fits(pattern, tail),
        (Some((b'*', rest)), None) => fits(rest, name),
        (Some((b'?', rest)), Some((_, tail))) => fits(rest, tail),
        (Some((p, rest)), Some((c, tail))) => p == c && fits(rest, tail),
        _ => false,
    }
}

/// A name as parts that compare as people count: text, and numbers by their value.
fn natural(name: &str) -> Vec<(String, u64)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (text, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
        let (number, tail) = tail.split_at(end);
        parts.push((text.to_string(), number.parse().unwrap_or(u64::MAX)));
        rest = tail;
    }
    parts
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

    fn fleet() -> Environment {
        let mut env = Environment { name: "production".into(), ..Environment::default() };
        let all = env.resources.entry(Section::Hosts).or_default();
        for (name, roles) in [("web1", "web"), ("web10", "web"), ("web2", "web"), ("db1", "db"), ("edge", "")] {
            let mut settings = BTreeMap::from([("ssh".to_string(), Value::from(format!("root@{name}.example.com")))]);
            if !roles.is_empty() {
                settings.insert("roles".into(), Value::List(vec!["linux".into(), roles.into()]));
            }
            all.insert(name.into(), Resource { name: name.into(), kind: "ssh".into(), settings });
        }
        env
    }

    fn names_of(which: impl Into<Value>) -> Result<Vec<String>> {
        let found = hosts(&fleet(), &Call { args: vec![which.into()], ..Call::default() })?;
        Ok(found.as_list().unwrap().iter().map(|h| h.as_record().unwrap().name.clone().unwrap()).collect())
    }

    #[test]
    fn hosts_by_role_pattern_and_list() {
        assert_eq!(names_of("web").unwrap(), ["web1", "web2", "web10"]);
        assert_eq!(names_of("linux").unwrap(), ["db1", "web1", "web2", "web10"]);
        assert_eq!(names_of("*").unwrap(), ["db1", "edge", "web1", "web2", "web10"]);
        assert_eq!(names_of("web?").unwrap(), ["web1", "web2"]);
        assert_eq!(names_of("*e*1*").unwrap(), ["web1", "web10"]);
        assert_eq!(names_of(vec!["web10".into(), "web*".into(), "edge".into()]).unwrap(), ["web10", "web1", "web2", "edge"]);
        assert!(names_of(Vec::<Value>::new()).unwrap().is_empty());
    }

    #[test]
    fn a_role_or_name_that_is_not_there_says_what_is() {
        for (which, message, hint) in [
            (Value::from("webb"), "no host of environment \"production\" has the role \"webb\"", "did you mean \"web\"?"),
            (
                Value::from("web2"),
                "no host of environment \"production\" has the role \"web2\"",
                "\"web2\" is a host: write host(\"web2\") or hosts([\"web2\"])",
            ),
            (Value::from("mail"), "no host of environment \"production\" has the role \"mail\"", "there are the roles db, linux, web"),
            (
                Value::from("mail*"),
                "no host of environment \"production\" is called like \"mail*\"",
                "there are: db1, edge, web1, web2, web10",
            ),
            (vec!["web1".into(), "web3".into()].into(), "environment \"production\" has no host \"web3\"", "did you mean \"web1\"?"),
        ] {
            let e = names_of(which).unwrap_err();
            assert_eq!((e.code, e.message.as_str()), (Code::UNKNOWN_NAME, message));
            if !message.contains("web3") {
                assert_eq!(e.hint.as_deref(), Some(hint));
            }
        }
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
