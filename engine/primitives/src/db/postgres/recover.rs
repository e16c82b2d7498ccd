//! `recover_to` and `end_recovery`: a cluster made from a base backup and the archived log, up to just before a mistake or to the archive's end.
//!
//! No other server is needed. The cluster is a standby without a primary until its recovery is ended.

use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::archived;
use super::base::Base;
use super::cluster::{Cluster, Data};
use super::copy::{end_leftover, put_in_place, room};
use super::data::{admin, unless_stopped};
use super::kept;
use super::reach::{self, refused};
use super::state::Lsn;
use super::target::{self, Stop};
use super::wal::{self, Commit, Found, Log, Wanted};
use crate::db::driver::{Db, LeftOut, Rolled};
use crate::db::dump::manifest::{self, Place};
use crate::db::recovery::{Sources, Upto};
use crate::ssh::quote;

/// The mark of a cluster that was made so: the base backup's id.
const MARK: &str = "runbook.recovered";

/// The base backup in a folder of the host.
async fn base(cx: &Cx, db: &Db, cluster: &Cluster<'_>, folder: &str) -> Result<Base> {
    let none = |what: String| {
        Err(Error::new(Code::DB_COPY, what)
            .host(&db.host)
            .hint("base_backup writes the file manifest last; copy such a folder to this host"))
    };
    let Place::Whole(m) = manifest::look(cx, &db.host, &|script| cluster.as_owner(&script), folder).await? else {
        return none(format!("{folder} has no whole base backup"));
    };
    let Some(base) = Base::of(&m) else { return none(format!("{folder} has a dump, and no base backup")) };
    if let Some(there) = cluster.major().await?
        && there != base.major
    {
        let of = base.major;
        return Err(Error::new(
            Code::DB_SETTINGS,
            format!("the base backup in {folder} is of PostgreSQL {of} and the host of \"{}\" has {there}: its log is read by its own version alone", db.name),
        )
        .hint(format!("install PostgreSQL {of} there, and name it by cluster or bin"))
        .host(&db.host));
    }
    Ok(base)
}

/// A file's path for the server's commands, in which `%` is a mark.
fn in_command(path: &str) -> String {
    quote(path).replace('%', "%%")
}

/// The settings by which it recovers up to `stop`, and no further.
fn lines(base: &Base, archive: &str, stop: Stop) -> Vec<(&'static str, Option<String>)> {
    let mut lines = target::lines(stop);
    lines.extend(
        [
            ("restore_command", format!("cp {}/%f \"%p\"", in_command(archive))),
            ("recovery_target_timeline", base.timeline().to_string()),
            ("recovery_min_apply_delay", "0".into()),
            ("primary_conninfo", String::new()),
            ("primary_slot_name", String::new()),
            // It is another server: its log would come into the archive of the first.
            ("archive_mode", "off".into()),
            (MARK, base.id.clone()),
        ]
        .map(|(k, v)| (k, Some(v))),
    );
    lines.extend(["archive_command", "runbook.archive", "runbook.rolled", "runbook.delay", "runbook.primary"].map(|k| (k, None)));
    lines
}

