//! Judges the key that a host shows, strictly: what is not known is refused, whatever the SSH configuration says.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use runbook_core::{Code, Error, Result};
use russh::Preferred;
use russh::client::{self, DisconnectReason};
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Algorithm, Certificate, HashAlg, PublicKey, PublicKeyOrCertificate};

use super::known_hosts::{KnownHosts, Verdict, entry_name, line};
use super::quote;
use super::target::Target;

/// What the handler has seen, for whoever made the connection.
#[derive(Default)]
pub(super) struct Seen {
    refusal: Mutex<Option<Error>>,
    key: Mutex<Option<PublicKey>>,
    banner: Mutex<String>,
    goodbye: Mutex<Option<String>>,
    software: Mutex<String>,
}

impl Seen {
    /// Why the key was refused; once.
    pub(super) fn refusal(&self) -> Option<Error> {
        self.refusal.lock().take()
    }

    /// The key that the host showed (that of its certificate, when it showed one).
    pub(super) fn key(&self) -> Option<PublicKey> {
        self.key.lock().clone()
    }

    /// What the host showed before the login.
    pub(super) fn banner(&self) -> Option<String> {
        Some(self.banner.lock().trim().to_string()).filter(|b| !b.is_empty())
    }

    /// Whether the server is dropbear, which now and then loses the exit status of one of several commands on one connection.
    pub(super) fn dropbear(&self) -> bool {
        self.software.lock().contains("dropbear")
    }

    /// What the host said when it closed the connection.
    pub(super) fn goodbye(&self) -> Option<String> {
        self.goodbye.lock().clone()
    }
}

/// Where the keys of a host are looked up, and what is on record.
#[derive(Clone)]
pub(super) struct Record {
    /// How the operator calls the host and the environment, for the command that trusts it.
    name: String,
    environment: String,
    pub host: String,
    pub port: u16,
    files: Vec<PathBuf>,
    known: KnownHosts,
    /// `CASignatureAlgorithms`, when configured.
    authority_algorithms: Option<Vec<String>>,
    /// `RequiredRSASize`, in bits.
    smallest_rsa: usize,
}

