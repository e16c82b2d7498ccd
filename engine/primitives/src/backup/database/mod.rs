//! Databases in snapshots, without a dump on any disk.
//!
//! `streams.rs`: what a kind of repository must be able to do; `take.rs`: the snapshot; `stream.rs`: reading one; `restore.rs`: loading one. How a database
//! becomes a stream is its driver's affair: `db/stream/`.

mod restore;
mod stream;
pub mod streams;
mod take;

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Reconciled, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::units::show_bytes;
use runbook_core::{Code, Error, Record, Result, Value};

use super::primitives::{name_of, snapshot_ty, texts, texts_ty};
use super::repository::{Repository, Snapshot, of};
use crate::db::driver::Db;
use streams::Streams;
use take::{Became, Taken};

/// What marks the snapshot of a database; its inventory name comes behind it.
const DATABASE: &str = "database:";

/// The inventory name of the database that a snapshot is of.
pub(super) fn named(s: &Snapshot) -> Option<&str> {
    s.tags.iter().find_map(|t| t.strip_prefix(DATABASE))
}

pub(super) fn register(r: &mut Registry) {
    r.add_type(
        TypeSpec::new("DatabaseStream", "What is known of a database in a snapshot.")
            .field("kind", Ty::Str, "Its kind: `mariadb`, `mysql`, `postgresql`.")
            .field("version", Ty::Str, "The server's version.")
            .field("position", Ty::Str, "The position of its moment, in the server's own form; empty where there is none.")
            .field("tables", Ty::Int, "How many tables.")
            .field("rows", Ty::OneOf(vec![Ty::Int, Ty::Unit]), "Rows of all tables; `()` when the server's tool does not tell.")
            .field("bytes", Ty::Bytes, "How long it is.")
            .field("sha256", Ty::Str, "Its SHA-256, in hex."),
    );
    r.add(Take(
        Spec::method(
            "Backup",
            "snapshot_database",
            Effect::Once,
            "Takes a snapshot of a database, as of one moment and while it is in use. Nothing of it is written to a disk of its host.\n\nThe \
             server's own tool (`mariadb-dump`, `mysqldump`, `pg_dump`) writes into a pipe that the repository's reads, on the host of the \
             database, under the supervisor. A dump that fails, is killed or stops early leaves no snapshot: the end of the pipe is shown only \
             when the tool has ended well. The last line of the stream holds its SHA-256, bytes and rows, which every restore compares. The snapshot \
             carries the tag `database:NAME`.\n\nFor MariaDB and MySQL tables, views, triggers, routines and events of one schema are in it, for \
             PostgreSQL all of one database but its subscriptions; logins are not. Tool and repository run as root when either of them needs it.",
        )
        .arg("database", Ty::Record("Database"), "The database.")
        .option("tags", texts_ty(), "Words to find it by later.")
        .returns(Ty::Record("Snapshot"))
        .example(r#"let taken = backup("vault").snapshot_database(database("shop_old"), #{ tags: ["before-cutover"] });"#)
        .errors(&[Code::BACKUP_SNAPSHOT, Code::BACKUP_REPOSITORY, Code::HOST_TOOL_MISSING, Code::DB_CONNECT, Code::DB_LOGIN, Code::DB_CANNOT]),
    ));
    r.add(Restore(
        Spec::method(
            "Backup",
            "restore_database",
            Effect::Converge,
            "Loads the snapshot of a database into one of the inventory, which must be empty or not there.\n\nIt is made with the character set \
             of the source. The stream is compared with its SHA-256 while it is loaded; what is not whole is not kept: the database \
             is emptied again. It runs on the host, apart from the connection. There is nothing to do when this \
             snapshot is in it already. Logins are not in a snapshot: see `copy_accounts_from`.",
        )
        .arg("snapshot", snapshot_ty(), "The snapshot, or its id.")
        .arg("database", Ty::Record("Database"), "The database to load it into.")
        .example(r#"let b = backup("vault"); b.restore_database(b.require_fresh("24h", #{ tags: ["database:shop_old"] }), database("shop_new"));"#)
        .errors(&[Code::BACKUP_MISSING, Code::BACKUP_RESTORE, Code::DB_COPY, Code::DB_CONNECT, Code::DB_LOGIN]),
    ));
}

/// The repository as one of streams.
fn streams<'a>(repo: &'a dyn Repository, call: &Call, code: Code) -> Result<&'a dyn Streams> {
    repo.streams().ok_or_else(|| {
        Error::new(code, format!("the repository \"{}\" takes no databases", call.target()))
            .hint("use one of kind restic or borg; or dump the database into a folder and take a snapshot of that")
    })
}

