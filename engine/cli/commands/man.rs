//! `runbook man`: manual pages.

use std::path::PathBuf;

use clap::{Args, Command};
use runbook_core::{Code, Error};
use serde_json::json;

use crate::app::{App, Done};
use crate::command_error::Failure;
use crate::man::{STATUSES, tree};

/// Prints the manual page of runbook or of one of its commands
///
/// For example: man <(runbook man run)
#[derive(Debug, Args)]
pub struct Man {
    /// The command; several words for a command of a command
    #[arg(value_name = "COMMAND", num_args = 0..)]
    command: Vec<String>,
    /// Write the pages of all commands into this folder instead
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    dir: Option<PathBuf>,
}

impl Man {
    pub fn run(self, _app: &App) -> Result<Done, Failure> {
        let tree = tree();
        if let Some(dir) = self.dir {
            let mut pages = vec![];
            all(&tree, "runbook", &mut pages);
            let cannot = |e: std::io::Error| Error::new(Code::USAGE, format!("{} cannot be written: {e}", dir.display()));
            std::fs::create_dir_all(&dir).map_err(cannot)?;
            for (name, text) in &pages {
                std::fs::write(dir.join(name), text).map_err(cannot)?;
            }
            let names: Vec<&String> = pages.iter().map(|(n, _)| n).collect();
            return Ok(Done::new(format!("{} pages in {}\n", names.len(), dir.display()), json!({ "pages": names })));
        }
        let mut command = &tree;
        let mut name = "runbook".to_string();
        for word in &self.command {
            let Some(next) = command.find_subcommand(word).filter(|c| !c.is_hide_set()) else {
                return Err(Error::new(Code::USAGE, format!("{name} has no command \"{word}\""))
                    .hint(format!("see `{name} --help`"))
                    .into());
            };
            name = format!("{name}-{}", next.get_name());
            command = next;
        }
        let text = page(command, &name);
        Ok(Done::new(text.clone(), json!({ "name": name, "page": text })))
    }
}

fn page(command: &Command, name: &str) -> String {
    let mut out = Vec::new();
    let _ = clap_mangen::Man::new(command.clone()).render(&mut out);
    let mut text = String::from_utf8_lossy(&out).into_owned();
    if name == "runbook" {
        text.push_str(".SH \"EXIT STATUS\"\n");
        for row in STATUSES.lines().skip(2) {
            let mut cells = row.trim_matches(|c| c == '|' || c == ' ').splitn(2, " | ");
            let (status, meaning) = (cells.next().unwrap_or_default(), cells.next().unwrap_or_default());
            text.push_str(&format!(".TP\n{status}\n{}\n", meaning.replace('`', "")));
        }
    }
    text
}

fn all(command: &Command, name: &str, pages: &mut Vec<(String, String)>) {
    pages.push((format!("{name}.1"), page(command, name)));
    for sub in command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        all(sub, &format!("{name}-{}", sub.get_name()), pages);
    }
}
