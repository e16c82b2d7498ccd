//! A TCP proxy in front of a server that breaks connections in the ways in which networks do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use runbook_core::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to connections.
#[derive(Debug, Clone, Copy, Default)]
struct Weather {
    /// Connections up to this number are reset.
    reset: u64,
    /// Connections up to this number pass nothing any more, silently.
    frozen: u64,
    /// Every piece arrives this much later.
    delay: Duration,
    /// At most so many bytes pass at a time, with the delay; 0 is no limit.
    piece: usize,
}

/// A proxy on loopback, as long as the test's runtime lives.
pub struct Proxy {
    /// Its port on 127.0.0.1.
    pub port: u16,
    weather: watch::Sender<Weather>,
    count: Arc<AtomicU64>,
}

impl Proxy {
    /// Starts one in front of `to`.
    pub async fn start(to: String) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let (weather, seen) = watch::channel(Weather::default());
        let count = Arc::new(AtomicU64::new(0));
        let numbers = count.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let n = numbers.fetch_add(1, Ordering::SeqCst) + 1;
                let (to, seen) = (to.clone(), seen.clone());
                tokio::spawn(async move {
                    if let Ok(far) = TcpStream::connect(to).await {
                        carry(n, near, far, seen).await;
                    }
                });
            }
        });
        Proxy { port, weather, count }
    }

    /// Resets every connection (RST, no farewell).
    pub fn reset(&self) {
        let n = self.count.load(Ordering::SeqCst);
        self.weather.send_modify(|w| w.reset = n);
    }

    /// Lets every connection of now hang for ever; new ones pass.
    pub fn freeze(&self) {
        let n = self.count.load(Ordering::SeqCst);
        self.weather.send_modify(|w| w.frozen = n);
    }

    /// Delays each direction, in small pieces.
    pub fn slow(&self, delay: Duration, piece: usize) {
        self.weather.send_modify(|w| (w.delay, w.piece) = (delay, piece));
    }

    /// How many connections were made through it.
    pub fn connections(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// A server's settings, with the way through the proxy. Its key is known under every name, in a file in `dir`.
    pub fn settings(&self, server: &BTreeMap<String, Value>, dir: &std::path::Path) -> BTreeMap<String, Value> {
        let text = |k: &str| server.get(k).and_then(Value::as_str).expect("a setting").to_string();
        let known = std::fs::read_to_string(text("known_hosts")).expect("known_hosts");
        let any: String = known.lines().filter_map(|l| l.split_once(' ')).map(|(_, key)| format!("* {key}\n")).collect();
        let file = dir.join("known_hosts_any");
        std::fs::write(&file, any).expect("known_hosts");
        let user = text("ssh").split_once('@').map(|(u, _)| u.to_string()).expect("a user");
        let mut settings = server.clone();
        settings.insert("ssh".into(), Value::from(format!("{user}@127.0.0.1:{}", self.port)));
        settings.insert("known_hosts".into(), Value::from(file.display().to_string()));
        settings
    }
}

async fn carry(n: u64, mut near: TcpStream, mut far: TcpStream, seen: watch::Receiver<Weather>) {
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let mut watched = seen.clone();
    let reset = {
        let ((near_read, near_write), (far_read, far_write)) = (near.split(), far.split());
        let work = async { tokio::join!(one_way(n, near_read, far_write, seen.clone()), one_way(n, far_read, near_write, seen.clone())) };
        tokio::select! {
            _ = work => false,
            r = watched.wait_for(|w| w.reset >= n) => r.is_ok(),
        }
    };
    if reset {
        // Closing without lingering sends RST, to both ends.
        let _ = (near.set_zero_linger(), far.set_zero_linger());
    }
}

/// Carries one direction until its end.
async fn one_way(n: u64, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut seen: watch::Receiver<Weather>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let w = *seen.borrow_and_update();
        if w.frozen >= n {
            std::future::pending::<()>().await;
        }
        let room = if w.piece > 0 { w.piece } else { buffer.len() };
        let got = tokio::select! {
            r = from.read(&mut buffer[..room]) => r.unwrap_or(0),
            _ = seen.changed() => continue,
        };
        tokio::time::sleep(w.delay).await;
        if got == 0 || to.write_all(&buffer[..got]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}
