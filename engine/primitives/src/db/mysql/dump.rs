//! `dump` and `load`: the server's own tools on its host, several at once, each piece of rows a transaction of its own when it is loaded.

use std::fmt::Write as _;

use runbook_core::clock::rfc3339;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use serde::{Deserialize, Serialize};

use super::connect::{Sess, get, server, session};
use super::flavour::Flavour;
use super::sql::{ident, text};
use super::state::{self, Mark};
use super::{data, host};
use crate::db::driver::{Db, DumpOptions, Dumped};
use crate::db::dump::job::{COMMON, Job};
use crate::db::dump::manifest::{Manifest, Place, look};
use crate::ssh::{self, Exec, quote};

const DUMP: &str = include_str!("dump.sh");
const LOAD: &str = include_str!("load.sh");

/// The table that says what is loaded, while a load is under way.
const LOADED: &str = "_runbook_loaded";

/// A load, under way or whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct LoadMark {
    /// The dump's id.
    id: String,
    /// The schema into which.
    schema: String,
    /// Whether there is room: what was in the way is gone.
    ready: bool,
    /// Whether all of it is loaded.
    whole: bool,
}

impl Mark for LoadMark {
    const NAME: &'static str = "load";
}

fn as_tools(db: &Db) -> impl Fn(String) -> Exec + Send + Sync {
    let sudo = db.settings.flag("sudo");
    move |script| Exec { sudo, ..Exec::new(script) }
}

fn refuse(db: &Db, why: String, hint: &str) -> Error {
    Error::new(Code::DB_COPY, why).host(&db.host).hint(hint)
}

/// What a schema has, as the tools want it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Inside {
    /// Tables and sequences.
    tables: Vec<String>,
    views: Vec<String>,
    /// Tables without transactions: each is loaded as one.
    wholes: Vec<String>,
    /// Tables with rows, in groups of about the same size.
    groups: Vec<Vec<String>>,
}

impl Inside {
    fn of(rows: &[(String, String, String, u64)], jobs: usize) -> Inside {
        let mut inside = Inside::default();
        let mut sized = Vec::new();
        for (name, kind, engine, bytes) in rows {
            if name == LOADED || name == data::ACTIONS {
                continue;
            }
            if kind.contains("VIEW") {
                inside.views.push(name.clone());
                continue;
            }
            inside.tables.push(name.clone());
            if kind == "SEQUENCE" {
                continue;
            }
            if !engine.eq_ignore_ascii_case("InnoDB") {
                inside.wholes.push(name.clone());
            }
            sized.push((*bytes, name.clone()));
        }
        sized.sort_by(|a, b| b.cmp(a));
        let mut bins: Vec<(u64, Vec<String>)> = vec![(0, Vec::new()); jobs.max(1)];
        for (bytes, name) in sized {
            if let Some(least) = bins.iter_mut().min_by_key(|(n, _)| *n) {
                least.0 += bytes.max(1 << 14);
                least.1.push(name);
            }
        }
        inside.groups = bins.into_iter().map(|(_, names)| names).filter(|names| !names.is_empty()).collect();
        inside
    }

    /// The functions of the script that call with the names.
    fn functions(&self) -> String {
        let words = |names: &[String]| names.iter().map(|n| quote(n)).collect::<Vec<_>>().join(" ");
        let mut out = format!("all_tables() {{ \"$@\" {}; }}\nall_views() {{ \"$@\" {}; }}\n", words(&self.tables), words(&self.views));
        let wholes: Vec<String> = self.wholes.iter().map(|n| quote(&n.replace('`', "``"))).collect();
        let _ = writeln!(
            out,
            "wholes() {{ {}; }}",
            if wholes.is_empty() { ":".into() } else { format!("printf '%s\\n' {}", wholes.join(" ")) }
        );
        out.push_str("kids=\ngroups() {\n:\n");
        for (n, names) in self.groups.iter().enumerate() {
            let _ = writeln!(out, "work {} {} &\nkids=\"$kids $!\"", n + 1, words(names));
        }
        let _ = writeln!(out, "}}\ncount={}\ntables={}\nviews={}", self.groups.len(), self.tables.len(), self.views.len());
        out
    }
}

