//! The algorithms that are offered to a host: the library's, in the order and with the changes that the configuration wants.

use std::borrow::Cow;
use std::str::FromStr as _;

use runbook_core::{Code, Error, Result};
use russh::keys::Algorithm;
use russh::{Preferred, cipher, compression, kex, mac};

use super::config::{Names, Options};

/// Applies the configuration to what is preferred without it. Host keys are left in their order unless a list is configured.
///
/// # Errors
/// `RB0304` for a list of which nothing is supported here.
pub(super) fn apply(o: &Options, preferred: &mut Preferred) -> Result<()> {
    if let Some(list) = &o.kex_algorithms {
        let usual: Vec<&str> = preferred.kex.iter().map(AsRef::as_ref).filter(|n| !is_extension(n)).collect();
        let all: Vec<&str> = kex::ALL_KEX_ALGORITHMS.iter().map(|n| n.as_ref()).filter(|n| *n != "none").collect();
        let mut chosen: Vec<kex::Name> = Vec::new();
        for name in pick(list, "KexAlgorithms", &usual, &all)? {
            chosen.extend(kex::Name::try_from(name).ok());
        }
        // What is no key exchange, but is said in its list: it stays.
        chosen.extend(preferred.kex.iter().filter(|n| is_extension(n.as_ref())).copied());
        preferred.kex = Cow::Owned(chosen);
    }
    if let Some(list) = &o.ciphers {
        let usual: Vec<&str> = preferred.cipher.iter().map(AsRef::as_ref).collect();
        let all: Vec<&str> = cipher::ALL_CIPHERS.iter().map(|n| n.as_ref()).filter(|n| !matches!(*n, "none" | "clear")).collect();
        preferred.cipher =
            Cow::Owned(pick(list, "Ciphers", &usual, &all)?.into_iter().filter_map(|n| cipher::Name::try_from(n).ok()).collect());
    }
    if let Some(list) = &o.macs {
        let usual: Vec<&str> = preferred.mac.iter().map(AsRef::as_ref).collect();
        let all: Vec<&str> = mac::ALL_MAC_ALGORITHMS.iter().map(|n| n.as_ref()).filter(|n| *n != "none").collect();
        preferred.mac = Cow::Owned(pick(list, "MACs", &usual, &all)?.into_iter().filter_map(|n| mac::Name::try_from(n).ok()).collect());
    }
    if let Some(list) = &o.host_key_algorithms {
        host_keys(list, preferred)?;
    }
    if o.compression {
        preferred.compression = Cow::Borrowed(&[compression::ZLIB_LEGACY, compression::ZLIB, compression::NONE]);
    }
    Ok(())
}

fn is_extension(name: &str) -> bool {
    name.starts_with("ext-info-") || name.starts_with("kex-strict-")
}

