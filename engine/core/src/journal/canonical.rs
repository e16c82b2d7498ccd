//! Canonical JSON (RFC 8785) and the hash chain: what exactly is hashed, and how an entry is written as a line.
//!
//! Every store and every verifier goes through here. Entries hold no fractions and no whole numbers beyond 2⁵³ (values
//! encode those as text, see [`crate::Value::to_json`]), so the one hard part of RFC 8785, the form of floating-point
//! numbers, never occurs: such a number is refused.

use std::cmp::Ordering;
use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::Value as Json;

use super::{Body, Entry};
use crate::digest::{hex, sha256};
use crate::error::{Error, Result};

/// How deep an entry's data may nest; JSON readers of many languages stop a little above this.
pub const MAX_DEPTH: usize = 120;

/// The largest whole number that every JSON reader keeps exactly.
const MAX_EXACT: u64 = 1 << 53;

/// Writes a value as canonical JSON: no spaces, keys sorted by their UTF-16 code units, the shortest escapes.
///
/// # Errors
/// `RB0001` for a fraction, a whole number beyond 2⁵³ or nesting beyond [`MAX_DEPTH`]: no entry may hold these.
pub fn canonical(value: &Json) -> Result<String> {
    let mut out = String::with_capacity(256);
    write_value(value, &mut out, 0)?;
    Ok(out)
}

fn write_value(value: &Json, out: &mut String, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::internal(format!("a value nests deeper than {MAX_DEPTH} levels and cannot be recorded")));
    }
    match value {
        Json::Null => out.push_str("null"),
        Json::Bool(true) => out.push_str("true"),
        Json::Bool(false) => out.push_str("false"),
        Json::Number(n) => {
            let exact = n.as_u64().or_else(|| n.as_i64().map(i64::unsigned_abs)).filter(|n| *n <= MAX_EXACT);
            if exact.is_none() {
                return Err(Error::internal(format!("the number {n} has no exact form in every language and cannot be recorded")));
            }
            // Writing to a String cannot fail.
            let _ = write!(out, "{n}");
        }
        Json::String(s) => write_str(s, out),
        Json::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_value(item, out, depth + 1)?;
            }
            out.push(']');
        }
        Json::Object(map) => {
            let mut members: Vec<(&String, &Json)> = map.iter().collect();
            members.sort_unstable_by(|(a, _), (b, _)| utf16_order(a, b));
            out.push('{');
            for (i, (key, item)) in members.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_str(key, out);
                out.push(':');
                write_value(item, out, depth + 1)?;
            }
            out.push('}');
        }
    }
    Ok(())
}

fn utf16_order(a: &str, b: &str) -> Ordering {
    if a.is_ascii() && b.is_ascii() { a.cmp(b) } else { a.encode_utf16().cmp(b.encode_utf16()) }
}

/// Writes text as a JSON string with the shortest escapes.
pub(crate) fn write_str(text: &str, out: &mut String) {
    out.push('"');
    let mut rest = text;
    // Every character that is escaped is ASCII, so the text can be split beside it.
    while let Some((at, byte)) = rest.bytes().enumerate().find(|(_, b)| matches!(b, b'"' | b'\\' | 0..0x20)) {
        out.push_str(rest.get(..at).unwrap_or(""));
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            0x08 => out.push_str("\\b"),
            0x09 => out.push_str("\\t"),
            0x0a => out.push_str("\\n"),
            0x0c => out.push_str("\\f"),
            0x0d => out.push_str("\\r"),
            other => {
                let _ = write!(out, "\\u{other:04x}");
            }
        }
        rest = rest.get(at + 1..).unwrap_or("");
    }
    out.push_str(rest);
    out.push('"');
}

/// A body made ready to be chained: everything of an entry that does not depend on its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Prepared {
    pub time: String,
    pub kind: String,
    /// Canonical JSON.
    pub data: String,
}

impl Prepared {
    pub fn new(time: Timestamp, body: &Body) -> Result<Self> {
        let json = serde_json::to_value(body).map_err(|e| Error::internal(format!("an entry cannot be written as JSON: {e}")))?;
        let Json::Object(mut parts) = json else { return Err(Error::internal("an entry is not a JSON object")) };
        let Some(Json::String(kind)) = parts.remove("kind") else { return Err(Error::internal("an entry has no kind")) };
        let data = canonical(&parts.remove("data").unwrap_or_default())?;
        Ok(Prepared { time: crate::clock::rfc3339(time), kind, data })
    }
}

/// Hashes an entry from its parts; `data` is canonical JSON already. `scratch` is reused from call to call.
pub(crate) fn seal(scratch: &mut String, run: &str, seq: u64, time: &str, kind: &str, data: &str, prev: &str) -> [u8; 32] {
    scratch.clear();
    scratch.push_str("{\"data\":");
    scratch.push_str(data);
    scratch.push_str(",\"kind\":");
    write_str(kind, scratch);
    scratch.push_str(",\"prev\":");
    write_str(prev, scratch);
    scratch.push_str(",\"run\":");
    write_str(run, scratch);
    let _ = write!(scratch, ",\"seq\":{seq},\"time\":");
    write_str(time, scratch);
    scratch.push('}');
    sha256(scratch.as_bytes())
}

