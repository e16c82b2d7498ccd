//! The provider for zones at AWS Route 53.
//!
//! All changes go in one ChangeResourceRecordSets, which the service makes whole or not at all. What is new is created (the service
//! refuses when it is there), what goes is deleted by its exact values (the service refuses when they are others); what changes is read
//! once more right before. An action ends when every name server of the service has the change (INSYNC).

use std::fmt::Write as _;
use std::time::Duration;

use async_trait::async_trait;
use hickory_proto::rr::{Name, RecordType};
use reqwest::{Client, Method, Url};
use roxmltree::{Document, Node};
use runbook_core::inventory::Resource;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::sync::OnceCell;

use super::api::{Answer, address, beginning, client, environment, send};
use super::aws::{Credentials, encode, sign};
use super::codec::{type_name, type_of};
use super::name;
use super::provider::{Can, Change, Provider};
use super::record::{Policy, Routing, RrSet, canonical};

/// Where the API is unless told.
const API: &str = "https://route53.amazonaws.com";
const VERSION: &str = "2013-04-01";
/// What one request may hold: values, and characters of values. A changed set counts twice.
const MAX_VALUES: usize = 1000;
const MAX_CHARACTERS: usize = 32_000;
/// How long a change may take to reach every name server; the service says that it is a minute as a rule.
const INSYNC_WITHIN: Duration = Duration::from_secs(600);
/// How a set that is an alias of something in AWS is written among values: the zone's id, the name, whether its health counts.
const ALIAS: &str = "\\alias ";
/// The TTL with which the service answers aliases.
const ALIAS_TTL_S: u32 = 60;

/// A zone at Route 53.
pub struct Route53 {
    pub(super) origin: Name,
    base: Url,
    region: String,
    credentials: Credentials,
    client: Client,
    given_id: Option<String>,
    id: OnceCell<String>,
}

impl Route53 {
    /// Reads the settings `zone_id`, `api`, `region` and those of the key.
    ///
    /// # Errors
    /// `RB0109` when there is no key, `RB0104` when `api` is none that can be used.
    pub fn new(cx: &Cx, resource: &Resource, origin: Name) -> Result<Self> {
        let api = resource.str("api").unwrap_or(API);
        let base = address(resource, api)?;
        Ok(Route53 {
            origin,
            client: client(cx, &base, None)?,
            base,
            region: resource.str("region").unwrap_or("us-east-1").to_string(),
            credentials: Credentials::find(cx, resource, &environment)?,
            given_id: resource.str("zone_id").map(|i| i.trim_start_matches("/hostedzone/").to_string()),
            id: OnceCell::new(),
        })
    }

    /// One request; again, with a pause, while the service says that there are too many.
    pub(super) async fn ask(&self, cx: &Cx, method: Method, path: &str, query: &[(&str, &str)], body: &str, what: &str) -> Result<String> {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/{VERSION}/{path}", self.base.path().trim_end_matches('/')));
        if !query.is_empty() {
            let pairs: Vec<String> = query.iter().map(|(k, v)| format!("{}={}", encode(k), encode(v))).collect();
            url.set_query(Some(&pairs.join("&")));
        }
        let mut wait = Duration::from_millis(500);
        for attempt in 1.. {
            let mut request = self.client.request(method.clone(), url.clone());
            for (k, v) in sign(&self.credentials, &self.region, "route53", method.as_str(), &url, body, cx.clock.now()) {
                request = request.header(k, v);
            }
            if !body.is_empty() {
                request = request.header("content-type", "application/xml").body(body.to_string());
            }
            let request = request.build().map_err(|_| {
                Error::new(
                    Code::DNS_API,
                    format!("{} cannot be a key of AWS: it has characters that headers cannot hold", self.credentials.from),
                )
            })?;
            let answer = send(cx, &self.client, "Route 53", what, request).await?;
            if answer.status.is_success() {
                return Ok(answer.body);
            }
            let e = self.refused(what, &answer);
            let busy = ["Throttling", "ThrottlingException", "PriorRequestNotComplete"]
                .contains(&e.details.get("aws_code").map_or("", String::as_str));
            if !busy || attempt >= 7 {
                return Err(e);
            }
            cx.sleep(wait).await?;
            wait *= 2;
        }
        Err(Error::internal("a loop without end has ended"))
    }

