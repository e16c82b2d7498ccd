//! The unit `edge`: a host's reverse proxy, steered by two files that are looked at for each request.
//!
//! `edge/maintenance`: while it is there, a maintenance page (503 with Retry-After); requests passed on before still finish.
//! `edge/upstream`: where the rest goes, `host:port`, or `host` alone for another host's edge. 127.0.0.1 means this host.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use runbook_core::Result;
use tokio::net::TcpListener;

use crate::failed;
use crate::http::{self, Body};

/// Reads an upstream line. Each lab host has one address, so that loopback names this host's own.
fn parse_upstream(line: &str, own: SocketAddrV4) -> Result<SocketAddr, String> {
    let line = line.lines().map(str::trim).find(|l| !l.is_empty() && !l.starts_with('#')).unwrap_or("");
    let (host, port) = match line.rsplit_once(':') {
        Some((h, p)) => (h, p.parse::<u16>().map_err(|_| format!("\"{line}\" has no port number"))?),
        None => (line, own.port()),
    };
    let addr: IpAddr = match host {
        "localhost" => Ipv4Addr::LOCALHOST.into(),
        h => h.parse().map_err(|_| format!("\"{line}\" is not an address"))?,
    };
    let addr = if addr == Ipv4Addr::LOCALHOST { (*own.ip()).into() } else { addr };
    Ok((addr, port).into())
}

fn maintenance() -> Response<Body> {
    let page = "<!doctype html><title>Maintenance</title><h1>The shop is being moved</h1><p>It opens again in a few minutes.</p>\n";
    let mut r = Response::new(http::full(page));
    *r.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    r.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    r.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    r
}

async fn route(root: &Path, own: SocketAddrV4) -> Result<SocketAddr, Response<Body>> {
    match tokio::fs::metadata(root.join("edge/maintenance")).await {
        Ok(_) => return Err(maintenance()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(http::plain(StatusCode::INTERNAL_SERVER_ERROR, format!("edge/maintenance: {e}\n"))),
    }
    let text = tokio::fs::read_to_string(root.join("edge/upstream"))
        .await
        .map_err(|e| http::plain(StatusCode::BAD_GATEWAY, format!("edge/upstream: {e}\n")))?;
    parse_upstream(&text, own).map_err(|e| http::plain(StatusCode::BAD_GATEWAY, format!("edge/upstream: {e}\n")))
}

/// Runs the edge of the host whose folder is `root` until SIGTERM.
pub(crate) async fn run(root: PathBuf, own: SocketAddrV4) -> Result<()> {
    let listener = TcpListener::bind(own).await.map_err(|e| failed(format!("the edge cannot listen on {own}"), e))?;
    let root: Arc<Path> = root.into();
    let server = http::serve(listener, move |req, from| {
        let root = root.clone();
        async move {
            match route(&root, own).await {
                Ok(to) => http::forward(req, from, to).await,
                Err(page) => page,
            }
        }
    });
    tokio::select! {
        () = server => {}
        () = crate::args::terminated() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_are_read() {
        let own = SocketAddrV4::new(Ipv4Addr::new(127, 5, 5, 10), 8080);
        for (line, want) in [
            ("127.0.0.1:8081\n", "127.5.5.10:8081"),
            ("localhost:8081", "127.5.5.10:8081"),
            ("# moved\n\n127.5.5.11\n", "127.5.5.11:8080"),
            ("127.5.5.11:9000", "127.5.5.11:9000"),
        ] {
            assert_eq!(parse_upstream(line, own).unwrap().to_string(), want);
        }
        for line in ["", "shop", "127.0.0.1:x"] {
            assert!(parse_upstream(line, own).is_err(), "{line}");
        }
    }
}
