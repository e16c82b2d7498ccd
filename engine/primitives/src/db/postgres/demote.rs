//! The way back: the side that took over gives every row back to the one that handed over.

use std::collections::BTreeSet;
use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::time::Instant;

use super::archived::{name, number};
use super::client::{Conn, For, col, connect};
use super::cluster::{Cluster, Control, Data};
use super::copy::{end_leftover, follow, rebuild};
use super::data::{admin, database_ident, unless_stopped};
use super::fence::raise;
use super::login::{may_rewind, prepare};
use super::settings::{self, Replication};
use super::slots::{ensure_slot, slot};
use super::sql::{ident, lit};
use super::standby::streams;
use super::state::{Lsn, Mark, Node, look, set};
use super::status::lacks;
use super::switch::{end_recovery, handed, not_promoted};
use super::turned::{given_back, let_go};
use crate::db::driver::{Db, Switched};
use crate::ssh::quote;

/// A cluster, up or down.
enum Reach {
    Up(Box<(Conn, Node)>),
    Down(Box<Control>),
}

async fn reach(cx: &Cx, db: &Db) -> Result<Reach> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let why = match admin(cx, db).await {
            Ok(up) => return Ok(Reach::Up(Box::new(up))),
            Err(e) if matches!(e.code, Code::SSH_SOCKET | Code::DB_CONNECT) => e,
            Err(e) => return Err(e),
        };
        match Cluster::of(cx, db).await?.look().await? {
            Data::Cluster(c) if !c.running => return Ok(Reach::Down(c)),
            // In the middle of being put in place.
            Data::Empty => return Ok(Reach::Down(Box::default())),
            // It runs and takes nobody: it starts or stops, as a controller that died has left it.
            Data::Cluster(_) if why.retryable && Instant::now() < until => cx.sleep(Duration::from_millis(200)).await?,
            _ => return Err(why),
        }
    }
}

/// 1. `db` is fenced, with the other side's fence in its mark. From here to the end nobody takes writes.
/// 2. `other` becomes a standby of `db`: rewound, or copied anew. So it gets every row that came since, and the mark.
/// 3. `db` is stopped in order; `other` has its log to the end, and is promoted.
/// 4. In one transaction `other` gets its own fence back, as it was before it handed over.
/// 5. `db` becomes a standby of `other` again.
///
/// Each part finds out by itself whether it was done: what runs, what is in recovery, and which marks stand, tell where it was cut.
pub(super) async fn demote(cx: &Cx, db: &Db, other: &Db, within: Duration) -> Result<Switched> {
    unless_stopped(cx, db, async {
        let refuse = |code: Code, why: String, hint: &str| Err(Error::new(code, why).hint(hint).host(&db.host));
        let (here, there) = futures::try_join!(reach(cx, db), reach(cx, other))?;
        match (here, there) {
            (Reach::Up(a), Reach::Up(b)) if a.1.replica.is_some() || a.1.promoted.as_ref().is_some_and(|p| p.logical) => {
                return super::subscribed::demote(cx, db, &a.1, other, (&b.0, &b.1), within).await;
            }
            (Reach::Up(a), Reach::Up(b)) if given_back(&a.1, other, &b.1) => {
                let_go(cx, &a.0, other).await?;
                return Ok(Switched { changed: false, note: format!("it has given everything back to \"{}\" already", other.name) });
            }
            (Reach::Up(a), Reach::Up(b)) if !b.1.in_recovery => {
                if a.1.in_recovery {
                    return not_promoted(db, other, &b.0, &b.1).await;
                }
                if a.1.system != b.1.system {
                    return refuse(
                        Code::DB_COPY,
                        format!("\"{}\" and \"{}\" have nothing in common", db.name, other.name),
                        "look at what happened to them",
                    );
                }
                let Some(mark) = handed(&b.1, db).cloned() else {
                    return refuse(
                        Code::DB_DIFFERS,
                        format!("\"{}\" and \"{}\" both take writes: the second is not fenced any more", db.name, other.name),
                        "compare them and bring the rows together by hand; nothing was changed",
                    );
                };
                give_back(cx, db, other, within, Some(Mark { handed_to: None, ..mark })).await?
            }
            // Cut in the middle: the mark on this side knows the rest.
            (Reach::Up(a), Reach::Down(_)) if a.1.fence.as_ref().is_some_and(|m| m.hold_for.is_some()) => {
                give_back(cx, db, other, within, None).await?
            }
            (Reach::Up(a), Reach::Up(b)) if b.1.in_recovery && a.1.fence.as_ref().is_some_and(|m| m.hold_for.is_some()) => {
                give_back(cx, db, other, within, None).await?
            }
            (Reach::Down(c), Reach::Up(b)) if b.1.in_recovery => finish(cx, db, other, &c, *b).await?,
            (Reach::Down(c), Reach::Up(b)) if c.system == b.1.system && b.1.fence.as_ref().is_none_or(|m| m.handed_to.is_none()) => {
                if let Some(hold) = b.1.fence.as_ref().filter(|m| m.hold_for.is_some()) {
                    own_fence(other, &b.0, hold).await?;
                }
            }
            (Reach::Down(_), _) => {
                return refuse(
                    Code::DB_CONNECT,
                    format!("\"{}\" does not run: it has rows that the other side lacks", db.name),
                    "start it, then demote again",
                );
            }
            (Reach::Up(_), _) => {
                return refuse(
                    Code::DB_CONNECT,
                    format!("\"{}\" is not the primary that handed over", other.name),
                    "start it, and look at what happened to it",
                );
            }
        }
        back_as_standby(cx, db, other).await?;
        Ok(Switched { changed: true, note: format!("\"{}\" is the primary again and has every row", other.name) })
    })
    .await
}

