//! Promoting a copy and taking it back: the parts that happen on the copy's own file, each in one transaction.

use std::path::Path;
use std::time::Duration;

use runbook_core::{Code, Error, Result};
use rusqlite::TransactionBehavior;

use super::open::{self, sql};
use super::{digest, guard, state};
use crate::db::sqlite::proto::{CopyRow, Digest, PromotedRow, State};

/// What refused writers on an unpromoted copy see.
pub const COPY_REFUSAL: &str = "this is a copy that is not promoted";

/// Makes a copy writable, when it is the one that was taken under this fence and still has just that content. Checked and done
/// in one transaction, so that a crash leaves it either protected or promoted.
///
/// # Errors
/// `RB0505` when this is not such a copy, `RB0506` when it lacks something.
pub fn promote(path: &Path, fence: &str, stamp: &str, action: &str, time: &str) -> Result<bool> {
    let mut conn = open::write(path)?;
    let err = sql(path, "promote");
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&err)?;
    let copy =
        state::copy(&tx, path)?.ok_or_else(|| Error::new(Code::DB_COPY, format!("{} is not a copy made by copy_from", path.display())))?;
    match state::promoted(&tx, path)? {
        Some(p) if p.fence == fence => return Ok(false),
        Some(p) => {
            return Err(Error::new(Code::DB_NOT_FENCED, format!("{} was promoted under another fence, {}", path.display(), p.fence)));
        }
        None => {}
    }
    let behind = |why: &str| {
        Error::new(Code::DB_BEHIND, format!("{} {why}", path.display())).hint("run copy_from again under the fence, then promote")
    };
    if copy.fence.as_deref() != Some(fence) {
        return Err(behind("was copied before the fence stood"));
    }
    if digest::digest(&tx, path, true)?.stamp() != stamp {
        return Err(behind("does not have the content that was fenced"));
    }
    guard::remove(&tx, path)?;
    state::set_promoted(&tx, path, &PromotedRow { action: action.into(), fence: fence.into(), stamp: stamp.into(), time: time.into() })?;
    tx.commit().map_err(&err)?;
    Ok(true)
}

/// Stops writes on a copy, promoted or not, and proves it; gives its state and its content. The promotion's mark stays until
/// [`become_copy`], so that a crash in between is seen.
///
/// # Errors
/// `RB0503` when writes are not refused.
pub fn hold(path: &Path, within: Duration) -> Result<(State, Digest)> {
    let mut conn = open::write(path)?;
    let err = sql(path, "stop the writes on");
    open::patience(&mut conn, within).map_err(&err)?;
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&err)?;
    if state::copy(&tx, path)?.is_none() {
        return Err(Error::new(Code::DB_COPY, format!("{} is not a copy made by copy_from", path.display())));
    }
    if !guard::missing(&tx, path)?.is_empty() {
        guard::install(&tx, path, COPY_REFUSAL)?;
    }
    tx.commit().map_err(&err)?;
    let leaks = guard::prove(path)?;
    if !leaks.is_empty() {
        return Err(Error::new(Code::DB_NOT_FENCED, format!("writes on {} are not refused: {}", path.display(), leaks.join("; "))));
    }
    let read = open::read(path)?;
    let digest = digest::digest(&read, path, true)?;
    Ok((state::state(path)?, digest))
}

/// Makes a held, promoted copy a plain copy again.
///
/// # Errors
/// `RB0505` when its content is not the one given, or when it is not protected.
pub fn become_copy(path: &Path, fence: Option<String>, stamp: &str, time: &str) -> Result<bool> {
    let mut conn = open::write(path)?;
    let err = sql(path, "demote");
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&err)?;
    let Some(copy) = state::copy(&tx, path)? else {
        return Err(Error::new(Code::DB_COPY, format!("{} is not a copy made by copy_from", path.display())));
    };
    let was = state::promoted(&tx, path)?.is_some();
    if !guard::missing(&tx, path)?.is_empty() || digest::digest(&tx, path, true)?.stamp() != stamp {
        return Err(Error::new(Code::DB_COPY, format!("{} was written to while it was being taken back", path.display()))
            .hint("run the rollback again: it copies those rows back as well")
            .retryable(true));
    }
    state::drop_table(&tx, path, state::PROMOTED)?;
    // A fence on the promoted copy itself, if it had one, is over with the promotion; its protection stays, as that of a copy.
    state::drop_table(&tx, path, state::FENCE)?;
    guard::install(&tx, path, COPY_REFUSAL)?;
    state::set_copy(&tx, path, &CopyRow { origin: copy.origin, stamp: stamp.into(), fence, time: time.into() })?;
    tx.commit().map_err(&err)?;
    Ok(was)
}
