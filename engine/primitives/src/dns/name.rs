//! Names as runbooks write them, against the zone that they belong to.

use hickory_proto::rr::Name;
use runbook_core::{Code, Error, Result};

fn parse(text: &str) -> Result<Name> {
    // A leading dot and empty labels are slips that the parser would partly let through.
    if text.is_empty() || text.starts_with('.') || text.contains("..") || text.chars().any(char::is_whitespace) {
        return Err(bad(text, "a label is empty or has white space"));
    }
    let mut name = Name::from_str_relaxed(text).map_err(|e| bad(text, &e.to_string()))?.to_lowercase();
    name.set_fqdn(true);
    Ok(name)
}

fn bad(text: &str, why: &str) -> Error {
    Error::new(Code::DNS_RECORD, format!("\"{text}\" is not a domain name: {why}"))
}

/// The zone's own name.
pub fn origin(zone: &str) -> Result<Name> {
    parse(zone)
}

/// The full name of a record of the zone: `shop`, `@` for the zone itself, `shop.example.com` or `shop.example.com.`.
///
/// # Errors
/// `RB0604` when it is not a name, or ends with a dot and lies outside of the zone.
pub fn owner(origin: &Name, text: &str) -> Result<Name> {
    if text == "@" {
        return Ok(origin.clone());
    }
    let name = parse(text)?;
    if origin.zone_of(&name) {
        return Ok(name);
    }
    if text.ends_with('.') {
        return Err(Error::new(Code::DNS_RECORD, format!("{text} is not in the zone {}", show(origin)))
            .hint("leave out the final dot for a name relative to the zone"));
    }
    let mut relative = name;
    relative.set_fqdn(false);
    let mut full = relative.append_domain(origin).map_err(|e| bad(text, &e.to_string()))?;
    full.set_fqdn(true);
    Ok(full)
}

/// A name in a record's value: one label or `@` is of the zone, a final dot makes it absolute. Anything between is refused,
/// since a zone file and a web form read it differently.
///
/// # Errors
/// `RB0604` when it is not a name or could mean two things.
pub fn target(origin: &Name, text: &str) -> Result<Name> {
    if text == "@" || text.ends_with('.') {
        return if text == "@" { Ok(origin.clone()) } else { parse(text) };
    }
    let name = parse(text)?;
    if origin.zone_of(&name) {
        return Ok(name);
    }
    if name.num_labels() == 1 && !text.contains('.') {
        return owner(origin, text);
    }
    Err(Error::new(Code::DNS_RECORD, format!("\"{text}\" could be relative to {} or a name of its own", show(origin)))
        .hint(format!("write \"{text}.\" for the name of its own")))
}

/// A name as messages show it: without the final dot.
pub fn show(name: &Name) -> String {
    let text = absolute(name);
    if text == "." { text } else { text.strip_suffix('.').unwrap_or(&text).to_string() }
}

/// A name as records hold it: lower case, with the final dot; what is special in zone files is escaped as they do.
pub fn absolute(name: &Name) -> String {
    let mut out = String::new();
    for label in name.iter() {
        for &b in label {
            match b.to_ascii_lowercase() {
                b @ (b'.' | b'\\' | b'"' | b';' | b'(' | b')' | b'@' | b'$') => {
                    out.push('\\');
                    out.push(char::from(b));
                }
                b @ 0x21..=0x7e => out.push(char::from(b)),
                b => out.push_str(&format!("\\{b:03}")),
            }
        }
        out.push('.');
    }
    if out.is_empty() { ".".into() } else { out }
}

