//! What may stand in `runbook.toml`: one flat table a section and kind. Read by the parser, the reference page and `init`.
//!
//! To add a kind (a database engine, a DNS provider, a proxy): a line in [`KINDS`].

use super::Section;

/// What a setting holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// A text.
    Text,
    /// A port number, 1 to 65535.
    Port,
    /// `true` or `false`.
    Flag,
    /// A duration such as `"20ms"`, kept as text.
    Duration,
    /// An array of texts; a single text is taken as an array of one.
    Texts,
    /// A command: a text for the shell, or an array of words.
    Command,
    /// A table of anything: free variables.
    Vars,
    /// The name of a host of the same environment.
    Host,
    /// The name of a secret.
    Secret,
}

impl Holds {
    /// How messages and the reference call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Holds::Text => "a text",
            Holds::Port => "a port number",
            Holds::Flag => "true or false",
            Holds::Duration => "a duration",
            Holds::Texts => "an array of texts",
            Holds::Command => "a command (a text or an array of texts)",
            Holds::Vars => "a table",
            Holds::Host => "the name of a host",
            Holds::Secret => "the name of a secret",
        }
    }
}

/// Whether a setting must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// It may be left out.
    Optional,
    /// It must be given.
    Always,
    /// It must be given, except in an embedded environment, where the lab knows it.
    UnlessEmbedded,
}

/// One setting of a named thing.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// The key.
    pub key: &'static str,
    /// What it holds.
    pub holds: Holds,
    /// Whether it must be there.
    pub need: Need,
    /// What it means, with its default: one sentence.
    pub doc: &'static str,
}

/// A kind of named thing and its settings.
#[derive(Debug)]
pub struct Kind {
    /// The section that it belongs to.
    pub section: Section,
    /// The value of `kind`; hosts have one kind and no such key.
    pub kind: &'static str,
    /// What it is: one sentence.
    pub doc: &'static str,
    /// Its settings.
    pub fields: &'static [Field],
}

const fn field(key: &'static str, holds: Holds, need: Need, doc: &'static str) -> Field {
    Field { key, holds, need, doc }
}

use Holds::{Command, Duration, Flag, Host, Port, Secret, Text, Texts, Vars};
use Need::{Always, Optional, UnlessEmbedded};

/// The settings of a MariaDB or MySQL server.
const SERVER: &[Field] = &[
    field("host", Host, Always, "The host that its server runs on."),
    field(
        "database",
        Text,
        Optional,
        "The schema that scripts work on; every schema that is not the system's unless given. Replication, fence and promotion are of the whole server.",
    ),
    field("socket", Text, Optional, "The server's unix socket on the host; found by itself where packages put it."),
    field("port", Port, Optional, "The server's port, to reach it by TCP from its host instead of by a socket."),
    field("address", Text, Optional, "The server's address as its host sees it, for TCP; `127.0.0.1` unless given."),
    field("user", Text, Optional, "The account to work as, with all privileges; `root` unless given."),
    field(
        "password",
        Secret,
        Optional,
        "The secret with the account's password; without it the server asks the operating system who it is (unix_socket).",
    ),
    field("sudo", Flag, Optional, "`true`: the socket is reached, tools are run and configuration is written as root, by `sudo`."),
    field("tls", Flag, Optional, "`true`: TLS to the server and for replication from it."),
    field("tls_ca", Text, Optional, "The certificate authority of the server (PEM), relative to the project; the usual ones unless given."),
    field("tls_name", Text, Optional, "The name in the server's certificate; its address unless given."),
    field("replication_host", Text, Optional, "Where replicas find the server; the `address` of its host unless given."),
    field("replication_port", Port, Optional, "The port at which replicas find it; `port` unless given, or 3306."),
    field("replication_user", Text, Optional, "The account by which replicas log in; one is made for each unless given."),
    field("replication_password", Secret, Optional, "The secret with that account's password."),
    field("app_user", Text, Optional, "The account of the application: the fence tries to write as it too."),
    field("app_password", Secret, Optional, "The secret with the application's password."),
    field(
        "config_dir",
        Text,
        Optional,
        "The folder of configuration snippets that the server reads, in which a fence outlives a restart; found by itself where packages have it; `none` to do without (MySQL 8 needs none).",
    ),
    field("defaults_file", Text, Optional, "The configuration file that the server is started with, when that is not the usual one."),
    field(
        "galera_cluster",
        Text,
        Optional,
        "The name of the Galera cluster that it is a member of; the members are all databases with the same name here.",
    ),
    field(
        "galera_address",
        Text,
        Optional,
        "Where its group communication listens, `host:port`; `replication_host` or the `address` of its host, and 4567, unless given.",
    ),
    field("galera_provider", Text, Optional, "The Galera library on its host; found by itself where packages put it."),
    field("galera_sst", Text, Optional, "How members get whole copies (`wsrep_sst_method`); `rsync` unless given."),
    field(
        "galera_sst_address",
        Text,
        Optional,
        "Where it receives whole copies (`wsrep_sst_receive_address`); chosen by the server unless given.",
    ),
    field("galera_options", Text, Optional, "Further `wsrep_provider_options`, such as `gcache.size=1G; ist.recv_addr=192.0.2.7:4568`."),
    field(
        "data_dir",
        Text,
        Optional,
        "The server's data folder; `/var/lib/mysql` unless given; for Galera the server is asked while it runs.",
    ),
    field("service", Text, Optional, "The systemd service of the server; `mariadb` unless given."),
    field(
        "control",
        Text,
        Optional,
        "A program on the host that starts and stops the server, called with `start`, `stop` or `bootstrap`; systemd unless given.",
    ),
];

