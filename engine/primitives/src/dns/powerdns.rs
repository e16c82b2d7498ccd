//! The provider for PowerDNS authoritative servers, by their HTTP API.
//!
//! All changes go in one PATCH, which the server makes in one transaction. The API takes no conditions, so the sets are read once more
//! right before, and a change by somebody else that far is refused.

use async_trait::async_trait;
use hickory_proto::rr::{Name, RecordType};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Method, Url};
use runbook_core::inventory::Resource;
use runbook_core::primitive::Cx;
use runbook_core::secret::Secret;
use runbook_core::{Code, Error, Result};
use serde_json::{Value as Json, json};
use tokio::sync::OnceCell;

use super::api::{Answer, address, beginning, client, send};
use super::codec::{type_name, type_of};
use super::name;
use super::provider::{Change, Provider};
use super::record::{RrSet, canonical};
use crate::ssh::Place;
use crate::ssh::tunnel::{self, Forward};

/// A zone on a PowerDNS server.
pub struct PowerDns {
    origin: Name,
    zone: Url,
    key: Secret,
    key_name: String,
    host: Option<String>,
    /// Made on first use; with the way through the host, which lasts as long.
    client: OnceCell<(Client, Option<Forward>)>,
}

impl PowerDns {
    /// Reads the settings `api`, `api_key`, `server_id`, `host`.
    ///
    /// # Errors
    /// `RB0114` when one is missing, `RB0109` when the secret cannot be had, `RB0104` when `api` is none that can be used.
    pub fn new(cx: &Cx, resource: &Resource, origin: Name) -> Result<Self> {
        let api = resource.need("api")?;
        let key_name = resource.need("api_key")?.to_string();
        let mut zone = address(resource, api)?;
        let server = resource.str("server_id").unwrap_or("localhost");
        // The API's name of a zone: as in DNS, with `=2F` for a slash.
        let id = name::absolute(&origin).replace('/', "=2F");
        if let Ok(mut segments) = zone.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1", "servers", server, "zones", &id]);
        }
        let (key, host) = (cx.secret(&key_name)?, resource.str("host").map(str::to_string));
        Ok(PowerDns { origin, zone, key, key_name, host, client: OnceCell::new() })
    }

    /// The client; where the API is that of a host, over its SSH connection.
    async fn client(&self, cx: &Cx) -> Result<&Client> {
        let made = async || {
            let Some(host) = &self.host else { return Ok((client(cx, &self.zone, None)?, None)) };
            let name = self.zone.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
            let place = Place::Tcp(name.to_string(), self.zone.port_or_known_default().unwrap_or(8081));
            let way = tunnel::forward(cx, host, &place, None).await?;
            Ok((client(cx, &self.zone, Some(&way.path()))?, Some(way)))
        };
        self.client.get_or_try_init(made).await.map(|(client, _)| client)
    }

    async fn ask(&self, cx: &Cx, method: Method, url: Url, body: Option<Json>, what: &str) -> Result<Answer> {
        let client = self.client(cx).await?;
        let mut request = client.request(method, url).header("X-API-Key", self.key.reveal());
        if let Some(b) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(b.to_string());
        }
        let request = request.build().map_err(|_| {
            Error::new(
                Code::DNS_API,
                format!("the secret \"{}\" cannot be a key of the API: it has characters that headers cannot hold", self.key_name),
            )
        })?;
        let answer = send(cx, client, "PowerDNS", what, request).await?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        let said = serde_json::from_str::<Json>(&answer.body)
            .ok()
            .and_then(|j| j.get("error").and_then(Json::as_str).map(str::to_string))
            .unwrap_or_else(|| beginning(&answer.body));
        let e = Error::new(Code::DNS_API, format!("PowerDNS refuses to {what}: {said} ({})", answer.status.as_u16()));
        Err(match answer.status.as_u16() {
            401 | 403 => e.hint(format!(
                "the secret \"{}\" must be the server's api-key, and webserver-allow-from must let this machine in",
                self.key_name
            )),
            404 => e.hint(format!(
                "create the zone first (pdnsutil create-zone {}), or check the name of the server and zone",
                name::show(&self.origin)
            )),
            422 => e.hint("the server does not take a record like this; its text says why"),
            _ => e.hint("see the server's log").retryable(answer.status.is_server_error()),
        })
    }

    /// The zone as the API gives it; of one name and type where the server can choose.
    async fn rrsets(&self, cx: &Cx, one: Option<(&Name, RecordType)>) -> Result<Vec<Json>> {
        let mut url = self.zone.clone();
        if let Some((name, ty)) = one {
            url.query_pairs_mut().append_pair("rrset_name", &name::absolute(name)).append_pair("rrset_type", &type_name(ty));
        }
        let what = format!("list the records of {}", name::show(&self.origin));
        let answer = self.ask(cx, Method::GET, url, None, &what).await?;
        let mut json: Json = serde_json::from_str(&answer.body).map_err(|e| {
            Error::new(Code::DNS_API, format!("PowerDNS does not answer JSON when asked to {what}: {e}"))
                .hint("check the address of the API")
        })?;
        match json.get_mut("rrsets").map(Json::take) {
            Some(Json::Array(sets)) => Ok(sets),
            _ => Err(Error::new(Code::DNS_API, format!("PowerDNS does not list the records of {}", name::show(&self.origin)))),
        }
    }
}

