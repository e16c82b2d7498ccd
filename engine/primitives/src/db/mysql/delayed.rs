//! `set_delay` and `roll_forward`: a replica that lags on purpose, and how it is brought to just before a mistake.
//!
//! Everything that it takes is on the replica: its relay log holds what it has received and not applied. So a primary that is lost, or
//! that nobody wants to touch now, is not needed.

use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::time::Instant;

use super::connect::{Server, Sess, server, session};
use super::relay::{self, Found, Group, Wanted};
use super::sql::text;
use super::state::{self, ReplicaMark};
use super::status::{self, Stream};
use super::{follow, host};
use crate::db::driver::{Before, Db, LeftOut, Rolled};

/// Keeps a server that was rolled forward where it is when it restarts.
const STAY: &str = "skip_slave_start = 1\n";

async fn usual(s: &mut Sess, at: &Server) -> Result<Stream> {
    status::usual(s, &at.flavour).await?.ok_or_else(|| {
        Error::new(Code::DB_REPLICATION, format!("\"{}\" does not replicate: there is nothing to delay", at.db.name))
            .host(&at.db.host)
            .hint("begin with replicate_from")
    })
}

/// Lets the replica lag; false when it does so already.
pub async fn set_delay(cx: &Cx, db: &Db, delay: Duration) -> Result<bool> {
    let at = server(cx, db).await?;
    let mut r = session(cx, db).await?;
    let seconds = delay.as_secs();
    let refuse = |why: String, hint: &str| Err(Error::new(Code::DB_REPLICATION, why).host(&db.host).hint(hint));
    if delay.subsec_nanos() > 0 || seconds > 2_147_483_647 {
        return refuse(
            format!("\"{}\" cannot be delayed by that: servers count whole seconds, 68 years at most", db.name),
            "give whole seconds",
        );
    }
    let stream = usual(&mut r, &at).await?;
    let mark = state::read(&mut r).await?.replica;
    if let Some(to) = mark.as_ref().and_then(|m| m.rolled.as_ref()) {
        return refuse(
            format!("\"{}\" was rolled forward to just before {to}, and stays there", db.name),
            "let it go on with replicate_from, or end its replication",
        );
    }
    let recorded = mark.as_ref().is_none_or(|m| m.delay == seconds);
    if stream.delay() == seconds && stream.running() && recorded {
        return Ok(false);
    }
    if stream.delay() != seconds || !stream.running() {
        if let Some(e) = stream.error() {
            return Err(e.stopped(db));
        }
        let threads = if at.flavour.maria {
            // MariaDB's statement throws away what was received and not applied. It must be there to be had again.
            refetchable(cx, db, &stream, mark.as_ref()).await?;
            ""
        } else {
            "SQL_THREAD"
        };
        r.run(at.flavour.replica("STOP", threads)).await?;
        r.run(at.flavour.change_source(&[("MASTER_DELAY", seconds.to_string())])).await?;
        r.run(at.flavour.replica("START", "")).await?;
    }
    follow::wait_running(cx, db, &at, &mut r).await?;
    if let Some(m) = mark {
        state::write(&mut r, &ReplicaMark { delay: seconds, ..m }).await?;
    }
    r.close().await;
    Ok(true)
}

/// Makes sure that the primary is reached and still has what the replica has not applied.
async fn refetchable(cx: &Cx, db: &Db, stream: &Stream, mark: Option<&ReplicaMark>) -> Result<()> {
    let refuse = |why: String| {
        Err(Error::new(
            Code::DB_REPLICATION,
            format!("the delay of \"{}\" cannot be changed now: {why}, and what was received and not applied would be lost", db.name),
        )
        .host(&db.host)
        .hint("use roll_forward to apply what it holds, or try again when its primary is there"))
    };
    if !stream.receiving() {
        return refuse(format!("its primary {} does not answer it", stream.source()));
    }
    let Some(primary) = mark.and_then(|m| Db::find(cx, &m.of).ok()) else { return Ok(()) };
    let mut p = session(cx, &primary).await?;
    let (file, _) = stream.applied();
    let has = file.is_empty() || p.column("SHOW BINARY LOGS").await?.contains(&file);
    p.close().await;
    if has { Ok(()) } else { refuse(format!("\"{}\" no longer has its binary log {file}", primary.name)) }
}

