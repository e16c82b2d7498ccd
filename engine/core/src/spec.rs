//! What a primitive is to everybody else: name, types, effect, documentation. Declared once, read by the script binding, the
//! static check, `.d.rhai` definitions, the reference pages and error messages.

use std::collections::BTreeMap;

use crate::codes::Code;
use crate::error::{Error, Result};
use crate::value::{Record, Value};

mod call;
mod ty;

pub use call::Call;
pub use ty::Ty;

/// What an action does to the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Nothing, and it needs nothing but the inventory: evaluated again on replay, never recorded.
    Pure,
    /// Looks; may be repeated. Its result is recorded.
    Read,
    /// Writes, and is safe to repeat: it brings about a state.
    Converge,
    /// Must not happen twice.
    Once,
}

impl Effect {
    /// The effect's name in documents and records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Effect::Pure => "pure",
            Effect::Read => "read",
            Effect::Converge => "converge",
            Effect::Once => "once",
        }
    }
}

/// One argument or option.
#[derive(Debug, Clone)]
pub struct Param {
    /// The name, as in documentation and, for options, in the script.
    pub name: &'static str,
    /// Its type.
    pub ty: Ty,
    /// Whether it may be left out. Only the last positional arguments may.
    pub optional: bool,
    /// What it means, with units and default: one sentence.
    pub doc: &'static str,
}

/// The declaration of a primitive.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The function's or method's name in scripts.
    pub name: &'static str,
    /// The type of the receiver of a method; `None` for a free function.
    pub on: Option<&'static str>,
    /// Positional arguments.
    pub params: Vec<Param>,
    /// Keys of the options map `#{ … }` that may follow the positional arguments.
    pub options: Vec<Param>,
    /// The type of the result.
    pub returns: Ty,
    /// What it does to the world.
    pub effect: Effect,
    /// Markdown; the first sentence says what it does in the third person.
    pub doc: &'static str,
    /// A runnable example in the script language.
    pub example: &'static str,
    /// The codes that it raises of its own.
    pub errors: &'static [Code],
}

impl Spec {
    /// Begins the declaration of a free function.
    #[must_use]
    pub fn function(name: &'static str, effect: Effect, doc: &'static str) -> Self {
        Spec { name, on: None, params: vec![], options: vec![], returns: Ty::Unit, effect, doc, example: "", errors: &[] }
    }

    /// Begins the declaration of a method of the type `on`.
    #[must_use]
    pub fn method(on: &'static str, name: &'static str, effect: Effect, doc: &'static str) -> Self {
        Spec { on: Some(on), ..Spec::function(name, effect, doc) }
    }

    /// Adds a positional argument.
    #[must_use]
    pub fn arg(mut self, name: &'static str, ty: Ty, doc: &'static str) -> Self {
        self.params.push(Param { name, ty, optional: false, doc });
        self
    }

    /// Adds a positional argument that may be left out.
    #[must_use]
    pub fn opt_arg(mut self, name: &'static str, ty: Ty, doc: &'static str) -> Self {
        self.params.push(Param { name, ty, optional: true, doc });
        self
    }

    /// Adds an option.
    #[must_use]
    pub fn option(mut self, name: &'static str, ty: Ty, doc: &'static str) -> Self {
        self.options.push(Param { name, ty, optional: true, doc });
        self
    }

    /// Sets the type of the result.
    #[must_use]
    pub fn returns(mut self, ty: Ty) -> Self {
        self.returns = ty;
        self
    }

    /// Sets the example.
    #[must_use]
    pub fn example(mut self, example: &'static str) -> Self {
        self.example = example;
        self
    }

    /// Sets the codes that it raises.
    #[must_use]
    pub fn errors(mut self, errors: &'static [Code]) -> Self {
        self.errors = errors;
        self
    }

    /// The full name: `Host.run` or `host`.
    #[must_use]
    pub fn full_name(&self) -> String {
        self.on.map_or_else(|| self.name.to_string(), |on| format!("{on}.{}", self.name))
    }

    /// The least and the greatest number of arguments that a call may have, options map included, receiver excluded.
    #[must_use]
    pub fn arity(&self) -> (usize, usize) {
        let least = self.params.iter().filter(|p| !p.optional).count();
        (least, self.params.len() + usize::from(!self.options.is_empty()))
    }

    /// One line: `Host.run(command: string or array of string, #{ timeout?, … }) -> Output`.
    #[must_use]
    pub fn signature(&self) -> String {
        let mut parts: Vec<String> =
            self.params.iter().map(|p| format!("{}{}: {}", p.name, if p.optional { "?" } else { "" }, p.ty)).collect();
        if !self.options.is_empty() {
            let names: Vec<&str> = self.options.iter().map(|o| o.name).collect();
            parts.push(format!("#{{ {} }}?", names.join(", ")));
        }
        format!("{}({}) -> {}", self.full_name(), parts.join(", "), self.returns)
    }

