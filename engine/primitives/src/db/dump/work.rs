//! What `dump` and `load` do alike for every kind of server: look at the folder, run the kind's script there as a job, tidy up.

use std::time::Duration;

use runbook_core::Result;
use runbook_core::primitive::Cx;

use super::job::{AGAIN, As, Job};
use super::manifest::{self, Manifest, Place};
use super::refuse;
use crate::db::driver::Db;
use crate::ssh::{self, quote};

/// Pauses before a dump begins again whose failure may pass by itself.
const PAUSES: [Duration; 4] = [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(9)];

/// What a folder is for, in words for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::db) struct What {
    noun: &'static str,
    doing: &'static str,
}

/// A dump.
pub(in crate::db) const A_DUMP: What = What { noun: "dump", doing: "dumping" };
/// A base backup.
pub(in crate::db) const A_BASE_BACKUP: What = What { noun: "base backup", doing: "copying" };

/// The folder of a dump, on the host of the database that is dumped into it or loaded from it.
pub(in crate::db) struct Folder<'a> {
    /// The action.
    pub cx: &'a Cx,
    /// The database.
    pub db: &'a Db,
    /// How the kind's tools are called.
    pub who: &'a As<'a>,
    /// The folder's path.
    pub path: &'a str,
    /// What it is for.
    pub what: What,
}

/// What a kind has run there.
pub(in crate::db) struct Script {
    /// The job's script.
    pub text: String,
    /// The login, which is not part of it.
    pub env: Vec<(String, String)>,
    /// Shell function `counted`, which prints `rows N` and `bytes N`.
    pub counted: String,
}

impl Folder<'_> {
    async fn look(&self) -> Result<Place> {
        manifest::look(self.cx, &self.db.host, self.who, self.path).await
    }

    /// The whole dump that is there already; `None` where one can be written.
    ///
    /// # Errors
    /// `RB0505` when something else is there.
    pub(in crate::db) async fn there(&self) -> Result<Option<Manifest>> {
        match self.look().await? {
            Place::Empty | Place::Begun => Ok(None),
            Place::Whole(m) => Ok(Some(*m)),
            Place::Foreign => {
                let what = format!("{} has files that are of no {}", self.path, self.what.noun);
                Err(refuse(self.db, what, "choose a folder that is empty or not there"))
            }
        }
    }

    /// Sees that another dump may be replaced.
    ///
    /// # Errors
    /// `RB0505` unless that was asked for.
    pub(in crate::db) fn may_replace(&self, m: &Manifest, replace: bool) -> Result<()> {
        if replace {
            return Ok(());
        }
        let what = format!("{} has a dump of {} of {}", self.path, m.get("database"), m.get("time"));
        Err(refuse(self.db, what, "name another folder, or use replace: true"))
    }

    /// The dump that is to be loaded.
    ///
    /// # Errors
    /// `RB0505` when there is none, or one of another kind.
    pub(in crate::db) async fn whole(&self, kind: &str) -> Result<Manifest> {
        let Place::Whole(m) = self.look().await? else {
            let what = format!("{} has no whole dump", self.path);
            return Err(refuse(self.db, what, "dump writes the file manifest last; copy such a folder to this host"));
        };
        if m.get("kind") != kind {
            let what = format!("the dump in {} is of kind {}, and \"{}\" of kind {kind}", self.path, m.get("kind"), self.db.name);
            return Err(refuse(self.db, what, "load it into a database of its own kind"));
        }
        Ok(*m)
    }

    /// Runs the script that writes what this action is for, with its manifest. `total` is about how many bytes it will be, `shown` what
    /// is said of its rows, and `half` a command that removes what a failed one has left.
    ///
    /// # Errors
    /// Those of [`Job::run`] and its end; `RB0505` when another is there afterwards.
    pub(in crate::db) async fn write(&self, script: Script, total: u64, shown: fn(u64) -> String, half: &str) -> Result<Manifest> {
        let (cx, db, What { noun, doing }) = (self.cx, self.db, self.what);
        let id = cx.action_id.to_string();
        let job =
            Job { host: &db.host, who: self.who, dir: format!("{}/.job", self.path), id: format!("{noun} {id}"), counted: script.counted };
        let show =
            |rows: u64, bytes: u64| cx.progress(format!("{doing} {}{}", db.name, shown(rows)), bytes, Some(total.max(bytes)), "bytes");
        let mut pauses = PAUSES.iter();
        let end = loop {
            let end = job.run(cx, &script.text, script.env.clone(), &show).await?;
            match (end.status, pauses.next()) {
                (Some(AGAIN), Some(pause)) => {
                    cx.message(format!("the {noun} of \"{}\" begins again: {}", db.name, end.said.replace('\n', "; ")));
                    cx.sleep(*pause).await?;
                }
                _ => break end,
            }
        };
        if let Err(e) = end.good(&db.host, &format!("the {noun} of \"{}\"", db.name)) {
            // Half of it is of no use, and takes room.
            self.tidy(&format!("cd {} && [ ! -e manifest ] && {half}", quote(self.path))).await;
            return Err(e);
        }
        let Place::Whole(m) = self.look().await? else {
            let what = format!("the {noun} in {} has no manifest, although it ended well", self.path);
            return Err(refuse(db, what, "look at that folder"));
        };
        if m.get("id") != id {
            let what = format!("the {noun} in {} was written by another ({})", self.path, m.get("id"));
            return Err(refuse(db, what, "name another folder").retryable(true));
        }
        self.tidy(&format!("rm -rf {}", quote(&job.dir))).await;
        Ok(*m)
    }

    /// Runs the script that loads the dump into what `into` names. Its own folder stays until [`Folder::loaded`].
    ///
    /// # Errors
    /// Those of [`Job::run`] and its end.
    pub(in crate::db) async fn load(&self, m: &Manifest, into: &str, script: Script) -> Result<()> {
        let (cx, db, total) = (self.cx, self.db, m.bytes());
        let id = format!("load {} into {into}", m.get("id"));
        let job = Job { host: &db.host, who: self.who, dir: self.load_dir(), id, counted: script.counted };
        let show = |rows: u64, bytes: u64| cx.progress(format!("loading {}, {rows} rows", db.name), bytes, Some(total.max(bytes)), "bytes");
        job.run(cx, &script.text, script.env, &show).await?.good(&db.host, &format!("the load into \"{}\"", db.name)).map(drop)
    }

    /// Removes what a load keeps for itself, once it is on record as whole.
    pub(in crate::db) async fn loaded(&self) {
        self.tidy(&format!("rm -rf {}", quote(&self.load_dir()))).await;
    }

    /// One for each database: several may load one dump at once.
    fn load_dir(&self) -> String {
        format!("{}/.load-{}", self.path, self.db.name.replace(|c: char| !c.is_ascii_alphanumeric(), "_"))
    }

    /// What is left over harms nobody: the next job of that folder removes it.
    async fn tidy(&self, script: &str) {
        if let Ok(session) = ssh::connect(self.cx, &self.db.host).await {
            let _ = session.exec(self.cx, (self.who)(script.to_string())).await;
        }
    }
}