    fn refused(&self, what: &str, answer: &Answer) -> Error {
        let doc = Document::parse(&answer.body).ok();
        let texts = |tag: &str| -> Vec<String> {
            let nodes = doc.iter().flat_map(Document::descendants).filter(|n| n.tag_name().name() == tag);
            nodes.filter_map(|n| n.text().map(|t| t.trim().to_string())).filter(|t| !t.is_empty()).collect()
        };
        let code = texts("Code").first().cloned().unwrap_or_else(|| answer.status.to_string());
        let mut said = texts("Message");
        if said.is_empty() {
            said.push(beginning(&answer.body));
        }
        let e = Error::new(Code::DNS_API, format!("Route 53 refuses to {what}: {} ({code})", said.join("; "))).detail("aws_code", &code);
        match code.as_str() {
            "SignatureDoesNotMatch"
            | "InvalidClientTokenId"
            | "InvalidSignature"
            | "MissingAuthenticationToken"
            | "ExpiredToken"
            | "ExpiredTokenException"
            | "UnrecognizedClientException" => {
                e.hint(format!("the key is that of {}; check id, key and session, and this machine's clock", self.credentials.from))
            }
            "AccessDenied" | "AccessDeniedException" => e.hint(format!(
                "the key of {} needs route53:ListHostedZonesByName, ListResourceRecordSets, ChangeResourceRecordSets and GetChange",
                self.credentials.from
            )),
            "NoSuchHostedZone" => e.hint("check zone_id of the zone in runbook.toml, and that the key belongs to its account"),
            "InvalidChangeBatch" => e.hint("see the text: a record stands in the way, or is no longer as it was read").retryable(true),
            "Throttling" | "ThrottlingException" | "PriorRequestNotComplete" => {
                e.hint("try again later; nothing was changed").retryable(true)
            }
            _ => e.hint("see the code in AWS's documentation").retryable(answer.status.is_server_error()),
        }
    }

