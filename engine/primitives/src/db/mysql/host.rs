//! What is done on the server's host: a configuration snippet that keeps a server read-only over restarts, and the tools for dumps.

use runbook_core::inventory::Section;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::connect::{Server, user};
use crate::db::driver::Db;
use crate::ssh::Place;
use crate::ssh::{self, Exec, quote};

/// The snippet's name; read last in its folder.
const SNIPPET: &str = "zz-runbook.cnf";

/// Where servers look for snippets: Debian, Red Hat, MySQL's own packages.
const FOLDERS: [&str; 4] = ["/etc/mysql/mariadb.conf.d", "/etc/mysql/mysql.conf.d", "/etc/my.cnf.d", "/etc/mysql/conf.d"];

/// A command on the server's host, as who may read its files.
pub fn exec(db: &Db, script: String) -> Exec {
    Exec { sudo: db.settings.flag("sudo"), ..Exec::new(script) }
}

/// The folder for the snippet, as a line of shell that sets `d`; `None` when the inventory wants none.
pub fn folder(db: &Db) -> Option<String> {
    Some(match db.settings.str("config_dir") {
        Some("none") => return None,
        Some(dir) => format!("d={}", quote(dir)),
        None => format!("d=; for f in {}; do [ -d \"$f\" ] && {{ d=$f; break; }}; done", FOLDERS.join(" ")),
    })
}

/// Writes the snippet that makes the server start read-only with its events off, and makes sure that it is read.
///
/// # Errors
/// `RB0502` when it cannot be written or would not be read.
pub async fn hold(cx: &Cx, db: &Db, why: &str) -> Result<()> {
    hold_with(cx, db, why, "").await
}

/// As [`hold`], with further lines of configuration.
///
/// # Errors
/// As [`hold`].
pub async fn hold_with(cx: &Cx, db: &Db, why: &str, lines: &str) -> Result<()> {
    let Some(folder) = folder(db) else { return Ok(()) };
    let defaults = db.settings.str("defaults_file").map_or(String::new(), |f| format!("--defaults-file={}", quote(f)));
    let content = format!(
        "# Written by runbook: {}.\n# It goes with unfence, promote or drop_copy. Do not edit.\n[mysqld]\nread_only = 1\nevent_scheduler = OFF\n{lines}",
        why.replace(['\n', '\r'], " ")
    );
    let script = format!(
        "{folder}\n[ -n \"$d\" ] && [ -d \"$d\" ] || {{ echo 'there is no folder for configuration snippets' >&2; exit 3; }}\n\
         t=$d/.{SNIPPET}.$$\n(umask 022; cat >\"$t\") && mv -f \"$t\" \"$d/{SNIPPET}\" || {{ rm -f \"$t\"; exit 4; }}\n\
         p=$(command -v my_print_defaults) || {{ echo unknown; exit 0; }}\n\
         \"$p\" {defaults} mysqld | grep -q '^--read[-_]only=1' && echo read || echo unread"
    );
    let session = ssh::connect(cx, &db.host).await?;
    let done = session.exec_again(cx, Exec { stdin: Some(content.into_bytes()), ..exec(db, script) }).await?;
    let said = String::from_utf8_lossy(&done.stdout).trim().to_string();
    let hint = "give config_dir (and defaults_file) of the database in runbook.toml, sudo = true when only root may write there, or config_dir = \"none\" to do without";
    if done.status != 0 {
        let text = String::from_utf8_lossy(&done.stderr).trim().to_string();
        return Err(Error::new(Code::DB_FENCE, format!("\"{}\" cannot be kept read-only over a restart: {text}", db.name))
            .host(&db.host)
            .hint(hint));
    }
    match said.as_str() {
        "read" => Ok(()),
        "unread" => {
            release(cx, db).await?;
            Err(Error::new(
                Code::DB_FENCE,
                format!("\"{}\" cannot be kept read-only over a restart: its server would not read {SNIPPET}", db.name),
            )
            .host(&db.host)
            .hint(hint))
        }
        _ => {
            cx.message(format!(
                "{}: whether the server of \"{}\" reads {SNIPPET} at its start is not known (my_print_defaults is missing)",
                db.host, db.name
            ));
            Ok(())
        }
    }
}

