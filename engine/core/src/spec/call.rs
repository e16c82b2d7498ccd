//! A call as a primitive gets it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::secret::Secret;
use crate::value::{Record, Value};

/// A call with checked arguments, as a primitive gets it. The accessors never fail on what [`super::Spec::bind`] let through.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Call {
    /// The receiver of a method.
    pub receiver: Option<Record>,
    /// Positional arguments; those left out at the end are missing.
    pub args: Vec<Value>,
    /// Options that were given.
    pub options: BTreeMap<String, Value>,
}

impl Call {
    /// The inventory name of the receiver; empty for a free function.
    #[must_use]
    pub fn target(&self) -> &str {
        self.receiver.as_ref().and_then(|r| r.name.as_deref()).unwrap_or("")
    }

    /// A positional argument, or [`Value::Unit`] when it was left out.
    #[must_use]
    pub fn arg(&self, i: usize) -> &Value {
        self.args.get(i).unwrap_or(&Value::Unit)
    }

    /// A positional text argument, or the empty text.
    #[must_use]
    pub fn str(&self, i: usize) -> &str {
        self.arg(i).as_str().unwrap_or("")
    }

    /// A positional duration.
    #[must_use]
    pub fn duration(&self, i: usize) -> Option<Duration> {
        if let Value::Duration(d) = self.arg(i) { Some(*d) } else { None }
    }

    /// An option.
    #[must_use]
    pub fn opt(&self, name: &str) -> Option<&Value> {
        self.options.get(name)
    }

    /// A text option.
    #[must_use]
    pub fn opt_str(&self, name: &str) -> Option<&str> {
        self.opt(name).and_then(Value::as_str)
    }

    /// A duration option.
    #[must_use]
    pub fn opt_duration(&self, name: &str) -> Option<Duration> {
        if let Some(Value::Duration(d)) = self.opt(name) { Some(*d) } else { None }
    }

    /// A truth option; `false` when it was not given.
    #[must_use]
    pub fn opt_bool(&self, name: &str) -> bool {
        self.opt(name).and_then(Value::as_bool).unwrap_or(false)
    }

    /// A whole-number option.
    #[must_use]
    pub fn opt_int(&self, name: &str) -> Option<i64> {
        self.opt(name).and_then(Value::as_int)
    }

    /// A secret option.
    #[must_use]
    pub fn opt_secret(&self, name: &str) -> Option<&Secret> {
        if let Some(Value::Secret(s)) = self.opt(name) { Some(s) } else { None }
    }

    /// Shows the call as the script has it, secrets struck: `host("old").run("id")`.
    #[must_use]
    pub fn show(&self, name: &str) -> String {
        let mut parts: Vec<String> = self.args.iter().map(ToString::to_string).collect();
        if !self.options.is_empty() {
            parts.push(Value::Map(self.options.clone()).to_string());
        }
        match &self.receiver {
            Some(r) => format!("{}.{name}({})", Value::from(r.clone()), parts.join(", ")),
            None => format!("{name}({})", parts.join(", ")),
        }
    }
}
