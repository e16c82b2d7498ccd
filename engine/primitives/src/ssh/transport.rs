//! Connections: made on first use, kept, counted, made again when they are gone.
//!
//! Short commands share connections, a few channels each. A stream ([`super::Session::open`]) gets a connection of its own, since a
//! reader that is slow would hold up every other channel of the connection, and two streams that wait for each other would never end.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use russh::client::{self, Handle, Msg};
use russh::keys::PublicKey;
use russh::{ChannelOpenFailure, Preferred, cipher};

use super::awake::Awake;
use super::exec::{Kept, Shell};
use super::host_key::{Client, Record, Seen};
use super::route::{self, Held, unreachable};
use super::stream::Place;
use super::supervisor::Station;
use super::target::{Target, resolve};
use super::{Session, auth, negotiate};

/// OpenSSH's `MaxSessions` is 10; staying well below leaves room for others.
const CHANNELS_EACH: usize = 5;
/// More connections to one host than this help nobody and meet `MaxStartups`.
const MAX_CONNECTIONS: usize = 24;
/// How long a host may take to connect to a socket.
const SOCKET_PATIENCE: Duration = Duration::from_secs(20);

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
    /// Sessions that wait for a supervised command.
    pub stations: Kept<Station>,
    /// Shells that wait for a command that may be repeated.
    pub shells: Kept<Shell>,
}

/// One connection.
pub(super) struct Conn {
    handle: Handle<Client>,
    /// By what the login succeeded.
    login: String,
    /// Whether it must carry one command at a time.
    alone: bool,
    in_use: AtomicUsize,
    awake: Awake,
    /// Set when it does not answer any more, which the library notices later.
    dead: AtomicBool,
    _held: Held,
}

impl Conn {
    fn new(cx: &Cx, handle: Handle<Client>, login: String, alone: bool, held: Held) -> Self {
        let awake = Awake::new(cx.clock.clone());
        Conn { handle, login, alone, in_use: AtomicUsize::new(0), awake, dead: AtomicBool::new(false), _held: held }
    }

    fn is_closed(&self) -> bool {
        self.dead.load(Ordering::Acquire) || self.handle.is_closed()
    }

    /// Whether it still answers, asked only when this machine has slept: the other side may have given the connection up meanwhile.
    async fn answers(&self) -> bool {
        if !self.is_closed() && self.awake.slept() {
            let answer = tokio::time::timeout(Duration::from_secs(5), self.handle.send_ping()).await;
            if !matches!(answer, Ok(Ok(()))) {
                self.dead.store(true, Ordering::Release);
            }
        }
        !self.is_closed()
    }

    /// Whether one of three questions is answered within this time.
    async fn answers_within(&self, limit: Duration) -> bool {
        for _ in 0..3 {
            if matches!(tokio::time::timeout(limit, self.handle.send_ping()).await, Ok(Ok(()))) {
                return true;
            }
        }
        false
    }

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
    /// Whether the connection still answers.
    pub(super) async fn answers(&self) -> bool {
        self.conn.answers().await
    }

