//! The first copy: a dump of the source's host, streamed and loaded by several sessions at once while it comes. Nothing is written to a
//! disk in between, and memory holds a few statements.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, BufReader};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use super::connect::{Sess, server, session};
use super::dumped::{Cutter, Piece};
use super::host;
use super::sql::ident;
use super::state::Position;
use crate::db::driver::Db;
use crate::ssh::{self, quote};

/// The rows that wait for a session, in statements of about a MiB.
const WAITING: usize = 4;

/// What is dumped.
pub enum What<'a> {
    /// These schemas, whole, under their own names.
    Schemas(&'a [String]),
    /// Tables of one schema (all when none are named) into another.
    Into {
        /// The source's schema.
        from: &'a str,
        /// The target's schema, which exists.
        to: &'a str,
        /// Only these.
        tables: &'a [String],
    },
}

/// What a copy moved.
#[derive(Debug, Default)]
pub struct Moved {
    /// Rows.
    pub rows: u64,
    /// Bytes of the dump.
    pub bytes: u64,
    /// The source's position that the copy is of.
    pub position: Position,
}

fn failed(to: &Db, why: impl std::fmt::Display) -> Error {
    Error::new(Code::DB_COPY, format!("the copy into \"{}\" failed: {why}", to.name)).host(&to.host)
}

fn not_loaded(to: &Db, e: &Error) -> Error {
    failed(to, &e.message).retryable(e.retryable)
}

/// Copies; the sessions of the target stay out of its binary log with `aside`.
pub async fn copy(cx: &Cx, from: &Db, to: &Db, what: &What<'_>, jobs: Option<usize>, aside: bool) -> Result<Moved> {
    let at = server(cx, from).await?;
    let maria = at.flavour.maria;
    let mut args = String::from(
        "--single-transaction --quick --routines --events --triggers --hex-blob --skip-add-locks --skip-disable-keys --default-character-set=utf8mb4 \
         --max-allowed-packet=1073741824 --net-buffer-length=1046528",
    );
    let (total, logged) = {
        let mut s = session(cx, from).await?;
        let names: Vec<String> = match what {
            What::Schemas(n) => n.to_vec(),
            What::Into { from, .. } => vec![(*from).to_string()],
        };
        let sql = format!(
            "SELECT COALESCE(SUM(data_length), 0) FROM information_schema.tables WHERE table_schema IN ({})",
            super::data::list(&names)
        );
        let (n, logged) = (s.int(sql).await?, s.is_on("log_bin").await?);
        s.close().await;
        (n.unsigned_abs(), logged)
    };
    // mysqldump 8.0.26 and later call it so; where both are there, the newer does not know the older word for ever.
    let newer = at.flavour.version >= (8, 0, 26);
    if logged {
        // The position of its moment.
        args.push_str(if maria || !newer { " --master-data=2" } else { " --source-data=2" });
    }
    args.push_str(match (maria, newer) {
        (true, _) if logged => " --gtid",
        (true, _) => "",
        (false, true) => " --loose-set-gtid-purged=ON --loose-no-tablespaces --loose-column-statistics=0",
        (false, false) => " --loose-set-gtid-purged=AUTO",
    });
    match what {
        What::Schemas(names) => {
            args.push_str(" --databases");
            for n in *names {
                args.push_str(&format!(" {}", quote(n)));
            }
        }
        What::Into { from, tables, .. } => {
            args.push_str(&format!(" {}", quote(from)));
            for t in *tables {
                args.push_str(&format!(" {}", quote(t)));
            }
        }
    }
    let tools: &[&str] = if maria { &["mariadb-dump", "mysqldump"] } else { &["mysqldump"] };
    let channel = ssh::connect(cx, &from.host).await?.open(cx, host::tool(cx, &at, tools, &args)?).await?;
    let jobs = jobs.unwrap_or(4);
    let target = match what {
        What::Schemas(_) => None,
        What::Into { to, .. } => Some((*to).to_string()),
    };
    let loading = async {
        let mut input = BufReader::with_capacity(1 << 20, channel.stdout);
        let moved = load(cx, to, &mut input, jobs, target.as_deref(), aside, total).await;
        drop(input);
        moved
    };
    drop(channel.stdin);
    let moved = tokio::select! {
        m = loading => m,
        () = cx.cancel.cancelled() => return Err(Error::new(Code::ABORTED, format!("stopped while copying {} to {}", from.name, to.name))),
    };
    let mut moved = moved?;
    let (status, said) = channel.done.await?;
    let said = said.trim();
    if status == 127 {
        return Err(Error::new(Code::HOST_TOOL_MISSING, format!("the first copy needs a tool on the host: {said}"))
            .host(&from.host)
            .hint("install mariadb-client (mysql-client) there"));
    }
    if status != 0 || !moved.1.whole {
        let said = if said.is_empty() { "it broke off".to_string() } else { cx.redactor.text(said) };
        return Err(failed(to, format!("the dump of \"{}\" ended with status {status}: {said}", from.name)).retryable(status == 0));
    }
    moved.0.position = std::mem::take(&mut moved.1.position);
    Ok(moved.0)
}

