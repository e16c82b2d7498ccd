//! An archive of the write-ahead log on a host: which segments it has in one piece from a base backup on.

use runbook_core::{Code, Error, Result};

use super::base::Base;
use super::cluster::Cluster;
use super::state::Lsn;
use crate::ssh::quote;

/// Why a piece of the log ends where it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ends {
    /// Nothing comes after it.
    Here,
    /// This segment is missing, and later ones are there.
    Gap(String),
    /// This segment is not whole.
    Short(String, u64),
}

/// The segments of one timeline that follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// The last of them; `None` when not even the first is there.
    pub last: Option<String>,
    /// Where it ends.
    pub end: Lsn,
    /// Why.
    pub ends: Ends,
    /// Whether more has been archived than what follows each other here.
    pub more: Option<More>,
}

/// What shows that the log went on behind a piece, and cannot be read as its next segment. What explains more comes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum More {
    /// A file of a later timeline.
    Timeline(String),
    /// A later segment in another form: compressed, or `.partial`.
    Form(String),
}

/// The timeline of a segment, and its number; what comes behind the name of the segment is not looked at.
pub(super) fn number(name: &str, size: u64) -> Option<(u32, u64)> {
    let part = |from: usize| u32::from_str_radix(name.get(from..from + 8)?, 16).ok();
    Some((part(0)?, u64::from(part(8)?) * (0x1_0000_0000 / size.max(1)) + u64::from(part(16)?)))
}

pub(super) fn name(timeline: u32, number: u64, size: u64) -> String {
    let each = (0x1_0000_0000 / size.max(1)).max(1);
    format!("{timeline:08X}{:08X}{:08X}", number / each, number % each)
}

/// The piece that begins with `first`, of what is there with its sizes, in any order.
fn piece(first: &str, size: u64, there: &[(String, u64)]) -> Option<Piece> {
    let (timeline, from) = number(first, size)?;
    let mut numbers: Vec<(u64, u64)> = there
        .iter()
        .filter(|(name, _)| name.len() == 24)
        .filter_map(|(n, bytes)| number(n, size).filter(|(t, n)| *t == timeline && *n >= from).map(|(_, n)| (n, *bytes)))
        .collect();
    numbers.sort_unstable();
    let (mut next, mut ends) = (from, Ends::Here);
    for (n, bytes) in numbers {
        if n != next {
            ends = Ends::Gap(name(timeline, next, size));
            break;
        }
        if bytes != size {
            ends = Ends::Short(name(timeline, n, size), bytes);
            break;
        }
        next += 1;
    }
    if next == from && ends == Ends::Here {
        ends = Ends::Gap(first.to_string());
    }
    let more = there.iter().map(|(n, _)| n).filter_map(|n| more(n, timeline, next, size)).min();
    Some(Piece { last: (next > from).then(|| name(timeline, next - 1, size)), end: Lsn(next * size), ends, more })
}

/// Whether a file shows that the log went on from the segment `next` of a timeline in another way.
fn more(file: &str, timeline: u32, next: u64, size: u64) -> Option<More> {
    let of = u32::from_str_radix(file.get(..8)?, 16).ok()?;
    if of > timeline {
        return Some(More::Timeline(file.to_string()));
    }
    // `.backup` tells of a base backup.
    let other = file.len() > 24 && !file.ends_with(".backup") && number(file, size).is_some_and(|(t, n)| t == timeline && n >= next);
    other.then(|| More::Form(file.to_string()))
}

