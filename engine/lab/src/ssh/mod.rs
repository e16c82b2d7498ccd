//! The SSH server of one lab host: public-key login, commands run for real in the host's folder, tunnels.
//!
//! It behaves as OpenSSH does where clients can tell: exit status and signals are reported, a command's background
//! processes outlive the channel and the connection, and a channel stays open while something holds its output.

mod exec;
mod input;
mod pty;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use runbook_core::Result;
use russh::keys::{Algorithm, PrivateKey, PublicKey};
use russh::server::{Auth, ChannelOpenHandle, Config, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, ChannelWriteHalf, MethodKind, MethodSet, Preferred, Pty, Sig, cipher};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use crate::failed;
use exec::{Command, Running};

/// What the server needs to know about its host.
pub(crate) struct Host {
    pub name: String,
    pub address: Ipv4Addr,
    pub root: PathBuf,
    pub lab: PathBuf,
    pub user: String,
    pub client: PublicKey,
    /// Connections that are open, for the idle limit.
    pub connections: Arc<AtomicUsize>,
}

fn config(key: PrivateKey) -> Config {
    let mut methods = MethodSet::empty();
    methods.push(MethodKind::PublicKey);
    Config {
        keys: vec![key],
        methods,
        nodelay: true,
        inactivity_timeout: None,
        keepalive_interval: Some(Duration::from_secs(30)),
        keepalive_max: 4,
        auth_rejection_time: Duration::from_millis(50),
        auth_rejection_time_initial: Some(Duration::ZERO),
        event_buffer_size: 64,
        maximum_packet_size: 32_768,
        preferred: Preferred {
            // The fastest first: this is loopback.
            cipher: vec![cipher::AES_256_GCM, cipher::AES_128_GCM, cipher::CHACHA20_POLY1305, cipher::AES_256_CTR].into(),
            key: vec![Algorithm::Ed25519].into(),
            ..Preferred::DEFAULT
        },
        ..Config::default()
    }
}

