//! The relay log of a replica: what it has received of its primary, applied or not. Read on its host by the server's own tool, so that
//! the primary is not needed, and so that every group of events is known with its moment, which no statement of the server tells.

use jiff::Timestamp;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::connect::{Sess, get};
use super::host;
use super::sql::text;
use crate::db::driver::Db;
use crate::ssh::{self, quote};

const SCAN: &str = include_str!("relay.awk");

/// A transaction, or a statement that is one by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Whether the replica has applied it.
    pub applied: bool,
    /// The relay log's file.
    pub file: String,
    /// The byte in it at which it begins.
    pub at: u64,
    /// When it was made, in whole seconds.
    pub time: Timestamp,
    /// Its GTID; empty where there are none.
    pub gtid: String,
    /// File and byte of the primary's log at which it begins, `file:byte`.
    pub place: String,
}

impl Group {
    /// Its position for people.
    pub fn show(&self) -> &str {
        if self.gtid.is_empty() { &self.place } else { &self.gtid }
    }
}

/// Which group is looked for: the first of a moment or later, one with a GTID, one at a place of the primary's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// By its moment.
    Time(Timestamp),
    /// By its GTID.
    Gtid(String),
    /// By file and byte of the primary's log.
    Place(String, u64),
}

impl Wanted {
    /// Reads a position: a GTID of either dialect, or `file:byte`.
    pub fn position(text: &str) -> Result<Wanted> {
        let number = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
        let parts: Vec<&str> = text.split('-').collect();
        if parts.len() == 3 && parts.iter().all(|p| number(p)) {
            return Ok(Wanted::Gtid(text.to_string()));
        }
        if let Some((before, n)) = text.rsplit_once(':')
            && number(n)
            && !before.is_empty()
            && before.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        {
            let uuid = before.len() == 36 && before.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
            return match n.parse() {
                _ if uuid => Ok(Wanted::Gtid(text.to_string())),
                Ok(n) => Ok(Wanted::Place(before.to_string(), n)),
                Err(_) => Err(malformed(text)),
            };
        }
        Err(malformed(text))
    }
}

fn malformed(text: &str) -> Error {
    Error::new(Code::DB_POSITION, format!("\"{text}\" is no position of a MariaDB or MySQL server"))
        .hint("give one GTID (0-1-4711), file and byte of the primary's log (mysql-bin.000007:1532), or a moment (2026-11-21T14:03:00Z)")
}

/// What the relay log holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// The group that was looked for.
    pub target: Option<Group>,
    /// The last one that is known to be applied.
    pub applied: Option<Group>,
    /// The newest one.
    pub newest: Option<Group>,
    /// Whether the target is the first group that is known.
    pub first: bool,
}

