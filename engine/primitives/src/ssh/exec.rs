//! Commands without the supervisor: buffered with [`Session::exec`], as streams with [`Session::open`].

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use runbook_core::cancel::Cancel;
use runbook_core::primitive::{Cx, StreamKind};
use runbook_core::secret::{Secret, Stream};
use runbook_core::{Code, Error, Result};
use russh::{ChannelMsg, Sig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::supervisor::script;
use super::transport::{Lease, aborted};
use super::{Channel, Done, Exec, Session, quote};

/// How much of each stream of a buffered command is kept.
pub(super) const KEEP: usize = 4 << 20;
/// How long a command that has exited may stay silent before its streams are taken as ended: a daemon that it left behind may hold
/// them open for ever.
const LINGER: Duration = Duration::from_secs(5);

/// A command as it goes over the wire.
pub(super) struct Wire {
    pub command: String,
    pub stdin: Vec<u8>,
    /// The line that separates the parts of `stdin`.
    pub marker: String,
}

/// A line that nothing else contains.
pub(super) fn marker() -> String {
    format!("rb{:032x}", rand::random::<u128>())
}

/// The environment as shell text; goes by stdin only.
pub(super) fn exports(env: &[(String, String)]) -> Result<String> {
    let mut out = String::new();
    for (k, v) in env {
        let mut chars = k.chars();
        let first = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        if !first || !chars.all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(Error::new(Code::COMMAND_BAD, format!("\"{k}\" cannot be the name of an environment variable"))
                .hint("names have letters, digits and _ and do not begin with a digit"));
        }
        if v.contains('\0') {
            return Err(Error::new(Code::COMMAND_BAD, format!("the value of the environment variable {k} contains a NUL byte")));
        }
        out.push_str(&format!("export {k}={}\n", quote(v)));
    }
    Ok(out)
}

/// Refuses what no shell can take.
pub(super) fn check(exec: &Exec) -> Result<()> {
    if exec.script.contains('\0') {
        return Err(Error::new(Code::COMMAND_BAD, "the command contains a NUL byte").hint("pass binary data by stdin"));
    }
    Ok(())
}

/// Builds the command line and what goes before its standard input.
pub(super) fn wire(exec: &Exec, sudo_password: Option<&Secret>) -> Result<Wire> {
    check(exec)?;
    let marker = marker();
    let mut stdin = String::new();
    let sudo = match (exec.sudo, sudo_password) {
        (false, _) => "",
        (true, None) => "sudo -n -- ",
        (true, Some(p)) => {
            stdin.push_str(p.reveal());
            stdin.push('\n');
            "sudo -k -S -p '' -- "
        }
    };
    stdin.push_str(&format!("{marker}\n{}{}\n{marker}\n", exports(&exec.env)?, exec.script));
    let mut stdin = stdin.into_bytes();
    if let Some(data) = &exec.stdin {
        stdin.extend_from_slice(data);
    }
    let command = format!(
        "cd; exec {sudo}sh -c {} sh {marker} {} '' '{}'",
        quote(script::reader()),
        quote(exec.cwd.as_deref().unwrap_or("")),
        if exec.sudo { "1" } else { "" }
    );
    Ok(Wire { command, stdin, marker })
}

/// How a command over a channel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// With this exit status.
    Status(i32),
    /// The channel ended without one: nobody knows.
    Lost,
}

/// Runs a command line on a channel until it ends, passing every piece of output to `on`.
pub(super) async fn drive(
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
    let mut status = None;
    loop {
        let quiet = if status.is_some() { LINGER } else { Duration::from_secs(3) };
        tokio::select! {
            message = read.wait() => match message {
                Some(ChannelMsg::Data { data }) => on(StreamKind::Stdout, &data),
                Some(ChannelMsg::ExtendedData { data, ext: 1 }) => on(StreamKind::Stderr, &data),
                Some(ChannelMsg::ExitStatus { exit_status }) => status = Some(i32::try_from(exit_status).unwrap_or(255)),
                Some(ChannelMsg::ExitSignal { signal_name, .. }) => status = Some(128 + number(&signal_name)),
                Some(ChannelMsg::Failure) => {
                    return Err(Error::new(Code::SSH_CONNECT, format!("{host} does not let this login run commands"))
                        .host(host)
                        .hint("check the login's shell and ForceCommand on the host"));
                }
                Some(ChannelMsg::Close) | None => break,
                Some(_) => {}
            },
            () = &mut feed, if !fed => fed = true,
            Some(sig) = signal.recv() => {
                let _ = write.signal(sig).await;
            }
            () = tokio::time::sleep(quiet) => {
                if status.is_some() {
                    break;
                }
                if permit.is_closed() {
                    return Ok(End::Lost);
                }
            }
        }
    }
    let _ = write.close().await;
    Ok(status.map_or(End::Lost, End::Status))
}

