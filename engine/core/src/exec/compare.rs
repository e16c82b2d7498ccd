//! `resume --edited`: which finished steps of the record an edited runbook still has as they were.
//!
//! The edited script is evaluated in [`Mode::Compare`](super::Mode::Compare) before anything else: recorded actions must be the same calls,
//! what is new is passed over as long as finished steps are still to be found behind it, and nothing is done, asked or recorded.

use super::history::History;
use super::run::{Mode, Run};
use crate::error::{Code, Error, Kind, Result};

/// What a comparison found, steps by their paths in the order in which they began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// The finished steps that are as they were.
    pub matching: Vec<String>,
    /// The first one that is not.
    pub differing: Option<String>,
    /// Those that were not compared any more.
    pub open: Vec<String>,
}

impl History {
    /// The paths of the steps that are done or were left out, in the order in which they began. Those within a failed attempt of another
    /// step are not among them: replay does not go through it.
    #[must_use]
    pub fn finished(&self) -> Vec<String> {
        let done = |r: &super::history::StepRecord| r.skipped.is_some() || r.ended.iter().any(|a| !r.failed.contains_key(a));
        let mut all: Vec<_> = self.steps.iter().filter(|(p, r)| done(r) && !self.in_failed_attempt(p)).collect();
        all.sort_by_key(|(_, r)| r.began);
        all.into_iter().map(|(p, _)| p.clone()).collect()
    }

    fn in_failed_attempt(&self, path: &str) -> bool {
        path.match_indices('/').filter_map(|(i, _)| path.get(..i)).any(|above| {
            let (step, attempt) = match above.rsplit_once('@').map(|(s, n)| (s, n.parse())) {
                Some((s, Ok(n))) => (s, n),
                _ => (above, 1),
            };
            self.steps.get(step).is_some_and(|r| r.failed.contains_key(&attempt))
        })
    }
}

impl Run {
    /// In a comparison, at something that is not on record: whether to pass over it, since finished steps may come behind it.
    pub(super) fn pass_over(&self) -> bool {
        self.parts.mode == Mode::Compare && !self.unseen.lock().is_empty()
    }

    /// In a comparison: a finished step was found as it was.
    pub(super) fn found(&self, path: &str) {
        if self.parts.mode == Mode::Compare {
            self.unseen.lock().remove(path);
        }
    }

    /// What the comparison found, once the script has been evaluated with this result; and the mismatch, if there is one.
    #[must_use]
    pub fn comparison(&self, evaluated: Result<()>) -> (Comparison, Option<Error>) {
        let unseen = self.unseen.lock();
        let (mut open, matching): (Vec<String>, Vec<String>) = self.parts.history.finished().into_iter().partition(|p| unseen.contains(p));
        // An error of the script itself may come from a new step that was passed over; what counts is whether every finished step was found.
        let mismatch = evaluated.err().filter(|e| e.kind == Kind::Mismatch);
        let differing = match &mismatch {
            Some(e) => {
                let at = e.details.get("path").cloned().unwrap_or_default();
                let inside = |p: &String| at == *p || at.starts_with(&format!("{p}/")) || at.starts_with(&format!("{p}@"));
                // Or it is a set of branches of which one is gone.
                let below = |p: &String| p.starts_with(&format!("{at}/"));
                open.iter().position(inside).or_else(|| open.iter().position(below))
            }
            None => (!open.is_empty()).then_some(0),
        };
        let differing = differing.map(|i| open.remove(i));
        let hint = format!(
            "nothing was touched: mend the runbook and say `runbook resume {0} --edited` again, or go on with the one that the run has: \
             `runbook resume {0}`",
            self.id()
        );
        let error = mismatch.map(|e| e.hint(hint.clone())).or_else(|| {
            let step = differing.as_ref()?;
            let message = format!(
                "this run no longer matches its runbook at {step}: the finished step is gone, has another name, or stands behind something \
                 new whose result is not known"
            );
            let e = Error::new(Code::MISMATCH, message).detail("recorded", format!("step {step:?}, done")).detail("now", "no such step");
            Some(e.detail("path", step).hint(hint))
        });
        (Comparison { matching, differing, open }, error)
    }
}
