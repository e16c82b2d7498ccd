//! A command's input on its way from the connection: in order, in bounded memory, however slow the command is.
//!
//! The SSH library opens the client's window again whatever we do, and reading no further would hold up the connection's other
//! channels and this one's output. So what a command does not take is kept: a little in memory, the rest in a file without a name.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Input in memory, above which what follows goes to a file and its sender is slowed down.
const HIGH_WATER: usize = 4 << 20;
/// How much is read from the file at once.
const PIECE: usize = 64 << 10;

/// The input of one command. Clones are the same input.
#[derive(Clone)]
pub(super) struct Input(Arc<Shared>);

struct Shared {
    spool: Mutex<Spool>,
    more: Notify,
    taken: Notify,
}

struct Spool {
    memory: VecDeque<Bytes>,
    held: usize,
    /// What does not fit into memory; everything newer than what is in memory.
    file: Option<Overflow>,
    folder: PathBuf,
    ended: bool,
    refused: bool,
}

struct Overflow {
    file: File,
    read: u64,
    written: u64,
}

impl Input {
    /// An input whose overflow lies in this folder.
    pub fn new(folder: PathBuf) -> Self {
        let spool = Spool { memory: VecDeque::new(), held: 0, file: None, folder, ended: false, refused: false };
        Input(Arc::new(Shared { spool: Mutex::new(spool), more: Notify::new(), taken: Notify::new() }))
    }

    /// Adds data. A sender that is far ahead is slowed down, so that the file grows no faster than need be.
    pub async fn put(&self, data: &[u8]) {
        let far_ahead = {
            let mut spool = self.0.spool.lock();
            if spool.refused || spool.ended {
                return;
            }
            spool.put(data);
            spool.file.is_some()
        };
        self.0.more.notify_one();
        if far_ahead {
            let _ = tokio::time::timeout(Duration::from_millis(4), self.0.taken.notified()).await;
        }
    }

    /// There is no more to come.
    pub fn end(&self) {
        self.0.spool.lock().ended = true;
        self.0.more.notify_one();
    }

    /// The command takes no more: what is here and what comes is dropped.
    pub fn refuse(&self) {
        let mut spool = self.0.spool.lock();
        spool.refused = true;
        spool.memory.clear();
        spool.held = 0;
        spool.file = None;
    }

    /// Waits for the next piece; `None` at the end.
    pub async fn take(&self) -> io::Result<Option<Bytes>> {
        loop {
            {
                let mut spool = self.0.spool.lock();
                if let Some(data) = spool.take()? {
                    self.0.taken.notify_one();
                    return Ok(Some(data));
                }
                if spool.ended {
                    return Ok(None);
                }
            }
            self.0.more.notified().await;
        }
    }
}

impl Spool {
    fn put(&mut self, data: &[u8]) {
        if self.file.is_some() || self.held + data.len() > HIGH_WATER {
            // A disk that is full leaves only memory.
            if self.spill(data).is_ok() {
                return;
            }
            if self.file.is_some() {
                // Order would be lost: the command sees its input end, as when the connection breaks.
                self.ended = true;
                crate::say("input of a command cannot be kept: the disk is full");
                return;
            }
        }
        self.held += data.len();
        self.memory.push_back(Bytes::copy_from_slice(data));
    }

    fn spill(&mut self, data: &[u8]) -> io::Result<()> {
        let overflow = match &mut self.file {
            Some(o) => o,
            none => none.insert(Overflow { file: nameless(&self.folder)?, read: 0, written: 0 }),
        };
        overflow.file.write_all_at(data, overflow.written)?;
        overflow.written += data.len() as u64;
        Ok(())
    }

    fn take(&mut self) -> io::Result<Option<Bytes>> {
        if let Some(data) = self.memory.pop_front() {
            self.held -= data.len();
            return Ok(Some(data));
        }
        let Some(o) = &mut self.file else { return Ok(None) };
        let left = usize::try_from(o.written - o.read).unwrap_or(usize::MAX);
        let mut piece = vec![0; left.min(PIECE)];
        o.file.read_exact_at(&mut piece, o.read)?;
        o.read += piece.len() as u64;
        if o.read == o.written {
            // Its space is free again with it.
            self.file = None;
        }
        Ok(Some(piece.into()))
    }
}

/// A file that is gone with its last user.
fn nameless(folder: &std::path::Path) -> io::Result<File> {
    let path = folder.join(format!(".input-{}-{:016x}", std::process::id(), rand::random::<u64>()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(n: u32) -> Vec<u8> {
        (0..8192u32).flat_map(|i| (n * 8192 + i).to_le_bytes()).collect()
    }

    #[tokio::test]
    async fn input_keeps_its_order_and_its_bound_whoever_is_faster() {
        let dir = tempfile::tempdir().unwrap();
        let input = Input::new(dir.path().into());
        let (mut put, mut got) = (0u32, Vec::new());
        let mut taken = 0usize;
        // Far ahead, caught up to the last byte, ahead again: the file comes, goes and comes.
        for (blocks, take_all) in [(400, false), (0, true), (3, true), (300, false), (200, false), (0, true)] {
            for _ in 0..blocks {
                input.0.spool.lock().put(&block(put));
                put += 1;
                let spool = input.0.spool.lock();
                assert!(spool.held <= HIGH_WATER && spool.held == spool.memory.iter().map(Bytes::len).sum::<usize>());
            }
            let until = if take_all { put as usize * 32_768 } else { taken + 5 * 32_768 };
            while taken < until {
                let data = input.take().await.unwrap().unwrap();
                taken += data.len();
                got.extend_from_slice(&data);
            }
            assert!(!take_all || input.0.spool.lock().file.is_none());
        }
        input.end();
        assert!(input.take().await.unwrap().is_none());
        assert!(got.chunks_exact(4).enumerate().all(|(i, b)| b == (i as u32).to_le_bytes()));
        assert_eq!(got.len(), 903 * 32_768);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
    }

    #[tokio::test]
    async fn what_a_command_refuses_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let input = Input::new(dir.path().into());
        (0..200).for_each(|n| input.0.spool.lock().put(&block(n)));
        input.refuse();
        input.put(&block(0)).await;
        let spool = input.0.spool.lock();
        assert!(spool.file.is_none() && spool.memory.is_empty() && spool.held == 0);
    }
}
