//! Signs what the host wants signed: by the agent, or by a key file that is opened only once the host has said that it takes the key.

use std::path::Path;

use runbook_core::Error;
use runbook_core::primitive::Cx;
use russh::keys::agent::AgentIdentity;
use russh::keys::signature::Signer as _;
use russh::keys::ssh_key::Signature;
use russh::keys::ssh_key::private::KeypairData;
use russh::keys::{HashAlg, PrivateKey};

use super::agent::{Agent, put};
use super::keyring::Keyring;

/// Why nothing was signed.
pub(super) enum Unsigned {
    /// The connection is gone.
    Gone,
    /// This key cannot sign; the next may.
    Skip(String),
    /// Nothing more is to be tried.
    Stop(Box<Error>),
}

impl From<russh::SendError> for Unsigned {
    fn from(_: russh::SendError) -> Self {
        Unsigned::Gone
    }
}

/// The agent as a signer.
pub(super) struct ByAgent<'a> {
    pub agent: &'a mut Agent,
    pub blob: &'a [u8],
}

impl russh::Signer for ByAgent<'_> {
    type Error = Unsigned;

    async fn auth_sign(&mut self, _key: &AgentIdentity, hash: Option<HashAlg>, mut data: Vec<u8>) -> Result<Vec<u8>, Unsigned> {
        let flags = match hash {
            Some(HashAlg::Sha256) => 2,
            Some(HashAlg::Sha512) => 4,
            _ => 0,
        };
        let signature = self.agent.sign(self.blob, &data, flags).await.map_err(Unsigned::Skip)?;
        put(&mut data, &signature);
        Ok(data)
    }
}

/// A key file as a signer.
pub(super) struct ByFile<'a> {
    pub cx: &'a Cx,
    pub keyring: &'a Keyring,
    pub path: &'a Path,
    pub passphrase: Option<&'a str>,
    pub may_ask: bool,
}

impl russh::Signer for ByFile<'_> {
    type Error = Unsigned;

    async fn auth_sign(&mut self, _key: &AgentIdentity, hash: Option<HashAlg>, mut data: Vec<u8>) -> Result<Vec<u8>, Unsigned> {
        let key = self
            .keyring
            .key(self.cx, self.path, self.passphrase, self.may_ask)
            .await
            .map_err(|e| Unsigned::Stop(Box::new(e)))?
            .map_err(Unsigned::Skip)?;
        let signature = sign(&key, hash, &data).map_err(|e| Unsigned::Skip(format!("cannot sign: {e}")))?;
        put(&mut data, &signature);
        Ok(data)
    }
}

/// Signs with a private key; RSA with SHA-2 alone.
fn sign(key: &PrivateKey, hash: Option<HashAlg>, data: &[u8]) -> Result<Vec<u8>, String> {
    let signature: Result<Signature, _> = match (key.key_data(), hash) {
        (KeypairData::Rsa(_), None) => return Err("RSA with SHA-1 is not used".into()),
        (KeypairData::Rsa(pair), hash) => (pair, hash).try_sign(data),
        (pair, _) => pair.try_sign(data),
    };
    signature.map_err(|e| e.to_string()).and_then(|s| Vec::<u8>::try_from(s).map_err(|e| e.to_string()))
}

/// A signer for who has no private half.
pub(super) struct Nobody;

impl russh::Signer for Nobody {
    type Error = Unsigned;

    async fn auth_sign(&mut self, _key: &AgentIdentity, _hash: Option<HashAlg>, _data: Vec<u8>) -> Result<Vec<u8>, Unsigned> {
        Err(Unsigned::Skip("its private key is neither in a file nor in the agent".into()))
    }
}
