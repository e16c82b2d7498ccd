//! Output that a value does not hold: all of it, in a file beside the run's record.
//!
//! `.runbook/output/<run>/<action>.stdout` and `.stderr`, mode 0600, secrets struck before anything is written. The files belong to
//! the record and stay as long as it does; the outcome names them with their size and SHA-256.

use std::fs::File;
use std::io::Write as _;

use runbook_core::digest::Sha256Hex;
use runbook_core::primitive::{Cx, StreamKind};
use runbook_core::{Error, Record, Value};

/// More than this of one stream is counted and not kept.
const CAP: u64 = 1 << 30;

/// A stream's file, when it was finished.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// Which stream.
    pub stream: StreamKind,
    /// How many bytes came.
    pub bytes: u64,
    /// How many of them the file holds, from the first.
    pub kept: u64,
    /// The file, relative to the project.
    pub file: String,
    /// SHA-256 of the file, in hex.
    pub sha256: String,
    /// Why it is not all.
    pub lost: Option<String>,
}

impl Kept {
    /// As a script sees it.
    pub(in crate::ssh) fn value(&self) -> Value {
        Value::from(Record::new(
            "KeptOutput",
            [
                ("bytes", Value::from(i64::try_from(self.bytes).unwrap_or(i64::MAX))),
                ("kept", Value::from(i64::try_from(self.kept).unwrap_or(i64::MAX))),
                ("file", Value::from(self.file.as_str())),
                ("sha256", Value::from(self.sha256.as_str())),
            ],
        ))
    }

    /// One line for the operator.
    pub(in crate::ssh) fn note(&self) -> String {
        let bytes = runbook_core::units::show_bytes(self.bytes);
        let about = match &self.lost {
            None => format!("{bytes} in {}", self.file),
            Some(why) => format!("{bytes}, of which {} holds the first {} ({why})", self.file, runbook_core::units::show_bytes(self.kept)),
        };
        format!("{}: {about}", name(self.stream))
    }
}

/// Adds to an error where the whole output is.
pub(in crate::ssh) fn refer(mut e: Error, all: &[Kept]) -> Error {
    for k in all {
        e = e.detail(&format!("{}_file", name(k.stream)), &k.file);
    }
    e
}

fn name(stream: StreamKind) -> &'static str {
    match stream {
        StreamKind::Stdout => "stdout",
        StreamKind::Stderr => "stderr",
    }
}

/// A file that grows.
pub(super) struct Spill {
    stream: StreamKind,
    rel: String,
    file: Option<File>,
    bytes: u64,
    kept: u64,
    cap: u64,
    hash: Sha256Hex,
    lost: Option<String>,
}

impl Spill {
    /// Makes the file of one stream of the action in hand, empty. What goes wrong is told in the end: output that cannot be kept is no
    /// reason to let a command fail.
    pub(super) fn new(cx: &Cx, stream: StreamKind) -> Spill {
        Spill::capped(cx, stream, CAP)
    }

    fn capped(cx: &Cx, stream: StreamKind, cap: u64) -> Spill {
        let rel = format!(".runbook/output/{}/{}.{}", cx.run, cx.action_id, name(stream));
        let mut spill = Spill { stream, rel, file: None, bytes: 0, kept: 0, cap, hash: Sha256Hex::default(), lost: None };
        match create(cx, &spill.rel) {
            Ok(f) => spill.file = Some(f),
            Err(why) => spill.lost = Some(why),
        }
        spill
    }

    pub(super) fn push(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        let Some(file) = &mut self.file else { return };
        let room = usize::try_from(self.cap - self.kept).unwrap_or(usize::MAX);
        let part = piece.get(..piece.len().min(room)).unwrap_or_default();
        if let Err(e) = file.write_all(part) {
            // A part of the piece may be there already.
            let _ = file.set_len(self.kept);
            self.stop(format!("it cannot be written: {e}"));
            return;
        }
        self.kept += part.len() as u64;
        self.hash.update(part);
        if part.len() < piece.len() {
            self.stop(format!("no more than {} are kept", runbook_core::units::show_bytes(self.cap)));
        }
    }

