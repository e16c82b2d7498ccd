//! The fence: a server that takes no writes, provably.
//!
//! 1. On record: which fence begins, and what it will have to put back. A snippet keeps the server read-only over a restart.
//! 2. Events off. Accounts that may write to a read-only server (READ_ONLY ADMIN; SUPER before MariaDB 10.5) lose that, except the one
//!    that the fence itself works as.
//! 3. `read_only` (MySQL: `super_read_only`). From here on nothing commits: transactions under way are refused at their commit.
//! 4. Sessions that are in mid-transaction, and all that were exempt, end. A super-user session that goes on writing is named, and the
//!    fence comes down again.
//! 5. The binary log stands still: its end is the fence's position.
//! 6. An ordinary account, made for this, tries to write and must be refused; the application's own account as well, when it is given.

use std::time::Duration;

use runbook_core::clock::rfc3339;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result, Value};
use tokio::time::Instant;

use super::connect::{Server, Sess, get, server, session};
use super::probe::{PROBER, Probe, leak, prove};
use super::sql::text;
use super::state::{self, FenceMark, Position, aside};
use super::{host, sessions};
use crate::db::driver::{Db, Fence};

/// How long the log must stand still.
const STILL: Duration = Duration::from_millis(40);

/// How long it must when somebody else works as the fence's own account, who stays exempt and may come back.
const STILL_BESIDE: Duration = Duration::from_millis(500);

/// How long a log that moves in spite of everything is watched before its writers are named.
const WATCHED: Duration = Duration::from_secs(3);

/// The position as scripts hold it.
pub fn record(p: &Position, events: bool) -> std::collections::BTreeMap<String, Value> {
    std::collections::BTreeMap::from([
        ("gtid".to_string(), Value::from(p.gtid.as_str())),
        ("file".to_string(), p.file.as_str().into()),
        ("pos".to_string(), Value::Int(i64::try_from(p.pos).unwrap_or(i64::MAX))),
        ("events".to_string(), events.into()),
    ])
}

/// Reads the position back.
pub fn position(fence: &Fence) -> Position {
    let text = |k: &str| fence.position.get(k).and_then(Value::as_str).unwrap_or("").to_string();
    Position { gtid: text("gtid"), file: text("file"), pos: fence.position.get("pos").and_then(Value::as_int).unwrap_or(0).unsigned_abs() }
}

/// Why a fence is not put up.
pub fn cannot(db: &Db, why: impl std::fmt::Display) -> Error {
    Error::new(Code::DB_FENCE, format!("database \"{}\" cannot be fenced: {why}", db.name)).host(&db.host)
}

/// Puts the fence up, or completes the one that this action has begun; with it the id of a fence that was taken over.
pub async fn fence(cx: &Cx, db: &Db, within: Duration) -> Result<(Fence, Option<String>)> {
    let at = server(cx, db).await?;
    let mut s = session(cx, db).await?;
    let id = cx.action_id.to_string();
    let before = state::read(&mut s).await?;
    if !s.is_on("log_bin").await? {
        return Err(Error::new(
            Code::DB_SETTINGS,
            format!("the server of \"{}\" writes no binary log (log_bin is OFF): nothing tells what a replica must have", db.name),
        )
        .host(&db.host)
        .hint("set log_bin and server_id in its configuration and restart it"));
    }
    if let Some(to) = before.fence.as_ref().and_then(|f| f.handed_to.as_ref()) {
        return Err(cannot(db, format!("it has handed over to \"{to}\"")).hint("demote that one first"));
    }
    let upstream = super::status::read(&mut s, &at.flavour).await?;
    if let Some(r) = upstream.iter().find(|r| r.running()) {
        return Err(cannot(db, format!("it is itself a replica of {} and takes that one's writes", r.source()))
            .hint("fence the server that the writes come from; of a master-master pair, unpair them first"));
    }
    let taken_over = before.fence.as_ref().filter(|f| f.id != id).map(|f| f.id.clone());
    let mut mark = before.fence.clone().unwrap_or_default();
    if mark.id != id {
        mark.time = rfc3339(cx.clock.now());
    }
    (mark.id, mark.up) = (id.clone(), false);
    if before.fence.is_none() {
        mark.events = s.is_on("event_scheduler").await?;
        mark.was_read_only = s.is_on("read_only").await?;
    }
    let put_up = raise(cx, &at, &mut s, &mut mark, within).await;
    if let Err(e) = put_up {
        // Users must not stand before a fence that nobody holds. What cannot be taken back now is taken back by unfence.
        if taken_over.is_none() {
            let fresh = Cx { cancel: runbook_core::cancel::Cancel::default(), ..cx.clone() };
            let _ = tokio::time::timeout(Duration::from_secs(20), lift(&fresh, &at, &mark)).await;
        }
        return Err(e);
    }
    s.close().await;
    let fence = Fence { id, database: db.name.clone(), time: mark.time.clone(), position: record(&mark.position, mark.events) };
    Ok((fence, taken_over))
}

