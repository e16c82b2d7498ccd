//! What providers with an HTTP API share: sending a request, waiting when the provider says so, and never a secret in an error.

use std::error::Error as _;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use futures::future::BoxFuture;
use reqwest::header::RETRY_AFTER;
use reqwest::{Client, Request, StatusCode, Url};
use runbook_core::error::Kind;
use runbook_core::inventory::Resource;
use runbook_core::primitive::Cx;
use runbook_core::secret::Secret;
use runbook_core::units::show_duration;
use runbook_core::{Code, Error, Result};

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often a request is sent at most: the provider is busy, or says "later".
const ATTEMPTS: u32 = 6;
/// The longest wait that a provider may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(120);
/// The largest answer that is read.
const MAX_BODY: usize = 64 << 20;

/// What an API answered.
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The body, secrets struck.
    pub body: String,
}

/// The client for the APIs, kept for the life of the process.
#[derive(Default)]
struct Kept(OnceLock<Client>);

/// The address of a zone's API. A key goes with every request, so it is one with TLS, or one on loopback, which leaves no machine.
///
/// # Errors
/// `RB0104` when it is another.
pub fn address(zone: &Resource, api: &str) -> Result<Url> {
    let bad = |why: &str, hint: &str| {
        let e = Error::new(Code::INVENTORY_TYPE, format!("api = \"{api}\" of the zone \"{}\": {why}", zone.name));
        e.kind(Kind::Check).hint(hint)
    };
    let usual = "write it like https://ns1.example.com:8081";
    let url = Url::parse(api).map_err(|e| bad(&e.to_string(), usual))?;
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback());
    match url.scheme() {
        "https" => Ok(url),
        "http" if loopback => Ok(url),
        "http" => Err(bad(
            "the key would go over the network unencrypted",
            "use https; a server without it is reached over SSH: host = \"…\" and api = \"http://127.0.0.1:8081\", as that host sees it (kind \"powerdns\")",
        )),
        _ => Err(bad("it is not an address of HTTP", usual)),
    }
}

/// A client that can be used; all its connections go to `socket` when one is given.
///
/// # Errors
/// `RB0606` when TLS cannot be set up.
pub fn client(cx: &Cx, base: &Url, socket: Option<&Path>) -> Result<Client> {
    static PROVIDER: OnceLock<()> = OnceLock::new();
    // Already installed by another part of the process: as good.
    PROVIDER.get_or_init(|| drop(rustls::crypto::ring::default_provider().install_default()));
    let kept = cx.shared.get::<Kept>();
    let may_keep = base.scheme() == "https" && socket.is_none();
    if let Some(client) = kept.0.get().filter(|_| may_keep) {
        return Ok(client.clone());
    }
    let mut builder = Client::builder().user_agent(concat!("runbook/", env!("CARGO_PKG_VERSION"))).timeout(TIMEOUT);
    if base.scheme() == "http" {
        // A machine without root certificates can still speak to an API on loopback.
        builder = builder.no_proxy().tls_certs_only([]);
    }
    if let Some(socket) = socket {
        builder = builder.no_proxy().unix_socket(socket);
    }
    let made = builder.build().map_err(|e| {
        Error::new(Code::DNS_API, format!("TLS cannot be set up for {base}: {}", innermost(&e)))
            .hint("install the package ca-certificates on this machine")
    })?;
    if may_keep {
        let _ = kept.0.set(made.clone());
    }
    Ok(made)
}

/// A credential: the secret of the inventory, else the first environment variable that is set. Struck from everything from now on.
///
/// # Errors
/// `RB0109` when there is none.
pub fn credential(cx: &Cx, secret: Option<&str>, variables: &[&str], env: &dyn Fn(&str) -> Option<String>) -> Result<(Secret, String)> {
    if let Some(name) = secret {
        return Ok((cx.secret(name)?, format!("the secret \"{name}\"")));
    }
    for v in variables {
        if let Some(value) = env(v).filter(|t| !t.trim().is_empty()) {
            let value = value.trim();
            cx.redactor.add(value);
            return Ok((Secret::new(*v, value), format!("the environment variable {v}")));
        }
    }
    Err(Error::new(Code::MISSING_SECRET, format!("no credential: the zone names no secret, and {} is not set", variables.join(" or ")))
        .kind(Kind::Check))
}

/// Reads an environment variable of the controller.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Sends a request, again when the provider is busy. `what` says what it is for: `list the records of example.com`.
///
/// A request that changes something is sent again only when the provider says that it did not do it (429, 503).
///
/// # Errors
/// `RB0600`, retryable, when no answer comes; `RB0606`, retryable, when the provider is still busy after several waits; `RB0021`.
pub fn send<'a>(cx: &'a Cx, client: &'a Client, provider: &'a str, what: &'a str, request: Request) -> BoxFuture<'a, Result<Answer>> {
    Box::pin(async move {
        tokio::select! {
            r = send_inner(cx, client, provider, what, request) => r,
            () = cx.cancel.cancelled() => Err(Error::new(Code::ABORTED, format!("stopped while {provider} was asked to {what}"))),
        }
    })
}

