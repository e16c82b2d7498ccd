//! `Zone.read`, `Zone.set` and `Zone.delete`: records as they are, without the TTL rule.

use async_trait::async_trait;
use hickory_proto::rr::RecordType;
use runbook_core::primitive::{Cx, Outcome, Primitive};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::{Code, Error, Result, Value};

use super::codec::type_name;
use super::plan::Allow;
use super::provider::{Change, Zone};
use super::record::{RrSet, from_script, parse_type, record_value};
use super::ttl_seconds;

/// A method of a zone whose first argument is a name in it.
fn of_one_name(method: &'static str, effect: Effect, doc: &'static str) -> Spec {
    Spec::method("Zone", method, effect, doc).arg("name", Ty::Str, "The name: `shop`, `@` for the zone itself, or a full name.").errors(&[
        Code::DNS_QUERY,
        Code::DNS_REFUSED,
        Code::DNS_TSIG,
        Code::DNS_RECORD,
        Code::DNS_API,
    ])
}

/// Reads a record.
pub struct Read(Spec);

impl Default for Read {
    fn default() -> Self {
        Read(
            of_one_name(
                "read",
                Effect::Read,
                "Reads the records of one name and type at the primary name server, past every cache.\n\nWithout `type` it \
                 takes the first of A, AAAA and CNAME that exists. Where there is none, `exists` is false and `values` is empty.",
            )
            .option("type", Ty::Str, "The type of record: `A`, `AAAA`, `CNAME`, `MX`, `TXT`, …; any address by default.")
            .returns(Ty::Record("DnsRecord"))
            .example(r#"let before = zone("example.com").read("shop"); log(`shop is at ${before.values[0]}`);"#),
        )
    }
}

#[async_trait]
impl Primitive for Read {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let zone = Zone::of(cx, call)?;
        let name = zone.owner(call.str(0))?;
        let types = match call.opt_str("type") {
            Some(t) => vec![parse_type(t)?],
            None => vec![RecordType::A, RecordType::AAAA, RecordType::CNAME],
        };
        for ty in &types {
            if let Some(set) = zone.read(cx, &name, *ty).await? {
                return Ok(set.to_value().into());
            }
        }
        Ok(record_value(&name, types.first().copied().unwrap_or(RecordType::A), 0, vec![]).into())
    }
}

/// Sets a record.
pub struct Set(Spec);

impl Default for Set {
    fn default() -> Self {
        Set(of_one_name(
            "set",
            Effect::Converge,
            "Makes the records of one name and type exactly these, in one atomic change.\n\nThe change carries the values that were \
             read, so that a change by somebody else in between is not overwritten. For the address that users follow take `point`, \
             which also guards the TTL.",
        )
        .arg("type", Ty::Str, "The type of record: `A`, `AAAA`, `CNAME`, `MX`, `TXT`, …")
        .arg(
            "values",
            Ty::OneOf(vec![Ty::Str, Ty::List(Box::new(Ty::Str))]),
            "The values; text of TXT as it is, MX as `10 mail`, names outside of the zone with a final dot.",
        )
        .option("ttl", Ty::Duration, "Time to live; as it was, or 1h for a new record.")
        .option(
            "proxied",
            Ty::Bool,
            "At a provider with a proxy of its own: whether names are answered with its addresses and requests passed on to these values; as it was by default.",
        )
        .option("root_ns", Ty::Bool, "Lets the name servers of the zone itself be changed, which is refused otherwise.")
        .returns(Ty::Record("DnsRecord"))
        .example(r#"zone("example.com").set("@", "TXT", "v=spf1 mx -all", #{ ttl: "1h" });"#))
    }
}

#[async_trait]
impl Primitive for Set {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let zone = Zone::of(cx, call)?;
        let name = zone.owner(call.str(0))?;
        let ty = parse_type(call.str(1))?;
        let values = texts(call.arg(2)).into_iter().map(|v| from_script(&zone.origin, ty, &v)).collect::<Result<Vec<_>>>()?;
        if values.is_empty() {
            return Err(
                zone.named(Error::new(Code::DNS_RECORD, "a record needs at least one value").hint("to remove it, call delete(name, type)"))
            );
        }
        let before = zone.read(cx, &name, ty).await?;
        let ttl = match call.opt_duration("ttl") {
            Some(d) => ttl_seconds(d)?,
            None => before.as_ref().map_or(3600, |b| b.ttl),
        };
        let proxied = call.opt("proxied").and_then(Value::as_bool).unwrap_or_else(|| before.as_ref().is_some_and(|b| b.proxied));
        let mut after = RrSet { proxied, ..RrSet::new(name.clone(), ty, ttl, values) };
        if proxied {
            after = zone.provider.fit(after);
        }
        if before.as_ref() == Some(&after) {
            return Ok(Outcome::unchanged(after.to_value(), format!("{} is so already", after.label())));
        }
        let allow = Allow { root_ns: call.opt_bool("root_ns"), ..Allow::default() };
        zone.apply_allowed(cx, vec![Change::to(before, after.clone())], &allow).await?;
        Ok(Outcome::changed(after.to_value()).note(format!("{} is {}", after.label(), after.content())))
    }
}

/// Deletes a record.
pub struct Delete(Spec);

impl Default for Delete {
    fn default() -> Self {
        Delete(
            of_one_name("delete", Effect::Converge, "Removes all records of one name and type.")
                .arg("type", Ty::Str, "The type of record: `A`, `AAAA`, `CNAME`, `MX`, `TXT`, …")
                .example(r#"zone("example.com").delete("old-shop", "A");"#),
        )
    }
}

#[async_trait]
impl Primitive for Delete {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let zone = Zone::of(cx, call)?;
        let name = zone.owner(call.str(0))?;
        let ty = parse_type(call.str(1))?;
        let Some(before) = zone.read(cx, &name, ty).await? else {
            return Ok(Outcome::unchanged((), format!("there is no {} {}", super::name::show(&name), type_name(ty))));
        };
        let was = format!("{} was {}", before.label(), before.content());
        zone.apply(cx, vec![Change::delete(before)]).await?;
        Ok(Outcome::changed(()).note(was))
    }
}

/// One text or several, as an argument.
pub fn texts(v: &Value) -> Vec<String> {
    match v {
        Value::Str(s) => vec![s.clone()],
        Value::List(l) => l.iter().filter_map(|v| v.as_str().map(str::to_string)).collect(),
        _ => vec![],
    }
}
