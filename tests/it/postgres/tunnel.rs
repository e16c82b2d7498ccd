//! Streams to sockets of a host, through real SSH servers: by their channels, and by the relay.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use runbook_core::Code;
use runbook_core::primitive::Cx;
use runbook_primitives::ssh::helper::HelperExe;
use runbook_primitives::ssh::tunnel::{Relay, Relays, forward, stream};
use runbook_primitives::ssh::{self, Exec};
use runbook_primitives::ssh::{Place, Stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener, UnixStream};

use crate::support::server::{Kind, Server};
use crate::support::sshd::{Sshd, environment, world};

/// A folder that everybody may enter, with a socket that echoes after it has said who is at the other end.
struct Echo {
    folder: tempfile::TempDir,
    work: tokio::task::JoinHandle<()>,
}

impl Echo {
    fn start() -> Echo {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = folder.path().join("it's a socket");
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        let work = tokio::spawn(async move {
            while let Ok((mut s, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let uid = s.peer_cred().unwrap().uid();
                    s.write_all(format!("{uid}\n").as_bytes()).await.unwrap();
                    let (mut r, mut w) = s.split();
                    let _ = tokio::io::copy(&mut r, &mut w).await;
                    let _ = w.shutdown().await;
                });
            }
        });
        Echo { folder, work }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("it's a socket")
    }

    fn place(&self) -> Place {
        Place::Unix(self.path().display().to_string())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.work.abort();
    }
}

fn cx(server: &Server) -> Cx {
    let cx = runbook_testkit::cx(&world(), environment(&[("old", server.settings())]), "act-0");
    cx.shared.get::<HelperExe>().set(env!("CARGO_BIN_EXE_runbook"));
    cx
}

