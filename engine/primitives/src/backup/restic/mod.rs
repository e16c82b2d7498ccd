//! restic repositories: the `restic` of the hosts does the work, and reads and writes what any other restic does.
//!
//! `take.rs` makes snapshots under the supervisor, `restore.rs` restores and tests. A snapshot carries the tag `runbook:ACTION`; in
//! restic it is there once it is whole. Password and keys go through the environment of the remote process, which its owner alone sees.
//! Formats of `--json`: <https://restic.readthedocs.io/en/stable/075_scripting.html>; tried with restic 0.14.

mod restore;
mod take;

use async_trait::async_trait;
use runbook_core::inventory::Resource;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use serde::Deserialize;

use super::on_host::said;
use super::repository::{Made, Plan, Repository, Restored, Snapshot};
use crate::ssh::{Done, Exec, connect, quote};

/// What marks the snapshot of an action.
const TAG: &str = "runbook:";

/// A repository of restic.
pub struct Restic {
    name: String,
    host: String,
    repository: String,
    settings: Resource,
}

/// Whether restic says that there is no repository.
fn absent(said: &str) -> bool {
    said.contains("Is there a repository at the following location") || said.contains("repository does not exist")
}

/// A snapshot as `restic snapshots --json` prints it.
#[derive(Debug, Deserialize)]
struct Listed {
    id: String,
    time: jiff::Timestamp,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    paths: Vec<String>,
    #[serde(default)]
    tags: Vec<String>,
    /// Since restic 0.17.
    summary: Option<Summary>,
}

#[derive(Debug, Deserialize)]
struct Summary {
    total_files_processed: u64,
    total_bytes_processed: u64,
}

impl Restic {
    /// Reads the settings `host`, `repository` and `password`.
    ///
    /// # Errors
    /// `RB0114` when one is missing.
    pub fn new(r: &Resource) -> Result<Self> {
        r.need("password")?;
        Ok(Restic { name: r.name.clone(), host: r.need("host")?.into(), repository: r.need("repository")?.into(), settings: r.clone() })
    }

    /// Whether the repository is a folder of the host on which restic runs.
    fn local(&self) -> bool {
        // `sftp:…`, `s3:…`, `rest:…`: a scheme before the first colon.
        match self.repository.split_once(':') {
            Some((scheme, _)) => scheme == "local" || scheme.contains('/'),
            None => true,
        }
    }

    /// A script that finds restic and what it needs to open the repository.
    fn exec(&self, cx: &Cx, script: &str, sudo: bool) -> Result<Exec> {
        let r = &self.settings;
        let secret = |name: Option<&str>| name.map(|n| Ok(cx.secret(n)?.reveal().to_string())).transpose();
        let variables: [(&str, Option<String>); 6] = [
            ("LC_ALL", Some("C".into())),
            ("RESTIC_REPOSITORY", Some(self.repository.clone())),
            ("RESTIC_PASSWORD", secret(r.str("password"))?),
            ("AWS_ACCESS_KEY_ID", r.str("access_key").map(str::to_string)),
            ("AWS_SECRET_ACCESS_KEY", secret(r.str("secret_key"))?),
            ("AWS_DEFAULT_REGION", r.str("region").map(str::to_string)),
        ];
        let env = variables.into_iter().filter_map(|(k, v)| Some((k.to_string(), v?))).collect();
        let mut script = format!("command -v restic >/dev/null 2>&1 || exit 127\n{script}");
        if let Some(c) = r.str("sftp_command") {
            // There is no variable for it: a function of the script's own puts it before everything else. So no script says `exec restic`.
            script = format!("restic() {{ command restic -o sftp.command={} \"$@\"; }}\n{script}", quote(c));
        }
        Ok(Exec { env, sudo: sudo || r.flag("sudo"), ..Exec::new(script) })
    }

