//! The values that cross the boundary between scripts, primitives and the journal, and their exact JSON form.
//!
//! Plain data maps to plain JSON; everything else is an object with the key `$` that names its type, so that a value comes
//! back from the journal as what it was. Secrets are recorded by name only; handles (`host("old")`) by type and name only.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use jiff::Timestamp;
use serde_json::{Map as JsonMap, Value as Json};

use crate::error::{Code, Error, Result};
use crate::secret::Secret;
use crate::units::{show_bytes, show_duration};

/// A value of the script language.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Value {
    /// Nothing: `()`.
    #[default]
    Unit,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    /// Text.
    Str(String),
    /// Bytes that are not text.
    Blob(Vec<u8>),
    /// An array.
    List(Vec<Value>),
    /// An object map.
    Map(BTreeMap<String, Value>),
    /// A span of time.
    Duration(Duration),
    /// An amount of data in bytes.
    Bytes(u64),
    /// A moment, UTC.
    Time(Timestamp),
    /// A secret; recorded by its name, never by its value.
    Secret(Secret),
    /// A value of a named type with fields, such as `Output` or `Fence`; with a `name` it is a handle, such as `Host`.
    Record(Box<Record>),
}

/// A value of a named type. A primitive's result, or (with `name`) a reference to something in the inventory.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The type's name in scripts: `Output`, `Fence`, `Host`.
    pub ty: Cow<'static, str>,
    /// For a handle, the name in the inventory. Two handles with the same type and name are the same thing.
    pub name: Option<String>,
    /// What scripts can read as properties.
    pub fields: BTreeMap<String, Value>,
}

impl Record {
    /// Makes a plain record (not a handle) from its fields.
    pub fn new<const N: usize>(ty: &'static str, fields: [(&str, Value); N]) -> Self {
        Record { ty: ty.into(), name: None, fields: fields.into_iter().map(|(k, v)| (k.to_string(), v)).collect() }
    }

    /// Makes a handle: a reference to the thing of this type and name in the inventory.
    pub fn handle(ty: &'static str, name: impl Into<String>, fields: BTreeMap<String, Value>) -> Self {
        Record { ty: ty.into(), name: Some(name.into()), fields }
    }

    /// A field, or [`Value::Unit`] when there is none.
    #[must_use]
    pub fn get(&self, field: &str) -> &Value {
        self.fields.get(field).unwrap_or(&Value::Unit)
    }

    /// A text field, or the empty text.
    #[must_use]
    pub fn str(&self, field: &str) -> &str {
        self.get(field).as_str().unwrap_or("")
    }
}

impl Value {
    /// The name of the value's type as messages show it.
    #[must_use]
    pub fn type_name(&self) -> &str {
        match self {
            Value::Unit => "()",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Str(_) => "string",
            Value::Blob(_) => "blob",
            Value::List(_) => "array",
            Value::Map(_) => "map",
            Value::Duration(_) => "Duration",
            Value::Bytes(_) => "Bytes",
            Value::Time(_) => "Time",
            Value::Secret(_) => "Secret",
            Value::Record(r) => &r.ty,
        }
    }

