//! A TCP connection whose answers are acknowledged at once.
//!
//! `sshd` leaves Nagle's algorithm on for everything but terminals: the second of two short packets waits until the first is acknowledged. A client that
//! has nothing to send acknowledges 40 ms later, to spare a packet. So each login, and many a command, would take 40 ms more than it needs.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The connection.
pub(super) struct Prompt(pub TcpStream);

impl AsyncRead for Prompt {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.0).poll_read(cx, buf);
        // Only when all that has come is read: in the middle of a stream the system acknowledges often enough. It forgets the wish with the next packet that
        // is sent, so it is told each time. Where it does not know it, all is as before.
        #[cfg(target_os = "linux")]
        if read.is_pending() {
            let _ = self.0.set_quickack(true);
        }
        read
    }
}

impl AsyncWrite for Prompt {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use futures::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn whoever_waits_acknowledges_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, server) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (mut client, mut server) = (Prompt(client.unwrap()), server.unwrap().0);
        let mut byte = [0];
        // Question and answer in turns: the system begins to hold acknowledgements back, to send them with the next question.
        for _ in 0..8 {
            client.write_all(b"?").await.unwrap();
            server.read_exact(&mut byte).await.unwrap();
            server.write_all(b"!").await.unwrap();
            server.readable().now_or_never();
            // Read behind the wrapper's back.
            client.0.read_exact(&mut byte).await.unwrap();
        }
        client.write_all(b"?").await.unwrap();
        assert!(!client.0.quickack().unwrap(), "the system holds them back");
        assert!(client.read(&mut byte).now_or_never().is_none());
        assert!(client.0.quickack().unwrap());
    }
}
