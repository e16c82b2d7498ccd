//! What a kind of database must be able to do. The primitives call this and know no dialect.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::RwLock;
use runbook_core::inventory::{Resource, Section};
use runbook_core::primitive::Cx;
use runbook_core::{Call, Code, Error, Record, Result, Value};

pub use super::model::{
    Account, AccountsCopied, Before, Chunk, DumpOptions, Dumped, Keyed, LeftOut, Replicate, Replicated, ReplicationError, Rolled, Span,
    Status, TableOptions,
};
use super::mysql::Mysql;
use super::postgres::Postgres;
use super::sqlite::Sqlite;
use super::stream::{About, Inflow, Outflow, Settle};

/// A database of the inventory.
#[derive(Debug, Clone)]
pub struct Db {
    /// Its name in the inventory.
    pub name: String,
    /// The host it is on.
    pub host: String,
    /// Everything that the inventory says of it.
    pub settings: Resource,
}

impl Db {
    /// Finds a database by its name.
    ///
    /// # Errors
    /// `RB0106`, `RB0114`.
    pub fn find(cx: &Cx, name: &str) -> Result<Self> {
        let settings = cx.env.resource(Section::Databases, name)?.clone();
        Ok(Db { name: name.into(), host: settings.need("host")?.to_string(), settings })
    }

    /// The database on which a method is called.
    ///
    /// # Errors
    /// `RB0106`, `RB0114`.
    pub fn receiver(cx: &Cx, call: &Call) -> Result<Self> {
        Db::find(cx, call.target())
    }

    /// A database given as an argument.
    ///
    /// # Errors
    /// `RB0106`, `RB0114`.
    pub fn argument(cx: &Cx, call: &Call, i: usize) -> Result<Self> {
        Db::find(cx, call.arg(i).as_record().and_then(|r| r.name.as_deref()).unwrap_or(""))
    }

    /// The other database of an operation on two, which must be of the same kind.
    ///
    /// # Errors
    /// `RB0505` when the kinds differ or both are the same.
    pub fn pair(self, other: Db) -> Result<(Db, Db)> {
        if self.settings.kind != other.settings.kind {
            let (a, b) = (&self.settings.kind, &other.settings.kind);
            return Err(Error::new(Code::DB_COPY, format!("\"{}\" is of kind {a} and \"{}\" of kind {b}", self.name, other.name))
                .hint("both databases must be of one kind"));
        }
        if self.name == other.name {
            return Err(Error::new(Code::DB_COPY, format!("\"{}\" is given as both databases", self.name)));
        }
        Ok((self, other))
    }

    /// Its driver.
    ///
    /// # Errors
    /// `RB0104` when there is none for its kind.
    pub fn driver(&self, cx: &Cx) -> Result<Arc<dyn Driver>> {
        let drivers = cx.shared.get::<Drivers>();
        let found = drivers.0.read().get(self.settings.kind.as_str()).cloned();
        found.ok_or_else(|| {
            let known: Vec<String> = drivers.0.read().keys().map(ToString::to_string).collect();
            Error::new(
                Code::INVENTORY_TYPE,
                format!("database \"{}\" is of kind \"{}\", which there is not", self.name, self.settings.kind),
            )
            .hint(format!("there are: {}", known.join(", ")))
        })
    }
}

/// The drivers by kind. A new kind of database is a line here.
pub struct Drivers(pub RwLock<BTreeMap<&'static str, Arc<dyn Driver>>>);

impl Default for Drivers {
    fn default() -> Self {
        let sqlite: Arc<dyn Driver> = Arc::new(Sqlite::default());
        let mysql: Arc<dyn Driver> = Arc::new(Mysql);
        let postgresql: Arc<dyn Driver> = Arc::new(Postgres);
        Drivers(RwLock::new(BTreeMap::from([("sqlite", sqlite), ("mariadb", mysql.clone()), ("mysql", mysql), ("postgresql", postgresql)])))
    }
}

/// What statements did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Executed {
    /// Rows inserted, updated or deleted.
    pub rows: u64,
    /// Row id of the last inserted row; 0 where there is none.
    pub last_id: i64,
}

/// What a copy did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Rows of all tables.
    pub rows: u64,
    /// Size of the copy.
    pub bytes: u64,
    /// Whether anything had to be copied.
    pub changed: bool,
}

/// Rows and content of a table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// How many rows.
    pub rows: u64,
    /// Checksum of the rows, whatever their order.
    pub sum: String,
}

/// Schema and content, without what the engine itself keeps in a database.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Content {
    /// Definitions by object: `table orders`.
    pub objects: BTreeMap<String, String>,
    /// Tables.
    pub tables: BTreeMap<String, Table>,
}