async fn raise(cx: &Cx, at: &Server, s: &mut Sess, mark: &mut FenceMark, within: Duration) -> Result<()> {
    let db = &at.db;
    let prepared = s.rows("XA RECOVER").await?;
    if let Some(x) = prepared.first() {
        return Err(cannot(db, format!("a distributed transaction is prepared and may be committed at any time: {}", get(x, "data")))
            .hint("end it with XA COMMIT or XA ROLLBACK"));
    }
    // Whoever is exempt now, and whoever this fence has already reduced.
    let me = s.text("SELECT CURRENT_USER()").await?.unwrap_or_default();
    let me = me.split_once('@').map_or(me.clone(), |(u, h)| format!("'{u}'@'{h}'"));
    let mut exempt = if at.flavour.super_read_only() { vec![] } else { exempt(s, at).await? };
    let mut users = sessions::users(exempt.iter().map(|(g, _)| g.as_str()));
    exempt.retain(|(g, _)| *g != me);
    for e in exempt {
        if !mark.revoked.contains(&e) {
            mark.revoked.push(e);
        }
    }
    users.extend(sessions::users(mark.revoked.iter().map(|(g, _)| g.as_str())));
    state::write(s, mark).await?;
    host::hold(cx, db, &format!("fence {} on \"{}\" since {}", mark.id, db.name, mark.time)).await?;
    let probe = Probe::make(s, at).await?;
    if mark.events {
        s.run("SET GLOBAL event_scheduler = OFF").await?;
    }
    for (grantee, privilege) in &mark.revoked {
        aside(s, &[format!("REVOKE {privilege} ON *.* FROM {grantee}")]).await?;
    }
    read_only(cx, at, s, within).await?;
    let shut = Instant::now();
    quiet(cx, at, s, &users, &me, within.saturating_sub(shut.elapsed())).await?;
    mark.position = state::position(s, &at.flavour).await?;
    prove(cx, at, &probe).await?;
    probe.remove(s).await?;
    mark.up = true;
    state::write(s, mark).await
}

/// Who may write to a read-only server, and by which privilege.
async fn exempt(s: &mut Sess, at: &Server) -> Result<Vec<(String, String)>> {
    let list = at.flavour.exempting().iter().map(|p| text(p)).collect::<Vec<_>>().join(", ");
    let rows = s
        .rows(format!("SELECT grantee AS g, privilege_type AS p FROM information_schema.user_privileges WHERE privilege_type IN ({list})"))
        .await?;
    // Roles stand there as 'name'@''; they are granted to by their name alone.
    let bare = |g: &str| g.strip_suffix("@''").unwrap_or(g).to_string();
    Ok(rows.iter().map(|r| (bare(get(r, "g")), get(r, "p").to_string())).collect())
}

/// Makes the server refuse writes; statements under way are waited for, and ended when they take too long.
async fn read_only(cx: &Cx, at: &Server, s: &mut Sess, within: Duration) -> Result<()> {
    let set = if !at.flavour.super_read_only() {
        "SET GLOBAL read_only = 1"
    } else if at.flavour.version >= (8, 0, 0) {
        // Kept over restarts by the server itself; super_read_only implies read_only.
        "SET PERSIST super_read_only = ON"
    } else {
        "SET GLOBAL super_read_only = ON"
    };
    for (round, patience) in [within.as_secs().max(1), 5, 5].into_iter().enumerate() {
        s.run(format!("SET SESSION lock_wait_timeout = {patience}")).await?;
        match s.run(set).await {
            Ok(_) => return Ok(()),
            Err(e) if e.details.get("code").is_some_and(|c| c == "1205") && round < 2 => {
                let here: Vec<_> = sessions::list(s, at).await?;
                let busy: Vec<_> = here.iter().filter(|p| p.writing()).collect();
                // Nothing writes and still something holds it: LOCK TABLES, which does not show.
                let ended = if busy.is_empty() { here.iter().collect() } else { busy };
                for p in &ended {
                    cx.message(format!("\"{}\": ended after {patience} s, since the fence waited for it: {}", at.db.name, p.show()));
                }
                sessions::end(s, ended).await?;
            }
            Err(e) => {
                return Err(cannot(&at.db, e.message).retryable(e.retryable).hint("find what holds its tables locked, then resume"));
            }
        }
    }
    Ok(())
}

