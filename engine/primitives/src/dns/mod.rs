//! DNS: zones, their records, the TTL rule, and what the world's name servers answer.
//!
//! A provider ([`provider::Provider`]) only reads and applies changes; every rule stands above it, in the primitives:
//!
//! - `name.rs`, `record.rs`: names and values as runbooks write them, as providers share them
//! - `codec.rs`, `svcb.rs`: record data between wire and text; `zone_file.rs`: whole zones as text
//! - `ttl.rs`: the TTL rule as pure logic; `plan.rs`: what differs between two zones, and what is too dangerous to do
//! - `exchange.rs`: one question on the wire, with TSIG; `transfer.rs`: a whole zone; `servers.rs`: asking servers and resolvers
//! - `provider.rs`: the trait, the zone; `cloudflare.rs`, `on_host.rs`, `powerdns.rs`, `rfc2136.rs`, `route53.rs` (with `aws.rs`, `health.rs`), `other/`: the providers;
//!   `api.rs`: what those with an HTTP API share
//! - `read.rs`, `lower_ttl.rs`, `point.rs`, `wait_answer.rs`, `answers.rs`, `whole.rs`, `routed.rs`: the primitives

use std::collections::BTreeMap;
use std::time::Duration;

use runbook_core::inventory::{Environment, Section};
use runbook_core::primitive::Registry;
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::units::show_duration;
use runbook_core::{Code, Error, Record, Result, Value};

mod answers;
mod api;
mod aws;
mod cloudflare;
mod codec;
mod exchange;
mod health;
mod lower_ttl;
mod name;
mod on_host;
#[cfg(feature = "dns-services")]
mod other;
mod plan;
mod point;
mod powerdns;
pub mod provider;
mod read;
pub mod record;
mod rfc2136;
mod route53;
mod routed;
mod servers;
mod svcb;
mod transfer;
mod ttl;
mod wait_answer;
mod whole;
mod zone_file;

/// Adds the primitives of this family.
pub fn register(r: &mut Registry) {
    r.add_type(TypeSpec::new("Zone", "A DNS zone of the inventory.").field("name", Ty::Str, "Its name: `example.com`."));
    r.add_type(
        TypeSpec::new("DnsRecord", "The records of one name and type, as the primary name server has them.")
            .field("name", Ty::Str, "The full name, without a final dot.")
            .field("type", Ty::Str, "The type: `A`, `AAAA`, `CNAME`, …")
            .field("exists", Ty::Bool, "Whether there are any.")
            .field("values", Ty::List(Box::new(Ty::Str)), "The values, sorted.")
            .field("ttl", Ty::Duration, "Time to live.")
            .field("proxied", Ty::Bool, "Whether a proxy of the provider answers in its place.")
            .field("id", Ty::Any, "With a routing policy: what tells this set from others of its name and type.")
            .field("routing", Ty::Any, "With a routing policy: the policy, as text."),
    );
    whole::types(r);
    answers::types(r);
    r.add_pure(
        Spec::function("zone", Effect::Pure, "Gives the DNS zone of that name in the inventory.")
            .arg("name", Ty::Str, "Its name in `[environments.….zones]` of runbook.toml, which is the zone's name.")
            .returns(Ty::Record("Zone"))
            .example(r#"let dns = zone("example.com");"#)
            .errors(&[Code::UNKNOWN_NAME]),
        zone,
    );
    r.add(read::Read::default());
    r.add(read::Set::default());
    r.add(read::Delete::default());
    r.add(lower_ttl::LowerTtl::default());
    r.add(lower_ttl::RestoreTtl::default());
    r.add(lower_ttl::WaitTtl::default());
    r.add(point::Point::default());
    r.add(wait_answer::WaitAnswer::default());
    r.add(answers::Answers::default());
    r.add(whole::Records::default());
    r.add(whole::ExportText::default());
    r.add(whole::ImportText::default());
    r.add(whole::Compare::default());
    r.add(whole::CopyFrom::default());
    r.add(routed::Routed::default());
    r.add(routed::SetRouted::default());
    r.add(routed::DeleteRouted::default());
    r.add(routed::SetWeights::default());
    r.add(health::CreateHealthCheck::default());
    r.add(health::DeleteHealthCheck::default());
    r.add(health::WaitHealthy::default());
}

fn zone(env: &Environment, call: &Call) -> Result<Value> {
    let zone = env.resource(Section::Zones, call.str(0))?;
    let fields = BTreeMap::from([("name".to_string(), Value::from(zone.name.as_str()))]);
    Ok(Record::handle("Zone", zone.name.clone(), fields).into())
}

/// A TTL as DNS has it: whole seconds, at most 2³¹ - 1.
fn ttl_seconds(d: Duration) -> Result<u32> {
    u32::try_from(d.as_secs())
        .ok()
        .filter(|s| *s <= i32::MAX as u32 && d.subsec_nanos() == 0)
        .ok_or_else(|| Error::new(Code::DNS_RECORD, format!("a TTL is a whole number of seconds up to 68 years, not {}", show_duration(d))))
}

fn ttl_of(seconds: u32) -> String {
    show_duration(Duration::from_secs(u64::from(seconds)))
}
