//! The data folder on the new host: what lies there, what a copy is made in beside it, and how that takes its place.

use std::time::Duration;

use runbook_core::cancel::Cancel;
use runbook_core::primitive::Cx;
use runbook_core::units::show_bytes;
use runbook_core::{Code, Error, Result};
use serde::{Deserialize, Serialize};

use super::super::flavour::Flavour;
use super::super::host;
use super::super::state::Position;
use super::{PACKAGE, Tool};
use crate::db::driver::Db;
use crate::db::dump::job::{COMMON, Job, full};
use crate::ssh::{self, Exec, quote};

const PREPARE: &str = include_str!("prepare.sh");
/// The status of a preparation that an earlier one broke off has made impossible.
const BROKEN: i32 = 70;

/// What a copy is of; a file of its folder until it is on record in the server itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Copy {
    /// The action that made it.
    pub action: String,
    /// The primary's name in the inventory.
    pub of: String,
    /// The primary itself.
    pub source: String,
    /// The primary's position that it has.
    pub position: Position,
    /// Its size.
    pub bytes: u64,
    /// Whether the server in whose place it comes was read-only.
    pub was_read_only: bool,
    /// Whether that one's event scheduler was on.
    pub events: bool,
    /// That one's error log; empty for the journal.
    pub log: String,
}

/// What lies there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Found {
    /// The copy that is in its place and not on record yet.
    pub here: Option<Copy>,
    /// The whole stream that lies beside it.
    pub new: Option<Copy>,
    /// Whether that can be put in its place.
    pub prepared: bool,
    /// Whether anything of a copy lies beside it.
    pub beside: bool,
}

/// A data folder.
pub(super) struct Place<'a> {
    cx: &'a Cx,
    db: &'a Db,
    /// Its path.
    pub dir: String,
}

