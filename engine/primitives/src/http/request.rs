//! Making and sending one HTTP request.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use reqwest::header::{HOST, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, ClientBuilder, Method, Url};
use runbook_core::error::Kind;
use runbook_core::primitive::Cx;
use runbook_core::spec::Call;
use runbook_core::units::{show_bytes, show_duration};
use runbook_core::{Code, Error, Record, Result, Value};

use super::{TIMEOUT, tls};

/// The largest body that is held as a value.
const MAX_BODY: usize = 4 << 20;

/// What came back. Secrets are struck from it.
pub struct Response {
    /// The status.
    pub status: u16,
    /// The body, at most [`MAX_BODY`].
    pub body: String,
    /// The headers.
    pub headers: BTreeMap<String, String>,
    /// The address that answered.
    pub url: String,
    /// How long it took.
    pub ms: i64,
}

impl Response {
    /// The script's value of type `Response`.
    pub fn to_value(&self) -> Value {
        let headers = self.headers.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect();
        Record::new(
            "Response",
            [
                ("status", i64::from(self.status).into()),
                ("body", self.body.as_str().into()),
                ("headers", Value::Map(headers)),
                ("url", self.url.as_str().into()),
                ("ms", self.ms.into()),
            ],
        )
        .into()
    }

    /// The beginning of the body, for messages.
    pub fn beginning(&self) -> String {
        let line: String = self.body.split_whitespace().collect::<Vec<_>>().join(" ");
        match line.char_indices().nth(200) {
            Some((i, _)) => format!("{}…", line.get(..i).unwrap_or_default()),
            None => line,
        }
    }
}

pub(super) fn wrong(what: impl Into<String>) -> Error {
    Error::new(Code::HTTP, what).kind(Kind::Check)
}

