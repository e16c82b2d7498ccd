//! `copy_from`: a folder from one host to another, only what differs, straight from host to host where that can be, checked afterwards.
//!
//! Both sides are always listed and compared here, so that excludes, deletes, limits and what there is to do are the same in every way.
//! Then the list of what differs goes to the tool that carries it:
//!
//! | | straight from host to host | through the controller |
//! |---|---|---|
//! | rsync | [`direct`]: with a transfer key | [`relay`]: both ends' streams joined here |
//! | tar, and blocks of large files | [`direct`]: with a transfer key | [`relay`]: an archive as a stream |

mod blocks;
mod clean;
mod diff;
mod direct;
mod failure;
mod header;
mod job;
mod manifest;
mod owners;
mod pattern;
mod relay;
mod remove;
mod tools;
mod verify;
mod xattrs;

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::units::show_bytes;
use runbook_core::{Code, Error, Record, Result, Value};

use super::files::check_path;
use super::{Session, connect};
use pattern::Patterns;

pub(super) fn register(r: &mut Registry) {
    r.add_type(
        TypeSpec::new("FileCopy", "What a copy of files did.")
            .field("files", Ty::Int, "Files, folders and links that were copied.")
            .field("bytes", Ty::Bytes, "The size of the files that were copied.")
            .field("sent", Ty::Bytes, "What went over the network for that; less than `bytes` where only parts of files had changed.")
            .field("deleted", Ty::Int, "What was deleted because the source does not have it.")
            .field("equal", Ty::Int, "What was equal already.")
            .field("via", Ty::Str, "`direct` from host to host, or through the `controller`; empty when there was nothing to do.")
            .field("tool", Ty::Str, "`rsync` or `tar`; empty when there was nothing to do.")
            .field(
                "changing",
                Ty::List(Box::new(Ty::Str)),
                "With `accept_changing`: the files that changed meanwhile, and are to be copied again.",
            ),
    );
    r.add_type(
        TypeSpec::new("FileDiff", "What a copy of files would do.")
            .field("files", Ty::Int, "Files, folders and links that would be copied.")
            .field("new", Ty::Int, "Those of them that are not there at all.")
            .field("bytes", Ty::Bytes, "The size of the files that would be copied.")
            .field("extra", Ty::Int, "What the source does not have: `delete: true` would delete it.")
            .field("equal", Ty::Int, "What is equal already.")
            .field("paths", Ty::List(Box::new(Ty::Str)), "The first hundred paths that differ."),
    );
    r.add(CopyFrom::default());
    r.add(DiffFrom::default());
    r.add_hook(clean::Clean);
}

/// What carries the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Rsync,
    Tar,
}

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Tool::Rsync => "rsync",
            Tool::Tar => "tar",
        }
    }
}

/// Which way they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Via {
    Direct,
    Controller,
}

impl Via {
    fn name(self) -> &'static str {
        match self {
            Via::Direct => "direct",
            Via::Controller => "controller",
        }
    }
}

/// The options of a call.
#[derive(Debug, Clone, Default)]
struct Options {
    exclude: Patterns,
    sudo: bool,
    numeric_ids: bool,
    checksum: bool,
    xattrs: bool,
    delete: bool,
    max_delete: Option<u64>,
    via: Option<Via>,
    tool: Option<Tool>,
    bandwidth: Option<u64>,
    sizes_only: bool,
    any_room: bool,
    accept_changing: bool,
    from_address: Option<String>,
    to_address: Option<String>,
}

impl Options {
    fn of(call: &Call) -> Result<Self> {
        let bad = |name: &str, all: &str| {
            let got = call.opt_str(name).unwrap_or("");
            Err(Error::new(Code::COMMAND_BAD, format!("{name}: \"{got}\" is not known")).hint(format!("it is one of {all}")))
        };
        let exclude = call.opt("exclude").and_then(Value::as_list).into_iter().flatten().filter_map(Value::as_str);
        Ok(Options {
            exclude: Patterns::new(exclude),
            sudo: call.opt_bool("sudo"),
            numeric_ids: call.opt_bool("numeric_ids"),
            checksum: call.opt_bool("checksum"),
            xattrs: call.opt_bool("xattrs"),
            delete: call.opt_bool("delete"),
            max_delete: call.opt_int("max_delete").and_then(|n| u64::try_from(n).ok()),
            via: match call.opt_str("via") {
                None => None,
                Some("direct") => Some(Via::Direct),
                Some("controller") => Some(Via::Controller),
                Some(_) => return bad("via", "\"direct\", \"controller\""),
            },
            tool: match call.opt_str("tool") {
                None => None,
                Some("rsync") => Some(Tool::Rsync),
                Some("tar") => Some(Tool::Tar),
                Some(_) => return bad("tool", "\"rsync\", \"tar\""),
            },
            bandwidth: match call.opt("bandwidth") {
                Some(Value::Bytes(n)) => Some((*n).max(1024)),
                _ => None,
            },
            sizes_only: match call.opt_str("verify") {
                None | Some("checksum") => false,
                Some("size") => true,
                Some(_) => return bad("verify", "\"checksum\", \"size\""),
            },
            accept_changing: call.opt_bool("accept_changing"),
            any_room: call.opt("check_space").and_then(Value::as_bool) == Some(false),
            from_address: call.opt_str("from_address").map(str::to_string),
            to_address: call.opt_str("to_address").map(str::to_string),
        })
    }
}

