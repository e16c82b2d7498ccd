//! Removes what the supervisor left on hosts, once the run has ended for good.

use std::collections::BTreeSet;

use async_trait::async_trait;
use runbook_core::primitive::{Cx, RunHook};
use runbook_core::{Code, Error, Result};

use crate::ssh::{Exec, connect, quote};

/// Removes `~/.runbook/<run>` on each host.
pub(in crate::ssh) struct Clean;

#[async_trait]
impl RunHook for Clean {
    async fn finished(&self, cx: &Cx, hosts: &BTreeSet<String>) -> Result<()> {
        let run = cx.run.as_ref();
        if run.is_empty() || run.starts_with('.') || run.contains('/') {
            return Err(Error::internal(format!("\"{run}\" cannot be the id of a run")));
        }
        let each = hosts.iter().map(|host| async move {
            let session = connect(cx, host).await?;
            let script = format!("rm -rf -- \"$HOME\"/.runbook/{} && {{ rmdir \"$HOME\"/.runbook 2>/dev/null; :; }}", quote(run));
            let done = session.exec(cx, Exec::new(script)).await?;
            if done.status == 0 {
                return Ok(());
            }
            let why = super::tail(&done.stderr);
            Err(Error::new(Code::SUPERVISOR, format!("~/.runbook/{run} cannot be removed: {why}")).host(host))
        });
        futures::future::join_all(each).await.into_iter().collect()
    }
}
