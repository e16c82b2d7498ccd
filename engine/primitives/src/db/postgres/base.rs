//! `base_backup`: a copy of the whole cluster in a folder of its host, by `pg_basebackup`.
//!
//! The folder holds `data` (what becomes a data folder) and `manifest`, which comes last.

use runbook_core::clock::rfc3339;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::client::{For, connect};
use super::cluster::Cluster;
use super::dump::{env, path};
use super::settings;
use super::standby::{AT_LEAST, primary_settings};
use super::state::look;
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

/// What the manifest tells of it; `None` when it is of something else.
fn made(m: &Manifest, changed: bool, note: &str) -> Option<BaseBackup> {
    (m.get("kind") == KIND).then(|| BaseBackup {
        changed,
        id: m.get("id").to_string(),
        bytes: m.bytes(),
        segment: m.get("segment").to_string(),
        position: m.get("position").to_string(),
        note: note.to_string(),
    })
}

/// Makes one, or finds that this action has.
pub(super) async fn make(cx: &Cx, db: &Db, at: &str) -> Result<BaseBackup> {
    let cluster = Cluster::of(cx, db).await?;
    let who = |script: String| cluster.as_owner(&script);
    let folder = Folder { cx, db, who: &who, path: at, what: A_BASE_BACKUP };
    let id = cx.action_id.to_string();
    let read = |m: &Manifest, changed: bool, note: &str| {
        made(m, changed, note).ok_or_else(|| refuse(db, format!("{at} has a dump, and no base backup"), "name another folder"))
    };
    if let Some(m) = folder.there().await? {
        let base = read(&m, false, "")?;
        if base.id == id {
            return Ok(base);
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
    read(&m, true, note)
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
