//! Snapshots that a host takes by itself: a systemd timer and service for the host's own restic or borg, written, looked at and taken back.
//!
//! `timed.rs`: what a kind of repository must be able to do; `units.rs`: the texts; `apply.sh`, `remove.sh`, `look.sh`: what is done on the host. There,
//! `/etc/runbook/backup/NAME/` (for root alone) has the script, its environment, the password, and the units as they were written, so that
//! what somebody else changes is seen and named.

pub mod timed;
mod units;

use std::time::Duration;

use async_trait::async_trait;
use runbook_core::inventory::{Resource, Section};
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::{Code, Error, Record, Result, Value};
use serde::{Deserialize, Serialize};

use super::offline::Disk;
use super::on_host::said;
use super::primitives::{host_ty, name_of, texts, texts_ty};
use super::repository::open;
use super::retention::Keep;
use crate::ssh::{Done, Exec, connect, quote};
use timed::Job;

const APPLY: &str = include_str!("apply.sh");
const REMOVE: &str = include_str!("remove.sh");
const LOOK: &str = include_str!("look.sh");

/// A schedule as it is to be.
struct Plan<'a> {
    name: &'a str,
    repository: &'a str,
    at: Vec<String>,
    delay: Duration,
    persistent: bool,
    /// Without what is mounted there it does nothing.
    mount: Option<String>,
}

/// What is kept of it on the host, for lists.
#[derive(Debug, Serialize, Deserialize)]
struct About {
    repository: String,
    host: String,
    at: Vec<String>,
    paths: Vec<String>,
    tags: Vec<String>,
}

