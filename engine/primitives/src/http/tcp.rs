//! `tcp(…)`: whether a port takes connections.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::time::Duration;

use async_trait::async_trait;
use runbook_core::error::Kind;
use runbook_core::inventory::Environment;
use runbook_core::primitive::{Cx, Outcome, Primitive};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::units::show_duration;
use runbook_core::{Code, Error, Record, Result, Value};
use tokio::net::TcpStream;

const TIMEOUT: Duration = Duration::from_secs(5);

/// The pure function `tcp`.
pub fn tcp(_env: &Environment, call: &Call) -> Result<Value> {
    let address = join(call.str(0), call.arg(1).as_int())?;
    let fields = BTreeMap::from([("address".to_string(), Value::from(address.as_str()))]);
    Ok(Record::handle("Tcp", address, fields).into())
}

fn join(host: &str, port: Option<i64>) -> Result<String> {
    let bad = |why: String| Error::new(Code::TCP, why).kind(Kind::Check).hint(r#"write tcp("192.0.2.20:22") or tcp("192.0.2.20", 22)"#);
    let ip6 = host.parse::<std::net::Ipv6Addr>().is_ok();
    if let Some(p) = port {
        let p = u16::try_from(p).ok().filter(|p| *p > 0).ok_or_else(|| bad(format!("{p} is not a port")))?;
        return Ok(if ip6 { format!("[{host}]:{p}") } else { format!("{host}:{p}") });
    }
    let ok = !ip6 && host.rsplit_once(':').is_some_and(|(h, p)| !h.is_empty() && p.parse::<u16>().is_ok_and(|p| p > 0));
    if ok { Ok(host.to_string()) } else { Err(bad(format!("\"{host}\" has no port"))) }
}

enum Found {
    Open,
    Refused,
    Silent,
}

async fn knock(cx: &Cx, address: &str, limit: Duration) -> Result<Found> {
    let tried = async {
        match tokio::time::timeout(limit, TcpStream::connect(address)).await {
            Err(_) => Ok(Found::Silent),
            Ok(Ok(_)) => Ok(Found::Open),
            Ok(Err(e)) if e.kind() == ErrorKind::ConnectionRefused => Ok(Found::Refused),
            Ok(Err(e)) => Err(Error::new(Code::TCP, format!("{address} cannot be tried: {e}"))
                .hint("check the name, the address and the route to it")
                .retryable(true)),
        }
    };
    tokio::select! {
        r = tried => r,
        () = cx.cancel.cancelled() => Err(Error::new(Code::ABORTED, format!("stopped while trying {address}"))),
    }
}

/// Checks that a port is open.
pub struct ExpectOpen(Spec);

impl Default for ExpectOpen {
    fn default() -> Self {
        ExpectOpen(
            Spec::method("Tcp", "expect_open", Effect::Read, "Fails unless the port takes a connection from the controller.")
                .option("timeout", Ty::Duration, "How long to wait for it; 5s by default.")
                .example(r#"tcp("192.0.2.20:22").expect_open();"#)
                .errors(&[Code::TCP]),
        )
    }
}

#[async_trait]
impl Primitive for ExpectOpen {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let limit = call.opt_duration("timeout").unwrap_or(TIMEOUT);
        let why = match knock(cx, call.target(), limit).await? {
            Found::Open => return Ok(().into()),
            Found::Refused => "it refuses the connection".to_string(),
            Found::Silent => format!("no answer within {}", show_duration(limit)),
        };
        Err(Error::new(Code::TCP, format!("{} is not open: {why}", call.target()))
            .hint("see whether the service runs and listens on this address, and what a firewall lets through")
            .retryable(true))
    }
}

/// Checks that a port is closed.
pub struct ExpectClosed(Spec);

impl Default for ExpectClosed {
    fn default() -> Self {
        ExpectClosed(
            Spec::method(
                "Tcp",
                "expect_closed",
                Effect::Read,
                "Fails when the port takes a connection from the controller. A port that refuses and one that is silent are both closed.",
            )
            .option("timeout", Ty::Duration, "How long a silent port is waited for; 5s by default.")
            .example(r#"tcp(host("old").address, 3306).expect_closed();"#)
            .errors(&[Code::TCP]),
        )
    }
}

#[async_trait]
impl Primitive for ExpectClosed {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let limit = call.opt_duration("timeout").unwrap_or(TIMEOUT);
        let note = match knock(cx, call.target(), limit).await? {
            Found::Open => {
                return Err(Error::new(Code::TCP, format!("{} is open and should be closed", call.target()))
                    .hint("stop what listens there, or close it in the firewall")
                    .retryable(true));
            }
            Found::Refused => "it refuses connections",
            Found::Silent => "it is silent: a firewall drops the packets, or the host is down",
        };
        Ok(Outcome { note: Some(note.into()), ..Outcome::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_a_port() {
        assert_eq!(join("a", Some(22)).unwrap(), "a:22");
        assert_eq!(join("2001:db8::1", Some(22)).unwrap(), "[2001:db8::1]:22");
        assert_eq!(join("[2001:db8::1]:22", None).unwrap(), "[2001:db8::1]:22");
        for (host, port) in [("a", None), ("a", Some(0)), ("a", Some(70_000)), ("a:x", None), ("2001:db8::1", None), (":22", None)] {
            assert!(join(host, port).is_err(), "{host} {port:?}");
        }
    }
}
