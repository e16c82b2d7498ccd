//! The cluster on its host: its data folder, its programs, starting and stopping it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result, Value};

use super::client::Conn;
use super::data::admin;
use super::dump::make_folder;
use super::state::{Lsn, Node};
use super::{kept, settings};
use crate::db::driver::Db;
use crate::ssh::{self, Done, Exec, Session, quote};

/// What to do about a server that ends by itself.
const LOOK: &str = "look at the server's log on the host; resume when that is mended";

/// A cluster, through its host's shell.
pub(super) struct Cluster<'a> {
    cx: &'a Cx,
    db: &'a Db,
    session: Session,
}

/// What lies in the place of the data folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Data {
    /// Nothing, or an empty folder.
    Empty,
    /// A cluster.
    Cluster(Box<Control>),
    /// Something that is no cluster.
    Foreign,
}

/// What `pg_controldata` says of a cluster, and what lies in its folder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Control {
    /// Its identity.
    pub system: String,
    /// `in production`, `shut down`, `in archive recovery` and so on.
    pub state: String,
    /// Where its last checkpoint is.
    pub checkpoint: Lsn,
    /// Where it begins again after a crash.
    pub redo: Lsn,
    /// The segment of the log in which that is.
    pub segment: String,
    /// When the last checkpoint was made, on the primary.
    pub checkpoint_time: Option<Timestamp>,
    /// How far it must go before it can be read.
    pub consistent: Lsn,
    /// Whether `pg_rewind` can work on it.
    pub can_rewind: bool,
    /// Whether it is a standby when it starts.
    pub standby: bool,
    /// Whether a server runs on it.
    pub running: bool,
}

