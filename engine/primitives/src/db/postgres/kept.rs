//! Administrative connections that are kept from one action of a run to the next.
//!
//! Who works with one has it alone, and it comes back only when nothing is under way on it: no statement, no transaction, no error, no
//! use that this cannot see. It is known by everything that says who logs in where, so that other settings never meet it. What ends the
//! old order of things (a fence, a start or stop of the server, a promotion) forgets all that were made before.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use runbook_core::Result;
use runbook_core::digest::sha256_hex;
use runbook_core::inventory::Section;
use runbook_core::primitive::Cx;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio_postgres::Client;

use crate::db::driver::Db;

/// As many are kept a database: one for each that is usually at work at once.
const MOST: usize = 3;

/// Those that nobody uses now. Shared by [`Cx::shared`].
#[derive(Default)]
pub(super) struct Kept(Mutex<BTreeMap<String, Idle>>);

#[derive(Default)]
struct Idle {
    /// How often all were forgotten.
    epoch: u64,
    clients: Vec<Arc<Client>>,
    /// How many of this epoch are in use that will come back.
    lent: usize,
    /// Told each time one comes back, or does not.
    back: Arc<Notify>,
}

/// Where a connection goes when it is no longer used.
#[derive(Clone)]
pub(super) struct Home {
    kept: Arc<Kept>,
    key: String,
    epoch: u64,
}

/// Everything that says who logs in where; of the password its digest.
fn key(cx: &Cx, db: &Db) -> Result<String> {
    let password = db.settings.str("password").map(|n| cx.secret(n)).transpose()?;
    let digest = password.map(|p| sha256_hex(p.reveal().as_bytes()));
    let host = cx.env.resource(Section::Hosts, &db.host).ok();
    Ok(format!("{}\n{}\n{:?}\n{host:?}\n{digest:?}", cx.env.name, db.name, db.settings))
}

impl Home {
    /// Where the connections to a database are kept that are made now.
    pub(super) fn of(cx: &Cx, db: &Db) -> Result<Home> {
        let (kept, key) = (cx.shared.get::<Kept>(), key(cx, db)?);
        let epoch = kept.0.lock().entry(key.clone()).or_default().epoch;
        Ok(Home { kept, key, epoch })
    }

    /// Takes one that is not known to be dead.
    pub(super) fn take(&self) -> Option<Arc<Client>> {
        let mut all = self.kept.0.lock();
        let idle = all.get_mut(&self.key)?;
        idle.clients.retain(|c| !c.is_closed());
        let client = idle.clients.pop()?;
        idle.lent += 1;
        Some(client)
    }

    /// Notes one that was made under this home, and will come back.
    pub(super) fn lend(&self) {
        if let Some(idle) = self.kept.0.lock().get_mut(&self.key).filter(|i| i.epoch == self.epoch) {
            idle.lent += 1;
        }
    }

    /// Keeps one that was taken or made under this home, unless all have been forgotten since; `None` comes for one that is no good.
    pub(super) fn put(&self, client: Option<Arc<Client>>) {
        let mut all = self.kept.0.lock();
        let Some(idle) = all.get_mut(&self.key).filter(|i| i.epoch == self.epoch) else { return };
        idle.lent = idle.lent.saturating_sub(1);
        if let Some(client) = client.filter(|c| idle.clients.len() < MOST && !c.is_closed()) {
            idle.clients.push(client);
        }
        idle.back.notify_waiters();
    }

    /// Ends when one comes back that is in use now; `None` when none is.
    pub(super) fn back(&self) -> Option<OwnedNotified> {
        let all = self.kept.0.lock();
        let idle = all.get(&self.key).filter(|i| i.epoch == self.epoch && i.lent > 0)?;
        Some(idle.back.clone().notified_owned())
    }
}

/// Forgets the connections to a database: those that are idle end, and those in use end after that.
pub(super) fn forget(cx: &Cx, db: &Db) -> Result<()> {
    let home = Home::of(cx, db)?;
    if let Some(idle) = home.kept.0.lock().get_mut(&home.key) {
        idle.epoch += 1;
        idle.lent = 0;
        idle.clients.clear();
        idle.back.notify_waiters();
    }
    Ok(())
}
