//! Backups: snapshots that are proven to be restorable.
//!
//! - `repository.rs`: the trait behind all kinds of repositories; `primitives.rs`: the methods of `Backup`, the same for all
//! - `upkeep.rs`: those that look after a repository; `retention.rs`: which snapshots are kept
//! - `on_host.rs`, `pipe.rs`: what the drivers share
//! - `database/`: databases in snapshots
//! - `schedule/`: snapshots that a host takes by itself, by a systemd timer
//! - `tool/`: repositories that a program of the hosts keeps; `restic/` and `borg/`: those programs
//! - `offline.rs`: disks that are attached only at times; `rotation.rs`: copies from one repository into another
//! - `archive/`: plain compressed tar archives, each with a SHA-256 manifest; `tar.rs` and `manifest.rs` read and write those

use std::collections::BTreeMap;

use runbook_core::inventory::{Environment, Section};
use runbook_core::primitive::Registry;
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::{Code, Record, Result, Value};

mod archive;
mod borg;
pub mod database;
pub(crate) mod manifest;
mod offline;
mod on_host;
mod pipe;
mod primitives;
pub mod repository;
mod restic;
mod retention;
mod rotation;
pub mod schedule;
mod tool;
mod upkeep;

/// Adds the primitives of this family.
pub fn register(r: &mut Registry) {
    r.add_type(TypeSpec::new("Backup", "A backup repository of the inventory.").field("name", Ty::Str, "Its name."));
    r.add_type(
        TypeSpec::new("Snapshot", "A snapshot in a backup repository.")
            .field("id", Ty::Str, "Its name in the repository.")
            .field("time", Ty::Time, "When it was begun.")
            .field("host", Ty::Str, "The inventory name of the host that it was taken from.")
            .field("paths", Ty::List(Box::new(Ty::Str)), "What was taken.")
            .field(
                "files",
                number(Ty::Int),
                "How many files it holds; `()` in a list of a tool that does not tell: borg, restic before 0.17.",
            )
            .field("bytes", number(Ty::Bytes), "The size of these files; `()` where that is not told, with borg by `snapshot` neither.")
            .field("tags", Ty::List(Box::new(Ty::Str)), "What it was marked with.")
            .field(
                "database",
                Ty::OneOf(vec![Ty::Str, Ty::Unit]),
                "The inventory name of the database that it is of; `()` when it is of files.",
            )
            .field(
                "stream",
                Ty::OneOf(vec![Ty::Record("DatabaseStream"), Ty::Unit]),
                "What `snapshot_database` knows of it; `()` in a list.",
            )
            .field("archive", Ty::Str, "Where it lies: the file on the host of the repository, or the repository."),
    );
    r.add_type(
        TypeSpec::new("RestoreTest", "What a restore test found right.")
            .field("files", Ty::Int, "How many files were restored and checked.")
            .field("bytes", Ty::Bytes, "Their size.")
            .field("tables", number(Ty::Int), "How many tables were loaded and compared; `()` for files.")
            .field("rows", number(Ty::Int), "Their rows; `()` for files."),
    );
    r.add_pure(
        Spec::function("backup", Effect::Pure, "Gives the backup repository of that name in the inventory.")
            .arg("name", Ty::Str, "Its name in `[environments.….backups]` of runbook.toml.")
            .returns(Ty::Record("Backup"))
            .example(r#"let vault = backup("vault");"#)
            .errors(&[Code::UNKNOWN_NAME]),
        backup,
    );
    r.add(primitives::Take::default());
    r.add(primitives::List::default());
    r.add(primitives::Verify::default());
    r.add(primitives::RestoreTest::default());
    r.add(primitives::Restore::default());
    upkeep::register(r);
    rotation::register(r);
    database::register(r);
    schedule::register(r);
}

fn number(ty: Ty) -> Ty {
    Ty::OneOf(vec![ty, Ty::Unit])
}

fn backup(env: &Environment, call: &Call) -> Result<Value> {
    let b = env.resource(Section::Backups, call.str(0))?;
    let fields = BTreeMap::from([("name".to_string(), Value::from(b.name.as_str()))]);
    Ok(Record::handle("Backup", b.name.clone(), fields).into())
}
