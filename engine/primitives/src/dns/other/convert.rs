//! Record values between the presentation form and that of the crate `dns-update`.

use dns_update::{
    CAARecord, DnsRecord, DnsRecordType, KeyValue, MXRecord, SRVRecord, TLSARecord, TlsaCertUsage, TlsaMatching, TlsaSelector,
};
use hickory_proto::rr::RecordType;
use runbook_core::{Code, Error, Result};

use crate::dns::codec::{quoted, type_name};
use crate::dns::record::{canonical, strings};

/// The crate's word for a type that it knows.
pub(super) fn kind(ty: RecordType) -> Option<DnsRecordType> {
    Some(match ty {
        RecordType::A => DnsRecordType::A,
        RecordType::AAAA => DnsRecordType::AAAA,
        RecordType::CNAME => DnsRecordType::CNAME,
        RecordType::NS => DnsRecordType::NS,
        RecordType::MX => DnsRecordType::MX,
        RecordType::TXT => DnsRecordType::TXT,
        RecordType::SRV => DnsRecordType::SRV,
        RecordType::TLSA => DnsRecordType::TLSA,
        RecordType::CAA => DnsRecordType::CAA,
        _ => return None,
    })
}

/// A value of ours as the crate has it.
///
/// # Errors
/// `RB0604` for one that it cannot hold.
pub(super) fn record(ty: RecordType, text: &str) -> Result<DnsRecord> {
    let cannot = |why: &str| {
        Error::new(Code::DNS_RECORD, format!("the value {text:?} of type {} cannot be written through dns-update: {why}", type_name(ty)))
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    let name = |t: &str| t.trim_end_matches('.').to_string();
    let odd = || cannot("it is not of the usual form");
    Ok(match (ty, words.as_slice()) {
        (RecordType::A, [a]) => DnsRecord::A(a.parse().map_err(|_| odd())?),
        (RecordType::AAAA, [a]) => DnsRecord::AAAA(a.parse().map_err(|_| odd())?),
        (RecordType::CNAME, [t]) => DnsRecord::CNAME(name(t)),
        (RecordType::NS, [t]) => DnsRecord::NS(name(t)),
        (RecordType::MX, [p, t]) => DnsRecord::MX(MXRecord { priority: p.parse().map_err(|_| odd())?, exchange: name(t) }),
        (RecordType::SRV, [p, w, port, t]) => DnsRecord::SRV(SRVRecord {
            priority: p.parse().map_err(|_| odd())?,
            weight: w.parse().map_err(|_| odd())?,
            port: port.parse().map_err(|_| odd())?,
            target: name(t),
        }),
        (RecordType::TXT, _) => {
            let whole = strings(text).ok_or_else(odd)?.concat();
            DnsRecord::TXT(String::from_utf8(whole).map_err(|_| cannot("it is not text"))?)
        }
        (RecordType::TLSA, [usage, selector, matching, data @ ..]) => DnsRecord::TLSA(TLSARecord {
            cert_usage: match *usage {
                "0" => TlsaCertUsage::PkixTa,
                "1" => TlsaCertUsage::PkixEe,
                "2" => TlsaCertUsage::DaneTa,
                "3" => TlsaCertUsage::DaneEe,
                _ => return Err(odd()),
            },
            selector: match *selector {
                "0" => TlsaSelector::Full,
                "1" => TlsaSelector::Spki,
                _ => return Err(odd()),
            },
            matching: match *matching {
                "0" => TlsaMatching::Raw,
                "1" => TlsaMatching::Sha256,
                "2" => TlsaMatching::Sha512,
                _ => return Err(odd()),
            },
            cert_data: hex(&data.concat()).ok_or_else(odd)?,
        }),
        (RecordType::CAA, [flags, tag, ..]) => {
            let issuer_critical = match *flags {
                "0" => false,
                "128" => true,
                _ => return Err(cannot("its flags")),
            };
            let value = text.split_once(tag).map(|(_, v)| v.trim()).and_then(strings).ok_or_else(odd)?.concat();
            let value = String::from_utf8(value).map_err(|_| odd())?;
            let mut parts = value.split(';').map(str::trim);
            let name = parts.next().filter(|n| !n.is_empty()).map(str::to_string);
            let options = parts
                .filter(|p| !p.is_empty())
                .map(|p| p.split_once('=').map(|(k, v)| KeyValue { key: k.trim().into(), value: v.trim().into() }).ok_or_else(odd))
                .collect::<Result<Vec<_>>>()?;
            DnsRecord::CAA(match *tag {
                "issue" => CAARecord::Issue { issuer_critical, name, options },
                "issuewild" => CAARecord::IssueWild { issuer_critical, name, options },
                "iodef" => CAARecord::Iodef { issuer_critical, url: value },
                _ => return Err(cannot("its tag")),
            })
        }
        _ => return Err(odd()),
    })
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
    let digits = digits.filter(|d| d.len() % 2 == 0)?;
    Some(digits.chunks(2).filter_map(|p| if let [high, low] = p { Some(high << 4 | low) } else { None }).collect())
}

/// A value of the crate in the one form that is compared.
///
/// # Errors
/// `RB0606` when it is of another type than was asked for.
pub(super) fn value(ty: RecordType, record: DnsRecord) -> Result<String> {
    let name = |t: &str| format!("{}.", t.trim_end_matches('.'));
    let text = match record {
        DnsRecord::A(a) if ty == RecordType::A => a.to_string(),
        DnsRecord::AAAA(a) if ty == RecordType::AAAA => a.to_string(),
        DnsRecord::CNAME(t) if ty == RecordType::CNAME => name(&t),
        DnsRecord::NS(t) if ty == RecordType::NS => name(&t),
        DnsRecord::MX(m) if ty == RecordType::MX => format!("{} {}", m.priority, name(&m.exchange)),
        DnsRecord::SRV(s) if ty == RecordType::SRV => format!("{} {} {} {}", s.priority, s.weight, s.port, name(&s.target)),
        DnsRecord::TXT(t) if ty == RecordType::TXT => {
            let chunks: Vec<&[u8]> = if t.is_empty() { vec![b""] } else { t.as_bytes().chunks(255).collect() };
            chunks.into_iter().map(quoted).collect::<Vec<_>>().join(" ")
        }
        DnsRecord::TLSA(t) if ty == RecordType::TLSA => t.to_string(),
        DnsRecord::CAA(c) if ty == RecordType::CAA => {
            let (flags, tag, value) = c.decompose();
            format!("{flags} {tag} {}", quoted(value.as_bytes()))
        }
        other => {
            return Err(Error::new(
                Code::DNS_API,
                format!("the service answers {other:?} when asked for records of type {}", type_name(ty)),
            ));
        }
    };
    Ok(canonical(ty, &text, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_go_there_and_back_unchanged() {
        let long = format!("\"{}\" \"{}\"", "k".repeat(255), "l".repeat(20));
        for (ty, text) in [
            (RecordType::A, "192.0.2.1"),
            (RecordType::AAAA, "2001:db8::1"),
            (RecordType::CNAME, "shop.example.test."),
            (RecordType::NS, "ns1.example.test."),
            (RecordType::MX, "10 mail.example.test."),
            (RecordType::SRV, "0 5 5060 sip.example.test."),
            (RecordType::TXT, r#""v=spf1 \"x\" -all""#),
            (RecordType::TXT, long.as_str()),
            (RecordType::TXT, "\"\""),
            (RecordType::CAA, "0 issue \"letsencrypt.org\""),
            (RecordType::CAA, "128 iodef \"mailto:ca@example.test\""),
            (RecordType::CAA, "0 issue \";\""),
        ] {
            let text = canonical(ty, text, None);
            let there = record(ty, &text).unwrap();
            if text != "0 issue \";\"" {
                assert_eq!(value(ty, there).unwrap(), text);
            }
        }
        let tlsa = canonical(RecordType::TLSA, &format!("3 1 1 {}", "ab".repeat(32)), None);
        assert_eq!(value(RecordType::TLSA, record(RecordType::TLSA, &tlsa).unwrap()).unwrap().to_lowercase(), tlsa.to_lowercase());
    }

    #[test]
    fn what_the_crate_cannot_hold_is_refused_by_name() {
        for (ty, text) in [
            (RecordType::TXT, r#""\255""#),
            (RecordType::CAA, "7 issue \"x\""),
            (RecordType::CAA, "0 contactemail \"x\""),
            (RecordType::TLSA, "9 1 1 ab"),
            (RecordType::TLSA, "3 1 1 abc"),
            (RecordType::A, "shop"),
        ] {
            let e = record(ty, text).unwrap_err();
            assert!(e.code == Code::DNS_RECORD && e.message.contains("dns-update"), "{text}: {e}");
        }
        assert!(kind(RecordType::PTR).is_none());
    }
}
