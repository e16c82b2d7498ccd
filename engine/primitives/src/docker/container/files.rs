//! `Container.copy_in`, `copy_out`: files between a host and a container, running or not, through the engine; compared afterwards.

use std::io::Write as _;
use std::sync::Arc;

use async_trait::async_trait;
use bollard::query_parameters::{ContainerArchiveInfoOptions, DownloadFromContainerOptions, UploadToContainerOptions};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use parking_lot::Mutex;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::{Code, Error, Record, Result, Value};
use tokio::io::AsyncWriteExt as _;

use super::look;
use super::tree::{Tree, tree_of};
use crate::docker::engine::Engine;
use crate::docker::image::pieces;
use crate::docker::things::name;
use crate::ssh::{Channel, Exec, connect, quote};
use crate::tar_stream::Hasher;

/// In Go's file modes, which the engine gives: a folder.
const GO_FOLDER: u32 = 1 << 31;

pub(super) fn register(r: &mut Registry) {
    r.add_type(
        TypeSpec::new("ContainerCopy", "What a copy into or out of a container did.")
            .field("files", Ty::Int, "How many files there are in what was copied.")
            .field("bytes", Ty::Bytes, "Their sizes together."),
    );
    let spec = |name, doc| {
        Spec::method("Container", name, Effect::Converge, doc).returns(Ty::Record("ContainerCopy")).errors(&[
            Code::DOCKER,
            Code::DOCKER_MISSING,
            Code::DOCKER_COPY,
            Code::FILE_MISSING,
            Code::FILE_READ,
            Code::FILE_WRITE,
            Code::DOCKER_CONNECT,
            Code::SSH_CONNECT,
        ])
    };
    let sudo = |s: Spec| s.option("sudo", Ty::Bool, "Read and write the host's files as root; false by default.");
    r.add(Copy(
        Way::In,
        sudo(
            spec(
                "copy_in",
                "Copies a file or a folder of a host into the container, which need not run, with owners (by number), permissions and links. There is \
                 nothing to do when the container has all of it already.\n\nWhat is copied takes the name `to`; what a folder has there besides stays. \
                 Afterwards it is read back and compared by SHA-256 sums. What a volume holds is better copied by `Volume.copy_from`, which sends only what differs.",
            )
            .arg("host", Ty::Record("Host"), "The host that has it.")
            .arg("path", Ty::Str, "The file or folder on the host.")
            .arg("to", Ty::Str, "What it becomes in the container, absolute; the folder around it must be there."),
        )
        .example(r#"docker("new").container("shop").copy_in(host("new"), "/srv/shop/app.ini", "/etc/shop/app.ini");"#),
    ));
    r.add(Copy(
        Way::Out,
        sudo(
            spec(
                "copy_out",
                "Copies a file or a folder out of the container, which need not run, to a host, with permissions and links, and as root with owners (by \
                 number). There is nothing to do when the host has all of it already.\n\nWhat is copied takes the name `to`; what a folder has there \
                 besides stays. Afterwards it is read back and compared by SHA-256 sums.",
            )
            .arg("path", Ty::Str, "The file or folder in the container, absolute; a symbolic link is followed.")
            .arg("host", Ty::Record("Host"), "The host that gets it.")
            .arg("to", Ty::Str, "What it becomes on the host; the folder around it must be there."),
        )
        .example(r#"docker("old").container("shop").copy_out("/var/lib/shop/uploads", host("old"), "/srv/rescued");"#),
    ));
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

struct Copy(Way, Spec);

/// One end on a host.
struct OnHost<'a> {
    cx: &'a Cx,
    host: &'a str,
    path: &'a str,
    sudo: bool,
}

/// What stands at a path of a host.
struct There {
    folder: bool,
    /// Whether files are written as root, so that owners can be kept.
    root: bool,
}

impl<'a> OnHost<'a> {
    fn given(cx: &'a Cx, call: &'a Call, host: usize, path: usize) -> Self {
        let host = call.arg(host).as_record().and_then(|r| r.name.as_deref()).unwrap_or("");
        OnHost { cx, host, path: call.str(path), sudo: call.opt_bool("sudo") }
    }

    fn exec(&self, script: String) -> Exec {
        Exec { sudo: self.sudo, ..Exec::new(script) }
    }

    fn error(&self, code: Code, why: impl std::fmt::Display) -> Error {
        Error::new(code, format!("{}: {why}", self.path)).host(self.host)
    }

    /// `None` when there is nothing.
    async fn look(&self) -> Result<(Option<There>, bool)> {
        let p = quote(self.path);
        let script =
            format!("id -u; if [ -d {p} ]; then echo folder; elif [ -f {p} ]; then echo file; elif [ -e {p} ]; then echo other; fi");
        let done = connect(self.cx, self.host).await?.exec_again(self.cx, self.exec(script)).await?;
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let mut words = said.split_whitespace();
        let root = words.next() == Some("0");
        match words.next() {
            None => Ok((None, root)),
            Some("other") => Err(self.error(Code::FILE_READ, "it is neither a file nor a folder")),
            Some(kind) => Ok((Some(There { folder: kind == "folder", root }), root)),
        }
    }

    /// Its archive: of a folder with names from `.` on, of a file with the name `called`.
    async fn read(&self, folder: bool, called: &str) -> Result<Channel> {
        let script = if folder {
            format!("exec tar --create --format=gnu --numeric-owner --sort=name -C {} -f - .", quote(self.path))
        } else {
            let (parent, own) = split(self.path);
            let as_named = format!("s|.*|{}|S", called.replace('\\', "\\\\").replace('&', "\\&").replace('|', "\\|"));
            format!(
                "exec tar --create --format=gnu --numeric-owner --dereference --transform={} -C {} -f - -- {}",
                quote(&as_named),
                quote(parent),
                quote(own)
            )
        };
        connect(self.cx, self.host).await?.open(self.cx, self.exec(script)).await
    }

    /// What it holds.
    async fn tree(&self, folder: bool) -> Result<Tree> {
        let Channel { stdin: _closed, stdout, done } = self.read(folder, "x").await?;
        let mut stream = pieces(stdout).boxed();
        let mut h = Hasher::default();
        let read = async {
            while let Some(piece) = stream.next().await {
                h.write_all(&piece.map_err(|e| self.error(Code::FILE_READ, e))?).map_err(|e| self.error(Code::FILE_READ, e))?;
            }
            Ok(())
        };
        let (read, done): (Result<()>, _) = (until_stopped(self.cx, read).await, done.await);
        ended(self, Code::FILE_READ, done?)?;
        read?;
        Ok(tree_of(&mut h, folder))
    }

    /// What writes an archive of the engine's there.
    async fn write(&self, folder: bool) -> Result<Channel> {
        // The engine calls the topmost thing by its name in the container. Targets of symbolic links stay as they are.
        let script = if folder {
            format!("mkdir -p -- {p} && exec tar --extract --numeric-owner -p --transform='s|^[^/]*|.|S' -C {p} -f -", p = quote(self.path))
        } else {
            let (parent, _) = split(self.path);
            format!(
                "set -e; d=$(mktemp -d -- {}); trap 'rm -rf -- \"$d\"' EXIT; tar --extract --numeric-owner -p --transform='s|.*|x|S' -C \"$d\" -f -; mv -fT -- \"$d/x\" {}",
                quote(&format!("{}/.runbook-XXXXXXXX", parent.trim_end_matches('/'))),
                quote(self.path)
            )
        };
        connect(self.cx, self.host).await?.open(self.cx, self.exec(script)).await
    }
}

/// A path as its folder and its own name.
fn split(path: &str) -> (&str, &str) {
    match path.trim_end_matches('/').rsplit_once('/') {
        Some(("", own)) => ("/", own),
        Some(both) => both,
        None => (".", path),
    }
}

async fn until_stopped<T>(cx: &Cx, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = work => done,
        () = cx.cancel.cancelled() => Err(Error::new(Code::ABORTED, "stopped while copying")),
    }
}

/// What a command on the host says at its end.
fn ended(at: &OnHost<'_>, code: Code, (status, said): (i32, String)) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    // Its last line says only that it failed.
    let last = said.lines().rev().map(str::trim).find(|l| !l.is_empty() && !l.contains("Exiting with failure")).unwrap_or("").to_string();
    Err(at.error(code, if last.is_empty() { format!("tar ended with status {status}") } else { last }))
}

/// One end in a container.
struct Inside<'a> {
    cx: &'a Cx,
    engine: &'a Engine,
    container: &'a str,
}

