//! One run at a time holds an environment: a lock with a lease that is renewed while the controller lives, and a fencing number
//! without which nothing can be appended.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::history::since;
use crate::cancel::Cancel;
use crate::clock::Clock;
use crate::error::{Code, Error, Result};
use crate::journal::{Acquired, Holder, Operator, State, Store};
use crate::units::show_duration;

/// How long a lock stands without being renewed.
pub const LEASE: Duration = Duration::from_secs(30);

/// Whether the controller that holds a lock is alive, as far as the caller can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// Its process runs.
    Alive,
    /// Its process is gone.
    Dead,
    /// It is on another machine.
    Unknown,
}

/// A held lock; given back when dropped.
pub struct Lease {
    store: Arc<dyn Store>,
    environment: String,
    /// The fencing number.
    pub fence: i64,
    /// The holder from whom it was taken over.
    pub took_over: Option<Holder>,
    renewer: Option<tokio::task::JoinHandle<()>>,
}

fn later(clock: &dyn Clock, d: Duration) -> Timestamp {
    let now = clock.now();
    now.checked_add(d).unwrap_or(now)
}

impl Lease {
    /// Takes an environment's lock for a run.
    ///
    /// A holder that is provably dead gives way to `resume` and `rollback` of its own run; any other stale holder only when
    /// `take_over` is asked for. A living one never does.
    ///
    /// # Errors
    /// `RB0006` naming the living holder, `RB0007` naming the stale one.
    pub fn take(
        store: &Arc<dyn Store>,
        clock: &dyn Clock,
        environment: &str,
        run: &str,
        operator: &Operator,
        take_over: bool,
        alive: &dyn Fn(&Operator) -> Liveness,
    ) -> Result<Lease> {
        let mut over = None;
        let mut took_over = None;
        // A second round at most: take it over from exactly the holder that was judged.
        for _ in 0..3 {
            let held = match store.acquire(environment, run, operator, later(clock, LEASE), over)? {
                Acquired::Yes(fence) => {
                    return Ok(Lease { store: store.clone(), environment: environment.into(), fence, took_over, renewer: None });
                }
                Acquired::Held(h) => h,
            };
            let state = alive(&held.operator);
            let expired = held.until < clock.now();
            let stale = state == Liveness::Dead || (state == Liveness::Unknown && expired);
            if !stale {
                let left = show_duration(Duration::from_secs(since(clock.now(), held.until).as_secs() + 1));
                return Err(Error::new(Code::LOCKED, format!("environment \"{environment}\" is held by {}", held))
                    .detail("holder", &held)
                    .detail("run", &held.run)
                    .detail("lease_left", &left)
                    .hint(match state {
                        Liveness::Unknown => format!(
                            "wait until it has ended; if its machine is gone for good, its lease ends in {left}, and \
                             `runbook resume {} --take-over` takes it over then",
                            held.run
                        ),
                        _ => format!("wait until it has ended, or look at it with `runbook show {}`", held.run),
                    }));
            }
            // A run that is over needs nobody to go on with it: its controller died between its last entry and giving the lock back.
            let over_already = store.run(&held.run).is_ok_and(|r| matches!(r.state, State::Finished | State::RolledBack));
            if !(take_over || over_already || state == Liveness::Dead && held.run == run) {
                return Err(Error::new(
                    Code::LOCK_STALE,
                    format!("environment \"{environment}\" is held by {}, whose controller is gone", held),
                )
                .detail("holder", &held)
                .detail("run", &held.run)
                .hint(format!(
                    "go on with it: `runbook resume {0}` or `runbook rollback {0}` (with --take-over when it ran on another machine); \
                     to leave it unfinished and begin another run: --take-over",
                    held.run
                )));
            }
            over = Some(held.fence);
            took_over = Some(held);
        }
        Err(Error::new(Code::LOCKED, format!("environment \"{environment}\" was taken by another controller just now")).retryable(true))
    }

    /// Renews the lease in the background until dropped; cancels `abort` when it is lost, since nothing can be recorded any more.
    pub fn keep(&mut self, runtime: &tokio::runtime::Handle, clock: Arc<dyn Clock>, abort: Cancel) {
        let (store, environment, fence) = (self.store.clone(), self.environment.clone(), self.fence);
        self.renewer = Some(runtime.spawn(async move {
            loop {
                tokio::time::sleep(LEASE / 3).await;
                let (s, e, until) = (store.clone(), environment.clone(), later(clock.as_ref(), LEASE));
                let renewed = tokio::task::spawn_blocking(move || s.renew(&e, fence, until)).await;
                if let Ok(Err(e)) = renewed
                    && e.code == Code::FENCED_OFF
                {
                    abort.cancel();
                    return;
                }
            }
        }));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(r) = self.renewer.take() {
            r.abort();
        }
        // Best effort: a lock that stays behind names a dead process and is taken over.
        let _ = self.store.release(&self.environment, self.fence);
    }
}
