//! How replication stands: `SHOW ALL SLAVES STATUS` and its like, read into one form.

use std::collections::BTreeMap;
use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::{Result, Value};

use super::connect::{Named, Sess, get, server, session};
use super::flavour::Flavour;
use super::{fence, state};
use crate::db::driver::{Caught, Db, Fence, ReplicationError, Status};

/// One stream of replication into a server.
#[derive(Debug, Clone, Default)]
pub struct Stream {
    row: Named,
}

impl Stream {
    /// A field by MariaDB's name, or by the one that MySQL has now.
    fn field(&self, name: &str) -> &str {
        let old = get(&self.row, name);
        if !old.is_empty() {
            return old;
        }
        self.row.get(&name.replace("master", "source").replace("slave", "replica")).and_then(Option::as_deref).unwrap_or("")
    }

    /// Host and port of its primary.
    pub fn source(&self) -> String {
        format!("{}:{}", self.field("master_host"), self.field("master_port"))
    }

    /// Whether both of its threads run, or the first one tries to connect.
    pub fn running(&self) -> bool {
        self.sql() && self.io() != "No"
    }

    /// Whether it runs and is connected.
    pub fn connected(&self) -> bool {
        self.sql() && self.io() == "Yes"
    }

    /// By how many seconds it lags on purpose.
    pub fn delay(&self) -> u64 {
        self.field("sql_delay").parse().unwrap_or(0)
    }

    /// Whether its primary sends to it.
    pub fn receiving(&self) -> bool {
        self.io() == "Yes"
    }

    /// Whether it applies what it receives.
    pub fn applying(&self) -> bool {
        self.sql()
    }

    /// File and byte of its relay log up to which it has applied.
    pub fn relay(&self) -> (String, u64) {
        (self.field("relay_log_file").to_string(), self.field("relay_log_pos").parse().unwrap_or(0))
    }

    fn sql(&self) -> bool {
        self.field("slave_sql_running") == "Yes"
    }

    fn io(&self) -> &str {
        self.field("slave_io_running")
    }

    /// Why it has stopped for good.
    pub fn error(&self) -> Option<ReplicationError> {
        self.applying_error().or_else(|| self.last("io").filter(|_| self.io() == "No"))
    }

    /// Why it no longer applies what it has, whether or not it still receives.
    pub fn applying_error(&self) -> Option<ReplicationError> {
        self.last("sql").filter(|_| !self.sql())
    }

    fn last(&self, thread: &str) -> Option<ReplicationError> {
        let (code, text) = (self.field(&format!("last_{thread}_errno")), self.field(&format!("last_{thread}_error")));
        (!matches!(code, "" | "0")).then(|| ReplicationError { code: code.into(), text: text.into() })
    }

    /// Why it cannot connect, though it goes on trying.
    pub fn trouble(&self) -> Option<ReplicationError> {
        self.last("io").filter(|_| self.io() != "Yes")
    }

    /// Seconds behind, as the server reckons them.
    fn lag(&self) -> Option<Duration> {
        self.field("seconds_behind_master").parse().ok().map(Duration::from_secs)
    }

    /// File and byte of the primary's log that were applied last.
    pub fn applied(&self) -> (String, u64) {
        (self.field("relay_master_log_file").to_string(), self.field("exec_master_log_pos").parse().unwrap_or(0))
    }
}

/// The streams of replication into a server.
pub async fn read(s: &mut Sess, flavour: &Flavour) -> Result<Vec<Stream>> {
    Ok(s.rows(flavour.show_replica()).await?.into_iter().map(|row| Stream { row }).collect())
}

/// The usual stream of replication into a server, as opposed to those with names.
pub async fn usual(s: &mut Sess, flavour: &Flavour) -> Result<Option<Stream>> {
    Ok(read(s, flavour).await?.into_iter().find(|s| s.field("connection_name").is_empty()))
}

/// The sequence numbers of MariaDB's GTIDs by domain.
pub fn sequences(gtids: &str) -> BTreeMap<u64, u64> {
    gtids
        .split(',')
        .filter_map(|g| {
            let mut parts = g.trim().split('-');
            let domain = parts.next()?.parse().ok()?;
            let seq = parts.nth(1)?.parse().ok()?;
            Some((domain, seq))
        })
        .collect()
}

/// How many transactions `have` lacks of `want`, by MariaDB's GTIDs.
pub fn lacking(want: &str, have: &str) -> u64 {
    let have = sequences(have);
    sequences(want).into_iter().map(|(d, seq)| seq.saturating_sub(have.get(&d).copied().unwrap_or(0))).sum()
}

