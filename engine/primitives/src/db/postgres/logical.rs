//! Logical replication: a publication of every table on the primary, the schema copied by `pg_dump`, a subscription with a slot.
//!
//! The replica is a database like any other, so it is closed (no connections but a super-user's) from the moment it is made until it is
//! promoted. Its mark says whose replica it is and how far the making of it came.

use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::time::Instant;

use super::accounts;
use super::carried::{self, Plan};
use super::client::{Conn, col};
use super::cluster::Cluster;
use super::copy::end_leftover;
use super::data::{admin, database_ident, unless_stopped};
use super::login::{conninfo_of, ensure_role, put_password, remove_password, try_login};
use super::settings::{self, Replication, replication};
use super::slots::{drop_published, drop_slot, slot};
use super::sql::{ident, lit};
use super::state::{Node, Replica, set};
use super::subscribed::{failure, settled};
use super::turned;
use crate::db::driver::{Db, Replicate, Replicated};
use crate::ssh::quote;

/// Makes `db` a logical replica of `primary`.
pub(super) async fn replicate(cx: &Cx, db: &Db, primary: &Db, options: &Replicate) -> Result<Replicated> {
    unless_stopped(cx, db, async {
        let (p, node) = admin(cx, primary).await?;
        let plan = Box::pin(carried::plan(cx, primary, &p, &node)).await?;
        if options.way_back {
            let (s, s_node) = admin(cx, &settings::beside(db, "postgres")).await?;
            Box::pin(turned::may_turn(cx, db, primary, &s, &s_node)).await?;
        }
        let cluster = Cluster::of(cx, db).await?;
        let r = replication(cx, primary)?;
        ensure_role(cx, &p, &r).await.map_err(|e| e.host(&primary.host))?;
        carried::grant(&p, &node, &r).await?;
        Box::pin(put_password(cx, &cluster, &r)).await?;
        Box::pin(try_login(cx, &cluster, db, primary, &r, &node, Some(settings::database(primary)?))).await?;

        // What an earlier try has left at work.
        end_leftover(&cluster).await?;
        cluster.must("clearing up", &cluster.script("rm -f \"$d\".runbook-schema.*")?, None).await?;
        let (changed, there) = Box::pin(place(cx, db, primary, &p, &node, &plan, options)).await?;
        let (conn, mark) = match there.loaded {
            true => (admin(cx, db).await?.0, there),
            false => Box::pin(load(cx, &cluster, db, primary, &r, there)).await?,
        };
        let made = Box::pin(subscribe(cx, &cluster, db, primary, (&conn, &p), &r, &mark)).await?;
        Box::pin(copied(cx, db, &conn)).await?;
        // Views that hold rows, and what the planner knows, are carried by nobody.
        for view in &plan.views {
            let there = conn.text(&format!("SELECT relispopulated::text FROM pg_class WHERE oid = {}::regclass", lit(view))).await?;
            if there.as_deref() == Some("false") {
                conn.run(&format!("REFRESH MATERIALIZED VIEW {view}")).await?;
            }
        }
        if made {
            conn.run("ANALYZE").await?;
        }
        let bytes = conn.text("SELECT pg_database_size(current_database())").await?.and_then(|n| n.parse().ok()).unwrap_or(0);
        let at = format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = {}", lit(&mark.slot));
        let position = p.text(&at).await?.unwrap_or_default();
        let note = if changed || made { String::new() } else { "it replicates from there already".to_string() };
        Ok(Replicated { changed: changed || made, rows: 0, bytes: if made { bytes } else { 0 }, position, note })
    })
    .await
}

/// Ends a statement of this database's sessions that an earlier try has left at work: what it makes would come into being after this
/// has looked.
pub(super) async fn end_left(cx: &Cx, conn: &Conn, begins: &str) -> Result<()> {
    let sql = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
         AND starts_with(query, {}) AND state = 'active'",
        lit(begins)
    );
    while !conn.texts(&sql).await?.is_empty() {
        cx.sleep(Duration::from_millis(50)).await?;
    }
    Ok(())
}

