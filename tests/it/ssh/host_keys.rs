//! Host keys: what is known, certified, revoked or changed, always beside the judgement of OpenSSH's own client; and `runbook hosts`.

use std::path::Path;
use std::process::{Command, Stdio};

use runbook_core::{Code, Value};
use runbook_primitives::ssh::reach;
use serde_json::Value as Json;

use super::auth::{keygen, login};
use crate::support::screen::Screen;
use crate::support::sshd::{Sshd, environment, world};

/// Whether OpenSSH's client, told to be strict, takes the host's key.
fn openssh(host: &Sshd, options: &[&str]) -> bool {
    let p = |f: &str| host.path(f).display().to_string();
    let mut c = Command::new("ssh");
    c.args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes", "-i", &p("user_key")]);
    c.args(["-o", &format!("UserKnownHostsFile={}", p("known_hosts")), "-o", "GlobalKnownHostsFile=none", "-p", &host.port.to_string()]);
    for o in options {
        c.args(["-o", o]);
    }
    c.args(["root@127.0.0.1", "true"]).stdin(Stdio::null()).output().unwrap().status.success()
}

fn write(host: &Sshd, text: &str) {
    std::fs::write(host.path("known_hosts"), text).unwrap();
}

fn public(host: &Sshd, key: &str) -> String {
    let text = std::fs::read_to_string(host.path(&format!("{key}.pub"))).unwrap();
    text.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

/// Ours and theirs must agree.
#[track_caller]
fn both(host: &Sshd, home: &Path, what: &str, want: Result<(), &str>) {
    let ours = login(&host.settings(), home, None, &[], &[]);
    let theirs = openssh(host, &[]);
    assert_eq!(ours.result.is_ok(), theirs, "{what}: ours {ours:?}, theirs {theirs}");
    match want {
        Ok(()) => assert!(theirs, "{what}: {ours:?}"),
        Err(part) => assert!(ours.result.as_ref().is_err_and(|e| e.contains(part)), "{what}: {ours:?}"),
    }
}

#[test]
fn names_of_every_kind_as_openssh_takes_them() {
    let Some(host) = Sshd::start("") else { return };
    let home = tempfile::tempdir().unwrap();
    keygen(&host, &["-t", "ed25519", "-N", "", "-f", "other"]);
    let (key, other, port) = (public(&host, "host_key"), public(&host, "other"), host.port);
    let mine = format!("[127.0.0.1]:{port}");
    for (lines, want) in [
        (format!("{mine} {key}"), Ok(())),
        (format!("other,{mine},third {key} a note"), Ok(())),
        (format!("[127.0.0.*]:* {key}"), Ok(())),
        (format!("127.0.0.1 {key}"), Ok(())),
        (format!("127.0.0.? {key}"), Ok(())),
        (format!("[127.0.0.1]:1{port} {key}"), Err("RB0302")),
        (format!("*,!{mine} {key}"), Ok(())),
        (format!("[*]:*,!{mine} {key}"), Err("RB0302")),
        (format!("{mine} {other}"), Err("RB0303")),
        (format!("{mine} {other}\n{mine} {key}"), Ok(())),
        (format!("127.0.0.1 {other}"), Err("RB0302")),
        (format!("@revoked * {key}\n{mine} {key}"), Err("is revoked in")),
        (format!("@revoked {mine} {key}"), Err("is revoked in")),
        (format!("@revoked elsewhere {key}\n{mine} {key}"), Ok(())),
        (format!("@cert-authority * {key}"), Err("RB0302")),
        (String::new(), Err("RB0302")),
    ] {
        write(&host, &format!("{lines}\n"));
        both(&host, home.path(), &lines, want);
    }
    write(&host, &format!("{mine} {key}\n"));
    keygen(&host, &["-H", "-f", "known_hosts"]);
    both(&host, home.path(), "hashed", Ok(()));
}

#[test]
fn the_type_on_record_is_asked_for() {
    let Some(mut host) = Sshd::start("") else { return };
    host.down();
    let home = tempfile::tempdir().unwrap();
    for (kind, bits) in [("rsa", "2048"), ("ecdsa", "256"), ("ecdsa", "384"), ("ecdsa", "521")] {
        let file = format!("host_{kind}_{bits}");
        keygen(&host, &["-t", kind, "-b", bits, "-N", "", "-f", &file]);
        host.configure(&format!("HostKey {}", host.path(&file).display()));
    }
    host.up();
    for file in ["host_key", "host_rsa_2048", "host_ecdsa_256", "host_ecdsa_384", "host_ecdsa_521"] {
        write(&host, &format!("[127.0.0.1]:{} {}\n", host.port, public(&host, file)));
        both(&host, home.path(), file, Ok(()));
    }
    // A key of another type alone: unknown, with what is on record; not "changed".
    host.down();
    keygen(&host, &["-t", "dsa", "-N", "", "-f", "gone"]);
    let mut only = Sshd::start("").unwrap();
    write(&only, &format!("[127.0.0.1]:{} {}\n", only.port, public(&host, "host_rsa_2048")));
    both(&only, home.path(), "another type", Err("on record are ssh-rsa SHA256:"));
    only.down();
}

#[test]
fn certificates_of_hosts_hold_or_not_as_openssh_says() {
    let Some(mut host) = Sshd::start("") else { return };
    host.down();
    let home = tempfile::tempdir().unwrap();
    keygen(&host, &["-t", "ed25519", "-N", "", "-f", "ca"]);
    keygen(&host, &["-t", "ed25519", "-N", "", "-f", "other_ca"]);
    host.configure(&format!("HostCertificate {}", host.path("host_key-cert.pub").display()));
    let (ca, key) = (public(&host, "ca"), public(&host, "host_key"));
    let trusted = format!("@cert-authority [127.0.0.1]:* {ca}\n");
    let cases: [(&str, &[&str], String, Result<(), &str>); 13] = [
        ("good", &["-s", "ca", "-n", "127.0.0.1", "-V", "+1h"], trusted.clone(), Ok(())),
        ("authority for the bare name", &["-s", "ca", "-n", "127.0.0.1", "-V", "+1h"], format!("@cert-authority 127.0.0.1 {ca}\n"), Ok(())),
        ("one of several names", &["-s", "ca", "-n", "a,127.0.0.1,b", "-V", "+1h"], trusted.clone(), Ok(())),
        ("no names", &["-s", "ca", "-V", "+1h"], trusted.clone(), Ok(())),
        ("a pattern is no name", &["-s", "ca", "-n", "127.0.0.*", "-V", "+1h"], trusted.clone(), Err("it is for 127.0.0.*")),
        ("another name", &["-s", "ca", "-n", "web", "-V", "+1h"], trusted.clone(), Err("it is for web")),
        ("another name, and the key known", &["-s", "ca", "-n", "web", "-V", "+1h"], format!("{trusted}127.0.0.1 {key}\n"), Ok(())),
        ("expired", &["-s", "ca", "-n", "127.0.0.1", "-V", "-2h:-1h"], trusted.clone(), Err("it expired at")),
        ("not yet", &["-s", "ca", "-n", "127.0.0.1", "-V", "+1h:+2h"], trusted.clone(), Err("valid only from")),
        ("another authority", &["-s", "other_ca", "-n", "127.0.0.1", "-V", "+1h"], trusted.clone(), Err("no authority on record")),
        (
            "revoked authority",
            &["-s", "ca", "-n", "127.0.0.1", "-V", "+1h"],
            format!("{trusted}@revoked * {ca}\n"),
            Err("certificate authority of"),
        ),
        ("revoked key", &["-s", "ca", "-n", "127.0.0.1", "-V", "+1h"], format!("{trusted}@revoked * {key}\n"), Err("is revoked in")),
        (
            "authority for others",
            &["-s", "ca", "-n", "127.0.0.1", "-V", "+1h"],
            format!("@cert-authority *.example.com {ca}\n"),
            Err("RB0302"),
        ),
    ];
    for (what, args, known, want) in cases {
        host.down();
        keygen(&host, &[args, &["-h", "-I", "old", "host_key.pub"]].concat());
        host.up();
        write(&host, &known);
        both(&host, home.path(), what, want);
    }
    // Nobody knows critical options of hosts.
    host.down();
    keygen(&host, &["-s", "ca", "-h", "-n", "127.0.0.1", "-O", "critical:strange=1", "-I", "old", "host_key.pub"]);
    host.up();
    write(&host, &trusted);
    both(&host, home.path(), "critical option", Err("critical option \"strange\""));
}

#[test]
fn several_files_and_an_alias() {
    let Some(host) = Sshd::start("") else { return };
    let home = tempfile::tempdir().unwrap();
    let p = |f: &str| host.path(f).display().to_string();
    let config = |more: &str| {
        let text = format!(
            "Host old\n  HostName 127.0.0.1\n  Port {}\n  User root\n  IdentityFile {}\n  StrictHostKeyChecking no\n{more}\n",
            host.port,
            p("user_key")
        );
        std::fs::write(host.path("config"), text).unwrap();
        let settings = [("ssh".to_string(), Value::from("old")), ("ssh_config".to_string(), p("config").into())];
        login(&settings.into(), home.path(), None, &[], &[])
    };
    let key = public(&host, "host_key");
    write(&host, "");
    std::fs::write(host.path("second"), format!("[127.0.0.1]:{} {key}\n", host.port)).unwrap();
    config(&format!("  UserKnownHostsFile {} {}\n", p("known_hosts"), p("second"))).by("user_key");
    config(&format!("  UserKnownHostsFile {}\n  GlobalKnownHostsFile {}\n", p("known_hosts"), p("second"))).by("user_key");
    // `StrictHostKeyChecking no` weakens nothing here.
    config(&format!("  UserKnownHostsFile {}\n", p("known_hosts"))).fails("RB0302");
    assert_eq!(std::fs::read_to_string(host.path("known_hosts")).unwrap(), "");
    std::fs::write(host.path("second"), format!("the-shop {key}\n")).unwrap();
    config(&format!("  UserKnownHostsFile {}\n  HostKeyAlias the-shop\n", p("second"))).by("user_key");
    config(&format!("  UserKnownHostsFile {}\n  HostKeyAlias the-other\n", p("second"))).fails("the key of the-other is not known");
}

/// A project whose hosts are these servers.
struct Project(tempfile::TempDir);

impl Project {
    fn new(hosts: &[(&str, &Sshd)]) -> Project {
        let dir = tempfile::tempdir().unwrap();
        let mut text = String::new();
        for (name, s) in hosts {
            let p = |f: &str| s.path(f).display().to_string();
            text.push_str(&format!(
                "[environments.test.hosts.{name}]\nssh = \"root@127.0.0.1:{}\"\nidentity_file = \"{}\"\nknown_hosts = \"{}\"\nssh_config = \"none\"\n",
                s.port,
                p("user_key"),
                p("known_hosts")
            ));
        }
        std::fs::write(dir.path().join("runbook.toml"), text).unwrap();
        Project(dir)
    }

    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let mut c = Command::new(env!("CARGO_BIN_EXE_runbook"));
        c.args(args).current_dir(self.0.path()).env("HOME", self.0.path()).env_remove("SSH_AUTH_SOCK").stdin(Stdio::null());
        let o = c.output().unwrap();
        (o.status.code().unwrap_or(-1), String::from_utf8(o.stdout).unwrap(), String::from_utf8(o.stderr).unwrap())
    }

    fn json(&self, args: &[&str]) -> (i32, Json) {
        let (code, out, err) = self.run(&[args, &["--json"]].concat());
        (code, serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}")))
    }
}