/// The hash that an entry must have: SHA-256, lower-case hex, of the entry without `hash` as canonical JSON.
///
/// # Errors
/// `RB0001` when its data cannot be written as canonical JSON.
pub fn entry_hash(entry: &Entry) -> Result<String> {
    let data = canonical(&entry.data)?;
    Ok(hex(&seal(&mut String::new(), &entry.run, entry.seq, &entry.time, &entry.kind, &data, &entry.prev)))
}

/// An entry as a line of an exported log, without the line's end: `seq`, `time`, `run`, `kind`, `data`, `prev`, `hash` in this
/// order, each as canonical JSON. There is exactly one such line for an entry, so that every changed byte can be found.
///
/// # Errors
/// `RB0001` when its data cannot be written as canonical JSON.
pub fn line(entry: &Entry) -> Result<String> {
    let mut out = format!("{{\"seq\":{}", entry.seq);
    for (name, text) in [("time", &entry.time), ("run", &entry.run), ("kind", &entry.kind)] {
        let _ = write!(out, ",\"{name}\":");
        write_str(text, &mut out);
    }
    out.push_str(",\"data\":");
    write_value(&entry.data, &mut out, 0)?;
    for (name, text) in [("prev", &entry.prev), ("hash", &entry.hash)] {
        let _ = write!(out, ",\"{name}\":");
        write_str(text, &mut out);
    }
    out.push('}');
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::sha256_hex;
    use proptest::prelude::*;
    use serde_json::json;

    fn json_values() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::Bool),
            (-(1i64 << 53)..=(1i64 << 53)).prop_map(Json::from),
            any::<String>().prop_map(Json::String),
        ];
        leaf.prop_recursive(5, 40, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Json::Array),
                proptest::collection::vec((any::<String>(), inner), 0..6).prop_map(|m| Json::Object(m.into_iter().collect())),
            ]
        })
    }

    fn reversed(v: &Json) -> Json {
        match v {
            Json::Array(a) => Json::Array(a.iter().map(reversed).collect()),
            Json::Object(m) => Json::Object(m.iter().rev().map(|(k, v)| (k.clone(), reversed(v))).collect()),
            other => other.clone(),
        }
    }

    proptest! {
        #[test]
        fn the_form_keeps_the_value_and_forgets_the_order_of_keys(v in json_values()) {
            let text = canonical(&v).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Json>(&text).unwrap(), &v);
            prop_assert_eq!(canonical(&reversed(&v)).unwrap(), text);
        }

        #[test]
        fn strings_are_escaped_as_the_json_library_does(s in "\\PC*|[\\x00-\\x7f]*") {
            let mut out = String::new();
            write_str(&s, &mut out);
            prop_assert_eq!(out, serde_json::to_string(&s).unwrap());
        }
    }

    #[test]
    fn the_examples_of_rfc_8785_come_out_as_it_says() {
        // Section 3.2.2 (without its fractions) and the sorting example of section 3.2.3.
        let v = json!({"string": "\u{20ac}$\u{f}\u{a}A'\u{42}\u{22}\u{5c}\\\"/", "literals": [null, true, false]});
        assert_eq!(canonical(&v).unwrap(), r#"{"literals":[null,true,false],"string":"€$\u000f\nA'B\"\\\\\"/"}"#);
        let v = json!({"\u{20ac}": 1, "\r": 2, "\u{fb33}": 3, "1": 4, "\u{1f600}": 5, "\u{80}": 6, "\u{f6}": 7});
        assert_eq!(canonical(&v).unwrap(), "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"\u{f6}\":7,\"\u{20ac}\":1,\"\u{1f600}\":5,\"\u{fb33}\":3}");
    }

    #[test]
    fn numbers_without_one_exact_form_are_refused() {
        for bad in ["1.5", "1.0", "1e3", "-0", "9007199254740993", "-9007199254740993", "18446744073709551615"] {
            assert!(canonical(&serde_json::from_str(bad).unwrap()).is_err(), "{bad}");
        }
        for good in ["0", "-1", "9007199254740992", "-9007199254740992"] {
            assert_eq!(canonical(&serde_json::from_str(good).unwrap()).unwrap(), good);
        }
    }

    #[test]
    fn what_can_be_written_can_be_read_again_however_deep() {
        let nest = |n: usize| (0..n).fold(Json::Null, |v, _| Json::Array(vec![v]));
        assert!(serde_json::from_str::<Json>(&canonical(&nest(MAX_DEPTH)).unwrap()).is_ok());
        assert!(canonical(&nest(MAX_DEPTH + 1)).is_err());
    }

    #[test]
    fn the_hash_is_that_of_the_canonical_entry_without_its_hash() {
        let mut entry = Entry {
            seq: 7,
            time: "2026-01-02T03:04:05.678Z".into(),
            run: "r-1".into(),
            kind: "log".into(),
            data: json!({"path": "a", "message": "x\ny", "level": "info"}),
            prev: super::super::GENESIS.into(),
            hash: String::new(),
        };
        entry.hash = entry_hash(&entry).unwrap();
        let mut json = serde_json::to_value(&entry).unwrap();
        json.as_object_mut().unwrap().remove("hash");
        assert_eq!(entry.hash, sha256_hex(canonical(&json).unwrap().as_bytes()));
        let back: Entry = serde_json::from_str(&line(&entry).unwrap()).unwrap();
        assert_eq!(back, entry);
    }
}
