//! `compare` of servers: checksums of chunks first, several at once; what differs is asked again at one position, then cut smaller until
//! its rows can be named. Memory holds the rows of one small span a side.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use futures::stream::StreamExt as _;
use parking_lot::Mutex;
use runbook_core::primitive::{Cx, Outcome};
use runbook_core::{Code, Error, Result, Value};

use super::{Differences, short, show_key};
use crate::db::driver::{Chunk, Db, Driver, Keyed, Row, Span, TableOptions};

/// About how many bytes a chunk has.
const CHUNK: u64 = 16 << 20;

/// Rows of a chunk at least and at most, whatever their size.
const ROWS: (u64, u64) = (1000, 200_000);

/// A span with no more rows than this is read row by row.
const FEW: u64 = 500;

/// In how many parts a chunk that differs is cut.
const PARTS: u64 = 20;

/// A table that cannot be cut is read row by row up to this number of rows.
const UNCUT: u64 = 200_000;

/// How many chunks at once unless the script says otherwise.
const AT_ONCE: usize = 4;

struct Work<'a> {
    cx: &'a Cx,
    driver: &'a dyn Driver,
    a: &'a Db,
    b: &'a Db,
    found: Mutex<Differences>,
    rows: AtomicU64,
}

/// Compares.
pub(super) async fn compare(cx: &Cx, driver: &dyn Driver, a: &Db, b: &Db, only: &TableOptions) -> Result<Outcome> {
    let ((left, mut tables), (right, others)) = futures::try_join!(driver.schema(cx, a), driver.schema(cx, b))?;
    let mut found = Differences { a: a.name.clone(), b: b.name.clone(), named: Vec::new(), more: 0 };
    let wanted = |name: &str| only.tables.is_empty() || only.tables.iter().any(|t| t == name);
    if let Some(unknown) = only.tables.iter().find(|t| !tables.iter().chain(&others).any(|k| k.name == **t)) {
        return Err(Error::new(Code::DB_QUERY, format!("neither \"{}\" nor \"{}\" has a table {unknown}", a.name, b.name)));
    }
    for name in left.keys().chain(right.keys()).collect::<BTreeSet<_>>() {
        if !only.tables.is_empty() && !name.strip_prefix("table ").is_some_and(wanted) {
            continue;
        }
        match (left.get(name), right.get(name)) {
            (Some(l), Some(r)) if driver.same_definition(name, l, r) => {}
            (Some(l), Some(r)) => {
                let (l, r) = apart(l, r);
                found.add(format!("{name} is {} in {} and {} in {}", short(&l), a.name, short(&r), b.name));
            }
            (Some(_), None) => found.add(format!("{name} is only in {}", a.name)),
            (None, _) => found.add(format!("{name} is only in {}", b.name)),
        }
    }
    let there: BTreeMap<&str, &Keyed> = others.iter().map(|k| (k.name.as_str(), k)).collect();
    tables.retain(|t| {
        let same = there.get(t.name.as_str()).is_some_and(|o| o.columns == t.columns && o.key == t.key);
        if !same && there.contains_key(t.name.as_str()) && wanted(&t.name) {
            found.add(format!("{}: its rows are not compared, since its columns or keys differ", t.name));
        }
        same && wanted(&t.name)
    });
    let count = tables.len();
    let work = Work { cx, driver, a, b, found: Mutex::new(found), rows: AtomicU64::new(0) };
    let jobs = only.jobs.unwrap_or(AT_ONCE);
    // Spans of all tables in one list, so that one large table keeps all jobs busy, and many small ones too.
    let mut spans = Vec::new();
    for (i, t) in tables.iter().enumerate() {
        spans.extend(work.spans(t).await?.into_iter().map(|s| (i, s)));
    }
    let total: u64 = tables.iter().map(|t| t.rows).sum();
    let (work_ref, tables) = (&work, &tables);
    let mut running = futures::stream::FuturesUnordered::new();
    let mut next = spans.into_iter();
    loop {
        while running.len() < jobs {
            let Some((i, span)) = next.next() else { break };
            running.push(async move {
                match tables.get(i) {
                    Some(t) => work_ref.span(t, &span).await,
                    None => Ok(()),
                }
            });
        }
        let Some(done) = running.next().await else { break };
        done?;
        let rows = work.rows.load(Ordering::Relaxed);
        cx.progress(format!("comparing {} with {}", a.name, b.name), rows, Some(total.max(rows)), "rows");
    }
    drop(running);
    let rows = work.rows.into_inner();
    let mut found = work.found.into_inner();
    // Chunks end in any order; the report does not.
    found.named.sort();
    Ok(found.outcome(count, rows))
}

/// Two definitions from the line on in which they differ, so that a difference at the end of a long one is seen.
fn apart(l: &str, r: &str) -> (String, String) {
    let same = l.lines().zip(r.lines()).take_while(|(a, b)| a == b).count();
    let from = |t: &str| {
        let rest: Vec<&str> = t.lines().skip(same).collect();
        if rest.is_empty() { t.to_string() } else { rest.join("\n") }
    };
    (from(l), from(r))
}

