//! The functions that belong to the engine itself: parameters, secrets, log, time; and the parts of Rhai that are taken away.

use std::sync::Arc;

use rhai::{Dynamic, Engine, EvalAltResult, ImmutableString, NativeCallContext};
use runbook_core::{Code, Error, Result, Ty, Value};

use crate::bind::{ANY, frame_of, located, run_of};
use crate::convert::{to_dynamic, to_value};
use crate::engine::Host;

type Res<T> = std::result::Result<T, Box<EvalAltResult>>;

/// What these functions are, for documentation and completion: name, signature, text.
pub const DOCS: &[(&str, &str, &str)] = &[
    (
        "param",
        "param(name: string, default?: any) -> any",
        "Returns a parameter of the run: given on the command line, else of the environment, else of the project, else the default. The value \
         has the default's type.",
    ),
    (
        "secret",
        "secret(name: string) -> Secret",
        "Returns a secret by its name in the inventory. It cannot be printed and is struck from all output.",
    ),
    ("log", "log(message: any)", "Writes a line to the run's log, once: it is not written again when the run is resumed."),
    ("warn", "warn(message: any)", "Writes a warning to the run's log, once."),
    ("sleep", "sleep(how_long: Duration)", "Waits. The end is fixed when the sleep begins, also when the controller dies meanwhile."),
    ("duration", "duration(text: string) -> Duration", "Makes a span of time from text such as \"2h30m\"."),
    ("bytes", "bytes(text: string) -> Bytes", "Makes an amount of data from text such as \"64MiB\"."),
    ("environment", "environment() -> string", "Returns the name of the environment of the run."),
    ("run_id", "run_id() -> string", "Returns the id of the run."),
];

/// Adds them to the engine.
pub fn register(e: &mut Engine, host: &Arc<Host>) {
    let h = host.clone();
    e.register_fn("param", move |ctx: NativeCallContext, name: ImmutableString| param(&ctx, &h, &name, None));
    let h = host.clone();
    e.register_raw_fn("param", [std::any::TypeId::of::<ImmutableString>(), ANY()], move |ctx, args| {
        let name = args.first().map(|a| a.to_string()).unwrap_or_default();
        let default = args.get(1).map(|a| (**a).clone()).unwrap_or_default();
        param(&ctx, &h, &name, Some(default))
    });
    let h = host.clone();
    e.register_fn("secret", move |ctx: NativeCallContext, name: ImmutableString| -> Res<Dynamic> {
        run_of(&h).and_then(|run| run.secret(&name)).map(Dynamic::from).map_err(|e| located(&ctx, e))
    });
    for (word, level) in [("log", "info"), ("warn", "warn")] {
        let h = host.clone();
        e.register_raw_fn(word, [ANY()], move |ctx, args| {
            let text = args.first().map(|a| text(&ctx, a)).unwrap_or_default();
            let done = run_of(&h).and_then(|run| run.log(&*frame_of(ctx.tag())?, level, &text));
            done.map_err(|e| located(&ctx, e))
        });
    }
    // Rhai's own sleep takes numbers and blocks; the durable one takes a duration.
    let h = host.clone();
    e.register_raw_fn("sleep", [ANY()], move |ctx, args| sleep(&ctx, &h, args.first().map(|a| (**a).clone()).unwrap_or_default()));
    e.register_fn("sleep", |ctx: NativeCallContext, _: i64| bad_sleep(&ctx));
    e.register_fn("sleep", |ctx: NativeCallContext, _: f64| bad_sleep(&ctx));
    e.register_fn("exit", |ctx: NativeCallContext| no_exit(&ctx));
    e.register_raw_fn("exit", [ANY()], |ctx, _| no_exit(&ctx));
    let h = host.clone();
    e.register_fn("environment", move |ctx: NativeCallContext| -> Res<String> {
        run_of(&h).map(|r| r.env().name.clone()).map_err(|e| located(&ctx, e))
    });
    let h = host.clone();
    e.register_fn("run_id", move |ctx: NativeCallContext| -> Res<String> {
        run_of(&h).map(|r| r.id().to_string()).map_err(|e| located(&ctx, e))
    });
    let h = host.clone();
    e.on_print(move |text| {
        if let Ok(run) = run_of(&h) {
            run.notice(text);
        }
    });
}

/// A value as the language shows it.
fn text(ctx: &NativeCallContext<'_>, d: &Dynamic) -> String {
    ctx.call_native_fn::<ImmutableString>("to_string", (d.clone(),)).map_or_else(|_| d.to_string(), |s| s.to_string())
}

fn bad_sleep(ctx: &NativeCallContext<'_>) -> Res<()> {
    let e = Error::new(Code::WRONG_TYPE, "sleep wants a duration, not a number").hint("write sleep(\"10s\")");
    Err(located(ctx, e))
}

fn no_exit(ctx: &NativeCallContext<'_>) -> Res<Dynamic> {
    let e = Error::new(Code::BAD_WORD, "a runbook does not exit in its middle").hint("throw an error to stop, or put the rest into an if");
    Err(located(ctx, e))
}

fn sleep(ctx: &NativeCallContext<'_>, host: &Arc<Host>, d: Dynamic) -> Res<()> {
    let go = || -> Result<()> {
        let Value::Duration(d) = Ty::Duration.coerce(to_value(d)?)? else { return Ok(()) };
        run_of(host)?.sleep(&*frame_of(ctx.tag())?, d)
    };
    go().map_err(|e| located(ctx, e))
}

fn param(ctx: &NativeCallContext<'_>, host: &Arc<Host>, name: &str, default: Option<Dynamic>) -> Res<Dynamic> {
    let go = || -> Result<Value> {
        let run = run_of(host)?;
        let found = run.env().params.get(name).cloned();
        let default = default.map(to_value).transpose()?;
        match (found, default) {
            (Some(v), None) => Ok(v),
            (Some(v), Some(d)) => typed(name, v, &d),
            (None, Some(d)) => Ok(d),
            (None, None) => Err(Error::new(Code::MISSING_PARAM, format!("parameter \"{name}\" has no value"))
                .hint(format!("give it with --param {name}=…, or in [params] of runbook.toml"))),
        }
    };
    go().map(to_dynamic).map_err(|e| located(ctx, e))
}

/// Takes a parameter's value as the type of its default.
fn typed(name: &str, v: Value, default: &Value) -> Result<Value> {
    let ty = match default {
        Value::Bool(_) => Ty::Bool,
        Value::Int(_) => Ty::Int,
        Value::Float(_) => Ty::Float,
        Value::Str(_) => Ty::Str,
        Value::Duration(_) => Ty::Duration,
        Value::Bytes(_) => Ty::Bytes,
        Value::List(_) => Ty::List(Box::new(Ty::Any)),
        Value::Map(_) => Ty::Map(Box::new(Ty::Any)),
        _ => return Ok(v),
    };
    // Parameters of the command line are text.
    let v = match (&ty, v) {
        (Ty::Int, Value::Str(s)) => s.parse().map(Value::Int).unwrap_or(Value::Str(s)),
        (Ty::Float, Value::Str(s)) => s.parse().map(Value::Float).unwrap_or(Value::Str(s)),
        (Ty::Bool, Value::Str(s)) => s.parse().map(Value::Bool).unwrap_or(Value::Str(s)),
        (_, v) => v,
    };
    ty.coerce(v).map_err(|e| Error::new(Code::BAD_PARAM, format!("parameter \"{name}\": {}", e.message)))
}
