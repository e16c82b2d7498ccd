//! The host's own `sqlite3` command, where the helper cannot run.

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use serde_json::Value as Json;

use super::link::Pipe;
use super::proto::Request;
use crate::db::driver::Db;
use crate::ssh::Session;

/// Does a request.
///
/// # Errors
/// `RB0507` for what this way cannot do.
pub async fn call(_cx: &Cx, _session: &Session, _db: &Db, _request: &Request) -> Result<Json> {
    Err(cannot())
}

/// Does a request as a stream.
///
/// # Errors
/// `RB0507` for what this way cannot do.
pub async fn open(_cx: &Cx, _session: &Session, _db: &Db, _request: &Request) -> Result<Pipe> {
    Err(cannot())
}

fn cannot() -> Error {
    Error::new(Code::DB_HELPER, "this needs the database helper, and the host can only run its own sqlite3")
        .hint("run the controller on the host's platform, or do this step by hand")
}
