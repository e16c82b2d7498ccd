//! The provider for zones at Cloudflare, by its API (version 4).
//!
//! Changes go through the batch endpoint, which makes them all or none. The API takes no conditions, so the records are read once more
//! right before, and a change by somebody else that far is refused. Records keep their identity, comment and tags when their value moves.

use std::collections::BTreeMap;

use async_trait::async_trait;
use hickory_proto::rr::{Name, RecordType};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, Method, Url};
use runbook_core::inventory::Resource;
use runbook_core::primitive::Cx;
use runbook_core::secret::Secret;
use runbook_core::{Code, Error, Result};
use serde_json::{Map, Value as Json, json};
use tokio::sync::OnceCell;

use super::api::{address, beginning, client, credential, environment, send};
use super::codec::{Piece, pieces, quoted, type_name, type_of};
use super::name;
use super::provider::{Can, Change, Provider};
use super::record::{RrSet, canonical};

/// Where the API is unless told.
const API: &str = "https://api.cloudflare.com/client/v4";
/// The environment variables that hold a token, the usual one first.
const VARIABLES: [&str; 2] = ["CLOUDFLARE_API_TOKEN", "CF_DNS_API_TOKEN"];
/// The TTL behind "automatic" (1), which proxied records always have.
const AUTOMATIC_S: u32 = 300;
/// What every plan takes.
const TTL_S: (u32, u32) = (60, 86_400);
/// How many records are asked for at once, and how many are changed in one batch.
const PAGE: usize = 500;
const BATCH: usize = 200;

/// What the service calls the parts of a value, in the order of zone files.
fn parts(ty: RecordType) -> &'static [&'static str] {
    match ty {
        RecordType::CAA => &["flags", "tag", "value"],
        RecordType::CERT => &["type", "key_tag", "algorithm", "certificate"],
        RecordType::DNSKEY => &["flags", "protocol", "algorithm", "public_key"],
        RecordType::DS => &["key_tag", "algorithm", "digest_type", "digest"],
        RecordType::NAPTR => &["order", "preference", "flags", "service", "regex", "replacement"],
        RecordType::SMIMEA | RecordType::TLSA => &["usage", "selector", "matching_type", "certificate"],
        RecordType::SRV => &["priority", "weight", "port", "target"],
        RecordType::SSHFP => &["algorithm", "type", "fingerprint"],
        RecordType::HTTPS | RecordType::SVCB => &["priority", "target", "value"],
        other if u16::from(other) == 256 => &["priority", "weight", "target"],
        _ => &[],
    }
}

/// Which of these are texts in quotes, and which are names.
fn is_quoted(ty: RecordType, part: &str) -> bool {
    match ty {
        RecordType::CAA => part == "value",
        RecordType::NAPTR => matches!(part, "flags" | "service" | "regex"),
        other => u16::from(other) == 256 && part == "target",
    }
}

fn is_name(ty: RecordType, part: &str) -> bool {
    matches!((ty, part), (RecordType::SRV | RecordType::HTTPS | RecordType::SVCB, "target") | (RecordType::NAPTR, "replacement"))
}

/// A zone at Cloudflare.
pub struct Cloudflare {
    origin: Name,
    base: Url,
    token: Secret,
    token_from: String,
    client: Client,
    zone: OnceCell<(String, Vec<String>)>,
}

/// A record as the service has it.
struct Held {
    id: String,
    name: Name,
    ty: RecordType,
    ttl: u32,
    proxied: bool,
    value: String,
}

