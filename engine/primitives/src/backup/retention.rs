//! Which snapshots are kept: the rules of `restic forget` and `borg prune`, the same for every kind of repository.
//!
//! Each rule keeps the newest snapshot of each of so many of the newest hours, days, weeks (ISO 8601), months or years in which there is
//! one; what any rule keeps stays. Days begin at midnight in UTC. Snapshots of different hosts or paths are counted apart.
//! <https://restic.readthedocs.io/en/stable/060_forget.html#removing-snapshots-according-to-a-policy>

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::repository::Snapshot;

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Keep {
    /// So many of the newest.
    pub last: usize,
    /// The newest of so many hours.
    pub hourly: usize,
    /// The newest of so many days.
    pub daily: usize,
    /// The newest of so many weeks.
    pub weekly: usize,
    /// The newest of so many months.
    pub monthly: usize,
    /// The newest of so many years.
    pub yearly: usize,
    /// All that are not older than this, counted from the newest of the group.
    pub within: Duration,
    /// All with one of these tags.
    pub tags: Vec<String>,
}

impl Keep {
    /// Whether nothing at all would be kept.
    pub(super) fn nothing(&self) -> bool {
        *self == Keep::default()
    }

    /// Divides snapshots into those that stay and those that go, each oldest first.
    pub(super) fn divide(&self, all: &[Snapshot]) -> (Vec<Snapshot>, Vec<Snapshot>) {
        let mut groups: BTreeMap<(String, Vec<String>), Vec<&Snapshot>> = BTreeMap::new();
        for s in all {
            let mut paths = s.paths.clone();
            paths.sort();
            groups.entry((s.host.clone(), paths)).or_default().push(s);
        }
        let mut stay = std::collections::BTreeSet::new();
        for group in groups.values_mut() {
            group.sort_by(|a, b| b.time.cmp(&a.time).then_with(|| b.id.cmp(&a.id)));
            for s in self.of_group(group) {
                stay.insert(s.id.clone());
            }
        }
        all.iter().cloned().partition(|s| stay.contains(&s.id))
    }

    fn of_group<'a>(&self, newest_first: &[&'a Snapshot]) -> Vec<&'a Snapshot> {
        let Some(newest) = newest_first.first() else { return vec![] };
        let mut stay: Vec<&Snapshot> = newest_first.iter().take(self.last).copied().collect();
        let spans =
            [(self.hourly, "%Y-%m-%d %H"), (self.daily, "%Y-%m-%d"), (self.weekly, "%G-%V"), (self.monthly, "%Y-%m"), (self.yearly, "%Y")];
        for (count, span) in spans {
            // In order of time, those of one span stand side by side.
            let (mut left, mut last) = (count, String::new());
            for s in newest_first {
                let at = span_of(s.time, span);
                if at == last {
                    continue;
                }
                if left == 0 {
                    break;
                }
                (left, last) = (left - 1, at);
                stay.push(s);
            }
        }
        let age = |s: &Snapshot| Duration::try_from(newest.time.duration_since(s.time)).unwrap_or_default();
        stay.extend(newest_first.iter().filter(|s| !self.within.is_zero() && age(s) <= self.within));
        stay.extend(newest_first.iter().filter(|s| s.tags.iter().any(|t| self.tags.contains(t))));
        stay
    }
}

fn span_of(t: Timestamp, span: &str) -> String {
    t.to_zoned(TimeZone::UTC).strftime(span).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(time: &str, host: &str) -> Snapshot {
        let json = format!(
            r#"{{"id":"{time}{host}","action":"","time":"{time}","host":"{host}","paths":["/srv"],"files":1,"bytes":1,"archive":""}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    fn ids(all: &[Snapshot]) -> Vec<&str> {
        all.iter().map(|s| s.id.get(..10).unwrap()).collect()
    }

    #[test]
    fn the_newest_of_each_span_stays() {
        let all: Vec<Snapshot> = [
            "2025-12-31T23:00:00Z",
            "2026-01-01T01:00:00Z",
            "2026-01-01T23:00:00Z",
            "2026-01-05T00:00:00Z",
            "2026-02-01T12:00:00Z",
            "2026-02-02T12:00:00Z",
        ]
        .iter()
        .map(|t| at(t, "old"))
        .collect();
        let (stay, go) = Keep { daily: 3, ..Keep::default() }.divide(&all);
        assert_eq!(ids(&stay), ["2026-01-05", "2026-02-01", "2026-02-02"]);
        assert_eq!(go.len(), 3);
        let (stay, _) = Keep { monthly: 9, ..Keep::default() }.divide(&all);
        assert_eq!(ids(&stay), ["2025-12-31", "2026-01-05", "2026-02-02"]);
        // 2025-12-31 and 2026-01-01 are of one week.
        let (stay, _) = Keep { weekly: 9, ..Keep::default() }.divide(&all);
        assert_eq!(ids(&stay), ["2026-01-01", "2026-01-05", "2026-02-01", "2026-02-02"]);
        let (stay, _) = Keep { within: Duration::from_secs(86_400), ..Keep::default() }.divide(&all);
        assert_eq!(ids(&stay), ["2026-02-01", "2026-02-02"]);
    }

    #[test]
    fn hosts_are_counted_apart_and_tags_stay() {
        let mut all = vec![at("2020-01-01T00:00:00Z", "gone"), at("2026-01-01T00:00:00Z", "old"), at("2026-01-02T00:00:00Z", "old")];
        let (stay, go) = Keep { last: 1, ..Keep::default() }.divide(&all);
        assert_eq!((ids(&stay), ids(&go)), (vec!["2020-01-01", "2026-01-02"], vec!["2026-01-01"]));
        all[1].tags = vec!["before-cutover".into()];
        let (_, go) = Keep { last: 1, tags: vec!["before-cutover".into()], ..Keep::default() }.divide(&all);
        assert!(go.is_empty());
    }

    proptest! {
        #[test]
        fn the_newest_of_a_host_always_stays(seconds in proptest::collection::vec(0i64..40_000_000, 1..40), count in 1usize..4, rule in 0usize..6) {
            let all: Vec<Snapshot> = seconds
                .iter()
                .map(|s| at(&Timestamp::from_second(1_700_000_000 + s).unwrap().to_string(), "old"))
                .collect();
            let mut keep = Keep::default();
            *[&mut keep.last, &mut keep.hourly, &mut keep.daily, &mut keep.weekly, &mut keep.monthly, &mut keep.yearly][rule] = count;
            let (stay, go) = keep.divide(&all);
            prop_assert_eq!(stay.len() + go.len(), all.len());
            let newest = all.iter().map(|s| s.time).max();
            prop_assert_eq!(stay.iter().map(|s| s.time).max(), newest);
            // Done again, nothing more goes.
            prop_assert!(keep.divide(&stay).1.is_empty());
        }
    }
}
