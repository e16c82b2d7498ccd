//! Physical standbys: made by `pg_basebackup`, kept up by a slot of their own, and given up again.

use std::collections::BTreeMap;
use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::time::Instant;

use super::client::{Conn, col};
use super::cluster::{Cluster, Data};
use super::copy::rebuild;
use super::data::{admin, unless_stopped};
use super::delayed::{go_on, held};
use super::login::{conninfo, prepare, remove_password};
use super::slots::{drop_slot, slot};
use super::sql::lit;
use super::state::Node;
use crate::db::driver::{Db, Replicate, Replicated, cannot};

/// What a way of replicating asks of its primary.
pub(super) struct Needs {
    /// The log must have what decoding wants.
    logical: bool,
    /// Senders and slots that must be free.
    senders: i64,
    slots: i64,
}

const PHYSICAL: Needs = Needs { logical: false, senders: 2, slots: 1 };
/// A logical replica that is made: one for itself, two for the tables that are copied at once.
pub(super) const LOGICAL: Needs = Needs { logical: true, senders: 3, slots: 3 };
/// A logical replica that copies nothing.
pub(super) const LOGICAL_ONE: Needs = Needs { logical: true, senders: 1, slots: 1 };

/// Sees that a primary has the least of it.
pub(super) fn ready(db: &Db, node: &Node, settings: &BTreeMap<String, String>, needs: &Needs) -> Result<()> {
    let set = |why: String, hint: String| Err(Error::new(Code::DB_SETTINGS, why).hint(hint).host(&db.host));
    if node.in_recovery {
        return set(format!("\"{}\" is a standby itself", db.name), "replicate from its primary".into());
    }
    if !node.superuser {
        return set(format!("the role that logs in to \"{}\" is no super-user", db.name), "log in as postgres: sudo = true".into());
    }
    let get = |k: &str| settings.get(k).map_or("", String::as_str);
    if needs.logical && get("wal_level") != "logical" {
        return set(
            format!("\"{}\" has wal_level = {}: logical replication needs logical", db.name, get("wal_level")),
            "ALTER SYSTEM SET wal_level = logical, then restart it (its users notice)".into(),
        );
    }
    if get("wal_level") == "minimal" {
        return set(
            format!("\"{}\" has wal_level = minimal: nothing can follow it", db.name),
            "ALTER SYSTEM SET wal_level = replica, then restart it (its users notice)".into(),
        );
    }
    for (name, used, least) in [("max_wal_senders", "senders", needs.senders), ("max_replication_slots", "slots", needs.slots)] {
        let (max, used): (i64, i64) = (get(name).parse().unwrap_or(0), get(used).parse().unwrap_or(0));
        if max - used < least {
            return set(
                format!("\"{}\" has {name} = {max}, of which {used} are in use: {least} more are needed", db.name),
                format!("ALTER SYSTEM SET {name} = {}, then restart it (its users notice)", used + least + 2),
            );
        }
    }
    Ok(())
}

pub(super) async fn primary_settings(conn: &Conn) -> Result<BTreeMap<String, String>> {
    let rows = conn
        .texts(&format!(
            "SELECT name, setting FROM pg_settings WHERE name IN ('wal_level', 'max_wal_senders', 'max_replication_slots', 'wal_keep_size', {}); \
             SELECT 'senders', count(*) FROM pg_stat_replication; SELECT 'slots', count(*) FROM pg_replication_slots",
            AT_LEAST.map(lit).join(", ")
        ))
        .await?;
    Ok(rows.iter().map(|r| (col(r, 0).to_string(), col(r, 1).to_string())).collect())
}

/// Settings that a standby must have at least as its primary.
pub(super) const AT_LEAST: [&str; 5] =
    ["max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions", "max_locks_per_transaction"];

/// Waits until the standby streams.
pub(super) async fn streams(cx: &Cx, db: &Db, conn: &Conn, within: Duration) -> Result<()> {
    let (name, began) = (slot(db), Instant::now());
    loop {
        let state = conn.text(&format!("SELECT state FROM pg_stat_replication WHERE application_name = {}", lit(&name))).await?;
        if state.as_deref() == Some("streaming") {
            return Ok(());
        }
        if began.elapsed() > within {
            return Err(Error::new(
                Code::DB_REPLICATION,
                format!("\"{}\" does not stream from its primary ({})", db.name, state.unwrap_or_else(|| "it is not connected".into())),
            )
            .hint("look at the standby's log on its host")
            .host(&db.host)
            .retryable(true));
        }
        cx.sleep(Duration::from_millis(100)).await?;
    }
}

