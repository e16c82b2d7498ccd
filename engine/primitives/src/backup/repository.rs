//! What a backup repository must be able to do, and what a snapshot is. Drivers stand in folders of their own.

use async_trait::async_trait;
use jiff::Timestamp;
use runbook_core::inventory::{Resource, Section};
use runbook_core::primitive::Cx;
use runbook_core::spec::Call;
use runbook_core::{Code, Error, Record, Result, Value};
use serde::{Deserialize, Serialize};

use super::archive::Archive;
use super::borg::Borg;
use super::offline::Disk;
use super::restic::Restic;
use super::tool::Kept;

/// One snapshot in a repository, as kept beside it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name in the repository.
    pub id: String,
    /// The action that made it; how a resumed run finds out whether it exists.
    pub action: String,
    /// When it was begun.
    pub time: Timestamp,
    /// The inventory name of the host that it was taken from.
    pub host: String,
    /// The paths that were asked for; all relative to the login folder, or all absolute.
    pub paths: Vec<String>,
    /// How many regular files.
    pub files: u64,
    /// How many hard links to those files.
    #[serde(default)]
    pub links: u64,
    /// The size of all files.
    pub bytes: u64,
    /// Whether the number of files is known: some tools do not tell it in a list.
    #[serde(default = "yes")]
    pub counted: bool,
    /// Whether their size is known, and how many further names they have.
    #[serde(default = "yes")]
    pub sized: bool,
    /// What it was marked with.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Where it lies: for people.
    pub archive: String,
    /// The size of the archive as kept.
    #[serde(default)]
    pub archive_bytes: u64,
    /// The SHA-256 of the archive as kept.
    #[serde(default)]
    pub archive_sha256: String,
    /// The SHA-256 of its manifest.
    #[serde(default)]
    pub manifest_sha256: String,
}

fn yes() -> bool {
    true
}

impl Snapshot {
    /// Whether its paths are absolute.
    #[must_use]
    pub fn absolute(&self) -> bool {
        self.paths.first().is_some_and(|p| p.starts_with('/'))
    }

    /// The script's value of type `Snapshot`.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let texts = |l: &[String]| Value::List(l.iter().map(|t| t.as_str().into()).collect());
        Record::new(
            "Snapshot",
            [
                ("id", self.id.as_str().into()),
                ("time", self.time.into()),
                ("host", self.host.as_str().into()),
                ("paths", texts(&self.paths)),
                ("files", if self.counted { i64::try_from(self.files).unwrap_or(i64::MAX).into() } else { Value::Unit }),
                ("bytes", if self.sized { Value::Bytes(self.bytes) } else { Value::Unit }),
                ("tags", texts(&self.tags)),
                ("archive", self.archive.as_str().into()),
                ("database", super::database::named(self).into()),
                ("stream", Value::Unit),
            ],
        )
        .into()
    }
}

/// What shall be in a snapshot.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The inventory name of the host.
    pub host: String,
    /// What to take.
    pub paths: Vec<String>,
    /// What to leave out.
    pub exclude: Vec<String>,
    /// What to mark it with.
    pub tags: Vec<String>,
    /// Whether to read with privileges.
    pub sudo: bool,
    /// Whether files may change while they are read.
    pub accept_changing: bool,
}

impl Plan {
    /// Whether its paths can be taken, and put back to where they were.
    ///
    /// # Errors
    /// `RB0700` naming the path.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String, hint: &str| Err(Error::new(Code::BACKUP_SNAPSHOT, what).host(&self.host).hint(hint.to_string()));
        let absolute = self.paths.iter().filter(|p| p.starts_with('/')).count();
        if absolute != 0 && absolute != self.paths.len() {
            return wrong(
                format!("{} mixes absolute paths with relative ones", self.paths.join(", ")),
                "take two snapshots, so that each can be restored to where it was",
            );
        }
        match self.paths.iter().find(|p| p.is_empty() || p.contains('\0') || p.split('/').any(|c| c == "..")) {
            Some(p) => wrong(format!("{p:?} is not a path for a snapshot"), "name it without \"..\""),
            None => Ok(()),
        }
    }
}

/// What `copy_to` found and did.
#[derive(Debug, Clone, Default)]
pub struct Copied {
    /// The copies that were made, as they are in the other repository.
    pub made: Vec<Snapshot>,
    /// How many of the snapshots were there already.
    pub there: usize,
}

/// What a restore test found right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// How many files.
    pub files: u64,
    /// Their size.
    pub bytes: u64,
}

