//! `copy_from`: a folder from one host to another as a stream through the controller, only what differs, checked afterwards.

mod manifest;
mod stream;

use std::cmp::Ordering;

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::units::show_bytes;
use runbook_core::{Code, Error, Record, Result, Value};

use super::files::check_path;
use super::known_hosts::wildcard;
use super::{Session, connect};
use manifest::{Entry, Manifest};

pub(super) fn register(r: &mut Registry) {
    r.add_type(
        TypeSpec::new("CopyResult", "What a copy did.")
            .field("files", Ty::Int, "Files, folders and links that were copied.")
            .field("bytes", Ty::Bytes, "The size of the files that were copied.")
            .field("deleted", Ty::Int, "What was deleted because the source does not have it."),
    );
    r.add(CopyFrom::default());
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
            "Makes a folder equal to one on another host: copies what differs, as a stream through the controller, and compares \
             SHA-256 sums afterwards. There is nothing to do when both are equal.\n\nFiles are taken as equal when size, permissions and \
             time of change are. Links and permissions are kept, owners too when both logins are root. Sockets, pipes and devices are \
             left out. What the source changes meanwhile is copied again, up to five times.",
        )
        .arg("host", Ty::Record("Host"), "The host to copy from.")
        .arg("from", Ty::Str, "The folder there; relative to the login's home folder.")
        .arg("to", Ty::Str, "The folder here; made when it is missing.")
        .option("delete", Ty::Bool, "Delete what the source does not have.")
        .option("exclude", Ty::List(Box::new(Ty::Str)), "Names or paths to leave alone on both sides; `*` and `?` stand for anything.")
        .option("sudo", Ty::Bool, "Read and write as root, by `sudo`, on both hosts.")
        .returns(Ty::Record("CopyResult"))
        .example(r#"host("new").copy_from(host("old"), "/srv/shop/uploads", "/srv/shop/uploads", #{ delete: true, exclude: ["*.tmp"] });"#)
        .errors(&[
            Code::FILE_MISSING,
            Code::FILE_READ,
            Code::FILE_WRITE,
            Code::FILE_CHECKSUM,
            Code::HOST_TOOL_MISSING,
            Code::SSH_LOST,
        ]);
        CopyFrom { spec }
    }
}

/// One copy.
struct Copy<'a> {
    cx: &'a Cx,
    from: Session,
    to: Session,
    source: &'a str,
    target: &'a str,
    delete: bool,
    exclude: Vec<String>,
    sudo: bool,
}

/// What has to be done.
#[derive(Default)]
struct Diff {
    /// To be copied, in the order of their paths.
    copy: Vec<Entry>,
    /// On the target alone.
    surplus: Vec<Entry>,
    /// On the target, of another kind than on the source.
    conflicts: Vec<Entry>,
    /// How many entries are equal.
    equal: u64,
    /// Kinds that are not copied.
    left_out: u64,
}

/// How often a source that changes is looked at again.
const ROUNDS: usize = 5;

#[async_trait]
impl Primitive for CopyFrom {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (source, target) = (call.str(1), call.str(2));
        check_path(source)?;
        check_path(target)?;
        let from = call.arg(0).as_record().and_then(|r| r.name.as_deref()).unwrap_or("");
        let (from, to) = futures::try_join!(connect(cx, from), connect(cx, call.target()))?;
        let exclude = call.opt("exclude").and_then(Value::as_list).into_iter().flatten().filter_map(Value::as_str).map(str::to_string);
        let copy =
            Copy { cx, from, to, source, target, delete: call.opt_bool("delete"), exclude: exclude.collect(), sudo: call.opt_bool("sudo") };
        copy.run().await
    }
}

