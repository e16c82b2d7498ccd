//! A schema as a stream: `mariadb-dump` (or `mysqldump`) writes it as of one moment, the client reads it.

use runbook_core::clock::rfc3339;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::connect::{Sess, get, server, session};
use super::data::ACTIONS;
use super::load::LoadMark;
use super::sql::{ident, text};
use super::{host, state};
use crate::db::driver::Db;
use crate::db::dump::refuse;
use crate::db::stream::{About, Client, Inflow, Outflow, Settle, pour};
use crate::ssh::quote;

/// Finds a program of these names, and calls it with the login in a pipe.
const TOOL: &str = r#"login=$RUNBOOK_CLIENT
unset RUNBOOK_CLIENT
tool() {
  for p in "$@"; do command -v "$p" && return; done
  echo "runbook: missing tool $*" >&2
  return 1
}
"#;

/// Counts what the program writes, and finds the position of its moment.
const COUNT: &str = r#"count() {
  awk '
  { bytes += length($0) + 1; first = substr($0, 1, 1) }
  first == "-" {
    if (index($0, "-- Dumping data for table `") == 1) { t = $0; sub(/^[^`]*`/, "", t); sub(/`[^`]*$/, "", t); rows[t] += 0; inside = 0 }
    else if (index($0, "-- Dump completed") == 1) complete++
    else if (/^-- (CHANGE (MASTER|REPLICATION SOURCE) TO |SET GLOBAL gtid_slave_pos=)/) { sub(/^-- /, ""); at = at " " $0 }
    next
  }
  first == "I" && index($0, "INSERT INTO ") == 1 { inside = 1; if ($0 ~ /VALUES *\(/) many[t] = 1 }
  inside { if (first == "(") rows[t]++; if (substr($0, length($0)) == ";") inside = 0 }
  END {
    printf "bytes %.0f\n", bytes
    for (t in rows) print "rows " (t in many ? "?" : rows[t]) " " t
    if (at != "") print "position" at
    if (complete == 2) print "complete"
  }'
}
"#;

/// Character set and collation of a schema; `None` when it is not there.
async fn charset(s: &mut Sess, schema: &str) -> Result<Option<String>> {
    let rows = s
        .rows(format!(
            "SELECT default_character_set_name AS cs, default_collation_name AS co FROM information_schema.schemata WHERE schema_name = {}",
            text(schema)
        ))
        .await?;
    Ok(rows.first().map(|r| format!("{} {}", get(r, "cs"), get(r, "co"))))
}

/// How the schema is written.
pub async fn outflow(cx: &Cx, db: &Db) -> Result<Outflow> {
    let at = server(cx, db).await?;
    let schema = db.settings.need("database")?;
    let mut s = session(cx, db).await?;
    let Some(charset) = charset(&mut s, schema).await? else {
        return Err(Error::new(Code::DB_CONNECT, format!("there is no schema {schema} on the server of \"{}\"", db.name)).host(&db.host));
    };
    let binlog = s.is_on("log_bin").await?;
    let server_id = state::identity(&mut s).await?;
    let tables = s
        .int(format!(
            "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = {} AND table_type <> 'VIEW' AND table_type <> 'SEQUENCE' AND table_name <> '{ACTIONS}'",
            text(schema)
        ))
        .await?;
    s.close().await;
    let maria = at.flavour.maria;
    // MariaDB knows the position of its own snapshot without holding anybody up; MySQL's program would take the lock of all tables.
    let position = if binlog && maria { " --master-data=2 --gtid" } else { "" };
    let own = if maria { String::new() } else { format!(" {}", super::flavour::MYSQLDUMP_PLAIN) };
    let tools = if maria { "mariadb-dump mysqldump" } else { "mysqldump" };
    let name = quote(schema);
    let text = format!(
        r#"{TOOL}{COUNT}dumped() {{
  "$d" --defaults-file=/dev/fd/3 --single-transaction --quick --hex-blob --default-character-set=utf8mb4 --max-allowed-packet=1073741824{own} "$@" {name} 3<<RUNBOOK
$login
RUNBOOK
}}
dump() {{
  unset RESTIC_PASSWORD AWS_SECRET_ACCESS_KEY BORG_PASSPHRASE
  d=$(tool {tools}) || return 1
  dumped{position} --routines --triggers --net-buffer-length=1046528 --ignore-table={ignored} || return
  printf '%s events\n' "$own"
  dumped --no-data --no-create-info --skip-triggers --events --ignore-table={ignored}
}}
"#,
        ignored = quote(&format!("{schema}.{ACTIONS}")),
    );
    let about = About {
        version: 1,
        action: cx.action_id.to_string(),
        database: db.name.clone(),
        kind: at.flavour.name().into(),
        schema: schema.into(),
        server: server_id,
        engine: at.flavour.text.clone(),
        charset,
        position: String::new(),
        time: rfc3339(cx.clock.now()),
        tables: tables.unsigned_abs(),
    };
    Ok(Outflow { about, text, env: host::login(cx, &at)?, sudo: db.settings.flag("sudo") })
}

