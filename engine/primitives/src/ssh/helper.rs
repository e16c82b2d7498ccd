//! This program as a helper on a host: used by path when the host is this machine, else uploaded and checked when the host's platform is
//! the controller's own.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::BoxFuture;
use parking_lot::RwLock;
use runbook_core::digest::sha256_of;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Exec, Session, quote, relay};

/// Raised when the meaning of a request to a helper changes; a helper of another version is not used, and refuses.
pub const PROTOCOL: u32 = 1;

/// Serves the helpers of this family: what the command line calls for `runbook __helper NAME …`. Gives the exit status; `None` when the
/// name is another one.
#[must_use]
pub fn serve(name: &str, args: &[String]) -> Option<i32> {
    match name {
        "relay" => Some(relay::serve(args)),
        "version" => {
            println!("{PROTOCOL}");
            Some(0)
        }
        _ => None,
    }
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
    /// Uses another executable, which must understand `__helper`.
    pub fn set(&self, path: impl Into<PathBuf>) {
        *self.0.write() = Choice::Other(path.into());
    }

    /// Uses no helper: hosts need tools of their own then.
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

/// Where the helper is on each host, for each user.
#[derive(Default)]
struct Known(tokio::sync::Mutex<BTreeMap<(String, String), Arc<tokio::sync::Mutex<Option<String>>>>>);

impl Known {
    /// The place of what is known, held while it is found out.
    async fn slot(&self, host: &str, user: Option<&str>) -> Arc<tokio::sync::Mutex<Option<String>>> {
        self.0.lock().await.entry((host.to_string(), user.unwrap_or_default().to_string())).or_default().clone()
    }
}

/// Puts this program on a host as a helper, for the login or for another user, once a host and process. Gives its path.
///
/// # Errors
/// `RB0507` when it cannot run there; those of the connection.
pub fn put<'a>(cx: &'a Cx, session: &'a Session, host: &'a str, user: Option<&'a str>) -> BoxFuture<'a, Result<String>> {
    Box::pin(async move {
        let slot = cx.shared.get::<Known>().slot(host, user).await;
        let mut slot = slot.lock().await;
        if let Some(path) = slot.as_ref() {
            return Ok(path.clone());
        }
        let path = find(cx, session, user).await.map_err(|e| e.host(host))?;
        *slot = Some(path.clone());
        Ok(path)
    })
}

/// Forgets where the login's helper is on a host.
pub fn forget<'a>(cx: &'a Cx, host: &'a str) -> BoxFuture<'a, ()> {
    Box::pin(async move {
        cx.shared.get::<Known>().0.lock().await.remove(&(host.to_string(), String::new()));
    })
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

/// Finds the helper, or puts it there. `RB0507` with the reason when it cannot be had.
async fn find(cx: &Cx, session: &Session, user: Option<&str>) -> Result<String> {
    let none = |why: String| Error::new(Code::DB_HELPER, format!("this program cannot help there: {why}"));
    let exe = exe(cx).await.ok_or_else(|| none("it cannot be used as a helper".into()))?;
    let (prefix, local) = (exe.sha256.chars().take(16).collect::<String>(), quote(&exe.path.to_string_lossy()));
    let probe = format!(
        "echo \"platform $(uname -sm 2>/dev/null)\"; echo \"boot $(cat /proc/sys/kernel/random/boot_id 2>/dev/null)\"\n\
         h=\"$HOME/.cache/runbook/helper-{prefix}\"; echo \"at $h\"\n\
         [ -x \"$h\" ] && echo \"have $(sha256sum \"$h\" 2>/dev/null | cut -d ' ' -f 1)\"\n\
         [ -x {local} ] && echo \"local $(stat -L -c %d:%i {local} 2>/dev/null)\"\n\
         true\n"
    );
    let done = session.exec(cx, exec_as(user, probe)).await?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let said = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')).unwrap_or("").trim();
    let own_boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let may_share = !cx.shared.get::<HelperExe>().1.load(Ordering::Relaxed);
    if may_share && !own_boot.is_empty() && said("boot") == own_boot.trim() && said("local") == exe.inode {
        // This very machine and this very file: nothing to upload.
        return Ok(exe.path.to_string_lossy().into_owned());
    }
    if said("platform") != platform() {
        return Err(none(format!("the host is {}, this program was built for {}", said("platform"), platform())));
    }
    upload(cx, session, &exe, said("at"), said("have") == exe.sha256, user).await?;
    Ok(said("at").to_string())
}

/// Puts the helper on the host unless it is there, and sees that it runs.
async fn upload(cx: &Cx, session: &Session, exe: &Exe, at: &str, there: bool, user: Option<&str>) -> Result<()> {
    let fail = |why: String| Error::new(Code::DB_HELPER, format!("the helper cannot run there ({})", why.trim()));
    let h = quote(at);
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
            cx.progress("putting the helper on the host", sent, Some(exe.size), "bytes");
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
    fn the_platform_is_named_as_uname_does() {
        let uname = std::process::Command::new("uname").arg("-sm").output().unwrap();
        assert_eq!(super::platform(), String::from_utf8(uname.stdout).unwrap().trim());
    }
}
