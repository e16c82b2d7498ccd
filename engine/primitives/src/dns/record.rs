//! Record sets in a form that every provider shares: values are text in the presentation form of zone files, lossless.
//!
//! Scripts see a friendlier form: a TXT value is its plain text, names may be relative to the zone.

use hickory_proto::rr::rdata::NULL;
use hickory_proto::rr::{Name, RData, RecordType};
use runbook_core::{Code, Error, Record, Result, Value};

use super::codec::{self, Piece, type_name};
use super::name;

/// All records of one name and type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RrSet {
    /// The full name.
    pub name: Name,
    /// The type.
    pub ty: RecordType,
    /// Time to live in seconds.
    pub ttl: u32,
    /// Values in presentation form, sorted, without repetition.
    pub values: Vec<String>,
    /// Whether the provider answers with addresses of its own proxy and passes requests on to these values. Such a set is moved at the
    /// proxy, without a wait for caches; its TTL is the provider's.
    pub proxied: bool,
    /// How the provider chooses between several sets of this name and type; `None` for a plain set.
    pub routing: Option<Routing>,
}

/// By what a provider chooses one of several record sets of the same name and type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routing {
    /// What tells this set from the others.
    pub id: String,
    /// The rule.
    pub policy: Policy,
    /// The health check without whose success the set is not answered.
    pub health_check: Option<String>,
}

/// The rule by which one of several sets is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Policy {
    /// By chance, in proportion to these weights.
    Weight(u8),
    /// The one whose region answers the asker soonest.
    Latency(String),
    /// The primary (`true`) while it is healthy, else the secondary.
    Failover(bool),
    /// A rule that is not made here, as the provider names it; it is kept and compared.
    Other(String),
}

impl RrSet {
    /// Makes a set; the order of values does not matter.
    pub fn new(name: Name, ty: RecordType, ttl: u32, mut values: Vec<String>) -> Self {
        values.sort();
        values.dedup();
        RrSet { name, ty, ttl, values, proxied: false, routing: None }
    }

    /// The set with another TTL.
    pub fn with_ttl(&self, ttl: u32) -> Self {
        RrSet { ttl, ..self.clone() }
    }

    /// The values as scripts and messages show them.
    pub fn shown(&self) -> Vec<String> {
        self.values.iter().map(|v| shown(self.ty, v)).collect()
    }

    /// `shop.example.com A` for messages.
    pub fn label(&self) -> String {
        format!("{} {}", name::show(&self.name), type_name(self.ty))
    }

    /// Whether both are the same set: name, type and, with a routing policy, what tells sets apart.
    pub fn same_place(&self, other: &RrSet) -> bool {
        self.name == other.name && self.ty == other.ty && self.id() == other.id()
    }

    /// What tells it from other sets of its name and type.
    pub fn id(&self) -> Option<&str> {
        self.routing.as_ref().map(|r| r.id.as_str())
    }

    /// Everything but the name, for messages: `60s 192.0.2.1, 192.0.2.2`.
    pub fn content(&self) -> String {
        let mut out = format!("{} with TTL {}", self.shown().join(", "), super::ttl_of(self.ttl));
        if self.proxied {
            out = format!("{} by proxy", self.shown().join(", "));
        }
        if let Some(r) = &self.routing {
            out.push_str(&format!(", {}", r.show()));
        }
        out
    }

    /// The script's value of type `DnsRecord`.
    pub fn to_value(&self) -> Value {
        let Value::Record(mut r) = record_value(&self.name, self.ty, self.ttl, self.shown()) else { return Value::Unit };
        r.fields.insert("proxied".into(), self.proxied.into());
        if let Some(routing) = &self.routing {
            r.fields.insert("id".into(), routing.id.as_str().into());
            r.fields.insert("routing".into(), routing.show().into());
        }
        Value::Record(r)
    }
}

impl Routing {
    /// For messages: `"old": weight 10`.
    pub fn show(&self) -> String {
        let policy = match &self.policy {
            Policy::Weight(n) => format!("weight {n}"),
            Policy::Latency(region) => format!("by latency, {region}"),
            Policy::Failover(primary) => format!("failover, {}", if *primary { "primary" } else { "secondary" }),
            Policy::Other(name) => name.clone(),
        };
        let check = self.health_check.as_ref().map_or(String::new(), |c| format!(", health check {c}"));
        format!("\"{}\": {policy}{check}", self.id)
    }
}

/// The script's value for a record set; no values when there is none.
pub fn record_value(name: &Name, ty: RecordType, ttl: u32, values: Vec<String>) -> Value {
    Record::new(
        "DnsRecord",
        [
            ("name", name::show(name).into()),
            ("type", type_name(ty).into()),
            ("exists", (!values.is_empty()).into()),
            ("values", Value::List(values.into_iter().map(Value::from).collect())),
            ("ttl", std::time::Duration::from_secs(u64::from(ttl)).into()),
            ("proxied", false.into()),
            ("id", Value::Unit),
            ("routing", Value::Unit),
        ],
    )
    .into()
}

fn bad(ty: RecordType, text: &str, why: impl std::fmt::Display) -> Error {
    Error::new(Code::DNS_RECORD, format!("{text:?} is not the value of a record of type {}: {why}", type_name(ty)))
}

/// Reads a record type.
///
/// # Errors
/// `RB0604` when it is none, or not one that zones hold.
pub fn parse_type(text: &str) -> Result<RecordType> {
    let ty = codec::type_of(text);
    let meta = [RecordType::ANY, RecordType::AXFR, RecordType::IXFR, RecordType::OPT, RecordType::TSIG, RecordType::ZERO];
    ty.filter(|t| !meta.contains(t)).ok_or_else(|| {
        Error::new(Code::DNS_RECORD, format!("\"{text}\" is not a type of record")).hint("such as A, AAAA, CNAME, MX, TXT, SRV, CAA, NS")
    })
}

