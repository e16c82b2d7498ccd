//! Values between scripts and the server, both ways without loss.
//!
//! | PostgreSQL | script |
//! |---|---|
//! | `boolean` | bool |
//! | `smallint`, `integer`, `bigint`, `oid` | int |
//! | `real`, `double precision` | float |
//! | `text`, `varchar`, `char`, `name`, enums, `xml`, `json`, `jsonb` | string |
//! | `bytea` | blob |
//! | `timestamptz` | Time (`infinity` as a string) |
//! | `uuid` | string |
//! | arrays of all these | array, nested for each dimension |
//! | `numeric`, `date`, `time`, `timestamp`, `interval`, `inet`, ranges, composite types and all others | string, as the server writes it |
//! | NULL | `()` |

use std::error::Error as StdError;

use bytes::BytesMut;
use runbook_core::units::show_duration;
use runbook_core::{Code, Error, Result, Value};
use tokio_postgres::types::{Format, FromSql, IsNull, Kind, ToSql, Type};

type Boxed = Box<dyn StdError + Sync + Send>;

/// A column's bytes as the server sent them.
pub(super) struct Raw(pub Option<Vec<u8>>);

impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &Type, raw: &'a [u8]) -> std::result::Result<Self, Boxed> {
        Ok(Raw(Some(raw.to_vec())))
    }
    fn from_sql_null(_: &Type) -> std::result::Result<Self, Boxed> {
        Ok(Raw(None))
    }
    fn accepts(_: &Type) -> bool {
        true
    }
}

/// Whether a type's binary form is read here; of the others the text is asked for.
pub(super) fn native(ty: &Type) -> bool {
    match ty.kind() {
        Kind::Array(inner) => !matches!(inner.kind(), Kind::Array(_)) && native(inner),
        Kind::Enum(_) => true,
        Kind::Simple | Kind::Pseudo => {
            textual(ty)
                || [
                    Type::BOOL,
                    Type::INT2,
                    Type::INT4,
                    Type::INT8,
                    Type::OID,
                    Type::FLOAT4,
                    Type::FLOAT8,
                    Type::BYTEA,
                    Type::TIMESTAMPTZ,
                    Type::UUID,
                    Type::JSONB,
                ]
                .contains(ty)
        }
        _ => false,
    }
}

fn textual(ty: &Type) -> bool {
    [Type::TEXT, Type::VARCHAR, Type::BPCHAR, Type::NAME, Type::JSON, Type::XML, Type::UNKNOWN, Type::CSTRING].contains(ty)
}

