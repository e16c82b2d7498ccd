//! `archive_to`, `stop_archiving`, `base_backup`, `recover_to`, `end_recovery`: recovery to a point in time when no replica is left.

use std::time::Duration;

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::units::show_bytes;
use runbook_core::{Call, Code, Effect, Error, Record, Result, Spec, Ty, TypeSpec, Value};

use super::delay;
use super::driver::{Before, Db, Driver, Rolled, cannot};
use super::dump::manifest;
use super::method;

/// How the log is archived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// The folder on the database's host.
    pub folder: String,
    /// After how long a segment that is not full goes there all the same.
    pub every: Duration,
    /// Whether the server may be restarted.
    pub restart: bool,
    /// Whether another way of archiving is put aside.
    pub replace: bool,
    /// How long the first segment may take.
    pub within: Duration,
}

/// What archiving has come to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Archived {
    /// Whether settings were changed.
    pub changed: bool,
    /// Whether the server was restarted.
    pub restarted: bool,
    /// The segment that was seen to arrive.
    pub segment: String,
}

/// A base backup.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BaseBackup {
    /// Whether it was made now.
    pub changed: bool,
    /// The action that made it.
    pub id: String,
    /// Its bytes.
    pub bytes: u64,
    /// The first segment of the log that recovery from it reads.
    pub segment: String,
    /// From where on it can be recovered to.
    pub position: String,
    /// What should be known of it.
    pub note: String,
}

/// From what a database is recovered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// The folder of the base backup, on the host of the database that is recovered.
    pub base: String,
    /// The folder of the archived log there.
    pub archive: String,
    /// Whether what lies in its place is put aside.
    pub replace: bool,
}

/// How far a database is recovered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upto {
    /// Up to just before a change.
    Before(Before),
    /// With everything that is archived.
    End {
        /// Whether the newest segment may break off in its middle.
        unfinished: bool,
    },
}

/// What a kind can do whose log is archived. Each may be repeated after a crash at any point.
#[async_trait]
pub trait Recovery: Send + Sync {
    /// Sees to it that every finished segment of the log goes into a folder, and that one arrives.
    async fn archive_to(&self, cx: &Cx, db: &Db, archive: &Archive) -> Result<Archived>;
    /// Puts the settings of before [`Recovery::archive_to`] back; false when there are none.
    async fn stop_archiving(&self, cx: &Cx, db: &Db, restart: bool) -> Result<bool>;
    /// Copies the whole server into a folder of its host.
    async fn base_backup(&self, cx: &Cx, db: &Db, folder: &str) -> Result<BaseBackup>;
    /// Makes the server anew up to just before a moment or a position, or with everything that is archived, and stops there, also over
    /// restarts. Refused with `RB0512` when base backup and archive do not lead there beyond doubt, or when nothing would be left out that
    /// should be.
    async fn recover_to(&self, cx: &Cx, db: &Db, upto: &Upto, from: &Sources) -> Result<Rolled>;
    /// Lets the server take writes that [`Recovery::recover_to`] has made; false when it does.
    async fn end_recovery(&self, cx: &Cx, db: &Db) -> Result<bool>;
}