/// Whether a stream of this id is being loaded into the schema.
async fn ours(s: &mut Sess, schema: &str, id: &str) -> Result<bool> {
    let there = s
        .int(format!("SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = {} AND table_name = '{ACTIONS}'", text(schema)))
        .await?;
    if there == 0 {
        return Ok(false);
    }
    let n =
        s.int(format!("SELECT COUNT(*) FROM {}.{ACTIONS} WHERE action_id = {} AND result = 'restore'", ident(schema), text(id))).await?;
    Ok(n > 0)
}

/// What is in a schema, for people.
async fn inside(s: &mut Sess, schema: &str) -> Result<Vec<String>> {
    let name = text(schema);
    s.column(format!(
        "SELECT CONCAT('table ', table_name) FROM information_schema.tables WHERE table_schema = {name} AND table_name <> '{ACTIONS}' \
         UNION ALL SELECT CONCAT('routine ', routine_name) FROM information_schema.routines WHERE routine_schema = {name} \
         UNION ALL SELECT CONCAT('event ', event_name) FROM information_schema.events WHERE event_schema = {name}"
    ))
    .await
}

async fn create(s: &mut Sess, schema: &str, charset: &str) -> Result<()> {
    let (set, collation) = charset.split_once(' ').unwrap_or((charset, ""));
    let word = |w: &str| w.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !word(set) || !word(collation) || set.is_empty() {
        return Err(Error::new(Code::BACKUP_RESTORE, format!("the character set \"{charset}\" of the snapshot is none")));
    }
    let collate = if collation.is_empty() { String::new() } else { format!(" COLLATE {collation}") };
    s.run(format!("CREATE DATABASE {} CHARACTER SET {set}{collate}", ident(schema))).await.map(drop)
}

