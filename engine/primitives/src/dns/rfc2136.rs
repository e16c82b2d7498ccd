//! The provider for name servers that take dynamic updates (RFC 2136), signed with TSIG (RFC 8945): BIND, Knot, PowerDNS and others.
//!
//! A change is one UPDATE message, so that it happens whole or not at all, and carries the old values as its prerequisite, so that
//! nobody else's change is overwritten.

use async_trait::async_trait;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode, UpdateMessage};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use runbook_core::inventory::Resource;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::exchange::{Key, endpoint, exchange, key};
use super::name;
use super::provider::{Change, Provider};
use super::record::{RrSet, presentation, rdata};
use super::transfer::transfer;

/// The longest update that is sent, with room for the signature.
const LARGEST: usize = 60_000;

/// A zone on a name server that takes updates.
pub struct Rfc2136 {
    origin: Name,
    server: String,
    key: Option<Key>,
}

impl Rfc2136 {
    /// Reads the settings `server`, `tsig_name`, `tsig_algorithm`, `tsig_secret`.
    ///
    /// # Errors
    /// `RB0114` when one is missing, `RB0109` when the secret cannot be had, `RB0602` when it is no key.
    pub fn new(cx: &Cx, resource: &Resource, origin: Name) -> Result<Self> {
        let key = match (resource.str("tsig_name"), resource.str("tsig_secret")) {
            (None, None) => None,
            _ => Some(key(
                cx,
                resource.need("tsig_name")?,
                resource.str("tsig_algorithm").unwrap_or("hmac-sha256"),
                resource.need("tsig_secret")?,
            )?),
        };
        Ok(Rfc2136 { origin, server: resource.need("server")?.to_string(), key })
    }

    async fn send(&self, cx: &Cx, message: Message) -> Result<Message> {
        exchange(cx, endpoint(&self.server).await?, message, self.key.as_ref()).await
    }
}

/// A question for one record set.
pub fn question(name: &Name, ty: RecordType, recursion: bool) -> Message {
    let mut m = Message::new(0, MessageType::Query, OpCode::Query);
    m.metadata.recursion_desired = recursion;
    m.add_query(Query::query(name.clone(), ty));
    m
}

fn records(set: &RrSet) -> Result<Vec<Record>> {
    set.values.iter().map(|v| Ok(Record::from_rdata(set.name.clone(), set.ttl, rdata(set.ty, v)?))).collect()
}

/// The one UPDATE message for all changes.
///
/// # Errors
/// `RB0604` when a value does not fit its type.
pub fn update(origin: &Name, changes: &[Change]) -> Result<Message> {
    let mut m = Message::new(0, MessageType::Query, OpCode::Update);
    m.metadata.recursion_desired = false;
    m.add_zone(Query::query(origin.clone(), RecordType::SOA));
    for c in changes {
        match &c.before {
            // RFC 2136, 2.4.2: the set must hold exactly these values (the TTL is not compared).
            Some(set) => {
                for mut r in records(set)? {
                    r.ttl = 0;
                    m.add_pre_requisite(r);
                }
            }
            // 2.4.3: there must be no such set.
            None => {
                let mut r = Record::update0(c.name.clone(), 0, c.ty);
                r.dns_class = DNSClass::NONE;
                m.add_pre_requisite(r);
            }
        }
    }
    for c in changes {
        if c.before.is_some() {
            let mut r = Record::update0(c.name.clone(), 0, c.ty);
            r.dns_class = DNSClass::ANY;
            m.add_update(r);
        }
    }
    for set in changes.iter().filter_map(|c| c.after.as_ref()) {
        for r in records(set)? {
            m.add_update(r);
        }
    }
    Ok(m)
}

#[async_trait]
impl Provider for Rfc2136 {
    fn supports(&self, _ty: RecordType) -> bool {
        true
    }

    async fn list(&self, cx: &Cx) -> Result<Vec<RrSet>> {
        transfer(cx, &self.server, &self.origin, self.key.as_ref()).await
    }

