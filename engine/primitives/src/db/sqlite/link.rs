//! How the driver reaches the database file: one request to a host, answered by a line or a stream.

use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use serde::Deserialize;
use serde_json::Value as Json;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};

use super::proto::{Envelope, Reply, Request};
use super::remote::{self, Way};
use super::sqlite3;
use crate::db::driver::Db;
use crate::ssh::helper::PROTOCOL;
use crate::ssh::{self, Exec};

/// A request under way: what follows its line goes in, what the helper answers comes out.
pub struct Pipe {
    /// Bytes after the request's line.
    pub input: Box<dyn AsyncWrite + Send + Unpin>,
    /// The answer.
    pub output: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    /// The helper's end: its status and the last of its standard error.
    pub done: BoxFuture<'static, Result<(i32, String)>>,
}

impl Pipe {
    /// Ends the input.
    ///
    /// # Errors
    /// Never one that matters: the helper's answer tells what went wrong.
    pub async fn end_input(&mut self) {
        let _ = self.input.shutdown().await;
        self.input = Box::new(tokio::io::sink());
    }

    /// Reads a line of the answer; empty at its end.
    ///
    /// # Errors
    /// `RB0305` when the connection is lost.
    pub async fn line(&mut self, host: &str) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        self.output.read_until(b'\n', &mut line).await.map_err(|e| lost(host, &e))?;
        Ok(line)
    }

    /// Reads a reply line.
    ///
    /// # Errors
    /// The helper's own; `RB0507` when it ended without an answer.
    pub async fn reply<T: for<'a> Deserialize<'a>>(&mut self, host: &str) -> Result<T> {
        let line = self.line(host).await?;
        if line.is_empty() {
            let done = std::mem::replace(&mut self.done, Box::pin(async { Ok((0, String::new())) }));
            let (status, text) = done.await?;
            return Err(died(status, &text).host(host));
        }
        Reply::read(&line).map_err(|e| e.host(host))
    }
}

pub(super) fn lost(host: &str, e: &std::io::Error) -> Error {
    Error::new(Code::SSH_LOST, format!("the stream broke off: {e}")).host(host).retryable(true)
}

pub(super) fn died(status: i32, text: &str) -> Error {
    let text = text.trim();
    Error::new(
        Code::DB_HELPER,
        format!("the database helper ended with status {status} and no answer{}{text}", if text.is_empty() { "" } else { ": " }),
    )
    .hint("look at the host's memory, disk and security policy; with sqlite3 installed there, the helper is not needed for most operations")
}

/// Carries requests to a database's host.
#[async_trait]
pub trait Link: Send + Sync {
    /// Does a request that is answered by one line.
    async fn call(&self, cx: &Cx, db: &Db, request: Request) -> Result<Json>;

    /// Does a request as a stream.
    async fn open(&self, cx: &Cx, db: &Db, request: Request) -> Result<Pipe>;
}

/// The database's path as the inventory has it.
///
/// # Errors
/// `RB0114`.
pub fn path(db: &Db) -> Result<&str> {
    db.settings.need("path")
}

/// The request's line.
///
/// # Errors
/// `RB0114` when the database has no path.
pub fn line(db: &Db, request: Request) -> Result<Vec<u8>> {
    let envelope = Envelope { protocol: PROTOCOL, db: path(db)?.to_string(), request };
    let mut line = serde_json::to_vec(&envelope).map_err(|e| Error::internal(e.to_string()))?;
    line.push(b'\n');
    Ok(line)
}

/// Over SSH: by the helper, or by the host's own `sqlite3`.
pub struct Ssh;

fn helper_exec(db: &Db, helper: &str) -> Exec {
    Exec { sudo: db.settings.flag("sudo"), ..Exec::new(format!("exec {} __helper sqlite", ssh::quote(helper))) }
}

#[async_trait]
impl Link for Ssh {
    async fn call(&self, cx: &Cx, db: &Db, request: Request) -> Result<Json> {
        let session = ssh::connect(cx, &db.host).await?;
        let mut again = true;
        loop {
            match remote::way(cx, &session, &db.host).await? {
                Way::Sqlite3 => return sqlite3::call(cx, &session, db, &request).await.map_err(|e| e.host(&db.host)),
                Way::Helper(helper) => {
                    let exec = Exec { stdin: Some(line(db, request.clone())?), ..helper_exec(db, &helper) };
                    let done = session.exec(cx, exec).await?;
                    if done.stdout.is_empty() {
                        // A cleaned cache folder is no reason to fail: put the helper there again, once.
                        if matches!(done.status, 126 | 127) && std::mem::take(&mut again) {
                            remote::forget(cx, &db.host).await;
                            continue;
                        }
                        return Err(died(done.status, &String::from_utf8_lossy(&done.stderr)).host(&db.host));
                    }
                    return Reply::read(&done.stdout).map_err(|e| e.host(&db.host));
                }
            }
        }
    }

    async fn open(&self, cx: &Cx, db: &Db, request: Request) -> Result<Pipe> {
        let session = ssh::connect(cx, &db.host).await?;
        match remote::way(cx, &session, &db.host).await? {
            Way::Sqlite3 => sqlite3::open(cx, &session, db, &request).await.map_err(|e| e.host(&db.host)),
            Way::Helper(helper) => {
                let channel = session.open(cx, helper_exec(db, &helper)).await?;
                let mut pipe =
                    Pipe { input: channel.stdin, output: BufReader::with_capacity(64 << 10, channel.stdout), done: channel.done };
                let line = line(db, request)?;
                // A helper that ended at once answers on its output, so a failed write is not the error to show.
                let sent = async {
                    pipe.input.write_all(&line).await?;
                    pipe.input.flush().await
                };
                let _ = tokio::time::timeout(Duration::from_secs(60), sent).await;
                Ok(pipe)
            }
        }
    }
}
