//! Processes of the lab: found by a mark in their environment, told apart by their start time, ended.
//!
//! Every process that the lab starts carries `RUNBOOK_LAB` (the lab's folder) and `RUNBOOK_LAB_ROLE`. Children inherit both,
//! so that `down` finds also what a command left running in the background, and after the daemon itself was killed.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde::{Deserialize, Serialize};

pub(crate) const MARK: &str = "RUNBOOK_LAB";
pub(crate) const ROLE: &str = "RUNBOOK_LAB_ROLE";

/// What a process of the lab is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The lab's own daemon.
    Daemon,
    /// A service such as the shop.
    Unit,
    /// Something run over SSH, and what it left running.
    Command,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Daemon => "daemon",
            Role::Unit => "unit",
            Role::Command => "command",
        }
    }
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pid {
    pub pid: i32,
    /// Clock ticks after boot at which it started.
    pub start: u64,
}

/// The state letter and start time in `/proc/PID/stat`. The command's name, in brackets, may hold anything.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

impl Pid {
    pub fn of(pid: i32) -> Option<Pid> {
        let (state, start) = parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        (state != 'Z' && state != 'X').then_some(Pid { pid, start })
    }

    pub fn me() -> Option<Pid> {
        i32::try_from(std::process::id()).ok().and_then(Pid::of)
    }

    pub fn alive(self) -> bool {
        Pid::of(self.pid) == Some(self)
    }

    pub fn signal(self, signal: Signal) {
        if self.alive()
            && let Some(p) = rustix::process::Pid::from_raw(self.pid)
        {
            // It may have ended since: that is what was wanted.
            let _ = kill_process(p, signal);
        }
    }
}

/// Every living process that carries the mark of the lab in `dir`, except the present one.
pub(crate) fn marked(dir: &Path, roles: &[Role]) -> Vec<Pid> {
    use std::os::unix::ffi::OsStrExt;
    let mark = [MARK.as_bytes(), b"=", dir.as_os_str().as_bytes()].concat();
    let roles: Vec<Vec<u8>> = roles.iter().map(|r| format!("{ROLE}={}", r.name()).into_bytes()).collect();
    let me = std::process::id();
    let Ok(proc) = std::fs::read_dir("/proc") else { return vec![] };
    proc.flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            if u32::try_from(pid).ok()? == me {
                return None;
            }
            let environ = std::fs::read(entry.path().join("environ")).ok()?;
            let mut vars = environ.split(|b| *b == 0);
            if !vars.clone().any(|v| v == mark) || !vars.any(|v| roles.iter().any(|r| r == v)) {
                return None;
            }
            Pid::of(pid)
        })
        .collect()
}

/// Ends processes: politely, then by force after `patience`. Blocks until they are gone (at most a few seconds more).
pub(crate) fn end(pids: &[Pid], patience: Duration) -> bool {
    for (signal, limit) in [(Signal::TERM, patience), (Signal::KILL, Duration::from_secs(5))] {
        for p in pids {
            p.signal(signal);
        }
        let until = Instant::now() + limit;
        while pids.iter().any(|p| p.alive()) {
            if Instant::now() > until {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    !pids.iter().any(|p| p.alive())
}

/// Ends every marked process with one of these roles, also those that are started meanwhile.
pub(crate) fn end_marked(dir: &Path, roles: &[Role], patience: Duration) -> bool {
    for _ in 0..5 {
        let pids = marked(dir, roles);
        if pids.is_empty() {
            return true;
        }
        end(&pids, patience);
    }
    marked(dir, roles).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_past_any_command_name() {
        let stat = "123 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(parse_stat(stat), Some(('S', 4242)));
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn marked_processes_are_found_with_their_children_and_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "sleep 60 & sleep 60; true"])
            .env(MARK, dir.path())
            .env(ROLE, "command")
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_secs(5);
        while marked(dir.path(), &[Role::Command]).len() < 3 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(marked(dir.path(), &[Role::Command]).len(), 3);
        assert!(marked(dir.path(), &[Role::Unit]).is_empty(), "the role counts");
        assert!(marked(&dir.path().join("other"), &[Role::Command]).is_empty(), "the folder counts");
        assert!(end_marked(dir.path(), &[Role::Command], Duration::from_millis(500)));
        child.wait().unwrap();
        assert!(marked(dir.path(), &[Role::Command]).is_empty());
    }
}
