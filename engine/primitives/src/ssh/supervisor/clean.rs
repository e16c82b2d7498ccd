//! Removes what the supervisor left on hosts, once the run has ended for good.

use std::collections::BTreeSet;

use async_trait::async_trait;
use runbook_core::primitive::{Cx, RunHook};
use runbook_core::{Code, Error, Result};

use super::follow::Report;
use super::station::{Opened, Station};
use crate::ssh::connect;

/// Removes `~/.runbook/<run>` on each host.
pub(in crate::ssh) struct Clean;

#[async_trait]
impl RunHook for Clean {
    async fn finished(&self, cx: &Cx, hosts: &BTreeSet<String>) -> Result<()> {
        let run = cx.run.as_ref();
        if run.is_empty() || run.starts_with('.') || run.contains('/') {
            return Err(Error::internal(format!("\"{run}\" cannot be the id of a run")));
        }
        futures::future::join_all(hosts.iter().map(|host| clean(cx, host))).await.into_iter().collect()
    }
}

async fn clean(cx: &Cx, host: &str) -> Result<()> {
    let session = connect(cx, host).await?;
    let stations = &session.slot.stations;
    let mut kept = stations.take(|s| s.run() == run(cx)).await;
    // The others stand in the folder that goes.
    stations.close(|s| s.run() == run(cx)).await;
    let why = loop {
        let fresh = kept.is_none();
        let station = match kept.take() {
            Some(s) => s,
            None => match Station::open(cx, &session, true).await? {
                Opened::Ready(s) => s,
                Opened::Nothing => return Ok(()),
                Opened::Not(Report::Refused(why)) => break why,
                Opened::Not(Report::Mute(_, said)) => break super::tail(&cx.redactor.bytes(&said)),
                Opened::Not(_) => break "the connection was lost".to_string(),
            },
        };
        match station.clean(host).await? {
            Report::Ended { .. } => return Ok(()),
            Report::Refused(why) => break why,
            _ if fresh => break "the connection was lost".to_string(),
            // One that was kept may have died unseen.
            _ => {}
        }
    };
    Err(Error::new(Code::SUPERVISOR, format!("~/.runbook/{} cannot be removed: {why}", run(cx))).host(host))
}

fn run(cx: &Cx) -> &str {
    cx.run.as_ref()
}
