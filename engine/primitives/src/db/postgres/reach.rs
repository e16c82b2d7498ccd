//! Whether base backup and archive lead beyond doubt to where a recovery should end, and where exactly that is.

use runbook_core::{Code, Error, Result};

use super::archived::{Ends, More, Piece};
use super::base::Base;
use super::state::Lsn;
use super::target::Stop;
use super::wal::{Commit, Found, Wanted};
use crate::db::driver::Db;

/// The error of a recovery that cannot be.
pub(super) fn refused(db: &Db, why: String) -> Error {
    Error::new(Code::DB_POSITION, format!("\"{}\" cannot be recovered to there: {why}", db.name)).host(&db.host)
}

/// The first commit that is left out, when base backup and archive lead there beyond doubt; `None` when the end was asked for.
///
/// With `unfinished` the newest segment may break off in its middle.
pub(super) fn check(db: &Db, wanted: Wanted, unfinished: bool, base: &Base, piece: &Piece, found: &Found) -> Result<Option<Commit>> {
    let early = |what: String| Err(refused(db, what).hint("take an earlier base backup"));
    match wanted {
        // Nothing of what came before it began is looked at.
        Wanted::Time(t) if found.before.is_none() && t < base.begun => {
            return early(format!("the base backup began at {}, and {t} is before that", base.begun));
        }
        Wanted::Lsn(l) if l < base.start || l < base.end && found.target.as_ref().is_none_or(|t| t.lsn < base.end) => {
            return early(format!("{l} is before the base backup's end, {}", base.end));
        }
        _ => {}
    }
    if let Some(target) = &found.target {
        if target.lsn < base.end {
            return early(format!("{} is before the base backup's end, {}", target.show(), base.end));
        }
        return Ok(Some(target.clone()));
    }
    let upto =
        found.before.as_ref().map_or_else(|| "no transaction is in it".into(), |b| format!("its last transaction is at {}", b.show()));
    let lost = if wanted == Wanted::End {
        "find that segment, on the primary (pg_wal) or in another copy of the archive, and put it there; to do without it and everything behind it, move that elsewhere"
    } else {
        "find that segment, on the primary (pg_wal) or in another copy of the archive, and put it there"
    };
    if let Some(said) = &found.stopped {
        let at = segment(said, base);
        let place = at.as_ref().map_or(String::new(), |s| format!(" in {s}"));
        if said.contains("Permission denied") {
            let what = format!("the archived log cannot be read{place}: {said}; {upto}");
            return Err(refused(db, what).hint("it must belong to the user to whom the cluster belongs (chown -R)"));
        }
        let newest = wanted == Wanted::End && at.is_some() && at == piece.last && piece.ends == Ends::Here;
        if !(newest && unfinished) {
            let more = "; unfinished: true takes what it has before that, if it is the newest one of a lost server's pg_wal";
            let what = format!("the archived log is damaged or ends{place}: {said}; {upto}");
            return Err(refused(db, what).hint(format!("{lost}{}", if newest { more } else { "" })));
        }
    }
    match &piece.ends {
        Ends::Gap(s) => Err(refused(db, format!("the archive has a gap: {s} is missing; before it, {upto}")).hint(lost)),
        Ends::Short(s, n) => {
            let what = format!("the archived segment {s} is damaged: it has {n} of {} bytes; before it, {upto}", base.segment_size);
            Err(refused(db, what).hint(lost))
        }
        Ends::Here if wanted == Wanted::End => match &piece.more {
            None => Ok(None),
            Some(More::Timeline(f)) => {
                let what = format!(
                    "the log in the archive goes on on another timeline ({f}) than the base backup's, {}; before that, {upto}",
                    base.timeline()
                );
                Err(refused(db, what)
                    .hint("take a base backup that was made on that timeline; to do without what is on it, move its files elsewhere"))
            }
            Some(More::Form(f)) => Err(refused(db, format!("the archive has {f}, which is no whole segment; before it, {upto}"))
                .hint("unpack it there under the segment's own name; to do without it and everything behind it, move that elsewhere")),
        },
        Ends::Here => {
            let last = piece.last.as_deref().unwrap_or("");
            Err(refused(db, format!("nothing would be left out: the archive ends with {last}, and {upto}")).hint(
                "give an earlier moment, or put later segments into the archive; recover_to(\"end\", …) brings it to the end of what is there",
            ))
        }
    }
}

