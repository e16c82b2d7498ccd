//! Passwords and questions: PAM's, sshd's own, as a second factor, expired, and asked for on the terminal.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;

use runbook_core::Value;

use super::auth::login;
use crate::support::sshd::Sshd;
use crate::support::users::User;

/// A server that lets this user in, with these lines of its configuration.
fn server(user: &User, lines: &str) -> Option<(Sshd, BTreeMap<String, Value>)> {
    let host = Sshd::start(&format!("{lines}\nSetEnv HOME={}", user.home().display()))?;
    std::fs::set_permissions(host.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(host.path("authorized_keys"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut settings = host.settings();
    settings.insert("ssh".into(), format!("{}@127.0.0.1:{}", user.name, host.port).into());
    settings.insert("password".into(), "pw".into());
    Some((host, settings))
}

fn pam() -> bool {
    let there = std::path::Path::new("/etc/pam.d/sshd").exists();
    if !there {
        assert!(std::env::var_os("CI").is_none(), "there is no /etc/pam.d/sshd, and CI is set");
        eprintln!("skipped: there is no /etc/pam.d/sshd");
    }
    there
}

#[test]
fn a_password_by_either_way_that_takes_one() {
    let Some(user) = User::new() else { return };
    let home = tempfile::tempdir().unwrap();
    for (lines, by, with_pam) in [
        ("PasswordAuthentication yes", "a password", false),
        ("UsePAM yes\nPasswordAuthentication yes", "a password", true),
        ("UsePAM yes\nKbdInteractiveAuthentication yes", "answers to its questions", true),
        ("UsePAM yes\nKbdInteractiveAuthentication yes\nPasswordAuthentication yes", "answers to its questions", true),
    ] {
        if with_pam && !pam() {
            continue;
        }
        let lines = format!("PubkeyAuthentication no\n{lines}");
        let Some((host, settings)) = server(&user, &lines) else { return };
        login(&settings, home.path(), None, &[("pw", &user.password)], &[]).by(by);
        let wrong = login(&settings, home.path(), None, &[("pw", "not the one")], &[]);
        wrong.fails("the password \"pw\": refused");
        // It counts once against the login.
        let failed = || host.log().matches("Failed password").count() + host.log().matches("PAM: Authentication failure for").count();
        let began = std::time::Instant::now();
        while failed() == 0 && began.elapsed() < std::time::Duration::from_secs(5) {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert_eq!(failed(), 1, "{}", host.log());
        let mut unset = settings.clone();
        unset.remove("password");
        let asked = login(&unset, home.path(), None, &[], &["mistyped", &user.password]);
        asked.by(by);
        assert_eq!(asked.asked.len(), 2, "{asked:?}");
        assert!(asked.asked.iter().all(|q| q.contains(&user.name) && q.contains("assword")), "{asked:?}");
        let three = login(&unset, home.path(), None, &[], &["a", "b", "c", "d"]);
        three.fails("refuse");
        login(&unset, home.path(), None, &[], &[]).fails("RB0301");
    }
}

#[test]
fn a_key_and_a_password_together() {
    let Some(user) = User::new() else { return };
    let home = tempfile::tempdir().unwrap();
    let Some((_host, settings)) = server(&user, "PasswordAuthentication yes\nAuthenticationMethods publickey,password") else { return };
    login(&settings, home.path(), None, &[("pw", &user.password)], &[]).by("a password (after publickey)");
    let mut unset = settings.clone();
    unset.remove("password");
    let l = login(&unset, home.path(), None, &[], &[]);
    l.fails("took publickey of ");
    l.fails("wants password as well");
    if pam() {
        let lines = "UsePAM yes\nKbdInteractiveAuthentication yes\nAuthenticationMethods publickey,keyboard-interactive";
        let Some((_host, settings)) = server(&user, lines) else { return };
        login(&settings, home.path(), None, &[("pw", &user.password)], &[]).by("answers to its questions (after publickey)");
    }
}

#[test]
fn an_expired_password_is_told_and_never_changed() {
    let (true, Some(user)) = (pam(), User::new()) else { return };
    let home = tempfile::tempdir().unwrap();
    let lines = "UsePAM yes\nPubkeyAuthentication no\nKbdInteractiveAuthentication yes";
    let Some((_host, settings)) = server(&user, lines) else { return };
    user.expire();
    login(&settings, home.path(), None, &[("pw", &user.password)], &[]).fails("has expired and must be changed");
}

#[test]
fn a_question_that_nobody_answers_is_named() {
    let (true, Some(user)) = (pam(), User::new()) else { return };
    let home = tempfile::tempdir().unwrap();
    let lines = "UsePAM yes\nPubkeyAuthentication no\nKbdInteractiveAuthentication yes";
    let Some((_host, mut settings)) = server(&user, lines) else { return };
    settings.remove("password");
    let l = login(&settings, home.path(), None, &[], &[]);
    l.fails("asks \"");
    assert!(l.hint.contains("answers = {"), "{l:?}");
    // A secret for the question, by a part of its text.
    settings.insert("answers".into(), Value::Map([("assWORD".to_string(), "pw".into())].into()));
    login(&settings, home.path(), None, &[("pw", &user.password)], &[]).by("answers to its questions");
}