/// Sessions that load at once; one that failed fails all.
struct Loaders {
    rows: mpsc::Sender<String>,
    sessions: Vec<Arc<Mutex<Sess>>>,
    work: JoinSet<Result<()>>,
    pending: Arc<AtomicU64>,
    idle: Arc<tokio::sync::Notify>,
    loaded: Arc<AtomicU64>,
}

impl Loaders {
    async fn start(cx: &Cx, to: &Db, jobs: usize, schema: Option<&str>, aside: bool) -> Result<Loaders> {
        let (rows, queue) = mpsc::channel::<String>(WAITING);
        let queue = Arc::new(Mutex::new(queue));
        let (pending, idle, loaded) = (Arc::new(AtomicU64::new(0)), Arc::new(tokio::sync::Notify::new()), Arc::new(AtomicU64::new(0)));
        let (mut sessions, mut work) = (Vec::new(), JoinSet::new());
        for _ in 0..jobs.max(1) {
            let mut s = session(cx, to).await?;
            s.run("SET SESSION foreign_key_checks = 0, unique_checks = 0, innodb_lock_wait_timeout = 600").await?;
            if aside {
                s.run("SET SESSION sql_log_bin = 0").await?;
            }
            if let Some(schema) = schema {
                s.run(format!("USE {}", ident(schema))).await?;
            }
            let s = Arc::new(Mutex::new(s));
            sessions.push(s.clone());
            let (queue, pending, idle, loaded) = (queue.clone(), pending.clone(), idle.clone(), loaded.clone());
            work.spawn(async move {
                loop {
                    let next = queue.lock().await.recv().await;
                    let Some(sql) = next else { return Ok(()) };
                    loaded.fetch_add(s.lock().await.run(&sql).await?, Ordering::Relaxed);
                    if pending.fetch_sub(1, Ordering::AcqRel) == 1 {
                        idle.notify_one();
                    }
                }
            });
        }
        Ok(Loaders { rows, sessions, work, pending, idle, loaded })
    }

    /// The error of a session that has ended.
    async fn broken(&mut self) -> Error {
        while let Some(done) = self.work.join_next().await {
            match done {
                Ok(Err(e)) => return e,
                Ok(Ok(())) => {}
                Err(e) => return Error::internal(e.to_string()),
            }
        }
        Error::internal("no session loads")
    }

    async fn push(&mut self, sql: String) -> Result<()> {
        self.pending.fetch_add(1, Ordering::AcqRel);
        let rows = self.rows.clone();
        let ended = tokio::select! {
            sent = rows.send(sql) => match sent {
                Ok(()) => return Ok(()),
                // Nobody takes any: whoever was the last knows why.
                Err(_) => return Err(self.broken().await),
            },
            Some(done) = self.work.join_next() => done,
        };
        match ended {
            Ok(Err(e)) => Err(e),
            Ok(Ok(())) => Err(Error::internal("a session has ended")),
            Err(e) => Err(Error::internal(e.to_string())),
        }
    }

    /// Waits until all rows are loaded.
    async fn settle(&mut self) -> Result<()> {
        while self.pending.load(Ordering::Acquire) > 0 {
            let idle = self.idle.clone();
            tokio::select! {
                () = idle.notified() => {}
                Some(done) = self.work.join_next() => {
                    if let Ok(Err(e)) = done {
                        return Err(e);
                    }
                    return Err(self.broken().await);
                }
            }
        }
        Ok(())
    }