/// Applies what the replica holds, up to just before a moment or a position.
///
/// 1. Nothing more is applied from here on, so that the mistake cannot come through meanwhile; receiving goes on.
/// 2. The relay log says where the first change begins that must not be applied, and the server itself confirms that one begins there.
/// 3. It will not go on by itself after a restart.
/// 4. The delay goes, the relay log stays, and it applies up to that byte.
/// 5. It stands there, and what should not be applied is not among what it has applied.
pub async fn roll_forward(cx: &Cx, db: &Db, before: &Before) -> Result<Rolled> {
    let wanted = match before {
        Before::Time(t) => Wanted::Time(*t),
        Before::Position(p) => Wanted::position(p)?,
    };
    if let Wanted::Time(t) = &wanted
        && *t > cx.clock.now()
    {
        return Err(refused(db, format!("{t} has not come yet")).hint("give the moment of the first change that must not be applied"));
    }
    let at = server(cx, db).await?;
    let mut r = session(cx, db).await?;
    usual(&mut r, &at).await?;
    r.run(at.flavour.replica("STOP", "SQL_THREAD")).await?;
    let stands = usual(&mut r, &at).await?;
    if let Some(e) = stands.applying_error() {
        return Err(e.stopped(db));
    }
    // The relay log is thrown away as it is applied: what is no longer in it is told by the position.
    let past = match &wanted {
        Wanted::Gtid(g) => at.flavour.maria && status::holds(&applied(&mut r, &at).await?, g),
        Wanted::Place(f, n) => {
            let (file, pos) = stands.applied();
            file == *f && pos > *n || later(&file, f)
        }
        Wanted::Time(_) => false,
    };
    if past {
        let (log, byte) = stands.applied();
        return Err(refused(db, format!("it has applied more than that: it stands at {log}:{byte}")).hint(TOO_LATE));
    }
    let (file, pos) = stands.relay();
    let mut none = Vec::new();
    let (target, statement) = loop {
        let found = relay::scan(cx, db, &mut r, &file, pos, &wanted, &none).await?;
        let target = check(db, &wanted, found)?;
        match relay::statement(&mut r, &target).await? {
            Some(statement) => break (target, statement),
            // Text of a statement that looks like the tool's own lines.
            None if none.len() < 100 => none.push(target),
            None => return Err(refused(db, format!("no change begins at {}:{} of its relay log", target.file, target.at))),
        }
    };
    if at.flavour.maria && status::holds(&applied(&mut r, &at).await?, &target.gtid) {
        return Err(refused(db, format!("it has applied {} already", target.gtid)).hint(TOO_LATE));
    }
    let mark = state::read(&mut r).await?.replica;
    host::hold_with(cx, db, &format!("\"{}\" was rolled forward to just before {}", db.name, target.show()), STAY).await?;
    if let Some(m) = mark {
        state::write(&mut r, &ReplicaMark { rolled: Some(target.show().to_string()), ..m }).await?;
    }
    let there = file == target.file && pos == target.at;
    if !there {
        apply(cx, db, &at, &mut r, &target, (&file, pos)).await?;
    }
    let position = applied(&mut r, &at).await?;
    if at.flavour.maria && status::holds(&position, &target.gtid) {
        return Err(Error::new(
            Code::DB_REPLICATION,
            format!("\"{}\" has applied {}, which it should have left out", db.name, target.gtid),
        )
        .host(&db.host));
    }
    let (log, byte) = usual(&mut r, &at).await?.applied();
    r.close().await;
    Ok(Rolled {
        changed: !there,
        position: if position.is_empty() { format!("{log}:{byte}") } else { position },
        last: None,
        left_out: Some(LeftOut { position: target.show().to_string(), time: target.time, statement }),
    })
}

