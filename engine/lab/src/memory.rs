//! What the customer remembers, on disk before it counts: each order's fate, one line each.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use runbook_core::Result;

use crate::failed;

/// What became of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Acknowledged by the shop.
    Placed,
    /// Answered with anything else, or not sent.
    Refused,
    /// Sent and not answered; asked about later.
    Unsure,
    /// Was unsure and is in the shop.
    Found,
    /// Was unsure and is not in the shop.
    Absent,
}

impl Fate {
    const ALL: [(Fate, &'static str); 5] =
        [(Fate::Placed, "placed"), (Fate::Refused, "refused"), (Fate::Unsure, "unsure"), (Fate::Found, "found"), (Fate::Absent, "absent")];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(f, _)| *f == self).map_or("", |(_, n)| n)
    }
}

/// The customer's count of orders and of the time without answers.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Ids that the shop has acknowledged, or that were found in it after an unanswered request.
    pub placed: BTreeSet<String>,
    pub unsure: BTreeSet<String>,
    pub refused: u64,
    /// Milliseconds since 1970 of the newest acknowledgement.
    last_ack: Option<u64>,
    /// When the present gap began: the acknowledgement before the first refusal.
    gap_from: Option<u64>,
    pub gaps: u64,
    gap_total: u64,
    gap_longest: u64,
}

impl Tally {
    fn take(&mut self, fate: Fate, id: &str, at: u64) {
        match fate {
            Fate::Placed => {
                self.placed.insert(id.to_string());
                if let Some(from) = self.gap_from.take() {
                    let gap = at.saturating_sub(from);
                    self.gaps += 1;
                    self.gap_total += gap;
                    self.gap_longest = self.gap_longest.max(gap);
                }
                // Answers come out of order when several requests are under way.
                self.last_ack = self.last_ack.max(Some(at));
            }
            Fate::Refused | Fate::Unsure => {
                if fate == Fate::Unsure {
                    self.unsure.insert(id.to_string());
                } else {
                    self.refused += 1;
                }
                if self.gap_from.is_none() {
                    self.gap_from = Some(self.last_ack.unwrap_or(at));
                }
            }
            Fate::Found => {
                self.unsure.remove(id);
                self.placed.insert(id.to_string());
            }
            Fate::Absent => {
                self.unsure.remove(id);
                self.refused += 1;
            }
        }
    }

    /// Whether the newest answers are refusals.
    pub fn in_gap(&self) -> bool {
        self.gap_from.is_some()
    }

    /// Time without acknowledged orders so far: all gaps together and the longest, the present one included.
    pub fn downtime(&self, now: u64) -> (Duration, Duration) {
        let present = self.gap_from.map_or(0, |from| now.saturating_sub(from));
        (Duration::from_millis(self.gap_total + present), Duration::from_millis(self.gap_longest.max(present)))
    }

    /// A new sitting: the time since the last one is nobody's downtime.
    fn pause(&mut self) {
        self.last_ack = None;
        self.gap_from = None;
    }
}

/// The memory on disk and its tally.
pub(crate) struct Memory {
    file: File,
    path: PathBuf,
    pub tally: Tally,
}

impl Memory {
    /// Reads what was remembered, without writing anything.
    pub fn read(path: &Path) -> Result<Tally> {
        let mut tally = Tally::default();
        let text = match std::fs::read_to_string(path) {
            Ok(t) => t,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(tally),
            Err(e) => return Err(failed(format!("{} cannot be read", path.display()), e)),
        };
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(fate), Some(id), Some(at)) = (words.next(), words.next(), words.next()) else { continue };
            // A line cut short by a crash was not acted upon.
            let (Some((fate, _)), Ok(at)) = (Fate::ALL.iter().find(|(_, n)| *n == fate), at.parse()) else { continue };
            tally.take(*fate, id, at);
        }
        tally.pause();
        Ok(tally)
    }

    pub fn open(path: &Path) -> Result<Memory> {
        use std::os::unix::fs::OpenOptionsExt;
        let tally = Memory::read(path)?;
        let open = || -> std::io::Result<File> {
            let mut f = File::options().create(true).append(true).mode(0o600).open(path)?;
            // Ends a line that a crash cut short.
            f.write_all(b"\n")?;
            Ok(f)
        };
        let file = open().map_err(|e| failed(format!("{} cannot be written", path.display()), e))?;
        Ok(Memory { file, path: path.to_path_buf(), tally })
    }

    /// Remembers a fate: on file first, then in the count.
    pub fn note(&mut self, fate: Fate, id: &str, at: u64) -> Result<()> {
        self.file
            .write_all(format!("{} {id} {at}\n", fate.name()).as_bytes())
            .map_err(|e| failed(format!("{} cannot be written", self.path.display()), e))?;
        self.tally.take(fate, id, at);
        Ok(())
    }

    pub fn forget(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(|e| failed(format!("{} cannot be emptied", self.path.display()), e))?;
        self.tally = Tally::default();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn downtime_runs_from_the_last_order_before_to_the_first_after() {
        let mut t = Tally::default();
        for at in [100, 120, 140] {
            t.take(Fate::Placed, &at.to_string(), at);
        }
        t.take(Fate::Refused, "a", 160);
        t.take(Fate::Refused, "b", 180);
        assert!(t.in_gap());
        assert_eq!(t.downtime(190).0, Duration::from_millis(50), "the present gap counts");
        t.take(Fate::Placed, "c", 240);
        t.take(Fate::Placed, "d", 900);
        assert_eq!(t.downtime(5_000).0, Duration::from_millis(100), "a slow answer without refusals is no downtime");
        t.take(Fate::Refused, "e", 920);
        t.take(Fate::Placed, "f", 930);
        let ms = Duration::from_millis;
        assert_eq!((t.downtime(5_000), t.gaps, t.refused), ((ms(130), ms(100)), 2, 3));
    }

    #[test]
    fn memory_survives_and_a_torn_line_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("orders.log");
        let mut m = Memory::open(&path).unwrap();
        m.note(Fate::Placed, "a", 10).unwrap();
        m.note(Fate::Unsure, "b", 20).unwrap();
        m.note(Fate::Unsure, "c", 30).unwrap();
        m.note(Fate::Found, "b", 40).unwrap();
        m.note(Fate::Absent, "c", 50).unwrap();
        m.file.write_all(b"placed d").unwrap();
        drop(m);
        let mut m = Memory::open(&path).unwrap();
        m.note(Fate::Placed, "e", 9_000).unwrap();
        let placed: Vec<&str> = m.tally.placed.iter().map(String::as_str).collect();
        assert_eq!((placed, m.tally.refused, m.tally.unsure.len()), (vec!["a", "b", "e"], 1, 0));
        assert_eq!(m.tally.downtime(9_000).0, Duration::ZERO, "nothing counts while the lab was down");
        m.forget().unwrap();
        m.note(Fate::Placed, "z", 1).unwrap();
        assert_eq!(Memory::read(&path).unwrap().placed.len(), 1);
    }
}
