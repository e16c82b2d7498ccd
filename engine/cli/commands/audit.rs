//! `runbook audit`: the log that anyone can verify.

use std::io::BufReader;

use clap::{Args, Subcommand};
use runbook_core::error::Kind;
use runbook_core::journal::line;
use runbook_core::journal::verify::{audit, verify_lines};
use runbook_core::{Code, Error};
use serde_json::json;

use crate::app::{App, Done};
use crate::command_error::{Failure, exit_status};

/// Exports and verifies the audit log
#[derive(Debug, Subcommand)]
pub enum Audit {
    Verify(Verify),
    Export(Export),
}

impl Audit {
    pub fn run(self, app: &App) -> Result<Done, Failure> {
        match self {
            Audit::Verify(c) => c.run(app),
            Audit::Export(c) => c.run(app),
        }
    }
}

/// Prints the log of a run as JSON lines, each with the hash of the one before
#[derive(Debug, Args)]
pub struct Export {
    /// The run's id or the beginning of it; the newest unless given
    #[arg(value_name = "RUN")]
    run: Option<String>,
}

impl Export {
    pub fn run(self, app: &App) -> Result<Done, Failure> {
        let project = app.project()?;
        let (store, info) = app.run(&project, self.run.as_deref())?;
        let mut text = String::new();
        store.entries(&info.id, 0, &mut |entry| {
            text.push_str(&line(&entry)?);
            text.push('\n');
            if text.len() > 1 << 16 {
                app.term.out(&std::mem::take(&mut text));
            }
            Ok(())
        })?;
        app.term.out(&text);
        Ok(Done::default())
    }
}

/// Verifies the log of a run, or an exported log
#[derive(Debug, Args)]
pub struct Verify {
    /// A run's id or the beginning of it, or a file with an exported log (- for standard input); the newest run unless given
    #[arg(value_name = "RUN|FILE")]
    what: Option<String>,
    /// The hash that the newest entry must have: finds a log whose end was cut off
    #[arg(long, value_name = "HASH")]
    head: Option<String>,
}

impl Verify {
    pub fn run(self, app: &App) -> Result<Done, Failure> {
        let head = self.head.as_deref();
        let (what, verified) = match self.what.as_deref() {
            Some("-") => ("standard input".to_string(), verify_lines(std::io::stdin().lock(), head)?),
            Some(path) if app.folder().join(path).is_file() => {
                let cannot = |e| Error::new(Code::MISSING_FILE, format!("{path} cannot be read: {e}"));
                let file = std::fs::File::open(app.folder().join(path)).map_err(cannot)?;
                (path.to_string(), verify_lines(BufReader::new(file), head)?)
            }
            run => {
                let project = app.project().map_err(|e| match run {
                    Some(r) => Error::new(Code::MISSING_FILE, format!("there is no file {r} here, and no project with a run of that name")),
                    None => e,
                })?;
                let (store, info) = app.run(&project, run).map_err(|e| invalid(vec![e]))?;
                (format!("run {}", info.id), audit(store.as_ref(), &info.id, head).map_err(invalid)?)
            }
        };
        let text = format!("{what}: {} entries verify\nhead {}\n", verified.entries, verified.head);
        Ok(Done::new(text, json!({ "ok": true, "entries": verified.entries, "head": verified.head })))
    }
}

/// A damaged store does not verify either, whatever else a damaged store means elsewhere.
fn invalid(errors: Vec<Error>) -> Failure {
    let exit = errors.iter().any(|e| e.code == Code::STORE_DAMAGED).then(|| exit_status(Kind::Audit, false));
    Failure { exit, ..Failure::from(errors) }
}
