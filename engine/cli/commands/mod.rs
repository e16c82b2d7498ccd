//! The commands, a file each. To add one: a file here, a line in `mod`, one in [`Command`], one in [`Command::run`].

mod approve;
mod audit;
mod check;
mod completions;
mod definitions;
mod demo;
mod explain;
mod hosts;
mod init;
mod lab;
mod log;
mod man;
mod output;
mod resume;
mod rollback;
mod run;
mod runs;
mod show;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::app::{App, Done};
use crate::command_error::Failure;

/// Server migrations as checked, durable, auditable runbooks.
#[derive(Debug, Parser)]
#[command(name = "runbook", version, about, propagate_version = true, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "`runbook demo` shows a whole migration at work; `runbook init` begins a project.")]
pub struct Cli {
    /// Flags of all commands.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of all commands.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The project's folder, instead of the current one or the nearest above it
    #[arg(short = 'C', value_name = "DIR", global = true)]
    pub project: Option<PathBuf>,
    /// Print one JSON document, also on failure
    #[arg(long, global = true)]
    pub json: bool,
    /// Never ask
    #[arg(long, global = true)]
    pub no_input: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    Init(init::Init),
    Check(check::Check),
    Run(run::RunArgs),
    Resume(resume::Resume),
    Rollback(rollback::Rollback),
    Runs(runs::Runs),
    Show(show::Show),
    Log(log::Log),
    Approve(approve::Approve),
    #[command(subcommand)]
    Audit(audit::Audit),
    Hosts(hosts::Hosts),
    #[command(subcommand)]
    Lab(lab::Lab),
    Demo(demo::Demo),
    Explain(explain::Explain),
    Definitions(definitions::Definitions),
    Completions(completions::Completions),
    Man(man::Man),
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// What went wrong, with the exit status.
    pub fn run(self, app: &App) -> Result<Done, Failure> {
        match self {
            Command::Init(c) => c.run(app),
            Command::Check(c) => c.run(app),
            Command::Run(c) => c.run(app),
            Command::Resume(c) => c.run(app),
            Command::Rollback(c) => c.run(app),
            Command::Runs(c) => c.run(app),
            Command::Show(c) => c.run(app),
            Command::Log(c) => c.run(app),
            Command::Approve(c) => c.run(app),
            Command::Audit(c) => c.run(app),
            Command::Hosts(c) => c.run(app),
            Command::Lab(c) => c.run(app),
            Command::Demo(c) => c.run(app),
            Command::Explain(c) => c.run(app),
            Command::Definitions(c) => c.run(app),
            Command::Completions(c) => c.run(app),
            Command::Man(c) => c.run(app),
        }
    }
}
