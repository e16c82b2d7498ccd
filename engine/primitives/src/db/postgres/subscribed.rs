//! A logical replica: how it stands, whether it has everything, and how it takes over.

use std::collections::BTreeMap;
use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result, Value};
use tokio::time::Instant;

use super::alike;
use super::carried::digest;
use super::chunks;
use super::client::{Conn, Texts, col};
use super::cluster::Cluster;
use super::data::{admin, database_ident};
use super::kept;
use super::logical::{SUBSCRIBED, dropped};
use super::slots::{drop_published, slot};
use super::sql::{ident, lit};
use super::state::{Lsn, Mark, Node, Promoted, Replica, set};
use super::status::seconds;
use super::switch::{Way, hand_over, not_promoted, release, writable};
use super::turned;
use crate::db::driver::{Caught, Db, ReplicationError, Status, Switched};
use crate::ssh::quote;

/// How far a subscription is.
pub(super) struct Settled {
    pub tables: u64,
    pub ready: u64,
    pub copying: u64,
    pub running: bool,
}

/// Reads it of the only subscription that this made.
pub(super) async fn settled(conn: &Conn) -> Result<Settled> {
    let row = conn
        .texts(&format!(
            "SELECT (SELECT count(*) FROM pg_subscription_rel r WHERE r.srsubid = s.oid), \
             (SELECT count(*) FROM pg_subscription_rel r WHERE r.srsubid = s.oid AND r.srsubstate = 'r'), \
             (SELECT count(*) FROM pg_stat_subscription t WHERE t.subid = s.oid AND t.relid IS NOT NULL AND t.pid IS NOT NULL), \
             EXISTS (SELECT FROM pg_stat_subscription t WHERE t.subid = s.oid AND t.relid IS NULL AND t.pid IS NOT NULL)::text \
             FROM {SUBSCRIBED}",
        ))
        .await?
        .into_iter()
        .next()
        .unwrap_or_default();
    let n = |i| col(&row, i).parse().unwrap_or(0);
    Ok(Settled { tables: n(0), ready: n(1), copying: n(2), running: col(&row, 3) == "true" })
}

/// Prints the last error of a log before the end of a worker that has not started since, with its details, in one line.
const LAST_ERROR: &str = include_str!("worker.awk");

/// Why a subscription's worker has stopped, in the words of the server's log; `None` when it runs, or when the log says nothing of it.
pub(super) async fn failure(cx: &Cx, db: &Db, conn: &Conn) -> Result<Option<ReplicationError>> {
    let sql = format!(
        "SELECT s.subenabled::text, (SELECT min(t.pid) FROM pg_stat_subscription t WHERE t.subid = s.oid AND t.relid IS NULL), pg_current_logfile('stderr'), \
        (SELECT count(*) FROM pg_subscription_rel r WHERE r.srsubid = s.oid AND r.srsubstate <> 'r'), \
        (SELECT count(*) FROM pg_stat_subscription t WHERE t.subid = s.oid AND t.relid IS NOT NULL AND t.pid IS NOT NULL) \
        FROM {SUBSCRIBED}"
    );
    let Some(row) = conn.texts(&sql).await?.into_iter().next() else {
        return Ok(Some(ReplicationError { code: "42704".into(), text: "the subscription does not exist".into() }));
    };
    if col(&row, 0) != "true" {
        return Ok(Some(ReplicationError { code: "55000".into(), text: "the subscription is disabled".into() }));
    }
    let copies_stand = col(&row, 3) != "0" && col(&row, 4) == "0";
    if !col(&row, 1).is_empty() && !copies_stand {
        return Ok(None);
    }
    // The log is where the server's own collector writes it, or where its error output goes; the last error before the worker's end.
    let cluster = Cluster::of(cx, db).await?;
    let script = cluster.script(&format!(
        "f={}; case $f in /*) ;; ?*) f=$d/$f ;; *) p=$(head -n 1 \"$d/postmaster.pid\") || exit 0; f=$(readlink \"/proc/$p/fd/2\") ;; esac\n\
         [ -f \"$f\" ] || exit 0\ntail -c 100000 \"$f\" | awk {}",
        quote(col(&row, 2)),
        quote(LAST_ERROR)
    ))?;
    let done = cluster.sh(&script, None, Some(Duration::from_secs(20))).await?;
    let text = cx.redactor.text(String::from_utf8_lossy(&done.stdout).trim());
    let text = text.split_once("ERROR:  ").or_else(|| text.split_once("FATAL:  ")).map_or("", |(_, t)| t).to_string();
    if text.is_empty() { Ok(None) } else { Ok(Some(ReplicationError { code: "logical".into(), text })) }
}

