//! `archive_to` and `stop_archiving`: every finished segment of the write-ahead log goes into a folder on the host.

use std::collections::BTreeMap;
use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::client::{Conn, Texts, col};
use super::cluster::Cluster;
use super::data::{admin, unless_stopped};
use super::state::Node;
use crate::db::driver::Db;
use crate::db::recovery::{Archive, Archived};
use crate::ssh::quote;

/// The settings that it sets.
const MODE: &str = "archive_mode";
const COMMAND: &str = "archive_command";
const EVERY: &str = "archive_timeout";
/// What archives in the place of a command, from version 15 on.
const LIBRARY: &str = "archive_library";
/// The mark beside them.
const MARK: &str = "runbook.archive";

/// What `archive_to` has set, and what `postgresql.auto.conf` said before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    /// The command that it has set.
    command: String,
    /// `archive_mode` of the server before.
    was: String,
    /// Lines of the file before, by their names; what is not there had none.
    before: BTreeMap<String, String>,
}

/// What counts now.
struct Now {
    /// Lines of `postgresql.auto.conf`.
    file: BTreeMap<String, String>,
    mode: String,
    /// What its files say, which it may not have read yet.
    command: String,
    library: String,
    every: String,
    /// What the server goes by.
    live: BTreeMap<String, String>,
    mark: Option<Mark>,
}

async fn now(conn: &Conn) -> Result<Now> {
    let names = [MODE, COMMAND, EVERY, LIBRARY, MARK].map(super::sql::lit).join(", ");
    let pairs =
        |rows: &[Texts]| -> BTreeMap<String, String> { rows.iter().map(|r| (col(r, 0).to_string(), col(r, 1).to_string())).collect() };
    // Of several lines the last counts.
    let files = format!(
        "SELECT name, setting FROM pg_file_settings WHERE name IN ({names}) AND sourcefile LIKE '%/postgresql.auto.conf' ORDER BY seqno"
    );
    let file = pairs(&conn.texts(&files).await?);
    let said = pairs(&conn.texts(&files.replace(" AND sourcefile LIKE '%/postgresql.auto.conf'", "")).await?);
    // While nothing is archived the command itself shows as disabled.
    let live = pairs(&conn.texts(&format!("SELECT name, reset_val FROM pg_settings WHERE name IN ({names}, 'wal_level')")).await?);
    let get = |k: &str| said.get(k).filter(|_| k != EVERY).or_else(|| live.get(k)).cloned().unwrap_or_default();
    let mark = file
        .get(MARK)
        .map(|t| serde_json::from_str(t))
        .transpose()
        .map_err(|e| Error::new(Code::DB_SETTINGS, format!("the mark {MARK} in postgresql.auto.conf cannot be read: {e}")))?;
    let mode = live.get(MODE).cloned().unwrap_or_default();
    Ok(Now { mode, command: get(COMMAND), library: get(LIBRARY), every: get(EVERY), live, file, mark })
}

/// The command that archives a segment: synced before it has its name, and no other file is overwritten.
///
/// One that is there already is equal when the server has died before it noted that.
fn command(folder: &str) -> String {
    let d = quote(folder).replace('%', "%%");
    format!(
        "d={d}; t=\"$d/%f\"; n=\"$d/.%f.part\"; if [ -e \"$t\" ]; then cmp \"%p\" \"$t\" >&2; \
         else umask 077 && cp \"%p\" \"$n\" && {{ sync \"$n\" || sync; }} && mv -n \"$n\" \"$t\" && [ ! -e \"$n\" ] && {{ sync \"$d\" || sync; }}; fi"
    )
}

/// The command as the server runs it for one segment.
fn expand(command: &str, segment: &str) -> String {
    let mut out = String::new();
    let mut rest = command.chars();
    while let Some(c) = rest.next() {
        match (c, c == '%') {
            (c, false) => out.push(c),
            _ => match rest.next() {
                Some('p') => out.push_str(&format!("pg_wal/{segment}")),
                Some('f') => out.push_str(segment),
                Some(other) => out.push(other),
                None => {}
            },
        }
    }
    out
}

