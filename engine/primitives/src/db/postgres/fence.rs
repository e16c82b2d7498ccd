//! Fencing: nobody but a super-user gets in, who gets in reads only, whoever was in is out, and the log shows that nothing is written.
//!
//! In one transaction the database gets a limit of no connections (which the server holds against every role but super-users, whatever
//! they set in their sessions), `default_transaction_read_only` (which holds super-users who do not mean to write), and the mark of this
//! fence. Then every session of the database is ended as soon as it is not in the middle of a write. What a super-user could still do is
//! looked for: in the sessions, and in the write-ahead log.

use std::collections::BTreeMap;
use std::time::Duration;

use runbook_core::clock::rfc3339;
use runbook_core::primitive::Cx;
use runbook_core::units::show_duration;
use runbook_core::{Code, Error, Result, Value};
use tokio::time::Instant;

use super::client::{Conn, Dialled, For, Texts, col, connect, dial, dial_as};
use super::cluster::Cluster;
use super::data::{admin, database_ident, unless_stopped};
use super::kept;
use super::settings;
use super::sql::lit;
use super::state::{Lsn, Mark, Node, look, restore, set};
use super::turned::abandon;
use crate::db::driver::{Db, Fence};

fn fault(db: &Db, why: impl Into<String>) -> Error {
    Error::new(Code::DB_FENCE, why.into()).host(&db.host)
}

/// Puts up the fence of this action and proves it.
pub(super) async fn fence(cx: &Cx, db: &Db, within: Duration) -> Result<(Fence, Option<String>)> {
    unless_stopped(cx, db, async {
        let id = cx.action_id.to_string();
        let (mark, lsn, node, taken_over) = raise(cx, db, &id, within, None).await?;
        let position = BTreeMap::from([
            ("lsn".to_string(), Value::from(lsn.to_string())),
            ("system".to_string(), node.system.as_str().into()),
            ("timeline".to_string(), Value::Int(node.timeline.into())),
            ("database_oid".to_string(), node.oid.as_str().into()),
        ]);
        Ok((Fence { id, database: db.name.clone(), time: mark.time, position }, taken_over))
    })
    .await
}

/// Puts up a fence with this id; one that cannot be proven is taken down again. `hold_for` is the mark to stand on the other side later.
pub(super) async fn raise(
    cx: &Cx,
    db: &Db,
    id: &str,
    within: Duration,
    hold_for: Option<Mark>,
) -> Result<(Mark, Lsn, Node, Option<String>)> {
    let checked = async {
        let (conn, node) = admin(cx, db).await?;
        may_be_fenced(db, &conn, &node).await?;
        Ok((conn, node))
    };
    // The ways for the proof are opened while nothing is stopped yet; logging in on them is part of the proof.
    let ((conn, node), ways) = futures::try_join!(checked, Ways::dial(cx, db))?;
    let database = database_ident(db)?;
    let (mark, before) = match node.fence.clone() {
        Some(m) if m.id == id => (m, None),
        Some(m) => {
            if let Some(to) = &m.handed_to {
                return Err(fault(db, format!("\"{}\" has already handed over to \"{to}\"", db.name)).hint("demote that one first"));
            }
            let old = m.id.clone();
            (Mark { id: id.into(), time: rfc3339(cx.clock.now()), hold_for: hold_for.map(Box::new), ..m }, Some(old))
        }
        None => {
            let mark = Mark {
                id: id.into(),
                time: rfc3339(cx.clock.now()),
                limit: node.limit,
                read_only: node.defaults.get("default_transaction_read_only").cloned(),
                handed_to: None,
                hold_for: hold_for.map(Box::new),
            };
            (mark, None)
        }
    };
    conn.run(&format!(
        "BEGIN; ALTER DATABASE {database} CONNECTION LIMIT 0; ALTER DATABASE {database} SET default_transaction_read_only = on; {}; COMMIT",
        set(&database, "fence", &mark)?
    ))
    .await?;
    let proven = async {
        let began = Instant::now();
        end_sessions(cx, db, &conn, within).await?;
        // A server gives up who says nothing for long.
        let ways = if began.elapsed() < Duration::from_secs(5) { ways } else { Ways::dial(cx, db).await? };
        let lsn = position(&conn).await?;
        let now = prove(cx, db, &conn, &node, lsn, ways, &mark).await?;
        Ok::<_, Error>((lsn, now))
    };
    match proven.await {
        Ok((lsn, now)) => Ok((mark, lsn, now, before)),
        Err(e) => {
            // Users are not kept out for the sake of a fence that does not hold. One that stood before stands on.
            if node.fence.is_none() && e.code != Code::ABORTED {
                let _ =
                    conn.run(&format!("BEGIN; {}; ALTER DATABASE {database} RESET runbook.fence; COMMIT", restore(&database, &mark))).await;
            }
            Err(e)
        }
    }
}

