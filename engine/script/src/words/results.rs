//! What `each` gives: a value for every item, by name, in the order of the list; with `tolerate` also what failed and what did not begin.

use rhai::{Array, Dynamic, Engine, EvalAltResult, ImmutableString, Map, NativeCallContext};
use runbook_core::suggest::closest;
use runbook_core::{Code, Error};

use crate::bind::located;
use crate::fault::shown;

type Res<T> = Result<T, Box<EvalAltResult>>;

/// The values of branches by name.
#[derive(Debug, Clone, Default)]
pub struct Results {
    /// Of those that went well.
    pub values: Vec<(String, Dynamic)>,
    /// Of those that failed.
    pub failed: Vec<(String, Error)>,
    /// Those that did not begin.
    pub not_begun: Vec<String>,
}

impl Results {
    fn value(&self, name: &str) -> Result<Dynamic, Error> {
        if let Some((_, v)) = self.values.iter().find(|(n, _)| n == name) {
            return Ok(v.clone());
        }
        if let Some((_, e)) = self.failed.iter().find(|(n, _)| n == name) {
            return Err(Error::new(Code::SCRIPT, format!("there is no value for \"{name}\", which failed: {}", e.message))
                .hint("go through .ok() for those that went well"));
        }
        if self.not_begun.iter().any(|n| n == name) {
            return Err(Error::new(Code::SCRIPT, format!("there is no value for \"{name}\", which did not begin"))
                .hint("go through .ok() for those that went well"));
        }
        let all = || self.values.iter().map(|(n, _)| n.as_str());
        let e = Error::new(Code::UNKNOWN_PROPERTY, format!("there is no result for \"{name}\""));
        Err(match closest(name, all()) {
            Some(c) => e.hint(format!("did you mean \"{c}\"?")),
            None => e.hint(format!("there are: {}", all().collect::<Vec<_>>().join(", "))),
        })
    }

    /// The values as a plain map.
    #[must_use]
    pub fn map(&self) -> Map {
        self.values.iter().map(|(n, v)| (n.as_str().into(), v.clone())).collect()
    }

    fn text(&self) -> String {
        let mut out = format!("{} ok", self.values.len());
        for (n, what) in [(self.failed.len(), "failed"), (self.not_begun.len(), "not begun")] {
            if n > 0 {
                out.push_str(&format!(", {n} {what}"));
            }
        }
        out
    }
}

fn names<'a>(all: impl Iterator<Item = &'a str>) -> Array {
    all.map(|n| ImmutableString::from(n).into()).collect()
}

/// Adds the type to the engine.
pub fn register(e: &mut Engine) {
    e.register_type_with_name::<Results>("Results")
        .register_fn("ok", |r: &mut Results| names(r.values.iter().map(|(n, _)| n.as_str())))
        .register_fn("failed", |r: &mut Results| names(r.failed.iter().map(|(n, _)| n.as_str())))
        .register_fn("not_begun", |r: &mut Results| names(r.not_begun.iter().map(String::as_str)))
        .register_fn("values", |r: &mut Results| -> Array { r.values.iter().map(|(_, v)| v.clone()).collect() })
        .register_fn("to_map", |r: &mut Results| r.map())
        .register_fn("len", |r: &mut Results| i64::try_from(r.values.len()).unwrap_or(i64::MAX))
        .register_fn("to_string", |r: &mut Results| r.text())
        .register_fn("to_debug", |r: &mut Results| r.text())
        .register_fn("value", |ctx: NativeCallContext, r: &mut Results, name: ImmutableString| -> Res<Dynamic> {
            r.value(&name).map_err(|e| located(&ctx, e))
        })
        .register_fn("error", |r: &mut Results, name: ImmutableString| -> Dynamic {
            r.failed.iter().find(|(n, _)| *n == name.as_str()).map_or(Dynamic::UNIT, |(_, e)| shown(e).into())
        })
        .register_indexer_get(|ctx: NativeCallContext, r: &mut Results, name: ImmutableString| -> Res<Dynamic> {
            r.value(&name).map_err(|e| located(&ctx, e))
        });
}
