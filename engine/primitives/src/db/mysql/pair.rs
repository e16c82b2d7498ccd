//! Master-master pairs: the way back from a replica to its primary, made and ended.
//!
//! The way back goes by file and byte of the replica's log: what that has of the primary carries the primary's server id and is skipped
//! there, and what it has written itself begins after the place at which the way begins.

use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::time::Instant;

use super::connect::{Server, Sess, server, session};
use super::follow::{self, Upstream};
use super::state::{self, PairMark, aside};
use super::{sessions, status};
use crate::db::driver::Db;

/// How long the one may take to have what the other has written.
const WITHIN: Duration = Duration::from_secs(60);

/// The last change that a server has made itself; empty when it has made none that its log knows of.
async fn own(s: &mut Sess, at: &Server) -> Result<String> {
    let id = s.int("SELECT @@server_id").await?.to_string();
    if !at.flavour.maria {
        let uuid = s.text("SELECT @@server_uuid").await?.unwrap_or_default();
        let all = super::data::position(s, false).await?;
        return Ok(all.split(',').map(str::trim).filter(|g| g.starts_with(&uuid)).collect::<Vec<_>>().join(","));
    }
    let all = s.text("SELECT @@gtid_binlog_state").await?.unwrap_or_default();
    Ok(all.split(',').map(str::trim).filter(|g| g.split('-').nth(1) == Some(id.as_str())).collect::<Vec<_>>().join(","))
}

/// Refuses while the other side may take writes.
async fn passive(db: &Db, other: &Db, o: &mut Sess, at: &Server) -> Result<()> {
    if o.is_on("read_only").await? {
        return Ok(());
    }
    let here = sessions::list(o, at).await?;
    let mut who: Vec<String> = here.iter().map(|p| format!("{}@{}", p.user, p.host)).collect();
    who.sort();
    who.dedup();
    let who = if who.is_empty() { "no client is on it now".to_string() } else { format!("on it are {}", who.join(", ")) };
    Err(Error::new(Code::DB_FENCE, format!("\"{}\" may take writes as well as \"{}\": it is not read-only; {who}", other.name, db.name))
        .host(&other.host)
        .hint("bring all writers to one side and make the other read-only (SET GLOBAL read_only = 1), then try again"))
}

/// Makes the way back.
pub async fn pair(cx: &Cx, db: &Db, other: &Db) -> Result<bool> {
    let (at, theirs) = (server(cx, db).await?, server(cx, other).await?);
    let (mut r, mut o) = (session(cx, db).await?, session(cx, other).await?);
    let cannot = |why: String, hint: &str| {
        Err(Error::new(Code::DB_REPLICATION, format!("\"{}\" cannot be paired with \"{}\": {why}", db.name, other.name))
            .host(&db.host)
            .hint(hint))
    };
    let marks = state::read(&mut r).await?;
    if let Some(m) = &marks.replica {
        return cannot(
            format!("it is a replica of \"{}\", and takes no writes", m.of),
            "pair the server that takes the writes with its replica",
        );
    }
    if let Some(f) = &marks.fence {
        return cannot(format!("the fence {} stands on it", f.id), "unfence it first");
    }
    let stream = status::usual(&mut o, &theirs.flavour).await?;
    let (host, port) = follow::address(cx, db)?;
    let mark = state::read(&mut o).await?.replica;
    let Some(theirs_from) = stream.filter(|s| mark.as_ref().map_or(s.source() == format!("{host}:{port}"), |m| m.of == db.name)) else {
        return cannot("that one does not replicate from it".into(), "make it a replica first, by replicate_from");
    };
    if let Some(e) = theirs_from.error() {
        return Err(e.stopped(other));
    }
    passive(db, other, &mut o, &theirs).await?;
    let written = own(&mut o, &theirs).await?;
    let known = marks.pair.filter(|p| p.of == other.name);
    let usual = status::usual(&mut r, &at.flavour).await?;
    if let Some(s) = &usual {
        if known.as_ref().is_none_or(|p| p.ended) {
            return cannot(format!("it replicates from {} already", s.source()), "end that first");
        }
        if let Some(e) = s.error() {
            return Err(e.stopped(db));
        }
        if s.connected() {
            return Ok(false);
        }
    }
    if let Some(p) = known.as_ref().filter(|p| p.ended && p.written != written) {
        return Err(Error::new(
            Code::DB_DIFFERS,
            format!(
                "\"{}\" has written by itself since they were parted: its last change was {:?} and is {written:?}",
                other.name, p.written
            ),
        )
        .host(&other.host)
        .hint("compare both, bring the rows together by hand, and make it a replica anew (replicate_from with replace: true)"));
    }
    if usual.is_none() {
        let end = state::position(&mut o, &theirs.flavour).await?;
        let to = Upstream::of(cx, other, &mut o, &mut r).await?;
        // On record before it runs: what a crash leaves is known for ours.
        let mark = PairMark { of: other.name.clone(), account: to.account.clone(), written, ended: false };
        state::write(&mut r, &mark).await?;
        to.change(cx, &at, &mut r, at.flavour.by_place(&end.file, end.pos)).await?;
    }
    r.run(at.flavour.replica("START", "")).await?;
    follow::wait_running(cx, db, &at, &mut r).await?;
    r.close().await;
    o.close().await;
    Ok(true)
}

