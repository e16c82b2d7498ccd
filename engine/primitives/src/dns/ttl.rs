//! The TTL rule as pure logic: what is remembered when a TTL is lowered, and how long caches may still hold the old answer.

use std::collections::BTreeMap;
use std::time::Duration;

use hickory_proto::rr::{Name, RecordType};
use jiff::{SignedDuration, Timestamp};
use runbook_core::Value;

use super::name;

/// A TTL up to this counts as short: moving a name with it needs no preparation.
pub const SHORT: Duration = Duration::from_secs(300);

/// Caches count in whole seconds: one may drop an answer this much later than its TTL says.
const GRACE_S: u64 = 1;

/// What is remembered of a record set whose TTL was lowered. A fact of the environment; it outlives runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Lowered {
    /// The TTL in seconds before the first `lower_ttl`.
    pub original: u32,
    /// The TTL in seconds that it was lowered to last.
    pub to: u32,
    /// The longest TTL in seconds under which caches may have taken the old answer.
    pub longest: u32,
    /// From when every cache must have dropped the old answer. `None`: the lowering has begun and is not confirmed at every
    /// name server, so that the time has not even begun to run.
    pub gone_at: Option<Timestamp>,
    /// The values that caches may hold under the old TTL.
    pub values: Vec<String>,
}

/// The fact's name.
pub fn fact_key(name: &Name, ty: RecordType) -> String {
    format!("dns.ttl/{}/{ty}", name::show(name))
}

fn gone_at(now: Timestamp, ttl: u32) -> Timestamp {
    let wait = SignedDuration::from_secs(i64::try_from(u64::from(ttl) + GRACE_S).unwrap_or(i64::MAX));
    now.checked_add(wait).unwrap_or(Timestamp::MAX)
}

impl Lowered {
    /// Begins to lower from `current`, with what is remembered from before. Written before the record is changed.
    pub fn begin(before: Option<Lowered>, current: u32, to: u32, values: &[String], now: Timestamp) -> Lowered {
        let Some(b) = before else {
            return Lowered { original: current, to, longest: current, gone_at: None, values: values.to_vec() };
        };
        // Raised by hand since: that TTL is what the owner wants back.
        let original = if current > b.to { current } else { b.original };
        let running = b.gone_at.is_none_or(|t| t > now);
        let mut all = values.to_vec();
        if running {
            all.extend(b.values.iter().filter(|v| !values.contains(v)).cloned());
        }
        // An older TTL that still runs is not forgotten: what is left of it may be more than the present TTL.
        let left = b.gone_at.map_or(b.longest, |t| seconds_up(left(t, now)));
        Lowered { original, to, longest: current.max(if running { left } else { 0 }), gone_at: None, values: all }
    }

    /// Confirms that from `now` on no name server hands out the old TTL any more.
    #[must_use]
    pub fn confirm(mut self, now: Timestamp) -> Lowered {
        self.gone_at = Some(gone_at(now, self.longest));
        self
    }

    /// The form in which it is kept.
    pub fn to_value(&self) -> Value {
        Value::Map(BTreeMap::from([
            ("original_s".to_string(), self.original.into()),
            ("to_s".to_string(), self.to.into()),
            ("longest_s".to_string(), self.longest.into()),
            ("gone_at".to_string(), self.gone_at.into()),
            ("values".to_string(), Value::List(self.values.iter().map(|v| v.as_str().into()).collect())),
        ]))
    }

    /// Reads the kept form; `None` when nothing is remembered.
    pub fn from_value(value: &Value) -> Option<Lowered> {
        let m = value.as_map()?;
        let number = |key: &str| m.get(key).and_then(Value::as_int).and_then(|n| u32::try_from(n).ok());
        Some(Lowered {
            original: number("original_s")?,
            to: number("to_s")?,
            longest: number("longest_s")?,
            gone_at: if let Some(Value::Time(t)) = m.get("gone_at") { Some(*t) } else { None },
            values: m.get("values")?.as_list()?.iter().filter_map(|v| v.as_str().map(str::to_string)).collect(),
        })
    }
}

fn left(until: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(until.duration_since(now)).unwrap_or(Duration::ZERO)
}