pub(super) fn register(r: &mut Registry) {
    let mut schedule = Spec::method(
        "Backup",
        "schedule",
        Effect::Converge,
        "Has a host take snapshots by itself: a systemd timer and service for the host's own restic or borg.\n\nNothing is installed before systemd \
         has found the calendar and both units right. The password stands in a file that only root can read. The snapshots carry the tag \
         `schedule:NAME`, by which `require_fresh` finds them. Where the repository is on a disk that is attached at times (`mount`), nothing is done while it is not. A path that is not there, or a file that cannot be read, makes the service fail; whether files \
         change while they are read is not looked at. With rules (`keep_daily` and so on) the service removes its own old snapshots as well.\n\n\
         There is nothing to do when all of it is there already. What somebody else has changed in it is named and refused, unless `replace: true`. A \
         schedule that is replaced is kept aside, for `unschedule(name, host, #{ former: true })`. To try it at once: \
         `host.run(\"systemctl start runbook-backup-NAME\")`.",
    )
    .arg("name", Ty::Str, "Its name: small letters, digits, `-` and `_`.")
    .arg("at", texts_ty(), "When: one or several calendar expressions of systemd, such as `02:30`, `Mon *-*-* 04:00` or `hourly`.")
    .arg("host", host_ty(), "The host that takes them.")
    .arg("paths", texts_ty(), "Folders and files, by their absolute paths.")
    .option("tags", texts_ty(), "Further words to find them by.")
    .option("exclude", texts_ty(), "What to leave out, as patterns of `--exclude` of restic or borg.")
    .option("randomized_delay", Ty::Duration, "Begins up to so much later, at random, so that not all hosts begin at once.")
    .option("persistent", Ty::Bool, "Whether a time that passed while the host was down is made up for; true by default.")
    .option("replace", Ty::Bool, "Whether what somebody else has changed is replaced; false by default.")
    .option("sudo", Ty::Bool, "Whether to set it up with sudo, when the login is not root; false by default.");
    for (name, doc) in [
        ("keep_last", "Keeps so many of the newest."),
        ("keep_hourly", "Keeps the newest of so many hours."),
        ("keep_daily", "Keeps the newest of so many days."),
        ("keep_weekly", "Keeps the newest of so many weeks."),
        ("keep_monthly", "Keeps the newest of so many months."),
        ("keep_yearly", "Keeps the newest of so many years."),
    ] {
        schedule = schedule.option(name, Ty::Int, doc);
    }
    r.add(Set(schedule
        .option("keep_within", Ty::Duration, "Keeps all that are at most so much older than the newest one; whole hours.")
        .returns(Ty::Record("Schedule"))
        .example(r#"backup("vault").schedule("nightly", "02:30", host("old"), ["/etc", "/srv/shop"], #{ randomized_delay: "15m", keep_daily: 7, keep_weekly: 4 });"#)
        .errors(&[Code::BACKUP_SCHEDULE, Code::BACKUP_DRIFT, Code::HOST_TOOL_MISSING])));
    r.add(Unset(
        Spec::method(
            "Backup",
            "unschedule",
            Effect::Converge,
            "Takes a schedule back: its timer, service, script and password. Snapshots stay, and one that is being taken is finished.",
        )
        .arg("name", Ty::Str, "Its name.")
        .arg("host", host_ty(), "The host that takes them.")
        .option("former", Ty::Bool, "Whether the schedule of that name that it had replaced comes back; false by default.")
        .option("replace", Ty::Bool, "Whether units that somebody else has changed are removed too; false by default.")
        .option("sudo", Ty::Bool, "Whether to use sudo, when the login is not root; false by default.")
        .example(r#"backup("vault").unschedule("nightly", host("old"));"#)
        .errors(&[Code::BACKUP_SCHEDULE, Code::BACKUP_DRIFT]),
    ));
    r.add(List(
        Spec::method(
            "Backup",
            "schedules",
            Effect::Read,
            "Lists the schedules of this repository on a host: when they ran last, how that ended, when they run next.",
        )
        .arg("host", host_ty(), "The host.")
        .option("sudo", Ty::Bool, "Whether to use sudo, when the login is not root; false by default.")
        .returns(Ty::List(Box::new(Ty::Record("Schedule"))))
        .example(r#"for s in backup("vault").schedules(host("old")) { log(`${s.name}: ${s.result}, next ${s.next}`); }"#)
        .errors(&[Code::BACKUP_SCHEDULE]),
    ));
    let time = || Ty::OneOf(vec![Ty::Time, Ty::Unit]);
    r.add_type(
        TypeSpec::new("Schedule", "Snapshots that a host takes by itself.")
            .field("name", Ty::Str, "Its name; its units are called `runbook-backup-NAME`.")
            .field("host", Ty::Str, "The inventory name of the host.")
            .field("repository", Ty::Str, "The inventory name of the repository.")
            .field("at", Ty::List(Box::new(Ty::Str)), "When, as calendar expressions of systemd.")
            .field("paths", Ty::List(Box::new(Ty::Str)), "What is taken.")
            .field("tags", Ty::List(Box::new(Ty::Str)), "What the snapshots are marked with.")
            .field("active", Ty::Bool, "Whether its timer runs, and will after a restart of the host.")
            .field("next", time(), "When it runs next; `()` when it will not.")
            .field("last", time(), "When it ran last; `()` when it never did.")
            .field("result", Ty::Str, "How that ended: `success`, `running`, `never`, `skipped` (the disk of its repository was not attached), `unknown` (since the host was started), or systemd's word for the failure with the status.")
            .field("drift", Ty::List(Box::new(Ty::Str)), "Units that somebody else has changed."),
    );
}

fn error(code: Code, host: &str, why: impl Into<String>) -> Error {
    Error::new(code, why).host(host)
}

fn named<'a>(call: &'a Call, host: &str) -> Result<&'a str> {
    let name = call.str(0);
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 60 || !name.chars().all(good) || name.starts_with('-') {
        return Err(error(Code::BACKUP_SCHEDULE, host, format!("{name:?} cannot be the name of a schedule"))
            .hint("use small letters, digits, - and _, such as \"nightly\""));
    }
    Ok(name)
}

fn sudo(cx: &Cx, call: &Call) -> Result<bool> {
    Ok(call.opt_bool("sudo") || cx.env.resource(Section::Backups, call.target())?.flag("sudo"))
}

/// What a script on the host complained of.
fn complaint(host: &str, name: &str, done: &Done) -> Error {
    let text = String::from_utf8_lossy(&done.stderr);
    let why: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let why = why.join("; ");
    let fail = |what: String| error(Code::BACKUP_SCHEDULE, host, what);
    match done.status {
        64 => fail(why).hint("schedules need systemd; without it, have cron call runbook"),
        65 => fail(format!("the calendar of the schedule \"{name}\" is not one: {why}"))
            .hint("try it on a host: systemd-analyze calendar '…'; see systemd.time(7), \"Calendar Events\""),
        66 => fail(why).hint("log in as root, or say #{ sudo: true }"),
        67 => fail(format!("systemd does not take the units of the schedule \"{name}\": {why}")),
        68 => error(Code::BACKUP_DRIFT, host, format!("the schedule \"{name}\" is not as it was written: {why}"))
            .hint("bring the change into the runbook, or say #{ replace: true } to go over it"),
        127 => Error::new(Code::HOST_TOOL_MISSING, format!("the host has no {why}")).host(host).hint("install it there"),
        s => fail(format!("the schedule \"{name}\" cannot be changed: {} (status {s})", said(&text)))
            .hint("mend what is said there, then resume"),
    }
}

fn keep(call: &Call) -> Result<Option<Keep>> {
    let number = |name: &'static str| match call.opt(name) {
        None => Ok(0),
        Some(v) => v
            .as_int()
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| Error::new(Code::WRONG_TYPE, format!("`{name}` cannot be negative"))),
    };
    let keep = Keep {
        last: number("keep_last")?,
        hourly: number("keep_hourly")?,
        daily: number("keep_daily")?,
        weekly: number("keep_weekly")?,
        monthly: number("keep_monthly")?,
        yearly: number("keep_yearly")?,
        within: call.opt_duration("keep_within").unwrap_or_default(),
        tags: vec![],
    };
    Ok((!keep.nothing()).then_some(keep))
}

