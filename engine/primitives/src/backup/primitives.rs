//! The methods of `Backup`.

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Reconciled};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::units::show_bytes;
use runbook_core::{Code, Error, Record, Result, Value};

use super::database;
use super::repository::{Made, Plan, Snapshot, of};

pub(super) fn host_ty() -> Ty {
    Ty::OneOf(vec![Ty::Record("Host"), Ty::Str])
}

pub(super) fn snapshot_ty() -> Ty {
    Ty::OneOf(vec![Ty::Record("Snapshot"), Ty::Str])
}

pub(super) fn texts_ty() -> Ty {
    Ty::OneOf(vec![Ty::Str, Ty::List(Box::new(Ty::Str))])
}

pub(super) fn texts(v: Option<&Value>) -> Vec<String> {
    match v {
        Some(Value::Str(s)) => vec![s.clone()],
        Some(Value::List(l)) => l.iter().filter_map(|v| v.as_str().map(str::to_string)).collect(),
        _ => vec![],
    }
}

/// The inventory name of a host, the name of a snapshot.
pub(super) fn name_of(v: &Value) -> &str {
    match v {
        Value::Record(r) => r.name.as_deref().unwrap_or_else(|| r.str("id")),
        v => v.as_str().unwrap_or_default(),
    }
}

/// How large a snapshot is, when that is known.
fn note(s: &Snapshot) -> Option<String> {
    match (s.counted, s.sized) {
        (true, true) => Some(size(s.files, s.bytes)),
        (true, false) => Some(names(s.files)),
        _ => None,
    }
}

fn names(files: u64) -> String {
    format!("{files} {}", if files == 1 { "file" } else { "files" })
}

fn size(files: u64, bytes: u64) -> String {
    format!("{}, {}", names(files), show_bytes(bytes))
}

/// Takes a snapshot.
pub struct Take(Spec);

impl Default for Take {
    fn default() -> Self {
        Take(
            Spec::method(
                "Backup",
                "snapshot",
                Effect::Once,
                "Takes a snapshot of folders and files of a host.\n\nInto an archive the data streams from that host through the controller; nothing \
                 is installed on either, and its checksums are proven. With restic and borg, the host's own runs under the supervisor, so that a \
                 lost connection and a dead controller do not disturb it. The snapshot appears only when it is complete, so that a crash \
                 leaves no half of one. It carries the action's id, by which a resumed run finds it again. A path that is not there is an \
                 error, and a file that changes while it is read has the whole taken again, three times at most.",
            )
            .arg("host", host_ty(), "The host to take it from.")
            .arg("paths", texts_ty(), "Folders and files: all relative to the login folder, or all absolute.")
            .option("tags", texts_ty(), "Words to find it by later.")
            .option("exclude", texts_ty(), "What to leave out, as patterns of `--exclude` of tar, restic or borg.")
            .option("sudo", Ty::Bool, "Whether to read with sudo; false by default.")
            .option("accept_changing", Ty::Bool, "Whether to keep a snapshot in which files changed while they were read; false by default.")
            .returns(Ty::Record("Snapshot"))
            .example(r#"let snapshot = backup("vault").snapshot(host("old"), ["/etc", "/srv/shop"], #{ tags: ["before-cutover"], sudo: true });"#)
            .errors(&[Code::BACKUP_SNAPSHOT]),
        )
    }
}

fn plan(call: &Call) -> Plan {
    Plan {
        host: name_of(call.arg(0)).to_string(),
        paths: texts(Some(call.arg(1))),
        exclude: texts(call.opt("exclude")),
        tags: texts(call.opt("tags")),
        sudo: call.opt_bool("sudo"),
        accept_changing: call.opt_bool("accept_changing"),
    }
}

fn taken(s: &Snapshot, changed: &[String]) -> Outcome {
    let mut note = note(s).unwrap_or_default();
    if !changed.is_empty() {
        note.push_str(&format!("; changed while read: {}", changed.join(", ")));
    }
    Outcome::changed(s.to_value()).note(note)
}

#[async_trait]
impl Primitive for Take {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let plan = plan(call);
        if plan.paths.is_empty() {
            return Err(Error::new(Code::BACKUP_SNAPSHOT, "a snapshot needs at least one path"));
        }
        let (snapshot, changed) = of(cx, call).await?.snapshot(cx, &plan).await?;
        Ok(taken(&snapshot, &changed))
    }

    async fn reconcile(&self, cx: &Cx, call: &Call) -> Result<Reconciled> {
        Ok(match of(cx, call).await?.made(cx, &plan(call)).await? {
            Made::Yes(s) => Reconciled::Done(taken(&s, &[])),
            Made::No => Reconciled::NotStarted,
            Made::Failed(e) => Reconciled::Failed(*e),
        })
    }
}

/// Lists snapshots.
pub struct List(Spec);

impl Default for List {
    fn default() -> Self {
        List(
            Spec::method("Backup", "list", Effect::Read, "Lists the snapshots in the repository, oldest first.")
                .returns(Ty::List(Box::new(Ty::Record("Snapshot"))))
                .example(r#"let newest = backup("vault").list().pop();"#)
                .errors(&[Code::BACKUP_DAMAGED]),
        )
    }
}

#[async_trait]
impl Primitive for List {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let all = of(cx, call).await?.list(cx).await?;
        Ok(Value::List(all.iter().map(Snapshot::to_value).collect()).into())
    }
}

