//! `set_delay` and `roll_forward`: a standby that lags on purpose, and how it is brought to just before a mistake.
//!
//! What it takes is in the standby's own folder: the log that it has received and not applied. So the primary is not needed.

use std::time::Duration;

use jiff::Timestamp;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::time::Instant;

use super::client::{Conn, col};
use super::cluster::{Cluster, Control, Data};
use super::data::{admin, unless_stopped};
use super::kept;
use super::state::{Lsn, Node};
use super::target::{self, APPLIED, Stop};
use super::wal::{self, Commit, Found, Log, Wanted};
use crate::db::driver::{Before, Db, LeftOut, Rolled, cannot};

/// The server's setting of the delay.
const DELAY: &str = "recovery_min_apply_delay";

/// How a standby stands with its delay.
pub(super) struct Held {
    /// By how much it lags on purpose.
    pub delay: Duration,
    /// Before what it was rolled forward.
    pub rolled: Option<String>,
    /// Whether nothing more is applied.
    pub paused: bool,
    /// Whether it waits for its delay to be over. After a start it begins to receive only when it has applied what lies in its folder.
    pub waits: bool,
}

/// Asks a server in recovery.
pub(super) async fn held(conn: &Conn) -> Result<Held> {
    let sql = format!(
        "SELECT setting, current_setting('runbook.rolled', true), pg_get_wal_replay_pause_state(), \
         (SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup') FROM pg_settings WHERE name = '{DELAY}'"
    );
    let row = conn.row(&sql).await?;
    Ok(Held {
        delay: Duration::from_millis(col(&row, 0).parse().unwrap_or(0)),
        rolled: Some(col(&row, 1)).filter(|r| !r.is_empty()).map(str::to_string),
        paused: col(&row, 2) != "not paused",
        waits: col(&row, 3) == "RecoveryApplyDelay",
    })
}

impl Held {
    /// Why waiting for it is no use, or takes long.
    pub(super) fn why(&self) -> Option<String> {
        if let Some(to) = &self.rolled {
            return Some(format!("it was rolled forward to just before {to} and stays there: replicate_from lets it go on"));
        }
        if self.paused {
            return Some("its replay is paused: replicate_from lets it go on".into());
        }
        (!self.delay.is_zero()).then(|| format!("it lags by {} s on purpose: set_delay(\"0s\") ends that", self.delay.as_secs_f64()))
    }
}

/// The standby, up.
fn standby(db: &Db, node: &Node) -> Result<()> {
    if node.replica.is_some() {
        return Err(cannot(db, "delaying a logical replica; a physical standby can be delayed"));
    }
    if !node.in_recovery {
        return Err(Error::new(Code::DB_REPLICATION, format!("\"{}\" does not replicate: there is nothing to delay", db.name))
            .host(&db.host)
            .hint("begin with replicate_from"));
    }
    Ok(())
}

/// Lets the standby lag; false when it does so already.
pub(super) async fn set_delay(cx: &Cx, db: &Db, delay: Duration) -> Result<bool> {
    unless_stopped(cx, db, async {
        let (conn, node) = admin(cx, db).await?;
        standby(db, &node)?;
        let refuse = |why: String, hint: &str| Err(Error::new(Code::DB_REPLICATION, why).host(&db.host).hint(hint));
        let ms = delay.as_millis();
        if ms > 2_147_483_647 || !delay.subsec_nanos().is_multiple_of(1_000_000) {
            return refuse(
                format!("\"{}\" cannot be delayed by that: the server counts milliseconds, 24 days at most", db.name),
                "give a shorter one",
            );
        }
        let now = held(&conn).await?;
        if let Some(to) = now.rolled {
            return refuse(
                format!("\"{}\" was rolled forward to just before {to}, and stays there", db.name),
                "let it go on with replicate_from, or end its replication",
            );
        }
        if now.delay == delay {
            return Ok(false);
        }
        Cluster::of(cx, db).await?.set(&[(DELAY, Some(ms.to_string()))]).await?;
        conn.run("SELECT pg_reload_conf()").await?;
        let began = Instant::now();
        while held(&conn).await?.delay != delay {
            if began.elapsed() > Duration::from_secs(20) {
                return refuse(
                    format!("\"{}\" does not take its delay of {ms} ms", db.name),
                    "is recovery_min_apply_delay given on its command line? Look at its log",
                );
            }
            cx.sleep(Duration::from_millis(20)).await?;
        }
        Ok(true)
    })
    .await
}

const TOO_LATE: &str = "it is too late for this standby; recover_to brings a cluster there from a base backup and the archived log";

fn refused(db: &Db, why: String) -> Error {
    Error::new(Code::DB_POSITION, format!("\"{}\" cannot be rolled forward to there: {why}", db.name))
        .host(&db.host)
        .hint("replication into it stays stopped, so that nothing comes through meanwhile: roll forward to another place, or let it go on with replicate_from")
}

