//! Time as the engine sees it, so that tests can pin it.

use jiff::Timestamp;

/// Where the engine asks for the time.
pub trait Clock: Send + Sync {
    /// The present moment.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
pub struct System;

impl Clock for System {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// Shows a moment as the journal does: RFC 3339, UTC, milliseconds.
#[must_use]
pub fn rfc3339(t: Timestamp) -> String {
    format!("{t:.3}")
}
