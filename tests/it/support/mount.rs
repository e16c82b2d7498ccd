//! File systems of their own, for disks that are small, full or away.

use std::path::PathBuf;
use std::process::Command;

/// A small file system of its own, unmounted when dropped.
pub struct Small(PathBuf);

impl Small {
    pub fn mount(at: PathBuf, size: &str) -> Option<Small> {
        std::fs::create_dir_all(&at).unwrap();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(&at).output();
        if done.as_ref().is_ok_and(|o| o.status.success()) {
            return Some(Small(at));
        }
        assert!(std::env::var_os("CI").is_none(), "a tmpfs cannot be mounted, and CI is set: {done:?}");
        eprintln!("skipped: a small file system cannot be mounted here");
        None
    }

    pub fn grow(&self, size: &str) {
        assert!(Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
