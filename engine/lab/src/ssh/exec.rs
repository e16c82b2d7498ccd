//! One command of an SSH channel: started, its streams carried both ways, its end reported.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use russh::server::{Handle, Msg};
use russh::{ChannelId, ChannelWriteHalf, Sig};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::Host;
use super::input::Input;
use super::pty::Pty;
use crate::process::{MARK, ROLE, Role};

/// What to run.
pub(super) struct Command {
    /// For the shell; `None` is a login shell.
    pub script: Option<String>,
    pub env: Vec<(String, String)>,
    pub pty: Option<Pty>,
    /// The value of `SSH_CONNECTION`.
    pub connection: String,
    pub host: Arc<Host>,
}

/// A command of an open channel. Dropping it closes the command's pipes and lets it run on, as sshd does.
pub(super) struct Running {
    input: Input,
    pid: Option<Pid>,
    pty: Option<Pty>,
    /// Dropped with this: tells the tasks that nobody listens any more.
    _open: watch::Sender<()>,
}

impl Running {
    pub async fn input(&self, data: &[u8]) {
        self.input.put(data).await;
    }

    pub fn end_input(&self) {
        self.input.end();
    }

    pub fn signal(&self, signal: &Sig) {
        let signal = match signal {
            Sig::ABRT => Signal::ABORT,
            Sig::ALRM => Signal::ALARM,
            Sig::FPE => Signal::FPE,
            Sig::HUP => Signal::HUP,
            Sig::ILL => Signal::ILL,
            Sig::INT => Signal::INT,
            Sig::KILL => Signal::KILL,
            Sig::PIPE => Signal::PIPE,
            Sig::QUIT => Signal::QUIT,
            Sig::SEGV => Signal::SEGV,
            Sig::TERM => Signal::TERM,
            Sig::USR1 => Signal::USR1,
            Sig::Custom(_) => return,
        };
        if let Some(pid) = self.pid {
            // It may have ended already.
            let _ = kill_process_group(pid, signal);
        }
    }

    pub fn resize(&self, columns: u32, rows: u32) {
        if let Some(p) = &self.pty {
            p.resize(columns, rows);
        }
    }
}

fn prepare(c: &Command) -> tokio::process::Command {
    let host = &c.host;
    let mut cmd = if c.pty.is_some() {
        // Makes the terminal the controlling one, which needs a step between fork and exec.
        let mut s = tokio::process::Command::new("setsid");
        s.args(["--ctty", "--wait", "/bin/sh"]);
        s
    } else {
        let mut s = tokio::process::Command::new("/bin/sh");
        // Its own group, for signals; also what keeps a Ctrl-C at some terminal from it.
        s.process_group(0);
        s
    };
    match &c.script {
        Some(script) => cmd.arg("-c").arg(script),
        None => cmd.arg("-l"),
    };
    let path = format!("{}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", host.root.display());
    cmd.current_dir(&host.root)
        .env_clear()
        .envs(c.env.iter().map(|(k, v)| (k, v)))
        .env("PATH", path)
        .env("HOME", &host.root)
        .env("USER", &host.user)
        .env("LOGNAME", &host.user)
        .env("SHELL", "/bin/sh")
        .env("SSH_CONNECTION", &c.connection)
        .env(MARK, &host.lab)
        .env(ROLE, Role::Command.name());
    cmd
}

