//! `copy_from`: the rows go from server to server, several tables at once, and lie in no file on the way.
//!
//! A job on the host of the copy does it, which logs in to the other server as a standby would: through its socket when both are on one
//! host, else over the network. So it needs no controller while it runs, and nothing passes through one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::{Error, Result};

use super::carried::grant;
use super::client::{Conn, For, connect};
use super::copied::{Mark, Whole, all_rows, may_become, tables};
use super::dump::{RESTORE, Tools, clear, env, explain, found, make_room, must_be_empty, path};
use super::login::{conn_value, conninfo_bare, ensure_role, heard, identify};
use super::settings::{self, Replication, Tls, replication};
use super::sql::ident;
use super::state::{self, Node, look};
use crate::db::driver::{Copied, Db, TableOptions, cannot};
use crate::db::dump::job::{As, COMMON, Job, folder_path, private_folder};
use crate::db::dump::refuse;
use crate::ssh::{self, Exec, quote};

const PULL: &str = include_str!("pull.sh");
const SIZE: &str = "SELECT pg_database_size(current_database())";

/// Settings under which a server's texts are the same everywhere, whatever it is set to; no rows are hidden.
const ALIKE: &str = "-c search_path= -c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=3 -c row_security=off";

/// A host that has gone for good is found out about within a minute.
const ALIVE: &str = "keepalives_idle=30 keepalives_interval=10 keepalives_count=3";

/// How long the job waits for a table there: who changes it waits for the job meanwhile, which would never end.
const LOCKED: Duration = Duration::from_secs(10);

/// How the job reaches the other server.
struct Way {
    /// As libpq has it, without the password.
    login: String,
    password: String,
}

impl Way {
    /// Through the socket, or what else the server listens on, on one and the same host.
    fn near(cx: &Cx, from: &Db) -> Result<Way> {
        let tls = if settings::tls(from)? == Tls::VerifyFull { " sslmode=require" } else { "" };
        let login = format!(
            "host={} port={} user={} application_name=runbook_copy connect_timeout=10{tls}",
            conn_value(&settings::libpq_host(from)),
            settings::port(from),
            conn_value(settings::role(from)),
        );
        let password = match from.settings.str("password") {
            Some(name) => cx.secret(name)?.reveal().to_string(),
            None => String::new(),
        };
        Ok(Way { login, password })
    }

    /// From another host, as the role of the standbys; sees that it works.
    async fn far(cx: &Cx, (from, to): (&Db, &Db), (p, node): (&Conn, &Node), tools: &Tools) -> Result<Way> {
        let r: Replication = replication(cx, from)?;
        ensure_role(cx, p, &r).await.map_err(|e| e.host(&from.host))?;
        grant(p, node, &r).await.map_err(|e| e.host(&from.host))?;
        // Who may copy a cluster whole may read these rows, too.
        let secured = "SELECT 1 FROM pg_class WHERE relrowsecurity LIMIT 1";
        if p.text(secured).await?.is_some() {
            p.run(&format!("ALTER ROLE {} BYPASSRLS", ident(&r.user))).await.map_err(|e| e.host(&from.host))?;
        }
        let login = format!("{} {ALIVE}", conninfo_bare(&r, "runbook_copy"));
        let way = Way { login, password: cx.secret(&r.secret)?.reveal().to_string() };
        let name = settings::database(from)?;
        let ask = identify(&format!("{} replication=database dbname={}", way.login, conn_value(name)));
        let env = vec![("PGPASSWORD".to_string(), way.password.clone())];
        let exec = Exec { env, timeout: Some(Duration::from_secs(60)), ..tools.exec(&format!("{}{ask}", path(to))) };
        let done = ssh::connect(cx, &to.host).await?.exec_again(cx, exec).await?;
        heard(cx, (to, from), &r, node, Some(name), &done)?;
        Ok(way)
    }
}

/// Who is at work in a job's folder, and what an earlier try has left there.
async fn at_work(cx: &Cx, to: &Db, who: &As<'_>, dir: &str) -> Result<(String, bool)> {
    let script = format!(
        "cd {} && [ -e lock ] && exec 9>>lock || exit 1\nflock -n 9 || {{ echo \"busy $(cat id)\"; exit; }}\n[ ! -s archive ] || echo kept",
        quote(dir)
    );
    let done = ssh::connect(cx, &to.host).await?.exec_again(cx, who(script)).await?;
    let said = String::from_utf8_lossy(&done.stdout).trim().to_string();
    Ok((said.strip_prefix("busy ").unwrap_or_default().to_string(), said == "kept"))
}

