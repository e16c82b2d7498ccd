//! The parser's findings and the resolution of environments.

use std::collections::BTreeMap;

use serde_json::json;

use super::*;

fn findings(text: &str) -> Vec<String> {
    let errors = parse(text, "runbook.toml").unwrap_err();
    errors
        .iter()
        .map(|e| {
            let at = e.location.as_ref().unwrap();
            format!("{}:{} {} {} | {}", at.line, at.column, e.code, e.message, e.hint.as_deref().unwrap_or("-"))
        })
        .collect()
}

fn given(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect()
}

const SHOP: &str = r#"
[project]
name = "shop"
[params]
path = "/health"
window = { type = "duration", default = "10m" }
who = { type = "string", required = true, description = "Who is called." }
count = 3
tags = ["a"]
[secrets]
tsig = { env = "TSIG" }
[environments.production]
confirm = true
params = { path = "/up" }
[environments.production.hosts.old]
ssh = "root@192.0.2.1:2222"
roles = ["shop"]
vars = { port = 8081, deep = { on = true } }
[environments.production.databases.shop]
kind = "sqlite"
host = "old"
path = "/srv/shop.db"
[environments.production.zones."example.com"]
kind = "rfc2136"
server = "192.0.2.53"
tsig_secret = "tsig"
"#;

#[test]
fn the_cutover_inventory_parses_and_takes_the_labs_overlay() {
    let text = include_str!("../../../../runbooks/cutover/runbook.toml");
    let inventory = parse(text, "runbook.toml").unwrap();
    let lab = inventory.declared("demo").unwrap().lab.clone().unwrap();
    assert_eq!((lab.app_host.as_str(), lab.ttl.as_secs(), lab.order_every.as_millis()), ("old", 12, 20));
    let overlay = json!({
        "hosts": { "old": { "ssh": "u@127.0.0.1:1", "address": "127.0.0.2" }, "new": { "ssh": "u@127.0.0.1:2" }, "vault": { "ssh": "u@127.0.0.1:3" } },
        "zones": { "example.test": { "server": "127.0.0.1:5353", "tsig_secret": "lab-tsig" } },
        "secrets": { "lab-tsig": { "file": "/x/key" } },
    });
    let env = inventory.environment("demo", &given(&[("smoke_path", "/x")]), Some(&overlay)).unwrap();
    assert_eq!(env.resource(Section::Hosts, "old").unwrap().str("ssh"), Some("u@127.0.0.1:1"));
    assert_eq!(env.secrets["lab-tsig"], SecretRef::File("/x/key".into()));
    assert_eq!(env.params["smoke_path"], Value::from("/x"));
    assert!(env.embedded);
    let e = inventory.environment("demo", &given(&[]), Some(&json!({}))).unwrap_err();
    assert_eq!(e.code, Code::INVENTORY_MISSING, "an overlay that lacks something: {e}");
    assert!(inventory.environment("demo", &given(&[]), None).is_ok(), "the lab need not be up for a check");
}

#[test]
fn an_environment_comes_back_from_its_json() {
    let env = parse(SHOP, "runbook.toml").unwrap().environment("production", &given(&[("who", "me"), ("window", "1h")]), None).unwrap();
    let back = Environment::from_json(&serde_json::from_str(&env.to_json().to_string()).unwrap()).unwrap();
    assert_eq!(back.to_json(), env.to_json());
    assert_eq!(back.params["window"], Value::Duration(std::time::Duration::from_secs(3600)));
    assert_eq!((back.name.as_str(), back.confirm), ("production", true));
    assert_eq!(back.resources, env.resources);
    assert!(Environment::from_json(&json!({ "name": 3 })).is_err());
}

#[test]
fn parameters_are_typed_and_ranked() {
    let inventory = parse(SHOP, "runbook.toml").unwrap();
    let env = inventory.environment("production", &given(&[("who", "me"), ("count", "7"), ("tags", "x, y")]), None).unwrap();
    assert_eq!(env.params["path"], Value::from("/up"), "the environment's value goes before the project's");
    assert_eq!(env.params["count"], Value::Int(7));
    assert_eq!(env.params["tags"], Value::List(vec!["x".into(), "y".into()]));
    let code = |g: &[(&str, &str)]| {
        let e = inventory.environment("production", &given(g), None).unwrap_err();
        (e.code, e.hint.unwrap_or_default())
    };
    assert_eq!(code(&[]).0, Code::MISSING_PARAM);
    assert_eq!(code(&[("who", "x"), ("count", "seven")]).0, Code::BAD_PARAM);
    assert_eq!(code(&[("who", "x"), ("window", "10")]), (Code::BAD_PARAM, "write it like 250ms, 10s, 2h30m or 1d".into()));
    assert_eq!(code(&[("who", "x"), ("cuont", "1")]), (Code::BAD_PARAM, "did you mean \"count\"?".into()));
    let e = inventory.environment("prodution", &given(&[]), None).unwrap_err();
    assert_eq!((e.code, e.hint.as_deref()), (Code::UNKNOWN_ENVIRONMENT, Some("did you mean \"production\"?")));
}

