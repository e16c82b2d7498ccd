//! Terminals for interactive shells on lab hosts.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Stdio;
use std::sync::Arc;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::net::unix::pipe::{Receiver, Sender};

/// A terminal that was asked for on a channel; cheap to clone.
#[derive(Clone)]
pub(super) struct Pty {
    controller: Arc<OwnedFd>,
    path: std::path::PathBuf,
    term: String,
}

impl Pty {
    pub fn open(term: &str, columns: u32, rows: u32) -> std::io::Result<Pty> {
        let fd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&fd)?;
        unlockpt(&fd)?;
        rustix::io::ioctl_fionbio(&fd, true)?;
        let path = ptsname(&fd, Vec::new())?.to_string_lossy().into_owned().into();
        let pty = Pty { controller: Arc::new(fd), path, term: term.to_string() };
        pty.resize(columns, rows);
        Ok(pty)
    }

    pub fn term(&self) -> &str {
        &self.term
    }

    pub fn resize(&self, columns: u32, rows: u32) {
        let cell = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        // A terminal without a size still works.
        let _ = tcsetwinsize(&*self.controller, Winsize { ws_row: cell(rows), ws_col: cell(columns), ws_xpixel: 0, ws_ypixel: 0 });
    }

    /// The command's side.
    pub fn terminal(&self) -> std::io::Result<Stdio> {
        let f: File =
            OpenOptions::new().read(true).write(true).custom_flags(rustix::fs::OFlags::NOCTTY.bits().cast_signed()).open(&self.path)?;
        Ok(f.into())
    }

    /// The server's side, to read and to write. A terminal can be polled as a pipe can.
    pub fn streams(&self) -> std::io::Result<(Receiver, Sender)> {
        let side = || Ok::<File, std::io::Error>(rustix::io::fcntl_dupfd_cloexec(&*self.controller, 0)?.into());
        Ok((Receiver::from_file_unchecked(side()?)?, Sender::from_file_unchecked(side()?)?))
    }
}
