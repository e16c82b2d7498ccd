//! `runbook completions`: what a shell needs to complete commands and flags.

use clap::Args;
use clap_complete::Shell;
use serde_json::json;

use crate::app::{App, Done};
use crate::command_error::Failure;

/// Prints completions for a shell
///
/// For example: runbook completions bash > ~/.local/share/bash-completion/completions/runbook
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl Completions {
    pub fn run(self, _app: &App) -> Result<Done, Failure> {
        let mut out = Vec::new();
        clap_complete::generate(self.shell, &mut crate::man::tree(), "runbook", &mut out);
        let text = String::from_utf8_lossy(&out).into_owned();
        Ok(Done::new(text.clone(), json!({ "shell": self.shell.to_string(), "script": text })))
    }
}
