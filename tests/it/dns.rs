//! End-to-end tests of the area `dns`: here against BIND, the other providers in the folder.

mod answers;
mod cloudflare;
mod desk;
mod moves;
mod on_host;
mod route53;
#[cfg(feature = "dns-services")]
mod services;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use runbook_core::clock::{Clock, System};
use runbook_core::inventory::{Environment, Resource, Section};
use runbook_core::primitive::Outcome;
use runbook_core::spec::Call;
use runbook_core::{Code, Record, Result, Value};
use runbook_primitives::dns::provider::{Change, Zone};
use runbook_testkit::{World, cx};

use crate::support::bind::{Bind, SECRET};
use crate::support::lab::plan;
use crate::support::{list, options};

/// A clock that is wrong by some seconds.
struct Wrong(i64);
impl Clock for Wrong {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::now() + jiff::SignedDuration::from_secs(self.0)
    }
}

/// An environment with one zone, and everything remembered about it.
struct Lab {
    world: Arc<World>,
    zone: &'static str,
    settings: BTreeMap<String, Value>,
    clock: Arc<dyn Clock>,
}

impl Lab {
    fn new(server: &str) -> Lab {
        let world = World::default();
        world.secrets.lock().insert("tsig".into(), SECRET.into());
        world.secrets.lock().insert("other".into(), "b3RoZXItc2VjcmV0LW9mLXRoZS10ZXN0cy0wMTIzNDU=".into());
        let text = |t: &str| Value::from(t);
        let settings = BTreeMap::from([
            ("server".to_string(), text(server)),
            ("tsig_name".to_string(), text("runbook")),
            ("tsig_secret".to_string(), text("tsig")),
            ("nameservers".to_string(), list(&[server])),
        ]);
        Lab { world: Arc::new(world), zone: "example.test", settings, clock: Arc::new(System) }
    }

    fn with(mut self, key: &str, value: impl Into<Value>) -> Lab {
        self.settings.insert(key.into(), value.into());
        self
    }

    fn cx(&self) -> runbook_core::primitive::Cx {
        let mut env = Environment { name: "test".into(), ..Environment::default() };
        let zone = Resource { name: self.zone.into(), kind: "rfc2136".into(), settings: self.settings.clone() };
        env.resources.entry(Section::Zones).or_default().insert(self.zone.into(), zone);
        let mut c = cx(&self.world, env, "a-1");
        c.clock = self.clock.clone();
        c
    }

    fn receiver(&self) -> Record {
        Record::handle("Zone", self.zone, BTreeMap::new())
    }

    /// Does it and loses the outcome, as a controller that dies.
    async fn act_and_die(&self, method: &'static str, args: Vec<Value>) -> Result<Outcome> {
        let p = runbook_primitives::registry().primitives[&(Some("Zone"), method)].clone();
        p.act(&self.cx(), &p.spec().bind(Some(self.receiver()), args)?).await
    }

    async fn act(&self, method: &'static str, args: Vec<Value>) -> Result<Outcome> {
        let out = self.act_and_die(method, args).await?;
        self.world.facts.lock().extend(out.facts.clone());
        Ok(out)
    }

    async fn fails(&self, method: &'static str, args: Vec<Value>) -> runbook_core::Error {
        self.act(method, args).await.expect_err("an error")
    }
}

