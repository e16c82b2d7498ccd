//! What is done with one engine and may be repeated: primitives that are a function each, with nothing to find out after a crash.

use async_trait::async_trait;
use futures::future::BoxFuture;
use runbook_core::Result;
use runbook_core::primitive::{Cx, Outcome, Primitive};
use runbook_core::spec::{Call, Spec};

use super::engine::Engine;

/// What is done with the engine that the call names.
type Act = for<'a> fn(&'a Cx, &'a Engine, &'a Call) -> BoxFuture<'a, Result<Outcome>>;

struct Acting {
    spec: Spec,
    act: Act,
}

/// The primitive of that declaration which does that.
pub(super) fn acting(spec: Spec, act: Act) -> impl Primitive {
    Acting { spec, act }
}

#[async_trait]
impl Primitive for Acting {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        (self.act)(cx, &Engine::on(cx, call).await?, call).await
    }
}
