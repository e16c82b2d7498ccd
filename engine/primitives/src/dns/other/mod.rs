//! The provider for services that the crate `dns-update` knows.
//!
//! What that crate can decides what is offered: one record set is read and written at a time, of nine types, and a read has no TTL. So
//! the TTL is asked of the zone's own name servers, and a zone is not listed: what needs that is refused with the way around it.

mod convert;
mod services;

use async_trait::async_trait;
use dns_update::{DnsUpdater, Error as Fault};
use futures::FutureExt as _;
use hickory_proto::rr::{Name, RecordType};
use parking_lot::Mutex;
use reqwest::Url;
use runbook_core::inventory::Resource;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::name;
use super::provider::{Change, Provider};
use super::record::RrSet;
use super::servers::{Said, Server, ask};

/// A zone at a service.
pub struct Other {
    origin: Name,
    service: &'static str,
    token: String,
    updater: DnsUpdater,
    nameservers: Vec<String>,
    /// What was written by this object: name servers answer with it only later.
    written: Mutex<Vec<RrSet>>,
}

impl Other {
    /// Reads the settings `provider`, `token` and those that the provider wants.
    ///
    /// # Errors
    /// `RB0114` when one is missing, `RB0104` for a provider that is none of these, `RB0109` when the secret cannot be had.
    pub fn new(cx: &Cx, resource: &Resource, origin: Name) -> Result<Self> {
        let service = services::named(resource, resource.need("provider")?)?;
        let token = resource.need("token")?.to_string();
        let key = cx.secret(&token)?;
        // The crate's own client cannot say that this machine has no certificates.
        if let Ok(any) = Url::parse("https://localhost") {
            super::api::client(cx, &any, None)?;
        }
        let updater = service.connect(resource, key.reveal())?;
        Ok(Other { origin, service: service.name, token, updater, nameservers: resource.list("nameservers"), written: Mutex::default() })
    }

    fn fault(&self, cx: &Cx, what: &str, fault: Fault) -> Error {
        let why = cx.redactor.text(&fault.to_string());
        let e = Error::new(Code::DNS_API, format!("{} cannot {what}: {why}", self.service));
        match fault {
            Fault::Unauthorized => e.hint(format!("the secret \"{}\" must be a key of the API that may change this zone", self.token)),
            Fault::NotFound => e.hint(format!("is {} a zone of this account?", name::show(&self.origin))),
            Fault::BadRequest | Fault::Unsupported(_) | Fault::InvalidRegion => e.hint("the service does not take this"),
            // A record set is written whole: to write it again does no harm.
            _ => e.hint("see what the service says; it may be busy").retryable(true),
        }
    }

    async fn values(&self, cx: &Cx, name: &Name, ty: RecordType) -> Result<Vec<String>> {
        let Some(kind) = convert::kind(ty) else { return Ok(vec![]) };
        let (shown, origin) = (name::absolute(name), name::absolute(&self.origin));
        // In a box, as each of its services has a future of its own that the compiler would look through wherever this is called from.
        let asked = self.updater.list_rrset(shown.as_str(), kind, origin.as_str()).boxed();
        let found = tokio::select! {
            found = asked => found,
            () = cx.cancel.cancelled() => return Err(Error::new(Code::ABORTED, "stopped while reading a record")),
        };
        match found {
            Ok(records) => records.into_iter().map(|r| convert::value(ty, r)).collect(),
            // Some services say so of a name that has no records.
            Err(Fault::NotFound) if *name != self.origin => Ok(vec![]),
            Err(e) => Err(self.fault(cx, &format!("read {} {}", name::show(name), super::codec::type_name(ty)), e)),
        }
    }