/// The signature algorithms of host keys, in OpenSSH's order.
const KEYS: [&str; 6] =
    ["ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "rsa-sha2-512", "rsa-sha2-256"];
/// The same with SHA-1, which is taken only where the SSH configuration names it.
const ALL_KEYS: [&str; 7] =
    ["ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"];

/// The algorithm of this name; `ssh-rsa` is RSA with SHA-1.
fn algorithm(name: &str) -> Option<Algorithm> {
    match name {
        "rsa-sha2-512" => Some(Algorithm::Rsa { hash: Some(HashAlg::Sha512) }),
        "rsa-sha2-256" => Some(Algorithm::Rsa { hash: Some(HashAlg::Sha256) }),
        "ssh-rsa" => Some(Algorithm::Rsa { hash: None }),
        other => Algorithm::new(other).ok(),
    }
}

impl Record {
    pub(super) fn of(t: &Target) -> Record {
        let files = t.known_hosts();
        let (host, port) = t.known_as();
        let host = host.to_ascii_lowercase();
        Record {
            name: t.name.clone(),
            environment: t.environment_name.clone(),
            known: KnownHosts::read(&files, &host, port),
            host,
            port,
            files,
            authority_algorithms: t
                .ca_signature_algorithms
                .as_ref()
                .map(|n| n.among(&KEYS, &ALL_KEYS).into_iter().map(String::from).collect()),
            smallest_rsa: usize::try_from(t.required_rsa_size).unwrap_or(usize::MAX),
        }
    }

    /// The keys on record for the host.
    pub(super) fn keys(&self) -> Vec<PublicKey> {
        self.known.keys()
    }

    /// The authorities on record for the host.
    pub(super) fn authorities(&self) -> Vec<PublicKey> {
        self.known.authorities()
    }

    /// What the files say of a key.
    pub(super) fn verdict(&self, key: &PublicKey) -> Verdict {
        self.known.judge(key)
    }

    /// The name of the host in `known_hosts`.
    pub(super) fn entry(&self) -> String {
        entry_name(&self.host, self.port)
    }

    fn file(&self) -> String {
        self.files.first().map_or_else(|| "known_hosts".to_string(), |f| f.display().to_string())
    }

    /// Puts the key types on record first, or a host with several keys would seem unknown; takes SHA-1 away. What `HostKeyAlgorithms`
    /// says comes on top.
    pub(super) fn prefer(&self, preferred: &mut Preferred) {
        let recorded = self.keys();
        let rsa = |a: &Algorithm| matches!(a, Algorithm::Rsa { .. });
        let same_type = |a: &Algorithm| recorded.iter().map(PublicKey::algorithm).any(|k| k == *a || (rsa(&k) && rsa(a)));
        let mut keys: Vec<Algorithm> = KEYS.iter().filter_map(|n| algorithm(n)).collect();
        keys.sort_by_key(|a| !same_type(a));
        if !self.authorities().is_empty() {
            preferred.host_key_certificates = Cow::Owned(keys.clone());
        }
        preferred.key = Cow::Owned(keys);
    }

    fn judge(&self, shown: &PublicKeyOrCertificate) -> Result<()> {
        if let Some(bits) = rsa_bits(&shown.public_key()).filter(|b| *b < self.smallest_rsa) {
            return Err(Error::new(
                Code::SSH_HOST_KEY_UNKNOWN,
                format!("the key of {} is too weak: RSA with {bits} bits, and at least {} are wanted", self.entry(), self.smallest_rsa),
            )
            .host(&self.name)
            .hint("make a new host key there (ssh-keygen -A), or set RequiredRSASize for this host in ~/.ssh/config"));
        }
        match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => self.judge_key(key),
            PublicKeyOrCertificate::Certificate(c) => {
                let own = PublicKey::from(c.public_key().clone());
                let signer = PublicKey::from(c.signature_key().clone());
                for (key, what) in [(&own, "key"), (&signer, "certificate authority")] {
                    if let Some((file, line)) = self.known.revoked(key) {
                        return Err(self.revoked(what, key, &file, line));
                    }
                }
                match self.judge_certificate(c) {
                    Ok(()) => Ok(()),
                    // As OpenSSH does: a certificate that does not hold leaves the key itself, when that is on record.
                    Err(refused) => match self.verdict(&own) {
                        Verdict::Known => Ok(()),
                        Verdict::Changed { .. } => self.judge_key(&own),
                        _ => Err(refused),
                    },
                }
            }
        }
    }

    fn revoked(&self, what: &str, key: &PublicKey, file: &std::path::Path, line: usize) -> Error {
        let print = key.fingerprint(HashAlg::Sha256);
        let message = format!("the {what} of {} is revoked in {}:{line}: {} {print}", self.entry(), file.display(), key.algorithm());
        Error::new(Code::SSH_HOST_KEY_CHANGED, message)
            .host(&self.name)
            .hint("do not connect: the host, or somebody in its place, uses a key that must no longer be used")
            .detail("fingerprint", print)
    }

    fn judge_key(&self, key: &PublicKey) -> Result<()> {
        let print = key.fingerprint(HashAlg::Sha256);
        let kind = key.algorithm();
        match self.verdict(key) {
            Verdict::Known => Ok(()),
            Verdict::Unknown => {
                let line = line(&self.host, self.port, key);
                let others: Vec<String> = self.keys().iter().map(|k| format!("{} {}", k.algorithm(), k.fingerprint(HashAlg::Sha256))).collect();
                let about = if others.is_empty() { String::new() } else { format!("; on record are {}", others.join(", ")) };
                Err(Error::new(Code::SSH_HOST_KEY_UNKNOWN, format!("the key of {} is not known: {kind} {print}{about}", self.entry()))
                    .host(&self.name)
                    .hint(format!(
                        "compare the fingerprint with that on the host itself (ssh-keygen -lf /etc/ssh/ssh_host_…_key.pub); when they are equal, `runbook hosts trust {}{}`, or add this line to {}:\n{line}",
                        quote(&self.name),
                        if self.environment.is_empty() { String::new() } else { format!(" --env {}", quote(&self.environment)) },
                        self.file()
                    ))
                    .detail("fingerprint", print)
                    .detail("line", line))
            }
            Verdict::Changed { file, line } => Err(Error::new(
                Code::SSH_HOST_KEY_CHANGED,
                format!("the key of {} is not the one in {}:{line}: it shows {kind} {print}", self.entry(), file.display()),
            )
            .host(&self.name)
            .hint(format!(
                "somebody may be listening in. Only when you know why the key changed (a new installation): remove line {line} of {} and add the new key after comparing its fingerprint on the host",
                file.display()
            ))
            .detail("fingerprint", print)),
            Verdict::Revoked { file, line } => Err(self.revoked("key", key, &file, line)),
        }
    }

    fn judge_certificate(&self, c: &Certificate) -> Result<()> {
        let refuse = |why: String| {
            Err(Error::new(Code::SSH_HOST_KEY_UNKNOWN, format!("the certificate of {} is not good: {why}", self.host))
                .host(&self.name)
                .hint("compare it with the @cert-authority lines of known_hosts (ssh-keygen -L shows a certificate), or have the host's certificate signed anew"))
        };
        if c.cert_type() != CertType::Host {
            return refuse("it is not a host certificate".into());
        }
        let signer = PublicKey::from(c.signature_key().clone());
        let authorities = self.authorities();
        if !authorities.iter().any(|a| a.key_data() == signer.key_data()) {
            let kind = signer.algorithm();
            return refuse(format!(
                "no authority on record for this host has signed it; it was signed by {kind} {}",
                signer.fingerprint(HashAlg::Sha256)
            ));
        }
        let how = c.signature().algorithm();
        let usual: Vec<String> = KEYS.map(String::from).to_vec();
        if !self.authority_algorithms.as_ref().unwrap_or(&usual).iter().any(|n| algorithm(n).as_ref() == Some(&how)) {
            return refuse(format!("it is signed with {how}, which is not taken"));
        }
        let prints: Vec<_> = authorities.iter().map(|k| k.fingerprint(HashAlg::Sha256)).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let day =
            |t: u64| i64::try_from(t).ok().and_then(|t| jiff::Timestamp::from_second(t).ok()).map(|t| t.to_string()).unwrap_or_default();
        if now < c.valid_after() {
            return refuse(format!("it is valid only from {}", day(c.valid_after())));
        }
        if now >= c.valid_before() {
            return refuse(format!("it expired at {}", day(c.valid_before())));
        }
        if !c.valid_principals().is_empty() && !c.valid_principals().contains(&self.host) {
            return refuse(format!("it is for {}", c.valid_principals().join(", ")));
        }
        if let Some((name, _)) = c.critical_options().iter().next() {
            return refuse(format!("it has the critical option \"{name}\", which nobody knows for hosts"));
        }
        c.validate_at(now, prints.iter()).or_else(|_| refuse("its signature is wrong".into()))
    }
}

