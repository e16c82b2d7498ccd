//! Throw-away users of this machine, for what needs a real login: passwords, sudo, su. Removed on drop.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A user with a password and a home.
pub struct User {
    /// The login name.
    pub name: String,
    /// The password.
    pub password: String,
}

fn run(program: &str, args: &[&str], input: &str) -> bool {
    use std::io::Write as _;
    let mut c = Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect(program);
    let _ = c.stdin.take().expect("its input").write_all(input.as_bytes());
    c.wait().expect(program).success()
}

impl User {
    /// Makes one. `None` when this is not root or a tool is missing.
    pub fn new() -> Option<User> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if !super::have("useradd") || !super::have("chpasswd") {
            return None;
        }
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "users can be made by root alone, and CI is set");
            eprintln!("skipped: users can be made by root alone");
            return None;
        }
        let name = format!("rbt{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        assert!(run("useradd", &["-m", "-s", "/bin/sh", &name], ""), "useradd {name}");
        let u = User { password: format!("pw {name}'\"$\\"), name };
        u.set_password(&u.password);
        Some(u)
    }

    /// Gives it another login shell.
    pub fn set_shell(&self, shell: &str) {
        assert!(run("usermod", &["-s", shell, &self.name], ""), "usermod");
    }

    /// Sets the password.
    pub fn set_password(&self, password: &str) {
        assert!(run("chpasswd", &[], &format!("{}:{password}\n", self.name)), "chpasswd");
    }

    /// Makes the password be changed at the next login.
    pub fn expire(&self) {
        assert!(run("chage", &["-d", "0", &self.name], ""), "chage");
    }

    /// Makes the account be over.
    pub fn close(&self) {
        assert!(run("chage", &["-E", "1", &self.name], ""), "chage");
    }

    /// The home folder.
    pub fn home(&self) -> PathBuf {
        PathBuf::from("/home").join(&self.name)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // The last process of a session may be a moment behind.
        for _ in 0..20 {
            run("pkill", &["-KILL", "-u", &self.name], "");
            if run("userdel", &["-r", "-f", &self.name], "") {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        let _ = std::fs::remove_file(format!("/etc/sudoers.d/{}", self.name));
    }
}