fn fingerprint(host: &Sshd) -> String {
    let out = Command::new("ssh-keygen").arg("-lf").arg(host.path("host_key.pub")).output().unwrap();
    String::from_utf8_lossy(&out.stdout).split_whitespace().nth(1).unwrap().to_string()
}

#[test]
fn hosts_are_listed_checked_and_trusted() {
    let (Some(a), Some(b), Some(mut c)) = (Sshd::start(""), Sshd::start(""), Sshd::start("")) else { return };
    let p = Project::new(&[("a", &a), ("b", &b), ("c", &c)]);
    write(&b, "");
    c.down();
    let (code, out, _) = p.run(&["hosts"]);
    assert_eq!(code, 0);
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("HOST  ADDRESS") && lines[1].contains("known (ssh-ed25519)"), "{out}");
    assert!(lines[2].contains("unknown: runbook hosts trust b") && lines[1].contains("root"), "{out}");
    let (_, doc) = p.json(&["hosts"]);
    assert_eq!(doc["hosts"][0]["keys"][0]["fingerprint"].as_str().unwrap(), fingerprint(&a));
    assert_eq!(doc["hosts"][1]["keys"].as_array().unwrap().len(), 0);

    let (code, doc) = p.json(&["hosts", "check"]);
    assert_eq!(code, 4);
    let codes: Vec<&str> = doc["hosts"].as_array().unwrap().iter().map(|h| h["error"]["code"].as_str().unwrap_or("")).collect();
    assert_eq!(codes, ["", "RB0302", "RB0300"]);
    assert!(doc["hosts"][0]["by"].as_str().unwrap().contains("user_key"), "{doc}");
    let (code, out, _) = p.run(&["hosts", "check", "a"]);
    assert!(code == 0 && out.starts_with("a  in  by the key "), "{out}");

    // Nobody to ask: refused, with the command that a script may use. `--yes` is not one of them.
    let (code, _, err) = p.run(&["hosts", "trust", "b"]);
    assert_eq!(code, 4);
    assert!(err.contains("RB0302") && err.contains(&format!("--fingerprint {}", fingerprint(&b))), "{err}");
    let (code, _, err) = p.run(&["hosts", "trust", "b", "--fingerprint", &fingerprint(&a)]);
    assert!(code == 4 && err.contains("RB0306"), "{err}");
    assert_eq!(p.run(&["hosts", "trust", "b", "--yes"]).0, 2);
    assert_eq!(std::fs::read_to_string(b.path("known_hosts")).unwrap(), "");
    let (code, doc) = p.json(&["hosts", "trust", "b", "--fingerprint", &fingerprint(&b)]);
    assert!(code == 0 && doc["added"] == true, "{doc}");
    assert_eq!(p.json(&["hosts", "trust", "b"]).1["added"], false, "it is known now");
    assert_eq!(p.run(&["hosts", "check", "a", "b"]).0, 0);

    // A changed key: never.
    write(&b, &format!("[127.0.0.1]:{} {}\n", b.port, public(&a, "host_key")));
    let (code, _, err) = p.run(&["hosts", "trust", "b", "--fingerprint", &fingerprint(&b)]);
    assert!(code == 4 && err.contains("RB0303"), "{err}");
    assert_eq!(std::fs::read_to_string(b.path("known_hosts")).unwrap().lines().count(), 1);
}

