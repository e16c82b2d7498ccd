//! The options by which branches are gone through: `serial`, `at_once`, `max_fail`.

use std::collections::BTreeMap;

use runbook_core::exec::BranchPlan;
use runbook_core::{Code, Error, Result, Ty, Value};

use super::parallel::{MAX_BRANCHES, STACK};

/// The options that `each` and `parallel` share.
pub const OPTIONS: &[(&str, Ty)] = &[("serial", Ty::Any), ("at_once", Ty::Int), ("max_fail", Ty::Any)];

/// Makes the plan of branches from options.
///
/// # Errors
/// `RB0211` for numbers that make no sense.
pub fn make(word: &'static str, names: Vec<String>, options: &BTreeMap<String, Value>) -> Result<BranchPlan> {
    let total = names.len();
    let serial = match options.get("serial") {
        None | Some(Value::Unit) => vec![],
        Some(Value::List(l)) if l.is_empty() => return Err(bad("serial", "an empty list")),
        Some(Value::List(l)) => l.iter().map(|v| share("serial", v, total, 1)).collect::<Result<_>>()?,
        Some(v) => vec![share("serial", v, total, 1)?],
    };
    let at_once = match options.get("at_once").and_then(Value::as_int) {
        None => MAX_BRANCHES,
        Some(n) => usize::try_from(n).ok().filter(|n| *n > 0).ok_or_else(|| bad("at_once", &n.to_string()))?.min(MAX_BRANCHES),
    };
    let max_fail = match options.get("max_fail") {
        // Batches are there to stop early: one failure is enough unless more are allowed.
        None | Some(Value::Unit) => (!serial.is_empty()).then_some(0),
        Some(v) => Some(share("max_fail", v, total, 0)?),
    };
    Ok(BranchPlan { word, names, serial, at_once, max_fail, stack: STACK })
}

fn bad(option: &str, got: &str) -> Error {
    let hint = match option {
        "at_once" => "it is a whole number from 1",
        "max_fail" => "it is a whole number from 0, or a share such as \"10%\"",
        _ => "it is a whole number from 1, a share such as \"25%\", or a list of these such as [1, 5, \"50%\"]",
    };
    Error::new(Code::BAD_WORD, format!("{option} cannot be {got}")).hint(hint)
}

/// A number, or a share of all, rounded down, at least `least`.
fn share(option: &str, v: &Value, total: usize, least: usize) -> Result<usize> {
    let wrong = || bad(option, &v.to_string());
    match v {
        Value::Int(n) => usize::try_from(*n).ok().filter(|n| *n >= least).ok_or_else(wrong),
        Value::Str(s) => {
            let percent: usize = s.strip_suffix('%').and_then(|d| d.trim().parse().ok()).filter(|p| *p <= 100).ok_or_else(wrong)?;
            if percent == 0 && least > 0 {
                return Err(wrong());
            }
            Ok((total.saturating_mul(percent) / 100).max(least))
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(options: &[(&str, Value)]) -> Result<BranchPlan> {
        let names = (0..20).map(|n| format!("web{n}")).collect();
        make("each", names, &options.iter().map(|(k, v)| ((*k).to_string(), v.clone())).collect())
    }

    #[test]
    fn numbers_and_shares() {
        let p = plan(&[("serial", Value::List(vec![1.into(), 5.into(), "50%".into()])), ("max_fail", "12%".into())]).unwrap();
        assert_eq!((p.serial, p.max_fail, p.at_once), (vec![1, 5, 10], Some(2), MAX_BRANCHES));
        let p = plan(&[("serial", "1%".into()), ("at_once", 3.into())]).unwrap();
        assert_eq!((p.serial, p.max_fail, p.at_once), (vec![1], Some(0), 3), "a batch has at least one, and one failure stops batches");
        assert_eq!(plan(&[]).unwrap().max_fail, None);
        assert_eq!(plan(&[("max_fail", "0%".into())]).unwrap().max_fail, Some(0));
    }

    #[test]
    fn nonsense_is_refused_with_what_would_do() {
        for (option, v) in [
            ("serial", Value::Int(0)),
            ("serial", Value::List(vec![])),
            ("serial", "0%".into()),
            ("serial", "5".into()),
            ("serial", Value::Bool(true)),
            ("at_once", Value::Int(0)),
            ("max_fail", Value::Int(-1)),
            ("max_fail", "101%".into()),
        ] {
            let e = plan(&[(option, v.clone())]).unwrap_err();
            assert_eq!((e.code, e.hint.is_some()), (Code::BAD_WORD, true), "{option}: {v}");
        }
    }
}
