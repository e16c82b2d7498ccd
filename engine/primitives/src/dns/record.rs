//! Record sets in a form that every provider shares: values are text in the presentation form of zone files, lossless.
//!
//! Scripts see a friendlier form: a TXT value is its plain text, names may be relative to the zone.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX, NS, NULL, PTR, SRV, TXT};
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder, NameEncoding};
use runbook_core::digest::hex;
use runbook_core::{Code, Error, Record, Result, Value};

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
}

impl RrSet {
    /// Makes a set; the order of values does not matter.
    pub fn new(name: Name, ty: RecordType, ttl: u32, mut values: Vec<String>) -> Self {
        values.sort();
        values.dedup();
        RrSet { name, ty, ttl, values }
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
        format!("{} {}", name::show(&self.name), self.ty)
    }

    /// The script's value of type `DnsRecord`.
    pub fn to_value(&self) -> Value {
        record_value(&self.name, self.ty, self.ttl, self.shown())
    }
}

/// The script's value for a record set; no values when there is none.
pub fn record_value(name: &Name, ty: RecordType, ttl: u32, values: Vec<String>) -> Value {
    Record::new(
        "DnsRecord",
        [
            ("name", name::show(name).into()),
            ("type", ty.to_string().into()),
            ("exists", (!values.is_empty()).into()),
            ("values", Value::List(values.into_iter().map(Value::from).collect())),
            ("ttl", std::time::Duration::from_secs(u64::from(ttl)).into()),
        ],
    )
    .into()
}

fn bad(ty: RecordType, text: &str, why: impl std::fmt::Display) -> Error {
    Error::new(Code::DNS_RECORD, format!("{text:?} is not the value of a record of type {ty}: {why}"))
}

/// Reads a record type.
///
/// # Errors
/// `RB0604` when it is none, or not one that zones hold.
pub fn parse_type(text: &str) -> Result<RecordType> {
    let ty = RecordType::from_str(&text.to_ascii_uppercase()).ok();
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
            quoted(chunks)
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
            unquoted(presentation).map_or_else(|| presentation.to_string(), |parts| String::from_utf8_lossy(&parts.concat()).into_owned())
        }
        _ => presentation.to_string(),
    }
}

/// The presentation form of a record's data.
pub fn presentation(data: &RData) -> String {
    match data {
        RData::A(a) => a.0.to_string(),
        RData::AAAA(a) => a.0.to_string(),
        RData::CNAME(n) => name::absolute(&n.0),
        RData::NS(n) => name::absolute(&n.0),
        RData::PTR(n) => name::absolute(&n.0),
        RData::MX(mx) => format!("{} {}", mx.preference, name::absolute(&mx.exchange)),
        RData::SRV(s) => format!("{} {} {} {}", s.priority, s.weight, s.port, name::absolute(&s.target)),
        RData::TXT(t) => quoted(t.txt_data.iter().map(AsRef::as_ref)),
        other => {
            let text = other.to_string();
            match RData::try_from_str(other.record_type(), &text) {
                Ok(back) if back == *other => text,
                _ => generic(other),
            }
        }
    }
}

/// RFC 3597: what no reader knows is still kept byte for byte.
fn generic(data: &RData) -> String {
    let mut bytes = Vec::new();
    let mut encoder = BinEncoder::new(&mut bytes);
    let mut encoder = encoder.with_name_encoding(NameEncoding::Uncompressed);
    if data.emit(&mut encoder).is_err() {
        return format!("{data}");
    }
    drop(encoder);
    format!("\\# {} {}", bytes.len(), hex(&bytes))
}

/// Reads the presentation form.
///
/// # Errors
/// `RB0604` when it is not a value of that type.
pub fn rdata(ty: RecordType, text: &str) -> Result<RData> {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let full = |t: &str| Name::from_ascii(t).map_err(|e| bad(ty, text, e));
    let number = |t: &str| t.parse::<u16>().map_err(|_| bad(ty, text, format!("{t} is not a number from 0 to 65535")));
    if let ["\\#", length, hex @ ..] = fields.as_slice() {
        let hex: String = hex.concat();
        let bytes: Option<Vec<u8>> =
            (0..hex.len()).step_by(2).map(|i| hex.get(i..i + 2).and_then(|h| u8::from_str_radix(h, 16).ok())).collect();
        let bytes = bytes.filter(|b| length.parse() == Ok(b.len())).ok_or_else(|| bad(ty, text, "the bytes do not fit the length"))?;
        return Ok(RData::Unknown { code: ty, rdata: NULL::with(bytes) });
    }
    Ok(match (ty, fields.as_slice()) {
        (RecordType::A, [a]) => RData::A(A(a.parse::<Ipv4Addr>().map_err(|_| bad(ty, text, "not an IPv4 address"))?)),
        (RecordType::AAAA, [a]) => RData::AAAA(AAAA(a.parse::<Ipv6Addr>().map_err(|_| bad(ty, text, "not an IPv6 address"))?)),
        (RecordType::CNAME, [n]) => RData::CNAME(CNAME(full(n)?)),
        (RecordType::NS, [n]) => RData::NS(NS(full(n)?)),
        (RecordType::PTR, [n]) => RData::PTR(PTR(full(n)?)),
        (RecordType::MX, [p, n]) => RData::MX(MX::new(number(p)?, full(n)?)),
        (RecordType::SRV, [p, w, port, n]) => RData::SRV(SRV::new(number(p)?, number(w)?, number(port)?, full(n)?)),
        (RecordType::TXT, _) => {
            let parts = unquoted(text).ok_or_else(|| bad(ty, text, "the quotes do not close"))?;
            RData::TXT(TXT::from_bytes(parts.iter().map(Vec::as_slice).collect()))
        }
        (RecordType::A | RecordType::AAAA | RecordType::CNAME | RecordType::NS | RecordType::PTR, _) => {
            return Err(bad(ty, text, "it is one word"));
        }
        _ => RData::try_from_str(ty, text).map_err(|e| bad(ty, text, e))?,
    })
}

fn quoted<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut out = String::new();
    for part in parts {
        out.push_str(if out.is_empty() { "\"" } else { " \"" });
        for &b in part {
            match b {
                b'"' | b'\\' => {
                    out.push('\\');
                    out.push(char::from(b));
                }
                0x20..=0x7e => out.push(char::from(b)),
                _ => out.push_str(&format!("\\{b:03}")),
            }
        }
        out.push('"');
    }
    out
}

fn unquoted(text: &str) -> Option<Vec<Vec<u8>>> {
    let mut parts = Vec::new();
    let mut bytes = text.bytes().peekable();
    loop {
        while bytes.next_if_eq(&b' ').is_some() {}
        match bytes.next() {
            None => return Some(parts),
            Some(b'"') => {}
            Some(_) => return None,
        }
        let mut part = Vec::new();
        loop {
            match bytes.next()? {
                b'"' => break,
                b'\\' => {
                    let b = bytes.next()?;
                    if b.is_ascii_digit() {
                        let (d, e) = (bytes.next()?, bytes.next()?);
                        let text = [b, d, e];
                        part.push(std::str::from_utf8(&text).ok()?.parse().ok()?);
                    } else {
                        part.push(b);
                    }
                }
                b => part.push(b),
            }
        }
        parts.push(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
            prop_assert_eq!(rdata(RecordType::TXT, &presentation(&data)).unwrap(), data);
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
