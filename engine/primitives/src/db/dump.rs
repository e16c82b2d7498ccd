//! `dump` and `load`.

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::{Call, Code, Effect, Result, Spec, Ty};

use super::copy::{copy_options, outcome};
use super::driver::Db;
use super::method;

pub(super) fn register(r: &mut Registry) {
    let options = |spec: Spec| {
        spec.option("tables", Ty::List(Box::new(Ty::Str)), "Only these tables.")
            .option("jobs", Ty::Int, "How many at once; chosen by the host's processors unless given.")
            .returns(Ty::Record("CopyResult"))
            .errors(&[Code::DB_CONNECT, Code::DB_LOGIN, Code::DB_COPY, Code::DB_CANNOT, Code::HOST_TOOL_MISSING])
    };
    r.add(Dump(options(
        method(
            "dump",
            Effect::Converge,
            "Writes a dump into a folder on the database's host, as of one moment, while it is in use.\n\nThe folder is complete when its \
             last file says so; one that was left incomplete begins anew.",
        )
        .arg("path", Ty::Str, "The folder; relative to the login folder.")
        .option("compress", Ty::Str, "`none` or a program that the host has (`zstd`, `lz4`, `gzip`); chosen unless given.")
        .example("database(\"shop_old\").dump(\"dumps/shop\");"),
    )));
    r.add(Load(options(
        method(
            "load",
            Effect::Converge,
            "Loads what `dump` wrote, from a folder on the database's host.\n\nTables that were loaded whole are left alone when it is \
             repeated. Tables with rows of another origin are refused by name.",
        )
        .arg("path", Ty::Str, "The folder; relative to the login folder.")
        .example("database(\"shop_new\").load(\"dumps/shop\");"),
    )));
}

struct Dump(Spec);

#[async_trait]
impl Primitive for Dump {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        Ok(outcome(&db.driver(cx)?.dump(cx, &db, call.str(0), &copy_options(call)?).await?))
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
        Ok(outcome(&db.driver(cx)?.load(cx, &db, call.str(0), &copy_options(call)?).await?))
    }
}
