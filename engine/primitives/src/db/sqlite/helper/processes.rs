//! Which processes have a file open, as far as the login user may see.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Another process that has a file open.
pub struct User {
    /// For people: `shop (process 4711)`.
    pub name: String,
    /// Whether it is one of these helpers.
    pub helper: bool,
}

/// Other processes that have this file open. Empty also where there is no `/proc`.
#[must_use]
pub fn using(path: &Path) -> Vec<User> {
    let Ok(file) = fs::metadata(path) else { return Vec::new() };
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = process.file_name().to_string_lossy().into_owned();
        if pid == own || !pid.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let mut open = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        // Looking at the link's text first: following links to other file systems could block.
        if open.any(|fd| {
            fs::read_link(fd.path()).is_ok_and(|to| to.file_name() == path.file_name())
                && fs::metadata(fd.path()).is_ok_and(|m| (m.dev(), m.ino()) == (file.dev(), file.ino()))
        }) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let helper = command.split(|b| *b == 0).any(|word| word == b"__helper");
            found.push(User { name: format!("{} (process {pid})", name.trim()), helper });
        }
    }
    found
}