/// Serves the host's SSH port until the runtime ends.
pub(crate) fn serve(listener: std::net::TcpListener, key: PrivateKey, host: Host) -> Result<()> {
    let listener = TcpListener::from_std(listener).map_err(|e| failed(format!("host {} cannot listen", host.name), e))?;
    let (config, host) = (Arc::new(config(key)), Arc::new(host));
    tokio::spawn(async move {
        loop {
            let Ok((stream, peer)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let _ = stream.set_nodelay(true);
            let (config, host) = (config.clone(), host.clone());
            tokio::spawn(async move {
                host.connections.fetch_add(1, Ordering::Relaxed);
                let local = stream.local_addr().ok();
                let handler = Connection { host: host.clone(), peer, local, channels: HashMap::new() };
                if let Ok(session) = russh::server::run_stream(config, stream, handler).await
                    && let Err(e) = session.await
                {
                    crate::say(format!("{}: SSH connection ended: {e}", host.name));
                }
                host.connections.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    Ok(())
}

/// One client's connection. Dropped when it ends, which closes the pipes of its commands and leaves them running.
struct Connection {
    host: Arc<Host>,
    peer: SocketAddr,
    local: Option<SocketAddr>,
    channels: HashMap<ChannelId, State>,
}

enum State {
    /// Opened; nothing asked for yet.
    Fresh {
        out: ChannelWriteHalf<Msg>,
        env: Vec<(String, String)>,
        pty: Option<pty::Pty>,
    },
    Running(Running),
}

impl Connection {
    fn start(&mut self, id: ChannelId, script: Option<String>, session: &mut Session) -> Result<(), russh::Error> {
        let Some(State::Fresh { out, env, pty }) = self.channels.remove(&id) else {
            return session.channel_failure(id);
        };
        let local = self.local.map(|l| format!(" {} {}", l.ip(), l.port())).unwrap_or_default();
        let command =
            Command { script, env, pty, connection: format!("{} {}{local}", self.peer.ip(), self.peer.port()), host: self.host.clone() };
        match exec::start(command, out, session.handle(), id) {
            Ok(running) => {
                self.channels.insert(id, State::Running(running));
                session.channel_success(id)
            }
            Err(e) => {
                crate::say(format!("{}: a command cannot be started: {e}", self.host.name));
                session.channel_failure(id)
            }
        }
    }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey_offered(&mut self, _user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, Self::Error> {
        Ok(if offer.public_key.key_data() == self.host.client.key_data() { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(&mut self, _user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        Ok(if key.public_key.key_data() == self.host.client.key_data() { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_session(&mut self, channel: Channel<Msg>, reply: ChannelOpenHandle, _: &mut Session) -> Result<(), Self::Error> {
        // Input comes through `data` below: a reader that is slow to take it would hold up the whole connection.
        let id = channel.id();
        let (_, out) = channel.split();
        self.channels.insert(id, State::Fresh { out, env: vec![], pty: None });
        reply.accept().await;
        Ok(())
    }

    async fn env_request(&mut self, id: ChannelId, name: &str, value: &str, session: &mut Session) -> Result<(), Self::Error> {
        // What Debian's sshd accepts.
        let wanted = name == "LANG" || name.starts_with("LC_");
        match self.channels.get_mut(&id) {
            Some(State::Fresh { env, .. }) if wanted => {
                env.push((name.to_string(), value.to_string()));
                session.channel_success(id)
            }
            _ => session.channel_failure(id),
        }
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        match (self.channels.get_mut(&id), pty::Pty::open(term, columns, rows)) {
            (Some(State::Fresh { pty, .. }), Ok(new)) => {
                *pty = Some(new);
                session.channel_success(id)
            }
            _ => session.channel_failure(id),
        }
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(State::Running(r)) = self.channels.get(&id) {
            r.resize(columns, rows);
        }
        Ok(())
    }

    async fn exec_request(&mut self, id: ChannelId, data: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        match std::str::from_utf8(data) {
            Ok(script) => self.start(id, Some(script.to_string()), session),
            Err(_) => session.channel_failure(id),
        }
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        self.start(id, None, session)
    }

    async fn subsystem_request(&mut self, id: ChannelId, _: &str, session: &mut Session) -> Result<(), Self::Error> {
        session.channel_failure(id)
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], _: &mut Session) -> Result<(), Self::Error> {
        if let Some(State::Running(r)) = self.channels.get(&id) {
            r.input(data).await;
        }
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Self::Error> {
        if let Some(State::Running(r)) = self.channels.get(&id) {
            r.end_input();
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Self::Error> {
        self.channels.remove(&id);
        Ok(())
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, _: &mut Session) -> Result<(), Self::Error> {
        if let Some(State::Running(r)) = self.channels.get(&id) {
            r.signal(&signal);
        }
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        to: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        // A name of this machine means this host, as it does on a host of its own.
        let to = if matches!(to, "localhost" | "127.0.0.1") { self.host.address.to_string() } else { to.to_string() };
        // On a task of its own: a peer that is slow to connect must not hold up the connection.
        tokio::spawn(async move {
            let port = u16::try_from(port).unwrap_or(0);
            match tokio::time::timeout(Duration::from_secs(5), TcpStream::connect((to, port))).await {
                Ok(Ok(mut stream)) => {
                    let _ = stream.set_nodelay(true);
                    reply.accept().await;
                    let _ = tokio::io::copy_bidirectional(&mut channel.into_stream(), &mut stream).await;
                }
                _ => reply.reject(ChannelOpenFailure::ConnectFailed).await,
            }
        });
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        let path = self.host.root.join(path);
        tokio::spawn(async move {
            match UnixStream::connect(path).await {
                Ok(mut stream) => {
                    reply.accept().await;
                    let _ = tokio::io::copy_bidirectional(&mut channel.into_stream(), &mut stream).await;
                }
                Err(_) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
            }
        });
        Ok(())
    }
}
