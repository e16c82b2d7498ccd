//! `promote` and `demote`.

use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::time::Instant;

use super::connect::{Sess, get, server, session};
use super::sql::ident;
use super::state::{self, FenceMark, Phase, PromotedMark, ReplicaMark};
use super::{fence, follow, host, status};
use crate::db::driver::{Caught, Db, Fence, Switched};

/// Makes the replica the server that takes the writes.
///
/// 1. The source itself confirms that this very fence stands, refuses writes now, and has seen none.
/// 2. The replica has everything. Then the source notes to whom it hands over, so that `unfence` cannot open both sides.
/// 3. Replication into the replica ends; on record is what must be known to go back; then it takes writes.
///
/// Each part finds out by itself whether it was done. Until the last one, nobody takes writes.
pub async fn promote(cx: &Cx, db: &Db, source: &Db, f: &Fence) -> Result<Switched> {
    let at = server(cx, db).await?;
    let fenced = fence::check(cx, source, f).await?;
    if let Some(other) = fenced.handed_to.as_ref().filter(|to| **to != db.name) {
        return Err(Error::new(Code::DB_NOT_FENCED, format!("\"{}\" has already handed over to \"{other}\"", source.name))
            .host(&source.host)
            .hint("demote that one first"));
    }
    // Checked before the note, so that a replica that lags leaves no trace on the source.
    if let Caught::Behind { missing, .. } = status::caught_up(cx, db, f).await? {
        return Err(Error::new(Code::DB_BEHIND, format!("\"{}\" does not have everything: {missing}", db.name))
            .hint("wait for it with wait_caught_up, then promote")
            .host(&db.host));
    }
    let mut s = session(cx, source).await?;
    state::write(&mut s, &FenceMark { handed_to: Some(db.name.clone()), ..fenced }).await?;
    let mut r = session(cx, db).await?;
    let marks = state::read(&mut r).await?;
    let open = !r.is_on("read_only").await?;
    if marks.promoted.as_ref().is_some_and(|p| p.fence == f.id) && open && status::usual(&mut r, &at.flavour).await?.is_none() {
        return Ok(Switched { changed: false, note: "it was promoted under this fence already".into() });
    }
    let mut replica = marks.replica.unwrap_or_default();
    if !status::read(&mut r, &at.flavour).await?.is_empty() {
        r.run(at.flavour.replica("STOP", "")).await?;
        replica = follow::stopped_at(&mut r, &at, replica).await?;
        r.run(at.flavour.replica("RESET", "ALL")).await?;
    }
    let mut promoted = PromotedMark {
        action: cx.action_id.to_string(),
        fence: f.id.clone(),
        source: source.name.clone(),
        position: state::position(&mut r, &at.flavour).await?,
        had: fence::position(f),
        replica,
        carried: false,
    };
    if let Some(before) = marks.promoted.filter(|p| p.fence == f.id) {
        // Begun before: what it noted is from when nothing could have been written here.
        promoted.position = before.position;
    }
    state::write(&mut r, &promoted).await?;
    host::release(cx, db).await?;
    enable_events(&mut r).await?;
    fence::open(&at, &mut r).await?;
    if f.position.get("events").and_then(runbook_core::Value::as_bool) == Some(true) || promoted.replica.events {
        r.run("SET GLOBAL event_scheduler = ON").await?;
    }
    state::remove::<ReplicaMark>(&mut r).await?;
    state::remove::<state::CopyMark>(&mut r).await?;
    if let Some(account) = &promoted.replica.account {
        // The fenced side takes this from its super-user only; an account that is left there harms nobody.
        let _ = follow::forget_account(cx, &source.name, account).await;
    }
    s.close().await;
    r.close().await;
    Ok(Switched { changed: true, note: format!("\"{}\" takes the writes", db.name) })
}

/// Events that came by replication are disabled on a replica; from now on they are this server's.
async fn enable_events(r: &mut Sess) -> Result<()> {
    let events = r
        .rows("SELECT event_schema AS sch, event_name AS ev FROM information_schema.events WHERE status IN ('SLAVESIDE_DISABLED', 'REPLICA_SIDE_DISABLED')")
        .await?;
    for row in events {
        state::aside(r, &[format!("ALTER EVENT {}.{} ENABLE", ident(get(&row, "sch")), ident(get(&row, "ev")))]).await?;
    }
    Ok(())
}

/// Whether this action promoted the server.
pub async fn promoted(cx: &Cx, db: &Db) -> Result<bool> {
    let mut r = session(cx, db).await?;
    let done = state::read(&mut r).await?.promoted.is_some_and(|p| p.action == cx.action_id.0) && !r.is_on("read_only").await?;
    r.close().await;
    Ok(done)
}

