//! `runbook init`: a project to begin with.

use std::path::{Path, PathBuf};

use clap::Args;
use runbook_core::{Code, Error, Result};
use serde_json::json;

use crate::app::{App, Done};
use crate::command_error::Failure;
use crate::project::INVENTORY;

/// Begins a project: a commented runbook.toml and a first runbook
#[derive(Debug, Args)]
pub struct Init {
    /// The folder; the current one unless given
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

const FILES: [(&str, &str); 3] = [
    (INVENTORY, include_str!("../templates/runbook.toml")),
    ("runbooks/hello/runbook.rhai", include_str!("../templates/hello.rhai")),
    (".gitignore", "# The record of runs: journals, locks and labs. It belongs to this machine.\n/.runbook/\n"),
];

impl Init {
    pub fn run(self, app: &App) -> Result<Done, Failure> {
        let dir = self.dir.map_or_else(|| app.folder(), |d| app.folder().join(d));
        let in_the_way: Vec<&str> = FILES.iter().map(|(f, _)| *f).filter(|f| *f != ".gitignore" && dir.join(f).exists()).collect();
        if let Some(first) = in_the_way.first() {
            return Err(Error::new(Code::FILE_EXISTS, format!("{} exists already", dir.join(first).display()))
                .hint("choose another folder: `runbook init DIR`")
                .into());
        }
        let mut written = vec![];
        for (name, text) in FILES {
            let file = dir.join(name);
            // Somebody's own .gitignore stays as it is.
            if name == ".gitignore" && file.exists() {
                continue;
            }
            write_new(&file, text)?;
            written.push(name);
        }
        let shown = dir.display();
        let text = format!(
            "{shown}: {}\n\nNext:\n  edit {INVENTORY}: it explains every section\n  runbook check                        looks for mistakes, contacts nothing\n  \
             runbook run runbooks/hello/runbook.rhai --env lab    runs the first runbook on this machine\n",
            written.join(", ")
        );
        Ok(Done::new(text, json!({ "dir": dir, "written": written })))
    }
}

/// Writes a file that must not exist yet, with the folders above it.
pub fn write_new(file: &Path, text: &str) -> Result<()> {
    let cannot = |e: std::io::Error| {
        let code = if e.kind() == std::io::ErrorKind::AlreadyExists { Code::FILE_EXISTS } else { Code::USAGE };
        Error::new(code, format!("{} cannot be written: {e}", file.display()))
    };
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir).map_err(cannot)?;
    }
    let mut out = std::fs::OpenOptions::new().write(true).create_new(true).open(file).map_err(cannot)?;
    std::io::Write::write_all(&mut out, text.as_bytes()).map_err(cannot)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    #[test]
    fn the_inventory_that_it_writes_is_a_good_one() {
        let inventory = runbook_core::inventory::parse(super::FILES[0].1, "runbook.toml").unwrap();
        for name in ["lab", "production"] {
            inventory.environment(name, &BTreeMap::new(), None).unwrap();
        }
        // What is commented out must be right too.
        let all: String = super::FILES[0].1.lines().map(|l| format!("{}\n", l.strip_prefix("#: ").unwrap_or(l))).collect();
        runbook_core::inventory::parse(&all, "runbook.toml").unwrap();
    }
}