fn refuse<T>(db: &Db, why: String, hint: impl Into<String>) -> Result<T> {
    Err(Error::new(Code::DB_SETTINGS, why).host(&db.host).hint(hint))
}

/// A server that can archive.
fn ready(db: &Db, node: &Node, now: &Now) -> Result<()> {
    if node.in_recovery {
        return refuse(db, format!("\"{}\" is a standby: its primary archives", db.name), "call archive_to on its primary");
    }
    if !node.superuser {
        return refuse(db, format!("the role that logs in to \"{}\" is no super-user", db.name), "log in as postgres: sudo = true");
    }
    if now.live.get("wal_level").is_some_and(|l| l == "minimal") {
        return refuse(
            db,
            format!("\"{}\" has wal_level = minimal: nothing can be recovered from its log", db.name),
            "ALTER SYSTEM SET wal_level = replica, then restart it (its users notice)",
        );
    }
    Ok(())
}

/// Makes the folder, and sees that nothing else is in it.
async fn room(cluster: &Cluster<'_>, node: &Node, folder: &str) -> Result<()> {
    let db = cluster.db();
    cluster.make_folder(folder).await?;
    let script = format!(
        "cd {} || exit 1; [ -w . ] || {{ echo \"$(id -un) may not write into it\" >&2; exit 1; }}\n\
         ls -A | grep -vE '^[0-9A-F]{{24}}([.]partial|[.][0-9A-F]{{8}}[.]backup)?$|^[0-9A-F]{{8}}[.]history$|^[.].*[.]part$|^lost[+]found$' \
         | head -n 3 | sed 's/^/other /'\n\
         s=$(ls | grep -E '^[0-9A-F]{{24}}$' | tail -n 1); [ -z \"$s\" ] || echo \"system $(od -A n -t u8 -j 24 -N 8 \"$s\" | tr -d ' ')\"",
        quote(folder)
    );
    let text = cluster.must(&format!("looking at {folder} for the archive"), &script, None).await?;
    let other: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("other ")).collect();
    if !other.is_empty() {
        let what = format!("{folder} holds what is no log of PostgreSQL: {}", other.join(", "));
        return refuse(db, what, "give a folder of its own");
    }
    if let Some(system) = text.lines().find_map(|l| l.strip_prefix("system ")).filter(|s| !s.is_empty() && *s != node.system) {
        let what = format!("{folder} holds the log of another cluster ({system}; \"{}\" is {})", db.name, node.system);
        return refuse(db, what, "give each cluster a folder of its own");
    }
    Ok(())
}

