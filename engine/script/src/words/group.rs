//! `phase`, `gate`, `downtime`, `point_of_no_return`.

use std::sync::Arc;

use rhai::{Dynamic, Engine};
use runbook_core::{Code, Error, Ty};

use super::{Res, duration, end, eval_in, fail, here, name_and_block, named_block, next, options, text};
use crate::engine::Host;
use crate::fault::ScriptFault;

/// Adds them to the engine.
pub fn register(e: &mut Engine, host: &Arc<Host>) {
    let h = host.clone();
    e.register_custom_syntax_with_state_raw(
        "phase",
        |symbols, look, _| match symbols.len() {
            1 => next("$expr$"),
            2 => next("$block$"),
            _ => end(look),
        },
        false,
        move |ctx, inputs, _| -> Res<Dynamic> {
            let [name, block] = inputs else { return Ok(Dynamic::UNIT) };
            let title = text(ctx, name, "the name of a phase")?;
            let (frame, run) = here(ctx, &h).map_err(|e| fail(ctx, name.position(), e))?;
            let done = run.phase(&frame, &title, |f| eval_in(ctx, f.clone(), block).map_err(ScriptFault));
            done.map_err(|e| e.0)
        },
    );
    let h = host.clone();
    e.register_custom_syntax_with_state_raw(
        "gate",
        |symbols, _, _| if symbols.len() == 1 { next("$expr$") } else { Ok(None) },
        false,
        move |ctx, inputs, _| -> Res<Dynamic> {
            let [question] = inputs else { return Ok(Dynamic::UNIT) };
            let q = text(ctx, question, "a gate's question")?;
            let done = here(ctx, &h).and_then(|(frame, run)| run.gate(&frame, &q));
            done.map(|()| Dynamic::UNIT).map_err(|e| fail(ctx, question.position(), e))
        },
    );
    let h = host.clone();
    e.register_custom_syntax_with_state_raw(
        "point_of_no_return",
        |symbols, _, _| if symbols.len() == 1 { next("$expr$") } else { Ok(None) },
        false,
        move |ctx, inputs, _| -> Res<Dynamic> {
            let [why] = inputs else { return Ok(Dynamic::UNIT) };
            let w = text(ctx, why, "the reason of a point of no return")?;
            let done = here(ctx, &h).and_then(|(frame, run)| run.point_of_no_return(&frame, &w));
            done.map(|()| Dynamic::UNIT).map_err(|e| fail(ctx, why.position(), e))
        },
    );
    let h = host.clone();
    e.register_custom_syntax_with_state_raw("downtime", named_block, false, move |ctx, inputs, _| -> Res<Dynamic> {
        let Some((name, opts, block)) = name_and_block(inputs) else { return Ok(Dynamic::UNIT) };
        let title = text(ctx, name, "the name of a downtime")?;
        let o = options(ctx, opts, "downtime", &[("budget", Ty::Duration), ("on_overrun", Ty::Str)])?;
        let on_overrun = o.get("on_overrun").and_then(|v| v.as_str()).unwrap_or("ask").to_string();
        if !["ask", "rollback", "continue"].contains(&on_overrun.as_str()) {
            let e = Error::new(Code::BAD_WORD, format!("on_overrun is \"ask\", \"rollback\" or \"continue\", not \"{on_overrun}\""));
            return Err(fail(ctx, opts.unwrap_or(name).position(), e));
        }
        let (frame, run) = here(ctx, &h).map_err(|e| fail(ctx, name.position(), e))?;
        let done =
            run.downtime(&frame, &title, duration(&o, "budget"), &on_overrun, |f| eval_in(ctx, f.clone(), block).map_err(ScriptFault));
        done.map_err(|e| e.0)
    });
}
