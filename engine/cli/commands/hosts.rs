//! `runbook hosts`: what is known of the hosts of an environment, whether they let us in, and trusting a host's key.

use std::sync::Arc;

use clap::{Args, Subcommand};
use futures::StreamExt as _;
use runbook_core::cancel::Cancel;
use runbook_core::clock::System;
use runbook_core::inventory::{Environment, Section};
use runbook_core::primitive::{ActionId, Cx, Facts, Progress, Sink, StreamKind};
use runbook_core::{Code, Error, Result, Value};
use runbook_primitives::ssh::reach::{self, Recorded, Shown, Standing};
use serde_json::json;

use crate::app::{App, Done};
use crate::command_error::Failure;
use crate::commands::lab;
use crate::secrets::Secrets;
use crate::terminal::{Style, Terminal, printable};

/// How many hosts are tried at the same time.
const AT_ONCE: usize = 32;

/// Lists the hosts of an environment, with what is known of their keys
#[derive(Debug, Args)]
pub struct Hosts {
    /// The environment; not needed when there is only one
    #[arg(long, value_name = "NAME", global = true)]
    env: Option<String>,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Logs in to each host, all at the same time, and says how or why not
    Check {
        /// Only these hosts
        #[arg(value_name = "HOST")]
        names: Vec<String>,
    },
    /// Shows the key of a host, asks whether it is the right one, and puts it on record
    Trust {
        /// The host's name in runbook.toml
        #[arg(value_name = "HOST")]
        name: String,
        /// Trust without asking, but only a key with this fingerprint: SHA256:…
        #[arg(long, value_name = "FINGERPRINT")]
        fingerprint: Option<String>,
    },
}

impl Hosts {
    pub fn run(self, app: &App) -> Result<Done, Failure> {
        let project = app.project()?;
        let inventory = project.inventory()?;
        let name = app.environment(&inventory, self.env.as_deref())?;
        let runtime = app.runtime()?;
        let declared = inventory.environment(&name, &Default::default(), None)?;
        let env = if declared.embedded {
            let overlay = lab::ready(&project, &inventory, &name, &runtime, &app.term)?;
            inventory.environment(&name, &Default::default(), Some(&overlay))?
        } else {
            declared
        };
        let env = Arc::new(env);
        let all: Vec<String> = env.resources.get(&Section::Hosts).into_iter().flat_map(|m| m.keys().cloned()).collect();
        let cx = || {
            let term = app.term.clone();
            let asker = Box::new(move |question: &str, echo: bool| term.ask_secret(question, echo, || false));
            context(&env, Secrets::new(env.secrets.clone(), project.root.clone()).asking(asker), project.clone())
        };
        // An end in mid-question must not leave a terminal that shows nothing.
        runtime.spawn(async {
            if tokio::signal::ctrl_c().await.is_ok() {
                crate::terminal::restore();
                std::process::exit(130);
            }
        });
        let done = match self.what {
            None => runtime.block_on(list(&cx(), &all)),
            Some(What::Check { names }) => {
                let names = if names.is_empty() { all } else { names };
                for n in &names {
                    env.resource(Section::Hosts, n)?;
                }
                let view = Look { term: &app.term };
                Ok(runtime.block_on(check(&cx(), &names, &view)))
            }
            Some(What::Trust { name, fingerprint }) => {
                let mut done = Done::default();
                // A host on the way whose key is not known comes first.
                for _ in 0..16 {
                    let shown = runtime.block_on(reach::look(&cx(), &name))?;
                    let on_the_way = shown.on_the_way;
                    done = trust(&app.term, &name, &shown, fingerprint.as_deref())?;
                    if !on_the_way {
                        break;
                    }
                    app.term.err(&done.text);
                }
                Ok(done)
            }
        };
        // Connections that are still closing do not keep the process.
        runtime.shutdown_background();
        done
    }
}

/// What a primitive needs around it, outside of a run.
fn context(env: &Arc<Environment>, secrets: Secrets, project: crate::project::Project) -> Cx {
    Cx {
        action_id: ActionId("hosts".into()),
        path: "hosts".into(),
        run: "hosts".into(),
        env: env.clone(),
        cancel: Cancel::default(),
        reached: Arc::default(),
        redactor: Default::default(),
        clock: Arc::new(System),
        shared: Arc::default(),
        secrets: Arc::new(secrets),
        files: Arc::new(project),
        facts: Arc::new(Nothing),
        sink: Arc::new(Nothing),
    }
}

