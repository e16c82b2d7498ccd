//! Sockets on this machine for its own programs, each in a folder that only this user can enter.
//!
//! The folder goes with its maker; what a maker that was killed has left is removed by the next one.

use std::fs::{File, Permissions};
use std::io::Result;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Once;

use tempfile::TempDir;
use tokio::net::UnixListener;

/// Longer paths than this do not fit into a socket's address on every system.
const LONGEST: usize = 100;
/// What the folders' names begin with.
const PREFIX: &str = "runbook-";
/// Locked in each folder as long as its maker lives.
const LOCK: &str = "lock";

/// The folder of a socket. Removed on drop.
pub(super) struct Local {
    folder: TempDir,
    _held: File,
}

impl Local {
    /// The socket.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join("s")
    }
}

/// Makes a socket that only this user can reach, below the folder for temporary files.
///
/// # Errors
/// Those of the file system.
pub(super) fn listen() -> Result<(Local, UnixListener)> {
    static SWEPT: Once = Once::new();
    let mut at = std::env::temp_dir();
    if at.as_os_str().len() + "/runbook-123456/s".len() > LONGEST {
        at = PathBuf::from("/tmp");
    }
    SWEPT.call_once(|| sweep(&at));
    listen_in(&at)
}

fn listen_in(at: &Path) -> Result<(Local, UnixListener)> {
    let folder = tempfile::Builder::new().prefix(PREFIX).permissions(Permissions::from_mode(0o700)).tempdir_in(at)?;
    // Under its name it is locked already: nobody takes it for that of a dead one.
    let (new, lock) = (folder.path().join("new"), folder.path().join(LOCK));
    let held = File::create_new(&new)?;
    held.lock()?;
    std::fs::rename(new, lock)?;
    let local = Local { folder, _held: held };
    let listener = UnixListener::bind(local.path())?;
    Ok((local, listener))
}

/// Removes this user's folders whose makers are no more. Best effort: one that cannot be removed is in nobody's way.
fn sweep(at: &Path) {
    let ours = rustix::process::getuid().as_raw();
    for entry in std::fs::read_dir(at).into_iter().flatten().flatten() {
        let private = |m: &std::fs::Metadata| m.is_dir() && m.uid() == ours && m.mode() & 0o077 == 0;
        if entry.file_name().to_string_lossy().starts_with(PREFIX)
            && entry.metadata().is_ok_and(|m| private(&m))
            && File::open(entry.path().join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok())
        {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_for_this_user_alone_and_goes_with_its_maker() {
        let (local, _listener) = listen().unwrap();
        let folder = local.folder.path().to_path_buf();
        assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(local.path().as_os_str().len() <= LONGEST);
        drop(local);
        assert!(!folder.exists());
    }

    #[tokio::test]
    async fn what_the_dead_have_left_is_removed_and_nothing_else() {
        let at = tempfile::tempdir().unwrap();
        let (living, _listener) = listen_in(at.path()).unwrap();
        let (dead, _) = listen_in(at.path()).unwrap();
        let Local { folder, _held: held } = dead;
        let dead = folder.keep();
        // Of another program, one that is being made, and one that others may enter.
        for (name, mode) in [("runbook-restore.x", 0o700), ("runbook-others", 0o755)] {
            std::fs::create_dir(at.path().join(name)).unwrap();
            std::fs::set_permissions(at.path().join(name), Permissions::from_mode(mode)).unwrap();
        }
        File::create(at.path().join("runbook-others/lock")).unwrap();
        sweep(at.path());
        assert!(dead.exists(), "its lock is held");
        drop(held);
        sweep(at.path());
        assert!(!dead.exists());
        assert!(living.path().exists());
        assert!(at.path().join("runbook-restore.x").exists() && at.path().join("runbook-others/lock").exists());
    }
}
