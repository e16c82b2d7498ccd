//! The services of the crate `dns-update` that are offered, and what each wants to be told.

use std::time::Duration;

use dns_update::DnsUpdater;
use dns_update::providers::ovh::OvhEndpoint;
use runbook_core::inventory::Resource;
use runbook_core::{Code, Error, Result};

/// How long a service may take to answer.
const TIMEOUT: Option<Duration> = Some(Duration::from_secs(30));

/// What a service wants beside its token.
struct Given<'a> {
    token: &'a str,
    user: &'a str,
    account: &'a str,
    project: &'a str,
    api: &'a str,
}

/// A service.
pub(super) struct Service {
    /// Its name in the inventory.
    pub name: &'static str,
    /// The settings that it needs beside the token.
    needs: &'static [&'static str],
    /// What its token and settings are, as the service calls them.
    doc: &'static str,
    make: fn(&Given) -> dns_update::Result<DnsUpdater>,
}

macro_rules! services {
    ($($name:literal, [$($need:literal),*], $doc:literal, $make:expr;)*) => {
        const SERVICES: &[Service] = &[$(Service { name: $name, needs: &[$($need),*], doc: $doc, make: $make }),*];
    };
}

services! {
    "arvancloud", [], "API key", |g| DnsUpdater::new_arvancloud(g.token, TIMEOUT);
    "autodns", ["user"], "password; login", |g| DnsUpdater::new_autodns(g.user, g.token, None, TIMEOUT);
    "baiducloud", ["user"], "secret key; access key", |g| DnsUpdater::new_baiducloud(g.user, g.token, TIMEOUT);
    "bunny", [], "API key", |g| DnsUpdater::new_bunny(g.token, TIMEOUT);
    "cloudns", ["user"], "password; auth-id", |g| DnsUpdater::new_cloudns(Some(g.user), None::<&str>, g.token, TIMEOUT);
    "constellix", ["user"], "secret key; API key", |g| DnsUpdater::new_constellix(g.user, g.token, TIMEOUT);
    "cpanel", ["api", "user"], "API token; address; login", |g| DnsUpdater::new_cpanel(g.api, g.user, g.token, TIMEOUT);
    "desec", [], "token", |g| DnsUpdater::new_desec(g.token, TIMEOUT);
    "digitalocean", [], "personal access token", |g| DnsUpdater::new_digitalocean(g.token, TIMEOUT);
    "dnsimple", ["account"], "API token; account id", |g| DnsUpdater::new_dnsimple(g.token, g.account, TIMEOUT);
    "dnsmadeeasy", ["user"], "API secret; API key", |g| DnsUpdater::new_dnsmadeeasy(g.user, g.token, TIMEOUT);
    "domeneshop", ["user"], "API secret; API token", |g| DnsUpdater::new_domeneshop(g.user, g.token, TIMEOUT);
    "dreamhost", [], "API key", |g| DnsUpdater::new_dreamhost(g.token, TIMEOUT);
    "dynu", [], "API key", |g| DnsUpdater::new_dynu(g.token, TIMEOUT);
    "easydns", ["user"], "API key; API token", |g| DnsUpdater::new_easydns(g.user, g.token, TIMEOUT);
    "exoscale", ["user"], "API secret; API key", |g| DnsUpdater::new_exoscale(g.user, g.token, TIMEOUT);
    "gandiv5", [], "personal access token", |g| DnsUpdater::new_gandiv5(g.token, TIMEOUT);
    "gcore", [], "API token", |g| DnsUpdater::new_gcore(g.token, TIMEOUT);
    "glesys", ["user"], "API key; login", |g| DnsUpdater::new_glesys(g.user, g.token, TIMEOUT);
    "godaddy", ["user"], "API secret; API key", |g| DnsUpdater::new_godaddy(g.user, g.token, TIMEOUT);
    "hetzner", [], "API token", |g| DnsUpdater::new_hetzner(g.token, TIMEOUT);
    "hostingde", [], "API key", |g| DnsUpdater::new_hostingde(g.token, TIMEOUT);
    "hostinger", [], "API token", |g| DnsUpdater::new_hostinger(g.token, TIMEOUT);
    "ibmcloud", ["user"], "API key; login", |g| DnsUpdater::new_ibmcloud(g.user, g.token, TIMEOUT);
    "infomaniak", [], "access token", |g| DnsUpdater::new_infomaniak(g.token, TIMEOUT);
    "inwx", ["user"], "password; login", |g| DnsUpdater::new_inwx(g.user, g.token, false, TIMEOUT);
    "ionos", [], "API key", |g| DnsUpdater::new_ionos(g.token, TIMEOUT);
    "linode", [], "personal access token", |g| DnsUpdater::new_linode(g.token, TIMEOUT);
    "luadns", ["user"], "API token; login", |g| DnsUpdater::new_luadns(g.user, g.token, TIMEOUT);
    "mythicbeasts", ["user"], "API secret; key id", |g| DnsUpdater::new_mythicbeasts(g.user, g.token, TIMEOUT);
    "namedotcom", ["user"], "API token; login", |g| DnsUpdater::new_namedotcom(g.user, g.token, TIMEOUT);
    "namesilo", [], "API key", |g| DnsUpdater::new_namesilo(g.token, TIMEOUT);
    "netcup", ["account", "user"], "API password; customer number; API key", |g| DnsUpdater::new_netcup(g.account, g.user, g.token, TIMEOUT);
    "netlify", [], "access token", |g| DnsUpdater::new_netlify(g.token, TIMEOUT);
    "ns1", [], "API key", |g| DnsUpdater::new_ns1(g.token, TIMEOUT);
    "ovh", ["user", "account"], "application secret; application key; consumer key", |g| {
        DnsUpdater::new_ovh(g.user, g.token, g.account, OvhEndpoint::OvhEu, TIMEOUT)
    };
    "pdns", ["api"], "API key; address", |g| DnsUpdater::new_pdns(g.token, Some(g.api), None::<&str>, TIMEOUT);
    "plesk", ["api"], "API key; address", |g| DnsUpdater::new_plesk(g.api, g.token, TIMEOUT);
    "porkbun", ["user"], "secret API key; API key", |g| DnsUpdater::new_porkbun(g.user, g.token, TIMEOUT);
    "safedns", [], "API key", |g| DnsUpdater::new_safedns(g.token, TIMEOUT);
    "scaleway", [], "secret key", |g| DnsUpdater::new_scaleway(g.token, TIMEOUT);
    "selectel", ["user", "account", "project"], "password; login; account id; project id", |g| {
        DnsUpdater::new_selectel(g.user, g.token, g.account, g.project, TIMEOUT)
    };
    "simplycom", ["account"], "API key; account name", |g| DnsUpdater::new_simplycom(g.account, g.token, TIMEOUT);
    "spaceship", ["user"], "API secret; API key", |g| DnsUpdater::new_spaceship(g.user, g.token, TIMEOUT);
    "transip", ["user"], "private key (PEM); login", |g| DnsUpdater::new_transip(g.user, g.token, false, TIMEOUT);
    "ultradns", ["user"], "password; login", |g| DnsUpdater::new_ultradns(g.user, g.token, None, TIMEOUT);
    "vercel", [], "access token", |g| DnsUpdater::new_vercel(g.token, Some(g.account).filter(|a| !a.is_empty()), TIMEOUT);
    "vultr", [], "API key", |g| DnsUpdater::new_vultr(g.token, TIMEOUT);
    "websupport", ["user"], "secret; API key", |g| DnsUpdater::new_websupport(g.user, g.token, TIMEOUT);
    "zoneeu", ["user"], "API key; login", |g| DnsUpdater::new_zoneeu(g.user, g.token, TIMEOUT);
}