/// Whether a binary log comes after another of the same server: `bin.000012` after `bin.000009`.
fn later(file: &str, than: &str) -> bool {
    let parts = |f: &str| f.rsplit_once('.').and_then(|(name, n)| Some((name.to_string(), n.parse::<u64>().ok()?)));
    matches!((parts(file), parts(than)), (Some(a), Some(b)) if a.0 == b.0 && a.1 > b.1)
}

const TOO_LATE: &str = "it is too late for this replica; take a backup and the primary's binary log";

fn refused(db: &Db, why: String) -> Error {
    Error::new(Code::DB_POSITION, format!("\"{}\" cannot be rolled forward to there: {why}", db.name))
        .host(&db.host)
        .hint("replication into it stays stopped, so that nothing comes through meanwhile: roll forward to another place, or let it go on with replicate_from")
}

/// The group before which it stops, when that is possible and beyond doubt.
fn check(db: &Db, wanted: &Wanted, found: Found) -> Result<Group> {
    let shown = |g: &Option<Group>| g.as_ref().map_or("nothing".to_string(), |g| format!("{} of {}", g.show(), g.time));
    let Some(target) = found.target else {
        let newest = shown(&found.newest);
        return Err(match wanted {
            Wanted::Time(t) => {
                refused(db, format!("it holds nothing of {t} or later that would be left out; the newest it has received is {newest}"))
            }
            Wanted::Gtid(g) => refused(db, format!("{g} is not in its relay log, which ends with {newest}")),
            Wanted::Place(f, n) => refused(db, format!("no change begins at {f}:{n} in its relay log, which ends with {newest}")),
        });
    };
    if target.applied {
        return Err(refused(db, format!("it has applied more than that: {}", shown(&found.applied))).hint(TOO_LATE));
    }
    if let Wanted::Time(t) = wanted
        && found.first
        && found.applied.is_none()
        && t.as_second() < target.time.as_second()
    {
        let why = format!("its relay log begins with {}, and when it applied what came before is not known", shown(&Some(target.clone())));
        return Err(refused(db, why).hint(format!("if that is the first change to leave out, give its position, \"{}\"", target.show())));
    }
    Ok(target)
}

/// What the replica has applied, as GTIDs.
async fn applied(r: &mut Sess, at: &Server) -> Result<String> {
    if at.flavour.maria { Ok(r.text("SELECT @@gtid_slave_pos").await?.unwrap_or_default()) } else { super::data::position(r, false).await }
}

async fn apply(cx: &Cx, db: &Db, at: &Server, r: &mut Sess, target: &Group, from: (&str, u64)) -> Result<()> {
    let relay = [("RELAY_LOG_FILE", text(from.0)), ("RELAY_LOG_POS", from.1.to_string()), ("MASTER_DELAY", "0".to_string())];
    if at.flavour.maria {
        r.run(at.flavour.replica("STOP", "")).await?;
        // With a place in the relay log given, it is kept; the server goes by GTIDs no more until `resume`.
        r.run(at.flavour.change_source(&relay)).await?;
    } else {
        r.run(at.flavour.change_source(&[("MASTER_DELAY", "0".to_string())])).await?;
    }
    let until = format!("SQL_THREAD UNTIL RELAY_LOG_FILE = {}, RELAY_LOG_POS = {}", text(&target.file), target.at);
    r.run(at.flavour.replica("START", &until)).await?;
    let mut seen = (from.0.to_string(), from.1);
    let mut moved = Instant::now();
    loop {
        let now = usual(r, at).await?;
        // Its primary may be lost: what it holds is applied all the same.
        if let Some(e) = now.applying_error() {
            return Err(e.stopped(db));
        }
        let place = now.relay();
        if !now.applying() {
            if place == (target.file.clone(), target.at) {
                return Ok(());
            }
            return Err(Error::new(
                Code::DB_REPLICATION,
                format!("\"{}\" has stopped at {}:{} of its relay log instead of {}:{}", db.name, place.0, place.1, target.file, target.at),
            )
            .host(&db.host)
            .hint("do it again: it goes on from where it is"));
        }
        if place != seen {
            (seen, moved) = (place, Instant::now());
        } else if moved.elapsed() > Duration::from_secs(3600) {
            return Err(Error::new(
                Code::DB_BEHIND,
                format!("\"{}\" has not got on for an hour, at {}:{} of its relay log", db.name, seen.0, seen.1),
            )
            .host(&db.host)
            .retryable(true));
        }
        cx.sleep(Duration::from_millis(50)).await?;
    }
}