#[tokio::test]
async fn records_are_set_read_and_deleted_and_left_alone_when_right() {
    let Some(bind) = Bind::primary("shop 3600 A 192.0.2.1\nmail A 192.0.2.9") else { return };
    let lab = Lab::new(&bind.address());

    let r = lab.act("read", vec!["shop".into()]).await.unwrap().value;
    let r = r.as_record().unwrap();
    assert_eq!((r.str("name"), r.str("type"), r.get("values")), ("shop.example.test", "A", &list(&["192.0.2.1"])));
    assert_eq!(r.get("ttl"), &Value::Duration(Duration::from_secs(3600)));
    let none = lab.act("read", vec!["nothing".into()]).await.unwrap().value;
    assert_eq!(none.as_record().unwrap().get("exists"), &Value::Bool(false));

    for (name, ty, values, dug) in [
        ("www", "CNAME", list(&["shop"]), "shop.example.test."),
        ("@", "MX", list(&["10 mail", "20 mx.other.net."]), "10 mail.example.test.\n20 mx.other.net."),
        ("@", "TXT", list(&["v=spf1 \"mx\" -all"]), r#""v=spf1 \"mx\" -all""#),
        ("shop.example.test.", "AAAA", list(&["2001:DB8:0::7"]), "2001:db8::7"),
        ("_sip._tcp", "SRV", list(&["0 5 5060 shop"]), "0 5 5060 shop.example.test."),
        ("@", "CAA", list(&["0 issue \"letsencrypt.org\""]), "0 issue \"letsencrypt.org\""),
    ] {
        let args = || vec![name.into(), ty.into(), values.clone(), options(&[("ttl", "2m".into())])];
        assert_eq!(lab.act("set", args()).await.unwrap().changed, Some(true), "{name} {ty}");
        let full =
            if name == "@" { "example.test".to_string() } else { format!("{}.example.test", name.trim_end_matches(".example.test.")) };
        let mut lines: Vec<String> = bind.dig(&[&full, ty]).lines().map(str::to_string).collect();
        lines.sort();
        assert_eq!(lines.join("\n"), dug, "{name} {ty}");
        let again = lab.act("set", args()).await.unwrap();
        assert_eq!(again.changed, Some(false), "{name} {ty}");
        assert!(again.note.unwrap().ends_with("is so already"));
    }
    assert_eq!(lab.act("delete", vec!["www".into(), "CNAME".into()]).await.unwrap().changed, Some(true));
    assert_eq!(bind.dig(&["www.example.test", "CNAME"]), "");
    let again = lab.act("delete", vec!["www".into(), "CNAME".into()]).await.unwrap();
    assert_eq!((again.changed, again.note.as_deref()), (Some(false), Some("there is no www.example.test CNAME")));

    let e = lab.fails("delete", vec!["@".into(), "NS".into()]).await;
    assert!(e.message.contains("holds the zone together"), "{e}");
    let e = lab.fails("set", vec!["@".into(), "CNAME".into(), "shop".into()]).await;
    assert!(e.message.contains("cannot be a CNAME"), "{e}");
    let e = lab.fails("set", vec!["shop".into(), "A".into(), "2001:db8::1".into()]).await;
    assert_eq!(e.message, "\"2001:db8::1\" is not the value of a record of type A: not an IPv4 address");
}

#[tokio::test]
async fn long_answers_and_long_updates_go_by_tcp() {
    let Some(bind) = Bind::primary("") else { return };
    let lab = Lab::new(&bind.address());
    let long: Vec<Value> = (0..12).map(|i| Value::from(format!("{i:02}{}", "x".repeat(300)))).collect();
    lab.act("set", vec!["big".into(), "TXT".into(), Value::List(long.clone())]).await.unwrap();
    let read = lab.act("read", vec!["big".into(), options(&[("type", "TXT".into())])]).await.unwrap().value;
    assert_eq!(read.as_record().unwrap().get("values"), &Value::List(long));
}

#[tokio::test]
async fn a_refusal_says_what_is_wrong_with_the_key() {
    let Some(mut bind) = Bind::primary("shop 60 A 192.0.2.1") else { return };
    let at = bind.address();
    let point = || vec!["shop".into(), "192.0.2.2".into()];

    let e = Lab::new(&at).with("tsig_name", "nobody").fails("point", point()).await;
    assert_eq!((e.code, e.host.as_deref()), (Code::DNS_TSIG, Some("example.test")));
    assert_eq!(e.message, format!("the name server {at} does not know the TSIG key \"nobody\" with hmac-sha256 (BADKEY)"));

    let e = Lab::new(&at).with("tsig_secret", "other").fails("point", point()).await;
    assert_eq!(e.code, Code::DNS_TSIG);
    assert!(e.message.ends_with("refuses the signature of the TSIG key \"runbook\" (BADSIG): it holds another secret"), "{e}");
    assert!(e.hint.unwrap().contains("the secret \"other\""));

    let e = Lab::new(&at).with("tsig_algorithm", "hmac-sha512").fails("point", point()).await;
    assert!(e.code == Code::DNS_TSIG && e.message.contains("BADKEY") && e.message.contains("hmac-sha512"), "{e}");

    for (by, says) in [(7200, "this machine's clock is 2h ahead of the server's"), (-7200, "behind the server's")] {
        let lab = Lab { clock: Arc::new(Wrong(by)), ..Lab::new(&at) };
        let e = lab.fails("point", point()).await;
        assert!(e.code == Code::DNS_TSIG && e.message.contains("(BADTIME)"), "{e}");
        // The two clocks are read at different moments: a second more or less.
        assert!(e.message.contains(says) || e.message.contains("1h59m59s") || e.message.contains("2h1s"), "{e}");
    }

    let mut unsigned = Lab::new(&at);
    unsigned.settings.remove("tsig_name");
    unsigned.settings.remove("tsig_secret");
    let e = unsigned.fails("point", point()).await;
    assert_eq!(e.code, Code::DNS_REFUSED);
    assert!(e.message.contains("refuses an update of example.test: REFUSED; the request is not signed"), "{e}");

    let frozen = Lab { zone: "frozen.test", ..Lab::new(&at) };
    let e = frozen.fails("set", vec!["shop".into(), "A".into(), "192.0.2.2".into()]).await;
    assert_eq!(e.code, Code::DNS_REFUSED);
    assert!(e.message.contains("frozen.test: REFUSED, although signed by the key \"runbook\""), "{e}");

    let elsewhere = Lab { zone: "elsewhere.test", ..Lab::new(&at) };
    let e = elsewhere.fails("read", vec!["shop".into()]).await;
    assert_eq!(e.code, Code::DNS_REFUSED, "{e}");

    assert_eq!(bind.dig(&["shop.example.test"]), "192.0.2.1", "nothing of this changed anything");
    bind.down();
    let e = Lab::new(&at).fails("read", vec!["shop".into()]).await;
    assert!(e.code == Code::DNS_QUERY && e.retryable, "{e}");
    assert!(e.message.starts_with(&format!("the name server {at} does not answer: by UDP, ")), "{e}");
}

#[tokio::test]
async fn somebody_elses_change_is_not_overwritten() {
    let Some(bind) = Bind::primary("shop 60 A 192.0.2.1") else { return };
    let lab = Lab::new(&bind.address());
    let c = lab.cx();
    let zone = Zone::of(&c, &Call { receiver: Some(lab.receiver()), ..Call::default() }).unwrap();
    let name = zone.owner("shop").unwrap();
    let read = lab.act("read", vec!["shop".into()]).await.unwrap();
    assert_eq!(read.value.as_record().unwrap().get("values"), &list(&["192.0.2.1"]));
    let ty = "A".parse().unwrap();
    let before = zone.read(&c, &name, ty).await.unwrap();
    bind.nsupdate("update delete shop.example.test A\nupdate add shop.example.test 60 A 192.0.2.99");
    let after = before.as_ref().map(|b| b.with_ttl(30));
    let e = zone.apply(&c, vec![Change { name: name.clone(), ty, before, after }]).await.unwrap_err();
    assert_eq!((e.code, e.retryable), (Code::DNS_RECORD, true));
    assert_eq!(e.message, "shop.example.test A was changed by somebody else between reading and writing; nothing was written");
    assert_eq!(bind.dig(&["shop.example.test"]), "192.0.2.99");
}

/// Passes datagrams on, and drops the first answer to a message that is longer than `longer_than`: an update.
async fn lossy(to: String, longer_than: usize) -> (String, Arc<AtomicUsize>) {
    let socket = Arc::new(tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let at = socket.local_addr().unwrap().to_string();
    let dropped = Arc::new(AtomicUsize::new(0));
    let count = dropped.clone();
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
            let (question, socket, to, count) = (buffer[..n].to_vec(), socket.clone(), to.clone(), count.clone());
            tokio::spawn(async move {
                let up = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
                up.send_to(&question, to).await.unwrap();
                let mut answer = vec![0; 4096];
                let n = up.recv(&mut answer).await.unwrap();
                let update = (question[2] >> 3) & 15 == 5;
                if update && question.len() > longer_than && count.fetch_add(1, Ordering::SeqCst) == 0 {
                    return;
                }
                socket.send_to(&answer[..n], from).await.unwrap();
            });
        }
    });
    (at, dropped)
}

