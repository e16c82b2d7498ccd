//! A session, and how its rows are read.

use std::collections::BTreeMap;
use std::sync::Weak;
use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row, Value as My};
use runbook_core::cancel::Cancel;
use runbook_core::{Code, Error, Result};

use super::connect::Server;
use super::errors;
use crate::db::driver::Db;

/// One session. Its state goes with it.
pub struct Sess {
    pub(super) conn: Option<Conn>,
    pub(super) db: Db,
    pub(super) cancel: Cancel,
    /// Where it waits for its next use.
    pub(super) home: Weak<Server>,
}

/// A row by the names of its columns, in lower case; NULL is `None`.
pub type Named = BTreeMap<String, Option<String>>;

fn plain(v: My) -> Option<String> {
    match v {
        My::NULL => None,
        My::Bytes(b) => Some(String::from_utf8_lossy(&b).into_owned()),
        My::Int(i) => Some(i.to_string()),
        My::UInt(u) => Some(u.to_string()),
        My::Double(d) => Some(d.to_string()),
        My::Float(f) => Some(f.to_string()),
        other => Some(other.as_sql(true).trim_matches('\'').to_string()),
    }
}

impl Sess {
    /// The connection itself.
    ///
    /// # Errors
    /// `RB0500` when an earlier statement was given up in the middle.
    pub fn conn(&mut self) -> Result<&mut Conn> {
        self.conn.as_mut().ok_or_else(|| Error::new(Code::DB_CONNECT, "the session has ended").host(&self.db.host).retryable(true))
    }

    /// Takes an error of the client library.
    pub fn failed(&self, e: &mysql_async::Error) -> Error {
        errors::statement(&self.db, e)
    }

    /// Runs statements, without their rows; the number of rows that they changed.
    ///
    /// # Errors
    /// `RB0501`, `RB0500`, `RB0021`.
    pub async fn run(&mut self, sql: impl AsRef<str>) -> Result<u64> {
        let (db, cancel, host) = (self.db.clone(), self.cancel.clone(), self.db.host.clone());
        let conn = self.conn()?;
        let work = async {
            let mut result = conn.query_iter(sql.as_ref()).await?;
            let mut rows = 0;
            loop {
                rows += result.affected_rows();
                result.for_each(drop).await?;
                if result.is_empty() {
                    return Ok(rows);
                }
            }
        };
        let done: std::result::Result<u64, mysql_async::Error> = tokio::select! {
            done = work => done,
            () = cancel.cancelled() => {
                self.conn = None;
                return Err(Error::new(Code::ABORTED, "stopped in the middle of a statement").host(host));
            }
        };
        done.map_err(|e| errors::statement(&db, &e))
    }

    async fn fetch(&mut self, sql: &str) -> Result<Vec<Row>> {
        let (db, cancel, host) = (self.db.clone(), self.cancel.clone(), self.db.host.clone());
        let conn = self.conn()?;
        let done: std::result::Result<Vec<Row>, mysql_async::Error> = tokio::select! {
            done = conn.query(sql) => done,
            () = cancel.cancelled() => {
                self.conn = None;
                return Err(Error::new(Code::ABORTED, "stopped in the middle of a statement").host(host));
            }
        };
        done.map_err(|e| errors::statement(&db, &e))
    }

    /// The rows of a statement, with every value as text.
    ///
    /// # Errors
    /// As [`Sess::run`].
    pub async fn rows(&mut self, sql: impl AsRef<str>) -> Result<Vec<Named>> {
        let rows = self.fetch(sql.as_ref()).await?;
        Ok(rows
            .into_iter()
            .map(|row| {
                let names: Vec<String> = row.columns_ref().iter().map(|c| c.name_str().to_lowercase()).collect();
                names.into_iter().zip(row.unwrap()).map(|(n, v)| (n, plain(v))).collect()
            })
            .collect())
    }

    /// The first value of every row; NULL is left out.
    ///
    /// # Errors
    /// As [`Sess::run`].
    pub async fn column(&mut self, sql: impl AsRef<str>) -> Result<Vec<String>> {
        let rows = self.fetch(sql.as_ref()).await?;
        Ok(rows.into_iter().filter_map(|row| row.unwrap().into_iter().next().and_then(plain)).collect())
    }

    /// The first value of the first row.
    ///
    /// # Errors
    /// As [`Sess::run`].
    pub async fn text(&mut self, sql: impl AsRef<str>) -> Result<Option<String>> {
        Ok(self.column(sql).await?.into_iter().next())
    }

    /// A whole number, 0 when there is none.
    ///
    /// # Errors
    /// As [`Sess::run`].
    pub async fn int(&mut self, sql: impl AsRef<str>) -> Result<i64> {
        Ok(self.text(sql).await?.and_then(|t| t.parse().ok()).unwrap_or(0))
    }

    /// A system variable of the server.
    ///
    /// # Errors
    /// As [`Sess::run`].
    pub async fn variable(&mut self, name: &str) -> Result<Option<String>> {
        let sql = format!("SHOW GLOBAL VARIABLES LIKE {}", super::sql::text(name));
        Ok(self.rows(sql).await?.into_iter().next().and_then(|mut r| r.remove("value").flatten()))
    }

    /// Whether a system variable is on.
    ///
    /// # Errors
    /// As [`Sess::run`].
    pub async fn is_on(&mut self, name: &str) -> Result<bool> {
        Ok(self.variable(name).await?.is_some_and(|v| matches!(v.to_uppercase().as_str(), "ON" | "1" | "YES" | "TRUE")))
    }

    /// Gives the session back for a later use, or ends it and waits for that.
    pub async fn close(mut self) {
        let Some(conn) = self.conn.take() else { return };
        let left = match self.home.upgrade() {
            Some(home) => home.keep(conn),
            None => Some(conn),
        };
        let Some(conn) = left else { return };
        let _ = tokio::time::timeout(Duration::from_secs(2), conn.disconnect()).await;
    }
}

/// A field of a row, or the empty text.
pub fn get<'a>(row: &'a Named, name: &str) -> &'a str {
    row.get(name).and_then(Option::as_deref).unwrap_or("")
}