/// A position that everything before it has reached the disk by, whatever `synchronous_commit` its writers had.
async fn position(conn: &Conn) -> Result<Lsn> {
    let sql = "BEGIN; SELECT pg_logical_emit_message(true, 'runbook', 'fence'); COMMIT; SELECT pg_current_wal_flush_lsn()";
    let (rows, none) = (conn.texts(sql).await?, Texts::new());
    let text = col(rows.last().unwrap_or(&none), 0).to_string();
    Lsn::parse(&text).ok_or_else(|| Error::internal(format!("{text} is no position")))
}

/// Refuses what a fence cannot hold, by name.
async fn may_be_fenced(db: &Db, conn: &Conn, node: &Node) -> Result<()> {
    if node.in_recovery {
        return Err(fault(db, format!("\"{}\" is a standby: writes come from its primary", db.name)).hint("fence the primary"));
    }
    if !node.superuser {
        return Err(fault(db, format!("the role {} is no super-user: it cannot end the sessions of others", settings::role(db)))
            .hint("log in as a super-user: sudo = true and no user, or the user postgres with its password"));
    }
    let found = conn
        .texts(
            "SELECT 'prepared', gid || ' (of ' || owner || ', since ' || prepared || ')' FROM pg_prepared_xacts WHERE database = current_database(); \
             SELECT 'subscribed', subname FROM pg_subscription WHERE subenabled AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()); \
             SELECT 'cron', to_regclass('cron.job')::text",
        )
        .await?;
    let names = |rows: &[Texts], i: usize| rows.iter().map(|r| col(r, i).to_string()).collect::<Vec<_>>().join(", ");
    let of = |kind: &str| names(&found.iter().filter(|r| col(r, 0) == kind).cloned().collect::<Vec<_>>(), 1);
    let prepared = of("prepared");
    if !prepared.is_empty() {
        return Err(fault(db, format!("transactions are prepared and may be committed at any time: {prepared}"))
            .hint("COMMIT PREPARED or ROLLBACK PREPARED each of them, with who began them"));
    }
    let subscribed = of("subscribed");
    if !subscribed.is_empty() {
        return Err(
            fault(db, format!("subscriptions write into this database: {subscribed}")).hint("ALTER SUBSCRIPTION … DISABLE each of them")
        );
    }
    if !of("cron").is_empty() {
        let jobs = names(
            &conn.texts("SELECT j.jobid || ' (' || j.username || ': ' || left(j.command, 60) || ')' FROM cron.job j JOIN pg_roles r ON r.rolname = j.username WHERE j.active AND r.rolsuper")
                .await?,
            0,
        );
        if !jobs.is_empty() {
            return Err(fault(db, format!("jobs of pg_cron run as a super-user, whom no fence holds: {jobs}"))
                .hint("SELECT cron.alter_job(ID, active := false) for each of them"));
        }
    }
    Ok(())
}

/// The sessions of the database but ours; `$1` is the moment of the fence.
const SESSIONS: &str = "SELECT a.pid, a.usename, a.application_name, coalesce(host(a.client_addr), 'local'), coalesce(r.rolsuper, true)::text, \
    (a.backend_xid IS NOT NULL)::text, (a.xact_start IS NOT NULL AND a.xact_start > {since})::text, (a.backend_start > {since})::text, a.backend_type, left(a.query, 80) \
    FROM pg_stat_activity a LEFT JOIN pg_roles r ON r.oid = a.usesysid \
    WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.backend_type IN ('client backend', 'background worker')";

struct Other {
    pid: String,
    who: String,
    superuser: bool,
    writes: bool,
    later: bool,
    new: bool,
}

fn sessions(since: &str) -> String {
    SESSIONS.replace("{since}", &format!("{}::timestamptz", lit(since)))
}

async fn others(conn: &Conn, since: &str) -> Result<Vec<Other>> {
    Ok(read_others(&conn.texts(&sessions(since)).await?))
}

fn read_others(rows: &[Texts]) -> Vec<Other> {
    rows.iter()
        .map(|r| Other {
            pid: col(r, 0).to_string(),
            who: format!(
                "{} (pid {}, {} from {}: {})",
                col(r, 1),
                col(r, 0),
                if col(r, 2).is_empty() { "a client" } else { col(r, 2) },
                col(r, 3),
                col(r, 9)
            ),
            superuser: col(r, 4) == "true",
            writes: col(r, 5) == "true",
            later: col(r, 6) == "true",
            new: col(r, 7) == "true",
        })
        .collect()
}

