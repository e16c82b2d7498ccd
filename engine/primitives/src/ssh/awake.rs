//! Notices that this machine has slept: the monotonic clock stands still then, the wall clock does not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::Mutex;
use runbook_core::clock::Clock;

/// A smaller difference between the clocks is drift or correction.
const JUMP: Duration = Duration::from_secs(15);

/// Compares the two clocks since it was last asked. A wall clock that was set forward looks the same; the caller must do no more than
/// look whether the other side is still there.
pub(super) struct Awake {
    clock: Arc<dyn Clock>,
    last: Mutex<(Instant, Timestamp)>,
}

impl Awake {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let last = Mutex::new((Instant::now(), clock.now()));
        Awake { clock, last }
    }

    /// Whether the machine has slept since this was last asked.
    pub(super) fn slept(&self) -> bool {
        let now = (Instant::now(), self.clock.now());
        let before = std::mem::replace(&mut *self.last.lock(), now);
        let wall = Duration::try_from(now.1.duration_since(before.1)).unwrap_or_default();
        wall.saturating_sub(now.0.duration_since(before.0)) > JUMP
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Set(Mutex<Timestamp>);

    impl Clock for Set {
        fn now(&self) -> Timestamp {
            *self.0.lock()
        }
    }

    #[test]
    fn only_a_jump_forward_of_the_wall_clock_is_a_sleep() {
        let clock = Arc::new(Set(Mutex::new(Timestamp::from_second(1_000_000).unwrap())));
        let awake = Awake::new(clock.clone());
        let set = |s: i64| *clock.0.lock() = Timestamp::from_second(s).unwrap();
        assert!(!awake.slept());
        set(1_000_010);
        assert!(!awake.slept(), "a correction");
        set(1_003_600);
        assert!(awake.slept());
        assert!(!awake.slept(), "said once");
        set(900_000);
        assert!(!awake.slept(), "set back");
    }
}
