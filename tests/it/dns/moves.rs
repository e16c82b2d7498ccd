//! Whole zones: listed, exported, imported, compared and moved between real servers.

use std::fmt::Write as _;

use runbook_core::inventory::{Resource, Section};
use runbook_core::{Code, Value};

use super::desk::{Desk, texts};
use crate::support::bind::{Bind, transfer};
use crate::support::options;
use crate::support::pdns::Pdns;

/// A zone with records of every usual type and of the unusual ones that break tools; `total` record sets, the apex excepted.
pub fn large_zone(total: usize) -> String {
    let mut out = String::from(
        r#"@ MX 10 mail
@ MX 20 mx2.other.net.
@ TXT "v=spf1 mx include:_spf.other.net -all"
@ TXT "google-site-verification=abc\"quoted\" \\ back"
@ CAA 0 issue "letsencrypt.org; validationmethods=dns-01"
@ CAA 128 iodef "mailto:ca@example.test"
@ A 192.0.2.1
mail A 192.0.2.2
@ AAAA 2001:db8::1
www CNAME example.test.
*.wild A 192.0.2.77
*.wild TXT "any"
_sip._tcp SRV 0 5 5060 sip
_sip._tcp SRV 10 0 5061 sip2.other.net.
_443._tcp.www TLSA 3 1 1 0b9fa5a59eed715c26c1020c711b4f6ec42d58b0015e14337a39dad301c5afc3
host SSHFP 4 2 123456789abcdef67890123456789abcdef67890123456789abcdef123456789
host SSHFP 1 1 123456789abcdef67890123456789abcdef67890
naptr NAPTR 100 10 "U" "E2U+sip" "!^.*$!sip:info@example.test!" .
naptr NAPTR 102 10 "S" "SIP+D2U" "" _sip._tcp
ptr PTR host
sub NS ns1.sub
sub NS ns.other.net.
ns1.sub A 192.0.2.99
ns1.sub AAAA 2001:db8::99
sub DS 60485 8 2 d4b7d520e7bb5f0f67674a0cceb1e3e0614b93c4f9e99b8383f6a1e4469da50a
dkim._domainkey TXT "v=DKIM1; k=rsa; p=MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
umlaut TXT "gr\195\188\195\159e; \226\130\172 5" "second  string" ""
spaces TXT "  two  spaces  " ";" "(" "a\009tab"
_dmarc 300 TXT "v=DMARC1; p=none; rua=mailto:d@example.test"
key OPENPGPKEY bWFrZSBteSBkYXkgYmVhdXRpZnVs
cert CERT 1 12345 8 bWFrZSBteSBkYXk=
svc HTTPS 1 . alpn="h2,h3"
pc HINFO "PC" "Linux 6"
rp RP admin.example.test. umlaut.example.test.
uri URI 10 1 "https://example.test/a"
dn DNAME other.test.
0/26 CNAME host
under_score A 192.0.2.5
short 1 A 192.0.2.6
long 604800 A 192.0.2.7
many 120 A 192.0.2.10
many 120 A 192.0.2.11
many 120 A 192.0.2.12
"#,
    );
    let sets = |text: &str| {
        let mut all: Vec<(&str, &str)> = text
            .lines()
            .map(|l| {
                let mut w = l.split_whitespace();
                let name = w.next().unwrap();
                (name, w.find(|w| !w.bytes().all(|b| b.is_ascii_digit())).unwrap())
            })
            .collect();
        all.sort_unstable();
        all.dedup();
        all.len()
    };
    let mut i = 0;
    while sets(&out) < total {
        let _ = match i % 4 {
            0 => writeln!(out, "h{i} {} A 198.51.100.{}", 60 + i, i % 250),
            1 => writeln!(out, "h{i} AAAA 2001:db8::{i:x}"),
            2 => writeln!(out, "h{i} CNAME h{}", i - 2),
            _ => writeln!(out, "h{i} TXT \"number {i}\""),
        };
        i += 1;
    }
    out
}

/// The records without those of the zone's own name servers.
fn content(mut lines: Vec<String>) -> Vec<String> {
    lines.retain(|l| !(l.starts_with("example.test. ") && l.split(' ').nth(2) == Some("NS")));
    lines
}

