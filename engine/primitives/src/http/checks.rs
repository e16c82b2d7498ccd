//! The methods of `Http`: `expect_status`, `expect_body`, `get`, `send`.

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Reconciled};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::{Code, Error, Result, Value};

use super::request::{Response, send, url_of};

/// Refuses to repeat, as a read may be, what changes things on the server.
fn safe(call: &Call) -> Result<()> {
    let method = call.receiver.as_ref().map_or("GET", |r| r.str("method"));
    if matches!(method, "GET" | "HEAD" | "OPTIONS") {
        return Ok(());
    }
    Err(Error::new(Code::HTTP, format!("a {method} request may change things, and checks may be repeated"))
        .hint("use send(), which is never repeated by itself, and look at the status of its response"))
}

fn came(r: &Response) -> String {
    let body = r.beginning();
    if body.is_empty() { format!("{} with an empty body", r.status) } else { format!("{}: {body}", r.status) }
}

/// Checks the status.
pub struct ExpectStatus(Spec);

impl Default for ExpectStatus {
    fn default() -> Self {
        ExpectStatus(
            Spec::method("Http", "expect_status", Effect::Read, "Sends the request and fails unless the answer has this status.")
                .arg("status", Ty::OneOf(vec![Ty::Int, Ty::List(Box::new(Ty::Int))]), "The status, or all that are accepted.")
                .returns(Ty::Record("Response"))
                .example(r#"http("https://shop.example.com/health").expect_status(200);"#)
                .errors(&[Code::HTTP, Code::TLS]),
        )
    }
}

#[async_trait]
impl Primitive for ExpectStatus {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        safe(call)?;
        let wanted: Vec<i64> = match call.arg(0) {
            Value::List(l) => l.iter().filter_map(Value::as_int).collect(),
            v => v.as_int().into_iter().collect(),
        };
        let r = send(cx, call).await?;
        if wanted.contains(&i64::from(r.status)) {
            return Ok(Outcome { note: Some(format!("{} in {} ms", r.status, r.ms)), ..Outcome::from(r.to_value()) });
        }
        let list: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        let mut e = Error::new(Code::HTTP, format!("{} answers {}; wanted {}", url_of(call), came(&r), list.join(" or ")))
            .detail("status", r.status)
            .retryable(true);
        if let Some(to) = r.headers.get("location").filter(|_| (300..400).contains(&r.status)) {
            e = e.hint(format!("it redirects to {to}: ask there, or say #{{ follow: true }}"));
        } else {
            e = e.hint("see the log of the service");
        }
        Err(e)
    }
}

/// Checks the body.
pub struct ExpectBody(Spec);

impl Default for ExpectBody {
    fn default() -> Self {
        ExpectBody(
            Spec::method(
                "Http",
                "expect_body",
                Effect::Read,
                "Sends the request and fails unless the answer has a status from 200 to 299 and this text in its body.",
            )
            .arg("text", Ty::Str, "The text that the body must contain.")
            .returns(Ty::Record("Response"))
            .example(r#"http("https://shop.example.com/").expect_body("Welcome to the shop");"#)
            .errors(&[Code::HTTP, Code::TLS]),
        )
    }
}

#[async_trait]
impl Primitive for ExpectBody {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        safe(call)?;
        let r = send(cx, call).await?;
        if (200..300).contains(&r.status) && r.body.contains(call.str(0)) {
            return Ok(Outcome { note: Some(format!("{} in {} ms", r.status, r.ms)), ..Outcome::from(r.to_value()) });
        }
        Err(Error::new(Code::HTTP, format!("{} answers {}; wanted {:?} in the body", url_of(call), came(&r), call.str(0)))
            .detail("status", r.status)
            .hint("see the log of the service")
            .retryable(true))
    }
}

/// Fetches.
pub struct Get(Spec);

impl Default for Get {
    fn default() -> Self {
        Get(Spec::method(
            "Http",
            "get",
            Effect::Read,
            "Sends the request and gives the answer, whatever its status. For GET, HEAD and OPTIONS.",
        )
        .returns(Ty::Record("Response"))
        .example(r#"let version = http("https://shop.example.com/version").get().body;"#)
        .errors(&[Code::FILE_TOO_LARGE, Code::HTTP, Code::TLS]))
    }
}

#[async_trait]
impl Primitive for Get {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        safe(call)?;
        Ok(send(cx, call).await?.to_value().into())
    }
}

/// Sends.
pub struct Send(Spec);

impl Default for Send {
    fn default() -> Self {
        Send(
            Spec::method(
                "Http",
                "send",
                Effect::Once,
                "Sends a request that changes things, once, and gives the answer, whatever its status.\n\nA server cannot be asked later \
                 whether it had the request: when the controller dies before the answer is on record, the operator is asked.",
            )
            .returns(Ty::Record("Response"))
            .example(r#"http("https://shop.example.com/reindex", #{ method: "POST", headers: #{ Authorization: secret("shop_token") } }).send();"#)
            .errors(&[Code::FILE_TOO_LARGE, Code::HTTP, Code::TLS]),
        )
    }
}

#[async_trait]
impl Primitive for Send {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        // Once sent, nothing tells whether it took effect: never retried by itself.
        let r = send(cx, call).await.map_err(|e| e.retryable(false))?;
        Ok(Outcome { changed: Some(true), note: Some(format!("{} in {} ms", r.status, r.ms)), ..Outcome::from(r.to_value()) })
    }

    async fn reconcile(&self, _cx: &Cx, call: &Call) -> Result<Reconciled> {
        Ok(Reconciled::Unknown { known: format!("the request to {} was begun; the server may or may not have had it", url_of(call)) })
    }
}
