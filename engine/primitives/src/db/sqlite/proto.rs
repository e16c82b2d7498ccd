//! What the controller and the helper on a host say to each other: one JSON line in, one JSON line out.
//!
//! The request line is an [`Envelope`]; [`Request::Receive`] and [`Request::Restore`] are followed by the bytes of a database file.
//! The reply line is a [`Reply`]; after [`Request::Send`] it carries a [`Header`] and is followed by the file's bytes, and
//! [`Request::Rows`] is answered by lines of [`RowHash`]. Statements, parameters and results never stand on a command line.

use std::collections::BTreeMap;

use runbook_core::digest::hex;
use runbook_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

/// A request with what every request has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope {
    /// [`PROTOCOL`](crate::ssh::helper::PROTOCOL) of the controller.
    pub protocol: u32,
    /// Path of the database file; relative to the login folder, `~/` is understood.
    pub db: String,
    /// What is asked.
    #[serde(flatten)]
    pub request: Request,
}

/// One operation on one database file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Rows of a statement that only reads.
    Query {
        /// The statement.
        sql: String,
        /// Values in the journal's form: an array for `?`, an object for `:name`, null for none.
        params: Json,
    },
    /// Statements in one transaction with a marker row.
    Execute {
        /// One or more statements.
        sql: String,
        /// As in `Query`.
        params: Json,
        /// The marker.
        action: String,
        /// When, RFC 3339.
        time: String,
    },
    /// The result kept in a marker row, or null.
    Executed {
        /// The marker.
        action: String,
    },
    /// Version, size, settings, tables.
    Facts,
    /// Schema and content of every table: a [`Digest`].
    Digest {
        /// Whether to read all rows for checksums, or to count only.
        checksums: bool,
    },
    /// Keys and checksums of one table's rows, in order of their keys.
    Rows {
        /// The table.
        table: String,
    },
    /// What this file is to the engine: a [`State`].
    State,
    /// A consistent copy as a stream.
    Send {
        /// Sends nothing when the copy would be just this.
        unless: Option<Version>,
    },
    /// Puts a stream in place as a write-protected copy.
    Receive {
        /// What is coming.
        header: Header,
        /// Of which database, for people.
        origin: String,
        /// When, RFC 3339.
        time: String,
    },
    /// Puts a stream's content into the live, fenced file.
    Restore {
        /// What is coming.
        header: Header,
        /// How long to wait for readers to let go, in milliseconds.
        within_ms: u64,
    },
    /// A consistent copy beside it.
    CopyFile {
        /// Where to.
        to: String,
    },
    /// Removes a copy that was not promoted.
    DropCopy,
    /// Stops writes and proves it.
    Fence {
        /// The fence's id.
        id: String,
        /// The database's name, for the message that refused writers see.
        name: String,
        /// When, RFC 3339.
        time: String,
        /// How long to wait for writers to end their transactions, in milliseconds.
        within_ms: u64,
    },
    /// Whether a fence stands and holds: tries the writes again and reads the content.
    CheckFence {
        /// The fence's id.
        id: String,
    },
    /// Lets writes through again.
    Unfence {
        /// Also when the copy was promoted under this fence.
        force: bool,
    },
    /// Notes on the fenced side to whom it hands over (null: to nobody).
    HandOver {
        /// The name of the database that is being promoted.
        to: Option<String>,
    },
    /// Makes a copy writable.
    Promote {
        /// The fence's id, which the copy must carry.
        fence: String,
        /// The content that the copy must have.
        stamp: String,
        /// The action's id.
        action: String,
        /// When, RFC 3339.
        time: String,
    },
    /// Stops writes on a promoted copy, to take it back.
    Hold {
        /// How long to wait for writers to end their transactions, in milliseconds.
        within_ms: u64,
    },
    /// Makes a held, promoted copy a plain write-protected copy again.
    BecomeCopy {
        /// The fence that the other side now has.
        fence: Option<String>,
        /// The content, which must be this.
        stamp: String,
        /// When, RFC 3339.
        time: String,
    },
}

/// A reply line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It went well.
    Ok(Json),
    /// It did not.
    Error(Box<Error>),
}

impl Reply {
    /// Reads a reply line.
    ///
    /// # Errors
    /// The helper's own error; `RB0507` when the line is not a reply.
    pub fn read<T: for<'a> Deserialize<'a>>(line: &[u8]) -> Result<T> {
        let bad = |e: serde_json::Error| {
            let shown: String = String::from_utf8_lossy(line).chars().take(200).collect();
            Error::new(runbook_core::Code::DB_HELPER, format!("the database helper's answer cannot be read: {e}"))
                .detail("answer", shown)
                .hint("a shell's start file that prints text (.bashrc, motd) can cause this")
        };
        match serde_json::from_slice(line).map_err(bad)? {
            Reply::Ok(v) => serde_json::from_value(v).map_err(bad),
            Reply::Error(e) => Err(*e),
        }
    }
}

