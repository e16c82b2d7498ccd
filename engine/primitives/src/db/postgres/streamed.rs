//! A database as a stream: `pg_dump` writes it as of one moment, `psql` reads it in one transaction.

use runbook_core::Result;
use runbook_core::clock::rfc3339;
use runbook_core::primitive::Cx;

use super::client::{Conn, For, col, connect};
use super::dump::{LoadMark, Tools, env, explain, found, must_be_empty, path};
use super::settings::{self, beside};
use super::sql::{ident, lit};
use super::state::{self, look};
use crate::db::driver::Db;
use crate::db::dump::refuse;
use crate::db::stream::{About, Client, Inflow, Outflow, Settle, pour};
use crate::ssh::quote;

/// Counts what `pg_dump` writes.
const COUNT: &str = r#"count() {
  awk '
  { bytes += length($0) + 1 }
  inside { if ($0 == "\\.") inside = 0; else rows[t]++; next }
  /^COPY .* FROM stdin;$/ { t = substr($0, 6); sub(/ \(.*/, "", t); rows[t] += 0; inside = 1; next }
  /^-- PostgreSQL database dump complete/ { complete = 1 }
  END {
    printf "bytes %.0f\n", bytes
    for (t in rows) print "rows " rows[t] " " t
    if (complete) print "complete"
  }'
}
"#;

/// Becomes the user who may log in, when the script is not run by that one. Nothing of the repository is passed on.
fn as_user(tools: &Tools) -> String {
    let run = tools.user().map_or(String::new(), |u| format!("runuser -u {} -- ", quote(u)));
    format!("as_user() {{\n  unset RESTIC_PASSWORD AWS_SECRET_ACCESS_KEY BORG_PASSPHRASE\n  cd /\n  exec {run}\"$@\"\n}}\n")
}

/// How the database is written.
pub(super) async fn outflow(cx: &Cx, db: &Db) -> Result<Outflow> {
    let conn = connect(cx, db, For::Admin).await?;
    let node = look(&conn).await?;
    let tools = Tools::of(cx, db, Some(1)).await?;
    let version = conn.text("SHOW server_version").await?.unwrap_or_default();
    let about = conn
        .texts("SELECT pg_encoding_to_char(encoding), datcollate, datctype FROM pg_database WHERE datname = current_database()")
        .await?;
    let charset = about.first().map(|r| format!("{} {} {}", col(r, 0), col(r, 1), col(r, 2))).unwrap_or_default();
    let tables = conn
        .text(
            "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' \
             AND n.nspname NOT IN ('information_schema', '_runbook') AND c.relname <> '_runbook_actions'",
        )
        .await?;
    let text = format!(
        "{COUNT}{}{}dump() {{\n  p=$(command -v pg_dump) || {{ echo 'runbook: missing tool pg_dump (postgresql-client)' >&2; return 1; }}\n  \
         (as_user \"$p\" --no-password --no-subscriptions -T '*._runbook_actions' -N _runbook)\n}}\n",
        path(db),
        as_user(&tools)
    );
    let about = About {
        version: 1,
        action: cx.action_id.to_string(),
        database: db.name.clone(),
        kind: "postgresql".into(),
        schema: settings::database(db)?.into(),
        server: node.system.clone(),
        engine: version,
        charset,
        position: format!("not before {}", node.lsn),
        time: rfc3339(cx.clock.now()),
        tables: tables.and_then(|n| n.parse().ok()).unwrap_or(0),
    };
    Ok(Outflow { about, text, env: env(cx, db)?, sudo: tools.user().is_some() && !tools.root() })
}

/// A connection to another database of the server, from where this one is made and dropped.
async fn outside(cx: &Cx, db: &Db) -> Result<Conn> {
    let aside = if settings::database(db)? == "postgres" { "template1" } else { "postgres" };
    connect(cx, &beside(db, aside), For::Admin).await
}

async fn exists(conn: &Conn, name: &str) -> Result<bool> {
    Ok(conn.text(&format!("SELECT 1 FROM pg_database WHERE datname = {}", lit(name))).await?.is_some())
}

async fn create(conn: &Conn, name: &str, about: &About) -> Result<()> {
    let mut words = about.charset.split(' ');
    let (encoding, collate, ctype) = (words.next().unwrap_or("UTF8"), words.next().unwrap_or("C"), words.next().unwrap_or("C"));
    conn.run(&format!(
        "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}",
        ident(name),
        lit(encoding),
        lit(collate),
        lit(ctype)
    ))
    .await
}

/// The mark of a load, kept outside of the database's content.
async fn mark(conn: &Conn, name: &str) -> Result<Option<LoadMark>> {
    let rows = conn
        .texts(&format!(
            "SELECT unnest(s.setconfig) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase WHERE s.setrole = 0 AND d.datname = {}",
            lit(name)
        ))
        .await?;
    Ok(rows.iter().find_map(|r| serde_json::from_str(col(r, 0).strip_prefix("runbook.load=")?).ok()))
}

