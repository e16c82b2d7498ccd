//! Connections: made on first use, kept, counted, made again when they are gone.
//!
//! Short commands share connections, a few channels each. A stream ([`super::Session::open`]) gets a connection of its own, since a
//! reader that is slow would hold up every other channel of the connection, and two streams that wait for each other would never end.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use russh::client::{self, Handle, Msg};
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Algorithm, Certificate, HashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{ChannelOpenFailure, Preferred, cipher};

use super::known_hosts::{KnownHosts, Verdict, entry_name};
use super::route::{self, Held, unreachable};
use super::target::{Target, resolve};
use super::{Session, auth, negotiate};

/// OpenSSH's `MaxSessions` is 10; staying well below leaves room for others.
const CHANNELS_EACH: usize = 5;
/// More connections to one host than this help nobody and meet `MaxStartups`.
const MAX_CONNECTIONS: usize = 24;

/// The connections of this process, by environment and host; lives in [`runbook_core::primitive::Shared`].
#[derive(Default)]
pub(super) struct Pool {
    slots: Mutex<HashMap<String, Arc<Slot>>>,
}

/// The connections to one host.
pub(super) struct Slot {
    pub target: Target,
    conns: tokio::sync::Mutex<Vec<Arc<Conn>>>,
    /// Lowered when the host refuses channels (a small `MaxSessions`).
    cap: AtomicUsize,
}

/// One connection.
pub(super) struct Conn {
    handle: Handle<Client>,
    in_use: AtomicUsize,
    _held: Held,
}

impl Conn {
    /// A channel to another host, for a connection through this one.
    pub(super) async fn tunnel(&self, host: &str, port: u16) -> std::result::Result<russh::Channel<Msg>, russh::Error> {
        self.handle.channel_open_direct_tcpip(host, u32::from(port), "127.0.0.1", 0).await
    }
}

/// A channel with its place on its connection, which is given back on drop.
pub(super) struct Lease {
    pub channel: russh::Channel<Msg>,
    pub permit: Permit,
}

/// A place on a connection.
pub(super) struct Permit {
    conn: Arc<Conn>,
    exclusive: bool,
}

const EXCLUSIVE: usize = 1 << 20;

impl Permit {
    /// Whether the connection is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.conn.handle.is_closed()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.conn.in_use.fetch_sub(if self.exclusive { EXCLUSIVE } else { 1 }, Ordering::AcqRel);
    }
}

/// The session of a host: its slot in the pool, connected at least once.
pub(super) async fn session(cx: &Cx, host: &str) -> Result<Session> {
    let pool = cx.shared.get::<Pool>();
    let key = format!("{}/{host}", cx.env.name);
    let found = pool.slots.lock().get(&key).cloned();
    let slot = match found {
        Some(s) => s,
        None => {
            let target = resolve(cx, host).await?;
            let fresh = Slot { target, conns: tokio::sync::Mutex::default(), cap: AtomicUsize::new(CHANNELS_EACH) };
            pool.slots.lock().entry(key).or_insert_with(|| Arc::new(fresh)).clone()
        }
    };
    slot.ensure(cx).await?;
    Ok(Session { slot })
}

impl Slot {
    /// Makes sure that there is a connection that lives.
    async fn ensure(&self, cx: &Cx) -> Result<()> {
        let mut conns = self.conns.lock().await;
        conns.retain(|c| !c.handle.is_closed());
        if conns.is_empty() {
            conns.push(Arc::new(connect(cx, &self.target).await?));
        }
        Ok(())
    }

    async fn place(&self, cx: &Cx, exclusive: bool) -> Result<Permit> {
        loop {
            {
                let mut conns = self.conns.lock().await;
                conns.retain(|c| !c.handle.is_closed());
                let cap = self.cap.load(Ordering::Acquire);
                let free = |c: &&Arc<Conn>| {
                    let n = c.in_use.load(Ordering::Acquire);
                    if exclusive { n == 0 } else { n < cap }
                };
                // A stream takes the last idle connection, so that the first stays for commands.
                let found = if exclusive { conns.iter().skip(1).find(free) } else { conns.iter().find(free) }.cloned();
                let conn = match found {
                    Some(c) => Some(c),
                    None if conns.len() < MAX_CONNECTIONS => {
                        let c = Arc::new(connect(cx, &self.target).await?);
                        conns.push(c.clone());
                        Some(c)
                    }
                    None => None,
                };
                if let Some(conn) = conn {
                    conn.in_use.fetch_add(if exclusive { EXCLUSIVE } else { 1 }, Ordering::AcqRel);
                    return Ok(Permit { conn, exclusive });
                }
            }
            cx.sleep(Duration::from_millis(20)).await?;
        }
    }

