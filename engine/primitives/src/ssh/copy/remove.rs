//! Removes entries on the target: files and links, then folders that have become empty, the innermost first.

use runbook_core::{Code, Error, Result};

use super::manifest::{Entry, list};
use super::{Job, failure};
use crate::ssh::files::dashed;
use crate::ssh::{Exec, quote};

pub(super) async fn remove(job: &Job<'_>, mut entries: Vec<&Entry>) -> Result<()> {
    entries.sort_by(|a, b| b.path.cmp(&a.path));
    entries.dedup_by(|a, b| a.path == b.path);
    let target = quote(&dashed(job.target));
    let (folders, others): (Vec<&Entry>, Vec<&Entry>) = entries.into_iter().partition(|e| e.kind == b'd');
    for (these, script) in [
        (others, format!("cd -- {target} && xargs -0 -r rm -f --")),
        // A folder that holds something excluded stays.
        (folders, format!("cd -- {target} && xargs -0 -r rmdir --ignore-fail-on-non-empty --")),
    ] {
        if these.is_empty() {
            continue;
        }
        let stdin = Some(list(these.into_iter()));
        let done = job.to.exec(job.cx, Exec { sudo: job.o.sudo, stdin, ..Exec::new(script) }).await?;
        if done.status != 0 {
            return Err(failure::transfer(&job.sides(), failure::Side::To, &String::from_utf8_lossy(&done.stderr), done.status));
        }
    }
    Ok(())
}

/// Removes what broken copies have left of files, with the folders that it is in; the folders around these keep their times.
pub(super) async fn partials(job: &Job<'_>, folders: impl Iterator<Item = &Entry>) -> Result<()> {
    let stdin = list(folders);
    if stdin.is_empty() {
        return Ok(());
    }
    let each = "[ -d \"$2\" ] || exit 0; d=${2%/*}; touch -r \"$d\" -- \"$1\" && rm -rf -- \"$2\" && touch -r \"$1\" -- \"$d\"";
    let script = format!(
        "cd -- {} || exit 96\nt=$(mktemp) || exit 1\nxargs -0 -r -n 1 sh -c {} sh \"$t\"; s=$?\nrm -f -- \"$t\"\nexit $s",
        quote(&dashed(job.target)),
        quote(each)
    );
    let done = job.to.exec(job.cx, Exec { sudo: job.o.sudo, stdin: Some(stdin), ..Exec::new(script) }).await?;
    match done.status {
        0 => Ok(()),
        status => Err(failure::transfer(&job.sides(), failure::Side::To, &String::from_utf8_lossy(&done.stderr), status)),
    }
}

/// Refuses to delete more than was allowed.
pub(super) fn within_limit(job: &Job<'_>, delete: u64, of: u64) -> Result<()> {
    // A source that is empty because its disk is not mounted must not empty the target as well.
    let limit = job.o.max_delete.unwrap_or_else(|| (of / 4).max(100));
    if delete <= limit {
        return Ok(());
    }
    Err(Error::new(
        Code::COPY_DELETES,
        format!(
            "{delete} of {of} entries of {} would be deleted, since {} on {} does not have them; the limit is {limit}",
            job.target,
            job.source,
            job.from.name()
        ),
    )
    .host(job.to.name())
    .hint(format!(
        "look whether the source is whole (is everything mounted?); if this is meant, allow it with #{{ max_delete: {delete} }}"
    )))
}
