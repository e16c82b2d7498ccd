//! `LIST.each(#{ … }, |item| { … })`: the same for every item of a list, each in a branch of its own.
//!
//! A closure captures variables by reference; a branch gets copies of them that cannot be assigned to, so that nothing depends on the order
//! in which branches run.

use std::collections::BTreeMap;
use std::sync::Arc;

use rhai::{Array, Dynamic, Engine, FnPtr, Map, NativeCallContext};
use runbook_core::exec::Branch;
use runbook_core::{Code, Error, Result, Ty, Value};

use super::parallel::{name_of, with_file};
use super::results::Results;
use super::{Res, check_options, plan};
use crate::bind::{frame_of, located, run_of};
use crate::engine::Host;
use crate::fault::to_error;
use crate::vars::seal;

/// Adds it to the engine.
pub fn register(e: &mut Engine, host: &Arc<Host>) {
    let h = host.clone();
    e.register_fn("each", move |ctx: NativeCallContext, items: Array, f: FnPtr| -> Res<Dynamic> {
        each(&ctx, &h, items, Map::new(), f).map_err(|e| located(&ctx, e))
    });
    let h = host.clone();
    e.register_fn("each", move |ctx: NativeCallContext, items: Array, options: Map, f: FnPtr| -> Res<Dynamic> {
        each(&ctx, &h, items, options, f).map_err(|e| located(&ctx, e))
    });
    e.register_fn("names", |ctx: NativeCallContext, items: &mut Array| -> Res<Array> {
        let names: Result<Array> = items.iter().map(|i| name_of(i).map(Dynamic::from)).collect();
        names.map_err(|e| located(&ctx, e))
    });
    super::results::register(e);
}

fn each(ctx: &NativeCallContext<'_>, host: &Arc<Host>, items: Array, options: Map, f: FnPtr) -> Result<Dynamic> {
    let (frame, run) = (frame_of(ctx.tag())?, run_of(host)?);
    let names: Vec<String> = items.iter().map(name_of).collect::<Result<_>>()?;
    let known: Vec<(&str, Ty)> = plan::OPTIONS.iter().cloned().chain([("tolerate", Ty::Bool)]).collect();
    let options = check_options(Dynamic::from_map(options), "each", &known)?;
    let plan = plan::make("each", names, &options)?;
    callable(ctx, &f)?;
    // As arguments instead of curried ones: currying would take the seal off.
    let captured: Vec<Dynamic> = f.curry().iter().map(seal).collect();
    let mut bare = f.clone();
    bare.set_curry([]);
    let (engine, source, pos) = (ctx.engine(), ctx.call_source(), ctx.call_position());
    let global = ctx.global_runtime_state();
    let branched = run.branches(&frame, &plan, |i, frame| {
        let mut global = global.clone();
        global.tag = Dynamic::from(frame.clone());
        let inner = NativeCallContext::new_with_all_fields(engine, "each", source, &global, pos);
        let item = items.get(i).cloned().unwrap_or_default();
        // Copies of its own: two branches that read the same variable do not wait for each other.
        let args: Vec<Dynamic> = captured.iter().map(seal).chain([item]).collect();
        bare.call_raw(&inner, None, args).map_err(|e| with_file(to_error(&e), source))
    })?;
    let failure = run.branch_failure(&frame, &plan, &branched);
    if let Some(e) = failure
        && !tolerant(&options)
    {
        return Err(e);
    }
    let mut results = Results::default();
    for (name, result) in plan.names.into_iter().zip(branched.results) {
        match result {
            Branch::Ok(v) => results.values.push((name, v)),
            Branch::Failed(e) => results.failed.push((name, *e)),
            Branch::NotBegun => results.not_begun.push(name),
        }
    }
    Ok(Dynamic::from(results))
}

fn tolerant(options: &BTreeMap<String, Value>) -> bool {
    options.get("tolerate").and_then(Value::as_bool).unwrap_or(false)
}

/// Refuses what cannot be called with one item before any branch begins.
fn callable(ctx: &NativeCallContext<'_>, f: &FnPtr) -> Result<()> {
    let (name, takes) = (f.fn_name(), f.curry().len() + 1);
    let defined = || ctx.iter_namespaces().flat_map(|m| m.iter_script_fn_info()).filter(|(_, _, n, _, _)| *n == name);
    if defined().any(|(_, _, _, params, _)| params == takes) {
        return Ok(());
    }
    match defined().next() {
        Some((_, _, _, params, _)) => {
            Err(Error::new(Code::BAD_WORD, format!("the closure of each takes one item, not {}", params.saturating_sub(f.curry().len())))
                .hint("write it as |h| { … }"))
        }
        None if f.is_anonymous() => Err(Error::new(Code::BAD_WORD, "this closure was made in another module and cannot be called here")
            .hint("call each in the module that has the closure, or write the closure here")),
        // A native function by its name: the call itself says what is wrong.
        None => Ok(()),
    }
}
