//! `dump` and `load`: `pg_dump` and `pg_restore` on the host, several at once, each table a transaction of its own when it is loaded.

use std::fmt::Write as _;

use runbook_core::clock::rfc3339;
use runbook_core::primitive::Cx;
use runbook_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::client::{Conn, For, Texts, col, connect};
use super::settings::{self, Tls};
use super::sql::ident;
use super::state::{self, Node, look};
use crate::db::driver::{Db, DumpOptions, Dumped};
use crate::db::dump::job::{COMMON, processors};
use crate::db::dump::manifest::head;
use crate::db::dump::refuse;
use crate::db::dump::work::{A_DUMP, Folder, Script};
use crate::ssh::{self, Exec, quote};

const DUMP: &str = include_str!("dump.sh");
const LOAD: &str = include_str!("load.sh");
/// What puts entries of an archive into a database.
pub(super) const RESTORE: &str = include_str!("restore.sh");

/// What manifests call this kind.
const KIND: &str = "postgresql";

/// A load, under way or whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct LoadMark {
    /// The id of the dump, or of the snapshot.
    pub id: String,
    /// Whether there is room: what was in the way is gone.
    pub ready: bool,
    /// Whether all of it is loaded.
    pub whole: bool,
}

/// Where the tools run: as the login, or as the user that the server knows at its socket.
pub(super) struct Tools {
    login: String,
    user: Option<String>,
    jobs: usize,
}

impl Tools {
    pub(super) async fn of(cx: &Cx, db: &Db, jobs: Option<usize>) -> Result<Tools> {
        let session = ssh::connect(cx, &db.host).await?;
        let login = session.login().to_string();
        let user = settings::peer(db).filter(|u| *u != login).map(String::from);
        let jobs = processors(cx, &db.host, jobs).await?;
        Ok(Tools { login, user, jobs })
    }

    /// The user that the server knows, when it is not the login.
    pub(super) fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// How many at once.
    pub(super) fn jobs(&self) -> usize {
        self.jobs
    }

    /// Whether the login may become any user.
    pub(super) fn root(&self) -> bool {
        self.login == "root"
    }

    pub(super) fn exec(&self, script: &str) -> Exec {
        match &self.user {
            None => Exec::new(script),
            // Where there is no sudo, root needs none.
            Some(u) if self.login == "root" => Exec::new(format!("cd /; exec runuser -u {} -- sh -c {}", quote(u), quote(script))),
            Some(u) => Exec { sudo: true, user: Some(u.clone()), ..Exec::new(format!("cd /; {script}")) },
        }
    }

    /// Makes a folder that belongs to the user who writes into it.
    async fn folder(&self, cx: &Cx, db: &Db, path: &str) -> Result<()> {
        make_folder(cx, db, path, self.user.as_deref(), self.user.is_some() && !self.root()).await
    }
}

/// Makes a folder for its owner alone, unless it is there.
pub(super) async fn make_folder(cx: &Cx, db: &Db, path: &str, owner: Option<&str>, sudo: bool) -> Result<()> {
    let d = quote(path);
    let own = owner.map_or(String::new(), |u| format!(" && chown {} {d}", quote(u)));
    let script = format!("[ -e {d} ] || {{ mkdir -p {d} && chmod 700 {d}{own}; }}");
    let done = ssh::connect(cx, &db.host).await?.exec_again(cx, Exec { sudo, ..Exec::new(script) }).await?;
    if done.status == 0 {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr).trim().to_string();
    Err(refuse(db, format!("{path} cannot be made: {said}"), "choose a folder that can be made there"))
}

/// libpq's variables: nothing of it is on a command line.
pub(super) fn env(cx: &Cx, db: &Db) -> Result<Vec<(String, String)>> {
    let mut env = vec![
        ("PGUSER".to_string(), settings::role(db).to_string()),
        ("PGDATABASE".into(), settings::database(db)?.to_string()),
        ("PGAPPNAME".into(), format!("runbook {}", cx.action_id)),
        ("PGPORT".into(), settings::port(db).to_string()),
        (
            "PGOPTIONS".into(),
            "-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 -c default_transaction_read_only=off".into(),
        ),
    ];
    env.push(("PGHOST".into(), settings::libpq_host(db)));
    if let Some(name) = db.settings.str("password") {
        env.push(("PGPASSWORD".into(), cx.secret(name)?.reveal().to_string()));
    }
    if settings::tls(db)? == Tls::VerifyFull {
        // The certificate's authority is known to the controller; on the host itself the way is the loopback.
        env.push(("PGSSLMODE".into(), "require".into()));
    }
    Ok(env)
}