/// A name as zone files and providers write it: relative to `origin` without a final dot, or absolute all the same when there is none.
///
/// # Errors
/// What is wrong with it, in words.
pub fn from_file(text: &str, origin: Option<&Name>) -> std::result::Result<Name, String> {
    if text == "@" {
        return origin.cloned().ok_or_else(|| "@ stands for no zone here".into());
    }
    let bad = || format!("{text:?} is not a name: a label is empty, too long or badly escaped");
    let mut labels: Vec<Vec<u8>> = Vec::new();
    let mut raw = Vec::new();
    let mut label = |raw: &mut Vec<u8>| {
        let label = super::codec::unescape(raw).filter(|l| !l.is_empty() && l.len() <= 63).ok_or_else(bad)?;
        labels.push(label);
        raw.clear();
        Ok::<_, String>(())
    };
    let mut bytes = if text == "." { "" } else { text }.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'.' => label(&mut raw)?,
            b'\\' => raw.extend([b'\\', bytes.next().ok_or_else(bad)?]),
            b => raw.push(b),
        }
    }
    // Nothing after the last dot: the name ended with it.
    let ended = raw.is_empty() && !text.is_empty();
    if !ended {
        label(&mut raw)?;
    }
    let mut name = Name::from_labels(labels).map_err(|e| format!("{text:?} is not a name: {e}"))?;
    if let (false, Some(origin)) = (ended, origin) {
        name.set_fqdn(false);
        name = name.append_domain(origin).map_err(|e| format!("{text:?} is not a name: {e}"))?;
    }
    name.set_fqdn(true);
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone() -> Name {
        origin("Example.test").unwrap()
    }

    #[test]
    fn owners_are_relative_to_the_zone() {
        for (text, full) in [
            ("shop", "shop.example.test"),
            ("SHOP.example.TEST", "shop.example.test"),
            ("shop.example.test.", "shop.example.test"),
            ("@", "example.test"),
            ("example.test", "example.test"),
            ("a.b", "a.b.example.test"),
            ("_dmarc", "_dmarc.example.test"),
            ("*", "*.example.test"),
            ("notexample.test", "notexample.test.example.test"),
            ("bücher", "xn--bcher-kva.example.test"),
        ] {
            assert_eq!(show(&owner(&zone(), text).unwrap()), full, "{text}");
        }
        let e = owner(&zone(), "shop.other.test.").unwrap_err();
        assert_eq!(e.to_string(), "RB0604: shop.other.test. is not in the zone example.test");
        for text in ["", ".shop", "a..b", "sh op", &"x".repeat(64)] {
            assert_eq!(owner(&zone(), text).unwrap_err().code, Code::DNS_RECORD, "{text}");
        }
    }

    #[test]
    fn names_of_files_keep_what_is_unusual() {
        for (text, full) in [
            (".", "."),
            ("a.b.", "a.b."),
            ("a", "a.example.test."),
            ("@", "example.test."),
            ("0/26.2.0", "0/26.2.0.example.test."),
            ("a\\.b", "a\\.b.example.test."),
            ("\\101x", "ex.example.test."),
            ("*", "*.example.test."),
            ("_Sip._tcp", "_sip._tcp.example.test."),
            ("a\\032b.", "a\\032b."),
        ] {
            assert_eq!(absolute(&from_file(text, Some(&zone())).unwrap()), full, "{text}");
        }
        assert_eq!(absolute(&from_file("mail.other.net", None).unwrap()), "mail.other.net.");
        for text in ["", "..", ".a", "a..b", "a\\25", &"x".repeat(64)] {
            assert!(from_file(text, Some(&zone())).is_err(), "{text}");
        }
    }

    #[test]
    fn targets_are_never_guessed() {
        for (text, full) in [
            ("shop", "shop.example.test."),
            ("@", "example.test."),
            ("a.example.test", "a.example.test."),
            ("mx.other.net.", "mx.other.net."),
        ] {
            assert_eq!(absolute(&target(&zone(), text).unwrap()), full, "{text}");
        }
        let e = target(&zone(), "mx.other.net").unwrap_err();
        assert_eq!(e.hint.as_deref(), Some("write \"mx.other.net.\" for the name of its own"));
    }
}
