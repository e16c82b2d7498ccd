//! The HTTP and TCP primitives against a small real server on loopback.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use runbook_core::inventory::Environment;
use runbook_core::primitive::{Outcome, Primitive, Reconciled, Registry};
use runbook_core::secret::Secret;
use runbook_core::spec::Call;
use runbook_core::{Record, Result, Value};
use runbook_testkit::{World, cx};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn registry() -> Registry {
    let mut r = Registry::default();
    super::register(&mut r);
    r
}

fn handle(name: &'static str, args: Vec<Value>) -> Result<Record> {
    let r = registry();
    let (spec, f) = &r.pure[&(None, name)];
    let call = spec.bind(None, args)?;
    Ok(f(&Environment::default(), &call)?.as_record().unwrap().clone())
}

fn primitive(on: &'static str, name: &'static str) -> Arc<dyn Primitive> {
    registry().primitives[&(Some(on), name)].clone()
}

async fn call(on: &Record, name: &'static str, args: Vec<Value>) -> Result<Outcome> {
    let ty = if on.ty == "Http" { "Http" } else { "Tcp" };
    let p = primitive(ty, name);
    let call = p.spec().bind(Some(on.clone()), args)?;
    p.act(&cx(&Arc::default(), Environment::default(), "a1"), &call).await
}

fn options(pairs: &[(&str, Value)]) -> Value {
    Value::Map(pairs.iter().map(|(k, v)| ((*k).to_string(), v.clone())).collect())
}

/// Answers every request with `answer`, and keeps what was asked.
async fn server(answer: &'static str) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut s, _)) = listener.accept().await {
            let kept = kept.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 8192];
                let n = s.read(&mut buffer).await.unwrap();
                kept.lock().push(String::from_utf8_lossy(&buffer[..n]).into_owned());
                s.write_all(answer.as_bytes()).await.unwrap();
            });
        }
    });
    (port, asked)
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\nX-A: 2\r\n\r\nhello";

#[tokio::test]
async fn the_expected_status_and_body_pass_and_others_fail_with_what_came() {
    let (port, _) = server(OK).await;
    let h = handle("http", vec![format!("http://127.0.0.1:{port}/health").into()]).unwrap();
    let out = call(&h, "expect_status", vec![Value::List(vec![Value::Int(204), Value::Int(200)])]).await.unwrap();
    let r = out.value.as_record().unwrap();
    assert_eq!((r.get("status").as_int(), r.str("body")), (Some(200), "hello"));
    assert_eq!(r.get("headers").as_map().unwrap()["x-a"].as_str(), Some("1, 2"));
    call(&h, "expect_body", vec!["ell".into()]).await.unwrap();

    let e = call(&h, "expect_status", vec![Value::Int(204)]).await.unwrap_err();
    assert_eq!(e.to_string(), format!("RB0800: http://127.0.0.1:{port}/health answers 200: hello; wanted 204"));
    assert!(e.retryable);
    let e = call(&h, "expect_body", vec!["bye".into()]).await.unwrap_err();
    assert!(e.message.ends_with("answers 200: hello; wanted \"bye\" in the body"), "{e}");
}

#[tokio::test]
async fn host_reaches_a_named_site_on_a_server_and_secrets_go_into_headers_only() {
    let (port, asked) = server("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nyou: s3cr3t!").await;
    let url = format!("http://127.0.0.1:{port}/x");
    let headers = options(&[("Authorization", Value::Secret(Secret::new("token", "s3cr3t!")))]);
    let h = handle("http", vec![url.into(), options(&[("host", "shop.example.test".into()), ("headers", headers)])]).unwrap();
    let out = call(&h, "get", vec![]).await.unwrap();
    let request = asked.lock()[0].to_lowercase();
    assert!(request.contains("host: shop.example.test\r\n"), "{request}");
    assert!(request.contains("authorization: s3cr3t!\r\n"), "{request}");
    let recorded = out.value.to_json().to_string();
    assert!(recorded.contains("you: [secret]") && !recorded.contains("s3cr3t"), "{recorded}");
    let shown = Value::from(h).to_json().to_string();
    assert!(shown.contains("token") && !shown.contains("s3cr3t"), "{shown}");
}