/// Lets a replica that was rolled forward go on, with its delay and by GTIDs as before; `true` when it was one.
pub async fn resume(cx: &Cx, db: &Db, at: &Server, r: &mut Sess, mark: &mut ReplicaMark) -> Result<bool> {
    if mark.rolled.is_none() {
        return Ok(false);
    }
    r.run(at.flavour.replica("STOP", "")).await?;
    let stream = usual(r, at).await?;
    let (file, pos) = stream.applied();
    let mut set = vec![("MASTER_DELAY", mark.delay.to_string())];
    if mark.gtid && at.flavour.maria {
        set.push(("MASTER_USE_GTID", "slave_pos".into()));
    } else if !mark.gtid {
        set.extend([("MASTER_LOG_FILE", text(&file)), ("MASTER_LOG_POS", pos.to_string())]);
    }
    r.run(at.flavour.change_source(&set)).await?;
    host::hold(cx, db, &format!("\"{}\" is a replica of \"{}\"", db.name, mark.of)).await?;
    r.run(at.flavour.replica("START", "")).await?;
    mark.rolled = None;
    state::write(r, mark).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use runbook_core::inventory::Resource;

    use super::*;

    fn db() -> Db {
        Db {
            name: "late".into(),
            host: "h".into(),
            settings: Resource { name: "late".into(), kind: "mariadb".into(), settings: BTreeMap::new() },
        }
    }

    fn group(time: &str, gtid: &str, applied: bool) -> Group {
        Group { applied, file: "r.1".into(), at: 4, time: time.parse().unwrap(), gtid: gtid.into(), place: "bin.1:4".into() }
    }

    #[test]
    fn logs_have_an_order() {
        assert!(later("bin.1000000", "bin.999999") && later("bin.000002", "bin.000001"));
        for (a, b) in [("bin.000001", "bin.000001"), ("bin.000001", "bin.000002"), ("other.000002", "bin.000001"), ("", "bin.000001")] {
            assert!(!later(a, b), "{a} {b}");
        }
    }

    #[test]
    fn what_cannot_be_known_or_done_is_refused() {
        let t = |s: &str| Wanted::Time(s.parse().unwrap());
        let noon = group("2026-01-01T12:00:00Z", "0-1-5", false);
        let found = |target: Option<Group>, applied: Option<Group>, first| Found { newest: Some(noon.clone()), target, applied, first };
        let ok = check(&db(), &t("2026-01-01T12:00:00Z"), found(Some(noon.clone()), None, true)).unwrap();
        assert_eq!(ok, noon);
        let e = check(&db(), &t("2026-01-01T11:00:00Z"), found(Some(noon.clone()), None, true)).unwrap_err();
        assert!(e.message.contains("is not known") && e.hint.unwrap().contains("0-1-5"));
        let early = group("2026-01-01T10:00:00Z", "0-1-4", true);
        assert!(check(&db(), &t("2026-01-01T11:00:00Z"), found(Some(noon.clone()), Some(early.clone()), false)).is_ok());
        let e = check(&db(), &t("2026-01-01T09:00:00Z"), found(Some(early.clone()), Some(early), true)).unwrap_err();
        assert!(e.message.contains("has applied more than that: 0-1-4"), "{e}");
        let e = check(&db(), &t("2026-01-01T13:00:00Z"), found(None, None, false)).unwrap_err();
        assert!(e.message.contains("the newest it has received is 0-1-5"), "{e}");
    }
}
