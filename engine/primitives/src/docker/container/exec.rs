//! `Container.exec`: a command in a container, exactly once: `docker exec` on the engine's host, under the supervisor.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Reconciled, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::{Code, Error, Record, Result, Value};

use crate::docker::engine::Engine;
use crate::docker::things::name;
use crate::ssh::run_once;

pub(super) fn register(r: &mut Registry) {
    let text = || Ty::OneOf(vec![Ty::Str, Ty::Secret]);
    let spec = Spec::method(
        "Container",
        "exec",
        Effect::Once,
        "Runs a command in the container exactly once; a status other than 0 is an error.\n\nIt goes through `docker exec` on the engine's host, \
         under the supervisor, and so survives the loss of the connection and of the controller. The engine must be that of a host of the inventory.",
    )
    .arg("command", Ty::OneOf(vec![Ty::Str, Ty::List(Box::new(Ty::Str))]), "A text for the container's `sh`, or an array of words.")
    .option("user", Ty::Str, "As whom; the container's own user when not given.")
    .option("cwd", Ty::Str, "The folder to run it in.")
    .option("env", Ty::Map(Box::new(text())), "Environment variables; secrets do not show in `ps` on the host.")
    .option("stdin", Ty::OneOf(vec![Ty::Str, Ty::Blob, Ty::Secret]), "What it reads on standard input.")
    .returns(Ty::Record("Output"))
    .example(r#"docker("new").container("shop").exec(["php", "artisan", "migrate", "--force"]);"#)
    .errors(&[Code::COMMAND_FAILED, Code::COMMAND_DOUBT, Code::COMMAND_BAD, Code::HOST_TOOL_MISSING, Code::SUPERVISOR]);
    r.add(InContainer { spec, run: run_once() });
}

struct InContainer {
    spec: Spec,
    run: Arc<dyn Primitive>,
}

impl InContainer {
    /// The command on the host that does it.
    async fn on_host(&self, cx: &Cx, call: &Call) -> Result<Call> {
        let engine = Engine::on(cx, call).await?;
        let host = engine.host.as_deref().ok_or_else(|| {
            Error::new(Code::COMMAND_BAD, format!("\"{}\" is reached without a host, and exec needs one", engine.name))
                .hint("give the engine host = \"…\" in runbook.toml")
        })?;
        let mut words: Vec<Value> = ["docker", "-H"].map(Value::from).into();
        words.push(format!("unix://{}", engine.socket).into());
        words.extend(["exec".into(), "-i".into()]);
        for (flag, option) in [("--user", "user"), ("--workdir", "cwd")] {
            if let Some(v) = call.opt_str(option) {
                words.extend([flag.into(), v.into()]);
            }
        }
        // By name alone: docker takes the value from its own environment.
        for key in call.opt("env").and_then(Value::as_map).into_iter().flatten().map(|(k, _)| k) {
            words.extend(["--env".into(), key.as_str().into()]);
        }
        words.push(name(call).into());
        match call.arg(0) {
            Value::List(all) => words.extend(all.iter().cloned()),
            text => words.extend(["sh".into(), "-c".into(), text.clone()]),
        }
        let mut options: BTreeMap<String, Value> =
            ["env", "stdin"].into_iter().filter_map(|k| Some((k.to_string(), call.opt(k)?.clone()))).collect();
        if engine.sudo {
            options.insert("sudo".into(), true.into());
        }
        Ok(Call { receiver: Some(Record::handle("Host", host, BTreeMap::new())), args: vec![Value::List(words)], options })
    }
}

#[async_trait]
impl Primitive for InContainer {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        self.run.act(cx, &self.on_host(cx, call).await?).await
    }

    async fn reconcile(&self, cx: &Cx, call: &Call) -> Result<Reconciled> {
        self.run.reconcile(cx, &self.on_host(cx, call).await?).await
    }
}
