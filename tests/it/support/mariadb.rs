//! Real MariaDB servers, each a child of the test in a folder of its own; and clients that speak to them without the code under test.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A running server; killed on drop.
pub struct Mariadb {
    /// Its folder: `data`, `sock`, `conf.d`, `log`.
    pub dir: tempfile::TempDir,
    /// Its port on 127.0.0.1.
    pub port: u16,
    id: u32,
    extra: String,
    program: Program,
    child: Option<Child>,
}

/// Which server it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Mariadb,
    /// MySQL 5.6, as the package registry of npm has it: the server alone, with the library that it needs.
    Mysql,
}

impl Program {
    fn command(self) -> Command {
        match self {
            Program::Mariadb => Command::new("mariadbd"),
            Program::Mysql => {
                let folder = mysql();
                let mut c = Command::new(folder.join("mysqld"));
                c.env("LD_LIBRARY_PATH", &folder);
                c
            }
        }
    }
}

/// Where tests/run has put MySQL.
fn mysql() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/mysql/package/server")
}

/// Empty data folders are all alike: made once under the build folder, copied for each server.
fn template(program: Program) -> PathBuf {
    if program == Program::Mysql {
        return mysql_template();
    }
    let version = Command::new("mariadbd").arg("--version").output().expect("mariadbd").stdout;
    let version: String = String::from_utf8_lossy(&version).chars().filter(|c| c.is_ascii_alphanumeric() || *c == '.').collect();
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("mariadb-{version}"));
    if !dir.exists() {
        let fresh = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
        let data = fresh.path().join("data");
        let out = Command::new("mariadb-install-db")
            .args([
                "--no-defaults",
                "--user=root",
                "--auth-root-authentication-method=socket",
                "--auth-root-socket-user=root",
                "--skip-test-db",
            ])
            .arg(format!("--datadir={}", data.display()))
            // Servers that start elsewhere clear the usual one.
            .arg(format!("--tmpdir={}", fresh.path().display()))
            .output()
            .expect("mariadb-install-db");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        // Another test may have been faster.
        let _ = std::fs::rename(&data, &dir);
    }
    dir
}

