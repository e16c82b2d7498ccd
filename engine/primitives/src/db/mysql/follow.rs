//! A server that follows another: told of it, started, waited for, stopped.

use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::time::Instant;

use super::connect::{Server, Sess, server, session};
use super::sql::text;
use super::state::{self, Phase, Position, ReplicaMark, aside};
use super::status::Stream;
use super::{data, host, physical, status};
use crate::db::driver::{Db, ReplicationError};

/// How long replication may take to connect and run.
const STARTS: Duration = Duration::from_secs(30);

/// Where servers find each other, which need not be where we find them.
pub fn address(cx: &Cx, db: &Db) -> Result<(String, u16)> {
    let port = |key: &str| db.settings.int(key).and_then(|p| u16::try_from(p).ok());
    Ok((host::seen(cx, db, "servers", "replication_host")?, port("replication_port").or_else(|| port("port")).unwrap_or(3306)))
}

/// The login for replication on `primary`: the inventory's, or one that is made there for this replica.
async fn login(cx: &Cx, primary: &Db, p: &mut Sess, replica: i64) -> Result<(String, String, Option<String>)> {
    if let Some(user) = primary.settings.str("replication_user") {
        let secret = cx.secret(primary.settings.need("replication_password")?)?;
        return Ok((user.to_string(), secret.reveal().to_string(), None));
    }
    let (user, password) = (format!("_runbook_{replica}"), super::secret());
    cx.redactor.add(&password);
    let name = format!("{}@'%'", text(&user));
    aside(
        p,
        &[
            format!("DROP USER IF EXISTS {name}"),
            format!("CREATE USER {name} IDENTIFIED BY {}", text(&password)),
            format!("GRANT REPLICATION SLAVE ON *.* TO {name}"),
        ],
    )
    .await?;
    Ok((user, password, Some(name)))
}

/// A primary as a replica is told of it.
pub struct Upstream {
    host: String,
    port: u16,
    user: String,
    password: String,
    tls: bool,
    /// The account that was made there for the replica, when the inventory has none.
    pub account: Option<String>,
}

impl Upstream {
    /// Finds the primary, by whose session `p` the account is made that the replica `r` needs.
    pub async fn of(cx: &Cx, primary: &Db, p: &mut Sess, r: &mut Sess) -> Result<Upstream> {
        let (host, port) = address(cx, primary)?;
        let id = r.int("SELECT @@server_id").await?;
        let (user, password, account) = login(cx, primary, p, id).await?;
        Ok(Upstream { host, port, user, password, tls: primary.settings.flag("tls"), account })
    }

    /// Points the replica there; `place` says from where it goes on, and what else is set.
    pub async fn change(&self, cx: &Cx, at: &Server, r: &mut Sess, place: Vec<(&str, String)>) -> Result<()> {
        let mut set = vec![
            ("MASTER_HOST", text(&self.host)),
            ("MASTER_PORT", self.port.to_string()),
            ("MASTER_USER", text(&self.user)),
            ("MASTER_PASSWORD", text(&self.password)),
            ("MASTER_CONNECT_RETRY", "2".to_string()),
        ];
        if self.tls {
            set.push(("MASTER_SSL", "1".into()));
        } else if !at.flavour.maria && at.flavour.version >= (8, 0, 4) {
            // Without TLS a password goes by the server's key, for which a replica must ask.
            set.push(("GET_MASTER_PUBLIC_KEY", "1".into()));
        }
        set.extend(place);
        let change = r.run(at.flavour.change_source(&set)).await;
        change.map(drop).map_err(|e| Error { message: cx.redactor.text(&e.message), ..e })
    }
}

/// Points the replica at its primary and lets it run, from the position on record.
pub async fn start(cx: &Cx, db: &Db, primary: &Db, p: &mut Sess, r: &mut Sess, mut mark: ReplicaMark) -> Result<ReplicaMark> {
    let at = server(cx, db).await?;
    let to = Upstream::of(cx, primary, p, r).await?;
    mark.account = to.account.clone();
    let _ = r.run(at.flavour.replica("STOP", "")).await;
    r.run(at.flavour.replica("RESET", "ALL")).await?;
    let mut set = vec![];
    if mark.gtid && at.flavour.maria {
        // What this server has written itself (users made by hand, say) would stand in the way of the primary's numbers.
        let own = r.text("SELECT @@gtid_binlog_pos").await?.unwrap_or_default();
        if !own.is_empty() && mark.phase == Phase::Copied {
            r.run("RESET MASTER").await?;
        }
        r.run(format!("SET GLOBAL gtid_slave_pos = {}", text(&mark.position.gtid))).await?;
        set.push(("MASTER_USE_GTID", "slave_pos".into()));
    } else if mark.gtid {
        if mark.phase == Phase::Copied {
            r.run(if at.flavour.version >= (8, 4, 0) { "RESET BINARY LOGS AND GTIDS" } else { "RESET MASTER" }).await?;
            r.run(format!("SET GLOBAL gtid_purged = {}", text(&mark.position.gtid))).await?;
        }
        set.push(("MASTER_AUTO_POSITION", "1".into()));
    } else {
        set = at.flavour.by_place(&mark.position.file, mark.position.pos);
    }
    if mark.delay > 0 {
        set.push(("MASTER_DELAY", mark.delay.to_string()));
    }
    to.change(cx, &at, r, set).await?;
    r.run(at.flavour.replica("START", "")).await?;
    wait_running(cx, db, &at, r).await?;
    if mark.rolled.take().is_some() {
        // It may go on by itself after a restart again.
        host::hold(cx, db, &format!("\"{}\" is a replica of \"{}\"", db.name, primary.name)).await?;
    }
    mark.phase = Phase::Running;
    state::write(r, &mark).await?;
    Ok(mark)
}

