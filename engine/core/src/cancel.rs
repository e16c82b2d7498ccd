//! Cancellation: asked for softly (finish the action in hand) or at once.

use std::sync::Arc;

use tokio::sync::watch;

/// Tells an action in progress to stop now. Cheap to clone; a child is cancelled with its parent.
#[derive(Clone)]
pub struct Cancel {
    tx: Arc<watch::Sender<bool>>,
    parent: Option<Arc<Cancel>>,
}

impl Default for Cancel {
    fn default() -> Self {
        Cancel { tx: Arc::new(watch::channel(false).0), parent: None }
    }
}

impl Cancel {
    /// Makes one that is cancelled with this one, or alone.
    #[must_use]
    pub fn child(&self) -> Cancel {
        Cancel { parent: Some(Arc::new(self.clone())), ..Cancel::default() }
    }

    /// Cancels this one and its children.
    pub fn cancel(&self) {
        self.tx.send_replace(true);
    }

    /// Whether it was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        *self.tx.borrow() || self.parent.as_ref().is_some_and(|p| p.is_cancelled())
    }

    /// Returns once it is cancelled.
    pub async fn cancelled(&self) {
        let mut rx = self.tx.subscribe();
        let own = async {
            // The sender lives in `self`, so the wait cannot end by its being dropped.
            let _ = rx.wait_for(|c| *c).await;
        };
        match &self.parent {
            None => own.await,
            Some(p) => {
                tokio::select! {
                    () = own => {}
                    () = Box::pin(p.cancelled()) => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_ends_with_its_parent_but_not_the_other_way() {
        let parent = Cancel::default();
        let (a, b) = (parent.child(), parent.child());
        a.cancel();
        a.cancelled().await;
        assert!(!parent.is_cancelled() && !b.is_cancelled());
        parent.cancel();
        b.cancelled().await;
    }
}
