//! Getting the helper onto a host, once a host and process: by path when the host is this machine, uploaded and checked when its
//! platform is the controller's own, else the host's `sqlite3`.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use runbook_core::digest::sha256_of;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::proto::PROTOCOL;
use crate::ssh::{self, Exec, Session};

/// How the database files of a host are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// By the helper at this path.
    Helper(String),
    /// By the host's `sqlite3` command.
    Sqlite3,
}

/// The executable that serves as the helper: this program unless another is set. Shared by [`Cx::shared`].
#[derive(Default)]
pub struct HelperExe(RwLock<Choice>, AtomicBool);

#[derive(Default, Clone)]
enum Choice {
    #[default]
    This,
    Other(PathBuf),
    None,
}

impl HelperExe {
    /// Uses another executable, which must understand `__helper sqlite`.
    pub fn set(&self, path: impl Into<PathBuf>) {
        *self.0.write() = Choice::Other(path.into());
    }

    /// Uses no helper: hosts need `sqlite3` then.
    pub fn disable(&self) {
        *self.0.write() = Choice::None;
    }

    /// Uploads the helper also to this very machine, as to any other.
    pub fn always_upload(&self) {
        self.1.store(true, Ordering::Relaxed);
    }

    fn path(&self) -> Option<PathBuf> {
        match &*self.0.read() {
            Choice::This => std::env::current_exe().ok(),
            Choice::Other(p) => Some(p.clone()),
            Choice::None => None,
        }
    }
}

/// What was found out about each host.
#[derive(Default)]
struct Ways(tokio::sync::Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<Option<Way>>>>>);

/// Finds, or makes, the way to a host's database files.
///
/// # Errors
/// `RB0507` naming what to install.
pub async fn way(cx: &Cx, session: &Session, host: &str) -> Result<Way> {
    let slot = cx.shared.get::<Ways>().0.lock().await.entry(host.to_string()).or_default().clone();
    let mut slot = slot.lock().await;
    if let Some(found) = slot.as_ref() {
        return Ok(found.clone());
    }
    let found = find(cx, session).await.map_err(|e| e.host(host))?;
    *slot = Some(found.clone());
    Ok(found)
}

/// Puts this program on a host as a helper, for the login or for another user, and gives its path.
///
/// # Errors
/// `RB0507` when it cannot run there.
pub(in crate::db) async fn helper(cx: &Cx, session: &Session, host: &str, user: Option<&str>) -> Result<String> {
    let key = user.map_or_else(|| format!("{host} "), |u| format!("{host} {u}"));
    let slot = cx.shared.get::<Ways>().0.lock().await.entry(key).or_default().clone();
    let mut slot = slot.lock().await;
    if let Some(Way::Helper(path)) = slot.as_ref() {
        return Ok(path.clone());
    }
    let (found, _) = probe(cx, session, user).await.map_err(|e| e.host(host))?;
    let path = found.map_err(|why| Error::new(Code::DB_HELPER, format!("this program cannot help there: {why}")).host(host))?;
    *slot = Some(Way::Helper(path.clone()));
    Ok(path)
}

/// Forgets what was found out about a host.
pub async fn forget(cx: &Cx, host: &str) {
    cx.shared.get::<Ways>().0.lock().await.remove(host);
}

/// The platform of this program as `uname -sm` says it.
fn platform() -> String {
    let (os, arch) = match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", arch) => ("Linux", arch),
        ("macos", "aarch64") => ("Darwin", "arm64"),
        ("macos", arch) => ("Darwin", arch),
        (os, arch) => (os, arch),
    };
    format!("{os} {arch}")
}

#[derive(Debug, Clone)]
struct Exe {
    path: PathBuf,
    size: u64,
    sha256: String,
    inode: String,
}

fn examine(path: &Path) -> std::io::Result<Exe> {
    let file = std::fs::File::open(path)?;
    let meta = file.metadata()?;
    Ok(Exe { path: path.into(), size: meta.len(), sha256: sha256_of(file)?, inode: format!("{}:{}", meta.dev(), meta.ino()) })
}

/// The examined executable; hashing it takes a moment, so it is done once.
#[derive(Default)]
struct Examined(tokio::sync::Mutex<BTreeMap<PathBuf, Exe>>);

async fn exe(cx: &Cx) -> Option<Exe> {
    let path = cx.shared.get::<HelperExe>().path()?;
    let known = cx.shared.get::<Examined>();
    let mut known = known.0.lock().await;
    if let Some(exe) = known.get(&path) {
        return Some(exe.clone());
    }
    let of = path.clone();
    let found = tokio::task::spawn_blocking(move || examine(&of)).await.ok()?.ok()?;
    known.insert(path, found.clone());
    Some(found)
}

/// A command as the login, or as another user.
fn exec_as(user: Option<&str>, script: String) -> Exec {
    Exec { sudo: user.is_some(), user: user.filter(|u| *u != "root").map(String::from), ..Exec::new(script) }
}