pub(super) fn register(r: &mut Registry) {
    register_recover(r);
    r.add(ArchiveTo(
        method(
            "archive_to",
            Effect::Converge,
            "Sees to it that every finished segment of the write-ahead log goes into a folder on the database's host.\n\nPostgreSQL: \
             `archive_mode`, `archive_command` and `archive_timeout`. A segment is synced before it gets its name, and a file that is there \
             is never overwritten. Then a segment is finished, and must arrive; otherwise the server's failure is told. Where `archive_mode` is off \
             the server must be restarted: refused unless `restart: true`. An `archive_command` of somebody else is \
             used as it is when its segments arrive in the folder, and refused otherwise. Nothing is done when it is so already. The undo is `stop_archiving`.",
        )
        .arg("folder", Ty::Str, "The folder, by its absolute path. It must hold nothing but the log of this server.")
        .option("restart", Ty::Bool, "The server may be restarted, which its users notice.")
        .option("replace", Ty::Bool, "Puts another `archive_command` aside; `stop_archiving` puts it back.")
        .option("every", Ty::Duration, "After how long a segment that is not full is finished all the same; 1m unless given: so much is lost with the server at most.")
        .option("within", Ty::Duration, "How long the first segment may take; 1m unless given.")
        .returns(Ty::Record("Archiving"))
        .example("database(\"shop\").archive_to(\"/srv/archive/shop\", #{ restart: true });")
        .errors(&[Code::DB_CONNECT, Code::DB_LOGIN, Code::DB_COPY, Code::DB_SETTINGS, Code::DB_CANNOT, Code::WRONG_TYPE]),
    ));
    r.add_type(
        TypeSpec::new("Archiving", "What `archive_to` has come to.")
            .field("changed", Ty::Bool, "Whether settings were changed.")
            .field("restarted", Ty::Bool, "Whether the server was restarted.")
            .field("segment", Ty::Str, "The segment that was seen to arrive."),
    );
    r.add(StopArchiving(
        method(
            "stop_archiving",
            Effect::Converge,
            "Puts the settings of before `archive_to` back: its undo.\n\nThe folder stays as it is. Where `archive_mode` was off the server \
             must be restarted: refused unless `restart: true`, since a server that archives nowhere keeps its log until its disk is full. Nothing is done when \
             `archive_to` has set nothing.",
        )
        .option("restart", Ty::Bool, "The server may be restarted, which its users notice.")
        .example("database(\"shop\").stop_archiving(#{ restart: true });")
        .errors(&[Code::DB_CONNECT, Code::DB_LOGIN, Code::DB_COPY, Code::DB_SETTINGS, Code::DB_CANNOT]),
    ));
    r.add(MakeBaseBackup(
        method(
            "base_backup",
            Effect::Converge,
            "Copies the whole server into a new folder on its host while it is in use: where recovery to a point in time begins.\n\nPostgreSQL: \
             `pg_basebackup`, checked afterwards by `pg_verifybackup`. It runs on the host, apart from the connection: a lost connection and a dead \
             controller do not disturb it, and `resume` finds it at work. The file `manifest` comes last: a folder without it is no backup. A folder with anything \
             else is refused. Nothing is done when this action has made it already.",
        )
        .arg("folder", Ty::Str, "The folder, by its absolute path.")
        .returns(Ty::Record("BaseBackup"))
        .example("database(\"shop\").base_backup(\"/srv/base/monday\");")
        .errors(&[
            Code::DB_CONNECT,
            Code::DB_LOGIN,
            Code::DB_COPY,
            Code::DB_SETTINGS,
            Code::DB_CANNOT,
            Code::HOST_TOOL_MISSING,
            Code::DISK_SPACE,
            Code::WRONG_TYPE,
        ]),
    ));
    r.add_type(
        TypeSpec::new("BaseBackup", "A base backup.")
            .field("changed", Ty::Bool, "Whether it was made now.")
            .field("id", Ty::Str, "The action that made it.")
            .field("bytes", Ty::Bytes, "How large it is.")
            .field(
                "segment",
                Ty::Str,
                "The first segment of the log that recovery from it reads: older ones are needed by older backups alone.",
            )
            .field("position", Ty::Str, "Where it ends: from there on it can be recovered to."),
    );
}

fn register_recover(r: &mut Registry) {
    r.add(RecoverTo(
        method(
            "recover_to",
            Effect::Converge,
            "Makes this server anew from a base backup and the archived log, up to just before a moment or a position or with everything that is archived, and stops there.\n\n\
             PostgreSQL: the whole cluster, while no other server is needed. The archived log says which transaction is the first that is left out, or, for `\"end\"`, which one is the last; the server is then brought to right \
             before the former or right behind the latter, paused, and can be read. It stays so, also over a restart, until `end_recovery`. Refused before anything is touched: a moment before the end \
             of the base backup or behind the end of the archive; a segment that is missing or damaged on the way there, which for `\"end\"` is the whole archive; for `\"end\"` also an archive that goes on in another way (on another \
             timeline, or with segments that are compressed or partial); an archive of another server; another \
             major version. What lies in the place of its data folder is refused as well, unless `replace: true`: then it is stopped, and its folder kept beside it. \
             May be done again: with a later moment, or when more has come into the archive, it goes on; with an earlier one it begins anew. Nothing is done when it stands there already.",
        )
        .arg(
            "before",
            Ty::OneOf(vec![Ty::Time, Ty::Str]),
            "The moment (RFC 3339, such as `2026-11-21T14:03:00Z`) or the place in the write-ahead log (`16/B374D848`) of the first transaction that is *not* applied; \
             or `\"end\"`: every transaction that is archived is applied.",
        )
        .arg("base", Ty::Str, "The folder of the base backup, on this database's host.")
        .arg("archive", Ty::Str, "The folder of the archived log, on this database's host.")
        .option("replace", Ty::Bool, "What lies in the place of the data folder is stopped, and kept beside it.")
        .option(
            "unfinished",
            Ty::Bool,
            "With `\"end\"`: the newest segment may break off in its middle, as one does that comes from the `pg_wal` of a lost server. What it has before that is applied.",
        )
        .returns(Ty::Record("RolledForward"))
        .example("database(\"rescue\").recover_to(\"2026-11-21T14:03:00Z\", \"/srv/base/monday\", \"/srv/archive/shop\");")
        .errors(&[
            Code::DB_CONNECT,
            Code::DB_LOGIN,
            Code::DB_COPY,
            Code::DB_REPLICATION,
            Code::DB_SETTINGS,
            Code::DB_POSITION,
            Code::DB_CANNOT,
            Code::HOST_TOOL_MISSING,
            Code::WRONG_TYPE,
        ]),
    ));
    r.add(EndRecovery(
        method(
            "end_recovery",
            Effect::Converge,
            "Ends the recovery of `recover_to`: the server takes writes from now on, on a timeline of its own.\n\nThere is no way back; \
             `recover_to` with `replace: true` begins anew. It does not archive its log: see `archive_to`. Refused for a standby. Nothing is done when it is not in recovery.",
        )
        .example("database(\"rescue\").end_recovery();")
        .errors(&[Code::DB_CONNECT, Code::DB_LOGIN, Code::DB_COPY, Code::DB_REPLICATION, Code::DB_CANNOT]),
    ));
}

