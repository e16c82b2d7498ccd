//! `pair_with`, `unpair`: two servers that each replicate from the other (a master-master pair), of which one takes the writes.

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::{Call, Code, Effect, Result, Spec, Ty};

use super::driver::Db;
use super::{DATABASE, method};

pub(super) fn register(r: &mut Registry) {
    let errors = &[Code::DB_CONNECT, Code::DB_LOGIN, Code::DB_FENCE, Code::DB_REPLICATION, Code::DB_DIFFERS, Code::DB_CANNOT];
    r.add(PairWith(
        method(
            "pair_with",
            Effect::Converge,
            "Lets this server replicate from its own replica too, so that each has what the other takes: a master-master pair. The undo of \
             `unpair`.\n\nThis one takes the writes; the other must replicate from it and stay read-only. Refused when the other has written \
             by itself since `unpair`. Nothing is done when it is so already.",
        )
        .arg("other", Ty::Record(DATABASE), "The replica of this server.")
        .example("database(\"shop_new\").pair_with(database(\"shop_new_standby\"));")
        .errors(errors),
    ));
    r.add(Unpair(
        method(
            "unpair",
            Effect::Converge,
            "Ends the way from the other server of a master-master pair to this one, so that this one can be fenced: what is left is a \
             primary and its replica.\n\nRefused while the other may take writes (it is not read-only), with the sessions on it, and until \
             this one has everything that the other has written. Nothing is done when this server does not replicate from it.",
        )
        .arg("other", Ty::Record(DATABASE), "The other server of the pair.")
        .example("database(\"shop_old\").unpair(database(\"shop_old_standby\"));")
        .errors(errors),
    ));
}

struct PairWith(Spec);

#[async_trait]
impl Primitive for PairWith {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (db, other) = Db::receiver(cx, call)?.pair(Db::argument(cx, call, 0)?)?;
        let done = db.driver(cx)?.pair_with(cx, &db, &other).await?;
        Ok(Outcome::done(done, "they are a pair already"))
    }
}

struct Unpair(Spec);

#[async_trait]
impl Primitive for Unpair {
    fn spec(&self) -> &Spec {
        &self.0
    }
    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (db, other) = Db::receiver(cx, call)?.pair(Db::argument(cx, call, 0)?)?;
        let done = db.driver(cx)?.unpair(cx, &db, &other).await?;
        Ok(Outcome::done(done, "it does not replicate from there"))
    }
}
