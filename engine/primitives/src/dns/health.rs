//! Health checks of Route 53: `Zone.create_health_check`, `Zone.wait_healthy`, `Zone.delete_health_check`.

use std::fmt::Write as _;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::Method;
use roxmltree::Document;
use runbook_core::inventory::Section;
use runbook_core::primitive::{Cx, Outcome, Primitive, Reconciled};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::units::show_duration;
use runbook_core::{Code, Error, Result};

use super::name;
use super::route53::{Route53, child, text};

const ERRORS: &[Code] = &[Code::DNS_QUERY, Code::DNS_API, Code::DNS_CANNOT, Code::DNS_WAIT];

fn route53(cx: &Cx, call: &Call) -> Result<Route53> {
    let zone = cx.env.resource(Section::Zones, call.target())?;
    if zone.kind != "route53" {
        return Err(Error::new(
            Code::DNS_CANNOT,
            format!("the zone \"{}\" is of the kind \"{}\", which has no health checks", zone.name, zone.kind),
        )
        .hint("zones of the kind \"route53\" have them"));
    }
    Route53::new(cx, zone, name::origin(zone.str("zone").unwrap_or(&zone.name))?)
}

fn named(call: &Call) -> impl Fn(Error) -> Error + '_ {
    |e| if e.host.is_none() { e.host(call.target()) } else { e }
}

/// Makes a health check.
pub struct CreateHealthCheck(Spec);

