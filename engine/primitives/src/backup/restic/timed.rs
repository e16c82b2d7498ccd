//! What a timer has restic do.

use runbook_core::inventory::Resource;

use super::command;
use crate::backup::repository::Plan;
use crate::backup::schedule::timed::Job;
use crate::backup::tool::timed::rules;
use crate::ssh::quote;

/// Takes the paths that are the positional parameters, and removes what is too old.
pub(super) fn script(r: &Resource, job: &Job<'_>, plan: &Plan) -> String {
    let words = |option: &str, all: &[String]| all.iter().map(|w| format!(" {option}={}", quote(w))).collect::<String>();
    let restic = command(r);
    let host = quote(&plan.host);
    let mut script = format!(
        "{restic} unlock >/dev/null 2>&1\n{restic} backup --quiet{}{} --host={host} -- \"$@\" || exit\n",
        words("--tag", &plan.tags),
        words("--exclude", &plan.exclude),
    );
    if let Some(keep) = job.keep {
        // Another host may be at work in the repository.
        script.push_str(&format!(
            "n=0\nuntil said=$({restic} forget --quiet --prune --host={host} --tag={} --group-by=host,paths{} 2>&1); do\n  n=$((n + 1))\n  \
             case $said in *locked*) [ \"$n\" -lt 90 ] && sleep 20 && continue ;; esac\n  printf '%s\\n' \"$said\" >&2\n  exit 1\ndone\n",
            quote(&format!("schedule:{}", job.name)),
            rules(keep, |hours| format!("{}d{}h", hours / 24, hours % 24))
        ));
    }
    script
}