/// Starts a command and the tasks that carry its streams.
pub(super) fn start(mut command: Command, out: ChannelWriteHalf<Msg>, handle: Handle, id: ChannelId) -> std::io::Result<Running> {
    let mut cmd = prepare(&command);
    let input = Input::new(command.host.lab.clone());
    let (open, closed) = watch::channel(());
    let out = Arc::new(out);
    let pty = command.pty.take();
    let mut child;
    let mut copies = vec![];
    if let Some(p) = &pty {
        cmd.env("TERM", p.term()).stdin(p.terminal()?).stdout(p.terminal()?).stderr(p.terminal()?);
        child = cmd.spawn()?;
        let (reader, writer) = p.streams()?;
        tokio::spawn(feed(writer, input.clone(), closed.clone()));
        copies.push(tokio::spawn(carry(reader, out.clone(), None, closed.clone())));
    } else {
        cmd.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        child = cmd.spawn()?;
        if let Some(stdin) = child.stdin.take() {
            tokio::spawn(feed(stdin, input.clone(), closed.clone()));
        }
        if let Some(stdout) = child.stdout.take() {
            copies.push(tokio::spawn(carry(stdout, out.clone(), None, closed.clone())));
        }
        if let Some(stderr) = child.stderr.take() {
            copies.push(tokio::spawn(carry(stderr, out.clone(), Some(1), closed.clone())));
        }
    }
    // The terminal's other side must be closed here, or its end would never be seen.
    let pid = child.id().and_then(|p| i32::try_from(p).ok()).and_then(Pid::from_raw);
    tokio::spawn(async move {
        let mut all = std::pin::pin!(futures::future::join_all(copies));
        let status = child.wait().await;
        // The output of an ended command is already in the pipe; only a background process can hold it open longer.
        // Then the status goes out at once and the channel stays open, as with sshd.
        let drained = tokio::time::timeout(Duration::from_millis(20), &mut all).await.is_ok();
        report(&handle, id, status).await;
        if !drained {
            all.await;
        }
        let _ = out.eof().await;
        let _ = handle.close(id).await;
    });
    Ok(Running { input, pid, pty, _open: open })
}

async fn report(handle: &Handle, id: ChannelId, status: std::io::Result<ExitStatus>) {
    let sent = match status {
        Ok(s) => match (s.code(), s.signal()) {
            (Some(code), _) => handle.exit_status_request(id, u32::try_from(code).unwrap_or(255)).await,
            (None, Some(n)) => handle.exit_signal_request(id, name(n), s.core_dumped(), String::new(), String::new()).await,
            (None, None) => Ok(()),
        },
        Err(_) => Ok(()),
    };
    // Nobody may be there any more.
    let _ = sent;
}

fn name(signal: i32) -> Sig {
    match signal {
        1 => Sig::HUP,
        2 => Sig::INT,
        3 => Sig::QUIT,
        4 => Sig::ILL,
        6 => Sig::ABRT,
        8 => Sig::FPE,
        9 => Sig::KILL,
        10 => Sig::USR1,
        11 => Sig::SEGV,
        13 => Sig::PIPE,
        14 => Sig::ALRM,
        15 => Sig::TERM,
        n => Sig::Custom(format!("SIG{n}@lab")),
    }
}

/// Returns once the channel is closed or the connection gone.
async fn gone(mut closed: watch::Receiver<()>) {
    while closed.changed().await.is_ok() {}
}

async fn feed(mut to: impl AsyncWrite + Unpin, input: Input, closed: watch::Receiver<()>) {
    let work = async {
        while let Ok(Some(data)) = input.take().await {
            if to.write_all(&data).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    // When the connection is lost, what had arrived before still goes in; a command that does not take it gets its end.
    tokio::pin!(work);
    tokio::select! {
        () = &mut work => {}
        () = gone(closed) => {
            input.end();
            let _ = tokio::time::timeout(Duration::from_secs(10), work).await;
        }
    }
    input.refuse();
}

async fn carry(mut from: impl AsyncRead + Unpin, out: Arc<ChannelWriteHalf<Msg>>, ext: Option<u32>, closed: watch::Receiver<()>) {
    let work = async {
        let mut buf = BytesMut::new();
        loop {
            buf.reserve(32 << 10);
            match from.read_buf(&mut buf).await {
                // A terminal ends with an error when its last process is gone.
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let data = buf.split().freeze();
            let sent = match ext {
                None => out.data_bytes(data).await,
                Some(ext) => out.extended_data_bytes(ext, data).await,
            };
            if sent.is_err() {
                return;
            }
        }
    };
    // Waiting for the client's window must end with the channel; dropping the pipe then gives the command SIGPIPE.
    tokio::select! {
        () = work => {}
        () = gone(closed) => {}
    }
}