/// Makes `db` a standby of `primary`.
pub(super) async fn replicate(cx: &Cx, db: &Db, primary: &Db, options: &Replicate) -> Result<Replicated> {
    match options.mode.as_deref().unwrap_or("physical") {
        "physical" => {}
        "logical" => return Box::pin(super::logical::replicate(cx, db, primary, options)).await,
        other => return Err(cannot(db, &format!("replicating by the mode \"{other}\""))),
    }
    unless_stopped(cx, db, async {
        let (p, node) = admin(cx, primary).await?;
        ready(primary, &node, &primary_settings(&p).await?, &PHYSICAL)?;
        let cluster = Cluster::of(cx, db).await?;
        let found = cluster.look().await?;
        if let Some(there) = cluster.major().await?
            && there != node.version / 10_000
        {
            let of = node.version / 10_000;
            return Err(Error::new(
                Code::DB_SETTINGS,
                format!("\"{}\" is of PostgreSQL {of} and the host of \"{}\" has {there}: a standby is of one version with its primary", primary.name, db.name),
            )
            .hint(format!("install PostgreSQL {of} there (and name it by cluster or bin); to move to another version, replicate with mode: \"logical\""))
            .host(&db.host));
        }
        let refuse = |why: String| {
            Err(Error::new(Code::DB_COPY, why).hint("replicate_from(primary, #{ replace: true }) removes it, for good").host(&db.host))
        };
        match &found {
            Data::Cluster(c) if c.system == node.system && c.standby => {
                if let Some(done) = already(cx, &cluster, db, primary, &p, &node).await? {
                    return Ok(done);
                }
            }
            Data::Empty => {}
            _ if options.replace => {}
            Data::Foreign => return refuse(format!("{} on {} is not empty, and is no cluster", cluster.data()?, db.host)),
            Data::Cluster(c) => {
                let what = if c.system == node.system { "which was a standby once and took writes" } else { "of another origin" };
                return refuse(format!("there is a cluster in {} on {} ({}), {what}", cluster.data()?, db.host, c.state));
            }
        }
        let r = prepare(cx, &cluster, db, primary, &p, &node).await?;
        let bytes = rebuild(cx, &cluster, db, primary, &p, &r).await?;
        let (_, there) = cluster.start().await?;
        streams(cx, db, &p, Duration::from_secs(120)).await?;
        cluster.must("clearing up", &cluster.script("rm -rf \"$d.runbook-replaced\"")?, None).await?;
        Ok(Replicated { changed: true, rows: 0, bytes, position: there.lsn.to_string(), note: String::new() })
    })
    .await
}

/// Goes on with a standby of this primary that is there; `None` when it must be made anew.
async fn already(cx: &Cx, cluster: &Cluster<'_>, db: &Db, primary: &Db, p: &Conn, node: &Node) -> Result<Option<Replicated>> {
    let ran = cluster.running().await?;
    let (mut conn, mut there) = cluster.start().await?;
    let went_on = go_on(cx, db, cluster, &conn).await?;
    if went_on {
        (conn, there) = cluster.start().await?;
    }
    let name = lit(&slot(db));
    let slots = p.texts(&format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = {name}")).await?;
    if slots.first().is_none_or(|r| col(r, 0) == "lost") {
        cx.message(format!("\"{}\" is a standby of \"{}\" whose slot is gone: it is made anew", db.name, primary.name));
        return Ok(None);
    }
    if let Err(e) = streams(cx, db, p, Duration::from_secs(3)).await {
        if e.code != Code::DB_REPLICATION {
            return Err(e);
        }
        if held(&conn).await?.waits {
            let note = "it waits for its delay to be over, and receives again when it has applied what it holds";
            let position = there.lsn.to_string();
            return Ok(Some(Replicated { changed: went_on || !ran, position, note: note.into(), ..Replicated::default() }));
        }
        // Its password or the primary's address may have changed.
        let r = prepare(cx, cluster, db, primary, p, node).await?;
        let info = conninfo(&r, &cluster.data()?, &slot(db));
        conn.run(&format!("ALTER SYSTEM SET primary_conninfo = {}", lit(&info))).await?;
        conn.run(&format!("ALTER SYSTEM SET primary_slot_name = {name}")).await?;
        conn.run("SELECT pg_reload_conf()").await?;
        streams(cx, db, p, Duration::from_secs(30)).await?;
        return Ok(Some(Replicated {
            changed: true,
            position: there.lsn.to_string(),
            note: "it streams again".into(),
            ..Replicated::default()
        }));
    }
    if went_on {
        return Ok(Some(Replicated { changed: true, position: there.lsn.to_string(), note: "it goes on".into(), ..Replicated::default() }));
    }
    let note = if ran { "it streams from there already" } else { "it was a standby of it already and was started" };
    Ok(Some(Replicated { changed: !ran, position: there.lsn.to_string(), note: note.into(), ..Replicated::default() }))
}

/// Ends replication on both sides.
pub(super) async fn stop(cx: &Cx, db: &Db) -> Result<bool> {
    let (conn, node) = admin(cx, db).await?;
    if let Some(mark) = &node.replica {
        return Box::pin(super::logical::stop(cx, db, &conn, mark)).await;
    }
    if !node.in_recovery {
        if let Some(to) = node.fence.as_ref().and_then(|mark| mark.handed_to.as_deref()) {
            return Box::pin(super::turned::give_up(cx, db, to)).await;
        }
        return match node.promoted {
            Some(_) => Err(Error::new(Code::DB_COPY, format!("\"{}\" was promoted: it replicates from nobody", db.name)).host(&db.host)),
            None => Ok(false),
        };
    }
    let row = conn
        .row("SELECT current_setting('runbook.primary', true), current_setting('primary_slot_name'), current_setting('primary_conninfo')")
        .await?;
    if col(&row, 2).is_empty() && col(&row, 1).is_empty() {
        return Ok(false);
    }
    // The other side first: what is named there is known only as long as this side follows.
    if !col(&row, 0).is_empty() {
        let primary = Db::find(cx, col(&row, 0))?;
        let (p, _) = admin(cx, &primary).await?;
        // It lets go of its slot.
        conn.run("ALTER SYSTEM SET primary_conninfo = ''").await?;
        conn.run("SELECT pg_reload_conf()").await?;
        drop_slot(cx, &p, col(&row, 1)).await?;
    }
    for sql in ["ALTER SYSTEM SET primary_conninfo = ''", "ALTER SYSTEM SET primary_slot_name = ''", "SELECT pg_reload_conf()"] {
        conn.run(sql).await?;
    }
    remove_password(cx, db).await?;
    Ok(true)
}
