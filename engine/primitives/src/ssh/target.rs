//! Where and how a host is reached: its inventory settings, completed from `~/.ssh/config` when `ssh` is an alias.

use std::collections::HashMap;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use runbook_core::inventory::{Environment, Resource, Section};
use runbook_core::{Code, Error, Result, Value};
use ssh2_config::{HostParams, ParseRule, SshConfig};

use super::config::Options;

/// Everything that is needed to log in to a host: what the SSH configuration says of it, and what the inventory adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// The inventory name (of the host that is reached through it, for a jump host).
    pub name: String,
    /// User, host, port and all that the SSH configuration says, overridden by the inventory; also reached as fields of the target.
    pub options: Options,
    /// The host through which this one is reached.
    pub jump: Option<Box<Target>>,
    /// Limit for the connection to stand.
    pub connect_timeout: Duration,
    /// Name of the secret to log in with.
    pub password: Option<String>,
    /// Name of the secret that opens the private keys.
    pub passphrase: Option<String>,
    /// Name of the secret for `sudo`.
    pub sudo_password: Option<String>,
    /// How long a lost connection is tried again for the sake of a supervised command.
    pub reconnect_within: Duration,
}

impl std::ops::Deref for Target {
    type Target = Options;

    fn deref(&self) -> &Options {
        &self.options
    }
}

impl Target {
    /// Every `known_hosts` file, the user's first.
    pub(super) fn known_hosts(&self) -> Vec<PathBuf> {
        self.options.user_known_hosts.iter().chain(&self.options.global_known_hosts).cloned().collect()
    }
}

/// The home folder of the operator.
pub(super) fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").filter(|h| !h.is_empty()).map(PathBuf::from)
}

/// A `user@host:port` taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub user: Option<String>,
    pub host: String,
    pub port: Option<u16>,
}

/// Takes `[user@]host[:port]` apart; an IPv6 address with a port stands in brackets.
pub(super) fn parse_place(text: &str) -> Result<Place> {
    let bad = |why: &str| {
        Error::new(Code::SSH_CONFIG, format!("\"{text}\" is not an SSH target: {why}"))
            .hint("write user@host, user@host:port, user@[2001:db8::1]:port, or an alias of ~/.ssh/config")
    };
    let (user, rest) = match text.rsplit_once('@') {
        Some(("", _)) => return Err(bad("the user is missing before @")),
        Some((u, r)) => (Some(u.to_string()), r),
        None => (None, text),
    };
    let number = |p: &str| p.parse::<u16>().ok().filter(|p| *p > 0).ok_or_else(|| bad("the port is not a number from 1 to 65535"));
    let (host, port) = if let Some(inner) = rest.strip_prefix('[') {
        let (h, after) = inner.split_once(']').ok_or_else(|| bad("the bracket is not closed"))?;
        match after.strip_prefix(':') {
            Some(p) => (h, Some(number(p)?)),
            None if after.is_empty() => (h, None),
            None => return Err(bad("after the bracket comes a colon and the port")),
        }
    } else if rest.matches(':').count() > 1 {
        (rest, None)
    } else {
        match rest.split_once(':') {
            Some((h, p)) => (h, Some(number(p)?)),
            None => (rest, None),
        }
    };
    if host.is_empty() || host.starts_with('-') || host.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(bad("the host name is missing or not well formed"));
    }
    Ok(Place { user, host: host.to_string(), port })
}

/// Resolves the host with this inventory name.
pub(super) fn resolve(env: &Environment, name: &str) -> Result<Target> {
    let r = env.resource(Section::Hosts, name)?;
    let home = home();
    let config = home.as_ref().map(|h| h.join(".ssh/config")).filter(|p| p.is_file());
    resolve_with(r, home.as_deref(), config.as_deref())
}

fn resolve_with(r: &Resource, home: Option<&Path>, config: Option<&Path>) -> Result<Target> {
    let ssh = match r.str("ssh") {
        Some(s) => s.to_string(),
        // A host without `ssh` is reached by its address or, failing that, by its name, as an alias.
        None => r.str("address").unwrap_or(&r.name).to_string(),
    };
    let mut target = if ssh.contains(['@', ':', '[']) {
        direct(&parse_place(&ssh)?, &r.name, home)?
    } else {
        from_config(&ssh, &r.name, home, config, 0)?
    };
    if let Some(user) = r.str("user") {
        target.options.user = user.to_string();
    }
    if let Some(port) = r.int("port") {
        target.options.port = u16::try_from(port)
            .ok()
            .filter(|p| *p > 0)
            .ok_or_else(|| Error::new(Code::SSH_CONFIG, format!("port {port} of host \"{}\" is not from 1 to 65535", r.name)))?;
    }
    let files = |key: &str| r.list(key).iter().map(|p| expand(p, home, &HashMap::new())).collect::<Vec<_>>();
    let identities = files("identity_file");
    if !identities.is_empty() {
        target.options.identity_files = identities;
        target.options.identities_configured = true;
    }
    let known = files("known_hosts");
    if !known.is_empty() {
        target.options.user_known_hosts = known;
        target.options.global_known_hosts = vec![];
    }
    let text = |key: &str| r.str(key).map(str::to_string);
    target.password = text("password");
    target.passphrase = text("passphrase");
    target.sudo_password = text("sudo_password");
    let span = |key: &str| match r.settings.get(key) {
        Some(Value::Duration(d)) => Ok(Some(*d)),
        Some(Value::Str(s)) => runbook_core::units::parse_duration(s).map(Some),
        _ => Ok(None),
    };
    if let Some(d) = span("connect_timeout")? {
        target.connect_timeout = d;
    }
    if let Some(d) = span("reconnect_within")? {
        target.reconnect_within = d;
    }
    Ok(target)
}

