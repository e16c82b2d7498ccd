//! Commands that must not happen twice: a small POSIX-sh supervisor on the host claims a folder named by the action id, runs the
//! command apart from the connection, and keeps pid, boot id, output and exit status there (design, section 3.5).
//!
//! `~/.runbook/<run>/<action>/` holds: `script` (the command; never its environment or input), `out`, `err`, `pid` (process, boot id,
//! start time; making this file is the second claim, after which the command is known to have begun; or `void`: it never will), `status` (once it has ended),
//! `slot` (room for the status on a full disk), `deadline`, `ended` (why it was ended by us), `raised` (sudo let it in).
//!
//! Commands are begun through a [`Station`], a session that serves one after another; a lost one is asked for by a session of its own
//! (`attach.sh`).

pub(super) mod script;

mod clean;
mod follow;
mod station;

use std::pin::pin;
use std::time::Duration;

use futures::future::BoxFuture;
use runbook_core::cancel::Cancel;
use runbook_core::primitive::{Cx, Outcome, Reconciled};
use runbook_core::{Code, Error, Result};
use tokio::time::Instant;

pub(super) use clean::Clean;
use follow::{Deadline, Follow, Report};
use station::Opened;
pub(super) use station::Station;

use super::exec::spill::refer;
use super::exec::{End, Stays as _, drive, exports, marker, tail, timed_out};
use super::{Done, Exec, Session, connect, privilege, quote};

/// Runs a command that must not happen twice, under the supervisor, claimed by `cx.action_id`.
///
/// The connection may be lost as often as it likes: the command goes on, and its output and status are collected over a new one.
///
/// # Errors
/// `RB0300`–`RB0303` when the host cannot be reached before the command began; `RB0311` when it began and it cannot be known what
/// became of it; `RB0312` after `timeout`; `RB0314` when `sudo` refuses; `RB0315` when the claim cannot be made; `RB0316` when
/// the login runs no commands; `RB0021` when cancelled, after the command has been ended.
pub fn supervised<'a>(cx: &'a Cx, host: &'a str, exec: Exec) -> BoxFuture<'a, Result<Done>> {
    Box::pin(async move {
        super::exec::check(&exec)?;
        let session = connect(cx, host).await?;
        let mut job =
            Job { cx, host, follow: Follow::new(cx, exec.live, exec.whole), limit: exec.timeout, began: false, heard: false, own: false };
        let first = job.start(&session, &exec, "").await?;
        let claimed_before = first == Report::Taken;
        let known = loop_until_known(&mut job, first, Some(&exec)).await?;
        if claimed_before && !job.own && matches!(known, Known::Gone(_)) {
            // An earlier controller's command, of which the host cannot know more: being asked to act all the same means that the
            // operator has looked and wants it to run again.
            job.follow = Follow::new(cx, exec.live, exec.whole);
            let session = connect(cx, host).await?;
            let first = job.start(&session, &exec, "again").await?;
            return loop_until_known(&mut job, first, Some(&exec)).await?.into_done(host, job);
        }
        known.into_done(host, job)
    })
}

/// What became of a supervised command.
#[derive(Debug)]
pub enum Left {
    /// It never began, and cannot begin any more.
    NotStarted,
    /// It ended, with whatever status.
    Done(Done),
    /// It was not let in, or was ended by us.
    Failed(Error),
    /// It is gone, and nobody knows what it did.
    Unknown {
        /// What is known of it.
        known: String,
    },
}

/// Asks the host what became of the supervised command of `cx.action_id`: waits for it when it still runs, collects what it left when
/// it has ended. With `live`, its output is shown and kept whole.
///
/// # Errors
/// `RB0300`–`RB0303`, `RB0311` when the host cannot be reached.
pub fn left_by<'a>(cx: &'a Cx, host: &'a str, live: bool) -> BoxFuture<'a, Result<Left>> {
    Box::pin(async move {
        let session = connect(cx, host).await?;
        let mut job = Job { cx, host, follow: Follow::new(cx, live, live), limit: None, began: false, heard: false, own: false };
        let first = job.attach(&session).await?;
        Ok(match loop_until_known(&mut job, first, None).await? {
            Known::Absent => Left::NotStarted,
            known => match known.into_done(host, job) {
                Ok(done) => Left::Done(done),
                Err(e) if e.code == Code::COMMAND_DOUBT => {
                    let mut known = e.message;
                    if let Some(out) = e.details.get("output").filter(|o| !o.is_empty()) {
                        known.push_str(&format!("; its last output was:\n{out}"));
                    }
                    Left::Unknown { known }
                }
                Err(e) => Left::Failed(e),
            },
        })
    })
}