/// A row's key and checksum.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The key's values.
    pub key: Vec<Value>,
    /// The row's checksum.
    pub sum: String,
}

/// Rows of a table in order of their keys, one by one.
#[async_trait]
pub trait Rows: Send {
    /// The names of the key's columns.
    fn key(&self) -> &[String];
    /// The next row; `None` at the end.
    async fn next(&mut self) -> Result<Option<Row>>;
}

/// A proven fence, as scripts hold it.
#[derive(Debug, Clone, PartialEq)]
pub struct Fence {
    /// Its id: the action that put it up.
    pub id: String,
    /// The fenced database's name.
    pub database: String,
    /// Since when, RFC 3339.
    pub time: String,
    /// What a copy must have reached; only the driver reads it.
    pub position: BTreeMap<String, Value>,
}

impl Fence {
    /// The record that scripts hold.
    #[must_use]
    pub fn record(&self) -> Record {
        let time = self.time.parse().map_or_else(|_| Value::from(self.time.as_str()), Value::Time);
        Record::new(
            "Fence",
            [
                ("id", self.id.as_str().into()),
                ("database", self.database.as_str().into()),
                ("time", time),
                ("position", self.position.clone().into()),
                ("proven", true.into()),
            ],
        )
    }

    /// Reads the record back.
    ///
    /// # Errors
    /// `RB0503` when it is not one that `fence` returned.
    pub fn from_record(v: &Value) -> Result<Self> {
        let bad = || Error::new(Code::DB_NOT_FENCED, "this is not a fence that fence() returned");
        let r = v.as_record().filter(|r| r.ty == "Fence" && r.get("proven").as_bool() == Some(true)).ok_or_else(bad)?;
        let position = r.get("position").as_map().ok_or_else(bad)?.clone();
        let time = if let Value::Time(t) = r.get("time") { runbook_core::clock::rfc3339(*t) } else { r.str("time").to_string() };
        Ok(Fence { id: r.str("id").into(), database: r.str("database").into(), time, position })
    }
}

/// Whether a copy has everything that a fence stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caught {
    /// It has.
    Up,
    /// It lacks this.
    Behind {
        /// What is missing, for people.
        missing: String,
        /// Whether waiting can help.
        may_pass: bool,
    },
}

/// What promoting or demoting did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switched {
    /// Whether anything was done.
    pub changed: bool,
    /// What, for people.
    pub note: String,
}

/// The operations of one kind of database. Each may be repeated after a crash at any point.
///
/// What a kind does not have keeps its default, which says so ([`cannot`]).
#[async_trait]
pub trait Driver: Send + Sync {
    /// Rows of a statement that only reads.
    async fn query(&self, cx: &Cx, db: &Db, sql: &str, params: &Value) -> Result<Vec<Value>>;

    /// Runs statements in one transaction with a marker named by `cx.action_id`.
    async fn execute(&self, cx: &Cx, db: &Db, sql: &str, params: &Value) -> Result<Executed>;

    /// What the statements with the marker `cx.action_id` did; `None` when they provably took no effect.
    async fn executed(&self, cx: &Cx, db: &Db) -> Result<Option<Executed>>;

    /// Fields of the record `DatabaseFacts`.
    async fn facts(&self, cx: &Cx, db: &Db) -> Result<BTreeMap<String, Value>>;

    /// Schema and content; without `checksums` rows are counted only. Tables that the engine or `runbook` keeps are left out.
    async fn content(&self, cx: &Cx, db: &Db, checksums: bool) -> Result<Content>;

    /// Keys and checksums of a table's rows, in order of their keys. Only for kinds that are not [`Driver::chunked`].
    async fn rows(&self, _cx: &Cx, db: &Db, _table: &str) -> Result<Box<dyn Rows>> {
        Err(cannot(db, "reading a table row by row"))
    }

    /// Whether `compare` goes by chunks, which the server itself sums up: [`Driver::schema`], [`Driver::bounds`], [`Driver::chunk`],
    /// [`Driver::chunk_rows`], and the two that ask both sides at one position. Otherwise it takes [`Driver::content`] and [`Driver::rows`].
    fn chunked(&self) -> bool {
        false
    }

    /// Definitions by object (`table orders`, `view v`), and the tables in the form in which chunks are asked for.
    async fn schema(&self, _cx: &Cx, db: &Db) -> Result<(BTreeMap<String, String>, Vec<Keyed>)> {
        Err(cannot(db, "comparing by chunks"))
    }

    /// Whether two definitions of one object say the same, as servers of different versions may write them.
    fn same_definition(&self, _name: &str, a: &str, b: &str) -> bool {
        a == b
    }

