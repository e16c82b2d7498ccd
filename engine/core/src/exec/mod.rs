//! Durable execution: actions are recorded before and after, and a run that stopped anywhere goes on from its record.
//!
//! The script engine calls [`Run::act`], [`Run::step`], [`Run::phase`], [`Run::gate`], [`Run::downtime`] and the rest with the [`Frame`] of
//! the place it is at; these answer from the [`History`] while it lasts and act when it ends. Nothing here knows the language.

mod act;
mod ask;
mod branches;
mod compare;
mod control;
mod doubt;
mod frame;
mod history;
mod lease;
mod live;
mod run;
mod step;
mod undo;
mod wait;

pub use ask::{Ask, DoubtAnswer, GateAnswer, NoAsk, OnFailure, Said, StepChoice, StepView};
pub use branches::{Branch, BranchPlan, Branched};
pub use compare::Comparison;
pub use frame::{Frame, Window, escape, unescape};
pub use history::History;
pub use lease::{LEASE, Lease, Liveness};
pub use run::{CrashPoint, Fault, Mode, Observer, Quiet, Run, RunParts, Surroundings};
pub use step::StepOptions;
pub use undo::Undo;