impl Default for CreateHealthCheck {
    fn default() -> Self {
        CreateHealthCheck(
            Spec::method(
                "Zone",
                "create_health_check",
                Effect::Once,
                "Makes a health check of Route 53, by which record sets are answered or not, and gives its id.\n\nThe id of the action is \
                 its caller reference: after a crash the service is asked whether it was made, and it is not made twice.",
            )
            .arg("address", Ty::Str, "The IP address that is checked.")
            .option("type", Ty::Str, "`HTTP`, `HTTPS` or `TCP`; `HTTPS` by default.")
            .option("port", Ty::Int, "The port; 443, or 80 for HTTP, by default.")
            .option("path", Ty::Str, "What is asked for with HTTP and HTTPS; `/` by default. The answer must be a status from 200 to 399.")
            .option("host", Ty::Str, "The site's name for the Host header and TLS.")
            .option("contains", Ty::Str, "A text that must be in the first 5 KiB of the answer.")
            .option("every", Ty::Duration, "`10s` or `30s`; 30s by default.")
            .option("failures", Ty::Int, "After how many failures, or successes, in a row its state changes: 1 to 10; 3 by default.")
            .returns(Ty::Str)
            .example(
                r#"let check = zone("example.com").create_health_check(host("new").address, #{ host: "shop.example.com", path: "/health" });
zone("example.com").set_routed("shop", "A", "new", host("new").address, #{ failover: "primary", health_check: check });"#,
            )
            .errors(ERRORS),
        )
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn config(call: &Call) -> Result<String> {
    let bad = |why: String| Error::new(Code::DNS_RECORD, why);
    let address = call.str(0);
    let ip: std::net::IpAddr = address.parse().map_err(|_| bad(format!("\"{address}\" is not an IP address")))?;
    let kind = call.opt_str("type").unwrap_or("HTTPS").to_ascii_uppercase();
    let web = match kind.as_str() {
        "HTTP" | "HTTPS" => true,
        "TCP" => false,
        other => return Err(bad(format!("a health check is of the type HTTP, HTTPS or TCP, not \"{other}\""))),
    };
    let contains = call.opt_str("contains");
    if !web && (contains.is_some() || call.opt_str("path").is_some()) {
        return Err(bad("a check of the type TCP asks for no path and looks for no text".into()));
    }
    let port = call.opt_int("port").unwrap_or(if kind == "HTTP" { 80 } else { 443 });
    let failures = call.opt_int("failures").unwrap_or(3);
    let every = call.opt_duration("every").unwrap_or(Duration::from_secs(30)).as_secs();
    if !(1..=65535).contains(&port) || !(1..=10).contains(&failures) || ![10, 30].contains(&every) {
        return Err(bad("a port is from 1 to 65535, failures from 1 to 10, and a check is made every 10s or 30s".into()));
    }
    // In the order of the service's schema.
    let mut out = format!("<IPAddress>{ip}</IPAddress><Port>{port}</Port>");
    let _ = write!(out, "<Type>{kind}{}</Type>", if contains.is_some() { "_STR_MATCH" } else { "" });
    if web {
        let _ = write!(out, "<ResourcePath>{}</ResourcePath>", escape(call.opt_str("path").unwrap_or("/")));
    }
    if let Some(h) = call.opt_str("host") {
        let _ = write!(out, "<FullyQualifiedDomainName>{}</FullyQualifiedDomainName>", escape(h));
    }
    if let Some(c) = contains {
        let _ = write!(out, "<SearchString>{}</SearchString>", escape(c));
    }
    let _ = write!(out, "<RequestInterval>{every}</RequestInterval><FailureThreshold>{failures}</FailureThreshold>");
    if kind == "HTTPS" {
        let _ = write!(out, "<EnableSNI>{}</EnableSNI>", call.opt_str("host").is_some());
    }
    Ok(out)
}

/// The id of the health check with that caller reference.
async fn made(cx: &Cx, r53: &Route53, reference: &str) -> Result<Option<String>> {
    let mut marker: Option<String> = None;
    loop {
        let mut query = vec![("maxitems", "100")];
        query.extend(marker.as_deref().map(|m| ("marker", m)));
        let body = r53.ask(cx, Method::GET, "healthcheck", &query, "", "list health checks").await?;
        let doc = parse(&body)?;
        let mut checks = doc.descendants().filter(|n| n.tag_name().name() == "HealthCheck");
        if let Some(found) = checks.find(|n| text(*n, "CallerReference") == Some(reference)) {
            return Ok(text(found, "Id").map(str::to_string));
        }
        let root = doc.root_element();
        match (text(root, "IsTruncated"), text(root, "NextMarker")) {
            (Some("true"), Some(next)) => marker = Some(next.to_string()),
            _ => return Ok(None),
        }
    }
}

fn parse(body: &str) -> Result<Document<'_>> {
    Document::parse(body)
        .map_err(|e| Error::new(Code::DNS_API, format!("Route 53 does not answer XML: {e}")).hint("check the address of the API"))
}

#[async_trait]
impl Primitive for CreateHealthCheck {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let config = config(call).map_err(named(call))?;
        let r53 = route53(cx, call)?;
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<CreateHealthCheckRequest xmlns=\"https://route53.amazonaws.com/doc/2013-04-01/\">\
             <CallerReference>{}</CallerReference><HealthCheckConfig>{config}</HealthCheckConfig></CreateHealthCheckRequest>",
            cx.action_id
        );
        let what = format!("make a health check of {}", call.str(0));
        let answer = r53.ask(cx, Method::POST, "healthcheck", &[], &body, &what).await.map_err(named(call))?;
        let doc = parse(&answer)?;
        let check = doc.descendants().find(|n| n.tag_name().name() == "HealthCheck");
        let id =
            check.and_then(|n| text(n, "Id")).ok_or_else(|| Error::new(Code::DNS_API, "Route 53 gives no id of the new health check"))?;
        Ok(Outcome::changed(id).note(format!("health check {id} of {}", call.str(0))))
    }

    async fn reconcile(&self, cx: &Cx, call: &Call) -> Result<Reconciled> {
        let r53 = route53(cx, call)?;
        Ok(match made(cx, &r53, &cx.action_id.0).await.map_err(named(call))? {
            Some(id) => Reconciled::Done(Outcome::changed(id.as_str()).note(format!("health check {id} of {} was made", call.str(0)))),
            None => Reconciled::NotStarted,
        })
    }
}

/// Removes a health check.
pub struct DeleteHealthCheck(Spec);

