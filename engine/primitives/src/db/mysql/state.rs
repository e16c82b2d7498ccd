//! What is kept on a server about itself: its fence, of what it is a replica, whether it was promoted.
//!
//! In a schema of its own, written outside of the binary log: it is about this server and never reaches another one.

use runbook_core::{Code, Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::connect::{Sess, get};
use super::sql::text;

/// The schema.
pub const SCHEMA: &str = "_runbook";

/// A fence, put up or being put up.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FenceMark {
    /// The action that put it up.
    pub id: String,
    /// Since when, RFC 3339.
    pub time: String,
    /// Whether it was proven; until then it is being put up.
    pub up: bool,
    /// Where the binary log ended.
    pub position: Position,
    /// Whether the event scheduler was on.
    pub events: bool,
    /// Whether the server was read-only before.
    pub was_read_only: bool,
    /// What was taken from whom: grantee and privilege.
    pub revoked: Vec<(String, String)>,
    /// The database that took over, in the inventory's words.
    pub handed_to: Option<String>,
}

/// A place in the binary log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// GTIDs of everything written, where there are GTIDs.
    pub gtid: String,
    /// The log's file.
    pub file: String,
    /// The byte in it.
    pub pos: u64,
}

/// How far a replica has come in being one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Phase {
    /// The first copy is under way: what is there is half a copy.
    #[default]
    Copying,
    /// The first copy is whole, and stands at `position`.
    Copied,
    /// Replication was started.
    Running,
}

/// Of what this server is a replica.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReplicaMark {
    /// The primary's name in the inventory.
    pub of: String,
    /// The primary itself.
    pub source: String,
    /// How far it is.
    pub phase: Phase,
    /// The primary's position that the copy has.
    pub position: Position,
    /// Whether it goes by GTIDs.
    pub gtid: bool,
    /// Rows of the first copy.
    pub rows: u64,
    /// Bytes of the first copy.
    pub bytes: u64,
    /// The account that was made on the primary for it.
    pub account: Option<String>,
    /// Whether the server was read-only before.
    pub was_read_only: bool,
    /// Whether the event scheduler was on before.
    pub events: bool,
    /// By how many seconds it lags on purpose.
    #[serde(default)]
    pub delay: u64,
    /// Just before what it was stopped by `roll_forward`; it must not go on by itself.
    #[serde(default)]
    pub rolled: Option<String>,
}

/// A copy without replication, made by `copy_from`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CopyMark {
    /// The source's name in the inventory.
    pub of: String,
    /// The source itself.
    pub source: String,
    /// The source's position that it has; empty while it is being made.
    pub position: Position,
    /// Whether it is whole.
    pub whole: bool,
    /// Rows.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
    /// This server's own position afterwards.
    pub after: Position,
}

/// A promotion.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PromotedMark {
    /// The action.
    pub action: String,
    /// The fence under which it happened.
    pub fence: String,
    /// The database that was replaced.
    pub source: String,
    /// This server's own position just before it took writes.
    pub position: Position,
    /// What the replaced database had.
    pub had: Position,
    /// What it was a replica of.
    pub replica: ReplicaMark,
    /// Whether `demote` has carried its rows back.
    #[serde(default)]
    pub carried: bool,
}

/// The way from the other server of a master-master pair to this one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PairMark {
    /// The other's name in the inventory.
    pub of: String,
    /// The account that was made on it.
    pub account: Option<String>,
    /// The last change that the other had made itself when they were paired, or parted.
    pub written: String,
    /// Whether they were parted.
    pub ended: bool,
}

/// Everything that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Marks {
    /// The fence.
    pub fence: Option<FenceMark>,
    /// The replica.
    pub replica: Option<ReplicaMark>,
    /// The promotion.
    pub promoted: Option<PromotedMark>,
    /// The copy.
    pub copy: Option<CopyMark>,
    /// The other of a pair.
    pub pair: Option<PairMark>,
}

/// What `state` calls each mark.
pub trait Mark: Serialize + DeserializeOwned {
    /// Its name.
    const NAME: &'static str;
}
impl Mark for FenceMark {
    const NAME: &'static str = "fence";
}
impl Mark for ReplicaMark {
    const NAME: &'static str = "replica";
}
impl Mark for PromotedMark {
    const NAME: &'static str = "promoted";
}
impl Mark for PairMark {
    const NAME: &'static str = "pair";
}
impl Mark for CopyMark {
    const NAME: &'static str = "copy";
}

/// Whether anything was ever kept.
async fn there(s: &mut Sess) -> Result<bool> {
    let sql = format!("SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = '{SCHEMA}' AND table_name = 'state'");
    Ok(s.int(sql).await? != 0)
}

/// Reads one mark.
///
/// # Errors
/// `RB0501`.
pub async fn find<M: Mark>(s: &mut Sess) -> Result<Option<M>> {
    if !there(s).await? {
        return Ok(None);
    }
    let json = s.text(format!("SELECT value FROM {SCHEMA}.state WHERE name = '{}'", M::NAME)).await?;
    json.map(|json| parse(&json)).transpose()
}