    /// Opens a channel for a command, on a connection of its own when `exclusive`.
    ///
    /// # Errors
    /// `RB0300`–`RB0303` when no connection can be made; `RB0305` when the host refuses channels for ten seconds.
    pub(super) async fn channel(&self, cx: &Cx, exclusive: bool) -> Result<Lease> {
        let lost = |e: &dyn std::fmt::Display| {
            Error::new(Code::SSH_LOST, format!("{} does not open a channel: {e}", self.target.host)).host(&self.target.name).retryable(true)
        };
        let began = tokio::time::Instant::now();
        let mut wait = Duration::from_millis(3);
        loop {
            let permit = self.place(cx, exclusive).await?;
            let opening = tokio::time::timeout(Duration::from_secs(30), permit.conn.handle.channel_open_session());
            let opened = tokio::select! {
                o = opening => o,
                () = cx.cancel.cancelled() => return Err(aborted(&self.target.name)),
            };
            match opened {
                Ok(Ok(channel)) => return Ok(Lease { channel, permit }),
                Ok(Err(russh::Error::ChannelOpenFailure(why))) => {
                    if began.elapsed() > Duration::from_secs(10) {
                        return Err(lost(&format!("{why:?}")).hint("check MaxSessions and the limits on processes on the host"));
                    }
                    // Refused with others open: the host's MaxSessions is lower than ours. Refused alone: a session is still closing.
                    let others = permit.conn.in_use.load(Ordering::Acquire).saturating_sub(1);
                    if matches!(
                        why,
                        ChannelOpenFailure::ConnectFailed
                            | ChannelOpenFailure::ResourceShortage
                            | ChannelOpenFailure::AdministrativelyProhibited
                    ) && !exclusive
                        && others > 0
                    {
                        self.cap.fetch_min(others, Ordering::AcqRel);
                    }
                    drop(permit);
                    cx.sleep(wait).await?;
                    wait = (wait * 2).min(Duration::from_millis(200));
                }
                Ok(Err(e)) => {
                    // A kept connection may have died unseen; a new one is tried, and its errors are its own.
                    self.conns.lock().await.retain(|c| !Arc::ptr_eq(c, &permit.conn));
                    if began.elapsed() > Duration::from_secs(10) {
                        return Err(lost(&e));
                    }
                    cx.sleep(wait).await?;
                }
                Err(_) => {
                    self.conns.lock().await.retain(|c| !Arc::ptr_eq(c, &permit.conn));
                    return Err(lost(&"it does not answer"));
                }
            }
        }
    }
}

pub(super) fn aborted(host: &str) -> Error {
    Error::new(Code::ABORTED, "stopped in mid-action").host(host)
}

/// Judges the host's key; the verdict that is not a yes is kept for the error message.
pub(super) struct Client {
    name: String,
    host: String,
    port: u16,
    files: Vec<std::path::PathBuf>,
    known: KnownHosts,
    refusal: Arc<Mutex<Option<Error>>>,
}

impl client::Handler for Client {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> std::result::Result<bool, russh::Error> {
        let refused = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => self.judge(key).err(),
            PublicKeyOrCertificate::Certificate(c) => self.judge_certificate(c).err(),
        };
        let ok = refused.is_none();
        *self.refusal.lock() = refused;
        Ok(ok)
    }
}

impl Client {
    fn file(&self) -> String {
        self.files.first().map_or_else(|| "known_hosts".to_string(), |f| f.display().to_string())
    }

    fn judge(&self, key: &PublicKey) -> Result<()> {
        let print = key.fingerprint(HashAlg::Sha256);
        let kind = key.algorithm();
        match self.known.judge(&self.host, self.port, key) {
            Verdict::Known => Ok(()),
            Verdict::Unknown => {
                let line = key_line(&self.host, self.port, key);
                Err(Error::new(
                    Code::SSH_HOST_KEY_UNKNOWN,
                    format!("the key of {} is not known: {kind} {print}", entry_name(&self.host, self.port)),
                )
                .host(&self.name)
                .hint(format!(
                    "compare the fingerprint with that on the host itself (ssh-keygen -lf /etc/ssh/ssh_host_…_key.pub); when they are equal, add this line to {}:\n{line}",
                    self.file()
                ))
                .detail("fingerprint", print)
                .detail("line", line))
            }
            Verdict::Changed { file, line } => Err(Error::new(
                Code::SSH_HOST_KEY_CHANGED,
                format!(
                    "the key of {} is not the one in {}:{line}: it shows {kind} {print}",
                    entry_name(&self.host, self.port),
                    file.display()
                ),
            )
            .host(&self.name)
            .hint(format!(
                "somebody may be listening in. Only when you know why the key changed (a new installation): remove line {line} of {} and add the new key after comparing its fingerprint on the host",
                file.display()
            ))
            .detail("fingerprint", print)),
            Verdict::Revoked { file, line } => Err(Error::new(
                Code::SSH_HOST_KEY_CHANGED,
                format!("the key of {} is revoked in {}:{line}: {kind} {print}", entry_name(&self.host, self.port), file.display()),
            )
            .host(&self.name)
            .hint("do not connect: the host, or somebody in its place, uses a key that must no longer be used")
            .detail("fingerprint", print)),
        }
    }

