//! borg: the `borg` of the hosts does the work, and reads and writes what any other borg does. Tried with 1.2.
//!
//! An archive is named `HOST.ACTION`, and its comment says from where it is, its tags and paths (borg 1.2 has no tags). Checkpoints, the
//! halves that borg leaves when it is interrupted, are no snapshots.
//!
//! borg asks before it opens what may have been put in the place of a repository. There is nobody to ask, and the answer is no, whatever the
//! environment of the login says: `BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK` is yes only where the inventory says `encryption = "none"`.
//! <https://borgbackup.readthedocs.io/en/1.2-maint/usage/general.html#environment-variables>

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

/// What our comments begin with; a JSON array follows: action, host, tags, paths.
const MARK: &str = "runbook:";
const FUNCTIONS: &str = include_str!("borg.sh");
/// Without a question, a wrong key or a hang: what any unattended `ssh` needs. What the configuration of the login says comes first.
const SSH: &str = "-o BatchMode=yes -o StrictHostKeyChecking=yes -o ServerAliveInterval=10 -o ServerAliveCountMax=6";

/// Runs its words, and lets what it said be read when they fail: at the end of their output borg looks no more at why, also when that came before.
const HEARD: &str = r#""$@" || { s=$?; sleep 1; exit "$s"; }"#;

/// What is borg's own.
pub(super) struct Borg {
    encryption: String,
}

#[derive(Debug, Deserialize)]
struct List {
    archives: Vec<Listed>,
}

/// An archive as `borg list --json` prints it.
#[derive(Debug, Deserialize)]
struct Listed {
    name: String,
    start: String,
    #[serde(default)]
    comment: String,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    command_line: serde_json::Value,
}

impl Listed {
    fn snapshot(self) -> std::result::Result<Snapshot, String> {
        let time = time(&self.start)?;
        let ours = self.comment.strip_prefix(MARK).and_then(|j| serde_json::from_str::<(String, String, Vec<String>, Vec<String>)>(j).ok());
        let (action, host, tags, paths) = ours.unwrap_or_else(|| (String::new(), self.hostname, vec![], taken(&self.command_line)));
        Ok(Snapshot { id: self.name, action, time, host, paths, tags, ..Snapshot::default() })
    }
}

/// A time as borg writes it: in UTC, which the zone of the process is, and without saying so.
fn time(text: &str) -> std::result::Result<jiff::Timestamp, String> {
    text.parse().or_else(|_| format!("{text}Z").parse()).map_err(|e| format!("{text}: {e}"))
}

/// A host's name as a part of the name of an archive.
fn sound(host: &str) -> String {
    host.chars().map(|c| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '_' }).collect()
}

/// What the archive of an action is called.
fn name(cx: &Cx, plan: &Plan) -> String {
    format!("{}.{}", sound(&plan.host), cx.action_id)
}

/// The paths on the command line of a `borg create` that somebody else has called: what stands behind the archive's name.
fn taken(command_line: &serde_json::Value) -> Vec<String> {
    let words = match command_line {
        serde_json::Value::Array(a) => a.iter().filter_map(|w| w.as_str().map(str::to_string)).collect(),
        serde_json::Value::String(s) => s.split_whitespace().map(str::to_string).collect(),
        _ => vec![],
    };
    words.into_iter().skip_while(|w| !w.contains("::")).skip(1).filter(|w| !w.starts_with('-')).collect()
}

/// As borg takes text in which it replaces `{now}` and the like.
fn literal(text: &str) -> String {
    text.replace('{', "{{").replace('}', "}}")
}

/// The words of our comment.
fn comment(action: &str, host: &str, tags: &[String], paths: &[String]) -> String {
    literal(&format!("{MARK}{}", serde_json::json!([action, host, tags, paths])))
}

/// How a repository is reached and opened.
struct Way {
    repository: String,
    passphrase: Option<String>,
    passcommand: Option<String>,
    rsh: String,
    remote_path: Option<String>,
    unencrypted: bool,
}

impl Way {
    fn of(cx: &Cx, r: &Resource) -> Result<Way> {
        let rsh = r.str("rsh").unwrap_or("ssh");
        let program = rsh.split_whitespace().next().unwrap_or_default();
        let ssh = program == "ssh" || program.ends_with("/ssh");
        // ssh takes the first value of an option.
        let options = if ssh { format!(" {SSH}") } else { String::new() };
        Ok(Way {
            repository: r.need("repository")?.to_string(),
            passphrase: r.str("password").map(|n| Ok::<_, Error>(cx.secret(n)?.reveal().to_string())).transpose()?,
            passcommand: r.str("passcommand").map(str::to_string),
            // borg takes it apart as a shell does, and expands nothing.
            rsh: format!("sh -c {} sh {rsh}{options}", quote(HEARD)),
            remote_path: r.str("remote_path").map(str::to_string),
            unencrypted: r.str("encryption") == Some("none"),
        })
    }
}

fn yes(answer: bool) -> String {
    if answer { "yes" } else { "no" }.to_string()
}

