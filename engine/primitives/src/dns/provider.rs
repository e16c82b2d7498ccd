//! What a DNS provider must be able to do. The rules (TTL, refusals, nothing to do) stand above it, in the primitives.

use async_trait::async_trait;
use hickory_proto::rr::{Name, RecordType};
use runbook_core::inventory::{Resource, Section};
use runbook_core::primitive::Cx;
use runbook_core::spec::Call;
use runbook_core::{Code, Error, Result};

use super::cloudflare::Cloudflare;
use super::codec::type_name;
use super::name;
use super::on_host::OnHost;
use super::plan::Allow;
use super::powerdns::PowerDns;
use super::record::RrSet;
use super::rfc2136::Rfc2136;
use super::route53::Route53;

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

impl Change {
    /// Makes a set so, whatever it was.
    pub fn to(before: Option<RrSet>, after: RrSet) -> Change {
        Change { name: after.name.clone(), ty: after.ty, before, after: Some(after) }
    }

    /// Removes a set.
    pub fn delete(before: RrSet) -> Change {
        Change { name: before.name.clone(), ty: before.ty, before: Some(before), after: None }
    }

    /// `shop.example.com A`, for messages; with a routing policy also which of the sets.
    pub fn label(&self) -> String {
        let set = self.before.as_ref().or(self.after.as_ref());
        let id = set.and_then(RrSet::id).map_or(String::new(), |id| format!(" \"{id}\""));
        format!("{} {}{id}", name::show(&self.name), type_name(self.ty))
    }

    /// Refuses when a set that is to be changed is not as it was read, given the sets as they are right before the writing: for providers
    /// that take no conditions.
    ///
    /// # Errors
    /// `RB0604`, retryable.
    pub fn all_as_read(changes: &[Change], now: &[RrSet]) -> Result<()> {
        let moved = |c: &&Change| {
            let place = c.before.as_ref().or(c.after.as_ref());
            now.iter().find(|s| place.is_some_and(|p| p.same_place(s))) != c.before.as_ref()
        };
        changes.iter().find(moved).map_or(Ok(()), |c| {
            let why = format!("{} was changed by somebody else between reading and writing; nothing was written", c.label());
            Err(Error::new(Code::DNS_RECORD, why).hint("look at the record, then try again").retryable(true))
        })
    }

    /// Whether a list of sets has what the change wants.
    fn holds(&self, now: &[RrSet]) -> bool {
        match (&self.after, &self.before) {
            (Some(after), _) => now.contains(after),
            (None, Some(before)) => !now.iter().any(|s| s.same_place(before)),
            (None, None) => true,
        }
    }
}

/// What a provider can beyond plain record sets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Can {
    /// It answers with a proxy of its own in place of the values.
    pub proxy: bool,
    /// It holds several sets of one name and type and chooses between them.
    pub routing: bool,
    /// It takes a CNAME at the zone's own name and answers with the addresses behind it.
    pub apex_cname: bool,
}

/// The service that holds a zone.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Whether it can hold records of this type.
    fn supports(&self, ty: RecordType) -> bool;

    /// What it can beyond that.
    fn can(&self) -> Can {
        Can::default()
    }

    /// The set as the provider is able to hold it (a TTL within its limits); the same set for most.
    fn fit(&self, set: RrSet) -> RrSet {
        set
    }

    /// Whether the whole zone can be read; where not, its record sets are read one by one by their names.
    fn lists(&self) -> bool {
        true
    }

    /// Reads the whole zone from the place where changes are made, values with their TTL.
    async fn list(&self, cx: &Cx) -> Result<Vec<RrSet>>;

    /// Reads the sets of one name and type: none, one, or several with routing.
    async fn read(&self, cx: &Cx, name: &Name, ty: RecordType) -> Result<Vec<RrSet>> {
        let mut all = self.list(cx).await?;
        all.retain(|s| s.name == *name && s.ty == ty);
        Ok(all)
    }

    /// Makes all changes, at once where the provider can. `RB0604`, retryable, when a record is not as it was read.
    async fn apply(&self, cx: &Cx, changes: &[Change]) -> Result<()>;

    /// The server that can be asked for the zone's name servers, when the provider has one.
    fn primary(&self) -> Option<String> {
        None
    }

    /// The zone's name servers as the provider knows them; empty when they are to be asked for.
    async fn nameservers(&self, _cx: &Cx) -> Result<Vec<String>> {
        Ok(vec![])
    }
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

