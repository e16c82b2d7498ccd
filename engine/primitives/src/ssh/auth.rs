//! Logging in: private keys, the agent, a password.

use std::path::Path;
use std::sync::Arc;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use russh::client::{AuthResult, Handle, KeyboardInteractiveAuthResponse};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{Algorithm, HashAlg, PrivateKeyWithHashAlg, load_openssh_certificate, load_secret_key};

use super::target::Target;
use super::transport::Client;

/// Logs in by whatever the host takes: the operator's own choice of keys first, then the agent, then default keys, then a password.
///
/// # Errors
/// `RB0301` with what was tried; `RB0109` when a named secret is missing.
pub(super) async fn login(cx: &Cx, t: &Target, handle: &mut Handle<Client>) -> Result<()> {
    let mut tried: Vec<String> = Vec::new();
    let fail = |e: russh::Error| {
        Error::new(Code::SSH_AUTH, format!("the login of {} to {} broke off: {e}", t.user, t.host)).host(&t.name).retryable(true)
    };
    let rsa = handle.best_supported_rsa_hash().await.map_err(fail)?.flatten();
    if t.identities_configured && (files(cx, t, handle, rsa, &mut tried).await? || agent(t, handle, rsa, &mut tried).await) {
        return Ok(());
    }
    if !t.identities_configured && (agent(t, handle, rsa, &mut tried).await || files(cx, t, handle, rsa, &mut tried).await?) {
        return Ok(());
    }
    if let Some(secret) = &t.password {
        let secret = cx.secret(secret)?;
        if password(t, handle, secret.reveal()).await.map_err(fail)? {
            return Ok(());
        }
        tried.push(format!("the password \"{}\": refused", secret.name()));
    }
    if tried.is_empty() {
        tried.push("nothing: there is no key file, no agent and no password".into());
    }
    let e = Error::new(Code::SSH_AUTH, format!("{} refuses the login of {}; tried {}", t.host, t.user, tried.join(", ")))
        .host(&t.name)
        .hint(format!(
            "check that `ssh -p {} {}@{}` works, load the key into the agent (ssh-add), or set identity_file, passphrase or password for this host in runbook.toml",
            t.port, t.user, t.host
        ));
    Err(e)
}

fn hash_for(algorithm: &Algorithm, rsa: Option<HashAlg>) -> Option<HashAlg> {
    if matches!(algorithm, Algorithm::Rsa { .. }) { rsa } else { None }
}

async fn files(cx: &Cx, t: &Target, handle: &mut Handle<Client>, rsa: Option<HashAlg>, tried: &mut Vec<String>) -> Result<bool> {
    for path in &t.identity_files {
        let shown = path.display();
        if !path.is_file() {
            if t.identities_configured {
                tried.push(format!("{shown}: there is no such file"));
            }
            continue;
        }
        let key = match load_secret_key(path, None) {
            Ok(k) => k,
            Err(_) if t.passphrase.is_some() => {
                let secret = cx.secret(t.passphrase.as_deref().unwrap_or_default())?;
                match load_secret_key(path, Some(secret.reveal())) {
                    Ok(k) => k,
                    Err(e) => {
                        tried.push(format!("{shown}: does not open with the passphrase \"{}\" ({e})", secret.name()));
                        continue;
                    }
                }
            }
            Err(russh::keys::Error::KeyIsEncrypted) => {
                tried.push(format!("{shown}: is locked by a passphrase"));
                continue;
            }
            Err(e) => {
                tried.push(format!("{shown}: cannot be used ({e})"));
                continue;
            }
        };
        let key = Arc::new(key);
        if let Some(cert) = certificate(path)
            && let Ok(AuthResult::Success) = handle.authenticate_openssh_cert(&t.user, key.clone(), cert).await
        {
            return Ok(true);
        }
        let alg = hash_for(&key.algorithm(), rsa);
        match handle.authenticate_publickey(&t.user, PrivateKeyWithHashAlg::new(key, alg)).await {
            Ok(AuthResult::Success) => return Ok(true),
            Ok(AuthResult::Failure { .. }) => tried.push(format!("{shown}: refused")),
            Err(e) => tried.push(format!("{shown}: {e}")),
        }
    }
    Ok(false)
}

fn certificate(key: &Path) -> Option<russh::keys::Certificate> {
    let path = format!("{}-cert.pub", key.display());
    Path::new(&path).is_file().then(|| load_openssh_certificate(&path).ok()).flatten()
}

async fn agent(t: &Target, handle: &mut Handle<Client>, rsa: Option<HashAlg>, tried: &mut Vec<String>) -> bool {
    if std::env::var_os("SSH_AUTH_SOCK").is_none_or(|s| s.is_empty()) {
        return false;
    }
    let mut agent = match AgentClient::connect_env().await {
        Ok(a) => a,
        Err(e) => {
            tried.push(format!("the agent: {e}"));
            return false;
        }
    };
    let identities = match agent.request_identities().await {
        Ok(i) => i,
        Err(e) => {
            tried.push(format!("the agent: {e}"));
            return false;
        }
    };
    let n = identities.len();
    for id in identities {
        let alg = hash_for(&id.public_key().algorithm(), rsa);
        let result = match id {
            AgentIdentity::PublicKey { key, .. } => handle.authenticate_publickey_with(&t.user, key, alg, &mut agent).await,
            AgentIdentity::Certificate { certificate, .. } => {
                handle.authenticate_certificate_with(&t.user, certificate, alg, &mut agent).await
            }
        };
        if matches!(result, Ok(AuthResult::Success)) {
            return true;
        }
    }
    tried.push(format!("the agent's {n} keys: refused"));
    false
}

async fn password(t: &Target, handle: &mut Handle<Client>, secret: &str) -> std::result::Result<bool, russh::Error> {
    if handle.authenticate_password(&t.user, secret).await?.success() {
        return Ok(true);
    }
    // Many servers take a password only as the answer to a prompt.
    let mut reply = handle.authenticate_keyboard_interactive_start(&t.user, None::<String>).await?;
    for _ in 0..4 {
        match reply {
            KeyboardInteractiveAuthResponse::Success => return Ok(true),
            KeyboardInteractiveAuthResponse::Failure { .. } => return Ok(false),
            KeyboardInteractiveAuthResponse::InfoRequest { prompts, .. } => {
                let answers = prompts.iter().map(|_| secret.to_string()).collect();
                reply = handle.authenticate_keyboard_interactive_respond(answers).await?;
            }
        }
    }
    Ok(false)
}