/// Reads what is kept; nothing when there is none.
///
/// # Errors
/// `RB0501`.
pub async fn read(s: &mut Sess) -> Result<Marks> {
    let mut marks = Marks::default();
    if !there(s).await? {
        return Ok(marks);
    }
    for row in s.rows(format!("SELECT name, value FROM {SCHEMA}.state")).await? {
        let json = get(&row, "value");
        match get(&row, "name") {
            "fence" => marks.fence = Some(parse(json)?),
            "replica" => marks.replica = Some(parse(json)?),
            "promoted" => marks.promoted = Some(parse(json)?),
            "copy" => marks.copy = Some(parse(json)?),
            "pair" => marks.pair = Some(parse(json)?),
            _ => {}
        }
    }
    Ok(marks)
}

fn parse<T: DeserializeOwned>(json: &str) -> Result<T> {
    serde_json::from_str(json).map_err(|e| {
        Error::new(Code::DB_QUERY, format!("{SCHEMA}.state cannot be read: {e}")).hint("it was written by another version, or by hand")
    })
}

/// Writes a mark.
///
/// # Errors
/// `RB0501`.
pub async fn write<M: Mark>(s: &mut Sess, mark: &M) -> Result<()> {
    let json = serde_json::to_string(mark).map_err(|e| Error::internal(e.to_string()))?;
    aside(s, &[
        format!("CREATE DATABASE IF NOT EXISTS {SCHEMA}"),
        format!("CREATE TABLE IF NOT EXISTS {SCHEMA}.state (name VARCHAR(32) CHARACTER SET ascii PRIMARY KEY, value LONGTEXT CHARACTER SET utf8mb4 NOT NULL) ENGINE=InnoDB"),
        format!("REPLACE INTO {SCHEMA}.state VALUES ('{}', {})", M::NAME, text(&json)),
    ])
    .await
}

/// Removes a mark.
///
/// # Errors
/// `RB0501`.
pub async fn remove<M: Mark>(s: &mut Sess) -> Result<()> {
    if !there(s).await? {
        return Ok(());
    }
    aside(s, &[format!("DELETE FROM {SCHEMA}.state WHERE name = '{}'", M::NAME)]).await
}

/// Runs statements outside of the binary log, also on a server that refuses writes of its super-users.
///
/// # Errors
/// `RB0501`.
pub async fn aside(s: &mut Sess, statements: &[String]) -> Result<()> {
    // Ordinary users stay out meanwhile: read_only is not touched.
    let shut = s.text("SHOW GLOBAL VARIABLES LIKE 'super_read_only'").await?.is_some() && s.is_on("super_read_only").await?;
    if shut {
        s.run("SET GLOBAL super_read_only = OFF").await?;
    }
    s.run("SET SESSION sql_log_bin = 0").await?;
    let mut done = Ok(());
    for sql in statements {
        done = one(s, sql).await;
        if done.is_err() {
            break;
        }
    }
    // The session goes on: what it does next belongs into the log again.
    let back = s.run("SET SESSION sql_log_bin = 1").await;
    if shut {
        s.run("SET GLOBAL super_read_only = ON").await?;
    }
    done.and(back.map(drop))
}

/// A statement; MySQL has no `DROP USER IF EXISTS` before 5.7.8.
async fn one(s: &mut Sess, sql: &str) -> Result<()> {
    let code = |e: &Error, code: &str| e.details.get("code").is_some_and(|c| c == code);
    match (s.run(sql).await, sql.strip_prefix("DROP USER IF EXISTS ")) {
        (Err(e), Some(name)) if code(&e, "1064") => match s.run(format!("DROP USER {name}")).await {
            Err(e) if code(&e, "1396") => Ok(()),
            done => done.map(drop),
        },
        (done, _) => done.map(drop),
    }
}

/// Where the binary log of this server ends, and what it has applied from elsewhere.
///
/// # Errors
/// `RB0511` when there is no binary log.
pub async fn position(s: &mut Sess, flavour: &super::flavour::Flavour) -> Result<Position> {
    let rows = s.rows(flavour.show_binlog()).await?;
    let Some(row) = rows.first() else {
        return Ok(Position { gtid: super::data::position(s, flavour.maria).await?, ..Position::default() });
    };
    let gtid = if flavour.maria { "SELECT @@gtid_binlog_pos" } else { "SELECT @@GLOBAL.gtid_executed" };
    Ok(Position {
        gtid: s.text(gtid).await?.unwrap_or_default().replace('\n', ""),
        file: get(row, "file").to_string(),
        pos: get(row, "position").parse().unwrap_or(0),
    })
}

/// What tells this server from every other.
///
/// # Errors
/// `RB0501`.
pub async fn identity(s: &mut Sess) -> Result<String> {
    Ok(s.text("SELECT CONCAT(@@hostname, ':', @@port, ':', @@datadir, ':', @@server_id)").await?.unwrap_or_default())
}
