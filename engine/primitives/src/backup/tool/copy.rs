//! Copies from one repository into another of the same tool, under the supervisor; what is there already is not copied again.

use runbook_core::inventory::Resource;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::{Kept, Tool};
use crate::backup::repository::{Copied, Made, Snapshot};
use crate::ssh::{Done, Exec, Left, left_by, supervised};

/// What makes a snapshot the same in another repository, where it has another id.
fn same(a: &Snapshot, b: &Snapshot) -> bool {
    (a.time, &a.host, &a.paths) == (b.time, &b.host, &b.paths)
}

impl<T: Tool> Kept<T> {
    /// The host from which both repositories are reached.
    fn between<'a>(&'a self, from: &'a Kept<T>) -> Result<&'a str> {
        let at = if from.local() { &from.host } else { &self.host };
        if self.local() && *at != self.host {
            return Err(Error::new(
                Code::BACKUP_REPOSITORY,
                format!(
                    "\"{}\" is a folder on {} and \"{}\" is one on {}: no host reaches both",
                    from.name, from.host, self.name, self.host
                ),
            )
            .hint("give one of them as the other's host reaches it, such as sftp: for restic, ssh: for borg"));
        }
        Ok(at)
    }

    /// Settings with which a single process opens both.
    fn both(&self, from: &Kept<T>) -> Result<Resource> {
        let mut settings = self.settings.clone();
        for key in ["sftp_command", "ca_file", "access_key", "secret_key", "session_token", "region"] {
            let Some(theirs) = from.settings.settings.get(key) else { continue };
            match settings.settings.get(key) {
                Some(ours) if ours != theirs => {
                    return Err(Error::new(
                        Code::BACKUP_REPOSITORY,
                        format!(
                            "\"{}\" and \"{}\" have different values of `{key}`, and {} takes one for both",
                            from.name,
                            self.name,
                            T::PROGRAM.0
                        ),
                    )
                    .hint("copy by way of a third repository, or take a second snapshot"));
                }
                _ => settings.settings.insert(key.to_string(), theirs.clone()),
            };
        }
        if from.settings.flag("sudo") {
            settings.settings.insert("sudo".into(), true.into());
        }
        Ok(settings)
    }

    pub(super) async fn copy_from(&self, cx: &Cx, from: &Kept<T>, snapshots: &[Snapshot]) -> Result<Copied> {
        let at = self.between(from)?;
        let both = Kept::<T>::new(&self.both(from)?)?;
        let there = self.snapshots(cx, at).await?;
        let missing: Vec<Snapshot> = snapshots.iter().filter(|s| !there.iter().any(|t| same(s, t))).cloned().collect();
        if !missing.is_empty() {
            let mut exec = both.exec(cx, &T::copy(&missing), false)?;
            exec.env.extend(self.tool.source(cx, &from.settings)?.into_iter().map(|(k, v)| (k.to_string(), v)));
            let done = supervised(cx, at, Exec { live: true, ..exec }).await?;
            if done.status != 0 {
                return Err(self.uncopied(at, from, &done));
            }
        }
        self.compared(cx, at, snapshots, &there).await
    }

    /// What there is now and was not before.
    async fn compared(&self, cx: &Cx, at: &str, snapshots: &[Snapshot], before: &[Snapshot]) -> Result<Copied> {
        let now = self.snapshots(cx, at).await?;
        let mut copied = Copied::default();
        for s in snapshots {
            match now.iter().find(|t| same(s, t)) {
                Some(t) if before.iter().any(|b| b.id == t.id) => copied.there += 1,
                Some(t) => copied.made.push(t.clone()),
                None => {
                    return Err(Error::new(
                        Code::BACKUP_REPOSITORY,
                        format!("{} has ended well, and the snapshot {} is not in \"{}\"", T::PROGRAM.0, s.id, self.name),
                    )
                    .host(at));
                }
            }
        }
        Ok(copied)
    }

    pub(super) async fn copied_from(&self, cx: &Cx, from: &Kept<T>, snapshots: &[Snapshot]) -> Result<Made<Copied>> {
        let at = self.between(from)?;
        Ok(match left_by(cx, at, false).await? {
            Left::Done(done) if done.status == 0 => Made::Yes(self.compared(cx, at, snapshots, &[]).await?),
            Left::Done(done) => Made::Failed(Box::new(self.uncopied(at, from, &done))),
            Left::Failed(e) => Made::Failed(Box::new(e)),
            // Whatever one that is gone has left, the next finishes: what is there is not copied again.
            Left::NotStarted | Left::Unknown { .. } => Made::No,
        })
    }

    fn uncopied(&self, at: &str, from: &Kept<T>, done: &Done) -> Error {
        let what = format!("snapshots of \"{}\" cannot be copied into \"{}\"", from.name, self.name);
        let e = self.fault(at, Code::BACKUP_REPOSITORY, &what, done);
        // What went wrong may be on either side.
        if e.message.starts_with(&what) { e } else { e.detail("copying", what) }
    }
}