/// One copy, or the question what it would do.
struct Job<'a> {
    cx: &'a Cx,
    from: Session,
    to: Session,
    source: &'a str,
    target: &'a str,
    o: Options,
    /// The hosts on which something of a finished transfer is still to be taken back.
    left: Mutex<Vec<Session>>,
}

impl<'a> Job<'a> {
    async fn of(cx: &'a Cx, call: &'a Call) -> Result<Job<'a>> {
        let (source, target) = (call.str(1), call.str(2));
        check_path(source)?;
        check_path(target)?;
        let o = Options::of(call)?;
        let from = call.arg(0).as_record().and_then(|r| r.name.as_deref()).unwrap_or("");
        let (from, to) = futures::try_join!(connect(cx, from), connect(cx, call.target()))?;
        Ok(Job { cx, from, to, source, target, o, left: Mutex::default() })
    }

    fn sides(&self) -> failure::Sides<'_> {
        failure::Sides { from: self.from.name(), to: self.to.name(), source: self.source, target: self.target }
    }
}

/// The arguments and options of both primitives.
fn common(spec: Spec) -> Spec {
    spec.arg("host", Ty::Record("Host"), "The host to copy from.")
        .arg("from", Ty::Str, "The folder there; relative to the login's home folder.")
        .arg("to", Ty::Str, "The folder here; made when it is missing.")
        .option(
            "exclude",
            Ty::List(Box::new(Ty::Str)),
            "What to leave alone on both sides. A pattern without `/` fits a name anywhere, one with `/` the path from the folder on, one with `/` at its end \
             folders only, each with all that is in it. `*` and `?` stand for anything but `/`, `**` for anything, `[a-z]` for one of these, `\\` takes the next \
             character as it is.",
        )
        .option("sudo", Ty::Bool, "Read and write as root, by `sudo`, on both hosts.")
        .option("numeric_ids", Ty::Bool, "Keep owners by number. Otherwise by name, and by number where the name is not known.")
        .option("checksum", Ty::Bool, "Compare the SHA-256 sums of files that look equal too.")
        .option("xattrs", Ty::Bool, "Compare extended attributes and ACLs too, so that a change of them alone is seen; needs `getfattr` on both hosts.")
}

/// Whether to copy, or to tell what a copy would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CopyKind {
    Copy,
    Diff,
}

/// `Host.copy_from` or `Host.diff_from`, for other families that copy folders from host to host: each side is a host's inventory name and
/// a folder there.
///
/// # Errors
/// Those of the primitives.
pub(crate) fn copy_folder<'a>(
    cx: &'a Cx,
    kind: CopyKind,
    from: (&'a str, &'a str),
    to: (&'a str, &'a str),
    options: BTreeMap<String, Value>,
) -> BoxFuture<'a, Result<Outcome>> {
    Box::pin(async move {
        let host = |name: &str| Record::handle("Host", name, BTreeMap::new());
        let call = Call { receiver: Some(host(to.0)), args: vec![host(from.0).into(), from.1.into(), to.1.into()], options };
        match kind {
            CopyKind::Copy => CopyFrom::default().act(cx, &call).await,
            CopyKind::Diff => DiffFrom::default().act(cx, &call).await,
        }
    })
}

/// `Host.copy_from`.
struct CopyFrom {
    spec: Spec,
}

