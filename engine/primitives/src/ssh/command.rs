//! `run`, `try_run`, `read` and `converge`: commands on a host.

use std::sync::Arc;

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Reconciled, Registry, StreamKind};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::{Code, Error, Record, Result, Value};

use super::exec::spill::{keep, refer};
use super::exec::tail;
use super::{Done, Exec, Kept, connect, quote, reconcile_supervised, supervised};

pub(super) fn register(r: &mut Registry) {
    r.add_type(
        TypeSpec::new("Output", "What a command left.")
            .field("stdout", Ty::Str, "Standard output.")
            .field("stderr", Ty::Str, "Standard error.")
            .field("status", Ty::Int, "Exit status; 128 + n when signal n ended it.")
            .field("ok", Ty::Bool, "Whether the status is 0.")
            .field("lines", Ty::List(Box::new(Ty::Str)), "The lines of standard output.")
            .field("cut", Ty::Bool, "Whether `stdout` or `stderr` is not all that came: a stream is longer than 256 KiB, or is not text.")
            .field(
                "whole",
                Ty::Map(Box::new(Ty::Record("KeptOutput"))),
                "By `stdout` and `stderr`: the files of the streams that are not all here.",
            ),
    );
    r.add_type(
        TypeSpec::new(
            "KeptOutput",
            "A file beside the run's record that holds all of a stream; `runbook log RUN --output PATH` prints it.",
        )
        .field("bytes", Ty::Int, "How many bytes came.")
        .field("kept", Ty::Int, "How many of them the file holds: all, or the first 1 GiB.")
        .field("file", Ty::Str, "The file, relative to the project.")
        .field("sha256", Ty::Str, "SHA-256 of the file, in hex."),
    );
    for kind in [Kind::Run, Kind::TryRun, Kind::Read, Kind::Converge] {
        r.add(Command::new(kind));
    }
}

/// `Host.run`, for other families that have a host do something exactly once.
pub(crate) fn run_once() -> Arc<dyn Primitive> {
    Arc::new(Command::new(Kind::Run))
}

/// What a finished command means for a script: its output as a value, or its failure. `shown` is the command, for messages.
///
/// # Errors
/// `RB0310` when its status is not 0.
pub(crate) fn outcome_of(cx: &Cx, host: &str, shown: &str, done: &Done) -> Result<Outcome> {
    Command::new(Kind::Run).finish(cx, host, shown, done)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Run,
    TryRun,
    Read,
    Converge,
}

/// One of the four ways to run a command.
struct Command {
    kind: Kind,
    spec: Spec,
}

const PATHS: &str = "\n\nPaths are relative to the login's home folder. `~` is expanded by the shell only outside quotes, and not in an \
                     array of words. A text goes to the host's `sh` as it is; the words of an array need no quoting.";

