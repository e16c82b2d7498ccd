//! What the configuration may ask of the machine and the person that connects: names, home, environment, shell.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use runbook_core::{Code, Error, Result};

/// The machine and the person that connects.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The person's name, from the user database: `%u`.
    pub user: String,
    /// The person's number: `%i`.
    pub uid: u32,
    /// The person's home, from the user database as OpenSSH takes it (not `HOME`): `%d`, `~`.
    pub home: PathBuf,
    /// The machine's name: `%l`, and up to the first dot `%L`.
    pub hostname: String,
    /// The environment: `${NAME}`, `SHELL`, and `HOME` for `Include` alone.
    pub env: BTreeMap<String, String>,
    /// Where the system's files are: `/etc/ssh`.
    pub system: PathBuf,
    /// Looks up the home of a person by name: `~name`.
    pub home_of: fn(&str) -> Option<PathBuf>,
    /// The machine's addresses: `Match localnetwork`.
    pub addresses: fn() -> Vec<(String, IpAddr)>,
}

impl Machine {
    /// This machine and the person who runs this process.
    ///
    /// # Errors
    /// `RB0304` when the user database does not know the person.
    pub fn here() -> Result<Self> {
        let uid = nix::unistd::getuid();
        let person = nix::unistd::User::from_uid(uid).ok().flatten().ok_or_else(|| {
            Error::new(Code::SSH_CONFIG, format!("no user has the number {uid} on this machine"))
                .hint("ssh does not work without an entry in the user database either: add one, or run as another user")
        })?;
        Ok(Machine {
            user: person.name,
            uid: uid.as_raw(),
            home: person.dir,
            hostname: nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_else(|| "localhost".into()),
            env: std::env::vars_os().map(|(k, v)| (k.to_string_lossy().into_owned(), v.to_string_lossy().into_owned())).collect(),
            system: PathBuf::from("/etc/ssh"),
            home_of: |name| nix::unistd::User::from_name(name).ok().flatten().map(|u| u.dir),
            addresses,
        })
    }

    /// The folder `~/.ssh`.
    #[must_use]
    pub fn ssh(&self) -> PathBuf {
        self.home.join(".ssh")
    }

    /// The shell for `Match exec` and `ProxyCommand`: that of `SHELL`, or `/bin/sh`.
    #[must_use]
    pub fn shell(&self) -> &Path {
        Path::new(self.env.get("SHELL").map_or("/bin/sh", String::as_str))
    }

    /// Replaces a leading `~` or `~name`.
    ///
    /// # Errors
    /// The name, when there is no such person.
    pub fn tilde(&self, path: &str) -> std::result::Result<String, String> {
        tilde(path, &self.home, self.home_of)
    }

    /// Replaces a leading `~` of an `Include`, where OpenSSH's matching of file names takes `HOME` before the user database.
    ///
    /// # Errors
    /// The name, when there is no such person.
    pub fn tilde_of_include(&self, path: &str) -> std::result::Result<String, String> {
        let home = self.env.get("HOME").map_or(self.home.as_path(), Path::new);
        tilde(path, home, self.home_of)
    }

    /// Whether a file belongs to this person or to root and nobody else can write to it. A group may when this person is its only
    /// member, as in Debian.
    #[must_use]
    pub fn trusts(&self, file: &std::fs::Metadata) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        let mode = file.mode();
        let group_ok = || {
            let Ok(Some(group)) = nix::unistd::Group::from_gid(nix::unistd::Gid::from_raw(file.gid())) else { return false };
            let everyone = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
            alone_in(&everyone, file.gid(), &group.mem, &self.user)
        };
        (file.uid() == 0 || file.uid() == self.uid) && mode & 0o002 == 0 && (mode & 0o020 == 0 || group_ok())
    }
}