/// More changes than this are proven by reading the whole zone once.
const READ_ONE_BY_ONE: usize = 6;

impl Zone {
    /// The zone that a method was called on.
    ///
    /// # Errors
    /// `RB0106` when the inventory has none of that name, `RB0104` for a kind that does not exist, what its provider finds wrong.
    pub fn of(cx: &Cx, call: &Call) -> Result<Zone> {
        Zone::named_in(cx, call.target())
    }

    /// A zone by its name in the inventory.
    ///
    /// # Errors
    /// As [`Zone::of`].
    pub fn named_in(cx: &Cx, zone: &str) -> Result<Zone> {
        let resource = cx.env.resource(Section::Zones, zone)?;
        let origin = name::origin(resource.str("zone").unwrap_or(zone))?;
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
    /// What the provider says; `RB0604` when there are several, chosen between by a routing policy.
    pub async fn read(&self, cx: &Cx, name: &Name, ty: RecordType) -> Result<Option<RrSet>> {
        let mut found = self.read_all(cx, name, ty).await?;
        if let Some(set) = found.iter().find(|s| s.routing.is_some()) {
            let ids: Vec<&str> = found.iter().filter_map(RrSet::id).collect();
            return Err(self.named(
                Error::new(Code::DNS_RECORD, format!("{} has several record sets with a routing policy: {}", set.label(), ids.join(", ")))
                    .hint("use set_routed(name, type, id, values, …), delete_routed, set_weights and routed for them"),
            ));
        }
        Ok(found.pop())
    }

    /// Reads all record sets of a name and type, also those with a routing policy.
    ///
    /// # Errors
    /// What the provider says.
    pub async fn read_all(&self, cx: &Cx, name: &Name, ty: RecordType) -> Result<Vec<RrSet>> {
        let mut sets = self.provider.read(cx, name, ty).await.map_err(|e| self.named(e))?;
        sets.sort_by(|a, b| a.id().cmp(&b.id()));
        Ok(sets)
    }

    /// Reads the whole zone, by name and type.
    ///
    /// # Errors
    /// What the provider says.
    pub async fn list(&self, cx: &Cx) -> Result<Vec<RrSet>> {
        let mut sets = self.provider.list(cx).await.map_err(|e| self.named(e))?;
        // Servers give them in any order; results and messages have one.
        sets.sort_by(|a, b| (&a.name, u16::from(a.ty), a.id()).cmp(&(&b.name, u16::from(b.ty), b.id())));
        Ok(sets)
    }

    /// Reads the whole zone or, where that cannot be, the sets that have the places of these.
    ///
    /// # Errors
    /// What the provider says.
    pub async fn list_or_read(&self, cx: &Cx, places: &[RrSet]) -> Result<Vec<RrSet>> {
        if self.provider.lists() {
            return self.list(cx).await;
        }
        let mut found: Vec<RrSet> = Vec::new();
        for (done, p) in places.iter().enumerate() {
            if self.provider.supports(p.ty) && !found.iter().any(|f| f.name == p.name && f.ty == p.ty) {
                found.extend(self.read_all(cx, &p.name, p.ty).await?);
            }
            cx.progress(format!("reading {}", name::show(&self.origin)), done as u64 + 1, Some(places.len() as u64), "record sets");
        }
        Ok(found)
    }

    /// Applies changes and proves by reading that they took. A change whose answer was lost is recognised as done.
    ///
    /// # Errors
    /// What the provider says; `RB0604` when afterwards the record is not as wanted.
    pub async fn apply(&self, cx: &Cx, changes: Vec<Change>) -> Result<()> {
        self.apply_allowed(cx, changes, &Allow::default()).await
    }

    /// As [`Zone::apply`], with what is allowed beyond the usual.
    ///
    /// # Errors
    /// As [`Zone::apply`].
    pub async fn apply_allowed(&self, cx: &Cx, changes: Vec<Change>, allow: &Allow) -> Result<()> {
        self.refuse(&changes, allow).map_err(|e| self.named(e))?;
        let applied = self.provider.apply(cx, &changes).await;
        if let Err(e) = &applied
            && !matches!(e.code, Code::DNS_RECORD | Code::DNS_QUERY)
        {
            return Err(self.named(e.clone()));
        }
        let whole = if changes.len() > READ_ONE_BY_ONE && self.provider.lists() { Some(self.provider.list(cx).await) } else { None };
        for c in &changes {
            let one;
            let now = match &whole {
                Some(all) => all,
                None => {
                    one = self.provider.read(cx, &c.name, c.ty).await;
                    &one
                }
            };
            match (&applied, now) {
                (_, Ok(now)) if c.holds(now) => {}
                (Err(e), _) | (_, Err(e)) => return Err(self.named(e.clone())),
                (Ok(()), Ok(now)) => {
                    let is: Vec<String> = now.iter().filter(|s| s.name == c.name && s.ty == c.ty).map(RrSet::content).collect();
                    let is = if is.is_empty() { "nothing".to_string() } else { is.join("; ") };
                    return Err(self.named(
                        Error::new(Code::DNS_RECORD, format!("{} was changed, and the provider now has {is}", c.label()))
                            .hint("somebody else changes this record, or the server alters what it is given")
                            .retryable(true),
                    ));
                }
            }
        }
        Ok(())
    }

    fn refuse(&self, changes: &[Change], allow: &Allow) -> Result<()> {
        let can = self.provider.can();
        for c in changes {
            let at = c.label();
            let no = |why: String| Error::new(Code::DNS_RECORD, why);
            if !self.provider.supports(c.ty) {
                return Err(no(format!("the provider of {} cannot hold {at}", name::show(&self.origin)))
                    .hint("leave this record out, or keep the zone where it is held now"));
            }
            let apex = c.name == self.origin;
            if c.ty == RecordType::SOA {
                return Err(no(format!("{at} is what holds the zone together and is not changed by runbooks"))
                    .hint("change it where the zone is administered"));
            }
            if apex && c.ty == RecordType::NS && (!allow.root_ns || c.after.is_none()) {
                let hint = if c.after.is_none() {
                    "change it where the zone is administered"
                } else {
                    "change it where the zone is administered or, if this is meant, allow it: #{ root_ns: true }"
                };
                return Err(no(format!("{at} is what holds the zone together and is not changed by runbooks")).hint(hint));
            }
            let Some(after) = &c.after else { continue };
            if apex && c.ty == RecordType::CNAME && !can.apex_cname {
                return Err(no(format!("{at}: the zone's own name cannot be a CNAME")).hint("point it with A and AAAA records"));
            }
            if after.proxied && !can.proxy {
                return Err(no(format!("{at} cannot be proxied: the provider of {} has no proxy", name::show(&self.origin)))
                    .hint("leave out proxied, which zones of the kind \"cloudflare\" have"));
            }
            if after.routing.is_some() && !can.routing {
                return Err(no(format!("{at}: the provider of {} has no routing policies", name::show(&self.origin)))
                    .hint("zones of the kind \"route53\" have them"));
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
        "cloudflare" => Ok(Box::new(Cloudflare::new(cx, resource, origin.clone())?)),
        "powerdns" => Ok(Box::new(PowerDns::new(cx, resource, origin.clone())?)),
        "zone-file" => Ok(Box::new(OnHost::new(resource, origin.clone())?)),
        #[cfg(feature = "dns-services")]
        "dns-update" => Ok(Box::new(super::other::Other::new(cx, resource, origin.clone())?)),
        #[cfg(not(feature = "dns-services"))]
        "dns-update" => Err(Error::new(
            Code::INVENTORY_TYPE,
            format!("the zone \"{}\" has the kind \"dns-update\", which this build does not have", resource.name),
        )
        .hint("build it with: cargo build --release --features dns-services")),
        "route53" => Ok(Box::new(Route53::new(cx, resource, origin.clone())?)),
        other => Err(Error::new(Code::INVENTORY_TYPE, format!("the zone \"{}\" has the unknown kind \"{other}\"", resource.name))
            .hint("there are: cloudflare, dns-update, powerdns, rfc2136, route53, zone-file")),
    }
}
