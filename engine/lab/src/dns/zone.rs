//! The zone's records in memory and in one JSON file that is replaced whole at each change.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use base64::Engine as _;
use hickory_proto::rr::rdata::{A, CNAME, NS, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinEncodable};
use runbook_core::Result;
use serde::{Deserialize, Serialize};

use super::fqdn;
use crate::failed;
use crate::layout::{read_json, write_json};

/// The records of one name and type.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RrSet {
    pub ttl: u32,
    pub data: Vec<RData>,
}

/// Names are compared without regard to case (as `Name` does).
pub(crate) type Sets = BTreeMap<(Name, RecordType), RrSet>;

/// What a question finds.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Records, with the aliases that lead to them.
    Found(Vec<Record>),
    /// The name is there and has nothing of this type.
    NoData,
    /// There is no such name.
    NoName,
}

/// An authoritative zone.
pub(crate) struct Zone {
    origin: Name,
    pub(super) sets: Sets,
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    /// For people.
    text: String,
    /// The record as it goes over the wire, in base64.
    wire: String,
}

impl Zone {
    /// A zone with its SOA and name server only.
    pub fn empty(origin: &str, server: Ipv4Addr, path: PathBuf) -> Result<Zone> {
        let origin = fqdn(origin)?;
        let under = |label: &str| fqdn(&format!("{label}.{origin}"));
        let soa = SOA::new(under("ns1")?, under("hostmaster")?, 1, 3600, 600, 86_400, 5);
        let mut zone = Zone { origin: origin.clone(), sets: Sets::new(), path };
        let ns1 = under("ns1")?;
        zone.put(ns1.clone(), 60, RData::A(A(server)));
        zone.put(origin.clone(), 60, RData::SOA(soa));
        zone.put(origin, 60, RData::NS(NS(ns1)));
        Ok(zone)
    }

    /// Adds an address.
    pub fn a(&mut self, name: &str, ttl: u32, addr: Ipv4Addr) -> Result<()> {
        self.put(fqdn(name)?, ttl, RData::A(A(addr)));
        Ok(())
    }

    /// Adds an alias.
    pub fn cname(&mut self, name: &str, ttl: u32, to: &str) -> Result<()> {
        self.put(fqdn(name)?, ttl, RData::CNAME(CNAME(fqdn(to)?)));
        Ok(())
    }

    /// Adds a text.
    pub fn txt(&mut self, name: &str, ttl: u32, text: &str) -> Result<()> {
        self.put(fqdn(name)?, ttl, RData::TXT(TXT::new(vec![text.to_string()])));
        Ok(())
    }

    fn put(&mut self, name: Name, ttl: u32, data: RData) {
        let set = self.sets.entry((name, data.record_type())).or_insert(RrSet { ttl, data: vec![] });
        set.ttl = ttl;
        set.data.push(data);
    }

    /// Reads the saved zone; `None` when there is none.
    pub fn load(origin: &str, path: PathBuf) -> Result<Option<Zone>> {
        let Some(saved) = read_json::<Vec<Saved>>(&path)? else { return Ok(None) };
        let mut zone = Zone { origin: fqdn(origin)?, sets: Sets::new(), path };
        for s in saved {
            let damaged = || failed(zone.path.display(), "a saved record cannot be read");
            let wire = base64::engine::general_purpose::STANDARD.decode(&s.wire).map_err(|_| damaged())?;
            let record = Record::from_bytes(&wire).map_err(|_| damaged())?;
            zone.put(record.name, record.ttl, record.data);
        }
        Ok(Some(zone))
    }

    /// Writes `sets` to disk and only then takes them over, so that an acknowledged update is never lost and a failed one never seen.
    pub fn commit(&mut self, sets: Sets) -> Result<()> {
        let b64 = base64::engine::general_purpose::STANDARD;
        let mut saved = vec![];
        for ((name, _), set) in &sets {
            for data in &set.data {
                let record = Record::from_rdata(name.clone(), set.ttl, data.clone());
                let wire = record.to_bytes().map_err(|e| failed("a record cannot be encoded", e))?;
                saved.push(Saved { text: record.to_string(), wire: b64.encode(wire) });
            }
        }
        write_json(&self.path, &saved)?;
        self.sets = sets;
        Ok(())
    }