fn number(sig: &Sig) -> i32 {
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

/// Strikes secrets from one stream, passes it on live and keeps its beginning.
pub(super) struct Collector {
    cx: Cx,
    kind: StreamKind,
    live: bool,
    stream: Stream,
    kept: Vec<u8>,
    cut: usize,
}

impl Collector {
    pub(super) fn new(cx: &Cx, kind: StreamKind, live: bool) -> Self {
        Collector { cx: cx.clone(), kind, live, stream: cx.redactor.stream(), kept: Vec::new(), cut: 0 }
    }

    pub(super) fn push(&mut self, piece: &[u8]) {
        let clean = self.stream.push(piece);
        self.keep(&clean);
    }

    fn keep(&mut self, clean: &[u8]) {
        if self.live {
            self.cx.output(self.kind, clean);
        }
        let take = clean.len().min(KEEP.saturating_sub(self.kept.len()));
        self.kept.extend_from_slice(clean.get(..take).unwrap_or_default());
        self.cut += clean.len() - take;
    }

    /// What was kept so far, for a message.
    pub(super) fn so_far(&self) -> &[u8] {
        &self.kept
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        let rest = self.stream.finish();
        self.keep(&rest);
        if self.cut > 0 {
            self.kept.extend_from_slice(format!("\n[output cut: {} bytes more]\n", self.cut).as_bytes());
        }
        self.kept
    }
}

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
        let wire = wire(&exec, password.as_ref())?;
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

    /// Starts a command as streams, for data of any size. Nothing is kept in memory but the end of standard error.
    ///
    /// # Errors
    /// As [`Session::exec`]; what happens later comes from [`Channel::done`].
    pub async fn open(&self, cx: &Cx, exec: Exec) -> Result<Channel> {
        let host = self.name().to_string();
        let password = self.sudo_password(cx, &exec)?;
        let wire = wire(&exec, password.as_ref())?;
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
        let mut gate = Raised::new(exec.sudo, &wire.marker);
        let pid = gate.pid.clone();
        let session = self.clone();
        let lost_later = lost.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let mut errors = Tail::new(&cx, exec.live);
            let mut status = None;
            let feed = async {
                write.data_bytes(Bytes::from(wire.stdin)).await.ok()?;
                loop {
                    let mut buffer = bytes::BytesMut::with_capacity(128 << 10);
                    let n = from_caller.read_buf(&mut buffer).await.ok()?;
                    if n == 0 {
                        write.eof().await.ok()?;
                        return Some(());
                    }
                    write.data_bytes(buffer.freeze()).await.ok()?;
                }
            };
            let pump = async {
                let mut listening = true;
                let mut refused = false;
                while let Some(message) = read.wait().await {
                    match message {
                        ChannelMsg::Data { data } if listening => listening = to_caller.write_all(&data).await.is_ok(),
                        ChannelMsg::ExtendedData { data, ext: 1 } => gate.pass(&data, |p| errors.push(p)),
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
                let (mut feed, mut pump, mut limit) = (pin!(feed.fuse()), pin!(pump), pin!(limit));
                let mut fed = false;
                loop {
                    tokio::select! {
                        refused = &mut pump => {
                            if refused {
                                failed = Some(Error::new(Code::SSH_CONNECT, format!("{host} does not let this login run commands")).host(&host));
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
                let _ = write.signal(Sig::TERM).await;
                session.end(&cx, &pid, exec.sudo).await;
            }
            let _ = write.close().await;
            drop(to_caller);
            let raised = gate.finish(|p| errors.push(p));
            let stderr = errors.finish();
            let _ = tx.send(match (failed, status) {
                (Some(e), _) => Err(e),
                (None, Some(_)) if !raised => Err(sudo_refused(&host, stderr.as_bytes())),
                (None, Some(status)) => Ok((status, stderr)),
                (None, None) => Err(lost_later()),
            });
        });
        let done = async move { rx.await.unwrap_or_else(|_| Err(lost())) }.boxed();
        Ok(Channel { stdin: Box::new(stdin), stdout: Box::new(stdout), done })
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

/// Takes the first line of the reader out of standard error: that the command was let in, and its process.
struct Raised {
    sudo: bool,
    marker: Option<Vec<u8>>,
    pid: Arc<AtomicU32>,
    held: Vec<u8>,
}

impl Raised {
    fn new(sudo: bool, marker: &str) -> Self {
        Raised { sudo, marker: Some(format!("{marker} ").into_bytes()), pid: Arc::default(), held: Vec::new() }
    }

    fn pass(&mut self, piece: &[u8], mut on: impl FnMut(&[u8])) {
        let Some(marker) = &self.marker else { return on(piece) };
        self.held.extend_from_slice(piece);
        let Some(at) = find(&self.held, marker) else { return };
        let rest = self.held.get(at + marker.len()..).unwrap_or_default();
        let Some(end) = rest.iter().position(|b| *b == b'\n') else { return };
        let pid = rest.get(..end).and_then(|p| std::str::from_utf8(p).ok()?.trim().parse().ok()).unwrap_or(0);
        self.pid.store(pid, Ordering::Release);
        on(self.held.get(..at).unwrap_or_default());
        on(rest.get(end + 1..).unwrap_or_default());
        self.held.clear();
        self.marker = None;
    }

    /// Whether the command was let in, as far as `sudo` is concerned.
    fn finish(&mut self, mut on: impl FnMut(&[u8])) -> bool {
        on(&std::mem::take(&mut self.held));
        self.marker.is_none() || !self.sudo
    }
}

pub(super) fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|w| w == needle)
}

/// The last 64 KiB of a stream.
struct Tail {
    cx: Cx,
    live: bool,
    stream: Stream,
    kept: Vec<u8>,
}

impl Tail {
    fn new(cx: &Cx, live: bool) -> Self {
        Tail { cx: cx.clone(), live, stream: cx.redactor.stream(), kept: Vec::new() }
    }

    fn push(&mut self, piece: &[u8]) {
        let clean = self.stream.push(piece);
        self.keep(&clean);
    }

    fn keep(&mut self, clean: &[u8]) {
        if self.live {
            self.cx.output(StreamKind::Stderr, clean);
        }
        self.kept.extend_from_slice(clean);
        if self.kept.len() > 128 << 10 {
            self.kept.drain(..self.kept.len() - (64 << 10));
        }
    }

    fn finish(mut self) -> String {
        let rest = self.stream.finish();
        self.keep(&rest);
        String::from_utf8_lossy(&self.kept).into_owned()
    }
}
