//! The types of arguments, options and results.

use std::fmt;

use crate::codes::Code;
use crate::error::{Error, Result};
use crate::units::{parse_bytes, parse_duration};
use crate::value::Value;

/// The type of an argument, an option, a field or a result.
#[derive(Debug, Clone, PartialEq)]
pub enum Ty {
    /// No value.
    Unit,
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Int,
    /// A number with or without a fraction.
    Float,
    /// Text.
    Str,
    /// Bytes; text is taken as UTF-8.
    Blob,
    /// A span of time; text such as `"10m"` is taken too.
    Duration,
    /// An amount of data; text such as `"64MiB"` is taken too.
    Bytes,
    /// A moment.
    Time,
    /// A secret; plain text is refused.
    Secret,
    /// An array of one type.
    List(Box<Ty>),
    /// An object map with values of one type.
    Map(Box<Ty>),
    /// A record or handle with this type name.
    Record(&'static str),
    /// One of several types, tried in order.
    OneOf(Vec<Ty>),
    /// Any value.
    Any,
}

impl fmt::Display for Ty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ty::Unit => f.write_str("()"),
            Ty::Bool => f.write_str("bool"),
            Ty::Int => f.write_str("int"),
            Ty::Float => f.write_str("float"),
            Ty::Str => f.write_str("string"),
            Ty::Blob => f.write_str("blob"),
            Ty::Duration => f.write_str("Duration"),
            Ty::Bytes => f.write_str("Bytes"),
            Ty::Time => f.write_str("Time"),
            Ty::Secret => f.write_str("Secret"),
            Ty::List(t) => write!(f, "array of {t}"),
            Ty::Map(t) if **t == Ty::Any => f.write_str("map"),
            Ty::Map(t) => write!(f, "map of {t}"),
            Ty::Record(name) => f.write_str(name),
            Ty::OneOf(of) => {
                for (i, t) in of.iter().enumerate() {
                    write!(f, "{}{t}", if i > 0 { " or " } else { "" })?;
                }
                Ok(())
            }
            Ty::Any => f.write_str("any value"),
        }
    }
}

impl Ty {
    /// Takes `value` as this type, reading durations and sizes from text.
    ///
    /// # Errors
    /// `RB0205` when the value is of another type; `RB0203`, `RB0204` when a text is not a duration or size.
    pub fn coerce(&self, value: Value) -> Result<Value> {
        let wrong = |v: &Value| Error::new(Code::WRONG_TYPE, format!("{self} is wanted here, not {} ({})", v.type_name(), v));
        Ok(match (self, value) {
            (Ty::Any, v) | (Ty::Unit, v @ Value::Unit) | (Ty::Bool, v @ Value::Bool(_)) | (Ty::Int, v @ Value::Int(_)) => v,
            (Ty::Float, v @ Value::Float(_)) | (Ty::Str, v @ Value::Str(_)) | (Ty::Blob, v @ Value::Blob(_)) => v,
            (Ty::Float, Value::Int(i)) => Value::Float(i as f64),
            (Ty::Blob, Value::Str(s)) => Value::Blob(s.into_bytes()),
            (Ty::Duration, v @ Value::Duration(_)) | (Ty::Bytes, v @ Value::Bytes(_)) => v,
            (Ty::Duration, Value::Str(s)) => Value::Duration(parse_duration(&s)?),
            (Ty::Bytes, Value::Str(s)) => Value::Bytes(parse_bytes(&s)?),
            (Ty::Time, v @ Value::Time(_)) | (Ty::Secret, v @ Value::Secret(_)) => v,
            (Ty::List(of), Value::List(items)) => Value::List(items.into_iter().map(|v| of.coerce(v)).collect::<Result<_>>()?),
            (Ty::Map(of), Value::Map(m)) => Value::Map(m.into_iter().map(|(k, v)| Ok((k, of.coerce(v)?))).collect::<Result<_>>()?),
            (Ty::Record(name), Value::Record(r)) if r.ty == *name => Value::Record(r),
            (Ty::OneOf(of), v) => {
                for t in of {
                    if let Ok(v) = t.coerce(v.clone()) {
                        return Ok(v);
                    }
                }
                return Err(wrong(&v));
            }
            (_, v) => return Err(wrong(&v)),
        })
    }
}
