//! `step NAME #{ … } { … } undo { … }`.

use std::sync::{Arc, Weak};
use std::time::Duration;

use rhai::{Caches, Dynamic, Engine, EvalContext, Expr, Expression, GlobalRuntimeState, Scope};
use runbook_core::error::Location;
use runbook_core::exec::{Frame, Mode, Run, StepOptions, Undo, escape};
use runbook_core::journal::UndoKind;
use runbook_core::{Error, Result, Ty, Value};

use super::{Res, duration, end, eval_in, fail, here, improper, next, options, place, text};
use crate::engine::Host;
use crate::fault::{ScriptFault, to_error};
use crate::vars::Variables;

/// Which optional parts a step has, as the parser notes them.
const OPTIONS: i64 = 1;
const UNDO: i64 = 2;
const IRREVERSIBLE: i64 = 4;

/// Adds it to the engine.
pub fn register(e: &mut Engine, host: &Arc<Host>) {
    let h = host.clone();
    e.register_custom_syntax_with_state_raw(
        "step",
        |symbols, look, state| {
            let flags = state.as_int().unwrap_or(0);
            match symbols.last().map(|s| s.as_str()) {
                Some("step") => next("$expr$"),
                Some("$expr$") if symbols.len() == 2 && look == "#{" => {
                    *state = (flags | OPTIONS).into();
                    next("$expr$")
                }
                Some("$expr$") if flags & IRREVERSIBLE != 0 => Ok(None),
                Some("$expr$") => next("$block$"),
                Some("undo") => next("$block$"),
                Some("irreversible") => next("$expr$"),
                Some("$block$") if flags & UNDO != 0 => end(look),
                Some("$block$") => match look {
                    "undo" => {
                        *state = (flags | UNDO).into();
                        next("undo")
                    }
                    "irreversible" => {
                        *state = (flags | IRREVERSIBLE).into();
                        next("irreversible")
                    }
                    look => end(look),
                },
                other => improper(format!("a step does not go on after {other:?}")),
            }
        },
        false,
        move |ctx, inputs, state| eval(ctx, &h, inputs, state.as_int().unwrap_or(0)),
    );
}

fn eval(ctx: &mut EvalContext<'_, '_, '_, '_, '_, '_>, host: &Arc<Host>, inputs: &[Expression<'_>], flags: i64) -> Res<Dynamic> {
    let mut parts = inputs.iter();
    let (Some(name), opts) = (parts.next(), if flags & OPTIONS != 0 { parts.next() } else { None }) else { return Ok(Dynamic::UNIT) };
    let Some(block) = parts.next() else { return Ok(Dynamic::UNIT) };
    let rest = parts.next();
    let title = text(ctx, name, "the name of a step")?;
    let known = [
        ("retries", Ty::Int),
        ("backoff", Ty::Duration),
        ("timeout", Ty::Duration),
        ("when", Ty::Bool),
        ("on", Ty::OneOf(vec![Ty::Str, Ty::Any])),
    ];
    let o = options(ctx, opts, "step", &known)?;
    let undo = match flags & (UNDO | IRREVERSIBLE) {
        0 => UndoKind::None,
        UNDO => UndoKind::Block,
        _ => UndoKind::Irreversible,
    };
    let at = place(ctx, name.position());
    let options = StepOptions {
        name: title,
        retries: o.get("retries").and_then(Value::as_int).and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        backoff: duration(&o, "backoff").unwrap_or(Duration::ZERO),
        timeout: duration(&o, "timeout"),
        when: o.get("when").and_then(Value::as_bool).unwrap_or(true),
        on: o.get("on").map(|v| match v {
            Value::Record(r) => r.name.clone().unwrap_or_default(),
            v => v.as_str().unwrap_or_default().to_string(),
        }),
        undo,
        at: at.as_ref().map(|l| format!("{}:{}:{}", l.file, l.line, l.column)),
        source: source(host, at.as_ref(), rest.unwrap_or(block)),
    };
    let (frame, run) = here(ctx, host).map_err(|e| fail(ctx, name.position(), e))?;
    let undo_expr = if flags & UNDO != 0 { rest } else { None };
    let path = if frame.path.is_empty() { escape(&options.name) } else { format!("{}/{}", frame.path, escape(&options.name)) };
    let done = run.step(&frame, &options, |f, order| {
        // First as it is before the block, so that a step that only began is undone as well.
        let keep = run.mode() == Mode::Rollback;
        if let (true, Some(u)) = (keep, undo_expr) {
            run.push_undo(order, &path, Box::new(Block::capture(ctx, host, u)));
        }
        let before = Variables::of(ctx.scope());
        let result = eval_in(ctx, f.clone(), block).map_err(ScriptFault);
        if let (true, Some(u)) = (keep, undo_expr) {
            run.push_undo(order, &path, Box::new(Block::capture(ctx, host, u)));
        }
        // An attempt that failed leaves no trace in variables: replay does not go through it.
        if result.is_err() {
            before.restore(ctx);
        }
        result
    });
    match done {
        Ok(v) => Ok(v.unwrap_or(Dynamic::UNIT)),
        Err(ScriptFault(mut e)) => {
            if e.position().is_none() {
                e.set_position(name.position());
            }
            Err(e)
        }
    }
}

/// The lines of a step down to the end of its last part (the block, its undo block, the reason why there is none), for previews.
fn source(host: &Host, at: Option<&Location>, last: &Expression<'_>) -> String {
    let Some(at) = at else { return String::new() };
    let Ok(all) = host.sources.text(&at.file) else { return String::new() };
    let expr: &Expr = last;
    let end = match expr {
        Expr::Stmt(s) => s.end_position().line().unwrap_or(at.line),
        other => other.position().line().unwrap_or(at.line),
    };
    all.lines().skip(at.line.saturating_sub(1)).take(end.saturating_sub(at.line) + 1).collect::<Vec<_>>().join("\n")
}

/// An undo block with everything that it needs to be evaluated later.
struct Block {
    engine: Weak<Engine>,
    expr: Expr,
    scope: Scope<'static>,
    global: GlobalRuntimeState,
    this: Option<Dynamic>,
}

impl Block {
    fn capture(ctx: &EvalContext<'_, '_, '_, '_, '_, '_>, host: &Host, undo: &Expression<'_>) -> Self {
        let expr: &Expr = undo;
        Block {
            engine: host.engine.get().cloned().unwrap_or_default(),
            expr: expr.clone(),
            scope: Variables::of(ctx.scope()).scope(),
            global: ctx.global_runtime_state().clone(),
            this: ctx.this_ptr().cloned(),
        }
    }
}

impl Undo for Block {
    fn undo(&mut self, _run: &Arc<Run>, frame: &Arc<Frame>) -> Result<()> {
        let engine = self.engine.upgrade().ok_or_else(|| Error::internal("the script engine is gone before its undo blocks ran"))?;
        // A retried undo block begins with the variables that it was captured with.
        let mut scope = self.scope.clone();
        let mut global = self.global.clone();
        global.tag = Dynamic::from(frame.clone());
        let mut this = self.this.clone();
        let mut caches = Caches::new();
        let mut ctx = EvalContext::new(&engine, &mut global, &mut caches, &mut scope, this.as_mut());
        match ctx.eval_expression_tree(&Expression::from(&self.expr)) {
            Ok(_) => Ok(()),
            Err(e) => {
                let mut error = to_error(&e);
                if let Some(l) = &mut error.location
                    && l.file.is_empty()
                {
                    l.file = self.global.source().unwrap_or("").to_string();
                }
                Err(error)
            }
        }
    }
}
