//! What every command needs: the terminal, the project, the store, an async runtime. Made on first use.

use std::path::PathBuf;
use std::sync::Arc;

use runbook_core::inventory::Inventory;
use runbook_core::journal::{RunInfo, SqliteStore, Store};
use runbook_core::{Code, Error, Result};
use serde_json::Value as Json;

use crate::command_error::Failure;
use crate::commands::Global;
use crate::project::Project;
use crate::terminal::Terminal;

/// What a command has to say in the end.
#[derive(Debug, Default)]
pub struct Done {
    /// For people, on standard output.
    pub text: String,
    /// For machines, on standard output with `--json`; `None` when it was printed already.
    pub json: Option<Json>,
    /// The exit status.
    pub exit: u8,
}

impl Done {
    /// A result in both forms.
    pub fn new(text: impl Into<String>, json: Json) -> Self {
        Done { text: text.into(), json: Some(json), exit: 0 }
    }
}

/// One invocation.
pub struct App {
    /// The terminal.
    pub term: Terminal,
    dir: Option<PathBuf>,
}

impl App {
    /// From the flags that all commands share.
    pub fn new(global: &Global) -> Self {
        App { term: Terminal::new(global.json, global.no_input), dir: global.project.clone() }
    }

    /// An invocation in another folder.
    pub fn in_dir(&self, dir: PathBuf) -> App {
        App { term: self.term.clone(), dir: Some(dir) }
    }

    /// The folder that `-C` names, or the current one.
    pub fn folder(&self) -> PathBuf {
        self.dir.clone().unwrap_or_else(|| std::env::current_dir().unwrap_or_else(|_| PathBuf::from(".")))
    }

    /// The project.
    ///
    /// # Errors
    /// `RB0101`.
    pub fn project(&self) -> Result<Project> {
        Project::find(&self.folder(), self.dir.is_some())
    }

    /// The store of the project's runs.
    ///
    /// # Errors
    /// `RB0002` and its like.
    pub fn store(&self, project: &Project) -> Result<Arc<dyn Store>> {
        Ok(Arc::new(SqliteStore::open(project.state().join("runs.db"))?))
    }

    /// The store, when there has been a run. Looking must not make files.
    ///
    /// # Errors
    /// `RB0002` and its like.
    pub fn store_if_any(&self, project: &Project) -> Result<Option<Arc<dyn Store>>> {
        if project.state().join("runs.db").exists() { self.store(project).map(Some) } else { Ok(None) }
    }

    /// A run by its id, or the newest one.
    ///
    /// # Errors
    /// `RB0008`.
    pub fn run(&self, project: &Project, id: Option<&str>) -> Result<(Arc<dyn Store>, RunInfo)> {
        let none = || Error::new(Code::NO_RUN, "there are no runs in this project yet").hint("`runbook run FILE --env E` begins one");
        let store = self.store_if_any(project)?.ok_or_else(none)?;
        let run = match id {
            Some(id) => store.run(id)?,
            None => store.runs()?.into_iter().next().ok_or_else(none)?,
        };
        Ok((store, run))
    }

    /// The name of the environment: the one that was given, or the only one there is.
    ///
    /// # Errors
    /// `RB0100` when there are several, `RB0105` when there is none of that name.
    pub fn environment(&self, inventory: &Inventory, given: Option<&str>) -> Result<String, Failure> {
        if let Some(name) = given {
            inventory.declared(name)?;
            return Ok(name.to_string());
        }
        let names: Vec<&String> = inventory.environments.keys().collect();
        match names.as_slice() {
            [one] => Ok((*one).clone()),
            [] => Err(Error::new(Code::UNKNOWN_ENVIRONMENT, "runbook.toml has no environments").hint("add [environments.NAME]").into()),
            several => {
                let list = several.iter().map(|s| s.as_str()).collect::<Vec<_>>().join(", ");
                Err(Error::new(Code::USAGE, format!("the environment is not named, and there are several: {list}"))
                    .hint("add --env NAME")
                    .into())
            }
        }
    }

    /// An async runtime.
    ///
    /// # Errors
    /// `RB0001` when the system gives no threads.
    pub fn runtime(&self) -> Result<tokio::runtime::Runtime> {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .enable_all()
            .build()
            .map_err(|e| Error::internal(format!("no async runtime can be had: {e}")))
    }
}
