//! Logging in, in the order of OpenSSH: keys, then questions of the host (keyboard-interactive), then a password.

mod agent;
mod keyring;
mod keys;
mod private;
mod questions;
mod signer;

use std::path::PathBuf;
use std::time::Duration;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use russh::MethodKind;
use russh::client::{AuthResult, Handle, KeyboardInteractiveAuthResponse as Reply};
use russh::keys::{Algorithm, HashAlg};

use super::config::Agent as Where;
use super::host_key::{Client, Seen};
use super::target::Target;
use agent::{Agent, Half};
use keyring::Keyring;
use keys::{By, Candidate, Choice};
use questions::Answers;
use signer::{ByAgent, ByFile, Nobody, Unsigned};

/// How long the host may take to answer one request. PAM may wait for seconds after a wrong password; a key with a button waits for
/// the finger.
const ANSWER: Duration = Duration::from_secs(60);

/// Every signature algorithm of users' keys that there is here, in OpenSSH's order; SHA-1 is not among them.
const ACCEPTED: [&str; 16] = [
    "ssh-ed25519-cert-v01@openssh.com",
    "ecdsa-sha2-nistp256-cert-v01@openssh.com",
    "ecdsa-sha2-nistp384-cert-v01@openssh.com",
    "ecdsa-sha2-nistp521-cert-v01@openssh.com",
    "sk-ssh-ed25519-cert-v01@openssh.com",
    "sk-ecdsa-sha2-nistp256-cert-v01@openssh.com",
    "rsa-sha2-512-cert-v01@openssh.com",
    "rsa-sha2-256-cert-v01@openssh.com",
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "rsa-sha2-512",
    "rsa-sha2-256",
];

/// What decides about a login, of the target's settings.
struct Wishes {
    agent: Option<PathBuf>,
    accepted: Option<Vec<String>>,
    methods: Vec<MethodKind>,
    prompts: u32,
    may_ask: bool,
}

impl Wishes {
    fn of(t: &Target) -> Wishes {
        let usual = || ["publickey", "keyboard-interactive", "password"].map(String::from).to_vec();
        let wanted = t.preferred_authentications.clone().unwrap_or_else(usual);
        let methods = wanted.iter().filter_map(|m| match m.as_str() {
            "publickey" if t.pubkey_authentication => Some(MethodKind::PublicKey),
            "keyboard-interactive" if t.kbd_interactive_authentication => Some(MethodKind::KeyboardInteractive),
            "password" if t.password_authentication => Some(MethodKind::Password),
            _ => None,
        });
        Wishes {
            agent: match &t.identity_agent {
                Where::Environment => std::env::var_os("SSH_AUTH_SOCK").filter(|s| !s.is_empty()).map(PathBuf::from),
                Where::None => None,
                Where::Socket(path) => Some(path.clone()),
            },
            accepted: t.pubkey_accepted_algorithms.as_ref().map(|n| n.among(&ACCEPTED, &ACCEPTED).into_iter().map(String::from).collect()),
            methods: methods.collect(),
            prompts: t.number_of_password_prompts.max(1),
            may_ask: !t.batch_mode,
        }
    }
}

/// What came of one request.
enum Came {
    /// The login stands.
    In,
    /// Refused; the methods that the host still takes, and whether this one counted.
    Refused { next: Vec<MethodKind>, counted: bool },
    /// This could not be tried; why.
    Untried(String),
    /// The connection is gone.
    Gone,
}

impl From<AuthResult> for Came {
    fn from(r: AuthResult) -> Came {
        match r {
            AuthResult::Success => Came::In,
            AuthResult::Failure { remaining_methods, partial_success } if remaining_methods.is_empty() && !partial_success => Came::Gone,
            AuthResult::Failure { remaining_methods, partial_success } => {
                Came::Refused { next: remaining_methods.to_vec(), counted: partial_success }
            }
        }
    }
}

