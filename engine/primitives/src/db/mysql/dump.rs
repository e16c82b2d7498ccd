//! `dump`: the server's own tool on its host, several at once, as of one moment.

use std::fmt::Write as _;

use runbook_core::clock::rfc3339;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::connect::{get, server, session};
use super::flavour::Flavour;
use super::load::LOADED;
use super::sql::text;
use super::{data, host, state};
use crate::db::driver::{Db, DumpOptions, Dumped};
use crate::db::dump::job::{COMMON, processors};
use crate::db::dump::manifest::head;
use crate::db::dump::work::{A_DUMP, Folder, Script};
use crate::ssh::quote;

const DUMP: &str = include_str!("dump.sh");

/// Which types take a value as the bytes that the server has of it. Those of plugins (`inet6`, `uuid`) take bytes for something else, MySQL's
/// `json` takes none.
const BYTES: &str = "'tinyint', 'smallint', 'mediumint', 'int', 'bigint', 'decimal', 'float', 'double', 'bit', 'char', 'varchar', 'tinytext', 'text', 'mediumtext', \
    'longtext', 'binary', 'varbinary', 'tinyblob', 'blob', 'mediumblob', 'longblob', 'enum', 'set', 'date', 'time', 'datetime', 'timestamp', 'year', \
    'geometry', 'point', 'linestring', 'polygon', 'multipoint', 'multilinestring', 'multipolygon', 'geometrycollection', 'geomcollection', 'vector'";

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
    /// Likewise, those whose values are not dumped as bytes.
    texts: Vec<Vec<String>>,
}

impl Inside {
    fn of(rows: &[(String, String, String, u64)], texts: &[String], jobs: usize) -> Inside {
        let mut inside = Inside::default();
        let (mut sized, mut as_texts) = (Vec::new(), Vec::new());
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
            let list = if texts.contains(name) { &mut as_texts } else { &mut sized };
            list.push(((*bytes).max(1 << 14), name.clone()));
        }
        // The jobs are shared by size; neither kind goes without one.
        let weight = |list: &[(u64, String)]| list.iter().map(|(n, _)| n).sum::<u64>();
        let (some, all) = (weight(&as_texts), weight(&as_texts) + weight(&sized));
        let share = usize::try_from(some * jobs as u64 / all.max(1)).unwrap_or(jobs).max(1);
        inside.texts = spread(as_texts, share);
        inside.groups = spread(sized, jobs - inside.texts.len().min(jobs));
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
        let bytes = self.groups.iter().map(|names| ("bytes", names));
        for (n, (how, names)) in bytes.chain(self.texts.iter().map(|names| ("texts", names))).enumerate() {
            let _ = writeln!(out, "work {} {how} {} &\nkids=\"$kids $!\"", n + 1, words(names));
        }
        let _ = writeln!(out, "}}\ncount={}\ntables={}\nviews={}", self.sessions(), self.tables.len(), self.views.len());
        out
    }

    /// How many sessions dump rows.
    fn sessions(&self) -> usize {
        self.groups.len() + self.texts.len()
    }
}

/// Spreads tables over at most so many groups, at least one, of about the same size.
fn spread(mut sized: Vec<(u64, String)>, groups: usize) -> Vec<Vec<String>> {
    sized.sort_by(|a, b| b.cmp(a));
    let mut bins: Vec<(u64, Vec<String>)> = vec![(0, Vec::new()); groups.max(1)];
    for (bytes, name) in sized {
        if let Some(least) = bins.iter_mut().min_by_key(|(n, _)| *n) {
            least.0 += bytes;
            least.1.push(name);
        }
    }
    bins.into_iter().map(|(_, names)| names).filter(|names| !names.is_empty()).collect()
}

/// The GTIDs of a position as the manifest has it; empty when there are none.
fn gtid(position: &str) -> &str {
    position.split_whitespace().find_map(|w| w.strip_prefix("gtid=")).unwrap_or("")
}

