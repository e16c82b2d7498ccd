//! One question and its answer on the wire: UDP with repeats, TCP when the answer is cut short or the question is long, TSIG.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::tsig::TsigError;
use hickory_proto::rr::{Name, TSigVerifier, TSigner};
use runbook_core::error::Kind;
use runbook_core::primitive::Cx;
use runbook_core::units::show_duration;
use runbook_core::{Code, Error, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

/// How long one UDP attempt waits; each further one waits longer.
const UDP_WAIT: [Duration; 3] = [Duration::from_millis(1000), Duration::from_millis(2000), Duration::from_millis(3000)];
pub(super) const TCP_WAIT: Duration = Duration::from_secs(10);
/// The size that passes every network in one piece.
const UDP_SIZE: u16 = 1232;
/// What a server without EDNS takes by UDP.
const UDP_PLAIN: usize = 512;

/// A TSIG key with the names that errors need.
#[derive(Clone)]
pub struct Key {
    /// Signs and verifies.
    pub signer: TSigner,
    /// The name of the secret in the inventory.
    pub secret: String,
}

/// Why an exchange failed: no answer at all, or one that cannot be used.
pub(super) fn unreachable(server: &str, why: impl std::fmt::Display) -> Error {
    Error::new(Code::DNS_QUERY, format!("the name server {server} does not answer: {why}"))
        .hint("check its address in runbook.toml, that it runs, and that port 53 is open for UDP and TCP")
        .retryable(true)
}

/// Turns `ip`, `ip:port`, `[ip6]:port`, `name` or `name:port` into an address.
///
/// # Errors
/// `RB0600` when a name has no address.
pub async fn endpoint(text: &str) -> Result<SocketAddr> {
    if let Ok(a) = text.parse::<SocketAddr>() {
        return Ok(a);
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, 53));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((h, p)) => (h, p.parse().map_err(|_| unreachable(text, format!("\"{p}\" is not a port")).retryable(false))?),
        None => (text, 53),
    };
    let found = timeout(TCP_WAIT, tokio::net::lookup_host((host, port))).await;
    let mut found = found.map_err(|_| unreachable(text, "its own name cannot be looked up in time"))?.map_err(|e| unreachable(text, e))?;
    found.next().ok_or_else(|| unreachable(text, "its own name has no address"))
}

/// Sends `message` and returns the answer, whatever its response code. With a key, the question is signed and the answer must be.
///
/// # Errors
/// `RB0600` when there is no answer, `RB0602` when a signature is refused or does not verify, `RB0021` when cancelled.
pub async fn exchange(cx: &Cx, server: SocketAddr, message: Message, key: Option<&Key>) -> Result<Message> {
    tokio::select! {
        r = exchange_inner(cx, server, message, key) => r,
        () = cx.cancel.cancelled() => Err(Error::new(Code::ABORTED, format!("stopped while asking the name server {server}"))),
    }
}

/// As [`exchange`], by TCP alone and unsigned.
///
/// # Errors
/// `RB0600` when there is no answer, `RB0021` when cancelled.
pub async fn exchange_tcp(cx: &Cx, server: SocketAddr, message: Message) -> Result<Message> {
    let attempt = Attempt::new(cx, server, &message, None)?;
    tokio::select! {
        r = attempt.tcp() => r,
        () = cx.cancel.cancelled() => Err(Error::new(Code::ABORTED, format!("stopped while asking the name server {server}"))),
    }
}

async fn exchange_inner(cx: &Cx, server: SocketAddr, mut message: Message, key: Option<&Key>) -> Result<Message> {
    if message.op_code == OpCode::Query {
        message.edns.get_or_insert_with(Edns::new).set_max_payload(UDP_SIZE).set_version(0);
    }
    let probe = Attempt::new(cx, server, &message, key)?;
    if probe.bytes.len() > UDP_PLAIN {
        return probe.tcp().await;
    }
    let mut last = String::from("no answer in time");
    for wait in UDP_WAIT {
        // A new id, port and signature each time: a late answer to an earlier attempt is not mistaken for this one's.
        let attempt = Attempt::new(cx, server, &message, key)?;
        match attempt.udp(wait).await {
            Ok(Some(answer)) if answer.truncation => return Attempt::new(cx, server, &message, key)?.tcp().await,
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(e) if e.code == Code::DNS_QUERY => last = e.message,
            Err(e) => return Err(e),
        }
    }
    // Some networks drop UDP to port 53.
    Attempt::new(cx, server, &message, key)?.tcp().await.map_err(|e| match e.code {
        Code::DNS_QUERY => unreachable(&server.to_string(), format!("by UDP, {last}; by TCP, {}", short(&e.message))),
        _ => e,
    })
}

fn short(message: &str) -> &str {
    message.split_once("does not answer: ").map_or(message, |(_, why)| why)
}

