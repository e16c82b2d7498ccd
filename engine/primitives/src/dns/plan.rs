//! The plan of a change of a whole zone: what differs between what a provider holds and what is wanted, and what is too dangerous to do.
//!
//! Providers make no plans: they list and apply.

use hickory_proto::rr::{Name, RecordType};
use runbook_core::{Code, Error, Record, Result, Value};

use super::name;
use super::provider::Change;
use super::record::RrSet;

/// Below so many record sets, any share of them may be deleted.
pub const SMALL_ZONE: usize = 10;
/// The share of a zone's record sets, in percent, that may be deleted at once.
pub const MAX_DELETED: i64 = 30;

/// What the operator allows beyond what is usual.
#[derive(Debug, Clone, Copy)]
pub struct Allow {
    /// Whether the name servers of the zone itself may be changed.
    pub root_ns: bool,
    /// The share of record sets, in percent, that may be deleted.
    pub max_deleted: i64,
}

impl Default for Allow {
    fn default() -> Self {
        Allow { root_ns: false, max_deleted: MAX_DELETED }
    }
}

/// Types that whoever signs the zone makes: they are not carried from one provider to another.
pub fn is_signature(ty: RecordType) -> bool {
    // TYPE63 is ZONEMD, TYPE65534 BIND's notes on signing.
    matches!(
        ty,
        RecordType::RRSIG
            | RecordType::NSEC
            | RecordType::NSEC3
            | RecordType::NSEC3PARAM
            | RecordType::DNSKEY
            | RecordType::CDS
            | RecordType::CDNSKEY
    ) || matches!(u16::from(ty), 63 | 65534)
}

/// Whether a set belongs to the content of the zone, and not to the provider that holds it.
pub fn is_content(set: &RrSet, origin: &Name, allow: &Allow) -> bool {
    let apex = set.name == *origin;
    set.ty != RecordType::SOA && !is_signature(set.ty) && (allow.root_ns || !apex || set.ty != RecordType::NS)
}

/// What it takes to make `have` into `want`, deletions first. Sets of `have` that `want` lacks stay unless `delete`.
pub fn diff(have: &[RrSet], want: &[RrSet], delete: bool) -> Vec<Change> {
    let find = |list: &[RrSet], set: &RrSet| list.iter().find(|o| o.same_place(set)).cloned();
    let mut gone = Vec::new();
    let mut rest = Vec::new();
    for set in want {
        let before = find(have, set);
        if before.as_ref() != Some(set) {
            rest.push(Change::to(before, set.clone()));
        }
    }
    for set in have {
        if find(want, set).is_some() {
            continue;
        }
        // A CNAME excludes everything else at its name: where one takes the place of the other, the old one goes in any case.
        let excluded = want.iter().any(|w| w.name == set.name && (w.ty == RecordType::CNAME) != (set.ty == RecordType::CNAME));
        if delete || excluded {
            gone.push(Change::delete(set.clone()));
        }
    }
    gone.extend(rest);
    gone
}

/// Refuses a plan that deletes too much of a zone.
///
/// # Errors
/// `RB0607` naming the share, the limit and the option that lifts it.
pub fn check_deleted(origin: &Name, have: usize, changes: &[Change], allow: &Allow) -> Result<()> {
    let gone = changes.iter().filter(|c| c.after.is_none()).count();
    // A name that gets another type instead is not lost.
    let replaced = changes.iter().filter(|c| c.after.is_none() && changes.iter().any(|o| o.after.is_some() && o.name == c.name)).count();
    let lost = gone - replaced;
    let share = lost * 100;
    if have < SMALL_ZONE || i64::try_from(share).unwrap_or(i64::MAX) <= allow.max_deleted * i64::try_from(have).unwrap_or(i64::MAX) {
        return Ok(());
    }
    let percent = share.div_ceil(have.max(1));
    let list: Vec<String> = changes.iter().filter(|c| c.after.is_none()).take(5).map(Change::label).collect();
    let more = if gone > list.len() { ", …" } else { "" };
    Err(Error::new(
        Code::DNS_LIMIT,
        format!(
            "{lost} of {have} record sets of {} would be deleted ({percent}%), and {}% is the limit: {}{more}; nothing was changed",
            name::show(origin),
            allow.max_deleted,
            list.join(", ")
        ),
    )
    .hint(format!("see whether the source is whole; if this is meant: #{{ max_deleted: {percent} }}")))
}

/// The script's value of type `ZoneChanges`.
pub fn changes_value(changes: &[Change], unchanged: usize, kept: &[RrSet]) -> Value {
    let list = |f: &dyn Fn(&Change) -> Option<String>| Value::List(changes.iter().filter_map(f).map(Value::from).collect());
    Record::new(
        "ZoneChanges",
        [
            (
                "created",
                list(&|c| if let (None, Some(a)) = (&c.before, &c.after) { Some(format!("{}: {}", c.label(), a.content())) } else { None }),
            ),
            (
                "updated",
                list(&|c| {
                    let (Some(b), Some(a)) = (&c.before, &c.after) else { return None };
                    Some(format!("{}: {}, was {}", c.label(), a.content(), b.content()))
                }),
            ),
            (
                "deleted",
                list(&|c| {
                    if let (Some(b), None) = (&c.before, &c.after) { Some(format!("{}: was {}", c.label(), b.content())) } else { None }
                }),
            ),
            ("kept", Value::List(kept.iter().map(|s| Value::from(s.label())).collect())),
            ("unchanged", Value::Int(i64::try_from(unchanged).unwrap_or(i64::MAX))),
        ],
    )
    .into()
}