impl Command {
    fn new(kind: Kind) -> Self {
        let (name, effect, doc, example) = match kind {
            Kind::Run => (
                "run",
                Effect::Once,
                "Runs a command exactly once. It survives the loss of the connection and of the controller; a status other than 0 is an error.",
                r#"host("new").run("apt-get install -y nginx", #{ sudo: true, timeout: "10m" });"#,
            ),
            Kind::TryRun => (
                "try_run",
                Effect::Once,
                "Runs a command exactly once and gives its status as a value, whatever it is.",
                r#"if !host("new").try_run(["test", "-e", "/etc/shop.conf"]).ok { log("no configuration yet"); }"#,
            ),
            Kind::Read => (
                "read",
                Effect::Read,
                "Runs a command that only looks and may be repeated; a status other than 0 is an error.",
                r#"let release = host("old").read("cat /etc/debian_version").stdout;"#,
            ),
            Kind::Converge => (
                "converge",
                Effect::Converge,
                "Runs a command that brings about a state and is safe to repeat; a status other than 0 is an error.",
                r#"host("new").converge("adduser --system shop", #{ unless: "id shop", sudo: true });"#,
            ),
        };
        // One text a kind, made once for the life of the process.
        let doc: &'static str = Box::leak(format!("{doc}{PATHS}").into_boxed_str());
        let text = || Ty::OneOf(vec![Ty::Str, Ty::Secret]);
        let mut spec = Spec::method("Host", name, effect, doc)
            .arg("command", Ty::OneOf(vec![Ty::Str, Ty::List(Box::new(Ty::Str))]), "A text for the shell, or an array of words.")
            .option("sudo", super::privilege::ty(), "Run it with raised privileges: `true` for root, or the name of a user.")
            .option(
                "tty",
                Ty::Bool,
                "Run it on a terminal: `stdout` then has both outputs, as a terminal shows them, and there is no `stdin`.",
            )
            .option("cwd", Ty::Str, "The folder to run it in; relative to the home folder.")
            .option("env", Ty::Map(Box::new(text())), "Environment variables; secrets do not show in `ps` on the host.")
            .option("stdin", Ty::OneOf(vec![Ty::Str, Ty::Blob, Ty::Secret]), "What it reads on standard input.")
            .option("timeout", Ty::Duration, "How long it may take before it and everything it started is ended; no limit when not given.");
        if kind == Kind::Converge {
            spec = spec.option("unless", Ty::Str, "A test command: when it ends with status 0, there is nothing to do.").option(
                "creates",
                Ty::Str,
                "A path: when it exists, there is nothing to do.",
            );
        }
        let errors: &'static [Code] = match kind {
            Kind::TryRun => &[Code::COMMAND_DOUBT, Code::COMMAND_TIMEOUT, Code::COMMAND_BAD, Code::SUDO, Code::SUPERVISOR],
            Kind::Run => {
                &[Code::COMMAND_FAILED, Code::COMMAND_DOUBT, Code::COMMAND_TIMEOUT, Code::COMMAND_BAD, Code::SUDO, Code::SUPERVISOR]
            }
            _ => &[Code::COMMAND_FAILED, Code::COMMAND_TIMEOUT, Code::COMMAND_BAD, Code::SUDO, Code::SSH_LOST],
        };
        Command { kind, spec: spec.returns(Ty::Record("Output")).example(example).errors(errors) }
    }

    fn finish(&self, cx: &Cx, host: &str, shown: &str, done: &Done) -> Result<Outcome> {
        let whole = whole(cx, done, self.kind != Kind::TryRun && done.status != 0);
        let value = if self.kind == Kind::TryRun { output(done, &whole) } else { succeeded(host, shown, done, &whole)? };
        let mut outcome = if self.kind == Kind::Read { Outcome::from(value) } else { Outcome::changed(value) };
        if !whole.is_empty() {
            outcome.note = Some(whole.iter().map(Kept::note).collect::<Vec<_>>().join("; "));
        }
        Ok(outcome)
    }
}

/// The command of a call as shell text.
fn script(command: &Value) -> Result<String> {
    let text = match command {
        Value::List(words) => {
            let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
            if words.first().is_some_and(|w| w.is_empty()) {
                return Err(
                    Error::new(Code::COMMAND_BAD, "the first word of the command is empty").hint("the first word is the program to run")
                );
            }
            words.into_iter().map(quote).collect::<Vec<_>>().join(" ")
        }
        other => other.as_str().unwrap_or("").to_string(),
    };
    if text.trim().is_empty() {
        return Err(Error::new(Code::COMMAND_BAD, "the command is empty").hint("give the text of a command, or an array of words"));
    }
    Ok(text)
}

/// Takes the options that all commands have. Secrets among them are struck from now on.
pub(super) fn exec(cx: &Cx, call: &Call, script: String) -> Exec {
    let reveal = |v: &Value| match v {
        Value::Secret(s) => {
            cx.redactor.add(s.reveal());
            s.reveal().as_bytes().to_vec()
        }
        Value::Blob(b) => b.clone(),
        other => other.as_str().unwrap_or("").as_bytes().to_vec(),
    };
    let (sudo, user) = super::privilege::wanted(call);
    let env = call.opt("env").and_then(Value::as_map).into_iter().flatten();
    Exec {
        script,
        stdin: call.opt("stdin").map(reveal),
        env: env.map(|(k, v)| (k.clone(), String::from_utf8_lossy(&reveal(v)).into_owned())).collect(),
        cwd: call.opt_str("cwd").map(str::to_string),
        sudo,
        user,
        tty: call.opt_bool("tty"),
        live: true,
        whole: true,
        timeout: call.opt_duration("timeout"),
    }
}

/// The files of the streams that a value cannot hold, or an error's text: what is long, what is no text.
fn whole(cx: &Cx, done: &Done, failed: bool) -> Vec<Kept> {
    let each = [(StreamKind::Stdout, &done.stdout), (StreamKind::Stderr, &done.stderr)];
    each.into_iter()
        .filter_map(|(kind, bytes)| {
            let kept = done.whole.iter().find(|k| k.stream == kind).cloned();
            let needed = || std::str::from_utf8(bytes).is_err() || failed && tail(bytes).len() < bytes.trim_ascii_end().len();
            kept.or_else(|| needed().then(|| keep(cx, kind, bytes)))
        })
        .collect()
}