    async fn read(&self, cx: &Cx, name: &Name, ty: RecordType) -> Result<Vec<RrSet>> {
        let answer = self.send(cx, question(name, ty, false)).await?;
        let zone = name::show(&self.origin);
        match answer.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => {}
            code => return Err(refused(&self.server, &zone, code, self.key.as_ref(), "refuses to answer for")),
        }
        let referral = ty == RecordType::NS && answer.answers.is_empty() && answer.authorities.iter().any(|r| r.name == *name);
        if !answer.authoritative && !referral {
            return Err(Error::new(Code::DNS_REFUSED, format!("the name server {} is not authoritative for {zone}", self.server))
                .hint("set \"server\" of the zone in runbook.toml to its primary name server"));
        }
        // The name servers of a part that is delegated stand beside the answer, since others are authoritative for them.
        let delegated = if ty == RecordType::NS && answer.answers.is_empty() { answer.authorities.as_slice() } else { &[] };
        let found: Vec<&Record> = answer.answers.iter().chain(delegated).filter(|r| r.record_type() == ty && r.name == *name).collect();
        let Some(first) = found.first() else { return Ok(vec![]) };
        Ok(vec![RrSet::new(name.clone(), ty, first.ttl, found.iter().map(|r| presentation(&r.data)).collect())])
    }

    async fn apply(&self, cx: &Cx, changes: &[Change]) -> Result<()> {
        let message = update(&self.origin, changes)?;
        // A message has at most 64 KiB: more goes in halves, each whole in itself.
        if changes.len() > 1 && message.to_vec().map_or(true, |bytes| bytes.len() > LARGEST) {
            let (first, second) = changes.split_at(changes.len() / 2);
            self.apply(cx, first).await?;
            return self.apply(cx, second).await;
        }
        let answer = self.send(cx, message).await?;
        let zone = name::show(&self.origin);
        match answer.response_code {
            ResponseCode::NoError => Ok(()),
            ResponseCode::NXRRSet | ResponseCode::YXRRSet | ResponseCode::NXDomain | ResponseCode::YXDomain => {
                let mut what: Vec<String> = changes.iter().take(5).map(Change::label).collect();
                if changes.len() > what.len() {
                    what.push(format!("or another of {} records", changes.len()));
                }
                Err(Error::new(
                    Code::DNS_RECORD,
                    format!("{} was changed by somebody else between reading and writing; nothing was written", what.join(", ")),
                )
                .hint("look at the record, then try again")
                .retryable(true))
            }
            code => Err(refused(&self.server, &zone, code, self.key.as_ref(), "refuses an update of")),
        }
    }

    fn primary(&self) -> Option<String> {
        Some(self.server.clone())
    }
}

fn refused(server: &str, zone: &str, code: ResponseCode, key: Option<&Key>, what: &str) -> Error {
    let signed = match key {
        Some(k) => format!("REFUSED, although signed by the key \"{}\"", name::show(k.signer.signer_name())),
        None => "REFUSED; the request is not signed, since the zone has no tsig_name in runbook.toml".to_string(),
    };
    let (why, hint, retryable) = match code {
        ResponseCode::Refused => {
            (signed, "see the server's log: either it does not allow this key the update (allow-update or update-policy in BIND, acl in Knot), or it refuses the content, such as an MX to a name without an address".to_string(), false)
        }
        ResponseCode::NotAuth | ResponseCode::NotZone => (
            "it is not the primary of this zone".to_string(),
            "set \"server\" of the zone in runbook.toml to its primary name server".to_string(),
            false,
        ),
        ResponseCode::NotImp => (
            "it does not know dynamic updates".to_string(),
            "use a provider that fits this server, or enable updates there".to_string(),
            false,
        ),
        ResponseCode::ServFail => (
            "it failed itself (SERVFAIL)".to_string(),
            "see the name server's log; often it cannot write the zone's journal".to_string(),
            true,
        ),
        other => (format!("response code {}", other.to_str()), "see the name server's log".to_string(), false),
    };
    Error::new(Code::DNS_REFUSED, format!("the name server {server} {what} {zone}: {why}")).hint(hint).retryable(retryable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ttl: u32, values: &[&str]) -> RrSet {
        let name = Name::from_ascii("shop.example.test.").unwrap();
        RrSet::new(name, RecordType::A, ttl, values.iter().map(|s| (*s).to_string()).collect())
    }

    #[test]
    fn an_update_replaces_the_set_only_when_it_is_as_it_was_read() {
        let (before, after) = (set(3600, &["192.0.2.1"]), set(60, &["192.0.2.2", "192.0.2.3"]));
        let origin = Name::from_ascii("example.test.").unwrap();
        let change = Change { name: before.name.clone(), ty: RecordType::A, before: Some(before), after: Some(after) };
        let m = Message::from_vec(&update(&origin, &[change]).unwrap().to_vec().unwrap()).unwrap();
        assert_eq!((m.op_code, m.zones().len()), (OpCode::Update, 1));
        let shown = |r: &Record| format!("{} {} {} {} {}", r.name, r.ttl, r.dns_class, r.record_type(), presentation(&r.data));
        let pre: Vec<String> = m.prerequisites().iter().map(shown).collect();
        assert_eq!(pre, ["shop.example.test. 0 IN A 192.0.2.1"]);
        let upd: Vec<(u32, DNSClass, RecordType)> = m.updates().iter().map(|r| (r.ttl, r.dns_class, r.record_type())).collect();
        assert_eq!(
            upd,
            [(0, DNSClass::ANY, RecordType::A), (60, DNSClass::IN, RecordType::A), (60, DNSClass::IN, RecordType::A)],
            "delete the set, then add both values"
        );
    }

    #[test]
    fn a_new_set_must_not_exist_and_a_deletion_adds_nothing() {
        let origin = Name::from_ascii("example.test.").unwrap();
        let s = set(60, &["192.0.2.1"]);
        let add = Change { name: s.name.clone(), ty: s.ty, before: None, after: Some(s.clone()) };
        let m = update(&origin, &[add]).unwrap();
        assert_eq!((m.prerequisites()[0].dns_class, m.updates().len()), (DNSClass::NONE, 1));
        let del = Change { name: s.name.clone(), ty: s.ty, before: Some(s), after: None };
        let m = update(&origin, &[del]).unwrap();
        assert_eq!((m.prerequisites()[0].dns_class, m.updates().len(), m.updates()[0].dns_class), (DNSClass::IN, 1, DNSClass::ANY));
    }
}
