//! Record sets with a routing policy: `Zone.routed`, `Zone.set_routed`, `Zone.delete_routed`, `Zone.set_weights`.

use std::collections::BTreeMap;

use async_trait::async_trait;
use hickory_proto::rr::{Name, RecordType};
use runbook_core::primitive::{Cx, Outcome, Primitive};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::{Code, Error, Result, Value};

use super::codec::type_name;
use super::provider::{Change, Zone};
use super::read::texts;
use super::record::{Policy, Routing, RrSet, from_script, parse_type};
use super::{name, ttl_seconds};

const ERRORS: &[Code] = &[Code::DNS_QUERY, Code::DNS_RECORD, Code::DNS_API, Code::DNS_WAIT];

fn spec(method: &'static str, effect: Effect, doc: &'static str) -> Spec {
    Spec::method("Zone", method, effect, doc)
        .arg("name", Ty::Str, "The name: `shop`, `@` for the zone itself, or a full name.")
        .arg("type", Ty::Str, "The type of record: `A`, `AAAA`, `CNAME`, …")
        .errors(ERRORS)
}

/// The sets of the name and type that a call is about.
async fn sets(cx: &Cx, call: &Call) -> Result<(Zone, Name, RecordType, Vec<RrSet>)> {
    let zone = Zone::of(cx, call)?;
    let name = zone.owner(call.str(0))?;
    let ty = parse_type(call.str(1))?;
    let sets = zone.read_all(cx, &name, ty).await?;
    Ok((zone, name, ty, sets))
}

/// Lists them.
pub struct Routed(Spec);

impl Default for Routed {
    fn default() -> Self {
        Routed(
            spec(
                "routed",
                Effect::Read,
                "Lists the record sets of one name and type among which the provider chooses.\n\nEach has its `id` and, as text, its \
                 `routing`: `weight 10`, `by latency, eu-central-1`, `failover, primary`, with its health check.",
            )
            .returns(Ty::List(Box::new(Ty::Record("DnsRecord"))))
            .example(r#"for r in zone("example.com").routed("shop", "A") { log(`${r.id}: ${r.values} ${r.routing}`); }"#),
        )
    }
}

#[async_trait]
impl Primitive for Routed {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (.., sets) = sets(cx, call).await?;
        Ok(Value::List(sets.iter().map(RrSet::to_value).collect()).into())
    }
}

/// Makes one.
pub struct SetRouted(Spec);

