//! Private keys as they lie on disk: every format and cipher that OpenSSH writes.

use std::path::Path;

use cbc::cipher::block_padding::{NoPadding, Pkcs7};
use cbc::cipher::{BlockModeDecrypt as _, KeyIvInit as _};
use russh::keys::ssh_encoding::Encode as _;
use russh::keys::ssh_key::{Cipher, PrivateKey};
use russh::keys::{Algorithm, decode_secret_key};
use zeroize::Zeroizing;

/// Why a key cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Broken {
    /// A passphrase is needed.
    Locked,
    /// The passphrase does not open it.
    Wrong,
    /// Anything else, for people.
    Other(String),
}

fn other(e: impl std::fmt::Display) -> Broken {
    Broken::Other(e.to_string())
}

/// Reads the file, which nobody but its owner may be able to read.
pub(super) fn load(path: &Path) -> Result<Zeroizing<String>, Broken> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::metadata(path).map_err(other)?;
    if meta.uid() == rustix::process::getuid().as_raw() && meta.mode() & 0o077 != 0 {
        let mode = meta.mode() & 0o777;
        return Err(Broken::Other(format!(
            "others can read it (mode {mode:04o}): chmod 600 {}",
            super::super::quote(&path.display().to_string())
        )));
    }
    if meta.len() > 1 << 20 {
        return Err(Broken::Other("it is too large for a key".into()));
    }
    std::fs::read_to_string(path).map(Zeroizing::new).map_err(other)
}

/// Opens a key, with the passphrase when there is one.
pub(super) fn open(text: &str, passphrase: Option<&str>) -> Result<PrivateKey, Broken> {
    let key = if text.contains("-----BEGIN OPENSSH PRIVATE KEY-----") {
        openssh(text, passphrase)
    } else if text.contains("Proc-Type: 4,ENCRYPTED") {
        let passphrase = passphrase.ok_or(Broken::Locked)?;
        let plain = legacy(text, passphrase)?;
        // With a wrong passphrase the padding is right once in 256 times, and then the key makes no sense.
        decode_secret_key(&plain, None).map_err(|_| Broken::Wrong)
    } else if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || (text.starts_with("PuTTY-") && !text.contains("Encryption: none")) {
        let passphrase = passphrase.ok_or(Broken::Locked)?;
        decode_secret_key(text, Some(passphrase)).map_err(|e| match e {
            russh::keys::Error::UnknownAlgorithm(_) => other(e),
            _ => Broken::Wrong,
        })
    } else if text.contains("PRIVATE KEY-----") || text.starts_with("PuTTY-") {
        decode_secret_key(text, None).map_err(other)
    } else {
        return Err(Broken::Other("it is not a private key".into()));
    }?;
    match key.algorithm() {
        Algorithm::Dsa => Err(Broken::Other("DSA keys are no longer accepted anywhere: make another key".into())),
        _ => Ok(key),
    }
}

fn openssh(text: &str, passphrase: Option<&str>) -> Result<PrivateKey, Broken> {
    let key = PrivateKey::from_openssh(text.trim()).map_err(other)?;
    if !key.is_encrypted() {
        return Ok(key);
    }
    let passphrase = passphrase.ok_or(Broken::Locked)?;
    match key.cipher() {
        Cipher::TdesCbc => triple_des(&key, passphrase),
        _ => key.decrypt(passphrase).map_err(|_| Broken::Wrong),
    }
}

/// `ssh-keygen -Z 3des-cbc`, which the library leaves out.
fn triple_des(key: &PrivateKey, passphrase: &str) -> Result<PrivateKey, Broken> {
    let (secret, iv) = key.kdf().derive_key_and_iv(Cipher::TdesCbc, passphrase).map_err(other)?;
    let mut data = Zeroizing::new(key.key_data().encrypted().unwrap_or_default().to_vec());
    cbc::Decryptor::<des::TdesEde3>::new_from_slices(&secret, &iv)
        .map_err(other)?
        .decrypt_padded::<NoPadding>(&mut data)
        .map_err(|_| Broken::Wrong)?;
    // The same key without a cipher, for the reader of the library.
    let mut blob = Zeroizing::new(b"openssh-key-v1\0".to_vec());
    let public = key.public_key().to_bytes().map_err(other)?;
    let put = |blob: &mut Vec<u8>| -> Result<(), russh::keys::ssh_encoding::Error> {
        "none".encode(blob)?;
        "none".encode(blob)?;
        "".encode(blob)?;
        1u32.encode(blob)?;
        public.encode(blob)?;
        data.encode(blob)
    };
    put(&mut blob).map_err(other)?;
    PrivateKey::from_bytes(&blob).map_err(|_| Broken::Wrong)
}

