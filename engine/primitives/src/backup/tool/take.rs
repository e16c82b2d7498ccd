//! Taking a snapshot: the tool on the source host, under the supervisor, so that it goes on without the connection and the controller.

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::{Kept, Tool};
use crate::backup::on_host::safe;
use crate::backup::repository::{Made, Plan, Snapshot};
use crate::ssh::{Done, Exec, Left, left_by, quote, supervised};

const SCRIPT: &str = include_str!("take.sh");
/// How often a snapshot is taken when files change while they are read.
const TRIES: u32 = 3;

impl<T: Tool> Kept<T> {
    pub(super) async fn take(&self, cx: &Cx, plan: &Plan) -> Result<(Snapshot, Vec<String>)> {
        let exec = self.backup(cx, plan)?;
        let done = supervised(cx, &plan.host, exec).await?;
        self.result(cx, plan, &done).await
    }

    /// What became of it: asked of the supervisor first, since it may still be at work.
    pub(super) async fn taken(&self, cx: &Cx, plan: &Plan) -> Result<Made> {
        match left_by(cx, &plan.host, false).await? {
            Left::NotStarted => Ok(Made::No),
            Left::Failed(e) => Ok(Made::Failed(Box::new(e))),
            Left::Done(done) if done.status == 0 => Ok(Made::Yes(Box::new(self.result(cx, plan, &done).await?.0))),
            Left::Done(done) => Ok(Made::Failed(Box::new(self.failed(plan, &done)))),
            // Gone without a word, with its host for example: nothing works at it any more, and the repository knows the rest.
            Left::Unknown { .. } => {
                match self.snapshots(cx, &plan.host).await?.into_iter().rfind(|s| s.action == cx.action_id.to_string()) {
                    Some(mut s) => {
                        self.count(cx, &plan.host, &mut s).await?;
                        Ok(Made::Yes(Box::new(s)))
                    }
                    None => {
                        self.clear(cx, plan).await?;
                        Ok(Made::No)
                    }
                }
            }
        }
    }

    /// Removes what a dead attempt of the action has left, when it has made no snapshot.
    pub(super) async fn clear(&self, cx: &Cx, plan: &Plan) -> Result<()> {
        let script = format!("{}\nleftovers", self.tool.words(cx, plan)?);
        let what = "what a dead attempt has left cannot be removed";
        self.must(cx, &plan.host, &script, Code::BACKUP_REPOSITORY, what).await.map(drop)
    }

    /// Whether the host of a plan reaches the repository.
    pub(super) fn within_reach(&self, plan: &Plan, code: Code) -> Result<()> {
        if !self.local() || plan.host == self.host {
            return Ok(());
        }
        Err(Error::new(code, format!("the repository \"{}\" is a folder on {} and takes snapshots of that host alone", self.name, self.host))
            .host(&plan.host)
            .hint("give it as the source host reaches it, such as sftp: or s3: for restic, ssh: for borg; or use a repository of the kind archive"))
    }

    /// The snapshot as the script that made it told of it.
    pub(super) fn told(&self, cx: &Cx, plan: &Plan, out: &str) -> Option<Snapshot> {
        let s = out.lines().find_map(|l| T::told(cx, plan, l.strip_prefix("told ")?))?;
        Some(Snapshot { archive: self.repository.clone(), ..s })
    }

    pub(super) fn vanished(&self, host: &str, id: &str) -> Error {
        Error::new(Code::BACKUP_SNAPSHOT, format!("{} has made the snapshot {id}, which is not in the repository any more", T::PROGRAM.0))
            .host(host)
    }

    /// The command for the source host.
    fn backup(&self, cx: &Cx, plan: &Plan) -> Result<Exec> {
        self.within_reach(plan, Code::BACKUP_SNAPSHOT)?;
        plan.check()?;
        let paths: Vec<String> = plan.paths.iter().map(|p| quote(&safe(p))).collect();
        let script = format!(
            "{words}\ntries={TRIES} accept={accept}\nset -- {paths}\n{SCRIPT}",
            words = self.tool.words(cx, plan)?,
            accept = u8::from(plan.accept_changing),
            paths = paths.join(" "),
        );
        Ok(Exec { live: true, ..self.exec(cx, &script, plan.sudo)? })
    }

    /// The snapshot that a command has made, or why it has not.
    async fn result(&self, cx: &Cx, plan: &Plan, done: &Done) -> Result<(Snapshot, Vec<String>)> {
        let out = String::from_utf8_lossy(&done.stdout);
        let Some(id) = out.lines().find_map(|l| l.strip_prefix("made ")).filter(|_| done.status == 0) else {
            return Err(self.failed(plan, done));
        };
        if let Some(s) = self.told(cx, plan, &out) {
            return Ok((s, changed::<T>(&out)));
        }
        let mut s = self.named(cx, &plan.host, id).await?.ok_or_else(|| self.vanished(&plan.host, id))?;
        self.count(cx, &plan.host, &mut s).await?;
        Ok((s, changed::<T>(&out)))
    }

    fn failed(&self, plan: &Plan, done: &Done) -> Error {
        if done.status == 75 {
            let names = changed::<T>(&String::from_utf8_lossy(&done.stdout)).join("; ");
            return Error::new(
                Code::BACKUP_SNAPSHOT,
                format!("files changed while they were read, {TRIES} times in a row; nothing was kept: {names}"),
            )
            .host(&plan.host)
            .hint("stop what writes them, exclude them, or keep the snapshot as it is: #{ accept_changing: true }")
            .retryable(true);
        }
        let what = format!("{} cannot be taken into a snapshot; nothing was kept", plan.paths.join(", "));
        self.fault(&plan.host, Code::BACKUP_SNAPSHOT, &what, done)
    }
}

fn changed<T: Tool>(out: &str) -> Vec<String> {
    out.lines().filter_map(|l| l.strip_prefix("changed ")).map(T::changed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_clean() {
        let tools = [include_str!("../restic/restic.sh"), include_str!("../borg/borg.sh")];
        let all: Vec<String> = tools.iter().map(|t| format!("{t}\n{SCRIPT}")).collect();
        // Settings come from outside, and go there.
        runbook_testkit::shellcheck(&all.iter().map(String::as_str).collect::<Vec<_>>(), "SC2154,SC2034");
    }
}
