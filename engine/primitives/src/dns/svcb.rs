//! The data of SVCB and HTTPS records (RFC 9460) between wire and text. The DNS library's own text of them is read by no name server.

use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hickory_proto::rr::Name;

use super::codec::{Piece, name_wire, pieces, quoted, unescape};
use super::name;

/// The names of the first parameters, by number.
const KEYS: [&str; 8] = ["mandatory", "alpn", "no-default-alpn", "port", "ipv4hint", "ech", "ipv6hint", "dohpath"];

fn key_name(key: u16) -> String {
    KEYS.get(usize::from(key)).map_or_else(|| format!("key{key}"), |k| (*k).to_string())
}

fn key_of(name: &str) -> Option<u16> {
    let known = KEYS.iter().position(|k| *k == name).and_then(|i| u16::try_from(i).ok());
    known.or_else(|| name.strip_prefix("key")?.parse().ok())
}

/// Reads the presentation form.
///
/// # Errors
/// What is wrong, in words.
pub fn to_wire(text: &str, origin: Option<&Name>) -> Result<Vec<u8>, String> {
    let mut words = Vec::new();
    for p in pieces(text)? {
        match p {
            Piece::Bare(t) => words.push(t),
            Piece::Quoted(_) => return Err("a text in quotes stands without its key".into()),
        }
    }
    let [priority, target, params @ ..] = words.as_slice() else { return Err("something is missing at its end".into()) };
    let priority: u16 = priority.parse().map_err(|_| format!("{priority:?} is not a number from 0 to 65535"))?;
    let mut out = priority.to_be_bytes().to_vec();
    name_wire(&name::from_file(target, origin)?.to_lowercase(), &mut out);
    let mut found: Vec<(u16, Vec<u8>)> = Vec::new();
    for p in params {
        let (name, value) = p.split_once('=').unwrap_or((p, ""));
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        let key = key_of(&name.to_ascii_lowercase()).ok_or_else(|| format!("{name:?} is not a parameter"))?;
        let bad = || format!("{value:?} is not a value of {name}");
        found.push((key, value_wire(key, value).ok_or_else(bad)?));
    }
    found.sort();
    if found.windows(2).any(|w| matches!(w, [a, b] if a.0 == b.0)) {
        return Err("a parameter is there twice".into());
    }
    for (key, value) in found {
        out.extend(key.to_be_bytes());
        out.extend(u16::try_from(value.len()).map_err(|_| "a parameter is too long")?.to_be_bytes());
        out.extend(value);
    }
    Ok(out)
}

fn value_wire(key: u16, value: &str) -> Option<Vec<u8>> {
    let list = || value.split(',').map(str::trim);
    Some(match key {
        0 => {
            let mut keys = list().map(key_of).collect::<Option<Vec<u16>>>()?;
            keys.sort_unstable();
            keys.into_iter().flat_map(u16::to_be_bytes).collect()
        }
        1 => {
            let mut out = Vec::new();
            for id in list() {
                let plain = !id.is_empty() && id.bytes().all(is_plain);
                out.push(u8::try_from(id.len()).ok().filter(|_| plain)?);
                out.extend(id.bytes());
            }
            out
        }
        2 => value.is_empty().then(Vec::new)?,
        3 => value.parse::<u16>().ok()?.to_be_bytes().to_vec(),
        4 => list().map(|a| a.parse::<Ipv4Addr>().ok()).collect::<Option<Vec<_>>>()?.iter().flat_map(Ipv4Addr::octets).collect(),
        5 => STANDARD.decode(value).ok()?,
        6 => list().map(|a| a.parse::<Ipv6Addr>().ok()).collect::<Option<Vec<_>>>()?.iter().flat_map(Ipv6Addr::octets).collect(),
        _ => unescape(value.as_bytes())?,
    })
}

/// What needs no escape in a list.
fn is_plain(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"._/-".contains(&b)
}

