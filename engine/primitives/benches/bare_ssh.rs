//! The mark for the SSH benchmark: the library alone, a connection a host, commands one after the other on each, all hosts at once.
//!
//! `bare_ssh KEY KNOWN_HOSTS USER COMMANDS PORT…` (see `tests/bench/ssh.py`, which calls it). Every host is 127.0.0.1; its key must be in the file.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::{PrivateKeyWithHashAlg, PublicKey, check_known_hosts_path, load_secret_key};
use russh::{ChannelMsg, Preferred, cipher, client};

type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

struct Host {
    port: u16,
    known: PathBuf,
}

impl client::Handler for Host {
    type Error = russh::Error;

    async fn check_server_key(&mut self, key: &russh::keys::PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let key: PublicKey = match key {
            russh::keys::PublicKeyOrCertificate::PublicKey { key, .. } => key.clone(),
            russh::keys::PublicKeyOrCertificate::Certificate(_) => return Ok(false),
        };
        Ok(check_known_hosts_path("127.0.0.1", self.port, &key, &self.known).unwrap_or(false))
    }
}

async fn one(port: u16, key: PathBuf, known: PathBuf, user: String, commands: u32) -> Fallible<()> {
    let mut ciphers = Preferred::DEFAULT.cipher.to_vec();
    ciphers.sort_by_key(|c| *c != cipher::AES_256_GCM);
    let config = client::Config {
        preferred: Preferred { cipher: Cow::Owned(ciphers), ..Preferred::DEFAULT },
        nodelay: true,
        keepalive_interval: Some(Duration::from_secs(10)),
        ..client::Config::default()
    };
    let mut handle = client::connect(Arc::new(config), ("127.0.0.1", port), Host { port, known }).await?;
    let key = PrivateKeyWithHashAlg::new(Arc::new(load_secret_key(key, None)?), None);
    if !handle.authenticate_publickey(user, key).await?.success() {
        return Err("the login is refused".into());
    }
    for _ in 0..commands {
        let mut channel = handle.channel_open_session().await?;
        channel.exec(true, "true").await?;
        let mut status = None;
        while let Some(message) = channel.wait().await {
            if let ChannelMsg::ExitStatus { exit_status } = message {
                status = Some(exit_status);
            }
        }
        if status != Some(0) {
            return Err(format!("port {port}: the command ended with {status:?}").into());
        }
    }
    Ok(())
}

fn main() -> Fallible<()> {
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
    let mut next = || args.next().ok_or("usage: bare_ssh KEY KNOWN_HOSTS USER COMMANDS PORT…");
    let (Ok(key), Ok(known), Ok(user), Ok(commands)) = (next(), next(), next(), next()) else {
        // `cargo bench` without arguments: the servers come from tests/bench/ssh.py.
        println!("run tests/bench/ssh.py, which starts the servers and calls this");
        return Ok(());
    };
    let commands: u32 = commands.parse()?;
    let ports: Vec<u16> = args.map(|a| a.parse()).collect::<Result<_, _>>()?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let tasks: Vec<_> =
            ports.into_iter().map(|p| tokio::spawn(one(p, key.clone().into(), known.clone().into(), user.clone(), commands))).collect();
        for t in tasks {
            t.await??;
        }
        Ok(())
    })
}
