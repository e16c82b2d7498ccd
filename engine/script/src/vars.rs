//! The variables of a place: remembered, given to a block that is evaluated later or elsewhere, brought back.

use rhai::{Dynamic, EvalContext, Scope};

/// The variables of a scope as they were at one moment.
pub struct Variables(Vec<Variable>);

struct Variable {
    name: String,
    constant: bool,
    /// The variable itself; shared with closures that captured it.
    raw: Dynamic,
    /// Its value at that moment, shared with nobody.
    value: Dynamic,
}

impl Variables {
    /// Remembers.
    #[must_use]
    pub fn of(scope: &Scope<'_>) -> Self {
        // `iter_raw` goes from the newest to the oldest.
        let mut all: Vec<Variable> = scope
            .iter_raw()
            .map(|(name, constant, v)| Variable { name: name.into(), constant, raw: v.clone(), value: v.flatten_clone() })
            .collect();
        all.reverse();
        Variables(all)
    }

    /// A scope of its own with these values: assignments in it are seen by nobody else.
    #[must_use]
    pub fn scope(&self) -> Scope<'static> {
        let mut scope = Scope::new();
        for v in &self.0 {
            push(&mut scope, v, v.value.clone());
        }
        scope
    }

    /// Takes back every assignment since, also to variables that closures share.
    pub fn restore(&self, ctx: &mut EvalContext<'_, '_, '_, '_, '_, '_>) {
        let scope = ctx.scope_mut();
        scope.rewind(0);
        for v in &self.0 {
            let mut raw = v.raw.clone();
            if raw.is_shared() {
                if let Some(mut cell) = raw.write_lock::<Dynamic>() {
                    *cell = v.value.clone();
                }
            } else {
                raw = v.value.clone();
            }
            push(scope, v, raw);
        }
    }
}

fn push(scope: &mut Scope<'_>, v: &Variable, value: Dynamic) {
    if v.constant {
        scope.push_constant_dynamic(v.name.clone(), value);
    } else {
        scope.push_dynamic(v.name.clone(), value);
    }
}
