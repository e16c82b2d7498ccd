//! The public entry: what customers reach under the public name. It asks the lab's name server and keeps the answer for
//! as long as its TTL said when it was asked, as resolvers in the world do; a stale answer stays stale until then.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use hyper::StatusCode;
use parking_lot::Mutex;
use rand::Rng;
use runbook_core::Result;
use tokio::net::{TcpListener, UdpSocket};

use crate::dns::fqdn;
use crate::failed;
use crate::http;

/// Resolves one name, with a cache that honours TTLs.
pub(crate) struct Resolver {
    server: SocketAddr,
    name: Name,
    kept: Mutex<Option<(IpAddr, Instant)>>,
    asking: tokio::sync::Mutex<()>,
}

impl Resolver {
    pub fn new(server: SocketAddr, name: &str) -> Result<Resolver> {
        Ok(Resolver { server, name: fqdn(name)?, kept: Mutex::default(), asking: tokio::sync::Mutex::default() })
    }

    /// Forgets what it knows, as for a new lab.
    pub fn clear(&self) {
        *self.kept.lock() = None;
    }

    fn kept(&self) -> Option<IpAddr> {
        self.kept.lock().filter(|(_, until)| Instant::now() < *until).map(|(a, _)| a)
    }

    /// The address of the name, from the cache or the name server.
    pub async fn resolve(&self) -> Result<IpAddr, String> {
        if let Some(a) = self.kept() {
            return Ok(a);
        }
        // One question for all that wait for it.
        let _one = self.asking.lock().await;
        if let Some(a) = self.kept() {
            return Ok(a);
        }
        // Counted from before the question, so that nothing is kept longer than the server allowed.
        let asked = Instant::now();
        let (addr, ttl) = self.ask().await?;
        *self.kept.lock() = Some((addr, asked + Duration::from_secs(ttl.into())));
        Ok(addr)
    }

    async fn ask(&self) -> Result<(IpAddr, u32), String> {
        let mut last = String::new();
        for _ in 0..3 {
            match tokio::time::timeout(Duration::from_secs(1), self.ask_once()).await {
                Ok(Ok(x)) => return Ok(x),
                Ok(Err(e)) => last = e,
                Err(_) => last = format!("{} does not answer", self.server),
            }
        }
        Err(last)
    }

    async fn ask_once(&self) -> Result<(IpAddr, u32), String> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.map_err(|e| e.to_string())?;
        socket.connect(self.server).await.map_err(|e| e.to_string())?;
        let id = rand::rng().random();
        let mut m = Message::new(id, MessageType::Query, OpCode::Query);
        m.metadata.recursion_desired = true;
        m.add_query(Query::query(self.name.clone(), RecordType::A));
        socket.send(&m.to_vec().map_err(|e| e.to_string())?).await.map_err(|e| e.to_string())?;
        let mut buf = [0u8; 2048];
        loop {
            let n = socket.recv(&mut buf).await.map_err(|e| e.to_string())?;
            let Ok(answer) = Message::from_vec(buf.get(..n).unwrap_or_default()) else { continue };
            if answer.metadata.id != id {
                continue;
            }
            // An alias on the way lives no longer than its own TTL.
            let ttl = answer.answers.iter().map(|r| r.ttl).min().unwrap_or(0);
            let addr = answer.answers.iter().find_map(|r| r.data.ip_addr());
            return addr.map(|a| (a, ttl)).ok_or_else(|| format!("{} has no address ({})", self.name, answer.metadata.response_code));
        }
    }
}

/// Serves the public entry until the runtime ends.
pub(crate) fn serve(listener: std::net::TcpListener, resolver: Arc<Resolver>, edge_port: u16) -> Result<()> {
    let listener = TcpListener::from_std(listener).map_err(|e| failed("the public entry cannot listen", e))?;
    tokio::spawn(http::serve(listener, move |req, from| {
        let resolver = resolver.clone();
        async move {
            match resolver.resolve().await {
                Ok(addr) => http::forward(req, from, (addr, edge_port).into()).await,
                Err(e) => http::plain(StatusCode::BAD_GATEWAY, format!("the name cannot be resolved: {e}\n")),
            }
        }
    }));
    Ok(())
}
