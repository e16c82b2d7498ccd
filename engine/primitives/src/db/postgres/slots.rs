//! The replication slots that standbys have on their primaries.

use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::client::{Conn, col};
use super::sql::{ident, lit};
use crate::db::driver::Db;

/// The slot (and name) of a standby on its primary.
pub(super) fn slot(db: &Db) -> String {
    let name: String = db.name.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("runbook_{name}").chars().take(63).collect()
}

/// Makes the slot unless it is there.
pub(super) async fn ensure_slot(conn: &Conn, name: &str) -> Result<()> {
    let there = conn.texts(&format!("SELECT wal_status, active_pid FROM pg_replication_slots WHERE slot_name = {}", lit(name))).await?;
    match there.first() {
        Some(row) if col(row, 0) != "lost" => Ok(()),
        Some(_) => {
            conn.run(&format!("SELECT pg_drop_replication_slot({0}); SELECT pg_create_physical_replication_slot({0}, true)", lit(name)))
                .await
        }
        None => conn.run(&format!("SELECT pg_create_physical_replication_slot({}, true)", lit(name))).await,
    }
}

/// Sees that nobody uses a slot.
pub(super) async fn free_slot(cx: &Cx, conn: &Conn, name: &str) -> Result<()> {
    for _ in 0..100 {
        let sql = format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = {} AND active_pid IS NOT NULL",
            lit(name)
        );
        if conn.texts(&sql).await?.is_empty() {
            return Ok(());
        }
        cx.sleep(Duration::from_millis(100)).await?;
    }
    Err(Error::new(Code::DB_REPLICATION, format!("the slot {name} is in use by another standby"))
        .hint("see pg_replication_slots on the primary"))
}

/// Drops a slot when nobody uses it any more.
pub(super) async fn drop_slot(cx: &Cx, conn: &Conn, name: &str) -> Result<()> {
    let (began, mut pause) = (tokio::time::Instant::now(), Duration::from_millis(3));
    while began.elapsed() < Duration::from_secs(10) {
        let row = conn.texts(&format!("SELECT coalesce(active_pid, 0) FROM pg_replication_slots WHERE slot_name = {}", lit(name))).await?;
        match row.first().map(|r| col(r, 0)) {
            None => return Ok(()),
            Some("0") => return conn.run(&format!("SELECT pg_drop_replication_slot({})", lit(name))).await,
            Some(_) => cx.sleep(pause).await?,
        }
        pause = (pause * 2).min(Duration::from_millis(100));
    }
    Err(Error::new(Code::DB_REPLICATION, format!("the slot {name} is still in use")).retryable(true))
}

/// Drops slot and publication of this name: what a database follows by whose [`slot`] it is, or would have.
pub(super) async fn drop_published(cx: &Cx, conn: &Conn, name: &str) -> Result<()> {
    drop_slot(cx, conn, name).await?;
    conn.run(&format!("DROP PUBLICATION IF EXISTS {}", ident(name))).await
}