/// The service of that name.
///
/// # Errors
/// `RB0104` naming those that there are.
pub(super) fn named(zone: &Resource, wanted: &str) -> Result<&'static Service> {
    SERVICES.iter().find(|s| s.name == wanted).ok_or_else(|| {
        let e = Error::new(Code::INVENTORY_TYPE, format!("the zone \"{}\" has the unknown provider \"{wanted}\"", zone.name));
        let names: Vec<&str> = SERVICES.iter().map(|s| s.name).collect();
        match wanted {
            "cloudflare" | "route53" | "rfc2136" | "powerdns" => e.hint(format!("it has a kind of its own: kind = \"{wanted}\"")),
            _ => e.hint(format!("there are: {}", names.join(", "))),
        }
    })
}

impl Service {
    /// What the token is, and each setting beside it.
    fn wants(&self) -> String {
        let mut parts = self.doc.split("; ");
        let token = parts.next().unwrap_or_default();
        let more: String = self.needs.iter().zip(parts).map(|(key, what)| format!(", `{key}`: {what}")).collect();
        format!("{token}{more}")
    }

    /// Makes the crate's client. Nothing is contacted.
    ///
    /// # Errors
    /// `RB0114` when a setting is missing, `RB0104` when the crate does not take one.
    pub(super) fn connect(&self, zone: &Resource, token: &str) -> Result<DnsUpdater> {
        for key in self.needs {
            zone.need(key).map_err(|e| e.hint(format!("{} wants token: {}", self.name, self.wants())))?;
        }
        let api = zone.str("api").map(|a| super::super::api::address(zone, a)).transpose()?;
        let text = |key| zone.str(key).unwrap_or_default();
        let api = api.map(|a| a.as_str().trim_end_matches('/').to_string()).unwrap_or_default();
        let given = Given { token, user: text("user"), account: text("account"), project: text("project"), api: &api };
        (self.make)(&given).map_err(|e| {
            Error::new(Code::INVENTORY_TYPE, format!("the settings of the zone \"{}\" are none for {}: {e}", zone.name, self.name))
        })
    }
}

/// The table of services as the documentation has it.
#[cfg(test)]
fn markdown() -> String {
    let mut out = String::from("| `provider` | `token` and what else it wants |\n|---|---|\n");
    for s in SERVICES {
        out.push_str(&format!("| `{}` | {} |\n", s.name, s.wants()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_every_service() {
        let page = include_str!("../../../../../docs/how-to/move-a-zone.md");
        assert!(page.contains(&markdown()), "docs/how-to/move-a-zone.md lacks this table:\n{}", markdown());
    }

    #[test]
    fn every_service_tells_what_each_of_its_settings_is() {
        for s in SERVICES {
            assert_eq!(s.doc.split("; ").count(), s.needs.len() + 1, "{}", s.name);
        }
        assert!(SERVICES.is_sorted_by_key(|s| s.name));
    }

    #[test]
    fn every_service_can_be_made_without_asking_anybody() {
        for s in SERVICES {
            let mut zone = Resource { name: "z".into(), kind: "dns-update".into(), ..Resource::default() };
            for key in s.needs {
                zone.settings.insert((*key).to_string(), if *key == "api" { "https://127.0.0.1:1" } else { "1" }.into());
            }
            let _ = rustls::crypto::ring::default_provider().install_default();
            // TransIP's is a private key, which is read at once.
            assert!(s.connect(&zone, "t").is_ok() || s.name == "transip", "{}", s.name);
            if let Some(key) = s.needs.first() {
                zone.settings.remove(*key);
                assert_eq!(s.connect(&zone, "t").err().map(|e| e.code), Some(Code::INVENTORY_MISSING), "{}", s.name);
            }
        }
    }
}
