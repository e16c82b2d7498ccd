//! The project: the folder with `runbook.toml`, its inventory, its files.

use std::path::{Component, Path, PathBuf};

use runbook_core::inventory::{self, Inventory};
use runbook_core::primitive::Files;
use runbook_core::{Code, Error, Result};

use crate::command_error::Failure;

/// The inventory's file name.
pub const INVENTORY: &str = "runbook.toml";

/// A project on disk.
#[derive(Debug, Clone)]
pub struct Project {
    /// Its folder, absolute.
    pub root: PathBuf,
}

impl Project {
    /// Finds the project at `start` or above it; with `exact`, only there.
    ///
    /// # Errors
    /// `RB0101` when there is none.
    pub fn find(start: &Path, exact: bool) -> Result<Project> {
        let start = start.canonicalize().unwrap_or_else(|_| start.to_path_buf());
        let found = if exact {
            Some(start.as_path()).filter(|d| d.join(INVENTORY).is_file())
        } else {
            start.ancestors().find(|d| d.join(INVENTORY).is_file())
        };
        found.map(|root| Project { root: root.to_path_buf() }).ok_or_else(|| {
            let (place, hint) = if exact {
                ("", "name the project's folder with -C; `runbook init DIR` begins a project")
            } else {
                (" or above", "go into a project or name it with -C; `runbook init` begins one, `runbook demo` shows one at work")
            };
            Error::new(Code::NO_PROJECT, format!("there is no {INVENTORY} in {}{place}", start.display())).hint(hint)
        })
    }

    /// The folder of runs, locks and labs.
    pub fn state(&self) -> PathBuf {
        self.root.join(".runbook")
    }

    /// The state folder of an environment's lab.
    pub fn lab(&self, environment: &str) -> PathBuf {
        self.state().join("lab").join(environment)
    }

    /// Reads and checks the inventory.
    ///
    /// # Errors
    /// Every finding, with the text for snippets.
    pub fn inventory(&self) -> Result<Inventory, Failure> {
        let text = self.text(INVENTORY)?;
        inventory::parse(&text, INVENTORY).map_err(|e| Failure::from(e).source(INVENTORY, &text))
    }

    /// Reads a text file of the project.
    ///
    /// # Errors
    /// `RB0110`, `RB0111`; `RB0102` when it is not UTF-8.
    pub fn text(&self, path: &str) -> Result<String> {
        String::from_utf8(self.read(path)?).map_err(|e| {
            let code = if path == INVENTORY { Code::INVENTORY_SYNTAX } else { Code::SYNTAX };
            Error::new(code, format!("{path} is not UTF-8 text (byte {})", e.utf8_error().valid_up_to()))
        })
    }

    /// The path of a file as the project sees it, from what the operator typed (relative to the current folder, or to the project).
    ///
    /// # Errors
    /// `RB0110` when it lies outside, `RB0111` when there is none.
    pub fn relative(&self, typed: &str) -> Result<String> {
        let typed_path = Path::new(typed);
        let here = std::env::current_dir().unwrap_or_default().join(typed_path);
        let there = self.root.join(typed_path);
        let candidates = [here, there];
        let Some(found) = candidates.iter().find(|p| p.is_file()).and_then(|p| p.canonicalize().ok()) else {
            return Err(Error::new(Code::MISSING_FILE, format!("there is no file {typed}"))
                .hint(format!("paths count from the current folder or from the project's, {}", self.root.display())));
        };
        let root = self.root.canonicalize().unwrap_or_else(|_| self.root.clone());
        found.strip_prefix(&root).map(|p| p.display().to_string()).map_err(|_| outside(typed))
    }
}

impl Files for Project {
    fn read(&self, path: &str) -> Result<Vec<u8>> {
        let path = inside(path)?;
        let file = self.root.join(&path);
        let real = file.canonicalize().map_err(|e| missing(&path, &e))?;
        let root = self.root.canonicalize().map_err(|e| missing(&path, &e))?;
        // A symbolic link may not lead out either.
        if !real.starts_with(&root) {
            return Err(outside(&path));
        }
        std::fs::read(&real).map_err(|e| missing(&path, &e))
    }

    fn local(&self, path: &str) -> Result<PathBuf> {
        let clean = inside(path)?;
        let root = self.root.canonicalize().map_err(|e| missing(path, &e))?;
        let target = root.join(&clean);
        // What exists of the way there may be a symbolic link that leads out.
        let existing = target.ancestors().find_map(|a| a.canonicalize().ok());
        if clean.is_empty() || target.is_symlink() || !existing.is_some_and(|e| e.starts_with(&root)) {
            return Err(outside(path));
        }
        Ok(target)
    }

    fn folder(&self) -> Option<PathBuf> {
        self.root.canonicalize().ok()
    }
}

/// Takes a path apart and puts it together without `.`; refuses what leaves the project.
fn inside(path: &str) -> Result<String> {
    let mut parts: Vec<String> = vec![];
    for c in Path::new(path).components() {
        match c {
            Component::Normal(p) => parts.push(p.to_string_lossy().into_owned()),
            Component::CurDir => {}
            Component::ParentDir if !parts.is_empty() => {
                parts.pop();
            }
            _ => return Err(outside(path)),
        }
    }
    Ok(parts.join("/"))
}

fn outside(path: &str) -> Error {
    Error::new(Code::OUTSIDE_PROJECT, format!("\"{path}\" leaves the project folder")).hint("copy the file into the project")
}

fn missing(path: &str, why: &std::io::Error) -> Error {
    let message = if why.kind() == std::io::ErrorKind::NotFound {
        format!("there is no file {path} in the project")
    } else {
        format!("{path} cannot be read: {why}")
    };
    Error::new(Code::MISSING_FILE, message).hint("paths count from the folder of runbook.toml")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project() -> (tempfile::TempDir, Project) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in
            [("runbook.toml", ""), ("runbooks/x/runbook.rhai", "1"), (".hidden/secret", "s"), ("inner/runbook.toml", ""), ("inner/a", "")]
        {
            let file = dir.path().join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        let p = Project::find(&dir.path().join("runbooks/x"), false).unwrap();
        (dir, p)
    }

    #[test]
    #[cfg(unix)]
    fn a_place_to_write_to_stays_inside() {
        let (dir, p) = project();
        assert!(p.local("new/deep/file").unwrap().ends_with("new/deep/file"));
        std::os::unix::fs::symlink("/tmp", dir.path().join("out")).unwrap();
        for bad in ["../x", "/etc/x", "", "out/x", "out"] {
            assert_eq!(p.local(bad).unwrap_err().code, Code::OUTSIDE_PROJECT, "{bad}");
        }
    }

    #[test]
    fn is_found_from_below() {
        let (dir, p) = project();
        assert_eq!(p.root, dir.path().canonicalize().unwrap());
        assert_eq!(Project::find(&dir.path().join("runbooks"), true).unwrap_err().code, Code::NO_PROJECT);
    }

    #[test]
    fn nothing_leads_out_of_it() {
        let (dir, p) = project();
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("link")).unwrap();
        for path in ["../x", "/etc/hostname", "runbooks/../../x", "link"] {
            assert_eq!(p.read(path).unwrap_err().code, Code::OUTSIDE_PROJECT, "{path}");
        }
        assert_eq!(p.read("runbooks/./x/../x/runbook.rhai").unwrap(), b"1");
        assert_eq!(p.read("runbooks/none").unwrap_err().code, Code::MISSING_FILE);
        assert_eq!(p.relative("runbooks/x/runbook.rhai").unwrap(), "runbooks/x/runbook.rhai");
    }
}
