//! Where and how a host is reached: what the inventory says, before what the SSH configuration says.

use std::path::{Path, PathBuf};
use std::time::Duration;

use runbook_core::inventory::{Environment, Resource, Section};
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result, Value};

use super::config::{self, Files, Machine, Options, Query};

/// Hosts on the way to hosts on the way go no deeper than this.
const DEPTH: usize = 16;

/// Everything that is needed to log in to a host: what the SSH configuration says of it, and what the inventory adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// The inventory name; for a jump host that is not in the inventory, that of the host that is reached through it.
    pub name: String,
    /// The environment's name.
    pub environment_name: String,
    /// User, host, port and all that the SSH configuration says, overridden by the inventory; also reached as fields of the target.
    pub options: Options,
    /// The host through which this one is reached.
    pub jump: Option<Box<Target>>,
    /// Environment variables that commands on the host get, when it accepts them.
    pub environment: Vec<(String, String)>,
    /// The shell that runs `proxy_command`.
    pub shell: PathBuf,
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
    /// Under which name and port `known_hosts` has its keys: a `HostKeyAlias` stands there as it is, without the port.
    pub(super) fn known_as(&self) -> (&str, u16) {
        self.options.host_key_alias.as_deref().map_or((&self.options.host, self.options.port), |alias| (alias, 22))
    }

    /// Every `known_hosts` file, the user's first.
    pub(super) fn known_hosts(&self) -> Vec<PathBuf> {
        self.options.user_known_hosts.iter().chain(&self.options.global_known_hosts).cloned().collect()
    }
}

/// A `user@host:port` taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub user: Option<String>,
    pub host: String,
    pub port: Option<u16>,
}

/// Takes `[user@]host[:port]` or `ssh://[user@]host[:port]` apart; an IPv6 address with a port stands in brackets.
pub(crate) fn parse_place(text: &str) -> Result<Place> {
    let bad = |why: &str| {
        Error::new(Code::SSH_CONFIG, format!("\"{text}\" is not an SSH target: {why}"))
            .hint("write user@host, user@host:port, user@[2001:db8::1]:port, ssh://user@host:port, or an alias of ~/.ssh/config")
    };
    if text.starts_with("ssh://") {
        let hop = config::place::hop(text).map_err(|why| bad(&why))?;
        return Ok(Place { user: hop.user, host: hop.host, port: hop.port });
    }
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
///
/// # Errors
/// `RB0106` for an unknown name, `RB0304` for what cannot be used in the inventory or the SSH configuration.
pub(super) async fn resolve(cx: &Cx, name: &str) -> Result<Target> {
    let (env, folder, own) = (cx.env.clone(), cx.files.folder(), name.to_string());
    // The configuration may run commands and ask the DNS.
    let work = tokio::task::spawn_blocking(move || resolve_with(&Machine::here()?, &env, &own, folder.as_deref()));
    tokio::select! {
        done = work => done.map_err(|e| Error::internal(format!("reading the SSH configuration: {e}")))?,
        () = cx.cancel.cancelled() => Err(super::transport::aborted(name)),
    }
}

/// How long a lost connection to a host is tried again, from the inventory alone.
pub(super) fn reconnect_within(env: &Environment, name: &str) -> Result<Duration> {
    Ok(span(env.resource(Section::Hosts, name)?, "reconnect_within")?.unwrap_or(Duration::from_secs(300)))
}

fn span(r: &Resource, key: &str) -> Result<Option<Duration>> {
    match r.settings.get(key) {
        Some(Value::Duration(d)) => Ok(Some(*d)),
        Some(Value::Str(s)) => runbook_core::units::parse_duration(s).map(Some),
        _ => Ok(None),
    }
}

fn resolve_with(machine: &Machine, env: &Environment, name: &str, folder: Option<&Path>) -> Result<Target> {
    let r = env.resource(Section::Hosts, name)?;
    let place = place(r)?;
    let files = match r.str("ssh_config") {
        None => Files::Usual,
        Some(none) if none.eq_ignore_ascii_case("none") => Files::None,
        Some(file) => Files::One(path(machine, r, folder, file)?),
    };
    let query = Query { host: place.host, user: place.user, port: place.port, jumps: None };
    let mut t = target(machine, &files, &query, r, &mut vec![])?;
    let mut hop = Some(&mut t);
    let mut own = Some(r);
    while let Some(at) = hop {
        at.environment_name.clone_from(&env.name);
        if let Some(r) = own.take().or_else(|| among(env, at)) {
            settle(machine, r, folder, at)?;
        }
        hop = at.jump.as_deref_mut();
    }
    Ok(t)
}

/// Where the inventory says that a host is.
fn place(r: &Resource) -> Result<Place> {
    // A host without `ssh` is reached by its address or, failing that, by its name, as an alias.
    let mut place = parse_place(r.str("ssh").or(r.str("address")).unwrap_or(&r.name))?;
    if let Some(p) = r.int("port") {
        let bad = || Error::new(Code::SSH_CONFIG, format!("port {p} of host \"{}\" is not from 1 to 65535", r.name));
        place.port = Some(u16::try_from(p).ok().filter(|p| *p > 0).ok_or_else(bad)?);
    }
    if let Some(user) = r.str("user") {
        place.user = Some(user.to_string());
    }
    Ok(place)
}

/// The host of the inventory that a jump host is: the same place, written as it is in `ProxyJump` or as the SSH configuration resolves it.
fn among<'e>(env: &'e Environment, hop: &Target) -> Option<&'e Resource> {
    env.resources.get(&Section::Hosts)?.values().find(|r| {
        // One that cannot be used is told when it is.
        let Ok(p) = place(r) else { return false };
        let host = [&hop.original, &hop.host].into_iter().any(|h| h.eq_ignore_ascii_case(&p.host));
        host && p.port.is_none_or(|p| p == hop.port) && p.user.is_none_or(|u| u == hop.user)
    })
}

