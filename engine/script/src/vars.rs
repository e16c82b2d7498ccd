//! The variables of a place: remembered, given to a block that is evaluated later or elsewhere, brought back.

use rhai::{Dynamic, EvalContext, FnPtr, Scope};

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

    /// A scope of its own with these values, none of which can be changed.
    #[must_use]
    pub fn sealed(&self) -> Scope<'static> {
        let mut scope = Scope::new();
        for v in &self.0 {
            scope.push_constant_dynamic(v.name.clone(), seal(&v.value));
        }
        scope
    }

    /// Takes back every assignment since, also to variables that closures share.
    pub fn restore(&self, ctx: &mut EvalContext<'_, '_, '_, '_, '_, '_>) {
        let scope = ctx.scope_mut();
        scope.rewind(0);
        for v in &self.0 {
            let mut raw = v.raw.clone();
            if v.constant {
                // Nothing can have assigned to it, and writing would take its seal off.
            } else if raw.is_shared() {
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

/// A copy of a value that is shared with nobody and refuses every change. (A shared cell keeps the seal where a plain value would lose it:
/// as an argument of a function.)
pub fn seal(value: &Dynamic) -> Dynamic {
    let mut copy = value.flatten_clone();
    if let Some(mut f) = copy.write_lock::<FnPtr>() {
        let inner: Vec<Dynamic> = f.curry().iter().map(seal).collect();
        f.set_curry(inner);
    }
    copy.into_read_only().into_shared()
}

fn push(scope: &mut Scope<'_>, v: &Variable, value: Dynamic) {
    if v.constant {
        scope.push_constant_dynamic(v.name.clone(), value);
    } else {
        scope.push_dynamic(v.name.clone(), value);
    }
}
