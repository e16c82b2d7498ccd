//! A job on a host that takes long: it runs apart from the connection, so that neither a lost connection nor the controller's death ends
//! it, and whoever asks again finds it.
//!
//! Its folder holds `lock` (held as long as any process of it lives), `id`, `pid`, `script` (no secrets), `slot` (its exit status),
//! `out`, `err`, and what the script keeps for itself.

use std::time::{Duration, Instant};

use runbook_core::cancel::Cancel;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::said::{self, KILLED};
use crate::ssh::{self, Exec, quote};

const START: &str = include_str!("start.sh");
const POLL: &str = include_str!("poll.sh");
const STOP: &str = include_str!("stop.sh");
/// What scripts of jobs begin with, after their settings.
pub(in crate::db) const COMMON: &str = include_str!("common.sh");

/// Makes a command of a script, as the user who is to run it.
pub(in crate::db) type As<'a> = dyn Fn(String) -> Exec + Send + Sync + 'a;

/// The status of a script whose failure may pass by itself (`later` of `common.sh`).
pub(in crate::db) const AGAIN: i32 = 75;

/// A job.
pub(in crate::db) struct Job<'a> {
    /// Where it runs.
    pub host: &'a str,
    /// As whom.
    pub who: &'a As<'a>,
    /// Its folder.
    pub dir: String,
    /// What it is for: a job of the same id is taken for this one.
    pub id: String,
    /// Shell function `counted`, which prints `rows N` and `bytes N`.
    pub counted: String,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::db) struct End {
    /// Its status; `None` when it was killed.
    pub status: Option<i32>,
    /// What it said at its end, as far as that may be shown.
    pub said: String,
    /// Room on its disk, in KiB.
    pub free: Option<u64>,
    /// Rows done.
    pub rows: u64,
    /// Bytes done.
    pub bytes: u64,
}

impl Job<'_> {
    fn head(&self) -> String {
        format!("j={}\nid={}\n", quote(&self.dir), quote(&self.id))
    }

    /// Begins the job, or finds the one that runs, and waits for its end. `show` is called with rows and bytes.
    ///
    /// # Errors
    /// `RB0322` for a tool that the host lacks; `RB0505` when another job is at work there; `RB0021` when cancelled, after it was ended.
    pub(in crate::db) async fn run(
        &self,
        cx: &Cx,
        script: &str,
        env: Vec<(String, String)>,
        show: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<End> {
        let begin =
            Exec { stdin: Some(format!("{}{script}", self.head()).into_bytes()), env, ..(self.who)(format!("{}{START}", self.head())) };
        let said = self.ask(cx, begin).await?;
        match said.split_once(' ').unwrap_or((&said, "")) {
            ("started", _) => {}
            ("busy", id) if id == self.id => {}
            ("tool", tool) => {
                return Err(Error::new(Code::HOST_TOOL_MISSING, format!("the host has no {tool}"))
                    .host(self.host)
                    .hint("install util-linux (flock, setsid) and an awk there"));
            }
            ("busy", id) => {
                return Err(Error::new(Code::DB_COPY, format!("another job ({id}) is at work in {}", self.dir))
                    .host(self.host)
                    .hint("wait for its end, or resume the run that began it")
                    .retryable(true));
            }
            _ => return Err(Error::internal(format!("a job on {} answers {said:?}", self.host))),
        }
        let mut wait = Duration::from_millis(40);
        loop {
            let asked = Instant::now();
            let poll = self.ask(cx, (self.who)(format!("{}wait={:.3}\n{}\n{POLL}", self.head(), wait.as_secs_f64(), self.counted)));
            let text = tokio::select! {
                text = poll => text,
                () = cx.cancel.cancelled() => Err(Error::new(Code::ABORTED, "stopped")),
            };
            let text = match text {
                Err(e) if e.code == Code::ABORTED => return Err(self.stopped(cx).await),
                text => text?,
            };
            let (running, end) = read(&text);
            show(end.rows, end.bytes);
            if !running {
                return Ok(End { said: cx.redactor.text(&end.said), ..end });
            }
            // Nothing, when the host has waited itself.
            if cx.sleep(wait.saturating_sub(asked.elapsed())).await.is_err() {
                return Err(self.stopped(cx).await);
            }
            wait = (wait * 3 / 2).min(Duration::from_secs(1));
        }
    }

    async fn ask(&self, cx: &Cx, exec: Exec) -> Result<String> {
        let done = ssh::connect(cx, self.host).await?.exec_again(cx, exec).await?;
        if done.status != 0 {
            let said = String::from_utf8_lossy(&done.stderr).trim().to_string();
            let what = format!("{} cannot be used: {said}", self.dir);
            if said.contains("No space left") {
                return Err(full(self.host, &what));
            }
            return Err(Error::new(Code::DB_COPY, what)
                .host(self.host)
                .hint("choose a folder that the user who dumps and loads may write to"));
        }
        Ok(String::from_utf8_lossy(&done.stdout).trim().to_string())
    }

    async fn stopped(&self, cx: &Cx) -> Error {
        let cx = Cx { cancel: Cancel::default(), ..cx.clone() };
        let end = async { ssh::connect(&cx, self.host).await?.exec(&cx, (self.who)(format!("{}{STOP}", self.head()))).await };
        let ended = tokio::time::timeout(Duration::from_secs(12), end).await.is_ok_and(|d| d.is_ok_and(|d| d.status == 0));
        let what = if ended {
            "stopped, and the work on the host with it"
        } else {
            "stopped; whether the work on the host has ended is not known"
        };
        Error::new(Code::ABORTED, what).host(self.host)
    }
}

