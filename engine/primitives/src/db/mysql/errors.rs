//! What the server and the way to it complain of, as errors with codes.

use mysql_async::{DriverError, Error as My};
use runbook_core::{Code, Error};

use crate::db::driver::Db;

/// The server's number of an error, or 0.
pub fn number(e: &My) -> u16 {
    if let My::Server(s) = e { s.code } else { 0 }
}

/// An error while a session is opened.
pub fn opening(db: &Db, user: &str, e: &My) -> Error {
    let name = &db.name;
    let made = match e {
        // Access denied, also for accounts without a password, locked and expired ones.
        My::Server(s) if matches!(s.code, 1045 | 1698 | 4151 | 3118 | 1820 | 1862 | 1130 | 1044 | 1524) => {
            Error::new(Code::DB_LOGIN, format!("database \"{name}\" refuses the login of \"{user}\": {}", s.message))
                .hint("look at user and password of the database in runbook.toml, and at sudo for a login by the operating system's user")
        }
        My::Driver(DriverError::UnknownAuthPlugin { name: plugin }) => {
            Error::new(Code::DB_LOGIN, format!("database \"{name}\" wants the login of \"{user}\" by {plugin}, which is not supported"))
                .hint("give the account a password, or one of unix_socket, mysql_native_password, caching_sha2_password, ed25519")
        }
        My::Server(s) => Error::new(Code::DB_CONNECT, format!("database \"{name}\" cannot be opened: {}", s.message))
            .retryable(matches!(s.code, 1040 | 1203 | 1053 | 1226)),
        other => Error::new(Code::DB_CONNECT, format!("database \"{name}\" cannot be opened: {other}"))
            .hint("see whether the server runs on the host and where it listens")
            .retryable(true),
    };
    made.host(&db.host)
}

/// An error of a statement.
pub fn statement(db: &Db, e: &My) -> Error {
    let name = &db.name;
    let made = match e {
        My::Server(s) => {
            let e = Error::new(Code::DB_QUERY, format!("database \"{name}\": {}", s.message))
                .detail("code", s.code)
                .detail("state", &s.state)
                .retryable(matches!(s.code, 1205 | 1213 | 1053 | 1158..=1161 | 1317 | 1927 | 3024 | 1969));
            match s.code {
                1142 | 1143 | 1227 | 1044 | 1370 | 1419 => {
                    e.hint("the account lacks a privilege: give it to the user in runbook.toml, or use another")
                }
                1290 | 1836 | 1792 => e.hint("the server or the transaction is read-only"),
                _ => e,
            }
        }
        other => Error::new(Code::DB_CONNECT, format!("the connection to database \"{name}\" was lost: {other}")).retryable(true),
    };
    made.host(&db.host)
}
