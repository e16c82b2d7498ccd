//! Every keyword of ssh_config(5), what it takes, and what becomes of it here. The reference page is made from this table.

/// What a keyword takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Yes or no.
    Flag,
    /// One word of these, and how OpenSSH prints it.
    Words(&'static [(&'static str, &'static str)]),
    /// A time, or `none`.
    Time,
    /// A number.
    Int,
    /// A port.
    Port,
    /// One text.
    Text,
    /// The rest of the line as it stands.
    Command,
    /// The hops of `ProxyJump`.
    Hops,
    /// Files, of which the first line that names any counts; `none` stands alone.
    Files,
    /// One file a line, all of which count.
    EachFile,
    /// A list of algorithms.
    Algorithms,
    /// The path of an agent's socket, or a variable.
    AgentPath,
    /// Patterns of environment variables, added up; `-` takes away.
    EnvNames,
    /// `NAME=value`, of which the first line counts.
    EnvValues,
    /// Domains, of which the first line counts; `none` stands alone.
    Domains,
    /// Something that has no meaning here; it is not looked at.
    Anything,
    /// `Host`.
    Host,
    /// `Match`.
    Match,
    /// `Include`.
    Include,
}

/// What becomes of a keyword.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// It is followed.
    Used,
    /// It does not matter here, or only makes a connection stricter or more comfortable.
    Ignored,
    /// It would change where or how a connection is made, and is not supported: anything but these values is refused.
    Refused(&'static [&'static str]),
    /// OpenSSH itself passes over it.
    Obsolete,
}

/// A keyword.
#[derive(Debug)]
pub struct Keyword {
    /// Its name as the manual writes it.
    pub name: &'static str,
    /// Its name in lower case, as `ssh -G` prints it.
    pub key: &'static str,
    /// Other names for it, in lower case.
    pub aliases: &'static [&'static str],
    /// What it takes.
    pub takes: Takes,
    /// What becomes of it.
    pub treatment: Treatment,
    /// What it does here, or why it is ignored or refused: one sentence.
    pub doc: &'static str,
}

/// Finds a keyword by any of its names, in lower case.
#[must_use]
pub fn find(name: &str) -> Option<&'static Keyword> {
    KEYWORDS.iter().find(|k| k.key == name || k.aliases.contains(&name))
}

/// A row of the table; its key is its name in lower case.
macro_rules! row {
    ($treatment:expr, $name:literal, $takes:expr, $doc:literal) => {{
        const KEY: [u8; $name.len()] = {
            let mut key = [0; $name.len()];
            key.copy_from_slice($name.as_bytes());
            key.make_ascii_lowercase();
            key
        };
        let key = match std::str::from_utf8(&KEY) {
            Ok(key) => key,
            Err(_) => $name,
        };
        Keyword { name: $name, key, aliases: &[], takes: $takes, treatment: $treatment, doc: $doc }
    }};
}

macro_rules! used {
    ($name:literal, $takes:expr, $doc:literal $(,)?) => {
        row!(Treatment::Used, $name, $takes, $doc)
    };
}

macro_rules! ignored {
    ($name:literal, $takes:expr, $doc:literal $(,)?) => {
        row!(Treatment::Ignored, $name, $takes, $doc)
    };
}

macro_rules! refused {
    ($name:literal, $takes:expr, $harmless:expr, $doc:literal $(,)?) => {
        row!(Treatment::Refused($harmless), $name, $takes, $doc)
    };
}

const fn also(k: Keyword, aliases: &'static [&'static str]) -> Keyword {
    Keyword { aliases, ..k }
}

const ASK: &[(&str, &str)] = &[("true", "true"), ("false", "false"), ("yes", "true"), ("no", "false"), ("ask", "ask")];
const CANONICALIZE: &[(&str, &str)] = &[("true", "true"), ("false", "false"), ("yes", "true"), ("no", "false"), ("always", "always")];
const FAMILY: &[(&str, &str)] = &[("inet", "inet"), ("inet6", "inet6"), ("any", "any")];
const PUBKEY: &[(&str, &str)] =
    &[("true", "true"), ("false", "false"), ("yes", "true"), ("no", "false"), ("unbound", "unbound"), ("host-bound", "host-bound")];