    fn parse<'a>(&self, body: &'a str, what: &str) -> Result<Document<'a>> {
        Document::parse(body).map_err(|e| {
            Error::new(Code::DNS_API, format!("Route 53 does not answer XML when asked to {what}: {e}"))
                .hint("check the address of the API")
        })
    }

    /// The id of the hosted zone.
    pub(super) async fn id(&self, cx: &Cx) -> Result<&str> {
        let id = self.id.get_or_try_init(|| async {
            if let Some(id) = &self.given_id {
                return Ok(id.clone());
            }
            let shown = name::show(&self.origin);
            let what = format!("look up the zone {shown}");
            let body = self.ask(cx, Method::GET, "hostedzonesbyname", &[("dnsname", &shown), ("maxitems", "100")], "", &what).await?;
            let doc = self.parse(&body, &what)?;
            let zones = doc.descendants().filter(|n| n.tag_name().name() == "HostedZone");
            // A private zone of the same name is seen only within AWS.
            let public = zones.filter(|z| text(*z, "Name").is_some_and(|n| from_service(n) == Some(self.origin.clone())));
            let ids: Vec<&str> = public
                .filter(|z| z.descendants().find(|n| n.tag_name().name() == "PrivateZone").and_then(|n| n.text()) != Some("true"))
                .filter_map(|z| text(z, "Id"))
                .map(|i| i.trim_start_matches("/hostedzone/"))
                .collect();
            match ids.as_slice() {
                [one] => Ok((*one).to_string()),
                [] => {
                    Err(Error::new(Code::DNS_API, format!("Route 53 shows no public zone {shown} to the key of {}", self.credentials.from))
                        .hint("create the zone first, check the account of the key, or give the zone its zone_id"))
                }
                many => Err(Error::new(Code::DNS_API, format!("Route 53 has several zones {shown}: {}", many.join(", ")))
                    .hint("give the zone its zone_id in runbook.toml")),
            }
        });
        id.await.map(String::as_str)
    }

    /// Record sets from a name and type on, or all of them, page by page.
    async fn sets(&self, cx: &Cx, from: Option<(&Name, RecordType)>) -> Result<Vec<RrSet>> {
        let path = format!("hostedzone/{}/rrset", self.id(cx).await?);
        let what = format!("list the records of {}", name::show(&self.origin));
        let mut start = from.map(|(n, t)| (name::absolute(n), type_name(t), None::<String>));
        let mut out: Vec<RrSet> = Vec::new();
        loop {
            let mut query = vec![("maxitems", "300")];
            if let Some((n, t, id)) = &start {
                query.extend([("name", n.as_str()), ("type", t.as_str())]);
                query.extend(id.as_deref().map(|i| ("identifier", i)));
            }
            let body = self.ask(cx, Method::GET, &path, &query, "", &what).await?;
            let doc = self.parse(&body, &what)?;
            for node in doc.descendants().filter(|n| n.tag_name().name() == "ResourceRecordSet") {
                let set = set(node).map_err(|why| {
                    let (n, t) = (text(node, "Name").unwrap_or(""), text(node, "Type").unwrap_or(""));
                    Error::new(Code::DNS_API, format!("Route 53 has the record set {n} {t}, which is not understood: {why}"))
                })?;
                if from.is_some_and(|(n, t)| set.name != *n || set.ty != t) {
                    return Ok(out);
                }
                out.push(set);
            }
            let root = doc.root_element();
            if text(root, "IsTruncated") != Some("true") {
                return Ok(out);
            }
            let (Some(n), Some(t)) = (text(root, "NextRecordName"), text(root, "NextRecordType")) else { return Ok(out) };
            start = Some((n.to_string(), t.to_string(), text(root, "NextRecordIdentifier").map(str::to_string)));
            cx.progress(&*what, out.len() as u64, None, "record sets");
        }
    }

    async fn change(&self, cx: &Cx, batch: &[&Change], what: &str) -> Result<()> {
        let path = format!("hostedzone/{}/rrset/", self.id(cx).await?);
        let body = self.ask(cx, Method::POST, &path, &[], &change_xml(batch)?, what).await?;
        let doc = self.parse(&body, what)?;
        let info = doc.descendants().find(|n| n.tag_name().name() == "ChangeInfo");
        let (id, mut status) = info.map_or((None, None), |i| (text(i, "Id").map(str::to_string), text(i, "Status").map(str::to_string)));
        let Some(id) = id else { return Ok(()) };
        let begun = tokio::time::Instant::now();
        let mut wait = Duration::from_millis(500);
        while status.as_deref() != Some("INSYNC") {
            if begun.elapsed() > INSYNC_WITHIN {
                return Err(Error::new(
                    Code::DNS_WAIT,
                    format!("Route 53 took the change {id}, and not all of its name servers have it after 10 minutes"),
                )
                .hint("see the service's health; the change is made and need not be repeated")
                .retryable(true));
            }
            cx.progress("Route 53's name servers take the change", begun.elapsed().as_secs(), None, "seconds");
            cx.sleep(wait).await?;
            wait = (wait * 2).min(Duration::from_secs(5));
            let path = format!("change/{}", id.trim_start_matches("/change/"));
            let body = self.ask(cx, Method::GET, &path, &[], "", "follow a change").await?;
            status = self
                .parse(&body, "follow a change")?
                .descendants()
                .find(|n| n.tag_name().name() == "Status")
                .and_then(|n| n.text())
                .map(str::to_string);
        }
        Ok(())
    }
}