    /// Keys that cut the rows of `span` into chunks of about `rows` rows each: the last key of every chunk but the last, in order.
    /// Values are such that [`Span`] takes them back without loss: text where a type of the server has no exact value here.
    async fn bounds(&self, _cx: &Cx, db: &Db, _table: &Keyed, _span: &Span, _rows: u64) -> Result<Vec<Vec<Value>>> {
        Err(cannot(db, "comparing by chunks"))
    }

    /// Number and checksum of the rows of a span, worked out by the server, whatever their order. May be called many times at once.
    async fn chunk(&self, _cx: &Cx, db: &Db, _table: &Keyed, _span: &Span) -> Result<Chunk> {
        Err(cannot(db, "comparing by chunks"))
    }

    /// Key and checksum of each row of a span, which is known to be small.
    async fn chunk_rows(&self, _cx: &Cx, db: &Db, _table: &Keyed, _span: &Span) -> Result<Vec<Row>> {
        Err(cannot(db, "comparing by chunks"))
    }

    /// A chunk of both sides, at one and the same position when `b` replicates from `a`: asked where [`Driver::chunk`] of each differs.
    ///
    /// For example: a short transaction on `a` locks the span and reads position and checksum; `b` is asked when it has reached that
    /// position. The default asks both as they are, which is right when nobody writes.
    async fn chunk_of_both(&self, cx: &Cx, a: &Db, b: &Db, table: &Keyed, span: &Span) -> Result<(Chunk, Chunk)> {
        futures::try_join!(self.chunk(cx, a, table, span), self.chunk(cx, b, table, span))
    }

    /// As [`Driver::chunk_of_both`], for the rows of a span that is known to be small.
    async fn rows_of_both(&self, cx: &Cx, a: &Db, b: &Db, table: &Keyed, span: &Span) -> Result<(Vec<Row>, Vec<Row>)> {
        futures::try_join!(self.chunk_rows(cx, a, table, span), self.chunk_rows(cx, b, table, span))
    }

    /// Makes `to` a write-protected copy of `from`.
    async fn copy(&self, cx: &Cx, from: &Db, to: &Db, options: &TableOptions) -> Result<Copied>;

    /// Makes a consistent copy in a file on the same host.
    async fn copy_to_file(&self, cx: &Cx, db: &Db, path: &str) -> Result<Copied>;

    /// Writes a dump into a folder on the database's host, as of one moment.
    async fn dump(&self, _cx: &Cx, db: &Db, _path: &str, _options: &DumpOptions) -> Result<Dumped> {
        Err(cannot(db, "dump; copy_to_file makes a copy of the file"))
    }

    /// Loads such a folder. What an earlier try has loaded stays.
    async fn load(&self, _cx: &Cx, db: &Db, _path: &str, _options: &DumpOptions) -> Result<Dumped> {
        Err(cannot(db, "load"))
    }

    /// How the database is written to standard output on its host, as of one moment.
    async fn outflow(&self, _cx: &Cx, db: &Db) -> Result<Outflow> {
        Err(cannot(db, "streaming into a snapshot"))
    }

    /// Makes the database for a stream, named by `id`, when it is not there, is empty, or is what an earlier try with that id has left; false when it
    /// holds that stream whole already.
    ///
    /// # Errors
    /// `RB0505` when anything else is in it.
    async fn make_ready(&self, _cx: &Cx, db: &Db, _about: &About, _id: &str) -> Result<bool> {
        Err(cannot(db, "loading a snapshot"))
    }

    /// Loads a stream into the database that was made ready.
    async fn inflow(&self, _cx: &Cx, db: &Db, _flow: Inflow<'_>) -> Result<()> {
        Err(cannot(db, "loading a snapshot"))
    }

    /// Databases of the server whose names begin like this.
    async fn begin_with(&self, _cx: &Cx, _db: &Db, _name: &str) -> Result<Vec<String>> {
        Ok(vec![])
    }

    /// Ends what [`Driver::make_ready`] with that id has begun; anything else is left alone.
    async fn settle(&self, _cx: &Cx, db: &Db, _id: &str, _how: Settle) -> Result<()> {
        Err(cannot(db, "loading a snapshot"))
    }

    /// Removes an unpromoted copy; false when there is none.
    async fn drop_copy(&self, cx: &Cx, db: &Db) -> Result<bool>;

    /// Stops writes under the id `cx.action_id` and proves it; the text is the id of a fence that was taken over.
    async fn fence(&self, cx: &Cx, db: &Db, within: Duration) -> Result<(Fence, Option<String>)>;

    /// Whether the fence `cx.action_id` was put up. When it was, [`Driver::fence`] completes it.
    async fn fenced(&self, cx: &Cx, db: &Db) -> Result<bool>;

