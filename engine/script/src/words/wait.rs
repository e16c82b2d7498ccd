//! `wait_until WHAT #{ within, every } { CONDITION }`.

use std::sync::Arc;
use std::time::Duration;

use rhai::{Dynamic, Engine};
use runbook_core::{Code, Error, Ty};

use super::{Res, duration, eval_in, fail, here, name_and_block, named_block, options, text};
use crate::engine::Host;
use crate::fault::ScriptFault;
use crate::vars::Variables;

/// Adds it to the engine.
pub fn register(e: &mut Engine, host: &Arc<Host>) {
    let h = host.clone();
    e.register_custom_syntax_with_state_raw("wait_until", named_block, false, move |ctx, inputs, _| -> Res<Dynamic> {
        let Some((what, opts, block)) = name_and_block(inputs) else { return Ok(Dynamic::UNIT) };
        let title = text(ctx, what, "what is waited for")?;
        let o = options(ctx, opts, "wait_until", &[("within", Ty::Duration), ("every", Ty::Duration)])?;
        let within = duration(&o, "within").unwrap_or(Duration::from_secs(300));
        let every = duration(&o, "every").unwrap_or(Duration::from_secs(2));
        let (frame, run) = here(ctx, &h).map_err(|e| fail(ctx, what.position(), e))?;
        let done = run.wait_until(&frame, &title, within, every, |f| {
            // An evaluation that was not true must leave no trace, since replay will not go through it.
            let before = Variables::of(ctx.scope());
            let v = eval_in(ctx, f.clone(), block).map_err(ScriptFault)?;
            let Ok(ok) = v.as_bool() else {
                let e = Error::new(Code::BAD_WORD, format!("the condition of wait_until must be true or false, not {}", v.type_name()));
                return Err(ScriptFault(fail(ctx, block.position(), e)));
            };
            if !ok {
                before.restore(ctx);
            }
            Ok(ok)
        });
        done.map(|()| Dynamic::UNIT).map_err(|e| e.0)
    });
}
