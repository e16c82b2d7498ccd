//! What the server itself says of its part: primary or standby, fenced, promoted.
//!
//! The marks are settings of the database (`ALTER DATABASE … SET runbook.fence = …`): they are written in one transaction with what they
//! stand for, survive a restart, and a standby gets them as it gets everything else.

use std::collections::BTreeMap;

use runbook_core::{Code, Error, Result};
use serde::{Deserialize, Serialize};

use super::client::{Conn, col};
use super::sql::lit;

/// The mark of a fence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The action that put it up.
    pub id: String,
    /// Since when, RFC 3339.
    pub time: String,
    /// The limit of connections before; -1 for none.
    pub limit: i64,
    /// `default_transaction_read_only` of the database before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<String>,
    /// The database to which it has handed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handed_to: Option<String>,
    /// While a promotion is taken back: the fence of the other side, which is to stand again there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_for: Option<Box<Mark>>,
}

/// The mark of a logical replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Replica {
    /// Of which database of the inventory.
    pub primary: String,
    /// That one's cluster.
    pub system: String,
    /// That one's number in it.
    pub oid: String,
    /// The name of slot, publication and subscription.
    pub slot: String,
    /// A digest of the definitions that were copied.
    pub schema: String,
    /// Whether they have been copied.
    pub loaded: bool,
    /// Whether the primary is to follow it once it has taken over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub way_back: bool,
}

/// The mark of a promotion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Promoted {
    /// The action that promoted.
    pub action: String,
    /// The fence under which.
    pub fence: String,
    /// Whether it was a logical replica.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub logical: bool,
    /// Whether the side that handed over follows since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub way_back: bool,
}

/// A server and one of its databases.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub in_recovery: bool,
    /// The cluster's identity; a standby has that of its primary. Empty when the role may not see it.
    pub system: String,
    /// The timeline; in recovery, that of the last checkpoint.
    pub timeline: u32,
    /// What is flushed, or replayed in recovery.
    pub lsn: Lsn,
    pub superuser: bool,
    pub version: u32,
    /// The database's number.
    pub oid: String,
    /// Its limit of connections.
    pub limit: i64,
    /// What sessions of the database begin with (`ALTER DATABASE … SET`).
    pub defaults: BTreeMap<String, String>,
    pub fence: Option<Mark>,
    pub promoted: Option<Promoted>,
    pub replica: Option<Replica>,
}

/// A position in the write-ahead log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Lsn(pub u64);

impl Lsn {
    pub(super) fn parse(text: &str) -> Option<Lsn> {
        let (hi, lo) = text.split_once('/')?;
        Some(Lsn(u64::from_str_radix(hi, 16).ok()? << 32 | u64::from_str_radix(lo, 16).ok()?))
    }
}

impl std::fmt::Display for Lsn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

const LOOK: &str = "SELECT pg_is_in_recovery()::text, \
    CASE WHEN pg_has_role(current_user, 'pg_monitor', 'USAGE') THEN (SELECT system_identifier FROM pg_control_system()) END, \
    CASE WHEN NOT pg_is_in_recovery() THEN ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int \
      WHEN pg_has_role(current_user, 'pg_monitor', 'USAGE') THEN (SELECT timeline_id FROM pg_control_checkpoint()) END, \
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END, \
    current_setting('is_superuser'), current_setting('server_version_num'), d.oid, d.datconnlimit \
    FROM pg_database d WHERE d.datname = current_database(); \
    SELECT unnest(setconfig) FROM pg_db_role_setting WHERE setrole = 0 AND setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// Reads it.
pub(super) async fn look(conn: &Conn) -> Result<Node> {
    let mut rows = conn.texts(LOOK).await?.into_iter();
    let r = rows.next().ok_or_else(|| Error::internal("a database knows its own name"))?;
    let defaults: BTreeMap<String, String> =
        rows.filter_map(|r| col(&r, 0).split_once('=').map(|(k, v)| (k.to_lowercase(), v.to_string()))).collect();
    fn mark<T: for<'a> Deserialize<'a>>(text: Option<&String>) -> Result<Option<T>> {
        let bad = |e| Error::new(Code::DB_NOT_FENCED, format!("a mark of runbook on the database cannot be read: {e}"));
        text.filter(|t| !t.is_empty()).map(|t| serde_json::from_str(t).map_err(bad)).transpose()
    }
    Ok(Node {
        in_recovery: col(&r, 0) == "true",
        system: col(&r, 1).to_string(),
        timeline: col(&r, 2).parse().unwrap_or(0),
        lsn: Lsn::parse(col(&r, 3)).unwrap_or_default(),
        superuser: col(&r, 4) == "on",
        version: col(&r, 5).parse().unwrap_or(0),
        oid: col(&r, 6).to_string(),
        limit: col(&r, 7).parse().unwrap_or(-1),
        fence: mark(defaults.get("runbook.fence"))?,
        promoted: mark(defaults.get("runbook.promoted"))?,
        replica: mark(defaults.get("runbook.replica"))?,
        defaults,
    })
}

/// The statement that sets a mark.
pub(super) fn set<T: Serialize>(database: &str, name: &str, mark: &T) -> Result<String> {
    let json = serde_json::to_string(mark).map_err(|e| Error::internal(e.to_string()))?;
    Ok(format!("ALTER DATABASE {database} SET runbook.{name} = {}", lit(&json)))
}

/// The statements that give a database its limit and mode of before a fence.
pub(super) fn restore(database: &str, mark: &Mark) -> String {
    let read_only = match &mark.read_only {
        Some(v) => format!("SET default_transaction_read_only = {}", lit(v)),
        None => "RESET default_transaction_read_only".to_string(),
    };
    format!("ALTER DATABASE {database} CONNECTION LIMIT {}; ALTER DATABASE {database} {read_only}", mark.limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_and_written_as_the_server_does() {
        let a = Lsn::parse("16/B374D848").unwrap();
        assert_eq!(a.to_string(), "16/B374D848");
        assert!(a > Lsn::parse("9/FFFFFFFF").unwrap());
        assert_eq!(Lsn::parse("x"), None);
    }

    #[test]
    fn a_mark_comes_back_as_it_was() {
        let inner = Mark { id: "a-1".into(), time: "t".into(), limit: 20, read_only: Some("off".into()), handed_to: None, hold_for: None };
        let outer = Mark { hold_for: Some(Box::new(inner.clone())), limit: -1, ..inner.clone() };
        let text = serde_json::to_string(&outer).unwrap();
        assert_eq!(serde_json::from_str::<Mark>(&text).unwrap(), outer);
        assert_eq!(
            restore("\"d\"", &inner),
            "ALTER DATABASE \"d\" CONNECTION LIMIT 20; ALTER DATABASE \"d\" SET default_transaction_read_only = 'off'"
        );
    }
}
