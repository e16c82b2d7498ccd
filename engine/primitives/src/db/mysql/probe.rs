//! The proof of a fence: accounts that try to write, and must be refused.

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::connect::{Server, Sess, session_as};
use super::fence::cannot;
use super::sql::text;
use super::state::{self, aside};
use crate::db::driver::Db;

/// The account that tries to write.
pub struct Probe {
    name: String,
    user: &'static str,
    password: String,
}

/// Its name.
pub const PROBER: &str = "_runbook_probe";

impl Probe {
    /// Makes it, with a table of ours to which it may write.
    ///
    /// # Errors
    /// `RB0502`.
    pub async fn make(s: &mut Sess, at: &Server) -> Result<Probe> {
        // From where we are seen, so that no account of another pattern is taken in its place.
        let seen = s.text("SELECT USER()").await?.unwrap_or_default();
        let host = seen.rsplit_once('@').map_or("localhost", |(_, h)| h);
        let name = format!("'{PROBER}'@{}", text(host));
        let password = super::secret();
        aside(
            s,
            &[
                format!("CREATE DATABASE IF NOT EXISTS {}", state::SCHEMA),
                format!("CREATE TABLE IF NOT EXISTS {}.probe (n INT) ENGINE=InnoDB", state::SCHEMA),
                format!("DROP USER IF EXISTS {name}"),
                format!("CREATE USER {name} IDENTIFIED BY {}", text(&password)),
                format!("GRANT SELECT, INSERT ON {}.probe TO {name}", state::SCHEMA),
            ],
        )
        .await
        .map_err(|e| cannot(&at.db, format!("the account that tries to write cannot be made: {}", e.message)).retryable(e.retryable))?;
        Ok(Probe { name, user: PROBER, password })
    }

    /// Removes it.
    ///
    /// # Errors
    /// `RB0501`.
    pub async fn remove(&self, s: &mut Sess) -> Result<()> {
        aside(s, &[format!("DROP USER IF EXISTS {}", self.name)]).await
    }
}

/// Tries to write, as an ordinary account and as the application's, and is refused.
///
/// # Errors
/// `RB0503` when a write is not refused.
pub async fn prove(cx: &Cx, at: &Server, probe: &Probe) -> Result<()> {
    let db = &at.db;
    attempt(cx, db, probe.user, &probe.password, &format!("INSERT INTO {}.probe VALUES (1)", state::SCHEMA)).await?;
    if let Some(user) = db.settings.str("app_user") {
        let password = match db.settings.str("app_password") {
            Some(name) => cx.secret(name)?.reveal().to_string(),
            None => String::new(),
        };
        // Refused before its privileges are looked at; without the fence it would change nothing.
        match attempt(cx, db, user, &password, &format!("DELETE FROM {}.probe WHERE 1 = 0", state::SCHEMA)).await {
            Err(e) if e.code == Code::DB_LOGIN => cx.message(format!("\"{}\": a write as {user} was not tried: {}", db.name, e.message)),
            done => done?,
        }
    }
    Ok(())
}

async fn attempt(cx: &Cx, db: &Db, user: &str, password: &str, sql: &str) -> Result<()> {
    let mut p = session_as(cx, db, user, password).await?;
    let tried = p.run(sql).await;
    p.close().await;
    match tried {
        Err(e) if e.details.get("code").is_some_and(|c| c == "1290" || c == "1836") => Ok(()),
        Err(e) if e.details.get("code").is_some_and(|c| c == "1142") => {
            Err(leak(db, format!("a write of {user} reached the check of its privileges")))
        }
        Err(e) => Err(e),
        Ok(_) => Err(leak(db, format!("a test write of {user} was not refused"))),
    }
}

/// A fence that does not hold.
pub fn leak(db: &Db, why: String) -> Error {
    Error::new(Code::DB_NOT_FENCED, format!("{why} on \"{}\": the fence does not hold", db.name))
        .host(&db.host)
        .hint("look at read_only and at who has changed it; take the fence down and put it up again")
}
