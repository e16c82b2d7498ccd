//! A real OpenSSH server on loopback, in a folder of its own: own host key, own user key, own home for its sessions.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use runbook_core::Value;
use runbook_core::inventory::{Environment, Resource, Section};

/// A running server; killed on drop, with its sessions.
pub struct Sshd {
    /// Its folder: keys, configuration, `home`.
    pub dir: tempfile::TempDir,
    /// Its port.
    pub port: u16,
    extra: String,
    around: Around,
    child: Option<Child>,
}

/// What is around a server process.
#[derive(Debug, Clone, Default)]
pub struct Around {
    /// The address it listens on; 127.0.0.1 when not given.
    pub address: Option<String>,
    /// The words before its command line, such as `ip netns exec NAME`.
    pub prefix: Vec<String>,
    /// The login's shell, in a mount namespace with a passwd of its own (root only).
    pub shell: Option<String>,
    /// The login's home, likewise; the folder `home` when not given.
    pub home: Option<PathBuf>,
}

impl Around {
    /// The address it listens on.
    pub fn address(&self) -> &str {
        self.address.as_deref().unwrap_or("127.0.0.1")
    }

    /// A command line with all that is around it; `dir` is the server's folder.
    pub fn command(&self, dir: &Path, program: &str) -> Command {
        let mut words = self.prefix.clone();
        if self.shell.is_some() || self.home.is_some() {
            let home = self.home.clone().unwrap_or_else(|| dir.join("home"));
            let shell = self.shell.as_deref().unwrap_or("/bin/sh");
            let passwd = std::fs::read_to_string("/etc/passwd").expect("passwd");
            let ours = format!("root:x:0:0:root:{}:{shell}", home.display());
            let lines: Vec<&str> = passwd.lines().map(|l| if l.starts_with("root:") { ours.as_str() } else { l }).collect();
            // All of /etc: a mount on the file alone is gone as soon as somebody replaces that file outside.
            let etc = dir.join("etc");
            if !etc.exists() {
                Command::new("cp").arg("-a").arg("/etc").arg(&etc).status().expect("a copy of /etc");
            }
            std::fs::write(etc.join("passwd"), lines.join("\n") + "\n").expect("a passwd");
            let mount = format!("mount --bind {} /etc && exec \"$@\"", etc.display());
            words.extend(["unshare", "-m", "sh", "-c", &mount, "sh"].map(String::from));
        }
        words.push(program.into());
        let mut c = Command::new(&words[0]);
        c.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null());
        c
    }
}

impl Sshd {
    /// Starts one; `extra` are further lines of its configuration. `None` when there is no sshd here.
    pub fn start(extra: &str) -> Option<Sshd> {
        Sshd::start_in(extra, Around::default())
    }

