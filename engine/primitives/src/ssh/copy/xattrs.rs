//! Extended attributes and ACLs, compared when that was asked for: `find` does not tell them.

use std::collections::HashMap;

use runbook_core::{Code, Error, Result};
use tokio::io::AsyncReadExt as _;

use super::Job;
use crate::ssh::files::dashed;
use crate::ssh::{Channel, Exec, Session, quote};

/// What both sides have, by path; entries without attributes are not in.
pub(super) struct Both {
    from: HashMap<Vec<u8>, Vec<String>>,
    to: HashMap<Vec<u8>, Vec<String>>,
}

impl Both {
    pub(super) fn same(&self, path: &[u8]) -> bool {
        self.from.get(path) == self.to.get(path)
    }
}

pub(super) async fn read_both(job: &Job<'_>) -> Result<Both> {
    let (from, to) = futures::try_join!(read(job, &job.from, job.source), read(job, &job.to, job.target))?;
    Ok(Both { from, to })
}

async fn read(job: &Job<'_>, session: &Session, folder: &str) -> Result<HashMap<Vec<u8>, Vec<String>>> {
    // Labels of SELinux belong to the host's own policy.
    let script = format!(
        "command -v getfattr >/dev/null || exit 97\ncd -- {} || exit 1\n\
         find . \\( -type f -o -type d \\) -print0 | xargs -0 -r getfattr -h -d -e hex \
         -m '^user\\.|^trusted\\.|^security\\.capability$|^system\\.posix_acl' -- 2>/dev/null; :",
        quote(&dashed(folder))
    );
    let Channel { stdin: _stdin, mut stdout, done } = session.open(job.cx, Exec { sudo: job.o.sudo, ..Exec::new(script) }).await?;
    let mut text = Vec::new();
    let _ = stdout.read_to_end(&mut text).await;
    match done.await? {
        (97, _) => Err(Error::new(Code::HOST_TOOL_MISSING, "the host has no getfattr")
            .host(session.name())
            .hint("install the package attr, or leave out xattrs: they are copied all the same, but a change of them alone is not seen")),
        _ => Ok(parse(&text)),
    }
}

/// Blocks of `# file: PATH` and one line an attribute, parted by an empty line.
fn parse(text: &[u8]) -> HashMap<Vec<u8>, Vec<String>> {
    let mut all = HashMap::new();
    let mut at: Option<(Vec<u8>, Vec<String>)> = None;
    for line in text.split(|b| *b == b'\n').chain([b"".as_slice()]) {
        match (line.strip_prefix(b"# file: "), &mut at) {
            (Some(path), _) => {
                let path = unescape(path);
                let path = if path == b"." { Vec::new() } else { path.strip_prefix(b"./").map(<[u8]>::to_vec).unwrap_or(path) };
                at = Some((path, Vec::new()));
            }
            (None, Some((_, found))) if !line.is_empty() => found.push(String::from_utf8_lossy(line).into_owned()),
            _ => {
                if let Some((path, mut found)) = at.take() {
                    found.sort();
                    all.insert(path, found);
                }
            }
        }
    }
    all
}

/// `getfattr` writes odd bytes as `\ooo`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let [c, more @ ..] = rest {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', more @ ..] => {
                out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = more;
            }
            _ => {
                out.push(*c);
                rest = more;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dumps_are_read() {
        let text = b"# file: .\nuser.a=0x31\n\n# file: ./b\\012c\nuser.z=0x1\nuser.b=0x32\n\n";
        let all = parse(text);
        assert_eq!(all.get(&b""[..]).unwrap(), &["user.a=0x31"]);
        assert_eq!(all.get(&b"b\nc"[..]).unwrap(), &["user.b=0x32", "user.z=0x1"]);
        assert_eq!(all.len(), 2);
    }
}
