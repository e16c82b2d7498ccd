//! Whole zones: `Zone.records`, `Zone.export_text`, `Zone.import_text`, `Zone.compare`, `Zone.copy_from`.

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::{Code, Error, Record, Result, Value};

use super::plan::{Allow, MAX_DELETED, changes_value, check_deleted, counts, diff, differences, is_content, is_signature};
use super::provider::Zone;
use super::record::{RrSet, parse_type};
use super::{name, ttl_of, zone_file};

const ERRORS: &[Code] = &[Code::DNS_QUERY, Code::DNS_REFUSED, Code::DNS_TSIG, Code::DNS_RECORD, Code::DNS_API, Code::DNS_LIMIT];

/// The types of results.
pub fn types(r: &mut Registry) {
    let texts = || Ty::List(Box::new(Ty::Str));
    r.add_type(
        TypeSpec::new("ZoneChanges", "What a change of a whole zone did, record set by record set.")
            .field("created", texts(), "The sets that were not there, with what they hold now.")
            .field("updated", texts(), "The sets that were changed, with what they hold and held.")
            .field("deleted", texts(), "The sets that were removed, with what they held.")
            .field("kept", texts(), "The sets that the source does not have and that stayed.")
            .field("unchanged", Ty::Int, "How many sets were so already."),
    );
    r.add_type(
        TypeSpec::new("ZoneComparison", "How two zones differ.")
            .field("equal", Ty::Bool, "Whether they have the same records with the same TTLs.")
            .field("differences", texts(), "What differs, with what each of the two has.")
            .field("same", Ty::Int, "How many record sets are the same."),
    );
}

fn spec(method: &'static str, effect: Effect, doc: &'static str) -> Spec {
    Spec::method("Zone", method, effect, doc).errors(ERRORS)
}

fn with_allowances(s: Spec) -> Spec {
    s.option("delete", Ty::Bool, "Whether record sets that the source does not have are removed; false by default.")
        .option("max_deleted", Ty::Int, "The share in percent of a zone of ten record sets or more that may be removed; 30 by default.")
        .option("root_ns", Ty::Bool, "Whether the name servers of the zone itself are carried too; false by default.")
}

fn allowances(call: &Call) -> Result<Allow> {
    let max_deleted = call.opt_int("max_deleted").unwrap_or(MAX_DELETED);
    if !(0..=100).contains(&max_deleted) {
        return Err(Error::new(Code::DNS_LIMIT, format!("max_deleted is a share from 0 to 100 percent, not {max_deleted}")));
    }
    Ok(Allow { root_ns: call.opt_bool("root_ns"), max_deleted })
}

/// Lists records.
pub struct Records(Spec);

impl Default for Records {
    fn default() -> Self {
        Records(
            spec(
                "records",
                Effect::Read,
                "Lists every record set of the zone, as its provider has it.\n\nA name server must allow the transfer of the zone (AXFR).",
            )
            .option("type", Ty::Str, "Only record sets of this type.")
            .returns(Ty::List(Box::new(Ty::Record("DnsRecord"))))
            .example(r#"for r in zone("example.com").records(#{ type: "MX" }) { log(`${r.name} ${r.values}`); }"#),
        )
    }
}

#[async_trait]
impl Primitive for Records {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let zone = Zone::of(cx, call)?;
        let only = call.opt_str("type").map(parse_type).transpose()?;
        let sets = zone.list(cx).await?;
        let found = sets.iter().filter(|s| only.is_none_or(|t| s.ty == t)).map(RrSet::to_value);
        Ok(Value::List(found.collect()).into())
    }
}

/// Writes a zone as text.
pub struct ExportText(Spec);

impl Default for ExportText {
    fn default() -> Self {
        ExportText(
            spec(
                "export_text",
                Effect::Read,
                "Gives the whole zone as the text of a zone file, which every name server reads.\n\nDNSSEC signatures are left out: who \
                 holds the zone makes them. Record sets with a routing policy, which zone files cannot hold, are an error.",
            )
            .returns(Ty::Str)
            .example(r#"host("vault").write_file("zones/example.com.zone", zone("example.com").export_text());"#),
        )
    }
}

#[async_trait]
impl Primitive for ExportText {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let zone = Zone::of(cx, call)?;
        let mut sets = zone.list(cx).await?;
        sets.retain(|s| !is_signature(s.ty));
        if let Some(s) = sets.iter().find(|s| s.routing.is_some()) {
            return Err(zone.named(
                Error::new(Code::DNS_RECORD, format!("{} has a routing policy, which a zone file cannot hold", s.label()))
                    .hint("list them with records()"),
            ));
        }
        Ok(Value::from(zone_file::write(&zone.origin, &sets)).into())
    }
}

