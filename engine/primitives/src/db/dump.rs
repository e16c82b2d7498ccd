//! `dump` and `load`: folders on the host of a database.

pub(in crate::db) mod job;
pub(in crate::db) mod manifest;
pub(in crate::db) mod said;
pub(in crate::db) mod work;

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::units::show_bytes;
use runbook_core::{Call, Code, Effect, Error, Record, Result, Spec, Ty, TypeSpec, Value};

use super::copy::table_options;
use super::driver::{Db, DumpOptions, Dumped};
use super::method;

pub(super) fn register(r: &mut Registry) {
    let common = |spec: Spec| {
        spec.arg("path", Ty::Str, "The folder, by its absolute path.")
            .option("jobs", Ty::Int, "How many at once; chosen by the host's processors unless given.")
            .returns(Ty::Record("DumpResult"))
            .errors(&[
                Code::DB_CONNECT,
                Code::DB_LOGIN,
                Code::DB_COPY,
                Code::DB_CANNOT,
                Code::HOST_TOOL_MISSING,
                Code::DISK_SPACE,
                Code::WRONG_TYPE,
            ])
    };
    r.add(Dump(
        common(method(
            "dump",
            Effect::Converge,
            "Writes a dump of the database into a folder on its host, as of one moment, while it is in use.\n\nThe tools run on the host, \
             apart from the connection, several at once; the data is compressed and does not pass through the controller. The file \
             `manifest` comes last: a folder with it is a whole dump, with rows, checksums and the position of its moment. A lost \
             connection and a dead controller do not disturb it: `resume` finds it at work. When the host itself dies the moment is gone, \
             and the dump begins anew.\n\nAnother dump in that folder is refused unless `replace: true`; a folder with anything else is \
             always refused. Nothing is done when the dump is of this action, or (MariaDB and MySQL with a binary log) of the position \
             at which the server still is.",
        ))
        .option("replace", Ty::Bool, "Replaces another dump that is there.")
        .example("database(\"shop_old\").dump(\"/srv/dumps/shop\", #{ jobs: 4 });"),
    ));
    r.add(Load(
        common(method(
            "load",
            Effect::Converge,
            "Loads a folder that `dump` wrote, from the host of this database.\n\nSeveral sessions load at once, and every file is \
             compared with its checksum first. It runs on the host, apart from the connection. Each piece (a table of PostgreSQL, about 16 MB of rows \
             of MariaDB) is a transaction with its own mark: when it is repeated after whatever befell, only what is not loaded is done \
             again. Nothing is done when this dump is loaded whole already.\n\nThe database must be empty, or hold what an earlier try of \
             the same dump has left; anything else is refused, unless `replace: true` removes it. Nothing keeps others from writing to \
             it meanwhile. Logins are not part of a dump: see `copy_accounts_from`.",
        ))
        .option("replace", Ty::Bool, "Removes what is in the database first.")
        .example("database(\"shop_new\").load(\"/srv/dumps/shop\");"),
    ));
    r.add_type(
        TypeSpec::new("DumpResult", "What `dump` wrote or `load` loaded.")
            .field("tables", Ty::Int, "How many tables.")
            .field("rows", Ty::OneOf(vec![Ty::Int, Ty::Unit]), "Rows of all tables; `()` when the server's tools do not tell.")
            .field("bytes", Ty::Bytes, "Bytes of the rows, uncompressed.")
            .field("position", Ty::Str, "The position of the dump's moment, in the server's own form.")
            .field("id", Ty::Str, "The dump's id, from its manifest.")
            .field("changed", Ty::Bool, "Whether anything had to be done."),
    );
}

/// Why a dump or a load is not begun, or not right.
pub(in crate::db) fn refuse(db: &Db, why: String, hint: &str) -> Error {
    Error::new(Code::DB_COPY, why).host(&db.host).hint(hint)
}

fn options(call: &Call) -> Result<DumpOptions> {
    Ok(DumpOptions { jobs: table_options(call)?.jobs, replace: call.opt_bool("replace") })
}

fn outcome(d: Dumped) -> Outcome {
    let int = |n: u64| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
    let rows = d.rows.map_or(Value::Unit, int);
    let record = Record::new(
        "DumpResult",
        [
            ("tables", int(d.tables)),
            ("rows", rows),
            ("bytes", Value::Bytes(d.bytes)),
            ("position", d.position.as_str().into()),
            ("id", d.id.as_str().into()),
            ("changed", d.changed.into()),
        ],
    );
    if d.changed {
        let rows = d.rows.map_or(String::new(), |n| format!("{n} rows, "));
        Outcome::changed(record).note(format!("{} tables, {rows}{}", d.tables, show_bytes(d.bytes)))
    } else {
        Outcome::unchanged(record, d.note)
    }
}

struct Dump(Spec);

#[async_trait]
impl Primitive for Dump {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        let path = manifest::path(call.str(0))?;
        Ok(outcome(db.driver(cx)?.dump(cx, &db, &path, &options(call)?).await?))
    }
}

struct Load(Spec);

#[async_trait]
impl Primitive for Load {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        let path = manifest::path(call.str(0))?;
        Ok(outcome(db.driver(cx)?.load(cx, &db, &path, &options(call)?).await?))
    }
}
