//! Logging in: keys of every type, certificates, the agent, passwords and questions. Each login is one of a process of its own, with its
//! own agent and home, and where it makes sense OpenSSH's own client is asked to do the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use runbook_core::Value;
use runbook_primitives::ssh::reach;

use super::Bench;
use crate::support::sshd::{Sshd, environment};

/// How a login went.
#[derive(Debug)]
pub struct Login {
    /// By what, or why not.
    pub result: Result<String, String>,
    /// The hint, when there is an error.
    pub hint: String,
    /// What was asked of the operator.
    pub asked: Vec<String>,
}

impl Login {
    #[track_caller]
    pub fn by(&self, part: &str) {
        assert!(self.result.as_ref().is_ok_and(|by| by.contains(part)), "{part:?}: {self:?}");
    }

    #[track_caller]
    pub fn fails(&self, part: &str) {
        assert!(self.result.as_ref().is_err_and(|e| e.contains(part)), "{part:?}: {self:?}");
    }
}

/// Tries a login in a process of its own: HOME and SSH_AUTH_SOCK belong to the whole process.
pub fn login(settings: &BTreeMap<String, Value>, home: &Path, agent: Option<&Agent>, secrets: &[(&str, &str)], typed: &[&str]) -> Login {
    let json: serde_json::Map<String, serde_json::Value> = settings
        .iter()
        .map(|(k, v)| {
            let plain = match v {
                Value::Map(m) => {
                    m.iter().map(|(k, v)| (k.clone(), serde_json::json!(v.as_str()))).collect::<serde_json::Map<_, _>>().into()
                }
                v => serde_json::json!(v.as_str()),
            };
            (k.clone(), plain)
        })
        .collect();
    let task = serde_json::json!({ "settings": json, "secrets": secrets, "typed": typed });
    let mut c = Command::new(std::env::current_exe().unwrap());
    c.args(["--exact", "ssh::auth::alone", "--ignored", "--nocapture"]).env("HOME", home).env("RB_TASK", task.to_string());
    match agent {
        Some(a) => c.env("SSH_AUTH_SOCK", &a.socket),
        None => c.env_remove("SSH_AUTH_SOCK"),
    };
    let done = c.output().unwrap();
    let out = String::from_utf8_lossy(&done.stdout).into_owned();
    let line = out.lines().find_map(|l| l.split_once("RB_RESULT ").map(|(_, r)| r.to_string()));
    let line = line.unwrap_or_else(|| panic!("no result: {out}\n{}", String::from_utf8_lossy(&done.stderr)));
    let v: serde_json::Value = serde_json::from_str(&line).unwrap();
    let text = |k: &str| v[k].as_str().map(str::to_string);
    Login {
        result: text("ok").ok_or_else(|| text("error").unwrap()),
        hint: text("hint").unwrap_or_default(),
        asked: v["asked"].as_array().unwrap().iter().map(|a| a.as_str().unwrap().to_string()).collect(),
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the other tests, in a process of its own"]
async fn alone() {
    let task: serde_json::Value = serde_json::from_str(&std::env::var("RB_TASK").unwrap()).unwrap();
    let value = |v: &serde_json::Value| match v {
        serde_json::Value::Object(m) => Value::Map(m.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap().into())).collect()),
        v => v.as_str().unwrap().into(),
    };
    let settings = task["settings"].as_object().unwrap().iter().map(|(k, v)| (k.clone(), value(v))).collect();
    let world = crate::support::sshd::world();
    for s in task["secrets"].as_array().unwrap() {
        world.secrets.lock().insert(s[0].as_str().unwrap().into(), s[1].as_str().unwrap().into());
    }
    world.typed.lock().extend(task["typed"].as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_string()));
    let cx = runbook_testkit::cx(&world, environment(&[("old", settings)]), "a");
    let result = match reach::try_login(&cx, "old").await {
        Ok(by) => serde_json::json!({ "ok": by, "asked": *world.asked.lock() }),
        Err(e) => serde_json::json!({ "error": e.to_string(), "hint": e.hint, "asked": *world.asked.lock() }),
    };
    println!("\nRB_RESULT {result}");
}

