//! From Specs to functions and methods of the language: one dispatcher, with the errors that a Spec can explain.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::sync::Arc;

use rhai::{Dynamic, Engine, EvalAltResult, NativeCallContext};
use runbook_core::error::Location;
use runbook_core::exec::{Frame, Run};
use runbook_core::suggest::closest;
use runbook_core::{Code, Error, Record, Result, Value};

use crate::convert::{to_dynamic, to_value};
use crate::engine::Host;
use crate::fault::raise;

/// The type of arguments that may be anything.
pub(crate) const ANY: fn() -> TypeId = TypeId::of::<Dynamic>;

/// Registers every Spec of the registry.
pub fn register(e: &mut Engine, host: &Arc<Host>) {
    // Free functions and methods may share a name; methods of several types always share one dispatcher.
    let mut functions: BTreeMap<&'static str, (usize, usize)> = BTreeMap::new();
    let mut methods: BTreeMap<&'static str, (usize, usize)> = BTreeMap::new();
    for spec in host.registry.specs() {
        let table = if spec.on.is_some() { &mut methods } else { &mut functions };
        let (least, most) = spec.arity();
        let seen = table.entry(spec.name).or_insert((least, most));
        *seen = (seen.0.min(least), seen.1.max(most));
    }
    for (name, (least, most)) in functions {
        for n in least..=most {
            let host = host.clone();
            e.register_raw_fn(name, vec![ANY(); n], move |ctx, args| call(&ctx, &host, name, None, args));
        }
    }
    for (name, (least, most)) in methods {
        for n in least..=most {
            let host = host.clone();
            let mut types = vec![TypeId::of::<Record>()];
            types.extend(vec![ANY(); n]);
            e.register_raw_fn(name, types, move |ctx, args| {
                let receiver = args.first().and_then(|a| a.read_lock::<Record>().map(|r| r.clone()));
                let rest = args.get_mut(1..).unwrap_or_default();
                call(&ctx, &host, name, receiver, rest)
            });
        }
    }
}

/// The frame of the place where the script is. Module top levels have none: they only define.
pub(crate) fn frame_of(tag: Option<&Dynamic>) -> Result<Arc<Frame>> {
    tag.and_then(|t| t.read_lock::<Arc<Frame>>().map(|f| f.clone())).ok_or_else(|| {
        Error::new(Code::BAD_WORD, "the top level of a module cannot act")
            .hint("put it into a function of the module and call that from the runbook")
    })
}

pub(crate) fn run_of(host: &Host) -> Result<Arc<Run>> {
    host.run.read().clone().ok_or_else(|| Error::internal("a script acted without a run"))
}

/// Where a native function was called.
pub(crate) fn called_at(ctx: &NativeCallContext<'_>) -> Option<Location> {
    let pos = ctx.call_position();
    let file = ctx.call_source().or_else(|| ctx.fn_source()).unwrap_or("").to_string();
    Some(Location { file, line: pos.line()?, column: pos.position().unwrap_or(0) })
}

/// Gives an error the place of the call and makes it the language's.
pub(crate) fn located(ctx: &NativeCallContext<'_>, mut e: Error) -> Box<EvalAltResult> {
    if e.location.is_none() {
        e.location = called_at(ctx);
    }
    raise(e, ctx.call_position())
}

fn call(
    ctx: &NativeCallContext<'_>,
    host: &Arc<Host>,
    name: &'static str,
    receiver: Option<Record>,
    args: &mut [&mut Dynamic],
) -> std::result::Result<Dynamic, Box<EvalAltResult>> {
    dispatch(ctx, host, name, receiver, args).map(to_dynamic).map_err(|e| located(ctx, e))
}

fn dispatch(
    ctx: &NativeCallContext<'_>,
    host: &Arc<Host>,
    name: &'static str,
    receiver: Option<Record>,
    args: &mut [&mut Dynamic],
) -> Result<Value> {
    let values: Vec<Value> = args.iter().map(|a| to_value((**a).clone())).collect::<Result<_>>()?;
    let ty: Option<&'static str> = match &receiver {
        Some(r) => Some(type_name(host, &r.ty).ok_or_else(|| no_method(host, name, &r.ty))?),
        None => None,
    };
    let key = (ty, name);
    if let Some((spec, f)) = host.registry.pure.get(&key) {
        let call = spec.bind(receiver, values)?;
        return f(run_of(host)?.env(), &call);
    }
    let Some(prim) = host.registry.primitives.get(&key) else {
        return Err(no_method(host, name, ty.unwrap_or("")));
    };
    let call = prim.spec().bind(receiver, values)?;
    let frame = frame_of(ctx.tag())?;
    run_of(host)?.act(&frame, prim, &call)
}

/// The registry's own text for a type's name (record types read from the journal have one of their own).
fn type_name(host: &Host, ty: &str) -> Option<&'static str> {
    host.registry.types.get_key_value(ty).map(|(k, _)| *k)
}

fn no_method(host: &Host, name: &str, ty: &str) -> Error {
    let methods = || host.registry.specs().filter(|s| s.on == Some(ty)).map(|s| s.name);
    let mut e = Error::new(Code::UNKNOWN_FUNCTION, format!("{ty} has no method \"{name}\""));
    e.hint = match closest(name, methods()) {
        Some(c) => Some(format!("did you mean \"{c}\"?")),
        None => Some(format!("{ty} has: {}", methods().collect::<Vec<_>>().join(", "))),
    };
    e
}