#[test]
fn a_person_is_shown_the_key_and_asked() {
    let Some(host) = Sshd::start("") else { return };
    let p = Project::new(&[("old", &host)]);
    write(&host, "");
    let exe = Path::new(env!("CARGO_BIN_EXE_runbook"));
    let trust = || Screen::start(exe, &["hosts", "trust", "old"], p.0.path(), 24, 120, &[]);
    let mut s = trust();
    s.answer("[yes/no, or its fingerprint]", "no");
    assert_eq!(s.wait(), 4);
    assert_eq!(std::fs::read_to_string(host.path("known_hosts")).unwrap(), "");
    let mut s = trust();
    s.wait_for(&fingerprint(&host));
    s.answer("[yes/no, or its fingerprint]", "yes");
    assert_eq!(s.wait(), 0, "{}", s.text());
    assert_eq!(p.run(&["hosts", "check"]).0, 0);
    // A passphrase is asked for without being shown.
    keygen(&host, &["-p", "-P", "", "-N", "open sesame", "-a", "1", "-f", "user_key"]);
    let mut s = Screen::start(exe, &["hosts", "check"], p.0.path(), 24, 160, &[]);
    s.answer("Passphrase for the key", "open sesame");
    assert_eq!(s.wait(), 0, "{}", s.text());
    assert!(!s.raw().contains("sesame"), "{}", s.raw());
    // Ctrl-C at the question ends it.
    let mut s = Screen::start(exe, &["hosts", "check"], p.0.path(), 24, 160, &[]);
    s.wait_for("Passphrase for the key");
    s.keys("\u{3}");
    assert_eq!(s.wait(), 130, "{}", s.text());
    assert_eq!(p.run(&["hosts", "check"]).0, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_on_the_way_is_trusted_first_and_names_are_hashed_when_wished() {
    let (Some(gate), Some(inner)) = (Sshd::start(""), Sshd::start("")) else { return };
    let known = gate.path("both");
    std::fs::write(&known, "").unwrap();
    let host = |name: &str, s: &Sshd, more: &str| {
        format!(
            "Host {name}\n  HostName 127.0.0.1\n  Port {}\n  User root\n  IdentityFile {}\n  UserKnownHostsFile {}\n  HashKnownHosts yes\n{more}\n",
            s.port,
            s.path("user_key").display(),
            known.display()
        )
    };
    std::fs::write(gate.path("config"), format!("{}{}", host("gate", &gate, ""), host("inner", &inner, "  ProxyJump gate\n"))).unwrap();
    let settings =
        [("ssh".to_string(), Value::from("inner")), ("ssh_config".to_string(), gate.path("config").display().to_string().into())];
    let cx = runbook_testkit::cx(&world(), environment(&[("old", settings.into())]), "a");
    let e = reach::try_login(&cx, "old").await.unwrap_err();
    assert_eq!(e.code, Code::SSH_HOST_KEY_UNKNOWN);
    let first = reach::look(&cx, "old").await.unwrap();
    assert!(first.on_the_way && first.entry == format!("[127.0.0.1]:{}", gate.port) && first.hashed, "{first:?}");
    first.trust().unwrap();
    let second = reach::look(&cx, "old").await.unwrap();
    assert!(!second.on_the_way && second.entry == format!("[127.0.0.1]:{}", inner.port), "{second:?}");
    second.trust().unwrap();
    let text = std::fs::read_to_string(&known).unwrap();
    assert!(text.lines().count() == 2 && text.lines().all(|l| l.starts_with("|1|")), "{text}");
    reach::try_login(&cx, "old").await.unwrap();
}
