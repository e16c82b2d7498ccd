//! `load`: the files of a dump, several at once, each a transaction with its own mark.

use std::fmt::Write as _;

use runbook_core::Result;
use runbook_core::primitive::Cx;
use serde::{Deserialize, Serialize};

use super::connect::{Sess, server, session};
use super::dump::settings;
use super::host;
use super::sql::{ident, text};
use super::state::{self, Mark};
use crate::db::driver::{Db, DumpOptions, Dumped};
use crate::db::dump::job::{COMMON, processors};
use crate::db::dump::manifest::Manifest;
use crate::db::dump::refuse;
use crate::db::dump::work::{A_DUMP, Folder, Script};

const LOAD: &str = include_str!("load.sh");

/// The table that says what is loaded, while a load is under way.
pub(super) const LOADED: &str = "_runbook_loaded";

/// A load, under way or whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct LoadMark {
    /// The id of the dump, or of the snapshot.
    pub id: String,
    /// The schema into which.
    pub schema: String,
    /// Whether there is room: what was in the way is gone.
    pub ready: bool,
    /// Whether all of it is loaded.
    pub whole: bool,
}

impl Mark for LoadMark {
    const NAME: &'static str = "load";
}

/// Loads a dump into the schema.
pub async fn load(cx: &Cx, db: &Db, path: &str, options: &DumpOptions) -> Result<Dumped> {
    let at = server(cx, db).await?;
    let who = |script: String| host::exec(db, script);
    let folder = Folder { cx, db, who: &who, path, what: A_DUMP };
    let schema = db.settings.need("database")?;
    let m = folder.whole(at.flavour.name()).await?;
    let mut s = session(cx, db).await?;
    let mut mark = LoadMark { id: m.get("id").into(), schema: schema.into(), ..LoadMark::default() };
    let inside = s.column(format!("SELECT table_name FROM information_schema.tables WHERE table_schema = {}", text(schema))).await?;
    let marked = inside.iter().any(|t| t == LOADED);
    if let Some(had) = state::find::<LoadMark>(&mut s).await?.filter(|l| l.id == mark.id && l.schema == schema) {
        // Of what was dropped by hand meanwhile, the mark says nothing any more.
        if had.whole && (m.tables() == 0 || !inside.is_empty()) && m.files.iter().all(|f| f.table.is_empty() || holds(&inside, &f.table)) {
            if marked {
                s.run(format!("DROP TABLE {}.{LOADED}", ident(schema))).await?;
            }
            return Ok(m.dumped("this dump is loaded already"));
        }
        mark.ready = had.ready && !had.whole && marked;
    }
    if !mark.ready {
        make_room(db, &mut s, &m, &mut mark, options.replace).await?;
    }
    let mut list = String::from("files() { cat <<'RUNBOOK_FILES'\n");
    for f in &m.files {
        let rows = f.rows.map_or("0".into(), |n| n.to_string());
        let _ = writeln!(list, "{}\t{}\t{rows}\t{}\t{}\t{}", f.name, f.kind, f.bytes, f.sha256, f.table);
    }
    list.push_str("RUNBOOK_FILES\n}\n");
    let jobs = processors(cx, &db.host, options.jobs).await?;
    let script = Script {
        text: format!("{}{list}{COMMON}{LOAD}", settings(path, schema, jobs)),
        env: host::login(cx, &at)?,
        counted: "counted() { cat \"$j\"/w.* | awk '{ r += $1; b += $2 } END { print \"rows \" r + 0; print \"bytes \" b + 0 }'; }".into(),
    };
    folder.load(&m, schema, script).await?;
    let loaded = s.int(format!("SELECT COUNT(*) FROM {}.{LOADED}", ident(schema))).await?;
    if loaded.unsigned_abs() != m.files.len() as u64 {
        let why = format!("{loaded} of {} files of the dump are loaded into \"{}\", although the load ended well", m.files.len(), db.name);
        return Err(refuse(db, why, "was the schema changed meanwhile? load again with replace: true"));
    }
    mark.whole = true;
    state::write(&mut s, &mark).await?;
    s.run(format!("DROP TABLE {}.{LOADED}", ident(schema))).await?;
    s.close().await;
    folder.loaded().await;
    Ok(m.dumped(""))
}

/// Whether a table of the manifest, with its backticks doubled, is among those.
fn holds(tables: &[String], doubled: &str) -> bool {
    let name = doubled.replace("``", "`");
    tables.contains(&name)
}

/// Makes an empty schema with the dump's character set, when nothing that matters is in the way.
async fn make_room(db: &Db, s: &mut Sess, m: &Manifest, mark: &mut LoadMark, replace: bool) -> Result<()> {
    let schema = mark.schema.clone();
    let marks = state::read(s).await?;
    if let Some(r) = marks.replica.filter(|_| marks.promoted.is_none()) {
        return Err(refuse(
            db,
            format!("\"{}\" is a replica of \"{}\" and takes no load", db.name, r.of),
            "stop_replication and drop_copy first",
        ));
    }
    let name = text(&schema);
    let tables = s
        .column(format!(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = {name} AND table_name <> '{LOADED}' ORDER BY 1"
        ))
        .await?;
    let other = s
        .int(format!(
            "SELECT (SELECT COUNT(*) FROM information_schema.routines WHERE routine_schema = {name}) + (SELECT COUNT(*) FROM information_schema.events WHERE event_schema = {name})"
        ))
        .await?;
    if (!tables.is_empty() || other > 0) && !replace {
        let some: Vec<&str> = tables.iter().take(5).map(String::as_str).collect();
        let more = if tables.len() > some.len() { format!(" and {} more", tables.len() - some.len()) } else { String::new() };
        let what = if tables.is_empty() { format!("{other} routines or events") } else { format!("tables ({}{more})", some.join(", ")) };
        return Err(refuse(
            db,
            format!("\"{}\" is not empty: its schema {schema} has {what}", db.name),
            "name another schema, or use replace: true, which drops it",
        ));
    }
    // On record before anything is dropped.
    state::write(s, mark).await?;
    let (set, collation) = m.get("charset").split_once(' ').unwrap_or(("utf8mb4", ""));
    let word = |w: &str| w.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !word(set) || !word(collation) {
        return Err(refuse(db, format!("the character set \"{}\" of the manifest is none", m.get("charset")), "was the manifest edited?"));
    }
    let collate = if collation.is_empty() { String::new() } else { format!(" COLLATE {collation}") };
    s.run(format!("DROP DATABASE IF EXISTS {}", ident(&schema))).await?;
    s.run(format!("CREATE DATABASE {} CHARACTER SET {set}{collate}", ident(&schema))).await?;
    s.run(format!("CREATE TABLE {}.{LOADED} (item VARCHAR(64) CHARACTER SET ascii PRIMARY KEY) ENGINE=InnoDB", ident(&schema))).await?;
    mark.ready = true;
    state::write(s, mark).await?;
    Ok(())
}
