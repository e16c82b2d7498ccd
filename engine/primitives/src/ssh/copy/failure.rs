//! What a tool said when it failed, as an error that names the host, the paths and the cause.

use runbook_core::{Code, Error};

pub(super) const TOOLS: &str =
    "copy_from needs GNU find, sort, tar, xargs and sha256sum on both hosts; with rsync on both it needs find, sort, xargs and sha256sum";

/// Where an error of a transfer belongs.
pub(super) struct Sides<'a> {
    pub from: &'a str,
    pub to: &'a str,
    pub source: &'a str,
    pub target: &'a str,
}

/// Which side a tool worked on, when its own words do not tell.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    From,
    To,
    Both,
}

fn reader(line: &str, side: Side) -> bool {
    match side {
        Side::From => true,
        Side::To => false,
        Side::Both => line.contains("[sender]") || line.contains("rsync: opendir") || line.contains("change_dir"),
    }
}

/// Makes the error of a transfer from what was said on standard error.
pub(super) fn transfer(sides: &Sides<'_>, side: Side, stderr: &str, status: i32) -> Error {
    let noise = |l: &&str| {
        let l = l.trim();
        !l.is_empty() && !l.contains("previous errors") && !l.starts_with("rsync error:") && !l.contains("Error is not recoverable")
    };
    let lines: Vec<&str> = stderr.lines().filter(noise).collect();
    // 255 is what `ssh` and our own reader end with when their connection breaks; tar and rsync have no such status and never end in silence.
    if status == 255 && lines.is_empty() {
        return Error::new(Code::SSH_LOST, format!("the connection was lost while {} was copied", sides.source))
            .host(if side == Side::From { sides.from } else { sides.to })
            .retryable(true)
            .hint("copy it again: what has come so far is kept, and only the rest is sent");
    }
    let any = |what: &[&str]| lines.iter().copied().find(|l| what.iter().any(|w| l.contains(w)));
    let to = |code: Code, why: &str| Error::new(code, format!("{} cannot be written: {why}", sides.target)).host(sides.to);
    let e = if let Some(why) = any(&["No space left", "quota exceeded"]) {
        to(Code::DISK_SPACE, why)
            .hint("make room there, or leave things out with exclude; what has come so far is kept, and the next try goes on from there")
    } else if let Some(why) = any(&["ermission denied", "not permitted"]) {
        let refused: Vec<&str> = lines.iter().copied().filter(|l| l.contains("ermission denied") || l.contains("not permitted")).collect();
        let more = if refused.len() > 1 { format!(" (and {} more)", refused.len() - 1) } else { String::new() };
        let e = if reader(why, side) {
            Error::new(Code::FILE_READ, format!("{} cannot be read: {why}{more}", sides.source)).host(sides.from)
        } else {
            to(Code::FILE_WRITE, &format!("{why}{more}"))
        };
        e.hint("check what the login may do there (or use sudo: true), or leave it out with exclude").detail("paths", refused.join("\n"))
    } else if let Some(why) = any(&["not found"]) {
        let host = if side == Side::To { sides.to } else { sides.from };
        Error::new(Code::HOST_TOOL_MISSING, format!("{} cannot be copied: {why}", sides.source)).host(host).hint(TOOLS)
    } else {
        let why = lines.first().copied().map_or_else(|| format!("it ended with status {status} and did not say why"), str::to_string);
        if reader(&why, side) {
            Error::new(Code::FILE_READ, format!("{} cannot be read: {why}", sides.source)).host(sides.from)
        } else {
            to(Code::FILE_WRITE, &why)
        }
        .hint("check permissions (or use sudo: true) and the space left")
    };
    e.detail("stderr", stderr)
}

/// A file turned out shorter than it was: the next round looks at it again.
pub(super) fn shorter(sides: &Sides<'_>) -> Error {
    Error::new(Code::FILE_READ, format!("a large file in {} became shorter while it was copied", sides.source))
        .host(sides.from)
        .retryable(true)
        .hint("stop what writes there, or leave the files that change out with exclude")
}

