//! The agent: what it holds, and signatures by it. Hardware-backed keys and certificates work like any other.

use std::path::Path;
use std::time::Duration;

use russh::keys::agent::AgentSessionBinding;
use russh::keys::key::parse_public_key;
use russh::keys::{Certificate, PublicKey};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The public half of a key, or a certificate for it.
#[derive(Debug, Clone)]
pub(super) enum Half {
    /// A key.
    Key(Box<PublicKey>),
    /// A certificate.
    Certificate(Box<Certificate>),
}

impl Half {
    /// Reads a key or a certificate as the protocol writes it.
    pub(super) fn parse(blob: &[u8]) -> Option<Half> {
        const CERTIFICATE: &[u8] = b"-cert-v01@openssh.com";
        let length = usize::try_from(u32::from_be_bytes(blob.get(..4)?.try_into().ok()?)).ok()?;
        if !blob.get(4..4usize.checked_add(length)?)?.ends_with(CERTIFICATE) {
            return parse_public_key(blob).ok().map(|k| Half::Key(Box::new(k)));
        }
        // A certificate whose authority is a certificate, and so on, would go deep: no real one does.
        if blob.windows(CERTIFICATE.len()).filter(|w| *w == CERTIFICATE).count() > 1 {
            return None;
        }
        Certificate::from_bytes(blob).ok().map(|c| Half::Certificate(Box::new(c)))
    }

    /// The key itself.
    pub(super) fn key(&self) -> PublicKey {
        match self {
            Half::Key(k) => (**k).clone(),
            Half::Certificate(c) => PublicKey::from(c.public_key().clone()),
        }
    }

    /// Whether both are the same key, or the same certificate.
    pub(super) fn same(&self, other: &Half) -> bool {
        match (self, other) {
            (Half::Key(a), Half::Key(b)) => a.key_data() == b.key_data(),
            (Half::Certificate(a), Half::Certificate(b)) => a == b,
            _ => false,
        }
    }

    /// The algorithm's name, without the hash of RSA.
    pub(super) fn algorithm(&self) -> String {
        match self {
            Half::Key(k) => k.algorithm().as_str().to_string(),
            Half::Certificate(c) => c.algorithm().to_certificate_type(),
        }
    }
}

/// A key that the agent holds.
#[derive(Debug, Clone)]
pub(super) struct Held {
    /// What is offered to the host.
    pub half: Half,
    /// The same as the agent writes it.
    pub blob: Vec<u8>,
    /// The agent's name for it.
    pub comment: String,
}

const FAILURE: u8 = 5;
const SUCCESS: u8 = 6;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
const EXTENSION: u8 = 27;

/// A connection to an agent.
pub(super) struct Agent {
    stream: tokio::net::UnixStream,
}

impl Agent {
    /// Connects, and tells the agent which session its signatures are for: it may have keys for certain hosts alone.
    pub(super) async fn connect(socket: &Path, binding: Option<&AgentSessionBinding>) -> Result<Agent, String> {
        let stream = quickly(tokio::net::UnixStream::connect(socket)).await?;
        let mut agent = Agent { stream };
        if let Some(b) = binding {
            let mut message = vec![EXTENSION];
            for part in [b"session-bind@openssh.com".as_slice(), b.host_key(), b.session_id(), b.signature()] {
                put(&mut message, part);
            }
            message.push(0);
            // Agents that do not know the extension say so, and are asked all the same.
            quickly(agent.ask(&message)).await?;
        }
        Ok(agent)
    }

    /// What it holds, in its order. Keys of a kind that nobody here knows are left out.
    pub(super) async fn list(&mut self) -> Result<Vec<Held>, String> {
        let answer = quickly(self.ask(&[REQUEST_IDENTITIES])).await?;
        let broken = || "its answer is not well formed".to_string();
        let mut rest = match answer.split_first() {
            Some((&IDENTITIES_ANSWER, rest)) => rest,
            Some((&FAILURE, _)) => return Err("it refuses to list its keys (is it locked?)".into()),
            _ => return Err(broken()),
        };
        let n = take_u32(&mut rest).ok_or_else(broken)?;
        let mut out = vec![];
        for _ in 0..n {
            let (blob, comment) = (take(&mut rest).ok_or_else(broken)?, take(&mut rest).ok_or_else(broken)?);
            if let Some(half) = Half::parse(blob) {
                out.push(Held { half, blob: blob.to_vec(), comment: String::from_utf8_lossy(comment).into_owned() });
            }
        }
        Ok(out)
    }

    /// Signs; gives the signature as the protocol writes it. A key with a button waits for the finger.
    pub(super) async fn sign(&mut self, blob: &[u8], data: &[u8], flags: u32) -> Result<Vec<u8>, String> {
        let mut message = vec![SIGN_REQUEST];
        put(&mut message, blob);
        put(&mut message, data);
        message.extend_from_slice(&flags.to_be_bytes());
        let answer = self.ask(&message).await.map_err(|e| e.to_string())?;
        let signature = match answer.split_first() {
            Some((&SIGN_RESPONSE, mut rest)) => take(&mut rest).map(<[u8]>::to_vec),
            Some((&FAILURE | &SUCCESS, _)) => return Err("the agent refuses to sign".into()),
            _ => None,
        };
        let signature = signature.ok_or("the agent's answer is not well formed")?;
        let name = take(&mut signature.as_slice()).map(|n| String::from_utf8_lossy(n).into_owned()).unwrap_or_default();
        // Old agents do not know the flags and sign with SHA-1, which no host takes any more.
        if flags != 0 && name == "ssh-rsa" {
            return Err("the agent signs with SHA-1 only".into());
        }
        Ok(signature)
    }