impl Cloudflare {
    /// Reads the settings `api_token` and `api`.
    ///
    /// # Errors
    /// `RB0109` when there is no token, `RB0104` when `api` is none that can be used.
    pub fn new(cx: &Cx, resource: &Resource, origin: Name) -> Result<Self> {
        let api = resource.str("api").unwrap_or(API);
        let base = address(resource, api)?;
        let (token, token_from) = credential(cx, resource.str("api_token"), &VARIABLES, &environment)
            .map_err(|e| e.hint("give the zone api_token = \"…\", the name of a secret, or set CLOUDFLARE_API_TOKEN"))?;
        Ok(Cloudflare { origin, client: client(cx, &base, None)?, base, token, token_from, zone: OnceCell::new() })
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    async fn ask(&self, cx: &Cx, method: Method, url: Url, body: Option<&Json>, what: &str) -> Result<Json> {
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", self.token.reveal())).map_err(|_| {
            Error::new(
                Code::DNS_API,
                format!("{} cannot be a token of Cloudflare: it has characters that headers cannot hold", self.token_from),
            )
        })?;
        bearer.set_sensitive(true);
        let mut request = self.client.request(method, url).header(AUTHORIZATION, bearer);
        if let Some(b) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(b.to_string());
        }
        let request = request.build().map_err(|e| Error::internal(format!("a request cannot be built: {e}")))?;
        let answer = send(cx, &self.client, "Cloudflare", what, request).await?;
        let json = serde_json::from_str::<Json>(&answer.body).unwrap_or(Json::Null);
        if answer.status.is_success() && json.get("success").and_then(Json::as_bool) == Some(true) {
            return Ok(json);
        }
        Err(self.refused(what, answer.status.as_u16(), &json, &answer.body))
    }

    /// The service's errors: each with a code and a text, and perhaps those behind it.
    fn refused(&self, what: &str, status: u16, json: &Json, body: &str) -> Error {
        let mut codes = Vec::new();
        let mut said = Vec::new();
        for e in json.get("errors").and_then(Json::as_array).into_iter().flatten() {
            let chain = e.get("error_chain").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
            for e in std::iter::once(e).chain(chain) {
                let code = e.get("code").and_then(Json::as_i64).unwrap_or(0);
                codes.push(code);
                said.push(format!("{} ({code})", e.get("message").and_then(Json::as_str).unwrap_or("no text").trim_end_matches('.')));
            }
        }
        let text = if said.is_empty() { format!("{} (status {status})", beginning(body)) } else { said.join(": ") };
        let e = Error::new(Code::DNS_API, format!("Cloudflare refuses to {what}: {text}")).detail("status", status.to_string());
        let any = |list: &[i64]| codes.iter().any(|c| list.contains(c));
        if any(&[10000, 9109, 9103, 6003, 6111]) || status == 401 || status == 403 {
            return e.hint(format!("the token of {} must have the permissions Zone:Read and DNS:Edit for this zone", self.token_from));
        }
        if any(&[81053, 81054, 81056, 81058]) {
            return e.hint("another record stands in the way: look at all records of this name").retryable(any(&[81058]));
        }
        if any(&[9021]) {
            return e.hint("Cloudflare takes a TTL from 1m to 1d");
        }
        if any(&[9004]) {
            return e.hint("only A, AAAA and CNAME can be proxied");
        }
        e.hint("see the code in Cloudflare's documentation").retryable(status >= 500)
    }

    /// The zone's id and its name servers.
    async fn zone(&self, cx: &Cx) -> Result<&(String, Vec<String>)> {
        self.zone
            .get_or_try_init(|| async {
                let shown = name::show(&self.origin);
                let mut url = self.url(&["zones"]);
                url.query_pairs_mut().append_pair("name", &shown);
                let json = self.ask(cx, Method::GET, url, None, &format!("look up the zone {shown}")).await?;
                let zone = json.pointer("/result/0").ok_or_else(|| {
                    Error::new(Code::DNS_API, format!("Cloudflare shows no zone {shown} to the token of {}", self.token_from))
                        .hint("add the zone to the account first, or give the token Zone:Read for it")
                })?;
                let servers = zone.get("name_servers").and_then(Json::as_array).into_iter().flatten();
                Ok((field(zone, "id").to_string(), servers.filter_map(|s| s.as_str().map(str::to_string)).collect()))
            })
            .await
    }

    /// The records of the zone, or of one name; page by page.
    async fn held(&self, cx: &Cx, name: Option<&Name>) -> Result<Vec<Held>> {
        let id = &self.zone(cx).await?.0;
        let what = format!("list the records of {}", name::show(name.unwrap_or(&self.origin)));
        let mut out = Vec::new();
        for page in 1.. {
            let mut url = self.url(&["zones", id, "dns_records"]);
            url.query_pairs_mut().append_pair("page", &page.to_string()).append_pair("per_page", &PAGE.to_string());
            if let Some(n) = name {
                url.query_pairs_mut().append_pair("name.exact", &name::show(n));
            }
            let json = self.ask(cx, Method::GET, url, None, &what).await?;
            let found = json.get("result").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
            for r in found {
                out.push(held(r).map_err(|why| {
                    Error::new(
                        Code::DNS_API,
                        format!("Cloudflare has the record {} {}, which is not understood: {why}", field(r, "name"), field(r, "type")),
                    )
                })?);
            }
            // The service may give smaller pages than asked for, and says so.
            let info =
                |key: &str| json.pointer(&format!("/result_info/{key}")).and_then(Json::as_u64).and_then(|n| usize::try_from(n).ok());
            let last = info("total_pages").map_or(found.len() < info("per_page").unwrap_or(PAGE), |n| page >= n);
            if found.is_empty() || last {
                break;
            }
            cx.progress(&*what, out.len() as u64, info("total_count").map(|n| n as u64), "records");
        }
        Ok(out)
    }
}