pub(super) fn child<'a>(node: Node<'a, 'a>, tag: &str) -> Option<Node<'a, 'a>> {
    node.children().find(|n| n.tag_name().name() == tag)
}

pub(super) fn text<'a>(node: Node<'a, 'a>, tag: &str) -> Option<&'a str> {
    child(node, tag).and_then(|n| n.text()).map(str::trim)
}

/// The service writes escapes in octal (`\052` for `*`); zone files in decimal.
fn to_decimal(text: &str) -> String {
    escapes(text, |d| u8::from_str_radix(d, 8).ok().map(|b| format!("\\{b:03}")))
}

fn to_octal(text: &str) -> String {
    escapes(text, |d| d.parse::<u8>().ok().map(|b| format!("\\{b:03o}")))
}

fn escapes(text: &str, f: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let digits = after.get(..3).filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
        match digits.and_then(&f) {
            Some(escape) => {
                out.push_str(&escape);
                rest = after.get(3..).unwrap_or("");
            }
            None => {
                out.push('\\');
                let next = after.chars().next();
                out.extend(next);
                rest = after.get(next.map_or(0, char::len_utf8)..).unwrap_or("");
            }
        }
    }
    out + rest
}

fn from_service(text: &str) -> Option<Name> {
    name::from_file(&to_decimal(text), None).ok().map(|n| n.to_lowercase())
}