    /// Lets writes through again; false when there was no fence.
    async fn unfence(&self, cx: &Cx, db: &Db, force: bool) -> Result<bool>;

    /// Whether the copy has everything that the fence stands for. Asked again every few milliseconds; it may itself wait a little.
    ///
    /// # Errors
    /// `RB0509` with the server's own text, at once, when replication has stopped on an error: waiting cannot help.
    async fn caught_up(&self, cx: &Cx, db: &Db, fence: &Fence) -> Result<Caught>;

    /// Makes the copy `db` of `source` writable, when the fence still stands and holds and the copy has everything.
    async fn promote(&self, cx: &Cx, db: &Db, source: &Db, fence: &Fence) -> Result<Switched>;

    /// Whether `cx.action_id` promoted the copy.
    async fn promoted(&self, cx: &Cx, db: &Db) -> Result<bool>;

    /// Takes a promotion back, with the rows that came since copied back into `other`.
    async fn demote(&self, cx: &Cx, db: &Db, other: &Db, within: Duration) -> Result<Switched>;

    /// Makes `db` a write-protected replica of `primary`, from a consistent snapshot taken while that one is in use, and returns when
    /// replication runs. Finds out by itself what an earlier try has done; what was begun and cannot go on is begun again.
    ///
    /// What is replaced must be empty, or what an earlier try left, or a replica of the same primary; anything else only with
    /// [`Replicate::replace`].
    async fn replicate_from(&self, _cx: &Cx, db: &Db, _primary: &Db, _options: &Replicate) -> Result<Replicated> {
        Err(cannot(db, "replicating"))
    }

    /// Ends replication into `db` for good, on both sides (accounts and slots that were made for it go too), and leaves it
    /// write-protected; false when there was none. Refused once it was promoted.
    async fn stop_replication(&self, _cx: &Cx, db: &Db) -> Result<bool> {
        Err(cannot(db, "replicating"))
    }

    /// How replication stands. Replication that has stopped on an error is a field of it and no error.
    async fn status(&self, _cx: &Cx, db: &Db) -> Result<Status> {
        Err(cannot(db, "replicating"))
    }

    /// Lets a replica lag behind its primary on purpose; zero ends that. False when it is so already.
    async fn set_delay(&self, _cx: &Cx, db: &Db, _delay: Duration) -> Result<bool> {
        Err(cannot(db, "delayed replication"))
    }

    /// Lets a delayed replica apply what it holds up to just before a moment or a position, and stops there, also over restarts. Refused
    /// with `RB0512` when it is past that, or when nothing that it holds would be left out.
    async fn roll_forward(&self, _cx: &Cx, db: &Db, _before: &Before) -> Result<Rolled> {
        Err(cannot(db, "delayed replication"))
    }

    /// Lets `db` replicate from its own replica `other` as well, which must be read-only; false when it does.
    async fn pair_with(&self, _cx: &Cx, db: &Db, _other: &Db) -> Result<bool> {
        Err(cannot(db, "master-master pairs"))
    }

    /// Ends replication from `other` into `db`, which are a master-master pair, when `other` takes no writes and `db` has all of it; false
    /// when there is none.
    async fn unpair(&self, _cx: &Cx, db: &Db, _other: &Db) -> Result<bool> {
        Err(cannot(db, "master-master pairs"))
    }

    /// How it archives its log and recovers from that; `None` when it cannot.
    fn recovery(&self) -> Option<&dyn super::recovery::Recovery> {
        None
    }

    /// What it can do with Galera clusters; `None` when it has none.
    fn galera(&self) -> Option<&dyn super::galera::Galera> {
        None
    }

    /// The accounts, without those that the system keeps for itself, in order of their names.
    async fn accounts(&self, _cx: &Cx, db: &Db) -> Result<Vec<Account>> {
        Err(cannot(db, "listing accounts"))
    }

    /// Makes the accounts of `from` (those in `only`, when it names any) exist in `to` with the same passwords and grants. Accounts
    /// that only `to` has are left alone. Hashes never leave the two servers but through the redactor.
    async fn copy_accounts(&self, _cx: &Cx, from: &Db, _to: &Db, _only: &[String]) -> Result<AccountsCopied> {
        Err(cannot(from, "copying accounts"))
    }
}

/// The error of an operation that a kind of database does not have.
#[must_use]
pub fn cannot(db: &Db, what: &str) -> Error {
    Error::new(Code::DB_CANNOT, format!("a database of kind {} cannot do that: {what} (\"{}\")", db.settings.kind, db.name))
        .hint("see the primitive's page for the kinds that can")
        .host(&db.host)
}
