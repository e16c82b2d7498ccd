//! What the inventory says of a PostgreSQL database.

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use crate::db::driver::Db;
use crate::ssh::Place;

/// The port unless another is given.
pub(super) const PORT: u16 = 5432;

/// How the server's certificate is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tls {
    /// No TLS.
    Off,
    /// TLS; the certificate must be of the authority and of the server's name.
    VerifyFull,
}

/// The name of the database in the server.
pub(super) fn database(db: &Db) -> Result<&str> {
    db.settings.need("database")
}

/// The operating system's user to whom the cluster belongs.
pub(super) fn os_user(db: &Db) -> &str {
    db.settings.str("os_user").unwrap_or("postgres")
}

/// The role that logs in.
pub(super) fn role(db: &Db) -> &str {
    db.settings.str("user").unwrap_or(os_user(db))
}

pub(super) fn port(db: &Db) -> u16 {
    db.settings.int("port").and_then(|p| u16::try_from(p).ok()).unwrap_or(PORT)
}

/// Where the server listens, as seen from its host.
pub(super) fn place(db: &Db) -> Place {
    match db.settings.str("address") {
        Some(address) if db.settings.str("socket").is_none() => Place::Tcp(address.to_string(), port(db)),
        _ => {
            let folder = db.settings.str("socket").unwrap_or("/var/run/postgresql");
            Place::Unix(format!("{}/.s.PGSQL.{}", folder.trim_end_matches('/'), port(db)))
        }
    }
}

/// Where libpq finds the server on its host: a name, or the folder of its socket.
pub(super) fn libpq_host(db: &Db) -> String {
    match place(db) {
        Place::Tcp(host, _) => host,
        Place::Unix(path) => path.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_string()),
    }
}

/// The same server, another database of it.
pub(super) fn beside(db: &Db, database: &str) -> Db {
    let mut other = db.clone();
    other.settings.settings.insert("database".into(), database.into());
    other
}

/// The operating system's user that the server sees at its unix socket, when that is not the login.
pub(super) fn peer(db: &Db) -> Option<&str> {
    db.settings.flag("sudo").then(|| os_user(db))
}

pub(super) fn tls(db: &Db) -> Result<Tls> {
    match db.settings.str("tls").unwrap_or("off") {
        "off" => Ok(Tls::Off),
        "verify-full" => Ok(Tls::VerifyFull),
        other => Err(Error::new(Code::INVENTORY_TYPE, format!("tls = \"{other}\" of database \"{}\" is none that there is", db.name))
            .hint("write verify-full (with tls_ca) or off; the SSH connection to the host is encrypted in any case")),
    }
}

/// The name in the server's certificate.
pub(super) fn tls_name(db: &Db) -> &str {
    db.settings.str("tls_name").or_else(|| db.settings.str("address")).unwrap_or("localhost")
}

/// How standbys log in to this server: host and port as they see it, and the role.
pub(super) struct Replication {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub secret: String,
    pub options: String,
}

/// How a standby of `db` reaches it.
///
/// # Errors
/// `RB0114` naming what the inventory lacks.
pub(super) fn replication(cx: &Cx, db: &Db) -> Result<Replication> {
    let lacks = |key: &str, why: &str| {
        Error::new(Code::INVENTORY_MISSING, format!("\"{}\" has no \"{key}\" in runbook.toml: {why}", db.name))
            .hint(format!("add {key} = \"…\" to its section"))
    };
    let place = match db.settings.str("replication_address") {
        Some(a) => a.to_string(),
        None => cx
            .env
            .resource(runbook_core::inventory::Section::Hosts, &db.host)?
            .str("address")
            .map(|a| if a.contains(':') { format!("[{a}]") } else { a.to_string() })
            .ok_or_else(|| lacks("replication_address", "standbys must know where it is"))?,
    };
    let (host, port) = match place.rsplit_once(':') {
        Some((h, p)) if !p.ends_with(']') => (h.to_string(), p.parse().map_err(|_| lacks("replication_address", "its port is no number"))?),
        _ => (place, port(db)),
    };
    Ok(Replication {
        host: host.trim_start_matches('[').trim_end_matches(']').to_string(),
        port,
        user: db.settings.str("replication_user").unwrap_or("runbook_replication").to_string(),
        secret: db
            .settings
            .str("replication_password")
            .ok_or_else(|| lacks("replication_password", "standbys log in with a password"))?
            .into(),
        options: db.settings.str("replication_options").unwrap_or("").to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use runbook_core::Value;
    use runbook_core::inventory::Resource;

    use super::*;

    fn db(settings: &[(&str, Value)]) -> Db {
        let settings: BTreeMap<String, Value> = settings.iter().map(|(k, v)| ((*k).to_string(), v.clone())).collect();
        Db { name: "shop".into(), host: "old".into(), settings: Resource { name: "shop".into(), kind: "postgresql".into(), settings } }
    }

    #[test]
    fn where_the_server_listens() {
        assert_eq!(place(&db(&[])), Place::Unix("/var/run/postgresql/.s.PGSQL.5432".into()));
        assert_eq!(place(&db(&[("socket", "/tmp/".into()), ("port", Value::Int(5433))])), Place::Unix("/tmp/.s.PGSQL.5433".into()));
        assert_eq!(place(&db(&[("address", "localhost".into())])), Place::Tcp("localhost".into(), 5432));
        assert_eq!(libpq_host(&db(&[])), "/var/run/postgresql");
        assert_eq!(libpq_host(&db(&[("address", "localhost".into())])), "localhost");
        let other = beside(&db(&[("database", "shop".into()), ("port", Value::Int(5433))]), "postgres");
        assert_eq!((database(&other).unwrap(), port(&other)), ("postgres", 5433));
        assert_eq!(peer(&db(&[])), None);
        assert_eq!((peer(&db(&[("sudo", true.into())])), role(&db(&[("sudo", true.into())]))), (Some("postgres"), "postgres"));
        assert!(tls(&db(&[("tls", "prefer".into())])).is_err());
    }
}