const ZONE: Field = field("zone", Text, Optional, "The zone's name in DNS where that is not its name here: for one zone at two providers.");
const RESOLVERS: Field = field("resolvers", Texts, Optional, "Public resolvers to be asked as well when waiting for an answer.");
const NAMESERVERS: Field =
    field("nameservers", Texts, Optional, "All authoritative servers, instead of those that the zone's NS records name.");

/// Every kind, by section.
pub const KINDS: &[Kind] = &[
    Kind {
        section: Section::Hosts,
        kind: "ssh",
        doc: "A host that is reached by SSH.",
        fields: &[
            field("ssh", Text, UnlessEmbedded, "Where it is: an alias of `~/.ssh/config`, or `user@host:port`."),
            field("address", Text, Optional, "Its address as DNS records show it; scripts read it as `host(\"…\").address`."),
            field("url", Text, Optional, "The base of its web address; `host(\"…\").url(\"/path\")` builds on it."),
            field("roles", Texts, Optional, "What it is for; scripts find hosts by role."),
            field("vars", Vars, Optional, "Free variables; scripts read them as `host(\"…\").vars.name`."),
            field(
                "ssh_config",
                Text,
                Optional,
                "The SSH configuration for it, instead of `~/.ssh/config` and `/etc/ssh/ssh_config`; relative to the project; `none` for none.",
            ),
            field(
                "identity_file",
                Text,
                Optional,
                "The private key for it, instead of what the SSH configuration says: it alone is offered, from the file or by the agent that holds it. Relative to the project.",
            ),
            field("known_hosts", Text, Optional, "A known_hosts file of its own; relative to the project."),
            field("port", Port, Optional, "The SSH port, instead of what `ssh` or the SSH configuration says."),
            field("user", Text, Optional, "The login name, instead of what `ssh` or the SSH configuration says."),
            field("password", Secret, Optional, "The secret to log in with where keys are not accepted."),
            field("passphrase", Secret, Optional, "The secret that opens its private key."),
            field(
                "answers",
                Vars,
                Optional,
                "Answers to what the login asks (keyboard-interactive): a part of the question, and the name of the secret that answers it.",
            ),
            field("connect_timeout", Duration, Optional, "How long a connection may take to stand; `\"15s\"` when not given."),
            field(
                "reconnect_within",
                Duration,
                Optional,
                "How long a lost connection is tried again under a command; `\"5m\"` when not given.",
            ),
            field(
                "sudo_method",
                Text,
                Optional,
                "How `sudo: true` raises privileges there: `sudo`, `doas` or `su`; `sudo` when not given.",
            ),
            field(
                "sudo_password",
                Secret,
                Optional,
                "The secret that sudo, doas or su asks for; without it they must not ask. For su it is the password of the other user.",
            ),
        ],
    },
    Kind {
        section: Section::Databases,
        kind: "sqlite",
        doc: "A SQLite database file on a host.",
        fields: &[
            field("host", Host, Always, "The host that it is on."),
            field("path", Text, Always, "The file, absolute or relative to the login folder."),
            field("sudo", Flag, Optional, "`true`: it is read and written as root, by `sudo`."),
        ],
    },
    Kind { section: Section::Databases, kind: "mariadb", doc: "A MariaDB server on a host.", fields: SERVER },
    Kind {
        section: Section::Databases,
        kind: "mysql",
        doc: "A MySQL server (or one of its kind, such as Percona's) on a host.",
        fields: SERVER,
    },
    Kind {
        section: Section::Databases,
        kind: "postgresql",
        doc: "A database of a PostgreSQL cluster on a host.",
        fields: &[
            field("host", Host, Always, "The host that the cluster is on."),
            field("database", Text, Always, "The database's name in the cluster."),
            field("socket", Text, Optional, "The folder of the server's unix socket; `/var/run/postgresql` when not given."),
            field("address", Text, Optional, "The address at which the server listens, as seen from its host, instead of the unix socket."),
            field("port", Port, Optional, "The server's port; 5432 when not given."),
            field("user", Text, Optional, "The role that logs in; `os_user` when not given. Fences and standbys want a super-user."),
            field("password", Secret, Optional, "The secret that holds the role's password."),
            field("sudo", Flag, Optional, "`true`: the unix socket is reached as `os_user`, for peer authentication."),
            field("os_user", Text, Optional, "The operating system's user to whom the cluster belongs; `postgres` when not given."),
            field("tls", Text, Optional, "`verify-full` or `off`; `off` when not given, since the SSH connection is encrypted."),
            field("tls_ca", Text, Optional, "The certificate of the authority, in PEM; relative to the project."),
            field("tls_name", Text, Optional, "The name in the server's certificate; `address` when not given."),
            field("app_user", Text, Optional, "The application's role: a fence proves that its login is refused."),
            field("app_password", Secret, Optional, "The secret that holds its password."),
            field(
                "cluster",
                Text,
                Optional,
                "Debian's name of the cluster, such as `15/main`: it is started and stopped by pg_ctlcluster.",
            ),
            field("data", Text, Optional, "The folder of the cluster's data; Debian's when `cluster` is given."),
            field("unit", Text, Optional, "The systemd unit that starts and stops the cluster, instead of pg_ctlcluster."),
            field("start", Command, Optional, "The command that starts the cluster, as `os_user`, instead of these."),
            field("stop", Command, Optional, "The command that stops the cluster, as `os_user`."),
            field("bin", Text, Optional, "The folder of the server's programs; found when not given."),
            field(
                "replication_user",
                Text,
                Optional,
                "The role by which standbys log in; `runbook_replication` when not given; made when it is not there.",
            ),
            field("replication_password", Secret, Optional, "The secret that holds that role's password."),
            field(
                "replication_address",
                Text,
                Optional,
                "Where standbys reach the server, `address` or `address:port`; the host's `address` when not given.",
            ),
            field(
                "replication_options",
                Text,
                Optional,
                "Added to the standbys' connection string, such as `sslmode=verify-full sslrootcert=/etc/ssl/pg.pem`.",
            ),
        ],
    },
    Kind {
        section: Section::Zones,
        kind: "rfc2136",
        doc: "A DNS zone whose primary server takes dynamic updates (BIND, Knot, PowerDNS and others).",
        fields: &[
            field("server", Text, UnlessEmbedded, "The primary name server, `address` or `address:port`; updates and queries go there."),
            field("tsig_name", Text, Optional, "The name of the TSIG key that signs updates."),
            field("tsig_algorithm", Text, Optional, "The key's algorithm; `hmac-sha256` unless given."),
            field("tsig_secret", Secret, Optional, "The secret that holds the key, in base64."),
            ZONE,
            RESOLVERS,
            NAMESERVERS,
        ],
    },
    Kind {
        section: Section::Zones,
        kind: "cloudflare",
        doc: "A DNS zone at Cloudflare.",
        fields: &[
            field(
                "api_token",
                Secret,
                Optional,
                "The secret that holds an API token with the permissions Zone:Read and DNS:Edit; the environment variable CLOUDFLARE_API_TOKEN or CF_DNS_API_TOKEN unless given.",
            ),
            field("api", Text, Optional, "The address of the API, where that is not Cloudflare's own."),
            ZONE,
            RESOLVERS,
            NAMESERVERS,
        ],
    },
    Kind {
        section: Section::Zones,
        kind: "powerdns",
        doc: "A DNS zone of a PowerDNS authoritative server, changed by its HTTP API.",
        fields: &[
            field(
                "api",
                Text,
                Always,
                "The address of the server's API, such as `https://ns1.example.com:8081`; without TLS only on loopback, of `host` when that is given.",
            ),
            field("host", Host, Optional, "The host over whose SSH connection the API is reached; directly when not given."),
            field("api_key", Secret, Always, "The secret that holds the API's key."),
            field("server_id", Text, Optional, "The server's name in the API; `localhost` unless given."),
            ZONE,
            RESOLVERS,
            NAMESERVERS,
        ],
    },
    Kind {
        section: Section::Zones,
        kind: "dns-update",
        doc: "A DNS zone at one of the many services that the crate `dns-update` reaches; see [Move a zone](../how-to/move-a-zone.md) for what each wants.",
        fields: &[
            field("provider", Text, Always, "The service, such as `hetzner`, `digitalocean`, `gandiv5`, `ionos`."),
            field("token", Secret, Always, "The secret that the service wants: its token, key or password."),
            field("user", Text, Optional, "The login or the id of the key, for services that want one."),
            field("account", Text, Optional, "The account, for services that want one."),
            field("project", Text, Optional, "The project, for services that want one."),
            field("api", Text, Optional, "The address of the API, for servers of one's own."),
            ZONE,
            RESOLVERS,
            NAMESERVERS,
        ],
    },
    Kind {
        section: Section::Zones,
        kind: "route53",
        doc: "A DNS zone at AWS Route 53. The key is that of these settings, of AWS's environment variables, or of a profile in AWS's own files.",
        fields: &[
            field("access_key", Text, Optional, "The id of the key."),
            field("secret_key", Secret, Optional, "The secret that holds the key."),
            field("session_token", Secret, Optional, "The secret that holds the session of a temporary key."),
            field(
                "profile",
                Text,
                Optional,
                "The profile of `~/.aws/credentials` or `~/.aws/config`; AWS_PROFILE, or `default`, unless given.",
            ),
            field("zone_id", Text, Optional, "The id of the hosted zone; found by name unless given."),
            field("region", Text, Optional, "The region that requests are signed for; `us-east-1` unless given, as the service wants it."),
            field("api", Text, Optional, "The address of the API, where that is not AWS's own."),
            ZONE,
            RESOLVERS,
            NAMESERVERS,
        ],
    },
    Kind {
        section: Section::Zones,
        kind: "zone-file",
        doc: "A DNS zone in a file on a host: changed in place with its serial number raised, checked, put in place at once, reloaded.",
        fields: &[
            field("host", Host, Always, "The host that has the file: the primary name server."),
            field("path", Text, Always, "The zone file, absolute or relative to the login folder."),
            field(
                "check",
                Command,
                Optional,
                "The command that checks the new file, `$FILE`, before it is put in place; `named-checkzone ZONE \"$FILE\"` unless given, for Knot `kzonecheck -o ZONE \"$FILE\"`.",
            ),
            field(
                "reload",
                Command,
                Optional,
                "The command that makes the name server read the file again; `rndc reload ZONE` unless given, for Knot `knotc zone-reload ZONE`.",
            ),
            field("sudo", Flag, Optional, "`true`: the file is read and written, and the commands are run, as root, by `sudo`."),
            field(
                "server",
                Text,
                Optional,
                "The name server, `address` or `address:port`: a change ends when it answers with the new serial number.",
            ),
            ZONE,
            RESOLVERS,
            NAMESERVERS,
        ],
    },
    Kind {
        section: Section::Backups,
        kind: "archive",
        doc: "A folder on a host that takes plain compressed tar archives, each with a SHA-256 manifest.",
        fields: &[
            field("host", Host, Always, "The host that keeps the archives."),
            field("path", Text, Always, "The folder, absolute or relative to the login folder."),
            field(
                "mount",
                Text,
                Optional,
                "Where the disk of the repository is mounted, when that is there only at times: nothing is done without it.",
            ),
            field("mount_host", Host, Optional, "The host that it is mounted on; `host` when not given."),
        ],
    },
    Kind {
        section: Section::Backups,
        kind: "restic",
        doc: "A repository of restic. The hosts need `restic`; what it makes is read by any other restic, and the other way round.",
        fields: &[
            field(
                "host",
                Host,
                Always,
                "The host whose restic lists, checks, restores and prunes; a folder takes snapshots of this host alone.",
            ),
            field(
                "repository",
                Text,
                Always,
                "The repository as `RESTIC_REPOSITORY` has it: a folder, `sftp:USER@HOST:/PATH`, `s3:URL/BUCKET`, `rest:URL`.",
            ),
            field("password", Secret, Always, "The secret that opens it."),
            field(
                "sftp_command",
                Text,
                Optional,
                "For `sftp:`: the command that reaches the server, as restic's option `sftp.command`; `ssh` with the login's own configuration when not given.",
            ),
            field("access_key", Text, Optional, "For `s3:`: the id of the key."),
            field("secret_key", Secret, Optional, "For `s3:`: the secret with the key."),
            field("session_token", Secret, Optional, "For `s3:`: the secret with the token of a session."),
            field("region", Text, Optional, "For `s3:`: the region, where the server wants one."),
            field("rest_user", Text, Optional, "For `rest:`: the name to log in with."),
            field("rest_password", Secret, Optional, "For `rest:`: the secret with its password."),
            field(
                "ca_file",
                Text,
                Optional,
                "For `rest:` and `s3:`: a file on the hosts with the certificates that are trusted instead of the system's.",
            ),
            field("sudo", Flag, Optional, "Whether restic runs with sudo, also to list and to restore as a test; false by default."),
            field(
                "mount",
                Text,
                Optional,
                "Where the disk of the repository is mounted, when that is there only at times: nothing is done without it.",
            ),
            field("mount_host", Host, Optional, "The host that it is mounted on; `host` when not given."),
        ],
    },
    Kind {
        section: Section::Backups,
        kind: "borg",
        doc: "A repository of borg. The hosts need `borg`; what it makes is read by any other borg, and the other way round.",
        fields: &[
            field(
                "host",
                Host,
                Always,
                "The host whose borg lists, checks, restores and prunes; a folder takes snapshots of this host alone.",
            ),
            field("repository", Text, Always, "The repository as `BORG_REPO` has it: a folder, or `ssh://USER@HOST:PORT/PATH`."),
            field("password", Secret, Optional, "The secret that opens it."),
            field("passcommand", Text, Optional, "Instead: a command on the host that prints it, as `BORG_PASSCOMMAND`."),
            field(
                "encryption",
                Text,
                Optional,
                "How `init` makes it: `repokey` (when not given), `repokey-blake2`, `keyfile`, `keyfile-blake2`, `authenticated`, `authenticated-blake2`, or `none`, \
                 which also says that a repository without encryption is meant.",
            ),
            field(
                "rsh",
                Text,
                Optional,
                "The command that reaches the server, as `BORG_RSH`; `ssh` with the login's own configuration when not given. Host keys must be known.",
            ),
            field("remote_path", Text, Optional, "The borg on the server, as `BORG_REMOTE_PATH`."),
            field("sudo", Flag, Optional, "Whether borg runs with sudo, also to list and to restore as a test; false by default."),
            field(
                "mount",
                Text,
                Optional,
                "Where the disk of the repository is mounted, when that is there only at times: nothing is done without it.",
            ),
            field("mount_host", Host, Optional, "The host that it is mounted on; `host` when not given."),
        ],
    },
    Kind {
        section: Section::Proxies,
        kind: "flag-file",
        doc: "A reverse proxy that shows a maintenance page while a file exists and reads its upstream from a file.",
        fields: &[
            field("host", Host, Always, "The host that it runs on."),
            field("maintenance_flag", Text, Optional, "The file whose existence turns the maintenance page on."),
            field("upstream_file", Text, Optional, "The file that holds the upstream's address."),
            field("upstream", Text, Optional, "The upstream's address when nothing has been moved."),
            field("reload", Command, Optional, "The command that makes the proxy read its files again, if it needs one."),
        ],
    },
    Kind {
        section: Section::Engines,
        kind: "docker",
        doc: "A Docker Engine: of a host, over its SSH connection, or one that this machine reaches by itself.",
        fields: &[
            field("host", Host, Optional, "The host whose engine it is."),
            field("socket", Text, Optional, "The engine's unix socket on that host; `/var/run/docker.sock` when not given."),
            field("sudo", Flag, Optional, "`true`: the socket is opened, and files of volumes are read and written, as root, by `sudo`."),
            field(
                "url",
                Text,
                Optional,
                "Instead of a host: `unix:///PATH` of this machine, or `tcp://NAME:PORT`, which wants TLS unless it is this machine.",
            ),
            field(
                "context",
                Text,
                Optional,
                "Instead of either: a context of this machine's docker client (`docker context ls`); one over `ssh:` must lead to a host of this environment.",
            ),
            field(
                "tls_ca",
                Text,
                Optional,
                "For `tcp:`: the authority that signed the engine's certificate (PEM), relative to the project.",
            ),
            field("tls_cert", Text, Optional, "For `tcp:`: the certificate that this program shows (PEM)."),
            field("tls_key", Text, Optional, "For `tcp:`: the key of that certificate (PEM)."),
        ],
    },
];

