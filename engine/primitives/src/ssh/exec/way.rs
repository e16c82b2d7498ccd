//! How a command goes to its host: in a session of its own, or in a shell that stays.

use runbook_core::Result;
use runbook_core::primitive::{Cx, StreamKind};
use russh::Sig;

use super::line::Stays as _;
use super::shell::{Request, Shell};
use super::wire::{Wire, wire};
use super::{End, drive};
use crate::ssh::transport::Lease;
use crate::ssh::{Exec, Session};

/// How a command goes to the host.
pub(super) enum Way {
    /// In a session of its own.
    Own(Lease, Wire),
    /// In a shell that stays.
    Shell(Box<Shell>, Request),
}

impl Way {
    /// What the command is known by on the host, in a command line.
    pub(super) fn known_by(&self) -> &str {
        match self {
            Way::Own(_, wire) => &wire.marker,
            Way::Shell(shell, _) => &shell.marker,
        }
    }

    /// What it says before the command.
    pub(super) fn marker(&self) -> &str {
        match self {
            Way::Own(_, wire) => &wire.marker,
            Way::Shell(_, request) => &request.marker,
        }
    }

    /// Whether other commands have gone that way.
    pub(super) fn is_used(&self) -> bool {
        matches!(self, Way::Shell(shell, _) if shell.used)
    }

    /// Runs it until it ends. The shell stays when it is free then.
    pub(super) async fn go(
        self,
        host: &str,
        on: impl FnMut(StreamKind, &[u8]) + Send,
        signal: &mut tokio::sync::mpsc::Receiver<Sig>,
    ) -> Result<(End, Option<Box<Shell>>)> {
        match self {
            Way::Own(lease, wire) => Ok((drive(lease, wire.command, wire.stdin, host, on, signal).await?, None)),
            Way::Shell(mut shell, request) => Ok((shell.work(request, host, on, signal).await?, Some(shell))),
        }
    }
}

impl Session {
    /// The way of a command: a shell that stays, where it may be repeated and needs nothing that such a shell does not have.
    pub(super) async fn way(&self, cx: &Cx, exec: &Exec, again: bool) -> Result<Way> {
        if again && let Some(request) = Request::of(exec)? {
            let shell = match self.slot.shells.take(|_| true).await {
                Some(shell) => shell,
                None => Shell::open(cx, self).await?,
            };
            return Ok(Way::Shell(Box::new(shell), request));
        }
        let raise = self.raise(cx, exec)?;
        let wire = wire(exec, raise.as_ref())?;
        Ok(Way::Own(self.slot.channel(cx, false).await?, wire))
    }

    pub(super) fn keep(&self, shell: Option<Box<Shell>>) {
        match shell {
            Some(shell) if shell.free => self.slot.shells.keep(*shell),
            Some(shell) => drop(tokio::spawn(shell.into_line().close())),
            None => {}
        }
    }
}