/// A path of the inventory.
fn path(machine: &Machine, r: &Resource, folder: Option<&Path>, text: &str) -> Result<PathBuf> {
    let bad = |why: String, hint: &str| Error::new(Code::SSH_CONFIG, why).host(&r.name).hint(hint);
    let expanded = machine.tilde(text).map_err(|who| {
        bad(format!("{text} of host \"{}\": there is no user {who}", r.name), "write ~/… for your own home, or an absolute path")
    })?;
    if expanded.starts_with('/') {
        return Ok(expanded.into());
    }
    folder.map(|f| f.join(&expanded)).ok_or_else(|| {
        bad(format!("{text} of host \"{}\" is relative, and there is no project folder here", r.name), "write an absolute path")
    })
}

/// Adds what the inventory says of a host to what the SSH configuration says.
fn settle(machine: &Machine, r: &Resource, folder: Option<&Path>, t: &mut Target) -> Result<()> {
    let paths = |key: &str| r.list(key).iter().map(|p| path(machine, r, folder, p)).collect::<Result<Vec<_>>>();
    t.name.clone_from(&r.name);
    let identities = paths("identity_file")?;
    if !identities.is_empty() {
        t.options.identity_files = identities;
        t.options.identities_configured = true;
        // An agent full of other keys must not use up the host's patience before the one that was named.
        t.options.identities_only = true;
    }
    let known = paths("known_hosts")?;
    if !known.is_empty() {
        t.options.user_known_hosts = known;
        t.options.global_known_hosts = vec![];
    }
    let text = |key: &str| r.str(key).map(str::to_string);
    t.password = text("password");
    t.passphrase = text("passphrase");
    t.sudo_password = text("sudo_password");
    if let Some(d) = span(r, "connect_timeout")? {
        t.connect_timeout = d;
    }
    if let Some(d) = span(r, "reconnect_within")? {
        t.reconnect_within = d;
    }
    Ok(())
}