/// As [`left_by`]; `done` turns what it left into the outcome.
///
/// # Errors
/// As [`left_by`].
pub async fn reconcile_supervised(
    cx: &Cx,
    host: &str,
    live: bool,
    done: &(dyn Fn(Done) -> Result<Outcome> + Send + Sync),
) -> Result<Reconciled> {
    Ok(match left_by(cx, host, live).await? {
        Left::NotStarted => Reconciled::NotStarted,
        Left::Done(left) => done(left).map_or_else(Reconciled::Failed, Reconciled::Done),
        Left::Failed(e) => Reconciled::Failed(e),
        Left::Unknown { known } => Reconciled::Unknown { known },
    })
}

/// What is known for good.
enum Known {
    /// It never began, and cannot begin any more.
    Absent,
    /// It ended with a status.
    Ended { status: i32, raised: bool, why: Option<String> },
    /// It is gone without a status.
    Gone(String),
}

impl Known {
    fn into_done(self, host: &str, job: Job<'_>) -> Result<Done> {
        let limit = job.limit.unwrap_or_default();
        let sudo = job.follow.sudo;
        let (stdout, stderr, whole) = job.follow.finish();
        let e = match self {
            Known::Absent => Error::internal("a command is neither begun nor claimed").host(host),
            Known::Ended { why: Some(w), .. } if w == "timeout" => timed_out(host, limit, &stderr),
            Known::Ended { why: Some(_), .. } => super::transport::aborted(host),
            Known::Ended { raised: false, .. } if sudo => privilege::refused(host, &stderr),
            Known::Ended { status, .. } => return Ok(Done { status, stdout, stderr, whole }),
            Known::Gone(why) => {
                let what = match why.as_str() {
                    "boot" => "the host was started anew while the command ran",
                    "start" => "the command's process vanished while it was being started",
                    _ => "the command's process is gone and has left no exit status (it was killed, or the host ran out of memory)",
                };
                Error::new(Code::COMMAND_DOUBT, what)
                    .host(host)
                    .hint("look at what the command has done on the host, then answer: retry, mark as done, or roll back")
                    .detail("output", tail(&[stdout, stderr].concat()))
            }
        };
        Err(refer(e, &whole))
    }
}

/// One command on its way, over as many connections as it takes.
struct Job<'a> {
    cx: &'a Cx,
    host: &'a str,
    follow: Follow,
    limit: Option<Duration>,
    /// Whether the host may have begun: from then on nothing may be said to have failed without asking it.
    began: bool,
    /// Whether the supervisor has answered in any session.
    heard: bool,
    /// Whether this controller has set a void claim aside and begun anew.
    own: bool,
}

/// How often in a row a host may end a session with a status and without a word of the supervisor, before that is taken for its answer:
/// a server that is shutting down does so too.
const MUTE: u32 = 5;

