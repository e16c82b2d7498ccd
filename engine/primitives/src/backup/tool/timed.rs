//! What a timer has the tool do.

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::{Kept, Tool};
use crate::backup::repository::Plan;
use crate::backup::retention::Keep;
use crate::backup::schedule::timed::{Job, Timed, Timer};
use crate::ssh::quote;

/// How a tool gets its password from a file.
pub(in crate::backup) struct FromFile {
    /// The variable that has the password otherwise.
    pub(in crate::backup) instead_of: &'static str,
    /// The variable that names the file.
    pub(in crate::backup) variable: &'static str,
    /// Its value.
    pub(in crate::backup) value: String,
}

/// The rules as options of the tool; hours are written as it has them.
pub(in crate::backup) fn rules(keep: &Keep, hours: impl Fn(u64) -> String) -> String {
    let numbers = [
        ("last", keep.last),
        ("hourly", keep.hourly),
        ("daily", keep.daily),
        ("weekly", keep.weekly),
        ("monthly", keep.monthly),
        ("yearly", keep.yearly),
    ];
    let mut out: String = numbers.iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!(" --keep-{name}={n}")).collect();
    let within = keep.within.as_secs().div_ceil(3600);
    if within > 0 {
        out.push_str(&format!(" --keep-within={}", hours(within)));
    }
    out
}

impl<T: Tool> Timed for Kept<T> {
    fn timer(&self, cx: &Cx, job: &Job<'_>) -> Result<Timer> {
        let plan = Plan {
            host: job.host.to_string(),
            paths: job.paths.to_vec(),
            exclude: job.exclude.to_vec(),
            tags: job.tags.to_vec(),
            ..Plan::default()
        };
        self.within_reach(&plan, Code::BACKUP_SCHEDULE)?;
        if self.local() && !self.repository.trim_start_matches("local:").trim_start_matches("file://").starts_with('/') {
            return Err(Error::new(
                Code::BACKUP_SCHEDULE,
                format!("the repository \"{}\" is relative to the login's home folder, which a timer does not have", self.name),
            )
            .host(job.host)
            .hint("give `repository` as an absolute path"));
        }
        // What is no tag is refused there.
        self.tool.words(cx, &plan).map_err(|e| Error { code: Code::BACKUP_SCHEDULE, ..e })?;
        let from = T::from_file(job.password_file);
        let (mut password, mut env) = (String::new(), vec![]);
        for (k, v) in self.exec(cx, "", false)?.env {
            if k == from.instead_of { password = v } else { env.push((k, v)) }
        }
        if !password.is_empty() {
            env.insert(0, (from.variable.to_string(), from.value));
        }
        let paths: Vec<String> = job.paths.iter().map(|p| quote(p)).collect();
        let script = format!(
            "set -- {}\nfor p; do\n  [ -e \"$p\" ] || [ -L \"$p\" ] || {{ printf '%s: there is no such file\\n' \"$p\" >&2; exit 66; }}\ndone\n{}",
            paths.join(" "),
            T::timer(&self.settings, job, &plan)
        );
        Ok(Timer { program: T::PROGRAM.0, env, password, script })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rules_are_those_of_the_tools() {
        let keep = Keep { daily: 7, weekly: 4, within: Duration::from_secs(50 * 3600), ..Keep::default() };
        assert_eq!(rules(&keep, |h| format!("{}d{}h", h / 24, h % 24)), " --keep-daily=7 --keep-weekly=4 --keep-within=2d2h");
        assert_eq!(rules(&Keep::default(), |h| h.to_string()), "");
    }
}
