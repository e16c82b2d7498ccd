//! What tests of primitives need around them: a [`Cx`] that records, with secrets, files and facts held in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use runbook_core::cancel::Cancel;
use runbook_core::clock::System;
use runbook_core::inventory::Environment;
use runbook_core::primitive::{ActionId, Cx, Facts, Files, Progress, SecretSource, Sink, StreamKind};
use runbook_core::secret::{Redactor, Secret};
use runbook_core::{Code, Error, Result, Value};

/// Secrets, files, facts and everything that was output, in memory.
#[derive(Default)]
pub struct World {
    /// Secrets by name.
    pub secrets: Mutex<BTreeMap<String, String>>,
    /// The project's files by path.
    pub files: Mutex<BTreeMap<String, Vec<u8>>>,
    /// The project's folder, for what primitives write there.
    pub folder: Mutex<Option<std::path::PathBuf>>,
    /// Facts of the environment.
    pub facts: Mutex<BTreeMap<String, Value>>,
    /// Live output so far.
    pub output: Mutex<Vec<u8>>,
    /// Messages so far.
    pub messages: Mutex<Vec<String>>,
    /// What the operator types at the next questions; with none left, nobody answers.
    pub typed: Mutex<std::collections::VecDeque<String>>,
    /// The questions so far.
    pub asked: Mutex<Vec<String>>,
}

impl SecretSource for World {
    fn get(&self, name: &str) -> Result<Secret> {
        let value = self.secrets.lock().get(name).cloned();
        value.map(|v| Secret::new(name, v)).ok_or_else(|| Error::new(Code::MISSING_SECRET, format!("no secret \"{name}\"")))
    }

    fn ask(&self, question: &str, _echo: bool) -> Option<Secret> {
        self.asked.lock().push(question.to_string());
        self.typed.lock().pop_front().map(|t| Secret::new("typed", t))
    }
}

impl Files for World {
    fn read(&self, path: &str) -> Result<Vec<u8>> {
        self.files.lock().get(path).cloned().ok_or_else(|| Error::new(Code::MISSING_FILE, format!("no file {path}")))
    }

    fn local(&self, path: &str) -> Result<std::path::PathBuf> {
        let folder = self.folder.lock().clone();
        folder.map(|f| f.join(path)).ok_or_else(|| Error::new(Code::OUTSIDE_PROJECT, format!("no folder for {path}")))
    }

    fn folder(&self) -> Option<std::path::PathBuf> {
        self.folder.lock().clone()
    }
}

impl Facts for World {
    fn get(&self, key: &str) -> Result<Option<Value>> {
        Ok(self.facts.lock().get(key).cloned())
    }
    fn put(&self, facts: BTreeMap<String, Value>) -> Result<()> {
        let mut all = self.facts.lock();
        all.extend(facts);
        all.retain(|_, v| *v != Value::Unit);
        Ok(())
    }
}

impl Sink for World {
    fn output(&self, _path: &str, _stream: StreamKind, bytes: &[u8]) {
        self.output.lock().extend_from_slice(bytes);
    }
    fn progress(&self, _path: &str, _progress: &Progress) {}
    fn message(&self, _path: &str, text: &str) {
        self.messages.lock().push(text.to_string());
    }
}

/// Makes a [`Cx`] for one action over `world`; give every action of a test an id of its own.
pub fn cx(world: &Arc<World>, env: Environment, action_id: &str) -> Cx {
    Cx {
        action_id: ActionId(action_id.into()),
        path: "test/0".into(),
        run: "test-run".into(),
        env: Arc::new(env),
        cancel: Cancel::default(),
        reached: Arc::default(),
        redactor: Redactor::default(),
        clock: Arc::new(System),
        shared: Arc::default(),
        secrets: world.clone(),
        files: world.clone(),
        facts: world.clone(),
        sink: world.clone(),
    }
}

/// Has `shellcheck` look at scripts for a POSIX shell, but for the warnings named in `leave`. It is skipped with a printed reason where
/// shellcheck is not installed.
///
/// # Panics
/// With what is wrong; and without shellcheck when `CI` is set.
#[allow(clippy::panic, clippy::unwrap_used, clippy::expect_used)]
pub fn shellcheck(scripts: &[&str], leave: &str) {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    if Command::new("shellcheck").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "shellcheck is missing, and CI is set");
        return eprintln!("skipped: shellcheck is not installed");
    }
    for script in scripts {
        let mut c = Command::new("shellcheck")
            .args(["-s", "sh", "-e", leave, "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("shellcheck starts");
        c.stdin.take().expect("its input").write_all(script.as_bytes()).expect("its input");
        let out = c.wait_with_output().expect("its answer");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    }
}
