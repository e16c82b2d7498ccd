//! Databases: one interface for every kind. `driver.rs` says what a kind must be able to do, `model.rs` holds what is passed; each kind
//! has a folder (`sqlite/`, …); the other files are the primitives, which know no dialect.

use std::collections::BTreeMap;

use runbook_core::inventory::{Environment, Section};
use runbook_core::primitive::Registry;
use runbook_core::{Call, Code, Effect, Record, Result, Spec, Ty, TypeSpec, Value};

mod accounts;
pub(crate) mod compare;
mod copy;
mod data;
mod delay;
pub mod driver;
mod dump;
mod fence;
pub mod galera;
mod model;
pub mod mysql;
mod pair;
pub mod postgres;
mod promote;
pub mod recovery;
mod replicate;
pub mod sqlite;
pub mod stream;

/// The type's name in scripts.
pub(crate) const DATABASE: &str = "Database";

/// Adds the primitives of this family.
pub fn register(r: &mut Registry) {
    r.add_pure(
        Spec::function("database", Effect::Pure, "Names a database of the inventory.")
            .arg("name", Ty::Str, "Its name in the section `databases`.")
            .returns(Ty::Record(DATABASE))
            .example("let from = database(\"shop_old\");")
            .errors(&[Code::UNKNOWN_NAME]),
        database,
    );
    r.add_type(
        TypeSpec::new(DATABASE, "A database of the inventory, made by `database(name)`.")
            .field("name", Ty::Str, "Its name in the inventory.")
            .field("kind", Ty::Str, "Its kind: `sqlite`, `mariadb`, `mysql` and so on.")
            .field("host", Ty::Str, "The name of the host it is on.")
            .field("path", Ty::OneOf(vec![Ty::Str, Ty::Unit]), "The file's path, for kinds that are a file."),
    );
    data::register(r);
    compare::register(r);
    copy::register(r);
    fence::register(r);
    promote::register(r);
    replicate::register(r);
    accounts::register(r);
    dump::register(r);
    delay::register(r);
    recovery::register(r);
    pair::register(r);
    galera::register(r);
}

fn database(env: &Environment, call: &Call) -> Result<Value> {
    let db = env.resource(Section::Databases, call.str(0))?;
    let fields = BTreeMap::from([
        ("name".to_string(), Value::from(db.name.as_str())),
        ("kind".to_string(), Value::from(db.kind.as_str())),
        ("host".to_string(), Value::from(db.need("host")?)),
        ("path".to_string(), Value::from(db.str("path"))),
    ]);
    Ok(Record::handle(DATABASE, db.name.clone(), fields).into())
}

/// A method of `Database`.
fn method(name: &'static str, effect: Effect, doc: &'static str) -> Spec {
    Spec::method(DATABASE, name, effect, doc)
}