/// An agent of its own; ended on drop.
pub struct Agent {
    socket: PathBuf,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Agent {
    pub fn start() -> Option<Agent> {
        if !crate::support::have("ssh-agent") {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent");
        let child = Command::new("ssh-agent").args(["-D", "-a"]).arg(&socket).stdout(Stdio::null()).spawn().unwrap();
        let began = Instant::now();
        // The socket stands there before anybody listens on it.
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(began.elapsed() < Duration::from_secs(10), "the agent does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(Agent { socket, child, _dir: dir })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn add(&self, key: &Path) {
        let done = Command::new("ssh-add").arg("-q").arg(key).env("SSH_AUTH_SOCK", &self.socket).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `ssh-keygen` in the server's folder.
pub fn keygen(host: &Sshd, args: &[&str]) {
    let done = Command::new("ssh-keygen").arg("-q").args(args).current_dir(host.dir.path()).output().unwrap();
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// The settings of a host with these in place of its own.
fn with(host: &Sshd, more: &[(&str, Value)]) -> BTreeMap<String, Value> {
    let mut s = host.settings();
    s.extend(more.iter().map(|(k, v)| ((*k).to_string(), v.clone())));
    s
}

fn path(host: &Sshd, file: &str) -> Value {
    host.path(file).display().to_string().into()
}

fn allow(host: &Sshd, keys: &[&str]) {
    let text: String = keys.iter().map(|k| std::fs::read_to_string(host.path(k)).unwrap()).collect();
    std::fs::write(host.path("authorized_keys"), text).unwrap();
}

#[test]
fn keys_of_every_type_and_format_log_in() {
    let Some(host) = Sshd::start("") else { return };
    let home = tempfile::tempdir().unwrap();
    let mut tried = 0;
    for (kind, bits, formats) in [
        ("ed25519", "256", &["RFC4716"][..]),
        ("ecdsa", "256", &["RFC4716", "PEM", "PKCS8"][..]),
        ("ecdsa", "384", &["RFC4716", "PKCS8"][..]),
        ("ecdsa", "521", &["RFC4716", "PEM"][..]),
        ("rsa", "2048", &["RFC4716", "PEM", "PKCS8"][..]),
    ] {
        for format in formats {
            for pass in ["", "open sesame"] {
                for f in ["k", "k.pub"] {
                    let _ = std::fs::remove_file(host.path(f));
                }
                keygen(&host, &["-t", kind, "-b", bits, "-m", format, "-N", pass, "-a", "1", "-f", "k"]);
                allow(&host, &["k.pub"]);
                let s = with(&host, &[("identity_file", path(&host, "k")), ("passphrase", "phrase".into())]);
                login(&s, home.path(), None, &[("phrase", "open sesame")], &[]).by("/k");
                // Without the public half beside it.
                std::fs::remove_file(host.path("k.pub")).unwrap();
                login(&s, home.path(), None, &[("phrase", "open sesame")], &[]).by("/k");
                tried += 2;
            }
        }
    }
    assert_eq!(tried, 44);
    // RSA keys sign with SHA-2.
    assert!(host.log().contains("Accepted publickey") && !host.log().contains("ssh-rsa:"), "{}", host.log());
}

#[test]
fn an_rsa_key_never_signs_with_sha1() {
    let Some(mut host) = Sshd::start("PubkeyAcceptedAlgorithms ssh-rsa\nLogLevel DEBUG1") else { return };
    let home = tempfile::tempdir().unwrap();
    keygen(&host, &["-t", "rsa", "-b", "2048", "-N", "", "-f", "k"]);
    allow(&host, &["k.pub"]);
    login(&with(&host, &[("identity_file", path(&host, "k"))]), home.path(), None, &[], &[]).fails("/k: refused");
    assert!(!openssh(&host, "k"), "OpenSSH does not either");
    host.down();
    assert!(host.log().contains("rsa-sha2-512") && !host.log().contains("pkalg ssh-rsa "), "{}", host.log());
}

#[test]
fn a_passphrase_is_asked_for_three_times_and_only_when_the_host_takes_the_key() {
    let Some(host) = Sshd::start("") else { return };
    let home = tempfile::tempdir().unwrap();
    keygen(&host, &["-t", "ed25519", "-N", "open sesame", "-a", "1", "-f", "k"]);
    allow(&host, &["k.pub"]);
    let s = with(&host, &[("identity_file", path(&host, "k"))]);
    let l = login(&s, home.path(), None, &[], &["wrong", "open sesame"]);
    l.by("/k");
    assert_eq!(l.asked.len(), 2);
    assert!(l.asked[0].starts_with("Passphrase for the key /") && l.asked[0].ends_with("/k: "), "{l:?}");
    let l = login(&s, home.path(), None, &[], &["a", "b", "c", "open sesame"]);
    l.fails("does not open with the passphrase that was typed");
    assert_eq!(l.asked.len(), 3);
    login(&s, home.path(), None, &[], &[]).fails("is locked by a passphrase");
    // The host does not take the key: nobody is asked.
    allow(&host, &["user_key.pub"]);
    let l = login(&s, home.path(), None, &[], &["open sesame"]);
    l.fails("/k: refused");
    assert!(l.asked.is_empty(), "{l:?}");
}

#[test]
fn a_key_that_others_can_read_is_not_used() {
    use std::os::unix::fs::PermissionsExt as _;
    let Some(host) = Sshd::start("") else { return };
    let home = tempfile::tempdir().unwrap();
    std::fs::set_permissions(host.path("user_key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    login(&host.settings(), home.path(), None, &[], &[]).fails("others can read it (mode 0644): chmod 600 ");
}

#[test]
fn an_agent_with_seven_keys() {
    let (Some(host), Some(agent)) = (Sshd::start(""), Agent::start()) else { return };
    let home = tempfile::tempdir().unwrap();
    for i in 0..6 {
        keygen(&host, &["-t", "ed25519", "-N", "", "-C", &format!("other{i}"), "-f", &format!("other{i}")]);
        agent.add(&host.path(&format!("other{i}")));
    }
    agent.add(&host.path("user_key"));
    let mut s = host.settings();
    s.remove("identity_file");
    // OpenSSH's default is six tries: the seventh key comes too late, and the message says how to mend it.
    let l = login(&s, home.path(), Some(&agent), &[], &[]);
    l.fails("after 6 keys: it takes no more tries (MaxAuthTries)");
    assert!(l.hint.contains("identity_file") && l.hint.contains("IdentitiesOnly"), "{l:?}");
    // With the key named, it alone is offered: by the agent that holds it, also when only its public half is here.
    login(&host.settings(), home.path(), Some(&agent), &[], &[]).by("user_key (in the agent)");
    login(&with(&host, &[("identity_file", path(&host, "user_key.pub"))]), home.path(), Some(&agent), &[], &[])
        .by("user_key.pub (in the agent)");
    let alone = login(&with(&host, &[("identity_file", path(&host, "user_key.pub"))]), home.path(), None, &[], &[]);
    alone.fails("user_key.pub: ");
    allow(&host, &["other4.pub"]);
    login(&s, home.path(), Some(&agent), &[], &[]).by("the agent's other4");
    login(&host.settings(), home.path(), Some(&agent), &[], &[]).fails("user_key (in the agent): refused");
}

#[test]
fn an_agent_that_is_gone_does_not_stop_a_key_file() {
    let (Some(host), Some(mut agent)) = (Sshd::start(""), Agent::start()) else { return };
    let home = tempfile::tempdir().unwrap();
    let _ = agent.child.kill();
    let _ = agent.child.wait();
    login(&host.settings(), home.path(), Some(&agent), &[], &[]).by("user_key");
    std::fs::write(host.path("authorized_keys"), "").unwrap();
    login(&host.settings(), home.path(), Some(&agent), &[], &[]).fails("the agent at ");
}

/// What OpenSSH's client makes of the same key files.
fn openssh(host: &Sshd, key: &str) -> bool {
    let p = |f: &str| host.path(f).display().to_string();
    Command::new("ssh")
        .args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i", &p(key), "-p", &host.port.to_string()])
        .args(["-o", &format!("UserKnownHostsFile={}", p("known_hosts")), "-o", "GlobalKnownHostsFile=none", "root@127.0.0.1", "true"])
        .env_remove("SSH_AUTH_SOCK")
        .stdin(Stdio::null())
        .output()
        .unwrap()
        .status
        .success()
}

#[test]
fn certificates_of_users_of_every_type() {
    let Some(mut host) = Sshd::start("") else { return };
    host.down();
    keygen(&host, &["-t", "ed25519", "-N", "", "-f", "ca"]);
    keygen(&host, &["-t", "ed25519", "-N", "", "-f", "other_ca"]);
    let revoked = host.path("revoked");
    std::fs::write(&revoked, "").unwrap();
    host.configure(&format!("TrustedUserCAKeys {}", host.path("ca.pub").display()));
    host.configure(&format!("RevokedKeys {}", revoked.display()));
    host.up();
    std::fs::write(host.path("authorized_keys"), "").unwrap();
    let home = tempfile::tempdir().unwrap();
    for (kind, bits) in [("ed25519", "256"), ("ecdsa", "256"), ("ecdsa", "384"), ("ecdsa", "521"), ("rsa", "2048")] {
        let _ = ["c", "c.pub", "c-cert.pub"].map(|f| std::fs::remove_file(host.path(f)));
        keygen(&host, &["-t", kind, "-b", bits, "-N", "", "-f", "c"]);
        keygen(&host, &["-s", "ca", "-I", "me", "-n", "root", "-V", "+1h", "c.pub"]);
        login(&with(&host, &[("identity_file", path(&host, "c"))]), home.path(), None, &[], &[]).by("c-cert.pub");
        assert!(openssh(&host, "c"), "{kind} {bits}");
    }
    // By the agent, which adds the certificate beside the key by itself.
    let Some(agent) = Agent::start() else { return };
    agent.add(&host.path("c"));
    let mut s = host.settings();
    s.remove("identity_file");
    login(&s, home.path(), Some(&agent), &[], &[]).by("the agent's ");
    // The ones that do not hold: for us as for OpenSSH.
    let s = with(&host, &[("identity_file", path(&host, "c"))]);
    let refused = |what: &str, args: &[&str]| {
        keygen(&host, &[args, &["-I", "me", "c.pub"]].concat());
        assert!(!openssh(&host, "c"), "{what}");
        login(&s, home.path(), None, &[], &[]).fails("c-cert.pub: refused");
    };
    refused("another name", &["-s", "ca", "-n", "ann", "-V", "+1h"]);
    refused("expired", &["-s", "ca", "-n", "root", "-V", "-2h:-1h"]);
    refused("another authority", &["-s", "other_ca", "-n", "root", "-V", "+1h"]);
    std::fs::copy(host.path("c.pub"), &revoked).unwrap();
    refused("revoked", &["-s", "ca", "-n", "root", "-V", "+1h"]);
}

#[test]
fn two_keys_one_after_the_other() {
    let Some(host) = Sshd::start("AuthenticationMethods publickey,publickey") else { return };
    let home = tempfile::tempdir().unwrap();
    keygen(&host, &["-t", "ed25519", "-N", "", "-f", "second"]);
    allow(&host, &["user_key.pub", "second.pub"]);
    let one = login(&host.settings(), home.path(), None, &[], &[]);
    one.fails("took publickey of root and wants publickey as well");
    let (Some(agent), mut s) = (Agent::start(), host.settings()) else { return };
    s.remove("identity_file");
    agent.add(&host.path("second"));
    agent.add(&host.path("user_key"));
    login(&s, home.path(), Some(&agent), &[], &[]).by("(after publickey)");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passphrase_is_asked_for_once_a_run() {
    let Some(b) = Bench::new("") else { return };
    keygen(&b.host, &["-p", "-P", "", "-N", "open sesame", "-a", "1", "-f", "user_key"]);
    b.world.typed.lock().push_back("open sesame".into());
    b.act("1", "run", vec!["true".into()]).await.unwrap();
    b.host.cut();
    // A new connection, and nothing left to type.
    b.act("2", "read", vec!["true".into()]).await.unwrap();
    reach::try_login(&b.cx("3"), "old").await.unwrap();
    assert_eq!(b.world.asked.lock().len(), 1);
}

#[test]
fn a_banner_is_no_hindrance_and_is_kept_for_the_message() {
    let Some(mut host) = Sshd::start("") else { return };
    host.down();
    std::fs::write(host.path("banner"), "Authorized use only\n").unwrap();
    host.configure(&format!("Banner {}", host.path("banner").display()));
    host.up();
    let home = tempfile::tempdir().unwrap();
    login(&host.settings(), home.path(), None, &[], &[]).by("user_key");
}
