//! The SQLite store: the rules of every store, and what only a file can suffer.

use std::sync::Arc;

use super::*;
use crate::journal::conformance;

#[test]
fn keeps_the_rules_of_a_store() {
    conformance::all(&|| {
        let dir = tempfile::tempdir().unwrap();
        Box::new(move || Arc::new(SqliteStore::open(dir.path().join(".runbook/journal.db")).unwrap()))
    });
}
