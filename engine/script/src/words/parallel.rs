//! `parallel { branch NAME { … } … }` and `parallel { for X in LIST { … } }`: branches on threads of their own.

use std::sync::Arc;

use rhai::{Caches, Dynamic, Engine, EvalContext, Expr, Expression, FlowControl, Ident, Map, Stmt};
use runbook_core::exec::{Branch, BranchPlan, Branched, Frame, Run};
use runbook_core::{Code, Error};

use super::{Res, end, fail, here, next, options, plan, text};
use crate::convert::to_value;
use crate::engine::Host;
use crate::fault::{raise, to_error};
use crate::vars::{Variables, seal};

/// How many branches run at the same time; the rest wait for a place.
pub const MAX_BRANCHES: usize = 256;
/// The stack of a branch's thread: reserved, and touched only as far as it is needed.
pub const STACK: usize = 32 << 20;

/// Adds it to the engine.
pub fn register(e: &mut Engine, host: &Arc<Host>) {
    let h = host.clone();
    e.register_custom_syntax_with_state_raw(
        "parallel",
        |symbols, look, _| match symbols.len() {
            1 if look == "#{" => next("$expr$"),
            1 => next("$block$"),
            2 if symbols.last().is_some_and(|s| s == "$expr$") => next("$block$"),
            _ => end(look),
        },
        false,
        move |ctx, inputs, _| match inputs {
            [block] => eval(ctx, &h, None, block),
            [opts, block] => eval(ctx, &h, Some(opts), block),
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

fn eval(
    ctx: &mut EvalContext<'_, '_, '_, '_, '_, '_>,
    host: &Arc<Host>,
    opts: Option<&Expression<'_>>,
    block: &Expression<'_>,
) -> Res<Dynamic> {
    let pos = block.position();
    let o = options(ctx, opts, "parallel", plan::OPTIONS)?;
    let (frame, run) = here(ctx, host).map_err(|e| fail(ctx, pos, e))?;
    let expr: &Expr = block;
    let Expr::Stmt(body) = expr else { return Ok(Dynamic::UNIT) };
    let branches = match body.statements() {
        [Stmt::For(x, _)] => of_loop(ctx, (&x.0, x.1.as_ref(), &x.2)).map_err(|e| fail(ctx, pos, e))?,
        statements => named(ctx, statements)?,
    };
    let plan = plan::make("parallel", branches.iter().map(|b| b.name.clone()).collect(), &o)
        .map_err(|e| fail(ctx, opts.map_or(pos, Expression::position), e))?;
    let branched = run_branches(ctx, &run, &branches, &frame, &plan).map_err(|e| fail(ctx, pos, e))?;
    if let Some(e) = run.branch_failure(&frame, &plan, &branched) {
        return Err(raise(e, pos));
    }
    let mut values = Map::new();
    for (name, result) in plan.names.into_iter().zip(branched.results) {
        if let Branch::Ok(v) = result {
            values.insert(name.into(), v);
        }
    }
    Ok(values.into())
}

/// What an item's branch is called: a text as it is, a handle by its name.
pub(super) fn name_of(item: &Dynamic) -> Result<String, Error> {
    let v = to_value(item.clone())?;
    Ok(match &v {
        runbook_core::Value::Str(s) => s.clone(),
        runbook_core::Value::Record(r) => r.name.clone().unwrap_or_else(|| r.ty.to_string()),
        v => v.to_string(),
    })
}

/// One branch: what it is called, what it evaluates, and the loop's variables that it sees.
struct Written {
    name: String,
    body: Expr,
    vars: Vec<(String, Dynamic)>,
}

/// The branches that are written out.
fn named(ctx: &mut EvalContext<'_, '_, '_, '_, '_, '_>, statements: &[Stmt]) -> Res<Vec<Written>> {
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
        branches.push(Written { name: text(ctx, &Expression::from(name), "the name of a branch")?, body: body.clone(), vars: vec![] });
    }
    Ok(branches)
}

/// A branch for each item of the loop's array, called like the item.
fn of_loop(
    ctx: &mut EvalContext<'_, '_, '_, '_, '_, '_>,
    (var, counter, flow): (&Ident, Option<&Ident>, &FlowControl),
) -> Result<Vec<Written>, Error> {
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
        branches.push(Written { name, body: body.clone(), vars });
    }
    Ok(branches)
}

fn run_branches(
    ctx: &EvalContext<'_, '_, '_, '_, '_, '_>,
    run: &Arc<Run>,
    branches: &[Written],
    parent: &Frame,
    plan: &BranchPlan,
) -> Result<Branched<Dynamic>, Error> {
    let engine = ctx.engine();
    let global = ctx.global_runtime_state();
    let variables = Variables::of(ctx.scope());
    let this = ctx.this_ptr().map(seal);
    let source = ctx.source();
    run.branches(parent, plan, |i, frame| {
        let Some(branch) = branches.get(i) else { return Ok(Dynamic::UNIT) };
        let mut scope = variables.sealed();
        for (name, value) in &branch.vars {
            scope.push_dynamic(name.clone(), value.clone());
        }
        let mut global = global.clone();
        global.tag = Dynamic::from(frame.clone());
        let mut this = this.as_ref().map(seal);
        let mut caches = Caches::new();
        let mut ctx = EvalContext::new(engine, &mut global, &mut caches, &mut scope, this.as_mut());
        ctx.eval_expression_tree(&Expression::from(&branch.body)).map_err(|e| with_file(to_error(&e), source))
    })
}

/// An error of a branch with the file that it arose in.
pub(super) fn with_file(mut e: Error, source: Option<&str>) -> Error {
    if let (Some(l), Some(s)) = (&mut e.location, source)
        && l.file.is_empty()
    {
        l.file = s.to_string();
    }
    e
}
