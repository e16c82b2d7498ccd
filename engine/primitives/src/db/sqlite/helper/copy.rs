//! Copies: a consistent snapshot of a live database, sent, received, put in place; and the way back into a live file.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use runbook_core::digest::{hex, sha256_of};
use runbook_core::{Code, Error, Result};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior};
use sha2::{Digest as _, Sha256};

use super::open::{self, beside, sql};
use super::{digest, guard, processes, state, switch};
use crate::db::sqlite::proto::{CopyRow, Header, Offer, Placed, Version};

const CHUNK: usize = 256 << 10;

fn failed(path: &Path, doing: &str) -> impl Fn(std::io::Error) -> Error {
    let place = path.display().to_string();
    let doing = doing.to_string();
    move |e| {
        let error = Error::new(Code::DB_COPY, format!("cannot {doing} {place}: {e}"));
        if e.kind() == std::io::ErrorKind::StorageFull { error.hint("free some space on the host and try again") } else { error }
    }
}

/// A file beside a database that is removed again, with what SQLite puts next to it, unless it was moved into place.
struct Temp(PathBuf);

impl Drop for Temp {
    fn drop(&mut self) {
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let _ = fs::remove_file(beside(&self.0, suffix));
        }
    }
}

/// Makes an empty temporary file beside `path`, readable by its owner only, and removes those that killed helpers left.
fn temp(path: &Path) -> Result<Temp> {
    let dir = path.parent().ok_or_else(|| Error::new(Code::DB_COPY, format!("{} has no folder", path.display())))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let prefix = format!(".{name}.runbook-");
    sweep(dir, &prefix);
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    let pid = std::process::id();
    let temp = dir.join(format!("{prefix}{pid}-{nanos}"));
    File::options().write(true).create_new(true).mode(0o600).open(&temp).map_err(failed(&temp, "make"))?;
    Ok(Temp(temp))
}

fn sweep(dir: &Path, prefix: &str) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(prefix) else { continue };
        // The name begins with the process that made it; as long as that one lives, it is not ours to remove.
        let pid: String = rest.chars().take_while(char::is_ascii_digit).collect();
        if !pid.is_empty() && !Path::new("/proc").join(&pid).exists() && Path::new("/proc/self").exists() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Copies all pages of `from` into `to`, as of one moment.
fn backup(from: &Connection, from_path: &Path, to: &mut Connection, patience: Duration) -> Result<()> {
    let err = sql(from_path, "copy");
    let wal: String = from.pragma_query_value(None, "journal_mode", |r| r.get(0)).map_err(&err)?;
    // A read transaction keeps the snapshot still, so that a busy writer cannot make the copy begin again and again. In WAL mode it
    // hinders nobody; with a rollback journal it holds commits up, so there it is taken only after the copy was disturbed thrice.
    let mut held = wal == "wal";
    let mut disturbed = 0;
    let deadline = Instant::now() + patience;
    if held {
        hold(from, from_path)?;
    }
    {
        let copying = Backup::new(from, to).map_err(&err)?;
        let mut left = i32::MAX;
        loop {
            match copying.step(1024).map_err(&err)? {
                StepResult::Done => break,
                StepResult::Busy | StepResult::Locked => {
                    if Instant::now() > deadline {
                        return Err(Error::new(
                            Code::DB_COPY,
                            format!("cannot copy {}: another process holds its lock", from_path.display()),
                        )
                        .retryable(true));
                    }
                    std::thread::sleep(Duration::from_micros(300));
                }
                _ => {
                    let now = copying.progress().remaining;
                    disturbed += u32::from(now > left);
                    left = now;
                    if disturbed >= 3 && !held {
                        hold(from, from_path)?;
                        held = true;
                    }
                }
            }
        }
    }
    if held {
        from.execute_batch("COMMIT").map_err(&err)?;
    }
    Ok(())
}

fn hold(conn: &Connection, path: &Path) -> Result<()> {
    conn.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema").map_err(sql(path, "copy"))
}

