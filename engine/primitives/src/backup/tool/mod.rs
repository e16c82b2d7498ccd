//! Repositories that a program of the hosts keeps: restic, borg. One shape for all of them, [`Kept`], around what a program is: a [`Tool`].
//!
//! A tool brings shell functions of these names (its file `NAME.sh`), which run on the host with the tool's own environment:
//!
//! | function | what it does |
//! |---|---|
//! | `look` | status 0 when the repository opens |
//! | `make` | makes the repository |
//! | `snapshots` | prints the list that [`Tool::listed`] reads |
//! | `count ID` | prints the number of files, of further names of them, and of their bytes |
//! | `attempt PATH…` | takes a snapshot, sets `id` to its name and `told` to a line that [`Tool::told`] reads (or to nothing), and writes what changed meanwhile into `$t/which`, a line each; on failure nothing is left |
//! | `drop ID` | removes a snapshot that is not kept, without freeing its space |
//! | `keep` | becomes the tool that makes a snapshot of its input, as the file `$file`; what it prints goes to `hear` |
//! | `hear` | reads that, prints progress for people, and keeps the rest in `$t`; complaints in `$t/log` |
//! | `kept` | after that: sets `id`, `told`, and `n` to the bytes of the file |
//! | `found` | prints the names of what there is of this action, halves too |
//! | `give_of ID FILE` | becomes the tool that prints a file of a snapshot |
//! | `leftovers` | removes what an attempt of this action that nobody ended has left |
//! | `read_all ID` | reads every piece of a snapshot from the repository and checks it, without a cache |
//! | `bring ID FOLDER` | restores into an empty folder, likewise |
//! | `bring_over ID FOLDER` | restores into a folder that has files |
//! | `tar_of ID` | prints a snapshot as a tar archive |
//! | `forget ID…` | removes snapshots that are still there, and frees their space |
//! | `sound PERCENT` | checks the repository, and so much of its data |
//! | `unlock FORCE` | removes locks of the dead; with 1, all |
//!
//! `quit` is the signal by which it gives up what it is at. `take.rs` takes snapshots under the supervisor, `stream.rs` those of databases, `restore.rs` restores and tests, `copy.rs` copies from one repository into another,
//! `timed.rs` has timers take them.
//! Passwords and keys go through the environment of the remote process, which its owner alone sees.

mod copy;
mod restore;
mod stream;
mod take;
pub(super) mod timed;

use async_trait::async_trait;
use runbook_core::inventory::Resource;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::database::streams::Streams;
use super::on_host::said;
use super::repository::{Copied, Made, Plan, Repository, Restored, Snapshot};
use super::schedule::timed::{Job, Timed};
use crate::ssh::{Done, Exec, connect, quote};

/// What a tool complained of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// There is no repository.
    Absent,
    /// The password does not open it.
    Password,
    /// Somebody else works on it, or died while he did.
    Locked,
    /// The tool will not open it without being asked to, and why that is right; what to do.
    Refused(&'static str, &'static str),
    /// The server of the repository does not answer, or has gone away.
    Unreachable,
    /// Anything else.
    Other,
}

