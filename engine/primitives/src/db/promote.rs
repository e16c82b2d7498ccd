//! `promote` and `demote`.

use std::time::Duration;

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Reconciled, Registry};
use runbook_core::{Call, Code, Effect, Result, Spec, Ty};

use super::driver::{Db, Fence, Switched};
use super::{DATABASE, method};

pub(super) fn register(r: &mut Registry) {
    r.add(Promote(
        method(
            "promote",
            Effect::Once,
            "Makes this copy the database that takes the writes.\n\nOnly with a fence that `fence` returned, and only when the fenced database \
             itself confirms, now, that this very fence still stands and refuses writes, and this copy has everything it had.",
        )
        .arg("fence", Ty::Record("Fence"), "What `fence` returned for the database that took the writes so far.")
        .example("database(\"shop_new\").promote(database(\"shop_old\").fence());")
        .errors(&[Code::DB_CONNECT, Code::DB_NOT_FENCED, Code::DB_BEHIND, Code::DB_COPY, Code::DB_HELPER]),
    ));
    r.add(Demote(
        method(
            "demote",
            Effect::Converge,
            "Takes a promotion back: the undo of `promote`.\n\nWrites here are stopped. Rows that came since the promotion are copied back into \
             the other database, which stays fenced, and both are compared. Then this is a write-protected copy again. Safe also when \
             `promote` had only begun or never happened.\n\nSQLite copies the rows back; MariaDB and MySQL let the other side replicate them; PostgreSQL rewinds \
             the other side (`pg_rewind`) or copies it anew, and it follows until it has everything. The last takes as long as the copy. \
             After a logical replica of PostgreSQL took over, there is a way back only where `replicate_from` was told `way_back`; it ends replication.",
        )
        .arg("other", Ty::Record(DATABASE), "The database that took the writes before.")
        .option("within", Ty::Duration, "How long to wait for writers to end their transactions; 30s unless given.")
        .example("database(\"shop_new\").demote(database(\"shop_old\"));")
        .errors(&[Code::DB_CONNECT, Code::DB_NOT_FENCED, Code::DB_DIFFERS, Code::DB_COPY, Code::DB_HELPER]),
    ));
}

fn outcome(s: Switched) -> Outcome {
    if s.changed { Outcome::changed(()).note(s.note) } else { Outcome::unchanged((), s.note) }
}

struct Promote(Spec);

#[async_trait]
impl Primitive for Promote {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let fence = Fence::from_record(call.arg(0))?;
        let (db, source) = Db::receiver(cx, call)?.pair(Db::find(cx, &fence.database)?)?;
        db.driver(cx)?.promote(cx, &db, &source, &fence).await.map(outcome)
    }
    async fn reconcile(&self, cx: &Cx, call: &Call) -> Result<Reconciled> {
        let fence = Fence::from_record(call.arg(0))?;
        let (db, source) = Db::receiver(cx, call)?.pair(Db::find(cx, &fence.database)?)?;
        let driver = db.driver(cx)?;
        // Writable and marked in one transaction. What comes before it (the note on the fenced side) may be repeated.
        Ok(if driver.promoted(cx, &db).await? {
            // What comes after it is no condition of the switch, and is made up for: promoted again under the same fence, it does that alone.
            if let Err(e) = driver.promote(cx, &db, &source, &fence).await {
                cx.message(format!("what \"{}\" needed of \"{}\" may still be there: {}", db.name, source.name, e.message));
            }
            Reconciled::Done(outcome(Switched { changed: true, note: format!("\"{}\" takes the writes", db.name) }))
        } else {
            Reconciled::NotStarted
        })
    }
}

struct Demote(Spec);

#[async_trait]
impl Primitive for Demote {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (db, other) = Db::receiver(cx, call)?.pair(Db::argument(cx, call, 0)?)?;
        let within = call.opt_duration("within").unwrap_or(Duration::from_secs(30));
        db.driver(cx)?.demote(cx, &db, &other, within).await.map(outcome)
    }
}