/// A snapshot of `path` in a temporary file beside `near`, without a WAL; and whether `path` is in WAL mode.
fn snapshot(path: &Path, near: &Path) -> Result<(Temp, bool)> {
    let from = open::read(path)?;
    let temp = temp(near)?;
    let mut to = open::create(&temp.0)?;
    to.pragma_update(None, "synchronous", "OFF").map_err(sql(path, "copy"))?;
    backup(&from, path, &mut to, open::BUSY)?;
    let mode: String = from.pragma_query_value(None, "journal_mode", |r| r.get(0)).map_err(sql(path, "copy"))?;
    single_file(&to, &temp.0)?;
    to.close().map_err(|(_, e)| open::explain(path, "copy", &e))?;
    Ok((temp, mode == "wal"))
}

/// Leaves WAL mode, so that everything is in the one file.
fn single_file(conn: &Connection, path: &Path) -> Result<()> {
    let mode: String = conn.query_row("PRAGMA journal_mode = DELETE", [], |r| r.get(0)).map_err(sql(path, "close the WAL of"))?;
    if mode != "delete" {
        return Err(Error::new(Code::DB_COPY, format!("the WAL of {} cannot be closed: another process has it open", path.display()))
            .hint("stop the process that uses it (fuser or lsof on the file names it)"));
    }
    Ok(())
}

fn sha256(file: &Path) -> Result<String> {
    File::open(file).and_then(sha256_of).map_err(failed(file, "read"))
}

/// Offers a snapshot; the bytes go to `out` after the header that `offer` writes.
///
/// # Errors
/// `RB0500`, `RB0501`, `RB0505`.
pub fn send(
    path: &Path,
    unless: Option<&Version>,
    out: &mut dyn Write,
    offer: impl Fn(&Offer, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    let near = writable_place(path);
    let (temp, wal) = snapshot(path, &near)?;
    let conn = open::read(&temp.0)?;
    let digest = digest::digest(&conn, path, true)?;
    let fence = state::fence(&conn, path)?.map(|f| f.id);
    drop(conn);
    let meta = fs::metadata(path).map_err(failed(path, "read"))?;
    let size = fs::metadata(&temp.0).map_err(failed(&temp.0, "read"))?.len();
    let version = Version { stamp: digest.stamp(), fence };
    if unless == Some(&version) {
        return offer(&Offer::Same { rows: digest.rows(), size }, out);
    }
    let header = Header { size, sha256: sha256(&temp.0)?, version, rows: digest.rows(), mode: meta.mode() & 0o777, wal };
    offer(&Offer::File(header), out)?;
    let mut f = File::open(&temp.0).map_err(failed(&temp.0, "read"))?;
    let gone = |e: std::io::Error| Error::new(Code::DB_COPY, format!("the copy was cut off: {e}"));
    let mut buf = vec![0; CHUNK];
    loop {
        let n = f.read(&mut buf).map_err(failed(&temp.0, "read"))?;
        if n == 0 {
            return out.flush().map_err(gone);
        }
        out.write_all(buf.get(..n).unwrap_or_default()).map_err(gone)?;
    }
}

/// Where the snapshot goes: beside the database, or in the temporary folder when that may not be written to.
fn writable_place(path: &Path) -> PathBuf {
    match temp(path) {
        Ok(_) => path.to_path_buf(),
        Err(_) => std::env::temp_dir().join(path.file_name().unwrap_or_default()),
    }
}

/// Takes a stream into a temporary file beside `path`, and checks it.
fn take(path: &Path, header: &Header, input: &mut dyn Read) -> Result<Temp> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(failed(dir, "make"))?;
    }
    let temp = temp(path)?;
    let mut f = File::options().write(true).open(&temp.0).map_err(failed(&temp.0, "write"))?;
    let (mut h, mut buf, mut got) = (Sha256::new(), vec![0; CHUNK], 0u64);
    loop {
        let n = input.read(&mut buf).map_err(failed(&temp.0, "receive"))?;
        let part = buf.get(..n).unwrap_or_default();
        if n == 0 {
            break;
        }
        got += n as u64;
        h.update(part);
        f.write_all(part).map_err(failed(&temp.0, "write"))?;
    }
    if got != header.size {
        return Err(Error::new(Code::DB_COPY, format!("the copy for {} was cut off after {got} of {} bytes", path.display(), header.size))
            .retryable(true));
    }
    if hex(&h.finalize()) != header.sha256 {
        return Err(
            Error::new(Code::DB_COPY, format!("the copy for {} arrived damaged: its SHA-256 is another", path.display())).retryable(true)
        );
    }
    let conn = open::read(&temp.0)?;
    let verdict: String = conn.query_row("PRAGMA integrity_check(3)", [], |r| r.get(0)).map_err(sql(path, "check the copy for"))?;
    if verdict != "ok" {
        return Err(Error::new(Code::DB_COPY, format!("the source of the copy for {} is damaged: {verdict}", path.display()))
            .hint("run PRAGMA integrity_check on the source, and mend it or restore it from a backup"));
    }
    Ok(temp)
}

