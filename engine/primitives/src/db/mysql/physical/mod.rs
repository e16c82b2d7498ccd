//! `replicate_from(…, #{ mode: "physical" })`: the whole server, file by file, as `mariabackup` takes it while it is in use.
//!
//! The copy is made in `DATA.runbook-new` beside the data folder, and is put in its place whole:
//!
//! | on the new host | after a controller's death |
//! |---|---|
//! | the stream comes | nobody feeds it any more: it is removed and begun anew |
//! | `runbook-copy` is in it: the stream is whole | it is prepared |
//! | a job prepares it, apart from the connection | found at work; one that was broken off begins with a new stream |
//! | `runbook-prepared` is in it | the server is stopped, and it takes the folder's place |
//! | it lies in the data folder's place, with `runbook-copy` | the server is started, and what it is goes on record in it |
//! | the record is in the server ([`state`]) | as with any replica |

mod carry;
mod place;

use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::units::show_bytes;
use runbook_core::{Code, Error, Result};
use tokio::time::Instant;

use super::connect::{Sess, down, server, session, session_as, user};
use super::replication::{Standing, cannot, events_off, examine, free, standing};
use super::sql::text;
use super::state::{self, Phase, ReplicaMark, SCHEMA, aside};
use super::{fence, follow, host};
use crate::db::driver::{Db, Replicate, Replicated};
use carry::{Tool, carry, end_leftover, size};
use place::{Copy, Found, Place};

/// The script that copies, on the primary's host.
const TAKE: &str = include_str!("take.sh");
const PACKAGE: &str = "install it there, of the server's own version (Debian: apt-get install mariadb-backup)";

/// How long a server may take to let us in after its start; what it does before is on its disk.
const STARTS: Duration = Duration::from_secs(600);
/// How long it may be before a process has its files open.
const APPEARS: Duration = Duration::from_secs(15);

/// Makes `db` a replica of `primary`, of all that it has.
pub(super) async fn replicate(cx: &Cx, db: &Db, primary: &Db, options: &Replicate) -> Result<Replicated> {
    if db.settings.kind != "mariadb" {
        return Err(crate::db::driver::cannot(db, "replicating by the mode \"physical\""));
    }
    let place = Place::of(cx, db).await?;
    let mut p = session(cx, primary).await?;
    let source = state::identity(&mut p).await?;
    let found = place.look().await?;
    let ours = |c: &Copy| c.source == source && c.of == primary.name;
    if let Some(copy) = found.here.clone().filter(ours) {
        return finish(cx, db, primary, &place, &mut p, copy).await;
    }
    let new = found.new.clone().filter(ours);
    match session(cx, db).await {
        Ok(mut r) => {
            if let Some(done) = ready(cx, db, primary, &source, (&mut p, &mut r), options).await? {
                place.clear().await?;
                return Ok(done);
            }
            // That of an earlier run may be too old for the primary's log.
            let new = new.filter(|c| c.action == cx.action_id.to_string());
            let copy = whole(cx, db, primary, &place, (&mut p, &mut r), new).await?;
            // What has come there meanwhile is not to be lost.
            let still = still_ours(&mut r, &source, primary).await?;
            free(db, &mut r, still, options.replace).await?;
            r.close().await;
            switch(cx, db, primary, &place).await?;
            finish(cx, db, primary, &place, &mut p, copy).await
        }
        // In the middle of a switch.
        Err(e) if down(&e) => match (new, found) {
            (Some(copy), Found { prepared: true, .. }) => {
                switch(cx, db, primary, &place).await?;
                finish(cx, db, primary, &place, &mut p, copy).await
            }
            _ => Err(e),
        },
        Err(e) => Err(e),
    }
}

/// Removes what a copy that never came into its place has left beside the data folder; whether there was anything.
pub(super) async fn abandon(cx: &Cx, db: &Db) -> Result<bool> {
    let place = Place::of(cx, db).await?;
    let found = place.look().await?;
    if let Some(copy) = found.here {
        return Err(cannot(db, format!("a copy of \"{}\" has taken the place of its data, and is not on record yet", copy.of))
            .hint("resume, or repeat replicate_from with mode: \"physical\", and stop it then"));
    }
    if found.beside {
        end_leftover(cx, db, &place.tag()).await?;
        place.clear().await?;
    }
    Ok(found.beside)
}

async fn still_ours(r: &mut Sess, source: &str, primary: &Db) -> Result<bool> {
    Ok(state::read(r).await?.replica.is_some_and(|m| m.source == source && m.of == primary.name))
}

