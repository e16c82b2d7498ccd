//! Restoring a database: as a test into one that is thrown away, and for good.

use runbook_core::cancel::Cancel;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::streams::Streams;
use super::{named, stream};
use crate::backup::repository::Snapshot;
use crate::db::compare;
use crate::db::driver::Db;
use crate::db::stream::{About, Inflow, Settle, TEST, Told, beside, test_name};

/// What was loaded and found right.
pub(super) struct Loaded {
    pub tables: u64,
    pub rows: u64,
    pub bytes: u64,
}

/// Streams a snapshot into a database that was made ready.
async fn pour(cx: &Cx, repo: &dyn Streams, s: &Snapshot, db: &Db, own: &str, about: &About, test: bool) -> Result<()> {
    let give = repo.giver(cx, s, "")?;
    let what = format!("loading {} into {}", about.database, db.name);
    let flow = Inflow { about, own, give: &give.script, env: give.env, sudo: give.sudo, test, what, bytes: s.bytes };
    db.driver(cx)?.inflow(cx, db, flow).await
}

/// The first line, read from the database's own host, and the kind compared.
async fn about(cx: &Cx, repo: &dyn Streams, s: &Snapshot, db: &Db) -> Result<(String, About)> {
    let (own, about) = stream::head(cx, repo, &db.host, s)
        .await
        .map_err(|e| if e.code == Code::BACKUP_DAMAGED { Error { code: Code::BACKUP_RESTORE, ..e } } else { e })?;
    if about.kind != db.settings.kind {
        return Err(Error::new(
            Code::BACKUP_RESTORE,
            format!("the snapshot {} is of kind {}, and \"{}\" of kind {}", s.id, about.kind, db.name, db.settings.kind),
        )
        .host(&db.host)
        .hint("name a database of its own kind"));
    }
    Ok((own, about))
}

/// Restores into a throw-away database on the server of `server`, compares, and removes it, whatever happened.
pub(super) async fn test(cx: &Cx, repo: &dyn Streams, s: &Snapshot, server: &Db, with_source: bool) -> Result<Loaded> {
    let (own, about) = about(cx, repo, s, server).await?;
    let (_, told) = stream::read(cx, repo, &server.host, s)
        .await
        .map_err(|e| if e.code == Code::BACKUP_DAMAGED { Error { code: Code::BACKUP_RESTORE, ..e } } else { e })?;
    let source = if with_source { Some(Db::find(cx, named(s).unwrap_or(&about.database))?) } else { None };
    let test = beside(server, &test_name(cx));
    let id = format!("test {}", cx.action_id);
    let id = id.get(..64).unwrap_or(&id);
    // Whatever an earlier try has left, half or whole.
    let drv = server.driver(cx)?;
    drv.settle(cx, &test, id, Settle::Drop).await?;
    // Of others nothing proves that nobody is at work in them.
    for other in drv.begin_with(cx, server, TEST).await? {
        cx.message(format!(
            "the server of \"{}\" has another throw-away database, {other}: of a restore test that still runs, or of a run that was given up after a crash. \
             If none runs, drop it",
            server.name
        ));
    }
    let tested = async {
        drv.make_ready(cx, &test, &about, id).await?;
        pour(cx, repo, s, &test, &own, &about, true).await?;
        look(cx, s, &test, &about, &told, source.as_ref()).await
    }
    .await;
    // The action's own cancellation must not keep it from cleaning up.
    let quiet = Cx { cancel: Cancel::default(), ..cx.clone() };
    let gone = tokio::time::timeout(std::time::Duration::from_secs(60), drv.settle(&quiet, &test, id, Settle::Drop)).await;
    let gone = gone.unwrap_or_else(|_| Err(Error::new(Code::BACKUP_RESTORE, "no answer within 60 seconds").host(&server.host)));
    match (tested, gone) {
        (Ok(loaded), Ok(())) => Ok(loaded),
        (Ok(_), Err(e)) => {
            Err(Error { message: format!("the throw-away database {} cannot be removed: {}", test_name(cx), e.message), ..e })
        }
        (Err(e), gone) => {
            if let Err(g) = gone {
                cx.message(format!(
                    "the throw-away database {} could not be removed from the server of \"{}\": {}",
                    test_name(cx),
                    server.name,
                    g.message
                ));
            }
            Err(e)
        }
    }
}

/// Compares what was loaded with what the stream says of itself, and with the source as it is now.
async fn look(cx: &Cx, s: &Snapshot, test: &Db, about: &About, told: &Told, source: Option<&Db>) -> Result<Loaded> {
    let content = test.driver(cx)?.content(cx, test, false).await?;
    let mut wrong = Vec::new();
    for (table, rows) in &told.rows {
        match (content.tables.get(table), rows) {
            (None, _) => wrong.push(format!("the table {table} is missing")),
            (Some(t), Some(n)) if t.rows != *n => wrong.push(format!("{table} has {} rows, and {n} went into the snapshot", t.rows)),
            _ => {}
        }
    }
    let tables = content.tables.len() as u64;
    if wrong.is_empty() && tables != about.tables {
        wrong.push(format!("there are {tables} tables, and {} were in \"{}\" when the snapshot was taken", about.tables, about.database));
    }
    if let Some(source) = source.filter(|_| wrong.is_empty()) {
        let (found, _, _) = compare::differences(cx, source, test).await?;
        // Events are kept from a throw-away database.
        let found = found.into_iter().filter(|d| !(d.starts_with("event ") && d.ends_with(&format!(" is only in {}", source.name))));
        wrong.extend(found.map(|d| d.replace(&test.name, "the snapshot")));
        if !wrong.is_empty() {
            return Err(Error::new(
                Code::BACKUP_RESTORE,
                format!("the snapshot {} restores, but is not what is in \"{}\" now: {}", s.id, source.name, wrong.join("; ")),
            )
            .host(&source.host)
            .hint("compare while nobody writes; take a new snapshot if these rows matter"));
        }
    }
    if !wrong.is_empty() {
        return Err(Error::new(Code::BACKUP_RESTORE, format!("the restore test of the snapshot {} failed: {}", s.id, wrong.join("; ")))
            .host(&test.host)
            .hint("take a new snapshot before anything else"));
    }
    let rows = content.tables.values().map(|t| t.rows).sum();
    Ok(Loaded { tables, rows, bytes: told.bytes })
}

/// Restores into a database; `None` when all of it is there already.
pub(super) async fn restore(cx: &Cx, repo: &dyn Streams, s: &Snapshot, db: &Db) -> Result<Option<About>> {
    let (own, about) = about(cx, repo, s, db).await?;
    let drv = db.driver(cx)?;
    if !drv.make_ready(cx, db, &about, &s.id).await? {
        return Ok(None);
    }
    match pour(cx, repo, s, db, &own, &about, false).await {
        Ok(()) => drv.settle(cx, db, &s.id, Settle::Keep).await.map(|()| Some(about)),
        // In doubt or stopped: what is there is marked, and a next try begins anew.
        Err(e) if !e.kind.catchable() => Err(e),
        Err(e) => {
            let quiet = Cx { cancel: Cancel::default(), ..cx.clone() };
            if let Err(left) = drv.settle(&quiet, db, &s.id, Settle::Empty).await {
                cx.message(format!("half of the snapshot is left in \"{}\": {}", db.name, left.message));
            }
            Err(e)
        }
    }
}
