//! Taking a snapshot: restic on the source host, under the supervisor, so that it goes on without the connection and the controller.

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::{Restic, TAG};
use crate::backup::on_host::safe;
use crate::backup::repository::{Made, Plan, Snapshot};
use crate::ssh::{Done, Exec, Left, left_by, quote, supervised};

const SCRIPT: &str = include_str!("take.sh");
/// How often a snapshot is taken when files change while they are read.
const TRIES: u32 = 3;

impl Restic {
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
            Left::Done(done) => Ok(match self.result(cx, plan, &done).await {
                Ok((s, _)) => Made::Yes(Box::new(s)),
                Err(e) if e.code == Code::BACKUP_SNAPSHOT => Made::Failed(Box::new(e)),
                Err(e) => return Err(e),
            }),
            // Gone without a word, with its host for example: nothing works at it any more, and the repository knows the rest.
            Left::Unknown { .. } => {
                let of = format!("--tag {}", quote(&format!("{TAG}{}", cx.action_id)));
                match self.snapshots(cx, &plan.host, &of).await?.pop() {
                    Some(mut s) => {
                        self.count(cx, &plan.host, &mut s).await?;
                        Ok(Made::Yes(Box::new(s)))
                    }
                    None => Ok(Made::No),
                }
            }
        }
    }

    /// The command for the source host.
    fn backup(&self, cx: &Cx, plan: &Plan) -> Result<Exec> {
        let wrong = |what: String, hint: &str| Error::new(Code::BACKUP_SNAPSHOT, what).host(&plan.host).hint(hint.to_string());
        if self.local() && plan.host != self.host {
            return Err(wrong(
                format!("the repository \"{}\" is a folder on {} and takes snapshots of that host alone", self.name, self.host),
                "give it as the source host reaches it: sftp:USER@HOST:/PATH, s3:…, rest:…; or use a repository of the kind archive",
            ));
        }
        for p in &plan.paths {
            if p.is_empty() || p.contains('\0') || p.split('/').any(|c| c == "..") {
                return Err(wrong(format!("{p:?} is not a path for a snapshot"), "name it without \"..\""));
            }
        }
        for t in &plan.tags {
            if t.is_empty() || t.contains([',', '\n', '\0']) || t.starts_with(TAG) {
                return Err(wrong(format!("{t:?} is not a tag of restic"), "use words without commas"));
            }
        }
        let words = |option: &str, all: &[String]| all.iter().map(|w| format!(" {option}={}", quote(w))).collect::<String>();
        let paths: Vec<String> = plan.paths.iter().map(|p| quote(&safe(p))).collect();
        let script = format!(
            "tries={TRIES} accept={accept}\nRESTIC_PROGRESS_FPS=0.5\nexport RESTIC_PROGRESS_FPS\n\
             backup() {{ restic backup --tag={tag}{tags} --host={host}{exclude} -- \"$@\"; }}\nset -- {paths}\n{SCRIPT}",
            accept = u8::from(plan.accept_changing),
            tag = quote(&format!("{TAG}{}", cx.action_id)),
            tags = words("--tag", &plan.tags),
            host = quote(&plan.host),
            exclude = words("--exclude", &plan.exclude),
            paths = paths.join(" "),
        );
        Ok(Exec { live: true, ..self.exec(cx, &script, plan.sudo)? })
    }

    async fn result(&self, cx: &Cx, plan: &Plan, done: &Done) -> Result<(Snapshot, Vec<String>)> {
        let out = String::from_utf8_lossy(&done.stdout);
        let changed: Vec<String> = out.lines().filter_map(|l| l.strip_prefix("changed ")).map(str::to_string).collect();
        let id = out.lines().find_map(|l| l.strip_prefix("made "));
        match (done.status, id) {
            (0, Some(id)) => {
                let mut s = self.snapshots(cx, &plan.host, &quote(id)).await?.pop().ok_or_else(|| {
                    Error::new(Code::BACKUP_SNAPSHOT, format!("restic has made the snapshot {id}, which is not in the repository any more"))
                        .host(&plan.host)
                })?;
                self.count(cx, &plan.host, &mut s).await?;
                Ok((s, changed))
            }
            (75, _) => Err(Error::new(
                Code::BACKUP_SNAPSHOT,
                format!("files changed while they were read, {TRIES} times in a row; nothing was kept: {}", changed.join("; ")),
            )
            .host(&plan.host)
            .hint("stop what writes them, exclude them, or keep the snapshot as it is: #{ accept_changing: true }")
            .retryable(true)),
            _ => Err(self.fault(
                &plan.host,
                Code::BACKUP_SNAPSHOT,
                &format!("{} cannot be taken into a snapshot; nothing was kept", plan.paths.join(", ")),
                done,
            )),
        }
    }
}
