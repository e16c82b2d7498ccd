//! From a name to everything that the configuration says of it.

use runbook_core::{Location, Result};

use super::canonical::{Lookup, canonical, is_address, lookup};
use super::finish;
use super::keywords::{KEYWORDS, Treatment};
use super::machine::Machine;
use super::options::{Family, Options};
use super::read::{Files, Reader, Value, wrong};
use super::tokens::Tokens;

/// What is asked for, as on a command line of `ssh`: it comes before all that files say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Query {
    /// A name, an alias or an address.
    pub host: String,
    /// The login name, when given.
    pub user: Option<String>,
    /// The port, when given.
    pub port: Option<u16>,
    /// The hosts on the way, when given: as `ssh -J`.
    pub jumps: Option<String>,
}

impl Query {
    /// Asks for a host and nothing else.
    pub fn host(host: impl Into<String>) -> Self {
        Query { host: host.into(), ..Query::default() }
    }
}

/// Reads the files and gives what they say of a host.
///
/// Blocks: `Match exec` runs commands, `CanonicalizeHostname` asks the DNS.
///
/// # Errors
/// `RB0304`, with its place, for what OpenSSH would not take either, and for what is in effect and not supported here.
pub fn resolve(machine: &Machine, files: &Files, query: &Query) -> Result<Options> {
    resolve_by(machine, files, query, &lookup)
}

/// As [`resolve`], with another way to look names up.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_by(machine: &Machine, files: &Files, query: &Query, lookup: Lookup<'_>) -> Result<Options> {
    let mut r = Reader::new(machine, &query.host);
    let asked = |text: String| vec![Value { text, at: Location { file: "runbook.toml".into(), line: 0, column: 0 }, own: true }];
    if let Some(u) = &query.user {
        r.values.insert("user", asked(u.clone()));
    }
    if let Some(p) = query.port {
        r.values.insert("port", asked(p.to_string()));
    }
    if let Some(j) = &query.jumps {
        r.values.insert("proxyjump", asked(j.clone()));
    }
    r.files(files)?;
    let mut host = query.host.clone();
    if let Some(v) = r.get("hostname") {
        host = Tokens::host(&host).expand(&v.text, "h", None).map_err(|e| wrong(&v.at, format!("HostName {e}")))?;
    }
    let canonicalizes = r.text("canonicalizehostname").is_some_and(|v| v != "false");
    let address = is_address(&host);
    if !address {
        host.make_ascii_lowercase();
    }
    if canonicalizes || address {
        host = canonical(&r, &host, family(&r), lookup)?;
    }
    if canonicalizes || r.wants_final {
        let at = r.get("hostname").map_or(Location { file: String::new(), line: 0, column: 0 }, |v| v.at.clone());
        r.values.insert("hostname", vec![Value { text: host.clone(), at, own: true }]);
        // The first pass settles these: as OpenSSH has it, what the second says of them comes too late.
        for (key, usual) in [("canonicalizehostname", "false"), ("canonicalizemaxdots", "1"), ("canonicalizefallbacklocal", "yes")] {
            let at = Location { file: String::new(), line: 0, column: 0 };
            r.values.entry(key).or_insert_with(|| vec![Value { text: usual.into(), at, own: true }]);
        }
        r.host = host.clone();
        r.final_pass = true;
        r.files(files)?;
    }
    refuse(&r)?;
    finish::options(&r, &query.host, host)
}

/// The kind of addresses that is wanted.
pub(super) fn family(r: &Reader<'_>) -> Family {
    match r.text("addressfamily") {
        Some("inet") => Family::V4,
        Some("inet6") => Family::V6,
        _ => Family::Any,
    }
}

