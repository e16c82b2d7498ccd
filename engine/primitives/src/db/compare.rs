//! `compare`: schema, counts and content of two databases, with what differs named by table and key.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::{Call, Code, Effect, Record, Result, Spec, Ty, TypeSpec, Value};

use super::driver::{Content, Db, Driver, Row, TableOptions};
use super::{DATABASE, method};

mod chunked;

/// How many differences are named; the others are counted.
const NAMED: usize = 20;

pub(super) fn register(r: &mut Registry) {
    r.add(Compare(
        method(
            "compare",
            Effect::Read,
            "Compares this database with another: definitions, numbers of rows, and every value with its type.\n\nWhat differs is named by table \
             and key; at most 20 differences are named and the others counted. What the engine itself keeps in a database is left out. \
             SQLite: both are read as of one moment each: compare under a fence. Servers: checksums of chunks are worked out by the servers \
             themselves, and what differs is cut smaller until rows can be named; when the other one replicates from this one, this one may \
             be written to meanwhile: a chunk that differs is asked again at one position on both sides.",
        )
        .arg("other", Ty::Record(DATABASE), "The database to compare with.")
        .option("tables", Ty::List(Box::new(Ty::Str)), "Servers: only these tables, and no definitions of others.")
        .option("jobs", Ty::Int, "Servers: how many chunks at once; 4 unless given.")
        .returns(Ty::Record("Comparison"))
        .example("let c = database(\"shop_old\").compare(database(\"shop_new\"));")
        .errors(&[Code::DB_CONNECT, Code::DB_QUERY, Code::DB_HELPER]),
    ));
    r.add_type(
        TypeSpec::new("Comparison", "What `compare` found.")
            .field("equal", Ty::Bool, "Whether both have the same definitions and rows.")
            .field("differences", Ty::List(Box::new(Ty::Str)), "What differs, 20 at most, then how many more there are.")
            .field("tables", Ty::Int, "How many tables were compared.")
            .field("rows", Ty::Int, "How many rows the first database has."),
    );
}

struct Compare(Spec);

#[async_trait]
impl Primitive for Compare {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (a, b) = Db::receiver(cx, call)?.pair(Db::argument(cx, call, 0)?)?;
        let driver = a.driver(cx)?;
        let only = super::copy::table_options(call)?;
        if driver.chunked() {
            return chunked::compare(cx, driver.as_ref(), &a, &b, &only).await;
        }
        if only != TableOptions::default() {
            return Err(super::driver::cannot(&a, "choosing what is compared"));
        }
        let (left, right) = futures::try_join!(driver.content(cx, &a, true), driver.content(cx, &b, true))?;
        let mut found = Differences { a: a.name.clone(), b: b.name.clone(), named: Vec::new(), more: 0 };
        for table in found.definitions(&left, &right) {
            found.rows(cx, driver.as_ref(), &a, &b, &table).await?;
        }
        let rows: u64 = left.tables.values().map(|t| t.rows).sum();
        Ok(found.outcome(left.tables.len(), rows))
    }
}

/// Compares two databases of one server kind: what differs, the number of tables, and the rows of the first.
///
/// # Errors
/// As the primitive.
pub(crate) async fn differences(cx: &Cx, a: &Db, b: &Db) -> Result<(Vec<String>, u64, u64)> {
    let done = chunked::compare(cx, a.driver(cx)?.as_ref(), a, b, &TableOptions::default()).await?;
    let number = |r: &Record, name: &str| r.get(name).as_int().and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    Ok(done.value.as_record().map_or((vec![], 0, 0), |r| {
        let named = r.get("differences").as_list().into_iter().flatten().filter_map(|d| d.as_str().map(str::to_string)).collect();
        (named, number(r, "tables"), number(r, "rows"))
    }))
}

struct Differences {
    a: String,
    b: String,
    named: Vec<String>,
    more: u64,
}

impl Differences {
    /// What the primitive returns.
    fn outcome(self, tables: usize, rows: u64) -> Outcome {
        let Differences { mut named, more, .. } = self;
        let equal = named.is_empty();
        if more > 0 {
            named.push(format!("and {more} more differences"));
        }
        let outcome: Outcome = Record::new(
            "Comparison",
            [
                ("equal", equal.into()),
                ("differences", Value::List(named.into_iter().map(Value::from).collect())),
                ("tables", Value::Int(i64::try_from(tables).unwrap_or(i64::MAX))),
                ("rows", Value::Int(i64::try_from(rows).unwrap_or(i64::MAX))),
            ],
        )
        .into();
        if equal { outcome.note(format!("{tables} tables, {rows} rows")) } else { outcome.note("they differ") }
    }

    fn add(&mut self, text: String) {
        if self.named.len() < NAMED {
            self.named.push(text);
        } else {
            self.more += 1;
        }
    }

