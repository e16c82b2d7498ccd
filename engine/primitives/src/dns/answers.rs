//! `Zone.answers`: what every authoritative server and named resolvers answer, over UDP and TCP, with the state of DNSSEC.

use std::net::SocketAddr;

use async_trait::async_trait;
use futures::future::join_all;
use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::{Code, Record, Result, Value};

use super::exchange::{exchange, exchange_tcp};
use super::provider::Zone;
use super::read::texts;
use super::record::{RrSet, parse_type, presentation};
use super::rfc2136::question;
use super::servers::{Server, authoritative};
use super::ttl_of;

/// The type of the results.
pub fn types(r: &mut Registry) {
    r.add_type(
        TypeSpec::new("DnsAnswer", "What one server answers for a name.")
            .field("server", Ty::Str, "The server: its name and address.")
            .field("resolver", Ty::Bool, "Whether it is a resolver, which may answer from its cache.")
            .field("udp", Ty::List(Box::new(Ty::Str)), "The values that it answers over UDP, sorted.")
            .field("tcp", Ty::List(Box::new(Ty::Str)), "The values that it answers over TCP, sorted.")
            .field("same", Ty::Bool, "Whether it answers, over both, and the same.")
            .field("ttl", Ty::Duration, "The TTL over UDP: with resolvers what is left of it.")
            .field(
                "dnssec",
                Ty::Str,
                "Authoritative servers: `signed` or `unsigned`. Resolvers: `validated`, `bogus` (it refuses the answer, since the signature is wrong), `not validated` (signed, and not checked), `unsigned`.",
            )
            .field("error", Ty::Str, "Why it gives no usable answer; empty when it does."),
    );
}

/// Asks everybody.
pub struct Answers(Spec);

impl Default for Answers {
    fn default() -> Self {
        Answers(
            Spec::method(
                "Zone",
                "answers",
                Effect::Read,
                "Asks every authoritative name server and every named resolver, over UDP and over TCP, and tells what each answers, and the \
                 state of DNSSEC.\n\nThe name servers are `nameservers` of the zone in runbook.toml, else those that the provider knows, \
                 else those of its NS records, and the primary. A server that does not answer is no error here: its `error` says why.",
            )
            .arg("name", Ty::Str, "The name: `shop`, `@` for the zone itself, or a full name.")
            .option("type", Ty::Str, "The type of record; `A` by default.")
            .option("resolvers", Ty::List(Box::new(Ty::Str)), "Resolvers to ask too (`ip` or `ip:port`); those of the zone by default.")
            .returns(Ty::List(Box::new(Ty::Record("DnsAnswer"))))
            .example(
                r#"for a in zone("example.com").answers("shop", #{ resolvers: ["9.9.9.9"] }) { log(`${a.server}: ${a.udp} ${a.dnssec} ${a.error}`); }"#,
            )
            .errors(&[Code::DNS_QUERY, Code::DNS_RECORD]),
        )
    }
}

/// One server's answer.
#[derive(Debug, Default, PartialEq)]
pub struct Seen {
    udp: Vec<String>,
    tcp: Vec<String>,
    ttl: u32,
    dnssec: &'static str,
    error: String,
}

fn ask(name: &Name, ty: RecordType, resolver: bool) -> Message {
    let mut m = question(name, ty, resolver);
    let mut edns = Edns::new();
    // Signatures are sent only to who asks for them.
    edns.set_dnssec_ok(true);
    m.edns = Some(edns);
    m
}

fn values(m: &Message, name: &Name, ty: RecordType) -> RrSet {
    let found: Vec<_> = m.answers.iter().filter(|r| r.record_type() == ty).collect();
    let ttl = found.iter().map(|r| r.ttl).max().unwrap_or(0);
    RrSet::new(name.clone(), ty, ttl, found.iter().map(|r| presentation(&r.data)).collect())
}

