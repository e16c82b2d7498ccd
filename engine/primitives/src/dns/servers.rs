//! Asking the servers that the world asks: the zone's authoritative name servers and named resolvers.

use std::net::SocketAddr;

use futures::future::join_all;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, RecordType};
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::exchange::{endpoint, exchange};
use super::name;
use super::provider::Zone;
use super::record::{RrSet, presentation};
use super::rfc2136::question;

/// A server with the name that messages give it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `ns1.example.com (192.0.2.53:53)` or the address.
    pub shown: String,
    /// Where to ask; the reason when it has no address.
    pub addr: std::result::Result<SocketAddr, String>,
    /// Whether it is a resolver, which may answer from its cache.
    pub resolver: bool,
}

impl Server {
    /// A server named in the inventory or the script.
    pub async fn named(text: &str, resolver: bool) -> Server {
        let addr = endpoint(text).await;
        let shown = match &addr {
            Ok(a) if a.ip().to_string() == text || a.to_string() == text => text.to_string(),
            Ok(a) => format!("{text} ({a})"),
            Err(_) => text.to_string(),
        };
        Server { shown, addr: addr.map_err(|e| e.message), resolver }
    }
}

/// The zone's authoritative servers: those of the inventory, else those that its NS records name; the primary in any case.
///
/// # Errors
/// `RB0600` when nobody can be asked for them; `RB0604` when the zone names none.
pub async fn authoritative(cx: &Cx, zone: &Zone) -> Result<Vec<Server>> {
    let primary = zone.provider.primary();
    let mut all = Vec::new();
    if let Some(p) = &primary {
        all.push(Server::named(p, false).await);
    }
    let told = if zone.nameservers.is_empty() { zone.provider.nameservers(cx).await? } else { zone.nameservers.clone() };
    if told.is_empty() {
        all.extend(by_ns(cx, zone, primary.as_deref()).await?);
    }
    for text in &told {
        all.push(Server::named(text, false).await);
    }
    let mut seen: Vec<Server> = Vec::new();
    for s in all {
        if !seen.iter().any(|o| o.addr.is_ok() && o.addr == s.addr) {
            seen.push(s);
        }
    }
    Ok(seen)
}

async fn by_ns(cx: &Cx, zone: &Zone, primary: Option<&str>) -> Result<Vec<Server>> {
    let asked = primary.map(str::to_string).or_else(|| zone.resolvers.first().cloned()).ok_or_else(|| {
        Error::new(Code::DNS_QUERY, format!("nobody can be asked for the name servers of {}", name::show(&zone.origin)))
            .hint("add nameservers = [\"…\"] to the zone in runbook.toml")
    })?;
    let at = endpoint(&asked).await?;
    let answer = exchange(cx, at, question(&zone.origin, RecordType::NS, primary.is_none()), None).await?;
    let names: Vec<Name> =
        answer.answers.iter().filter_map(|r| if let RData::NS(n) = &r.data { Some(n.0.clone()) } else { None }).collect();
    if names.is_empty() {
        return Err(Error::new(
            Code::DNS_RECORD,
            format!("{asked} names no name servers for {} ({})", name::show(&zone.origin), answer.response_code.to_str()),
        )
        .hint("add nameservers = [\"…\"] to the zone in runbook.toml"));
    }
    let mut out = Vec::new();
    for ns in names {
        let shown = name::show(&ns);
        let mut found: Vec<std::net::IpAddr> = Vec::new();
        // Names within the zone are known to the primary, perhaps before the rest of the world can look them up.
        if zone.origin.zone_of(&ns) {
            for ty in [RecordType::A, RecordType::AAAA] {
                let answer = exchange(cx, at, question(&ns, ty, primary.is_none()), None).await?;
                found.extend(answer.answers.iter().filter_map(|r| r.data.ip_addr()));
            }
        }
        if found.is_empty() {
            match endpoint(&shown).await {
                Ok(a) => found.push(a.ip()),
                Err(e) => out.push(Server { shown: shown.clone(), addr: Err(e.message), resolver: false }),
            }
        }
        // An IPv6 address that this machine cannot reach would never answer: one address a server is enough, IPv4 first.
        found.sort_by_key(std::net::IpAddr::is_ipv6);
        out.extend(found.first().map(|ip| Server {
            shown: format!("{shown} ({ip})"),
            addr: Ok(SocketAddr::new(*ip, 53)),
            resolver: false,
        }));
    }
    Ok(out)
}

/// What one server says.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// The record set; `None` when it says that there is none.
    Set(Option<RrSet>),
    /// It gives no usable answer, and why.
    Nothing(String),
}

impl Said {
    /// For messages.
    pub fn show(&self) -> String {
        match self {
            Said::Set(Some(s)) => s.shown().join(", "),
            Said::Set(None) => "that there is no such record".into(),
            Said::Nothing(why) => why.clone(),
        }
    }
}

/// Asks one server for a record set.
///
/// # Errors
/// `RB0021` when cancelled; what the server says or fails to say is no error here.
pub async fn ask(cx: &Cx, server: &Server, name: &Name, ty: RecordType) -> Result<Said> {
    let addr = match &server.addr {
        Ok(a) => *a,
        Err(why) => return Ok(Said::Nothing(why.clone())),
    };
    let answer = match exchange(cx, addr, question(name, ty, server.resolver), None).await {
        Ok(a) => a,
        Err(e) if e.code == Code::ABORTED => return Err(e),
        Err(e) => return Ok(Said::Nothing(e.message)),
    };
    match answer.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        code => return Ok(Said::Nothing(format!("{} ({})", code, code.to_str()))),
    }
    if !server.resolver && !answer.authoritative {
        return Ok(Said::Nothing("it is not authoritative for the zone".into()));
    }
    // By type alone: behind a CNAME the records stand under another name.
    let found: Vec<_> = answer.answers.iter().filter(|r| r.record_type() == ty).collect();
    let Some(ttl) = found.iter().map(|r| r.ttl).max() else { return Ok(Said::Set(None)) };
    Ok(Said::Set(Some(RrSet::new(name.clone(), ty, ttl, found.iter().map(|r| presentation(&r.data)).collect()))))
}

/// Asks all servers at once.
///
/// # Errors
/// As [`ask`].
pub async fn ask_all<'a>(cx: &Cx, servers: &'a [Server], name: &Name, ty: RecordType) -> Result<Vec<(&'a Server, Said)>> {
    let asked = servers.iter().map(|s| async move { Ok((s, ask(cx, s, name, ty).await?)) });
    join_all(asked).await.into_iter().collect()
}