const STRICT: &[(&str, &str)] = &[
    ("true", "true"),
    ("false", "false"),
    ("yes", "true"),
    ("no", "false"),
    ("ask", "ask"),
    ("off", "false"),
    ("accept-new", "accept-new"),
];
const TTY: &[(&str, &str)] =
    &[("true", "true"), ("yes", "true"), ("false", "false"), ("no", "false"), ("force", "force"), ("auto", "auto")];
const YES_NO: &[(&str, &str)] = &[("yes", "yes"), ("no", "no")];
const LEVEL: &[(&str, &str)] = &[
    ("QUIET", "QUIET"),
    ("FATAL", "FATAL"),
    ("ERROR", "ERROR"),
    ("INFO", "INFO"),
    ("VERBOSE", "VERBOSE"),
    ("DEBUG", "DEBUG"),
    ("DEBUG1", "DEBUG"),
    ("DEBUG2", "DEBUG2"),
    ("DEBUG3", "DEBUG3"),
];
const MASTER: &[(&str, &str)] =
    &[("true", "true"), ("yes", "true"), ("false", "false"), ("no", "false"), ("auto", "auto"), ("ask", "ask"), ("autoask", "autoask")];
const SESSION: &[(&str, &str)] = &[("none", "none"), ("subsystem", "subsystem"), ("default", "default")];
const TUNNEL: &[(&str, &str)] = &[
    ("ethernet", "ethernet"),
    ("point-to-point", "point-to-point"),
    ("true", "point-to-point"),
    ("yes", "point-to-point"),
    ("false", "false"),
    ("no", "false"),
];