/// Stops applying, and returns when nothing more can come through.
async fn pause(cx: &Cx, db: &Db, conn: &Conn) -> Result<()> {
    conn.run("SELECT pg_wal_replay_pause()").await?;
    let began = Instant::now();
    loop {
        // One that waits for its delay to be over looks at the pause again before it applies anything.
        let row = conn
            .row("SELECT pg_get_wal_replay_pause_state(), (SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup')")
            .await?;
        if col(&row, 0) == "paused" || col(&row, 0) == "pause requested" && col(&row, 1) == "RecoveryApplyDelay" {
            return Ok(());
        }
        if began.elapsed() > Duration::from_secs(60) {
            return Err(Error::new(Code::DB_REPLICATION, format!("the replay of \"{}\" does not pause ({})", db.name, col(&row, 0)))
                .hint("look at what its server does")
                .host(&db.host)
                .retryable(true));
        }
        cx.sleep(Duration::from_millis(10)).await?;
    }
}

/// Applies what the standby holds, up to just before a moment or a position.
///
/// 1. Nothing more is applied from here on. One that is down stays down for now.
/// 2. The log in its folder says which commit is the first that must be left out, and which one comes before that.
/// 3. The place right behind the latter is written down as the end of its recovery, so that a restart stops there as well. The delay goes.
/// 4. It is started again, applies what comes before, and stops there by itself.
/// 5. It stands there, and what should not be applied lies behind.
pub(super) async fn roll_forward(cx: &Cx, db: &Db, before: &Before) -> Result<Rolled> {
    unless_stopped(cx, db, async {
        let wanted = target::wanted(before, cx.clock.now(), "", |why| refused(db, why))?;
        let cluster = Cluster::of(cx, db).await?;
        let up = cluster.settled().await?;
        let Data::Cluster(mut control) = cluster.look().await? else {
            return Err(
                Error::new(Code::DB_REPLICATION, format!("there is no standby in {} on {}", cluster.data()?, db.host)).host(&db.host)
            );
        };
        let mut stands = control.consistent;
        let mut latest = None;
        let runs = up.is_some();
        if let Some((conn, node)) = up {
            standby(db, &node)?;
            pause(cx, db, &conn).await?;
            let row = conn.row(&format!("SELECT pg_last_wal_replay_lsn(), {APPLIED}")).await?;
            stands = Lsn::parse(col(&row, 0)).unwrap_or_default();
            latest = col(&row, 1).parse::<Timestamp>().ok();
            // A checkpoint may have come meanwhile.
            if let Data::Cluster(now) = cluster.look().await? {
                control = now;
            }
        } else if !control.standby {
            return Err(Error::new(Code::DB_REPLICATION, format!("\"{}\" does not run, and was no standby", db.name)).host(&db.host));
        }
        let log = Log::of(&cluster, &control).await?;
        let found = wal::scan(&cluster, &log, wanted).await?;
        let left_out = check(db, wanted, &control, stands, latest, &found)?;
        // Right behind the last commit that is wanted, and not at the first that is not: its locks would be held there.
        let stop = found.before.as_ref().map_or(stands, |b| Lsn(b.lsn.0 + 1)).max(stands);
        let there = stop == stands && runs;
        stay(cx, &cluster, &left_out, stop).await?;
        let conn = if there { admin(cx, db).await?.0 } else { target::restart(cx, db, &cluster, stop).await? };
        let (position, in_recovery) = target::stands(&conn).await?;
        if position > left_out.lsn || !in_recovery {
            let what = format!("\"{}\" stands at {position} and has applied {}, which it should have left out", db.name, left_out.show());
            return Err(Error::new(Code::DB_REPLICATION, what).host(&db.host));
        }
        let node = super::state::look(&conn).await?;
        let statement = target::describe(&cluster, &conn, &node.oid, &log, &left_out).await?;
        let way_out = "SELECT pg_promote() there makes them readable, and the server one of its own";
        target::warn_locked(cx, db, &conn, way_out).await?;
        Ok(Rolled {
            changed: position != stands || !runs,
            position: position.to_string(),
            last: found.before.map(|b| b.time).or(latest),
            left_out: Some(LeftOut { position: left_out.lsn.to_string(), time: left_out.time, statement }),
        })
    })
    .await
}

/// The first commit that is left out, when leaving it out is possible and beyond doubt.
fn check(db: &Db, wanted: Wanted, control: &Control, stands: Lsn, latest: Option<Timestamp>, found: &Found) -> Result<Commit> {
    let past = |what: String| Err(refused(db, format!("it has applied more than that: {what}")).hint(TOO_LATE));
    match wanted {
        Wanted::Lsn(l) if l < stands && found.target.as_ref().is_none_or(|t| t.lsn < stands) => {
            return past(format!("it stands at {stands}"));
        }
        Wanted::Time(t) if latest.is_some_and(|l| l >= t) => {
            return past(format!("it stands at {stands}, of {}", latest.map_or(String::new(), |l| l.to_string())));
        }
        _ => {}
    }
    let Some(target) = &found.target else {
        let newest = found.before.as_ref().map_or_else(
            || "it has received no transaction since its last checkpoint".to_string(),
            |b| format!("the last transaction that it has received is at {}", b.show()),
        );
        return Err(refused(db, format!("nothing would be left out: {newest}")));
    };
    if target.lsn < stands {
        return past(format!("it stands at {stands}, and {} is applied", target.show()));
    }
    // What came before the last checkpoint is no longer looked at.
    let known = found.before.is_some() || latest.is_some();
    if let (Wanted::Time(t), false) = (wanted, known)
        && control.checkpoint_time.is_none_or(|c| t <= c)
    {
        return Err(refused(db, "whether it has applied anything of that moment already is not known".into())
            .hint("give the position of the first change that must not be applied; pg_waldump shows them"));
    }
    Ok(target.clone())
}

