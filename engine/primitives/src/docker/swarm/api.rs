//! Requests to a manager and its answers, as JSON.
//!
//! bollard's types lack what is needed here (a service's former specification), and would drop what they do not know from a specification
//! that is read, changed in one place and written back.

use std::fmt::Write as _;

use bollard::errors::Error as Fault;
use futures::future::BoxFuture;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request};
use runbook_core::cancel::Cancel;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result, Value};
use serde_json::{Map, Value as Json, json};

use crate::docker::engine::Engine;
use crate::docker::transport::exchange;

/// Reads something.
///
/// # Errors
/// As [`send`].
pub(super) async fn get(cx: &Cx, e: &Engine, what: &str, path: &str) -> Result<Json> {
    send(cx, e, what, Method::GET, path, None, None).await
}

/// As [`get`]; `None` when there is no such thing.
///
/// # Errors
/// As [`send`].
pub(super) async fn find(cx: &Cx, e: &Engine, what: &str, path: &str) -> Result<Option<Json>> {
    absent(get(cx, e, what, path).await)
}

/// Sends something.
///
/// # Errors
/// As [`send`].
pub(super) async fn post(cx: &Cx, e: &Engine, what: &str, path: &str, body: &Json) -> Result<Json> {
    send(cx, e, what, Method::POST, path, Some(body), None).await
}

/// Removes something; whether it was there.
///
/// # Errors
/// As [`send`].
pub(super) async fn delete(cx: &Cx, e: &Engine, what: &str, path: &str) -> Result<bool> {
    Ok(absent(send(cx, e, what, Method::DELETE, path, None, None).await)?.is_some())
}

fn absent(answer: Result<Json>) -> Result<Option<Json>> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.code == Code::DOCKER_MISSING => Ok(None),
        Err(e) => Err(e),
    }
}

/// One request. `what` is being done, for the message of a failure; `login` is for the registry of an image.
///
/// # Errors
/// `RB1007` when the engine is no manager, `RB1009` when the managers are too few, `RB1012` when what is to be changed has been changed
/// meanwhile; those of [`Engine::fault`].
pub(super) fn send<'a>(
    cx: &'a Cx,
    e: &'a Engine,
    what: &'a str,
    method: Method,
    path: &'a str,
    body: Option<&'a Json>,
    login: Option<&'a str>,
) -> BoxFuture<'a, Result<Json>> {
    Box::pin(async move {
        let version = e.api.client_version();
        let uri = format!("/v{}.{}{path}", version.major_version, version.minor_version);
        let mut request = Request::builder().method(method).uri(uri);
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(login) = login {
            request = request.header("X-Registry-Auth", login);
        }
        let request = request.body(body.map(Json::to_string).unwrap_or_default()).map_err(|e| Error::internal(e.to_string()))?;
        let own = Cx { cancel: Cancel::default(), ..cx.clone() };
        let answer = async {
            let (status, body) = exchange(&own, &e.place, request).await?;
            let json: Json = serde_json::from_slice(&body).unwrap_or(Json::Null);
            if (200..300).contains(&status) {
                return Ok(json);
            }
            let message = match text(&json, "/message") {
                "" => String::from_utf8_lossy(&body).into_owned(),
                said => said.to_string(),
            };
            Err(Fault::DockerResponseServerError { status_code: status, message })
        };
        e.ask(what, answer).await.map_err(|fault| meant(e, fault))
    })
}

/// What a manager's words mean.
fn meant(e: &Engine, mut fault: Error) -> Error {
    if fault.code != Code::DOCKER {
        return fault;
    }
    let said = |words: &[&str]| words.iter().any(|w| fault.message.contains(w));
    if said(&["not a swarm manager", "not part of a swarm"]) {
        return Error::new(Code::SWARM_STATE, format!("\"{}\" is not a manager of a swarm", e.name))
            .host(e.at())
            .hint("ask the engine of a manager; docker(…).swarm().status() tells what each of them is");
    }
    if said(&["does not have a leader", "no elected", "context deadline exceeded", "raft: "]) {
        fault.code = Code::SWARM_QUORUM;
        fault.retryable = true;
        return fault.hint("more than half of the managers must be up: start those that are down, or see `runbook explain RB1009`");
    }
    if said(&["update out of sequence"]) {
        fault.code = Code::SERVICE_CHANGED;
        fault.retryable = true;
    }
    fault
}