/// Reads a value's binary form.
///
/// # Errors
/// `RB0501` when it is not what its type says.
pub(super) fn read(ty: &Type, raw: Option<&[u8]>) -> Result<Value> {
    let Some(b) = raw else { return Ok(Value::Unit) };
    let bad = || Error::new(Code::DB_QUERY, format!("a value of type {} is not understood", ty.name()));
    fn array<const N: usize>(b: &[u8]) -> Option<[u8; N]> {
        b.try_into().ok()
    }
    let text = |b: &[u8]| String::from_utf8(b.to_vec()).map(Value::Str).map_err(|_| bad());
    if let Kind::Array(inner) = ty.kind() {
        return read_array(inner, b).ok_or_else(bad)?;
    }
    Ok(match *ty {
        Type::BOOL => Value::Bool(b == [1]),
        Type::INT2 => Value::Int(i16::from_be_bytes(array(b).ok_or_else(bad)?).into()),
        Type::INT4 => Value::Int(i32::from_be_bytes(array(b).ok_or_else(bad)?).into()),
        Type::INT8 => Value::Int(i64::from_be_bytes(array(b).ok_or_else(bad)?)),
        Type::OID => Value::Int(u32::from_be_bytes(array(b).ok_or_else(bad)?).into()),
        // By its text, so that 0.1 stays 0.1.
        Type::FLOAT4 => Value::Float(f32::from_be_bytes(array(b).ok_or_else(bad)?).to_string().parse().map_err(|_| bad())?),
        Type::FLOAT8 => Value::Float(f64::from_be_bytes(array(b).ok_or_else(bad)?)),
        Type::BYTEA => Value::Blob(b.to_vec()),
        Type::JSONB => text(b.get(1..).ok_or_else(bad)?)?,
        Type::UUID => {
            let hex: String = array::<16>(b).ok_or_else(bad)?.iter().map(|b| format!("{b:02x}")).collect();
            let part = |r: std::ops::Range<usize>| hex.get(r).unwrap_or_default().to_string();
            Value::Str([part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-"))
        }
        Type::TIMESTAMPTZ => match i64::from_be_bytes(array(b).ok_or_else(bad)?) {
            i64::MAX => "infinity".into(),
            i64::MIN => "-infinity".into(),
            us => {
                let unix = us.checked_add(946_684_800_000_000).ok_or_else(bad)?;
                match jiff::Timestamp::from_microsecond(unix) {
                    Ok(t) => Value::Time(t),
                    Err(_) => {
                        return Err(
                            Error::new(Code::DB_QUERY, "a timestamptz lies beyond the year 9999").hint("select it as text: column::text")
                        );
                    }
                }
            }
        },
        _ => text(b)?,
    })
}

/// Reads an array's binary form; `None` when it is not one.
fn read_array(inner: &Type, b: &[u8]) -> Option<Result<Value>> {
    let int = |at: usize| -> Option<i32> { Some(i32::from_be_bytes(b.get(at..at + 4)?.try_into().ok()?)) };
    let dimensions = usize::try_from(int(0)?).ok()?;
    if dimensions == 0 {
        return Some(Ok(Value::List(vec![])));
    }
    let sizes: Vec<usize> = (0..dimensions).map(|d| usize::try_from(int(12 + d * 8)?).ok()).collect::<Option<_>>()?;
    let mut at = 12 + dimensions * 8;
    let mut items = Vec::new();
    while at < b.len() {
        let len = int(at)?;
        at += 4;
        let raw = match usize::try_from(len) {
            Ok(len) => {
                let raw = b.get(at..at + len)?;
                at += len;
                Some(raw)
            }
            Err(_) => None,
        };
        match read(inner, raw) {
            Ok(v) => items.push(v),
            Err(e) => return Some(Err(e)),
        }
    }
    for size in sizes.iter().skip(1).rev() {
        items = items.chunks((*size).max(1)).map(|c| Value::List(c.to_vec())).collect();
    }
    Some(Ok(Value::List(items)))
}

/// A parameter, sent as text: the server reads it by the type that it has inferred.
#[derive(Debug)]
pub(super) struct Param(pub Value);

impl ToSql for Param {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> std::result::Result<IsNull, Boxed> {
        if self.0 == Value::Unit {
            return Ok(IsNull::Yes);
        }
        out.extend_from_slice(text(&self.0, ty)?.as_bytes());
        Ok(IsNull::No)
    }
    fn accepts(_: &Type) -> bool {
        true
    }
    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }
    fn to_sql_checked(&self, ty: &Type, out: &mut BytesMut) -> std::result::Result<IsNull, Boxed> {
        self.to_sql(ty, out)
    }
}

/// A value as the server reads it.
fn text(v: &Value, ty: &Type) -> std::result::Result<String, Boxed> {
    let json = [Type::JSON, Type::JSONB].contains(ty);
    Ok(match v {
        Value::Unit => String::new(),
        Value::Bool(b) => b.to_string(),
        Value::Int(i) => i.to_string(),
        Value::Bytes(n) => n.to_string(),
        Value::Float(f) if f.is_infinite() => if *f > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        Value::Float(f) => format!("{f:?}"),
        Value::Str(s) => s.clone(),
        Value::Secret(s) => s.reveal().to_string(),
        Value::Blob(b) => format!("\\x{}", b.iter().map(|b| format!("{b:02x}")).collect::<String>()),
        Value::Time(t) => t.to_string(),
        Value::Duration(d) => format!("{} seconds {} microseconds", d.as_secs(), d.subsec_micros()),
        Value::List(_) | Value::Map(_) if json => plain_json(v)?.to_string(),
        Value::List(items) => {
            let inner = if let Kind::Array(inner) = ty.kind() { inner } else { &Type::TEXT };
            let mut parts = Vec::with_capacity(items.len());
            for item in items {
                parts.push(match item {
                    Value::Unit => "NULL".to_string(),
                    Value::List(_) if ![Type::JSON, Type::JSONB].contains(inner) => text(item, ty)?,
                    other => format!("\"{}\"", text(other, inner)?.replace('\\', "\\\\").replace('"', "\\\"")),
                });
            }
            format!("{{{}}}", parts.join(","))
        }
        Value::Map(_) | Value::Record(_) => {
            return Err(format!("a {} cannot be a value of type {} (a map can be json)", v.type_name(), ty.name()).into());
        }
    })
}

fn plain_json(v: &Value) -> std::result::Result<serde_json::Value, Boxed> {
    use serde_json::Value as Json;
    Ok(match v {
        Value::Unit => Json::Null,
        Value::Bool(b) => Json::Bool(*b),
        Value::Int(i) => (*i).into(),
        Value::Float(f) => serde_json::Number::from_f64(*f).map(Json::Number).ok_or("JSON has no infinity and no NaN")?,
        Value::Str(s) => Json::String(s.clone()),
        Value::Secret(s) => Json::String(s.reveal().into()),
        Value::List(l) => Json::Array(l.iter().map(plain_json).collect::<std::result::Result<_, _>>()?),
        Value::Map(m) => Json::Object(m.iter().map(|(k, v)| Ok((k.clone(), plain_json(v)?))).collect::<std::result::Result<_, Boxed>>()?),
        Value::Duration(d) => Json::String(show_duration(*d)),
        Value::Time(t) => Json::String(t.to_string()),
        Value::Bytes(n) => (*n).into(),
        other => return Err(format!("a {} cannot be part of JSON", other.type_name()).into()),
    })
}

/// Reads an array as the server writes it: `{a,"b c",NULL,{…}}`.
pub(super) fn array_text(text: &str) -> Option<Value> {
    // Bounds that do not begin at 1 stand before the value.
    let text = if text.starts_with('[') { text.split_once('=')?.1 } else { text };
    let mut chars = text.chars().peekable();
    let v = items(&mut chars)?;
    chars.next().is_none().then_some(v)
}

fn items(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Value> {
    if chars.next()? != '{' {
        return None;
    }
    let mut out = Vec::new();
    if chars.peek() == Some(&'}') {
        chars.next();
        return Some(Value::List(out));
    }
    loop {
        match chars.peek()? {
            '{' => out.push(items(chars)?),
            '"' => {
                chars.next();
                let mut s = String::new();
                loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' => s.push(chars.next()?),
                        c => s.push(c),
                    }
                }
                out.push(Value::Str(s));
            }
            _ => {
                let mut s = String::new();
                while let Some(c) = chars.next_if(|c| !matches!(c, ',' | '}')) {
                    s.push(c);
                }
                out.push(if s == "NULL" { Value::Unit } else { Value::Str(s) });
            }
        }
        match chars.next()? {
            ',' => {}
            '}' => return Some(Value::List(out)),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_read_as_they_are_written() {
        let v = array_text(r#"{1.50,NULL,"NULL","a\"b\\,c",{x,y},{}}"#).unwrap();
        let s = |t: &str| Value::Str(t.into());
        let want = vec![s("1.50"), Value::Unit, s("NULL"), s("a\"b\\,c"), Value::List(vec![s("x"), s("y")]), Value::List(vec![])];
        assert_eq!(v, Value::List(want));
        assert_eq!(array_text("[0:1]={1,2}"), Some(Value::List(vec![s("1"), s("2")])));
        assert_eq!(array_text("{1"), None);
    }

    #[test]
    fn parameters_are_written_as_the_server_reads_them() {
        assert_eq!(text(&Value::Blob(vec![0, 255]), &Type::BYTEA).unwrap(), "\\x00ff");
        assert_eq!(text(&Value::Float(f64::NEG_INFINITY), &Type::FLOAT8).unwrap(), "-Infinity");
        let list = Value::List(vec!["a\"b".into(), Value::Unit, Value::Int(1)]);
        assert_eq!(text(&list, &Type::TEXT_ARRAY).unwrap(), r#"{"a\"b",NULL,"1"}"#);
        assert_eq!(text(&list, &Type::JSONB).unwrap(), r#"["a\"b",null,1]"#);
        assert!(text(&Value::Map(Default::default()), &Type::TEXT).is_err());
    }

    #[test]
    fn a_damaged_array_is_an_error() {
        for n in 0..20 {
            assert!(read(&Type::INT4_ARRAY, Some(&vec![1; n])).is_err(), "{n}");
        }
    }
}