/// Takes a promotion back, with the rows that came since.
///
/// 1. Writes on the promoted server stop, proven by a fence of this action. From here to the end nobody takes writes.
/// 2. The other side, which must still be fenced and stand where it was fenced, takes the rows that came since by replicating from the
///    promoted server, and has all of them before it goes on.
/// 3. The promoted server becomes its replica again, from where both stand, read-only.
/// 4. The other side's note that it handed over goes, so that `unfence` opens it.
///
/// Each part finds out by itself whether it was done, so a crash anywhere is mended by doing all of it again.
pub async fn demote(cx: &Cx, db: &Db, other: &Db, within: Duration) -> Result<Switched> {
    let (at, theirs) = (server(cx, db).await?, server(cx, other).await?);
    let (mut r, mut o) = (session(cx, db).await?, session(cx, other).await?);
    let (mine, other_marks) = (state::read(&mut r).await?, state::read(&mut o).await?);
    let handed_here = other_marks.fence.as_ref().is_some_and(|f| f.handed_to.as_deref() == Some(&db.name));
    let Some(promoted) = mine.promoted.filter(|p| p.source == other.name) else {
        // It only began, or never happened: nothing was written here.
        if handed_here && let Some(mark) = other_marks.fence {
            let stopped = mine.replica.filter(|m| m.of == other.name && m.phase == Phase::Copied);
            if let (Some(m), true) = (stopped, status::read(&mut r, &at.flavour).await?.is_empty()) {
                follow::start(cx, db, other, &mut o, &mut r, m).await?;
            }
            state::write(&mut o, &FenceMark { handed_to: None, ..mark }).await?;
            return Ok(Switched { changed: true, note: "it was not promoted".into() });
        }
        return Ok(Switched { changed: false, note: "it was not promoted".into() });
    };
    let refuse = |code: Code, why: String, hint: &str| Error::new(code, why).hint(hint).host(&other.host);
    let Some(old_fence) = other_marks.fence.filter(|f| f.up && f.id == promoted.fence) else {
        return Err(refuse(
            Code::DB_DIFFERS,
            format!(
                "\"{}\" is no longer under the fence from which \"{}\" was promoted: both may have rows of their own",
                other.name, db.name
            ),
            "compare them and bring the rows together by hand; writes on both stay as they are",
        ));
    };
    // A try that died late has made it a replica already.
    let follows = mine.replica.as_ref().is_some_and(|m| m.of == other.name) && status::usual(&mut r, &at.flavour).await?.is_some();
    let took = if follows && mine.fence.is_none() {
        promoted.carried
    } else {
        if follows {
            // Where both stand is on record: it is begun again from there, under the fence.
            r.run(at.flavour.replica("STOP", "")).await?;
            r.run(at.flavour.replica("RESET", "ALL")).await?;
        }
        let back = Backwards { db, other, promoted: &promoted };
        back.turn(cx, &mut r, &mut o, mine.fence.as_ref(), within).await?
    };
    state::remove::<PromotedMark>(&mut r).await?;
    let position = state::position(&mut o, &theirs.flavour).await?;
    state::write(&mut o, &FenceMark { handed_to: None, position, ..old_fence }).await?;
    r.close().await;
    o.close().await;
    let note = if took { format!("its rows were carried back to \"{}\"", other.name) } else { "it took no writes".into() };
    Ok(Switched { changed: true, note })
}

/// Takes the mark of a fence away from a server that stays read-only as a replica, and gives back what it took from accounts.
async fn fence_off(r: &mut Sess) -> Result<()> {
    if let Some(f) = state::read(r).await?.fence {
        for (grantee, privilege) in &f.revoked {
            match state::aside(r, &[format!("GRANT {privilege} ON *.* TO {grantee}")]).await {
                Err(e) if e.details.get("code").is_some_and(|c| matches!(c.as_str(), "1133" | "1396" | "1959" | "1410")) => {}
                done => done?,
            }
        }
    }
    state::remove::<FenceMark>(r).await
}

struct Backwards<'a> {
    db: &'a Db,
    other: &'a Db,
    promoted: &'a PromotedMark,
}

