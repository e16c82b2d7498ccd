//! A session on a host that takes supervised commands, one after another: what a session costs (a channel, a process of the server, the
//! login's shell) is paid once and not for each command, and a command costs one round trip.
//!
//! It belongs to one run and stands in that run's folder on the host (see `station.sh`). A request is sent only after the session has
//! said that it stands there, so a request that the network keeps until the folder has been removed begins nothing.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use runbook_core::Result;
use runbook_core::primitive::{Cx, StreamKind};

use super::follow::{Follow, Report};
use super::script;
use crate::ssh::exec::{End, Ending, Gate, Line, Said, Stays, marker, next};
use crate::ssh::transport::aborted;
use crate::ssh::{Session, quote};

/// A command that takes longer than this is followed while it runs; until then its end is waited for.
const SOON: Duration = Duration::from_millis(150);
/// How long a session may take to begin before its input is ended, try by try.
const PATIENCE: [Duration; 4] = [Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(120), Duration::from_secs(600)];

/// A session that waits for a command.
pub(in crate::ssh) struct Station {
    /// The run that it belongs to.
    run: String,
    line: Line,
}

impl Stays for Station {
    fn line(&mut self) -> &mut Line {
        &mut self.line
    }
    fn into_line(self) -> Line {
        self.line
    }
}

/// What came of opening one.
pub(super) enum Opened {
    Ready(Station),
    /// The run has left nothing on the host.
    Nothing,
    /// The host does something else instead.
    Not(Report),
}

impl Station {
    /// Opens a session that stands in the run's folder, which is made when it is missing, or left alone with `look`.
    pub(super) async fn open(cx: &Cx, session: &Session, look: bool) -> Result<Opened> {
        for patience in PATIENCE {
            if let Some(opened) = Self::open_within(cx, session, look, patience).await? {
                return Ok(opened);
            }
        }
        Ok(Opened::Not(Report::Lost))
    }

    /// `None` when it said that it stands there, and too late to be of use.
    async fn open_within(cx: &Cx, session: &Session, look: bool, patience: Duration) -> Result<Option<Opened>> {
        let host = session.name();
        let line = Line::new(session.slot.channel(cx, false).await?);
        let mut station = Station { run: cx.run.to_string(), line };
        let marker = marker();
        let command = format!(
            "cd; exec sh -c {} runbook {marker} {} {} {} {}",
            quote(script::station()),
            quote(&cx.run),
            quote(script::run()),
            quote(script::reader()),
            if look { "look" } else { "''" },
        );
        if station.line.write.exec(true, command).await.is_err() {
            return Ok(Some(Opened::Not(Report::Lost)));
        }
        let (mut out, mut err) = (Gate::new(&marker), Gate::new(&marker));
        let mut ending = Ending::default();
        let mut late = false;
        let mut too_long = pin!(tokio::time::sleep(patience));
        loop {
            let said = tokio::select! {
                said = station.line.next(host, &mut ending) => said?,
                () = &mut too_long, if !late => {
                    // A login that does something else with what it is given (a forced command) may wait for its end.
                    late = true;
                    let _ = station.line.write.eof().await;
                    continue;
                }
                () = cx.cancel.cancelled() => return Err(aborted(host)),
            };
            let end = match said {
                Said::Piece(StreamKind::Stdout, piece) => {
                    out.pass(&piece);
                    None
                }
                Said::Piece(StreamKind::Stderr, piece) => {
                    err.pass(&piece);
                    None
                }
                Said::End(end) => Some(end),
            };
            return Ok(Some(match (out.word(), end) {
                (Some("hi"), _) if late => return Ok(None),
                (Some("hi"), None) if err.word().is_some() => Opened::Ready(station),
                (Some("none"), _) => Opened::Nothing,
                (Some(word), _) if word.starts_with("no ") => Opened::Not(Report::Refused(word.trim_start_matches("no ").to_string())),
                (None, Some(End::Status(s))) => Opened::Not(Report::Mute(s, [out.said(), err.said()].concat())),
                (_, Some(_)) => Opened::Not(Report::Lost),
                (_, None) => continue,
            }));
        }
    }

    /// The run that it belongs to.
    pub(in crate::ssh) fn run(&self) -> &str {
        &self.run
    }

    /// Sends a request and reads what is said about it until the command has ended, or the session has.
    pub(super) async fn work(&mut self, host: &str, request: Vec<u8>, follow: &mut Follow) -> Result<End> {
        let Line { read, write, permit } = &mut self.line;
        let mut feed = pin!(write.data_bytes(Bytes::from(request)).fuse());
        let (mut fed, mut asked) = (false, false);
        let mut ending = Ending::default();
        let mut soon = pin!(tokio::time::sleep(SOON));
        loop {
            tokio::select! {
                said = next(read, permit, host, &mut ending) => match said? {
                    Said::Piece(kind, piece) => {
                        follow.push(kind, &piece);
                        if follow.has_end() {
                            return Ok(End::Status(0));
                        }
                    }
                    // It has said that it stands there, so what ends it now says nothing about the login.
                    Said::End(End::Status(_)) if !follow.open() => return Ok(End::Lost),
                    Said::End(end) => return Ok(end),
                },
                _ = &mut feed, if !fed => fed = true,
                // Not before it has taken all of the request.
                () = &mut soon, if !asked && follow.open() => {
                    asked = true;
                    let _ = write.data_bytes(Bytes::from_static(b"go\n")).await;
                }
            }
        }
    }

    /// Removes what the run has left on the host, if this still is the run's folder; ends the session.
    pub(super) async fn clean(mut self, host: &str) -> Result<Report> {
        let marker = marker();
        let _ = self.line.write.data_bytes(Bytes::from(format!("clean {marker}\n"))).await;
        let mut out = Gate::new(&marker);
        let mut ending = Ending::default();
        loop {
            match self.line.next(host, &mut ending).await? {
                Said::Piece(StreamKind::Stdout, piece) => {
                    out.pass(&piece);
                }
                Said::Piece(..) => {}
                Said::End(_) => break,
            }
        }
        Ok(match out.word() {
            Some("clean") => Report::Ended { status: 0, raised: false, why: None },
            Some(word) => Report::Refused(word.trim_start_matches("no ").to_string()),
            None => Report::Lost,
        })
    }
}