/// Takes a zone from text.
pub struct ImportText(Spec);

impl Default for ImportText {
    fn default() -> Self {
        ImportText(with_allowances(
            spec(
                "import_text",
                Effect::Converge,
                "Makes the zone hold what the text of a zone file says; a second time there is nothing to do.\n\nWhat differs is planned \
                 first and goes in one change where the provider can. The SOA and the zone's own name servers belong to the provider and \
                 are left alone. Removing more than 30% of a zone of ten record sets or more is refused unless `max_deleted` allows it.",
            )
            .arg("text", Ty::Str, "The zone file. `$INCLUDE` and `$GENERATE` are refused.")
            .returns(Ty::Record("ZoneChanges"))
            .example(
                r#"let done = zone("example.com").import_text(host("old").read("cat /etc/bind/example.com.zone").stdout, #{ delete: true });
for line in done.updated { log(line); }"#,
            ),
        ))
    }
}

#[async_trait]
impl Primitive for ImportText {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let zone = Zone::of(cx, call)?;
        let want = zone_file::read(&zone.origin, call.str(0)).map_err(|e| zone.named(e))?;
        take_over(cx, &zone, want, call, "the zone file").await
    }
}

/// Compares two zones.
pub struct Compare(Spec);

impl Default for Compare {
    fn default() -> Self {
        Compare(
            spec(
                "compare",
                Effect::Read,
                "Compares the zone with another, record set by record set, with TTLs, as their providers have them.\n\nThe SOA, DNSSEC \
                 signatures and, unless `root_ns`, the name servers of the zone itself are not compared: they belong to the provider.",
            )
            .arg("other", Ty::Record("Zone"), "The other zone, of the same name in DNS.")
            .option("root_ns", Ty::Bool, "Whether the name servers of the zone itself are compared too.")
            .returns(Ty::Record("ZoneComparison"))
            .example(r#"log(zone("example.com").compare(zone("example.com at the new provider")).differences);"#),
        )
    }
}

fn other(cx: &Cx, zone: &Zone, call: &Call) -> Result<Zone> {
    let named = call.arg(0).as_record().and_then(|r| r.name.as_deref()).unwrap_or("");
    let other = Zone::named_in(cx, named)?;
    if other.origin != zone.origin {
        return Err(zone.named(
            Error::new(
                Code::DNS_RECORD,
                format!(
                    "\"{named}\" is the zone {}, and \"{}\" is {}: only one zone at two providers is compared or copied",
                    name::show(&other.origin),
                    zone.name,
                    name::show(&zone.origin)
                ),
            )
            .hint("give one of them zone = \"…\" in runbook.toml, the name that it has in DNS"),
        ));
    }
    Ok(other)
}

#[async_trait]
impl Primitive for Compare {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let zone = Zone::of(cx, call)?;
        let other = other(cx, &zone, call)?;
        let allow = Allow { root_ns: call.opt_bool("root_ns"), ..Allow::default() };
        // One of both can be listed, or there is nothing to compare by.
        let (mut here, mut there) = if zone.provider.lists() {
            let here = zone.list(cx).await?;
            let there = other.list_or_read(cx, &here).await?;
            (here, there)
        } else {
            let there = other.list(cx).await?;
            (zone.list_or_read(cx, &there).await?, there)
        };
        for list in [&mut here, &mut there] {
            list.retain(|s| is_content(s, &zone.origin, &allow));
        }
        let found = differences(&here, &there, &other.name);
        let same = here.iter().filter(|s| there.contains(s)).count();
        Ok(Value::from(Record::new(
            "ZoneComparison",
            [
                ("equal", found.is_empty().into()),
                ("differences", Value::List(found.into_iter().map(Value::from).collect())),
                ("same", Value::Int(i64::try_from(same).unwrap_or(i64::MAX))),
            ],
        ))
        .into())
    }
}

/// Copies a zone from another provider.
pub struct CopyFrom(Spec);

