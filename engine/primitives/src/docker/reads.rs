//! Reads: primitives that ask one engine and change nothing, each of them a function.

use async_trait::async_trait;
use futures::future::BoxFuture;
use runbook_core::Result;
use runbook_core::primitive::{Cx, Outcome, Primitive};
use runbook_core::spec::{Call, Spec};

use super::engine::Engine;

/// What is asked of the engine that the call names.
type Ask = for<'a> fn(&'a Cx, &'a Engine, &'a Call) -> BoxFuture<'a, Result<Outcome>>;

struct Read {
    spec: Spec,
    ask: Ask,
}

/// The primitive of that declaration which gives what `ask` gives.
pub(super) fn reading(spec: Spec, ask: Ask) -> impl Primitive {
    Read { spec, ask }
}

#[async_trait]
impl Primitive for Read {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        (self.ask)(cx, &Engine::on(cx, call).await?, call).await
    }
}