    /// Runs a script on a host. A status other than 0 is no error.
    async fn run(&self, cx: &Cx, host: &str, script: &str) -> Result<Done> {
        connect(cx, host).await?.exec_again(cx, self.exec(cx, script, false)?).await
    }

    /// As [`Restic::run`]; a status other than 0 is this error.
    async fn must(&self, cx: &Cx, host: &str, script: &str, code: Code, what: &str) -> Result<Done> {
        let done = self.run(cx, host, script).await?;
        if done.status == 0 { Ok(done) } else { Err(self.fault(host, code, what, &done)) }
    }

    /// What restic said, as an error: with a code of its own when the repository cannot be opened.
    fn fault(&self, host: &str, code: Code, what: &str, done: &Done) -> Error {
        let stderr = String::from_utf8_lossy(&done.stderr);
        let own: String = stderr.lines().filter(|l| !l.contains("returned error, retrying after")).fold(String::new(), |t, l| t + l + "\n");
        let why = said(&own);
        let opened = |why: &str, hint: &str| {
            Error::new(Code::BACKUP_REPOSITORY, format!("the repository \"{}\" ({}) {why}", self.name, self.repository))
                .host(host)
                .hint(hint.to_string())
        };
        if done.status == 127 {
            return Error::new(Code::HOST_TOOL_MISSING, "restic is not there").host(host).hint("install it (Debian: restic)");
        }
        if own.contains("wrong password") {
            return opened("is not opened by its password", "check the secret that `password` of the repository names");
        }
        if absent(&own) {
            let hint = format!("check `repository` in runbook.toml; to make a new one: backup(\"{}\").init()", self.name);
            return opened("is not there", &hint);
        }
        if own.contains("already locked") {
            return opened(
                &format!("is locked by another restic: {why}"),
                "try again when that has ended; `restic unlock` removes the lock of one that died",
            )
            .retryable(true);
        }
        Error::new(code, format!("{what}: {why}")).host(host).hint(match why.as_str() {
            w if w.contains("no space left") || w.contains("No space left") => "free space there; nothing half is left in the repository",
            w if w.contains("permission denied") || w.contains("Permission denied") => "give the login these rights, or say sudo: true",
            _ => "mend what is said there, then resume",
        })
    }

    fn found(&self, l: Listed) -> Snapshot {
        let action = l.tags.iter().find_map(|t| t.strip_prefix(TAG)).unwrap_or_default().to_string();
        let (files, bytes) = l.summary.as_ref().map_or((0, 0), |s| (s.total_files_processed, s.total_bytes_processed));
        Snapshot {
            archive: self.repository.clone(),
            action,
            time: l.time,
            host: l.hostname,
            paths: l.paths,
            files,
            links: 0,
            bytes,
            counted: l.summary.is_some(),
            tags: l.tags.into_iter().filter(|t| !t.starts_with(TAG)).collect(),
            id: l.id,
            archive_bytes: 0,
            archive_sha256: String::new(),
            manifest_sha256: String::new(),
        }
    }

    /// Snapshots as a host sees them; `which` are further words for `restic snapshots`.
    async fn snapshots(&self, cx: &Cx, host: &str, which: &str) -> Result<Vec<Snapshot>> {
        let what = format!("the snapshots of \"{}\" cannot be listed", self.name);
        let script = format!("restic snapshots --no-lock --json {which}");
        let done = self.must(cx, host, &script, Code::BACKUP_REPOSITORY, &what).await?;
        let listed: Option<Vec<Listed>> = serde_json::from_slice(&done.stdout).map_err(|e| {
            Error::new(Code::BACKUP_REPOSITORY, format!("what restic lists cannot be understood: {e}"))
                .host(host)
                .hint("see the version of restic there")
        })?;
        let mut all: Vec<Snapshot> = listed.unwrap_or_default().into_iter().map(|l| self.found(l)).collect();
        all.sort_by(|a, b| a.time.cmp(&b.time).then_with(|| a.id.cmp(&b.id)));
        Ok(all)
    }

