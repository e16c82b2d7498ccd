//! Physical standbys: made by `pg_basebackup` beside the data folder and put in its place whole, kept up by a slot of their own.

use std::collections::BTreeMap;
use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result, Value};
use tokio::time::Instant;

use super::client::{Conn, Texts, col};
use super::cluster::{Cluster, Data};
use super::data::{admin, unless_stopped};
use super::settings::{Replication, replication};
use super::sql::{ident, lit};
use super::state::{Lsn, Node};
use crate::db::driver::{Db, Replicate, Replicated, ReplicationError, Status, cannot};
use crate::ssh::quote;

/// The slot (and name) of a standby on its primary.
pub(super) fn slot(db: &Db) -> String {
    let name: String = db.name.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("runbook_{name}").chars().take(63).collect()
}

/// The least that a primary must have set.
fn ready(db: &Db, node: &Node, settings: &BTreeMap<String, String>) -> Result<()> {
    let set = |why: String, hint: String| Err(Error::new(Code::DB_SETTINGS, why).hint(hint).host(&db.host));
    if node.in_recovery {
        return set(format!("\"{}\" is a standby itself", db.name), "replicate from its primary".into());
    }
    if !node.superuser {
        return set(format!("the role that logs in to \"{}\" is no super-user", db.name), "log in as postgres: sudo = true".into());
    }
    let get = |k: &str| settings.get(k).map_or("", String::as_str);
    if get("wal_level") == "minimal" {
        return set(
            format!("\"{}\" has wal_level = minimal: nothing can follow it", db.name),
            "ALTER SYSTEM SET wal_level = replica, then restart it (its users notice)".into(),
        );
    }
    for (name, used, least) in [("max_wal_senders", "senders", 2), ("max_replication_slots", "slots", 1)] {
        let (max, used): (i64, i64) = (get(name).parse().unwrap_or(0), get(used).parse().unwrap_or(0));
        if max - used < least {
            return set(
                format!("\"{}\" has {name} = {max}, of which {used} are in use: {least} more are needed", db.name),
                format!("ALTER SYSTEM SET {name} = {}, then restart it (its users notice)", used + least + 2),
            );
        }
    }
    Ok(())
}

async fn primary_settings(conn: &Conn) -> Result<BTreeMap<String, String>> {
    let rows = conn
        .texts(&format!(
            "SELECT name, setting FROM pg_settings WHERE name IN ('wal_level', 'max_wal_senders', 'max_replication_slots', {}); \
             SELECT 'senders', count(*) FROM pg_stat_replication; SELECT 'slots', count(*) FROM pg_replication_slots",
            AT_LEAST.map(lit).join(", ")
        ))
        .await?;
    Ok(rows.iter().map(|r| (col(r, 0).to_string(), col(r, 1).to_string())).collect())
}

/// Settings that a standby must have at least as its primary.
const AT_LEAST: [&str; 5] =
    ["max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions", "max_locks_per_transaction"];

/// Makes the role by which standbys log in, with the password that the secret holds. The server gets a verifier, never the password.
async fn ensure_role(cx: &Cx, conn: &Conn, r: &Replication) -> Result<()> {
    let password = cx.secret(&r.secret)?;
    let row = conn
        .texts(&format!("SELECT rolreplication::text, rolcanlogin::text, rolpassword FROM pg_authid WHERE rolname = {}", lit(&r.user)))
        .await?;
    let verifier = lit(&scram(password.reveal()));
    let role = ident(&r.user);
    match row.first() {
        None => conn.run(&format!("CREATE ROLE {role} REPLICATION LOGIN PASSWORD {verifier}")).await,
        Some(row) => {
            if col(row, 0) != "true" || col(row, 1) != "true" {
                return Err(Error::new(Code::DB_SETTINGS, format!("the role {} is there and may not replicate", r.user))
                    .hint(format!("ALTER ROLE {role} REPLICATION LOGIN, or name another one with replication_user")));
            }
            Ok(())
        }
    }
}

