//! The text of the units and of the script that they run.

use runbook_core::units::show_duration;

use super::Plan;
use crate::ssh::quote;

/// Where the files of a schedule are.
pub(super) fn folder(name: &str) -> String {
    format!("/etc/runbook/backup/{name}")
}

fn head(plan: &Plan<'_>) -> String {
    format!(
        "# Written by runbook: the schedule \"{}\" of the backup repository \"{}\".\n# Do not edit: schedule() would refuse to go over it. unschedule() takes it away.\n",
        plan.name, plan.repository
    )
}

/// The service.
pub(super) fn service(plan: &Plan<'_>) -> String {
    format!(
        "{}[Unit]\nDescription=Backup {name} into {} (runbook)\nWants=network-online.target\nAfter=network-online.target\n{disk}\n\
         [Service]\nType=oneshot\nExecStart=/bin/sh {}/run\nEnvironment=HOME=/root\nUMask=0077\nNice=10\nIOSchedulingClass=best-effort\nIOSchedulingPriority=7\n",
        head(plan),
        plan.repository,
        folder(plan.name),
        name = plan.name,
        // A per cent sign would be a specifier.
        disk = plan.mount.as_ref().map_or_else(String::new, |at| format!("ConditionPathIsMountPoint={}\n", at.replace('%', "%%"))),
    )
}

/// The timer.
pub(super) fn timer(plan: &Plan<'_>) -> String {
    let at: String = plan.at.iter().map(|a| format!("OnCalendar={a}\n")).collect();
    let delay = if plan.delay.is_zero() { String::new() } else { format!("RandomizedDelaySec={}\n", plan.delay.as_secs()) };
    format!(
        "{}[Unit]\nDescription=When the backup {} is taken (runbook)\n\n[Timer]\n{at}{delay}AccuracySec=1s\nPersistent={}\nUnit=runbook-backup-{}.service\n\n\
         [Install]\nWantedBy=timers.target\n",
        head(plan),
        plan.name,
        plan.persistent,
        plan.name
    )
}

/// The script.
pub(super) fn run(plan: &Plan<'_>, script: &str) -> String {
    format!("#!/bin/sh\n{}. {}/env || exit 1\ncd / || exit 1\n{script}", head(plan), folder(plan.name))
}

/// The environment as lines that a shell reads.
pub(super) fn env(all: &[(String, String)]) -> String {
    all.iter().map(|(k, v)| format!("{k}={}\nexport {k}\n", quote(v))).collect()
}

/// What it does, for people.
pub(super) fn said(plan: &Plan<'_>) -> String {
    let delay = if plan.delay.is_zero() { String::new() } else { format!(", up to {} later", show_duration(plan.delay)) };
    format!("{}{delay}", plan.at.join(", "))
}