#[tokio::test]
async fn an_update_whose_answer_is_lost_is_recognised_as_done() {
    let Some(bind) = Bind::primary("shop 60 A 192.0.2.1") else { return };
    let (at, dropped) = lossy(bind.address(), 0).await;
    let out = Lab::new(&at).act("point", vec!["shop".into(), "192.0.2.2".into()]).await.unwrap();
    assert_eq!(out.changed, Some(true));
    assert_eq!(bind.dig(&["shop.example.test"]), "192.0.2.2");
    assert!(dropped.load(Ordering::SeqCst) >= 2, "the first answer was dropped and the update sent again");
}

#[tokio::test]
async fn the_name_moves_only_when_the_old_ttl_has_run_out() {
    let Some(bind) = Bind::primary("shop 3 A 192.0.2.1\nlong 3600 A 192.0.2.1") else { return };
    let lab = Lab::new(&bind.address());
    let ttl = |name: &str| bind.dig(&["+noall", "+answer", "+noshort", name]).split_whitespace().nth(1).unwrap_or("").to_string();

    let e = lab.fails("point", vec!["long".into(), "192.0.2.2".into()]).await;
    assert_eq!((e.code, e.retryable), (Code::DNS_TTL, false));
    assert_eq!(e.message, "caches may hand out the old address of long.example.test for another 1h; it is not moved");
    assert!(e.hint.unwrap().contains("lower_ttl"));
    let args = |within: &str| vec!["long".into(), "192.0.2.2".into(), options(&[("accept_stale", within.into())])];
    assert_eq!(lab.fails("point", args("59m")).await.code, Code::DNS_TTL);
    assert_eq!(lab.act("point", args("1h")).await.unwrap().changed, Some(true));

    assert!(lab.act("wait_ttl", vec!["shop".into()]).await.unwrap().note.unwrap().contains("never lowered"));
    assert_eq!(lab.act("lower_ttl", vec!["shop".into(), "1s".into()]).await.unwrap().changed, Some(true));
    let lowered = Instant::now();
    assert_eq!((ttl("shop.example.test").as_str(), bind.dig(&["shop.example.test"]).as_str()), ("1", "192.0.2.1"));
    assert_eq!(lab.act("lower_ttl", vec!["shop".into(), "1s".into()]).await.unwrap().changed, Some(false));
    let e = lab.fails("point", vec!["shop".into(), "192.0.2.2".into()]).await;
    assert!(e.code == Code::DNS_TTL && e.retryable && e.hint.unwrap().contains("wait_ttl"));
    lab.act("wait_ttl", vec!["shop".into()]).await.unwrap();
    assert!(lowered.elapsed() >= Duration::from_secs(3), "{:?}", lowered.elapsed());
    assert_eq!(lab.act("point", vec!["shop".into(), "192.0.2.2".into()]).await.unwrap().changed, Some(true));
    let again = lab.act("point", vec!["shop".into(), "192.0.2.2".into()]).await.unwrap();
    assert_eq!((again.changed, again.note.as_deref()), (Some(false), Some("shop.example.test points there already")));
    assert_eq!(lab.act("restore_ttl", vec!["shop".into()]).await.unwrap().changed, Some(true));
    assert_eq!((ttl("shop.example.test").as_str(), bind.dig(&["shop.example.test"]).as_str()), ("3", "192.0.2.2"));
    let again = lab.act("restore_ttl", vec!["shop".into()]).await.unwrap();
    assert_eq!((again.changed, again.note.as_deref()), (Some(false), Some("the TTL of shop.example.test was never lowered")));
}