impl Copy<'_> {
    async fn run(&self) -> Result<Outcome> {
        let (mut files, mut bytes, mut deleted, mut kept) = (0i64, 0u64, 0i64, 0u64);
        let mut changed = false;
        for round in 0..ROUNDS {
            let diff = self.compare().await?;
            if round == 0 && diff.left_out > 0 {
                self.cx.message(format!("{} sockets, pipes or devices in {} are left out", diff.left_out, self.source));
            }
            let nothing = diff.copy.is_empty() && (!self.delete || diff.surplus.is_empty());
            if nothing {
                kept = diff.equal;
                return Ok(self.outcome(changed, files, bytes, deleted, kept));
            }
            changed = true;
            if let Some(e) = diff.conflicts.iter().find(|e| e.kind == b'd')
                && !self.delete
            {
                return Err(Error::new(
                    Code::FILE_WRITE,
                    format!("{}/{} is a folder, and a file on {}", self.target, e.shown(), self.from.name()),
                )
                .host(self.to.name())
                .hint("remove it first, or allow it with #{ delete: true }"));
            }
            stream::remove(self, &diff.conflicts).await?;
            if self.delete {
                deleted += i64::try_from(diff.surplus.len()).unwrap_or(i64::MAX);
                stream::remove(self, &diff.surplus).await?;
            }
            if !diff.copy.is_empty() {
                stream::copy(self, &diff.copy).await?;
                files += i64::try_from(diff.copy.len()).unwrap_or(i64::MAX);
                bytes += diff.copy.iter().filter(|e| e.kind == b'f').map(|e| e.size).sum::<u64>();
                if stream::verify(self, &diff.copy).await? {
                    kept = diff.equal;
                    // Everything that differed when the lists were made is there now, byte by byte.
                    return Ok(self.outcome(changed, files, bytes, deleted, kept));
                }
            }
        }
        let _ = kept;
        Err(Error::new(Code::FILE_CHECKSUM, format!("{} on {} changes faster than it can be copied", self.source, self.from.name()))
            .host(self.to.name())
            .retryable(true)
            .hint("stop what writes there, or leave the files that change out with exclude"))
    }

    fn outcome(&self, changed: bool, files: i64, bytes: u64, deleted: i64, equal: u64) -> Outcome {
        let result =
            Record::new("CopyResult", [("files", Value::Int(files)), ("bytes", Value::Bytes(bytes)), ("deleted", Value::Int(deleted))]);
        if changed {
            Outcome::changed(result).note(format!("{files} copied ({}), {deleted} deleted, {equal} equal", show_bytes(bytes)))
        } else {
            Outcome::unchanged(result, format!("both are equal: {equal} files and folders"))
        }
    }

    /// Lists both sides at once and walks them in step. Keeps only what differs.
    async fn compare(&self) -> Result<Diff> {
        let (mut a, mut b) = futures::try_join!(
            Manifest::open(self.cx, &self.from, self.source, self.sudo),
            Manifest::open(self.cx, &self.to, self.target, self.sudo)
        )?;
        if !a.there {
            return Err(Error::new(Code::FILE_MISSING, format!("there is no folder {}", self.source))
                .host(self.from.name())
                .hint("paths are absolute, or relative to the login's home folder"));
        }
        let owners = a.root && b.root;
        let mut diff = Diff::default();
        let (mut left, mut right) = (self.wanted(&mut a).await?, self.wanted(&mut b).await?);
        loop {
            let order = match (&left, &right) {
                (None, None) => return Ok(diff),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(l), Some(r)) => l.path.cmp(&r.path),
            };
            let take_left = order != Ordering::Greater;
            let take_right = order != Ordering::Less;
            let l = if take_left { std::mem::replace(&mut left, self.wanted(&mut a).await?) } else { None };
            let r = if take_right { std::mem::replace(&mut right, self.wanted(&mut b).await?) } else { None };
            match (l, r) {
                (Some(l), _) if !matches!(l.kind, b'f' | b'd' | b'l') => diff.left_out += 1,
                (Some(l), Some(r)) if l.same(&r, owners) => diff.equal += 1,
                (Some(l), Some(r)) => {
                    if l.kind != r.kind {
                        diff.conflicts.push(r);
                    }
                    diff.copy.push(l);
                }
                (Some(l), None) => diff.copy.push(l),
                (None, Some(r)) => diff.surplus.push(r),
                (None, None) => {}
            }
        }
    }

    /// The next entry that is not excluded.
    async fn wanted(&self, m: &mut Manifest) -> Result<Option<Entry>> {
        loop {
            match m.next().await? {
                Some(e) if excluded(&self.exclude, &e.path) => {}
                other => return Ok(other),
            }
        }
    }
}

/// Whether a pattern fits the path, one of the folders above it, or one of its names.
fn excluded(patterns: &[String], path: &[u8]) -> bool {
    if patterns.is_empty() || path.is_empty() {
        return false;
    }
    let path = String::from_utf8_lossy(path);
    let mut above = String::new();
    path.split('/').any(|part| {
        if !above.is_empty() {
            above.push('/');
        }
        above.push_str(part);
        patterns.iter().map(|p| p.trim_matches('/')).any(|p| if p.contains('/') { wildcard(p, &above) } else { wildcard(p, part) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusion_by_name_by_path_and_by_folder() {
        let ex = |p: &str, path: &str| excluded(&[p.to_string()], path.as_bytes());
        assert!(ex("*.tmp", "a/b.tmp") && ex("*.tmp", "b.tmp/inner") && !ex("*.tmp", "a/tmp"));
        assert!(ex("cache", "a/cache/x") && ex("a/cache", "a/cache/x") && ex("/a/cache/", "a/cache") && !ex("a/cache", "b/a/cache"));
        assert!(!excluded(&[], b"anything") && !ex("*", ""), "the folder itself is never excluded");
    }
}