/// Where the disk of the repository is mounted, when that is there only at times: the host that takes the snapshots must see it.
fn disk(repository: &Resource, host: &str) -> Result<Option<String>> {
    let Some(disk) = Disk::of(repository)? else { return Ok(None) };
    let cannot = |why: String, hint: &str| Err(error(Code::BACKUP_SCHEDULE, host, why).hint(hint));
    if disk.host != host {
        let why = format!(
            "the disk of the repository \"{}\" is mounted on {}, where a timer of {host} does not see it",
            repository.name, disk.host
        );
        return cannot(why, "have a runbook take the snapshots when `attached()`, or schedule those of that host");
    }
    if !disk.at.starts_with('/') || disk.at.contains('\n') {
        return cannot(
            format!("`mount` of the repository \"{}\" is no absolute path: {:?}", repository.name, disk.at),
            "a timer has no home folder to start from",
        );
    }
    Ok(Some(disk.at))
}

struct Set(Spec);

#[async_trait]
impl Primitive for Set {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let host = name_of(call.arg(2));
        let name = named(call, host)?;
        let resource = cx.env.resource(Section::Backups, call.target())?;
        let plan = Plan {
            name,
            repository: call.target(),
            at: texts(Some(call.arg(1))),
            delay: call.opt_duration("randomized_delay").unwrap_or_default(),
            persistent: call.opt("persistent").is_none() || call.opt_bool("persistent"),
            mount: disk(resource, host)?,
        };
        let paths = texts(Some(call.arg(3)));
        if paths.is_empty() || plan.at.is_empty() {
            return Err(error(Code::BACKUP_SCHEDULE, host, "a schedule needs at least one path and one time"));
        }
        if let Some(bad) = paths.iter().find(|p| !p.starts_with('/') || p.contains(['\n', '\0'])) {
            return Err(
                error(Code::BACKUP_SCHEDULE, host, format!("{bad:?} is no absolute path")).hint("a timer has no home folder to start from")
            );
        }
        if let Some(bad) = plan.at.iter().find(|a| a.trim().is_empty() || a.contains(['\n', '\0'])) {
            return Err(error(Code::BACKUP_SCHEDULE, host, format!("the calendar of the schedule \"{name}\" is not one: {bad:?}")));
        }
        let mut tags = vec![format!("schedule:{name}")];
        tags.extend(texts(call.opt("tags")));
        let (exclude, keep) = (texts(call.opt("exclude")), keep(call)?);
        let repo = open(resource)?;
        let timed = repo.timed().ok_or_else(|| {
            error(Code::BACKUP_SCHEDULE, host, format!("the repository \"{}\" is of a kind that no timer can write to", plan.repository))
                .hint("use one of kind restic or borg; an archive is made through the controller")
        })?;
        let password_file = format!("{}/password", units::folder(name));
        let job = Job { name, host, paths: &paths, exclude: &exclude, tags: &tags, keep: keep.as_ref(), password_file: &password_file };
        let timer = timed.timer(cx, &job)?;
        let about = About { repository: plan.repository.into(), host: host.into(), at: plan.at.clone(), paths, tags };
        let about = serde_json::to_string(&about).map_err(|e| Error::internal(e.to_string()))?;
        let text = |function: &str, text: &str| format!("{function}() {{ printf '%s\\n' {}; }}\n", quote(text.trim_end_matches('\n')));
        let script = format!(
            "name={} program={} replace={} at={}\n{}{}{}{}{APPLY}",
            quote(name),
            timer.program,
            u8::from(call.opt_bool("replace")),
            quote(&plan.at.join("\n")),
            text("run_text", &units::run(&plan, &timer.script)),
            text("service_text", &units::service(&plan)),
            text("timer_text", &units::timer(&plan)),
            text("about_text", &about),
        );
        let env = vec![("RB_ENV".to_string(), units::env(&timer.env)), ("RB_PASSWORD".to_string(), timer.password)];
        let done = connect(cx, host).await?.exec_again(cx, Exec { env, sudo: sudo(cx, call)?, ..Exec::new(script) }).await?;
        if done.status != 0 {
            return Err(complaint(host, name, &done));
        }
        let out = String::from_utf8_lossy(&done.stdout).into_owned();
        let value =
            look(cx, call, host).await?.into_iter().find(|s| s.as_record().is_some_and(|r| r.str("name") == name)).unwrap_or_default();
        if out.trim() == "same" {
            return Ok(Outcome::unchanged(value, "it is so already"));
        }
        let replaced = out.lines().find_map(|l| l.strip_prefix("replaced ")).map_or(String::new(), |l| format!("; replaced: {l}"));
        Ok(Outcome::changed(value).note(format!("{}{replaced}", units::said(&plan))))
    }
}