/// What is done with what lies in the place of the data folder.
enum There {
    /// It goes on from where it is.
    GoOn(Lsn),
    /// The base backup comes in its place; it is kept under this name.
    Aside(&'static str),
}

async fn there(db: &Db, cluster: &Cluster<'_>, base: &Base, left_out: Option<&Commit>, replace: bool) -> Result<There> {
    let found = cluster.look().await?;
    let data = cluster.data()?;
    let mark = match &found {
        Data::Cluster(c) if c.standby => cluster.line(&[MARK]).await?,
        _ => String::new(),
    };
    let refuse = |what: String, hint: String| Err(Error::new(Code::DB_COPY, what).host(&db.host).hint(hint));
    let what = match &found {
        Data::Empty => return Ok(There::Aside("runbook-undone")),
        Data::Cluster(c) if !mark.is_empty() => {
            let stands = match (cluster.settled().await?, cluster.look().await?) {
                (Some((_, node)), _) => node.lsn,
                (None, Data::Cluster(c)) => c.consistent,
                (None, _) => Lsn::default(),
            };
            // Made by an earlier try, and nobody has written to it: what it holds is in base backup and archive.
            let goes_on = mark == base.id && c.system == base.system && left_out.is_none_or(|l| stands <= l.lsn);
            return Ok(if goes_on { There::GoOn(stands) } else { There::Aside("runbook-undone") });
        }
        Data::Foreign => format!("{data} on {} is not empty, and is no cluster", db.host),
        Data::Cluster(c) if c.running => format!("a server runs in {data} on {}", db.host),
        Data::Cluster(c) => format!("there is a cluster in {data} on {} ({})", db.host, c.state),
    };
    if !replace {
        return refuse(
            what,
            format!(
                "recover into another cluster; recover_to(…, #{{ replace: true }}) stops it and keeps its folder as {data}.runbook-replaced"
            ),
        );
    }
    let kept = cluster.sh(&cluster.script("[ -e \"$d.runbook-replaced\" ]")?, None, None).await?.status == 0;
    if kept {
        return refuse(
            format!("{data}.runbook-replaced on {} has an earlier data folder, which is not overwritten", db.host),
            "move it elsewhere, or remove it when nobody needs it".into(),
        );
    }
    Ok(There::Aside("runbook-replaced"))
}

/// Copies the base backup beside the data folder, checks the copy, and puts it in its place.
async fn restore(
    cx: &Cx,
    db: &Db,
    cluster: &Cluster<'_>,
    folder: &str,
    base: &Base,
    settings: &[(&str, Option<String>)],
    aside: &str,
) -> Result<()> {
    room(cluster).await?;
    let copy = cluster.script(&format!(
        "s=\"$d.runbook-new\"; umask 077\n\
         cp -a {}/data \"$s\" </dev/null & p=$!\n\
         echo $p > \"$d.runbook-pid\"; wait $p; rc=$?; rm -f \"$d.runbook-pid\"\n\
         [ $rc = 0 ] && pg_verifybackup -n -q \"$s\" || {{ rm -rf -- \"$s\"; exit 1; }}",
        quote(folder)
    ))?;
    let so_far = cluster.script("du -s -B 1 \"$d.runbook-new\" 2>/dev/null | cut -f 1")?;
    let progress = async {
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if let Ok(done) = cluster.sh(&so_far, None, None).await {
                let bytes = String::from_utf8_lossy(&done.stdout).trim().parse().unwrap_or(0);
                cx.progress(format!("restoring the base backup into {}", db.name), bytes, Some(base.bytes), "bytes");
            }
        }
    };
    tokio::select! {
        done = cluster.must("restoring the base backup", &copy, None) => done.map(|_| ())?,
        () = progress => {}
    }
    // The last of a name counts.
    let needs = base.at_least.iter().map(|(k, v)| (k.as_str(), v.as_str()));
    let text: String = settings
        .iter()
        .map(|(k, v)| (*k, v.as_deref().unwrap_or("")))
        .filter(|(k, v)| !v.is_empty() || k.starts_with("recovery") || k.starts_with("primary"))
        .chain(needs)
        .map(|(k, v)| format!("{k} = '{}'\n", v.replace('\\', "\\\\").replace('\'', "''")))
        .collect();
    let names: Vec<String> = settings.iter().map(|(k, _)| k.replace('.', "[.]")).collect();
    let script = cluster.script(&format!(
        "set -e; s=\"$d.runbook-new\"; f=\"$s/postgresql.auto.conf\"; {{ grep -vE {} \"$f\" || :; cat; }} > \"$f.runbook\"; mv -f \"$f.runbook\" \"$f\"\n\
         : > \"$s/standby.signal\"; rm -f \"$s/runbook-start.log\" \"$s/recovery.signal\"; sync",
        quote(&format!("^[[:space:]]*({})[[:space:]=]", names.join("|")))
    ))?;
    cluster.must("setting up the restored cluster", &script, Some(text.into_bytes())).await?;
    put_in_place(cluster, aside).await
}