fn field<'a>(json: &'a Json, key: &str) -> &'a str {
    json.get(key).and_then(Json::as_str).unwrap_or("")
}

/// One record of the API.
fn held(json: &Json) -> std::result::Result<Held, String> {
    let ty = type_of(field(json, "type")).ok_or("an unknown type")?;
    let proxied = json.get("proxied").and_then(Json::as_bool).unwrap_or(false);
    let ttl = json.get("ttl").and_then(Json::as_f64).filter(|t| *t >= 1.0 && *t < 2_147_483_648.0).ok_or("it has no TTL")?;
    // Whole seconds, although JSON has but one kind of number.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let ttl = ttl as u32;
    Ok(Held {
        id: field(json, "id").to_string(),
        name: name::from_file(field(json, "name"), None)?.to_lowercase(),
        ty,
        ttl: if proxied || ttl == 1 { AUTOMATIC_S } else { ttl },
        proxied,
        value: canonical(ty, &value_text(ty, json), None),
    })
}

/// The value as zone files write it.
fn value_text(ty: RecordType, json: &Json) -> String {
    let content = field(json, "content");
    let parts = parts(ty);
    if let (false, Some(data)) = (parts.is_empty(), json.get("data").filter(|d| d.is_object())) {
        let words = parts.iter().map(|part| {
            let v = data.get(part).or_else(|| json.get(part)).unwrap_or(&Json::Null);
            match v {
                Json::String(s) if is_quoted(ty, part) => quoted(s.as_bytes()),
                Json::String(s) if is_name(ty, part) => absolute(s),
                Json::String(s) => s.clone(),
                // Whole numbers may come as 10.0.
                v => v.as_f64().map_or_else(String::new, |n| n.to_string()),
            }
        });
        return words.collect::<Vec<_>>().join(" ");
    }
    match ty {
        RecordType::MX => {
            format!("{} {}", json.get("priority").and_then(Json::as_f64).unwrap_or(0.0), absolute(content))
        }
        RecordType::CNAME | RecordType::NS | RecordType::PTR => absolute(content),
        // Records from before the service kept quotes.
        RecordType::TXT if !content.starts_with('"') => content.as_bytes().chunks(255).map(quoted).collect::<Vec<_>>().join(" "),
        _ => content.to_string(),
    }
}

fn absolute(text: &str) -> String {
    if text.ends_with('.') { text.to_string() } else { format!("{text}.") }
}

fn relative(text: &str) -> String {
    if text == "." { text.to_string() } else { text.trim_end_matches('.').to_string() }
}

/// What a request says of a value: `content`, `data`, `priority`.
fn value_json(ty: RecordType, value: &str) -> Result<Map<String, Json>> {
    let bad = |why: &str| Error::new(Code::DNS_RECORD, format!("{value:?} is not the value of a record of type {}: {why}", type_name(ty)));
    let words = pieces(value).map_err(|e| bad(&e))?;
    let text = |p: &Piece| match p {
        Piece::Bare(t) => t.clone(),
        Piece::Quoted(b) => String::from_utf8_lossy(b).into_owned(),
    };
    let number = |p: &Piece| text(p).parse::<u32>().map(Json::from).map_err(|_| bad("a number is missing"));
    let mut out = Map::new();
    let parts = parts(ty);
    if !parts.is_empty() {
        let mut data = Map::new();
        for (i, part) in parts.iter().enumerate() {
            let last = i + 1 == parts.len();
            let Some(piece) = words.get(i) else {
                // A service that is another name for one (`0 cdn.example.net.`) has no parameters.
                if last && *part == "value" {
                    data.insert((*part).to_string(), "".into());
                    continue;
                }
                return Err(bad("something is missing at its end"));
            };
            let v = if is_quoted(ty, part) {
                Json::from(text(piece))
            } else if is_name(ty, part) {
                Json::from(relative(&text(piece)))
            } else if matches!((ty, *part), (RecordType::CAA, "tag")) {
                Json::from(text(piece))
            } else if last {
                // Keys, digests and parameters: all that is left.
                Json::from(words.iter().skip(i).map(text).collect::<Vec<_>>().join(if part == &"value" { " " } else { "" }))
            } else {
                number(piece)?
            };
            if u16::from(ty) == 256 && *part == "priority" {
                out.insert("priority".into(), v);
            } else {
                data.insert((*part).to_string(), v);
            }
        }
        out.insert("data".into(), data.into());
        return Ok(out);
    }
    match (ty, words.as_slice()) {
        (RecordType::MX, [p, host]) => {
            out.insert("priority".into(), number(p)?);
            out.insert("content".into(), relative(&text(host)).into());
        }
        (RecordType::CNAME | RecordType::NS | RecordType::PTR, [host]) => {
            out.insert("content".into(), relative(&text(host)).into());
        }
        _ => {
            out.insert("content".into(), value.into());
        }
    }
    Ok(out)
}