    fn judge_certificate(&self, c: &Certificate) -> Result<()> {
        let refuse = |why: String| {
            Err(Error::new(Code::SSH_HOST_KEY_UNKNOWN, format!("the certificate of {} is not good: {why}", self.host))
                .host(&self.name)
                .hint("compare it with the @cert-authority lines of known_hosts (ssh-keygen -L shows a certificate)"))
        };
        if c.cert_type() != CertType::Host {
            return refuse("it is not a host certificate".into());
        }
        if !c.valid_principals().is_empty() && !c.valid_principals().iter().any(|p| p.eq_ignore_ascii_case(&self.host)) {
            return refuse(format!("it is for {}", c.valid_principals().join(", ")));
        }
        let authorities: Vec<_> = self.known.authorities(&self.host, self.port).iter().map(|k| k.fingerprint(HashAlg::Sha256)).collect();
        let signer = PublicKey::from(c.signature_key().clone());
        let own = PublicKey::from(c.public_key().clone());
        if [&signer, &own].iter().any(|k| self.known.is_revoked(&self.host, self.port, k)) {
            return refuse("its key or its authority is revoked".into());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        c.validate_at(now, authorities.iter()).or_else(|e| refuse(e.to_string()))
    }
}

/// The line of `known_hosts` for this key.
fn key_line(host: &str, port: u16, key: &PublicKey) -> String {
    let mut bare = key.clone();
    bare.set_comment("");
    format!("{} {}", entry_name(host, port), bare.to_openssh().unwrap_or_default().trim())
}

fn config(t: &Target, known: &KnownHosts, host: &str, port: u16) -> Result<client::Config> {
    let mut preferred = Preferred { cipher: Cow::Owned(ciphers()), ..Preferred::DEFAULT };
    // The key types that are on record come first, or a host with several keys would seem unknown.
    let recorded = known.keys(host, port);
    let mut keys: Vec<Algorithm> = preferred.key.to_vec();
    let rsa = |a: &Algorithm| matches!(a, Algorithm::Rsa { .. });
    let same_type = |a: &Algorithm| recorded.iter().map(PublicKey::algorithm).any(|k| k == *a || (rsa(&k) && rsa(a)));
    keys.sort_by_key(|a| !same_type(a));
    if !known.authorities(host, port).is_empty() {
        preferred.host_key_certificates = Cow::Owned(keys.clone());
    }
    preferred.key = Cow::Owned(keys);
    negotiate::apply(t, &mut preferred).map_err(|e| e.host(&t.name))?;
    Ok(client::Config {
        preferred,
        nodelay: true,
        keepalive_interval: Some(t.server_alive_interval.unwrap_or(Duration::from_secs(10))),
        keepalive_max: t.server_alive_count_max,
        channel_buffer_size: 256,
        ..client::Config::default()
    })
}

/// AES-256-GCM first: nearly twice the speed of the library's own order.
fn ciphers() -> Vec<cipher::Name> {
    let mut all = Preferred::DEFAULT.cipher.to_vec();
    all.sort_by_key(|c| *c != cipher::AES_256_GCM);
    all
}

pub(super) fn connect<'a>(cx: &'a Cx, t: &'a Target) -> futures::future::BoxFuture<'a, Result<Conn>> {
    Box::pin(async move {
        let whole = t.connect_timeout + Duration::from_secs(15);
        tokio::select! {
            r = tokio::time::timeout(whole, connect_now(cx, t)) => r.unwrap_or_else(|_| Err(unreachable(t, "it does not answer in time"))),
            () = cx.cancel.cancelled() => Err(aborted(&t.name)),
        }
    })
}

async fn connect_now(cx: &Cx, t: &Target) -> Result<Conn> {
    let known = KnownHosts::read(&t.known_hosts());
    let key_host = t.host_key_alias.as_deref().unwrap_or(&t.host);
    // A HostKeyAlias stands in known_hosts as it is, without the port.
    let key_port = if t.host_key_alias.is_some() { 22 } else { t.port };
    let refusal: Arc<Mutex<Option<Error>>> = Arc::default();
    let config = Arc::new(config(t, &known, key_host, key_port)?);
    let client = Client {
        name: t.name.clone(),
        host: key_host.to_string(),
        port: key_port,
        files: t.known_hosts(),
        known,
        refusal: refusal.clone(),
    };
    let mut route = route::open(cx, t).await?;
    let mut handle = match client::connect_stream(config, route.stream, client).await {
        Ok(h) => h,
        Err(e) => {
            let refused = refusal.lock().take();
            return Err(match refused {
                Some(e) => e,
                None => route.held.explain(unreachable(t, e)).await,
            });
        }
    };
    auth::login(cx, t, &mut handle).await?;
    Ok(Conn { handle, in_use: AtomicUsize::new(0), _held: route.held })
}
