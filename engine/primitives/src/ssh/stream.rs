//! Streams to sockets that a host can reach: its unix sockets, and TCP ports as seen from it.
//!
//! OpenSSH counts these channels neither against `MaxSessions` nor as sessions. Each has a connection of its own all the same, since
//! a reader that is slow would hold up every other channel of the connection.

use std::fmt;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use runbook_core::Result;
use runbook_core::primitive::Cx;
use russh::{ChannelMsg, ChannelOpenFailure};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};

use super::exec::feed;
use super::transport::Lease;
use super::{Channel, Session};

/// A socket, as seen from a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A unix socket, by its absolute path.
    Unix(String),
    /// A TCP port.
    Tcp(String, u16),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Unix(path) => f.write_str(path),
            Place::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Place::Tcp(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// How the reading half of a [`Stream`] came to its end.
enum Ending {
    /// The other side ended it, unless this says otherwise. Dropping the sender ends the channel.
    Channel(Arc<OnceLock<String>>, #[allow(dead_code)] tokio::sync::oneshot::Sender<()>),
    /// As the command ended through which it goes.
    Command(BoxFuture<'static, Result<(i32, String)>>),
    /// Known already.
    Over,
}

/// Bytes to a socket and back. Ends with an error when the SSH connection is lost; dropping it closes the socket.
pub struct Stream {
    read: Box<dyn AsyncRead + Send + Unpin>,
    write: Box<dyn AsyncWrite + Send + Unpin>,
    ending: Ending,
}

impl Stream {
    /// A command's standard input and output as one stream.
    #[must_use]
    pub fn of_command(channel: Channel) -> Stream {
        Stream { read: channel.stdout, write: channel.stdin, ending: Ending::Command(channel.done) }
    }
}

fn lost(why: impl fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, why.to_string())
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.read).poll_read(cx, buf)?;
        if read.is_pending() || buf.filled().len() > before || buf.remaining() == 0 {
            return read.map(Ok);
        }
        let ended = match &mut self.ending {
            Ending::Over => return Poll::Ready(Ok(())),
            Ending::Channel(why, _) => why.get().map_or(Ok(()), |why| Err(lost(why))),
            Ending::Command(done) => match std::task::ready!(done.poll_unpin(cx)) {
                Ok((0, _)) => Ok(()),
                Ok((status, said)) => Err(lost(format!("the relay on the host ended with status {status}: {}", said.trim()))),
                Err(e) => Err(lost(e.message)),
            },
        };
        if matches!(self.ending, Ending::Command(_)) {
            self.ending = Ending::Over;
        }
        Poll::Ready(ended)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_shutdown(cx)
    }
}

/// Why a host did not connect a channel to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotOpened {
    /// It does not forward, or not there.
    Prohibited,
    /// It does not know this kind of channel.
    Unknown,
    /// It tried and failed, or does not forward (OpenSSH says the same in both cases for unix sockets).
    Failed,
}

impl Session {
    /// The name of the login.
    #[must_use]
    pub fn login(&self) -> &str {
        &self.slot.target.user
    }

    /// Connects to a socket as the login, by a channel of its own. `Ok(Err(…))` when the host answers that it does not.
    ///
    /// # Errors
    /// `RB0300`–`RB0303` when no connection can be made; `RB0305` when it is lost; `RB0307` when nothing answers at a TCP port.
    pub fn socket<'a>(&'a self, cx: &'a Cx, to: &'a Place) -> BoxFuture<'a, Result<std::result::Result<Stream, NotOpened>>> {
        Box::pin(async move {
            let lease = match self.slot.direct(cx, to).await? {
                Ok(lease) => lease,
                Err(ChannelOpenFailure::AdministrativelyProhibited) => return Ok(Err(NotOpened::Prohibited)),
                Err(ChannelOpenFailure::UnknownChannelType) => return Ok(Err(NotOpened::Unknown)),
                Err(_) => return Ok(Err(NotOpened::Failed)),
            };
            let (ours, theirs) = tokio::io::duplex(256 << 10);
            let (alive, dropped) = tokio::sync::oneshot::channel();
            let why = Arc::new(OnceLock::new());
            tokio::spawn(carry(lease, theirs, dropped, why.clone(), format!("the SSH connection to {} was lost", self.name())));
            let (read, write) = tokio::io::split(ours);
            Ok(Ok(Stream { read: Box::new(read), write: Box::new(write), ending: Ending::Channel(why, alive) }))
        })
    }
}

/// Carries bytes between a channel and its stream until either ends.
async fn carry(lease: Lease, stream: DuplexStream, dropped: tokio::sync::oneshot::Receiver<()>, why: Arc<OnceLock<String>>, lost: String) {
    let Lease { channel, permit } = lease;
    let (mut read, write) = channel.split();
    let (mut from_caller, mut to_caller) = tokio::io::split(stream);
    let feed = feed(&mut from_caller, &write, 64 << 10);
    // Whether the other side ended it.
    let pump = async {
        while let Some(message) = read.wait().await {
            match message {
                ChannelMsg::Data { data } => {
                    let dropped = to_caller.write_all(&data).await.is_err();
                    if dropped {
                        return true;
                    }
                }
                ChannelMsg::Eof => {
                    let _ = to_caller.shutdown().await;
                }
                ChannelMsg::Close => return true,
                _ => {}
            }
        }
        false
    };
    let in_order = {
        let (mut feed, mut pump, mut gone, mut dropped) = (pin!(feed), pin!(pump), pin!(permit.gone()), pin!(dropped));
        let mut fed = false;
        loop {
            tokio::select! {
                in_order = &mut pump => break in_order,
                () = &mut feed, if !fed => fed = true,
                () = &mut gone => break false,
                _ = &mut dropped => break true,
            }
        }
    };
    if !in_order {
        let _ = why.set(lost);
    }
    let _ = write.close().await;
}