    fn stop(&mut self, why: String) {
        if let Some(f) = self.file.take() {
            let _ = f.sync_data();
        }
        self.lost = Some(why);
    }

    pub(super) fn finish(mut self) -> Kept {
        // The outcome names the file, so it must be as durable as the outcome.
        if let Some(Err(e)) = self.file.take().map(|f| f.sync_data()) {
            self.lost = Some(format!("it cannot be written: {e}"));
        }
        let sha256 = self.hash.finish();
        Kept { stream: self.stream, bytes: self.bytes, kept: self.kept, file: self.rel, sha256, lost: self.lost }
    }
}

/// Keeps a stream that is in memory.
pub(in crate::ssh) fn keep(cx: &Cx, stream: StreamKind, all: &[u8]) -> Kept {
    let mut spill = Spill::new(cx, stream);
    spill.push(all);
    spill.finish()
}

fn create(cx: &Cx, rel: &str) -> std::result::Result<File, String> {
    let path = cx.files.local(rel).map_err(|e| e.message)?;
    let open = || -> std::io::Result<File> {
        let mut folder = std::fs::DirBuilder::new();
        let mut options = File::options();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
            folder.mode(0o700);
            options.mode(0o600);
        }
        if let Some(parent) = path.parent() {
            folder.recursive(true).create(parent)?;
        }
        options.open(&path)
    };
    open().map_err(|e| format!("it cannot be made: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use runbook_core::inventory::Environment;
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    fn cx(folder: Option<&std::path::Path>) -> Cx {
        let world = Arc::new(runbook_testkit::World::default());
        *world.folder.lock() = folder.map(Into::into);
        runbook_testkit::cx(&world, Environment::default(), "act-1")
    }

    fn read(cx: &Cx, kept: &Kept) -> std::io::Result<Vec<u8>> {
        std::fs::read(cx.files.local(&kept.file).unwrap())
    }

    #[test]
    fn a_file_is_private_whole_and_named_with_its_hash() {
        let dir = tempfile::tempdir().unwrap();
        let cx = cx(Some(dir.path()));
        let k = keep(&cx, StreamKind::Stdout, b"abc");
        assert_eq!((k.bytes, k.kept, &k.lost, k.file.as_str()), (3, 3, &None, ".runbook/output/test-run/act-1.stdout"));
        assert_eq!(k.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(read(&cx, &k).unwrap(), b"abc");
        let mode = |p: &str| std::fs::metadata(dir.path().join(p)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&k.file), mode(".runbook/output/test-run")), (0o600, 0o700));
        // A second collection of the same action begins anew.
        assert_eq!(keep(&cx, StreamKind::Stdout, b"x").bytes, 1);
        assert_eq!(read(&cx, &k).unwrap(), b"x");
    }

    #[test]
    fn beyond_the_cap_it_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let cx = cx(Some(dir.path()));
        let mut s = Spill::capped(&cx, StreamKind::Stderr, 10);
        s.push(b"1234567");
        s.push(b"89abc");
        s.push(b"def");
        let k = s.finish();
        assert_eq!((k.bytes, k.kept, k.lost.as_deref()), (15, 10, Some("no more than 10B are kept")));
        assert_eq!(read(&cx, &k).unwrap(), b"123456789a");
        assert_eq!(k.sha256, runbook_core::digest::sha256_hex(b"123456789a"));
        assert_eq!(k.note(), "stderr: 15B, of which .runbook/output/test-run/act-1.stderr holds the first 10B (no more than 10B are kept)");
    }

    #[test]
    fn a_file_that_cannot_be_made_is_told_and_fails_nothing() {
        let k = keep(&cx(None), StreamKind::Stdout, b"abc");
        assert_eq!((k.bytes, k.kept), (3, 0));
        assert!(k.lost.is_some());
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(".runbook"), "in the way").unwrap();
        assert!(keep(&cx(Some(dir.path())), StreamKind::Stdout, b"abc").lost.unwrap().starts_with("it cannot be made"));
    }
}
