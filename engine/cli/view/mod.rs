//! What a person sees of a run: a tree made from the journal's entries, shown live, as plain lines, or afterwards.

pub mod fanout;
pub mod host;
pub mod lines;
pub mod live;
pub mod tree;

use std::time::Duration;

/// A span of time for people: `0.4s`, `12.3s`, `4m07s`, `2h05m`.
pub fn span(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{}.{}s", s, ms % 1000 / 100),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        _ => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
    }
}

/// A clock for a countdown: `1:57`, `1:02:03`.
pub fn clock(d: Duration) -> String {
    let s = d.as_secs();
    if s < 3600 { format!("{}:{:02}", s / 60, s % 60) } else { format!("{}:{:02}:{:02}", s / 3600, s % 3600 / 60, s % 60) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        assert_eq!([0, 450, 12_345, 247_000, 7_500_000].map(span), ["0.0s", "0.4s", "12.3s", "4m07s", "2h05m"]);
        assert_eq!([5, 125, 3723].map(|s| clock(Duration::from_secs(s))), ["0:05", "2:05", "1:02:03"]);
    }
}