async fn look(cx: &Cx, server: &Server, name: &Name, ty: RecordType) -> Result<Seen> {
    let addr = match &server.addr {
        Ok(a) => *a,
        Err(why) => return Ok(Seen { error: why.clone(), ..Seen::default() }),
    };
    let failed = |e: runbook_core::Error| if e.code == Code::ABORTED { Err(e) } else { Ok(Seen { error: e.message, ..Seen::default() }) };
    let udp = match exchange(cx, addr, ask(name, ty, server.resolver), None).await {
        Ok(m) => m,
        Err(e) => return failed(e),
    };
    let (set, signed) = (values(&udp, name, ty), udp.answers.iter().any(|r| r.record_type() == RecordType::RRSIG));
    let mut seen = Seen { udp: set.shown(), ttl: set.ttl, ..Seen::default() };
    seen.dnssec = match (server.resolver, signed) {
        (false, true) => "signed",
        (true, _) if udp.authentic_data => "validated",
        (true, true) => "not validated",
        (_, false) => "unsigned",
    };
    match udp.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {
            if !server.resolver && !udp.authoritative {
                seen.error = "it is not authoritative for the zone".into();
            }
        }
        ResponseCode::ServFail if server.resolver && unchecked(cx, addr, name, ty).await? => {
            seen.dnssec = "bogus";
            seen.error = "it refuses the answer, which does not validate (DNSSEC)".into();
            return Ok(seen);
        }
        code => {
            seen.error = format!("{code} ({})", code.to_str());
            return Ok(seen);
        }
    }
    match exchange_tcp(cx, addr, ask(name, ty, server.resolver)).await {
        Ok(m) => seen.tcp = values(&m, name, ty).shown(),
        Err(e) if e.code == Code::ABORTED => return Err(e),
        Err(e) => seen.error = format!("over TCP: {}", e.message),
    }
    if seen.error.is_empty() && seen.udp != seen.tcp {
        seen.error = "it answers otherwise over TCP than over UDP".into();
    }
    Ok(seen)
}

/// Whether a resolver that fails has an answer when it is told not to check it: then the check is what fails.
async fn unchecked(cx: &Cx, addr: SocketAddr, name: &Name, ty: RecordType) -> Result<bool> {
    let mut m = ask(name, ty, true);
    m.metadata.checking_disabled = true;
    match exchange(cx, addr, m, None).await {
        Ok(m) => Ok(m.response_code == ResponseCode::NoError),
        Err(e) if e.code == Code::ABORTED => Err(e),
        Err(_) => Ok(false),
    }
}

/// What is wrong with the answers over TCP, and the state of DNSSEC of all, for those who wait for an answer.
///
/// # Errors
/// `RB0021` when cancelled.
pub async fn by_tcp(cx: &Cx, servers: &[Server], wanted: &RrSet) -> Result<(Vec<String>, String)> {
    let seen = join_all(servers.iter().map(|s| look(cx, s, &wanted.name, wanted.ty))).await.into_iter().collect::<Result<Vec<_>>>()?;
    let mut behind = Vec::new();
    let mut states: Vec<&str> = Vec::new();
    for (server, s) in servers.iter().zip(&seen) {
        if !s.error.is_empty() {
            behind.push(format!("{} over UDP and TCP: {}", server.shown, s.error));
        } else if s.tcp != wanted.shown() {
            behind.push(format!(
                "{} answers {} over TCP",
                server.shown,
                if s.tcp.is_empty() { "nothing".into() } else { s.tcp.join(", ") }
            ));
        }
        if !s.dnssec.is_empty() && !states.contains(&s.dnssec) {
            states.push(s.dnssec);
        }
    }
    states.sort_unstable();
    Ok((behind, states.join(", ")))
}

#[async_trait]
impl Primitive for Answers {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let zone = Zone::of(cx, call)?;
        let name = zone.owner(call.str(0))?;
        let ty = call.opt_str("type").map_or(Ok(RecordType::A), parse_type)?;
        let mut servers = authoritative(cx, &zone).await.map_err(|e| zone.named(e))?;
        for r in call.opt("resolvers").map_or_else(|| zone.resolvers.clone(), texts) {
            servers.push(Server::named(&r, true).await);
        }
        let seen = join_all(servers.iter().map(|s| look(cx, s, &name, ty))).await.into_iter().collect::<Result<Vec<_>>>()?;
        let list = |v: &[String]| Value::List(v.iter().map(|t| t.as_str().into()).collect());
        let out = servers.iter().zip(&seen).map(|(server, s)| {
            cx.message(format!(
                "{}: {} with TTL {}, {}{}",
                server.shown,
                if s.udp.is_empty() { "no such record".to_string() } else { s.udp.join(", ") },
                ttl_of(s.ttl),
                s.dnssec,
                if s.error.is_empty() { String::new() } else { format!("; {}", s.error) }
            ));
            Value::from(Record::new(
                "DnsAnswer",
                [
                    ("server", server.shown.as_str().into()),
                    ("resolver", server.resolver.into()),
                    ("udp", list(&s.udp)),
                    ("tcp", list(&s.tcp)),
                    ("same", s.error.is_empty().into()),
                    ("ttl", std::time::Duration::from_secs(u64::from(s.ttl)).into()),
                    ("dnssec", s.dnssec.into()),
                    ("error", s.error.as_str().into()),
                ],
            ))
        });
        Ok(Value::List(out.collect()).into())
    }
}