/// Logs in, and says by what.
///
/// # Errors
/// `RB0301` with what was tried; `RB0109` when a named secret is missing; `RB0021` when cancelled.
pub(super) async fn login(cx: &Cx, t: &Target, handle: &mut Handle<Client>, seen: &Seen) -> Result<String> {
    let wishes = Wishes::of(t);
    let shared = cx.shared.get::<Keyring>();
    let mut l = Login { cx, t, handle, seen, wishes, keyring: &shared, tried: vec![], offered: 0, refused_password: false, rsa: None };
    l.run().await
}

struct Login<'a> {
    cx: &'a Cx,
    t: &'a Target,
    handle: &'a mut Handle<Client>,
    seen: &'a Seen,
    wishes: Wishes,
    keyring: &'a Keyring,
    tried: Vec<String>,
    /// How many keys were offered.
    offered: usize,
    /// The password's secret was refused as an answer: sending it once more would count twice against the login.
    refused_password: bool,
    /// How the host wants RSA keys to sign; asked once.
    rsa: Option<Option<HashAlg>>,
}

impl Login<'_> {
    async fn run(&mut self) -> Result<String> {
        let mut agent = None;
        let mut held = vec![];
        if let (true, Some(socket)) = (self.wishes.methods.contains(&MethodKind::PublicKey), &self.wishes.agent) {
            match Agent::connect(socket, self.handle.agent_session_binding()).await {
                Ok(mut a) => match a.list().await {
                    Ok(keys) => {
                        held = keys;
                        agent = Some(a);
                    }
                    Err(e) => self.tried.push(format!("the agent: {e}")),
                },
                Err(e) => self.tried.push(format!("the agent at {}: {e}", socket.display())),
            }
        }
        let choice = Choice {
            files: &self.t.identity_files,
            configured: self.t.identities_configured,
            only: self.t.identities_only,
            certificates: &self.t.certificate_files,
            accepted: self.wishes.accepted.as_deref(),
        };
        let (candidates, notes) = keys::candidates(&choice, &held);
        self.tried.extend(notes);
        let mut keys = std::collections::VecDeque::from(candidates);
        let (mut questions, mut passwords) = (self.wishes.prompts, self.wishes.prompts);
        // What the host takes is not known before the first refusal; a key is as good a first question as any.
        let mut open: Option<Vec<MethodKind>> = None;
        let mut passed: Vec<&'static str> = vec![];
        if keys.is_empty() || self.wishes.methods.first() != Some(&MethodKind::PublicKey) {
            match in_time(self.handle.authenticate_none(&self.t.user)).await {
                Ok(r) => match Came::from(r) {
                    Came::In => return Ok("nothing: the host lets everybody in".into()),
                    Came::Refused { next, .. } => open = Some(next),
                    _ => return Err(self.closed()),
                },
                Err(e) => return Err(self.broke_off(&e)),
            }
        }
        loop {
            let takes = |m: &MethodKind| open.as_ref().is_none_or(|o| o.contains(m));
            let next = self.wishes.methods.iter().copied().filter(takes).find(|m| match m {
                MethodKind::PublicKey => !keys.is_empty(),
                MethodKind::KeyboardInteractive => questions > 0,
                MethodKind::Password => passwords > 0,
                _ => false,
            });
            let (name, came, by) = match next {
                Some(MethodKind::PublicKey) => {
                    let Some(key) = keys.pop_front() else { continue };
                    let came = self.key(&key, &mut agent).await?;
                    if let Came::Refused { counted: false, .. } = came {
                        self.tried.push(format!("{}: refused", key.shown));
                    }
                    if let Came::Untried(why) = &came {
                        self.tried.push(format!("{}: {why}", key.shown));
                        continue;
                    }
                    ("publickey", came, format!("the key {}", key.shown))
                }
                Some(MethodKind::KeyboardInteractive) => {
                    let (came, again) = self.questions(questions < self.wishes.prompts).await?;
                    questions = if again { questions - 1 } else { 0 };
                    ("keyboard-interactive", came, "answers to its questions".to_string())
                }
                Some(_) => {
                    let (came, again) = self.password(passwords < self.wishes.prompts).await?;
                    passwords = if again { passwords - 1 } else { 0 };
                    ("password", came, "a password".to_string())
                }
                None => return Err(self.refused(open.as_deref(), &passed)),
            };
            match came {
                Came::In => {
                    passed.push(name);
                    return Ok(if passed.len() > 1 {
                        format!("{by} (after {})", passed.split_last().map(|(_, b)| b.join(", ")).unwrap_or_default())
                    } else {
                        by
                    });
                }
                Came::Refused { next, counted } => {
                    if counted {
                        passed.push(name);
                        // A second factor begins: what was left of the others counts again.
                        (questions, passwords) = (self.wishes.prompts, self.wishes.prompts);
                    }
                    open = Some(next);
                }
                Came::Untried(why) => {
                    if !why.is_empty() {
                        self.tried.push(why);
                    }
                }
                Came::Gone => return Err(self.closed()),
            }
        }
    }

    /// Offers one key, and signs with it when the host says that it takes it.
    async fn key(&mut self, key: &Candidate, agent: &mut Option<Agent>) -> Result<Came> {
        let t = self.t;
        let half = match (&key.half, &key.by) {
            (Some(h), _) => h.clone(),
            (None, By::File(path)) => match self.keyring.key(self.cx, path, t.passphrase.as_deref(), self.wishes.may_ask).await? {
                Ok(k) => Half::Key(Box::new(k.public_key().clone())),
                Err(why) => return Ok(Came::Untried(why)),
            },
            _ => return Ok(Came::Untried("it cannot be read".into())),
        };
        let hash = if matches!(half.key().algorithm(), Algorithm::Rsa { .. }) {
            match self.rsa_hash(&half).await? {
                Some(h) => Some(h),
                None => return Ok(Came::Untried("the host takes RSA keys only with SHA-1, which is not used: make an ed25519 key".into())),
            }
        } else {
            None
        };
        self.offered += 1;
        let user = t.user.clone();
        macro_rules! offer {
            ($signer:expr) => {{
                let mut signer = $signer;
                match half {
                    Half::Key(k) => in_time_as(self.handle.authenticate_publickey_with(user, *k, hash, &mut signer)).await,
                    Half::Certificate(c) => in_time_as(self.handle.authenticate_certificate_with(user, *c, hash, &mut signer)).await,
                }
            }};
        }
        let result = match (&key.by, agent.as_mut()) {
            (By::Agent(blob), Some(agent)) => offer!(ByAgent { agent, blob }),
            (By::File(path), _) => {
                let (passphrase, may_ask) = (t.passphrase.as_deref(), self.wishes.may_ask);
                // The time of a person who types a passphrase is not the host's.
                let mut signer = ByFile { cx: self.cx, keyring: self.keyring, path, passphrase, may_ask };
                match half {
                    Half::Key(k) => Some(self.handle.authenticate_publickey_with(user, *k, hash, &mut signer).await),
                    Half::Certificate(c) => Some(self.handle.authenticate_certificate_with(user, *c, hash, &mut signer).await),
                }
            }
            _ => offer!(Nobody),
        };
        match result {
            Some(Ok(r)) => Ok(r.into()),
            Some(Err(Unsigned::Gone)) => Ok(Came::Gone),
            Some(Err(Unsigned::Skip(why))) => Ok(Came::Untried(why)),
            Some(Err(Unsigned::Stop(e))) => Err(*e),
            None => Err(self.broke_off("it does not answer")),
        }
    }

    /// How RSA keys sign: as the host says in its extensions, SHA-512 when it says nothing.
    async fn rsa_hash(&mut self, half: &Half) -> Result<Option<HashAlg>> {
        let best = match self.rsa {
            Some(known) => known,
            None => {
                let best = self.handle.best_supported_rsa_hash().await.map_err(|e| self.broke_off(&e.to_string()))?;
                *self.rsa.insert(best.unwrap_or(Some(HashAlg::Sha512)))
            }
        };
        let accepted = |h: HashAlg| {
            let Some(accepted) = &self.wishes.accepted else { return true };
            let number = if h == HashAlg::Sha512 { "512" } else { "256" };
            keys::signature_names(half).iter().any(|n| n.contains(number) && accepted.contains(n))
        };
        Ok(match best {
            Some(HashAlg::Sha512) => [HashAlg::Sha512, HashAlg::Sha256].into_iter().find(|h| accepted(*h)),
            other => other.filter(|h| accepted(*h)),
        })
    }

    fn question(&self) -> String {
        format!("Password of {}@{}: ", self.t.user, self.t.host)
    }

    /// Lets the host ask, once. Says whether asking again makes sense.
    async fn questions(&mut self, _again: bool) -> Result<(Came, bool)> {
        let t = self.t;
        let secret = t.password.as_deref().map(|n| self.cx.secret(n)).transpose()?;
        let name = t.password.clone().unwrap_or_default();
        let mut answers = Answers::new(self.cx, t, secret, self.wishes.may_ask);
        let mut reply = match in_time(self.handle.authenticate_keyboard_interactive_start(&t.user, None::<String>)).await {
            Ok(r) => r,
            Err(e) => return Err(self.broke_off(&e)),
        };
        let mut rounds = 0;
        loop {
            match reply {
                Reply::Success => return Ok((Came::In, false)),
                Reply::Failure { remaining_methods, partial_success } => {
                    if remaining_methods.is_empty() && !partial_success {
                        return Ok((Came::Gone, false));
                    }
                    if answers.gave_password && !partial_success {
                        self.refused_password = true;
                        self.tried.push(format!("the password \"{name}\": refused"));
                    } else if rounds > 0 && !partial_success {
                        self.tried.push("answers to its questions: refused".into());
                    }
                    // A person may have mistyped; a secret does not change.
                    let again = answers.asked && !answers.gave_password && !partial_success;
                    return Ok((Came::Refused { next: remaining_methods.to_vec(), counted: partial_success }, again));
                }
                Reply::InfoRequest { instructions, prompts, .. } => {
                    rounds += 1;
                    if rounds > 32 {
                        return Err(self
                            .error(format!("{} asks {} again and again: its questions do not end", t.host, t.user))
                            .hint(format!("try `{}`", self.with_ssh())));
                    }
                    // Asked once more for the same: an empty answer ends the round.
                    let given =
                        answers.round(&instructions, &prompts).await?.unwrap_or_else(|| prompts.iter().map(|_| String::new()).collect());
                    reply = match in_time(self.handle.authenticate_keyboard_interactive_respond(given)).await {
                        Ok(r) => r,
                        Err(e) => return Err(self.broke_off(&e)),
                    };
                }
            }
        }
    }

    /// Sends a password, once. Says whether another makes sense.
    async fn password(&mut self, again: bool) -> Result<(Came, bool)> {
        let t = self.t;
        let (secret, shown) = match &t.password {
            Some(_) if self.refused_password => return Ok((Came::Untried(String::new()), false)),
            Some(name) => (self.cx.secret(name)?, format!("the password \"{name}\"")),
            None if !self.wishes.may_ask => return Ok((Came::Untried(String::new()), false)),
            None => match self.keyring.typed(self.cx, &self.question(), again).await? {
                Some(s) => (s, "the password that was typed".to_string()),
                None => return Ok((Came::Untried(String::new()), false)),
            },
        };
        let came = match in_time(self.handle.authenticate_password(&t.user, secret.reveal())).await {
            Ok(r) => Came::from(r),
            Err(e) => return Err(self.broke_off(&e)),
        };
        if matches!(came, Came::Refused { counted: false, .. }) {
            self.tried.push(format!("{shown}: refused"));
            if t.password.is_none() {
                self.keyring.forget(&self.question()).await;
            }
        }
        Ok((came, t.password.is_none()))
    }

    fn with_ssh(&self) -> String {
        format!("ssh -p {} {}@{}", self.t.port, self.t.user, self.t.host)
    }

    fn error(&self, message: String) -> Error {
        let e = Error::new(Code::SSH_AUTH, message).host(&self.t.name);
        match self.seen.banner() {
            Some(b) => e.detail("banner", b),
            None => e,
        }
    }

    /// The host went away in the middle: after too many keys, or for reasons of its own.
    fn closed(&self) -> Error {
        let said = self.seen.goodbye();
        let t = self.t;
        let too_many = said.as_deref().is_some_and(|s| s.to_lowercase().contains("too many authentication failures"));
        if too_many && self.offered > 1 {
            return self
                .error(format!(
                    "{} closed the login of {} after {} keys: it takes no more tries (MaxAuthTries); tried {}",
                    t.host,
                    t.user,
                    self.offered,
                    self.tried.join(", ")
                ))
                .hint(
                    "offer the right key alone: set identity_file for this host in runbook.toml, or IdentityFile with IdentitiesOnly yes in ~/.ssh/config",
                );
        }
        let why = said.unwrap_or_else(|| "without a word".into());
        let tried = if self.tried.is_empty() { String::new() } else { format!("; tried {}", self.tried.join(", ")) };
        self.error(format!("{} closed the login of {}: {why}{tried}", t.host, t.user))
            .retryable(!too_many)
            .hint(format!("check that `{}` works", self.with_ssh()))
    }

    fn broke_off(&self, why: &str) -> Error {
        let why = self.seen.goodbye().unwrap_or_else(|| why.to_string());
        self.error(format!("the login of {} to {} broke off: {why}", self.t.user, self.t.host))
            .retryable(true)
            .hint(format!("check that `{}` works", self.with_ssh()))
    }

    fn refused(&mut self, open: Option<&[MethodKind]>, passed: &[&str]) -> Error {
        let t = self.t;
        let takes = open.map(|o| o.iter().map(<&str>::from).collect::<Vec<_>>().join(", ")).unwrap_or_default();
        if self.tried.is_empty() {
            self.tried.push("nothing: there is no key file, no agent and no password".into());
        }
        let tried = self.tried.join(", ");
        if !passed.is_empty() {
            return self
                .error(format!("{} took {} of {} and wants {takes} as well; tried {tried}", t.host, passed.join(", "), t.user))
                .hint("give what is missing: password (the name of a secret) or another identity_file for this host in runbook.toml");
        }
        let only = match open {
            Some(o) if !o.contains(&MethodKind::PublicKey) => format!(" (it takes {takes} alone)"),
            _ => String::new(),
        };
        self.error(format!("{} refuses the login of {}{only}; tried {tried}", t.host, t.user)).hint(format!(
            "check that `{}` works, load the key into the agent (ssh-add), or set identity_file, passphrase or password for this host in runbook.toml",
            self.with_ssh()
        ))
    }
}

async fn in_time<T>(what: impl Future<Output = std::result::Result<T, russh::Error>>) -> std::result::Result<T, String> {
    match tokio::time::timeout(ANSWER, what).await {
        Ok(r) => r.map_err(|e| e.to_string()),
        Err(_) => Err("it does not answer".into()),
    }
}

async fn in_time_as<T, E>(what: impl Future<Output = std::result::Result<T, E>>) -> Option<std::result::Result<T, E>> {
    tokio::time::timeout(ANSWER, what).await.ok()
}

#[cfg(test)]
mod tests;