/// Makes the schema for a stream.
pub async fn make_ready(cx: &Cx, db: &Db, about: &About, id: &str) -> Result<bool> {
    let schema = db.settings.need("database")?;
    let mut s = session(cx, db).await?;
    let marks = state::read(&mut s).await?;
    if let Some(r) = marks.replica.filter(|_| marks.promoted.is_none()) {
        return Err(refuse(
            db,
            format!("\"{}\" is a replica of \"{}\" and takes no load", db.name, r.of),
            "load it into the primary, or into another server",
        ));
    }
    if charset(&mut s, schema).await?.is_some() {
        let own = ours(&mut s, schema, id).await?;
        let found = inside(&mut s, schema).await?;
        let had = state::find::<LoadMark>(&mut s).await?.filter(|l| l.id == id && l.schema == schema);
        if had.is_some_and(|h| h.whole) && !own && !found.is_empty() {
            return Ok(false);
        }
        if !own && !found.is_empty() {
            let some: Vec<&str> = found.iter().take(5).map(String::as_str).collect();
            let more = if found.len() > some.len() { format!(" and {} more", found.len() - some.len()) } else { String::new() };
            return Err(refuse(
                db,
                format!("\"{}\" is not empty: its schema {schema} has {}{more}", db.name, some.join(", ")),
                "name a database that is empty or not there",
            ));
        }
        s.run(format!("DROP DATABASE {}", ident(schema))).await?;
    }
    create(&mut s, schema, &about.charset).await?;
    s.run(format!(
        "CREATE TABLE {}.{ACTIONS} (action_id VARCHAR(64) CHARACTER SET ascii PRIMARY KEY, time VARCHAR(32) NOT NULL, result VARCHAR(255) NOT NULL) ENGINE=InnoDB",
        ident(schema)
    ))
    .await?;
    s.run(format!("INSERT INTO {}.{ACTIONS} VALUES ({}, {}, 'restore')", ident(schema), text(id), text(&rfc3339(cx.clock.now())))).await?;
    s.close().await;
    Ok(true)
}

/// Schemas whose names begin like this.
pub async fn begin_with(cx: &Cx, db: &Db, name: &str) -> Result<Vec<String>> {
    let mut s = session(cx, db).await?;
    let found = s
        .column(format!(
            "SELECT schema_name FROM information_schema.schemata WHERE LEFT(schema_name, {}) = {} ORDER BY 1",
            name.len(),
            text(name)
        ))
        .await?;
    s.close().await;
    Ok(found)
}

/// Loads a stream.
pub async fn inflow(cx: &Cx, db: &Db, flow: Inflow<'_>) -> Result<()> {
    let at = server(cx, db).await?;
    let schema = quote(db.settings.need("database")?);
    // Events of a throw-away database would begin to work, on other databases too.
    let filter = if flow.test { "sed -e \"/^$own events\\$/,/^$own loaded\\$/d\" | " } else { "" };
    let log = if flow.test { "SET SESSION sql_log_bin = 0; " } else { "" };
    let text = format!(
        r#"{TOOL}load() {{
  unset RESTIC_PASSWORD AWS_SECRET_ACCESS_KEY BORG_PASSPHRASE
  c=$(tool mariadb mysql) || exit 1
  {filter}"$c" --defaults-file=/dev/fd/3 --no-auto-rehash --skip-reconnect -N -B --default-character-set=utf8mb4 --max-allowed-packet=1073741824 {schema} 3<<RUNBOOK
$login
RUNBOOK
  exit
}}
before() {{ echo "{log}SET SESSION foreign_key_checks = 0, unique_checks = 0, sql_notes = 0;"; }}
after() {{ printf '%s loaded\n' "$own"; echo "SELECT 'done';"; }}
"#
    );
    let client = Client { text, env: host::login(cx, &at)?, sudo: db.settings.flag("sudo") };
    pour(cx, db, flow, client).await
}

/// Ends what was begun.
pub async fn settle(cx: &Cx, db: &Db, id: &str, how: Settle) -> Result<()> {
    let schema = db.settings.need("database")?;
    let mut s = session(cx, db).await?;
    let Some(set) = charset(&mut s, schema).await? else { return Ok(()) };
    let own = ours(&mut s, schema, id).await?;
    if !own && !inside(&mut s, schema).await?.is_empty() {
        return Ok(());
    }
    match how {
        Settle::Keep => {
            state::write(&mut s, &LoadMark { id: id.into(), schema: schema.into(), ready: true, whole: true }).await?;
            s.run(format!("DROP TABLE {}.{ACTIONS}", ident(schema))).await?;
        }
        Settle::Empty | Settle::Drop => {
            s.run(format!("DROP DATABASE {}", ident(schema))).await?;
            if how == Settle::Empty {
                create(&mut s, schema, &set).await?;
            }
        }
    }
    s.close().await;
    Ok(())
}
