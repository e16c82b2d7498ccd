//! How replication stands, and why it has stopped.

use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Result, Value};

use super::client::{Conn, Texts, col};
use super::data::admin;
use super::delayed::held;
use super::sql::lit;
use super::state::Lsn;
use crate::db::driver::{Db, ReplicationError, Status};

/// Why a standby does not stream, in the server's words; `None` when it streams or will.
pub(super) async fn broken(cx: &Cx, conn: &Conn) -> Result<Option<ReplicationError>> {
    let row = conn.row(
            "SELECT (SELECT status FROM pg_stat_wal_receiver), current_setting('runbook.primary', true), current_setting('primary_slot_name'), \
             coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())",
        ).await?;
    if col(&row, 0) == "streaming" || col(&row, 1).is_empty() {
        return Ok(None);
    }
    let primary = Db::find(cx, col(&row, 1))?;
    let p = match admin(cx, &primary).await {
        Ok((p, _)) => p,
        Err(e) if e.code == Code::ABORTED => return Err(e),
        Err(e) => {
            return Ok(Some(ReplicationError { code: e.code.to_string(), text: format!("the primary cannot be asked: {}", e.message) }));
        }
    };
    let slot = col(&row, 2);
    let state = p.texts(&format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = {}", lit(slot))).await?;
    let gone = |code: &str, text: String| Ok(Some(ReplicationError { code: code.into(), text }));
    match state.first() {
        None if !slot.is_empty() => gone("42704", format!("replication slot \"{slot}\" does not exist")),
        Some(r) if col(r, 0) == "lost" => {
            let segment = p.text(&format!("SELECT pg_walfile_name({}::pg_lsn)", lit(col(&row, 3)))).await?.unwrap_or_default();
            gone("58P01", format!("requested WAL segment {segment} has already been removed (the slot \"{slot}\" has lost it)"))
        }
        _ => Ok(None),
    }
}

/// A time in seconds as the server writes it; `None` for none, or one that is below zero.
pub(super) fn seconds(text: &str) -> Option<Duration> {
    text.parse::<f64>().ok().filter(|s| *s >= 0.0).map(Duration::from_secs_f64)
}

/// How replication stands.
pub(super) async fn status(cx: &Cx, db: &Db) -> Result<Status> {
    let (conn, node) = admin(cx, db).await?;
    let maps = |rows: Vec<Texts>, keys: &[&str]| {
        Value::List(
            rows.iter().map(|r| Value::Map(keys.iter().enumerate().map(|(i, k)| ((*k).to_string(), col(r, i).into())).collect())).collect(),
        )
    };
    let read_only = node.in_recovery || node.defaults.get("default_transaction_read_only").map(String::as_str) == Some("on");
    let mut s = Status {
        behind_unit: "bytes",
        read_only,
        position: node.lsn.to_string(),
        role: "alone".into(),
        running: true,
        ..Status::default()
    };
    let slots = conn.texts("SELECT slot_name, active::text, wal_status, restart_lsn FROM pg_replication_slots ORDER BY 1").await?;
    s.detail.insert("slots".into(), maps(slots, &["name", "active", "wal_status", "restart_lsn"]));
    if let Some(mark) = &node.replica {
        return Box::pin(super::subscribed::status(cx, db, &conn, &node, mark, s)).await;
    }
    if !node.in_recovery {
        let all = conn
            .texts("SELECT application_name, state, sync_state, pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn), client_addr FROM pg_stat_replication ORDER BY 1")
            .await?;
        if !all.is_empty() {
            s.role = "primary".into();
        }
        s.detail.insert("standbys".into(), maps(all, &["name", "state", "sync", "behind", "address"]));
        return Ok(s);
    }
    s.role = "replica".into();
    let row = conn.row(
            "SELECT r.status, r.sender_host || ':' || r.sender_port, pg_wal_lsn_diff(r.latest_end_lsn, pg_last_wal_replay_lsn()), \
             CASE WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0 ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END, \
             current_setting('runbook.primary', true), pg_get_wal_replay_pause_state(), \
             (SELECT sum(confl_tablespace + confl_lock + confl_snapshot + confl_bufferpin + confl_deadlock) FROM pg_stat_database_conflicts), \
             coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) \
             FROM (SELECT 1) one LEFT JOIN pg_stat_wal_receiver r ON true",
        ).await?;
    s.running = col(&row, 0) == "streaming" && col(&row, 5) == "not paused";
    s.source = Some(col(&row, 1)).filter(|t| !t.is_empty()).or(Some(col(&row, 4)).filter(|t| !t.is_empty())).map(str::to_string);
    s.behind = col(&row, 2).parse::<i64>().ok().map(|n| u64::try_from(n).unwrap_or(0));
    s.lag = seconds(col(&row, 3));
    for (key, i) in [("receiver", 0), ("replay", 5), ("conflicts", 6), ("received", 7)] {
        s.detail.insert(key.into(), col(&row, i).into());
    }
    let held = held(&conn).await?;
    s.running |= held.waits && !held.paused;
    s.detail.insert("delay".into(), Value::Duration(held.delay));
    if let Some(to) = held.rolled {
        s.detail.insert("rolled_forward".into(), to.into());
    }
    if !s.running {
        s.error = broken(cx, &conn).await?;
        // Nobody knows how much there is that it has not received.
        (s.behind, s.lag) = (None, None);
        if let Some(primary) = Some(col(&row, 4)).filter(|t| !t.is_empty())
            && let Ok((_, p)) = admin(cx, &Db::find(cx, primary)?).await
        {
            s.behind = Some(p.lsn.0.saturating_sub(node.lsn.0));
        }
    }
    Ok(s)
}

/// How much of the log a standby lacks up to a position; `None` when it has it.
pub(super) async fn lacks(conn: &Conn, until: Lsn) -> Result<Option<u64>> {
    let now = conn.text("SELECT pg_last_wal_replay_lsn()").await?.and_then(|t| Lsn::parse(&t)).unwrap_or_default();
    Ok((now < until).then(|| until.0 - now.0))
}
