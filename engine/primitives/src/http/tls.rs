//! Why a server's TLS is not accepted, in words: read from the errors of rustls, never guessed from their text.

use std::error::Error as StdError;

use jiff::Timestamp;
use reqwest::Url;
use runbook_core::{Code, Error};
use rustls::pki_types::UnixTime;
use rustls::{CertificateError, Error as Tls, InvalidMessage};

/// The error to show when `e` comes from TLS.
pub fn refusal(url: &Url, e: &(dyn StdError + 'static)) -> Option<Error> {
    let (why, hint) = match inside(e)? {
        Tls::InvalidCertificate(c) => certificate(c),
        Tls::InvalidMessage(InvalidMessage::InvalidContentType) => {
            ("what answers on this port does not speak TLS".to_string(), "ask by http://, or name the port that speaks HTTPS")
        }
        Tls::AlertReceived(a) => (
            format!("the server ends the handshake: {a:?}"),
            "it may ask for a certificate of the client, know no site of this name, or allow only old versions of TLS: see its log",
        ),
        Tls::PeerIncompatible(p) => {
            (format!("the two sides have no TLS in common: {p:?}"), "the server must allow TLS 1.2 or 1.3 with current ciphers")
        }
        other => (other.to_string(), "see the log of the server; `openssl s_client -connect HOST:PORT` shows its side"),
    };
    Some(Error::new(Code::TLS, format!("{url}: {why}")).hint(hint))
}

/// Finds the error of rustls in a chain. An I/O error does not give what it wraps as its source, so it is opened.
fn inside<'a>(e: &'a (dyn StdError + 'static)) -> Option<&'a Tls> {
    let mut next = Some(e);
    while let Some(e) = next {
        if let Some(tls) = e.downcast_ref::<Tls>() {
            return Some(tls);
        }
        next = match e.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => e.source(),
        };
    }
    None
}

fn certificate(c: &CertificateError) -> (String, &'static str) {
    const RENEW: &str = "renew it on the server; accept any by insecure where it does not matter";
    const EARLY: &str = "look at the clock of this machine, and at when the certificate was made";
    const NAME: &str = "ask for a name that it is for (by host, when DNS does not lead there yet), or give the server another certificate";
    match c {
        CertificateError::UnknownIssuer => (
            "its certificate is signed by an authority that is not trusted here".into(),
            "name the authority's certificate by ca_file; when it is a public one, the server does not send the intermediate certificate: give it the full chain",
        ),
        CertificateError::ExpiredContext { not_after, .. } => (format!("its certificate expired at {}", when(*not_after)), RENEW),
        CertificateError::Expired => ("its certificate has expired".into(), RENEW),
        CertificateError::NotValidYetContext { not_before, .. } => {
            (format!("its certificate holds only from {}", when(*not_before)), EARLY)
        }
        CertificateError::NotValidYet => ("its certificate does not hold yet".into(), EARLY),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<&str> = presented.iter().map(|n| bare(n)).collect();
            let names = if names.is_empty() { "no name".to_string() } else { names.join(", ") };
            (format!("its certificate is for {names}, not for {}", expected.to_str()), NAME)
        }
        CertificateError::NotValidForName => ("its certificate is for another name".into(), NAME),
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => (
            "its certificate is an authority's own, which may not serve as a server's".into(),
            "make it anew with CA:FALSE (`openssl req -x509 … -addext basicConstraints=CA:FALSE`) and name it by ca_file",
        ),
        other => {
            (format!("its certificate does not hold: {other}"), "`openssl s_client -connect HOST:PORT` shows it; accept any by insecure")
        }
    }
}

/// The name in the form in which certificates are compared: `DnsName("a.example")` is `a.example`.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').map_or(name, |(_, rest)| rest.strip_suffix(')').unwrap_or(rest));
    inner.trim_matches('"')
}

fn when(t: UnixTime) -> String {
    let seconds = i64::try_from(t.as_secs()).ok().and_then(|s| Timestamp::from_second(s).ok());
    seconds.map_or_else(|| "a time out of range".into(), |t| t.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_found_within_the_io_error_that_wraps_it() {
        let io = std::io::Error::other(Tls::InvalidCertificate(CertificateError::Expired));
        let e = refusal(&"https://a.test/".parse().unwrap(), &std::io::Error::other(io)).unwrap();
        assert_eq!(e.to_string(), "RB0803: https://a.test/: its certificate has expired");
        assert!(refusal(&"https://a.test/".parse().unwrap(), &std::io::Error::other("no")).is_none());
    }

    #[test]
    fn names_are_shown_bare() {
        for (name, shown) in [("DnsName(\"*.a.test\")", "*.a.test"), ("IpAddress(127.0.0.1)", "127.0.0.1"), ("a.test", "a.test")] {
            assert_eq!(bare(name), shown);
        }
    }
}
