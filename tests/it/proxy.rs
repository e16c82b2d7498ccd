//! End-to-end tests of the area `proxy`, over a real SSH server.

use std::collections::BTreeMap;

use runbook_core::inventory::{Environment, Resource, Section};
use runbook_core::primitive::Outcome;
use runbook_core::{Code, Record, Result, Value};
use runbook_testkit::cx;

use crate::support::sshd::{Sshd, environment, world};

fn with_proxy(host: &Sshd, reload: Option<&str>) -> Environment {
    let mut env = environment(&[("old", host.settings())]);
    let mut settings: BTreeMap<String, Value> =
        [("host", "old"), ("maintenance_flag", "edge/it's on"), ("upstream_file", "edge/upstream"), ("upstream", "127.0.0.1:8081")]
            .iter()
            .map(|(k, v)| ((*k).to_string(), Value::from(*v)))
            .collect();
    if let Some(r) = reload {
        settings.insert("reload".into(), r.into());
    }
    let r = Resource { name: "edge".into(), kind: "flag-file".into(), settings };
    env.resources.entry(Section::Proxies).or_default().insert("edge".into(), r);
    env
}

async fn call(env: &Environment, method: &'static str, args: Vec<Value>) -> Result<Outcome> {
    let p = runbook_primitives::registry().primitives[&(Some("Proxy"), method)].clone();
    let call = p.spec().bind(Some(Record::handle("Proxy", "edge", BTreeMap::new())), args)?;
    p.act(&cx(&world(), env.clone(), "p-1"), &call).await
}

async fn status(env: &Environment) -> (bool, String) {
    let v = call(env, "status", vec![]).await.unwrap().value;
    let r = v.as_record().unwrap();
    (r.get("maintenance").as_bool().unwrap(), r.str("upstream").to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_and_the_upstream_are_switched_and_left_alone_when_right() {
    let Some(host) = Sshd::start("") else { return };
    let env = with_proxy(&host, None);
    assert_eq!(status(&env).await, (false, "127.0.0.1:8081".into()));
    let out = call(&env, "maintenance", vec![true.into()]).await.unwrap();
    assert_eq!((out.changed, out.note.as_deref()), (Some(true), Some("the maintenance page is on")));
    assert!(host.home().join("edge/it's on").exists());
    let out = call(&env, "maintenance", vec![true.into()]).await.unwrap();
    assert_eq!((out.changed, out.note.as_deref()), (Some(false), Some("the maintenance page is on already")));
    assert_eq!(call(&env, "forward_to", vec!["192.0.2.20:80".into()]).await.unwrap().changed, Some(true));
    assert_eq!(call(&env, "forward_to", vec!["192.0.2.20:80".into()]).await.unwrap().changed, Some(false));
    assert_eq!(std::fs::read_to_string(host.home().join("edge/upstream")).unwrap(), "192.0.2.20:80\n");
    assert_eq!(status(&env).await, (true, "192.0.2.20:80".into()));
    assert_eq!(call(&env, "maintenance", vec![false.into()]).await.unwrap().changed, Some(true));
    assert_eq!(call(&env, "maintenance", vec![false.into()]).await.unwrap().changed, Some(false));
    assert_eq!(status(&env).await, (false, "192.0.2.20:80".into()));
    let e = call(&env, "forward_to", vec!["a;\nb".into()]).await.unwrap_err();
    assert_eq!(e.code, Code::PROXY);
    let left: Vec<_> = std::fs::read_dir(host.home().join("edge")).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(left, ["upstream"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_runs_once_for_a_change_and_is_made_up_for_when_it_failed() {
    let Some(host) = Sshd::start("") else { return };
    let env = with_proxy(&host, Some("[ ! -e broken ] || { echo no such site >&2; exit 3; }; echo reloaded >>reloads"));
    let reloads = || std::fs::read_to_string(host.home().join("reloads")).unwrap_or_default().lines().count();
    call(&env, "maintenance", vec![true.into()]).await.unwrap();
    call(&env, "maintenance", vec![true.into()]).await.unwrap();
    assert_eq!(reloads(), 1);
    std::fs::write(host.home().join("broken"), "").unwrap();
    let e = call(&env, "maintenance", vec![false.into()]).await.unwrap_err();
    assert!(e.code == Code::PROXY && e.retryable && e.message.contains("reload command") && e.message.contains("no such site"), "{e}");
    assert_eq!(e.host.as_deref(), Some("old"));
    std::fs::remove_file(host.home().join("broken")).unwrap();
    // The file is as wanted already, but the proxy has not read it yet.
    assert_eq!(call(&env, "maintenance", vec![false.into()]).await.unwrap().changed, Some(true));
    assert_eq!(reloads(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_cannot_be_written_is_an_error() {
    let Some(host) = Sshd::start("") else { return };
    std::fs::write(host.home().join("edge"), "a file where the folder should be").unwrap();
    let e = call(&with_proxy(&host, None), "maintenance", vec![true.into()]).await.unwrap_err();
    assert!(e.message.starts_with("turning on the maintenance page of the proxy \"edge\" failed: "), "{e}");
}