/// Lines that put the tools of the newest version into PATH, or those that the inventory names.
pub(super) fn path(db: &Db) -> String {
    let known = match (db.settings.str("bin"), db.settings.str("cluster").and_then(|c| c.split_once('/'))) {
        (Some(bin), _) => quote(bin),
        (None, Some((version, _))) => quote(&format!("/usr/lib/postgresql/{version}/bin")),
        (None, None) => "$(ls -d /usr/lib/postgresql/*/bin /usr/pgsql-*/bin 2>/dev/null | sort -V | tail -n 1)".into(),
    };
    format!("b={known}\n[ -z \"$b\" ] || PATH=\"$b:$PATH\"\nexport PATH\n")
}

/// Writes a dump of the database into a folder of the host.
pub(super) async fn dump(cx: &Cx, db: &Db, at: &str, options: &DumpOptions) -> Result<Dumped> {
    let conn = connect(cx, db, For::Admin).await?;
    let node = look(&conn).await?;
    let tools = Tools::of(cx, db, options.jobs).await?;
    let who = |script: String| tools.exec(&script);
    let id = cx.action_id.to_string();
    let folder = Folder { cx, db, who: &who, path: at, what: A_DUMP };
    if let Some(m) = folder.there().await? {
        if m.get("id") == id {
            return Ok(m.dumped("this action has written it already"));
        }
        folder.may_replace(&m, options.replace)?;
    }
    tools.folder(cx, db, at).await?;
    let size = conn.text("SELECT pg_database_size(current_database())").await?.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    let version = conn.text("SHOW server_version").await?.unwrap_or_default();
    let encoding = conn.text("SHOW server_encoding").await?.unwrap_or_default();
    drop(conn);
    let fields = [
        ("id", id.as_str()),
        ("kind", KIND),
        ("server", &node.system),
        ("database", settings::database(db)?),
        ("version", &version),
        ("charset", &encoding),
        ("time", &rfc3339(cx.clock.now())),
        ("position", &format!("not before {}", node.lsn)),
    ];
    let script = Script {
        text: format!("d={}\njobs={}\nlevel=1\n{}{}{COMMON}{DUMP}", quote(at), tools.jobs, path(db), head(&fields)),
        env: env(cx, db)?,
        counted: format!("counted() {{ du -s -B 1 {}/data | awk '{{ print \"bytes \" $1 }}'; }}", quote(at)),
    };
    Ok(folder.write(script, size, |_| " (bytes are compressed)".into(), "rm -rf data").await?.dumped(""))
}

/// Loads a dump into the database.
pub(super) async fn load(cx: &Cx, db: &Db, at: &str, options: &DumpOptions) -> Result<Dumped> {
    let conn = connect(cx, db, For::Admin).await?;
    let node = look(&conn).await?;
    let tools = Tools::of(cx, db, options.jobs).await?;
    let who = |script: String| tools.exec(&script);
    let folder = Folder { cx, db, who: &who, path: at, what: A_DUMP };
    let m = folder.whole(KIND).await?;
    if node.in_recovery {
        return Err(refuse(db, format!("\"{}\" is a standby and takes no load", db.name), "load into its primary"));
    }
    let name = ident(settings::database(db)?);
    let mut mark = LoadMark { id: m.get("id").into(), ..LoadMark::default() };
    let found = found(&conn).await?;
    let marked = conn.text("SELECT to_regclass('_runbook.loaded')::text").await?.is_some();
    let had = node.defaults.get("runbook.load").and_then(|json| serde_json::from_str::<LoadMark>(json).ok());
    let half_cleared = had.as_ref().is_some_and(|l| !l.ready && !l.whole);
    if let Some(had) = had.filter(|l| l.id == mark.id) {
        // Of what was dropped by hand meanwhile, the mark says nothing any more.
        if had.whole && (m.tables() == 0 || !found.is_empty()) {
            conn.run("DROP SCHEMA IF EXISTS _runbook CASCADE").await?;
            return Ok(m.dumped("this dump is loaded already"));
        }
        mark.ready = had.ready && !had.whole && marked;
    }
    if !mark.ready {
        if !options.replace {
            must_be_empty(db, &found, "name another database, or use replace: true, which drops what is in it")?;
        }
        // What was copied is there no more.
        let set = |ready| {
            state::set(&name, "load", &LoadMark { ready, ..mark.clone() }).map(|s| format!("ALTER DATABASE {name} RESET runbook.copy; {s}"))
        };
        make_room(&conn, &node, !found.is_empty() || half_cleared, set).await?;
    }
    let mut list = String::from("sums() { cat <<'RUNBOOK_SUMS'\n");
    for f in &m.files {
        let _ = writeln!(list, "{}  {}", f.sha256, f.name);
    }
    list.push_str("RUNBOOK_SUMS\n}\n");
    // What an item stands for, so that progress is in rows and bytes.
    let mut items = String::new();
    for f in m.files.iter().filter(|f| f.kind == "rows") {
        let item = f.name.trim_start_matches("data/").trim_end_matches(".dat.gz");
        let _ = write!(items, "{item} {} {};", f.rows.unwrap_or(0), f.bytes);
    }
    // It goes with every question: of very many tables only the end is shown.
    if items.len() > 50_000 {
        items.clear();
    }
    let script = Script {
        text: format!("d={}\njobs={}\n{}{list}{COMMON}{RESTORE}{LOAD}", quote(at), tools.jobs, path(db)),
        env: env(cx, db)?,
        counted: format!(
            "counted() {{ cat \"$j\"/w.* | awk -v list={} 'BEGIN {{ n = split(list, a, \";\"); for (i = 1; i <= n; i++) {{ split(a[i], p, \" \"); r[p[1]] = p[2]; b[p[1]] = p[3] }} }} \
             {{ rows += r[$1]; bytes += b[$1] }} END {{ print \"rows \" rows + 0; print \"bytes \" bytes + 0 }}'; }}",
            quote(&items)
        ),
    };
    drop(conn);
    folder.load(&m, settings::database(db)?, script).await.map_err(explain)?;
    let conn = connect(cx, db, For::Admin).await?;
    mark.whole = true;
    // This commit is synced, and with it all that came before.
    conn.run(&state::set(&name, "load", &mark)?).await?;
    conn.run("DROP SCHEMA IF EXISTS _runbook CASCADE").await?;
    folder.loaded().await;
    Ok(m.dumped(""))
}

