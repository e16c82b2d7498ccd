//! `runbook log --output`: all that a command printed, from the record or from the file beside it.

use std::io::{Read as _, Write};
use std::path::Path;
use std::sync::Arc;

use runbook_core::journal::{Body, Store};
use runbook_core::{Code, Error, Result};
use serde_json::{Value as Json, json};

use crate::app::{App, Done};
use crate::command_error::Failure;
use crate::project::Project;
use crate::view::tree::readable;

/// What the record says of an action's output.
#[derive(Debug, Clone, PartialEq)]
struct Found {
    path: String,
    streams: [Source; 2],
}

/// Where a stream is.
#[derive(Debug, Clone, PartialEq)]
enum Source {
    /// In the record.
    Text(String),
    /// In a file beside it, with its SHA-256 when that is on record.
    File(String, Option<String>),
}

const STREAMS: [&str; 2] = ["stdout", "stderr"];

/// The output that an outcome has or names; `None` when it is not that of a command.
fn found(body: &Body) -> Option<Found> {
    let Body::Outcome { path, value, error, .. } = body else { return None };
    let streams = if let Some(e) = error {
        let has = |s: &str| e.details.contains_key(&format!("{s}_file")) || e.details.contains_key(s);
        STREAMS.iter().any(|s| has(s)).then_some(())?;
        STREAMS.map(|s| match e.details.get(&format!("{s}_file")) {
            Some(file) => Source::File(file.clone(), None),
            None => Source::Text(e.details.get(s).cloned().unwrap_or_default()),
        })
    } else {
        let v = value.as_ref().filter(|v| v.get("$").and_then(Json::as_str) == Some("Output"))?.get("v")?;
        STREAMS.map(|s| {
            let file = v.pointer(&format!("/whole/{s}/v"));
            let text = |of: Option<&Json>, key: &str| of.and_then(|v| v.get(key)).and_then(Json::as_str).map(str::to_string);
            match text(file, "file") {
                Some(f) => Source::File(f, text(file, "sha256")),
                None => Source::Text(text(Some(v), s).unwrap_or_default()),
            }
        })
    };
    Some(Found { path: path.clone(), streams })
}

/// Whether what the operator typed means this action: its path, the path of a step around it, or the end of one of these.
fn means(typed: &str, path: &str) -> bool {
    let step = path.rsplit_once("/#").map_or(path, |(s, _)| s);
    let shown = readable(path);
    [path, step].iter().any(|p| *p == typed || p.ends_with(&format!("/{typed}")))
        || shown == typed
        || shown.ends_with(&format!(" / {typed}"))
}

/// Prints the output of the one action that is meant.
pub fn print(app: &App, project: &Project, store: &Arc<dyn Store>, run: &str, typed: &str) -> Result<Done, Failure> {
    let mut all: Vec<Found> = vec![];
    store.entries(run, 0, &mut |entry| {
        if let Some(f) = found(&entry.body()?).filter(|f| means(typed, &f.path)) {
            // A later outcome of the same action is the one that counts.
            all.retain(|a| a.path != f.path);
            all.push(f);
        }
        Ok(())
    })?;
    let one = match all.as_slice() {
        [one] => one,
        [] => {
            return Err(Error::new(Code::USAGE, format!("no command of run {run} has the path \"{typed}\""))
                .hint(format!("`runbook log {run} --json` shows the path of every outcome"))
                .into());
        }
        several => {
            let list: Vec<&str> = several.iter().map(|f| f.path.as_str()).collect();
            return Err(Error::new(Code::USAGE, format!("\"{typed}\" means {} commands: {}", list.len(), list.join(", ")))
                .hint("give one of these paths")
                .into());
        }
    };
    if app.term.json {
        let stream = |s: &Source| match s {
            Source::Text(t) => json!({ "text": t }),
            Source::File(f, sum) => json!({ "file": f, "sha256": sum, "there": project.root.join(f).is_file() }),
        };
        return Ok(Done::new("", json!({ "path": one.path, "stdout": stream(&one.streams[0]), "stderr": stream(&one.streams[1]) })));
    }
    copy(&project.root, &one.streams[0], &mut std::io::stdout().lock())?;
    copy(&project.root, &one.streams[1], &mut std::io::stderr().lock())?;
    Ok(Done::default())
}

fn copy(root: &Path, source: &Source, to: &mut dyn Write) -> Result<()> {
    let (file, sum) = match source {
        Source::Text(t) => {
            // Whoever reads may have seen enough.
            let _ = to.write_all(t.as_bytes());
            return Ok(());
        }
        Source::File(f, sum) => (f, sum),
    };
    let gone = |e: std::io::Error| {
        Error::new(Code::MISSING_FILE, format!("the output was kept in {file}, which cannot be read: {e}"))
            .hint("the record still has its beginning and its SHA-256; the file may lie on the machine that ran the controller")
    };
    let mut f = std::fs::File::open(root.join(file)).map_err(gone)?;
    let mut hash = runbook_core::digest::Sha256Hex::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = f.read(&mut buffer).map_err(gone)?;
        if n == 0 {
            break;
        }
        let piece = buffer.get(..n).unwrap_or_default();
        hash.update(piece);
        if to.write_all(piece).is_err() {
            return Ok(());
        }
    }
    let _ = to.flush();
    match sum {
        Some(sum) if *sum != hash.finish() => {
            Err(Error::new(Code::AUDIT_INVALID, format!("{file} is not what the record says: its SHA-256 should be {sum}"))
                .hint("the file was changed after the command had ended"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_may_be_cut_at_its_front_and_name_the_step() {
        let path = "Prepare/Copy a%2Fb/#0";
        for typed in [path, "Prepare/Copy a%2Fb", "Copy a%2Fb", "Copy a%2Fb/#0", "#0", "Copy a/b", "Prepare / Copy a/b"] {
            assert!(means(typed, path), "{typed}");
        }
        for typed in ["Prepare", "opy a%2Fb", "#1", ""] {
            assert!(!means(typed, path), "{typed}");
        }
    }
}
