//! What the operator was asked for: opened keys and typed passwords, each asked for once a run.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use runbook_core::Result;
use runbook_core::primitive::Cx;
use runbook_core::secret::Secret;
use russh::keys::PrivateKey;

use super::private::{Broken, load, open};

/// How often a passphrase is asked for, as `ssh` does.
const TRIES: usize = 3;

/// Lives in [`runbook_core::primitive::Shared`].
#[derive(Default)]
pub(super) struct Keyring {
    // Held while a person is asked: two hosts that want the same key ask once.
    keys: tokio::sync::Mutex<HashMap<PathBuf, Arc<PrivateKey>>>,
    typed: tokio::sync::Mutex<HashMap<String, Secret>>,
}

impl Keyring {
    /// The private key in a file, opened with the secret `passphrase` or with what the operator types. `Ok(Err(why))` when it cannot
    /// be had.
    ///
    /// # Errors
    /// `RB0109` when the secret cannot be had, `RB0021` when cancelled.
    pub(super) async fn key(
        &self,
        cx: &Cx,
        path: &Path,
        passphrase: Option<&str>,
        may_ask: bool,
    ) -> Result<std::result::Result<Arc<PrivateKey>, String>> {
        let mut keys = self.keys.lock().await;
        if let Some(k) = keys.get(path) {
            return Ok(Ok(k.clone()));
        }
        let text = match load(path) {
            Ok(t) => Arc::new(t),
            Err(Broken::Other(why)) => return Ok(Err(why)),
            Err(_) => return Ok(Err("cannot be used".into())),
        };
        // Deriving the key from a passphrase takes a while by design.
        let attempt = async |phrase: Option<Secret>| {
            let text = text.clone();
            let opened = tokio::task::spawn_blocking(move || open(&text, phrase.as_ref().map(Secret::reveal))).await;
            opened.unwrap_or_else(|_| Err(Broken::Other("it cannot be read".into())))
        };
        let mut found = attempt(None).await;
        let mut why = "is locked by a passphrase".to_string();
        if let (Err(Broken::Locked), Some(name)) = (&found, passphrase) {
            let secret = cx.secret(name)?;
            found = attempt(Some(secret)).await;
            if found == Err(Broken::Wrong) {
                why = format!("does not open with the passphrase \"{name}\"");
            }
        }
        for _ in 0..TRIES {
            if !may_ask || !matches!(found, Err(Broken::Locked | Broken::Wrong)) {
                break;
            }
            match cx.ask(format!("Passphrase for the key {}: ", path.display()), false).await? {
                Some(typed) if !typed.reveal().is_empty() => {
                    found = attempt(Some(typed)).await;
                    if found.is_err() {
                        why = "does not open with the passphrase that was typed".into();
                    }
                }
                _ => break,
            }
        }
        Ok(match found {
            Ok(k) => {
                let k = Arc::new(k);
                keys.insert(path.to_path_buf(), k.clone());
                Ok(k)
            }
            Err(Broken::Other(why)) => Err(why),
            Err(_) => Err(why),
        })
    }

    /// What the operator typed before for this question, or types now.
    pub(super) async fn typed(&self, cx: &Cx, question: &str, again: bool) -> Result<Option<Secret>> {
        let mut typed = self.typed.lock().await;
        if again {
            typed.remove(question);
        } else if let Some(s) = typed.get(question) {
            return Ok(Some(s.clone()));
        }
        let answer = cx.ask(question, false).await?;
        if let Some(a) = &answer {
            typed.insert(question.to_string(), a.clone());
        }
        Ok(answer)
    }

    /// Forgets what was typed: it was wrong.
    pub(super) async fn forget(&self, question: &str) {
        self.typed.lock().await.remove(question);
    }
}
