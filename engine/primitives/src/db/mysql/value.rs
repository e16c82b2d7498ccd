//! Values between the server and scripts, without loss.
//!
//! | server | script |
//! |---|---|
//! | whole numbers, `YEAR`, `BIT` | int; text beyond 2⁶³ |
//! | `FLOAT`, `DOUBLE` | float |
//! | `DECIMAL` | text with all its digits |
//! | `TIMESTAMP` | Time; the zero date is text |
//! | `DATE`, `DATETIME`, `TIME` | text as the server shows it, with its fraction |
//! | text types, `ENUM`, `SET`, `JSON` | text |
//! | `BLOB`, `BINARY`, geometry | blob |
//! | `NULL` | `()` |

use mysql_async::consts::{ColumnFlags, ColumnType};
use mysql_async::{Column, Params, Value as My};
use runbook_core::{Code, Error, Result, Value};

/// The number of the character set that means bytes.
const BINARY: u16 = 63;

/// A column's value.
pub fn value(column: &Column, v: My) -> Value {
    use ColumnType as T;
    let ty = column.column_type();
    match v {
        My::NULL => Value::Unit,
        My::Int(i) => Value::Int(i),
        My::UInt(u) => unsigned(u),
        // The shortest text that reads back as the same number, not the digits that widening makes up.
        My::Float(f) => Value::Float(f.to_string().parse().unwrap_or_else(|_| f64::from(f))),
        My::Double(d) => Value::Float(d),
        My::Date(y, m, d, h, i, s, us) => match ty {
            T::MYSQL_TYPE_DATE | T::MYSQL_TYPE_NEWDATE => Value::Str(format!("{y:04}-{m:02}-{d:02}")),
            _ => {
                let text = format!("{y:04}-{m:02}-{d:02} {h:02}:{i:02}:{s:02}{}", fraction(us, column.decimals()));
                if matches!(ty, T::MYSQL_TYPE_TIMESTAMP | T::MYSQL_TYPE_TIMESTAMP2) { moment(&text) } else { Value::Str(text) }
            }
        },
        My::Time(negative, d, h, i, s, us) => {
            let hours = u64::from(d) * 24 + u64::from(h);
            let sign = if negative { "-" } else { "" };
            Value::Str(format!("{sign}{hours:02}:{i:02}:{s:02}{}", fraction(us, column.decimals())))
        }
        My::Bytes(b) => match ty {
            T::MYSQL_TYPE_BIT => {
                if b.len() <= 8 {
                    unsigned(b.iter().fold(0u64, |n, x| n << 8 | u64::from(*x)))
                } else {
                    Value::Blob(b)
                }
            }
            // Numbers are text where the statement was not prepared.
            T::MYSQL_TYPE_TINY
            | T::MYSQL_TYPE_SHORT
            | T::MYSQL_TYPE_INT24
            | T::MYSQL_TYPE_LONG
            | T::MYSQL_TYPE_LONGLONG
            | T::MYSQL_TYPE_YEAR => {
                let text = String::from_utf8_lossy(&b).into_owned();
                text.parse().map_or(Value::Str(text), Value::Int)
            }
            T::MYSQL_TYPE_FLOAT | T::MYSQL_TYPE_DOUBLE => {
                let text = String::from_utf8_lossy(&b).into_owned();
                text.parse().map_or(Value::Str(text), Value::Float)
            }
            T::MYSQL_TYPE_TIMESTAMP | T::MYSQL_TYPE_TIMESTAMP2 => moment(&String::from_utf8_lossy(&b)),
            T::MYSQL_TYPE_GEOMETRY => Value::Blob(b),
            T::MYSQL_TYPE_TINY_BLOB
            | T::MYSQL_TYPE_MEDIUM_BLOB
            | T::MYSQL_TYPE_LONG_BLOB
            | T::MYSQL_TYPE_BLOB
            | T::MYSQL_TYPE_STRING
            | T::MYSQL_TYPE_VAR_STRING
            | T::MYSQL_TYPE_VARCHAR
                if column.character_set() == BINARY && column.flags().contains(ColumnFlags::BINARY_FLAG) =>
            {
                Value::Blob(b)
            }
            _ => String::from_utf8(b).map_or_else(|e| Value::Blob(e.into_bytes()), Value::Str),
        },
    }
}

fn unsigned(u: u64) -> Value {
    i64::try_from(u).map_or_else(|_| Value::Str(u.to_string()), Value::Int)
}

