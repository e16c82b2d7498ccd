//! The little of HTTP that the entry, the edges and the customer share: one connection a request, streamed both ways.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

pub(crate) type Body = BoxBody<Bytes, hyper::Error>;

/// Why a request got no answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No connection was made, so the request was not seen.
    NotSent(String),
    /// It may have been seen and even acted upon.
    NoAnswer(String),
    /// The same, by the clock.
    TimedOut,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::NotSent(e) => write!(f, "no connection: {e}"),
            Failure::NoAnswer(e) => write!(f, "no answer: {e}"),
            Failure::TimedOut => f.write_str("no answer in time"),
        }
    }
}

pub(crate) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

pub(crate) fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut r = Response::new(full(text));
    *r.status_mut() = status;
    r.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    r
}

/// Sends a request over a connection of its own; `answer` bounds the time until the answer's head.
pub(crate) async fn send(req: Request<Body>, to: SocketAddr, connect: Duration, answer: Duration) -> Result<Response<Incoming>, Failure> {
    let stream = match tokio::time::timeout(connect, TcpStream::connect(to)).await {
        Ok(Ok(s)) => s,
        Ok(Err(e)) => return Err(Failure::NotSent(format!("{to}: {e}"))),
        Err(_) => return Err(Failure::NotSent(format!("{to}: no connection within {connect:?}"))),
    };
    let _ = stream.set_nodelay(true);
    let (mut sender, conn) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| Failure::NotSent(e.to_string()))?;
    tokio::spawn(conn);
    match tokio::time::timeout(answer, sender.send_request(req)).await {
        Ok(Ok(r)) => Ok(r),
        Ok(Err(e)) => Err(Failure::NoAnswer(e.to_string())),
        Err(_) => Err(Failure::TimedOut),
    }
}

/// A whole exchange with small bodies, as the customer does it.
pub(crate) async fn call(
    method: &str,
    to: SocketAddr,
    host: &str,
    path: &str,
    body: Vec<u8>,
    limit: Duration,
) -> Result<(StatusCode, Bytes), Failure> {
    let req = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, host)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONNECTION, "close")
        .body(full(body))
        .map_err(|e| Failure::NotSent(e.to_string()))?;
    let exchange = async {
        let res = send(req, to, limit, limit).await?;
        let status = res.status();
        let body = res.into_body().collect().await.map_err(|e| Failure::NoAnswer(e.to_string()))?;
        Ok((status, body.to_bytes()))
    };
    tokio::time::timeout(limit, exchange).await.unwrap_or(Err(Failure::TimedOut))
}

/// Headers that concern one connection only (RFC 9110, 7.6.1).
const HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
];

/// Passes a request on, streaming both bodies; 502 or 504 when there is no answer.
pub(crate) async fn forward(mut req: Request<Incoming>, from: SocketAddr, to: SocketAddr) -> Response<Body> {
    let path = req.uri().path_and_query().map_or("/", |p| p.as_str()).to_string();
    match path.parse::<Uri>() {
        Ok(u) => *req.uri_mut() = u,
        Err(e) => return plain(StatusCode::BAD_REQUEST, format!("bad path: {e}\n")),
    }
    for h in HOP {
        req.headers_mut().remove(h);
    }
    req.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    if let Ok(v) = HeaderValue::from_str(&from.ip().to_string()) {
        req.headers_mut().append(HeaderName::from_static("x-forwarded-for"), v);
    }
    match send(req.map(|b| b.boxed()), to, Duration::from_secs(2), Duration::from_secs(30)).await {
        Ok(mut res) => {
            for h in HOP {
                res.headers_mut().remove(h);
            }
            res.map(|b| b.boxed())
        }
        Err(Failure::TimedOut) => plain(StatusCode::GATEWAY_TIMEOUT, format!("{to} does not answer\n")),
        Err(f) => plain(StatusCode::BAD_GATEWAY, format!("{f}\n")),
    }
}

/// Serves every connection with `handler` until the runtime ends.
pub(crate) async fn serve<F, R>(listener: TcpListener, handler: F)
where
    F: Fn(Request<Incoming>, SocketAddr) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            // Out of file descriptors, most likely; those in use come back.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let handler = handler.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |req| {
                let answer = handler(req, from);
                async move { Ok::<_, std::convert::Infallible>(answer.await) }
            });
            // A peer that goes away is its own affair.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