/// Keeps and shows nothing.
struct Nothing;

impl Facts for Nothing {
    fn get(&self, _key: &str) -> Result<Option<Value>> {
        Ok(None)
    }
    fn put(&self, _facts: std::collections::BTreeMap<String, Value>) -> Result<()> {
        Ok(())
    }
}

impl Sink for Nothing {
    fn output(&self, _path: &str, _stream: StreamKind, _bytes: &[u8]) {}
    fn progress(&self, _path: &str, _progress: &Progress) {}
    fn message(&self, _path: &str, _text: &str) {}
}

/// A table with its columns aligned.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let wide = |i: usize| {
        rows.iter().filter_map(|r| r.get(i)).chain([&head.get(i).unwrap_or(&"").to_string()]).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(wide).collect();
    let line = |cells: &[String]| {
        let mut out = String::new();
        for (c, w) in cells.iter().zip(&widths) {
            out.push_str(&format!("{c:w$}  "));
        }
        format!("{}\n", out.trim_end())
    };
    let head: Vec<String> = head.iter().map(ToString::to_string).collect();
    std::iter::once(line(&head)).chain(rows.iter().map(|r| line(r))).collect()
}

fn place(r: &Recorded) -> String {
    let host = if r.port == 22 { r.host.clone() } else { format!("{}:{}", r.host, r.port) };
    if r.via.is_empty() { host } else { format!("{host} by {}", r.via.join(", ")) }
}

async fn list(cx: &Cx, names: &[String]) -> Result<Done, Failure> {
    let (mut rows, mut docs) = (vec![], vec![]);
    for name in names {
        match reach::recorded(cx, name).await {
            Ok(r) => {
                let kinds: Vec<&str> = r.keys.iter().map(|k| k.kind.as_str()).collect();
                let state = match (kinds.as_slice(), r.authorities) {
                    ([], 0) => format!("unknown: runbook hosts trust {name} --env {}", cx.env.name),
                    ([], _) => "by its authority".into(),
                    (kinds, _) => format!("known ({})", kinds.join(", ")),
                };
                rows.push(vec![name.clone(), printable(&place(&r)), printable(&r.user), state]);
                docs.push(json!({
                    "name": name, "host": r.host, "port": r.port, "user": r.user, "via": r.via, "entry": r.entry, "authorities": r.authorities,
                    "keys": r.keys.iter().map(|k| json!({ "type": k.kind, "fingerprint": k.fingerprint })).collect::<Vec<_>>(),
                }));
            }
            Err(e) => {
                rows.push(vec![name.clone(), String::new(), String::new(), format!("{}: {}", e.code, printable(&e.message))]);
                docs.push(json!({ "name": name, "error": e }));
            }
        }
    }
    let text = if rows.is_empty() { "no hosts\n".to_string() } else { table(&["HOST", "ADDRESS", "LOGIN", "KEY"], &rows) };
    Ok(Done::new(text, json!({ "environment": cx.env.name, "hosts": docs })))
}

struct Look<'a> {
    term: &'a Terminal,
}

/// Tries the login of every host; the exit status is 4 when one fails.
async fn check(cx: &Cx, names: &[String], look: &Look<'_>) -> Done {
    let tries = futures::stream::iter(names.iter().cloned().enumerate()).map(|(i, name)| async move {
        let began = std::time::Instant::now();
        let result = reach::try_login(cx, &name).await;
        (i, name, result, began.elapsed())
    });
    let mut all: Vec<_> = tries.buffer_unordered(AT_ONCE).collect().await;
    all.sort_by_key(|(i, ..)| *i);
    let (mut text, mut docs, mut failed) = (String::new(), vec![], 0);
    let wide = names.iter().map(|n| n.chars().count()).max().unwrap_or(0);
    for (_, name, result, took) in &all {
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        match result {
            Ok(by) => {
                text.push_str(&format!("{name:wide$}  {}  by {} ({ms} ms)\n", look.term.paint_out(Style::Green, "in"), printable(by)));
                docs.push(json!({ "name": name, "ok": true, "by": by, "ms": ms }));
            }
            Err(e) => {
                failed += 1;
                text.push_str(&format!("{name:wide$}  {}  {}: {}\n", look.term.paint_out(Style::Red, "no"), e.code, printable(&e.message)));
                for (i, line) in e.hint.iter().flat_map(|h| h.lines()).enumerate() {
                    text.push_str(&format!("{:wide$}      {}{}\n", "", if i == 0 { "help: " } else { "" }, printable(line)));
                }
                docs.push(json!({ "name": name, "ok": false, "error": e, "ms": ms }));
            }
        }
    }
    if names.is_empty() {
        text.push_str("no hosts\n");
    }
    let exit = if failed > 0 { 4 } else { 0 };
    Done { text, json: Some(json!({ "ok": failed == 0, "exit": exit, "environment": cx.env.name, "hosts": docs })), exit }
}

