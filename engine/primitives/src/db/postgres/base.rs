//! `base_backup`: a copy of the whole cluster in a folder of its host, by `pg_basebackup`.
//!
//! The folder holds `data` (what becomes a data folder) and `manifest`, which comes last.

use std::time::Duration;

use jiff::Timestamp;
use runbook_core::clock::rfc3339;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::client::{For, connect};
use super::cluster::Cluster;
use super::dump::{env, path};
use super::settings;
use super::standby::{AT_LEAST, primary_settings};
use super::state::{Lsn, look};
use crate::db::driver::Db;
use crate::db::dump::job::COMMON;
use crate::db::dump::manifest::{Manifest, head};
use crate::db::dump::refuse;
use crate::db::dump::work::{A_BASE_BACKUP, Folder, Script};
use crate::db::recovery::BaseBackup;
use crate::ssh::quote;

/// The job's script.
const MAKE: &str = include_str!("base.sh");

/// What manifests call it.
const KIND: &str = "postgresql-base";

/// A base backup, as its manifest tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Base {
    /// The action that made it.
    pub id: String,
    /// The cluster's identity.
    pub system: String,
    /// The major version of its server.
    pub major: u32,
    /// The first segment that recovery reads.
    pub segment: String,
    /// Where recovery begins.
    pub start: Lsn,
    /// Where the copy ended: it is consistent from there on.
    pub end: Lsn,
    /// When it began, or up to a second later.
    pub begun: Timestamp,
    /// The size of its segments.
    pub segment_size: u64,
    /// Settings that the server which recovers must have at least.
    pub at_least: Vec<(String, String)>,
    /// Its size.
    pub bytes: u64,
}

impl Base {
    /// Reads it; `None` when the manifest is of something else.
    pub(super) fn of(m: &Manifest) -> Option<Base> {
        if m.get("kind") != KIND {
            return None;
        }
        let at_least = m.get("at_least").split_whitespace().filter_map(|w| w.split_once('='));
        Some(Base {
            id: m.get("id").to_string(),
            system: m.get("server").to_string(),
            major: m.get("major").parse().ok()?,
            segment: m.get("segment").to_string(),
            start: Lsn::parse(m.get("start"))?,
            end: Lsn::parse(m.get("position"))?,
            begun: m.get("begun").parse::<Timestamp>().ok()? + Duration::from_secs(1),
            segment_size: m.get("segment_size").parse().ok().filter(|n| *n > 0)?,
            at_least: at_least.map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            bytes: m.bytes(),
        })
    }

    /// The timeline on which it was made.
    pub(super) fn timeline(&self) -> u32 {
        self.segment.get(..8).and_then(|t| u32::from_str_radix(t, 16).ok()).unwrap_or(1)
    }

    fn made(self, note: &str, changed: bool) -> BaseBackup {
        BaseBackup {
            changed,
            id: self.id,
            bytes: self.bytes,
            segment: self.segment,
            position: self.end.to_string(),
            note: note.to_string(),
        }
    }
}

/// Makes one, or finds that this action has.
pub(super) async fn make(cx: &Cx, db: &Db, at: &str) -> Result<BaseBackup> {
    let cluster = Cluster::of(cx, db).await?;
    let who = |script: String| cluster.as_owner(&script);
    let folder = Folder { cx, db, who: &who, path: at, what: A_BASE_BACKUP };
    let id = cx.action_id.to_string();
    let read = |m: &Manifest| Base::of(m).ok_or_else(|| refuse(db, format!("{at} has a dump, and no base backup"), "name another folder"));
    if let Some(m) = folder.there().await? {
        let base = read(&m)?;
        if base.id == id {
            return Ok(base.made("", false));
        }
        return Err(refuse(db, format!("{at} has a base backup of {} of {}", m.get("database"), m.get("time")), "name another folder"));
    }
    let conn = connect(cx, db, For::Admin).await?;
    let node = look(&conn).await?;
    let spaces = conn.text("SELECT string_agg(spcname, ', ') FROM pg_tablespace WHERE spcname NOT LIKE 'pg\\_%'").await?;
    if let Some(spaces) = spaces.filter(|s| !s.is_empty()) {
        let what = format!("\"{}\" has tablespaces outside of its data folder ({spaces}), which base_backup does not copy", db.name);
        return Err(Error::new(Code::DB_CANNOT, what).host(&db.host).hint("use pg_basebackup with --tablespace-mapping by host.run"));
    }
    let set = primary_settings(&conn).await?;
    let needs: Vec<String> = AT_LEAST.iter().filter_map(|k| Some(format!("{k}={}", set.get(*k)?))).collect();
    let sql = "SELECT sum(pg_database_size(oid)) FROM pg_database";
    let total = conn.text(sql).await?.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    let one = |name: &'static str| conn.text(name);
    let (version, size) =
        (one("SHOW server_version").await?, one("SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'").await?);
    let archives = one("SHOW archive_mode").await?.is_some_and(|m| m != "off");
    drop(conn);
    cluster.make_folder(at).await?;
    let fields = [
        ("id", id.as_str()),
        ("kind", KIND),
        ("server", &node.system),
        ("database", settings::database(db)?),
        ("version", &version.unwrap_or_default()),
        ("major", &(node.version / 10_000).to_string()),
        ("segment_size", &size.unwrap_or_default()),
        ("at_least", &needs.join(" ")),
        ("time", &rfc3339(cx.clock.now())),
    ];
    let script = Script {
        text: format!("d={}\njobs=1\nlabel={}\n{}{}{COMMON}{MAKE}", quote(at), quote(&format!("runbook {id}")), path(db), head(&fields)),
        env: env(cx, db)?,
        counted: format!("counted() {{ du -s -B 1 {0}/data.part {0}/data | awk '{{ print \"bytes \" $1 }}'; }}", quote(at)),
    };
    let m = folder.write(script, total, |_| String::new(), "rm -rf data data.part").await.map_err(|e| explain(db, e))?;
    let note = if archives { "" } else { "; the server does not archive its log, without which it brings back its own moment alone" };
    if !archives {
        cx.message(format!(
            "\"{}\" does not archive its log: archive_to before base_backup, or the way on from the backup is lost",
            db.name
        ));
    }
    Ok(read(&m)?.made(note, true))
}

/// What to do about errors that are known.
fn explain(db: &Db, e: Error) -> Error {
    let user = settings::role(db);
    if e.message.contains("no pg_hba.conf entry") {
        let line = if settings::peer(db).is_some() {
            format!("local replication {user} peer")
        } else {
            format!("host replication {user} 127.0.0.1/32 scram-sha-256")
        };
        return Error { code: Code::DB_SETTINGS, retryable: false, ..e }
            .hint(format!("pg_hba.conf does not let the backup in; add the line: {line}, then SELECT pg_reload_conf()"));
    }
    if e.message.contains("max_wal_senders") {
        return Error { code: Code::DB_SETTINGS, retryable: false, ..e }
            .hint("a base backup takes two of max_wal_senders: raise it, then restart the server");
    }
    e
}
