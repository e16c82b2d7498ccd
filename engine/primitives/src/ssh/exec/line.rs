//! A session of a host that stays open and serves one command after another.

use std::time::Duration;

use futures::FutureExt as _;
use parking_lot::Mutex;
use runbook_core::Result;
use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};

use super::drive::{Ending, Said, next};
use crate::ssh::transport::{Lease, Permit};

/// How long a session may take to end by itself.
const FAREWELL: Duration = Duration::from_millis(500);

/// A session that stays open, with its place on its connection.
pub(in crate::ssh) struct Line {
    pub read: ChannelReadHalf,
    pub write: ChannelWriteHalf<Msg>,
    pub permit: Permit,
}

impl Line {
    pub(in crate::ssh) fn new(lease: Lease) -> Line {
        let Lease { channel, permit } = lease;
        let (read, write) = channel.split();
        Line { read, write, permit }
    }

    /// Whether it can serve a command still: it has said nothing more, and its connection answers.
    pub(in crate::ssh) async fn serves(&mut self) -> bool {
        while let Some(message) = self.read.wait().now_or_never() {
            if !matches!(message, Some(ChannelMsg::Success | ChannelMsg::WindowAdjusted { .. })) {
                return false;
            }
        }
        self.permit.answers().await
    }

    /// What the host says next.
    ///
    /// # Errors
    /// `RB0316` when it does not start the command.
    pub(in crate::ssh) async fn next(&mut self, host: &str, ending: &mut Ending) -> Result<Said> {
        next(&mut self.read, &self.permit, host, ending).await
    }

    /// Ends it, and waits a moment for its end: until then it counts for the server's `MaxSessions`.
    pub(in crate::ssh) async fn close(self) {
        let Line { read, write, permit } = self;
        farewell(read, write).await;
        drop(permit);
    }
}

/// What has such a session.
pub(in crate::ssh) trait Stays: Send + 'static {
    /// Its session.
    fn line(&mut self) -> &mut Line;
    /// Its session, which nobody else has any more.
    fn into_line(self) -> Line;
}

/// As many of a kind stay open at a host while they have nothing to do.
const KEPT: usize = 2;

/// Those of one kind that have nothing to do.
pub(in crate::ssh) struct Kept<T>(Mutex<Vec<T>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Kept(Mutex::default())
    }
}

impl<T: Stays> Kept<T> {
    /// Takes one out that can serve a command.
    pub(in crate::ssh) async fn take(&self, which: impl Fn(&T) -> bool) -> Option<T> {
        loop {
            let mut found = {
                let mut all = self.0.lock();
                let at = all.iter().rposition(&which)?;
                all.swap_remove(at)
            };
            if found.line().serves().await {
                return Some(found);
            }
        }
    }

    /// Keeps one for the next command.
    pub(in crate::ssh) fn keep(&self, one: T) {
        let mut all = self.0.lock();
        all.push(one);
        if all.len() > KEPT {
            tokio::spawn(all.remove(0).into_line().close());
        }
    }

    /// Whether there is none.
    pub(in crate::ssh) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// Ends them; true when there was one.
    pub(in crate::ssh) async fn close(&self, which: impl Fn(&T) -> bool) -> bool {
        let gone: Vec<T> = self.0.lock().extract_if(.., |t| which(t)).collect();
        let any = !gone.is_empty();
        futures::future::join_all(gone.into_iter().map(|t| t.into_line().close())).await;
        any
    }

    /// Gives their places on their connections back at once, and ends them behind that; true when there was one.
    pub(in crate::ssh) fn let_go(&self) -> bool {
        let gone = std::mem::take(&mut *self.0.lock());
        let any = !gone.is_empty();
        for Line { read, write, permit } in gone.into_iter().map(T::into_line) {
            drop(permit);
            tokio::spawn(farewell(read, write));
        }
        any
    }
}

async fn farewell(mut read: ChannelReadHalf, write: ChannelWriteHalf<Msg>) {
    let _ = write.eof().await;
    let end = async { while !matches!(read.wait().await, None | Some(ChannelMsg::Close)) {} };
    let _ = tokio::time::timeout(FAREWELL, end).await;
    let _ = write.close().await;
}