/// Makes the cluster anew from base backup and archive, up to just before a moment or a position or to the archive's end, and stops there.
///
/// 1. Base backup and archive are looked at, and must be of one server and of the version that is installed.
/// 2. The archived log says which commit is the first that must be left out, and which one comes before that; or which one is the last.
/// 3. The base backup is copied beside the data folder, checked there, and put in its place.
/// 4. The server reads the archive up to right behind the latter commit, and pauses there.
/// 5. It stands there, and what should not be applied lies behind.
pub(super) async fn recover_to(cx: &Cx, db: &Db, upto: &Upto, from: &Sources) -> Result<Rolled> {
    unless_stopped(cx, db, async {
        let unfinished = *upto == Upto::End { unfinished: true };
        let wanted = match upto {
            Upto::Before(before) => {
                target::wanted(before, cx.clock.now(), ", or \"end\" for everything that is archived", |why| refused(db, why))?
            }
            Upto::End { .. } => Wanted::End,
        };
        let cluster = Cluster::of(cx, db).await?;
        let base = base(cx, db, &cluster, &from.base).await?;
        let piece = archived::look(&cluster, &from.archive, &base).await?;
        // Segments behind a gap, or cut short, are not for the tool: it would take the size of all from any of them.
        let to = piece.last.clone().map(|last| (piece.end, base.segment.clone(), last));
        let log = Log { folder: from.archive.clone(), timeline: base.timeline(), from: base.start, to };
        let found = if log.to.is_some() { wal::scan(&cluster, &log, wanted).await? } else { Found::default() };
        let left_out = reach::check(db, wanted, unfinished, &base, &piece, &found)?;
        if let (None, Some(said)) = (&left_out, &found.stopped) {
            cx.message(format!(
                "\"{}\": the archived log breaks off in its newest segment, and what came behind is not there: {said}",
                db.name
            ));
        }
        let last = found.before.as_ref();
        let stop = reach::stop(wanted, &base, last);
        // It stands there when it has applied the last one that is wanted.
        let at = last.map_or(base.end, |c| Lsn(c.lsn.0 + 1)).max(base.end);

        // What an earlier try has left at work would go on behind this one.
        end_leftover(&cluster).await?;
        let settings = lines(&base, &from.archive, stop);
        let mut changed = true;
        match there(db, &cluster, &base, left_out.as_ref(), from.replace).await? {
            There::Aside(name) => restore(cx, db, &cluster, &from.base, &base, &settings, name).await?,
            There::GoOn(stands) => {
                // It has applied the last one that is wanted, and nothing behind that.
                changed = !(stands >= at && cluster.running().await? && target::paused(&admin(cx, db).await?.0).await?);
                if changed {
                    cluster.stop().await?;
                    let stop = if let Stop::Before(l) = stop { Stop::Before(l.max(stands)) } else { stop };
                    cluster.set(&lines(&base, &from.archive, stop)).await?;
                }
            }
        }
        let conn = if changed { target::restart(cx, db, &cluster, at).await? } else { admin(cx, db).await?.0 };
        let (position, in_recovery) = target::stands(&conn).await?;
        if left_out.as_ref().is_some_and(|l| position > l.lsn) || position < at || !in_recovery {
            let place = left_out.as_ref().map_or(format!("behind {at}"), |l| format!("just before {}", l.show()));
            let what = format!("\"{}\" stands at {position}, and should stand {place}", db.name);
            return Err(Error::new(Code::DB_REPLICATION, what).host(&db.host).hint("look at its log on the host"));
        }
        let left_out = match left_out {
            Some(l) => {
                let node = super::state::look(&conn).await?;
                let statement = target::describe(&cluster, &conn, &node.oid, &log, &l).await?;
                Some(LeftOut { position: l.lsn.to_string(), time: l.time, statement })
            }
            None => None,
        };
        target::warn_locked(cx, db, &conn, "end_recovery() there makes them readable, and the server one of its own").await?;
        cluster.must("clearing up", &cluster.script("rm -rf \"$d.runbook-undone\"")?, None).await?;
        Ok(Rolled { changed, position: position.to_string(), last: last.map(|c| c.time), left_out })
    })
    .await
}

/// Ends the recovery: the server takes writes, on a timeline of its own. False when it does already.
pub(super) async fn end(cx: &Cx, db: &Db) -> Result<bool> {
    unless_stopped(cx, db, async {
        let (conn, node) = admin(cx, db).await?;
        let cluster = Cluster::of(cx, db).await?;
        let ours = !cluster.line(&[MARK]).await?.is_empty();
        if node.in_recovery {
            if !ours {
                let what = format!("\"{}\" is a standby, and was not made by recover_to", db.name);
                return Err(Error::new(Code::DB_REPLICATION, what).host(&db.host).hint("promote(source, fence) ends that"));
            }
            kept::forget(cx, db)?;
            let promoted = conn.text("SELECT pg_promote(true, 300)::text").await;
            let over = match &promoted {
                Ok(said) => said.as_deref() == Some("true"),
                // Begun by an earlier try, and over by now.
                Err(_) => conn.text("SELECT pg_is_in_recovery()::text").await?.as_deref() == Some("false"),
            };
            if !over {
                promoted?;
                return Err(Error::new(Code::DB_REPLICATION, format!("\"{}\" does not end its recovery within 5m", db.name))
                    .host(&db.host)
                    .hint("look at its log on the host; call end_recovery again when that is mended")
                    .retryable(true));
            }
        }
        if !ours {
            return Ok(false);
        }
        // The mark goes last of all, with the rest: until then this is not over.
        let mut settings: Vec<(&str, Option<String>)> = target::none();
        settings.extend(["restore_command", "recovery_target_timeline", MARK].map(|k| (k, None)));
        cluster.set(&settings).await?;
        let (conn, _) = admin(cx, db).await?;
        conn.run("SELECT pg_reload_conf()").await?;
        conn.run("CHECKPOINT").await?;
        Ok(true)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::super::reach::tests::base;
    use super::*;

    #[test]
    fn without_a_commit_it_ends_as_soon_as_it_is_consistent() {
        let lines = lines(&base(), "/srv/archive", Stop::Consistent);
        let get = |k: &str| lines.iter().filter(|(n, _)| *n == k).map(|(_, v)| v.as_deref().unwrap_or("-")).collect::<Vec<_>>();
        assert_eq!((get("recovery_target"), get("recovery_target_lsn")), (vec!["immediate"], vec![""]));
    }

    #[test]
    fn the_archive_is_a_word_of_the_servers_command() {
        let lines = lines(&base(), "/srv/it's 100%", Stop::Before(Lsn(5)));
        let get = |k: &str| lines.iter().find(|(n, _)| *n == k).unwrap().1.clone().unwrap();
        assert_eq!(get("restore_command"), r#"cp '/srv/it'\''s 100%%'/%f "%p""#);
        assert_eq!(
            (get("recovery_target_lsn"), get("archive_mode"), get("recovery_target_timeline")),
            ("0/5".into(), "off".into(), "1".into())
        );
    }
}