impl Inside<'_> {
    fn shown(&self, path: &str) -> String {
        format!("{path} in the container {} on \"{}\"", self.container, self.engine.name)
    }

    /// Whether a path is a folder, and where it is when it is a symbolic link; `None` when there is nothing.
    async fn look(&self, path: &str) -> Result<Option<(bool, String)>> {
        let mut path = path.to_string();
        // As many links as Linux follows.
        for _ in 0..40 {
            let options = ContainerArchiveInfoOptions { path: path.clone() };
            let asked = self.engine.api.get_container_archive_info(self.container, Some(options));
            let Some(is) = self.engine.find(&format!("looking at {}", self.shown(&path)), asked).await? else { return Ok(None) };
            if is.link_target.is_empty() {
                return Ok(Some((is.file_mode & GO_FOLDER != 0, path)));
            }
            path = is.link_target;
        }
        Err(Error::new(Code::DOCKER, format!("{}: too many symbolic links", self.shown(&path))).host(self.engine.at()))
    }

    fn stream(&self, path: &str) -> impl Stream<Item = std::result::Result<Bytes, bollard::errors::Error>> + use<> {
        self.engine.api.download_from_container(self.container, Some(DownloadFromContainerOptions { path: path.to_string() }))
    }

    fn unread(&self, path: &str, e: impl std::fmt::Display) -> Error {
        Error::new(Code::DOCKER_COPY, format!("{} cannot be read: {e}", self.shown(path))).host(self.engine.at())
    }

    async fn tree(&self, path: &str) -> Result<Tree> {
        let mut h = Hasher::default();
        let read = async {
            let mut stream = std::pin::pin!(self.stream(path));
            while let Some(piece) = stream.next().await {
                // An entry that cannot be understood ends it, and is told from what is missing at the end.
                if h.write_all(&piece?).is_err() {
                    break;
                }
            }
            Ok(())
        };
        self.engine.ask(&format!("reading {}", self.shown(path)), read).await?;
        if !h.ended {
            return Err(self.unread(path, "its archive is not whole"));
        }
        Ok(tree_of(&mut h, true))
    }

    /// Has the engine unpack an archive in a folder.
    async fn unpack(&self, folder: &str, archive: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Result<()> {
        let options =
            UploadToContainerOptions { path: folder.to_string(), no_overwrite_dir_non_dir: Some("true".into()), ..Default::default() };
        let sent = self.engine.api.upload_to_container(self.container, Some(options), bollard::body_try_stream(archive));
        self.engine.ask(&format!("writing {}", self.shown(folder)), sent).await
    }
}

