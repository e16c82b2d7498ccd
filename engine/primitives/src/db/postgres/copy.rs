//! The copy of a primary: made beside the data folder and put in its place whole; and what lets a folder follow a primary.

use std::time::Duration;

use runbook_core::Result;
use runbook_core::primitive::Cx;

use super::client::{Conn, col};
use super::cluster::Cluster;
use super::delayed::kept_delay;
use super::login::{conninfo, put_password};
use super::settings::Replication;
use super::slots::{ensure_slot, free_slot, slot};
use super::standby::{AT_LEAST, primary_settings};
use crate::db::driver::Db;
use crate::ssh::quote;

/// The lines by which a cluster follows a primary.
async fn follow_lines(primary: &Db, conn: &Conn, r: &Replication, data: &str, name: &str) -> Result<String> {
    let own = primary_settings(conn).await?;
    let quoted = |v: &str| format!("'{}'", v.replace('\\', "\\\\").replace('\'', "''"));
    let mut lines = format!(
        "# by runbook: follows {}\nprimary_conninfo = {}\nprimary_slot_name = {}\nrunbook.primary = {}\nrecovery_target_timeline = 'latest'\n\
         recovery_target_lsn = ''\nrunbook.rolled = ''\nrunbook.delay = ''\n",
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
    // Once it has taken over, the way back by pg_rewind wants its log from the last checkpoint that both sides share. The server's own
    // checkpoint after the promotion would remove that.
    if own.get("wal_keep_size").and_then(|v| v.parse::<u64>().ok()).is_none_or(|mib| mib < 1024) {
        lines.push_str("wal_keep_size = '1GB'\n");
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

/// Sees that a copy can be made beside the data folder.
pub(super) async fn room(cluster: &Cluster<'_>) -> Result<()> {
    let script = cluster
        .script("rm -rf \"$d.runbook-new\"; p=${d%/*}; [ -w \"$p\" ] || { echo \"$p cannot be written to by $(id -un)\" >&2; exit 1; }")?;
    cluster.must("making room for the copy", &script, None).await.map(|_| ())
}

/// Stops the cluster and puts the copy in its place; what is there is kept beside it under the name `aside`.
pub(super) async fn put_in_place(cluster: &Cluster<'_>, aside: &str) -> Result<()> {
    cluster.stop().await?;
    let script = cluster.script(&format!(
        "set -e; s=\"$d.runbook-new\"; o=\"$d.{aside}\"\n\
         if [ -e \"$d\" ]; then rm -rf \"$o\"; mv \"$d\" \"$o\"; fi\n\
         mv \"$s\" \"$d\"; sync \"${{d%/*}}\" 2>/dev/null || sync; rm -f \"$d.runbook-rewind\""
    ))?;
    cluster.must("putting the copy in place", &script, None).await.map(|_| ())
}

/// Copies the primary into a folder beside the data folder, whole, and puts it in its place; what is there goes aside.
pub(super) async fn rebuild(cx: &Cx, cluster: &Cluster<'_>, db: &Db, primary: &Db, conn: &Conn, r: &Replication) -> Result<u64> {
    let (name, data) = (slot(db), cluster.data()?);
    // A copy that an earlier try has left at work is ended, on both sides.
    end_leftover(cluster).await?;
    room(cluster).await?;
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
    let mut lines = follow_lines(primary, conn, r, &data, &name).await?;
    // Its own, and not that of its primary, which may have been such a standby once.
    lines.push_str(&format!("recovery_min_apply_delay = '{}'\n", kept_delay(cluster).await?));
    let script = cluster.script(
        "set -e; s=\"$d.runbook-new\"; cat >> \"$s/postgresql.auto.conf\"; : > \"$s/standby.signal\"; rm -f \"$s/runbook-start.log\" \"$s/recovery.signal\"\n\
         du -sk \"$s\" | cut -f 1",
    )?;
    let kib = cluster.must("setting up the copy", &script, Some(lines.into_bytes())).await?;
    put_in_place(cluster, "runbook-replaced").await?;
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
