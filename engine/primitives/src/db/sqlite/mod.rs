//! SQLite: a file on a host, reached by a helper that runs there.

mod helper;
mod link;
mod proto;
mod remote;
mod sqlite3;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use runbook_core::clock::rfc3339;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result, Value};
use serde::Deserialize;
use serde_json::Value as Json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use self::link::{Link, Pipe};
use self::proto::{Digest, Fenced, Header, Offer, Placed, Request, RowLine, State, Version};
use super::driver::{Caught, Content, Copied, Db, Driver, Executed, Fence, Row, Rows, Switched, Table, TableOptions, cannot};

/// Serves one request on standard input and output, on the host of the file: `runbook __helper sqlite`. Gives the exit status.
pub(crate) fn serve() -> i32 {
    i32::from(!helper::serve(&mut std::io::stdin().lock(), &mut std::io::stdout().lock()))
}

/// The driver.
pub struct Sqlite {
    link: Arc<dyn Link>,
}

impl Default for Sqlite {
    fn default() -> Self {
        Sqlite { link: Arc::new(link::Ssh) }
    }
}

/// What a transfer did.
enum Moved {
    Same { rows: u64, size: u64 },
    Placed(Placed),
}

impl Sqlite {
    async fn call<T: for<'a> Deserialize<'a>>(&self, cx: &Cx, db: &Db, request: Request) -> Result<T> {
        let json = self.link.call(cx, db, request).await?;
        serde_json::from_value(json).map_err(|e| Error::new(Code::DB_HELPER, format!("the helper's answer is not understood: {e}")))
    }

    /// Streams a snapshot of `from` into what `into` asks of `to`, with nothing kept in memory.
    async fn transfer(
        &self,
        cx: &Cx,
        from: &Db,
        to: &Db,
        unless: Option<Version>,
        into: impl FnOnce(Header) -> Request + Send,
    ) -> Result<Moved> {
        let work = async {
            let mut source = self.link.open(cx, from, Request::Send { unless }).await?;
            source.end_input().await;
            let header = match source.reply(&from.host).await? {
                Offer::Same { rows, size } => return Ok(Moved::Same { rows, size }),
                Offer::File(header) => header,
            };
            let size = header.size;
            let mut target = self.link.open(cx, to, into(header)).await?;
            let (mut buf, mut done) = (vec![0; 256 << 10], 0u64);
            loop {
                let n = source.output.read(&mut buf).await.map_err(|e| link::lost(&from.host, &e))?;
                // A target that refuses stops reading: its reply says why.
                if n == 0 || target.input.write_all(buf.get(..n).unwrap_or_default()).await.is_err() {
                    break;
                }
                done += n as u64;
                cx.progress(format!("copying {} to {}", from.name, to.name), done, Some(size), "bytes");
            }
            target.end_input().await;
            target.reply(&to.host).await.map(Moved::Placed)
        };
        tokio::select! {
            result = work => result,
            () = cx.cancel.cancelled() => Err(Error::new(Code::ABORTED, format!("stopped while copying {} to {}", from.name, to.name))),
        }
    }

    async fn digest(&self, cx: &Cx, db: &Db, checksums: bool) -> Result<Digest> {
        self.call(cx, db, Request::Digest { checksums }).await
    }

    async fn state(&self, cx: &Cx, db: &Db) -> Result<State> {
        self.call(cx, db, Request::State).await
    }
}

fn position(digest: &Digest) -> BTreeMap<String, Value> {
    let tables: BTreeMap<String, Value> =
        digest.tables.iter().map(|(n, t)| (n.clone(), Value::from(format!("{} rows {}", t.rows, t.sum)))).collect();
    BTreeMap::from([("stamp".to_string(), Value::from(digest.stamp())), ("tables".to_string(), Value::Map(tables))])
}

fn stamp(fence: &Fence) -> &str {
    fence.position.get("stamp").and_then(Value::as_str).unwrap_or("")
}

