//! The lock of an environment: a lease with a fencing number that only ever grows, also across releases.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::SqliteStore;
use super::commit::{Writer, fenced_off};
use super::errors::{damaged, sql};
use crate::error::{Error, Result};
use crate::journal::{Acquired, Holder, Operator};

impl SqliteStore {
    pub(super) fn take_lock(
        &self,
        environment: &str,
        run: &str,
        operator: &Operator,
        until: Timestamp,
        over: Option<i64>,
    ) -> Result<Acquired> {
        let text = serde_json::to_string(operator).map_err(|e| Error::internal(format!("an operator cannot be written: {e}")))?;
        self.write("taking the environment's lock", |w| {
            let (last, holder) = self.lock_holder(&w.conn, environment)?;
            if let Some(holder) = holder {
                let ours = holder.run == run && same_process(&holder.operator, operator);
                if !ours && over != Some(holder.fence) {
                    return Ok(Acquired::Held(holder));
                }
            }
            let fence = last + 1;
            w.conn
                .prepare_cached(
                    "INSERT INTO locks (environment, fence, run, operator, until) VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT DO UPDATE SET fence = excluded.fence, run = excluded.run, operator = excluded.operator, until = excluded.until",
                )
                .and_then(|mut s| s.execute(params![environment, fence, run, text, until.to_string()]))
                .map_err(|e| sql(&self.path, "taking the environment's lock", &e))?;
            w.locks.remove(environment);
            Ok(Acquired::Yes(fence))
        })
    }

    pub(super) fn renew_lock(&self, environment: &str, fence: i64, until: Timestamp) -> Result<()> {
        self.write("renewing the lease", |w| {
            let changed = w
                .conn
                .prepare_cached("UPDATE locks SET until = ?3 WHERE environment = ?1 AND fence = ?2 AND run IS NOT NULL")
                .and_then(|mut s| s.execute(params![environment, fence, until.to_string()]))
                .map_err(|e| sql(&self.path, "renewing the lease", &e))?;
            if changed == 0 {
                let (_, holder) = self.lock_holder(&w.conn, environment)?;
                return Err(match holder {
                    Some(h) => fenced_off(&h.run, fence, Some((h.fence, &h.run))),
                    None => fenced_off(&format!("on {environment}"), fence, None),
                });
            }
            Ok(())
        })
    }

    pub(super) fn release_lock(&self, environment: &str, fence: i64) -> Result<()> {
        self.write("giving the lock back", |w: &mut Writer| {
            w.locks.remove(environment);
            // The row stays, so that the next fence is greater than this one.
            w.conn
                .prepare_cached("UPDATE locks SET run = NULL, operator = NULL, until = NULL WHERE environment = ?1 AND fence = ?2")
                .and_then(|mut s| s.execute(params![environment, fence]))
                .map_err(|e| sql(&self.path, "giving the lock back", &e))?;
            Ok(())
        })
    }

    /// The last fence given out (0 when there was none) and who holds the lock.
    pub(super) fn lock_holder(&self, conn: &Connection, environment: &str) -> Result<(i64, Option<Holder>)> {
        type Row = (i64, Option<String>, Option<String>, Option<String>);
        let row: Option<Row> = conn
            .prepare_cached("SELECT fence, run, operator, until FROM locks WHERE environment = ?1")
            .and_then(|mut s| s.query_row([environment], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?))).optional())
            .map_err(|e| sql(&self.path, "reading the lock", &e))?;
        let bad = |what: &str| damaged(&self.path, format!("the lock of environment {environment} cannot be read: {what}"));
        match row {
            None => Ok((0, None)),
            Some((fence, Some(run), Some(operator), Some(until))) => {
                let operator = serde_json::from_str(&operator).map_err(|e| bad(&e.to_string()))?;
                let until = until.parse().map_err(|_| bad("its end is no time"))?;
                Ok((fence, Some(Holder { run, operator, fence, until })))
            }
            Some((fence, None, ..)) => Ok((fence, None)),
            Some(_) => Err(bad("it is not complete")),
        }
    }
}

/// Whether two operators are one process: same machine, boot, process id and start.
fn same_process(a: &Operator, b: &Operator) -> bool {
    (&a.host, &a.boot, a.pid, a.pid_start) == (&b.host, &b.boot, b.pid, b.pid_start)
}
