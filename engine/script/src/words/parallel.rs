//! `parallel { branch NAME { … } … }` and `parallel X in LIST { … }`: branches on threads of their own.

use std::sync::Arc;

use rhai::{Caches, Dynamic, Engine, EvalContext, Expr, Expression, Map, Scope};
use runbook_core::exec::{Frame, Run};
use runbook_core::{Code, Error};

use super::{Res, end, fail, here, improper, next, text};
use crate::convert::to_value;
use crate::engine::Host;
use crate::fault::{raise, to_error};

/// How many branches run at the same time; the rest wait for a place.
pub const MAX_BRANCHES: usize = 64;
/// The stack of a branch's thread.
const STACK: usize = 32 << 20;

/// Adds it to the engine.
pub fn register(e: &mut Engine, host: &Arc<Host>) {
    let h = host.clone();
    e.register_custom_syntax_with_state_raw(
        "parallel",
        |symbols, look, _| match symbols.last().map(|s| s.as_str()) {
            Some("parallel") if look == "{" => next("{"),
            Some("parallel") => next("$ident$"),
            Some("{") if look == "branch" => next("branch"),
            Some("{") => improper("parallel { … } holds branches: branch \"name\" { … }".into()),
            Some("branch") => next("$expr$"),
            Some("$expr$") => next("$block$"),
            Some("$block$") if symbols.get(1).is_none_or(|s| s != "{") => end(look),
            Some("$block$") if look == "branch" => next("branch"),
            Some("$block$") => next("}"),
            Some("}") => end(look),
            Some("in") => next("$expr$"),
            _ => next("in"),
        },
        false,
        move |ctx, inputs, _| eval(ctx, &h, inputs),
    );
}

fn eval(ctx: &mut EvalContext<'_, '_, '_, '_, '_, '_>, host: &Arc<Host>, inputs: &[Expression<'_>]) -> Res<Dynamic> {
    let Some(first) = inputs.first() else { return Ok(Dynamic::UNIT) };
    let pos = first.position();
    let (frame, run) = here(ctx, host).map_err(|e| fail(ctx, pos, e))?;
    // Each branch: its name, its block, and the loop variable that it sees.
    let mut branches: Vec<(String, &Expression<'_>, Option<(String, Dynamic)>)> = Vec::new();
    if let ([var, list, block], Some(ident)) = (inputs, first.get_string_value()) {
        let ident = ident.to_string();
        let items = ctx.eval_expression_tree(list)?;
        let Ok(items) = items.into_array() else {
            return Err(fail(ctx, list.position(), Error::new(Code::BAD_WORD, "parallel X in … wants an array")));
        };
        debug_assert_eq!(var.get_string_value(), Some(ident.as_str()));
        for item in items {
            let name = name_of(&item).map_err(|e| fail(ctx, list.position(), e))?;
            branches.push((name, block, Some((ident.clone(), item))));
        }
    } else {
        for pair in inputs.chunks_exact(2) {
            let [name, block] = pair else { continue };
            branches.push((text(ctx, name, "the name of a branch")?, block, None));
        }
    }
    let names: Vec<String> = branches.iter().map(|(n, ..)| n.clone()).collect();
    let frames = run.branches(&frame, &names).map_err(|e| fail(ctx, pos, e))?;
    let results = run_branches(ctx, &run, &branches, frames);
    let mut values = Map::new();
    let mut failed = Vec::new();
    for (name, result) in names.into_iter().zip(results) {
        match result {
            Ok(v) => {
                values.insert(name.into(), v);
            }
            Err(e) => failed.push((name, e)),
        }
    }
    match run.join(failed) {
        None => Ok(values.into()),
        Some(e) => Err(raise(e, pos)),
    }
}

fn name_of(item: &Dynamic) -> Result<String, Error> {
    let v = to_value(item.clone())?;
    Ok(match &v {
        runbook_core::Value::Str(s) => s.clone(),
        runbook_core::Value::Record(r) => r.name.clone().unwrap_or_else(|| r.ty.to_string()),
        v => v.to_string(),
    })
}

type Branch<'a, 'e> = (String, &'a Expression<'e>, Option<(String, Dynamic)>);

fn run_branches(
    ctx: &EvalContext<'_, '_, '_, '_, '_, '_>,
    run: &Arc<Run>,
    branches: &[Branch<'_, '_>],
    frames: Vec<Arc<Frame>>,
) -> Vec<Result<Dynamic, Error>> {
    let engine = ctx.engine();
    let global = ctx.global_runtime_state();
    let names: Vec<(String, bool, Dynamic)> = ctx.scope().iter_raw().map(|(n, c, v)| (n.to_string(), c, v.flatten_clone())).collect();
    let this = ctx.this_ptr().cloned();
    let source = ctx.source().map(str::to_string);
    let next = std::sync::atomic::AtomicUsize::new(0);
    let results: Vec<parking_lot::Mutex<Option<Result<Dynamic, Error>>>> = branches.iter().map(|_| parking_lot::Mutex::new(None)).collect();
    let work: Vec<(Expr, Option<(String, Dynamic)>, Arc<Frame>)> = branches
        .iter()
        .zip(frames)
        .map(|((_, block, var), f)| {
            let e: &Expr = block;
            (e.clone(), var.clone(), f)
        })
        .collect();
    let one = |i: usize| {
        let Some((expr, var, frame)) = work.get(i) else { return };
        let mut scope = Scope::new();
        for (name, constant, value) in &names {
            if *constant {
                scope.push_constant_dynamic(name.clone(), value.clone());
            } else {
                scope.push_dynamic(name.clone(), value.clone());
            }
        }
        if let Some((name, value)) = var {
            scope.push_dynamic(name.clone(), value.clone());
        }
        let mut global = global.clone();
        global.tag = Dynamic::from(frame.clone());
        // Offsets of variables were counted without the loop variable: search by name.
        global.always_search_scope |= var.is_some();
        let mut this = this.clone();
        let mut caches = Caches::new();
        let mut ctx = EvalContext::new(engine, &mut global, &mut caches, &mut scope, this.as_mut());
        let result = ctx.eval_expression_tree(&Expression::from(expr)).map_err(|e| {
            let mut e = to_error(&e);
            if let (Some(l), Some(s)) = (&mut e.location, &source)
                && l.file.is_empty()
            {
                l.file.clone_from(s);
            }
            e
        });
        if let Some(slot) = results.get(i) {
            *slot.lock() = Some(result);
        }
    };
    std::thread::scope(|s| {
        for n in 0..branches.len().min(MAX_BRANCHES) {
            let (one, next) = (&one, &next);
            let spawned = std::thread::Builder::new().name(format!("branch-{n}")).stack_size(STACK).spawn_scoped(s, move || {
                loop {
                    let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if i >= branches.len() {
                        return;
                    }
                    one(i);
                }
            });
            if spawned.is_err() {
                run.notice("no further thread can be had: fewer branches run at the same time");
                break;
            }
        }
    });
    results.into_iter().map(|r| r.into_inner().unwrap_or_else(|| Err(Error::internal("a branch did not run")))).collect()
}