/// How many sessions at once, unless it was said: as many as the host has processors.
async fn jobs(cx: &Cx, db: &Db, wanted: Option<usize>) -> Result<usize> {
    if let Some(n) = wanted {
        return Ok(n);
    }
    let done = ssh::connect(cx, &db.host).await?.exec_again(cx, Exec::new("nproc 2>/dev/null || echo 4")).await?;
    Ok(String::from_utf8_lossy(&done.stdout).trim().parse::<usize>().unwrap_or(4).clamp(2, 16))
}

fn dumped(m: &Manifest, note: &str) -> Dumped {
    Dumped {
        tables: m.tables(),
        rows: m.rows(),
        bytes: m.bytes(),
        position: m.get("position").to_string(),
        id: m.get("id").to_string(),
        changed: note.is_empty(),
        note: note.to_string(),
    }
}

/// The GTIDs of a position as the manifest has it; empty when there are none.
fn gtid(position: &str) -> &str {
    position.split_whitespace().find_map(|w| w.strip_prefix("gtid=")).unwrap_or("")
}

/// Writes a dump of the schema into a folder of the host.
pub async fn dump(cx: &Cx, db: &Db, path: &str, options: &DumpOptions) -> Result<Dumped> {
    let at = server(cx, db).await?;
    let who = as_tools(db);
    let schema = db.settings.need("database")?;
    let id = cx.action_id.to_string();
    let mut s = session(cx, db).await?;
    let server_id = state::identity(&mut s).await?;
    let binlog = s.is_on("log_bin").await?;
    match look(cx, &db.host, &who, path).await? {
        Place::Empty | Place::Begun => {}
        Place::Foreign => {
            return Err(refuse(db, format!("{path} has files that are of no dump"), "choose a folder that is empty or not there"));
        }
        Place::Whole(m) if m.get("id") == id => return Ok(dumped(&m, "this action has written it already")),
        Place::Whole(m) => {
            let now = if binlog { state::position(&mut s, &at.flavour).await?.gtid } else { String::new() };
            let same = m.get("server") == server_id && m.get("database") == schema;
            if same && !now.is_empty() && gtid(m.get("position")) == now {
                return Ok(dumped(&m, "nothing was written since that dump"));
            }
            if !options.replace {
                let what = format!("{path} has a dump of {} of {}", m.get("database"), m.get("time"));
                return Err(refuse(db, what, "name another folder, or use replace: true"));
            }
        }
    }
    let rows = s
        .rows(format!(
            "SELECT table_name AS tab, table_type AS kind, COALESCE(engine, '') AS eng, COALESCE(data_length, 0) AS bytes \
             FROM information_schema.tables WHERE table_schema = {}",
            text(schema)
        ))
        .await?;
    let rows: Vec<_> = rows
        .iter()
        .map(|r| (get(r, "tab").to_string(), get(r, "kind").to_string(), get(r, "eng").to_string(), get(r, "bytes").parse().unwrap_or(0)))
        .collect();
    let charset = s
        .rows(format!(
            "SELECT default_character_set_name AS cs, default_collation_name AS co FROM information_schema.schemata WHERE schema_name = {}",
            text(schema)
        ))
        .await?;
    let Some(charset) = charset.first().map(|r| format!("{} {}", get(r, "cs"), get(r, "co"))) else {
        return Err(Error::new(Code::DB_CONNECT, format!("there is no schema {schema} on the server of \"{}\"", db.name)).host(&db.host));
    };
    s.close().await;
    let inside = Inside::of(&rows, jobs(cx, db, options.jobs).await?);
    let total: u64 = rows.iter().map(|r| r.3).sum();
    let fields = [
        ("id", id.as_str()),
        ("kind", at.flavour.name()),
        ("server", &server_id),
        ("database", schema),
        ("version", &at.flavour.text),
        ("charset", &charset),
        ("time", &rfc3339(cx.clock.now())),
        ("tables", &inside.tables.len().to_string()),
    ];
    let settings = settings(path, schema, inside.groups.len());
    let script = format!("{settings}{}{}{}{COMMON}{DUMP}", dialect(&at.flavour, binlog), head(&fields), inside.functions());
    let job = Job {
        host: &db.host,
        who: &who,
        dir: format!("{path}/.job"),
        id: format!("dump {id}"),
        counted: "counted() { cat \"$j\"/index.[1-9]* | awk -F '\\t' '{ r += $3; b += $4 } END { print \"rows \" r + 0; print \"bytes \" b + 0 }'; }".into(),
    };
    let name = db.name.clone();
    let show = |rows: u64, bytes: u64| cx.progress(format!("dumping {name}, {rows} rows"), bytes, Some(total.max(bytes)), "bytes");
    let env = host::tool(cx, &at, &["true"], "")?.env;
    let end = job.run(cx, &script, env, &show).await?.good(&db.host, &format!("the dump of \"{}\"", db.name));
    if let Err(e) = end {
        // Half a dump is of no use, and takes room.
        let _ = tidy(cx, db, &format!("cd {} && [ ! -e manifest ] && rm -f d[0-9]*.sql.* schema.sql.* after.sql.*", quote(path))).await;
        return Err(e);
    }
    let Place::Whole(m) = look(cx, &db.host, &who, path).await? else {
        return Err(refuse(db, format!("the dump in {path} has no manifest, although it ended well"), "look at that folder"));
    };
    if m.get("id") != id {
        return Err(
            refuse(db, format!("the dump in {path} was written by another ({})", m.get("id")), "name another folder").retryable(true)
        );
    }
    let _ = tidy(cx, db, &format!("rm -rf {}/.job", quote(path))).await;
    Ok(dumped(&m, ""))
}