fn local_user() -> String {
    ["USER", "LOGNAME"].iter().find_map(|k| std::env::var(k).ok().filter(|v| !v.is_empty())).unwrap_or_else(|| "root".into())
}

fn direct(place: &Place, name: &str, home: Option<&Path>) -> Result<Target> {
    let user = place.user.clone().unwrap_or_else(local_user);
    let mut options = Options::plain(&place.host, &user, home.unwrap_or(Path::new("/")));
    options.port = place.port.unwrap_or(22);
    Ok(Target {
        name: name.to_string(),
        options,
        jump: None,
        connect_timeout: Duration::from_secs(15),
        password: None,
        passphrase: None,
        sudo_password: None,
        reconnect_within: Duration::from_secs(300),
    })
}

fn from_config(alias: &str, name: &str, home: Option<&Path>, config: Option<&Path>, depth: usize) -> Result<Target> {
    if depth > 8 {
        return Err(
            Error::new(Code::SSH_CONFIG, format!("the ProxyJump of \"{alias}\" in ~/.ssh/config goes round in a circle")).host(name)
        );
    }
    let params = match config {
        Some(path) => query(path, alias, home)?,
        None => None,
    };
    let Some(params) = params else { return direct(&parse_place(alias)?, name, home) };
    let extra = |key: &str| -> Vec<String> {
        let of = |m: &HashMap<String, Vec<String>>| m.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v.clone());
        of(&params.unsupported_fields).or_else(|| of(&params.ignored_fields)).unwrap_or_default()
    };
    let host = params.host_name.clone().unwrap_or_else(|| alias.to_string()).replace("%h", alias);
    let mut t = direct(&Place { user: params.user.clone(), host, port: params.port }, name, home)?;
    let tokens = HashMap::from([('h', t.host.clone()), ('r', t.user.clone()), ('p', t.port.to_string()), ('n', alias.to_string())]);
    if let Some(files) = params.identity_file.as_ref().filter(|f| !f.is_empty()) {
        t.options.identity_files = files.iter().map(|f| expand(&f.to_string_lossy(), home, &tokens)).collect();
        t.options.identities_configured = true;
    }
    let known = extra("UserKnownHostsFile");
    if !known.is_empty() {
        t.options.user_known_hosts = known.iter().flat_map(|v| v.split_whitespace()).map(|f| expand(f, home, &tokens)).collect();
    }
    t.options.host_key_alias = extra("HostKeyAlias").into_iter().next();
    if let Some(d) = params.connect_timeout {
        t.connect_timeout = d;
    }
    // `a,b` means: through a to b to the host. So the last one is the nearest, and each is reached through the one before it.
    let mut chain: Option<Box<Target>> = None;
    for hop in params.proxy_jump.iter().flatten().flat_map(|j| j.split(',')).map(str::trim).filter(|h| !h.is_empty() && *h != "none") {
        let hop = hop.strip_prefix("ssh://").unwrap_or(hop);
        let place = parse_place(hop)?;
        let mut via = from_config(&place.host, name, home, config, depth + 1)?;
        if let Some(u) = place.user {
            via.options.user = u;
        }
        if let Some(p) = place.port {
            via.options.port = p;
        }
        if let Some(before) = chain.take() {
            via.jump = Some(before);
        }
        chain = Some(Box::new(via));
    }
    t.jump = chain;
    Ok(t)
}

fn query(path: &Path, alias: &str, home: Option<&Path>) -> Result<Option<HostParams>> {
    let bad = |e: String| {
        Error::new(Code::SSH_CONFIG, format!("{} cannot be used: {e}", path.display()))
            .hint("mend the file (ssh -G HOST shows how ssh reads it), or write user@host:port in runbook.toml")
    };
    let file = std::fs::File::open(path).map_err(|e| bad(e.to_string()))?;
    let mut config = SshConfig::default();
    if let Some(h) = home {
        config = config.home_dir(h);
    }
    let config = config
        .parse(&mut BufReader::new(file), ParseRule::ALLOW_UNKNOWN_FIELDS | ParseRule::ALLOW_UNSUPPORTED_FIELDS)
        .map_err(|e| bad(e.to_string()))?;
    Ok(Some(config.query(alias)))
}

