//! `replicate_from`, `copy_from`, `drop_copy`: a replica or copy made from a consistent snapshot, in steps that are on record.

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::connect::{Sess, server, session};
use super::data::every_schema;
use super::sql::{ident, text};
use super::state::{self, CopyMark, Marks, Phase, ReplicaMark, aside};
use super::{accounts, delayed, fence, follow, host, physical, status, stream};
use crate::db::driver::{Copied, Db, Replicate, Replicated, TableOptions};

pub(super) fn cannot(db: &Db, why: impl std::fmt::Display) -> Error {
    Error::new(Code::DB_COPY, format!("\"{}\" cannot become a replica: {why}", db.name)).host(&db.host)
}

fn setting(db: &Db, why: String, hint: &str) -> Error {
    Error::new(Code::DB_SETTINGS, why).host(&db.host).hint(hint)
}

/// Makes sure that `primary` can be replicated to `db`, and tells whether it goes by GTIDs.
pub(super) async fn examine(cx: &Cx, db: &Db, primary: &Db, p: &mut Sess, r: &mut Sess, options: &Replicate) -> Result<bool> {
    let (a, b) = (server(cx, primary).await?, server(cx, db).await?);
    if !p.is_on("log_bin").await? {
        let why = format!("the server of \"{}\" writes no binary log (log_bin is OFF): nothing can replicate from it", primary.name);
        return Err(setting(primary, why, "set log_bin and a server_id in its configuration and restart it"));
    }
    let passed_on = p.is_on("log_slave_updates").await? || p.is_on("log_replica_updates").await?;
    if let (Some(up), false) = (status::read(p, &a.flavour).await?.first(), passed_on) {
        let why = format!("\"{}\" replicates from {} and does not pass that on (log_slave_updates is OFF)", primary.name, up.source());
        return Err(setting(
            primary,
            why,
            "set log_slave_updates in its configuration and restart it; or, of a pair whose other side takes no writes, unpair first",
        ));
    }
    let (one, two) = (p.int("SELECT @@server_id").await?, r.int("SELECT @@server_id").await?);
    if one == two {
        let why = format!("the servers of \"{}\" and \"{}\" have the same server_id, {one}", primary.name, db.name);
        return Err(setting(db, why, "give each a server_id of its own in its configuration and restart it"));
    }
    if state::identity(p).await? == state::identity(r).await? {
        return Err(cannot(db, format!("\"{}\" is on the same server", primary.name)));
    }
    if b.flavour.version < a.flavour.version && (b.flavour.version.0, b.flavour.version.1) < (a.flavour.version.0, a.flavour.version.1) {
        let why = format!(
            "it is {} and \"{}\" is {}: an older server does not understand a newer one's log",
            b.flavour.text, primary.name, a.flavour.text
        );
        return Err(cannot(db, why));
    }
    if let Some(row) = p.rows(a.flavour.show_binlog()).await?.first() {
        for key in ["binlog_do_db", "binlog_ignore_db"] {
            let v = super::connect::get(row, key);
            if !v.is_empty() {
                return Err(setting(
                    primary,
                    format!("\"{}\" leaves schemas out of its binary log ({key} = {v})", primary.name),
                    "remove that setting and restart it",
                ));
            }
        }
    }
    if p.variable("binlog_format").await?.is_some_and(|f| f.eq_ignore_ascii_case("STATEMENT")) {
        cx.message(format!("\"{}\" logs statements (binlog_format is STATEMENT): some have another effect on a replica; compare both sides before the switch", primary.name));
    }
    if !r.is_on("log_bin").await? {
        cx.message(format!(
            "\"{}\" writes no binary log: once promoted, it cannot give its rows back to \"{}\" (demote)",
            db.name, primary.name
        ));
    }
    let gtids = a.flavour.maria
        || p.variable("gtid_mode").await?.is_some_and(|m| m == "ON") && r.variable("gtid_mode").await?.is_some_and(|m| m == "ON");
    match options.mode.as_deref() {
        None | Some("physical") => Ok(gtids),
        Some("gtid") if gtids => Ok(true),
        Some("gtid") => Err(setting(primary, "gtid_mode is not ON on both servers".into(), "use mode: \"position\", or turn it on")),
        Some("position") => Ok(false),
        Some(other) => Err(crate::db::driver::cannot(
            db,
            &format!("the mode \"{other}\" (there are \"gtid\", \"position\" and, of MariaDB, \"physical\")"),
        )),
    }
}

/// What a server that is to become a replica is already.
pub(super) enum Standing {
    /// It replicates from there; this is all that was to do.
    Done(Replicated),
    /// It may become one.
    Open {
        /// What is kept on it.
        marks: Box<Marks>,
        /// The mark of the same replica, whole or half.
        ours: Option<ReplicaMark>,
    },
}

