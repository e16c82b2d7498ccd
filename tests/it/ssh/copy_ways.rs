//! Copies from host to host in every way: every attribute on both sides, what is left on the hosts, and what happens when it breaks off.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use runbook_core::primitive::Outcome;
use runbook_core::{Code, Result, Value};

use super::{Bench, failure, field, options};
use crate::support::have;
use crate::support::sshd::{Sshd, environment, processes};

pub(super) const WAYS: [(&str, &str); 4] = [("direct", "rsync"), ("controller", "rsync"), ("direct", "tar"), ("controller", "tar")];
pub(super) const FROM: &str = "up loads";
pub(super) const TO: &str = "the \"co'py\"";

pub(super) struct Pair {
    pub b: Bench,
    pub new: Sshd,
}

impl Pair {
    pub fn start() -> Option<Pair> {
        if !["rsync", "setfattr", "setfacl"].iter().all(|t| have(t)) {
            return None;
        }
        let mut b = Bench::new("")?;
        let new = Sshd::start("")?;
        b.env = environment(&[("old", b.host.settings()), ("new", new.settings())]);
        Some(Pair { b, new })
    }

    pub fn from(&self) -> PathBuf {
        self.b.host.home().join(FROM)
    }

    pub fn to(&self) -> PathBuf {
        self.new.home().join(TO)
    }

    async fn call(&self, id: &str, name: &'static str, opts: Value) -> Result<Outcome> {
        let host = |name: &str| self.b.pure(None, "host", None, vec![name.into()]).unwrap().as_record().unwrap().clone();
        self.b.act_on(&self.b.cx(id), host("new"), name, vec![host("old").into(), FROM.into(), TO.into(), opts]).await
    }

    pub async fn copy(&self, opts: Value) -> Result<Outcome> {
        self.call("copy-1", "copy_from", opts).await
    }

    /// Nothing of a copy is left on the hosts, and none of its processes.
    #[track_caller]
    pub fn tidy(&self, how: &str) {
        for home in [self.b.host.home(), self.new.home()] {
            assert!(!home.join(".runbook").exists(), "{how}: {}", list(&home.join(".runbook")));
            assert!(!home.join(".ssh").exists(), "{how}: {}", list(&home.join(".ssh")));
        }
        let partial = all(&self.to()).into_iter().find(|p| p.to_string_lossy().contains(".runbook-partial"));
        assert_eq!(partial, None, "{how}");
        assert_eq!(self.b.world.facts.lock().get("ssh/copy").cloned().unwrap_or(Value::List(vec![])), Value::List(vec![]), "{how}");
    }
}

pub(super) fn run(program: &str, args: &[&OsStr]) -> String {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn list(dir: &Path) -> String {
    run("find", &[dir.as_os_str()])
}

pub(super) fn all(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut stack) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(dir) = stack.pop() {
        found.push(dir.clone());
        for e in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if e.file_type().unwrap().is_dir() { stack.push(e.path()) } else { found.push(e.path()) }
        }
    }
    found.sort();
    found
}

/// Everything that must be equal on both sides, by path.
pub(super) fn picture(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut first = BTreeMap::new();
    let mut map = BTreeMap::new();
    for path in all(root) {
        let m = std::fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        if !m.is_file() && !m.is_dir() && !m.is_symlink() {
            continue;
        }
        let content = if m.is_file() {
            format!("{:x?}", md5(&std::fs::read(&path).unwrap()))
        } else if m.is_symlink() {
            std::fs::read_link(&path).unwrap().display().to_string()
        } else {
            String::new()
        };
        let same_as = if m.is_file() { first.entry((m.dev(), m.ino())).or_insert_with(|| name.clone()).clone() } else { vec![] };
        let holes = m.is_file() && m.blocks() * 512 < m.size() / 2;
        let time = if m.is_symlink() { (0, 0) } else { (m.mtime(), m.mtime_nsec()) };
        let attributes = if m.is_symlink() {
            String::new()
        } else {
            run(
                "getfattr",
                &["-h", "-d", "-m", "^user|^system.posix_acl", "-e", "hex", "--absolute-names"]
                    .map(OsStr::new)
                    .iter()
                    .copied()
                    .chain([path.as_os_str()])
                    .collect::<Vec<_>>(),
            )
            .lines()
            .filter(|l| l.contains('='))
            .collect()
        };
        map.insert(
            name,
            format!(
                "{:o} {}:{} {} {time:?} {content} {} holes={holes} {attributes}",
                m.mode(),
                m.uid(),
                m.gid(),
                if m.is_file() { m.size() } else { 0 },
                String::from_utf8_lossy(&same_as)
            ),
        );
    }
    map
}