#[tokio::test]
async fn a_zone_of_200_records_moves_from_bind_to_powerdns_unchanged() {
    let Some(bind) = Bind::primary(&large_zone(198)) else { return };
    let Some(pdns) = Pdns::start(&["example.test"]) else { return };
    let desk = Desk::new().updates("old", &bind.address()).powerdns("new", pdns.api);
    let there = content(transfer(bind.port, "example.test"));
    let sets = desk.act("old", "records", vec![]).await.value.as_list().unwrap().len();
    assert_eq!(sets, 201, "198, ns1, the zone's own NS and its SOA");

    let before = desk.act("new", "compare", vec![Desk::handle("old")]).await.value;
    assert_eq!((before.as_record().unwrap().get("equal"), texts(&before, "differences").len()), (&Value::Bool(false), 199));
    let out = desk.act("new", "copy_from", vec![Desk::handle("old"), options(&[("delete", true.into())])]).await;
    assert_eq!((out.changed, out.note.as_deref()), (Some(true), Some("example.test: 199 created, none updated, none deleted")));
    let moved = content(pdns.transfer("example.test"));
    assert_eq!(moved.len(), there.len());
    for (a, b) in there.iter().zip(&moved) {
        assert_eq!(a.to_ascii_lowercase(), b.to_ascii_lowercase());
    }
    println!("{} records in {sets} sets, the same by AXFR of both", moved.len());

    // A second time, as after a crash that lost the outcome, there is nothing to do.
    let again = desk.act("new", "copy_from", vec![Desk::handle("old"), options(&[("delete", true.into())])]).await;
    assert_eq!(
        (again.changed, again.note.as_deref()),
        (Some(false), Some("example.test holds what \"old\" has already (199 record sets)"))
    );
    let after = desk.act("new", "compare", vec![Desk::handle("old")]).await.value;
    assert_eq!(after.as_record().unwrap().get("equal"), &Value::Bool(true), "{:?}", texts(&after, "differences"));

    // What changes at the source meanwhile is carried by the next pass, and only that.
    bind.nsupdate("update delete many.example.test A\nupdate add many.example.test 60 A 192.0.2.13\nupdate delete pc.example.test");
    let found = desk.act("new", "compare", vec![Desk::handle("old")]).await.value;
    let mut found = texts(&found, "differences");
    found.sort();
    assert_eq!(
        found,
        [
            "many.example.test A: 192.0.2.10, 192.0.2.11, 192.0.2.12 with TTL 2m here, 192.0.2.13 with TTL 1m at old",
            "pc.example.test HINFO: \"PC\" \"Linux 6\" with TTL 1h here, nothing at old",
        ]
    );
    let out = desk.act("new", "copy_from", vec![Desk::handle("old")]).await;
    assert_eq!((texts(&out.value, "updated").len(), texts(&out.value, "kept")), (1, vec!["pc.example.test HINFO".to_string()]));
    let out = desk.act("new", "copy_from", vec![Desk::handle("old"), options(&[("delete", true.into())])]).await;
    assert_eq!(texts(&out.value, "deleted"), ["pc.example.test HINFO: was \"PC\" \"Linux 6\" with TTL 1h"]);
    assert_eq!(content(transfer(bind.port, "example.test")), content(pdns.transfer("example.test")));

    // And all the way back, into a server that takes updates.
    let Some(third) = Bind::primary("") else { return };
    let desk = desk.updates("third", &third.address());
    desk.act("third", "copy_from", vec![Desk::handle("new"), options(&[("delete", true.into())])]).await;
    assert_eq!(content(transfer(third.port, "example.test")), content(pdns.transfer("example.test")));
}