/// Sees that a copy can be made; what is done already when none is needed.
async fn ready(
    cx: &Cx,
    db: &Db,
    primary: &Db,
    source: &str,
    (p, r): (&mut Sess, &mut Sess),
    options: &Replicate,
) -> Result<Option<Replicated>> {
    examine(cx, db, primary, p, r, options).await?;
    let (a, b) = (server(cx, primary).await?, server(cx, db).await?);
    let series = |v: (u16, u16, u16)| (v.0, v.1);
    if series(a.flavour.version) != series(b.flavour.version) {
        let why = format!("it is {} and \"{}\" is {}: files are of one major version", b.flavour.text, primary.name, a.flavour.text);
        return Err(Error { code: Code::DB_SETTINGS, ..cannot(db, why) }
            .hint("install that version there; to move to another one, replicate without a mode"));
    }
    let ours = match standing(cx, db, primary, r, source, options).await? {
        Standing::Done(done) => return Ok(Some(done)),
        Standing::Open { ours, .. } => ours,
    };
    if let Some(mark) = ours.clone().filter(|m| m.phase != Phase::Copying && !options.replace) {
        let mark = follow::start(cx, db, primary, p, r, mark).await?;
        let position = fence::show(&mark.position);
        return Ok(Some(Replicated {
            changed: true,
            position,
            note: "replication was stopped, and goes on".into(),
            ..Replicated::default()
        }));
    }
    free(db, r, ours.is_some(), options.replace).await?;
    for (of, s) in [(primary, &mut *p), (db, &mut *r)] {
        inside(of, s).await?;
    }
    for name in ["innodb_page_size", "innodb_data_file_path", "lower_case_table_names"] {
        let (one, two) = (p.variable(name).await?.unwrap_or_default(), r.variable(name).await?.unwrap_or_default());
        if one != two {
            let why = format!("its {name} is {two}, and that of \"{}\" is {one}", primary.name);
            return Err(Error { code: Code::DB_SETTINGS, ..cannot(db, why) }.hint("set it alike in the new server's configuration"));
        }
    }
    if r.is_on("wsrep_on").await? {
        return Err(cannot(db, "it is a member of a Galera cluster"));
    }
    known_there(cx, db, primary, p).await?;
    Ok(None)
}

fn outside(db: &Db, what: &str) -> Error {
    let why = format!("\"{}\" has files outside of its data folder ({what}), which mode \"physical\" does not move", db.name);
    Error::new(Code::DB_CANNOT, why).host(&db.host).hint("replicate without a mode, which goes by rows")
}

/// Refuses a server that has files outside of its data folder.
async fn inside(db: &Db, s: &mut Sess) -> Result<()> {
    let data = s.variable("datadir").await?.unwrap_or_default();
    for name in ["innodb_data_home_dir", "innodb_log_group_home_dir", "innodb_undo_directory", "aria_log_dir_path"] {
        let v = s.variable(name).await?.unwrap_or_default();
        if !matches!(v.as_str(), "" | "." | "./") && v.trim_end_matches('/') != data.trim_end_matches('/') {
            return Err(outside(db, &format!("{name} = {v}")));
        }
    }
    Ok(())
}

/// Sees that this login is known to the primary: its accounts are those of the new server afterwards.
async fn known_there(cx: &Cx, db: &Db, primary: &Db, p: &mut Sess) -> Result<()> {
    let (who, password) = (user(db), db.settings.str("password").map(|n| cx.secret(n)).transpose()?);
    if who == user(primary) && db.settings.str("password") == primary.settings.str("password") {
        return Ok(());
    }
    let known = match password {
        Some(password) => match session_as(cx, primary, &who, password.reveal()).await {
            Ok(s) => {
                s.close().await;
                true
            }
            Err(e) if e.code == Code::DB_LOGIN => false,
            Err(e) => return Err(e),
        },
        None => {
            let sql = format!(
                "SELECT COUNT(*) FROM mysql.global_priv WHERE user = {} AND host = 'localhost' AND priv LIKE '%unix_socket%'",
                text(&who)
            );
            p.int(sql).await? > 0
        }
    };
    if known {
        return Ok(());
    }
    Err(Error::new(
        Code::DB_LOGIN,
        format!("\"{}\" is worked on as {who}, whom \"{}\" does not know: its accounts come with the copy", db.name, primary.name),
    )
    .host(&db.host)
    .hint("give both databases the same user and password in runbook.toml, or make that account on the primary first"))
}