#[tokio::test]
async fn a_crash_after_the_ttl_was_lowered_does_not_lose_the_old_one() {
    let Some(bind) = Bind::primary("shop 1000 A 192.0.2.1\nshop 900 AAAA 2001:db8::1") else { return };
    let lab = Lab::new(&bind.address());
    lab.act_and_die("lower_ttl", vec!["shop".into(), "5s".into()]).await.unwrap();
    let e = lab.fails("wait_ttl", vec!["shop".into()]).await;
    assert!(e.message.contains("has begun and never ended"), "{e}");
    let e = lab.fails("point", vec!["shop".into(), "192.0.2.2".into()]).await;
    assert_eq!((e.code, e.details["stale"].as_str()), (Code::DNS_TTL, "16m41s"));
    // Resumed: the record is low already, the time runs from now.
    lab.act("lower_ttl", vec!["shop".into(), "5s".into()]).await.unwrap();
    let e = lab.fails("point", vec!["shop".into(), "192.0.2.2".into()]).await;
    assert!(["16m41s", "16m40s"].contains(&e.details["stale"].as_str()), "{e:?}");
    // Back to what caches hold is allowed at once, and both TTLs come back, each its own.
    assert_eq!(lab.act("point", vec!["shop".into(), "192.0.2.1".into()]).await.unwrap().changed, Some(false));
    lab.act_and_die("restore_ttl", vec!["shop".into()]).await.unwrap();
    lab.act("restore_ttl", vec!["shop".into()]).await.unwrap();
    for (ty, ttl) in [("A", 1000), ("AAAA", 900)] {
        let r = lab.act("read", vec!["shop".into(), options(&[("type", ty.into())])]).await.unwrap().value;
        assert_eq!(r.as_record().unwrap().get("ttl"), &Value::Duration(Duration::from_secs(ttl)), "{ty}");
    }
}

