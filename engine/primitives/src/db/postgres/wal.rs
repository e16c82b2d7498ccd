//! The write-ahead log that a cluster has in its folder, applied or not, read on its host by the server's own tool: which transaction was
//! committed when and where. Used by what stops just before one of them.

use jiff::Timestamp;
use runbook_core::{Code, Error, Result};

use super::cluster::{Cluster, Control};
use super::state::Lsn;
use crate::ssh::quote;

const SCAN: &str = include_str!("wal.awk");

/// A commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Commit {
    /// Where its record begins.
    pub lsn: Lsn,
    /// The transaction's number.
    pub xid: String,
    /// When it was made.
    pub time: Timestamp,
    /// Files that go with it: `base/5/16384`.
    pub files: Vec<String>,
}

impl Commit {
    /// For people.
    pub(super) fn show(&self) -> String {
        format!("{} (transaction {} of {})", self.lsn, self.xid, self.time)
    }
}

/// Which commit is looked for: the first of a moment or later, or the first at a position or behind it; or the last end of a transaction,
/// also of one that was taken back or only prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// By its moment.
    Time(Timestamp),
    /// By its position.
    Lsn(Lsn),
    /// The last one of all: it comes as the one before a target that is not there.
    End,
}

/// What the log holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Found {
    /// The commit that was looked for.
    pub target: Option<Commit>,
    /// The last one before it.
    pub before: Option<Commit>,
    /// Why the tool has read no further, in its words; the end of what is there is a reason too.
    pub stopped: Option<String>,
}

/// A piece of the log, in a folder of the cluster's host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Log {
    /// The folder of the segments.
    pub folder: String,
    /// The timeline.
    pub timeline: u32,
    /// Where to begin: at a record.
    pub from: Lsn,
    /// Where it ends, and its first and last segment, when that is known. Otherwise every file there must be a whole segment.
    pub to: Option<(Lsn, String, String)>,
}

impl Log {
    /// What a cluster has in its own folder from its last checkpoint on, on the newest timeline that has it.
    ///
    /// # Errors
    /// `RB0505` when that segment is not there.
    pub(super) async fn of(cluster: &Cluster<'_>, control: &Control) -> Result<Log> {
        let script = cluster.script(&format!(
            "w={}; s=$(ls \"$d/pg_wal\" | grep -E \"^[0-9A-F]{{8}}${{w#????????}}\\$\" | sort | tail -n 1)\n\
             [ -n \"$s\" ] || {{ echo \"the segment $w is not in pg_wal\" >&2; exit 1; }}\n\
             printf '%d' \"0x${{s%????????????????}}\"",
            quote(&control.segment)
        ))?;
        let timeline = cluster.must("reading the write-ahead log", &script, None).await?.trim().parse().unwrap_or(1);
        Ok(Log { folder: format!("{}/pg_wal", cluster.data()?), timeline, from: control.redo, to: None })
    }
}

/// The moment as the tool writes it.
fn written(t: Timestamp) -> String {
    t.to_zoned(jiff::tz::TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S%.6f").to_string()
}

fn commit(fields: &[&str]) -> Option<Commit> {
    let [lsn, xid, time, rest @ ..] = fields else { return None };
    let time = time.parse::<jiff::civil::DateTime>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
    let files = rest.first().map(|f| f.split_whitespace().map(str::to_string).collect()).unwrap_or_default();
    Some(Commit { lsn: Lsn::parse(lsn)?, xid: (*xid).to_string(), time, files })
}

/// What the script has printed: what was found, and the tool's exit status.
fn parse(text: &str) -> Option<(Found, u32)> {
    let mut found = Found::default();
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        match fields.split_first()? {
            (&"target", rest) => found.target = Some(commit(rest)?),
            (&"before", rest) => found.before = Some(commit(rest)?),
            (&"end", rest) => return Some((found, rest.first()?.parse().ok()?)),
            _ => return None,
        }
    }
    None
}

