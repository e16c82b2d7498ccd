//! Values of the language and values of the engine: Rhai's `Dynamic` and the core's [`Value`].

use rhai::{Dynamic, FnPtr, ImmutableString};
use runbook_core::secret::Secret;
use runbook_core::units::{show_bytes, show_duration};
use runbook_core::{Code, Error, Record, Result, Value};

use crate::words::results::Results;

/// A span of time as scripts hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub std::time::Duration);

/// An amount of data as scripts hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A moment as scripts hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub jiff::Timestamp);

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&show_duration(self.0))
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&show_bytes(self.0))
    }
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&runbook_core::clock::rfc3339(self.0))
    }
}

/// Gives a value to the script.
pub fn to_dynamic(v: Value) -> Dynamic {
    match v {
        Value::Unit => Dynamic::UNIT,
        Value::Bool(b) => b.into(),
        Value::Int(i) => i.into(),
        Value::Float(f) => f.into(),
        Value::Str(s) => s.into(),
        Value::Blob(b) => Dynamic::from_blob(b),
        Value::List(l) => Dynamic::from_array(l.into_iter().map(to_dynamic).collect()),
        Value::Map(m) => Dynamic::from_map(m.into_iter().map(|(k, v)| (k.into(), to_dynamic(v))).collect()),
        Value::Duration(d) => Dynamic::from(Span(d)),
        Value::Bytes(n) => Dynamic::from(Size(n)),
        Value::Time(t) => Dynamic::from(Moment(t)),
        Value::Secret(s) => Dynamic::from(s),
        Value::Record(r) => Dynamic::from(*r),
    }
}

/// Takes a value from the script.
///
/// # Errors
/// `RB0213` for what cannot be recorded: functions, closures, foreign types.
pub fn to_value(d: Dynamic) -> Result<Value> {
    let d = d.flatten();
    if d.is_unit() {
        return Ok(Value::Unit);
    }
    if let Ok(b) = d.as_bool() {
        return Ok(Value::Bool(b));
    }
    if let Ok(i) = d.as_int() {
        return Ok(Value::Int(i));
    }
    if let Ok(f) = d.as_float() {
        return Ok(Value::Float(f));
    }
    if let Ok(c) = d.as_char() {
        return Ok(Value::Str(c.to_string()));
    }
    if d.is_string() {
        return Ok(Value::Str(d.cast::<ImmutableString>().to_string()));
    }
    if d.is_array() {
        let items = d.into_array().unwrap_or_default();
        return Ok(Value::List(items.into_iter().map(to_value).collect::<Result<_>>()?));
    }
    if d.is_blob() {
        return Ok(Value::Blob(d.into_blob().unwrap_or_default()));
    }
    if d.is_map() {
        let map = d.cast::<rhai::Map>();
        return Ok(Value::Map(map.into_iter().map(|(k, v)| Ok((k.to_string(), to_value(v)?))).collect::<Result<_>>()?));
    }
    if let Ok(x) = d.as_decimal() {
        return Ok(Value::Str(x.to_string()));
    }
    if let Some(s) = d.read_lock::<Span>() {
        return Ok(Value::Duration(s.0));
    }
    if let Some(s) = d.read_lock::<Size>() {
        return Ok(Value::Bytes(s.0));
    }
    if let Some(m) = d.read_lock::<Moment>() {
        return Ok(Value::Time(m.0));
    }
    if let Some(s) = d.read_lock::<Secret>() {
        return Ok(Value::Secret(s.clone()));
    }
    if let Some(r) = d.read_lock::<Record>() {
        return Ok(Value::Record(Box::new(r.clone())));
    }
    if let Some(r) = d.read_lock::<Results>() {
        return to_value(r.map().into());
    }
    let what = if d.is::<FnPtr>() { "a function".to_string() } else { format!("a value of type {}", d.type_name()) };
    Err(Error::new(Code::NOT_A_RUNBOOK_VALUE, format!("{what} cannot be given to a primitive"))
        .hint("give it plain values: text, numbers, arrays, maps, durations, handles"))
}
