//! Zones at Cloudflare: against a stateful server of the tests that Cloudflare's own client works against.

use std::time::{Duration, Instant};

use runbook_core::{Code, Value};

use super::desk::{Desk, texts};
use crate::support::bind::Bind;
use crate::support::desk::Project;
use crate::support::options;
use crate::support::python::{Cloudflare, TOKEN};

const ZONE: &str = "example.test";

fn desk(cf: &Cloudflare) -> Desk {
    let d = Desk::new().zone(ZONE, "cloudflare", &[("api", &cf.api()), ("api_token", "cf")]);
    d.world.secrets.lock().insert("cf".into(), TOKEN.into());
    d
}

#[test]
fn cloudflares_own_client_works_against_the_server_of_the_tests() {
    let Some(cf) = Cloudflare::start() else { return };
    cf.control(r#"{"busy": 1, "page": 50}"#);
    let Some(said) = cf.official_client() else { return };
    println!("{said}, {} requests", cf.control("{}").len());
    assert!(said.starts_with("client ") && said.ends_with(" ok"), "{said}");
}

#[tokio::test]
async fn records_of_every_type_are_set_changed_and_deleted() {
    let Some(cf) = Cloudflare::start() else { return };
    let desk = desk(&cf);
    for (name, ty, value) in [
        ("shop", "A", "192.0.2.1"),
        ("shop", "AAAA", "2001:db8::1"),
        ("www", "CNAME", "shop"),
        ("@", "MX", "10 mail"),
        ("t", "TXT", "a \"quoted\" \\ text; ü"),
        ("@", "CAA", "0 issue \"letsencrypt.org\""),
        ("_sip._tcp", "SRV", "0 5 5060 shop"),
        ("_443._tcp.shop", "TLSA", "3 1 1 0b9fa5a59eed715c26c1020c711b4f6ec42d58b0015e14337a39dad301c5afc3"),
        ("shop", "SSHFP", "1 1 123456789abcdef67890123456789abcdef67890"),
        ("n", "NAPTR", "100 10 \"U\" \"E2U+sip\" \"!^.*$!sip:info@example.test!\" ."),
        ("sub", "NS", "ns1.other.net."),
        ("sub", "DS", "60485 8 2 d4b7d520e7bb5f0f67674a0cceb1e3e0614b93c4f9e99b8383f6a1e4469da50a"),
        ("u", "URI", "10 1 \"https://example.test/a\""),
        ("svc", "HTTPS", "1 . alpn=\"h2,h3\""),
        ("*.wild", "A", "192.0.2.7"),
    ] {
        let args = || vec![name.into(), ty.into(), value.into(), options(&[("ttl", "2m".into())])];
        assert_eq!(desk.act(ZONE, "set", args()).await.changed, Some(true), "{name} {ty}");
        let again = desk.act(ZONE, "set", args()).await;
        assert_eq!(again.changed, Some(false), "{name} {ty}");
    }
    // A set of several values, changed in part: what stays keeps its record.
    let set = |values: &[&str]| vec!["many".into(), "A".into(), crate::support::list(values)];
    desk.act(ZONE, "set", set(&["192.0.2.1", "192.0.2.2", "192.0.2.3"])).await;
    desk.act(ZONE, "set", set(&["192.0.2.2", "192.0.2.4"])).await;
    let r = desk.act(ZONE, "read", vec!["many".into()]).await.value;
    assert_eq!(texts(&r, "values"), ["192.0.2.2", "192.0.2.4"]);
    assert_eq!(desk.act(ZONE, "delete", vec!["many".into(), "A".into()]).await.changed, Some(true));
    assert_eq!(desk.act(ZONE, "delete", vec!["many".into(), "A".into()]).await.changed, Some(false));
    let seen = cf.control("{}");
    assert!(seen.iter().filter(|s| !s.starts_with("GET")).all(|s| s.ends_with("/dns_records/batch")), "{seen:?}");
}

#[tokio::test]
async fn a_zone_moves_to_cloudflare_page_by_page_and_back() {
    let Some(cf) = Cloudflare::start() else { return };
    let mut zone = super::moves::large_zone(198);
    // Types that the service does not have; the apex CNAME and TTLs beyond its limits are dealt with below.
    zone = zone.lines().filter(|l| ![" HINFO ", " RP ", " DNAME "].iter().any(|t| l.contains(t))).map(|l| format!("{l}\n")).collect();
    let Some(bind) = Bind::primary(&zone) else { return };
    let desk = desk(&cf).updates("old", &bind.address());
    cf.control(r#"{"page": 50}"#);
    let args = || vec![Desk::handle("old"), options(&[("delete", true.into())])];
    let out = desk.act(ZONE, "copy_from", args()).await;
    assert_eq!(out.note.as_deref(), Some("example.test: 196 created, none updated, none deleted"));
    let told = desk.world.messages.lock().join("\n");
    for line in [
        "short.example.test A: the provider of \"example.test\" does not take the TTL 1s; it becomes 1m",
        "long.example.test A: the provider of \"example.test\" does not take the TTL 7d; it becomes 1d",
    ] {
        assert!(told.contains(line), "{told}");
    }
    assert_eq!(desk.act(ZONE, "copy_from", args()).await.changed, Some(false));
    let found = desk.act("old", "compare", vec![Desk::handle(ZONE)]).await.value;
    let mut found = texts(&found, "differences");
    found.sort();
    assert_eq!(
        found,
        [
            "long.example.test A: 192.0.2.7 with TTL 7d here, 192.0.2.7 with TTL 1d at example.test",
            "short.example.test A: 192.0.2.6 with TTL 1s here, 192.0.2.6 with TTL 1m at example.test",
        ]
    );
    // Putting a name behind the proxy is the provider's affair, and does not come undone by the next pass.
    let proxied = options(&[("proxied", true.into())]);
    desk.act(ZONE, "set", vec!["h0".into(), "A".into(), "198.51.100.0".into(), proxied]).await;
    assert_eq!(desk.act(ZONE, "copy_from", args()).await.changed, Some(false));

    let e = desk.fails("old", "copy_from", vec![Desk::handle(ZONE), options(&[("max_deleted", 101.into())])]).await;
    assert_eq!(e.code, Code::DNS_LIMIT);
    // A type that the service does not have is refused by name, before anything is written.
    bind.nsupdate("update add pc.example.test 60 HINFO \"PC\" \"Linux\"");
    let before = cf.control("{}").len();
    let e = desk.fails(ZONE, "copy_from", args()).await;
    assert!(e.message.ends_with("cannot hold pc.example.test HINFO"), "{e}");
    assert!(cf.control("{}").iter().skip(before).all(|s| s.starts_with("GET")));
}

#[tokio::test]
async fn what_is_behind_the_proxy_moves_without_a_wait_for_caches() {
    let Some(cf) = Cloudflare::start() else { return };
    let desk = desk(&cf);
    let proxied = |yes: bool| options(&[("proxied", yes.into())]);
    desk.act(ZONE, "set", vec!["shop".into(), "A".into(), "192.0.2.1".into(), proxied(true)]).await;
    let r = desk.act(ZONE, "read", vec!["shop".into()]).await.value;
    let r = r.as_record().unwrap();
    assert_eq!((r.get("proxied"), r.get("ttl")), (&Value::Bool(true), &Value::Duration(Duration::from_secs(300))));

    let out = desk.act(ZONE, "lower_ttl", vec!["shop".into(), "60s".into()]).await;
    assert_eq!(
        (out.changed, out.note.as_deref()),
        (Some(false), Some("shop.example.test is proxied: it is moved at the proxy, without a wait for caches"))
    );
    let e = desk.fails(ZONE, "wait_answer", vec!["shop".into(), "192.0.2.2".into()]).await;
    assert_eq!(e.message, "shop.example.test is proxied, and the proxy passes requests on to 192.0.2.1, not 192.0.2.2");
    let out = desk.act(ZONE, "point", vec!["shop".into(), "192.0.2.2".into()]).await;
    assert_eq!(out.note.as_deref(), Some("shop.example.test A 192.0.2.2 (was 192.0.2.1), at the proxy"));
    let out = desk.act(ZONE, "wait_answer", vec!["shop".into(), "192.0.2.2".into()]).await;
    assert_eq!(out.note.as_deref(), Some("shop.example.test is proxied, and the proxy passes requests on to 192.0.2.2"));
    assert_eq!(desk.act(ZONE, "point", vec!["shop".into(), "192.0.2.2".into()]).await.changed, Some(false));

    // Without the proxy the rule holds, also on the way behind it: caches have the old address.
    let ttl = options(&[("ttl", "1h".into())]);
    desk.act(ZONE, "set", vec!["long".into(), "A".into(), "192.0.2.1".into(), ttl]).await;
    let e = desk.fails(ZONE, "point", vec!["long".into(), "192.0.2.2".into()]).await;
    assert_eq!((e.code, e.details["stale"].as_str()), (Code::DNS_TTL, "1h"));
    let e = desk.fails(ZONE, "point", vec!["long".into(), "192.0.2.1".into(), proxied(true)]).await;
    assert_eq!((e.code, e.details["stale"].as_str()), (Code::DNS_TTL, "1h"));
    let behind = options(&[("proxied", true.into()), ("accept_stale", "1h".into())]);
    desk.act(ZONE, "point", vec!["long".into(), "192.0.2.1".into(), behind]).await;
    desk.act(ZONE, "point", vec!["long".into(), "192.0.2.2".into()]).await;
}

#[tokio::test]
async fn what_the_service_refuses_is_said_with_its_code_and_never_the_token() {
    let Some(cf) = Cloudflare::start() else { return };
    let desk = desk(&cf);
    desk.act(ZONE, "set", vec!["shop".into(), "A".into(), "192.0.2.1".into()]).await;
    let e = desk.fails(ZONE, "set", vec!["shop".into(), "CNAME".into(), "mail".into()]).await;
    assert_eq!(e.code, Code::DNS_API);
    assert_eq!(
        e.message,
        "Cloudflare refuses to change shop.example.test CNAME: An A, AAAA, or CNAME record with that host already exists (81053)"
    );
    let e = desk.fails(ZONE, "set", vec!["shop".into(), "A".into(), "192.0.2.1".into(), options(&[("ttl", "30s".into())])]).await;
    assert_eq!(
        e.message,
        "Cloudflare refuses to change shop.example.test A: DNS Validation Error (1004): Invalid TTL. Must be between 60 and 86400 seconds, or 1 for Automatic (9021)"
    );
    let e = desk.fails(ZONE, "set", vec!["t".into(), "TXT".into(), "x".into(), options(&[("proxied", true.into())])]).await;
    assert!(e.message.ends_with("This record type cannot be proxied (9004)"), "{e}");

    let wrong = Desk::new().zone(ZONE, "cloudflare", &[("api", &cf.api()), ("api_token", "wrong")]);
    wrong.world.secrets.lock().insert("wrong".into(), "a-token-of-somebody-else-0123456789".into());
    let e = wrong.fails(ZONE, "read", vec!["shop".into()]).await;
    assert_eq!(e.message, "Cloudflare refuses to look up the zone example.test: Invalid access token (9109)");
    assert!(e.hint.unwrap().contains("the secret \"wrong\"") && !e.retryable);
    wrong.world.secrets.lock().insert("wrong".into(), "short".into());
    let e = wrong.fails(ZONE, "read", vec!["shop".into()]).await;
    assert!(e.message.ends_with("Invalid request headers (6003): Invalid format for Authorization header (6111)"), "{e}");
    let none = Desk::new().zone("other.test", "cloudflare", &[("api", &cf.api()), ("api_token", "cf")]);
    none.world.secrets.lock().insert("cf".into(), TOKEN.into());
    let e = none.fails("other.test", "read", vec!["shop".into()]).await;
    assert_eq!(e.message, "Cloudflare shows no zone other.test to the token of the secret \"cf\"");
}

#[tokio::test]
async fn a_busy_service_is_waited_for_and_a_lost_answer_is_recognised() {
    let Some(cf) = Cloudflare::start() else { return };
    let desk = desk(&cf);
    cf.control(r#"{"busy": 2}"#);
    let began = Instant::now();
    desk.act(ZONE, "set", vec!["shop".into(), "A".into(), "192.0.2.1".into(), options(&[("ttl", "2m".into())])]).await;
    assert!(began.elapsed() >= Duration::from_secs(2), "Retry-After of one second, twice: {:?}", began.elapsed());
    // The answer to the batch is lost after it was done: recognised by reading, and not done twice.
    cf.control(r#"{"drop": 1}"#);
    let out = desk.act(ZONE, "point", vec!["shop".into(), "192.0.2.2".into()]).await;
    assert_eq!(out.changed, Some(true));
    let batches = cf.control("{}").iter().filter(|s| s.ends_with("/batch")).count();
    assert_eq!(batches, 2, "one for each change");
    cf.control(r#"{"busy": 1000}"#);
    let e = desk.fails(ZONE, "read", vec!["shop".into()]).await;
    assert_eq!((e.code, e.retryable), (Code::DNS_API, true));
    assert!(e.message.starts_with("Cloudflare is busy and does not look up the zone example.test (429"), "{e}");
}

#[tokio::test]
async fn somebody_elses_change_at_the_service_is_not_overwritten() {
    use runbook_primitives::dns::provider::{Change, Zone};
    let Some(cf) = Cloudflare::start() else { return };
    let desk = desk(&cf);
    desk.act(ZONE, "set", vec!["shop".into(), "A".into(), "192.0.2.1".into()]).await;
    let c = desk.cx();
    let zone = Zone::named_in(&c, ZONE).unwrap();
    let name = zone.owner("shop").unwrap();
    let before = zone.read(&c, &name, "A".parse().unwrap()).await.unwrap().unwrap();
    desk.act(ZONE, "set", vec!["shop".into(), "A".into(), "192.0.2.9".into()]).await;
    let e = zone.apply(&c, vec![Change::to(Some(before.clone()), before.with_ttl(600))]).await.unwrap_err();
    assert_eq!((e.code, e.retryable), (Code::DNS_RECORD, true));
    assert_eq!(e.message, "shop.example.test A was changed by somebody else between reading and writing; nothing was written");
}

#[test]
fn a_run_takes_the_token_from_the_environment_survives_a_crash_and_keeps_no_token() {
    let Some(cf) = Cloudflare::start() else { return };
    let p = Project::new(
        &format!("[environments.test.zones.\"{ZONE}\"]\nkind = \"cloudflare\"\napi = \"{}\"\n", cf.api()),
        r#"let dns = zone("example.test");
           step "Set" { dns.set("shop", "A", "192.0.2.1", #{ proxied: true }); }
           step "Move" { dns.point("shop", "192.0.2.2"); dns.wait_answer("shop", "192.0.2.2"); }"#,
    );
    let run = |args: &[&str], variable: &str, crash: Option<&str>| {
        let mut c = p.command(args);
        c.env_remove("CLOUDFLARE_API_TOKEN").env_remove("CF_DNS_API_TOKEN").env(variable, TOKEN);
        if let Some(at) = crash {
            c.env("RUNBOOK_CRASH", at);
        }
        let out = c.output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(!text.contains(TOKEN), "{text}");
        (out.status.code(), text)
    };
    let (code, said) = run(&["run", "a.rhai", "--env", "test"], "NOTHING", None);
    assert!(code != Some(0) && said.contains("RB0109") && said.contains("CLOUDFLARE_API_TOKEN or CF_DNS_API_TOKEN is not set"), "{said}");
    assert!(cf.control("{}").is_empty());
    // Dies after each act, before its outcome is on record, and is resumed.
    let (code, said) = run(&["run", "a.rhai", "--env", "test"], "CLOUDFLARE_API_TOKEN", Some("acted:1"));
    assert_eq!(code, None, "killed: {said}");
    let (code, said) = run(&["resume"], "CF_DNS_API_TOKEN", Some("acted:1"));
    assert_eq!(code, None, "killed: {said}");
    let (code, said) = run(&["resume"], "CF_DNS_API_TOKEN", None);
    assert_eq!(code, Some(0), "{said}");
    let batches = cf.control("{}").iter().filter(|s| s.ends_with("/batch")).count();
    assert_eq!(batches, 2, "each change was made once");
    let (_, log) = run(&["log", "--json"], "CF_DNS_API_TOKEN", None);
    assert!(log.contains("192.0.2.2"), "{log}");
    let mut kept = vec![p.dir().to_path_buf()];
    while let Some(path) = kept.pop() {
        if path.is_dir() {
            kept.extend(std::fs::read_dir(&path).unwrap().flatten().map(|e| e.path()));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(TOKEN.len()).any(|w| w == TOKEN.as_bytes()), "the token is in {}", path.display());
        }
    }
}
