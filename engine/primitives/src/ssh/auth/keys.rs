//! Which keys are offered, and in which order: as OpenSSH does it.
//!
//! 1. certificates that the configuration names; 2. keys of the agent that are among the configured files; 3. the agent's other keys,
//!    unless only the configured ones may be used; 4. the other files.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use russh::keys::ssh_key::certificate::CertType;

use super::agent::{Half, Held};
use super::private;

/// A key to offer.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    /// For messages: a path, or the agent's name for it.
    pub shown: String,
    /// What is offered; `None` when the file must be opened to know.
    pub half: Option<Half>,
    /// Who signs.
    pub by: By,
}

/// Who signs for a key.
#[derive(Debug, Clone)]
pub(super) enum By {
    /// The agent, by its own name for the key.
    Agent(Vec<u8>),
    /// The private key in this file.
    File(PathBuf),
    /// Nobody: the private half of a certificate is nowhere.
    Nobody,
}

/// What decides about the keys.
#[derive(Debug, Clone, Default)]
pub(super) struct Choice<'a> {
    /// Key files.
    pub files: &'a [PathBuf],
    /// Whether the files were configured: a missing one is then worth a word.
    pub configured: bool,
    /// Whether the agent's other keys stay out.
    pub only: bool,
    /// Certificate files.
    pub certificates: &'a [PathBuf],
    /// Names of signature algorithms; all when `None`.
    pub accepted: Option<&'a [String]>,
}

/// The keys in the order in which they are offered, and what cannot be: each with its reason.
pub(super) fn candidates(choice: &Choice<'_>, held: &[Held]) -> (Vec<Candidate>, Vec<String>) {
    let mut notes = vec![];
    let mut files: Vec<Candidate> = vec![];
    for path in choice.files {
        let half = public_half(path);
        if half.is_none() && !path.is_file() {
            if choice.configured {
                notes.push(format!("{}: there is no such file", path.display()));
            }
            continue;
        }
        let one = |half| Candidate { shown: path.display().to_string(), half, by: By::File(path.clone()) };
        files.push(one(half));
        if choice.certificates.is_empty()
            && let Some(c @ Half::Certificate(_)) = certificate(&suffixed(path, "-cert.pub"))
        {
            files.push(Candidate { shown: format!("{}-cert.pub", path.display()), ..one(Some(c)) });
        }
    }
    let mut first = vec![];
    for path in choice.certificates {
        match certificate(path) {
            Some(c) => first.push(Candidate { shown: path.display().to_string(), half: Some(c), by: By::Nobody }),
            None => notes.push(format!("{}: it is not a certificate of a user", path.display())),
        }
    }
    let mut others = vec![];
    for h in held {
        let by = By::Agent(h.blob.clone());
        let found = files.iter().position(|f| f.half.as_ref().is_some_and(|half| half.same(&h.half)));
        match found {
            Some(i) => {
                let f = files.remove(i);
                first.push(Candidate { shown: format!("{} (in the agent)", f.shown), by, ..f });
            }
            None if !choice.only => {
                let name = if h.comment.is_empty() { h.half.algorithm() } else { h.comment.clone() };
                others.push(Candidate { shown: format!("the agent's {name}"), half: Some(h.half.clone()), by });
            }
            None => {}
        }
    }
    let mut all: Vec<Candidate> = first.into_iter().chain(others).chain(files).collect();
    marry(&mut all, held);
    all.retain(|c| match (&c.half, choice.accepted) {
        (Some(half), Some(accepted)) if !is_accepted(half, accepted) => {
            notes.push(format!("{}: its algorithm is not among PubkeyAcceptedAlgorithms", c.shown));
            false
        }
        _ => true,
    });
    (all, notes)
}

