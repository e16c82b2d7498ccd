//! Where recovery ends, just before a commit or behind the last one: for standbys that are rolled forward (`delayed`) and clusters that are recovered (`recover`).

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::time::Instant;

use super::client::{Conn, col};
use super::cluster::Cluster;
use super::sql::lit;
use super::state::Lsn;
use super::wal::{Commit, Log, Wanted};
use crate::db::driver::{Before, Db};

/// Every setting that says where recovery ends.
const TARGETS: [&str; 5] =
    ["recovery_target", "recovery_target_lsn", "recovery_target_time", "recovery_target_name", "recovery_target_xid"];

/// Where recovery ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Before the first record at this place or behind it: one must come.
    Before(Lsn),
    /// Right behind the record at this place: none need come after it.
    Behind(Lsn),
    /// Right behind the end of the base backup.
    Consistent,
}

/// The settings by which recovery ends there, and stays there.
pub(super) fn lines(stop: Stop) -> Vec<(&'static str, Option<String>)> {
    let (name, value, inclusive) = match stop {
        Stop::Before(at) => ("recovery_target_lsn", at.to_string(), "off"),
        Stop::Behind(at) => ("recovery_target_lsn", at.to_string(), "on"),
        Stop::Consistent => ("recovery_target", "immediate".to_string(), "on"),
    };
    // The last target of all that is set counts: the others are emptied before it.
    let mut lines: Vec<(&str, Option<String>)> = TARGETS.iter().filter(|t| **t != name).map(|t| (*t, Some(String::new()))).collect();
    lines.extend([
        (name, Some(value)),
        ("recovery_target_inclusive", Some(inclusive.into())),
        ("recovery_target_action", Some("pause".into())),
    ]);
    lines
}

/// The settings by which it ends nowhere.
pub(super) fn none() -> Vec<(&'static str, Option<String>)> {
    TARGETS.iter().chain(&["recovery_target_inclusive", "recovery_target_action"]).map(|t| (*t, None)).collect()
}

/// Reads the argument; `else_` is what else may be given. A moment that has not come is `refused`.
pub(super) fn wanted(before: &Before, now: Timestamp, else_: &str, refused: impl Fn(String) -> Error) -> Result<Wanted> {
    Ok(match before {
        Before::Time(t) if *t > now => {
            return Err(refused(format!("{t} has not come yet")).hint("give the moment of the first change that must not be applied"));
        }
        Before::Time(t) => Wanted::Time(*t),
        Before::Position(p) => Wanted::Lsn(Lsn::parse(p).ok_or_else(|| {
            Error::new(Code::DB_POSITION, format!("\"{p}\" is no position of a PostgreSQL server"))
                .hint(format!("give a position in the write-ahead log (16/B374D848), or a moment (2026-11-21T14:03:00Z){else_}"))
        })?),
    })
}

/// When the last transaction was made that was applied.
pub(super) const APPLIED: &str = "to_char(pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";

/// Up to where it has applied the log, and whether it is in recovery.
pub(super) async fn stands(conn: &Conn) -> Result<(Lsn, bool)> {
    let row = conn.row("SELECT pg_last_wal_replay_lsn(), pg_is_in_recovery()::text").await?;
    Ok((Lsn::parse(col(&row, 0)).unwrap_or_default(), col(&row, 1) == "true"))
}

/// Whether it has stopped applying.
pub(super) async fn paused(conn: &Conn) -> Result<bool> {
    Ok(conn.text("SELECT pg_get_wal_replay_pause_state()").await?.as_deref() == Some("paused"))
}

