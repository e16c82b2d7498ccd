//! What a kind of repository must be able to do to be written to by a timer: say what runs, and what it needs.

use runbook_core::Result;
use runbook_core::primitive::Cx;

use super::super::retention::Keep;

/// What a timer takes.
pub struct Job<'a> {
    /// The schedule's name.
    pub name: &'a str,
    /// The inventory name of the host.
    pub host: &'a str,
    /// What to take; absolute.
    pub paths: &'a [String],
    /// What to leave out.
    pub exclude: &'a [String],
    /// What to mark the snapshots with; `schedule:NAME` is among them.
    pub tags: &'a [String],
    /// What stays; everything when nothing is said.
    pub(in crate::backup) keep: Option<&'a Keep>,
    /// Where the password is on the host.
    pub password_file: &'a str,
}

/// What a timer runs.
pub struct Timer {
    /// The program that must be there.
    pub program: &'static str,
    /// The environment, which may have secrets in it.
    pub env: Vec<(String, String)>,
    /// The password.
    pub password: String,
    /// POSIX sh text without secrets: takes the snapshot and removes old ones.
    pub script: String,
}

/// A repository that timers can write to.
pub trait Timed {
    /// What runs.
    ///
    /// # Errors
    /// `RB0707` for what cannot be.
    fn timer(&self, cx: &Cx, job: &Job<'_>) -> Result<Timer>;
}
