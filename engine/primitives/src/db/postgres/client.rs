//! Connections to a server, over the SSH session of its host, and its errors as ours.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::kept::Home;
use super::settings::{self, Tls};
use crate::db::driver::Db;
use crate::ssh::{Stream, tunnel};

/// For what a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// What the script asks for: as any other client.
    Script,
    /// The driver's own work, which a fence does not stop.
    Admin,
}

/// A connection. Dropping it ends it, or gives it back to where such connections are kept, when nothing is under way on it.
pub(super) struct Conn {
    client: Arc<Client>,
    host: String,
    home: Option<Home>,
    /// Statements that were begun and did not end well, as far as anybody here knows.
    unfinished: AtomicUsize,
    /// Whether a transaction is open.
    open: AtomicBool,
    /// Whether it was used in ways that are not followed here.
    raw: AtomicBool,
}

impl Conn {
    /// A connection that is new.
    fn new(client: Arc<Client>, host: &str, home: Option<Home>) -> Self {
        if let Some(home) = &home {
            home.lend();
        }
        Conn::of(client, host, home)
    }

    fn of(client: Arc<Client>, host: &str, home: Option<Home>) -> Self {
        Conn { client, host: host.into(), home, unfinished: AtomicUsize::new(0), open: AtomicBool::new(false), raw: AtomicBool::new(false) }
    }

    /// One of a run's connections to a database that is not known to be dead; the caller asks it something first.
    ///
    /// # Errors
    /// Those of the secret.
    pub(super) fn kept(cx: &Cx, db: &Db) -> Result<Option<Conn>> {
        let home = Home::of(cx, db)?;
        Ok(home.take().map(|client| Conn::of(client, &db.host, Some(home))))
    }
}

impl Deref for Conn {
    type Target = Client;
    fn deref(&self) -> &Client {
        self.raw.store(true, Ordering::Release);
        &self.client
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        let clean = self.unfinished.load(Ordering::Acquire) == 0 && !self.open.load(Ordering::Acquire) && !self.raw.load(Ordering::Acquire);
        if let Some(home) = self.home.take() {
            home.put(clean.then(|| self.client.clone()));
        }
    }
}

/// A row as texts; `None` is NULL.
pub(super) type Texts = Vec<Option<String>>;

impl Conn {
    /// Runs statements without parameters and gives the rows of all of them as texts.
    ///
    /// # Errors
    /// `RB0501` with the server's text.
    pub(super) async fn texts(&self, sql: &str) -> Result<Vec<Texts>> {
        let all = self.followed(sql, self.client.simple_query(sql)).await?;
        Ok(all
            .into_iter()
            .filter_map(|m| if let SimpleQueryMessage::Row(r) = m { Some(r) } else { None })
            .map(|r| (0..r.len()).map(|i| r.get(i).map(str::to_string)).collect())
            .collect())
    }

    /// The first row; empty when there is none.
    ///
    /// # Errors
    /// As [`Conn::texts`].
    pub(super) async fn row(&self, sql: &str) -> Result<Texts> {
        Ok(self.texts(sql).await?.into_iter().next().unwrap_or_default())
    }

    /// The first column of the first row.
    ///
    /// # Errors
    /// As [`Conn::texts`].
    pub(super) async fn text(&self, sql: &str) -> Result<Option<String>> {
        Ok(self.row(sql).await?.into_iter().next().flatten())
    }

    /// Runs statements whose rows do not matter.
    ///
    /// # Errors
    /// As [`Conn::texts`].
    pub(super) async fn run(&self, sql: &str) -> Result<()> {
        self.followed(sql, self.client.batch_execute(sql)).await
    }

    /// Sees to it that a connection on which something is under way, or has gone wrong, is not given to others.
    async fn followed<T>(&self, sql: &str, work: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>) -> Result<T> {
        self.unfinished.fetch_add(1, Ordering::AcqRel);
        let done = work.await.map_err(|e| self.failed(&e))?;
        if ["COMMIT", "ROLLBACK"].iter().any(|end| sql == *end || sql.contains(&format!("; {end}"))) {
            self.open.store(false, Ordering::Release);
        } else if sql.starts_with("BEGIN") {
            self.open.store(true, Ordering::Release);
        }
        self.unfinished.fetch_sub(1, Ordering::AcqRel);
        Ok(done)
    }