/// Replaces `~/`, `%d` and the given tokens in a path.
fn expand(path: &str, home: Option<&Path>, tokens: &HashMap<char, String>) -> PathBuf {
    let mut out = String::new();
    let mut rest = path.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match rest.next() {
            Some('d') => out.push_str(&home.map(|h| h.display().to_string()).unwrap_or_default()),
            Some('%') => out.push('%'),
            Some(t) => out.push_str(tokens.get(&t).map_or("", String::as_str)),
            None => out.push('%'),
        }
    }
    match (out.strip_prefix("~/"), home) {
        (Some(tail), Some(h)) => h.join(tail),
        _ => PathBuf::from(out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn host(settings: &[(&str, &str)]) -> Resource {
        Resource {
            name: "old".into(),
            kind: "ssh".into(),
            settings: settings.iter().map(|(k, v)| ((*k).to_string(), Value::from(*v))).collect::<BTreeMap<_, _>>(),
        }
    }

    #[test]
    fn places() {
        let p = |t: &str| parse_place(t).map(|p| (p.user.unwrap_or_default(), p.host, p.port.unwrap_or(0)));
        assert_eq!(p("root@192.0.2.1:2222").unwrap(), ("root".into(), "192.0.2.1".into(), 2222));
        assert_eq!(p("web").unwrap(), (String::new(), "web".into(), 0));
        assert_eq!(p("a@[2001:db8::1]:22").unwrap(), ("a".into(), "2001:db8::1".into(), 22));
        assert_eq!(p("a@2001:db8::1").unwrap(), ("a".into(), "2001:db8::1".into(), 0));
        assert_eq!(p("me@corp@host").unwrap(), ("me@corp".into(), "host".into(), 0));
        for bad in ["", "@host", "a@", "a@host:0", "a@host:99999", "a@host:x", "a@[::1", "a@[::1]x", "-oProxyCommand=x", "a b"] {
            let e = p(bad).unwrap_err();
            assert_eq!(e.code, Code::SSH_CONFIG, "{bad}");
            assert!(e.hint.is_some());
        }
    }

    #[test]
    fn a_place_with_settings() {
        let t = resolve_with(
            &host(&[("ssh", "root@192.0.2.1:2222"), ("identity_file", "~/k"), ("known_hosts", "/kh"), ("password", "pw")]),
            Some(Path::new("/home/me")),
            None,
        )
        .unwrap();
        assert_eq!((t.user.as_str(), t.host.as_str(), t.port), ("root", "192.0.2.1", 2222));
        assert_eq!((t.options.identity_files.clone(), t.identities_configured), (vec![PathBuf::from("/home/me/k")], true));
        assert_eq!(t.known_hosts(), vec![PathBuf::from("/kh")]);
        assert_eq!(t.password.as_deref(), Some("pw"));
    }

    #[test]
    fn an_alias_takes_everything_from_ssh_config() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config");
        let text = "Host shop\n  HostName 192.0.2.7\n  User deploy\n  Port 2200\n  IdentityFile ~/.ssh/shop_%r\n  UserKnownHostsFile ~/kh\n  HostKeyAlias shop-key\n  ConnectTimeout 3\n  ProxyJump me@gate:2022,inner\n\nHost inner\n  HostName 10.0.0.9\n  User in\n";
        std::fs::write(&config, text).unwrap();
        let t = resolve_with(&host(&[("ssh", "shop")]), Some(Path::new("/home/me")), Some(&config)).unwrap();
        assert_eq!((t.user.as_str(), t.host.as_str(), t.port), ("deploy", "192.0.2.7", 2200));
        assert_eq!(t.identity_files, vec![PathBuf::from("/home/me/.ssh/shop_deploy")]);
        assert_eq!(t.user_known_hosts.first(), Some(&PathBuf::from("/home/me/kh")));
        assert_eq!(t.host_key_alias.as_deref(), Some("shop-key"));
        assert_eq!(t.connect_timeout, Duration::from_secs(3));
        let near = t.jump.unwrap();
        assert_eq!((near.user.as_str(), near.host.as_str()), ("in", "10.0.0.9"));
        let far = near.jump.unwrap();
        assert_eq!((far.user.as_str(), far.host.as_str(), far.port), ("me", "gate", 2022));
    }

    #[test]
    fn a_circle_of_jumps_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config");
        std::fs::write(&config, "Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n").unwrap();
        let e = resolve_with(&host(&[("ssh", "a")]), None, Some(&config)).unwrap_err();
        assert!(e.message.contains("circle"), "{e}");
    }
}
