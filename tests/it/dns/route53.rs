//! Zones at Route 53: against `moto`, an implementation by others, with every signature checked by AWS's own library.

use runbook_core::primitive::Reconciled;
use runbook_core::{Code, Value};
use runbook_primitives::dns::provider::{Change, Zone};

use super::desk::{Desk, texts};
use crate::support::bind::Bind;
use crate::support::desk::Project;
use crate::support::python::{AWS_ID, AWS_KEY, AWS_SESSION, Moto};
use crate::support::{list, options};

const ZONE: &str = "example.test";

fn desk(moto: &Moto) -> Desk {
    let d = Desk::new().zone(ZONE, "route53", &[("api", &moto.api()), ("access_key", AWS_ID), ("secret_key", "aws")]);
    d.world.secrets.lock().insert("aws".into(), AWS_KEY.into());
    d
}

#[tokio::test]
async fn records_are_set_changed_and_deleted_and_awss_own_library_sees_them() {
    let Some(moto) = Moto::start(false) else { return };
    let desk = desk(&moto);
    for (name, ty, value) in [
        ("shop", "A", "192.0.2.1"),
        ("www", "CNAME", "shop"),
        ("@", "MX", "10 mail"),
        ("t", "TXT", "a \"quoted\" \\ <text> & ü"),
        ("@", "CAA", "0 issue \"letsencrypt.org\""),
        ("_sip._tcp", "SRV", "0 5 5060 shop"),
        ("*.wild", "A", "192.0.2.7"),
    ] {
        let args = || vec![name.into(), ty.into(), value.into(), options(&[("ttl", "2m".into())])];
        assert_eq!(desk.act(ZONE, "set", args()).await.changed, Some(true), "{name} {ty}");
        assert_eq!(desk.act(ZONE, "set", args()).await.changed, Some(false), "{name} {ty}");
    }
    let seen = moto.sets().join("\n");
    assert!(
        seen.contains(r#""Value":"\"a \\\"quoted\\\" \\\\ <text> & \\303\\274\""#),
        "escapes in octal, as the service has them: {seen}"
    );
    moto.control(r#"{"pending": 2}"#);
    let out = desk.act(ZONE, "point", vec!["shop".into(), "192.0.2.2".into()]).await;
    assert_eq!(out.changed, Some(true));
    let asked = moto.control("{}").iter().filter(|s| s.contains("/change/")).count();
    assert_eq!(asked, 2, "PENDING in the answer, PENDING, then INSYNC");
    // A crash between intent and outcome: done already, and nothing to do the second time.
    assert_eq!(desk.act(ZONE, "point", vec!["shop".into(), "192.0.2.2".into()]).await.changed, Some(false));
    assert_eq!(desk.act(ZONE, "delete", vec!["t".into(), "TXT".into()]).await.changed, Some(true));
    assert_eq!(desk.act(ZONE, "delete", vec!["t".into(), "TXT".into()]).await.changed, Some(false));
    let shop = moto.sets().into_iter().find(|s| s.contains("shop.example.test.\",") && s.contains("\"A\"")).unwrap();
    assert!(shop.contains(r#"[{"Value":"192.0.2.2"}]"#) && shop.contains(r#""TTL":120"#), "{shop}");

    let e = desk.fails(ZONE, "set", vec!["shop".into(), "HINFO".into(), "\"a\" \"b\"".into()]).await;
    assert!(e.message.contains("cannot hold shop.example.test HINFO"), "{e}");
    let ns = desk.cx();
    let zone = Zone::named_in(&ns, ZONE).unwrap();
    assert_eq!(zone.provider.nameservers(&ns).await.unwrap().len(), 4, "those of the zone's delegation set");
}

#[tokio::test]
async fn a_zone_moves_to_route53_and_its_changes_go_in_one_request() {
    let Some(moto) = Moto::start(false) else { return };
    let zone: String = super::moves::large_zone(198)
        .lines()
        .filter(|l| ![" HINFO ", " RP ", " DNAME ", " URI ", " OPENPGPKEY ", " CERT "].iter().any(|t| l.contains(t)))
        .map(|l| format!("{l}\n"))
        .collect();
    let Some(bind) = Bind::primary(&zone) else { return };
    let desk = desk(&moto).updates("old", &bind.address());
    let args = || vec![Desk::handle("old"), options(&[("delete", true.into())])];
    let out = desk.act(ZONE, "copy_from", args()).await;
    assert_eq!(out.note.as_deref(), Some("example.test: 193 created, none updated, none deleted"));
    let posts = moto.control("{}").iter().filter(|s| s.starts_with("POST")).count();
    assert_eq!(posts, 1, "one ChangeResourceRecordSets for all");
    assert_eq!(desk.act(ZONE, "copy_from", args()).await.changed, Some(false));
    let found = desk.act("old", "compare", vec![Desk::handle(ZONE)]).await.value;
    assert_eq!(texts(&found, "differences"), Vec::<String>::new());
}

#[tokio::test]
async fn weights_move_traffic_in_one_change_and_back() {
    let Some(moto) = Moto::start(false) else { return };
    let desk = desk(&moto);
    let set = |id: &str, value: &str, rule: &[(&str, Value)]| vec!["shop".into(), "A".into(), id.into(), value.into(), options(rule)];
    assert_eq!(desk.act(ZONE, "set_routed", set("old", "192.0.2.1", &[("weight", 255.into())])).await.changed, Some(true));
    assert_eq!(desk.act(ZONE, "set_routed", set("new", "192.0.2.2", &[("weight", 0.into())])).await.changed, Some(true));
    assert_eq!(desk.act(ZONE, "set_routed", set("new", "192.0.2.2", &[("weight", 0.into())])).await.changed, Some(false));
    let weights = |o: i32, n: i32| vec!["shop".into(), "A".into(), options(&[("old", o.into()), ("new", n.into())])];
    let out = desk.act(ZONE, "set_weights", weights(230, 25)).await;
    assert_eq!((out.changed, out.note.as_deref()), (Some(true), Some("shop.example.test: new 25, old 230")));
    let again = desk.act(ZONE, "set_weights", weights(230, 25)).await;
    assert_eq!(
        (again.changed, again.note.as_deref()),
        (Some(false), Some("the weights of shop.example.test are so already: new 25, old 230"))
    );
    let seen = moto.sets();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().any(|s| s.contains(r#""SetIdentifier":"old","Weight":230"#)), "{seen:?}");
    assert_eq!(moto.control("{}").iter().filter(|s| s.starts_with("POST")).count(), 3, "both weights went in one change");

    let listed = desk.act(ZONE, "routed", vec!["shop".into(), "A".into()]).await.value;
    let shown: Vec<String> = listed.as_list().unwrap().iter().map(|r| r.as_record().unwrap().str("routing").to_string()).collect();
    assert_eq!(shown, ["\"new\": weight 25", "\"old\": weight 230"]);
    let e = desk.fails(ZONE, "set_weights", weights(0, 0)).await;
    assert!(e.message.contains("would be 0, which answers with all of them alike"), "{e}");
    let e = desk.fails(ZONE, "set_weights", vec!["shop".into(), "A".into(), options(&[("third", 1.into())])]).await;
    assert_eq!(e.message, "there is no shop.example.test A \"third\"; there are: new, old");
    let e = desk.fails(ZONE, "point", vec!["shop".into(), "192.0.2.2".into()]).await;
    assert_eq!(e.message, "shop.example.test A has several record sets with a routing policy: new, old");
    let e = desk.fails(ZONE, "export_text", vec![]).await;
    assert!(e.message.contains("a zone file cannot hold"), "{e}");

    assert_eq!(desk.act(ZONE, "delete_routed", vec!["shop".into(), "A".into(), "old".into()]).await.changed, Some(true));
    assert_eq!(desk.act(ZONE, "delete_routed", vec!["shop".into(), "A".into(), "old".into()]).await.changed, Some(false));
    assert_eq!(moto.sets().len(), 1);
    let none = Desk::new().updates(ZONE, "127.0.0.1:1");
    let e = none.fails(ZONE, "create_health_check", vec!["192.0.2.1".into()]).await;
    assert_eq!(e.code, Code::DNS_CANNOT);
}

#[tokio::test]
async fn failover_and_latency_with_health_checks_that_are_made_once() {
    let Some(moto) = Moto::start(false) else { return };
    let desk = desk(&moto);
    let check = || {
        vec![
            "192.0.2.1".into(),
            options(&[("host", "shop.example.test".into()), ("path", "/health?a=1&b".into()), ("every", "10s".into())]),
        ]
    };
    // The controller dies after the service made it: found by the action's id, and not made again.
    let before = desk.reconcile("run-1-a-7", ZONE, "create_health_check", check()).await.unwrap();
    assert!(matches!(before, Reconciled::NotStarted), "{before:?}");
    let made = desk.act_as("run-1-a-7", ZONE, "create_health_check", check()).await.unwrap();
    let id = made.value.as_str().unwrap().to_string();
    let Reconciled::Done(found) = desk.reconcile("run-1-a-7", ZONE, "create_health_check", check()).await.unwrap() else { panic!("done") };
    assert_eq!(found.value.as_str(), Some(id.as_str()));
    let seen = moto.boto("r53.list_health_checks()['HealthChecks']");
    assert_eq!(seen.as_array().unwrap().len(), 1);
    let config = &seen[0]["HealthCheckConfig"];
    assert_eq!(
        (config["IPAddress"].as_str(), config["Type"].as_str(), config["ResourcePath"].as_str(), config["RequestInterval"].as_i64()),
        (Some("192.0.2.1"), Some("HTTPS"), Some("/health?a=1&b"), Some(10))
    );
    let out = desk.act(ZONE, "wait_healthy", vec![id.as_str().into()]).await;
    assert_eq!(out.note.as_deref(), Some("1 of 1 places succeed"));

    let set =
        |name: &str, sid: &str, value: &str, rule: &[(&str, Value)]| vec![name.into(), "A".into(), sid.into(), value.into(), options(rule)];
    let primary = [("failover", "primary".into()), ("health_check", id.as_str().into())];
    desk.act(ZONE, "set_routed", set("shop", "old", "192.0.2.1", &primary)).await;
    desk.act(ZONE, "set_routed", set("shop", "new", "192.0.2.2", &[("failover", "secondary".into())])).await;
    assert_eq!(desk.act(ZONE, "set_routed", set("shop", "old", "192.0.2.1", &primary)).await.changed, Some(false));
    desk.act(ZONE, "set_routed", set("near", "eu", "192.0.2.1", &[("region", "eu-central-1".into())])).await;
    desk.act(ZONE, "set_routed", set("near", "us", "192.0.2.2", &[("region", "us-east-1".into())])).await;
    let seen = moto.sets().join("\n");
    for part in [
        r#""Failover":"PRIMARY""#.into(),
        format!(r#""HealthCheckId":"{id}""#),
        r#""Failover":"SECONDARY""#.into(),
        r#""Region":"eu-central-1""#.into(),
        r#""Region":"us-east-1""#.into(),
    ] {
        assert!(seen.contains(&part), "{part}: {seen}");
    }
    assert_eq!(desk.act(ZONE, "delete_health_check", vec![id.as_str().into()]).await.changed, Some(true));
    assert_eq!(desk.act(ZONE, "delete_health_check", vec![id.as_str().into()]).await.changed, Some(false));
    for (args, why) in [
        (vec!["shop".into()], "\"shop\" is not an IP address"),
        (vec!["192.0.2.1".into(), options(&[("type", "UDP".into())])], "a health check is of the type HTTP, HTTPS or TCP, not \"UDP\""),
        (
            vec!["192.0.2.1".into(), options(&[("type", "TCP".into()), ("path", "/".into())])],
            "a check of the type TCP asks for no path and looks for no text",
        ),
    ] {
        assert_eq!(desk.fails(ZONE, "create_health_check", args).await.message, why);
    }
}

#[tokio::test]
async fn what_the_service_refuses_is_said_and_never_the_key() {
    let Some(moto) = Moto::start(false) else { return };
    let desk = desk(&moto);
    // Too many requests at once: waited for. A lost answer: recognised by reading.
    moto.control(r#"{"throttle": 2}"#);
    desk.act(ZONE, "set", vec!["shop".into(), "A".into(), list(&["192.0.2.1", "192.0.2.2"]), options(&[("ttl", "1m".into())])]).await;
    moto.control(r#"{"drop": 1}"#);
    assert_eq!(desk.act(ZONE, "point", vec!["shop".into(), "192.0.2.3".into()]).await.changed, Some(true));
    assert_eq!(moto.control("{}").iter().filter(|s| s.starts_with("POST")).count(), 2, "each change was made once");

    // Somebody else's change is not overwritten.
    let c = desk.cx();
    let zone = Zone::named_in(&c, ZONE).unwrap();
    let before = zone.read(&c, &zone.owner("shop").unwrap(), "A".parse().unwrap()).await.unwrap().unwrap();
    moto.boto("r53.change_resource_record_sets(HostedZoneId=zone, ChangeBatch={'Changes': [{'Action': 'UPSERT', 'ResourceRecordSet': {'Name': 'shop.example.test.', 'Type': 'A', 'TTL': 60, 'ResourceRecords': [{'Value': '192.0.2.99'}]}}]})['ChangeInfo']['Status']");
    let e = zone.apply(&c, vec![Change::to(Some(before.clone()), before.with_ttl(30))]).await.unwrap_err();
    assert_eq!((e.code, e.retryable), (Code::DNS_RECORD, true));

    let wrong = Desk::new().zone(ZONE, "route53", &[("api", &moto.api()), ("access_key", AWS_ID), ("secret_key", "wrong")]);
    let e = wrong.fails(ZONE, "read", vec!["shop".into()]).await;
    assert_eq!(e.code, Code::DNS_API);
    assert!(e.message.ends_with("does not match the signature you provided. (SignatureDoesNotMatch)"), "{e}");
    assert!(e.hint.unwrap().contains("the secret \"wrong\""));
    let nobody = Desk::new().zone(ZONE, "route53", &[("api", &moto.api()), ("access_key", "AKIANOBODY"), ("secret_key", "wrong")]);
    assert!(nobody.fails(ZONE, "read", vec!["shop".into()]).await.message.contains("(InvalidClientTokenId)"));
    let none = Desk::new().zone("other.test", "route53", &[("api", &moto.api()), ("access_key", AWS_ID), ("secret_key", "aws")]);
    none.world.secrets.lock().insert("aws".into(), AWS_KEY.into());
    let e = none.fails("other.test", "read", vec!["shop".into()]).await;
    assert_eq!(e.message, "Route 53 shows no public zone other.test to the key of the secret \"aws\"");
    let id = Desk::new().zone(
        ZONE,
        "route53",
        &[("api", &moto.api()), ("access_key", AWS_ID), ("secret_key", "aws"), ("zone_id", "/hostedzone/ZNOTHERE")],
    );
    id.world.secrets.lock().insert("aws".into(), AWS_KEY.into());
    let e = id.fails(ZONE, "read", vec!["shop".into()]).await;
    assert!(e.message.contains("(NoSuchHostedZone)") && e.hint.unwrap().contains("zone_id"), "{}", e.message);
}

#[test]
fn a_run_takes_the_key_from_a_profile_with_a_session_and_survives_crashes() {
    let Some(moto) = Moto::start(true) else { return };
    let p = Project::new(
        &format!("[environments.test.zones.\"{ZONE}\"]\nkind = \"route53\"\napi = \"{}\"\n", moto.api()),
        r#"let dns = zone("example.test");
           step "Check" { let check = dns.create_health_check("192.0.2.2", #{ type: "TCP", port: 443 });
                          dns.set_routed("shop", "A", "new", "192.0.2.2", #{ failover: "primary", health_check: check }); }
           step "Other" { dns.set_routed("shop", "A", "old", "192.0.2.1", #{ failover: "secondary" }); }"#,
    );
    let files = tempfile::tempdir().unwrap();
    let text = format!("[shop]\naws_access_key_id = {AWS_ID}\naws_secret_access_key = {AWS_KEY}\naws_session_token = {AWS_SESSION}\n");
    std::fs::write(files.path().join("credentials"), text).unwrap();
    let run = |args: &[&str], crash: Option<&str>| {
        let mut c = p.command(args);
        for v in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE"] {
            c.env_remove(v);
        }
        c.env("AWS_SHARED_CREDENTIALS_FILE", files.path().join("credentials")).env("AWS_PROFILE", "shop");
        if let Some(at) = crash {
            c.env("RUNBOOK_CRASH", at);
        }
        let out = c.output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(!text.contains(AWS_KEY) && !text.contains(AWS_SESSION), "{text}");
        (out.status.code(), text)
    };
    // Dies after each act, before its outcome is on record.
    let (code, said) = run(&["run", "a.rhai", "--env", "test"], Some("acted:1"));
    assert_eq!(code, None, "{said}");
    for _ in 0..2 {
        let (code, said) = run(&["resume"], Some("acted:1"));
        assert_eq!(code, None, "{said}");
    }
    let (code, said) = run(&["resume"], None);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(moto.boto("len(r53.list_health_checks()['HealthChecks'])"), 1, "made once");
    assert_eq!(moto.sets().len(), 2);
    let posts = moto.control("{}").iter().filter(|s| s.starts_with("POST")).count();
    assert_eq!(posts, 3, "one health check and two sets, each once");
    let (_, log) = run(&["audit", "export"], None);
    assert!(log.contains("192.0.2.2"));
}
