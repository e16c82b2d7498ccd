//! Secrets by reference: environment variables, files, commands. Never flags.

use std::collections::BTreeMap;
use std::path::PathBuf;

use parking_lot::Mutex;
use runbook_core::inventory::SecretRef;
use runbook_core::primitive::SecretSource;
use runbook_core::secret::Secret;
use runbook_core::{Code, Error, Result};

/// Reads secrets when they are first asked for, each once.
pub struct Secrets {
    refs: BTreeMap<String, SecretRef>,
    root: PathBuf,
    known: Mutex<BTreeMap<String, Secret>>,
    asker: Option<Asker>,
    // One question at a time.
    asking: Mutex<()>,
}

/// Asks the operator; the flag says whether what is typed may show.
pub type Asker = Box<dyn Fn(&str, bool) -> Option<String> + Send + Sync>;

impl Secrets {
    /// Makes a source for an environment's secrets; files are relative to `root`.
    pub fn new(refs: BTreeMap<String, SecretRef>, root: PathBuf) -> Self {
        Secrets { refs, root, known: Mutex::default(), asker: None, asking: Mutex::default() }
    }

    /// Has what no secret holds asked of the operator.
    #[must_use]
    pub fn asking(self, asker: Asker) -> Self {
        Secrets { asker: Some(asker), ..self }
    }

    fn read(&self, name: &str) -> Result<String> {
        let cannot = |why: String| Error::new(Code::MISSING_SECRET, format!("secret \"{name}\" cannot be had: {why}"));
        let source = self.refs.get(name).ok_or_else(|| {
            let hint = match runbook_core::suggest::closest(name, self.refs.keys().map(String::as_str)) {
                Some(c) => format!("did you mean \"{c}\"?"),
                None => format!("add {name} = {{ env = \"…\" }} to [secrets] of runbook.toml (or file, or command)"),
            };
            cannot("runbook.toml does not declare it".into()).hint(hint)
        })?;
        let value = match source {
            SecretRef::Env(var) => std::env::var(var).map_err(|_| {
                cannot(format!("the environment variable {var} is not set"))
                    .hint("set it before the run, or say in [secrets] of runbook.toml where else it is")
            })?,
            SecretRef::File(path) => {
                let file = self.root.join(path);
                std::fs::read_to_string(&file)
                    .map_err(|e| cannot(format!("{}: {e}", file.display())).hint("see `file` in [secrets] of runbook.toml"))?
            }
            SecretRef::Command(words) => {
                let Some((program, arguments)) = words.split_first() else { return Err(cannot("its command is empty".into())) };
                let done = std::process::Command::new(program)
                    .args(arguments)
                    .current_dir(&self.root)
                    .stdin(std::process::Stdio::null())
                    .output()
                    .map_err(|e| cannot(format!("{program}: {e}")).hint("try the command by hand"))?;
                if !done.status.success() {
                    // Its output is not shown: a part of the secret may be in it.
                    return Err(cannot(format!("{program} ended with {}", done.status)).hint("try the command by hand"));
                }
                String::from_utf8(done.stdout).map_err(|_| cannot(format!("what {program} printed is not text")))?
            }
        };
        let value = value.strip_suffix('\n').map_or(value.as_str(), |v| v.strip_suffix('\r').unwrap_or(v)).to_string();
        if value.is_empty() {
            return Err(cannot("it is empty".into()).hint("see its entry in [secrets] of runbook.toml"));
        }
        Ok(value)
    }
}

impl SecretSource for Secrets {
    fn get(&self, name: &str) -> Result<Secret> {
        // Held while reading: two branches that want the same secret run its command once.
        let mut known = self.known.lock();
        if let Some(s) = known.get(name) {
            return Ok(s.clone());
        }
        let secret = Secret::new(name, self.read(name)?);
        known.insert(name.to_string(), secret.clone());
        Ok(secret)
    }

    fn ask(&self, question: &str, echo: bool) -> Option<Secret> {
        let _one = self.asking.lock();
        self.asker.as_ref().and_then(|a| a(question, echo)).map(|t| Secret::new("typed", t))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn come_from_files_and_commands_and_say_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("key"), "s3cret\n").unwrap();
        std::fs::write(dir.path().join("empty"), "\n").unwrap();
        let words = |w: &[&str]| SecretRef::Command(w.iter().map(ToString::to_string).collect());
        let refs = BTreeMap::from([
            ("file".to_string(), SecretRef::File("key".into())),
            ("empty".to_string(), SecretRef::File("empty".into())),
            ("gone".to_string(), SecretRef::File("gone".into())),
            ("env".to_string(), SecretRef::Env("RUNBOOK_TEST_NOT_SET".into())),
            ("command".to_string(), words(&["printf", "two words\\n"])),
            ("fails".to_string(), words(&["sh", "-c", "echo half a secret; exit 3"])),
        ]);
        let s = Secrets::new(refs, dir.path().to_path_buf());
        assert_eq!(s.get("file").unwrap().reveal(), "s3cret");
        assert_eq!(s.get("command").unwrap().reveal(), "two words");
        let why = |n: &str| s.get(n).unwrap_err();
        assert!(["empty", "gone", "env", "fails", "flie"].iter().all(|n| why(n).code == Code::MISSING_SECRET));
        assert!(why("env").message.contains("RUNBOOK_TEST_NOT_SET is not set"));
        assert!(!why("fails").message.contains("half"), "its output is not shown");
        assert_eq!(why("flie").hint.as_deref(), Some("did you mean \"file\"?"));
    }
}
