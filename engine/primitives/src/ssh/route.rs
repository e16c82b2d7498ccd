//! The way to a host: TCP, through other hosts, or a command of the operator's.

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use parking_lot::Mutex;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::Child;
use tokio::time::Instant;

use super::config::Family;
use super::known_hosts::entry_name;
use super::prompt::Prompt;
use super::target::Target;
use super::transport::{Conn, connect};

/// As much of what a `ProxyCommand` says is kept for error messages.
const SAID: usize = 2048;

/// A connection's bytes.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A way that stands, and what keeps it standing.
pub(super) struct Route {
    /// Its bytes.
    pub stream: Box<dyn Stream>,
    /// To be kept as long as the connection.
    pub held: Held,
}

/// What a connection stands on: it lives as long as the connection.
#[derive(Default)]
pub(super) struct Held {
    // The connections to the hosts on the way.
    _via: Option<Box<Conn>>,
    proxy: Option<Proxy>,
}

impl Held {
    /// Adds to an error what a `ProxyCommand` said before it ended.
    pub(super) async fn explain(&mut self, e: Error) -> Error {
        match &mut self.proxy {
            Some(p) => p.explain(e).await,
            None => e,
        }
    }
}

/// The error of a host that cannot be reached.
pub(super) fn unreachable(t: &Target, why: impl std::fmt::Display) -> Error {
    Error::new(Code::SSH_CONNECT, format!("cannot reach {}: {why}", entry_name(&t.host, t.port)))
        .host(&t.name)
        .retryable(true)
        .hint(format!("check that the host is up and that `{}` works from here", command_line(t)))
}

/// The command that an operator would try.
pub(super) fn command_line(t: &Target) -> String {
    if t.jump.is_some() || t.proxy_command.is_some() {
        return format!("ssh {}", t.original);
    }
    format!("ssh -p {} {}@{}", t.port, t.user, t.host)
}

/// Opens the way to a host.
///
/// # Errors
/// `RB0300` when the host, or one on the way, cannot be reached, with what a `ProxyCommand` said; the errors of a login on the way.
pub(super) async fn open(cx: &Cx, t: &Target) -> Result<Route> {
    if let Some(jump) = &t.jump {
        let via = connect(cx, jump).await?;
        let refused = |e: russh::Error| unreachable(t, format!("the jump host {} cannot reach it: {e}", jump.host));
        let channel = via.tunnel(&t.host, t.port).await.map_err(refused)?;
        let held = Held { _via: Some(Box::new(via)), proxy: None };
        return Ok(Route { stream: Box::new(channel.into_stream()), held });
    }
    if let Some(command) = &t.proxy_command {
        let (stream, proxy) = Proxy::start(t, command)?;
        return Ok(Route { stream: Box::new(stream), held: Held { _via: None, proxy: Some(proxy) } });
    }
    Ok(Route { stream: Box::new(Prompt(tcp(t).await?)), held: Held::default() })
}

