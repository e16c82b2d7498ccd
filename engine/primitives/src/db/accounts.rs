//! `accounts` and `copy_accounts_from`.

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::{Call, Code, Effect, Record, Result, Spec, Ty, TypeSpec, Value};

use super::driver::Db;
use super::{DATABASE, method};

pub(super) fn register(r: &mut Registry) {
    r.add(Accounts(
        method(
            "accounts",
            Effect::Read,
            "Lists the logins of the database server with their grants, without those that the system keeps for itself.\n\nPasswords and \
             their hashes are never part of it. Of PostgreSQL these are roles with their attributes, memberships, settings, and what they may do \
             with the database; what they may do inside of it goes with the database itself.",
        )
        .returns(Ty::List(Box::new(Ty::Record("Account"))))
        .example("for a in database(\"shop_old\").accounts() { log(a.name); }")
        .errors(&[Code::DB_CONNECT, Code::DB_LOGIN, Code::DB_QUERY, Code::DB_CANNOT]),
    ));
    r.add_type(
        TypeSpec::new("Account", "A login of a database server.")
            .field("name", Ty::Str, "Its name in the server's own form, such as `'shop'@'%'`.")
            .field("login", Ty::Bool, "Whether it can log in.")
            .field("superuser", Ty::Bool, "Whether it may do everything.")
            .field("grants", Ty::List(Box::new(Ty::Str)), "Its grants as statements."),
    );
    r.add(CopyAccountsFrom(
        method(
            "copy_accounts_from",
            Effect::Converge,
            "Makes the logins of another database server exist here, with the same passwords and grants.\n\nPasswords are taken over as \
             hashes and never shown. Logins that only this side has are left alone. Nothing is done when all are equal already. \
             PostgreSQL: all or none; for that both users must be super-users. What a role may do with the database is copied once that is there.",
        )
        .arg("other", Ty::Record(DATABASE), "The database whose logins are copied.")
        .option("only", Ty::List(Box::new(Ty::Str)), "Only these, by the names that `accounts` shows.")
        .returns(Ty::Record("AccountsCopied"))
        .example("database(\"shop_new\").copy_accounts_from(database(\"shop_old\"));")
        .errors(&[Code::DB_CONNECT, Code::DB_LOGIN, Code::DB_QUERY, Code::DB_CANNOT]),
    ));
    let names = || Ty::List(Box::new(Ty::Str));
    r.add_type(
        TypeSpec::new("AccountsCopied", "What `copy_accounts_from` did.")
            .field("created", names(), "Logins that were made.")
            .field("changed", names(), "Logins that were there and differed.")
            .field("equal", names(), "Logins that were equal already."),
    );
}

fn texts(list: &[String]) -> Value {
    Value::List(list.iter().map(|t| t.as_str().into()).collect())
}

struct Accounts(Spec);

#[async_trait]
impl Primitive for Accounts {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        let accounts = db.driver(cx)?.accounts(cx, &db).await?;
        let records = accounts.into_iter().map(|a| {
            let fields = [
                ("name", a.name.as_str().into()),
                ("login", a.login.into()),
                ("superuser", a.superuser.into()),
                ("grants", texts(&a.grants)),
            ];
            Value::from(Record::new("Account", fields))
        });
        Ok(Value::List(records.collect()).into())
    }
}

struct CopyAccountsFrom(Spec);

#[async_trait]
impl Primitive for CopyAccountsFrom {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (to, from) = Db::receiver(cx, call)?.pair(Db::argument(cx, call, 0)?)?;
        let only: Vec<String> =
            call.opt("only").and_then(Value::as_list).unwrap_or_default().iter().filter_map(|v| v.as_str().map(str::to_string)).collect();
        let done = to.driver(cx)?.copy_accounts(cx, &from, &to, &only).await?;
        let fields = [("created", texts(&done.created)), ("changed", texts(&done.changed)), ("equal", texts(&done.equal))];
        let record = Record::new("AccountsCopied", fields);
        Ok(if done.created.is_empty() && done.changed.is_empty() {
            Outcome::unchanged(record, "every login is equal already")
        } else {
            Outcome::changed(record).note(format!("{} made, {} changed", done.created.len(), done.changed.len()))
        })
    }
}