/// Whether a group has this person as its one member, by primary group or by the group's own list.
fn alone_in(passwd: &str, gid: u32, members: &[String], user: &str) -> bool {
    let primary: Vec<&str> = passwd
        .lines()
        .filter_map(|l| {
            let mut f = l.split(':');
            let name = f.next()?;
            (f.nth(2)?.parse::<u32>().ok()? == gid).then_some(name)
        })
        .collect();
    !(primary.is_empty() && members.is_empty()) && primary.iter().all(|n| *n == user) && members.iter().all(|m| m == user)
}

fn tilde(path: &str, home: &Path, home_of: fn(&str) -> Option<PathBuf>) -> std::result::Result<String, String> {
    let Some(after) = path.strip_prefix('~') else { return Ok(path.to_string()) };
    let (name, rest) = after.split_once('/').unwrap_or((after, ""));
    let base = if name.is_empty() { home.to_path_buf() } else { home_of(name).ok_or(name)? };
    let base = base.to_string_lossy();
    let slash = if base.ends_with('/') { "" } else { "/" };
    Ok(format!("{base}{slash}{}", rest.trim_start_matches('/')))
}

/// The addresses of the interfaces that are up.
fn addresses() -> Vec<(String, IpAddr)> {
    use nix::net::if_::InterfaceFlags;
    let Ok(all) = nix::ifaddrs::getifaddrs() else { return vec![] };
    all.filter(|i| i.flags.contains(InterfaceFlags::IFF_UP))
        .filter_map(|i| {
            let address = i.address?;
            let ip =
                address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip())).or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))?;
            Some((i.interface_name, ip))
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A machine for tests: `me` with the number 1000 on `desk.example.com`.
    pub fn desk(home: &Path) -> Machine {
        Machine {
            user: "me".into(),
            uid: nix::unistd::getuid().as_raw(),
            home: home.to_path_buf(),
            hostname: "desk.example.com".into(),
            env: BTreeMap::from([("SET".to_string(), "value".to_string()), ("EMPTY".to_string(), String::new())]),
            system: home.join("etc"),
            home_of: |name| (name == "ann").then(|| "/home/ann".into()),
            addresses: || vec![("eth0".into(), "192.0.2.10".parse().unwrap()), ("eth0".into(), "2001:db8::10".parse().unwrap())],
        }
    }

    #[test]
    fn tildes() {
        let m = desk(Path::new("/home/me"));
        for (path, want) in [("~", "/home/me/"), ("~/", "/home/me/"), ("~//a/b", "/home/me/a/b"), ("~ann/k", "/home/ann/k"), ("a~b", "a~b")]
        {
            assert_eq!(m.tilde(path).as_deref(), Ok(want), "{path}");
        }
        assert_eq!(m.tilde("~nobody-there/x"), Err("nobody-there".into()));
        let elsewhere = Machine { env: BTreeMap::from([("HOME".to_string(), "/elsewhere".to_string())]), ..m };
        assert_eq!(elsewhere.tilde("~/x").as_deref(), Ok("/home/me/x"), "HOME is not the home");
        assert_eq!(elsewhere.tilde_of_include("~/x").as_deref(), Ok("/elsewhere/x"), "but for Include it is");
    }

    #[test]
    fn this_machine() {
        let m = Machine::here().unwrap();
        assert!(!m.user.is_empty() && m.home.is_absolute() && !m.hostname.is_empty());
        assert!((m.addresses)().iter().any(|(_, ip)| ip.is_loopback()));
    }

    #[test]
    fn files_that_others_can_write() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let m = desk(dir.path());
        let file = dir.path().join("config");
        std::fs::write(&file, "").unwrap();
        for (mode, yes) in [(0o600, true), (0o644, true), (0o646, false), (0o602, false)] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(m.trusts(&std::fs::metadata(&file).unwrap()), yes, "{mode:o}");
        }
        let passwd = "root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\nann:x:1001:100::/home/ann:/bin/sh\nbob:x:1002:100:::\n";
        assert!(alone_in(passwd, 1000, &[], "me"));
        assert!(!alone_in(passwd, 1000, &["ann".into()], "me") && !alone_in(passwd, 100, &[], "ann") && !alone_in(passwd, 7, &[], "me"));
    }
}
