//! The fence: put up, proven, checked again, handed over, taken down.
//!
//! Triggers and fence row appear in one transaction, so a crash leaves either no fence or a whole one. The proof and the content's
//! stamp come after it and can be repeated: nothing changes under a fence.

use std::path::Path;
use std::time::Duration;

use runbook_core::{Code, Error, Result};
use rusqlite::{Transaction, TransactionBehavior};

use super::open::{self, sql};
use super::{digest, guard, state};
use crate::db::sqlite::proto::{Digest, FenceRow, Fenced};

/// Stops writes and proves it. A fence that another action left is taken over: this one is now the one that counts.
///
/// # Errors
/// `RB0502` when the database cannot be fenced, `RB0503` when writes are not refused.
pub fn fence(path: &Path, id: &str, name: &str, time: &str, within: Duration) -> Result<Fenced> {
    let mut conn = open::write(path)?;
    let waited = |e: rusqlite::Error| {
        let mut e = open::explain(path, "fence", &e);
        e.code = Code::DB_FENCE;
        e
    };
    open::patience(&mut conn, within).map_err(waited)?;
    // The write lock: every writer has committed or gone, and the next one will see the triggers.
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(waited)?;
    let virtual_tables = guard::unguardable(&tx, path)?;
    if !virtual_tables.is_empty() {
        let list = virtual_tables.join(", ");
        return Err(Error::new(Code::DB_FENCE, format!("{} has virtual tables, whose rows cannot be protected: {list}", path.display()))
            .hint("drop them for the move (a full-text index can be built again on the new side)"));
    }
    if state::copy(&tx, path)?.is_some() && state::promoted(&tx, path)?.is_none() {
        return Err(Error::new(Code::DB_FENCE, format!("{} is a copy that is not promoted: nothing writes to it", path.display()))
            .hint("fence the database that takes the writes"));
    }
    let before = state::fence(&tx, path)?;
    if let Some(FenceRow { handed_to: Some(to), id: old, .. }) = before.as_ref().filter(|f| f.id != id) {
        return Err(Error::new(Code::DB_FENCE, format!("{} handed over to \"{to}\" under the fence {old}", path.display()))
            .hint(format!("writes go to \"{to}\" now; take it back with demote before fencing again")));
    }
    // A fence of this very action stays as it is: the copy may carry its id already.
    if before.as_ref().is_none_or(|f| f.id != id) || !guard::missing(&tx, path)?.is_empty() {
        guard::install(&tx, path, &format!("{name} is being moved (fence {id})"))?;
        let row = FenceRow { id: id.into(), time: time.into(), stamp: None, handed_to: None };
        if before.as_ref().is_none_or(|f| f.id != id) {
            state::set_fence(&tx, path, &row)?;
        }
    }
    tx.commit().map_err(waited)?;

    let mut fenced = check(path, id)?;
    if !fenced.leaks.is_empty() {
        // A fence that does not hold only gives false safety: take it down, so that the application goes on as before.
        lift(conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(waited)?, path)?;
        return Err(Error::new(Code::DB_NOT_FENCED, format!("writes on {} are not refused: {}", path.display(), fenced.leaks.join("; ")))
            .hint("the triggers were taken off again; mend the table named, or drop it for the move"));
    }
    let stamp = fenced.digest.stamp();
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(waited)?;
    if let Some(row) = &mut fenced.fence {
        row.stamp = Some(stamp);
        state::set_fence(&tx, path, row)?;
    }
    tx.commit().map_err(waited)?;
    fenced.taken_over = before.map(|f| f.id).filter(|old| old != id);
    Ok(fenced)
}

/// Whether this fence stands and holds: the writes are tried again, the content is read.
///
/// # Errors
/// `RB0500`, `RB0501`.
pub fn check(path: &Path, id: &str) -> Result<Fenced> {
    let conn = open::read(path)?;
    let row = state::fence(&conn, path)?;
    let (fence, other) = if row.as_ref().is_some_and(|f| f.id == id) { (row, None) } else { (None, row) };
    let leaks = if fence.is_some() { guard::prove(path)? } else { Vec::new() };
    // The content is read after the proof: what is read then stays.
    let digest: Digest = digest::digest(&conn, path, true)?;
    Ok(Fenced { fence, other, digest, leaks, taken_over: None })
}

/// Lets writes through again; false when there was no fence.
///
/// # Errors
/// `RB0503` when the copy was promoted under it, unless forced: both sides would take writes.
pub fn unfence(path: &Path, force: bool) -> Result<bool> {
    let mut conn = open::write(path)?;
    let err = sql(path, "unfence");
    // Nobody hands over between the look and the lifting.
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&err)?;
    let Some(row) = state::fence(&tx, path)? else { return Ok(false) };
    if let (Some(to), false) = (&row.handed_to, force) {
        return Err(Error::new(Code::DB_NOT_FENCED, format!("\"{to}\" was promoted under the fence of {}", path.display())).hint(format!(
            "with both open for writes, rows would go to either: take \"{to}\" back with demote first, or give #{{ force: true }} to abandon it"
        )));
    }
    lift(tx, path)?;
    Ok(true)
}

fn lift(tx: Transaction<'_>, path: &Path) -> Result<()> {
    guard::remove(&tx, path)?;
    state::drop_table(&tx, path, state::FENCE)?;
    tx.commit().map_err(sql(path, "unfence"))
}

/// Notes to whom the fenced side hands over; without a fence there is nothing to note.
///
/// # Errors
/// `RB0501`.
pub fn hand_over(path: &Path, to: Option<&str>) -> Result<bool> {
    let mut conn = open::write(path)?;
    let err = sql(path, "record the hand-over in");
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&err)?;
    let Some(mut row) = state::fence(&tx, path)? else { return Ok(false) };
    let changed = row.handed_to.as_deref() != to;
    row.handed_to = to.map(str::to_string);
    state::set_fence(&tx, path, &row)?;
    tx.commit().map_err(&err)?;
    Ok(changed)
}