    /// The text, when this is text.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        if let Value::Str(s) = self { Some(s) } else { None }
    }

    /// The whole number, when this is one.
    #[must_use]
    pub fn as_int(&self) -> Option<i64> {
        if let Value::Int(i) = self { Some(*i) } else { None }
    }

    /// The truth value, when this is one.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(b) = self { Some(*b) } else { None }
    }

    /// The record, when this is one.
    #[must_use]
    pub fn as_record(&self) -> Option<&Record> {
        if let Value::Record(r) = self { Some(r) } else { None }
    }

    /// The map, when this is one.
    #[must_use]
    pub fn as_map(&self) -> Option<&BTreeMap<String, Value>> {
        if let Value::Map(m) = self { Some(m) } else { None }
    }

    /// The items, when this is an array.
    #[must_use]
    pub fn as_list(&self) -> Option<&[Value]> {
        if let Value::List(l) = self { Some(l) } else { None }
    }

    /// Encodes for the journal. Numbers that JSON readers may round (fractions, whole numbers beyond 2⁵³) become text in a
    /// tagged object, so that the canonical form is the same in every language.
    #[must_use]
    pub fn to_json(&self) -> Json {
        fn tagged(ty: &str, v: impl Into<Json>) -> Json {
            let mut m = JsonMap::new();
            m.insert("$".into(), ty.into());
            m.insert("v".into(), v.into());
            Json::Object(m)
        }
        fn fields(m: &BTreeMap<String, Value>) -> Json {
            Json::Object(m.iter().map(|(k, v)| (k.clone(), v.to_json())).collect())
        }
        match self {
            Value::Unit => Json::Null,
            Value::Bool(b) => Json::Bool(*b),
            Value::Int(i) if i.unsigned_abs() <= 1 << 53 => (*i).into(),
            Value::Int(i) => tagged("int", i.to_string()),
            Value::Float(f) => tagged("float", format!("{f:?}")),
            Value::Str(s) => Json::String(s.clone()),
            Value::Blob(b) => tagged("blob", base64::engine::general_purpose::STANDARD.encode(b)),
            Value::List(l) => Json::Array(l.iter().map(Value::to_json).collect()),
            Value::Map(m) if m.contains_key("$") => tagged("map", fields(m)),
            Value::Map(m) => fields(m),
            Value::Duration(d) => tagged("duration", d.as_nanos().to_string()),
            Value::Bytes(n) => tagged("bytes", n.to_string()),
            Value::Time(t) => tagged("time", t.to_string()),
            Value::Secret(s) => tagged("secret", s.name()),
            Value::Record(r) => {
                let mut m = JsonMap::new();
                m.insert("$".into(), r.ty.as_ref().into());
                match &r.name {
                    Some(name) => m.insert("name".into(), name.as_str().into()),
                    None => m.insert("v".into(), fields(&r.fields)),
                };
                Json::Object(m)
            }
        }
    }

    /// Decodes what [`Value::to_json`] made.
    ///
    /// # Errors
    /// `RB0004` when the JSON is not such a form; secrets and handles cannot be decoded, since their content is not there.
    pub fn from_json(json: &Json) -> Result<Value> {
        let bad = || Error::new(Code::STORE_DAMAGED, format!("a recorded value cannot be read: {json}"));
        fn fields(m: &JsonMap<String, Json>) -> Result<BTreeMap<String, Value>> {
            m.iter().map(|(k, v)| Ok((k.clone(), Value::from_json(v)?))).collect()
        }
        Ok(match json {
            Json::Null => Value::Unit,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => Value::Int(n.as_i64().ok_or_else(bad)?),
            Json::String(s) => Value::Str(s.clone()),
            Json::Array(a) => Value::List(a.iter().map(Value::from_json).collect::<Result<_>>()?),
            Json::Object(m) => {
                let Some(tag) = m.get("$") else { return Ok(Value::Map(fields(m)?)) };
                let tag = tag.as_str().ok_or_else(bad)?;
                let v = m.get("v");
                let text = v.and_then(Json::as_str).ok_or_else(bad);
                match tag {
                    "int" => Value::Int(text?.parse().map_err(|_| bad())?),
                    "float" => Value::Float(text?.parse().map_err(|_| bad())?),
                    "blob" => Value::Blob(base64::engine::general_purpose::STANDARD.decode(text?).map_err(|_| bad())?),
                    "duration" => Value::Duration(Duration::from_nanos(text?.parse().map_err(|_| bad())?)),
                    "bytes" => Value::Bytes(text?.parse().map_err(|_| bad())?),
                    "time" => Value::Time(text?.parse().map_err(|_| bad())?),
                    "map" => Value::Map(fields(v.and_then(Json::as_object).ok_or_else(bad)?)?),
                    ty => {
                        let v = v.and_then(Json::as_object).ok_or_else(bad)?;
                        Value::Record(Box::new(Record { ty: ty.to_string().into(), name: None, fields: fields(v)? }))
                    }
                }
            }
        })
    }

    /// Applies `f` to every text in the value, keys excepted. Used to strike secrets.
    #[must_use]
    pub fn map_text(self, f: &dyn Fn(String) -> String) -> Value {
        match self {
            Value::Str(s) => Value::Str(f(s)),
            Value::List(l) => Value::List(l.into_iter().map(|v| v.map_text(f)).collect()),
            Value::Map(m) => Value::Map(m.into_iter().map(|(k, v)| (k, v.map_text(f))).collect()),
            Value::Record(mut r) if r.name.is_none() => {
                r.fields = r.fields.into_iter().map(|(k, v)| (k, v.map_text(f))).collect();
                Value::Record(r)
            }
            other => other,
        }
    }
}

