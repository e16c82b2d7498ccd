//! `runbook definitions`: what editors need to complete and check runbooks.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use runbook_core::{Code, Error};
use runbook_script::engine::make;
use runbook_script::modules::Sources;
use serde_json::json;

use crate::app::{App, Done};
use crate::command_error::Failure;
use crate::project::Project;

/// Prints the definitions of the runbook language for editors (.d.rhai)
#[derive(Debug, Args)]
pub struct Definitions {
    /// Write the files into this folder instead of printing them
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Definitions {
    pub fn run(self, app: &App) -> Result<Done, Failure> {
        let registry = Arc::new(runbook_primitives::registry());
        // Definitions need no project: no file of one is read.
        let nowhere = Arc::new(Project { root: app.folder() });
        let (engine, _) = make(registry.clone(), Sources::new(nowhere));
        let files = runbook_script::definitions::files(&engine, &registry);
        let Some(dir) = self.dir else {
            let text = files.iter().map(|(name, text)| format!("// {name}\n{text}\n")).collect::<String>();
            return Ok(Done::new(text, json!({ "files": files })));
        };
        let cannot = |e: std::io::Error| Error::new(Code::USAGE, format!("{} cannot be written: {e}", dir.display()));
        std::fs::create_dir_all(&dir).map_err(cannot)?;
        for (name, text) in &files {
            std::fs::write(dir.join(name), text).map_err(cannot)?;
        }
        let names: Vec<&String> = files.keys().collect();
        let list = names.iter().map(|n| format!("{}\n", dir.join(n).display())).collect::<String>();
        Ok(Done::new(list, json!({ "dir": dir, "files": names })))
    }
}