    /// Waits until the connection is gone.
    pub(super) async fn gone(&self) {
        while self.conn.answers().await {
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
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
            let cap = AtomicUsize::new(CHANNELS_EACH);
            let fresh = Slot { target, conns: tokio::sync::Mutex::default(), cap, stations: Kept::default(), shells: Kept::default() };
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
        conns.retain(|c| !c.is_closed());
        if conns.is_empty() {
            conns.push(self.connect(cx).await?);
        }
        Ok(())
    }

    /// Sees that so many connections carry nothing now. What would ask a person is not made ahead.
    pub(super) async fn ready(&self, cx: &Cx, idle: usize) -> Result<()> {
        let mut quiet = self.target.clone();
        let mut hop = Some(&mut quiet);
        while let Some(t) = hop {
            t.options.batch_mode = true;
            hop = t.jump.as_deref_mut();
        }
        loop {
            let mut conns = self.conns.lock().await;
            conns.retain(|c| !c.is_closed());
            self.shells.let_go();
            let free = conns.iter().filter(|c| c.in_use.load(Ordering::Acquire) == 0).count();
            if free >= idle || conns.len() >= MAX_CONNECTIONS / 2 {
                return Ok(());
            }
            conns.push(self.connect_to(cx, &quiet).await?);
        }
    }

    async fn connect(&self, cx: &Cx) -> Result<Arc<Conn>> {
        self.connect_to(cx, &self.target).await
    }

    async fn connect_to(&self, cx: &Cx, target: &Target) -> Result<Arc<Conn>> {
        let conn = connect(cx, target).await?;
        if conn.alone {
            self.one_at_a_time();
        }
        Ok(Arc::new(conn))
    }

    /// From now on, a connection to this host carries one command at a time.
    pub(super) fn one_at_a_time(&self) {
        self.cap.store(1, Ordering::Release);
    }

    /// Ends the sessions that wait for a command; true when there was one.
    async fn close_waiting(&self) -> bool {
        let (stations, shells) = tokio::join!(self.stations.close(|_| true), self.shells.close(|_| true));
        stations || shells
    }

    fn is_any_waiting(&self) -> bool {
        !(self.stations.is_empty() && self.shells.is_empty())
    }

    async fn place(&self, cx: &Cx, exclusive: bool) -> Result<Permit> {
        // Where there is no place left, a session that only waits makes some.
        let mut crowded = false;
        loop {
            if crowded && self.close_waiting().await {
                crowded = false;
            }
            {
                let mut conns = self.conns.lock().await;
                conns.retain(|c| !c.is_closed());
                let cap = self.cap.load(Ordering::Acquire);
                let free = |c: &&Arc<Conn>| {
                    let n = c.in_use.load(Ordering::Acquire);
                    if exclusive { n == 0 } else { n < cap }
                };
                // A stream takes the last idle connection, so that the first stays for commands while there are others.
                let found = if exclusive { conns.iter().rev().find(free) } else { conns.iter().find(free) }.cloned();
                let conn = match found {
                    Some(c) => Some(c),
                    // A stream shares its connection with nobody, and a shell that waits costs less than a login.
                    None if exclusive && self.shells.let_go() => continue,
                    None if !crowded && (!exclusive || conns.len() >= MAX_CONNECTIONS) && self.is_any_waiting() => {
                        crowded = true;
                        continue;
                    }
                    None if conns.len() < MAX_CONNECTIONS => {
                        let c = self.connect(cx).await?;
                        conns.push(c.clone());
                        Some(c)
                    }
                    None => None,
                };
                if let Some(conn) = conn {
                    if !conn.answers().await {
                        continue;
                    }
                    conn.in_use.fetch_add(if exclusive { EXCLUSIVE } else { 1 }, Ordering::AcqRel);
                    cx.reached.store(true, Ordering::Relaxed);
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
        let mut patience = Duration::from_secs(10);
        loop {
            let permit = self.place(cx, exclusive).await?;
            let opening = tokio::time::timeout(patience, permit.conn.handle.channel_open_session());
            let opened = tokio::select! {
                o = opening => o,
                () = cx.cancel.cancelled() => return Err(aborted(&self.target.name)),
            };
            match opened {
                Ok(Ok(channel)) => {
                    for (name, value) in &self.target.environment {
                        // Without an answer, so without a round trip: a host that does not accept it passes over it.
                        let _ = channel.set_env(false, name.as_str(), value.as_str()).await;
                    }
                    return Ok(Lease { channel, permit });
                }
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
                    self.close_waiting().await;
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
                // A kept connection may be dead without anybody having noticed, so a new one is tried, with more patience.
                Err(_) => {
                    permit.conn.dead.store(true, Ordering::Release);
                    if patience > Duration::from_secs(10) {
                        return Err(lost(&"it does not answer"));
                    }
                    patience = Duration::from_secs(30);
                }
            }
        }
    }
}

impl Slot {
    /// Whether a connection that is there answers within this time.
    pub(super) async fn answers_within(&self, limit: Duration) -> bool {
        let conn = self.conns.lock().await.iter().find(|c| !c.is_closed()).cloned();
        match conn {
            Some(conn) => conn.answers_within(limit).await,
            None => false,
        }
    }

    /// Opens a channel to a socket, on a connection of its own. The inner error is the host's answer.
    ///
    /// # Errors
    /// `RB0300`–`RB0303` when no connection can be made; `RB0305` when connections are lost for ten seconds; `RB0307` when the host does
    /// not answer whether it connects.
    pub(super) async fn direct(&self, cx: &Cx, to: &Place) -> Result<std::result::Result<Lease, ChannelOpenFailure>> {
        let began = tokio::time::Instant::now();
        loop {
            let permit = self.place(cx, true).await?;
            let opening = async {
                match to {
                    Place::Unix(path) => permit.conn.handle.channel_open_direct_streamlocal(path.as_str()).await,
                    Place::Tcp(host, port) => permit.conn.tunnel(host, *port).await,
                }
            };
            let opened = tokio::select! {
                o = tokio::time::timeout(SOCKET_PATIENCE, opening) => o,
                () = cx.cancel.cancelled() => return Err(aborted(&self.target.name)),
            };
            match opened {
                Ok(Ok(channel)) => return Ok(Ok(Lease { channel, permit })),
                Ok(Err(russh::Error::ChannelOpenFailure(why))) => return Ok(Err(why)),
                Ok(Err(e)) => {
                    // A kept connection may have died unseen; a new one is tried, and its errors are its own.
                    permit.conn.dead.store(true, Ordering::Release);
                    if began.elapsed() > Duration::from_secs(10) {
                        let why = format!("{} does not open a channel: {e}", self.target.host);
                        return Err(Error::new(Code::SSH_LOST, why).host(&self.target.name).retryable(true));
                    }
                    cx.sleep(Duration::from_millis(20)).await?;
                }
                Err(_) => {
                    // The answer may still come: nobody shall take it for that to a later question.
                    permit.conn.dead.store(true, Ordering::Release);
                    let within = runbook_core::units::show_duration(SOCKET_PATIENCE);
                    return Err(Error::new(Code::SSH_SOCKET, format!("{to} does not answer within {within}, asked from the host"))
                        .host(&self.target.name)
                        .retryable(true)
                        .hint("look at the firewall between the host and that address"));
                }
            }
        }
    }
}

pub(super) fn aborted(host: &str) -> Error {
    Error::new(Code::ABORTED, "stopped in mid-action").host(host)
}

fn config(t: &Target, record: &Record) -> Result<client::Config> {
    let mut preferred = Preferred { cipher: Cow::Owned(ciphers()), ..Preferred::DEFAULT };
    record.prefer(&mut preferred);
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
        tokio::select! {
            r = connect_now(cx, t) => r,
            () = cx.cancel.cancelled() => Err(aborted(&t.name)),
        }
    })
}

/// Exchanges keys with the host over a way to it. The outer error is for what failed on the way.
async fn shake(cx: &Cx, t: &Target, look: bool) -> Result<(Result<Handle<Client>>, Arc<Seen>, Held)> {
    let record = Record::of(t);
    let config = Arc::new(config(t, &record)?);
    let (client, seen) = Client::new(record, look);
    let mut route = route::open(cx, t).await?;
    // The limit is for the exchange of keys too, as OpenSSH has it; what comes before and after may wait for a person.
    let made = match tokio::time::timeout(t.connect_timeout, client::connect_stream(config, route.stream, client)).await {
        Ok(Ok(handle)) => Ok(handle),
        Ok(Err(e)) => Err(unreachable(t, e)),
        Err(_) => {
            let within = runbook_core::units::show_duration(t.connect_timeout);
            Err(unreachable(t, format!("it took the connection and did not finish the SSH handshake within {within}")))
        }
    };
    let made = match made {
        Ok(h) => Ok(h),
        Err(e) => Err(route.held.explain(e).await),
    };
    Ok((made, seen, route.held))
}

async fn connect_now(cx: &Cx, t: &Target) -> Result<Conn> {
    let (made, seen, held) = shake(cx, t, false).await?;
    let mut handle = made.map_err(|e| seen.refusal().unwrap_or(e))?;
    let login = match auth::login(cx, t, &mut handle, &seen).await {
        // The library takes the end of the connection for a refusal. A host that refuses says so before it closes.
        Err(e) if e.code == Code::SSH_AUTH && !e.retryable && handle.is_closed() && seen.goodbye().is_none() => {
            return Err(unreachable(t, "the connection broke in the middle of the login"));
        }
        login => login?,
    };
    Ok(Conn::new(cx, handle, login, seen.dropbear(), held))
}

/// The key that a host shows now, and whether it is known (perhaps by its certificate); nothing is sent to it but what the exchange of
/// keys takes.
///
/// # Errors
/// `RB0300` when it cannot be reached.
pub(super) async fn look(cx: &Cx, t: &Target) -> Result<(PublicKey, bool)> {
    let (made, seen, _held) = shake(cx, t, true).await?;
    let known = seen.refusal().is_none();
    match (seen.key(), made) {
        (Some(key), _) => Ok((key, known)),
        (None, Err(e)) => Err(e),
        (None, Ok(_)) => Err(unreachable(t, "it showed no key")),
    }
}

/// Logs in to a host over a connection of its own, and says by what.
///
/// # Errors
/// `RB0300`–`RB0303`.
pub(super) async fn try_login(cx: &Cx, t: &Target) -> Result<String> {
    connect(cx, t).await.map(|c| c.login.clone())
}
