//! What containers and services of a swarm are given alike, as scripts write it: commands, mounts, ports, choices.

use std::net::IpAddr;
use std::time::Duration;

use runbook_core::spec::{Call, Spec, Ty};
use runbook_core::{Code, Error, Result, Value};

use super::things::named;

/// `RB0313` for what a script has given.
pub(super) fn bad(why: String, hint: &str) -> Error {
    Error::new(Code::COMMAND_BAD, why).hint(hint)
}

/// A time as the engine counts it.
pub(super) fn nanos(d: Duration) -> i64 {
    i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)
}

/// A number of processors as the engine counts it, in billionths.
pub(super) fn nano_cpus(call: &Call, option: &str) -> Result<Option<i64>> {
    match call.opt(option) {
        Some(Value::Float(n)) if !n.is_finite() || *n < 0.0 || *n > 1e6 => {
            Err(bad(format!("{option} cannot be {n}"), "give a number of processors, such as 0.5"))
        }
        Some(Value::Float(n)) => Ok(Some((n * 1e9).round() as i64)),
        _ => Ok(None),
    }
}

/// A list of texts that was given.
pub(super) fn listed<'a>(call: &'a Call, option: &str) -> Option<Vec<&'a str>> {
    Some(call.opt(option)?.as_list()?.iter().filter_map(Value::as_str).collect())
}

/// The type of a command.
pub(super) fn command_ty() -> Ty {
    Ty::OneOf(vec![Ty::Str, Ty::List(Box::new(Ty::Str))])
}

/// A text as words for `sh`, or words as they are.
pub(super) fn words(v: &Value) -> Option<Vec<String>> {
    match v {
        Value::List(all) => Some(all.iter().filter_map(|w| w.as_str().map(str::to_string)).collect()),
        Value::Str(text) => Some(vec!["sh".into(), "-c".into(), text.clone()]),
        _ => None,
    }
}

/// A word that must be one of some.
pub(super) fn choice<'a>(call: &'a Call, option: &str, of: &[&str]) -> Result<Option<&'a str>> {
    match call.opt_str(option) {
        Some(v) if !of.contains(&v) => Err(bad(format!("{option} cannot be \"{v}\""), &format!("it is one of {}", of.join(", ")))),
        v => Ok(v),
    }
}

/// Declares the options of a health check.
pub(super) fn health(s: Spec) -> Spec {
    s.option(
        "health",
        command_ty(),
        "A command in the container that succeeds when it is well, as a text for its `sh` or an array of words.",
    )
    .option("health_interval", Ty::Duration, "How often that is asked; `\"30s\"` when not given.")
    .option("health_timeout", Ty::Duration, "How long the answer may take; `\"30s\"` when not given.")
    .option("health_retries", Ty::Int, "How many failures in a row make it unhealthy; 3 when not given.")
    .option("health_start", Ty::Duration, "How long it may take to begin before failures count; not at all when not given.")
}

/// The command of a health check as the engine takes it.
pub(super) fn health_test(call: &Call) -> Option<Vec<String>> {
    match call.opt("health")? {
        Value::Str(text) => Some(vec!["CMD-SHELL".into(), text.clone()]),
        other => Some(["CMD".to_string()].into_iter().chain(words(other)?).collect()),
    }
}

/// What a container has mounted.
#[derive(Debug, PartialEq)]
pub(super) struct Mounted<'a> {
    /// A volume's name, or a folder or file of the host.
    pub source: &'a str,
    /// Where it is in the container.
    pub target: &'a str,
    pub read_only: bool,
}

impl<'a> Mounted<'a> {
    /// `SOURCE:/path` or `SOURCE:/path:ro`.
    ///
    /// # Errors
    /// `RB0313`
    pub(super) fn of(given: &'a str) -> Result<Self> {
        let wrong = || bad(format!("\"{given}\" is no mount"), "give VOLUME:/path or /folder:/path, with :ro at its end to read only");
        let (rest, read_only) = given.strip_suffix(":ro").map_or((given, false), |r| (r, true));
        let (source, target) = rest.split_once(':').ok_or_else(wrong)?;
        if !target.starts_with('/') || target.contains(':') || !(source.starts_with('/') || named(source, false)) {
            return Err(wrong());
        }
        Ok(Mounted { source, target, read_only })
    }

    pub(super) fn is_folder(&self) -> bool {
        self.source.starts_with('/')
    }
}

/// A port that is published.
#[derive(Debug, PartialEq)]
pub(super) struct Published<'a> {
    /// The address of the host; all of them when not given.
    pub address: Option<IpAddr>,
    pub outside: u16,
    pub inside: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: &'a str,
}

impl<'a> Published<'a> {
    /// `8080:80`, `5353:53/udp`, `127.0.0.1:8080:80` or `[::1]:8080:80`.
    ///
    /// # Errors
    /// `RB0313`
    pub(super) fn of(given: &'a str) -> Result<Self> {
        let wrong = || bad(format!("\"{given}\" is no port"), "give PUBLISHED:TARGET, with /udp at its end for UDP: \"8080:80\"");
        let (ports, protocol) = given.split_once('/').unwrap_or((given, "tcp"));
        let (before, inside) = ports.rsplit_once(':').ok_or_else(wrong)?;
        let (address, outside) = match before.rsplit_once(':') {
            None => (None, before),
            Some((a, p)) => {
                let a = a.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(a);
                (Some(a.parse().map_err(|_| wrong())?), p)
            }
        };
        let number = |p: &str| p.parse::<u16>().ok().filter(|n| *n > 0).ok_or_else(wrong);
        if !matches!(protocol, "tcp" | "udp" | "sctp") {
            return Err(wrong());
        }
        Ok(Published { address, outside: number(outside)?, inside: number(inside)?, protocol })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_and_ports_are_read() {
        assert_eq!(Mounted::of("data:/data").unwrap(), Mounted { source: "data", target: "/data", read_only: false });
        let folder = Mounted::of("/srv/x:/x:ro").unwrap();
        assert!(folder == Mounted { source: "/srv/x", target: "/x", read_only: true } && folder.is_folder());
        for wrong in ["data", "data:x", "a b:/x", ":/x", "data:/x:rw:ro"] {
            assert_eq!(Mounted::of(wrong).unwrap_err().code, Code::COMMAND_BAD, "{wrong}");
        }
        assert_eq!(Published::of("5353:53/udp").unwrap(), Published { address: None, outside: 5353, inside: 53, protocol: "udp" });
        for (given, address) in [("127.0.0.1:8080:80", "127.0.0.1"), ("[::1]:8080:80", "::1")] {
            let p = Published::of(given).unwrap();
            assert_eq!(p, Published { address: Some(address.parse().unwrap()), outside: 8080, inside: 80, protocol: "tcp" });
        }
        for wrong in ["80", "0:80", "80:x", "80:80/icmp", "70000:80", "localhost:80:80", ":80:80"] {
            assert_eq!(Published::of(wrong).unwrap_err().code, Code::COMMAND_BAD, "{wrong}");
        }
    }
}
