//! `galera_bootstrap`, `galera_join`, `galera_status`, `galera_wait_synced`, `galera_leave`: clusters of MariaDB servers that all have
//! the same rows. The members are the databases of the inventory with the same `galera_cluster`.

use std::time::Duration;

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::units::show_duration;
use runbook_core::{Call, Code, Effect, Error, Record, Result, Spec, Ty, TypeSpec, Value};

use super::driver::{Db, Driver, cannot};
use super::method;

/// How a member of a cluster is, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Member {
    /// `Primary` (of the part with the majority), `non-Primary`, `Disconnected`; `stopped` when the server does not run, `alone` when it
    /// runs and is in no cluster.
    pub status: String,
    /// `Synced`, `Joining`, `Donor/Desynced`, and so on.
    pub state: String,
    /// Whether it takes statements.
    pub ready: bool,
    /// How many members its part has.
    pub size: i64,
    /// The cluster's own id.
    pub uuid: String,
    /// Its last transaction.
    pub committed: i64,
    /// The members' addresses.
    pub members: String,
    /// The number of the membership that it knows; it grows with each member that comes or goes.
    pub view: String,
}

impl Member {
    /// Whether it belongs to the part with the majority.
    #[must_use]
    pub fn primary(&self) -> bool {
        self.status == "Primary"
    }

    /// Whether it is of use: in the majority, level with the others, and taking statements.
    #[must_use]
    pub fn synced(&self) -> bool {
        self.primary() && self.state == "Synced" && self.ready
    }

    /// For people.
    #[must_use]
    pub fn show(&self) -> String {
        if self.state.is_empty() { self.status.clone() } else { format!("{}, {}, {} members", self.status, self.state, self.size) }
    }
}

/// What a kind with clusters can do. Each may be repeated after a crash at any point.
#[async_trait]
pub trait Galera: Send + Sync {
    /// Begins the cluster with this server; false when it is in a living one. `force`: though it was not the last to leave; `lost`: members
    /// that cannot be reached and are known to be dead.
    async fn bootstrap(&self, cx: &Cx, db: &Db, force: bool, lost: &[String]) -> Result<bool>;
    /// Makes the server a member of the living cluster; false when it is one. `replace`: its own rows are thrown away.
    async fn join(&self, cx: &Cx, db: &Db, replace: bool) -> Result<bool>;
    /// How the server is.
    async fn member(&self, cx: &Cx, db: &Db) -> Result<Member>;
    /// Which other member knows another membership than `me`, in words for people. One that hung and has just gone on believes for a while
    /// that nothing has happened.
    async fn apart(&self, cx: &Cx, db: &Db, me: &Member) -> Result<Option<String>>;
    /// Whether a server that does not answer runs all the same: it listens to the other members.
    async fn listens(&self, cx: &Cx, db: &Db) -> Result<bool>;
    /// Stops the member in order; false when it does not run. `last`: though none is left then.
    async fn leave(&self, cx: &Cx, db: &Db, last: bool) -> Result<bool>;
}

pub(super) fn register(r: &mut Registry) {
    let errors = &[Code::DB_CONNECT, Code::DB_LOGIN, Code::DB_CLUSTER, Code::DB_CANNOT, Code::HOST_TOOL_MISSING];
    r.add(Bootstrap(
        method(
            "galera_bootstrap",
            Effect::Converge,
            "Begins a Galera cluster with this server, which keeps its rows; it is restarted for that.\n\nThe members are the databases of \
             the inventory with the same `galera_cluster`. Each is asked first: refused by name while one of them is in a living cluster, while one runs apart \
             from this, or cannot be reached. A member that runs but has lost the majority for good takes it over without a restart. Nothing \
             is done when this server is in the living cluster already.",
        )
        .option("force", Ty::Bool, "Begin with this one though it was not the last to leave, so that others may have later rows, which are lost.")
        .option("lost", Ty::List(Box::new(Ty::Str)), "Members that cannot be reached and are dead for certain.")
        .example("database(\"node1\").galera_bootstrap();")
        .errors(errors),
    ));
    r.add(Join(
        method(
            "galera_join",
            Effect::Converge,
            "Makes this server a member of the living cluster, and waits until it is synced.\n\nIt gets what it lacks from another member, \
             or everything. Refused when no member is in a part with the majority, or when the server has schemas that did not come from the cluster. Nothing is \
             done when it is a synced member already.",
        )
        .option("replace", Ty::Bool, "Throw the server's own schemas away.")
        .option("within", Ty::Duration, "How long it may take to be synced; 30m unless given.")
        .example("database(\"node2\").galera_join();")
        .errors(errors),
    ));
    r.add(Status(
        method("galera_status", Effect::Read, "Reads how this server stands in its cluster. A server that does not run is `stopped`.")
            .returns(Ty::Record("GaleraStatus"))
            .example("let s = database(\"node1\").galera_status(); log(`${s.status}, ${s.size} members`);")
            .errors(errors),
    ));
    r.add(WaitSynced(
        method(
            "galera_wait_synced",
            Effect::Read,
            "Waits until this member is in the majority, level with the others, and takes statements, and the other members of the inventory \
             that answer see the same members as it does.",
        )
        .option("within", Ty::Duration, "How long to wait; 10m unless given.")
        .example("database(\"node2\").galera_wait_synced(#{ within: \"5m\" });")
        .errors(errors),
    ));
    r.add(Leave(
        method(
            "galera_leave",
            Effect::Converge,
            "Stops this member in order, and sees that the others go on with the majority.\n\nIts rows stay where they are, and \
             `galera_join` brings it back. Refused for the last member, and while it gives its rows to another. Nothing is done when it does not run.",
        )
        .option("last", Ty::Bool, "Also when it is the last one: the cluster ends.")
        .example("database(\"node3\").galera_leave();")
        .errors(errors),
    ));
    r.add_type(
        TypeSpec::new("GaleraStatus", "How a server stands in its Galera cluster.")
            .field(
                "status",
                Ty::Str,
                "`Primary` (of the part with the majority), `non-Primary`, `Disconnected`, `stopped`, or `alone` (runs in no cluster).",
            )
            .field("state", Ty::Str, "`Synced`, `Joining`, `Donor/Desynced` and so on, in the server's words.")
            .field("ready", Ty::Bool, "Whether it takes statements.")
            .field("synced", Ty::Bool, "Whether it is of use: in the majority, synced and ready.")
            .field("size", Ty::Int, "How many members its part of the cluster has.")
            .field("uuid", Ty::Str, "The cluster's own id.")
            .field("committed", Ty::Int, "The number of its last transaction.")
            .field("members", Ty::Str, "The members' addresses."),
    );
}

