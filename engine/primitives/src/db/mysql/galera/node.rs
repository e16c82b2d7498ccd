//! One member's host: where its group communication listens, its configuration, its files, and how its server starts and stops.

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::super::host::option;
use super::super::{connect, host};
use super::refuse;
use crate::db::driver::Db;
use crate::db::galera::Member;
use crate::ssh::{self, quote};

/// The snippet's name.
const SNIPPET: &str = "zz-runbook-galera.cnf";

/// Where the provider is: Debian, Red Hat.
const PROVIDERS: &str = "/usr/lib/galera/libgalera_smm.so /usr/lib64/galera-4/libgalera_smm.so /usr/lib64/galera/libgalera_smm.so";

/// Where the member's group communication listens.
pub fn address(cx: &Cx, db: &Db) -> Result<(String, u16)> {
    if let Some(given) = db.settings.str("galera_address") {
        return Ok(match given.rsplit_once(':').and_then(|(h, p)| Some((h, p.parse().ok()?))) {
            Some((h, p)) => (h.to_string(), p),
            None => (given.to_string(), 4567),
        });
    }
    Ok((host::seen(cx, db, "members", "galera_address")?, 4567))
}

async fn run(cx: &Cx, db: &Db, script: String, stdin: Option<Vec<u8>>) -> Result<(i32, String, String)> {
    let exec = ssh::Exec { stdin, ..host::exec(db, script) };
    let done = ssh::connect(cx, &db.host).await?.exec_again(cx, exec).await?;
    let text = |b: &[u8]| String::from_utf8_lossy(b).trim().to_string();
    Ok((done.status, text(&done.stdout), text(&done.stderr)))
}

/// The server's data folder.
pub async fn data(cx: &Cx, db: &Db, me: &Member) -> Result<String> {
    if let Some(dir) = db.settings.str("data_dir") {
        return Ok(dir.to_string());
    }
    if me.status == "stopped" {
        return Ok("/var/lib/mysql".into());
    }
    let mut s = connect::session(cx, db).await?;
    let dir = s.variable("datadir").await?.unwrap_or_default();
    s.close().await;
    Ok(dir)
}

/// What is in a data folder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Kept {
    /// The cluster that it was a member of; empty when it was none.
    pub uuid: String,
    /// Its last transaction there; -1 when it did not end in order.
    pub seqno: i64,
    /// Whether a cluster may begin with it.
    pub safe: bool,
    /// Schemas that are not the system's.
    pub schemas: Vec<String>,
}

impl Kept {
    /// For people.
    pub fn show(&self) -> String {
        if self.seqno < 0 { format!("{} up to where it was lost", self.uuid) } else { format!("{}:{}", self.uuid, self.seqno) }
    }

    fn parse(out: &str) -> Kept {
        let mut kept = Kept { seqno: -1, safe: true, ..Kept::default() };
        for line in out.lines() {
            match line.split_once(':').map(|(k, v)| (k.trim(), v.trim())) {
                // A server that was never a member has this file too, once the provider was loaded.
                Some(("uuid", v)) if !v.starts_with("00000000-0000") => kept.uuid = v.into(),
                Some(("seqno", v)) => kept.seqno = v.parse().unwrap_or(-1),
                Some(("safe_to_bootstrap", v)) => kept.safe = v == "1",
                Some(("schema", v)) => kept.schemas.push(v.into()),
                _ => {}
            }
        }
        kept.safe |= kept.uuid.is_empty();
        kept
    }
}

/// Reads what is in the data folder, also of a server that does not run.
pub async fn kept(cx: &Cx, db: &Db, data: &str) -> Result<Kept> {
    let script = format!(
        "cd {} || exit 3\n[ ! -e grastate.dat ] || cat grastate.dat || exit 4\n\
         for d in */; do case ${{d%/}} in '*'|mysql|performance_schema|sys|_runbook|lost+found|'#'*) ;; *) printf 'schema: %s\\n' \"${{d%/}}\" ;; esac; done",
        quote(data)
    );
    let (status, out, err) = run(cx, db, script, None).await?;
    if status != 0 {
        return Err(refuse(db, format!("the data folder of \"{}\" cannot be read: {err}", db.name))
            .hint("give data_dir of the database, and sudo = true, in runbook.toml"));
    }
    Ok(Kept::parse(&out))
}

/// Lets a cluster begin with this member though it was not the last.
pub async fn make_safe(cx: &Cx, db: &Db, data: &str) -> Result<()> {
    let script = format!("sed -i 's/^safe_to_bootstrap:.*/safe_to_bootstrap: 1/' {}/grastate.dat", quote(data.trim_end_matches('/')));
    match run(cx, db, script, None).await? {
        (0, ..) => Ok(()),
        (_, _, err) => Err(refuse(db, format!("grastate.dat of \"{}\" cannot be written: {err}", db.name))),
    }
}

