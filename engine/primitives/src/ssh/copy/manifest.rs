//! What is in a folder of a host: read as a sorted stream, one entry at a time, so that two folders of any size can be compared.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use runbook_core::{Code, Error, Result};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::owners::Owners;
use super::{Job, tools};
use crate::ssh::files::dashed;
use crate::ssh::{Channel, Exec, Session, quote};

/// One file, folder or link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Relative to the folder; the folder itself has the empty path.
    pub path: Box<[u8]>,
    /// `f`, `d`, `l`, or another letter of `find`.
    pub kind: u8,
    pub mode: u32,
    pub size: u64,
    /// What it takes on the disk: less than its size for a file with holes.
    pub stored: u64,
    /// Seconds and their fraction in billionths.
    pub mtime: (i64, u32),
    /// `user:group`, by name or by number where there is none.
    pub owner: Arc<str>,
    /// What a link leads to.
    pub link: Box<[u8]>,
    /// The first path that is the same file, when this one is not the first.
    pub same_as: Option<Arc<[u8]>>,
    /// Whether it has several names.
    pub linked: bool,
}

impl Entry {
    /// Whether the other side needs nothing for this entry, as far as it can be seen without reading content.
    pub(super) fn same(&self, there: &Entry, owners: bool) -> bool {
        if self.kind != there.kind || (owners && self.owner != there.owner) || self.same_as != there.same_as {
            return false;
        }
        match self.kind {
            b'l' => self.link == there.link,
            b'd' => self.mode == there.mode && self.same_time(there),
            _ => self.mode == there.mode && self.size == there.size && self.same_time(there),
        }
    }

    /// Some file systems keep whole seconds only.
    fn same_time(&self, there: &Entry) -> bool {
        let (a, b) = (self.mtime, there.mtime);
        a.0 == b.0 && (a.1 == b.1 || a.1 == 0 || b.1 == 0)
    }

    pub(super) fn is_file(&self) -> bool {
        self.kind == b'f'
    }

    /// Whether it has holes.
    pub(super) fn sparse(&self) -> bool {
        self.is_file() && self.size > 64 << 10 && self.stored < self.size / 10 * 9
    }

    /// The path for messages.
    pub(super) fn shown(&self) -> String {
        shown(&self.path)
    }

    /// The path of the folder that holds it.
    pub(super) fn parent(&self) -> &[u8] {
        match self.path.iter().rposition(|b| *b == b'/') {
            Some(at) => self.path.get(..at).unwrap_or_default(),
            None => &[],
        }
    }

    /// The order in which both sides list: that of the path followed by `//`, as it stands in the list.
    pub(super) fn order(&self, other: &Entry) -> Ordering {
        let common = self.path.iter().zip(other.path.iter()).take_while(|(a, b)| a == b).count();
        let rest = |e: &Entry| e.path.get(common..).unwrap_or_default().iter().chain(b"//").take(2).copied().collect::<Vec<u8>>();
        rest(self).cmp(&rest(other))
    }
}

/// A path for messages.
pub(super) fn shown(path: &[u8]) -> String {
    if path.is_empty() {
        ".".into()
    } else {
        String::from_utf8_lossy(path).escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\"")
    }
}

/// The paths as `tar`, `rsync`, `xargs` and `rm` take them: ended by NUL, never like an option or a comment.
pub(super) fn list<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<u8> {
    let mut out = Vec::new();
    for e in entries {
        out.extend_from_slice(b"./");
        out.extend_from_slice(&e.path);
        out.push(0);
    }
    out
}

/// The entries of a folder, in the order of their paths' bytes.
pub(super) struct Manifest {
    out: BufReader<Box<dyn tokio::io::AsyncRead + Send + Unpin>>,
    channel: Option<futures::future::BoxFuture<'static, Result<(i32, String)>>>,
    // Dropping it would end the listing's input; it reads none.
    _stdin: Box<dyn tokio::io::AsyncWrite + Send + Unpin>,
    host: String,
    folder: String,
    names: Names,
    owners: Owners,
    /// Whether this side acts as root, so that owners can be kept.
    pub root: bool,
    /// Whether the folder exists.
    pub there: bool,
    /// Bytes and files for which there is room, when the host tells.
    pub room: (Option<u64>, Option<u64>),
    /// What the host's clock said before the listing, as `date +%s.%N` does.
    pub clock: String,
    /// When that was heard here.
    pub heard: Instant,
}

/// What a host says of itself: lines under headings.
#[derive(Debug, Default)]
pub(super) struct Said(Vec<(String, String)>);

impl Said {
    /// Takes the next line: a heading `@…`, or one of the lines below it.
    pub(super) fn take(&mut self, line: &str) {
        match (line.strip_prefix('@'), self.0.last_mut()) {
            (Some(heading), _) => self.0.push((heading.to_string(), String::new())),
            (None, Some((_, text))) => {
                if !text.is_empty() {
                    text.push('\n');
                }
                text.push_str(line);
            }
            (None, None) => {}
        }
    }