/// A SCRAM-SHA-256 verifier, as the server keeps it.
fn scram(password: &str) -> String {
    use base64::Engine as _;
    use ring::{digest, hmac, pbkdf2};
    let salt: [u8; 16] = rand::random();
    let rounds = 4096;
    let mut salted = [0u8; 32];
    if let Some(n) = std::num::NonZeroU32::new(rounds) {
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, n, &salt, password.as_bytes(), &mut salted);
    }
    let key = hmac::Key::new(hmac::HMAC_SHA256, &salted);
    let client = hmac::sign(&key, b"Client Key");
    let stored = digest::digest(&digest::SHA256, client.as_ref());
    let server = hmac::sign(&key, b"Server Key");
    let b64 = |b: &[u8]| base64::engine::general_purpose::STANDARD.encode(b);
    format!("SCRAM-SHA-256${rounds}:{}${}:{}", b64(&salt), b64(stored.as_ref()), b64(server.as_ref()))
}

/// A value in a connection string.
fn conn_value(v: &str) -> String {
    format!("'{}'", v.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// The connection string to a primary, with the password in a file beside the data folder.
fn conninfo(r: &Replication, data: &str, name: &str) -> String {
    let options = if r.options.is_empty() { String::new() } else { format!(" {}", r.options) };
    format!(
        "host={} port={} user={} passfile={} application_name={} connect_timeout=10{options}",
        conn_value(&r.host),
        r.port,
        conn_value(&r.user),
        conn_value(&format!("{data}.runbook-pass")),
        conn_value(name)
    )
}

/// Puts the password beside the data folder, for its owner alone.
async fn put_password(cx: &Cx, cluster: &Cluster<'_>, r: &Replication) -> Result<()> {
    let password = cx.secret(&r.secret)?;
    let escape = |t: &str| t.replace('\\', "\\\\").replace(':', "\\:");
    let line = format!("*:*:*:{}:{}\n", escape(&r.user), escape(password.reveal()));
    let script = cluster.script("set -e; umask 077; cat > \"$d.runbook-pass.new\"; mv -f \"$d.runbook-pass.new\" \"$d.runbook-pass\"")?;
    cluster.must("keeping the replication password", &script, Some(line.into_bytes())).await.map(|_| ())
}

/// Logs in from the standby's host to the primary as the standby will, and sees that it is that very cluster.
async fn try_login(
    cx: &Cx,
    cluster: &Cluster<'_>,
    db: &Db,
    primary: &Db,
    r: &Replication,
    node: &Node,
    dbname: Option<&str>,
) -> Result<()> {
    let data = cluster.data()?;
    let (what, ask) = match dbname {
        Some(name) => (format!("dbname={}", conn_value(name)), "SELECT system_identifier FROM pg_control_system()"),
        None => ("replication=true".to_string(), "IDENTIFY_SYSTEM"),
    };
    let script = cluster.script(&format!(
        "psql -w -X -A -t -F ' ' -d {} -c {}",
        quote(&format!("{} {what}", conninfo(r, &data, "runbook"))),
        quote(ask)
    ))?;
    let done = cluster.sh(&script, None, Some(Duration::from_secs(60))).await?;
    let (said, out) = (cx.redactor.text(&String::from_utf8_lossy(&done.stderr)), String::from_utf8_lossy(&done.stdout).into_owned());
    let last = said.lines().find(|l| l.contains("FATAL") || l.contains("error")).unwrap_or(said.trim()).trim().to_string();

    let fail = |code: Code, why: String, hint: String| Err(Error::new(code, why).hint(hint).host(&db.host).detail("text", &said));
    if done.status != 0 {
        if said.contains("no pg_hba.conf entry") {
            let from = said.split("from host \"").nth(1).and_then(|t| t.split('"').next()).unwrap_or("ADDRESS");
            let mask = if from.contains(':') { "128" } else { "32" };
            let line = format!("host    {}     {}    {from}/{mask}    scram-sha-256", dbname.unwrap_or("replication"), r.user);
            return fail(
                Code::DB_SETTINGS,
                format!("pg_hba.conf of \"{}\" does not let the standby \"{}\" in; this line is missing: {line}", primary.name, db.name),
                "add the line to pg_hba.conf there, then SELECT pg_reload_conf()".into(),
            );
        }
        if said.contains("password authentication failed") {
            return fail(
                Code::DB_LOGIN,
                format!("\"{}\" refuses the password of {}", primary.name, r.user),
                format!("the secret \"{}\" does not hold it: ALTER ROLE {} PASSWORD …, or mend the secret", r.secret, r.user),
            );
        }
        if done.status == 127 {
            return fail(Code::HOST_TOOL_MISSING, format!("the host has no psql: {last}"), "install the PostgreSQL client there".into());
        }
        return fail(
            Code::DB_CONNECT,
            format!("the host of \"{}\" does not reach \"{}\" at {}:{}: {last}", db.name, primary.name, r.host, r.port),
            format!("check listen_addresses of \"{}\", the firewall in between, and replication_address in runbook.toml", primary.name),
        );
    }
    let system = out.split_whitespace().next().unwrap_or("");
    if system != node.system {
        return fail(
            Code::DB_SETTINGS,
            format!("at {}:{} the host of \"{}\" finds another cluster than \"{}\"", r.host, r.port, db.name, primary.name),
            "mend replication_address in runbook.toml".into(),
        );
    }
    Ok(())
}

/// Whether the standby may log in to a database of the primary, which `pg_rewind` wants.
pub(super) async fn may_rewind(cx: &Cx, cluster: &Cluster<'_>, db: &Db, primary: &Db, r: &Replication, node: &Node) -> bool {
    let login = try_login(cx, cluster, db, primary, r, node, Some("postgres")).await;
    // The role may not see the cluster's identity: it got in then.
    match login {
        Ok(()) => true,
        Err(e) => e.details.get("text").is_some_and(|t| t.contains("permission denied for function")),
    }
}

/// Makes the slot unless it is there.
pub(super) async fn ensure_slot(conn: &Conn, name: &str) -> Result<()> {
    let there = conn.texts(&format!("SELECT wal_status, active_pid FROM pg_replication_slots WHERE slot_name = {}", lit(name))).await?;
    match there.first() {
        Some(row) if col(row, 0) != "lost" => Ok(()),
        Some(_) => {
            conn.run(&format!("SELECT pg_drop_replication_slot({0}); SELECT pg_create_physical_replication_slot({0}, true)", lit(name)))
                .await
        }
        None => conn.run(&format!("SELECT pg_create_physical_replication_slot({}, true)", lit(name))).await,
    }
}

/// The lines by which a cluster follows a primary.
async fn follow_lines(primary: &Db, conn: &Conn, r: &Replication, data: &str, name: &str) -> Result<String> {
    let own = primary_settings(conn).await?;
    let quoted = |v: &str| format!("'{}'", v.replace('\\', "\\\\").replace('\'', "''"));
    let mut lines = format!(
        "# by runbook: follows {}\nprimary_conninfo = {}\nprimary_slot_name = {}\nrunbook.primary = {}\nrecovery_target_timeline = 'latest'\n",
        primary.name.replace('\n', " "),
        quoted(&conninfo(r, data, name)),
        quoted(name),
        quoted(&primary.name)
    );
    for key in AT_LEAST {
        if let Some(v) = own.get(key) {
            lines.push_str(&format!("{key} = {}\n", quoted(v)));
        }
    }
    Ok(lines)
}

/// Ends what an earlier try has left at work on the data folder.
pub(super) async fn end_leftover(cluster: &Cluster<'_>) -> Result<()> {
    let script = cluster.script(
        "p=$(cat \"$d.runbook-pid\" 2>/dev/null); n=0\n\
         at() { [ -n \"$p\" ] && tr '\\0' ' ' <\"/proc/$p/cmdline\" 2>/dev/null | grep -qF \"$d\"; }\n\
         while at; do if [ $n -lt 50 ]; then kill \"$p\"; else kill -9 \"$p\"; fi; n=$((n+1)); sleep 0.1; done 2>/dev/null\n\
         rm -f \"$d.runbook-pid\"",
    )?;
    cluster.must("ending what an earlier try has left", &script, None).await.map(|_| ())
}

/// Sees that nobody uses a slot.
async fn free_slot(cx: &Cx, conn: &Conn, name: &str) -> Result<()> {
    for _ in 0..100 {
        let sql = format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = {} AND active_pid IS NOT NULL",
            lit(name)
        );
        if conn.texts(&sql).await?.is_empty() {
            return Ok(());
        }
        cx.sleep(Duration::from_millis(100)).await?;
    }
    Err(Error::new(Code::DB_REPLICATION, format!("the slot {name} is in use by another standby"))
        .hint("see pg_replication_slots on the primary"))
}

/// Copies the primary into a folder beside the data folder, whole, and puts it in its place; what is there goes aside.
pub(super) async fn rebuild(cx: &Cx, cluster: &Cluster<'_>, db: &Db, primary: &Db, conn: &Conn, r: &Replication) -> Result<u64> {
    let (name, data) = (slot(db), cluster.data()?);
    // A copy that an earlier try has left at work is ended, on both sides.
    end_leftover(cluster).await?;
    let script = cluster
        .script("rm -rf \"$d.runbook-new\"; p=${d%/*}; [ -w \"$p\" ] || { echo \"$p cannot be written to by $(id -un)\" >&2; exit 1; }")?;
    cluster.must("making room for the copy", &script, None).await?;
    free_slot(cx, conn, &name).await?;
    ensure_slot(conn, &name).await?;
    let copy = cluster.script(&format!(
        "s=\"$d.runbook-new\"; umask 077\n\
         pg_basebackup -w -D \"$s\" -d {} -X stream -S {name} -c fast --no-manifest </dev/null & p=$!\n\
         echo $p > \"$d.runbook-pid\"; wait $p; rc=$?; rm -f \"$d.runbook-pid\"; exit $rc",
        quote(&conninfo(r, &data, &format!("{name}_copy")))
    ))?;
    let what = format!("copying {} to {}", primary.name, db.name);
    let progress = async {
        loop {
            let row = conn
                .texts("SELECT backup_streamed, backup_total FROM pg_stat_progress_basebackup ORDER BY backup_streamed DESC LIMIT 1")
                .await;
            if let Ok(Some(row)) = row.map(|r| r.into_iter().next()) {
                cx.progress(&what, col(&row, 0).parse().unwrap_or(0), col(&row, 1).parse().ok(), "bytes");
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        done = cluster.must("pg_basebackup", &copy, None) => done.map(|_| ())?,
        () = progress => {}
    }
    let lines = follow_lines(primary, conn, r, &data, &name).await?;
    let script = cluster.script(
        "set -e; s=\"$d.runbook-new\"; cat >> \"$s/postgresql.auto.conf\"; : > \"$s/standby.signal\"; rm -f \"$s/runbook-start.log\" \"$s/recovery.signal\"\n\
         du -sk \"$s\" | cut -f 1",
    )?;
    let kib = cluster.must("setting up the copy", &script, Some(lines.into_bytes())).await?;
    cluster.stop().await?;
    let script = cluster.script(
        "set -e; s=\"$d.runbook-new\"; o=\"$d.runbook-replaced\"\n\
         if [ -e \"$d\" ]; then rm -rf \"$o\"; mv \"$d\" \"$o\"; fi\n\
         mv \"$s\" \"$d\"; sync \"${d%/*}\" 2>/dev/null || sync; rm -f \"$d.runbook-rewind\"",
    )?;
    cluster.must("putting the copy in place", &script, None).await?;
    Ok(kib.trim().parse::<u64>().unwrap_or(0) * 1024)
}

/// Lets a cluster that lies there as it should follow a primary when it starts.
pub(super) async fn follow(cx: &Cx, cluster: &Cluster<'_>, db: &Db, primary: &Db, conn: &Conn, r: &Replication) -> Result<()> {
    put_password(cx, cluster, r).await?;
    let (name, data) = (slot(db), cluster.data()?);
    ensure_slot(conn, &name).await?;
    let lines = follow_lines(primary, conn, r, &data, &name).await?;
    let script =
        cluster.script("set -e; cat >> \"$d/postgresql.auto.conf\"; : > \"$d/standby.signal\"; sync \"$d\" 2>/dev/null || sync")?;
    cluster.must("letting it follow", &script, Some(lines.into_bytes())).await.map(|_| ())
}

/// Everything that is needed before a cluster is stopped for the sake of following `primary`: role, password, a login that works.
pub(super) async fn prepare(cx: &Cx, cluster: &Cluster<'_>, db: &Db, primary: &Db, conn: &Conn, node: &Node) -> Result<Replication> {
    let r = replication(cx, primary)?;
    ensure_role(cx, conn, &r).await.map_err(|e| e.host(&primary.host))?;
    put_password(cx, cluster, &r).await?;
    try_login(cx, cluster, db, primary, &r, node, None).await?;
    Ok(r)
}

/// Waits until the standby streams.
pub(super) async fn streams(cx: &Cx, db: &Db, conn: &Conn, within: Duration) -> Result<()> {
    let (name, began) = (slot(db), Instant::now());
    loop {
        let state = conn.text(&format!("SELECT state FROM pg_stat_replication WHERE application_name = {}", lit(&name))).await?;
        if state.as_deref() == Some("streaming") {
            return Ok(());
        }
        if began.elapsed() > within {
            return Err(Error::new(
                Code::DB_REPLICATION,
                format!("\"{}\" does not stream from its primary ({})", db.name, state.unwrap_or_else(|| "it is not connected".into())),
            )
            .hint("look at the standby's log on its host")
            .host(&db.host)
            .retryable(true));
        }
        cx.sleep(Duration::from_millis(100)).await?;
    }
}

/// Makes `db` a standby of `primary`.
pub(super) async fn replicate(cx: &Cx, db: &Db, primary: &Db, options: &Replicate) -> Result<Replicated> {
    match options.mode.as_deref().unwrap_or("physical") {
        "physical" => {}
        other => return Err(cannot(db, &format!("replicating by the mode \"{other}\""))),
    }
    unless_stopped(cx, db, async {
        let (p, node) = admin(cx, primary).await?;
        ready(primary, &node, &primary_settings(&p).await?)?;
        let cluster = Cluster::of(cx, db).await?;
        let found = cluster.look().await?;
        let refuse = |why: String| {
            Err(Error::new(Code::DB_COPY, why).hint("replicate_from(primary, #{ replace: true }) removes it, for good").host(&db.host))
        };
        match &found {
            Data::Cluster(c) if c.system == node.system && c.standby => {
                if let Some(done) = already(cx, &cluster, db, primary, &p, &node).await? {
                    return Ok(done);
                }
            }
            Data::Empty => {}
            _ if options.replace => {}
            Data::Foreign => return refuse(format!("{} on {} is not empty, and is no cluster", cluster.data()?, db.host)),
            Data::Cluster(c) => {
                let what = if c.system == node.system { "which was a standby once and took writes" } else { "of another origin" };
                return refuse(format!("there is a cluster in {} on {} ({}), {what}", cluster.data()?, db.host, c.state));
            }
        }
        let r = prepare(cx, &cluster, db, primary, &p, &node).await?;
        let bytes = rebuild(cx, &cluster, db, primary, &p, &r).await?;
        let (_, there) = cluster.start().await?;
        streams(cx, db, &p, Duration::from_secs(120)).await?;
        cluster.must("clearing up", &cluster.script("rm -rf \"$d.runbook-replaced\"")?, None).await?;
        Ok(Replicated { changed: true, rows: 0, bytes, position: there.lsn.to_string(), note: String::new() })
    })
    .await
}

/// Goes on with a standby of this primary that is there; `None` when it must be made anew.
async fn already(cx: &Cx, cluster: &Cluster<'_>, db: &Db, primary: &Db, p: &Conn, node: &Node) -> Result<Option<Replicated>> {
    let ran = cluster.running().await?;
    let (conn, there) = cluster.start().await?;
    let name = lit(&slot(db));
    let slots = p.texts(&format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = {name}")).await?;
    if slots.first().is_none_or(|r| col(r, 0) == "lost") {
        cx.message(format!("\"{}\" is a standby of \"{}\" whose slot is gone: it is made anew", db.name, primary.name));
        return Ok(None);
    }
    if let Err(e) = streams(cx, db, p, Duration::from_secs(3)).await {
        if e.code != Code::DB_REPLICATION {
            return Err(e);
        }
        // Its password or the primary's address may have changed.
        let r = prepare(cx, cluster, db, primary, p, node).await?;
        let info = conninfo(&r, &cluster.data()?, &slot(db));
        conn.run(&format!("ALTER SYSTEM SET primary_conninfo = {}", lit(&info))).await?;
        conn.run(&format!("ALTER SYSTEM SET primary_slot_name = {name}")).await?;
        conn.run("SELECT pg_reload_conf()").await?;
        streams(cx, db, p, Duration::from_secs(30)).await?;
        return Ok(Some(Replicated {
            changed: true,
            position: there.lsn.to_string(),
            note: "it streams again".into(),
            ..Replicated::default()
        }));
    }
    let note = if ran { "it streams from there already" } else { "it was a standby of it already and was started" };
    Ok(Some(Replicated { changed: !ran, position: there.lsn.to_string(), note: note.into(), ..Replicated::default() }))
}

/// Ends replication on both sides.
pub(super) async fn stop(cx: &Cx, db: &Db) -> Result<bool> {
    let (conn, node) = admin(cx, db).await?;
    if !node.in_recovery {
        return match node.promoted {
            Some(_) => Err(Error::new(Code::DB_COPY, format!("\"{}\" was promoted: it replicates from nobody", db.name)).host(&db.host)),
            None => Ok(false),
        };
    }
    let row = conn
        .texts("SELECT current_setting('runbook.primary', true), current_setting('primary_slot_name'), current_setting('primary_conninfo')")
        .await?
        .into_iter()
        .next()
        .unwrap_or_default();
    if col(&row, 2).is_empty() && col(&row, 1).is_empty() {
        return Ok(false);
    }
    // The other side first: what is named there is known only as long as this side follows.
    if !col(&row, 0).is_empty() {
        let primary = Db::find(cx, col(&row, 0))?;
        let (p, _) = admin(cx, &primary).await?;
        drop_slot(cx, &p, col(&row, 1), async {
            conn.run("ALTER SYSTEM SET primary_conninfo = ''").await?;
            conn.run("SELECT pg_reload_conf()").await
        })
        .await?;
    }
    for sql in ["ALTER SYSTEM SET primary_conninfo = ''", "ALTER SYSTEM SET primary_slot_name = ''", "SELECT pg_reload_conf()"] {
        conn.run(sql).await?;
    }
    let cluster = Cluster::of(cx, db).await?;
    cluster.must("removing the replication password", &cluster.script("rm -f \"$d.runbook-pass\"")?, None).await?;
    Ok(true)
}

/// Drops a slot when nobody uses it any more; `first` makes its user let go.
pub(super) async fn drop_slot(cx: &Cx, conn: &Conn, name: &str, first: impl Future<Output = Result<()>>) -> Result<()> {
    first.await?;
    for _ in 0..100 {
        let row = conn.texts(&format!("SELECT coalesce(active_pid, 0) FROM pg_replication_slots WHERE slot_name = {}", lit(name))).await?;
        match row.first().map(|r| col(r, 0)) {
            None => return Ok(()),
            Some("0") => return conn.run(&format!("SELECT pg_drop_replication_slot({})", lit(name))).await,
            Some(_) => cx.sleep(Duration::from_millis(100)).await?,
        }
    }
    Err(Error::new(Code::DB_REPLICATION, format!("the slot {name} is still in use")).retryable(true))
}

/// Why a standby does not stream, in the server's words; `None` when it streams or will.
pub(super) async fn broken(cx: &Cx, conn: &Conn) -> Result<Option<ReplicationError>> {
    let row = conn
        .texts(
            "SELECT (SELECT status FROM pg_stat_wal_receiver), current_setting('runbook.primary', true), current_setting('primary_slot_name'), \
             coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())",
        )
        .await?
        .into_iter()
        .next()
        .unwrap_or_default();
    if col(&row, 0) == "streaming" || col(&row, 1).is_empty() {
        return Ok(None);
    }
    let primary = Db::find(cx, col(&row, 1))?;
    let p = match admin(cx, &primary).await {
        Ok((p, _)) => p,
        Err(e) if e.code == Code::ABORTED => return Err(e),
        Err(e) => {
            return Ok(Some(ReplicationError { code: e.code.to_string(), text: format!("the primary cannot be asked: {}", e.message) }));
        }
    };
    let slot = col(&row, 2);
    let state = p.texts(&format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = {}", lit(slot))).await?;
    let gone = |code: &str, text: String| Ok(Some(ReplicationError { code: code.into(), text }));
    match state.first() {
        None if !slot.is_empty() => gone("42704", format!("replication slot \"{slot}\" does not exist")),
        Some(r) if col(r, 0) == "lost" => {
            let segment = p.text(&format!("SELECT pg_walfile_name({}::pg_lsn)", lit(col(&row, 3)))).await?.unwrap_or_default();
            gone("58P01", format!("requested WAL segment {segment} has already been removed (the slot \"{slot}\" has lost it)"))
        }
        _ => Ok(None),
    }
}

fn micros(text: &str) -> Option<Duration> {
    text.parse::<f64>().ok().filter(|s| *s >= 0.0).map(Duration::from_secs_f64)
}

/// How replication stands.
pub(super) async fn status(cx: &Cx, db: &Db) -> Result<Status> {
    let (conn, node) = admin(cx, db).await?;
    let maps = |rows: Vec<Texts>, keys: &[&str]| {
        Value::List(
            rows.iter().map(|r| Value::Map(keys.iter().enumerate().map(|(i, k)| ((*k).to_string(), col(r, i).into())).collect())).collect(),
        )
    };
    let read_only = node.in_recovery || node.defaults.get("default_transaction_read_only").map(String::as_str) == Some("on");
    let mut s = Status {
        behind_unit: "bytes",
        read_only,
        position: node.lsn.to_string(),
        role: "alone".into(),
        running: true,
        ..Status::default()
    };
    let slots = conn.texts("SELECT slot_name, active::text, wal_status, restart_lsn FROM pg_replication_slots ORDER BY 1").await?;
    s.detail.insert("slots".into(), maps(slots, &["name", "active", "wal_status", "restart_lsn"]));
    if !node.in_recovery {
        let all = conn
            .texts("SELECT application_name, state, sync_state, pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn), client_addr FROM pg_stat_replication ORDER BY 1")
            .await?;
        if !all.is_empty() {
            s.role = "primary".into();
        }
        s.detail.insert("standbys".into(), maps(all, &["name", "state", "sync", "behind", "address"]));
        return Ok(s);
    }
    s.role = "replica".into();
    let row = conn
        .texts(
            "SELECT r.status, r.sender_host || ':' || r.sender_port, pg_wal_lsn_diff(r.latest_end_lsn, pg_last_wal_replay_lsn()), \
             CASE WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0 ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END, \
             current_setting('runbook.primary', true), pg_get_wal_replay_pause_state(), \
             (SELECT sum(confl_tablespace + confl_lock + confl_snapshot + confl_bufferpin + confl_deadlock) FROM pg_stat_database_conflicts), \
             coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) \
             FROM (SELECT 1) one LEFT JOIN pg_stat_wal_receiver r ON true",
        )
        .await?
        .into_iter()
        .next()
        .unwrap_or_default();
    s.running = col(&row, 0) == "streaming" && col(&row, 5) == "not paused";
    s.source = Some(col(&row, 1)).filter(|t| !t.is_empty()).or(Some(col(&row, 4)).filter(|t| !t.is_empty())).map(str::to_string);
    s.behind = col(&row, 2).parse::<i64>().ok().map(|n| u64::try_from(n).unwrap_or(0));
    s.lag = micros(col(&row, 3));
    for (key, i) in [("receiver", 0), ("replay", 5), ("conflicts", 6), ("received", 7)] {
        s.detail.insert(key.into(), col(&row, i).into());
    }
    if !s.running {
        s.error = broken(cx, &conn).await?;
        // Nobody knows how much there is that it has not received.
        (s.behind, s.lag) = (None, None);
        if let Some(primary) = Some(col(&row, 4)).filter(|t| !t.is_empty())
            && let Ok((_, p)) = admin(cx, &Db::find(cx, primary)?).await
        {
            s.behind = Some(p.lsn.0.saturating_sub(node.lsn.0));
        }
    }
    Ok(s)
}

/// How much of the log a standby lacks up to a position; `None` when it has it.
pub(super) async fn lacks(conn: &Conn, until: Lsn) -> Result<Option<u64>> {
    let now = conn.text("SELECT pg_last_wal_replay_lsn()").await?.and_then(|t| Lsn::parse(&t)).unwrap_or_default();
    Ok((now < until).then(|| until.0 - now.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifier_is_what_the_server_keeps() {
        let v = scram("s3cret");
        let (head, tail) = v.split_once('$').unwrap();
        assert_eq!(head, "SCRAM-SHA-256");
        assert!(tail.starts_with("4096:") && tail.matches(['$', ':']).count() == 3 && !v.contains("s3cret"), "{v}");
    }

    #[test]
    fn values_of_connection_strings_are_quoted() {
        assert_eq!(conn_value(r"a'b\c"), r"'a\'b\\c'");
    }
}
