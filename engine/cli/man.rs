//! The command tree for people: manual pages and the reference page `docs/reference/cli.md`, both from what the parser knows.

#[cfg(test)]
use std::fmt::Write as _;

use clap::{Command, CommandFactory};

use crate::commands::Cli;

/// The whole command tree, built.
pub fn tree() -> Command {
    let mut c = Cli::command();
    c.build();
    c
}

/// The reference page.
#[cfg(test)]
fn reference() -> String {
    let mut out = String::from(
        "# The command line\n\n<!-- Written from the parser; a test keeps it true. RUNBOOK_UPDATE_DOCS=1 cargo test --bin runbook reference -->\n\n\
         Results go to standard output; progress, hints and questions to standard error. With `--json` there is one JSON document on standard\n\
         output, also on failure (JSON lines for `log`, and for `run`, `resume` and `rollback`: the journal's entries as they happen, and after a\n\
         failure a last line with `error`). Colours are left out when the output is no terminal, with `NO_COLOR`, and with `TERM=dumb`. Questions\n\
         are asked on a terminal only. Secrets are never flags.\n\n",
    );
    out.push_str(STATUSES);
    commands(&mut out, &tree(), "runbook");
    out
}

/// The exit statuses, shared by the page and the manual.
pub const STATUSES: &str = "\
| exit | meaning |
|---|---|
| 0 | done |
| 1 | a step failed; the run can be resumed or rolled back |
| 2 | wrong usage |
| 3 | `check` found errors; nothing was touched |
| 4 | a host or service could not be reached before the first write |
| 5 | paused: a gate waits, a sleep is not over, or the operator stopped; resumable |
| 6 | the run was rolled back |
| 7 | another run holds the lock |
| 8 | the audit log does not verify |
| 9 | the run needs an answer to an action in doubt |
| 130 | interrupted; resumable |
";

#[cfg(test)]
fn commands(out: &mut String, c: &Command, path: &str) {
    for sub in c.get_subcommands().filter(|s| !s.is_hide_set() && s.get_name() != "help") {
        let path = format!("{path} {}", sub.get_name());
        let about = sub.get_long_about().or(sub.get_about()).map(ToString::to_string).unwrap_or_default();
        let _ = write!(out, "\n## `{path}`\n\n{about}\n");
        if sub.has_subcommands() {
            commands(out, sub, &path);
            continue;
        }
        let usage = sub.clone().render_usage().to_string();
        let usage = usage.trim_start_matches("Usage: ").trim();
        let _ = write!(out, "\n```\n{usage}\n```\n\n");
        let mut any = false;
        for a in sub.get_arguments().filter(|a| !a.is_hide_set() && a.get_id() != "help") {
            if !any {
                out.push_str("| argument | meaning |\n|---|---|\n");
                any = true;
            }
            let value = a.get_value_names().and_then(|v| v.first()).map(|v| v.to_string()).unwrap_or_default();
            let takes = a.get_action().takes_values();
            let name = match (a.get_short(), a.get_long()) {
                (Some(s), Some(l)) => format!("-{s}, --{l}"),
                (Some(s), None) => format!("-{s}"),
                (None, Some(l)) => format!("--{l}"),
                (None, None) => value.clone(),
            };
            let name = if takes && !a.is_positional() { format!("{name} {value}") } else { name };
            let mut help = a.get_help().map(ToString::to_string).unwrap_or_default();
            let values: Vec<String> = a.get_possible_values().iter().filter(|_| takes).map(|v| format!("`{}`", v.get_name())).collect();
            if !values.is_empty() {
                let _ = write!(help, " ({})", values.join(", "));
            }
            let _ = writeln!(out, "| `{name}` | {} |", help.replace('|', "\\|"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_page_is_what_the_parser_knows() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/cli.md");
        if std::env::var_os("RUNBOOK_UPDATE_DOCS").is_some() {
            std::fs::write(file, reference()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(file).unwrap(), reference(), "run it with RUNBOOK_UPDATE_DOCS=1");
    }

    #[test]
    fn the_command_tree_holds_together() {
        Cli::command().debug_assert();
    }
}