/// Reads the relay log, from just before what was applied last, without `skip`: what looks like a group and is none.
///
/// # Errors
/// `RB0512` when it cannot be read, `RB0322` when the host lacks the tool.
pub async fn scan(cx: &Cx, db: &Db, s: &mut Sess, file: &str, pos: u64, wanted: &Wanted, skip: &[Group]) -> Result<Found> {
    let data = s.variable("datadir").await?.unwrap_or_default();
    let base = file.rsplit_once('.').map_or(file, |(b, _)| b);
    let index = match s.variable("relay_log_index").await?.filter(|i| !i.is_empty()) {
        Some(i) if i.starts_with('/') => i,
        Some(i) => format!("{}/{i}", data.trim_end_matches('/')),
        None => format!("{}/{base}.index", data.trim_end_matches('/')),
    };
    let (mode, want, place) = match wanted {
        Wanted::Time(t) => ("time", digits(*t), ""),
        Wanted::Gtid(g) => ("gtid", g.clone(), ""),
        Wanted::Place(f, n) => ("place", n.to_string(), f.as_str()),
    };
    // One file before the one that is being applied: it tells what was applied last.
    let script = format!(
        "export LC_ALL=C TZ=UTC\nb=; for n in mariadb-binlog mysqlbinlog; do b=$(command -v \"$n\") && break; done\n\
         [ -n \"$b\" ] || {{ echo 'neither mariadb-binlog nor mysqlbinlog is there' >&2; exit 127; }}\n\
         cd {data} && l=$(cat {index}) || exit 3\n\
         {{ p=; on=; printf '%s\\n' \"$l\" | {{ while IFS= read -r f; do\n\
         if [ -z \"$on\" ]; then [ \"${{f##*/}}\" = {file} ] || {{ p=$f; continue; }}; on=1; else p=; fi\n\
         for f in \"$p\" \"$f\"; do [ -n \"$f\" ] || continue; printf '@@ %s\\n' \"${{f##*/}}\"; \"$b\" --no-defaults --base64-output=decode-rows \"$f\" || exit 4; done\n\
         done; [ -n \"$on\" ] && echo '@@@ END'; }}; }} | awk -v mode={mode} -v want={want} -v wantfile={place} -v curfile={file} -v curpos={pos} -v base={base} -v skip={skip} {scan}",
        data = quote(&data),
        index = quote(&index),
        file = quote(file),
        want = quote(&want),
        place = quote(place),
        base = quote(base),
        skip = quote(&skip.iter().map(|g| format!(" {}:{} ", g.file, g.at)).collect::<String>()),
        scan = quote(SCAN),
    );
    let done = ssh::connect(cx, &db.host).await?.exec_again(cx, host::exec(db, script)).await?;
    let said = String::from_utf8_lossy(&done.stderr).trim().to_string();
    if done.status == 127 {
        return Err(Error::new(Code::HOST_TOOL_MISSING, format!("the relay log of \"{}\" cannot be read: {said}", db.name))
            .host(&db.host)
            .hint("install the client programs of the server there (Debian: mariadb-client)"));
    }
    if done.status != 0 {
        return Err(Error::new(Code::DB_POSITION, format!("the relay log of \"{}\" cannot be read: {said}", db.name)).host(&db.host).hint(
            "its files must be readable for the login, or for root with sudo = true of the database; encrypted ones cannot be read",
        ));
    }
    parse(&String::from_utf8_lossy(&done.stdout)).ok_or_else(|| Error::internal("the relay log's scan cannot be understood").host(&db.host))
}

/// A moment as the scan compares it.
fn digits(t: Timestamp) -> String {
    t.strftime("%Y%m%d%H%M%S").to_string()
}

fn parse(out: &str) -> Option<Found> {
    let mut found = Found::default();
    let mut whole = false;
    for line in out.lines() {
        let mut f = line.split('\t');
        match f.next()? {
            "count" => (whole, found.first) = (true, f.nth(1)? == "1"),
            "target" => found.target = Some(group(f)?),
            "applied" => found.applied = Some(group(f)?),
            "newest" => found.newest = Some(group(f)?),
            _ => return None,
        }
    }
    whole.then_some(found)
}

fn group<'a>(mut f: impl Iterator<Item = &'a str>) -> Option<Group> {
    let (applied, file, at, when) = (f.next()? == "1", f.next()?.to_string(), f.next()?.parse().ok()?, f.next()?);
    let (gtid, src, start) = (f.next()?.to_string(), f.next()?, f.next()?);
    let part = |a: usize, b: usize| when.get(a..b);
    let time = format!("{}-{}-{}T{}:{}:{}Z", part(0, 4)?, part(4, 6)?, part(6, 8)?, part(8, 10)?, part(10, 12)?, part(12, 14)?);
    Some(Group { applied, file, at, time: time.parse().ok()?, gtid, place: format!("{src}:{start}") })
}