#[tokio::test]
async fn a_cname_gives_way_to_an_address_in_one_change() {
    let Some(bind) = Bind::primary("shop 60 CNAME old.other.net.\nshop6 60 AAAA 2001:db8::1") else { return };
    let lab = Lab::new(&bind.address());
    lab.act("point", vec!["shop".into(), "192.0.2.2".into()]).await.unwrap();
    assert_eq!((bind.dig(&["shop.example.test"]), bind.dig(&["shop.example.test", "CNAME"])), ("192.0.2.2".into(), String::new()));
    lab.act("point", vec!["shop".into(), "cdn.other.net.".into(), options(&[("type", "CNAME".into())])]).await.unwrap();
    assert_eq!(bind.dig(&["shop.example.test", "CNAME"]), "cdn.other.net.");
    lab.act("point", vec!["shop6".into(), "192.0.2.2".into()]).await.unwrap();
    assert!(lab.world.messages.lock()[0].contains("still has AAAA 2001:db8::1"), "{:?}", lab.world.messages.lock());
    let e = lab.fails("point", vec!["shop".into(), "new".into()]).await;
    assert_eq!(e.message, "\"new\" is not an IP address");
}

#[tokio::test]
async fn everybody_who_is_asked_must_answer_the_new_value() {
    let Some(primary) = Bind::primary("shop 60 A 192.0.2.1") else { return };
    let Some(mut secondary) = Bind::lagging_secondary(&primary) else { return };
    let lab = Lab::new(&primary.address()).with("nameservers", list(&[&primary.address(), &secondary.address()]));
    let wait = |within: &str, resolvers: &[&str]| {
        let o = options(&[("within", within.into()), ("every", "100ms".into()), ("resolvers", list(resolvers))]);
        vec!["shop".into(), "192.0.2.2".into(), o]
    };
    lab.act("wait_answer", vec!["shop".into(), "192.0.2.1".into(), options(&[("within", "10s".into())])]).await.unwrap();
    lab.act("point", vec!["shop".into(), "192.0.2.2".into()]).await.unwrap();
    let e = lab.fails("wait_answer", wait("300ms", &[])).await;
    assert_eq!(e.code, Code::DNS_WAIT);
    assert!(
        e.message.ends_with(&format!(
            "1 of 2 servers do not answer 192.0.2.2 for shop.example.test A: {} answers 192.0.2.1",
            secondary.address()
        )),
        "{e}"
    );
    let out = lab.act("wait_answer", wait("20s", &[&primary.address()])).await.unwrap();
    assert_eq!(out.note.as_deref(), Some("3 name servers and resolvers answer it over UDP and TCP; DNSSEC: unsigned"));

    // Lowering a TTL ends only when the lagging server follows: the old TTL runs from then on.
    let began = Instant::now();
    lab.act("lower_ttl", vec!["shop".into(), "5s".into()]).await.unwrap();
    assert!(secondary.dig(&["+noall", "+answer", "+noshort", "shop.example.test"]).contains("\t5\t"), "after {:?}", began.elapsed());

    secondary.down();
    let e = lab.fails("wait_answer", wait("100ms", &[])).await;
    assert!(
        e.message.contains(&format!("{} answers the name server", secondary.address())) && e.message.contains("does not answer: "),
        "{e}"
    );

    // Without a list in the inventory the NS records are asked for.
    let mut by_ns = Lab::new(&primary.address());
    by_ns.settings.remove("nameservers");
    let e = by_ns.fails("wait_answer", wait("100ms", &[])).await;
    assert!(e.message.contains("1 of 2 servers") && e.message.contains("ns1.example.test (127.0.0.99)"), "{e}");
}