/// Reads a piece of the log.
///
/// # Errors
/// `RB0322` when the host lacks the tool; `RB0512` when the log cannot be read.
pub(super) async fn scan(cluster: &Cluster<'_>, log: &Log, wanted: Wanted) -> Result<Found> {
    let (mode, want) = match wanted {
        Wanted::Time(t) => ("time", written(t)),
        Wanted::Lsn(l) => ("lsn", format!("{:016X}", l.0)),
        Wanted::End => ("end", String::new()),
    };
    // The tool ends with an error where the log ends.
    let script = cluster.script(&format!(
        "command -v pg_waldump >/dev/null || exit 97\nexport TZ=UTC\n\
         {{ pg_waldump --rmgr=Transaction -p {} -t {} -s {} {}; echo status $?; }} | awk -v mode={mode} -v want={} {}",
        quote(&log.folder),
        log.timeline,
        log.from,
        log.to.as_ref().map_or(String::new(), |(to, first, last)| format!("-e {to} {first} {last}")),
        quote(&want),
        quote(SCAN)
    ))?;
    let done = cluster.sh(&script, None, None).await?;
    let db = cluster.db();
    if done.status == 97 {
        return Err(Error::new(Code::HOST_TOOL_MISSING, "the host has no pg_waldump")
            .host(&db.host)
            .hint("it comes with the PostgreSQL server; name the folder of its programs with bin in runbook.toml"));
    }
    let found = if done.status == 0 { parse(&String::from_utf8_lossy(&done.stdout)) } else { None };
    let said = String::from_utf8_lossy(&done.stderr).trim().to_string();
    let failed =
        |why: String| Error::new(Code::DB_POSITION, format!("the write-ahead log of \"{}\" cannot be read: {why}", db.name)).host(&db.host);
    match found {
        // How far it came says nothing of how far the log goes.
        Some((_, status)) if status > 128 => {
            Err(failed(format!("pg_waldump was killed (status {status})")).hint("has the host too little memory?").retryable(true))
        }
        Some((found, 0)) => Ok(found),
        Some((found, status)) => {
            let last = said.lines().last().map(|l| l.trim_start_matches("pg_waldump: ").trim_start_matches("error: ").to_string());
            Ok(Found { stopped: Some(last.unwrap_or_else(|| format!("pg_waldump ended with status {status}"))), ..found })
        }
        None => Err(failed(said)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const SAID: &str = "\
rmgr: Transaction len (rec/tot):     34/    34, tx:        725, lsn: 0/03002118, prev 0/030020D8, desc: COMMIT 2026-11-22 04:14:39.775376 UTC
rmgr: Transaction len (rec/tot):     34/    34, tx:        726, lsn: 0/03002200, prev 0/030020D8, desc: ABORT 2026-11-22 04:14:39.875376 UTC
rmgr: Transaction len (rec/tot):   1701/  1701, tx:        727, lsn: 0/0300ECD0, prev 0/0300EC98, desc: COMMIT 2026-11-22 04:14:40.833120 UTC; rels: base/5/16385 base/5/16384; dropped stats: 2/5/16391; inval msgs: catcache 32
rmgr: Transaction len (rec/tot):     66/    66, tx:          0, lsn: 1/00000010, prev 0/030113B0, desc: COMMIT_PREPARED 728: 2026-11-22 04:14:41.000000 UTC
";
    const MORE: &str = "\
rmgr: Transaction len (rec/tot):     34/    34, tx:        729, lsn: 1/00000050, prev 1/00000010, desc: INVALIDATION ; inval msgs: catcache 32
rmgr: Transaction len (rec/tot):    210/   210, tx:        730, lsn: 1/00000090, prev 1/00000050, desc: PREPARE gid two phases: 2026-11-22 04:15:00.000000 UTC
";

    fn read(mode: &str, want: &str) -> Found {
        parse(&run(mode, want, SAID)).unwrap().0
    }

    fn run(mode: &str, want: &str, said: &str) -> String {
        let mut awk = std::process::Command::new("awk")
            .args(["-v", &format!("mode={mode}"), "-v", &format!("want={want}"), SCAN])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // It may have read enough before the end.
        let _ = awk.stdin.take().unwrap().write_all(said.as_bytes());
        String::from_utf8_lossy(&awk.wait_with_output().unwrap().stdout).into_owned()
    }

    #[test]
    fn the_first_commit_of_a_moment_or_a_position() {
        let at = |t: &str| written(t.parse().unwrap());
        let ids = |f: &Found| [&f.before, &f.target].map(|c| c.as_ref().map_or("-".to_string(), |c| c.xid.clone())).join(" ");
        assert_eq!(ids(&read("time", &at("2026-11-22T04:14:39Z"))), "- 725");
        assert_eq!(ids(&read("time", &at("2026-11-22T04:14:39.775376Z"))), "- 725");
        assert_eq!(ids(&read("time", &at("2026-11-22T04:14:39.775377Z"))), "725 727");
        assert_eq!(ids(&read("time", &at("2026-11-22T05:14:41+01:00"))), "727 728");
        assert_eq!(ids(&read("time", &at("2026-11-22T05:00:00Z"))), "728 -");
        let lsn = |l: &str| format!("{:016X}", Lsn::parse(l).unwrap().0);
        assert_eq!(ids(&read("lsn", &lsn("0/3002118"))), "- 725");
        assert_eq!(ids(&read("lsn", &lsn("0/3002119"))), "725 727");
        assert_eq!(ids(&read("lsn", &lsn("0/FFFFFFFF"))), "727 728");
        let found = read("lsn", &lsn("0/300ECD0"));
        let target = found.target.unwrap();
        assert_eq!(target.files, ["base/5/16385", "base/5/16384"]);
        assert_eq!(target.show(), "0/300ECD0 (transaction 727 of 2026-11-22T04:14:40.83312Z)");
    }

    #[test]
    fn the_last_end_of_a_transaction_and_whether_the_tool_got_so_far() {
        let read = |said: &str| parse(&run("end", "", said)).unwrap();
        let found = read(&format!("{SAID}status 0\n"));
        assert_eq!((found.0.before.unwrap().xid.as_str(), found.0.target, found.1), ("728", None, 0));
        // What was prepared is there to be committed later on.
        let found = read(&format!("{SAID}{MORE}status 0\n"));
        assert_eq!(found.0.before.unwrap().show(), "1/90 (transaction 730 of 2026-11-22T04:15:00Z)");
        let aborted: String = SAID.lines().take(2).collect::<Vec<_>>().join("\n");
        assert_eq!(read(&format!("{aborted}\nstatus 0\n")).0.before.unwrap().xid, "726");
        assert_eq!(read("status 0\n"), (Found::default(), 0));
        assert_eq!(read(&format!("{SAID}status 137\n")).1, 137);
        assert_eq!(read(SAID).1, 255);
    }

    #[test]
    fn what_is_cut_off_is_not_taken_for_an_answer() {
        assert_eq!(parse("before\t0/1\t7\t2026-11-22 04:14:40.0"), None);
        assert_eq!(parse("end"), None);
        assert_eq!(parse("end\t0"), Some((Found::default(), 0)));
        assert_eq!(parse("target\tx\t7\t2026-11-22 04:14:40.0\nend\t0"), None);
    }
}
