//! Values of options: yes or no, times, numbers, ports, words out of a few.

use super::keywords::Takes;

/// `yes`, `no`, `true`, `false`, as OpenSSH prints them.
pub const FLAG: &[(&str, &str)] = &[("true", "yes"), ("false", "no"), ("yes", "yes"), ("no", "no")];

/// Reads one argument of an option; gives it as OpenSSH would print it.
///
/// # Errors
/// What is wrong with it.
pub fn single(takes: &Takes, arg: &str) -> Result<String, String> {
    if arg.is_empty() {
        return Err("has an empty argument".into());
    }
    match takes {
        Takes::Flag => among(FLAG, arg),
        Takes::Words(words) => among(words, arg),
        Takes::Time if arg == "none" => Ok("none".into()),
        Takes::Time => seconds(arg).map(|s| s.to_string()).ok_or_else(|| format!("wants a time such as 30, 5m or 1h30m, not \"{arg}\"")),
        Takes::Int => int(arg).map(|n| n.to_string()).ok_or_else(|| format!("wants a number, not \"{arg}\"")),
        Takes::Port => port(arg).map(|p| p.to_string()).ok_or_else(|| format!("wants a port from 1 to 65535, not \"{arg}\"")),
        Takes::AgentPath => agent_path(arg),
        _ => Ok(arg.to_string()),
    }
}

fn among(words: &[(&str, &str)], arg: &str) -> Result<String, String> {
    words.iter().find(|(w, _)| w.eq_ignore_ascii_case(arg)).map(|(_, as_)| (*as_).to_string()).ok_or_else(|| {
        let known: Vec<&str> = words.iter().map(|(w, _)| *w).collect();
        format!("does not take \"{arg}\", only {}", known.join(", "))
    })
}

/// A path whose `${NAME}` and `$NAME` must at least be well formed.
fn agent_path(arg: &str) -> Result<String, String> {
    let legacy = arg.strip_prefix('$').filter(|n| !n.starts_with('{'));
    if legacy.is_some_and(|n| n.is_empty() || !n.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')) {
        return Err(format!("names no environment variable: \"{arg}\""));
    }
    Ok(arg.to_string())
}

/// A number from 0 to 2147483647.
#[must_use]
pub fn int(arg: &str) -> Option<u32> {
    let arg = arg.trim_start();
    let digits = arg.strip_prefix('+').unwrap_or(arg);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u32>().ok().filter(|n| i32::try_from(*n).is_ok())
}

/// A port by its number, or by its name in the machine's list of services.
#[must_use]
pub fn port(arg: &str) -> Option<u16> {
    match int(arg) {
        Some(n) => u16::try_from(n).ok().filter(|p| *p > 0),
        None => service(&std::fs::read_to_string("/etc/services").unwrap_or_default(), arg),
    }
}

fn service(list: &str, name: &str) -> Option<u16> {
    list.lines().find_map(|line| {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let first = words.next()?;
        let (number, protocol) = words.next()?.split_once('/')?;
        (protocol == "tcp" && (first == name || words.any(|alias| alias == name))).then(|| number.parse().ok()).flatten()
    })
}

/// A time in seconds: `90`, `90s`, `1h30m`, `2d`, `1w`.
#[must_use]
pub fn seconds(arg: &str) -> Option<u32> {
    if arg.is_empty() {
        return None;
    }
    let mut total: u32 = 0;
    let mut rest = arg;
    while !rest.is_empty() {
        let number = rest.trim_start_matches(|c: char| c.is_ascii_whitespace());
        let number = number.strip_prefix('+').unwrap_or(number);
        let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
        let (digits, tail) = number.split_at_checked(end)?;
        let mut tail = tail.chars();
        let unit = match tail.next() {
            None | Some('s' | 'S') => 1,
            Some('m' | 'M') => 60,
            Some('h' | 'H') => 3600,
            Some('d' | 'D') => 86_400,
            Some('w' | 'W') => 604_800,
            Some(_) => return None,
        };
        total = total.checked_add(digits.parse::<u32>().ok()?.checked_mul(unit)?)?;
        i32::try_from(total).ok()?;
        rest = tail.as_str();
    }
    Some(total)
}

/// A domain of `CanonicalDomains`, in lower case and without the final dot.
///
/// # Errors
/// What is wrong with it.
pub fn domain(arg: &str) -> Result<String, String> {
    let name = arg.to_ascii_lowercase();
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(format!("has a domain that does not begin with a letter or a digit: \"{arg}\""));
    }
    if name.contains("..") {
        return Err(format!("has a domain with two dots in a row: \"{arg}\""));
    }
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c)) {
        return Err(format!("has a domain with a character that none has: \"{arg}\""));
    }
    Ok(name.strip_suffix('.').unwrap_or(&name).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times() {
        for (text, want) in [
            ("0", Some(0)),
            ("90", Some(90)),
            ("90s", Some(90)),
            ("1h30m", Some(5400)),
            ("2D", Some(172_800)),
            ("1w", Some(604_800)),
            ("1m30", Some(90)),
            ("", None),
            ("m", None),
            ("-5", None),
            ("5x", None),
            ("99999999999", None),
            ("4000w", None),
        ] {
            assert_eq!(seconds(text), want, "{text}");
        }
    }

    #[test]
    fn numbers_and_ports() {
        assert_eq!((int("007"), int("+3"), int("2147483647")), (Some(7), Some(3), Some(2_147_483_647)));
        assert_eq!((int("2147483648"), int("-1"), int("x"), int("")), (None, None, None, None));
        assert_eq!((port("22"), port("0"), port("65536")), (Some(22), None, None));
        let list = "# all\nssh\t22/tcp # shell\nntp 123/udp\nhttp 80/tcp www www-http\n";
        assert_eq!((service(list, "ssh"), service(list, "www"), service(list, "ntp")), (Some(22), Some(80), None));
    }

    #[test]
    fn words() {
        assert_eq!(single(&Takes::Flag, "TRUE"), Ok("yes".into()));
        let e = single(&Takes::Flag, "maybe").unwrap_err();
        assert!(e.contains("only true, false, yes, no"), "{e}");
        assert!(single(&Takes::AgentPath, "$A B").is_err() && single(&Takes::AgentPath, "$A_B").is_ok());
        assert_eq!(domain("Example.COM."), Ok("example.com".into()));
        for bad in ["", ".example", "a..b", "a b"] {
            assert!(domain(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,20}") {
            let _ = (seconds(&text), int(&text), port(&text), domain(&text));
        }
    }
}
