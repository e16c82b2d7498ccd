//! Adds a key to a `known_hosts` file.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use russh::keys::PublicKey;

use super::names::{entry_name, hash};

/// The line of `known_hosts` for this key, with its name in the clear.
pub(in crate::ssh) fn line(host: &str, port: u16, key: &PublicKey) -> String {
    format!("{} {}", entry_name(host, port), bare(key))
}

fn bare(key: &PublicKey) -> String {
    let mut key = key.clone();
    key.set_comment("");
    key.to_openssh().unwrap_or_default().trim().to_string()
}

/// Appends the key to the file, which is made (0600, its folder 0700) when it is not there. `hashed` hides the name.
///
/// # Errors
/// What the system says.
pub(in crate::ssh) fn append(file: &Path, host: &str, port: u16, key: &PublicKey, hashed: bool) -> std::io::Result<()> {
    let name = entry_name(host, port);
    let name = if hashed { hash(&name) } else { name };
    if let Some(folder) = file.parent().filter(|f| !f.as_os_str().is_empty() && !f.exists()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let mut f = std::fs::OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(file)?;
    let mut text = format!("{name} {}\n", bare(key));
    // A last line without its end must not swallow ours.
    if f.seek(SeekFrom::End(0))? > 0 {
        f.seek(SeekFrom::End(-1))?;
        let mut last = [0u8; 1];
        f.read_exact(&mut last)?;
        if last != *b"\n" {
            text.insert(0, '\n');
        }
    }
    // In one piece: another process may append at the same time.
    f.write_all(text.as_bytes())?;
    f.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::known_hosts::{KnownHosts, Verdict};
    use russh::keys::parse_public_key_base64;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_line_is_added_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ssh/known_hosts");
        let key = parse_public_key_base64("AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ").unwrap();
        append(&file, "Web", 22, &key, false).unwrap();
        std::fs::write(&file, std::fs::read_to_string(&file).unwrap().trim_end()).unwrap();
        append(&file, "web", 2222, &key, true).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.starts_with("web ssh-ed25519 AAAA") && text.contains("\n|1|") && text.ends_with('\n'));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        for port in [22, 2222] {
            assert_eq!(KnownHosts::read(std::slice::from_ref(&file), "web", port).judge(&key), Verdict::Known);
        }
    }
}