/// Reads a URL.
///
/// # Errors
/// `RB0800` when it is none, is not of HTTP, or holds a password.
pub fn parse_url(text: &str) -> Result<Url> {
    let url =
        Url::parse(text).map_err(|e| wrong(format!("\"{text}\" is not a URL: {e}")).hint("write it like https://example.com/health"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(wrong(format!("\"{text}\" is not an address of HTTP")).hint("write it like https://example.com/health"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong(format!("the URL of {} has a user or password in it, which would be recorded", url.host_str().unwrap_or("")))
            .hint(r#"give them in a header: #{ headers: #{ Authorization: secret("name") } }"#));
    }
    Ok(url)
}

/// Reads a method.
///
/// # Errors
/// `RB0800` when it is none.
pub fn parse_method(text: &str) -> Result<Method> {
    Method::from_bytes(text.as_bytes()).map_err(|_| wrong(format!("\"{text}\" is not an HTTP method")))
}

/// Sends the request that the receiver of `call` describes.
///
/// # Errors
/// `RB0800`, retryable, when no answer comes; otherwise when the request is not well formed. `RB0803` when the server's TLS is not
/// accepted. `RB0405` when the body is too large.
pub fn send<'a>(cx: &'a Cx, call: &'a Call) -> BoxFuture<'a, Result<Response>> {
    Box::pin(async move {
        let limit = field_duration(call, "timeout").unwrap_or(TIMEOUT);
        tokio::select! {
            r = send_inner(cx, call, limit) => r,
            () = cx.cancel.cancelled() => Err(Error::new(Code::ABORTED, format!("stopped while asking {}", url_of(call)))),
        }
    })
}

/// The URL of the request, for messages.
pub fn url_of(call: &Call) -> &str {
    call.receiver.as_ref().map_or("", |r| r.str("url"))
}

fn field<'a>(call: &'a Call, key: &str) -> &'a Value {
    call.receiver.as_ref().map_or(&Value::Unit, |r| r.get(key))
}

fn field_duration(call: &Call, key: &str) -> Option<Duration> {
    if let Value::Duration(d) = field(call, key) { Some(*d) } else { None }
}

async fn send_inner(cx: &Cx, call: &Call, limit: Duration) -> Result<Response> {
    let asked = parse_url(url_of(call))?;
    let flag = |key: &str| field(call, key).as_bool().unwrap_or(false);
    let mut url = asked.clone();
    let mut host_header = None;
    let mut builder = base().timeout(limit).redirect(if flag("follow") { Policy::limited(10) } else { Policy::none() });

    if let Some(site) = field(call, "host").as_str() {
        // The site's name stands in the URL, so that Host and TLS carry it; the connection goes to the server of the given URL.
        let to = match field(call, "resolve").as_str() {
            Some(r) => address(r, asked.port_or_known_default().unwrap_or(80))?,
            None => lookup(&asked).await?,
        };
        if site.parse::<IpAddr>().is_ok() || url.set_host(Some(site)).is_err() {
            return Err(wrong(format!("\"{site}\" is not the name of a site")).hint("host takes a name such as shop.example.com"));
        }
        let _ = url.set_port(None);
        builder = builder.resolve(site, to);
    } else if let Some(r) = field(call, "resolve").as_str() {
        let name = asked.host_str().unwrap_or_default().to_string();
        let to = address(r, asked.port_or_known_default().unwrap_or(80))?;
        if name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
            return Err(
                wrong("resolve needs a name in the URL, not an address").hint("put the address into the URL, and the name into host")
            );
        }
        if asked.port().is_some_and(|p| p != to.port()) {
            // A port in the URL goes before the one of `resolve`; the header keeps what was asked for.
            host_header = Some(format!("{name}:{}", asked.port().unwrap_or_default()));
            let _ = url.set_port(Some(to.port()));
        }
        builder = builder.resolve(&name, to);
    }
    if flag("insecure") {
        builder = builder.danger_accept_invalid_certs(true);
    }
    if let Some(path) = field(call, "ca_file").as_str() {
        let pem = cx.files.read(path)?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|e| wrong(format!("{path} holds no certificates (PEM): {e}")))?;
        if certificates.is_empty() {
            return Err(wrong(format!("{path} holds no certificates (PEM)")));
        }
        builder = builder.tls_certs_only(certificates);
    }
    let client = build(builder, &asked, field(call, "ca_file").as_str())?;

    let method = parse_method(call.receiver.as_ref().map_or("GET", |r| r.str("method")))?;
    let sent = url.clone();
    let mut request = client.request(method, url);
    if let Some(h) = host_header {
        request = request.header(HOST, h);
    }
    for (name, value) in field(call, "headers").as_map().into_iter().flatten() {
        let (text, sensitive) = match value {
            Value::Secret(s) => {
                cx.redactor.add(s.reveal());
                (s.reveal(), true)
            }
            v => (v.as_str().unwrap_or_default(), false),
        };
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong(format!("\"{name}\" is not the name of a header")))?;
        let mut value = HeaderValue::from_str(text)
            .map_err(|_| wrong(format!("the value of the header {name} has characters that headers cannot hold")))?;
        value.set_sensitive(sensitive);
        request = request.header(header, value);
    }
    match field(call, "body") {
        Value::Str(s) => request = request.body(s.clone()),
        Value::Blob(b) => request = request.body(b.clone()),
        _ => {}
    }

    let begun = Instant::now();
    let mut answer = request.send().await.map_err(|e| no_answer(&asked, &sent, &e, limit))?;
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|e| no_answer(&asked, &sent, &e, limit))? {
        if body.len() + piece.len() > MAX_BODY {
            return Err(Error::new(Code::FILE_TOO_LARGE, format!("the answer of {asked} is larger than {}", show_bytes(MAX_BODY as u64)))
                .hint("check a smaller page, or fetch it on a host with run(\"curl …\")"));
        }
        body.extend_from_slice(&piece);
    }
    let mut headers: BTreeMap<String, String> = BTreeMap::new();
    for (k, v) in answer.headers() {
        let v = cx.redactor.text(&String::from_utf8_lossy(v.as_bytes()));
        headers.entry(k.as_str().to_string()).and_modify(|all| all.push_str(&format!(", {v}"))).or_insert(v);
    }
    Ok(Response {
        status: answer.status().as_u16(),
        url: cx.redactor.text(answer.url().as_str()),
        body: cx.redactor.text(&String::from_utf8_lossy(&body)),
        headers,
        ms: i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX),
    })
}

