//! The command line of `runbook`.

mod app;
mod ask;
mod binary;
mod command_error;
mod commands;
mod embedded;
mod man;
mod operator;
mod project;
mod secrets;
mod session;
mod terminal;
mod view;

use std::process::ExitCode;

use app::{App, Done};
use clap::Parser;
use command_error::{Failure, render};
use runbook_core::{Code, Error};
use terminal::Terminal;

fn main() -> ExitCode {
    panic_is_a_message();
    // Fails only when one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    // The lab's daemon and the helpers on hosts are this executable too; they have no terminal and no project.
    let rest = arguments.get(2..).unwrap_or_default();
    match arguments.get(1).map(String::as_str) {
        Some("__lab") => return exit(runbook_lab::lab_main(rest)),
        Some("__helper") => return exit(runbook_primitives::helper_main(rest)),
        _ => {}
    }
    diagnostics();
    let json = arguments.iter().take_while(|a| *a != "--").any(|a| a == "--json");
    match commands::Cli::try_parse_from(&arguments) {
        Ok(cli) => {
            let app = App::new(&cli.global);
            let outcome = cli.command.run(&app);
            finish(&app.term, outcome)
        }
        Err(e) => usage(&Terminal::new(json, true), &e),
    }
}

/// Diagnostics of the engine itself go to stderr, warnings only unless `RUNBOOK_LOG` says `debug` or another level.
///
/// Only our own crates speak: a library may print what it transports, secrets included.
fn diagnostics() {
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::util::SubscriberInitExt as _;
    let level = std::env::var("RUNBOOK_LOG").ok().and_then(|l| l.parse().ok()).unwrap_or(LevelFilter::WARN);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).without_time().with_ansi(false);
    // Fails only when one is installed already.
    let _ = tracing_subscriber::registry().with(lines).with(Targets::new().with_target("runbook", level)).try_init();
}

fn exit(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}

fn finish(term: &Terminal, outcome: Result<Done, Failure>) -> ExitCode {
    match outcome {
        Ok(done) => {
            if term.json {
                if let Some(doc) = done.json {
                    term.out(&format!("{doc}\n"));
                }
            } else {
                term.out(&done.text);
            }
            ExitCode::from(done.exit)
        }
        Err(failure) => {
            if term.json {
                term.out(&format!("{}\n", failure.json()));
            } else {
                term.err(&failure.text(term));
            }
            ExitCode::from(failure.status())
        }
    }
}

/// What clap says: help and version are results, everything else is wrong usage.
fn usage(term: &Terminal, e: &clap::Error) -> ExitCode {
    if !e.use_stderr() {
        let _ = e.print();
        return ExitCode::SUCCESS;
    }
    let text = e.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    if term.json {
        let first = text.lines().next().unwrap_or_default();
        return finish(term, Err(Error::new(Code::USAGE, first).hint("see `runbook --help`").into()));
    }
    term.err(&format!("{}: {text}", term.paint(terminal::Style::Red, &format!("error[{}]", Code::USAGE))));
    ExitCode::from(2)
}

/// A defect shows as an error like any other, in this thread or another one.
fn panic_is_a_message() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let what = text.unwrap_or("no message");
        let place = info.location().map(|l| format!(" ({}:{})", l.file(), l.line())).unwrap_or_default();
        let e = Error::new(Code::INTERNAL, format!("runbook has a defect: {what}{place}"))
            .hint("please report it, with the output of `runbook --version`; a run's record is safe: `runbook show` says where it stands");
        let term = Terminal::new(false, true);
        term.err(&render(&e, &term, None));
        let main = std::thread::current().name() == Some("main");
        if main {
            if std::env::args_os().any(|a| a == "--json") {
                term.out(&format!("{}\n", Failure::from(e).json()));
            }
            std::process::exit(1);
        }
    }));
}