fn value(taken: &Taken) -> Value {
    let mut v = taken.snapshot.to_value();
    if let Value::Record(r) = &mut v {
        let int = |n: u64| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
        let stream = Record::new(
            "DatabaseStream",
            [
                ("kind", taken.about.kind.as_str().into()),
                ("version", taken.about.engine.as_str().into()),
                ("position", taken.about.position.as_str().into()),
                ("tables", int(taken.about.tables)),
                ("rows", taken.told.all_rows().map_or(Value::Unit, int)),
                ("bytes", Value::Bytes(taken.told.bytes)),
                ("sha256", taken.told.sha256.as_str().into()),
            ],
        );
        r.fields.insert("stream".into(), stream.into());
    }
    v
}

fn outcome(taken: &Taken) -> Outcome {
    let rows = taken.told.all_rows().map_or(String::new(), |n| format!("{n} rows, "));
    let note = format!("{} tables, {rows}{}, sha256 {}", taken.about.tables, show_bytes(taken.told.bytes), taken.told.sha256);
    Outcome::changed(value(taken)).note(note)
}

struct Take(Spec);

#[async_trait]
impl Primitive for Take {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let repo = of(cx, call).await?;
        let streams = streams(repo.as_ref(), call, Code::BACKUP_SNAPSHOT)?;
        let db = Db::argument(cx, call, 0)?;
        Ok(outcome(&take::take(cx, streams, &db, &texts(call.opt("tags"))).await?))
    }

    async fn reconcile(&self, cx: &Cx, call: &Call) -> Result<Reconciled> {
        let repo = of(cx, call).await?;
        let streams = streams(repo.as_ref(), call, Code::BACKUP_SNAPSHOT)?;
        let db = Db::argument(cx, call, 0)?;
        Ok(match take::taken(cx, streams, &db, &texts(call.opt("tags"))).await? {
            Became::Done(t) => Reconciled::Done(outcome(&t)),
            Became::NotStarted => Reconciled::NotStarted,
            Became::Failed(e) => Reconciled::Failed(*e),
        })
    }
}

struct Restore(Spec);

#[async_trait]
impl Primitive for Restore {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let repo = of(cx, call).await?;
        let s = repo.get(cx, name_of(call.arg(0))).await?;
        let db = Db::argument(cx, call, 1)?;
        let done = restore::restore(cx, streams(repo.as_ref(), call, Code::BACKUP_RESTORE)?, &s, &db).await?;
        Ok(match done {
            Some(about) => Outcome::changed(()).note(format!("{} of {}, {}", about.database, about.time, show_bytes(s.bytes))),
            None => Outcome::unchanged((), "this snapshot is in it already"),
        })
    }
}

/// `verify` of a snapshot of a database.
pub(super) async fn verify(cx: &Cx, repo: &dyn Repository, call: &Call, s: &Snapshot) -> Result<Outcome> {
    let streams = streams(repo, call, Code::BACKUP_DAMAGED)?;
    let (about, told) = stream::read(cx, streams, streams.host(), s).await?;
    Ok(Outcome {
        note: Some(format!("{} tables of \"{}\", {}", about.tables, about.database, show_bytes(told.bytes))),
        ..Outcome::default()
    })
}

/// `restore_test` of a snapshot of a database.
pub(super) async fn restore_test(cx: &Cx, repo: &dyn Repository, call: &Call, s: &Snapshot) -> Result<Outcome> {
    let Some(server) = call.opt("server").map(name_of) else {
        return Err(Error::new(
            Code::BACKUP_RESTORE,
            format!("the snapshot {} is of a database, and needs a server to be loaded into", s.id),
        )
        .hint("say on which: restore_test(snapshot, #{ server: database(\"…\") }); a throw-away database is made beside that one"));
    };
    let server = Db::find(cx, server)?;
    let done = restore::test(cx, streams(repo, call, Code::BACKUP_RESTORE)?, s, &server, call.opt_bool("compare")).await?;
    let int = |n: u64| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
    let value = Record::new(
        "RestoreTest",
        [("files", Value::Int(1)), ("bytes", Value::Bytes(done.bytes)), ("tables", int(done.tables)), ("rows", int(done.rows))],
    );
    Ok(Outcome::unchanged(
        value,
        format!("loaded and compared {} tables, {} rows, {}, then removed", done.tables, done.rows, show_bytes(done.bytes)),
    ))
}
