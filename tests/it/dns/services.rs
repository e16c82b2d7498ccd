//! Zones through the crate dns-update, against a real PowerDNS server, which is one of the services that it knows.

use super::desk::{Desk, texts};
use super::*;
use crate::support::pdns::Pdns;

fn through(desk: Desk, name: &str, pdns: &Pdns, token: &str) -> Desk {
    let api = format!("http://127.0.0.1:{}", pdns.api);
    let mut desk = desk.zone(name, "dns-update", &[("zone", "example.test"), ("provider", "pdns"), ("api", &api), ("token", token)]);
    let zone = desk.env.resources.get_mut(&Section::Zones).and_then(|z| z.get_mut(name)).unwrap();
    zone.settings.insert("nameservers".into(), list(&[&format!("127.0.0.1:{}", pdns.dns)]));
    desk
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_set_read_and_removed_with_the_ttl_that_the_name_servers_tell() {
    let Some(pdns) = Pdns::start(&["example.test"]) else { return };
    let desk = through(Desk::new(), "z", &pdns, "pdns");
    let long = "k".repeat(300);
    for (name, ty, value) in [
        ("shop", "A", "192.0.2.1"),
        ("shop", "AAAA", "2001:db8::1"),
        ("www", "CNAME", "shop"),
        ("@", "MX", "10 mail"),
        ("t", "TXT", "a \"b\" \\\\ c"),
        ("long", "TXT", long.as_str()),
        ("_sip._tcp", "SRV", "0 5 5060 sip"),
        ("@", "CAA", "0 issue \"x.org\""),
        ("_443._tcp", "TLSA", "3 1 1 abababababababababababababababababababababababababababababababab"),
    ] {
        let args = || vec![name.into(), ty.into(), value.into(), options(&[("ttl", "2m".into())])];
        assert_eq!(desk.act("z", "set", args()).await.changed, Some(true), "{name} {ty}");
        assert_eq!(desk.act("z", "set", args()).await.changed, Some(false), "{name} {ty}");
    }
    let there = pdns.transfer("example.test");
    for line in [
        "shop.example.test. 120 A 192.0.2.1",
        "www.example.test. 120 CNAME shop.example.test.",
        "example.test. 120 MX 10 mail.example.test.",
    ] {
        assert!(there.contains(&line.to_string()), "{line}: {there:?}");
    }
    let read = desk.act("z", "read", vec!["shop".into()]).await.value;
    assert_eq!(read.as_record().unwrap().get("ttl"), &Value::from(Duration::from_secs(120)), "the API tells none");
    // A crash between intent and outcome: done already.
    desk.act_and_die("z", "point", vec!["shop".into(), "192.0.2.2".into()]).await.unwrap();
    assert_eq!(desk.act("z", "point", vec!["shop".into(), "192.0.2.2".into()]).await.changed, Some(false));
    assert_eq!(desk.act("z", "delete", vec!["t".into(), "TXT".into()]).await.changed, Some(true));
    assert_eq!(desk.act("z", "delete", vec!["t".into(), "TXT".into()]).await.changed, Some(false));
    assert!(!pdns.transfer("example.test").iter().any(|l| l.starts_with("t.example")), "it is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_is_copied_there_and_compared_though_it_cannot_be_listed() {
    let Some(pdns) = Pdns::start(&["example.test"]) else { return };
    let Some(bind) = Bind::primary("a 300 A 192.0.2.1\nb 300 A 192.0.2.2\nb 300 TXT \"two words\"\nmail 600 MX 10 a") else { return };
    let desk = through(Desk::new(), "new", &pdns, "pdns").updates("old", &bind.address());
    let out = desk.act("new", "copy_from", vec![Desk::handle("old")]).await;
    assert_eq!(out.note.as_deref(), Some("example.test: 5 created, none updated, none deleted"));
    assert_eq!(desk.act("new", "copy_from", vec![Desk::handle("old")]).await.changed, Some(false));
    bind.nsupdate("update delete b.example.test A\nupdate add b.example.test 300 A 192.0.2.9");
    for (here, there) in [("new", "old"), ("old", "new")] {
        let found = desk.act(here, "compare", vec![Desk::handle(there)]).await.value;
        let found = texts(&found, "differences");
        assert!(found.len() == 1 && found[0].starts_with("b.example.test A: "), "{found:?}");
    }
    let out = desk.act("new", "copy_from", vec![Desk::handle("old")]).await;
    assert_eq!(out.note.as_deref(), Some("example.test: none created, 1 updated, none deleted"));

    // What needs a list is refused with the way around it, before anything is written.
    let e = desk.fails("new", "records", vec![]).await;
    assert!(
        e.code == Code::DNS_API && e.message.contains("cannot be listed at pdns") && e.hint.unwrap().contains("import_text"),
        "{}",
        e.message
    );
    let e = desk.fails("new", "copy_from", vec![Desk::handle("old"), options(&[("delete", true.into())])]).await;
    assert!(e.code == Code::DNS_RECORD && e.message.contains("cannot be listed"), "{e}");
    let e = desk.fails("new", "set", vec!["x".into(), "HINFO".into(), "\"PC\" \"x\"".into()]).await;
    assert!(e.code == Code::DNS_RECORD && e.message.contains("cannot hold x.example.test HINFO"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_keys_zones_and_services_are_told() {
    let Some(pdns) = Pdns::start(&["example.test"]) else { return };
    let e = through(Desk::new(), "z", &pdns, "wrong").fails("z", "read", vec!["shop".into()]).await;
    assert!(e.code == Code::DNS_API && !e.retryable && e.hint.unwrap().contains("the secret \"wrong\""), "{}", e.message);
    let api = format!("http://127.0.0.1:{}", pdns.api);
    let none = Desk::new().zone("other.test", "dns-update", &[("provider", "pdns"), ("api", &api), ("token", "pdns")]);
    let e = none.fails("other.test", "read", vec!["@".into(), options(&[("type", "A".into())])]).await;
    assert!(e.code == Code::DNS_API && e.message.contains("Not found") && e.hint.unwrap().contains("other.test a zone"), "{}", e.message);
    for (settings, words) in [
        (vec![("provider", "nobody"), ("token", "pdns")], "unknown provider \"nobody\""),
        (vec![("provider", "cloudflare"), ("token", "pdns")], "unknown provider \"cloudflare\""),
        (vec![("provider", "pdns"), ("token", "pdns")], "api"),
        (vec![("provider", "pdns"), ("token", "pdns"), ("api", "http://ns1.example.test:8081")], "unencrypted"),
    ] {
        let e = Desk::new().zone("z.test", "dns-update", &settings).fails("z.test", "read", vec!["a".into()]).await;
        assert!(e.message.contains(words), "{settings:?}: {e}");
    }
    // Nobody listens there.
    let gone = Desk::new().zone("z.test", "dns-update", &[("provider", "pdns"), ("token", "pdns"), ("api", "http://127.0.0.1:9")]);
    let e = gone.fails("z.test", "read", vec!["a".into()]).await;
    assert!(e.code == Code::DNS_API && e.retryable && e.message.starts_with("pdns cannot read a.z.test A"), "{e}");
}
