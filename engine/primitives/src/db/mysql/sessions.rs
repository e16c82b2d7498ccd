//! Whose sessions are on a server, which of them write, and their end.

use std::collections::BTreeSet;

use runbook_core::Result;

use super::connect::{Named, Server, Sess, get};

/// A session of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The server's number of it.
    pub id: u32,
    /// Its user.
    pub user: String,
    /// From where.
    pub host: String,
    /// Whether a statement runs.
    pub busy: bool,
    /// The statement, its beginning.
    pub statement: String,
    /// Rows that its open transaction has changed.
    pub changed: u64,
}

impl Session {
    /// For people.
    pub fn show(&self) -> String {
        let what = if self.statement.is_empty() { "in a transaction".to_string() } else { self.statement.clone() };
        format!("{}@{} (session {}): {what}", self.user, self.host, self.id)
    }

    /// Whether it is in the middle of writing.
    pub fn writing(&self) -> bool {
        self.changed > 0 || self.busy && !super::sql::reads(&self.statement)
    }
}

/// The sessions of clients, without those of this process, the system's, and replication.
pub async fn list(s: &mut Sess, at: &Server) -> Result<Vec<Session>> {
    let rows = s
        .rows(
            "SELECT p.id AS i, p.user AS u, p.host AS h, p.command AS c, COALESCE(LEFT(p.info, 200), '') AS q, COALESCE(t.trx_rows_modified, 0) AS n \
             FROM information_schema.processlist p LEFT JOIN information_schema.innodb_trx t ON t.trx_mysql_thread_id = p.id",
        )
        .await?;
    let own = at.own.lock().clone();
    Ok(rows.iter().map(session).filter(|p| !own.contains(&p.0.id) && p.1).map(|p| p.0).collect())
}

fn session(row: &Named) -> (Session, bool) {
    let command = get(row, "c");
    let user = get(row, "u").to_string();
    let client = !matches!(user.as_str(), "system user" | "event_scheduler" | "unauthenticated user" | "")
        && !command.starts_with("Binlog Dump")
        && !matches!(command, "Daemon" | "Slave_IO" | "Slave_SQL" | "Slave_worker" | "Killed" | "Connect");
    let statement = get(row, "q").split_whitespace().collect::<Vec<_>>().join(" ");
    let s = Session {
        id: get(row, "i").parse().unwrap_or(0),
        user,
        host: get(row, "h").to_string(),
        busy: !matches!(command, "Sleep"),
        statement,
        changed: get(row, "n").parse().unwrap_or(0),
    };
    (s, client)
}

/// Ends sessions; one that has ended by itself is none that failed.
pub async fn end(s: &mut Sess, which: impl IntoIterator<Item = &Session>) -> Result<usize> {
    let mut n = 0;
    for p in which {
        match s.run(format!("KILL CONNECTION {}", p.id)).await {
            Ok(_) => n += 1,
            Err(e) if e.details.get("code").is_some_and(|c| c == "1094") => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

/// The users of those grantees (`'a'@'b'`).
pub fn users<'a>(grantees: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    grantees.into_iter().filter_map(|g| g.strip_prefix('\'')?.split("'@'").next().map(str::to_string)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_of_grantees() {
        assert_eq!(users(["'root'@'localhost'", "'a b'@'%'", "'root'@'::1'"]).into_iter().collect::<Vec<_>>(), ["a b", "root"]);
    }

    #[test]
    fn who_writes() {
        let s = |busy, statement: &str, changed| Session {
            id: 1,
            user: "u".into(),
            host: "h".into(),
            busy,
            statement: statement.into(),
            changed,
        };
        assert!(s(true, "INSERT INTO t VALUES (1)", 0).writing() && s(false, "", 3).writing());
        assert!(!s(true, "SELECT 1", 0).writing() && !s(false, "", 0).writing());
        assert_eq!(s(false, "", 3).show(), "u@h (session 1): in a transaction");
    }
}