fn pick<'a>(list: &Names, option: &str, usual: &[&'a str], all: &[&'a str]) -> Result<Vec<&'a str>> {
    let chosen = list.among(usual, all);
    if chosen.is_empty() {
        return Err(Error::new(
            Code::SSH_CONFIG,
            format!("{}:{}: {option} {} leaves nothing that runbook has", list.at.file, list.at.line, list.written),
        )
        .at(list.at.clone())
        .hint(format!("runbook has {}", all.join(", "))));
    }
    Ok(chosen)
}

/// The name of an algorithm for plain keys and for certificates.
fn names(a: &Algorithm) -> (String, String) {
    (a.to_string(), a.to_certificate_type())
}

fn host_keys(list: &Names, preferred: &mut Preferred) -> Result<()> {
    let mut known: Vec<Algorithm> = preferred.key.to_vec();
    for name in ["ssh-rsa", "ssh-dss"] {
        known.extend(Algorithm::from_str(name).ok().filter(|a| !known.contains(a)));
    }
    let named: Vec<(String, String)> = known.iter().map(names).collect();
    let plain = named.iter().map(|(p, _)| p.as_str());
    let all: Vec<&str> = named.iter().map(|(_, c)| c.as_str()).chain(plain).collect();
    let usual_of = |of: &[Algorithm]| -> Vec<(String, String)> { of.iter().map(names).collect() };
    let (certificates, keys) = (usual_of(&preferred.host_key_certificates), usual_of(&preferred.key));
    let usual: Vec<&str> = certificates.iter().map(|(_, c)| c.as_str()).chain(keys.iter().map(|(p, _)| p.as_str())).collect();
    // The names live in `named`: those of `usual` are among them.
    let usual: Vec<&str> = usual.iter().filter_map(|u| all.iter().find(|a| a == &u).copied()).collect();
    let chosen = pick(list, "HostKeyAlgorithms", &usual, &all)?;
    let found = |of: fn(&(String, String)) -> &String| -> Vec<Algorithm> {
        chosen.iter().filter_map(|c| named.iter().position(|n| of(n) == c)).filter_map(|i| known.get(i).cloned()).collect()
    };
    preferred.key = Cow::Owned(found(|n| &n.0));
    // Certificates are asked for where an authority is known alone; a list can take types away from that.
    let certificates = found(|n| &n.1);
    preferred.host_key_certificates =
        Cow::Owned(preferred.host_key_certificates.iter().filter(|a| certificates.contains(a)).cloned().collect());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use runbook_core::Location;

    fn list(written: &str) -> Names {
        Names { written: written.into(), at: Location { file: "config".into(), line: 3, column: 0 } }
    }

    fn applied(set: impl Fn(&mut Options)) -> Result<Preferred> {
        let mut o = Options::plain("h", "u", std::path::Path::new("/"));
        set(&mut o);
        let mut p = Preferred::DEFAULT;
        apply(&o, &mut p).map(|()| p)
    }

    #[test]
    fn lists_and_changes() {
        let ciphers =
            |t: &str| applied(|o| o.ciphers = Some(list(t))).map(|p| p.cipher.iter().map(|c| c.as_ref().to_string()).collect::<Vec<_>>());
        assert_eq!(ciphers("aes128-ctr,no-such,aes256-ctr").unwrap(), ["aes128-ctr", "aes256-ctr"]);
        assert_eq!(ciphers("^aes128-ctr").unwrap().first().map(String::as_str), Some("aes128-ctr"));
        assert_eq!(ciphers("+aes256-cbc").unwrap().last().map(String::as_str), Some("aes256-cbc"));
        assert!(!ciphers("-*ctr").unwrap().iter().any(|c| c.ends_with("ctr")));
        let e = ciphers("arcfour").unwrap_err();
        assert!(e.message.starts_with("config:3: Ciphers arcfour leaves nothing") && e.location.is_some(), "{e}");
        let kex = applied(|o| o.kex_algorithms = Some(list("curve25519-sha256"))).unwrap();
        assert!(kex.kex.iter().any(|n| n.as_ref() == "kex-strict-c-v00@openssh.com"), "strict key exchange stays");
        assert_eq!(kex.kex.iter().filter(|n| !is_extension(n.as_ref())).count(), 1);
    }

    #[test]
    fn host_key_types() {
        let keys =
            |t: &str| applied(|o| o.host_key_algorithms = Some(list(t))).map(|p| p.key.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(keys("rsa-sha2-512,ssh-ed25519").unwrap(), ["rsa-sha2-512", "ssh-ed25519"]);
        assert!(!keys("-ecdsa*").unwrap().iter().any(|k| k.starts_with("ecdsa")));
        assert_eq!(keys("^ecdsa-sha2-nistp521").unwrap().first().map(String::as_str), Some("ecdsa-sha2-nistp521"));
    }

    #[test]
    fn compression_is_asked_for() {
        assert_eq!(applied(|o| o.compression = true).unwrap().compression.first().map(AsRef::as_ref), Some("zlib@openssh.com"));
    }
}
