//! What `~/.ssh/config` says of logging in, with the same outcome as OpenSSH's client: agents, identities, certificates, methods.

use std::path::Path;
use std::process::{Command, Stdio};

use runbook_core::Value;

use super::auth::{Agent, Login, keygen, login};
use crate::support::sshd::Sshd;

/// Logs in by a configuration: ours, and whether OpenSSH's client gets in by the same file.
fn both(host: &Sshd, home: &Path, lines: &str, agent: Option<&Agent>) -> (Login, bool) {
    let text = format!(
        "Host old\n  HostName 127.0.0.1\n  Port {}\n  User root\n  UserKnownHostsFile {}\n  GlobalKnownHostsFile none\n{}",
        host.port,
        host.path("known_hosts").display(),
        lines.lines().map(|l| format!("  {}\n", l.replace("DIR", &host.dir.path().display().to_string()))).collect::<String>()
    );
    let file = host.path("config");
    std::fs::write(&file, text).unwrap();
    let settings = [("ssh".to_string(), Value::from("old")), ("ssh_config".to_string(), file.display().to_string().into())];
    let ours = login(&settings.into(), home, agent, &[], &[]);
    let mut c = Command::new("ssh");
    c.arg("-F").arg(&file).args(["-o", "BatchMode=yes", "old", "true"]).stdin(Stdio::null()).env("HOME", home);
    match agent {
        Some(a) => c.env("SSH_AUTH_SOCK", a.socket()),
        None => c.env_remove("SSH_AUTH_SOCK"),
    };
    let theirs = c.output().unwrap().status.success();
    (ours, theirs)
}

#[track_caller]
fn agree(host: &Sshd, home: &Path, lines: &str, agent: Option<&Agent>, want: Result<&str, &str>) {
    let (ours, theirs) = both(host, home, lines, agent);
    assert_eq!(ours.result.is_ok(), theirs, "{lines}\nours {ours:?}, theirs {theirs}");
    match want {
        Ok(by) => ours.by(by),
        Err(why) => ours.fails(why),
    }
}

#[test]
fn agents_and_identities_as_openssh_takes_them() {
    let (Some(host), Some(named), Some(env)) = (Sshd::start("MaxAuthTries 3"), Agent::start(), Agent::start()) else { return };
    let home = tempfile::tempdir().unwrap();
    named.add(&host.path("user_key"));
    let socket = named.socket().display().to_string();
    for i in 0..3 {
        keygen(&host, &["-t", "ed25519", "-N", "", "-C", &format!("other{i}"), "-f", &format!("other{i}")]);
        env.add(&host.path(&format!("other{i}")));
    }
    let h = home.path();
    agree(&host, h, &format!("IdentityAgent {socket}"), None, Ok("the agent's "));
    agree(&host, h, &format!("IdentityAgent {socket}"), Some(&env), Ok("the agent's "));
    agree(&host, h, "IdentityAgent SSH_AUTH_SOCK", Some(&named), Ok("the agent's "));
    agree(&host, h, "IdentityAgent $SSH_AUTH_SOCK", Some(&named), Ok("the agent's "));
    agree(&host, h, "IdentityAgent none", Some(&named), Err("RB0301"));
    agree(&host, h, "IdentityAgent none\nIdentityFile DIR/user_key", Some(&named), Ok("user_key"));
    // The agent's keys come first, and use up the host's patience, unless the file's key is the agent's too, or alone is wanted.
    agree(&host, h, "IdentityFile DIR/user_key", Some(&env), Err("it takes no more tries"));
    agree(&host, h, "IdentityFile DIR/user_key\nIdentitiesOnly yes", Some(&env), Ok("user_key"));
    env.add(&host.path("user_key"));
    agree(&host, h, "IdentityFile DIR/user_key", Some(&env), Ok("user_key (in the agent)"));
    agree(&host, h, "IdentityFile DIR/user_key.pub\nIdentitiesOnly yes", Some(&env), Ok("user_key.pub (in the agent)"));
    agree(&host, h, "IdentitiesOnly yes", Some(&env), Err("RB0301"));
    agree(&host, h, "IdentityFile DIR/gone\nIdentityFile DIR/user_key\nIdentitiesOnly yes", None, Ok("user_key"));
    agree(&host, h, "IdentityFile none", None, Err("RB0301"));
}

#[test]
fn certificates_and_methods_as_openssh_takes_them() {
    let Some(mut host) = Sshd::start("") else { return };
    host.down();
    keygen(&host, &["-t", "ed25519", "-N", "", "-f", "ca"]);
    keygen(&host, &["-s", "ca", "-I", "me", "-n", "root", "-V", "+1h", "user_key.pub"]);
    std::fs::rename(host.path("user_key-cert.pub"), host.path("elsewhere.pub")).unwrap();
    host.configure(&format!("TrustedUserCAKeys {}", host.path("ca.pub").display()));
    host.up();
    std::fs::write(host.path("authorized_keys"), "").unwrap();
    let home = tempfile::tempdir().unwrap();
    let h = home.path();
    agree(&host, h, "IdentityFile DIR/user_key\nCertificateFile DIR/elsewhere.pub", None, Ok("elsewhere.pub"));
    agree(&host, h, "IdentityFile DIR/user_key", None, Err("user_key: refused"));
    // The private half in the agent alone.
    let Some(agent) = Agent::start() else { return };
    agent.add(&host.path("user_key"));
    agree(&host, h, "CertificateFile DIR/elsewhere.pub", Some(&agent), Ok("elsewhere.pub"));
    agree(&host, h, "CertificateFile DIR/elsewhere.pub", None, Err("its private key is neither in a file nor in the agent"));
    let cert = "IdentityFile DIR/user_key\nCertificateFile DIR/elsewhere.pub\n";
    agree(&host, h, &format!("{cert}PubkeyAuthentication no"), None, Err("RB0301"));
    agree(&host, h, &format!("{cert}PreferredAuthentications password,keyboard-interactive"), None, Err("RB0301"));
    agree(&host, h, &format!("{cert}PreferredAuthentications password,publickey"), None, Ok("elsewhere.pub"));
    agree(&host, h, &format!("{cert}PubkeyAcceptedAlgorithms -*cert*"), None, Err("PubkeyAcceptedAlgorithms"));
    agree(&host, h, &format!("{cert}PubkeyAcceptedAlgorithms ssh-ed25519-cert-v01@openssh.com,ssh-ed25519"), None, Ok("elsewhere.pub"));
}