/// The path of a folder for jobs that have none else.
pub(in crate::db) fn folder_path(name: &str) -> String {
    format!("/var/tmp/runbook-{name}")
}

/// Makes such a folder, for whoever runs the jobs alone; gives its path.
///
/// # Errors
/// `RB0505` when somebody else has put something there; those of the connection.
pub(in crate::db) async fn private_folder(cx: &Cx, host: &str, who: &As<'_>, name: &str) -> Result<String> {
    let dir = folder_path(name);
    let script =
        format!("umask 077; d={}; mkdir \"$d\" 2>/dev/null || {{ [ -d \"$d\" ] && [ ! -L \"$d\" ] && [ -O \"$d\" ]; }}", quote(&dir));
    let made = ssh::connect(cx, host).await?.exec_again(cx, who(script)).await?;
    if made.status != 0 {
        let why = format!("{dir} cannot be made, or is of somebody else");
        return Err(Error::new(Code::DB_COPY, why).host(host).hint("look at that folder"));
    }
    Ok(dir)
}

/// How many at once, unless it was said: as many as the host has processors.
///
/// # Errors
/// Those of the connection.
pub(in crate::db) async fn processors(cx: &Cx, host: &str, wanted: Option<usize>) -> Result<usize> {
    if let Some(n) = wanted {
        return Ok(n);
    }
    let done = ssh::connect(cx, host).await?.exec_again(cx, Exec::new("nproc 2>/dev/null || echo 4")).await?;
    Ok(String::from_utf8_lossy(&done.stdout).trim().parse::<usize>().unwrap_or(4).clamp(2, 16))
}

/// The error of a disk that is full.
pub(in crate::db) fn full(host: &str, what: &str) -> Error {
    Error::new(Code::DISK_SPACE, format!("no space is left: {what}")).host(host).hint("make room there, then resume").retryable(false)
}

impl End {
    /// What went wrong, when something did.
    ///
    /// # Errors
    /// `RB0407` when the disk is full, `RB0322` for a tool that is missing, else `RB0505` with what was said.
    pub(in crate::db) fn good(self, host: &str, what: &str) -> Result<End> {
        if self.status == Some(0) {
            return Ok(self);
        }
        let lines: Vec<&str> = self.said.lines().collect();
        let last = lines.get(lines.len().saturating_sub(4)..).unwrap_or_default().join("; ");
        if let Some(tool) = lines.iter().find_map(|l| l.strip_prefix("missing tool ")) {
            return Err(Error::new(Code::HOST_TOOL_MISSING, format!("{what} needs a tool on the host: {tool}"))
                .host(host)
                .hint("install it there, then resume"));
        }
        let lower = self.said.to_lowercase();
        if lower.contains("no space left") || lower.contains("disk full") || self.free.is_some_and(|k| k < 256) {
            return Err(full(host, &format!("{what} failed: {last}")).detail("said", &self.said));
        }
        let failed = |why: &str| Error::new(Code::DB_COPY, format!("{what} {why}")).host(host).detail("said", &self.said);
        // A status above 128 is a signal's: of the job itself, when it has not said what ended it.
        if self.status.is_none_or(|s| s > 128 && last.is_empty()) || lower.contains(KILLED) {
            return Err(failed("was ended: its processes were killed on the host")
                .retryable(true)
                .hint("resume goes on where it was; was memory short there, or the host going down?"));
        }
        // A server that stops in the middle may be back at once.
        let passes = [
            "lost connection",
            "gone away",
            "server closed the connection",
            "terminating connection",
            "deadlock",
            "lock wait timeout",
            "connection to server",
            "can't connect to",
            "shutdown in progress",
            "the database system is",
            "ssl syscall error",
        ];
        let why = match (self.status, last.is_empty()) {
            (Some(s), true) => format!(
                "failed: status {s}; what it said could have rows in it and stays on the host, in .job/err or .load-*/err of the dump's folder"
            ),
            _ => format!("failed: {last}"),
        };
        if self.status == Some(AGAIN) {
            return Err(failed(&why)
                .retryable(true)
                .hint("the host or its server is very busy: resume begins the dump again; at a quieter time, or with fewer jobs"));
        }
        if passes.iter().any(|p| lower.contains(p)) {
            return Err(failed(&why).retryable(true).hint("resume goes on where it was, once the server is there again"));
        }
        Err(failed(&why))
    }
}