/// Writes down where its recovery ends.
async fn stay(cx: &Cx, cluster: &Cluster<'_>, left_out: &Commit, stop: Lsn) -> Result<()> {
    let before = kept_delay(cluster).await?;
    let mut settings = target::lines(Stop::Before(stop));
    settings.extend([(DELAY, Some("0".into())), ("runbook.delay", Some(before)), ("runbook.rolled", Some(left_out.lsn.to_string()))]);
    cluster.set(&settings).await?;
    if cluster.running().await? {
        // Only so that everybody sees it; where it ends is read at a start.
        let (conn, _) = admin(cx, cluster.db()).await?;
        conn.run("SELECT pg_reload_conf()").await?;
    }
    Ok(())
}

/// The delay of a standby as its folder has it, also while it was rolled forward and has none; `0` for none.
pub(super) async fn kept_delay(cluster: &Cluster<'_>) -> Result<String> {
    let kept = cluster.line(&["runbook.delay", DELAY]).await?;
    Ok(if kept.is_empty() { "0".into() } else { kept })
}

/// Lets a standby go on that was paused or rolled forward, with the delay that it had; false when there was nothing to do.
pub(super) async fn go_on(cx: &Cx, db: &Db, cluster: &Cluster<'_>, conn: &Conn) -> Result<bool> {
    let now = held(conn).await?;
    if now.rolled.is_none() {
        if now.paused {
            conn.run("SELECT pg_wal_replay_resume()").await?;
        }
        return Ok(now.paused);
    }
    // At its end a server that is told to resume would become a primary: it is started anew without one.
    let delay = kept_delay(cluster).await?;
    cluster.stop().await?;
    let mut settings = target::none();
    settings.extend([("runbook.rolled", None), ("runbook.delay", None), (DELAY, Some(delay))]);
    cluster.set(&settings).await?;
    kept::forget(cx, db)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use runbook_core::inventory::Resource;

    use super::*;

    fn commit(lsn: u64, time: &str) -> Commit {
        Commit { lsn: Lsn(lsn), xid: "7".into(), time: time.parse().unwrap(), files: vec![] }
    }

    #[test]
    fn what_is_left_out_is_beyond_doubt() {
        let db = Db {
            name: "late".into(),
            host: "h".into(),
            settings: Resource { name: "late".into(), kind: "postgresql".into(), settings: BTreeMap::new() },
        };
        let at = |t: &str| t.parse::<Timestamp>().unwrap();
        let (early, noon, late) = ("2026-11-22T11:00:00Z", "2026-11-22T12:00:00Z", "2026-11-22T13:00:00Z");
        let control = Control { checkpoint_time: Some(at(early)), ..Control::default() };
        let found = Found { target: Some(commit(200, late)), before: Some(commit(100, early)), stopped: None };
        let ask = |wanted, stands, latest, found: &Found| check(&db, wanted, &control, Lsn(stands), latest, found).map_err(|e| e.message);
        assert_eq!(ask(Wanted::Time(at(noon)), 150, None, &found).unwrap().lsn, Lsn(200));
        assert_eq!(ask(Wanted::Lsn(Lsn(120)), 150, None, &found).unwrap().lsn, Lsn(200));
        assert!(ask(Wanted::Time(at(noon)), 201, None, &found).unwrap_err().contains("has applied more than that"));
        assert!(ask(Wanted::Time(at(noon)), 150, Some(at(noon)), &found).unwrap_err().contains("has applied more than that"));
        assert!(
            ask(Wanted::Lsn(Lsn(50)), 150, None, &Found { target: Some(commit(60, noon)), before: None, stopped: None })
                .unwrap_err()
                .contains("it stands at 0/96")
        );
        let none = Found { target: None, before: Some(commit(100, early)), stopped: None };
        assert!(ask(Wanted::Time(at(noon)), 150, None, &none).unwrap_err().contains("nothing would be left out"));
        // Nothing is known of the time before: only the checkpoint tells.
        let alone = Found { target: Some(commit(200, late)), before: None, stopped: None };
        assert!(ask(Wanted::Time(at(early)), 150, None, &alone).unwrap_err().contains("is not known"));
        assert!(ask(Wanted::Time(at(noon)), 150, None, &alone).is_ok());
        assert!(ask(Wanted::Lsn(Lsn(190)), 150, None, &alone).is_ok());
    }
}
