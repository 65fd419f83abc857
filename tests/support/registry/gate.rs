//! A gate at which requests wait until the test lets them on.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::support::within;

/// A gate. Clones are the same gate.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    arrivals: Semaphore,
    passes: Semaphore,
}

// === impl Gate ===

impl Gate {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner { arrivals: Semaphore::new(0), passes: Semaphore::new(0) }))
    }

    /// Waits until a request has reached the gate. Each call waits for one more.
    pub(crate) async fn arrived(&self) {
        within("a request at the gate", self.0.arrivals.acquire()).await.unwrap().forget();
    }

    /// How many requests have reached the gate and were not waited for.
    pub(crate) fn arrivals(&self) -> usize {
        self.0.arrivals.available_permits()
    }

    /// Lets one request on, which may still be to come.
    pub(crate) fn let_one_pass(&self) {
        self.0.passes.add_permits(1);
    }

    /// Lets everyone on, from now on.
    pub(crate) fn open(&self) {
        self.0.passes.close();
    }

    /// What a request does at the gate.
    pub(super) async fn pass(&self) {
        self.0.arrivals.add_permits(1);
        if let Ok(pass) = self.0.passes.acquire().await {
            pass.forget();
        }
    }
}
