//! Methods of `Backup` for copies in several places: one repository into another, disks that are attached only at times.

use async_trait::async_trait;
use runbook_core::inventory::{Resource, Section};
use runbook_core::primitive::{Cx, Outcome, Primitive, Reconciled, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::{Code, Error, Record, Result, Value};

use super::offline::Disk;
use super::primitives::{host_ty, name_of, texts, texts_ty};
use super::repository::{Copied, Made, Repository, Snapshot, of};
use super::upkeep::number;

pub(super) fn register(r: &mut Registry) {
    r.add_type(
        TypeSpec::new("CopiedSnapshots", "What `copy_to` found and did.")
            .field("copied", Ty::List(Box::new(Ty::Record("Snapshot"))), "The copies that were made, as they are in the other repository.")
            .field("there", Ty::Int, "How many of the snapshots were there already."),
    );
    r.add(CopyTo(
        Spec::method(
            "Backup",
            "copy_to",
            Effect::Once,
            "Copies snapshots into another repository of the same kind, but for those that are there already: those with the same time, host and paths.\n\n\
             It runs under the supervisor, on the host that reaches both: the one of the other repository, unless this one is a folder elsewhere. restic copies by \
             `restic copy`. borg 1.2 cannot copy between repositories, so that each archive is restored into a temporary folder there, which needs its room, taken \
             again with the same name and time, and compared; with `sudo`, for owners. Each repository has its own password, its own `prune` and its own \
             `require_fresh`.",
        )
        .arg("to", Ty::Record("Backup"), "The other repository.")
        .option("last", Ty::Int, "Only so many of the newest of each host and its paths.")
        .option("host", host_ty(), "Only snapshots of this host.")
        .option("tags", texts_ty(), "Only snapshots with all of these tags.")
        .returns(Ty::Record("CopiedSnapshots"))
        .example(r#"if backup("usb").attached() { backup("vault").copy_to(backup("usb"), #{ last: 3 }); }"#)
        .errors(&[Code::BACKUP_REPOSITORY, Code::BACKUP_DETACHED, Code::HOST_TOOL_MISSING]),
    ));
    r.add(Attached(
        Spec::method(
            "Backup",
            "attached",
            Effect::Read,
            "Tells whether the disk of the repository is mounted: its setting `mount`. Always true where there is none.\n\nEverything else that is done with a \
             repository whose disk is not there is an error, at once.",
        )
        .returns(Ty::Bool)
        .example(r#"if !backup("usb").attached() { log("the disk is in the safe"); }"#)
        .errors(&[Code::HOST_TOOL_MISSING]),
    ));
}

struct CopyTo(Spec);

/// The repository, the other one, and which snapshots shall be in that.
async fn wanted<'a>(cx: &'a Cx, call: &Call) -> Result<(Box<dyn Repository>, &'a Resource, Vec<Snapshot>)> {
    let from = cx.env.resource(Section::Backups, call.target())?;
    let to = cx.env.resource(Section::Backups, name_of(call.arg(0)))?;
    if to.name == from.name || to.kind != from.kind {
        let why = if to.name == from.name {
            "it is the same repository".to_string()
        } else {
            format!("one is of the kind {}, the other {}", from.kind, to.kind)
        };
        return Err(Error::new(Code::BACKUP_REPOSITORY, format!("\"{}\" cannot be copied into \"{}\": {why}", from.name, to.name))
            .hint("to have one in two repositories of different kinds, take a snapshot into each"));
    }
    if let Some(disk) = Disk::of(to)? {
        disk.need(cx).await?;
    }
    let (host, tags, last) = (call.opt("host").map(name_of), texts(call.opt("tags")), number(call, "last")?);
    let repository = of(cx, call).await?;
    let mut all = repository.list(cx).await?;
    all.retain(|s| host.is_none_or(|h| s.host == h) && tags.iter().all(|t| s.tags.contains(t)));
    if last > 0 {
        all = super::retention::Keep { last, ..Default::default() }.divide(&all).0;
    }
    Ok((repository, to, all))
}

fn outcome(c: &Copied) -> Outcome {
    let made = Value::List(c.made.iter().map(Snapshot::to_value).collect());
    let there = i64::try_from(c.there).unwrap_or(i64::MAX);
    let value = Record::new("CopiedSnapshots", [("copied", made), ("there", there.into())]);
    if c.made.is_empty() {
        Outcome::unchanged(value, format!("all {there} snapshots are there already"))
    } else {
        Outcome::changed(value).note(format!("{} copied, {there} there already", c.made.len()))
    }
}

#[async_trait]
impl Primitive for CopyTo {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (repository, to, all) = wanted(cx, call).await?;
        Ok(outcome(&repository.copy_to(cx, &all, to).await?))
    }

    async fn reconcile(&self, cx: &Cx, call: &Call) -> Result<Reconciled> {
        let (repository, to, all) = wanted(cx, call).await?;
        Ok(match repository.copied(cx, &all, to).await? {
            Made::Yes(c) => Reconciled::Done(outcome(&c)),
            Made::No => Reconciled::NotStarted,
            Made::Failed(e) => Reconciled::Failed(*e),
        })
    }
}

struct Attached(Spec);

#[async_trait]
impl Primitive for Attached {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let resource = cx.env.resource(Section::Backups, call.target())?;
        let missing = match Disk::of(resource)? {
            Some(disk) => disk.missing(cx).await?,
            None => None,
        };
        Ok(Outcome { note: missing.clone(), ..Outcome::from(Value::Bool(missing.is_none())) })
    }
}