    /// What stands below a heading.
    pub(super) fn part(&self, heading: &str) -> &str {
        self.0.iter().find(|(h, _)| h == heading).map_or("", |(_, text)| text)
    }
}

/// What is seen once and referred to by many entries.
#[derive(Default)]
struct Names {
    owners: HashSet<Arc<str>>,
    /// The first path of a file with several names, by device and number.
    first: HashMap<(u64, u64), Arc<[u8]>>,
}

impl Manifest {
    /// Begins to list `folder` on the host of `session`.
    pub(super) async fn open(job: &Job<'_>, session: &Session, folder: &str) -> Result<Manifest> {
        let (cx, sudo) = (job.cx, job.o.sudo);
        let f = quote(&dashed(folder));
        let accounts = if job.o.numeric_ids { "" } else { super::owners::LOCAL };
        let probe = if tools::known(cx, session, sudo).is_none() { tools::PROBE } else { "" };
        // No path has `//` in it. The room is that of the nearest folder that exists.
        let script = format!(
            "exec 4>&2 2>/dev/null\nd={f}\nwhile [ ! -d \"$d\" ]; do case $d in */*) d=${{d%/*}};; *) d=.;; esac; d=${{d:-/}}; done\n\
             echo @user; id -u; echo @clock; date +%s.%N; echo @room; df -Pk -- \"$d\"; echo @files; df -Pi -- \"$d\"\n{accounts}{probe}exec 2>&4 4>&-\n\
             if [ ! -e {f} ] && [ ! -L {f} ]; then echo @none; exit 0; fi\nif [ ! -d {f} ]; then echo @file; exit 0; fi\n\
             cd -- {f} || exit 1\necho @there\n\
             LC_ALL=C find . -printf '%P//%y %m %s %T@ %D:%i %n %b %U:%G//%l\\0' | LC_ALL=C sort -z"
        );
        let Channel { stdin, stdout, done } = session.open(cx, Exec { sudo, ..Exec::new(script) }).await?;
        let mut m = Manifest {
            out: BufReader::with_capacity(128 << 10, stdout),
            channel: Some(done),
            _stdin: stdin,
            host: session.name().to_string(),
            folder: folder.to_string(),
            names: Names::default(),
            owners: Owners::Numbers,
            root: false,
            there: false,
            room: (None, None),
            clock: String::new(),
            heard: Instant::now(),
        };
        let mut said = Said::default();
        let how = loop {
            let line = m.line().await?;
            match line.trim_end() {
                how @ ("@there" | "@none" | "@file") => break how.to_string(),
                "" if line.is_empty() => break String::new(),
                text => said.take(text),
            }
        };
        let free = |part| said.part(part).lines().last().and_then(|l| l.split_whitespace().nth(3)?.parse::<u64>().ok());
        m.root = said.part("user") == "0";
        m.room = (free("room").map(|k| k.saturating_mul(1024)), free("files").filter(|n| *n > 0));
        m.heard = Instant::now();
        m.clock = said.part("clock").to_string();
        if !job.o.numeric_ids {
            m.owners = Owners::named(cx, session, &said);
        }
        if !probe.is_empty() {
            tools::learn(cx, session, sudo, &said);
        }
        match how.as_str() {
            "@there" => m.there = true,
            "@none" => {}
            "@file" => {
                return Err(Error::new(Code::FILE_READ, format!("{folder} is not a folder"))
                    .host(&m.host)
                    .hint("copy_from copies folders; name the folder that holds the file, with exclude for the rest"));
            }
            _ => {
                m.end().await?;
                return Err(m.failed("its list is empty"));
            }
        }
        Ok(m)
    }

    async fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.out.read_line(&mut line).await.map_err(|e| self.failed(&e.to_string()))?;
        Ok(line)
    }

    fn failed(&self, why: &str) -> Error {
        if why.contains("-printf") || why.contains("not found") {
            return Error::new(Code::HOST_TOOL_MISSING, format!("the host cannot list {}: {why}", self.folder))
                .host(&self.host)
                .hint(super::failure::TOOLS);
        }
        Error::new(Code::FILE_READ, format!("{} cannot be listed: {why}", self.folder))
            .host(&self.host)
            .hint("check that the login may read it (or use sudo: true), or leave it out with exclude")
    }

    async fn end(&mut self) -> Result<()> {
        let Some(done) = self.channel.take() else { return Ok(()) };
        let (status, stderr) = done.await?;
        // A file that vanished while it was listed is no failure: the next round sees it.
        let bad: Vec<&str> = stderr.lines().filter(|l| !l.trim().is_empty() && !l.contains("No such file or directory")).collect();
        match bad.as_slice() {
            [] if status != 0 => Err(self.failed(&format!("find ended with status {status}"))),
            [] => Ok(()),
            [one] => Err(self.failed(one)),
            [one, rest @ ..] => Err(self.failed(&format!("{one} (and {} more)", rest.len())).detail("paths", bad.join("\n"))),
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
        match parse(&raw, &mut self.names) {
            Some(mut e) => {
                e.owner = self.owners.of(&e.owner).await?;
                Ok(Some(e))
            }
            None => Err(self.failed(&format!("the host lists what cannot be understood: {:?}", String::from_utf8_lossy(&raw)))),
        }
    }
}