#[tokio::test]
async fn too_much_is_not_deleted_and_the_zones_own_servers_stay() {
    let Some(bind) = Bind::primary("a A 192.0.2.1\nb A 192.0.2.1") else { return };
    let Some(pdns) = Pdns::start(&["example.test"]) else { return };
    let desk = Desk::new().updates("old", &bind.address()).powerdns("new", pdns.api);
    let text = (0..20).fold("$TTL 300\n".to_string(), |t, i| format!("{t}h{i} A 192.0.2.{i}\n"));
    let out = desk.act("new", "import_text", vec![text.as_str().into()]).await;
    assert_eq!(out.note.as_deref(), Some("example.test: 20 created, none updated, none deleted"));
    let again = desk.act("new", "import_text", vec![text.as_str().into()]).await;
    assert_eq!(again.changed, Some(false));

    let args = |more: &[(&str, Value)]| {
        let mut all = vec![("delete", true.into())];
        all.extend(more.iter().cloned());
        vec![Desk::handle("old"), options(&all)]
    };
    let e = desk.fails("new", "copy_from", args(&[])).await;
    assert_eq!((e.code, e.retryable), (Code::DNS_LIMIT, false));
    assert!(
        e.message.starts_with("20 of 22 record sets of example.test would be deleted (91%), and 30% is the limit: h0.example.test A, ")
            && e.message.ends_with(", …; nothing was changed"),
        "{e}"
    );
    assert_eq!(e.hint.as_deref(), Some("see whether the source is whole; if this is meant: #{ max_deleted: 91 }"));
    assert_eq!(pdns.transfer("example.test").len(), 21, "nothing was changed");
    let e = desk.fails("new", "copy_from", args(&[("max_deleted", 101.into())])).await;
    assert!(e.message.contains("from 0 to 100"), "{e}");
    desk.act("new", "copy_from", args(&[("max_deleted", 91.into())])).await;
    assert_eq!(
        pdns.transfer("example.test"),
        [
            "a.example.test. 3600 A 192.0.2.1",
            "b.example.test. 3600 A 192.0.2.1",
            "example.test. 3600 NS ns1.example.test.",
            "ns1.example.test. 3600 A 127.0.0.99"
        ]
    );

    let e = desk.fails("new", "set", vec!["@".into(), "NS".into(), "ns9".into()]).await;
    assert!(e.message.contains("holds the zone together") && e.hint.unwrap().ends_with("#{ root_ns: true }"));
    desk.act("new", "set", vec!["@".into(), "NS".into(), "ns9".into(), options(&[("root_ns", true.into())])]).await;
    assert!(pdns.transfer("example.test").contains(&"example.test. 3600 NS ns9.example.test.".to_string()));
    let e =
        desk.fails("new", "set", vec!["@".into(), "SOA".into(), "ns9. a. 1 2 3 4 5".into(), options(&[("root_ns", true.into())])]).await;
    assert!(e.message.contains("SOA is what holds the zone together"), "{e}");
}

#[tokio::test]
async fn an_exported_zone_is_read_by_the_name_servers_own_tool_and_comes_back_as_it_was() {
    let Some(bind) = Bind::primary(&large_zone(60)) else { return };
    let desk = Desk::new().updates("old", &bind.address());
    let text = desk.act("old", "export_text", vec![]).await.value;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text.as_str().unwrap()).unwrap();
    let check = std::process::Command::new("named-checkzone")
        .args(["-D", "-k", "ignore", "-o", "-", "example.test"])
        .arg(file.path())
        .output()
        .unwrap();
    let dumped = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success(), "{dumped}{}", String::from_utf8_lossy(&check.stderr));

    // Our reader understands what the tool writes (its own layout, TTLs and escapes) as what the server has.
    let out = desk.act("old", "import_text", vec![dumped.as_str().into(), options(&[("delete", true.into())])]).await;
    assert_eq!(out.changed, Some(false), "{:?}", out.value);
    let out = desk.act("old", "import_text", vec![text.clone(), options(&[("delete", true.into())])]).await;
    assert_eq!(out.changed, Some(false), "{:?}", out.value);
    let e = desk.fails("old", "import_text", vec!["$TTL 60\na A 192.0.2.1\nb A 192.0.2".into()]).await;
    assert_eq!(e.message, "line 3 of the zone file: \"192.0.2\" is not the value of a record of type A: not an IPv4 address");
}

