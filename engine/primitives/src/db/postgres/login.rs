//! How a standby logs in to its primary: the role, its password on the standby's host, and a first login to see that it works.

use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::client::{Conn, col};
use super::cluster::Cluster;
use super::settings::{self, Replication, replication};
use super::sql::{ident, lit};
use super::state::Node;
use crate::db::driver::Db;
use crate::ssh::{Done, quote};

/// Makes the role by which standbys log in, with the password that the secret holds. The server gets a verifier, never the password.
pub(super) async fn ensure_role(cx: &Cx, conn: &Conn, r: &Replication) -> Result<()> {
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
pub(super) fn conn_value(v: &str) -> String {
    format!("'{}'", v.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// The connection string to a primary, without the password.
pub(super) fn conninfo_bare(r: &Replication, name: &str) -> String {
    let options = if r.options.is_empty() { String::new() } else { format!(" {}", r.options) };
    format!(
        "host={} port={} user={} application_name={} connect_timeout=10{options}",
        conn_value(&r.host),
        r.port,
        conn_value(&r.user),
        conn_value(name)
    )
}

/// The same, with the password in a file beside the data folder.
pub(super) fn conninfo(r: &Replication, data: &str, name: &str) -> String {
    format!("{} passfile={}", conninfo_bare(r, name), conn_value(&format!("{data}.runbook-pass")))
}

/// The same for a database of the primary `db`, as whoever copies it or subscribes to it names it.
///
/// # Errors
/// When the inventory does not say which database it is.
pub(super) fn conninfo_of(db: &Db, r: &Replication, data: &str, name: &str) -> Result<String> {
    Ok(format!("{} dbname={}", conninfo(r, data, name), conn_value(settings::database(db)?)))
}

/// Puts the password beside the data folder, for its owner alone.
pub(super) async fn put_password(cx: &Cx, cluster: &Cluster<'_>, r: &Replication) -> Result<()> {
    let password = cx.secret(&r.secret)?;
    let escape = |t: &str| t.replace('\\', "\\\\").replace(':', "\\:");
    let line = format!("*:*:*:{}:{}\n", escape(&r.user), escape(password.reveal()));
    // Under a name of its own: a controller that died may have one on its way.
    let script = cluster.script(
        "set -e; umask 077; t=$(mktemp \"$d.runbook-pass.XXXXXX\"); trap 'rm -f \"$t\"' EXIT; cat > \"$t\"; mv -f \"$t\" \"$d.runbook-pass\"",
    )?;
    cluster.must("keeping the replication password", &script, Some(line.into_bytes())).await.map(|_| ())
}

/// Removes it, when nobody follows by it any more.
pub(super) async fn remove_password(cx: &Cx, db: &Db) -> Result<()> {
    let cluster = Cluster::of(cx, db).await?;
    cluster
        .must("removing the replication password", &cluster.script("rm -f \"$d.runbook-pass\" \"$d\".runbook-pass.??????")?, None)
        .await
        .map(|_| ())
}

/// Logs in from the standby's host to the primary as the standby will, and sees that it is that very cluster.
pub(super) async fn try_login(
    cx: &Cx,
    cluster: &Cluster<'_>,
    db: &Db,
    primary: &Db,
    r: &Replication,
    node: &Node,
    dbname: Option<&str>,
) -> Result<()> {
    let data = cluster.data()?;
    let what = match dbname {
        // What may not be asked in a database is told by the replication protocol, in which a session of a database can speak too.
        Some(name) => format!("replication=database dbname={}", conn_value(name)),
        None => "replication=true".to_string(),
    };
    let script = cluster.script(&identify(&format!("{} {what}", conninfo(r, &data, "runbook"))))?;
    let done = cluster.sh(&script, None, Some(Duration::from_secs(60))).await?;
    heard(cx, (db, primary), r, node, dbname, &done)
}

/// A command that asks a server, by the replication protocol, which cluster it is.
pub(super) fn identify(conninfo: &str) -> String {
    format!("psql -w -X -A -t -F ' ' -d {} -c IDENTIFY_SYSTEM", quote(conninfo))
}

/// Sees that [`identify`] on the host of `db` has found `primary`; otherwise says what is to be mended.
///
/// # Errors
/// `RB0511`, `RB0510`, `RB0322`, `RB0500`.
pub(super) fn heard(cx: &Cx, (db, primary): (&Db, &Db), r: &Replication, node: &Node, dbname: Option<&str>, done: &Done) -> Result<()> {
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
    try_login(cx, cluster, db, primary, r, node, Some("postgres")).await.is_ok()
}

/// Everything that is needed before a cluster is stopped for the sake of following `primary`: role, password, a login that works.
pub(super) async fn prepare(cx: &Cx, cluster: &Cluster<'_>, db: &Db, primary: &Db, conn: &Conn, node: &Node) -> Result<Replication> {
    let r = replication(cx, primary)?;
    ensure_role(cx, conn, &r).await.map_err(|e| e.host(&primary.host))?;
    put_password(cx, cluster, &r).await?;
    try_login(cx, cluster, db, primary, &r, node, None).await?;
    Ok(r)
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