/// Shows a value as messages do: text in quotes, handles as the call that makes them, secrets struck.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Unit => f.write_str("()"),
            Value::Bool(b) => write!(f, "{b}"),
            Value::Int(i) => write!(f, "{i}"),
            Value::Float(x) => write!(f, "{x:?}"),
            Value::Str(s) => write!(f, "{s:?}"),
            Value::Blob(b) => write!(f, "blob of {}", show_bytes(b.len() as u64)),
            Value::List(l) => {
                f.write_str("[")?;
                for (i, v) in l.iter().enumerate() {
                    write!(f, "{}{v}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str("]")
            }
            Value::Map(m) => {
                f.write_str("#{")?;
                for (i, (k, v)) in m.iter().enumerate() {
                    write!(f, "{} {k}: {v}", if i > 0 { "," } else { "" })?;
                }
                f.write_str(" }")
            }
            Value::Duration(d) => write!(f, "{:?}", show_duration(*d)),
            Value::Bytes(n) => write!(f, "{:?}", show_bytes(*n)),
            Value::Time(t) => write!(f, "{t}"),
            Value::Secret(s) => write!(f, "secret({:?})", s.name()),
            Value::Record(r) => match &r.name {
                Some(name) => write!(f, "{}({name:?})", r.ty.to_lowercase()),
                None => f.write_str(&r.ty),
            },
        }
    }
}

macro_rules! from {
    ($($t:ty => |$x:ident| $e:expr;)*) => { $(impl From<$t> for Value { fn from($x: $t) -> Self { $e } })* };
}
from! {
    () => |_x| Value::Unit;
    bool => |x| Value::Bool(x);
    i64 => |x| Value::Int(x);
    i32 => |x| Value::Int(i64::from(x));
    u32 => |x| Value::Int(i64::from(x));
    &str => |x| Value::Str(x.to_string());
    String => |x| Value::Str(x);
    Duration => |x| Value::Duration(x);
    Timestamp => |x| Value::Time(x);
    Vec<Value> => |x| Value::List(x);
    BTreeMap<String, Value> => |x| Value::Map(x);
    Secret => |x| Value::Secret(x);
    Record => |x| Value::Record(Box::new(x));
}
impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(x: Option<T>) -> Self {
        x.map_or(Value::Unit, Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Unit),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            (-1e300f64..1e300).prop_map(Value::Float),
            ".*".prop_map(Value::Str),
            proptest::collection::vec(any::<u8>(), 0..20).prop_map(Value::Blob),
            any::<u64>().prop_map(|n| Value::Duration(Duration::from_nanos(n))),
            any::<u64>().prop_map(Value::Bytes),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::List),
                proptest::collection::btree_map("[$a-z]{1,3}", inner.clone(), 0..6).prop_map(Value::Map),
                proptest::collection::btree_map("[a-z]{1,3}", inner, 0..6).prop_map(|fields| Value::Record(Box::new(Record {
                    ty: "Output".into(),
                    name: None,
                    fields
                }))),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_value_comes_back_from_the_journal_as_it_was(v in values()) {
            let text = v.to_json().to_string();
            let back = Value::from_json(&serde_json::from_str(&text).unwrap()).unwrap();
            prop_assert_eq!(back, v);
        }
    }

    #[test]
    fn secrets_and_handles_are_recorded_by_name() {
        let s = Value::Secret(Secret::new("tsig", "hunter2"));
        assert_eq!(s.to_json().to_string(), r#"{"$":"secret","v":"tsig"}"#);
        let h = Value::from(Record::handle("Host", "old", BTreeMap::from([("address".to_string(), Value::from("192.0.2.1"))])));
        assert_eq!(h.to_json().to_string(), r#"{"$":"Host","name":"old"}"#);
        assert!(Value::from_json(&h.to_json()).is_err());
    }
}
