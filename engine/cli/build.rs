//! Compiles in the pages of `docs/errors` and the files of `runbooks/cutover`, so that adding one touches no list.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() {
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let pages = table(&root.join("docs/errors"), &root.join("docs/errors"));
    let cutover = table(&root.join("runbooks/cutover"), &root.join("runbooks/cutover"));
    let text = format!(
        "/// Path and content.\npub const PAGES: &[(&str, &str)] = &[{pages}];\n/// Path and content.\npub const CUTOVER: &[(&str, &str)] = &[{cutover}];\n"
    );
    if let Err(e) = std::fs::write(out.join("embedded.rs"), text) {
        println!("cargo::error=embedded.rs cannot be written: {e}");
    }
}

/// The rows of a table of all files below `dir`, by their path relative to `base`.
fn table(base: &Path, dir: &Path) -> String {
    println!("cargo::rerun-if-changed={}", dir.display());
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.sort();
    let mut rows = String::new();
    for f in files {
        if f.is_dir() {
            rows.push_str(&table(base, &f));
        } else if let Ok(name) = f.strip_prefix(base) {
            let _ = write!(rows, "({:?}, include_str!({:?})),", name.display().to_string(), f.display().to_string());
        }
    }
    rows
}