/// Waits for its turn among helpers that put files in place or remove them: one of a controller that died may still be at it. The
/// lock is the folder's own, so nothing is left behind; it is never held while waiting for the network.
fn turn(path: &Path) -> Result<File> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let folder = File::open(dir).map_err(failed(dir, "open"))?;
    folder.lock().map_err(failed(dir, "lock"))?;
    Ok(folder)
}

/// Refuses unless there is nothing at `path`, or an unpromoted copy that nobody uses.
fn replaceable(path: &Path) -> Result<()> {
    let refuse = |why: &str, hint: &str| Err(Error::new(Code::DB_COPY, format!("{} {why}", path.display())).hint(hint.to_string()));
    let s = state::state(path)?;
    if s.exists {
        if s.copy.is_none() {
            return refuse(
                "holds a database that was not made by copy_from",
                "move it away, or check \"path\" in runbook.toml: copying would overwrite it",
            );
        }
        if s.promoted.is_some() {
            return refuse("was promoted and takes writes", "copying would overwrite its rows; take it back with demote first");
        }
        if !s.unguarded.is_empty() {
            return refuse("lost its write protection and may hold rows of its own", "look at it, and move it away before copying again");
        }
    } else {
        for suffix in ["-wal", "-journal"] {
            let left = beside(path, suffix);
            if left.exists() {
                // It may hold commits of a database that was moved; and SQLite would play it into the new file.
                return refuse("is missing, but its log is there", &format!("look at {} and move it away", left.display()));
            }
        }
    }
    // The helper of a controller that died may still be at its work, which ends by itself.
    let deadline = Instant::now() + open::BUSY;
    loop {
        let users = processes::using(path);
        let Some(first) = users.iter().find(|u| !u.helper).or(users.first()) else { return Ok(()) };
        if !first.helper || Instant::now() > deadline {
            let hint = "stop that process first: it would go on using the file that is replaced";
            return refuse(&format!("is open in {}", first.name), hint);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Puts a stream in place as a copy that is write-protected from its birth.
///
/// A crash at any point leaves what was there before or the whole new copy: everything happens in a temporary file, and `rename`
/// is the last act. Before it the old copy's WAL is played back and removed, since SQLite would play it into the new file.
///
/// # Errors
/// `RB0505`.
pub fn receive(path: &Path, header: &Header, origin: &str, time: &str, input: &mut dyn Read) -> Result<Placed> {
    replaceable(path)?;
    let temp = take(path, header, input)?;
    let mut conn = open::write(&temp.0)?;
    let err = sql(path, "finish the copy for");
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&err)?;
    for table in state::ALL {
        state::drop_table(&tx, path, table)?;
    }
    guard::install(&tx, path, switch::COPY_REFUSAL)?;
    let version = header.version.clone();
    state::set_copy(&tx, path, &CopyRow { origin: origin.into(), stamp: version.stamp, fence: version.fence, time: time.into() })?;
    tx.commit().map_err(&err)?;
    if header.wal {
        conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).map_err(&err)?;
    }
    conn.close().map_err(|(_, e)| open::explain(path, "finish the copy for", &e))?;
    own(&temp.0, path, header.mode)?;

    let _turn = turn(path)?;
    replaceable(path)?;
    retire(path)?;
    place(temp, path)?;
    Ok(Placed { rows: header.rows, size: header.size, changed: true, stamp: header.version.stamp.clone() })
}

/// Moves a finished file into place, durably.
fn place(temp: Temp, path: &Path) -> Result<()> {
    for suffix in ["-wal", "-shm", "-journal"] {
        let _ = fs::remove_file(beside(&temp.0, suffix));
    }
    File::open(&temp.0).and_then(|f| f.sync_all()).map_err(failed(&temp.0, "sync"))?;
    fs::rename(&temp.0, path).map_err(failed(path, "put in place"))?;
    sync_folder(path)
}

fn sync_folder(path: &Path) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|d| d.sync_all()).map_err(failed(dir, "sync"))
}