/// What became of what an action makes: its snapshot, its copies.
#[derive(Debug, Clone)]
pub enum Made<T = Box<Snapshot>> {
    /// It is there.
    Yes(T),
    /// It is not there, and nothing works at it.
    No,
    /// It failed, as the host told.
    Failed(Box<Error>),
}

/// A backup repository. A snapshot is there whole or not at all, and carries `cx.action_id`.
#[async_trait]
pub trait Repository: Send + Sync {
    /// Makes the repository; `false` when it is there.
    async fn init(&self, cx: &Cx) -> Result<bool>;
    /// Takes a snapshot; the second value names files that changed while they were read, when that was accepted.
    async fn snapshot(&self, cx: &Cx, plan: &Plan) -> Result<(Snapshot, Vec<String>)>;
    /// What became of the snapshot that the action `cx.action_id` made by this plan. What it left unfinished is removed.
    async fn made(&self, cx: &Cx, plan: &Plan) -> Result<Made>;
    /// Every snapshot, oldest first.
    async fn list(&self, cx: &Cx) -> Result<Vec<Snapshot>>;
    /// One snapshot by its name. `RB0701` when there is none.
    async fn get(&self, cx: &Cx, id: &str) -> Result<Snapshot>;
    /// Computes every checksum again. `RB0702` naming what is damaged or missing.
    async fn verify(&self, cx: &Cx, snapshot: &Snapshot) -> Result<()>;
    /// Restores into an empty temporary folder, on the host of the repository or on another, and checks it; with `compare`, also
    /// against the files as they are now. `RB0703` naming the differences.
    async fn restore_test(&self, cx: &Cx, snapshot: &Snapshot, on: Option<&str>, compare: bool) -> Result<Restored>;
    /// Restores into a folder of a host; whether anything had to be written.
    async fn restore(&self, cx: &Cx, snapshot: &Snapshot, host: &str, dest: &str, sudo: bool) -> Result<bool>;
    /// Removes snapshots, and what only they needed. Done again it removes what is left.
    async fn remove(&self, cx: &Cx, snapshots: &[Snapshot]) -> Result<()>;
    /// Checks the repository as a whole; of its data as many percent, chosen at random. `RB0702` for what is wrong.
    async fn check(&self, cx: &Cx, percent: u8) -> Result<()>;
    /// Removes locks whose holders are proven to be dead; with `force`, all. `RB0704` naming who holds one that stays.
    async fn unlock(&self, cx: &Cx, force: bool) -> Result<()>;
    /// Copies snapshots into another repository of the same kind, but for those that are there.
    async fn copy_to(&self, cx: &Cx, snapshots: &[Snapshot], to: &Resource) -> Result<Copied>;
    /// What became of the copying that the action `cx.action_id` began.
    async fn copied(&self, cx: &Cx, snapshots: &[Snapshot], to: &Resource) -> Result<Made<Copied>>;
    /// How it takes databases; `None` when it does not.
    fn streams(&self) -> Option<&dyn super::database::streams::Streams> {
        None
    }
    /// How timers write to it; `None` when they do not.
    fn timed(&self) -> Option<&dyn super::schedule::timed::Timed> {
        None
    }
}

/// The repository that a method was called on. One on a disk that is there only at times is not touched before the disk is seen.
///
/// # Errors
/// `RB0106` when the inventory has none of that name, `RB0104` for a kind that does not exist, `RB0706` when its disk is not attached.
pub async fn of(cx: &Cx, call: &Call) -> Result<Box<dyn Repository>> {
    let resource = cx.env.resource(Section::Backups, call.target())?;
    let repository = open(resource)?;
    if let Some(disk) = Disk::of(resource)? {
        disk.need(cx).await?;
    }
    Ok(repository)
}

/// A repository of the inventory, whether its disk is attached or not.
///
/// # Errors
/// `RB0104` for a kind that does not exist.
pub(super) fn open(resource: &Resource) -> Result<Box<dyn Repository>> {
    Ok(match resource.kind.as_str() {
        "archive" => Box::new(Archive::new(resource)?),
        "restic" => Box::new(Kept::<Restic>::new(resource)?),
        "borg" => Box::new(Kept::<Borg>::new(resource)?),
        other => {
            return Err(Error::new(
                Code::INVENTORY_TYPE,
                format!("the backup repository \"{}\" has the unknown kind \"{other}\"", resource.name),
            )
            .hint("there are: archive, restic, borg"));
        }
    })
}
