//! Repositories on disks that are attached only at times: nothing is done with one before its disk is seen, so that nothing is written into
//! the empty folder where it should be mounted, and nothing hangs.

use runbook_core::inventory::Resource;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use crate::ssh::{Exec, connect, quote};

/// Where the disk of a repository is mounted.
pub(super) struct Disk {
    name: String,
    /// The host that it is mounted on.
    pub(super) host: String,
    /// Where.
    pub(super) at: String,
}

impl Disk {
    /// By the settings `mount` and `mount_host`.
    ///
    /// # Errors
    /// `RB0114` without `host`.
    pub(super) fn of(r: &Resource) -> Result<Option<Disk>> {
        let host = r.str("mount_host").map_or_else(|| r.need("host"), Ok)?.to_string();
        Ok(r.str("mount").map(|at| Disk { name: r.name.clone(), host, at: at.to_string() }))
    }

    /// Why it is not attached; `None` when it is.
    pub(super) async fn missing(&self, cx: &Cx) -> Result<Option<String>> {
        // Looking at it hangs where a server or a cable is gone: that is an answer, too.
        let script = format!(
            "export d={at}\nif command -v timeout >/dev/null; then timeout 10 sh -c 'stat -- \"$d/.\" >/dev/null 2>&1'; [ $? != 124 ] || exit 65; fi\n\
             mountpoint -q -- \"$d\" || {{ [ $? != 127 ] || exit 127; exit 64; }}",
            at = quote(&self.at)
        );
        let done = connect(cx, &self.host).await?.exec_again(cx, Exec::new(script)).await?;
        Ok(match done.status {
            0 => None,
            65 => Some(format!("{} does not answer", self.at)),
            127 => {
                return Err(Error::new(Code::HOST_TOOL_MISSING, "mountpoint is not there")
                    .host(&self.host)
                    .hint("install it (Debian: util-linux)"));
            }
            _ => Some(format!("nothing is mounted at {}", self.at)),
        })
    }

    /// `RB0706` when it is not attached.
    pub(super) async fn need(&self, cx: &Cx) -> Result<()> {
        match self.missing(cx).await? {
            None => Ok(()),
            Some(why) => {
                Err(Error::new(Code::BACKUP_DETACHED, format!("the disk of the repository \"{}\" is not attached: {why}", self.name))
                    .host(&self.host)
                    .hint(format!("attach and mount it, then resume; to go on without it: if backup(\"{}\").attached() {{ … }}", self.name))
                    .retryable(true))
            }
        }
    }
}