/// How replication of a logical replica stands.
pub(super) async fn status(cx: &Cx, db: &Db, conn: &Conn, node: &Node, mark: &Replica, mut s: Status) -> Result<Status> {
    s.role = "replica".into();
    s.read_only = node.limit == 0;
    let now = settled(conn).await?;
    s.running = now.running && now.ready == now.tables;
    s.source = Some(mark.primary.clone());
    s.detail.insert("mode".into(), "logical".into());
    s.detail.insert("tables".into(), Value::Int(i64::try_from(now.tables).unwrap_or(i64::MAX)));
    s.detail.insert("tables_ready".into(), Value::Int(i64::try_from(now.ready).unwrap_or(i64::MAX)));
    if !s.running {
        s.error = Box::pin(failure(cx, db, conn)).await?;
    }
    let sql = format!(
        "SELECT greatest(pg_wal_lsn_diff(pg_current_wal_flush_lsn(), s.confirmed_flush_lsn), 0), \
         CASE WHEN s.confirmed_flush_lsn >= pg_current_wal_flush_lsn() THEN 0 ELSE extract(epoch FROM r.replay_lag) END, s.wal_status, s.confirmed_flush_lsn \
         FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid WHERE s.slot_name = {}",
        lit(&mark.slot)
    );
    let rows = match admin(cx, &Db::find(cx, &mark.primary)?).await {
        Ok((p, _)) => p.texts(&sql).await?,
        Err(e) if e.code == Code::ABORTED => return Err(e),
        Err(e) => {
            s.detail.insert("primary".into(), format!("it cannot be asked: {}", e.message).into());
            return Ok(s);
        }
    };
    match rows.first() {
        Some(row) => {
            s.behind = col(row, 0).parse::<i64>().ok().and_then(|n| u64::try_from(n).ok());
            s.lag = seconds(col(row, 1));
            s.position = col(row, 3).to_string();
            s.detail.insert("slot".into(), col(row, 2).into());
        }
        None => {
            s.running = false;
            s.error = Some(ReplicationError { code: "42704".into(), text: format!("replication slot \"{}\" does not exist", mark.slot) });
        }
    }
    Ok(s)
}

/// What the replica has confirmed to have on its disk; `None` without its slot.
async fn confirmed(p: &Conn, slot: &str) -> Result<Option<Lsn>> {
    let sql = format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = {}", lit(slot));
    Ok(p.text(&sql).await?.and_then(|t| Lsn::parse(&t)))
}