#[test]
fn every_finding_is_reported_with_its_place() {
    let found = findings(
        r#"
[projekt]
name = "x"
[params]
a = { type = "text", default = "x" }
b = { type = "int", default = "x" }
c = { description = "x" }
d = 1979-05-27T07:32:00Z
[secrets]
plain = "hunter2"
none = {}
two = { env = "A", file = "b" }
shell = { command = "pass show x" }
[environments.production]
confirm = "yes"
[environments.production.hosts."öld"]
ssh = 22
prot = 2222
port = 70000
roles = [1]
[environments.production.hosts.new]
[environments.production.databases.shop]
kind = "sqlight"
[environments.production.databases.shop2]
kind = "sqlite"
host = "nwe"
[environments.production.databases.shop3]
path = "x"
[environments.production.zones."example.com"]
kind = "rfc2136"
server = "192.0.2.53"
tsig_secret = "tsig"
[environments.lab]
embedded = true
[environments.lab.lab]
app_host = "old"
name = "shop.example.com"
ttl = "12"
"#,
    );
    let expected = [
        "2:2 RB0103 runbook.toml has no key \"projekt\" | did you mean \"project\"?",
        "5:14 RB0104 parameter \"a\": no type is called \"text\" | there are: string, int, float, bool, duration, bytes, list",
        "6:31 RB0108 default of parameter \"b\": int is wanted here, not string (\"x\") | -",
        "7:1 RB0114 parameter \"c\" has neither type nor default | add type = \"string\" (or another), or a default",
        "10:9 RB0104 secret \"plain\" must not be in this file: say where it comes from | write it as { env = \"NAME\" }, { file = \"path\" } or { command = [\"program\", \"argument\"] }",
        "11:1 RB0114 secret \"none\" has no source | write it as { env = \"NAME\" }, { file = \"path\" } or { command = [\"program\", \"argument\"] }",
        "12:1 RB0114 secret \"two\" has several sources | write it as { env = \"NAME\" }, { file = \"path\" } or { command = [\"program\", \"argument\"] }",
        "13:21 RB0104 \"command\" of secret \"shell\" must be an array of words (no shell reads it), not a text | -",
        "15:11 RB0104 \"confirm\" of environment \"production\" must be true or false, not a text | -",
        "17:7 RB0104 \"ssh\" of host \"öld\" must be a text, not the number 22 | -",
        "18:1 RB0103 host \"öld\" has no key \"prot\" | did you mean \"port\"?",
        "19:8 RB0104 \"port\" of host \"öld\" must be a port number, not the number 70000 | -",
        "20:9 RB0104 \"roles\" of host \"öld\" must be an array of texts, not an array with something else in it | -",
        "21:32 RB0114 host \"new\" has no \"ssh\" | add ssh = …  (Where it is: an alias of `~/.ssh/config`, or `user@host:port`)",
        "23:8 RB0104 no kind of database is called \"sqlight\" | did you mean \"sqlite\"? There are: sqlite, mariadb, mysql, postgresql",
        "24:36 RB0114 database \"shop2\" has no \"path\" | add path = …  (The file, absolute or relative to the login folder)",
        "26:8 RB0106 \"host\" of database \"shop2\": there is no host \"nwe\" | there are: new, öld",
        "27:36 RB0114 database \"shop3\" has no \"kind\" | add kind = \"…\"; there are: sqlite, mariadb, mysql, postgresql",
        "32:15 RB0106 \"tsig_secret\" of zone \"example.com\": there is no secret \"tsig\" | no secret is declared: add one to the inventory",
        "36:12 RB0106 \"app_host\" of the lab of environment \"lab\": there is no host \"old\" | no host is declared: add one to the inventory",
        "38:7 RB0104 \"ttl\" of the lab of environment \"lab\": \"12\" is not a duration: the unit is missing | write it like \"250ms\", \"10s\", \"2h30m\" or \"1d\"",
    ];
    assert_eq!(found, expected);
}

#[test]
fn syntax_errors_have_a_place_and_come_alone() {
    assert_eq!(
        findings("[project\nname = 3\n[params]\nx = = 2\n").iter().map(|f| f.split(" | ").next().unwrap().to_string()).collect::<Vec<_>>(),
        [
            "1:9 RB0102 unclosed table, expected `]`",
            "4:5 RB0102 extra `=`, expected nothing",
            "4:7 RB0102 unexpected key or value, expected newline, `#`"
        ]
    );
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in ".{0,200}", cut in 0usize..900) {
        let _ = parse(&text, "f");
        // A prefix of a good file, with something else behind it.
        let end = (0..=cut.min(SHOP.len())).rev().find(|i| SHOP.is_char_boundary(*i)).unwrap();
        let _ = parse(&format!("{}{text}", &SHOP[..end]), "f");
    }
}