/// What to do about errors that are known.
pub(super) fn explain(e: Error) -> Error {
    if e.message.contains("role \"") && e.message.contains("does not exist") {
        return e.hint(
            "roles are not part of a dump: make them first (copy_accounts_from, or pg_dumpall --roles-only on the old host), then resume",
        );
    }
    if e.message.contains("extension") && (e.message.contains("control file") || e.message.contains("not available")) {
        return e.hint("install the package of that extension on the host, then resume");
    }
    e
}

/// What a database has that is not an extension's or ours.
pub(super) async fn found(conn: &Conn) -> Result<Vec<Texts>> {
    let own = "n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', '_runbook')";
    conn.texts(&format!(
            "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE {own} AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND c.relname <> '_runbook_actions' \
             AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') \
             UNION ALL SELECT format('%I.%I()', n.nspname, p.proname) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
             WHERE {own} AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e') \
             UNION ALL SELECT 'large object ' || oid FROM pg_largeobject_metadata ORDER BY 1"
        ))
        .await
}

/// Sees that nothing is in the way.
///
/// # Errors
/// `RB0505`, which names it.
pub(super) fn must_be_empty(db: &Db, found: &[Texts], hint: &str) -> Result<()> {
    if found.is_empty() {
        return Ok(());
    }
    let some: Vec<&str> = found.iter().take(5).map(|r| col(r, 0)).collect();
    let more = if found.len() > some.len() { format!(" and {} more", found.len() - some.len()) } else { String::new() };
    Err(refuse(db, format!("\"{}\" is not empty: it has {}{more}", db.name, some.join(", ")), hint))
}

/// Makes the database empty. `set` gives the statement that marks it, before (not ready) and after (ready).
pub(super) async fn make_room(conn: &Conn, node: &Node, full: bool, set: impl Fn(bool) -> Result<String>) -> Result<()> {
    // On record before anything is dropped.
    conn.run(&set(false)?).await?;
    if full {
        clear(conn, node).await?;
    }
    conn.run(&format!(
        "BEGIN; CREATE SCHEMA IF NOT EXISTS _runbook; DROP TABLE IF EXISTS _runbook.loaded; CREATE TABLE _runbook.loaded (item text PRIMARY KEY); {}; COMMIT",
        set(true)?
    ))
    .await
}

/// Drops what is in the database.
pub(super) async fn clear(conn: &Conn, node: &Node) -> Result<()> {
    let public = match node.version {
        150_000.. => "CREATE SCHEMA IF NOT EXISTS public AUTHORIZATION pg_database_owner; GRANT USAGE ON SCHEMA public TO PUBLIC",
        _ => "CREATE SCHEMA IF NOT EXISTS public; GRANT ALL ON SCHEMA public TO PUBLIC",
    };
    let schemas = conn.texts("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'").await?;
    for schema in &schemas {
        conn.run(&format!("DROP SCHEMA IF EXISTS {} CASCADE", ident(col(schema, 0)))).await?;
    }
    conn.run("SELECT lo_unlink(oid) FROM pg_largeobject_metadata").await?;
    conn.run(&format!("{public}; COMMENT ON SCHEMA public IS 'standard public schema'")).await
}
