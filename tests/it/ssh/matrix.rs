//! The same commands on every server, and servers and logins that are not as one would wish. What is not here runs on every server
//! in the other files, by `Bench::every`.

use std::time::{Duration, Instant};

use runbook_core::digest::{Sha256Hex, sha256_hex};
use runbook_core::{Code, Value};
use runbook_primitives::ssh::{self, Exec};

use super::{Bench, failure, field, options};
use crate::support::proxy::Proxy;
use crate::support::server::{Dropbear, Kind, Server};
use crate::support::sshd::{Around, Sshd};

fn kept(o: &runbook_core::primitive::Outcome, stream: &str) -> runbook_core::Record {
    field(o, "whole").as_map().and_then(|m| m.get(stream)?.as_record()).unwrap_or_else(|| panic!("{stream} is kept: {:?}", o.note)).clone()
}

/// A server whose login has this shell, in OpenSSH and in dropbear.
fn with_shell(kind: Kind, shell: &str) -> Option<Bench> {
    let around = Around { shell: Some(shell.into()), home: None, ..Around::default() };
    eprintln!("== {shell} on {kind:?}");
    match kind {
        Kind::OpenSsh => Sshd::start_in("", around).map(|s| Bench::of(Server::OpenSsh(s))),
        _ => Dropbear::start(&[], around).map(|s| Bench::of(Server::Dropbear(s))),
    }
}

