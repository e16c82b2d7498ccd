//! What is in a folder of a host: read as a sorted stream, one entry at a time, so that two folders of any size can be compared.

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::ssh::files::dashed;
use crate::ssh::{Channel, Exec, Session, quote};

/// One file, folder or link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Relative to the folder; the folder itself has the empty path.
    pub path: Vec<u8>,
    /// `f`, `d`, `l`, or another letter of `find`.
    pub kind: u8,
    pub mode: String,
    pub size: u64,
    /// Seconds with their fraction, as `find` prints them.
    pub mtime: String,
    pub owner: String,
    /// What a link leads to.
    pub link: Vec<u8>,
}

impl Entry {
    /// Whether the other side needs nothing for this entry, as far as it can be seen without reading content.
    pub(super) fn same(&self, there: &Entry, owners: bool) -> bool {
        if self.kind != there.kind || (owners && self.owner != there.owner) {
            return false;
        }
        match self.kind {
            b'l' => self.link == there.link,
            b'd' => self.mode == there.mode,
            _ => self.mode == there.mode && self.size == there.size && self.mtime == there.mtime,
        }
    }

    /// The path for messages.
    pub(super) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

/// The entries of a folder, in the order of their paths' bytes.
pub(super) struct Manifest {
    out: BufReader<Box<dyn tokio::io::AsyncRead + Send + Unpin>>,
    channel: Option<futures::future::BoxFuture<'static, Result<(i32, String)>>>,
    // Dropping it would end the listing's input; it reads none.
    _stdin: Box<dyn tokio::io::AsyncWrite + Send + Unpin>,
    host: String,
    folder: String,
    /// Whether this side's login is root, so that owners can be kept.
    pub root: bool,
    /// Whether the folder exists.
    pub there: bool,
}

impl Manifest {
    /// Begins to list `folder` on the host of `session`.
    pub(super) async fn open(cx: &Cx, session: &Session, folder: &str, sudo: bool) -> Result<Manifest> {
        let f = quote(&dashed(folder));
        // Fields are parted by the byte 1, which names hardly have (one that does is refused), entries by NUL.
        let script = format!(
            "id -u\nif [ ! -e {f} ]; then echo none; exit 0; fi\nif [ ! -d {f} ]; then echo file; exit 0; fi\necho there\n\
             cd {f} || exit 1\nLC_ALL=C find . -printf '%P\\001%y %m %s %T@ %u:%g\\001%l\\0' | LC_ALL=C sort -z"
        );
        let Channel { stdin, stdout, done } = session.open(cx, Exec { sudo, ..Exec::new(script) }).await?;
        let mut m = Manifest {
            out: BufReader::with_capacity(128 << 10, stdout),
            channel: Some(done),
            _stdin: stdin,
            host: session.name().to_string(),
            folder: folder.to_string(),
            root: false,
            there: false,
        };
        m.root = m.line().await? == "0";
        match m.line().await?.as_str() {
            "there" => m.there = true,
            "none" => {}
            "file" => {
                return Err(Error::new(Code::FILE_READ, format!("{folder} is not a folder"))
                    .host(&m.host)
                    .hint("copy_from copies folders; name the folder that holds the file, with exclude for the rest"));
            }
            _ => m.end().await?,
        }
        Ok(m)
    }

    async fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.out.read_line(&mut line).await.map_err(|e| self.failed(&e.to_string()))?;
        Ok(line.trim_end().to_string())
    }

    fn failed(&self, why: &str) -> Error {
        if why.contains("-printf") || why.contains("not found") {
            return Error::new(Code::HOST_TOOL_MISSING, format!("the host cannot list {}: {why}", self.folder))
                .host(&self.host)
                .hint("copy_from needs GNU find, sort, tar, xargs and sha256sum on both hosts");
        }
        Error::new(Code::FILE_READ, format!("{} cannot be listed: {why}", self.folder))
            .host(&self.host)
            .hint("check that the login may read it (or use sudo: true)")
    }

    async fn end(&mut self) -> Result<()> {
        let Some(done) = self.channel.take() else { return Ok(()) };
        let (status, stderr) = done.await?;
        // A file that vanished while it was listed is no failure: the next round sees it.
        let bad = |l: &&str| !l.trim().is_empty() && !l.contains("No such file or directory");
        match stderr.lines().find(bad) {
            Some(why) => Err(self.failed(why)),
            None if status != 0 => Err(self.failed(&format!("find ended with status {status}"))),
            None => Ok(()),
        }
    }

    /// The next entry; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Entry>> {
        if !self.there {
            return Ok(None);
        }
        let mut raw = Vec::new();
        let n = self.out.read_until(0, &mut raw).await.map_err(|e| self.failed(&e.to_string()))?;
        if n == 0 {
            self.end().await?;
            return Ok(None);
        }
        if raw.pop() != Some(0) {
            self.end().await?;
            return Err(self.failed("the list was cut short"));
        }
        parse(&raw).map(Some).ok_or_else(|| self.failed(&format!("a name that cannot be taken: {:?}", String::from_utf8_lossy(&raw))))
    }
}

fn parse(raw: &[u8]) -> Option<Entry> {
    let mut parts = raw.split(|b| *b == 1);
    let (path, facts, link) = (parts.next()?, parts.next()?, parts.next()?);
    // A name with the separator in it cannot be told apart.
    if parts.next().is_some() {
        return None;
    }
    let facts = std::str::from_utf8(facts).ok()?;
    let mut words = facts.split(' ');
    let kind = *words.next()?.as_bytes().first()?;
    let (mode, size, mtime, owner) = (words.next()?, words.next()?, words.next()?, words.next()?);
    Some(Entry {
        path: path.to_vec(),
        kind,
        mode: mode.to_string(),
        size: size.parse().ok()?,
        mtime: mtime.to_string(),
        owner: owner.to_string(),
        link: link.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_find_prints_them() {
        let e = parse(b"a b\n'c\x01f 644 12 1700000000.1234567890 www-data:www-data\x01").unwrap();
        assert_eq!((e.path.as_slice(), e.kind, e.size, e.mtime.as_str()), (b"a b\n'c".as_slice(), b'f', 12, "1700000000.1234567890"));
        let l = parse(b"l\x01l 777 3 1.0 a:b\x01../x").unwrap();
        assert_eq!((l.kind, l.link.as_slice()), (b'l', b"../x".as_slice()));
        assert!(parse(b"a\x01b\x01f 1 2 3 4\x01").is_none() && parse(b"").is_none());
        assert!(!e.same(&Entry { size: 13, ..e.clone() }, false));
        assert!(e.same(&Entry { owner: "x:y".into(), ..e.clone() }, false) && !e.same(&Entry { owner: "x:y".into(), ..e.clone() }, true));
    }
}
