//! A database as one stream of statements, for repositories of backups: who writes it on its host, who loads it there, and what the
//! stream says of itself.
//!
//! ```text
//! -- runbook:NONCE {"version":1,…}           what it is ([`About`])
//! …                                          what the server's own tool wrote
//! -- runbook:NONCE events                    the scheduled events follow; a throw-away database gets none
//! -- runbook:NONCE rows 1204 orders          how many rows of each table went in
//! -- runbook:NONCE end SHA256 BYTES          of all lines but these; without this line it is not whole
//! ```
//!
//! These lines are comments, so that anybody can load it: `restic dump ID /shop.sql | mariadb shop`.

use std::collections::BTreeMap;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use serde::{Deserialize, Serialize};

use super::driver::Db;
use super::dump::job::{COMMON, Job, private_folder};
use super::dump::said;
use crate::ssh::{self, Exec, quote};

/// Pipes a database into a snapshot.
pub const WRITE: &str = include_str!("write.sh");
const READ: &str = include_str!("read.sh");

/// What a stream says of itself in its first line.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct About {
    /// The form of the stream: 1.
    pub version: u32,
    /// The action that made it.
    pub action: String,
    /// The database's name in the inventory.
    pub database: String,
    /// Its kind.
    pub kind: String,
    /// Its name in the server.
    pub schema: String,
    /// The server itself, as it knows itself.
    pub server: String,
    /// The server's version.
    pub engine: String,
    /// Character set and collation, as the server creates a database with them.
    pub charset: String,
    /// A position that the stream is not before, in the server's own form; empty where the tool tells the exact one.
    pub position: String,
    /// When it was begun, RFC 3339.
    pub time: String,
    /// How many tables the database has.
    pub tables: u64,
}

/// How a database is written to standard output on its host.
pub struct Outflow {
    /// What it is.
    pub about: About,
    /// Shell functions `dump` and `count`, as `write.sh` wants them.
    pub text: String,
    /// The login.
    pub env: Vec<(String, String)>,
    /// Whether the script must run as root.
    pub sudo: bool,
}

/// How a stream gets into a database that was made ready for it.
pub struct Inflow<'a> {
    /// What it is.
    pub about: &'a About,
    /// The mark of its own lines.
    pub own: &'a str,
    /// Shell function `give`, which prints it.
    pub give: &'a str,
    /// What that needs.
    pub env: Vec<(String, String)>,
    /// Whether that must run as root.
    pub sudo: bool,
    /// Whether it is a throw-away database: nothing in it begins to work, and replicas do not hear of it.
    pub test: bool,
    /// What is shown while it loads.
    pub what: String,
    /// How long the stream is.
    pub bytes: u64,
}

/// What is left of a database that a stream was loaded into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// All of it, on record as whole.
    Keep,
    /// Nothing in it.
    Empty,
    /// Not even its name.
    Drop,
}

/// What the other half of a kind's [`Inflow`] says: its functions `load`, `before`, `after` and its login.
pub(in crate::db) struct Client {
    pub text: String,
    pub env: Vec<(String, String)>,
    pub sudo: bool,
}

/// Loads a stream on the host of the database, apart from the connection, and gives the stream's own lines.
///
/// # Errors
/// `RB0703` when the stream is not whole or not as it was made; those of the job.
pub(in crate::db) async fn pour(cx: &Cx, db: &Db, flow: Inflow<'_>, client: Client) -> Result<()> {
    let sudo = flow.sudo || client.sudo;
    let who = move |script: String| Exec { sudo, ..Exec::new(script) };
    let dir = private_folder(cx, &db.host, &who, &format!("load.{}", cx.action_id)).await.map_err(|e| match e.code {
        Code::DB_COPY => Error { code: Code::BACKUP_RESTORE, ..e },
        _ => e,
    })?;
    let session = ssh::connect(cx, &db.host).await?;
    let id = format!("{} into {}", cx.action_id, db.settings.need("database")?);
    let job = Job {
        host: &db.host,
        who: &who,
        dir: dir.clone(),
        id,
        counted: "counted() { read -r p <\"$j/pid.sum\" && sed -n 's/^rchar: /bytes /p' \"/proc/$p/io\"; }".into(),
    };
    let script = format!("own={}\n{}\n{}\n{COMMON}{READ}", quote(flow.own), flow.give, client.text);
    let env = flow.env.into_iter().chain(client.env).collect();
    let (what, total) = (flow.what, flow.bytes);
    let show = |_: u64, bytes: u64| cx.progress(what.clone(), bytes, Some(total.max(bytes)), "bytes");
    let end = job.run(cx, &script, env, &show).await?;
    let tidy = session.exec(cx, who(format!("rm -rf {}", quote(&dir)))).await;
    if tidy.is_err() {
        tracing::warn!(host = db.host, dir, "a folder of a load could not be removed");
    }
    if end.status != Some(0) && end.said.contains("snapshot") {
        let why = end.said.lines().map(str::trim).collect::<Vec<_>>().join("; ");
        return Err(Error::new(Code::BACKUP_RESTORE, why).host(&db.host).hint("verify the snapshot; another one may be whole"));
    }
    end.good(&db.host, &format!("the load of the snapshot into \"{}\"", db.name)).map(drop)
}