/// Writes a dump of the schema into a folder of the host.
pub async fn dump(cx: &Cx, db: &Db, path: &str, options: &DumpOptions) -> Result<Dumped> {
    let at = server(cx, db).await?;
    let who = |script: String| host::exec(db, script);
    let folder = Folder { cx, db, who: &who, path, what: A_DUMP };
    let schema = db.settings.need("database")?;
    let id = cx.action_id.to_string();
    let mut s = session(cx, db).await?;
    let server_id = state::identity(&mut s).await?;
    let binlog = s.is_on("log_bin").await?;
    if let Some(m) = folder.there().await? {
        if m.get("id") == id {
            return Ok(m.dumped("this action has written it already"));
        }
        let now = if binlog { state::position(&mut s, &at.flavour).await?.gtid } else { String::new() };
        let same = m.get("server") == server_id && m.get("database") == schema;
        if same && !now.is_empty() && gtid(m.get("position")) == now {
            return Ok(m.dumped("nothing was written since that dump"));
        }
        folder.may_replace(&m, options.replace)?;
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
    let texts = s
        .column(format!(
            "SELECT DISTINCT table_name FROM information_schema.columns WHERE table_schema = {} AND (data_type NOT IN ({BYTES}) OR extra LIKE '%INVISIBLE%')",
            text(schema)
        ))
        .await?;
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
    let inside = Inside::of(&rows, &texts, processors(cx, &db.host, options.jobs).await?);
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
    let settings = settings(path, schema, inside.sessions());
    let script = Script {
        text: format!("{settings}{}{}{}{COMMON}{DUMP}", dialect(&at.flavour, binlog), head(&fields), inside.functions()),
        env: host::login(cx, &at)?,
        counted: "counted() { cat \"$j\"/index.[1-9]* | awk -F '\\t' '{ r += $3; b += $4 } END { print \"rows \" r + 0; print \"bytes \" b + 0 }'; }".into(),
    };
    Ok(folder
        .write(script, total, |rows| format!(", {rows} rows"), "rm -f d[0-9]*.rows.* d[0-9]*.raw.* d[0-9]*.sql.* schema.sql.* after.sql.*")
        .await?
        .dumped(""))
}

/// Settings that both scripts have.
pub(super) fn settings(path: &str, schema: &str, jobs: usize) -> String {
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
        (true, false) => format!("SELECT CONCAT('gtid=', REPLACE(@@GLOBAL.gtid_executed, '\\n', '')); {}", f.show_binlog()),
    };
    let (tools, options) = if f.maria {
        ("mariadb-dump mysqldump", if binlog { "--master-data=2" } else { "" })
    } else {
        ("mysqldump", super::flavour::MYSQLDUMP_PLAIN)
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
        let inside = Inside::of(&rows, &[], 2);
        assert_eq!(inside.groups, [vec!["big".to_string()], vec!["half".into(), "it's".into()]]);
        assert_eq!((inside.tables.len(), inside.views.len(), inside.wholes.len()), (4, 1, 1));
        let f = inside.functions();
        assert!(f.contains("work 2 bytes half 'it'\\''s' &") && f.contains("count=2\n"), "{f}");
        assert_eq!(Inside::of(&rows[..1], &[], 8).groups.len(), 1);
        let apart = Inside::of(&rows, &["big".into()], 1);
        assert_eq!((apart.groups.len(), apart.sessions()), (1, 2));
        assert!(apart.functions().contains("work 2 texts big &"));
        // A schema of such tables is dumped by as many sessions as any other.
        let names: Vec<String> = ["big", "half", "it's"].map(String::from).into();
        assert_eq!(Inside::of(&rows, &names, 2).texts, inside.groups);
    }

    #[test]
    fn positions_are_compared_by_their_gtids() {
        assert_eq!(gtid("gtid=0-1-5 bin.000001 330   "), "0-1-5");
        assert_eq!(gtid("none"), "");
    }
}