/// Records as sets. A name is answered by the proxy as soon as one of its records is proxied.
fn sets(records: &[Held]) -> Vec<RrSet> {
    let mut found: BTreeMap<(Name, u16), RrSet> = BTreeMap::new();
    for r in records {
        let set = found.entry((r.name.clone(), r.ty.into())).or_insert_with(|| RrSet::new(r.name.clone(), r.ty, r.ttl, vec![]));
        set.ttl = set.ttl.min(r.ttl);
        set.proxied |= r.proxied;
        set.values.push(r.value.clone());
    }
    found.into_values().map(|s| RrSet { proxied: s.proxied, ..RrSet::new(s.name, s.ty, s.ttl, s.values) }).collect()
}

/// One batch: what it deletes, changes and adds.
#[derive(Default)]
struct Batch {
    deletes: Vec<Json>,
    patches: Vec<Json>,
    posts: Vec<Json>,
}

impl Batch {
    fn len(&self) -> usize {
        self.deletes.len() + self.patches.len() + self.posts.len()
    }

    /// Adds what one change takes: a record whose value moves keeps its identity.
    fn add(&mut self, c: &Change, held: &[Held]) -> Result<()> {
        let mine: Vec<&Held> = held.iter().filter(|h| h.name == c.name && h.ty == c.ty).collect();
        let Some(after) = &c.after else {
            self.deletes.extend(mine.iter().map(|h| json!({ "id": h.id })));
            return Ok(());
        };
        let body = |value: &str| -> Result<Map<String, Json>> {
            let mut m = value_json(after.ty, value)?;
            m.insert("name".into(), name::show(&after.name).into());
            m.insert("type".into(), type_name(after.ty).into());
            // A proxied record has the proxy's own TTL.
            m.insert("ttl".into(), if after.proxied { 1.into() } else { after.ttl.into() });
            m.insert("proxied".into(), after.proxied.into());
            Ok(m)
        };
        let mut free: Vec<&Held> = mine.iter().filter(|h| !after.values.contains(&h.value)).copied().collect();
        for value in &after.values {
            let mut m = body(value)?;
            match mine.iter().find(|h| h.value == *value) {
                Some(h) if h.ttl == after.ttl && h.proxied == after.proxied => continue,
                Some(h) => {
                    m.insert("id".into(), h.id.as_str().into());
                    self.patches.push(m.into());
                }
                None => match free.pop() {
                    Some(h) => {
                        m.insert("id".into(), h.id.as_str().into());
                        self.patches.push(m.into());
                    }
                    None => self.posts.push(m.into()),
                },
            }
        }
        self.deletes.extend(free.iter().map(|h| json!({ "id": h.id })));
        Ok(())
    }
}

#[async_trait]
impl Provider for Cloudflare {
    fn supports(&self, ty: RecordType) -> bool {
        matches!(
            ty,
            RecordType::A
                | RecordType::AAAA
                | RecordType::CNAME
                | RecordType::MX
                | RecordType::NS
                | RecordType::OPENPGPKEY
                | RecordType::PTR
                | RecordType::TXT
        ) || !parts(ty).is_empty()
    }

    fn can(&self) -> Can {
        Can { proxy: true, routing: false, apex_cname: true }
    }

    fn fit(&self, set: RrSet) -> RrSet {
        let ttl = if set.proxied { AUTOMATIC_S } else { set.ttl.clamp(TTL_S.0, TTL_S.1) };
        RrSet { ttl, ..set }
    }

    async fn list(&self, cx: &Cx) -> Result<Vec<RrSet>> {
        Ok(sets(&self.held(cx, None).await?))
    }

    async fn read(&self, cx: &Cx, name: &Name, ty: RecordType) -> Result<Vec<RrSet>> {
        let mut found = sets(&self.held(cx, Some(name)).await?);
        found.retain(|s| s.ty == ty && s.name == *name);
        Ok(found)
    }