/// An archive with one empty folder.
fn folder_alone(name: &str) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut head = tar::Header::new_gnu();
    head.set_entry_type(tar::EntryType::Directory);
    head.set_mode(0o755);
    head.set_size(0);
    archive.append_data(&mut head, format!("{name}/"), std::io::empty())?;
    archive.into_inner()
}

/// Counts what passes, tells of it, and notes what it is.
fn watched<S, E>(
    cx: &Cx,
    what: String,
    stream: S,
    seen: Arc<Mutex<Hasher>>,
) -> impl Stream<Item = std::result::Result<Bytes, E>> + use<S, E>
where
    S: Stream<Item = std::result::Result<Bytes, E>>,
{
    let (cx, mut passed) = (cx.clone(), 0u64);
    stream.inspect_ok(move |piece| {
        passed += piece.len() as u64;
        let _ = seen.lock().write_all(piece);
        cx.progress(what.clone(), passed, None, "bytes");
    })
}

impl Copy {
    async fn put_in(&self, cx: &Cx, call: &Call, inside: &Inside<'_>) -> Result<(Tree, bool)> {
        let (from, to) = (OnHost::given(cx, call, 0, 1), call.str(2).trim_end_matches('/'));
        let (Some(is), _) = from.look().await? else {
            return Err(from.error(Code::FILE_MISSING, "there is no such file or folder").hint("nothing was copied"));
        };
        let there = inside.look(to).await?;
        if let Some((folder, at)) = &there {
            if *folder != is.folder {
                return Err(kinds(inside.engine.at(), &inside.shown(at), *folder));
            }
            let want = from.tree(is.folder).await?;
            if inside.tree(at).await?.holds(&want, true).is_ok() {
                return Ok((want, false));
            }
        }
        let to = there.as_ref().map_or(to, |(_, at)| at.as_str());
        let (parent, own) = split(to);
        if is.folder && there.is_none() {
            let alone = folder_alone(own).map_err(|e| Error::internal(e.to_string()))?;
            inside.unpack(parent, stream::once(async { Ok(alone.into()) })).await?;
        }
        let seen = Arc::new(Mutex::new(Hasher::default()));
        let Channel { stdin: _closed, stdout, done } = from.read(is.folder, own).await?;
        let stream = watched(cx, format!("copying {}", from.path), pieces(stdout), seen.clone());
        let written = inside.unpack(if is.folder { to } else { parent }, stream).await;
        match (done.await, &written) {
            // When the engine has given up, tar has nobody to write to: that is not the cause.
            (Ok((status, _)), Err(_)) if status != 0 => {}
            (done, _) => ended(&from, Code::FILE_READ, done?)?,
        }
        written?;
        let sent = tree_of(&mut seen.lock(), is.folder);
        let now = inside.tree(to).await?;
        now.holds(&sent, true).map_err(|why| differs(inside.engine.at(), &inside.shown(to), &why))?;
        Ok((sent, true))
    }

