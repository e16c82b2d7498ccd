//! Dynamic updates (RFC 2136, section 3): all of a message or nothing.

use std::collections::BTreeMap;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::zone::{RrSet, Sets, Zone, set_serial, soa_of};

/// Does what the message asks for and returns what to answer.
pub(super) fn apply(zone: &mut Zone, request: &Message) -> ResponseCode {
    match try_apply(zone, request) {
        Ok(()) => ResponseCode::NoError,
        Err(code) => code,
    }
}

fn try_apply(zone: &mut Zone, request: &Message) -> Result<(), ResponseCode> {
    let origin = zone.origin().clone();
    // 3.1: the zone section.
    let [section] = request.queries.as_slice() else { return Err(ResponseCode::FormErr) };
    if section.query_type() != RecordType::SOA {
        return Err(ResponseCode::FormErr);
    }
    if section.name() != &origin || section.query_class() != DNSClass::IN {
        return Err(ResponseCode::NotAuth);
    }
    prerequisites(&zone.sets, &origin, &request.answers)?;
    for r in &request.authorities {
        prescan(r, &origin)?;
    }
    // 3.4.2: on a copy, which is taken over whole or not at all.
    let mut sets = zone.sets.clone();
    for r in &request.authorities {
        change(&mut sets, &origin, r);
    }
    if sets == zone.sets {
        return Ok(());
    }
    let before = zone.soa().map_or(0, |s| s.serial);
    if soa_of(&sets, &origin).map_or(0, |s| s.serial) == before {
        set_serial(&mut sets, &origin, before.wrapping_add(1));
    }
    zone.commit(sets).map_err(|_| ResponseCode::ServFail)
}

fn empty(r: &Record) -> bool {
    matches!(r.data, RData::Update0(_))
}

/// Types that no record can have (RFC 2136, 3.4.1.2), `ANY` apart.
fn meta(ty: RecordType) -> bool {
    // 249 TKEY, 250 TSIG, 251 IXFR, 252 AXFR, 253 MAILB, 254 MAILA, 41 OPT.
    matches!(u16::from(ty), 41 | 249..=254)
}

fn in_use(sets: &Sets, name: &Name) -> bool {
    sets.keys().any(|(n, _)| n == name)
}

/// 3.2: what must hold before anything is done.
fn prerequisites(sets: &Sets, origin: &Name, list: &[Record]) -> Result<(), ResponseCode> {
    let mut exact: BTreeMap<(Name, RecordType), Vec<&RData>> = BTreeMap::new();
    for r in list {
        let ty = r.record_type();
        if r.ttl != 0 {
            return Err(ResponseCode::FormErr);
        }
        if !origin.zone_of(&r.name) {
            return Err(ResponseCode::NotZone);
        }
        let exists = sets.contains_key(&(r.name.clone(), ty));
        match r.dns_class {
            DNSClass::ANY | DNSClass::NONE if !empty(r) => return Err(ResponseCode::FormErr),
            DNSClass::ANY if ty == RecordType::ANY && !in_use(sets, &r.name) => return Err(ResponseCode::NXDomain),
            DNSClass::NONE if ty == RecordType::ANY && in_use(sets, &r.name) => return Err(ResponseCode::YXDomain),
            DNSClass::ANY | DNSClass::NONE if ty == RecordType::ANY => {}
            DNSClass::ANY if !exists => return Err(ResponseCode::NXRRSet),
            DNSClass::NONE if exists => return Err(ResponseCode::YXRRSet),
            DNSClass::ANY | DNSClass::NONE => {}
            DNSClass::IN if !empty(r) => exact.entry((r.name.clone(), ty)).or_default().push(&r.data),
            _ => return Err(ResponseCode::FormErr),
        }
    }
    for (key, want) in exact {
        let same =
            sets.get(&key).is_some_and(|have| want.iter().all(|w| have.data.contains(w)) && have.data.iter().all(|h| want.contains(&h)));
        if !same {
            return Err(ResponseCode::NXRRSet);
        }
    }
    Ok(())
}

/// 3.4.1: whether an update makes sense at all.
fn prescan(r: &Record, origin: &Name) -> Result<(), ResponseCode> {
    let ty = r.record_type();
    if !origin.zone_of(&r.name) {
        return Err(ResponseCode::NotZone);
    }
    let sane = match r.dns_class {
        DNSClass::IN => !empty(r) && ty != RecordType::ANY && !meta(ty),
        DNSClass::ANY => r.ttl == 0 && empty(r) && !meta(ty),
        DNSClass::NONE => r.ttl == 0 && !empty(r) && ty != RecordType::ANY && !meta(ty),
        _ => false,
    };
    if sane { Ok(()) } else { Err(ResponseCode::FormErr) }
}

/// 3.4.2.2 to 3.4.2.4: one update. What the RFC says is silently ignored, is.
fn change(sets: &mut Sets, origin: &Name, r: &Record) {
    let ty = r.record_type();
    let key = (r.name.clone(), ty);
    let apex = r.name == *origin;
    match r.dns_class {
        DNSClass::IN => add(sets, origin, r),
        DNSClass::ANY if ty == RecordType::ANY => {
            sets.retain(|(n, t), _| n != &r.name || (apex && matches!(t, RecordType::SOA | RecordType::NS)));
        }
        DNSClass::ANY => {
            if !(apex && matches!(ty, RecordType::SOA | RecordType::NS)) {
                sets.remove(&key);
            }
        }
        _ => {
            let Some(set) = sets.get_mut(&key) else { return };
            if ty == RecordType::SOA || (apex && ty == RecordType::NS && set.data.len() == 1) {
                return;
            }
            set.data.retain(|d| d != &r.data);
            if set.data.is_empty() {
                sets.remove(&key);
            }
        }
    }
}

fn add(sets: &mut Sets, origin: &Name, r: &Record) {
    let ty = r.record_type();
    let alias = sets.contains_key(&(r.name.clone(), RecordType::CNAME));
    if ty == RecordType::CNAME {
        if sets.keys().any(|(n, t)| n == &r.name && *t != RecordType::CNAME) {
            return;
        }
    } else if alias {
        return;
    }
    if let RData::SOA(new) = &r.data {
        // Serial arithmetic (RFC 1982).
        let newer = soa_of(sets, origin).is_some_and(|old| new.serial.wrapping_sub(old.serial).wrapping_sub(1) < 0x7fff_ffff);
        if r.name != *origin || !newer {
            return;
        }
    }
    let set = sets.entry((r.name.clone(), ty)).or_insert(RrSet { ttl: r.ttl, data: vec![] });
    // A set has one TTL (RFC 2181, 5.2): the newest given.
    set.ttl = r.ttl;
    if matches!(ty, RecordType::CNAME | RecordType::SOA) {
        set.data.clear();
    }
    if !set.data.contains(&r.data) {
        set.data.push(r.data.clone());
    }
}
