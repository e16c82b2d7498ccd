//! Replication turned round: after the switch to a logical replica the side that handed over follows the one that took over, so that
//! there is a way back without a copy.
//!
//! Both sides are equal while nobody takes writes. `promote` makes publication and slot of the new side at that moment, so that the slot
//! begins with the very first write; then the old side, behind its fence, gets a subscription to that slot, without a copy. `demote`
//! is a switch in the other direction.

use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::time::Instant;

use super::carried::{digest, grant_all};
use super::chunks;
use super::client::{Conn, col};
use super::cluster::Cluster;
use super::data::{admin, database_ident};
use super::fence::raise;
use super::kept;
use super::logical::{TAKES_OVER, dropped, end_left, unsubscribe};
use super::login::{conninfo_of, ensure_role, put_password, remove_password, try_login};
use super::settings::{self, replication};
use super::slots::{drop_published, slot};
use super::sql::{ident, lit};
use super::standby::{LOGICAL_ONE, primary_settings, ready};
use super::state::{Lsn, Mark, Node, Replica, look, set};
use super::subscribed::{caught_up, changed, refresh, sequences, set_sequences, were_set};
use super::switch::handed;
use crate::db::driver::{Caught, Db, Switched};

/// How long the slot may take to be made: it waits for every transaction of its cluster that has begun before.
const SLOT: Duration = Duration::from_secs(10);
/// How the old side begins to follow.
const BEGINS: &str = "BEGIN; CREATE SUBSCRIPTION";
/// How long the old side may take to get everything.
const PATIENCE: Duration = Duration::from_secs(600);

/// Whether `primary` will be able to follow `db`, a database of the server behind `s`: found out before anything depends on it.
///
/// # Errors
/// `RB0511` with what is missing on the server of `db`; those of a login from the host of `primary`.
pub(super) async fn may_turn(cx: &Cx, db: &Db, primary: &Db, s: &Conn, node: &Node) -> Result<()> {
    ready(db, node, &primary_settings(s).await?, &LOGICAL_ONE)?;
    let r = replication(cx, db)?;
    ensure_role(cx, s, &r).await.map_err(|e| e.host(&db.host))?;
    // For tables that are made after the switch and taken up then.
    if let Some(grant) = grant_all(node, &r) {
        s.run(&grant).await?;
    }
    let cluster = Cluster::of(cx, primary).await?;
    put_password(cx, &cluster, &r).await?;
    match try_login(cx, &cluster, primary, db, &r, node, Some(settings::database(db)?)).await {
        // It is let in, and then finds the database closed, or not made yet.
        Err(e)
            if e.details.get("text").is_some_and(|t| t.contains("too many connections for database") || t.contains("does not exist")) =>
        {
            Ok(())
        }
        done => done,
    }
}

/// Makes publication and slot on `db`, which nobody writes to, for `source` to follow it from here on.
///
/// # Errors
/// `RB0505`, retryable, when other transactions of the cluster keep the slot from being made; the server's.
pub(super) async fn prepare(cx: &Cx, db: &Db, conn: &Conn, source: &Db) -> Result<()> {
    // What is there is of a switch that did not come about.
    let name = slot(source);
    drop_published(cx, conn, &name).await?;
    conn.run(&format!("CREATE PUBLICATION {} FOR ALL TABLES", ident(&name))).await?;
    let made = conn
        .run(&format!(
            "BEGIN; SET LOCAL statement_timeout = {}; SELECT pg_create_logical_replication_slot({}, 'pgoutput'); COMMIT",
            SLOT.as_millis(),
            lit(&name)
        ))
        .await;
    let Err(e) = made else { return Ok(()) };
    conn.run("ROLLBACK").await?;
    if e.details.get("sqlstate").is_none_or(|s| s != "57014") {
        return Err(e);
    }
    let waits = "SELECT 'pid ' || pid || ' of ' || coalesce(datname, backend_type) || ' since ' || xact_start FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start";
    let who = conn.texts(waits).await?.iter().map(|r| col(r, 0).to_string()).collect::<Vec<_>>().join("; ");
    Err(Error::new(Code::DB_COPY, format!("the slot for the way back from \"{}\" waits for transactions of its cluster: {who}", db.name))
        .hint("end them, then promote again; nothing was handed over")
        .retryable(true)
        .host(&db.host))
}