#[test]
fn the_embedded_lab_is_moved_as_a_real_zone() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("shop/.runbook/lab/demo");
    let plan = plan(&["old", "new"], Duration::from_secs(3), Duration::from_millis(100));
    let rt = tokio::runtime::Runtime::new().unwrap();
    let moved = rt.block_on(async {
        runbook_lab::up(&dir, &plan).await?;
        let overlay = runbook_lab::overlay(&dir).await?;
        let zone = &overlay["zones"]["example.test"];
        let mut lab = Lab::new(zone["server"].as_str().unwrap());
        for (key, v) in zone.as_object().unwrap() {
            let v = v
                .as_array()
                .map_or_else(|| Value::from(v.as_str().unwrap()), |l| list(&l.iter().filter_map(|s| s.as_str()).collect::<Vec<_>>()));
            lab.settings.insert(key.clone(), v);
        }
        let secret = std::fs::read_to_string(overlay["secrets"]["lab-tsig"]["file"].as_str().unwrap()).unwrap();
        lab.world.secrets.lock().insert("lab-tsig".into(), secret.trim().into());
        let new = overlay["hosts"]["new"]["address"].as_str().unwrap().to_string();
        let within = || options(&[("within", "5s".into())]);
        lab.act("lower_ttl", vec!["shop".into(), "1s".into(), within()]).await?;
        assert_eq!(lab.fails("point", vec!["shop".into(), new.as_str().into()]).await.code, Code::DNS_TTL);
        lab.act("wait_ttl", vec!["shop".into()]).await?;
        assert_eq!(lab.act("point", vec!["shop".into(), new.as_str().into()]).await?.changed, Some(true));
        lab.act("wait_answer", vec!["shop".into(), new.as_str().into(), within()]).await?;
        lab.act("restore_ttl", vec!["shop".into()]).await?;
        lab.act("read", vec!["shop".into()]).await
    });
    rt.block_on(runbook_lab::down(&dir)).unwrap();
    let r = moved.unwrap().value;
    assert_eq!(r.as_record().unwrap().get("ttl"), &Value::Duration(Duration::from_secs(3)));
}
