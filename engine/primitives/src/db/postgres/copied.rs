//! What a copy leaves on record in its database: whose copy it is, how far it came, and which tables it has made.

use runbook_core::Result;
use serde::{Deserialize, Serialize};

use super::client::Conn;
use super::data::OURS;
use super::state::Node;
use crate::db::driver::Db;
use crate::db::dump::refuse;

/// The mark of a copy, under way or whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The action that makes it.
    pub id: String,
    /// Of which database of the inventory.
    pub of: String,
    /// That one's cluster.
    pub system: String,
    /// That one's number in it.
    pub oid: String,
    /// Whether there is room: what was in the way is gone.
    pub ready: bool,
    /// Whether all of it is there; then what it was.
    pub whole: Option<Whole>,
}

/// A copy that is whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Whole {
    /// Rows of all tables.
    pub rows: u64,
    /// Size of the database.
    pub bytes: u64,
    /// A digest of the tables' numbers: others were made by somebody else.
    pub tables: String,
}

impl Mark {
    /// The mark that the database has.
    pub(super) fn of(node: &Node) -> Option<Mark> {
        node.defaults.get("runbook.copy").and_then(|json| serde_json::from_str(json).ok())
    }

    /// Whether both are of one database.
    pub(super) fn is_of(&self, other: &Mark) -> bool {
        !self.system.is_empty() && (&self.system, &self.oid) == (&other.system, &other.oid)
    }

    /// Whether the database still has the tables that the copy has made, and not somebody else's.
    pub(super) async fn is_untouched(&self, conn: &Conn) -> Result<bool> {
        Ok(match &self.whole {
            Some(w) => w.tables == tables(conn).await?,
            None => !self.ready || conn.text("SELECT to_regclass('_runbook.loaded')::text").await?.is_some(),
        })
    }
}

/// A digest of the tables' numbers.
pub(super) async fn tables(conn: &Conn) -> Result<String> {
    let sql = format!(
        "SELECT md5(string_agg(c.oid::text, ' ' ORDER BY c.oid)) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p') AND n.nspname <> '_runbook' AND {OURS}"
    );
    Ok(conn.text(&sql).await?.unwrap_or_default())
}

/// How many rows were copied, once all of them are here.
pub(super) async fn all_rows(conn: &Conn) -> Result<Option<u64>> {
    if conn.text("SELECT to_regclass('_runbook.loaded')::text").await?.is_none() {
        return Ok(None);
    }
    let item = conn.text("SELECT item FROM _runbook.loaded WHERE item LIKE 'all %'").await?;
    Ok(item.and_then(|i| i.strip_prefix("all ")?.parse().ok()))
}

/// Sees that nothing would be lost, whatever is in the database.
pub(super) fn may_become(to: &Db, from: &Db, node: &Node, theirs: &Node) -> Result<()> {
    let no = |why: String, hint: &str| Err(refuse(to, format!("\"{}\" cannot become a copy: {why}", to.name), hint));
    if node.in_recovery {
        return no("it is a standby".into(), "copy into its primary");
    }
    if let Some(r) = &node.replica {
        return no(format!("it is a replica of \"{}\"", r.primary), "a replica has everything without copies; stop_replication ends that");
    }
    if node.promoted.is_some() || node.fence.is_some() {
        return no("it was promoted, or fenced".into(), "name another database");
    }
    if !node.system.is_empty() && (&node.system, &node.oid) == (&theirs.system, &theirs.oid) {
        return no(format!("it is the same database as \"{}\"", from.name), "mend runbook.toml");
    }
    Ok(())
}