/// As `mysql_install_db` does, which the package does not have.
fn mysql_template() -> PathBuf {
    use std::io::Write as _;
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("mysql-5.6");
    if !dir.exists() {
        let fresh = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
        let data = fresh.path().join("data");
        std::fs::create_dir_all(data.join("mysql")).expect("a folder");
        let share = mysql().join("share");
        let read = |f: &str| std::fs::read_to_string(share.join(f)).expect(f);
        let script = format!("USE mysql;\n{}{}", read("mysql_system_tables.sql"), read("mysql_system_tables_data.sql"));
        let mut made = Program::Mysql
            .command()
            .args(["--no-defaults", "--bootstrap", "--user=root"])
            .args([
                format!("--datadir={}", data.display()),
                format!("--lc-messages-dir={}", share.display()),
                format!("--tmpdir={}", fresh.path().display()),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mysqld");
        made.stdin.take().expect("its input").write_all(script.as_bytes()).expect("its input");
        assert!(made.wait().expect("its end").success(), "mysqld --bootstrap");
        let _ = std::fs::rename(&data, &dir);
    }
    dir
}

impl Mariadb {
    /// Starts a MySQL server with a server id and further lines of configuration; `None` when it is not there.
    pub fn mysql(id: u32, extra: &str) -> Option<Mariadb> {
        if !cfg!(target_arch = "x86_64") {
            eprintln!("skipped: there is no MySQL server for this kind of processor");
            return None;
        }
        if !mysql().join("mysqld").exists() || !super::have("mariadb") {
            super::missing("MySQL");
            return None;
        }
        let share = mysql().join("share");
        let own = format!(
            "lc-messages-dir={}\nbasedir={}\nlog-slave-updates=1\nexplicit-defaults-for-timestamp=1\n{extra}",
            share.display(),
            mysql().display()
        );
        let m = Mariadb::of(Program::Mysql, id, &own);
        // An account without a name would take the place of those that log in from here.
        m.sql("DELETE FROM mysql.user WHERE user = ''; FLUSH PRIVILEGES");
        Some(m)
    }

    /// Starts one with a server id and further lines of configuration; `None` when it is not installed.
    pub fn start(id: u32, extra: &str) -> Option<Mariadb> {
        if !super::have("mariadbd") || !super::have("mariadb-install-db") || !super::have("mariadb") || !super::have("mariadb-dump") {
            return None;
        }
        Some(Mariadb::of(Program::Mariadb, id, extra))
    }

    fn of(program: Program, id: u32, extra: &str) -> Mariadb {
        // Sockets have short paths.
        let dir = tempfile::Builder::new().prefix("rbm").tempdir_in("/tmp").expect("a temporary folder");
        // A server that starts clears its folder of temporary tables, which must not be that of another one.
        for folder in ["conf.d", "tmp"] {
            std::fs::create_dir(dir.path().join(folder)).expect("a folder");
        }
        let copied = Command::new("cp").arg("-a").arg(template(program)).arg(dir.path().join("data")).status().expect("cp");
        assert!(copied.success());
        let port = super::free_port();
        let mut m = Mariadb { dir, port, id, extra: extra.into(), program, child: None };
        m.up();
        m
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("my.cnf")
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    /// Starts the server process (again).
    pub fn up(&mut self) {
        let d = self.dir.path().display();
        let text = format!(
            "[mysqld]\nuser=root\ndatadir={d}/data\ntmpdir={d}/tmp\nsocket={d}/sock\npid-file={d}/pid\nport={}\nbind-address=127.0.0.1\nserver-id={}\n\
             log-bin=bin\nlog-error={d}/log.err\ninnodb-buffer-pool-size=64M\ninnodb-log-file-size=32M\ninnodb-flush-log-at-trx-commit=2\n\
             skip-name-resolve=0\n{}\n!includedir {d}/conf.d\n",
            self.port, self.id, self.extra
        );
        std::fs::write(self.config(), text).expect("its configuration");
        let child = self
            .program
            .command()
            .arg(format!("--defaults-file={}", self.config().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        self.child = Some(child);
        let began = Instant::now();
        while !self.client().arg("-e").arg("SELECT 1").output().is_ok_and(|o| o.status.success()) {
            assert!(began.elapsed() < Duration::from_secs(60), "the server does not answer: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills the server process, and does not wait for its end.
    pub fn kill(&self) {
        if let Some(c) = &self.child {
            let _ = Command::new("kill").args(["-KILL", &c.id().to_string()]).status();
        }
    }

    /// Kills the server process, and sees its end.
    pub fn down(&mut self) {
        if let Some(mut c) = self.child.take() {
            let _ = c.kill();
            let _ = c.wait();
        }
    }

    /// Ends the server process in order.
    pub fn shutdown(&mut self) {
        let _ = self.client().arg("-e").arg("SHUTDOWN").output();
        if let Some(mut c) = self.child.take() {
            let _ = c.wait();
        }
    }

    /// The server's log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log.err")).unwrap_or_default()
    }

    /// The client program as the super-user.
    pub fn client(&self) -> Command {
        let mut c = Command::new("mariadb");
        c.args(["--no-defaults", "-N", "-B", "--default-character-set=utf8mb4", "-uroot", "-S"]).arg(self.socket());
        c
    }

    /// Runs statements as the super-user; what they print.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        let out = self.client().args(["-e", sql]).output().expect("the client");
        assert!(out.status.success(), "{sql}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim_end().to_string()
    }

    /// Runs a script as the super-user, as the client reads it.
    #[track_caller]
    pub fn feed(&self, sql: &str) {
        use std::io::Write as _;
        let mut c = self.client().stdin(Stdio::piped()).spawn().unwrap();
        c.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
        assert!(c.wait().unwrap().success());
    }

    /// Runs statements as an account with a password; what they print, or the complaint.
    pub fn sql_as(&self, user: &str, password: &str, sql: &str) -> Result<String, String> {
        let mut c = Command::new("mariadb");
        c.args(["--no-defaults", "-N", "-B", "-u", user, "-S"]).arg(self.socket()).env("MYSQL_PWD", password).args(["-e", sql]);
        let out = c.output().expect("the client");
        if out.status.success() {
            Ok(String::from_utf8_lossy(&out.stdout).trim_end().to_string())
        } else {
            Err(String::from_utf8_lossy(&out.stderr).into_owned())
        }
    }
}

impl Drop for Mariadb {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            eprintln!("the server {} said last:\n{}", self.id, tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        self.down();
    }
}

/// A shop that writes an order every few milliseconds to whichever side takes it, and remembers what was acknowledged.
pub struct Writer {
    stop: Arc<AtomicBool>,
    /// Whether it may turn to the new side.
    pub new_side: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<String>>>,
    unsure: Arc<Mutex<Vec<String>>>,
    /// The longest time between two acknowledged orders, in milliseconds.
    pub gap: Arc<AtomicUsize>,
    work: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    /// Begins to write into `shop.orders` as `shop` with the password `shop-secret`.
    pub fn open(old: PathBuf, new: PathBuf) -> Writer {
        let (stop, new_side) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (acknowledged, unsure) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let gap = Arc::new(AtomicUsize::new(0));
        let work = {
            let (stop, new_side, gap) = (stop.clone(), new_side.clone(), gap.clone());
            let (acknowledged, unsure) = (acknowledged.clone(), unsure.clone());
            std::thread::spawn(move || {
                let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                rt.block_on(write([old, new], stop, new_side, acknowledged, unsure, gap));
            })
        };
        Writer { stop, new_side, acknowledged, unsure, gap, work: Some(work) }
    }

    /// Waits until some more orders are taken.
    pub async fn some(&self) {
        let before = self.acknowledged.lock().len();
        for _ in 0..4000 {
            if self.acknowledged.lock().len() >= before + 5 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("no order is taken");
    }

    /// Ends it, and compares: every acknowledged order is among `rows` just once, and nothing else but what was cut in mid-order.
    #[track_caller]
    pub fn settle(&mut self, rows: &str) -> usize {
        self.close();
        let mut found = std::collections::BTreeMap::<&str, usize>::new();
        for row in rows.lines() {
            *found.entry(row).or_default() += 1;
        }
        let (acknowledged, unsure) = (self.acknowledged.lock(), self.unsure.lock());
        let lost: Vec<_> = acknowledged.iter().filter(|o| !found.contains_key(o.as_str())).collect();
        let doubled: Vec<_> = found.iter().filter(|(_, n)| **n > 1).collect();
        let foreign: Vec<_> = found.keys().filter(|r| !acknowledged.iter().chain(unsure.iter()).any(|o| o == **r)).collect();
        assert!(
            lost.is_empty() && doubled.is_empty() && foreign.is_empty(),
            "lost {lost:?}, doubled {doubled:?}, foreign {foreign:?}, unsure {unsure:?}"
        );
        acknowledged.len()
    }

    /// Ends it; the orders that were acknowledged, in order.
    pub fn close(&mut self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(w) = self.work.take() {
            w.join().expect("the writer");
        }
        self.acknowledged.lock().clone()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
    }
}

async fn connect(socket: &std::path::Path) -> Option<mysql_async::Conn> {
    let opts = mysql_async::OptsBuilder::default()
        .user(Some("shop"))
        .pass(Some("shop-secret"))
        .db_name(Some("shop"))
        .socket(Some(socket.display().to_string()))
        .prefer_socket(Some(false));
    tokio::time::timeout(Duration::from_secs(5), mysql_async::Conn::new(opts)).await.ok()?.ok()
}

async fn write(
    sides: [PathBuf; 2],
    stop: Arc<AtomicBool>,
    new_side: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<String>>>,
    unsure: Arc<Mutex<Vec<String>>>,
    gap: Arc<AtomicUsize>,
) {
    use mysql_async::prelude::Queryable as _;
    let mut conns: [Option<mysql_async::Conn>; 2] = [None, None];
    let mut last = Instant::now();
    let mut first = true;
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let item = format!("order {n}");
        for (side, path) in sides.iter().enumerate() {
            if side == 1 && !new_side.load(Ordering::Relaxed) {
                continue;
            }
            if conns[side].is_none() {
                conns[side] = connect(path).await;
            }
            let Some(c) = conns[side].as_mut() else { continue };
            match c.exec_drop("INSERT INTO orders (item) VALUES (?)", (item.as_str(),)).await {
                Ok(()) => {
                    acknowledged.lock().push(item.clone());
                    if !std::mem::take(&mut first) {
                        gap.fetch_max(usize::try_from(last.elapsed().as_millis()).unwrap_or(usize::MAX), Ordering::Relaxed);
                    }
                    last = Instant::now();
                    break;
                }
                Err(e) => {
                    // What the server answers is clear; of what was cut in mid-order the fate is not known, and it is not tried again.
                    if !matches!(e, mysql_async::Error::Server(_)) {
                        conns[side] = None;
                        unsure.lock().push(item.clone());
                        break;
                    }
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}