/// Where recovery ends.
pub(super) fn stop(wanted: Wanted, base: &Base, last: Option<&Commit>) -> Stop {
    match (wanted, last.filter(|c| c.lsn >= base.end)) {
        // Right behind the last commit that is wanted, and not at the first that is not: its locks would be held there.
        (Wanted::Time(_) | Wanted::Lsn(_), last) => Stop::Before(last.map_or(base.end, |c| Lsn(c.lsn.0 + 1))),
        // What comes behind it may have been lost with the server.
        (Wanted::End, Some(last)) => Stop::Behind(last.lsn),
        (Wanted::End, None) => Stop::Consistent,
    }
}

/// The segment of which the tool speaks: by its name, or by the last position that it tells.
fn segment(said: &str, base: &Base) -> Option<String> {
    let words = || said.split(|c: char| !c.is_ascii_hexdigit() && c != '/');
    if let Some(name) = words().find(|w| w.len() == 24 && !w.contains('/')) {
        return Some(name.to_string());
    }
    let at = words().filter_map(Lsn::parse).next_back()?;
    let timeline = base.segment.get(..8)?;
    Some(format!("{timeline}{:08X}{:08X}", at.0 >> 32, (at.0 & 0xffff_ffff) / base.segment_size))
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use runbook_core::inventory::Resource;

    use super::*;

    fn commit(lsn: u64, time: &str) -> Commit {
        Commit { lsn: Lsn(lsn), xid: "7".into(), time: time.parse().unwrap(), files: vec![] }
    }

    pub(in crate::db::postgres) fn base() -> Base {
        Base {
            id: "act-1".into(),
            system: "1".into(),
            major: 15,
            segment: "000000010000000000000001".into(),
            start: Lsn(0x100_0028),
            end: Lsn(0x100_1000),
            begun: "2026-11-22T11:00:00Z".parse().unwrap(),
            segment_size: 16 << 20,
            at_least: vec![],
            bytes: 0,
        }
    }

    #[test]
    fn base_backup_and_archive_lead_there_beyond_doubt() {
        let db = Db {
            name: "rescue".into(),
            host: "h".into(),
            settings: Resource { name: "rescue".into(), kind: "postgresql".into(), settings: BTreeMap::new() },
        };
        let (early, noon, late) = ("2026-11-22T10:59:00Z", "2026-11-22T12:00:00Z", "2026-11-22T13:00:00Z");
        let at = |t: &str| Wanted::Time(t.parse().unwrap());
        let piece = |ends| Piece { last: Some("000000010000000000000003".into()), end: Lsn(0x400_0000), ends, more: None };
        let of = |target: Option<Commit>, before: Option<Commit>| Found { target, before, stopped: None };
        let ask = |wanted, found: &Found, ends| check(&db, wanted, false, &base(), &piece(ends), found).map_err(|e| e.message);
        let found = of(Some(commit(0x200_0000, late)), None);
        assert_eq!(ask(at(noon), &found, Ends::Here).unwrap().unwrap().lsn, Lsn(0x200_0000));
        assert!(ask(at(early), &found, Ends::Here).unwrap_err().contains("the base backup began at 2026-11-22T11:00:00Z"));
        let inside = of(Some(commit(0x100_0800, noon)), None);
        assert!(ask(at(noon), &inside, Ends::Here).unwrap_err().contains("is before the base backup's end, 0/1001000"));
        assert!(ask(Wanted::Lsn(Lsn(0x100_0100)), &inside, Ends::Here).unwrap_err().contains("0/1000100 is before"));
        // What was committed before it began is not looked at, and may be in it.
        assert!(ask(Wanted::Lsn(Lsn(0x100_0000)), &found, Ends::Here).unwrap_err().contains("0/1000000 is before"));
        // A position within the backup, with nothing committed until its end, is as good as its end.
        assert_eq!(ask(Wanted::Lsn(Lsn(0x100_0100)), &found, Ends::Here).unwrap().unwrap().lsn, Lsn(0x200_0000));
        let none = of(None, Some(commit(0x200_0000, noon)));
        assert!(
            ask(at(late), &none, Ends::Here)
                .unwrap_err()
                .contains("nothing would be left out: the archive ends with 000000010000000000000003")
        );
        assert!(
            ask(at(late), &none, Ends::Gap("X4".into()))
                .unwrap_err()
                .contains("has a gap: X4 is missing; before it, its last transaction is at 0/2000000")
        );
        assert!(ask(at(late), &none, Ends::Short("X4".into(), 12)).unwrap_err().contains("X4 is damaged: it has 12 of 16777216 bytes"));
        assert_eq!(ask(Wanted::End, &none, Ends::Here).unwrap(), None);
        assert!(ask(Wanted::End, &none, Ends::Gap("X4".into())).unwrap_err().contains("has a gap: X4 is missing"));
        assert!(ask(Wanted::End, &none, Ends::Short("X4".into(), 12)).unwrap_err().contains("X4 is damaged"));
        let more =
            |more| check(&db, Wanted::End, false, &base(), &Piece { more: Some(more), ..piece(Ends::Here) }, &none).unwrap_err().message;
        assert!(
            more(More::Timeline("00000002.history".into()))
                .contains("goes on on another timeline (00000002.history) than the base backup's, 1; before that, its last")
        );
        assert!(more(More::Form("X4.gz".into())).contains("the archive has X4.gz, which is no whole segment; before it, its last"));
        let bad = Found { stopped: Some("error in WAL record at 0/2000148: incorrect checksum in record at 0/3000180".into()), ..none };
        for wanted in [at(late), Wanted::End] {
            let said = ask(wanted, &bad, Ends::Here).unwrap_err();
            assert!(said.contains("is damaged or ends in 000000010000000000000003: error in WAL"), "{said}");
        }
        // Where the log breaks off in the newest segment that is taken when it is said, and nowhere else.
        let unfinished = |wanted, piece: Piece| check(&db, wanted, true, &base(), &piece, &bad).map_err(|e| e.message);
        assert_eq!(unfinished(Wanted::End, piece(Ends::Here)).unwrap(), None);
        let before = Piece { last: Some("000000010000000000000004".into()), ..piece(Ends::Here) };
        let more = Piece { more: Some(More::Form("X4.gz".into())), ..piece(Ends::Here) };
        for (wanted, piece) in
            [(at(late), piece(Ends::Here)), (Wanted::End, piece(Ends::Gap("X4".into()))), (Wanted::End, before), (Wanted::End, more)]
        {
            assert!(unfinished(wanted, piece).is_err());
        }
        let hidden = Found { stopped: Some("could not open file \"000000010000000000000002\": Permission denied".into()), ..bad.clone() };
        assert!(ask(Wanted::End, &hidden, Ends::Here).unwrap_err().contains("the archived log cannot be read in 000000010000000000000002"));
    }

    #[test]
    fn it_ends_where_nothing_need_come_after_it() {
        let (in_it, behind) = (commit(0x100_0800, "2026-11-22T12:00:00Z"), commit(0x200_0000, "2026-11-22T12:00:00Z"));
        let at = Wanted::Lsn(Lsn(0x300_0000));
        assert_eq!(stop(at, &base(), Some(&behind)), Stop::Before(Lsn(0x200_0001)));
        assert_eq!(stop(at, &base(), Some(&in_it)), Stop::Before(base().end));
        assert_eq!(stop(Wanted::End, &base(), Some(&behind)), Stop::Behind(behind.lsn));
        for last in [None, Some(&in_it)] {
            assert_eq!(stop(Wanted::End, &base(), last), Stop::Consistent);
        }
    }
}