    async fn take_out(&self, cx: &Cx, call: &Call, inside: &Inside<'_>) -> Result<(Tree, bool)> {
        let (path, to) = (call.str(0).trim_end_matches('/'), OnHost::given(cx, call, 1, 2));
        let Some((folder, path)) = inside.look(path).await? else {
            return Err(Error::new(Code::FILE_MISSING, format!("there is no {}", inside.shown(path)))
                .host(inside.engine.at())
                .hint("nothing was copied"));
        };
        let (there, root) = to.look().await?;
        if let Some(t) = there {
            if t.folder != folder {
                return Err(kinds(to.host, to.path, t.folder));
            }
            let want = inside.tree(&path).await?;
            if to.tree(folder).await?.holds(&want, t.root).is_ok() {
                return Ok((want, false));
            }
        }
        let seen = Arc::new(Mutex::new(Hasher::default()));
        let Channel { mut stdin, stdout: _none, done } = to.write(folder).await?;
        let passed = async {
            let stream = watched(cx, format!("copying {path}"), inside.stream(&path), seen.clone());
            let mut stream = std::pin::pin!(stream);
            while let Some(piece) = stream.next().await {
                // Why the host takes no more is told by its command.
                if stdin.write_all(&piece?).await.is_err() {
                    return Ok(());
                }
            }
            let _ = stdin.shutdown().await;
            Ok(())
        };
        inside.engine.ask(&format!("reading {}", inside.shown(&path)), passed).await?;
        drop(stdin);
        ended(&to, Code::FILE_WRITE, done.await?)?;
        if !seen.lock().ended {
            return Err(inside.unread(&path, "its archive is not whole"));
        }
        let sent = tree_of(&mut seen.lock(), true);
        to.tree(folder).await?.holds(&sent, root).map_err(|why| differs(to.host, to.path, &why))?;
        Ok((sent, true))
    }
}

fn kinds(host: &str, at: &str, folder: bool) -> Error {
    let (is, wanted) = if folder { ("a folder", "a file") } else { ("a file", "a folder") };
    Error::new(Code::DOCKER_COPY, format!("{at} is {is}, and what is to be copied is {wanted}"))
        .host(host)
        .hint("what is copied takes the name that is given: give the whole name that it shall have")
}

fn differs(host: &str, at: &str, why: &str) -> Error {
    Error::new(Code::DOCKER_COPY, format!("{at} is not what was copied: {why}"))
        .host(host)
        .hint("somebody writes there at the same time; copy again when it is quiet")
        .retryable(true)
}

#[async_trait]
impl Primitive for Copy {
    fn spec(&self) -> &Spec {
        &self.1
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let path = call.str(if self.0 == Way::In { 2 } else { 0 });
        if !path.starts_with('/') || path.trim_end_matches('/').is_empty() || path.split('/').any(|p| p == "..") {
            return Err(Error::new(Code::COMMAND_BAD, format!("\"{path}\" is not an absolute path below the container's root")));
        }
        let (engine, container) = (Engine::on(cx, call).await?, name(call));
        // A path that is not there is told from a container that is not.
        look(&engine, container).await?;
        let inside = Inside { cx, engine: &engine, container };
        let (copied, changed) = match self.0 {
            Way::In => self.put_in(inside.cx, call, &inside).await?,
            Way::Out => self.take_out(inside.cx, call, &inside).await?,
        };
        let files = Value::Int(i64::try_from(copied.files).unwrap_or(i64::MAX));
        let value = Value::from(Record::new("ContainerCopy", [("files", files), ("bytes", Value::Bytes(copied.bytes))]));
        Ok(if changed { Outcome::changed(value) } else { Outcome::unchanged(value, "all of it is there") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_a_folder_and_a_name() {
        for (path, want) in [("/a", ("/", "a")), ("/a/b/", ("/a", "b")), ("a", (".", "a")), ("a/b", ("a", "b"))] {
            assert_eq!(split(path), want, "{path}");
        }
    }
}
