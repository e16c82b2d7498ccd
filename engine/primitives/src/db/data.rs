//! `query`, `execute`, `facts`, `counts`, `checksums`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Reconciled, Registry};
use runbook_core::{Call, Code, Effect, Record, Result, Spec, Ty, TypeSpec, Value};

use super::driver::{Db, Executed};
use super::method;

pub(super) fn register(r: &mut Registry) {
    r.add(Query(
        method(
            "query",
            Effect::Read,
            "Runs one statement that only reads and returns its rows as an array of maps.\n\nValues keep their types: int, float, string, \
             blob, and `()` for NULL. The connection is read-only. The result is kept in the run's record and may have 2 MiB at most.",
        )
        .arg("sql", Ty::Str, "The statement, with `?` or `:name` for parameters.")
        .opt_arg("params", params(), "Values for the parameters: an array for `?`, a map for `:name`.")
        .returns(Ty::List(Box::new(Ty::Map(Box::new(Ty::Any)))))
        .example("let rows = database(\"shop_old\").query(\"SELECT id, total FROM orders WHERE day = ?\", [\"2026-11-21\"]);")
        .errors(&[Code::DB_CONNECT, Code::DB_QUERY, Code::DB_HELPER]),
    ));
    r.add(Execute(
        method(
            "execute",
            Effect::Once,
            "Runs statements that write, in one transaction, exactly once.\n\nA marker row in the table `_runbook_actions` belongs to the \
             same transaction, so that after a crash the database itself says whether they took effect. Transaction statements and \
             ATTACH are refused.",
        )
        .arg("sql", Ty::Str, "One statement, or several without parameters.")
        .opt_arg("params", params(), "Values for the parameters: an array for `?`, a map for `:name`.")
        .returns(Ty::Record("Executed"))
        .example("database(\"shop_old\").execute(\"UPDATE settings SET value = ? WHERE key = 'banner'\", [\"We are moving tonight\"]);")
        .errors(&[Code::DB_CONNECT, Code::DB_QUERY, Code::DB_HELPER]),
    ));
    r.add_type(
        TypeSpec::new("Executed", "What the statements of `execute` did.")
            .field("rows", Ty::Int, "Rows inserted, updated or deleted, all statements together.")
            .field("last_id", Ty::Int, "Row id of the row inserted last; 0 when there is none."),
    );
    r.add(Facts(
        method("facts", Effect::Read, "Reads version, sizes, tables, logins and settings, and whether it is fenced, a copy or promoted.")
            .returns(Ty::Record("DatabaseFacts"))
            .example("log(`${database(\"shop_old\").facts().bytes} to copy`);")
            .errors(&[Code::DB_CONNECT, Code::DB_QUERY, Code::DB_HELPER]),
    ));
    r.add_type(
        TypeSpec::new("DatabaseFacts", "What is known of a database.")
            .field("version", Ty::Str, "Version of the database software that read it.")
            .field("bytes", Ty::Bytes, "Its size.")
            .field("tables", Ty::List(Box::new(Ty::Str)), "The application's tables.")
            .field("fence", Ty::OneOf(vec![Ty::Str, Ty::Unit]), "The id of its fence, or `()`.")
            .field("copy_of", Ty::OneOf(vec![Ty::Str, Ty::Unit]), "The database of which it is a copy, or `()`.")
            .field("promoted", Ty::Bool, "Whether it is a copy that was promoted.")
            .field("sizes", Ty::Map(Box::new(Ty::Bytes)), "Servers: size by table, with its indexes; of a partitioned table of PostgreSQL by partition.")
            .field("accounts", Ty::List(Box::new(Ty::Str)), "Servers: names of all logins and roles; `accounts()` tells what each may do.")
            .field("grants", Ty::List(Box::new(Ty::Str)), "Servers: privileges on the database itself: who, (MariaDB, MySQL) on which schema, and what. PostgreSQL: as ACL items, `shop=CTc/postgres`.")
            .field("settings", Ty::Map(Box::new(Ty::Any)), "Servers: settings by name. PostgreSQL: those that were set, but for those that may hold a password; MariaDB and MySQL: those that decide how it stores, reads and replicates.")
            .field("flavour", Ty::Str, "MariaDB and MySQL: `mariadb` or `mysql`.")
            .field("schemas", Ty::List(Box::new(Ty::Str)), "MariaDB and MySQL: the application's schemas.")
            .field("charsets", Ty::Map(Box::new(Ty::Str)), "MariaDB and MySQL: character set and collation by schema.")
            .field("engines", Ty::Map(Box::new(Ty::Int)), "MariaDB and MySQL: how many tables each storage engine has.")
            .field("gtid", Ty::Str, "MariaDB and MySQL: its position as GTIDs.")
            .field("extensions", Ty::Map(Box::new(Ty::Str)), "PostgreSQL: versions of the extensions by name.")
            .field("encoding", Ty::Str, "PostgreSQL and SQLite: of its texts.")
            .field("collation", Ty::Str, "PostgreSQL: how texts are ordered.")
            .field("ctype", Ty::Str, "PostgreSQL: what is a letter, upper and lower case.")
            .field("owner", Ty::Str, "PostgreSQL: the role that owns it.")
            .field("wal_level", Ty::Str, "PostgreSQL: `replica`, `logical` or `minimal`.")
            .field("data_checksums", Ty::Bool, "PostgreSQL: whether its pages have checksums.")
            .field("is_in_recovery", Ty::Bool, "PostgreSQL: whether it is a standby.")
            .field("page_size", Ty::Int, "PostgreSQL and SQLite: bytes in a page.")
            .field("journal_mode", Ty::Str, "SQLite: `wal`, `delete` and so on.")
            .field("user_version", Ty::Int, "SQLite: the application's schema version."),
    );
    r.add(Counts(
        method("counts", Effect::Read, "Counts the rows of every table; returns a map from table to number.")
            .returns(Ty::Map(Box::new(Ty::Int)))
            .example("let before = database(\"shop_old\").counts();")
            .errors(&[Code::DB_CONNECT, Code::DB_QUERY, Code::DB_HELPER]),
    ));
    r.add(Checksums(
        method(
            "checksums",
            Effect::Read,
            "Reads every table whole and returns a map from table to checksum.\n\nA checksum covers every value with its type. It does \
             not depend on the order of rows nor on how they lie in the file, so that a copy and its source have the same.",
        )
        .returns(Ty::Map(Box::new(Ty::Str)))
        .example("let sums = database(\"shop_old\").checksums();")
        .errors(&[Code::DB_CONNECT, Code::DB_QUERY, Code::DB_HELPER]),
    ));
}

