//! What borg says with `--log-json`, for people, and what it means.
//! <https://borgbackup.readthedocs.io/en/1.2-maint/internals/frontends.html#message-ids>

use serde::Deserialize;

use crate::backup::tool::Trouble;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    message: String,
    levelname: String,
    msgid: String,
    #[serde(rename = "type")]
    kind: String,
}

/// The message of a line, or the line.
fn message(line: &str) -> String {
    serde_json::from_str::<Line>(line).map_or_else(|_| line.to_string(), |l| l.message)
}

/// The file in a line that tells of a changed one.
pub(super) fn changed(line: &str) -> String {
    let m = message(line);
    m.strip_suffix(": file changed while we backed it up").map_or(m.clone(), str::to_string)
}

/// The last line of a traceback that says something of the error itself.
fn cause(traceback: &str) -> Option<&str> {
    traceback.split("\n\nPlatform:").next()?.lines().map(str::trim).rfind(|l| !l.is_empty())
}

/// What was said, a line each, and what it means.
pub(super) fn trouble(stderr: &str) -> (String, Trouble) {
    let (mut own, mut trouble, mut at, mut holders) = (Vec::new(), Trouble::Other, None, Vec::new());
    for line in stderr.lines().filter(|l| !l.trim().is_empty()) {
        if let Some(json) = line.strip_prefix("at ") {
            at = Some(message(json));
            continue;
        }
        if let Some(holder) = line.strip_prefix("held by ") {
            holders.push(holder.to_string());
            continue;
        }
        let Ok(l) = serde_json::from_str::<Line>(line) else {
            own.push(line.trim().to_string());
            continue;
        };
        match l.kind.as_str() {
            "question_prompt" => own.push(l.message.lines().next().unwrap_or_default().to_string()),
            "log_message" => {}
            _ => continue,
        }
        if let Some(found) = meaning(&l.msgid) {
            trouble = found;
        }
        if l.message.starts_with("Traceback") {
            // Its own message comes before, but for what borg does not expect.
            if own.last().is_some_and(|o| o == "Local Exception" || o == "Remote Exception") {
                own.pop();
                own.extend(cause(&l.message).map(str::to_string));
            }
        } else if l.kind == "log_message" && l.levelname != "INFO" && l.levelname != "DEBUG" {
            own.push(l.message);
        }
    }
    // The connection is lost while it writes: no message of its own, but an exception.
    if trouble == Trouble::Other && own.iter().any(|o| o.starts_with("BrokenPipeError") || o.starts_with("ConnectionResetError")) {
        trouble = Trouble::Unreachable;
    }
    if trouble == Trouble::Locked {
        own.extend(holders.into_iter().map(|h| format!("held by {h}")));
    }
    // The file first: it is what people ask for.
    let said = at.into_iter().map(|a| format!("at {a}")).chain(own).fold(String::new(), |t, l| t + &l + "\n");
    (said, trouble)
}

fn meaning(msgid: &str) -> Option<Trouble> {
    Some(match msgid {
        "Repository.DoesNotExist" | "Repository.InvalidRepository" | "PathNotAllowed" => Trouble::Absent,
        "PassphraseWrong" | "NoPassphraseFailure" | "PasscommandFailure" => Trouble::Password,
        "LockTimeout" | "LockError" | "LockErrorT" | "LockFailed" => Trouble::Locked,
        "ConnectionClosed" | "ConnectionClosedWithHint" | "ConnectionBrokenWithHint" => Trouble::Unreachable,
        "KeyfileNotFoundError" => Trouble::Refused(
            "has its key elsewhere: not on this host",
            "bring the key: `borg key export` on the host that made it, `borg key import` here; or use a mode that keeps it in the repository",
        ),
        "Cache.CacheInitAbortedError" => Trouble::Refused(
            "is not encrypted, which this host did not know: it may be another one",
            "when it is meant to be so: encryption = \"none\" in runbook.toml, without `password`",
        ),
        "Cache.RepositoryAccessAborted" => Trouble::Refused(
            "was somewhere else when this host last used it: it may be another one that was put in its place",
            "when it was moved on purpose, say so once on this host: BORG_RELOCATED_REPO_ACCESS_IS_OK=yes borg list REPOSITORY",
        ),
        "Cache.EncryptionMethodMismatch" => Trouble::Refused(
            "is encrypted otherwise than when this host last used it",
            "find out who has replaced it; nothing was read or written",
        ),
        "Cache.RepositoryReplay" | "Cache.CacheNewer" => Trouble::Refused(
            "is older than when this host last used it: it was put back to an earlier state, or replaced",
            "find out who has done that; borg's FAQ says what to do when it was you",
        ),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(message: &str, msgid: &str) -> String {
        format!(
            r#"{{"type": "log_message", "time": 1.5, "message": {}, "levelname": "ERROR", "name": "borg.archiver", "msgid": "{msgid}"}}"#,
            serde_json::to_string(message).unwrap()
        )
    }

    #[test]
    fn what_is_damaged_has_the_file_first_and_no_traceback() {
        let said = [
            log("Data integrity error: Segment entry checksum mismatch [segment 2, offset 94]", "IntegrityError"),
            log("Traceback (most recent call last):\n  File \"x\"\nborg.helpers.errors.IntegrityError: …\n\nPlatform: Linux", ""),
            r#"at {"type": "log_message", "message": "shop/a \"b\"", "levelname": "INFO", "name": "borg.output.list"}"#.into(),
        ]
        .join("\n");
        let (own, t) = trouble(&said);
        assert_eq!(own, "at shop/a \"b\"\nData integrity error: Segment entry checksum mismatch [segment 2, offset 94]\n");
        assert_eq!(t, Trouble::Other);
    }

    #[test]
    fn an_exception_is_said_by_its_last_line() {
        let said = [
            log("Local Exception", "Exception"),
            log("Traceback (most recent call last):\n  open\nFileNotFoundError: [Errno 2] No such file or directory: 'data/0/2'\n\nPlatform: Linux vm\nPID: 7", ""),
        ]
        .join("\n");
        assert_eq!(trouble(&said).0, "FileNotFoundError: [Errno 2] No such file or directory: 'data/0/2'\n");
    }

    #[test]
    fn a_lock_has_its_holder_and_a_question_is_never_an_answer() {
        let said = format!(
            "{}\nheld by old@12, process 7, which is not there on this host\n",
            log("Failed to create/acquire the lock", "LockTimeout")
        );
        let (own, t) = trouble(&said);
        assert!(t == Trouble::Locked && own.contains("held by old@12, process 7"), "{own}");
        let said = [
            r#"{"type": "question_prompt", "msgid": "BORG_RELOCATED_REPO_ACCESS_IS_OK", "message": "Warning: The repository at location b was previously located at a\nDo you want to continue? [yN] "}"#.to_string(),
            r#"{"type": "question_accepted_false", "message": "Aborting."}"#.into(),
            log("Repository access aborted", "Cache.RepositoryAccessAborted"),
        ]
        .join("\n");
        let (own, t) = trouble(&said);
        assert!(matches!(t, Trouble::Refused(..)) && own.starts_with("Warning: The repository at location b was previously"), "{own}");
    }

    #[test]
    fn changed_files_are_named() {
        let line = r#"{"type": "log_message", "message": "shop/hot: file changed while we backed it up", "levelname": "WARNING"}"#;
        assert_eq!(changed(line), "shop/hot");
    }
}