    /// Checks and converts the arguments of a call.
    ///
    /// # Errors
    /// `RB0202` for a wrong number of arguments, `RB0205` for a wrong type, `RB0206` for an unknown option (with a
    /// suggestion), `RB0203`/`RB0204` for bad durations and sizes.
    pub fn bind(&self, receiver: Option<Record>, mut args: Vec<Value>) -> Result<Call> {
        let (least, most) = self.arity();
        let usage = || format!("it is called as {}", self.signature());
        if args.len() < least || args.len() > most {
            return Err(
                Error::new(Code::UNKNOWN_FUNCTION, format!("{} does not take {} arguments", self.full_name(), args.len())).hint(usage())
            );
        }
        // The options map comes last, and only where it cannot be a positional argument.
        let mut options = BTreeMap::new();
        let takes_map = |i: usize| self.params.get(i).is_some_and(|p| matches!(p.ty, Ty::Map(_) | Ty::Any));
        if !self.options.is_empty()
            && args.len() > least
            && !takes_map(args.len() - 1)
            && let Some(Value::Map(_)) = args.last()
            && let Some(Value::Map(given)) = args.pop()
        {
            options = given;
        }
        if args.len() > self.params.len() {
            let got = args.last().map_or("()", |v| v.type_name()).to_string();
            return Err(Error::new(Code::WRONG_TYPE, format!("the last argument of {} is its options map, not {got}", self.full_name()))
                .hint(usage()));
        }
        let mut bound = Vec::with_capacity(args.len());
        for (p, v) in self.params.iter().zip(args) {
            if p.optional && v == Value::Unit {
                bound.push(v);
                continue;
            }
            bound.push(p.ty.coerce(v).map_err(|mut e| {
                e.message = format!("{}, argument \"{}\": {}", self.full_name(), p.name, e.message);
                e.hint.get_or_insert_with(usage);
                e
            })?);
        }
        let mut checked = BTreeMap::new();
        for (k, v) in options {
            let Some(p) = self.options.iter().find(|p| p.name == k) else {
                let mut e = Error::new(Code::UNKNOWN_OPTION, format!("{} has no option \"{k}\"", self.full_name()));
                e.hint = crate::suggest::closest(&k, self.options.iter().map(|p| p.name))
                    .map(|s| format!("did you mean \"{s}\"?"))
                    .or_else(|| Some(usage()));
                return Err(e);
            };
            if v == Value::Unit {
                continue;
            }
            let v = p.ty.coerce(v).map_err(|mut e| {
                e.message = format!("{}, option \"{k}\": {}", self.full_name(), e.message);
                e
            })?;
            checked.insert(k, v);
        }
        Ok(Call { receiver, args: bound, options: checked })
    }
}

/// The declaration of a record or handle type.
#[derive(Debug, Clone)]
pub struct TypeSpec {
    /// The type's name in scripts.
    pub name: &'static str,
    /// Its properties.
    pub fields: Vec<Param>,
    /// Whether properties beyond the declared ones may exist (a host's free variables).
    pub open: bool,
    /// Markdown; the first sentence says what a value of the type is.
    pub doc: &'static str,
}

impl TypeSpec {
    /// Begins the declaration of a type.
    #[must_use]
    pub fn new(name: &'static str, doc: &'static str) -> Self {
        TypeSpec { name, fields: vec![], open: false, doc }
    }

    /// Adds a property.
    #[must_use]
    pub fn field(mut self, name: &'static str, ty: Ty, doc: &'static str) -> Self {
        self.fields.push(Param { name, ty, optional: false, doc });
        self
    }

    /// Lets values have further properties.
    #[must_use]
    pub fn open(mut self) -> Self {
        self.open = true;
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn spec() -> Spec {
        Spec::method("Host", "run", Effect::Once, "Runs a command.")
            .arg("command", Ty::OneOf(vec![Ty::Str, Ty::List(Box::new(Ty::Str))]), "The command.")
            .option("timeout", Ty::Duration, "How long it may take.")
            .returns(Ty::Record("Output"))
    }

    #[test]
    fn binds_options_and_coerces_durations() {
        let call = spec().bind(None, vec!["id".into(), Value::Map(BTreeMap::from([("timeout".into(), "5s".into())]))]).unwrap();
        assert_eq!(call.opt_duration("timeout"), Some(Duration::from_secs(5)));
        assert_eq!(call.str(0), "id");
    }

    #[test]
    fn refuses_with_a_hint() {
        let e = spec().bind(None, vec!["id".into(), Value::Map(BTreeMap::from([("timout".into(), "5s".into())]))]).unwrap_err();
        assert_eq!((e.code, e.hint.as_deref()), (Code::UNKNOWN_OPTION, Some("did you mean \"timeout\"?")));
        let e = spec().bind(None, vec![Value::Int(3)]).unwrap_err();
        assert_eq!(e.code, Code::WRONG_TYPE);
        assert!(e.message.contains("\"command\""), "{}", e.message);
        assert_eq!(spec().bind(None, vec![]).unwrap_err().code, Code::UNKNOWN_FUNCTION);
        let e = spec().bind(None, vec!["id".into(), Value::Map(BTreeMap::from([("timeout".into(), "5".into())]))]).unwrap_err();
        assert_eq!(e.code, Code::BAD_DURATION);
    }
}
