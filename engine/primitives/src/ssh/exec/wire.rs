//! A command as it goes over the wire: the command line holds nothing private, the rest goes by standard input.

use runbook_core::{Code, Error, Result};

use crate::ssh::privilege::{self, Raise};
use crate::ssh::{Exec, quote};

/// A command as it goes over the wire.
pub(in crate::ssh) struct Wire {
    pub command: String,
    pub stdin: Vec<u8>,
    /// The line that separates the parts of `stdin`.
    pub marker: String,
}

/// A line that nothing else contains.
pub(in crate::ssh) fn marker() -> String {
    format!("rb{:032x}", rand::random::<u128>())
}

/// The environment as shell text; goes by stdin only.
pub(in crate::ssh) fn exports(env: &[(String, String)]) -> Result<String> {
    let mut out = String::new();
    for (k, v) in env {
        let mut chars = k.chars();
        let first = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        if !first || !chars.all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(Error::new(Code::COMMAND_BAD, format!("\"{k}\" cannot be the name of an environment variable"))
                .hint("names have letters, digits and _ and do not begin with a digit"));
        }
        if v.contains('\0') {
            return Err(Error::new(Code::COMMAND_BAD, format!("the value of the environment variable {k} contains a NUL byte")));
        }
        out.push_str(&format!("export {k}={}\n", quote(v)));
    }
    Ok(out)
}

/// Refuses what no shell can take.
pub(in crate::ssh) fn check(exec: &Exec) -> Result<()> {
    if exec.script.contains('\0') {
        return Err(Error::new(Code::COMMAND_BAD, "the command contains a NUL byte").hint("pass binary data by stdin"));
    }
    Ok(())
}

/// What a command is, between two lines of the marker.
///
/// # Errors
/// `RB0313` for what no shell can take.
pub(super) fn text(exec: &Exec, marker: &str) -> Result<String> {
    check(exec)?;
    // The folder goes this way too: a login shell that is no POSIX shell would read its quotes differently.
    let cwd = exec.cwd.as_deref().map(|c| format!("cd {} || exit 126\n", quote(c))).unwrap_or_default();
    Ok(format!("{marker}\n{cwd}{}{}\n{marker}\n", exports(&exec.env)?, exec.script))
}

/// Builds the command line and what goes before its standard input.
pub(in crate::ssh) fn wire(exec: &Exec, raise: Option<&Raise>) -> Result<Wire> {
    let marker = marker();
    let parts = privilege::parts(exec, raise);
    let command = privilege::command(&parts, &marker);
    let mut stdin = parts.secret;
    stdin.push_str(&text(exec, &marker)?);
    let mut stdin = stdin.into_bytes();
    if let Some(data) = &exec.stdin {
        stdin.extend_from_slice(data);
    }
    Ok(Wire { command, stdin, marker })
}