/// Finds or puts the helper: its path, or why there is none; and the version of the host's `sqlite3`.
async fn probe(cx: &Cx, session: &Session, user: Option<&str>) -> Result<(std::result::Result<String, String>, String)> {
    let exe = exe(cx).await;
    let (prefix, local) = exe
        .as_ref()
        .map_or((String::new(), String::new()), |e| (e.sha256.chars().take(16).collect(), ssh::quote(&e.path.to_string_lossy())));
    let mut probe = String::from(
        "echo \"platform $(uname -sm 2>/dev/null)\"; echo \"boot $(cat /proc/sys/kernel/random/boot_id 2>/dev/null)\"\n\
         v=$(sqlite3 --version 2>/dev/null) && echo \"sqlite3 $v\"\n",
    );
    if exe.is_some() {
        probe.push_str(&format!(
            "h=\"$HOME/.cache/runbook/helper-{prefix}\"; echo \"at $h\"\n\
             [ -x \"$h\" ] && echo \"have $(sha256sum \"$h\" 2>/dev/null | cut -d ' ' -f 1)\"\n\
             [ -x {local} ] && echo \"local $(stat -L -c %d:%i {local} 2>/dev/null)\"\n"
        ));
    }
    probe.push_str("true\n");
    let done = session.exec(cx, exec_as(user, probe)).await?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let said = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')).unwrap_or("").trim().to_string();

    let mut why_not = "this program cannot be used as a helper".to_string();
    if let Some(exe) = exe {
        let own_boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let may_share = !cx.shared.get::<HelperExe>().1.load(Ordering::Relaxed);
        if may_share && !own_boot.is_empty() && said("boot") == own_boot.trim() && said("local") == exe.inode {
            // This very machine and this very file: nothing to upload.
            return Ok((Ok(exe.path.to_string_lossy().into_owned()), said("sqlite3")));
        }
        if said("platform") == platform() {
            let at = said("at");
            match put(cx, session, &exe, &at, said("have") == exe.sha256, user).await {
                Ok(()) => return Ok((Ok(at), said("sqlite3"))),
                Err(e) => why_not = e.message,
            }
        } else {
            why_not = format!("the host is {}, this program was built for {}", said("platform"), platform());
        }
    }
    Ok((Err(why_not), said("sqlite3")))
}

async fn find(cx: &Cx, session: &Session) -> Result<Way> {
    let (found, version) = probe(cx, session, None).await?;
    let why_not = match found {
        Ok(helper) => return Ok(Way::Helper(helper)),
        Err(why_not) => why_not,
    };
    if recent(&version) {
        cx.message(format!("using the host's sqlite3 {}: {why_not}", version.split(' ').next().unwrap_or("")));
        return Ok(Way::Sqlite3);
    }
    let old = if version.is_empty() { "it has no sqlite3 command either".into() } else { format!("its sqlite3 is too old ({version})") };
    Err(Error::new(Code::DB_HELPER, format!("databases on this host cannot be reached: {why_not}, and {old}"))
        .hint("install the package sqlite3 (3.33 or newer) on the host"))
}

/// Whether `sqlite3 --version` says 3.33 or newer, the first with `-json`.
fn recent(version: &str) -> bool {
    let mut numbers = version.split(['.', ' ']).map_while(|n| n.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (3, 33)
}

/// Puts the helper on the host unless it is there, and sees that it runs.
async fn put(cx: &Cx, session: &Session, exe: &Exe, at: &str, there: bool, user: Option<&str>) -> Result<()> {
    let fail = |why: String| Error::new(Code::DB_HELPER, format!("the helper cannot run there ({})", why.trim()));
    let h = ssh::quote(at);
    if !there {
        let script = format!(
            "set -e; umask 077; h={h}; t=\"$h.$$\"; mkdir -p \"${{h%/*}}\"; trap 'rm -f \"$t\"' EXIT; cat > \"$t\"\n\
             if command -v sha256sum >/dev/null; then [ \"$(sha256sum < \"$t\" | cut -d ' ' -f 1)\" = {sum} ]\n\
             else [ \"$(wc -c < \"$t\")\" -eq {size} ]; fi\n\
             chmod 700 \"$t\"; mv -f \"$t\" \"$h\"",
            sum = exe.sha256,
            size = exe.size
        );
        let mut channel = session.open(cx, exec_as(user, script)).await?;
        let mut file = tokio::fs::File::open(&exe.path).await.map_err(|e| fail(e.to_string()))?;
        let (mut buf, mut sent) = (vec![0; 128 << 10], 0u64);
        loop {
            let n = file.read(&mut buf).await.map_err(|e| fail(e.to_string()))?;
            if n == 0 || channel.stdin.write_all(buf.get(..n).unwrap_or_default()).await.is_err() {
                break;
            }
            sent += n as u64;
            cx.progress("putting the database helper on the host", sent, Some(exe.size), "bytes");
        }
        let _ = channel.stdin.shutdown().await;
        drop(channel.stdin);
        let (status, text) = channel.done.await?;
        if status != 0 {
            return Err(fail(format!("upload ended with status {status} {text}")));
        }
    }
    let done = session.exec(cx, exec_as(user, format!("{h} __helper version"))).await?;
    if done.status != 0 || String::from_utf8_lossy(&done.stdout).trim() != PROTOCOL.to_string() {
        return Err(fail(String::from_utf8_lossy(&done.stderr).lines().next().unwrap_or("no answer").to_string()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn versions_of_sqlite3() {
        assert!(super::recent("3.40.1 2022-12-28 14:03:47 df5c253"));
        assert!(super::recent("3.33.0"));
        assert!(!super::recent("3.31.1 2020-01-27"));
        assert!(!super::recent(""));
    }

    #[test]
    fn the_platform_is_named_as_uname_does() {
        let uname = std::process::Command::new("uname").arg("-sm").output().unwrap();
        assert_eq!(super::platform(), String::from_utf8(uname.stdout).unwrap().trim());
    }
}