impl Tool for Borg {
    const PROGRAM: (&'static str, &'static str) = ("borg", "borgbackup");

    fn new(r: &Resource) -> Result<Self> {
        let encryption = r.str("encryption").unwrap_or("repokey").to_string();
        let wrong = |what: String, hint: &str| {
            Err(Error::new(Code::INVENTORY_TYPE, format!("the backup repository \"{}\" {what}", r.name)).hint(hint.to_string()))
        };
        let secrets = usize::from(r.str("password").is_some()) + usize::from(r.str("passcommand").is_some());
        match (encryption.as_str(), secrets) {
            ("none", 0) => {}
            ("none", _) => return wrong("is not encrypted and has a password".into(), "leave `password` or `encryption` out"),
            (_, 0) => return wrong("has no password".into(), "name a secret: `password`; or a command on the host: `passcommand`"),
            (_, 2) => return wrong("has two passwords".into(), "leave `password` or `passcommand` out"),
            _ => {}
        }
        let modes = ["repokey", "repokey-blake2", "keyfile", "keyfile-blake2", "authenticated", "authenticated-blake2", "none"];
        if !modes.contains(&encryption.as_str()) {
            return wrong(format!("has the unknown encryption \"{encryption}\""), &format!("there are: {}", modes.join(", ")));
        }
        Ok(Borg { encryption })
    }

    fn local(repository: &str) -> bool {
        // `ssh://…`, and `USER@HOST:PATH` as scp has it.
        repository.starts_with("file://") || repository.split_once(':').is_none_or(|(before, _)| before.contains('/'))
    }

    fn environment(&self, cx: &Cx, r: &Resource) -> Result<Vec<(&'static str, String)>> {
        let way = Way::of(cx, r)?;
        let mut env = vec![
            ("BORG_REPO", way.repository),
            ("BORG_RSH", way.rsh),
            // What it prints of times is what it keeps.
            ("TZ", "UTC".to_string()),
            ("BORG_EXIT_CODES", "legacy".into()),
            ("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", yes(way.unencrypted)),
            ("BORG_RELOCATED_REPO_ACCESS_IS_OK", yes(false)),
            ("BORG_DELETE_I_KNOW_WHAT_I_AM_DOING", "NO".into()),
            ("BORG_CHECK_I_KNOW_WHAT_I_AM_DOING", "NO".into()),
            ("BORG_DISPLAY_PASSPHRASE", yes(false)),
        ];
        env.extend(way.passphrase.map(|p| ("BORG_PASSPHRASE", p)));
        env.extend(way.passcommand.map(|p| ("BORG_PASSCOMMAND", p)));
        env.extend(way.remote_path.map(|p| ("BORG_REMOTE_PATH", p)));
        Ok(env)
    }

    fn functions(&self, r: &Resource) -> String {
        // A folder that is relative to the login folder stays the same one wherever borg is begun.
        let here = if Self::local(r.str("repository").unwrap_or_default()) { "BORG_REPO=$(absolute \"$BORG_REPO\")" } else { "" };
        format!(
            "absolute() {{ case $1 in /*|file:*) printf '%s' \"$1\" ;; *) printf '%s' \"$PWD/$1\" ;; esac; }}\n{here}\n\
             [ \"$FROM_LOCAL\" != yes ] || FROM_REPO=$(absolute \"$FROM_REPO\")\nencryption={}\n{FUNCTIONS}",
            quote(&self.encryption)
        )
    }

    fn words(&self, cx: &Cx, plan: &Plan) -> Result<String> {
        if let Some(t) = plan.tags.iter().find(|t| t.is_empty() || t.contains(['\n', '\0'])) {
            return Err(Error::new(Code::BACKUP_SNAPSHOT, format!("{t:?} is not a tag")).host(&plan.host).hint("use words"));
        }
        let exclude: String = plan.exclude.iter().map(|w| format!(" --exclude={}", quote(w))).collect();
        Ok(format!(
            "name={name} archive={archive}\ncreate() {{ by=$1; shift; \"$by\" create --progress --json --comment={comment}{exclude} \"$@\"; }}",
            name = quote(&name(cx, plan)),
            archive = quote(&Self::trace(cx, plan)),
            comment = quote(&comment(&cx.action_id.to_string(), &plan.host, &plan.tags, &plan.paths)),
        ))
    }

    fn changed(line: &str) -> String {
        said::changed(line)
    }

    fn told(cx: &Cx, plan: &Plan, line: &str) -> Option<Snapshot> {
        // Of files borg's own number has what it keeps of names and rights in it: it tells the size of a single one alone.
        let mut words = line.split_whitespace();
        let (start, files, bytes) = (words.next()?, words.next()?, words.next());
        Some(Snapshot {
            id: name(cx, plan),
            action: cx.action_id.to_string(),
            time: time(start).ok()?,
            host: plan.host.clone(),
            paths: plan.paths.clone(),
            tags: plan.tags.clone(),
            files: files.parse().ok()?,
            bytes: bytes.map_or(Some(0), |b| b.parse().ok())?,
            counted: true,
            sized: bytes.is_some(),
            ..Snapshot::default()
        })
    }