/// Looks whether `db` is a replica of `primary`, which is `source`, or something else that is in the way.
pub(super) async fn standing(cx: &Cx, db: &Db, primary: &Db, r: &mut Sess, source: &str, options: &Replicate) -> Result<Standing> {
    let at = server(cx, db).await?;
    let marks = state::read(r).await?;
    if let Some(m) = &marks.promoted {
        return Err(cannot(db, format!("it was promoted and takes the writes, instead of \"{}\"", m.source)).hint("demote it first"));
    }
    if let Some(f) = &marks.fence {
        return Err(cannot(db, format!("the fence {} stands on it", f.id)).hint("unfence it first"));
    }
    let usual = status::usual(r, &at.flavour).await?;
    let ours = marks.replica.clone().filter(|m| m.source == source && m.of == primary.name);
    if let (None, Some(s), false) = (&ours, &usual, options.replace) {
        return Err(cannot(db, format!("it replicates from {} already", s.source())).hint("stop that, or use replace: true"));
    }
    if let (Some(m), Some(s)) = (&ours, &usual)
        && m.phase == Phase::Running
        && !options.replace
    {
        if let Some(e) = s.error() {
            return Err(e.stopped(db));
        }
        let was = s.connected();
        let mut m = m.clone();
        if !delayed::resume(cx, db, &at, r, &mut m).await? && !s.running() {
            r.run(at.flavour.replica("START", "")).await?;
        }
        follow::wait_running(cx, db, &at, r).await?;
        let note = if was { "it replicates from there already" } else { "replication was stopped, and goes on" };
        let position = fence::show(&m.position);
        return Ok(Standing::Done(Replicated { changed: !was, position, note: note.into(), ..Replicated::default() }));
    }
    Ok(Standing::Open { marks: Box::new(marks), ours })
}

/// Makes `db` a replica of `primary`.
pub async fn replicate_from(cx: &Cx, db: &Db, primary: &Db, options: &Replicate) -> Result<Replicated> {
    if options.mode.as_deref() == Some("physical") {
        return Box::pin(physical::replicate(cx, db, primary, options)).await;
    }
    let (mut p, mut r) = (session(cx, primary).await?, session(cx, db).await?);
    let gtid = examine(cx, db, primary, &mut p, &mut r, options).await?;
    let source = state::identity(&mut p).await?;
    let (marks, ours) = match standing(cx, db, primary, &mut r, &source, options).await? {
        Standing::Done(done) => return Ok(done),
        Standing::Open { marks, ours } => (marks, ours),
    };
    let mark = match ours {
        Some(m) if m.phase != Phase::Copying && m.gtid == gtid && !options.replace => m,
        ours => {
            first_copy(
                cx,
                db,
                primary,
                &mut r,
                &marks,
                ours,
                ReplicaMark { of: primary.name.clone(), source, gtid, ..ReplicaMark::default() },
                options,
            )
            .await?
        }
    };
    let mark = follow::start(cx, db, primary, &mut p, &mut r, mark).await?;
    // Accounts that were made between the first look at them and the snapshot.
    accounts::copy(cx, primary, db, &[], true).await?;
    p.close().await;
    r.close().await;
    Ok(Replicated { changed: true, rows: mark.rows, bytes: mark.bytes, position: fence::show(&mark.position), note: String::new() })
}

/// Refuses a server whose schemas or followers would be lost; gives its schemas.
pub(super) async fn free(db: &Db, r: &mut Sess, ours: bool, replace: bool) -> Result<Vec<String>> {
    let there = every_schema(r).await?;
    if !there.is_empty() && !ours && !replace {
        return Err(cannot(db, format!("it has schemas of its own: {}", there.join(", ")))
            .hint("move them away, or use replace: true, which drops them"));
    }
    let followers = r.int("SELECT COUNT(*) FROM information_schema.processlist WHERE command LIKE 'Binlog Dump%'").await?;
    if followers > 0 {
        return Err(cannot(db, format!("{followers} servers replicate from it")).hint("stop these first"));
    }
    Ok(there)
}

/// Leaves events to the primary.
pub(super) async fn events_off(r: &mut Sess) -> Result<()> {
    for row in r.rows("SELECT event_schema AS sch, event_name AS ev FROM information_schema.events WHERE status = 'ENABLED'").await? {
        let name = format!("{}.{}", ident(super::connect::get(&row, "sch")), ident(super::connect::get(&row, "ev")));
        aside(r, &[format!("ALTER EVENT {name} DISABLE ON SLAVE")]).await?;
    }
    Ok(())
}