async fn tidy(cx: &Cx, db: &Db, script: &str) -> Result<()> {
    ssh::connect(cx, &db.host).await?.exec(cx, as_tools(db)(script.to_string())).await.map(drop)
}

/// Settings that both scripts have.
fn settings(path: &str, schema: &str, jobs: usize) -> String {
    format!("d={}\nschema={}\njobs={jobs}\nclient='mariadb mysql'\n", quote(path), quote(schema))
}

/// What differs between servers.
fn dialect(f: &Flavour, binlog: bool) -> String {
    let (lock, unlock) = if f.maria && f.version >= (10, 4, 2) {
        // Commits and changes of definitions wait; reading and unfinished transactions do not.
        ("BACKUP STAGE START; BACKUP STAGE BLOCK_COMMIT", "BACKUP STAGE END")
    } else {
        ("FLUSH TABLES WITH READ LOCK", "UNLOCK TABLES")
    };
    let position = match (binlog, f.maria) {
        (false, _) => String::new(),
        (true, true) => format!("SELECT CONCAT('gtid=', @@gtid_binlog_pos); {}", f.show_binlog()),
        (true, false) => format!("SELECT CONCAT('gtid=', REPLACE(@@gtid_executed, '\\n', '')); {}", f.show_binlog()),
    };
    let (tools, options) = if f.maria {
        ("mariadb-dump mysqldump", if binlog { "--master-data=2" } else { "" })
    } else {
        ("mysqldump", "--set-gtid-purged=OFF --no-tablespaces --column-statistics=0")
    };
    // MySQL's tool would take the lock itself to print the position.
    let proof = if binlog && f.maria { "yes" } else { "no" };
    let position = if position.is_empty() { "SELECT 'none'".to_string() } else { position };
    format!(
        "dump={}\nlock={}\nunlock={}\nwhere={}\ndata={}\nbinlog={proof}\n",
        quote(tools),
        quote(lock),
        quote(unlock),
        quote(&position),
        quote(options)
    )
}

/// The function that prints the fields of a manifest.
fn head(fields: &[(&str, &str)]) -> String {
    let mut out = "head() {\n".to_string();
    for (k, v) in fields {
        let _ = writeln!(out, "printf '%s\\t%s\\n' {k} {}", quote(&v.replace(['\n', '\t'], " ")));
    }
    out.push_str("}\n");
    out
}

