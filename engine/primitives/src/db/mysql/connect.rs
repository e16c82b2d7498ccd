//! The way to a server: over the SSH connection of its host, to its unix socket or port there.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use mysql_async::{Conn, Opts, OptsBuilder, SslOpts};
use parking_lot::Mutex;
use runbook_core::cancel::Cancel;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::errors;
use super::flavour::Flavour;
pub use super::sess::{Named, Sess, get};
use crate::db::driver::Db;
use crate::ssh::Place;
use crate::ssh::tunnel::{self, Forward};

/// Where servers have their socket when nothing says so: Debian, Red Hat, the server's own default.
const SOCKETS: [&str; 3] = ["/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock", "/tmp/mysql.sock"];

/// The way to a server, kept for the life of the process.
pub struct Server {
    /// The database it is for.
    pub db: Db,
    /// What it is.
    pub flavour: Flavour,
    /// Its socket or port on the host.
    pub place: Place,
    /// The sessions that this process has opened and that may still be there.
    pub own: Mutex<HashSet<u32>>,
    way: Way,
    opts: Opts,
    /// Sessions that wait for their next use, and since when.
    idle: Mutex<Vec<(Conn, Instant)>>,
}

/// How many sessions wait at most, and for how long.
const IDLE: (usize, Duration) = (8, Duration::from_secs(20));

enum Way {
    Socket(Forward),
    /// For TLS, which the client does over TCP only.
    Port {
        _work: JoinSet<()>,
    },
}

/// The ways that were made, by environment and database.
#[derive(Default)]
struct Servers(tokio::sync::Mutex<HashMap<String, Arc<Server>>>);

/// The server of a database, reached on first use.
///
/// # Errors
/// `RB0500` when it cannot be reached, `RB0510` when it refuses the login, and those of SSH.
pub async fn server(cx: &Cx, db: &Db) -> Result<Arc<Server>> {
    let servers = cx.shared.get::<Servers>();
    let key = format!("{}/{}", cx.env.name, db.name);
    if let Some(found) = servers.0.lock().await.get(&key) {
        return Ok(found.clone());
    }
    let made = Arc::new(reach(cx, db).await?);
    Ok(servers.0.lock().await.entry(key).or_insert(made).clone())
}

/// Forgets the way to a server, so that the next session makes it anew.
async fn forget(cx: &Cx, db: &Db) {
    cx.shared.get::<Servers>().0.lock().await.remove(&format!("{}/{}", cx.env.name, db.name));
}

/// The places at which a server may listen, the likeliest first.
fn places(db: &Db) -> Vec<Place> {
    if let Some(socket) = db.settings.str("socket") {
        return vec![Place::Unix(socket.into())];
    }
    let port = db.settings.int("port").and_then(|p| u16::try_from(p).ok());
    let address = db.settings.str("address");
    if port.is_some() || address.is_some() || db.settings.flag("tls") {
        return vec![Place::Tcp(address.unwrap_or("127.0.0.1").into(), port.unwrap_or(3306))];
    }
    SOCKETS.iter().map(|s| Place::Unix((*s).into())).collect()
}

/// Whose sessions these are to the server.
pub fn user(db: &Db) -> String {
    db.settings.str("user").unwrap_or("root").to_string()
}

async fn reach(cx: &Cx, db: &Db) -> Result<Server> {
    let as_user = db.settings.flag("sudo").then(|| "root".to_string());
    let places = places(db);
    let mut last = None;
    for place in places {
        match tunnel::forward(cx, &db.host, &place, as_user.as_deref()).await {
            Ok(forward) => return login(cx, db, place, as_user, forward).await,
            // The next place only where this one is not there.
            Err(e) if e.details.get("reason").is_some_and(|r| r == "absent") => last = Some(e),
            Err(e) => return Err(e),
        }
    }
    let e = last.unwrap_or_else(|| Error::internal("no place to look for the server"));
    Err(Error::new(Code::DB_CONNECT, format!("the server of database \"{}\" is not there: {}", db.name, e.message))
        .host(&db.host)
        .hint("see whether it runs, and give socket or port of the database in runbook.toml")
        .retryable(true))
}