/// Lets `old`, which has handed over to `new`, follow it; nothing is done when it does.
///
/// # Errors
/// `RB0509` without the slot that [`prepare`] made.
pub(super) async fn follow(cx: &Cx, old: &Db, new: &Db) -> Result<Replica> {
    let ((o, _), (n, node)) = futures::try_join!(admin(cx, old), admin(cx, new))?;
    // What a controller that died has left at work.
    end_left(cx, &o, BEGINS).await?;
    if let Some(m) = look(&o).await?.replica.filter(|m| m.system == node.system && m.oid == node.oid) {
        return Ok(m);
    }
    let (name, quoted) = (slot(old), ident(&slot(old)));
    if n.text(&format!("SELECT slot_name FROM pg_replication_slots WHERE slot_name = {}", lit(&name))).await?.is_none() {
        return Err(Error::new(
            Code::DB_REPLICATION,
            format!("the slot {name} on \"{}\" is gone, and with it the way back to \"{}\"", new.name, old.name),
        )
        .hint("go forward; or make the old side a replica with replicate_from(…, #{ mode: \"logical\", replace: true }), and switch to it")
        .host(&new.host));
    }
    let cluster = Cluster::of(cx, old).await?;
    let r = replication(cx, new)?;
    put_password(cx, &cluster, &r).await?;
    let info = conninfo_of(new, &r, &cluster.data()?, &name)?;
    let (objects, _) = Box::pin(chunks::schema(cx, new)).await?;
    let mark = Replica {
        primary: new.name.clone(),
        system: node.system,
        oid: node.oid,
        slot: name.clone(),
        schema: digest(&objects),
        loaded: true,
        way_back: false,
    };
    o.run(&format!(
        "{BEGINS} {quoted} CONNECTION {} PUBLICATION {quoted} WITH (slot_name = {}, create_slot = false, copy_data = false); {}; COMMIT",
        lit(&info),
        lit(&name),
        set(&database_ident(old)?, "replica", &mark)?
    ))
    .await?;
    Ok(mark)
}

/// Lets the old side follow once the new one takes the writes: what goes wrong with it is no condition of the switch.
pub(super) async fn follow_soon(cx: &Cx, old: &Db, new: &Db) {
    if let Err(e) = Box::pin(follow(cx, old, new)).await {
        cx.message(format!(
            "\"{}\" does not follow \"{}\" yet, which keeps its log for that ({e}); demote tries it again, stop_replication on \"{}\" gives the way back up",
            old.name, new.name, old.name
        ));
    }
}

/// 1. `other` has nearly everything, and the same definitions. Only then is anybody kept out.
/// 2. `db` is fenced, with the other side's fence in its mark. From here to the end nobody takes writes.
/// 3. `other` has everything up to that fence.
/// 4. In one transaction its subscription ends, every sequence gets the value of `db`, and its fence is as it was before it handed over.
/// 5. `db` notes that it has handed over; slot and publication go.
///
/// Cut anywhere, it is done again from its beginning: the marks of both sides say whether part 4 was done.
pub(super) async fn demote(cx: &Cx, db: &Db, node: &Node, other: &Db, o: &Conn, within: Duration) -> Result<Switched> {
    // What a controller that died has left at work: part 4 is done, or not.
    end_left(cx, o, TAKES_OVER).await?;
    let o_node = look(o).await?;
    let hold = node.fence.as_ref().and_then(|m| m.hold_for.as_deref());
    let own = o_node.fence.as_ref();
    let taken = hold.zip(own).is_some_and(|(h, m)| h.id == m.id && m.handed_to.is_none()) && o_node.replica.is_none();
    if !taken {
        let Some(own) = handed(&o_node, db) else {
            return Err(Error::new(
                Code::DB_DIFFERS,
                format!("\"{}\" and \"{}\" both take writes: the second is not fenced any more", db.name, other.name),
            )
            .hint("compare them and bring the rows together by hand; nothing was changed")
            .host(&db.host));
        };
        Box::pin(take_back(cx, (db, node), (other, o), own, within)).await?;
    }
    let (conn, node) = admin(cx, db).await?;
    let mark = node.fence.ok_or_else(|| Error::internal("the fence of the way back is gone").host(&db.host))?;
    let (mark, database) = (Mark { handed_to: Some(other.name.clone()), hold_for: None, ..mark }, database_ident(db)?);
    conn.run(&format!("BEGIN; {}; ALTER DATABASE {database} RESET runbook.promoted; COMMIT", set(&database, "fence", &mark)?)).await?;
    let_go(cx, &conn, other).await?;
    Ok(Switched {
        changed: true,
        note: format!("\"{}\" is the primary again and has every row; \"{}\" follows it no longer", other.name, db.name),
    })
}

/// Ends what is left of it on both sides.
pub(super) async fn let_go(cx: &Cx, conn: &Conn, other: &Db) -> Result<()> {
    drop_published(cx, conn, &slot(other)).await?;
    remove_password(cx, other).await
}

/// Whether that way back has been gone to its end.
pub(super) fn given_back(node: &Node, other: &Db, o_node: &Node) -> bool {
    node.system != o_node.system
        && handed(node, other).is_some_and(|mark| o_node.promoted.as_ref().is_none_or(|promoted| promoted.fence != mark.id))
}