/// What must work wherever a command can be run at all.
async fn the_usual(b: &Bench, what: &str) {
    let project = tempfile::tempdir().unwrap();
    *b.world.folder.lock() = Some(project.path().into());
    let tricky = "a'b \"c\" \\\\ \\n $HOME !x #y %z\nnext";
    std::fs::create_dir_all(b.host.home().join("it's a \\ folder!x")).unwrap();
    for name in ["run", "read"] {
        let opts = options([("cwd", "it's a \\ folder!x".into()), ("env", options([("A", tricky.into())])), ("stdin", tricky.into())]);
        let args = vec![Value::from("pwd; printf '%s|' \"$A\"; cat; echo err >&2; : \"\\\\ !x\""), opts];
        let o = b.act(&format!("{what}-{name}"), name, args).await.unwrap_or_else(|e| panic!("{what} {name}: {e:?}"));
        let want = format!("{}/it's a \\ folder!x\n{tricky}|{tricky}", b.host.home().display());
        assert_eq!((field(&o, "stdout"), field(&o, "stderr")), (want.into(), "err\n".into()), "{what} {name}");
        let o = b.act(&format!("{what}-{name}-bin"), name, vec!["printf '\\000\\377\\r\\n'".into()]).await.unwrap();
        let file = std::fs::read(project.path().join(kept(&o, "stdout").str("file"))).unwrap();
        assert_eq!(file, b"\0\xff\r\n", "{what} {name}");
    }
    let o = b.act(&format!("{what}-try"), "try_run", vec!["exit 3".into()]).await.unwrap();
    assert_eq!(field(&o, "status"), 3i64.into(), "{what}");
    // Asked a second time under the same id, it gives the first answer.
    let once = || vec![Value::from("echo once >>ran; cat ran")];
    for _ in 0..2 {
        assert_eq!(field(&b.act(&format!("{what}-once"), "run", once()).await.unwrap(), "stdout"), "once\n".into(), "{what}");
    }
    let data: Vec<u8> = (0..1u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    b.world.files.lock().insert("blob".into(), data.clone());
    b.act(&format!("{what}-up"), "upload", vec!["blob".into(), "up".into()]).await.unwrap();
    assert!(std::fs::read(b.host.home().join("up")).unwrap() == data, "{what}");
    b.act(&format!("{what}-down"), "download", vec!["up".into(), "down".into()]).await.unwrap();
    assert!(std::fs::read(project.path().join("down")).unwrap() == data, "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_server_runs_commands_and_moves_files() {
    for b in Bench::every() {
        the_usual(&b, "usual").await;
    }
}

/// The numbers from 1, a line each, up to this size.
fn numbers(limit: usize) -> (u64, String, usize) {
    let (mut hash, mut size, mut n) = (Sha256Hex::default(), 0, 0u64);
    while size < limit {
        n += 1;
        let line = format!("{n}\n");
        hash.update(line.as_bytes());
        size += line.len();
    }
    (n, hash.finish(), size)
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_megabytes_of_output_are_whole() {
    let (n, hash, size) = numbers(50_000_000);
    for b in Bench::every() {
        let project = tempfile::tempdir().unwrap();
        *b.world.folder.lock() = Some(project.path().into());
        for name in ["run", "read"] {
            let began = Instant::now();
            let o = b.act(name, name, vec![format!("seq 1 {n}").into()]).await.unwrap();
            b.world.output.lock().clear();
            let k = kept(&o, "stdout");
            assert_eq!((k.get("bytes").as_int(), k.str("sha256")), (Some(size as i64), hash.as_str()), "{name}");
            let file = std::fs::read(project.path().join(k.str("file"))).unwrap();
            assert_eq!(sha256_hex(&file), hash, "{name}");
            assert!(field(&o, "stdout").as_str().unwrap().len() < (256 << 10) + 200);
            eprintln!("{size} bytes by {name}: {:?}", began.elapsed());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn login_shells_of_every_kind() {
    for kind in [Kind::OpenSsh, Kind::Dropbear] {
        for shell in ["fish", "csh", "tcsh", "mksh", "ksh93", "bash", "dash"] {
            if !crate::support::have(shell) {
                continue;
            }
            let path = ["/usr/bin", "/bin"].iter().map(|d| format!("{d}/{shell}")).find(|p| std::path::Path::new(p).exists()).unwrap();
            // dropbear lets only shells of /etc/shells in.
            if kind == Kind::Dropbear && !std::fs::read_to_string("/etc/shells").unwrap_or_default().lines().any(|l| l == path) {
                continue;
            }
            let Some(b) = with_shell(kind, &path) else { return };
            the_usual(&b, shell).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_start_files_print_is_not_output() {
    let noise = "echo noise; echo noise >&2; printf 'no newline'\n";
    for (shell, file) in [("/bin/bash", ".bashrc"), ("/usr/bin/fish", ".config/fish/config.fish"), ("/usr/bin/tcsh", ".cshrc")] {
        if !std::path::Path::new(shell).exists() {
            continue;
        }
        let Some(b) = with_shell(Kind::OpenSsh, shell) else { return };
        b.write(file, if shell.ends_with("tcsh") { "echo noise\n" } else { noise });
        let cx = b.cx("noise");
        let s = ssh::connect(&cx, "old").await.unwrap();
        let done = s.exec(&cx, Exec::new("echo out; echo err >&2")).await.unwrap();
        assert_eq!((done.stdout.as_slice(), done.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]), "{shell}");
        let mut stream = s.open(&cx, Exec::new("printf 'a\\0b'")).await.unwrap();
        let mut got = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut stream.stdout, &mut got).await.unwrap();
        assert_eq!(got, b"a\0b", "{shell}");
        the_usual(&b, "noisy").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn banner_and_motd_are_no_matter() {
    let dir = tempfile::tempdir().unwrap();
    let banner = dir.path().join("banner");
    std::fs::write(&banner, "Authorized use only.\n".repeat(90)).unwrap();
    let banner = banner.display().to_string();
    if let Some(b) = Bench::new(&format!("Banner {banner}\nPrintLastLog yes")) {
        the_usual(&b, "banner").await;
    }
    if let Some(s) = Dropbear::start(&["-b", &banner], Around::default()) {
        the_usual(&Bench::of(Server::Dropbear(s)), "banner").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_at_a_time() {
    let Some(b) = Bench::new("MaxSessions 1") else { return };
    the_usual(&b, "single").await;
    let all =
        futures::future::join_all(
            (0..12).map(|i| {
                let b = &b;
                async move {
                    b.act(&format!("s-{i}"), if i % 2 == 0 { "run" } else { "read" }, vec![format!("echo {i}; sleep .1").into()]).await
                }
            }),
        );
    for (i, o) in all.await.into_iter().enumerate() {
        assert_eq!(field(&o.unwrap(), "stdout"), format!("{i}\n").into());
    }
}

/// A login that runs nothing: the error says what it did instead, at once, and nothing has run.
async fn runs_nothing(b: &Bench, what: &str, said: &str) {
    for name in ["run", "read"] {
        let began = Instant::now();
        let e = failure(b.act(&format!("{what}-{name}"), name, vec!["touch ran".into()]).await, Code::NOT_RUN);
        assert!(e.message.contains(said), "{what}: {e}");
        assert!(!e.retryable && began.elapsed() < Duration::from_secs(10), "{what}: {:?}", began.elapsed());
    }
    assert!(!b.host.home().join("ran").exists(), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_that_run_no_commands_are_told_apart() {
    if let Some(b) = Bench::new("ForceCommand echo only backups here") {
        runs_nothing(&b, "forced", "only backups here").await;
    }
    if let Some(b) = Bench::new("ForceCommand cat") {
        runs_nothing(&b, "cat", "status 0").await;
    }
    if let Some(b) = Bench::new("ForceCommand head -c 10000000 /dev/zero") {
        runs_nothing(&b, "flood", "status 0").await;
    }
    if let Some(b) = Bench::new("") {
        let key = std::fs::read_to_string(b.host.path("user_key.pub")).unwrap();
        std::fs::write(b.host.path("authorized_keys"), format!("command=\"echo nothing for you; exit 4\" {key}")).unwrap();
        runs_nothing(&b, "key", "status 4 and said: nothing for you").await;
        // One that passes the command on is no hindrance.
        std::fs::write(b.host.path("authorized_keys"), format!("command=\"sh -c \\\"$SSH_ORIGINAL_COMMAND\\\"\" {key}")).unwrap();
    }
    if let Some(b) = Bench::new("ForceCommand exec sh -c \"$SSH_ORIGINAL_COMMAND\"") {
        the_usual(&b, "passed-on").await;
    }
    for (shell, said) in [("/bin/false", "status 1"), ("/usr/sbin/nologin", "not available")] {
        let Some(b) = with_shell(Kind::OpenSsh, shell) else { return };
        runs_nothing(&b, shell.rsplit('/').next().unwrap(), said).await;
    }
    if let Some(s) = Dropbear::start(&["-c", "echo only backups here"], Around::default()) {
        runs_nothing(&Bench::of(Server::Dropbear(s)), "dropbear", "only backups here").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_server_and_a_slow_shell() {
    for mut b in Bench::every() {
        let place = b.host.settings().get("ssh").and_then(|v| v.as_str()?.split_once('@').map(|(_, p)| p.to_string())).unwrap();
        let proxy = Proxy::start(place).await;
        let dir = tempfile::tempdir().unwrap();
        b.env = crate::support::sshd::environment(&[("old", proxy.settings(&b.host.settings(), dir.path()))]);
        proxy.slow(Duration::from_millis(40), 1400);
        let o = b.act("slow", "run", vec!["seq 1 5000".into(), options([("stdin", "x".repeat(5000).into())])]).await.unwrap();
        let want: String = (1..=5000).map(|i| format!("{i}\n")).collect();
        assert!(field(&o, "stdout") == want.into());
        assert_eq!(field(&b.act("slow-read", "read", vec!["echo hi".into()]).await.unwrap(), "stdout"), "hi\n".into());
        assert_eq!(proxy.connections(), 1);
    }
    // A login shell that takes its time.
    let Some(b) = with_shell(Kind::OpenSsh, "/bin/bash") else { return };
    b.write(".bashrc", "sleep 3\n");
    the_usual(&b, "slow-shell").await;
}

/// A small file system of its own under the login's folder for claims; gone on drop.
struct Disk(std::path::PathBuf);

impl Disk {
    fn mount(at: std::path::PathBuf, size: &str) -> Option<Disk> {
        std::fs::create_dir_all(&at).unwrap();
        let options = format!("size={size},mode=700");
        let done = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &options, "runbook-test"]).arg(&at).status();
        if done.is_ok_and(|s| s.success()) {
            return Some(Disk(at));
        }
        assert!(std::env::var_os("CI").is_none(), "no file system can be mounted, and CI is set");
        eprintln!("skipped: no file system can be mounted here (needs root)");
        None
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_claims() {
    let Some(b) = Bench::new("") else { return };
    let Some(disk) = Disk::mount(b.host.home().join(".runbook"), "256k") else { return };
    // The command's own output fills the disk: it sees that, and its exit status is true all the same.
    let script = "head -c 1000000 /dev/zero 2>/dev/null; echo $? >../../../seen; exit 5";
    let o = b.act("fills", "try_run", vec![script.into(), options([("cwd", ".runbook/test-run/fills".into())])]).await.unwrap();
    assert_eq!(field(&o, "status"), 5i64.into());
    assert_eq!(b.read("seen"), "1\n", "the command was told that it could not write");
    // Nothing more can be claimed, and that is said before anything runs.
    std::process::Command::new("sh").arg("-c").arg("cat /dev/zero >\"$0\"/fill 2>/dev/null").arg(&disk.0).status().unwrap();
    let e = failure(b.act("full", "run", vec!["touch ran".into()]).await, Code::SUPERVISOR);
    assert!(e.message.contains("full") || e.message.contains("No space"), "{e}");
    assert!(!b.host.home().join("ran").exists());
    // Once there is room, it runs.
    let _ = std::fs::remove_file(disk.0.join("fill"));
    let _ = std::fs::remove_dir_all(disk.0.join("test-run/fills"));
    b.act("full", "run", vec!["touch ran".into()]).await.unwrap();
    assert!(b.host.home().join("ran").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_is_missing_or_read_only() {
    let around = Around { home: Some("/nonexistent/home".into()), ..Around::default() };
    let Some(s) = Sshd::start_in("", around) else { return };
    let b = Bench::of(Server::OpenSsh(s));
    let e = failure(b.act("a", "run", vec!["true".into()]).await, Code::SUPERVISOR);
    assert!(e.message.contains("/nonexistent/home"), "{e}");
    assert!(!std::path::Path::new("/nonexistent").exists(), "a home that is missing is not made");
    // What needs no claim works without a home.
    assert_eq!(field(&b.act("b", "read", vec!["echo hi".into()]).await.unwrap(), "stdout"), "hi\n".into());
    let Some(b) = Bench::new("") else { return };
    let Some(_disk) = Disk::mount(b.host.home().join(".runbook"), "64k") else { return };
    let done = std::process::Command::new("mount").args(["-o", "remount,ro"]).arg(b.host.home().join(".runbook")).status().unwrap();
    assert!(done.success());
    let e = failure(b.act("c", "run", vec!["touch ran".into()]).await, Code::SUPERVISOR);
    assert!(e.message.contains("Read-only"), "{e}");
    assert!(!b.host.home().join("ran").exists());
}