    async fn ask(&mut self, message: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut framed = Vec::new();
        put(&mut framed, message);
        self.stream.write_all(&framed).await?;
        let length = self.stream.read_u32().await?;
        if length > 1 << 20 {
            return Err(std::io::Error::other("the agent's answer is too long"));
        }
        let mut answer = vec![0; usize::try_from(length).unwrap_or_default()];
        self.stream.read_exact(&mut answer).await?;
        Ok(answer)
    }
}

async fn quickly<T>(what: impl Future<Output = std::io::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(Duration::from_secs(10), what).await {
        Ok(r) => r.map_err(|e| e.to_string()),
        Err(_) => Err("it does not answer".into()),
    }
}

/// Appends a string as the protocol writes it.
pub(super) fn put(to: &mut Vec<u8>, part: &[u8]) {
    to.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
    to.extend_from_slice(part);
}

fn take_u32(from: &mut &[u8]) -> Option<u32> {
    let (head, tail) = from.split_first_chunk::<4>()?;
    *from = tail;
    Some(u32::from_be_bytes(*head))
}

fn take<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let n = usize::try_from(take_u32(from)?).ok()?;
    let (head, tail) = from.split_at_checked(n)?;
    *from = tail;
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An agent that answers each request with the next of `answers`, and keeps the requests.
    async fn fake(answers: Vec<Vec<u8>>) -> (Agent, tokio::task::JoinHandle<Vec<Vec<u8>>>) {
        let (ours, mut theirs) = tokio::net::UnixStream::pair().unwrap();
        let serving = tokio::spawn(async move {
            let mut seen = vec![];
            for a in answers {
                let n = theirs.read_u32().await.unwrap();
                let mut request = vec![0; n as usize];
                theirs.read_exact(&mut request).await.unwrap();
                seen.push(request);
                let mut framed = vec![];
                put(&mut framed, &a);
                theirs.write_all(&framed).await.unwrap();
            }
            seen
        });
        (Agent { stream: ours }, serving)
    }

    fn listing(blobs: &[Vec<u8>]) -> Vec<u8> {
        let mut out = vec![IDENTITIES_ANSWER];
        out.extend_from_slice(&u32::try_from(blobs.len()).unwrap().to_be_bytes());
        for b in blobs {
            put(&mut out, b);
            put(&mut out, b"note");
        }
        out
    }

    /// A public key of a security key, as `ssh-keygen -t ed25519-sk` makes it.
    pub(in crate::ssh) fn sk_blob() -> Vec<u8> {
        let mut b = vec![];
        put(&mut b, b"sk-ssh-ed25519@openssh.com");
        put(&mut b, &[7; 32]);
        put(&mut b, b"ssh:");
        b
    }

    #[tokio::test]
    async fn a_security_key_is_listed_and_its_signature_comes_through_whole() {
        let mut signature = vec![];
        put(&mut signature, b"sk-ssh-ed25519@openssh.com");
        put(&mut signature, &[9; 64]);
        signature.extend_from_slice(&[1, 0, 0, 0, 42]);
        let mut answer = vec![SIGN_RESPONSE];
        put(&mut answer, &signature);
        let mut unknown = vec![];
        put(&mut unknown, b"ssh-strange");
        let (mut agent, serving) = fake(vec![listing(&[vec![0, 0], sk_blob()]), answer]).await;
        let held = agent.list().await.unwrap();
        assert_eq!(held.len(), 1, "what cannot be read is left out");
        assert_eq!((held[0].half.algorithm().as_str(), held[0].comment.as_str()), ("sk-ssh-ed25519@openssh.com", "note"));
        // Flags and counter stand behind the signature and belong to it.
        assert_eq!(agent.sign(&held[0].blob, b"data", 0).await.unwrap(), signature);
        let request = &serving.await.unwrap()[1];
        let mut want = vec![SIGN_REQUEST];
        put(&mut want, &sk_blob());
        put(&mut want, b"data");
        want.extend_from_slice(&[0; 4]);
        assert_eq!(*request, want);
    }

    #[tokio::test]
    async fn refusals_and_sha1_are_told() {
        let mut sha1 = vec![];
        put(&mut sha1, b"ssh-rsa");
        put(&mut sha1, &[0; 8]);
        let mut answer = vec![SIGN_RESPONSE];
        put(&mut answer, &sha1);
        let (mut agent, _serving) = fake(vec![vec![FAILURE], vec![FAILURE], answer, vec![]]).await;
        assert!(agent.list().await.unwrap_err().contains("locked"));
        assert_eq!(agent.sign(b"k", b"d", 0).await.unwrap_err(), "the agent refuses to sign");
        assert!(agent.sign(b"k", b"d", 4).await.unwrap_err().contains("SHA-1"));
        assert!(agent.list().await.unwrap_err().contains("well formed"));
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut first = vec![IDENTITIES_ANSWER, 0, 0, 0, 2];
                first.extend_from_slice(&bytes);
                let (mut agent, _serving) = fake(vec![first, bytes.clone()]).await;
                let _ = agent.list().await;
                let _ = agent.sign(b"k", b"d", 2).await;
            });
            let _ = Half::parse(&bytes);
        }
    }
}
