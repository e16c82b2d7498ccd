//! The customer: places an order at a steady pace through the public name and remembers what became of each.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::StatusCode;
use parking_lot::Mutex;
use runbook_core::Result;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::MissedTickBehavior;

use crate::http::{Failure, call};
use crate::memory::{Fate, Memory, Tally};
use crate::seed::PRODUCTS;

/// Orders under way at once; when so many wait, the customer waits too.
const AT_ONCE: u32 = 8;
const PATIENCE: Duration = Duration::from_secs(10);

/// The customer and its memory.
pub(crate) struct Customer {
    entry: SocketAddr,
    host: String,
    every: Duration,
    memory: Mutex<Memory>,
    /// Orders are placed only while this is so.
    shopping: AtomicBool,
    /// Permits for orders under way; taking them all waits for these.
    slots: Arc<Semaphore>,
    next: AtomicU64,
    sitting: u32,
}

pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

impl Customer {
    pub fn new(entry: SocketAddr, host: &str, every: Duration, memory: &Path) -> Result<Arc<Customer>> {
        Ok(Arc::new(Customer {
            entry,
            host: host.to_string(),
            every,
            memory: Mutex::new(Memory::open(memory)?),
            shopping: AtomicBool::new(true),
            slots: Arc::new(Semaphore::new(AT_ONCE as usize)),
            next: AtomicU64::new(1),
            sitting: rand::random(),
        }))
    }

    /// Shops until the runtime ends.
    pub fn start(self: &Arc<Self>) {
        let me = self.clone();
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(me.every);
            tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                tick.tick().await;
                if !me.shopping.load(Ordering::Acquire) {
                    continue;
                }
                let Ok(slot) = me.slots.clone().acquire_owned().await else { return };
                if me.shopping.load(Ordering::Acquire) {
                    let me = me.clone();
                    tokio::spawn(async move {
                        me.order().await;
                        drop(slot);
                    });
                }
            }
        });
        let me = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(250)).await;
                me.clear_up().await;
            }
        });
    }

    /// Stops ordering and waits for the answers to what is under way.
    pub async fn pause(&self) {
        self.shopping.store(false, Ordering::Release);
        drop(self.slots.acquire_many(AT_ONCE).await);
    }

    pub fn go_on(&self) {
        self.shopping.store(true, Ordering::Release);
    }

    /// Forgets everything. Pause first.
    pub fn forget(&self) -> Result<()> {
        self.memory.lock().forget()
    }

    fn note(&self, fate: Fate, id: &str) {
        if let Err(e) = self.memory.lock().note(fate, id, now_ms()) {
            // An order that cannot be remembered is not counted: saying less than is true, never more.
            crate::say(&e);
        }
    }

    async fn order(&self) {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let id = format!("o-{:08x}-{n:08}", self.sitting);
        let (sku, ..) = PRODUCTS[usize::try_from(n).unwrap_or(0) % PRODUCTS.len()];
        let body = json!({ "id": id, "product": sku, "quantity": n % 3 + 1, "customer": "the lab's customer" });
        let fate = match call("POST", self.entry, &self.host, "/orders", body.to_string().into_bytes(), PATIENCE).await {
            Ok((StatusCode::CREATED, _)) => Fate::Placed,
            // "The server behind me did not answer" leaves open whether it acted.
            Ok((StatusCode::GATEWAY_TIMEOUT, _)) => Fate::Unsure,
            Ok(_) | Err(Failure::NotSent(_)) => Fate::Refused,
            Err(Failure::NoAnswer(_) | Failure::TimedOut) => Fate::Unsure,
        };
        self.note(fate, &id);
    }

    /// Asks what became of unanswered orders. Only the shop's own yes or no counts.
    async fn clear_up(&self) {
        let unsure: Vec<String> = self.memory.lock().tally.unsure.iter().take(20).cloned().collect();
        for id in unsure {
            let path = format!("/orders/{id}");
            match call("GET", self.entry, &self.host, &path, vec![], PATIENCE).await {
                Ok((StatusCode::OK, _)) => self.note(Fate::Found, &id),
                Ok((StatusCode::NOT_FOUND, _)) => self.note(Fate::Absent, &id),
                _ => return,
            }
        }
    }

    /// Reads the count.
    pub fn tally<T>(&self, f: impl FnOnce(&Tally) -> T) -> T {
        f(&self.memory.lock().tally)
    }

    /// Looks for every acknowledged order in the shop that the public name leads to; `None` when the shop does not answer.
    pub async fn lost(&self) -> Option<Vec<String>> {
        // Taken before the question: whatever was acknowledged by now must be in the answer.
        let placed: Vec<String> = self.tally(|t| t.placed.iter().cloned().collect());
        let (status, body) = call("GET", self.entry, &self.host, "/orders?ids=1", vec![], PATIENCE).await.ok()?;
        if status != StatusCode::OK {
            return None;
        }
        let there: BTreeSet<&str> = std::str::from_utf8(&body).ok()?.lines().collect();
        Some(placed.into_iter().filter(|id| !there.contains(id.as_str())).collect())
    }
}