/// Goes on until the host has said what became of the command. Starts it again only when the host says that it never began.
async fn loop_until_known(job: &mut Job<'_>, first: Report, exec: Option<&Exec>) -> Result<Known> {
    let mut report = first;
    let mut lost_since: Option<Instant> = None;
    let mut wait = Duration::from_millis(50);
    let mut mute = 0;
    loop {
        mute = if matches!(report, Report::Mute(..)) { mute + 1 } else { 0 };
        match report {
            Report::Ended { status, raised, why } => return Ok(Known::Ended { status, raised, why }),
            Report::Gone(why) => return Ok(Known::Gone(why)),
            Report::Refused(why) => {
                return Err(Error::new(Code::SUPERVISOR, format!("the command cannot be claimed: {why}"))
                    .host(job.host)
                    .hint("the login needs a home folder that it can write to, with space left, and a POSIX sh"));
            }
            Report::Mute(status, said) if mute >= MUTE || (status != 255 && status <= 128) => {
                let e = super::exec::not_run(job.host, Some(status), &job.cx.redactor.bytes(&said));
                // Once it has begun, what the login does now says nothing about it.
                return Err(if job.heard { in_doubt(job.host, &e) } else { e });
            }
            Report::Absent { .. } if exec.is_none() => return Ok(Known::Absent),
            Report::Absent { .. } | Report::Taken | Report::Lost | Report::Mute(..) => {}
        }
        if matches!(report, Report::Lost | Report::Mute(..)) {
            let since = *lost_since.get_or_insert_with(Instant::now);
            job.cx.sleep(wait).await.map_err(|e| if job.began { in_doubt(job.host, &e) } else { e })?;
            wait = (wait * 2).min(Duration::from_secs(5));
            let session = match connect(job.cx, job.host).await {
                Ok(s) => s,
                Err(e) => {
                    let patience = super::target::reconnect_within(&job.cx.env, job.host)?;
                    if e.retryable && since.elapsed() < patience {
                        continue;
                    }
                    return Err(if job.began { in_doubt(job.host, &e) } else { e });
                }
            };
            report = match exec {
                Some(exec) if !job.began => job.start(&session, exec, "").await?,
                _ => job.attach(&session).await.map_err(|e| in_doubt(job.host, &e))?,
            };
        } else {
            let session = connect(job.cx, job.host).await.map_err(|e| if job.began { in_doubt(job.host, &e) } else { e })?;
            report = match (&report, exec) {
                (Report::Absent { word }, Some(exec)) => {
                    job.own = true;
                    job.start(&session, exec, word).await?
                }
                _ => job.attach(&session).await.map_err(|e| in_doubt(job.host, &e))?,
            };
        }
        if !matches!(report, Report::Lost | Report::Mute(..)) {
            lost_since = None;
            wait = Duration::from_millis(50);
        }
    }
}

fn in_doubt(host: &str, cause: &Error) -> Error {
    Error::new(Code::COMMAND_DOUBT, format!("the connection was lost while the command ran and could not be made again: {}", cause.message))
        .host(host)
        .hint("the command may still run; once the host can be reached, `runbook resume` asks it what became of the command")
}

impl Job<'_> {
    /// Claims and starts the command, and follows it. `instead`: the claim that is set aside for it, as station.sh takes it.
    async fn start(&mut self, session: &Session, exec: &Exec, instead: &str) -> Result<Report> {
        self.follow.sudo = exec.sudo;
        if let Some(l) = self.limit {
            self.follow.due_in(l);
        }
        let stations = &session.slot.stations;
        let mut kept = stations.take(|s| s.run() == &*self.cx.run).await;
        loop {
            let fresh = kept.is_none();
            let mut station = match kept.take() {
                Some(s) => s,
                None => match Station::open(self.cx, session, false).await {
                    Ok(Opened::Ready(s)) => s,
                    Ok(Opened::Nothing) => return Ok(Report::Lost),
                    Ok(Opened::Not(report)) => return Ok(report),
                    Err(e) if self.began && e.retryable => return Ok(Report::Lost),
                    Err(e) => return Err(e),
                },
            };
            self.heard = true;
            let marker = marker();
            let request = request(self.cx, session, exec, self.limit, instead, &marker)?;
            self.follow.expect(&marker);
            // From here on the host may act on what was sent.
            self.began = true;
            let deadline = self.follow.deadline();
            let end = watched(self.cx, session, deadline, station.work(self.host, request, &mut self.follow)).await?;
            let report = self.follow.report(end);
            match report {
                // It may stand in a folder that somebody has removed. A claim that was not made can be made anew.
                Report::Refused(_) if !fresh => continue,
                Report::Ended { .. } | Report::Gone(_) if self.follow.has_end() => stations.keep(station),
                _ => drop(tokio::spawn(station.into_line().close())),
            }
            return Ok(report);
        }
    }

    /// Asks for the command's state, and follows it from what was already received.
    async fn attach(&mut self, session: &Session) -> Result<Report> {
        let marker = marker();
        let (out, err) = self.follow.offsets();
        let command = format!(
            "cd; exec sh -c {} runbook {marker} {} {} {out} {err}",
            quote(script::attach()),
            quote(&self.cx.run),
            quote(&self.cx.action_id.0)
        );
        let lease = match session.slot.channel(self.cx, false).await {
            Ok(l) => l,
            Err(e) if self.began && e.retryable => return Ok(Report::Lost),
            Err(e) => return Err(e),
        };
        self.began = true;
        self.follow.expect(&marker);
        let deadline = self.follow.deadline();
        let (_tx, mut rx) = tokio::sync::mpsc::channel(1);
        let follow = &mut self.follow;
        let run = drive(lease, command, Vec::new(), self.host, |k, p| follow.push(k, p), &mut rx);
        let end = watched(self.cx, session, deadline, run).await?;
        let report = self.follow.report(end);
        self.heard |= !matches!(report, Report::Lost | Report::Mute(..));
        Ok(report)
    }
}