/// A host and those on the way to it. `way` are those that led here, from the goal on.
fn target(
    machine: &Machine,
    files: &Files,
    query: &Query,
    goal: &Resource,
    way: &mut Vec<(String, u16, Option<String>)>,
) -> Result<Target> {
    let name = &goal.name;
    let options = config::resolve(machine, files, query).map_err(|e| e.host(name))?;
    let here = (options.host.clone(), options.port, query.jumps.clone());
    if way.contains(&here) || way.len() > DEPTH {
        let path: Vec<&str> = way.iter().map(|(h, ..)| h.as_str()).chain([here.0.as_str()]).collect();
        return Err(Error::new(Code::SSH_CONFIG, format!("the ProxyJump of {name} goes round in a circle: {}", path.join(" through ")))
            .host(name)
            .hint("set `ProxyJump none` for the host that is reached directly"));
    }
    way.push(here);
    // `a,b` means: through a to b to the host. Each has its own configuration; the way to b is then a, whatever b's own says.
    let jump = match options.jumps.split_last() {
        None => None,
        Some((near, before)) => {
            let jumps = (!before.is_empty()).then(|| before.iter().map(ToString::to_string).collect::<Vec<_>>().join(","));
            let query = Query { host: near.host.clone(), user: near.user.clone(), port: near.port, jumps };
            Some(Box::new(target(machine, files, &query, goal, way)?))
        }
    };
    way.pop();
    Ok(Target {
        name: name.clone(),
        environment_name: String::new(),
        connect_timeout: options.connect_timeout.unwrap_or(Duration::from_secs(15)),
        jump,
        environment: environment(machine, &options),
        shell: machine.shell().to_path_buf(),
        options,
        password: None,
        passphrase: None,
        sudo_password: None,
        reconnect_within: Duration::from_secs(300),
    })
}

