//! Actions on databases as the engine does them, also over the death of a controller.

use std::collections::BTreeMap;
use std::time::Duration;

use runbook_core::primitive::{Cx, Primitive, Reconciled};
use runbook_core::{Call, Effect, Record, Result, Value};

/// A database's handle.
pub fn handle(name: &str) -> Record {
    Record::handle("Database", name, BTreeMap::new())
}

/// Does an action. With `cut` the controller that has `first` "dies" after that time: the future is dropped wherever it is, and a
/// controller that has `then` finds out about the action and does it again, as the engine does on resume.
pub async fn done_or_found(primitive: &dyn Primitive, call: &Call, first: &Cx, then: &Cx, cut: Option<Duration>) -> Result<Value> {
    let Some(cut) = cut else { return primitive.act(first, call).await.map(|o| o.value) };
    if let Ok(done) = tokio::time::timeout(cut, primitive.act(first, call)).await {
        return done.map(|o| o.value);
    }
    if primitive.spec().effect == Effect::Once {
        match primitive.reconcile(then, call).await? {
            Reconciled::Done(o) => return Ok(o.value),
            Reconciled::NotStarted => {}
            Reconciled::Failed(e) => return Err(e),
            Reconciled::Unknown { known } => panic!("{}: {known}", primitive.spec().name),
        }
    }
    primitive.act(then, call).await.map(|o| o.value)
}

/// Does an action until it is done, as a step with retries does: after each failure that may pass, it is found out about and done again.
/// How many tries it took.
pub async fn until_done(primitive: &dyn Primitive, call: &Call, cx: &Cx) -> (Value, u32) {
    let name = primitive.spec().name;
    let mut tries = 0;
    loop {
        tries += 1;
        let e = match primitive.act(cx, call).await {
            Ok(o) => return (o.value, tries),
            Err(e) => e,
        };
        assert!(e.retryable && tries < 30, "{name}, try {tries}: {e:?}");
        if primitive.spec().effect != Effect::Once {
            continue;
        }
        match primitive.reconcile(cx, call).await {
            Ok(Reconciled::Done(o)) => return (o.value, tries),
            Ok(Reconciled::NotStarted) => {}
            Ok(other) => panic!("{name}, try {tries}: {other:?} after {e:?}"),
            Err(e) => assert!(e.retryable, "{name}, found out about after try {tries}: {e:?}"),
        }
    }
}