/// What a group does, as the server itself reads it there; `None` when no group begins there.
pub async fn statement(s: &mut Sess, g: &Group) -> Result<Option<String>> {
    let rows = s.rows(format!("SHOW RELAYLOG EVENTS IN {} FROM {} LIMIT 6", text(&g.file), g.at)).await?;
    let kind = |i: usize| rows.get(i).map_or("", |r| get(r, "event_type")).to_lowercase();
    if rows.first().is_none_or(|r| get(r, "pos") != g.at.to_string()) || !kind(0).contains("gtid") {
        return Ok(None);
    }
    let mut what = None;
    for (i, row) in rows.iter().enumerate().skip(1) {
        let (kind, info) = (kind(i), get(row, "info"));
        if kind.contains("gtid") {
            break;
        }
        match kind.as_str() {
            "annotate_rows" | "rows_query" | "query" | "query_compressed" if !info.eq_ignore_ascii_case("begin") => {
                what = Some(info.to_string())
            }
            "table_map" if what.is_none() => {
                what = Some(format!("rows of {}", info.split_once('(').map_or(info, |(_, t)| t.trim_end_matches(')'))))
            }
            _ => continue,
        }
        break;
    }
    let what = what.unwrap_or_default();
    Ok(Some(what.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_of_both_dialects() {
        assert_eq!(Wanted::position("0-1-4711").unwrap(), Wanted::Gtid("0-1-4711".into()));
        assert_eq!(Wanted::position("mysql-bin.000007:1532").unwrap(), Wanted::Place("mysql-bin.000007".into(), 1532));
        let uuid = "3e11fa47-71ca-11e1-9e33-c80aa9429562:23";
        assert_eq!(Wanted::position(uuid).unwrap(), Wanted::Gtid(uuid.into()));
        for bad in ["yesterday", "0-1", "0-1-4711,1-1-5", "bin.1:", ":5", "bin 1:5", "a:99999999999999999999", "0-1-x"] {
            assert_eq!(Wanted::position(bad).unwrap_err().code, Code::DB_POSITION, "{bad}");
        }
    }

    const LOG: &str = "@@ r.000001\n# at 4\n#261121 15:03:34 server id 2  end_log_pos 256 CRC32 0x6638e49a \tStart: binlog v 4\n@@ r.000002\n# at 256\n\
        #700101  0:00:00 server id 1  end_log_pos 0 CRC32 0xa5828f73 \tRotate to bin.000001  pos: 4\n# at 615\n\
        #261121  9:03:34 server id 1  end_log_pos 364 CRC32 0xe823190b \tGTID 0-1-1 ddl\n/*!100101 SET @@session.gtid_seq_no=1*//*!*/;\n# at 657\n\
        #261121  9:03:34 server id 1  end_log_pos 462 CRC32 0xd975fa90 \tQuery\tthread_id=4\n# at 755\n\
        #261121 15:03:36 server id 1  end_log_pos 960 CRC32 0xa3f692a6 \tGTID 0-1-2 trans\n# at 797\n\
        #261121 15:03:36 server id 1  end_log_pos 1083 CRC32 0x9 \tXid = 18\n@@ r.000003\n# at 256\n\
        #261121 15:03:39 server id 1  end_log_pos 0 CRC32 0x92eb0755 \tRotate to bin.000002  pos: 4\n# at 666\n\
        #261121 15:03:39 server id 1  end_log_pos 415 CRC32 0xd68d9d21 \tGTID 0-1-3 ddl\n# at 708\n\
        #261121 15:03:39 server id 1  end_log_pos 700 CRC32 0x8f89d433 \tQuery\tthread_id=9\n";

    fn awk(mode: &str, want: &str, file: &str, end: &str) -> Option<Found> {
        use std::io::Write as _;
        let mut c = std::process::Command::new("awk")
            .args(["-v", &format!("mode={mode}"), "-v", &format!("want={want}"), "-v", &format!("wantfile={file}")])
            .args(["-v", "curfile=r.000002", "-v", "curpos=755", "-v", "base=r", SCAN])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        c.stdin.take().unwrap().write_all(format!("{LOG}{end}").as_bytes()).unwrap();
        let out = c.wait_with_output().unwrap();
        out.status.success().then(|| parse(&String::from_utf8(out.stdout).unwrap()).unwrap())
    }

    #[test]
    fn groups_are_found_by_moment_gtid_and_place() {
        let end = "@@@ END\n";
        let f = awk("time", "20261121150336", "", end).unwrap();
        let t = f.target.unwrap();
        assert_eq!((t.gtid.as_str(), t.at, t.applied, t.place.as_str()), ("0-1-2", 755, false, "bin.000001:918"));
        assert_eq!((f.applied.unwrap().gtid.as_str(), f.newest.unwrap().gtid.as_str(), f.first), ("0-1-1", "0-1-3", false));
        assert!(awk("time", "20261121090000", "", end).unwrap().target.unwrap().applied);
        assert_eq!(awk("time", "20261121150340", "", end).unwrap().target, None);
        assert_eq!(awk("gtid", "0-1-3", "", end).unwrap().target.unwrap().place, "bin.000002:373");
        assert_eq!(awk("place", "373", "bin.000002", end).unwrap().target.unwrap().gtid, "0-1-3");
        assert_eq!(awk("place", "373", "bin.000001", end).unwrap().target, None);
    }

    #[test]
    fn a_scan_that_broke_off_says_nothing() {
        assert_eq!(awk("gtid", "0-1-3", "", ""), None);
    }
}
