//! `Zone.wait_answer`: waits until everybody who is asked answers the new value.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use hickory_proto::rr::RecordType;
use runbook_core::primitive::{Cx, Outcome, Primitive};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::{Code, Error, Result};

use super::answers::by_tcp;
use super::lower_ttl::in_seconds;
use super::name;
use super::provider::Zone;
use super::read::texts;
use super::record::{RrSet, from_script, parse_type};
use super::servers::{Said, Server, ask_all, authoritative};

/// Waits for an answer.
pub struct WaitAnswer(Spec);

impl Default for WaitAnswer {
    fn default() -> Self {
        WaitAnswer(
            Spec::method(
                "Zone",
                "wait_answer",
                Effect::Read,
                "Waits until every authoritative name server and every named resolver answers exactly this value, over UDP and TCP.\n\nThe state of DNSSEC is told with it. The name servers \
                 are `nameservers` of the zone in runbook.toml, else those of its NS records, and the primary. When time is up, the \
                 error names those that do not answer it, and what they answer instead.",
            )
            .arg("name", Ty::Str, "The name: `shop`, `@` for the zone itself, or a full name.")
            .arg("value", Ty::OneOf(vec![Ty::Str, Ty::List(Box::new(Ty::Str))]), "The value, or all values when there are several.")
            .option("within", Ty::Duration, "How long to wait at most; 5m by default.")
            .option("resolvers", Ty::List(Box::new(Ty::Str)), "Resolvers to ask too (`ip` or `ip:port`); those of the zone by default.")
            .option("every", Ty::Duration, "The pause between two rounds; 2s by default.")
            .option("type", Ty::Str, "The type of record; A or AAAA by the value by default.")
            .example(r#"zone("example.com").wait_answer("shop", host("new").address, #{ within: "5m", resolvers: ["9.9.9.9"] });"#)
            .errors(&[Code::DNS_WAIT, Code::DNS_QUERY, Code::DNS_RECORD]),
        )
    }
}

#[async_trait]
impl Primitive for WaitAnswer {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let zone = Zone::of(cx, call)?;
        let name = zone.owner(call.str(0))?;
        let values = texts(call.arg(1));
        let ty = match (call.opt_str("type"), values.first().map(|v| v.parse::<IpAddr>())) {
            (Some(t), _) => parse_type(t)?,
            (None, Some(Ok(IpAddr::V4(_)))) => RecordType::A,
            (None, Some(Ok(IpAddr::V6(_)))) => RecordType::AAAA,
            (None, first) => {
                let shown = if first.is_some() { values.join(", ") } else { "an empty list".into() };
                return Err(Error::new(Code::DNS_RECORD, format!("the type of record cannot be told from {shown}"))
                    .hint("say it: #{ type: \"TXT\" }"));
            }
        };
        let wanted = values.iter().map(|v| from_script(&zone.origin, ty, v)).collect::<Result<Vec<_>>>()?;
        let wanted = RrSet::new(name.clone(), ty, 0, wanted);
        let within = call.opt_duration("within").unwrap_or(Duration::from_secs(300));
        let every = call.opt_duration("every").unwrap_or(Duration::from_secs(2)).max(Duration::from_millis(50));

        if zone.provider.can().proxy
            && let Some(set) = zone.read(cx, &name, ty).await?.filter(|s| s.proxied)
        {
            if set.values == wanted.values {
                let note = format!("{} is proxied, and the proxy passes requests on to {}", name::show(&name), set.shown().join(", "));
                return Ok(Outcome { note: Some(note), ..Outcome::default() });
            }
            return Err(zone.named(
                Error::new(
                    Code::DNS_WAIT,
                    format!(
                        "{} is proxied, and the proxy passes requests on to {}, not {}",
                        name::show(&name),
                        set.shown().join(", "),
                        wanted.shown().join(", ")
                    ),
                )
                .hint("point the name first"),
            ));
        }
        let mut servers = authoritative(cx, &zone).await.map_err(|e| zone.named(e))?;
        let resolvers = call.opt("resolvers").map_or_else(|| zone.resolvers.clone(), texts);
        for r in &resolvers {
            servers.push(Server::named(r, true).await);
        }

        let begun = tokio::time::Instant::now();
        loop {
            let said = ask_all(cx, &servers, &name, ty).await?;
            let behind: Vec<&(&Server, Said)> =
                said.iter().filter(|(_, s)| !matches!(s, Said::Set(Some(set)) if set.values == wanted.values)).collect();
            let (done, all) = ((servers.len() - behind.len()) as u64, servers.len() as u64);
            cx.progress(format!("servers that answer {}", wanted.shown().join(", ")), done, Some(all), "servers");
            // Once everybody answers it over UDP, it must be so over TCP too, which large answers and some networks need.
            let (tcp, dnssec) = if behind.is_empty() { by_tcp(cx, &servers, &wanted).await? } else { (vec![], String::new()) };
            if behind.is_empty() && tcp.is_empty() {
                let what = if resolvers.is_empty() { "name servers" } else { "name servers and resolvers" };
                return Ok(Outcome {
                    note: Some(format!("{all} {what} answer it over UDP and TCP; DNSSEC: {dnssec}")),
                    ..Outcome::default()
                });
            }
            let left = within.saturating_sub(begun.elapsed());
            if left.is_zero() {
                let mut list: Vec<String> = behind.iter().map(|(s, said)| format!("{} answers {}", s.shown, said.show())).collect();
                list.extend(tcp);
                return Err(zone.named(
                    Error::new(
                        Code::DNS_WAIT,
                        format!(
                            "after {} {} of {all} servers do not answer {} for {} {ty}: {}",
                            in_seconds(within),
                            list.len(),
                            wanted.shown().join(", "),
                            name::show(&name),
                            list.join("; ")
                        ),
                    )
                    .hint("a name server that lags has not had the transfer (see its log, and also-notify at the primary); a resolver may hold the old answer until its TTL ends")
                    .retryable(true),
                ));
            }
            cx.sleep(every.min(left)).await?;
        }
    }
}
