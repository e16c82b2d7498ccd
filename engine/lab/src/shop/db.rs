//! The shop's database: one connection, opened anew when another file has taken the database's place.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use serde::{Deserialize, Serialize};

/// The tables, with a little of what real schemas have: references, an index, a view, a counter, a blob.
pub(crate) const SCHEMA: &str = "
    CREATE TABLE products (sku TEXT PRIMARY KEY, name TEXT NOT NULL, price_cents INTEGER NOT NULL, picture TEXT) WITHOUT ROWID;
    CREATE TABLE orders (
        id TEXT PRIMARY KEY, product TEXT NOT NULL REFERENCES products(sku), quantity INTEGER NOT NULL CHECK (quantity > 0),
        customer TEXT NOT NULL, placed_at TEXT NOT NULL
    );
    CREATE INDEX orders_by_time ON orders (placed_at);
    CREATE TABLE payments (
        number INTEGER PRIMARY KEY AUTOINCREMENT, order_id TEXT NOT NULL UNIQUE REFERENCES orders(id),
        amount_cents INTEGER NOT NULL, discount REAL
    );
    CREATE TABLE settings (key TEXT PRIMARY KEY, value BLOB);
    CREATE VIEW turnover AS SELECT product, sum(quantity) AS pieces FROM orders GROUP BY product;
";

/// One order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Made by the customer, so that a repeated request is one order.
    pub id: String,
    pub product: String,
    pub quantity: i64,
    pub customer: String,
    #[serde(default)]
    pub placed_at: String,
}

/// One product.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Product {
    pub sku: String,
    pub name: String,
    pub price_cents: i64,
}

pub(super) struct Db {
    path: PathBuf,
    open: Mutex<Option<Open>>,
}

struct Open {
    conn: Connection,
    /// Device and inode of the file that it was opened on.
    file: (u64, u64),
}

/// Why the database did not do it.
#[derive(Debug)]
pub(super) enum Refusal {
    NoFile(std::io::Error),
    Sqlite(rusqlite::Error),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::NoFile(e) => write!(f, "the database file: {e}"),
            // Of a trigger's RAISE(ABORT, text) this is the text.
            Refusal::Sqlite(e) => e.fmt(f),
        }
    }
}

fn open(path: &std::path::Path) -> rusqlite::Result<Connection> {
    // Not CREATE: a missing database is an error to report, not a new shop without orders.
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(Duration::from_secs(2))?;
    // If the file is replaced under us, closing must neither write into nor delete the write-ahead log that now belongs to the
    // other file under the same name. `close` lifts this when the file is still ours.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    // Safe against a crash of the shop; only a power cut can lose the newest orders, as in most shops.
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    conn.pragma_update(None, "foreign_keys", true)?;
    Ok(conn)
}

impl Db {
    pub fn new(path: PathBuf) -> Db {
        Db { path, open: Mutex::default() }
    }

    fn file(&self) -> Result<(u64, u64), Refusal> {
        std::fs::metadata(&self.path).map(|m| (m.dev(), m.ino())).map_err(Refusal::NoFile)
    }

    /// Does something with the database that is there now.
    pub fn with<T>(&self, f: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, Refusal> {
        let mut slot = self.open.lock();
        let file = match self.file() {
            Ok(f) => f,
            Err(e) => {
                *slot = None;
                return Err(e);
            }
        };
        if slot.as_ref().is_none_or(|o| o.file != file) {
            *slot = None;
            *slot = Some(Open { conn: open(&self.path).map_err(Refusal::Sqlite)?, file });
        }
        match slot.as_ref() {
            Some(o) => f(&o.conn).map_err(Refusal::Sqlite),
            None => Err(Refusal::Sqlite(rusqlite::Error::InvalidQuery)),
        }
    }

    /// Closes it as a database is closed: the write-ahead log is taken into the file, unless the file is no longer ours.
    pub fn close(&self) {
        if let Some(o) = self.open.lock().take()
            && self.file().is_ok_and(|f| f == o.file)
        {
            let _ = o.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false);
            drop(o);
        }
    }
}

pub(super) fn count(c: &Connection) -> rusqlite::Result<i64> {
    c.query_row("SELECT count(*) FROM orders", [], |r| r.get(0))
}

fn row(r: &rusqlite::Row<'_>) -> rusqlite::Result<Order> {
    Ok(Order { id: r.get(0)?, product: r.get(1)?, quantity: r.get(2)?, customer: r.get(3)?, placed_at: r.get(4)? })
}

const COLUMNS: &str = "SELECT id, product, quantity, customer, placed_at FROM orders";

pub(super) fn order(c: &Connection, id: &str) -> rusqlite::Result<Option<Order>> {
    c.prepare_cached(&format!("{COLUMNS} WHERE id = ?"))?.query_row([id], row).optional()
}