/// Ends every session that is not in the middle of a write; those are given `within`. A super-user who writes stops the fence.
async fn end_sessions(cx: &Cx, db: &Db, conn: &Conn, within: Duration) -> Result<()> {
    let since = conn.text("SELECT clock_timestamp()").await?.unwrap_or_default();
    let began = Instant::now();
    let mut quiet = 0;
    loop {
        let all = others(conn, &since).await?;
        let late = began.elapsed() >= within;
        let mut end = Vec::new();
        let mut left = Vec::new();
        for o in &all {
            if o.superuser && o.writes && (o.later || late) {
                return Err(super_user(db, &o.who));
            }
            if !o.writes || o.later || (late && !o.superuser) {
                // A super-user who came after the fence and reads only may stay.
                if o.superuser && o.new && !o.writes {
                    continue;
                }
                end.push(o.pid.as_str());
            }
            left.push(o);
        }
        if left.is_empty() {
            quiet += 1;
            if quiet >= 3 {
                return Ok(());
            }
        } else {
            quiet = 0;
        }
        if !end.is_empty() {
            conn.run(&format!("SELECT pg_terminate_backend(p) FROM unnest(ARRAY[{}]) p", end.join(","))).await?;
        }
        if began.elapsed() > within + Duration::from_secs(20) {
            let who = left.iter().map(|o| o.who.as_str()).collect::<Vec<_>>().join("; ");
            return Err(fault(db, format!("sessions do not end within {}: {who}", show_duration(within))).retryable(true));
        }
        cx.sleep(Duration::from_millis(8)).await?;
    }
}

fn super_user(db: &Db, who: &str) -> Error {
    fault(db, format!("a super-user still writes, whom no fence of PostgreSQL holds: {who}"))
        .hint("end that session and what starts it, or let it log in with a role that is no super-user; then fence again")
}

/// The ways by which the proof logs in: to write, and as the application.
struct Ways {
    write: Dialled,
    app: Option<(String, Dialled)>,
}

impl Ways {
    async fn dial(cx: &Cx, db: &Db) -> Result<Ways> {
        let app = async {
            let Some(user) = db.settings.str("app_user") else { return Ok(None) };
            Ok(Some((user.to_string(), dial_app(cx, db, user).await?)))
        };
        let (write, app) = futures::try_join!(dial(cx, db, For::Script), app)?;
        Ok(Ways { write, app })
    }
}

async fn dial_app(cx: &Cx, db: &Db, user: &str) -> Result<Dialled> {
    let password = db.settings.str("app_password").map(|n| cx.secret(n)).transpose()?;
    dial_as(cx, db, For::Script, user, password.as_ref().map(|p| p.reveal()), None).await
}

/// Whether an end of a connection was no answer of the server, such as of one that waited too long for the login.
fn unanswered(e: &Error) -> bool {
    e.code == Code::DB_CONNECT && !e.details.contains_key("sqlstate")
}

/// Tries to write, looks whether anybody has, and sees by a new session that the fence stands: what it sees is the result, and it is the
/// connection that is kept from here on.
async fn prove(cx: &Cx, db: &Db, conn: &Conn, node: &Node, from: Lsn, ways: Ways, mark: &Mark) -> Result<Node> {
    let not = |why: String| Error::new(Code::DB_NOT_FENCED, why).host(&db.host);
    let (tried, app) = futures::join!(try_write(cx, db, ways.write), try_login(cx, db, ways.app));
    let (tried, new) = tried?;
    if !tried {
        return Err(not(format!("a write on \"{}\" was not refused", db.name))
            .hint("a role may have default_transaction_read_only = off for this database (ALTER ROLE … IN DATABASE …): reset it"));
    }
    if let Some(who) = app? {
        return Err(not(format!("{who} still gets into \"{}\"", db.name)).hint("is it a super-user? An application should be none"));
    }
    let ((), now) = futures::try_join!(nothing_written(cx, db, conn, node, from), look(&new))?;
    if (&now.system, now.timeline, &now.oid, now.in_recovery) != (&node.system, node.timeline, &node.oid, false) {
        return Err(not(format!("new sessions of \"{}\" come to another server than the one that was fenced", db.name))
            .hint("something changed where its address leads: look at it, then fence again"));
    }
    if !stands(&now) || now.fence.as_ref() != Some(mark) {
        return Err(not(format!("somebody has opened \"{}\" while it was fenced (its connection limit is {})", db.name, now.limit))
            .hint("find who changes the database's settings, then fence it again"));
    }
    kept::forget(cx, db)?;
    new.keep(cx, db).await?;
    Ok(now)
}