/// Writes the member's configuration.
pub async fn configure(cx: &Cx, db: &Db) -> Result<()> {
    let provider = db.settings.str("galera_provider").map_or(PROVIDERS.to_string(), quote);
    let (status, provider, _) =
        run(cx, db, format!("for f in {provider}; do [ -e \"$f\" ] && {{ echo \"$f\"; exit 0; }}; done; exit 3"), None).await?;
    if status != 0 {
        return Err(Error::new(Code::HOST_TOOL_MISSING, format!("the Galera library is not on the host of \"{}\"", db.name))
            .host(&db.host)
            .hint("install it (Debian: galera-4), or give galera_provider of the database"));
    }
    let mut all = vec![db.clone()];
    all.extend(super::others(cx, db)?);
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let peers: Vec<String> = all.iter().map(|m| address(cx, m).map(|(h, p)| format!("{h}:{p}"))).collect::<Result<_>>()?;
    let (own, port) = address(cx, db)?;
    let mut options = vec![format!("base_port={port}")];
    options.extend(db.settings.str("galera_options").map(str::to_string));
    let mut lines = vec![
        ("wsrep_on", "ON".to_string()),
        ("wsrep_provider", option(&provider)),
        ("wsrep_cluster_name", option(db.settings.need("galera_cluster")?)),
        ("wsrep_cluster_address", option(&format!("gcomm://{}", peers.join(",")))),
        ("wsrep_node_name", option(&db.name)),
        ("wsrep_node_address", option(&format!("{own}:{port}"))),
        ("wsrep_sst_method", option(db.settings.str("galera_sst").unwrap_or("rsync"))),
        ("wsrep_provider_options", option(&options.join("; "))),
        ("binlog_format", "ROW".into()),
        ("default_storage_engine", "InnoDB".into()),
        ("innodb_autoinc_lock_mode", "2".into()),
    ];
    if let Some(a) = db.settings.str("galera_sst_address") {
        lines.push(("wsrep_sst_receive_address", option(a)));
    }
    let text: String = lines.iter().map(|(k, v)| format!("{k} = {v}\n")).collect();
    let content =
        format!("# Written by runbook: a member of a Galera cluster. Made anew by galera_bootstrap and galera_join.\n[mysqld]\n{text}");
    let Some(folder) = host::folder(db) else {
        return Err(refuse(db, format!("the configuration of \"{}\" has no folder (config_dir is none)", db.name)));
    };
    let script = format!(
        "{folder}\n[ -n \"$d\" ] && [ -d \"$d\" ] || {{ echo 'there is no folder for configuration snippets' >&2; exit 3; }}\n\
         t=$d/.{SNIPPET}.$$\n(umask 022; cat >\"$t\") && mv -f \"$t\" \"$d/{SNIPPET}\" || {{ rm -f \"$t\"; exit 4; }}"
    );
    match run(cx, db, script, Some(content.into_bytes())).await? {
        (0, ..) => Ok(()),
        (_, _, err) => Err(refuse(db, format!("the configuration of \"{}\" cannot be written: {err}", db.name))
            .hint("give config_dir of the database, and sudo = true when only root may write there")),
    }
}

/// Starts, stops or bootstraps the server.
pub async fn control(cx: &Cx, db: &Db, verb: &str) -> Result<()> {
    match host::control(cx, db, verb).await? {
        (0, _) => Ok(()),
        (status, err) => Err(refuse(db, format!("the server of \"{}\" did not {verb} (exit status {status}): {err}", db.name))
            .hint("see the server's own log on its host; sudo = true when only root may do that")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_data_folder_says() {
        let k = Kept::parse(
            "# GALERA saved state\nversion: 2.1\nuuid:    9acf4d34-acdb-11e6-bcc3-d3e36276629f\nseqno:   15\nsafe_to_bootstrap: 0\nschema: shop\n",
        );
        assert_eq!((k.show().as_str(), k.safe, k.schemas), ("9acf4d34-acdb-11e6-bcc3-d3e36276629f:15", false, vec!["shop".to_string()]));
        let fresh = Kept::parse("");
        assert!(fresh.safe && fresh.uuid.is_empty());
        assert!(Kept::parse("uuid: 00000000-0000-0000-0000-000000000000\nseqno: -1\nsafe_to_bootstrap: 0\n").safe);
    }
}
