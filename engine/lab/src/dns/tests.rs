use std::net::Ipv4Addr;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::tsig::{TsigAlgorithm, TsigError};
use hickory_proto::rr::rdata::{A, CNAME, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType, TSigner};

use super::*;

const T: u64 = 1_800_000_000;

struct Bench {
    dns: Arc<Dns>,
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("zone.json");
    let mut zone = Zone::empty("example.test", Ipv4Addr::new(127, 9, 9, 2), path.clone()).unwrap();
    zone.a("shop.example.test", 12, Ipv4Addr::new(127, 9, 9, 10)).unwrap();
    zone.cname("www.example.test", 60, "shop.example.test").unwrap();
    zone.txt("a.deep.example.test", 60, "x").unwrap();
    zone.save().unwrap();
    Bench { dns: Dns::new(zone, "key.", b"secret".to_vec()).unwrap(), _dir: dir, path }
}

fn name(s: &str) -> Name {
    fqdn(s).unwrap()
}

fn ask(b: &Bench, n: &str, ty: RecordType) -> Message {
    let mut m = Message::new(7, MessageType::Query, OpCode::Query);
    m.add_query(Query::query(name(n), ty));
    Message::from_vec(&b.dns.answer(&m.to_vec().unwrap(), true, T).unwrap()).unwrap()
}

fn signer(key: &str, secret: &[u8]) -> TSigner {
    TSigner::new(secret.to_vec(), TsigAlgorithm::HmacSha256, name(key), 300).unwrap()
}

fn send(b: &Bench, mut m: Message, key: Option<TSigner>, at: u64) -> (Message, Vec<u8>) {
    if let Some(key) = key {
        let (sig, _) = key.sign_message(&m, at).unwrap();
        m.set_signature(sig);
    }
    let raw = b.dns.answer(&m.to_vec().unwrap(), true, T).unwrap();
    (Message::from_vec(&raw).unwrap(), raw)
}

fn update(pre: Vec<Record>, ups: Vec<Record>) -> Message {
    let mut m = Message::new(9, MessageType::Query, OpCode::Update);
    m.add_query(Query::query(name("example.test"), RecordType::SOA));
    m.add_answers(pre);
    m.add_authorities(ups);
    m
}

fn rr(n: &str, class: DNSClass, ttl: u32, data: RData) -> Record {
    let mut r = Record::from_rdata(name(n), ttl, data);
    r.dns_class = class;
    r
}

fn a(last: u8) -> RData {
    RData::A(A(Ipv4Addr::new(127, 9, 9, last)))
}

fn none(ty: RecordType) -> RData {
    RData::Update0(ty)
}

fn good(b: &Bench, pre: Vec<Record>, ups: Vec<Record>) -> ResponseCode {
    send(b, update(pre, ups), Some(signer("key", b"secret")), T).0.metadata.response_code
}

fn serial(b: &Bench) -> u32 {
    b.dns.zone.lock().soa().unwrap().serial
}

#[test]
fn questions_are_answered_as_an_authority_does() {
    let b = bench();
    let m = ask(&b, "SHOP.example.test", RecordType::A);
    assert!(m.metadata.authoritative);
    assert_eq!((m.answers.len(), m.answers[0].ttl), (1, 12));
    let m = ask(&b, "www.example.test", RecordType::A);
    assert_eq!(m.answers.iter().map(|r| r.record_type()).collect::<Vec<_>>(), [RecordType::CNAME, RecordType::A]);
    let m = ask(&b, "shop.example.test", RecordType::AAAA);
    assert_eq!((m.metadata.response_code, m.answers.len(), m.authorities[0].record_type()), (ResponseCode::NoError, 0, RecordType::SOA));
    assert_eq!(m.authorities[0].ttl, 5, "a negative answer lives as long as the SOA's minimum");
    assert_eq!(ask(&b, "deep.example.test", RecordType::A).metadata.response_code, ResponseCode::NoError, "a name below it exists");
    let m = ask(&b, "nosuch.example.test", RecordType::A);
    assert_eq!((m.metadata.response_code, m.authorities.len()), (ResponseCode::NXDomain, 1));
    assert_eq!(ask(&b, "example.org", RecordType::A).metadata.response_code, ResponseCode::Refused);
    assert_eq!(ask(&b, "example.test", RecordType::NS).answers.len(), 1);
}

