//! `runbook log`: a run's entries as text or as JSON lines, also while it goes on.

use std::time::Duration;

use clap::Args;
use runbook_core::journal::{Body, line};

use crate::app::{App, Done};
use crate::command_error::Failure;
use crate::view::host::OfHost;
use crate::view::lines::describe;

/// Prints the log of a run
#[derive(Debug, Args)]
pub struct Log {
    /// The run's id or the beginning of it; the newest unless given
    #[arg(value_name = "RUN")]
    run: Option<String>,
    /// Only what happened on this host
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Go on printing until the run's controller has ended
    #[arg(short, long)]
    follow: bool,
    /// Print all that a command printed, to standard output and standard error: the path of its action or of its step, or the end of it
    #[arg(long, value_name = "PATH", conflicts_with = "follow")]
    output: Option<String>,
}

impl Log {
    pub fn run(self, app: &App) -> Result<Done, Failure> {
        let project = app.project()?;
        let (store, info) = app.run(&project, self.run.as_deref())?;
        if let Some(path) = &self.output {
            return super::output::print(app, &project, &store, &info.id, path);
        }
        let mut next = 0;
        let mut of = self.host.as_deref().map(OfHost::new);
        loop {
            let mut ended = false;
            let mut text = String::new();
            store.entries(&info.id, next, &mut |entry| {
                next = entry.seq + 1;
                let body = entry.body()?;
                let wanted = of.as_mut().is_none_or(|of| of.path(&body).is_some());
                if wanted && app.term.json {
                    text.push_str(&line(&entry)?);
                    text.push('\n');
                } else if wanted {
                    text.push_str(&describe(&body).render(entry.time.parse().unwrap_or_default()));
                }
                ended = matches!(body, Body::SessionEnded { .. });
                // A long log is not gathered in memory.
                if text.len() > 1 << 16 {
                    app.term.out(&std::mem::take(&mut text));
                }
                Ok(())
            })?;
            app.term.out(&text);
            if !self.follow || ended {
                return Ok(Done::default());
            }
            std::thread::sleep(Duration::from_millis(300));
            if next > 0 && !self.goes_on(&store, &info.environment, &info.id)? {
                // Its controller died: what it had written last has been printed or is printed by the round that follows.
                let mut more = false;
                store.entries(&info.id, next, &mut |_| {
                    more = true;
                    Ok(())
                })?;
                if !more {
                    return Ok(Done::default());
                }
            }
        }
    }

    fn goes_on(&self, store: &std::sync::Arc<dyn runbook_core::journal::Store>, environment: &str, run: &str) -> Result<bool, Failure> {
        use runbook_core::exec::Liveness;
        let holder = store.holder(environment)?.filter(|h| h.run == run);
        Ok(holder.is_some_and(|h| crate::operator::alive(&h.operator) != Liveness::Dead))
    }
}