async fn login(cx: &Cx, db: &Db, place: Place, as_user: Option<String>, forward: Forward) -> Result<Server> {
    let mut b = OptsBuilder::default()
        .user(Some(user(db)))
        .pass(password(cx, db)?)
        .prefer_socket(Some(false))
        .max_allowed_packet(Some(1 << 30))
        .wait_timeout(Some(28_800))
        .stmt_cache_size(Some(0))
        // Sessions may wait long for a lock or a large result, and must not end meanwhile.
        .setup(vec!["SET NAMES utf8mb4, time_zone = '+00:00', sql_mode = 'STRICT_TRANS_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION', net_write_timeout = 3600, net_read_timeout = 3600, wait_timeout = 28800".to_string()]);
    let way = if db.settings.flag("tls") {
        let (port, work) = loopback(cx, db, &place, as_user.clone()).await?;
        b = b.ip_or_hostname("127.0.0.1").tcp_port(port).ssl_opts(Some(tls(cx, db, &place)?));
        Way::Port { _work: work }
    } else {
        b = b.socket(Some(forward.path().display().to_string()));
        Way::Socket(forward)
    };
    let mut server =
        Server { db: db.clone(), flavour: Flavour::default(), place, own: Mutex::default(), way, opts: b.into(), idle: Mutex::default() };
    let mut s = server.open_as(cx, server.opts.clone()).await?;
    // A member of a cluster that lacks the majority answers SHOW, and no SELECT.
    let about = s.rows("SHOW GLOBAL VARIABLES WHERE Variable_name IN ('version', 'version_comment')").await?;
    let about = |name: &str| about.iter().find(|r| get(r, "variable_name") == name).map_or("", |r| get(r, "value"));
    let (version, comment) = (about("version").to_string(), about("version_comment").to_string());
    s.close().await;
    server.flavour = Flavour::parse(&version);
    server.flavour.maria |= comment.contains("MariaDB") || comment.contains("mariadb");
    let kind = db.settings.kind.as_str();
    if kind != server.flavour.name() {
        return Err(Error::new(
            Code::INVENTORY_TYPE,
            format!("database \"{}\" is of kind \"{kind}\" in runbook.toml, and its server is {version} ({comment})", db.name),
        )
        .host(&db.host)
        .hint(format!("write kind = \"{}\"", server.flavour.name())));
    }
    Ok(server)
}

fn password(cx: &Cx, db: &Db) -> Result<Option<String>> {
    db.settings.str("password").map(|name| cx.secret(name).map(|s| s.reveal().to_string())).transpose()
}

fn tls(cx: &Cx, db: &Db, place: &Place) -> Result<SslOpts> {
    let name = match place {
        Place::Tcp(name, _) => name.clone(),
        Place::Unix(_) => "localhost".into(),
    };
    let mut ssl = SslOpts::default().with_danger_tls_hostname_override(Some(db.settings.str("tls_name").map_or(name, str::to_string)));
    if let Some(file) = db.settings.str("tls_ca") {
        let pem = cx.files.read(file)?;
        ssl = ssl.with_root_certs(vec![pem.into()]).with_disable_built_in_roots(true);
    }
    Ok(ssl)
}

/// A loopback port of this machine that leads to the server.
async fn loopback(cx: &Cx, db: &Db, place: &Place, user: Option<String>) -> Result<(u16, JoinSet<()>)> {
    let here =
        |e: std::io::Error| Error::new(Code::DB_CONNECT, format!("a port for \"{}\" cannot be opened on this machine: {e}", db.name));
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(here)?;
    let port = listener.local_addr().map_err(here)?.port();
    let mut work = JoinSet::new();
    let (cx, host, place) = (Cx { cancel: Cancel::default(), ..cx.clone() }, db.host.clone(), place.clone());
    work.spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((mut local, _)) = listener.accept().await {
            let (cx, host, place, user) = (cx.clone(), host.clone(), place.clone(), user.clone());
            open.spawn(async move {
                if let Ok(mut remote) = tunnel::stream(&cx, &host, &place, user.as_deref()).await {
                    let _ = tokio::io::copy_bidirectional(&mut local, &mut remote).await;
                }
            });
            while open.try_join_next().is_some() {}
        }
    });
    Ok((port, work))
}