#[tokio::test(flavor = "multi_thread")]
async fn powerdns_takes_changes_and_says_what_is_wrong() {
    let Some(mut pdns) = Pdns::start(&["example.test"]) else { return };
    let desk = Desk::new().powerdns("example.test", pdns.api);
    let zone = "example.test";
    for (name, ty, values) in
        [("shop", "A", "192.0.2.1"), ("@", "MX", "10 mail"), ("t", "TXT", "a \"b\" \\ ü"), ("@", "CAA", "0 issue \"x.org\"")]
    {
        let args = || vec![name.into(), ty.into(), values.into(), options(&[("ttl", "2m".into())])];
        assert_eq!(desk.act(zone, "set", args()).await.changed, Some(true), "{name} {ty}");
        assert_eq!(desk.act(zone, "set", args()).await.changed, Some(false), "{name} {ty}");
    }
    assert!(
        pdns.transfer(zone).contains(&"t.example.test. 120 TXT \"a \\\"b\\\" \\\\ \\195\\188\"".to_string()),
        "{:?}",
        pdns.transfer(zone)
    );
    // A crash between intent and outcome: done already, and nothing to do the second time.
    desk.act_and_die(zone, "point", vec!["shop".into(), "192.0.2.2".into()]).await.unwrap();
    let again = desk.act(zone, "point", vec!["shop".into(), "192.0.2.2".into()]).await;
    assert_eq!((again.changed, again.note.as_deref()), (Some(false), Some("shop.example.test points there already")));
    desk.act(zone, "delete", vec!["t".into(), "TXT".into()]).await;
    assert_eq!(desk.act(zone, "delete", vec!["t".into(), "TXT".into()]).await.changed, Some(false));

    let e = desk.fails(zone, "set", vec!["shop".into(), "CNAME".into(), "mail".into()]).await;
    assert_eq!(e.code, Code::DNS_API);
    assert!(
        e.message.starts_with("PowerDNS refuses to change shop.example.test CNAME: RRset shop.example.test. IN CNAME: Conflicts with"),
        "{e}"
    );
    let e = desk.fails(zone, "set", vec!["shop".into(), "A".into(), "192.0.2.2".into(), options(&[("proxied", true.into())])]).await;
    assert!(e.message.contains("has no proxy"), "{e}");

    let wrong = Desk::new().zone(zone, "powerdns", &[("api", &format!("http://127.0.0.1:{}", pdns.api)), ("api_key", "wrong")]);
    let e = wrong.fails(zone, "read", vec!["shop".into()]).await;
    assert_eq!((e.code, e.retryable), (Code::DNS_API, false));
    assert_eq!(e.message, "PowerDNS refuses to list the records of example.test: Unauthorized (401)");
    assert!(e.hint.unwrap().contains("the secret \"wrong\""));
    let none = Desk::new().zone("other.test", "powerdns", &[("api", &format!("http://127.0.0.1:{}/", pdns.api)), ("api_key", "pdns")]);
    let e = none.fails("other.test", "read", vec!["shop".into()]).await;
    assert!(e.code == Code::DNS_API && e.hint.unwrap().contains("pdnsutil create-zone other.test"));
    // The API of a host, over its SSH connection: the port of this machine is another's there.
    let Some(ssh) = crate::support::sshd::Sshd::start("") else { return };
    let api = format!("http://127.0.0.1:{}", pdns.api);
    let mut far = Desk::new().zone(zone, "powerdns", &[("api", &api), ("api_key", "pdns"), ("host", "ns1")]);
    let host = Resource { name: "ns1".into(), kind: "ssh".into(), settings: ssh.settings() };
    far.env.resources.entry(Section::Hosts).or_default().insert("ns1".into(), host);
    let args = || vec!["far".into(), "A".into(), "192.0.2.9".into()];
    assert_eq!(far.act(zone, "set", args()).await.changed, Some(true));
    assert_eq!(far.act(zone, "set", args()).await.changed, Some(false));
    assert!(pdns.transfer(zone).iter().any(|r| r.starts_with("far.example.test.") && r.ends_with("A 192.0.2.9")));
    assert!(ssh.log().contains("Accepted publickey"), "it went over SSH: {}", ssh.log());
    let plain = Desk::new().zone(zone, "powerdns", &[("api", "http://ns1.example.com:8081"), ("api_key", "pdns")]);
    let e = plain.fails(zone, "read", vec!["shop".into()]).await;
    assert!(e.code == Code::INVENTORY_TYPE && e.message.contains("unencrypted"), "{e}");

    pdns.down();
    let e = far.fails(zone, "read", vec!["shop".into()]).await;
    assert!(e.code == Code::SSH_SOCKET && e.message.contains("refuses the connection"), "{e}");
    let e = desk.fails(zone, "read", vec!["shop".into()]).await;
    assert_eq!((e.code, e.retryable), (Code::DNS_QUERY, true));
}

#[tokio::test]
async fn a_zone_that_a_server_does_not_hand_out_is_refused_with_the_reason() {
    let Some(bind) = Bind::primary("a A 192.0.2.1") else { return };
    let desk = Desk::new().zone("elsewhere.test", "rfc2136", &[("server", &bind.address())]);
    let e = desk.fails("elsewhere.test", "records", vec![]).await;
    assert_eq!(e.code, Code::DNS_REFUSED);
    assert!(e.message.starts_with(&format!("the name server {} refuses to hand out the whole zone elsewhere.test", bind.address())), "{e}");
    let desk = Desk::new().updates("old", &bind.address()).zone("new", "rfc2136", &[("zone", "frozen.test"), ("server", &bind.address())]);
    let e = desk.fails("new", "copy_from", vec![Desk::handle("old")]).await;
    assert!(e.message.contains("only one zone at two providers"), "{e}");
}
