//! What the tests of `dump` and `load` share: folders, small disks, dumps that somebody has edited, jobs that are killed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use runbook_core::Value;

/// Whether the long versions of tests are wanted.
pub fn all() -> bool {
    std::env::var_os("RUNBOOK_TEST_ALL").is_some()
}

/// A folder for dumps that every user of the machine may enter.
pub struct Folder(pub tempfile::TempDir);

impl Folder {
    pub fn new() -> Folder {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::Builder::new().prefix("rbd").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Folder(dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn at(&self, name: &str) -> Value {
        self.path(name).display().to_string().into()
    }
}

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
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Edits the file of a dump whose rows have that text in them, by `sed`, and its checksum in the manifest with it.
pub fn edit(dump: &Path, text: &str, sed: &str) {
    let script = "cd \"$1\" || exit 1
        for f in *.zst *.gz data/*.gz; do
          [ -e \"$f\" ] || continue
          case $f in *.zst) tool=zstd ;; *) tool=gzip ;; esac
          $tool -dc \"$f\" | grep -q \"$2\" || continue
          $tool -dc \"$f\" | sed \"$3\" >t && cp t \"$4\" && $tool -c t >\"$f\" && rm t || exit 1
          old=$(grep -P \"^file\\t$f\\t\" manifest | cut -f 6)
          new=$(sha256sum \"$f\")
          sed -i \"s/$old/${new%% *}/\" manifest
          exit
        done
        exit 4";
    let whole = tempfile::NamedTempFile::new().unwrap();
    let out = Command::new("sh").args(["-c", script, "sh"]).arg(dump).args([text, sed]).arg(whole.path()).output().unwrap();
    assert!(out.status.success(), "{out:?}");
}

/// Kills processes of the job in that folder by name; all of it when none is given. How many there were.
pub fn kill_job(folder: &Path, names: &[&str]) -> usize {
    let Ok(leader) = std::fs::read_to_string(folder.join("pid")) else { return 0 };
    let leader = leader.trim();
    let mut killed = 0;
    for p in super::sshd::processes() {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", p.pid)).unwrap_or_default();
        let group = stat.rsplit_once(") ").and_then(|(_, t)| t.split(' ').nth(2).map(str::to_string));
        if group.as_deref() != Some(leader) || !(names.is_empty() || names.contains(&p.name.as_str())) {
            continue;
        }
        let of = if names.is_empty() { format!("-{leader}") } else { p.pid.to_string() };
        let done = Command::new("kill").args(["-KILL", "--", &of]).stderr(Stdio::null()).status();
        killed += usize::from(done.is_ok_and(|s| s.success()));
        if names.is_empty() {
            break;
        }
    }
    killed
}
