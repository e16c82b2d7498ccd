//! Verifying a chain: an exported log, or a run in its store. Streams; holds one entry at a time.

use std::io::BufRead;

use super::canonical::{entry_hash, line};
use super::{Entry, GENESIS, Store};
use crate::error::{Code, Error, Result};

/// What a chain was found to be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Verified {
    /// How many entries it has.
    pub entries: u64,
    /// The hash of its last entry; 64 zeros without entries.
    pub head: String,
    /// How many entries follow the head that was asked for: those recorded since it was noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
}

/// Checks entries one after the other.
pub struct Verifier {
    next: u64,
    prev: String,
    run: Option<String>,
    wanted: Option<String>,
    found_at: Option<u64>,
}

impl Verifier {
    /// Begins a chain. With `head`, that hash must be in it: the chain was not cut before it.
    ///
    /// # Errors
    /// `RB0100` when `head` is no SHA-256 in hex.
    pub fn new(head: Option<&str>) -> Result<Self> {
        let wanted = head.map(|h| h.trim().to_ascii_lowercase());
        if let Some(h) = &wanted
            && (h.len() != 64 || !h.bytes().all(|b| b.is_ascii_hexdigit()))
        {
            return Err(Error::new(Code::USAGE, format!("\"{h}\" is not the hash of an entry")).hint("a head is 64 hexadecimal digits"));
        }
        let found_at = (wanted.as_deref() == Some(GENESIS)).then_some(0);
        Ok(Verifier { next: 0, prev: GENESIS.into(), run: None, wanted, found_at })
    }

    /// Checks the next entry: its place, its link to the one before, its own hash.
    ///
    /// # Errors
    /// `RB0017` naming the entry and what is wrong with it.
    pub fn add(&mut self, entry: &Entry) -> Result<()> {
        let seq = self.next;
        if entry.seq != seq {
            return Err(invalid(
                seq,
                if entry.seq > seq {
                    format!("entry {seq} is missing: entry {} stands in its place (removed or swapped)", entry.seq)
                } else {
                    format!("entry {} stands where entry {seq} should (inserted or swapped)", entry.seq)
                },
            ));
        }
        let hash = entry_hash(entry).map_err(|e| invalid(seq, format!("entry {seq} was changed: {}", e.message)))?;
        if hash != entry.hash {
            return Err(invalid(seq, format!("entry {seq} was changed: its content has the hash {hash}, not {}", entry.hash)));
        }
        if entry.prev != self.prev {
            return Err(invalid(seq, format!("entry {seq} does not follow the one before it: it names {}, not {}", entry.prev, self.prev)));
        }
        let run = self.run.get_or_insert_with(|| entry.run.clone());
        if *run != entry.run {
            return Err(invalid(seq, format!("entry {seq} is of run {}, not {run}", entry.run)));
        }
        self.next += 1;
        self.prev = hash;
        if self.wanted.as_ref() == Some(&self.prev) {
            self.found_at = Some(self.next);
        }
        Ok(())
    }

    /// Ends the chain.
    ///
    /// # Errors
    /// `RB0017` when the head that was asked for is not in it.
    pub fn end(self) -> Result<Verified> {
        let since = match (&self.wanted, self.found_at) {
            (Some(head), None) => {
                return Err(invalid(
                    self.next,
                    format!(
                        "the log has {} entries and ends with {}, without {head}: entries were cut off or replaced",
                        self.next, self.prev
                    ),
                ));
            }
            (_, at) => at.map(|at| self.next - at),
        };
        Ok(Verified { entries: self.next, head: self.prev, since })
    }
}

fn invalid(seq: u64, message: String) -> Error {
    Error::new(Code::AUDIT_INVALID, message)
        .hint("compare with a copy of the log that was kept elsewhere; what comes before this entry is as it was recorded")
        .detail("seq", seq)
}

/// Verifies entries. With `head`, that hash must be among them.
///
/// # Errors
/// `RB0017` naming the entry and what is wrong; what the iterator returns.
pub fn verify(entries: impl IntoIterator<Item = Result<Entry>>, head: Option<&str>) -> Result<Verified> {
    let mut verifier = Verifier::new(head)?;
    for entry in entries {
        verifier.add(&entry?)?;
    }
    verifier.end()
}

/// Verifies a run in its store.
///
/// # Errors
/// `RB0017` naming the entry and what is wrong, `RB0004` when the store cannot even be read, `RB0008` when there is no such run.
pub fn verify_run(store: &dyn Store, run: &str, head: Option<&str>) -> Result<Verified> {
    let mut verifier = Verifier::new(head)?;
    match store.entries(run, 0, &mut |entry| verifier.add(&entry)) {
        Ok(()) => verifier.end(),
        // The store has found the same by itself, while reading.
        Err(e) if e.code == Code::STORE_DAMAGED && e.details.contains_key("seq") => Err(invalid(verifier.next, e.message)),
        Err(e) => Err(e),
    }
}

/// Verifies a run and the store that holds it: a chain may be whole in a file that has begun to rot, and the other way round.
///
/// # Errors
/// All that is wrong: what [`verify_run`] finds, then what [`Store::check`] finds.
pub fn audit(store: &dyn Store, run: &str, head: Option<&str>) -> Result<Verified, Vec<Error>> {
    match (verify_run(store, run, head), store.check()) {
        (Ok(verified), Ok(())) => Ok(verified),
        (Err(e), Ok(())) | (Ok(_), Err(e)) => Err(vec![e]),
        (Err(chain), Err(file)) => Err(vec![chain, file]),
    }
}

