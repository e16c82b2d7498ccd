//! How the hosts of an inventory stand: what is on record of their keys, whether they let us in. For the command line.

use std::path::PathBuf;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use russh::keys::{HashAlg, PublicKey};

use super::host_key::Record;
use super::known_hosts::{Verdict, append, line};
use super::target::{Target, resolve};
use super::transport;

/// A key, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its type: `ssh-ed25519`.
    pub kind: String,
    /// `SHA256:…`.
    pub fingerprint: String,
}

impl Key {
    fn of(key: &PublicKey) -> Key {
        Key { kind: key.algorithm().as_str().to_string(), fingerprint: key.fingerprint(HashAlg::Sha256).to_string() }
    }
}

/// What is on record of a host. Nothing is contacted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Its inventory name.
    pub name: String,
    /// Login name.
    pub user: String,
    /// Name or address to connect to.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The hosts on the way, the first to be connected to first.
    pub via: Vec<String>,
    /// Its name in `known_hosts`.
    pub entry: String,
    /// The keys on record for it.
    pub keys: Vec<Key>,
    /// How many certificate authorities on record may vouch for it.
    pub authorities: usize,
}

/// What is on record of the host with this inventory name.
///
/// # Errors
/// `RB0106` for an unknown name, `RB0304` for settings that cannot be used.
pub async fn recorded(cx: &Cx, name: &str) -> Result<Recorded> {
    let t = resolve(cx, name).await?;
    let r = Record::of(&t);
    let via = way(&t).iter().rev().skip(1).rev().map(|h| h.host.clone()).collect();
    Ok(Recorded {
        name: name.to_string(),
        user: t.user.clone(),
        host: t.host.clone(),
        port: t.port,
        via,
        entry: r.entry(),
        keys: r.keys().iter().map(Key::of).collect(),
        authorities: r.authorities().len(),
    })
}

/// The hosts on the way and the host itself, in the order in which they are reached.
fn way(t: &Target) -> Vec<&Target> {
    let mut all = vec![t];
    let mut at = t;
    while let Some(jump) = &at.jump {
        all.push(jump);
        at = jump;
    }
    all.reverse();
    all
}

/// How a key stands that a host shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is on record, or an authority on record vouches for it.
    Known,
    /// It is not on record.
    Unknown,
    /// Another key of its type is on record.
    Changed,
    /// It is marked as revoked.
    Revoked,
}

/// The key that a host shows now.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The host's name in `known_hosts`: that of the host, or of one on the way to it.
    pub entry: String,
    /// Whether it is one on the way.
    pub on_the_way: bool,
    /// The key.
    pub key: Key,
    /// How it stands.
    pub standing: Standing,
    /// Where the record is that decides, when there is one: file and line.
    pub at: Option<(PathBuf, usize)>,
    /// Keys of other types on record for it.
    pub others: Vec<Key>,
    /// The file that a new key goes to.
    pub file: PathBuf,
    /// The line that a new key makes there (before its name is hashed).
    pub line: String,
    /// Whether its name is hashed there (`HashKnownHosts`).
    pub hashed: bool,
    host: String,
    port: u16,
    public: PublicKey,
}

impl Shown {
    /// Puts the key on record.
    ///
    /// # Errors
    /// `RB0303` unless the key is simply not known; `RB0304` when the file cannot be written.
    pub fn trust(&self) -> Result<()> {
        if self.standing != Standing::Unknown {
            return Err(Error::new(Code::SSH_HOST_KEY_CHANGED, format!("the key of {} is not one that can be added", self.entry)));
        }
        append(&self.file, &self.host, self.port, &self.public, self.hashed).map_err(|e| {
            Error::new(Code::SSH_CONFIG, format!("{} cannot be written: {e}", self.file.display()))
                .hint("make it writable, or set known_hosts for this host in runbook.toml")
        })
    }
}

/// Connects to a host just far enough to see its key. When the key of a host on the way is not known, that one is shown.
///
/// # Errors
/// `RB0300` when it cannot be reached; for a host on the way also `RB0301` to `RB0303`.
pub async fn look(cx: &Cx, name: &str) -> Result<Shown> {
    let t = resolve(cx, name).await?;
    let way = way(&t);
    for (i, hop) in way.iter().enumerate() {
        let last = i + 1 == way.len();
        let (key, certified) = transport::look(cx, hop).await?;
        let shown = shown(hop, key, certified, !last);
        if last || shown.standing != Standing::Known {
            return Ok(shown);
        }
    }
    Err(Error::internal("a host without a way to it"))
}

fn shown(t: &Target, key: PublicKey, certified: bool, on_the_way: bool) -> Shown {
    let r = Record::of(t);
    let (standing, at) = match r.verdict(&key) {
        Verdict::Revoked { file, line } => (Standing::Revoked, Some((file, line))),
        _ if certified => (Standing::Known, None),
        Verdict::Known => (Standing::Known, None),
        Verdict::Unknown => (Standing::Unknown, None),
        Verdict::Changed { file, line } => (Standing::Changed, Some((file, line))),
    };
    let hashed = t
        .written
        .get("hashknownhosts")
        .and_then(|v| v.first())
        .is_some_and(|v| v.eq_ignore_ascii_case("yes") || v.eq_ignore_ascii_case("true"));
    Shown {
        entry: r.entry(),
        on_the_way,
        key: Key::of(&key),
        standing,
        at,
        others: r.keys().iter().filter(|k| k.key_data() != key.key_data()).map(Key::of).collect(),
        file: t.known_hosts().into_iter().next().unwrap_or_else(|| "known_hosts".into()),
        line: line(&r.host, r.port, &key),
        hashed,
        host: r.host.clone(),
        port: r.port,
        public: key,
    }
}

/// Logs in to a host over a connection of its own, and says by what: `the key ~/.ssh/id_ed25519`.
///
/// # Errors
/// `RB0300`–`RB0304`.
pub async fn try_login(cx: &Cx, name: &str) -> Result<String> {
    let t = resolve(cx, name).await?;
    transport::try_login(cx, &t).await
}
