//! Taking a snapshot of a database: its own tool and the repository's, joined by a pipe on its host, under the supervisor.

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::streams::Streams;
use super::{DATABASE, stream};
use crate::backup::repository::{Plan, Snapshot};
use crate::db::driver::Db;
use crate::db::stream::{About, Told, WRITE, shown};
use crate::ssh::{Done, Exec, Left, connect, left_by, quote, supervised};

/// A snapshot of a database, and what is known of its stream.
pub(super) struct Taken {
    pub snapshot: Snapshot,
    pub about: About,
    pub told: Told,
}

/// What became of it.
pub(super) enum Became {
    Done(Box<Taken>),
    NotStarted,
    Failed(Box<Error>),
}

/// The file in the snapshot.
fn file(db: &Db) -> String {
    let name: String = db.name.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' }).collect();
    format!("{name}.sql")
}

/// What is in the snapshot: one file.
fn plan(db: &Db, tags: &[String], sudo: bool) -> Plan {
    let tags = [format!("{DATABASE}{}", db.name)].into_iter().chain(tags.iter().cloned()).collect();
    Plan { host: db.host.clone(), paths: vec![file(db)], tags, sudo, ..Plan::default() }
}

/// Takes the snapshot.
pub(super) async fn take(cx: &Cx, repo: &dyn Streams, db: &Db, tags: &[String]) -> Result<Taken> {
    let flow = db.driver(cx)?.outflow(cx, db).await?;
    let first = serde_json::to_string(&flow.about).map_err(|e| Error::internal(e.to_string()))?;
    let own = format!("-- runbook:{:032x}", rand::random::<u128>());
    let plan = plan(db, tags, flow.sudo);
    let script = format!("own={}\nfirst={}\n{}{WRITE}", quote(&own), quote(&first), flow.text);
    let mut exec = repo.keeper(cx, &plan, &script)?;
    exec.env.extend(flow.env);
    let done = supervised(cx, &db.host, exec).await?;
    result(cx, repo, db, &plan, flow.about, &done).await
}

async fn result(cx: &Cx, repo: &dyn Streams, db: &Db, plan: &Plan, about: About, done: &Done) -> Result<Taken> {
    let out = String::from_utf8_lossy(&done.stdout);
    let err = String::from_utf8_lossy(&done.stderr);
    let what = format!("\"{}\" cannot be taken into a snapshot; nothing was kept", db.name);
    let id = out.lines().find_map(|l| l.strip_prefix("made "));
    match (done.status, id) {
        (0, Some(id)) => {
            let told = Told::read(&about.kind, out.lines());
            let about = placed(about, &told);
            Ok(Taken { snapshot: repo.kept(cx, plan, &out, id).await?, about, told })
        }
        (70, _) => {
            let said = shown(&err);
            if let Some(tool) = said.iter().find_map(|l| l.strip_prefix("missing tool ")) {
                return Err(Error::new(Code::HOST_TOOL_MISSING, format!("the host has no {tool}")).host(&db.host).hint("install it there"));
            }
            let why = if said.is_empty() { "its tool gave no reason".to_string() } else { said.join("; ") };
            let passes = [
                "killed from outside",
                "Lost connection",
                "gone away",
                "closed the connection",
                "terminating connection",
                "broken from outside",
            ];
            let again = passes.iter().any(|p| why.contains(p));
            Err(Error::new(Code::BACKUP_SNAPSHOT, format!("{what}: {why}")).host(&db.host).retryable(again).hint(if again {
                "take it again once the server is there"
            } else {
                "mend what is said there, then resume"
            }))
        }
        (129.., _) => Err(Error::new(Code::BACKUP_SNAPSHOT, format!("{what}: it was killed on the host"))
            .host(&db.host)
            .retryable(true)
            .hint("was memory short there, or the host going down? Take it again")),
        _ => Err(repo.failed(&db.host, Code::BACKUP_SNAPSHOT, &what, done)),
    }
}

/// With the exact position, where the tool tells it.
fn placed(about: About, told: &Told) -> About {
    if told.position.is_empty() { about } else { About { position: told.position.clone(), ..about } }
}

/// What became of the snapshot of this action: asked of the supervisor first, since it may still be at work.
pub(super) async fn taken(cx: &Cx, repo: &dyn Streams, db: &Db, tags: &[String]) -> Result<Became> {
    let plan = plan(db, tags, db.settings.flag("sudo"));
    let done = match left_by(cx, &db.host, false).await? {
        Left::NotStarted => return Ok(Became::NotStarted),
        Left::Failed(e) => return Ok(Became::Failed(Box::new(e))),
        Left::Done(done) => Some(done),
        Left::Unknown { .. } => None,
    };
    if let Some(done) = done {
        return Ok(match result(cx, repo, db, &plan, About::default(), &done).await {
            Ok(t) => {
                let (_, about) = stream::head(cx, repo, &db.host, &t.snapshot).await?;
                let told = Told::read(&about.kind, String::from_utf8_lossy(&done.stdout).lines());
                Became::Done(Box::new(Taken { snapshot: t.snapshot, about: placed(about, &told), told }))
            }
            Err(e) => Became::Failed(Box::new(e)),
        });
    }
    // Gone without a word: nothing may go on behind our back, and what it has left is asked for its last line.
    end_all(cx, repo, &plan).await?;
    let mut whole = None;
    for s in repo.of_action(cx, &db.host).await? {
        match stream::read(cx, repo, &db.host, &s).await {
            Ok((about, told)) if whole.is_none() => whole = Some((repo.kept(cx, &plan, "", &s.id).await?, about, told)),
            Ok(_) => {}
            Err(e) if e.code == Code::BACKUP_DAMAGED => repo.forget(cx, &db.host, &s).await?,
            Err(e) => return Err(e),
        }
    }
    Ok(match whole {
        Some((snapshot, about, told)) => Became::Done(Box::new(Taken { snapshot, about: placed(about, &told), told })),
        None => {
            repo.tidy(cx, &plan).await?;
            Became::NotStarted
        }
    })
}

/// Ends what a supervisor that was killed has left at work: whatever carries the trace of the action.
async fn end_all(cx: &Cx, repo: &dyn Streams, plan: &Plan) -> Result<()> {
    let session = connect(cx, &plan.host).await?;
    let sudo = repo.keeper(cx, plan, "")?.sudo && session.login() != "root";
    let trace = repo.trace(cx, plan);
    let (first, rest) = trace.split_at_checked(4).unwrap_or((&trace, ""));
    // Never whole in this text, which stands on a command line itself.
    let script = format!(
        "a={} n=0\nwhile [ $n -lt 50 ]; do\n  k=\n  for p in $(grep -alwF \"$a\"{} /proc/[0-9]*/cmdline 2>/dev/null); do\n    \
         p=${{p#/proc/}} p=${{p%/cmdline}}\n    [ \"$p\" = $$ ] || {{ kill -KILL \"$p\" 2>/dev/null && k=1; }}\n  done\n  [ -n \"$k\" ] || exit 0\n  n=$((n + 1))\n  sleep .1\ndone",
        quote(first),
        quote(rest)
    );
    session.exec_again(cx, Exec { sudo, ..Exec::new(script) }).await.map(drop)
}