/// Refuses what is in effect, would change where or how a connection is made, and is not supported.
fn refuse(r: &Reader<'_>) -> Result<()> {
    let command = r.text("proxycommand").is_some_and(|c| !c.eq_ignore_ascii_case("none"));
    for k in KEYWORDS {
        let Treatment::Refused(harmless) = k.treatment else { continue };
        let Some(v) = r.get(k.key).filter(|v| !harmless.iter().any(|h| v.text.eq_ignore_ascii_case(h))) else { continue };
        // Of no meaning without a ProxyCommand; seen to where names are canonicalized.
        if (k.key == "proxyusefdpass" && !command) || k.key == "canonicalizepermittedcnames" {
            continue;
        }
        let hint = match harmless.first() {
            Some(h) => format!("set {} {h} for this host above it, or in a file of its own (ssh_config in runbook.toml)", k.name),
            None => "take it out for this host, or give it a file of its own (ssh_config in runbook.toml)".to_string(),
        };
        return Err(wrong(&v.at, format!("{} {} is not supported: {}", k.name, v.text, lower_first(k.doc))).hint(hint));
    }
    match r.get("proxycommand") {
        Some(v) if v.text == "-" => {
            Err(wrong(&v.at, "ProxyCommand - is not supported: runbook's own input and output are not a connection")
                .hint("name a command, or connect by ProxyJump"))
        }
        _ => Ok(()),
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.trim_end_matches('.').chars();
    chars.next().map(|c| c.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::machine::tests::desk;
    use super::*;

    /// What a text says of a host.
    pub fn of(query: &Query, text: &str) -> Result<Options> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config");
        std::fs::write(&file, text).unwrap();
        let machine = desk(std::path::Path::new("/home/me"));
        resolve_by(&machine, &Files::One(file), query, &|name, _| name == "web.b.example.")
    }

    /// What a text says of the host `Web`.
    pub fn web(text: &str) -> Options {
        of(&Query::host("Web"), text).unwrap()
    }

    #[test]
    fn what_is_asked_for_comes_first() {
        let q = Query { user: Some("root".into()), port: Some(2222), ..Query::host("web") };
        let o = of(&q, "Match user root\n HostName 192.0.2.1\nUser other\nPort 22").unwrap();
        assert_eq!((o.user.as_str(), o.host.as_str(), o.port), ("root", "192.0.2.1", 2222));
    }

    #[test]
    fn the_second_pass() {
        let text = "Match final host *.example\n User second\n Port 7\nMatch !final\n Compression yes\nHost web\n HostName web.b.example\n Port 8\n";
        let o = web(&text.replace("Host web", "Host Web"));
        assert_eq!((o.user.as_str(), o.port, o.compression), ("second", 8, true));
        let canonical =
            "CanonicalizeHostname yes\nCanonicalDomains a.example b.example\nHost *.b.example\n User found\nMatch canonical\n Port 9\n";
        let o = web(canonical);
        assert_eq!((o.host.as_str(), o.user.as_str(), o.port), ("web.b.example", "found", 9));
        let o = of(&Query::host("127.1"), "Host 127.0.0.1\n Port 7\n").unwrap();
        assert_eq!((o.host.as_str(), o.port), ("127.0.0.1", 22), "read once");
    }

    #[test]
    fn what_is_not_supported_is_refused_where_it_applies() {
        for (text, name) in [
            ("\nBindInterface eth0", "BindInterface eth0"),
            ("\nKnownHostsCommand /bin/x", "KnownHostsCommand /bin/x"),
            ("\nRevokedHostKeys /etc/revoked", "RevokedHostKeys"),
            ("\nPKCS11Provider /lib/x.so", "PKCS11Provider"),
            ("ProxyCommand x\nProxyUseFdpass yes", "ProxyUseFdpass yes"),
            ("\nRefuseConnection no-more", "RefuseConnection"),
            ("\nProxyCommand -", "ProxyCommand -"),
        ] {
            let e = of(&Query::host("web"), text).unwrap_err();
            assert!(e.message.contains(name) && e.message.contains("not supported"), "{e}");
            assert!(e.location.is_some_and(|l| l.line == 2) && e.hint.is_some(), "{text}");
            assert!(of(&Query::host("web"), &format!("Host other\n{text}")).is_ok(), "{text} for another host");
        }
        assert!(of(&Query::host("web"), "KnownHostsCommand none\nRevokedHostKeys none\nPKCS11Provider none\nProxyUseFdpass yes").is_ok());
    }
}