impl Server {
    async fn connect(&self, cx: &Cx, opts: Opts) -> std::result::Result<Conn, mysql_async::Error> {
        let limit = Duration::from_secs(30);
        tokio::select! {
            made = tokio::time::timeout(limit, Conn::new(opts)) => made.unwrap_or_else(|_| {
                Err(mysql_async::Error::Other(format!("no answer within {} seconds", limit.as_secs()).into()))
            }),
            () = cx.cancel.cancelled() => Err(mysql_async::Error::Other("stopped while connecting".into())),
        }
    }

    async fn open(self: &Arc<Self>, cx: &Cx) -> Result<Sess> {
        loop {
            let Some((mut conn, since)) = self.idle.lock().pop() else { break };
            // Whatever its last user has set is gone with the reset; one that has ended meanwhile does not answer it.
            let reset = tokio::time::timeout(Duration::from_secs(3), conn.reset());
            if since.elapsed() < IDLE.1 && matches!(reset.await, Ok(Ok(true))) {
                return Ok(Sess { conn: Some(conn), db: self.db.clone(), cancel: cx.cancel.clone(), home: Arc::downgrade(self) });
            }
        }
        let mut s = self.open_as(cx, self.opts.clone()).await?;
        s.home = Arc::downgrade(self);
        Ok(s)
    }

    async fn open_as(&self, cx: &Cx, opts: Opts) -> Result<Sess> {
        let user = opts.user().unwrap_or("").to_string();
        let conn = self.connect(cx, opts).await.map_err(|e| {
            if cx.cancel.is_cancelled() {
                return Error::new(Code::ABORTED, "stopped while connecting to a database").host(&self.db.host);
            }
            // What the tunnel says of itself explains more than a connection that just ended.
            match &self.way {
                Way::Socket(f) if e.is_fatal() => f.error().unwrap_or_else(|| errors::opening(&self.db, &user, &e)),
                _ => errors::opening(&self.db, &user, &e),
            }
        })?;
        self.own.lock().insert(conn.id());
        Ok(Sess { conn: Some(conn), db: self.db.clone(), cancel: cx.cancel.clone(), home: Weak::new() })
    }

    /// Keeps a session for its next use; gives it back when enough of them wait.
    pub(super) fn keep(&self, conn: Conn) -> Option<Conn> {
        let mut idle = self.idle.lock();
        if idle.len() >= IDLE.0 {
            return Some(conn);
        }
        idle.push((conn, Instant::now()));
        None
    }
}

/// Whether an error means that no server runs there, and not that nothing is known.
pub fn down(e: &Error) -> bool {
    e.code == Code::DB_CONNECT || e.details.get("reason").is_some_and(|r| r == "absent" || r == "refused")
}

/// Opens a session of a database's server.
///
/// # Errors
/// As [`server`].
pub async fn session(cx: &Cx, db: &Db) -> Result<Sess> {
    let at = server(cx, db).await?;
    match at.open(cx).await {
        Err(e) if e.retryable && e.code != Code::ABORTED => {
            // The way may be one that a lost SSH connection has left: once anew.
            forget(cx, db).await;
            server(cx, db).await?.open(cx).await
        }
        done => done,
    }
}

/// Opens a session as another account of the server.
///
/// # Errors
/// As [`server`].
pub async fn session_as(cx: &Cx, db: &Db, user: &str, password: &str) -> Result<Sess> {
    let at = server(cx, db).await?;
    let opts = OptsBuilder::from_opts(at.opts.clone()).user(Some(user)).pass(Some(password)).db_name(None::<String>);
    at.open_as(cx, opts.into()).await
}