fn fraction(us: u32, decimals: u8) -> String {
    match decimals {
        0 if us == 0 => String::new(),
        n @ 1..=6 => format!(".{us:06}").chars().take(1 + usize::from(n)).collect(),
        _ => format!(".{us:06}"),
    }
}

/// A timestamp as the session, which is in UTC, shows it.
fn moment(text: &str) -> Value {
    format!("{}Z", text.replacen(' ', "T", 1)).parse().map_or_else(|_| Value::Str(text.to_string()), Value::Time)
}

/// Parameters for a prepared statement.
///
/// # Errors
/// `RB0501` for a value that no parameter can be.
pub fn params(v: &Value) -> Result<Params> {
    Ok(match v {
        Value::Unit => Params::Empty,
        Value::List(l) if l.is_empty() => Params::Empty,
        Value::List(l) => Params::Positional(l.iter().map(param).collect::<Result<_>>()?),
        Value::Map(m) => Params::Named(m.iter().map(|(k, v)| Ok((k.clone().into_bytes(), param(v)?))).collect::<Result<_>>()?),
        other => return Err(Error::new(Code::DB_QUERY, format!("parameters are an array or a map, not {}", other.type_name()))),
    })
}

fn param(v: &Value) -> Result<My> {
    Ok(match v {
        Value::Unit => My::NULL,
        Value::Bool(b) => My::Int(i64::from(*b)),
        Value::Int(i) => My::Int(*i),
        Value::Float(f) => My::Double(*f),
        Value::Str(s) => My::Bytes(s.clone().into_bytes()),
        Value::Blob(b) => My::Bytes(b.clone()),
        Value::Bytes(n) => My::UInt(*n),
        Value::Time(t) => My::Bytes(t.strftime("%Y-%m-%d %H:%M:%S.%6f").to_string().into_bytes()),
        Value::Secret(s) => My::Bytes(s.reveal().as_bytes().to_vec()),
        other => return Err(Error::new(Code::DB_QUERY, format!("a value of type {} cannot be a parameter", other.type_name()))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(ty: ColumnType) -> Column {
        Column::new(ty)
    }

    #[test]
    fn numbers_keep_every_digit() {
        let long = column(ColumnType::MYSQL_TYPE_LONGLONG);
        assert_eq!(value(&long, My::UInt(u64::MAX)), Value::from("18446744073709551615"));
        assert_eq!(value(&long, My::UInt(7)), Value::Int(7));
        assert_eq!(value(&column(ColumnType::MYSQL_TYPE_NEWDECIMAL), My::Bytes(b"0.10".to_vec())), Value::from("0.10"));
        assert_eq!(value(&column(ColumnType::MYSQL_TYPE_FLOAT), My::Float(0.1)), Value::Float(0.1));
        assert_eq!(value(&column(ColumnType::MYSQL_TYPE_BIT), My::Bytes(vec![1, 0])), Value::Int(256));
    }

    #[test]
    fn dates_are_text_and_timestamps_are_moments() {
        let date = column(ColumnType::MYSQL_TYPE_DATE);
        assert_eq!(value(&date, My::Date(2026, 11, 21, 0, 0, 0, 0)), Value::from("2026-11-21"));
        let at = column(ColumnType::MYSQL_TYPE_DATETIME).with_decimals(3);
        assert_eq!(value(&at, My::Date(2026, 11, 21, 9, 8, 7, 120_000)), Value::from("2026-11-21 09:08:07.120"));
        let stamp = column(ColumnType::MYSQL_TYPE_TIMESTAMP);
        assert_eq!(value(&stamp, My::Date(2026, 11, 21, 9, 8, 7, 0)), Value::Time("2026-11-21T09:08:07Z".parse().unwrap()));
        assert_eq!(value(&stamp, My::Date(0, 0, 0, 0, 0, 0, 0)), Value::from("0000-00-00 00:00:00"));
        assert_eq!(value(&column(ColumnType::MYSQL_TYPE_TIME), My::Time(true, 1, 2, 3, 4, 0)), Value::from("-26:03:04"));
    }

    #[test]
    fn what_is_no_parameter_is_refused() {
        assert!(params(&Value::List(vec![Value::List(vec![])])).is_err());
        assert!(matches!(params(&Value::List(vec![Value::Bool(true)])).unwrap(), Params::Positional(p) if p == [My::Int(1)]));
    }
}