impl Work<'_> {
    async fn spans(&self, t: &Keyed) -> Result<Vec<Span>> {
        let each = t.bytes.checked_div(t.rows).map_or(ROWS.1, |row| (CHUNK / row.max(1)).clamp(ROWS.0, ROWS.1));
        if t.rows <= each {
            return Ok(vec![Span::default()]);
        }
        let bounds = self.driver.bounds(self.cx, self.a, t, &Span::default(), each).await?;
        Ok(between(&Span::default(), bounds))
    }

    fn full(&self) -> bool {
        let found = self.found.lock();
        found.more > 0
    }

    /// Compares a span; what differs is cut until its rows are named.
    async fn span(&self, t: &Keyed, span: &Span) -> Result<()> {
        let (l, r) = futures::try_join!(self.driver.chunk(self.cx, self.a, t, span), self.driver.chunk(self.cx, self.b, t, span))?;
        self.rows.fetch_add(l.rows, Ordering::Relaxed);
        if l == r {
            return Ok(());
        }
        let mut open = vec![span.clone()];
        while let Some(span) = open.pop() {
            let (l, r) = self.driver.chunk_of_both(self.cx, self.a, self.b, t, &span).await?;
            if l == r {
                continue;
            }
            if self.full() {
                self.found.lock().add(format!("{}: further rows differ", t.name));
                return Ok(());
            }
            if l.rows.max(r.rows) <= FEW && !t.key.is_empty() {
                let (left, right) = self.driver.rows_of_both(self.cx, self.a, self.b, t, &span).await?;
                self.name(t, left, right);
                continue;
            }
            let mut parts = self.cut(t, &span, &l, &r).await?;
            // The first in order is looked at first.
            parts.reverse();
            if parts.len() < 2 {
                self.whole(t, &span, &l, &r).await?;
                continue;
            }
            open.extend(parts);
        }
        Ok(())
    }

    async fn cut(&self, t: &Keyed, span: &Span, l: &Chunk, r: &Chunk) -> Result<Vec<Span>> {
        // By the keys of the side that has more, so that rows of one side alone are cut as well.
        let side = if l.rows >= r.rows { self.a } else { self.b };
        let each = l.rows.max(r.rows).div_ceil(PARTS).max(FEW / 2);
        let bounds = self.driver.bounds(self.cx, side, &Keyed { rows: l.rows.max(r.rows), ..t.clone() }, span, each).await?;
        Ok(between(span, bounds))
    }

    /// A span that cannot be cut: its rows all at once when they are not too many; else only that it differs.
    async fn whole(&self, t: &Keyed, span: &Span, l: &Chunk, r: &Chunk) -> Result<()> {
        if t.key.is_empty() || l.rows.max(r.rows) > UNCUT {
            let why = if t.key.is_empty() { "it has no key" } else { "its key has no order" };
            let text = if l.rows == r.rows {
                format!("{}: rows differ ({why}, so none can be named)", t.name)
            } else {
                format!("{}: {} rows in {} and {} in {} ({why}, so none can be named)", t.name, l.rows, self.a.name, r.rows, self.b.name)
            };
            self.found.lock().add(text);
            return Ok(());
        }
        let (left, right) = self.driver.rows_of_both(self.cx, self.a, self.b, t, span).await?;
        self.name(t, left, right);
        Ok(())
    }

    /// Names the rows that differ.
    fn name(&self, t: &Keyed, left: Vec<Row>, right: Vec<Row>) {
        let keyed = |rows: Vec<Row>| rows.into_iter().map(|r| (show_key(&t.key, &r.key), r.sum)).collect::<BTreeMap<_, _>>();
        // In the order of the server's keys, not of their text.
        let order: Vec<String> = left.iter().chain(&right).map(|r| show_key(&t.key, &r.key)).collect();
        let (left, right) = (keyed(left), keyed(right));
        let mut found = self.found.lock();
        let mut seen = BTreeSet::new();
        for key in &order {
            if !seen.insert(key) {
                continue;
            }
            match (left.get(key), right.get(key)) {
                (Some(l), Some(r)) if l == r => {}
                (Some(_), Some(_)) => found.add(format!("{}: the row {key} differs", t.name)),
                (Some(_), None) => found.add(format!("{}: the row {key} is only in {}", t.name, self.a.name)),
                (None, _) => found.add(format!("{}: the row {key} is only in {}", t.name, self.b.name)),
            }
        }
    }
}

/// The spans between bounds.
fn between(span: &Span, bounds: Vec<Vec<Value>>) -> Vec<Span> {
    let mut out = Vec::with_capacity(bounds.len() + 1);
    let mut after = span.after.clone();
    for b in bounds {
        // A bound that is the span's own end cuts nothing off.
        if span.upto.as_ref() == Some(&b) || after.as_ref() == Some(&b) {
            continue;
        }
        out.push(Span { after: after.take(), upto: Some(b.clone()) });
        after = Some(b);
    }
    out.push(Span { after, upto: span.upto.clone() });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_lie_end_to_end_and_cover_all() {
        let key = |i| vec![Value::Int(i)];
        let whole = Span { after: Some(key(0)), upto: Some(key(30)) };
        let spans = between(&whole, vec![key(10), key(20), key(30)]);
        let shown: Vec<_> = spans.iter().map(|s| (s.after.clone(), s.upto.clone())).collect();
        assert_eq!(shown, [(Some(key(0)), Some(key(10))), (Some(key(10)), Some(key(20))), (Some(key(20)), Some(key(30)))]);
        assert_eq!(between(&Span::default(), vec![]), [Span::default()]);
    }

    #[test]
    fn long_definitions_are_shown_from_where_they_differ() {
        assert_eq!(apart("CREATE\n a\n b 1", "CREATE\n a\n b 2"), (" b 1".into(), " b 2".into()));
        assert_eq!(apart("a", "a\nb"), ("a".into(), "b".into()));
    }
}