/// Finds or makes the database, closed and marked.
async fn place(cx: &Cx, db: &Db, primary: &Db, p: &Conn, node: &Node, plan: &Plan, options: &Replicate) -> Result<(bool, Replica)> {
    let (replace, way_back) = (options.replace, options.way_back);
    let refuse = |code: Code, why: String, hint: &str| Err(Error::new(code, why).hint(hint).host(&db.host));
    let server = settings::beside(db, "postgres");
    let (s, s_node) = admin(cx, &server).await?;
    if s_node.in_recovery {
        return refuse(
            Code::DB_COPY,
            format!("\"{}\" is a standby: nothing can be made in it", db.name),
            "stop_replication, then promote it or make a new cluster",
        );
    }
    if s_node.system == node.system {
        return refuse(
            Code::DB_COPY,
            format!("\"{}\" and \"{}\" are of one cluster, or of one origin", db.name, primary.name),
            "make a new cluster with initdb",
        );
    }
    let mark = Replica {
        primary: primary.name.clone(),
        system: node.system.clone(),
        oid: node.oid.clone(),
        slot: slot(db),
        schema: plan.schema.clone(),
        loaded: false,
        way_back,
    };
    let name = settings::database(db)?;
    let create = format!("CREATE DATABASE {} TEMPLATE template0 ALLOW_CONNECTIONS true CONNECTION LIMIT 0", ident(name));
    end_left(cx, &s, &create).await?;
    if s.text(&format!("SELECT oid FROM pg_database WHERE datname = {}", lit(name))).await?.is_some() {
        let (conn, there) = admin(cx, db).await?;
        match there.replica {
            Some(m) if m.system == mark.system && m.oid == mark.oid && m.loaded && !replace => {
                let changed = m.way_back != way_back;
                let m = Replica { way_back, ..m };
                if changed {
                    conn.run(&set(&ident(name), "replica", &m)?).await?;
                }
                return Ok((changed, m));
            }
            // What an earlier try has left.
            Some(m) if m.system == mark.system && m.oid == mark.oid => unsubscribe(&conn).await?,
            Some(m) if !replace => {
                return refuse(
                    Code::DB_COPY,
                    format!("\"{}\" is a replica of \"{}\"", db.name, m.primary),
                    "stop that with stop_replication, or say replace: true, which removes it for good",
                );
            }
            _ => {
                let tables = conn.text("SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_'").await?;
                if tables.as_deref() != Some("0") && !replace {
                    return refuse(
                        Code::DB_COPY,
                        format!("the database \"{}\" is there and is not empty", db.name),
                        "replicate_from(primary, #{ mode: \"logical\", replace: true }) removes it, for good",
                    );
                }
                unsubscribe(&conn).await?;
            }
        }
        drop(conn);
        super::kept::forget(cx, db)?;
        s.run(&format!("DROP DATABASE {} WITH (FORCE)", ident(name))).await?;
    }
    accounts::make_missing(cx, p, &s).await?;
    s.run(&format!("{create} {}", plan.database)).await?;
    s.run(&set(&ident(name), "replica", &mark)?).await?;
    Ok((true, mark))
}

/// Copies the definitions, all or none; the mark says so in the same transaction.
async fn load(cx: &Cx, cluster: &Cluster<'_>, db: &Db, primary: &Db, r: &Replication, mark: Replica) -> Result<(Conn, Replica)> {
    let data = cluster.data()?;
    let mark = Replica { loaded: true, ..mark };
    let from = conninfo_of(primary, r, &data, "runbook_schema")?;
    let script = cluster.script(&format!(
        "set -e; umask 077; echo $$ > \"$d.runbook-pid\"; f=$(mktemp \"$d.runbook-schema.XXXXXX\"); trap 'rm -f \"$f\" \"$d.runbook-pid\"' EXIT\n\
         pg_dump -w -s --no-publications --no-subscriptions -d {} -f \"$f\"; cat >> \"$f\"\n\
         psql -w -X -q -1 -v ON_ERROR_STOP=1 -h {} -p {} -d {} -f \"$f\" >/dev/null",
        quote(&from),
        quote(&settings::libpq_host(db)),
        settings::port(db),
        quote(settings::database(db)?)
    ))?;
    let last = format!("\n;{};\n", set(&database_ident(db)?, "replica", &mark)?);
    cluster.must("copying the definitions", &script, Some(last.into_bytes())).await?;
    Ok((admin(cx, db).await?.0, mark))
}