/// An error of what a copy does for itself on a host.
pub(super) fn here(host: &str, what: &str, stderr: &[u8]) -> Error {
    let why = crate::ssh::exec::tail(stderr);
    let code = if why.contains("No space left") || why.contains("quota exceeded") { Code::DISK_SPACE } else { Code::FILE_WRITE };
    Error::new(code, format!("{what}: {}", why.lines().next_back().unwrap_or("").trim()))
        .host(host)
        .hint("a copy keeps its list in ~/.runbook while it works: check that the login may write there, and the space left")
}

/// Whether everything that was said is about files that went away or changed meanwhile, which the next round sees.
pub(super) fn only_vanished(stderr: &str) -> bool {
    let gone = |l: &str| {
        let l = l.trim();
        l.is_empty()
            || [
                "No such file or directory",
                "changed as we read it",
                "previous errors",
                "File removed before",
                "vanished",
                "File shrank by",
            ]
            .iter()
            .any(|w| l.contains(w))
            || (l.starts_with("rsync error: some files") || l.starts_with("rsync warning: some files"))
    };
    stderr.lines().all(gone)
}

/// Why `ssh` on one host did not come through to the other, when that is what happened.
pub(super) fn no_way(stderr: &str) -> Option<String> {
    const SIGNS: &[&str] = &[
        "Connection refused",
        "onnection timed out",
        "No route to host",
        "Network is unreachable",
        "Could not resolve hostname",
        "Host key verification failed",
        "Permission denied (",
        "Connection closed by",
        "kex_exchange_identification",
        "Bad configuration option",
        "Bad cipher",
        "Too many authentication failures",
        "administratively prohibited",
        "Unable to negotiate",
        "account is currently not available",
        "banner exchange",
    ];
    stderr.lines().find(|l| SIGNS.iter().any(|s| l.contains(s))).map(|l| l.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_found_among_their_effects() {
        let sides = Sides { from: "old", to: "new", source: "/a", target: "/b" };
        let t = |side, text: &str| transfer(&sides, side, text, 11);
        let e = t(
            Side::Both,
            "rsync: [receiver] write failed on \"/b/x\": No space left on device (28)\nrsync error: error in file IO (code 11)",
        );
        assert_eq!((e.code, e.host.as_deref()), (Code::DISK_SPACE, Some("new")));
        let e = t(
            Side::Both,
            "rsync: [sender] send_files failed to open \"/a/x\": Permission denied (13)\nrsync: [sender] send_files failed to open \"/a/y\": Permission denied (13)",
        );
        assert_eq!((e.code, e.host.as_deref()), (Code::FILE_READ, Some("old")));
        assert!(e.message.contains("/a/x") && e.message.contains("and 1 more"), "{e}");
        let e = t(Side::To, "tar: x: Cannot open: Permission denied\ntar: Exiting with failure status due to previous errors");
        assert_eq!((e.code, e.host.as_deref()), (Code::FILE_WRITE, Some("new")));
        let e = t(Side::From, "sh: 1: tar: not found");
        assert_eq!((e.code, e.host.as_deref()), (Code::HOST_TOOL_MISSING, Some("old")));
        assert!(t(Side::To, "").message.contains("status 11"));
    }

    #[test]
    fn what_vanished_is_no_failure() {
        assert!(only_vanished("tar: ./x: File removed before we read it\ntar: Exiting with failure status due to previous errors\n"));
        assert!(only_vanished(
            "file has vanished: \"/a/x\"\nrsync warning: some files vanished before they could be transferred (code 24)"
        ));
        assert!(!only_vanished("tar: ./x: Cannot open: Permission denied") && only_vanished(""));
    }

    #[test]
    fn a_closed_door_is_known() {
        assert_eq!(no_way("x\nroot@new: Permission denied (publickey).\n").as_deref(), Some("root@new: Permission denied (publickey)."));
        assert!(no_way("rsync: connection unexpectedly closed").is_none());
    }
}