#[test]
fn nonsense_gets_formerr_or_silence() {
    let b = bench();
    assert!(b.dns.answer(&[], true, T).is_none());
    assert!(b.dns.answer(&[1, 2, 0x80, 0, 0], true, T).is_none(), "an answer is never answered");
    let m = Message::from_vec(&b.dns.answer(&[1, 2, 0, 0, 0, 1], true, T).unwrap()).unwrap();
    assert_eq!((m.metadata.id, m.metadata.response_code), (0x102, ResponseCode::FormErr));
}

#[test]
fn an_update_changes_the_zone_raises_its_serial_and_is_on_disk() {
    let b = bench();
    let before = serial(&b);
    let ups = vec![rr("shop.example.test", DNSClass::ANY, 0, none(RecordType::A)), rr("shop.example.test", DNSClass::IN, 1, a(11))];
    let pre = vec![rr("shop.example.test", DNSClass::IN, 0, a(10))];
    assert_eq!(good(&b, pre.clone(), ups.clone()), ResponseCode::NoError);
    assert_eq!(b.dns.addresses("shop.example.test"), ["127.9.9.11"]);
    assert_eq!(serial(&b), before + 1);
    assert_eq!(good(&b, pre, ups.clone()), ResponseCode::NXRRSet, "the old value is gone");
    assert_eq!(good(&b, vec![], ups), ResponseCode::NoError);
    assert_eq!(serial(&b), before + 1, "nothing changed, so the serial stays");
    let saved = Zone::load("example.test", b.path.clone()).unwrap().unwrap();
    assert_eq!(saved.sets, b.dns.zone.lock().sets);
}

#[test]
fn an_update_is_all_or_nothing() {
    let b = bench();
    let ups = vec![rr("x.example.test", DNSClass::IN, 5, a(1)), rr("x.example.org", DNSClass::IN, 5, a(1))];
    assert_eq!(good(&b, vec![], ups), ResponseCode::NotZone);
    let ups = vec![rr("x.example.test", DNSClass::IN, 5, a(1)), rr("x.example.test", DNSClass::ANY, 5, none(RecordType::A))];
    assert_eq!(good(&b, vec![], ups), ResponseCode::FormErr);
    assert_eq!(ask(&b, "x.example.test", RecordType::A).metadata.response_code, ResponseCode::NXDomain);
}

#[test]
fn prerequisites_say_what_is_wrong() {
    let b = bench();
    let any = RecordType::ANY;
    for (n, class, data, code) in [
        ("shop.example.test", DNSClass::ANY, none(any), ResponseCode::NoError),
        ("nosuch.example.test", DNSClass::ANY, none(any), ResponseCode::NXDomain),
        ("shop.example.test", DNSClass::NONE, none(any), ResponseCode::YXDomain),
        ("nosuch.example.test", DNSClass::NONE, none(any), ResponseCode::NoError),
        ("shop.example.test", DNSClass::ANY, none(RecordType::TXT), ResponseCode::NXRRSet),
        ("shop.example.test", DNSClass::NONE, none(RecordType::A), ResponseCode::YXRRSet),
        ("shop.example.test", DNSClass::NONE, none(RecordType::TXT), ResponseCode::NoError),
        ("shop.example.test", DNSClass::IN, a(10), ResponseCode::NoError),
        ("shop.example.test", DNSClass::IN, a(99), ResponseCode::NXRRSet),
        ("shop.example.org", DNSClass::ANY, none(any), ResponseCode::NotZone),
        ("shop.example.test", DNSClass::ANY, a(10), ResponseCode::FormErr),
        ("shop.example.test", DNSClass::CH, a(10), ResponseCode::FormErr),
    ] {
        assert_eq!(good(&b, vec![rr(n, class, 0, data.clone())], vec![]), code, "{n} {class:?} {data:?}");
    }
    assert_eq!(good(&b, vec![rr("shop.example.test", DNSClass::IN, 3, a(10))], vec![]), ResponseCode::FormErr);
    let mut wrong = update(vec![], vec![]);
    wrong.queries[0].set_name(name("example.org"));
    assert_eq!(send(&b, wrong, Some(signer("key", b"secret")), T).0.metadata.response_code, ResponseCode::NotAuth);
}