/// Verifies an exported log byte by byte: each line must be exactly what [`line`] makes of its entry.
///
/// # Errors
/// `RB0017` naming the entry and what is wrong, or that the log is empty; `RB0002` when it cannot be read.
pub fn verify_lines(mut log: impl BufRead, head: Option<&str>) -> Result<Verified> {
    let mut verifier = Verifier::new(head)?;
    let mut text = Vec::new();
    loop {
        text.clear();
        let seq = verifier.next;
        let read = log.read_until(b'\n', &mut text);
        if read.map_err(|e| Error::new(Code::STORE, format!("the log cannot be read: {e}")).hint("look at the file and its disk"))? == 0 {
            break;
        }
        if text.pop() != Some(b'\n') {
            return Err(invalid(seq, format!("the line of entry {seq} is cut off")));
        }
        let entry: Entry =
            serde_json::from_slice(&text).map_err(|e| invalid(seq, format!("the line of entry {seq} cannot be read: {e}")))?;
        verifier.add(&entry)?;
        if line(&entry)?.as_bytes() != text {
            return Err(invalid(seq, format!("the line of entry {seq} was changed: it is not written as `audit export` writes it")));
        }
    }
    if verifier.next == 0 {
        return Err(invalid(0, "the log is empty".into()));
    }
    verifier.end()
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{log, ready};
    use super::super::memory::MemoryStore;
    use super::*;

    fn entries(n: usize) -> Vec<Entry> {
        let store = MemoryStore::default();
        let fence = ready(&store);
        (0..n).for_each(|i| store.append("r", fence, log(i)).unwrap());
        store.log("r")
    }

    fn check(entries: &[Entry], head: Option<&str>) -> Result<Verified> {
        verify(entries.iter().cloned().map(Ok), head)
    }

    fn wrong(entries: &[Entry], head: Option<&str>, seq: u64, what: &str) {
        let e = check(entries, head).unwrap_err();
        assert_eq!((e.code, e.details["seq"].as_str()), (Code::AUDIT_INVALID, seq.to_string().as_str()), "{e}");
        assert!(e.message.contains(what), "{e}");
    }

    /// Changes entry `i` and mends its own hash, as a forger would.
    fn forged(mut entries: Vec<Entry>, i: usize, change: impl Fn(&mut Entry)) -> Vec<Entry> {
        change(&mut entries[i]);
        entries[i].hash = entry_hash(&entries[i]).unwrap();
        entries
    }

    #[test]
    fn a_genuine_chain_verifies() {
        let all = entries(5);
        let head = all[4].hash.clone();
        assert_eq!(check(&all, None).unwrap(), Verified { entries: 5, head: head.clone(), since: None });
        assert_eq!(check(&all, Some(&head.to_uppercase())).unwrap().since, Some(0));
        assert_eq!(check(&all, Some(&all[1].hash)).unwrap().since, Some(3), "it has grown since");
        assert_eq!(check(&[], None).unwrap().head, GENESIS);
        assert_eq!(check(&all, Some("abc")).unwrap_err().code, Code::USAGE);
    }

    #[test]
    fn a_changed_removed_swapped_inserted_or_cut_entry_is_named() {
        let all = entries(5);
        let head = all[4].hash.clone();
        let mut changed = all.clone();
        changed[2].data["message"] = "other".into();
        wrong(&changed, None, 2, "changed");
        let mut changed = all.clone();
        changed[2].data["message"] = 1.5.into();
        wrong(&changed, None, 2, "changed");
        wrong(&forged(all.clone(), 2, |e| e.data["message"] = "other".into()), None, 3, "does not follow");
        wrong(&forged(all.clone(), 4, |e| e.data["message"] = "other".into()), Some(&head), 5, "replaced");
        wrong(&forged(all.clone(), 0, |e| e.prev = head.clone()), None, 0, "does not follow");
        wrong(&forged(all.clone(), 4, |e| e.run = "s".into()), None, 4, "is of run s");
        for i in 0..4 {
            let mut removed = all.clone();
            removed.remove(i);
            wrong(&removed, None, i as u64, "missing");
            let mut swapped = all.clone();
            swapped.swap(i, i + 1);
            wrong(&swapped, None, i as u64, "swapped");
            let mut inserted = all.clone();
            inserted.insert(i + 1, all[i].clone());
            wrong(&inserted, None, i as u64 + 1, "inserted");
        }
        check(&all[..3], None).unwrap();
        wrong(&all[..3], Some(&head), 3, "cut off");
    }

    #[test]
    fn every_changed_byte_of_an_exported_log_is_found() {
        let text: String = entries(3).iter().map(|e| line(e).unwrap() + "\n").collect();
        let text = text.into_bytes();
        let head = verify_lines(&text[..], None).unwrap().head;
        for i in 0..text.len() {
            let bits = (0..8).map(|bit| text[i] ^ (1 << bit));
            for byte in bits.chain(*b" \n\"\\0a").filter(|b| *b != text[i]) {
                let mut changed = text.clone();
                changed[i] = byte;
                let e = verify_lines(&changed[..], Some(&head)).expect_err("a changed byte");
                assert_eq!(e.code, Code::AUDIT_INVALID);
            }
            if i > 0 {
                verify_lines(&text[..i], Some(&head)).expect_err("cut off");
            }
        }
        verify_lines(&b""[..], None).expect_err("empty");
    }
}