/// Sends `n` bytes, ends the sending half, reads what comes back; returns the user that the server saw.
async fn echoes(stream: Stream, n: usize) -> u32 {
    let data: Vec<u8> = (0..n).map(|i| (i * 31 % 251) as u8).collect();
    let (mut read, mut write) = tokio::io::split(stream);
    let sent = data.clone();
    let feed = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
        write
    });
    let mut back = Vec::new();
    tokio::time::timeout(Duration::from_secs(60), read.read_to_end(&mut back)).await.expect("an end").unwrap();
    feed.await.unwrap();
    let line = back.iter().position(|b| *b == b'\n').expect("who");
    assert!(back[line + 1..] == data, "{} bytes back of {n}", back.len() - line - 1);
    String::from_utf8_lossy(&back[..line]).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_come_through_every_server_as_they_were() {
    for kind in [Kind::OpenSsh, Kind::Dropbear] {
        let Some(server) = Server::start(kind) else { return };
        let (echo, cx) = (Echo::start(), cx(&server));
        let me = rustix::process::geteuid().as_raw();
        for n in [0, 1, 5_000_000] {
            let s = stream(&cx, "old", &echo.place(), None).await.unwrap_or_else(|e| panic!("{kind:?}: {e:?}"));
            assert_eq!(echoes(s, n).await, me, "{kind:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_port_as_seen_from_the_host() {
    let Some(server) = Server::start(Kind::OpenSsh) else { return };
    let cx = cx(&server);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        while let Ok((mut s, _)) = listener.accept().await {
            s.write_all(b"7\n").await.unwrap();
            let (mut r, mut w) = s.split();
            let _ = tokio::io::copy(&mut r, &mut w).await;
            let _ = w.shutdown().await;
        }
    });
    let to = Place::Tcp("localhost".into(), port);
    assert_eq!(echoes(stream(&cx, "old", &to, None).await.unwrap(), 100_000).await, 7);
    for relay in [Relay::Any, Relay::Helper] {
        cx.shared.get::<Relays>().set(relay);
        assert_eq!(echoes(stream(&cx, "old", &to, Some("nobody")).await.unwrap(), 100_000).await, 7, "{relay:?}");
    }
    task.abort();
    let _ = task.await;
    let e = stream(&cx, "old", &to, None).await.err().unwrap();
    assert_eq!((e.code, e.details["reason"].as_str(), e.retryable), (Code::SSH_SOCKET, "refused", true), "{e:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn as_another_user_the_server_sees_that_user() {
    let Some(server) = Server::start(Kind::OpenSsh) else { return };
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root becomes another user");
        return;
    }
    let (echo, cx) = (Echo::start(), cx(&server));
    for relay in [Relay::Any, Relay::Helper] {
        cx.shared.get::<Relays>().set(relay);
        let s = stream(&cx, "old", &echo.place(), Some("nobody")).await.unwrap_or_else(|e| panic!("{relay:?} {e:?}"));
        assert_eq!(echoes(s, 3_000_000).await, 65534, "{relay:?}");
        // The login itself needs no relay.
        assert_eq!(echoes(stream(&cx, "old", &echo.place(), Some("root")).await.unwrap(), 10).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_cannot_be_reached_says_why() {
    let Some(server) = Server::start(Kind::OpenSsh) else { return };
    let (echo, cx) = (Echo::start(), cx(&server));
    let absent = Place::Unix(echo.folder.path().join("none").display().to_string());
    let stale = echo.folder.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let refused = Place::Unix(stale.display().to_string());
    for relay in [Relay::Any, Relay::Helper] {
        cx.shared.get::<Relays>().set(relay);
        for (to, reason, says) in [(&absent, "absent", "is not there"), (&refused, "refused", "nothing listens")] {
            let e = stream(&cx, "old", to, None).await.err().unwrap();
            assert_eq!((e.code, e.details["reason"].as_str(), e.retryable), (Code::SSH_SOCKET, reason, true), "{relay:?} {e:?}");
            assert!(e.message.contains(says) && e.hint.is_some(), "{e:?}");
        }
        std::fs::set_permissions(echo.folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let e = stream(&cx, "old", &echo.place(), Some("nobody")).await.err().unwrap();
        assert_eq!((e.code, e.details["reason"].as_str(), e.retryable), (Code::SSH_SOCKET, "denied", false), "{relay:?} {e:?}");
        assert!(e.message.ends_with("asked as nobody"), "{e:?}");
        std::fs::set_permissions(echo.folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let e = stream(&cx, "old", &echo.place(), Some("no-such-user")).await.err().unwrap();
    assert!(e.message.contains("no-such-user"), "{e:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_is_forwarded_the_relay_is_used_and_told() {
    for no in ["AllowStreamLocalForwarding no", "DisableForwarding yes", "AllowTcpForwarding no\nAllowStreamLocalForwarding no"] {
        let Some(server) = Sshd::start(no) else { return };
        let server = Server::OpenSsh(server);
        let world = world();
        let cx = runbook_testkit::cx(&world, environment(&[("old", server.settings())]), "act-0");
        let echo = Echo::start();
        for _ in 0..2 {
            assert_eq!(echoes(stream(&cx, "old", &echo.place(), None).await.unwrap(), 1000).await, rustix::process::geteuid().as_raw());
        }
        let said = world.messages.lock().clone();
        assert_eq!(said.len(), 1, "once a host: {said:?}");
        assert!(said[0].contains("AllowStreamLocalForwarding") && said[0].contains("relay"), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_forwarding_and_no_commands_both_are_named() {
    let Some(server) = Sshd::start("DisableForwarding yes\nForceCommand echo no shell for you; exit 1") else { return };
    let server = Server::OpenSsh(server);
    let (echo, cx) = (Echo::start(), cx(&server));
    let e = stream(&cx, "old", &echo.place(), None).await.err().unwrap();
    assert_eq!((e.code, e.details["reason"].as_str()), (Code::SSH_SOCKET, "forwarding"), "{e:?}");
    assert!(e.message.contains("does not allow it") && e.message.contains("no shell for you"), "{e:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_is_an_error_and_no_end() {
    let Some(server) = Server::start(Kind::OpenSsh) else { return };
    let (echo, cx) = (Echo::start(), cx(&server));
    for user in [None, Some("nobody")] {
        let mut s = stream(&cx, "old", &echo.place(), user).await.unwrap();
        s.write_all(b"hello").await.unwrap();
        let mut head = vec![0; 6];
        s.read_exact(&mut head).await.unwrap();
        server.cut();
        let mut rest = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), s.read_to_end(&mut rest)).await.expect("no hang");
        let e = read.expect_err("an error");
        assert!(e.to_string().contains("lost"), "{user:?} {e}");
        // Writing fails too, and at once.
        let wrote = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                s.write_all(&[0; 100_000]).await?;
                s.flush().await?;
            }
            #[allow(unreachable_code)]
            std::io::Result::Ok(())
        });
        assert!(wrote.await.expect("no hang").is_err());
    }
    // The next one finds a new connection.
    echoes(stream(&cx, "old", &echo.place(), None).await.unwrap(), 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_at_once_where_one_session_is_allowed() {
    let Some(server) = Sshd::start("MaxSessions 1") else { return };
    let server = Server::OpenSsh(server);
    let (echo, cx) = (Echo::start(), cx(&server));
    let mut open = Vec::new();
    for user in [None, Some("nobody"), None, Some("nobody"), None, None] {
        open.push(stream(&cx, "old", &echo.place(), user).await.unwrap());
    }
    let session = ssh::connect(&cx, "old").await.unwrap();
    let done = session.exec(&cx, Exec::new("echo here")).await.unwrap();
    assert_eq!(done.stdout, b"here\n");
    for s in open {
        echoes(s, 200_000).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarded_socket_takes_connections_until_it_is_dropped() {
    let Some(server) = Server::start(Kind::OpenSsh) else { return };
    let (echo, cx) = (Echo::start(), cx(&server));
    let f = forward(&cx, "old", &echo.place(), Some("nobody")).await.unwrap();
    let path = f.path();
    let mut held = UnixStream::connect(&path).await.unwrap();
    let mut who = vec![0; 6];
    held.read_exact(&mut who).await.unwrap();
    assert_eq!(who, b"65534\n");
    for _ in 0..3 {
        let mut s = UnixStream::connect(&path).await.unwrap();
        s.write_all(b"ping").await.unwrap();
        s.shutdown().await.unwrap();
        let mut back = String::new();
        s.read_to_string(&mut back).await.unwrap();
        assert_eq!(back, "65534\nping");
    }
    assert!(f.error().is_none());
    std::fs::remove_file(echo.path()).unwrap();
    let mut s = UnixStream::connect(&path).await.unwrap();
    let mut back = String::new();
    s.read_to_string(&mut back).await.unwrap();
    assert_eq!(back, "");
    assert_eq!(f.error().unwrap().details["reason"], "absent");
    drop(f);
    assert!(!path.exists() && !path.parent().unwrap().exists());
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), held.read_to_end(&mut rest)).await.expect("ended").unwrap();
    let e = forward(&cx, "old", &echo.place(), None).await.err().unwrap();
    assert_eq!(e.details["reason"], "absent");
}