/// Finds who signs for the certificates that came alone.
fn marry(all: &mut [Candidate], held: &[Held]) {
    let signers: Vec<(Half, By)> =
        all.iter().filter_map(|c| c.half.clone().filter(|h| matches!(h, Half::Key(_))).map(|h| (h, c.by.clone()))).collect();
    for c in all {
        let Some(half @ Half::Certificate(_)) = &c.half else { continue };
        if matches!(c.by, By::Agent(_)) {
            continue;
        }
        // The certificate itself may be in the agent, or its key may be on offer on its own.
        let same = held.iter().find(|h| h.half.same(half)).map(|h| By::Agent(h.blob.clone()));
        let key = Half::Key(Box::new(half.key()));
        let found = same.or_else(|| signers.iter().find(|(h, _)| h.same(&key)).map(|(_, by)| by.clone()));
        if let Some(by) = found {
            c.by = by;
        }
    }
}

/// The names under which a key may sign.
pub(super) fn signature_names(half: &Half) -> Vec<String> {
    let name = half.algorithm();
    match name.as_str() {
        "ssh-rsa" => vec!["rsa-sha2-512".into(), "rsa-sha2-256".into()],
        "ssh-rsa-cert-v01@openssh.com" => {
            vec!["rsa-sha2-512-cert-v01@openssh.com".into(), "rsa-sha2-256-cert-v01@openssh.com".into()]
        }
        _ => vec![name],
    }
}

fn is_accepted(half: &Half, accepted: &[String]) -> bool {
    signature_names(half).iter().any(|n| accepted.contains(n))
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut p = path.as_os_str().to_owned();
    p.push(suffix);
    PathBuf::from(p)
}

/// The public half of a key file: from the private key itself when its format shows it, from the file when that is a public key, or
/// from the one beside it.
fn public_half(path: &Path) -> Option<Half> {
    let text = small(path);
    let own = text.as_deref().and_then(|t| private::public(t).map(|k| Half::Key(Box::new(k))).or_else(|| public_line(t)));
    own.or_else(|| public_line(&small(&suffixed(path, ".pub"))?))
}

fn certificate(path: &Path) -> Option<Half> {
    let half = public_line(&small(path)?)?;
    matches!(&half, Half::Certificate(c) if c.cert_type() == CertType::User).then_some(half)
}

fn small(path: &Path) -> Option<String> {
    let meta = std::fs::metadata(path).ok()?;
    if !meta.is_file() || meta.len() > 1 << 20 {
        return None;
    }
    std::fs::read_to_string(path).ok()
}