/// The presentation form; `None` for what has none that every reader takes.
pub fn to_text(wire: &[u8]) -> Option<String> {
    let number = |at: &[u8]| Some(u16::from_be_bytes(at.get(..2)?.try_into().ok()?));
    let mut words = vec![number(wire)?.to_string()];
    let mut left = wire.get(2..)?;
    let mut labels = Vec::new();
    loop {
        let (n, rest) = left.split_first()?;
        let (label, rest) = rest.split_at_checked(usize::from(*n))?;
        left = rest;
        if label.is_empty() {
            break;
        }
        labels.push(label.to_vec());
    }
    words.push(name::absolute(&Name::from_labels(labels).ok()?));
    let mut last = None;
    while !left.is_empty() {
        let key = number(left)?;
        let (value, rest) = left.get(4..)?.split_at_checked(usize::from(number(left.get(2..)?)?))?;
        left = rest;
        if last.is_some_and(|l| l >= key) {
            return None;
        }
        last = Some(key);
        words.push(match value_text(key, value)? {
            text if text.is_empty() && key == 2 => key_name(key),
            text => format!("{}={text}", key_name(key)),
        });
    }
    Some(words.join(" "))
}

fn value_text(key: u16, value: &[u8]) -> Option<String> {
    let join = |v: Vec<String>| (!v.is_empty()).then(|| v.join(","));
    let whole = |n: usize| value.len().is_multiple_of(n).then(|| value.chunks_exact(n));
    match key {
        0 => join(whole(2)?.map(|c| Some(key_name(u16::from_be_bytes(c.try_into().ok()?)))).collect::<Option<_>>()?),
        1 => {
            let (mut out, mut left) = (Vec::new(), value);
            while let Some((n, rest)) = left.split_first() {
                let (id, rest) = rest.split_at_checked(usize::from(*n))?;
                left = rest;
                let plain = !id.is_empty() && id.iter().copied().all(is_plain);
                out.push(String::from_utf8(id.to_vec()).ok().filter(|_| plain)?);
            }
            join(out)
        }
        2 => value.is_empty().then(String::new),
        3 => Some(u16::from_be_bytes(value.try_into().ok()?).to_string()),
        4 => join(whole(4)?.map(|c| Some(Ipv4Addr::from(<[u8; 4]>::try_from(c).ok()?).to_string())).collect::<Option<_>>()?),
        5 => (!value.is_empty()).then(|| STANDARD.encode(value)),
        6 => join(whole(16)?.map(|c| Some(Ipv6Addr::from(<[u8; 16]>::try_from(c).ok()?).to_string())).collect::<Option<_>>()?),
        // White space in quotes would be cut in two by simple readers.
        _ => {
            let text = quoted(value);
            let inner = text.strip_prefix('"')?.strip_suffix('"')?;
            (!inner.is_empty() && !inner.contains(|c: char| " ,;\"()".contains(c))).then(|| inner.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_read_back_as_they_were() {
        for text in [
            "0 cdn.example.net.",
            "1 . alpn=h2,h3",
            "1 . mandatory=alpn,ipv4hint alpn=h2 no-default-alpn port=8443 ipv4hint=192.0.2.1,192.0.2.2 ech=bWFrZQ== ipv6hint=2001:db8::1",
            "16 foo.example.org. key667=hello",
        ] {
            assert_eq!(to_text(&to_wire(text, None).unwrap()).as_deref(), Some(text));
        }
        let once = to_wire("1 . PORT=\"53\" alpn=\"h3,h2\"", None).unwrap();
        assert_eq!(to_text(&once).as_deref(), Some("1 . alpn=h3,h2 port=53"));
        for bad in ["1", "x .", "1 . port=x", "1 . alpn=h2 alpn=h3", "1 . what=1", "1 . alpn=", "1 . no-default-alpn=x"] {
            assert!(to_wire(bad, None).is_err(), "{bad}");
        }
        assert_eq!(to_text(&[0, 1, 0, 0, 3, 0, 1, 9]), None, "a port of one byte");
    }
}