/// Makes room, keeps ordinary users out, and copies.
#[allow(clippy::too_many_arguments)]
async fn first_copy(
    cx: &Cx,
    db: &Db,
    primary: &Db,
    r: &mut Sess,
    marks: &Marks,
    ours: Option<ReplicaMark>,
    mut mark: ReplicaMark,
    options: &Replicate,
) -> Result<ReplicaMark> {
    let at = server(cx, db).await?;
    let there = free(db, r, ours.is_some(), options.replace).await?;
    match marks.replica.as_ref() {
        Some(m) => (mark.was_read_only, mark.events) = (m.was_read_only, m.events),
        None => (mark.was_read_only, mark.events) = (r.is_on("read_only").await?, r.is_on("event_scheduler").await?),
    }
    mark.account = ours.and_then(|m| m.account);
    // On record before anything is dropped: what a crash leaves is known for half a copy.
    state::write(r, &mark).await?;
    host::hold(cx, db, &format!("\"{}\" is a replica of \"{}\"", db.name, primary.name)).await?;
    r.run("SET GLOBAL event_scheduler = OFF").await?;
    r.run("SET GLOBAL read_only = 1").await?;
    let _ = r.run(at.flavour.replica("STOP", "")).await;
    r.run(at.flavour.replica("RESET", "ALL")).await?;
    for schema in &there {
        aside(r, &[format!("DROP DATABASE {}", ident(schema))]).await?;
    }
    accounts::copy(cx, primary, db, &[], true).await?;
    let schemas = {
        let mut p = session(cx, primary).await?;
        let names = every_schema(&mut p).await?;
        p.close().await;
        names
    };
    let moved = stream::copy(cx, primary, db, &stream::What::Schemas(&schemas), options.jobs, true).await?;
    if moved.position.file.is_empty() {
        return Err(cannot(db, "the dump does not say of which position it is"));
    }
    events_off(r).await?;
    (mark.rows, mark.bytes, mark.position, mark.phase) = (moved.rows, moved.bytes, moved.position, Phase::Copied);
    state::write(r, &mark).await?;
    Ok(mark)
}

/// Removes a replica or copy that was not promoted, with its data, and lets the server take writes as before.
pub async fn drop_copy(cx: &Cx, db: &Db) -> Result<bool> {
    let at = server(cx, db).await?;
    let mut r = session(cx, db).await?;
    let marks = state::read(&mut r).await?;
    if marks.copy.is_some() {
        let schema = db.settings.need("database")?;
        aside(&mut r, &[format!("DROP DATABASE IF EXISTS {}", ident(schema))]).await?;
        state::remove::<CopyMark>(&mut r).await?;
        return Ok(true);
    }
    let Some(mark) = marks.replica else { return Ok(false) };
    follow::stop(cx, db).await?;
    for schema in every_schema(&mut r).await? {
        aside(&mut r, &[format!("DROP DATABASE {}", ident(&schema))]).await?;
    }
    host::release(cx, db).await?;
    if mark.events {
        r.run("SET GLOBAL event_scheduler = ON").await?;
    }
    if !mark.was_read_only {
        fence::open(&at, &mut r).await?;
    }
    state::remove::<ReplicaMark>(&mut r).await?;
    r.close().await;
    Ok(true)
}

/// Copies one schema into another, without replication.
pub async fn copy(cx: &Cx, from: &Db, to: &Db, options: &TableOptions) -> Result<Copied> {
    let (a, b) = (server(cx, from).await?, server(cx, to).await?);
    let (mut s, mut t) = (session(cx, from).await?, session(cx, to).await?);
    let (theirs, ours) = (from.settings.need("database")?, to.settings.need("database")?);
    let source = state::identity(&mut s).await?;
    let marks = state::read(&mut t).await?;
    let refuse = |why: String, hint: &str| {
        Err(Error::new(Code::DB_COPY, format!("\"{}\" cannot become a copy: {why}", to.name)).host(&to.host).hint(hint))
    };
    if marks.promoted.is_some() || marks.replica.is_some() {
        return refuse("it is a replica, or was promoted".into(), "a replica has everything without copies");
    }
    let tables = t.int(format!("SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = {}", text(ours))).await?;
    let known = marks.copy.filter(|c| c.of == from.name && c.source == source);
    if tables > 0 && known.is_none() {
        return refuse(
            format!("its schema {ours} has {tables} tables that are not of an earlier copy"),
            "drop them, or name another schema",
        );
    }
    let now = state::position(&mut s, &a.flavour).await?;
    // A server that keeps no log does not tell whether anything was written to it.
    if let Some(c) = known.as_ref().filter(|c| c.whole && c.position == now && options.tables.is_empty())
        && !now.file.is_empty()
        && !c.after.file.is_empty()
        && state::position(&mut t, &b.flavour).await? == c.after
    {
        return Ok(Copied { rows: c.rows, bytes: c.bytes, changed: false });
    }
    let mut mark = CopyMark { of: from.name.clone(), source, ..CopyMark::default() };
    state::write(&mut t, &mark).await?;
    t.run(format!("DROP DATABASE IF EXISTS {}", ident(ours))).await?;
    let made = s.rows(format!("SHOW CREATE DATABASE {}", ident(theirs))).await?;
    let made = made.first().map_or(String::new(), |r| super::connect::get(r, "create database").to_string());
    t.run(made.replacen(&ident(theirs), &ident(ours), 1)).await?;
    let what = stream::What::Into { from: theirs, to: ours, tables: &options.tables };
    let moved = stream::copy(cx, from, to, &what, options.jobs, false).await?;
    (mark.position, mark.rows, mark.bytes, mark.whole) = (moved.position, moved.rows, moved.bytes, true);
    mark.after = state::position(&mut t, &b.flavour).await?;
    state::write(&mut t, &mark).await?;
    Ok(Copied { rows: mark.rows, bytes: mark.bytes, changed: true })
}