/// One message on its way, with what the answer is checked by.
pub(super) struct Attempt<'a> {
    pub(super) server: SocketAddr,
    pub(super) message: Message,
    pub(super) bytes: Vec<u8>,
    key: Option<&'a Key>,
    verifier: Option<TSigVerifier>,
    now_s: u64,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(cx: &Cx, server: SocketAddr, message: &Message, key: Option<&'a Key>) -> Result<Self> {
        let mut message = message.clone();
        message.metadata.id = rand::random();
        let now_s = u64::try_from(cx.clock.now().as_second()).unwrap_or(0);
        let verifier = match key {
            Some(k) => message.finalize(&k.signer, now_s).map_err(|e| Error::internal(format!("a DNS message cannot be signed: {e}")))?,
            None => None,
        };
        let bytes = message.to_vec().map_err(|e| Error::new(Code::DNS_RECORD, format!("a DNS message cannot be built: {e}")))?;
        Ok(Attempt { server, message, bytes, key, verifier, now_s })
    }

    async fn udp(mut self, wait: Duration) -> Result<Option<Message>> {
        let fail = |e: std::io::Error| unreachable(&self.server.to_string(), e);
        let local: IpAddr = if self.server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((local, 0)).await.map_err(fail)?;
        socket.connect(self.server).await.map_err(fail)?;
        socket.send(&self.bytes).await.map_err(fail)?;
        let until = Instant::now() + wait;
        let mut buffer = vec![0; 65_535];
        loop {
            let Ok(got) = timeout_at(until, socket.recv(&mut buffer)).await else { return Ok(None) };
            let n = got.map_err(|e| unreachable(&self.server.to_string(), e))?;
            let bytes = buffer.get(..n).unwrap_or_default();
            // Anything that is not the answer to this question may be forged: wait on.
            let Some(answer) = self.answer_of(bytes) else { continue };
            // A shortened answer is asked for again by TCP and checked there.
            if answer.truncation {
                return Ok(Some(answer));
            }
            return self.verify(bytes, answer).map(Some);
        }
    }

    async fn tcp(mut self) -> Result<Message> {
        let server = self.server.to_string();
        let bytes = timeout(TCP_WAIT, async {
            let mut stream = TcpStream::connect(self.server).await?;
            stream.set_nodelay(true)?;
            let length = u16::try_from(self.bytes.len()).map_err(|_| std::io::Error::other("the message is longer than 64 KiB"))?;
            let mut framed = length.to_be_bytes().to_vec();
            framed.extend_from_slice(&self.bytes);
            stream.write_all(&framed).await?;
            let mut length = [0; 2];
            stream.read_exact(&mut length).await?;
            let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut bytes).await?;
            Ok::<_, std::io::Error>(bytes)
        })
        .await
        .map_err(|_| unreachable(&server, "no answer in time"))?
        .map_err(|e| unreachable(&server, e))?;
        let answer = self.answer_of(&bytes).ok_or_else(|| unreachable(&server, "what it sent is not the answer to the question"))?;
        self.verify(&bytes, answer)
    }

    fn answer_of(&self, bytes: &[u8]) -> Option<Message> {
        let answer = Message::from_vec(bytes).ok()?;
        let same = answer.queries.is_empty() || answer.queries == self.message.queries;
        // A server may leave the question out of an error or of the answer to an update, never of real answers.
        let may_be_empty = self.message.op_code == OpCode::Update || answer.response_code != ResponseCode::NoError;
        let fits = answer.id == self.message.id
            && answer.message_type == hickory_proto::op::MessageType::Response
            && answer.op_code == self.message.op_code
            && same
            && (!answer.queries.is_empty() || may_be_empty);
        fits.then_some(answer)
    }

    pub(super) fn verify(&mut self, bytes: &[u8], answer: Message) -> Result<Message> {
        let (Some(key), Some(verifier)) = (self.key, self.verifier.as_mut()) else { return Ok(answer) };
        let server = self.server.to_string();
        let Some(signature) = answer.signature() else {
            // A server that knows no TSIG, or refuses before it looks at the signature, says so unsigned. A success must be signed.
            return if answer.response_code == ResponseCode::NoError {
                Err(tsig(&server, key, "its answer is not signed, so that anyone could have sent it"))
            } else {
                Ok(answer)
            };
        };
        if let Some(e) = signature.data.error {
            return Err(tsig_refused(&server, key, e, &signature.data.other, self.now_s));
        }
        match verifier.verify(bytes) {
            Ok(_) => Ok(answer),
            Err(e) => Err(tsig(&server, key, &format!("its answer does not verify: {e}"))),
        }
    }
}

fn key_name(key: &Key) -> String {
    super::name::show(key.signer.signer_name())
}

fn tsig(server: &str, key: &Key, what: &str) -> Error {
    Error::new(Code::DNS_TSIG, format!("the name server {server} and the TSIG key \"{}\": {what}", key_name(key)))
        .hint("check that the server holds a key of this name, algorithm and secret")
}