/// Ends what could still write, and waits until the log stands still. A super-user session that goes on is named.
async fn quiet(cx: &Cx, at: &Server, s: &mut Sess, exempt: &std::collections::BTreeSet<String>, me: &str, within: Duration) -> Result<()> {
    let begun = Instant::now();
    let own = sessions::users([me]);
    let mut last = state::position(s, &at.flavour).await?;
    let mut seen: std::collections::BTreeMap<u32, sessions::Session> = std::collections::BTreeMap::new();
    let mut first = true;
    loop {
        let here = sessions::list(s, at).await?;
        // Ordinary sessions cannot commit any more; those that have written are told so by their end.
        let ordinary = here.iter().filter(|p| !exempt.contains(&p.user) && p.changed > 0);
        // Of the exempt, those that do not write at this moment, or whose account is not exempt any more, end at once.
        let idle = here.iter().filter(|p| exempt.contains(&p.user) && (!own.contains(&p.user) || (!p.writing() && first)));
        let ending: Vec<_> = ordinary.chain(idle).cloned().collect();
        let busy: Vec<_> = here.into_iter().filter(|p| own.contains(&p.user) && p.writing()).collect();
        for p in ending.iter().chain(&busy) {
            seen.insert(p.id, p.clone());
        }
        sessions::end(s, &ending).await?;
        first = false;
        let beside = seen.values().any(|p| own.contains(&p.user));
        cx.sleep(if beside { STILL_BESIDE } else { STILL }).await?;
        let now = state::position(s, &at.flavour).await?;
        if now == last && busy.is_empty() {
            return Ok(());
        }
        let moving = now != last;
        last = now;
        if begun.elapsed() < if busy.is_empty() { within.min(WATCHED) } else { within } {
            // InnoDB shows open transactions as they were when they were asked for less than 100 ms ago.
            cx.sleep(Duration::from_millis(110)).await?;
            continue;
        }
        // What is there now tells more than what was there before.
        let mut names: Vec<String> = busy.iter().map(sessions::Session::show).collect();
        if names.is_empty() {
            names = sessions::list(s, at).await?.iter().filter(|p| own.contains(&p.user)).map(sessions::Session::show).collect();
        }
        if names.is_empty() {
            names = seen.values().filter(|p| own.contains(&p.user)).map(sessions::Session::show).collect();
        }
        let who = if names.is_empty() { "a session that comes and goes".to_string() } else { names.join("; ") };
        let what = if moving { "a super-user still writes to it" } else { "a super-user's transaction is open" };
        return Err(cannot(&at.db, format!("{what}: {who}")).hint(format!(
            "stop that program, or give it an account without the privilege to write to a read-only server; runbook itself works as {me}"
        )));
    }
}

/// Whether the fence `id` stands, refuses writes now, and has seen none: its position, and to whom it has handed over.
pub async fn check(cx: &Cx, db: &Db, fence: &Fence) -> Result<FenceMark> {
    let at = server(cx, db).await?;
    let mut s = session(cx, db).await?;
    let refuse = |why: String, hint: &str| Error::new(Code::DB_NOT_FENCED, why).hint(hint).host(&db.host);
    let name = &db.name;
    let mark = match state::read(&mut s).await?.fence {
        Some(m) if m.id == fence.id && m.up => m,
        Some(m) if m.id == fence.id => {
            return Err(refuse(format!("the fence {} on \"{name}\" is half put up", fence.id), "fence it again"));
        }
        other => {
            let now = other.map_or("there is no fence now".to_string(), |o| format!("another stands now, {}", o.id));
            return Err(refuse(format!("the fence {} on \"{name}\" no longer stands: {now}", fence.id), "fence it again, then promote"));
        }
    };
    if !s.is_on("read_only").await? {
        return Err(leak(db, "read_only was turned off".into()));
    }
    let now = state::position(&mut s, &at.flavour).await?;
    let then = position(fence);
    if now.gtid != then.gtid || (now.file.clone(), now.pos) != (then.file.clone(), then.pos) && !rotated(&now, &then) {
        return Err(refuse(
            format!("\"{name}\" was written to under its fence: its log was at {} and is at {}", show(&then), show(&now)),
            "somebody went around the fence: take it down, put it up again, wait for the replica",
        ));
    }
    let probe = Probe::make(&mut s, &at).await?;
    let proven = prove(cx, &at, &probe).await;
    probe.remove(&mut s).await?;
    s.close().await;
    proven.map(|()| mark)
}

