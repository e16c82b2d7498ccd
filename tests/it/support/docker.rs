//! Docker Engines for tests: each in namespaces of its own, with its data in a folder of its own; all of it ends with the test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running engine; killed on drop, with its containers.
pub struct Engine {
    dir: tempfile::TempDir,
    child: Child,
    cgroup: String,
}

/// A shell script as the first process of new namespaces: a network with nothing but itself, and the engine in it.
const CAPSULE: &str = r#"ip link set lo up; [ -z "$4" ] || mount --bind "$4" /srv; [ -z "$NODE" ] || hostname "$NODE"
exec dockerd --data-root "$1/data" --exec-root "$1/exec" --pidfile "$1/pid" -H "unix://$1/docker.sock" --iptables=false --ip-masq=false \
  --ip-forward=false --userland-proxy=false --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$2" --log-level=warn $3"#;

impl Engine {
    /// Starts one that sees `srv` as /srv, as its host does. `None` when there is no engine here.
    pub fn start(srv: &Path) -> Option<Engine> {
        Engine::start_with(srv, "", "")
    }

    /// Starts one whose host has this name, for a swarm: it sets up its own packet filter, with which containers can publish ports.
    pub fn start_node(srv: &Path, name: &str) -> Option<Engine> {
        Engine::start_with(srv, "--iptables=true --ip-masq=true --ip-forward=true", name)
    }

    /// Starts one that listens at a port of this machine as well, for clients with a certificate of this authority. It has no network for containers.
    pub fn start_with_tls(srv: &Path, port: u16, ca: &super::tls::Ca) -> Option<Engine> {
        let (cert, key) = ca.certificate(&super::tls::Certificate::default());
        let pem = |name: &str, text: &str| {
            let path = srv.join(name);
            std::fs::write(&path, text).expect("a file");
            path.display().to_string()
        };
        let (cert, key, ca) = (pem("server.pem", &cert), pem("server.key", &key), ca.file().display().to_string());
        Engine::start_with(
            srv,
            &format!("-H tcp://127.0.0.1:{port} --bridge=none --tlsverify --tlscacert={ca} --tlscert={cert} --tlskey={key}"),
            "",
        )
    }

    /// Starts one with further words for its command line; in this machine's own network when it listens at a port.
    fn start_with(srv: &Path, words: &str, node: &str) -> Option<Engine> {
        if !super::have("dockerd") || !super::have("unshare") {
            return None;
        }
        let dir = tempfile::Builder::new().prefix("rb-docker-").tempdir_in("/tmp").expect("a temporary folder");
        let cgroup = dir.path().file_name().expect("a name").to_string_lossy().into_owned();
        let log = std::fs::File::create(dir.path().join("log")).expect("a log");
        let child = Command::new("unshare")
            .args(["--fork", "--pid", "--mount", "--ipc", "--uts", "--mount-proc", "--kill-child"])
            .env("NODE", node)
            .args((!words.contains("tcp://")).then_some("--net"))
            .args(["sh", "-c", CAPSULE, "sh"])
            .arg(dir.path())
            .args([&cgroup, words])
            .arg(srv)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log"))
            .stderr(log)
            .spawn()
            .expect("unshare starts");
        let mut e = Engine { dir, child, cgroup };
        let began = Instant::now();
        while !e.try_docker(&["version"]).0 {
            let gone = e.child.try_wait().expect("its state").is_some();
            assert!(!gone && began.elapsed() < Duration::from_secs(60), "the engine does not start: {}", e.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(e)
    }

    /// A command in its namespaces, whose program is the first argument.
    pub fn inside(&self) -> Command {
        let mut c = Command::new("nsenter");
        c.args(["-t", &self.first(), "-n", "--"]).stdin(Stdio::null());
        c
    }

    /// The id of the first process in its namespaces.
    pub fn first(&self) -> String {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        std::fs::read_to_string(children).expect("its first process").trim().to_string()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    /// The stock client, as anybody would use it: whether it succeeded, and what it printed; its warnings only when it failed.
    pub fn try_docker(&self, words: &[&str]) -> (bool, String) {
        let out = Command::new("docker")
            .args(["-H", &format!("unix://{}", self.socket().display())])
            .args(words)
            .stdin(Stdio::null())
            .output()
            .expect("docker starts");
        let said = String::from_utf8_lossy(&out.stdout);
        match out.status.success() {
            true => (true, said.into_owned()),
            false => (false, format!("{said}{}", String::from_utf8_lossy(&out.stderr))),
        }
    }

    /// As [`Engine::try_docker`], which must succeed.
    #[track_caller]
    pub fn docker(&self, words: &[&str]) -> String {
        let (ok, text) = self.try_docker(words);
        assert!(ok, "docker {words:?}: {text}{}", self.log());
        text.trim().to_string()
    }

    /// Makes the image `base:1`, which has busybox, and nothing else but what that needs.
    pub fn base(&self) {
        let root = self.dir.path().join("base");
        let script = r#"set -e; mkdir -p "$1/bin" "$1/tmp"; b=$(command -v busybox); cp "$b" "$1/bin/busybox"
            for l in $(ldd "$b" 2>/dev/null | grep -o '/[^ ]*'); do mkdir -p "$1${l%/*}"; cp -L "$l" "$1$l"; done
            for a in sh sleep cat ls echo httpd wget nc env id true false date head touch; do ln -s busybox "$1/bin/$a"; done
            tar -C "$1" -c . >"$1.tar""#;
        let made = Command::new("sh").args(["-c", script, "sh"]).arg(&root).status().expect("sh");
        assert!(made.success());
        let tar = root.with_extension("tar").display().to_string();
        self.docker(&["import", "-c", "ENV PATH=/bin", "-c", r#"CMD ["sleep","1000000"]"#, &tar, "base:1"]);
    }

    /// Builds an image from a Dockerfile and files beside it.
    pub fn build(&self, name: &str, dockerfile: &str, files: &[(&str, Vec<u8>)]) {
        let at = tempfile::tempdir().expect("a folder");
        std::fs::write(at.path().join("Dockerfile"), dockerfile).expect("a Dockerfile");
        for (file, data) in files {
            std::fs::write(at.path().join(file), data).expect("a file");
        }
        self.docker(&["build", "-q", "--network=none", "-t", name, &at.path().display().to_string()]);
    }

    /// Where the files of a volume lie.
    pub fn volume(&self, name: &str) -> PathBuf {
        Path::new(&self.docker(&["volume", "inspect", "-f", "{{.Mountpoint}}", name])).to_path_buf()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The kernel ends everything in the namespaces; their groups are empty then.
        for _ in 0..50 {
            let left = Command::new("sh")
                .args(["-c", "find /sys/fs/cgroup -depth -type d -path \"*/$1*\" -exec rmdir {} + 2>/dev/null; find /sys/fs/cgroup -type d -path \"*/$1*\" | grep -q ."])
                .args(["sh", &self.cgroup])
                .status();
            if left.is_ok_and(|s| !s.success()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
