//! The SSH servers that the tests run against, behind one face: OpenSSH, dropbear, and the server of the embedded lab.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use runbook_core::Value;

use super::sshd::{Around, Sshd, below};

/// A kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Debian's OpenSSH.
    OpenSsh,
    /// Debian's dropbear.
    Dropbear,
    /// The lab's own.
    Lab,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 3] = [Kind::OpenSsh, Kind::Dropbear, Kind::Lab];
}

/// A running server. What only OpenSSH has is reached as if it were an [`Sshd`].
pub enum Server {
    /// OpenSSH.
    OpenSsh(Sshd),
    /// dropbear.
    Dropbear(Dropbear),
    /// A host of the lab.
    Lab(LabHost),
}

impl Server {
    /// Starts one; `None` when it is not installed here.
    pub fn start(kind: Kind) -> Option<Server> {
        match kind {
            Kind::OpenSsh => Sshd::start("").map(Server::OpenSsh),
            Kind::Dropbear => Dropbear::start(&[], Around::default()).map(Server::Dropbear),
            Kind::Lab => Some(Server::Lab(LabHost::start())),
        }
    }

    /// The home of its sessions.
    pub fn home(&self) -> PathBuf {
        match self {
            Server::OpenSsh(s) => s.home(),
            Server::Dropbear(s) => s.dir.path().join("home"),
            Server::Lab(s) => s.home.clone(),
        }
    }

    /// The inventory's settings for it.
    pub fn settings(&self) -> BTreeMap<String, Value> {
        match self {
            Server::OpenSsh(s) => s.settings(),
            Server::Dropbear(s) => s.settings(),
            Server::Lab(s) => s.settings.clone(),
        }
    }

    /// Kills every session of the server, but not what the sessions have started.
    pub fn cut(&self) {
        match self {
            Server::OpenSsh(s) => s.cut(),
            Server::Dropbear(s) => s.cut(),
            Server::Lab(_) => panic!("the lab's sessions are no processes"),
        }
    }

    /// Kills the server and every session.
    pub fn down(&mut self) {
        match self {
            Server::OpenSsh(s) => s.down(),
            Server::Dropbear(s) => s.down(),
            Server::Lab(_) => panic!("the lab stays up"),
        }
    }

    /// Starts the server process again.
    pub fn up(&mut self) {
        match self {
            Server::OpenSsh(s) => s.up(),
            Server::Dropbear(s) => s.up(),
            Server::Lab(_) => panic!("the lab stays up"),
        }
    }
}

impl Deref for Server {
    type Target = Sshd;

    fn deref(&self) -> &Sshd {
        let Server::OpenSsh(s) = self else { panic!("only OpenSSH has that") };
        s
    }
}

impl DerefMut for Server {
    fn deref_mut(&mut self) -> &mut Sshd {
        let Server::OpenSsh(s) = self else { panic!("only OpenSSH has that") };
        s
    }
}

/// dropbear on loopback, with a home of its own for root (in a mount namespace); killed on drop, with its sessions.
pub struct Dropbear {
    /// Its folder: keys, `home`.
    pub dir: tempfile::TempDir,
    port: u16,
    args: Vec<String>,
    around: Around,
    child: Option<Child>,
}

