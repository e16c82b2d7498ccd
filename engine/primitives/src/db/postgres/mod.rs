//! PostgreSQL: a database of a cluster on a host, spoken to over the SSH session; physical standbys of whole clusters (`standby`), and
//! logical replicas of one database (`logical`).

mod accounts;
mod alike;
mod archive;
mod archived;
mod base;
mod carried;
mod chunks;
mod client;
mod cluster;
mod copied;
mod copy;
mod data;
mod delayed;
mod demote;
mod dump;
mod fence;
mod kept;
mod logical;
mod login;
mod pull;
mod reach;
mod recover;
mod settings;
mod slots;
mod sql;
mod standby;
mod state;
mod status;
mod streamed;
mod subscribed;
mod switch;
mod target;
mod turned;
mod value;
mod wal;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use runbook_core::primitive::Cx;
use runbook_core::{Result, Value};

use self::chunks::What;
use super::driver::{
    Account, AccountsCopied, Before, Caught, Chunk, Content, Copied, Db, Driver, DumpOptions, Dumped, Executed, Fence, Keyed, Replicate,
    Replicated, Rolled, Row, Span, Status, Switched, TableOptions, cannot,
};
use super::recovery::{Archive, Archived, BaseBackup, Recovery, Sources, Upto};
use super::stream::{About, Inflow, Outflow, Settle};

/// The driver.
#[derive(Debug, Default)]
pub struct Postgres;

#[async_trait]
impl Driver for Postgres {
    async fn query(&self, cx: &Cx, db: &Db, sql: &str, params: &Value) -> Result<Vec<Value>> {
        data::query(cx, db, sql, params).await
    }

    async fn execute(&self, cx: &Cx, db: &Db, sql: &str, params: &Value) -> Result<Executed> {
        data::execute(cx, db, sql, params).await
    }

    async fn executed(&self, cx: &Cx, db: &Db) -> Result<Option<Executed>> {
        data::executed(cx, db).await
    }

    async fn facts(&self, cx: &Cx, db: &Db) -> Result<BTreeMap<String, Value>> {
        data::facts(cx, db).await
    }

    async fn content(&self, cx: &Cx, db: &Db, checksums: bool) -> Result<Content> {
        chunks::content(cx, db, checksums).await
    }

    fn chunked(&self) -> bool {
        true
    }

    async fn schema(&self, cx: &Cx, db: &Db) -> Result<(BTreeMap<String, String>, Vec<Keyed>)> {
        chunks::schema(cx, db).await
    }

    fn same_definition(&self, name: &str, a: &str, b: &str) -> bool {
        alike::same(name, a, b)
    }

    async fn bounds(&self, cx: &Cx, db: &Db, table: &Keyed, span: &Span, rows: u64) -> Result<Vec<Vec<Value>>> {
        chunks::bounds(cx, db, table, span, rows).await
    }

    async fn chunk(&self, cx: &Cx, db: &Db, table: &Keyed, span: &Span) -> Result<Chunk> {
        chunks::chunk(cx, db, table, span).await
    }

    async fn chunk_rows(&self, cx: &Cx, db: &Db, table: &Keyed, span: &Span) -> Result<Vec<Row>> {
        chunks::chunk_rows(cx, db, table, span).await
    }

    async fn chunk_of_both(&self, cx: &Cx, a: &Db, b: &Db, table: &Keyed, span: &Span) -> Result<(Chunk, Chunk)> {
        let (l, r) = chunks::both(cx, (a, b), table, span, What::Sum).await?;
        Ok((chunks::as_chunk(&l), chunks::as_chunk(&r)))
    }

    async fn rows_of_both(&self, cx: &Cx, a: &Db, b: &Db, table: &Keyed, span: &Span) -> Result<(Vec<Row>, Vec<Row>)> {
        chunks::both(cx, (a, b), table, span, What::Rows).await
    }

    async fn copy(&self, cx: &Cx, from: &Db, to: &Db, options: &TableOptions) -> Result<Copied> {
        Box::pin(pull::copy(cx, from, to, options)).await
    }

    async fn copy_to_file(&self, _cx: &Cx, db: &Db, _path: &str) -> Result<Copied> {
        Err(cannot(db, "copy_to_file"))
    }

    async fn dump(&self, cx: &Cx, db: &Db, path: &str, options: &DumpOptions) -> Result<Dumped> {
        dump::dump(cx, db, path, options).await
    }