fn params() -> Ty {
    Ty::OneOf(vec![Ty::List(Box::new(Ty::Any)), Ty::Map(Box::new(Ty::Any))])
}

struct Query(Spec);

#[async_trait]
impl Primitive for Query {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        Ok(Value::List(db.driver(cx)?.query(cx, &db, call.str(0), call.arg(1)).await?).into())
    }
}

struct Execute(Spec);

fn executed(e: Executed) -> Outcome {
    let rows = i64::try_from(e.rows).unwrap_or(i64::MAX);
    Outcome::changed(Record::new("Executed", [("rows", rows.into()), ("last_id", e.last_id.into())])).note(format!("{rows} rows"))
}

#[async_trait]
impl Primitive for Execute {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        db.driver(cx)?.execute(cx, &db, call.str(0), call.arg(1)).await.map(executed)
    }
    async fn reconcile(&self, cx: &Cx, call: &Call) -> Result<Reconciled> {
        let db = Db::receiver(cx, call)?;
        // The marker is in the transaction itself: its absence, with no writer at work, proves that nothing happened.
        Ok(match db.driver(cx)?.executed(cx, &db).await? {
            Some(e) => Reconciled::Done(executed(e)),
            None => Reconciled::NotStarted,
        })
    }
}

struct Facts(Spec);

#[async_trait]
impl Primitive for Facts {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        let fields = db.driver(cx)?.facts(cx, &db).await?;
        Ok(Record { ty: Cow::Borrowed("DatabaseFacts"), name: None, fields }.into())
    }
}

struct Counts(Spec);

#[async_trait]
impl Primitive for Counts {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        let tables = db.driver(cx)?.content(cx, &db, false).await?.tables;
        let counts: BTreeMap<String, Value> =
            tables.into_iter().map(|(n, t)| (n, Value::Int(i64::try_from(t.rows).unwrap_or(i64::MAX)))).collect();
        Ok(counts.into())
    }
}

struct Checksums(Spec);

#[async_trait]
impl Primitive for Checksums {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        let tables = db.driver(cx)?.content(cx, &db, true).await?.tables;
        Ok(tables.into_iter().map(|(n, t)| (n, Value::Str(t.sum))).collect::<BTreeMap<_, _>>().into())
    }
}
