//! What a DNS provider must be able to do. The rules (TTL, refusals, nothing to do) stand above it, in the primitives.

use async_trait::async_trait;
use hickory_proto::rr::{Name, RecordType};
use runbook_core::inventory::{Resource, Section};
use runbook_core::primitive::Cx;
use runbook_core::spec::Call;
use runbook_core::{Code, Error, Result};

use super::name;
use super::record::RrSet;
use super::rfc2136::Rfc2136;

/// The change of one record set: from what was read to what is wanted; `None` where there is none.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The name.
    pub name: Name,
    /// The type.
    pub ty: RecordType,
    /// As it was read. A provider that can refuses the change when this is no longer so.
    pub before: Option<RrSet>,
    /// As it shall be.
    pub after: Option<RrSet>,
}

/// The service that holds a zone.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Whether it can hold records of this type.
    fn supports(&self, ty: RecordType) -> bool;

    /// Reads one record set from the place where changes are made, past every cache.
    async fn read(&self, cx: &Cx, name: &Name, ty: RecordType) -> Result<Option<RrSet>>;

    /// Makes all changes, at once where the provider can. `RB0604`, retryable, when a record is not as it was read.
    async fn apply(&self, cx: &Cx, changes: &[Change]) -> Result<()>;

    /// The server that can be asked for the zone's name servers, when the provider has one.
    fn primary(&self) -> Option<String>;
}

/// A zone of the inventory with its provider.
pub struct Zone {
    /// Its name in the inventory.
    pub name: String,
    /// Its name as DNS has it.
    pub origin: Name,
    /// Who holds it.
    pub provider: Box<dyn Provider>,
    /// Authoritative servers named in the inventory; empty when they are to be asked for.
    pub nameservers: Vec<String>,
    /// Resolvers that shall see changes.
    pub resolvers: Vec<String>,
}

impl Zone {
    /// The zone that a method was called on.
    ///
    /// # Errors
    /// `RB0106` when the inventory has none of that name, `RB0104` for a kind that does not exist, what its provider finds wrong.
    pub fn of(cx: &Cx, call: &Call) -> Result<Zone> {
        let zone = call.target();
        let resource = cx.env.resource(Section::Zones, zone)?;
        let origin = name::origin(zone)?;
        Ok(Zone {
            name: zone.to_string(),
            provider: provider(cx, resource, &origin)?,
            origin,
            nameservers: resource.list("nameservers"),
            resolvers: resource.list("resolvers"),
        })
    }

    /// The full name of a record.
    ///
    /// # Errors
    /// `RB0604` when it is not a name of this zone.
    pub fn owner(&self, text: &str) -> Result<Name> {
        name::owner(&self.origin, text)
    }

    /// Reads one record set at the provider.
    ///
    /// # Errors
    /// What the provider says.
    pub async fn read(&self, cx: &Cx, name: &Name, ty: RecordType) -> Result<Option<RrSet>> {
        self.provider.read(cx, name, ty).await.map_err(|e| self.named(e))
    }

    /// Applies changes and proves by reading that they took. A change whose answer was lost is recognised as done.
    ///
    /// # Errors
    /// What the provider says; `RB0604` when afterwards the record is not as wanted.
    pub async fn apply(&self, cx: &Cx, changes: Vec<Change>) -> Result<()> {
        self.refuse(&changes).map_err(|e| self.named(e))?;
        let applied = self.provider.apply(cx, &changes).await;
        if let Err(e) = &applied
            && !matches!(e.code, Code::DNS_RECORD | Code::DNS_QUERY)
        {
            return Err(self.named(e.clone()));
        }
        for c in &changes {
            let now = self.provider.read(cx, &c.name, c.ty).await;
            match (&applied, now) {
                (_, Ok(now)) if now == c.after => {}
                (Err(e), _) => return Err(self.named(e.clone())),
                (_, Err(e)) => return Err(self.named(e)),
                (Ok(()), Ok(now)) => {
                    let is = now.map_or_else(|| "nothing".into(), |s| format!("{} with TTL {} s", s.shown().join(", "), s.ttl));
                    return Err(self.named(
                        Error::new(
                            Code::DNS_RECORD,
                            format!("{} {} was changed, and the primary now answers {is}", name::show(&c.name), c.ty),
                        )
                        .hint("somebody else changes this record, or the server alters what it is given")
                        .retryable(true),
                    ));
                }
            }
        }
        Ok(())
    }

    fn refuse(&self, changes: &[Change]) -> Result<()> {
        for c in changes {
            let at = format!("{} {}", name::show(&c.name), c.ty);
            if !self.provider.supports(c.ty) {
                return Err(Error::new(Code::DNS_RECORD, format!("the provider of {} cannot hold {at}", name::show(&self.origin))));
            }
            let apex = c.name == self.origin;
            if c.ty == RecordType::SOA || (apex && c.ty == RecordType::NS) {
                return Err(Error::new(Code::DNS_RECORD, format!("{at} is what holds the zone together and is not changed by runbooks"))
                    .hint("change it where the zone is administered"));
            }
            if apex && c.ty == RecordType::CNAME && c.after.is_some() {
                return Err(Error::new(Code::DNS_RECORD, format!("{at}: the zone's own name cannot be a CNAME"))
                    .hint("point it with A and AAAA records"));
            }
        }
        Ok(())
    }

    /// Names the zone in an error.
    pub fn named(&self, e: Error) -> Error {
        if e.host.is_none() { e.host(self.name.clone()) } else { e }
    }
}

fn provider(cx: &Cx, resource: &Resource, origin: &Name) -> Result<Box<dyn Provider>> {
    match resource.kind.as_str() {
        "rfc2136" => Ok(Box::new(Rfc2136::new(cx, resource, origin.clone())?)),
        other => Err(Error::new(Code::INVENTORY_TYPE, format!("the zone \"{}\" has the unknown kind \"{other}\"", resource.name))
            .hint("there is: rfc2136")),
    }
}