impl Default for DeleteHealthCheck {
    fn default() -> Self {
        DeleteHealthCheck(
            Spec::method(
                "Zone",
                "delete_health_check",
                Effect::Converge,
                "Removes a health check of Route 53.\n\nFirst take it from the record sets that depend on it.",
            )
            .arg("id", Ty::Str, "Its id.")
            .example(r#"zone("example.com").delete_health_check("0f1e2d3c-0000-4000-8000-000000000000");"#)
            .errors(ERRORS),
        )
    }
}

#[async_trait]
impl Primitive for DeleteHealthCheck {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let r53 = route53(cx, call)?;
        let id = call.str(0);
        let path = format!("healthcheck/{}", super::aws::encode(id));
        let gone = |e: &Error| e.details.get("aws_code").is_some_and(|c| c == "NoSuchHealthCheck");
        let there = r53.ask(cx, Method::GET, &path, &[], "", &format!("look at the health check {id}")).await;
        if there.as_ref().is_err_and(gone) {
            return Ok(Outcome::unchanged((), format!("there is no health check {id}")));
        }
        there.map_err(named(call))?;
        match r53.ask(cx, Method::DELETE, &path, &[], "", &format!("remove the health check {id}")).await {
            Err(e) if !gone(&e) => Err(named(call)(e)),
            _ => Ok(Outcome::changed(()).note(format!("health check {id} is gone"))),
        }
    }
}

/// Waits until a health check succeeds.
pub struct WaitHealthy(Spec);

impl Default for WaitHealthy {
    fn default() -> Self {
        WaitHealthy(
            Spec::method(
                "Zone",
                "wait_healthy",
                Effect::Read,
                "Waits until a health check of Route 53 succeeds from most of the places that make it.\n\nWhen time is up, the error names \
                 the places from which it fails, and what they say.",
            )
            .arg("id", Ty::Str, "Its id.")
            .option("within", Ty::Duration, "How long to wait at most; 5m by default.")
            .option("every", Ty::Duration, "The pause between two looks; 10s by default.")
            .example(r#"zone("example.com").wait_healthy("0f1e2d3c-0000-4000-8000-000000000000", #{ within: "5m" });"#)
            .errors(ERRORS),
        )
    }
}

#[async_trait]
impl Primitive for WaitHealthy {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let r53 = route53(cx, call)?;
        let id = call.str(0);
        let within = call.opt_duration("within").unwrap_or(Duration::from_secs(300));
        let every = call.opt_duration("every").unwrap_or(Duration::from_secs(10)).max(Duration::from_millis(100));
        let path = format!("healthcheck/{}/status", super::aws::encode(id));
        let begun = tokio::time::Instant::now();
        loop {
            let body =
                r53.ask(cx, Method::GET, &path, &[], "", &format!("tell the state of the health check {id}")).await.map_err(named(call))?;
            let doc = parse(&body)?;
            let seen = doc.descendants().filter(|n| n.tag_name().name() == "HealthCheckObservation");
            let seen: Vec<(String, String)> = seen
                .map(|n| {
                    let status = child(n, "StatusReport").and_then(|s| text(s, "Status")).unwrap_or("nothing yet");
                    (text(n, "Region").unwrap_or("").to_string(), status.to_string())
                })
                .collect();
            let good = seen.iter().filter(|(_, s)| s.starts_with("Success")).count();
            cx.progress(format!("places from which the health check {id} succeeds"), good as u64, Some(seen.len() as u64), "places");
            if good * 2 > seen.len() {
                return Ok(Outcome { note: Some(format!("{good} of {} places succeed", seen.len())), ..Outcome::default() });
            }
            let left = within.saturating_sub(begun.elapsed());
            if left.is_zero() {
                let bad: Vec<String> = seen.iter().filter(|(_, s)| !s.starts_with("Success")).map(|(r, s)| format!("{r}: {s}")).collect();
                let text = if bad.is_empty() { "no place has made it yet".to_string() } else { bad.join("; ") };
                return Err(named(call)(
                    Error::new(Code::DNS_WAIT, format!("after {} the health check {id} does not succeed: {text}", show_duration(within)))
                        .hint("see whether AWS's checkers may reach the address and port")
                        .retryable(true),
                ));
            }
            cx.sleep(every.min(left)).await?;
        }
    }
}
