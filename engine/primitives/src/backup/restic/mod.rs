//! restic: the `restic` of the hosts does the work, and reads and writes what any other restic does.
//!
//! A snapshot carries the tag `runbook:ACTION`; in restic it is there once it is whole.
//! Formats of `--json`: <https://restic.readthedocs.io/en/stable/075_scripting.html>; tried with restic 0.14.

mod said;
mod timed;

use runbook_core::inventory::Resource;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use serde::Deserialize;

use super::repository::{Plan, Snapshot};
use super::schedule::timed::Job;
use super::tool::timed::FromFile;
use super::tool::{Tool, Trouble};
use crate::ssh::quote;

/// What marks the snapshot of an action.
const TAG: &str = "runbook:";
const FUNCTIONS: &str = include_str!("restic.sh");

/// What is restic's own.
pub(super) struct Restic;

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

impl From<Listed> for Snapshot {
    fn from(l: Listed) -> Self {
        let action = l.tags.iter().find_map(|t| t.strip_prefix(TAG)).unwrap_or_default().to_string();
        let (files, bytes) = l.summary.as_ref().map_or((0, 0), |s| (s.total_files_processed, s.total_bytes_processed));
        Snapshot {
            action,
            time: l.time,
            host: l.hostname,
            paths: l.paths,
            files,
            bytes,
            counted: l.summary.is_some(),
            sized: l.summary.is_some(),
            tags: l.tags.into_iter().filter(|t| !t.starts_with(TAG)).collect(),
            id: l.id,
            ..Snapshot::default()
        }
    }
}

/// What opens a repository; `from` is what the names of the variables have more when it is the one to copy from.
fn opened(cx: &Cx, r: &Resource) -> Result<(String, Option<String>)> {
    let secret = |name: &str| r.str(name).map(|n| Ok::<_, Error>(cx.secret(n)?.reveal().to_string())).transpose();
    let mut repository = r.need("repository")?.to_string();
    if let (Some(user), Some(password), Some((scheme, rest))) = (r.str("rest_user"), secret("rest_password")?, repository.split_once("://"))
    {
        // restic 0.14 has no variable for them. The address itself goes by the environment.
        repository = format!("{scheme}://{}:{}@{rest}", in_url(user), in_url(&password));
    }
    Ok((repository, secret("password")?))
}

/// restic as the words of a command that a shell can become.
fn command(r: &Resource) -> String {
    let mut words = "restic".to_string();
    if let Some(c) = r.str("sftp_command") {
        words.push_str(&format!(" -o sftp.command={}", quote(c)));
    }
    if let Some(c) = r.str("ca_file") {
        words.push_str(&format!(" --cacert={}", quote(c)));
    }
    words
}

/// A path as restic keeps it: absolute, and without what says nothing.
fn whole(from: &str, path: &str) -> String {
    let path = if path.starts_with('/') { path.to_string() } else { format!("{from}/{path}") };
    let words: Vec<&str> = path.split('/').filter(|c| !c.is_empty() && *c != ".").collect();
    format!("/{}", words.join("/"))
}

/// Percent-encoded, as the user part of an address wants it.
fn in_url(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, b| {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
        out
    })
}

impl Tool for Restic {
    const PROGRAM: (&'static str, &'static str) = ("restic", "restic");

    fn new(r: &Resource) -> Result<Self> {
        r.need("password")?;
        let repository = r.need("repository")?;
        let user = repository.split_once("://").and_then(|(_, rest)| rest.split('/').next()?.rsplit_once('@')).map_or("", |(user, _)| user);
        if user.contains(':') {
            return Err(Error::new(Code::INVENTORY_TYPE, format!("`repository` of \"{}\" has a password in it", r.name))
                .hint("leave user and password out, and name them: `rest_user`, and `rest_password` with the name of a secret"));
        }
        Ok(Restic)
    }

    fn local(repository: &str) -> bool {
        // `sftp:…`, `s3:…`, `rest:…`: a scheme before the first colon.
        match repository.split_once(':') {
            Some((scheme, _)) => scheme == "local" || scheme.contains('/'),
            None => true,
        }
    }

