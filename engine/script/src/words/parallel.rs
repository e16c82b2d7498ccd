//! `parallel { branch NAME { … } … }` and `parallel { for X in LIST { … } }`: branches on threads of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rhai::{Caches, Dynamic, Engine, EvalContext, Expr, Expression, FlowControl, Ident, Map, Stmt};
use runbook_core::exec::{Frame, Run};
use runbook_core::{Code, Error};

use super::{Res, end, fail, here, next, text};
use crate::convert::to_value;
use crate::engine::Host;
use crate::fault::{raise, to_error};
use crate::vars::Variables;

/// How many branches run at the same time; the rest wait for a place.
pub const MAX_BRANCHES: usize = 64;
/// The stack of a branch's thread.
const STACK: usize = 32 << 20;

/// Adds it to the engine.
pub fn register(e: &mut Engine, host: &Arc<Host>) {
    let h = host.clone();
    e.register_custom_syntax_with_state_raw(
        "parallel",
        |symbols, look, _| if symbols.len() == 1 { next("$block$") } else { end(look) },
        false,
        move |ctx, inputs, _| match inputs {
            [block] => eval(ctx, &h, block),
            _ => Ok(Dynamic::UNIT),
        },
    );
    // A word of its own, so that a branch is parsed where it stands; it is evaluated by `parallel`, never by itself.
    e.register_custom_syntax_with_state_raw(
        "branch",
        |symbols, look, _| match symbols.len() {
            1 => next("$expr$"),
            2 => next("$block$"),
            _ => end(look),
        },
        false,
        |ctx, inputs, _| {
            let pos = inputs.first().map_or(rhai::Position::NONE, Expression::position);
            Err(fail(ctx, pos, Error::new(Code::BAD_WORD, "a branch stands directly in parallel { … }")))
        },
    );
}

fn eval(ctx: &mut EvalContext<'_, '_, '_, '_, '_, '_>, host: &Arc<Host>, block: &Expression<'_>) -> Res<Dynamic> {
    let pos = block.position();
    let (frame, run) = here(ctx, host).map_err(|e| fail(ctx, pos, e))?;
    let expr: &Expr = block;
    let Expr::Stmt(body) = expr else { return Ok(Dynamic::UNIT) };
    let branches = match body.statements() {
        [Stmt::For(x, _)] => of_loop(ctx, (&x.0, x.1.as_ref(), &x.2)).map_err(|e| fail(ctx, pos, e))?,
        statements => named(ctx, statements)?,
    };
    let names: Vec<String> = branches.iter().map(|b| b.name.clone()).collect();
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

/// One branch: what it is called, what it evaluates, and the loop's variables that it sees.
struct Branch {
    name: String,
    body: Expr,
    vars: Vec<(String, Dynamic)>,
}

/// The branches that are written out.
fn named(ctx: &mut EvalContext<'_, '_, '_, '_, '_, '_>, statements: &[Stmt]) -> Res<Vec<Branch>> {
    let mut branches = Vec::with_capacity(statements.len());
    for s in statements {
        let custom = match s {
            Stmt::Expr(e) => match &**e {
                Expr::Custom(x, _) if x.tokens.first().is_some_and(|t| t == "branch") => Some(x),
                _ => None,
            },
            _ => None,
        };
        let Some([name, body]) = custom.map(|x| x.inputs.as_slice()) else {
            let e = Error::new(
                Code::BAD_WORD,
                "parallel { … } holds branches and nothing else: branch \"name\" { … }, or one loop for x in list { … }",
            );
            return Err(fail(ctx, s.position(), e));
        };
        branches.push(Branch { name: text(ctx, &Expression::from(name), "the name of a branch")?, body: body.clone(), vars: vec![] });
    }
    Ok(branches)
}

/// A branch for each item of the loop's array, called like the item.
fn of_loop(
    ctx: &mut EvalContext<'_, '_, '_, '_, '_, '_>,
    (var, counter, flow): (&Ident, Option<&Ident>, &FlowControl),
) -> Result<Vec<Branch>, Error> {
    let items = ctx.eval_expression_tree(&Expression::from(&flow.expr)).map_err(|e| to_error(&e))?;
    let items = match items.into_array() {
        Ok(items) => items,
        Err(ty) => return Err(Error::new(Code::BAD_WORD, format!("parallel {{ for … in … }} goes through an array, not {ty}"))),
    };
    let body = Expr::Stmt(Box::new(flow.body.clone()));
    let mut branches = Vec::with_capacity(items.len());
    for (i, item) in items.into_iter().enumerate() {
        // In the order in which the parser counted them: the counter first.
        let mut vars = Vec::new();
        if let Some(c) = counter {
            vars.push((c.as_str().to_string(), Dynamic::from(i64::try_from(i).unwrap_or(i64::MAX))));
        }
        let name = name_of(&item)?;
        vars.push((var.as_str().to_string(), item));
        branches.push(Branch { name, body: body.clone(), vars });
    }
    Ok(branches)
}

fn run_branches(
    ctx: &EvalContext<'_, '_, '_, '_, '_, '_>,
    run: &Arc<Run>,
    branches: &[Branch],
    frames: Vec<Arc<Frame>>,
) -> Vec<Result<Dynamic, Error>> {
    let engine = ctx.engine();
    let global = ctx.global_runtime_state();
    let variables = Variables::of(ctx.scope());
    let this = ctx.this_ptr().cloned();
    let source = ctx.source().map(str::to_string);
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<Result<Dynamic, Error>>>> = branches.iter().map(|_| Mutex::new(None)).collect();
    let one = |i: usize| {
        let (Some(branch), Some(frame), Some(slot)) = (branches.get(i), frames.get(i), results.get(i)) else { return };
        let mut scope = variables.scope();
        for (name, value) in &branch.vars {
            scope.push_dynamic(name.clone(), value.clone());
        }
        let mut global = global.clone();
        global.tag = Dynamic::from(frame.clone());
        let mut this = this.clone();
        let mut caches = Caches::new();
        let mut ctx = EvalContext::new(engine, &mut global, &mut caches, &mut scope, this.as_mut());
        let result = ctx.eval_expression_tree(&Expression::from(&branch.body)).map_err(|e| {
            let mut e = to_error(&e);
            if let (Some(l), Some(s)) = (&mut e.location, &source)
                && l.file.is_empty()
            {
                l.file.clone_from(s);
            }
            e
        });
        *slot.lock() = Some(result);
    };
    std::thread::scope(|s| {
        for n in 0..branches.len().min(MAX_BRANCHES) {
            let (one, next) = (&one, &next);
            let spawned = std::thread::Builder::new().name(format!("branch-{n}")).stack_size(STACK).spawn_scoped(s, move || {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
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