/// Whether what was applied, by MariaDB's GTIDs, has this one.
pub fn holds(have: &str, gtid: &str) -> bool {
    sequences(gtid).into_iter().next().is_some_and(|(d, seq)| sequences(have).get(&d).is_some_and(|h| *h >= seq))
}

pub async fn status(cx: &Cx, db: &Db) -> Result<Status> {
    let at = server(cx, db).await?;
    let mut s = session(cx, db).await?;
    let streams = read(&mut s, &at.flavour).await?;
    let marks = state::read(&mut s).await?;
    let replicas = s.int("SELECT COUNT(*) FROM information_schema.processlist WHERE command LIKE 'Binlog Dump%'").await?;
    let read_only = s.is_on("read_only").await?;
    let applied = if at.flavour.maria {
        s.text("SELECT @@gtid_slave_pos").await?.unwrap_or_default()
    } else {
        super::data::position(&mut s, false).await?
    };
    let own = state::position(&mut s, &at.flavour).await?;
    s.close().await;
    let mut detail: BTreeMap<String, Value> = BTreeMap::from([
        ("replicas".to_string(), Value::Int(replicas)),
        ("binlog".to_string(), fence::show(&own).into()),
        ("fence".to_string(), marks.fence.as_ref().map(|f| f.id.clone()).into()),
        ("handed_to".to_string(), marks.fence.as_ref().and_then(|f| f.handed_to.clone()).into()),
        ("promoted".to_string(), marks.promoted.is_some().into()),
        ("copy_of".to_string(), marks.replica.as_ref().map(|r| r.of.clone()).into()),
    ]);
    // Of several streams the one that has trouble, or lags most, is the one to know of.
    let worst = streams.iter().max_by_key(|r| (r.error().is_some(), !r.connected(), r.lag()));
    let Some(r) = worst else {
        let role = if replicas > 0 { "primary" } else { "alone" };
        return Ok(Status {
            role: role.into(),
            read_only,
            position: own.gtid.clone(),
            behind_unit: "transactions",
            detail,
            ..Status::default()
        });
    };
    for (k, v) in &r.row {
        if let Some(v) = v.as_ref().filter(|v| !v.is_empty()) {
            detail.insert(k.clone(), v.parse().map_or_else(|_| Value::from(v.as_str()), Value::Int));
        }
    }
    detail.insert("streams".into(), Value::Int(i64::try_from(streams.len()).unwrap_or(0)));
    let received = r.field("gtid_io_pos");
    let behind = (at.flavour.maria && !received.is_empty()).then(|| lacking(received, &applied));
    Ok(Status {
        role: "replica".into(),
        source: Some(r.source()),
        running: r.connected(),
        lag: r.lag(),
        behind,
        behind_unit: "transactions",
        read_only,
        position: if applied.is_empty() {
            let (f, p) = r.applied();
            format!("{f}:{p}")
        } else {
            applied
        },
        error: r.error().or_else(|| r.trouble()),
        detail,
    })
}

/// How long the server itself is let wait for a position before the stream is looked at again.
const WAIT: f32 = 0.2;

/// Whether the replica has everything that the fence stands for.
pub async fn caught_up(cx: &Cx, db: &Db, f: &Fence) -> Result<Caught> {
    let at = server(cx, db).await?;
    let mut s = session(cx, db).await?;
    let marks = state::read(&mut s).await?;
    let want = fence::position(f);
    let behind = |missing: String, may_pass: bool| Ok(Caught::Behind { missing, may_pass });
    if marks.promoted.as_ref().is_some_and(|p| p.fence == f.id) {
        return Ok(Caught::Up);
    }
    if let Some(c) = marks.copy.as_ref().filter(|_| marks.replica.is_none()) {
        return if c.whole && c.position == want {
            Ok(Caught::Up)
        } else {
            behind(format!("it is a copy of {}, and the fence stands at {}", fence::show(&c.position), fence::show(&want)), false)
        };
    }
    let Some(mark) = marks.replica.filter(|r| r.of == f.database) else {
        return behind(format!("it is no replica of \"{}\"", f.database), false);
    };
    let Some(r) = usual(&mut s, &at.flavour).await? else {
        // Stopped on purpose, or by a promotion that went no further: where it stands is on record.
        let up = mark.phase == state::Phase::Copied && passed(&mut s, &at.flavour, &mark, &want).await?;
        s.close().await;
        return if up { Ok(Caught::Up) } else { behind("it does not replicate".into(), false) };
    };
    if let Some(e) = r.error() {
        return Err(e.stopped(db));
    }
    if reached(&mut s, &at.flavour, &mark, &want, WAIT).await? {
        s.close().await;
        return Ok(Caught::Up);
    }
    let now = usual(&mut s, &at.flavour).await?;
    let here = if at.flavour.maria { s.text("SELECT @@gtid_slave_pos").await?.unwrap_or_default() } else { String::new() };
    s.close().await;
    let Some(r) = now else { return behind("it does not replicate".into(), false) };
    if let Some(e) = r.error() {
        return Err(e.stopped(db));
    }
    let late = match r.delay() {
        0 => String::new(),
        n => format!("; it lags by {n} s on purpose: set_delay(\"0s\") ends that"),
    };
    let trouble = r.trouble().map_or(String::new(), |t| format!("; it cannot reach its primary: {}", t.text));
    let (file, pos) = r.applied();
    if !r.running() {
        return behind(format!("replication is stopped at {file}:{pos}"), false);
    }
    let missing = if at.flavour.maria && mark.gtid {
        format!("{} transactions ({here} of {})", lacking(&want.gtid, &here), want.gtid)
    } else {
        format!("it is at {file}:{pos} of {}:{}", want.file, want.pos)
    };
    behind(format!("{missing}{late}{trouble}"), true)
}

