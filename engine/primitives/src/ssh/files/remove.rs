//! `remove`: a file or a whole folder, but never by accident a system.

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::{Code, Error, Result};

use super::{check_path, dashed, last_line};
use crate::ssh::{Exec, connect, quote};

/// `Host.remove`.
pub(super) struct Remove {
    spec: Spec,
}

impl Default for Remove {
    fn default() -> Self {
        let spec = Spec::method(
            "Host",
            "remove",
            Effect::Converge,
            "Removes a file, or a folder with everything in it. Gives whether there was anything.\n\nThe root, the folders of the \
             system right below it, the home folder and what contains it are refused. A symbolic link is removed, not what it leads to.",
        )
        .arg("path", Ty::Str, "The path; relative to the login's home folder.")
        .option("sudo", crate::ssh::privilege::ty(), "Do it with raised privileges: `true` for root, or the name of a user.")
        .returns(Ty::Bool)
        .example(r#"host("new").remove("shop/uploads");"#)
        .errors(&[Code::COMMAND_BAD, Code::FILE_WRITE, Code::SUDO]);
        Remove { spec }
    }
}

/// What lies right below the root and is never removed.
const SYSTEM: [&str; 18] = [
    "bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "media", "mnt", "opt", "proc", "root", "run", "sbin", "sys", "usr", "var",
];

/// Refuses what would remove a system, as far as the path alone shows it.
fn refuse(path: &str) -> Result<()> {
    let bad = |why: &str| {
        Err(Error::new(Code::COMMAND_BAD, format!("\"{path}\" is not removed: {why}")).hint("name the file or folder itself that shall go"))
    };
    check_path(path)?;
    let absolute = path.starts_with('/');
    let mut depth: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if depth.last().is_some_and(|p| *p != "..") => {
                depth.pop();
            }
            ".." if absolute => {}
            other => depth.push(other),
        }
    }
    match (absolute, depth.as_slice()) {
        (true, []) => bad("it is the root of the host"),
        (true, [one]) if SYSTEM.contains(one) => bad("it belongs to the system"),
        (false, []) => bad("it is the home folder"),
        (false, parts) if parts.iter().all(|p| *p == "..") => bad("it contains the home folder"),
        _ => Ok(()),
    }
}

#[async_trait]
impl Primitive for Remove {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (host, path) = (call.target(), call.str(0));
        refuse(path)?;
        // The host knows what links and .. lead to.
        let session = connect(cx, host).await?;
        let p = quote(&dashed(path.trim_end_matches('/')));
        let script = format!(
            "p={p}\n[ -e \"$p\" ] || [ -L \"$p\" ] || {{ echo none; exit 0; }}\n\
             if [ -d \"$p\" ] && [ ! -L \"$p\" ]; then\n\
             r=$(cd \"$p\" && pwd -P) || exit 1\nh=$(pwd -P)\n\
             case \"$h/\" in \"${{r%/}}\"/*) echo \"it is the home folder or contains it\" >&2; exit 45 ;; esac\n\
             case \"$r\" in /|/{}) echo \"it belongs to the system\" >&2; exit 45 ;; esac\nfi\n\
             rm -rf -- \"$p\" && echo gone",
            SYSTEM.join("|/")
        );
        let done = session.exec(cx, Exec::new(script).raised(call)).await?;
        match (done.status, String::from_utf8_lossy(&done.stdout).trim()) {
            (0, "none") => Ok(Outcome::unchanged(false, format!("there is no {path}"))),
            (0, "gone") => Ok(Outcome::changed(true)),
            (45, _) => Err(Error::new(Code::COMMAND_BAD, format!("\"{path}\" is not removed: {}", last_line(&done)))
                .host(host)
                .hint("name the file or folder itself that shall go")),
            _ => Err(Error::new(Code::FILE_WRITE, format!("{path} cannot be removed: {}", last_line(&done)))
                .host(host)
                .hint("check that the login may write to its folder (or use sudo: true)")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_hurt_is_refused() {
        for bad in
            ["", "/", "//", "/.", "/..", ".", "./", "..", "../..", "a/..", "a/../..", "/etc", "/etc/", "/usr/../etc", "/home", "~", "~/x"]
        {
            assert_eq!(refuse(bad).unwrap_err().code, Code::COMMAND_BAD, "{bad}");
        }
        for good in ["a", "shop/backup.db", "/srv/shop", "/data", "../other/file", "/home/me/x", "-x", "...", " "] {
            assert!(refuse(good).is_ok(), "{good}");
        }
    }
}