    /// The TTL of a set, by the zone's own name servers.
    async fn ttl(&self, cx: &Cx, name: &Name, ty: RecordType) -> Result<u32> {
        let servers =
            if self.nameservers.is_empty() { self.values(cx, &self.origin, RecordType::NS).await? } else { self.nameservers.clone() };
        let mut why = "the service names no name servers for the zone".to_string();
        for s in servers {
            let server = Server::named(s.trim_end_matches('.'), false).await;
            match ask(cx, &server, name, ty).await? {
                Said::Set(Some(set)) => return Ok(set.ttl),
                said => why = format!("{} says {}", server.shown, said.show()),
            }
        }
        Err(Error::new(
            Code::DNS_QUERY,
            format!(
                "the TTL of {} {} is not known: {} does not tell it, and {why}",
                name::show(name),
                super::codec::type_name(ty),
                self.service
            ),
        )
        .hint("a record that was made a moment ago takes a while to be answered; name the servers to ask with nameservers = [\"…\"]")
        .retryable(true))
    }
}

#[async_trait]
impl Provider for Other {
    fn supports(&self, ty: RecordType) -> bool {
        convert::kind(ty).is_some()
    }

    fn lists(&self) -> bool {
        false
    }

    async fn list(&self, _cx: &Cx) -> Result<Vec<RrSet>> {
        Err(Error::new(Code::DNS_API, format!("the zone {} cannot be listed at {}", name::show(&self.origin), self.service)).hint(
            "the crate dns-update, which reaches it, reads one record at a time: export the zone where it is administered and take its file with import_text, or compare and copy into it",
        ))
    }

    async fn read(&self, cx: &Cx, name: &Name, ty: RecordType) -> Result<Vec<RrSet>> {
        let values = self.values(cx, name, ty).await?;
        if values.is_empty() {
            return Ok(vec![]);
        }
        let mut set = RrSet::new(name.clone(), ty, 0, values);
        let written = self.written.lock().iter().find(|w| w.name == *name && w.ty == ty && w.values == set.values).map(|w| w.ttl);
        set.ttl = match written {
            Some(ttl) => ttl,
            None => self.ttl(cx, name, ty).await?,
        };
        Ok(vec![set])
    }

    async fn apply(&self, cx: &Cx, changes: &[Change]) -> Result<()> {
        let mut now = Vec::new();
        for c in changes {
            now.extend(self.read(cx, &c.name, c.ty).await?);
        }
        Change::all_as_read(changes, &now)?;
        // What is removed makes room: a CNAME stands alone.
        let (first, then): (Vec<&Change>, Vec<&Change>) = changes.iter().partition(|c| c.after.is_none());
        for (done, c) in first.into_iter().chain(then).enumerate() {
            let Some(kind) = convert::kind(c.ty) else { continue };
            let ttl = c.after.as_ref().or(c.before.as_ref()).map_or(3600, |s| s.ttl);
            let records = c.after.iter().flat_map(|s| &s.values).map(|v| convert::record(c.ty, v)).collect::<Result<Vec<_>>>()?;
            let (shown, origin) = (name::absolute(&c.name), name::absolute(&self.origin));
            let sent = self.updater.set_rrset(shown.as_str(), kind, ttl, records, origin.as_str()).boxed();
            tokio::select! {
                sent = sent => sent.map_err(|e| self.fault(cx, &format!("change {}", c.label()), e))?,
                () = cx.cancel.cancelled() => return Err(Error::new(Code::ABORTED, "stopped while changing records")),
            }
            let mut written = self.written.lock();
            written.retain(|w| w.name != c.name || w.ty != c.ty);
            written.extend(c.after.clone());
            if changes.len() > 1 {
                cx.progress(format!("changing {}", name::show(&self.origin)), done as u64 + 1, Some(changes.len() as u64), "record sets");
            }
        }
        Ok(())
    }

    async fn nameservers(&self, cx: &Cx) -> Result<Vec<String>> {
        let found = self.values(cx, &self.origin, RecordType::NS).await?;
        Ok(found.into_iter().map(|n| n.trim_end_matches('.').to_string()).collect())
    }
}
