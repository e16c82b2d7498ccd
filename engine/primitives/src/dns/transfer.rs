//! A whole zone from a name server by transfer (AXFR, RFC 5936), signed when there is a key.

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::exchange::{Attempt, Key, TCP_WAIT, endpoint, unreachable};
use super::name;
use super::record::{RrSet, presentation};
use super::rfc2136::question;

/// More records than this are refused: they would not fit beside everything else.
const MOST: usize = 1_000_000;

/// Reads a whole zone, record set by record set, the SOA first.
///
/// # Errors
/// `RB0600` when the server does not answer or breaks off, `RB0601` when it refuses the transfer, `RB0602` for signatures, `RB0021`
/// when cancelled.
pub async fn transfer(cx: &Cx, server: &str, origin: &Name, key: Option<&Key>) -> Result<Vec<RrSet>> {
    let records = tokio::select! {
        r = records(cx, server, origin, key) => r?,
        () = cx.cancel.cancelled() => return Err(Error::new(Code::ABORTED, format!("stopped while {server} sent a zone"))),
    };
    Ok(sets(&records))
}

async fn records(cx: &Cx, server: &str, origin: &Name, key: Option<&Key>) -> Result<Vec<Record>> {
    let addr = endpoint(server).await?;
    let mut attempt = Attempt::new(cx, addr, &question(origin, RecordType::AXFR, false), key)?;
    let late = || unreachable(server, "no answer in time");
    let broken = |e: std::io::Error| unreachable(server, format!("the transfer of {} broke off: {e}", name::show(origin)));
    let mut stream = timeout(TCP_WAIT, TcpStream::connect(addr)).await.map_err(|_| late())?.map_err(|e| unreachable(server, e))?;
    let length = u16::try_from(attempt.bytes.len()).map_err(|_| Error::internal("a question is longer than 64 KiB"))?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(&attempt.bytes);
    stream.write_all(&framed).await.map_err(broken)?;

    let mut out: Vec<Record> = Vec::new();
    loop {
        let bytes = timeout(TCP_WAIT, async {
            let mut length = [0; 2];
            stream.read_exact(&mut length).await?;
            let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut bytes).await?;
            Ok::<_, std::io::Error>(bytes)
        });
        let bytes = bytes.await.map_err(|_| late())?.map_err(broken)?;
        let answer = Message::from_vec(&bytes)
            .ok()
            .filter(|m| m.id == attempt.message.id)
            .ok_or_else(|| unreachable(server, "what it sent is not the answer to the question"))?;
        let answer = attempt.verify(&bytes, answer)?;
        if answer.response_code != ResponseCode::NoError {
            return Err(refused(server, origin, answer.response_code));
        }
        if answer.answers.is_empty() || (out.is_empty() && answer.answers.first().is_none_or(|r| r.record_type() != RecordType::SOA)) {
            return Err(refused(server, origin, ResponseCode::Refused));
        }
        for r in answer.answers.iter() {
            // The SOA comes first and once more at the end.
            if r.record_type() == RecordType::SOA && !out.is_empty() {
                return Ok(out);
            }
            out.push(r.clone());
        }
        if out.len() > MOST {
            return Err(Error::new(Code::DNS_REFUSED, format!("{} has more than {MOST} records", name::show(origin)))
                .hint("move it by the name servers' own transfers"));
        }
        cx.progress(format!("records of {}", name::show(origin)), out.len() as u64, None, "records");
    }
}

fn refused(server: &str, origin: &Name, code: ResponseCode) -> Error {
    let zone = name::show(origin);
    Error::new(Code::DNS_REFUSED, format!("the name server {server} refuses to hand out the whole zone {zone} ({})", code.to_str()))
        .hint("let it: allow-transfer { key …; } in BIND, action: transfer in an acl of Knot, allow-axfr-ips in PowerDNS")
}

/// Records as record sets, in their first order.
fn sets(records: &[Record]) -> Vec<RrSet> {
    let mut index = std::collections::HashMap::new();
    let mut found: Vec<(Name, RecordType, u32, Vec<String>)> = Vec::new();
    for r in records {
        let mut name = r.name.to_lowercase();
        name.set_fqdn(true);
        let at = *index.entry((name.clone(), r.record_type())).or_insert_with(|| {
            found.push((name, r.record_type(), r.ttl, Vec::new()));
            found.len() - 1
        });
        if let Some(set) = found.get_mut(at) {
            set.2 = set.2.min(r.ttl);
            set.3.push(presentation(&r.data));
        }
    }
    found.into_iter().map(|(name, ty, ttl, values)| RrSet::new(name, ty, ttl, values)).collect()
}
