//! `set_delay`, `roll_forward`: a replica that lags on purpose, so that a mistake on its primary can be taken back.

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::{Call, Code, Effect, Error, Record, Result, Spec, Ty, TypeSpec, Value};

use super::driver::{Before, Db, Rolled};
use super::method;

pub(super) fn register(r: &mut Registry) {
    let maybe = |t| Ty::OneOf(vec![t, Ty::Unit]);
    r.add(SetDelay(
        method(
            "set_delay",
            Effect::Converge,
            "Lets this replica lag behind its primary on purpose, so that a mistake there can be taken back here.\n\nMariaDB and \
             MySQL: what it has not applied yet it fetches again from its primary, so the primary must be reached and still have it; otherwise \
             nothing is changed. PostgreSQL: a physical standby, whose primary is not asked. The delay outlives restarts. `0s` ends it. Nothing is done when it is so already.",
        )
        .arg("delay", Ty::Duration, "How far behind, in whole seconds (PostgreSQL: milliseconds, 24 days at most); `0s` for not at all.")
        .example("database(\"shop_late\").set_delay(\"1h\");")
        .errors(&[Code::DB_CONNECT, Code::DB_LOGIN, Code::DB_REPLICATION, Code::DB_CANNOT]),
    ));
    r.add(RollForward(
        method(
            "roll_forward",
            Effect::Converge,
            "Lets a delayed replica apply what it holds up to just before a moment or a position, and stops there.\n\nIts primary is not \
             needed. Refused when the replica is past that already, or holds nothing that would be left out; replication into it then stays \
             stopped, so that the mistake does not come through meanwhile. Afterwards it is write-protected and stays where it is, also over \
             a restart, until `replicate_from` lets it go on. May be done again with a later moment or position. Nothing is done when it \
             stands there already.",
        )
        .arg(
            "before",
            Ty::OneOf(vec![Ty::Time, Ty::Str]),
            "The moment (RFC 3339, such as `2026-11-21T14:03:00Z`; MariaDB and MySQL count whole seconds) or the position of the first change that is \
             *not* applied. MariaDB and MySQL: its GTID (`0-1-4711`), or file and byte of the primary's binary log (`mysql-bin.000007:1532`). PostgreSQL: a \
             place in the write-ahead log (`16/B374D848`); the first transaction that is committed there or behind it is left out. PostgreSQL \
             counts microseconds.",
        )
        .returns(Ty::Record("RolledForward"))
        .example("database(\"shop_late\").roll_forward(\"2026-11-21T14:03:00Z\");")
        .errors(&[Code::DB_CONNECT, Code::DB_LOGIN, Code::DB_REPLICATION, Code::DB_POSITION, Code::DB_CANNOT, Code::HOST_TOOL_MISSING]),
    ));
    r.add_type(
        TypeSpec::new("RolledForward", "Where `roll_forward` or `recover_to` has stopped.")
            .field("position", Ty::Str, "Where the server stands, in the server's own form.")
            .field(
                "last",
                maybe(Ty::Time),
                "When the last transaction was made that was applied; `()` where that is not known. PostgreSQL.",
            )
            .field("left_out", maybe(Ty::Str), "The position of the first change that was not applied; `()` when everything was.")
            .field("time", maybe(Ty::Time), "When that change was made, or `()`.")
            .field("statement", maybe(Ty::Str), "What it does, as far as the server tells, in its first 200 characters; or `()`."),
    );
}

struct SetDelay(Spec);

#[async_trait]
impl Primitive for SetDelay {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        let changed = db.driver(cx)?.set_delay(cx, &db, call.duration(0).unwrap_or_default()).await?;
        Ok(Outcome::done(changed, "it is so already"))
    }
}

struct RollForward(Spec);

#[async_trait]
impl Primitive for RollForward {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let db = Db::receiver(cx, call)?;
        Ok(outcome(db.driver(cx)?.roll_forward(cx, &db, &before(call.arg(0))?).await?))
    }
}

/// What scripts get of it.
pub(super) fn outcome(done: Rolled) -> Outcome {
    let last = done.last.map_or(Value::Unit, Value::Time);
    let (note, left_out) = match done.left_out {
        Some(l) => {
            (format!("stands just before {}: {}", l.position, l.statement), [l.position.into(), Value::Time(l.time), l.statement.into()])
        }
        None => {
            let of = done.last.map_or(String::new(), |t| format!("; its last transaction is of {t}"));
            (format!("has everything up to {}{of}", done.position), [Value::Unit, Value::Unit, Value::Unit])
        }
    };
    let [position, time, statement] = left_out;
    let record = Record::new(
        "RolledForward",
        [("position", done.position.into()), ("last", last), ("left_out", position), ("time", time), ("statement", statement)],
    );
    if done.changed { Outcome::changed(record).note(note) } else { Outcome::unchanged(record, note) }
}

/// Reads the argument: a moment where it is one, a position otherwise.
pub(super) fn before(v: &Value) -> Result<Before> {
    let text = match v {
        Value::Time(t) => return Ok(Before::Time(*t)),
        other => other.as_str().unwrap_or("").trim(),
    };
    if let Ok(t) = text.parse::<jiff::Timestamp>() {
        return Ok(Before::Time(t));
    }
    let bad = |why: &str| {
        Err(Error::new(Code::DB_POSITION, format!("\"{text}\" is neither a moment nor a position: {why}"))
            .hint("a moment is written as 2026-11-21T14:03:00Z or 2026-11-21T15:03:00+01:00"))
    };
    if text.is_empty() {
        return bad("it is empty");
    }
    // A date with a time of day, whose zone is missing or whose numbers are wrong.
    if text.len() > 10 && text.get(4..5) == Some("-") && text.get(7..8) == Some("-") && text.contains(':') {
        return match text.parse::<jiff::civil::DateTime>() {
            Ok(_) => bad("it says no time zone"),
            Err(e) => bad(&e.to_string()),
        };
    }
    Ok(Before::Position(text.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_positions_are_told_apart() {
        let at = |t: &str| before(&Value::from(t));
        let moment: jiff::Timestamp = "2026-11-21T14:03:00Z".parse().unwrap();
        assert_eq!(at("2026-11-21T15:03:00+01:00").unwrap(), Before::Time(moment));
        assert_eq!(before(&Value::Time(moment)).unwrap(), Before::Time(moment));
        assert_eq!(at(" 0-1-4711 ").unwrap(), Before::Position("0-1-4711".into()));
        assert_eq!(at("bin.000007:1532").unwrap(), Before::Position("bin.000007:1532".into()));
        assert!(at("2026-11-21 14:03:00").unwrap_err().message.contains("no time zone"));
        assert!(at("2026-11-21T25:03:00Z").unwrap_err().message.contains("neither a moment"));
        assert!(at("").is_err());
    }
}