/// A finished command as the script sees it.
fn output(done: &Done, whole: &[Kept]) -> Value {
    let stdout = String::from_utf8_lossy(&done.stdout).into_owned();
    let lines: Vec<Value> = stdout.lines().map(Value::from).collect();
    let files = whole.iter().map(|k| (if k.stream == StreamKind::Stdout { "stdout" } else { "stderr" }.to_string(), k.value()));
    Value::from(Record::new(
        "Output",
        [
            ("stdout", Value::from(stdout)),
            ("stderr", Value::from(String::from_utf8_lossy(&done.stderr).into_owned())),
            ("status", Value::from(done.status)),
            ("ok", Value::from(done.status == 0)),
            ("lines", Value::from(lines)),
            ("cut", Value::from(!whole.is_empty())),
            ("whole", Value::Map(files.collect())),
        ],
    ))
}

fn succeeded(host: &str, shown: &str, done: &Done, whole: &[Kept]) -> Result<Value> {
    if done.status == 0 {
        return Ok(output(done, whole));
    }
    let short: String = shown.lines().next().unwrap_or("").chars().take(80).collect();
    let said = if done.stderr.is_empty() { tail(&done.stdout) } else { tail(&done.stderr) };
    let last = said.lines().next_back().unwrap_or("").trim();
    let about = if last.is_empty() { String::new() } else { format!(": {last}") };
    let hint = match done.status {
        126 => "the working folder or the program cannot be used by this login",
        127 => "the program is not there: check its name, and PATH in a non-interactive shell of the host",
        s if s > 128 => "it was ended by a signal",
        _ => "its output above says why; when such a status is expected, use try_run",
    };
    let e = Error::new(Code::COMMAND_FAILED, format!("`{short}` ended with status {}{about}", done.status))
        .host(host)
        .hint(hint)
        .detail("status", done.status)
        .detail("stderr", said);
    Err(refer(e, whole))
}

#[async_trait]
impl Primitive for Command {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let host = call.target();
        let text = script(call.arg(0))?;
        let exec = exec(cx, call, text.clone());
        match self.kind {
            Kind::Run | Kind::TryRun => {
                let done = supervised(cx, host, exec).await?;
                self.finish(cx, host, &text, &done)
            }
            Kind::Read => {
                let done = connect(cx, host).await?.exec_again(cx, Exec { live: false, ..exec }).await?;
                self.finish(cx, host, &text, &done)
            }
            Kind::Converge => {
                let session = connect(cx, host).await?;
                let empty = || output(&Done::default(), &[]);
                let test = |script: String| Exec { script, stdin: None, live: false, whole: false, ..exec.clone() };
                if let Some(path) = call.opt_str("creates")
                    && session.exec_again(cx, test(format!("test -e {}", quote(path)))).await?.status == 0
                {
                    return Ok(Outcome::unchanged(empty(), format!("{path} exists")));
                }
                if let Some(command) = call.opt_str("unless")
                    && session.exec_again(cx, test(command.to_string())).await?.status == 0
                {
                    return Ok(Outcome::unchanged(empty(), format!("`{command}` says that there is nothing to do")));
                }
                let done = session.exec_again(cx, exec.clone()).await?;
                self.finish(cx, host, &text, &done)
            }
        }
    }

    async fn reconcile(&self, cx: &Cx, call: &Call) -> Result<Reconciled> {
        match self.kind {
            Kind::Read | Kind::Converge => Ok(Reconciled::NotStarted),
            Kind::Run | Kind::TryRun => {
                let (host, text) = (call.target(), script(call.arg(0))?);
                // The secrets of the options must be known before the output is read again.
                let _ = exec(cx, call, String::new());
                reconcile_supervised(cx, host, true, &|done| self.finish(cx, host, &text, &done)).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_and_texts_are_not() {
        let words = Value::List(vec!["echo".into(), "a b".into(), "$HOME".into(), "".into()]);
        assert_eq!(script(&words).unwrap(), "echo 'a b' '$HOME' ''");
        assert_eq!(script(&"echo $HOME".into()).unwrap(), "echo $HOME");
        for bad in [Value::List(vec![]), "".into(), "  \n".into(), Value::List(vec!["".into(), "x".into()])] {
            assert_eq!(script(&bad).unwrap_err().code, Code::COMMAND_BAD);
        }
    }

    #[test]
    fn a_failure_says_what_the_command_said_last() {
        let done = Done { status: 3, stdout: b"out".to_vec(), stderr: b"first\nno space left\n".to_vec(), ..Done::default() };
        let e = succeeded("old", "make install\nmore", &done, &[]).unwrap_err();
        assert_eq!(e.to_string(), "RB0310: `make install` ended with status 3: no space left (host old)");
        assert_eq!(e.details.get("stderr").map(String::as_str), Some("first\nno space left"));
    }
}