fn text<'a>(json: &'a Json, key: &str) -> &'a str {
    json.get(key).and_then(Json::as_str).unwrap_or("")
}

/// A set of the API; `None` when all its records are disabled.
fn set(json: &Json) -> Result<Option<RrSet>> {
    let (shown, ty) = (text(json, "name"), text(json, "type"));
    let odd = |why: String| Error::new(Code::DNS_API, format!("PowerDNS has the record set {shown} {ty}, which is not understood: {why}"));
    let name = name::from_file(shown, None).map_err(odd)?.to_lowercase();
    let ty = type_of(ty).ok_or_else(|| odd("an unknown type".into()))?;
    let ttl = json.get("ttl").and_then(Json::as_u64).and_then(|n| u32::try_from(n).ok()).ok_or_else(|| odd("it has no TTL".into()))?;
    let values: Vec<String> = enabled(json, true).map(|r| canonical(ty, text(r, "content"), None)).collect();
    Ok((!values.is_empty()).then(|| RrSet::new(name, ty, ttl, values)))
}

fn enabled(json: &Json, yes: bool) -> impl Iterator<Item = &Json> {
    let records = json.get("records").and_then(Json::as_array).into_iter().flatten();
    records.filter(move |r| r.get("disabled").and_then(Json::as_bool).unwrap_or(false) != yes)
}

/// The one PATCH for all changes. Records that are disabled at the server stay as they are.
fn patch(changes: &[Change], now: &[Json]) -> Json {
    let sets: Vec<Json> = changes
        .iter()
        .map(|c| {
            let (name, ty) = (name::absolute(&c.name), type_name(c.ty));
            let disabled = now.iter().filter(|s| text(s, "name").eq_ignore_ascii_case(&name) && text(s, "type") == ty);
            let mut records: Vec<Json> = disabled.flat_map(|s| enabled(s, false)).cloned().collect();
            let ttl = c.after.as_ref().or(c.before.as_ref()).map_or(3600, |s| s.ttl);
            records.extend(c.after.iter().flat_map(|s| &s.values).map(|v| json!({ "content": v, "disabled": false })));
            if records.is_empty() {
                return json!({ "name": name, "type": ty, "changetype": "DELETE" });
            }
            json!({ "name": name, "type": ty, "ttl": ttl, "changetype": "REPLACE", "records": records })
        })
        .collect();
    json!({ "rrsets": sets })
}

#[async_trait]
impl Provider for PowerDns {
    fn supports(&self, ty: RecordType) -> bool {
        // Types that the server knows and this program does not are taken in the server's own form only.
        ty != RecordType::from(29) && ty != RecordType::from(42)
    }

    async fn list(&self, cx: &Cx) -> Result<Vec<RrSet>> {
        let all = self.rrsets(cx, None).await?;
        Ok(all.iter().map(set).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    async fn read(&self, cx: &Cx, name: &Name, ty: RecordType) -> Result<Vec<RrSet>> {
        let all = self.rrsets(cx, Some((name, ty))).await?;
        let (shown, ty_) = (name::absolute(name), type_name(ty));
        // Servers before 4.8 send the whole zone.
        let mine = all.iter().filter(|s| text(s, "name").eq_ignore_ascii_case(&shown) && text(s, "type") == ty_);
        Ok(mine.map(set).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    async fn apply(&self, cx: &Cx, changes: &[Change]) -> Result<()> {
        let now = self.rrsets(cx, None).await?;
        let sets: Vec<RrSet> = now.iter().map(set).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        Change::all_as_read(changes, &sets)?;
        let what = match changes {
            [one] => format!("change {}", one.label()),
            all => format!("change {} record sets of {}", all.len(), name::show(&self.origin)),
        };
        self.ask(cx, Method::PATCH, self.zone.clone(), Some(patch(changes, &now)), &what).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disabled_records_are_not_seen_and_not_lost() {
        let now = json!({ "name": "a.example.test.", "type": "A", "ttl": 60, "records": [
            { "content": "192.0.2.1", "disabled": false }, { "content": "192.0.2.9", "disabled": true }] });
        let before = set(&now).unwrap().unwrap();
        assert_eq!(before.values, ["192.0.2.1"]);
        let after = RrSet { values: vec!["192.0.2.2".into()], ..before.clone() };
        let sent = patch(&[Change::to(Some(before.clone()), after)], std::slice::from_ref(&now));
        assert_eq!(
            sent["rrsets"][0]["records"],
            json!([{ "content": "192.0.2.9", "disabled": true }, { "content": "192.0.2.2", "disabled": false }])
        );
        let sent = patch(&[Change::delete(before.clone())], std::slice::from_ref(&now));
        assert_eq!(
            (sent["rrsets"][0]["changetype"].as_str(), sent["rrsets"][0]["records"].as_array().unwrap().len()),
            (Some("REPLACE"), 1)
        );
        assert_eq!(patch(&[Change::delete(before)], &[])["rrsets"][0]["changetype"], "DELETE");
    }
}
