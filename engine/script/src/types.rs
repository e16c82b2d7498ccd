//! Durations, sizes, moments, secrets and records in scripts: how they are made, compared, added, shown, and their properties read.

use rhai::{Dynamic, Engine, EvalAltResult, ImmutableString, NativeCallContext, Position};
use runbook_core::secret::Secret;
use runbook_core::suggest::closest;
use runbook_core::units::{parse_bytes, parse_duration};
use runbook_core::{Code, Error, Record};

use crate::convert::{Moment, Size, Span, to_dynamic};
use crate::fault::raise;

type Res<T> = Result<T, Box<EvalAltResult>>;

/// Adds the types to the engine.
pub fn register(e: &mut Engine) {
    e.register_type_with_name::<Span>("Duration")
        .register_fn("duration", |text: &str| -> Res<Span> { parse_duration(text).map(Span).map_err(|e| raise(e, Position::NONE)) })
        .register_fn("duration", |d: Span| d)
        .register_fn("+", |a: Span, b: Span| Span(a.0 + b.0))
        .register_fn("-", |a: Span, b: Span| Span(a.0.saturating_sub(b.0)))
        .register_fn("*", |a: Span, n: i64| Span(a.0.saturating_mul(u32::try_from(n.max(0)).unwrap_or(u32::MAX))))
        .register_get("seconds", |d: &mut Span| i64::try_from(d.0.as_secs()).unwrap_or(i64::MAX))
        .register_get("ms", |d: &mut Span| i64::try_from(d.0.as_millis()).unwrap_or(i64::MAX));
    ordered::<Span>(e);
    shown::<Span>(e);

    e.register_type_with_name::<Size>("Bytes")
        .register_fn("bytes", |text: &str| -> Res<Size> { parse_bytes(text).map(Size).map_err(|e| raise(e, Position::NONE)) })
        .register_fn("bytes", |n: i64| Size(u64::try_from(n).unwrap_or(0)))
        .register_fn("bytes", |n: Size| n)
        .register_fn("+", |a: Size, b: Size| Size(a.0.saturating_add(b.0)))
        .register_fn("-", |a: Size, b: Size| Size(a.0.saturating_sub(b.0)))
        .register_fn("*", |a: Size, n: i64| Size(a.0.saturating_mul(u64::try_from(n).unwrap_or(0))))
        .register_get("count", |n: &mut Size| i64::try_from(n.0).unwrap_or(i64::MAX));
    ordered::<Size>(e);
    shown::<Size>(e);

    e.register_type_with_name::<Moment>("Time")
        .register_fn("-", |a: Moment, b: Moment| Span(std::time::Duration::try_from(a.0.duration_since(b.0)).unwrap_or_default()))
        .register_fn("+", |a: Moment, b: Span| Moment(a.0.checked_add(b.0).unwrap_or(jiff::Timestamp::MAX)))
        .register_fn("-", |a: Moment, b: Span| Moment(a.0.checked_sub(b.0).unwrap_or(jiff::Timestamp::MIN)));
    ordered::<Moment>(e);
    shown::<Moment>(e);

    e.register_type_with_name::<Secret>("Secret")
        .register_fn("to_string", |s: &mut Secret| format!("secret({:?})", s.name()))
        .register_fn("to_debug", |s: &mut Secret| format!("secret({:?})", s.name()))
        .register_get("name", |s: &mut Secret| s.name().to_string());

    e.register_type_with_name::<Record>("record")
        .register_fn("to_string", |r: &mut Record| show(r))
        .register_fn("to_debug", |r: &mut Record| show(r))
        .register_fn("==", |a: Record, b: Record| if a.name.is_some() { a.ty == b.ty && a.name == b.name } else { a == b })
        .register_fn("!=", |a: Record, b: Record| if a.name.is_some() { a.ty != b.ty || a.name != b.name } else { a != b })
        .register_indexer_get(|ctx: NativeCallContext, r: &mut Record, name: ImmutableString| -> Res<Dynamic> {
            if let Some(v) = r.fields.get(name.as_str()) {
                return Ok(to_dynamic(v.clone()));
            }
            let known: Vec<&str> = r.fields.keys().map(String::as_str).collect();
            let mut e = Error::new(Code::UNKNOWN_PROPERTY, format!("{} has no property \"{name}\"", show(r)));
            e.hint = match closest(&name, known.iter().copied()) {
                Some(c) => Some(format!("did you mean \"{c}\"?")),
                None => Some(format!("it has: {}", known.join(", "))),
            };
            Err(raise(e, ctx.call_position()))
        });
}

fn show(r: &Record) -> String {
    match &r.name {
        Some(name) => format!("{}({name:?})", r.ty.to_lowercase()),
        None => {
            let fields: Vec<String> = r.fields.iter().map(|(k, v)| format!("{k}: {v}")).collect();
            format!("{} #{{ {} }}", r.ty, fields.join(", "))
        }
    }
}

fn ordered<T: PartialOrd + Clone + Send + Sync + 'static>(e: &mut Engine) {
    e.register_fn("==", |a: T, b: T| a == b)
        .register_fn("!=", |a: T, b: T| a != b)
        .register_fn("<", |a: T, b: T| a < b)
        .register_fn("<=", |a: T, b: T| a <= b)
        .register_fn(">", |a: T, b: T| a > b)
        .register_fn(">=", |a: T, b: T| a >= b);
}

fn shown<T: std::fmt::Display + Clone + Send + Sync + 'static>(e: &mut Engine) {
    e.register_fn("to_string", |v: &mut T| v.to_string())
        .register_fn("to_debug", |v: &mut T| v.to_string())
        .register_fn("+", |a: &str, v: T| format!("{a}{v}"))
        .register_fn("+", |v: T, a: &str| format!("{v}{a}"));
}