fn at_slashes(raw: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = raw.windows(2).position(|w| w == b"//")?;
    Some((raw.get(..at)?, raw.get(at + 2..)?))
}

fn parse(raw: &[u8], names: &mut Names) -> Option<Entry> {
    let (path, rest) = at_slashes(raw)?;
    let (facts, link) = at_slashes(rest)?;
    let facts = std::str::from_utf8(facts).ok()?;
    let mut words = facts.splitn(8, ' ');
    let kind = *words.next()?.as_bytes().first()?;
    let mode = u32::from_str_radix(words.next()?, 8).ok()?;
    let size = words.next()?.parse().ok()?;
    let time = words.next()?;
    let (seconds, fraction) = time.split_once('.').unwrap_or((time, ""));
    let billionths: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let (device, number) = words.next()?.split_once(':')?;
    let links: u64 = words.next()?.parse().ok()?;
    let blocks: u64 = words.next()?.parse().ok()?;
    let owner = words.next()?;
    let linked = kind == b'f' && links > 1;
    let mut same_as = None;
    if linked {
        let key = (device.parse().ok()?, number.parse().ok()?);
        match names.first.get(&key) {
            Some(first) => same_as = Some(first.clone()),
            None => {
                names.first.insert(key, path.into());
            }
        }
    }
    let owner = match names.owners.get(owner) {
        Some(known) => known.clone(),
        None => {
            let fresh: Arc<str> = owner.into();
            names.owners.insert(fresh.clone());
            fresh
        }
    };
    Some(Entry {
        path: path.into(),
        kind,
        mode,
        size,
        stored: blocks.saturating_mul(512),
        mtime: (seconds.parse().ok()?, billionths.parse().ok()?),
        owner,
        link: link.into(),
        same_as,
        linked,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An entry as `find` would print it.
    pub(in crate::ssh::copy) fn entry(path: &str, facts: &str) -> Entry {
        parse(format!("{path}//{facts}//").as_bytes(), &mut Names::default()).unwrap()
    }

    #[test]
    fn entries_are_read_as_find_prints_them() {
        let mut names = Names::default();
        let e = parse(b"a b\n'c//f 644 12 1700000000.1234567890 64:9 1 8 www-data:domain users//", &mut names).unwrap();
        assert_eq!((&*e.path, e.kind, e.mode, e.size, e.mtime), (b"a b\n'c".as_slice(), b'f', 0o644, 12, (1_700_000_000, 123_456_789)));
        assert_eq!(&*e.owner, "www-data:domain users");
        let l = parse(b"l//l 777 3 1.0 64:10 1 0 a:b//../x//y", &mut names).unwrap();
        assert_eq!((l.kind, &*l.link), (b'l', b"../x//y".as_slice()));
        assert!(parse(b"a//f 1 2", &mut names).is_none() && parse(b"", &mut names).is_none());
        assert!(!e.same(&Entry { size: 13, ..e.clone() }, false));
        assert!(e.same(&Entry { owner: "x:y".into(), ..e.clone() }, false) && !e.same(&Entry { owner: "x:y".into(), ..e.clone() }, true));
        assert!(e.same(&Entry { mtime: (1_700_000_000, 0), ..e.clone() }, true), "a file system without fractions");
        let root = parse(b"//d 755 3 -1.5 64:1 4 0 a:b//", &mut names).unwrap();
        assert_eq!((root.path.len(), root.mtime.0, shown(&root.path).as_str(), shown(b"a\n\xff").as_str()), (0, -1, ".", "a\\n\u{fffd}"));
    }

    #[test]
    fn names_of_one_file_are_told() {
        let mut names = Names::default();
        let mut p = |path: &str, number: u64| {
            parse(format!("{path}//f 644 1 1.0 64:{number} 2 8 a:b//").as_bytes(), &mut names).unwrap().same_as.map(|s| shown(&s))
        };
        assert_eq!((p("a", 7), p("b", 8), p("c", 7), p("d", 7)), (None, None, Some("a".into()), Some("a".into())));
    }

    #[test]
    fn the_order_is_that_of_the_host() {
        let mut paths = ["a", "a/b", "a/-x", "a b", "b", "", "a.c", "a//"].map(|p| if p == "a//" { "aa" } else { p }).to_vec();
        let mut raw: Vec<Vec<u8>> = paths.iter().map(|p| format!("{p}//x").into_bytes()).collect();
        raw.sort();
        paths.sort_by(|a, b| entry(a, "f 1 1 1.0 1:1 1 1 a:b").order(&entry(b, "f 1 1 1.0 1:1 1 1 a:b")));
        let want: Vec<String> = raw.iter().map(|r| String::from_utf8_lossy(r).trim_end_matches("//x").to_string()).collect();
        assert_eq!(paths, want);
    }
}