fn seconds_up(d: Duration) -> u32 {
    u32::try_from(d.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

/// How long the old TTL still runs, for [`wait_ttl`](super::wait_ttl); zero when it has run out.
pub fn still_running(fact: &Lowered, now: Timestamp) -> Duration {
    fact.gone_at.map_or(Duration::from_secs(u64::from(fact.longest) + GRACE_S), |t| left(t, now))
}

/// How long caches may still hold another answer than `wanted`, as far as that matters: not for a short TTL, nor for the TTL to
/// which the name was lowered.
pub fn stale_for(fact: Option<&Lowered>, current: u32, current_values: &[String], wanted: &[String], now: Timestamp) -> Duration {
    let tolerated = fact.map_or(SHORT, |f| SHORT.max(Duration::from_secs(u64::from(f.to))));
    let now_out = Duration::from_secs(u64::from(current));
    let held_now = current_values.iter().any(|v| !wanted.contains(v)) && now_out > tolerated;
    let mut stale = if held_now { now_out } else { Duration::ZERO };
    // Going back to what caches hold under the old TTL makes nobody's answer stale.
    if let Some(f) = fact.filter(|f| f.values.iter().any(|v| !wanted.contains(v))) {
        stale = stale.max(still_running(f, now));
    }
    stale
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + s).unwrap()
    }
    fn texts(v: &[&str]) -> Vec<String> {
        v.iter().map(|s| (*s).to_string()).collect()
    }
    fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn point_is_refused_until_the_old_ttl_has_run_out() {
        let (old, new) = (texts(&["192.0.2.1"]), texts(&["192.0.2.2"]));
        let fact = Lowered::begin(None, 3600, 60, &old, at(0)).confirm(at(0));
        let stale = |s: i64| stale_for(Some(&fact), 60, &old, &new, at(s));
        assert_eq!((stale(0), stale(600), stale(3600), stale(3601)), (secs(3601), secs(3001), secs(1), secs(0)));
    }

    #[test]
    fn lowering_again_forgets_neither_the_first_ttl_nor_the_longer_one_still_running() {
        let old = texts(&["192.0.2.1"]);
        let first = Lowered::begin(None, 3600, 60, &old, at(0)).confirm(at(0));
        let second = Lowered::begin(Some(first), 60, 5, &old, at(100)).confirm(at(100));
        assert_eq!((second.original, second.to), (3600, 5));
        // The one second of grace of the first is kept, and one more is added: never less than before.
        assert!(second.gone_at >= Some(at(3601)) && second.gone_at <= Some(at(3602)), "{second:?}");
        let later = Lowered::begin(Some(second), 5, 1, &old, at(4000)).confirm(at(4000));
        assert_eq!((later.original, later.gone_at), (3600, Some(at(4006))));
    }

    #[test]
    fn an_unconfirmed_lowering_counts_whole_and_survives_a_crash() {
        let (old, new) = (texts(&["192.0.2.1"]), texts(&["192.0.2.2"]));
        let begun = Lowered::begin(None, 3600, 60, &old, at(0));
        assert_eq!(stale_for(Some(&begun), 60, &old, &new, at(9999)), secs(3601));
        // The crash came after the record was changed: the record says 60 now, the fact still knows 3600.
        let again = Lowered::begin(Some(begun), 60, 60, &old, at(50)).confirm(at(51));
        assert_eq!((again.original, again.gone_at), (3600, Some(at(51 + 3601))));
    }

    #[test]
    fn a_name_that_was_never_lowered_counts_its_full_ttl_unless_short() {
        let (old, new) = (texts(&["192.0.2.1"]), texts(&["192.0.2.2"]));
        assert_eq!(stale_for(None, 3600, &old, &new, at(0)), secs(3600));
        assert_eq!(stale_for(None, 300, &old, &new, at(0)), secs(0));
        assert_eq!(stale_for(None, 3600, &[], &new, at(0)), secs(0), "a name that does not exist is in no cache");
    }

    #[test]
    fn raised_by_hand_counts_again_and_is_what_comes_back() {
        let (old, new) = (texts(&["192.0.2.1"]), texts(&["192.0.2.2"]));
        let fact = Lowered::begin(None, 3600, 60, &old, at(0)).confirm(at(0));
        assert_eq!(stale_for(Some(&fact), 7200, &old, &new, at(9999)), secs(7200));
        assert_eq!(Lowered::begin(Some(fact), 7200, 60, &old, at(9999)).original, 7200);
    }

    #[test]
    fn going_back_to_what_caches_hold_is_never_refused() {
        let (old, new) = (texts(&["192.0.2.1"]), texts(&["192.0.2.2"]));
        let fact = Lowered::begin(None, 3600, 60, &old, at(0)).confirm(at(0));
        assert_eq!(stale_for(Some(&fact), 60, &new, &old, at(10)), secs(0));
    }

    #[test]
    fn facts_come_back_as_they_were() {
        let fact = Lowered::begin(None, 3600, 60, &texts(&["192.0.2.1"]), at(0));
        for f in [fact.clone(), fact.confirm(at(0))] {
            let json = f.to_value().to_json().to_string();
            let back = Value::from_json(&serde_json::from_str(&json).unwrap()).unwrap();
            assert_eq!(Lowered::from_value(&back), Some(f));
        }
        assert_eq!(Lowered::from_value(&Value::Unit), None);
    }
}
