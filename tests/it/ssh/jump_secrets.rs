//! A jump host of the inventory with a secret of its own, through the binary: both hosts are real servers.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use crate::support::sshd::Sshd;
use crate::support::users::User;

/// A project in which `old` is reached through `bastion`, whose lines of the inventory are given; both know only their own logins.
struct Project {
    dir: tempfile::TempDir,
    inner: Sshd,
}

impl Project {
    fn new(gate: &Sshd, user: &str, lines: &str) -> Option<Project> {
        let inner = Sshd::start("")?;
        let dir = tempfile::tempdir().unwrap();
        let p = |s: &Sshd, f: &str| s.path(f).display().to_string();
        let config = format!(
            "Host inner\n  HostName 127.0.0.1\n  Port {}\n  User root\n  IdentitiesOnly yes\n  IdentityFile {}\n  UserKnownHostsFile {}\n  ProxyJump gate\n\
             Host gate\n  HostName 127.0.0.1\n  Port {}\n  User {user}\n",
            inner.port,
            p(&inner, "user_key"),
            p(&inner, "known_hosts"),
            gate.port
        );
        std::fs::write(dir.path().join("ssh_config"), config).unwrap();
        let inventory = format!(
            "[project]\nname = \"jump\"\n[secrets]\nway-in = {{ env = \"WAY_IN\" }}\n[environments.test.hosts.old]\nssh = \"inner\"\nssh_config = \"{}\"\n\
             [environments.test.hosts.bastion]\nssh = \"{user}@127.0.0.1:{}\"\nknown_hosts = \"{}\"\n{lines}\n",
            dir.path().join("ssh_config").display(),
            gate.port,
            p(gate, "known_hosts")
        );
        std::fs::write(dir.path().join("runbook.toml"), inventory).unwrap();
        std::fs::create_dir(dir.path().join("runbooks")).unwrap();
        std::fs::create_dir(dir.path().join("home")).unwrap();
        std::fs::write(
            dir.path().join("runbooks/ask.rhai"),
            "//! Asks.\nlet old = host(\"old\");\nstep \"Ask\" { old.run(\"echo yes >through\"); } undo { }\n",
        )
        .unwrap();
        Some(Project { dir, inner })
    }

    /// Runs it with this secret: the exit status, and all that was said.
    fn run(&self, secret: &str) -> (Option<i32>, String) {
        let out = Command::new(env!("CARGO_BIN_EXE_runbook"))
            .args(["run", "runbooks/ask.rhai", "--env", "test", "--yes", "--no-input"])
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path().join("home"))
            .env("WAY_IN", secret)
            .env_remove("SSH_AUTH_SOCK")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (out.status.code(), [out.stdout, out.stderr].map(|o| String::from_utf8_lossy(&o).into_owned()).concat())
    }

    fn arrived(&self) -> bool {
        self.inner.home().join("through").exists()
    }

    /// The right secret leads through; the wrong one is told with the jump host's name, and is not told itself.
    fn prove(&self, right: &str, gate: &Sshd, why: &str) {
        let wrong = "not the-one";
        let (code, said) = self.run(wrong);
        assert_eq!(code, Some(4), "{said}");
        assert!(said.contains("RB0301") && said.contains("(host bastion)") && said.contains(why), "{said}");
        assert!(said.contains(&format!("ssh -p {}", gate.port)) && !said.contains(wrong), "{said}");
        assert!(!self.arrived() && !self.inner.log().contains("Accepted"), "{}", self.inner.log());
        let (code, said) = self.run(right);
        assert_eq!(code, Some(0), "{said}\n{}", gate.log());
        assert!(self.arrived() && !said.contains(right), "{said}");
    }
}

#[test]
fn a_jump_host_takes_its_password() {
    let Some(user) = User::new() else { return };
    let lines = format!("PubkeyAuthentication no\nPasswordAuthentication yes\nSetEnv HOME={}", user.home().display());
    let Some(gate) = Sshd::start(&lines) else { return };
    std::fs::set_permissions(gate.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let Some(p) = Project::new(&gate, &user.name, "password = \"way-in\"") else { return };
    p.prove(&user.password, &gate, "tried the password \"way-in\": refused");
    assert!(gate.log().contains(&format!("Accepted password for {}", user.name)), "{}", gate.log());
}

#[test]
fn a_jump_host_takes_its_key_with_its_passphrase() {
    let Some(gate) = Sshd::start("") else { return };
    let key = gate.path("user_key");
    let locked = Command::new("ssh-keygen").args(["-q", "-p", "-P", "", "-N", "open sesame", "-f"]).arg(&key).status();
    assert!(locked.unwrap().success());
    let lines = format!("identity_file = \"{}\"\npassphrase = \"way-in\"", key.display());
    let Some(p) = Project::new(&gate, "root", &lines) else { return };
    p.prove("open sesame", &gate, "does not open with the passphrase \"way-in\"");
    assert!(gate.log().contains("Accepted publickey for root"), "{}", gate.log());
}