/// Archives into a folder, and sees a segment arrive there.
pub(super) async fn archive_to(cx: &Cx, db: &Db, a: &Archive) -> Result<Archived> {
    unless_stopped(cx, db, async {
        let (mut conn, node) = admin(cx, db).await?;
        let now = now(&conn).await?;
        ready(db, &node, &now)?;
        let cluster = Cluster::of(cx, db).await?;
        let off = now.mode == "off";
        let own = command(&a.folder);
        let ours = now.command == own || now.mark.as_ref().is_some_and(|m| now.command == m.command);
        if !now.library.is_empty() || !now.command.is_empty() && !ours {
            let by = if now.library.is_empty() { format!("{COMMAND} = {}", now.command) } else { format!("{LIBRARY} = {}", now.library) };
            if !a.replace && off {
                let what = format!("\"{}\" has an {by} already, which is not in use ({MODE} = off)", db.name);
                return refuse(db, what, "archive_to(folder, #{ replace: true, restart: true }) puts it aside");
            }
            if !a.replace {
                let segment = arrives(cx, &cluster, &conn, a, None).await.map_err(|e| {
                    Error { message: format!("\"{}\" archives by {by}, and not into {}: {}", db.name, a.folder, e.message), ..e }
                        .hint("archive_to(folder, #{ replace: true }) puts it aside; or give the folder into which it writes")
                })?;
                return Ok(Archived { segment, ..Archived::default() });
            }
        }
        let every = a.every.as_secs().to_string();
        let mut want = vec![(COMMAND, own.clone()), (EVERY, every.clone())];
        if off {
            want.push((MODE, "on".into()));
        }
        if !now.library.is_empty() {
            want.push((LIBRARY, String::new()));
        }
        if off && !a.restart {
            return refuse(
                db,
                format!("\"{}\" has {MODE} = off, and switching it on takes a restart", db.name),
                "archive_to(folder, #{ restart: true }) restarts it, which its users notice: do that in a downtime window",
            );
        }
        room(&cluster, &node, &a.folder).await?;
        let read = now.live.get(COMMAND) == Some(&own);
        let changed = off || !read || now.command != own || now.every != every || !now.library.is_empty() || now.mark.is_none();
        if changed {
            let (was, before) = now.mark.map_or((now.mode, now.file), |m| (m.was, m.before));
            let mark = Mark { command: own.clone(), was, before };
            let json = serde_json::to_string(&mark).map_err(|e| Error::internal(e.to_string()))?;
            let mut lines: Vec<(&str, Option<String>)> = want.into_iter().map(|(k, v)| (k, Some(v))).collect();
            lines.push((MARK, Some(json)));
            cluster.set(&lines).await?;
            conn = heed(cx, db, &cluster, conn, off).await?;
        }
        let segment = arrives(cx, &cluster, &conn, a, Some(&own)).await?;
        Ok(Archived { changed, restarted: off, segment })
    })
    .await
}

/// Lets the server read its settings.
async fn heed(cx: &Cx, db: &Db, cluster: &Cluster<'_>, conn: Conn, restart: bool) -> Result<Conn> {
    if restart {
        drop(conn);
        cluster.stop().await?;
        return Ok(cluster.start().await?.0);
    }
    conn.run("SELECT pg_reload_conf()").await?;
    let began = Instant::now();
    while conn
        .text(&format!(
            "SELECT 1 FROM pg_file_settings f JOIN pg_settings s USING (name) WHERE f.sourcefile LIKE '%/postgresql.auto.conf' \
             AND f.name = '{COMMAND}' AND s.reset_val <> f.setting"
        ))
        .await?
        .is_some()
    {
        if began.elapsed() > Duration::from_secs(20) {
            return refuse(
                db,
                format!("\"{}\" does not take its {COMMAND} from postgresql.auto.conf", db.name),
                "is it given on its command line? Look at its log",
            );
        }
        cx.sleep(Duration::from_millis(20)).await?;
    }
    Ok(conn)
}