/// Opens the encryption of old PEM files (`DEK-Info`), and gives the same file without it.
fn legacy(text: &str, passphrase: &str) -> Result<Zeroizing<String>, Broken> {
    use base64::Engine as _;
    let begin = text.lines().find(|l| l.starts_with("-----BEGIN ")).unwrap_or_default().trim();
    let info = text.lines().find_map(|l| l.strip_prefix("DEK-Info:")).unwrap_or_default().trim();
    let (cipher, iv) = info.split_once(',').ok_or_else(|| Broken::Other("its DEK-Info line is not well formed".into()))?;
    let iv = unhex(iv.trim()).ok_or_else(|| Broken::Other("its DEK-Info line is not well formed".into()))?;
    let body: String = text
        .lines()
        .skip_while(|l| !l.starts_with("-----BEGIN "))
        .skip(1)
        .take_while(|l| !l.starts_with("-----END "))
        .filter(|l| !l.contains(':'))
        .map(str::trim)
        .collect();
    let engine = &base64::engine::general_purpose::STANDARD;
    let mut data = Zeroizing::new(engine.decode(body).map_err(other)?);
    let salt = iv.get(..8).unwrap_or_default();
    let key = |length: usize| {
        // OpenSSL's old way from a passphrase to a key: MD5 over what came before, the passphrase and the salt.
        let mut out = Zeroizing::new(Vec::new());
        while out.len() < length {
            let last = out.len().checked_sub(16).and_then(|n| out.get(n..)).unwrap_or_default().to_vec();
            out.extend_from_slice(&md5::compute([last.as_slice(), passphrase.as_bytes(), salt].concat()).0);
        }
        out.truncate(length);
        out
    };
    macro_rules! decrypt {
        ($cipher:ty, $length:literal) => {
            cbc::Decryptor::<$cipher>::new_from_slices(&key($length), &iv)
                .map_err(other)?
                .decrypt_padded::<Pkcs7>(&mut data)
                .map_err(|_| Broken::Wrong)?
                .len()
        };
    }
    let length = match cipher.trim() {
        "AES-128-CBC" => decrypt!(aes::Aes128, 16),
        "AES-192-CBC" => decrypt!(aes::Aes192, 24),
        "AES-256-CBC" => decrypt!(aes::Aes256, 32),
        "DES-EDE3-CBC" => decrypt!(des::TdesEde3, 24),
        c => return Err(Broken::Other(format!("its cipher {c} is not supported: ssh-keygen -p -f FILE writes it anew"))),
    };
    let plain = Zeroizing::new(engine.encode(data.get(..length).unwrap_or_default()));
    Ok(Zeroizing::new(format!("{begin}\n{}\n{}\n", plain.as_str(), begin.replace("BEGIN", "END"))))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> = text.chars().map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    digits.chunks(2).map(|c| if let [a, b] = c { u8::try_from(a * 16 + b).ok() } else { None }).collect()
}

/// The public half of a private key file in OpenSSH's own format, which needs no passphrase.
pub(super) fn public(text: &str) -> Option<russh::keys::PublicKey> {
    PrivateKey::from_openssh(text.trim()).ok().map(|k| k.public_key().clone())
}