/// What only kinds with clusters can do.
fn clusters<'a>(driver: &'a dyn Driver, db: &Db) -> Result<&'a dyn Galera> {
    driver.galera().ok_or_else(|| cannot(db, "Galera clusters"))
}

/// How long a server that was started may be silent on all its doors before it is taken for ended.
const SILENT: Duration = Duration::from_secs(20);

/// Waits until a member is synced. A server that has ended is not waited for.
async fn wait(cx: &Cx, db: &Db, within: Duration) -> Result<()> {
    let driver = db.driver(cx)?;
    let galera = clusters(&*driver, db)?;
    let begun = tokio::time::Instant::now();
    let mut silent = None;
    loop {
        let now = galera.member(cx, db).await?;
        let apart = if now.synced() { galera.apart(cx, db, &now).await? } else { None };
        if now.synced() && apart.is_none() {
            return Ok(());
        }
        if now.status == "stopped" && !galera.listens(cx, db).await? {
            if silent.get_or_insert_with(tokio::time::Instant::now).elapsed() >= SILENT {
                let e = Error::new(
                    Code::DB_CLUSTER,
                    format!("the server of \"{}\" does not run any more: it ended before it was synced", db.name),
                );
                return Err(e.host(&db.host).hint(
                    "its own log on its host says why, and when it was being given rows, so does the log of the member that gave them (SST)",
                ));
            }
        } else {
            silent = None;
        }
        if begun.elapsed() >= within {
            let why = apart.map_or_else(|| now.show(), |other| format!("{}, but {other}", now.show()));
            let e = Error::new(Code::DB_CLUSTER, format!("\"{}\" is not synced after {}: {why}", db.name, show_duration(within)));
            return Err(e
                .host(&db.host)
                .retryable(true)
                .hint("see the server's own log on its host, and galera_status of the other members"));
        }
        cx.sleep(Duration::from_millis(250)).await?;
    }
}

struct Bootstrap(Spec);

#[async_trait]
impl Primitive for Bootstrap {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        let lost: Vec<String> =
            call.opt("lost").and_then(Value::as_list).unwrap_or_default().iter().filter_map(|v| v.as_str().map(str::to_string)).collect();
        let begun = clusters(&*db.driver(cx)?, &db)?.bootstrap(cx, &db, call.opt_bool("force"), &lost).await?;
        wait(cx, &db, Duration::from_secs(120)).await?;
        Ok(Outcome::done(begun, "it is in the living cluster already"))
    }
}

struct Join(Spec);

#[async_trait]
impl Primitive for Join {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        let joined = clusters(&*db.driver(cx)?, &db)?.join(cx, &db, call.opt_bool("replace")).await?;
        wait(cx, &db, call.opt_duration("within").unwrap_or(Duration::from_secs(1800))).await?;
        Ok(Outcome::done(joined, "it is a member already"))
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
        let m = clusters(&*db.driver(cx)?, &db)?.member(cx, &db).await?;
        let synced = m.synced();
        let fields = [
            ("status", Value::from(m.status)),
            ("state", m.state.into()),
            ("ready", m.ready.into()),
            ("synced", synced.into()),
            ("size", Value::Int(m.size)),
            ("uuid", m.uuid.into()),
            ("committed", Value::Int(m.committed)),
            ("members", m.members.into()),
        ];
        Ok(Record::new("GaleraStatus", fields).into())
    }
}

struct WaitSynced(Spec);

#[async_trait]
impl Primitive for WaitSynced {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        wait(cx, &db, call.opt_duration("within").unwrap_or(Duration::from_secs(600))).await?;
        Ok(Value::Unit.into())
    }
}

struct Leave(Spec);

#[async_trait]
impl Primitive for Leave {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        let left = clusters(&*db.driver(cx)?, &db)?.leave(cx, &db, call.opt_bool("last")).await?;
        Ok(Outcome::done(left, "it does not run as a member"))
    }
}
