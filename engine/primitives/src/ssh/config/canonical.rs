//! Addresses in their usual spelling, and short names looked up in the domains of `CanonicalDomains`.

use std::net::{Ipv4Addr, Ipv6Addr, ToSocketAddrs as _};

use runbook_core::Result;

use super::options::Family;
use super::read::{Reader, wrong};

/// Looks a full name up: whether it has an address of the family.
pub type Lookup<'a> = &'a dyn Fn(&str, Family) -> bool;

/// Asks the machine's resolver.
#[must_use]
pub fn lookup(name: &str, family: Family) -> bool {
    (name, 22).to_socket_addrs().is_ok_and(|mut all| {
        all.any(|a| match family {
            Family::Any => true,
            Family::V4 => a.is_ipv4(),
            Family::V6 => a.is_ipv6(),
        })
    })
}

/// Whether a name can only be an address.
#[must_use]
pub fn is_address(name: &str) -> bool {
    name.contains(['%', ':']) || name.chars().all(|c| c.is_ascii_digit() || c == '.') || usual_spelling(name, Family::Any).is_some()
}

/// The usual spelling of an address: `127.0.0.1` for `127.1`, `2001:db8::1` for `2001:DB8:0::1`.
#[must_use]
pub fn usual_spelling(name: &str, family: Family) -> Option<String> {
    if family != Family::V4
        && let Ok(ip) = name.parse::<Ipv6Addr>()
    {
        return Some(ip.to_string());
    }
    if family == Family::V6 {
        return None;
    }
    short_address(name).map(|ip| ip.to_string())
}

/// An IPv4 address as C libraries read it: one to four numbers, decimal, octal or hexadecimal, the last filling what is left.
fn short_address(name: &str) -> Option<Ipv4Addr> {
    let numbers: Vec<u32> = name
        .split('.')
        .map(|part| {
            let lower = part.to_ascii_lowercase();
            let (digits, radix) = match lower.strip_prefix("0x") {
                Some(hex) => (hex, 16),
                None if lower.len() > 1 && lower.starts_with('0') => (lower.as_str(), 8),
                None => (lower.as_str(), 10),
            };
            let plain = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
            plain.then(|| u32::from_str_radix(digits, radix).ok()).flatten()
        })
        .collect::<Option<_>>()?;
    let (last, head) = numbers.split_last()?;
    if head.len() > 3 || head.iter().any(|n| *n > 255) {
        return None;
    }
    let left = 32 - 8 * u32::try_from(head.len()).ok()?;
    if left < 32 && *last >= 1 << left {
        return None;
    }
    let mut bits = *last;
    for (i, n) in head.iter().enumerate() {
        bits |= n << (24 - 8 * u32::try_from(i).ok()?);
    }
    Some(Ipv4Addr::from_bits(bits))
}

