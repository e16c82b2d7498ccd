//! Zone files on a host over SSH, served by BIND and by Knot; and updates taken by Knot.

use runbook_core::Code;
use runbook_core::inventory::{Resource, Section};

use super::desk::{Desk, texts};
use crate::support::bind::Bind;
use crate::support::knot::Knot;
use crate::support::options;
use crate::support::sshd::Sshd;

const ZONE: &str = "frozen.test";

fn desk(host: &Sshd, settings: &[(&str, &str)]) -> Desk {
    let mut d = Desk::new().zone(ZONE, "zone-file", settings);
    let zone = d.env.resources.get_mut(&Section::Zones).and_then(|z| z.get_mut(ZONE)).unwrap();
    zone.settings.insert("host".into(), "old".into());
    let old = Resource { name: "old".into(), kind: "ssh".into(), settings: host.settings() };
    d.env.resources.entry(Section::Hosts).or_default().insert("old".into(), old);
    d
}

fn set(value: &str) -> Vec<runbook_core::Value> {
    vec!["shop".into(), "A".into(), value.into(), options(&[("ttl", "2m".into())])]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_file_of_bind_is_changed_checked_and_reloaded() {
    let Some(bind) = Bind::primary("") else { return };
    let Some(host) = Sshd::start("") else { return };
    let file = bind.path("frozen.db");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("; kept by hand, do not touch\n{text}www A 192.0.2.5 ; the web\n")).unwrap();
    let reload = format!(
        "[ ! -e {0}/broken ] || {{ echo no such process >&2; exit 3; }}; kill -HUP {1}; echo x >>{0}/reloads",
        host.home().display(),
        bind.pid()
    );
    let reloads = || std::fs::read_to_string(host.home().join("reloads")).unwrap_or_default().lines().count();
    let path = file.display().to_string();
    let desk = desk(&host, &[("path", &path), ("server", &bind.address()), ("reload", &reload)]);

    assert_eq!(desk.act(ZONE, "set", set("192.0.2.7")).await.changed, Some(true));
    assert_eq!(bind.dig(&["shop.frozen.test"]), "192.0.2.7", "the change ends when the server answers it");
    let now = std::fs::read_to_string(&file).unwrap();
    assert!(
        now.starts_with("; kept by hand, do not touch\n$TTL 3600\n@ SOA ns1 admin 2 2 1 3600 5\n")
            && now.contains("www A 192.0.2.5 ; the web\n"),
        "{now}"
    );
    assert_eq!(desk.act(ZONE, "set", set("192.0.2.7")).await.changed, Some(false));
    assert_eq!(reloads(), 1, "nothing to do, nothing reloaded");

    // The check of the server's own tool refuses the whole file: it stays, and the server answers as before.
    let e = desk.fails(ZONE, "set", vec!["www".into(), "CNAME".into(), "shop".into()]).await;
    assert_eq!((e.code, e.host.as_deref()), (Code::DNS_REFUSED, Some("old")));
    assert!(
        e.message.starts_with(&format!("the check of the new zone file refuses it, and {path} stays as it was: "))
            && e.message.contains("CNAME and other data"),
        "{e}"
    );
    assert_eq!(std::fs::read_to_string(&file).unwrap(), now);

    // The reload fails after the file was put in place, as when the host dies in between: made up for by the next attempt.
    std::fs::write(host.home().join("broken"), "").unwrap();
    let e = desk.fails(ZONE, "set", set("192.0.2.8")).await;
    assert!(e.retryable && e.message.ends_with("is changed, but its name server did not reload it: no such process"), "{e}");
    assert_eq!(bind.dig(&["shop.frozen.test"]), "192.0.2.7");
    std::fs::remove_file(host.home().join("broken")).unwrap();
    assert_eq!(desk.act(ZONE, "set", set("192.0.2.8")).await.changed, Some(true), "the server has not read it yet");
    assert_eq!(bind.dig(&["shop.frozen.test"]), "192.0.2.8");
    assert_eq!(desk.act(ZONE, "set", set("192.0.2.8")).await.changed, Some(false));
    assert!(!bind.path("frozen.db.runbook-before").exists() && !bind.path("frozen.db.runbook-new").exists());

    // Another zone of the same content is taken over as a whole.
    let text = "$TTL 60\nns1 A 127.0.0.99\na A 192.0.2.1\nb TXT \"x y\"\nsub NS ns1.sub\nns1.sub A 192.0.2.2\n";
    let out = desk.act(ZONE, "import_text", vec![text.into(), options(&[("delete", true.into())])]).await;
    assert_eq!(texts(&out.value, "created").len(), 4, "{:?}", out.value);
    assert_eq!(bind.dig(&["b.frozen.test", "TXT"]), "\"x y\"");
    std::fs::write(bind.path("frozen.db.jnl"), "").unwrap();
    let e = desk.fails(ZONE, "set", set("192.0.2.9")).await;
    assert!(e.code == Code::DNS_REFUSED && e.hint.unwrap().contains("rfc2136"), "{}", e.message);
    let none = self::desk(&host, &[("path", "/nonexistent/zone")]);
    let e = none.fails(ZONE, "records", vec![]).await;
    assert_eq!(e.code, Code::FILE_READ, "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_file_of_knot_is_changed_checked_and_reloaded() {
    let Some(knot) = Knot::start("shop A 192.0.2.1") else { return };
    let Some(host) = Sshd::start("") else { return };
    let path = knot.path("frozen.db").display().to_string();
    let reload = format!("knotc -b -s {} zone-reload {ZONE}", knot.path("knot.sock").display());
    let desk =
        desk(&host, &[("path", &path), ("server", &knot.address()), ("check", "kzonecheck -o frozen.test \"$FILE\""), ("reload", &reload)]);
    assert_eq!(
        desk.act(ZONE, "point", vec!["shop".into(), "192.0.2.7".into(), options(&[("accept_stale", "1h".into())])]).await.changed,
        Some(true)
    );
    assert_eq!(knot.dig(&["shop.frozen.test"]), "192.0.2.7");
    let again = desk.act(ZONE, "point", vec!["shop".into(), "192.0.2.7".into()]).await;
    assert_eq!(again.changed, Some(false));
    let e = desk.fails(ZONE, "set", vec!["shop".into(), "CNAME".into(), "ns1".into()]).await;
    assert!(e.code == Code::DNS_REFUSED && e.message.contains("stays as it was"), "{e}");
    assert_eq!(knot.dig(&["shop.frozen.test"]), "192.0.2.7");
}

#[tokio::test]
async fn knot_takes_updates_and_hands_out_zones_by_key() {
    let Some(knot) = Knot::start("shop 60 A 192.0.2.1") else { return };
    let desk = Desk::new().updates("example.test", &knot.address());
    let zone = "example.test";
    for (name, ty, value) in
        [("www", "CNAME", "shop"), ("@", "MX", "10 shop"), ("t", "TXT", "a \"b\" ü"), ("@", "CAA", "0 issue \"x.org\"")]
    {
        let args = || vec![name.into(), ty.into(), value.into()];
        assert_eq!(desk.act(zone, "set", args()).await.changed, Some(true), "{name} {ty}");
        assert_eq!(desk.act(zone, "set", args()).await.changed, Some(false), "{name} {ty}");
    }
    // Dies after the act, before its outcome is on record.
    desk.act_and_die(zone, "point", vec!["shop".into(), "192.0.2.2".into()]).await.unwrap();
    assert_eq!(desk.act(zone, "point", vec!["shop".into(), "192.0.2.2".into()]).await.changed, Some(false));
    assert_eq!(knot.dig(&["shop.example.test"]), "192.0.2.2");
    let sets = desk.act(zone, "records", vec![]).await.value.as_list().unwrap().len();
    assert_eq!(sets, 8, "SOA, NS, ns1, shop, www, t, MX, CAA by a signed transfer");
    desk.act(zone, "delete", vec!["t".into(), "TXT".into()]).await;
    assert_eq!(knot.dig(&["t.example.test", "TXT"]), "");
    let unsigned = Desk::new().zone(zone, "rfc2136", &[("server", &knot.address())]);
    let e = unsigned.fails(zone, "set", vec!["t".into(), "TXT".into(), "x".into()]).await;
    assert_eq!(e.code, Code::DNS_REFUSED, "{e}");
    let e = unsigned.fails(zone, "records", vec![]).await;
    assert_eq!(e.code, Code::DNS_REFUSED, "{e}");
}