    fn listed(out: &[u8]) -> std::result::Result<Vec<Snapshot>, String> {
        let list: List = serde_json::from_slice(out).map_err(|e| e.to_string())?;
        list.archives.into_iter().map(Listed::snapshot).collect()
    }

    fn answers(s: &Snapshot, id: &str) -> bool {
        s.id == id
    }

    fn trouble(stderr: &str) -> (String, Trouble) {
        said::trouble(stderr)
    }

    fn trace(cx: &Cx, plan: &Plan) -> String {
        format!("::{}", name(cx, plan))
    }

    fn from_file(path: &str) -> FromFile {
        FromFile { instead_of: "BORG_PASSPHRASE", variable: "BORG_PASSCOMMAND", value: format!("cat {}", quote(path)) }
    }

    fn timer(_r: &Resource, job: &Job<'_>, plan: &Plan) -> String {
        timed::script(job, plan)
    }

    fn source(&self, cx: &Cx, r: &Resource) -> Result<Vec<(&'static str, String)>> {
        let way = Way::of(cx, r)?;
        Ok(vec![
            ("FROM_LOCAL", yes(Self::local(&way.repository))),
            ("FROM_REPO", way.repository),
            ("FROM_RSH", way.rsh),
            ("FROM_PASSPHRASE", way.passphrase.unwrap_or_default()),
            ("FROM_PASSCOMMAND", way.passcommand.unwrap_or_default()),
            ("FROM_REMOTE_PATH", way.remote_path.unwrap_or_default()),
            ("FROM_UNENCRYPTED", yes(way.unencrypted)),
        ])
    }

    fn copy(snapshots: &[Snapshot]) -> String {
        let mut script = "t=$(mktemp -d) || exit 1\ntrap 'rm -rf \"$t\"' EXIT\ntrap 'exit 143' TERM INT HUP\n".to_string();
        for s in snapshots {
            let inside = |p: &String| {
                let p = p.trim_start_matches("./").trim_start_matches('/');
                quote(&crate::backup::on_host::safe(if p.is_empty() { "." } else { p }))
            };
            let paths: Vec<String> = s.paths.iter().map(inside).collect();
            script.push_str(&format!(
                "copy {} {} {} {} || exit\n",
                quote(&s.id),
                quote(&comment(&s.action, &s.host, &s.tags, &s.paths)),
                quote(&s.time.strftime("%Y-%m-%dT%H:%M:%S").to_string()),
                if paths.is_empty() { ".".into() } else { paths.join(" ") },
            ));
        }
        script
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Resource {
        let settings: BTreeMap<_, _> = pairs.iter().map(|(k, v)| ((*k).to_string(), runbook_core::Value::from(*v))).collect();
        Resource { name: "store".into(), kind: "borg".into(), settings }
    }

    #[test]
    fn a_folder_is_told_from_a_server() {
        for (repository, local) in [
            ("/srv/borg", true),
            ("borg", true),
            ("./a:b", true),
            ("file:///srv/borg", true),
            ("ssh://borg@vault:2222/./shop", false),
            ("borg@vault:shop", false),
        ] {
            assert_eq!(Borg::local(repository), local, "{repository}");
        }
    }

    #[test]
    fn encryption_and_password_must_agree() {
        for (pairs, good) in [
            (&[("password", "p")][..], true),
            (&[("passcommand", "cat /root/pass")], true),
            (&[("encryption", "none")], true),
            (&[("encryption", "none"), ("password", "p")], false),
            (&[], false),
            (&[("password", "p"), ("passcommand", "x")], false),
            (&[("password", "p"), ("encryption", "rot13")], false),
        ] {
            assert_eq!(Borg::new(&settings(pairs)).is_ok(), good, "{pairs:?}");
        }
    }

    #[test]
    fn archives_of_ours_and_of_others_are_read() {
        let ours = comment("r1-a", "old", &["a{b}".to_string()], &["shop".to_string()]);
        assert!(ours.contains("a{{b}}"));
        let ours = ours.replace("{{", "{").replace("}}", "}");
        let json = serde_json::json!({"archives": [
            {"name": "old.r1-a", "start": "2026-11-21T23:52:27.000000", "comment": ours, "hostname": "x", "command_line": []},
            {"name": "by hand", "start": "2026-11-21T23:52:28.000000", "comment": "", "hostname": "vm",
             "command_line": ["/usr/bin/borg", "create", "--stats", "/srv/repo::by hand", "/etc", "--exclude=x", "home"]},
        ]});
        let all = Borg::listed(json.to_string().as_bytes()).unwrap();
        assert_eq!((all[0].action.as_str(), all[0].host.as_str(), all[0].tags.as_slice()), ("r1-a", "old", &["a{b}".to_string()][..]));
        assert_eq!(all[0].time.to_string(), "2026-11-21T23:52:27Z");
        assert_eq!((all[1].host.as_str(), all[1].paths.clone()), ("vm", vec!["/etc".to_string(), "home".into()]));
        assert!(!all[1].counted && Borg::answers(&all[1], "by hand"));
    }
}