pub(super) fn newest(c: &Connection, limit: u32) -> rusqlite::Result<Vec<Order>> {
    c.prepare_cached(&format!("{COLUMNS} ORDER BY placed_at DESC, id LIMIT ?"))?.query_map([limit], row)?.collect()
}

pub(super) fn ids(c: &Connection) -> rusqlite::Result<String> {
    let mut text = String::new();
    let mut stmt = c.prepare_cached("SELECT id FROM orders")?;
    let mut rows = stmt.query([])?;
    while let Some(r) = rows.next()? {
        text.push_str(r.get_ref(0)?.as_str().unwrap_or(""));
        text.push('\n');
    }
    Ok(text)
}

pub(super) fn products(c: &Connection) -> rusqlite::Result<Vec<Product>> {
    c.prepare_cached("SELECT sku, name, price_cents FROM products ORDER BY sku")?
        .query_map([], |r| Ok(Product { sku: r.get(0)?, name: r.get(1)?, price_cents: r.get(2)? }))?
        .collect()
}

/// Stores an order and its payment, or returns the order that has this id already.
pub(super) fn place(c: &Connection, order: &Order) -> rusqlite::Result<Order> {
    // A write from the start, so that a trigger or a lock refuses it as a whole.
    let tx = rusqlite::Transaction::new_unchecked(c, rusqlite::TransactionBehavior::Immediate)?;
    if let Some(known) = self::order(&tx, &order.id)? {
        return Ok(known);
    }
    let placed_at = format!("{:.3}", jiff::Timestamp::now());
    tx.prepare_cached("INSERT INTO orders (id, product, quantity, customer, placed_at) VALUES (?, ?, ?, ?, ?)")?.execute(params![
        order.id,
        order.product,
        order.quantity,
        order.customer,
        placed_at
    ])?;
    tx.prepare_cached("INSERT INTO payments (order_id, amount_cents) SELECT ?1, price_cents * ?2 FROM products WHERE sku = ?3")?
        .execute(params![order.id, order.quantity, order.product])?;
    tx.commit()?;
    Ok(Order { placed_at, ..order.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(path: &std::path::Path, sku: &str) {
        let c = Connection::open(path).unwrap();
        c.execute_batch(SCHEMA).unwrap();
        c.execute("INSERT INTO products VALUES (?, 'Lamp', 1990, NULL)", [sku]).unwrap();
    }

    fn an(id: &str) -> Order {
        Order { id: id.into(), product: "lamp".into(), quantity: 2, customer: "c".into(), placed_at: String::new() }
    }

    #[test]
    fn an_order_is_placed_once_and_a_fence_refuses_it_with_its_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shop.db");
        make(&path, "lamp");
        let db = Db::new(path.clone());
        let first = db.with(|c| place(c, &an("1"))).unwrap();
        assert_eq!(db.with(|c| place(c, &an("1"))).unwrap(), first);
        assert_eq!(db.with(count).unwrap(), 1);
        // Another process adds a trigger; the open connection must mind it.
        let other = Connection::open(&path).unwrap();
        other.execute_batch("CREATE TRIGGER fence BEFORE INSERT ON orders BEGIN SELECT RAISE(ABORT, 'fenced'); END").unwrap();
        assert_eq!(db.with(|c| place(c, &an("2"))).unwrap_err().to_string(), "fenced");
        other.execute_batch("DROP TRIGGER fence").unwrap();
        db.with(|c| place(c, &an("2"))).unwrap();
        let unknown = Order { product: "nothing".into(), ..an("3") };
        assert!(db.with(|c| place(c, &unknown)).is_err(), "references are kept");
        assert_eq!(db.with(ids).unwrap(), "1\n2\n");
    }

    #[test]
    fn a_replaced_file_is_noticed_and_its_log_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shop.db");
        let db = Db::new(path.clone());
        assert!(matches!(db.with(count), Err(Refusal::NoFile(_))), "a missing database is not created");
        make(&path, "lamp");
        db.with(|c| place(c, &an("1"))).unwrap();
        for f in ["shop.db", "shop.db-wal", "shop.db-shm"] {
            std::fs::remove_file(dir.path().join(f)).unwrap();
        }
        make(&path, "lamp");
        let other = Connection::open(&path).unwrap();
        other.pragma_update(None, "journal_mode", "WAL").unwrap();
        place(&other, &an("7")).unwrap();
        place(&other, &an("8")).unwrap();
        assert_eq!(db.with(ids).unwrap(), "7\n8\n");
        assert_eq!(ids(&other).unwrap(), "7\n8\n");
        drop(other);
        db.close();
        assert!(!dir.path().join("shop.db-wal").exists(), "closed as a database is closed");
        assert_eq!(db.with(count).unwrap(), 2);
    }
}
