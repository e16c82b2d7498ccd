//! Runs a command line on a channel until it ends.

use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use runbook_core::Result;
use runbook_core::primitive::StreamKind;
use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::not_run;
use crate::ssh::transport::{Lease, Permit};

/// How long a command that has exited may stay silent before its streams are taken as ended: a daemon that it left behind may hold
/// them open for ever.
const LINGER: Duration = Duration::from_secs(5);

/// How a command over a channel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ssh) enum End {
    /// With this exit status.
    Status(i32),
    /// The channel ended without one: nobody knows.
    Lost,
    /// The server closed the channel without one, over a connection that lives; all that was said has come.
    Shut,
}

/// What a host says next on a channel.
pub(in crate::ssh) enum Said {
    /// A piece of output.
    Piece(StreamKind, Bytes),
    /// No more.
    End(End),
}

/// What is known of a channel's end before it has come.
#[derive(Default)]
pub(in crate::ssh) struct Ending {
    /// The command's status: what comes still comes soon.
    pub(super) status: Option<i32>,
}

/// Runs a command line on a channel until it ends, passing every piece of output to `on`.
pub(in crate::ssh) async fn drive(
    lease: Lease,
    command: String,
    stdin: Vec<u8>,
    host: &str,
    mut on: impl FnMut(StreamKind, &[u8]) + Send,
    signal: &mut tokio::sync::mpsc::Receiver<Sig>,
) -> Result<End> {
    let Lease { channel, permit } = lease;
    let (mut read, write) = channel.split();
    // Without waiting for the answer: the input follows at once, and a refusal comes as a message.
    if write.exec(true, command).await.is_err() {
        return Ok(End::Lost);
    }
    let mut feed = pin!(
        async {
            if !stdin.is_empty() && write.data_bytes(Bytes::from(stdin)).await.is_err() {
                return;
            }
            let _ = write.eof().await;
        }
        .fuse()
    );
    let mut fed = false;
    let mut ending = Ending::default();
    let end = loop {
        tokio::select! {
            said = next(&mut read, &permit, host, &mut ending) => match said? {
                Said::Piece(kind, piece) => on(kind, &piece),
                Said::End(end) => break end,
            },
            () = &mut feed, if !fed => fed = true,
            Some(sig) = signal.recv() => {
                let _ = write.signal(sig).await;
            }
        }
    };
    let _ = write.close().await;
    Ok(end)
}

/// What a host says next on a channel. May be dropped and called again.
///
/// # Errors
/// `RB0316` when it does not start the command.
pub(in crate::ssh) async fn next(read: &mut ChannelReadHalf, permit: &Permit, host: &str, ending: &mut Ending) -> Result<Said> {
    let mut gone = pin!(permit.gone());
    loop {
        let message = tokio::select! {
            m = read.wait() => m,
            () = &mut gone => return Ok(Said::End(End::Lost)),
            () = tokio::time::sleep(LINGER), if ending.status.is_some() => None,
        };
        match message {
            Some(ChannelMsg::Data { data }) => return Ok(Said::Piece(StreamKind::Stdout, data)),
            Some(ChannelMsg::ExtendedData { data, ext: 1 }) => return Ok(Said::Piece(StreamKind::Stderr, data)),
            Some(ChannelMsg::ExitStatus { exit_status }) => ending.status = Some(i32::try_from(exit_status).unwrap_or(255)),
            Some(ChannelMsg::ExitSignal { signal_name, .. }) => ending.status = Some(128 + number(&signal_name)),
            Some(ChannelMsg::Failure) => return Err(not_run(host, None, b"")),
            Some(ChannelMsg::Close) => return Ok(Said::End(ending.status.map_or(End::Shut, End::Status))),
            None => return Ok(Said::End(ending.status.map_or(End::Lost, End::Status))),
            Some(_) => {}
        }
    }
}

pub(super) fn number(sig: &Sig) -> i32 {
    match sig {
        Sig::HUP => 1,
        Sig::INT => 2,
        Sig::QUIT => 3,
        Sig::ILL => 4,
        Sig::ABRT => 6,
        Sig::FPE => 8,
        Sig::KILL => 9,
        Sig::USR1 => 10,
        Sig::SEGV => 11,
        Sig::PIPE => 13,
        Sig::ALRM => 14,
        Sig::TERM => 15,
        Sig::Custom(_) => 127,
    }
}

/// Sends what comes from `from`, in pieces of at most `piece` bytes, and its end. Ends when the channel takes no more.
pub(in crate::ssh) async fn feed(from: &mut (impl AsyncRead + Unpin), write: &ChannelWriteHalf<Msg>, piece: usize) {
    loop {
        let mut buffer = BytesMut::with_capacity(piece);
        match from.read_buf(&mut buffer).await {
            Ok(n) if n > 0 => {
                if write.data_bytes(buffer.freeze()).await.is_err() {
                    return;
                }
            }
            _ => {
                let _ = write.eof().await;
                return;
            }
        }
    }
}