fn base() -> ClientBuilder {
    static PROVIDER: OnceLock<()> = OnceLock::new();
    // Already installed by another part of the process: as good.
    PROVIDER.get_or_init(|| drop(rustls::crypto::ring::default_provider().install_default()));
    Client::builder()
        .no_proxy()
        .user_agent(concat!("runbook/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(TIMEOUT)
        .pool_max_idle_per_host(0)
}

fn build(builder: ClientBuilder, url: &Url, ca_file: Option<&str>) -> Result<Client> {
    builder.build().or_else(|e| {
        // A machine without any root certificates can still check plain HTTP.
        if url.scheme() == "http" {
            return base()
                .redirect(Policy::none())
                .tls_certs_only([])
                .build()
                .map_err(|e| Error::internal(format!("no HTTP client: {}", chain(&e))));
        }
        if let Some(path) = ca_file {
            return Err(wrong(format!("{path} holds a certificate that cannot be used: {}", chain(&e))));
        }
        Err(wrong(format!("TLS cannot be set up for {url}: {}", chain(&e)))
            .hint("install the package ca-certificates on this machine, or name a ca_file"))
    })
}

fn address(text: &str, port: u16) -> Result<SocketAddr> {
    let ip = |t: &str| t.trim_matches(['[', ']']).parse::<IpAddr>().ok();
    text.parse::<SocketAddr>()
        .ok()
        .or_else(|| ip(text).map(|ip| SocketAddr::new(ip, port)))
        .ok_or_else(|| wrong(format!("\"{text}\" is not an address")).hint("resolve takes ip or ip:port"))
}

async fn lookup(url: &Url) -> Result<SocketAddr> {
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or(80);
    if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let fail = |why: String| Error::new(Code::HTTP, format!("{host} cannot be looked up: {why}")).retryable(true);
    let mut found = tokio::net::lookup_host((host, port)).await.map_err(|e| fail(e.to_string()))?;
    found.next().ok_or_else(|| fail("it has no address".into()))
}

fn chain(e: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut source = e.source();
    while let Some(s) = source {
        // The innermost says what happened; the outer ones repeat it.
        text = s.to_string();
        source = s.source();
    }
    if text.is_empty() { e.to_string() } else { text }
}

/// `url` is what the script asks for; `sent` what it became by `host` and `resolve`. A redirection leads to a third.
fn no_answer(url: &Url, sent: &Url, e: &reqwest::Error, limit: Duration) -> Error {
    if let Some(refused) = tls::refusal(e.url().filter(|u| *u != sent).unwrap_or(url), e) {
        return refused;
    }
    let why = if e.is_timeout() { format!("no whole answer within {}", show_duration(limit)) } else { chain(e) };
    let hint = if e.is_redirect() {
        "the redirections go in a circle or are too many; check without follow"
    } else if e.is_timeout() {
        "see whether the service hangs, or give it longer: #{ timeout: \"30s\" }"
    } else {
        "see whether the service runs and listens on this address and port, and what a firewall lets through"
    };
    Error::new(Code::HTTP, format!("{url} gives no answer: {why}")).hint(hint).retryable(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_of_http_and_hold_no_password() {
        assert!(parse_url("http://[::1]:80/x?y=1").is_ok());
        for (url, why) in [("shop", "not a URL"), ("ftp://a/", "not an address of HTTP"), ("https://u:p@a/", "would be recorded")] {
            let e = parse_url(url).unwrap_err();
            assert!(e.message.contains(why) && e.hint.is_some(), "{e}");
        }
        assert!(!parse_url("https://u:hunter2@a/").unwrap_err().message.contains("hunter2"));
    }

    #[test]
    fn long_bodies_are_cut_for_messages() {
        let r = Response { status: 200, body: "ä\n ".repeat(300), headers: BTreeMap::new(), url: String::new(), ms: 0 };
        assert_eq!(r.beginning().chars().count(), 201);
    }
}