fn public_line(text: &str) -> Option<Half> {
    let line = text.lines().map(str::trim).find(|l| !l.is_empty() && !l.starts_with('#'))?;
    let mut words = line.split_whitespace();
    let (name, blob) = (words.next()?, words.next()?);
    let blob = base64::engine::general_purpose::STANDARD.decode(blob).ok()?;
    Half::parse(&blob).filter(|h| h.algorithm() == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use russh::keys::ssh_key::certificate::Builder;
    use russh::keys::{Algorithm, PrivateKey};

    fn key() -> PrivateKey {
        russh::keys::PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).unwrap()
    }

    fn cert(of: &PrivateKey, kind: CertType) -> Half {
        let mut b = Builder::new_with_random_nonce(&mut russh::keys::key::safe_rng(), of.public_key(), 0, u64::MAX - 1).unwrap();
        b.cert_type(kind).unwrap().key_id("k").unwrap().valid_principal("me").unwrap();
        Half::Certificate(Box::new(b.sign(&key()).unwrap()))
    }

    fn line(half: &Half) -> String {
        match half {
            Half::Key(k) => k.to_openssh().unwrap(),
            Half::Certificate(c) => c.to_openssh().unwrap(),
        }
    }

    fn held(half: Half, comment: &str) -> Held {
        let blob = line(&half).split_whitespace().nth(1).map(|b| base64::engine::general_purpose::STANDARD.decode(b).unwrap()).unwrap();
        Held { half, blob, comment: comment.into() }
    }

    fn half(k: &PrivateKey) -> Half {
        Half::Key(Box::new(k.public_key().clone()))
    }

    struct Disk(tempfile::TempDir);

    impl Disk {
        fn write(&self, name: &str, text: &str) -> PathBuf {
            let p = self.0.path().join(name);
            std::fs::write(&p, text).unwrap();
            p
        }
    }

    fn shown(all: &[Candidate]) -> Vec<String> {
        all.iter().map(|c| c.shown.rsplit('/').next().unwrap().to_string()).collect()
    }

    #[test]
    fn the_order_is_that_of_openssh() {
        let d = Disk(tempfile::tempdir().unwrap());
        let (a, b, c, other) = (key(), key(), key(), key());
        let (pa, pb) = (d.write("a", &private::text(&a)), d.write("b", &private::text(&b)));
        let pc = d.write("c.pub", &line(&half(&c)));
        d.write("b-cert.pub", &line(&cert(&b, CertType::User)));
        d.write("a-cert.pub", &line(&cert(&a, CertType::Host)));
        let files = [pa, pb.clone(), pc];
        let agent = [held(half(&other), "other"), held(half(&c), "c"), held(half(&b), "b")];
        let choice = Choice { files: &files, configured: true, ..Choice::default() };
        let (all, notes) = candidates(&choice, &agent);
        assert_eq!(shown(&all), ["c.pub (in the agent)", "b (in the agent)", "the agent's other", "a", "b-cert.pub"]);
        assert!(notes.is_empty(), "{notes:?}");
        assert!(matches!(all[4].by, By::Agent(_)), "the agent has the key of the certificate");
        let (all, _) = candidates(&Choice { only: true, ..choice.clone() }, &agent);
        assert_eq!(shown(&all), ["c.pub (in the agent)", "b (in the agent)", "a", "b-cert.pub"]);
        // Without the agent a public half alone still stands there, so that the message can say why it is of no use.
        let (all, _) = candidates(&choice, &[]);
        assert_eq!(shown(&all), ["a", "b", "b-cert.pub", "c.pub"]);
        assert!(matches!(&all[2].by, By::File(p) if *p == pb));
    }

    #[test]
    fn named_certificates_come_first_and_replace_those_beside_the_keys() {
        let d = Disk(tempfile::tempdir().unwrap());
        let (a, b) = (key(), key());
        let pa = d.write("a", &private::text(&a));
        d.write("a-cert.pub", &line(&cert(&a, CertType::User)));
        let named = [d.write("named", &line(&cert(&a, CertType::User))), d.write("lost", &line(&cert(&key(), CertType::User)))];
        let files = [pa.clone()];
        let (all, _) = candidates(&Choice { files: &files, certificates: &named, ..Choice::default() }, &[held(half(&b), "b")]);
        assert_eq!(shown(&all), ["named", "lost", "the agent's b", "a"]);
        assert!(matches!(&all[0].by, By::File(p) if *p == pa) && matches!(all[1].by, By::Nobody));
    }

    #[test]
    fn what_is_not_there_or_not_accepted_is_told() {
        let d = Disk(tempfile::tempdir().unwrap());
        let files = [d.0.path().join("gone"), d.write("a", &private::text(&key()))];
        let accepted = ["rsa-sha2-512".to_string()];
        let (all, notes) = candidates(&Choice { files: &files, configured: true, accepted: Some(&accepted), ..Choice::default() }, &[]);
        assert!(all.is_empty());
        assert!(notes[0].ends_with("gone: there is no such file") && notes[1].contains("PubkeyAcceptedAlgorithms"), "{notes:?}");
        let (_, notes) = candidates(&Choice { files: &files[..1], ..Choice::default() }, &[]);
        assert!(notes.is_empty(), "default files need not be there");
    }

    #[test]
    fn a_key_whose_format_hides_its_public_half_has_it_beside_it() {
        let d = Disk(tempfile::tempdir().unwrap());
        let pem = "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n";
        let p = d.write("old", pem);
        assert!(public_half(&p).is_none());
        let k = key();
        d.write("old.pub", &line(&half(&k)));
        assert!(public_half(&p).unwrap().same(&half(&k)));
    }
}