/// Verifies a snapshot.
pub struct Verify(Spec);

impl Default for Verify {
    fn default() -> Self {
        Verify(
            Spec::method(
                "Backup",
                "verify",
                Effect::Read,
                "Computes every checksum of a snapshot again, on the host of the repository, without writing anything. With restic and borg every \
                 piece of every file is read from the repository, nothing from a cache.",
            )
            .arg("snapshot", snapshot_ty(), "The snapshot, or its id.")
            .example(r#"for s in backup("vault").list() { backup("vault").verify(s); }"#)
            .errors(&[Code::BACKUP_MISSING, Code::BACKUP_DAMAGED]),
        )
    }
}

#[async_trait]
impl Primitive for Verify {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let repository = of(cx, call).await?;
        let snapshot = repository.get(cx, name_of(call.arg(0))).await?;
        if database::named(&snapshot).is_some() {
            return database::verify(cx, repository.as_ref(), call, &snapshot).await;
        }
        repository.verify(cx, &snapshot).await?;
        Ok(Outcome { note: note(&snapshot), ..Outcome::default() })
    }
}

/// Restores as a test.
pub struct RestoreTest(Spec);

impl Default for RestoreTest {
    fn default() -> Self {
        RestoreTest(
            Spec::method(
                "Backup",
                "restore_test",
                Effect::Converge,
                "Restores a snapshot into an empty temporary folder, checks every file against its checksum, and removes the folder.\n\n\
                 It uses what a person would use in need: `tar` and `sha256sum`, `restic restore --verify`, `borg extract`. The folder needs the room of the restored files.\n\n\
                 A snapshot of a database is loaded into a throw-away database on the server that `server` names, and its tables and rows are compared with \
                 those that went in; with `compare`, every row with the source as it is now. The throw-away database has a name of its own (`runbook_test_…`), gets no \
                 scheduled events, and is removed in the end, also after a failure; after a crash, by `resume`.",
            )
            .arg("snapshot", snapshot_ty(), "The snapshot, or its id.")
            .option("on", host_ty(), "The host to restore on; the one of the repository by default.")
            .option("server", Ty::Record("Database"), "For a database: a database of the inventory, on whose server the throw-away one is made.")
            .option("compare", Ty::Bool, "Whether to compare with the files or the database as they are now, too; false by default.")
            .returns(Ty::Record("RestoreTest"))
            .example(r#"backup("vault").restore_test(backup("vault").list().pop(), #{ on: host("new") });"#)
            .errors(&[Code::BACKUP_MISSING, Code::BACKUP_RESTORE]),
        )
    }
}

#[async_trait]
impl Primitive for RestoreTest {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let repository = of(cx, call).await?;
        let snapshot = repository.get(cx, name_of(call.arg(0))).await?;
        if database::named(&snapshot).is_some() {
            return database::restore_test(cx, repository.as_ref(), call, &snapshot).await;
        }
        let on = call.opt("on").map(name_of);
        let r = repository.restore_test(cx, &snapshot, on, call.opt_bool("compare")).await?;
        let value = Record::new(
            "RestoreTest",
            [
                ("files", i64::try_from(r.files).unwrap_or(i64::MAX).into()),
                ("bytes", Value::Bytes(r.bytes)),
                ("tables", Value::Unit),
                ("rows", Value::Unit),
            ],
        );
        Ok(Outcome::unchanged(value, format!("restored and checked {}, then removed", size(r.files, r.bytes))))
    }
}

/// Restores.
pub struct Restore(Spec);

impl Default for Restore {
    fn default() -> Self {
        Restore(
            Spec::method(
                "Backup",
                "restore",
                Effect::Converge,
                "Restores a snapshot into a folder of a host and checks every file.\n\nFiles that are in the way are overwritten, others \
                 in the folder stay. There is nothing to do when all of it is there already, unchanged (with restic and borg: but for the times of files).",
            )
            .arg("snapshot", snapshot_ty(), "The snapshot, or its id.")
            .arg("host", host_ty(), "The host to restore on.")
            .arg("dest", Ty::Str, "The folder that the paths of the snapshot are put under: `/` or `.` for the places where they were.")
            .option("sudo", Ty::Bool, "Whether to write with sudo, which also brings back owners; false by default.")
            .example(r#"let b = backup("vault"); b.restore(b.list().pop(), host("new"), "/", #{ sudo: true });"#)
            .errors(&[Code::BACKUP_MISSING, Code::BACKUP_RESTORE]),
        )
    }
}

#[async_trait]
impl Primitive for Restore {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let repository = of(cx, call).await?;
        let s = repository.get(cx, name_of(call.arg(0))).await?;
        let changed = repository.restore(cx, &s, name_of(call.arg(1)), call.str(2), call.opt_bool("sudo")).await?;
        Ok(if changed {
            Outcome { note: note(&s), ..Outcome::changed(()) }
        } else {
            Outcome::unchanged((), "all of it is there already, unchanged")
        })
    }
}