fn rsa_bits(key: &PublicKey) -> Option<usize> {
    let modulus = key.key_data().rsa()?.n().as_positive_bytes()?;
    let first = modulus.first()?;
    Some(modulus.len() * 8 - usize::try_from(first.leading_zeros()).unwrap_or_default())
}

/// The client's side of the protocol: judges the host's key; the verdict that is not a yes is kept for the error message.
pub(super) struct Client {
    record: Record,
    seen: Arc<Seen>,
    /// Whether nothing but the key is wanted: then the connection ends there.
    look: bool,
}

impl Client {
    /// A handler that judges by `record`; with `look` it ends the connection once it has seen the key.
    pub(super) fn new(record: Record, look: bool) -> (Client, Arc<Seen>) {
        let seen: Arc<Seen> = Arc::default();
        (Client { record, seen: seen.clone(), look }, seen)
    }
}

impl client::Handler for Client {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> std::result::Result<bool, russh::Error> {
        *self.seen.key.lock() = Some(shown.public_key());
        let refused = self.record.judge(shown).err();
        let ok = refused.is_none() && !self.look;
        *self.seen.refusal.lock() = refused;
        Ok(ok)
    }

    async fn kex_done(
        &mut self,
        _shared: Option<&[u8]>,
        _names: &russh::Names,
        session: &mut client::Session,
    ) -> std::result::Result<(), russh::Error> {
        *self.seen.software.lock() = String::from_utf8_lossy(session.remote_sshid()).into_owned();
        Ok(())
    }

    async fn auth_banner(&mut self, banner: &str, _session: &mut client::Session) -> std::result::Result<(), russh::Error> {
        let mut kept = self.seen.banner.lock();
        let room = 8192usize.saturating_sub(kept.len());
        kept.extend(banner.chars().filter(|c| !c.is_control() || *c == '\n').take(room));
        Ok(())
    }

    async fn disconnected(&mut self, reason: DisconnectReason<russh::Error>) -> std::result::Result<(), russh::Error> {
        match reason {
            DisconnectReason::ReceivedDisconnect(d) => {
                *self.seen.goodbye.lock() = Some(d.message.chars().filter(|c| !c.is_control()).take(500).collect());
                Ok(())
            }
            DisconnectReason::Error(e) => Err(e),
        }
    }
}