impl Default for CopyFrom {
    fn default() -> Self {
        CopyFrom(with_allowances(
            spec(
                "copy_from",
                Effect::Converge,
                "Makes the zone hold the records of the same zone at another provider; a second time there is nothing to do.\n\nThis moves \
                 a zone before its delegation is changed. What differs is planned first and goes in one change where the provider can, \
                 and is compared afterwards. The SOA, DNSSEC signatures and the zone's own name servers belong to the provider and are \
                 left alone; a TTL outside of the provider's limits becomes the nearest one, and the operator is told. Removing more \
                 than 30% of a zone of ten record sets or more is refused unless `max_deleted` allows it.",
            )
            .arg("other", Ty::Record("Zone"), "The zone to copy, of the same name in DNS.")
            .returns(Ty::Record("ZoneChanges"))
            .example(
                r#"let done = zone("example.com at the new provider").copy_from(zone("example.com"), #{ delete: true });
log(`${done.created.len()} created, ${done.updated.len()} updated`);"#,
            ),
        ))
    }
}

#[async_trait]
impl Primitive for CopyFrom {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let zone = Zone::of(cx, call)?;
        let other = other(cx, &zone, call)?;
        let want = other.list(cx).await?;
        if want.iter().any(|s| s.ty == hickory_proto::rr::RecordType::DNSKEY && s.name == zone.origin) {
            cx.message(format!(
                "{} is signed at \"{}\": its signatures and keys are not copied. Take its DS away at the parent zone and wait out its TTL before the delegation is changed, or the name fails for resolvers that validate",
                name::show(&zone.origin),
                other.name
            ));
        }
        take_over(cx, &zone, want, call, &format!("\"{}\"", other.name)).await
    }
}

/// Plans, refuses what is dangerous, applies and compares.
async fn take_over(cx: &Cx, zone: &Zone, mut want: Vec<RrSet>, call: &Call, source: &str) -> Result<Outcome> {
    let (allow, delete) = (allowances(call)?, call.opt_bool("delete"));
    if delete && !zone.provider.lists() {
        return Err(zone.named(
            Error::new(
                Code::DNS_RECORD,
                format!("what {source} does not have cannot be removed: the zone cannot be listed at its provider"),
            )
            .hint("leave out delete; remove what is known to be too much with delete(name, type)"),
        ));
    }
    want.retain(|s| is_content(s, &zone.origin, &allow));
    let mut have = zone.list_or_read(cx, &want).await?;
    let whole = have.len();
    have.retain(|s| is_content(s, &zone.origin, &allow));
    for set in &mut want {
        let fitted = zone.provider.fit(set.clone());
        if fitted.ttl != set.ttl && !fitted.proxied {
            cx.message(format!(
                "{}: the provider of \"{}\" does not take the TTL {}; it becomes {}",
                set.label(),
                zone.name,
                ttl_of(set.ttl),
                ttl_of(fitted.ttl)
            ));
        }
        // A proxy in front of a name is the provider's affair: what stands behind it is compared.
        if let Some(h) = have.iter().find(|h| h.same_place(set) && h.proxied && h.values == set.values && !set.proxied) {
            *set = h.clone();
            continue;
        }
        *set = if zone.provider.can().proxy { fitted } else { RrSet { proxied: false, ..fitted } };
    }
    let changes = diff(&have, &want, delete);
    check_deleted(&zone.origin, whole, &changes, &allow).map_err(|e| zone.named(e))?;
    let unchanged = want.iter().filter(|s| have.contains(s)).count();
    let kept: Vec<RrSet> = have
        .iter()
        .filter(|h| !want.iter().any(|w| w.same_place(h)) && !changes.iter().any(|c| c.before.as_ref() == Some(h)))
        .cloned()
        .collect();
    let value = changes_value(&changes, unchanged, &kept);
    if changes.is_empty() {
        let more = if kept.is_empty() { String::new() } else { format!("; {} of its own stay", kept.len()) };
        return Ok(Outcome::unchanged(
            value,
            format!("{} holds what {source} has already ({unchanged} record sets){more}", name::show(&zone.origin)),
        ));
    }
    let note = format!("{}: {}", name::show(&zone.origin), counts(&changes));
    cx.message(format!("{note}; the plan is in the result"));
    zone.apply_allowed(cx, changes, &allow).await?;
    Ok(Outcome::changed(value).note(note))
}