/// Parts 1 to 4.
async fn give_back(cx: &Cx, db: &Db, other: &Db, within: Duration, origin: Option<Mark>) -> Result<()> {
    let id = format!("{}-hold", cx.action_id);
    let (conn, node) = admin(cx, db).await?;
    let origin = origin.or_else(|| node.fence.as_ref().and_then(|m| m.hold_for.as_deref().cloned()));
    // What may fail is tried before anybody is kept out.
    let cluster = Cluster::of(cx, other).await?;
    let r = prepare(cx, &cluster, other, db, &conn, &node).await?;
    let id = node.fence.as_ref().filter(|m| m.hold_for.is_some()).map_or(id, |m| m.id.clone());
    if origin.is_none() {
        return Err(Error::internal("the fence to go back to is not known").host(&db.host));
    }
    let (_, until, _, _) = raise(cx, db, &id, within, origin).await?;
    drop(conn);
    let (conn, node) = admin(cx, db).await?;
    become_standby(cx, &cluster, other, db, &conn, &node, &r).await?;
    let (o, _) = cluster.start().await?;
    streams(cx, other, &conn, Duration::from_secs(120)).await?;
    let began = Instant::now();
    while let Some(bytes) = lacks(&o, until).await? {
        if began.elapsed() > Duration::from_secs(600) {
            return Err(Error::new(Code::DB_BEHIND, format!("\"{}\" still lacks {bytes} bytes of the write-ahead log", other.name))
                .retryable(true)
                .host(&other.host));
        }
        cx.sleep(Duration::from_millis(20)).await?;
    }
    drop(conn);
    let here = Cluster::of(cx, db).await?;
    here.stop().await?;
    let Data::Cluster(control) = here.look().await? else {
        return Err(Error::new(Code::DB_COPY, format!("the data folder of \"{}\" is gone", db.name)).host(&db.host));
    };
    let node = look(&o).await?;
    finish(cx, db, other, &control, (o, node)).await
}