    pub fn save(&mut self) -> Result<()> {
        self.commit(self.sets.clone())
    }

    /// Takes over the records of another zone; the serial goes on rising, so that caches and secondaries notice.
    pub fn replace(&mut self, other: Zone) -> Result<()> {
        let serial = self.soa().map_or(0, |s| s.serial).wrapping_add(1);
        self.origin = other.origin;
        let mut sets = other.sets;
        set_serial(&mut sets, &self.origin, serial);
        self.commit(sets)
    }

    pub fn origin(&self) -> &Name {
        &self.origin
    }

    pub fn soa(&self) -> Option<&SOA> {
        soa_of(&self.sets, &self.origin)
    }

    fn records(&self, name: &Name, ty: RecordType) -> Option<Vec<Record>> {
        let ((owner, _), set) = self.sets.get_key_value(&(name.clone(), ty))?;
        Some(set.data.iter().map(|d| Record::from_rdata(owner.clone(), set.ttl, d.clone())).collect())
    }

    /// Answers a question, following aliases within the zone.
    pub fn lookup(&self, name: &Name, ty: RecordType) -> Answer {
        if ty == RecordType::ANY {
            let all: Vec<Record> = self.sets.keys().filter(|(n, _)| n == name).filter_map(|(n, t)| self.records(n, *t)).flatten().collect();
            if !all.is_empty() {
                return Answer::Found(all);
            }
        }
        let mut found = vec![];
        let mut name = name.clone();
        // A loop of aliases ends with what was found so far.
        for _ in 0..8 {
            if let Some(records) = self.records(&name, ty) {
                found.extend(records);
                break;
            }
            let Some(alias) = self.records(&name, RecordType::CNAME) else { break };
            let target = alias.iter().find_map(|r| if let RData::CNAME(c) = &r.data { Some(c.0.clone()) } else { None });
            found.extend(alias);
            match target {
                Some(t) if self.origin.zone_of(&t) => name = t,
                _ => break,
            }
        }
        if !found.is_empty() {
            Answer::Found(found)
        } else if self.sets.keys().any(|(n, _)| name.zone_of(n)) {
            // The name itself, or one below it.
            Answer::NoData
        } else {
            Answer::NoName
        }
    }

    /// The SOA that goes with a negative answer; its TTL says how long the "no" may be kept (RFC 2308).
    pub fn negative(&self) -> Vec<Record> {
        let mut soa = self.records(&self.origin, RecordType::SOA).unwrap_or_default();
        for r in &mut soa {
            if let RData::SOA(s) = &r.data {
                r.ttl = r.ttl.min(s.minimum);
            }
        }
        soa
    }

    /// Every record between two copies of the SOA.
    pub fn transfer(&self) -> Vec<Record> {
        let soa = self.records(&self.origin, RecordType::SOA).unwrap_or_default();
        let rest = self.sets.keys().filter(|(_, t)| *t != RecordType::SOA).filter_map(|(n, t)| self.records(n, *t)).flatten();
        soa.iter().cloned().chain(rest).chain(soa.iter().cloned()).collect()
    }
}

pub(super) fn soa_of<'a>(sets: &'a Sets, origin: &Name) -> Option<&'a SOA> {
    match sets.get(&(origin.clone(), RecordType::SOA))?.data.first()? {
        RData::SOA(s) => Some(s),
        _ => None,
    }
}

pub(super) fn set_serial(sets: &mut Sets, origin: &Name, serial: u32) {
    if let Some(set) = sets.get_mut(&(origin.clone(), RecordType::SOA)) {
        for d in &mut set.data {
            if let RData::SOA(s) = d {
                s.serial = serial;
            }
        }
    }
}
