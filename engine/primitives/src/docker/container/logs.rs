//! `Container.logs`: what a container has written.

use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptions;
use futures::{FutureExt as _, StreamExt as _};
use runbook_core::primitive::{Cx, Outcome, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::{Code, Error, Result};

use crate::docker::acts::acting;
use crate::docker::engine::Engine;
use crate::docker::things::name;

/// As many bytes at most are given to a script.
const LIMIT: usize = 256 << 10;

pub(super) fn register(r: &mut Registry) {
    r.add(acting(
        Spec::method("Container", "logs", Effect::Read, "Gives what the container has written last, both outputs in one; 256 KiB at most.")
            .option("tail", Ty::Int, "How many lines; 100 when not given.")
            .option("since", Ty::Duration, "Only what it wrote in the last so long.")
            .returns(Ty::Str)
            .example(r#"if docker("new").container("shop").logs(#{ tail: 50 }).contains("error") { throw "look at it"; }"#)
            .errors(&[Code::DOCKER, Code::DOCKER_MISSING, Code::DOCKER_CONNECT, Code::SSH_CONNECT]),
        |cx, e, call| logs(cx, e, call).boxed(),
    ));
}

/// The last lines of a container.
pub(super) async fn last_lines(engine: &Engine, name: &str, lines: i64) -> Result<String> {
    read(engine, name, lines, 0).await
}

async fn read(engine: &Engine, name: &str, lines: i64, since: i32) -> Result<String> {
    let options = LogsOptions { stdout: true, stderr: true, tail: lines.to_string(), since, ..Default::default() };
    let mut all = engine.api.logs(name, Some(options));
    let collect = async {
        let mut text = Vec::new();
        while let Some(piece) = all.next().await {
            let (LogOutput::StdErr { message }
            | LogOutput::StdOut { message }
            | LogOutput::StdIn { message }
            | LogOutput::Console { message }) = piece?;
            text.extend_from_slice(&message);
            // The end is what counts.
            if text.len() > 2 * LIMIT {
                text.drain(..text.len() - LIMIT);
            }
        }
        Ok(text)
    };
    let text = engine.ask(&format!("reading what {name} on \"{}\" wrote", engine.name), collect).await?;
    let from = text.len().saturating_sub(LIMIT);
    Ok(String::from_utf8_lossy(text.get(from..).unwrap_or_default()).into_owned())
}

async fn logs(cx: &Cx, engine: &Engine, call: &Call) -> Result<Outcome> {
    let tail = call.opt_int("tail").unwrap_or(100);
    if tail < 0 {
        return Err(Error::new(Code::WRONG_TYPE, format!("`tail` is a number of lines, and {tail} is none")));
    }
    let since = call.opt_duration("since").map_or(0, |d| cx.clock.now().as_second() - i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
    let text = read(engine, name(call), tail, i32::try_from(since.max(0)).unwrap_or(i32::MAX)).await?;
    Ok(cx.redactor.text(&text).into())
}
