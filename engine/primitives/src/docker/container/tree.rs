//! What an archive holds, in a form in which those of a host and of an engine can be compared.

use std::collections::BTreeMap;

use crate::tar_stream::{Entry, Hasher};

/// A file or folder with all below it, by names from it on; its own name is empty.
pub(super) struct Tree {
    entries: BTreeMap<Vec<u8>, Entry>,
    pub files: u64,
    pub bytes: u64,
}

/// What passed through a listing: of a folder, or of one thing whose name does not matter.
pub(super) fn tree_of(h: &mut Hasher, below_one: bool) -> Tree {
    let (files, bytes) = (h.files, h.bytes);
    // The first part is `.` on a host and the topmost thing's own name from an engine.
    let from_it = |name: &[u8]| -> Vec<u8> {
        let name = name.strip_suffix(b"/").unwrap_or(name);
        let rest = name.iter().position(|b| *b == b'/').and_then(|i| name.get(i + 1..));
        rest.unwrap_or_default().to_vec()
    };
    let mut entries = BTreeMap::new();
    for mut e in h.take_entries() {
        e.name = if below_one { from_it(&e.name) } else { Vec::new() };
        if e.kind == b'1' {
            e.link = from_it(&e.link);
        }
        entries.insert(e.name.clone(), e);
    }
    // Which of several names of a file comes first is chance.
    let links: Vec<Vec<u8>> = entries.values().filter(|e| e.kind == b'1').map(|e| e.name.clone()).collect();
    for name in links {
        let target = entries.get(&name).and_then(|e| entries.get(&e.link)).cloned();
        if let Some(target) = target {
            entries.insert(name.clone(), Entry { name, ..target });
        }
    }
    Tree { entries, files, bytes }
}

impl Tree {
    /// Whether it has all of another, with owners or without.
    ///
    /// # Errors
    /// What differs first, and how.
    pub fn holds(&self, other: &Tree, owners: bool) -> Result<(), String> {
        for want in other.entries.values() {
            let shown = if want.name.is_empty() { "it".into() } else { String::from_utf8_lossy(&want.name).into_owned() };
            let Some(is) = self.entries.get(&want.name) else { return Err(format!("{shown} is missing")) };
            let link = |e: &Entry| if e.kind == b'2' { e.link.clone() } else { Vec::new() };
            let owner = |e: &Entry| if owners { (e.uid, e.gid) } else { (0, 0) };
            // The permissions of a symbolic link mean nothing.
            let mode = |e: &Entry| if e.kind == b'2' { 0 } else { e.mode };
            let differs = if is.kind != want.kind {
                "is of another kind"
            } else if is.sum != want.sum {
                "has another content"
            } else if link(is) != link(want) {
                "leads elsewhere"
            } else if owner(is) != owner(want) {
                "has another owner"
            } else if mode(is) != mode(want) {
                "has other permissions"
            } else {
                continue;
            };
            return Err(format!("{shown} {differs}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn tree(top: &str, files: &[(&str, &str, u32)]) -> Tree {
        let mut archive = tar::Builder::new(Vec::new());
        let mut add = |name: String, kind, mode, data: &str| {
            let mut head = tar::Header::new_gnu();
            head.set_entry_type(kind);
            head.set_mode(mode);
            head.set_uid(7);
            head.set_gid(7);
            head.set_size(data.len() as u64);
            archive.append_data(&mut head, name, data.as_bytes()).unwrap();
        };
        add(format!("{top}/"), tar::EntryType::Directory, 0o755, "");
        for (name, data, mode) in files {
            add(format!("{top}/{name}"), tar::EntryType::Regular, *mode, data);
        }
        let mut h = Hasher::default();
        h.write_all(&archive.into_inner().unwrap()).unwrap();
        tree_of(&mut h, true)
    }

    #[test]
    fn names_from_a_host_and_from_an_engine_are_the_same() {
        let (host, engine) =
            (tree("host", &[("a", "1", 0o644), ("b/c", "2", 0o600)]), tree("etc", &[("a", "1", 0o644), ("b/c", "2", 0o600)]));
        assert_eq!(host.holds(&engine, true), Ok(()));
        assert_eq!((host.files, host.bytes), (2, 2));
    }

    #[test]
    fn the_first_difference_is_named() {
        let is = tree("host", &[("a", "1", 0o644), ("more", "", 0o644)]);
        for (want, why) in [
            (tree("x", &[("a", "2", 0o644)]), "a has another content"),
            (tree("x", &[("a", "1", 0o600)]), "a has other permissions"),
            (tree("x", &[("b", "1", 0o644)]), "b is missing"),
        ] {
            assert_eq!(is.holds(&want, true), Err(why.to_string()));
        }
    }
}