/// A restart begins a new file of the log, and writes nothing of the application's into it: with GTIDs equal, that is no write.
fn rotated(now: &Position, then: &Position) -> bool {
    !then.gtid.is_empty() && now.gtid == then.gtid
}

/// For people.
pub fn show(p: &Position) -> String {
    if p.gtid.is_empty() { format!("{}:{}", p.file, p.pos) } else { format!("{} ({}:{})", p.gtid, p.file, p.pos) }
}

/// Lets writes through again; false when there was nothing to lift.
pub async fn unfence(cx: &Cx, db: &Db, force: bool) -> Result<bool> {
    let at = server(cx, db).await?;
    let mut s = session(cx, db).await?;
    let marks = state::read(&mut s).await?;
    s.close().await;
    let Some(mark) = marks.fence else { return Ok(false) };
    if let (Some(to), false) = (&mark.handed_to, force) {
        return Err(Error::new(Code::DB_NOT_FENCED, format!("\"{}\" has handed over to \"{to}\": both would take writes", db.name))
            .host(&db.host)
            .hint("demote that one first, or unfence(#{ force: true }) to abandon it with the rows it took"));
    }
    lift(cx, &at, &mark).await?;
    Ok(true)
}

/// Puts everything back; the mark goes last, so that what a crash leaves is lifted by doing it again.
async fn lift(cx: &Cx, at: &Server, mark: &FenceMark) -> Result<()> {
    let mut s = session(cx, &at.db).await?;
    let replica = state::read(&mut s).await?.replica;
    // A replica stays read-only over restarts, fence or not.
    if replica.is_none() {
        host::release(cx, &at.db).await?;
    }
    for (grantee, privilege) in &mark.revoked {
        // An account that is gone since then needs nothing back.
        match aside(&mut s, &[format!("GRANT {privilege} ON *.* TO {grantee}")]).await {
            Err(e) if e.details.get("code").is_some_and(|c| matches!(c.as_str(), "1133" | "1396" | "1959" | "1410")) => {}
            done => done?,
        }
    }
    let seen = s.text("SELECT USER()").await?.unwrap_or_default();
    let seen = seen.rsplit_once('@').map_or("localhost", |(_, h)| h).to_string();
    aside(&mut s, &[format!("DROP USER IF EXISTS '{PROBER}'@{}", text(&seen))]).await?;
    if mark.events && replica.is_none() {
        s.run("SET GLOBAL event_scheduler = ON").await?;
    }
    if !mark.was_read_only && replica.is_none() {
        open(at, &mut s).await?;
    }
    state::remove::<FenceMark>(&mut s).await?;
    s.close().await;
    Ok(())
}

/// Makes the server take writes.
pub async fn open(at: &Server, s: &mut Sess) -> Result<()> {
    if !at.flavour.super_read_only() {
        s.run("SET GLOBAL read_only = 0").await?;
    } else {
        if at.flavour.version >= (8, 0, 0) {
            s.run("RESET PERSIST IF EXISTS super_read_only").await?;
            s.run("RESET PERSIST IF EXISTS read_only").await?;
        }
        s.run("SET GLOBAL super_read_only = OFF").await?;
        s.run("SET GLOBAL read_only = OFF").await?;
    }
    Ok(())
}

/// Whether this action's fence was put up.
pub async fn fenced(cx: &Cx, db: &Db) -> Result<bool> {
    let mut s = session(cx, db).await?;
    let found = state::read(&mut s).await?.fence.is_some_and(|f| f.id == cx.action_id.0 && f.up);
    s.close().await;
    Ok(found)
}