/// A program that keeps snapshots.
pub(super) trait Tool: Send + Sync + Sized + 'static {
    /// The program, and the Debian package that brings it.
    const PROGRAM: (&'static str, &'static str);
    /// Reads the settings that are its own.
    fn new(r: &Resource) -> Result<Self>;
    /// Whether a repository is a folder of the host on which the tool runs.
    fn local(repository: &str) -> bool;
    /// The environment: how the repository is found and opened.
    fn environment(&self, cx: &Cx, r: &Resource) -> Result<Vec<(&'static str, String)>>;
    /// The functions of the table above.
    fn functions(&self, r: &Resource) -> String;
    /// What `attempt` and `keep` need to know of a plan, as shell text.
    fn words(&self, cx: &Cx, plan: &Plan) -> Result<String>;
    /// A file in a line of `$t/which`.
    fn changed(line: &str) -> String {
        line.to_string()
    }
    /// The snapshot of this plan as its own run told of it, and as `snapshots` would list it; `None` when that is not all known. Saves the tool from being
    /// begun again: each time it opens the repository anew.
    fn told(cx: &Cx, plan: &Plan, line: &str) -> Option<Snapshot>;
    /// What `snapshots` printed; where each lies is filled in afterwards.
    fn listed(out: &[u8]) -> std::result::Result<Vec<Snapshot>, String>;
    /// Whether a snapshot answers to this name.
    fn answers(s: &Snapshot, id: &str) -> bool;
    /// What the tool said to standard error, for people, and what it means.
    fn trouble(stderr: &str) -> (String, Trouble);
    /// The environment that gives `copy` another repository to read from.
    fn source(&self, cx: &Cx, r: &Resource) -> Result<Vec<(&'static str, String)>>;
    /// The script that copies these from there, with all functions of the table at hand.
    fn copy(snapshots: &[Snapshot]) -> String;
    /// What is on the command line of every process that makes the snapshot of this plan, and nowhere else.
    fn trace(cx: &Cx, plan: &Plan) -> String;
    /// How it gets its password from a file of the host.
    fn from_file(path: &str) -> timed::FromFile;
    /// POSIX sh text for a timer: takes the positional parameters into a snapshot as the plan has it, and removes old ones.
    fn timer(r: &Resource, job: &Job<'_>, plan: &Plan) -> String;
}

/// A repository that a tool keeps.
pub(super) struct Kept<T: Tool> {
    /// Its name in the inventory.
    pub(super) name: String,
    /// The host on which it is looked after.
    pub(super) host: String,
    /// Where it is, as the tool has it.
    pub(super) repository: String,
    /// The inventory's settings.
    pub(super) settings: Resource,
    tool: T,
}

impl<T: Tool> Kept<T> {
    /// Reads the settings `host`, `repository` and those of the tool.
    ///
    /// # Errors
    /// `RB0114` when one is missing.
    pub(super) fn new(r: &Resource) -> Result<Self> {
        let tool = T::new(r)?;
        Ok(Kept { name: r.name.clone(), host: r.need("host")?.into(), repository: r.need("repository")?.into(), settings: r.clone(), tool })
    }

    pub(super) fn local(&self) -> bool {
        T::local(&self.repository)
    }

    /// A script with the tool's functions and what opens the repository.
    pub(super) fn exec(&self, cx: &Cx, script: &str, sudo: bool) -> Result<Exec> {
        let mut env = vec![("LC_ALL".to_string(), "C".to_string())];
        env.extend(self.tool.environment(cx, &self.settings)?.into_iter().map(|(k, v)| (k.to_string(), v)));
        let script = format!("command -v {} >/dev/null 2>&1 || exit 127\n{}\n{script}", T::PROGRAM.0, self.tool.functions(&self.settings));
        Ok(Exec { env, sudo: sudo || self.settings.flag("sudo"), ..Exec::new(script) })
    }

    /// Runs a script on a host. A status other than 0 is no error.
    pub(super) async fn run(&self, cx: &Cx, host: &str, script: &str) -> Result<Done> {
        connect(cx, host).await?.exec_again(cx, self.exec(cx, script, false)?).await
    }

    /// As [`Kept::run`]; a status other than 0 is this error.
    pub(super) async fn must(&self, cx: &Cx, host: &str, script: &str, code: Code, what: &str) -> Result<Done> {
        let done = self.run(cx, host, script).await?;
        if done.status == 0 { Ok(done) } else { Err(self.fault(host, code, what, &done)) }
    }

    /// What the tool said, as an error: with a code of its own when the repository cannot be opened.
    pub(super) fn fault(&self, host: &str, code: Code, what: &str, done: &Done) -> Error {
        let (program, package) = T::PROGRAM;
        if done.status == 127 {
            return Error::new(Code::HOST_TOOL_MISSING, format!("{program} is not there"))
                .host(host)
                .hint(format!("install it (Debian: {package})"));
        }
        let (own, trouble) = T::trouble(&String::from_utf8_lossy(&done.stderr));
        let reason = said(&own);
        let opened = |why: &str, hint: &str| {
            Error::new(Code::BACKUP_REPOSITORY, format!("the repository \"{}\" ({}) {why}", self.name, self.repository))
                .host(host)
                .hint(hint.to_string())
        };
        match trouble {
            Trouble::Password => opened("is not opened by its password", "check the secret that `password` of the repository names"),
            Trouble::Absent => {
                let hint = format!("check `repository` in runbook.toml; to make a new one: backup(\"{}\").init()", self.name);
                opened("is not there", &hint)
            }
            Trouble::Locked => opened(
                &format!("is locked by another {program}: {reason}"),
                &format!("try again when that has ended; the lock of one that died: backup(\"{}\").unlock()", self.name),
            )
            .retryable(true),
            Trouble::Refused(why, hint) => opened(why, hint).detail("said", &reason),
            Trouble::Unreachable => opened(
                &format!("cannot be reached: {reason}"),
                "see whether its server is up, and whether this host reaches it; then resume: what was sent is not sent again",
            )
            .retryable(true),
            Trouble::Other => Error::new(code, format!("{what}: {reason}")).host(host).hint(match reason.as_str() {
                w if w.contains("no space left") || w.contains("No space left") => {
                    "free space there; nothing half is left in the repository"
                }
                w if w.contains("ermission denied") || w.contains("it cannot be read") => "give the login these rights, or say sudo: true",
                _ => "mend what is said there, then resume",
            }),
        }
    }

    /// Snapshots as a host sees them, oldest first.
    pub(super) async fn snapshots(&self, cx: &Cx, host: &str) -> Result<Vec<Snapshot>> {
        let what = format!("the snapshots of \"{}\" cannot be listed", self.name);
        let done = self.must(cx, host, "snapshots", Code::BACKUP_REPOSITORY, &what).await?;
        let mut all = T::listed(&done.stdout).map_err(|e| {
            Error::new(Code::BACKUP_REPOSITORY, format!("what {} lists cannot be understood: {e}", T::PROGRAM.0))
                .host(host)
                .hint(format!("see the version of {} there", T::PROGRAM.0))
        })?;
        for s in &mut all {
            s.archive.clone_from(&self.repository);
        }
        all.sort_by(|a, b| a.time.cmp(&b.time).then_with(|| a.id.cmp(&b.id)));
        Ok(all)
    }

    /// The one of that name.
    pub(super) async fn named(&self, cx: &Cx, host: &str, id: &str) -> Result<Option<Snapshot>> {
        let mut found = self.snapshots(cx, host).await?.into_iter().filter(|s| T::answers(s, id));
        Ok(match (found.next(), found.next()) {
            (Some(one), None) => Some(one),
            _ => None,
        })
    }

    /// Counts the files of a snapshot, and their bytes, from the repository's own list of them.
    pub(super) async fn count(&self, cx: &Cx, host: &str, s: &mut Snapshot) -> Result<()> {
        if s.counted && s.sized {
            return Ok(());
        }
        let done = self.run(cx, host, &format!("count {}", quote(&s.id))).await?;
        let text = String::from_utf8_lossy(&done.stdout);
        let numbers: Option<Vec<u64>> = text.split_whitespace().map(|n| n.parse().ok()).collect();
        match (done.status, numbers.as_deref()) {
            (0, Some(&[files, links, bytes])) => {
                (s.files, s.links, s.bytes, s.counted, s.sized) = (files, links, bytes, true, true);
            }
            _ => {
                return Err(self.fault(host, Code::BACKUP_DAMAGED, &format!("the files of the snapshot {} cannot be listed", s.id), &done));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl<T: Tool> Repository for Kept<T> {
    async fn init(&self, cx: &Cx) -> Result<bool> {
        let there = self.run(cx, &self.host, "look").await?;
        if there.status == 0 {
            return Ok(false);
        }
        if there.status == 127 || T::trouble(&String::from_utf8_lossy(&there.stderr)).1 != Trouble::Absent {
            let what = format!("the repository \"{}\" cannot be looked at", self.name);
            return Err(self.fault(&self.host, Code::BACKUP_REPOSITORY, &what, &there));
        }
        let what = format!("the repository \"{}\" cannot be made", self.name);
        self.must(cx, &self.host, "make", Code::BACKUP_REPOSITORY, &what).await.map(|_| true)
    }

    async fn snapshot(&self, cx: &Cx, plan: &Plan) -> Result<(Snapshot, Vec<String>)> {
        self.take(cx, plan).await
    }

    async fn made(&self, cx: &Cx, plan: &Plan) -> Result<Made> {
        self.taken(cx, plan).await
    }

    async fn list(&self, cx: &Cx) -> Result<Vec<Snapshot>> {
        self.snapshots(cx, &self.host).await
    }

    async fn get(&self, cx: &Cx, id: &str) -> Result<Snapshot> {
        self.named(cx, &self.host, id).await?.ok_or_else(|| {
            Error::new(Code::BACKUP_MISSING, format!("the repository \"{}\" has no snapshot {id:?}", self.name))
                .host(&self.host)
                .hint(format!("see what there is: backup(\"{}\").list()", self.name))
        })
    }

    async fn verify(&self, cx: &Cx, s: &Snapshot) -> Result<()> {
        let script = format!("read_all {}", quote(&s.id));
        self.must(cx, &self.host, &script, Code::BACKUP_DAMAGED, &format!("the snapshot {} is damaged", s.id)).await.map(drop)
    }

    async fn restore_test(&self, cx: &Cx, s: &Snapshot, on: Option<&str>, compare: bool) -> Result<Restored> {
        self.try_restore(cx, s, on.unwrap_or(&self.host), compare).await
    }

    async fn restore(&self, cx: &Cx, s: &Snapshot, host: &str, dest: &str, sudo: bool) -> Result<bool> {
        self.bring_back(cx, s, host, dest, sudo).await
    }

    async fn remove(&self, cx: &Cx, snapshots: &[Snapshot]) -> Result<()> {
        // One that an earlier try has removed is no fault; what it left to clear is cleared.
        let ids: String = snapshots.iter().map(|s| format!(" {}", quote(&s.id))).collect();
        let what = format!("snapshots of \"{}\" cannot be removed", self.name);
        self.must(cx, &self.host, &format!("forget{ids}"), Code::BACKUP_REPOSITORY, &what).await.map(drop)
    }

    async fn check(&self, cx: &Cx, percent: u8) -> Result<()> {
        let what = format!("the repository \"{}\" is damaged", self.name);
        self.must(cx, &self.host, &format!("sound {percent}"), Code::BACKUP_DAMAGED, &what).await.map(drop)
    }

    async fn unlock(&self, cx: &Cx, force: bool) -> Result<()> {
        let what = format!("the repository \"{}\" cannot be unlocked", self.name);
        self.must(cx, &self.host, &format!("unlock {}", u8::from(force)), Code::BACKUP_REPOSITORY, &what).await.map(drop)
    }

    async fn copy_to(&self, cx: &Cx, snapshots: &[Snapshot], to: &Resource) -> Result<Copied> {
        Kept::<T>::new(to)?.copy_from(cx, self, snapshots).await
    }

    async fn copied(&self, cx: &Cx, snapshots: &[Snapshot], to: &Resource) -> Result<Made<Copied>> {
        Kept::<T>::new(to)?.copied_from(cx, self, snapshots).await
    }

    fn streams(&self) -> Option<&dyn Streams> {
        Some(self)
    }

    fn timed(&self) -> Option<&dyn Timed> {
        Some(self)
    }
}
