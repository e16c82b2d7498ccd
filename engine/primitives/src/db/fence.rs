//! `fence`, `unfence`, `wait_caught_up`.

use std::time::Duration;

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Reconciled, Registry};
use runbook_core::units::show_duration;
use runbook_core::{Call, Code, Effect, Error, Result, Spec, Ty, TypeSpec, Value};

use super::driver::{Caught, Db, Fence as Proof};
use super::method;

/// How long writers may take to end their transactions unless the script says otherwise.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn register(r: &mut Registry) {
    r.add(Fence(
        method(
            "fence",
            Effect::Once,
            "Stops every write on this database and proves it by writes that are refused.\n\nWriters in mid-transaction are waited for; those \
             that come later are refused. The fence outlives restarts and holds until `unfence`. The result is the only thing that `promote` and `wait_caught_up` take. A fence that another action left is taken \
             over, and that one's result no longer counts.\n\nSQLite: what is refused \
             sees an error that begins with `fenced by runbook`; reading goes on; a database with virtual tables (full-text indexes) is \
             refused by name. MariaDB and MySQL: the server is read-only, for every schema; reading goes on; accounts that may write even \
             so lose that privilege until `unfence`. PostgreSQL: nobody but super-users can connect to the database, and their sessions \
             and the log are searched for writes; ordinary users cannot read either.",
        )
        .option("within", Ty::Duration, "How long to wait for writers to end their transactions; 30s unless given.")
        .returns(Ty::Record("Fence"))
        .example("let fence = database(\"shop_old\").fence();")
        .errors(&[Code::DB_CONNECT, Code::DB_FENCE, Code::DB_NOT_FENCED, Code::DB_HELPER]),
    ));
    r.add(Unfence(
        method(
            "unfence",
            Effect::Converge,
            "Lets writes through again: the undo of `fence`.\n\nRefused while a copy is promoted under the fence, since both would take \
             writes. Nothing is done when there is no fence.",
        )
        .option("force", Ty::Bool, "Lift it even so, and abandon the promoted copy.")
        .example("database(\"shop_old\").unfence();")
        .errors(&[Code::DB_CONNECT, Code::DB_NOT_FENCED, Code::DB_HELPER]),
    ));
    r.add(WaitCaughtUp(
        method(
            "wait_caught_up",
            Effect::Read,
            "Waits until this copy has everything that the fenced database has.\n\nFails at once where waiting cannot help: a SQLite copy gets \
             newer by `copy_from` only, and replication that has stopped on an error is told in the server's words.",
        )
        .arg("fence", Ty::Record("Fence"), "What `fence` returned.")
        .option("within", Ty::Duration, "How long to wait; 2m unless given.")
        .example("database(\"shop_new\").wait_caught_up(database(\"shop_old\").fence(), #{ within: \"30s\" });")
        .errors(&[Code::DB_CONNECT, Code::DB_BEHIND, Code::DB_REPLICATION, Code::DB_NOT_FENCED, Code::DB_HELPER]),
    ));
    r.add_type(
        TypeSpec::new("Fence", "A fence that was proven by refused writes; only `fence` makes one.")
            .field("id", Ty::Str, "Its id: the action that put it up.")
            .field("database", Ty::Str, "The fenced database.")
            .field("time", Ty::Time, "Since when.")
            .field("position", Ty::Map(Box::new(Ty::Any)), "What a copy must have reached.")
            .field("proven", Ty::Bool, "Always true."),
    );
}

struct Fence(Spec);

impl Fence {
    async fn raise(cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        let within = call.opt_duration("within").unwrap_or(PATIENCE);
        let (fence, taken_over) = db.driver(cx)?.fence(cx, &db, within).await?;
        let outcome = Outcome::changed(fence.record());
        Ok(match taken_over {
            Some(old) => outcome.note(format!("took over the fence {old}, which no longer counts")),
            None => outcome,
        })
    }
}

#[async_trait]
impl Primitive for Fence {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        Fence::raise(cx, call).await
    }
    async fn reconcile(&self, cx: &Cx, call: &Call) -> Result<Reconciled> {
        let db = Db::receiver(cx, call)?;
        if !db.driver(cx)?.fenced(cx, &db).await? {
            return Ok(Reconciled::NotStarted);
        }
        // It stands, and nothing has been written since: proving it and reading its position give what they would have given then.
        Fence::raise(cx, call).await.map(Reconciled::Done)
    }
}

struct Unfence(Spec);

#[async_trait]
impl Primitive for Unfence {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        let lifted = db.driver(cx)?.unfence(cx, &db, call.opt_bool("force")).await?;
        Ok(Outcome::done(lifted, "there is no fence"))
    }
}

struct WaitCaughtUp(Spec);

#[async_trait]
impl Primitive for WaitCaughtUp {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        let fence = Proof::from_record(call.arg(0))?;
        let within = call.opt_duration("within").unwrap_or(Duration::from_secs(120));
        let driver = db.driver(cx)?;
        let begun = tokio::time::Instant::now();
        // Short at first: in a switch, users wait for this.
        let mut pause = Duration::from_millis(10);
        loop {
            let (missing, may_pass) = match driver.caught_up(cx, &db, &fence).await? {
                Caught::Up => return Ok(Value::Unit.into()),
                Caught::Behind { missing, may_pass } => (missing, may_pass),
            };
            if !may_pass || begun.elapsed() >= within {
                let waited = if may_pass { format!(" after {}", show_duration(within)) } else { String::new() };
                return Err(Error::new(Code::DB_BEHIND, format!("\"{}\" does not have everything{waited}: {missing}", db.name))
                    .hint(if may_pass { "look at its replication, or wait longer" } else { "run copy_from after fence, and wait then" })
                    .host(db.host.clone()));
            }
            cx.sleep(pause).await?;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }
}
