//! Durations and sizes as people write them: `2h30m`, `64MiB`.
//!
//! Used by the inventory, by the script language and by every message that shows a span of time or an amount of data.

use std::time::Duration;

use crate::error::{Code, Error, Result};

/// Parses a duration such as `250ms`, `10s`, `2h30m` or `1d`.
///
/// Units are `ms`, `s`, `m`, `h`, `d` (24 h), `w`; parts run from large to small; a bare number is refused.
///
/// # Errors
/// `RB0203` naming the text and what was expected.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let bad = |why: &str| {
        Error::new(Code::BAD_DURATION, format!("\"{text}\" is not a duration: {why}"))
            .hint("write it like \"250ms\", \"10s\", \"2h30m\" or \"1d\"")
    };
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(bad("it is empty"));
    }
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut last_unit = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| bad("a number is missing or too large"))?;
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let unit_ms: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 604_800_000,
            "" => return Err(bad("the unit is missing")),
            other => return Err(bad(&format!("\"{other}\" is not a unit"))),
        };
        if unit_ms >= last_unit {
            return Err(bad("its parts must run from large to small"));
        }
        last_unit = unit_ms;
        let part = number.checked_mul(unit_ms).ok_or_else(|| bad("it is too long"))?;
        total = total.checked_add(Duration::from_millis(part)).ok_or_else(|| bad("it is too long"))?;
        rest = tail.trim_start();
    }
    Ok(total)
}

/// Shows a duration in the form that [`parse_duration`] reads; below a millisecond it is `0s`.
#[must_use]
pub fn show_duration(d: Duration) -> String {
    let mut ms = u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    if ms == 0 {
        return "0s".into();
    }
    let mut out = String::new();
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        let n = ms / size;
        ms %= size;
        if n > 0 {
            out.push_str(&format!("{n}{unit}"));
        }
    }
    out
}

const SIZES: [(&str, u64); 13] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("KB", 1_000),
    ("T", 1 << 40),
    ("G", 1 << 30),
    ("M", 1 << 20),
    ("B", 1),
];

/// Parses an amount of data such as `512B`, `64MiB` or `1.5GB`, in bytes.
///
/// # Errors
/// `RB0204` naming the text and what was expected.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let bad = |why: &str| {
        Error::new(Code::BAD_SIZE, format!("\"{text}\" is not a size: {why}")).hint("write it like \"512B\", \"64MiB\" or \"1.5GB\"")
    };
    let t = text.trim();
    let split = t.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(|| bad("the unit is missing"))?;
    let (number, unit) = (t[..split].trim(), t[split..].trim());
    let size = SIZES.iter().find(|(n, _)| *n == unit).map(|(_, s)| *s).ok_or_else(|| bad(&format!("\"{unit}\" is not a unit")))?;
    if let Ok(n) = number.parse::<u64>() {
        return n.checked_mul(size).ok_or_else(|| bad("it is too large"));
    }
    let n: f64 = number.parse().map_err(|_| bad("a number is missing"))?;
    let bytes = n * size as f64;
    if !bytes.is_finite() || !(0.0..9.0e18).contains(&bytes) {
        return Err(bad("it is too large or negative"));
    }
    Ok(bytes.round() as u64)
}

/// Shows an amount of data with a binary unit and at most one decimal: `64MiB`, `1.5GiB`, `17B`.
#[must_use]
pub fn show_bytes(n: u64) -> String {
    for (unit, size) in &SIZES[..4] {
        if n >= *size {
            let whole = n as f64 / *size as f64;
            return if n.is_multiple_of(*size) { format!("{}{unit}", n / size) } else { format!("{whole:.1}{unit}") };
        }
    }
    format!("{n}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_round_trip() {
        for (text, ms) in [("250ms", 250), ("10s", 10_000), ("2h30m", 9_000_000), ("1d", 86_400_000), ("1h 5s", 3_605_000)] {
            let d = parse_duration(text).unwrap();
            assert_eq!(d.as_millis(), ms, "{text}");
            assert_eq!(parse_duration(&show_duration(d)).unwrap(), d);
        }
    }

    #[test]
    fn bad_durations_say_why() {
        for (text, why) in [("10", "unit is missing"), ("", "empty"), ("10x", "not a unit"), ("5s2m", "large to small"), ("-3s", "number")]
        {
            let e = parse_duration(text).unwrap_err();
            assert_eq!(e.code, Code::BAD_DURATION);
            assert!(e.message.contains(why), "{text}: {}", e.message);
        }
        assert!(parse_duration("99999999999999999999w").is_err());
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_bytes("64MiB").unwrap(), 64 << 20);
        assert_eq!(parse_bytes("1.5GB").unwrap(), 1_500_000_000);
        assert_eq!(show_bytes(64 << 20), "64MiB");
        assert_eq!(show_bytes(1_610_612_736), "1.5GiB");
        assert!(parse_bytes("12").is_err());
        assert!(parse_bytes("1e400GB").is_err());
    }
}