fn nobody(to: &Db, busy: &str) -> Result<()> {
    if busy.is_empty() {
        return Ok(());
    }
    let why = format!("another job ({busy}) is at work on \"{}\"", to.name);
    Err(refuse(to, why, "wait for its end, or resume the run that began it").retryable(true))
}

/// Makes the database empty for the copy, unless an earlier try of it is at work or has copied all rows.
async fn room(cx: &Cx, to: &Db, conn: &Conn, node: &Node, new: &Mark, (who, dir): (&As<'_>, &str)) -> Result<()> {
    let had = Mark::of(node);
    let (busy, kept) = at_work(cx, to, who, dir).await?;
    let resumed = had.as_ref().is_some_and(|m| m.id == new.id && m.ready);
    if resumed && (busy == job_id(&new.id) || kept && all_rows(conn).await?.is_some()) {
        return Ok(());
    }
    nobody(to, &busy)?;
    let there = found(conn).await?;
    let mine = match &had {
        Some(m) => m.is_of(new) && m.is_untouched(conn).await?,
        None => false,
    };
    if !mine {
        let hint = "name another database, or drop what is in it: only an earlier copy of the same database, with its tables, is replaced";
        must_be_empty(to, &there, hint)?;
    }
    let name = ident(settings::database(to)?);
    // What was loaded is there no more.
    let set =
        |ready| state::set(&name, "copy", &Mark { ready, ..new.clone() }).map(|s| format!("ALTER DATABASE {name} RESET runbook.load; {s}"));
    make_room(conn, node, !there.is_empty() || mine, set).await
}

/// The name of the job's folder: one for each database, so that no two work on one.
fn folder(node: &Node) -> String {
    format!("copy.{}.{}", node.system, node.oid)
}

fn job_id(action: &str) -> String {
    format!("copy {action}")
}

/// Makes `to` a copy of `from`.
pub(super) async fn copy(cx: &Cx, from: &Db, to: &Db, options: &TableOptions) -> Result<Copied> {
    if !options.tables.is_empty() {
        return Err(cannot(to, "copying chosen tables, since others may refer to them"));
    }
    let (p, theirs) = super::data::admin(cx, from).await?;
    let conn = connect(cx, to, For::Admin).await?;
    let node = look(&conn).await?;
    let new = Mark {
        id: cx.action_id.to_string(),
        of: from.name.clone(),
        system: theirs.system.clone(),
        oid: theirs.oid.clone(),
        ..Mark::default()
    };
    if let Some(Whole { rows, bytes, .. }) = Mark::of(&node).filter(|m| m.id == new.id).and_then(|m| m.whole) {
        conn.run("DROP SCHEMA IF EXISTS _runbook CASCADE").await?;
        return Ok(Copied { rows, bytes, changed: true });
    }
    may_become(to, from, &node, &theirs)?;
    let large = p.text("SELECT count(*) FROM pg_largeobject_metadata").await?.unwrap_or_default();
    if large != "0" {
        let why = format!("\"{}\" has {large} large objects, which are not copied", from.name);
        let hint = "dump and load carry them; or move them into a bytea column, or lo_unlink those that nobody needs (vacuumlo)";
        return Err(refuse(to, why, hint));
    }
    let tools = Tools::of(cx, to, options.jobs).await?;
    let way = match from.host == to.host {
        true => Way::near(cx, from)?,
        false => Box::pin(Way::far(cx, (from, to), (&p, &theirs), &tools)).await?,
    };
    let who = |script: String| tools.exec(&script);
    let dir = private_folder(cx, &to.host, &who, &folder(&node)).await?;
    if let Err(e) = room(cx, to, &conn, &node, &new, (&who, &dir)).await {
        tidy(cx, to, who(format!("rmdir {}", quote(&dir)))).await;
        return Err(e);
    }

    let total = p.text(SIZE).await?.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    let encoding = p.text("SHOW server_encoding").await?.unwrap_or_default();
    drop(p);
    let (script, login) = script(cx, from, to, &tools, way, encoding)?;
    let counted = "counted() { cat \"$j\"/rows.* | awk '{ n += $1 } END { print \"rows \" n + 0 }'; }".into();
    let job = Job { host: &to.host, who: &who, dir: dir.clone(), id: job_id(&new.id), counted };
    let rows = AtomicU64::new(0);
    let show = |n: u64, _: u64| rows.store(n, Ordering::Relaxed);
    let progress = async {
        loop {
            // Its indexes are part of it.
            if let Ok(Some(bytes)) = conn.text(SIZE).await {
                let (bytes, n) = (bytes.parse().unwrap_or(0), rows.load(Ordering::Relaxed));
                cx.progress(format!("copying {} to {}, {n} rows", from.name, to.name), bytes, Some(total.max(bytes)), "bytes");
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let end = tokio::select! {
        end = job.run(cx, &script, login, &show) => end?,
        () = progress => unreachable!("it has no end"),
    };
    end.good(&to.host, &format!("the copy into \"{}\"", to.name)).map_err(ended)?;

    let conn = connect(cx, to, For::Admin).await?;
    let Some(rows) = all_rows(&conn).await? else {
        let why = format!("not all rows are in \"{}\", although the copy ended well", to.name);
        return Err(refuse(to, why, "was the database changed meanwhile? copy it again"));
    };
    let bytes = conn.text(SIZE).await?.and_then(|n| n.parse().ok()).unwrap_or(0);
    let whole = Whole { rows, bytes, tables: tables(&conn).await? };
    // This commit is synced, and with it all that came before.
    conn.run(&state::set(&ident(settings::database(to)?), "copy", &Mark { ready: true, whole: Some(whole), ..new })?).await?;
    conn.run("DROP SCHEMA IF EXISTS _runbook CASCADE").await?;
    tidy(cx, to, who(format!("rm -rf {}", quote(&dir)))).await;
    Ok(Copied { rows, bytes, changed: true })
}

/// What is left over harms nobody.
async fn tidy(cx: &Cx, to: &Db, exec: Exec) {
    if let Ok(session) = ssh::connect(cx, &to.host).await {
        let _ = session.exec(cx, exec).await;
    }
}

/// The job's script, and the login to both servers, which is not part of it.
fn script(cx: &Cx, from: &Db, to: &Db, tools: &Tools, way: Way, encoding: String) -> Result<(String, Vec<(String, String)>)> {
    let mut login = env(cx, to)?;
    let mut sessions = ALIKE.to_string();
    if let Some((_, had)) = login.iter_mut().find(|(k, _)| k == "PGOPTIONS") {
        sessions = format!("{had} {ALIKE}");
        had.clone_from(&sessions);
    }
    login.extend([("PGCLIENTENCODING".to_string(), encoding), ("RUNBOOK_FROM_PASSWORD".into(), way.password)]);
    let text = format!(
        "jobs={}\nlogin={}\noptions={}\nlocked={}\n{}{COMMON}{RESTORE}{PULL}",
        tools.jobs(),
        quote(&format!("{} dbname={}", way.login, conn_value(settings::database(from)?))),
        quote(&format!("{sessions} -c lock_timeout={}", LOCKED.as_millis())),
        LOCKED.as_millis(),
        path(to)
    );
    Ok((text, login))
}

/// What to do about a copy that was not made.
fn ended(e: Error) -> Error {
    // Its sessions have no other limits of time.
    if e.message.contains("lock timeout") || e.message.contains("statement timeout") {
        return e.retryable(true).hint(
            "somebody wants a table of the other database for himself (ALTER TABLE, TRUNCATE, LOCK): resume begins the copy anew; change no definitions meanwhile",
        );
    }
    if e.message.contains("server version mismatch") {
        return e.hint("pg_dump must not be older than the other server: install the client of its version on this host, and name its folder with bin in runbook.toml");
    }
    // The session that held the snapshot was ended, by whatever it was.
    let lost = e.message.contains("invalid snapshot identifier");
    match e.retryable || lost {
        true => e.retryable(true).hint("resume begins the copy anew, or goes on with its indexes when all rows are here"),
        false => explain(e),
    }
}

/// Takes a copy away again; whether there was one.
pub(super) async fn drop_copy(cx: &Cx, db: &Db) -> Result<bool> {
    let conn = connect(cx, db, For::Admin).await?;
    let node = look(&conn).await?;
    let Some(mark) = Mark::of(&node) else {
        let hint = "the undo of replicate_from is stop_replication; of load there is none";
        return must_be_empty(db, &found(&conn).await?, hint).map(|()| false);
    };
    let tools = Tools::of(cx, db, Some(1)).await?;
    let (who, dir) = (|script: String| tools.exec(&script), folder_path(&folder(&node)));
    nobody(db, &at_work(cx, db, &who, &dir).await?.0)?;
    if !mark.is_untouched(&conn).await? || node.promoted.is_some() || node.replica.is_some() {
        let why = format!("\"{}\" is no copy any more: its tables are others than those that were copied", db.name);
        return Err(refuse(db, why, "drop what is in it by hand"));
    }
    clear(&conn, &node).await?;
    conn.run(&format!("ALTER DATABASE {} RESET runbook.copy", ident(settings::database(db)?))).await?;
    tidy(cx, db, who(format!("rm -rf {}", quote(&dir)))).await;
    Ok(true)
}