#[test]
fn the_apex_and_aliases_are_guarded() {
    let b = bench();
    let ups = vec![
        rr("example.test", DNSClass::ANY, 0, none(RecordType::ANY)),
        rr("example.test", DNSClass::ANY, 0, none(RecordType::SOA)),
        rr("example.test", DNSClass::NONE, 0, ask(&b, "example.test", RecordType::NS).answers[0].data.clone()),
        rr("www.example.test", DNSClass::IN, 5, a(1)),
        rr("shop.example.test", DNSClass::IN, 5, RData::CNAME(CNAME(name("x.example.test")))),
    ];
    let before = serial(&b);
    assert_eq!(good(&b, vec![], ups), ResponseCode::NoError);
    assert_eq!(serial(&b), before, "all of it is ignored");
    let ups = vec![
        rr("www.example.test", DNSClass::IN, 5, RData::CNAME(CNAME(name("ns1.example.test")))),
        rr("t.example.test", DNSClass::IN, 5, RData::TXT(TXT::new(vec!["one".into()]))),
        rr("t.example.test", DNSClass::IN, 7, RData::TXT(TXT::new(vec!["two".into()]))),
        rr("t.example.test", DNSClass::NONE, 0, RData::TXT(TXT::new(vec!["one".into()]))),
    ];
    assert_eq!(good(&b, vec![], ups), ResponseCode::NoError);
    assert_eq!(ask(&b, "www.example.test", RecordType::CNAME).answers.len(), 1, "an alias is replaced, not added");
    let t = ask(&b, "t.example.test", RecordType::TXT);
    assert_eq!((t.answers.len(), t.answers[0].ttl), (1, 7));
}

#[test]
fn only_the_keys_holder_may_update() {
    let b = bench();
    let ups = || update(vec![], vec![rr("x.example.test", DNSClass::IN, 5, a(1))]);
    let error = |m: &Message| m.signature().and_then(|s| s.data.error);
    let (m, _) = send(&b, ups(), None, T);
    assert_eq!(m.metadata.response_code, ResponseCode::Refused);
    for (key, at, want, signed) in [
        (signer("other", b"secret"), T, TsigError::BadKey, false),
        (signer("key", b"wrong"), T, TsigError::BadSig, false),
        (signer("key", b"secret"), T - 3600, TsigError::BadTime, true),
        (signer("key", b"secret"), 10, TsigError::BadSig, false),
    ] {
        let (m, _) = send(&b, ups(), Some(key), at);
        assert_eq!((m.metadata.response_code, error(&m)), (ResponseCode::NotAuth, Some(want)), "{want:?}");
        assert_eq!(!m.signature().unwrap().data.mac.is_empty(), signed, "{want:?}");
    }
    assert_eq!(ask(&b, "x.example.test", RecordType::A).metadata.response_code, ResponseCode::NXDomain);
}

#[test]
fn an_answer_to_a_signed_update_is_signed() {
    let b = bench();
    let mut m = update(vec![], vec![rr("x.example.test", DNSClass::IN, 5, a(1))]);
    let (sig, verifier) = signer("key", b"secret").sign_message(&m, T).unwrap();
    m.set_signature(sig);
    let raw = b.dns.answer(&m.to_vec().unwrap(), true, T).unwrap();
    verifier.unwrap().verify(&raw).unwrap();
}

#[test]
fn the_zone_is_handed_out_only_when_signed_and_over_tcp() {
    let b = bench();
    let axfr = || {
        let mut m = Message::new(7, MessageType::Query, OpCode::Query);
        m.add_query(Query::query(name("example.test"), RecordType::AXFR));
        m
    };
    assert_eq!(send(&b, axfr(), Some(signer("key", b"secret")), T).0.metadata.response_code, ResponseCode::Refused);
    let mut m = axfr();
    let refused = Message::from_vec(&b.dns.answer(&m.to_vec().unwrap(), false, T).unwrap()).unwrap();
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
    let (sig, _) = signer("key", b"secret").sign_message(&m, T).unwrap();
    m.set_signature(sig);
    let all = Message::from_vec(&b.dns.answer(&m.to_vec().unwrap(), false, T).unwrap()).unwrap();
    assert_eq!(all.answers.len(), 7);
    assert_eq!((all.answers[0].record_type(), all.answers[6].record_type()), (RecordType::SOA, RecordType::SOA));
}

#[test]
fn what_does_not_fit_is_marked_as_cut_off() {
    let b = bench();
    let big: Vec<Record> =
        (0..40).map(|i| rr("big.example.test", DNSClass::IN, 5, RData::TXT(TXT::new(vec![format!("{i:060}")])))).collect();
    for chunk in big.chunks(4) {
        assert_eq!(good(&b, vec![], chunk.to_vec()), ResponseCode::NoError);
    }
    let m = ask(&b, "big.example.test", RecordType::TXT);
    assert!(m.metadata.truncation && m.answers.is_empty());
}