/// Every keyword, in the order of the reference page.
pub const KEYWORDS: &[Keyword] = &[
    used!("Host", Takes::Host, "What follows is for the hosts that one of its patterns matches and none negated by `!` does."),
    used!("Match", Takes::Match, "What follows is for connections that meet all of its criteria."),
    used!("Include", Takes::Include, "Reads other files in its place, up to 16 deep; patterns, relative to `~/.ssh` or `/etc/ssh`.",),
    used!("IgnoreUnknown", Takes::Text, "Patterns of keywords that may be unknown."),
    used!("Tag", Takes::Text, "A word for `Match tagged`."),
    used!("HostName", Takes::Text, "Where to connect to; `%h` is the name that was asked for."),
    used!("User", Takes::Text, "The login name; `user@` and `user` of runbook.toml come first."),
    used!("Port", Takes::Port, "The port; `:port` and `port` of runbook.toml come first."),
    used!("AddressFamily", Takes::Words(FAMILY), "IPv4 alone, IPv6 alone, or any."),
    used!("BindAddress", Takes::Text, "The local address to connect from."),
    used!("ConnectTimeout", Takes::Time, "Limit for a connection to stand; 15 seconds when nothing says otherwise."),
    used!("ConnectionAttempts", Takes::Int, "How often a connection is tried, a second apart."),
    also(used!("TCPKeepAlive", Takes::Flag, "Whether TCP looks for dead peers."), &["keepalive"]),
    also(
        used!(
            "ServerAliveInterval",
            Takes::Time,
            "How often a silent host is asked whether it is there; 10 seconds when it is not set (300 in OpenSSH's Debian package with `BatchMode`). 0 leaves it at that: runbook always asks.",
        ),
        &["protocolkeepalives", "setuptimeout"],
    ),
    used!("ServerAliveCountMax", Takes::Int, "How many unanswered questions end the connection."),
    used!("ProxyJump", Takes::Hops, "The hosts on the way, each with its own configuration; `none`; a circle is refused."),
    used!("ProxyCommand", Takes::Command, "The command whose input and output are the connection, run by the shell of `SHELL`; `none`.",),
    used!(
        "CanonicalizeHostname",
        Takes::Words(CANONICALIZE),
        "Whether short names are looked up in the domains of `CanonicalDomains`; the files are then read again for the name that was found.",
    ),
    used!("CanonicalDomains", Takes::Domains, "The domains for it."),
    used!("CanonicalizeMaxDots", Takes::Int, "Names with more dots are left as they are."),
    used!("CanonicalizeFallbackLocal", Takes::Flag, "Whether a name that is in none of the domains is taken as it is.",),
    also(used!("IdentityFile", Takes::EachFile, "A key; all of them are tried, in order."), &["identityfile2"]),
    used!("IdentitiesOnly", Takes::Flag, "Whether the agent's other keys are left alone."),
    used!("IdentityAgent", Takes::AgentPath, "The agent's socket, `SSH_AUTH_SOCK`, a variable, or `none`."),
    used!("CertificateFile", Takes::EachFile, "A certificate for a key; all of them are tried."),
    used!("PreferredAuthentications", Takes::Text, "The order in which ways to log in are tried."),
    also(used!("PubkeyAuthentication", Takes::Words(PUBKEY), "Whether keys may be used."), &["dsaauthentication"]),
    used!("PasswordAuthentication", Takes::Flag, "Whether a password may be used."),
    also(
        used!("KbdInteractiveAuthentication", Takes::Flag, "Whether questions of the host may be answered."),
        &["challengeresponseauthentication", "skeyauthentication", "tisauthentication"],
    ),
    used!("NumberOfPasswordPrompts", Takes::Int, "How often a password is asked for."),
    used!("BatchMode", Takes::Flag, "Whether nothing may be asked of the operator."),
    used!("UserKnownHostsFile", Takes::Files, "The person's files of host keys, or `none`."),
    used!("GlobalKnownHostsFile", Takes::Files, "The machine's files of host keys, or `none`."),
    used!("HostKeyAlias", Takes::Text, "The name under which the host's key is looked up."),
    used!("Ciphers", Takes::Algorithms, "The ciphers: a list, or `+`, `-`, `^` and a list; those that runbook has."),
    used!("MACs", Takes::Algorithms, "The message authentication codes, in the same way."),
    used!("KexAlgorithms", Takes::Algorithms, "The key exchanges, in the same way."),
    used!("HostKeyAlgorithms", Takes::Algorithms, "The types of host keys, in the same way."),
    also(
        used!("PubkeyAcceptedAlgorithms", Takes::Algorithms, "The types of keys to log in with, in the same way.",),
        &["pubkeyacceptedkeytypes"],
    ),
    used!("CASignatureAlgorithms", Takes::Algorithms, "How certificates may be signed, in the same way."),
    used!("RequiredRSASize", Takes::Int, "The smallest RSA key that is accepted, in bits."),
    used!("Compression", Takes::Words(YES_NO), "Whether the connection is compressed."),
    used!("SendEnv", Takes::EnvNames, "Environment variables that are passed on."),
    used!("SetEnv", Takes::EnvValues, "Environment variables that are set on the host."),
    refused!("ProxyUseFdpass", Takes::Flag, &["no"], "A `ProxyCommand` that hands over a socket."),
    refused!("BindInterface", Takes::Text, &[], "Connecting from an interface; `BindAddress` does."),
    refused!("CanonicalizePermittedCNAMEs", Takes::Anything, &["none"], "Following aliases of the DNS to other names.",),
    refused!("KnownHostsCommand", Takes::Command, &["none"], "A command that knows host keys."),
    refused!("RevokedHostKeys", Takes::Text, &["none"], "A list of revoked host keys; `@revoked` lines of `known_hosts` are read.",),
    also(
        refused!("PKCS11Provider", Takes::Text, &["none"], "Keys in a token; load them into the agent (`ssh-add -s`)."),
        &["smartcarddevice"],
    ),
    refused!("RefuseConnection", Takes::Text, &[], "The configuration itself refuses the connection."),
    ignored!("AddKeysToAgent", Takes::Anything, "The agent is left as it is."),
    ignored!("ChannelTimeout", Takes::Anything, "Channels end with their commands."),
    ignored!("CheckHostIP", Takes::Flag, "Keys are looked up by name."),
    ignored!("ClearAllForwardings", Takes::Flag, "Nothing is forwarded."),
    ignored!("ControlMaster", Takes::Words(MASTER), "Connections are shared within runbook."),
    ignored!("ControlPath", Takes::Text, "Connections are shared within runbook."),
    ignored!("ControlPersist", Takes::Anything, "Connections are shared within runbook."),
    ignored!("DynamicForward", Takes::Anything, "Nothing is forwarded."),
    ignored!("EnableEscapeCommandline", Takes::Flag, "There is no interactive session."),
    ignored!("EnableSSHKeysign", Takes::Flag, "Host-based login is not tried."),
    ignored!("EscapeChar", Takes::Anything, "There is no interactive session."),
    ignored!("ExitOnForwardFailure", Takes::Flag, "Nothing is forwarded."),
    ignored!("FingerprintHash", Takes::Text, "Fingerprints are shown as SHA-256."),
    ignored!("ForkAfterAuthentication", Takes::Flag, "runbook stays in front."),
    ignored!("ForwardAgent", Takes::Anything, "The agent is not lent to hosts."),
    ignored!("ForwardX11", Takes::Flag, "Nothing is forwarded."),
    ignored!("ForwardX11Timeout", Takes::Time, "Nothing is forwarded."),
    ignored!("ForwardX11Trusted", Takes::Flag, "Nothing is forwarded."),
    ignored!("GatewayPorts", Takes::Flag, "Nothing is forwarded."),
    ignored!("GSSAPIAuthentication", Takes::Flag, "Kerberos is not tried; other ways to log in are."),
    ignored!("GSSAPIClientIdentity", Takes::Text, "Kerberos is not tried."),
    ignored!("GSSAPIDelegateCredentials", Takes::Flag, "Kerberos is not tried."),
    ignored!("GSSAPIKexAlgorithms", Takes::Text, "Kerberos is not tried."),
    ignored!("GSSAPIKeyExchange", Takes::Flag, "Kerberos is not tried."),
    ignored!("GSSAPIRenewalForcesRekey", Takes::Flag, "Kerberos is not tried."),
    ignored!("GSSAPIServerIdentity", Takes::Text, "Kerberos is not tried."),
    ignored!("GSSAPITrustDns", Takes::Flag, "Kerberos is not tried."),
    ignored!("HashKnownHosts", Takes::Flag, "Hashed names are read; names are written as they are."),
    also(ignored!("HostbasedAcceptedAlgorithms", Takes::Algorithms, "Host-based login is not tried."), &["hostbasedkeytypes"]),
    ignored!("HostbasedAuthentication", Takes::Flag, "Host-based login is not tried; other ways to log in are."),
    ignored!("IPQoS", Takes::Anything, "Packets are not marked."),
    ignored!("KbdInteractiveDevices", Takes::Text, "The host chooses how it asks."),
    ignored!("LocalCommand", Takes::Command, "Nothing is run on this machine."),
    ignored!("LocalForward", Takes::Anything, "Nothing is forwarded."),
    ignored!("LogLevel", Takes::Words(LEVEL), "See `RUNBOOK_LOG`."),
    ignored!("LogVerbose", Takes::Anything, "See `RUNBOOK_LOG`."),
    ignored!("NoHostAuthenticationForLocalhost", Takes::Flag, "The key of every host is checked."),
    ignored!("ObscureKeystrokeTiming", Takes::Anything, "There is no interactive session."),
    ignored!("PermitLocalCommand", Takes::Flag, "Nothing is run on this machine."),
    ignored!("PermitRemoteOpen", Takes::Anything, "Nothing is forwarded."),
    ignored!("RekeyLimit", Takes::Anything, "Keys are renewed after 1 GiB or an hour."),
    ignored!("RemoteCommand", Takes::Command, "runbook runs its own commands."),
    ignored!("RemoteForward", Takes::Anything, "Nothing is forwarded."),
    ignored!("RequestTTY", Takes::Words(TTY), "Commands run without a terminal unless the runbook asks for one."),
    ignored!("SecurityKeyProvider", Takes::Text, "Security keys are used through the agent."),
    ignored!("SessionType", Takes::Words(SESSION), "runbook runs commands."),
    ignored!("StdinNull", Takes::Flag, "Each command has its own input."),
    ignored!("StreamLocalBindMask", Takes::Anything, "Nothing is forwarded."),
    ignored!("StreamLocalBindUnlink", Takes::Flag, "Nothing is forwarded."),
    ignored!("StrictHostKeyChecking", Takes::Words(STRICT), "A key that is not known is never taken unasked, whatever this says.",),
    ignored!("SyslogFacility", Takes::Text, "See `RUNBOOK_LOG`."),
    ignored!("Tunnel", Takes::Words(TUNNEL), "Nothing is forwarded."),
    ignored!("TunnelDevice", Takes::Anything, "Nothing is forwarded."),
    ignored!("UpdateHostKeys", Takes::Words(ASK), "`known_hosts` is not changed by itself."),
    ignored!("VerifyHostKeyDNS", Takes::Words(ASK), "Keys are looked up in `known_hosts` alone."),
    ignored!("VersionAddendum", Takes::Anything, "runbook says its own name."),
    ignored!("VisualHostKey", Takes::Flag, "Fingerprints are shown as text."),
    ignored!("WarnWeakCrypto", Takes::Anything, "Nothing is said of it."),
    ignored!("XAuthLocation", Takes::Text, "Nothing is forwarded."),
    Keyword {
        name: "Protocol, Cipher and others",
        key: "protocol",
        aliases: &[
            "cipher",
            "fallbacktorsh",
            "globalknownhostsfile2",
            "rhostsauthentication",
            "userknownhostsfile2",
            "useroaming",
            "usersh",
            "useprivilegedport",
            "afstokenpassing",
            "kerberosauthentication",
            "kerberostgtpassing",
            "rsaauthentication",
            "rhostsrsaauthentication",
            "compressionlevel",
        ],
        takes: Takes::Anything,
        treatment: Treatment::Obsolete,
        doc: "Of earlier versions; OpenSSH passes over them too.",
    },
];