    async fn load(&self, cx: &Cx, db: &Db, path: &str, options: &DumpOptions) -> Result<Dumped> {
        dump::load(cx, db, path, options).await
    }

    async fn outflow(&self, cx: &Cx, db: &Db) -> Result<Outflow> {
        streamed::outflow(cx, db).await
    }

    async fn make_ready(&self, cx: &Cx, db: &Db, about: &About, id: &str) -> Result<bool> {
        streamed::make_ready(cx, db, about, id).await
    }

    async fn begin_with(&self, cx: &Cx, db: &Db, name: &str) -> Result<Vec<String>> {
        streamed::begin_with(cx, db, name).await
    }

    async fn inflow(&self, cx: &Cx, db: &Db, flow: Inflow<'_>) -> Result<()> {
        streamed::inflow(cx, db, flow).await
    }

    async fn settle(&self, cx: &Cx, db: &Db, id: &str, how: Settle) -> Result<()> {
        streamed::settle(cx, db, id, how).await
    }

    async fn drop_copy(&self, cx: &Cx, db: &Db) -> Result<bool> {
        pull::drop_copy(cx, db).await
    }

    async fn fence(&self, cx: &Cx, db: &Db, within: Duration) -> Result<(Fence, Option<String>)> {
        fence::fence(cx, db, within).await
    }

    async fn fenced(&self, cx: &Cx, db: &Db) -> Result<bool> {
        fence::fenced(cx, db).await
    }

    async fn unfence(&self, cx: &Cx, db: &Db, force: bool) -> Result<bool> {
        fence::unfence(cx, db, force).await
    }

    async fn caught_up(&self, cx: &Cx, db: &Db, fence: &Fence) -> Result<Caught> {
        switch::caught_up(cx, db, fence).await
    }

    async fn promote(&self, cx: &Cx, db: &Db, source: &Db, fence: &Fence) -> Result<Switched> {
        switch::promote(cx, db, source, fence).await
    }

    async fn promoted(&self, cx: &Cx, db: &Db) -> Result<bool> {
        switch::promoted(cx, db).await
    }

    async fn demote(&self, cx: &Cx, db: &Db, other: &Db, within: Duration) -> Result<Switched> {
        demote::demote(cx, db, other, within).await
    }

    async fn replicate_from(&self, cx: &Cx, db: &Db, primary: &Db, options: &Replicate) -> Result<Replicated> {
        standby::replicate(cx, db, primary, options).await
    }

    async fn stop_replication(&self, cx: &Cx, db: &Db) -> Result<bool> {
        standby::stop(cx, db).await
    }

    async fn status(&self, cx: &Cx, db: &Db) -> Result<Status> {
        status::status(cx, db).await
    }

    async fn set_delay(&self, cx: &Cx, db: &Db, delay: Duration) -> Result<bool> {
        delayed::set_delay(cx, db, delay).await
    }

    async fn roll_forward(&self, cx: &Cx, db: &Db, before: &Before) -> Result<Rolled> {
        delayed::roll_forward(cx, db, before).await
    }

    fn recovery(&self) -> Option<&dyn Recovery> {
        Some(self)
    }

    async fn accounts(&self, cx: &Cx, db: &Db) -> Result<Vec<Account>> {
        accounts::accounts(cx, db).await
    }

    async fn copy_accounts(&self, cx: &Cx, from: &Db, to: &Db, only: &[String]) -> Result<AccountsCopied> {
        accounts::copy(cx, from, to, only).await
    }
}

#[async_trait]
impl Recovery for Postgres {
    async fn archive_to(&self, cx: &Cx, db: &Db, archive: &Archive) -> Result<Archived> {
        archive::archive_to(cx, db, archive).await
    }

    async fn stop_archiving(&self, cx: &Cx, db: &Db, restart: bool) -> Result<bool> {
        archive::stop(cx, db, restart).await
    }

    async fn base_backup(&self, cx: &Cx, db: &Db, folder: &str) -> Result<BaseBackup> {
        base::make(cx, db, folder).await
    }

    async fn recover_to(&self, cx: &Cx, db: &Db, upto: &Upto, from: &Sources) -> Result<Rolled> {
        recover::recover_to(cx, db, upto, from).await
    }

    async fn end_recovery(&self, cx: &Cx, db: &Db) -> Result<bool> {
        recover::end(cx, db).await
    }
}
