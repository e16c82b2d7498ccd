//! Commands without the supervisor: buffered with [`Session::exec`], as streams with [`Session::open`].

mod collector;
mod drive;
mod gate;
mod open;
mod wire;

use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use runbook_core::cancel::Cancel;
use runbook_core::primitive::{Cx, StreamKind};
use runbook_core::secret::Secret;
use runbook_core::{Code, Error, Result};
use russh::Sig;

pub(super) use collector::{Collector, KEEP};
pub(super) use drive::{End, drive};
use gate::Raised;
pub(super) use gate::find;
pub(super) use wire::{check, exports, marker};

use super::transport::aborted;
use super::{Done, Exec, Session};

impl Session {
    /// The host's inventory name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.slot.target.name
    }

    /// The secret for `sudo` on this host, when there is one.
    pub(super) fn sudo_password(&self, cx: &Cx, exec: &Exec) -> Result<Option<Secret>> {
        match &self.slot.target.sudo_password {
            Some(name) if exec.sudo => cx.secret(name).map(Some),
            _ => Ok(None),
        }
    }

    /// Runs a command that may be repeated (a read or a converge), without the supervisor. A non-zero status is not an error.
    ///
    /// # Errors
    /// `RB0300`–`RB0303` when the host cannot be reached, `RB0305` when the connection is lost before the command's end, `RB0312`
    /// after `timeout`, `RB0314` when `sudo` refuses, `RB0021` when cancelled.
    pub async fn exec(&self, cx: &Cx, exec: Exec) -> Result<Done> {
        let host = self.name().to_string();
        let password = self.sudo_password(cx, &exec)?;
        let wire = wire::wire(&exec, password.as_ref())?;
        let lease = self.slot.channel(cx, false).await?;
        let mut out = Collector::new(cx, StreamKind::Stdout, exec.live);
        let mut err = Collector::new(cx, StreamKind::Stderr, exec.live);
        let mut gate = Raised::new(exec.sudo, &wire.marker);
        let pid = gate.pid.clone();
        let (tx, mut rx) = tokio::sync::mpsc::channel(4);
        let ended = {
            let on = |kind: StreamKind, piece: &[u8]| match kind {
                StreamKind::Stdout => out.push(piece),
                StreamKind::Stderr => gate.pass(piece, |p| err.push(p)),
            };
            let mut run = pin!(drive(lease, wire.command, wire.stdin, &host, on, &mut rx));
            let limit = async {
                match exec.timeout {
                    Some(d) => tokio::time::sleep(d).await,
                    None => std::future::pending().await,
                }
            };
            let stop = tokio::select! {
                r = &mut run => Ok(r?),
                () = limit => Err(true),
                () = cx.cancel.cancelled() => Err(false),
            };
            match stop {
                Ok(end) => Ok(end),
                Err(timed_out) => {
                    let _ = tx.try_send(Sig::TERM);
                    let ending = tokio::time::timeout(Duration::from_secs(8), &mut run);
                    let _ = tokio::join!(self.end(cx, &pid, exec.sudo), ending);
                    Err(timed_out)
                }
            }
        };
        let raised = gate.finish(|p| err.push(p));
        let (stdout, stderr) = (out.finish(), err.finish());
        match ended {
            Ok(End::Status(_)) if !raised => Err(sudo_refused(&host, &stderr)),
            Ok(End::Status(status)) => Ok(Done { status, stdout, stderr }),
            Ok(End::Lost) => Err(Error::new(Code::SSH_LOST, "the connection was lost before the command ended")
                .host(&host)
                .retryable(true)
                .hint("the command may be repeated: run `runbook resume`")),
            Err(true) => Err(timed_out(&host, exec.timeout.unwrap_or_default(), &stderr)),
            Err(false) => Err(aborted(&host)),
        }
    }

    /// Ends a command by its process group, over another channel: OpenSSH takes no signals for the sessions of root.
    async fn end(&self, cx: &Cx, pid: &AtomicU32, sudo: bool) {
        let pid = pid.load(Ordering::Acquire);
        if pid < 2 {
            return;
        }
        let mut cx = cx.clone();
        // The end itself must not be stopped by the same cancellation.
        cx.cancel = Cancel::default();
        let script = format!(
            "g=-{pid}; kill -s TERM -- $g 2>/dev/null || {{ g={pid}; kill -s TERM $g; }}\n\
             i=0; while [ $i -lt 30 ] && kill -s 0 -- $g 2>/dev/null; do i=$((i+1)); sleep .1 2>/dev/null || {{ sleep 1; i=$((i+9)); }}; done\n\
             kill -s KILL -- $g 2>/dev/null"
        );
        let exec = Exec { sudo, ..Exec::new(script) };
        // What cannot be ended is left alone: the caller's error is the one that counts.
        let _ = tokio::time::timeout(Duration::from_secs(8), Box::pin(self.exec(&cx, exec))).await;
    }
}

pub(super) fn timed_out(host: &str, limit: Duration, stderr: &[u8]) -> Error {
    Error::new(Code::COMMAND_TIMEOUT, format!("the command took longer than {} and was ended", runbook_core::units::show_duration(limit)))
        .host(host)
        .hint("find out why it is slow, or give it a larger timeout")
        .detail("stderr", tail(stderr))
}

pub(super) fn sudo_refused(host: &str, stderr: &[u8]) -> Error {
    Error::new(Code::SUDO, format!("sudo refuses: {}", tail(stderr).trim()))
        .host(host)
        .hint("allow the login to use sudo without a password (NOPASSWD), or set sudo_password for this host to the name of a secret")
}

/// The last lines of an output, for messages.
pub(super) fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let mut out = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n");
    while out.len() > 4000 {
        out = out.split_off(out.char_indices().nth(out.chars().count() / 2).map_or(out.len(), |(i, _)| i));
    }
    out
}