struct Unset(Spec);

#[async_trait]
impl Primitive for Unset {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let host = name_of(call.arg(1));
        let name = named(call, host)?;
        let script = format!(
            "name={} replace={} former={}\n{REMOVE}",
            quote(name),
            u8::from(call.opt_bool("replace")),
            u8::from(call.opt_bool("former"))
        );
        let done = connect(cx, host).await?.exec_again(cx, Exec { sudo: sudo(cx, call)?, ..Exec::new(script) }).await?;
        if done.status != 0 {
            return Err(complaint(host, name, &done));
        }
        Ok(match String::from_utf8_lossy(&done.stdout).trim() {
            "same" => Outcome::unchanged((), "there is no such schedule"),
            "former" => Outcome::changed(()).note("the former schedule is back"),
            _ => Outcome::changed(()).note("removed"),
        })
    }
}

struct List(Spec);

#[async_trait]
impl Primitive for List {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        Ok(Value::List(look(cx, call, name_of(call.arg(0))).await?).into())
    }
}

/// The schedules of the repository on a host.
async fn look(cx: &Cx, call: &Call, host: &str) -> Result<Vec<Value>> {
    let done = connect(cx, host).await?.exec_again(cx, Exec { sudo: sudo(cx, call)?, ..Exec::new(LOOK) }).await?;
    if done.status != 0 {
        return Err(complaint(host, "", &done));
    }
    let out = String::from_utf8_lossy(&done.stdout);
    Ok(read(&out).into_iter().filter(|s| s.as_record().is_some_and(|r| r.str("repository") == call.target())).collect())
}

/// A time as systemd writes it.
fn time(text: &str) -> Value {
    jiff::civil::DateTime::strptime("%a %Y-%m-%d %H:%M:%S UTC", text)
        .ok()
        .and_then(|t| t.to_zoned(jiff::tz::TimeZone::UTC).ok())
        .map_or(Value::Unit, |z| Value::Time(z.timestamp()))
}