/// The kinds of a section.
pub fn kinds(section: Section) -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().filter(move |k| k.section == section)
}

/// Finds a kind.
#[must_use]
pub fn kind(section: Section, name: &str) -> Option<&'static Kind> {
    kinds(section).find(|k| k.kind == name)
}

/// The keys at the top of the file.
pub const TOP: &[(&str, &str)] = &[
    ("project", "Facts of the project."),
    ("params", "Parameters and their defaults: `name = default`, or a table."),
    ("secrets", "Secrets by reference: the values are never in this file."),
    ("environments", "One set of hosts, databases, zones and so on under the same names, each."),
];

/// The keys of `[project]`.
pub const PROJECT: &[Field] = &[field("name", Text, Optional, "The project's name; the folder's name unless given.")];

/// The keys of a parameter that is written as a table.
pub const PARAM: &[(&str, &str)] = &[
    ("type", "`string`, `int`, `float`, `bool`, `duration`, `bytes` or `list` (of strings); that of the default unless given."),
    ("default", "The value when nothing else is given."),
    ("description", "What it is for: one sentence."),
    ("required", "`true`: a run without a value for it does not start."),
];

/// The keys of a secret, of which exactly one is given.
pub const SECRET: &[(&str, &str)] = &[
    ("env", "The environment variable of the controller that holds it."),
    ("file", "The file that holds it, relative to the project or absolute; a final newline is dropped."),
    ("command", "The command, as an array of words, whose standard output is the secret; a final newline is dropped."),
];

/// The keys of an environment besides the sections of named things.
pub const ENVIRONMENT: &[(&str, &str)] = &[
    ("confirm", "`true`: a run asks for the environment's name to be typed (or wants `--confirm NAME`)."),
    ("rehearsal", "`true`: the environment is for rehearsals."),
    ("embedded", "`true`: `runbook lab up` starts its hosts, name server and application on this machine."),
    ("params", "Values of parameters in this environment."),
    ("secrets", "Secrets of this environment, before those of the project."),
    ("lab", "What the embedded lab starts."),
];

/// The keys of an environment's `lab`.
pub const LAB: &[Field] = &[
    field("app_host", Host, Always, "The host on which the application runs at the beginning."),
    field("name", Text, Always, "The public name that the customer asks for; it lies in one of the environment's zones."),
    field("ttl", Duration, Optional, "The TTL of that name at the beginning; `60s` unless given."),
    field("order_every", Duration, Optional, "How often the customer places an order; `20ms` unless given."),
];