/// A content with the fence under which it was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// [`Digest::stamp`].
    pub stamp: String,
    /// The source's fence.
    pub fence: Option<String>,
}

/// What precedes the bytes of a database file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Header {
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of the bytes.
    pub sha256: String,
    /// The content and the fence.
    pub version: Version,
    /// Rows of all tables.
    pub rows: u64,
    /// Permission bits of the source's file.
    pub mode: u32,
    /// Whether the source is in WAL mode.
    pub wal: bool,
}

/// What a `Send` has to offer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Offer {
    /// Nothing: the other side has it.
    Same {
        /// Rows of all tables.
        rows: u64,
        /// Size in bytes.
        size: u64,
    },
    /// The bytes follow.
    File(Header),
}

/// Rows and content of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Table {
    /// How many rows.
    pub rows: u64,
    /// Sum of the rows' checksums, so that their order does not matter; empty when only counted.
    pub sum: String,
}

/// Schema and content of a database, without what belongs to the engine itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Digest {
    /// SQL by object: `table orders`, `index by_day`; settings too: `setting user_version`.
    pub objects: BTreeMap<String, String>,
    /// Tables with their content.
    pub tables: BTreeMap<String, Table>,
}

impl Digest {
    /// One text for the whole content; equal exactly when schema and rows are.
    #[must_use]
    pub fn stamp(&self) -> String {
        let mut h = Sha256::new();
        let mut put = |s: &str| {
            h.update((s.len() as u64).to_le_bytes());
            h.update(s.as_bytes());
        };
        for (k, v) in &self.objects {
            put(k);
            put(v);
        }
        for (k, t) in &self.tables {
            put(k);
            put(&t.rows.to_string());
            put(&t.sum);
        }
        hex(&h.finalize())
    }

    /// Rows of all tables.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.tables.values().map(|t| t.rows).sum()
    }
}

/// Key and checksum of a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RowHash {
    /// The primary key's values in the journal's form, or the row id.
    #[serde(rename = "k")]
    pub key: Vec<Json>,
    /// The row's checksum.
    #[serde(rename = "h")]
    pub hash: String,
}

/// A line of the answer to `Rows`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowLine {
    /// The names of the key's columns; comes first.
    Key(Vec<String>),
    /// A row.
    Row(RowHash),
    /// All rows were sent.
    End,
    /// It failed.
    Error(Box<Error>),
}

/// The fence on a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceRow {
    /// The fence's id: the action that made it.
    pub id: String,
    /// Since when.
    pub time: String,
    /// The content under it; missing until it was proven.
    pub stamp: Option<String>,
    /// The database that was promoted under it.
    pub handed_to: Option<String>,
}

/// The mark of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRow {
    /// Of which database.
    pub origin: String,
    /// Its content when it was made.
    pub stamp: String,
    /// The fence that its source had.
    pub fence: Option<String>,
    /// When it was made.
    pub time: String,
}

/// The mark of a promoted copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromotedRow {
    /// The action that promoted it.
    pub action: String,
    /// The fence under which.
    pub fence: String,
    /// Its content then.
    pub stamp: String,
    /// When.
    pub time: String,
}

/// What a database file is to the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct State {
    /// Whether there is a file.
    pub exists: bool,
    /// Its fence.
    pub fence: Option<FenceRow>,
    /// Set on copies, promoted or not.
    pub copy: Option<CopyRow>,
    /// Set on promoted copies.
    pub promoted: Option<PromotedRow>,
    /// Tables that lack write protection, on a fenced database or an unpromoted copy.
    pub unguarded: Vec<String>,
}

impl State {
    /// Whether this is a copy that nobody has promoted.
    #[must_use]
    pub fn is_unpromoted_copy(&self) -> bool {
        self.copy.is_some() && self.promoted.is_none()
    }
}

/// What became of a fence that was asked for or looked at.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fenced {
    /// The fence that stands; `None` when there is none with the id asked for.
    pub fence: Option<FenceRow>,
    /// Set when another fence stands.
    pub other: Option<FenceRow>,
    /// The content now.
    pub digest: Digest,
    /// Why writes are not refused; empty when the fence holds.
    pub leaks: Vec<String>,
    /// Whether it stood before.
    pub taken_over: Option<String>,
}

/// What an `Execute` did; kept in the marker row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executed {
    /// Rows inserted, updated or deleted, all statements together.
    pub rows: u64,
    /// Row id of the last inserted row.
    pub last_id: i64,
}

/// What putting a stream in place or copying to a file did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Placed {
    /// Rows of all tables.
    pub rows: u64,
    /// Size in bytes.
    pub size: u64,
    /// Whether something was changed.
    pub changed: bool,
    /// The content afterwards.
    pub stamp: String,
}