/// A digest that is enough to tell contents apart.
fn md5(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

#[track_caller]
pub(super) fn same(a: &Path, b: &Path, how: &str) {
    let (x, y) = (picture(a), picture(b));
    for (path, facts) in &x {
        assert_eq!(Some(facts), y.get(path), "{how}: {:?}", String::from_utf8_lossy(path));
    }
    assert_eq!(x.len(), y.len(), "{how}");
}

pub(super) fn noise(n: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    (0..n)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect()
}

pub(super) fn touch(path: &Path, at: &str) {
    run("touch", &[OsStr::new("-h"), OsStr::new("-d"), OsStr::new(at), path.as_os_str()]);
}

/// A folder with one of everything.
fn fill(root: &Path) {
    std::fs::create_dir_all(root.join("d/deep er")).unwrap();
    std::fs::create_dir(root.join("hollow")).unwrap();
    for (i, name) in [
        &b"#comment"[..],
        b";also",
        b"-rf",
        b"a b",
        b"it's",
        b"q\"uote",
        b"new\nline",
        b"back\\slash",
        b"bad\xffutf8",
        b"*",
        b"d/\xc3\xbc",
        b"{}",
        b"~",
        b"x\x01y",
        b"trail ",
    ]
    .iter()
    .enumerate()
    {
        std::fs::write(root.join(OsStr::from_bytes(name)), format!("content {i}")).unwrap();
    }
    std::fs::write(root.join("big"), noise(20 << 20, 7)).unwrap();
    std::fs::write(root.join("d/two"), "one file").unwrap();
    std::fs::hard_link(root.join("d/two"), root.join("another name")).unwrap();
    std::fs::hard_link(root.join("d/two"), root.join("d/deep er/third")).unwrap();
    let hole = std::fs::File::create(root.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_at(&hole, b"in the middle", 9 << 20).unwrap();
    hole.set_len(24 << 20).unwrap();
    drop(hole);
    symlink("d/two", root.join("link")).unwrap();
    symlink("/nowhere/at all", root.join("dangling")).unwrap();
    run("mkfifo", &[root.join("pipe").as_os_str()]);
    let mode = |p: &str, m: u32| std::fs::set_permissions(root.join(p), std::fs::Permissions::from_mode(m)).unwrap();
    std::os::unix::fs::chown(root.join("a b"), Some(12345), Some(54321)).unwrap();
    std::os::unix::fs::chown(root.join("d/two"), Some(33), Some(33)).unwrap();
    std::os::unix::fs::lchown(root.join("link"), Some(33), Some(4)).unwrap();
    mode("-rf", 0o4711);
    mode("it's", 0o400);
    mode("hollow", 0o2751);
    run(
        "setfattr",
        &["-n", "user.note", "-v", "kept"].map(OsStr::new).iter().copied().chain([root.join("big").as_os_str()]).collect::<Vec<_>>(),
    );
    run(
        "setfattr",
        &["-n", "user.of", "-v", "a folder"].map(OsStr::new).iter().copied().chain([root.join("hollow").as_os_str()]).collect::<Vec<_>>(),
    );
    run("setfacl", &["-m", "u:12345:rw,g:4:r"].map(OsStr::new).iter().copied().chain([root.join("a b").as_os_str()]).collect::<Vec<_>>());
    touch(&root.join("big"), "2001-02-03T04:05:06.123456789");
    touch(&root.join("sparse"), "1969-12-30T00:00:00");
    touch(&root.join("d/deep er"), "2011-11-11T11:11:11.5");
    touch(&root.join("hollow"), "2012-12-12T12:12:12");
    touch(root, "2013-01-01T00:00:00");
}

pub(super) fn way(via: &str, tool: &str, more: &[(&str, Value)]) -> Value {
    let mut all: BTreeMap<String, Value> = more.iter().map(|(k, v)| ((*k).to_string(), v.clone())).collect();
    all.insert("via".into(), via.into());
    all.insert("tool".into(), tool.into());
    Value::Map(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_attribute_in_every_way() {
    for (via, tool) in WAYS {
        let Some(p) = Pair::start() else { return };
        let how = format!("{tool} {via}");
        fill(&p.from());
        // rsync leaves the time of a folder that it has made in the same second as that of the source.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let began = Instant::now();
        let o = p.copy(way(via, tool, &[])).await.unwrap_or_else(|e| panic!("{how}: {e:?}\n{}\n{}", p.b.host.log(), p.new.log()));
        eprintln!("{how}: {:?} {}", began.elapsed(), o.note.clone().unwrap_or_default());
        assert_eq!((field(&o, "via"), field(&o, "tool")), (via.into(), tool.into()));
        same(&p.from(), &p.to(), &how);
        assert!(p.b.world.messages.lock().iter().any(|m| m.starts_with("1 sockets, pipes or devices")), "{how}");
        p.tidy(&how);
        let o = p.copy(way(via, tool, &[("xattrs", true.into()), ("checksum", true.into())])).await.unwrap();
        assert_eq!((o.changed, field(&o, "files")), (Some(false), 0i64.into()), "{how}: {o:?}");
        // A part of a large file, an attribute alone, one name of three, a folder's time, and what only the target has.
        let mut big = std::fs::read(p.from().join("big")).unwrap();
        big[5 << 20..(5 << 20) + 9].copy_from_slice(b"different");
        std::fs::write(p.from().join("big"), &big).unwrap();
        run(
            "setfattr",
            &["-n", "user.later", "-v", "x"].map(OsStr::new).iter().copied().chain([p.from().join("-rf").as_os_str()]).collect::<Vec<_>>(),
        );
        std::fs::write(p.from().join("d/two"), "changed through one name").unwrap();
        touch(&p.from().join("hollow"), "2014-01-01T00:00:00");
        std::fs::write(p.to().join("extra"), "x").unwrap();
        std::fs::hard_link(p.to().join("a b"), p.to().join("it's the same")).unwrap();
        let d = p.call("d", "diff_from", options([("xattrs", true.into())])).await.unwrap();
        assert_eq!((field(&d, "extra"), field(&d, "new"), d.changed), (2i64.into(), 0i64.into(), None), "{d:?}");
        let o = p.copy(way(via, tool, &[("xattrs", true.into()), ("delete", true.into())])).await.unwrap();
        same(&p.from(), &p.to(), &how);
        assert_eq!(field(&o, "deleted"), 2i64.into(), "{how}");
        let Value::Bytes(sent) = field(&o, "sent") else { panic!("{o:?}") };
        assert!(sent < if tool == "rsync" { 1 << 20 } else { 3 << 20 }, "{how}: only what changed of a large file goes over: {sent}");
        // What is left alone stays so, also when the folder around it has changed.
        std::fs::write(p.from().join("left alone"), "x").unwrap();
        std::fs::write(p.from().join("comes"), "y").unwrap();
        p.copy(way(via, tool, &[("exclude", Value::List(vec!["left alone".into()]))])).await.unwrap();
        assert!(p.to().join("comes").exists() && !p.to().join("left alone").exists(), "{how}");
        std::fs::remove_file(p.from().join("left alone")).unwrap();
        p.copy(way(via, tool, &[])).await.unwrap();
        same(&p.from(), &p.to(), &how);
        // What looks equal and is not.
        let note = p.to().join("it's");
        let before = std::fs::metadata(&note).unwrap().modified().unwrap();
        std::fs::write(&note, "CONTENT 4").unwrap();
        std::fs::File::options().write(true).open(&note).unwrap().set_modified(before).unwrap();
        assert_eq!(p.copy(way(via, tool, &[])).await.unwrap().changed, Some(false));
        let o = p.copy(way(via, tool, &[("checksum", true.into()), ("verify", "size".into())])).await.unwrap();
        assert_eq!(o.changed, Some(true), "{how}");
        same(&p.from(), &p.to(), &how);
        p.tidy(&how);
    }
}

/// Waits until the transfer's key is there, and gives its folder and the line that lets it in.
async fn at_work(p: &Pair, id: &str) -> (PathBuf, String) {
    let folder = p.b.host.home().join(format!(".runbook/test-run/copy-{id}-client"));
    let keys = p.new.home().join(".ssh/authorized_keys");
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let line = std::fs::read_to_string(&keys).unwrap_or_default();
        if folder.join("pid").exists() && line.contains("runbook-copy:") {
            return (folder, line);
        }
        assert!(Instant::now() < until, "no transfer: {}\n{}", list(&p.b.host.home()), p.new.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_a_transfer_can_do_nothing_else() {
    let Some(p) = Pair::start() else { return };
    std::fs::create_dir_all(p.from()).unwrap();
    std::fs::write(p.from().join("big"), noise(6 << 20, 3)).unwrap();
    // Somebody's keys, without a line end: they must come back to the last byte.
    let keys = p.new.home().join(".ssh/authorized_keys");
    std::fs::create_dir(p.new.home().join(".ssh")).unwrap();
    std::fs::write(&keys, "# mine\nssh-ed25519 AAAA somebody").unwrap();
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o640)).unwrap();
    let stale = "restrict,command=\"x\" ssh-ed25519 BBBB runbook-copy:an-old-run:act:1700000000:\n";
    std::fs::write(&keys, format!("{stale}# mine\nssh-ed25519 AAAA somebody")).unwrap();
    let copying = p.copy(way("direct", "rsync", &[("bandwidth", Value::Bytes(1 << 20))]));
    let looking = async {
        let (folder, text) = at_work(&p, "copy-1").await;
        let line = text.lines().next().unwrap();
        assert!(
            line.starts_with("restrict,expiry-time=\"2") && line.contains("\",command=\"sh '") && line.contains(" ssh-ed25519 AAAA"),
            "{line}"
        );
        assert!(!text.contains("an-old-run"), "a line whose time is over goes");
        let serve = std::fs::read_to_string(p.new.home().join(".runbook/test-run/copy-copy-1-server/serve")).unwrap();
        assert!(serve.contains("exec rsync --server -l") && !serve.contains("--sender"), "{serve}");
        assert_eq!(std::fs::metadata(folder.join("key")).unwrap().mode() & 0o777, 0o600);
        // The key, used by somebody else for something else.
        let out = Command::new("ssh")
            .args([
                "-F",
                "/dev/null",
                "-o",
                "IdentitiesOnly=yes",
                "-o",
                "BatchMode=yes",
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
            ])
            .args(["-p", &p.new.port.to_string(), "-i"])
            .arg(folder.join("key"))
            .args(["127.0.0.1", "touch broken-in; id"])
            .env_remove("SSH_AUTH_SOCK")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(!String::from_utf8_lossy(&out.stdout).contains("uid="), "{out:?}");
        assert!(!p.new.home().join("broken-in").exists() && !PathBuf::from("/root/broken-in").exists());
        let private = std::fs::read_to_string(folder.join("key")).unwrap();
        let secret = private.lines().nth(2).unwrap().to_string();
        assert!(!processes().iter().any(|x| x.command.contains(&secret)), "no key in ps");
    };
    let (o, ()) = tokio::join!(copying, looking);
    assert_eq!(field(&o.unwrap(), "via"), "direct".into());
    assert_eq!(std::fs::read_to_string(&keys).unwrap(), "# mine\nssh-ed25519 AAAA somebody");
    assert_eq!(std::fs::metadata(&keys).unwrap().mode() & 0o777, 0o640);
    assert!(!p.new.home().join(".runbook").exists() && !p.b.host.home().join(".runbook").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_in_mid_transfer_is_gone_on_from() {
    for (via, tool) in WAYS {
        let Some(p) = Pair::start() else { return };
        let how = format!("{tool} {via}");
        std::fs::create_dir_all(p.from()).unwrap();
        for i in 0..6 {
            std::fs::write(p.from().join(format!("f{i}")), noise(8 << 20, i + 9)).unwrap();
        }
        let slow = if tool == "rsync" || via == "controller" { vec![("bandwidth", Value::Bytes(24 << 20))] } else { vec![] };
        let opts = way(via, tool, &slow);
        let cut = async {
            let until = Instant::now() + Duration::from_secs(30);
            // Something has come, or is on its way.
            while !all(&p.to()).iter().any(|f| f.is_file() && std::fs::metadata(f).is_ok_and(|m| m.len() > 0)) && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tokio::time::sleep(Duration::from_millis(if slow.is_empty() { 30 } else { 600 })).await;
            p.b.host.cut();
            p.new.cut();
        };
        let (o, ()) = tokio::join!(p.copy(opts), cut);
        let o = o.unwrap_or_else(|e| panic!("{how}: {e:?}"));
        eprintln!("{how}: {} {:?}", o.note.unwrap_or_default(), p.b.world.messages.lock());
        same(&p.from(), &p.to(), &how);
        p.tidy(&how);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_do_not_reach_each_other() {
    let Some(p) = Pair::start() else { return };
    std::fs::create_dir_all(p.from()).unwrap();
    std::fs::write(p.from().join("big"), noise(20 << 20, 5)).unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).unwrap().to_string();
    let nowhere = || [("from_address", Value::from(closed.clone())), ("to_address", closed.clone().into())];
    let e = failure(p.copy(way("direct", "rsync", &nowhere())).await, Code::SSH_CONNECT);
    assert!(e.message.contains("old to new") && e.message.contains("new to old") && e.message.contains("refused"), "{e}");
    p.tidy("nowhere");
    // Another server in its place: its key is not the one that the controller knows.
    let other = Sshd::start("").unwrap();
    let there = format!("127.0.0.1:{}", other.port);
    let e = failure(
        p.copy(way("direct", "tar", &[("from_address", there.clone().into()), ("to_address", there.into())])).await,
        Code::SSH_CONNECT,
    );
    assert!(e.message.contains("Host key verification failed"), "{e}");
    p.tidy("impostor");
    let o = p.copy(options(nowhere())).await.unwrap();
    assert_eq!((field(&o, "via"), field(&o, "tool")), ("controller".into(), "tar".into()));
    assert!(p.b.world.messages.lock().iter().any(|m| m.contains("through the controller, since the hosts cannot copy to each other")));
    same(&p.from(), &p.to(), "nowhere");
    // One direction is enough.
    std::fs::write(p.from().join("more"), noise(20 << 20, 6)).unwrap();
    for tool in ["rsync", "tar"] {
        std::fs::write(p.from().join("more"), noise(20 << 20, 8)).unwrap();
        let o = p.copy(way("direct", tool, &[("to_address", closed.clone().into())])).await.unwrap();
        assert_eq!(field(&o, "via"), "direct".into());
        same(&p.from(), &p.to(), "pull");
        std::fs::remove_file(p.to().join("more")).unwrap();
    }
    p.tidy("pull");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_what_has_come_stays() {
    for (via, tool) in WAYS {
        let Some(p) = Pair::start() else { return };
        let how = format!("{tool} {via}");
        std::fs::create_dir_all(p.from()).unwrap();
        for i in 0..20 {
            std::fs::write(p.from().join(format!("f{i:02}")), noise(1 << 20, i + 9)).unwrap();
        }
        std::fs::create_dir(p.to()).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "none"]).arg(p.to()).status();
        if !mounted.is_ok_and(|s| s.success()) {
            eprintln!("skipped: nothing can be mounted here");
            return;
        }
        let e = p.copy(way(via, tool, &[])).await;
        let all_the_same = p.copy(way(via, tool, &[("check_space", false.into())])).await;
        let _ = Command::new("mount").args(["-o", "remount,size=64m"]).arg(p.to()).status();
        let then = p.copy(way(via, tool, &[])).await;
        let equal = (picture(&p.from()), picture(&p.to()));
        let _ = Command::new("umount").arg(p.to()).status();
        let e = failure(e, Code::DISK_SPACE);
        assert!(e.message.contains("it needs 20MiB more, and 8MiB are free"), "{how}: {e}");
        let e = failure(all_the_same, Code::DISK_SPACE);
        assert!(e.message.contains("No space left") && e.host.as_deref() == Some("new"), "{how}: {e}");
        let o = then.unwrap();
        let files = field(&o, "files").as_int().unwrap();
        assert!(files < 20, "{how}: only what is missing: {files}");
        assert!(equal.0 == equal.1, "{how}");
        p.tidy(&how);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deletes_have_a_limit() {
    let Some(p) = Pair::start() else { return };
    std::fs::create_dir_all(p.from()).unwrap();
    std::fs::create_dir_all(p.to()).unwrap();
    for i in 0..150 {
        std::fs::write(p.to().join(format!("f{i}")), "x").unwrap();
    }
    let e = failure(p.copy(options([("delete", true.into())])).await, Code::COPY_DELETES);
    assert!(
        e.message.starts_with("150 of 151 entries of the \"co'py\" would be deleted") && e.message.ends_with("the limit is 100"),
        "{e}"
    );
    assert!(e.hint.unwrap().contains("max_delete: 150"));
    assert_eq!(all(&p.to()).len(), 151);
    let o = p.copy(options([("delete", true.into()), ("max_delete", 150i64.into())])).await.unwrap();
    assert_eq!(field(&o, "deleted"), 150i64.into());
    assert_eq!(all(&p.to()).len(), 1);
    for (name, value) in [("via", "rsync"), ("tool", "scp"), ("verify", "no")] {
        failure(p.copy(options([(name, value.into())])).await, Code::COMMAND_BAD);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_never_rests_is_named() {
    let Some(p) = Pair::start() else { return };
    std::fs::create_dir_all(p.from()).unwrap();
    std::fs::write(p.from().join("quiet"), "x").unwrap();
    std::fs::write(p.from().join("live.log"), noise(1 << 20, 4)).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    for tool in ["tar", "rsync"] {
        std::thread::scope(|s| {
            s.spawn(|| {
                let file = std::fs::File::options().write(true).open(p.from().join("live.log")).unwrap();
                let mut i = 0u64;
                while !stop.load(std::sync::atomic::Ordering::Acquire) {
                    i += 1;
                    std::os::unix::fs::FileExt::write_at(&file, &i.to_le_bytes(), 500_000).unwrap();
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let copy = |more: &[(&str, Value)]| {
                tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(p.copy(way("controller", tool, more))))
            };
            // A pass ahead takes what it can, and leaves the file so that the next one sees it.
            let ahead = copy(&[("accept_changing", true.into())]).unwrap();
            assert_eq!(ahead.value.as_record().unwrap().get("changing"), &crate::support::list(&["live.log"]), "{:?}", ahead.note);
            let age = std::fs::metadata(p.to().join("live.log")).unwrap().modified().unwrap();
            assert!(age < std::time::UNIX_EPOCH + Duration::from_secs(200_000), "{age:?}");
            let done = copy(&[]);
            stop.store(true, std::sync::atomic::Ordering::Release);
            let e = failure(done, Code::FILE_CHECKSUM);
            assert!(e.retryable && e.message.contains("live.log") && !e.message.contains("quiet"), "{e}");
        });
        stop.store(false, std::sync::atomic::Ordering::Release);
        p.copy(way("controller", tool, &[])).await.unwrap();
        same(&p.from(), &p.to(), tool);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_files() {
    let Some(p) = Pair::start() else { return };
    for i in 0..20_000 {
        if i < 100 {
            std::fs::create_dir_all(p.from().join(format!("d{i}"))).unwrap();
        }
        std::fs::write(p.from().join(format!("d{}/file {i}", i % 100)), format!("content of {i}\n").repeat(i % 50)).unwrap();
    }
    for (via, tool) in WAYS {
        let how = format!("{tool} {via}");
        let _ = std::fs::remove_dir_all(p.to());
        let began = Instant::now();
        let o = p.copy(way(via, tool, &[])).await.unwrap();
        let first = began.elapsed();
        assert_eq!(field(&o, "files"), 20_101i64.into(), "{how}");
        let began = Instant::now();
        let again = p.copy(way(via, tool, &[])).await.unwrap();
        assert_eq!((again.changed, field(&again, "equal")), (Some(false), 20_101i64.into()));
        eprintln!("{how}: first {first:?}, nothing to do {:?}", began.elapsed());
    }
    let names = |root: &Path| {
        all(root).iter().map(|f| (f.strip_prefix(root).unwrap().to_path_buf(), std::fs::metadata(f).unwrap().len())).collect::<Vec<_>>()
    };
    assert!(names(&p.from()).iter().map(|x| &x.0).eq(names(&p.to()).iter().map(|x| &x.0)));
    p.tidy("many");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_rsync_tar_carries_it() {
    let Some(p) = Pair::start() else { return };
    // A host on which everything is but rsync.
    let bin = p.new.path("bin");
    std::fs::create_dir(&bin).unwrap();
    for dir in ["/usr/bin", "/bin", "/usr/sbin"] {
        for e in std::fs::read_dir(dir).unwrap().flatten().filter(|e| e.file_name() != "rsync") {
            let _ = symlink(e.path(), bin.join(e.file_name()));
        }
    }
    let mut p = p;
    p.new.down();
    p.new.configure(&format!("SetEnv PATH={}", bin.display()));
    p.new.up();
    fill(&p.from());
    let e = failure(p.copy(options([("tool", "rsync".into())])).await, Code::HOST_TOOL_MISSING);
    assert!(e.message.contains("rsync (3.1 or newer) is not on both old and new"), "{e}");
    let o = p.copy(options([("via", "direct".into())])).await.unwrap();
    assert_eq!((field(&o, "via"), field(&o, "tool")), ("direct".into(), "tar".into()));
    same(&p.from(), &p.to(), "no rsync");
    p.tidy("no rsync");
}
