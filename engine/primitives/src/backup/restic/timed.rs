//! What a timer has restic do.

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::{Restic, TAG, command};
use crate::backup::retention::Keep;
use crate::backup::schedule::timed::{Job, Timed, Timer};
use crate::backup::tool::Kept;
use crate::ssh::quote;

/// The rules as options of `restic forget`.
fn rules(keep: &Keep) -> String {
    let numbers = [
        ("last", keep.last),
        ("hourly", keep.hourly),
        ("daily", keep.daily),
        ("weekly", keep.weekly),
        ("monthly", keep.monthly),
        ("yearly", keep.yearly),
    ];
    let mut out: String = numbers.iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!(" --keep-{name}={n}")).collect();
    let hours = keep.within.as_secs().div_ceil(3600);
    if hours > 0 {
        out.push_str(&format!(" --keep-within={}d{}h", hours / 24, hours % 24));
    }
    out
}

impl Timed for Kept<Restic> {
    fn timer(&self, cx: &Cx, job: &Job<'_>) -> Result<Timer> {
        let wrong = |what: String, hint: &str| Error::new(Code::BACKUP_SCHEDULE, what).host(job.host).hint(hint.to_string());
        if self.local() {
            if job.host != self.host {
                return Err(wrong(
                    format!("the repository \"{}\" is a folder on {} and takes snapshots of that host alone", self.name, self.host),
                    "give it as the source host reaches it: sftp:USER@HOST:/PATH, s3:…, rest:…",
                ));
            }
            if !self.repository.trim_start_matches("local:").starts_with('/') {
                return Err(wrong(
                    format!("the repository \"{}\" is relative to the login's home folder, which a timer does not have", self.name),
                    "give `repository` as an absolute path",
                ));
            }
        }
        for t in job.tags {
            if t.is_empty() || t.contains([',', '\n', '\0']) || t.starts_with(TAG) {
                return Err(wrong(format!("{t:?} is not a tag of restic"), "use words without commas"));
            }
        }
        let mut password = String::new();
        let mut env = vec![("RESTIC_PASSWORD_FILE".to_string(), job.password_file.to_string())];
        for (k, v) in self.exec(cx, "", false)?.env {
            if k == "RESTIC_PASSWORD" { password = v } else { env.push((k, v)) }
        }
        let words = |option: &str, all: &[String]| all.iter().map(|w| format!(" {option}={}", quote(w))).collect::<String>();
        let paths: Vec<String> = job.paths.iter().map(|p| quote(p)).collect();
        let restic = command(&self.settings);
        let host = quote(job.host);
        let mut script = format!(
            "set -- {}\nfor p; do\n  [ -e \"$p\" ] || [ -L \"$p\" ] || {{ printf '%s: there is no such file\\n' \"$p\" >&2; exit 66; }}\ndone\n\
             {restic} unlock >/dev/null 2>&1\n{restic} backup --quiet{}{} --host={host} -- \"$@\" || exit\n",
            paths.join(" "),
            words("--tag", job.tags),
            words("--exclude", job.exclude),
        );
        if let Some(keep) = job.keep {
            // Another host may be at work in the repository.
            script.push_str(&format!(
                "n=0\nuntil said=$({restic} forget --quiet --prune --host={host} --tag={} --group-by=host,paths{} 2>&1); do\n  n=$((n + 1))\n  \
                 case $said in *locked*) [ \"$n\" -lt 90 ] && sleep 20 && continue ;; esac\n  printf '%s\\n' \"$said\" >&2\n  exit 1\ndone\n",
                quote(&format!("schedule:{}", job.name)),
                rules(keep)
            ));
        }
        Ok(Timer { program: "restic", env, password, script })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rules_are_those_of_restic() {
        let keep = Keep { daily: 7, weekly: 4, within: Duration::from_secs(50 * 3600), ..Keep::default() };
        assert_eq!(rules(&keep), " --keep-daily=7 --keep-weekly=4 --keep-within=2d2h");
    }
}
