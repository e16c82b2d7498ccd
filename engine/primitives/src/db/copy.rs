//! `copy_from`, `copy_to_file`, `drop_copy`.

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::units::show_bytes;
use runbook_core::{Call, Code, Effect, Error, Record, Result, Spec, Ty, TypeSpec, Value};

use super::driver::{Copied, Db, TableOptions};
use super::{DATABASE, method};

pub(super) fn register(r: &mut Registry) {
    r.add(CopyFrom(
        method(
            "copy_from",
            Effect::Converge,
            "Makes this database a copy of another, as of one moment, while the other is in use.\n\nSQLite: the copy is checked (SHA-256, integrity) \
             and put in place at once. It is write-protected from its birth until `promote`. What is replaced must be absent or such a copy; \
             a database that takes writes, or that a process has open, is refused. Nothing is done when the content is equal already. \
             It is copied whole, without options.\n\nMariaDB and MySQL: one schema is copied. PostgreSQL: one database, which must be there; \
             the rows go from server to server, through no file and no controller, while a job on the host of this database logs in to \
             the other as standbys do (`replication_address`, `replication_password`), or through its socket on one and the same host. \
             A controller that dies does not disturb it. When it is broken off itself, it begins anew, as of a new moment; once all rows \
             are there, it goes on with what is missing. `tables` is refused, and so are large objects.\n\nBoth take writes at once, and \
             such a copy is for trials and for data that nobody changes. What is replaced must be empty or an earlier copy of the same \
             database. To move a server, use `replicate_from`.",
        )
        .arg("other", Ty::Record(DATABASE), "The database to copy.")
        .option("tables", Ty::List(Box::new(Ty::Str)), "Only these tables.")
        .option("jobs", Ty::Int, "How many streams at once; chosen by the host's processors unless given.")
        .returns(Ty::Record("CopyResult"))
        .example("database(\"shop_new\").copy_from(database(\"shop_old\"));")
        .errors(&[
            Code::DB_CONNECT,
            Code::DB_LOGIN,
            Code::DB_SETTINGS,
            Code::DB_COPY,
            Code::DB_CANNOT,
            Code::DB_HELPER,
            Code::HOST_TOOL_MISSING,
            Code::DISK_SPACE,
        ]),
    ));
    r.add(CopyToFile(
        method(
            "copy_to_file",
            Effect::Converge,
            "Makes a consistent copy in a file on the same host while the database is in use, for a backup to take.\n\nThe file appears whole \
             or not at all, and replaces an earlier one.",
        )
        .arg("path", Ty::Str, "The file; relative to the login folder.")
        .returns(Ty::Record("CopyResult"))
        .example("database(\"shop_old\").copy_to_file(\"shop/backup.db\");")
        .errors(&[Code::DB_CONNECT, Code::DB_COPY, Code::DB_HELPER]),
    ));
    r.add(DropCopy(
        method(
            "drop_copy",
            Effect::Converge,
            "Removes a copy made by `copy_from` that was not promoted: its undo.\n\nAnything else is refused. Nothing is done when there is none. Of PostgreSQL the empty database stays.",
        )
        .example("database(\"shop_new\").drop_copy();")
        .errors(&[Code::DB_COPY, Code::DB_HELPER]),
    ));
    r.add_type(
        TypeSpec::new("CopyResult", "What a copy did.")
            .field("rows", Ty::Int, "Rows of all tables.")
            .field("bytes", Ty::Bytes, "Size of the copy.")
            .field("changed", Ty::Bool, "Whether anything had to be copied."),
    );
}

/// The options `tables` and `jobs`.
pub(super) fn table_options(call: &Call) -> Result<TableOptions> {
    let tables = call.opt("tables").and_then(Value::as_list).unwrap_or_default();
    let jobs = match call.opt_int("jobs") {
        None => None,
        Some(n @ 1..=64) => usize::try_from(n).ok(),
        Some(n) => return Err(Error::new(Code::WRONG_TYPE, format!("\"jobs\" is from 1 to 64, not {n}"))),
    };
    Ok(TableOptions { tables: tables.iter().filter_map(|t| t.as_str().map(str::to_string)).collect(), jobs })
}

pub(super) fn outcome(c: &Copied) -> Outcome {
    let rows = i64::try_from(c.rows).unwrap_or(i64::MAX);
    let record = Record::new("CopyResult", [("rows", rows.into()), ("bytes", Value::Bytes(c.bytes)), ("changed", c.changed.into())]);
    if c.changed {
        Outcome::changed(record).note(format!("{rows} rows, {}", show_bytes(c.bytes)))
    } else {
        Outcome::unchanged(record, "the content is equal already")
    }
}

struct CopyFrom(Spec);

#[async_trait]
impl Primitive for CopyFrom {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (to, from) = Db::receiver(cx, call)?.pair(Db::argument(cx, call, 0)?)?;
        Ok(outcome(&to.driver(cx)?.copy(cx, &from, &to, &table_options(call)?).await?))
    }
}

struct CopyToFile(Spec);

#[async_trait]
impl Primitive for CopyToFile {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        Ok(outcome(&db.driver(cx)?.copy_to_file(cx, &db, call.str(0)).await?))
    }
}

struct DropCopy(Spec);

#[async_trait]
impl Primitive for DropCopy {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        Ok(Outcome::done(db.driver(cx)?.drop_copy(cx, &db).await?, "there is no copy"))
    }
}
