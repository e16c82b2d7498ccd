//! How requests reach an engine: over the SSH session of its host, to whose socket nothing is exposed; or a socket or port that this
//! machine reaches. Each request has a stream of its own, as one that is read slowly would hold up the others.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use bollard::errors::Error as Fault;
use bollard::{BollardRequest, ClientVersion, Docker};
use hyper::body::{Body, Incoming};
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use runbook_core::cancel::Cancel;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::ssh::{Place, tunnel};

/// How long an engine may take until it begins to answer. Loading an image is answered once all of it has come.
const PATIENCE_SECONDS: u64 = 24 * 3600;

/// Where an engine listens.
#[derive(Debug, Clone)]
pub(super) enum At {
    /// A unix socket of a host of the inventory, opened as the login or as another user.
    Host(String, Place, Option<String>),
    /// A unix socket of this machine.
    Socket(PathBuf),
    /// A port that this machine reaches, with TLS or, on this machine alone, without.
    Tcp(String, u16, Option<Tls>),
}

/// TLS to an engine.
#[derive(Debug, Clone)]
pub(super) struct Tls(pub Arc<rustls::ClientConfig>);

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

async fn open(cx: &Cx, at: &At) -> Result<Box<dyn Io>> {
    let failed = |what: String, e: io::Error| {
        Error::new(Code::DOCKER_CONNECT, format!("the Docker Engine at {what} cannot be reached: {e}"))
            .hint("see whether it runs, and whether this user may open its socket (group docker)")
            .retryable(e.kind() == io::ErrorKind::ConnectionRefused)
    };
    match at {
        At::Host(host, place, user) => Ok(Box::new(tunnel::stream(cx, host, place, user.as_deref()).await?)),
        At::Socket(path) => Ok(Box::new(UnixStream::connect(path).await.map_err(|e| failed(path.display().to_string(), e))?)),
        At::Tcp(name, port, tls) => {
            let what = format!("{name}:{port}");
            let stream = TcpStream::connect((name.as_str(), *port)).await.map_err(|e| failed(what.clone(), e))?;
            let _ = stream.set_nodelay(true);
            let Some(tls) = tls else { return Ok(Box::new(stream)) };
            let server = rustls::pki_types::ServerName::try_from(name.clone())
                .map_err(|e| failed(what.clone(), io::Error::new(io::ErrorKind::InvalidInput, e)))?;
            let connector = tokio_rustls::TlsConnector::from(tls.0.clone());
            Ok(Box::new(connector.connect(server, stream).await.map_err(|e| failed(what, e))?))
        }
    }
}

async fn send<B>(cx: Cx, at: Arc<At>, request: Request<B>) -> std::result::Result<Response<Incoming>, Fault>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = open(&cx, &at).await.map_err(|e| Fault::IOError { err: io::Error::other(e) })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the response, or when that is dropped.
    let connection = tokio::spawn(connection.with_upgrades());
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |p| p.as_str()).to_string();
    parts.uri = path.parse::<Uri>().map_err(|e| Fault::IOError { err: io::Error::new(io::ErrorKind::InvalidInput, e) })?;
    parts.headers.insert(HOST, HeaderValue::from_static("docker"));
    let sent = sender.send_request(Request::from_parts(parts, body)).await;
    drop(sender);
    match sent {
        Ok(response) => Ok(response),
        // The connection knows why it ended; the request may only know that it did.
        Err(e) => match connection.await {
            Ok(Err(cause)) => Err(cause.into()),
            _ => Err(e.into()),
        },
    }
}

/// A client of the engine, which speaks this version of the API.
pub(super) fn client(cx: &Cx, at: &At, version: &ClientVersion) -> std::result::Result<Docker, Fault> {
    // A stream may outlive the action's cancellation by the moment that ending it takes.
    let cx = Cx { cancel: Cancel::default(), ..cx.clone() };
    let at = Arc::new(at.clone());
    let transport = move |request: BollardRequest| send(cx.clone(), at.clone(), request);
    Docker::connect_with_custom_transport(transport, Some("http://docker"), PATIENCE_SECONDS, version)
}

/// As many bytes at most are taken as an answer that is held whole.
const ANSWER: usize = 32 << 20;

/// One request with its whole answer: the status, and the body as it came.
pub(super) async fn exchange(cx: &Cx, at: &At, request: Request<String>) -> std::result::Result<(u16, Vec<u8>), Fault> {
    let response = send(cx.clone(), Arc::new(at.clone()), request).await?;
    let (status, mut body, mut all) = (response.status().as_u16(), response.into_body(), Vec::new());
    while let Some(frame) = std::future::poll_fn(|c| Pin::new(&mut body).poll_frame(c)).await {
        if let Ok(data) = frame?.into_data() {
            all.extend_from_slice(&data);
        }
        if all.len() > ANSWER {
            return Err(Fault::IOError { err: io::Error::other("the answer is too large") });
        }
    }
    Ok((status, all))
}