/// Turns a value as a script writes it into presentation form.
///
/// # Errors
/// `RB0604` naming the value and what is wrong.
pub fn from_script(origin: &Name, ty: RecordType, text: &str) -> Result<String> {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let absolute = |t: &str| name::target(origin, t).map(|n| name::absolute(&n));
    let made = match (ty, fields.as_slice()) {
        (RecordType::TXT, _) => {
            let chunks: Vec<&[u8]> = if text.is_empty() { vec![b""] } else { text.as_bytes().chunks(255).collect() };
            chunks.into_iter().map(codec::quoted).collect::<Vec<_>>().join(" ")
        }
        (RecordType::CNAME | RecordType::NS | RecordType::PTR, [t]) => absolute(t)?,
        (RecordType::MX, [preference, t]) => format!("{preference} {}", absolute(t)?),
        (RecordType::SRV, [p, w, port, t]) => format!("{p} {w} {port} {}", absolute(t)?),
        (RecordType::MX, _) => return Err(bad(ty, text, "it is written as \"10 mail\"")),
        (RecordType::SRV, _) => return Err(bad(ty, text, "it is written as \"priority weight port target\"")),
        _ => text.trim().to_string(),
    };
    // Through the wire form and back, so that equal values are equal texts (2001:DB8::0 and 2001:db8::).
    Ok(presentation(&rdata(ty, &made)?))
}

/// A value as scripts and messages show it.
pub fn shown(ty: RecordType, presentation: &str) -> String {
    match ty {
        RecordType::TXT => {
            strings(presentation).map_or_else(|| presentation.to_string(), |parts| String::from_utf8_lossy(&parts.concat()).into_owned())
        }
        _ => presentation.to_string(),
    }
}

/// The presentation form of a record's data.
pub fn presentation(data: &RData) -> String {
    codec::wire_of(data).map_or_else(|| data.to_string(), |wire| codec::to_text(data.record_type(), &wire))
}

/// Reads the presentation form.
///
/// # Errors
/// `RB0604` when it is not a value of that type.
pub fn rdata(ty: RecordType, text: &str) -> Result<RData> {
    let wire = codec::to_wire(ty, text, None).map_err(|why| bad(ty, text, why))?;
    Ok(RData::Unknown { code: ty, rdata: NULL::with(wire) })
}

/// A value as a provider or a zone file writes it, in the one form that is compared. What cannot be read stays as it is.
pub fn canonical(ty: RecordType, text: &str, origin: Option<&Name>) -> String {
    codec::to_wire(ty, text, origin).map_or_else(|_| text.trim().to_string(), |wire| codec::to_text(ty, &wire))
}

/// The counted strings of a TXT value.
pub fn strings(presentation: &str) -> Option<Vec<Vec<u8>>> {
    let pieces = codec::pieces(presentation).ok()?;
    pieces.into_iter().map(|p| if let Piece::Quoted(b) = p { Some(b) } else { None }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::TXT;
    use proptest::prelude::*;

    fn zone() -> Name {
        name::origin("example.test").unwrap()
    }

    #[test]
    fn script_values_become_canonical() {
        for (ty, text, made) in [
            (RecordType::A, " 192.0.2.7 ", "192.0.2.7"),
            (RecordType::AAAA, "2001:DB8::0:1", "2001:db8::1"),
            (RecordType::CNAME, "shop", "shop.example.test."),
            (RecordType::MX, "10  mail", "10 mail.example.test."),
            (RecordType::SRV, "0 5 5060 sip.Other.net.", "0 5 5060 sip.other.net."),
            (RecordType::TXT, "v=spf1 \"x\" -all", r#""v=spf1 \"x\" -all""#),
            (RecordType::TXT, "", "\"\""),
            (RecordType::CAA, "0 issue \"letsencrypt.org\"", "0 issue \"letsencrypt.org\""),
        ] {
            assert_eq!(from_script(&zone(), ty, text).unwrap(), made);
        }
        let long = from_script(&zone(), RecordType::TXT, &"k".repeat(300)).unwrap();
        assert_eq!(long.matches('"').count(), 4, "two strings of at most 255 bytes");
        assert_eq!(shown(RecordType::TXT, &long), "k".repeat(300));
        for (ty, text) in [(RecordType::A, "2001:db8::1"), (RecordType::A, "shop"), (RecordType::MX, "mail"), (RecordType::MX, "x mail")] {
            assert_eq!(from_script(&zone(), ty, text).unwrap_err().code, Code::DNS_RECORD, "{text}");
        }
    }

    #[test]
    fn types_are_known_or_refused() {
        assert_eq!(parse_type("aaaa").unwrap(), RecordType::AAAA);
        for bad in ["AXFR", "ANY", "ADDRESS", ""] {
            assert!(parse_type(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn text_records_keep_every_byte_and_every_boundary(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..4)) {
            let data = RData::TXT(TXT::from_bytes(parts.iter().map(Vec::as_slice).collect()));
            let text = presentation(&data);
            prop_assert_eq!(strings(&text).unwrap(), parts);
            prop_assert_eq!(presentation(&rdata(RecordType::TXT, &text).unwrap()), text);
        }

        #[test]
        fn no_text_makes_the_readers_panic(text in ".{0,40}") {
            for ty in [RecordType::A, RecordType::MX, RecordType::TXT, RecordType::CAA, RecordType::SRV, RecordType::TLSA] {
                let _ = rdata(ty, &text);
                let _ = from_script(&zone(), ty, &text);
            }
        }
    }
}