/// The host's name after `CanonicalizeHostname`, or in the usual spelling when it is an address.
///
/// # Errors
/// `RB0304` when the name is in none of the domains and may not be taken as it is, or when aliases were to be followed.
pub fn canonical(r: &Reader<'_>, host: &str, family: Family, lookup: Lookup<'_>) -> Result<String> {
    if let Some(address) = usual_spelling(host, family) {
        return Ok(if address.eq_ignore_ascii_case(host) { host.to_string() } else { address });
    }
    let Some(wish) = r.get("canonicalizehostname").filter(|v| v.text != "false") else { return Ok(host.to_string()) };
    if is_address(host) {
        return Ok(host.to_string());
    }
    // As OpenSSH has it, `ProxyJump none` is a hop here.
    let command = r.text("proxycommand").is_some_and(|c| !c.eq_ignore_ascii_case("none"));
    if (command || r.get("proxyjump").is_some()) && wish.text != "always" {
        return Ok(host.to_string());
    }
    if let Some(aliases) = r.get("canonicalizepermittedcnames").filter(|v| !v.text.eq_ignore_ascii_case("none")) {
        return Err(wrong(
            &aliases.at,
            "CanonicalizePermittedCNAMEs is not supported: runbook does not follow aliases of the DNS to other names",
        )
        .hint("give the real name by HostName, or set CanonicalizePermittedCNAMEs none for this host"));
    }
    let found = if host.ends_with('.') {
        lookup(host, family).then(|| host.to_string())
    } else {
        let dots = host.matches('.').count();
        let most = r.text("canonicalizemaxdots").and_then(|n| n.parse().ok()).unwrap_or(1);
        if dots > most {
            return Ok(host.to_string());
        }
        let domains = r.values.get("canonicaldomains").map(Vec::as_slice).unwrap_or_default();
        domains
            .iter()
            .take_while(|d| !d.text.eq_ignore_ascii_case("none"))
            .map(|d| format!("{host}.{}.", d.text))
            .find(|name| lookup(name, family))
    };
    match found {
        Some(name) => Ok(name.strip_suffix('.').unwrap_or(&name).to_string()),
        None if r.text("canonicalizefallbacklocal") == Some("no") => Err(wrong(
            &wish.at,
            format!("the name {host} is in none of the domains of CanonicalDomains, and CanonicalizeFallbackLocal is off"),
        )
        .hint("give the whole name, add its domain, or set CanonicalizeFallbackLocal yes")),
        None => Ok(host.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::tests::desk;
    use super::*;

    #[test]
    fn addresses() {
        for (name, want) in [
            ("127.1", Some("127.0.0.1")),
            ("127.0.0.1", Some("127.0.0.1")),
            ("0x7f.1", Some("127.0.0.1")),
            ("0177.0.0.1", Some("127.0.0.1")),
            ("2130706433", Some("127.0.0.1")),
            ("2001:DB8:0::1", Some("2001:db8::1")),
            ("1.2.3.4.5", None),
            ("1.2.3.256", None),
            ("256.1", None),
            ("08.1", None),
            ("web", None),
            ("", None),
        ] {
            assert_eq!(usual_spelling(name, Family::Any).as_deref(), want, "{name}");
        }
        assert!(is_address("fe80::1%eth0") && is_address("999.1") && is_address("0x7f.1") && !is_address("web1"));
        assert_eq!(usual_spelling("127.1", Family::V6), None);
    }

    #[test]
    fn names_are_found_in_domains() {
        let machine = desk(std::path::Path::new("/home/me"));
        let of = |host: &str, text: &str| {
            let mut r = Reader::new(&machine, host);
            r.string("config", text)?;
            let known = ["web.b.example.", "x.y.example.", "web.", "a.b.c.b.example."];
            canonical(&r, host, Family::Any, &|name, _| known.contains(&name))
        };
        let on = "CanonicalizeHostname yes\nCanonicalDomains a.example b.example\n";
        assert_eq!(of("web", on).unwrap(), "web.b.example");
        assert_eq!(of("web", "CanonicalDomains b.example").unwrap(), "web");
        assert_eq!(of("db", on).unwrap(), "db");
        assert_eq!(of("x.y.example.", on).unwrap(), "x.y.example");
        assert_eq!(of("a.b.c", on).unwrap(), "a.b.c", "more dots than one");
        assert_eq!(of("a.b.c", &format!("{on}CanonicalizeMaxDots 2")).unwrap(), "a.b.c.b.example");
        assert_eq!(of("web", &format!("{on}ProxyCommand x")).unwrap(), "web");
        assert_eq!(of("web", &format!("CanonicalizeHostname always\nProxyCommand x\n{on}")).unwrap(), "web.b.example");
        assert!(of("db", &format!("{on}CanonicalizeFallbackLocal no")).unwrap_err().message.contains("in none of the domains"));
        let e = of("web", &format!("{on}CanonicalizePermittedCNAMEs *:*")).unwrap_err();
        assert_eq!(e.location.map(|l| l.line), Some(3));
        assert!(of("web", &format!("{on}CanonicalizePermittedCNAMEs none")).is_ok());
    }
}