    /// Starts one with something around it.
    pub fn start_in(extra: &str, around: Around) -> Option<Sshd> {
        if !super::have("sshd") || !super::have("ssh-keygen") {
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary folder");
        // The server refuses keys in folders that others can write to.
        std::fs::create_dir_all("/run/sshd").ok();
        std::fs::create_dir(dir.path().join("home")).expect("a home");
        for key in ["host_key", "user_key"] {
            let done = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", key, "-f"])
                .arg(dir.path().join(key))
                .status()
                .expect("ssh-keygen");
            assert!(done.success());
        }
        let port = super::free_port();
        let mut s = Sshd { dir, port, extra: extra.to_string(), around, child: None };
        std::fs::copy(s.path("user_key.pub"), s.path("authorized_keys")).expect("a copy");
        let key = std::fs::read_to_string(s.path("host_key.pub")).expect("the host key");
        std::fs::write(s.path("known_hosts"), format!("[{}]:{port} {key}", s.around.address())).expect("known_hosts");
        s.up();
        Some(s)
    }

    /// Adds lines to its configuration, for the next [`Sshd::up`].
    pub fn configure(&mut self, line: &str) {
        self.extra.push_str(line);
        self.extra.push('\n');
    }

    /// Starts the server process (again).
    pub fn up(&mut self) {
        let p = |f: &str| self.path(f).display().to_string();
        let config = format!(
            "ListenAddress {}:{}\nHostKey {}\nAuthorizedKeysFile {} {}\nPidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPrintMotd no\nMaxStartups 100\nLogLevel VERBOSE\n{}\nSetEnv {}{}\n",
            self.around.address(),
            self.port,
            p("host_key"),
            p("authorized_keys"),
            // As the server's own default, for what is added by the primitives.
            p("home/.ssh/authorized_keys"),
            self.extra.lines().filter(|l| !l.starts_with("SetEnv ")).collect::<Vec<_>>().join("\n"),
            // A passwd of its own names the home; without one, sessions must be told.
            if self.around.home.is_some() { "RUNBOOK_TEST=1".to_string() } else { format!("HOME={}", p("home")) },
            // Only the first SetEnv counts.
            self.extra.lines().filter_map(|l| l.strip_prefix("SetEnv ")).map(|e| format!(" {e}")).collect::<String>()
        );
        // What a test sets counts, and not what is usual here.
        let word = |l: &str| l.split_whitespace().next().unwrap_or_default().to_lowercase();
        let own: Vec<String> =
            self.extra.lines().map(word).filter(|w| !["listenaddress", "hostkey", "setenv"].contains(&w.as_str())).collect();
        let usual = 12;
        let config: String = config
            .lines()
            .enumerate()
            .filter(|(i, l)| *i >= usual || !own.contains(&word(l)))
            .map(|(_, l)| if self.extra.contains("SetEnv HOME=") { l.replace(&format!("HOME={} ", p("home")), "") } else { l.to_string() })
            .map(|l| format!("{l}\n"))
            .collect();
        std::fs::write(self.path("sshd_config"), config).expect("the configuration");
        let sshd = ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/usr/bin/sshd"].iter().find(|p| Path::new(p).exists()).expect("sshd");
        let mut child = self
            .around
            .command(self.dir.path(), sshd)
            .args(["-D", "-e", "-f"])
            .arg(self.path("sshd_config"))
            .stderr(Stdio::piped())
            .spawn()
            .expect("sshd starts");
        let log = self.path("sshd.log");
        let stderr = child.stderr.take().expect("its log");
        std::thread::spawn(move || {
            use std::io::Write as _;
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("a log file");
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = writeln!(file, "{line}");
            }
        });
        self.child = Some(child);
        let began = Instant::now();
        while TcpStream::connect((self.around.address(), self.port)).is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "sshd does not listen: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Kills the server and every session, as a crash or a cut cable would.
    pub fn down(&mut self) {
        if let Some(c) = &self.child {
            // It takes nobody in any more while its sessions are ended, and they are found as long as it is there.
            let _ = Command::new("kill").args(["-STOP", &c.id().to_string()]).status();
        }
        self.cut();
        if let Some(mut c) = self.child.take() {
            let _ = c.kill();
            let _ = c.wait();
        }
    }

    /// Kills every session of the server, but not what the sessions have started.
    pub fn cut(&self) {
        for pid in self.sessions() {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
        }
    }

    /// The processes of the server that serve connections.
    pub fn sessions(&self) -> Vec<u32> {
        self.child.as_ref().map_or(vec![], |c| below(c.id(), "sshd"))
    }

    /// The server's log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("sshd.log")).unwrap_or_default()
    }

    /// A file in the server's folder.
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// The home of its sessions.
    pub fn home(&self) -> PathBuf {
        self.path("home")
    }

    /// The inventory's settings for it.
    pub fn settings(&self) -> BTreeMap<String, Value> {
        let p = |f: &str| Value::from(self.path(f).display().to_string());
        let user = std::env::var("USER").ok().filter(|u| !u.is_empty()).unwrap_or_else(|| "root".into());
        BTreeMap::from([
            ("ssh".to_string(), Value::from(format!("{user}@{}:{}", self.around.address(), self.port))),
            ("ssh_config".to_string(), "none".into()),
            ("identity_file".to_string(), p("user_key")),
            ("known_hosts".to_string(), p("known_hosts")),
        ])
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.down();
    }
}

/// The processes below `top` whose names begin like this.
pub fn below(top: u32, name: &str) -> Vec<u32> {
    let (mut found, mut at) = (vec![top], 0);
    while let Some(parent) = found.get(at).copied() {
        at += 1;
        found.extend(processes().into_iter().filter(|p| p.parent == parent && p.name.starts_with(name)).map(|p| p.pid));
    }
    found.split_off(1)
}

/// An environment with these hosts.
pub fn environment(hosts: &[(&str, BTreeMap<String, Value>)]) -> Environment {
    let mut env = Environment { name: "test".into(), ..Environment::default() };
    for (name, settings) in hosts {
        let r = Resource { name: (*name).into(), kind: "ssh".into(), settings: settings.clone() };
        env.resources.entry(Section::Hosts).or_default().insert((*name).into(), r);
    }
    env
}

/// A process, as `/proc` shows it.
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its parent's id.
    pub parent: u32,
    /// Its short name.
    pub name: String,
    /// Its command line.
    pub command: String,
}

/// Every process of this machine.
pub fn processes() -> Vec<Process> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((head, tail)) = stat.rsplit_once(')') else { continue };
        let name = head.split_once('(').map_or("", |(_, n)| n).to_string();
        let mut fields = tail.split_whitespace();
        if fields.next() == Some("Z") {
            continue;
        }
        let parent = fields.next().and_then(|p| p.parse().ok()).unwrap_or(0);
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        all.push(Process { pid, parent, name, command: String::from_utf8_lossy(&command).replace('\0', " ") });
    }
    all
}

/// A world for tests, shared.
pub fn world() -> Arc<runbook_testkit::World> {
    Arc::new(runbook_testkit::World::default())
}
