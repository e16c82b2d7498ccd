//! The settings that primitives read are those that the inventory knows: what is read and cannot be given, or can be given and is read by
//! nobody, is found here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use runbook_core::inventory::schema::KINDS;

/// What stands before the name of a setting where it is read.
const READS: [&str; 14] = [
    ".str(\"",
    ".need(\"",
    ".list(\"",
    ".int(\"",
    ".flag(\"",
    "settings.get(\"",
    "text(\"",
    "files(\"",
    "paths(\"",
    "port(\"",
    "control(\"",
    "span(r, \"",
    " read(\"",
    "secret(\"",
];

/// Of these, what reads other things as well.
const LOOSE: [&str; 6] = ["text(\"", "paths(\"", "port(\"", "control(\"", " read(\"", "secret(\""];

/// Every source file of a folder, without its tests.
fn sources(folder: &Path, found: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            found.insert(path.display().to_string(), code.to_string());
        }
    }
}

fn literal(rest: &str) -> Option<&str> {
    let name = rest.split('"').next()?;
    (!name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')).then_some(name)
}

#[test]
fn what_is_read_is_in_the_schema_and_the_other_way_round() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = BTreeMap::new();
    sources(&src, &mut files);
    files.remove(&src.join("settings.rs").display().to_string());
    assert!(files.len() > 50, "{} files", files.len());
    let settings: BTreeSet<&str> = KINDS.iter().flat_map(|k| k.fields).map(|f| f.key).collect();
    // Values of scripts are read in the same way.
    let registry = crate::registry();
    let fields: BTreeSet<&str> = registry.types.values().flat_map(|t| &t.fields).map(|f| f.name).collect();

    let mut unknown = Vec::new();
    let mut read = BTreeSet::new();
    for (path, text) in &files {
        for before in READS {
            for rest in text.split(before).skip(1) {
                let Some(name) = literal(rest) else { continue };
                if settings.contains(name) {
                    read.insert(name);
                } else if !fields.contains(name) && !LOOSE.contains(&before) {
                    unknown.push(format!("{path}: {before}{name}\")"));
                }
            }
        }
    }
    assert!(unknown.is_empty(), "read, and not in engine/core/src/inventory/schema.rs:\n{}", unknown.join("\n"));
    let unread: Vec<_> = settings.difference(&read).collect();
    assert!(unread.is_empty(), "in the schema, and read by nobody: {unread:?}");
}
