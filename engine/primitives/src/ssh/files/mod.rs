//! Files on a host: written, rendered, moved up and down, looked at, removed.

mod inspect;
mod put;
mod remove;
mod template;
mod transfer;
mod write;

use runbook_core::primitive::Registry;
use runbook_core::spec::{Spec, Ty};
use runbook_core::{Code, Error, Result};

use super::Done;
use super::exec::tail;

pub(super) fn register(r: &mut Registry) {
    r.add(write::WriteFile::default());
    r.add(template::Template::default());
    r.add(transfer::Upload::default());
    r.add(transfer::Download::default());
    r.add(remove::Remove::default());
    inspect::register(r);
}

/// The options of everything that writes a file.
fn file_options(spec: Spec) -> Spec {
    spec.option("mode", Ty::Str, "Permissions such as `\"0640\"`; when not given, those that the file has, or 0644.")
        .option("owner", Ty::Str, "Its owner; the present one, or the login, when not given.")
        .option("group", Ty::Str, "Its group; the present one, or the login's, when not given.")
        .option("sudo", crate::ssh::privilege::ty(), "Do it with raised privileges: `true` for root, or the name of a user.")
        .returns(Ty::Bool)
        .errors(&[Code::FILE_WRITE, Code::COMMAND_BAD, Code::SUDO])
}

/// Refuses what cannot be a path on a host.
pub(super) fn check_path(path: &str) -> Result<()> {
    if path.is_empty() || path.contains('\0') {
        return Err(Error::new(Code::COMMAND_BAD, format!("{path:?} cannot be the path of a file"))
            .hint("paths are absolute, or relative to the login's home folder"));
    }
    if path == "~" || path.starts_with("~/") {
        return Err(Error::new(Code::COMMAND_BAD, format!("\"{path}\": ~ is not expanded here"))
            .hint("leave out ~/: paths are relative to the login's home folder"));
    }
    Ok(())
}

/// A path that a tool cannot take for an option.
pub(super) fn dashed(path: &str) -> String {
    if path.starts_with('-') { format!("./{path}") } else { path.to_string() }
}

/// What standard error said last.
fn last_line(done: &Done) -> String {
    tail(&done.stderr).lines().next_back().unwrap_or("").trim().to_string()
}

/// The exit status by which the scripts of this family say that a file is missing.
const MISSING: i32 = 44;