/// Publication, slot and subscription; whether the last had to be made.
async fn subscribe(
    cx: &Cx,
    cluster: &Cluster<'_>,
    db: &Db,
    primary: &Db,
    (conn, p): (&Conn, &Conn),
    r: &Replication,
    mark: &Replica,
) -> Result<bool> {
    let (name, quoted) = (&mark.slot, ident(&mark.slot));
    // Of a promotion that did not come about.
    drop_published(cx, conn, &slot(primary)).await?;
    if p.text(&format!("SELECT pubname FROM pg_publication WHERE pubname = {}", lit(name))).await?.is_none() {
        p.run(&format!("CREATE PUBLICATION {quoted} FOR ALL TABLES")).await?;
    }
    end_left(cx, conn, "CREATE SUBSCRIPTION").await?;
    let info = conninfo_of(primary, r, &cluster.data()?, name)?;
    if let Some(enabled) = conn.text(&format!("SELECT subenabled::text FROM pg_subscription WHERE subname = {}", lit(name))).await? {
        let there = p.text(&format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = {}", lit(name))).await?;
        if there.as_deref().is_none_or(|s| s == "lost") {
            return Err(Error::new(
                Code::DB_REPLICATION,
                format!("the slot {name} on \"{}\" is gone, and with it what \"{}\" lacks", primary.name, db.name),
            )
            .hint("replicate_from(primary, #{ mode: \"logical\", replace: true }) begins anew")
            .host(&db.host));
        }
        conn.run(&format!("ALTER SUBSCRIPTION {quoted} CONNECTION {}", lit(&info))).await?;
        if enabled != "true" {
            conn.run(&format!("ALTER SUBSCRIPTION {quoted} ENABLE")).await?;
        }
        conn.run(&format!("ALTER SUBSCRIPTION {quoted} REFRESH PUBLICATION")).await?;
        return Ok(false);
    }
    // A slot without its subscription: made by a try that was cut short.
    drop_slot(cx, p, name).await?;
    conn.run(&format!("CREATE SUBSCRIPTION {quoted} CONNECTION {} PUBLICATION {quoted} WITH (slot_name = {})", lit(&info), lit(name)))
        .await?;
    Ok(true)
}

/// Waits until every table is copied and follows.
async fn copied(cx: &Cx, db: &Db, conn: &Conn) -> Result<()> {
    let what = format!("copying the tables of {}", db.name);
    let mut down: Option<Instant> = None;
    loop {
        let s = settled(conn).await?;
        cx.progress(&what, s.ready, Some(s.tables), "tables");
        if s.ready == s.tables && s.running {
            return Ok(());
        }
        // A worker that is not there for a moment is one that comes again.
        let since = down.filter(|_| !s.running || s.copying == 0).unwrap_or_else(Instant::now);
        down = Some(since);
        if since.elapsed() > Duration::from_secs(8) {
            if let Some(e) = Box::pin(failure(cx, db, conn)).await? {
                return Err(e.stopped(db));
            }
            down = None;
        }
        cx.sleep(Duration::from_millis(100)).await?;
    }
}

/// The subscriptions of a database that were made here, as `s`.
pub(super) const SUBSCRIBED: &str =
    "pg_subscription s WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND subname LIKE 'runbook\\_%'";

/// Ends the subscriptions of a database, without asking the other side.
pub(super) async fn unsubscribe(conn: &Conn) -> Result<()> {
    let all = conn.texts(&format!("SELECT quote_ident(subname) FROM {SUBSCRIBED}")).await?;
    for r in &all {
        conn.run(&dropped(col(r, 0))).await?;
    }
    Ok(())
}

/// How the transaction begins by which a subscriber takes over: with [`dropped`].
pub(super) const TAKES_OVER: &str = "BEGIN; ALTER SUBSCRIPTION";

/// The statements that end a subscription and leave its slot alone.
pub(super) fn dropped(subscription: &str) -> String {
    format!(
        "ALTER SUBSCRIPTION {subscription} DISABLE; ALTER SUBSCRIPTION {subscription} SET (slot_name = NONE); DROP SUBSCRIPTION {subscription}"
    )
}

/// Ends replication on both sides; the mark goes last, since it knows where the other side is.
pub(super) async fn stop(cx: &Cx, db: &Db, conn: &Conn, mark: &Replica) -> Result<bool> {
    unsubscribe(conn).await?;
    let primary = Db::find(cx, &mark.primary)?;
    let (p, node) = admin(cx, &primary).await?;
    drop_published(cx, conn, &slot(&primary)).await?;
    if node.system == mark.system && !node.in_recovery {
        drop_published(cx, &p, &mark.slot).await?;
    }
    remove_password(cx, db).await?;
    conn.run(&format!("ALTER DATABASE {} RESET runbook.replica", database_ident(db)?)).await?;
    Ok(true)
}