    /// Runs a statement that the server may well refuse.
    pub(super) async fn attempt(&self, sql: &str) -> std::result::Result<(), tokio_postgres::Error> {
        self.unfinished.fetch_add(1, Ordering::AcqRel);
        let done = self.client.batch_execute(sql).await;
        if done.as_ref().err().is_none_or(|e| e.as_db_error().is_some()) {
            self.unfinished.fetch_sub(1, Ordering::AcqRel);
        }
        done
    }

    /// Gives a session that was made for something else to the driver's own work.
    ///
    /// # Errors
    /// As [`Conn::texts`].
    pub(super) async fn keep(mut self, cx: &Cx, db: &Db) -> Result<()> {
        self.run("SET default_transaction_read_only = off; SET synchronous_commit = on").await?;
        let home = Home::of(cx, db)?;
        home.lend();
        self.home = Some(home);
        Ok(())
    }

    /// A server's error as ours.
    pub(super) fn failed(&self, e: &tokio_postgres::Error) -> Error {
        failed(&self.host, e)
    }
}

/// A column of a row of texts; empty for NULL.
pub(super) fn col(row: &Texts, i: usize) -> &str {
    row.get(i).and_then(Option::as_deref).unwrap_or("")
}

/// Session settings under which the server's texts are the same everywhere.
const SESSION: &str = "-c DateStyle=ISO,YMD -c IntervalStyle=iso_8601 -c extra_float_digits=1 -c TimeZone=UTC -c bytea_output=hex \
                       -c client_min_messages=warning -c lock_timeout=0 -c statement_timeout=0 -c idle_in_transaction_session_timeout=0";

/// A way to a server on which nobody has logged in yet.
pub(super) struct Dialled {
    stream: Stream,
    config: tokio_postgres::Config,
    home: Option<Home>,
}

/// Reaches a server.
///
/// # Errors
/// `RB0300`–`RB0307` of the way there.
pub(super) async fn dial(cx: &Cx, db: &Db, what: For) -> Result<Dialled> {
    let password = db.settings.str("password").map(|n| cx.secret(n)).transpose()?;
    dial_as(cx, db, what, settings::role(db), password.as_ref().map(|p| p.reveal()), settings::peer(db)).await
}

/// Reaches a server to log in with another role and password.
///
/// # Errors
/// As [`dial`].
pub(super) async fn dial_as(cx: &Cx, db: &Db, what: For, role: &str, password: Option<&str>, peer: Option<&str>) -> Result<Dialled> {
    let mut config = tokio_postgres::Config::new();
    let own = if what == For::Admin { " -c default_transaction_read_only=off -c synchronous_commit=on" } else { "" };
    config
        .user(role)
        .dbname(settings::database(db)?)
        .application_name(format!("runbook {}", cx.action_id).chars().take(63).collect::<String>())
        .options(format!("{SESSION}{own}"));
    if let Some(p) = password {
        config.password(p);
    }
    let home = if what == For::Admin { Some(Home::of(cx, db)?) } else { None };
    let stream = in_time(cx, db, Box::pin(tunnel::stream(cx, &db.host, &settings::place(db), peer))).await?;
    Ok(Dialled { stream, config, home })
}

impl Dialled {
    /// Logs in. Until now the server has not looked at who it is: what it allows is what it allows at this moment.
    ///
    /// # Errors
    /// `RB0510` when the login is refused; `RB0500` when the server does not let it in.
    pub(super) async fn login(self, cx: &Cx, db: &Db) -> Result<Conn> {
        let Dialled { stream, mut config, home } = self;
        let work = async {
            let client = match settings::tls(db)? {
                Tls::Off => {
                    config.ssl_mode(SslMode::Disable);
                    let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(|e| failed(&db.host, &e))?;
                    tokio::spawn(connection);
                    client
                }
                Tls::VerifyFull => {
                    config.ssl_mode(SslMode::Require);
                    let mut make = MakeRustlsConnect::new(tls_config(cx, db)?);
                    let named =
                        |e: &dyn std::fmt::Display| Error::new(Code::DB_CONNECT, format!("TLS to \"{}\": {e}", db.name)).host(&db.host);
                    let tls = MakeTlsConnect::<Stream>::make_tls_connect(&mut make, settings::tls_name(db)).map_err(|e| named(&e))?;
                    let (client, connection) = config.connect_raw(stream, tls).await.map_err(|e| tls_failed(db, &e))?;
                    tokio::spawn(connection);
                    client
                }
            };
            Ok(Conn::new(Arc::new(client), &db.host, home))
        };
        in_time(cx, db, work).await
    }
}

