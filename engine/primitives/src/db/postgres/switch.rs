//! Switching: the standby takes over under a proven fence.

use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result, Value};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::client::{Conn, Dialled, For, connect, dial};
use super::data::{admin, database_ident, unless_stopped};
use super::delayed::held;
use super::fence::confirm;
use super::kept;
use super::logical::{TAKES_OVER, end_left};
use super::slots::{drop_slot, slot};
use super::state::{Lsn, Mark, Node, Promoted, look, restore, set};
use super::status::{broken, lacks};
use super::subscribed;
use super::turned;
use crate::db::driver::{Caught, Db, Fence, Switched};

fn position(fence: &Fence) -> Result<Lsn> {
    let text = fence.position.get("lsn").and_then(Value::as_str).unwrap_or("");
    Lsn::parse(text).ok_or_else(|| Error::new(Code::DB_NOT_FENCED, "this fence has no position in the write-ahead log"))
}

fn system(fence: &Fence) -> &str {
    fence.position.get("system").and_then(Value::as_str).unwrap_or("")
}

/// Whether the standby has replayed everything up to the fence.
pub(super) async fn caught_up(cx: &Cx, db: &Db, fence: &Fence) -> Result<Caught> {
    unless_stopped(cx, db, async {
        let (conn, node) = admin(cx, db).await?;
        let never = |missing: String| Ok(Caught::Behind { missing, may_pass: false });
        if let Some(mark) = &node.replica {
            if mark.system != system(fence) || mark.primary != fence.database {
                return never(format!("it is a replica of \"{}\"", mark.primary));
            }
            return Box::pin(subscribed::caught_up(cx, db, &conn, mark, &Db::find(cx, &fence.database)?, position(fence)?)).await;
        }
        if opened(&node, fence) {
            return Ok(Caught::Up);
        }
        if node.system != system(fence) {
            return never("it is no standby of the fenced database: it is another cluster".into());
        }
        if !node.in_recovery {
            return if half_open(&node, fence) { Ok(Caught::Up) } else { never("it is no standby any more".into()) };
        }
        let until = position(fence)?;
        if node.lsn >= until {
            return Ok(Caught::Up);
        }
        let began = Instant::now();
        loop {
            let Some(bytes) = lacks(&conn, until).await? else { return Ok(Caught::Up) };
            if began.elapsed() > Duration::from_millis(700) {
                if let Some(e) = broken(cx, &conn).await? {
                    return Err(e.stopped(db));
                }
                let held = held(&conn).await?;
                let why = held.why().map_or(String::new(), |why| format!("; {why}"));
                let may_pass = held.rolled.is_none() && !held.paused;
                return Ok(Caught::Behind { missing: format!("{bytes} bytes of the write-ahead log up to {until}{why}"), may_pass });
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

/// Promoted under this fence, and open.
fn opened(node: &Node, fence: &Fence) -> bool {
    !node.in_recovery && node.promoted.as_ref().is_some_and(|p| p.fence == fence.id)
}

/// A primary of its own, but still closed by the copy of this fence: the promotion was cut short.
fn half_open(node: &Node, fence: &Fence) -> bool {
    !node.in_recovery && node.promoted.is_none() && node.fence.as_ref().is_some_and(|m| m.id == fence.id && m.hold_for.is_none())
}

/// 1. The source confirms that this very fence stands, holds, and has seen no write since.
/// 2. The standby has everything up to the fence.
/// 3. The source notes to whom it hands over, so that `unfence` cannot open both sides. From here to 5 nobody takes writes.
/// 4. The standby becomes a primary. It is still closed: it has the fence's marks, as it has everything of its primary.
/// 5. In one transaction it is opened and marked as promoted by this action.
///
/// A crash before 5 leaves everything closed; doing it all again is safe. After 5 the mark says that it was done.
pub(super) async fn promote(cx: &Cx, db: &Db, source: &Db, fence: &Fence) -> Result<Switched> {
    unless_stopped(cx, db, async {
        // The way for the last look, by a new session, is opened meanwhile: nobody takes writes until it is over.
        let way = Way::open(cx, db);
        let ((s, s_node), (conn, mut node)) = futures::try_join!(admin(cx, source), admin(cx, db))?;
        if node.replica.is_some() {
            // What a controller that died has left at work: it has taken over, or not.
            end_left(cx, &conn, TAKES_OVER).await?;
            node = look(&conn).await?;
        }
        let known = node.replica.as_ref().map_or(node.system.as_str(), |m| m.system.as_str());
        let by_this = opened(&node, fence) && node.promoted.as_ref().is_some_and(|p| p.logical);
        if known != system(fence) && !by_this {
            return Err(Error::new(Code::DB_COPY, format!("\"{}\" is no standby of \"{}\"", db.name, source.name))
                .hint("make it one with replicate_from first")
                .host(&db.host));
        }
        let done = || Ok(Switched { changed: false, note: "it was promoted under this fence already".into() });
        if opened(&node, fence) && node.promoted.as_ref().is_some_and(|p| p.way_back) {
            // The fence has seen writes since: the source follows. That, too, a controller that died may have left undone.
            release(cx, source, &s, db).await;
            turned::follow_soon(cx, source, db).await;
            return done();
        }
        let mark = Box::pin(confirm(cx, source, &s, &s_node, fence)).await?;
        if let Some(other) = mark.handed_to.as_ref().filter(|to| **to != db.name) {
            return Err(Error::new(Code::DB_NOT_FENCED, format!("\"{}\" has already handed over to \"{other}\"", source.name))
                .hint("demote that one first")
                .host(&source.host));
        }
        if opened(&node, fence) {
            // A controller that died right after that has left it.
            release(cx, source, &s, db).await;
            return done();
        }
        if let Some(replica) = &node.replica {
            let until = position(fence)?;
            return Box::pin(subscribed::promote(cx, (db, &conn), (source, &s), (&fence.id, until), (&mark, replica), way)).await;
        }
        if !node.in_recovery && !half_open(&node, fence) {
            return Err(Error::new(Code::DB_COPY, format!("\"{}\" is a primary already, and not by this fence", db.name))
                .hint("look at what happened to it; compare both sides")
                .host(&db.host));
        }
        if node.in_recovery {
            // Checked before the note, so that a standby that lags leaves no trace on the source.
            let until = position(fence)?;
            if node.lsn < until
                && let Some(bytes) = lacks(&conn, until).await?
            {
                if let Some(e) = broken(cx, &conn).await? {
                    return Err(e.stopped(db));
                }
                return Err(Error::new(Code::DB_BEHIND, format!("\"{}\" lacks {bytes} bytes of the write-ahead log", db.name))
                    .hint("wait_caught_up waits for them")
                    .host(&db.host));
            }
        }
        let handed_over = mark.handed_to.is_none();
        if handed_over {
            hand_over(source, &s, &mark, Some(db)).await?;
        }
        // What makes the way back short is no condition of the switch.
        let kept_log = async { if handed_over { keep_log(&s).await } else { Ok(()) } };
        let (kept_log, ended) =
            futures::join!(kept_log, async { if node.in_recovery { end_recovery(cx, db, &conn).await } else { Ok(()) } });
        ended?;
        if let Err(e) = kept_log {
            cx.message(format!("\"{}\" is not told to keep its log, so that a demote may copy it anew: {}", source.name, e.message));
        }
        let database = database_ident(db)?;
        let promoted = Promoted { action: cx.action_id.to_string(), fence: fence.id.clone(), logical: false, way_back: false };
        conn.run(&format!(
            "BEGIN; {}; ALTER DATABASE {database} RESET runbook.fence; {}; COMMIT",
            restore(&database, &mark),
            set(&database, "promoted", &promoted)?
        ))
        .await?;
        kept::forget(cx, db)?;
        let (open, ()) = futures::join!(writable(cx, db, way), release(cx, source, &s, db));
        open?;
        Ok(Switched { changed: true, note: format!("\"{}\" takes the writes", db.name) })
    })
    .await
}

/// Drops the slot by which `db` followed: it is of no use once that has taken over, and would keep the log for ever. That it is gone is no
/// condition of the switch.
pub(super) async fn release(cx: &Cx, source: &Db, s: &Conn, db: &Db) {
    let slot = slot(db);
    let why = match tokio::time::timeout(Duration::from_secs(2), drop_slot(cx, s, &slot)).await {
        Ok(Ok(())) => return,
        Ok(Err(e)) => e.message,
        Err(_) => "it is in use".into(),
    };
    cx.message(format!(
        "the slot {slot} stays on \"{}\", which keeps its log as long: {why}; SELECT pg_drop_replication_slot('{slot}') there",
        source.name
    ));
}

/// Notes on the source to whom it hands over, or that it does not.
pub(super) async fn hand_over(source: &Db, conn: &Conn, mark: &Mark, to: Option<&Db>) -> Result<()> {
    let mark = Mark { handed_to: to.map(|db| db.name.clone()), ..mark.clone() };
    conn.run(&set(&database_ident(source)?, "fence", &mark)?).await
}

/// The mark of the fence under which that server has handed over to `db`.
pub(super) fn handed<'a>(node: &'a Node, db: &Db) -> Option<&'a Mark> {
    node.fence.as_ref().filter(|m| m.handed_to.as_ref() == Some(&db.name))
}

/// Takes a promotion back that never happened: a note of it on the other side goes.
pub(super) async fn not_promoted(db: &Db, other: &Db, conn: &Conn, node: &Node) -> Result<Switched> {
    let handed = handed(node, db);
    if let Some(mark) = handed {
        hand_over(other, conn, mark, None).await?;
    }
    Ok(Switched { changed: handed.is_some(), note: "it was not promoted".into() })
}

/// Lets the side that hands over keep its log: the way back by `pg_rewind` begins at the last checkpoint that both sides share. Both
/// ways back replace the setting again.
async fn keep_log(conn: &Conn) -> Result<()> {
    let own =
        conn.text("SELECT sourcefile LIKE '%auto.conf' OR setting::int >= 1024 FROM pg_settings WHERE name = 'wal_keep_size'").await?;
    if own.as_deref() == Some("t") {
        return Ok(());
    }
    conn.run("ALTER SYSTEM SET wal_keep_size = '1GB'").await?;
    conn.run("SELECT pg_reload_conf()").await
}

/// Ends the recovery of a standby, and returns when it takes writes.
pub(super) async fn end_recovery(cx: &Cx, db: &Db, conn: &Conn) -> Result<()> {
    let began = Instant::now();
    // The server's own waiting looks ten times a second.
    let asked = match conn.text("SELECT pg_promote(false)::text").await {
        // An earlier try had asked already, and it ends at this moment.
        Err(e) if e.details.get("sqlstate").is_some_and(|s| s == "55000") => Some("true".into()),
        asked => asked?,
    };
    while asked.as_deref() == Some("true") {
        if conn.text("SELECT pg_is_in_recovery()::text").await?.as_deref() == Some("false") {
            return Ok(());
        }
        if began.elapsed() > Duration::from_secs(120) {
            break;
        }
        cx.sleep(Duration::from_millis(3)).await?;
    }
    Err(Error::new(Code::DB_COPY, format!("\"{}\" did not end its recovery within 2m", db.name))
        .hint("look at its log; this may be tried again")
        .retryable(true)
        .host(&db.host))
}

/// A way to a server that is opened while other work goes on.
pub(super) struct Way(JoinSet<Result<Dialled>>);

impl Way {
    fn open(cx: &Cx, db: &Db) -> Way {
        let (cx, db) = (cx.clone(), db.clone());
        let mut work = JoinSet::new();
        work.spawn(async move { dial(&cx, &db, For::Script).await });
        Way(work)
    }

    /// Logs in on it, or on another when it could not be opened or is no good any more.
    async fn login(mut self, cx: &Cx, db: &Db) -> Result<Conn> {
        if let Some(Ok(Ok(way))) = self.0.join_next().await {
            match way.login(cx, db).await {
                Err(e) if e.code == Code::DB_CONNECT => {}
                conn => return conn,
            }
        }
        connect(cx, db, For::Script).await
    }
}

/// Sees that a new session may write.
pub(super) async fn writable(cx: &Cx, db: &Db, way: Way) -> Result<()> {
    let conn = way.login(cx, db).await?;
    let mode = conn.text("SELECT current_setting('transaction_read_only')").await?.unwrap_or_default();
    if mode == "on" {
        return Err(Error::new(Code::DB_COPY, format!("\"{}\" is promoted, and new sessions are read-only by default", db.name))
            .hint("default_transaction_read_only is set for the server or for the role: reset it")
            .host(&db.host));
    }
    Ok(())
}

/// Whether this action promoted it.
pub(super) async fn promoted(cx: &Cx, db: &Db) -> Result<bool> {
    let (_, node) = admin(cx, db).await?;
    Ok(!node.in_recovery && node.promoted.is_some_and(|p| p.action == cx.action_id.0))
}