impl Default for SetRouted {
    fn default() -> Self {
        SetRouted(
            spec(
                "set_routed",
                Effect::Converge,
                "Makes one of several record sets of a name and type, and the rule by which the provider chooses it.\n\nGive exactly one \
                 of `weight`, `region` (the answer with the least latency) and `failover`. All sets of a name and type follow the same \
                 rule. It ends when every name server of the provider has the change.",
            )
            .arg("id", Ty::Str, "What tells this set from the others: `old`, `new`.")
            .arg("values", Ty::OneOf(vec![Ty::Str, Ty::List(Box::new(Ty::Str))]), "The values, as for `set`.")
            .option("weight", Ty::Int, "Its share, 0 to 255, in proportion to all weights; 0: it is not chosen.")
            .option("region", Ty::Str, "The region of AWS near which the values are: `eu-central-1`.")
            .option("failover", Ty::Str, "`primary`, answered while its health check succeeds, or `secondary`.")
            .option("health_check", Ty::Str, "The id of the health check without whose success the set is not answered.")
            .option("ttl", Ty::Duration, "Time to live; as it was, or 1m for a new set.")
            .returns(Ty::Record("DnsRecord"))
            .example(
                r#"let dns = zone("example.com");
dns.set_routed("shop", "A", "old", host("old").address, #{ weight: 255 });
dns.set_routed("shop", "A", "new", host("new").address, #{ weight: 0 });"#,
            ),
        )
    }
}

fn weight(n: i64) -> Result<u8> {
    u8::try_from(n).map_err(|_| Error::new(Code::DNS_RECORD, format!("a weight is a number from 0 to 255, not {n}")))
}

fn policy(call: &Call) -> Result<Policy> {
    let wrong = |why: &str| Error::new(Code::DNS_RECORD, why.to_string()).hint("give exactly one of weight, region and failover");
    let mut found = Vec::new();
    if let Some(n) = call.opt_int("weight") {
        found.push(Policy::Weight(weight(n)?));
    }
    if let Some(r) = call.opt_str("region") {
        found.push(Policy::Latency(r.to_string()));
    }
    if let Some(f) = call.opt_str("failover") {
        found.push(match f {
            "primary" => Policy::Failover(true),
            "secondary" => Policy::Failover(false),
            other => return Err(wrong(&format!("failover is \"primary\" or \"secondary\", not \"{other}\""))),
        });
    }
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => Ok(one),
        (None, _) => Err(wrong("there is no rule by which the set is chosen")),
        _ => Err(wrong("there is more than one rule by which the set is chosen")),
    }
}

#[async_trait]
impl Primitive for SetRouted {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let policy = policy(call)?;
        let (zone, name, ty, all) = sets(cx, call).await?;
        let id = call.str(2);
        let values = texts(call.arg(3)).into_iter().map(|v| from_script(&zone.origin, ty, &v)).collect::<Result<Vec<_>>>()?;
        if values.is_empty() || id.is_empty() || id.chars().count() > 128 {
            return Err(zone.named(
                Error::new(Code::DNS_RECORD, "a record set needs at least one value, and an id of 1 to 128 characters")
                    .hint("to remove it, call delete_routed"),
            ));
        }
        if let Some(plain) = all.iter().find(|s| s.routing.is_none()) {
            return Err(zone.named(
                Error::new(
                    Code::DNS_RECORD,
                    format!("{} is a plain record set, beside which none with a routing policy can stand", plain.label()),
                )
                .hint("delete it first, or say with plan what becomes of it: the name is without an answer in between"),
            ));
        }
        let before = all.into_iter().find(|s| s.id() == Some(id));
        let ttl = match call.opt_duration("ttl") {
            Some(d) => ttl_seconds(d)?,
            None => before.as_ref().map_or(60, |b| b.ttl),
        };
        let routing = Routing { id: id.to_string(), policy, health_check: call.opt_str("health_check").map(str::to_string) };
        let after = RrSet { routing: Some(routing), ..RrSet::new(name, ty, ttl, values) };
        if before.as_ref() == Some(&after) {
            return Ok(Outcome::unchanged(after.to_value(), format!("{} \"{id}\" is so already", after.label())));
        }
        let note = format!("{} is {}", after.label(), after.content());
        zone.apply(cx, vec![Change::to(before, after.clone())]).await?;
        Ok(Outcome::changed(after.to_value()).note(note))
    }
}

/// Removes one.
pub struct DeleteRouted(Spec);

impl Default for DeleteRouted {
    fn default() -> Self {
        DeleteRouted(
            spec("delete_routed", Effect::Converge, "Removes one of several record sets among which the provider chooses.")
                .arg("id", Ty::Str, "What tells this set from the others.")
                .example(r#"zone("example.com").delete_routed("shop", "A", "old");"#),
        )
    }
}

#[async_trait]
impl Primitive for DeleteRouted {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (zone, name, ty, all) = sets(cx, call).await?;
        let id = call.str(2);
        let Some(before) = all.into_iter().find(|s| s.id() == Some(id)) else {
            return Ok(Outcome::unchanged((), format!("there is no {} {} \"{id}\"", name::show(&name), type_name(ty))));
        };
        let was = format!("{} was {}", before.label(), before.content());
        zone.apply(cx, vec![Change::delete(before)]).await?;
        Ok(Outcome::changed(()).note(was))
    }
}

/// Shifts traffic.
pub struct SetWeights(Spec);