/// A time in UTC as the programs write it: `Sat Nov 21 14:03:00 2026`.
fn moment(text: &str) -> Option<Timestamp> {
    let at = jiff::civil::DateTime::strptime("%a %b %e %H:%M:%S %Y", text).ok()?;
    Some(at.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

impl Cluster<'_> {
    /// The cluster of a database.
    ///
    /// # Errors
    /// `RB0300`–`RB0305`.
    pub(super) async fn of<'a>(cx: &'a Cx, db: &'a Db) -> Result<Cluster<'a>> {
        Ok(Cluster { cx, db, session: ssh::connect(cx, &db.host).await? })
    }

    /// Whose it is.
    pub(super) fn db(&self) -> &Db {
        self.db
    }

    /// A command as the user to whom the cluster belongs.
    pub(super) fn as_owner(&self, script: &str) -> Exec {
        let user = settings::os_user(self.db);
        let login = self.session.login();
        if login == user {
            Exec::new(script)
        } else if login == "root" {
            // Where there is no sudo, root needs none.
            Exec::new(format!("cd /; exec runuser -u {} -- sh -c {}", quote(user), quote(script)))
        } else {
            Exec { sudo: true, user: Some(user.to_string()), ..Exec::new(format!("cd /; {script}")) }
        }
    }

    /// Makes a folder for the user to whom the cluster belongs, unless it is there.
    ///
    /// # Errors
    /// `RB0505` when it cannot be made.
    pub(super) async fn make_folder(&self, path: &str) -> Result<()> {
        let (user, login) = (settings::os_user(self.db), self.session.login());
        make_folder(self.cx, self.db, path, (login != user).then_some(user), login != user && login != "root").await
    }

    /// Runs a script as the user to whom the cluster belongs. A status other than 0 is no error.
    ///
    /// # Errors
    /// As [`Session::exec`].
    pub(super) async fn sh(&self, script: &str, stdin: Option<Vec<u8>>, timeout: Option<Duration>) -> Result<Done> {
        self.session.exec(self.cx, Exec { stdin, timeout, ..self.as_owner(script) }).await
    }

    /// Runs a script that must succeed; gives what it printed.
    ///
    /// # Errors
    /// `RB0505` with what it said.
    pub(super) async fn must(&self, what: &str, script: &str, stdin: Option<Vec<u8>>) -> Result<String> {
        let done = self.sh(script, stdin, None).await?;
        self.good(what, done)
    }

    fn good(&self, what: &str, done: Done) -> Result<String> {
        if done.status == 0 {
            return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(if done.stderr.is_empty() { &done.stdout } else { &done.stderr }).into_owned();
        let last: Vec<&str> = said.lines().filter(|l| !l.trim().is_empty()).collect();
        let last = last.get(last.len().saturating_sub(3)..).unwrap_or_default().join("; ");
        Err(Error::new(Code::DB_COPY, format!("{what} of \"{}\" failed with status {}: {last}", self.db.name, done.status))
            .host(&self.db.host)
            .detail("stderr", said))
    }

    /// The folder of its data.
    ///
    /// # Errors
    /// `RB0114`.
    pub(super) fn data(&self) -> Result<String> {
        if let Some(d) = self.db.settings.str("data") {
            return Ok(d.trim_end_matches('/').to_string());
        }
        match self.db.settings.str("cluster").and_then(|c| c.split_once('/')) {
            Some((version, name)) => Ok(format!("/var/lib/postgresql/{version}/{name}")),
            None => Err(Error::new(
                Code::INVENTORY_MISSING,
                format!("\"{}\" has neither \"data\" nor \"cluster\" in runbook.toml: the cluster itself is to be worked on", self.db.name),
            )
            .hint("add cluster = \"15/main\" (Debian), or data = \"/path/of/the/data\" with unit, or with start and stop")),
        }
    }

    /// Lines that put the server's programs into PATH.
    fn path(&self) -> String {
        let known = match (self.db.settings.str("bin"), self.db.settings.str("cluster").and_then(|c| c.split_once('/'))) {
            (Some(bin), _) => quote(bin),
            (None, Some((version, _))) => quote(&format!("/usr/lib/postgresql/{version}/bin")),
            // The newest, unless PATH has them.
            (None, None) => {
                "$(command -v pg_ctl >/dev/null 2>&1 || ls -d /usr/lib/postgresql/*/bin /usr/pgsql-*/bin 2>/dev/null | sort -V | tail -n 1)"
                    .into()
            }
        };
        format!("export LC_ALL=C; b={known}; [ -z \"$b\" ] || PATH=\"$b:$PATH\"; export PATH\n")
    }

    /// A script with the data folder in `$d` and the server's programs in PATH.
    ///
    /// # Errors
    /// `RB0114`.
    pub(super) fn script(&self, body: &str) -> Result<String> {
        Ok(format!("{}d={}\n{body}", self.path(), quote(&self.data()?)))
    }

    /// The major version of the server's programs on the host, where it is known.
    ///
    /// # Errors
    /// `RB0114`; those of the connection.
    pub(super) async fn major(&self) -> Result<Option<u32>> {
        let done = self.sh(&self.script("pg_ctl --version")?, None, None).await?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        Ok(text.split_whitespace().nth(2).and_then(|v| v.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()))
    }

    /// What lies in the place of the data folder.
    ///
    /// # Errors
    /// `RB0114`; `RB0322` when the server's programs are not there; those of the connection.
    pub(super) async fn look(&self) -> Result<Data> {
        let script = self.script(
            "command -v pg_controldata >/dev/null || { echo 'tool pg_controldata'; exit 0; }\n\
             if [ ! -e \"$d\" ] || [ -d \"$d\" ] && [ -z \"$(ls -A \"$d\")\" ]; then echo 'is empty'; exit 0; fi\n\
             if [ ! -f \"$d/PG_VERSION\" ]; then echo 'is foreign'; exit 0; fi\n\
             echo 'is cluster'; [ -e \"$d/standby.signal\" ] && echo 'standby yes'\n\
             pg_ctl -D \"$d\" status >/dev/null 2>&1 && echo 'running yes'\n\
             TZ=UTC pg_controldata -D \"$d\" | sed 's/: */=/'",
        )?;
        let text = self.must("looking at the data folder", &script, None).await?;
        let word = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')).unwrap_or("");
        let control = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('=')).unwrap_or("").trim().to_string();
        if !word("tool").is_empty() {
            return Err(Error::new(Code::HOST_TOOL_MISSING, "the host has no pg_controldata")
                .host(&self.db.host)
                .hint("install the PostgreSQL server there, or name the folder of its programs with bin in runbook.toml"));
        }
        match word("is") {
            "empty" => return Ok(Data::Empty),
            "foreign" => return Ok(Data::Foreign),
            _ => {}
        }
        Ok(Data::Cluster(Box::new(Control {
            system: control("Database system identifier"),
            state: control("Database cluster state"),
            checkpoint: Lsn::parse(&control("Latest checkpoint location")).unwrap_or_default(),
            redo: Lsn::parse(&control("Latest checkpoint's REDO location")).unwrap_or_default(),
            segment: control("Latest checkpoint's REDO WAL file"),
            checkpoint_time: moment(&control("Time of latest checkpoint")),
            consistent: Lsn::parse(&control("Minimum recovery ending location")).unwrap_or_default(),
            can_rewind: control("wal_log_hints setting") == "on" || control("Data page checksum version") != "0",
            standby: word("standby") == "yes",
            running: word("running") == "yes",
        })))
    }

    /// Sets settings in `postgresql.auto.conf`, where they stay; `None` takes one away. A server that runs is not told.
    ///
    /// # Errors
    /// `RB0505` with what was said.
    pub(super) async fn set(&self, settings: &[(&str, Option<String>)]) -> Result<()> {
        let names: Vec<String> = settings.iter().map(|(k, _)| k.replace('.', "[.]")).collect();
        let mut lines = String::new();
        for (key, value) in settings {
            if let Some(v) = value {
                lines.push_str(&format!("{key} = '{}'\n", v.replace('\\', "\\\\").replace('\'', "''")));
            }
        }
        let script = self.script(&format!(
            "set -e; umask 077; f=\"$d/postgresql.auto.conf\"\n\
             {{ grep -vE {} \"$f\" || :; cat; }} >\"$f.runbook\"; mv -f \"$f.runbook\" \"$f\"; sync \"$f\" 2>/dev/null || sync",
            quote(&format!("^[[:space:]]*({})[[:space:]=]", names.join("|")))
        ))?;
        self.must("writing settings", &script, Some(lines.into_bytes())).await.map(drop)
    }

    /// What `postgresql.auto.conf` sets the first of these to that it sets, whether the server runs or not; empty when it sets none.
    ///
    /// # Errors
    /// Those of the connection.
    pub(super) async fn line(&self, keys: &[&str]) -> Result<String> {
        let names: Vec<String> = keys.iter().map(|k| quote(&k.replace('.', "[.]"))).collect();
        let script = self.script(&format!(
            "for k in {}; do v=$(sed -n \"s/^$k *= *'\\(.*\\)'.*/\\1/p\" \"$d/postgresql.auto.conf\" 2>/dev/null | tail -n 1)\n\
             [ -z \"$v\" ] || {{ printf '%s' \"$v\"; break; }}; done",
            names.join(" ")
        ))?;
        Ok(self.must("reading its settings", &script, None).await?.trim().to_string())
    }

    async fn control(&self, verb: &str) -> Result<()> {
        kept::forget(self.cx, self.db)?;
        let what = if verb == "start" { "starting the cluster" } else { "stopping the cluster" };
        let own = match self.db.settings.settings.get(verb) {
            Some(Value::Str(s)) => Some(s.clone()),
            Some(Value::List(words)) => Some(words.iter().filter_map(Value::as_str).map(quote).collect::<Vec<_>>().join(" ")),
            _ => None,
        };
        let timeout = Some(Duration::from_secs(300));
        let done = if let Some(own) = own {
            self.sh(&own, None, timeout).await?
        } else {
            let by_root = if let Some(unit) = self.db.settings.str("unit") {
                Some(format!("systemctl {verb} {}", quote(unit)))
            } else {
                self.db
                    .settings
                    .str("cluster")
                    .and_then(|c| c.split_once('/'))
                    .map(|(version, name)| format!("pg_ctlcluster {} {} {verb}", quote(version), quote(name)))
            };
            match by_root {
                Some(script) => {
                    let sudo = self.session.login() != "root";
                    self.session.exec(self.cx, Exec { sudo, timeout, ..Exec::new(script) }).await?
                }
                None => {
                    let body = if verb == "start" {
                        "pg_ctl -D \"$d\" -w -t 120 -l \"$d/runbook-start.log\" start </dev/null >/dev/null"
                    } else {
                        "pg_ctl -D \"$d\" -w -t 120 -m fast stop"
                    };
                    self.sh(&self.script(body)?, None, timeout).await?
                }
            }
        };
        self.good(what, done).map(|_| ())
    }

    /// Whether a server runs on the data folder.
    ///
    /// # Errors
    /// Those of the connection.
    pub(super) async fn running(&self) -> Result<bool> {
        let done = self.sh(&self.script("pg_ctl -D \"$d\" status >/dev/null 2>&1")?, None, None).await?;
        Ok(done.status == 0)
    }

    /// Stops the server and sees that it is stopped.
    ///
    /// # Errors
    /// `RB0505` when it goes on.
    pub(super) async fn stop(&self) -> Result<()> {
        if !self.running().await? {
            return Ok(());
        }
        let stopped = self.control("stop").await;
        if self.running().await? {
            stopped?;
            return Err(Error::new(Code::DB_COPY, format!("the cluster of \"{}\" still runs", self.db.name)).host(&self.db.host));
        }
        Ok(())
    }

    /// Starts the server unless it runs, and waits until it lets us in.
    ///
    /// # Errors
    /// `RB0505` with what was said.
    pub(super) async fn start(&self) -> Result<(Conn, Node)> {
        if let Some(there) = self.settled().await? {
            return Ok(there);
        }
        let started = self.control("start").await;
        if let Some(there) = self.settled().await? {
            return Ok(there);
        }
        let ended = self.ended("does not run after its start").await;
        Err(match started {
            Err(e) if e.code == Code::DB_COPY => Error { message: format!("{}; {}", e.message, ended.message), ..e }.hint(LOOK),
            Err(e) => e,
            Ok(()) => ended,
        })
    }

    /// Tells that the server has ended though it should run, and what can be seen of the reason.
    pub(super) async fn ended(&self, what: &str) -> Error {
        let script = self.script(
            "df -P -k \"$d\" 2>/dev/null | awk 'NR == 2 && $4 < 16384 { print \"its disk has \" int($4 / 1024) \" MiB left\" }'\n\
             tail -n 5 \"$d/runbook-start.log\" 2>/dev/null",
        );
        let seen = match script {
            Ok(script) => self.sh(&script, None, None).await.map(|d| String::from_utf8_lossy(&d.stdout).trim().to_string()),
            Err(e) => Err(e),
        };
        let seen = seen.ok().filter(|s| !s.is_empty()).map_or(String::new(), |s| format!(": {s}"));
        Error::new(Code::DB_COPY, format!("the cluster of \"{}\" {what}{seen}", self.db.name)).hint(LOOK).host(&self.db.host)
    }

    /// The server, when it lets us in; `None` when it does not run. One that is about to start or to stop is waited for: an earlier try may
    /// have begun that.
    ///
    /// # Errors
    /// Those of the connection.
    pub(super) async fn settled(&self) -> Result<Option<(Conn, Node)>> {
        let until = tokio::time::Instant::now() + Duration::from_secs(120);
        loop {
            if !self.running().await? {
                return Ok(None);
            }
            match admin(self.cx, self.db).await {
                Ok(there) => return Ok(Some(there)),
                Err(e) if e.retryable && tokio::time::Instant::now() < until => self.cx.sleep(Duration::from_millis(100)).await?,
                Err(e) => return Err(e),
            }
        }
    }

    /// Relations that were written to between two positions, by their file numbers, from the write-ahead log itself; `None` when it
    /// cannot be read there. Whoever wrote may be gone: the log knows. With `xid`, by that transaction alone.
    ///
    /// # Errors
    /// Those of the connection.
    pub(super) async fn written(
        &self,
        wal: &str,
        oid: &str,
        timeline: u32,
        (from, to): (Lsn, Lsn),
        xid: Option<&str>,
    ) -> Result<Option<BTreeMap<String, u64>>> {
        if to <= from {
            return Ok(Some(BTreeMap::new()));
        }
        // Data that is changed: rows, and sequences. What a vacuum or a hint does is no change, and has other names.
        let rel = format!("/rel [0-9]+\\/{oid}\\/[0-9]+/");
        let count = format!(
            "/^rmgr: /{{all++}} {rel} && (/^rmgr: Heap .*desc: (INSERT|DELETE|UPDATE|HOT_UPDATE|TRUNCATE)/ || /^rmgr: Heap2 .*desc: MULTI_INSERT/ \
             || /^rmgr: Sequence /) {{ if (match($0, {rel})) n[substr($0, RSTART, RLENGTH)]++ }} \
             END {{ print \"all\", all+0; for (r in n) print r, n[r] }}"
        );
        let body = format!(
            "command -v pg_waldump >/dev/null || exit 97\n\
             pg_waldump -p {} -t {timeline} -s {from} -e {to} {} 2>/dev/null | awk {}",
            quote(wal),
            xid.map_or(String::new(), |x| format!("-x {}", quote(x))),
            quote(&count)
        );
        let done = self.sh(&format!("{}{body}", self.path()), None, Some(Duration::from_secs(120))).await?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        let all = text.lines().find_map(|l| l.strip_prefix("all ")?.parse::<u64>().ok());
        if done.status != 0 || all.is_none() {
            return Ok(None);
        }
        // The log between the two positions is gone.
        if xid.is_none() && all == Some(0) && to.0 - from.0 > 100 {
            return Ok(None);
        }
        let found = text.lines().filter_map(|l| {
            let (path, n) = l.strip_prefix("rel ")?.rsplit_once(' ')?;
            Some((path.rsplit('/').next()?.to_string(), n.parse().ok()?))
        });
        Ok(Some(found.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_read_as_the_programs_write_it() {
        assert_eq!(moment("Sun Nov 22 04:14:37 2026"), Some("2026-11-22T04:14:37Z".parse().unwrap()));
        assert_eq!(moment("Sun Nov  2 04:14:37 2025"), Some("2025-11-02T04:14:37Z".parse().unwrap()));
        assert_eq!(moment(""), None);
    }
}