/// Lets `other` follow `db`, from wherever it stands.
async fn become_standby(cx: &Cx, cluster: &Cluster<'_>, other: &Db, db: &Db, conn: &Conn, node: &Node, r: &Replication) -> Result<()> {
    end_leftover(cluster).await?;
    let found = cluster.look().await?;
    let torn = cluster.sh(&cluster.script("[ -e \"$d.runbook-rewind\" ]")?, None, None).await?.status == 0;
    if let Data::Cluster(c) = &found
        && c.system == node.system
        && !torn
    {
        if c.standby {
            return follow(cx, cluster, other, db, conn, r).await;
        }
        if c.can_rewind && may_rewind(cx, cluster, other, db, r, node).await && grant_rewind(cx, db, r).await.is_ok() {
            // From here on the source keeps its log for the standby: a checkpoint of its own may come at any time.
            let (kept, size) = keep_log(conn, &slot(other)).await?;
            // The source's last checkpoint must be of its new timeline.
            conn.run("CHECKPOINT").await?;
            cluster.stop().await?;
            let source = format!(
                "host='{}' port={} user='{}' dbname=postgres passfile='{}.runbook-pass' connect_timeout=10 {}",
                r.host,
                r.port,
                r.user,
                cluster.data()?,
                r.options
            );
            // A rewind that is cut short leaves a folder that is good for nothing: the mark says so. So does one whose log has a gap: it
            // would wait for the rest for ever.
            let script = cluster.script(&format!(
                ": > \"$d.runbook-rewind\" || exit 1; pg_rewind -D \"$d\" --source-server={} </dev/null & p=$!\n\
                 echo $p > \"$d.runbook-pid\"; wait $p || exit 1; rm -f \"$d.runbook-pid\"\n\
                 sed -n 's/^START WAL LOCATION:.*(file \\([0-9A-F]*\\)).*/\\1/p' \"$d/backup_label\" && ls \"$d/pg_wal\"",
                quote(&source)
            ))?;
            let done = cluster.sh(&script, None, None).await?;
            let text = String::from_utf8_lossy(&done.stdout);
            let (first, there) = text.split_once('\n').unwrap_or_default();
            let said = match lacking(first, kept, size, there) {
                _ if done.status != 0 => String::from_utf8_lossy(&done.stderr).trim().lines().next_back().unwrap_or("").to_string(),
                Some(segment) => format!("the log from {segment} on is gone on both sides"),
                None => {
                    let whole = cluster.script(": > \"$d/standby.signal\" && rm -f \"$d.runbook-rewind\"")?;
                    cluster.must("marking it as rewound", &whole, None).await?;
                    return follow(cx, cluster, other, db, conn, r).await;
                }
            };
            cx.message(format!("pg_rewind could not rewind \"{}\" ({said}): it is copied anew", other.name));
        }
    }
    rebuild(cx, cluster, other, db, conn, r).await.map(|_| ())
}

/// Makes the slot by which the source keeps its log; from where on it does, and how large its segments are.
async fn keep_log(conn: &Conn, name: &str) -> Result<(Lsn, u64)> {
    ensure_slot(conn, name).await?;
    let sql = format!(
        "SELECT coalesce(restart_lsn, pg_current_wal_lsn()), (SELECT setting FROM pg_settings WHERE name = 'wal_segment_size') \
         FROM pg_replication_slots WHERE slot_name = {}",
        lit(name)
    );
    let rows = conn.texts(&sql).await?;
    let (from, size) = rows.first().map(|r| (Lsn::parse(col(r, 0)), col(r, 1).parse().ok())).unwrap_or_default();
    from.zip(size).ok_or_else(|| Error::internal(format!("the slot {name} is gone as soon as it was made")))
}

/// The first segment that is not there, on any timeline, of the log from the segment `first` to where a slot keeps the rest.
fn lacking(first: &str, kept: Lsn, size: u64, there: &str) -> Option<String> {
    let Some((timeline, from)) = number(first, size) else { return Some("its last checkpoint".into()) };
    let all: BTreeSet<u64> = there.lines().filter_map(|n| number(n, size)).filter(|(t, _)| *t >= timeline).map(|(_, n)| n).collect();
    // The first is needed in any case, also when the slot is older.
    (from..=from.max(kept.0 / size.max(1))).find(|n| !all.contains(n)).map(|n| name(timeline, n, size))
}

/// Lets the replication role read what `pg_rewind` reads.
async fn grant_rewind(cx: &Cx, db: &Db, r: &Replication) -> Result<()> {
    let conn = connect(cx, &settings::beside(db, "postgres"), For::Admin).await?;
    let role = ident(&r.user);
    for f in [
        "pg_ls_dir(text, boolean, boolean)",
        "pg_stat_file(text, boolean)",
        "pg_read_binary_file(text)",
        "pg_read_binary_file(text, bigint, bigint, boolean)",
    ] {
        conn.run(&format!("GRANT EXECUTE ON FUNCTION pg_catalog.{f} TO {role}")).await?;
    }
    Ok(())
}

