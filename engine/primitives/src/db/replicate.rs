//! `replicate_from`, `stop_replication`, `status`.

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::units::show_bytes;
use runbook_core::{Call, Code, Effect, Record, Result, Spec, Ty, TypeSpec, Value};

use super::copy::table_options;
use super::driver::{Db, Replicate};
use super::{DATABASE, method};
use crate::ssh;

/// As many connections to a host are used at once by a switch: for commands, and for the two sessions by which a fence is proven.
const AHEAD: usize = 3;

pub(super) fn register(r: &mut Registry) {
    r.add(ReplicateFrom(
        method(
            "replicate_from",
            Effect::Converge,
            "Makes this database a replica of another, from a consistent snapshot, while the other is in use.\n\nReturns when replication \
             runs. It is write-protected until `promote`. Nothing is done when it replicates from there already and without an error. \
             What is replaced must be empty, or what an earlier try left; anything else is refused by name.",
        )
        .arg("primary", Ty::Record(DATABASE), "The database to replicate.")
        .option("mode", Ty::Str, "MariaDB and MySQL: `gtid` (usual) or `position`, which copy rows; MariaDB: `physical`, which copies the files of the whole server by mariabackup. PostgreSQL: `physical` (the whole cluster; usual) or `logical` (one database, also to another major version).")
        .option("jobs", Ty::Int, "How many streams at once load the first copy of rows; chosen by the host's processors unless given.")
        .option("replace", Ty::Bool, "Removes what is in the way there.")
        .option("way_back", Ty::Bool, "PostgreSQL, `logical`: once this database is promoted, the other one follows it, so that `demote` has a way back. Everything else has one by itself. The promoted server keeps its log for that until `demote`, or `stop_replication` of the other one.")
        .returns(Ty::Record("Replication"))
        .example("database(\"shop_new\").replicate_from(database(\"shop_old\"), #{ jobs: 4 });")
        .errors(&[
            Code::DB_CONNECT,
            Code::DB_LOGIN,
            Code::DB_COPY,
            Code::DB_REPLICATION,
            Code::DB_SETTINGS,
            Code::DB_CANNOT,
            Code::HOST_TOOL_MISSING,
            Code::DISK_SPACE,
        ]),
    ));
    r.add_type(
        TypeSpec::new("Replication", "What `replicate_from` did.")
            .field("changed", Ty::Bool, "Whether anything had to be done.")
            .field("rows", Ty::Int, "Rows copied first.")
            .field("bytes", Ty::Bytes, "Bytes copied first.")
            .field("position", Ty::Str, "The position from which it replicates, in the server's own form."),
    );
    r.add(StopReplication(
        method(
            "stop_replication",
            Effect::Converge,
            "Ends replication into this database for good: the undo of `replicate_from`.\n\nWhat was made for it on the other side goes \
             too. The database stays as it is, write-protected. Refused when it was promoted. Nothing is done when it does not replicate.",
        )
        .example("database(\"shop_new\").stop_replication();")
        .errors(&[Code::DB_CONNECT, Code::DB_LOGIN, Code::DB_COPY, Code::DB_CANNOT]),
    ));
    r.add(Status(
        method(
            "status",
            Effect::Read,
            "Reads how replication stands.\n\nAn error on which replication has stopped is a field of the result, in the server's words. \
             `sql::require_lag_below` of `std/sql` throws instead.",
        )
        .returns(Ty::Record("ReplicationStatus"))
        .example("let s = database(\"shop_new\").status(); log(`${s.role}, ${s.lag} behind`);")
        .errors(&[Code::DB_CONNECT, Code::DB_LOGIN, Code::DB_QUERY, Code::DB_CANNOT]),
    ));
    let maybe = |t| Ty::OneOf(vec![t, Ty::Unit]);
    r.add_type(
        TypeSpec::new("ReplicationStatus", "How replication of a database stands.")
            .field("role", Ty::Str, "`primary` (others replicate from it), `replica` or `alone`.")
            .field("source", maybe(Ty::Str), "From where it replicates, as the server has it, or `()`.")
            .field("running", Ty::Bool, "Whether everything that replication needs runs.")
            .field("lag", maybe(Ty::Duration), "The age of the newest change that is not applied; `()` when the server cannot tell.")
            .field("behind", maybe(Ty::Int), "How much is not applied, in `behind_unit`; `()` when the server cannot tell.")
            .field("behind_unit", Ty::Str, "`bytes` or `transactions`.")
            .field("read_only", Ty::Bool, "Whether the server refuses writes of ordinary users.")
            .field("position", Ty::Str, "Where it stands, in the server's own form.")
            .field(
                "error",
                maybe(Ty::Map(Box::new(Ty::Any))),
                "Why replication has stopped: the server's `code` and `text`; `()` when it has not.",
            )
            .field("detail", Ty::Map(Box::new(Ty::Any)), "Further facts, in the server's own words."),
    );
}

struct ReplicateFrom(Spec);

#[async_trait]
impl Primitive for ReplicateFrom {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (db, primary) = Db::receiver(cx, call)?.pair(Db::argument(cx, call, 0)?)?;
        let options = Replicate {
            mode: call.opt_str("mode").map(str::to_string),
            jobs: table_options(call)?.jobs,
            replace: call.opt_bool("replace"),
            way_back: call.opt_bool("way_back"),
        };
        let done = db.driver(cx)?.replicate_from(cx, &db, &primary, &options).await?;
        // The switch to come opens new sessions on both sides while users are cut off.
        for host in [&primary.host, &db.host] {
            ssh::ready(cx, host, AHEAD).await;
        }
        let rows = i64::try_from(done.rows).unwrap_or(i64::MAX);
        let record = Record::new(
            "Replication",
            [
                ("changed", done.changed.into()),
                ("rows", rows.into()),
                ("bytes", Value::Bytes(done.bytes)),
                ("position", done.position.into()),
            ],
        );
        Ok(match (done.changed, done.note.is_empty()) {
            (true, true) => Outcome::changed(record).note(format!("{rows} rows, {}", show_bytes(done.bytes))),
            (true, false) => Outcome::changed(record).note(done.note),
            (false, _) => Outcome::unchanged(record, done.note),
        })
    }
}

struct StopReplication(Spec);

#[async_trait]
impl Primitive for StopReplication {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        let stopped = db.driver(cx)?.stop_replication(cx, &db).await?;
        Ok(Outcome::done(stopped, "it does not replicate"))
    }
}

struct Status(Spec);

#[async_trait]
impl Primitive for Status {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        Ok(db.driver(cx)?.status(cx, &db).await?.record().into())
    }
}