impl<'a> Place<'a> {
    /// The data folder of a database.
    pub(super) async fn of(cx: &'a Cx, db: &'a Db) -> Result<Place<'a>> {
        let dir = db.settings.str("data_dir").unwrap_or("/var/lib/mysql").trim_end_matches('/').to_string();
        let mut place = Place { cx, db, dir };
        // Between the two renames of a switch there is none.
        let dir = place.must("looking for the data folder", "readlink -f -- \"$d\" || printf '%s\\n' \"$d\"").await?;
        place.dir = dir.trim_end_matches('\n').to_string();
        Ok(place)
    }

    /// What marks the processes that work on this copy, on both hosts.
    pub(super) fn tag(&self) -> String {
        format!("{} {} {}", self.cx.env.name, self.db.name, self.dir)
    }

    fn failed(&self, why: impl std::fmt::Display) -> Error {
        Error::new(Code::DB_COPY, why.to_string()).host(&self.db.host)
    }

    async fn must_with(&self, what: &str, body: &str, stdin: Option<Vec<u8>>) -> Result<String> {
        let script = format!("d={}\n{body}", quote(&self.dir));
        let done = ssh::connect(self.cx, &self.db.host).await?.exec_again(self.cx, Exec { stdin, ..host::exec(self.db, script) }).await?;
        if done.status == 0 {
            return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&done.stderr);
        let said = said.lines().rev().take(3).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("; ");
        Err(self.failed(format!("{what} of \"{}\" failed with status {}: {said}", self.db.name, done.status)))
    }

    async fn must(&self, what: &str, body: &str) -> Result<String> {
        self.must_with(what, body, None).await
    }

    /// Looks at it and beside it.
    pub(super) async fn look(&self) -> Result<Found> {
        let body = "n=$d.runbook-new\nfor f in \"$d\" \"$n\"; do cat \"$f/runbook-copy\" 2>/dev/null; echo; done\n[ ! -e \"$n/runbook-prepared\" ] || echo prepared; [ ! -e \"$n\" ] || echo beside";
        let said = self.must("looking at the data folder", body).await?;
        let mut lines = said.split('\n');
        let mut copy = || lines.next().and_then(|l| serde_json::from_str::<Copy>(l).ok());
        let (here, new) = (copy(), copy());
        let rest: Vec<&str> = lines.collect();
        Ok(Found { prepared: new.is_some() && rest.contains(&"prepared"), beside: rest.contains(&"beside"), here, new })
    }

    /// Sees that the server on it can be stopped, replaced by a copy of `bytes`, and started.
    pub(super) async fn fit(&self, told: &str, flavour: &Flavour, bytes: u64) -> Result<Tool> {
        let way = match self.db.settings.str("control") {
            Some(program) => {
                format!("command -v {0} >/dev/null || echo {1}", quote(program), quote(&format!("way {program} (control) is no program")))
            }
            None => {
                let service = host::service(self.db);
                let why = quote(&format!("way the service {service} of systemd is not what runs it"));
                format!("systemctl is-active --quiet {} 2>/dev/null || echo {why}", quote(service))
            }
        };
        let body = format!(
            "for t in mbstream stat flock setsid; do command -v \"$t\" >/dev/null || echo \"tool $t\"; done\n\
             p=${{d%/*}}; o=$(readlink -f -- {told})\n[ \"$o\" = \"$d\" ] || echo \"data $o\"\n\
             [ \"$(stat -c %d \"$d\")\" = \"$(stat -c %d \"$p\")\" ] || echo mount\n\
             [ -w \"$p\" ] && {{ [ \"$(id -u)\" = 0 ] || [ -O \"$d\" ]; }} || echo \"user $(id -un)\"\n\
             {way}\nrm -rf \"$d.runbook-new\"\necho \"free $(df -Pk \"$p\" | awk 'NR == 2 {{ print $4 }}')\"",
            told = quote(told),
        );
        let said = self.must("looking at the data folder", &body).await?;
        let (name, dir) = (&self.db.name, &self.dir);
        let refuse = |code, why: String, hint: &str| Err(Error::new(code, why).host(&self.db.host).hint(hint));
        let mut free = 0;
        for line in said.lines() {
            match line.split_once(' ').unwrap_or((line, "")) {
                ("tool", t) => return refuse(Code::HOST_TOOL_MISSING, format!("the host of \"{name}\" has no {t}"), PACKAGE),
                ("data", o) => {
                    let why = format!("the server of \"{name}\" has its data in {o}, and not in {dir}");
                    return refuse(Code::INVENTORY_MISSING, why, "give data_dir of the database in runbook.toml");
                }
                ("mount", _) => {
                    let why = format!("{dir} of \"{name}\" is a file system of its own: no other folder can be put in its place");
                    return refuse(Code::DB_COPY, why, "give the server a folder inside of it (datadir), or replicate without a mode");
                }
                ("user", u) => {
                    let why = format!("{u} may not put another folder in the place of {dir} on the host of \"{name}\"");
                    return refuse(Code::DB_COPY, why, "set sudo = true of the database in runbook.toml");
                }
                ("way", why) => {
                    let why = format!("the server of \"{name}\" could not be stopped and started: {why}");
                    return refuse(Code::DB_COPY, why, "give service, or control, of the database in runbook.toml");
                }
                ("free", kib) => free = kib.parse::<u64>().unwrap_or(0) * 1024,
                _ => {}
            }
        }
        // The log of what is written meanwhile comes with it, and the server makes its own files anew.
        let wanted = bytes + bytes / 10 + (64 << 20);
        if free < wanted {
            let why = format!("beside {dir} of \"{name}\" {} are free, and about {} are needed", show_bytes(free), show_bytes(wanted));
            return refuse(Code::DISK_SPACE, why, "the copy is made beside what is there: make room on that file system");
        }
        Tool::find(self.cx, self.db, flavour).await
    }

    /// Puts on record what the stream that has come is of.
    pub(super) async fn came(&self, copy: &Copy) -> Result<()> {
        let json = serde_json::to_string(copy).map_err(|e| Error::internal(e.to_string()))?;
        let body = "n=$d.runbook-new; cat >\"$n/runbook-copy.new\" && sync && mv \"$n/runbook-copy.new\" \"$n/runbook-copy\" && sync";
        self.must_with("writing down what the copy is of", body, Some(json.into_bytes())).await.map(drop)
    }

    /// The position that came with the stream.
    pub(super) async fn position(&self) -> Result<Position> {
        let body = "cd \"$d.runbook-new\" && for f in mariadb_backup_binlog_info xtrabackup_binlog_info; do [ ! -e \"$f\" ] || { cat \"$f\"; exit; }; done; exit 1";
        let said = self.must("looking for the position of the copy", body).await?;
        position(&said)
            .ok_or_else(|| self.failed(format!("the copy of \"{}\" does not say of which position it is: {said:?}", self.db.name)))
    }

    /// Makes the stream a data folder, apart from the connection. `false` when it must come anew, since that was broken off.
    pub(super) async fn prepare(&self, tool: &Tool) -> Result<bool> {
        let (cx, db) = (self.cx, self.db);
        let who = |script: String| host::exec(db, script);
        let job = Job {
            host: &db.host,
            who: &who,
            dir: format!("{}.runbook-job", self.dir),
            id: format!("preparing the copy {}", cx.action_id),
            counted: "counted() { :; }".into(),
        };
        let text = format!("d={}\ntool={}\ntag={}\n{COMMON}{PREPARE}", quote(&self.dir), quote(&tool.path), quote(&self.tag()));
        cx.message(format!("\"{}\": the copy is prepared", db.name));
        let end = job.run(cx, &text, vec![], &|_, _| {}).await?;
        if end.status == Some(BROKEN) || end.status.is_none() {
            return Ok(false);
        }
        end.good(&db.host, &format!("preparing the copy for \"{}\"", db.name)).map(|_| true)
    }

    /// Puts the prepared copy in its place, on which no server runs; what is there goes aside.
    pub(super) async fn swap(&self) -> Result<()> {
        let body = "set -e; n=$d.runbook-new; o=$d.runbook-replaced\n\
            if [ -e \"$n/runbook-prepared\" ]; then\n\
            if [ -e \"$d\" ]; then rm -rf \"$o\"; mv \"$d\" \"$o\"; fi\n\
            mv \"$n\" \"$d\"; sync\nfi";
        self.must("putting the copy in place", body).await.map(drop)
    }

    /// Takes the copy's own files out of the data folder: from now on the server itself has the record.
    pub(super) async fn recorded(&self) -> Result<()> {
        let body = "cd \"$d\" && rm -f runbook-copy runbook-prepared backup-my.cnf xtrabackup_* mariadb_backup_* && sync";
        self.must("clearing up", body).await.map(drop)
    }

    /// Removes everything beside it.
    pub(super) async fn clear(&self) -> Result<()> {
        self.must("clearing up", "rm -rf \"$d.runbook-new\" \"$d.runbook-replaced\" \"$d.runbook-job\"").await.map(drop)
    }

    /// Removes what is left of a copy that failed, also when that was a stop; the next one would.
    pub(super) async fn tidy(&self) {
        let cx = Cx { cancel: Cancel::default(), ..self.cx.clone() };
        let place = Place { cx: &cx, db: self.db, dir: self.dir.clone() };
        let _ = tokio::time::timeout(Duration::from_secs(20), place.clear()).await;
    }

    /// Whether a process has the folder's files open.
    pub(super) async fn in_use(&self) -> Result<bool> {
        let body = "ls -l /proc/[0-9]*/fd 2>/dev/null | grep -cE -- \" -> $d/(ibdata1|aria_log_control)\\$\" || :";
        Ok(self.must("looking at the server", body).await?.trim() != "0")
    }

    /// What the server said last of why it does not run.
    pub(super) async fn log(&self, log: &str) -> String {
        let service = quote(host::service(self.db));
        let from = match log {
            "" => format!("journalctl -q -u {service} -n 200 -o cat --no-pager"),
            file => format!("tail -n 200 -- {}", quote(file)),
        };
        let body = format!("cd \"$d\"; {from} 2>/dev/null | grep -E 'ERROR|rror:' | tail -n 3 | cut -c 1-400");
        self.must("reading its log", &body).await.unwrap_or_default().trim().replace('\n', "; ")
    }

    /// The error of a disk that is full meanwhile.
    pub(super) fn full(&self, said: &str) -> Option<Error> {
        said.contains("No space left").then(|| full(&self.db.host, &format!("the copy for \"{}\" beside {}", self.db.name, self.dir)))
    }
}

/// Reads `file`, byte and GTIDs as the tool writes them.
fn position(text: &str) -> Option<Position> {
    let mut fields = text.trim_end_matches('\n').split('\t');
    let (file, pos) = (fields.next()?.to_string(), fields.next()?.trim().parse().ok()?);
    Some(Position { gtid: fields.next().unwrap_or("").replace(['\n', ' '], ""), file, pos })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_position_of_a_copy() {
        let p = position("bin.000001\t1829\t0-1-9,7-2-4\n").unwrap();
        assert_eq!((p.file.as_str(), p.pos, p.gtid.as_str()), ("bin.000001", 1829, "0-1-9,7-2-4"));
        assert_eq!(position("bin.000001\t330\t\n").unwrap().gtid, "");
        assert_eq!(position(""), None);
    }

    #[test]
    fn scripts_are_clean() {
        runbook_testkit::shellcheck(
            &[&format!("{COMMON}{PREPARE}"), super::super::TAKE],
            "SC2154,SC2034,SC2317,SC2046,SC2086,SC2015,SC2016",
        );
    }
}