/// Whether a replica that does not replicate any more stands at a position or behind it.
async fn passed(s: &mut Sess, flavour: &Flavour, mark: &state::ReplicaMark, want: &state::Position) -> Result<bool> {
    let has = &mark.position;
    Ok(match (mark.gtid && !want.gtid.is_empty(), flavour.maria) {
        (true, true) => lacking(&want.gtid, &has.gtid) == 0,
        (true, false) => {
            let subset = format!("SELECT GTID_SUBSET({}, {})", super::sql::text(&want.gtid), super::sql::text(&has.gtid));
            s.text(subset).await?.is_some_and(|a| a == "1")
        }
        (false, _) => has.file == want.file && has.pos >= want.pos,
    })
}

/// Whether the replica has applied everything up to a position; waits for it a little.
pub async fn reached(s: &mut Sess, flavour: &Flavour, mark: &state::ReplicaMark, want: &state::Position, wait: f32) -> Result<bool> {
    use super::sql::text;
    let by_gtid = mark.gtid && !want.gtid.is_empty();
    let answer = match (by_gtid, flavour.maria) {
        (true, true) => s.text(format!("SELECT MASTER_GTID_WAIT({}, {wait})", text(&want.gtid))).await?.is_some_and(|a| a == "0"),
        // The function counts whole seconds, and 0 means for ever.
        (true, false) => s
            .text(format!("SELECT WAIT_FOR_EXECUTED_GTID_SET({}, {})", text(&want.gtid), wait.max(1.0).ceil()))
            .await?
            .is_some_and(|a| a == "0"),
        (false, _) => {
            let function = if flavour.maria || flavour.version < (8, 0, 26) { "MASTER_POS_WAIT" } else { "SOURCE_POS_WAIT" };
            s.text(format!("SELECT {function}({}, {}, {})", text(&want.file), want.pos, wait.max(1.0).ceil()))
                .await?
                .and_then(|a| a.parse::<i64>().ok())
                .is_some_and(|n| n >= 0)
        }
    };
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_counted_by_domain() {
        assert_eq!(lacking("0-1-100,1-1-7", "0-2-90"), 17);
        assert_eq!(lacking("0-1-100", "0-1-100,5-5-5"), 0);
        assert_eq!(lacking("", "0-1-1"), 0);
        assert!(holds("1-1-5,0-1-9", "0-2-9") && !holds("0-1-8", "0-1-9") && !holds("0-1-9", "2-1-1") && !holds("0-1-9", ""));
    }

    #[test]
    fn a_stream_that_has_stopped_says_why_and_one_that_reconnects_goes_on() {
        let row = |pairs: &[(&str, &str)]| Stream { row: pairs.iter().map(|(k, v)| ((*k).to_string(), Some((*v).to_string()))).collect() };
        let stopped = row(&[
            ("slave_io_running", "Yes"),
            ("slave_sql_running", "No"),
            ("last_sql_errno", "1062"),
            ("last_sql_error", "Duplicate entry"),
        ]);
        assert_eq!(stopped.error().unwrap().text, "Duplicate entry");
        let away = row(&[
            ("replica_io_running", "Connecting"),
            ("replica_sql_running", "Yes"),
            ("last_io_errno", "2003"),
            ("last_io_error", "cannot connect"),
        ]);
        assert!(away.error().is_none() && away.running() && !away.connected());
        assert_eq!(away.trouble().unwrap().code, "2003");
    }
}
