//! `recover_to` and `end_recovery`: a cluster made from a base backup and the archived log, up to just before a mistake or to the archive's end.
//!
//! No other server is needed. The cluster is a standby without a primary until its recovery is ended.

use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::archived::{self, Ends, More, Piece};
use super::base::Base;
use super::cluster::{Cluster, Data};
use super::copy::{end_leftover, put_in_place, room};
use super::data::{admin, unless_stopped};
use super::kept;
use super::state::Lsn;
use super::target::{self, Stop};
use super::wal::{self, Commit, Found, Log, Wanted};
use crate::db::driver::{Db, LeftOut, Rolled};
use crate::db::dump::manifest::{self, Place};
use crate::db::recovery::{Sources, Upto};
use crate::ssh::quote;

/// The mark of a cluster that was made so: the base backup's id.
const MARK: &str = "runbook.recovered";

fn refused(db: &Db, why: String) -> Error {
    Error::new(Code::DB_POSITION, format!("\"{}\" cannot be recovered to there: {why}", db.name)).host(&db.host)
}

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

/// The first commit that is left out, when base backup and archive lead there beyond doubt; `None` when the end was asked for.
///
/// With `unfinished` the newest segment may break off in its middle.
fn check(db: &Db, wanted: Wanted, unfinished: bool, base: &Base, piece: &Piece, found: &Found) -> Result<Option<Commit>> {
    let early = |what: String| Err(refused(db, what).hint("take an earlier base backup"));
    match wanted {
        // Nothing of what came before it began is looked at.
        Wanted::Time(t) if found.before.is_none() && t < base.begun => {
            return early(format!("the base backup began at {}, and {t} is before that", base.begun));
        }
        Wanted::Lsn(l) if l < base.start || l < base.end && found.target.as_ref().is_none_or(|t| t.lsn < base.end) => {
            return early(format!("{l} is before the base backup's end, {}", base.end));
        }
        _ => {}
    }
    if let Some(target) = &found.target {
        if target.lsn < base.end {
            return early(format!("{} is before the base backup's end, {}", target.show(), base.end));
        }
        return Ok(Some(target.clone()));
    }
    let upto =
        found.before.as_ref().map_or_else(|| "no transaction is in it".into(), |b| format!("its last transaction is at {}", b.show()));
    let lost = if wanted == Wanted::End {
        "find that segment, on the primary (pg_wal) or in another copy of the archive, and put it there; to do without it and everything behind it, move that elsewhere"
    } else {
        "find that segment, on the primary (pg_wal) or in another copy of the archive, and put it there"
    };
    if let Some(said) = &found.stopped {
        let at = segment(said, base);
        let place = at.as_ref().map_or(String::new(), |s| format!(" in {s}"));
        if said.contains("Permission denied") {
            let what = format!("the archived log cannot be read{place}: {said}; {upto}");
            return Err(refused(db, what).hint("it must belong to the user to whom the cluster belongs (chown -R)"));
        }
        let newest = wanted == Wanted::End && at.is_some() && at == piece.last && piece.ends == Ends::Here;
        if !(newest && unfinished) {
            let more = "; unfinished: true takes what it has before that, if it is the newest one of a lost server's pg_wal";
            let what = format!("the archived log is damaged or ends{place}: {said}; {upto}");
            return Err(refused(db, what).hint(format!("{lost}{}", if newest { more } else { "" })));
        }
    }
    match &piece.ends {
        Ends::Gap(s) => Err(refused(db, format!("the archive has a gap: {s} is missing; before it, {upto}")).hint(lost)),
        Ends::Short(s, n) => {
            let what = format!("the archived segment {s} is damaged: it has {n} of {} bytes; before it, {upto}", base.segment_size);
            Err(refused(db, what).hint(lost))
        }
        Ends::Here if wanted == Wanted::End => match &piece.more {
            None => Ok(None),
            Some(More::Timeline(f)) => {
                let what = format!(
                    "the log in the archive goes on on another timeline ({f}) than the base backup's, {}; before that, {upto}",
                    base.timeline()
                );
                Err(refused(db, what)
                    .hint("take a base backup that was made on that timeline; to do without what is on it, move its files elsewhere"))
            }
            Some(More::Form(f)) => Err(refused(db, format!("the archive has {f}, which is no whole segment; before it, {upto}"))
                .hint("unpack it there under the segment's own name; to do without it and everything behind it, move that elsewhere")),
        },
        Ends::Here => {
            let last = piece.last.as_deref().unwrap_or("");
            Err(refused(db, format!("nothing would be left out: the archive ends with {last}, and {upto}")).hint(
                "give an earlier moment, or put later segments into the archive; recover_to(\"end\", …) brings it to the end of what is there",
            ))
        }
    }
}