/// Gives a new file the mode and owner that it needs for the application: those of the file that it replaces; else the source's
/// mode and, when we may, the owner of the folder.
fn own(temp: &Path, path: &Path, mode: u32) -> Result<()> {
    let old = fs::metadata(path).ok();
    let like = old.as_ref().map_or_else(|| path.parent().and_then(|d| fs::metadata(d).ok()), |m| Some(m.clone()));
    let mode = old.as_ref().map_or(mode, |m| m.mode() & 0o777);
    fs::set_permissions(temp, fs::Permissions::from_mode(mode)).map_err(failed(temp, "set the mode of"))?;
    if let (Some(like), Ok(now)) = (like, fs::metadata(temp))
        && (like.uid(), like.gid()) != (now.uid(), now.gid())
    {
        // Only root may give files away; for others the login user's ownership is what any copy would have.
        let _ = std::os::unix::fs::chown(temp, Some(like.uid()), Some(like.gid()));
    }
    Ok(())
}

/// Closes what an unpromoted copy has beside it, so that only the one file is left.
fn retire(path: &Path) -> Result<()> {
    if state::state(path)?.exists {
        let mut conn = open::write(path)?;
        open::patience(&mut conn, Duration::from_secs(5)).map_err(sql(path, "close"))?;
        single_file(&conn, path)?;
        conn.close().map_err(|(_, e)| open::explain(path, "close", &e))?;
    }
    for suffix in ["-wal", "-journal"] {
        let left = beside(path, suffix);
        if left.exists() {
            return Err(Error::new(Code::DB_COPY, format!("{} is still there after its database was closed", left.display()))
                .hint("another process uses the database: stop it"));
        }
    }
    // Shared memory has no content of its own.
    let _ = fs::remove_file(beside(path, "-shm"));
    Ok(())
}

/// Puts a stream's content into the live file, which is fenced: one atomic write through SQLite, so that processes which have it
/// open go on with the new content. The engine's own tables (fence, markers) stay those of the live file.
///
/// # Errors
/// `RB0503` when the file is not fenced, `RB0504` when its own content has changed under the fence.
pub fn restore(path: &Path, header: &Header, within: Duration, input: &mut dyn Read) -> Result<Placed> {
    let mut live = open::write(path)?;
    let fence = state::fence(&live, path)?
        .ok_or_else(|| Error::new(Code::DB_NOT_FENCED, format!("{} is not fenced, so its content cannot be replaced", path.display())))?;
    let now = digest::digest(&live, path, true)?.stamp();
    if now == header.version.stamp {
        return Ok(Placed { rows: header.rows, size: header.size, changed: false, stamp: now });
    }
    if fence.stamp.as_deref() != Some(now.as_str()) {
        return Err(Error::new(Code::DB_DIFFERS, format!("{} was changed under its fence", path.display()))
            .hint("both sides have rows of their own: compare them by hand before one replaces the other"));
    }
    let temp = take(path, header, input)?;
    let mut conn = open::write(&temp.0)?;
    let err = sql(path, "prepare the content for");
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&err)?;
    for table in state::ALL {
        state::drop_table(&tx, path, table)?;
        carry(&live, &tx, table).map_err(&err)?;
    }
    guard::install(&tx, path, &format!("this database is being moved (fence {})", fence.id))?;
    state::set_fence(&tx, path, &crate::db::sqlite::proto::FenceRow { stamp: Some(header.version.stamp.clone()), ..fence })?;
    tx.commit().map_err(&err)?;
    single_file(&conn, &temp.0)?;
    open::patience(&mut live, within).map_err(&err)?;
    backup(&conn, &temp.0, &mut live, within)?;
    let stamp = digest::digest(&live, path, true)?.stamp();
    if stamp != header.version.stamp {
        return Err(Error::new(Code::DB_DIFFERS, format!("{} does not have the content that was copied back", path.display())));
    }
    Ok(Placed { rows: header.rows, size: header.size, changed: true, stamp })
}

