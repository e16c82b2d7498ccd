//! `upload` and `download`: between the project and a host.

use async_trait::async_trait;
use runbook_core::digest::{hex, sha256_of};
use runbook_core::primitive::{Cx, Outcome, Primitive};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::units::show_bytes;
use runbook_core::{Code, Error, Result};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{MISSING, check_path, dashed, file_options, last_line, put};
use crate::ssh::{Exec, connect, quote};

/// `Host.upload`.
pub(super) struct Upload {
    spec: Spec,
}

impl Default for Upload {
    fn default() -> Self {
        let spec = Spec::method(
            "Host",
            "upload",
            Effect::Converge,
            "Puts a file of the project on the host, at one stroke; there is nothing to do when it is so already. Gives whether \
             anything was changed.",
        )
        .arg("local", Ty::Str, "The file's path in the project.")
        .arg("path", Ty::Str, "The file on the host; relative to the login's home folder.")
        .example(r#"host("new").upload("files/logrotate", "/etc/logrotate.d/shop", #{ owner: "root", mode: "0644", sudo: true });"#);
        let mut spec = file_options(spec);
        spec.errors = &[Code::MISSING_FILE, Code::OUTSIDE_PROJECT, Code::FILE_WRITE, Code::COMMAND_BAD, Code::SUDO];
        Upload { spec }
    }
}

#[async_trait]
impl Primitive for Upload {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        put::put(cx, call, call.str(1), cx.files.read(call.str(0))?).await
    }
}

/// `Host.download`.
pub(super) struct Download {
    spec: Spec,
}

impl Default for Download {
    fn default() -> Self {
        let spec = Spec::method(
            "Host",
            "download",
            Effect::Converge,
            "Fetches a file of the host into the project's folder, as a stream, at one stroke; there is nothing to do when both are \
             equal. Gives whether anything was changed.",
        )
        .arg("path", Ty::Str, "The file on the host; relative to the login's home folder.")
        .arg("local", Ty::Str, "Where to put it: a path in the project.")
        .option("sudo", crate::ssh::privilege::ty(), "Read it with raised privileges: `true` for root, or the name of a user.")
        .returns(Ty::Bool)
        .example(r#"host("old").download("/etc/nginx/nginx.conf", "old/nginx.conf");"#)
        .errors(&[Code::FILE_MISSING, Code::FILE_READ, Code::FILE_CHECKSUM, Code::FILE_WRITE, Code::OUTSIDE_PROJECT, Code::SUDO]);
        Download { spec }
    }
}

async fn local_sum(path: std::path::PathBuf) -> Option<String> {
    let sum = tokio::task::spawn_blocking(move || std::fs::File::open(path).and_then(sha256_of));
    sum.await.ok()?.ok()
}

#[async_trait]
impl Primitive for Download {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (host, path, to) = (call.target(), call.str(0), call.str(1));
        check_path(path)?;
        let target = cx.files.local(to)?;
        let session = connect(cx, host).await?;
        let p = quote(&dashed(path));
        let ask = format!(
            "[ -e {p} ] || exit {MISSING}; [ -f {p} ] || {{ echo it is not a plain file >&2; exit 1; }}; wc -c <{p}; sha256sum <{p}"
        );
        let done = session.exec(cx, Exec::new(ask).raised(call)).await?;
        let unreadable = |why: String| {
            Error::new(Code::FILE_READ, format!("{path} cannot be read: {why}"))
                .host(host)
                .hint("check that the login may read it (or use sudo: true)")
        };
        match done.status {
            0 => {}
            MISSING => return Err(Error::new(Code::FILE_MISSING, format!("there is no {path}")).host(host)),
            _ => return Err(unreadable(last_line(&done))),
        }
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let mut words = said.split_whitespace();
        let size: u64 = words.next().and_then(|w| w.parse().ok()).unwrap_or(0);
        let want = words.next().unwrap_or("").to_string();
        if local_sum(target.clone()).await.as_deref() == Some(&want) {
            return Ok(Outcome::unchanged(false, format!("{to} is the same already")));
        }
        let local = |e: std::io::Error| {
            Error::new(Code::FILE_WRITE, format!("{to} cannot be written here: {e}")).hint("check the project's folder and the space left")
        };
        let folder = target.parent().unwrap_or(std::path::Path::new(".")).to_path_buf();
        tokio::fs::create_dir_all(&folder).await.map_err(local)?;
        let beside = folder.join(format!(".runbook-{:016x}", rand::random::<u64>()));
        let fetched: Result<()> = async {
            let mut file = tokio::fs::File::create_new(&beside).await.map_err(local)?;
            let mut channel = session.open(cx, Exec::new(format!("cat <{p}")).raised(call)).await?;
            channel.stdin.shutdown().await.ok();
            let (mut sum, mut buffer, mut got) = (Sha256::new(), vec![0u8; 128 << 10], 0u64);
            loop {
                let n = channel.stdout.read(&mut buffer).await.map_err(|e| unreadable(e.to_string()))?;
                let piece = match buffer.get(..n) {
                    Some([]) | None => break,
                    Some(piece) => piece,
                };
                sum.update(piece);
                file.write_all(piece).await.map_err(local)?;
                got += n as u64;
                cx.progress(format!("fetching {path}"), got, Some(size), "bytes");
            }
            let (status, stderr) = channel.done.await?;
            if status != 0 {
                return Err(unreadable(stderr.lines().next_back().unwrap_or("").to_string()));
            }
            if hex(&sum.finalize()) != want {
                return Err(Error::new(Code::FILE_CHECKSUM, format!("{path} changed while it was fetched"))
                    .host(host)
                    .retryable(true)
                    .hint("stop what writes to it, or try again"));
            }
            file.sync_all().await.map_err(local)?;
            tokio::fs::rename(&beside, &target).await.map_err(local)
        }
        .await;
        if fetched.is_err() {
            let _ = tokio::fs::remove_file(&beside).await;
        }
        fetched.map(|()| Outcome::changed(true).note(show_bytes(size)))
    }
}