/// Parts 3 (its end) and 4: `db` is stopped, `other` follows it and has its log to the end.
async fn finish(cx: &Cx, db: &Db, other: &Db, control: &Control, (conn, node): (Conn, Node)) -> Result<()> {
    let bad = |why: String, hint: &str| Err(Error::new(Code::DB_BEHIND, why).hint(hint).host(&other.host));
    if control.system != node.system {
        return bad(format!("\"{}\" is no standby of \"{}\"", other.name, db.name), "look at what happened to them");
    }
    let Some(hold) = node.fence.clone().filter(|m| m.hold_for.is_some()) else {
        return bad(
            format!("\"{}\" is stopped, and was not fenced before", db.name),
            "start it: it has rows that the other side may lack; then demote again",
        );
    };
    if control.state != "shut down" {
        return bad(format!("\"{}\" was not shut down in order ({})", db.name, control.state), "start it, then demote again");
    }
    let began = Instant::now();
    // The last record of a log that was closed in order is its checkpoint.
    while lacks(&conn, Lsn(control.checkpoint.0 + 1)).await?.is_some() {
        if began.elapsed() > Duration::from_secs(30) {
            return bad(
                format!("\"{}\" does not have the end of the log of \"{}\", {}", other.name, db.name, control.checkpoint),
                "start that one, then demote again",
            );
        }
        cx.sleep(Duration::from_millis(20)).await?;
    }
    end_recovery(cx, other, &conn).await?;
    own_fence(other, &conn, &hold).await
}

/// Part 4.
async fn own_fence(other: &Db, conn: &Conn, hold: &Mark) -> Result<()> {
    let database = database_ident(other)?;
    let mark = hold.hold_for.as_deref().ok_or_else(|| Error::internal("the mark of a hold has no fence to go back to"))?;
    let fence = set(&database, "fence", mark)?;
    conn.run(&format!("BEGIN; {fence}; ALTER DATABASE {database} RESET runbook.promoted; COMMIT")).await
}

/// Part 5.
async fn back_as_standby(cx: &Cx, db: &Db, other: &Db) -> Result<()> {
    let cluster = Cluster::of(cx, db).await?;
    let (conn, node) = admin(cx, other).await?;
    let r = prepare(cx, &cluster, db, other, &conn, &node).await?;
    follow(cx, &cluster, db, other, &conn, &r).await?;
    cluster.start().await?;
    streams(cx, db, &conn, Duration::from_secs(60)).await?;
    // Slots that were made for the way back are of no use on a standby; nor is what lay in the place of a copy.
    let (c, _) = admin(cx, db).await?;
    let name = slot(other);
    c.run(&format!("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {} AND NOT active", lit(&name)))
        .await?;
    let there = Cluster::of(cx, other).await?;
    there.must("clearing up", &there.script("rm -rf \"$d.runbook-replaced\" \"$d.runbook-pass\"")?, None).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_in_the_log_is_found_wherever_it_is() {
        const MIB: u64 = 1 << 20;
        let of = |n: u64| Lsn(n * 16 * MIB + 5);
        let lacks = |kept: u64, there: &[&str]| lacking("0000000100000000000000FE", of(kept), 16 * MIB, &there.join("\n"));
        let (a, b, c) = ("0000000100000000000000FE", "0000000200000000000000FF", "000000020000000100000000");
        assert_eq!(lacks(0x100, &[a, b, c, "00000002.history", "archive_status"]), None);
        assert_eq!(lacks(0x100, &[a, c]).as_deref(), Some("0000000100000000000000FF"));
        assert_eq!(lacks(0x100, &[b, c]).as_deref(), Some(a));
        assert_eq!(lacks(0x101, &[a, b, c]).as_deref(), Some("000000010000000100000001"));
        assert_eq!(lacks(0x10, &[a]), None, "the slot keeps more than is needed");
        assert_eq!(lacks(0x10, &[c]).as_deref(), Some(a));
        assert!(lacking("", of(1), 16 * MIB, "").is_some());
    }
}
