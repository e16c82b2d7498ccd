//! Commands as streams, for data of any size.

use std::pin::pin;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use russh::{ChannelMsg, Sig};
use tokio::io::AsyncWriteExt as _;

use super::collector::Tail;
use super::drive::{feed, number};
use super::wire::wire;
use super::{Begun, Gates, not_run, timed_out};
use crate::ssh::transport::{Lease, aborted};
use crate::ssh::{Channel, Exec, Session};

impl Session {
    /// Starts a command as streams, for data of any size. Nothing is kept in memory but the end of standard error.
    ///
    /// # Errors
    /// As [`Session::exec`]; what happens later comes from [`Channel::done`].
    pub fn open<'a>(&'a self, cx: &'a Cx, exec: Exec) -> BoxFuture<'a, Result<Channel>> {
        Box::pin(async move {
            let host = self.name().to_string();
            let raise = self.raise(cx, &exec)?;
            let wire = wire(&exec, raise.as_ref())?;
            let Lease { channel, permit } = self.slot.channel(cx, true).await?;
            let (mut read, write) = channel.split();
            let lost = {
                let host = host.clone();
                move || Error::new(Code::SSH_LOST, "the connection was lost before the command ended").host(&host).retryable(true)
            };
            write.exec(true, wire.command).await.map_err(|_| lost())?;
            let (stdin, mut from_caller) = tokio::io::duplex(256 << 10);
            let (mut to_caller, stdout) = tokio::io::duplex(256 << 10);
            let (mut tx, rx) = tokio::sync::oneshot::channel::<Result<(i32, String)>>();
            let cx = cx.clone();
            let begun = Begun::default();
            begun.mark(&wire.marker);
            let mut gates = Gates::new(&wire.marker, &begun);
            let session = self.clone();
            let lost_later = lost.clone();
            tokio::spawn(async move {
                let _permit = permit;
                let mut errors = Tail::new(&cx, exec.live);
                let mut status = None;
                let input = async {
                    if write.data_bytes(Bytes::from(wire.stdin)).await.is_ok() {
                        feed(&mut from_caller, &write, 128 << 10).await;
                    }
                };
                let pump = async {
                    let mut listening = true;
                    let mut refused = false;
                    while let Some(message) = read.wait().await {
                        match message {
                            ChannelMsg::Data { data } if listening => listening = to_caller.write_all(&gates.out.pass(&data)).await.is_ok(),
                            ChannelMsg::ExtendedData { data, ext: 1 } => errors.push(&gates.stderr(&data)),
                            ChannelMsg::ExitStatus { exit_status } => status = Some(i32::try_from(exit_status).unwrap_or(255)),
                            ChannelMsg::ExitSignal { signal_name, .. } => status = Some(128 + number(&signal_name)),
                            ChannelMsg::Failure => {
                                refused = true;
                                break;
                            }
                            ChannelMsg::Eof => {
                                let _ = to_caller.shutdown().await;
                            }
                            ChannelMsg::Close => break,
                            _ => {}
                        }
                    }
                    refused
                };
                let limit = async {
                    match exec.timeout {
                        Some(d) => tokio::time::sleep(d).await,
                        None => std::future::pending().await,
                    }
                };
                let mut failed = None;
                {
                    let (mut feed, mut pump, mut limit) = (pin!(input.fuse()), pin!(pump), pin!(limit));
                    let mut fed = false;
                    loop {
                        tokio::select! {
                            refused = &mut pump => {
                                if refused {
                                    failed = Some(not_run(&host, None, b""));
                                }
                                break;
                            }
                            _ = &mut feed, if !fed => fed = true,
                            () = &mut limit => {
                                failed = Some(timed_out(&host, exec.timeout.unwrap_or_default(), b""));
                                break;
                            }
                            () = cx.cancel.cancelled() => {
                                failed = Some(aborted(&host));
                                break;
                            }
                            () = tx.closed() => {
                                failed = Some(aborted(&host));
                                break;
                            }
                        }
                    }
                }
                if failed.is_some() {
                    session.end(&cx, &begun, &exec, false).await;
                    let _ = write.signal(Sig::TERM).await;
                }
                let _ = write.close().await;
                drop(to_caller);
                let stderr = errors.finish();
                let _ = tx.send(match (failed, status) {
                    (Some(e), _) => Err(e),
                    (None, Some(status)) if !gates.open() => Err(gates.refused(&cx, &host, exec.sudo, status)),
                    (None, Some(status)) => Ok((status, stderr)),
                    (None, None) => Err(lost_later()),
                });
            });
            let done = async move { rx.await.unwrap_or_else(|_| Err(lost())) }.boxed();
            Ok(Channel { stdin: Box::new(stdin), stdout: Box::new(stdout), done })
        })
    }
}