/// Connects.
///
/// # Errors
/// As [`dial`] and [`Dialled::login`].
pub(super) async fn connect(cx: &Cx, db: &Db, what: For) -> Result<Conn> {
    dial(cx, db, what).await?.login(cx, db).await
}

async fn in_time<T>(cx: &Cx, db: &Db, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        r = tokio::time::timeout(Duration::from_secs(60), work) => r.unwrap_or_else(|_| {
            Err(Error::new(Code::DB_CONNECT, format!("\"{}\" does not let in within 1m", db.name)).host(&db.host).retryable(true))
        }),
        () = cx.cancel.cancelled() => Err(Error::new(Code::ABORTED, "stopped while connecting to a database").host(&db.host)),
    }
}

fn tls_config(cx: &Cx, db: &Db) -> Result<rustls::ClientConfig> {
    let path = db.settings.need("tls_ca")?;
    let bad = |e: &dyn std::fmt::Display| Error::new(Code::DB_CONNECT, format!("tls_ca of \"{}\" ({path}): {e}", db.name));
    let pem = cx.files.read(path)?;
    let mut roots = rustls::RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(&pem) {
        roots.add(cert.map_err(|e| bad(&e))?).map_err(|e| bad(&e))?;
    }
    if roots.is_empty() {
        return Err(bad(&"there is no certificate in it").hint("give it the certificate of the authority, in PEM"));
    }
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    Ok(builder.with_safe_default_protocol_versions().map_err(|e| bad(&e))?.with_root_certificates(roots).with_no_client_auth())
}

/// A client's error as ours: what the server said, its SQLSTATE, and what to do.
pub(super) fn failed(host: &str, e: &tokio_postgres::Error) -> Error {
    let Some(d) = e.as_db_error() else {
        let mut text = e.to_string();
        let mut cause = std::error::Error::source(e);
        while let Some(c) = cause {
            text = format!("{text}: {c}");
            cause = c.source();
        }
        let code = if text.contains("password") { Code::DB_LOGIN } else { Code::DB_CONNECT };
        return Error::new(code, text).host(host).retryable(code == Code::DB_CONNECT && !text_is_tls(e));
    };
    let state = d.code().code();
    let (code, retryable, hint) = match state {
        "28P01" | "28000" => {
            (Code::DB_LOGIN, false, Some("check user, password and sudo of this database in runbook.toml, and pg_hba.conf on the server"))
        }
        "3D000" => (Code::DB_CONNECT, false, Some("check the name of the database in runbook.toml")),
        "57P03" | "53300" | "57P01" | "57P02" => (Code::DB_CONNECT, true, None),
        "25001" => (
            Code::DB_QUERY,
            false,
            Some(
                "such a statement cannot be part of a transaction, so that after a crash nobody could know whether it took effect; run it with psql, by host.run",
            ),
        ),
        "25006" => {
            (Code::DB_QUERY, false, Some("use execute(…) for statements that write; a fenced database and a standby refuse them all"))
        }
        "40001" | "40P01" | "55P03" => (Code::DB_QUERY, true, None),
        _ => (Code::DB_QUERY, false, None),
    };
    let detail = d.detail().map_or(String::new(), |t| format!(" ({t})"));
    let mut error = Error::new(code, format!("{}{detail}", d.message())).host(host).retryable(retryable).detail("sqlstate", state);
    if let Some(hint) = hint.or(d.hint()) {
        error = error.hint(hint);
    }
    error
}

/// As [`failed`], with what to look at when it is TLS that failed.
fn tls_failed(db: &Db, e: &tokio_postgres::Error) -> Error {
    let error = failed(&db.host, e);
    if !text_is_tls(e) {
        return error;
    }
    let hint = if error.message.contains("not support TLS") {
        "set ssl = on there, with a certificate; or tls = \"off\": the SSH connection to the host is encrypted in any case".to_string()
    } else {
        let (ca, name) = (db.settings.str("tls_ca").unwrap_or(""), settings::tls_name(db));
        format!("tls_ca ({ca}) must be of the authority that signed the server's certificate, and tls_name (now {name}) a name in it")
    };
    Error { message: format!("TLS to \"{}\": {}", db.name, error.message), ..error }.hint(hint)
}

fn text_is_tls(e: &tokio_postgres::Error) -> bool {
    e.to_string().contains("TLS")
}
