//! What logical replication carries and what it does not, found and named before anything starts.

use std::collections::BTreeMap;

use runbook_core::digest::Sha256Hex;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::chunks;
use super::client::{Conn, Texts, col};
use super::data::{NAME, OURS};
use super::settings::Replication;
use super::sql::ident;
use super::standby::{LOGICAL, primary_settings, ready};
use super::state::Node;
use crate::db::driver::Db;

/// What a logical replica is made by.
pub(super) struct Plan {
    /// A digest of every definition of the primary.
    pub schema: String,
    /// Materialized views that have rows.
    pub views: Vec<String>,
    /// The options of `CREATE DATABASE`.
    pub database: String,
}

/// Lets the role of the replicas read every table.
pub(super) async fn grant(conn: &Conn, node: &Node, r: &Replication) -> Result<()> {
    if let Some(all) = grant_all(node, r) {
        return conn.run(&all).await;
    }
    let schemas =
        conn.texts("SELECT quote_ident(nspname) FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'").await?;
    let role = ident(&r.user);
    let each = schemas.iter().map(|s| {
        let s = col(s, 0);
        format!(
            "GRANT USAGE ON SCHEMA {s} TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA {s} TO {role}; GRANT SELECT ON ALL SEQUENCES IN SCHEMA {s} TO {role}"
        )
    });
    conn.run(&each.collect::<Vec<_>>().join("; ")).await
}

/// The same, where the server has a word for that.
pub(super) fn grant_all(node: &Node, r: &Replication) -> Option<String> {
    (node.version >= 140_000).then(|| format!("GRANT pg_read_all_data TO {}", ident(&r.user)))
}

/// A digest of definitions.
pub(super) fn digest(objects: &BTreeMap<String, String>) -> String {
    let mut hash = Sha256Hex::default();
    for (name, text) in objects {
        hash.update(format!("{}:{name}{}:{text}", name.len(), text.len()).as_bytes());
    }
    hash.finish()
}

fn first(rows: &[Texts], kind: &str) -> Vec<String> {
    rows.iter().filter(|r| col(r, 0) == kind).map(|r| col(r, 1).to_string()).collect()
}

/// Looks at the primary, and refuses by name what would break its applications or be lost.
pub(super) async fn plan(cx: &Cx, db: &Db, conn: &Conn, node: &Node) -> Result<Plan> {
    let refuse = |why: String, hint: String| Err(Error::new(Code::DB_SETTINGS, why).hint(hint).host(&db.host));
    ready(db, node, &primary_settings(conn).await?, &LOGICAL)?;
    let sql = format!(
        "SELECT 'keyless', {NAME} FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND {OURS} \
           AND (c.relreplident = 'n' OR c.relreplident = 'd' AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indisvalid)) ORDER BY 2; \
         SELECT 'unlogged', {NAME} FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND c.relpersistence = 'u' AND {OURS} ORDER BY 2; \
         SELECT 'secured', {NAME} FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') AND c.relrowsecurity AND {OURS} ORDER BY 2; \
         SELECT 'view', quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'm' AND c.relispopulated AND {OURS} ORDER BY c.oid; \
         SELECT 'large', count(*) FROM pg_largeobject_metadata; \
         SELECT 'database', format('OWNER %I ENCODING %L LC_COLLATE %L LC_CTYPE %L', pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, datctype) \
           FROM pg_database WHERE datname = current_database()"
    );
    let rows = conn.texts(&sql).await?;
    let keyless = first(&rows, "keyless");
    if !keyless.is_empty() {
        return refuse(
            format!(
                "tables of \"{}\" have no replica identity, so that published updates and deletes of them would fail: {}",
                db.name,
                keyless.join(", ")
            ),
            "give each a primary key, or ALTER TABLE … REPLICA IDENTITY FULL (or USING INDEX)".into(),
        );
    }
    let secured = first(&rows, "secured");
    if !secured.is_empty() {
        return refuse(
            format!("row-level security of \"{}\" would hide rows from the copy: {}", db.name, secured.join(", ")),
            "replicate physically (mode: \"physical\"), or disable it while the replica is made".into(),
        );
    }
    if first(&rows, "large").first().is_some_and(|n| n != "0") {
        return refuse(
            format!("\"{}\" has {} large objects, which logical replication does not carry", db.name, first(&rows, "large").join("")),
            "replicate physically (mode: \"physical\"), or move them into a bytea column, or lo_unlink those that nobody needs (vacuumlo)"
                .into(),
        );
    }
    let unlogged = first(&rows, "unlogged");
    if !unlogged.is_empty() {
        cx.message(format!(
            "unlogged tables of \"{}\" are made without their rows, which nothing carries: {}",
            db.name,
            unlogged.join(", ")
        ));
    }
    let views = first(&rows, "view");
    if !views.is_empty() {
        cx.message(format!("materialized views are refreshed on the replica now, and once more by promote: {}", views.join(", ")));
    }
    let (objects, _) = Box::pin(chunks::schema(cx, db)).await?;
    Ok(Plan { schema: digest(&objects), views, database: first(&rows, "database").join(" ") })
}