/// A prepared copy beside the data folder: the one that is there, or one that is made now.
async fn whole(cx: &Cx, db: &Db, primary: &Db, place: &Place<'_>, (p, r): (&mut Sess, &mut Sess), mut there: Option<Copy>) -> Result<Copy> {
    let (a, b) = (server(cx, primary).await?, server(cx, db).await?);
    for _ in 0..2 {
        let (copy, tool) = match there.take() {
            Some(copy) => (copy, Tool::find(cx, db, &b.flavour).await?),
            None => {
                let from = Tool::find(cx, primary, &a.flavour).await?;
                let data = p.variable("datadir").await?.unwrap_or_default();
                let total = size(cx, primary, &data).await?;
                for side in [primary, db] {
                    end_leftover(cx, side, &place.tag()).await?;
                }
                let told = r.variable("datadir").await?.unwrap_or_default();
                let tool = place.fit(&told, &b.flavour, total).await?;
                let marks = state::read(r).await?;
                let (was_read_only, events) = match marks.replica {
                    Some(m) => (m.was_read_only, m.events),
                    None => (r.is_on("read_only").await?, r.is_on("event_scheduler").await?),
                };
                let copied = async {
                    let bytes = carry(cx, db, (primary, &a), &from, &data, place, total).await?;
                    let copy = Copy {
                        action: cx.action_id.to_string(),
                        of: primary.name.clone(),
                        source: state::identity(p).await?,
                        position: place.position().await?,
                        bytes,
                        was_read_only,
                        events,
                        log: r.variable("log_error").await?.unwrap_or_default(),
                    };
                    place.came(&copy).await?;
                    Ok(copy)
                };
                match copied.await {
                    Ok(copy) => (copy, tool),
                    Err(e) => {
                        // Half of it is of no use, and takes room.
                        place.tidy().await;
                        return Err(e);
                    }
                }
            }
        };
        if place.prepare(&tool).await? {
            return Ok(copy);
        }
        cx.message(format!("\"{}\": preparing the copy was broken off; it is made anew", db.name));
    }
    Err(cannot(db, "preparing the copy was ended from outside, twice").retryable(true))
}

/// Stops the server, and puts the copy in the place of its data folder.
async fn switch(cx: &Cx, db: &Db, primary: &Db, place: &Place<'_>) -> Result<()> {
    // From its first moment on the copy takes no writes but those of its primary, and its events do not run.
    host::hold(cx, db, &format!("\"{}\" is a replica of \"{}\"", db.name, primary.name)).await?;
    if place.in_use().await? {
        let (status, said) = host::control(cx, db, "stop").await?;
        let began = Instant::now();
        while place.in_use().await? {
            if status != 0 || began.elapsed() > STARTS {
                return Err(cannot(db, format!("its server did not stop (exit status {status}): {said}"))
                    .hint("see the server's own log on its host; sudo = true when only root may do that"));
            }
            cx.sleep(Duration::from_millis(200)).await?;
        }
    }
    place.swap().await
}

/// Starts the server unless it runs, and waits until it lets us in.
async fn start(cx: &Cx, db: &Db, place: &Place<'_>, log: &str) -> Result<Sess> {
    let failed = async |why: String| {
        let said = place.log(log).await;
        let said = if said.is_empty() { String::new() } else { format!(": {}", cx.redactor.text(&said)) };
        Err(cannot(db, format!("its server does not start on the copy{why}{said}"))
            .hint("the copy is in place: see the server's log, mend its configuration, then resume; what was there before is beside it (.runbook-replaced)"))
    };
    let mut began = Instant::now();
    if !place.in_use().await? {
        let (status, said) = host::control(cx, db, "start").await?;
        if status != 0 {
            return failed(format!(" (exit status {status}; {})", said.replace('\n', "; "))).await;
        }
        began = Instant::now();
    }
    let mut seen = Instant::now();
    loop {
        match session(cx, db).await {
            Err(e) if !down(&e) => return Err(e),
            Err(e) if began.elapsed() > STARTS => return Err(e),
            Err(_) => {}
            done => return done,
        }
        if place.in_use().await? {
            seen = Instant::now();
        } else if seen.elapsed() > APPEARS {
            return failed(String::new()).await;
        }
        cx.sleep(Duration::from_millis(200)).await?;
    }
}

/// Starts the server on the copy that is in place, puts on record what it is, and lets it follow.
async fn finish(cx: &Cx, db: &Db, primary: &Db, place: &Place<'_>, p: &mut Sess, copy: Copy) -> Result<Replicated> {
    let mut r = start(cx, db, place, &copy.log).await?;
    let mut marks = state::read(&mut r).await?;
    // A server is no replica of itself: this mark did not come with the copy.
    if marks.replica.as_ref().is_none_or(|m| m.source != copy.source || m.of != copy.of) {
        let mark = ReplicaMark {
            of: copy.of.clone(),
            source: copy.source.clone(),
            phase: Phase::Copied,
            gtid: !copy.position.gtid.is_empty(),
            position: copy.position.clone(),
            bytes: copy.bytes,
            was_read_only: copy.was_read_only,
            events: copy.events,
            ..ReplicaMark::default()
        };
        // What else is there is about the primary.
        aside(&mut r, &[format!("DROP DATABASE IF EXISTS {SCHEMA}")]).await?;
        state::write(&mut r, &mark).await?;
        marks.replica = Some(mark);
    }
    events_off(&mut r).await?;
    place.recorded().await?;
    let Some(mark) = marks.replica else { return Err(Error::internal("a replica without its mark")) };
    let mark = follow::start(cx, db, primary, p, &mut r, mark).await?;
    place.clear().await?;
    r.close().await;
    Ok(Replicated {
        changed: true,
        bytes: copy.bytes,
        position: fence::show(&mark.position),
        note: format!("the whole server, {}", show_bytes(copy.bytes)),
        ..Replicated::default()
    })
}