/// Writes a key as OpenSSH would; for tests.
#[cfg(test)]
pub(super) fn text(key: &PrivateKey) -> String {
    key.to_openssh(russh::keys::ssh_key::LineEnding::LF).unwrap().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn keygen(dir: &Path, args: &[&str]) -> String {
        let file = dir.join("key");
        for f in ["key", "key.pub"] {
            let _ = std::fs::remove_file(dir.join(f));
        }
        let done = Command::new("ssh-keygen").args(["-q", "-a", "1", "-C", "c", "-f"]).arg(&file).args(args).output().unwrap();
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        std::fs::read_to_string(file).unwrap()
    }

    fn public_of(dir: &Path) -> String {
        let text = std::fs::read_to_string(dir.join("key.pub")).unwrap();
        text.split_whitespace().nth(1).unwrap().to_string()
    }

    fn blob(key: &PrivateKey) -> String {
        key.public_key().to_openssh().unwrap().split_whitespace().nth(1).unwrap().to_string()
    }

    #[test]
    fn every_type_and_format_that_ssh_keygen_writes() {
        if Command::new("ssh-keygen").arg("-?").output().is_err() {
            eprintln!("skipped: no ssh-keygen");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let kinds: [(&[&str], &[&str]); 5] = [
            (&["-t", "ed25519"], &["RFC4716"]),
            (&["-t", "ecdsa", "-b", "256"], &["RFC4716", "PEM", "PKCS8"]),
            (&["-t", "ecdsa", "-b", "384"], &["RFC4716", "PEM", "PKCS8"]),
            (&["-t", "ecdsa", "-b", "521"], &["RFC4716", "PEM", "PKCS8"]),
            (&["-t", "rsa", "-b", "2048"], &["RFC4716", "PEM", "PKCS8"]),
        ];
        for (kind, formats) in kinds {
            for format in formats {
                for pass in ["", "open sesame"] {
                    let text = keygen(dir.path(), &[kind, &["-m", format, "-N", pass]].concat());
                    let what = format!("{kind:?} {format} {pass:?}");
                    if !pass.is_empty() {
                        assert_eq!(open(&text, None).unwrap_err(), Broken::Locked, "{what}");
                        assert_eq!(open(&text, Some("wrong")).unwrap_err(), Broken::Wrong, "{what}");
                    }
                    let key = open(&text, Some(pass).filter(|p| !p.is_empty())).unwrap_or_else(|e| panic!("{what}: {e:?}\n{text}"));
                    assert_eq!(blob(&key), public_of(dir.path()), "{what}");
                }
            }
        }
    }

    #[test]
    fn every_cipher_that_ssh_keygen_writes() {
        let Ok(out) = Command::new("ssh").args(["-Q", "cipher"]).output() else { return eprintln!("skipped: no ssh") };
        let dir = tempfile::tempdir().unwrap();
        let ciphers = String::from_utf8(out.stdout).unwrap();
        assert!(ciphers.lines().count() > 5, "{ciphers}");
        for cipher in ciphers.lines() {
            let text = keygen(dir.path(), &["-t", "ed25519", "-N", "open sesame", "-Z", cipher]);
            assert_eq!(open(&text, None).unwrap_err(), Broken::Locked, "{cipher}");
            assert_eq!(open(&text, Some("wrong")).unwrap_err(), Broken::Wrong, "{cipher}");
            let key = open(&text, Some("open sesame")).unwrap_or_else(|e| panic!("{cipher}: {e:?}"));
            assert_eq!(blob(&key), public_of(dir.path()), "{cipher}");
            assert_eq!(public(&text).unwrap().key_data(), key.public_key().key_data());
        }
    }

    #[test]
    fn old_pem_ciphers_of_openssl() {
        let dir = tempfile::tempdir().unwrap();
        let plain = keygen(dir.path(), &["-t", "rsa", "-b", "2048", "-m", "PEM", "-N", ""]);
        let want = blob(&open(&plain, None).unwrap());
        for cipher in ["-des3", "-aes128", "-aes192", "-aes256"] {
            let out = dir.path().join("out");
            let done = Command::new("openssl")
                .args(["rsa", "-traditional", cipher, "-passout", "pass:sesame", "-in"])
                .arg(dir.path().join("key"))
                .arg("-out")
                .arg(&out)
                .output();
            let Ok(done) = done else { return eprintln!("skipped: no openssl") };
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            let text = std::fs::read_to_string(&out).unwrap();
            assert!(text.contains("DEK-Info"), "{text}");
            assert_eq!(blob(&open(&text, Some("sesame")).unwrap()), want, "{cipher}");
            assert!(open(&text, Some("wrong")).is_err());
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_cure() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let text = keygen(dir.path(), &["-t", "ed25519", "-N", ""]);
        let file = dir.path().join("key");
        assert_eq!(load(&file).unwrap().as_str(), text);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let Broken::Other(why) = load(&file).unwrap_err() else { panic!() };
        assert_eq!(why, format!("others can read it (mode 0640): chmod 600 {}", file.display()));
    }
}