/// What `now` lacks of a fence's position, for people.
fn missing(fence: &Fence, now: &Digest) -> String {
    let none = BTreeMap::new();
    let then = fence.position.get("tables").and_then(Value::as_map).unwrap_or(&none);
    let now = position(now);
    let now = now.get("tables").and_then(Value::as_map).unwrap_or(&none);
    let rows = |v: &Value| v.as_str().and_then(|t| t.split_once(" rows")).map_or(String::new(), |(n, _)| n.to_string());
    let mut found: Vec<String> = Vec::new();
    for (table, want) in then {
        match now.get(table) {
            Some(have) if have == want => {}
            Some(have) if rows(have) == rows(want) => found.push(format!("rows of {table} differ")),
            Some(have) => found.push(format!("{table} has {} rows of {}", rows(have), rows(want))),
            None => found.push(format!("{table} is missing")),
        }
    }
    found.extend(now.keys().filter(|t| !then.contains_key(*t)).map(|t| format!("{t} is not in the fenced database")));
    if found.is_empty() { "definitions differ".into() } else { found.join(", ") }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// Parameters for the wire. Secrets go by value: the wire is the connection's standard input.
fn wire(v: &Value) -> Json {
    fn plain(v: &Value) -> Value {
        match v {
            Value::Secret(s) => Value::Str(s.reveal().to_string()),
            Value::List(l) => Value::List(l.iter().map(plain).collect()),
            Value::Map(m) => Value::Map(m.iter().map(|(k, v)| (k.clone(), plain(v))).collect()),
            other => other.clone(),
        }
    }
    plain(v).to_json()
}

#[async_trait]
impl Driver for Sqlite {
    async fn query(&self, cx: &Cx, db: &Db, sql: &str, params: &Value) -> Result<Vec<Value>> {
        let rows: Json = self.call(cx, db, Request::Query { sql: sql.into(), params: wire(params) }).await?;
        match Value::from_json(&rows)? {
            Value::List(rows) => Ok(rows),
            other => Err(Error::internal(format!("rows are an array, not {}", other.type_name()))),
        }
    }

    async fn execute(&self, cx: &Cx, db: &Db, sql: &str, params: &Value) -> Result<Executed> {
        let request =
            Request::Execute { sql: sql.into(), params: wire(params), action: cx.action_id.to_string(), time: rfc3339(cx.clock.now()) };
        let e: proto::Executed = self.call(cx, db, request).await?;
        Ok(Executed { rows: e.rows, last_id: e.last_id })
    }

    async fn executed(&self, cx: &Cx, db: &Db) -> Result<Option<Executed>> {
        let e: Option<proto::Executed> = self.call(cx, db, Request::Executed { action: cx.action_id.to_string() }).await?;
        Ok(e.map(|e| Executed { rows: e.rows, last_id: e.last_id }))
    }

    async fn facts(&self, cx: &Cx, db: &Db) -> Result<BTreeMap<String, Value>> {
        let facts: Json = self.call(cx, db, Request::Facts).await?;
        match Value::from_json(&facts)? {
            Value::Map(fields) => Ok(fields),
            other => Err(Error::internal(format!("facts are a map, not {}", other.type_name()))),
        }
    }

    async fn content(&self, cx: &Cx, db: &Db, checksums: bool) -> Result<Content> {
        let d = self.digest(cx, db, checksums).await?;
        let tables = d.tables.into_iter().map(|(n, t)| (n, Table { rows: t.rows, sum: t.sum })).collect();
        Ok(Content { objects: d.objects, tables })
    }

    async fn rows(&self, cx: &Cx, db: &Db, table: &str) -> Result<Box<dyn Rows>> {
        let mut pipe = self.link.open(cx, db, Request::Rows { table: table.into() }).await?;
        pipe.end_input().await;
        let mut rows = RowStream { host: db.host.clone(), pipe, key: Vec::new() };
        match rows.read().await? {
            RowLine::Key(key) => rows.key = key,
            _ => return Err(Error::new(Code::DB_HELPER, "the helper's rows have no key").host(&db.host)),
        }
        Ok(Box::new(rows))
    }

    async fn copy(&self, cx: &Cx, from: &Db, to: &Db, options: &TableOptions) -> Result<Copied> {
        if *options != TableOptions::default() {
            return Err(cannot(to, "choosing tables or jobs, since the whole file is copied"));
        }
        let there = self.state(cx, to).await?;
        // Whatever the target says of itself is checked again when the stream has arrived, right before it is put in place.
        let unless = match &there.copy {
            Some(c) if there.promoted.is_none() && there.unguarded.is_empty() => {
                Some(Version { stamp: c.stamp.clone(), fence: c.fence.clone() })
            }
            _ => None,
        };
        let (origin, time) = (format!("{} on {}", from.name, from.host), rfc3339(cx.clock.now()));
        Ok(match self.transfer(cx, from, to, unless, |header| Request::Receive { header, origin, time }).await? {
            Moved::Same { rows, size } => Copied { rows, bytes: size, changed: false },
            Moved::Placed(p) => Copied { rows: p.rows, bytes: p.size, changed: p.changed },
        })
    }

    async fn copy_to_file(&self, cx: &Cx, db: &Db, path: &str) -> Result<Copied> {
        let p: Placed = self.call(cx, db, Request::CopyFile { to: path.into() }).await?;
        Ok(Copied { rows: p.rows, bytes: p.size, changed: p.changed })
    }

    async fn drop_copy(&self, cx: &Cx, db: &Db) -> Result<bool> {
        self.call(cx, db, Request::DropCopy).await
    }

    async fn fence(&self, cx: &Cx, db: &Db, within: Duration) -> Result<(Fence, Option<String>)> {
        let (id, time) = (cx.action_id.to_string(), rfc3339(cx.clock.now()));
        let request = Request::Fence { id: id.clone(), name: db.name.clone(), time, within_ms: millis(within) };
        let f: Fenced = self.call(cx, db, request).await?;
        let row = f.fence.ok_or_else(|| Error::new(Code::DB_NOT_FENCED, format!("the fence {id} on \"{}\" is gone", db.name)))?;
        Ok((Fence { id, database: db.name.clone(), time: row.time, position: position(&f.digest) }, f.taken_over))
    }

    async fn fenced(&self, cx: &Cx, db: &Db) -> Result<bool> {
        Ok(self.state(cx, db).await?.fence.is_some_and(|f| f.id == cx.action_id.0))
    }

    async fn unfence(&self, cx: &Cx, db: &Db, force: bool) -> Result<bool> {
        self.call(cx, db, Request::Unfence { force }).await
    }

    async fn caught_up(&self, cx: &Cx, db: &Db, fence: &Fence) -> Result<Caught> {
        let behind = |missing: String| Ok(Caught::Behind { missing, may_pass: false });
        let s = self.state(cx, db).await?;
        let Some(copy) = s.copy else {
            return behind(if s.exists { "it is not a copy made by copy_from".into() } else { "there is no copy yet".into() });
        };
        if s.promoted.is_some_and(|p| p.fence == fence.id) {
            return Ok(Caught::Up);
        }
        if copy.fence.as_deref() != Some(&fence.id) {
            return behind(format!("it was copied before the fence {} stood (at {})", fence.id, copy.time));
        }
        let now = self.digest(cx, db, true).await?;
        if now.stamp() == stamp(fence) { Ok(Caught::Up) } else { behind(missing(fence, &now)) }
    }

    /// 1. The source confirms that this very fence stands, refuses writes, and has seen none.
    /// 2. The source notes to whom it hands over, so that `unfence` cannot open both sides. From here to 3 nobody takes writes.
    /// 3. The copy checks that it has that content and becomes writable, in one transaction.
    ///
    /// A crash before 3 leaves everything fenced; doing it all again is safe. After 3 the copy's mark says that it was done.
    async fn promote(&self, cx: &Cx, db: &Db, source: &Db, fence: &Fence) -> Result<Switched> {
        let f: Fenced = self.call(cx, source, Request::CheckFence { id: fence.id.clone() }).await?;
        let refuse = |why: String, hint: &str| Err(Error::new(Code::DB_NOT_FENCED, why).hint(hint).host(&source.host));
        let name = &source.name;
        let Some(row) = f.fence else {
            let now = f.other.map_or("there is no fence now".to_string(), |o| format!("another stands now, {}", o.id));
            return refuse(
                format!("the fence {} on \"{name}\" no longer stands: {now}", fence.id),
                "fence it again, copy again, then promote",
            );
        };
        if !f.leaks.is_empty() {
            return refuse(
                format!("writes on \"{name}\" are not refused: {}", f.leaks.join("; ")),
                "take the fence down and put it up again",
            );
        }
        if f.digest.stamp() != stamp(fence) {
            return refuse(
                format!("\"{name}\" was changed under its fence: {}", missing(fence, &f.digest)),
                "something went around the fence (a schema change?): take it down, put it up again, copy again",
            );
        }
        if let Some(other) = row.handed_to.filter(|to| *to != db.name) {
            return refuse(format!("\"{name}\" has already handed over to \"{other}\""), "demote that one first");
        }
        // Checked before the note, so that a copy that lags leaves no trace on the source.
        if let Caught::Behind { missing, .. } = self.caught_up(cx, db, fence).await? {
            return Err(Error::new(Code::DB_BEHIND, format!("\"{}\" does not have everything: {missing}", db.name))
                .hint("run copy_from again under the fence, then promote")
                .host(&db.host));
        }
        let _: bool = self.call(cx, source, Request::HandOver { to: Some(db.name.clone()) }).await?;
        let request = Request::Promote {
            fence: fence.id.clone(),
            stamp: stamp(fence).to_string(),
            action: cx.action_id.to_string(),
            time: rfc3339(cx.clock.now()),
        };
        let changed: bool = self.call(cx, db, request).await?;
        let note = if changed { format!("\"{}\" takes the writes", db.name) } else { "it was promoted under this fence already".into() };
        Ok(Switched { changed, note })
    }

    async fn promoted(&self, cx: &Cx, db: &Db) -> Result<bool> {
        Ok(self.state(cx, db).await?.promoted.is_some_and(|p| p.action == cx.action_id.0))
    }

    /// 1. Writes on the promoted copy stop, proven. From here to the end nobody takes writes.
    /// 2. When its content is no longer the other side's, it is copied back, in one atomic write, into the live file of the other
    ///    side, which must still be fenced and have just the content from which this one was promoted.
    /// 3. The promotion's mark goes; this is a copy again.
    /// 4. The other side's note that it handed over goes, so that `unfence` opens it.
    ///
    /// Each part finds out by itself whether it was done, so a crash anywhere is mended by doing all of it again: after 1 writes
    /// are stopped already; after 2 the contents are equal; after 3 this is no promoted copy; 4 changes nothing the second time.
    async fn demote(&self, cx: &Cx, db: &Db, other: &Db, within: Duration) -> Result<Switched> {
        let refuse = |code: Code, why: String, hint: &str| Err(Error::new(code, why).hint(hint));
        let before = self.state(cx, db).await?;
        let source = self.state(cx, other).await?;
        let handed_here = source.fence.as_ref().is_some_and(|f| f.handed_to.as_deref() == Some(&db.name));
        if before.copy.is_none() {
            if !handed_here && !before.exists {
                return Ok(Switched { changed: false, note: "there is no copy".into() });
            }
            let what = if before.exists { "is not a copy made by copy_from" } else { "is gone" };
            let hint = "look at what happened to it; unfence(#{ force: true }) on the other side abandons it with the rows it took";
            return refuse(Code::DB_COPY, format!("\"{}\" {what}", db.name), hint);
        }
        let (_, held): (State, Digest) = self.call(cx, db, Request::Hold { within_ms: millis(within) }).await?;
        let mut note = "it was not promoted".to_string();
        if let Some(promoted) = &before.promoted {
            note = "it took no writes".into();
            let now = self.digest(cx, other, true).await?.stamp();
            let mine = held.stamp();
            if mine != now && mine != promoted.stamp {
                if now != promoted.stamp || source.fence.is_none() {
                    return refuse(
                        Code::DB_DIFFERS,
                        format!("\"{}\" and \"{}\" both have rows of their own since the promotion", db.name, other.name),
                        "compare them and bring the rows together by hand; writes on both stay as they are",
                    );
                }
                let within_ms = millis(within);
                match self.transfer(cx, db, other, None, |header| Request::Restore { header, within_ms }).await? {
                    Moved::Placed(p) if p.stamp == mine => {
                        note = format!("{} rows copied back to \"{}\"", p.rows, other.name);
                    }
                    _ => return refuse(Code::DB_DIFFERS, format!("\"{}\" does not have the rows copied back", other.name), "try again"),
                }
            }
            let fence = source.fence.as_ref().map(|f| f.id.clone());
            let _: bool = self.call(cx, db, Request::BecomeCopy { fence, stamp: mine, time: rfc3339(cx.clock.now()) }).await?;
        }
        let cleared: bool = if handed_here { self.call(cx, other, Request::HandOver { to: None }).await? } else { false };
        Ok(Switched { changed: before.promoted.is_some() || cleared, note })
    }
}

struct RowStream {
    host: String,
    pipe: Pipe,
    key: Vec<String>,
}

impl RowStream {
    async fn read(&mut self) -> Result<RowLine> {
        let line = self.pipe.line(&self.host).await?;
        match serde_json::from_slice(&line) {
            Ok(RowLine::Error(e)) => Err(e.host(&self.host)),
            Ok(line) => Ok(line),
            // A stream that ends without its end line was cut off, and may not be taken for the whole.
            Err(e) => Err(Error::new(Code::DB_HELPER, format!("the helper's rows broke off: {e}")).host(&self.host).retryable(true)),
        }
    }
}

#[async_trait]
impl Rows for RowStream {
    fn key(&self) -> &[String] {
        &self.key
    }

    async fn next(&mut self) -> Result<Option<Row>> {
        match self.read().await? {
            RowLine::Row(r) => Ok(Some(Row { key: r.key.iter().map(Value::from_json).collect::<Result<_>>()?, sum: r.hash })),
            RowLine::End => Ok(None),
            _ => Err(Error::new(Code::DB_HELPER, "the helper's rows are out of order").host(&self.host)),
        }
    }
}