impl Default for CopyFrom {
    fn default() -> Self {
        let spec = Spec::method(
            "Host",
            "copy_from",
            Effect::Converge,
            "Makes a folder equal to one on another host: copies what differs and compares SHA-256 sums afterwards. There is nothing to do \
             when both are equal.\n\nFiles are taken as equal when size, permissions, owner and time of change are. Kept are permissions, times, links, \
             further names of one file (hard links), holes, extended attributes and ACLs, and owners when the login on the target is root. Sockets, \
             pipes and devices are left out, and counted. What the source changes meanwhile is copied again, up to five times, or left for the next copy with `accept_changing`.\n\n\
             Large copies go straight from host to host, by `tar`, with a key made for this copy, which can do nothing else, ends after 15 minutes, \
             and is removed afterwards. Of large files that have changed only what differs is sent: in blocks where both hosts have Python, and by \
             `rsync` where both have that and blocks do not suit (most of a file differs, or many files of a middle size). Where no host can log in to \
             the other, and for small copies (up to 64 MiB where both hosts are near), the files go through the controller as a stream. What has come stays when a copy breaks off, and the \
             next one goes on from there.",
        );
        let spec = common(spec)
            .option("delete", Ty::Bool, "Delete what the source does not have.")
            .option(
                "max_delete",
                Ty::Int,
                "How much may be deleted; a quarter of what the target has, and 100 in any case, when not given.",
            )
            .option(
                "via",
                Ty::Str,
                "`\"direct\"` from host to host, or through the `\"controller\"`; chosen by what is possible when not given.",
            )
            .option("tool", Ty::Str, "`\"rsync\"` or `\"tar\"`; chosen by what both hosts have when not given.")
            .option("bandwidth", Ty::Bytes, "At most so much a second: `\"10MiB\"`.")
            .option(
                "verify",
                Ty::Str,
                "`\"checksum\"`: compare SHA-256 sums of what was copied (the default); `\"size\"`: list both sides again instead.",
            )
            .option(
                "accept_changing",
                Ty::Bool,
                "Whether files may change while they are copied, as in a first pass ahead of the window: those are named in `changing`, bear the \
                 first day of 1970 on the target so that the next copy takes them again, and are no error. False by default.",
            )
            .option("check_space", Ty::Bool, "`false`: begin even when the target seems to have no room.")
            .option(
                "from_address",
                Ty::Str,
                "`host` or `host:port` under which the target reaches the source, when it is another one than from here.",
            )
            .option(
                "to_address",
                Ty::Str,
                "`host` or `host:port` under which the source reaches the target, when it is another one than from here.",
            )
            .returns(Ty::Record("FileCopy"))
            .example(
                r#"host("new").copy_from(host("old"), "/srv/shop/uploads", "/srv/shop/uploads", #{ delete: true, exclude: ["*.tmp"] });"#,
            )
            .errors(&[
                Code::FILE_MISSING,
                Code::FILE_READ,
                Code::FILE_WRITE,
                Code::FILE_CHECKSUM,
                Code::COPY_DELETES,
                Code::DISK_SPACE,
                Code::HOST_TOOL_MISSING,
                Code::COMMAND_BAD,
                Code::SUDO,
                Code::SSH_CONNECT,
                Code::SSH_LOST,
            ]);
        CopyFrom { spec }
    }
}

#[async_trait]
impl Primitive for CopyFrom {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        // What a crash of this run or an earlier one has left on hosts goes first.
        clean::leftovers(cx).await?;
        Job::of(cx, call).await?.run().await
    }
}

/// `Host.diff_from`.
struct DiffFrom {
    spec: Spec,
}

impl Default for DiffFrom {
    fn default() -> Self {
        let spec =
            Spec::method("Host", "diff_from", Effect::Read, "Tells what `copy_from` with the same arguments would do. Nothing is written.");
        let spec = common(spec)
            .returns(Ty::Record("FileDiff"))
            .example(r#"let left = host("new").diff_from(host("old"), "/srv/shop/uploads", "/srv/shop/uploads").files;"#)
            .errors(&[Code::FILE_MISSING, Code::FILE_READ, Code::HOST_TOOL_MISSING, Code::COMMAND_BAD, Code::SUDO, Code::SSH_LOST]);
        DiffFrom { spec }
    }
}

#[async_trait]
impl Primitive for DiffFrom {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let job = Job::of(cx, call).await?;
        let mut d = diff::compare(&job, &BTreeSet::new()).await?;
        job.by_content(&mut d).await?;
        let note = format!("{} differ ({}), {} only there, {} equal", d.differ, show_bytes(d.all_bytes), d.extra, d.equal);
        let paths: Vec<Value> = d.copy.iter().take(100).map(|e| Value::from(e.shown())).collect();
        let int = |n: u64| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
        let record = Record::new(
            "FileDiff",
            [
                ("files", int(d.differ)),
                ("new", int(d.new)),
                ("bytes", Value::Bytes(d.all_bytes)),
                ("extra", int(d.extra)),
                ("equal", int(d.equal)),
                ("paths", paths.into()),
            ],
        );
        Ok(Outcome::from(record).note(note))
    }
}
