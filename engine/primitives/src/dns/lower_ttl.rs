//! `Zone.lower_ttl`, `Zone.restore_ttl`, `Zone.wait_ttl`: the TTL before, and the wait until caches have dropped it.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use hickory_proto::rr::{Name, RecordType};
use runbook_core::primitive::{Cx, Outcome, Primitive};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::units::show_duration;
use runbook_core::{Code, Error, Result, Value};

use super::provider::{Change, Zone};
use super::record::parse_type;
use super::servers::{Said, ask_all, authoritative};
use super::ttl::{Lowered, fact_key, still_running};
use super::{name, ttl_of, ttl_seconds};

/// The types of record by which users find a service.
pub const FOLLOWED: [RecordType; 3] = [RecordType::A, RecordType::AAAA, RecordType::CNAME];

/// Reads what is remembered of a record set's TTL.
///
/// # Errors
/// `RB0002` when the store cannot be read.
pub fn remembered(cx: &Cx, name: &Name, ty: RecordType) -> Result<Option<Lowered>> {
    Ok(cx.facts.get(&fact_key(name, ty))?.as_ref().and_then(Lowered::from_value))
}

fn types(call: &Call) -> Result<Vec<RecordType>> {
    call.opt_str("type").map_or(Ok(FOLLOWED.to_vec()), |t| Ok(vec![parse_type(t)?]))
}

/// Lowers a TTL.
pub struct LowerTtl(Spec);

impl Default for LowerTtl {
    fn default() -> Self {
        LowerTtl(
            Spec::method(
                "Zone",
                "lower_ttl",
                Effect::Converge,
                "Lowers the TTL of a name, keeps its values, and remembers the old TTL and when every cache must have dropped it.\n\n\
                 It ends once every authoritative name server hands out the low TTL, since the old one runs from then on. `wait_ttl` \
                 waits it out, `point` refuses to move the name before, and `restore_ttl` brings the old TTL back. Lowering again \
                 forgets neither the first TTL nor a longer one that still runs. There is nothing to do for a name that a provider's proxy \
                 answers for.",
            )
            .arg("name", Ty::Str, "The name: `shop`, `@` for the zone itself, or a full name.")
            .arg("ttl", Ty::Duration, "The low TTL, in whole seconds.")
            .option("type", Ty::Str, "The type of record; A, AAAA and CNAME, as far as they exist, by default.")
            .option("within", Ty::Duration, "How long all name servers may take to follow; 2m by default.")
            .example(r#"zone("example.com").lower_ttl("shop", "60s");"#)
            .errors(&[Code::DNS_QUERY, Code::DNS_REFUSED, Code::DNS_TSIG, Code::DNS_RECORD, Code::DNS_API, Code::DNS_WAIT]),
        )
    }
}

#[async_trait]
impl Primitive for LowerTtl {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let zone = Zone::of(cx, call)?;
        let name = zone.owner(call.str(0))?;
        let to = ttl_seconds(call.duration(1).unwrap_or_default())?;
        let mut sets = Vec::new();
        for ty in types(call)? {
            sets.extend(zone.read(cx, &name, ty).await?);
        }
        if sets.is_empty() {
            return Err(zone.named(no_record(&name)));
        }
        // What the provider's proxy answers for has no TTL of its own, and is moved without one.
        if sets.iter().all(|s| s.proxied) {
            return Ok(Outcome::unchanged(
                (),
                format!("{} is proxied: it is moved at the proxy, without a wait for caches", name::show(&name)),
            ));
        }
        sets.retain(|s| !s.proxied);

        // The old TTL goes on record before it is destroyed: dying in between would lose it for ever.
        let mut facts = BTreeMap::new();
        let mut changes = Vec::new();
        for set in &sets {
            let before = remembered(cx, &name, set.ty)?;
            let unfinished = before.as_ref().is_some_and(|b| b.gone_at.is_none());
            if set.ttl > to || unfinished {
                let begun = Lowered::begin(before, set.ttl, to.min(set.ttl), &set.values, cx.clock.now());
                facts.insert(set.ty, begun);
            }
            if set.ttl > to {
                changes.push(Change::to(Some(set.clone()), set.with_ttl(to)));
            }
        }
        if facts.is_empty() {
            let is = sets.iter().map(|s| s.ttl).max().unwrap_or(0);
            return Ok(Outcome::unchanged((), format!("the TTL of {} is {} already", name::show(&name), ttl_of(is))));
        }
        cx.facts.put(facts.iter().map(|(ty, f)| (fact_key(&name, *ty), f.to_value())).collect())?;
        let changed = !changes.is_empty();
        if changed {
            zone.apply(cx, changes).await?;
        }

        let within = call.opt_duration("within").unwrap_or(Duration::from_secs(120));
        for ty in facts.keys() {
            wait_followed(cx, &zone, &name, *ty, to, within).await?;
        }
        let now = cx.clock.now();
        let longest = facts.values().map(|f| f.longest).max().unwrap_or(0);
        let mut out = Outcome { changed: Some(changed), ..Outcome::default() };
        for (ty, fact) in facts {
            out = out.fact(fact_key(&name, ty), fact.confirm(now).to_value());
        }
        Ok(out.note(format!("caches may hold the old answer for {}", ttl_of(longest))))
    }
}

fn no_record(name: &Name) -> Error {
    Error::new(Code::DNS_RECORD, format!("{} has no record whose TTL could be changed", name::show(name)))
        .hint("check the name, or give the type: #{ type: \"MX\" }")
}

