//! From values to options: defaults, tokens, paths.

use std::path::PathBuf;
use std::time::Duration;

use runbook_core::Result;

use super::algorithms::Names;
use super::options::{Agent, Hop, Options, StrictHostKeys, Tty};
use super::place;
use super::read::{Reader, Value, wrong};
use super::resolve::family;
use super::tokens::{Facts, PROXY, Tokens, USUAL};

/// Makes the options from the values and the defaults. `original` is the name that was asked for, `host` what became of it.
///
/// # Errors
/// `RB0304` for a token or a variable that does not exist, a circle of two, no attempt at all.
pub fn options(r: &Reader<'_>, original: &str, host: String) -> Result<Options> {
    let m = r.machine;
    let mut o = Options::plain(original, &m.user, &m.home);
    o.port = r.text("port").and_then(|p| p.parse().ok()).unwrap_or(22);
    o.host = host;
    o.host_key_alias = r.text("hostkeyalias").map(str::to_ascii_lowercase);
    let jump = r.get("proxyjump").filter(|j| !j.text.eq_ignore_ascii_case("none"));
    let home = m.home.to_string_lossy();
    let facts = |user: &str| {
        Tokens::new(&Facts {
            machine: &m.hostname,
            original,
            host: &o.host,
            port: o.port,
            user,
            key_alias: o.host_key_alias.as_deref().unwrap_or(original),
            jump: jump.map_or("", |j| &j.text),
            local: (&m.user, m.uid, &home),
        })
    };
    if let Some(v) = r.get("user") {
        // Later versions of OpenSSH take tokens here; no login name has a % of its own.
        o.user = facts("").expand(&v.text, "CdhijkLlnpu", Some(&m.env)).map_err(|e| wrong(&v.at, format!("User {e}")))?;
    }
    let tokens = facts(&o.user);
    let path = |v: &Value, name: &str| -> Result<PathBuf> {
        let text = m.tilde(&v.text).map_err(|who| wrong(&v.at, format!("{name}: there is no user {who}")))?;
        tokens.expand(&text, USUAL, Some(&m.env)).map(PathBuf::from).map_err(|e| wrong(&v.at, format!("{name} {e}")))
    };
    let paths = |key: &str, name: &str| -> Result<Option<Vec<PathBuf>>> {
        let Some(all) = r.values.get(key) else { return Ok(None) };
        all.iter().filter(|v| !v.text.eq_ignore_ascii_case("none")).map(|v| path(v, name)).collect::<Result<_>>().map(Some)
    };
    if let Some(files) = paths("identityfile", "IdentityFile")? {
        o.identity_files = files;
        o.identities_configured = true;
    }
    o.certificate_files = paths("certificatefile", "CertificateFile")?.unwrap_or_default();
    if let Some(files) = paths("userknownhostsfile", "UserKnownHostsFile")? {
        o.user_known_hosts = files;
    }
    if let Some(all) = r.values.get("globalknownhostsfile") {
        // Taken as they are: neither ~ nor tokens.
        o.global_known_hosts = all.iter().filter(|v| !v.text.eq_ignore_ascii_case("none")).map(|v| PathBuf::from(&v.text)).collect();
    }
    if let Some(v) = r.get("identityagent") {
        o.identity_agent = agent(r, v, &path(v, "IdentityAgent")?);
    }
    if let Some(v) = jump {
        o.jumps = hops(v, &tokens)?;
        let near = o.jumps.last();
        let same_user = |h: &Hop| h.user.as_ref().is_none_or(|u| *u == o.user);
        if near.is_some_and(|h| h.host == o.host && h.port.unwrap_or(22) == o.port && same_user(h)) {
            return Err(wrong(&v.at, format!("the ProxyJump of {} goes round in a circle: its last host is {} itself", original, o.host))
                .hint("set ProxyJump none for the host on the way"));
        }
    }
    if let Some(v) = r.get("proxycommand").filter(|v| !v.text.eq_ignore_ascii_case("none")) {
        o.proxy_command = Some(tokens.expand(&v.text, PROXY, None).map_err(|e| wrong(&v.at, format!("ProxyCommand {e}")))?);
    }
    let seconds = |key: &str| r.text(key).and_then(|t| t.parse().ok()).filter(|s| *s > 0).map(Duration::from_secs);
    o.server_alive_interval = seconds("serveraliveinterval");
    o.connect_timeout = seconds("connecttimeout");
    let number = |key: &str, usual: u32| r.text(key).and_then(|t| t.parse::<u32>().ok()).unwrap_or(usual);
    o.server_alive_count_max = usize::try_from(number("serveralivecountmax", 3)).unwrap_or(usize::MAX);
    o.connection_attempts = number("connectionattempts", 1);
    if let Some(v) = r.get("connectionattempts").filter(|v| v.text == "0") {
        return Err(wrong(&v.at, "ConnectionAttempts 0: a connection must be tried at least once"));
    }
    o.number_of_password_prompts = number("numberofpasswordprompts", 3);
    o.required_rsa_size = number("requiredrsasize", 1024);
    o.address_family = family(r);
    o.bind_address = r.text("bindaddress").map(str::to_string);
    let names = |key: &str| r.get(key).map(|v| Names { written: v.text.clone(), at: v.at.clone() });
    o.ciphers = names("ciphers");
    o.macs = names("macs");
    o.kex_algorithms = names("kexalgorithms");
    o.host_key_algorithms = names("hostkeyalgorithms");
    o.pubkey_accepted_algorithms = names("pubkeyacceptedalgorithms");
    o.ca_signature_algorithms = names("casignaturealgorithms");
    o.send_env = r.values.get("sendenv").into_iter().flatten().map(|v| v.text.clone()).collect();
    let pairs = r.values.get("setenv").into_iter().flatten().filter_map(|v| v.text.split_once('='));
    o.set_env = pairs.map(|(n, v)| (n.to_string(), v.to_string())).collect();
    o.preferred_authentications =
        r.text("preferredauthentications").map(|t| t.split(',').filter(|m| !m.is_empty()).map(str::to_string).collect());
    let yes = |key: &str, usual: bool| r.text(key).map_or(usual, |t| !matches!(t, "no" | "false"));
    o.identities_only = yes("identitiesonly", false);
    o.tcp_keep_alive = yes("tcpkeepalive", true);
    o.pubkey_authentication = yes("pubkeyauthentication", true);
    o.password_authentication = yes("passwordauthentication", true);
    o.kbd_interactive_authentication = yes("kbdinteractiveauthentication", true);
    o.batch_mode = yes("batchmode", false);
    o.compression = yes("compression", false);
    o.strict_host_keys = match r.text("stricthostkeychecking") {
        Some("true") => StrictHostKeys::Yes,
        Some("accept-new") => StrictHostKeys::AcceptNew,
        Some("false") => StrictHostKeys::Off,
        _ => StrictHostKeys::Ask,
    };
    o.request_tty = match r.text("requesttty") {
        Some("true") => Tty::Yes,
        Some("false") => Tty::No,
        Some("force") => Tty::Force,
        _ => Tty::Auto,
    };
    o.written = r.values.iter().map(|(k, v)| (*k, v.iter().map(|v| v.text.clone()).collect())).collect();
    Ok(o)
}