fn tsig_refused(server: &str, key: &Key, error: TsigError, other: &[u8], now_s: u64) -> Error {
    let name = key_name(key);
    let made = |message: String, hint: String| Error::new(Code::DNS_TSIG, message).hint(hint);
    match error {
        TsigError::BadKey => made(
            format!("the name server {server} does not know the TSIG key \"{name}\" with {} (BADKEY)", key.signer.algorithm()),
            "tsig_name and tsig_algorithm of the zone in runbook.toml must be exactly those of a key of the server".into(),
        ),
        TsigError::BadSig => made(
            format!("the name server {server} refuses the signature of the TSIG key \"{name}\" (BADSIG): it holds another secret"),
            format!("the secret \"{}\" must be, in base64, the one that the server has for this key", key.secret),
        ),
        TsigError::BadTime => {
            let theirs = other.iter().fold(0u64, |n, b| (n << 8) | u64::from(*b));
            let skew = if other.is_empty() {
                "the clocks differ by more than 5 minutes".to_string()
            } else {
                let by = show_duration(Duration::from_secs(now_s.abs_diff(theirs)));
                let way = if now_s > theirs { "ahead of" } else { "behind" };
                format!("this machine's clock is {by} {way} the server's")
            };
            made(
                format!("the name server {server} refuses the time of the signature (BADTIME): {skew}"),
                "set both clocks by NTP (timedatectl), then try again".into(),
            )
            .retryable(true)
        }
        TsigError::BadTrunc => made(
            format!("the name server {server} refuses the length of the signature of the TSIG key \"{name}\" (BADTRUNC)"),
            "set tsig_algorithm to what the server demands".into(),
        ),
        TsigError::Unknown(n) => made(
            format!("the name server {server} refuses the TSIG key \"{name}\" (error {n})"),
            "see the name server's log for the reason".into(),
        ),
    }
}

/// Makes a TSIG key from its settings.
///
/// # Errors
/// `RB0602` when the algorithm is not supported or the secret is not base64.
pub fn key(cx: &Cx, name: &str, algorithm: &str, secret: &str) -> Result<Key> {
    use base64::Engine as _;
    let bad = |what: String, hint: &str| Error::new(Code::DNS_TSIG, what).kind(Kind::Check).hint(hint.to_string());
    let mut wanted = Name::from_ascii(algorithm.to_ascii_lowercase().trim_end_matches('.'))
        .map_err(|e| bad(format!("\"{algorithm}\" is not a TSIG algorithm: {e}"), "use hmac-sha256, hmac-sha384 or hmac-sha512"))?;
    wanted.set_fqdn(false);
    let algorithm_ = hickory_proto::rr::rdata::tsig::TsigAlgorithm::from_name(wanted);
    let value = cx.secret(secret)?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(value.reveal().trim()).map_err(|_| {
        bad(format!("the secret \"{secret}\" is not base64"), "take it as it stands after \"secret\" in the server's key file")
    })?;
    let mut owner = Name::from_ascii(name.to_ascii_lowercase()).map_err(|e| {
        bad(format!("\"{name}\" is not the name of a TSIG key: {e}"), "take it as it stands after \"key\" in the server's key file")
    })?;
    owner.set_fqdn(true);
    let signer = TSigner::new(bytes, algorithm_, owner, 300)
        .map_err(|_| bad(format!("the TSIG algorithm {algorithm} is not supported"), "use hmac-sha256, hmac-sha384 or hmac-sha512"))?;
    Ok(Key { signer, secret: secret.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn endpoints_have_port_53_unless_told() {
        for (text, addr) in [
            ("192.0.2.1", "192.0.2.1:53"),
            ("192.0.2.1:5353", "192.0.2.1:5353"),
            ("2001:db8::1", "[2001:db8::1]:53"),
            ("[2001:db8::1]", "[2001:db8::1]:53"),
            ("[2001:db8::1]:5353", "[2001:db8::1]:5353"),
        ] {
            assert_eq!(endpoint(text).await.unwrap().to_string(), addr);
        }
        assert_eq!(endpoint("ns1:x").await.unwrap_err().code, Code::DNS_QUERY);
    }

    #[test]
    fn every_tsig_refusal_says_what_is_wrong() {
        let signer =
            TSigner::new(vec![1; 32], hickory_proto::rr::rdata::tsig::TsigAlgorithm::HmacSha256, Name::from_ascii("k.").unwrap(), 300);
        let key = Key { signer: signer.unwrap(), secret: "tsig".into() };
        let said = |e, other: &[u8]| tsig_refused("192.0.2.53:53", &key, e, other, 10_000).message;
        assert!(said(TsigError::BadKey, &[]).contains("does not know the TSIG key \"k\" with hmac-sha256 (BADKEY)"));
        assert!(said(TsigError::BadSig, &[]).contains("(BADSIG): it holds another secret"));
        assert!(said(TsigError::BadTime, &2_800u64.to_be_bytes()[2..]).ends_with("clock is 2h ahead of the server's"));
        assert!(said(TsigError::BadTime, &13_600u64.to_be_bytes()[2..]).ends_with("clock is 1h behind the server's"));
        assert!(said(TsigError::Unknown(99), &[]).contains("error 99"));
    }
}