/// Copies one of the engine's tables. Not by ATTACH: there an unqualified name can reach the live file.
fn carry(from: &Connection, to: &Connection, table: &str) -> rusqlite::Result<()> {
    let Some(text) = from
        .query_row("SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1", [table], |r| r.get::<_, String>(0))
        .optional()?
    else {
        return Ok(());
    };
    to.execute_batch(&text)?;
    let mut read = from.prepare(&format!("SELECT * FROM {table}"))?;
    let places = vec!["?"; read.column_count()].join(", ");
    let mut write = to.prepare(&format!("INSERT INTO {table} VALUES ({places})"))?;
    let mut rows = read.query([])?;
    while let Some(r) = rows.next()? {
        for i in 0..r.as_ref().column_count() {
            write.raw_bind_parameter(i + 1, r.get::<_, rusqlite::types::Value>(i)?)?;
        }
        write.raw_execute()?;
    }
    Ok(())
}

/// Makes a consistent copy in a file on the same host; the file appears whole or not at all.
///
/// # Errors
/// `RB0505`.
pub fn to_file(path: &Path, to: &Path) -> Result<Placed> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).map_err(failed(dir, "make"))?;
    }
    if let (Ok(a), Ok(b)) = (fs::canonicalize(path), fs::canonicalize(to))
        && a == b
    {
        return Err(Error::new(Code::DB_COPY, format!("{} cannot be copied onto itself", path.display())));
    }
    for suffix in ["-wal", "-journal"] {
        if beside(to, suffix).exists() {
            return Err(Error::new(Code::DB_COPY, format!("{} is a database in use: it has a {suffix} file", to.display()))
                .hint("choose another path for the copy"));
        }
    }
    let (temp, wal) = snapshot(path, to)?;
    let conn = open::write(&temp.0)?;
    let digest = digest::digest(&conn, path, true)?;
    if wal {
        conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).map_err(sql(path, "copy"))?;
    }
    conn.close().map_err(|(_, e)| open::explain(path, "copy", &e))?;
    let size = fs::metadata(&temp.0).map_err(failed(&temp.0, "read"))?.len();
    let changed = !to.exists() || sha256(to)? != sha256(&temp.0)?;
    if changed {
        let mode = fs::metadata(path).map_or(0o600, |m| m.mode() & 0o777);
        own(&temp.0, to, mode)?;
        place(temp, to)?;
    }
    Ok(Placed { rows: digest.rows(), size, changed, stamp: digest.stamp() })
}

/// Removes an unpromoted copy; false when there is none. Also removes what killed helpers left.
///
/// # Errors
/// `RB0505` when it is something else.
pub fn drop_copy(path: &Path) -> Result<bool> {
    if let (Some(dir), Some(name)) = (path.parent(), path.file_name()) {
        sweep(dir, &format!(".{}.runbook-", name.to_string_lossy()));
    }
    if !path.exists() {
        return Ok(false);
    }
    let _turn = turn(path)?;
    if !state::state(path)?.exists {
        return Ok(false);
    }
    replaceable(path)?;
    // The WAL goes first, by playing it back: a WAL without its file could be taken for that of a later one.
    retire(path)?;
    fs::remove_file(path).map_err(failed(path, "remove"))?;
    sync_folder(path)?;
    Ok(true)
}
