//! Raised privileges: sudo, doas and su with real passwords of throw-away users, and commands on a terminal.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;

use runbook_core::{Code, Value};

use super::{Bench, failure, field, options};
use crate::support::sshd::environment;
use crate::support::users::User;

/// A bench whose host is logged in to as this user, in its own home.
fn bench(user: &User, more: &[(&str, &str)]) -> Option<Bench> {
    let home = user.home().display().to_string();
    let mut b = Bench::new(&format!("SetEnv HOME={home}"))?;
    std::fs::set_permissions(b.host.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(b.host.path("authorized_keys"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut settings: BTreeMap<String, Value> = b.host.settings();
    settings.insert("ssh".into(), format!("{}@127.0.0.1:{}", user.name, b.host.port).into());
    settings.extend(more.iter().map(|(k, v)| ((*k).to_string(), Value::from(*v))));
    b.env = environment(&[("old", settings)]);
    b.world.secrets.lock().insert("pw".into(), user.password.clone());
    b.world.secrets.lock().insert("wrong".into(), "not the one".into());
    Some(b)
}

fn sudoers(user: &User, text: &str) {
    let file = format!("/etc/sudoers.d/{}", user.name);
    std::fs::write(&file, text.replace("USER", &user.name)).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o440)).unwrap();
}

fn sudo(to: impl Into<Value>) -> Value {
    options([("sudo", to.into())])
}

fn out(o: &runbook_core::primitive::Outcome) -> String {
    field(o, "stdout").as_str().unwrap_or("").to_string()
}

fn ready() -> bool {
    crate::support::have("sudo") && crate::support::have("script")
}

/// Every way in which a command goes: a read, a supervised command with environment and input, a file.
async fn every_way(b: &Bench, to: Value, want: &str, id: &str) {
    let o = b.act(&format!("{id}-read"), "read", vec!["id -un".into(), sudo(to.clone())]).await.unwrap();
    assert_eq!(out(&o), format!("{want}\n"), "{id}");
    let o = b
        .act(
            &format!("{id}-run"),
            "run",
            vec![
                "id -un; echo \"$A\"; cat; echo oops >&2".into(),
                options([("sudo", to.clone()), ("env", options([("A", "x 'y'".into())])), ("stdin", "the input\nof two lines\n".into())]),
            ],
        )
        .await
        .unwrap();
    assert_eq!(out(&o), format!("{want}\nx 'y'\nthe input\nof two lines\n"), "{id}");
    assert_eq!(field(&o, "stderr").as_str().unwrap(), "oops\n", "{id}: nothing of sudo, doas or su is in it");
    let o = b.act(&format!("{id}-try"), "try_run", vec!["exit 7".into(), sudo(to.clone())]).await.unwrap();
    assert_eq!(field(&o, "status").as_int(), Some(7), "{id}");
    let file = format!("/tmp/rbt-{id}-{}", b.host.port);
    let done = b.act(&format!("{id}-file"), "write_file", vec![file.as_str().into(), "bytes \u{e9}\n".into(), sudo(to.clone())]).await;
    let written = std::fs::read_to_string(&file);
    let owner = std::process::Command::new("stat").args(["-c", "%U", &file]).output().unwrap().stdout;
    let _ = std::fs::remove_file(&file);
    done.unwrap();
    assert_eq!((written.unwrap().as_str(), String::from_utf8(owner).unwrap().trim()), ("bytes \u{e9}\n", want), "{id}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sudo_with_a_password_and_without_as_root_and_as_others() {
    let (true, Some(user), Some(other)) = (ready(), User::new(), User::new()) else { return };
    let Some(b) = bench(&user, &[("sudo_password", "pw")]) else { return };
    sudoers(&user, "USER ALL=(ALL) ALL\n");
    every_way(&b, true.into(), "root", "sp").await;
    every_way(&b, other.name.as_str().into(), &other.name, "spo").await;
    // The password is neither in what was said nor on the host.
    assert!(!b.output().contains(&user.password));
    let Some(b) = bench(&user, &[]) else { return };
    failure(b.act("1", "run", vec!["true".into(), sudo(true)]).await, Code::SUDO);
    sudoers(&user, "USER ALL=(ALL) NOPASSWD: ALL\n");
    every_way(&b, true.into(), "root", "sn").await;
    every_way(&b, other.name.as_str().into(), &other.name, "sno").await;
    // A password that nobody asks for does not end up in the command's input.
    let Some(b) = bench(&user, &[("sudo_password", "wrong")]) else { return };
    every_way(&b, true.into(), "root", "su").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_login_shell_lets_a_password_through() {
    let (true, Some(user), Some(other)) = (ready(), User::new(), User::new()) else { return };
    sudoers(&user, "USER ALL=(ALL) ALL\n");
    let shells = ["/bin/bash", "/usr/bin/fish", "/bin/csh", "/bin/tcsh", "/usr/bin/mksh", "/bin/zsh"];
    for shell in shells.into_iter().filter(|s| std::path::Path::new(s).exists()) {
        user.set_shell(shell);
        let Some(b) = bench(&user, &[("sudo_password", "pw")]) else { return };
        every_way(&b, true.into(), "root", &format!("sh{}", shell.len())).await;
        let Some(b) = bench(&user, &[("sudo_method", "su"), ("sudo_password", "pw")]) else { return };
        b.world.secrets.lock().insert("pw".into(), other.password.clone());
        every_way(&b, other.name.as_str().into(), &other.name, &format!("su{}", shell.len())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_password_is_not_in_any_process() {
    let (true, Some(user)) = (ready(), User::new()) else { return };
    let Some(b) = bench(&user, &[("sudo_password", "pw")]) else { return };
    sudoers(&user, "USER ALL=(ALL) ALL\n");
    for name in ["read", "run"] {
        let over = std::sync::atomic::AtomicBool::new(false);
        let command = async {
            let o = b.act(name, name, vec!["sleep 1; echo over".into(), sudo(true)]).await;
            over.store(true, std::sync::atomic::Ordering::SeqCst);
            o
        };
        let look = async {
            let (mut sudos, mut found) = (0, vec![]);
            while !over.load(std::sync::atomic::Ordering::SeqCst) {
                for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                    for file in ["cmdline", "environ"] {
                        let text = String::from_utf8_lossy(&std::fs::read(entry.path().join(file)).unwrap_or_default()).replace('\0', " ");
                        sudos += usize::from(file == "cmdline" && text.starts_with("sudo ") && text.contains("-S"));
                        if text.contains(&user.password) {
                            found.push(text);
                        }
                    }
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            (sudos, found)
        };
        let (o, (sudos, found)) = tokio::join!(command, look);
        assert_eq!(out(&o.unwrap()), "over\n");
        assert!(sudos > 0 && found.is_empty(), "{name}: {sudos} {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_tried_once() {
    let (true, Some(user)) = (ready(), User::new()) else { return };
    let Some(b) = bench(&user, &[("sudo_password", "wrong")]) else { return };
    let mark = b.host.path("asked");
    std::fs::write(&mark, "").unwrap();
    sudoers(&user, "USER ALL=(ALL) ALL\n");
    for name in ["read", "run"] {
        let began = std::time::Instant::now();
        let e = failure(b.act(name, name, vec!["touch /tmp/never-here".into(), sudo(true)]).await, Code::RAISE_PASSWORD);
        // Each wrong try costs PAM's two seconds; three would be six.
        assert!(began.elapsed() < std::time::Duration::from_millis(5500), "{name}: {:?}: {e}", began.elapsed());
    }
    assert!(!std::path::Path::new("/tmp/never-here").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_and_who_needs_a_terminal_is_told() {
    let (true, Some(user), Some(other)) = (ready(), User::new(), User::new()) else { return };
    let Some(b) = bench(&user, &[("sudo_password", "pw")]) else { return };
    for name in ["read", "run"] {
        failure(b.act(name, name, vec!["true".into(), sudo(true)]).await, Code::RAISE_DENIED);
    }
    sudoers(&user, &format!("USER ALL=({}) ALL\n", other.name));
    failure(b.act("2", "run", vec!["true".into(), sudo(true)]).await, Code::RAISE_DENIED);
    // requiretty: refused, and with a terminal it works.
    sudoers(&user, "Defaults:USER requiretty\nUSER ALL=(ALL) NOPASSWD: ALL\n");
    let Some(n) = bench(&user, &[]) else { return };
    for (b, what) in [(&n, "n"), (&b, "p")] {
        failure(b.act(&format!("{what}3"), "read", vec!["true".into(), sudo(true)]).await, Code::RAISE_TTY);
        for name in ["read", "run"] {
            let wish = options([("sudo", true.into()), ("tty", true.into())]);
            let o = b.act(&format!("{what}{name}"), name, vec!["id -un; test -t 1 && echo terminal".into(), wish]).await.unwrap();
            assert_eq!(out(&o).replace('\r', ""), "root\nterminal\n", "{what} {name}");
        }
    }
    sudoers(&user, "Defaults:USER requiretty\nUSER ALL=(ALL) ALL\n");
    let wish = || options([("sudo", true.into()), ("tty", true.into())]);
    let o = b.act("4", "run", vec!["id -un".into(), wish()]).await.unwrap();
    assert_eq!(out(&o).replace('\r', ""), "root\n");
    let Some(w) = bench(&user, &[("sudo_password", "wrong")]) else { return };
    failure(w.act("5", "read", vec!["id -un".into(), wish()]).await, Code::RAISE_PASSWORD);
}

#[tokio::test(flavor = "multi_thread")]
async fn su_with_the_other_users_password() {
    let (true, Some(user), Some(other)) = (ready(), User::new(), User::new()) else { return };
    let Some(b) = bench(&user, &[("sudo_method", "su"), ("sudo_password", "pw")]) else { return };
    b.world.secrets.lock().insert("pw".into(), other.password.clone());
    every_way(&b, other.name.as_str().into(), &other.name, "su").await;
    let Some(b) = bench(&user, &[("sudo_method", "su"), ("sudo_password", "wrong")]) else { return };
    for name in ["read", "run"] {
        failure(b.act(name, name, vec!["true".into(), sudo(other.name.as_str())]).await, Code::RAISE_PASSWORD);
    }
    // Root needs no password for it.
    let Some(mut root) = Bench::new("") else { return };
    let mut settings = root.host.settings();
    settings.insert("sudo_method".into(), "su".into());
    root.env = environment(&[("old", settings)]);
    every_way(&root, other.name.as_str().into(), &other.name, "sur").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn doas_with_a_password_and_without() {
    let (true, true, Some(user), Some(other)) = (ready(), crate::support::have("doas"), User::new(), User::new()) else { return };
    let conf = std::path::Path::new("/etc/doas.conf");
    let before = std::fs::read_to_string(conf).ok();
    struct Restore(Option<String>);
    impl Drop for Restore {
        fn drop(&mut self) {
            let _ = match &self.0 {
                Some(t) => std::fs::write("/etc/doas.conf", t),
                None => std::fs::remove_file("/etc/doas.conf"),
            };
        }
    }
    let _restore = Restore(before);
    let rules = |text: &str| {
        std::fs::write(conf, text.replace("USER", &user.name)).unwrap();
        std::fs::set_permissions(conf, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    rules("permit nopass USER\n");
    let Some(b) = bench(&user, &[("sudo_method", "doas")]) else { return };
    every_way(&b, true.into(), "root", "dn").await;
    every_way(&b, other.name.as_str().into(), &other.name, "dno").await;
    rules("permit USER\n");
    failure(b.act("1", "run", vec!["true".into(), sudo(true)]).await, Code::SUDO);
    let Some(b) = bench(&user, &[("sudo_method", "doas"), ("sudo_password", "pw")]) else { return };
    every_way(&b, true.into(), "root", "dp").await;
    let Some(b) = bench(&user, &[("sudo_method", "doas"), ("sudo_password", "wrong")]) else { return };
    failure(b.act("2", "read", vec!["true".into(), sudo(true)]).await, Code::RAISE_PASSWORD);
    rules("deny USER\n");
    failure(b.act("3", "read", vec!["true".into(), sudo(true)]).await, Code::RAISE_DENIED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_when_asked_for() {
    let (true, Some(b)) = (ready(), Bench::new("")) else { return };
    for name in ["read", "run"] {
        let o = b
            .act(name, name, vec!["test -t 0 && test -t 1 && test -t 2 && tty; echo err >&2".into(), options([("tty", true.into())])])
            .await
            .unwrap();
        let text = out(&o);
        assert!(text.starts_with("/dev/pts/") && text.ends_with("err\r\n"), "{name}: {text:?}");
        assert_eq!(field(&o, "stderr").as_str(), Some(""), "both outputs come as one");
        let none = b.act(&format!("{name}-none"), name, vec!["test -t 1 || echo none".into()]).await.unwrap();
        assert_eq!(out(&none), "none\n");
    }
    let o =
        b.act("3", "try_run", vec!["exit 5".into(), options([("tty", true.into()), ("env", options([("A", "b".into())]))])]).await.unwrap();
    assert_eq!(field(&o, "status").as_int(), Some(5));
    let wish = options([("tty", true.into()), ("stdin", "x".into())]);
    failure(b.act("4", "run", vec!["cat".into(), wish]).await, Code::COMMAND_BAD);
    let e = failure(b.act("5", "run", vec!["true".into(), sudo("-rf")]).await, Code::COMMAND_BAD);
    assert!(e.message.contains("name of a user"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_account_is_told() {
    let (true, Some(user)) = (ready(), User::new()) else { return };
    let Some(b) = bench(&user, &[]) else { return };
    sudoers(&user, "USER ALL=(ALL) NOPASSWD: ALL\n");
    // The login stands already: sshd would not let it in any more.
    b.act("0", "read", vec!["true".into()]).await.unwrap();
    user.close();
    let e = failure(b.act("1", "read", vec!["true".into(), sudo(true)]).await, Code::RAISE_EXPIRED);
    assert!(e.message.starts_with("sudo refuses: "), "{e}");
}