/// Ends the way back, when nothing can come by it any more.
pub async fn unpair(cx: &Cx, db: &Db, other: &Db) -> Result<bool> {
    let (at, theirs) = (server(cx, db).await?, server(cx, other).await?);
    let (mut r, mut o) = (session(cx, db).await?, session(cx, other).await?);
    let known = state::read(&mut r).await?.pair.filter(|p| p.of == other.name);
    let usual = status::usual(&mut r, &at.flavour).await?;
    let Some(stream) = usual else {
        let Some(mut mark) = known.filter(|p| !p.ended) else { return Ok(false) };
        // Ended, and not yet on record.
        mark.written = own(&mut o, &theirs).await?;
        end(&mut r, &mut o, mark).await?;
        return Ok(true);
    };
    let (host, port) = follow::address(cx, other)?;
    if known.as_ref().is_none_or(|p| p.ended) && stream.source() != format!("{host}:{port}") {
        let why = format!("\"{}\" replicates from {}, and \"{}\" is found at {host}:{port}", db.name, stream.source(), other.name);
        return Err(Error::new(Code::DB_REPLICATION, why).host(&db.host).hint("name the server that it replicates from"));
    }
    if let Some(e) = stream.error() {
        return Err(e.stopped(db));
    }
    passive(db, other, &mut o, &theirs).await?;
    let written = own(&mut o, &theirs).await?;
    let goal = state::position(&mut o, &theirs.flavour).await?;
    // By file and byte, whatever it goes by: its log is where the other's own changes are.
    let by_place = state::ReplicaMark::default();
    let begun = Instant::now();
    while !status::reached(&mut r, &at.flavour, &by_place, &goal, 0.2).await? {
        if let Some(e) = status::read(&mut r, &at.flavour).await?.iter().find_map(status::Stream::error) {
            return Err(e.stopped(db));
        }
        if begun.elapsed() > WITHIN {
            return Err(Error::new(
                Code::DB_BEHIND,
                format!("\"{}\" does not yet have what \"{}\" has written, up to {}:{}", db.name, other.name, goal.file, goal.pos),
            )
            .host(&db.host)
            .retryable(true)
            .hint("wait until it has caught up, and try again"));
        }
    }
    let now = own(&mut o, &theirs).await?;
    if now != written {
        return Err(Error::new(
            Code::DB_FENCE,
            format!("\"{}\" is read-only and somebody writes to it even so: its last change was {written:?} and is {now:?}", other.name),
        )
        .host(&other.host)
        .hint("find the program that works as a super-user there, and stop it"));
    }
    r.run(at.flavour.replica("STOP", "")).await?;
    r.run(at.flavour.replica("RESET", "ALL")).await?;
    let mark = known.unwrap_or(PairMark { of: other.name.clone(), ..PairMark::default() });
    end(&mut r, &mut o, PairMark { written, ..mark }).await?;
    r.close().await;
    o.close().await;
    Ok(true)
}

async fn end(r: &mut Sess, o: &mut Sess, mark: PairMark) -> Result<()> {
    if let Some(account) = &mark.account {
        aside(o, &[format!("DROP USER IF EXISTS {account}")]).await?;
    }
    state::write(r, &PairMark { account: None, ended: true, ..mark }).await
}