    async fn all(&mut self, sql: &str) -> Result<()> {
        self.settle().await?;
        for s in &self.sessions {
            s.lock().await.run(sql).await?;
        }
        Ok(())
    }

    async fn first(&mut self, sql: &str) -> Result<()> {
        self.settle().await?;
        match self.sessions.first() {
            Some(s) => s.lock().await.run(sql).await.map(drop),
            None => Ok(()),
        }
    }
}

async fn load(
    cx: &Cx,
    to: &Db,
    input: &mut (impl AsyncBufRead + Unpin + Send),
    jobs: usize,
    schema: Option<&str>,
    aside: bool,
    total: u64,
) -> Result<(Moved, Cutter)> {
    let mut loaders = Loaders::start(cx, to, jobs, schema, aside).await?;
    let (mut cutter, mut moved, mut line) = (Cutter::default(), Moved::default(), Vec::new());
    let mut shown = 0;
    loop {
        line.clear();
        let n = input.read_until(b'\n', &mut line).await.map_err(|e| failed(to, format!("the stream broke off: {e}")).retryable(true))?;
        if n == 0 {
            break;
        }
        moved.bytes += n as u64;
        if moved.bytes >= shown + (4 << 20) {
            shown = moved.bytes;
            cx.progress(
                format!("copying to {}, {} rows", to.name, loaders.loaded.load(Ordering::Relaxed)),
                shown,
                Some(total.max(shown)),
                "bytes",
            );
        }
        let done = match cutter.line(&line) {
            None => continue,
            Some(Piece::Rows(sql)) => loaders.push(sql).await,
            Some(Piece::Session(sql)) => loaders.all(&sql).await,
            Some(Piece::Other(sql)) => loaders.first(&sql).await,
        };
        done.map_err(|e| not_loaded(to, &e))?;
    }
    loaders.settle().await.map_err(|e| not_loaded(to, &e))?;
    moved.rows = loaders.loaded.load(Ordering::Relaxed);
    for s in std::mem::take(&mut loaders.sessions) {
        drop(s);
    }
    drop(loaders);
    Ok((moved, cutter))
}

/// Writes a dump into a file on the database's host; it appears whole or not at all.
pub async fn to_file(cx: &Cx, db: &Db, path: &str) -> Result<crate::db::driver::Copied> {
    let at = server(cx, db).await?;
    let schemas = {
        let mut s = session(cx, db).await?;
        let found = super::data::schemas(&mut s, db).await?;
        s.close().await;
        found
    };
    let names: Vec<String> = schemas.iter().map(|n| quote(n)).collect();
    let maria = at.flavour.maria;
    let args = format!(
        "--single-transaction --quick --routines --events --triggers --hex-blob --default-character-set=utf8mb4 --max-allowed-packet=1073741824 --databases {}",
        names.join(" ")
    );
    let tools: &[&str] = if maria { &["mariadb-dump", "mysqldump"] } else { &["mysqldump"] };
    let mut exec = host::tool(cx, &at, tools, &args)?;
    let to = quote(path);
    let temp = quote(&format!("{path}.runbook-{}", cx.action_id));
    // The tool replaces the shell that calls it, so it gets one of its own.
    exec.script = format!(
        "mkdir -p \"$(dirname -- {to})\" && umask 077 || exit 1\n( {}\n) >{temp} && tail -c 200 {temp} | grep -q '^-- Dump completed' && mv -f {temp} {to} && wc -c <{to} \
         || {{ s=$?; rm -f {temp}; exit $s; }}",
        exec.script
    );
    let done = ssh::connect(cx, &db.host).await?.exec_again(cx, exec).await?;
    if done.status != 0 {
        let said = crate::db::dump::said::shown(&String::from_utf8_lossy(&done.stderr)).join("; ");
        return Err(
            Error::new(Code::DB_COPY, format!("\"{}\" cannot be copied to {path}: status {}: {said}", db.name, done.status)).host(&db.host)
        );
    }
    let bytes = String::from_utf8_lossy(&done.stdout).trim().parse().unwrap_or(0);
    let rows = super::chunks::content(cx, db, false).await?.tables.values().map(|t| t.rows).sum();
    Ok(crate::db::driver::Copied { rows, bytes, changed: true })
}