fn able<'a>(driver: &'a dyn Driver, db: &Db) -> Result<&'a dyn Recovery> {
    driver.recovery().ok_or_else(|| cannot(db, "recovery from an archived log"))
}

struct ArchiveTo(Spec);

#[async_trait]
impl Primitive for ArchiveTo {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        let minute = Duration::from_secs(60);
        let archive = Archive {
            folder: manifest::path(call.str(0))?,
            every: call.opt_duration("every").unwrap_or(minute),
            restart: call.opt_bool("restart"),
            replace: call.opt_bool("replace"),
            within: call.opt_duration("within").unwrap_or(minute),
        };
        let done = able(&*db.driver(cx)?, &db)?.archive_to(cx, &db, &archive).await?;
        let note = format!("{} has arrived", done.segment);
        let record = Record::new(
            "Archiving",
            [("changed", done.changed.into()), ("restarted", done.restarted.into()), ("segment", done.segment.into())],
        );
        Ok(if done.changed { Outcome::changed(record).note(note) } else { Outcome::unchanged(record, format!("it is so already; {note}")) })
    }
}

struct StopArchiving(Spec);

#[async_trait]
impl Primitive for StopArchiving {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        let changed = able(&*db.driver(cx)?, &db)?.stop_archiving(cx, &db, call.opt_bool("restart")).await?;
        Ok(Outcome::done(changed, "archive_to has set nothing there"))
    }
}

struct MakeBaseBackup(Spec);

#[async_trait]
impl Primitive for MakeBaseBackup {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        let b = able(&*db.driver(cx)?, &db)?.base_backup(cx, &db, &manifest::path(call.str(0))?).await?;
        let note = format!("{}, from {} on{}", show_bytes(b.bytes), b.segment, b.note);
        let record = Record::new(
            "BaseBackup",
            [
                ("changed", b.changed.into()),
                ("id", b.id.into()),
                ("bytes", Value::Bytes(b.bytes)),
                ("segment", b.segment.into()),
                ("position", b.position.into()),
            ],
        );
        Ok(if b.changed { Outcome::changed(record).note(note) } else { Outcome::unchanged(record, "this action has made it already") })
    }
}

struct RecoverTo(Spec);

#[async_trait]
impl Primitive for RecoverTo {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        let from = Sources { base: manifest::path(call.str(1))?, archive: manifest::path(call.str(2))?, replace: call.opt_bool("replace") };
        Ok(delay::outcome(able(&*db.driver(cx)?, &db)?.recover_to(cx, &db, &upto(call.arg(0), call.opt_bool("unfinished"))?, &from).await?))
    }
}

/// Reads the argument, and the option that goes with one of its kinds.
fn upto(v: &Value, unfinished: bool) -> Result<Upto> {
    if v.as_str().is_some_and(|s| s.trim() == "end") {
        return Ok(Upto::End { unfinished });
    }
    if unfinished {
        return Err(Error::new(
            Code::WRONG_TYPE,
            "unfinished goes with recover_to(\"end\", …) alone: a moment or a place must come before the log breaks off",
        ));
    }
    delay::before(v).map(Upto::Before)
}

struct EndRecovery(Spec);

#[async_trait]
impl Primitive for EndRecovery {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        let changed = able(&*db.driver(cx)?, &db)?.end_recovery(cx, &db).await?;
        Ok(Outcome::done(changed, "it is not in recovery"))
    }
}
