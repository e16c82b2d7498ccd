//! Streams to sockets on a host (database servers, Docker Engines), over its SSH session, as the login or as another user.
//!
//! As the login: a channel that the host's SSH server connects. As another user (peer authentication knows the user at the other end of a
//! unix socket), or where the server forwards nothing: a relay that runs on the host as that user, with perl where there is one (Debian
//! always has perl-base), else with this program's helper.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use runbook_core::cancel::Cancel;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::local::{self, Local};
use super::relay::PERL;
use super::{Exec, NotOpened, Place, Session, Stream, connect, helper, quote};

/// What carries bytes on the host when its SSH server does not. Shared by [`Cx::shared`].
#[derive(Default)]
pub struct Relays(RwLock<Relay>);

/// A program that carries bytes on a host.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Relay {
    /// Perl where there is one, else the helper.
    #[default]
    Any,
    /// The helper alone.
    Helper,
}

impl Relays {
    /// Chooses which is used.
    pub fn set(&self, relay: Relay) {
        *self.0.write() = relay;
    }
}

/// What was found out: hosts and kinds of places that only the relay reaches; hosts with and without perl.
#[derive(Default)]
struct Known(Mutex<BTreeSet<(String, &'static str)>>);

/// Opens a stream to a socket as seen from a host: as the login, or as `user`.
///
/// # Errors
/// `RB0300`–`RB0305` of the SSH connection; `RB0307` when the socket cannot be reached, with the detail `reason` (`absent`, `refused`,
/// `denied`, `timeout`, `forwarding` or `other`); the errors of raised privileges.
pub fn stream<'a>(cx: &'a Cx, host: &'a str, to: &'a Place, user: Option<&'a str>) -> BoxFuture<'a, Result<Stream>> {
    Box::pin(async move {
        let session = connect(cx, host).await?;
        let user = user.filter(|u| *u != session.login());
        let known = cx.shared.get::<Known>();
        let kind = match to {
            Place::Unix(_) => "unix",
            Place::Tcp(..) => "tcp",
        };
        let key = (format!("{}/{host}", cx.env.name), kind);
        let refused = if user.is_some() || known.0.lock().contains(&key) {
            None
        } else {
            match session.socket(cx, to).await? {
                Ok(stream) => return Ok(stream),
                Err(why) => Some(why),
            }
        };
        let relayed = relay(cx, &session, host, to, user).await;
        match (relayed, refused) {
            (Ok(stream), None) => Ok(stream),
            (Ok(stream), Some(_)) => {
                if known.0.lock().insert(key) {
                    let option = if kind == "unix" { "AllowStreamLocalForwarding" } else { "AllowTcpForwarding" };
                    cx.message(format!("{host} does not forward to {to} ({option}, PermitOpen): a relay on the host is used instead"));
                }
                Ok(stream)
            }
            // The relay ran and says why: that is what the operator wants to know.
            (Err(e), _) if e.code == Code::SSH_SOCKET => Err(e),
            (Err(e), Some(NotOpened::Failed)) if e.retryable => Err(e),
            (Err(e), Some(why)) => {
                let why = match why {
                    NotOpened::Prohibited => "does not allow it",
                    NotOpened::Unknown => "cannot forward to such a socket",
                    NotOpened::Failed => "could not connect it or does not allow it",
                };
                Err(Error::new(Code::SSH_SOCKET, format!("there is no way to {to}: the SSH server {why}, and a relay: {}", e.message))
                .host(host)
                .hint("allow AllowTcpForwarding and AllowStreamLocalForwarding for this login in sshd_config, or install perl-base on the host")
                .detail("reason", "forwarding"))
            }
            (Err(e), None) => Err(e),
        }
    })
}

/// Opens a stream through a relay on the host.
async fn relay(cx: &Cx, session: &Session, host: &str, to: &Place, user: Option<&str>) -> Result<Stream> {
    // A login as root becomes any user by itself; another needs what the host has for that.
    let (become_user, raised) = match user {
        Some(u) if session.login() == "root" => (u, None),
        Some(u) => ("", Some(u)),
        None => ("", None),
    };
    let as_user =
        |script: String| Exec { sudo: raised.is_some(), user: raised.filter(|u| *u != "root").map(String::from), ..Exec::new(script) };
    let words = match to {
        Place::Unix(path) => format!("{} unix {}", quote(become_user), quote(path)),
        Place::Tcp(name, port) => format!("{} tcp {} {port}", quote(become_user), quote(name)),
    };
    let known = cx.shared.get::<Known>();
    let (no_perl, perl) = ((format!("{}/{host}", cx.env.name), "no perl"), (format!("{}/{host}", cx.env.name), "perl"));
    let may_perl = *cx.shared.get::<Relays>().0.read() == Relay::Any && !known.0.lock().contains(&no_perl);
    if may_perl {
        // Looked at once a host: in a switch it would be as long as the relay's own start.
        let look = "command -v perl >/dev/null 2>&1 && perl -MSocket -MErrno -e 1 >/dev/null 2>&1 || { echo none; exit 0; }\n";
        let look = if known.0.lock().contains(&perl) { "" } else { look };
        let script = format!("{look}exec perl -e {} {words}", quote(PERL));
        if let Some(stream) = begin(cx, session, as_user(script), to, user).await? {
            known.0.lock().insert(perl);
            return Ok(stream);
        }
        known.0.lock().insert(no_perl);
    }
    let helper = helper::put(cx, session, host, raised).await?;
    let script = format!("exec {} __helper relay {words}", quote(&helper));
    begin(cx, session, as_user(script), to, user).await?.ok_or_else(|| Error::internal("the relay has no relay"))
}

/// Starts a relay and reads its first line; `None` when it says that it cannot run there.
async fn begin(cx: &Cx, session: &Session, exec: Exec, to: &Place, user: Option<&str>) -> Result<Option<Stream>> {
    // The stream may live longer than the action that opens it.
    let lasting = Cx { cancel: Cancel::default(), ..cx.clone() };
    let open = async {
        let mut channel = session.open(&lasting, exec).await?;
        let mut line = Vec::new();
        while line.len() < 1000 && line.last() != Some(&b'\n') {
            match channel.stdout.read_u8().await {
                Ok(b) => line.push(b),
                Err(_) => break,
            }
        }
        Ok::<_, Error>((channel, line))
    };
    let (channel, line) = tokio::select! {
        opened = open => opened?,
        () = cx.cancel.cancelled() => return Err(Error::new(Code::ABORTED, "stopped while connecting to a socket").host(session.name())),
    };
    let said = String::from_utf8_lossy(&line).trim().to_string();
    match said.split_once(' ').unwrap_or((&said, "")) {
        ("ok", _) => return Ok(Some(Stream::of_command(channel))),
        ("none", _) => return Ok(None),
        ("no", why) => {
            let (reason, text) = why.split_once(' ').unwrap_or((why, ""));
            return Err(unreached(session.name(), to, user, reason, text));
        }
        _ => {}
    }
    let (status, text) = channel.done.await?;
    let text = if text.trim().is_empty() { said } else { text.trim().to_string() };
    Err(Error::new(Code::DB_HELPER, format!("the relay to {to} ended with status {status}: {text}")).host(session.name()))
}

/// The error of a socket that a relay could not reach.
fn unreached(host: &str, to: &Place, user: Option<&str>, reason: &str, text: &str) -> Error {
    let (what, hint) = match reason {
        "absent" => ("is not there", "see whether the service runs and where it listens: ss -xltn on the host"),
        "refused" => ("refuses the connection: nothing listens", "see whether the service runs and where it listens: ss -xltn on the host"),
        "denied" => ("may not be connected to", "reach it as a user who may (sudo), or open the socket's folder to this one"),
        "timeout" => ("does not answer", "look at the firewall between the host and that address"),
        _ => ("cannot be connected to", "look at the service on the host"),
    };
    let who = user.map_or(String::new(), |u| format!(", asked as {u}"));
    let text = if reason == "absent" || text.is_empty() { String::new() } else { format!(" ({text})") };
    Error::new(Code::SSH_SOCKET, format!("{to} {what}{text}{who}"))
        .host(host)
        .hint(hint)
        .retryable(matches!(reason, "absent" | "refused" | "timeout"))
        .detail("reason", reason)
}

/// A private unix socket on this machine that leads to a socket on a host. Ended on drop, with every connection through it.
pub struct Forward {
    local: Local,
    last: Arc<Mutex<Option<Error>>>,
    _work: JoinSet<()>,
}

impl Forward {
    /// The socket on this machine; only this user can reach it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.local.path()
    }

    /// Why the last connection could not be made, when it could not.
    #[must_use]
    pub fn error(&self) -> Option<Error> {
        self.last.lock().clone()
    }
}

/// Makes a socket on this machine that forwards every connection to a socket as seen from a host, as the login or as `user`.
///
/// The first connection is made at once, so that what is wrong is said here.
///
/// # Errors
/// As [`stream`]; `RB0500` when there is no place for the socket on this machine.
pub fn forward<'a>(cx: &'a Cx, host: &'a str, to: &'a Place, user: Option<&'a str>) -> BoxFuture<'a, Result<Forward>> {
    Box::pin(async move {
        let first = stream(cx, host, to, user).await?;
        let here =
            |e: std::io::Error| Error::new(Code::DB_CONNECT, format!("a socket for {to} on {host} cannot be made on this machine: {e}"));
        let (local, listener) = local::listen().map_err(here)?;
        let last = Arc::new(Mutex::new(None));
        let mut work = JoinSet::new();
        // The connections may be made by later actions than this one.
        let cx = Cx { cancel: Cancel::default(), ..cx.clone() };
        let (host, to, user, seen) = (host.to_string(), to.clone(), user.map(String::from), last.clone());
        work.spawn(async move {
            let mut ready = Some((first, Instant::now()));
            let mut open = JoinSet::new();
            loop {
                tokio::select! {
                    Ok((client, _)) = listener.accept() => {
                        // A server gives up a client that says nothing for long.
                        let fresh = ready.take().filter(|(_, since)| since.elapsed() < Duration::from_secs(3)).map(|(s, _)| s);
                        let (cx, host, to, user, seen) = (cx.clone(), host.clone(), to.clone(), user.clone(), seen.clone());
                        open.spawn(async move {
                            let made = match fresh {
                                Some(s) => Ok(s),
                                None => stream(&cx, &host, &to, user.as_deref()).await,
                            };
                            match made {
                                Ok(remote) => carry(client, remote).await,
                                Err(e) => *seen.lock() = Some(e),
                            }
                        });
                    }
                    Some(_) = open.join_next() => {}
                }
            }
        });
        Ok(Forward { local, last, _work: work })
    })
}

async fn carry(mut local: UnixStream, mut remote: Stream) {
    // When either side is lost, the client sees its connection end; its own error is the one that counts.
    let _ = tokio::io::copy_bidirectional_with_sizes(&mut local, &mut remote, 64 << 10, 64 << 10).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_as_people_write_them() {
        assert_eq!(Place::Unix("/run/x.sock".into()).to_string(), "/run/x.sock");
        assert_eq!(Place::Tcp("db".into(), 5432).to_string(), "db:5432");
        assert_eq!(Place::Tcp("::1".into(), 5432).to_string(), "[::1]:5432");
    }

    #[test]
    fn what_a_relay_says_is_typed() {
        let to = Place::Unix("/run/db.sock".into());
        let e = unreached("old", &to, Some("postgres"), "absent", "No such file or directory");
        assert_eq!(e.message, "/run/db.sock is not there, asked as postgres");
        assert_eq!((e.code, e.retryable, e.details["reason"].as_str()), (Code::SSH_SOCKET, true, "absent"));
        let e = unreached("old", &to, None, "denied", "Permission denied");
        assert_eq!((e.message.as_str(), e.retryable), ("/run/db.sock may not be connected to (Permission denied)", false));
    }
}