async fn send_inner(cx: &Cx, client: &Client, provider: &str, what: &str, request: Request) -> Result<Answer> {
    let reads = request.method().is_safe();
    let mut wait = Duration::from_millis(500);
    let mut attempt = 1;
    loop {
        let again = request.try_clone().ok_or_else(|| Error::internal("a request cannot be sent twice"))?;
        let asked = once(client, again).await;
        let (answer, told) = match asked {
            Ok(x) => x,
            Err(_) if reads && attempt < ATTEMPTS / 2 => {
                attempt += 1;
                tokio::time::sleep(wait).await;
                wait *= 2;
                continue;
            }
            Err(e) => return Err(no_answer(provider, what, &e)),
        };
        let busy = answer.status == StatusCode::TOO_MANY_REQUESTS
            || answer.status == StatusCode::SERVICE_UNAVAILABLE
            || (reads && answer.status.is_server_error());
        if !busy {
            return Ok(Answer { status: answer.status, body: cx.redactor.text(&answer.body) });
        }
        let pause = told.unwrap_or(wait);
        if attempt >= ATTEMPTS || pause > LONGEST_WAIT {
            let later =
                if pause > LONGEST_WAIT { format!("; it wants to be asked again in {}", show_duration(pause)) } else { String::new() };
            return Err(Error::new(Code::DNS_API, format!("{provider} is busy and does not {what} ({}){later}", answer.status))
                .hint("try again later; nothing of this request was done")
                .retryable(true));
        }
        if told.is_some() {
            cx.progress(format!("{provider} wants a pause of {}", show_duration(pause)), u64::from(attempt), None, "requests");
        }
        tokio::time::sleep(pause).await;
        wait = (wait * 2).min(Duration::from_secs(16));
        attempt += 1;
    }
}

async fn once(client: &Client, request: Request) -> Result<(Answer, Option<Duration>), reqwest::Error> {
    let mut got = client.execute(request).await?;
    let told = got.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()).and_then(|t| t.trim().parse().ok()).map(Duration::from_secs);
    let status = got.status();
    let mut body = Vec::new();
    while let Some(piece) = got.chunk().await? {
        body.extend_from_slice(&piece);
        if body.len() > MAX_BODY {
            break;
        }
    }
    Ok((Answer { status, body: String::from_utf8_lossy(&body).into_owned() }, told))
}

fn innermost(e: &reqwest::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        text = s.to_string();
        source = s.source();
    }
    text
}

fn no_answer(provider: &str, what: &str, e: &reqwest::Error) -> Error {
    let why = if e.is_timeout() { format!("no whole answer within {}", show_duration(TIMEOUT)) } else { innermost(e) };
    let at = e.url().and_then(|u| u.host_str().map(str::to_string)).unwrap_or_default();
    Error::new(Code::DNS_QUERY, format!("{provider} ({at}) gives no answer when asked to {what}: {why}"))
        .hint("see whether this machine reaches the provider's API, and what a firewall or proxy lets through")
        .retryable(true)
}

/// The beginning of a text, for messages.
pub fn beginning(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(300) {
        Some((i, _)) => format!("{}…", line.get(..i).unwrap_or_default()),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use runbook_core::inventory::Environment;
    use runbook_testkit::{World, cx};

    use super::*;

    #[test]
    fn no_key_goes_over_a_network_unencrypted() {
        let zone = Resource { name: "example.test".into(), ..Resource::default() };
        for good in ["https://ns1.example.com:8081", "http://127.0.0.1:8081/", "http://[::1]:8081", "http://localhost"] {
            assert!(address(&zone, good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("http://ns1.example.com:8081", "unencrypted"),
            ("http://127.0.0.1.example.com", "unencrypted"),
            ("ftp://ns1.example.com", "not an address of HTTP"),
            ("ns1", "relative URL"),
        ] {
            let e = address(&zone, bad).unwrap_err();
            assert!(e.code == Code::INVENTORY_TYPE && e.message.contains(why), "{bad}: {e}");
        }
    }

    #[test]
    fn a_credential_comes_from_the_inventory_then_from_the_usual_variables() {
        let world = Arc::new(World::default());
        world.secrets.lock().insert("cf".into(), "from-the-inventory".into());
        let c = cx(&world, Environment::default(), "a-1");
        let env = |n: &str| (n == "B").then(|| " from-b \n".to_string());
        let (s, of) = credential(&c, Some("cf"), &["A", "B"], &env).unwrap();
        assert_eq!((s.reveal(), of.as_str()), ("from-the-inventory", "the secret \"cf\""));
        let (s, of) = credential(&c, None, &["A", "B"], &env).unwrap();
        assert_eq!((s.reveal(), of.as_str()), ("from-b", "the environment variable B"));
        assert_eq!(c.redactor.text("it is from-b"), "it is [secret]");
        let e = credential(&c, None, &["A", "C"], &env).unwrap_err();
        assert_eq!(e.to_string(), "RB0109: no credential: the zone names no secret, and A or C is not set");
    }
}
