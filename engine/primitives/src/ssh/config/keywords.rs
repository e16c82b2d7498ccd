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

const fn used(name: &'static str, key: &'static str, takes: Takes, doc: &'static str) -> Keyword {
    Keyword { name, key, aliases: &[], takes, treatment: Treatment::Used, doc }
}

const fn ignored(name: &'static str, key: &'static str, takes: Takes, doc: &'static str) -> Keyword {
    Keyword { name, key, aliases: &[], takes, treatment: Treatment::Ignored, doc }
}

const fn refused(name: &'static str, key: &'static str, takes: Takes, harmless: &'static [&'static str], doc: &'static str) -> Keyword {
    Keyword { name, key, aliases: &[], takes, treatment: Treatment::Refused(harmless), doc }
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
    used("Host", "host", Takes::Host, "What follows is for the hosts that one of its patterns matches and none negated by `!` does."),
    used("Match", "match", Takes::Match, "What follows is for connections that meet all of its criteria."),
    used(
        "Include",
        "include",
        Takes::Include,
        "Reads other files in its place, up to 16 deep; patterns, relative to `~/.ssh` or `/etc/ssh`.",
    ),
    used("IgnoreUnknown", "ignoreunknown", Takes::Text, "Patterns of keywords that may be unknown."),
    used("Tag", "tag", Takes::Text, "A word for `Match tagged`."),
    used("HostName", "hostname", Takes::Text, "Where to connect to; `%h` is the name that was asked for."),
    used("User", "user", Takes::Text, "The login name; `user@` and `user` of runbook.toml come first."),
    used("Port", "port", Takes::Port, "The port; `:port` and `port` of runbook.toml come first."),
    used("AddressFamily", "addressfamily", Takes::Words(FAMILY), "IPv4 alone, IPv6 alone, or any."),
    used("BindAddress", "bindaddress", Takes::Text, "The local address to connect from."),
    used("ConnectTimeout", "connecttimeout", Takes::Time, "Limit for a connection to stand; 15 seconds when nothing says otherwise."),
    used("ConnectionAttempts", "connectionattempts", Takes::Int, "How often a connection is tried, a second apart."),
    also(used("TCPKeepAlive", "tcpkeepalive", Takes::Flag, "Whether TCP looks for dead peers."), &["keepalive"]),
    also(
        used(
            "ServerAliveInterval",
            "serveraliveinterval",
            Takes::Time,
            "How often a silent host is asked whether it is there; 10 seconds when it is not set (300 in OpenSSH's Debian package with `BatchMode`). 0 leaves it at that: runbook always asks.",
        ),
        &["protocolkeepalives", "setuptimeout"],
    ),
    used("ServerAliveCountMax", "serveralivecountmax", Takes::Int, "How many unanswered questions end the connection."),
    used("ProxyJump", "proxyjump", Takes::Hops, "The hosts on the way, each with its own configuration; `none`; a circle is refused."),
    used(
        "ProxyCommand",
        "proxycommand",
        Takes::Command,
        "The command whose input and output are the connection, run by the shell of `SHELL`; `none`.",
    ),
    used(
        "CanonicalizeHostname",
        "canonicalizehostname",
        Takes::Words(CANONICALIZE),
        "Whether short names are looked up in the domains of `CanonicalDomains`; the files are then read again for the name that was found.",
    ),
    used("CanonicalDomains", "canonicaldomains", Takes::Domains, "The domains for it."),
    used("CanonicalizeMaxDots", "canonicalizemaxdots", Takes::Int, "Names with more dots are left as they are."),
    used(
        "CanonicalizeFallbackLocal",
        "canonicalizefallbacklocal",
        Takes::Flag,
        "Whether a name that is in none of the domains is taken as it is.",
    ),
    also(used("IdentityFile", "identityfile", Takes::EachFile, "A key; all of them are tried, in order."), &["identityfile2"]),
    used("IdentitiesOnly", "identitiesonly", Takes::Flag, "Whether the agent's other keys are left alone."),
    used("IdentityAgent", "identityagent", Takes::AgentPath, "The agent's socket, `SSH_AUTH_SOCK`, a variable, or `none`."),
    used("CertificateFile", "certificatefile", Takes::EachFile, "A certificate for a key; all of them are tried."),
    used("PreferredAuthentications", "preferredauthentications", Takes::Text, "The order in which ways to log in are tried."),
    also(used("PubkeyAuthentication", "pubkeyauthentication", Takes::Words(PUBKEY), "Whether keys may be used."), &["dsaauthentication"]),
    used("PasswordAuthentication", "passwordauthentication", Takes::Flag, "Whether a password may be used."),
    also(
        used("KbdInteractiveAuthentication", "kbdinteractiveauthentication", Takes::Flag, "Whether questions of the host may be answered."),
        &["challengeresponseauthentication", "skeyauthentication", "tisauthentication"],
    ),
    used("NumberOfPasswordPrompts", "numberofpasswordprompts", Takes::Int, "How often a password is asked for."),
    used("BatchMode", "batchmode", Takes::Flag, "Whether nothing may be asked of the operator."),
    used("UserKnownHostsFile", "userknownhostsfile", Takes::Files, "The person's files of host keys, or `none`."),
    used("GlobalKnownHostsFile", "globalknownhostsfile", Takes::Files, "The machine's files of host keys, or `none`."),
    used("HostKeyAlias", "hostkeyalias", Takes::Text, "The name under which the host's key is looked up."),
    used("Ciphers", "ciphers", Takes::Algorithms, "The ciphers: a list, or `+`, `-`, `^` and a list; those that runbook has."),
    used("MACs", "macs", Takes::Algorithms, "The message authentication codes, in the same way."),
    used("KexAlgorithms", "kexalgorithms", Takes::Algorithms, "The key exchanges, in the same way."),
    used("HostKeyAlgorithms", "hostkeyalgorithms", Takes::Algorithms, "The types of host keys, in the same way."),
    also(
        used(
            "PubkeyAcceptedAlgorithms",
            "pubkeyacceptedalgorithms",
            Takes::Algorithms,
            "The types of keys to log in with, in the same way.",
        ),
        &["pubkeyacceptedkeytypes"],
    ),
    used("CASignatureAlgorithms", "casignaturealgorithms", Takes::Algorithms, "How certificates may be signed, in the same way."),
    used("RequiredRSASize", "requiredrsasize", Takes::Int, "The smallest RSA key that is accepted, in bits."),
    used("Compression", "compression", Takes::Words(YES_NO), "Whether the connection is compressed."),
    used("SendEnv", "sendenv", Takes::EnvNames, "Environment variables that are passed on."),
    used("SetEnv", "setenv", Takes::EnvValues, "Environment variables that are set on the host."),
    refused("ProxyUseFdpass", "proxyusefdpass", Takes::Flag, &["no"], "A `ProxyCommand` that hands over a socket."),
    refused("BindInterface", "bindinterface", Takes::Text, &[], "Connecting from an interface; `BindAddress` does."),
    refused(
        "CanonicalizePermittedCNAMEs",
        "canonicalizepermittedcnames",
        Takes::Anything,
        &["none"],
        "Following aliases of the DNS to other names.",
    ),
    refused("KnownHostsCommand", "knownhostscommand", Takes::Command, &["none"], "A command that knows host keys."),
    refused(
        "RevokedHostKeys",
        "revokedhostkeys",
        Takes::Text,
        &["none"],
        "A list of revoked host keys; `@revoked` lines of `known_hosts` are read.",
    ),
    also(
        refused("PKCS11Provider", "pkcs11provider", Takes::Text, &["none"], "Keys in a token; load them into the agent (`ssh-add -s`)."),
        &["smartcarddevice"],
    ),
    refused("RefuseConnection", "refuseconnection", Takes::Text, &[], "The configuration itself refuses the connection."),
    ignored("AddKeysToAgent", "addkeystoagent", Takes::Anything, "The agent is left as it is."),
    ignored("ChannelTimeout", "channeltimeout", Takes::Anything, "Channels end with their commands."),
    ignored("CheckHostIP", "checkhostip", Takes::Flag, "Keys are looked up by name."),
    ignored("ClearAllForwardings", "clearallforwardings", Takes::Flag, "Nothing is forwarded."),
    ignored("ControlMaster", "controlmaster", Takes::Words(MASTER), "Connections are shared within runbook."),
    ignored("ControlPath", "controlpath", Takes::Text, "Connections are shared within runbook."),
    ignored("ControlPersist", "controlpersist", Takes::Anything, "Connections are shared within runbook."),
    ignored("DynamicForward", "dynamicforward", Takes::Anything, "Nothing is forwarded."),
    ignored("EnableEscapeCommandline", "enableescapecommandline", Takes::Flag, "There is no interactive session."),
    ignored("EnableSSHKeysign", "enablesshkeysign", Takes::Flag, "Host-based login is not tried."),
    ignored("EscapeChar", "escapechar", Takes::Anything, "There is no interactive session."),
    ignored("ExitOnForwardFailure", "exitonforwardfailure", Takes::Flag, "Nothing is forwarded."),
    ignored("FingerprintHash", "fingerprinthash", Takes::Text, "Fingerprints are shown as SHA-256."),
    ignored("ForkAfterAuthentication", "forkafterauthentication", Takes::Flag, "runbook stays in front."),
    ignored("ForwardAgent", "forwardagent", Takes::Anything, "The agent is not lent to hosts."),
    ignored("ForwardX11", "forwardx11", Takes::Flag, "Nothing is forwarded."),
    ignored("ForwardX11Timeout", "forwardx11timeout", Takes::Time, "Nothing is forwarded."),
    ignored("ForwardX11Trusted", "forwardx11trusted", Takes::Flag, "Nothing is forwarded."),
    ignored("GatewayPorts", "gatewayports", Takes::Flag, "Nothing is forwarded."),
    ignored("GSSAPIAuthentication", "gssapiauthentication", Takes::Flag, "Kerberos is not tried; other ways to log in are."),
    ignored("GSSAPIClientIdentity", "gssapiclientidentity", Takes::Text, "Kerberos is not tried."),
    ignored("GSSAPIDelegateCredentials", "gssapidelegatecredentials", Takes::Flag, "Kerberos is not tried."),
    ignored("GSSAPIKexAlgorithms", "gssapikexalgorithms", Takes::Text, "Kerberos is not tried."),
    ignored("GSSAPIKeyExchange", "gssapikeyexchange", Takes::Flag, "Kerberos is not tried."),
    ignored("GSSAPIRenewalForcesRekey", "gssapirenewalforcesrekey", Takes::Flag, "Kerberos is not tried."),
    ignored("GSSAPIServerIdentity", "gssapiserveridentity", Takes::Text, "Kerberos is not tried."),
    ignored("GSSAPITrustDns", "gssapitrustdns", Takes::Flag, "Kerberos is not tried."),
    ignored("HashKnownHosts", "hashknownhosts", Takes::Flag, "Hashed names are read; names are written as they are."),
    also(
        ignored("HostbasedAcceptedAlgorithms", "hostbasedacceptedalgorithms", Takes::Algorithms, "Host-based login is not tried."),
        &["hostbasedkeytypes"],
    ),
    ignored("HostbasedAuthentication", "hostbasedauthentication", Takes::Flag, "Host-based login is not tried; other ways to log in are."),
    ignored("IPQoS", "ipqos", Takes::Anything, "Packets are not marked."),
    ignored("KbdInteractiveDevices", "kbdinteractivedevices", Takes::Text, "The host chooses how it asks."),
    ignored("LocalCommand", "localcommand", Takes::Command, "Nothing is run on this machine."),
    ignored("LocalForward", "localforward", Takes::Anything, "Nothing is forwarded."),
    ignored("LogLevel", "loglevel", Takes::Words(LEVEL), "See `RUNBOOK_LOG`."),
    ignored("LogVerbose", "logverbose", Takes::Anything, "See `RUNBOOK_LOG`."),
    ignored("NoHostAuthenticationForLocalhost", "nohostauthenticationforlocalhost", Takes::Flag, "The key of every host is checked."),
    ignored("ObscureKeystrokeTiming", "obscurekeystroketiming", Takes::Anything, "There is no interactive session."),
    ignored("PermitLocalCommand", "permitlocalcommand", Takes::Flag, "Nothing is run on this machine."),
    ignored("PermitRemoteOpen", "permitremoteopen", Takes::Anything, "Nothing is forwarded."),
    ignored("RekeyLimit", "rekeylimit", Takes::Anything, "Keys are renewed after 1 GiB or an hour."),
    ignored("RemoteCommand", "remotecommand", Takes::Command, "runbook runs its own commands."),
    ignored("RemoteForward", "remoteforward", Takes::Anything, "Nothing is forwarded."),
    ignored("RequestTTY", "requesttty", Takes::Words(TTY), "Commands run without a terminal unless the runbook asks for one."),
    ignored("SecurityKeyProvider", "securitykeyprovider", Takes::Text, "Security keys are used through the agent."),
    ignored("SessionType", "sessiontype", Takes::Words(SESSION), "runbook runs commands."),
    ignored("StdinNull", "stdinnull", Takes::Flag, "Each command has its own input."),
    ignored("StreamLocalBindMask", "streamlocalbindmask", Takes::Anything, "Nothing is forwarded."),
    ignored("StreamLocalBindUnlink", "streamlocalbindunlink", Takes::Flag, "Nothing is forwarded."),
    ignored(
        "StrictHostKeyChecking",
        "stricthostkeychecking",
        Takes::Words(STRICT),
        "A key that is not known is never taken unasked, whatever this says.",
    ),
    ignored("SyslogFacility", "syslogfacility", Takes::Text, "See `RUNBOOK_LOG`."),
    ignored("Tunnel", "tunnel", Takes::Words(TUNNEL), "Nothing is forwarded."),
    ignored("TunnelDevice", "tunneldevice", Takes::Anything, "Nothing is forwarded."),
    ignored("UpdateHostKeys", "updatehostkeys", Takes::Words(ASK), "`known_hosts` is not changed by itself."),
    ignored("VerifyHostKeyDNS", "verifyhostkeydns", Takes::Words(ASK), "Keys are looked up in `known_hosts` alone."),
    ignored("VersionAddendum", "versionaddendum", Takes::Anything, "runbook says its own name."),
    ignored("VisualHostKey", "visualhostkey", Takes::Flag, "Fingerprints are shown as text."),
    ignored("WarnWeakCrypto", "warnweakcrypto", Takes::Anything, "Nothing is said of it."),
    ignored("XAuthLocation", "xauthlocation", Takes::Text, "Nothing is forwarded."),
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