/// Whether the database is closed.
fn stands(node: &Node) -> bool {
    node.limit == 0 && node.defaults.get("default_transaction_read_only").map(String::as_str) == Some("on")
}

/// Whether a write by a new session of ours is refused; and that session.
async fn try_write(cx: &Cx, db: &Db, way: Dialled) -> Result<(bool, Conn)> {
    let conn = match way.login(cx, db).await {
        Err(e) if unanswered(&e) => connect(cx, db, For::Script).await?,
        conn => conn?,
    };
    match conn.attempt("CREATE TABLE public._runbook_probe (x int)").await {
        Err(e) if e.code().is_some_and(|c| c.code() == "25006") => Ok((true, conn)),
        Err(e) => Err(conn.failed(&e)),
        Ok(()) => {
            conn.run("DROP TABLE public._runbook_probe").await?;
            Ok((false, conn))
        }
    }
}

/// Whether the application's own login is let in, where the inventory has it: its name when it is.
async fn try_login(cx: &Cx, db: &Db, way: Option<(String, Dialled)>) -> Result<Option<String>> {
    let Some((user, way)) = way else { return Ok(None) };
    let made = match way.login(cx, db).await {
        Err(e) if unanswered(&e) => dial_app(cx, db, &user).await?.login(cx, db).await,
        made => made,
    };
    match made {
        Ok(_) => Ok(Some(user)),
        // No more connections: the fence. Anything else is no proof.
        Err(e) if e.details.get("sqlstate").is_some_and(|s| s == "53300") => Ok(None),
        Err(e) => Err(e),
    }
}

/// What a server says at one moment of its sessions and its log.
struct Seen {
    others: Vec<Other>,
    flushed: Lsn,
    data: String,
}

async fn see(conn: &Conn) -> Result<Seen> {
    let rows = conn.texts(&format!("{}; SELECT pg_current_wal_flush_lsn(), current_setting('data_directory')", sessions("epoch"))).await?;
    let none = Texts::new();
    let (at, others) = rows.split_last().unwrap_or((&none, &[]));
    let flushed = Lsn::parse(col(at, 0)).ok_or_else(|| Error::internal("a server that takes writes knows the end of its log"))?;
    Ok(Seen { others: read_others(others), flushed, data: col(at, 1).to_string() })
}

/// Fails when the log has writes to this database after `from`, with their tables and whoever may have made them.
async fn nothing_written(cx: &Cx, db: &Db, conn: &Conn, node: &Node, from: Lsn) -> Result<()> {
    let seen = see(conn).await?;
    none_seen(cx, db, conn, node, from, &seen).await
}

/// As [`nothing_written`], up to what was seen.
async fn none_seen(cx: &Cx, db: &Db, conn: &Conn, node: &Node, from: Lsn, seen: &Seen) -> Result<()> {
    let (now, to) = (&seen.others, seen.flushed);
    if let Some(o) = now.iter().find(|o| o.writes) {
        return Err(super_user(db, &o.who));
    }
    let cluster = Cluster::of(cx, db).await?;
    let found = match cluster.written(&format!("{}/pg_wal", seen.data), &node.oid, node.timeline, (from, to), None).await {
        Ok(Some(found)) => found,
        Ok(None) => {
            cx.message(format!(
                "the write-ahead log of \"{}\" cannot be read on its host (pg_waldump, as {}): that no super-user has written rests on the sessions alone",
                db.name,
                settings::os_user(db)
            ));
            return Ok(());
        }
        Err(e) if e.code == Code::SSH_LOST || e.code == Code::ABORTED => return Err(e),
        Err(e) => {
            cx.message(format!("the write-ahead log of \"{}\" cannot be read on its host: {}", db.name, e.message));
            return Ok(());
        }
    };
    if found.is_empty() {
        return Ok(());
    }
    // What the server itself keeps up to date is no write.
    let own = conn
        .texts(
            "SELECT pg_relation_filenode(c.oid) FROM pg_class c WHERE c.oid IN ('pg_catalog.pg_statistic'::regclass, 'pg_catalog.pg_statistic_ext_data'::regclass) \
             OR c.oid IN (SELECT reltoastrelid FROM pg_class WHERE oid IN ('pg_catalog.pg_statistic'::regclass, 'pg_catalog.pg_statistic_ext_data'::regclass))",
        )
        .await?;
    let foreign: Vec<&String> = found.keys().filter(|f| !own.iter().any(|r| col(r, 0) == *f)).collect();
    if foreign.is_empty() {
        return Ok(());
    }
    let numbers = foreign.iter().map(|f| format!("({f})")).collect::<Vec<_>>().join(",");
    let tables = conn
        .texts(&format!("SELECT coalesce(pg_filenode_relation(0, f)::regclass::text, 'file ' || f) FROM (VALUES {numbers}) v(f)"))
        .await?;
    let tables = tables.iter().map(|r| col(r, 0)).collect::<Vec<_>>().join(", ");
    let who = now.iter().filter(|o| o.superuser).map(|o| o.who.as_str()).collect::<Vec<_>>();
    let who = if who.is_empty() { "a session that is gone already".to_string() } else { format!("perhaps {}", who.join("; ")) };
    Err(Error::new(Code::DB_NOT_FENCED, format!("\"{}\" was written to under its fence, by a super-user: {tables}, {who}", db.name))
        .host(&db.host)
        .hint("find what writes as a super-user and end it; then take the fence down and put it up again"))
}

