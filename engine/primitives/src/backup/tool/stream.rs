//! What a host pipes into the tool, and back: databases.

use async_trait::async_trait;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::{Kept, Tool};
use crate::backup::database::streams::Streams;
use crate::backup::repository::{Plan, Snapshot};
use crate::ssh::{Done, Exec, quote};

/// The name of the file in a stream's snapshot.
fn file(paths: &[String]) -> &str {
    paths.first().map_or("", String::as_str)
}

#[async_trait]
impl<T: Tool> Streams for Kept<T> {
    fn keeper(&self, cx: &Cx, plan: &Plan, script: &str) -> Result<Exec> {
        self.within_reach(plan, Code::BACKUP_SNAPSHOT)?;
        let text = format!("{}\nfile={}\n{script}", self.tool.words(cx, plan)?, quote(file(&plan.paths)));
        Ok(Exec { live: true, ..self.exec(cx, &text, plan.sudo)? })
    }

    fn giver(&self, cx: &Cx, snapshot: &Snapshot, script: &str) -> Result<Exec> {
        let text = format!("give() {{ give_of {} {}; }}\n{script}", quote(&snapshot.id), quote(file(&snapshot.paths)));
        self.exec(cx, &text, false)
    }

    fn trace(&self, cx: &Cx, plan: &Plan) -> String {
        T::trace(cx, plan)
    }

    async fn kept(&self, cx: &Cx, plan: &Plan, out: &str, id: &str) -> Result<Snapshot> {
        if let Some(s) = self.told(cx, plan, out).filter(|s| s.id == id && s.sized) {
            return Ok(s);
        }
        let mut s = self.named(cx, &plan.host, id).await?.ok_or_else(|| self.vanished(&plan.host, id))?;
        self.count(cx, &plan.host, &mut s).await?;
        Ok(s)
    }

    async fn of_action(&self, cx: &Cx, host: &str) -> Result<Vec<Snapshot>> {
        let action = cx.action_id.to_string();
        Ok(self.snapshots(cx, host).await?.into_iter().filter(|s| s.action == action).collect())
    }

    async fn forget(&self, cx: &Cx, host: &str, snapshot: &Snapshot) -> Result<()> {
        let script = format!("drop {}", quote(&snapshot.id));
        self.must(cx, host, &script, Code::BACKUP_REPOSITORY, "a snapshot that is not whole cannot be removed").await.map(drop)
    }

    async fn tidy(&self, cx: &Cx, plan: &Plan) -> Result<()> {
        self.clear(cx, plan).await
    }

    fn failed(&self, host: &str, code: Code, what: &str, done: &Done) -> Error {
        self.fault(host, code, what, done)
    }

    fn host(&self) -> &str {
        &self.host
    }
}