/// What may be shown of what a server's tool said.
pub fn shown(text: &str) -> Vec<String> {
    said::shown(text)
}

/// What a stream's own lines tell besides the first: rows by table, the position of its moment, its checksum and bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Told {
    /// Rows of each table; `None` where the tool writes many in one line.
    pub rows: BTreeMap<String, Option<u64>>,
    /// The position of its moment.
    pub position: String,
    /// The SHA-256 of all lines but its own.
    pub sha256: String,
    /// The bytes of what the tool wrote.
    pub bytes: u64,
}

impl Told {
    /// Reads lines without their mark.
    pub fn read<'a>(kind: &str, lines: impl Iterator<Item = &'a str>) -> Told {
        let mut told = Told::default();
        for line in lines {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "rows" => {
                    if let Some((n, table)) = rest.split_once(' ') {
                        told.rows.insert(name_of(kind, table), n.parse().ok());
                    }
                }
                "position" => told.position = rest.trim().to_string(),
                "sum" => told.sha256 = rest.to_string(),
                "bytes" => told.bytes = rest.parse().unwrap_or(0),
                "end" => {
                    let (sum, bytes) = rest.split_once(' ').unwrap_or((rest, ""));
                    (told.sha256, told.bytes) = (sum.to_string(), bytes.parse().unwrap_or(0));
                }
                _ => {}
            }
        }
        told
    }

    /// All rows, where they are known.
    pub fn all_rows(&self) -> Option<u64> {
        self.rows.values().copied().sum()
    }
}

/// A table's name as [`Driver::content`](super::driver::Driver::content) has it, from the one in a stream.
fn name_of(kind: &str, table: &str) -> String {
    match kind {
        "postgresql" => table.strip_prefix("public.").unwrap_or(table).to_string(),
        _ => table.replace("``", "`"),
    }
}

/// What the names of throw-away databases begin with.
pub const TEST: &str = "runbook_test_";

/// A name that no database has yet, always the same for an action.
pub fn test_name(cx: &Cx) -> String {
    let hash = runbook_core::digest::sha256_hex(cx.action_id.to_string().as_bytes());
    format!("{TEST}{}", hash.get(..16).unwrap_or(""))
}

/// The same server, with a database of another name in it; what is kept of connections is apart.
pub fn beside(db: &Db, database: &str) -> Db {
    let mut other = db.clone();
    other.settings.settings.insert("database".into(), database.into());
    other.name = format!("{} ({database})", db.name);
    other.settings.name.clone_from(&other.name);
    other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stream_tells_is_read() {
        let lines = ["rows 12 orders", "rows ? we``ird", "position bin.000001 7", "end abc 99"];
        let t = Told::read("mariadb", lines.into_iter());
        assert_eq!((t.rows.get("orders"), t.rows.get("we`ird")), (Some(&Some(12)), Some(&None)));
        assert_eq!((t.position.as_str(), t.sha256.as_str(), t.bytes, t.all_rows()), ("bin.000001 7", "abc", 99, None));
        let t = Told::read("postgresql", ["rows 3 public.orders", "rows 4 other.\"A b\""].into_iter());
        assert_eq!((t.rows.keys().map(String::as_str).collect::<Vec<_>>(), t.all_rows()), (vec!["orders", "other.\"A b\""], Some(7)));
    }

    #[test]
    fn scripts_are_clean() {
        runbook_testkit::shellcheck(
            &[WRITE, &format!("{COMMON}{READ}")],
            "SC2154,SC2034,SC2317,SC2046,SC2086,SC2012,SC2010,SC2015,SC2016,SC2094",
        );
    }
}