/// Waits until replication is connected and applies.
pub async fn wait_running(cx: &Cx, db: &Db, at: &Server, r: &mut Sess) -> Result<()> {
    let begun = Instant::now();
    loop {
        let found = status::usual(r, &at.flavour).await?;
        if found.as_ref().is_some_and(Stream::connected) {
            return Ok(());
        }
        if let Some(e) = found.as_ref().and_then(Stream::error) {
            return Err(e.stopped(db));
        }
        if begun.elapsed() >= STARTS {
            let e =
                found.as_ref().and_then(Stream::trouble).unwrap_or(ReplicationError { code: "0".into(), text: "it does not begin".into() });
            return Err(e.stopped(db).hint("the replica must reach its primary by replication_host and replication_port of the primary in runbook.toml (or its host's address)"));
        }
        cx.sleep(Duration::from_millis(50)).await?;
    }
}

/// Notes where a replica stands whose replication was just stopped, before the server forgets it.
pub async fn stopped_at(r: &mut Sess, at: &Server, mut mark: ReplicaMark) -> Result<ReplicaMark> {
    // Read after the stop: nothing is applied any more.
    let usual = status::usual(r, &at.flavour).await?;
    let Some(usual) = usual.filter(|_| mark.phase == Phase::Running) else { return Ok(mark) };
    let (file, pos) = usual.applied();
    let gtid =
        if at.flavour.maria { r.text("SELECT @@gtid_slave_pos").await?.unwrap_or_default() } else { data::position(r, false).await? };
    (mark.position, mark.phase) = (Position { gtid, file, pos }, Phase::Copied);
    state::write(r, &mark).await?;
    Ok(mark)
}

/// Ends replication; the position at which it stood stays on record, so that it can go on later.
pub async fn stop(cx: &Cx, db: &Db) -> Result<bool> {
    let at = server(cx, db).await?;
    let mut r = session(cx, db).await?;
    // What is on record may be the primary's own until a copy of it is.
    let abandoned = at.flavour.maria && physical::abandon(cx, db).await?;
    let marks = state::read(&mut r).await?;
    if let Some(m) = &marks.promoted {
        return Err(Error::new(Code::DB_COPY, format!("\"{}\" was promoted and takes the writes, instead of \"{}\"", db.name, m.source))
            .host(&db.host)
            .hint("demote it first"));
    }
    let usual = status::usual(&mut r, &at.flavour).await?;
    if usual.is_none() && marks.replica.as_ref().is_none_or(|m| m.account.is_none()) {
        return Ok(abandoned);
    }
    if usual.is_some() {
        r.run(at.flavour.replica("STOP", "")).await?;
    }
    if let Some(mark) = marks.replica {
        let mut mark = stopped_at(&mut r, &at, mark).await?;
        r.run(at.flavour.replica("RESET", "ALL")).await?;
        if let Some(account) = mark.account.take() {
            // The other side may be gone for good; the account then goes with it.
            if let Err(e) = forget_account(cx, &mark.of, &account).await {
                cx.message(format!("the account {account} on \"{}\" was not removed: {}", mark.of, e.message));
            }
            state::write(&mut r, &mark).await?;
        }
    } else {
        r.run(at.flavour.replica("RESET", "ALL")).await?;
    }
    r.close().await;
    Ok(true)
}

/// Removes the account that was made on a primary.
pub async fn forget_account(cx: &Cx, primary: &str, account: &str) -> Result<()> {
    let primary = Db::find(cx, primary)?;
    let mut p = session(cx, &primary).await?;
    aside(&mut p, &[format!("DROP USER IF EXISTS {account}")]).await?;
    p.close().await;
    Ok(())
}