/// One record set of the API.
fn set(node: Node<'_, '_>) -> std::result::Result<RrSet, String> {
    let shown = text(node, "Name").ok_or("it has no name")?;
    let name = from_service(shown).ok_or("its name is none")?;
    let ty = text(node, "Type").and_then(type_of).ok_or("an unknown type")?;
    let mut ttl = text(node, "TTL").and_then(|t| t.parse().ok()).unwrap_or(ALIAS_TTL_S);
    let mut values: Vec<String> = child(node, "ResourceRecords")
        .into_iter()
        .flat_map(|n| n.children())
        .filter_map(|n| text(n, "Value"))
        .map(|v| canonical(ty, &to_decimal(v), None))
        .collect();
    if let Some(alias) = child(node, "AliasTarget") {
        let part = |tag: &str| text(alias, tag).unwrap_or("");
        values = vec![format!("{ALIAS}{} {} {}", part("HostedZoneId"), part("DNSName"), part("EvaluateTargetHealth"))];
        ttl = ALIAS_TTL_S;
    }
    let policy = if let Some(w) = text(node, "Weight") {
        Some(Policy::Weight(w.parse().map_err(|_| "its weight is none")?))
    } else if let Some(region) = text(node, "Region") {
        Some(Policy::Latency(region.to_string()))
    } else if let Some(f) = text(node, "Failover") {
        Some(Policy::Failover(f == "PRIMARY"))
    } else {
        ["GeoLocation", "GeoProximityLocation", "MultiValueAnswer", "CidrRoutingConfig", "TrafficPolicyInstanceId"]
            .iter()
            .find(|tag| child(node, tag).is_some())
            .map(|tag| Policy::Other((*tag).to_string()))
    };
    let routing = policy.map(|policy| Routing {
        id: text(node, "SetIdentifier").unwrap_or("").to_string(),
        policy,
        health_check: text(node, "HealthCheckId").map(str::to_string),
    });
    Ok(RrSet { routing, ..RrSet::new(name, ty, ttl, values) })
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn set_xml(s: &RrSet) -> Result<String> {
    let mut out =
        format!("<ResourceRecordSet><Name>{}</Name><Type>{}</Type>", escape(&to_octal(&name::absolute(&s.name))), type_name(s.ty));
    if let Some(r) = &s.routing {
        let _ = write!(out, "<SetIdentifier>{}</SetIdentifier>", escape(&r.id));
        match &r.policy {
            Policy::Weight(n) => {
                let _ = write!(out, "<Weight>{n}</Weight>");
            }
            Policy::Latency(region) => {
                let _ = write!(out, "<Region>{}</Region>", escape(region));
            }
            Policy::Failover(primary) => {
                let _ = write!(out, "<Failover>{}</Failover>", if *primary { "PRIMARY" } else { "SECONDARY" });
            }
            Policy::Other(kind) => {
                return Err(Error::new(Code::DNS_RECORD, format!("{} is chosen by {kind}, which is not changed here", s.label()))
                    .hint("change it at AWS"));
            }
        }
    }
    match s.values.first().and_then(|v| v.strip_prefix(ALIAS)).map(|v| v.split(' ').collect::<Vec<_>>()).as_deref() {
        Some([zone, target, health]) => {
            let (zone, target, health) = (escape(zone), escape(target), escape(health));
            let _ = write!(
                out,
                "<AliasTarget><HostedZoneId>{zone}</HostedZoneId><DNSName>{target}</DNSName><EvaluateTargetHealth>{health}</EvaluateTargetHealth></AliasTarget>"
            );
        }
        _ => {
            let _ = write!(out, "<TTL>{}</TTL><ResourceRecords>", s.ttl);
            for v in &s.values {
                let _ = write!(out, "<ResourceRecord><Value>{}</Value></ResourceRecord>", escape(&to_octal(v)));
            }
            out.push_str("</ResourceRecords>");
        }
    }
    if let Some(check) = s.routing.as_ref().and_then(|r| r.health_check.as_ref()) {
        let _ = write!(out, "<HealthCheckId>{}</HealthCheckId>", escape(check));
    }
    out.push_str("</ResourceRecordSet>");
    Ok(out)
}

fn change_xml(changes: &[&Change]) -> Result<String> {
    let mut out = String::from(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ChangeResourceRecordSetsRequest xmlns=\"https://route53.amazonaws.com/doc/2013-04-01/\"><ChangeBatch><Changes>",
    );
    for c in changes {
        let (action, set) = match (&c.before, &c.after) {
            (None, Some(a)) => ("CREATE", a),
            (Some(_), Some(a)) => ("UPSERT", a),
            (Some(b), None) => ("DELETE", b),
            (None, None) => continue,
        };
        let _ = write!(out, "<Change><Action>{action}</Action>{}</Change>", set_xml(set)?);
    }
    out.push_str("</Changes></ChangeBatch></ChangeResourceRecordSetsRequest>");
    Ok(out)
}

#[async_trait]
impl Provider for Route53 {
    fn supports(&self, ty: RecordType) -> bool {
        matches!(
            ty,
            RecordType::A
                | RecordType::AAAA
                | RecordType::CAA
                | RecordType::CNAME
                | RecordType::DS
                | RecordType::HTTPS
                | RecordType::MX
                | RecordType::NAPTR
                | RecordType::NS
                | RecordType::PTR
                | RecordType::SRV
                | RecordType::SSHFP
                | RecordType::SVCB
                | RecordType::TLSA
                | RecordType::TXT
        ) || u16::from(ty) == 99
    }

    fn can(&self) -> Can {
        Can { proxy: false, routing: true, apex_cname: false }
    }

    async fn list(&self, cx: &Cx) -> Result<Vec<RrSet>> {
        self.sets(cx, None).await
    }

    async fn read(&self, cx: &Cx, name: &Name, ty: RecordType) -> Result<Vec<RrSet>> {
        self.sets(cx, Some((name, ty))).await
    }

    async fn apply(&self, cx: &Cx, changes: &[Change]) -> Result<()> {
        let now = match changes {
            [one] => self.read(cx, &one.name, one.ty).await?,
            _ => self.list(cx).await?,
        };
        Change::all_as_read(changes, &now)?;
        let what = match changes {
            [one] => format!("change {}", one.label()),
            all => format!("change {} record sets of {}", all.len(), name::show(&self.origin)),
        };
        // As few requests as the limits allow: each is whole in itself.
        let mut batch: Vec<&Change> = Vec::new();
        let (mut values, mut characters, mut done) = (0, 0, 0);
        for c in changes {
            let set = c.after.as_ref().or(c.before.as_ref());
            let times = if c.before.is_some() && c.after.is_some() { 2 } else { 1 };
            let n = times * set.map_or(0, |s| s.values.len());
            let chars = times * set.map_or(0, |s| s.values.iter().map(String::len).sum::<usize>());
            if !batch.is_empty() && (values + n > MAX_VALUES || characters + chars > MAX_CHARACTERS) {
                self.change(cx, &batch, &what).await?;
                done += batch.len();
                cx.progress(&*what, done as u64, Some(changes.len() as u64), "record sets");
                batch.clear();
                (values, characters) = (0, 0);
            }
            batch.push(c);
            values += n;
            characters += chars;
        }
        self.change(cx, &batch, &what).await
    }

    async fn nameservers(&self, cx: &Cx) -> Result<Vec<String>> {
        let what = format!("look up the name servers of {}", name::show(&self.origin));
        let body = self.ask(cx, Method::GET, &format!("hostedzone/{}", self.id(cx).await?), &[], "", &what).await?;
        let doc = self.parse(&body, &what)?;
        Ok(doc.descendants().filter(|n| n.tag_name().name() == "NameServer").filter_map(|n| n.text().map(str::to_string)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_go_to_the_service_and_back() {
        let base = |name: &str, ty: &str, values: &[&str]| {
            RrSet::new(name::from_file(name, None).unwrap(), type_of(ty).unwrap(), 300, values.iter().map(|v| (*v).to_string()).collect())
        };
        let routed = |policy, check: Option<&str>| RrSet {
            routing: Some(Routing { id: "a & b".into(), policy, health_check: check.map(str::to_string) }),
            ..base("w.example.test.", "A", &["192.0.2.1"])
        };
        let mut alias = base("a.example.test.", "A", &["\\alias Z2FDTNDATAQYW2 d111.cloudfront.net. false"]);
        alias.ttl = ALIAS_TTL_S;
        for s in [
            base("shop.example.test.", "A", &["192.0.2.1", "192.0.2.2"]),
            base("*.wild.example.test.", "TXT", &[r#""a \"b\" <c> & \195\188""#, r#""x" "y""#]),
            base("a\\032b.example.test.", "MX", &["10 mail.example.test."]),
            routed(Policy::Weight(10), Some("abc")),
            routed(Policy::Latency("eu-central-1".into()), None),
            routed(Policy::Failover(false), Some("abc")),
            alias,
        ] {
            let xml = set_xml(&s).unwrap();
            let doc = Document::parse(&xml).unwrap();
            assert_eq!(set(doc.root_element()).as_ref(), Ok(&s), "{xml}");
        }
        assert!(set_xml(&routed(Policy::Other("GeoLocation".into()), None)).is_err());
        assert_eq!((to_decimal("\\052.a\\.b"), to_octal("\\195\\188\\\"")), ("\\042.a\\.b".into(), "\\303\\274\\\"".into()));
        assert_eq!(name::absolute(&from_service("\\052.Wild.example.test.").unwrap()), "*.wild.example.test.");
    }

    #[test]
    fn one_request_has_all_changes() {
        let s = RrSet::new(name::from_file("a.test.", None).unwrap(), RecordType::A, 60, vec!["192.0.2.1".into()]);
        let changes = [Change::delete(s.clone()), Change::to(None, s.clone()), Change::to(Some(s.clone()), s.with_ttl(30))];
        let xml = change_xml(&changes.iter().collect::<Vec<_>>()).unwrap();
        let actions: Vec<&str> = xml.split("<Action>").skip(1).filter_map(|t| t.split('<').next()).collect();
        assert_eq!(actions, ["DELETE", "CREATE", "UPSERT"]);
        assert!(Document::parse(&xml).is_ok());
    }
}
