//! The demo's project in a folder of its own, driven through the binary, and the world that it changes as a value to compare.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value as Json;

/// Where the reference cutover lies in a project.
pub const RUNBOOK: &str = "runbooks/cutover/runbook.rhai";

/// What a command left.
#[derive(Debug)]
pub struct Ran {
    /// The exit status; `None` when it was killed.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A project; its lab is ended and its folder removed when dropped.
pub struct Project {
    folder: tempfile::TempDir,
}

/// The world outside of the controller, as far as a rollback must bring it back.
#[derive(Debug, Clone, PartialEq)]
pub struct World {
    /// Where the public name leads.
    pub address: String,
    /// Its TTL.
    pub ttl: u32,
    /// The units of every host.
    pub units: BTreeMap<String, BTreeMap<String, String>>,
    /// The shop's files by host and path, with a checksum of their content. Databases are compared by their orders, not by bytes.
    pub files: BTreeMap<String, u64>,
    /// Whether each edge shows the maintenance page, and where it forwards.
    pub edges: BTreeMap<String, String>,
}

impl Project {
    /// Writes the demo's project with a TTL of two seconds, so that no test waits long.
    pub fn new() -> Project {
        let folder = tempfile::tempdir().unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("runbooks/cutover");
        let to = folder.path().join("runbooks/cutover");
        std::fs::create_dir_all(to.join("templates")).unwrap();
        for name in ["runbook.rhai", "templates/shop.conf.tera"] {
            std::fs::copy(from.join(name), to.join(name)).unwrap();
        }
        let inventory = std::fs::read_to_string(from.join("runbook.toml")).unwrap();
        assert!(inventory.contains("ttl = \"12s\""));
        std::fs::write(folder.path().join("runbook.toml"), inventory.replace("ttl = \"12s\"", "ttl = \"2s\"")).unwrap();
        Project { folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Changes the cutover's text; the text must occur.
    pub fn edit(&self, from: &str, to: &str) {
        let file = self.path().join(RUNBOOK);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{from:?} is not in the runbook");
        std::fs::write(file, text.replacen(from, to, 1)).unwrap();
    }

    /// The command, not yet run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_runbook"));
        c.args(args).current_dir(self.path()).stdin(Stdio::null()).env_remove("RUNBOOK_CRASH");
        c
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Ran {
        self.run_dying(args, None)
    }

    /// Runs a command that kills itself at a point (`entry:3`, `acted:1`).
    pub fn run_dying(&self, args: &[&str], crash: Option<&str>) -> Ran {
        let mut c = self.command(args);
        if let Some(crash) = crash {
            c.env("RUNBOOK_CRASH", crash);
        }
        let out = c.output().unwrap();
        Ran {
            code: out.status.code(),
            stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
        }
    }

    /// Runs a command that must end with this status; its JSON, when it printed some.
    #[track_caller]
    pub fn expect(&self, args: &[&str], code: i32) -> Json {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(code), "{args:?}\n{}\n{}", ran.stdout, ran.stderr);
        serde_json::from_str(&ran.stdout).unwrap_or(Json::Null)
    }

    /// The newest run's id.
    pub fn newest(&self) -> String {
        let runs = self.expect(&["runs", "--json"], 0);
        let list = runs.as_array().or_else(|| runs["runs"].as_array()).unwrap_or_else(|| panic!("{runs}"));
        list.first().and_then(|r| r["id"].as_str()).unwrap_or_else(|| panic!("{runs}")).to_string()
    }

    /// The lab's status once every order is known to be taken or not and the shop takes orders.
    pub fn settled(&self) -> Json {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let s = self.expect(&["lab", "status", "--json"], 0);
            if (s["orders_unsure"] == 0 && s["refusing"] == false && !s["orders_lost"].is_null()) || Instant::now() > until {
                return s;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A host's folder.
    pub fn host(&self, name: &str) -> PathBuf {
        self.path().join(".runbook/lab/demo/hosts").join(name)
    }

    /// The world as it is now.
    pub fn world(&self) -> World {
        let status = self.settled();
        let mut units = BTreeMap::new();
        let mut files = BTreeMap::new();
        let mut edges = BTreeMap::new();
        for name in ["old", "new", "vault"] {
            let u = status["hosts"][name]["units"].as_object().cloned().unwrap_or_default();
            units.insert(name.to_string(), u.into_iter().map(|(k, v)| (k, v.as_str().unwrap_or("").to_string())).collect());
            let shop = self.host(name).join("shop");
            walk(&shop, &mut |path, content| {
                let rel = path.strip_prefix(&shop).unwrap().to_string_lossy().into_owned();
                // Databases are compared by their orders; `backup` is the copy that the cutover takes of one in use.
                if !rel.contains(".db") && rel != "backup" {
                    files.insert(format!("{name}:{rel}"), content);
                }
            });
            let edge = self.host(name).join("edge");
            if edge.exists() {
                let upstream = std::fs::read_to_string(edge.join("upstream")).unwrap_or_default();
                edges.insert(name.to_string(), format!("{} {}", edge.join("maintenance").exists(), upstream.trim()));
            }
        }
        let address = status["shop_address"].as_str().unwrap_or("").to_string();
        World { address, ttl: self.ttl(), units, files, edges }
    }

    /// The TTL of the shop's name, asked of the lab's name server.
    fn ttl(&self) -> u32 {
        let out = self.command(&["lab", "status", "--json"]).output().unwrap();
        let status: Json = serde_json::from_slice(&out.stdout).unwrap();
        let old = status["hosts"]["old"]["address"].as_str().unwrap();
        let server = format!("{}.2", old.rsplit_once('.').unwrap().0);
        let out =
            Command::new("dig").args([&format!("@{server}"), "-p", "5353", "+noall", "+answer", "shop.example.test"]).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        text.split_whitespace().nth(1).and_then(|t| t.parse().ok()).unwrap_or_else(|| panic!("dig: {text}"))
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        let _ = self.command(&["lab", "down"]).output();
    }
}

fn walk(dir: &Path, f: &mut impl FnMut(&Path, u64)) {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for e in entries.flatten() {
        let path = e.path();
        let Ok(meta) = path.symlink_metadata() else { continue };
        let mut h = DefaultHasher::new();
        if meta.is_dir() {
            walk(&path, f);
            continue;
        } else if meta.is_symlink() {
            std::fs::read_link(&path).ok().hash(&mut h);
        } else {
            std::fs::read(&path).unwrap_or_default().hash(&mut h);
        }
        f(&path, h.finish());
    }
}