    /// Counts the files of a snapshot, and their bytes, from the repository's own list of them.
    async fn count(&self, cx: &Cx, host: &str, s: &mut Snapshot) -> Result<()> {
        if s.counted {
            return Ok(());
        }
        let script = format!(
            r#"{{ restic ls --no-lock --json {} || echo failed; }} | awk '/^failed$/ {{ exit 9 }}
/"type":"file"/ {{ n++; if (match($0, /"size":[0-9]+/)) b += substr($0, RSTART + 7, RLENGTH - 7) }}
END {{ printf "%d %.0f\n", n, b }}'"#,
            quote(&s.id)
        );
        let done = self.run(cx, host, &script).await?;
        let text = String::from_utf8_lossy(&done.stdout);
        let mut numbers = text.split_whitespace().map(str::parse::<u64>);
        match (done.status, numbers.next(), numbers.next()) {
            (0, Some(Ok(files)), Some(Ok(bytes))) => (s.files, s.bytes, s.counted) = (files, bytes, true),
            _ => {
                return Err(self.fault(host, Code::BACKUP_DAMAGED, &format!("the files of the snapshot {} cannot be listed", s.id), &done));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Repository for Restic {
    async fn init(&self, cx: &Cx) -> Result<bool> {
        let there = self.run(cx, &self.host, "restic cat --no-lock config").await?;
        if there.status == 0 {
            return Ok(false);
        }
        if there.status == 127 || !absent(&String::from_utf8_lossy(&there.stderr)) {
            let what = format!("the repository \"{}\" cannot be looked at", self.name);
            return Err(self.fault(&self.host, Code::BACKUP_REPOSITORY, &what, &there));
        }
        let what = format!("the repository \"{}\" cannot be made", self.name);
        self.must(cx, &self.host, "restic init", Code::BACKUP_REPOSITORY, &what).await.map(|_| true)
    }

    async fn snapshot(&self, cx: &Cx, plan: &Plan) -> Result<(Snapshot, Vec<String>)> {
        self.take(cx, plan).await
    }

    async fn made(&self, cx: &Cx, plan: &Plan) -> Result<Made> {
        self.taken(cx, plan).await
    }

    async fn list(&self, cx: &Cx) -> Result<Vec<Snapshot>> {
        self.snapshots(cx, &self.host, "").await
    }

    async fn get(&self, cx: &Cx, id: &str) -> Result<Snapshot> {
        let missing = || {
            Error::new(Code::BACKUP_MISSING, format!("the repository \"{}\" has no snapshot {id:?}", self.name))
                .host(&self.host)
                .hint(format!("see what there is: backup(\"{}\").list()", self.name))
        };
        if id.len() < 8 || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(missing());
        }
        let mut found = self.snapshots(cx, &self.host, "").await?.into_iter().filter(|s| s.id.starts_with(id));
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one),
            _ => Err(missing()),
        }
    }

    async fn verify(&self, cx: &Cx, s: &Snapshot) -> Result<()> {
        // Every piece of every file is read and has the hash that it is named by; nothing comes from a cache.
        let script = format!("restic dump --no-lock --no-cache --archive tar {} / >/dev/null", quote(&s.id));
        self.must(cx, &self.host, &script, Code::BACKUP_DAMAGED, &format!("the snapshot {} is damaged", s.id)).await.map(drop)
    }

    async fn restore_test(&self, cx: &Cx, s: &Snapshot, on: Option<&str>, compare: bool) -> Result<Restored> {
        self.try_restore(cx, s, on.unwrap_or(&self.host), compare).await
    }

    async fn restore(&self, cx: &Cx, s: &Snapshot, host: &str, dest: &str, sudo: bool) -> Result<bool> {
        self.bring_back(cx, s, host, dest, sudo).await
    }

    async fn remove(&self, cx: &Cx, snapshots: &[Snapshot]) -> Result<()> {
        let ids: String = snapshots.iter().map(|s| format!(" {}", quote(&s.id))).collect();
        // One that an earlier try has removed is no fault; what it left to clear is.
        let script = format!(
            "restic unlock >/dev/null 2>&1\nfor id in{ids}; do if restic cat --no-lock snapshot \"$id\" >/dev/null 2>&1; then restic forget \"$id\" || exit; fi; done\nrestic prune"
        );
        let what = format!("snapshots of \"{}\" cannot be removed", self.name);
        self.must(cx, &self.host, &script, Code::BACKUP_REPOSITORY, &what).await.map(drop)
    }

    async fn check(&self, cx: &Cx, percent: u8) -> Result<()> {
        let data = match percent {
            0 => String::new(),
            100 => " --read-data".into(),
            n => format!(" --read-data-subset={n}%"),
        };
        let script = format!("restic unlock >/dev/null 2>&1\nrestic check --no-cache{data}");
        self.must(cx, &self.host, &script, Code::BACKUP_DAMAGED, &format!("the repository \"{}\" is damaged", self.name)).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn restic(repository: &str) -> Restic {
        let text = |v: &str| runbook_core::Value::from(v);
        let settings = BTreeMap::from([
            ("host".to_string(), text("vault")),
            ("repository".to_string(), text(repository)),
            ("password".to_string(), text("p")),
        ]);
        Restic::new(&Resource { name: "store".into(), kind: "restic".into(), settings }).unwrap()
    }

    #[test]
    fn a_folder_is_told_from_a_server() {
        for (repository, local) in [
            ("/srv/restic", true),
            ("restic", true),
            ("local:/srv", true),
            ("sftp:vault:/srv", false),
            ("s3:http://h:9000/b", false),
            ("./a:b", true),
        ] {
            assert_eq!(restic(repository).local(), local, "{repository}");
        }
    }

    #[test]
    fn what_restic_says_has_a_code_of_its_own() {
        let fault = |status: i32, text: &str| {
            restic("r").fault(
                "vault",
                Code::BACKUP_DAMAGED,
                "it is damaged",
                &Done { status, stderr: text.as_bytes().to_vec(), ..Done::default() },
            )
        };
        assert_eq!(fault(1, "Fatal: wrong password or no key found\n").code, Code::BACKUP_REPOSITORY);
        let e = fault(
            1,
            "Fatal: unable to open config file: stat /none/config: no such file or directory\nIs there a repository at the following location?\n/none\n",
        );
        assert!(e.code == Code::BACKUP_REPOSITORY && e.hint.unwrap().contains("init()"));
        assert!(fault(1, "unable to create lock in backend: repository is already locked by PID 7\n").retryable);
        assert_eq!(fault(127, "").code, Code::HOST_TOOL_MISSING);
        let e = fault(
            1,
            "Load(<data/7>, 3, 0) returned error, retrying after 1s: gone\nignoring error for /src/big: ciphertext verification failed\n",
        );
        assert_eq!(e.message, "it is damaged: ignoring error for /src/big: ciphertext verification failed");
    }

    #[test]
    fn a_list_of_either_version_is_read() {
        let one = r#"[{"time":"2026-11-21T17:35:40.963764175Z","tree":"8b","paths":["/s"],"hostname":"old","username":"root","tags":["runbook:r1-a","x"],"id":"65549530cd","short_id":"65549530"}]"#;
        let l: Vec<Listed> = serde_json::from_str(one).unwrap();
        let s = restic("r").found(l.into_iter().next().unwrap());
        assert_eq!((s.action.as_str(), s.tags, s.counted), ("r1-a", vec!["x".to_string()], false));
        let two = r#"{"time":"2026-11-21T17:35:40+02:00","id":"6","summary":{"total_files_processed":4,"total_bytes_processed":9,"x":1}}"#;
        let s = restic("r").found(serde_json::from_str(two).unwrap());
        assert_eq!((s.files, s.bytes, s.counted), (4, 9, true));
    }
}
