//! `user@host:port` and `ssh://` addresses, as `ProxyJump` and runbook.toml write them.

use super::options::Hop;

/// Reads a hop of `ProxyJump`: `[user@]host[:port]`, an IPv6 address in brackets, or `ssh://[user@]host[:port]`.
///
/// # Errors
/// What is wrong with it.
pub fn hop(text: &str) -> Result<Hop, String> {
    let text = text.trim();
    match text.strip_prefix("ssh://") {
        Some(rest) => uri(rest),
        None => plain(text),
    }
}

fn plain(text: &str) -> Result<Hop, String> {
    let (user, rest) = match text.rsplit_once('@') {
        Some(("", _)) => return Err("the user is missing before @".into()),
        Some((u, r)) => (Some(u.to_string()), r),
        None => (None, text),
    };
    let (host, port) = host_port(rest)?;
    Ok(Hop { user, host, port })
}

fn uri(text: &str) -> Result<Hop, String> {
    let (user, rest) = match text.split_once('@') {
        Some((u, r)) => {
            // Connection parameters stand after a semicolon; none is in use.
            let u = u.split(';').next().unwrap_or_default();
            if u.is_empty() {
                return Err("the user is missing before @".into());
            }
            (Some(decode(u)?), r)
        }
        None => (None, text),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = host_port(rest)?;
    if !host.starts_with(|c: char| c.is_ascii_alphanumeric()) && !rest.starts_with('[') {
        return Err(format!("\"{host}\" is not a host name"));
    }
    Ok(Hop { user, host, port })
}

/// Takes `host[:port]` apart.
fn host_port(text: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = if let Some(inner) = text.strip_prefix('[') {
        let (host, after) = inner.split_once(']').ok_or("the bracket is not closed")?;
        match after.strip_prefix(':') {
            Some(p) => (host, p),
            None if after.is_empty() => (host, ""),
            None => return Err("after the bracket comes a colon and the port".into()),
        }
    } else {
        text.split_once(':').unwrap_or((text, ""))
    };
    let strange = |c: char| c.is_whitespace() || c.is_control() || "'`\"$\\;&<>|(){}/".contains(c);
    if host.is_empty() || host.starts_with('-') || host.contains(strange) {
        return Err("the host name is missing or not well formed".into());
    }
    let port = match port {
        "" => None,
        p => Some(super::value::port(p).ok_or("the port is not a number from 1 to 65535")?),
    };
    Ok((host.to_string(), port))
}

/// Undoes `%40` and `+` of a user in an address.
fn decode(text: &str) -> Result<String, String> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'+' => out.push(b' '),
            b'%' => {
                let digit = |b: Option<u8>| b.and_then(|b| (b as char).to_digit(16));
                match (digit(bytes.next()), digit(bytes.next())) {
                    (Some(a), Some(b)) => out.push(u8::try_from(a * 16 + b).unwrap_or_default()),
                    _ => return Err("the user has a % without two hexadecimal digits".into()),
                }
            }
            b => out.push(b),
        }
    }
    String::from_utf8(out).map_err(|_| "the user is not UTF-8".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<(String, String, u16), String> {
        hop(text).map(|h| (h.user.unwrap_or_default(), h.host, h.port.unwrap_or_default()))
    }

    #[test]
    fn hops() {
        for (text, user, host, port) in [
            ("gate", "", "gate", 0),
            ("me@gate", "me", "gate", 0),
            ("me@corp@gate:2022", "me@corp", "gate", 2022),
            ("[2001:db8::1]:22", "", "2001:db8::1", 22),
            ("me@[::1]", "me", "::1", 0),
            ("gate:", "", "gate", 0),
            ("ssh://me@gate:2022", "me", "gate", 2022),
            ("ssh://gate/", "", "gate", 0),
            ("ssh://a%40b;x=y@gate", "a@b", "gate", 0),
            ("ssh://[::1]:2022", "", "::1", 2022),
            ("gate-%h", "", "gate-%h", 0),
        ] {
            assert_eq!(of(text), Ok((user.to_string(), host.to_string(), port)), "{text}");
        }
    }

    #[test]
    fn what_is_no_hop() {
        for text in [
            "",
            "@gate",
            "me@",
            "gate:0",
            "gate:70000",
            "gate:x",
            "[::1",
            "[::1]x",
            "::1",
            "-oProxyCommand=x",
            "a b",
            "ssh://gate/path",
            "ssh://%4@gate",
            "ssh://@gate",
            "$(x)",
            "a;b",
        ] {
            assert!(of(text).is_err(), "{text}");
        }
    }
}