/// Has the key compared, by a person or with the fingerprint that was given, and puts it on record.
fn trust(term: &Terminal, name: &str, shown: &Shown, fingerprint: Option<&str>) -> Result<Done, Failure> {
    let key = format!("{} {}", shown.key.kind, shown.key.fingerprint);
    let doc = |added: bool| {
        json!({
            "host": name, "entry": shown.entry, "type": shown.key.kind, "fingerprint": shown.key.fingerprint, "added": added,
            "file": shown.file.display().to_string(), "line": shown.line,
        })
    };
    let at = shown.at.as_ref().map(|(f, l)| format!("{}:{l}", f.display())).unwrap_or_default();
    match shown.standing {
        Standing::Known => {
            // Saying yes to a wrong fingerprint would be a lie, also when the key is on record.
            matches(shown, name, fingerprint)?;
            return Ok(Done::new(format!("the key of {} is known: {key}\n", shown.entry), doc(false)));
        }
        Standing::Changed => {
            return Err(Error::new(
                Code::SSH_HOST_KEY_CHANGED,
                format!("the key of {} is not the one in {at}: it shows {key}", shown.entry),
            )
            .host(name)
            .hint(format!("no flag takes a changed key. Find out why it changed; only then remove {at} and trust the new key"))
            .into());
        }
        Standing::Revoked => {
            return Err(Error::new(Code::SSH_HOST_KEY_CHANGED, format!("the key of {} is revoked in {at}: {key}", shown.entry))
                .host(name)
                .hint("do not connect: the host, or somebody in its place, uses a key that must no longer be used")
                .into());
        }
        Standing::Unknown => {}
    }
    if !matches(shown, name, fingerprint)? {
        let way = if shown.on_the_way { format!(", on the way to {name},") } else { String::new() };
        let mut text = format!("{}{way} shows this key:\n  {}\n", term.paint(Style::Bold, &shown.entry), term.paint(Style::Yellow, &key));
        for o in &shown.others {
            text.push_str(&format!("  on record is also {} {}\n", o.kind, o.fingerprint));
        }
        text.push_str("compare it on the host itself: ssh-keygen -lf /etc/ssh/ssh_host_…_key.pub\n");
        if !term.can_ask() {
            return Err(Error::new(
                Code::SSH_HOST_KEY_UNKNOWN,
                format!("the key of {} is not known, and nobody can be asked: {key}", shown.entry),
            )
            .host(name)
            .hint(format!("when it is the right one: runbook hosts trust {name} --fingerprint {}", shown.key.fingerprint))
            .into());
        }
        term.err(&text);
        let answer = term.ask(&format!("Is it the key of {}? [yes/no, or its fingerprint] ", shown.entry)).unwrap_or_default();
        if !answer.eq_ignore_ascii_case("yes") && answer != shown.key.fingerprint {
            return Err(Error::new(Code::SSH_HOST_KEY_UNKNOWN, format!("the key of {} was not trusted", shown.entry))
                .host(name)
                .hint("nothing was written; compare the fingerprints and try again")
                .into());
        }
    }
    shown.trust()?;
    Ok(Done::new(format!("{} is trusted with {key}, in {}\n", shown.entry, shown.file.display()), doc(true)))
}

/// Whether the key has the fingerprint that was given; an error when it has another, `false` when none was given.
fn matches(shown: &Shown, name: &str, given: Option<&str>) -> Result<bool> {
    let Some(given) = given else { return Ok(false) };
    let plain = |f: &str| f.trim().trim_start_matches("SHA256:").trim_end_matches('=').to_string();
    if plain(given) == plain(&shown.key.fingerprint) {
        return Ok(true);
    }
    Err(Error::new(
        Code::SSH_HOST_KEY_FINGERPRINT,
        format!("{} shows the {} key {}, and not {}", shown.entry, shown.key.kind, shown.key.fingerprint, printable(given)),
    )
    .host(name)
    .hint("get the fingerprint of this type of key on the host itself; if that is the one you gave, somebody stands in between"))
}
