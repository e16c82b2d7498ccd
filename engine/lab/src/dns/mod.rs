//! The authoritative name server of the lab's zone, over UDP and TCP, with TSIG-signed updates and transfers.

mod tsig;
mod update;
mod zone;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use parking_lot::Mutex;
use runbook_core::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::failed;
pub(crate) use zone::{Answer, Zone};

/// The largest answer over UDP, as commonly used to stay clear of fragments.
const UDP_MAX: u16 = 1232;

/// The name server's state, shared by its listeners and the rest of the daemon.
pub(crate) struct Dns {
    zone: Mutex<Zone>,
    key: tsig::Key,
}

impl Dns {
    pub fn new(zone: Zone, key_name: &str, secret: Vec<u8>) -> Result<Arc<Dns>> {
        Ok(Arc::new(Dns { zone: Mutex::new(zone), key: tsig::Key::new(key_name, secret)? }))
    }

    /// The addresses that `name` has now in the zone, as published.
    pub fn addresses(&self, name: &str) -> Vec<String> {
        let Ok(name) = fqdn(name) else { return vec![] };
        match self.zone.lock().lookup(&name, RecordType::A) {
            Answer::Found(records) => records.iter().filter_map(|r| r.data.ip_addr()).map(|a| a.to_string()).collect(),
            _ => vec![],
        }
    }

    /// Replaces the whole zone and saves it; its serial goes on rising.
    pub fn replace(&self, zone: Zone) -> Result<()> {
        self.zone.lock().replace(zone)
    }

    /// Answers until the runtime ends.
    pub fn serve(self: &Arc<Self>, udp: std::net::UdpSocket, tcp: std::net::TcpListener) -> Result<()> {
        let udp = Arc::new(UdpSocket::from_std(udp).map_err(|e| failed("the name server cannot listen", e))?);
        let tcp = TcpListener::from_std(tcp).map_err(|e| failed("the name server cannot listen", e))?;
        let dns = self.clone();
        tokio::spawn(async move {
            let mut buf = vec![0u8; 65_535];
            loop {
                let Ok((n, from)) = udp.recv_from(&mut buf).await else {
                    // An ICMP error of an earlier answer; the socket goes on working.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                };
                let request = buf.get(..n).unwrap_or_default().to_vec();
                let (dns, udp) = (dns.clone(), udp.clone());
                tokio::spawn(async move {
                    if let Some(answer) = dns.answer_blocking(request, Some(from)).await {
                        let _ = udp.send_to(&answer, from).await;
                    }
                });
            }
        });
        let dns = self.clone();
        tokio::spawn(async move {
            loop {
                match tcp.accept().await {
                    Ok((stream, _)) => {
                        let dns = dns.clone();
                        tokio::spawn(async move { dns.talk(stream).await });
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
        Ok(())
    }

    async fn talk(self: Arc<Self>, mut stream: TcpStream) -> Option<()> {
        let _ = stream.set_nodelay(true);
        loop {
            let len = tokio::time::timeout(Duration::from_secs(30), stream.read_u16()).await.ok()?.ok()?;
            let mut request = vec![0u8; usize::from(len)];
            tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut request)).await.ok()?.ok()?;
            let answer = self.answer_blocking(request, None).await?;
            let mut framed = u16::try_from(answer.len()).ok()?.to_be_bytes().to_vec();
            framed.extend_from_slice(&answer);
            stream.write_all(&framed).await.ok()?;
        }
    }

    /// An update syncs its file, so it does not run on the event loop.
    async fn answer_blocking(self: &Arc<Self>, request: Vec<u8>, udp: Option<SocketAddr>) -> Option<Vec<u8>> {
        let dns = self.clone();
        tokio::task::spawn_blocking(move || dns.answer(&request, udp.is_some(), now())).await.ok()?
    }

    /// Answers one message at `now` (seconds); `None` when it deserves no answer.
    pub fn answer(&self, bytes: &[u8], udp: bool, now: u64) -> Option<Vec<u8>> {
        let request = match Message::from_vec(bytes) {
            Ok(m) if m.metadata.message_type == MessageType::Query => m,
            Ok(_) => return None,
            Err(_) => {
                // Only a header can be trusted: say FORMERR to its id, unless it was an answer itself.
                let id = u16::from_be_bytes([*bytes.first()?, *bytes.get(1)?]);
                let flags = *bytes.get(2)?;
                let op = OpCode::from_u8((flags >> 3) & 0xf);
                return (flags & 0x80 == 0).then(|| Message::error_msg(id, op, ResponseCode::FormErr).to_vec().ok())?;
            }
        };
        let mut response = Message::response(request.metadata.id, request.metadata.op_code);
        response.metadata.recursion_desired = request.metadata.recursion_desired;
        response.queries = request.queries.clone();
        let mut limit = if udp { 512 } else { u16::MAX };
        if let Some(asked) = &request.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_MAX);
            response.set_edns(edns);
            if udp {
                limit = asked.max_payload().clamp(512, UDP_MAX);
            }
        }
        let verdict = self.key.verify(bytes, &request, now);
        if verdict.refuses() {
            response.metadata.response_code = ResponseCode::NotAuth;
        } else {
            match request.metadata.op_code {
                OpCode::Query => self.query(&request, udp, verdict.trusted(), &mut response),
                OpCode::Update => {
                    response.metadata.response_code =
                        if verdict.trusted() { update::apply(&mut self.zone.lock(), &request) } else { ResponseCode::Refused };
                }
                _ => response.metadata.response_code = ResponseCode::NotImp,
            }
        }
        let mut out = self.key.seal(&mut response, &verdict, now)?;
        if out.len() > usize::from(limit) {
            response.answers.clear();
            response.authorities.clear();
            response.additionals.clear();
            response.signature = None;
            response.metadata.truncation = true;
            out = self.key.seal(&mut response, &verdict, now)?;
        }
        Some(out)
    }

    fn query(&self, request: &Message, udp: bool, signed: bool, response: &mut Message) {
        let [query] = request.queries.as_slice() else {
            response.metadata.response_code = ResponseCode::FormErr;
            return;
        };
        let zone = self.zone.lock();
        let (name, ty) = (query.name(), query.query_type());
        if !zone.origin().zone_of(name) || !matches!(query.query_class(), DNSClass::IN | DNSClass::ANY) {
            response.metadata.response_code = ResponseCode::Refused;
            return;
        }
        response.metadata.authoritative = true;
        if matches!(ty, RecordType::AXFR | RecordType::IXFR) {
            if !signed || udp || name != zone.origin() {
                response.metadata.authoritative = false;
                response.metadata.response_code = ResponseCode::Refused;
            } else {
                response.add_answers(zone.transfer());
            }
            return;
        }
        match zone.lookup(name, ty) {
            Answer::Found(records) => {
                response.add_answers(records);
            }
            Answer::NoData => {
                response.add_authorities(zone.negative());
            }
            Answer::NoName => {
                response.metadata.response_code = ResponseCode::NXDomain;
                response.add_authorities(zone.negative());
            }
        }
    }
}

/// A name from text, always absolute.
pub(crate) fn fqdn(text: &str) -> Result<Name> {
    let mut name = Name::from_ascii(text).map_err(|e| failed(format!("\"{text}\" is not a DNS name"), e))?;
    name.set_fqdn(true);
    Ok(name)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests;
