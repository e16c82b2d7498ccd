//! Methods of `Backup` that look after a repository: made, fresh, sound, not for ever growing.

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::units::show_duration;
use runbook_core::{Code, Error, Record, Result, Value};

use super::primitives::{host_ty, name_of, texts, texts_ty};
use super::repository::{Snapshot, of};
use super::retention::Keep;

pub(super) fn register(r: &mut Registry) {
    r.add(Init(
        Spec::method("Backup", "init", Effect::Converge, "Makes the repository. There is nothing to do when it is there.")
            .example(r#"backup("vault").init();"#)
            .errors(&[Code::BACKUP_REPOSITORY, Code::HOST_TOOL_MISSING]),
    ));
    r.add(Check(
        Spec::method(
            "Backup",
            "check",
            Effect::Read,
            "Checks the repository as a whole: `restic check`, `borg check`, or every archive with its checksums.\n\nWith restic, `data` says of how many \
             percent of the data the hashes are computed as well, chosen at random; 0 by default, which looks at the structure alone. With borg, 0 reads \
             all segments with their checksums, and any other number decrypts all data as well: it has no part of it.",
        )
        .option("data", Ty::Int, "Of how many percent of the data, 0 to 100.")
        .example(r#"backup("vault").check(#{ data: 10 });"#)
        .errors(&[Code::BACKUP_REPOSITORY, Code::BACKUP_DAMAGED, Code::WRONG_TYPE]),
    ));
    r.add(Unlock(
        Spec::method(
            "Backup",
            "unlock",
            Effect::Converge,
            "Removes locks of a repository whose holders are proven to be dead: processes of the same host that are not there any more; with restic, also \
             those that were not renewed for half an hour.\n\nA lock that lives is an error that names its holder. With `force` all locks go: say it only \
             when you know that nothing works on the repository, from any host.",
        )
        .option("force", Ty::Bool, "Whether all locks go, whoever holds them; false by default.")
        .example(r#"backup("vault").unlock();"#)
        .errors(&[Code::BACKUP_REPOSITORY]),
    ));
    let mut prune = Spec::method(
        "Backup",
        "prune",
        Effect::Converge,
        "Removes old snapshots, and what only they needed.\n\nEach rule keeps the newest snapshot of each of so many hours, days, weeks (from \
         Monday), months or years in which there is one, in UTC; what any rule keeps stays. Snapshots of different hosts, or of different paths, are \
         counted apart, so that the last one of a host that is gone stays. Without any rule nothing is removed: that is an error.",
    );
    for (name, doc) in [
        ("last", "Keeps so many of the newest."),
        ("hourly", "Keeps the newest of so many hours."),
        ("daily", "Keeps the newest of so many days."),
        ("weekly", "Keeps the newest of so many weeks."),
        ("monthly", "Keeps the newest of so many months."),
        ("yearly", "Keeps the newest of so many years."),
    ] {
        prune = prune.option(name, Ty::Int, doc);
    }
    r.add(Prune(
        prune
            .option("within", Ty::Duration, "Keeps all that are at most so much older than the newest one.")
            .option("tags", texts_ty(), "Keeps all with one of these tags.")
            .option("host", host_ty(), "Only snapshots of this host are looked at.")
            .returns(Ty::Record("Pruned"))
            .example(r#"backup("vault").prune(#{ daily: 7, weekly: 4, monthly: 12, tags: ["before-cutover"] });"#)
            .errors(&[Code::BACKUP_REPOSITORY, Code::WRONG_TYPE]),
    ));
    r.add_type(TypeSpec::new("Pruned", "What `prune` left and removed.").field("kept", Ty::Int, "How many snapshots are left.").field(
        "removed",
        Ty::List(Box::new(Ty::Record("Snapshot"))),
        "Those that were removed.",
    ));
    r.add(RequireFresh(
        Spec::method(
            "Backup",
            "require_fresh",
            Effect::Read,
            "Fails unless there is a snapshot that is not older than so long. Gives the newest one.\n\nA snapshot of the future, which a host whose \
             clock is wrong has made, is no fresh one.",
        )
        .arg("max_age", Ty::Duration, "How old the newest one may be.")
        .option("host", host_ty(), "Only snapshots of this host count.")
        .option("tags", texts_ty(), "Only snapshots with all of these tags count.")
        .returns(Ty::Record("Snapshot"))
        .example(r#"backup("vault").require_fresh("24h", #{ host: host("old") });"#)
        .errors(&[Code::BACKUP_STALE, Code::BACKUP_REPOSITORY]),
    ));
}

struct Init(Spec);

#[async_trait]
impl Primitive for Init {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        Ok(Outcome::done(of(cx, call).await?.init(cx).await?, "it is there already"))
    }
}

struct Check(Spec);

#[async_trait]
impl Primitive for Check {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let percent = number(call, "data")?;
        let percent = u8::try_from(percent).ok().filter(|p| *p <= 100).ok_or_else(|| {
            Error::new(Code::WRONG_TYPE, format!("`data` is a part of the data in percent, and {percent} is none")).hint("write 0 to 100")
        })?;
        of(cx, call).await?.check(cx, percent).await?;
        Ok(Outcome::default())
    }
}

struct Unlock(Spec);

#[async_trait]
impl Primitive for Unlock {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        of(cx, call).await?.unlock(cx, call.opt_bool("force")).await?;
        Ok(Outcome::default())
    }
}

/// An option that counts; 0 when it is not given.
pub(super) fn number(call: &Call, name: &'static str) -> Result<usize> {
    match call.opt(name) {
        None => Ok(0),
        Some(v) => v.as_int().and_then(|n| usize::try_from(n).ok()).ok_or_else(|| {
            Error::new(Code::WRONG_TYPE, format!("`{name}` cannot be negative")).hint("leave the option out to do without that rule")
        }),
    }
}

struct Prune(Spec);

#[async_trait]
impl Primitive for Prune {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let keep = Keep {
            last: number(call, "last")?,
            hourly: number(call, "hourly")?,
            daily: number(call, "daily")?,
            weekly: number(call, "weekly")?,
            monthly: number(call, "monthly")?,
            yearly: number(call, "yearly")?,
            within: call.opt_duration("within").unwrap_or_default(),
            tags: texts(call.opt("tags")),
        };
        if keep.nothing() {
            return Err(
                Error::new(Code::WRONG_TYPE, "prune was told to keep nothing").hint("say what stays, for example #{ daily: 7, weekly: 4 }")
            );
        }
        let repository = of(cx, call).await?;
        let mut all = repository.list(cx).await?;
        if let Some(host) = call.opt("host").map(name_of) {
            all.retain(|s| s.host == host);
        }
        let (stay, go) = keep.divide(&all);
        repository.remove(cx, &go).await?;
        let removed = Value::List(go.iter().map(Snapshot::to_value).collect());
        let kept = i64::try_from(stay.len()).unwrap_or(i64::MAX);
        let value = Record::new("Pruned", [("kept", kept.into()), ("removed", removed)]);
        Ok(if go.is_empty() {
            Outcome::unchanged(value, format!("all {kept} snapshots stay"))
        } else {
            Outcome::changed(value).note(format!("{} removed, {kept} stay", go.len()))
        })
    }
}

struct RequireFresh(Spec);

#[async_trait]
impl Primitive for RequireFresh {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (max, now) = (call.duration(0).unwrap_or_default(), cx.clock.now());
        let (host, tags) = (call.opt("host").map(name_of), texts(call.opt("tags")));
        let all = of(cx, call).await?.list(cx).await?;
        let counts = |s: &&Snapshot| host.is_none_or(|h| s.host == h) && tags.iter().all(|t| s.tags.contains(t)) && s.time <= now;
        let newest = all.iter().filter(counts).max_by_key(|s| s.time);
        let of = host.map_or(String::new(), |h| format!(" of {h}"));
        let stale =
            |why: String| Err(Error::new(Code::BACKUP_STALE, why).hint("take one before going on, and find out why none was taken"));
        let Some(newest) = newest else {
            return stale(format!("\"{}\" has no such snapshot{of}", call.target()));
        };
        let age = std::time::Duration::try_from(now.duration_since(newest.time)).unwrap_or_default();
        if age > max {
            return stale(format!(
                "the newest snapshot{of} in \"{}\" is {} old, and {} is allowed",
                call.target(),
                show_duration(std::time::Duration::from_secs(age.as_secs())),
                show_duration(max)
            ));
        }
        Ok(newest.to_value().into())
    }
}