/// Whether the replica has every transaction up to the fence, by what it has told the primary's slot.
pub(super) async fn caught_up(cx: &Cx, db: &Db, conn: &Conn, mark: &Replica, source: &Db, until: Lsn) -> Result<Caught> {
    let (p, _) = admin(cx, source).await?;
    let began = Instant::now();
    loop {
        let (s, at) = futures::try_join!(settled(conn), confirmed(&p, &mark.slot))?;
        let Some(at) = at else {
            let text = format!("replication slot \"{}\" does not exist", mark.slot);
            return Err(ReplicationError { code: "42704".into(), text }.stopped(db));
        };
        if s.ready == s.tables && at >= until {
            return Ok(Caught::Up);
        }
        // What is applied is confirmed when it is on the disk, and this brings it there.
        conn.run("BEGIN; SELECT pg_logical_emit_message(true, 'runbook', 'flush'); COMMIT").await?;
        if began.elapsed() > Duration::from_millis(700) {
            if let Some(e) = Box::pin(failure(cx, db, conn)).await? {
                return Err(e.stopped(db));
            }
            let missing = format!(
                "{} bytes of the write-ahead log up to {until}; {} of {} tables are copied",
                until.0.saturating_sub(at.0),
                s.ready,
                s.tables
            );
            return Ok(Caught::Behind { missing, may_pass: true });
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Definitions and tables that have changed on the primary since they were copied, by name.
pub(super) async fn changed(cx: &Cx, db: &Db, source: &Db, (conn, p): (&Conn, &Conn), mark: &Replica) -> Result<Vec<String>> {
    let published = "SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = ";
    let subscribed = "SELECT n.nspname || '.' || c.relname FROM pg_subscription_rel r JOIN pg_class c ON c.oid = r.srrelid JOIN pg_namespace n ON n.oid = c.relnamespace";
    let sql = format!("{published}{}", lit(&mark.slot));
    let ((left, _), (right, _), all, have) =
        futures::try_join!(Box::pin(chunks::schema(cx, source)), Box::pin(chunks::schema(cx, db)), p.texts(&sql), conn.texts(subscribed))?;
    let missing =
        all.iter().map(|r| col(r, 0)).filter(|t| !have.iter().any(|h| col(h, 0) == *t)).map(|t| format!("table {t} is not subscribed to"));
    let mut found: Vec<String> = missing.collect();
    if digest(&left) != mark.schema {
        found.extend(left.iter().filter(|(k, v)| !right.get(*k).is_some_and(|r| alike::same(k, v, r))).map(|(k, _)| k.clone()));
        found.extend(right.keys().filter(|k| !left.contains_key(*k)).cloned());
    }
    Ok(found)
}

/// The value of every sequence, as `setval` takes it: name, value, whether it was given out.
pub(super) async fn sequences(conn: &Conn) -> Result<Vec<Texts>> {
    let names = conn
        .texts(
            "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind = 'S' AND c.relpersistence = 'p' AND n.nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1",
        )
        .await?;
    if names.is_empty() {
        return Ok(vec![]);
    }
    let each: Vec<String> = names.iter().map(|r| format!("SELECT {}, last_value, is_called FROM {}", lit(col(r, 0)), col(r, 0))).collect();
    conn.texts(&each.join("; ")).await
}

/// The statements that give every sequence these values.
pub(super) fn set_sequences(values: &[Texts]) -> String {
    values.iter().map(|v| format!("SELECT setval({}, {}, {}); ", lit(col(v, 0)), col(v, 1), col(v, 2) == "t")).collect()
}

/// Sees that every sequence has at least that value: users may have drawn from them in the meantime.
///
/// # Errors
/// `RB0505` with the name of the first that has not.
pub(super) async fn were_set(db: &Db, conn: &Conn, values: &[Texts]) -> Result<()> {
    let set_to: BTreeMap<String, String> = sequences(conn).await?.iter().map(|r| (col(r, 0).to_string(), col(r, 1).to_string())).collect();
    let behind = |r: &&Texts| {
        let now = set_to.get(col(r, 0)).and_then(|v| v.parse::<i64>().ok());
        now.is_none_or(|now| col(r, 1).parse::<i64>().is_ok_and(|was| now.abs() < was.abs()))
    };
    let Some(r) = values.iter().find(behind) else { return Ok(()) };
    Err(Error::new(Code::DB_COPY, format!("the sequence {} of \"{}\" did not get its value {}", col(r, 0), db.name, col(r, 1)))
        .hint("look at it before anybody writes")
        .host(&db.host))
}

/// Fills the materialized views that have rows on the other side.
pub(super) async fn refresh(conn: &Conn, other: &Conn) -> Result<()> {
    let sql = "SELECT quote_ident(schemaname) || '.' || quote_ident(matviewname) FROM pg_matviews WHERE ispopulated ORDER BY 1";
    for v in &other.texts(sql).await? {
        conn.run(&format!("REFRESH MATERIALIZED VIEW {}", col(v, 0))).await?;
    }
    Ok(())
}

/// 1. Nothing has changed on the primary that replication does not carry; the replica has every transaction up to the fence.
/// 2. The slot for the way back is made, where one is wanted; the primary notes to whom it hands over. From here to 4 nobody takes writes.
/// 3. Materialized views are refreshed.
/// 4. In one transaction the subscription ends, every sequence gets the primary's value, the database is opened and marked as promoted.
/// 5. The sequences are read back, a new session may write, the slot goes; the old side follows, where a way back is wanted.
///
/// The fence was confirmed by the caller. A crash before 4 leaves everything closed and replicating.
pub(super) async fn promote(
    cx: &Cx,
    (db, conn): (&Db, &Conn),
    (source, s): (&Db, &Conn),
    (fence_id, until): (&str, Lsn),
    (standing, mark): (&Mark, &Replica),
    way: Way,
) -> Result<Switched> {
    let refuse = |code: Code, why: String, hint: &str| Err(Error::new(code, why).hint(hint).host(&db.host));
    match Box::pin(caught_up(cx, db, conn, mark, source, until)).await? {
        Caught::Up => {}
        Caught::Behind { missing, .. } => {
            return refuse(Code::DB_BEHIND, format!("\"{}\" lacks {missing}", db.name), "wait_caught_up waits for them");
        }
    }
    let since = Box::pin(changed(cx, db, source, (conn, s), mark)).await?;
    if !since.is_empty() {
        return refuse(
            Code::DB_DIFFERS,
            format!("definitions have changed since \"{}\" was made, and logical replication carries none: {}", db.name, since.join(", ")),
            "make the same changes on the replica (as a super-user) and replicate_from again, which takes up new tables; or make the replica anew with replace: true",
        );
    }
    if mark.way_back {
        turned::prepare(cx, db, conn, source).await?;
    }
    if standing.handed_to.is_none() {
        hand_over(source, s, standing, Some(db)).await?;
    }
    refresh(conn, s).await?;
    let values = sequences(s).await?;
    let database = database_ident(db)?;
    let promoted = Promoted { action: cx.action_id.to_string(), fence: fence_id.to_string(), logical: true, way_back: mark.way_back };
    conn.run(&format!(
        "BEGIN; {}; {}ALTER DATABASE {database} CONNECTION LIMIT {}; ALTER DATABASE {database} RESET runbook.replica; {}; COMMIT",
        dropped(&ident(&mark.slot)),
        set_sequences(&values),
        standing.limit,
        set(&database, "promoted", &promoted)?
    ))
    .await?;
    were_set(db, conn, &values).await?;
    kept::forget(cx, db)?;
    let (open, ()) = futures::join!(writable(cx, db, way), release(cx, source, s, db));
    open?;
    if mark.way_back {
        turned::follow_soon(cx, source, db).await;
    }
    Ok(Switched { changed: true, note: format!("\"{}\" takes the writes; {} sequences were set", db.name, values.len()) })
}

/// The way back from a logical replica: before it took over, or when the other side follows it since.
pub(super) async fn demote(cx: &Cx, db: &Db, node: &Node, other: &Db, (o, o_node): (&Conn, &Node), within: Duration) -> Result<Switched> {
    match &node.promoted {
        None => {
            let (conn, _) = admin(cx, db).await?;
            drop_published(cx, &conn, &slot(other)).await?;
            not_promoted(db, other, o, o_node).await
        }
        Some(p) if p.way_back => Box::pin(turned::demote(cx, db, node, other, o, within)).await,
        Some(_) => Err(Error::new(
            Code::DB_CANNOT,
            format!("\"{}\" was promoted from a logical replica without a way back: \"{}\" does not have the rows that it took since", db.name, other.name),
        )
        .hint("go forward; or make the old side a replica with replicate_from(…, #{ mode: \"logical\", replace: true }), and switch to it. way_back: true of replicate_from lets it follow from the switch on")
        .host(&db.host)),
    }
}
