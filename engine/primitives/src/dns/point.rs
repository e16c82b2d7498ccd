//! `Zone.point`: moves a name to another address, once no cache can hold the old one for long.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use hickory_proto::rr::RecordType;
use runbook_core::primitive::{Cx, Outcome, Primitive};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::{Code, Error, Result, Value};

use super::lower_ttl::{in_seconds, remembered};
use super::provider::{Change, Zone};
use super::record::{RrSet, from_script, parse_type};
use super::ttl::stale_for;
use super::{name, ttl_of, ttl_seconds};

/// Points a name at an address.
pub struct Point(Spec);

impl Default for Point {
    fn default() -> Self {
        Point(
            Spec::method(
                "Zone",
                "point",
                Effect::Converge,
                "Points a name at an address (A or AAAA, by the address), once caches cannot hold the old answer for long.\n\nIt refuses \
                 while the TTL from before `lower_ttl` still runs and, for a name that was never lowered, when its TTL is above 5 \
                 minutes; `accept_stale` says how long stale answers may last at most. A name that a provider's proxy answers for (`proxied`) \
                 is moved at the proxy: no cache holds its value, so that there is nothing to wait for. Going back to what caches still hold is never \
                 refused. The change is one atomic update that carries the values as they were read, and it is read back from the \
                 primary.",
            )
            .arg("name", Ty::Str, "The name: `shop`, `@` for the zone itself, or a full name.")
            .arg("address", Ty::Str, "An IPv4 or IPv6 address; with `type: \"CNAME\"` a name.")
            .option("ttl", Ty::Duration, "Time to live; as it was, or 5m for a new record.")
            .option("accept_stale", Ty::Duration, "For how long at most caches may still hand out the old address.")
            .option("type", Ty::Str, "`A`, `AAAA` or `CNAME`; by the address by default.")
            .option(
                "proxied",
                Ty::Bool,
                "At a provider with a proxy of its own: whether names are answered with its addresses; as it was by default.",
            )
            .returns(Ty::Record("DnsRecord"))
            .example(r#"zone("example.com").point("shop", host("new").address, #{ accept_stale: "10m" });"#)
            .errors(&[Code::DNS_TTL, Code::DNS_QUERY, Code::DNS_REFUSED, Code::DNS_TSIG, Code::DNS_RECORD, Code::DNS_API]),
        )
    }
}

fn type_of(address: &str, told: Option<&str>) -> Result<RecordType> {
    if let Some(t) = told {
        let ty = parse_type(t)?;
        if super::lower_ttl::FOLLOWED.contains(&ty) {
            return Ok(ty);
        }
        return Err(Error::new(Code::DNS_RECORD, format!("point makes records of type A, AAAA or CNAME, not {ty}"))
            .hint("use set(name, type, values) for others"));
    }
    match address.trim().parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => Ok(RecordType::A),
        Ok(IpAddr::V6(_)) => Ok(RecordType::AAAA),
        Err(_) => Err(Error::new(Code::DNS_RECORD, format!("\"{address}\" is not an IP address"))
            .hint("give the host an address = \"…\" in runbook.toml, or say #{ type: \"CNAME\" } to point at a name")),
    }
}

#[async_trait]
impl Primitive for Point {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let zone = Zone::of(cx, call)?;
        let name = zone.owner(call.str(0))?;
        let ty = type_of(call.str(1), call.opt_str("type")).map_err(|e| zone.named(e))?;
        let value = from_script(&zone.origin, ty, call.str(1)).map_err(|e| zone.named(e))?;