/// The reference page of the SSH configuration.
#[must_use]
pub fn markdown() -> String {
    let row = |k: &Keyword, middle: Option<String>| {
        let aliases = match k.aliases {
            [] => String::new(),
            _ if k.treatment == Treatment::Obsolete => String::new(),
            some => format!(" (also {})", some.iter().map(|a| format!("`{a}`")).collect::<Vec<_>>().join(", ")),
        };
        let name = if k.treatment == Treatment::Obsolete { k.name.to_string() } else { format!("`{}`", k.name) };
        match middle {
            Some(m) => format!("| {name}{aliases} | {m} | {} |\n", k.doc),
            None => format!("| {name}{aliases} | {} |\n", k.doc),
        }
    };
    let mut out = include_str!("page.md").to_string();
    out.push_str("\n## Options that are followed\n\n| option | what it does here |\n| --- | --- |\n");
    KEYWORDS.iter().filter(|k| k.treatment == Treatment::Used).for_each(|k| out.push_str(&row(k, None)));
    out.push_str(
        "\n## Options that are refused\n\nThey would change where or how a connection is made. A value that changes nothing is taken.\n\n",
    );
    out.push_str("| option | value that is taken | what it would do |\n| --- | --- | --- |\n");
    for k in KEYWORDS {
        if let Treatment::Refused(harmless) = k.treatment {
            let taken = if harmless.is_empty() { "–".to_string() } else { format!("`{}`", harmless.join("`, `")) };
            out.push_str(&row(k, Some(taken)));
        }
    }
    out.push_str("\n## Options that are ignored\n\n| option | why |\n| --- | --- |\n");
    KEYWORDS.iter().filter(|k| matches!(k.treatment, Treatment::Ignored | Treatment::Obsolete)).for_each(|k| out.push_str(&row(k, None)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_to_one_keyword() {
        let mut names: Vec<&str> = KEYWORDS.iter().flat_map(|k| k.aliases.iter().chain([&k.key]).copied()).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(all > 110, "{all}");
    }

    #[test]
    fn names_and_keys_belong_together() {
        for k in KEYWORDS.iter().filter(|k| k.treatment != Treatment::Obsolete) {
            assert_eq!(k.name.to_ascii_lowercase(), k.key);
            assert!(k.doc.ends_with('.') && !k.doc.contains('|'), "{}", k.name);
        }
        assert_eq!(find("challengeresponseauthentication").unwrap().key, "kbdinteractiveauthentication");
        assert!(find("usekeychain").is_none());
    }
}