/// The variables of `SetEnv`, and of ours those that `SendEnv` names.
///
/// Not the language: what commands say is read by programs, which must not depend on who sits here.
fn environment(machine: &Machine, o: &Options) -> Vec<(String, String)> {
    let mut all = o.set_env.clone();
    let sent = |name: &str| o.send_env.iter().any(|p| config::pattern::matches(name, p));
    let language = |name: &str| name == "LANG" || name == "LANGUAGE" || name.starts_with("LC_");
    for (name, value) in &machine.env {
        if sent(name) && !language(name) && !all.iter().any(|(n, _)| n == name) {
            all.push((name.clone(), value.clone()));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// An environment with these hosts.
    fn env(hosts: &[(&str, &[(&str, &str)])]) -> Environment {
        let mut env = Environment { name: "test".into(), ..Environment::default() };
        for (name, settings) in hosts {
            let settings = settings.iter().map(|(k, v)| ((*k).to_string(), Value::from(*v))).collect::<BTreeMap<_, _>>();
            let r = Resource { name: (*name).into(), kind: "ssh".into(), settings };
            env.resources.entry(Section::Hosts).or_default().insert((*name).into(), r);
        }
        env
    }

    /// A person whose home has this `~/.ssh/config`, and a project folder `/project`.
    fn resolved(config: &str, settings: &[(&str, &str)]) -> Result<Target> {
        resolved_among(config, &env(&[("old", settings)]))
    }

    fn resolved_among(config: &str, env: &Environment) -> Result<Target> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".ssh")).unwrap();
        std::fs::write(dir.path().join(".ssh/config"), config).unwrap();
        let machine = Machine { home: dir.path().into(), system: dir.path().into(), ..Machine::here().unwrap() };
        let mut t = resolve_with(&machine, env, "old", Some(Path::new("/project")))?;
        for p in t.options.identity_files.iter_mut().chain(&mut t.options.user_known_hosts) {
            if let Ok(rest) = p.strip_prefix(dir.path()) {
                *p = Path::new("~").join(rest);
            }
        }
        Ok(t)
    }

    #[test]
    fn places() {
        let p = |t: &str| parse_place(t).map(|p| (p.user.unwrap_or_default(), p.host, p.port.unwrap_or(0)));
        assert_eq!(p("root@192.0.2.1:2222").unwrap(), ("root".into(), "192.0.2.1".into(), 2222));
        assert_eq!(p("web").unwrap(), (String::new(), "web".into(), 0));
        assert_eq!(p("a@[2001:db8::1]:22").unwrap(), ("a".into(), "2001:db8::1".into(), 22));
        assert_eq!(p("a@2001:db8::1").unwrap(), ("a".into(), "2001:db8::1".into(), 0));
        assert_eq!(p("me@corp@host").unwrap(), ("me@corp".into(), "host".into(), 0));
        assert_eq!(p("ssh://me@host:2222").unwrap(), ("me".into(), "host".into(), 2222));
        for bad in ["", "@host", "a@", "a@host:0", "a@host:99999", "a@host:x", "a@[::1", "a@[::1]x", "-oProxyCommand=x", "a b", "ssh://h/x"]
        {
            let e = p(bad).unwrap_err();
            assert_eq!(e.code, Code::SSH_CONFIG, "{bad}");
            assert!(e.hint.is_some());
        }
    }

    #[test]
    fn a_place_with_settings() {
        let settings = [
            ("ssh", "root@192.0.2.1:2222"),
            ("identity_file", "~/k"),
            ("known_hosts", "/kh"),
            ("password", "pw"),
            ("connect_timeout", "7s"),
        ];
        let t = resolved("Host 192.*\n User nobody\n Port 7\n ConnectTimeout 3\n HostKeyAlias old-key\n", &settings).unwrap();
        assert_eq!((t.user.as_str(), t.host.as_str(), t.port), ("root", "192.0.2.1", 2222));
        assert_eq!((t.identity_files.clone(), t.identities_configured), (vec![PathBuf::from("~/k")], true));
        assert_eq!(t.known_hosts(), vec![PathBuf::from("/kh")]);
        assert_eq!(t.password.as_deref(), Some("pw"));
        assert_eq!(t.connect_timeout, Duration::from_secs(7));
        assert_eq!(t.host_key_alias.as_deref(), Some("old-key"), "the configuration counts for user@host as well");
    }

    #[test]
    fn paths_are_relative_to_the_project() {
        let t = resolved("", &[("ssh", "h"), ("identity_file", "keys/id"), ("known_hosts", "known_hosts")]).unwrap();
        assert_eq!(t.identity_files, [PathBuf::from("/project/keys/id")]);
        assert_eq!(t.user_known_hosts, [PathBuf::from("/project/known_hosts")]);
        let e = resolve_with(&Machine::here().unwrap(), &env(&[("old", &[("known_hosts", "kh")])]), "old", None).unwrap_err();
        assert!(e.message.contains("there is no project folder"), "{e}");
    }

    #[test]
    fn a_configuration_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("conf");
        std::fs::write(&file, "Port 7\n").unwrap();
        let port = |c: &str| resolved("Port 9\n", &[("ssh", "h"), ("ssh_config", c)]).map(|t| t.port);
        assert_eq!(port(&file.display().to_string()).unwrap(), 7);
        assert_eq!(port("none").unwrap(), 22);
        assert!(port("no-such-file").unwrap_err().message.contains("/project/no-such-file"));
    }

    #[test]
    fn an_alias_takes_everything_from_ssh_config() {
        let text = "Host shop\n  HostName 192.0.2.7\n  User deploy\n  Port 2200\n  IdentityFile ~/.ssh/shop_%r\n  UserKnownHostsFile ~/kh\n  HostKeyAlias shop-key\n  ConnectTimeout 3\n  ProxyJump me@gate:2022,inner\n\nHost inner\n  HostName 10.0.0.9\n  User in\n  ProxyJump elsewhere\nHost gate\n  ProxyJump first\n";
        let t = resolved(text, &[("ssh", "shop")]).unwrap();
        assert_eq!((t.user.as_str(), t.host.as_str(), t.port), ("deploy", "192.0.2.7", 2200));
        assert_eq!(t.identity_files, vec![PathBuf::from("~/.ssh/shop_deploy")]);
        assert_eq!(t.user_known_hosts.first(), Some(&PathBuf::from("~/kh")));
        assert_eq!(t.host_key_alias.as_deref(), Some("shop-key"));
        assert_eq!(t.connect_timeout, Duration::from_secs(3));
        let near = t.jump.unwrap();
        assert_eq!((near.user.as_str(), near.host.as_str()), ("in", "10.0.0.9"));
        let far = near.jump.as_deref().unwrap();
        assert_eq!((far.user.as_str(), far.host.as_str(), far.port), ("me", "gate", 2022));
        let first = far.jump.as_deref().unwrap();
        assert_eq!(first.host, "first", "the first host on the way may have a way of its own");
        assert!(first.jump.is_none());
    }

    #[test]
    fn a_jump_host_of_the_inventory_brings_its_settings() {
        let config = "Host shop\n  ProxyJump first,me@gate:2022\nHost gate\n  HostName 192.0.2.7\n  IdentityFile ~/.ssh/other\nHost *\n  User deploy\n";
        let gate = [("ssh", "me@192.0.2.7:2022"), ("identity_file", "keys/gate"), ("password", "gate-pw"), ("known_hosts", "/kh")];
        let env = |gate: &[(&str, &str)]| {
            env(&[("old", &[("ssh", "shop"), ("password", "old-pw")]), ("first", &[("passphrase", "first-pp")]), ("edge", gate)])
        };
        let t = resolved_among(config, &env(&gate)).unwrap();
        assert_eq!((t.name.as_str(), t.environment_name.as_str(), t.password.as_deref()), ("old", "test", Some("old-pw")));
        // Found by where it is.
        let near = t.jump.unwrap();
        assert_eq!((near.name.as_str(), near.password.as_deref(), near.passphrase.as_deref()), ("edge", Some("gate-pw"), None));
        assert_eq!((near.user.as_str(), near.host.as_str(), near.port), ("me", "192.0.2.7", 2022));
        assert_eq!((near.identity_files.clone(), near.identities_only), (vec![PathBuf::from("/project/keys/gate")], true));
        assert_eq!(near.known_hosts(), vec![PathBuf::from("/kh")]);
        // And by its name.
        let far = near.jump.as_deref().unwrap();
        assert_eq!((far.name.as_str(), far.passphrase.as_deref(), far.user.as_str()), ("first", Some("first-pp"), "deploy"));
        // Another user's password, or another port's, is not for it.
        for other in ["you@192.0.2.7:2022", "me@192.0.2.7:22", "me@192.0.2.8"] {
            let t = resolved_among(config, &env(&[("ssh", other), ("password", "gate-pw")])).unwrap();
            assert_eq!(t.jump.as_ref().map(|j| (j.name.as_str(), j.password.clone())), Some(("old", None)), "{other}");
        }
    }

    #[test]
    fn the_environment_that_is_passed_on() {
        let machine = Machine {
            env: [("A", "1"), ("B", "2"), ("LC_ALL", "de")].map(|(n, v)| (n.into(), v.into())).into(),
            ..Machine::here().unwrap()
        };
        let mut o = Options::plain("h", "u", Path::new("/"));
        o.send_env = vec!["*".into()];
        o.set_env = vec![("B".into(), "set".into()), ("LC_TIME".into(), "C".into())];
        let shown: Vec<String> = environment(&machine, &o).iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(shown, ["B=set", "LC_TIME=C", "A=1"]);
    }

    #[test]
    fn a_circle_of_jumps_is_found() {
        let e = resolved("Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n", &[("ssh", "a")]).unwrap_err();
        assert!(e.message.contains("circle: a through b through a"), "{e}");
        assert!(resolved("ProxyJump gate", &[("ssh", "a")]).unwrap_err().message.contains("circle"), "gate through gate");
        assert!(resolved("Match !host gate\n ProxyJump gate", &[("ssh", "a")]).unwrap().jump.is_some());
    }
}