impl Backwards<'_> {
    /// Fences the promoted server, lets the other side take its rows, and makes it a replica of that; whether there were any rows.
    /// `begun` is the fence that an earlier try has put up.
    async fn turn(&self, cx: &Cx, r: &mut Sess, o: &mut Sess, begun: Option<&FenceMark>, within: Duration) -> Result<bool> {
        let (db, other, promoted) = (self.db, self.other, self.promoted);
        let (at, theirs) = (server(cx, db).await?, server(cx, other).await?);
        let (held, _) = fence::fence(cx, db, within).await?;
        let end = fence::position(&held);
        let took = self.carry(cx, r, o, &end, within).await?;
        // Both sides stand at the same place, and neither takes writes.
        let events =
            begun.map_or_else(|| held.position.get("events").and_then(runbook_core::Value::as_bool).unwrap_or(false), |f| f.events);
        let mut mark =
            ReplicaMark { of: other.name.clone(), source: state::identity(o).await?, phase: Phase::Running, ..promoted.replica.clone() };
        mark.events = events && promoted.replica.events;
        mark.position = state::position(o, &theirs.flavour).await?;
        if mark.gtid {
            // Everything here came from there or went there: this is what it has.
            mark.position.gtid = end.gtid.clone();
        }
        state::write(r, &ReplicaMark { phase: Phase::Copying, ..mark.clone() }).await?;
        host::hold(cx, db, &format!("\"{}\" is a replica of \"{}\"", db.name, other.name)).await?;
        follow::start(cx, db, other, o, r, mark).await?;
        for row in r.rows("SELECT event_schema AS sch, event_name AS ev FROM information_schema.events WHERE status = 'ENABLED'").await? {
            let name = format!("{}.{}", ident(get(&row, "sch")), ident(get(&row, "ev")));
            state::aside(r, &[format!("ALTER EVENT {name} DISABLE ON SLAVE")]).await?;
        }
        if at.flavour.super_read_only() {
            r.run("SET GLOBAL super_read_only = OFF").await?;
        }
        // The fence of this action has done its work; the server stays read-only as a replica.
        fence_off(r).await?;
        Ok(took)
    }

    /// Lets the other side take everything up to `end` from the promoted server; whether there was anything.
    async fn carry(&self, cx: &Cx, r: &mut Sess, o: &mut Sess, end: &state::Position, within: Duration) -> Result<bool> {
        let theirs = server(cx, self.other).await?;
        let gtid = self.promoted.replica.gtid;
        let (from, had) = (&self.promoted.position, &self.promoted.had);
        let unwritten = if gtid && !end.gtid.is_empty() { from.gtid == end.gtid } else { (&from.file, from.pos) == (&end.file, end.pos) };
        let begun = status::usual(o, &theirs.flavour).await?.is_some();
        if unwritten && !begun {
            return Ok(false);
        }
        if self.promoted.carried && !begun {
            return Ok(true);
        }
        if !begun {
            // By GTIDs the same place that it was fenced at; by file and byte the end of the promoted server's log at that moment.
            let applied =
                if theirs.flavour.maria { o.text("SELECT @@gtid_current_pos").await?.unwrap_or_default() } else { had.gtid.clone() };
            if gtid && theirs.flavour.maria && status::lacking(&end.gtid, &applied) == 0 && status::lacking(&applied, &had.gtid) > 0 {
                return Ok(true);
            }
            let own = state::position(o, &theirs.flavour).await?;
            if own.gtid != had.gtid || own.gtid.is_empty() && (&own.file, own.pos) != (&had.file, had.pos) {
                return Err(Error::new(
                    Code::DB_DIFFERS,
                    format!(
                        "\"{}\" was written to under its fence: its log was at {} and is at {}",
                        self.other.name,
                        fence::show(had),
                        fence::show(&own)
                    ),
                )
                .host(&self.other.host)
                .hint("compare both sides and bring the rows together by hand; writes on both stay as they are"));
            }
        }
        let position = state::Position { gtid: had.gtid.clone(), file: from.file.clone(), pos: from.pos };
        let mark = ReplicaMark {
            of: self.db.name.clone(),
            source: String::new(),
            phase: Phase::Running,
            position,
            gtid,
            ..ReplicaMark::default()
        };
        let mark = if begun {
            mark
        } else {
            let started = follow::start(cx, self.other, self.db, r, o, mark).await?;
            // `start` records a replica; this one is for the way back alone.
            state::remove::<ReplicaMark>(o).await?;
            started
        };
        let until = Instant::now() + within.max(Duration::from_secs(120));
        while !status::reached(o, &theirs.flavour, &mark, end, 0.2).await? {
            let streams = status::read(o, &theirs.flavour).await?;
            if let Some(e) = streams.iter().find_map(status::Stream::error) {
                return Err(e
                    .stopped(self.other)
                    .hint("the rows that came since are on the promoted side; mend what the server says and demote again"));
            }
            if Instant::now() > until {
                return Err(Error::new(
                    Code::DB_BEHIND,
                    format!("\"{}\" has not yet taken the rows of \"{}\" back", self.other.name, self.db.name),
                )
                .host(&self.other.host)
                .retryable(true)
                .hint("try again: it goes on from where it is"));
            }
            cx.sleep(Duration::from_millis(20)).await?;
        }
        // On record before what shows it is gone.
        state::write(r, &PromotedMark { carried: true, ..self.promoted.clone() }).await?;
        o.run(theirs.flavour.replica("STOP", "")).await?;
        o.run(theirs.flavour.replica("RESET", "ALL")).await?;
        if let Some(account) = &mark.account {
            state::aside(r, &[format!("DROP USER IF EXISTS {account}")]).await?;
        }
        Ok(true)
    }
}