async fn drop_database(conn: &Conn, name: &str) -> Result<()> {
    conn.run(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", ident(name))).await
}

/// Makes the database for a stream.
pub(super) async fn make_ready(cx: &Cx, db: &Db, about: &About, id: &str) -> Result<bool> {
    let name = settings::database(db)?;
    let conn = outside(cx, db).await?;
    if look(&conn).await?.in_recovery {
        return Err(refuse(db, format!("\"{}\" is a standby and takes no load", db.name), "load it into its primary"));
    }
    let mut half = LoadMark { id: id.into(), ..LoadMark::default() };
    if exists(&conn, name).await? {
        let had = mark(&conn, name).await?.filter(|m| m.id == id);
        let inside = connect(cx, db, For::Admin).await?;
        let there = found(&inside).await?;
        drop(inside);
        if had.as_ref().is_some_and(|m| m.whole) && !there.is_empty() {
            return Ok(false);
        }
        if had.is_none() {
            must_be_empty(db, &there, "name a database that is empty or not there")?;
        }
        half.ready = true;
        conn.run(&state::set(&ident(name), "load", &half)?).await?;
        if !there.is_empty() {
            // What an earlier try has left; the load itself is one transaction.
            drop_database(&conn, name).await?;
        }
    }
    if !exists(&conn, name).await? {
        create(&conn, name, about).await?;
        half.ready = true;
        conn.run(&state::set(&ident(name), "load", &half)?).await?;
    }
    Ok(true)
}

/// Databases whose names begin like this.
pub(super) async fn begin_with(cx: &Cx, db: &Db, name: &str) -> Result<Vec<String>> {
    let conn = outside(cx, db).await?;
    let rows = conn.texts(&format!("SELECT datname FROM pg_database WHERE starts_with(datname, {}) ORDER BY 1", lit(name))).await?;
    Ok(rows.iter().map(|r| col(r, 0).to_string()).collect())
}

/// Loads a stream.
pub(super) async fn inflow(cx: &Cx, db: &Db, flow: Inflow<'_>) -> Result<()> {
    let tools = Tools::of(cx, db, Some(1)).await?;
    let text = format!(
        r#"{}{}load() {{
  p=$(command -v psql) || {{ echo 'runbook: missing tool psql (postgresql-client)' >&2; exit 1; }}
  as_user "$p" --no-password -X -q -A -t -v ON_ERROR_STOP=1 -v VERBOSITY=verbose -v SHOW_CONTEXT=never
}}
before() {{ echo 'BEGIN;'; }}
after() {{ printf 'COMMIT;\n\\echo done\n'; }}
"#,
        path(db),
        as_user(&tools)
    );
    let client = Client { text, env: env(cx, db)?, sudo: tools.user().is_some() && !tools.root() };
    pour(cx, db, flow, client).await.map_err(explain)
}

/// Ends what was begun.
pub(super) async fn settle(cx: &Cx, db: &Db, id: &str, how: Settle) -> Result<()> {
    let name = settings::database(db)?;
    let conn = outside(cx, db).await?;
    let Some(had) = mark(&conn, name).await?.filter(|m| m.id == id && !m.whole) else {
        // One that a crash has left before its mark: it is empty.
        if how == Settle::Drop && exists(&conn, name).await? && mark(&conn, name).await?.is_none() {
            let inside = connect(cx, db, For::Admin).await?;
            let empty = found(&inside).await?.is_empty();
            drop(inside);
            if empty {
                return drop_database(&conn, name).await;
            }
        }
        return Ok(());
    };
    match how {
        Settle::Keep => conn.run(&state::set(&ident(name), "load", &LoadMark { whole: true, ..had })?).await,
        Settle::Empty => {
            // A load is one transaction, but for databases with large objects: `pg_dump` commits after these.
            let inside = connect(cx, db, For::Admin).await?;
            let empty = found(&inside).await?.is_empty();
            drop(inside);
            if empty {
                return conn.run(&format!("ALTER DATABASE {} RESET runbook.load", ident(name))).await;
            }
            let rows = conn
                .texts(&format!(
                    "SELECT pg_encoding_to_char(encoding), datcollate, datctype, pg_get_userbyid(datdba) FROM pg_database WHERE datname = {}",
                    lit(name)
                ))
                .await?;
            drop_database(&conn, name).await?;
            match rows.first() {
                Some(r) => {
                    let charset = format!("{} {} {}", col(r, 0), col(r, 1), col(r, 2));
                    create(&conn, name, &About { charset, ..About::default() }).await?;
                    conn.run(&format!("ALTER DATABASE {} OWNER TO {}", ident(name), ident(col(r, 3)))).await
                }
                None => Ok(()),
            }
        }
        Settle::Drop => drop_database(&conn, name).await,
    }
}