/// Waits until no authoritative server hands out a longer TTL.
async fn wait_followed(cx: &Cx, zone: &Zone, name: &Name, ty: RecordType, to: u32, within: Duration) -> Result<()> {
    let servers = authoritative(cx, zone).await.map_err(|e| zone.named(e))?;
    let begun = tokio::time::Instant::now();
    loop {
        let said = ask_all(cx, &servers, name, ty).await?;
        let behind: Vec<String> = said
            .iter()
            .filter_map(|(server, said)| match said {
                Said::Set(Some(s)) if s.ttl <= to => None,
                Said::Set(Some(s)) => Some(format!("{} answers TTL {}", server.shown, ttl_of(s.ttl))),
                other => Some(format!("{} answers {}", server.shown, other.show())),
            })
            .collect();
        if behind.is_empty() {
            return Ok(());
        }
        if begun.elapsed() >= within {
            return Err(zone.named(
                Error::new(Code::DNS_WAIT, format!("not every name server has the new TTL of {}: {}", name::show(name), behind.join("; ")))
                    .hint("check the transfers from the primary to these servers; the old TTL runs until they follow")
                    .retryable(true),
            ));
        }
        cx.progress("name servers with the low TTL", (servers.len() - behind.len()) as u64, Some(servers.len() as u64), "servers");
        cx.sleep(Duration::from_secs(1)).await?;
    }
}

/// Restores a TTL.
pub struct RestoreTtl(Spec);

impl Default for RestoreTtl {
    fn default() -> Self {
        RestoreTtl(
            Spec::method(
                "Zone",
                "restore_ttl",
                Effect::Converge,
                "Brings back the TTL that a name had before its first `lower_ttl`, and keeps its values.\n\nThere is nothing to do \
                 when it was never lowered.",
            )
            .arg("name", Ty::Str, "The name: `shop`, `@` for the zone itself, or a full name.")
            .option("type", Ty::Str, "The type of record; A, AAAA and CNAME by default.")
            .example(r#"zone("example.com").restore_ttl("shop");"#)
            .errors(&[Code::DNS_QUERY, Code::DNS_REFUSED, Code::DNS_TSIG, Code::DNS_RECORD, Code::DNS_API]),
        )
    }
}

#[async_trait]
impl Primitive for RestoreTtl {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let zone = Zone::of(cx, call)?;
        let name = zone.owner(call.str(0))?;
        let mut changes = Vec::new();
        let mut facts = BTreeMap::new();
        let mut ttl = 0;
        for ty in types(call)? {
            let Some(fact) = remembered(cx, &name, ty)? else { continue };
            ttl = ttl.max(fact.original);
            facts.insert(fact_key(&name, ty), Value::Unit);
            if let Some(set) = zone.read(cx, &name, ty).await?.filter(|s| s.ttl != fact.original && !s.proxied) {
                let after = set.with_ttl(fact.original);
                changes.push(Change::to(Some(set), after));
            }
        }
        if facts.is_empty() {
            return Ok(Outcome::unchanged((), format!("the TTL of {} was never lowered", name::show(&name))));
        }
        let mut out = if changes.is_empty() {
            Outcome::unchanged((), format!("the TTL of {} is {} again already", name::show(&name), ttl_of(ttl)))
        } else {
            zone.apply(cx, changes).await?;
            Outcome::changed(()).note(format!("the TTL of {} is {} again", name::show(&name), ttl_of(ttl)))
        };
        out.facts = facts;
        Ok(out)
    }
}

/// Waits for an old TTL to run out.
pub struct WaitTtl(Spec);

impl Default for WaitTtl {
    fn default() -> Self {
        WaitTtl(
            Spec::method(
                "Zone",
                "wait_ttl",
                Effect::Read,
                "Waits until the TTL that a name had before `lower_ttl` has run out, so that no cache holds it any more.\n\nThe moment \
                 is kept from when the TTL was lowered: a controller that dies while it waits waits only for the rest.",
            )
            .arg("name", Ty::Str, "The name: `shop`, `@` for the zone itself, or a full name.")
            .option("type", Ty::Str, "The type of record; A, AAAA and CNAME by default.")
            .example(r#"zone("example.com").wait_ttl("shop");"#)
            .errors(&[Code::DNS_TTL]),
        )
    }
}

#[async_trait]
impl Primitive for WaitTtl {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let zone = Zone::of(cx, call)?;
        let name = zone.owner(call.str(0))?;
        let mut facts = Vec::new();
        for ty in types(call)? {
            facts.extend(remembered(cx, &name, ty)?);
        }
        if facts.is_empty() {
            return Ok(Outcome { note: Some(format!("the TTL of {} was never lowered", name::show(&name))), ..Outcome::default() });
        }
        if facts.iter().any(|f| f.gone_at.is_none()) {
            return Err(zone.named(
                Error::new(
                    Code::DNS_TTL,
                    format!("lower_ttl of {} has begun and never ended, so that the wait has no end", name::show(&name)),
                )
                .hint("call lower_ttl again first"),
            ));
        }
        let left = |cx: &Cx| facts.iter().map(|f| still_running(f, cx.clock.now())).max().unwrap_or_default();
        let total = left(cx);
        loop {
            let rest = left(cx);
            if rest.is_zero() {
                break;
            }
            let done = total.saturating_sub(rest).as_secs();
            cx.progress(format!("the old TTL runs out in {}", in_seconds(rest)), done, Some(total.as_secs()), "seconds");
            cx.sleep(rest.min(Duration::from_secs(1))).await?;
        }
        Ok(Outcome { note: Some(format!("no cache holds the old TTL of {} any more", name::show(&name))), ..Outcome::default() })
    }
}

/// A duration in whole seconds, rounded up: what a person waiting wants to read.
pub fn in_seconds(d: Duration) -> String {
    show_duration(Duration::from_secs(u64::try_from(d.as_millis().div_ceil(1000)).unwrap_or(u64::MAX)))
}
