//! MariaDB and MySQL: servers on hosts, reached over SSH, moved by replication.

mod accounts;
mod chunks;
mod connect;
mod data;
mod delayed;
mod dump;
mod dumped;
mod errors;
mod fence;
mod flavour;
mod follow;
mod galera;
mod host;
mod load;
mod pair;
mod physical;
mod probe;
mod relay;
mod replication;
mod schema;
mod sess;
mod sessions;
mod sql;
mod state;
mod status;
mod stream;
mod streamed;
mod switch;
mod value;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use rand::Rng as _;
use runbook_core::primitive::Cx;
use runbook_core::{Result, Value};

use super::driver::{
    Account, AccountsCopied, Before, Caught, Chunk, Content, Copied, Db, Driver, DumpOptions, Dumped, Executed, Fence, Keyed, Replicate,
    Replicated, Rolled, Row, Span, Status, Switched, TableOptions,
};
use super::stream::{About, Inflow, Outflow, Settle};

/// The driver of both kinds.
#[derive(Debug, Default)]
pub struct Mysql;

/// A password for an account that is made for one purpose, with characters of every class.
fn secret() -> String {
    const SET: &[u8] = b"ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789";
    let mut rng = rand::rng();
    let text: String = (0..28).filter_map(|_| SET.get(rng.random_range(0..SET.len()))).map(|b| char::from(*b)).collect();
    format!("{text}-Aa1_")
}

#[async_trait]
impl Driver for Mysql {
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
        schema::read(cx, db).await
    }

    async fn bounds(&self, cx: &Cx, db: &Db, table: &Keyed, span: &Span, rows: u64) -> Result<Vec<Vec<Value>>> {
        chunks::bounds(cx, db, table, span, rows).await
    }

    async fn chunk(&self, cx: &Cx, db: &Db, table: &Keyed, span: &Span) -> Result<Chunk> {
        chunks::chunk(cx, db, table, span).await
    }

    async fn chunk_rows(&self, cx: &Cx, db: &Db, table: &Keyed, span: &Span) -> Result<Vec<Row>> {
        chunks::rows(cx, db, table, span).await
    }

    async fn chunk_of_both(&self, cx: &Cx, a: &Db, b: &Db, table: &Keyed, span: &Span) -> Result<(Chunk, Chunk)> {
        chunks::both(cx, a, b, table, span).await
    }

    async fn rows_of_both(&self, cx: &Cx, a: &Db, b: &Db, table: &Keyed, span: &Span) -> Result<(Vec<Row>, Vec<Row>)> {
        chunks::rows_of_both(cx, a, b, table, span).await
    }

    async fn copy(&self, cx: &Cx, from: &Db, to: &Db, options: &TableOptions) -> Result<Copied> {
        replication::copy(cx, from, to, options).await
    }

    async fn copy_to_file(&self, cx: &Cx, db: &Db, path: &str) -> Result<Copied> {
        stream::to_file(cx, db, path).await
    }

    async fn dump(&self, cx: &Cx, db: &Db, path: &str, options: &DumpOptions) -> Result<Dumped> {
        dump::dump(cx, db, path, options).await
    }

    async fn load(&self, cx: &Cx, db: &Db, path: &str, options: &DumpOptions) -> Result<Dumped> {
        load::load(cx, db, path, options).await
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
        replication::drop_copy(cx, db).await
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
        status::caught_up(cx, db, fence).await
    }

    async fn promote(&self, cx: &Cx, db: &Db, source: &Db, fence: &Fence) -> Result<Switched> {
        switch::promote(cx, db, source, fence).await
    }

    async fn promoted(&self, cx: &Cx, db: &Db) -> Result<bool> {
        switch::promoted(cx, db).await
    }

    async fn demote(&self, cx: &Cx, db: &Db, other: &Db, within: Duration) -> Result<Switched> {
        switch::demote(cx, db, other, within).await
    }

    async fn replicate_from(&self, cx: &Cx, db: &Db, primary: &Db, options: &Replicate) -> Result<Replicated> {
        replication::replicate_from(cx, db, primary, options).await
    }

    async fn stop_replication(&self, cx: &Cx, db: &Db) -> Result<bool> {
        follow::stop(cx, db).await
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

    async fn pair_with(&self, cx: &Cx, db: &Db, other: &Db) -> Result<bool> {
        pair::pair(cx, db, other).await
    }

    async fn unpair(&self, cx: &Cx, db: &Db, other: &Db) -> Result<bool> {
        pair::unpair(cx, db, other).await
    }

    fn galera(&self) -> Option<&dyn crate::db::galera::Galera> {
        Some(self)
    }

    async fn accounts(&self, cx: &Cx, db: &Db) -> Result<Vec<Account>> {
        accounts::accounts(cx, db).await
    }

    async fn copy_accounts(&self, cx: &Cx, from: &Db, to: &Db, only: &[String]) -> Result<AccountsCopied> {
        accounts::copy(cx, from, to, only, false).await
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn made_passwords_are_long_and_never_the_same() {
        let (a, b) = (super::secret(), super::secret());
        assert!(a.len() >= 28 && a != b);
    }
}