impl Default for SetWeights {
    fn default() -> Self {
        SetWeights(
            spec(
                "set_weights",
                Effect::Converge,
                "Gives several weighted record sets of one name and type new weights, all in one change.\n\nThis moves traffic a share at a \
                 time, and back. Caches hold the old answers for the TTL of the sets.",
            )
            .arg("weights", Ty::Map(Box::new(Ty::Int)), "Weights of 0 to 255 by id; sets that are not named keep theirs.")
            .example(r#"zone("example.com").set_weights("shop", "A", #{ old: 230, new: 25 });"#),
        )
    }
}

#[async_trait]
impl Primitive for SetWeights {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (zone, name, ty, all) = sets(cx, call).await?;
        let wanted = call.arg(2).as_map().cloned().unwrap_or_default();
        let mut changes = Vec::new();
        for (id, n) in &wanted {
            let n = weight(n.as_int().unwrap_or(-1))?;
            let set = all.iter().find(|s| s.id() == Some(id));
            let Some((set, routing)) = set.and_then(|s| Some((s, s.routing.clone()?))) else {
                let ids: Vec<&str> = all.iter().filter_map(RrSet::id).collect();
                return Err(zone.named(
                    Error::new(
                        Code::DNS_RECORD,
                        format!("there is no {} {} \"{id}\"; there are: {}", name::show(&name), type_name(ty), ids.join(", ")),
                    )
                    .hint("make it with set_routed"),
                ));
            };
            let Policy::Weight(was) = routing.policy else {
                return Err(zone.named(Error::new(Code::DNS_RECORD, format!("{} is not weighted: {}", set.label(), routing.show()))));
            };
            if was != n {
                let after = RrSet { routing: Some(Routing { policy: Policy::Weight(n), ..routing }), ..set.clone() };
                changes.push(Change::to(Some(set.clone()), after));
            }
        }
        let all_zero = !wanted.is_empty()
            && all.iter().all(|s| match s.id().and_then(|id| wanted.get(id)) {
                Some(n) => n.as_int() == Some(0),
                None => matches!(s.routing.as_ref().map(|r| &r.policy), Some(Policy::Weight(0))),
            });
        if all_zero {
            return Err(zone.named(
                Error::new(
                    Code::DNS_RECORD,
                    format!("all weights of {} would be 0, which answers with all of them alike", name::show(&name)),
                )
                .hint("give one of them a weight above 0"),
            ));
        }
        let shown: BTreeMap<&String, i64> = wanted.iter().map(|(k, v)| (k, v.as_int().unwrap_or(0))).collect();
        let shown = shown.iter().map(|(k, v)| format!("{k} {v}")).collect::<Vec<_>>().join(", ");
        if changes.is_empty() {
            return Ok(Outcome::unchanged((), format!("the weights of {} are so already: {shown}", name::show(&name))));
        }
        zone.apply(cx, changes).await?;
        Ok(Outcome::changed(()).note(format!("{}: {shown}", name::show(&name))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_rule_is_given() {
        let call = |pairs: &[(&str, Value)]| Call {
            options: pairs.iter().map(|(k, v)| ((*k).to_string(), v.clone())).collect(),
            ..Call::default()
        };
        assert_eq!(policy(&call(&[("weight", 10.into())])).unwrap(), Policy::Weight(10));
        assert_eq!(policy(&call(&[("failover", "secondary".into())])).unwrap(), Policy::Failover(false));
        for (pairs, why) in [
            (vec![], "there is no rule by which the set is chosen"),
            (vec![("weight", 10.into()), ("region", "eu-central-1".into())], "there is more than one rule by which the set is chosen"),
            (vec![("weight", 256.into())], "a weight is a number from 0 to 255, not 256"),
            (vec![("failover", "third".into())], "failover is \"primary\" or \"secondary\", not \"third\""),
        ] {
            assert_eq!(policy(&call(&pairs)).unwrap_err().message, why);
        }
    }
}