        // A CNAME and addresses exclude each other; moving between the two replaces all in one change.
        let excluded: &[RecordType] = if ty == RecordType::CNAME { &[RecordType::A, RecordType::AAAA] } else { &[RecordType::CNAME] };
        let before = zone.read(cx, &name, ty).await?;
        let mut replaced = Vec::new();
        for other in excluded {
            replaced.extend(zone.read(cx, &name, *other).await?);
        }
        let ttl = match call.opt_duration("ttl") {
            Some(d) => ttl_seconds(d)?,
            None => before.iter().chain(&replaced).map(|s| s.ttl).min().unwrap_or(300),
        };
        let was_proxied = before.iter().chain(&replaced).any(|s| s.proxied);
        let proxied = call.opt("proxied").and_then(Value::as_bool).unwrap_or(was_proxied);
        let mut after = RrSet { proxied, ..RrSet::new(name.clone(), ty, ttl, vec![value]) };
        if proxied {
            after = zone.provider.fit(after);
        }
        if before.as_ref() == Some(&after) && replaced.is_empty() {
            return Ok(Outcome::unchanged(after.to_value(), format!("{} points there already", name::show(&name))));
        }

        let mut stale = Duration::ZERO;
        for set in before.iter().chain(&replaced) {
            // Before and after, the world is answered with the proxy's own addresses: nothing in a cache becomes wrong.
            if set.proxied && after.proxied {
                continue;
            }
            // Behind the proxy the value is another one than caches hold.
            let wanted = if set.ty == ty && set.proxied == after.proxied { after.values.as_slice() } else { &[] };
            let fact = remembered(cx, &name, set.ty)?;
            stale = stale.max(stale_for(fact.as_ref(), set.ttl, &set.values, wanted, cx.clock.now()));
        }
        let accepted = call.opt_duration("accept_stale").unwrap_or_default();
        if stale > accepted {
            return Err(zone.named(too_early(&name, stale, accepted, before.iter().chain(&replaced).map(|s| s.ttl).max().unwrap_or(0))));
        }

        let was = before.as_ref().or(replaced.first()).map_or_else(|| "nothing".to_string(), |s| s.shown().join(", "));
        let mut changes: Vec<Change> = replaced.into_iter().map(Change::delete).collect();
        changes.push(Change::to(before, after.clone()));
        zone.apply(cx, changes).await?;

        let other = if ty == RecordType::A { RecordType::AAAA } else { RecordType::A };
        if ty != RecordType::CNAME
            && let Some(set) = zone.read(cx, &name, other).await?
        {
            cx.message(format!("{} still has {other} {}: clients that prefer it are not moved", name::show(&name), set.shown().join(", ")));
        }
        let by = if after.proxied { "at the proxy".to_string() } else { format!("TTL {}", ttl_of(after.ttl)) };
        let note = format!("{} {ty} {} (was {was}), {by}", name::show(&name), after.shown().join(", "));
        Ok(Outcome::changed(after.to_value()).note(note))
    }
}

fn too_early(name: &hickory_proto::rr::Name, stale: Duration, accepted: Duration, ttl: u32) -> Error {
    let name = name::show(name);
    let e = Error::new(
        Code::DNS_TTL,
        format!("caches may hand out the old address of {name} for another {}; it is not moved", in_seconds(stale)),
    );
    let e = if accepted.is_zero() { e } else { e.detail("accepted", in_seconds(accepted)) };
    let wait = if u64::from(ttl) > super::ttl::SHORT.as_secs() {
        format!("lower its TTL first (lower_ttl(\"{name}.\", \"60s\"), then wait_ttl)")
    } else {
        format!("wait for it (wait_ttl(\"{name}.\"))")
    };
    e.detail("stale", in_seconds(stale))
        .hint(format!("{wait}, or accept it: #{{ accept_stale: \"{}\" }}", in_seconds(stale)))
        // It comes true by itself only where the old TTL is running out.
        .retryable(u64::from(ttl) <= super::ttl::SHORT.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_follows_the_address() {
        assert_eq!(type_of("192.0.2.1", None).unwrap(), RecordType::A);
        assert_eq!(type_of("2001:db8::1", None).unwrap(), RecordType::AAAA);
        assert_eq!(type_of("shop.cdn.net.", Some("cname")).unwrap(), RecordType::CNAME);
        assert_eq!(type_of("shop", None).unwrap_err().to_string(), "RB0604: \"shop\" is not an IP address");
        assert!(type_of("10 mail", Some("MX")).is_err());
    }
}
