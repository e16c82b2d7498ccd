//! What the configuration says of one host, resolved: every option that has a meaning here, with its default.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::algorithms::Names;

/// Where and how a host is reached and logged in to, as `ssh` would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The name that was asked for (`%n`).
    pub original: String,
    /// Login name.
    pub user: String,
    /// Name or address to connect to: `HostName`, or the name that was asked for, canonicalized when that is on.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The name under which the host's key is looked up, when not `host`.
    pub host_key_alias: Option<String>,
    /// Private (or public) key files, expanded, in order; the usual names when none is configured.
    pub identity_files: Vec<PathBuf>,
    /// Whether `identity_files` were configured; files that are not there are then worth a word.
    pub identities_configured: bool,
    /// Whether only the configured keys and certificates are offered, also when the agent has more.
    pub identities_only: bool,
    /// Which agent is asked.
    pub identity_agent: Agent,
    /// Certificates for the keys, expanded, in order.
    pub certificate_files: Vec<PathBuf>,
    /// The user's `known_hosts` files, expanded, in order; the first takes new keys.
    pub user_known_hosts: Vec<PathBuf>,
    /// The machine's `known_hosts` files, in order.
    pub global_known_hosts: Vec<PathBuf>,
    /// What the configuration wants done with keys that are not known.
    pub strict_host_keys: StrictHostKeys,
    /// The hosts on the way, the first to be connected to first; the nearest to the host is last.
    pub jumps: Vec<Hop>,
    /// The command whose standard input and output are the connection, expanded, without `exec`.
    pub proxy_command: Option<String>,
    /// How often a silent host is asked whether it is there; `None` leaves it to runbook.
    pub server_alive_interval: Option<Duration>,
    /// How many unanswered questions end the connection.
    pub server_alive_count_max: usize,
    /// Limit for a connection to stand; `None` leaves it to runbook.
    pub connect_timeout: Option<Duration>,
    /// How often a connection is tried, a second apart.
    pub connection_attempts: u32,
    /// Which addresses are used.
    pub address_family: Family,
    /// The local address to connect from.
    pub bind_address: Option<String>,
    /// Whether TCP itself looks for dead peers.
    pub tcp_keep_alive: bool,
    /// Ciphers, when configured.
    pub ciphers: Option<Names>,
    /// Message authentication codes, when configured.
    pub macs: Option<Names>,
    /// Key exchanges, when configured.
    pub kex_algorithms: Option<Names>,
    /// Signature algorithms of host keys, when configured.
    pub host_key_algorithms: Option<Names>,
    /// Signature algorithms of the user's keys, when configured.
    pub pubkey_accepted_algorithms: Option<Names>,
    /// Signature algorithms of certificate authorities, when configured.
    pub ca_signature_algorithms: Option<Names>,
    /// The smallest RSA key that is accepted, in bits.
    pub required_rsa_size: u32,
    /// Patterns of names of environment variables to pass on.
    pub send_env: Vec<String>,
    /// Environment variables to set on the host.
    pub set_env: Vec<(String, String)>,
    /// The order in which ways to log in are tried, when configured.
    pub preferred_authentications: Option<Vec<String>>,
    /// Whether keys may be used.
    pub pubkey_authentication: bool,
    /// Whether a password may be used.
    pub password_authentication: bool,
    /// Whether questions of the host may be answered.
    pub kbd_interactive_authentication: bool,
    /// How often a password is asked for.
    pub number_of_password_prompts: u32,
    /// Whether nothing may be asked of the operator.
    pub batch_mode: bool,
    /// Whether the connection is compressed.
    pub compression: bool,
    /// Whether commands get a terminal.
    pub request_tty: Tty,
    /// Every value as it was written (not expanded), under the option's lower-case name: for messages and for comparisons.
    pub written: BTreeMap<&'static str, Vec<String>>,
}

/// Which agent is asked for keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Agent {
    /// That of `SSH_AUTH_SOCK`.
    #[default]
    Environment,
    /// None.
    None,
    /// The one behind this socket.
    Socket(PathBuf),
}

/// What the configuration wants done with host keys that are not known. A changed key is never taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StrictHostKeys {
    /// `yes`: refuse.
    Yes,
    /// `ask`: ask the operator.
    #[default]
    Ask,
    /// `accept-new`: take and record.
    AcceptNew,
    /// `no` or `off`: take whatever is shown.
    Off,
}

/// Which addresses are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Family {
    /// Any.
    #[default]
    Any,
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
}

/// Whether commands get a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tty {
    /// Never.
    No,
    /// When there is one here.
    Yes,
    /// Always.
    Force,
    /// For a login shell only.
    #[default]
    Auto,
}

/// One host on the way, as `ProxyJump` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// Login name, when given.
    pub user: Option<String>,
    /// Name or alias.
    pub host: String,
    /// Port, when given.
    pub port: Option<u16>,
}

impl Options {
    /// The settings of a host that no configuration says anything of; `home` is where keys and `known_hosts` usually lie.
    #[must_use]
    pub fn plain(host: &str, user: &str, home: &std::path::Path) -> Self {
        let ssh = home.join(".ssh");
        Options {
            original: host.to_string(),
            user: user.to_string(),
            host: host.to_string(),
            port: 22,
            host_key_alias: None,
            identity_files: ["id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk"].map(|f| ssh.join(f)).to_vec(),
            identities_configured: false,
            identities_only: false,
            identity_agent: Agent::Environment,
            certificate_files: vec![],
            user_known_hosts: vec![ssh.join("known_hosts"), ssh.join("known_hosts2")],
            global_known_hosts: vec!["/etc/ssh/ssh_known_hosts".into(), "/etc/ssh/ssh_known_hosts2".into()],
            strict_host_keys: StrictHostKeys::Ask,
            jumps: vec![],
            proxy_command: None,
            server_alive_interval: None,
            server_alive_count_max: 3,
            connect_timeout: None,
            connection_attempts: 1,
            address_family: Family::Any,
            bind_address: None,
            tcp_keep_alive: true,
            ciphers: None,
            macs: None,
            kex_algorithms: None,
            host_key_algorithms: None,
            pubkey_accepted_algorithms: None,
            ca_signature_algorithms: None,
            required_rsa_size: 1024,
            send_env: vec![],
            set_env: vec![],
            preferred_authentications: None,
            pubkey_authentication: true,
            password_authentication: true,
            kbd_interactive_authentication: true,
            number_of_password_prompts: 3,
            batch_mode: false,
            compression: false,
            request_tty: Tty::Auto,
            written: BTreeMap::new(),
        }
    }
}

impl std::fmt::Display for Hop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        if self.host.contains(':') { write!(f, "[{}]", self.host) } else { f.write_str(&self.host) }?;
        self.port.map_or(Ok(()), |p| write!(f, ":{p}"))
    }
}