/// Whether the fence of this action stands.
pub(super) async fn fenced(cx: &Cx, db: &Db) -> Result<bool> {
    let (_, node) = admin(cx, db).await?;
    Ok(!node.in_recovery && node.fence.is_some_and(|f| f.id == cx.action_id.0))
}

/// Lets writes through again.
pub(super) async fn unfence(cx: &Cx, db: &Db, force: bool) -> Result<bool> {
    let (conn, node) = admin(cx, db).await?;
    let Some(mark) = node.fence.filter(|_| !node.in_recovery) else { return Ok(false) };
    if let Some(to) = mark.handed_to.as_ref().filter(|_| !force) {
        return Err(Error::new(Code::DB_NOT_FENCED, format!("\"{}\" has handed over to \"{to}\": both would take writes", db.name))
            .hint(format!("take that back first, with demote on \"{to}\"; unfence(#{{ force: true }}) abandons the rows that it took"))
            .host(&db.host));
    }
    if let Some(replica) = &node.replica {
        Box::pin(abandon(cx, db, &conn, replica)).await?;
    }
    let database = database_ident(db)?;
    conn.run(&format!(
        "BEGIN; {}; ALTER DATABASE {database} RESET runbook.fence; ALTER DATABASE {database} RESET runbook.promoted; COMMIT",
        restore(&database, &mark)
    ))
    .await?;
    if mark.handed_to.is_some() {
        // What promote had set for a way back that is given up.
        conn.run("ALTER SYSTEM RESET wal_keep_size").await?;
        conn.run("SELECT pg_reload_conf()").await?;
    }
    Ok(true)
}

/// Confirms on the server that this very fence stands, holds, and has seen no write.
pub(super) async fn confirm(cx: &Cx, db: &Db, conn: &Conn, node: &Node, fence: &Fence) -> Result<Mark> {
    let refuse = |why: String, hint: &str| Error::new(Code::DB_NOT_FENCED, why).hint(hint).host(&db.host);
    let again = "fence it again, wait until the copy has everything, then promote";
    let name = &db.name;
    let at = |key: &str| fence.position.get(key).and_then(Value::as_str).unwrap_or("");
    if node.in_recovery {
        return Err(refuse(format!("\"{name}\" is a standby now, not the primary that was fenced"), "look at what happened to it"));
    }
    if at("system") != node.system {
        return Err(refuse(format!("\"{name}\" is another cluster now than the one that was fenced"), again));
    }
    let Some(mark) = node.fence.clone().filter(|m| m.id == fence.id) else {
        let now = node.fence.as_ref().map_or("there is no fence now".to_string(), |m| format!("another stands now, {}", m.id));
        return Err(refuse(format!("the fence {} on \"{name}\" no longer stands: {now}", fence.id), again));
    };
    if fence.position.get("timeline").and_then(Value::as_int) != Some(i64::from(node.timeline)) {
        return Err(refuse(format!("\"{name}\" has been a standby since it was fenced, and was promoted again"), again));
    }
    if !stands(node) {
        return Err(refuse(format!("somebody has opened \"{name}\" under its fence (its connection limit is {})", node.limit), again));
    }
    let seen = see(conn).await?;
    let inside: Vec<&str> = seen.others.iter().filter(|o| !o.superuser).map(|o| o.who.as_str()).collect();
    if !inside.is_empty() {
        return Err(refuse(format!("there are sessions in \"{name}\" under its fence: {}", inside.join("; ")), again));
    }
    let from = Lsn::parse(at("lsn")).ok_or_else(|| refuse("this fence has no position".into(), again))?;
    none_seen(cx, db, conn, node, from, &seen).await?;
    Ok(mark)
}