fn agent(r: &Reader<'_>, v: &Value, path: &std::path::Path) -> Agent {
    if v.text == "none" {
        return Agent::None;
    }
    let text = path.to_string_lossy();
    if text == "SSH_AUTH_SOCK" {
        return Agent::Environment;
    }
    match text.strip_prefix('$') {
        Some(name) => r.machine.env.get(name).map_or(Agent::None, |p| Agent::Socket(p.into())),
        None => Agent::Socket(path.to_path_buf()),
    }
}

/// The hosts on the way, with the tokens of the host that they lead to.
fn hops(v: &Value, tokens: &Tokens) -> Result<Vec<Hop>> {
    let text = tokens.expand(&v.text, PROXY, None).map_err(|e| wrong(&v.at, format!("ProxyJump {e}")))?;
    text.split(',').map(|h| place::hop(h).map_err(|e| wrong(&v.at, format!("ProxyJump \"{}\": {e}", h.trim())))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::options::Family;
    use super::super::resolve::Query;
    use super::super::resolve::tests::{of, web};
    use super::*;

    #[test]
    fn nothing_configured() {
        let o = web("");
        assert_eq!((o.user.as_str(), o.host.as_str(), o.port, o.original.as_str()), ("me", "web", 22, "Web"));
        assert_eq!(o.user_known_hosts.first(), Some(&PathBuf::from("/home/me/.ssh/known_hosts")));
        assert!(!o.identities_configured && o.connect_timeout.is_none() && o.jumps.is_empty());
    }

    #[test]
    fn names_and_paths_with_tokens() {
        let o = web(
            "HostName %h.Example.com\nUser deploy\nPort 2222\nIdentityFile ~/.ssh/%r_%h_%p\nIdentityFile ~ann/${SET}\nIdentityFile none\n\
             CertificateFile %d/c-%n.pub\nUserKnownHostsFile ~/kh_%k ~/kh2\nGlobalKnownHostsFile ~/%h\nHostKeyAlias WEB-Key\n\
             IdentityAgent $SET\nProxyCommand nc -x %r@%h:%p %n %%",
        );
        assert_eq!(o.host, "web.example.com");
        assert_eq!(o.identity_files, ["/home/me/.ssh/deploy_web.example.com_2222", "/home/ann/value"].map(PathBuf::from));
        assert_eq!(o.certificate_files, [PathBuf::from("/home/me/c-Web.pub")]);
        assert_eq!(o.user_known_hosts, ["/home/me/kh_web-key", "/home/me/kh2"].map(PathBuf::from));
        assert_eq!(o.global_known_hosts, [PathBuf::from("~/%h")]);
        assert_eq!(o.host_key_alias.as_deref(), Some("web-key"));
        assert_eq!(o.identity_agent, Agent::Socket("value".into()));
        assert_eq!(o.proxy_command.as_deref(), Some("nc -x deploy@web.example.com:2222 Web %"));
    }

    #[test]
    fn agents() {
        for (text, want) in [
            ("none", Agent::None),
            ("SSH_AUTH_SOCK", Agent::Environment),
            ("$UNSET", Agent::None),
            ("~/agent", Agent::Socket("/home/me/agent".into())),
            ("${SET}/a", Agent::Socket("value/a".into())),
        ] {
            assert_eq!(web(&format!("IdentityAgent {text}")).identity_agent, want, "{text}");
        }
    }

    #[test]
    fn jumps() {
        let o = web("ProxyJump me@a:2022,b-%h,ssh://c");
        let shown: Vec<_> = o.jumps.iter().map(|h| (h.user.as_deref(), h.host.as_str(), h.port)).collect();
        assert_eq!(shown, [(Some("me"), "a", Some(2022)), (None, "b-web", None), (None, "c", None)]);
        assert!(web("ProxyJump none").jumps.is_empty());
        let e = of(&Query::host("web"), "\nProxyJump web").unwrap_err();
        assert!(e.message.contains("circle") && e.location.is_some_and(|l| l.line == 2), "{}", e.message);
        assert!(of(&Query::host("web"), "ProxyJump web:2222").is_ok());
    }

    #[test]
    fn switches() {
        let o = web(
            "IdentitiesOnly yes\nPasswordAuthentication no\nChallengeResponseAuthentication no\nPubkeyAuthentication host-bound\nBatchMode yes\n\
             Compression yes\nTCPKeepAlive no\nStrictHostKeyChecking off\nRequestTTY force\nAddressFamily inet6\nServerAliveInterval 1m\n\
             ServerAliveCountMax 5\nConnectTimeout 7\nConnectionAttempts 4\nPreferredAuthentications publickey,password\nSetEnv A=b C=d=e\nSendEnv LC_*",
        );
        assert!(o.identities_only && o.pubkey_authentication && o.batch_mode && o.compression);
        assert!(!o.password_authentication && !o.kbd_interactive_authentication && !o.tcp_keep_alive);
        assert_eq!((o.strict_host_keys, o.request_tty, o.address_family), (StrictHostKeys::Off, Tty::Force, Family::V6));
        assert_eq!((o.server_alive_interval, o.server_alive_count_max), (Some(Duration::from_secs(60)), 5));
        assert_eq!((o.connect_timeout, o.connection_attempts), (Some(Duration::from_secs(7)), 4));
        assert_eq!(o.set_env, [("A".to_string(), "b".to_string()), ("C".to_string(), "d=e".to_string())]);
        assert!(of(&Query::host("web"), "ConnectionAttempts 0").is_err());
    }

    #[test]
    fn a_variable_that_is_not_set_is_an_error_where_it_is_written() {
        let e = of(&Query::host("web"), "\nIdentityFile ${NO_SUCH}/x").unwrap_err();
        assert!(e.message.ends_with(":2: IdentityFile needs the environment variable NO_SUCH, which is not set"), "{}", e.message);
    }
}