/// Where recovery ends.
fn stop(wanted: Wanted, base: &Base, last: Option<&Commit>) -> Stop {
    match (wanted, last.filter(|c| c.lsn >= base.end)) {
        // Right behind the last commit that is wanted, and not at the first that is not: its locks would be held there.
        (Wanted::Time(_) | Wanted::Lsn(_), last) => Stop::Before(last.map_or(base.end, |c| Lsn(c.lsn.0 + 1))),
        // What comes behind it may have been lost with the server.
        (Wanted::End, Some(last)) => Stop::Behind(last.lsn),
        (Wanted::End, None) => Stop::Consistent,
    }
}

/// The segment of which the tool speaks: by its name, or by the last position that it tells.
fn segment(said: &str, base: &Base) -> Option<String> {
    let words = || said.split(|c: char| !c.is_ascii_hexdigit() && c != '/');
    if let Some(name) = words().find(|w| w.len() == 24 && !w.contains('/')) {
        return Some(name.to_string());
    }
    let at = words().filter_map(Lsn::parse).next_back()?;
    let timeline = base.segment.get(..8)?;
    Some(format!("{timeline}{:08X}{:08X}", at.0 >> 32, (at.0 & 0xffff_ffff) / base.segment_size))
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
        let left_out = check(db, wanted, unfinished, &base, &piece, &found)?;
        if let (None, Some(said)) = (&left_out, &found.stopped) {
            cx.message(format!(
                "\"{}\": the archived log breaks off in its newest segment, and what came behind is not there: {said}",
                db.name
            ));
        }
        let last = found.before.as_ref();
        let stop = stop(wanted, &base, last);
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
    use std::collections::BTreeMap;

    use runbook_core::inventory::Resource;

    use super::*;

    fn commit(lsn: u64, time: &str) -> Commit {
        Commit { lsn: Lsn(lsn), xid: "7".into(), time: time.parse().unwrap(), files: vec![] }
    }

    fn base() -> Base {
        Base {
            id: "act-1".into(),
            system: "1".into(),
            major: 15,
            segment: "000000010000000000000001".into(),
            start: Lsn(0x100_0028),
            end: Lsn(0x100_1000),
            begun: "2026-11-22T11:00:00Z".parse().unwrap(),
            segment_size: 16 << 20,
            at_least: vec![],
            bytes: 0,
        }
    }

    #[test]
    fn base_backup_and_archive_lead_there_beyond_doubt() {
        let db = Db {
            name: "rescue".into(),
            host: "h".into(),
            settings: Resource { name: "rescue".into(), kind: "postgresql".into(), settings: BTreeMap::new() },
        };
        let (early, noon, late) = ("2026-11-22T10:59:00Z", "2026-11-22T12:00:00Z", "2026-11-22T13:00:00Z");
        let at = |t: &str| Wanted::Time(t.parse().unwrap());
        let piece = |ends| Piece { last: Some("000000010000000000000003".into()), end: Lsn(0x400_0000), ends, more: None };
        let of = |target: Option<Commit>, before: Option<Commit>| Found { target, before, stopped: None };
        let ask = |wanted, found: &Found, ends| check(&db, wanted, false, &base(), &piece(ends), found).map_err(|e| e.message);
        let found = of(Some(commit(0x200_0000, late)), None);
        assert_eq!(ask(at(noon), &found, Ends::Here).unwrap().unwrap().lsn, Lsn(0x200_0000));
        assert!(ask(at(early), &found, Ends::Here).unwrap_err().contains("the base backup began at 2026-11-22T11:00:00Z"));
        let inside = of(Some(commit(0x100_0800, noon)), None);
        assert!(ask(at(noon), &inside, Ends::Here).unwrap_err().contains("is before the base backup's end, 0/1001000"));
        assert!(ask(Wanted::Lsn(Lsn(0x100_0100)), &inside, Ends::Here).unwrap_err().contains("0/1000100 is before"));
        // What was committed before it began is not looked at, and may be in it.
        assert!(ask(Wanted::Lsn(Lsn(0x100_0000)), &found, Ends::Here).unwrap_err().contains("0/1000000 is before"));
        // A position within the backup, with nothing committed until its end, is as good as its end.
        assert_eq!(ask(Wanted::Lsn(Lsn(0x100_0100)), &found, Ends::Here).unwrap().unwrap().lsn, Lsn(0x200_0000));
        let none = of(None, Some(commit(0x200_0000, noon)));
        assert!(
            ask(at(late), &none, Ends::Here)
                .unwrap_err()
                .contains("nothing would be left out: the archive ends with 000000010000000000000003")
        );
        assert!(
            ask(at(late), &none, Ends::Gap("X4".into()))
                .unwrap_err()
                .contains("has a gap: X4 is missing; before it, its last transaction is at 0/2000000")
        );
        assert!(ask(at(late), &none, Ends::Short("X4".into(), 12)).unwrap_err().contains("X4 is damaged: it has 12 of 16777216 bytes"));
        assert_eq!(ask(Wanted::End, &none, Ends::Here).unwrap(), None);
        assert!(ask(Wanted::End, &none, Ends::Gap("X4".into())).unwrap_err().contains("has a gap: X4 is missing"));
        assert!(ask(Wanted::End, &none, Ends::Short("X4".into(), 12)).unwrap_err().contains("X4 is damaged"));
        let more =
            |more| check(&db, Wanted::End, false, &base(), &Piece { more: Some(more), ..piece(Ends::Here) }, &none).unwrap_err().message;
        assert!(
            more(More::Timeline("00000002.history".into()))
                .contains("goes on on another timeline (00000002.history) than the base backup's, 1; before that, its last")
        );
        assert!(more(More::Form("X4.gz".into())).contains("the archive has X4.gz, which is no whole segment; before it, its last"));
        let bad = Found { stopped: Some("error in WAL record at 0/2000148: incorrect checksum in record at 0/3000180".into()), ..none };
        for wanted in [at(late), Wanted::End] {
            let said = ask(wanted, &bad, Ends::Here).unwrap_err();
            assert!(said.contains("is damaged or ends in 000000010000000000000003: error in WAL"), "{said}");
        }
        // Where the log breaks off in the newest segment that is taken when it is said, and nowhere else.
        let unfinished = |wanted, piece: Piece| check(&db, wanted, true, &base(), &piece, &bad).map_err(|e| e.message);
        assert_eq!(unfinished(Wanted::End, piece(Ends::Here)).unwrap(), None);
        let before = Piece { last: Some("000000010000000000000004".into()), ..piece(Ends::Here) };
        let more = Piece { more: Some(More::Form("X4.gz".into())), ..piece(Ends::Here) };
        for (wanted, piece) in
            [(at(late), piece(Ends::Here)), (Wanted::End, piece(Ends::Gap("X4".into()))), (Wanted::End, before), (Wanted::End, more)]
        {
            assert!(unfinished(wanted, piece).is_err());
        }
        let hidden = Found { stopped: Some("could not open file \"000000010000000000000002\": Permission denied".into()), ..bad.clone() };
        assert!(ask(Wanted::End, &hidden, Ends::Here).unwrap_err().contains("the archived log cannot be read in 000000010000000000000002"));
    }

    #[test]
    fn it_ends_where_nothing_need_come_after_it() {
        let (in_it, behind) = (commit(0x100_0800, "2026-11-22T12:00:00Z"), commit(0x200_0000, "2026-11-22T12:00:00Z"));
        let at = Wanted::Lsn(Lsn(0x300_0000));
        assert_eq!(stop(at, &base(), Some(&behind)), Stop::Before(Lsn(0x200_0001)));
        assert_eq!(stop(at, &base(), Some(&in_it)), Stop::Before(base().end));
        assert_eq!(stop(Wanted::End, &base(), Some(&behind)), Stop::Behind(behind.lsn));
        for last in [None, Some(&in_it)] {
            assert_eq!(stop(Wanted::End, &base(), last), Stop::Consistent);
        }
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
