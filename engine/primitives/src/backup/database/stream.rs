//! Reading a stream from its repository without loading it: what it is, and whether it is whole.

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::streams::Streams;
use crate::backup::repository::Snapshot;
use crate::db::stream::{About, Told};
use crate::ssh::connect;

/// The mark of the stream's own lines, and its first line. `RB0703` when it is no stream of ours.
pub(super) async fn head(cx: &Cx, repo: &dyn Streams, host: &str, s: &Snapshot) -> Result<(String, About)> {
    let script = "t=$(mktemp -d) || exit 1\ntrap 'rm -rf \"$t\"' EXIT\n{ (give) 2>\"$t/err\"; echo \"$?\" >\"$t/rc\"; } | head -n 1 | cut -c 1-20000\n\
                  case $(cat \"$t/rc\") in 0 | 141) ;; *) grep -qi 'broken pipe' \"$t/err\" || { cat \"$t/err\" >&2; exit 1; } ;; esac";
    let done = connect(cx, host).await?.exec_again(cx, repo.giver(cx, s, script)?).await?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let parsed = text.trim_end().strip_prefix("-- runbook:").and_then(|l| l.split_once(' '));
    let parsed = parsed.and_then(|(n, json)| Some((format!("-- runbook:{n}"), serde_json::from_str::<About>(json).ok()?)));
    match parsed {
        Some(p) if p.1.version == 1 && p.0.len() < 80 => Ok(p),
        _ if done.status != 0 => Err(repo.failed(host, Code::BACKUP_DAMAGED, &format!("the snapshot {} is damaged", s.id), &done)),
        _ => Err(Error::new(Code::BACKUP_RESTORE, format!("the snapshot {} is no stream of a database", s.id))
            .host(host)
            .hint("it was made by something else: restore it into a folder, and load it by hand")),
    }
}

/// Reads all of it, and compares it with its own checksum. `RB0702` when it is not whole, or not as it was made.
pub(super) async fn read(cx: &Cx, repo: &dyn Streams, host: &str, s: &Snapshot) -> Result<(About, Told)> {
    let damaged = |why: String| {
        Error::new(Code::BACKUP_DAMAGED, format!("the snapshot {} is damaged: {why}", s.id)).host(host).hint("take another one")
    };
    let (own, about) = head(cx, repo, host, s)
        .await
        .map_err(|e| if e.code == Code::BACKUP_RESTORE { damaged("it has no first line".into()) } else { e })?;
    let script = format!(
        "LC_ALL=C\nexport LC_ALL\nt=$(mktemp -d) || exit 1\ntrap 'rm -rf \"$t\"' EXIT\nmkfifo \"$t/own\" || exit 1\n\
         grep -a '^{own} ' <\"$t/own\" >\"$t/lines\" &\n\
         {{ (give) 2>\"$t/err\"; echo \"$?\" >\"$t/rc\"; }} | tee \"$t/own\" | grep -av '^{own} ' | sha256sum >\"$t/sha\"\nwait\n\
         [ \"$(cat \"$t/rc\")\" = 0 ] || {{ cat \"$t/err\" >&2; exit 1; }}\n\
         sed 's/^{own} //' \"$t/lines\"\necho \"is $(cut -c 1-64 \"$t/sha\")\""
    );
    let done = connect(cx, host).await?.exec_again(cx, repo.giver(cx, s, &script)?).await?;
    if done.status != 0 {
        return Err(repo.failed(host, Code::BACKUP_DAMAGED, &format!("the snapshot {} is damaged", s.id), &done));
    }
    let text = String::from_utf8_lossy(&done.stdout);
    let told = Told::read(&about.kind, text.lines());
    let is = text.lines().find_map(|l| l.strip_prefix("is ")).unwrap_or_default();
    if told.sha256.is_empty() {
        return Err(damaged("its last line is missing, so the dump did not end".into()));
    }
    if told.sha256 != is {
        return Err(damaged(format!("its SHA-256 is {is}, and was {}", told.sha256)));
    }
    Ok((about, told))
}
