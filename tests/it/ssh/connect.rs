//! Reaching a host: keys known, unknown and changed, logins refused, hosts that are not there, jumps.

use std::time::{Duration, Instant};

use runbook_core::Code;
use runbook_core::inventory::Section;
use runbook_primitives::ssh::{self, Exec};

use super::{Bench, failure, options};
use crate::support::sshd::environment;

fn fingerprint(key: &std::path::Path) -> String {
    let out = std::process::Command::new("ssh-keygen").arg("-lf").arg(key).output().unwrap();
    String::from_utf8_lossy(&out.stdout).split_whitespace().nth(1).unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_is_refused_with_the_line_to_add() {
    let Some(b) = Bench::new("") else { return };
    let known = std::fs::read_to_string(b.host.path("known_hosts")).unwrap();
    std::fs::write(b.host.path("known_hosts"), "").unwrap();
    let e = failure(b.act("1", "run", vec!["touch ran".into()]).await, Code::SSH_HOST_KEY_UNKNOWN);
    let line = e.details.get("line").unwrap();
    assert_eq!(known.rsplit_once(' ').unwrap().0, line, "the line without its comment");
    assert!(e.hint.as_ref().unwrap().contains(line.as_str()));
    assert!(e.message.contains(&fingerprint(&b.host.path("host_key.pub"))), "{e}");
    assert!(!e.retryable && !b.host.home().join("ran").exists());
    // What it says is right: with that line it works.
    std::fs::write(b.host.path("known_hosts"), format!("{line}\n")).unwrap();
    b.act("2", "run", vec!["touch ran".into()]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_key_is_refused() {
    let Some(b) = Bench::new("") else { return };
    let other = std::fs::read_to_string(b.host.path("user_key.pub")).unwrap();
    std::fs::write(b.host.path("known_hosts"), format!("# one line above\n[127.0.0.1]:{} {other}", b.host.port)).unwrap();
    let e = failure(b.act("1", "run", vec!["true".into()]).await, Code::SSH_HOST_KEY_CHANGED);
    assert!(e.message.contains("known_hosts:2") && e.message.contains(&fingerprint(&b.host.path("host_key.pub"))), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hashed_name_written_by_ssh_keygen_is_known() {
    let Some(b) = Bench::new("") else { return };
    let done = std::process::Command::new("ssh-keygen").arg("-Hf").arg(b.host.path("known_hosts")).output().unwrap();
    assert!(done.status.success() && std::fs::read_to_string(b.host.path("known_hosts")).unwrap().starts_with("|1|"));
    b.act("1", "run", vec!["true".into()]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_certificate_is_taken_from_its_authority_only() {
    let Some(mut b) = Bench::new("") else { return };
    b.host.down();
    let keygen = |args: &[&str]| {
        let done = std::process::Command::new("ssh-keygen").arg("-q").args(args).current_dir(b.host.dir.path()).status().unwrap();
        assert!(done.success());
    };
    keygen(&["-t", "ed25519", "-N", "", "-f", "ca"]);
    keygen(&["-s", "ca", "-I", "old", "-h", "-n", "127.0.0.1", "-V", "+1h", "host_key.pub"]);
    let certificate = format!("HostCertificate {}", b.host.path("host_key-cert.pub").display());
    b.host.configure(&certificate);
    b.host.up();
    let ca = std::fs::read_to_string(b.host.path("ca.pub")).unwrap();
    std::fs::write(b.host.path("known_hosts"), format!("@cert-authority * {ca}")).unwrap();
    b.act("1", "run", vec!["true".into()]).await.unwrap();
    let wrong = std::fs::read_to_string(b.host.path("user_key.pub")).unwrap();
    std::fs::write(b.host.path("known_hosts"), format!("@cert-authority * {wrong}")).unwrap();
    let fresh = Bench { shared: std::sync::Arc::default(), ..b };
    failure(fresh.act("2", "run", vec!["true".into()]).await, Code::SSH_HOST_KEY_UNKNOWN);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_is_refused_with_what_was_tried() {
    let Some(b) = Bench::new("") else { return };
    std::fs::write(b.host.path("authorized_keys"), "").unwrap();
    let e = failure(b.act("1", "run", vec!["true".into()]).await, Code::SSH_AUTH);
    assert!(e.message.contains("user_key: refused"), "{e}");
    assert!(!e.retryable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_key_wants_its_passphrase() {
    let Some(mut b) = Bench::new("") else { return };
    let key = b.host.path("user_key");
    let done = std::process::Command::new("ssh-keygen").args(["-q", "-p", "-P", "", "-N", "open sesame", "-f"]).arg(&key).output().unwrap();
    assert!(done.status.success());
    let e = failure(b.act("1", "run", vec!["true".into()]).await, Code::SSH_AUTH);
    assert!(e.message.contains("is locked by a passphrase"), "{e}");
    for (value, works) in [("wrong", false), ("open sesame", true)] {
        b.world.secrets.lock().insert("key".into(), value.into());
        let mut settings = b.host.settings();
        settings.insert("passphrase".into(), "key".into());
        b.env = environment(&[("old", settings)]);
        b.shared = std::sync::Arc::default();
        assert_eq!(b.act("2", "run", vec!["true".into()]).await.is_ok(), works, "{value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_kinds_of_keys_open_the_door() {
    let Some(b) = Bench::new("") else { return };
    for (kind, bits) in [("ecdsa", "256"), ("rsa", "2048")] {
        let key = b.host.path("user_key");
        for f in ["user_key", "user_key.pub"] {
            std::fs::remove_file(b.host.path(f)).unwrap();
        }
        let done =
            std::process::Command::new("ssh-keygen").args(["-q", "-t", kind, "-b", bits, "-N", "", "-f"]).arg(&key).status().unwrap();
        assert!(done.success());
        std::fs::copy(b.host.path("user_key.pub"), b.host.path("authorized_keys")).unwrap();
        let cx = runbook_testkit::cx(&b.world, b.env.clone(), kind);
        let done = ssh::connect(&cx, "old").await.unwrap().exec(&cx, Exec::new("echo in")).await.unwrap();
        assert_eq!(done.stdout, b"in\n", "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_not_there() {
    let Some(mut b) = Bench::new("") else { return };
    b.host.down();
    let e = failure(b.act("1", "run", vec!["true".into()]).await, Code::SSH_CONNECT);
    assert!(e.retryable && e.message.contains("refused"), "{e}");
    let began = Instant::now();
    let e = failure(b.act("2", "wait_ready", vec![options([("within", "1500ms".into())])]).await, Code::NOT_READY);
    assert!(e.message.starts_with("the host was not ready within 1s500ms"), "{e}");
    assert!(began.elapsed() < Duration::from_secs(4));
    let waiting = b.cx("3");
    let later = async {
        tokio::time::sleep(Duration::from_millis(900)).await;
    };
    later.await;
    b.host.up();
    let o = b.act_on(&waiting, b.handle(), "wait_ready", vec![]).await.unwrap();
    assert!(o.note.unwrap().starts_with("ready"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_says_nothing_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut env = environment(&[("old", [("ssh".to_string(), format!("root@127.0.0.1:{port}").into())].into())]);
    let settings = &mut env.resources.get_mut(&Section::Hosts).unwrap().get_mut("old").unwrap().settings;
    settings.insert("connect_timeout".into(), Duration::from_millis(500).into());
    let cx = runbook_testkit::cx(&crate::support::sshd::world(), env, "a");
    let began = Instant::now();
    let e = ssh::connect(&cx, "old").await.err().unwrap();
    assert_eq!(e.code, Code::SSH_CONNECT);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}
