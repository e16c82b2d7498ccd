//! The embedded environment: hosts with SSH, a name server, a public entry, a small shop and a customer, on loopback only.
//!
//! One long-lived daemon process holds it all, so that it outlives a killed controller; it is the same executable, started as
//! `runbook __lab serve --dir DIR`. The command line calls [`up`], [`status`], [`overlay`], [`reset`] and [`down`], and hands
//! `__lab …` to [`lab_main`]. No root, no Docker, no system servers; Linux only (127.0.0.0/8, `/proc`).
//!
//! Everything it keeps is in one folder (mode 0700): addresses, keys, the zone, the hosts' folders, the customer's memory.

mod args;
mod client;
mod control;
mod customer;
mod daemon;
mod dns;
mod edge;
mod entry;
mod http;
mod keys;
mod layout;
mod memory;
mod net;
mod process;
mod seed;
mod shop;
mod ssh;
mod systemctl;
mod units;

pub use args::lab_main;
pub use client::{down, overlay, peek, reset, status, up};
pub use control::{HostStatus, Info, Status};
pub use layout::Plan;

use runbook_core::{Code, Error};

/// How long the lab lives without anybody asking for it: no control request and no SSH connection.
pub const IDLE_LIMIT: std::time::Duration = std::time::Duration::from_secs(2 * 3600);

/// An error of the lab about `what`, from whatever the system said.
fn failed(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Error {
    Error::new(Code::LAB, format!("{what}: {why}"))
}

/// Writes a line to the daemon's log, which is its standard error.
fn say(text: impl std::fmt::Display) {
    use std::io::Write;
    // There is nowhere to say that the log cannot be written.
    let _ = writeln!(std::io::stderr(), "{:.3} {text}", jiff::Timestamp::now());
}