/// A request to a station: lines of words, the script, what is for the command alone.
fn request(cx: &Cx, session: &Session, exec: &Exec, limit: Option<Duration>, instead: &str, said: &str) -> Result<Vec<u8>> {
    let raise = session.raise(cx, exec)?;
    let parts = privilege::parts(exec, raise.as_ref());
    // Not the marker of what is said: this one shows in `ps`.
    let marker = marker();
    let cwd = exec.cwd.as_deref().map(|c| format!("cd {} || exit 126\n", quote(c))).unwrap_or_default();
    let script = format!("{cwd}{}", exec.script);
    let mut private = parts.secret.into_bytes();
    if exec.sudo || exec.tty || !exec.env.is_empty() || exec.stdin.is_some() {
        // Another user cannot read the claim: the script goes with the rest.
        let own = if parts.raise.is_empty() { String::new() } else { format!("{script}\n") };
        private.extend_from_slice(format!("{marker}\n{}{own}{marker}\n", exports(&exec.env)?).as_bytes());
        private.extend_from_slice(exec.stdin.as_deref().unwrap_or_default());
    }
    let limit = limit.map_or(0, |l| l.as_secs().max(1)).to_string();
    let length = private.len().to_string();
    let words = [&cx.action_id.0, &marker, &length, &parts.mode, &limit, instead, &parts.raise, parts.tty];
    if words.iter().any(|w| w.contains('\n')) {
        return Err(Error::internal("a request to the supervisor has a word of more than one line").host(session.name()));
    }
    let mut request = format!("run {said}\n{}\n{script}\n{marker}\n", words.join("\n")).into_bytes();
    request.append(&mut private);
    Ok(request)
}

/// One session with the supervisor. Ends the command when its time is up or the operator stops.
async fn watched(cx: &Cx, session: &Session, mut deadline: Deadline, run: impl Future<Output = Result<End>>) -> Result<End> {
    let mut run = pin!(run);
    let why = tokio::select! {
        r = &mut run => return r,
        () = deadline.wait() => "timeout",
        () = cx.cancel.cancelled() => "stopped",
    };
    let ending = tokio::time::timeout(Duration::from_secs(20), &mut run);
    let (stopped, ended) = tokio::join!(stop(cx, session, why), ending);
    stopped.map_err(|e| in_doubt(session.name(), &e))?;
    ended.unwrap_or(Ok(End::Lost))
}

/// Ends the supervised command of `cx.action_id`, with everything in its process group.
async fn stop(cx: &Cx, session: &Session, why: &str) -> Result<()> {
    let mut cx = cx.clone();
    // The stop itself must not be stopped by the same cancellation.
    cx.cancel = Cancel::default();
    let script = format!("set -- {} {} {why}\n{}", quote(&cx.run), quote(&cx.action_id.0), script::stop());
    session.exec(&cx, Exec { timeout: Some(Duration::from_secs(15)), ..Exec::new(script) }).await.map(|_| ())
}

#[cfg(test)]
mod tests;
