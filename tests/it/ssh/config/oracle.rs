//! What OpenSSH itself says: `ssh -G`, `ssh -Q` and the names of files in `ssh -v`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use runbook_core::Result;
use runbook_primitives::ssh::config::keywords::{KEYWORDS, Takes, Treatment};
use runbook_primitives::ssh::config::{Agent, Family, Files, Machine, Names, Options, Query, StrictHostKeys, Tty, place, resolve};

use crate::support::have;

/// Values by option, as `ssh -G` prints them.
pub type Values = BTreeMap<String, Vec<String>>;

/// OpenSSH, with a home and an environment of its own.
pub struct Oracle {
    /// The folder that stands for the home where `HOME` counts, and takes configurations.
    pub dir: tempfile::TempDir,
    usual: Values,
    all: BTreeMap<&'static str, Vec<String>>,
    env: BTreeMap<String, String>,
}

impl Oracle {
    /// `None` when there is no ssh here.
    pub fn new() -> Option<Oracle> {
        if !have("ssh") {
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary folder");
        let text = |s: &str| s.to_string();
        let env = BTreeMap::from([
            (text("HOME"), dir.path().display().to_string()),
            (text("PATH"), text("/usr/local/bin:/usr/bin:/bin")),
            (text("SHELL"), text("/bin/sh")),
            (text("KEYS"), text("/keys")),
            (text("EMPTY"), String::new()),
        ]);
        let mut o = Oracle { dir, usual: Values::new(), all: BTreeMap::new(), env };
        o.usual = o.ask(Path::new("none"), &Query::host("none")).expect("ssh -G without a configuration");
        for (option, what) in [
            ("ciphers", "cipher"),
            ("macs", "mac"),
            ("kexalgorithms", "kex"),
            ("hostkeyalgorithms", "HostKeyAlgorithms"),
            ("pubkeyacceptedalgorithms", "PubkeyAcceptedAlgorithms"),
            ("casignaturealgorithms", "sig"),
        ] {
            let out = o.run(&["-Q", what]);
            o.all.insert(option, String::from_utf8_lossy(&out.stdout).lines().map(str::to_string).collect());
        }
        Some(o)
    }

    /// The same machine as ours.
    pub fn machine(&self) -> Machine {
        Machine { env: self.env.clone(), ..Machine::here().expect("this machine") }
    }

    /// What we make of it.
    pub fn ours(&self, file: &Path, query: &Query) -> Result<Options> {
        resolve(&self.machine(), &Files::One(file.to_path_buf()), query)
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new("ssh").args(args).env_clear().envs(&self.env).output().expect("ssh runs")
    }

    fn arguments(file: &Path, query: &Query) -> Vec<String> {
        let mut args = vec!["-F".to_string(), file.display().to_string()];
        if let Some(p) = query.port {
            args.extend(["-p".into(), p.to_string()]);
        }
        if let Some(u) = &query.user {
            args.extend(["-l".into(), u.clone()]);
        }
        args
    }

    /// What `ssh -G` says, or why it refuses.
    pub fn ask(&self, file: &Path, query: &Query) -> Result<Values, String> {
        let mut args = Self::arguments(file, query);
        args.extend(["-G".into(), query.host.clone()]);
        let out = self.run(&args.iter().map(String::as_str).collect::<Vec<_>>());
        if !out.status.success() {
            return Err(String::from_utf8_lossy(&out.stderr).trim().to_string());
        }
        let mut values = Values::new();
        for line in String::from_utf8_lossy(&out.stdout).lines() {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            values.entry(key.to_ascii_lowercase()).or_default().push(value.to_string());
        }
        Ok(values)
    }

    /// The identity files, certificates and the proxy command that `ssh -v` uses in earnest, tokens expanded. Nothing is connected.
    pub fn in_earnest(&self, file: &Path, query: &Query, own_command: bool) -> (Vec<PathBuf>, Vec<PathBuf>, Option<String>) {
        let mut args = Self::arguments(file, query);
        args.extend(["-v".into(), "-o".into(), "LogLevel=DEBUG1".into()]);
        if !own_command {
            args.extend(["-o".into(), "ProxyCommand=false".into()]);
        }
        args.extend([query.host.clone(), "true".into()]);
        let out = self.run(&args.iter().map(String::as_str).collect::<Vec<_>>());
        // What ssh logs has its backslashes doubled.
        let said = String::from_utf8_lossy(&out.stderr).replace(r"\\", r"\");
        let files = |what: &str| -> Vec<PathBuf> {
            let of = |l: &str| l.split_once(what).and_then(|(_, r)| r.rsplit_once(" type ")).map(|(p, _)| PathBuf::from(p.trim()));
            let all: Vec<PathBuf> = said.lines().filter_map(of).collect();
            // Beside every key it looks for its certificate.
            let plain: BTreeSet<String> = all.iter().map(|p| format!("{}-cert", p.display())).collect();
            all.into_iter().filter(|p| !plain.contains(&p.display().to_string())).collect()
        };
        let command = said.lines().find_map(|l| l.split_once("Executing proxy command: exec ").map(|(_, c)| c.trim_end().to_string()));
        (files("identity file "), files("certificate file "), command)
    }

    fn names(&self, option: &str, names: Option<&Names>) -> Option<String> {
        let names = names?;
        let usual = self.usual.get(option)?.first()?;
        let all: Vec<&str> = self.all.get(option)?.iter().map(String::as_str).collect();
        Some(names.among(&usual.split(',').collect::<Vec<_>>(), &all).join(","))
    }

    /// What `ssh -G` should say of these options: only those are there of which it can be told.
    pub fn expected(&self, o: &Options) -> Values {
        let mut v = Values::new();
        let mut say = |key: &str, value: String| v.insert(key.to_string(), vec![value]);
        let yes = |b: bool| if b { "yes" } else { "no" }.to_string();
        let written = |key: &str| o.written.get(key).and_then(|v| v.first()).cloned();
        let line = |files: &[PathBuf]| match files {
            [] => "none".to_string(),
            some => some.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(" "),
        };
        say("user", o.user.clone());
        say("hostname", o.host.clone());
        say("port", o.port.to_string());
        say("batchmode", yes(o.batch_mode));
        say("compression", yes(o.compression));
        say("identitiesonly", yes(o.identities_only));
        say("tcpkeepalive", yes(o.tcp_keep_alive));
        say("passwordauthentication", yes(o.password_authentication));
        say("kbdinteractiveauthentication", yes(o.kbd_interactive_authentication));
        say("pubkeyauthentication", written("pubkeyauthentication").unwrap_or_else(|| o.pubkey_authentication.to_string()));
        say("numberofpasswordprompts", o.number_of_password_prompts.to_string());
        say("connectionattempts", o.connection_attempts.to_string());
        say("serveralivecountmax", o.server_alive_count_max.to_string());
        say("connecttimeout", written("connecttimeout").unwrap_or_else(|| "none".into()));
        say("userknownhostsfile", line(&o.user_known_hosts));
        say("globalknownhostsfile", line(&o.global_known_hosts));
        say("canonicalizehostname", written("canonicalizehostname").unwrap_or_else(|| "false".into()));
        say("canonicalizemaxdots", written("canonicalizemaxdots").unwrap_or_else(|| "1".into()));
        say("canonicalizefallbacklocal", written("canonicalizefallbacklocal").unwrap_or_else(|| "yes".into()));
        say("canonicaldomains", o.written.get("canonicaldomains").map_or("none".into(), |d| d.join(" ")));
        say(
            "addressfamily",
            match o.address_family {
                Family::Any => "any",
                Family::V4 => "inet",
                Family::V6 => "inet6",
            }
            .into(),
        );
        say(
            "stricthostkeychecking",
            match o.strict_host_keys {
                StrictHostKeys::Yes => "true",
                StrictHostKeys::Ask => "ask",
                StrictHostKeys::AcceptNew => "accept-new",
                StrictHostKeys::Off => "false",
            }
            .into(),
        );
        say(
            "requesttty",
            match o.request_tty {
                Tty::No => "false",
                Tty::Yes => "true",
                Tty::Force => "force",
                Tty::Auto => "auto",
            }
            .into(),
        );
        let mut maybe = |key: &str, value: Option<String>| value.map(|value| v.insert(key.to_string(), vec![value]));
        for (key, names) in [
            ("ciphers", &o.ciphers),
            ("macs", &o.macs),
            ("kexalgorithms", &o.kex_algorithms),
            ("hostkeyalgorithms", &o.host_key_algorithms),
            ("pubkeyacceptedalgorithms", &o.pubkey_accepted_algorithms),
            ("casignaturealgorithms", &o.ca_signature_algorithms),
        ] {
            // Without a list of ours it is the usual one, which must then be what ssh says too.
            maybe(key, self.names(key, names.as_ref()).or_else(|| self.usual.get(key).and_then(|u| u.first()).cloned()));
        }
        maybe("hostkeyalias", o.host_key_alias.clone());
        maybe("bindaddress", o.bind_address.clone());
        maybe("requiredrsasize", written("requiredrsasize"));
        maybe("serveraliveinterval", written("serveraliveinterval").or_else(|| (!o.batch_mode).then(|| "0".into())));
        maybe("preferredauthentications", o.preferred_authentications.as_ref().map(|p| p.join(",")));
        maybe("ignoreunknown", written("ignoreunknown"));
        maybe(
            "identityagent",
            written("identityagent").map(|w| match &o.identity_agent {
                _ if w.starts_with('$') && !w.starts_with("${") => w,
                Agent::None => "none".into(),
                Agent::Environment => "SSH_AUTH_SOCK".into(),
                Agent::Socket(p) => p.display().to_string(),
            }),
        );
        maybe("proxyjump", written("proxyjump").filter(|j| !j.eq_ignore_ascii_case("none")).map(|j| jump(&j)));
        maybe("proxycommand", written("proxycommand").filter(|c| !c.eq_ignore_ascii_case("none")));
        for k in KEYWORDS.iter().filter(|k| k.treatment == Treatment::Ignored) {
            if matches!(k.takes, Takes::Flag | Takes::Words(_) | Takes::Time) {
                maybe(k.key, written(k.key));
            }
        }
        for key in ["sendenv", "setenv", "identityfile", "certificatefile"] {
            if let Some(all) = o.written.get(key).filter(|l| !l.is_empty()) {
                v.insert(key.to_string(), all.clone());
            }
        }
        v
    }
}

/// As `ssh -G` prints a chain: the last host taken apart and put together.
fn jump(text: &str) -> String {
    let (before, last) = text.rsplit_once(',').map_or((None, text), |(b, l)| (Some(b), l));
    let hop = place::hop(last).expect("it was read before");
    let bare = hop.host.contains(':') || hop.host.chars().all(|c| c.is_ascii_digit() || c == '.');
    let host = if bare { format!("[{}]", hop.host) } else { hop.host.clone() };
    let user = hop.user.map(|u| format!("{u}@")).unwrap_or_default();
    let port = hop.port.map(|p| format!(":{p}")).unwrap_or_default();
    format!("{}{user}{host}{port}", before.map(|b| format!("{b},")).unwrap_or_default())
}

/// How often each option was compared, and every difference.
#[derive(Default)]
pub struct Tally {
    pub queries: usize,
    pub refused: usize,
    pub compared: BTreeMap<String, usize>,
    pub differences: Vec<String>,
}

impl Tally {
    /// Compares one answer.
    pub fn compare(&mut self, oracle: &Oracle, file: &Path, query: &Query, shown: &str) {
        self.queries += 1;
        let ours = oracle.ours(file, query);
        let theirs = oracle.ask(file, query);
        let (ours, theirs) = match (ours, theirs) {
            (Ok(o), Ok(t)) => (o, t),
            (Err(e), Err(_)) => {
                self.refused += 1;
                assert!(e.hint.is_some() && !e.retryable, "{e:?}");
                return;
            }
            (Ok(_), Err(t)) => return self.differences.push(format!("{shown}: ssh refuses it, we do not: {t}")),
            (Err(o), Ok(_)) => return self.differences.push(format!("{shown}: we refuse it, ssh does not: {o}")),
        };
        for (key, want) in oracle.expected(&ours) {
            *self.compared.entry(key.clone()).or_default() += 1;
            let got = theirs.get(&key).cloned().unwrap_or_default();
            if got != want {
                self.differences.push(format!("{shown}: {key}: ssh says {got:?}, we say {want:?}"));
            }
        }
        // What ssh says and we have nothing to say to, though it is an option that we follow.
        for k in KEYWORDS.iter().filter(|k| k.treatment == Treatment::Used) {
            if theirs.contains_key(k.key) && !ours.written.contains_key(k.key) && oracle.usual.get(k.key) != theirs.get(k.key) {
                let derived = ["host", "hostname", "user", "port", "serveraliveinterval", "userknownhostsfile"];
                if !derived.contains(&k.key) {
                    self.differences.push(format!("{shown}: {}: ssh says {:?}, we have not read it", k.key, theirs.get(k.key)));
                }
            }
        }
    }

    /// Prints how much was compared, and fails on a difference.
    pub fn finish(self, what: &str) {
        let options: usize = self.compared.values().sum();
        println!(
            "{what}: {} queries ({} of them refused by both), {options} values of {} options compared, {} differ",
            self.queries,
            self.refused,
            self.compared.len(),
            self.differences.len()
        );
        assert!(self.differences.is_empty(), "{}", self.differences.join("\n"));
    }
}