    async fn apply(&self, cx: &Cx, changes: &[Change]) -> Result<()> {
        let held = match changes {
            [one] => self.held(cx, Some(&one.name)).await?,
            _ => self.held(cx, None).await?,
        };
        let now = sets(&held);
        Change::all_as_read(changes, &now)?;
        let id = &self.zone(cx).await?.0;
        let what = match changes {
            [one] => format!("change {}", one.label()),
            all => format!("change {} record sets of {}", all.len(), name::show(&self.origin)),
        };
        let mut batch = Batch::default();
        let mut done = 0;
        let last = changes.len();
        for (i, c) in changes.iter().enumerate() {
            batch.add(c, &held)?;
            // A batch is whole in itself; more than the service takes at once goes in several.
            let next = changes.get(i + 1).map_or(0, |n| n.before.iter().chain(&n.after).map(|s| s.values.len()).sum::<usize>());
            if i + 1 < last && batch.len() + next <= BATCH {
                continue;
            }
            let sent = std::mem::take(&mut batch);
            let size = sent.len();
            if size > 0 {
                let body = json!({ "deletes": sent.deletes, "patches": sent.patches, "posts": sent.posts });
                let url = self.url(&["zones", id, "dns_records", "batch"]);
                self.ask(cx, Method::POST, url, Some(&body), &what).await?;
            }
            done += size;
            cx.progress(&*what, done as u64, None, "records");
        }
        Ok(())
    }

    async fn nameservers(&self, cx: &Cx) -> Result<Vec<String>> {
        Ok(self.zone(cx).await?.1.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_goes_to_the_service_and_back() {
        for (ty, text) in [
            ("A", "192.0.2.1"),
            ("CNAME", "a.example.test."),
            ("MX", "10 mail.example.test."),
            ("SRV", "0 5 5060 sip.example.test."),
            ("TXT", r#""v=spf1 \"x\" -all" "\195\164""#),
            ("CAA", r#"128 issue "letsencrypt.org; validationmethods=dns-01""#),
            ("NAPTR", r#"100 10 "U" "E2U+sip" "!^.*$!sip:info@example.com!" ."#),
            ("SSHFP", "4 2 123456789abcdef67890123456789abcdef67890123456789abcdef123456789"),
            ("TLSA", "3 1 1 0123456789abcdef"),
            ("DS", "60485 8 2 d4b7d520e7bb5f0f67674a0cceb1e3e0614b93c4f9e99b8383f6a1e4469da50a"),
            ("DNSKEY", "257 3 13 bWFrZSBteSBkYXk="),
            ("CERT", "1 12345 8 bWFrZSBteSBkYXk="),
            ("OPENPGPKEY", "bWFrZSBteSBkYXk="),
            ("URI", r#"10 1 "https://example.test/a;b""#),
            ("HTTPS", "0 cdn.example.net."),
        ] {
            let ty = type_of(ty).unwrap();
            let json = Json::from(value_json(ty, text).unwrap());
            assert_eq!(canonical(ty, &value_text(ty, &json), None), canonical(ty, text, None), "{} {json}", type_name(ty));
        }
        let json = json!({ "data": { "port": 5060.0, "priority": 0.0, "weight": 5.0, "target": "sip.example.test" } });
        assert_eq!(value_text(RecordType::SRV, &json), "0 5 5060 sip.example.test.");
    }

    #[test]
    fn a_record_whose_value_moves_keeps_its_identity() {
        let name = Name::from_ascii("shop.example.test.").unwrap();
        let one =
            |id: &str, v: &str| Held { id: id.into(), name: name.clone(), ty: RecordType::A, ttl: 300, proxied: true, value: v.into() };
        let held = [one("1", "192.0.2.1"), one("2", "192.0.2.2")];
        let [before] = sets(&held).try_into().unwrap();
        let set = |values: &[&str]| RrSet { values: values.iter().map(|v| (*v).to_string()).collect(), ..before.clone() };
        let batch = |values: &[&str]| {
            let mut b = Batch::default();
            b.add(&Change::to(Some(before.clone()), set(values)), &held).unwrap();
            (b.deletes, b.patches, b.posts)
        };
        let (deletes, patches, posts) = batch(&["192.0.2.1", "192.0.2.3"]);
        assert_eq!((deletes.len(), posts.len()), (0, 0));
        assert_eq!(
            (patches[0]["id"].as_str(), patches[0]["content"].as_str(), patches[0]["ttl"].as_i64()),
            (Some("2"), Some("192.0.2.3"), Some(1))
        );
        let (deletes, patches, posts) = batch(&["192.0.2.1"]);
        assert_eq!((deletes, patches.len(), posts.len()), (vec![json!({ "id": "2" })], 0, 0));
        let (_, patches, posts) = batch(&["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
        assert_eq!((patches.len(), posts.len()), (0, 1));
    }
}
