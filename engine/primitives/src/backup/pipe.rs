//! From one running command into another, with bounded memory.

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::ssh::Channel;

/// How much is passed on at once.
pub const PIECE: usize = 128 << 10;
/// How much of what the receiver says is kept.
const KEEP: usize = 64 << 10;

/// How both ends ended.
pub struct Piped {
    /// Status and standard error of the sender; `None` when the receiver ended first and nobody waited for it.
    pub from: Option<(i32, String)>,
    /// Status and standard error of the receiver.
    pub to: (i32, String),
    /// The beginning of the receiver's standard output.
    pub said: String,
}

/// Reads a stream to its end and keeps its beginning.
pub async fn keep(mut stream: Box<dyn AsyncRead + Send + Unpin>) -> String {
    let mut kept = Vec::new();
    let mut buffer = vec![0; 8192];
    while let Ok(n) = stream.read(&mut buffer).await {
        if n == 0 {
            break;
        }
        let take = n.min(KEEP.saturating_sub(kept.len()));
        kept.extend_from_slice(buffer.get(..take).unwrap_or_default());
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// Passes everything on.
///
/// # Errors
/// What the connections say; `RB0021` when cancelled, which ends both commands.
pub async fn pipe(cx: &Cx, what: &str, total: Option<u64>, from: Channel, to: Channel) -> Result<Piped> {
    let Channel { stdin: _closed, mut stdout, done: sender } = from;
    let Channel { mut stdin, stdout: answers, done: receiver } = to;
    let copy = async move {
        let mut buffer = vec![0; PIECE];
        let mut passed = 0u64;
        loop {
            let n = match stdout.read(&mut buffer).await {
                Ok(0) => break,
                Ok(n) => n,
                // The reason comes from the sender's end.
                Err(_) => break,
            };
            let piece = buffer.get(..n).unwrap_or_default();
            if stdin.write_all(piece).await.is_err() {
                return Ok(None);
            }
            passed += n as u64;
            cx.progress(what, passed, total, "bytes");
        }
        let _ = stdin.shutdown().await;
        drop(stdin);
        Ok(Some(sender.await?))
    };
    let all = async { tokio::join!(copy, keep(answers), receiver) };
    tokio::select! {
        (from, said, to) = all => {
            let from: Result<Option<(i32, String)>> = from;
            Ok(Piped { from: from?, to: to?, said })
        }
        () = cx.cancel.cancelled() => Err(Error::new(Code::ABORTED, format!("stopped while {what}"))),
    }
}