/// Finishes a segment, and waits until it lies in the folder; gives its name.
async fn arrives(cx: &Cx, cluster: &Cluster<'_>, conn: &Conn, a: &Archive, own: Option<&str>) -> Result<String> {
    let db = cluster.db();
    // Without anything new in it no segment would be finished.
    conn.run("SELECT pg_create_restore_point('runbook')").await?;
    let row = conn
        .row(
            "SELECT pg_walfile_name(pg_switch_wal()), (SELECT failed_count FROM pg_stat_archiver), \
             (SELECT setting FROM pg_settings WHERE name = 'wal_segment_size')",
        )
        .await?;
    let (segment, failed): (String, u64) = (col(&row, 0).to_string(), col(&row, 1).parse().unwrap_or(0));
    // A file of that name may have been there before: the server must be done with it too.
    let there = cluster.script(&format!(
        "[ \"$(stat -c %s {} 2>/dev/null)\" = {} ] && [ ! -e \"$d/pg_wal/archive_status/{segment}.ready\" ]",
        quote(&format!("{}/{segment}", a.folder)),
        quote(col(&row, 2))
    ))?;
    let (began, mut pause) = (Instant::now(), Duration::from_millis(20));
    loop {
        if cluster.sh(&there, None, None).await?.status == 0 {
            return Ok(segment);
        }
        let row = conn.row("SELECT failed_count, last_failed_wal, to_char(last_failed_time AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') FROM pg_stat_archiver").await?;
        let more = col(&row, 0).parse::<u64>().unwrap_or(0).saturating_sub(failed);
        // It tries three times, and then again after a minute.
        if more >= 3 || began.elapsed() > a.within {
            let mut said = String::new();
            let failed_at = if more > 0 {
                if let Some(own) = own {
                    // The server's log alone has what the command said; it may be repeated, and says it again.
                    let script = cluster.script(&format!("cd \"$d\" && {{ {}; }}", expand(own, col(&row, 1))))?;
                    let done = cluster.sh(&script, None, Some(Duration::from_secs(60))).await?;
                    said = String::from_utf8_lossy(&done.stderr).trim().replace('\n', "; ");
                }
                format!("{more} attempts at {} have failed, the last at {}", col(&row, 1), col(&row, 2))
            } else {
                format!("it has not come within {} s, and no attempt has failed", began.elapsed().as_secs())
            };
            let said = if said.is_empty() { String::new() } else { format!(": {said}") };
            return refuse(
                db,
                format!("\"{}\" has finished {segment}, which does not arrive in {}: {failed_at}{said}", db.name, a.folder),
                "mend that and resume, or take it back with stop_archiving: what is not archived fills the server's disk",
            );
        }
        cx.progress(format!("waiting for {segment} in {}", a.folder), began.elapsed().as_secs(), Some(a.within.as_secs()), "s");
        cx.sleep(pause).await?;
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// Puts the settings of before back.
pub(super) async fn stop(cx: &Cx, db: &Db, restart: bool) -> Result<bool> {
    unless_stopped(cx, db, async {
        let (conn, _) = admin(cx, db).await?;
        let now = now(&conn).await?;
        let Some(mark) = now.mark else { return Ok(false) };
        let must = now.mode != mark.was;
        if must && !restart {
            return refuse(
                db,
                format!("\"{}\" had {MODE} = {}, and putting that back takes a restart", db.name, mark.was),
                "stop_archiving(#{ restart: true }) restarts it, which its users notice; until then it goes on archiving",
            );
        }
        let cluster = Cluster::of(cx, db).await?;
        let mut lines: Vec<(&str, Option<String>)> = [MODE, COMMAND, EVERY, LIBRARY].map(|k| (k, mark.before.get(k).cloned())).to_vec();
        lines.push((MARK, None));
        cluster.set(&lines).await?;
        heed(cx, db, &cluster, conn, must).await?;
        Ok(true)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_segment_arrives_whole_and_overwrites_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("it's 100% \"a\" $(folder)");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::create_dir(dir.path().join("pg_wal")).unwrap();
        let segment = "000000010000000000000003";
        let run = || {
            let script = expand(&command(&folder.display().to_string()), segment);
            Command::new("sh").arg("-c").arg(script).current_dir(dir.path()).output().unwrap()
        };
        std::fs::write(dir.path().join("pg_wal").join(segment), "one").unwrap();
        // What a server has left that died in the middle is no segment.
        std::fs::write(folder.join(format!(".{segment}.part")), "on").unwrap();
        assert!(run().status.success());
        assert_eq!(std::fs::read_to_string(folder.join(segment)).unwrap(), "one");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        // The same again is fine, another is not.
        assert!(run().status.success());
        std::fs::write(dir.path().join("pg_wal").join(segment), "two").unwrap();
        let out = run();
        assert!(!out.status.success() && String::from_utf8_lossy(&out.stderr).contains("differ"), "{out:?}");
        assert_eq!(std::fs::read_to_string(folder.join(segment)).unwrap(), "one");
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(!run().status.success());
    }

    #[test]
    fn marks_of_a_command_are_replaced_as_the_server_does() {
        assert_eq!(expand("cp %p /a%%b/%f", "0A"), "cp pg_wal/0A /a%b/0A");
        assert_eq!(expand("%", "0A"), "");
    }
}