/// Reads what a poll prints: whether it runs, and how it stands.
fn read(text: &str) -> (bool, End) {
    let mut end = End::default();
    let (state, said) = text.split_once("\nsaid\n").or_else(|| text.split_once("\nsaid")).unwrap_or((text, ""));
    let mut running = false;
    for line in state.lines() {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("rows", n) => end.rows = n.trim().parse().unwrap_or(0),
            ("bytes", n) => end.bytes = n.trim().parse().unwrap_or(0),
            ("status", n) => end.status = n.trim().parse().ok(),
            ("free", n) => end.free = n.trim().parse().ok(),
            ("running", _) => running = true,
            _ => {}
        }
    }
    end.said = said::shown(said).join("\n");
    (running, end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_poll_says() {
        assert_eq!(read("rows 5\nbytes 70\nrunning"), (true, End { rows: 5, bytes: 70, ..End::default() }));
        let (running, end) = read("rows 5\nstatus 1\nfree 0\nsaid\n(7,'a row')\nrunbook: the rows were not written");
        assert!(!running);
        assert_eq!((end.status, end.free, end.said.as_str()), (Some(1), Some(0), "the rows were not written"));
        let e = end.good("old", "the dump").unwrap_err();
        assert_eq!(e.code, Code::DISK_SPACE);
        let killed = "the dump was ended: its processes were killed on the host";
        for said in
            ["gone\nfree 5000000\nsaid", "status 143\nfree 5000000\nsaid\n", "status 1\nsaid\nrunbook: zstd was killed from outside (9)"]
        {
            let e = read(said).1.good("old", "the dump").unwrap_err();
            assert_eq!((e.message.as_str(), e.retryable), (killed, true));
            assert!(e.hint.unwrap().starts_with("resume goes on"));
        }
        let lost = "status 143\nsaid\nERROR 2013 (HY000) at line 70: Lost connection to server during query\nrunbook: loading d1.sql of the table t was not finished";
        let e = read(lost).1.good("old", "the load").unwrap_err();
        assert_eq!(
            e.message,
            "the load failed: ERROR 2013 (HY000): Lost connection to server during query; loading d1.sql of the table t was not finished"
        );
        assert!(e.retryable);
        let e =
            read("status 75\nsaid\nrunbook: the sessions of the dump have not begun at one moment").1.good("old", "the dump").unwrap_err();
        assert!(e.message == "the dump failed: the sessions of the dump have not begun at one moment" && e.retryable, "{e}");
        assert!(e.hint.unwrap().contains("fewer jobs"));
        let e = read("status 1\nsaid\n(7,'a row')").1.good("old", "the load").unwrap_err();
        assert!(e.message.starts_with("the load failed: status 1; what it said") && !e.retryable && !e.message.contains("a row"));
    }

    #[test]
    fn scripts_are_clean() {
        let mysql = format!("{COMMON}{}", include_str!("../mysql/dump.sh"));
        let load = format!("{COMMON}{}", include_str!("../mysql/load.sh"));
        let pg = format!("{COMMON}{}", include_str!("../postgres/dump.sh"));
        let restore = format!("{COMMON}{}", include_str!("../postgres/restore.sh"));
        let pg_load = format!("{restore}{}", include_str!("../postgres/load.sh"));
        let pull = format!("{restore}{}", include_str!("../postgres/pull.sh"));
        let base = format!("{COMMON}{}", include_str!("../postgres/base.sh"));
        // Settings come from outside; functions are called by name; statuses of pipes are looked at by files.
        runbook_testkit::shellcheck(
            &[START, POLL, STOP, &mysql, &load, &pg, &pg_load, &pull, &base],
            "SC2154,SC2034,SC2317,SC2046,SC2086,SC2012,SC2010,SC2015,SC2016",
        );
    }
}