    fn environment(&self, cx: &Cx, r: &Resource) -> Result<Vec<(&'static str, String)>> {
        let secret = |name: &str| r.str(name).map(|n| Ok::<_, Error>(cx.secret(n)?.reveal().to_string())).transpose();
        let (repository, password) = opened(cx, r)?;
        let variables: [(&'static str, Option<String>); 6] = [
            ("RESTIC_REPOSITORY", Some(repository)),
            ("RESTIC_PASSWORD", password),
            ("AWS_ACCESS_KEY_ID", r.str("access_key").map(str::to_string)),
            ("AWS_SECRET_ACCESS_KEY", secret("secret_key")?),
            ("AWS_SESSION_TOKEN", secret("session_token")?),
            ("AWS_DEFAULT_REGION", r.str("region").map(str::to_string)),
        ];
        Ok(variables.into_iter().filter_map(|(k, v)| Some((k, v?))).collect())
    }

    fn functions(&self, r: &Resource) -> String {
        // There are no variables for them: a function of the script's own puts them before everything else. So no script says `exec restic`.
        let words = command(r);
        format!("restic() {{ command {words} \"$@\"; }}\nbecome() {{ exec {words} \"$@\"; }}\n{FUNCTIONS}")
    }

    fn words(&self, cx: &Cx, plan: &Plan) -> Result<String> {
        for t in &plan.tags {
            if t.is_empty() || t.contains([',', '\n', '\0']) || t.starts_with(TAG) {
                return Err(Error::new(Code::BACKUP_SNAPSHOT, format!("{t:?} is not a tag of restic"))
                    .host(&plan.host)
                    .hint("use words without commas"));
            }
        }
        let words = |option: &str, all: &[String]| all.iter().map(|w| format!(" {option}={}", quote(w))).collect::<String>();
        Ok(format!(
            "RESTIC_PROGRESS_FPS=0.5\nexport RESTIC_PROGRESS_FPS\nmark={tag}\n\
             backup() {{ by=$1; shift; \"$by\" backup --json --tag={tag}{tags} --host={host}{exclude} \"$@\"; }}",
            tag = quote(&Self::trace(cx, plan)),
            tags = words("--tag", &plan.tags),
            host = quote(&plan.host),
            exclude = words("--exclude", &plan.exclude),
        ))
    }

    fn told(cx: &Cx, plan: &Plan, line: &str) -> Option<Snapshot> {
        let mut words = line.splitn(5, ' ');
        let (id, time) = (words.next()?, words.next()?);
        let (files, bytes) = (words.next()?, words.next()?);
        let from = words.next()?;
        // As it lists them: whole.
        (id.len() == 64).then_some(())?;
        let mut paths: Vec<String> = plan.paths.iter().map(|p| whole(from, p)).collect();
        paths.sort();
        Some(Snapshot {
            id: id.to_string(),
            action: cx.action_id.to_string(),
            time: time.parse().ok()?,
            host: plan.host.clone(),
            paths,
            tags: plan.tags.clone(),
            files: files.parse().ok()?,
            bytes: bytes.parse().ok()?,
            counted: true,
            sized: true,
            ..Snapshot::default()
        })
    }

    fn listed(out: &[u8]) -> std::result::Result<Vec<Snapshot>, String> {
        let listed: Option<Vec<Listed>> = serde_json::from_slice(out).map_err(|e| e.to_string())?;
        Ok(listed.unwrap_or_default().into_iter().map(Snapshot::from).collect())
    }

    fn answers(s: &Snapshot, id: &str) -> bool {
        id.len() >= 8 && s.id.starts_with(id)
    }

    fn trouble(stderr: &str) -> (String, Trouble) {
        let lines = stderr.lines().filter(|l| !l.contains("returned error, retrying after")).map(said::plain);
        let own: String = lines.fold(String::new(), |t, l| t + &l + "\n");
        let says = |any: &[&str]| any.iter().any(|w| own.contains(w));
        // Whatever the reason, restic asks whether there is a repository at all: the reason counts.
        let trouble = if says(&["wrong password"]) {
            Trouble::Password
        } else if says(&[
            "(401)",
            "(403)",
            "Access Denied",
            "Access Key Id you provided",
            "signature we calculated",
            "Permission denied (publickey",
        ]) {
            Trouble::Refused(
                "does not let this login in",
                "check the user, the keys and their secrets in runbook.toml, and what the server allows them",
            )
        } else if says(&["x509: "]) {
            Trouble::Refused(
                "has a certificate that is not trusted",
                "name the file of its authority on this host: `ca_file`; and the server as its certificate has it",
            )
        } else if says(&[
            "connection refused",
            "no such host",
            "i/o timeout",
            "connection reset",
            "no route to host",
            "unable to start the sftp session",
            "(502)",
            "(503)",
        ]) {
            Trouble::Unreachable
        } else if says(&["Is there a repository at the following location", "repository does not exist"]) {
            Trouble::Absent
        } else if says(&["already locked"]) {
            Trouble::Locked
        } else {
            Trouble::Other
        };
        (own, trouble)
    }

    fn source(&self, cx: &Cx, r: &Resource) -> Result<Vec<(&'static str, String)>> {
        let (repository, password) = opened(cx, r)?;
        Ok(vec![("RESTIC_FROM_REPOSITORY", repository), ("RESTIC_FROM_PASSWORD", password.unwrap_or_default())])
    }

    fn copy(snapshots: &[Snapshot]) -> String {
        let ids: String = snapshots.iter().map(|s| format!(" {}", quote(&s.id))).collect();
        format!("restic copy{ids}")
    }

    fn trace(cx: &Cx, _plan: &Plan) -> String {
        format!("{TAG}{}", cx.action_id)
    }

    fn from_file(path: &str) -> FromFile {
        FromFile { instead_of: "RESTIC_PASSWORD", variable: "RESTIC_PASSWORD_FILE", value: path.to_string() }
    }

    fn timer(r: &Resource, job: &Job<'_>, plan: &Plan) -> String {
        timed::script(r, job, plan)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::backup::tool::Kept;
    use crate::ssh::Done;

    fn settings(repository: &str) -> Resource {
        let text = |v: &str| runbook_core::Value::from(v);
        let settings = BTreeMap::from([
            ("host".to_string(), text("vault")),
            ("repository".to_string(), text(repository)),
            ("password".to_string(), text("p")),
        ]);
        Resource { name: "store".into(), kind: "restic".into(), settings }
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
            assert_eq!(Restic::local(repository), local, "{repository}");
        }
    }

    #[test]
    fn a_password_in_the_address_is_refused() {
        for (repository, good) in
            [("rest:https://h:8000/shop", true), ("rest:https://u@h/", true), ("rest:https://u:p@h/", false), ("sftp:u@h:/srv", true)]
        {
            assert_eq!(Restic::new(&settings(repository)).is_ok(), good, "{repository}");
        }
        assert_eq!(in_url("a:b@c/d é"), "a%3Ab%40c%2Fd%20%C3%A9");
    }

    #[test]
    fn what_restic_says_has_a_code_of_its_own() {
        let fault = |status: i32, text: &str| {
            Kept::<Restic>::new(&settings("r")).unwrap().fault(
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
        let asked = "\nIs there a repository at the following location?\ns3:x\n";
        let e = fault(1, &format!("Fatal: unable to open config file: Stat: Access Denied.{asked}"));
        assert!(e.message.contains("does not let this login in") && !e.retryable);
        assert!(
            fault(1, &format!("Fatal: unable to open config file: dial tcp 127.0.0.1:9: connect: connection refused{asked}")).retryable
        );
        assert!(fault(1, &format!("x509: certificate signed by unknown authority{asked}")).hint.unwrap().contains("ca_file"));
        assert_eq!(fault(127, "").code, Code::HOST_TOOL_MISSING);
        let e = fault(
            1,
            "Load(<data/7>, 3, 0) returned error, retrying after 1s: gone\nignoring error for /src/big: ciphertext verification failed\n",
        );
        assert_eq!(e.message, "it is damaged: ignoring error for /src/big: ciphertext verification failed");
    }

    #[test]
    fn a_list_of_either_version_is_read() {
        let one = br#"[{"time":"2026-11-21T17:35:40.963764175Z","tree":"8b","paths":["/s"],"hostname":"old","username":"root","tags":["runbook:r1-a","x"],"id":"65549530cd","short_id":"65549530"}]"#;
        let s = Restic::listed(one).unwrap().remove(0);
        assert_eq!((s.action.as_str(), s.tags.as_slice(), s.counted), ("r1-a", &["x".to_string()][..], false));
        let two =
            br#"[{"time":"2026-11-21T17:35:40+02:00","id":"6","summary":{"total_files_processed":4,"total_bytes_processed":9,"x":1}}]"#;
        let s = Restic::listed(two).unwrap().remove(0);
        assert_eq!((s.files, s.bytes, s.counted), (4, 9, true));
        assert!(Restic::listed(b"null").unwrap().is_empty() && Restic::listed(b"{").is_err());
    }
}