impl Dropbear {
    /// Starts one with further arguments.
    pub fn start(args: &[&str], around: Around) -> Option<Dropbear> {
        if !super::have("dropbear") || !super::have("dropbearkey") || !super::have("ssh-keygen") {
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary folder");
        let p = |f: &str| dir.path().join(f);
        std::fs::create_dir_all(p("home/.ssh")).expect("a home");
        let run = |program: &str, args: &[&str]| {
            let out = Command::new(program).args(args).current_dir(dir.path()).output().expect(program);
            assert!(out.status.success(), "{program} {args:?}: {out:?}");
            String::from_utf8_lossy(&out.stdout).into_owned()
        };
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", "user_key"]);
        run("dropbearkey", &["-t", "ed25519", "-f", "host_key"]);
        let shown = run("dropbearkey", &["-y", "-f", "host_key"]);
        let key = shown.lines().find(|l| l.starts_with("ssh-ed25519 ")).expect("the host key");
        std::fs::copy(p("user_key.pub"), p("home/.ssh/authorized_keys")).expect("a copy");
        let port = super::free_port();
        std::fs::write(p("known_hosts"), format!("[127.0.0.1]:{port} {key}\n")).expect("known_hosts");
        let around = Around { home: Some(p("home")), ..around };
        let mut s = Dropbear { dir, port, args: args.iter().map(|a| (*a).to_string()).collect(), around, child: None };
        s.up();
        Some(s)
    }

    fn up(&mut self) {
        let p = |f: &str| self.dir.path().join(f);
        let log = std::fs::File::options().create(true).append(true).open(p("log")).expect("a log");
        let mut c = self.around.command(self.dir.path(), "dropbear");
        c.args(["-F", "-E", "-s", "-p", &format!("127.0.0.1:{}", self.port), "-r"]).arg(p("host_key")).arg("-P").arg(p("pid"));
        self.child = Some(c.args(&self.args).stderr(Stdio::from(log)).spawn().expect("dropbear starts"));
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let log = std::fs::read_to_string(p("log")).unwrap_or_default();
            assert!(began.elapsed() < Duration::from_secs(20), "dropbear does not listen: {log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn cut(&self) {
        for pid in self.child.as_ref().map_or(vec![], |c| below(c.id(), "dropbear")) {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
    }

    fn down(&mut self) {
        // The listener first: it would take the next connection before it is gone itself.
        let sessions = self.child.as_ref().map_or(vec![], |c| below(c.id(), "dropbear"));
        if let Some(mut c) = self.child.take() {
            let _ = c.kill();
            let _ = c.wait();
        }
        for pid in sessions {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
        }
    }

    fn settings(&self) -> BTreeMap<String, Value> {
        let p = |f: &str| Value::from(self.dir.path().join(f).display().to_string());
        BTreeMap::from([
            ("ssh".to_string(), Value::from(format!("root@127.0.0.1:{}", self.port))),
            ("identity_file".to_string(), p("user_key")),
            ("known_hosts".to_string(), p("known_hosts")),
        ])
    }
}

impl Drop for Dropbear {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("dropbear said:\n{}", std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default());
        }
        self.down();
    }
}

/// One host of an embedded lab, which goes with it.
pub struct LabHost {
    /// Its folder.
    pub home: PathBuf,
    settings: BTreeMap<String, Value>,
    dir: PathBuf,
    _tmp: tempfile::TempDir,
}

/// Runs async work of the lab, whether or not the caller is async.
fn wait<T: Send>(work: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|s| s.spawn(|| tokio::runtime::Runtime::new().expect("a runtime").block_on(work)).join().expect("the lab's work"))
}

impl LabHost {
    fn start() -> LabHost {
        let tmp = tempfile::tempdir().expect("a temporary folder");
        let dir = tmp.path().join("p/.runbook/lab/demo");
        let plan = super::lab::plan(&["old", "new"], Duration::from_secs(60), Duration::from_secs(3600));
        let overlay = wait(async {
            runbook_lab::up(&dir, &plan).await.expect("the lab comes up");
            runbook_lab::overlay(&dir).await.expect("the lab's addresses")
        });
        let settings = ["ssh", "identity_file", "known_hosts"]
            .map(|k| (k.to_string(), Value::from(overlay["hosts"]["old"][k].as_str().expect("a setting"))));
        LabHost { home: dir.join("hosts/old"), settings: settings.into(), dir, _tmp: tmp }
    }
}

impl Drop for LabHost {
    fn drop(&mut self) {
        let _ = wait(runbook_lab::down(&self.dir));
    }
}
