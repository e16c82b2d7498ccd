//! Keys of the lab: one for the controller, one a host, and the secret for DNS updates. Made once, kept in `keys/`.

use std::fmt::Write as _;
use std::path::PathBuf;

use base64::Engine as _;
use rand::RngCore;
use runbook_core::Result;
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey, PublicKey};

use crate::failed;
use crate::layout::{Layout, write_private};
use crate::net::Block;

/// The name of the TSIG key.
pub(crate) const TSIG_NAME: &str = "lab-update.";

pub(crate) fn identity(layout: &Layout) -> PathBuf {
    layout.dir.join("keys").join("identity")
}

pub(crate) fn known_hosts(layout: &Layout) -> PathBuf {
    layout.dir.join("keys").join("known_hosts")
}

fn load_or_make(path: &std::path::Path, comment: &str) -> Result<PrivateKey> {
    if let Ok(text) = std::fs::read(path) {
        return PrivateKey::from_openssh(text).map_err(|e| failed(format!("{} is damaged", path.display()), e));
    }
    let mut key =
        PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).map_err(|e| failed("a key cannot be made", e))?;
    key.set_comment(comment);
    let text = key.to_openssh(LineEnding::LF).map_err(|e| failed("a key cannot be encoded", e))?;
    write_private(path, text.as_bytes())?;
    Ok(key)
}

/// The public half of the key that opens every host.
pub(crate) fn client(layout: &Layout) -> Result<PublicKey> {
    let path = identity(layout);
    let key = load_or_make(&path, "runbook-lab")?.public_key().clone();
    let line = key.to_openssh().map_err(|e| failed("a key cannot be encoded", e))?;
    write_private(&path.with_extension("pub"), format!("{line}\n").as_bytes())?;
    Ok(key)
}

/// A host's own key.
pub(crate) fn host(layout: &Layout, name: &str) -> Result<PrivateKey> {
    load_or_make(&layout.dir.join("keys").join(format!("host_{name}")), name)
}

/// Writes `known_hosts` for the given hosts.
pub(crate) fn write_known_hosts<'a>(
    layout: &Layout,
    block: &Block,
    hosts: impl Iterator<Item = (&'a String, &'a PrivateKey)>,
) -> Result<()> {
    let mut text = String::new();
    for (name, key) in hosts {
        let line = key.public_key().to_openssh().map_err(|e| failed("a key cannot be encoded", e))?;
        let bare: Vec<&str> = line.split(' ').take(2).collect();
        let _ = writeln!(text, "[{}]:{} {}", block.host(name)?, block.ports.ssh, bare.join(" "));
    }
    write_private(&known_hosts(layout), text.as_bytes())
}

/// The secret for DNS updates, in base64 as name servers' tools write it.
pub(crate) fn tsig(layout: &Layout) -> Result<Vec<u8>> {
    let path = layout.tsig();
    let b64 = base64::engine::general_purpose::STANDARD;
    if let Ok(text) = std::fs::read_to_string(&path) {
        return b64.decode(text.trim()).map_err(|e| failed(format!("{} is damaged", path.display()), e));
    }
    let mut secret = [0u8; 32];
    rand::rng().fill_bytes(&mut secret);
    write_private(&path, format!("{}\n", b64.encode(secret)).as_bytes())?;
    Ok(secret.to_vec())
}