/// Parts 1 to 4.
async fn take_back(cx: &Cx, (db, node): (&Db, &Node), (other, o): (&Db, &Conn), own: &Mark, within: Duration) -> Result<()> {
    let mark = follow(cx, other, db).await?;
    everything(cx, other, o, &mark, db, node.lsn).await?;
    same(cx, other, db, (o, &admin(cx, db).await?.0), &mark).await?;
    let held = node.fence.as_ref().filter(|m| m.hold_for.is_some());
    let id = held.map_or_else(|| format!("{}-hold", cx.action_id), |m| m.id.clone());
    let own = Mark { handed_to: None, ..own.clone() };
    let (_, until, _, _) = raise(cx, db, &id, within, Some(own.clone())).await?;
    let (conn, _) = admin(cx, db).await?;
    everything(cx, other, o, &mark, db, until).await?;
    same(cx, other, db, (o, &conn), &mark).await?;
    refresh(o, &conn).await?;
    let values = sequences(&conn).await?;
    let database = database_ident(other)?;
    o.run(&format!(
        "BEGIN; {}; {}ALTER DATABASE {database} RESET runbook.replica; ALTER DATABASE {database} RESET runbook.promoted; {}; COMMIT",
        dropped(&ident(&mark.slot)),
        set_sequences(&values),
        set(&database, "fence", &own)?
    ))
    .await?;
    kept::forget(cx, other)?;
    were_set(other, o, &values).await
}

/// Waits until the old side has everything up to there.
async fn everything(cx: &Cx, old: &Db, o: &Conn, mark: &Replica, new: &Db, until: Lsn) -> Result<()> {
    let began = Instant::now();
    loop {
        match Box::pin(caught_up(cx, old, o, mark, new, until)).await? {
            Caught::Up => return Ok(()),
            Caught::Behind { missing, .. } if began.elapsed() > PATIENCE => {
                return Err(Error::new(Code::DB_BEHIND, format!("\"{}\" still lacks {missing}", old.name)).retryable(true).host(&old.host));
            }
            Caught::Behind { missing, .. } => cx.message(format!("\"{}\" lacks {missing}", old.name)),
        }
        cx.sleep(Duration::from_millis(300)).await?;
    }
}

/// Refuses when definitions have changed that replication does not carry.
async fn same(cx: &Cx, old: &Db, new: &Db, conns: (&Conn, &Conn), mark: &Replica) -> Result<()> {
    let since = Box::pin(changed(cx, old, new, conns, mark)).await?;
    if since.is_empty() {
        return Ok(());
    }
    let what = format!(
        "definitions have changed on \"{}\" since the switch, and logical replication carries none: {}",
        new.name,
        since.join(", ")
    );
    Err(Error::new(Code::DB_DIFFERS, what)
        .hint(format!("make the same changes on \"{}\" (as a super-user, after SET default_transaction_read_only = off; ALTER SUBSCRIPTION {} REFRESH PUBLICATION takes up new tables), or take them back; then demote again", old.name, mark.slot))
        .host(&old.host))
}

/// Gives the way back up on the side to which `db` has handed over, where `db` does not follow it yet; whether there was one.
pub(super) async fn give_up(cx: &Cx, db: &Db, to: &str) -> Result<bool> {
    let (n, node) = admin(cx, &Db::find(cx, to)?).await?;
    let name = lit(&slot(db));
    let there = format!(
        "SELECT slot_name FROM pg_replication_slots WHERE slot_name = {name} UNION ALL SELECT pubname FROM pg_publication WHERE pubname = {name}"
    );
    if !node.promoted.is_some_and(|p| p.way_back) || n.texts(&there).await?.is_empty() {
        return Ok(false);
    }
    let_go(cx, &n, db).await?;
    Ok(true)
}

/// Ends it on the old side, which is opened by force: that of the new side is no condition.
pub(super) async fn abandon(cx: &Cx, db: &Db, conn: &Conn, mark: &Replica) -> Result<()> {
    unsubscribe(conn).await?;
    let there = async {
        let (n, _) = admin(cx, &Db::find(cx, &mark.primary)?).await?;
        drop_published(cx, &n, &mark.slot).await
    };
    if let Err(e) = there.await {
        cx.message(format!(
            "the slot {0} stays on \"{1}\", which keeps its log as long: {2}; SELECT pg_drop_replication_slot('{0}') there",
            mark.slot, mark.primary, e.message
        ));
    }
    remove_password(cx, db).await?;
    conn.run(&format!("ALTER DATABASE {} RESET runbook.replica", database_ident(db)?)).await
}