/// `3 created, 1 updated, none deleted`.
pub fn counts(changes: &[Change]) -> String {
    let n = |f: fn(&Change) -> bool| match changes.iter().filter(|c| f(c)).count() {
        0 => "none".to_string(),
        n => n.to_string(),
    };
    format!(
        "{} created, {} updated, {} deleted",
        n(|c| c.before.is_none()),
        n(|c| c.before.is_some() && c.after.is_some()),
        n(|c| c.after.is_none())
    )
}

/// What differs between two zones, for messages: each with what one and the other has.
pub fn differences(here: &[RrSet], there: &[RrSet], there_name: &str) -> Vec<String> {
    diff(here, there, true)
        .iter()
        .map(|c| {
            let show = |s: &Option<RrSet>| s.as_ref().map_or_else(|| "nothing".to_string(), RrSet::content);
            format!("{}: {} here, {} at {there_name}", c.label(), show(&c.before), show(&c.after))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, ty: RecordType, value: &str) -> RrSet {
        RrSet::new(name::owner(&origin(), name).unwrap(), ty, 60, vec![value.into()])
    }
    fn origin() -> Name {
        name::origin("example.test").unwrap()
    }
    fn zone(n: usize) -> Vec<RrSet> {
        (0..n).map(|i| set(&format!("h{i}"), RecordType::A, "192.0.2.1")).collect()
    }

    #[test]
    fn only_what_differs_is_changed_and_a_second_time_nothing() {
        let have = vec![set("a", RecordType::A, "192.0.2.1"), set("b", RecordType::A, "192.0.2.1"), set("c", RecordType::A, "192.0.2.1")];
        let want = vec![set("a", RecordType::A, "192.0.2.1"), set("b", RecordType::A, "192.0.2.2"), set("d", RecordType::A, "192.0.2.1")];
        let shown = |c: Vec<Change>| c.iter().map(|c| (c.label(), c.before.is_some(), c.after.is_some())).collect::<Vec<_>>();
        let all = diff(&have, &want, true);
        assert_eq!(
            shown(all.clone()),
            [
                ("c.example.test A".to_string(), true, false),
                ("b.example.test A".to_string(), true, true),
                ("d.example.test A".to_string(), false, true)
            ]
        );
        assert_eq!(counts(&all), "1 created, 1 updated, 1 deleted");
        assert_eq!(shown(diff(&have, &want, false)).len(), 2, "nothing is deleted unless asked");
        assert!(diff(&want, &want, true).is_empty());
    }

    #[test]
    fn a_cname_takes_the_place_of_addresses_even_when_nothing_else_is_deleted() {
        let have = vec![set("a", RecordType::A, "192.0.2.1"), set("b", RecordType::A, "192.0.2.1")];
        let want = vec![set("a", RecordType::CNAME, "b.example.test.")];
        let plan = diff(&have, &want, false);
        assert_eq!(plan.iter().map(Change::label).collect::<Vec<_>>(), ["a.example.test A", "a.example.test CNAME"]);
    }

    #[test]
    fn more_than_a_third_of_a_zone_is_not_deleted_unless_told() {
        let lost = |have: usize, gone: usize, max: i64| {
            let all = zone(have);
            let changes: Vec<Change> = all.iter().take(gone).cloned().map(Change::delete).collect();
            check_deleted(&origin(), have, &changes, &Allow { max_deleted: max, ..Allow::default() })
        };
        assert!(lost(9, 9, 30).is_ok(), "a small zone");
        assert!(lost(10, 3, 30).is_ok());
        let e = lost(10, 4, 30).unwrap_err();
        assert_eq!(e.code, Code::DNS_LIMIT);
        assert_eq!(
            e.message,
            "4 of 10 record sets of example.test would be deleted (40%), and 30% is the limit: h0.example.test A, h1.example.test A, \
             h2.example.test A, h3.example.test A; nothing was changed"
        );
        assert_eq!(e.hint.as_deref(), Some("see whether the source is whole; if this is meant: #{ max_deleted: 40 }"));
        assert!(lost(10, 4, 40).is_ok());
        assert!(lost(200, 200, 100).is_ok() && lost(200, 61, 30).is_err());
    }

    #[test]
    fn what_belongs_to_the_provider_is_left_alone() {
        let allow = Allow::default();
        let is = |name: &str, ty, allow: &Allow| is_content(&set(name, ty, "x."), &origin(), allow);
        assert!(!is("@", RecordType::NS, &allow) && !is("@", RecordType::SOA, &allow) && !is("a", RecordType::RRSIG, &allow));
        assert!(is("sub", RecordType::NS, &allow) && is("@", RecordType::MX, &allow) && is("sub", RecordType::DS, &allow));
        assert!(is("@", RecordType::NS, &Allow { root_ns: true, ..allow }) && !is("@", RecordType::SOA, &Allow { root_ns: true, ..allow }));
    }
}