/// Reads what `look.sh` prints.
fn read(out: &str) -> Vec<Value> {
    let mut all = Vec::new();
    for part in format!("\n{out}").split("\nschedule ").skip(1) {
        let mut lines = part.lines();
        let name = lines.next().unwrap_or_default();
        let lines: Vec<&str> = lines.collect();
        let key = |k: &str| lines.iter().find_map(|l| l.strip_prefix(k)?.strip_prefix('=')).unwrap_or_default();
        let Some(about) = lines.iter().find_map(|l| serde_json::from_str::<About>(l.strip_prefix("about ")?).ok()) else { continue };
        let texts = |l: &[String]| Value::List(l.iter().map(|t| t.as_str().into()).collect());
        let last = time(key("LastTriggerUSec"));
        let result = match (key("service.ActiveState"), key("service.Result"), key("service.ExecMainExitTimestamp")) {
            ("activating" | "active" | "deactivating", _, _) => "running".to_string(),
            _ if key("service.ConditionResult") == "no" && !key("service.ConditionTimestamp").is_empty() => "skipped".into(),
            (_, "success", "") if last == Value::Unit => "never".into(),
            (_, "success", "") => "unknown".into(),
            (_, "success", _) => "success".into(),
            (_, other, _) => format!("{other} {}", key("service.ExecMainStatus")),
        };
        let drift: Vec<String> = lines.iter().filter_map(|l| l.strip_prefix("drift ").map(str::to_string)).collect();
        let active = key("ActiveState") == "active" && key("UnitFileState") == "enabled";
        all.push(
            Record::new(
                "Schedule",
                [
                    ("name", name.into()),
                    ("host", about.host.as_str().into()),
                    ("repository", about.repository.as_str().into()),
                    ("at", texts(&about.at)),
                    ("paths", texts(&about.paths)),
                    ("tags", texts(&about.tags)),
                    ("active", active.into()),
                    ("next", time(key("NextElapseUSecRealtime"))),
                    ("last", last),
                    ("result", result.into()),
                    ("drift", texts(&drift)),
                ],
            )
            .into(),
        );
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemd_says_is_read() {
        let out = "schedule nightly\nabout {\"repository\":\"vault\",\"host\":\"old\",\"at\":[\"02:30\"],\"paths\":[\"/etc\"],\"tags\":[\"schedule:nightly\"]}\n\
                   ActiveState=active\nUnitFileState=enabled\nNextElapseUSecRealtime=Sun 2026-11-22 02:30:00 UTC\nLastTriggerUSec=n/a\n\
                   service.Result=success\nservice.ExecMainStatus=0\nservice.ActiveState=inactive\nservice.ExecMainExitTimestamp=\n\
                   schedule weekly\nabout {\"repository\":\"vault\",\"host\":\"old\",\"at\":[\"Mon\"],\"paths\":[\"/srv\"],\"tags\":[]}\nActiveState=inactive\nUnitFileState=disabled\n\
                   NextElapseUSecRealtime=\nLastTriggerUSec=Sat 2026-11-21 02:30:07 UTC\nservice.Result=exit-code\nservice.ExecMainStatus=66\nservice.ActiveState=failed\n\
                   service.ExecMainExitTimestamp=Sat 2026-11-21 02:30:09 UTC\ndrift runbook-backup-weekly.timer\n";
        let all = read(out);
        let of = |i: usize, f: &str| all[i].as_record().unwrap().get(f).clone();
        assert_eq!((of(0, "result"), of(0, "last"), of(0, "active")), ("never".into(), Value::Unit, true.into()));
        assert_eq!(of(0, "next"), Value::Time("2026-11-22T02:30:00Z".parse().unwrap()));
        assert_eq!((of(1, "result"), of(1, "next"), of(1, "active")), ("exit-code 66".into(), Value::Unit, false.into()));
        assert_eq!(of(1, "last"), Value::Time("2026-11-21T02:30:07Z".parse().unwrap()));
        assert_eq!(of(1, "drift"), Value::List(vec!["runbook-backup-weekly.timer".into()]));
    }

    #[test]
    fn scripts_are_clean() {
        runbook_testkit::shellcheck(&[APPLY, REMOVE, LOOK], "SC2154,SC2034,SC2317,SC2015,SC2016,SC1091");
    }
}