/// Starts it (again), and waits until it has stopped applying where it should.
pub(super) async fn restart(cx: &Cx, db: &Db, cluster: &Cluster<'_>, stop: Lsn) -> Result<Conn> {
    cluster.stop().await?;
    let (conn, _) = cluster.start().await?;
    let (mut last, mut since) = (Lsn::default(), Instant::now());
    loop {
        let row = match conn.row("SELECT pg_get_wal_replay_pause_state(), pg_last_wal_replay_lsn(), pg_is_in_recovery()::text").await {
            Err(e) if e.retryable && cluster.settled().await?.is_none() => {
                return Err(cluster.ended(&format!("has ended while it was brought from {last} to {stop}")).await);
            }
            row => row?,
        };
        let now = Lsn::parse(col(&row, 1)).unwrap_or_default();
        if col(&row, 0) == "paused" || col(&row, 2) != "true" {
            return Ok(conn);
        }
        if now != last {
            (last, since) = (now, Instant::now());
        } else if since.elapsed() > Duration::from_secs(60) {
            return Err(Error::new(Code::DB_REPLICATION, format!("\"{}\" does not go on from {now} to {stop}", db.name))
                .hint("look at its log; do it again when that is mended")
                .host(&db.host)
                .retryable(true));
        }
        cx.progress(format!("bringing {} forward", db.name), now.0, Some(stop.0), "bytes of the log");
        cx.sleep(Duration::from_millis(100)).await?;
    }
}

/// What a transaction does, as far as the log tells; the first 200 characters.
pub(super) async fn describe(cluster: &Cluster<'_>, conn: &Conn, oid: &str, log: &Log, target: &Commit) -> Result<String> {
    let range = (log.from, Lsn(target.lsn.0 + 1));
    let rows = cluster.written(&log.folder, oid, log.timeline, range, Some(&target.xid)).await?.unwrap_or_default();
    let prefix = format!("base/{oid}/");
    let dropped: Vec<String> = target.files.iter().filter_map(|f| f.strip_prefix(&prefix)).map(str::to_string).collect();
    let names = names(conn, rows.keys().cloned().chain(dropped.iter().cloned())).await?;
    let mut parts = Vec::new();
    for file in &dropped {
        if let Some(name) = names.get(file) {
            parts.push(format!("drops or empties {name}"));
        }
    }
    for (file, n) in rows {
        if let Some(name) = names.get(&file).filter(|_| !dropped.contains(&file)) {
            parts.push(format!("changes {n} rows of {name}"));
        }
    }
    let what = if parts.is_empty() { "changes nothing that can be named".to_string() } else { parts.join(", ") };
    Ok(format!("transaction {}: {what}", target.xid).chars().take(200).collect())
}

/// The users' tables that have these files.
async fn names(conn: &Conn, files: impl Iterator<Item = String>) -> Result<BTreeMap<String, String>> {
    let list: Vec<String> = files.filter(|f| f.parse::<u32>().is_ok()).map(|f| lit(&f)).collect();
    if list.is_empty() {
        return Ok(BTreeMap::new());
    }
    let sql = format!(
        "SELECT f, c.oid::regclass FROM unnest(ARRAY[{}]::text[]) f, pg_class c WHERE c.oid = pg_filenode_relation(0, f::oid) \
         AND c.oid >= 16384 AND c.relkind IN ('r', 'm')",
        list.join(",")
    );
    Ok(conn.texts(&sql).await?.iter().map(|r| (col(r, 0).to_string(), col(r, 1).to_string())).collect())
}

/// Tables that nobody can read on a standby, since a transaction that was not applied to its end locks them.
async fn locked(conn: &Conn) -> Result<String> {
    let sql = "SELECT string_agg(DISTINCT c.oid::regclass::text, ', ') FROM pg_locks l JOIN pg_class c ON c.oid = l.relation \
               WHERE l.mode = 'AccessExclusiveLock' AND l.granted AND c.relkind IN ('r', 'm', 'p') \
               AND l.pid = (SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup') \
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    Ok(conn.text(sql).await?.unwrap_or_default())
}

/// Says which tables cannot be read there for that reason.
pub(super) async fn warn_locked(cx: &Cx, db: &Db, conn: &Conn, way_out: &str) -> Result<()> {
    let locked = locked(conn).await?;
    if !locked.is_empty() {
        cx.message(format!("\"{}\": a transaction that was not applied to its end has begun, and locks {locked}; {way_out}", db.name));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_those_of_the_server() {
        let wanted = |before| wanted(&before, Timestamp::UNIX_EPOCH, "", Error::internal);
        assert_eq!(wanted(Before::Position("16/B374D848".into())).unwrap(), Wanted::Lsn(Lsn(0x16_B374_D848)));
        let e = wanted(Before::Position("0-1-4711".into())).unwrap_err();
        assert!(e.code == Code::DB_POSITION && e.message.contains("is no position"), "{e}");
    }
}