/// Removes the snippet.
///
/// # Errors
/// `RB0502` when it cannot be removed.
pub async fn release(cx: &Cx, db: &Db) -> Result<()> {
    let Some(folder) = folder(db) else { return Ok(()) };
    let session = ssh::connect(cx, &db.host).await?;
    let done = session.exec_again(cx, exec(db, format!("{folder}\n[ -z \"$d\" ] || rm -f \"$d/{SNIPPET}\""))).await?;
    if done.status == 0 {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&done.stderr).trim().to_string();
    Err(Error::new(Code::DB_FENCE, format!("{SNIPPET} of \"{}\" cannot be removed: {text}", db.name)).host(&db.host))
}

/// The server's service of systemd.
pub fn service(db: &Db) -> &str {
    db.settings.str("service").unwrap_or("mariadb")
}

/// Has the server started or stopped: by the inventory's `control`, or by systemd. The exit status, and what was said.
///
/// # Errors
/// Those of the connection.
pub async fn control(cx: &Cx, db: &Db, verb: &str) -> Result<(i32, String)> {
    let script = match db.settings.str("control") {
        Some(program) => format!("{} {verb}", quote(program)),
        None => {
            let unit = quote(service(db));
            match verb {
                "bootstrap" => format!(
                    "systemctl set-environment _WSREP_NEW_CLUSTER=--wsrep-new-cluster && systemctl start {unit}; s=$?; systemctl unset-environment _WSREP_NEW_CLUSTER; exit $s"
                ),
                verb => format!("systemctl {verb} {unit}"),
            }
        }
    };
    cx.message(format!("\"{}\": {verb}", db.name));
    let done = ssh::connect(cx, &db.host).await?.exec_again(cx, exec(db, script)).await?;
    Ok((done.status, String::from_utf8_lossy(&done.stderr).trim().to_string()))
}

/// The name or address at which others find this one's host: `replication_host` of the database, or its host's `address`. Without
/// either, the error says that `who` does not find it, and that `key` may be given.
///
/// # Errors
/// `RB0114`.
pub fn seen(cx: &Cx, db: &Db, who: &str, key: &str) -> Result<String> {
    let host = cx.env.resource(Section::Hosts, &db.host)?;
    let name = db.settings.str("replication_host").or_else(|| host.str("address")).map(str::to_string);
    name.ok_or_else(|| {
        Error::new(Code::INVENTORY_MISSING, format!("where {who} find \"{}\" is not known", db.name))
            .hint(format!("give {key} of the database, or address of the host \"{}\", in runbook.toml", db.host))
    })
}

/// The login of the database for the server's own tools: an option file in an environment variable, out of sight.
///
/// # Errors
/// `RB0109` when the password cannot be had.
pub fn login(cx: &Cx, at: &Server) -> Result<Vec<(String, String)>> {
    let db = &at.db;
    let mut client = format!("[client]\nuser={}\n", option(&user(db)));
    match &at.place {
        Place::Unix(path) => client.push_str(&format!("socket={}\nprotocol=socket\n", option(path))),
        Place::Tcp(name, port) => client.push_str(&format!("host={}\nport={port}\nprotocol=tcp\n", option(name))),
    }
    if let Some(name) = db.settings.str("password") {
        client.push_str(&format!("password={}\n", option(cx.secret(name)?.reveal())));
    }
    if db.settings.flag("tls") {
        client.push_str("ssl\n");
    }
    Ok(vec![("RUNBOOK_CLIENT".into(), client)])
}

/// A command of the server's own tools with its [`login`]. `tools` are names of one program, the first that is there is taken; `args`
/// are shell words.
///
/// # Errors
/// As [`login`].
pub fn tool(cx: &Cx, at: &Server, tools: &[&str], args: &str) -> Result<Exec> {
    // The file is a pipe that only this command reads; the variable is gone before it begins.
    let script = format!(
        "t=; for n in {}; do t=$(command -v \"$n\") && break; done\n[ -n \"$t\" ] || {{ echo 'none of these is there: {}' >&2; exit 127; }}\n\
         exec 3<<RUNBOOK\n$RUNBOOK_CLIENT\nRUNBOOK\nunset RUNBOOK_CLIENT\nexec \"$t\" --defaults-file=/dev/fd/3 {args}",
        tools.join(" "),
        tools.join(", ")
    );
    Ok(Exec { env: login(cx, at)?, ..exec(&at.db, script) })
}

/// A value in an option file.
pub fn option(v: &str) -> String {
    format!("\"{}\"", v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\r', "\\r"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_option_files() {
        assert_eq!(option("a\"b\\c d#e"), "\"a\\\"b\\\\c d#e\"");
    }
}