#[tokio::test]
async fn resolve_connects_elsewhere_and_keeps_the_name() {
    let (port, asked) = server(OK).await;
    let h = handle("http", vec!["http://shop.example.test/x".into(), options(&[("resolve", format!("127.0.0.1:{port}").into())])]).unwrap();
    call(&h, "expect_status", vec![Value::Int(200)]).await.unwrap();
    assert!(asked.lock()[0].to_lowercase().contains("host: shop.example.test\r\n"));
    let h =
        handle("http", vec!["http://shop.example.test:81/x".into(), options(&[("resolve", format!("127.0.0.1:{port}").into())])]).unwrap();
    call(&h, "expect_status", vec![Value::Int(200)]).await.unwrap();
    assert!(asked.lock()[1].to_lowercase().contains("host: shop.example.test:81\r\n"), "{:?}", asked.lock());
}

#[tokio::test]
async fn redirections_are_shown_and_followed_only_when_told() {
    let (target, _) = server(OK).await;
    let location: &'static str =
        Box::leak(format!("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{target}/new\r\nContent-Length: 0\r\n\r\n").into_boxed_str());
    let (port, _) = server(location).await;
    let url = Value::from(format!("http://127.0.0.1:{port}/"));
    let e = call(&handle("http", vec![url.clone()]).unwrap(), "expect_status", vec![Value::Int(200)]).await.unwrap_err();
    assert!(e.message.contains("answers 302 with an empty body"), "{e}");
    assert!(e.hint.unwrap().contains("it redirects to"));
    let h = handle("http", vec![url, options(&[("follow", true.into())])]).unwrap();
    let out = call(&h, "expect_status", vec![Value::Int(200)]).await.unwrap();
    assert_eq!(out.value.as_record().unwrap().str("url"), format!("http://127.0.0.1:{target}/new"));
}

#[tokio::test]
async fn nobody_there_and_nobody_answering_say_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let limit = options(&[("timeout", Value::Duration(Duration::from_millis(200)))]);
    let url = Value::from(format!("http://127.0.0.1:{port}/"));
    let silent = handle("http", vec![url, limit]).unwrap();
    let e = call(&silent, "get", vec![]).await.unwrap_err();
    assert!(e.message.ends_with("gives no answer: no whole answer within 200ms") && e.retryable, "{e}");
    drop(listener);
    let e = call(&silent, "get", vec![]).await.unwrap_err();
    assert!(e.message.contains("onnection refused"), "{e}");
}

#[tokio::test]
async fn what_changes_things_is_sent_once_and_never_as_a_check() {
    let (port, asked) = server("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
    let post = options(&[("method", "post".into()), ("body", "a=1".into())]);
    let h = handle("http", vec![format!("http://127.0.0.1:{port}/").into(), post]).unwrap();
    for check in ["get", "expect_status"] {
        let args = if check == "get" { vec![] } else { vec![Value::Int(201)] };
        assert!(call(&h, check, args).await.unwrap_err().message.contains("a POST request may change things"));
    }
    assert!(asked.lock().is_empty(), "nothing was sent");
    let out = call(&h, "send", vec![]).await.unwrap();
    assert_eq!((out.changed, out.value.as_record().unwrap().get("status").as_int()), (Some(true), Some(201)));
    assert!(asked.lock()[0].ends_with("\r\n\r\na=1"));
    let p = primitive("Http", "send");
    let call = Call { receiver: Some(h), ..Call::default() };
    let asked = p.reconcile(&cx(&Arc::<World>::default(), Environment::default(), "a1"), &call).await.unwrap();
    assert!(matches!(asked, Reconciled::Unknown { known } if known.contains("may or may not")));
}

#[tokio::test]
async fn ports_are_open_or_closed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = i64::from(listener.local_addr().unwrap().port());
    let t = handle("tcp", vec!["127.0.0.1".into(), Value::Int(port)]).unwrap();
    call(&t, "expect_open", vec![]).await.unwrap();
    let e = call(&t, "expect_closed", vec![]).await.unwrap_err();
    assert_eq!(e.to_string(), format!("RB0801: 127.0.0.1:{port} is open and should be closed"));
    drop(listener);
    assert_eq!(call(&t, "expect_closed", vec![]).await.unwrap().note.as_deref(), Some("it refuses connections"));
    let e = call(&t, "expect_open", vec![]).await.unwrap_err();
    assert!(e.message.ends_with("is not open: it refuses the connection") && e.retryable);
}