/// A text within an answer, by its path; empty when there is none.
pub(super) fn text<'a>(v: &'a Json, path: &str) -> &'a str {
    v.pointer(path).and_then(Json::as_str).unwrap_or("")
}

/// A whole number within an answer; 0 when there is none.
pub(super) fn int(v: &Json, path: &str) -> i64 {
    v.pointer(path).and_then(Json::as_i64).unwrap_or_default()
}

/// A truth value within an answer.
pub(super) fn flag(v: &Json, path: &str) -> bool {
    v.pointer(path).and_then(Json::as_bool).unwrap_or_default()
}

/// The items of an array within an answer.
pub(super) fn items<'a>(v: &'a Json, path: &str) -> &'a [Json] {
    v.pointer(path).and_then(Json::as_array).map_or(&[], Vec::as_slice)
}

/// The items of an answer that is an array.
pub(super) fn all(v: Json) -> Vec<Json> {
    match v {
        Json::Array(all) => all,
        _ => vec![],
    }
}

/// The texts of an object within an answer, as a script's map.
pub(super) fn texts(v: &Json, path: &str) -> Value {
    let pairs = v.pointer(path).and_then(Json::as_object).into_iter().flatten();
    Value::Map(pairs.filter_map(|(k, v)| Some((k.clone(), Value::from(v.as_str()?)))).collect())
}

/// The part of a path that asks only for what these filters let through.
pub(super) fn filters(pairs: &[(&str, &str)]) -> String {
    let all: Map<String, Json> = pairs.iter().map(|(k, v)| ((*k).to_string(), json!([v]))).collect();
    format!("?filters={}", encoded(&Json::Object(all).to_string()))
}

/// A text as it stands in a path.
pub(super) fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, b| {
        if b.is_ascii_alphanumeric() || b"-_.".contains(&b) {
            out.push(b.into());
        } else {
            let _ = write!(out, "%{b:02X}");
        }
        out
    })
}

/// A specification without what means nothing, so that two of them can be compared: the engine leaves out what is empty or 0.
pub(super) fn pruned(v: &Json) -> Json {
    fn nothing(v: &Json) -> bool {
        match v {
            Json::Null | Json::Bool(false) => true,
            Json::Number(n) => n.as_f64() == Some(0.0),
            Json::String(s) => s.is_empty(),
            Json::Array(a) => a.is_empty(),
            Json::Object(o) => o.is_empty(),
            Json::Bool(true) => false,
        }
    }
    match v {
        Json::Object(o) => {
            Json::Object(o.iter().map(|(k, v)| (k.clone(), pruned(v))).filter(|(k, v)| k == "Global" || !nothing(v)).collect())
        }
        Json::Array(a) => Json::Array(a.iter().map(pruned).collect()),
        other => other.clone(),
    }
}

/// The places at which two specifications differ, such as `TaskTemplate.ContainerSpec.Image`.
pub(super) fn differing(a: &Json, b: &Json) -> Vec<String> {
    fn walk(at: &str, a: &Json, b: &Json, out: &mut Vec<String>) {
        match (a, b) {
            (Json::Object(x), Json::Object(y)) => {
                let mut keys: Vec<&String> = x.keys().chain(y.keys()).collect();
                keys.sort();
                keys.dedup();
                for k in keys {
                    let inner = if at.is_empty() { k.clone() } else { format!("{at}.{k}") };
                    walk(&inner, x.get(k).unwrap_or(&Json::Null), y.get(k).unwrap_or(&Json::Null), out);
                }
            }
            _ if a != b => out.push(at.to_string()),
            _ => {}
        }
    }
    let mut out = vec![];
    walk("", &pruned(a), &pruned(b), &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifications_are_compared_without_what_means_nothing() {
        let a = json!({"Name": "web", "Mode": {"Global": {}}, "Labels": {}, "UpdateConfig": {"Delay": 0, "Parallelism": 1}});
        let b = json!({"Name": "web", "Mode": {"Global": {}}, "UpdateConfig": {"Parallelism": 1}});
        assert!(differing(&a, &b).is_empty());
        let c = json!({"Name": "web", "Mode": {"Replicated": {"Replicas": 2}}, "UpdateConfig": {"Parallelism": 2}});
        assert_eq!(differing(&a, &c), ["Mode.Global", "Mode.Replicated", "UpdateConfig.Parallelism"]);
    }

    #[test]
    fn filters_stand_in_a_path() {
        assert_eq!(filters(&[("name", "a b")]), "?filters=%7B%22name%22%3A%5B%22a%20b%22%5D%7D");
    }
}