/// Loads a dump into the schema.
pub async fn load(cx: &Cx, db: &Db, path: &str, options: &DumpOptions) -> Result<Dumped> {
    let at = server(cx, db).await?;
    let who = as_tools(db);
    let schema = db.settings.need("database")?;
    let Place::Whole(m) = look(cx, &db.host, &who, path).await? else {
        return Err(refuse(db, format!("{path} has no whole dump"), "dump writes the file manifest last; copy such a folder to this host"));
    };
    if m.get("kind") != at.flavour.name() {
        let why = format!("the dump in {path} is of kind {}, and \"{}\" of kind {}", m.get("kind"), db.name, at.flavour.name());
        return Err(refuse(db, why, "load it into a database of its own kind"));
    }
    let mut s = session(cx, db).await?;
    let mut mark = LoadMark { id: m.get("id").into(), schema: schema.into(), ..LoadMark::default() };
    let inside = s.column(format!("SELECT table_name FROM information_schema.tables WHERE table_schema = {}", text(schema))).await?;
    let marked = inside.iter().any(|t| t == LOADED);
    if let Some(had) = read(&mut s).await?.filter(|l| l.id == mark.id && l.schema == schema) {
        // Of what was dropped by hand meanwhile, the mark says nothing any more.
        if had.whole && (m.tables() == 0 || !inside.is_empty()) && m.files.iter().all(|f| f.table.is_empty() || holds(&inside, &f.table)) {
            if marked {
                s.run(format!("DROP TABLE {}.{LOADED}", ident(schema))).await?;
            }
            return Ok(dumped(&m, "this dump is loaded already"));
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
    let jobs = jobs(cx, db, options.jobs).await?;
    let script = format!("{}{list}{COMMON}{LOAD}", settings(path, schema, jobs));
    let job = Job {
        host: &db.host,
        who: &who,
        dir: format!("{path}/.load-{}", db.name.replace(|c: char| !c.is_ascii_alphanumeric(), "_")),
        id: format!("load {} into {schema}", m.get("id")),
        counted: "counted() { cat \"$j\"/w.* | awk '{ r += $1; b += $2 } END { print \"rows \" r + 0; print \"bytes \" b + 0 }'; }".into(),
    };
    let (name, total) = (db.name.clone(), m.bytes());
    let show = |rows: u64, bytes: u64| cx.progress(format!("loading {name}, {rows} rows"), bytes, Some(total.max(bytes)), "bytes");
    let env = host::tool(cx, &at, &["true"], "")?.env;
    job.run(cx, &script, env, &show).await?.good(&db.host, &format!("the load into \"{}\"", db.name))?;
    let loaded = s.int(format!("SELECT COUNT(*) FROM {}.{LOADED}", ident(schema))).await?;
    if loaded.unsigned_abs() != m.files.len() as u64 {
        let why = format!("{loaded} of {} files of the dump are loaded into \"{}\", although the load ended well", m.files.len(), db.name);
        return Err(refuse(db, why, "was the schema changed meanwhile? load again with replace: true"));
    }
    mark.whole = true;
    state::write(&mut s, &mark).await?;
    s.run(format!("DROP TABLE {}.{LOADED}", ident(schema))).await?;
    s.close().await;
    let _ = tidy(cx, db, &format!("rm -rf {}", quote(&job.dir))).await;
    Ok(dumped(&m, ""))
}

/// Whether a table of the manifest, with its backticks doubled, is among those.
fn holds(tables: &[String], doubled: &str) -> bool {
    let name = doubled.replace("``", "`");
    tables.contains(&name)
}

async fn read(s: &mut Sess) -> Result<Option<LoadMark>> {
    let there = format!("SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = '{}' AND table_name = 'state'", state::SCHEMA);
    if s.int(there).await? == 0 {
        return Ok(None);
    }
    let found = s.text(format!("SELECT value FROM {}.state WHERE name = '{}'", state::SCHEMA, LoadMark::NAME)).await?;
    Ok(found.and_then(|json| serde_json::from_str(&json).ok()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_spread_by_their_size() {
        let row = |n: &str, kind: &str, engine: &str, bytes: u64| (n.to_string(), kind.to_string(), engine.to_string(), bytes);
        let rows = [
            row("big", "BASE TABLE", "InnoDB", 100 << 20),
            row("half", "BASE TABLE", "InnoDB", 50 << 20),
            row("it's", "BASE TABLE", "MyISAM", 40 << 20),
            row("v", "VIEW", "", 0),
            row("s", "SEQUENCE", "InnoDB", 16384),
            row(LOADED, "BASE TABLE", "InnoDB", 0),
        ];
        let inside = Inside::of(&rows, 2);
        assert_eq!(inside.groups, [vec!["big".to_string()], vec!["half".into(), "it's".into()]]);
        assert_eq!((inside.tables.len(), inside.views.len(), inside.wholes.len()), (4, 1, 1));
        let f = inside.functions();
        assert!(f.contains("work 2 half 'it'\\''s' &") && f.contains("count=2\n"), "{f}");
        assert_eq!(Inside::of(&rows[..1], 8).groups.len(), 1);
    }

    #[test]
    fn positions_are_compared_by_their_gtids() {
        assert_eq!(gtid("gtid=0-1-5 bin.000001 330   "), "0-1-5");
        assert_eq!(gtid("none"), "");
    }
}
