//! borg as people have it: keys in files, passwords from commands, another program on the server, logins that are not root.

use std::os::unix::fs::PermissionsExt as _;

use super::borg::{PASSWORD, Site, settings};
use super::twins::{Place, id};
use super::*;
use crate::support::users::User;

/// Takes, verifies and tests a snapshot. The folder of a test is named by its action, and other tests are at work beside.
async fn works(s: &Site, n: &str) -> Value {
    let made = s.call(&format!("r{n}-a"), "snapshot", take()).await.unwrap().value;
    s.call(&format!("r{n}-b"), "verify", vec![made.clone()]).await.unwrap();
    let compare = options(&[("compare", true.into())]);
    let test = s.call(&format!("r{}-{n}", s.old.port), "restore_test", vec![made.clone(), compare]).await.unwrap().value;
    assert_eq!(test.as_record().unwrap().get("files"), &Value::Int(9));
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_comes_from_a_command_of_the_host() {
    let Some(mut s) = Site::start() else { return };
    sh(&s.old.home(), &format!("printf '%s\\n' \"{PASSWORD}\" >'the password'"));
    // By its whole path: borg is begun in other folders too.
    let command = format!("cat '{}'", s.old.home().join("the password").display());
    s.settings = settings(&[("host", "old"), ("repository", "my repository"), ("passcommand", &command)]);
    s.call("r0-a", "init", vec![]).await.unwrap();
    let made = works(&s, "1").await;
    // It is the password that the command prints.
    assert_eq!(s.borg("list --short").trim(), id(&made));
    for (command, said) in [("false", "is not opened by its password"), ("echo another", "is not opened by its password")] {
        s.set("passcommand", command);
        for (method, args) in [("list", vec![]), ("snapshot", take())] {
            let e = s.fails("r1-e", method, args).await;
            assert!(e.code == Code::BACKUP_REPOSITORY && e.message.contains(said), "{command}, {method}: {e}");
        }
    }
    assert_eq!(s.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_a_file_must_be_where_it_is_used() {
    let Some(mut s) = Site::start() else { return };
    let repository = s.old.home().join("my repository").display().to_string();
    s.settings = settings(&[("host", "old"), ("repository", &repository), ("password", "borg"), ("encryption", "keyfile")]);
    s.call("r0-a", "init", vec![]).await.unwrap();
    assert_eq!(sh(&s.old.home(), "ls .config/borg/keys | wc -l").trim(), "1");
    let made = works(&s, "1").await;
    // Another host has none, and is told how to get it.
    let there = || vec![made.clone(), options(&[("on", host("new"))])];
    let e = s.fails(&format!("r{}-d", s.old.port), "restore_test", there()).await;
    assert!(e.code == Code::BACKUP_REPOSITORY && e.message.contains("has its key elsewhere"), "{e}");
    assert!(e.hint.unwrap().contains("borg key export"));
    let (old, new) = (s.old.home(), s.new.home());
    sh(
        &old,
        &format!(
            "export BORG_REPO='{repository}' BORG_PASSPHRASE=\"{PASSWORD}\"; HOME=$PWD borg key export :: key; HOME='{}' borg key import :: key",
            new.display()
        ),
    );
    s.call(&format!("r{}-e", s.old.port), "restore_test", there()).await.unwrap();
    // The key is gone: nothing is written under another one.
    sh(&old, "mv .config/borg/keys kept");
    let e = s.fails("r1-f", "snapshot", take()).await;
    assert!(e.message.contains("has its key elsewhere"), "{e}");
    sh(&old, "rmdir .config/borg/keys; mv kept .config/borg/keys");
    works(&s, "2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_may_have_its_borg_elsewhere() {
    let Some(mut s) = Site::start() else { return };
    let store = s.new.home().join("store").display().to_string();
    let borg = s.new.home().join("bin/borg-1.2").display().to_string();
    sh(&s.new.home(), &format!("mkdir bin; printf '#!/bin/sh\\necho \"$@\" >>{borg}.log\\nexec borg \"$@\"\\n' >{borg}; chmod 755 {borg}"));
    let rsh = format!(
        "ssh -F none -i {} -o UserKnownHostsFile={} -p {}",
        s.new.path("user_key").display(),
        s.new.path("known_hosts").display(),
        s.new.port
    );
    let repository = format!("ssh://{}@127.0.0.1{store}", sh(Path::new("/"), "id -un").trim());
    s.settings = settings(&[("host", "old"), ("repository", &repository), ("password", "borg"), ("rsh", &rsh), ("remote_path", &borg)]);
    s.call("r0-a", "init", vec![]).await.unwrap();
    works(&s, "1").await;
    assert!(sh(&s.new.home(), &format!("grep -c serve {borg}.log")).trim().parse::<u32>().unwrap() >= 5);
    s.set("remote_path", "/not/there/borg");
    let e = s.fails("r1-d", "snapshot", take()).await;
    assert!(e.code == Code::BACKUP_REPOSITORY && e.retryable, "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_is_not_root_takes_what_is_roots_with_sudo() {
    if !crate::support::have("sudo") {
        return;
    }
    let (Some(mut s), Some(user)) = (Site::start(), User::new()) else { return };
    let sudoers = format!("/etc/sudoers.d/{}", user.name);
    std::fs::write(&sudoers, format!("{} ALL=(ALL) NOPASSWD: ALL\n", user.name)).unwrap();
    std::fs::set_permissions(&sudoers, std::fs::Permissions::from_mode(0o440)).unwrap();
    std::fs::set_permissions(s.old.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(s.old.path("authorized_keys"), std::fs::Permissions::from_mode(0o644)).unwrap();
    s.old.configure(&format!("SetEnv HOME={}", user.home().display()));
    s.old.down();
    s.old.up();
    s.login.insert("ssh".into(), format!("{}@127.0.0.1:{}", user.name, s.old.port).into());
    // The repository and what is in it are root's.
    let home = s.old.home().display().to_string();
    let (store, shop) = (format!("{home}/store"), format!("{home}/shop"));
    sh(&s.old.home(), "chmod 700 . shop; chown daemon:bin shop/plain");
    let take = || vec![host("old"), shop.as_str().into(), options(&[("tags", list(&["before"])), ("exclude", list(&["*.tmp"]))])];
    s.settings = settings(&[("host", "old"), ("repository", &store), ("password", "borg")]);
    let e = s.fails("r0-a", "init", vec![]).await;
    assert!(e.message.contains("ermission denied"), "{e}");
    s.settings.insert("sudo".into(), true.into());
    s.call("r0-b", "init", vec![]).await.unwrap();
    let made = s.call("r1-a", "snapshot", take()).await.unwrap().value;
    s.call("r1-b", "verify", vec![made.clone()]).await.unwrap();
    s.call(&format!("r{}-c", s.old.port), "restore_test", vec![made.clone(), options(&[("compare", true.into())])]).await.unwrap();
    sh(&s.old.home(), "rm -rf shop/plain shop/hard");
    let back = vec![made, host("old"), "/".into(), options(&[("sudo", true.into())])];
    assert_eq!(s.call("r1-d", "restore", back.clone()).await.unwrap().changed, Some(true));
    assert_eq!(sh(&s.old.home(), "stat -c '%U %G %h %a' shop/plain").trim(), "daemon bin 2 640");
    assert_eq!(s.call("r1-e", "restore", back).await.unwrap().changed, Some(false));
    assert_eq!(sh(&s.old.home(), &format!("ls -d ${{TMPDIR:-/tmp}}/runbook-restore.r{}-* 2>/dev/null || true", s.old.port)), "");
    let left =
        sh(Path::new("/"), &format!("grep -rlF -- \"{PASSWORD}\" {}/.runbook {home}/.runbook 2>/dev/null || true", user.home().display()));
    assert_eq!(left, "");
    // What root's borg remembers of it.
    sh(
        &s.old.home(),
        "i=$(sed -n 's/^id = //p' store/config); [ -n \"$i\" ] && rm -rf /root/.cache/borg/$i /root/.config/borg/security/$i",
    );
}