/// Connects by TCP: every address in turn, as often as `ConnectionAttempts` says, a second apart; the limit is for all of it.
async fn tcp(t: &Target) -> Result<TcpStream> {
    let until = Instant::now() + t.connect_timeout;
    let mut last = "no answer in time".to_string();
    let tries = async {
        for attempt in 0..t.connection_attempts.max(1) {
            if attempt > 0 {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            let addresses = match addresses(&t.host, t.port, t.address_family).await {
                Ok(a) => a,
                Err(e) => {
                    last = e;
                    continue;
                }
            };
            for address in addresses {
                match one(t, address).await {
                    Ok(s) => return Some(s),
                    Err(e) => last = e,
                }
            }
        }
        None
    };
    match tokio::time::timeout_at(until, tries).await {
        Ok(Some(stream)) => Ok(stream),
        Ok(None) => Err(unreachable(t, last)),
        Err(_) => Err(unreachable(t, format!("no answer within {}", runbook_core::units::show_duration(t.connect_timeout)))),
    }
}

async fn addresses(host: &str, port: u16, family: Family) -> std::result::Result<Vec<SocketAddr>, String> {
    let found = tokio::net::lookup_host((host, port)).await.map_err(|e| e.to_string())?;
    let wanted = |a: &SocketAddr| match family {
        Family::Any => true,
        Family::V4 => a.is_ipv4(),
        Family::V6 => a.is_ipv6(),
    };
    let all: Vec<SocketAddr> = found.filter(wanted).collect();
    if all.is_empty() {
        return Err(format!("it has no address that AddressFamily {} allows", if family == Family::V4 { "inet" } else { "inet6" }));
    }
    Ok(all)
}

async fn one(t: &Target, address: SocketAddr) -> std::result::Result<TcpStream, String> {
    let made = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = made.map_err(|e| e.to_string())?;
    if let Some(from) = &t.bind_address {
        let locals = match from.parse::<IpAddr>() {
            Ok(ip) => vec![SocketAddr::new(ip, 0)],
            Err(_) => addresses(from, 0, Family::Any).await.map_err(|e| format!("BindAddress {from}: {e}"))?,
        };
        let local = locals.into_iter().find(|l| l.is_ipv4() == address.is_ipv4());
        let local = local.ok_or_else(|| format!("BindAddress {from} is not of the kind of {}", address.ip()))?;
        socket.bind(local).map_err(|e| format!("BindAddress {from}: {e}"))?;
    }
    socket.set_keepalive(t.tcp_keep_alive).map_err(|e| e.to_string())?;
    let stream = socket.connect(address).await.map_err(|e| e.to_string())?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    Ok(stream)
}

/// A running `ProxyCommand`. Dropping it ends the command and what it has started.
struct Proxy {
    command: String,
    child: Option<Child>,
    said: Arc<Mutex<Vec<u8>>>,
    listener: tokio::task::JoinHandle<()>,
}

impl Proxy {
    fn start(t: &Target, command: &str) -> Result<(impl Stream + use<>, Proxy)> {
        let cannot = |e: &dyn std::fmt::Display| {
            Error::new(Code::SSH_CONNECT, format!("ProxyCommand \"{command}\": {} cannot run it: {e}", t.shell.display()))
                .host(&t.name)
                .hint("check ProxyCommand and SHELL; without SHELL it is run by /bin/sh")
        };
        // In a group of its own, so that Ctrl-C at the terminal is runbook's alone, and so that all of it can be ended.
        let mut child = tokio::process::Command::new(&t.shell)
            .arg("-c")
            .arg(format!("exec {command}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|e| cannot(&e))?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
            return Err(cannot(&"it has no pipes"));
        };
        let said: Arc<Mutex<Vec<u8>>> = Arc::default();
        let listener = tokio::spawn(listen(stderr, said.clone()));
        Ok((tokio::io::join(stdout, stdin), Proxy { command: command.to_string(), child: Some(child), said, listener }))
    }

    async fn explain(&mut self, mut e: Error) -> Error {
        // It may be about to say why it ends; one that runs on is not waited for.
        let ended = match &mut self.child {
            Some(c) => tokio::time::timeout(Duration::from_millis(300), c.wait()).await.ok().and_then(std::result::Result::ok),
            None => None,
        };
        if ended.is_some() {
            let _ = tokio::time::timeout(Duration::from_millis(200), &mut self.listener).await;
        }
        e.message.push_str(&format!("; ProxyCommand \"{}\"", self.command));
        match ended {
            Some(status) => e.message.push_str(&format!(" ended ({status})")),
            None => e.message.push_str(" runs on"),
        }
        let said = self.said.lock();
        let said = String::from_utf8_lossy(&said);
        let said = said.trim();
        if !said.is_empty() {
            e.message.push_str(&format!(" and said: {said}"));
        }
        e
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
        let Some(mut child) = self.child.take() else { return };
        // Not yet waited for: so the number is still its own.
        let Some(group) = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw) else { return };
        // As ssh ends it; one that does not listen is given two seconds.
        let _ = killpg(group, Signal::SIGHUP);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if tokio::time::timeout(Duration::from_secs(2), child.wait()).await.is_err() {
                    let _ = killpg(group, Signal::SIGKILL);
                    let _ = child.wait().await;
                }
            });
        }
    }
}

/// Keeps the end of what is said.
async fn listen(mut from: tokio::process::ChildStderr, said: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = [0u8; 1024];
    while let Ok(n) = from.read(&mut buffer).await {
        let Some(new) = buffer.get(..n).filter(|b| !b.is_empty()) else { return };
        let mut said = said.lock();
        said.extend_from_slice(new);
        let over = said.len().saturating_sub(SAID);
        said.drain(..over);
    }
}