/// Looks at the archive in a folder of the cluster's host.
///
/// # Errors
/// `RB0505` when it cannot be read, or is of another cluster.
pub(super) async fn look(cluster: &Cluster<'_>, folder: &str, base: &Base) -> Result<Piece> {
    let db = cluster.db();
    let script = format!(
        "cd {} && ls >/dev/null || exit 1; ls | grep -E '^[0-9A-F]{{8}}([0-9A-F]{{16}}([.][[:alnum:]._-]+)?|[.]history)$' | xargs -r stat -c '%n %s' || exit 1\n\
         for s in {} $(ls | grep -E '^[0-9A-F]{{24}}$' | tail -n 1); do\n\
         [ ! -e \"$s\" ] || {{ i=$(od -A n -t u8 -j 24 -N 8 \"$s\") && echo \"system $s $i\"; }} || exit 1; done",
        quote(folder),
        quote(&base.segment)
    );
    let text = cluster
        .must(&format!("reading the archive in {folder}"), &script, None)
        .await
        .map_err(|e| e.hint("the folder must be there, and belong to the user to whom the cluster belongs (chown -R)"))?;
    let mut there = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["system", segment, system] if *system != base.system => {
                let what = format!(
                    "{segment} in {folder} is of another cluster ({system}) than the base backup ({}), so that \"{}\" cannot be recovered from both",
                    base.system, db.name
                );
                return Err(Error::new(Code::DB_COPY, what).host(&db.host).hint("give base backup and archive of the same server"));
            }
            [name, bytes] => there.extend(bytes.parse().ok().map(|b| ((*name).to_string(), b))),
            _ => {}
        }
    }
    piece(&base.segment, base.segment_size, &there)
        .ok_or_else(|| Error::new(Code::DB_COPY, format!("the base backup says that it begins in {}, which is no segment", base.segment)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 16 << 20;

    fn find(first: &str, there: &[&str]) -> Piece {
        let there: Vec<(String, u64)> = there.iter().map(|n| ((*n).to_string(), SIZE)).collect();
        piece(first, SIZE, &there).unwrap()
    }

    #[test]
    fn segments_follow_each_other_over_the_limit_of_a_log() {
        let all = ["0000000100000000000000FE", "0000000100000000000000FF", "000000010000000100000000", "000000020000000100000001"];
        let p = find(all[0], &all);
        assert_eq!((p.last.as_deref(), p.end, p.ends), (Some("000000010000000100000000"), Lsn(0x1_0100_0000), Ends::Here));
        let p = find(all[2], &all);
        assert_eq!((p.last.as_deref(), p.ends), (Some(all[2]), Ends::Here));
    }

    #[test]
    fn gaps_and_short_segments_end_a_piece() {
        let s = |n: u32| format!("0000000100000000{n:08X}");
        let p = find(&s(3), &[&s(2), &s(3), &s(4), &s(6)]);
        assert_eq!((p.last, p.ends), (Some(s(4)), Ends::Gap(s(5))));
        assert_eq!(find(&s(3), &[&s(2)]).ends, Ends::Gap(s(3)));
        assert_eq!(find(&s(3), &[&s(4)]).ends, Ends::Gap(s(3)));
        let there = [(s(3), SIZE), (s(4), 12), (s(5), SIZE)];
        let short = Piece { last: Some(s(3)), end: Lsn(4 * SIZE), ends: Ends::Short(s(4), 12), more: None };
        assert_eq!(piece(&s(3), SIZE, &there).unwrap(), short);
        assert_eq!(piece("none", SIZE, &there), None);
    }

    #[test]
    fn what_goes_on_in_another_way_is_seen() {
        let s = |n: u32, more: &str| format!("0000000100000000{n:08X}{more}");
        let more = |there: &[&str]| {
            let three = s(3, "");
            let p = find(&three, &[&[three.as_str()], there].concat());
            assert_eq!((p.last, p.ends), (Some(three), Ends::Here));
            p.more
        };
        assert_eq!(
            more(&["00000001.history", &s(3, ".00000028.backup"), &s(3, ".partial"), &s(2, ".gz"), &s(7, ".00000028.backup")]),
            None
        );
        assert_eq!(more(&[&s(4, ".partial")]), Some(More::Form(s(4, ".partial"))));
        assert_eq!(more(&[&s(6, ".zst"), &s(5, ".zst")]), Some(More::Form(s(5, ".zst"))));
        assert_eq!(more(&["00000002.history", &s(4, ".partial")]), Some(More::Timeline("00000002.history".into())));
        assert_eq!(more(&["00000002.history"]), Some(More::Timeline("00000002.history".into())));
        assert_eq!(more(&["000000020000000000000004"]), Some(More::Timeline("000000020000000000000004".into())));
    }
}