    /// Adds what differs in definitions; returns the tables on both sides whose rows differ.
    fn definitions(&mut self, left: &Content, right: &Content) -> Vec<String> {
        let names: BTreeSet<&String> = left.objects.keys().chain(right.objects.keys()).collect();
        for name in names {
            match (left.objects.get(name), right.objects.get(name)) {
                (Some(l), Some(r)) if l == r => {}
                (Some(l), Some(r)) => self.add(format!("{name} is {} in {} and {} in {}", short(l), self.a, short(r), self.b)),
                (Some(_), None) => self.add(format!("{name} is only in {}", self.a)),
                (None, _) => self.add(format!("{name} is only in {}", self.b)),
            }
        }
        let names: BTreeSet<&String> = left.tables.keys().chain(right.tables.keys()).collect();
        let mut differing = Vec::new();
        for name in names {
            match (left.tables.get(name), right.tables.get(name)) {
                (Some(l), Some(r)) if l == r => {}
                (Some(_), Some(_)) => differing.push(name.clone()),
                // An application's table is named with the definitions; SQLite's own table of counters has none.
                (l, r) if !left.objects.contains_key(&format!("table {name}")) && !right.objects.contains_key(&format!("table {name}")) => {
                    let rows = l.or(r).map_or(0, |t| t.rows);
                    self.add(format!("{name}: {rows} rows only in {}", if l.is_some() { &self.a } else { &self.b }));
                }
                _ => {}
            }
        }
        differing
    }

    /// Adds the rows of a table that differ, by merging both sides in order of their keys; in constant memory.
    async fn rows(&mut self, cx: &Cx, driver: &dyn Driver, a: &Db, b: &Db, table: &str) -> Result<()> {
        let (mut left, mut right) = futures::try_join!(driver.rows(cx, a, table), driver.rows(cx, b, table))?;
        let key = left.key().to_vec();
        let before = self.named.len() as u64 + self.more;
        let (mut l, mut r) = (left.next().await?, right.next().await?);
        loop {
            let order = match (&l, &r) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(l), Some(r)) => compare_keys(&l.key, &r.key),
            };
            match order {
                Ordering::Less => {
                    self.only(table, &key, l.take(), true);
                    l = left.next().await?;
                }
                Ordering::Greater => {
                    self.only(table, &key, r.take(), false);
                    r = right.next().await?;
                }
                Ordering::Equal => {
                    if let (Some(l), Some(r)) = (&l, &r)
                        && l.sum != r.sum
                    {
                        self.add(format!("{table}: the row {} differs", show_key(&key, &l.key)));
                    }
                    (l, r) = (left.next().await?, right.next().await?);
                }
            }
        }
        if before == self.named.len() as u64 + self.more {
            // Their sums differ and no row does: they were written to in between.
            self.add(format!("{table}: it changed while it was compared"));
        }
        Ok(())
    }

    fn only(&mut self, table: &str, key: &[String], row: Option<Row>, first: bool) {
        if let Some(row) = row {
            self.add(format!("{table}: the row {} is only in {}", show_key(key, &row.key), if first { &self.a } else { &self.b }));
        }
    }
}

fn short(text: &str) -> String {
    let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if one_line.chars().count() <= 160 {
        format!("`{one_line}`")
    } else {
        format!("`{}…`", one_line.chars().take(160).collect::<String>())
    }
}

fn show_key(names: &[String], key: &[Value]) -> String {
    let parts: Vec<String> = names.iter().zip(key).map(|(n, v)| format!("{n} = {v}")).collect();
    parts.join(", ")
}

/// The order of keys as databases sort them: NULL, numbers, text by its bytes, blobs.
fn compare_keys(a: &[Value], b: &[Value]) -> Ordering {
    a.iter().zip(b).map(|(a, b)| compare_values(a, b)).find(|o| o.is_ne()).unwrap_or_else(|| a.len().cmp(&b.len()))
}

fn compare_values(a: &Value, b: &Value) -> Ordering {
    let class = |v: &Value| match v {
        Value::Unit => 0,
        Value::Int(_) | Value::Float(_) => 1,
        Value::Str(_) => 2,
        _ => 3,
    };
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => a.cmp(b),
        (Value::Float(a), Value::Float(b)) => a.total_cmp(b),
        (Value::Int(a), Value::Float(b)) => (*a as f64).total_cmp(b),
        (Value::Float(a), Value::Int(b)) => a.total_cmp(&(*b as f64)),
        (Value::Str(a), Value::Str(b)) => a.as_bytes().cmp(b.as_bytes()),
        (Value::Blob(a), Value::Blob(b)) => a.cmp(b),
        _ => class(a).cmp(&class(b)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn keys_are_ordered_as_the_database_orders_them() {
        let sorted =
            [Value::Unit, Value::Int(-3), Value::Float(-2.5), Value::Int(7), "B".into(), "a".into(), "é".into(), Value::Blob(vec![0])];
        for (i, a) in sorted.iter().enumerate() {
            for (j, b) in sorted.iter().enumerate() {
                assert_eq!(compare_keys(std::slice::from_ref(a), std::slice::from_ref(b)), i.cmp(&j), "{a} {b}");
            }
        }
    }

    #[test]
    fn only_twenty_are_named_and_the_rest_counted() {
        let mut d = Differences { a: "a".into(), b: "b".into(), named: vec![], more: 0 };
        let left = Content { objects: (0..25).map(|i| (format!("table t{i}"), String::new())).collect(), tables: BTreeMap::new() };
        assert!(d.definitions(&left, &Content::default()).is_empty());
        assert_eq!((d.named.len(), d.more), (20, 5));
        assert_eq!(d.named[0], "table t0 is only in a");
    }
}
