//! What a timer has borg do.

use super::{comment, sound};
use crate::backup::repository::Plan;
use crate::backup::schedule::timed::Job;
use crate::backup::tool::timed::rules;
use crate::ssh::quote;

/// How long it waits for another one, in seconds: borg lets nobody else in while it writes.
const WAIT: u32 = 1800;

/// Takes the paths that are the positional parameters, and removes what is too old. Of warnings only changed files are none of ours: whatever cannot be
/// read fails.
pub(super) fn script(job: &Job<'_>, plan: &Plan) -> String {
    let exclude: String = plan.exclude.iter().map(|w| format!(" --exclude={}", quote(w))).collect();
    let begins = format!("{}.{}.", sound(&plan.host), job.name);
    let mut script = format!(
        "said=$(borg create --lock-wait={WAIT} --comment={}{exclude} -- \"::\"{}\"$(date -u +%Y-%m-%dT%H:%M:%S)\" \"$@\" 2>&1)\ns=$?\n\
         [ -z \"$said\" ] || printf '%s\\n' \"$said\" >&2\n\
         if [ \"$s\" = 1 ]; then\n  ! printf '%s\\n' \"$said\" | grep -qv ': file changed while we backed it up$' || exit 65\n\
         elif [ \"$s\" != 0 ]; then\n  exit \"$s\"\nfi\n",
        quote(&comment("", &plan.host, &plan.tags, &plan.paths)),
        quote(&begins),
    );
    if let Some(keep) = job.keep {
        script.push_str(&format!(
            "borg prune --lock-wait={WAIT} --glob-archives={}{} || exit\nborg compact --lock-wait={WAIT}\n",
            quote(&format!("{begins}*")),
            rules(keep, |hours| format!("{hours}H"))
        ));
    }
    script
}
