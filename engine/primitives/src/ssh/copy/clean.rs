//! Takes back what a copy leaves on hosts while it works: folders with lists, and the line of its transfer key in `authorized_keys`.
//!
//! Which hosts have something is a fact of the environment, written before anything is put there. So the next copy, or the end of the
//! run, also takes back what a controller left that was killed.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use runbook_core::cancel::Cancel;
use runbook_core::primitive::{Cx, RunHook};
use runbook_core::{Code, Error, Result, Value};

use crate::ssh::exec::tail;
use crate::ssh::{Exec, Session, connect};

/// The list of `host run action`.
const FACT: &str = "ssh/copy";
pub(super) const KEYS: &str = include_str!("keys.sh");

/// Facts are read, changed and written: one copy at a time.
#[derive(Default)]
struct Gate(tokio::sync::Mutex<()>);

fn read(cx: &Cx) -> Result<BTreeSet<String>> {
    Ok(cx.facts.get(FACT)?.as_ref().and_then(Value::as_list).into_iter().flatten().filter_map(Value::as_str).map(str::to_string).collect())
}

async fn change(cx: &Cx, f: impl FnOnce(&mut BTreeSet<String>)) -> Result<()> {
    let gate = cx.shared.get::<Gate>();
    let _one = gate.0.lock().await;
    let before = read(cx)?;
    let mut after = before.clone();
    f(&mut after);
    if after == before {
        return Ok(());
    }
    let list: Vec<Value> = after.into_iter().map(Value::from).collect();
    cx.facts.put([(FACT.to_string(), Value::from(list))].into())
}

fn entry(cx: &Cx, host: &str) -> String {
    format!("{host} {} {}", cx.run, cx.action_id)
}

/// Records that this copy puts something on these hosts.
pub(super) async fn mark(cx: &Cx, hosts: &[&Session]) -> Result<()> {
    change(cx, |all| all.extend(hosts.iter().map(|h| entry(cx, h.name())))).await
}

/// Takes back what this copy put on these hosts. What cannot be taken back now stays on record.
pub(super) async fn tidy(cx: &Cx, hosts: &[&Session]) {
    let mut free = cx.clone();
    // The operator's wish to stop is no reason to leave a key behind.
    free.cancel = Cancel::default();
    let each = hosts.iter().map(|host| {
        let free = &free;
        async move {
            let done = tokio::time::timeout(Duration::from_secs(15), sweep(free, host, &free.run, &free.action_id.0)).await;
            (host.name(), done.unwrap_or_else(|_| Err(Error::new(Code::SSH_LOST, "the host does not answer"))))
        }
    });
    let mut gone = Vec::new();
    for (host, done) in futures::future::join_all(each).await {
        match done {
            Ok(()) => gone.push(entry(cx, host)),
            Err(e) => cx.message(format!(
                "the transfer key on {host} could not be removed now ({}); the next copy or the end of the run does it",
                e.message
            )),
        }
    }
    if let Err(e) = change(&free, |all| all.retain(|x| !gone.contains(x))).await {
        cx.message(format!("that the transfer key is gone could not be recorded: {}", e.message));
    }
}

async fn sweep(cx: &Cx, host: &Session, run: &str, action: &str) -> Result<()> {
    let env = [("rb_do", "sweep"), ("rb_run", run), ("rb_tag", action)].map(|(k, v)| (k.to_string(), v.to_string())).to_vec();
    let done = host.exec(cx, Exec { env, ..Exec::new(KEYS) }).await?;
    if done.status == 0 {
        return Ok(());
    }
    Err(Error::new(Code::FILE_WRITE, format!("authorized_keys cannot be cleared: {}", tail(&done.stderr))).host(host.name()))
}

/// Takes back what killed controllers left: of this very action, and of other runs, none of which can be at work now.
pub(super) async fn leftovers(cx: &Cx) -> Result<()> {
    let left = read(cx)?;
    let mine = cx.action_id.0.as_str();
    take_back(cx, left.into_iter().filter(|l| matches!(parts(l), Some((_, run, action)) if run != &*cx.run || action == mine)).collect())
        .await;
    Ok(())
}

fn parts(line: &str) -> Option<(&str, &str, &str)> {
    let (rest, action) = line.rsplit_once(' ')?;
    let (host, run) = rest.rsplit_once(' ')?;
    Some((host, run, action))
}

async fn take_back(cx: &Cx, left: Vec<String>) -> Vec<String> {
    let (mut gone, mut failed) = (Vec::new(), Vec::new());
    let each = left.into_iter().map(|line| async move {
        let Some((host, run, action)) = parts(&line) else { return (line, Ok(())) };
        let done = match connect(cx, host).await {
            Ok(session) => sweep(cx, &session, run, action).await,
            // A host that is no longer in the inventory cannot be cleared ever.
            Err(e) if e.code == Code::UNKNOWN_NAME => Ok(()),
            Err(e) => Err(e),
        };
        let done = done.map_err(|e| format!("{host}: {}", e.message));
        (line, done)
    });
    for (line, done) in futures::future::join_all(each).await {
        match done {
            Ok(()) => gone.push(line),
            Err(why) => failed.push(why),
        }
    }
    if let Err(e) = change(cx, |all| all.retain(|x| !gone.contains(x))).await {
        failed.push(e.message);
    }
    failed
}

fn told(failed: Vec<String>) -> Result<()> {
    if failed.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Code::FILE_WRITE,
        format!("lines marked runbook-copy in ~/.ssh/authorized_keys could not be removed: {}", failed.join("; ")),
    )
    .hint("remove them by hand; they can do nothing but finish their copy, and stop working by themselves"))
}

/// Takes back what copies of the run have left, once it has ended for good or was stopped in the middle of one.
pub(super) struct Clean;

#[async_trait]
impl RunHook for Clean {
    async fn finished(&self, cx: &Cx, _hosts: &BTreeSet<String>) -> Result<()> {
        told(take_back(cx, read(cx)?.into_iter().collect()).await)
    }

    async fn stopped(&self, cx: &Cx) -> Result<()> {
        // Those of other runs are none of its business: the next copy sees to them.
        let mine = read(cx)?.into_iter().filter(|l| matches!(parts(l), Some((_, run, _)) if run == &*cx.run));
        told(take_back(cx, mine.collect()).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_its_parts() {
        assert_eq!(parts("my host 2026-x act-1"), Some(("my host", "2026-x", "act-1")));
        assert_eq!(parts("short"), None);
    }
}
